//! What the core decides with a configuration, in words that a table can hold.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use zeugma_core::admission::Sources;
use zeugma_core::authorize::{Evidence, evidence};
use zeugma_core::engine::{Arrival, Decision, Headers, Request, Wants, decide};
use zeugma_core::fleet::{Fleet, Observation};
use zeugma_core::hello::ClientHello;
use zeugma_core::identity::SpiffeId;
use zeugma_core::mirror::{Copying, Kind, Original, copying};
use zeugma_core::names::HostPattern;
use zeugma_core::recheck::{Answering, judge_answering};
use zeugma_core::report::{Report, Standing};
use zeugma_core::retry::{RequestLeft, ResponseSeen, RetryBudget, Sender, Tried, again};
use zeugma_core::shares::Shares;
use zeugma_core::simulate::{Fault, Scenario, simulate};
use zeugma_core::slow::Took;
use zeugma_core::snapshot::{
    ActiveKind, Address, Cluster, EndpointIx, EndpointKey, Failure, HashOn, Service, ServiceIx,
    Snapshot,
};
use zeugma_core::time::Time;
use zeugma_xds::{Color, Findings, Loaded, NodeOptions, load};

/// A gateway's configuration, or what is wrong with it.
pub(super) struct World {
    loaded: Result<Loaded, Findings>,
    folder: TempDir,
}

/// A gateway of cluster west.
const WEST: &str = "spiffe://west.example/zeugma/gateway";
/// The host of `shop/orders`.
pub(super) const ORDERS: &str = "orders.shop.svc.clusterset.local";
/// The host of `db/pg`.
pub(super) const PG: &str = "pg.db.svc.clusterset.local";

impl World {
    /// What a gateway makes of this file.
    pub(super) fn of(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mesh.yaml");
        fs::write(&path, text).unwrap();
        let loaded = load(&path, &NodeOptions::default());
        Self { loaded, folder }
    }

    pub(super) fn try_loaded(&self) -> Option<&Loaded> {
        self.loaded.as_ref().ok()
    }

    pub(super) fn loaded(&self) -> &Loaded {
        (self.loaded.as_ref())
            .unwrap_or_else(|findings| panic!("{}", findings.to_human(Color::Plain)))
    }

    /// What the process is told, wherever its files are.
    pub(super) fn settings(&self) -> String {
        let folder = self.folder.path().to_str().unwrap();
        format!("{:?}", self.loaded().settings).replace(folder, "")
    }

    /// What is wrong, for a person.
    pub(super) fn said(&self) -> String {
        match &self.loaded {
            Ok(_) => String::new(),
            Err(findings) => format!("\n{}", findings.to_human(Color::Plain)),
        }
    }

    fn snapshot(&self) -> &Snapshot {
        &self.loaded().snapshot
    }

    /// `loads`, or the codes of what is wrong.
    pub(super) fn findings(&self) -> String {
        match &self.loaded {
            Ok(_) => "loads".to_owned(),
            Err(findings) => {
                let codes = findings.iter().map(|finding| finding.code.to_string());
                codes.collect::<Vec<_>>().join(" ")
            }
        }
    }

    /// As [`findings`](Self::findings), for the gateway of this name.
    pub(super) fn named(&self, name: &str) -> String {
        let options = NodeOptions {
            name: Some(name.to_owned()),
            locality: None,
        };
        let loaded = load(&self.folder.path().join("mesh.yaml"), &options);
        let folder = tempfile::tempdir().unwrap();
        Self { loaded, folder }.findings()
    }

    fn service(&self, name: &str) -> (ServiceIx, &Service) {
        let mut all = self.snapshot().services.iter().enumerate();
        let (ix, service) = all.find(|(_, service)| *service.name == *name).unwrap();
        (ServiceIx(ix), service)
    }

    fn cluster(&self, name: &str) -> &Cluster {
        self.snapshot().cluster(self.service(name).1.outbound)
    }

