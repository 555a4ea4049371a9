use std::time::Duration;

use super::*;
use crate::balance::mix;
use crate::fixture::{cluster, http_rule, id, ids, nets, part, service, snapshot};
use crate::fleet::{LevelMotion, Observation};
use crate::mirror::{Copying, Dropped, Skipped, Terms};
use crate::names::HostPattern;
use crate::outlier::EjectCause;
use crate::plan::Why;
use crate::route::{
    Routed, check_authority, check_authority_port, route_authority, route_plaintext, route_tls,
};
use crate::rules::{Field, Match, PathMatch, Rules, Tried};
use crate::slow::Took;
use crate::snapshot::{
    Balance, EndpointTls, Export, Failure, HashOn, HostTable, Inbound, Mirror, Policy, PolicyMode,
    Role, Rule, Service, SniPattern, TooFew,
};
use crate::time::Time;

const GATEWAY: &str = "spiffe://west.example/zeugma/gateway";

fn question(host: &str) -> Question {
    Question {
        host: host.to_owned(),
        sni: None,
        method: "GET".to_owned(),
        path: "/".to_owned(),
        headers: Vec::new(),
        from: None,
        via: None,
        source: None,
        listener: None,
    }
}

fn beside(draw: u64) -> Beside<'static> {
    Beside {
        load: &|_| 0,
        draw,
        now: Time::ZERO,
        refuses: &|_, _| None,
    }
}

fn at(seconds: u64) -> Time {
    Time::from_origin(Duration::from_secs(seconds))
}

fn allowing(rules: Vec<Rule>, service: Service) -> Service {
    Service {
        policy: Policy {
            allow: rules,
            ..Policy::default()
        },
        ..service
    }
}

/// A snapshot, its fleet and shares.
struct World {
    snapshot: Snapshot,
    fleet: Fleet,
    shares: Shares,
}

impl World {
    fn of(snapshot: Snapshot) -> Self {
        let mut fleet = Fleet::new();
        fleet.reconcile(&snapshot, Time::ZERO);
        let shares = fleet.shares(Time::ZERO);
        Self {
            snapshot,
            fleet,
            shares,
        }
    }

    fn fails(&mut self, key: &str, failure: Failure, second: u64) {
        for _ in 0..5 {
            let observation = Observation {
                key: crate::snapshot::EndpointKey(key.into()),
                result: Err(failure),
            };
            self.fleet.observe(&observation, at(second));
        }
        self.shares = self.fleet.shares(at(second));
    }

    fn ask(&self, question: &Question) -> Explanation {
        explain(
            &self.snapshot,
            &self.shares,
            &self.fleet,
            question,
            beside(7),
        )
        .unwrap()
    }
}

/// Numbers out of a seed.
struct Draws(u64);

impl Draws {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0, 11) % below
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[usize::try_from(self.next(all.len() as u64)).unwrap()]
    }
}

const HOSTS: [&str; 4] = ["one.a", "two.a", "three.a", "four.a"];

fn sni(host: &str) -> SniPattern {
    SniPattern::Host(HostPattern::parse(host).unwrap())
}

fn random_rule(draws: &mut Draws) -> Rule {
    let mut rule = Rule::default();
    if draws.next(2) == 0 {
        rule.from =
            ids(&[*draws.of(&["spiffe://west.example/*", GATEWAY, "spiffe://far.example/x"])]);
    }
    if draws.next(4) == 0 {
        rule.via = vec![PeerIx(0)];
    }
    if draws.next(3) == 0 {
        rule.listeners = vec![(*draws.of(&["mesh", "apps"])).into()];
    }
    if draws.next(4) == 0 {
        rule.sources = nets(&[*draws.of(&["10.0.0.0/8", "192.0.2.0/24"])]);
    }
    if draws.next(4) == 0 {
        rule.methods = vec!["GET".into()];
    }
    if draws.next(4) == 0 {
        let host = *draws.of(&["one.a", "also.a"]);
        rule.sni = vec![sni(host)];
    }
    rule
}

