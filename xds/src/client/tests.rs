//! A client over bytes, against a server of tonic's that says what a test has it say.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::codegen::tokio_stream::{Stream as TokioStream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use zeugma_core::identity::TrustDomain;
use zeugma_core::locality::Locality;

use super::*;
use crate::pb::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use crate::pb::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use crate::pb::{Any, cluster, listener};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

type Deltas = (
    Streaming<DeltaDiscoveryRequest>,
    mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
);

/// Hands each stream of deltas to the test.
struct Served(mpsc::Sender<Deltas>);

struct Said<T>(mpsc::Receiver<T>);

impl<T> TokioStream for Said<T> {
    type Item = T;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T>> {
        self.0.poll_recv(cx)
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Served {
    type StreamAggregatedResourcesStream = Said<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = Said<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unavailable("not here"))
    }

    async fn delta_aggregated_resources(
        &self,
        requests: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (say, said) = mpsc::channel(16);
        let stream = (requests.into_inner(), say);
        self.0
            .send(stream)
            .await
            .map_err(|_| Status::unavailable("over"))?;
        Ok(Response::new(Said(said)))
    }
}

/// A client, its servers, and what it had published.
struct World {
    client: Client,
    streams: mpsc::Receiver<Deltas>,
    tell: mpsc::Sender<Deltas>,
    serving: JoinSet<()>,
    published: Vec<Snapshot>,
    told: Vec<Told>,
}

fn options(message_bytes_max: usize) -> ClientOptions {
    ClientOptions {
        node: Node {
            name: "east-gw".into(),
            cluster: "east".into(),
            locality: Locality::parse("eu/eu-1").unwrap(),
            trust_domain: TrustDomain::parse("east.example").unwrap(),
        },
        servers: vec!["https://xds.example:15012".to_owned()],
        on_empty: OnEmpty::Keep,
        message_bytes_max,
    }
}

fn no_draw() -> f64 {
    0.0
}

impl World {
    fn new(message_bytes_max: usize) -> Self {
        let (tell, streams) = mpsc::channel(4);
        Self {
            client: Client::new(options(message_bytes_max), None).0,
            streams,
            tell,
            serving: JoinSet::new(),
            published: Vec::new(),
            told: Vec::new(),
        }
    }

    fn serve(&mut self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let service = AggregatedDiscoveryServiceServer::new(Served(self.tell.clone()));
        self.serving.spawn(async move {
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let service = TowerToHyperService::new(service);
            // A client that goes ends it.
            drop(http.serve_connection(TokioIo::new(theirs), service).await);
        });
        ours
    }

    /// Drives the client until `until` is so.
    async fn drive(&mut self, until: impl Fn(&Self) -> bool) {
        let driving = async {
            while !until(self) {
                match self.client.next(no_draw).await {
                    Asked::Dial(_) => {
                        let io = self.serve();
                        self.client.dialled(Ok(io), no_draw);
                    }
                    Asked::Publish(offer) => {
                        self.published.push(offer.snapshot);
                        assert!(self.client.published(&[], no_draw).is_none());
                    }
                    Asked::Tell(told) => self.told.push(told),
                    Asked::Read(seen) => panic!("nobody reads: {seen:?}"),
                }
            }
        };
        timeout(PATIENCE, driving).await.unwrap();
    }

    /// What `of` brings, while the client is driven.
    async fn meanwhile<T>(&mut self, of: impl Future<Output = T>) -> T {
        tokio::select! {
            () = self.drive(|_| false) => unreachable!(),
            done = timeout(PATIENCE, of) => done.unwrap(),
        }
    }

    async fn stream(&mut self) -> Deltas {
        let (_none, streams) = mpsc::channel(1);
        let mut streams = std::mem::replace(&mut self.streams, streams);
        let stream = self.meanwhile(streams.recv()).await.unwrap();
        self.streams = streams;
        stream
    }
}

/// The versions that a first request says are there, by name.
fn versions_said(request: DeltaDiscoveryRequest) -> Vec<(String, String)> {
    let said: BTreeMap<_, _> = request.initial_resource_versions.into_iter().collect();
    said.into_iter().collect()
}

