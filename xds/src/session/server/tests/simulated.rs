//! Sessions against an obvious client, over streams that are slow, crossed, lost and begun anew.

use std::collections::VecDeque;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryResponse, DiscoveryResponse, Resource as Wrapped,
};
use proptest::prelude::*;
use prost::Message as _;

use super::*;

const LIMITS_OF_NONE: Limits = Limits {
    names: usize::MAX,
    other_types: 4,
    name_bytes: 64,
    stranger_bytes: usize::MAX,
};

/// A resource that a client refuses.
const BAD: &str = "bad";

/// What the world is: clusters, listeners with the routes they name, routes with the clusters they lead
/// to.
#[derive(Debug, Clone, Default)]
struct Truth {
    clusters: BTreeMap<String, (bool, u32)>,
    endpoints: BTreeMap<String, u32>,
    listeners: BTreeMap<String, (u32, BTreeSet<String>)>,
    routes: BTreeMap<String, (u32, BTreeSet<String>)>,
}

#[derive(Debug, Clone)]
enum Step {
    /// Adds a cluster or changes it; with endpoints of their own or not.
    Cluster(u8, bool),
    Endpoints(u8),
    /// Has a route lead to these clusters.
    Route(u8, Vec<u8>),
    Listener(u8, Vec<u8>),
    NoCluster(u8),
    NoRoute(u8),
    NoListener(u8),
    Publish,
    ToClient,
    ToServer,
    Lost,
    /// The client names this endpoint, or names it no more.
    Name(u8),
    Unname(u8),
}

impl Truth {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Cluster(name, apart) => {
                let of = self
                    .clusters
                    .entry(format!("c{name}"))
                    .or_insert((*apart, 0));
                of.1 += 1;
                // How a cluster gets its endpoints stays.
                if of.0 {
                    self.endpoints.entry(format!("c{name}")).or_default();
                }
            }
            Step::Endpoints(name) => {
                if let Some(of) = self.endpoints.get_mut(&format!("c{name}")) {
                    *of += 1;
                }
            }
            Step::Route(name, to) => {
                let to: BTreeSet<String> = to.iter().map(|to| format!("c{to}")).collect();
                if to.iter().all(|to| self.clusters.contains_key(to)) {
                    let of = self.routes.entry(format!("r{name}")).or_default();
                    *of = (of.0 + 1, to);
                }
            }
            Step::Listener(name, to) => {
                let to: BTreeSet<String> = to.iter().map(|to| format!("r{to}")).collect();
                if to.iter().all(|to| self.routes.contains_key(to)) {
                    let of = self.listeners.entry(format!("l{name}")).or_default();
                    *of = (of.0 + 1, to);
                }
            }
            Step::NoCluster(name) => {
                let name = format!("c{name}");
                if !self.routes.values().any(|(_, to)| to.contains(&name)) {
                    self.clusters.remove(&name);
                    self.endpoints.remove(&name);
                }
            }
            Step::NoRoute(name) => {
                let name = format!("r{name}");
                if !self.listeners.values().any(|(_, to)| to.contains(&name)) {
                    self.routes.remove(&name);
                }
            }
            Step::NoListener(name) => drop(self.listeners.remove(&format!("l{name}"))),
            Step::Publish
            | Step::ToClient
            | Step::ToServer
            | Step::Lost
            | Step::Name(_)
            | Step::Unname(_) => {}
        }
    }

    fn contents(&self) -> Vec<(char, String, String)> {
        let joined = |to: &BTreeSet<String>| to.iter().cloned().collect::<Vec<_>>().join(",");
        // Every seventh content of a cluster is refused.
        let of_cluster = |version: &u32| {
            let mark = if version % 7 == 6 { BAD } else { "good" };
            format!("{version} {mark}")
        };
        let clusters = self.clusters.iter().map(|(name, (apart, version))| {
            (
                if *apart { 'c' } else { 'p' },
                name.clone(),
                of_cluster(version),
            )
        });
        let endpoints =
            (self.endpoints.iter()).map(|(name, version)| ('e', name.clone(), version.to_string()));
        let listeners = (self.listeners.iter())
            .map(|(name, (version, to))| ('l', name.clone(), format!("{version} {}", joined(to))));
        let routes = (self.routes.iter())
            .map(|(name, (version, to))| ('r', name.clone(), format!("{version} {}", joined(to))));
        clusters
            .chain(endpoints)
            .chain(listeners)
            .chain(routes)
            .collect()
    }

    fn catalog(&self, world: &mut World) -> Arc<Catalog> {
        let contents = self.contents();
        world.catalog(
            contents
                .iter()
                .map(|(kind, name, content)| (*kind, &**name, &**content)),
        )
    }
}

