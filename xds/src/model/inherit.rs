//! `MeshDefaults`, and what routes take from it.

use schemars::JsonSchema;
use serde::Deserialize;

use super::list::List;
use super::{
    ActiveSpec, BalancePolicy, BalanceSpec, ErrorRateSpec, ExportSpec, FailbackSpec, FailoverSpec,
    HashSpec, HealthSpec, HedgeSpec, LocalitySpec, MeshRoute, MirrorSpec, PassiveSpec, PolicySpec,
    ProtocolSpec, RetriesSpec, RouteLimitsSpec, RuleSpec, SlowSpec, TimeoutsSpec,
};
use crate::yaml::Placed;

/// What routes mean where they write nothing: of the mesh, or with `metadata.namespace` of one
/// namespace. One document for each. A route's own words win, then its namespace's, then the mesh's,
/// field by field; a list that is written replaces another, but `deny` adds. What has no effect on a
/// route, such as a deadline of http on tcp, is left out of it.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct MeshDefaults {
    /// As in a `MeshRoute`.
    #[serde(default)]
    pub balance: BalanceSpec,
    /// As in a `MeshRoute`.
    #[serde(default)]
    pub locality: LocalitySpec,
    /// As in a `MeshRoute`. What `order` names and a route has not is passed over.
    #[serde(default)]
    pub failover: FailoverSpec,
    /// As in a `MeshRoute`.
    #[serde(default)]
    pub health: HealthSpec,
    /// As in a `MeshRoute`.
    #[serde(default)]
    pub timeouts: TimeoutsSpec,
    /// As in a `MeshRoute`.
    #[serde(default)]
    pub retries: RetriesSpec,
    /// As in a `MeshRoute`.
    #[serde(default)]
    pub limits: RouteLimitsSpec,
    /// As in a `MeshRoute`; a route is never its own mirror, and takes none of another protocol.
    #[serde(default)]
    pub mirror: List<Placed<MirrorSpec>>,
    /// As in a `MeshRoute`: who may call a route that has no `allow` of its own.
    #[serde(default)]
    pub allow: List<Placed<RuleSpec>>,
    /// As in a `MeshRoute`, beside each route's own.
    #[serde(default)]
    pub deny: List<Placed<RuleSpec>>,
    /// As in a `MeshRoute`.
    pub policy: Option<PolicySpec>,
    /// As in a `MeshRoute`.
    #[serde(default)]
    pub export: ExportSpec,
}

/// Takes from another what is not written here.
trait Inherit {
    fn inherit(&mut self, from: &Self);
}

impl<T: Clone> Inherit for Option<T> {
    fn inherit(&mut self, from: &Self) {
        if self.is_none() {
            self.clone_from(from);
        }
    }
}

impl<T: Clone> Inherit for List<T> {
    fn inherit(&mut self, from: &Self) {
        if !self.is_written() {
            self.clone_from(from);
        }
    }
}

/// Each field for itself; a field that is added to a type is added to its line here.
macro_rules! inherit_fields {
    ($($name:ident { $($field:ident),* })*) => {$(
        impl Inherit for $name {
            fn inherit(&mut self, from: &Self) {
                let Self { $($field),* } = from;
                $(self.$field.inherit($field);)*
            }
        }
    )*};
}

inherit_fields! {
    BalanceSpec { policy, max_connection_age }
    LocalitySpec { prefer, spread }
    FailoverSpec { order, never, start, full, hold, failback, too_few }
    FailbackSpec { after, ramp, mode }
    PassiveSpec { consecutive, on, error_rate, slow, eject, max_ejected, keep_at_least }
    ErrorRateSpec { over, requests }
    SlowSpec { over, requests }
    TimeoutsSpec { connect, response_headers, idle, per_try }
    RetriesSpec { attempts, on, budget, buffer, any, hedge }
    HedgeSpec { after }
    RouteLimitsSpec { connections, pending, requests }
    ExportSpec { to }
}

impl Inherit for HealthSpec {
    fn inherit(&mut self, from: &Self) {
        let Self {
            active,
            passive,
            slow_start,
        } = from;
        match (&mut self.active, active) {
            (Some(active), Some(from)) => active.inherit(from),
            (own, from) => own.inherit(from),
        }
        self.passive.inherit(passive);
        self.slow_start.inherit(slow_start);
    }
}

impl Inherit for ActiveSpec {
    fn inherit(&mut self, from: &Self) {
        let Self {
            http,
            grpc,
            tcp,
            every,
            timeout,
            up,
            down,
        } = from;
        // What is asked is one thing, said in three fields.
        if self.http.is_none() && self.grpc.is_none() && self.tcp.is_none() {
            self.http.clone_from(http);
            self.grpc.clone_from(grpc);
            self.tcp = *tcp;
        }
        self.every.inherit(every);
        self.timeout.inherit(timeout);
        self.up.inherit(up);
        self.down.inherit(down);
    }
}

impl MeshRoute {
    /// Takes from `defaults` what it does not write itself; `id` is its own `namespace/name`, and
    /// `of` says where what was taken is written.
    pub(crate) fn inherit(&mut self, defaults: &MeshDefaults, id: &str, namespace: &str, of: u8) {
        let ports = self.ports();
        let has = |protocol| ports.iter().any(|port| port.protocol == protocol);
        let defaults = defaults.suiting(has(ProtocolSpec::Http), has(ProtocolSpec::Tcp));
        let MeshDefaults {
            balance,
            locality,
            failover,
            health,
            timeouts,
            retries,
            limits,
            mirror,
            allow,
            deny,
            policy,
            export,
        } = &defaults;
        self.balance.inherit(balance);
        self.locality.inherit(locality);
        self.failover.inherit(failover);
        self.health.inherit(health);
        self.timeouts.inherit(timeouts);
        self.retries.inherit(retries);
        self.limits.inherit(limits);
        self.policy.inherit(policy);
        self.export.inherit(export);
        if !self.mirror.is_written() && mirror.is_written() {
            let others = (placed(mirror, of).into_iter())
                .filter(|mirror| mirror.value.route.0.id(namespace) != id);
            self.mirror.extend(others);
        }
        if !self.allow.is_written() && allow.is_written() {
            self.allow.extend(placed(allow, of));
        }
        if deny.is_written() {
            self.deny.extend(placed(deny, of));
        }
    }
}

/// A list as it is inherited from the document at this place.
fn placed<T: Clone>(list: &[Placed<T>], of: u8) -> Vec<Placed<T>> {
    (list.iter())
        .map(|one| Placed { of, ..one.clone() })
        .collect()
}

impl MeshDefaults {
    /// What has an effect on a route with ports of these protocols.
    fn suiting(&self, http: bool, tcp: bool) -> Self {
        let mut suits = self.clone();
        if !http {
            if let Some(BalancePolicy::RingHash(on) | BalancePolicy::Maglev(on)) =
                &mut suits.balance.policy
            {
                *on = HashSpec::Source;
            }
            suits.balance.max_connection_age = None;
            suits.timeouts.response_headers = None;
            suits.timeouts.per_try = None;
            suits.retries = RetriesSpec::default();
            suits.limits.pending = None;
            suits.limits.requests = None;
            if let Some(active) = &mut suits.health.active
                && (active.http.is_some() || active.grpc.is_some())
            {
                (active.http, active.grpc) = (None, None);
                active.tcp = Some(true);
            }
        }
        if !tcp {
            suits.limits.connections = None;
        }
        suits
    }
}