fn random_world(draws: &mut Draws) -> World {
    let services = HOSTS.iter().enumerate().map(|(nth, host)| {
        let name = format!("a/{nth}");
        let mut one = service(&name, host, 80);
        if nth == 0 {
            one.hosts.push(HostPattern::parse("also.a").unwrap());
        }
        if draws.next(3) == 0 {
            one.protocol = Protocol::Tcp;
            one.inbound = *draws.of(&[Inbound::Passthrough, Inbound::Terminate]);
        }
        one.policy = Policy {
            allow: (0..draws.next(3)).map(|_| random_rule(draws)).collect(),
            deny: (0..draws.next(2)).map(|_| random_rule(draws)).collect(),
            mode: *draws.of(&[PolicyMode::Enforce, PolicyMode::Enforce, PolicyMode::Audit]),
        };
        one.export = draws
            .of(&[
                Export::Nobody,
                Export::AllPeers,
                Export::To(vec![PeerIx(0)]),
            ])
            .clone();
        one.outbound = ClusterIx(0);
        one.own = *draws.of(&[None, Some(ClusterIx(1))]);
        one
    });
    let mut snapshot = snapshot(services.collect());
    let two = [
        cluster(&[&["e0", "e1"], &["e2"], &["e3", "e4", "e5"]]),
        cluster(&[&["e0", "e1"]]),
    ];
    snapshot.clusters = two.into_iter().map(Arc::new).collect();
    let mut alone = snapshot.listeners[1].clone();
    alone.name = "alone".into();
    alone.only = Some(ServiceIx(usize::try_from(draws.next(4)).unwrap()));
    alone.hosts = HostTable::default();
    snapshot.listeners.edit(|all| all.push(alone));
    if draws.next(3) == 0 {
        let ix = usize::try_from(draws.next(3)).unwrap();
        snapshot.listeners[ix].sources = nets(&["192.0.2.0/24"]);
    }
    let mut world = World::of(snapshot);
    for key in ["e0", "e1", "e2", "e3"] {
        if draws.next(3) == 0 {
            world.fails(key, Failure::Connect, 1);
        }
    }
    world
}

/// What the shell does, call by call, as `proxy/src/connection.rs` and `http/exchange.rs` do it.
fn as_the_gateway(world: &World, question: &Question, draw: u64) -> Result<Vec<Attempt>, Reason> {
    let snapshot = &world.snapshot;
    let listener = snapshot
        .listener(question.listener.as_ref().unwrap())
        .unwrap();
    let source = question.source.unwrap();
    if !listener.admits(source) {
        return Err(Reason::SourceRefused);
    }
    let gateway = id(GATEWAY);
    let (verified, claimed) = match question.via {
        Some(_) => (Some(&gateway), question.from.as_ref()),
        None => (question.from.as_ref(), None),
    };
    let service_of = |host: &str| HOSTS.iter().position(|one| *one == host).unwrap_or(0);
    let is_tcp = snapshot.services[service_of(&question.host)].protocol == Protocol::Tcp
        && HOSTS.contains(&&*question.host);
    let is_tls = listener.role == Role::Mesh
        || (listener.only.is_none() && (is_tcp || verified.is_some() || question.sni.is_some()));
    let hello = ClientHello {
        sni: question.sni.clone().or_else(|| Some(question.host.clone())),
        ..ClientHello::default()
    };
    let routed = if is_tls {
        route_tls(snapshot, listener, &hello)
    } else {
        route_plaintext(listener)
    };
    let is_http = |ix| snapshot.service(ix).protocol == Protocol::Http;
    let is_plain = matches!(routed, Routed::Plain(_) | Routed::PlainHttp);
    let (ix, evidence, is_request) = match routed {
        Routed::Refuse(reason) => return Err(reason),
        Routed::Reports => panic!("no question is about reports"),
        Routed::Plain(ix) => (ix, Evidence::Network, is_http(ix)),
        Routed::Passthrough(ix) => (ix, Evidence::Network, false),
        Routed::PlainHttp => {
            let ix = route_authority(snapshot, listener, &question.host)?;
            (ix, Evidence::Network, true)
        }
        Routed::Terminate(sni) | Routed::TerminateAnyPort(sni) => {
            let verified = verified.ok_or(Reason::CertificateMissing)?;
            let evidence = crate::authorize::evidence(snapshot, source, verified, claimed);
            let ix = match (is_http(sni), routed) {
                (false, _) => sni,
                (true, Routed::TerminateAnyPort(_)) => {
                    check_authority_port(snapshot, listener, sni, &question.host)?
                }
                (true, _) => check_authority(snapshot, listener, sni, &question.host)?,
            };
            (ix, evidence, is_http(sni))
        }
    };
    let asking = crate::authorize::Asking {
        listener,
        source,
        evidence,
        sni: hello.sni.as_deref().filter(|_| !is_plain),
        method: is_request.then_some(&*question.method),
        path: is_request.then_some(&*question.path),
        headers: is_request.then_some(Headers::NONE),
    };
    if let Verdict::Deny { reason, .. } = authorize(snapshot, ix, &asking) {
        return Err(reason);
    }
    let to = crate::engine::cluster_of(snapshot, listener, ix)?;
    let of = &world.shares.clusters[to.0];
    let attempts: Vec<Attempt> = plan(snapshot.cluster(to), of, &|_| 0, draw).collect();
    if attempts.is_empty() {
        return Err(crate::engine::nothing_healthy(listener.role));
    }
    Ok(attempts)
}

