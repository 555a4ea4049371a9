//! Route, authorize and plan in one call: what the gateway, a simulation and an explanation drive.

use std::net::IpAddr;

use crate::authorize::{Asking, Evidence, Verdict, authorize, gateway_of, objection};
use crate::hello::ClientHello;
use crate::plan::{Plan, plan};
use crate::retry::Sender;
use crate::route::{
    Routed, check_authority, check_authority_port, route_authority, route_plaintext, route_tls,
};
use crate::rules::{Part, Tried, choose};
use crate::shares::{ClusterShares, Shares};
use crate::snapshot::{ClusterIx, EndpointIx, Listener, Protocol, Role, ServiceIx, Snapshot};
use crate::time::Time;
use crate::verdict::Reason;

/// A connection or request that arrived.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// Where.
    pub listener: &'a Listener,
    /// From which address.
    pub source: IpAddr,
    /// From whom.
    pub evidence: Evidence<'a>,
    /// The server name that its TLS named, where that was ended here.
    pub sni: Option<&'a str>,
    /// For what.
    pub wants: Wants<'a>,
}

impl<'a> Arrival<'a> {
    /// What is authorized of it.
    #[must_use]
    pub fn asking(&self) -> Asking<'a> {
        let (method, path, headers) = match self.request() {
            Some(request) => (
                Some(request.method),
                Some(request.path),
                Some(request.headers),
            ),
            None => (None, None, None),
        };
        let sni = match self.wants {
            // What one route alone is carried on is not looked into.
            Wants::Hello(hello) => {
                let only = self.listener.only;
                (hello.sni.as_deref()).filter(|_| only.is_none())
            }
            Wants::Inside(_) | Wants::RequestInside { .. } => self.sni,
            Wants::Plaintext | Wants::Request(_) => None,
        };
        Asking {
            listener: self.listener,
            source: self.source,
            evidence: self.evidence,
            sni,
            method,
            path,
            headers,
        }
    }

    pub(crate) const fn request(&self) -> Option<Request<'a>> {
        match self.wants {
            Wants::Request(request) | Wants::RequestInside { request, .. } => Some(request),
            Wants::Hello(_) | Wants::Plaintext | Wants::Inside(_) => None,
        }
    }
}

/// What an arrival asks for.
#[derive(Debug, Clone, Copy)]
pub enum Wants<'a> {
    /// A connection that began with this ClientHello.
    Hello(&'a ClientHello),
    /// A connection that did not begin with TLS, or is not waited for.
    Plaintext,
    /// The connection inside TLS that was ended for this service.
    Inside(ServiceIx),
    /// A plaintext request.
    Request(Request<'a>),
    /// A request inside TLS that was ended for this service.
    RequestInside {
        /// The service of the SNI.
        sni: ServiceIx,
        /// Whether the SNI named its port ([`Routed::Terminate`]).
        port: SniPort,
        /// The request.
        request: Request<'a>,
    },
}

/// Whether an SNI named a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SniPort {
    /// It did, or there is only one.
    Known,
    /// The authority has to ([`Routed::TerminateAnyPort`]).
    ByAuthority,
}

/// The parts of a request that decisions look at.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `Host` or `:authority`.
    pub authority: &'a str,
    /// The method.
    pub method: &'a str,
    /// The path as received, its query may follow.
    pub path: &'a str,
    /// Its headers.
    pub headers: Headers<'a>,
}

/// The headers of a request, to be looked up: whatever keeps them.
#[derive(Clone, Copy)]
pub struct Headers<'a>(
    /// Tells each value of the header of this name, in lower case.
    pub &'a dyn Fn(&str, Hearer<'_>),
);

/// Who is told values, one by one.
pub type Hearer<'h> = &'h mut dyn FnMut(&[u8]);

