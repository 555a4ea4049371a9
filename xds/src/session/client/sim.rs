//! Sessions against an obvious server: streams that break, duplicate, come late, are full of rubbish.
//! Whatever happened, in the end the client holds what the server has, as far as it is good, and what is
//! held is what serves.
//! `ZEUGMA_SEED=n` plays one again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use zeugma_core::time::Time;

use super::fixture::{PROTOCOLS, eds, endpoints, fixed, listener, refusal, routes, said};
use super::{
    Action, Change, Ended, Event, Kind, Limits, Name, Protocol, Resource, Session, Verdict,
};
use crate::pb::{Any, core, discovery};

/// A stream of numbers that looks random.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_of(&mut self, n: u64) -> usize {
        usize::try_from(self.below(n)).unwrap()
    }

    fn is(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn share(&mut self) -> f64 {
        f64::from(u32::try_from(self.below(1000)).unwrap()) / 1000.0
    }
}

/// What it has, and nothing clever.
#[derive(Default)]
struct Server {
    has: BTreeMap<(Kind, String), (String, Any)>,
    versions: u64,
    stream: Option<Stream>,
}

#[derive(Default)]
struct Stream {
    nonces: u64,
    /// By kind: what it asked for; none where it never asked. Empty: all.
    asked: BTreeMap<Kind, BTreeSet<String>>,
    /// The versions that the client has, as far as the server knows.
    told: BTreeMap<(Kind, String), String>,
    unanswered: BTreeSet<Kind>,
    /// Of a full answer: what it said last.
    last: BTreeMap<Kind, Vec<(String, String)>>,
    /// Kinds that are to be answered even if nothing differs (P12, P22, P26).
    owed: BTreeSet<Kind>,
    /// Names that are owed an answer (P22).
    owed_names: BTreeSet<(Kind, String)>,
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

impl Server {
    /// Something is changed: mended, broken, made or removed.
    fn change(&mut self, draws: &mut Draws) {
        let kind = Kind::ALL[draws.one_of(4)];
        let name = NAMES[draws.one_of(4)];
        if draws.is(30) {
            self.has.remove(&(kind, name.to_owned()));
            return;
        }
        self.versions += 1;
        let version = format!("v{}", self.versions);
        // Few contents, so that some come back.
        let what = ["x", "y", "z"][draws.one_of(3)];
        let other = NAMES[draws.one_of(4)];
        let mut any = match kind {
            Kind::Cluster if draws.is(50) => eds(name, what),
            Kind::Cluster => fixed(name, what),
            Kind::Endpoints => endpoints(name, what),
            Kind::Listener => listener(name, &[other]),
            Kind::Routes => routes(name, what),
        };
        if draws.is(10) {
            // One that cannot be decoded behind its name.
            any.value.extend([0xff, 0xff]);
        }
        self.has.insert((kind, name.to_owned()), (version, any));
    }

    fn matching(&self, kind: Kind) -> BTreeMap<String, (String, Any)> {
        let Some(asked) = self
            .stream
            .as_ref()
            .and_then(|stream| stream.asked.get(&kind))
        else {
            return BTreeMap::new();
        };
        (self.has.iter())
            .filter(|((of, name), _)| *of == kind && (kind.is_wildcard() || asked.contains(name)))
            .map(|((_, name), what)| (name.clone(), what.clone()))
            .collect()
    }

    fn take(&mut self, action: &Action) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        match action {
            Action::Delta(request) => {
                let kind = Kind::of_url(&request.type_url).unwrap();
                if !request.response_nonce.is_empty() {
                    stream.unanswered.remove(&kind);
                }
                let is_first = !stream.asked.contains_key(&kind);
                let asked = stream.asked.entry(kind).or_default();
                asked.extend(request.resource_names_subscribe.iter().cloned());
                for name in &request.resource_names_unsubscribe {
                    asked.remove(name);
                    stream.told.remove(&(kind, name.clone()));
                }
                for name in &request.resource_names_subscribe {
                    stream.owed_names.insert((kind, name.clone()));
                }
                if is_first {
                    stream.owed.insert(kind);
                    let initial: BTreeMap<_, _> =
                        request.initial_resource_versions.iter().collect();
                    for (name, version) in initial {
                        stream.told.insert((kind, name.clone()), version.clone());
                        stream.owed_names.remove(&(kind, name.clone()));
                    }
                }
            }
            Action::Full(request) => {
                let kind = Kind::of_url(&request.type_url).unwrap();
                if !request.response_nonce.is_empty() {
                    stream.unanswered.remove(&kind);
                }
                let names: BTreeSet<String> = request.resource_names.iter().cloned().collect();
                if stream.asked.insert(kind, names.clone()) != Some(names) {
                    stream.owed.insert(kind);
                }
            }
            Action::Open(..) | Action::Close(_) | Action::Apply(_) | Action::Tell(_) => {}
        }
    }

