use crate::mesh::{Cluster, Service, get};

#[tokio::test]
async fn one_cluster_carries_a_request() {
    let service = Service::http("one").await;
    let east = Cluster::new("east");
    east.route(
        "shop/orders",
        &format!(
            "
            protocol: http
            backends: [{{ endpoints: ['{}'] }}]
            allow: [{{ listeners: [apps] }}]",
            service.address
        ),
    );
    let gateway = east.start().await;
    let reply = get(east.apps, "orders.shop.svc.clusterset.local", "/a").await;
    assert_eq!((reply.status, &*reply.text()), (200, "one"));
    assert_eq!(service.requests()[0].uri.path(), "/a");
    gateway.log(|line| line["verdict"] == "completed").await;
    gateway.finish().await;
}

#[tokio::test]
async fn two_clusters_carry_a_request() {
    let service = Service::http("two").await;
    let (east, west) = (Cluster::new("east"), Cluster::new("west"));
    east.meet(&west);
    east.route(
        "shop/orders",
        "
        protocol: http
        backends: [{ peer: west }]
        allow: [{ listeners: [apps] }]",
    );
    west.route(
        "shop/orders",
        &format!(
            "
            protocol: http
            backends: [{{ endpoints: ['{}'] }}]
            allow: [{{ from: ['{}'] }}]
            export: {{ to: [east] }}",
            service.address,
            east.gateway_id()
        ),
    );
    let (one, two) = (east.start().await, west.start().await);
    let reply = get(east.apps, "orders.shop.svc.clusterset.local", "/a").await;
    assert_eq!((reply.status, &*reply.text()), (200, "two"));
    one.log(|line| line["verdict"] == "completed").await;
    one.finish().await;
    two.finish().await;
}