impl Headers<'_> {
    /// There are none.
    pub const NONE: Self = Self(&|_, _| {});

    /// Tells each value of the header of this name, in lower case.
    pub fn each(&self, name: &str, tell: Hearer<'_>) {
        (self.0)(name, tell);
    }

    /// Whether the header of this name, in lower case, is there once and has this value. Of a header
    /// that comes twice nobody can tell which one a service reads.
    #[must_use]
    pub fn has(&self, name: &str, value: &str) -> bool {
        let (mut times, mut is_it) = (0, false);
        self.each(name, &mut |line| {
            times += 1;
            is_it = line == value.as_bytes();
        });
        times == 1 && is_it
    }

    /// Whether they have a connection of HTTP/1.1 go on as WebSocket (RFC 9110 §7.8, RFC 6455 §4).
    ///
    /// No other protocol is passed: after `h2c`, for one, requests would flow that nobody authorizes.
    #[must_use]
    pub fn upgrade_to_websocket(&self) -> bool {
        let (mut protocols, mut is_websocket) = (0, false);
        self.each("upgrade", &mut |line| {
            protocols += 1;
            is_websocket = line.eq_ignore_ascii_case(b"websocket");
        });
        let mut has_option = false;
        self.each("connection", &mut |line| {
            let mut options = line.split(|byte| *byte == b',');
            has_option |= options.any(|one| one.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
        });
        protocols == 1 && is_websocket && has_option
    }
}

impl std::fmt::Debug for Headers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Headers")
    }
}

/// What is to be done with an arrival.
#[derive(Debug)]
pub enum Decision<'a> {
    /// Carry it to the first endpoint of the plan that takes it.
    Carry(Carry<'a>),
    /// End the TLS for this service, then ask again with what is inside.
    Terminate(ServiceIx, SniPort),
    /// End the TLS, and tell the caller how exported services stand, if it is a peer's gateway.
    Report,
    /// Read plaintext HTTP, then ask again with each request.
    ReadHttp,
    /// Refuse it.
    Refuse(Refusal),
}

impl Decision<'_> {
    /// The same for what backends have room for at this time, which [`decide`] does not look at.
    #[must_use]
    pub fn within(self, shares: &Shares, now: Time) -> Self {
        let Self::Carry(carry) = self else {
            return self;
        };
        let metered = (shares.clusters.get(carry.cluster.0)).and_then(|of| of.metered.as_ref());
        let Some(metered) = metered else {
            return Self::Carry(carry);
        };
        let plan = carry.plan.within(metered.full(now));
        if plan.is_empty() {
            return Self::Refuse(Refusal {
                reason: Reason::OverCapacity,
                service: Some(carry.service),
                by: None,
                rule: None,
            });
        }
        Self::Carry(Carry { plan, ..carry })
    }
}

/// Something that is carried.
#[derive(Debug)]
pub struct Carry<'a> {
    /// The service.
    pub service: ServiceIx,
    /// The index of the allow rule that matched; `None` where a policy that is audited only let it in.
    pub rule: Option<usize>,
    /// The rule of the service's own that a request is for, where it has some that apply.
    pub matched: Option<Matched>,
    /// Where it goes.
    pub cluster: ClusterIx,
    /// The endpoints to try; of a split those of one part.
    pub plan: Plan<'a>,
}

/// Which rule a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matched {
    /// Its place in [`Rules::list`](crate::rules::Rules::list).
    pub rule: usize,
    /// The part of its split, where it has one.
    pub part: Option<usize>,
    /// The parts that it may not go to.
    pub closed: Tried,
}

/// A request, as the rules of a service ask about it.
#[derive(Clone, Copy)]
pub struct Led<'a> {
    /// What of it they look at.
    pub request: &'a Request<'a>,
    /// Who sent it.
    pub sender: Sender,
    /// What another service has against it ([`objection`]); asked where a split leads to one.
    pub objection: &'a dyn Fn(ServiceIx) -> Option<Verdict>,
}

impl std::fmt::Debug for Led<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Led")
            .field("request", self.request)
            .field("sender", &self.sender)
            .finish_non_exhaustive()
    }
}