    /// What it has to say of a kind, if anything.
    fn say(&mut self, kind: Kind, protocol: Protocol) -> Option<Event> {
        let matching = self.matching(kind);
        let stream = self.stream.as_mut()?;
        if !stream.asked.contains_key(&kind) || stream.unanswered.contains(&kind) {
            return None;
        }
        let nonce = format!("{kind:?}{}", stream.nonces);
        let event = match protocol {
            Protocol::Delta => {
                let news: Vec<discovery::Resource> = (matching.iter())
                    .filter(|(name, (version, _))| {
                        let key = (kind, (*name).clone());
                        stream.told.get(&key) != Some(version) || stream.owed_names.contains(&key)
                    })
                    .map(|(name, (version, any))| discovery::Resource {
                        name: name.clone(),
                        version: version.clone(),
                        resource: Some(any.clone()),
                        ..Default::default()
                    })
                    .collect();
                let told = stream.told.keys().chain(&stream.owed_names);
                let removed: BTreeSet<String> = told
                    .filter(|(of, name)| *of == kind && !matching.contains_key(name))
                    .map(|(_, name)| name.clone())
                    .collect();
                if news.is_empty() && removed.is_empty() && !stream.owed.contains(&kind) {
                    return None;
                }
                for resource in &news {
                    let key = (kind, resource.name.clone());
                    stream.told.insert(key, resource.version.clone());
                }
                for name in &removed {
                    stream.told.remove(&(kind, name.clone()));
                }
                Event::Delta(discovery::DeltaDiscoveryResponse {
                    type_url: kind.type_url(),
                    resources: news,
                    removed_resources: removed.into_iter().collect(),
                    nonce,
                    ..Default::default()
                })
            }
            Protocol::Full => {
                let said: Vec<(String, String)> = (matching.iter())
                    .map(|(name, (version, _))| (name.clone(), version.clone()))
                    .collect();
                if stream.last.get(&kind) == Some(&said) && !stream.owed.contains(&kind) {
                    return None;
                }
                stream.last.insert(kind, said);
                Event::Full(discovery::DiscoveryResponse {
                    type_url: kind.type_url(),
                    version_info: format!("s{}", self.versions),
                    resources: matching.into_values().map(|(_, any)| any).collect(),
                    nonce,
                    ..Default::default()
                })
            }
        };
        stream.nonces += 1;
        stream.unanswered.insert(kind);
        stream.owed.remove(&kind);
        stream.owed_names.retain(|(of, _)| *of != kind);
        Some(event)
    }
}

/// Who judges: a listener fits where there is a cluster of the name that it refers to. While endpoints of
/// any cluster are to come, what does not fit may do so yet, and waits without being refused.
#[derive(Default)]
struct Judge {
    serves: BTreeMap<(Kind, Name), Resource>,
    /// Listeners that do not fit, and whether they were refused for it.
    next: BTreeMap<(Kind, Name), (Resource, bool)>,
    /// Listeners that are to go, and stay as long as no other serves.
    staying: BTreeSet<(Kind, Name)>,
    /// Those that are not to come: there are none, or what came is refused.
    absent: BTreeSet<(Kind, Name)>,
    under_way: Option<BTreeMap<(Kind, Name), Change>>,
}

/// Whether a resource is refused by who judges: by what it holds, so that it is always the same.
fn is_refused(any: &Any) -> bool {
    any.value.ends_with(b"z")
}

