//! Which backends are equally preferred, and which come first.

use std::collections::{BTreeMap, BTreeSet};

use zeugma_core::locality::{Locality, Scope};

use super::target::Target;
use crate::model::scalar::Text;
use crate::model::{FailoverSpec, LocalitySpec, ScopeSpec, Selector};

/// The levels, preferred first, as indexes into `targets`; a target in none is not used.
///
/// The nearest level under `prefer` stays first; `order` follows if given; else all follow by
/// distance. At equal distance own backends precede peers.
pub(crate) fn levels(
    targets: &[&Target],
    here: &Locality,
    locality: &LocalitySpec,
    failover: &FailoverSpec,
) -> Vec<Vec<usize>> {
    let prefer = scopes(locality);
    let mut left: Vec<usize> = (0..targets.len())
        .filter(|ix| {
            targets
                .get(*ix)
                .is_some_and(|target| !is_never_used(failover, target))
        })
        .collect();
    let rank = |ix: &usize| {
        targets.get(*ix).map_or((usize::MAX, true), |target| {
            let distance = prefer
                .iter()
                .position(|scope| here.shares(&target.locality, *scope))
                .unwrap_or(prefer.len());
            (distance, target.peer.is_some())
        })
    };
    let Some(order) = &failover.order else {
        return by_rank(left, rank);
    };
    let mut levels = Vec::new();
    if let Some(nearest) = left.iter().map(rank).min()
        && nearest.0 < prefer.len()
    {
        let (first, rest) = left.into_iter().partition(|ix| rank(ix) == nearest);
        levels.push(first);
        left = rest;
    }
    for selector in order {
        let (chosen, rest) = left.into_iter().partition(|ix| {
            targets
                .get(*ix)
                .is_some_and(|target| selects(selector, target))
        });
        levels.extend(by_rank(chosen, rank));
        left = rest;
    }
    levels
}

fn by_rank(mut chosen: Vec<usize>, rank: impl Fn(&usize) -> (usize, bool)) -> Vec<Vec<usize>> {
    // Stable: inside a level the order written remains.
    chosen.sort_by_key(&rank);
    chosen
        .chunk_by(|a, b| rank(a) == rank(b))
        .map(<[usize]>::to_vec)
        .collect()
}

/// Whether `failover.never` names it.
pub(crate) fn is_never_used(failover: &FailoverSpec, target: &Target) -> bool {
    let mut never = failover.never.iter();
    never.any(|selector| selects(selector, target))
}

/// Whether `selector` names `target`.
pub(crate) fn selects(selector: &Selector, target: &Target) -> bool {
    match selector {
        Selector::Region(Text(region)) => *target.locality.region == *region.0,
        Selector::Cluster(Text(cluster)) => target.cluster == cluster.0,
        Selector::Backend(Text(backend)) => target.names.contains(&backend.0),
    }
}

/// What is wrong with `locality.spread` as seen from one gateway: what, and what to do.
pub(crate) fn spread_error(
    targets: &[&Target],
    levels: &[Vec<usize>],
    spread: &BTreeMap<Locality, f64>,
) -> Option<(String, String)> {
    let of = |level: &Vec<usize>| -> BTreeSet<Locality> {
        let targets = level.iter().filter_map(|at| targets.get(*at));
        targets.map(|target| target.locality.clone()).collect()
    };
    let places: Vec<BTreeSet<Locality>> = levels.iter().map(of).collect();
    let level_of = |place: &Locality| places.iter().position(|level| level.contains(place));
    let mut first: Option<(&Locality, usize)> = None;
    for place in spread.keys() {
        let Some(level) = level_of(place) else {
            let known: BTreeSet<String> =
                (places.iter().flatten()).map(ToString::to_string).collect();
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            return Some((
                format!("no backend that is used stands in `{place}`"),
                format!("backends stand in {}", known.join(", ")),
            ));
        };
        match first {
            None => first = Some((place, level)),
            Some((_, of)) if of == level => {}
            Some((other, _)) => {
                return Some((
                    format!("`{other}` and `{place}` are not in one level, so no traffic is spread over them"),
                    "have `locality.prefer` leave out the step that tells them apart, such as `prefer: [region]`"
                        .to_owned(),
                ));
            }
        }
    }
    let level = places.get(first?.1)?;
    let left_out = level.iter().find(|place| !spread.contains_key(*place))?;
    Some((
        format!("`{left_out}` is in the same level and has no share"),
        format!("add `{left_out}: 0%`, or its share"),
    ))
}

