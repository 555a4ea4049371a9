//! Random configurations, and how they are written anew by a push.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use zeugma_core::admission::{Rate, RouteLimits};
use zeugma_core::balance::Slots;
use zeugma_core::identity::{IdPattern, TrustDomain};
use zeugma_core::locality::Locality;
use zeugma_core::names::HostPattern;
use zeugma_core::snapshot::*;

/// What a snapshot is made from.
#[derive(Debug, Clone)]
pub(crate) struct Blueprint {
    pub(crate) routes: Vec<Route>,
    pub(crate) when_stale: WhenStale,
    next: usize,
}

/// The gateways of the peer whose endpoints are all that are not this cluster's own.
pub(crate) const GATEWAYS: [u16; 2] = [15_443, 15_444];

/// Where one of them answers.
pub(crate) fn gateway(port: u16) -> Address {
    Address::Socket(([192, 0, 2, 7], port).into())
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Route {
    pub(crate) name: String,
    /// Names of endpoints, by level.
    pub(crate) levels: Vec<(String, Vec<String>)>,
    /// The first so many levels are this cluster's own.
    own: usize,
    ports: Vec<u16>,
    settings: Settings,
    /// Callers of 10.0.0.0/8 are denied.
    denies: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Settings {
    failover: Failover,
    active: Option<ActiveCheck>,
    passive: PassiveCheck,
    slow_start: Duration,
    balance: Balance,
    /// Whether some of its backends take only so much.
    is_metered: bool,
}

impl Blueprint {
    pub(crate) fn random(rng: &mut Rng) -> Self {
        let mut blueprint = Self {
            routes: Vec::new(),
            when_stale: *rng.choice(&[WhenStale::Hold, WhenStale::Drop]).unwrap(),
            next: 0,
        };
        for _ in 0..rng.usize(1..=2) {
            blueprint.add_route(rng);
        }
        blueprint
    }

    fn name(&mut self, what: &str) -> String {
        self.next += 1;
        format!("{what}{}", self.next)
    }

    fn add_route(&mut self, rng: &mut Rng) {
        let name = self.name("route");
        let count = rng.usize(1..=4);
        let levels: Vec<_> = (0..count)
            .map(|_| {
                let members = (0..rng.usize(0..=4)).map(|_| self.name("e")).collect();
                (self.name("level"), members)
            })
            .collect();
        self.routes.push(Route {
            name,
            own: rng.usize(1..=count),
            levels,
            ports: if rng.bool() { vec![80] } else { vec![80, 81] },
            settings: Settings::random(rng),
            denies: rng.bool(),
        });
    }

    /// Changes one thing, as a push of an operator or of discovery would.
    pub(crate) fn push(&mut self, rng: &mut Rng) {
        let fresh = self.name("e");
        let level = self.name("level");
        let at = rng.usize(..self.routes.len());
        let route = &mut self.routes[at];
        let place = rng.usize(..route.levels.len());
        let members = &mut route.levels[place].1;
        match rng.u8(0..6) {
            0 => members.insert(rng.usize(0..=members.len()), fresh),
            1 if !members.is_empty() => {
                members.remove(rng.usize(..members.len()));
            }
            2 => rng.shuffle(members),
            3 => route.levels.push((level, vec![fresh])),
            4 => self.routes.reverse(),
            _ => self.add_route(rng),
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut hosts = HostTable::default();
        let mut services = Vec::new();
        let mut clusters = Vec::new();
        for route in &self.routes {
            let host = HostPattern::parse(&format!("{}.test", route.name)).unwrap();
            for port in &route.ports {
                let outbound = ClusterIx(clusters.len());
                clusters.push(route.cluster(*port, "all", route.levels.len()).into());
                let own = ClusterIx(clusters.len());
                clusters.push(route.cluster(*port, "own", route.own).into());
                hosts.insert(&host, *port, ServiceIx(services.len()));
                services.push(route.service(host.clone(), *port, outbound, own));
            }
        }
        let listener = |name: &str, role| Listener {
            name: name.into(),
            address: "127.0.0.1:9".parse().unwrap(),
            role,
            only: None,
            hosts: hosts.clone(),
            sources: Vec::new(),
            handshakes: None,
            proxies: Vec::new(),
        };
        Snapshot {
            version: "sim".into(),
            node: Node {
                name: "gw".into(),
                cluster: "east".into(),
                locality: Locality::default(),
                trust_domain: TrustDomain::parse("east.test").unwrap(),
            },
            listeners: vec![
                listener("apps", Role::Workloads),
                listener("mesh", Role::Mesh),
            ]
            .into(),
            services: services.into(),
            clusters: clusters.into(),
            peers: vec![Peer {
                name: "west".into(),
                cluster: "west".into(),
                locality: Locality::default(),
                ids: vec![IdPattern::parse("spiffe://west.test/gateway").unwrap()],
                attests: Vec::new(),
                sources: Vec::new(),
                keepalive_ping: Duration::from_secs(2),
                keepalive_timeout: Duration::from_secs(2),
                when_stale: self.when_stale,
            }]
            .into(),
        }
    }
}

impl Route {
    pub(crate) fn denies(&self) -> bool {
        self.denies
    }

    /// The cluster of one port: its first `levels` levels; all of them, or the own ones.
    fn cluster(&self, port: u16, kind: &str, levels: usize) -> Cluster {
        let mut endpoints = Vec::new();
        let levels: Vec<Level> = (self.levels.iter().take(levels).enumerate())
            .map(|(at, (name, members))| Level {
                name: name.as_str().into(),
                members: members
                    .iter()
                    .map(|member| {
                        let is_own = at < self.own;
                        let key = format!("{member}:{port}");
                        endpoints.push(Endpoint {
                            backend: name.as_str().into(),
                            capacity: self.capacity(name),
                            ..endpoint(&key, is_own)
                        });
                        EndpointIx(endpoints.len() - 1)
                    })
                    .collect(),
                slots: Slots::default(),
            })
            .collect();
        let Settings {
            mut failover,
            active,
            passive,
            slow_start,
            balance,
            is_metered: _,
        } = self.settings.clone();
        if kind == "own" {
            // The calling gateway has other places to try.
            failover.too_few = TooFew::Fail;
        }
        Cluster {
            name: format!("{}:{port} {kind}", self.name).into(),
            route: self.name.as_str().into(),
            endpoints,
            levels,
            policy: Arc::new(ClusterPolicy {
                spread: Vec::new(),
                balance,
                failover,
                active,
                passive,
                connection_age_max: Duration::ZERO,
                slow_start,
                timeouts: Timeouts {
                    connect: Duration::from_secs(1),
                    connect_peer: Duration::from_secs(3),
                    response_headers: Duration::from_secs(15),
                    idle: Duration::from_secs(3600),
                    per_try: None,
                },
                retries: Retries {
                    attempts: 2,
                    on: vec![Failure::Reset, Failure::Status(503)],
                    budget: 0.2,
                    buffer_bytes_max: 65536,
                    any_method: false,
                    hedge_after: None,
                },
                limits: RouteLimits::default(),
            }),
        }
    }

    /// What the backend of a level takes, by its name, so that a push does not change it.
    fn capacity(&self, level: &str) -> Option<Rate> {
        let number: u32 = level.trim_start_matches(char::is_alphabetic).parse().ok()?;
        let most = [0, 1, 3, 20][usize::try_from(number % 4).ok()?];
        Rate::per_second(most).filter(|_| self.settings.is_metered)
    }

    fn service(&self, host: HostPattern, port: u16, all: ClusterIx, own: ClusterIx) -> Service {
        let deny = Rule {
            sources: vec!["10.0.0.0/8".parse().unwrap()],
            ..Rule::default()
        };
        Service {
            name: self.name.as_str().into(),
            port,
            ports: self.ports.len(),
            hosts: vec![host],
            protocol: Protocol::Http,
            inbound: Inbound::Terminate,
            outbound: all,
            own: Some(own),
            policy: Policy {
                allow: vec![Rule::default()],
                deny: if self.denies { vec![deny] } else { Vec::new() },
                mode: PolicyMode::Enforce,
            },
            export: Export::AllPeers,
            mirrors: Vec::new(),
            rules: None,
            inside: None,
            is_upgraded: true,
            position: None,
        }
    }
}

impl Settings {
    fn random(rng: &mut Rng) -> Self {
        let start = *rng.choice(&[0.0, 0.5, 0.7, 1.0]).unwrap();
        let full = if start > 0.3 {
            *rng.choice(&[0.0, 0.0, 0.3]).unwrap()
        } else {
            0.0
        };
        let active = ActiveCheck {
            kind: ActiveKind::Tcp,
            every: Duration::from_millis(rng.u64(500..5000)),
            timeout: Duration::from_secs(1),
            up: rng.u32(1..=3),
            down: rng.u32(1..=3),
        };
        let passive = PassiveCheck {
            consecutive: rng.u32(0..=5),
            on: vec![Failure::Connect, Failure::Timeout, Failure::Status(503)],
            error_rate: rng.bool().then_some(ErrorRate {
                over: 0.5,
                // So few that every level can fail alike between its ejections and trials.
                requests: *rng.choice(&[4, 20]).unwrap(),
            }),
            slow: (rng.u8(0..4) == 0).then_some(Slow {
                over: 2.0,
                requests: 4,
            }),
            eject: Duration::from_millis(rng.u64(1000..30_000)),
            max_ejected: *rng.choice(&[1.0, 1.0, 0.5]).unwrap(),
            keep_at_least: rng.u32(0..=2),
        };
        Self {
            failover: Failover {
                start,
                full,
                hold: seconds(rng, &[0, 0, 2, 10]),
                failback_after: seconds(rng, &[0, 3, 60]),
                failback_ramp: seconds(rng, &[0, 5, 60]),
                failback: if rng.u8(0..4) == 0 {
                    Failback::Manual
                } else {
                    Failback::Auto
                },
                too_few: if rng.bool() {
                    TooFew::UseAll
                } else {
                    TooFew::Fail
                },
            },
            active: rng.bool().then_some(active),
            passive,
            slow_start: seconds(rng, &[0, 0, 5, 60]),
            is_metered: rng.u8(0..3) == 0,
            balance: (*rng
                .choice(&[
                    &Balance::LeastRequest,
                    &Balance::RoundRobin,
                    &Balance::Random,
                    &Balance::PeakEwma,
                    &Balance::RingHash(HashOn::Source),
                    &Balance::Maglev(HashOn::Source),
                ])
                .unwrap())
            .clone(),
        }
    }
}

fn seconds(rng: &mut Rng, of: &[u64]) -> Duration {
    Duration::from_secs(*rng.choice(of).unwrap())
}

fn endpoint(key: &str, is_own: bool) -> Endpoint {
    // By its name, so that a push does not change it.
    let gateway = gateway(GATEWAYS[usize::from(key.as_bytes()[1] % 2)]);
    Endpoint {
        key: EndpointKey(key.into()),
        backend: "b".into(),
        address: if is_own {
            Address::Socket("127.0.0.1:1".parse().unwrap())
        } else {
            gateway
        },
        // Some weigh twice, by their names, so that a push does not change it.
        weight: if key.len().is_multiple_of(2) {
            1.0
        } else {
            2.0
        },
        locality: Locality::default(),
        peer: (!is_own).then_some(PeerIx(0)),
        tls: EndpointTls::None,
        version: HttpVersion::Same,
        proxy_protocol: false,
        capacity: None,
        is_down: false,
    }
}