fn response(kind: Kind, nonce: &str, resources: &[(&str, &str, Any)]) -> DeltaDiscoveryResponse {
    let resources = resources.iter().map(|(name, version, any)| Resource {
        name: (*name).to_owned(),
        version: (*version).to_owned(),
        resource: Some(any.clone()),
        ..Default::default()
    });
    DeltaDiscoveryResponse {
        type_url: kind.type_url(),
        nonce: nonce.to_owned(),
        resources: resources.collect(),
        ..Default::default()
    }
}

/// A listener of ours that leads nowhere.
fn bare(name: &str, port: u16) -> Any {
    let meta = crate::meta::ListenerMeta {
        mesh: true,
        only: None,
        sources: Vec::new(),
        handshakes_per_source: None,
        proxies: Vec::new(),
    };
    crate::pb::pack(&listener::Listener {
        name: name.to_owned(),
        address: Some(crate::pb::address("127.0.0.1", port)),
        metadata: Some(crate::pb::metadata(&meta)),
        ..Default::default()
    })
}

#[tokio::test]
async fn what_a_server_says_is_published_and_acknowledged_after_that() {
    let mut world = World::new(1 << 20);
    let (mut requests, say) = world.stream().await;
    let first = world.meanwhile(requests.next()).await.unwrap().unwrap();
    let node = first.node.unwrap();
    assert_eq!((&*node.id, &*node.cluster), ("east-gw", "east"));
    assert_eq!(node.locality.unwrap().zone, "eu-1");
    assert_eq!(first.type_url, Kind::Cluster.type_url());
    let second = world.meanwhile(requests.next()).await.unwrap().unwrap();
    assert_eq!(second.type_url, Kind::Listener.type_url());
    let stranger = crate::pb::pack(&cluster::Cluster {
        name: "stranger".to_owned(),
        ..Default::default()
    });
    say.send(Ok(response(
        Kind::Cluster,
        "n1",
        &[("stranger", "1", stranger)],
    )))
    .await
    .unwrap();
    let nack = world.meanwhile(requests.next()).await.unwrap().unwrap();
    assert_eq!(nack.response_nonce, "n1");
    let error = nack.error_detail.unwrap();
    assert_eq!(
        error.message,
        "cluster `stranger`: load_assignment: it has no endpoints"
    );
    let two = [
        ("mesh", "7", bare("mesh", 1)),
        ("more", "7", bare("more", 2)),
    ];
    say.send(Ok(response(Kind::Listener, "n2", &two)))
        .await
        .unwrap();
    world
        .drive(|world| world.published.len() == 1 && world.client.is_complete())
        .await;
    let ack = world.meanwhile(requests.next()).await.unwrap().unwrap();
    assert_eq!((&*ack.response_nonce, ack.error_detail), ("n2", None));
    assert_eq!(world.published[0].listeners.len(), 2);
    assert!(world.told.contains(&Told::Connected(0)), "{:?}", world.told);
    // Where nothing is kept nothing waits for it.
    world.client.keep_nothing();
    let holdings = world.client.holdings.as_mut().unwrap();
    assert!(holdings.take_unkept().is_empty());
    // P43: what is kept is read again, serves, and is what the next server is told of.
    let Some(Keep::Whole(kept)) = world.client.keep(Some(1_700_000_000)) else {
        panic!("nothing was kept before");
    };
    let bytes = kept.to_bytes();
    let read = Kept::from_bytes(&bytes).unwrap();
    assert_eq!(read.at(), 1_700_000_000);
    let (client, offer) = Client::new(options(1 << 20), Some(&read));
    assert_eq!(offer.unwrap().snapshot, world.published[0]);
    world.client = client;
    let (mut requests, _say) = world.stream().await;
    world.meanwhile(requests.next()).await.unwrap().unwrap();
    let second = world.meanwhile(requests.next()).await.unwrap().unwrap();
    let has = versions_said(second);
    assert_eq!(
        has,
        [("mesh", "7"), ("more", "7")].map(|(a, b)| (a.to_owned(), b.to_owned()))
    );
}

