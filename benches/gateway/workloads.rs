//! What is measured, and the marks to reach.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::load::{Job, Way};
use crate::proxies::{Between, Carries, Work};
use crate::results::{Goal, Mark, Metric, Peer};
use crate::tls::{Certificates, KeyExchange};

const MIB: u64 = 1 << 20;

/// One thing that is measured.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    /// What `--only` knows it by.
    pub(crate) name: &'static str,
    /// What a reader knows it by.
    pub(crate) title: &'static str,
    pub(crate) between: Between,
    pub(crate) begins: Begins,
    pub(crate) measure: Measure,
    pub(crate) goals: Vec<Goal>,
    /// Who takes part, if not all that can.
    pub(crate) peers: &'static [Peer],
}

impl Workload {
    /// What its proxy does.
    ///
    /// # Errors
    /// It has two.
    pub(crate) fn alone(&self) -> Result<Work> {
        match self.between {
            Between::One(work) => Ok(work),
            Between::Two { .. } => bail!("{}: only one proxy can be measured so", self.name),
        }
    }
}

/// How its connections begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begins {
    /// With a ClientHello that is passed on.
    Hello,
    /// With mTLS that the proxy ends.
    Tls(Certificates, KeyExchange),
    /// With a request.
    Http,
}

/// How it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// The CPU time of a job, by a proxy that has done it before.
    Cpu { full: Job, quick: Job },
    /// The memory that idle connections take, in a new proxy.
    Idle { count: u64 },
    /// What it takes to start, until the first answer through the proxy.
    Start,
    /// The same where a run before has left its state behind.
    Restart,
}

const fn ratio(against: Peer, at_most: f64) -> Goal {
    Goal {
        metric: Metric::CpuNs,
        against: Some(against),
        mark: Mark::AtMost(at_most),
    }
}

const fn limit(metric: Metric, at_most: f64) -> Goal {
    Goal {
        metric,
        against: None,
        mark: Mark::AtMost(at_most),
    }
}

/// Everything, in the order of the report.
pub(crate) fn all() -> Vec<Workload> {
    let mut all = passthrough();
    all.extend(idle());
    all.extend(handshakes());
    all.extend(tls_bulk());
    all.extend(http());
    all.extend(mesh());
    all.extend(latency());
    all.extend(starts());
    all
}

const PASSTHROUGH: Work = routed(1);

const fn routed(routes: usize) -> Work {
    Work::Passthrough {
        routes,
        carries: Carries::Messages,
    }
}

fn workload(
    name: &'static str,
    title: &'static str,
    (work, begins): (Work, Begins),
    measure: Measure,
    goals: Vec<Goal>,
) -> Workload {
    Workload {
        name,
        title,
        between: Between::One(work),
        begins,
        measure,
        goals,
        peers: &Peer::ALL,
    }
}

fn connections(full: u64, quick: u64, parallel: u64) -> Measure {
    let job = |count| Job::Connections { count, parallel };
    Measure::Cpu {
        full: job(full),
        quick: job(quick),
    }
}

/// `full` and `quick` are the mebibytes of all streams together.
fn bulk(full: u64, quick: u64, streams: u64, way: Way) -> Measure {
    let job = |total: u64| Job::Bulk {
        streams,
        bytes: total * MIB / streams,
        way,
    };
    Measure::Cpu {
        full: job(full),
        quick: job(quick),
    }
}

fn passthrough() -> Vec<Workload> {
    let hello = (PASSTHROUGH, Begins::Hello);
    let many = (routed(10_000), Begins::Hello);
    let much = Work::Passthrough {
        routes: 1,
        carries: Carries::Bulk,
    };
    let bulk = |streams, way| bulk(1024, 256, streams, way);
    let splice = || vec![ratio(Peer::Haproxy, 1.10)];
    vec![
        workload(
            "passthrough-connections",
            "new passthrough connection",
            hello,
            connections(4000, 1000, 32),
            vec![ratio(Peer::Nginx, 1.2)],
        ),
        workload(
            "passthrough-connections-10000-routes",
            "the same, one of 10,000 routes",
            many,
            connections(4000, 1000, 32),
            vec![],
        ),
        workload(
            "passthrough-down-1",
            "passthrough MiB down, 1 stream",
            (much, Begins::Hello),
            bulk(1, Way::Down),
            vec![],
        ),
        workload(
            "passthrough-up-1",
            "passthrough MiB up, 1 stream",
            (much, Begins::Hello),
            bulk(1, Way::Up),
            vec![],
        ),
        workload(
            "passthrough-down-16",
            "passthrough MiB down, 16 streams",
            (much, Begins::Hello),
            bulk(16, Way::Down),
            splice(),
        ),
        workload(
            "passthrough-up-16",
            "passthrough MiB up, 16 streams",
            (much, Begins::Hello),
            bulk(16, Way::Up),
            splice(),
        ),
    ]
}

