//! Which test of `tests/gateway` writes a field and sees on sockets that an outcome changes by it; the
//! rows of the table simulate the same fields. A field more of these blocks is a line more here.

const FAILOVER: &str = "data_fields::each_field_of_failover_alone_decides_who_answers";
const RULES: &str = "data_fields::each_field_of_authorization_alone_decides_who_is_answered";
const NAMES: &str = "security_names::each_field_of_a_server_name_rule_alone_decides_who_is_carried";
const HEADERS: &str = "security_headers::each_field_of_a_header_rule_alone_decides_who_is_answered";

/// The field, below `MeshRoute.spec`, and the test.
pub(super) const SHOWN: &[(&str, &str)] = &[
    ("failover.order[].region", FAILOVER),
    ("failover.order[].cluster", FAILOVER),
    ("failover.order[].backend", FAILOVER),
    ("failover.never[].region", FAILOVER),
    ("failover.never[].cluster", FAILOVER),
    ("failover.never[].backend", FAILOVER),
    ("failover.start", FAILOVER),
    ("failover.full", FAILOVER),
    ("failover.hold", FAILOVER),
    ("failover.failback.after", FAILOVER),
    ("failover.failback.ramp", FAILOVER),
    ("failover.failback.mode", FAILOVER),
    (
        "failover.tooFew",
        "data_failover::with_nothing_left_too_few_uses_what_was_ejected_or_refuses",
    ),
    (
        "mirror[].route",
        "data_mirror::every_request_is_copied_marked_and_whole",
    ),
    (
        "mirror[].peer",
        "data_mirror::a_copy_in_another_cluster_has_the_canarys_host_and_is_not_copied_again",
    ),
    (
        "mirror[].percent",
        "data_mirror::a_share_of_the_requests_is_copied",
    ),
    (
        "mirror[].timeout",
        "data_mirror::a_canary_that_hangs_or_fails_or_is_gone_is_not_noticed",
    ),
    (
        "mirror[].bodyLimit",
        "data_mirror::bodies_over_the_limit_and_copies_over_the_cap_are_dropped_and_counted",
    ),
    (
        "mirror[].inFlight",
        "data_mirror::bodies_over_the_limit_and_copies_over_the_cap_are_dropped_and_counted",
    ),
    (
        "mirror[].compare",
        "data_compare::another_status_and_another_body_are_counted_and_told_with_the_requests_id",
    ),
    ("allow[].from", RULES),
    ("allow[].via", RULES),
    ("allow[].listeners", RULES),
    ("allow[].sources", RULES),
    ("allow[].sni", NAMES),
    ("allow[].methods", RULES),
    ("allow[].paths", RULES),
    ("allow[].headers.*", HEADERS),
    ("deny[].from", RULES),
    ("deny[].via", RULES),
    ("deny[].listeners", RULES),
    ("deny[].sources", RULES),
    ("deny[].sni", NAMES),
    ("deny[].methods", RULES),
    ("deny[].paths", RULES),
    ("deny[].headers.*", HEADERS),
    ("policy", RULES),
    ("export.to", RULES),
];