#[test]
fn an_explanation_is_what_the_gateway_would_do() {
    let mut met = BTreeMap::<String, u32>::new();
    for seed in 0..400 {
        let mut draws = Draws(seed * 1_000_003);
        let world = random_world(&mut draws);
        for _ in 0..25 {
            let from = *draws.of(&[
                "",
                GATEWAY,
                "spiffe://west.example/cart",
                "spiffe://far.example/x",
            ]);
            let question = Question {
                host: (*draws.of(&["one.a", "two.a", "three.a", "four.a", "no.a"])).to_owned(),
                sni: (draws.next(3) == 0)
                    .then(|| (*draws.of(&["one.a", "also.a", "two.a", "a b"])).to_owned()),
                method: (*draws.of(&["GET", "POST"])).to_owned(),
                path: "/".to_owned(),
                headers: Vec::new(),
                from: (!from.is_empty()).then(|| id(from)),
                via: (draws.next(3) == 0).then(|| "west".to_owned()),
                source: Some(draws.of(&["10.0.0.1", "192.0.2.1"]).parse().unwrap()),
                listener: Some((*draws.of(&["mesh", "apps", "alone"])).to_owned()),
            };
            let draw = draws.next(u64::MAX);
            let told = explain(
                &world.snapshot,
                &world.shares,
                &world.fleet,
                &question,
                beside(draw),
            );
            let told = match told {
                Ok(told) => told,
                Err(error) => {
                    let only = (world.snapshot.listeners.last()).and_then(|last| last.only);
                    let is_http = world.snapshot.service(only.unwrap()).protocol == Protocol::Http;
                    let is_unread = matches!(error, QuestionError::SniUnread { .. });
                    assert!(is_unread && is_http && question.sni.is_some(), "{error}");
                    *met.entry("no TLS is read".to_owned()).or_default() += 1;
                    continue;
                }
            };
            let expected = as_the_gateway(&world, &question, draw);
            let attempts = told.to.as_ref().map(|to| to.attempts.clone());
            let outcome = match told.refused {
                Some(reason) => Err(reason),
                None => Ok(attempts.unwrap()),
            };
            assert_eq!(outcome, expected, "seed {seed}: {question:?}");
            let label = match &told.refused {
                Some(reason) => reason.label().to_owned(),
                None => format!("{:?}", told.to.unwrap().attempts[0].why),
            };
            *met.entry(label).or_default() += 1;
        }
    }
    // What is never met proves nothing.
    for label in [
        "Local",
        "Spill",
        "Failover",
        "not-allowed",
        "denied",
        "not-exported",
        "sni-unknown",
        "sni-malformed",
        "misdirected",
        "no TLS is read",
        "authority-unknown",
        "certificate-missing",
        "source-refused",
        "no-local-endpoint",
    ] {
        assert!(met.contains_key(label), "{label}: {met:?}");
    }
}

#[test]
fn a_denial_names_the_nearest_rule_and_the_fields_that_failed() {
    let rules = vec![
        Rule {
            from: ids(&["spiffe://far.example/x"]),
            methods: vec!["PUT".into()],
            ..Rule::default()
        },
        Rule {
            from: ids(&["spiffe://west.example/cart"]),
            methods: vec!["GET".into()],
            ..Rule::default()
        },
    ];
    let world = World::of(snapshot(vec![allowing(
        rules,
        service("a/one", "one.a", 80),
    )]));
    let told = world.ask(&Question {
        method: "POST".to_owned(),
        from: Some(id("spiffe://west.example/cart")),
        ..question("one.a")
    });
    assert_eq!(told.refused, Some(Reason::NotAllowed));
    let judged = told.judged.unwrap();
    assert_eq!(judged.mismatches, [RuleField::Methods]);
    assert!(matches!(
        judged.verdict,
        Verdict::Deny {
            nearest: Some(1),
            rule: None,
            ..
        }
    ));
    assert_eq!(told.to, None, "it does not come that far");
    assert_eq!(
        &*told.listener, "mesh",
        "whoever is somebody comes by the mesh"
    );
}

#[test]
fn websocket_is_refused_where_a_service_is_not_let_go_on_as_it() {
    let cart = "spiffe://west.example/cart";
    let rule = Rule {
        from: ids(&[cart]),
        ..Rule::default()
    };
    let mut one = snapshot(vec![allowing(vec![rule], service("a/one", "one.a", 80))]);
    let ask = |of: &Snapshot, connection: &str, upgrade: &[&str]| {
        let pairs = [("connection", connection)].into_iter();
        let pairs = pairs.chain(upgrade.iter().map(|protocol| ("upgrade", *protocol)));
        let headers = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        World::of(of.clone()).ask(&Question {
            headers: headers.collect(),
            from: Some(id(cart)),
            ..question("one.a")
        })
    };
    assert_eq!(ask(&one, "Upgrade", &["websocket"]).refused, None);
    one.services[0].is_upgraded = false;
    for connection in ["upgrade", "keep-alive,  Upgrade"] {
        let told = ask(&one, connection, &["WebSocket"]);
        assert_eq!(told.refused, Some(Reason::NotAllowed), "{connection}");
        let judged = told.judged.unwrap();
        assert!(matches!(judged.verdict, Verdict::Allow { .. }));
        assert_eq!(told.to, None, "it does not come that far");
    }
    // What asks for something else, or says it twice, goes on as what it is.
    let others: [(&str, &[&str]); 4] = [
        ("upgrade", &["h2c"]),
        ("close", &["websocket"]),
        ("upgrade", &["websocket", "websocket"]),
        ("upgraded", &["websocket"]),
    ];
    for (connection, upgrade) in others {
        assert_eq!(ask(&one, connection, upgrade).refused, None, "{upgrade:?}");
    }
}