impl Judge {
    fn end(&mut self) -> Option<Verdict> {
        let changes = self.under_way.take()?;
        let mut verdict = Verdict::default();
        let mut removed = BTreeSet::new();
        for (key, change) in changes {
            self.next.remove(&key);
            self.staying.remove(&key);
            match change {
                Change::Put(resource) if is_refused(&resource.body.to_any()) => {
                    verdict.refused.extend([self.refused(&key, "no use")]);
                    self.absent.insert(key);
                }
                Change::Put(resource)
                    if key.0 == Kind::Listener && !self.is_same(&key, &resource) =>
                {
                    self.next.insert(key, (resource, false));
                }
                Change::Put(resource) => {
                    self.absent.remove(&key);
                    self.serves.insert(key, resource);
                }
                Change::Removed if key.0 == Kind::Listener && self.serves.contains_key(&key) => {
                    removed.insert(key);
                }
                Change::Removed | Change::Missing => {
                    // P18: never of what is there.
                    let was = self.serves.remove(&key);
                    assert!(change == Change::Removed || was.is_none(), "{key:?}");
                    self.absent.insert(key);
                }
                Change::Withdrawn => {}
            }
        }
        let is_waiting = self.is_waiting();
        for (key, (resource, was_refused)) in std::mem::take(&mut self.next) {
            if self.fits(&resource) {
                self.serves.insert(key.clone(), resource);
                verdict.revived.extend(Some(key).filter(|_key| was_refused));
                continue;
            }
            if !is_waiting {
                verdict.refused.extend([self.refused(&key, "no cluster")]);
            }
            self.next
                .insert(key, (resource, was_refused || !is_waiting));
        }
        let listeners = self.serves.keys().filter(|key| key.0 == Kind::Listener);
        let going: BTreeSet<_> = removed.union(&self.staying).cloned().collect();
        if listeners.count() > going.len() {
            going.iter().for_each(|key| drop(self.serves.remove(key)));
            verdict.gone.extend(std::mem::take(&mut self.staying));
        } else {
            let refused = going.iter().map(|key| self.refused(key, "nothing is left"));
            verdict.refused.extend(refused);
            self.staying = going;
        }
        Some(verdict)
    }

    /// Whether just this serves (P36).
    fn is_same(&self, key: &(Kind, Name), resource: &Resource) -> bool {
        let serves = self.serves.get(key);
        serves.is_some_and(|serves| serves.body == resource.body)
    }

    fn refused(&self, key: &(Kind, Name), why: &str) -> ((Kind, Name), super::Refusal) {
        refusal(key.0, &key.1, why, self.serves.get(key).cloned())
    }

    fn fits(&self, listener: &Resource) -> bool {
        let mut names = listener.references.iter().map(|(_, name)| name);
        names.all(|name| self.serves.contains_key(&(Kind::Cluster, Arc::clone(name))))
    }

    /// Whether endpoints are to come.
    fn is_waiting(&self) -> bool {
        let mut wanted = (self.serves.iter())
            .filter(|((kind, _), _)| *kind == Kind::Cluster)
            .flat_map(|(_, cluster)| cluster.references.iter());
        wanted.any(|to| !self.serves.contains_key(to) && !self.absent.contains(to))
    }
}

/// All of it.
struct World {
    seed: u64,
    draws: Draws,
    now: Time,
    session: Session,
    server: Server,
    judge: Judge,
    /// By the kinds of streams that there are: what is on its way.
    to_client: VecDeque<Event>,
    protocol: Protocol,
    /// What the server can do.
    knows: Protocol,
    is_open: bool,
    opening: Option<Protocol>,
    sent_since_open: u64,
    is_traced: bool,
}

impl World {
    fn new(seed: u64, knows: Protocol) -> Self {
        Self {
            seed,
            draws: Draws(seed),
            now: Time::ZERO,
            session: Session::new(core::Node::default(), 1, Limits::default(), []),
            server: Server::default(),
            judge: Judge::default(),
            to_client: VecDeque::new(),
            protocol: Protocol::Delta,
            knows,
            is_open: false,
            opening: None,
            sent_since_open: 0,
            is_traced: std::env::var("ZEUGMA_SEED").is_ok(),
        }
    }

