//! What a copy is answered, beside what its caller got: `mirror.compare`.

use std::net::SocketAddr;
use std::time::Duration;

use http::Method;

use crate::data_client::{Client, Wire};
use crate::data_mesh::{Gateway, HELLO, Pair, endpoints, http_route, near_route};
use crate::data_services::{AnyBody, HttpService, Mode, Refusing, pattern};

const COMPARED: &str = "zeugma_mirror_compared_total";
const TOLD: &str = "ZG0452";

/// `hello` at `primaries`, whose copies go to `canary` and are compared.
async fn compared(
    primaries: &[SocketAddr],
    canary: SocketAddr,
    mirror: &str,
    spec: &[&str],
) -> Gateway {
    let backends = |addresses| format!("backends: [{{ {} }}]", endpoints(addresses));
    let (own, mirror) = (
        backends(primaries),
        format!("mirror: [{{ route: demo/canary, compare: true{mirror} }}]"),
    );
    let hello = near_route("hello", &[&[&*own, &mirror], spec].concat());
    let canary = near_route("canary", &[&backends(&[canary])]);
    Gateway::alone(&format!("{hello}{canary}")).await
}

async fn connected(gateway: &Gateway, wire: &Wire) -> Client {
    Client::connect(gateway.apps(), wire).await.unwrap()
}

impl Gateway {
    /// Waits until so many copies were compared with this result.
    async fn until_compared(&self, result: &str, count: f64) {
        let labels = [
            ("destination_service", "demo/hello"),
            ("mirror", "demo/canary"),
            ("result", result),
        ];
        self.until_counted(COMPARED, &labels, count).await;
    }

    /// How many differences were logged.
    fn told(&self) -> usize {
        let messages = self.process.messages_so_far();
        messages.iter().filter(|line| line.contains(TOLD)).count()
    }
}

#[tokio::test]
async fn answers_that_are_alike_are_counted_and_not_told() {
    let (primary, canary) = (HttpService::start("one"), HttpService::start("one"));
    let gateway = compared(&[primary.address()], canary.address(), "", &[]).await;
    for wire in [Wire::H1, Wire::H2] {
        let mut client = connected(&gateway, &wire).await;
        client.get(HELLO, "/").await.unwrap();
        client.post(HELLO, "/sum", pattern(100)).await.unwrap();
        client.get(HELLO, "/status/404").await.unwrap();
        client.get(HELLO, "/bytes/100000").await.unwrap();
        client.get(HELLO, "/trailers").await.unwrap();
        let head = client.head("HEAD", HELLO, "/bytes/1000");
        let answer = client.send(head.body(AnyBody::empty()).unwrap()).await;
        assert_eq!(answer.unwrap().header("content-length"), "1000");
    }
    gateway.until_compared("same", 12.0).await;
    assert_eq!(gateway.counted(COMPARED, &[]).await, 12.0);
    assert_eq!(gateway.told(), 0);
    let routes = gateway.process.admin_json("/api/v1/routes").await;
    assert!(routes.to_string().contains("\"compare\":true"), "{routes}");
}

#[tokio::test]
async fn another_status_and_another_body_are_counted_and_told_with_the_requests_id() {
    let (primary, canary) = (HttpService::start("one"), HttpService::start("another"));
    let gateway = compared(&[primary.address()], canary.address(), "", &[]).await;
    let mut client = connected(&gateway, &Wire::H1).await;
    for _ in 0..20 {
        let head = client.head("GET", HELLO, "/");
        let head = head
            .header("x-request-id", "the-first")
            .body(AnyBody::empty());
        assert_eq!(client.send(head.unwrap()).await.unwrap().text(), "one");
    }
    gateway.until_compared("body", 20.0).await;
    let told = gateway.process.message(TOLD).await;
    for said in [
        "the-first",
        "demo/hello",
        "demo/canary",
        "200, 3 bytes",
        "200, 7 bytes",
    ] {
        assert!(told.contains(said), "{said}: {told}");
    }
    // One connection is one worker's, which tells one of them in 10 s.
    assert_eq!(gateway.told(), 1);
    canary.set(Mode::Status(500));
    client.get(HELLO, "/").await.unwrap();
    gateway.until_compared("status", 1.0).await;
}

#[tokio::test]
async fn of_grpc_the_status_is_that_of_the_trailers() {
    let (primary, canary) = (HttpService::start("0"), HttpService::start("13"));
    let gateway = compared(&[primary.address()], canary.address(), "", &[]).await;
    let mut client = connected(&gateway, &Wire::H2).await;
    let answer = client.get(HELLO, "/grpc").await.unwrap();
    assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
    gateway.until_compared("status", 1.0).await;
    let told = gateway.process.message(TOLD).await;
    assert!(told.contains("200 grpc 0, 9 bytes"), "{told}");
    assert!(told.contains("200 grpc 13, 9 bytes"), "{told}");
    // With nothing but trailers it stands in the head.
    canary.set(Mode::Grpc("5"));
    primary.set(Mode::Grpc("5"));
    // Without a body: one that is not read before the answer is not copied.
    client.get(HELLO, "/").await.unwrap();
    gateway.until_compared("same", 1.0).await;
}