#[test]
fn one_that_was_kept_and_is_refused_costs_no_other() {
    let of = |body: Any| crate::session::client::Resource {
        version: Some("1".into()),
        body: Arc::new(body.into()),
        references: Arc::default(),
    };
    let mut unread = bare("unread", 2);
    unread.value.extend([0xff, 0xff]);
    let refused = crate::pb::pack(&listener::Listener {
        name: "refused".to_owned(),
        ..Default::default()
    });
    let all = [
        ("good", of(bare("good", 1))),
        ("refused", of(refused)),
        ("unread", of(unread)),
    ];
    let keys = all.map(|(name, one)| ((Kind::Listener, name.into()), one));
    let kept = Kept::of(keys.iter().map(|(key, one)| (key, one)), given(1));
    let (client, resumed) = Client::new(options(1 << 20), Some(&kept));
    let resumed = resumed.unwrap();
    let names: Vec<&str> = (resumed.snapshot.listeners.iter())
        .map(|one| &*one.name)
        .collect();
    assert_eq!(names, ["good"]);
    let refused: Vec<&str> = resumed.refused.iter().map(|(_, name, _)| &**name).collect();
    assert_eq!(refused, ["refused", "unread"]);
    // What does not serve is not kept again, and no server is told that it is there.
    let held: Vec<_> = client
        .session
        .at_hand()
        .unwrap()
        .held()
        .map(|(_, name, _)| name)
        .collect();
    assert_eq!(held.len(), 1, "{held:?}");
    // Where nothing is left there is nothing to begin with.
    let kept = Kept::of(keys[1..].iter().map(|(key, one)| (key, one)), given(1));
    assert!(Client::new(options(1 << 20), Some(&kept)).1.is_none());
}

#[test]
fn what_is_kept_is_whole_or_nothing() {
    let resource = crate::session::client::Resource {
        version: Some("1".into()),
        body: Arc::new(bare("mesh", 1).into()),
        references: Arc::default(),
    };
    let key = (Kind::Listener, "mesh".into());
    let bytes = Kept::of([(&key, &resource)].into_iter(), given(1)).to_bytes();
    assert!(Kept::from_bytes(&bytes).is_ok());
    for cut in 0..bytes.len() {
        assert!(Kept::from_bytes(&bytes[..cut]).is_err(), "{cut}");
    }
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(Kept::from_bytes(&changed).is_err(), "{at}");
    }
}

#[test]
fn what_is_added_to_what_is_kept_counts_whole_or_not_at_all() {
    let of = |name: &str, version: &str| crate::session::client::Resource {
        version: Some(version.into()),
        body: Arc::new(bare(name, 1).into()),
        references: Arc::default(),
    };
    let [mesh, more] = ["mesh", "more"].map(|name| (Kind::Listener, Arc::from(name)));
    let (first, second, other) = (of("mesh", "1"), of("mesh", "2"), of("more", "1"));
    let mut written = Written::default();
    let whole = [(&mesh, &first), (&more, &other)];
    let keep = |written: &mut Written, changed: &[&Key], good: Option<&_>, at| {
        let changed = changed.iter().copied().cloned().collect();
        // A closure's lifetime is not tied to its result's.
        let good: Option<&crate::session::client::Resource> = good;
        match Keep::of(written, changed, |_| good, whole.into_iter(), given(at)) {
            Keep::Whole(kept) => (true, kept.to_bytes()),
            Keep::More(more) => (false, more.to_bytes()),
        }
    };
    // Nothing is there that something could be added to.
    let (is_whole, base) = keep(&mut written, &[&mesh], Some(&first), 1);
    assert!(is_whole);
    let (is_whole, put) = keep(&mut written, &[&mesh], Some(&second), 2);
    assert!(!is_whole);
    let (is_whole, removed) = keep(&mut written, &[&more], None, 3);
    assert!(!is_whole);
    let all = [&*base, &put, &removed].concat();
    let read = |bytes: &[u8]| {
        let kept = Kept::from_bytes(bytes).unwrap();
        let names = kept.resources();
        let names: Vec<_> = names
            .map(|((_, name), one)| format!("{name} {}", one.version.unwrap_or_default()))
            .collect();
        (kept.at(), names)
    };
    let texts = |texts: &[&str]| {
        texts
            .iter()
            .map(|&text| text.to_owned())
            .collect::<Vec<_>>()
    };
    let expected = [
        (1, texts(&["mesh 1", "more 1"])),
        (2, texts(&["mesh 2", "more 1"])),
        (3, texts(&["mesh 2"])),
    ];
    for cut in base.len()..=all.len() {
        let parts = [base.len() + put.len(), all.len()];
        let whole = parts.iter().filter(|end| cut >= **end).count();
        assert_eq!(read(&all[..cut]), expected[whole], "{cut}");
    }
    // What was added last may not have reached the disk; what was before it has.
    let (second, third) = (base.len() + put.len(), all.len());
    for at in base.len()..third {
        let mut changed = all.clone();
        changed[at] ^= 1;
        // Where a part ends nobody knows then.
        let is_length = [base.len(), second]
            .map(|at| at..at + 8)
            .iter()
            .any(|of| of.contains(&at));
        match Kept::from_bytes(&changed) {
            Ok(kept) => assert!(is_length || at >= second && kept.at() == 2, "{at}"),
            Err(_) => assert!(is_length || at < second, "{at}"),
        }
        let mut unwritten = all.clone();
        unwritten[second..].fill(0);
        assert_eq!(read(&unwritten[..at.max(second)]), expected[1], "{at}");
    }
    // It does not grow for ever.
    let far = (0..10_000).position(|_| keep(&mut written, &[&mesh], Some(&first), 4).0);
    assert!(far.is_some_and(|far| far > 100), "{far:?}");
}

