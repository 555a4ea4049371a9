use proptest::prelude::*;

use super::*;
use crate::fixture::{id, ids, names, nets, peer, service, snapshot};
use crate::names::HostPattern;
use crate::snapshot::{Inbound, PathPattern, Protocol, SniPattern};

const GATEWAY: &str = "spiffe://west.example/zeugma/gateway";
const CART: &str = "spiffe://west.example/ns/shop/sa/cart";

fn world(allow: Vec<Rule>, deny: Vec<Rule>) -> Snapshot {
    let mut world = snapshot(vec![service("a/one", "one.a", 80)]);
    world.services[0].policy = Policy {
        allow,
        deny,
        ..Policy::default()
    };
    world
}

/// Both reasons of a policy are told and let in; those that are no part of it refuse.
#[test]
fn a_policy_that_is_audited_lets_in_whom_it_would_deny() {
    let cart = id(CART);
    let called = mesh(Evidence::Verified(&cart));
    let mut world = world(vec![from("spiffe://east.example/*")], vec![]);
    world.services[0].export = Export::AllPeers;
    world.peers = vec![peer("west", "west.example", GATEWAY)].into();
    let refused = ask(&world, &called);
    world.services[0].policy.mode = PolicyMode::Audit;
    let (reason, rule, nearest) = (Reason::NotAllowed, None, Some(0));
    assert_eq!(
        refused,
        Verdict::Deny {
            reason,
            rule,
            nearest
        }
    );
    let audited = Verdict::Audit {
        reason,
        rule,
        nearest,
    };
    assert_eq!(ask(&world, &called), audited);
    world.services[0].policy.deny = vec![any()];
    let (reason, rule, nearest) = (Reason::Denied, Some(0), None);
    let audited = Verdict::Audit {
        reason,
        rule,
        nearest,
    };
    assert_eq!(ask(&world, &called), audited);
    world.services[0].export = Export::Nobody;
    assert!(matches!(
        ask(&world, &called),
        Verdict::Deny {
            reason: Reason::NotExported,
            ..
        }
    ));
    world.services[0].export = Export::AllPeers;
    world.listeners[0].sources = nets(&["10.0.0.0/8"]);
    assert!(matches!(
        ask(&world, &called),
        Verdict::Deny {
            reason: Reason::SourceRefused,
            ..
        }
    ));
}

fn from(pattern: &str) -> Rule {
    Rule {
        from: ids(&[pattern]),
        ..Rule::default()
    }
}

fn any() -> Rule {
    Rule::default()
}

struct Ask<'a> {
    listener: &'a str,
    source: &'a str,
    evidence: Evidence<'a>,
    sni: Option<&'a str>,
    method: Option<&'a str>,
    path: Option<&'a str>,
}

