//! The client's rules one by one. What is expected is worked out by hand from the rule that is cited.

use std::time::Duration;

use zeugma_core::time::Time;

use super::fixture::{Client, delta, eds, endpoints, fixed, listener, refusal, routes, said};
use super::link::{FALLBACK_AFTER, RETURN_AFTER, SILENCE};
use super::{Ended, Event, Kind, Limits, Notice, Resource, Verdict, WAIT};
use crate::pb::{self, Any, PbDuration, Status, discovery};

use Kind::{Cluster, Endpoints, Listener, Routes};

const NOTHING: [&str; 0] = [];

#[test]
fn p1_who_it_is_stands_in_the_first_message_alone() {
    let mut client = Client::new();
    assert_eq!(client.tick(), ["open 0 Delta"]);
    assert_eq!(
        client.handle(Event::Opened),
        ["Cluster +[] -[] has [] node", "Listener +[] -[] has []"]
    );
}

#[test]
fn p2_p24_p25_a_new_stream_begins_without_nonces_and_says_what_is_held_whatever_it_came_in() {
    let mut client = Client::open();
    let two = [("a", "1", eds("a", "")), ("b", "1", fixed("b", ""))];
    assert_eq!(
        client.delta(Cluster, "n1", &two),
        [
            "apply Cluster a=1, Cluster b=1",
            "Endpoints +[a] -[] has []"
        ]
    );
    // Half of a response is refused: the other half is held, and said to be.
    let said = client.bad(&[(Cluster, "b", "no use")]);
    assert_eq!(said, ["Cluster nack n1: cluster `b`: no use"]);
    client.delta(Endpoints, "n2", &[("a", "7", endpoints("a", "eu-1"))]);
    client.good();
    assert_eq!(client.held(), ["Cluster a=1", "Endpoints a=7"]);
    assert_eq!(
        client.handle(Event::Closed(Ended::Otherwise)),
        ["apply Cluster b withdrawn"]
    );
    client.good();
    assert_eq!(client.later(1), ["open 0 Delta"]);
    assert_eq!(
        client.handle(Event::Opened),
        [
            "Cluster +[] -[] has [a=1] node",
            "Endpoints +[a] -[] has [a=7]",
            "Listener +[] -[] has []",
        ]
    );
    // What the server does not have any more it says.
    let removed = delta(Cluster, "n1", &[], &["a"]);
    assert_eq!(
        client.handle(Event::Delta(removed)),
        ["apply Cluster a removed"]
    );
    let then = client.good();
    assert_eq!(
        then,
        [
            "Cluster ack n1",
            "Endpoints +[] -[a] has []",
            "apply Endpoints a removed"
        ]
    );
}

/// What broke: versions of one control plane were told to another, which calls something else so and sends
/// nothing.
#[test]
fn p4_p24_of_what_another_control_plane_gave_a_server_is_told_no_version_and_its_own_takes_the_place()
 {
    let kept = |name: &str| {
        let body = fixed(name, "");
        let resource = Resource {
            version: None,
            references: super::references(Cluster, name, &body).unwrap(),
            body: std::sync::Arc::new(body.into()),
        };
        (Cluster, name.into(), resource)
    };
    let held = ["a", "b", "c"].map(kept);
    let mut client = Client::with(1, Limits::default(), held);
    client.tick();
    assert_eq!(
        client.handle(Event::Opened),
        [
            "Cluster +[] -[] has [a=,b=,c=] node",
            "Listener +[] -[] has []"
        ]
    );
    // A heartbeat is of a version that is there.
    let heartbeat = discovery::DeltaDiscoveryResponse {
        resources: vec![discovery::Resource {
            name: "a".to_owned(),
            ..Default::default()
        }],
        ..delta(Cluster, "n0", &[], &[])
    };
    let said = client.handle(Event::Delta(heartbeat));
    assert!(
        said[0].starts_with("Cluster nack n0: cluster `a`"),
        "{said:?}"
    );
    // The same is the server's from now on, which is news for who keeps it.
    let two = [("a", "1", fixed("a", "")), ("b", "1", fixed("b", "other"))];
    assert_eq!(
        client.delta(Cluster, "n1", &two),
        ["apply Cluster a=1, Cluster b=1"]
    );
    client.bad(&[(Cluster, "b", "no use")]);
    assert_eq!(
        client.held(),
        ["Cluster a=1", "Cluster b=another's", "Cluster c=another's"]
    );
    assert_eq!(
        client.gone(Cluster, "n2", &["c"]),
        ["apply Cluster c removed"]
    );
    client.good();
    // And once is enough.
    let again = [("a", "2", fixed("a", ""))];
    assert_eq!(client.delta(Cluster, "n3", &again), ["Cluster ack n3"]);
    assert_eq!(client.held(), ["Cluster a=2", "Cluster b=another's"]);
}

