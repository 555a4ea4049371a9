//! The rules of the server, each by its number in the specification.

use super::*;
use crate::catalog::{Store, Traits};

mod simulated;

pub(super) const LIMITS: Limits = Limits {
    names: 100,
    other_types: 4,
    name_bytes: 64,
    stranger_bytes: 2000,
};

/// A node's resources, as `kind name content`.
pub(super) struct World {
    store: Store,
    before: Option<Catalog>,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            store: Store::default(),
            before: None,
        }
    }

    /// `c`lusters with endpoints, `p`lain clusters, `e`ndpoints, `l`isteners, `d`emanded listeners and
    /// `r`outes.
    pub(super) fn catalog<'a>(
        &mut self,
        all: impl IntoIterator<Item = (char, &'a str, &'a str)>,
    ) -> Arc<Catalog> {
        let mut lists: [Vec<Arc<Resource>>; 4] = Default::default();
        for (letter, name, content) in all {
            let kind = match letter {
                'c' | 'p' => Cluster,
                'e' => Endpoints,
                'l' | 'd' => Listener,
                'r' => Route,
                _ => panic!("{letter}"),
            };
            let traits = Traits {
                has_endpoints: letter == 'c',
                is_on_demand: letter == 'd',
            };
            let made = self
                .store
                .put(kind, Resource::new(kind, name, content.as_bytes(), traits));
            lists[kind as usize].push(made);
        }
        let catalog = Catalog::new(lists, self.before.as_ref());
        self.before = Some(catalog.clone());
        Arc::new(catalog)
    }
}

/// What a session said.
#[derive(Debug, PartialEq, Eq, Clone)]
struct Said {
    kind: Kind,
    nonce: String,
    names: Vec<String>,
    removed: Vec<String>,
}

struct Stream {
    session: Session,
    now: Time,
}

impl Stream {
    fn new(protocol: Protocol, catalog: &Arc<Catalog>) -> Self {
        Self {
            session: Session::new(protocol, None, LIMITS, Arc::clone(catalog)),
            now: Time::ZERO,
        }
    }

    fn actions(&mut self, message: Message<'_>) -> Vec<Action> {
        let actions = self.session.handle(message, self.now);
        self.session.check_invariants().unwrap();
        actions
    }

    fn said(&mut self, message: Message<'_>) -> Vec<Said> {
        let said = |action| match action {
            Action::Send(response) => Some(Said {
                kind: Kind::of_url(&response.type_url)?,
                nonce: response.nonce.to_string(),
                names: (response.resources.iter())
                    .map(|one| one.name().to_string())
                    .collect(),
                removed: response.removed.iter().map(ToString::to_string).collect(),
            }),
            Action::End(violation) => panic!("{violation}"),
            Action::Accepted { .. } | Action::Rejected { .. } | Action::WakeAt(_) => None,
        };
        self.actions(message).into_iter().filter_map(said).collect()
    }

    fn publish(&mut self, catalog: &Arc<Catalog>) -> Vec<Said> {
        self.said(Message::Published(Arc::clone(catalog)))
    }

    /// A state-of-the-world request.
    fn whole(&mut self, kind: Kind, version: &str, nonce: &str, names: &[&str]) -> Vec<Said> {
        self.said(Message::Asked(Request {
            type_url: kind.type_url(),
            nonce: nonce.to_owned(),
            error: None,
            asks: Asks::Whole {
                version: version.to_owned(),
                names: cows(names),
            },
        }))
    }

    /// An incremental request.
    fn delta(&mut self, kind: Kind, nonce: &str, more: &[&str], less: &[&str]) -> Vec<Said> {
        self.said(Message::Asked(changes(kind, nonce, more, less, &[])))
    }

    fn delta_again(&mut self, kind: Kind, more: &[&str], known: &[(&str, Version)]) -> Vec<Said> {
        self.said(Message::Asked(changes(kind, "", more, &[], known)))
    }
}

fn cows(names: &[&str]) -> Vec<Cow<'static, str>> {
    names.iter().map(|name| (*name).to_owned().into()).collect()
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn changes(
    kind: Kind,
    nonce: &str,
    more: &[&str],
    less: &[&str],
    known: &[(&str, Version)],
) -> Request<'static> {
    let known = known.iter();
    Request {
        type_url: kind.type_url(),
        nonce: nonce.to_owned(),
        error: None,
        asks: Asks::Changes {
            subscribe: cows(more),
            unsubscribe: cows(less),
            known: known
                .map(|(name, version)| ((*name).to_owned().into(), version.to_string().into()))
                .collect(),
        },
    }
}

/// The only thing that was said: names and removals.
#[track_caller]
fn one(said: &[Said]) -> (Vec<&str>, Vec<&str>) {
    let [one] = said else {
        panic!("{said:?}");
    };
    (
        one.names.iter().map(String::as_str).collect(),
        one.removed.iter().map(String::as_str).collect(),
    )
}

const NOTHING: [&str; 0] = [];

use Kind::{Cluster, Endpoints, Listener, Routes as Route};
use Protocol::{Delta, Sotw};

