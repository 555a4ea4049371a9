use super::*;
use crate::fixture::{service, snapshot};
use crate::names::HostPattern;
use crate::snapshot::{HostTable, PeerIx};

/// `a/one` (HTTP, one port), `a/two` (HTTP 80 and 81), `a/pass` (TCP, passthrough, 5432 and 5433),
/// `a/hidden` (HTTP, exported to nobody), `a/tcp` (TCP, terminate).
fn world() -> Snapshot {
    let two = |port| Service {
        ports: 2,
        ..service("a/two", "two.a", port)
    };
    let pass = |port| Service {
        ports: 2,
        protocol: Protocol::Tcp,
        inbound: Inbound::Passthrough,
        ..service("a/pass", "pass.a", port)
    };
    snapshot(vec![
        service("a/one", "one.a", 80),
        two(80),
        two(81),
        pass(5432),
        pass(5433),
        Service {
            export: Export::Nobody,
            ..service("a/hidden", "hidden.a", 80)
        },
        Service {
            protocol: Protocol::Tcp,
            ..service("a/tcp", "tcp.a", 99)
        },
        service("a/any", "*.any.a", 80),
    ])
}

fn tls(snapshot: &Snapshot, listener: &str, sni: Option<&str>) -> Routed {
    let hello = ClientHello {
        sni: sni.map(str::to_owned),
        ..ClientHello::default()
    };
    route_tls(snapshot, snapshot.listener(listener).unwrap(), &hello)
}

#[test]
fn health_reports_are_asked_for_by_name_and_protocol_where_there_are_peers() {
    let mut world = world();
    let ask = |world: &Snapshot, listener: &str, alpn: &[&[u8]]| {
        let hello = ClientHello {
            sni: Some("Peer.zeugma.internal".to_owned()),
            alpn: alpn.iter().map(|name| name.to_vec()).collect(),
            ..ClientHello::default()
        };
        route_tls(world, world.listener(listener).unwrap(), &hello)
    };
    let unknown = Routed::Refuse(Reason::SniUnknown);
    assert_eq!(ask(&world, "mesh", &[b"zeugma-peer/1"]), Routed::Reports);
    assert_eq!(ask(&world, "apps", &[b"zeugma-peer/1"]), unknown);
    assert_eq!(ask(&world, "mesh", &[b"h2"]), unknown);
    world.peers.edit(Vec::clear);
    assert_eq!(ask(&world, "mesh", &[b"zeugma-peer/1"]), unknown);
}

#[test]
fn what_nothing_else_is_there_for_is_the_rests() {
    let mut world = world();
    let apps = |world: &Snapshot| world.listener("apps").unwrap().clone();
    assert_eq!(
        tls(&world, "apps", None),
        Routed::Refuse(Reason::SniMissing)
    );
    for listener in &mut world.listeners {
        listener.hosts.rest = Some(ServiceIx(0));
    }
    for sni in [
        None,
        Some("nobody.a"),
        Some("10.0.0.1"),
        Some("outbound_.81_._.one.a"),
    ] {
        assert_eq!(
            tls(&world, "apps", sni),
            Routed::Terminate(ServiceIx(0)),
            "{sni:?}"
        );
    }
    assert_eq!(
        tls(&world, "apps", Some("tcp.a")),
        Routed::Terminate(ServiceIx(6))
    );
    let authority = |text| route_authority(&world, &apps(&world), text);
    for text in ["nobody.a", "10.0.0.1:80", "one.a:81", "a b"] {
        assert_eq!(authority(text), Ok(ServiceIx(0)), "{text}");
    }
    assert_eq!(authority(""), Err(Reason::AuthorityMissing));
    // One that is there for bytes takes no requests.
    for listener in &mut world.listeners {
        listener.hosts.rest = Some(ServiceIx(6));
    }
    let found = route_authority(&world, &apps(&world), "nobody.a");
    assert_eq!(found, Err(Reason::AuthorityUnknown));
}

