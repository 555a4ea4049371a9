//! The end of every connection and request: one record, one access-log line, one set of counters.

use std::fmt;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use zeugma_core::verdict::Reason;

/// Lines waiting to be written; more are dropped and counted.
const LINES_MAX: usize = 8192;

/// How a connection or request ended, and everything that is told of it.
#[derive(Debug, Clone)]
pub(crate) struct Closed {
    /// The listener it came in on.
    pub(crate) listener: Arc<str>,
    /// Where it came from.
    pub(crate) source: SocketAddr,
    /// The generation of the configuration that decided it.
    pub(crate) generation: u64,
    /// Who called.
    pub(crate) caller: Caller,
    /// What its TLS said.
    pub(crate) tls: Option<TlsFacts>,
    /// The service it asked for.
    pub(crate) service: Option<Arc<str>>,
    /// Where it was taken.
    pub(crate) destination: Option<Destination>,
    /// The request, where it is one.
    pub(crate) request: Option<RequestFacts>,
    /// Why it ended.
    pub(crate) reason: Reason,
    /// What exactly happened, for people.
    pub(crate) detail: Option<String>,
    /// The rule that decided: an authorization rule's position, or the id of a certificate rule.
    pub(crate) rule: Option<String>,
    /// Bytes to the caller.
    pub(crate) bytes_sent: u64,
    /// Bytes from the caller.
    pub(crate) bytes_received: u64,
    /// How long it lasted.
    pub(crate) duration: Duration,
}

/// Who called, as far as is known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller {
    /// The verified SPIFFE ID of the connection.
    pub(crate) identity: Option<String>,
    /// The SPIFFE ID that a peer's gateway attests.
    pub(crate) attested: Option<String>,
    /// The peer it is of.
    pub(crate) peer: Option<Arc<str>>,
}

/// What the TLS of a connection said.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsFacts {
    pub(crate) sni: Option<String>,
    pub(crate) group: Option<String>,
    pub(crate) alert: Option<&'static str>,
}

/// The endpoint that was used last.
#[derive(Debug, Clone)]
pub(crate) struct Destination {
    pub(crate) address: String,
    pub(crate) backend: Arc<str>,
    pub(crate) locality: String,
    pub(crate) identity: Option<String>,
    pub(crate) level: usize,
    /// Why this endpoint: local, spill, failover, retry, too-few.
    pub(crate) why: &'static str,
    /// The level that would have been used, had it been healthy.
    pub(crate) failover_from: Option<Arc<str>>,
}

/// The HTTP part of a record.
#[derive(Debug, Clone)]
pub(crate) struct RequestFacts {
    pub(crate) id: String,
    pub(crate) trace_id: String,
    pub(crate) method: String,
    pub(crate) authority: String,
    pub(crate) path: String,
    pub(crate) version: &'static str,
    pub(crate) status: u16,
    pub(crate) attempts: u32,
}

