//! The end of every connection and request: one record, one access-log line, one set of counters.

mod text;

use std::cell::{OnceCell, RefCell};
use std::io::Write;
use std::mem;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use http::{Method, Uri};
use time::OffsetDateTime;
use zeugma_core::locality::Locality;
use zeugma_core::verdict::Reason;
use zeugma_xds::AccessLogFormat;

use crate::http::Routed;
use crate::http::headers::{Id, Ids};
use crate::http::ruled::Ruled;
use crate::tap::Taps;

/// Lines waiting to be written; more are dropped and counted.
const LINES_MAX: usize = 8192;
/// The bytes of them: a path may be as long as a head.
const LINES_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What the buffers keep of it when all is written.
const BATCH_BYTES_KEPT: usize = 1024 * 1024;

/// How a connection or request ended, and everything that is told of it.
#[derive(Debug, Clone)]
pub(crate) struct Closed {
    /// What it came by: of the requests of one connection, the same.
    pub(crate) origin: Rc<Origin>,
    /// The SPIFFE ID that a peer's gateway attests.
    pub(crate) attested: Option<Box<str>>,
    /// The generation of the configuration that decided it.
    pub(crate) generation: u64,
    /// The service it asked for.
    pub(crate) service: Option<Arc<str>>,
    /// Where it was taken.
    pub(crate) destination: Option<Rc<Destination>>,
    /// The request, where it is one.
    pub(crate) request: Option<RequestFacts>,
    /// Why it ended.
    pub(crate) reason: Reason,
    /// What exactly happened, for people.
    pub(crate) detail: Option<String>,
    /// The rule that decided: an authorization rule's position, or the id of a certificate rule.
    pub(crate) rule: Option<Arc<str>>,
    /// Bytes to the caller.
    pub(crate) bytes_sent: u64,
    /// Bytes from the caller.
    pub(crate) bytes_received: u64,
    /// How long it lasted.
    pub(crate) duration: Duration,
}

/// What a connection came by.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// The listener it came in on.
    pub(crate) listener: Arc<str>,
    /// Where it came from.
    pub(crate) source: SocketAddr,
    /// Who called.
    pub(crate) caller: Caller,
    /// What its TLS said.
    pub(crate) tls: Option<TlsFacts>,
    /// How these stand in the line of a request.
    pub(crate) line: Stretch,
}

/// Who called, as far as is known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller {
    /// The verified SPIFFE ID of the connection.
    pub(crate) identity: Option<Box<str>>,
    /// The peer it is of.
    pub(crate) peer: Option<Arc<str>>,
    /// The load balancer that handed the connection on.
    pub(crate) proxy: Option<Box<SocketAddr>>,
}

/// What the TLS of a connection said.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsFacts {
    pub(crate) sni: Option<Rc<String>>,
    pub(crate) group: Option<&'static str>,
    pub(crate) alert: Option<&'static str>,
}

/// The endpoint that was used last.
#[derive(Debug, Clone)]
pub(crate) struct Destination {
    pub(crate) address: Arc<str>,
    pub(crate) backend: Arc<str>,
    pub(crate) locality: Locality,
    pub(crate) identity: Option<String>,
    pub(crate) level: usize,
    /// Why this endpoint: local, spill, failover, retry, hedge, too-few.
    pub(crate) why: &'static str,
    /// The level that would have been used, had it been healthy.
    pub(crate) failover_from: Option<Arc<str>>,
    /// Its stretch of a line, once one request was told of: the next ones are the same.
    pub(crate) line: Stretch,
}

/// The HTTP part of a record.
#[derive(Debug, Clone)]
pub(crate) struct RequestFacts {
    pub(crate) ids: Rc<Ids>,
    pub(crate) method: Method,
    /// What its host stands for, where it names one.
    pub(crate) routed: Option<Rc<Routed>>,
    /// What it asks for, as rules know it.
    pub(crate) asked: Rc<(Method, Uri)>,
    pub(crate) version: &'static str,
    pub(crate) status: u16,
    pub(crate) attempts: u32,
    /// The rule that it is for, where its route has some.
    pub(crate) ruled: Option<Ruled>,
}

/// A part of a line that is written once and kept.
pub(crate) type Stretch = OnceCell<Box<[u8]>>;