#[test]
fn p3_p8_a_full_answer_is_refused_with_the_version_before_and_so_begins_the_next_stream() {
    let mut client = Client::open_full();
    client.full(Cluster, "1", "x", &[fixed("a", "")]);
    assert_eq!(client.good(), ["Cluster v=1 n=x []"]);
    client.full(Cluster, "2", "y", &[fixed("a", "other")]);
    let refused = client.bad(&[(Cluster, "a", "no use")]);
    assert_eq!(refused, ["Cluster v=1 n=y [] error: cluster `a`: no use"]);
    client.handle(Event::Closed(Ended::Otherwise));
    client.good();
    // It is asked for what changed anew: its server may have learnt it.
    assert_eq!(client.later(1), ["open 0 Delta"]);
    assert_eq!(
        client.handle(Event::Closed(Ended::Unimplemented)),
        ["open 0 Full"]
    );
    assert_eq!(
        client.handle(Event::Opened),
        ["Cluster v=1 n= [] node", "Listener v= n= []"]
    );
}

#[test]
fn p4_a_version_that_looks_smaller_is_a_version_like_any_other() {
    let mut client = Client::open_full();
    client.full(Cluster, "9", "x", &[fixed("a", "")]);
    client.good();
    assert_eq!(
        client.full(Cluster, "1", "y", &[fixed("a", "other")]),
        ["apply Cluster a=1"]
    );
    assert_eq!(client.good(), ["Cluster v=1 n=y []"]);
}

#[test]
fn p5_what_it_can_do_stands_beside_who_it_is() {
    let mut client = Client::new();
    client.tick();
    let actions = client.session.handle(Event::Opened, Time::ZERO, 0.0);
    let node = actions.iter().find_map(|action| {
        let super::Action::Delta(request) = action else {
            return None;
        };
        request.node.clone()
    });
    let node = node.unwrap();
    assert_eq!(node.id, "east-gw");
    assert_eq!(node.client_features, ["xds.config.resource-in-sotw"]);
}

#[test]
fn p7_every_response_is_answered_after_what_it_brought_was_judged_and_never_before() {
    let mut client = Client::open();
    client.delta(Cluster, "n1", &[("a", "1", fixed("a", ""))]);
    // More comes before the verdict: each waits for its own.
    assert_eq!(
        client.delta(Listener, "n2", &[("l", "1", listener("l", &[]))]),
        NOTHING
    );
    assert_eq!(client.good(), ["apply Listener l=1", "Cluster ack n1"]);
    assert_eq!(client.good(), ["Listener ack n2"]);
    // What brings nothing is answered at once.
    assert_eq!(
        client.gone(Cluster, "n3", &["never-was"]),
        ["Cluster ack n3"]
    );
}

#[test]
fn p11_p36_equal_bytes_under_another_version_change_nothing_but_the_version() {
    let mut client = Client::open();
    client.delta(Cluster, "n1", &[("a", "1", fixed("a", ""))]);
    client.good();
    let again = client.delta(Cluster, "n2", &[("a", "2", fixed("a", ""))]);
    assert_eq!(again, ["Cluster ack n2"]);
    assert_eq!(client.held(), ["Cluster a=2"]);
}

#[test]
fn p13_what_a_full_answer_of_all_does_not_name_is_gone_and_nothing_named_is_all_gone() {
    let mut client = Client::open_full();
    client.full(Cluster, "1", "x", &[fixed("a", ""), fixed("b", "")]);
    client.good();
    assert_eq!(
        client.full(Cluster, "2", "y", &[fixed("b", "")]),
        ["apply Cluster a removed"]
    );
    client.good();
    assert_eq!(
        client.full(Cluster, "3", "z", &[]),
        ["apply Cluster b removed"]
    );
    assert_eq!(client.good(), ["Cluster v=3 n=z []"]);
    assert_eq!(client.held(), NOTHING);
}

#[test]
fn p13_p29_one_that_cannot_be_told_by_name_may_be_any_that_seems_gone_so_none_is() {
    let mut client = Client::open_full();
    client.full(Cluster, "1", "x", &[fixed("a", ""), fixed("b", "")]);
    client.good();
    let garbage = Any {
        type_url: Cluster.type_url(),
        value: vec![0xff; 9],
    };
    let refused = client.full(Cluster, "2", "y", &[fixed("b", ""), garbage]);
    assert_eq!(
        refused,
        ["Cluster v=1 n=y [] error: cluster `#1`: its name cannot be read"]
    );
    assert_eq!(client.held(), ["Cluster a=1", "Cluster b=2"]);
}

#[test]
fn p14_what_a_full_answer_by_name_does_not_name_stays() {
    let mut client = Client::open_full();
    client.full(Cluster, "1", "x", &[eds("a", ""), eds("b", "")]);
    assert_eq!(client.good(), ["Cluster v=1 n=x []",]);
    client.full(
        Endpoints,
        "1",
        "e1",
        &[endpoints("a", "z"), endpoints("b", "z")],
    );
    assert_eq!(client.good(), ["Endpoints v=1 n=e1 [a,b]"]);
    assert_eq!(
        client.full(Endpoints, "2", "e2", &[]),
        ["Endpoints v=2 n=e2 [a,b]"]
    );
    assert_eq!(
        client.full(Endpoints, "3", "e3", &[endpoints("b", "y")]),
        ["apply Endpoints b=3"]
    );
    client.good();
    assert_eq!(
        client.held(),
        [
            "Cluster a=1",
            "Cluster b=1",
            "Endpoints a=1",
            "Endpoints b=3"
        ]
    );
    // It goes with what refers to it, and no earlier.
    client.full(Cluster, "2", "y", &[eds("b", "")]);
    assert_eq!(
        client.good(),
        [
            "Cluster v=2 n=y []",
            "Endpoints v=3 n=e3 [b]",
            "apply Endpoints a removed"
        ]
    );
}