impl Closed {
    /// The access-log line, without the newline.
    ///
    /// Keys are ztunnel's where it has them, plus `sni`, `tls.group`, `failover_from`,
    /// `policy.rule` and `flags`. JSON escapes every control character, so that a line stays one.
    fn line(&self, now: SystemTime) -> String {
        let mut line = Object::new();
        line.text("time", &*rfc3339(now));
        let kind = if self.request.is_some() {
            "request"
        } else {
            "connection"
        };
        line.text("kind", kind);
        line.text("listener", &*self.listener);
        line.display("src.addr", &self.source);
        line.text("src.identity", self.caller.identity.as_deref());
        line.text("src.attested", self.caller.attested.as_deref());
        line.text("src.peer", self.caller.peer.as_deref());
        if let Some(tls) = &self.tls {
            line.text("sni", tls.sni.as_deref());
            line.text("tls.group", tls.group.as_deref());
            line.text("tls.alert", tls.alert);
        }
        line.text("dst.service", self.service.as_deref());
        if let Some(destination) = &self.destination {
            line.text("dst.addr", &*destination.address);
            line.text("dst.backend", &*destination.backend);
            line.text("dst.locality", &*destination.locality);
            line.text("dst.identity", destination.identity.as_deref());
            line.number("level", destination.level);
            line.text("reason", destination.why);
            line.text("failover_from", destination.failover_from.as_deref());
        }
        if let Some(request) = &self.request {
            line.text("request.id", &*request.id);
            line.text("trace.id", &*request.trace_id);
            line.text("http.method", &*request.method);
            line.text("http.authority", &*request.authority);
            line.text("http.path", &*request.path);
            line.text("http.version", request.version);
            line.number("http.status", request.status);
            line.number("attempts", request.attempts);
        }
        line.text("verdict", self.reason.label());
        line.text("flags", self.reason.flag());
        line.text("policy.rule", self.rule.as_deref());
        line.text("error", self.detail.as_deref());
        line.number("bytes_sent", self.bytes_sent);
        line.number("bytes_recv", self.bytes_received);
        line.display("duration", &format_args!("{}ms", self.duration.as_millis()));
        line.number("config.generation", self.generation);
        line.close()
    }
}

/// A JSON object in the making: text written once, no tree of values.
struct Object(Vec<u8>);

impl Object {
    /// Most lines are shorter, so that they are allocated once.
    const BYTES: usize = 640;

    fn new() -> Self {
        let mut bytes = Vec::with_capacity(Self::BYTES);
        bytes.push(b'{');
        Self(bytes)
    }

    /// A key of ours, which needs no escaping.
    fn key(&mut self, key: &'static str) {
        if self.0.len() > 1 {
            self.0.push(b',');
        }
        self.0.push(b'"');
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    /// Text of anybody's, if there is some, escaped (RFC 8259 §7).
    fn text<'a>(&mut self, key: &'static str, text: impl Into<Option<&'a str>>) {
        if let Some(text) = text.into() {
            self.key(key);
            // Neither a `str` nor a `Vec` makes it fail.
            serde_json::to_writer(&mut self.0, text).ok();
        }
    }

    /// Text of ours that needs no escaping: addresses and the like.
    fn display(&mut self, key: &'static str, text: &dyn fmt::Display) {
        self.key(key);
        // A `Vec` takes everything.
        write!(self.0, "\"{text}\"").ok();
    }

    fn number(&mut self, key: &'static str, number: impl fmt::Display) {
        self.key(key);
        write!(self.0, "{number}").ok();
    }

    fn close(mut self) -> String {
        self.0.push(b'}');
        // It was all text.
        String::from_utf8(self.0).unwrap_or_default()
    }
}

/// What is written in one go, at about.
const BATCH_BYTES: usize = 64 * 1024;

#[derive(Debug)]
enum Line {
    Text(String),
    Flush(SyncSender<()>),
}

/// How long the writer lets lines gather after the first: while it rests, a line wakes nobody.
const GATHER_TIME: Duration = Duration::from_millis(10);

/// How long the end of the process waits for its last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Where access-log lines go: a bounded queue to one writing thread.
#[derive(Debug, Clone)]
pub(crate) struct AccessLog {
    lines: SyncSender<Line>,
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    /// Starts the thread that writes lines to `out`.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(crate) fn start(out: Box<dyn Write + Send>) -> std::io::Result<Self> {
        let (lines, queue) = sync_channel(LINES_MAX);
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_lines(&queue, out))?;
        Ok(Self {
            lines,
            dropped: Arc::default(),
        })
    }

    /// Queues the record's line, or counts it as dropped; never waits.
    pub(crate) fn write(&self, closed: &Closed) {
        if self
            .lines
            .try_send(Line::Text(closed.line(SystemTime::now())))
            .is_err()
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits, for a short time, until what is queued is written.
    pub(crate) fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.lines.try_send(Line::Flush(done)).is_ok() {
            // Whether or not all was written, the process ends now.
            written.recv_timeout(FLUSH_TIMEOUT).ok();
        }
    }

    /// Lines dropped because the writer did not keep up.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// A moment in UTC with milliseconds (RFC 3339 §5.6).