    /// Where an arrival ends up: the endpoints of each level that are tried, or why it is refused.
    fn decided(
        &self,
        listener: &str,
        source: &str,
        from: Evidence<'_>,
        wants: Wants<'_>,
    ) -> String {
        let snapshot = self.snapshot();
        let shares = Shares::all_healthy(snapshot);
        let arrival = Arrival {
            listener: snapshot.listener(listener).unwrap(),
            source: source.parse().unwrap(),
            evidence: from,
            sni: Some(ORDERS),
            wants,
        };
        match decide(snapshot, &shares, &arrival, &|_| 0, 0) {
            Decision::Carry(carry) => {
                let cluster = snapshot.cluster(carry.cluster);
                let mut levels: Vec<Vec<String>> = Vec::new();
                for attempt in carry.plan {
                    if levels.len() <= attempt.level {
                        levels.resize(attempt.level + 1, Vec::new());
                    }
                    let address = &cluster.endpoint(attempt.endpoint).address;
                    levels[attempt.level].push(address.to_string());
                }
                let sorted = levels.into_iter().map(|mut level| {
                    level.sort();
                    level.join(" + ")
                });
                sorted.collect::<Vec<_>>().join(", ")
            }
            Decision::Terminate(..) => "terminated".to_owned(),
            Decision::ReadHttp => "http".to_owned(),
            Decision::Report => "reports".to_owned(),
            Decision::Refuse(refusal) => refusal.reason.to_string(),
        }
    }

    /// The same with this header, and the rule that it is for before where it ends up.
    pub(super) fn rule_of(&self, method: &str, path: &str, header: (&str, &str)) -> String {
        let each = |name: &str, tell: &mut dyn FnMut(&[u8])| {
            if name == header.0 {
                tell(header.1.as_bytes());
            }
        };
        let request = Request {
            authority: ORDERS,
            method,
            path,
            headers: Headers(&each),
        };
        let snapshot = self.snapshot();
        let shares = Shares::all_healthy(snapshot);
        let arrival = Arrival {
            listener: snapshot.listener("apps").unwrap(),
            source: "127.0.0.1".parse().unwrap(),
            evidence: Evidence::Network,
            sni: None,
            wants: Wants::Request(request),
        };
        match decide(snapshot, &shares, &arrival, &|_| 0, 0) {
            Decision::Carry(carry) => {
                let rules = self.service("shop/orders").1.rules.as_ref().unwrap();
                rules.list[carry.matched.unwrap().rule].label.to_string()
            }
            Decision::Refuse(refusal) => refusal.reason.to_string(),
            other @ (Decision::Terminate(..) | Decision::ReadHttp | Decision::Report) => {
                format!("{other:?}")
            }
        }
    }

    /// A plaintext request to listener `apps` with `x-a: 1`.
    pub(super) fn with_header(&self) -> String {
        let each = |name: &str, tell: &mut dyn FnMut(&[u8])| {
            if name == "x-a" {
                tell(b"1");
            }
        };
        let request = Request {
            authority: ORDERS,
            method: "GET",
            path: "/",
            headers: Headers(&each),
        };
        let (source, wants) = ("127.0.0.1", Wants::Request(request));
        self.decided("apps", source, Evidence::Network, wants)
    }

    /// A plaintext request to listener `apps`.
    pub(super) fn asks(&self, authority: &str, method: &str, path: &str) -> String {
        let request = Request {
            authority,
            method,
            path,
            headers: Headers::NONE,
        };
        self.decided(
            "apps",
            "127.0.0.1",
            Evidence::Network,
            Wants::Request(request),
        )
    }

    /// `GET / HTTP/1.1` for `shop/orders` at listener `apps`.
    pub(super) fn orders(&self) -> String {
        self.asks(ORDERS, "GET", "/")
    }

    /// The names of which `shop/orders` takes every address.
    pub(super) fn names(&self) -> String {
        let endpoints = self.cluster("shop/orders").endpoints.iter();
        let names = endpoints.filter(|one| matches!(one.address, Address::Each(..)));
        names.map(|one| one.address.to_string()).collect()
    }