const SAME: Begins = Begins::Tls(Certificates::Same, KeyExchange::Classic);
const DISTINCT: Begins = Begins::Tls(Certificates::Distinct, KeyExchange::Classic);

fn idle() -> Vec<Workload> {
    let hello = (PASSTHROUGH, Begins::Hello);
    let mtls = (Work::Terminate, SAME);
    let of = |name, title, what, count, most| {
        let goals = vec![limit(Metric::PssBytes, most)];
        workload(name, title, what, Measure::Idle { count }, goals)
    };
    vec![
        of(
            "passthrough-idle-1000",
            "idle passthrough connection, of 1,000",
            hello,
            1000,
            8000.0,
        ),
        of(
            "passthrough-idle-5000",
            "idle passthrough connection, of 5,000",
            hello,
            5000,
            8000.0,
        ),
        of(
            "mtls-idle-1000",
            "idle mTLS connection, of 1,000",
            mtls,
            1000,
            16_000.0,
        ),
        of(
            "mtls-idle-5000",
            "idle mTLS connection, of 5,000",
            mtls,
            5000,
            16_000.0,
        ),
    ]
}

fn handshakes() -> Vec<Workload> {
    let full = || vec![ratio(Peer::Envoy, 0.85)];
    let cached = || vec![ratio(Peer::Envoy, 0.60)];
    let of = |name, title, work, begins, goals| {
        workload(
            name,
            title,
            (work, begins),
            connections(1000, 300, 16),
            goals,
        )
    };
    let hybrid = Begins::Tls(Certificates::Same, KeyExchange::Hybrid);
    vec![
        of(
            "handshake-distinct",
            "mTLS connection ended, another certificate each",
            Work::Terminate,
            DISTINCT,
            full(),
        ),
        of(
            "handshake-same",
            "mTLS connection ended, the same certificate",
            Work::Terminate,
            SAME,
            cached(),
        ),
        of(
            "originate-distinct",
            "mTLS ended and begun, another certificate each",
            Work::Originate,
            DISTINCT,
            full(),
        ),
        of(
            "originate-same",
            "mTLS ended and begun, the same certificate",
            Work::Originate,
            SAME,
            cached(),
        ),
        Workload {
            // OpenSSL 3.0, which Debian's HAProxy and nginx use, has no X25519MLKEM768.
            peers: &[Peer::Zeugma, Peer::Envoy],
            ..of(
                "handshake-hybrid",
                "mTLS connection ended, X25519MLKEM768",
                Work::Terminate,
                hybrid,
                vec![],
            )
        },
    ]
}

fn tls_bulk() -> Vec<Workload> {
    let of = |name, title, streams, way, most| {
        let goals = vec![ratio(Peer::Envoy, most)];
        let measure = bulk(512, 128, streams, way);
        workload(name, title, (Work::Terminate, SAME), measure, goals)
    };
    vec![
        of("tls-down-1", "TLS MiB down, 1 stream", 1, Way::Down, 1.10),
        of("tls-up-1", "TLS MiB up, 1 stream", 1, Way::Up, 0.90),
        of(
            "tls-down-16",
            "TLS MiB down, 16 streams",
            16,
            Way::Down,
            1.10,
        ),
        of("tls-up-16", "TLS MiB up, 16 streams", 16, Way::Up, 0.90),
    ]
}

/// HTTP/2 requests, 64 at once.
const fn requests2() -> Measure {
    const fn job(count: u64) -> Job {
        Job::Http2 {
            count,
            connections: 4,
            streams: 16,
        }
    }
    Measure::Cpu {
        full: job(20_480),
        quick: job(5120),
    }
}

