//! Those who watch requests and connections, as each ends: the access log's lines, filtered where
//! they are made.
//!
//! A worker looks at one counter where nobody watches. Whoever watches and does not keep up loses
//! lines, which are counted and told; no worker ever waits.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ipnet::IpNet;
use tokio::sync::mpsc;
use zeugma_core::identity::{IdPattern, SpiffeId};
use zeugma_core::verdict::{Fault, Reason};

use crate::account::Closed;

/// Who may watch at once.
pub(crate) const TAPS_MAX: usize = 8;
/// Lines on their way to one of them.
const LINES_MAX: usize = 1024;
/// Their bytes: a path may be as long as a head.
const LINES_BYTES_MAX: usize = 1 << 20;
/// The lines a second where nothing else is asked for.
pub(crate) const RATE: u32 = 100;
/// The most that may be asked for.
pub(crate) const RATE_MAX: u32 = 10_000;

/// What is watched: every field that is there must hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    pub(crate) kind: Option<Kind>,
    /// `namespace/name`.
    pub(crate) service: Option<String>,
    pub(crate) listener: Option<String>,
    pub(crate) source: Option<IpNet>,
    /// Who called, or for whom a gateway did.
    pub(crate) from: Option<IdPattern>,
    pub(crate) verdict: Option<Reason>,
    pub(crate) status: Option<Statuses>,
    /// What the path of a request begins with.
    pub(crate) path: Option<String>,
    /// Only what did not end well: anybody's fault, or a status of 500 and above.
    pub(crate) failed: bool,
}

/// Of what a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Request,
    Connection,
}

/// `503`, or `5xx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Statuses {
    first: u16,
    last: u16,
}

impl Statuses {
    /// Reads it; `None` if it is neither.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if let Some(class) = text.strip_suffix("xx") {
            let class: u16 = class.parse().ok().filter(|class| (1..=5).contains(class))?;
            return Some(Self {
                first: class * 100,
                last: class * 100 + 99,
            });
        }
        let one: u16 = text.parse().ok().filter(|one| (100..=999).contains(one))?;
        Some(Self {
            first: one,
            last: one,
        })
    }
}

impl Filter {
    fn wants(&self, closed: &Closed) -> bool {
        let request = closed.request.as_ref();
        let kind = if request.is_some() {
            Kind::Request
        } else {
            Kind::Connection
        };
        let status = request.map(|request| request.status);
        let path = request.map(|request| request.asked.1.path());
        let failed =
            || closed.reason.fault() != Fault::None || status.is_some_and(|status| status >= 500);
        self.kind.is_none_or(|wanted| wanted == kind)
            && (self.service.as_deref())
                .is_none_or(|wanted| closed.service.as_deref() == Some(wanted))
            && (self.listener.as_deref()).is_none_or(|wanted| *closed.origin.listener == *wanted)
            && self
                .source
                .is_none_or(|wanted| is_from(&wanted, closed.origin.source.ip()))
            && (self.from.as_ref()).is_none_or(|wanted| is_by(wanted, closed))
            && self.verdict.is_none_or(|wanted| wanted == closed.reason)
            && (self.status).is_none_or(|wanted| {
                status.is_some_and(|status| (wanted.first..=wanted.last).contains(&status))
            })
            && (self.path.as_deref())
                .is_none_or(|wanted| path.is_some_and(|path| path.starts_with(wanted)))
            && (!self.failed || failed())
    }
}

fn is_from(wanted: &IpNet, source: IpAddr) -> bool {
    wanted.contains(&source.to_canonical())
}

fn is_by(wanted: &IdPattern, closed: &Closed) -> bool {
    let verified = closed.origin.caller.identity.as_deref();
    let ids = [verified, closed.attested.as_deref()];
    let mut ids = ids.into_iter().flatten();
    ids.any(|id| SpiffeId::parse(id).is_ok_and(|id| wanted.matches(&id)))
}

/// Everybody who watches.
#[derive(Debug, Default)]
pub(crate) struct Taps {
    /// How many there are, for those who only want to know that there are none.
    count: AtomicUsize,
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    taps: Vec<Tap>,
    next: u64,
    is_closed: bool,
}

/// One who watches, as the workers see it.
#[derive(Debug)]
struct Tap {
    nth: u64,
    filter: Filter,
    rate: u32,
    /// When the second began that is counted, and what went out in it.
    second: (Instant, u32),
    lines: mpsc::Sender<Bytes>,
    counts: Arc<Counts>,
}