    /// The same from another address.
    pub(super) fn orders_from(&self, source: &str) -> String {
        let request = Request {
            authority: ORDERS,
            method: "GET",
            path: "/",
            headers: Headers::NONE,
        };
        self.decided("apps", source, Evidence::Network, Wants::Request(request))
    }

    /// A connection without TLS.
    pub(super) fn plaintext(&self, listener: &str) -> String {
        self.decided(listener, "127.0.0.1", Evidence::Network, Wants::Plaintext)
    }

    /// A connection with TLS.
    pub(super) fn hello(&self, listener: &str, sni: &str) -> String {
        let hello = ClientHello {
            sni: Some(sni.to_owned()),
            ..ClientHello::default()
        };
        self.decided(
            listener,
            "192.0.2.7",
            Evidence::Network,
            Wants::Hello(&hello),
        )
    }

    /// What a caller of this verified identity, handing on another's, gets of `shop/orders` at
    /// listener `mesh`.
    pub(super) fn called_by(&self, verified: &str, claimed: Option<&str>, source: &str) -> String {
        let verified = SpiffeId::parse(verified).unwrap();
        let claimed = claimed.map(|id| SpiffeId::parse(id).unwrap());
        let source_ip: IpAddr = source.parse().unwrap();
        let from = evidence(self.snapshot(), source_ip, &verified, claimed.as_ref());
        let (sni, _) = self.service("shop/orders");
        let request = Request {
            authority: ORDERS,
            method: "GET",
            path: "/",
            headers: Headers::NONE,
        };
        let wants = Wants::RequestInside {
            sni,
            port: zeugma_core::engine::SniPort::Known,
            request,
        };
        self.decided("mesh", source, from, wants)
    }

    /// The same from west's gateway.
    pub(super) fn called_by_west(&self) -> String {
        self.called_by(WEST, None, "192.0.2.7")
    }

    /// How many of ten connections of one source are let in at one moment.
    pub(super) fn let_in(&self, listener: &str) -> String {
        let mut sources = Sources::new(0);
        let rate = self.snapshot().listener(listener).unwrap().handshakes;
        let source = "192.0.2.1".parse().unwrap();
        let is_in = |_: &u32| rate.is_none_or(|rate| sources.admit(source, rate, Time::ZERO));
        (0..10).filter(is_in).count().to_string()
    }

    /// Whether who answers as `id` at an endpoint of `shop/orders` may.
    pub(super) fn answered_by(&self, backend: &str, address: &str, id: &str) -> String {
        let answering = Answering {
            backend,
            address: &Address::Socket(address.parse().unwrap()),
            id: &SpiffeId::parse(id).unwrap(),
        };
        let (ix, _) = self.service("shop/orders");
        match judge_answering(self.snapshot(), "apps", ix, &answering) {
            Ok(()) => "may".to_owned(),
            Err(ending) => ending.reason.to_string(),
        }
    }

    /// How the level of `shop/orders` that is spread is.
    pub(super) fn spread(&self) -> String {
        let of = Shares::all_healthy(self.snapshot());
        let ix = self.service("shop/orders").1.outbound.0;
        let Some(spread) = &of.clusters[ix].spread else {
            return "none".to_owned();
        };
        let shares = spread.shares.iter();
        let shares = shares.map(|share| format!("{:.0}", share * 100.0));
        shares.collect::<Vec<_>>().join("/")
    }

    /// Which of two endpoints eight draws pick, where the first has five requests under way.
    pub(super) fn picks(&self) -> String {
        let cluster = self.cluster("shop/orders");
        let of = Shares::all_healthy(self.snapshot());
        let of = of
            .clusters
            .get(self.service("shop/orders").1.outbound.0)
            .unwrap();
        let busy = |ix: EndpointIx| {
            let is_first = cluster.endpoint(ix).address.to_string() == "10.0.1.1:80";
            if is_first { 5 } else { 0 }
        };
        let picked = (0..8).filter_map(|draw| {
            let first = zeugma_core::plan::plan(cluster, of, &busy, draw).next()?;
            cluster
                .endpoint(first.endpoint)
                .address
                .to_string()
                .chars()
                .nth(7)
        });
        picked.collect()
    }