fn mesh(evidence: Evidence<'_>) -> Ask<'_> {
    Ask {
        listener: "mesh",
        source: "203.0.113.7",
        evidence,
        sni: Some("one.a"),
        method: Some("GET"),
        path: Some("/v1/x"),
    }
}

fn apps<'a>() -> Ask<'a> {
    Ask {
        listener: "apps",
        source: "10.1.2.3",
        evidence: Evidence::Network,
        sni: None,
        method: Some("GET"),
        path: Some("/v1/x"),
    }
}

fn ask(world: &Snapshot, ask: &Ask<'_>) -> Verdict {
    let asking = Asking {
        listener: world.listener(ask.listener).unwrap(),
        source: ask.source.parse().unwrap(),
        evidence: ask.evidence,
        sni: ask.sni,
        method: ask.method,
        path: ask.path,
        headers: None,
    };
    authorize(world, ServiceIx(0), &asking)
}

fn reason(verdict: Verdict) -> Option<Reason> {
    match verdict {
        Verdict::Allow { .. } | Verdict::Audit { .. } => None,
        Verdict::Deny { reason, .. } => Some(reason),
    }
}

#[test]
fn without_a_rule_nothing_is_allowed_and_deny_wins_over_allow() {
    let cart = id(CART);
    let caller = mesh(Evidence::Verified(&cart));
    assert_eq!(
        ask(&world(vec![], vec![]), &caller),
        Verdict::Deny {
            reason: Reason::NotAllowed,
            rule: None,
            nearest: None
        }
    );
    assert_eq!(
        ask(&world(vec![any()], vec![]), &caller),
        Verdict::Allow { rule: 0 }
    );
    assert_eq!(
        ask(
            &world(vec![any()], vec![from("spiffe://x/y"), from(CART)]),
            &caller
        ),
        Verdict::Deny {
            reason: Reason::Denied,
            rule: Some(1),
            nearest: None
        }
    );
}

#[test]
fn the_nearest_rule_failed_on_the_fewest_fields() {
    let cart = id(CART);
    let two_off = Rule {
        methods: names(&["POST"]),
        ..from("spiffe://west.example/ns/shop/sa/other")
    };
    let one_off = Rule {
        methods: names(&["POST"]),
        ..from(CART)
    };
    assert_eq!(
        ask(
            &world(vec![two_off, one_off.clone(), one_off], vec![]),
            &mesh(Evidence::Verified(&cart))
        ),
        Verdict::Deny {
            reason: Reason::NotAllowed,
            rule: None,
            nearest: Some(1)
        }
    );
}

#[test]
fn every_field_of_a_rule_must_match() {
    let rule = Rule {
        listeners: names(&["apps"]),
        sources: nets(&["10.0.0.0/8"]),
        methods: names(&["GET", "POST"]),
        paths: vec![PathPattern::Below("/v1/".into())],
        ..Rule::default()
    };
    let world = world(vec![rule], vec![]);
    let gives = |ask_for: Ask<'_>| reason(ask(&world, &ask_for)).is_none();
    assert!(gives(apps()));
    assert!(gives(Ask {
        source: "::ffff:10.9.9.9",
        ..apps()
    }));
    assert!(!gives(Ask {
        source: "11.0.0.1",
        ..apps()
    }));
    assert!(!gives(Ask {
        method: Some("get"),
        ..apps()
    }));
    assert!(!gives(Ask {
        method: None,
        ..apps()
    }));
    assert!(!gives(Ask {
        path: Some("/v1/../admin"),
        ..apps()
    }));
    assert!(!gives(Ask {
        path: None,
        ..apps()
    }));
    let cart = id(CART);
    assert!(!gives(Ask {
        source: "10.1.2.3",
        ..mesh(Evidence::Verified(&cart))
    }));
}

fn called(names: &[&str]) -> Rule {
    let pattern = |name: &&str| SniPattern::Host(HostPattern::parse(name).unwrap());
    Rule {
        sni: names.iter().map(pattern).collect(),
        ..Rule::default()
    }
}

#[test]
fn a_rule_by_server_name_is_for_tls_that_named_it() {
    let cart = id(CART);
    let asks = |world: &Snapshot, sni| {
        let evidence = Evidence::Verified(&cart);
        let caller = Ask {
            sni,
            ..mesh(evidence)
        };
        reason(ask(world, &caller))
    };
    let allowed = world(vec![called(&["one.a", "*.two.a"])], vec![]);
    let denied = world(vec![any()], vec![called(&["one.a", "*.two.a"])]);
    for sni in ["one.a", "One.A.", "outbound_.80_._.one.a", "x.y.two.a"] {
        assert_eq!(asks(&allowed, Some(sni)), None, "{sni}");
        assert_eq!(asks(&denied, Some(sni)), Some(Reason::Denied), "{sni}");
    }
    for sni in [None, Some("two.a"), Some("xone.a")] {
        assert_eq!(asks(&allowed, sni), Some(Reason::NotAllowed), "{sni:?}");
        assert_eq!(asks(&denied, sni), None, "{sni:?}");
    }
    // As of an unnamed one, the rule that comes nearest is told.
    let verdict = ask(&allowed, &apps());
    let Verdict::Deny { nearest, .. } = verdict else {
        panic!("{verdict:?}");
    };
    let fields = mismatches(
        &allowed,
        ServiceIx(0),
        nearest.unwrap(),
        &Asking {
            listener: allowed.listener("apps").unwrap(),
            source: "10.1.2.3".parse().unwrap(),
            evidence: Evidence::Network,
            sni: None,
            method: None,
            path: None,
            headers: None,
        },
    );
    assert_eq!(fields, [RuleField::Sni]);
}

#[test]
fn a_session_is_let_in_and_denied_by_the_name_it_asked_for() {
    let cart = id(CART);
    let of = |world: &Snapshot, sni| {
        let asking = Asking {
            listener: world.listener("mesh").unwrap(),
            source: "203.0.113.7".parse().unwrap(),
            evidence: Evidence::Verified(&cart),
            sni: Some(sni),
            method: None,
            path: None,
            headers: None,
        };
        reason(authorize_session(world, ServiceIx(0), &asking))
    };
    let gets = |rule: Rule| Rule {
        methods: names(&["GET"]),
        ..rule
    };
    let allowed = world(vec![gets(called(&["one.a"]))], vec![]);
    assert_eq!(of(&allowed, "one.a"), None);
    assert_eq!(of(&allowed, "two.a"), Some(Reason::NotAllowed));
    let denied = world(vec![any()], vec![called(&["one.a"])]);
    assert_eq!(of(&denied, "one.a"), Some(Reason::Denied));
    assert_eq!(of(&denied, "two.a"), None);
    // It denies some requests, and not the session.
    let some = world(vec![any()], vec![gets(called(&["one.a"]))]);
    assert_eq!(of(&some, "one.a"), None);
}

#[test]
fn a_deny_rule_is_not_slipped_past_by_spelling() {
    let deny = Rule {
        methods: names(&["DELETE"]),
        paths: vec![PathPattern::Below("/admin/".into())],
        ..Rule::default()
    };
    let world = world(vec![any()], vec![deny]);
    for path in [
        "/admin/x",
        "//admin/x",
        "/admin",
        "/admin/",
        "/%61dmin/x",
        "/v1/../admin/x",
        "/v1/%2e%2e/admin/x",
        "/v1%2f..%2fadmin/x",
        "/admin;a=b/x",
        "\\admin\\x",
        "/admin%252fx",
    ] {
        for method in ["DELETE", "delete"] {
            let caller = Ask {
                method: Some(method),
                path: Some(path),
                ..apps()
            };
            assert_eq!(
                reason(ask(&world, &caller)),
                Some(Reason::Denied),
                "{method} {path}"
            );
        }
    }
    let caller = Ask {
        method: Some("DELETE"),
        ..apps()
    };
    assert_eq!(reason(ask(&world, &caller)), None);
}

#[test]
fn odd_paths_pass_where_no_rule_asks_for_paths() {
    let caller = Ask {
        path: Some("/api/projects/a%2Fb"),
        ..apps()
    };
    assert_eq!(reason(ask(&world(vec![any()], vec![]), &caller)), None);
}

#[test]
fn a_listeners_sources_come_first() {
    let mut world = world(vec![any()], vec![any()]);
    world.listeners[1].sources = nets(&["10.0.0.0/8"]);
    assert_eq!(reason(ask(&world, &apps())), Some(Reason::Denied));
    let outside = Ask {
        source: "192.0.2.1",
        ..apps()
    };
    assert_eq!(reason(ask(&world, &outside)), Some(Reason::SourceRefused));
}

#[test]
fn an_id_handed_on_matches_allow_with_via_alone_and_deny_always() {
    let (gateway, cart) = (id(GATEWAY), id(CART));
    let handed_on = |world: &Snapshot| {
        let evidence = evidence(world, "203.0.113.7".parse().unwrap(), &gateway, Some(&cart));
        assert!(matches!(evidence, Evidence::Asserted { .. }));
        reason(ask(world, &mesh(evidence)))
    };
    let via = |rule: Rule| Rule {
        via: vec![PeerIx(0)],
        ..rule
    };
    assert_eq!(
        handed_on(&world(vec![from(CART)], vec![])),
        Some(Reason::NotAllowed)
    );
    assert_eq!(handed_on(&world(vec![via(from(CART))], vec![])), None);
    assert_eq!(handed_on(&world(vec![via(any())], vec![])), None);
    assert_eq!(handed_on(&world(vec![from(GATEWAY)], vec![])), None);
    assert_eq!(
        handed_on(&world(vec![via(from(GATEWAY))], vec![])),
        Some(Reason::NotAllowed)
    );
    for deny in [from(CART), via(from(CART)), via(any()), from(GATEWAY)] {
        assert_eq!(
            handed_on(&world(vec![any()], vec![deny])),
            Some(Reason::Denied)
        );
    }
    assert_eq!(
        handed_on(&world(vec![any()], vec![via(from(GATEWAY))])),
        None
    );
    // The same caller with a certificate of its own has come via nobody.
    let direct = ask(
        &world(vec![via(from(CART))], vec![]),
        &mesh(Evidence::Verified(&cart)),
    );
    assert_eq!(reason(direct), Some(Reason::NotAllowed));
}

#[test]
fn reports_are_for_the_gateways_of_peers_and_not_for_all_of_their_trust_domain() {
    let mut world = snapshot(vec![]);
    let here = "192.0.2.1".parse().unwrap();
    let of = |world: &Snapshot, text: &str| gateways_of(world, here, &id(text));
    let gateway = "spiffe://west.example/zeugma/gateway";
    assert_eq!(of(&world, gateway), [PeerIx(0)]);
    assert_eq!(of(&world, "spiffe://west.example/ns/shop/sa/cart"), []);
    assert_eq!(of(&world, "spiffe://north.example/zeugma/gateway"), []);
    // Two peers that share an ID and are not told apart by where they call from.
    let twin = world.peers[0].clone();
    world.peers.edit(|all| all.push(twin));
    assert_eq!(of(&world, gateway), [PeerIx(0), PeerIx(1)]);
    world.peers[1].sources = nets(&["198.51.100.0/24"]);
    assert_eq!(of(&world, gateway), [PeerIx(0)]);
}

#[test]
fn only_a_peers_gateway_may_hand_on_and_only_what_the_peer_attests() {
    let mut world = world(vec![], vec![]);
    let source = "203.0.113.7".parse().unwrap();
    let (gateway, cart) = (id(GATEWAY), id(CART));
    let stranger = id("spiffe://north.example/ns/a/sa/b");
    let of = |world: &Snapshot, by, claimed| match evidence(world, source, by, claimed) {
        Evidence::Asserted { peer, .. } => Some(peer),
        Evidence::Verified(_) | Evidence::Network => None,
    };
    assert_eq!(of(&world, &gateway, Some(&cart)), Some(PeerIx(0)));
    assert_eq!(of(&world, &gateway, None), None);
    assert_eq!(of(&world, &cart, Some(&cart)), None);
    assert_eq!(of(&world, &gateway, Some(&stranger)), None);
    world.peers[0].sources = nets(&["198.51.100.0/24"]);
    assert_eq!(of(&world, &gateway, Some(&cart)), None);
    world.peers[0].sources.clear();
    world.peers[0].attests.clear();
    assert_eq!(of(&world, &gateway, Some(&cart)), None);
    // An assertion that was good when it was taken counts no more.
    world.services[0].policy.allow = vec![Rule {
        via: vec![PeerIx(0)],
        ..any()
    }];
    let earlier = Evidence::Asserted {
        by: &gateway,
        peer: PeerIx(0),
        id: &cart,
    };
    assert_eq!(
        reason(ask(&world, &mesh(earlier))),
        Some(Reason::NotAllowed)
    );
}

#[test]
fn a_mesh_listener_serves_a_service_to_the_peers_it_is_exported_to() {
    let cart = id(CART);
    let stranger = id("spiffe://north.example/a");
    let mut world = world(vec![any()], vec![]);
    let south = peer("south", "south.example", "spiffe://south.example/gw");
    world.peers.edit(|all| all.push(south));
    for (export, caller, allowed) in [
        (Export::Nobody, &cart, false),
        (Export::To(vec![PeerIx(0)]), &cart, true),
        (Export::To(vec![PeerIx(1)]), &cart, false),
        (Export::AllPeers, &cart, true),
        (Export::AllPeers, &stranger, false),
    ] {
        world.services[0].export = export.clone();
        let verdict = ask(&world, &mesh(Evidence::Verified(caller)));
        let expected = (!allowed).then_some(Reason::NotExported);
        assert_eq!(reason(verdict), expected, "{export:?}");
    }
    assert_eq!(reason(ask(&world, &apps())), None);
}

#[test]
fn relayed_tls_is_told_by_its_source() {
    let mut world = world(vec![any()], vec![]);
    world.services[0].inbound = Inbound::Passthrough;
    world.services[0].protocol = Protocol::Tcp;
    let mut of = |export: Export, sources: &[&str]| {
        world.services[0].export = export;
        world.peers[0].sources = nets(sources);
        reason(ask(&world, &mesh(Evidence::Network)))
    };
    let west = || Export::To(vec![PeerIx(0)]);
    assert_eq!(of(west(), &["203.0.113.7/32"]), None);
    assert_eq!(of(west(), &["203.0.113.8/32"]), Some(Reason::NotExported));
    assert_eq!(of(west(), &[]), Some(Reason::NotExported));
    assert_eq!(of(Export::AllPeers, &[]), None);
    assert_eq!(
        of(Export::AllPeers, &["203.0.113.8/32"]),
        Some(Reason::NotExported)
    );
}

#[test]
fn peers_that_share_a_trust_domain_are_told_apart_by_id_then_by_source() {
    let mut world = world(vec![], vec![]);
    world.peers = vec![
        peer("one", "shared.example", "spiffe://shared.example/gw/one"),
        peer("two", "shared.example", "spiffe://shared.example/gw/two"),
    ]
    .into();
    world.peers[1].sources = nets(&["192.0.2.0/24"]);
    let of = |source: &str, caller: &str| peer_of(&world, source.parse().unwrap(), &id(caller));
    assert_eq!(
        of("192.0.2.1", "spiffe://shared.example/gw/one"),
        Some(PeerIx(0))
    );
    assert_eq!(
        of("192.0.2.1", "spiffe://shared.example/gw/two"),
        Some(PeerIx(1))
    );
    assert_eq!(
        of("192.0.2.1", "spiffe://shared.example/sa/x"),
        Some(PeerIx(1))
    );
    assert_eq!(
        of("::ffff:192.0.2.1", "spiffe://shared.example/sa/x"),
        Some(PeerIx(1))
    );
    assert_eq!(
        of("198.51.100.1", "spiffe://shared.example/sa/x"),
        Some(PeerIx(0))
    );
    assert_eq!(of("198.51.100.1", "spiffe://other.example/sa/x"), None);
}

// The oracle: the sentences of the design, one by one, over texts.

const IDS: [&str; 4] = [
    GATEWAY,
    CART,
    "spiffe://west.example/ns/shop/sa/web",
    "spiffe://x/y",
];
const PATTERNS: [&str; 4] = [
    GATEWAY,
    CART,
    "spiffe://west.example/ns/shop/*",
    "spiffe://x/*",
];

fn oracle_id(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => text.starts_with(prefix) && text != prefix,
        None => pattern == text,
    }
}

