//! The server over real sockets, asked by tonic's client.

use std::path::PathBuf;

use envoy_types::pb::envoy::config::core::v3::{ControlPlane, Locality, Node};
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::rpc;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::*;
use crate::{Good, Sources};

/// Until what a test waits for has come.
const COMES: Duration = Duration::from_secs(20);
const MESH: &str = include_str!("../catalog/mesh.yaml");

/// A server on a port of its own, of a folder of its own.
struct Served {
    server: Server,
    folder: TempDir,
    good: Good,
    address: SocketAddr,
}

fn verified(id: &str) -> Caller {
    Caller::Verified(SpiffeId::parse(id).unwrap())
}

impl Served {
    async fn new(caller: Caller, admission: Admission, limits: ServerLimits) -> Self {
        Self::making(caller, admission, limits, Plane::catalog).await
    }

    async fn making(
        caller: Caller,
        admission: Admission,
        limits: ServerLimits,
        make: Make,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("mesh.yaml"), MESH).unwrap();
        let sources = Sources::read(folder.path()).unwrap();
        let plane = sources.plane(&Good::default()).unwrap();
        let good = plane.good().clone();
        let server = Server::making((plane, make), admission, limits, "test");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = server.clone();
        drop(tokio::spawn(async move {
            while let Ok((tcp, source)) = listener.accept().await {
                let visitor = Visitor {
                    caller: caller.clone(),
                    source,
                    until: Instant::now() + Duration::from_secs(3600),
                };
                let server = accepting.clone();
                drop(tokio::spawn(
                    async move { server.serve(tcp, visitor).await },
                ));
            }
        }));
        Self {
            server,
            folder,
            good,
            address,
        }
    }

    /// For whoever is on this machine.
    async fn local() -> Self {
        let admission = Admission {
            local: true,
            ..Default::default()
        };
        Self::new(Caller::Local, admission, ServerLimits::default()).await
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("mesh.yaml")
    }

    /// Publishes these documents; how many resources were new.
    async fn write(&mut self, yaml: &str) -> u64 {
        std::fs::write(self.file(), yaml).unwrap();
        let plane = Sources::read(self.folder.path())
            .unwrap()
            .plane(&self.good)
            .unwrap();
        self.good = plane.good().clone();
        self.server.publish(plane).await
    }

    async fn client(&self) -> AggregatedDiscoveryServiceClient<Channel> {
        let client = AggregatedDiscoveryServiceClient::connect(format!("http://{}", self.address));
        client.await.unwrap().max_decoding_message_size(64 << 20)
    }

    /// A connection from this address of this machine.
    async fn by_hand(&self, from: &str) -> ByHand {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        let tcp = socket.connect(self.address).await.unwrap();
        let (send, connection) = h2::client::handshake(tcp).await.unwrap();
        drop(tokio::spawn(connection));
        send
    }

    async fn delta(&self, node: Node) -> Delta {
        Self::delta_of(self.client().await, node).await
    }

    /// Of a client that takes little before it reads.
    async fn delta_that_reads_late(&self, node: Node, window: u32) -> Delta {
        let channel = tonic::transport::Endpoint::new(format!("http://{}", self.address));
        let channel = channel.unwrap().initial_stream_window_size(window);
        let channel = channel.connect().await.unwrap();
        Self::delta_of(AggregatedDiscoveryServiceClient::new(channel), node).await
    }

    async fn delta_of(mut client: AggregatedDiscoveryServiceClient<Channel>, node: Node) -> Delta {
        let (ask, asked) = mpsc::channel(64);
        let first = DeltaDiscoveryRequest {
            node: Some(node),
            type_url: Kind::Cluster.type_url(),
            ..Default::default()
        };
        ask.send(first).await.unwrap();
        let told = client.delta_aggregated_resources(Asked(asked)).await;
        Delta {
            ask,
            told: told.unwrap().into_inner(),
        }
    }
}

/// Requests as tonic takes them.
struct Asked<T>(Receiver<T>);

impl<T> tonic::codegen::tokio_stream::Stream for Asked<T> {
    type Item = T;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T>> {
        self.0.poll_recv(context)
    }
}

struct Delta {
    ask: Sender<DeltaDiscoveryRequest>,
    told: Streaming<DeltaDiscoveryResponse>,
}