#[test]
fn p15_named_kinds_are_not_asked_for_until_there_is_a_name_and_then_by_names() {
    let mut client = Client::open_full();
    assert_eq!(
        client.full(Listener, "1", "x", &[listener("l", &["r", "q"])]),
        ["apply Listener l=1", "Routes v= n= [q,r]"]
    );
    client.good();
    // The last name goes: the list is empty, which by then means none.
    client.full(Listener, "2", "y", &[]);
    let then = client.good();
    assert_eq!(then, ["Listener v=2 n=y []", "Routes v= n= []"]);
}

#[test]
fn p16_what_was_not_asked_for_is_answered_and_left() {
    let mut client = Client::open();
    assert_eq!(
        client.delta(Endpoints, "n1", &[("a", "1", endpoints("a", "z"))]),
        ["Endpoints ack n1"]
    );
    assert_eq!(client.held(), NOTHING);
    let mut strange = delta(Cluster, "n2", &[], &[]);
    strange.type_url = "type.googleapis.com/x.Y".to_owned();
    let told = client
        .session
        .handle(Event::Delta(strange), client.now, 0.0);
    let [.., super::Action::Tell(Notice::Strange(what))] = told.as_slice() else {
        panic!("{told:?}");
    };
    assert_eq!(what, "type.googleapis.com/x.Y");
}

#[test]
fn p17_a_name_that_comes_twice_is_refused_and_what_is_there_stays() {
    for is_full in [false, true] {
        let mut client = if is_full {
            Client::open_full()
        } else {
            Client::open()
        };
        let give = |client: &mut Client, nonce: &str, all: &[(&str, Any)]| {
            if is_full {
                let all: Vec<Any> = all.iter().map(|(_, any)| any.clone()).collect();
                client.full(Cluster, nonce, nonce, &all)
            } else {
                let all: Vec<_> = all
                    .iter()
                    .map(|(name, any)| (*name, nonce, any.clone()))
                    .collect();
                client.delta(Cluster, nonce, &all)
            }
        };
        give(&mut client, "1", &[("a", fixed("a", ""))]);
        client.good();
        let twice = [
            ("a", fixed("a", "x")),
            ("a", fixed("a", "y")),
            ("b", fixed("b", "")),
        ];
        assert_eq!(give(&mut client, "2", &twice), ["apply Cluster b=2"]);
        let said = client.good();
        assert!(
            said[0].contains("cluster `a`: it comes twice in one response"),
            "{said:?}"
        );
        assert_eq!(client.held(), ["Cluster a=1", "Cluster b=2"]);
    }
}

#[test]
fn p18_p34_what_does_not_come_in_15_s_is_missing_and_is_waited_for_all_the_same() {
    let mut client = Client::open();
    client.later(5);
    client.delta(Cluster, "n1", &[("a", "1", eds("a", ""))]);
    client.good();
    // The listeners were never answered for: they count as none from 15 s on (P26).
    assert_eq!(client.later(9), NOTHING);
    assert!(!client.session.kinds[&Listener].is_complete());
    assert_eq!(client.later(1), ["apply "]);
    client.good();
    assert!(client.session.kinds[&Listener].is_complete());
    // The endpoints were asked for 5 s later.
    assert!(!client.session.is_complete());
    assert_eq!(client.later(4), NOTHING);
    assert_eq!(client.later(1), ["apply Endpoints a missing"]);
    client.good();
    assert!(client.session.is_complete());
    assert_eq!(
        client.delta(Endpoints, "n2", &[("a", "1", endpoints("a", "z"))]),
        ["apply Endpoints a=1"]
    );
    client.good();
    assert_eq!(client.held(), ["Cluster a=1", "Endpoints a=1"]);
}

#[test]
fn p18_the_timer_stands_still_without_a_stream_begins_anew_with_one_and_spares_what_is_there() {
    let mut client = Client::open();
    client.delta(
        Cluster,
        "n1",
        &[("a", "1", eds("a", "")), ("b", "1", eds("b", ""))],
    );
    client.good();
    client.delta(Endpoints, "n2", &[("b", "1", endpoints("b", "z"))]);
    client.good();
    client.delta(Listener, "n3", &[]);
    client.good();
    client.later(14);
    client.handle(Event::Closed(Ended::Otherwise));
    assert_eq!(client.later(60), ["open 0 Delta"]);
    client.handle(Event::Opened);
    assert_eq!(client.later(14), NOTHING);
    assert_eq!(client.later(1), ["apply Endpoints a missing"]);
}

