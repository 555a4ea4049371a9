use proptest::prelude::*;

use super::*;
use crate::engine::Headers;
use crate::fixture::{self, cluster, http_rule, service, snapshot};
use crate::shares::EndpointStatus;
use crate::snapshot::Snapshot;

fn field((name, value): &(&str, &str)) -> Field {
    Field {
        name: (*name).into(),
        value: (*value).into(),
    }
}

/// One rule for each match, in the order of precedence.
fn rules(matches: &[Match]) -> Rules {
    let mut matches: Vec<Match> = (matches.iter().enumerate())
        .map(|(rule, one)| Match {
            rule,
            ..one.clone()
        })
        .collect();
    let list = (0..matches.len())
        .map(|nth| http_rule(&nth.to_string(), None))
        .collect();
    matches.sort_by_key(|one| std::cmp::Reverse(one.precedence()));
    Rules { matches, list }
}

fn exact(path: &str) -> Match {
    Match {
        path: PathMatch::Exact(path.into()),
        ..Match::default()
    }
}

fn prefix(path: &str) -> Match {
    Match {
        path: PathMatch::Prefix(path.into()),
        ..Match::default()
    }
}

fn method(name: &str) -> Match {
    Match {
        method: Some(name.into()),
        ..Match::default()
    }
}

fn headers(fields: &[(&str, &str)]) -> Match {
    Match {
        headers: fields.iter().map(field).collect(),
        ..Match::default()
    }
}

fn query(fields: &[(&str, &str)]) -> Match {
    Match {
        query: fields.iter().map(field).collect(),
        ..Match::default()
    }
}

/// The rule of a request with these headers.
fn found(rules: &Rules, method: &str, path: &str, headers: &[(&str, &str)]) -> Option<usize> {
    let each = |name: &str, tell: &mut dyn FnMut(&[u8])| {
        let all = headers.iter().filter(|(known, _)| *known == name);
        all.for_each(|(_, value)| tell(value.as_bytes()));
    };
    rules.find(&Request {
        authority: "a.b",
        method,
        path,
        headers: Headers(&each),
    })
}

fn get(rules: &Rules, path: &str) -> Option<usize> {
    found(rules, "GET", path, &[])
}

#[test]
fn a_prefix_ends_where_a_path_element_does() {
    // Gateway API, HTTPPathMatch: "matches based on a URL path prefix split by `/`".
    let rules = rules(&[prefix("/v1"), exact("/v2/")]);
    for path in ["/v1", "/v1/", "/v1/x", "/v1?x=/v1x"] {
        assert_eq!(get(&rules, path), Some(0), "{path}");
    }
    for path in ["/v1x", "/V1", "/v", "/", "", "*", "/v2", "/v2/x"] {
        assert_eq!(get(&rules, path), None, "{path}");
    }
    assert_eq!(get(&rules, "/v2/"), Some(1));
}

#[test]
fn a_text_that_paths_begin_with_may_end_within_an_element() {
    let rules = rules(&[Match {
        path: PathMatch::Begins("/v1".into()),
        ..Match::default()
    }]);
    for path in ["/v1", "/v1/x", "/v1x", "/v1?q", "/%76%31x"] {
        assert_eq!(get(&rules, path), Some(0), "{path}");
    }
    for path in ["/v", "/V1", "/a/v1", "//v1", "/v1/../x"] {
        assert_eq!(get(&rules, path), None, "{path}");
    }
}

#[test]
fn the_more_specific_match_wins_wherever_it_is_written() {
    // Gateway API, HTTPRouteRule.matches: the order of precedence, from the last to the first.
    let rules = rules(&[
        Match::default(),
        query(&[("q", "1")]),
        headers(&[("x-a", "1")]),
        headers(&[("x-a", "1"), ("x-b", "2")]),
        method("GET"),
        prefix("/a"),
        prefix("/a/b"),
        exact("/a/b"),
    ]);
    let a = ("x-a", "1");
    for (path, headers, expected) in [
        ("/a/b", &[a][..], 7),
        ("/a/b/c", &[a], 6),
        ("/a/c", &[a], 5),
        ("/x", &[a], 4),
    ] {
        assert_eq!(found(&rules, "GET", path, headers), Some(expected));
    }
    for (path, headers, expected) in [
        ("/x?q=1", &[a, ("x-b", "2")][..], 3),
        ("/x?q=1", &[a], 2),
        ("/x?q=1", &[], 1),
        ("/x?q=2", &[], 0),
    ] {
        assert_eq!(found(&rules, "PUT", path, headers), Some(expected));
    }
}