fn http() -> Vec<Workload> {
    let http1 = |count| Job::Http1 {
        count,
        connections: 32,
    };
    vec![
        workload(
            "http1",
            "HTTP/1.1 request, 32 connections",
            (Work::Http1, Begins::Http),
            Measure::Cpu {
                full: http1(20_480),
                quick: http1(5120),
            },
            vec![ratio(Peer::Haproxy, 1.0)],
        ),
        workload(
            "http2",
            "HTTP/2 request, 4 connections of 16 streams",
            (Work::Http2, Begins::Http),
            requests2(),
            vec![ratio(Peer::Haproxy, 1.15)],
        ),
        workload(
            "http2-to-http1",
            "HTTP/2 request to HTTP/1.1, 4 connections of 16 streams",
            (Work::Http2ToHttp1, Begins::Http),
            requests2(),
            vec![],
        ),
    ]
}

/// From gateway to gateway: what a request costs both, and what one stream carries over a way as
/// long as that between continents. Less than 20 MB/s there would change the HTTP/2 windows.
fn mesh() -> Vec<Workload> {
    let of = |name, title, one_way, measure, goals| Workload {
        name,
        title,
        between: Between::Two { one_way },
        begins: Begins::Http,
        measure,
        goals,
        peers: &Peer::ALL,
    };
    let far = |name, title, way| {
        let job = |mebibytes| Job::Http2Bulk {
            bytes: mebibytes * MIB,
            way,
        };
        let measure = Measure::Cpu {
            full: job(64),
            quick: job(16),
        };
        let goal = Goal {
            metric: Metric::StreamMbPerS,
            against: None,
            mark: Mark::AtLeast(20.0),
        };
        of(name, title, Duration::from_millis(50), measure, vec![goal])
    };
    vec![
        of(
            "mesh-http2",
            "HTTP/2 request, two proxies with mTLS between them, 4 connections of 16 streams",
            Duration::ZERO,
            requests2(),
            vec![],
        ),
        far(
            "mesh-down-100ms",
            "HTTP/2 MiB down, 1 stream, two proxies 100 ms of round trip apart",
            Way::Down,
        ),
        far(
            "mesh-up-100ms",
            "HTTP/2 MiB up, 1 stream, two proxies 100 ms of round trip apart",
            Way::Up,
        ),
    ]
}

fn latency() -> Vec<Workload> {
    let ping_pong = |count| Job::PingPong { count, bytes: 64 };
    let rate = |count| Job::Rate {
        per_second: 2000,
        count,
        connections: 16,
    };
    let pings = Measure::Cpu {
        full: ping_pong(4000),
        quick: ping_pong(1000),
    };
    vec![
        workload(
            "ping-pong-passthrough",
            "64 bytes there and back, passthrough",
            (PASSTHROUGH, Begins::Hello),
            pings,
            vec![],
        ),
        workload(
            "ping-pong-tls",
            "64 bytes there and back, mTLS ended",
            (Work::Terminate, SAME),
            pings,
            vec![],
        ),
        workload(
            "rate-http1",
            "HTTP/1.1 request, 2,000 a second over 16 connections",
            (Work::Http1, Begins::Http),
            Measure::Cpu {
                full: rate(4000),
                quick: rate(2000),
            },
            vec![],
        ),
    ]
}

fn starts() -> Vec<Workload> {
    let of = |name, title, routes, measure, goals| {
        let what = (routed(routes), Begins::Hello);
        workload(name, title, what, measure, goals)
    };
    let ready = |seconds: f64| {
        vec![
            limit(Metric::WallMs, seconds * 1000.0),
            limit(Metric::PssMib, 60.0),
        ]
    };
    let start = Measure::Start;
    vec![
        of("routes-10", "start with 10 routes", 10, start, vec![]),
        of(
            "routes-1000",
            "start with 1,000 routes",
            1000,
            start,
            vec![],
        ),
        of(
            "routes-10000",
            "start with 10,000 routes",
            10_000,
            start,
            ready(0.8),
        ),
        Workload {
            peers: &[Peer::Zeugma],
            ..of(
                "routes-10000-last-good",
                "start again with 10,000 routes, the state of before kept",
                10_000,
                Measure::Restart,
                ready(0.4),
            )
        },
    ]
}
