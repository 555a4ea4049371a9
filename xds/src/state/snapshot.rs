//! A snapshot as bytes. What is added to a type there is added to its line here.

use std::sync::Arc;

use zeugma_core::admission::{Rate, RouteLimits};
use zeugma_core::balance::Slots;
use zeugma_core::locality::Locality;
use zeugma_core::names::HostPattern;
use zeugma_core::rules::{
    Field, HeaderChanges, HttpRule, Match, Part, PathMatch, RuleRetries, RuleTimeouts, Rules,
};
use zeugma_core::snapshot::{
    ActiveCheck, ActiveKind, Address, Balance, Cluster, ClusterIx, ClusterPolicy, Endpoint,
    EndpointIx, EndpointKey, EndpointTls, ErrorRate, Export, Failback, Failover, Failure, HashOn,
    HeaderRule, HostTable, HttpVersion, Inbound, Level, Listener, Mirror, Node, PassiveCheck,
    PathPattern, Peer, PeerIx, Policy, PolicyMode, Position, Protocol, Retries, Role, Rule,
    Service, ServiceIx, Slow, Snapshot, SniPattern, SpreadPart, Timeouts, TooFew, ValuePattern,
    WhenStale,
};

use super::codec::{Coded, Corrupt, Read, Reader, Writer, coded, coded_enum};
use crate::error::{Code, Finding, Place, Severity};
use crate::standing::{RefusedDocument, Serves};

coded! {
    Snapshot { version, node, listeners, services, clusters, peers }
    Node { name, cluster, locality, trust_domain }
    Locality { region, zone, subzone }
    Listener { name, address, role, only, hosts, sources, handshakes, proxies }
    Service {
        name, port, ports, hosts, protocol, inbound, outbound, own, policy, export, mirrors,
        rules, inside, is_upgraded, position,
    }
    Rules { matches, list }
    Match { rule, path, method, headers, query }
    Field { name, value }
    HttpRule { label, split, timeouts, retries, request, response, position }
    Part { label, weight, outbound, own, host, service }
    RuleTimeouts { response_headers, per_try }
    RuleRetries { attempts, on, any_method }
    HeaderChanges { set, add, remove }
    Policy { allow, deny, mode }
    Rule { from, via, listeners, sources, sni, methods, paths, headers, position }
    HeaderRule { name, values }
    Position { file, line }
    Mirror { route, to, host, share, timeout, body_bytes_max, in_flight_max, compare, position }
    SpreadPart { locality, weight }
    ClusterPolicy {
        balance, spread, failover, active, passive, connection_age_max, slow_start, timeouts,
        retries, limits,
    }
    Endpoint { key, backend, address, weight, locality, peer, tls, version, proxy_protocol, capacity, is_down }
    Failover { start, full, hold, failback_after, failback_ramp, failback, too_few }
    ActiveCheck { kind, every, timeout, up, down }
    PassiveCheck { consecutive, on, error_rate, slow, eject, max_ejected, keep_at_least }
    ErrorRate { over, requests }
    Slow { over, requests }
    Timeouts { connect, connect_peer, response_headers, idle, per_try }
    Retries { attempts, on, budget, buffer_bytes_max, any_method, hedge_after }
    RouteLimits { connections, pending, requests }
    Peer {
        name, cluster, locality, ids, attests, sources, keepalive_ping, keepalive_timeout, when_stale,
    }
    Finding { code, severity, message, help, place, also }
    Place { file, line, column, width, text, path, document }
    RefusedDocument { name, serves, numbers }
}

impl Coded for Level {
    fn write(&self, to: &mut Writer) {
        // The table follows from the rest.
        let Self {
            name,
            members,
            slots: _,
        } = self;
        name.write(to);
        members.write(to);
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        Ok(Self {
            name: Coded::read(from)?,
            members: Coded::read(from)?,
            slots: Slots::default(),
        })
    }
}

/// How many of the policies that were written last one is compared with.
const POLICIES_COMPARED: usize = 16;