#[test]
fn of_equals_the_one_written_first_wins() {
    let rules = rules(&[headers(&[("x-a", "1")]), headers(&[("x-b", "1")])]);
    let both = [("x-b", "1"), ("x-a", "1")];
    assert_eq!(found(&rules, "GET", "/", &both), Some(0));
    assert_eq!(found(&rules, "GET", "/", &both[..1]), Some(1));
}

#[test]
fn a_path_that_servers_read_differently_gets_around_no_rule() {
    let rules = rules(&[prefix("/admin"), Match::default()]);
    for plain in ["/admin", "/admin//x", "/admin/;a", "/%61dmin"] {
        assert_eq!(get(&rules, plain), Some(0), "{plain}");
    }
    for open in ["/", "/x", "/x//y", "/adminx", "*"] {
        assert_eq!(get(&rules, open), Some(1), "{open}");
    }
    for unclear in [
        "//admin",
        "/x/../admin",
        "/admin/../x",
        "/%2e%2e/admin",
        "/x%2F..%2fadmin",
        "/admin%2fx",
        "/;a/admin",
        "/x\\admin",
    ] {
        assert_eq!(get(&rules, unclear), None, "{unclear}");
    }
}

#[test]
fn where_no_rule_looks_at_paths_no_path_is_unclear() {
    let rules = rules(&[method("GET")]);
    assert_eq!(get(&rules, "/group%2Fproject/.."), Some(0));
}

#[test]
fn a_header_that_comes_twice_or_otherwise_written_is_another_one() {
    let rules = rules(&[headers(&[("x-beta", "1")])]);
    let asked = |headers: &[(&str, &str)]| found(&rules, "GET", "/", headers);
    assert_eq!(asked(&[("x-beta", "1")]), Some(0));
    for other in [
        &[("x-beta", "1"), ("x-beta", "1")][..],
        &[("x-beta", "01")],
        &[],
    ] {
        assert_eq!(asked(other), None);
    }
}

#[test]
fn the_first_of_a_query_parameter_counts_once_its_escapes_are_undone() {
    let rules = rules(&[query(&[("a b", "1&2")]), query(&[("flag", "")])]);
    for (asked, expected) in [
        ("/?a%20b=1%262", Some(0)),
        ("/?x=y&a%20b=1%262&a%20b=3", Some(0)),
        ("/?a%20b=3&a%20b=1%262", None),
        ("/?a+b=1%262", None),
        ("/?a%20b=1&2", None),
        ("/?%61%20b=%31%26%32", Some(0)),
        ("/?flag", Some(1)),
        ("/?flag=", Some(1)),
        ("/?flags", None),
        ("/", None),
        ("/?a%2", None),
        ("/?a%zz", None),
    ] {
        assert_eq!(get(&rules, asked), expected, "{asked}");
    }
}

/// What some servers read as the path of another rule is no rule's.
#[test]
fn an_escape_leads_past_no_rule() {
    let rules = rules(&[
        exact("/v1/orders:cancel"),
        exact("/v1/a%3Ab"),
        prefix("/v1"),
    ]);
    for (asked, expected) in [
        ("/v1/orders:cancel", Some(0)),
        ("/v1/orders%3Acancel", None),
        ("/v1/a%3ab", Some(1)),
        ("/v1/a:b", Some(2)),
        ("/v1/x%3Ay", Some(2)),
    ] {
        assert_eq!(get(&rules, asked), expected, "{asked}");
    }
}

/// Whether a match is met, worked out another way: paths by their elements.
fn is_met(one: &Match, asked_method: &str, path: &str, has: &[(&str, &str)], q: &str) -> bool {
    let elements = |path: &str| -> Vec<String> {
        let trimmed = path.trim_end_matches('/');
        trimmed.split('/').map(str::to_owned).collect()
    };
    let by_path = match &one.path {
        PathMatch::Any => true,
        PathMatch::Exact(of) => **of == *path,
        PathMatch::Prefix(of) => elements(path).starts_with(&elements(of)),
        PathMatch::Begins(of) => {
            path.chars()
                .zip(of.chars())
                .filter(|(one, other)| one == other)
                .count()
                == of.chars().count()
        }
    };
    let by_method = one.method.as_ref().is_none_or(|of| **of == *asked_method);
    let by_headers = (one.headers.iter()).all(|of| {
        has.iter()
            .filter(|(n, v)| (*n, *v) == (&*of.name, &*of.value))
            .count()
            == 1
    });
    let by_query = one
        .query
        .iter()
        .all(|of| format!("{}={}", of.name, of.value) == q);
    by_path && by_method && by_headers && by_query
}