/// What broke: several parts were written at once, and one that is not the last is not told from damage.
#[test]
fn what_is_added_at_once_is_one_part() {
    let of = |version: &str| crate::session::client::Resource {
        version: Some(version.into()),
        body: Arc::new(bare("mesh", 1).into()),
        references: Arc::default(),
    };
    let key: Key = (Kind::Listener, "mesh".into());
    let versions = ["1", "2", "3"].map(of);
    let mut written = Written::default();
    let mut keep = |nth: usize| {
        let good = versions.get(nth);
        let all = versions.get(nth).map(|one| (&key, one)).into_iter();
        let changed = [key.clone()].into();
        Keep::of(&mut written, changed, |_| good, all, given(nth as u64))
    };
    let (Keep::Whole(base), Keep::More(mut more), Keep::More(later)) = (keep(0), keep(1), keep(2))
    else {
        panic!("each is as large");
    };
    more.take(later);
    let (base, more) = (base.to_bytes(), more.to_bytes());
    let all = [&*base, &more].concat();
    let read = |bytes: &[u8]| {
        let kept = Kept::from_bytes(bytes).unwrap();
        let versions: Vec<_> = kept.resources().map(|(_, one)| one.version).collect();
        (kept.at(), versions)
    };
    assert_eq!(read(&all), (2, vec![Some("3".into())]));
    // Whatever of it has not reached the disk.
    for at in base.len()..all.len() {
        let mut torn = all.clone();
        torn[at..].fill(0);
        let is_whole = torn == all;
        let kept = (
            if is_whole { 2 } else { 0 },
            vec![Some(if is_whole { "3" } else { "1" }.into())],
        );
        assert_eq!(read(&torn), kept, "{at}");
    }
}

#[tokio::test]
async fn a_large_response_is_published_and_acknowledged_like_any_other() {
    let mut world = World::new(8 << 20);
    let (mut requests, say) = world.stream().await;
    let names: Vec<String> = (1..=600).map(|port| format!("l{port}")).collect();
    let all: Vec<(&str, &str, Any)> = (names.iter().zip(1..))
        .map(|(name, port)| (&**name, "1", bare(name, port)))
        .collect();
    say.send(Ok(response(Kind::Listener, "n1", &all)))
        .await
        .unwrap();
    // What comes behind it is taken after it.
    let less = [("l1", "2", bare("l1", 601))];
    say.send(Ok(response(Kind::Listener, "n2", &less)))
        .await
        .unwrap();
    let mut answered = Vec::new();
    while answered.len() < 2 {
        let request = world.meanwhile(requests.next()).await.unwrap().unwrap();
        assert_eq!(request.error_detail, None);
        answered.extend(Some(request.response_nonce).filter(|nonce| !nonce.is_empty()));
    }
    assert_eq!(answered, ["n1", "n2"]);
    let last = world.published.last().unwrap();
    assert_eq!(last.listeners.len(), 600);
}

