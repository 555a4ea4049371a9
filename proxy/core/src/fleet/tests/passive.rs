//! What traffic teaches.

use std::time::Duration;

use crate::fixture;
use crate::fleet::{EndpointStatus, Fleet, FleetEvent};
use crate::outlier::EjectCause;
use crate::slow::Took;
use crate::snapshot::Failure;
use crate::time::Time;

use super::{at, fleet, key, revive, see, shares};

/// Many successes at once are many successes.
#[test]
fn successes_count_alike_at_once_and_one_by_one() {
    let of = || fleet(vec![fixture::cluster(&[&["a", "b"], &["c"]])]);
    let (mut one_by_one, mut at_once) = (of(), of());
    for (second, (name, good, bad)) in [
        ("a", 30, 4),
        ("b", 7, 0),
        ("a", 1, 3),
        ("c", 9, 1),
        ("a", 0, 40),
    ]
    .into_iter()
    .enumerate()
    {
        let now = Time::ZERO + Duration::from_secs(second as u64);
        see(&mut one_by_one, name, Ok(()), good, now);
        if let Some(times) = u32::try_from(good).ok().filter(|times| *times > 0) {
            at_once.observe_successes(&key(name), times, Took::default(), now);
        }
        for fleet in [&mut one_by_one, &mut at_once] {
            see(fleet, name, Err(Failure::Reset), bad, now);
        }
        assert_eq!(
            format!("{one_by_one:?}"),
            format!("{at_once:?}"),
            "{second}"
        );
    }
    assert_eq!(at_once.status(&key("a")), Some(EndpointStatus::Ejected));
}

#[test]
fn five_connect_failures_eject_for_as_long_as_configured() {
    let mut fleet = fleet(vec![fixture::cluster(&[&["a", "b"], &["c"]])]);
    see(&mut fleet, "a", Err(Failure::Connect), 4, at(1.0));
    assert_eq!(shares(&mut fleet, at(1.0)), [1000, 0]);
    see(&mut fleet, "a", Err(Failure::Connect), 1, at(1.0));
    assert_eq!(shares(&mut fleet, at(1.0)), [714, 286]);
    assert_eq!(fleet.next_wake(), Some(at(31.0)));
    assert_eq!(
        fleet.drain_events(),
        [
            FleetEvent::Ejected {
                key: key("a"),
                cause: EjectCause::Unreachable,
                lasts: Duration::from_secs(30)
            },
            FleetEvent::SharesMoved {
                cluster: "a/b:80".into(),
                route: "a/b".into(),
                levels: vec![
                    ("level 0".into(), 1.0, 5.0 / 7.0),
                    ("level 1".into(), 0.0, 1.0 - 5.0 / 7.0)
                ],
                too_few: false,
                moving: false
            }
        ]
    );
    let status = |fleet: &mut Fleet, now| fleet.shares(now).clusters[0].endpoints[0];
    assert_eq!(status(&mut fleet, at(30.9)), EndpointStatus::Ejected);
    // Until one request has succeeded.
    assert_eq!(status(&mut fleet, at(31.0)), EndpointStatus::Ejected);
    revive(&mut fleet, "a", at(31.0));
    assert_eq!(status(&mut fleet, at(31.0)), EndpointStatus::Healthy);
}