/// The localities that a level is spread over, and their shares.
pub(crate) fn spread(locality: &LocalitySpec) -> BTreeMap<Locality, f64> {
    (locality.spread.iter().flatten())
        .filter_map(|(place, share)| Some((Locality::parse(place).ok()?, share.0.0)))
        .collect()
}

fn scopes(locality: &LocalitySpec) -> Vec<Scope> {
    let Some(prefer) = &locality.prefer else {
        return vec![Scope::Subzone, Scope::Zone, Scope::Region];
    };
    prefer
        .iter()
        .map(|scope| match scope {
            ScopeSpec::Subzone => Scope::Subzone,
            ScopeSpec::Zone => Scope::Zone,
            ScopeSpec::Region => Scope::Region,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::scalar::Name;

    /// `name@locality`, a peer with a `*` before its name.
    fn targets(list: &[&str]) -> Vec<Target> {
        list.iter()
            .map(|text| {
                let (name, locality) = text.split_once('@').unwrap();
                let name_only = name.trim_start_matches('*');
                let mut target = Target::for_test(name_only, Locality::parse(locality).unwrap());
                if name.starts_with('*') {
                    target.peer = Some(name_only.to_owned());
                    target.cluster = name_only.to_owned();
                }
                target
            })
            .collect()
    }

    fn named(
        here: &str,
        list: &[&str],
        prefer: Option<&[ScopeSpec]>,
        failover: &FailoverSpec,
    ) -> Vec<String> {
        let targets = targets(list);
        let locality = LocalitySpec {
            prefer: prefer.map(<[ScopeSpec]>::to_vec),
            spread: None,
        };
        levels(
            &targets.iter().collect::<Vec<_>>(),
            &Locality::parse(here).unwrap(),
            &locality,
            failover,
        )
        .iter()
        .map(|level| {
            level
                .iter()
                .map(|ix| targets[*ix].names[0].as_str())
                .collect::<Vec<_>>()
                .join("+")
        })
        .collect()
    }

    fn region(name: &str) -> Selector {
        Selector::Region(Text(Name(name.to_owned())))
    }

    fn backend(name: &str) -> Selector {
        Selector::Backend(Text(Name(name.to_owned())))
    }

    fn order(order: Vec<Selector>) -> FailoverSpec {
        FailoverSpec {
            order: Some(order),
            ..Default::default()
        }
    }

    const HERE: &str = "region1/zone1/subzone1";
    const ALL: [&str; 5] = [
        "other@region3/zone1",
        "region@region1/zone2",
        "subzone@region1/zone1/subzone1",
        "target@region2/zone1",
        "zone@region1/zone1/subzone2",
    ];

    // istio-failover-01 (istio pilot loadbalancer_test.go, 'Failover: all priorities'): same
    // subzone, zone, region, failover target, other region get priorities 0 to 4.
    #[test]
    fn every_step_of_nearness_is_a_level() {
        assert_eq!(
            named(HERE, &ALL, None, &FailoverSpec::default()),
            ["subzone", "zone", "region", "other+target"]
        );
        // With an order, what is not named is not used; Istio appends it as a last level.
        assert_eq!(
            named(
                HERE,
                &ALL,
                None,
                &order(vec![region("region1"), region("region2")])
            ),
            ["subzone", "zone", "region", "target"]
        );
        assert_eq!(
            named(
                HERE,
                &ALL,
                None,
                &order(vec![
                    region("region1"),
                    region("region2"),
                    region("region3")
                ])
            ),
            ["subzone", "zone", "region", "target", "other"]
        );
    }

    // istio-failover-02 ('priorities with gaps'): levels that nobody is in are left out.
    #[test]
    fn gaps_are_closed() {
        assert_eq!(
            named(
                HERE,
                &["zone@region1/zone1/subzone2", "target@region2/zone1"],
                None,
                &FailoverSpec::default()
            ),
            ["zone", "target"]
        );
    }

    // istio-failoverPriority-02: a narrower match counts only if all wider ones match.
    #[test]
    fn a_zone_of_the_same_name_in_another_region_is_not_near() {
        assert_eq!(
            named(
                HERE,
                &["far@region2/zone1/subzone1", "near@region1/zone9"],
                None,
                &FailoverSpec::default()
            ),
            ["near", "far"]
        );
    }

    #[test]
    fn at_equal_distance_own_backends_precede_peers() {
        assert_eq!(
            named(
                HERE,
                &["*west@region2", "a@region2", "*near@region1", "b@region1"],
                None,
                &FailoverSpec::default()
            ),
            ["b", "near", "a", "west"]
        );
    }

    #[test]
    fn the_nearest_level_stays_first_and_order_may_put_a_near_one_last() {
        assert_eq!(
            named(
                "eu/eu-1",
                &["eu-2@eu/eu-2", "eu-1@eu/eu-1", "*west@us/us-1", "*north@no"],
                None,
                &order(vec![region("us"), backend("north"), backend("eu-2")])
            ),
            ["eu-1", "west", "north", "eu-2"]
        );
    }

    #[test]
    fn what_order_does_not_name_is_not_used_and_never_wins() {
        let list = ["eu-1@eu/eu-1", "eu-2@eu/eu-2", "*west@us/us-1"];
        assert_eq!(
            named("eu/eu-1", &list, None, &order(vec![region("us")])),
            ["eu-1", "west"]
        );
        assert_eq!(
            named(
                "eu/eu-1",
                &list,
                None,
                &FailoverSpec {
                    never: vec![backend("eu-1")].into(),
                    ..order(vec![region("eu"), region("us")])
                }
            ),
            ["eu-2", "west"]
        );
    }

    #[test]
    fn prefer_says_which_steps_count() {
        let list = ["a@eu/eu-1/r1", "b@eu/eu-1/r2", "c@eu/eu-2", "d@us"];
        let named = |prefer| named("eu/eu-1/r1", &list, Some(prefer), &FailoverSpec::default());
        assert_eq!(named(&[ScopeSpec::Region]), ["a+b+c", "d"]);
        assert_eq!(named(&[ScopeSpec::Zone]), ["a+b", "c+d"]);
        assert_eq!(named(&[]), ["a+b+c+d"]);
    }

    #[test]
    fn what_is_spread_over_is_one_level_and_all_of_it() {
        let list = targets(&["a@eu/eu-1", "b@eu/eu-2", "c@eu/eu-3", "*west@us/us-1"]);
        let list: Vec<&Target> = list.iter().collect();
        let said = |levels: &[&[usize]], spread: &[&str]| {
            let levels: Vec<Vec<usize>> = levels.iter().map(|level| level.to_vec()).collect();
            let spread = spread
                .iter()
                .map(|text| (Locality::parse(text).unwrap(), 0.5));
            spread_error(&list, &levels, &spread.collect()).map(|(what, _)| what)
        };
        let two: &[&[usize]] = &[&[0, 1], &[2], &[3]];
        assert_eq!(said(two, &["eu/eu-1", "eu/eu-2"]), None);
        let apart = said(two, &["eu/eu-1", "eu/eu-3"]).unwrap();
        assert!(
            apart.contains("`eu/eu-1` and `eu/eu-3` are not in one level"),
            "{apart}"
        );
        let left_out = said(two, &["eu/eu-1"]).unwrap();
        assert!(
            left_out.contains("`eu/eu-2` is in the same level"),
            "{left_out}"
        );
        let nobody = said(two, &["eu/eu-9"]).unwrap();
        assert!(nobody.contains("stands in `eu/eu-9`"), "{nobody}");
    }

    #[test]
    fn where_nothing_is_preferred_order_alone_decides() {
        assert_eq!(
            named(
                "asia",
                &["a@eu/eu-1", "*west@us/us-1"],
                None,
                &order(vec![region("us"), region("eu")])
            ),
            ["west", "a"]
        );
    }
}