/// Whether `a` comes before `b`, the rules of precedence one after the other.
fn beats(a: &Match, b: &Match) -> bool {
    let exact = |m: &Match| matches!(m.path, PathMatch::Exact(_));
    if exact(a) != exact(b) {
        return exact(a);
    }
    let length = |m: &Match| match &m.path {
        PathMatch::Any => 0,
        PathMatch::Exact(path) | PathMatch::Prefix(path) | PathMatch::Begins(path) => {
            path.chars().count()
        }
    };
    if length(a) != length(b) {
        return length(a) > length(b);
    }
    if a.method.is_some() != b.method.is_some() {
        return a.method.is_some();
    }
    if a.headers.len() != b.headers.len() {
        return a.headers.len() > b.headers.len();
    }
    a.query.len() > b.query.len()
}

fn any_match() -> impl Strategy<Value = Match> {
    let path = prop::sample::select(vec![
        PathMatch::Any,
        PathMatch::Exact("/a".into()),
        PathMatch::Exact("/a/b".into()),
        PathMatch::Exact("/a/".into()),
        PathMatch::Prefix("/a".into()),
        PathMatch::Prefix("/a/b".into()),
        PathMatch::Prefix("/b".into()),
    ]);
    let method = prop::sample::select(vec![None, Some("GET"), Some("PUT")]);
    let headers = prop::sample::subsequence(vec![("x-a", "1"), ("x-b", "1"), ("x-b", "2")], 0..3);
    let query = prop::sample::subsequence(vec![("q", "1")], 0..=1);
    (path, method, headers, query).prop_map(|(path, method, headers, query)| Match {
        rule: 0,
        path,
        method: method.map(Arc::from),
        headers: headers.iter().map(field).collect(),
        query: query.iter().map(field).collect(),
    })
}

proptest! {
    #[test]
    fn the_rule_found_is_the_one_that_every_other_is_measured_against(
        matches in prop::collection::vec(any_match(), 0..8),
        method in prop::sample::select(vec!["GET", "PUT", "get"]),
        path in prop::sample::select(vec!["/a", "/a/", "/a/b", "/a/b/c", "/ab", "/b", "/"]),
        has in prop::sample::subsequence(vec![("x-a", "1"), ("x-b", "1"), ("x-b", "2")], 0..=3),
        q in prop::sample::select(vec!["", "q=1", "q=2"]),
    ) {
        let single: Vec<_> = (has.iter().copied())
            .filter(|(name, _)| has.iter().filter(|(other, _)| other == name).count() == 1)
            .collect();
        let mut best: Option<usize> = None;
        for (nth, one) in matches.iter().enumerate() {
            if is_met(one, method, path, &single, q)
                && best.is_none_or(|best| beats(one, &matches[best]))
            {
                best = Some(nth);
            }
        }
        let asked = if q.is_empty() { path.to_owned() } else { format!("{path}?{q}") };
        prop_assert_eq!(found(&rules(&matches), method, &asked, &has), best);
    }
}

/// Clusters 0, 1 and 2, each of one endpoint.
fn world() -> Snapshot {
    let mut world = snapshot(vec![service("a/b", "b.a", 80)]);
    world.clusters = ["e0", "e1", "e2"]
        .map(|key| Arc::new(cluster(&[&[key]])))
        .to_vec()
        .into();
    world
}

fn part(cluster: usize, weight: u32) -> Part {
    Part {
        own: (cluster > 0).then_some(ClusterIx(cluster)),
        ..fixture::part(cluster, weight)
    }
}

/// How often each part is drawn of ten thousand.
fn drawn(split: &[Part], shares: &Shares, tried: Tried) -> [u32; 3] {
    let mut counts = [0; 3];
    for draw in 0..10_000 {
        if let Some(part) = choose(split, Role::Workloads, shares, draw, tried) {
            counts[part] += 1;
        }
    }
    counts
}