/// What broke: who drives the client was told first that its server was lost.
#[tokio::test]
async fn what_ends_while_much_is_taken_is_told_after_what_came_before() {
    let mut world = World::new(8 << 20);
    let (_requests, _say) = world.stream().await;
    let all: Vec<_> = (1..=600).map(|port| (format!("l{port}"), port)).collect();
    let all: Vec<_> = (all.iter())
        .map(|(name, port)| (&**name, "1", bare(name, *port)))
        .collect();
    let much = Event::Delta(response(Kind::Listener, "n1", &all));
    world.client.handle(much, no_draw);
    assert!(world.client.session.at_hand().is_none());
    world.client.cut("it is not believed".to_owned(), no_draw);
    // Nor does it overtake what is to be told next.
    let is_lost = |told: &Told| matches!(told, Told::Lost(..));
    world.drive(|world| world.told.iter().any(is_lost)).await;
    let why = "it is not believed".to_owned();
    assert_eq!(world.told, [Told::Connected(0), Told::Lost(0, why)]);
    let (_requests, say) = world.stream().await;
    let strange = DeltaDiscoveryResponse {
        type_url: "type.googleapis.com/no.Such".to_owned(),
        nonce: "n".to_owned(),
        ..Default::default()
    };
    say.send(Ok(strange)).await.unwrap();
    world.drive(|world| !world.client.turns.is_empty()).await;
    world.client.cut("again".to_owned(), no_draw);
    let again = Told::Lost(0, "again".to_owned());
    world.drive(|world| world.told.contains(&again)).await;
    let nth = |one: &Told| world.told.iter().rposition(|told| told == one);
    assert!(nth(&Told::Connected(0)) < nth(&again), "{:?}", world.told);
}

/// What broke: what the session had handed on was nobody's then, and nothing else was ever handed on.
#[tokio::test]
async fn after_a_failure_of_the_session_the_next_stream_brings_what_was_lost() {
    let mut world = World::new(1 << 20);
    let (_requests, _say) = world.stream().await;
    let mesh = [("mesh", "1", bare("mesh", 1))];
    let came = Event::Delta(response(Kind::Listener, "n1", &mesh));
    let now = world.client.now();
    world.client.session.fail_at((came, now, 0.0));
    let (mut requests, say) = world.stream().await;
    let lost = Told::Lost(0, DEFECT.to_owned());
    assert!(world.told.contains(&lost), "{:?}", world.told);
    world.meanwhile(requests.next()).await.unwrap().unwrap();
    let second = world.meanwhile(requests.next()).await.unwrap().unwrap();
    assert_eq!(versions_said(second), []);
    say.send(Ok(response(Kind::Cluster, "n2", &[])))
        .await
        .unwrap();
    say.send(Ok(response(Kind::Listener, "n3", &mesh)))
        .await
        .unwrap();
    world
        .drive(|world| world.published.len() == 1 && world.client.is_confirmed())
        .await;
    assert_eq!(world.published[0].listeners.len(), 1);
}

#[tokio::test]
async fn p51_a_message_over_the_limit_ends_the_stream_and_one_below_it_does_not() {
    let mut world = World::new(64 << 10);
    let (_requests, say) = world.stream().await;
    let long = |bytes: usize| {
        let mut response = response(Kind::Cluster, "n", &[]);
        response.system_version_info = "x".repeat(bytes);
        Ok(response)
    };
    say.send(long(60 << 10)).await.unwrap();
    world
        .drive(|world| world.told.contains(&Told::Accepted(Kind::Cluster)))
        .await;
    say.send(long(65 << 10)).await.unwrap();
    world
        .drive(|world| world.told.iter().any(|told| matches!(told, Told::Lost(..))))
        .await;
    let Some(Told::Lost(0, why)) = world
        .told
        .iter()
        .find(|told| matches!(told, Told::Lost(..)))
    else {
        unreachable!()
    };
    assert!(why.contains("too large"), "{why}");
    // And it is asked again.
    world.stream().await;
}