#[test]
fn who_calls_through_a_peer_is_who_its_gateway_attests() {
    let rule = Rule {
        from: ids(&["spiffe://west.example/cart"]),
        via: vec![PeerIx(0)],
        ..Rule::default()
    };
    let mut one = snapshot(vec![allowing(vec![rule], service("a/one", "one.a", 80))]);
    let asked = Question {
        from: Some(id("spiffe://west.example/cart")),
        via: Some("west".to_owned()),
        ..question("one.a")
    };
    let told = World::of(one.clone()).ask(&asked);
    assert_eq!(told.refused, None);
    assert!(told.assumed.contains(&Assumed::Gateway(id(GATEWAY))));
    let is_asserted = matches!(&told.caller, Caller::Asserted { by, .. } if *by == id(GATEWAY));
    assert!(is_asserted, "{:?}", told.caller);
    // A peer that attests for nobody hands nothing on.
    one.peers[0].attests.clear();
    let told = World::of(one).ask(&asked);
    assert_eq!(told.caller, Caller::Verified(id(GATEWAY)));
    assert_eq!(told.refused, Some(Reason::NotAllowed));
}

#[test]
fn an_identity_that_is_refused_everywhere_is_refused_here() {
    let cart = id("spiffe://west.example/cart");
    let open = allowing(vec![Rule::default()], service("a/one", "one.a", 80));
    let world = World::of(snapshot(vec![open]));
    let refuses = |id: &SpiffeId, vouched| {
        (*id == cart).then_some(match vouched {
            Vouched::Certificate => Reason::CertificateRefused,
            Vouched::Gateway => Reason::IdentityDenied,
        })
    };
    let ask = |question: &Question| {
        let beside = Beside {
            refuses: &refuses,
            ..beside(0)
        };
        explain(
            &world.snapshot,
            &world.shares,
            &world.fleet,
            question,
            beside,
        )
        .unwrap()
    };
    let itself = Question {
        from: Some(cart.clone()),
        ..question("one.a")
    };
    let told = ask(&itself);
    assert_eq!(told.refused, Some(Reason::CertificateRefused));
    assert_eq!(
        (told.judged, told.to),
        (None, None),
        "the handshake ends it"
    );
    let through = Question {
        via: Some("west".to_owned()),
        ..itself
    };
    let told = ask(&through);
    assert_eq!(told.refused, Some(Reason::IdentityDenied));
    assert!(told.judged.is_some(), "it was known after the policy");
    assert_eq!(told.to, None);
}

#[test]
fn a_request_is_told_with_the_rule_that_it_is_for() {
    let mut one = allowing(vec![Rule::default()], service("a/one", "one.a", 80));
    let beta = Match {
        rule: 0,
        headers: vec![Field {
            name: "x-beta".into(),
            value: "1".into(),
        }],
        ..Match::default()
    };
    let v1 = Match {
        rule: 1,
        path: PathMatch::Prefix("/v1".into()),
        ..Match::default()
    };
    one.rules = Some(Arc::new(Rules {
        matches: vec![beta, v1],
        list: vec![
            http_rule("beta", Some(vec![part(1, 1)])),
            http_rule("v1", None),
        ],
    }));
    let mut snapshot = snapshot(vec![one]);
    let two = [cluster(&[&["e0"], &["e1"]]), cluster(&[&["beta"]])];
    snapshot.clusters = two.into_iter().map(Arc::new).collect();
    let world = World::of(snapshot);
    let asked = |path: &str, headers: &[(&str, &str)]| {
        let headers = headers.iter();
        world.ask(&Question {
            path: path.to_owned(),
            headers: headers
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect(),
            ..question("one.a")
        })
    };
    let beta = asked("/", &[("x-beta", "1")]);
    let split = Matched {
        rule: 0,
        part: Some(0),
        closed: Tried::default(),
    };
    assert_eq!(
        (beta.matched, beta.to.unwrap().cluster),
        (Some(split), ClusterIx(1))
    );
    let v1 = asked("/v1/x", &[]);
    assert_eq!(v1.matched.map(|matched| matched.rule), Some(1));
    assert_eq!(v1.to.unwrap().cluster, ClusterIx(0));
    // A header that comes twice is none that a rule knows.
    let twice = asked("/", &[("x-beta", "1"), ("x-beta", "1")]);
    assert_eq!((twice.refused, twice.to), (Some(Reason::NoRule), None));
}