impl Closed {
    /// Where it came from: of the requests of one connection, the same.
    fn write_origin(&self, line: &mut Object) {
        let kind = if self.request.is_some() {
            "request"
        } else {
            "connection"
        };
        let Origin {
            listener,
            source,
            caller,
            tls,
            ..
        } = &*self.origin;
        line.known(r#","kind":"#, kind);
        line.text(r#","listener":"#, &**listener);
        line.address(r#","src.addr":"#, *source);
        if let Some(proxy) = &caller.proxy {
            line.address(r#","src.proxy":"#, **proxy);
        }
        line.known(r#","src.identity":"#, caller.identity.as_deref());
        line.known(r#","src.attested":"#, self.attested.as_deref());
        line.text(r#","src.peer":"#, caller.peer.as_deref());
        if let Some(tls) = tls {
            line.text(r#","sni":"#, tls.sni.as_ref().map(|sni| sni.as_str()));
            line.text(r#","tls.group":"#, tls.group);
            line.text(r#","tls.alert":"#, tls.alert);
        }
    }

    /// The access-log line, without the newline.
    ///
    /// Keys are ztunnel's where it has them, plus `sni`, `tls.group`, `failover_from`,
    /// `policy.rule` and `flags`. JSON escapes every control character, so that a line stays one.
    fn write_line(&self, line: &mut Object, now: SystemTime) {
        line.begin();
        line.time(r#"{"time":"#, now);
        match &self.request {
            // Who is handed on may be another one in each request.
            Some(_) if self.attested.is_none() => {
                line.same(&self.origin.line, |line| self.write_origin(line));
            }
            Some(_) | None => self.write_origin(line),
        }
        match self.request.as_ref().map(|request| &request.routed) {
            None => self.write_service(line, None),
            Some(None) => self.write_service(line, Some("")),
            Some(Some(routed)) => line.same(&routed.line, |line| {
                self.write_service(line, Some(&routed.authority));
            }),
        }
        match &self.destination {
            Some(destination) if self.request.is_some() => {
                line.same(&destination.line, |line| destination.write(line));
            }
            Some(destination) => destination.write(line),
            None => {}
        }
        if let Some(request) = &self.request {
            match &request.ids.request {
                Id::Sent(id) => line.text(r#","request.id":"#, id.to_str().ok()),
                Id::Made(id) => line.ours(r#","request.id":"#, id),
            }
            line.ours(r#","trace.id":"#, request.ids.trace.id());
            // RFC 9110 §5.6.2: a token holds nothing that needs escaping.
            line.known(r#","http.method":"#, request.method.as_str());
            line.text(r#","http.path":"#, request.asked.1.path());
            if let Some(ruled) = &request.ruled {
                line.text(r#","http.rule":"#, ruled.label());
                line.text(r#","http.split":"#, ruled.part().map(|part| &*part.label));
            }
        }
        line.ending(self);
        line.text(r#","policy.rule":"#, self.rule.as_deref());
        line.text(r#","error":"#, self.detail.as_deref());
        line.number(r#","bytes_sent":"#, self.bytes_sent);
        line.number(r#","bytes_recv":"#, self.bytes_received);
        line.milliseconds(r#","duration":"#, self.duration);
        line.number(r#","config.generation":"#, self.generation);
        line.end();
    }
}

impl Closed {
    /// What it asked for, and by which name.
    fn write_service(&self, line: &mut Object, authority: Option<&str>) {
        line.text(r#","dst.service":"#, self.service.as_deref());
        line.text(r#","http.authority":"#, authority);
    }

    /// How it ended, as far as most of the others ended so too.
    fn write_ending(&self, line: &mut Object) {
        if let Some(request) = &self.request {
            line.known(r#","http.version":"#, request.version);
            line.number(r#","http.status":"#, u64::from(request.status));
            line.number(r#","attempts":"#, u64::from(request.attempts));
        }
        line.known(r#","verdict":"#, self.reason.label());
        // Not of what went well: its line is the one that is written most.
        line.known(r#","code":"#, self.reason.code());
        line.known(r#","flags":"#, self.reason.flag());
    }
}

/// What [`Closed::write_ending`] is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ending {
    reason: Reason,
    request: Option<(&'static str, u16, u32)>,
}

impl Destination {
    fn write(&self, line: &mut Object) {
        line.text(r#","dst.addr":"#, &*self.address);
        line.text(r#","dst.backend":"#, &*self.backend);
        line.locality(r#","dst.locality":"#, &self.locality);
        line.known(r#","dst.identity":"#, self.identity.as_deref());
        line.number(r#","level":"#, self.level as u64);
        line.known(r#","reason":"#, self.why);
        line.text(r#","failover_from":"#, self.failover_from.as_deref());
    }
}

/// A JSON object in the making: text written once, no tree of values.
#[derive(Debug)]
struct Object {
    text: Vec<u8>,
    /// The second that was written last, since 1970, and how.
    second: Option<(u64, Vec<u8>)>,
    /// The ending that was written last, and how.
    ending: Option<(Ending, Vec<u8>)>,
}

/// Keys are given as they stand in the line, with what is around them: they are a third of it.
impl Object {
    /// Most lines are shorter; what a longer one needed is given back.
    const BYTES: usize = 2048;

    fn new() -> Self {
        Self {
            text: Vec::with_capacity(Self::BYTES),
            second: None,
            ending: None,
        }
    }

    fn begin(&mut self) {
        self.text.clear();
        self.text.shrink_to(Self::BYTES);
    }

    fn end(&mut self) {
        self.text.push(b'}');
    }

    fn bytes(&self) -> &[u8] {
        &self.text
    }

    fn key(&mut self, key: &'static str) {
        self.text.extend_from_slice(key.as_bytes());
    }

    /// What `write` writes, which is kept.
    fn same(&mut self, kept: &Stretch, write: impl FnOnce(&mut Self)) {
        if let Some(stretch) = kept.get() {
            self.text.extend_from_slice(stretch);
            return;
        }
        let from = self.text.len();
        write(self);
        let stretch = self.text.get(from..).unwrap_or_default();
        kept.get_or_init(|| stretch.into());
    }

    /// How something ended: mostly as what was written before.
    fn ending(&mut self, closed: &Closed) {
        let request = closed.request.as_ref();
        let ending = Ending {
            reason: closed.reason,
            request: request.map(|one| (one.version, one.status, one.attempts)),
        };
        match &self.ending {
            Some((before, text)) if *before == ending => self.text.extend_from_slice(text),
            _ => {
                let from = self.text.len();
                closed.write_ending(self);
                let text = self.text.get(from..).unwrap_or_default().to_vec();
                self.ending = Some((ending, text));
            }
        }
    }

    /// Text of anybody's, if there is some, escaped (RFC 8259 §7).
    fn text<'a>(&mut self, key: &'static str, text: impl Into<Option<&'a str>>) {
        let Some(text) = text.into() else {
            return;
        };
        self.key(key);
        if needs_escaping(text) {
            // Neither a `str` nor a `Vec` makes it fail.
            serde_json::to_writer(&mut self.text, text).ok();
        } else {
            self.plain(text);
        }
    }

    /// An identity (SPIFFE-ID §2.2, §2.3) or a word of ours, if there is one: what they are made of
    /// needs no escaping.
    fn known<'a>(&mut self, key: &'static str, text: impl Into<Option<&'a str>>) {
        if let Some(text) = text.into() {
            debug_assert!(!needs_escaping(text), "{key} {text}");
            self.key(key);
            self.plain(text);
        }
    }

    /// Letters and digits.
    fn ours(&mut self, key: &'static str, text: &[u8]) {
        debug_assert!(text.iter().all(u8::is_ascii_alphanumeric), "{key} {text:?}");
        self.key(key);
        self.text.push(b'"');
        self.text.extend_from_slice(text);
        self.text.push(b'"');
    }

    fn plain(&mut self, text: &str) {
        self.text.push(b'"');
        self.text.extend_from_slice(text.as_bytes());
        self.text.push(b'"');
    }

    /// Its parts need no escaping.
    fn locality(&mut self, key: &'static str, locality: &Locality) {
        self.key(key);
        self.text.push(b'"');
        self.text.extend_from_slice(locality.region.as_bytes());
        for part in [&locality.zone, &locality.subzone] {
            if !part.is_empty() {
                self.text.push(b'/');
                self.text.extend_from_slice(part.as_bytes());
            }
        }
        self.text.push(b'"');
    }

    fn address(&mut self, key: &'static str, address: SocketAddr) {
        self.key(key);
        match address {
            SocketAddr::V4(address) => {
                self.text.push(b'"');
                for (nth, octet) in address.ip().octets().into_iter().enumerate() {
                    if nth > 0 {
                        self.text.push(b'.');
                    }
                    self.digits(u64::from(octet), 1);
                }
                self.text.push(b':');
                self.digits(u64::from(address.port()), 1);
                self.text.push(b'"');
            }
            // A `Vec` takes everything.
            SocketAddr::V6(address) => drop(write!(self.text, "\"{address}\"")),
        }
    }

    fn number(&mut self, key: &'static str, number: u64) {
        self.key(key);
        self.digits(number, 1);
    }

    fn milliseconds(&mut self, key: &'static str, duration: Duration) {
        self.key(key);
        self.text.push(b'"');
        let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        self.digits(milliseconds, 1);
        self.text.extend_from_slice(b"ms\"");
    }

    /// A moment in UTC with milliseconds (RFC 3339 §5.6).
    fn time(&mut self, key: &'static str, at: SystemTime) {
        // None of a gateway's moments is before that.
        let since = at
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        self.key(key);
        match &self.second {
            Some((second, text)) if *second == since.as_secs() => {
                self.text.extend_from_slice(text);
            }
            _ => {
                let from = self.text.len();
                self.date(at);
                let text = self.text.get(from..).unwrap_or_default().to_vec();
                self.second = Some((since.as_secs(), text));
            }
        }
        self.digits(u64::from(since.subsec_millis()), 3);
        self.text.extend_from_slice(b"Z\"");
    }

    /// A moment up to its seconds, and the point behind them.
    fn date(&mut self, at: SystemTime) {
        let at = OffsetDateTime::from(at);
        let (year, month, day) = at.to_calendar_date();
        for (before, number, width) in [
            (b'"', u64::try_from(year).unwrap_or_default(), 4),
            (b'-', u64::from(u8::from(month)), 2),
            (b'-', u64::from(day), 2),
            (b'T', u64::from(at.hour()), 2),
            (b':', u64::from(at.minute()), 2),
            (b':', u64::from(at.second()), 2),
        ] {
            self.text.push(before);
            self.digits(number, width);
        }
        self.text.push(b'.');
    }

    /// A decimal number, with zeros in front up to `width`: what `fmt` does at several times the
    /// cost, and there are a dozen in a line.
    fn digits(&mut self, number: u64, width: usize) {
        const MOST: usize = 20;
        let mut text = [b'0'; MOST];
        let mut rest = number;
        let mut from = MOST;
        for digit in text.iter_mut().rev() {
            if rest == 0 && MOST - from >= width {
                break;
            }
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or_default();
            rest /= 10;
            from -= 1;
        }
        self.text
            .extend_from_slice(text.get(from..).unwrap_or_default());
    }
}

/// Whether text cannot stand in JSON as it is.
fn needs_escaping(text: &str) -> bool {
    // To the end in any case: so it is done for many bytes at once.
    let is_special = |byte: u8| (byte < b' ') | (byte == b'"') | (byte == b'\\');
    text.bytes()
        .fold(false, |found, byte| found | is_special(byte))
}

/// How long the writer lets lines gather: after one that has woken it, and after each batch, so that
/// under load none does.
const GATHER_TIME: Duration = Duration::from_millis(10);

/// How long the end of the process waits for its last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

thread_local! {
    /// What a thread makes its lines in.
    static LINE: RefCell<Object> = RefCell::new(Object::new());
}

/// Where access-log lines go: a bounded buffer that one thread writes from.
#[derive(Debug, Clone)]
pub(crate) struct AccessLog {
    ours: Arc<Ours>,
    dropped: Arc<AtomicU64>,
}

/// The writing thread ends when this was dropped.
#[derive(Debug)]
struct Ours(Arc<Queue>);

impl Drop for Ours {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.something_to_do.notify_one();
    }
}

/// What the threads of the gateway and the writer share.
#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    something_to_do: Condvar,
    written: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Whole lines, none of which was taken by the writer.
    lines: Vec<u8>,
    count: usize,
    /// How many batches the writer has taken, and how many of them it has written.
    taken: u64,
    written: u64,
    /// The writer waits for something to do.
    is_resting: bool,
    /// Somebody waits until all is written.
    is_flushing: bool,
    /// Nobody writes lines any more.
    is_over: bool,
    /// Nobody writes them out any more.
    is_broken: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing that holds it can fail.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets lines gather, none of which wakes the writer, unless somebody waits for it.
    fn gather<'a>(&self, mut waiting: MutexGuard<'a, Waiting>) -> MutexGuard<'a, Waiting> {
        waiting.is_resting = false;
        let waited = (self.something_to_do).wait_timeout_while(waiting, GATHER_TIME, |waiting| {
            !waiting.is_flushing && !waiting.is_over
        });
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl AccessLog {
    /// Starts the thread that writes lines of this form to `out`.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(crate) fn start(
        form: AccessLogFormat,
        out: Box<dyn Write + Send>,
    ) -> std::io::Result<Self> {
        let queue = Arc::<Queue>::default();
        let ours = Arc::new(Ours(Arc::clone(&queue)));
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_lines(&queue, form, out))?;
        Ok(Self {
            ours,
            dropped: Arc::default(),
        })
    }

    /// Queues the record's line, or counts it as dropped; never waits for the writer. Whoever
    /// watches has it too.
    pub(crate) fn write(&self, closed: &Closed, taps: &Taps) {
        LINE.with_borrow_mut(|line| {
            closed.write_line(line, SystemTime::now());
            if taps.are_watching() {
                taps.offer(closed, line.bytes());
            }
            if !self.queue(line.bytes()) {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    fn queue(&self, line: &[u8]) -> bool {
        let Ours(queue) = &*self.ours;
        let mut waiting = queue.lock();
        let bytes = waiting.lines.len() + line.len();
        if waiting.is_broken || waiting.count >= LINES_MAX || bytes >= LINES_BYTES_MAX {
            return false;
        }
        waiting.count += 1;
        waiting.lines.extend_from_slice(line);
        waiting.lines.push(b'\n');
        if mem::take(&mut waiting.is_resting) {
            drop(waiting);
            queue.something_to_do.notify_one();
        }
        true
    }

    /// Waits, for a short time, until what is queued is written.
    pub(crate) fn flush(&self) {
        let Ours(queue) = &*self.ours;
        let mut waiting = queue.lock();
        // What was taken, and the batch that is taken next.
        let all = waiting.taken + 1;
        waiting.is_flushing = true;
        queue.something_to_do.notify_one();
        // Whether or not all was written, the process ends now.
        drop(
            queue
                .written
                .wait_timeout_while(waiting, FLUSH_TIMEOUT, |waiting| {
                    waiting.written < all && !waiting.is_broken
                }),
        );
    }

    /// Lines dropped because the writer did not keep up.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

fn write_lines(queue: &Queue, form: AccessLogFormat, mut out: Box<dyn Write + Send>) {
    let mut batch = Vec::new();
    let mut waiting = queue.lock();
    loop {
        while waiting.lines.is_empty() && !waiting.is_flushing {
            if waiting.is_over {
                return;
            }
            waiting.is_resting = true;
            waiting = queue
                .something_to_do
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
            // What gathers is written in one go: a line costs no system call of its own under load.
            waiting = queue.gather(waiting);
        }
        waiting.is_resting = false;
        waiting.is_flushing = false;
        mem::swap(&mut waiting.lines, &mut batch);
        waiting.count = 0;
        waiting.taken += 1;
        drop(waiting);
        // A closed standard output ends the log, not the gateway.
        let written = match form {
            AccessLogFormat::Json => out.write_all(&batch),
            AccessLogFormat::Text => text::write(&batch, &mut *out),
        };
        let written = written.and_then(|()| out.flush());
        batch.clear();
        // What one burst needed is not kept.
        batch.shrink_to(BATCH_BYTES_KEPT);
        waiting = queue.lock();
        waiting.written = waiting.taken;
        waiting.is_broken = written.is_err();
        queue.written.notify_all();
        if waiting.is_broken {
            return;
        }
        waiting = queue.gather(waiting);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn origin(caller: Caller) -> Origin {
        Origin {
            listener: "mesh".into(),
            source: "127.0.0.1:1".parse().unwrap(),
            caller,
            tls: Some(TlsFacts {
                sni: Some("a\n\"b".to_owned().into()),
                ..TlsFacts::default()
            }),
            line: Stretch::new(),
        }
    }

    fn record() -> Closed {
        Closed {
            origin: Rc::new(origin(Caller::default())),
            attested: None,
            generation: 7,
            service: None,
            destination: None,
            request: None,
            reason: Reason::SniMalformed,
            detail: None,
            rule: None,
            bytes_sent: 1,
            bytes_received: 2,
            duration: Duration::from_millis(3),
        }
    }

    fn line_of(closed: &Closed) -> String {
        let mut line = Object::new();
        closed.write_line(&mut line, SystemTime::UNIX_EPOCH);
        String::from_utf8(line.text).unwrap()
    }

    #[test]
    fn a_line_is_one_line_of_json_whatever_the_caller_sent() {
        let line = line_of(&record());
        assert!(!line.contains('\n'));
        let read: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["time"], "1970-01-01T00:00:00.000Z");
        assert_eq!(read["sni"], "a\n\"b");
        assert_eq!(read["verdict"], "sni-malformed");
        assert_eq!(read["flags"], "NR");
        assert_eq!(read["config.generation"], 7);
        assert!(read.get("dst.service").is_none());
    }

    /// The escapes are those of RFC 8259 §7.
    #[test]
    fn everything_a_record_knows_is_in_its_line() {
        let closed = Closed {
            origin: Rc::new(origin(Caller {
                identity: Some("spiffe://east.example/cart".into()),
                peer: Some("we\\st".into()),
                proxy: Some(Box::new("[2001:db8::9]:7".parse().unwrap())),
            })),
            service: Some("shop/\u{1}orders".into()),
            destination: Some(Rc::new(Destination {
                address: "[::1]:443".into(),
                backend: "blue".into(),
                locality: Locality::parse("eu/a").unwrap(),
                identity: None,
                level: 2,
                why: "failover",
                failover_from: Some("near".into()),
                line: OnceCell::new(),
            })),
            request: Some(RequestFacts {
                ids: Ids::of("42", "4bf92f3577b34da6a3ce929d0e0e4736"),
                method: Method::GET,
                routed: Some(Rc::new(Routed::unknown("a\u{7f}\u{2028}".into()))),
                asked: Rc::new((Method::GET, "/\"".parse().unwrap())),
                version: "HTTP/2",
                status: 200,
                attempts: 3,
                ruled: None,
            }),
            detail: Some("line\r\nbreak".to_owned()),
            rule: Some("a.yaml:7".into()),
            ..record()
        };
        let line = line_of(&closed);
        assert!(
            line.contains(r#""dst.service":"shop/\u0001orders""#),
            "{line}"
        );
        assert!(line.contains(r#""error":"line\r\nbreak""#), "{line}");
        assert!(line.contains(r#""src.peer":"we\\st""#), "{line}");
        let read: Value = serde_json::from_str(&line).unwrap();
        let expected = serde_json::json!({
            "time": "1970-01-01T00:00:00.000Z", "kind": "request", "listener": "mesh",
            "src.addr": "127.0.0.1:1", "src.identity": "spiffe://east.example/cart",
            "src.proxy": "[2001:db8::9]:7", "src.peer": "we\\st", "sni": "a\n\"b",
            "dst.service": "shop/\u{1}orders",
            "dst.addr": "[::1]:443", "dst.backend": "blue", "dst.locality": "eu/a", "level": 2,
            "reason": "failover", "failover_from": "near", "request.id": "42",
            "trace.id": "4bf92f3577b34da6a3ce929d0e0e4736",
            "http.method": "GET", "http.authority": "a\u{7f}\u{2028}", "http.path": "/\"",
            "http.version": "HTTP/2", "http.status": 200, "attempts": 3,
            "verdict": "sni-malformed", "code": "ZG0306", "flags": "NR", "policy.rule": "a.yaml:7",
            "error": "line\r\nbreak", "bytes_sent": 1, "bytes_recv": 2, "duration": "3ms",
            "config.generation": 7,
        });
        assert_eq!(read, expected);
        // What is kept of it is what was written, and nobody's who is handed on in another request.
        assert_eq!(line_of(&closed), line);
        let mut next = closed;
        next.attested = Some("spiffe://west.example/cart".into());
        let line = line_of(&next);
        assert!(
            line.contains(r#""src.attested":"spiffe://west.example/cart""#),
            "{line}"
        );
    }

    #[test]
    fn numbers_addresses_and_moments_are_written_as_fmt_would() {
        let of = |write: &dyn Fn(&mut Object)| {
            let mut line = Object::new();
            line.begin();
            write(&mut line);
            line.end();
            String::from_utf8(line.text).unwrap()
        };
        for number in [0, 7, 10, 99, 100, 12_345, u64::MAX] {
            let line = of(&|line| line.number(r#"{"n":"#, number));
            assert_eq!(line, format!(r#"{{"n":{number}}}"#));
        }
        for address in ["127.0.0.1:1", "10.255.100.9:65535", "[2001:db8::1]:443"] {
            let address: SocketAddr = address.parse().unwrap();
            let line = of(&|line| line.address(r#"{"a":"#, address));
            assert_eq!(line, format!(r#"{{"a":"{address}"}}"#));
        }
        // The second is the last of a leap day.
        for (seconds, millis, expected) in [
            (951_782_400, 0, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, 7, "2024-02-29T23:59:59.007Z"),
            (4_102_444_800, 999, "2100-01-01T00:00:00.999Z"),
        ] {
            let at = SystemTime::UNIX_EPOCH + Duration::new(seconds, millis * 1_000_000);
            assert_eq!(
                of(&|line| line.time(r#"{"t":"#, at)),
                format!(r#"{{"t":"{expected}"}}"#)
            );
        }
        let line = of(&|line| line.milliseconds(r#"{"d":"#, Duration::from_micros(1_234_567)));
        assert_eq!(line, r#"{"d":"1234ms"}"#);
    }

    #[test]
    fn a_writer_that_does_not_keep_up_drops_and_counts() {
        struct Stuck(std::sync::mpsc::Receiver<()>);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.recv().ok();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let (_hold, held) = std::sync::mpsc::channel();
        let log = AccessLog::start(AccessLogFormat::Json, Box::new(Stuck(held))).unwrap();
        for _ in 0..LINES_MAX * 3 {
            log.write(&record(), &Taps::default());
        }
        // It holds one batch, at the most, besides what waits.
        let dropped = usize::try_from(log.dropped()).unwrap();
        assert!((LINES_MAX..=2 * LINES_MAX).contains(&dropped), "{dropped}");
    }

    #[test]
    fn lines_are_whole_in_order_and_written_by_the_end_of_a_flush() {
        #[derive(Clone, Default)]
        struct Kept(Arc<Mutex<Vec<u8>>>);
        impl Write for Kept {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let kept = Kept::default();
        let log = AccessLog::start(AccessLogFormat::Json, Box::new(kept.clone())).unwrap();
        log.flush();
        for nth in 0..200 {
            let closed = Closed {
                generation: nth,
                ..record()
            };
            log.write(&closed, &Taps::default());
            if nth % 50 == 0 {
                log.flush();
                let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
                assert_eq!(text.lines().count() as u64, nth + 1);
            }
        }
        log.flush();
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        let generations: Vec<u64> = text
            .lines()
            .map(|line| {
                let line: Value = serde_json::from_str(line).unwrap();
                line["config.generation"].as_u64().unwrap()
            })
            .collect();
        assert_eq!(generations, (0..200).collect::<Vec<_>>());
    }

    #[test]
    fn lines_that_nobody_writes_any_more_are_dropped() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let log = AccessLog::start(AccessLogFormat::Json, Box::new(Closed)).unwrap();
        log.write(&record(), &Taps::default());
        log.flush();
        log.write(&record(), &Taps::default());
        assert_eq!(log.dropped(), 1);
    }
}