/// The shares where the endpoints of these clusters are like this.
fn where_these_are(world: &Snapshot, dead: &[usize], status: EndpointStatus) -> Shares {
    let mut shares = Shares::all_healthy(world);
    for (nth, of) in shares.clusters.iter_mut().enumerate() {
        if dead.contains(&nth) {
            let cluster = &world.clusters[nth];
            *of = crate::shares::ClusterShares::new(cluster, vec![status], Vec::new(), &[0.0]);
        }
    }
    shares
}

#[test]
fn parts_are_drawn_by_weight_and_a_dead_ones_share_goes_to_the_others() {
    let world = world();
    let split = [part(0, 70), part(1, 20), part(2, 10)];
    let near = |drawn: [u32; 3], expected: [u32; 3]| {
        // Four standard deviations of a share of ten thousand are at most 200.
        let is_near = (drawn.iter().zip(expected)).all(|(got, of)| got.abs_diff(of) < 200);
        assert!(is_near, "{drawn:?} {expected:?}");
    };
    let all = Shares::all_healthy(&world);
    near(drawn(&split, &all, Tried::default()), [7000, 2000, 1000]);
    near(
        drawn(&split, &all, Tried::default().and(0)),
        [0, 6667, 3333],
    );
    for status in [EndpointStatus::Unhealthy, EndpointStatus::Ejected] {
        let dead = |which: &[usize]| where_these_are(&world, which, status);
        let one = drawn(&split, &dead(&[1]), Tried::default());
        near(one, [8750, 0, 1250]);
        assert_eq!(one[1], 0);
        assert_eq!(
            drawn(&split, &dead(&[0, 1]), Tried::default()),
            [0, 0, 10_000]
        );
    }
    // What is only ejected is better than nothing; what is unhealthy is nothing.
    let ejected = where_these_are(&world, &[0, 1, 2], EndpointStatus::Ejected);
    near(
        drawn(&split, &ejected, Tried::default()),
        [7000, 2000, 1000],
    );
    let unhealthy = where_these_are(&world, &[0, 1, 2], EndpointStatus::Unhealthy);
    assert_eq!(drawn(&split, &unhealthy, Tried::default()), [0; 3]);
}

#[test]
fn a_part_without_weight_takes_nothing_and_other_clusters_reach_own_parts_alone() {
    let world = world();
    let all = Shares::all_healthy(&world);
    let split = [part(0, 1), part(1, 0)];
    assert_eq!(drawn(&split, &all, Tried::default()), [10_000, 0, 0]);
    let of_peers = |draw, split: &[Part]| choose(split, Role::Mesh, &all, draw, Tried::default());
    assert!((0..100).all(|draw| of_peers(draw, &[part(0, 99), part(1, 1)]) == Some(1)));
    assert_eq!(of_peers(0, &split), None);
}

#[test]
fn what_a_rule_does_not_say_of_deadlines_and_tries_is_the_clusters() {
    let cluster = cluster(&[&["e0"]]);
    let (timeouts, retries) = (&cluster.policy.timeouts, &cluster.policy.retries);
    let mut rule = http_rule("0", None);
    let own = (timeouts.response_headers, timeouts.per_try);
    assert_eq!(rule.timeouts(timeouts), own);
    assert!(matches!(rule.retries(retries), Cow::Borrowed(same) if same == retries));
    let second = Duration::from_secs(1);
    rule.timeouts.per_try = Some(Some(second));
    rule.retries.on = Some(vec![Failure::Grpc(8)]);
    assert_eq!(rule.timeouts(timeouts), (own.0, Some(second)));
    let tries = rule.retries(retries);
    assert_eq!((tries.attempts, &*tries.on), (2, &[Failure::Grpc(8)][..]));
    assert!(!tries.any_method);
}

#[test]
fn headers_that_are_set_or_removed_do_not_go_on_and_others_do() {
    let changes = HeaderChanges {
        set: vec![field(&("x-set", "1"))],
        add: vec![field(&("x-add", "1"))],
        remove: vec!["x-gone".into()],
    };
    let kept = ["x-set", "x-add", "x-gone", "x-other"].map(|name| changes.keeps(name));
    assert_eq!(kept, [false, true, false, true]);
    assert!(!changes.is_nothing() && HeaderChanges::default().is_nothing());
}