#[test]
fn a_service_with_hosts_inside_is_asked_for_those_alone() {
    let mut world = world();
    let mut inside = HostTable::default();
    let host = HostPattern::parse("two.a").unwrap();
    inside.insert(&host, 80, ServiceIx(1));
    world.services[0].inside = Some(inside.clone().into());
    let ask = |world: &Snapshot, authority: &str| {
        check_authority(
            world,
            world.listener("apps").unwrap(),
            ServiceIx(0),
            authority,
        )
    };
    // Another route's, and its own is none of them.
    assert_eq!(ask(&world, "two.a"), Ok(ServiceIx(1)));
    assert_eq!(ask(&world, "one.a"), Err(Reason::Misdirected));
    assert_eq!(ask(&world, "two.a:81"), Err(Reason::Misdirected));
    inside.rest = Some(ServiceIx(2));
    world.services[0].inside = Some(inside.into());
    assert_eq!(ask(&world, "two.a:81"), Ok(ServiceIx(2)));
    assert_eq!(ask(&world, "10.1.1.1"), Ok(ServiceIx(2)));
    assert_eq!(ask(&world, ""), Err(Reason::AuthorityMissing));
}

#[test]
fn the_sni_decides_what_is_done_with_tls() {
    let world = world();
    let long = format!("{}.a", "x".repeat(300));
    for (listener, sni, expected) in [
        ("mesh", Some("one.a"), Routed::Terminate(ServiceIx(0))),
        ("mesh", Some("ONE.a."), Routed::Terminate(ServiceIx(0))),
        (
            "mesh",
            Some("outbound_.80_._.one.a"),
            Routed::Terminate(ServiceIx(0)),
        ),
        (
            "mesh",
            Some("outbound_.81_._.one.a"),
            Routed::Refuse(Reason::SniUnknown),
        ),
        ("mesh", Some("x.y.any.a"), Routed::Terminate(ServiceIx(7))),
        (
            "mesh",
            Some("two.a"),
            Routed::TerminateAnyPort(ServiceIx(1)),
        ),
        (
            "mesh",
            Some("outbound_.81_._.two.a"),
            Routed::Terminate(ServiceIx(2)),
        ),
        ("mesh", Some("pass.a"), Routed::Refuse(Reason::PortNeeded)),
        (
            "mesh",
            Some("outbound_.5433_._.pass.a"),
            Routed::Passthrough(ServiceIx(4)),
        ),
        (
            "mesh",
            Some("hidden.a"),
            Routed::Refuse(Reason::NotExported),
        ),
        ("apps", Some("hidden.a"), Routed::Terminate(ServiceIx(5))),
        ("mesh", Some("tcp.a"), Routed::Terminate(ServiceIx(6))),
        ("mesh", Some("nobody.a"), Routed::Refuse(Reason::SniUnknown)),
        (
            "mesh",
            Some("one.a.evil"),
            Routed::Refuse(Reason::SniUnknown),
        ),
        (
            "mesh",
            Some("10.0.0.1"),
            Routed::Refuse(Reason::SniMalformed),
        ),
        (
            "mesh",
            Some("bücher.a"),
            Routed::Refuse(Reason::SniMalformed),
        ),
        ("mesh", Some(&long), Routed::Refuse(Reason::SniMalformed)),
        ("mesh", None, Routed::Refuse(Reason::SniMissing)),
    ] {
        assert_eq!(tls(&world, listener, sni), expected, "{listener} {sni:?}");
    }
}

#[test]
fn an_export_list_without_peers_is_exported_to_nobody() {
    let mut world = world();
    world.services[0].export = Export::To(Vec::new());
    assert_eq!(
        tls(&world, "mesh", Some("one.a")),
        Routed::Refuse(Reason::NotExported)
    );
    world.services[0].export = Export::To(vec![PeerIx(0)]);
    assert_eq!(
        tls(&world, "mesh", Some("one.a")),
        Routed::Terminate(ServiceIx(0))
    );
}