#[test]
fn p20_a_response_without_a_nonce_cannot_be_answered_and_ends_the_stream() {
    let mut client = Client::open();
    assert_eq!(
        client.delta(Cluster, "", &[]),
        ["close: a response without a nonce"]
    );
    assert_eq!(client.later(1), ["open 0 Delta"]);
}

#[test]
fn p21_p22_what_is_wanted_more_or_no_more_is_said_without_a_nonce_at_once() {
    let mut client = Client::open();
    client.delta(Listener, "n1", &[("l", "1", listener("l", &["r"]))]);
    client.good();
    client.delta(Routes, "n2", &[("r", "1", routes("r", "h"))]);
    client.good();
    // While the new listener is not judged both are wanted.
    assert_eq!(
        client.delta(Listener, "n3", &[("l", "2", listener("l", &["q"]))]),
        ["apply Listener l=2", "Routes +[q] -[] has []"]
    );
    // The server says that there is none: known at once, without any timer.
    client.good();
    assert_eq!(client.gone(Routes, "n4", &["q"]), NOTHING);
    assert_eq!(client.good(), ["apply Routes q removed"]);
    assert_eq!(client.good(), ["Routes ack n4"]);
    assert!(client.session.kinds[&Routes].is_complete());
    // P19: it was asked for, and comes when it is made.
    assert_eq!(
        client.delta(Routes, "n5", &[("q", "1", routes("q", "h"))]),
        ["apply Routes q=1"]
    );
}