#[test]
fn p26_the_first_wildcard_is_answered_even_when_there_is_nothing() {
    let nothing = World::new().catalog([]);
    let mut stream = Stream::new(Delta, &nothing);
    for kind in [Cluster, Listener] {
        assert_eq!(one(&stream.delta(kind, "", &[], &[])), (vec![], vec![]));
    }
    let mut stream = Stream::new(Sotw, &nothing);
    for kind in [Cluster, Listener] {
        assert_eq!(one(&stream.whole(kind, "", "", &[])), (vec![], vec![]));
    }
    // Of types without a wildcard nothing was asked for.
    assert!(stream.whole(Route, "", "", &[]).is_empty());
}

#[test]
fn p15_the_four_steps_of_wildcards_in_both_protocols() {
    let mut world = World::new();
    let all = world.catalog([('p', "a", "1"), ('p', "b", "1")]);
    let again = world.catalog([('p', "a", "2"), ('p', "b", "2")]);
    let third = world.catalog([('p', "a", "3"), ('p', "b", "3")]);
    let fourth = world.catalog([('p', "a", "4"), ('p', "b", "4")]);

    let mut stream = Stream::new(Sotw, &all);
    assert_eq!(one(&stream.whole(Cluster, "", "", &[])).0, ["a", "b"]);
    // A is named besides: still all. What is newly named is told (P12).
    assert_eq!(
        one(&stream.whole(Cluster, "v", "1", &["*", "a"])).0,
        ["a", "b"]
    );
    assert!(stream.whole(Cluster, "v", "2", &["a"]).is_empty());
    assert_eq!(one(&stream.publish(&again)).0, ["a"]);
    assert!(stream.whole(Cluster, "v", "3", &["a"]).is_empty());
    // The same bytes as the first request: now they mean nothing at all.
    assert!(stream.whole(Cluster, "v", "3", &[]).is_empty());
    assert!(stream.publish(&third).is_empty());

    let mut stream = Stream::new(Delta, &all);
    assert_eq!(one(&stream.delta(Cluster, "", &[], &[])).0, ["a", "b"]);
    assert_eq!(one(&stream.delta(Cluster, "1", &["a"], &[])).0, ["a"]);
    assert!(stream.delta(Cluster, "2", &[], &["*"]).is_empty());
    assert_eq!(one(&stream.publish(&third)).0, ["a"]);
    assert!(stream.delta(Cluster, "3", &[], &["a"]).is_empty());
    assert!(stream.delta(Cluster, "", &[], &[]).is_empty());
    assert!(stream.publish(&fourth).is_empty());
}

#[test]
fn p15_a_wildcard_that_is_said_holds_for_every_type() {
    let all = World::new().catalog([('r', "a", "1"), ('r', "b", "1")]);
    let mut stream = Stream::new(Delta, &all);
    assert_eq!(one(&stream.delta(Route, "", &["*"], &[])).0, ["a", "b"]);
    let mut stream = Stream::new(Sotw, &all);
    assert_eq!(one(&stream.whole(Route, "", "", &["*"])).0, ["a", "b"]);
}

#[test]
fn what_is_on_demand_is_told_to_those_alone_who_name_it() {
    let mut world = World::new();
    let all = world.catalog([('l', "mesh", "1"), ('d', "orders:80", "1")]);
    for (protocol, names) in [(Sotw, vec!["mesh"]), (Delta, vec!["mesh"])] {
        let mut stream = Stream::new(protocol, &all);
        let said = match protocol {
            Sotw => stream.whole(Listener, "", "", &[]),
            Delta => stream.delta(Listener, "", &[], &[]),
        };
        assert_eq!(one(&said).0, names);
    }
    let mut stream = Stream::new(Sotw, &all);
    let said = stream.whole(Listener, "", "", &["orders:80"]);
    assert_eq!(one(&said).0, ["orders:80"]);
    let gone = world.catalog([('l', "mesh", "1")]);
    stream.whole(Listener, "v", "1", &["orders:80"]);
    // P13: an empty response deletes.
    assert_eq!(one(&stream.publish(&gone)).0, NOTHING);
}

#[test]
fn p9_a_state_of_the_world_request_that_crossed_a_response_is_ignored() {
    let mut world = World::new();
    let all = world.catalog([('e', "a", "1"), ('e', "b", "1")]);
    let mut stream = Stream::new(Sotw, &all);
    assert_eq!(one(&stream.whole(Endpoints, "", "", &["a"])).0, ["a"]);
    assert!(stream.whole(Endpoints, "", "", &["a", "b"]).is_empty());
    assert!(stream.whole(Endpoints, "v", "7", &["a", "b"]).is_empty());
    // With the right nonce the names count.
    assert_eq!(
        one(&stream.whole(Endpoints, "v", "1", &["a", "b"])).0,
        ["b"]
    );
}