/// Why there is nowhere for a request to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Astray {
    /// The reason.
    pub reason: Reason,
    /// The service of a part that said so.
    pub by: Option<ServiceIx>,
    /// Its deny rule that matched.
    pub rule: Option<usize>,
}

impl From<Reason> for Astray {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            by: None,
            rule: None,
        }
    }
}

/// Where something goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The cluster.
    pub cluster: ClusterIx,
    /// What chose it, where there are rules that apply.
    pub matched: Option<Matched>,
}

impl Target {
    const fn unruled(cluster: ClusterIx) -> Self {
        Self {
            cluster,
            matched: None,
        }
    }
}

/// Something that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// The service, where it is known.
    pub service: Option<ServiceIx>,
    /// The service that its split leads to and that refused it, where that one did.
    pub by: Option<ServiceIx>,
    /// The deny rule that matched, or the allow rule that came nearest.
    pub rule: Option<usize>,
}

/// Decides about an arrival. `load` is what this worker has under way at an endpoint of a cluster.
#[must_use]
pub fn decide<'a>(
    snapshot: &'a Snapshot,
    shares: &'a Shares,
    arrival: &Arrival<'_>,
    load: &'a dyn Fn(EndpointIx) -> u32,
    draw: u64,
) -> Decision<'a> {
    let listener = arrival.listener;
    if !listener.admits(arrival.source) {
        return Decision::Refuse(Refusal {
            reason: Reason::SourceRefused,
            service: None,
            by: None,
            rule: None,
        });
    }
    let is_http = |ix| snapshot.service(ix).protocol == Protocol::Http;
    let service = match arrival.wants {
        Wants::Hello(hello) => match route_tls(snapshot, listener, hello) {
            Routed::Plain(ix) if is_http(ix) => return Decision::ReadHttp,
            Routed::Passthrough(ix) | Routed::Plain(ix) => Ok(ix),
            Routed::Terminate(ix) => return Decision::Terminate(ix, SniPort::Known),
            Routed::TerminateAnyPort(ix) => return Decision::Terminate(ix, SniPort::ByAuthority),
            Routed::Reports => return Decision::Report,
            Routed::PlainHttp => return Decision::ReadHttp,
            Routed::Refuse(reason) => Err(reason),
        },
        Wants::Plaintext => match route_plaintext(listener) {
            Routed::Plain(ix) if is_http(ix) => return Decision::ReadHttp,
            Routed::Plain(ix) => Ok(ix),
            Routed::PlainHttp => return Decision::ReadHttp,
            Routed::Refuse(reason) => Err(reason),
            Routed::Passthrough(_)
            | Routed::Terminate(_)
            | Routed::TerminateAnyPort(_)
            | Routed::Reports => Err(Reason::NotTls),
        },
        Wants::Inside(ix) => Ok(ix),
        Wants::Request(request) => match listener.only {
            Some(_) if request.authority.is_empty() => Err(Reason::AuthorityMissing),
            Some(only) => Ok(only),
            None => route_authority(snapshot, listener, request.authority),
        },
        Wants::RequestInside { sni, port, request } => match port {
            SniPort::Known => check_authority(snapshot, listener, sni, request.authority),
            SniPort::ByAuthority => {
                check_authority_port(snapshot, listener, sni, request.authority)
            }
        },
    };
    let outcome = service
        .map_err(|reason| Refusal {
            reason,
            service: None,
            by: None,
            rule: None,
        })
        .and_then(|service| carry(snapshot, shares, arrival, service, (load, draw)));
    match outcome {
        Ok(carry) => Decision::Carry(carry),
        Err(refusal) => Decision::Refuse(refusal),
    }
}

/// Where a service's traffic goes that came in on `listener`: from other clusters to this
/// cluster's own backends alone, so that no path loops.
///
/// # Errors
/// [`Reason::NoLocalEndpoint`] where a mesh arrival finds no own backend.
pub fn cluster_of(
    snapshot: &Snapshot,
    listener: &Listener,
    service: ServiceIx,
) -> Result<ClusterIx, Reason> {
    let service = snapshot.service(service);
    match listener.role {
        Role::Workloads => Ok(service.outbound),
        Role::Mesh => service.own.ok_or(Reason::NoLocalEndpoint),
    }
}