#[test]
fn p29_the_good_ones_of_a_response_serve_and_each_bad_one_is_named() {
    let mut client = Client::open();
    client.delta(
        Cluster,
        "n1",
        &[
            ("bad", "1", fixed("bad", "")),
            ("worse", "1", fixed("worse", "")),
        ],
    );
    client.good();
    let garbage = Any {
        type_url: Cluster.type_url(),
        value: vec![0x0a, 0x05, b'w'],
    };
    let all = [
        ("good", "2", fixed("good", "")),
        ("bad", "2", fixed("bad", "x")),
        ("worse", "2", garbage),
        ("wrong", "2", listener("wrong", &[])),
        ("other", "2", fixed("another", "")),
    ];
    assert_eq!(
        client.delta(Cluster, "n2", &all),
        ["apply Cluster bad=2, Cluster good=2"]
    );
    let said = client.bad(&[(Cluster, "bad", "no use")]).join("");
    for part in [
        "Cluster nack n2: cluster `worse`: ",
        "cluster `wrong`: it is a `type.googleapis.com/envoy.config.listener.v3.Listener`",
        "cluster `other`: within it is called `another`",
        "cluster `bad`: no use",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(
        client.held(),
        ["Cluster bad=1", "Cluster good=2", "Cluster worse=1"]
    );
}

#[test]
fn what_was_refused_serves_when_it_can_and_is_held_then() {
    let mut client = Client::open();
    client.delta(Listener, "n1", &[("l", "1", listener("l", &["r"]))]);
    client.bad(&[(Listener, "l", "no cluster `c`")]);
    assert_eq!(client.held(), NOTHING);
    // What it refers to is asked for all the same: else it could never serve.
    assert!(client.session.kinds[&Routes].names() == ["r"]);
    client.delta(Cluster, "n2", &[("c", "1", fixed("c", ""))]);
    let verdict = Verdict {
        revived: vec![(Listener, "l".into())],
        ..Verdict::default()
    };
    assert_eq!(client.handle(Event::Applied(verdict)), ["Cluster ack n2"]);
    assert_eq!(client.held(), ["Cluster c=1", "Listener l=1"]);
    // The last good one comes again: what waited beside it must not serve any more.
    client.delta(Listener, "n3", &[("l", "2", listener("l", &[]))]);
    client.bad(&[(Listener, "l", "no use")]);
    let back = client.delta(Listener, "n4", &[("l", "1", listener("l", &["r"]))]);
    assert_eq!(back, ["apply Listener l=1"]);
}

#[test]
fn p25_what_was_acknowledged_and_is_refused_once_it_does_not_wait_any_more_is_not_held_and_told_of()
{
    let mut client = Client::open();
    client.delta(Listener, "n1", &[("l", "1", listener("l", &[]))]);
    client.good();
    let good = client.session.held().next().unwrap().2.clone();
    let two = [
        ("k", "2", fixed_listener("k")),
        ("l", "2", fixed_listener("l")),
    ];
    client.delta(Listener, "n2", &two);
    // Both wait for something that is to come.
    assert_eq!(client.good(), ["Listener ack n2"]);
    assert_eq!(client.held(), ["Listener k=2", "Listener l=2"]);
    let late = |client: &mut Client, nonce: &str| {
        client.delta(Cluster, nonce, &[("c", nonce, fixed("c", nonce))]);
        let refused = [
            refusal(Listener, "k", "no cluster `d`", None),
            refusal(Listener, "l", "no cluster `d`", Some(good.clone())),
        ];
        let verdict = Verdict {
            refused: refused.into(),
            ..Verdict::default()
        };
        let (session, now) = (&mut client.session, client.now);
        let told = session.handle(Event::Applied(verdict), now, 0.0);
        let told = told.into_iter().filter_map(|action| {
            let super::Action::Tell(Notice::Rejected(kind, faults)) = action else {
                return None;
            };
            Some((kind, faults.len()))
        });
        told.collect::<Vec<_>>()
    };
    assert_eq!(late(&mut client, "n3"), [(Listener, 2)]);
    assert_eq!(client.held(), ["Cluster c=n3", "Listener l=1"]);
    // It is not said again and again.
    assert_eq!(late(&mut client, "n4"), []);
    client.delta(Cluster, "n5", &[("d", "1", fixed("d", ""))]);
    client.handle(Event::Applied(Verdict {
        revived: vec![(Listener, "l".into())],
        ..Verdict::default()
    }));
    assert_eq!(
        client.held(),
        ["Cluster c=n4", "Cluster d=1", "Listener l=2"]
    );
    // One that is refused in the place of one that waited: what served before both is held.
    client.delta(Listener, "n6", &[("l", "3", listener("l", &["r"]))]);
    client.good();
    client.delta(Listener, "n7", &[("l", "4", listener("l", &["q"]))]);
    let refused = [refusal(Listener, "l", "no use", Some(good.clone()))];
    client.handle(Event::Applied(Verdict {
        refused: refused.into(),
        ..Verdict::default()
    }));
    assert!(client.held().contains(&"Listener l=1".to_owned()));
}

#[test]
fn p2_what_was_refused_on_one_stream_does_not_come_to_serve_on_the_next_unless_it_comes_again() {
    let mut client = Client::open();
    client.delta(Listener, "n1", &[("l", "1", listener("l", &[]))]);
    client.good();
    let two = [
        ("k", "2", fixed_listener("k")),
        ("l", "2", fixed_listener("l")),
    ];
    client.delta(Listener, "n2", &two);
    client.bad(&[(Listener, "k", "no use"), (Listener, "l", "no use")]);
    assert_eq!(
        client.handle(Event::Closed(Ended::Otherwise)),
        ["apply Listener k withdrawn, Listener l withdrawn"]
    );
    assert_eq!(client.later(1), ["open 0 Delta"]);
    // What is held is said once it is known.
    assert_eq!(
        client.handle(Event::Opened),
        ["Cluster +[] -[] has [] node"]
    );
    assert_eq!(client.good(), ["Listener +[] -[] has [l=1]"]);
    let late = Verdict {
        revived: vec![(Listener, "k".into()), (Listener, "l".into())],
        ..Verdict::default()
    };
    client.delta(Cluster, "n3", &[("c", "1", fixed("c", ""))]);
    client.handle(Event::Applied(late));
    assert_eq!(client.held(), ["Cluster c=1", "Listener l=1"]);
    // And the first answer of the new stream speaks of all that is wrong.
    let (session, now) = (&mut client.session, client.now);
    let empty = Event::Delta(delta(Listener, "n4", &[], &[]));
    let told = session.handle(empty, now, 0.0);
    let mended = told.into_iter().filter_map(|action| {
        let super::Action::Tell(Notice::Mended(_, name)) = action else {
            return None;
        };
        Some(name.to_string())
    });
    assert_eq!(mended.collect::<Vec<_>>(), ["k", "l"]);
}

#[test]
fn what_was_refused_and_is_not_asked_for_any_more_is_told_of() {
    let mut client = Client::open();
    client.delta(Cluster, "n1", &[("a", "1", eds("a", ""))]);
    client.good();
    client.delta(Endpoints, "n2", &[("a", "1", endpoints("a", "z"))]);
    client.bad(&[(Endpoints, "a", "no use")]);
    client.gone(Cluster, "n3", &["a"]);
    let (session, now) = (&mut client.session, client.now);
    let told = session.handle(Event::Applied(Verdict::default()), now, 0.0);
    let is_told = |action: &super::Action| matches!(action, super::Action::Tell(Notice::Mended(Endpoints, name)) if &**name == "a");
    assert!(told.iter().any(is_told), "{told:?}");
}

#[test]
fn p3_a_full_answer_of_which_something_was_refused_late_is_asked_for_again() {
    let mut client = Client::open_full();
    client.full(Listener, "1", "x", &[listener("l", &[])]);
    client.good();
    client.full(Cluster, "1", "y", &[fixed("c", "")]);
    client.handle(Event::Applied(Verdict {
        refused: [refusal(Listener, "l", "no cluster `d`", None)].into(),
        ..Verdict::default()
    }));
    client.handle(Event::Closed(Ended::Otherwise));
    client.good();
    client.later(1);
    client.handle(Event::Closed(Ended::Unimplemented));
    assert_eq!(
        client.handle(Event::Opened),
        ["Cluster v=1 n= [] node", "Listener v= n= []"]
    );
}

/// One that refers to nothing, and is not what `listener` makes.
fn fixed_listener(name: &str) -> Any {
    let mut any = listener(name, &[]);
    // The name again: the last one counts.
    any.value.extend_from_within(..);
    any
}

#[test]
fn a_removal_that_is_refused_is_told_once_and_what_was_to_go_stays() {
    let mut client = Client::open();
    client.delta(Listener, "n1", &[("l", "1", listener("l", &[]))]);
    client.good();
    client.gone(Listener, "n2", &["l"]);
    let said = client.bad(&[(Listener, "l", "nothing would be left")]);
    assert_eq!(
        said,
        ["Listener nack n2: listener `l`: nothing would be left"]
    );
    assert_eq!(client.held(), ["Listener l=1"]);
    // It is there again: that it was to go is taken back.
    let again = client.delta(Listener, "n3", &[("l", "1", listener("l", &[]))]);
    assert_eq!(again, ["apply Listener l=1"]);
    assert_eq!(client.good(), ["Listener ack n3"]);
    // Refused again, and gone at last.
    client.gone(Listener, "n4", &["l"]);
    client.bad(&[(Listener, "l", "nothing would be left")]);
    client.delta(Cluster, "n5", &[("c", "1", fixed("c", ""))]);
    client.handle(Event::Applied(Verdict {
        gone: vec![(Listener, "l".into())],
        ..Verdict::default()
    }));
    assert_eq!(client.held(), ["Cluster c=1"]);
}

#[test]
fn p24_a_removal_that_was_refused_is_asked_for_again_on_the_next_stream() {
    let mut client = Client::open();
    client.delta(Listener, "n1", &[("l", "1", listener("l", &[]))]);
    client.good();
    client.gone(Listener, "n2", &["l"]);
    client.bad(&[(Listener, "l", "nothing would be left")]);
    // The server may have it again by then, and would not say so: the version is the same.
    assert_eq!(
        client.handle(Event::Closed(Ended::Otherwise)),
        ["apply Listener l withdrawn"]
    );
    client.good();
    client.later(1);
    assert_eq!(
        client.handle(Event::Opened),
        ["Cluster +[] -[] has [] node", "Listener +[] -[] has [l=1]"]
    );
}

#[test]
fn p28_p41_what_a_server_could_not_make_is_told_and_what_is_there_stays_unless_there_is_none() {
    let mut client = Client::open();
    let both = [("a", "1", eds("a", "")), ("b", "1", eds("b", ""))];
    client.delta(Cluster, "n1", &both);
    client.good();
    client.delta(Endpoints, "n2", &[("a", "1", endpoints("a", "z"))]);
    client.good();
    let error = |name: &str, code: i32| discovery::ResourceError {
        resource_name: Some(discovery::ResourceName {
            name: name.to_owned(),
            ..Default::default()
        }),
        error_detail: Some(Status {
            code,
            message: "no".to_owned(),
            ..Default::default()
        }),
    };
    let mut response = delta(Endpoints, "n3", &[], &[]);
    // 14 UNAVAILABLE is for now; 7 PERMISSION_DENIED is of what is not there; both leave the rest.
    response.resource_errors = vec![error("a", 14), error("a", 7), error("b", 7)];
    assert_eq!(
        client.handle(Event::Delta(response)),
        ["apply Endpoints b missing"]
    );
    client.good();
    // 5 NOT_FOUND is as good as removed.
    let mut response = delta(Endpoints, "n4", &[], &[]);
    response.resource_errors = vec![error("a", 5)];
    assert_eq!(
        client.handle(Event::Delta(response)),
        ["apply Endpoints a removed"]
    );
}

#[test]
fn p33_two_that_refer_to_one_name_share_it_and_neither_waits_for_what_is_there() {
    let mut client = Client::open();
    client.delta(Listener, "n1", &[("l", "1", listener("l", &["r"]))]);
    client.good();
    client.delta(Routes, "n2", &[("r", "1", routes("r", "h"))]);
    client.good();
    assert_eq!(
        client.delta(Listener, "n3", &[("k", "1", listener("k", &["r"]))]),
        ["apply Listener k=1"]
    );
    client.good();
    client.delta(Cluster, "n4", &[]);
    client.good();
    assert!(client.session.is_complete());
    assert_eq!(client.session.wake(), None);
    client.gone(Listener, "n5", &["l"]);
    assert_eq!(client.good(), ["Listener ack n5"]);
}

#[test]
fn p39_a_stream_that_never_answered_is_opened_again_later_and_later_and_one_that_did_is_not() {
    let mut client = Client::new();
    client.tick();
    // The draw is 1: the longest of each, by hand.
    for millis in [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
        client.handle(Event::Closed(Ended::Otherwise));
        let due = client.now + Duration::from_millis(millis);
        assert_eq!(client.session.wake(), Some(due));
        client.now = due;
        assert_eq!(client.tick(), ["open 0 Delta"]);
    }
    client.handle(Event::Opened);
    client.handle(Event::Closed(Ended::Otherwise));
    assert_eq!(
        client.session.wake(),
        Some(client.now + Duration::from_secs(30))
    );
    client.later(30);
    client.handle(Event::Opened);
    client.delta(Cluster, "n1", &[]);
    client.handle(Event::Closed(Ended::Otherwise));
    assert_eq!(
        client.session.wake(),
        Some(client.now + Duration::from_millis(500))
    );
    // A draw of nothing: at once.
    let now = client.now + Duration::from_secs(1);
    client.session.handle(Event::Tick, now, 0.0);
    let then = client
        .session
        .handle(Event::Closed(Ended::Otherwise), now, 0.0);
    assert_eq!(said(&then), ["open 0 Delta"]);
}

#[test]
fn a_server_that_knows_no_deltas_is_asked_in_full_at_once_and_one_that_knows_neither_later() {
    let mut client = Client::new();
    client.tick();
    assert_eq!(
        client.handle(Event::Closed(Ended::Unimplemented)),
        ["open 0 Full"]
    );
    assert_eq!(client.handle(Event::Closed(Ended::Unimplemented)), NOTHING);
    assert_eq!(client.later(1), ["open 0 Delta"]);
}

#[test]
fn p42_another_server_is_asked_at_once_where_something_is_missing_and_the_first_again_later() {
    let mut client = Client::of(2, Limits::default());
    client.tick();
    assert_eq!(
        client.handle(Event::Closed(Ended::Otherwise)),
        ["open 1 Delta"]
    );
    client.handle(Event::Opened);
    client.delta(Cluster, "n1", &[("c", "1", fixed("c", ""))]);
    client.good();
    client.delta(Listener, "n2", &[]);
    client.good();
    assert!(client.session.is_complete());
    // The draw is 1: twice the time.
    assert_eq!(client.later(RETURN_AFTER.as_secs() * 2 - 1), NOTHING);
    assert_eq!(
        client.later(1),
        ["close: the first server is asked again", "open 0 Delta"]
    );
    // It is still gone: back to the one that answered, at once.
    assert_eq!(
        client.handle(Event::Closed(Ended::Otherwise)),
        ["open 1 Delta"]
    );
    client.handle(Event::Opened);
    client.delta(Cluster, "n1", &[]);
    // All that is wanted is there: no hurry, and the first server comes first ...
    assert_eq!(client.handle(Event::Closed(Ended::Otherwise)), NOTHING);
    assert_eq!(client.later(1), ["open 0 Delta"]);
    assert_eq!(client.handle(Event::Closed(Ended::Otherwise)), NOTHING);
    // ... but not for ever.
    client.now = client.now + FALLBACK_AFTER;
    assert_eq!(client.tick(), ["open 0 Delta"]);
    assert_eq!(
        client.handle(Event::Closed(Ended::Otherwise)),
        ["open 1 Delta"]
    );
    // Both are gone: a pause, and from the beginning.
    assert_eq!(client.handle(Event::Closed(Ended::Otherwise)), NOTHING);
    assert_eq!(client.later(30), ["open 0 Delta"]);
}

#[test]
fn a_server_that_is_open_and_says_nothing_is_left_for_another_where_there_is_one() {
    let mut client = Client::of(2, Limits::default());
    client.tick();
    client.handle(Event::Opened);
    // By then all that was asked for counts as missing: that is no reason to hurry, but to go on.
    client.later(WAIT.as_secs());
    client.good();
    let silent = client.later((SILENCE - WAIT).as_secs());
    assert_eq!(silent[0], "close: it says nothing");
    let mut alone = Client::open();
    assert_eq!(alone.later(WAIT.as_secs()).len(), 1);
    assert_eq!(alone.later(3600), NOTHING);
}

#[test]
fn p44_a_resource_ends_with_its_time_unless_a_heartbeat_comes() {
    let with_ttl = |version: &str, body: Option<Any>| {
        let mut response = delta(Cluster, "n", &[], &[]);
        response.resources = vec![discovery::Resource {
            name: "a".to_owned(),
            version: version.to_owned(),
            resource: body,
            ttl: Some(PbDuration {
                seconds: 10,
                nanos: 0,
            }),
            ..Default::default()
        }];
        Event::Delta(response)
    };
    let mut client = Client::open();
    assert_eq!(
        client.handle(with_ttl("1", Some(fixed("a", "")))),
        ["apply Cluster a=1"]
    );
    client.good();
    client.later(9);
    assert_eq!(client.handle(with_ttl("1", None)), ["Cluster ack n"]);
    assert_eq!(client.later(9), ["apply "]);
    client.good();
    let wrong = client.handle(with_ttl("2", None)).join("");
    assert!(
        wrong.contains("no body, and is not the version that is there"),
        "{wrong}"
    );
    assert_eq!(client.later(1), ["apply Cluster a removed"]);
    client.good();
    assert_eq!(client.held(), NOTHING);
}

#[test]
fn p44_a_full_answer_wraps_what_has_a_time_to_live() {
    let mut client = Client::open_full();
    let wrapped = pb::pack(&discovery::Resource {
        name: "a".to_owned(),
        version: "other".to_owned(),
        resource: Some(fixed("a", "")),
        ttl: Some(PbDuration {
            seconds: 10,
            nanos: 0,
        }),
        ..Default::default()
    });
    assert_eq!(
        client.full(Cluster, "1", "x", &[wrapped]),
        ["apply Cluster a=1"]
    );
    client.good();
    assert_eq!(client.later(10), ["apply Cluster a removed"]);
}

#[test]
fn p45_no_authority_is_known_and_names_of_one_are_refused() {
    let mut client = Client::open();
    let name = "xdstp://acme/envoy.config.cluster.v3.Cluster/a";
    client.delta(Cluster, "n1", &[(name, "1", fixed(name, ""))]);
    let said = client.good().join("");
    assert!(
        said.contains("the authority of its name is not known"),
        "{said}"
    );
    client.delta(
        Listener,
        "n2",
        &[("l", "1", listener("l", &["xdstp://acme/r"]))],
    );
    let said = client.good().join("");
    assert!(said.contains("refers to is not known"), "{said}");
}

#[test]
fn what_a_server_may_make_a_gateway_keep_is_bounded() {
    let limits = Limits {
        resources: 2,
        bytes: 60,
        name_bytes: 10,
        unanswered: 2,
    };
    let mut client = Client::of(1, limits);
    client.tick();
    client.handle(Event::Opened);
    let long = "x".repeat(11);
    client.delta(Cluster, "n1", &[(&long, "1", fixed(&long, ""))]);
    let said = client.good().join("");
    assert!(said.contains("its name is over 10 bytes"), "{said}");
    let three = ["a", "b", "c"].map(|name| (name, "1", fixed(name, "")));
    assert_eq!(
        client.delta(Cluster, "n2", &three),
        ["apply Cluster a=1, Cluster b=1"]
    );
    let said = client.good().join("");
    assert!(
        said.contains("cluster `c`: there are 2 resources already"),
        "{said}"
    );
    // One in the place of one there is room for; 60 bytes there are not.
    let other = client.delta(Cluster, "n3", &[("a", "2", fixed("a", "other"))]);
    assert_eq!(other, ["apply Cluster a=2"]);
    client.good();
    let big = fixed("a", &"x".repeat(60));
    let said = client.delta(Cluster, "n4", &[("a", "3", big)]).join("");
    assert!(said.contains("over 60 bytes"), "{said}");
    assert_eq!(client.held(), ["Cluster a=2", "Cluster b=1"]);
    // One that was refused counts, as what serves in its place does.
    client.delta(Cluster, "n5", &[("a", "9", fixed("a", &"x".repeat(20)))]);
    client.bad(&[(Cluster, "a", "no use")]);
    let long = fixed("b", &"x".repeat(20));
    let said = client.delta(Cluster, "n6", &[("b", "9", long)]).join("");
    assert!(said.contains("over 60 bytes"), "{said}");
    // Responses that wait for a verdict.
    client.delta(Cluster, "n5", &[("a", "4", fixed("a", "x"))]);
    client.delta(Cluster, "n6", &[("a", "5", fixed("a", "y"))]);
    assert_eq!(
        client.delta(Cluster, "n7", &[]),
        ["close: too many responses that were not answered yet"]
    );
}

#[test]
fn a_server_is_told_of_so_many_faults_and_of_each_so_much() {
    let mut client = Client::open();
    let names: Vec<String> = (0..30).map(|nth| format!("c{nth:02}")).collect();
    let all: Vec<_> = (names.iter())
        .map(|name| (name.as_str(), "1", listener(name, &[])))
        .collect();
    client.delta(Cluster, "n1", &all);
    let said = client.good().join("");
    assert!(said.contains("`c19`") && !said.contains("`c20`"), "{said}");
    assert!(said.ends_with("and 10 more"), "{said}");
    client.delta(Cluster, "n2", &[("a", "1", fixed("a", ""))]);
    let said = client.bad(&[(Cluster, "a", &"x".repeat(600))]).join("");
    assert!(said.len() < 600 && said.ends_with("x ..."), "{said}");
}

#[test]
fn what_was_refused_is_told_of_when_it_is_not_any_more() {
    let mut client = Client::open_full();
    let mended = |client: &mut Client, version: &str, all: &[Any]| -> Vec<String> {
        let response = discovery::DiscoveryResponse {
            version_info: version.to_owned(),
            resources: all.to_vec(),
            type_url: Cluster.type_url(),
            nonce: version.to_owned(),
            ..Default::default()
        };
        let mut actions = client
            .session
            .handle(Event::Full(response), client.now, 0.0);
        actions.extend(
            client
                .session
                .handle(Event::Applied(Verdict::default()), client.now, 0.0),
        );
        let told = actions.into_iter().filter_map(|action| {
            let super::Action::Tell(Notice::Mended(_, name)) = action else {
                return None;
            };
            Some(name.to_string())
        });
        told.collect()
    };
    let garbage = Any {
        type_url: Cluster.type_url(),
        value: vec![0xff; 9],
    };
    let wrong = listener("b", &[]);
    assert_eq!(
        mended(
            &mut client,
            "1",
            &[garbage, wrong.clone(), listener("c", &[])]
        ),
        NOTHING
    );
    assert_eq!(
        mended(&mut client, "2", &[wrong, fixed("c", "")]),
        ["#0", "c"]
    );
    assert_eq!(mended(&mut client, "3", &[]), ["b"]);
    assert_eq!(mended(&mut client, "4", &[]), NOTHING);
}