    /// What goes to one endpoint of `shop/orders`.
    pub(super) fn key(&self) -> String {
        let balance = &self.cluster("shop/orders").policy.balance;
        match balance.hash_on() {
            Some(HashOn::Header(name)) => format!("header {name}"),
            Some(HashOn::Source) => "source".to_owned(),
            None => format!("{balance:?}"),
        }
    }

    /// What becomes of eight copies: `c` is copied, `-` is not, `b` and `f` are dropped for the size of
    /// the body and for what is under way; and where they go.
    pub(super) fn copies(&self, body_bytes: u64, in_flight: usize) -> String {
        self.copies_of("shop/orders", body_bytes, in_flight)
    }

    /// The same of another route.
    pub(super) fn copies_of(&self, route: &str, body_bytes: u64, in_flight: usize) -> String {
        let (_, service) = self.service(route);
        let Some(mirror) = service.mirrors.first() else {
            return "none".to_owned();
        };
        let original = Original {
            sender: Sender::Caller,
            kind: Kind::Primary,
            body_bytes: Some(body_bytes),
        };
        let mut said = String::new();
        for draw in 0..8 {
            said.push_str(match copying(mirror, 0, &original, in_flight, draw) {
                Copying::Copy(_) => "c",
                Copying::Skip(_) => "-",
                Copying::Drop(dropped) => &dropped.label()[..1],
            });
        }
        for endpoint in &self.snapshot().cluster(mirror.to).endpoints {
            write!(said, " {}", endpoint.address).unwrap();
        }
        said
    }

    /// What a copy of a request gets: its time, and how much of its answer is compared.
    pub(super) fn terms(&self) -> String {
        let (_, service) = self.service("shop/orders");
        let original = Original {
            sender: Sender::Caller,
            kind: Kind::Primary,
            body_bytes: None,
        };
        match copying(&service.mirrors[0], 0, &original, 0, 1) {
            Copying::Copy(terms) => {
                let compared = terms.compared_bytes_max.unwrap_or(0);
                format!("{:?}, {compared} bytes compared", terms.within)
            }
            other @ (Copying::Skip(_) | Copying::Drop(_)) => format!("{other:?}"),
        }
    }

    /// Plays five minutes of 200 requests in a second for `shop/orders` with this fault, as
    /// `zeugma simulate` does: the least, the largest and the last share of each level in percent, and
    /// how requests were lost.
    pub(super) fn plays(&self, (kind, fault): (&str, &str)) -> String {
        let snapshot = self.snapshot();
        let lasts = Duration::from_secs(300);
        let (ix, service) = self.service("shop/orders");
        let scenario = Scenario {
            services: vec![ix],
            rate: 200.0,
            method: "GET".to_owned(),
            path: "/".to_owned(),
            lasts,
            faults: vec![Fault::parse(kind, fault, snapshot, lasts, 1).unwrap()],
            seed: 1,
        };
        let report = simulate(snapshot, &scenario);
        let names = snapshot.cluster(service.outbound).levels.iter();
        let levels = names
            .zip(&report.services[0].levels)
            .map(|(level, shares)| {
                let percent = |share: f64| format!("{:.0}", share * 100.0);
                let (least, most) = (percent(shares.min.value), percent(shares.max.value));
                format!("{} {least}-{most} {}", level.name, percent(shares.end))
            });
        let mut said = levels.collect::<Vec<_>>().join(", ");
        for (count, word) in [
            (report.counts.failed, "failed"),
            (report.counts.refused, "refused"),
        ] {
            if count > 0.0 {
                write!(said, ", some {word}").unwrap();
            }
        }
        said
    }