/// A client that believes what it is told, one message after the other.
struct Client {
    protocol: Protocol,
    /// By type and name: version and content.
    has: BTreeMap<(Kind, String), (String, String)>,
    names: BTreeMap<Kind, BTreeSet<String>>,
    extra: BTreeSet<String>,
    warming: BTreeSet<String>,
    version: BTreeMap<Kind, String>,
    nonce: BTreeMap<Kind, String>,
    to_server: VecDeque<Request<'static>>,
    /// No stream was lost.
    is_first_stream: bool,
}

/// What a response says, read from its bytes.
#[derive(Debug, Clone)]
struct Read {
    kind: Kind,
    version: String,
    nonce: String,
    resources: Vec<(String, String, String)>,
    removed: Vec<String>,
}

fn read(response: &Response, protocol: Protocol) -> Read {
    let kind = Kind::of_url(&response.type_url).unwrap();
    let content = |any: &crate::pb::Any| {
        assert_eq!(any.type_url, kind.type_url());
        String::from_utf8(any.value.clone()).unwrap()
    };
    let resources = response.resources.iter().map(|one| match protocol {
        Delta => {
            let read = DeltaDiscoveryResponse::decode(one.delta()).unwrap();
            let [
                Wrapped {
                    name,
                    version,
                    resource,
                    ..
                },
            ] = &read.resources[..]
            else {
                panic!("{read:?}");
            };
            (
                name.clone(),
                version.clone(),
                content(resource.as_ref().unwrap()),
            )
        }
        Sotw => {
            let read = DiscoveryResponse::decode(one.whole()).unwrap();
            let [any] = &read.resources[..] else {
                panic!("{read:?}");
            };
            (
                one.name().to_string(),
                response.version.to_string(),
                content(any),
            )
        }
    });
    Read {
        kind,
        version: response.version.to_string(),
        nonce: response.nonce.to_string(),
        resources: resources.collect(),
        removed: response.removed.iter().map(ToString::to_string).collect(),
    }
}

impl Client {
    fn new(protocol: Protocol) -> Self {
        let mut new = Self {
            protocol,
            has: BTreeMap::new(),
            names: BTreeMap::new(),
            extra: BTreeSet::new(),
            warming: BTreeSet::new(),
            version: BTreeMap::new(),
            nonce: BTreeMap::new(),
            to_server: VecDeque::new(),
            is_first_stream: true,
        };
        new.begin();
        new
    }

    /// The first requests of a stream, with what it has from another (P1, P2, P3, P24).
    fn begin(&mut self) {
        self.nonce.clear();
        self.to_server.clear();
        for kind in Kind::ALL {
            let names = self.names.entry(kind).or_default().clone();
            if matches!(kind, Endpoints | Route) && names.is_empty() {
                continue;
            }
            self.first(kind);
        }
    }

    fn first(&mut self, kind: Kind) {
        let names: Vec<Cow<'static, str>> = self
            .names
            .entry(kind)
            .or_default()
            .iter()
            .cloned()
            .map(Cow::Owned)
            .collect();
        let known = self.has.iter().filter(|((of, _), _)| *of == kind);
        // What it waits for it does not say that it has.
        let known =
            known.filter(|((of, name), _)| *of != Endpoints || !self.warming.contains(name));
        let asks = match self.protocol {
            Sotw => Asks::Whole {
                version: self.version.get(&kind).cloned().unwrap_or_default(),
                names,
            },
            Delta => Asks::Changes {
                subscribe: names,
                unsubscribe: Vec::new(),
                known: known
                    .map(|((_, name), (version, _))| (name.clone().into(), version.clone().into()))
                    .collect(),
            },
        };
        self.nonce.insert(kind, String::new());
        self.to_server.push_back(Request {
            type_url: kind.type_url(),
            nonce: String::new(),
            error: None,
            asks,
        });
    }