/// What broke: it was drawn, though the key says where each such request goes.
#[test]
fn what_is_balanced_by_a_key_goes_where_its_key_leads() {
    let keyed = |on: HashOn| {
        let mut to = cluster(&[&["e0", "e1", "e2", "e3"]]);
        Arc::make_mut(&mut to.policy).balance = Balance::RingHash(on);
        let mut world = snapshot(vec![allowing(
            vec![Rule::default()],
            service("a/one", "one.a", 80),
        )]);
        world.clusters = vec![Arc::new(to)].into();
        World::of(world)
    };
    let first = |world: &World, question: &Question, draw| {
        let (snapshot, shares, fleet) = (&world.snapshot, &world.shares, &world.fleet);
        let told = explain(snapshot, shares, fleet, question, beside(draw)).unwrap();
        let to = told.to.unwrap().attempts[0].endpoint;
        (to, told.keyed.unwrap().key)
    };
    let expected = |world: &World, key| {
        let (cluster, of) = (&world.snapshot.clusters[0], &world.shares.clusters[0]);
        plan(cluster, of, &|_| 0, key).next().unwrap().endpoint
    };
    let world = keyed(HashOn::Header("x-user".into()));
    for user in ["ann", "bob", "cy"] {
        let asked = Question {
            headers: vec![("x-user".to_owned(), user.to_owned())],
            ..question("one.a")
        };
        let key = key_of(user.as_bytes());
        for draw in 0..20 {
            let told = first(&world, &asked, draw);
            assert_eq!(told, (expected(&world, key), Some(key)), "{user}");
        }
    }
    let drawn: Vec<_> = (0..20)
        .map(|draw| first(&world, &question("one.a"), draw))
        .collect();
    assert!(drawn.iter().any(|one| one.0 != drawn[0].0), "{drawn:?}");
    assert!(drawn.iter().all(|one| one.1.is_none()));
    let world = keyed(HashOn::Source);
    let asked = Question {
        source: Some("192.0.2.7".parse().unwrap()),
        ..question("one.a")
    };
    let key = key_of(&[192, 0, 2, 7]);
    for draw in 0..20 {
        assert_eq!(
            first(&world, &asked, draw),
            (expected(&world, key), Some(key))
        );
    }
}

#[test]
fn what_is_left_open_is_told() {
    let mut world = snapshot(vec![
        allowing(vec![Rule::default()], service("a/web", "web.a", 80)),
        allowing(
            vec![Rule::default()],
            Service {
                protocol: Protocol::Tcp,
                inbound: Inbound::Passthrough,
                ..service("a/db", "db.a", 5432)
            },
        ),
    ]);
    let told = World::of(world.clone()).ask(&question("web.a"));
    assert_eq!(&*told.listener, "apps");
    let localhost: IpAddr = [127, 0, 0, 1].into();
    let assumed = [Assumed::Listener("apps".into()), Assumed::Source(localhost)];
    assert_eq!(told.assumed, assumed);
    let steps: Vec<Answer> = told.steps.iter().map(|step| step.answer).collect();
    assert_eq!(steps, [Answer::ReadHttp, Answer::Carry]);
    // TLS by its SNI; nobody is verified inside.
    let cart = Question {
        from: Some(id("spiffe://west.example/cart")),
        listener: Some("apps".to_owned()),
        ..question("db.a")
    };
    let told = World::of(world.clone()).ask(&cart);
    assert_eq!(told.steps[0].asks, Asks::Hello("db.a".to_owned()));
    assert!(told.assumed.contains(&Assumed::NobodyVerified));
    // Without TLS where a listener has that route alone.
    let mut alone = world.listeners[1].clone();
    (alone.name, alone.only) = ("db".into(), Some(ServiceIx(1)));
    alone.hosts = HostTable::default();
    world.listeners.edit(|all| all.push(alone));
    let world = World::of(world);
    let told = world.ask(&question("db.a"));
    assert_eq!((&*told.listener, told.refused), ("db", None));
    assert_eq!(told.steps[0].asks, Asks::Plaintext);
    // Terminated, and nobody is said to call.
    let mesh = Question {
        listener: Some("mesh".to_owned()),
        ..question("web.a")
    };
    assert_eq!(world.ask(&mesh).refused, Some(Reason::CertificateMissing));
    // A port is named in an SNI as Istio names it.
    let ported = world.ask(&Question {
        host: "web.a:80".to_owned(),
        ..mesh
    });
    assert_eq!(
        ported.steps[0].asks,
        Asks::Hello("outbound_.80_._.web.a".to_owned())
    );
}