    /// How often a try is repeated that fails so each time, and what ends it; `requests` came before.
    pub(super) fn retried(&self, failure: Failure, method: &str, requests: usize) -> String {
        let retries = &self.cluster("shop/orders").policy.retries;
        let rules = self.service("shop/orders").1.rules.as_ref();
        let retries = &*rules.map_or(Cow::Borrowed(retries), |rules| {
            rules.list[0].retries(retries)
        });
        let budget = RetryBudget::default();
        for _ in 0..requests {
            budget.request(Time::ZERO);
        }
        let mut times = 0;
        // Each request uses its attempts; the budget is over all of them.
        for _ in 0..requests {
            let mut counted = 0;
            loop {
                let tried = Tried {
                    failure,
                    method: Some(method),
                    counted,
                    request: RequestLeft::Whole,
                    response: ResponseSeen::Nothing,
                    sender: Sender::Caller,
                };
                match again(retries, &budget, &tried, Time::ZERO) {
                    Ok(_) => {
                        counted += 1;
                        times += 1;
                    }
                    Err(stop) if requests == 1 => return format!("{times}, {}", stop.label()),
                    Err(_) => break,
                }
            }
        }
        times.to_string()
    }

    /// The gateway's health of a route, from here on.
    pub(super) fn fleet(&self, route: &str) -> Health<'_> {
        let mut fleet = Fleet::new();
        fleet.reconcile(self.snapshot(), Time::ZERO);
        Health {
            world: self,
            ix: self.service(route).1.outbound.0,
            fleet,
            now: Time::ZERO,
        }
    }
}

/// What is learned of a route's endpoints as time goes on.
pub(super) struct Health<'w> {
    world: &'w World,
    ix: usize,
    fleet: Fleet,
    now: Time,
}