impl Coded for Cluster {
    fn write(&self, to: &mut Writer) {
        let Self {
            name,
            route,
            endpoints,
            levels,
            policy,
        } = self;
        name.write(to);
        route.write(to);
        endpoints.write(to);
        levels.write(to);
        let mut latest = to.policies.iter().enumerate().rev().take(POLICIES_COMPARED);
        match latest.find(|(_, one)| *one == policy) {
            Some((nth, _)) => to.number(nth as u64 + 1),
            None => {
                to.number(0);
                policy.write(to);
                to.policies.push(Arc::clone(policy));
            }
        }
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        let (name, route) = (Coded::read(from)?, Coded::read(from)?);
        let (endpoints, levels) = (Coded::read(from)?, Coded::read(from)?);
        let policy = match usize::read(from)?.checked_sub(1) {
            Some(nth) => (from.policies.get(nth).cloned())
                .ok_or(Corrupt("a policy is named before it is written"))?,
            None => {
                let policy = Arc::<ClusterPolicy>::read(from)?;
                from.policies.push(Arc::clone(&policy));
                policy
            }
        };
        Ok(Self {
            name,
            route,
            endpoints,
            levels,
            policy,
        })
    }
}

coded_enum! {
    Role { 0 Mesh, 1 Workloads }
    Protocol { 0 Tcp, 1 Http }
    Inbound { 0 Passthrough, 1 Terminate }
    Export { 0 Nobody, 1 To(peers), 2 AllPeers }
    PolicyMode { 0 Enforce, 1 Audit }
    SniPattern { 0 Host(pattern), 1 Text(pattern) }
    PathPattern { 0 Exact(path), 1 Below(prefix) }
    ValuePattern { 0 Exact(value), 1 Begins(prefix) }
    HostPattern { 0 Exact(host), 1 Below(host) }
    Address { 0 Socket(address), 1 Name(host, port), 2 Each(host, port) }
    EndpointTls { 0 None, 1 Workload, 2 Mesh { sni, expected } }
    HttpVersion { 0 Same, 1 H1, 2 H2 }
    Balance { 0 LeastRequest, 1 RoundRobin, 2 Random, 3 RingHash(on), 4 PeakEwma, 5 Maglev(on) }
    HashOn { 0 Header(name), 1 Source }
    TooFew { 0 UseAll, 1 Fail }
    Failback { 0 Auto, 1 Manual }
    WhenStale { 0 Hold, 1 Drop }
    ActiveKind { 0 Http { path, host }, 1 Tcp, 2 Grpc { service, host } }
    Failure {
        0 Connect, 1 RefusedStream, 2 Reset, 3 Timeout, 4 Status(status), 5 Unavailable,
        6 NoLocalEndpoint, 7 Grpc(code),
    }
    PathMatch { 0 Any, 1 Exact(path), 2 Prefix(path), 3 Begins(text) }
    Severity { 0 Error, 1 Warning }
    Code {
        0 UnknownField, 1 BadValue, 2 MissingField, 3 NotADocument, 4 Unreadable, 5 TooLarge,
        6 UnknownReference, 7 Duplicate, 8 Contradiction, 9 NoEffect, 10 Unsafe, 11 Unused,
        12 BadResource, 13 Unbound,
    }
    Serves { 0 LastGood, 1 Rest, 2 Nothing }
}

macro_rules! newtypes {
    ($($name:ident),*) => {$(
        impl Coded for $name {
            fn write(&self, to: &mut Writer) {
                self.0.write(to);
            }
            fn read(from: &mut Reader<'_>) -> Read<Self> {
                Coded::read(from).map(Self)
            }
        }
    )*};
}

newtypes!(ServiceIx, ClusterIx, PeerIx, EndpointIx, EndpointKey);

impl Coded for Rate {
    fn write(&self, to: &mut Writer) {
        self.get().write(to);
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        Self::per_second(u32::read(from)?).ok_or(Corrupt("a rate of nothing"))
    }
}

impl Coded for HostTable {
    fn write(&self, to: &mut Writer) {
        self.entries().count().write(to);
        for (pattern, ports) in self.entries() {
            pattern.write(to);
            ports.len().write(to);
            for port in ports {
                port.write(to);
            }
        }
        self.rest.write(to);
        self.is_literal.write(to);
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        let entries: Vec<(HostPattern, Vec<(u16, ServiceIx)>)> = Coded::read(from)?;
        let mut table: Self = entries.into_iter().collect();
        table.rest = Coded::read(from)?;
        table.is_literal = Coded::read(from)?;
        Ok(table)
    }
}

fn is_spread(parts: &[SpreadPart]) -> bool {
    let mut weights = parts.iter().map(|part| part.weight);
    weights.all(|weight| weight.is_finite() && weight >= 0.0)
}