#[test]
fn what_is_not_configured_is_told_with_what_is() {
    let world = World::of(snapshot(vec![]));
    let ask = |question: &Question| {
        explain(
            &world.snapshot,
            &world.shares,
            &world.fleet,
            question,
            beside(0),
        )
        .unwrap_err()
        .to_string()
    };
    let nowhere = Question {
        listener: Some("aps".to_owned()),
        ..question("one.a")
    };
    assert_eq!(ask(&nowhere), "no listener `aps`; there are: mesh, apps");
    let nobody = Question {
        via: Some("north".to_owned()),
        ..question("one.a")
    };
    assert_eq!(ask(&nobody), "no peer `north`; there are: west");
    let long = question(&"a".repeat(301));
    assert_eq!(ask(&long), "the host is over 300 bytes");
    let named = |sni: &str| Question {
        sni: Some(sni.to_owned()),
        ..question("one.a")
    };
    assert_eq!(ask(&named(&"a".repeat(301))), "the SNI is over 300 bytes");
    for none in ["", "one\0.a"] {
        let said = "the SNI is empty or holds a NUL, which no ClientHello can say (RFC 6066 §3)";
        assert_eq!(ask(&named(none)), said);
    }
}

/// A route of two hosts that denies what is asked for by one of them.
fn denied_by_sni(of: Service) -> Service {
    let two = Service {
        hosts: ["one.a", "two.a"]
            .map(|host| HostPattern::parse(host).unwrap())
            .into(),
        ..allowing(vec![Rule::default()], of)
    };
    Service {
        policy: Policy {
            deny: vec![Rule {
                sni: vec![sni("two.a")],
                ..Rule::default()
            }],
            ..two.policy
        },
        ..two
    }
}

#[test]
fn an_sni_that_is_not_the_host_is_what_rules_are_asked_about() {
    let asked = |sni: Option<&str>| Question {
        from: Some(id("spiffe://west.example/cart")),
        sni: sni.map(str::to_owned),
        ..question("one.a")
    };
    let tcp = |inbound| Service {
        protocol: Protocol::Tcp,
        inbound,
        ..service("a/one", "one.a", 80)
    };
    for (of, is_request) in [
        (service("a/one", "one.a", 80), true),
        (tcp(Inbound::Terminate), false),
        (tcp(Inbound::Passthrough), false),
    ] {
        let world = World::of(snapshot(vec![denied_by_sni(of)]));
        assert_eq!(world.ask(&asked(None)).refused, None, "SNI = host");
        let told = world.ask(&asked(Some("two.a")));
        assert_eq!(told.refused, Some(Reason::Denied));
        assert_eq!(told.sni.as_deref(), Some("two.a"));
        assert_eq!(told.steps[0].asks, Asks::Hello("two.a".to_owned()));
        let is_unread = told.assumed.contains(&Assumed::HostUnread);
        assert_eq!(is_unread, !is_request, "{:?}", told.assumed);
        assert_eq!(
            world.ask(&asked(Some("no.a"))).refused,
            Some(Reason::SniUnknown)
        );
    }
}

#[test]
fn an_sni_means_tls_where_it_is_read_and_nothing_where_it_is_not() {
    let mut world = snapshot(vec![
        denied_by_sni(service("a/one", "one.a", 80)),
        allowing(
            vec![Rule::default()],
            Service {
                protocol: Protocol::Tcp,
                ..service("a/db", "db.a", 5432)
            },
        ),
    ]);
    for (name, only) in [("web", 0), ("db", 1)] {
        let mut alone = world.listeners[1].clone();
        (alone.name, alone.only) = (name.into(), Some(ServiceIx(only)));
        alone.hosts = HostTable::default();
        world.listeners.edit(|all| all.push(alone));
    }
    let world = World::of(world);
    let on = |listener: Option<&str>, host: &str| Question {
        sni: Some("two.a".to_owned()),
        listener: listener.map(str::to_owned),
        ..question(host)
    };
    // Without one it is plaintext there; with one the gateway ends TLS, and nobody calls.
    let told = world.ask(&on(None, "one.a"));
    assert_eq!(&*told.listener, "apps");
    assert_eq!(told.refused, Some(Reason::CertificateMissing));
    let told = world.ask(&on(Some("db"), "db.a"));
    assert_eq!((told.refused, told.sni.as_deref()), (None, None));
    assert!(told.assumed.contains(&Assumed::SniUnread));
    let asked = on(Some("web"), "one.a");
    let error = explain(
        &world.snapshot,
        &world.shares,
        &world.fleet,
        &asked,
        beside(7),
    );
    let said = "listener `web` carries one http route and reads no TLS: ask without an SNI, or of another listener";
    assert_eq!(error.unwrap_err().to_string(), said);
}