impl Delta {
    async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let next = timeout(COMES, self.told.message()).await;
        next.expect("nothing came")
            .map(|message| message.expect("it ended"))
    }

    /// Acknowledges what it was told of clusters; returns when the server has read that.
    async fn acknowledge(&mut self, told: &DeltaDiscoveryResponse) {
        self.ask(Kind::Cluster, &told.nonce, &[], None).await;
        self.ask(Kind::Routes, "", &["nobody"], None).await;
        assert_eq!(self.next().await.unwrap().removed_resources, ["nobody"]);
    }

    async fn ask(&self, kind: Kind, nonce: &str, names: &[&str], error: Option<&str>) {
        let request = DeltaDiscoveryRequest {
            type_url: kind.type_url(),
            response_nonce: nonce.to_owned(),
            resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
            error_detail: error.map(|message| rpc::Status {
                message: message.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.ask.send(request).await.unwrap();
    }
}

/// Documents with other clusters.
fn other_clusters(yaml: &str) -> String {
    yaml.replacen("start: 60%", "start: 61%", 1)
}

fn node(id: &str) -> Node {
    Node {
        id: id.to_owned(),
        ..Default::default()
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response
        .resources
        .iter()
        .map(|one| one.name.as_str())
        .collect()
}

#[tokio::test]
async fn a_change_of_one_endpoint_reaches_every_client_and_is_encoded_once() {
    let mut served = Served::local().await;
    let endpoints = ["outbound|shop/orders:80", "own|shop/orders:80"];
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = served.delta(node("east-gw")).await;
        let told = client.next().await.unwrap();
        assert!(
            names(&told).contains(&"outbound|shop/orders:80"),
            "{told:?}"
        );
        let plane = ControlPlane {
            identifier: "test".to_owned(),
        };
        assert_eq!(told.control_plane, Some(plane));
        client.ask(Kind::Cluster, &told.nonce, &[], None).await;
        client.ask(Kind::Endpoints, "", &endpoints, None).await;
        let told = client.next().await.unwrap();
        assert_eq!(names(&told), endpoints);
        client.ask(Kind::Endpoints, &told.nonce, &[], None).await;
        clients.push(client);
    }
    let encoded = served
        .write(&MESH.replace("10.0.2.10:80", "10.0.2.11:80"))
        .await;
    assert_eq!(encoded, 2);
    for client in &mut clients {
        let told = client.next().await.unwrap();
        assert_eq!(told.type_url, Kind::Endpoints.type_url());
        assert_eq!(names(&told), endpoints);
        assert!(told.removed_resources.is_empty());
    }
    // Nothing changed: nothing is sent (P36). The answer to another question is the next that comes.
    assert_eq!(
        served
            .write(&MESH.replace("10.0.2.10:80", "10.0.2.11:80"))
            .await,
        0
    );
    for client in &mut clients {
        client.ask(Kind::Listener, "", &["nobody"], None).await;
        let told = client.next().await.unwrap();
        assert_eq!(told.removed_resources, ["nobody"]);
    }
}

#[tokio::test]
async fn state_of_the_world_is_told_on_the_same_port() {
    let served = Served::local().await;
    let (ask, asked) = mpsc::channel(4);
    let first = DiscoveryRequest {
        node: Some(node("east-gw")),
        type_url: Kind::Listener.type_url(),
        ..Default::default()
    };
    ask.send(first).await.unwrap();
    let told = served
        .client()
        .await
        .stream_aggregated_resources(Asked(asked))
        .await;
    let mut told = told.unwrap().into_inner();
    let told: DiscoveryResponse = told.message().await.unwrap().unwrap();
    assert_eq!(told.resources.len(), 3);
    for one in &told.resources {
        crate::pb::unpack::<crate::pb::listener::Listener>(one).unwrap();
    }
}

#[tokio::test]
async fn replicas_in_other_places_are_told_of_other_levels() {
    let served = Served::local().await;
    let mut versions = Vec::new();
    for (zone, id) in [
        ("eu-1", "east-gw"),
        ("eu-2", "east-gw/replica-2"),
        ("eu-1", "east-gw/3"),
    ] {
        let node = Node {
            locality: Some(Locality {
                region: "eu".to_owned(),
                zone: zone.to_owned(),
                sub_zone: String::new(),
            }),
            ..node(id)
        };
        let mut client = served.delta(node).await;
        client
            .ask(Kind::Endpoints, "", &["outbound|shop/orders:80"], None)
            .await;
        client.next().await.unwrap();
        versions.push(client.next().await.unwrap().resources[0].version.clone());
    }
    assert_eq!(versions[0], versions[2]);
    assert_ne!(versions[0], versions[1]);
}

#[tokio::test]
async fn a_node_is_found_by_its_cluster_and_refused_where_there_is_none() {
    let served = Served::local().await;
    let by_cluster = Node {
        cluster: "east".to_owned(),
        ..node("sidecar-7")
    };
    assert!(served.delta(by_cluster).await.next().await.is_ok());
    let unknown = served
        .delta(node("west-gw"))
        .await
        .next()
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::PermissionDenied);
    let text = "local gets no configuration of node `west-gw`; the server's log says why";
    assert_eq!(unknown.message(), text);
    let bad = Node {
        locality: Some(Locality {
            region: "e/u".to_owned(),
            zone: "*".to_owned(),
            sub_zone: String::new(),
        }),
        ..node("east-gw")
    };
    let bad = served.delta(bad).await.next().await.unwrap_err();
    assert_eq!(bad.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn an_envoy_that_would_deny_nobody_is_told_nothing() {
    let mut served = Served::local().await;
    let agent = |name: &str| Node {
        user_agent_name: name.to_owned(),
        ..node("east-gw")
    };
    let mut first = served.delta(agent("envoy")).await;
    let told = first.next().await.unwrap();
    first.acknowledge(&told).await;
    let denial = "deny: [{ from: [\"spiffe://north.example/*\"], via: [north] }, ";
    let yaml = MESH.replacen("deny: [", denial, 1);
    // There is something to tell, and the end alone comes.
    assert!(served.write(&other_clusters(&yaml)).await > 0);
    for mut envoy in [first, served.delta(agent("envoy")).await] {
        let ended = envoy.next().await.unwrap_err();
        assert_eq!(ended.code(), Code::PermissionDenied);
    }
    assert!(served.delta(agent("zeugma")).await.next().await.is_ok());
}

/// The policies by which hosts and chains of a listener deny, by service.
fn denials(responses: &[DeltaDiscoveryResponse]) -> BTreeMap<String, Vec<String>> {
    use crate::pb::{http_rbac, listener, network_rbac, route, unpack};

    let mut denials = BTreeMap::new();
    let all = responses.iter().flat_map(|response| &response.resources);
    for any in all.filter_map(|one| one.resource.as_ref()) {
        if let Ok(routes) = unpack::<route::RouteConfiguration>(any) {
            for host in routes.virtual_hosts {
                let per_host = host.typed_per_filter_config.values();
                let rules = per_host.filter_map(|any| unpack::<http_rbac::RbacPerRoute>(any).ok());
                let rules = rules.filter_map(|of| of.rbac?.rules);
                let names = rules.flat_map(|rules| rules.policies.into_keys());
                denials.insert(format!("{} {}", routes.name, host.name), names.collect());
            }
        } else if let Ok(listener) = unpack::<listener::Listener>(any) {
            for chain in listener.filter_chains {
                let filters = chain.filters.into_iter();
                let rules = filters.filter_map(|filter| match filter.config_type? {
                    listener::filter::ConfigType::TypedConfig(any) => {
                        unpack::<network_rbac::Rbac>(&any).ok()?.rules
                    }
                    listener::filter::ConfigType::ConfigDiscovery(_) => None,
                });
                let names = rules.flat_map(|rules| rules.policies.into_keys());
                denials.insert(format!("{} {}", listener.name, chain.name), names.collect());
            }
        }
    }
    denials
}

#[tokio::test]
async fn an_envoy_is_told_whom_a_route_is_exported_to_and_a_gateway_knows() {
    let served = Served::local().await;
    for (agent, is_told) in [("envoy", true), ("zeugma", false)] {
        let node = Node {
            user_agent_name: agent.to_owned(),
            ..node("east-gw")
        };
        let mut client = served.delta(node).await;
        client.next().await.unwrap();
        let mut told = Vec::new();
        for kind in [Kind::Listener, Kind::Routes] {
            client.ask(kind, "", &["*"], None).await;
            told.push(client.next().await.unwrap());
        }
        let denials = denials(&told);
        let is_denied = |name: &str| {
            let policies = denials.get(name).unwrap_or_else(|| panic!("{denials:?}"));
            policies.iter().any(|policy| policy == "not exported")
        };
        // Of bytes, of requests, and of TLS that is passed through; `north` is a peer too.
        for name in [
            "mesh shop/multi:9000",
            "mesh|shop/orders:80 shop/orders:80",
            "mesh shop/secure:443",
        ] {
            assert_eq!(is_denied(name), is_told, "{agent} {name} {denials:#?}");
        }
        // Workloads are of this cluster.
        assert!(
            !is_denied("apps|shop/orders:80 shop/orders:80"),
            "{agent} {denials:#?}"
        );
    }
}

#[tokio::test]
async fn metrics_are_told_while_something_is_compiled() {
    let served = Served::local().await;
    served.delta(node("east-gw")).await.next().await.unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let compiling = lock(&served.server.shared.store);
    let server = served.server.clone();
    let asking = std::thread::spawn(move || tell.send(server.metrics()));
    let metrics = told.recv_timeout(COMES);
    drop(compiling);
    asking.join().unwrap().ok();
    let metrics = metrics.expect("they wait");
    let of = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    assert!(of("zeugma_xds_resources ") > 10 && of("zeugma_xds_resources_encoded_total ") > 10);
}

#[tokio::test]
async fn only_a_gateways_own_identity_and_those_listed_may_have_its_configuration() {
    let east = "\n---\napiVersion: zeugma.dev/v1alpha1\nkind: MeshPeer\nmetadata: { name: east }\nspec: { cluster: east, locality: eu/eu-1, gateways: [\"192.0.2.1:15443\"], spiffeIDs: [\"spiffe://east.example/zeugma/gateway\"] }\n";
    let listed = Admission {
        listed: vec![(
            Some("east-gw".to_owned()),
            IdPattern::parse("spiffe://east.example/ns/mesh/*").unwrap(),
        )],
        local: false,
    };
    for (id, is_let_in) in [
        ("spiffe://east.example/zeugma/gateway", true),
        ("spiffe://east.example/ns/mesh/sa/envoy", true),
        ("spiffe://west.example/zeugma/gateway", false),
        ("spiffe://east.example/ns/shop/sa/cart", false),
    ] {
        let limits = ServerLimits::default();
        let mut served = Served::new(verified(id), listed.clone(), limits).await;
        served.write(&format!("{MESH}{east}")).await;
        let mut client = served.delta(node("east-gw")).await;
        let told = client.next().await;
        if !is_let_in {
            assert_eq!(told.unwrap_err().code(), Code::PermissionDenied, "{id}");
            continue;
        }
        client.acknowledge(&told.unwrap()).await;
        if id.ends_with("/zeugma/gateway") {
            // It is no gateway of that cluster any more, and is not told what changes.
            assert!(served.write(&other_clusters(MESH)).await > 0);
            let ended = client.next().await.unwrap_err();
            assert_eq!(ended.code(), Code::PermissionDenied);
        }
    }
    let served = Served::new(Caller::Local, Admission::default(), ServerLimits::default()).await;
    let ended = served
        .delta(node("east-gw"))
        .await
        .next()
        .await
        .unwrap_err();
    assert_eq!(ended.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn what_a_node_refused_is_shown_with_its_reason() {
    let served = Served::local().await;
    let mut client = served.delta(node("east-gw")).await;
    let told = client.next().await.unwrap();
    client
        .ask(Kind::Cluster, &told.nonce, &[], Some("no such socket"))
        .await;
    client.ask(Kind::Routes, "", &["nobody"], None).await;
    client.next().await.unwrap();
    let nodes = served.server.nodes();
    let node = &nodes["nodes"][0];
    assert_eq!(node["node"], "east-gw");
    assert_eq!(node["gateway"], "east-gw");
    assert_eq!(node["locality"], "eu/eu-1");
    assert_eq!(node["protocol"], "delta");
    let clusters = &node["types"][0];
    assert_eq!(clusters["type"], "Cluster");
    assert_eq!(clusters["subscribed"], "*");
    assert_eq!(clusters["sent"], told.system_version_info.as_str());
    assert!(clusters["accepted"].is_null());
    assert_eq!(clusters["rejected"]["detail"], "no such socket");
    let routes = &node["types"][1];
    assert_eq!(routes["subscribed"], 1);
    assert!(routes["unacknowledgedSeconds"].is_number());
    let metrics = served.server.metrics();
    for line in [
        "zeugma_xds_streams 1",
        "zeugma_xds_rejecting 1",
        "zeugma_xds_rejected_total 1",
        "zeugma_xds_responses_total{type=\"Cluster\"} 1",
        "zeugma_xds_unacknowledged 1",
    ] {
        assert!(metrics.lines().any(|one| one == line), "{line}: {metrics}");
    }
    drop(client);
    let deadline = Instant::now() + COMES;
    while served.server.streams() > 0 {
        assert!(Instant::now() < deadline, "the stream never ends");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_holds_up_nobody() {
    let mut served = Served::local().await;
    let window = 1024;
    let mut silent = served.delta_that_reads_late(node("east-gw"), window).await;
    silent.ask(Kind::Routes, "", &["*"], None).await;
    let mut other = served.delta(node("east-gw")).await;
    let told = other.next().await.unwrap();
    other.ask(Kind::Cluster, &told.nonce, &[], None).await;
    for nth in 0..20 {
        let yaml = MESH.replacen("start: 60%", &format!("start: {}%", 61 + nth), 1);
        assert!(served.write(&yaml).await > 0);
        let told = other.next().await.unwrap();
        assert!(names(&told).contains(&"outbound|shop/more:80"), "{told:?}");
        other.ask(Kind::Cluster, &told.nonce, &[], None).await;
    }
    // What the silent one missed comes at once, as it is in the end (P52).
    let told = silent.next().await.unwrap();
    let bytes = prost::Message::encoded_len(&told);
    assert!(bytes > 4 * window as usize, "it fits the window: {bytes}");
    silent.ask(Kind::Cluster, &told.nonce, &[], None).await;
    let mut seen = 0;
    loop {
        let told = silent.next().await.unwrap();
        if told.type_url == Kind::Cluster.type_url() {
            seen += 1;
            assert_eq!(told.system_version_info, {
                let nodes = served.server.nodes();
                let all = nodes["nodes"].as_array().unwrap().clone();
                all[1]["types"][0]["accepted"].as_str().unwrap().to_owned()
            });
            break;
        }
    }
    assert_eq!(seen, 1);
}

#[tokio::test]
async fn every_limit_refuses_the_stream_that_reaches_it() {
    let admission = Admission {
        local: true,
        ..Default::default()
    };
    let limits = ServerLimits {
        caller_streams: 2,
        request_bytes: 4096,
        names: 10,
        views: 1,
        ..Default::default()
    };
    let served = Served::new(Caller::Local, admission.clone(), limits).await;
    let mut first = served.delta(node("east-gw")).await;
    first.next().await.unwrap();
    let elsewhere = Node {
        locality: Some(Locality {
            region: "us".to_owned(),
            ..Default::default()
        }),
        ..node("east-gw")
    };
    let over = |status: Status| {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        status.message().to_owned()
    };
    let ended = served.delta(elsewhere).await.next().await.unwrap_err();
    assert_eq!(over(ended), "over 1 gateways and places are served");
    let mut second = served.delta(node("east-gw")).await;
    second.next().await.unwrap();
    let ended = served
        .delta(node("east-gw"))
        .await
        .next()
        .await
        .unwrap_err();
    assert_eq!(over(ended), "over 2 streams of 127.0.0.1");
    let many: Vec<String> = (0..11).map(|nth| nth.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    first.ask(Kind::Routes, "", &many, None).await;
    let ended = first.next().await.unwrap_err();
    assert_eq!(over(ended), "subscribed to over 10 names on one stream");
    second
        .ask(Kind::Routes, "", &["x".repeat(5000).as_str()], None)
        .await;
    let ended = second.next().await.unwrap_err();
    assert!(over(ended).ends_with("4096 are read"));
    let long = node(&"x".repeat(257));
    let ended = served.delta(long).await.next().await.unwrap_err();
    assert_eq!(ended.code(), Code::InvalidArgument);
    assert_eq!(ended.message(), "a node id of over 256 bytes");
    let limits = ServerLimits {
        streams: 1,
        ..Default::default()
    };
    let served = Served::new(Caller::Local, admission, limits).await;
    let mut first = served.delta(node("east-gw")).await;
    first.next().await.unwrap();
    let ended = served
        .delta(node("east-gw"))
        .await
        .next()
        .await
        .unwrap_err();
    assert_eq!(over(ended), "over 1 streams");
}

#[tokio::test]
async fn a_request_longer_than_a_window_is_read() {
    let served = Served::local().await;
    let client = served.delta(node("east-gw")).await;
    let mut client = client;
    let told = client.next().await.unwrap();
    client.ask(Kind::Cluster, &told.nonce, &[], None).await;
    let many: Vec<String> = (0..20_000)
        .map(|nth| format!("own|shop/service-{nth}:80"))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    client.ask(Kind::Endpoints, "", &many, None).await;
    let told = client.next().await.unwrap();
    assert_eq!(told.removed_resources.len(), many.len());
}

#[tokio::test]
async fn long_requests_wait_until_there_is_memory_and_short_ones_do_not() {
    let admission = Admission {
        local: true,
        ..Default::default()
    };
    let limits = ServerLimits {
        request_bytes: 120 * 1024,
        requests_bytes: 128 * 1024,
        ..Default::default()
    };
    let served = Served::new(Caller::Local, admission, limits).await;
    let mut second = served.delta(node("east-gw")).await;
    let told = second.next().await.unwrap();
    second.ask(Kind::Cluster, &told.nonce, &[], None).await;
    let mut send = served.by_hand("127.0.0.2").await;
    let (_response, mut body) = open_by_hand(&mut send, LONG);
    let memory = &served.server.shared.memory;
    let free = async |kib: usize| {
        let deadline = Instant::now() + COMES;
        while memory.available_permits() != kib {
            assert!(Instant::now() < deadline, "{memory:?}");
            tokio::task::yield_now().await;
        }
    };
    free(28).await;
    let names: Vec<String> = (0..7000).map(|nth| format!("service-{nth:06}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    second.ask(Kind::Endpoints, "", &names, None).await;
    // Who waits is given what there is, and goes on waiting for the rest.
    free(0).await;
    let mut third = served.delta(node("east-gw")).await;
    third.next().await.unwrap();
    assert_eq!(memory.available_permits(), 0);
    body.send_reset(h2::Reason::CANCEL);
    let told = second.next().await.unwrap();
    assert_eq!(told.removed_resources.len(), names.len());
}

#[tokio::test]
async fn one_caller_has_so_many_views_and_leaves_room_for_others() {
    let admission = Admission {
        local: true,
        ..Default::default()
    };
    let limits = ServerLimits {
        caller_views: 2,
        ..Default::default()
    };
    let served = Served::new(Caller::Local, admission, limits).await;
    let at = |region: &str| Node {
        locality: Some(Locality {
            region: region.to_owned(),
            ..Default::default()
        }),
        ..node("east-gw")
    };
    let mut streams = Vec::new();
    for region in ["eu", "us", "eu"] {
        let mut stream = served.delta(at(region)).await;
        stream.next().await.unwrap();
        streams.push(stream);
    }
    let ended = served.delta(at("as")).await.next().await.unwrap_err();
    assert_eq!(ended.code(), Code::ResourceExhausted);
    let text = "over 2 gateways and places of 127.0.0.1";
    assert_eq!(ended.message(), text);
    // One of two that share a view leaves it to the other.
    drop(streams.pop());
    until("it leaves", || served.server.streams() == 2).await;
    let ended = served.delta(at("as")).await.next().await.unwrap_err();
    assert_eq!(ended.message(), text);
    drop(streams.pop());
    until("it leaves", || served.server.streams() == 1).await;
    assert!(served.delta(at("as")).await.next().await.is_ok());
}

#[tokio::test]
async fn places_that_everybody_left_are_forgotten_and_one_caller_has_so_many_made_in_a_minute() {
    let admission = Admission {
        local: true,
        ..Default::default()
    };
    let limits = ServerLimits {
        caller_views: 20,
        ..Default::default()
    };
    let served = Served::new(Caller::Local, admission, limits).await;
    let at = |nth: usize| Node {
        locality: Some(Locality {
            region: format!("region-{nth}"),
            ..Default::default()
        }),
        ..node("east-gw")
    };
    let shared = &served.server.shared;
    // Who makes a view holds the store while the views are looked at: never the other way.
    let known = || {
        let memos = lock(&shared.store).memos();
        memos.max(lock(&shared.views).len())
    };
    for nth in 0..40 {
        served.delta(at(nth)).await.next().await.unwrap();
        until("it leaves", || {
            let views = lock(&shared.views);
            served.server.streams() == 0 && views.values().all(|of| of.receiver_count() == 0)
        })
        .await;
    }
    // Sixteen for who comes back, and the last.
    until("they are forgotten", || known() <= 17).await;
    let ended = served.delta(at(40)).await.next().await.unwrap_err();
    assert_eq!(ended.code(), Code::ResourceExhausted);
    let text = "over 40 new gateways and places of 127.0.0.1 in a minute";
    assert_eq!(ended.message(), text);
    // What is made already is told.
    assert!(served.delta(at(39)).await.next().await.is_ok());
}

/// Says that 100 KiB come, and is a few of them.
const LONG: &[u8] = b"\0\0\x01\x90\0abc";

type ByHand = h2::client::SendRequest<bytes::Bytes>;

fn open_by_hand(
    send: &mut ByHand,
    first: &'static [u8],
) -> (h2::client::ResponseFuture, h2::SendStream<bytes::Bytes>) {
    let ads = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
    let request = Request::post(format!("http://x{ads}")).body(()).unwrap();
    let (response, mut body) = send.send_request(request, false).unwrap();
    body.send_data(first.into(), false).unwrap();
    (response, body)
}

/// A server that reads one long request at once, of `held` KiB less.
async fn with_memory_held(held: u32) -> (Served, tokio::sync::OwnedSemaphorePermit) {
    let admission = Admission {
        local: true,
        ..Default::default()
    };
    let limits = ServerLimits {
        request_bytes: 128 * 1024,
        requests_bytes: 128 * 1024,
        ..Default::default()
    };
    let served = Served::new(Caller::Local, admission, limits).await;
    let memory = Arc::clone(&served.server.shared.memory);
    let held = memory.acquire_many_owned(held).await.unwrap();
    (served, held)
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + COMES;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_stream_counts_from_its_first_byte_and_ends_when_its_client_gives_it_up() {
    let (served, held) = with_memory_held(128).await;
    let mut send = served.by_hand("127.0.0.1").await;
    let (_response, mut body) = open_by_hand(&mut send, LONG);
    until("it counts", || served.server.streams() == 1).await;
    // Of whom nothing is known yet.
    assert_eq!(served.server.nodes()["nodes"], serde_json::json!([]));
    body.send_reset(h2::Reason::CANCEL);
    until("it ends", || served.server.streams() == 0).await;
    drop(held);
}

#[tokio::test]
async fn streams_that_say_nothing_count_to_their_caller() {
    let admission = Admission {
        local: true,
        ..Default::default()
    };
    let limits = ServerLimits {
        caller_streams: 2,
        ..Default::default()
    };
    let served = Served::new(Caller::Local, admission, limits).await;
    let mut send = served.by_hand("127.0.0.1").await;
    let _silent = [open_by_hand(&mut send, b""), open_by_hand(&mut send, b"")];
    until("they count", || served.server.streams() == 2).await;
    let ended = served.delta(node("east-gw")).await.next().await;
    let ended = ended.unwrap_err();
    assert_eq!(ended.message(), "over 2 streams of 127.0.0.1");
    let mut send = served.by_hand("127.0.0.2").await;
    let _other = open_by_hand(&mut send, b"");
    until("another's do not", || served.server.streams() == 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_long_request_waits_for_memory_a_while_only() {
    let (served, held) = with_memory_held(128).await;
    let mut client = served.delta(node("east-gw")).await;
    let told = client.next().await.unwrap();
    client.ask(Kind::Cluster, &told.nonce, &[], None).await;
    let names: Vec<String> = (0..7000).map(|nth| format!("service-{nth:06}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    client.ask(Kind::Endpoints, "", &names, None).await;
    let ended = client.told.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable);
    assert_eq!(ended.message(), "too many long requests are read at once");
    drop(held);
}

#[tokio::test]
async fn a_long_request_keeps_its_place_whatever_comes_meanwhile() {
    let (mut served, held) = with_memory_held(100).await;
    let mut client = served.delta(node("east-gw")).await;
    let told = client.next().await.unwrap();
    client.acknowledge(&told).await;
    let names: Vec<String> = (0..7000).map(|nth| format!("service-{nth:06}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    client.ask(Kind::Endpoints, "", &names, None).await;
    let memory = Arc::clone(&served.server.shared.memory);
    until("it waits", || memory.available_permits() == 0).await;
    let mut later = pin!(memory.acquire_many(28));
    assert!(now(later.as_mut()).await.is_none());
    assert!(served.write(&other_clusters(MESH)).await > 0);
    assert!(!client.next().await.unwrap().resources.is_empty());
    assert!(now(later.as_mut()).await.is_none());
    drop(held);
    let told = client.next().await.unwrap();
    assert_eq!(told.removed_resources.len(), names.len());
    drop(later.await.unwrap());
}

/// What a future has made so far.
async fn now<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match future.as_mut().poll(context) {
            std::task::Poll::Ready(made) => Some(made),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test]
async fn one_caller_reads_half_of_what_is_read_at_once() {
    let admission = Admission {
        local: true,
        ..Default::default()
    };
    let limits = ServerLimits {
        request_bytes: 128 * 1024,
        requests_bytes: 256 * 1024,
        ..Default::default()
    };
    let served = Served::new(Caller::Local, admission, limits).await;
    let memory = &served.server.shared.memory;
    let mut send = served.by_hand("127.0.0.1").await;
    let _greedy: Vec<_> = (0..3).map(|_| open_by_hand(&mut send, LONG)).collect();
    until("they came", || served.server.streams() == 3).await;
    let mut send = served.by_hand("127.0.0.2").await;
    let _other = open_by_hand(&mut send, LONG);
    until("two are read", || memory.available_permits() == 56).await;
}

#[tokio::test]
async fn a_server_that_drains_ends_its_streams() {
    let served = Served::local().await;
    let mut client = served.delta(node("east-gw")).await;
    client.next().await.unwrap();
    served.server.drain();
    let ended = client.next().await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable);
    assert_eq!(ended.message(), "draining");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_says_nothing_is_ended() {
    let served = Served::local().await;
    let (ask, asked) = mpsc::channel::<DeltaDiscoveryRequest>(1);
    let told = served
        .client()
        .await
        .delta_aggregated_resources(Asked(asked))
        .await;
    let ended = told.unwrap().into_inner().message().await.unwrap_err();
    assert_eq!(ended.code(), Code::DeadlineExceeded);
    drop(ask);
}

#[tokio::test]
async fn what_is_no_such_service_or_no_request_is_told_so() {
    let served = Served::local().await;
    let tcp = TcpStream::connect(served.address).await.unwrap();
    let (mut send, connection) = h2::client::handshake(tcp).await.unwrap();
    drop(tokio::spawn(connection));
    let mut call = async |path: &str, bytes: &'static [u8]| {
        let request = Request::post(format!("http://x{path}")).body(()).unwrap();
        let (response, mut body) = send.send_request(request, false).unwrap();
        body.send_data(bytes.into(), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        while body.data().await.is_some() {}
        let trailers = body.trailers().await.unwrap().unwrap();
        trailers["grpc-status"].to_str().unwrap().to_owned()
    };
    let ads = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
    let secrets = "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets";
    // gRPC's numbers: 12 unimplemented, 3 invalid argument, 15 data loss, 8 resource exhausted.
    assert_eq!(call(secrets, b"").await, "12");
    assert_eq!(call(ads, b"").await, "0");
    assert_eq!(call(ads, b"\x01\0\0\0\0").await, "12");
    assert_eq!(call(ads, b"\0\0\0\0\x02\xff\xff").await, "3");
    assert_eq!(call(ads, b"\0\0\0\0\0").await, "3");
    assert_eq!(call(ads, b"\0\0\0\0\x07x").await, "15");
    assert_eq!(call(ads, b"\0\xff\xff\xff\xff").await, "8");
}

mod calls;