#[test]
fn p10_the_latest_names_are_answered() {
    let mut world = World::new();
    let old = world.catalog([('p', "a", "1"), ('r', "a", "1"), ('r', "b", "1")]);
    let new = world.catalog([('p', "a", "2"), ('r', "a", "1"), ('r', "b", "1")]);
    for protocol in [Sotw, Delta] {
        let mut stream = Stream::new(protocol, &old);
        match protocol {
            Sotw => stream.whole(Cluster, "", "", &[]),
            Delta => stream.delta(Cluster, "", &[], &[]),
        };
        assert!(stream.publish(&new).is_empty());
        // Routes wait for clusters, and what is asked for meanwhile changes.
        let said = match protocol {
            Sotw => [
                stream.whole(Route, "", "", &["a"]),
                stream.whole(Route, "", "", &["b"]),
                stream.whole(Cluster, "v", "1", &[]),
            ],
            Delta => [
                stream.delta(Route, "", &["a"], &[]),
                stream.delta(Route, "", &["b"], &["a"]),
                stream.delta(Cluster, "1", &[], &[]),
            ],
        };
        assert!(said[0].is_empty() && said[1].is_empty(), "{said:?}");
        let told: Vec<_> = said[2].iter().map(|one| (one.kind, &*one.names)).collect();
        let (clusters, routes) = (owned(&["a"]), owned(&["b"]));
        assert_eq!(told, [(Cluster, &*clusters), (Route, &*routes)]);
    }
}

#[test]
fn p11_p36_what_has_the_same_bytes_is_not_sent() {
    let mut world = World::new();
    let all = world.catalog([('p', "a", "1"), ('r', "r", "1"), ('l', "l", "1")]);
    let again = world.catalog([('l', "l", "1"), ('p', "a", "1"), ('r', "r", "1")]);
    assert_eq!(all.version(), again.version());
    let mut stream = Stream::new(Delta, &all);
    stream.delta(Cluster, "", &[], &[]);
    assert!(stream.delta(Cluster, "1", &[], &[]).is_empty());
    assert!(stream.publish(&again).is_empty());
    let mut stream = Stream::new(Sotw, &all);
    stream.whole(Cluster, "", "", &[]);
    // No response is owed to a request that says nothing new.
    assert!(stream.whole(Cluster, "v", "1", &[]).is_empty());
    assert!(stream.whole(Cluster, "v", "1", &[]).is_empty());
    assert!(stream.publish(&again).is_empty());
    // And another that changes what it did not ask for.
    let other = world.catalog([('l', "l", "2"), ('p', "a", "1"), ('r', "r", "2")]);
    assert!(stream.publish(&other).is_empty());
}

#[test]
fn p12_what_is_named_anew_is_told_again() {
    let all = World::new().catalog([('e', "a", "1"), ('e', "b", "1")]);
    let mut stream = Stream::new(Sotw, &all);
    stream.whole(Endpoints, "", "", &["a", "b"]);
    assert!(stream.whole(Endpoints, "v", "1", &["b"]).is_empty());
    assert_eq!(
        one(&stream.whole(Endpoints, "v", "1", &["a", "b"])).0,
        ["a"]
    );
}

#[test]
fn p13_p14_absence_deletes_in_clusters_and_says_nothing_in_endpoints() {
    let mut world = World::new();
    let all = world.catalog([
        ('p', "a", "1"),
        ('p', "b", "1"),
        ('e', "a", "1"),
        ('e', "b", "1"),
    ]);
    let less = world.catalog([('p', "b", "1"), ('e', "b", "1")]);
    let mut stream = Stream::new(Sotw, &all);
    stream.whole(Cluster, "", "", &[]);
    stream.whole(Endpoints, "", "", &["a", "b"]);
    stream.whole(Cluster, "v", "1", &[]);
    stream.whole(Endpoints, "v", "2", &["a", "b"]);
    stream.now = stream.now + WAIT;
    let said = stream.publish(&less);
    assert_eq!(one(&said).0, ["b"]);
    assert_eq!(said[0].kind, Cluster);
    let nothing = world.catalog([]);
    stream.whole(Cluster, "v", "3", &[]);
    assert_eq!(one(&stream.publish(&nothing)).0, NOTHING);
}

#[test]
fn p19_p22_what_is_missing_is_said_at_once_and_told_when_it_comes() {
    let mut world = World::new();
    let nothing = world.catalog([]);
    let all = world.catalog([('r', "a", "1"), ('r', "b", "1")]);
    let mut stream = Stream::new(Delta, &nothing);
    assert_eq!(
        one(&stream.delta(Route, "", &["a"], &[])),
        (vec![], vec!["a"])
    );
    stream.delta(Route, "1", &[], &[]);
    assert_eq!(one(&stream.publish(&all)), (vec!["a"], vec![]));
    // Asked again: told again, though the client has it.
    assert_eq!(
        one(&stream.delta(Route, "2", &["a"], &[])),
        (vec!["a"], vec![])
    );
    let mut stream = Stream::new(Sotw, &nothing);
    assert!(stream.whole(Route, "", "", &["a"]).is_empty());
    assert_eq!(one(&stream.publish(&all)).0, ["a"]);
}