/// Where a request for a service goes that came in on `listener`, by the service's rules. A peer's
/// gateway has applied rules already, so its requests go where all of the service's traffic does.
///
/// # Errors
/// As [`cluster_of`]; [`Reason::NoRule`] where none matches; [`nothing_healthy`] where no part of a
/// split is here; [`Reason::Denied`] or [`Reason::NotExported`] where every part of it that takes
/// something is another service's that says so.
pub fn target(
    snapshot: &Snapshot,
    shares: &Shares,
    listener: &Listener,
    service: ServiceIx,
    led: Led<'_>,
    draw: u64,
) -> Result<Target, Astray> {
    let rules = match (&snapshot.service(service).rules, led.sender) {
        (Some(rules), Sender::Caller) => rules,
        (None, _) | (Some(_), Sender::PeerGateway) => {
            return Ok(cluster_of(snapshot, listener, service).map(Target::unruled)?);
        }
    };
    let nth = rules.find(led.request).ok_or(Reason::NoRule)?;
    let split = rules.list.get(nth).and_then(|rule| rule.split.as_deref());
    let (cluster, part, closed) = match split {
        None => {
            let cluster = cluster_of(snapshot, listener, service)?;
            (cluster, None, Tried::default())
        }
        Some(split) => {
            let closed = closed(split, listener.role, led.objection)?;
            let part = choose(split, listener.role, shares, draw, closed);
            let cluster = part.and_then(|part| split.get(part)?.cluster(listener.role));
            let cluster = cluster.ok_or_else(|| nothing_healthy(listener.role))?;
            (cluster, part, closed)
        }
    };
    Ok(Target {
        cluster,
        matched: Some(Matched {
            rule: nth,
            part,
            closed,
        }),
    })
}

/// The parts of a split that are other services' and that those have closed to a request.
///
/// # Errors
/// What the first of them says, where no other part takes anything.
fn closed(
    split: &[Part],
    role: Role,
    objection: &dyn Fn(ServiceIx) -> Option<Verdict>,
) -> Result<Tried, Astray> {
    let mut closed = Tried::default();
    let mut first = None;
    let mut is_any_open = false;
    for (nth, part) in split.iter().enumerate() {
        if part.weight == 0 || part.cluster(role).is_none() {
            continue;
        }
        let said = part.service.and_then(|of| Some((of, objection(of)?)));
        let Some((of, Verdict::Deny { reason, rule, .. })) = said else {
            is_any_open = true;
            continue;
        };
        closed = closed.and(nth);
        first.get_or_insert(Astray {
            reason,
            by: Some(of),
            rule,
        });
    }
    match first {
        Some(astray) if !is_any_open => Err(astray),
        Some(_) | None => Ok(closed),
    }
}

/// Why an arrival on a listener is refused when no endpoint is left to try.
#[must_use]
pub const fn nothing_healthy(role: Role) -> Reason {
    match role {
        Role::Workloads => Reason::NoHealthyEndpoint,
        Role::Mesh => Reason::NoLocalEndpoint,
    }
}

/// Why an arrival on a listener is refused when a cluster that stands like this has nothing to try:
/// what is healthy is full, or nothing is healthy.
#[must_use]
pub fn nothing_to_try(shares: &ClusterShares, role: Role) -> Reason {
    if shares.metered.is_some() && !shares.refuses() {
        Reason::OverCapacity
    } else {
        nothing_healthy(role)
    }
}