fn rfc3339(at: SystemTime) -> String {
    const FORMAT: &[BorrowedFormatItem<'_>] =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::from(at).format(FORMAT).unwrap_or_default()
}

fn write_lines(queue: &Receiver<Line>, mut out: Box<dyn Write + Send>) {
    // What is queued is written in one go: a line costs no system call of its own under load.
    while let Ok(first) = queue.recv() {
        if matches!(first, Line::Text(_)) {
            std::thread::sleep(GATHER_TIME);
        }
        let mut next = Some(first);
        while next.is_some() {
            let mut batch = String::new();
            let mut flushed = None;
            while let Some(line) = next {
                match line {
                    Line::Text(text) => {
                        batch.push_str(&text);
                        batch.push('\n');
                    }
                    Line::Flush(done) => flushed = Some(done),
                }
                let full = batch.len() > BATCH_BYTES || flushed.is_some();
                next = if full { None } else { queue.try_recv().ok() };
            }
            // A closed standard output ends the log, not the gateway.
            let written = out.write_all(batch.as_bytes()).and_then(|()| out.flush());
            if written.is_err() {
                return;
            }
            drop(flushed);
            next = queue.try_recv().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn record() -> Closed {
        Closed {
            listener: "mesh".into(),
            source: "127.0.0.1:1".parse().unwrap(),
            generation: 7,
            caller: Caller::default(),
            tls: Some(TlsFacts {
                sni: Some("a\n\"b".to_owned()),
                ..TlsFacts::default()
            }),
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

    #[test]
    fn a_line_is_one_line_of_json_whatever_the_caller_sent() {
        let line = record().line(SystemTime::UNIX_EPOCH);
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
            caller: Caller {
                identity: Some("spiffe://east.example/cart".to_owned()),
                attested: None,
                peer: Some("we\\st".into()),
            },
            service: Some("shop/\u{1}orders".into()),
            destination: Some(Destination {
                address: "[::1]:443".to_owned(),
                backend: "blue".into(),
                locality: "eu/a".to_owned(),
                identity: None,
                level: 2,
                why: "failover",
                failover_from: Some("near".into()),
            }),
            request: Some(RequestFacts {
                id: "42".to_owned(),
                trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".to_owned(),
                method: "GET".to_owned(),
                authority: "a".to_owned(),
                path: "/\"\u{7f}\u{2028}".to_owned(),
                version: "HTTP/2",
                status: 200,
                attempts: 3,
            }),
            detail: Some("line\r\nbreak".to_owned()),
            rule: Some("a.yaml:7".to_owned()),
            ..record()
        };
        let line = closed.line(SystemTime::UNIX_EPOCH);
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
            "src.peer": "we\\st", "sni": "a\n\"b", "dst.service": "shop/\u{1}orders",
            "dst.addr": "[::1]:443", "dst.backend": "blue", "dst.locality": "eu/a", "level": 2,
            "reason": "failover", "failover_from": "near", "request.id": "42",
            "trace.id": "4bf92f3577b34da6a3ce929d0e0e4736",
            "http.method": "GET", "http.authority": "a", "http.path": "/\"\u{7f}\u{2028}",
            "http.version": "HTTP/2", "http.status": 200, "attempts": 3,
            "verdict": "sni-malformed", "flags": "NR", "policy.rule": "a.yaml:7",
            "error": "line\r\nbreak", "bytes_sent": 1, "bytes_recv": 2, "duration": "3ms",
            "config.generation": 7,
        });
        assert_eq!(read, expected);
    }

    #[test]
    fn a_writer_that_does_not_keep_up_drops_and_counts() {
        struct Stuck(Receiver<()>);
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
        let log = AccessLog::start(Box::new(Stuck(held))).unwrap();
        for _ in 0..LINES_MAX * 2 {
            log.write(&record());
        }
        assert!(log.dropped() > 0);
    }
}