    fn handle(&mut self, event: Event) {
        let draw = self.draws.share();
        self.trace(|| match &event {
            Event::Delta(response) => {
                let all = response.resources.iter();
                let names: Vec<_> = all.map(|one| (&one.name, &one.version)).collect();
                let removed = &response.removed_resources;
                format!(
                    "{} {names:?} -{removed:?} {}",
                    response.type_url, response.nonce
                )
            }
            Event::Full(response) => {
                let names: Vec<_> = response.resources.iter().map(super::read::name).collect();
                format!("{} {} {names:?}", response.type_url, response.version_info)
            }
            other @ (Event::Opened | Event::Closed(_) | Event::Applied(_) | Event::Tick) => {
                format!("{other:?}")
            }
        });
        for action in self.session.handle(event, self.now, draw) {
            self.trace(|| format!("    {:?}", said(std::slice::from_ref(&action))));
            match &action {
                Action::Open(_, protocol) => self.opening = Some(*protocol),
                Action::Close(_) => self.broken(),
                Action::Apply(update) => {
                    assert!(
                        self.judge.under_way.is_none(),
                        "one at a time: {}",
                        self.seed
                    );
                    self.judge.under_way = Some(update.changes.clone());
                }
                Action::Delta(request) => {
                    assert_eq!(
                        request.node.is_some(),
                        self.sent_since_open == 0,
                        "P1: {}",
                        self.seed
                    );
                    self.sent_since_open += 1;
                }
                Action::Full(request) => {
                    assert_eq!(
                        request.node.is_some(),
                        self.sent_since_open == 0,
                        "P1: {}",
                        self.seed
                    );
                    self.sent_since_open += 1;
                }
                Action::Tell(_) => {}
            }
            if self.is_open {
                self.server.take(&action);
            }
        }
    }

    /// What happens, where one is played again.
    #[expect(clippy::print_stdout, reason = "for who looks for what went wrong")]
    fn trace(&self, what: impl Fn() -> String) {
        if self.is_traced {
            println!("{}", what());
        }
    }

    fn broken(&mut self) {
        self.is_open = false;
        self.server.stream = None;
        self.to_client.clear();
    }

    fn open(&mut self) {
        let Some(protocol) = self.opening.take() else {
            return;
        };
        if self.knows == Protocol::Full && protocol == Protocol::Delta {
            self.handle(Event::Closed(Ended::Unimplemented));
            return;
        }
        self.protocol = protocol;
        self.is_open = true;
        self.sent_since_open = 0;
        self.server.stream = Some(Stream::default());
        self.handle(Event::Opened);
    }

    fn serve(&mut self) {
        let kind = Kind::ALL[self.draws.one_of(4)];
        if let Some(event) = self.server.say(kind, self.protocol) {
            self.to_client.push_back(event);
        }
    }

    /// One thing happens, drawn from all that could.
    fn step(&mut self) {
        match self.draws.below(100) {
            0..20 => self.server.change(&mut self.draws),
            20..45 if self.is_open => self.serve(),
            45..70 => {
                if let Some(event) = self.to_client.pop_front() {
                    self.handle(event);
                }
            }
            70..82 => {
                if let Some(verdict) = self.judge.end() {
                    self.handle(Event::Applied(verdict));
                }
            }
            82..88 => self.open(),
            88..93 => {
                self.now = self.now + Duration::from_millis(self.draws.below(20_000));
                self.handle(Event::Tick);
            }
            // The stream breaks, with all that was on its way, or could not be opened.
            93..96 if self.is_open || self.opening.is_some() => {
                self.broken();
                self.opening = None;
                self.handle(Event::Closed(Ended::Otherwise));
            }
            // The server is started anew, and knows of versions nothing.
            96 if self.is_open => {
                self.broken();
                self.server.versions += 1000;
                self.handle(Event::Closed(Ended::Otherwise));
            }
            97 if self.is_open => self.rubbish(),
            _ => {}
        }
    }

    /// What no server should say.
    fn rubbish(&mut self) {
        let kind = Kind::ALL[self.draws.one_of(4)];
        let twice = |any: Any| vec![any.clone(), any];
        let name = NAMES[self.draws.one_of(4)];
        let resources = match self.draws.below(4) {
            0 => twice(fixed(name, "twice")),
            1 => vec![Any {
                type_url: kind.type_url(),
                value: vec![0xff; 5],
            }],
            2 => vec![routes("not-asked-for", "x")],
            _ => Vec::new(),
        };
        let nonce = "rubbish".to_owned();
        // What is sent by the way of deltas takes nothing away; in full only of what has names.
        self.handle(match self.protocol {
            Protocol::Delta => Event::Delta(discovery::DeltaDiscoveryResponse {
                type_url: kind.type_url(),
                resources: (resources.into_iter())
                    .map(|any| discovery::Resource {
                        name: format!("rubbish-{name}"),
                        resource: Some(any),
                        ..Default::default()
                    })
                    .collect(),
                nonce,
                ..Default::default()
            }),
            Protocol::Full => Event::Full(discovery::DiscoveryResponse {
                type_url: Kind::Endpoints.type_url(),
                resources,
                nonce,
                ..Default::default()
            }),
        });
    }

