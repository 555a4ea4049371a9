//! One row for each field. What is expected is worked out by hand from the manual, in the comment
//! above it where it is not plain.

use std::time::Duration;

use zeugma_core::snapshot::Failure::{Connect, Grpc, Reset, Status, Unavailable};

use super::decided::{ORDERS, PG, World};
use super::{Row, row};

const NEAR: [&str; 2] = ["10.0.1.1:80", "10.0.1.2:80"];
const FAR: &str = "10.0.2.1:80";
const ALL: &str = "10.0.1.1:80 + 10.0.1.2:80, 10.0.2.1:80, 192.0.2.7:15443";
const WITHOUT_FAR: &str = "10.0.1.1:80 + 10.0.1.2:80, 192.0.2.7:15443";
const WITHOUT_WEST: &str = ALL_OWN;
const CALLER: &str = "spiffe://west.example/ns/shop/sa/cart";

pub(super) fn rows() -> Vec<Row> {
    [
        gateway(),
        gateway_limits(),
        peer(),
        heads(),
        federation(),
        route(),
        backends(),
        levels(),
        played(),
        health(),
        http(),
        rules(),
        matches(),
        ruled(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// `shop/orders` with one of its two nearest endpoints down.
fn half_down(world: &World) -> String {
    world
        .fleet("shop/orders")
        .fails(NEAR[0], Connect, 5)
        .shares()
}

/// `shop/orders` with both of its nearest endpoints down, and the last checked good again.
fn down_for(world: &World, secs: u64) -> String {
    let fleet = world.fleet("shop/orders");
    let fleet = fleet.fails(NEAR[0], Connect, 5).fails(NEAR[1], Connect, 5);
    fleet.at(secs).shares()
}

fn gateway() -> Vec<Row> {
    vec![
        row("east-gw", "apiVersion", "zeugma.dev/v1alpha1", "zeugma.dev/v2").decides(World::findings, "loads", "ZG0104"),
        row("east-gw", "kind", "MeshGateway", "MeshPeer").decides(World::findings, "loads", "ZG0101"),
        row("east-gw", "metadata.name", "east-gw", "other-gw").decides(|w| w.named("east-gw"), "loads", "ZG0107"),
        // A reference without a namespace is to the document's own.
        row("east-gw", "metadata.namespace", "", "db").given("east-gw", "spec.listeners.pg.route", "pg").decides(World::findings, "ZG0107", "loads"),
        row("east-gw", "spec.trustDomain", "east.example", "west.example").seen_by("security_files::a_certificate_of_another_trust_domain_is_not_its_own"),
        // The peer of the own cluster is ignored, so west's part is this gateway's own.
        row("east-gw", "spec.cluster", "east", "north").decides(|w| w.called_by("spiffe://north.example/zeugma/gateway", None, "192.0.2.8"), ALL_OWN, "misdirected").given("orders", "spec.export.to", "[north]"),
        row("east-gw", "spec.locality", "eu/eu-1/rack-a", "eu/eu-2").decides(World::orders, ALL, "10.0.2.1:80, 10.0.1.1:80 + 10.0.1.2:80, 192.0.2.7:15443"),
        row("east-gw", "spec.svid.files.certificate", "gw.pem", "other.pem").seen_by("security_files::half_a_certificate_keeps_the_last_good_one_and_says_so_once"),
        row("east-gw", "spec.svid.files.key", "gw.key", "other.key").seen_by("security_files::half_a_certificate_keeps_the_last_good_one_and_says_so_once"),
        row("east-gw", "spec.svid.files.bundles", "bundles/", "others/").seen_by("security_files::a_new_certificate_and_a_new_trust_domain_drop_nothing_that_is_open"),
        row("east-gw", "spec.svid.files.crls", "", "crls/").seen_by("security_revocation::a_revoked_certificate_is_refused_in_the_handshake_by_a_rule_of_its_own"),
        row("east-gw", "spec.svid.files.denied", "", "denied").seen_by("security_revocation::a_denied_identity_is_refused_in_the_handshake_and_let_in_again_when_it_is_taken_off"),
        row("east-gw", "spec.svid.workloadApi", "'unix:///run/a.sock'", "'unix:///run/b.sock'").given("east-gw", "spec.svid.files", "").seen_by("security_workload::another_socket_is_taken_up_without_a_restart_and_so_are_files"),
        row("east-gw", "spec.svid.sds.address", "'unix:///run/a.sock'", "'unix:///run/b.sock'").given("east-gw", "spec.svid.files", "").seen_by("security_secrets::other_secrets_and_another_service_are_taken_up_without_a_restart"),
        row("east-gw", "spec.svid.sds.svid", "", "gateway").given("east-gw", "spec.svid.files", "").given("east-gw", "spec.svid.sds.address", "'unix:///run/a.sock'").seen_by("security_secrets::other_secrets_and_another_service_are_taken_up_without_a_restart"),
        row("east-gw", "spec.svid.sds.bundles", "", "[own]").given("east-gw", "spec.svid.files", "").given("east-gw", "spec.svid.sds.address", "'unix:///run/a.sock'").seen_by("security_secrets::other_secrets_and_another_service_are_taken_up_without_a_restart"),
        row("east-gw", "spec.svid.denied", "", "denied").given("east-gw", "spec.svid.files", "").given("east-gw", "spec.svid.workloadApi", "'unix:///run/a.sock'").seen_by("security_workload::an_identity_on_the_deny_list_is_refused_whatever_the_agent_says"),
        row("east-gw", "spec.listeners.apps.address", "127.0.0.1:15001", "127.0.0.1:15002").seen_by("control_listeners::listeners_are_renamed_and_swap_their_addresses_without_closing_a_socket"),
        row("east-gw", "spec.listeners.apps.role", "workloads", "mesh").given("canary", "spec.export.to", "['*']").given("other", "spec.export.to", "['*']").decides(|w| w.plaintext("apps"), "http", "not-tls"),
        row("east-gw", "spec.listeners.pg.route", "db/pg", "").decides(|w| w.plaintext("pg"), "10.0.3.1:5432", "http"),
        row("east-gw", "spec.listeners.apps.sources", "", "[10.0.0.0/8]").decides(|w| w.orders_from("192.0.2.1"), ALL, "source-refused"),
        row("east-gw", "spec.listeners.mesh.handshakes.perSource", "", "3/s").decides(|w| w.let_in("mesh"), "10", "3"),
        row("east-gw", "spec.admin", "", "unix:admin.sock").seen_by("control_cli::a_gateway_that_does_not_run_is_no_riddle"),
        row("east-gw", "spec.adminToken", "", "token").given("east-gw", "spec.admin", "127.0.0.1:15000").seen_by("control_admin::levers_on_an_address_want_the_token"),
        row("east-gw", "spec.probes", "", "127.0.0.1:15022").seen_by("control_handover::probes_are_answered_all_the_while"),
        row("east-gw", "spec.metrics", "", "127.0.0.1:15023").seen_by("control_admin::metrics_on_a_loopback_address_are_told_to_nobody_who_names_another_host"),
        row("east-gw", "spec.stateDir", "", "state").seen_by("control_state::a_state_directory_that_was_asked_for_must_be_usable"),
        row("east-gw", "spec.controlPlane.addresses", "", "['http://127.0.0.1:15012']").seen_by("control_client::another_server_is_asked_where_the_first_is_gone"),
        row("east-gw", "spec.controlPlane.spiffeIDs", "['spiffe://east.example/xds']", "['spiffe://east.example/other']").given("east-gw", "spec.controlPlane.addresses", "['https://xds.east.example']").seen_by("control_client::a_server_that_is_not_whom_the_gateway_expects_is_not_believed"),
        row("east-gw", "spec.controlPlane.onEmpty", "keep", "apply").given("east-gw", "spec.controlPlane.addresses", "['http://127.0.0.1:15012']").seen_by("control_client::an_update_that_leaves_nothing_is_done_where_that_is_wanted"),
        row("east-gw", "spec.workers", "", "3").seen_by("control_limits::there_are_as_many_workers_as_processors_it_may_use_or_as_written"),
        row("east-gw", "spec.accessLog.format", "json", "text")
            .seen_by("control_codes::the_access_log_is_text_where_it_is_asked_for"),
        row("east-gw", "spec.listeners.apps.proxyProtocol.trusted", "", "['127.0.0.2/32']")
            .seen_by("data_proxied::what_a_load_balancer_handed_on_ends_when_its_word_counts_no_more"),
        row("east-gw", "spec.drain.delay", "", "1s").seen_by("security_limits::sigterm_says_so_accepts_for_the_delay_and_lets_what_is_open_end"),
        row("east-gw", "spec.drain.timeout", "", "1s").seen_by("security_limits::the_drain_deadline_ends_what_does_not_end"),
    ]
}

fn gateway_limits() -> Vec<Row> {
    vec![
        row("east-gw", "spec.limits.connections", "", "3").seen_by(
            "security_limits::one_connection_too_many_is_closed_and_those_that_are_open_live_on",
        ),
        row("east-gw", "spec.limits.handshakes", "", "2").seen_by(
            "control_limits::so_many_handshakes_are_under_way_and_what_is_open_does_not_count",
        ),
        row("east-gw", "spec.limits.handshakeTimeout", "", "1s")
            .seen_by("security_hello::silence_ends_within_the_handshake_timeout"),
        row("east-gw", "spec.limits.headerTimeout", "", "1s")
            .seen_by("security_limits::a_head_that_does_not_end_is_given_up"),
        row("east-gw", "spec.limits.streams", "", "3")
            .seen_by("control_limits::one_stream_too_many_is_refused_and_the_others_are_answered"),
        row("east-gw", "spec.limits.headerBytes", "", "8KiB").seen_by(
            "control_limits::the_head_of_a_request_may_be_as_long_as_written_and_no_byte_longer",
        ),
        row("east-gw", "spec.limits.memory", "", "1GiB").seen_by(
            "control_limits::over_the_memory_watermark_new_work_is_shed_and_what_is_open_goes_on",
        ),
    ]
}

fn peer() -> Vec<Row> {
    vec![
        row("west", "apiVersion", "zeugma.dev/v1alpha1", "v1").decides(
            World::findings,
            "loads",
            "ZG0104",
        ),
        row("west", "kind", "MeshPeer", "MeshRoute").decides(World::findings, "loads", "ZG0101"),
        row("west", "metadata.name", "west", "far").decides(
            World::findings,
            "loads",
            "ZG0107 ZG0107 ZG0107 ZG0107",
        ),
        row("west", "metadata.namespace", "", "infra").decides(World::findings, "loads", "ZG0110"),
        row("west", "spec.cluster", "west", "east").decides(
            World::orders,
            ALL,
            "10.0.1.1:80 + 10.0.1.2:80, 10.0.2.1:80",
        ),
        row("west", "spec.locality", "us/us-1", "eu/eu-1").decides(
            World::orders,
            ALL,
            "10.0.1.1:80 + 10.0.1.2:80, 192.0.2.7:15443, 10.0.2.1:80",
        ),
        row(
            "west",
            "spec.gateways",
            "['192.0.2.7:15443']",
            "['192.0.2.9:15443']",
        )
        .decides(
            World::orders,
            ALL,
            "10.0.1.1:80 + 10.0.1.2:80, 10.0.2.1:80, 192.0.2.9:15443",
        ),
        row(
            "west",
            "spec.spiffeIDs",
            "['spiffe://west.example/zeugma/gateway']",
            "['spiffe://other.example/gw']",
        )
        .decides(World::called_by_west, ALL_OWN, "not-exported"),
        row("west", "spec.attests", "", "[west.example]")
            .given(
                "orders",
                "spec.deny",
                "[{ from: ['spiffe://west.example/ns/*'] }]",
            )
            .decides(by_cart_through_west, ALL_OWN, "denied"),
        row("west", "spec.sources", "", "['192.0.2.0/24']").decides(
            |w| w.called_by(CALLER, None, "198.51.100.1"),
            ALL_OWN,
            "not-exported",
        ),
        // With all that is near ejected, west is where it goes, if what it said of itself is forgotten.
        row("west", "spec.whenStale", "hold", "drop")
            .given("orders", "spec.health.passive.keepAtLeast", "0")
            .decides(
                |w| {
                    let fleet = w.fleet("shop/orders").reports_nothing_healthy("west");
                    let fleet = fleet.fails(NEAR[0], Connect, 5).fails(NEAR[1], Connect, 5);
                    fleet.fails(FAR, Connect, 5).at(12).shares()
                },
                "100/0/0 too few",
                "0/0/100",
            ),
        row("west", "spec.keepalive.ping", "", "10s").seen_by(
            "data_failover::a_peers_gateway_that_falls_silent_is_found_as_soon_as_is_written",
        ),
        row("west", "spec.keepalive.timeout", "", "10s").seen_by(
            "data_failover::a_peers_gateway_that_falls_silent_is_found_as_soon_as_is_written",
        ),
    ]
}

/// What a mesh arrival is carried to: this cluster's own backends.
const ALL_OWN: &str = "10.0.1.1:80 + 10.0.1.2:80, 10.0.2.1:80";

fn by_cart_through_west(world: &World) -> String {
    world.called_by(
        "spiffe://west.example/zeugma/gateway",
        Some(CALLER),
        "192.0.2.7",
    )
}

/// What documents are called.
fn heads() -> Vec<Row> {
    vec![
        row("orders", "apiVersion", "zeugma.dev/v1alpha1", "v1").decides(
            World::findings,
            "loads",
            "ZG0104",
        ),
        row("orders", "kind", "MeshRoute", "MeshDefaults").decides(
            World::findings,
            "loads",
            "ZG0101",
        ),
        row("orders", "metadata.name", "orders", "order").decides(
            World::orders,
            ALL,
            "authority-unknown",
        ),
        row("orders", "metadata.namespace", "shop", "shops").decides(
            World::orders,
            ALL,
            "authority-unknown",
        ),
        row("defaults", "apiVersion", "zeugma.dev/v1alpha1", "v1").decides(
            World::findings,
            "loads",
            "ZG0104",
        ),
        row("defaults", "kind", "MeshDefaults", "TrustDomain").decides(
            World::findings,
            "loads",
            "ZG0103",
        ),
        row("defaults", "metadata.name", "defaults", "mesh").names(),
        row("defaults", "metadata.namespace", "shop", "db")
            .given("defaults", "spec.policy", "audit")
            .given("orders", "spec.allow", "[]")
            .decides(World::orders, ALL, "not-allowed"),
        row("acme", "apiVersion", "zeugma.dev/v1alpha1", "v1").decides(
            World::findings,
            "loads",
            "ZG0104",
        ),
        row("acme", "kind", "TrustDomain", "MeshDefaults").decides(
            World::findings,
            "loads",
            "ZG0101",
        ),
        row("acme", "metadata.name", "acme", "acme.example").seen_by(
            "security_files::a_trust_domain_that_a_document_names_is_trusted_as_long_as_it_does",
        ),
        row("acme", "metadata.namespace", "", "infra").decides(World::findings, "loads", "ZG0110"),
        row("acme", "spec.bundle", "acme.json", "other.json").seen_by(
            "security_files::a_trust_domain_that_a_document_names_is_trusted_as_long_as_it_does",
        ),
    ]
}

const PG_AT: &str = "10.0.3.1:5432";

/// A row of `db/pg` without a listener of its own.
fn unlistened(field: &'static str, before: &'static str, after: &'static str) -> Row {
    row("pg", field, before, after)
        .given("east-gw", "spec.listeners.pg", "")
        .given("pg", "spec.allow", "[{ listeners: [apps, mesh] }]")
}

fn route() -> Vec<Row> {
    let port = |w: &World| {
        let is_found = |port: &&str| w.asks(&format!("{ORDERS}:{port}"), "GET", "/") == ALL;
        ["80", "8080"]
            .into_iter()
            .find(|port| is_found(port))
            .unwrap_or_default()
            .to_owned()
    };
    vec![
        row("orders", "spec.hosts", "", "[shop.example]").decides(
            World::orders,
            ALL,
            "authority-unknown",
        ),
        unlistened("spec.protocol", "tcp", "http").decides(
            |w| w.asks(&format!("{PG}:5432"), "GET", "/"),
            "authority-unknown",
            PG_AT,
        ),
        row("orders", "spec.port", "", "8080").decides(port, "80", "8080"),
        row("orders", "spec.ports.web.port", "80", "8080").decides(port, "80", "8080"),
        row("orders", "spec.ports.web.targetPort", "", "8080")
            .given("orders", "spec.ports.web.port", "80")
            .given("orders", "spec.backends", "[{ endpoints: [10.0.1.1] }]")
            .decides(World::orders, "10.0.1.1:80", "10.0.1.1:8080"),
        unlistened("spec.ports.db.protocol", "tcp", "http")
            .given("pg", "spec.ports.db.port", "5432")
            .given("pg", "spec.port", "")
            .decides(
                |w| w.asks(&format!("{PG}:5432"), "GET", "/"),
                "authority-unknown",
                PG_AT,
            ),
        unlistened("spec.inbound", "passthrough", "terminate")
            .given("pg", "spec.backends", "[{ peer: west }]")
            .given("pg", "spec.export", "{}")
            .given("pg", "spec.allow", "[{ listeners: [apps] }]")
            .decides(|w| w.hello("apps", PG), "192.0.2.7:15443", "terminated"),
        row("orders", "spec.policy", "enforce", "audit")
            .given("orders", "spec.allow", "[]")
            .decides(World::orders, "not-allowed", ALL),
        row("orders", "spec.export.to", "[west]", "[north]").decides(
            World::called_by_west,
            ALL_OWN,
            "not-exported",
        ),
    ]
}

/// A row of a trust domain whose bundle is fetched.
fn fetched(field: &'static str, before: &'static str, after: &'static str) -> Row {
    row("acme", field, before, after)
        .given(
            "acme",
            "spec.bundleEndpointURL",
            "'https://acme.example/bundle'",
        )
        .given("acme", "spec.bundleEndpointProfile.type", "https_spiffe")
        .given(
            "acme",
            "spec.bundleEndpointProfile.endpointSPIFFEID",
            "'spiffe://east.example/acme'",
        )
}

fn federation() -> Vec<Row> {
    vec![
        fetched("spec.bundleEndpointURL", "'https://acme.example/bundle'", "'https://acme.example/other'")
            .seen_by("security_federation::an_endpoint_with_an_svid_renews_its_bundle_and_never_goes_back"),
        fetched("spec.bundleEndpointProfile.type", "https_spiffe", "https_web")
            .seen_by("security_federation::a_web_endpoint_needs_no_first_bundle_and_what_it_does_wrong_is_told"),
        fetched("spec.bundleEndpointProfile.endpointSPIFFEID", "'spiffe://east.example/acme'", "'spiffe://east.example/other'")
            .seen_by("security_federation::only_the_spiffe_id_that_is_expected_is_believed"),
    ]
}

fn backends() -> Vec<Row> {
    vec![
        row("orders", "spec.backends[1].name", "far", "farther")
            .given("orders", "spec.failover.order", "[{ backend: far }]")
            .decides(World::findings, "loads", "ZG0107"),
        // Another cluster's backend is reached through that cluster's peer.
        row("orders", "spec.backends[1].cluster", "", "west").decides(
            World::orders,
            ALL,
            "10.0.1.1:80 + 10.0.1.2:80, 192.0.2.7:15443",
        ),
        row(
            "orders",
            "spec.backends[1].locality",
            "eu/eu-2",
            "eu/eu-1/rack-a",
        )
        .decides(
            World::orders,
            ALL,
            "10.0.1.1:80 + 10.0.1.2:80 + 10.0.2.1:80, 192.0.2.7:15443",
        ),
        row(
            "orders",
            "spec.backends[1].endpoints[0]",
            "'10.0.2.1:80'",
            "'10.0.2.2:80'",
        )
        .decides(
            World::orders,
            ALL,
            "10.0.1.1:80 + 10.0.1.2:80, 10.0.2.2:80, 192.0.2.7:15443",
        ),
        row(
            "orders",
            "spec.backends[1].dns",
            "'a.internal:80'",
            "'b.internal:80'",
        )
        .given("orders", "spec.backends[1].endpoints", "")
        .decides(World::names, "a.internal:80", "b.internal:80"),
        row(
            "orders",
            "spec.backends[1].endpoints[0].address",
            "'10.0.2.1:80'",
            "'10.0.2.2:80'",
        )
        .given("orders", "spec.backends[1].endpoints[0]", "{ weight: 2 }")
        .decides(
            World::orders,
            ALL,
            "10.0.1.1:80 + 10.0.1.2:80, 10.0.2.2:80, 192.0.2.7:15443",
        ),
        // Of 1 + 3 parts 3 are left: 75 % is over 70 %.
        row("orders", "spec.backends[0].endpoints[1].weight", "1", "3")
            .given(
                "orders",
                "spec.backends[0].endpoints[1]",
                "{ address: '10.0.1.2:80' }",
            )
            .decides(half_down, "71/29/0", "100/0/0"),
        unlistened("spec.backends[0].tls", "none", "workload")
            .given("west", "spec.sources", "[192.0.2.0/24]")
            .decides(|w| w.hello("apps", PG), "terminated", PG_AT),
        row("orders", "spec.backends[1].tls", "", "mesh")
            .given(
                "orders",
                "spec.backends[1].spiffeIDs",
                "['spiffe://east.example/*']",
            )
            .seen_by(
                "security_tls::an_endpoint_is_offered_the_group_it_chose_before_and_no_session",
            ),
        row(
            "orders",
            "spec.backends[1].spiffeIDs",
            "['spiffe://east.example/*']",
            "['spiffe://east.example/ns/shop/*']",
        )
        .given("orders", "spec.backends[1].tls", "mesh")
        .decides(
            |w| w.answered_by("far", FAR, "spiffe://east.example/ns/other/sa/a"),
            "may",
            "upstream-refused",
        ),
        row("orders", "spec.backends[1].version", "h1", "h2")
            .seen_by("data_http::a_service_configured_for_http_2_gets_it_from_every_caller"),
        row("orders", "spec.backends[1].version", "h1", "same")
            .seen_by("data_http::a_service_that_knows_only_http_1_gets_it_from_every_caller"),
        row("pg", "spec.backends[0].proxyProtocol", "", "true")
            .seen_by("data_tcp::the_callers_identity_reaches_the_endpoint_that_wants_it"),
        // Two fit, the rest goes to the next level; of half of it one, which gets 5/7 at the most.
        row("orders", "spec.backends[0].capacity", "", "2/s").decides(
            |w| {
                let half = w.fleet("shop/orders").fails(NEAR[0], Connect, 5);
                format!("{} {}", w.fleet("shop/orders").taken(10), half.taken(10))
            },
            "10/0/0 7/3/0",
            "2/8/0 1/9/0",
        ),
        row("orders", "spec.backends[2].peer", "west", "north").decides(
            World::orders,
            ALL,
            "10.0.1.1:80 + 10.0.1.2:80, 10.0.2.1:80, 192.0.2.8:15443",
        ),
        row(
            "orders",
            "spec.balance.policy",
            "round-robin",
            "least-request",
        )
        .decides(World::picks, "12121212", "22222222"),
        row("orders", "spec.balance.policy", "round-robin", "random").decides(
            World::picks,
            "12121212",
            "22211121",
        ),
        row("orders", "spec.balance.maxConnectionAge", "0s", "10m")
            .seen_by("data_balance::a_connection_that_is_old_takes_no_new_request_and_loses_none"),
        row(
            "orders",
            "spec.balance.policy",
            "least-request",
            "peak-ewma",
        )
        .seen_by("data_balance::the_endpoint_that_answers_sooner_gets_more_by_latency"),
        row(
            "orders",
            "spec.balance.policy.ring-hash.header",
            "x-user",
            "x-tenant",
        )
        .given("orders", "spec.balance.policy", "{ ring-hash: source }")
        .given("orders", "spec.balance.policy.ring-hash", "{ header: x-a }")
        .decides(World::key, "header x-user", "header x-tenant"),
        row(
            "orders",
            "spec.balance.policy.ring-hash",
            "{ header: x-user }",
            "source",
        )
        .given("orders", "spec.balance.policy", "{ ring-hash: source }")
        .decides(World::key, "header x-user", "source"),
        row(
            "orders",
            "spec.balance.policy.maglev.header",
            "x-user",
            "x-tenant",
        )
        .given("orders", "spec.balance.policy", "{ maglev: source }")
        .given("orders", "spec.balance.policy.maglev", "{ header: x-a }")
        .decides(World::key, "header x-user", "header x-tenant"),
        row(
            "orders",
            "spec.balance.policy.maglev",
            "{ header: x-user }",
            "source",
        )
        .given("orders", "spec.balance.policy", "{ maglev: source }")
        .decides(World::key, "header x-user", "source"),
    ]
}

fn levels() -> Vec<Row> {
    vec![
        // Without zones, all of the region is one level.
        row(
            "orders",
            "spec.locality.prefer",
            "[subzone, zone, region]",
            "[region]",
        )
        .decides(
            World::orders,
            ALL,
            "10.0.1.1:80 + 10.0.1.2:80 + 10.0.2.1:80, 192.0.2.7:15443",
        ),
        row("orders", "spec.failover.order[0].region", "us", "eu").decides(
            World::orders,
            WITHOUT_FAR,
            WITHOUT_WEST,
        ),
        row("orders", "spec.failover.order[0].cluster", "west", "east").decides(
            World::orders,
            WITHOUT_FAR,
            WITHOUT_WEST,
        ),
        row("orders", "spec.failover.order[0].backend", "far", "west").decides(
            World::orders,
            WITHOUT_WEST,
            WITHOUT_FAR,
        ),
        row("orders", "spec.failover.never[0].region", "us", "eu").decides(
            World::orders,
            WITHOUT_WEST,
            "192.0.2.7:15443",
        ),
        row("orders", "spec.failover.never[0].cluster", "west", "east").decides(
            World::orders,
            WITHOUT_WEST,
            "192.0.2.7:15443",
        ),
        row("orders", "spec.failover.never[0].backend", "far", "west").decides(
            World::orders,
            WITHOUT_FAR,
            WITHOUT_WEST,
        ),
        // Half of it is healthy: 50 of 70 parts stay, or all of it.
        row("orders", "spec.failover.start", "", "40%").decides(half_down, "71/29/0", "100/0/0"),
        // (50 - 20) / (70 - 20).
        row("orders", "spec.failover.full", "", "20%").decides(half_down, "71/29/0", "60/40/0"),
        row("orders", "spec.failover.hold", "", "10s").decides(half_down, "71/29/0", "100/0/0"),
        row("orders", "spec.failover.failback.after", "", "2m").decides(
            back_at_135,
            "58/42/0",
            "0/100/0",
        ),
        row("orders", "spec.failover.failback.ramp", "", "2m").decides(
            back_at_135,
            "58/42/0",
            "29/71/0",
        ),
        // Both zones are one level.
        row(
            "orders",
            "spec.locality.spread.eu/eu-1/rack-a",
            "30%",
            "100%",
        )
        .given("orders", "spec.locality.prefer", "[region]")
        .given("orders", "spec.locality.spread.eu/eu-2", "70%")
        .decides(World::spread, "30/70", "59/41"),
        row("orders", "spec.failover.failback.mode", "auto", "manual").decides(
            back_at_135,
            "58/42/0",
            "0/100/0",
        ),
        row("orders", "spec.failover.tooFew", "use-all", "fail")
            .given("orders", "spec.health.passive.keepAtLeast", "0")
            .decides(all_ejected, "100/0/0 too few", "0/0/0"),
    ]
}

/// Everything near is down for a minute.
const NEAR_DOWN: (&str, &str) = ("down", "eu/eu-1/rack-a@60s..120s");
/// One of its two endpoints is.
const HALF_DOWN: (&str, &str) = ("down", "10.0.1.1:80@60s..120s");

/// The fields of failover as `zeugma simulate` plays them: each field has a row here, besides its own.
///
/// What is near is ejected at 60 s for 30 s; with no share it gets no request, and counts as healthy from
/// 90 s on. It waits a minute and comes back within another.
fn played() -> Vec<Row> {
    const TO_FAR: &str = "eu/eu-1/rack-a 0-100 100, eu/eu-2 0-100 0";
    const TO_WEST: &str = "eu/eu-1/rack-a 0-100 100, peer west 0-100 0";
    const ALL: &str = "eu/eu-1/rack-a 0-100 100, eu/eu-2 0-100 0, peer west 0-0 0";
    // 50 of 70 parts stay.
    const HALF: &str = "eu/eu-1/rack-a 71-100 100, eu/eu-2 0-29 0, peer west 0-0 0";
    const STAYS: &str = "eu/eu-1/rack-a 100-100 100, eu/eu-2 0-0 0, peer west 0-0 0";
    const STAYS_AWAY: &str = "eu/eu-1/rack-a 0-100 0, eu/eu-2 0-100 100, peer west 0-0 0";
    let failover = |field, before, after| row("orders", field, before, after);
    vec![
        failover("spec.failover.order[0].region", "us", "eu").plays(NEAR_DOWN, TO_WEST, TO_FAR),
        failover("spec.failover.order[0].cluster", "west", "east")
            .plays(NEAR_DOWN, TO_WEST, TO_FAR),
        failover("spec.failover.order[0].backend", "far", "west").plays(NEAR_DOWN, TO_FAR, TO_WEST),
        failover("spec.failover.never[0].region", "us", "eu").plays(
            NEAR_DOWN,
            TO_FAR,
            "peer west 100-100 100",
        ),
        failover("spec.failover.never[0].cluster", "west", "east").plays(
            NEAR_DOWN,
            TO_FAR,
            "peer west 100-100 100",
        ),
        failover("spec.failover.never[0].backend", "far", "west").plays(NEAR_DOWN, TO_WEST, TO_FAR),
        failover("spec.failover.start", "", "40%").plays(HALF_DOWN, HALF, STAYS),
        // (50 - 20) / (70 - 20).
        failover("spec.failover.full", "", "20%").plays(
            HALF_DOWN,
            HALF,
            "eu/eu-1/rack-a 60-100 100, eu/eu-2 0-40 0, peer west 0-0 0",
        ),
        failover("spec.failover.hold", "", "5m").plays(HALF_DOWN, HALF, STAYS),
        failover("spec.failover.failback.after", "", "10m").plays(NEAR_DOWN, ALL, STAYS_AWAY),
        // From 210 s to 300 s of ten minutes.
        failover("spec.failover.failback.ramp", "", "10m").plays(
            NEAR_DOWN,
            ALL,
            "eu/eu-1/rack-a 0-100 15, eu/eu-2 0-100 85, peer west 0-0 0",
        ),
        failover("spec.failover.failback.mode", "auto", "manual").plays(NEAR_DOWN, ALL, STAYS_AWAY),
        // What is ejected is used and fails, or nobody is asked.
        failover("spec.failover.tooFew", "use-all", "fail")
            .given("orders", "spec.health.passive.keepAtLeast", "0")
            .given("orders", "spec.failover.never", "[{ cluster: west }]")
            .plays(
                ("down", "eu@60s..120s"),
                "eu/eu-1/rack-a 0-100 100, eu/eu-2 0-100 0, some failed",
                "eu/eu-1/rack-a 0-100 100, eu/eu-2 0-100 0, some failed, some refused",
            ),
    ]
}

/// Down at once, good again after 30 s and the 10 s in which nobody tries them.
fn back_at_135(world: &World) -> String {
    down_for(world, 135)
}

fn all_ejected(world: &World) -> String {
    let fleet = world.fleet("shop/orders");
    let fleet = fleet
        .fails(NEAR[0], Connect, 5)
        .fails(NEAR[1], Connect, 5)
        .fails(FAR, Connect, 5);
    fleet.fails("192.0.2.7:15443", Connect, 5).shares()
}

/// The shares when one of two has given so many answers that took four times as long as the other's.
fn slow(world: &World, times: u32) -> String {
    let millis = Duration::from_millis;
    (world.fleet("shop/orders"))
        .took(NEAR[0], millis(40), times)
        .took(NEAR[1], millis(10), times)
        .at(2)
        .took(NEAR[1], millis(10), 1)
        .shares()
}

fn health() -> Vec<Row> {
    let active = "{ http: /healthz }";
    vec![
        row("orders", "spec.health.active.http", "", "/healthz").decides(
            |w| w.fleet("shop/orders").asked(),
            "nothing",
            "orders.shop.svc.clusterset.local/healthz",
        ),
        row("orders", "spec.health.active.grpc", "", "shop.Orders").decides(
            |w| w.fleet("shop/orders").asked(),
            "nothing",
            "shop.Orders at orders.shop.svc.clusterset.local",
        ),
        row("orders", "spec.health.active.tcp", "", "true").decides(
            |w| w.fleet("shop/orders").asked(),
            "nothing",
            "a connection",
        ),
        row("orders", "spec.health.active.every", "", "30s")
            .given("orders", "spec.health.active", active)
            .decides(|w| w.fleet("shop/orders").every(), "5", "30"),
        row("orders", "spec.health.active.timeout", "", "9s")
            .given("orders", "spec.health.active", active)
            .decides(|w| w.fleet("shop/orders").lost_after(), "4", "12"),
        row("orders", "spec.health.active.up", "", "4")
            .given("orders", "spec.health.active", active)
            .decides(|w| w.fleet("shop/orders").turns_after(true), "2", "4"),
        row("orders", "spec.health.active.down", "", "4")
            .given("orders", "spec.health.active", active)
            .decides(|w| w.fleet("shop/orders").turns_after(false), "3", "4"),
        row("orders", "spec.health.passive.consecutive", "", "3").decides(
            |w| w.fleet("shop/orders").fails(NEAR[0], Connect, 4).shares(),
            "100/0/0",
            "71/29/0",
        ),
        row("orders", "spec.health.passive.on", "", "[connect]").decides(
            |w| w.fleet("shop/orders").fails(NEAR[0], Reset, 5).shares(),
            "71/29/0",
            "100/0/0",
        ),
        row("orders", "spec.health.passive.errorRate.over", "", "20%").decides(
            |w| {
                w.fleet("shop/orders")
                    .works(NEAR[0], 16)
                    .fails(NEAR[0], Reset, 4)
                    .works(NEAR[0], 1)
                    .fails(NEAR[0], Reset, 1)
                    .shares()
            },
            "100/0/0",
            "71/29/0",
        ),
        row("orders", "spec.health.passive.errorRate.requests", "", "10").decides(
            |w| {
                w.fleet("shop/orders")
                    .fails(NEAR[0], Reset, 4)
                    .works(NEAR[0], 4)
                    .fails(NEAR[0], Reset, 2)
                    .shares()
            },
            "100/0/0",
            "71/29/0",
        ),
        row("orders", "spec.health.passive.slow.over", "", "3x").decides(
            |w| slow(w, 20),
            "100/0/0",
            "71/29/0",
        ),
        row("orders", "spec.health.passive.slow.requests", "", "10")
            .given("orders", "spec.health.passive.slow.over", "3x")
            .decides(|w| slow(w, 10), "100/0/0", "71/29/0"),
        row("orders", "spec.health.passive.eject", "", "1m")
            .given(
                "orders",
                "spec.failover.failback",
                "{ after: 0s, ramp: 0s }",
            )
            .decides(
                |w| {
                    w.fleet("shop/orders")
                        .fails(NEAR[0], Connect, 5)
                        .at(45)
                        .shares()
                },
                "100/0/0",
                "71/29/0",
            ),
        row("orders", "spec.health.slowStart", "", "30s").decides(
            |w| {
                let fleet = w.fleet("shop/orders").fails(NEAR[0], Connect, 5);
                // Out for 30 s, and for the 10 s in which nobody tries it.
                fleet.at(55).given()
            },
            "100/100/100/100",
            "50/100/100/100",
        ),
        row("orders", "spec.health.passive.maxEjected", "", "40%")
            .decides(half_down, "71/29/0", "100/0/0"),
        row("orders", "spec.health.passive.keepAtLeast", "", "4")
            .decides(half_down, "71/29/0", "100/0/0"),
    ]
}

fn http() -> Vec<Row> {
    let mirror = "{ route: labs/canary }";
    let one = |w: &World| w.retried(Status(503), "GET", 1);
    vec![
        row("orders", "spec.timeouts.connect", "", "10s").given("orders", "spec.health.active", "{ http: /healthz }").decides(|w| w.fleet("shop/orders").lost_after(), "4", "13"),
        row("orders", "spec.timeouts.responseHeaders", "", "1s").seen_by("data_failover::an_endpoint_that_does_not_answer_in_time_costs_its_time_and_no_more"),
        row("orders", "spec.timeouts.idle", "", "1s").seen_by("data_tcp::silence_ends_a_connection_after_the_idle_time"),
        row("orders", "spec.timeouts.perTry", "", "1s").seen_by("data_failover::a_try_may_have_less_time_than_the_request"),
        row("orders", "spec.retries.attempts", "", "4").decides(one, "2, attempts", "4, attempts"),
        row("orders", "spec.retries.on", "", "[unavailable]").decides(one, "2, attempts", "0, failure"),
        // 20 % and 50 % of 100.
        row("orders", "spec.retries.budget", "", "50%").decides(|w| w.retried(Unavailable, "GET", 100), "20", "50"),
        row("orders", "spec.retries.buffer", "", "128KiB").seen_by("data_failover::a_request_longer_than_what_is_kept_is_not_tried_again"),
        row("orders", "spec.retries.any", "", "true").decides(|w| w.retried(Status(503), "POST", 1), "0, method", "2, attempts"),
        row("orders", "spec.retries.hedge.after", "", "50ms").seen_by("data_hedge::the_answer_comes_from_the_endpoint_that_gives_one_and_the_other_is_given_up"),
        row("pg", "spec.limits.connections", "", "2").seen_by("control_limits::connections_over_a_tcp_routes_limit_are_closed_and_a_free_place_is_given_again"),
        row("orders", "spec.limits.pending", "", "2").seen_by("control_limits::requests_that_wait_for_a_connection_are_limited_and_those_with_one_are_not"),
        row("orders", "spec.limits.requests", "", "3").seen_by("control_limits::requests_over_a_routes_limit_are_refused_at_once_over_all_workers_and_configurations"),
        row("orders", "spec.mirror[0].route", "labs/canary", "labs/other").decides(|w| w.copies(0, 0), "cccccccc 10.0.4.1:80 192.0.2.7:15443", "cccccccc 10.0.5.1:80"),
        row("orders", "spec.mirror[0].peer", "", "west").given("orders", "spec.mirror[0]", mirror).decides(|w| w.copies(0, 0), "cccccccc 10.0.4.1:80 192.0.2.7:15443", "cccccccc 192.0.2.7:15443"),
        row("orders", "spec.mirror[0].percent", "1%", "100%").given("orders", "spec.mirror[0]", mirror).decides(|w| w.copies(0, 0), "-------- 10.0.4.1:80 192.0.2.7:15443", "cccccccc 10.0.4.1:80 192.0.2.7:15443"),
        row("orders", "spec.mirror[0].timeout", "", "1s").given("orders", "spec.mirror[0]", mirror).seen_by("data_mirror::a_canary_that_hangs_or_fails_or_is_gone_is_not_noticed"),
        row("orders", "spec.mirror[0].bodyLimit", "", "1KiB").given("orders", "spec.mirror[0]", mirror).decides(|w| w.copies(2000, 0), "cccccccc 10.0.4.1:80 192.0.2.7:15443", "bbbbbbbb 10.0.4.1:80 192.0.2.7:15443"),
        row("orders", "spec.mirror[0].inFlight", "", "2").given("orders", "spec.mirror[0]", mirror).decides(|w| w.copies(0, 2), "cccccccc 10.0.4.1:80 192.0.2.7:15443", "iiiiiiii 10.0.4.1:80 192.0.2.7:15443"),
        row("orders", "spec.mirror[0].timeout", "", "1s").given("orders", "spec.mirror[0]", mirror).decides(World::terms, "2s, 0 bytes compared", "1s, 0 bytes compared"),
        row("orders", "spec.mirror[0].compare", "", "true").given("orders", "spec.mirror[0]", mirror).decides(World::terms, "2s, 0 bytes compared", "2s, 1048576 bytes compared"),
        row("pg", "spec.mirror[0].route", "labs/dump", "labs/dump-2").decides(|w| w.copies_of("db/pg", 0, 0), "cccccccc 10.0.6.1:5432", "cccccccc 10.0.7.1:5432"),
        row("pg", "spec.mirror[0].percent", "1%", "100%").given("pg", "spec.mirror[0]", "{ route: labs/dump }").decides(|w| w.copies_of("db/pg", 0, 0), "-------- 10.0.6.1:5432", "cccccccc 10.0.6.1:5432"),
        row("orders", "spec.mirror[0].compare", "", "true").given("orders", "spec.mirror[0]", mirror).seen_by("data_compare::another_status_and_another_body_are_counted_and_told_with_the_requests_id"),
    ]
}

/// Two hosts of one route.
const BOTH: &str = "[orders.shop.svc.clusterset.local, other.example]";

fn rules() -> Vec<Row> {
    let cart = |w: &World| w.called_by(CALLER, None, "192.0.2.7");
    let post = |w: &World| w.asks(ORDERS, "POST", "/v1/a");
    let from_lan = |w: &World| w.orders_from("192.0.2.1");
    vec![
        row(
            "orders",
            "spec.allow[0].from",
            "",
            "['spiffe://west.example/ns/other/*']",
        )
        .given("orders", "spec.allow", "[{ listeners: [mesh] }]")
        .decides(cart, ALL_OWN, "not-allowed"),
        row("orders", "spec.allow[0].via", "", "[west]")
            .given(
                "orders",
                "spec.allow",
                "[{ from: ['spiffe://west.example/*'] }]",
            )
            .given("west", "spec.attests", "[west.example]")
            .decides(cart, ALL_OWN, "not-allowed"),
        row("orders", "spec.allow[0].listeners", "[apps]", "[mesh]").decides(
            World::orders,
            ALL,
            "not-allowed",
        ),
        row("orders", "spec.allow[0].sources", "", "[10.0.0.0/8]").decides(
            from_lan,
            ALL,
            "not-allowed",
        ),
        row(
            "orders",
            "spec.allow[0].sni",
            "['*.clusterset.local']",
            "[other.example]",
        )
        .given("orders", "spec.hosts", BOTH)
        .decides(World::called_by_west, ALL_OWN, "not-allowed"),
        row("orders", "spec.allow[0].methods", "", "[GET]").decides(post, ALL, "not-allowed"),
        row("orders", "spec.allow[0].paths", "", "[/v2/*]").decides(post, ALL, "not-allowed"),
        row("orders", "spec.allow[0].headers.x-a", "['1']", "['2']").decides(
            World::with_header,
            ALL,
            "not-allowed",
        ),
        row(
            "orders",
            "spec.deny[0].from",
            "['spiffe://west.example/ns/other/*']",
            "['spiffe://west.example/*']",
        )
        .decides(cart, ALL_OWN, "denied"),
        row("orders", "spec.deny[0].via", "[north]", "[west]")
            .given("west", "spec.attests", "[west.example]")
            .given("north", "spec.attests", "[west.example]")
            .given(
                "orders",
                "spec.allow",
                "[{ from: ['spiffe://west.example/*'], via: [west] }]",
            )
            .decides(by_cart_through_west, ALL_OWN, "denied"),
        row("orders", "spec.deny[0].listeners", "[mesh]", "[apps]").decides(
            World::orders,
            ALL,
            "denied",
        ),
        row(
            "orders",
            "spec.deny[0].sources",
            "[10.0.0.0/8]",
            "[192.0.2.0/24]",
        )
        .decides(from_lan, ALL, "denied"),
        row(
            "orders",
            "spec.deny[0].sni",
            "[other.example]",
            "[orders.shop.svc.clusterset.local]",
        )
        .given("orders", "spec.hosts", BOTH)
        .decides(World::called_by_west, ALL_OWN, "denied"),
        row("orders", "spec.deny[0].methods", "[PUT]", "[POST]").decides(post, ALL, "denied"),
        row("orders", "spec.deny[0].paths", "[/v2/*]", "[/v1/*]").decides(post, ALL, "denied"),
        row("orders", "spec.deny[0].headers.x-a", "['2']", "['1']").decides(
            World::with_header,
            ALL,
            "denied",
        ),
    ]
}

/// A row of a rule of `shop/orders` whose requests go to the far backend, all others everywhere.
fn first_rule(field: &'static str, before: &'static str, after: &'static str) -> Row {
    row("orders", field, before, after).given(
        "orders",
        "spec.rules",
        "[{ split: [{ backends: [far] }] }, {}]",
    )
}

fn matches() -> Vec<Row> {
    let get = |w: &World| w.asks(ORDERS, "GET", "/v1/a?q=1");
    let post = |w: &World| w.asks(ORDERS, "POST", "/shop.Orders/Get");
    let beta = |w: &World| w.rule_of("GET", "/", ("x-beta", "1"));
    vec![
        first_rule("spec.rules[0].matches[0].path.prefix", "/v1", "/v2").decides(get, FAR, ALL),
        first_rule("spec.rules[0].matches[0].path.exact", "/v1/a", "/v1").decides(get, FAR, ALL),
        first_rule("spec.rules[0].matches[0].method", "GET", "POST").decides(get, FAR, ALL),
        first_rule("spec.rules[0].matches[0].headers.x-beta", "'1'", "'2'").decides(beta, "0", "1"),
        first_rule("spec.rules[0].matches[0].query.q", "'1'", "'2'").decides(get, FAR, ALL),
        first_rule(
            "spec.rules[0].matches[0].grpc.service",
            "shop.Orders",
            "shop.Carts",
        )
        .decides(post, FAR, ALL),
        first_rule("spec.rules[0].matches[0].grpc.method", "", "Put")
            .given(
                "orders",
                "spec.rules[0].matches[0].grpc.service",
                "shop.Orders",
            )
            .decides(post, FAR, ALL),
        first_rule("spec.rules[0].name", "", "far").decides(beta, "0", "far"),
    ]
}

fn ruled() -> Vec<Row> {
    let one = |w: &World| w.retried(Status(503), "GET", 1);
    let two_parts = "[{ split: [{ backends: [near] }, { backends: [far] }] }]";
    let near = "10.0.1.1:80 + 10.0.1.2:80";
    let socket = "data_rules::headers_are_set_added_and_removed_on_the_way_there_and_back";
    let rule = |field, before, after| {
        row("orders", field, before, after).given("orders", "spec.rules", "[{}]")
    };
    vec![
        first_rule("spec.rules[0].split[0].backends", "[far]", "[near]").decides(
            World::orders,
            FAR,
            near,
        ),
        row(
            "orders",
            "spec.rules[0].split[0].route",
            "labs/canary",
            "labs/other",
        )
        .given("orders", "spec.rules", "[{ split: [{ weight: 1 }] }]")
        .decides(World::orders, "10.0.4.1:80, 192.0.2.7:15443", "10.0.5.1:80"),
        row("orders", "spec.rules[0].split[0].weight", "0", "1000000")
            .given("orders", "spec.rules", two_parts)
            .decides(World::orders, FAR, near),
        rule("spec.rules[0].timeouts.responseHeaders", "", "1s")
            .seen_by("data_rules::a_rule_has_deadlines_and_tries_of_its_own"),
        rule("spec.rules[0].timeouts.perTry", "", "1s")
            .seen_by("data_rules::a_rule_has_deadlines_and_tries_of_its_own"),
        rule("spec.rules[0].retries.attempts", "", "4").decides(one, "2, attempts", "4, attempts"),
        rule("spec.rules[0].retries.on", "", "[internal]").decides(
            |w| w.retried(Grpc(13), "GET", 1),
            "0, failure",
            "2, attempts",
        ),
        rule("spec.rules[0].retries.any", "", "true").decides(
            |w| w.retried(Status(503), "POST", 1),
            "0, method",
            "2, attempts",
        ),
        rule("spec.rules[0].headers.request.set.x-mesh", "", "east").seen_by(socket),
        rule("spec.rules[0].headers.request.add.x-more", "", "east").seen_by(socket),
        rule("spec.rules[0].headers.request.remove", "", "[x-debug]").seen_by(socket),
        rule("spec.rules[0].headers.response.set.x-served", "", "east").seen_by(socket),
        rule("spec.rules[0].headers.response.add.x-also", "", "east").seen_by(socket),
        rule("spec.rules[0].headers.response.remove", "", "[x-debug]").seen_by(socket),
    ]
}
