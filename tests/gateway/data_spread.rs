//! Traffic of one level, weighed by the localities in it.

use crate::data_mesh::HELLO;
use crate::data_services::HttpService;
use crate::mesh::{Cluster, eventually, get};

#[tokio::test]
async fn one_level_is_spread_over_its_localities_and_what_fails_in_one_goes_to_the_other() {
    let (most, least) = (HttpService::start("most"), HttpService::start("least"));
    let mut east = Cluster::new("east");
    east.set("adminToken", "token");
    east.write_token();
    east.route(
        "demo/hello",
        &format!(
            "
            protocol: http
            backends:
              - {{ locality: east/east-1, endpoints: ['{}'] }}
              - {{ locality: east/east-2, endpoints: ['{}'] }}
            locality: {{ prefer: [region], spread: {{ east/east-1: 80%, east/east-2: 20% }} }}
            failover: {{ start: 50% }}
            health: {{ passive: {{ consecutive: 1 }} }}
            allow: [{{ listeners: [apps] }}]",
            most.address(),
            least.address()
        ),
    );
    let gateway = east.start().await;
    for _ in 0..300 {
        assert_eq!(get(east.apps, HELLO, "/").await.status, 200);
    }
    // 240 by the shares; five standard deviations are 35.
    let hits = most.hits();
    assert!((205..=275).contains(&hits), "{hits}");
    let spread = async || {
        let routes = gateway.admin_json("/api/v1/routes").await;
        routes["routes"][0]["outbound"]["levels"][0]["spread"].clone()
    };
    let told = spread().await;
    assert_eq!(told[0]["locality"], "east/east-1", "{told}");
    assert_eq!(told[1]["share"], 0.2, "{told}");
    most.kill().await;
    eventually("all of it in the other locality", async || {
        assert_eq!(get(east.apps, HELLO, "/").await.status, 200);
        (spread().await[1]["share"] == 1.0).then_some(())
    })
    .await;
    let before = least.hits();
    for _ in 0..20 {
        assert_eq!(get(east.apps, HELLO, "/").await.text(), "least");
    }
    assert_eq!(least.hits(), before + 20);
    gateway.finish().await;
}