#[test]
fn p22_types_that_are_not_served_are_answered_as_missing() {
    let nothing = World::new().catalog([]);
    let mut stream = Stream::new(Delta, &nothing);
    let mut request = changes(Cluster, "", &["default"], &[], &[]);
    request.type_url = "type.googleapis.com/x.Secret".to_owned();
    let actions = stream.actions(Message::Asked(request));
    let sent = actions.iter().find_map(|action| match action {
        Action::Send(response) => Some(response),
        Action::Accepted { .. } | Action::Rejected { .. } | Action::WakeAt(_) | Action::End(_) => {
            None
        }
    });
    let removed: Vec<&str> = sent.unwrap().removed.iter().map(|name| &**name).collect();
    assert_eq!(removed, ["default"]);
}

#[test]
fn p45_a_name_of_an_authority_is_a_name_that_is_not_there() {
    let all = World::new().catalog([('r', "a", "1")]);
    let mut stream = Stream::new(Delta, &all);
    let name = "xdstp://acme.example/envoy.config.route.v3.RouteConfiguration/a";
    let said = stream.delta(Route, "", &[name, "a"], &[]);
    assert_eq!(one(&said), (vec!["a"], vec![name]));
}

#[test]
fn p46_one_cluster_is_told_to_who_names_it_and_is_no_wildcard() {
    let mut world = World::new();
    let all = world.catalog([('c', "a", "1"), ('c', "b", "1")]);
    let mut stream = Stream::new(Delta, &all);
    // What is not there is said at once, so that a request which waits for it fails at once.
    let said = stream.delta(Cluster, "", &["a", "none"], &[]);
    assert_eq!(one(&said), (vec!["a"], vec!["none"]));
    stream.delta(Cluster, "1", &[], &[]);
    // Beside a wildcard it is told again.
    assert_eq!(one(&stream.delta(Cluster, "", &["*"], &[])).0, ["a", "b"]);
}

#[test]
fn p20_p21_a_stale_nonce_acknowledges_nothing_and_its_names_count() {
    let mut world = World::new();
    let all = world.catalog([('r', "a", "1"), ('r', "b", "1")]);
    let mut stream = Stream::new(Delta, &all);
    assert_eq!(one(&stream.delta(Route, "", &["a"], &[])).0, ["a"]);
    assert!(stream.delta(Route, "77", &["b"], &[]).is_empty());
    assert!(stream.session.standing()[0].unacknowledged.is_some());
    // What it asked for comes once the first is acknowledged.
    assert_eq!(one(&stream.delta(Route, "1", &[], &[])).0, ["b"]);
    assert!(stream.session.standing()[0].accepted.is_some());
}

#[test]
fn p23_unsubscribing_what_a_wildcard_holds_is_answered() {
    let mut world = World::new();
    let all = world.catalog([('p', "a", "1"), ('p', "b", "1")]);
    let mut stream = Stream::new(Delta, &all);
    stream.delta(Cluster, "", &["*", "a", "ghost"], &[]);
    stream.delta(Cluster, "1", &[], &[]);
    assert_eq!(
        one(&stream.delta(Cluster, "", &[], &["a"])),
        (vec!["a"], vec![])
    );
    stream.delta(Cluster, "2", &[], &[]);
    let said = stream.delta(Cluster, "", &[], &["ghost"]);
    assert_eq!(one(&said), (vec![], vec!["ghost"]));
    let mut stream = Stream::new(Delta, &all);
    stream.delta(Cluster, "", &["a"], &[]);
    stream.delta(Cluster, "1", &[], &[]);
    assert!(
        stream
            .delta(Cluster, "", &[], &["b", "ghost", "a"])
            .is_empty()
    );
}

#[test]
fn p24_after_a_reconnect_only_differences_and_removals_are_sent() {
    let mut world = World::new();
    let old = world.catalog([
        ('p', "a", "1"),
        ('p', "b", "1"),
        ('p', "c", "1"),
        ('r', "r", "1"),
    ]);
    let new = world.catalog([
        ('p', "a", "1"),
        ('p', "b", "2"),
        ('p', "d", "1"),
        ('r', "r", "1"),
    ]);
    let version = |kind: Kind, name: &str| {
        let one = old.shelf(kind).get(name);
        (one.unwrap()).version()
    };
    let known: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .map(|name| (name, version(Cluster, name)))
        .collect();
    let mut stream = Stream::new(Delta, &new);
    assert_eq!(
        one(&stream.delta_again(Cluster, &[], &known)),
        (vec!["b", "d"], vec![])
    );
    stream.delta(Cluster, "1", &[], &[]);
    // What it has listeners and routes of may still lead to c.
    assert_eq!(one(&stream.delta(Listener, "", &[], &[])), (vec![], vec![]));
    assert!(stream.delta(Listener, "2", &[], &[]).is_empty());
    let said = stream.delta_again(Route, &["r"], &[("r", version(Route, "r"))]);
    assert_eq!((said[0].kind, one(&said)), (Cluster, (vec![], vec!["c"])));
    // Of one that has everything nothing is sent, but for the answer.
    let mut stream = Stream::new(Delta, &old);
    assert_eq!(
        one(&stream.delta_again(Cluster, &[], &known)),
        (vec![], vec![])
    );
}