    /// Tells that these are the names now.
    fn want(&mut self, kind: Kind, wanted: BTreeSet<String>) {
        let before = self.names.insert(kind, wanted.clone()).unwrap_or_default();
        if before == wanted {
            return;
        }
        self.has
            .retain(|(of, name), _| *of != kind || wanted.contains(name));
        if !self.nonce.contains_key(&kind) {
            self.first(kind);
            return;
        }
        let asks = match self.protocol {
            Sotw => self.whole(kind),
            Delta => Asks::Changes {
                subscribe: wanted
                    .difference(&before)
                    .cloned()
                    .map(Cow::Owned)
                    .collect(),
                unsubscribe: before
                    .difference(&wanted)
                    .cloned()
                    .map(Cow::Owned)
                    .collect(),
                known: Vec::new(),
            },
        };
        let nonce = match self.protocol {
            Sotw => self.nonce[&kind].clone(),
            Delta => String::new(),
        };
        self.to_server.push_back(Request {
            type_url: kind.type_url(),
            nonce,
            error: None,
            asks,
        });
    }

    fn whole(&self, kind: Kind) -> Asks<'static> {
        Asks::Whole {
            version: self.version.get(&kind).cloned().unwrap_or_default(),
            names: self.names[&kind].iter().cloned().map(Cow::Owned).collect(),
        }
    }

    /// Takes a response as A46 says: what is good of it is taken, and what is bad named.
    fn take(&mut self, read: Read) {
        let kind = read.kind;
        let mut bad = Vec::new();
        let mut seen = BTreeSet::new();
        for (name, version, content) in &read.resources {
            // P17.
            assert!(seen.insert(name.clone()), "twice: {read:?}");
            let is_wanted = matches!(kind, Cluster | Listener) || self.names[&kind].contains(name);
            // P16.
            if !is_wanted {
                continue;
            }
            if content.ends_with(BAD) {
                bad.push(name.clone());
                continue;
            }
            let value = (version.clone(), content.clone());
            let before = self.has.insert((kind, name.clone()), value);
            let is_changed = before.is_none_or(|before| before.1 != *content);
            match kind {
                Cluster if is_changed && self.is_apart(name) => {
                    self.warming.insert(name.clone());
                }
                Endpoints => {
                    self.warming.remove(name);
                }
                Cluster | Listener | Route => {}
            }
        }
        let gone: Vec<String> = match self.protocol {
            Delta => read.removed.clone(),
            Sotw if kind.is_wildcard() => {
                let of = self.has.keys().filter(|(of, _)| *of == kind);
                of.filter(|(_, name)| !seen.contains(name))
                    .map(|(_, name)| name.clone())
                    .collect()
            }
            Sotw => Vec::new(),
        };
        for name in gone {
            self.has.remove(&(kind, name.clone()));
            if kind == Cluster {
                self.warming.remove(&name);
            }
        }
        self.nonce.insert(kind, read.nonce.clone());
        if bad.is_empty() {
            self.version.insert(kind, read.version);
        }
        let asks = match self.protocol {
            Sotw => self.whole(kind),
            Delta => Asks::Changes {
                subscribe: Vec::new(),
                unsubscribe: Vec::new(),
                known: Vec::new(),
            },
        };
        self.to_server.push_back(Request {
            type_url: kind.type_url(),
            nonce: read.nonce,
            error: (!bad.is_empty()).then(|| bad.join(", ")),
            asks,
        });
        self.follow();
    }

    /// Which clusters have endpoints of their own is in their names here: the even ones.
    fn is_apart(&self, name: &str) -> bool {
        is_apart(name)
    }

    /// Asks for what it was led to.
    fn follow(&mut self) {
        let of = |kind| {
            let of = self.has.iter().filter(move |((of, _), _)| *of == kind);
            of.map(|((_, name), (_, content))| (name.clone(), content.clone()))
        };
        let clusters = of(Cluster)
            .map(|(name, _)| name)
            .filter(|name| is_apart(name));
        let endpoints = clusters.chain(self.extra.iter().cloned()).collect();
        let routes = of(Listener)
            .flat_map(|(_, content)| named(&content))
            .collect();
        self.want(Endpoints, endpoints);
        self.want(Route, routes);
    }

    /// P30: every route leads to a cluster that is there. After a reconnect nobody can know what a
    /// state-of-the-world client has: its first response deletes what is gone.
    fn check(&self) {
        if self.protocol == Sotw && !self.is_first_stream {
            return;
        }
        for ((kind, name), (_, content)) in &self.has {
            if *kind != Route {
                continue;
            }
            for to in named(content) {
                let there = self.has.contains_key(&(Cluster, to.clone()));
                assert!(there, "{name} leads to {to}: {:?}", self.has);
            }
        }
    }
}

