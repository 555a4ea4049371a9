//! The end of every connection and request: one record, one access-log line, one set of counters.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};
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
        let mut line = Map::new();
        let mut put = |key: &str, value: Value| {
            if !value.is_null() {
                line.insert(key.to_owned(), value);
            }
        };
        put("time", json!(rfc3339(now)));
        put(
            "kind",
            json!(if self.request.is_some() {
                "request"
            } else {
                "connection"
            }),
        );
        put("listener", json!(&*self.listener));
        put("src.addr", json!(self.source.to_string()));
        put("src.identity", json!(self.caller.identity));
        put("src.attested", json!(self.caller.attested));
        put("src.peer", json!(self.caller.peer.as_deref()));
        if let Some(tls) = &self.tls {
            put("sni", json!(tls.sni));
            put("tls.group", json!(tls.group));
            put("tls.alert", json!(tls.alert));
        }
        put("dst.service", json!(self.service.as_deref()));
        if let Some(destination) = &self.destination {
            put("dst.addr", json!(destination.address));
            put("dst.backend", json!(&*destination.backend));
            put("dst.locality", json!(destination.locality));
            put("dst.identity", json!(destination.identity));
            put("level", json!(destination.level));
            put("reason", json!(destination.why));
            put("failover_from", json!(destination.failover_from.as_deref()));
        }
        if let Some(request) = &self.request {
            put("request.id", json!(request.id));
            put("http.method", json!(request.method));
            put("http.authority", json!(request.authority));
            put("http.path", json!(request.path));
            put("http.version", json!(request.version));
            put("http.status", json!(request.status));
            put("attempts", json!(request.attempts));
        }
        put("verdict", json!(self.reason.label()));
        put("flags", json!(self.reason.flag()));
        put("policy.rule", json!(self.rule));
        put("error", json!(self.detail));
        put("bytes_sent", json!(self.bytes_sent));
        put("bytes_recv", json!(self.bytes_received));
        put(
            "duration",
            json!(format!("{}ms", self.duration.as_millis())),
        );
        put("config.generation", json!(self.generation));
        Value::Object(line).to_string()
    }
}

#[derive(Debug)]
enum Line {
    Text(String),
    Flush(SyncSender<()>),
}

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
        let mut batch = String::new();
        let mut flushed = None;
        let mut next = Some(first);
        while let Some(line) = next {
            match line {
                Line::Text(text) => {
                    batch.push_str(&text);
                    batch.push('\n');
                }
                Line::Flush(done) => flushed = Some(done),
            }
            let full = batch.len() > 64 * 1024 || flushed.is_some();
            next = if full { None } else { queue.try_recv().ok() };
        }
        // A closed standard output ends the log, not the gateway.
        if out
            .write_all(batch.as_bytes())
            .and_then(|()| out.flush())
            .is_err()
        {
            return;
        }
        drop(flushed);
    }
}

#[cfg(test)]
mod tests {
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