/// Holds what was read to what `ingest` promises of every snapshot: an index that leads nowhere
/// would be a panic later.
pub(super) fn hold_to_its_promises(snapshot: &Snapshot) -> Read<()> {
    let is_service = |ix: &ServiceIx| ix.0 < snapshot.services.len();
    let is_cluster = |ix: &ClusterIx| ix.0 < snapshot.clusters.len();
    let is_peer = |ix: &PeerIx| ix.0 < snapshot.peers.len();
    let is_table = |hosts: &HostTable| {
        let named = (hosts.entries()).flat_map(|(_, ports)| ports.iter().map(|port| &port.1));
        hosts.rest.iter().chain(named).all(is_service)
    };
    for listener in &snapshot.listeners {
        let all = listener.only.iter().all(is_service) && is_table(&listener.hosts);
        good(all, "a listener leads to no service")?;
    }
    for service in &snapshot.services {
        let all = service.inside.iter().all(|hosts| is_table(hosts));
        good(all, "what is inside TLS leads to no service")?;
        let mirrors = service.mirrors.iter().map(|mirror| &mirror.to);
        let to = std::iter::once(&service.outbound).chain(&service.own);
        good(
            to.chain(mirrors).all(is_cluster),
            "a service leads to no cluster",
        )?;
        let rules = service.policy.allow.iter().chain(&service.policy.deny);
        let to = match &service.export {
            Export::To(peers) => peers.as_slice(),
            Export::Nobody | Export::AllPeers => &[],
        };
        let mut peers = rules.flat_map(|rule| &rule.via).chain(to);
        good(peers.all(is_peer), "a rule names no peer")?;
        let all = service.mirrors.iter().all(|mirror| is_share(mirror.share));
        good(all, "a share is over the whole")?;
        if let Some(rules) = &service.rules {
            hold_rules(snapshot, rules)?;
        }
    }
    for cluster in &snapshot.clusters {
        hold_cluster(cluster, is_peer)?;
    }
    let is_known = snapshot.peers.iter().all(|peer| !peer.ids.is_empty());
    good(is_known, "a peer is nobody")
}

fn good(is_good: bool, what: &'static str) -> Read<()> {
    is_good.then_some(()).ok_or(Corrupt(what))
}

fn is_share(share: f64) -> bool {
    (0.0..=1.0).contains(&share)
}

fn hold_cluster(cluster: &Cluster, is_peer: impl Fn(&PeerIx) -> bool) -> Read<()> {
    let of_levels: usize = (cluster.levels.iter().map(|level| level.members.len())).sum();
    let mut seen = vec![false; cluster.endpoints.len()];
    for member in cluster.levels.iter().flat_map(|level| &level.members) {
        let place = seen.get_mut(member.0);
        *place.ok_or(Corrupt("a level has no such endpoint"))? = true;
    }
    let is_partition = of_levels == cluster.endpoints.len() && seen.iter().all(|seen| *seen);
    good(
        is_partition && !cluster.levels.is_empty() && is_spread(&cluster.policy.spread),
        "an endpoint is not in one level",
    )?;
    for endpoint in &cluster.endpoints {
        let is_asked = match &endpoint.tls {
            EndpointTls::Mesh { expected, .. } => !expected.is_empty(),
            EndpointTls::None | EndpointTls::Workload => true,
        };
        let is_weight = endpoint.weight.is_finite() && endpoint.weight > 0.0;
        good(
            is_asked && is_weight && endpoint.peer.iter().all(&is_peer),
            "an endpoint is not one",
        )?;
    }
    let over = cluster
        .policy
        .passive
        .error_rate
        .map_or(0.0, |rate| rate.over);
    let slow = cluster.policy.passive.slow;
    good(
        slow.is_none_or(|slow| slow.over.is_finite() && slow.over > 1.0),
        "what is slow is not over once",
    )?;
    let shares = [
        cluster.policy.failover.start,
        cluster.policy.failover.full,
        cluster.policy.passive.max_ejected,
        cluster.policy.retries.budget,
        over,
    ];
    good(
        shares.into_iter().all(is_share),
        "a share is over the whole",
    )
}

fn hold_rules(snapshot: &Snapshot, rules: &Rules) -> Read<()> {
    let is_rule = |one: &Match| one.rule < rules.list.len();
    if !rules.matches.iter().all(is_rule) {
        return Err(Corrupt("a match is of no rule"));
    }
    let is_cluster = |ix: &ClusterIx| ix.0 < snapshot.clusters.len();
    let is_service = |ix: &ServiceIx| ix.0 < snapshot.services.len();
    let leads = |part: &Part| {
        is_cluster(&part.outbound)
            && part.own.iter().all(is_cluster)
            && part.service.iter().all(is_service)
    };
    let mut parts = (rules.list.iter()).flat_map(|rule| rule.split.iter().flatten());
    if !parts.all(leads) {
        return Err(Corrupt("a split leads nowhere"));
    }
    Ok(())
}