fn is_apart(name: &str) -> bool {
    name[1..].parse::<u8>().is_ok_and(|nth| nth % 2 == 0)
}

fn named(content: &str) -> Vec<String> {
    let names = content.split_once(' ').map_or("", |(_, names)| names);
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

struct Play {
    truth: Truth,
    world: World,
    published: Arc<Catalog>,
    session: Session,
    client: Client,
    to_client: VecDeque<Read>,
    now: Time,
    sent: usize,
    resources: usize,
}

impl Play {
    fn new(protocol: Protocol) -> Self {
        let mut world = World::new();
        let published = Truth::default().catalog(&mut world);
        Self {
            truth: Truth::default(),
            session: Session::new(protocol, None, LIMITS_OF_NONE, Arc::clone(&published)),
            world,
            published,
            client: Client::new(protocol),
            to_client: VecDeque::new(),
            now: Time::ZERO,
            sent: 0,
            resources: 0,
        }
    }

    fn tell(&mut self, message: Message<'_>) {
        let actions = self.session.handle(message, self.now);
        self.session.check_invariants().unwrap();
        for action in actions {
            match action {
                Action::Send(response) => {
                    self.sent += 1;
                    self.resources += response.resources.len();
                    self.to_client
                        .push_back(read(&response, self.client.protocol));
                }
                Action::End(why) => panic!("{why}"),
                Action::Accepted { .. } | Action::Rejected { .. } | Action::WakeAt(_) => {}
            }
        }
        // P52: on its way, or taken and not acknowledged yet.
        for kind in Kind::ALL {
            let waiting = self
                .to_client
                .iter()
                .filter(|read| read.kind == kind)
                .count();
            assert!(waiting <= 1, "{waiting} of {kind:?}");
        }
    }

    fn step(&mut self, step: &Step) {
        self.truth.step(step);
        match step {
            Step::Publish => {
                self.published = self.truth.catalog(&mut self.world);
                self.tell(Message::Published(Arc::clone(&self.published)));
            }
            Step::ToServer => {
                if let Some(request) = self.client.to_server.pop_front() {
                    self.tell(Message::Asked(request));
                }
            }
            Step::ToClient => {
                if let Some(read) = self.to_client.pop_front() {
                    self.client.take(read);
                    self.client.check();
                }
            }
            Step::Lost => {
                self.to_client.clear();
                let protocol = self.client.protocol;
                let published = Arc::clone(&self.published);
                self.session = Session::new(protocol, None, LIMITS_OF_NONE, published);
                self.client.is_first_stream = false;
                self.client.begin();
            }
            Step::Name(nth) => {
                self.client.extra.insert(format!("c{}", nth * 2));
                self.client.follow();
            }
            Step::Unname(nth) => {
                self.client.extra.remove(&format!("c{}", nth * 2));
                self.client.follow();
            }
            Step::Cluster(..)
            | Step::Endpoints(_)
            | Step::Route(..)
            | Step::Listener(..)
            | Step::NoCluster(_)
            | Step::NoRoute(_)
            | Step::NoListener(_) => {}
        }
    }

    /// Lets everything arrive.
    fn settle(&mut self) {
        for _ in 0..1000 {
            if self.client.to_server.is_empty() && self.to_client.is_empty() {
                let before = self.sent;
                self.now = self.now + WAIT;
                self.tell(Message::Woken);
                if self.sent == before {
                    return;
                }
            }
            self.step(&Step::ToServer);
            self.step(&Step::ToClient);
        }
        panic!("it never comes to rest");
    }

    /// What the client has is what it should have.
    fn check_all(&self) {
        let refused = |name: &str, kind| {
            let contents = self.truth.contents();
            (contents.iter()).any(|(letter, of, content)| {
                kind == Cluster
                    && matches!(letter, 'c' | 'p')
                    && of == name
                    && content.ends_with(BAD)
            })
        };
        let mut expected = BTreeMap::new();
        for (letter, name, content) in Truth::contents(&self.truth) {
            let kind = match letter {
                'c' | 'p' => Cluster,
                'e' => Endpoints,
                'l' => Listener,
                _ => Route,
            };
            let is_wanted =
                matches!(kind, Cluster | Listener) || self.client.names[&kind].contains(&name);
            if is_wanted && !refused(&name, kind) {
                expected.insert((kind, name), content);
            }
        }
        let has = self.client.has.iter();
        let is_partial = |kind: Kind| self.client.protocol == Sotw && !kind.is_wildcard();
        let has: BTreeMap<_, _> = has
            .filter(|((kind, name), _)| !refused(name, *kind))
            // P14: nobody says that they are gone; their parents' names do.
            .filter(|(key, _)| !is_partial(key.0) || expected.contains_key(*key))
            .map(|(key, (_, content))| (key.clone(), content.clone()))
            .collect();
        assert_eq!(has, expected);
        // P32: nothing waits for endpoints that there are.
        for name in &self.client.warming {
            let there = self.truth.endpoints.contains_key(name);
            assert!(!there || refused(name, Cluster), "{name} is warming");
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let few = || prop::collection::vec(0..6u8, 0..3);
    let step = prop_oneof![
        3 => (0..6u8).prop_map(|nth| Step::Cluster(nth, nth % 2 == 0)),
        2 => (0..6u8).prop_map(Step::Endpoints),
        3 => (0..4u8, few()).prop_map(|(nth, to)| Step::Route(nth, to)),
        2 => (0..3u8, few()).prop_map(|(nth, to)| Step::Listener(nth, to)),
        2 => (0..6u8).prop_map(Step::NoCluster),
        1 => (0..4u8).prop_map(Step::NoRoute),
        1 => (0..3u8).prop_map(Step::NoListener),
        4 => Just(Step::Publish),
        8 => Just(Step::ToClient),
        8 => Just(Step::ToServer),
        1 => Just(Step::Lost),
        1 => (0..3u8).prop_map(Step::Name),
        1 => (0..3u8).prop_map(Step::Unname),
    ];
    prop::collection::vec(step, 0..120)
}

fn play(protocol: Protocol, steps: &[Step]) {
    let mut play = Play::new(protocol);
    for step in steps {
        play.step(step);
    }
    play.step(&Step::Publish);
    play.settle();
    play.check_all();
    // P11, P36: what is published again is not sent again.
    let sent = play.sent;
    play.step(&Step::Publish);
    play.settle();
    assert_eq!(play.sent, sent);
    // P24: nor after a reconnect.
    if protocol == Delta
        && !play
            .truth
            .contents()
            .iter()
            .any(|(_, _, what)| what.ends_with(BAD))
    {
        let resources = play.resources;
        play.step(&Step::Lost);
        play.settle();
        assert_eq!(play.resources, resources);
        play.check_all();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn an_incremental_client_ends_with_what_there_is(steps in steps()) {
        play(Delta, &steps);
    }

    #[test]
    fn a_state_of_the_world_client_ends_with_what_there_is(steps in steps()) {
        play(Sotw, &steps);
    }
}