fn carry<'a>(
    snapshot: &'a Snapshot,
    shares: &'a Shares,
    arrival: &Arrival<'_>,
    service: ServiceIx,
    (load, draw): (&'a dyn Fn(EndpointIx) -> u32, u64),
) -> Result<Carry<'a>, Refusal> {
    let asking = arrival.asking();
    let refusal = |reason, rule| Refusal {
        reason,
        service: Some(service),
        by: None,
        rule,
    };
    let rule = match authorize(snapshot, service, &asking) {
        Verdict::Allow { rule } => Some(rule),
        Verdict::Audit { .. } => None,
        Verdict::Deny {
            reason,
            rule,
            nearest,
        } => return Err(refusal(reason, rule.or(nearest))),
    };
    if let Some(request) = arrival.request()
        && request.method == "GET"
        && request.headers.upgrade_to_websocket()
        && !snapshot.service(service).is_upgraded
    {
        return Err(refusal(Reason::NotAllowed, None));
    }
    let nothing = || refusal(nothing_healthy(arrival.listener.role), None);
    let Target { cluster, matched } =
        aimed(snapshot, shares, arrival, service, draw).map_err(|astray| Refusal {
            by: astray.by,
            ..refusal(astray.reason, astray.rule)
        })?;
    let of = shares.clusters.get(cluster.0).ok_or_else(nothing)?;
    let plan = plan(snapshot.cluster(cluster), of, load, draw);
    if plan.is_empty() {
        return Err(nothing());
    }
    Ok(Carry {
        service,
        rule,
        matched,
        cluster,
        plan,
    })
}

/// Where an arrival goes that may call a service.
pub(crate) fn aimed(
    snapshot: &Snapshot,
    shares: &Shares,
    arrival: &Arrival<'_>,
    service: ServiceIx,
    draw: u64,
) -> Result<Target, Astray> {
    match arrival.request() {
        None => Ok(cluster_of(snapshot, arrival.listener, service).map(Target::unruled)?),
        Some(request) => {
            let led = Led {
                request: &request,
                sender: sender(snapshot, service, arrival),
                objection: &|of| objection(snapshot, of, &arrival.asking()),
            };
            target(snapshot, shares, arrival.listener, service, led, draw)
        }
    }
}

/// Who sent a request, as far as it matters to rules.
fn sender(snapshot: &Snapshot, service: ServiceIx, arrival: &Arrival<'_>) -> Sender {
    if snapshot.service(service).rules.is_none() {
        return Sender::Caller;
    }
    sender_of(snapshot, arrival)
}