#[test]
fn p24_a_client_that_asks_for_no_listeners_hears_of_removals_too() {
    let mut world = World::new();
    let old = world.catalog([('p', "a", "1")]);
    let a = old.shelf(Cluster).get("a").unwrap().version();
    let new = world.catalog([]);
    let mut stream = Stream::new(Delta, &new);
    let actions = stream.actions(Message::Asked(changes(Cluster, "", &[], &[], &[("a", a)])));
    let wake = actions.iter().find_map(|action| match action {
        Action::WakeAt(at) => Some(*at),
        Action::Send(_) | Action::Accepted { .. } | Action::Rejected { .. } | Action::End(_) => {
            None
        }
    });
    stream.delta(Cluster, "1", &[], &[]);
    stream.now = wake.unwrap();
    assert_eq!(one(&stream.said(Message::Woken)), (vec![], vec!["a"]));
}

#[test]
fn p3_p11_a_state_of_the_world_client_that_has_everything_is_told_nothing() {
    let mut world = World::new();
    let all = world.catalog([('p', "a", "1"), ('l', "l", "1")]);
    let version = all.shelf(Cluster).version().to_string();
    let mut stream = Stream::new(Sotw, &all);
    assert!(stream.whole(Cluster, &version, "", &[]).is_empty());
    let more = world.catalog([('p', "a", "1"), ('p', "b", "1"), ('l', "l", "1")]);
    assert_eq!(one(&stream.publish(&more)).0, ["a", "b"]);
    // P4: any other version is but a version.
    let mut stream = Stream::new(Sotw, &all);
    assert_eq!(one(&stream.whole(Cluster, "9000", "", &[])).0, ["a"]);
}

#[test]
fn p7_p8_a_rejection_is_known_by_its_error_alone_and_is_not_sent_again() {
    let mut world = World::new();
    let all = world.catalog([('p', "a", "1")]);
    for protocol in [Sotw, Delta] {
        let mut stream = Stream::new(protocol, &all);
        let request = |nonce: &str, error: Option<&str>| Request {
            type_url: Cluster.type_url(),
            nonce: nonce.to_owned(),
            error: error.map(str::to_owned),
            asks: match protocol {
                Sotw => Asks::default(),
                Delta => changes(Cluster, "", &[], &[], &[]).asks,
            },
        };
        stream.actions(Message::Asked(request("", None)));
        let refused = stream.actions(Message::Asked(request("1", Some("no such thing"))));
        assert!(
            matches!(&refused[..], [Action::Rejected { detail, .. }] if detail == "no such thing"),
            "{refused:?}"
        );
        let standing = &stream.session.standing()[0];
        assert_eq!(standing.rejected.as_ref().unwrap().1, "no such thing");
        assert_eq!((standing.accepted, standing.is_behind), (None, false));
        let other = world.catalog([('p', "a", "2")]);
        assert_eq!(one(&stream.publish(&other)).0, ["a"]);
        let taken = stream.actions(Message::Asked(request("2", None)));
        assert!(matches!(&taken[..], [Action::Accepted { .. }]), "{taken:?}");
        assert_eq!(stream.session.standing()[0].rejected, None);
    }
}

#[test]
fn p2_nonces_are_never_used_twice_on_a_stream() {
    let mut world = World::new();
    let all = world.catalog([('p', "a", "1"), ('l', "l", "1")]);
    let mut stream = Stream::new(Delta, &all);
    let mut seen = BTreeSet::new();
    let mut said = stream.delta(Cluster, "", &[], &[]);
    said.extend(stream.delta(Listener, "", &[], &[]));
    said.extend(stream.delta(Cluster, "1", &["a"], &[]));
    for one in said {
        assert!(!one.nonce.is_empty() && seen.insert(one.nonce));
    }
    assert_eq!(seen.len(), 3);
}

#[test]
fn p52_one_response_waits_and_what_changed_meanwhile_comes_together() {
    let mut world = World::new();
    let mut all = vec![('p', "a", "1"), ('p', "b", "1")];
    let first = world.catalog(all.clone());
    let mut stream = Stream::new(Delta, &first);
    stream.delta(Cluster, "", &[], &[]);
    for content in ["2", "3", "4"] {
        all[0].2 = content;
        let next = world.catalog(all.clone());
        assert!(stream.publish(&next).is_empty());
    }
    all[1].2 = "5";
    let last = world.catalog(all);
    assert!(stream.publish(&last).is_empty());
    assert!(stream.session.standing()[0].is_behind);
    let said = stream.delta(Cluster, "1", &[], &[]);
    assert_eq!(one(&said).0, ["a", "b"]);
    assert!(stream.delta(Cluster, "2", &[], &[]).is_empty());
    // What came and went meanwhile was never there.
    let with = world.catalog([('p', "a", "4"), ('p', "b", "5"), ('p', "c", "1")]);
    assert_eq!(one(&stream.publish(&with)).0, ["c"]);
    stream.publish(&last);
    assert!(stream.publish(&with).is_empty());
    assert!(stream.delta(Cluster, "3", &[], &[]).is_empty());
}