#[tokio::test]
async fn bodies_over_the_limit_or_encoded_otherwise_are_not_compared() {
    let (primary, canary) = (HttpService::start("gzip"), HttpService::start("br"));
    let limit = ", bodyLimit: 1KiB";
    let gateway = compared(&[primary.address()], canary.address(), limit, &[]).await;
    let mut client = connected(&gateway, &Wire::H1).await;
    client.get(HELLO, "/bytes/1025").await.unwrap();
    gateway.until_compared("limit", 1.0).await;
    client.get(HELLO, "/bytes/1024").await.unwrap();
    gateway.until_compared("same", 1.0).await;
    client.get(HELLO, "/encoded").await.unwrap();
    gateway.until_compared("encoding", 1.0).await;
    // The status is compared all the same.
    canary.set(Mode::Status(503));
    client.get(HELLO, "/bytes/1025").await.unwrap();
    gateway.until_compared("status", 1.0).await;
}

#[tokio::test]
async fn whichever_of_the_two_is_slower_they_are_compared() {
    let (primary, canary) = (HttpService::start("one"), HttpService::start("one"));
    let late = Mode::Delay(Duration::from_millis(300));
    let timeout = ", timeout: 30s";
    let gateway = compared(&[primary.address()], canary.address(), timeout, &[]).await;
    let mut client = connected(&gateway, &Wire::H2).await;
    canary.set(late);
    client.get(HELLO, "/").await.unwrap();
    gateway.until_compared("same", 1.0).await;
    canary.set(Mode::Normal);
    primary.set(late);
    client.get(HELLO, "/").await.unwrap();
    gateway.until_compared("same", 2.0).await;
}

#[tokio::test]
async fn a_primary_that_is_given_up_midway_or_has_no_endpoint_is_not_compared() {
    let (primary, canary) = (HttpService::start("one"), HttpService::start("one"));
    for wire in [Wire::H1, Wire::H2] {
        let timeout = ", timeout: 60s, bodyLimit: 16MiB";
        let gateway = compared(&[primary.address()], canary.address(), timeout, &[]).await;
        let mut client = connected(&gateway, &wire).await;
        let head = client.head("GET", HELLO, "/big").body(AnyBody::empty());
        let response = client.begin(head.unwrap()).await.unwrap();
        // More is on its way than all buffers hold.
        drop((response, client));
        gateway.until_compared("primary", 1.0).await;
        assert_eq!(gateway.counted(COMPARED, &[]).await, 1.0);
    }
    let gone = Refusing::new();
    let gateway = compared(&[gone.address], canary.address(), "", &[]).await;
    let mut client = connected(&gateway, &Wire::H1).await;
    assert_eq!(client.get(HELLO, "/").await.unwrap().status, 503);
    gateway.until_compared("primary", 1.0).await;
    assert_eq!(gateway.told(), 0);
}

#[tokio::test]
async fn a_copy_without_an_answer_is_not_compared() {
    let (primary, canary) = (HttpService::start("one"), HttpService::start("one"));
    let gone = Refusing::new();
    for (mode, address) in [
        (Mode::Hang, canary.address()),
        (Mode::Reset, canary.address()),
        (Mode::Normal, gone.address),
    ] {
        canary.set(mode);
        let timeout = ", timeout: 300ms";
        let gateway = compared(&[primary.address()], address, timeout, &[]).await;
        let mut client = connected(&gateway, &Wire::H1).await;
        assert_eq!(client.get(HELLO, "/").await.unwrap().text(), "one");
        gateway.until_compared("copy", 1.0).await;
    }
}

#[tokio::test]
async fn a_copy_is_compared_with_the_answer_that_its_caller_got_in_the_end() {
    let (bad, good) = (HttpService::start("one"), HttpService::start("one"));
    let canary = HttpService::start("one");
    bad.set(Mode::Status(503));
    let primaries = [bad.address(), good.address()];
    let spec = [
        "health: { passive: { maxEjected: 0%, on: [connect] } }",
        "retries: { budget: 100% }",
    ];
    let gateway = compared(&primaries, canary.address(), "", &spec).await;
    let mut client = connected(&gateway, &Wire::H1).await;
    let mut asked = 0.0;
    while bad.hits() == 0 {
        assert_eq!(client.get(HELLO, "/").await.unwrap().text(), "one");
        asked += 1.0;
    }
    gateway.until_compared("same", asked).await;
    // Without another try the caller gets what the first endpoint said.
    let before = bad.hits();
    while bad.hits() == before {
        let head = client.head(Method::PATCH.as_str(), HELLO, "/");
        let patch = head.body(AnyBody::empty()).unwrap();
        client.send(patch).await.unwrap();
    }
    gateway.until_compared("status", 1.0).await;
}

#[tokio::test]
async fn a_copy_in_another_cluster_is_compared_too() {
    let (primary, canary) = (HttpService::start("one"), HttpService::start("another"));
    let backends = |address| format!("backends: [{{ {} }}]", endpoints(&[address]));
    let east = [
        http_route(
            "hello",
            &[
                &backends(primary.address()),
                "mirror: [{ route: demo/canary, peer: west, compare: true }]",
            ],
        ),
        http_route("canary", &["backends: [{ peer: west }]"]),
    ];
    let west = http_route("canary", &[&backends(canary.address())]);
    let pair = Pair::new(&east.concat(), &west).await;
    let mut client = connected(&pair.east, &Wire::H1).await;
    client.get(HELLO, "/status/204").await.unwrap();
    pair.east.until_compared("same", 1.0).await;
    client.get(HELLO, "/").await.unwrap();
    pair.east.until_compared("body", 1.0).await;
    pair.finish().await;
}