#[test]
fn a_bare_host_shared_by_two_routes_names_neither() {
    let mut world = world();
    world.services[2].name = "a/other".into();
    assert_eq!(
        tls(&world, "mesh", Some("two.a")),
        Routed::Refuse(Reason::PortNeeded)
    );
    // That there are two is told to nobody where neither is exported.
    for service in &mut world.services[1..=2] {
        service.export = Export::Nobody;
    }
    assert_eq!(
        tls(&world, "mesh", Some("two.a")),
        Routed::Refuse(Reason::NotExported)
    );
}

#[test]
fn a_one_route_listener_waits_for_nothing_and_a_mesh_listener_takes_tls_alone() {
    let mut world = world();
    assert_eq!(
        route_plaintext(&world.listeners[0]),
        Routed::Refuse(Reason::NotTls)
    );
    assert_eq!(route_plaintext(&world.listeners[1]), Routed::PlainHttp);
    assert_eq!(route_unpeeked(&world.listeners[1]), None);
    for listener in &mut world.listeners {
        listener.only = Some(ServiceIx(6));
        listener.hosts = HostTable::default();
    }
    assert_eq!(route_unpeeked(&world.listeners[0]), None);
    assert_eq!(
        route_unpeeked(&world.listeners[1]),
        Some(Routed::Plain(ServiceIx(6)))
    );
    assert_eq!(tls(&world, "apps", None), Routed::Plain(ServiceIx(6)));
    assert_eq!(
        tls(&world, "mesh", Some("tcp.a")),
        Routed::Refuse(Reason::SniUnknown)
    );
}

#[test]
fn a_plaintext_request_is_routed_by_its_authority() {
    let world = world();
    let apps = world.listener("apps").unwrap();
    for (authority, expected) in [
        ("one.a", Ok(ServiceIx(0))),
        ("One.A.:80", Ok(ServiceIx(0))),
        ("one.a:81", Err(Reason::AuthorityUnknown)),
        ("one.a:15001", Ok(ServiceIx(0))),
        ("two.a:81", Ok(ServiceIx(2))),
        ("two.a", Err(Reason::PortNeeded)),
        ("hidden.a", Ok(ServiceIx(5))),
        ("tcp.a", Err(Reason::AuthorityUnknown)),
        ("127.0.0.1:15001", Err(Reason::AuthorityUnknown)),
        ("user@one.a", Err(Reason::AuthorityUnknown)),
        ("one.a:0", Err(Reason::AuthorityUnknown)),
        ("", Err(Reason::AuthorityMissing)),
    ] {
        assert_eq!(
            route_authority(&world, apps, authority),
            expected,
            "{authority}"
        );
    }
}

#[test]
fn inside_tls_the_authority_stays_on_the_snis_route() {
    let world = world();
    let mesh = world.listener("mesh").unwrap();
    for (sni, authority, expected) in [
        (0, "one.a", Ok(ServiceIx(0))),
        (0, "one.a:80", Ok(ServiceIx(0))),
        (0, "one.a:15443", Ok(ServiceIx(0))),
        (0, "two.a:80", Err(Reason::Misdirected)),
        (0, "hidden.a", Err(Reason::Misdirected)),
        (0, "nobody.a", Err(Reason::Misdirected)),
        (0, "[::1]", Err(Reason::Misdirected)),
        (0, "", Err(Reason::AuthorityMissing)),
        (1, "two.a:81", Ok(ServiceIx(2))),
        (1, "two.a:82", Err(Reason::Misdirected)),
        (2, "two.a", Ok(ServiceIx(2))),
        (5, "hidden.a", Err(Reason::Misdirected)),
    ] {
        assert_eq!(
            check_authority(&world, mesh, ServiceIx(sni), authority),
            expected,
            "{sni} {authority}"
        );
    }
    assert_eq!(
        check_authority_port(&world, mesh, ServiceIx(1), "two.a"),
        Err(Reason::PortNeeded)
    );
    assert_eq!(
        check_authority_port(&world, mesh, ServiceIx(1), "two.a:81"),
        Ok(ServiceIx(2))
    );
    assert_eq!(
        check_authority_port(&world, mesh, ServiceIx(0), "two.a"),
        Err(Reason::Misdirected)
    );
}