#[derive(Debug, Clone)]
struct Plan {
    from: Vec<usize>,
    via: bool,
    listeners: Vec<&'static str>,
    sources: Vec<&'static str>,
    sni: Vec<&'static str>,
    methods: Vec<&'static str>,
    below: bool,
}

impl Plan {
    fn rule(&self) -> Rule {
        Rule {
            from: self
                .from
                .iter()
                .flat_map(|at| ids(&[PATTERNS[*at]]))
                .collect(),
            via: if self.via { vec![PeerIx(0)] } else { vec![] },
            listeners: names(&self.listeners),
            sources: nets(&self.sources),
            sni: (self.sni.iter())
                .map(|name| SniPattern::Host(HostPattern::parse(name).unwrap()))
                .collect(),
            methods: names(&self.methods),
            paths: if self.below {
                vec![PathPattern::Below("/v1/".into())]
            } else {
                vec![]
            },
            headers: Vec::new(),
            position: None,
        }
    }

    fn holds(&self, caller: &Ask<'_>, seen_as: &[&str], asserted: bool) -> bool {
        let mut holds = !self.via || asserted;
        if !self.from.is_empty() {
            let patterns = self.from.iter().map(|at| PATTERNS[*at]);
            holds &= patterns
                .into_iter()
                .any(|p| seen_as.iter().any(|text| oracle_id(p, text)));
        }
        if !self.listeners.is_empty() {
            holds &= self.listeners.contains(&caller.listener);
        }
        if !self.sources.is_empty() {
            holds &= self.sources.contains(&"10.0.0.0/8") && caller.source.starts_with("10.");
        }
        if !self.sni.is_empty() {
            holds &= caller.sni.is_some_and(|sni| {
                let mut sni = sni.to_ascii_lowercase();
                sni.truncate(sni.trim_end_matches('.').len());
                let host = sni.strip_prefix("outbound_.80_._.").unwrap_or(&sni);
                self.sni.iter().any(|of| match of.strip_prefix('*') {
                    Some(end) => host.ends_with(end),
                    None => host == *of,
                })
            });
        }
        if !self.methods.is_empty() {
            holds &= caller
                .method
                .is_some_and(|method| self.methods.contains(&method));
        }
        if self.below {
            holds &= caller.path.is_some_and(|path| path.starts_with("/v1/"));
        }
        holds
    }
}

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let plan = (
        prop::collection::vec(0usize..4, 0..3),
        prop::bool::weighted(0.3),
        prop::sample::subsequence(vec!["mesh", "apps"], 0..=1),
        prop::sample::subsequence(vec!["10.0.0.0/8", "192.0.2.0/24"], 0..=2),
        prop::sample::subsequence(vec!["one.a", "two.a", "*.a", "*.one.a"], 0..=2),
        prop::sample::subsequence(vec!["GET", "POST"], 0..=1),
        prop::bool::weighted(0.3),
    )
        .prop_map(
            |(from, via, listeners, sources, sni, methods, below)| Plan {
                from,
                via,
                listeners,
                sources,
                sni,
                methods,
                below,
            },
        );
    prop::collection::vec(plan, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn authorize_answers_as_the_sentences_of_the_design_do(
        allow in plans(),
        deny in plans(),
        (by, claimed, kind) in (0usize..4, 0usize..4, 0u8..3),
        listener in prop::sample::select(vec!["mesh", "apps"]),
        source in prop::sample::select(vec!["10.1.1.1", "203.0.113.7"]),
        sni in prop::sample::select(vec![
            None, Some("one.a"), Some("ONE.a."), Some("outbound_.80_._.one.a"), Some("b.one.a"), Some("a"),
        ]),
        method in prop::sample::select(vec![None, Some("GET"), Some("POST"), Some("PUT")]),
        path in prop::sample::select(vec![None, Some("/v1/x"), Some("/v2/x")]),
    ) {
        let rules = |plans: &[Plan]| plans.iter().map(Plan::rule).collect::<Vec<_>>();
        let world = world(rules(&allow), rules(&deny));
        let (by_id, claimed_id) = (id(IDS[by]), id(IDS[claimed]));
        let source_ip = source.parse().unwrap();
        let shown = match kind {
            0 => Evidence::Network,
            1 => Evidence::Verified(&by_id),
            _ => evidence(&world, source_ip, &by_id, Some(&claimed_id)),
        };
        let caller = Ask { listener, source, evidence: shown, sni, method, path };

        let asserted = kind == 2 && IDS[by] == GATEWAY && IDS[claimed].contains("west.example");
        let own: &[&str] = if kind == 0 { &[] } else { &[IDS[by]] };
        let handed_on: &[&str] = if asserted { &[IDS[claimed]] } else { &[] };
        let both = [own, handed_on].concat();
        // Exported to every peer; a source alone is enough, for west may call from anywhere.
        let exported = listener == "apps" || kind == 0 || IDS[by].contains("west.example");
        let denied = deny.iter().any(|rule| {
            rule.holds(&caller, if rule.via { handed_on } else { &both }, asserted)
        });
        let allowed = allow.iter().any(|rule| {
            rule.holds(&caller, if rule.via { handed_on } else { own }, asserted)
        });
        let expected = match (exported, denied, allowed) {
            (false, _, _) => Some(Reason::NotExported),
            (true, true, _) => Some(Reason::Denied),
            (true, false, false) => Some(Reason::NotAllowed),
            (true, false, true) => None,
        };
        prop_assert_eq!(reason(ask(&world, &caller)), expected);
    }
}
