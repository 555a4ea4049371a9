//! The gateway as its users meet it: real processes, real sockets, real certificates.
//!
//! `mesh` starts what a test needs; `security_*` hold the gateway against callers, endpoints and
//! files that mean no good or make no sense; `data_*` carry traffic through it; `control_*` watch
//! what its control thread does meanwhile.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::large_futures,
    clippy::too_many_lines,
    clippy::type_complexity,
    reason = "tests, mostly tables of cases"
)]

mod control_admin;
mod control_cli;
mod control_client;
mod control_codes;
mod control_diff;
mod control_drain;
mod control_drill;
mod control_explain;
mod control_failover;
mod control_handover;
mod control_hostile;
mod control_inherit;
mod control_last_good;
mod control_limits;
mod control_listeners;
mod control_pair;
mod control_reload;
mod control_state;
mod control_strangers;
mod control_tap;
mod control_ui;
mod control_upstream;
mod control_xds;
#[path = "../support/corpus.rs"]
mod corpus;
mod data_balance;
mod data_capacity;
mod data_client;
mod data_compare;
mod data_dns;
mod data_edges;
mod data_failover;
mod data_fields;
mod data_h1;
mod data_hedge;
mod data_http;
mod data_load;
mod data_mended;
mod data_mesh;
mod data_mirror;
mod data_mirror_tcp;
mod data_protocols;
mod data_proxied;
mod data_quiet;
mod data_relay;
mod data_reload;
mod data_reports;
mod data_rules;
mod data_services;
mod data_silence;
mod data_slow;
mod data_spread;
mod data_strict;
mod data_tcp;
mod data_trial;
mod data_windows;
#[path = "../support/long_way.rs"]
mod long_way;
#[path = "../support/many.rs"]
mod many;
mod mesh;
mod security_access;
mod security_audit;
mod security_certificates;
mod security_federation;
mod security_files;
mod security_headers;
mod security_hello;
mod security_limits;
mod security_names;
mod security_pki;
mod security_recheck;
mod security_requests;
mod security_revocation;
mod security_scale;
mod security_secrets;
mod security_tls;
mod security_workload;