/// What both sides know of.
#[derive(Debug, Default)]
struct Counts {
    /// Bytes that are on their way.
    bytes: AtomicUsize,
    over_rate: AtomicU64,
    too_slow: AtomicU64,
}

/// What one who watches reads; it is forgotten when this is dropped.
#[derive(Debug)]
pub(crate) struct Watching {
    taps: Arc<Taps>,
    nth: u64,
    pub(crate) lines: mpsc::Receiver<Bytes>,
    counts: Arc<Counts>,
}

impl Watching {
    /// A line was taken.
    pub(crate) fn took(&self, line: &Bytes) {
        self.counts.bytes.fetch_sub(line.len(), Ordering::Relaxed);
    }

    /// The lines that were dropped so far: over the rate, and because they were not read.
    pub(crate) fn dropped(&self) -> (u64, u64) {
        (
            self.counts.over_rate.load(Ordering::Relaxed),
            self.counts.too_slow.load(Ordering::Relaxed),
        )
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut all = self.taps.lock();
        all.taps.retain(|tap| tap.nth != self.nth);
        self.taps.count.store(all.taps.len(), Ordering::Relaxed);
    }
}

impl Taps {
    fn lock(&self) -> MutexGuard<'_, All> {
        // Nothing that holds it can fail.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches what `filter` wants, `rate` lines a second at most; `None` if [`TAPS_MAX`] do, or
    /// the gateway ends.
    pub(crate) fn watch(self: &Arc<Self>, filter: Filter, rate: u32) -> Option<Watching> {
        let (lines, read) = mpsc::channel(LINES_MAX);
        let counts = Arc::<Counts>::default();
        let mut all = self.lock();
        if all.taps.len() >= TAPS_MAX || all.is_closed {
            return None;
        }
        let nth = all.next;
        all.next += 1;
        all.taps.push(Tap {
            nth,
            filter,
            rate,
            second: (Instant::now(), 0),
            lines,
            counts: Arc::clone(&counts),
        });
        self.count.store(all.taps.len(), Ordering::Relaxed);
        drop(all);
        Some(Watching {
            taps: Arc::clone(self),
            nth,
            lines: read,
            counts,
        })
    }

    /// Ends everybody's view; nobody begins another.
    pub(crate) fn close(&self) {
        let mut all = self.lock();
        all.is_closed = true;
        all.taps.clear();
        self.count.store(0, Ordering::Relaxed);
    }