#[tokio::test]
async fn a_response_of_more_parts_than_are_kept_is_not_decoded_and_ends_the_stream() {
    let mut world = World::new(8 << 20);
    let (_requests, say) = world.stream().await;
    // Two bytes each.
    let mut many = response(Kind::Cluster, "n", &[]);
    many.resources = vec![Resource::default(); 400_001];
    say.send(Ok(many)).await.unwrap();
    world
        .drive(|world| world.told.iter().any(|told| matches!(told, Told::Lost(..))))
        .await;
    let is_why =
        |told: &Told| matches!(told, Told::Lost(0, why) if why.contains("over 400000 parts"));
    assert!(world.told.iter().any(is_why), "{:?}", world.told);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_connected_and_says_nothing_is_given_up() {
    let mut client = Client::new(options(1 << 20), None).0;
    let Asked::Dial(0) = client.next(no_draw).await else {
        panic!("nobody is dialled");
    };
    let (ours, _theirs) = tokio::io::duplex(1 << 16);
    client.dialled(Ok(ours), no_draw);
    let began = Instant::now();
    // HTTP/2 lets a client speak first: what is missed is the answer to a ping (P40: within 40 s).
    let Asked::Tell(Told::Lost(0, why)) = client.next(no_draw).await else {
        panic!("it is not given up");
    };
    assert!(
        began.elapsed() < Duration::from_secs(40),
        "{why}: {:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn rubbish_is_given_up_and_asked_again_after_a_pause() {
    use tokio::io::AsyncWriteExt as _;

    let mut client = Client::new(options(1 << 20), None).0;
    let began = Instant::now();
    for _ in 0..5 {
        let Asked::Dial(0) = client.next(|| 1.0).await else {
            panic!("nobody is dialled");
        };
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        theirs
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        client.dialled(Ok(ours), || 1.0);
        let Asked::Tell(Told::Lost(0, _)) = client.next(|| 1.0).await else {
            panic!("it is not given up");
        };
    }
    // P39, by hand: 0.5, 1, 2 and 4 s.
    assert_eq!(began.elapsed().as_millis() / 100, 75);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_talks_without_a_pause_is_listened_to_at_a_pace() {
    let mut world = World::new(1 << 20);
    let (_requests, say) = world.stream().await;
    let began = Instant::now();
    let talking = tokio::spawn(async move {
        // Of a type that nobody asked for, so that nothing has to be answered.
        for _ in 0..700 {
            let mut strange = response(Kind::Cluster, "n", &[]);
            strange.type_url = "type.googleapis.com/no.Such".to_owned();
            say.send(Ok(strange)).await.unwrap();
        }
        say
    });
    let is_strange = |told: &&Told| matches!(told, Told::Strange(_));
    world
        .drive(|world| world.told.iter().filter(is_strange).count() == 700)
        .await;
    // 500 at once, and each of the others 10 ms after the one before.
    assert_eq!(began.elapsed().as_millis() / 100, 20);
    drop(talking.await.unwrap());
}

fn given(at: u64) -> Given {
    Given {
        at,
        by: "http://plane.example".into(),
        is_of_several: false,
    }
}

#[test]
fn what_is_kept_says_who_gave_it_and_what_a_version_before_kept_does_not() {
    let resource = crate::session::client::Resource {
        version: Some("1".into()),
        body: Arc::new(bare("mesh", 1).into()),
        references: Arc::default(),
    };
    let key: Key = (Kind::Listener, "mesh".into());
    let bytes = Kept::of([(&key, &resource)].into_iter(), given(7)).to_bytes();
    let kept = Kept::from_bytes(&bytes).unwrap();
    assert_eq!((kept.at(), kept.by()), (7, Some("http://plane.example")));
    // "zeugma resources 2": when, how many, a listener, its name, that it is there, its version, its body.
    let body = resource.body.to_any().value;
    let mut mesh = vec![2, 0, 4];
    mesh.extend(b"mesh");
    mesh.extend([1, 0, 1, b'1', u8::try_from(body.len()).unwrap()]);
    mesh.extend(&body);
    let file = |part: &[u8]| {
        let mut file = b"zeugma resources 2\n".to_vec();
        file.extend((part.len() as u64).to_le_bytes());
        file.extend(crate::sum::Fnv::of(part).to_le_bytes());
        file.extend(part);
        file
    };
    let kept = Kept::from_bytes(&file(&[&[7, 1], &*mesh].concat())).unwrap();
    assert_eq!((kept.at(), kept.by()), (7, None));
    let all: Vec<_> = kept.resources().collect();
    assert!(matches!(&all[..], [(of, one)] if *of == key && *one == resource));
    // A version before reads who gave it as a cluster that is gone.
    let by = b"\0by http://plane.example";
    let mut gone = vec![0, 0, u8::try_from(by.len()).unwrap()];
    gone.extend(by);
    gone.push(0);
    assert_eq!(bytes, file(&[&[7, 2], &*gone, &mesh].concat()));
    // Another than the first of a part is one.
    let swapped = Kept::from_bytes(&file(&[&[7, 2], &*mesh, &gone].concat())).unwrap();
    assert_eq!(swapped.by(), None);
}

/// What broke: a server that answered was taken for who gave what serves, though all that it said was refused.
#[tokio::test]
async fn what_another_control_plane_gave_is_its_own_until_nothing_of_it_serves() {
    let two = ["mesh", "more"].map(|name| {
        let resource = crate::session::client::Resource {
            version: Some("1".into()),
            body: Arc::new(bare(name, 1 + u16::from(name == "more")).into()),
            references: Arc::default(),
        };
        ((Kind::Listener, Arc::from(name)), resource)
    });
    let kept = Kept::of(two.iter().map(|(key, one)| (key, one)), given(7));
    let mut world = World::new(1 << 20);
    let whose = |client: &mut Client, now| {
        client.keep_anew();
        let Some(Keep::Whole(kept)) = client.keep(now) else {
            panic!("all of it is to be kept");
        };
        let read = Kept::from_bytes(&kept.to_bytes()).unwrap();
        let versions = read.resources().map(|(_, one)| one.version);
        let has_versions = versions.flatten().any(|version| !version.is_empty());
        // The former counts by itself: versions of another are nothing to it.
        let by = read.by().unwrap_or_default().to_owned();
        assert_eq!(has_versions, by != "http://plane.example");
        (read.at(), by)
    };
    let former = (7, "http://plane.example".to_owned());
    let (client, resumed) = Client::new(options(1 << 20), Some(&kept));
    assert_eq!(resumed.unwrap().snapshot.listeners.len(), 2);
    world.client = client;
    assert!(world.client.serves_of_another());
    let (mut requests, say) = world.stream().await;
    world.meanwhile(requests.next()).await.unwrap().unwrap();
    let second = world.meanwhile(requests.next()).await.unwrap().unwrap();
    let has = versions_said(second);
    assert_eq!(
        has,
        ["mesh", "more"].map(|name| (name.to_owned(), String::new()))
    );
    say.send(Ok(response(Kind::Cluster, "n1", &[])))
        .await
        .unwrap();
    world.meanwhile(requests.next()).await.unwrap().unwrap();
    let mut answer = async |world: &mut World, nonce: &str, all: &[(&str, &str, Any)]| {
        let all = response(Kind::Listener, nonce, all);
        say.send(Ok(all)).await.unwrap();
        let answer = world.meanwhile(requests.next()).await.unwrap().unwrap();
        assert_eq!(answer.response_nonce, nonce);
        answer.error_detail.is_some()
    };
    // All that it says is refused.
    let mut unread = bare("mesh", 1);
    unread.value.extend([0xff, 0xff]);
    let bad = [("mesh", "1", unread.clone()), ("more", "1", unread)];
    assert!(answer(&mut world, "n2", &bad).await);
    assert!(world.client.is_confirmed() && world.client.serves_of_another());
    assert_eq!(whose(&mut world.client, Some(9)), former);
    // One of two is its own, and changed: that serves, and is kept beside the other.
    assert!(!answer(&mut world, "n3", &[("mesh", "1", bare("mesh", 3))]).await);
    assert_eq!(world.published.len(), 1);
    assert!(world.client.serves_of_another());
    assert_eq!(whose(&mut world.client, Some(10)), former);
    // So is the other, and nothing new: nothing is published.
    assert!(!answer(&mut world, "n4", &[("more", "1", bare("more", 2))]).await);
    assert_eq!(world.published.len(), 1);
    assert!(!world.client.serves_of_another());
    assert_eq!(whose(&mut world.client, None), former);
    let now = (11, "https://xds.example:15012".to_owned());
    assert_eq!(whose(&mut world.client, Some(11)), now);
    // What is lost on disk is kept again as what it was.
    assert_eq!(whose(&mut world.client, None), now);
}