/// A stream of a client that has all of it and acknowledged it; the next nonce is 5.
fn at_rest(protocol: Protocol, catalog: &Arc<Catalog>) -> Stream {
    let mut stream = Stream::new(protocol, catalog);
    let names = ["a", "b", "c"];
    let routes = ["r"];
    for (kind, nonce) in [
        (Cluster, "1"),
        (Endpoints, "2"),
        (Listener, "3"),
        (Route, "4"),
    ] {
        let names: &[&str] = match kind {
            Cluster | Listener => &[],
            Endpoints => &names,
            Route => &routes,
        };
        match protocol {
            Sotw => {
                stream.whole(kind, "", "", names);
                stream.whole(kind, "v", nonce, names);
            }
            Delta => {
                stream.delta(kind, "", names, &[]);
                stream.delta(kind, nonce, &[], &[]);
            }
        }
    }
    stream
}

#[test]
fn p30_what_is_new_is_made_before_what_leads_to_it_and_broken_after() {
    let mut world = World::new();
    let old = world.catalog([
        ('c', "a", "1"),
        ('e', "a", "1"),
        ('l', "l", "1"),
        ('r', "r", "a"),
    ]);
    let new = world.catalog([
        ('c', "b", "1"),
        ('e', "b", "1"),
        ('l', "l", "2"),
        ('r', "r", "b"),
    ]);
    for protocol in [Sotw, Delta] {
        let mut stream = at_rest(protocol, &old);
        let mut order = Vec::new();
        let mut waiting = stream.publish(&new);
        while !waiting.is_empty() {
            let said = waiting.remove(0);
            order.push(format!(
                "{:?} {} -{}",
                said.kind,
                said.names.join(","),
                said.removed.join(",")
            ));
            let more = match (protocol, said.kind) {
                (Delta, kind) => stream.delta(kind, &said.nonce, &[], &[]),
                (Sotw, Cluster | Listener) => stream.whole(said.kind, "v", &said.nonce, &[]),
                (Sotw, Endpoints) => stream.whole(said.kind, "v", &said.nonce, &["a", "b", "c"]),
                (Sotw, Route) => stream.whole(said.kind, "v", &said.nonce, &["r"]),
            };
            waiting.extend(more);
        }
        let expected = match protocol {
            Delta => vec![
                "Cluster b -",
                "Endpoints b -",
                "Listener l -",
                "Routes r -",
                "Cluster  -a",
                "Endpoints  -a",
            ],
            Sotw => vec![
                "Cluster b,a -",
                "Endpoints b -",
                "Listener l -",
                "Routes r -",
                "Cluster b -",
            ],
        };
        assert_eq!(order, expected, "{protocol:?}");
    }
}

#[test]
fn p30_a_client_that_refused_a_route_keeps_what_its_old_one_leads_to() {
    let mut world = World::new();
    let old = world.catalog([('p', "a", "1"), ('r', "r", "a")]);
    let new = world.catalog([('p', "b", "1"), ('r', "r", "b")]);
    let mut stream = at_rest(Delta, &old);
    let said = stream.publish(&new);
    assert_eq!((said[0].kind, said[1].kind), (Cluster, Route));
    assert!(stream.delta(Cluster, &said[0].nonce, &[], &[]).is_empty());
    let mut refused = changes(Route, &said[1].nonce, &[], &[], &[]);
    refused.error = Some("no".to_owned());
    assert!(stream.said(Message::Asked(refused)).is_empty());
    // The next one is taken, and nothing leads to a.
    let third = world.catalog([('p', "b", "1"), ('r', "r", "b2")]);
    let said = stream.publish(&third);
    assert_eq!(one(&said).0, ["r"]);
    let said = stream.delta(Route, &said[0].nonce, &[], &[]);
    assert_eq!((said[0].kind, one(&said)), (Cluster, (vec![], vec!["a"])));
}

#[test]
fn p30_routes_wait_for_the_endpoints_of_new_clusters_but_not_for_ever() {
    let mut world = World::new();
    let old = world.catalog([
        ('c', "a", "1"),
        ('e', "a", "1"),
        ('l', "l", "1"),
        ('r', "r", "a"),
    ]);
    let new = world.catalog([
        ('c', "a", "1"),
        ('e', "a", "1"),
        ('c', "z", "1"),
        ('e', "z", "1"),
        ('l', "l", "1"),
        ('r', "r", "z"),
    ]);
    let mut stream = at_rest(Delta, &old);
    let said = stream.publish(&new);
    assert_eq!((said[0].kind, one(&said).0), (Cluster, vec!["z"]));
    // Taken, but a cluster without endpoints is warming.
    assert!(stream.delta(Cluster, &said[0].nonce, &[], &[]).is_empty());
    let said = stream.delta(Endpoints, "", &["z"], &[]);
    let told: Vec<_> = said
        .iter()
        .map(|one| (one.kind, one.names.clone()))
        .collect();
    assert_eq!(told, [(Endpoints, owned(&["z"])), (Route, owned(&["r"]))]);

    let mut stream = at_rest(Delta, &old);
    let said = stream.publish(&new);
    assert!(stream.delta(Cluster, &said[0].nonce, &[], &[]).is_empty());
    stream.now = stream.now + WAIT;
    assert_eq!(stream.said(Message::Woken)[0].kind, Route);
}

