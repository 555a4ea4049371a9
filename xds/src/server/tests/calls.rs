//! What is served beside discovery, and what happens when something cannot be compiled.

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::Locality;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats};
use envoy_types::pb::envoy::service::load_stats::v3::LoadStatsRequest;
use envoy_types::pb::envoy::service::load_stats::v3::load_reporting_service_client::LoadReportingServiceClient;
use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use envoy_types::pb::envoy::service::status::v3::{ClientConfig, ClientStatusRequest};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{NodeMatcher, StringMatcher};

use super::*;

async fn status(served: &Served) -> ClientStatusDiscoveryServiceClient<Channel> {
    let client = ClientStatusDiscoveryServiceClient::connect(format!("http://{}", served.address));
    client.await.unwrap()
}

fn matching(pattern: MatchPattern, ignore_case: bool) -> ClientStatusRequest {
    ClientStatusRequest {
        node_matchers: vec![NodeMatcher {
            node_id: Some(StringMatcher {
                match_pattern: Some(pattern),
                ignore_case,
            }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Node, type, how it stands and how the client does, version, and what was against it.
fn told(config: &[ClientConfig]) -> Vec<String> {
    let each = |one: &ClientConfig| {
        let node = one.node.clone().unwrap().id;
        let types = one.generic_xds_configs.clone().into_iter();
        types.map(move |of| {
            format!(
                "{node} {} {} {} {}",
                of.type_url.rsplit('.').next().unwrap(),
                of.config_status().as_str_name(),
                of.client_status().as_str_name(),
                of.error_state
                    .map_or_else(String::new, |state| state.details),
            )
        })
    };
    config.iter().flat_map(each).collect()
}

#[tokio::test]
async fn p48_what_each_node_was_sent_and_took_is_told() {
    let served = Served::local().await;
    let mut taking = served.delta(node("east-gw/1")).await;
    let first = taking.next().await.unwrap();
    taking.acknowledge(&first).await;
    let mut refusing = served.delta(node("east-gw/2")).await;
    let response = refusing.next().await.unwrap();
    refusing
        .ask(Kind::Cluster, &response.nonce, &[], Some("no such socket"))
        .await;
    refusing.ask(Kind::Routes, "", &["nobody"], None).await;
    refusing.next().await.unwrap();

    let mut client = status(&served).await;
    let all = client
        .fetch_client_status(ClientStatusRequest::default())
        .await;
    let all = all.unwrap().into_inner().config;
    let expected = [
        "east-gw/1 Cluster SYNCED ACKED ",
        "east-gw/1 RouteConfiguration STALE REQUESTED ",
        "east-gw/2 Cluster ERROR NACKED no such socket",
        "east-gw/2 RouteConfiguration STALE REQUESTED ",
    ];
    assert_eq!(told(&all), expected);
    let clusters = &all[0].generic_xds_configs[0];
    assert_eq!(clusters.version_info, first.system_version_info);

    let asked = &served;
    let fetch = |request: ClientStatusRequest| {
        Box::pin(async move {
            let mut client = status(asked).await;
            let answer = client.fetch_client_status(request).await;
            answer.map(|answer| answer.into_inner().config.len())
        })
    };
    for (pattern, any_case, nodes) in [
        (MatchPattern::Exact("east-gw/2".to_owned()), false, 1),
        (MatchPattern::Prefix("EAST".to_owned()), true, 2),
        (MatchPattern::Prefix("EAST".to_owned()), false, 0),
        (MatchPattern::Suffix("/1".to_owned()), false, 1),
        (MatchPattern::Contains("st-g".to_owned()), false, 2),
    ] {
        let request = matching(pattern.clone(), any_case);
        assert_eq!(fetch(request).await.unwrap(), nodes, "{pattern:?}");
    }
    let regex = matching(MatchPattern::SafeRegex(Default::default()), false);
    assert_eq!(
        fetch(regex).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let long = matching(MatchPattern::Exact("x".repeat(70_000)), false);
    assert_eq!(fetch(long).await.unwrap_err().code(), Code::InvalidArgument);

    let many = ClientStatusRequest {
        node_matchers: vec![NodeMatcher::default(); 65],
        ..Default::default()
    };
    assert_eq!(fetch(many).await.unwrap_err().code(), Code::InvalidArgument);

    // A stream is answered as often as it asks.
    let (ask, asked) = mpsc::channel(4);
    let answers = client.stream_client_status(Asked(asked)).await.unwrap();
    let mut answers = answers.into_inner();
    for _ in 0..2 {
        ask.send(ClientStatusRequest::default()).await.unwrap();
        let answer = timeout(COMES, answers.message()).await.unwrap();
        assert_eq!(answer.unwrap().unwrap().config.len(), 2);
    }
    drop(ask);
    assert_eq!(
        timeout(COMES, answers.message()).await.unwrap().unwrap(),
        None
    );
}

// What broke: an Envoy that asks us for the secrets that nobody gives it was late with them for ever.
#[tokio::test]
async fn a_type_that_is_not_served_is_shown_and_counts_nowhere() {
    let served = Served::local().await;
    let (ask, asked) = mpsc::channel(1);
    let first = DeltaDiscoveryRequest {
        node: Some(node("east-gw/1")),
        type_url: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret".to_owned(),
        resource_names_subscribe: vec!["default".to_owned()],
        ..Default::default()
    };
    ask.send(first).await.unwrap();
    let mut client = served.client().await;
    let told = client.delta_aggregated_resources(Asked(asked)).await;
    let mut told = told.unwrap().into_inner();
    let none = timeout(COMES, told.message()).await.unwrap().unwrap();
    assert_eq!(none.unwrap().removed_resources, ["default"]);

    let shown = &served.server.nodes()["nodes"][0]["types"][0];
    assert_eq!(
        (&shown["type"], &shown["served"]),
        (&"Secret".into(), &false.into())
    );
    assert!(shown["unacknowledgedSeconds"].is_number());
    let metrics = served.server.metrics();
    for line in [
        "zeugma_xds_streams 1",
        "zeugma_xds_unacknowledged 0",
        "zeugma_xds_behind 0",
    ] {
        assert!(metrics.lines().any(|one| one == line), "{line}: {metrics}");
    }
    let mut client = status(&served).await;
    let all = client.fetch_client_status(ClientStatusRequest::default());
    let all = all.await.unwrap().into_inner().config;
    assert_eq!((all.len(), all[0].generic_xds_configs.len()), (1, 0));
}

const FETCH: &str = "envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus";
const REPORT: &str = "envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats";

const DELTA: &str =
    "envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// One that takes of each answer what its window lets come, and no more.
struct Silent {
    send: ByHand,
    connection: tokio::task::JoinHandle<Result<(), h2::Error>>,
    answers: Vec<Response<h2::RecvStream>>,
}

impl Silent {
    async fn connect(served: &Served, from: &str, window: u32) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        let tcp = socket.connect(served.address).await.unwrap();
        let handshake = h2::client::Builder::new()
            .initial_window_size(window)
            .handshake(tcp);
        let (send, connection) = handshake.await.unwrap();
        Self {
            send,
            connection: tokio::spawn(connection),
            answers: Vec::new(),
        }
    }

    /// Opens a stream with this message; that an answer begins needs no leave.
    async fn open(
        &mut self,
        call: &str,
        message: &impl prost::Message,
        is_last: bool,
    ) -> (h2::SendStream<Bytes>, Response<h2::RecvStream>) {
        let request = Request::post(format!("http://x/{call}")).body(()).unwrap();
        let (response, mut body) = self.send.send_request(request, false).unwrap();
        body.send_data(framed(message), is_last).unwrap();
        let answer = timeout(COMES, response).await.unwrap();
        (body, answer.unwrap())
    }

    /// Sends this message alone.
    async fn ask(&mut self, call: &str, message: &impl prost::Message) {
        let (_body, answer) = self.open(call, message, true).await;
        self.answers.push(answer);
    }

    /// Waits for the first byte of the answer to what was asked last: all of it is on its way then.
    async fn begins(&mut self) {
        let answer = self.answers.last_mut().unwrap().body_mut();
        let first = timeout(COMES, answer.data()).await.unwrap();
        assert_eq!(first.unwrap().unwrap().len(), 1);
    }

    async fn ends(self) {
        let ended = timeout(COMES, self.connection).await;
        drop(ended.expect("its connection goes on"));
    }
}

fn framed(message: &impl prost::Message) -> Bytes {
    let message = message.encode_to_vec();
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend(message);
    framed.into()
}

/// Reads this much and lets as much more come; whether it came to the end before.
async fn read(answer: &mut Response<h2::RecvStream>, len: usize) -> Result<bool, h2::Error> {
    let (body, mut read) = (answer.body_mut(), 0);
    while read < len {
        let Some(data) = timeout(COMES, body.data()).await.unwrap() else {
            return Ok(true);
        };
        let came = data?.len();
        body.flow_control().release_capacity(came)?;
        read += came;
    }
    Ok(false)
}

/// So much later, of which nobody but the clock knows.
async fn later(by: Duration) {
    tokio::time::pause();
    tokio::time::advance(by).await;
    tokio::time::resume();
}

/// Nodes of which more is told than fits a frame: each has refused something, and said much about it.
async fn who_say_much(served: &Served, nodes: usize) -> Vec<Delta> {
    let mut refusing = Vec::new();
    for nth in 0..nodes {
        let mut client = served.delta(node(&format!("east-gw/{nth}"))).await;
        let told = client.next().await.unwrap();
        let much = "\u{1f980}".repeat(1000);
        client
            .ask(Kind::Cluster, &told.nonce, &[], Some(&much))
            .await;
        client.ask(Kind::Routes, "", &["nobody"], None).await;
        client.next().await.unwrap();
        refusing.push(client);
    }
    refusing
}

#[tokio::test]
async fn who_takes_no_answer_is_left_and_others_are_answered() {
    let served = Served::local().await;
    let _told_of = Box::pin(who_say_much(&served, 5)).await;
    let free = || served.server.shared.answers.available_permits();
    let mut silent = Vec::new();
    for nth in 1..=2 * status::ANSWERS_MAX {
        let mut one = Silent::connect(&served, &format!("127.0.0.{nth}"), 1).await;
        one.ask(FETCH, &ClientStatusRequest::default()).await;
        silent.push(one);
    }
    let mut late = Silent::connect(&served, "127.0.0.100", 1 << 20).await;
    late.ask(FETCH, &ClientStatusRequest::default()).await;
    // What broke: who waited for the second turn was told that there was none.
    for _turn in 0..2 {
        let rest = silent.split_off(status::ANSWERS_MAX);
        for one in &mut silent {
            one.begins().await;
        }
        later(status::ANSWER_MOVES).await;
        for one in std::mem::replace(&mut silent, rest) {
            one.ends().await;
        }
    }
    let answer = late.answers.last_mut().unwrap();
    assert!(read(answer, usize::MAX).await.unwrap());
    let trailers = timeout(COMES, answer.body_mut().trailers()).await.unwrap();
    assert_eq!(trailers.unwrap().unwrap()["grpc-status"], "0");
    until("no answer is kept", || free() == status::ANSWERS_MAX).await;
}

/// A connection that takes all that one stream is told, and of an answer about many nodes a piece at a
/// time, each shortly before it would count as silent.
struct Slow {
    connection: Silent,
    ask: h2::SendStream<Bytes>,
    told: Response<h2::RecvStream>,
    answer: Response<h2::RecvStream>,
    pieces: usize,
}

impl Slow {
    async fn connect(served: &Served) -> Self {
        let mut connection = Silent::connect(served, "127.0.0.1", 16 * 1024).await;
        let (ask, told) = connection.open(DELTA, &nobody(0), false).await;
        connection.ask(FETCH, &ClientStatusRequest::default()).await;
        let answer = connection.answers.pop().unwrap();
        Self {
            connection,
            ask,
            told,
            answer,
            pieces: 0,
        }
    }

    /// Takes the next piece; whether it came to the end.
    async fn takes(&mut self) -> Result<bool, h2::Error> {
        // What the other asks meanwhile is told.
        read(&mut self.told, 1).await?;
        if read(&mut self.answer, 16 * 1024).await? {
            return Ok(true);
        }
        self.pieces += 1;
        later(status::ANSWER_MOVES - Duration::from_secs(1)).await;
        self.ask.send_data(framed(&nobody(self.pieces)), false)?;
        Ok(false)
    }
}

/// Asks for one more route that there is not, and has taken what it was told of those before.
fn nobody(nth: usize) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(node("east-gw")),
        type_url: Kind::Routes.type_url(),
        resource_names_subscribe: vec![format!("nobody{nth}")],
        response_nonce: nth.to_string(),
        ..Default::default()
    }
}

#[tokio::test]
async fn who_takes_an_answer_slowly_keeps_its_other_streams() {
    let served = Served::local().await;
    let _told_of = Box::pin(who_say_much(&served, 20)).await;
    let mut slow = Box::pin(Slow::connect(&served)).await;
    // What broke: that not all was taken in half a minute ended the others.
    while !slow.takes().await.unwrap() {}
    assert!(slow.pieces > 4, "{}", slow.pieces);
}

#[tokio::test]
async fn who_takes_an_answer_too_slowly_is_told_to_go_elsewhere() {
    let served = Served::local().await;
    let _told_of = Box::pin(who_say_much(&served, 50)).await;
    let mut slow = Box::pin(Slow::connect(&served)).await;
    // A dozen pieces would take longer than an answer may.
    let ended = loop {
        match slow.takes().await {
            Ok(false) => {}
            ended => break ended,
        }
    };
    ended.unwrap_err();
    let gone = slow.connection.send.ready().await.unwrap_err();
    assert!(gone.is_go_away(), "{gone}");
    assert_eq!(gone.reason(), Some(h2::Reason::NO_ERROR));
}

#[tokio::test]
async fn who_does_not_take_how_a_stream_ended_is_left() {
    let served = Served::local().await;
    // What broke: with room for one byte all counted as taken.
    for (window, is_load) in [(0, true), (0, false), (1, true), (1, false)] {
        let mut silent = Silent::connect(&served, "127.0.0.1", window).await;
        if is_load {
            let first = LoadStatsRequest {
                node: Some(node("east-gw")),
                ..Default::default()
            };
            silent.ask(REPORT, &first).await;
        } else {
            let first = DeltaDiscoveryRequest {
                node: Some(node("east-gw")),
                type_url: Kind::Cluster.type_url(),
                ..Default::default()
            };
            silent.ask(DELTA, &first).await;
        }
        until("its streams ended", || served.server.streams() == 0).await;
        if window > 0 {
            silent.begins().await;
        }
        assert!(!silent.connection.is_finished());
        later(wire::END_MOVES).await;
        silent.ends().await;
    }
}

#[tokio::test]
async fn who_takes_no_answer_has_one_made_and_no_more() {
    let served = Served::local().await;
    let _told_of = Box::pin(who_say_much(&served, 5)).await;
    let free = || served.server.shared.answers.available_permits();
    let all = free();
    let mut silent = Vec::new();
    // More than one connection may have at once, all of one caller.
    for nth in 1..=3 {
        let mut one = Silent::connect(&served, "127.0.0.1", 0).await;
        for _ in 0..20 {
            one.ask(FETCH, &ClientStatusRequest::default()).await;
        }
        silent.push(one);
        until("they came", || served.server.streams() == 5 + 20 * nth).await;
    }
    until("one is answered", || free() < all).await;
    // What another node does is done after all that came before.
    let mut other = served.delta(node("east-gw")).await;
    other.next().await.unwrap();
    assert_eq!(free(), all - 1);
    assert_eq!(served.server.streams(), 66);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_asks_nothing_is_ended() {
    let served = Served::local().await;
    let (ask, asked) = mpsc::channel(1);
    let mut client = status(&served).await;
    let answers = client.stream_client_status(Asked(asked)).await;
    let mut answers = answers.unwrap().into_inner();
    let ended = answers.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::DeadlineExceeded);
    assert_eq!(ended.message(), "nothing is asked");
    drop(ask);
}

#[tokio::test]
async fn p48_nodes_are_told_of_to_those_alone_who_may_have_their_configuration() {
    let cart = "spiffe://east.example/ns/shop/sa/cart";
    let listed = |gateway: &str| Admission {
        listed: vec![(Some(gateway.to_owned()), IdPattern::parse(cart).unwrap())],
        local: false,
    };
    for (gateway, nodes) in [("east-gw", 1), ("other-gw", 0)] {
        let limits = ServerLimits::default();
        let served = Served::new(verified(cart), listed(gateway), limits).await;
        let mut stream = served.delta(node("east-gw")).await;
        assert_eq!(stream.next().await.is_ok(), nodes == 1);
        let mut client = status(&served).await;
        let all = client
            .fetch_client_status(ClientStatusRequest::default())
            .await;
        assert_eq!(all.unwrap().into_inner().config.len(), nodes, "{gateway}");
    }
}

#[tokio::test]
async fn p47_what_clients_carried_is_summed_and_shown() {
    let mut served = Served::local().await;
    let client = LoadReportingServiceClient::connect(format!("http://{}", served.address));
    let mut client = client.await.unwrap();
    let (report, reports) = mpsc::channel(4);
    let first = LoadStatsRequest {
        node: Some(node("east-gw/7")),
        ..Default::default()
    };
    report.send(first).await.unwrap();
    let answers = client.stream_load_stats(Asked(reports)).await.unwrap();
    let mut answers = answers.into_inner();
    let first = timeout(COMES, answers.message()).await.unwrap().unwrap();
    let first = first.unwrap();
    assert!(first.send_all_clusters && first.load_reporting_interval.unwrap().seconds == 10);
    let stats = ClusterStats {
        cluster_name: "outbound|shop/orders:80".to_owned(),
        upstream_locality_stats: vec![UpstreamLocalityStats {
            locality: Some(Locality {
                region: "eu".to_owned(),
                zone: "eu-1".to_owned(),
                ..Default::default()
            }),
            total_issued_requests: 7,
            total_successful_requests: 5,
            total_error_requests: 2,
            ..Default::default()
        }],
        ..Default::default()
    };
    for _ in 0..2 {
        let next = LoadStatsRequest {
            node: None,
            cluster_stats: vec![stats.clone()],
        };
        report.send(next).await.unwrap();
    }
    until("both reports are counted", || {
        served.server.nodes()["load"][0]["issued"] == 14
    })
    .await;
    let load = &served.server.nodes()["load"][0];
    assert_eq!(load["gateway"], "east-gw");
    assert_eq!(load["locality"], "eu/eu-1");
    assert_eq!(
        (&load["succeeded"], &load["failed"]),
        (&10.into(), &4.into())
    );
    let metrics = served.server.metrics();
    for line in [
        "zeugma_xds_load_reports_total 2",
        "zeugma_xds_load_failed_total 4",
    ] {
        assert!(metrics.lines().any(|one| one == line), "{line}: {metrics}");
    }

    // What is no more is not shown; the documents of a server may be of another gateway.
    served
        .write(&MESH.replace("name: east-gw", "name: other-gw"))
        .await;
    assert_eq!(served.server.nodes()["load"], serde_json::json!([]));

    // Who may not be that node reports nothing.
    let stranger = Served::new(
        verified("spiffe://east.example/ns/shop/sa/cart"),
        Admission::default(),
        ServerLimits::default(),
    );
    let stranger = stranger.await;
    let client = LoadReportingServiceClient::connect(format!("http://{}", stranger.address));
    let (report, reports) = mpsc::channel(4);
    let first = LoadStatsRequest {
        node: Some(node("east-gw")),
        cluster_stats: vec![stats],
    };
    report.send(first).await.unwrap();
    let answers = client
        .await
        .unwrap()
        .stream_load_stats(Asked(reports))
        .await;
    let ended = timeout(COMES, answers.unwrap().into_inner().message()).await;
    assert_eq!(ended.unwrap().unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(stranger.server.nodes()["load"], serde_json::json!([]));
}

#[tokio::test]
async fn a_load_report_of_too_many_parts_ends_its_stream() {
    let served = Served::local().await;
    let client = LoadReportingServiceClient::connect(format!("http://{}", served.address));
    let mut client = client.await.unwrap();
    let (report, reports) = mpsc::channel(1);
    let stats = ClusterStats {
        upstream_locality_stats: vec![UpstreamLocalityStats::default(); 250_000],
        ..Default::default()
    };
    let first = LoadStatsRequest {
        node: Some(node("east-gw")),
        cluster_stats: vec![stats],
    };
    report.send(first).await.unwrap();
    let answers = client.stream_load_stats(Asked(reports)).await;
    let mut answers = answers.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    let ended = timeout(COMES, answers.message()).await.unwrap();
    let ended = ended.unwrap_err();
    assert_eq!(ended.code(), Code::ResourceExhausted);
    assert_eq!(ended.message(), "a report of over 250000 parts");
    assert_eq!(served.server.nodes()["load"], serde_json::json!([]));
}

/// Fails whenever something is compiled for the second time, and always for one place.
fn fails(
    plane: &Plane,
    view: &View,
    store: &mut Store,
    before: Option<&Catalog>,
) -> Option<Catalog> {
    assert!(before.is_none() && view.locality != "nowhere", "provoked");
    plane.catalog(view, store, before)
}

// ZG0510.
#[tokio::test]
async fn who_waits_for_what_cannot_be_compiled_is_told_so_and_all_others_are_served() {
    let admission = Admission {
        local: true,
        ..Default::default()
    };
    let limits = ServerLimits::default();
    let mut served = Served::making(Caller::Local, admission, limits, fails).await;
    let mut client = served.delta(node("east-gw")).await;
    let first = client.next().await.unwrap();
    let nowhere = Node {
        locality: Some(Locality {
            region: "nowhere".to_owned(),
            ..Default::default()
        }),
        ..node("east-gw")
    };
    let mut other = served.delta(nowhere).await;
    assert_eq!(other.next().await.unwrap_err().code(), Code::Unavailable);

    served.write(&other_clusters(MESH)).await;
    client.acknowledge(&first).await;
    let mut late = served.delta(node("east-gw")).await;
    let told = late.next().await.unwrap();
    assert_eq!(told.system_version_info, first.system_version_info);
}