/// A service with mirrors of these shares, to a cluster of its own.
fn mirrored(shares: &[f64], of: Service) -> Snapshot {
    let mirrors = shares.iter().map(|share| Mirror {
        route: "a/canary".into(),
        to: ClusterIx(1),
        host: "canary.a".into(),
        share: *share,
        timeout: Duration::from_secs(2),
        body_bytes_max: 1024,
        in_flight_max: 64,
        compare: false,
        position: None,
    });
    let mut snapshot = snapshot(vec![Service {
        mirrors: mirrors.collect(),
        ..allowing(vec![Rule::default()], of)
    }]);
    let two = [cluster(&[&["e0"]]), cluster(&[&["c0"], &["c1"]])];
    let refusing = two.map(|mut cluster| {
        let policy = Arc::make_mut(&mut cluster.policy);
        (policy.failover.too_few, policy.passive.keep_at_least) = (TooFew::Fail, 0);
        policy.passive.max_ejected = 1.0;
        Arc::new(cluster)
    });
    snapshot.clusters = refusing.into_iter().collect();
    snapshot
}

#[test]
fn each_mirror_is_told_with_what_it_makes_of_it_and_where_its_copy_goes() {
    let mut world = World::of(mirrored(&[1.0, 0.0], service("a/one", "one.a", 80)));
    let terms = Copying::Copy(Terms {
        within: Duration::from_secs(2),
        compared_bytes_max: None,
    });
    let [copied, skipped] = <[Copied; 2]>::try_from(world.ask(&question("one.a")).copies).unwrap();
    assert_eq!((copied.mirror, copied.copying), (0, Some(terms)));
    let to = copied.to.unwrap();
    assert_eq!((to.cluster, to.attempts.len()), (ClusterIx(1), 1));
    assert_eq!(to.attempts[0].level, 0);
    let not_drawn = Copying::Skip(Skipped::NotDrawn);
    assert_eq!((skipped.mirror, skipped.copying), (1, Some(not_drawn)));
    // What is told is what is decided for the draw.
    let told = |world: &World, asked: &Question| world.ask(asked).copies[0].copying;
    let headers = |all: &[(&str, &str)]| Question {
        headers: (all
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
        .collect(),
        ..question("one.a")
    };
    let long = headers(&[("content-length", "1025")]);
    assert_eq!(told(&world, &long), Some(Copying::Drop(Dropped::Body)));
    let socket = headers(&[
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
    ]);
    assert_eq!(told(&world, &socket), Some(Copying::Skip(Skipped::Upgrade)));
    let gateway = Question {
        from: Some(id(GATEWAY)),
        ..question("one.a")
    };
    assert_eq!(told(&world, &gateway), Some(Copying::Skip(Skipped::ByPeer)));
    // Denied, and nowhere healthy: of a request the copy is on its way before.
    world.fails("e0", Failure::Connect, 1);
    let refused = world.ask(&question("one.a"));
    assert_eq!(refused.refused, Some(Reason::NoHealthyEndpoint));
    assert_eq!(refused.copies[0].copying, Some(terms));
    world.fails("c0", Failure::Connect, 1);
    let moved = world
        .ask(&question("one.a"))
        .copies
        .swap_remove(0)
        .to
        .unwrap();
    assert_eq!(moved.attempts[0].level, 1);
    world.fails("c1", Failure::Connect, 1);
    let nowhere = Some(Copying::Drop(Dropped::Unreachable));
    assert_eq!(told(&world, &question("one.a")), nowhere);
    let mut denied = mirrored(&[1.0], service("a/one", "one.a", 80));
    denied.services[0].policy.allow.clear();
    let denied = World::of(denied).ask(&question("one.a"));
    assert_eq!(denied.copies[0].copying, None);
}

#[test]
fn a_connection_is_copied_once_it_is_carried_and_tried_at_each_endpoint_that_takes_bytes() {
    let tcp = Service {
        protocol: Protocol::Tcp,
        ..service("a/one", "one.a", 80)
    };
    let mut world = World::of(mirrored(&[1.0], tcp));
    let asked = Question {
        from: Some(id("spiffe://west.example/cart")),
        ..question("one.a")
    };
    let told = world.ask(&asked);
    assert!(matches!(told.copies[0].copying, Some(Copying::Copy(_))));
    let to = told.copies[0].to.as_ref().unwrap();
    assert_eq!(to.attempts.len(), 2);
    let mut own = Cluster::clone(&world.snapshot.clusters[1]);
    for endpoint in &mut own.endpoints {
        endpoint.tls = EndpointTls::Workload;
    }
    let mut speaking = world.snapshot.clone();
    speaking.clusters = vec![Arc::clone(&speaking.clusters[0]), Arc::new(own)].into();
    let nowhere = World::of(speaking).ask(&asked).copies[0].copying;
    assert_eq!(nowhere, Some(Copying::Drop(Dropped::Unreachable)));
    world.fails("e0", Failure::Connect, 1);
    assert_eq!(world.ask(&asked).copies[0].copying, None);
}

#[test]
fn sixteen_mirrors_are_told() {
    let world = World::of(mirrored(&[1.0; 17], service("a/one", "one.a", 80)));
    assert_eq!(world.ask(&question("one.a")).copies.len(), MIRRORS_MAX);
}

#[test]
fn a_level_says_why_it_has_its_share() {
    let open = allowing(vec![Rule::default()], service("a/one", "one.a", 80));
    let mut near = cluster(&[&["e0", "e1"], &["far"]]);
    {
        let policy = Arc::make_mut(&mut near.policy);
        policy.failover.hold = Duration::from_secs(10);
        policy.passive.eject = Duration::from_secs(30);
    }
    let mut one = snapshot(vec![open]);
    one.clusters[0] = near.into();
    let mut world = World::of(one);
    let level = |world: &World| {
        let told = world.ask(&question("one.a")).to.unwrap();
        (told.levels[0].clone(), told.levels[0].view.unwrap())
    };
    world.fails("e0", Failure::Connect, 5);
    let (seen, view) = level(&world);
    assert_eq!((seen.healthy(), seen.total(), seen.share), (1, 2, 1.0));
    let held = LevelMotion::Holding { since: at(5) };
    assert_eq!((view.healthy, view.damped, view.motion), (0.5, 1.0, held));
    assert_eq!(view.until, Some(at(15)));
    let first = seen.candidates[0];
    let ejection = first.view.unwrap().ejection.unwrap();
    assert_eq!(first.status, EndpointStatus::Ejected);
    assert_eq!(
        (ejection.until, ejection.cause),
        (at(35), EjectCause::Unreachable)
    );
    // The hold is over: 0.5 / 0.7.
    world.shares = world.fleet.shares(at(15));
    let (seen, view) = level(&world);
    assert!((seen.share - 5.0 / 7.0).abs() < 1e-9, "{seen:?}");
    assert_eq!(view.motion, LevelMotion::Settled);
    // Tried by one request after 30 s.
    world.shares = world.fleet.shares(at(35));
    assert_eq!(
        world.ask(&question("one.a")).to.unwrap().attempts[0].why,
        Why::Trial
    );
    world.fleet.observe_successes(
        &crate::snapshot::EndpointKey("e0".into()),
        1,
        Took::default(),
        at(35),
    );
    // Well again: for a minute nothing comes back, then it takes its ramp.
    world.shares = world.fleet.shares(at(35));
    let view = level(&world).1;
    assert_eq!(view.motion, LevelMotion::Waiting { since: at(35) });
    assert_eq!(view.until, Some(at(95)));
    world.shares = world.fleet.shares(at(96));
    let view = level(&world).1;
    assert_eq!(view.motion, LevelMotion::Ramping { since: at(95) });
    // 2/7 of a minute.
    let ramp = view.until.unwrap().since(at(95)).as_secs_f64();
    assert!((ramp - 120.0 / 7.0).abs() < 1e-6, "{ramp}");
}

#[test]
fn ten_thousand_endpoints_are_a_few_and_a_number() {
    let keys: Vec<String> = (0..10_000).map(|nth| format!("e{nth}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let open = allowing(vec![Rule::default()], service("a/one", "one.a", 80));
    let mut one = snapshot(vec![open]);
    one.clusters[0] = cluster(&[&keys]).into();
    let mut world = World::of(one);
    world.fails("e7777", Failure::Connect, 1);
    let told = world.ask(&question("one.a"));
    let to = told.to.unwrap();
    let level = &to.levels[0];
    assert_eq!(level.candidates.len(), CANDIDATES_MAX);
    assert_eq!(level.left_out, 10_000 - CANDIDATES_MAX);
    assert_eq!(
        level.candidates[0].endpoint,
        EndpointIx(7777),
        "the bad one first"
    );
    assert_eq!((level.healthy(), level.total()), (9_999, 10_000));
    assert!(to.attempts.len() <= crate::plan::ATTEMPTS_MAX);
    assert_eq!(to.attempts[0].why, Why::Local);
    // Levels as well.
    let one_each: Vec<&[&str]> = keys.chunks(1).take(100).collect();
    let mut many = world.snapshot.clone();
    many.clusters[0] = cluster(&one_each).into();
    let to = World::of(many).ask(&question("one.a")).to.unwrap();
    assert_eq!((to.levels.len(), to.levels_left_out), (LEVELS_MAX, 68));
}

#[test]
fn a_policy_that_is_audited_says_what_it_would_have_done() {
    let mut one = service("a/one", "one.a", 80);
    one.policy.mode = PolicyMode::Audit;
    let world = World::of(snapshot(vec![one]));
    let told = world.ask(&question("one.a"));
    assert_eq!(told.refused, None);
    let verdict = told.judged.unwrap().verdict;
    let is_audit = matches!(
        verdict,
        Verdict::Audit {
            reason: Reason::NotAllowed,
            ..
        }
    );
    assert!(is_audit, "{verdict:?}");
    assert!(told.to.is_some());
}