#[test]
fn p32_endpoints_follow_a_cluster_that_changed_though_they_are_as_they_were() {
    let mut world = World::new();
    let old = world.catalog([
        ('c', "a", "1"),
        ('c', "b", "1"),
        ('e', "a", "1"),
        ('e', "b", "1"),
    ]);
    let new = world.catalog([
        ('c', "a", "2"),
        ('c', "b", "1"),
        ('e', "a", "1"),
        ('e', "b", "1"),
    ]);
    for protocol in [Sotw, Delta] {
        let mut stream = at_rest(protocol, &old);
        let said = stream.publish(&new);
        let told: Vec<_> = said
            .iter()
            .map(|one| (one.kind, one.names.clone()))
            .collect();
        let clusters = match protocol {
            Sotw => owned(&["a", "b"]),
            Delta => owned(&["a"]),
        };
        let endpoints = (Endpoints, owned(&["a"]));
        assert_eq!(told, [(Cluster, clusters), endpoints], "{protocol:?}");
    }
}

#[test]
fn p32_endpoints_follow_a_cluster_that_changed_while_the_client_was_away() {
    let mut world = World::new();
    let old = world.catalog([('c', "a", "1"), ('e', "a", "1")]);
    let version = |kind: Kind| old.shelf(kind).get("a").unwrap().version();
    let new = world.catalog([('c', "a", "2"), ('e', "a", "1")]);
    let mut stream = Stream::new(Delta, &new);
    let said = stream.delta_again(Cluster, &[], &[("a", version(Cluster))]);
    assert_eq!(one(&said).0, ["a"]);
    // It has these endpoints, but not for this cluster.
    let said = stream.delta_again(Endpoints, &["a"], &[("a", version(Endpoints))]);
    assert_eq!(one(&said).0, ["a"]);
}

#[test]
fn p6_types_are_streams_of_their_own() {
    let mut world = World::new();
    let old = world.catalog([('p', "a", "1"), ('r', "r", "1"), ('l', "l", "1")]);
    let mut stream = Stream::new(Delta, &old);
    stream.delta(Cluster, "", &[], &[]);
    // Clusters are not acknowledged, and never were: routes are asked for all the same.
    assert_eq!(one(&stream.delta(Route, "", &["r"], &[])).0, ["r"]);
    // The nonce of one type acknowledges no other.
    stream.delta(Route, "1", &[], &[]);
    let waits = stream.session.standing();
    assert!(waits.iter().all(|one| one.unacknowledged.is_some()));
}

#[test]
fn p6_clusters_that_are_not_acknowledged_hold_back_listeners_and_routes_for_a_while_only() {
    let mut world = World::new();
    let old = world.catalog([('p', "a", "1"), ('r', "r", "1"), ('l', "l", "1")]);
    let new = world.catalog([('p', "a", "2"), ('r', "r", "2"), ('l', "l", "1")]);
    let mut stream = Stream::new(Delta, &old);
    let asked = Message::Asked(changes(Cluster, "", &[], &[], &[]));
    assert!(wakes_at(&stream.actions(asked)).is_some());
    assert!(stream.publish(&new).is_empty());
    // It acknowledges clusters when they are warm, and for that it may need these.
    stream.now = stream.now + WAIT / 2;
    assert!(stream.delta(Listener, "", &[], &[]).is_empty());
    assert!(stream.delta(Route, "", &["r"], &[]).is_empty());
    stream.now = Time::ZERO + WAIT;
    let told: Vec<_> = (stream.said(Message::Woken).into_iter())
        .map(|one| (one.kind, one.names))
        .collect();
    assert_eq!(told, [(Listener, owned(&["l"])), (Route, owned(&["r"]))]);
    // What changes clusters again comes with the acknowledgement.
    assert_eq!(one(&stream.delta(Cluster, "1", &[], &[])).0, ["a"]);
}

#[test]
fn the_next_time_to_come_back_is_the_first_of_all_that_are_due() {
    let mut world = World::new();
    let old = world.catalog([('c', "a", "1"), ('e', "a", "1"), ('r', "r", "1")]);
    let more = [('c', "a", "1"), ('e', "a", "1"), ('r', "r", "2")];
    let second = world.catalog(more.into_iter().chain([('c', "z", "1"), ('e', "z", "1")]));
    let third = world.catalog([('c', "a", "1"), ('e', "a", "1"), ('r', "r", "3")]);
    let mut stream = at_rest(Delta, &old);
    stream.now = stream.now + WAIT;
    stream.actions(Message::Woken);
    let began = stream.now;
    // The endpoints of z are awaited, and the clusters are not acknowledged.
    let actions = stream.actions(Message::Published(second));
    assert_eq!(wakes_at(&actions), Some(began + WAIT));
    stream.now = began + WAIT / 2;
    // Said once.
    assert_eq!(wakes_at(&stream.actions(Message::Published(third))), None);
    stream.now = began + WAIT;
    let told = stream.said(Message::Woken);
    assert_eq!((told[0].kind, one(&told).0), (Route, vec!["r"]));
}

/// When it wants to be told that it is then.
fn wakes_at(actions: &[Action]) -> Option<Time> {
    actions.iter().find_map(|action| match action {
        Action::WakeAt(at) => Some(*at),
        Action::Send(_) | Action::Accepted { .. } | Action::Rejected { .. } | Action::End(_) => {
            None
        }
    })
}