    /// Whether anybody watches.
    pub(crate) fn are_watching(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Gives a record's line to those who want it.
    pub(crate) fn offer(&self, closed: &Closed, line: &[u8]) {
        let now = Instant::now();
        // One copy for all of them.
        let mut copied = None;
        for tap in &mut self.lock().taps {
            if tap.filter.wants(closed) {
                let line = copied.get_or_insert_with(|| [line, b"\n"].concat().into());
                tap.send(Bytes::clone(line), now);
            }
        }
    }
}

impl Tap {
    fn send(&mut self, line: Bytes, now: Instant) {
        if now.duration_since(self.second.0) >= Duration::from_secs(1) {
            self.second = (now, 0);
        }
        if self.second.1 >= self.rate {
            self.counts.over_rate.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let length = line.len();
        let waiting = self.counts.bytes.fetch_add(length, Ordering::Relaxed);
        if waiting + length > LINES_BYTES_MAX || self.lines.try_send(line).is_err() {
            self.counts.bytes.fetch_sub(length, Ordering::Relaxed);
            self.counts.too_slow.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.second.1 += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::account::{Caller, Origin, Stretch};

    fn record() -> Closed {
        Closed {
            origin: Rc::new(Origin {
                listener: "apps".into(),
                source: "10.0.0.7:1".parse().unwrap(),
                caller: Caller {
                    identity: Some("spiffe://east.example/ns/shop/sa/cart".into()),
                    ..Caller::default()
                },
                tls: None,
                line: Stretch::new(),
            }),
            attested: Some("spiffe://west.example/ns/shop/sa/web".into()),
            generation: 1,
            service: Some("shop/orders".into()),
            destination: None,
            request: None,
            reason: Reason::Completed,
            detail: None,
            rule: None,
            bytes_sent: 0,
            bytes_received: 0,
            duration: Duration::ZERO,
        }
    }

    fn pattern(text: &str) -> Option<IdPattern> {
        IdPattern::parse(text).ok()
    }

    #[test]
    fn every_field_that_is_there_must_hold() {
        let with = |set: fn(&mut Filter)| {
            let mut filter = Filter::default();
            set(&mut filter);
            filter
        };
        let closed = record();
        for (filter, wanted) in [
            (Filter::default(), true),
            (with(|f| f.kind = Some(Kind::Connection)), true),
            (with(|f| f.kind = Some(Kind::Request)), false),
            (with(|f| f.service = Some("shop/orders".to_owned())), true),
            (with(|f| f.service = Some("shop/order".to_owned())), false),
            (with(|f| f.listener = Some("apps".to_owned())), true),
            (with(|f| f.listener = Some("mesh".to_owned())), false),
            (with(|f| f.source = "10.0.0.0/8".parse().ok()), true),
            (with(|f| f.source = "10.0.0.8/32".parse().ok()), false),
            (with(|f| f.from = pattern("spiffe://east.example/*")), true),
            (
                with(|f| f.from = pattern("spiffe://west.example/ns/shop/*")),
                true,
            ),
            (
                with(|f| f.from = pattern("spiffe://north.example/*")),
                false,
            ),
            (with(|f| f.verdict = Some(Reason::Completed)), true),
            (with(|f| f.verdict = Some(Reason::Denied)), false),
            (with(|f| f.status = Statuses::parse("200")), false),
            (with(|f| f.path = Some("/".to_owned())), false),
            (with(|f| f.failed = true), false),
        ] {
            assert_eq!(filter.wants(&closed), wanted, "{filter:?}");
        }
        let denied = Closed {
            reason: Reason::Denied,
            ..record()
        };
        assert!(with(|f| f.failed = true).wants(&denied));
    }

    #[test]
    fn a_status_is_one_or_a_class_of_them() {
        for (text, range) in [
            ("503", Some((503, 503))),
            ("5xx", Some((500, 599))),
            ("0xx", None),
            ("6xx", None),
            ("99", None),
            ("xx", None),
            ("ok", None),
        ] {
            let read = Statuses::parse(text).map(|one| (one.first, one.last));
            assert_eq!(read, range, "{text}");
        }
    }

    #[test]
    fn what_is_over_the_rate_or_not_read_is_dropped_and_counted() {
        let taps = Arc::<Taps>::default();
        assert!(!taps.are_watching());
        let mut slow = taps.watch(Filter::default(), 3).unwrap();
        let many = taps.watch(Filter::default(), RATE_MAX).unwrap();
        let line = vec![b'x'; 4000];
        for _ in 0..300 {
            taps.offer(&record(), &line);
        }
        assert_eq!(slow.dropped(), (297, 0));
        // 262 lines of 4001 bytes are a mebibyte.
        assert_eq!(many.dropped(), (0, 300 - 262));
        let taken = slow.lines.try_recv().unwrap();
        assert_eq!(taken.len(), 4001);
        slow.took(&taken);
        assert_eq!(slow.counts.bytes.load(Ordering::Relaxed), 2 * 4001);
        // What one has taken makes room, and short lines are as many as there are places.
        drop(many);
        let many = taps.watch(Filter::default(), RATE_MAX).unwrap();
        for _ in 0..LINES_MAX + 7 {
            taps.offer(&record(), b"{}");
        }
        assert_eq!(many.dropped(), (0, 7));
    }

    #[test]
    fn there_are_so_many_and_none_when_the_gateway_ends() {
        let taps = Arc::<Taps>::default();
        let mut all: Vec<_> = (0..TAPS_MAX)
            .map(|_| taps.watch(Filter::default(), 1).unwrap())
            .collect();
        assert!(taps.watch(Filter::default(), 1).is_none());
        all.pop();
        all.push(taps.watch(Filter::default(), 1).unwrap());
        assert!(taps.are_watching());
        taps.close();
        assert!(!taps.are_watching());
        let ended = all[0].lines.try_recv().unwrap_err();
        assert_eq!(ended, mpsc::error::TryRecvError::Disconnected);
        assert!(taps.watch(Filter::default(), 1).is_none());
        drop(all);
        assert!(!taps.are_watching());
    }
}