impl Health<'_> {
    fn key(&self, address: &str) -> EndpointKey {
        let cluster = &self.world.snapshot().clusters[self.ix];
        let is_it =
            |endpoint: &&zeugma_core::snapshot::Endpoint| endpoint.address.to_string() == address;
        cluster.endpoints.iter().find(is_it).unwrap().key.clone()
    }

    fn observed(mut self, address: &str, result: Result<(), Failure>, times: usize) -> Self {
        let key = self.key(address);
        for _ in 0..times {
            let observation = Observation {
                key: key.clone(),
                result,
            };
            self.fleet.observe(&observation, self.now);
        }
        self
    }

    /// Answers that took so long.
    pub(super) fn took(mut self, address: &str, took: Duration, times: u32) -> Self {
        let key = self.key(address);
        for _ in 0..times {
            (self.fleet).observe_successes(&key, 1, Took::one(took), self.now);
        }
        self
    }

    /// Attempts that fail.
    pub(super) fn fails(self, address: &str, failure: Failure, times: usize) -> Self {
        self.observed(address, Err(failure), times)
    }

    /// A peer's gateways report that nothing healthy is behind them.
    pub(super) fn reports_nothing_healthy(mut self, peer: &str) -> Self {
        let host = HostPattern::parse(ORDERS).unwrap();
        let mut report = Report::default();
        report.set(&host, 80, Standing::new(0, 1, 0.0, 1.0).unwrap());
        let report = Arc::new(report);
        for endpoint in &self.world.snapshot().clusters[self.ix].endpoints {
            let of = endpoint.peer.map(|ix| self.world.snapshot().peer(ix));
            if let Some(of) = of.filter(|of| *of.name == *peer) {
                (self.fleet).report(&of.name, &endpoint.address, &report, self.now);
            }
        }
        self
    }

    /// Attempts that do not.
    pub(super) fn works(self, address: &str, times: usize) -> Self {
        self.observed(address, Ok(()), times)
    }

    /// How many of so many requests at one moment each level takes, and how many are refused.
    pub(super) fn taken(mut self, count: u64) -> String {
        let cluster = self.world.snapshot().clusters[self.ix].clone();
        let shares = self.fleet.shares(self.now);
        let of = &shares.clusters[self.ix];
        let mut taken = vec![0; cluster.levels.len()];
        for nth in 0..count {
            let mut plan = zeugma_core::plan::plan(&cluster, of, &|_| 0, nth);
            if let Some(metered) = &of.metered {
                plan = plan.within(metered.full(self.now));
            }
            let mut attempts = plan.filter(|attempt| {
                let metered = of.metered.as_ref();
                metered.is_none_or(|metered| metered.take(attempt.endpoint, self.now))
            });
            if let Some(first) = attempts.next() {
                taken[first.level] += 1;
            }
        }
        let taken: Vec<String> = taken.iter().map(i32::to_string).collect();
        taken.join("/")
    }

    /// Lets time pass.
    pub(super) fn at(mut self, secs: u64) -> Self {
        self.now = Time::from_origin(Duration::from_secs(secs));
        // What moves by time is stepped as the gateway does.
        while self.fleet.next_wake().is_some_and(|wake| wake <= self.now) {
            let wake = self.fleet.next_wake().unwrap();
            self.fleet.due_probes(wake, 0);
            self.fleet.shares(wake);
            if self.fleet.next_wake() == Some(wake) {
                break;
            }
        }
        self
    }

    /// The share of each level in percent, and `too few` where what was ejected is used.
    pub(super) fn shares(mut self) -> String {
        let shares = self.fleet.shares(self.now);
        let shares = shares.clusters.get(self.ix).unwrap();
        let levels = shares
            .levels
            .iter()
            .map(|share| format!("{:.0}", share * 100.0));
        let levels = levels.collect::<Vec<_>>().join("/");
        let too_few = if shares.too_few { " too few" } else { "" };
        format!("{levels}{too_few}")
    }

    /// What each endpoint is given of its weight, in percent.
    pub(super) fn given(mut self) -> String {
        let shares = self.fleet.shares(self.now);
        let shares = shares.clusters.get(self.ix).unwrap();
        let given = (0..shares.endpoints.len()).map(|ix| {
            let part = shares.parts.get(ix).copied().unwrap_or(1.0);
            format!("{:.0}", part * 100.0)
        });
        given.collect::<Vec<_>>().join("/")
    }

    /// What is asked of an endpoint of `shop/orders`.
    pub(super) fn asked(mut self) -> String {
        let probes = self.fleet.due_probes(self.now, 0);
        let mut of = probes
            .iter()
            .filter(|probe| probe.endpoint.address.to_string() == "10.0.1.1:80");
        match of.next().map(|probe| &probe.check.kind) {
            None => "nothing".to_owned(),
            Some(ActiveKind::Tcp) => "a connection".to_owned(),
            Some(ActiveKind::Http { path, host }) => format!("{host}{path}"),
            Some(ActiveKind::Grpc { service, host }) => format!("{service} at {host}"),
        }
    }

    /// How many answers in a row it takes to turn an endpoint that answered otherwise before.
    pub(super) fn turns_after(mut self, ok: bool) -> String {
        let mut before = 20;
        let mut in_a_row = 0;
        let mut status = None;
        loop {
            let wake = self.fleet.next_wake().unwrap();
            for probe in self.fleet.due_probes(wake, 0) {
                let is_it = probe.endpoint.address.to_string() == "10.0.1.1:80";
                self.fleet
                    .probed(&probe.key, !is_it || (ok == (before == 0)), wake);
                if !is_it {
                    continue;
                }
                if before > 0 {
                    before -= 1;
                    status = self.fleet.status(&probe.key);
                    continue;
                }
                in_a_row += 1;
                if self.fleet.status(&probe.key) != status {
                    return in_a_row.to_string();
                }
            }
        }
    }

    /// How many seconds after a good answer the next check is due, to the nearest five.
    pub(super) fn every(mut self) -> String {
        let probes = self.fleet.due_probes(self.now, 0);
        for probe in probes {
            self.fleet.probed(&probe.key, true, self.now);
        }
        let wake = self.fleet.next_wake().unwrap().since(self.now);
        format!("{:.0}", (wake.as_secs_f64() / 5.0).round() * 5.0)
    }

    /// How many seconds a check without an answer keeps its place.
    pub(super) fn lost_after(mut self) -> String {
        self.fleet.due_probes(self.now, 0);
        let wake = self.fleet.next_wake().unwrap().since(self.now);
        format!("{:.0}", wake.as_secs_f64())
    }
}