    /// Nothing more happens but what follows.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.open();
            for kind in Kind::ALL {
                if let Some(event) = self.server.say(kind, self.protocol) {
                    self.to_client.push_back(event);
                }
            }
            let is_idle = self.to_client.is_empty()
                && self.judge.under_way.is_none()
                && self.opening.is_none()
                && self.is_open;
            if is_idle && !self.judge.is_waiting() {
                return;
            }
            if is_idle {
                // P18: what does not come does not keep the others for ever.
                self.now = self.now + super::WAIT;
                self.handle(Event::Tick);
            }
            while let Some(event) = self.to_client.pop_front() {
                self.handle(event);
            }
            if let Some(verdict) = self.judge.end() {
                self.handle(Event::Applied(verdict));
            }
            if !self.is_open {
                self.now = self.now + Duration::from_secs(30);
                self.handle(Event::Tick);
            }
        }
        panic!("it never settles: {}", self.seed);
    }

    fn check(&self) {
        let seed = self.seed;
        let held: BTreeMap<(Kind, Name), Any> = (self.session.held())
            .map(|(kind, name, resource)| ((kind, Arc::clone(name)), resource.body.to_any()))
            .collect();
        let serves: BTreeMap<(Kind, Name), Any> = (self.judge.serves.iter())
            .map(|(key, resource)| (key.clone(), resource.body.to_any()))
            .collect();
        assert_eq!(held, serves, "what is held is what serves: {seed}");
        let stream = self.server.stream.as_ref().unwrap();
        assert!(
            stream.unanswered.is_empty(),
            "P7: {:?} {seed}",
            stream.unanswered
        );
        for kind in Kind::ALL {
            let there = self.server.matching(kind);
            for (name, (version, any)) in &there {
                let key = (kind, Name::from(name.as_str()));
                let references = super::read::references(kind, name, any);
                let is_good = references.is_ok_and(|references| {
                    let resource = Resource {
                        version: Some("any".into()),
                        body: Arc::new(any.clone().into()),
                        references,
                    };
                    !is_refused(any) && (kind != Kind::Listener || self.judge.fits(&resource))
                });
                match held.get(&key) {
                    Some(held) if is_good => assert_eq!(held, any, "{key:?} {version} {seed}"),
                    // An older one that was good.
                    Some(_) => {}
                    None => assert!(!is_good, "{key:?} {version} is not there: {seed}"),
                }
            }
            if self.protocol == Protocol::Full && !kind.is_wildcard() {
                // P14: nobody says that it is gone.
                continue;
            }
            for (of, name) in held.keys().filter(|(of, _)| *of == kind) {
                let stays = self.judge.staying.contains(&(*of, Arc::clone(name)));
                assert!(
                    stays || there.contains_key(&**name),
                    "{of:?} {name} is gone: {seed}"
                );
            }
        }
        if self.protocol == Protocol::Delta {
            // P24: what both think that the client has is the same, but for what was refused.
            for ((kind, name), resource) in
                (self.session.held()).map(|(kind, name, one)| ((kind, name.to_string()), one))
            {
                if (self.judge.staying).contains(&(kind, name.as_str().into())) {
                    continue;
                }
                let told = &stream.told[&(kind, name.clone())];
                let (_, any) = &self.server.has[&(kind, name.clone())];
                if resource.body.is(any) {
                    assert_eq!(
                        Some(&**told),
                        resource.version.as_deref(),
                        "{kind:?} {name} {seed}"
                    );
                }
            }
        }
    }
}

fn play(seed: u64, knows: Protocol) {
    let mut world = World::new(seed, knows);
    for _ in 0..4 {
        for _ in 0..100 {
            world.step();
        }
        world.settle();
        world.check();
    }
}

#[test]
fn whatever_happens_in_the_end_the_client_holds_what_the_server_has() {
    let seeds = match std::env::var("ZEUGMA_SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().unwrap();
            seed..seed + 1
        }
        Err(_) => 0..400,
    };
    for seed in seeds {
        for knows in PROTOCOLS {
            play(seed, knows);
        }
    }
}