#[test]
fn p6_a_service_of_one_type_serves_that_type_alone() {
    let all = World::new().catalog([('p', "a", "1")]);
    let session = Session::new(Delta, Some(Cluster), LIMITS, Arc::clone(&all));
    let mut stream = Stream {
        session,
        now: Time::ZERO,
    };
    let mut request = changes(Cluster, "", &[], &[], &[]);
    request.type_url = String::new();
    assert_eq!(one(&stream.said(Message::Asked(request))).0, ["a"]);
    let ended = stream.actions(Message::Asked(changes(Route, "", &["r"], &[], &[])));
    let expected = "this service serves type.googleapis.com/envoy.config.cluster.v3.Cluster and not `type.googleapis.com/envoy.config.route.v3.RouteConfiguration`";
    assert!(
        matches!(&ended[..], [Action::End(why)] if why.to_string() == expected),
        "{ended:?}"
    );
}

#[test]
fn what_was_answered_counts_no_more() {
    let nothing = World::new().catalog([]);
    let mut stream = Stream::new(Delta, &nothing);
    stream.delta(Cluster, "", &[], &[]);
    for nth in 1..10 {
        let names: Vec<String> = (0..60).map(|name| format!("{nth} {name}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let said = stream.delta(Cluster, &nth.to_string(), &[], &names);
        assert_eq!(one(&said).1.len(), 60);
    }
}

#[test]
fn every_limit_ends_the_stream_that_reaches_it() {
    let names: Vec<String> = (0..=LIMITS.names).map(|nth| format!("n{nth}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let long = "x".repeat(LIMITS.name_bytes + 1);
    let other = |nth: usize| {
        let mut request = changes(Route, "", &["n"], &[], &[]);
        request.type_url = format!("type.googleapis.com/other.Type{nth}");
        request
    };
    let cases: [(Vec<Request<'_>>, Violation); 4] = [
        (
            vec![
                changes(Route, "", &names[..60], &[], &[]),
                changes(Endpoints, "", &names[60..], &[], &[]),
            ],
            Violation::Names(100),
        ),
        (
            vec![changes(Route, "", &[], &names, &[])],
            Violation::Names(100),
        ),
        (
            vec![changes(Route, "", &[&long], &[], &[])],
            Violation::LongName(64),
        ),
        ((0..5).map(other).collect(), Violation::Types(4)),
    ];
    check_limits(cases);
}

#[test]
fn what_a_client_has_and_has_no_more_counts_as_what_it_asks_for() {
    let names: Vec<String> = (0..=LIMITS.names).map(|nth| format!("n{nth}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let long = "x".repeat(LIMITS.name_bytes + 1);
    let version = Version::NONE;
    let known = |range: std::ops::Range<usize>| -> Vec<_> {
        names[range].iter().map(|name| (*name, version)).collect()
    };
    let unnamed = |names: &[&str]| changes(Cluster, "", &[], names, &[]);
    let long_names: Vec<String> = (0..40).map(|nth| format!("{nth:060}")).collect();
    let long_names: Vec<&str> = long_names.iter().map(String::as_str).collect();
    check_limits([
        // What is unsubscribed while all is asked for is to be answered, and waits.
        (
            vec![
                changes(Cluster, "", &[], &[], &[]),
                unnamed(&names[..60]),
                unnamed(&names[..60]),
                unnamed(&names[60..]),
            ],
            Violation::Names(100),
        ),
        (
            vec![changes(Cluster, "", &[], &[], &known(0..101))],
            Violation::Names(100),
        ),
        (
            vec![changes(Cluster, "", &[], &[], &[(&long, version)])],
            Violation::LongName(64),
        ),
        // What a client has and is not there is kept until nothing leads to it.
        (
            vec![
                changes(Cluster, "", &[], &[], &known(0..60)),
                changes(Listener, "", &[], &[], &known(60..101)),
            ],
            Violation::Names(100),
        ),
        (
            vec![changes(Route, "", &long_names, &[], &[])],
            Violation::Strangers(2000),
        ),
        (
            vec![
                changes(Route, "", &long_names[..30], &[], &[]),
                changes(Cluster, "", &[], &[], &[]),
                unnamed(&long_names[..3]),
                unnamed(&long_names[3..6]),
            ],
            Violation::Strangers(2000),
        ),
    ]);
}

/// Each of these is ended by its last request.
fn check_limits<const N: usize>(cases: [(Vec<Request<'_>>, Violation); N]) {
    let nothing = World::new().catalog([]);
    for (requests, expected) in cases {
        let mut stream = Stream::new(Delta, &nothing);
        let mut last = Vec::new();
        let count = requests.len();
        for (nth, request) in requests.into_iter().enumerate() {
            last = stream.session.handle(Message::Asked(request), Time::ZERO);
            let ends = last.iter().any(|action| matches!(action, Action::End(_)));
            assert_eq!(ends, nth + 1 == count, "{last:?}");
        }
        let [Action::End(why)] = &last[..] else {
            panic!("{last:?}");
        };
        assert_eq!(*why, expected);
    }
}