/// Who sent it.
pub(crate) fn sender_of(snapshot: &Snapshot, arrival: &Arrival<'_>) -> Sender {
    match arrival.evidence {
        Evidence::Asserted { .. } => Sender::PeerGateway,
        Evidence::Verified(id) if gateway_of(snapshot, arrival.source, id).is_some() => {
            Sender::PeerGateway
        }
        Evidence::Verified(_) | Evidence::Network => Sender::Caller,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fixture::{cluster, http_rule, id, ids, nets, part, peer, service, snapshot};
    use crate::identity::SpiffeId;
    use crate::rules::{Match, PathMatch, Rules};
    use crate::snapshot::{Export, HostTable, Inbound, Policy, PolicyMode, Rule, Service};

    fn world() -> Snapshot {
        let open = |service: Service| Service {
            policy: Policy {
                allow: vec![Rule::default()],
                ..Policy::default()
            },
            outbound: ClusterIx(0),
            own: Some(ClusterIx(1)),
            ..service
        };
        let mut world = snapshot(vec![
            open(service("a/one", "one.a", 80)),
            service("a/closed", "closed.a", 80),
            open(Service {
                protocol: Protocol::Tcp,
                inbound: Inbound::Passthrough,
                ..service("a/pass", "pass.a", 443)
            }),
            Service {
                own: None,
                ..open(service("a/far", "far.a", 80))
            },
        ]);
        let two = [cluster(&[&["e0"], &["peer"]]), cluster(&[&["e0"]])];
        world.clusters = two.into_iter().map(Arc::new).collect();
        world
    }

    fn outcome(world: &Snapshot, listener: &str, from: Evidence<'_>, wants: Wants<'_>) -> String {
        let shares = Shares::all_healthy(world);
        let arrival = Arrival {
            listener: world.listener(listener).unwrap(),
            source: "192.0.2.1".parse().unwrap(),
            evidence: from,
            sni: None,
            wants,
        };
        match decide(world, &shares, &arrival, &|_| 0, 1) {
            Decision::Carry(carry) => format!(
                "{} to {} by {}, {} attempts",
                carry.service.0,
                carry.cluster.0,
                carry.rule.unwrap(),
                carry.plan.count()
            ),
            Decision::Terminate(ix, port) => format!("terminate {} {port:?}", ix.0),
            Decision::Report => "report".to_owned(),
            Decision::ReadHttp => "http".to_owned(),
            Decision::Refuse(refusal) => refusal.reason.to_string(),
        }
    }

    fn request(authority: &str) -> Request<'_> {
        Request {
            authority,
            method: "GET",
            path: "/",
            headers: Headers::NONE,
        }
    }

    #[test]
    fn workloads_reach_every_level_and_other_clusters_the_own_backends_alone() {
        let world = world();
        let cart = id("spiffe://west.example/cart");
        let inside = |authority| Wants::RequestInside {
            sni: ServiceIx(0),
            port: SniPort::Known,
            request: request(authority),
        };
        let west = Evidence::Verified(&cart);
        assert_eq!(
            outcome(
                &world,
                "apps",
                Evidence::Network,
                Wants::Request(request("one.a"))
            ),
            "0 to 0 by 0, 2 attempts"
        );
        assert_eq!(
            outcome(&world, "mesh", west, inside("one.a")),
            "0 to 1 by 0, 1 attempts"
        );
        assert_eq!(
            outcome(&world, "mesh", west, inside("closed.a")),
            "misdirected"
        );
        assert_eq!(
            outcome(&world, "mesh", west, Wants::Inside(ServiceIx(3))),
            "no-local-endpoint"
        );
    }

    #[test]
    fn a_connection_is_decided_in_as_many_steps_as_it_needs() {
        let world = world();
        let hello = |sni: &str| ClientHello {
            sni: Some(sni.to_owned()),
            ..ClientHello::default()
        };
        let of = |listener, wants: Wants<'_>| outcome(&world, listener, Evidence::Network, wants);
        for (listener, sni, expected) in [
            ("mesh", "one.a", "terminate 0 Known"),
            ("apps", "pass.a", "2 to 0 by 0, 2 attempts"),
            ("mesh", "no.a", "sni-unknown"),
        ] {
            assert_eq!(of(listener, Wants::Hello(&hello(sni))), expected);
        }
        assert_eq!(of("apps", Wants::Plaintext), "http");
        assert_eq!(of("mesh", Wants::Plaintext), "not-tls");
        let closed = Wants::Request(request("closed.a"));
        assert_eq!(of("apps", closed), "not-allowed");
        let unknown = Wants::Request(request("no.a"));
        assert_eq!(of("apps", unknown), "authority-unknown");
    }

    #[test]
    fn a_listener_of_one_route_reads_http_where_its_route_speaks_it_and_asks_for_no_host() {
        let mut world = world();
        for (name, service) in [("web", 0), ("db", 2)] {
            let mut listener = world.listeners[1].clone();
            listener.name = name.into();
            listener.only = Some(ServiceIx(service));
            listener.hosts = HostTable::default();
            world.listeners.edit(|all| all.push(listener));
        }
        let of = |listener, wants: Wants<'_>| outcome(&world, listener, Evidence::Network, wants);
        assert_eq!(of("web", Wants::Plaintext), "http");
        let anything = |authority| Wants::Request(request(authority));
        let carried = "0 to 0 by 0, 2 attempts";
        assert_eq!(of("web", anything("localhost:8080")), carried);
        assert_eq!(of("web", anything("")), "authority-missing");
        assert_eq!(of("db", Wants::Plaintext), "2 to 0 by 0, 2 attempts");
    }

    #[test]
    fn a_source_that_the_listener_does_not_admit_is_told_nothing_of_its_hosts() {
        let mut world = world();
        world.listeners[1].sources = nets(&["10.0.0.0/8"]);
        for authority in ["one.a", "no.a"] {
            let wants = Wants::Request(request(authority));
            let told = outcome(&world, "apps", Evidence::Network, wants);
            assert_eq!(told, "source-refused", "{authority}");
        }
    }

    #[test]
    fn without_a_healthy_endpoint_the_refusal_says_where() {
        let world = world();
        let mut shares = Shares::all_healthy(&world);
        for cluster in shares.clusters.iter_mut() {
            cluster.levels.fill(0.0);
        }
        let arrival = Arrival {
            listener: world.listener("apps").unwrap(),
            source: "192.0.2.1".parse().unwrap(),
            evidence: Evidence::Network,
            sni: None,
            wants: Wants::Inside(ServiceIx(0)),
        };
        let decision = decide(&world, &shares, &arrival, &|_| 0, 1);
        assert!(matches!(
            decision,
            Decision::Refuse(Refusal {
                reason: Reason::NoHealthyEndpoint,
                service: Some(ServiceIx(0)),
                by: None,
                rule: None
            })
        ));
        assert_eq!(nothing_healthy(Role::Mesh), Reason::NoLocalEndpoint);
    }

    /// The world, whose first service has one rule: requests below `/v1` go to cluster 1.
    fn ruled() -> Snapshot {
        let mut world = world();
        world.clusters[1] = cluster(&[&["e0", "e1", "e2"]]).into();
        world.services[0].rules = Some(Arc::new(Rules {
            matches: vec![Match {
                path: PathMatch::Prefix("/v1".into()),
                ..Match::default()
            }],
            list: vec![http_rule("0", Some(vec![part(1, 1)]))],
        }));
        world
    }

    #[test]
    fn rules_choose_where_a_request_goes_once_it_is_let_in() {
        let mut world = ruled();
        let asks = |world: &Snapshot, path| {
            let asked = Request {
                path,
                ..request("one.a")
            };
            outcome(world, "apps", Evidence::Network, Wants::Request(asked))
        };
        assert_eq!(asks(&world, "/v1/x"), "0 to 1 by 0, 3 attempts");
        assert_eq!(asks(&world, "/v2"), "no-rule");
        world.services[0].policy.allow.clear();
        assert_eq!(asks(&world, "/v2"), "not-allowed");
    }

    #[test]
    fn rules_are_for_everybody_but_the_gateways_of_peers_which_applied_theirs() {
        let world = ruled();
        let asks = |from: &str, path| {
            let id = id(from);
            let inside = Wants::RequestInside {
                sni: ServiceIx(0),
                port: SniPort::Known,
                request: Request {
                    path,
                    ..request("one.a")
                },
            };
            outcome(&world, "mesh", Evidence::Verified(&id), inside)
        };
        let gateway = "spiffe://west.example/zeugma/gateway";
        assert_eq!(asks(gateway, "/v2"), "0 to 1 by 0, 3 attempts");
        let workload = "spiffe://west.example/cart";
        assert_eq!(asks(workload, "/v2"), "no-rule");
        // The only part has no backend of this cluster.
        assert_eq!(asks(workload, "/v1"), "no-local-endpoint");
    }
    /// The ruled world, with a split of its first service between its own and the second one, which
    /// is exported to nobody.
    fn led_to_another(policy: Policy, weight: u32) -> Snapshot {
        let mut world = ruled();
        world.services[1].policy = policy;
        world.services[1].export = Export::Nobody;
        let here = |cluster, weight| Part {
            own: Some(ClusterIx(cluster)),
            ..part(cluster, weight)
        };
        let other = Part {
            service: Some(ServiceIx(1)),
            ..here(1, 9)
        };
        world.services[0].rules = Some(Arc::new(Rules {
            matches: vec![Match::default()],
            list: vec![http_rule("0", Some(vec![here(0, weight), other]))],
        }));
        world
    }

    #[expect(clippy::unwrap_in_result, reason = "the error is what is looked at")]
    fn decided(
        world: &Snapshot,
        listener: &str,
        from: &SpiffeId,
        draw: u64,
    ) -> Result<Option<Matched>, Refusal> {
        let shares = Shares::all_healthy(world);
        let arrival = Arrival {
            listener: world.listener(listener).unwrap(),
            source: "192.0.2.1".parse().unwrap(),
            evidence: Evidence::Verified(from),
            sni: None,
            wants: Wants::RequestInside {
                sni: ServiceIx(0),
                port: SniPort::Known,
                request: request("one.a"),
            },
        };
        match decide(world, &shares, &arrival, &|_| 0, draw) {
            Decision::Carry(carry) => Ok(carry.matched),
            Decision::Refuse(refusal) => Err(refusal),
            other @ (Decision::Terminate(..) | Decision::Report | Decision::ReadHttp) => {
                panic!("{other:?}")
            }
        }
    }

    /// How many of a hundred go to each part, or what they are refused by.
    fn parts(world: &Snapshot, listener: &str, from: &str) -> Result<[usize; 2], Refusal> {
        let from = id(from);
        let mut counts = [0; 2];
        for draw in 0..100 {
            let matched = decided(world, listener, &from, draw)?;
            counts[matched.unwrap().part.unwrap()] += 1;
        }
        Ok(counts)
    }

    const DEV: &str = "spiffe://east.example/dev";
    const PROD: &str = "spiffe://east.example/prod";

    fn denies_dev(mode: PolicyMode) -> Policy {
        let deny = ["spiffe://east.example/nobody", DEV].map(|who| Rule {
            from: ids(&[who]),
            ..Rule::default()
        });
        Policy {
            deny: deny.into(),
            mode,
            ..Policy::default()
        }
    }

    #[test]
    fn a_split_leads_nobody_to_a_service_that_denies_them() {
        let world = led_to_another(denies_dev(PolicyMode::Enforce), 1);
        assert_eq!(parts(&world, "apps", DEV), Ok([100, 0]));
        // Its `allow` is not asked, and nothing is exported on this side.
        let others = parts(&world, "apps", PROD).unwrap();
        assert!(others[1] > 50, "{others:?}");
        let audited = led_to_another(denies_dev(PolicyMode::Audit), 1);
        assert_eq!(parts(&audited, "apps", DEV), Ok(others));
    }

    #[test]
    fn where_every_part_is_closed_the_service_that_closed_it_is_named_with_its_rule() {
        // A part that takes nothing is no way out.
        let world = led_to_another(denies_dev(PolicyMode::Enforce), 0);
        let refused = Refusal {
            reason: Reason::Denied,
            service: Some(ServiceIx(0)),
            by: Some(ServiceIx(1)),
            rule: Some(1),
        };
        assert_eq!(parts(&world, "apps", DEV), Err(refused));
        assert_eq!(parts(&world, "apps", PROD), Ok([0, 100]));
    }

    #[test]
    fn other_clusters_workloads_are_led_to_nothing_that_is_not_exported_to_them() {
        let mut world = led_to_another(Policy::default(), 0);
        world.peers = vec![peer("west", "west.example", "spiffe://west.example/gw")].into();
        let workload = "spiffe://west.example/cart";
        let refused = parts(&world, "mesh", workload).unwrap_err();
        assert_eq!(
            (refused.reason, refused.by, refused.rule),
            (Reason::NotExported, Some(ServiceIx(1)), None)
        );
        world.services[1].export = Export::AllPeers;
        assert_eq!(parts(&world, "mesh", workload), Ok([0, 100]));
        // A peer's gateway is led by no rule.
        world.services[1].export = Export::Nobody;
        let gateway = id("spiffe://west.example/gw");
        assert_eq!(decided(&world, "mesh", &gateway, 0), Ok(None));
    }
}
