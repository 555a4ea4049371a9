//! Spans of sampled requests, told to a collector: OTLP/HTTP with JSON (OTLP 1, "OTLP/HTTP Request"
//! and "JSON Protobuf Encoding").
//!
//! ```text
//! workers --offer--> [at most SPANS_MAX] --batches--> POST http://collector/v1/traces
//! ```
//! Only requests whose caller sampled their trace have one: the gateway begins no sampled trace. What
//! finds no room, and what the collector does not take, is dropped and counted; nobody waits for it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use zeugma_core::verdict::Reason;

use crate::account::{Closed, RequestFacts};
use crate::resolve::addresses_of;
use crate::runtime::Shared;

/// Spans that wait to be sent.
const SPANS_MAX: usize = 2048;
/// Spans of one request to the collector.
const BATCH_MAX: usize = 512;
/// How long spans gather behind the first one.
const GATHER_TIME: Duration = Duration::from_millis(500);
/// From the first packet of a request to the collector to its answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What is told of a path.
const PATH_BYTES_MAX: usize = 1024;

/// Where ended requests leave their spans.
#[derive(Debug)]
pub(crate) struct Spans(mpsc::Sender<Span>);

/// A request that ended, as a collector wants it.
#[derive(Debug)]
struct Span(Value);

/// What sends spans on.
#[derive(Debug)]
pub(crate) struct Exporter {
    collector: Collector,
    waiting: mpsc::Receiver<Span>,
}

/// Where a collector is.
#[derive(Debug, Clone)]
struct Collector {
    /// Host and port.
    address: String,
    path: String,
}

/// Why spans do not go to where they should. Of a URL that names a host, its scheme and host: all
/// else in it may be a secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is no collector; write http://HOST:PORT, since spans go without TLS to one on this host"
)]
pub(crate) struct CollectorError(String);

impl CollectorError {
    fn of(url: &str) -> Self {
        let uri: Option<Uri> = url.parse().ok();
        let named = uri
            .as_ref()
            .and_then(|uri| uri.scheme_str().zip(uri.host()));
        Self(match named {
            Some((scheme, host)) => format!("`{scheme}://{host}`"),
            None => "what the environment names".to_owned(),
        })
    }
}

/// Has spans left for the collector that the environment names, if it does.
pub(crate) fn begin(shared: &Shared) -> Option<Exporter> {
    match collector() {
        Ok(collector) => {
            let (spans, exporter) = of(collector?);
            shared.spans.set(spans).ok()?;
            Some(exporter)
        }
        Err(error) => {
            tracing::warn!(code = "ZG0973", %error, "no spans are told");
            None
        }
    }
}

/// As the OpenTelemetry specification has it ("OpenTelemetry Protocol Exporter").
fn collector() -> Result<Option<Collector>, CollectorError> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let url = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| {
        let base = variable("OTEL_EXPORTER_OTLP_ENDPOINT")?;
        Some(format!("{}/v1/traces", base.trim_end_matches('/')))
    });
    url.map(|url| Collector::parse(&url)).transpose()
}

fn of(collector: Collector) -> (Spans, Exporter) {
    let (spans, waiting) = mpsc::channel(SPANS_MAX);
    (Spans(spans), Exporter { collector, waiting })
}

impl Collector {
    fn parse(url: &str) -> Result<Self, CollectorError> {
        let wrong = || CollectorError::of(url);
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let host = uri.host().filter(|_| uri.scheme_str() == Some("http"));
        let port = uri.port_u16().unwrap_or(80);
        Ok(Self {
            address: format!("{}:{port}", host.ok_or_else(wrong)?),
            path: uri.path().to_owned(),
        })
    }
}

impl Spans {
    /// Leaves the span of a request that is part of a sampled trace; false if there is no room.
    pub(crate) fn offer(&self, closed: &Closed) -> bool {
        let sampled = closed.request.as_ref().and_then(|request| {
            let ids = request.ids.trace.recorded()?;
            Some((request, ids))
        });
        let Some((request, ids)) = sampled else {
            return true;
        };
        match self.0.try_reserve() {
            Ok(place) => {
                place.send(Span::of(closed, request, ids, SystemTime::now()));
                true
            }
            Err(_full_or_closed) => false,
        }
    }
}

/// The IDs of a span, in hexadecimal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ids<'a> {
    pub(crate) trace: &'a str,
    pub(crate) span: &'a str,
    /// The caller's.
    pub(crate) parent: &'a str,
}

impl Span {
    fn of(closed: &Closed, request: &RequestFacts, ids: Ids<'_>, end: SystemTime) -> Self {
        let nanoseconds = |at: SystemTime| {
            let since = at.duration_since(SystemTime::UNIX_EPOCH);
            since.unwrap_or_default().as_nanos().to_string()
        };
        let begin = end.checked_sub(closed.duration).unwrap_or(end);
        let service = closed.service.as_deref().unwrap_or("-");
        let is_error = request.status >= 500 || closed.reason != Reason::Completed;
        let mut attributes = vec![
            text("http.request.method", request.method.as_str()),
            text("url.path", shortened(request.asked.1.path())),
            number("http.response.status_code", u64::from(request.status)),
            number(
                "http.request.resend_count",
                u64::from(request.attempts.saturating_sub(1)),
            ),
            text("client.address", &closed.origin.source.ip().to_string()),
            text("zeugma.listener", &closed.origin.listener),
            text("zeugma.verdict", closed.reason.label()),
        ];
        let destination = closed.destination.as_ref();
        for (name, value) in [
            (
                "server.address",
                request.routed.as_ref().map(|to| &*to.authority),
            ),
            ("zeugma.service", closed.service.as_deref()),
            (
                "zeugma.source.identity",
                closed.origin.caller.identity.as_deref(),
            ),
            ("zeugma.backend", destination.map(|to| &*to.backend)),
            ("zeugma.backend.address", destination.map(|to| &*to.address)),
            ("zeugma.code", closed.reason.code()),
        ] {
            attributes.extend(value.map(|value| text(name, value)));
        }
        Self(json!({
            "traceId": ids.trace,
            "spanId": ids.span,
            "parentSpanId": ids.parent,
            "name": format!("{} {service}", request.method),
            // SPAN_KIND_SERVER.
            "kind": 2,
            "startTimeUnixNano": nanoseconds(begin),
            "endTimeUnixNano": nanoseconds(end),
            "attributes": attributes,
            // STATUS_CODE_ERROR, STATUS_CODE_UNSET.
            "status": { "code": if is_error { 2 } else { 0 } },
        }))
    }
}

fn text(name: &str, value: &str) -> Value {
    json!({ "key": name, "value": { "stringValue": value } })
}

/// JSON has no integers of 64 bits: they are text.
fn number(name: &str, value: u64) -> Value {
    json!({ "key": name, "value": { "intValue": value.to_string() } })
}

fn shortened(path: &str) -> &str {
    let mut end = path.len().min(PATH_BYTES_MAX);
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    path.get(..end).unwrap_or_default()
}

impl Exporter {
    /// Sends what is left for it until nobody leaves anything any more.
    pub(crate) async fn run(mut self, shared: Arc<Shared>) {
        let mut batch = Vec::new();
        let mut fails = false;
        while self.waiting.recv_many(&mut batch, BATCH_MAX).await > 0 {
            if batch.len() < BATCH_MAX {
                tokio::time::sleep(GATHER_TIME).await;
                while batch.len() < BATCH_MAX
                    && let Ok(more) = self.waiting.try_recv()
                {
                    batch.push(more);
                }
            }
            let spans = batch.len() as u64;
            let body = body(&shared, batch.drain(..).map(|Span(span)| span).collect());
            let sent = timeout(TIMEOUT, Box::pin(self.collector.post(body))).await;
            let why = match sent {
                Ok(Ok(())) => None,
                Ok(Err(why)) => Some(why),
                Err(_elapsed) => Some(format!("no answer within {TIMEOUT:?}")),
            };
            if let Some(why) = &why {
                shared.metrics.dropped("spans", spans);
                if !fails {
                    tracing::warn!(
                        code = "ZG0974",
                        why,
                        "the collector does not take spans; they are dropped and counted"
                    );
                }
            }
            fails = why.is_some();
        }
    }
}

/// An ExportTraceServiceRequest.
fn body(shared: &Shared, spans: Vec<Value>) -> Bytes {
    let named = std::env::var("OTEL_SERVICE_NAME").ok();
    let resource = [
        text("service.name", named.as_deref().unwrap_or("zeugma")),
        text("service.version", env!("CARGO_PKG_VERSION")),
        text("service.instance.id", &shared.settings.name),
        text("zeugma.cluster", &shared.settings.cluster),
    ];
    let document = json!({
        "resourceSpans": [{
            "resource": { "attributes": resource },
            "scopeSpans": [{ "scope": { "name": "zeugma" }, "spans": spans }],
        }],
    });
    document.to_string().into()
}

impl Collector {
    async fn post(&self, body: Bytes) -> Result<(), String> {
        let told = |error: &dyn std::error::Error| error.to_string();
        let address = self.address.clone();
        let found = tokio::task::spawn_blocking(move || addresses_of(&address)).await;
        let found = (found.map_err(|error| told(&error))?).map_err(|error| told(&error))?;
        let stream = TcpStream::connect(&*found).await;
        let stream = stream.map_err(|error| told(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| told(&error))?;
        let request = Request::post(&self.path)
            .header(header::HOST, &self.address)
            .header(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            )
            .body(Full::new(body))
            .map_err(|error| told(&error))?;
        let response = tokio::select! {
            // Both are futures of this call: the other one is dropped with it.
            response = sender.send_request(request) => response.map_err(|error| told(&error))?,
            ended = connection => {
                let why = ended.err().map(|error| told(&error));
                return Err(why.unwrap_or_else(|| "it closed the connection".to_owned()));
            }
        };
        if response.status().is_success() {
            Ok(())
        } else {
            Err(format!("it answered {}", response.status()))
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::account::{Caller, Origin, Stretch};
    use crate::fixture::Alone;
    use crate::http::Routed;
    use crate::http::headers::{self, Id, Ids, Present, TRACEPARENT};

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn alone() -> Alone {
        Alone::new(
            "{ apps: { address: '127.0.0.1:0', role: workloads } }",
            "",
            1,
        )
    }

    /// A request with this `traceparent` that has ended.
    fn ended(parent: &str) -> Closed {
        let headers = HeaderMap::from_iter([(TRACEPARENT, parent.parse().unwrap())]);
        let trace = headers::trace(&headers, Present::of(&headers), || 7).with_span(|| 0xabc);
        Closed {
            origin: std::rc::Rc::new(Origin {
                listener: "apps".into(),
                source: "127.0.0.1:1".parse().unwrap(),
                caller: Caller::default(),
                tls: None,
                line: Stretch::new(),
            }),
            attested: None,
            generation: 1,
            service: Some("shop/orders".into()),
            destination: None,
            request: Some(RequestFacts {
                ids: std::rc::Rc::new(Ids {
                    request: Id::Sent(HeaderValue::from_static("1")),
                    trace,
                }),
                method: http::Method::GET,
                routed: Some(std::rc::Rc::new(Routed::unknown("orders.shop".into()))),
                asked: std::rc::Rc::new((http::Method::GET, Uri::from_static("/v1?token=x"))),
                version: "HTTP/1.1",
                status: 503,
                attempts: 2,
                ruled: None,
            }),
            reason: Reason::NoHealthyEndpoint,
            detail: None,
            rule: None,
            bytes_sent: 0,
            bytes_received: 0,
            duration: Duration::from_millis(250),
        }
    }

    /// Takes one request of an exporter, answers it so, and returns its head and body.
    async fn collect(listener: &TcpListener, answer: &str) -> (String, Value) {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut text = String::new();
        loop {
            let mut bytes = [0; 1024];
            let count = tcp.read(&mut bytes).await.unwrap();
            text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
            if let Some((head, body)) = text.split_once("\r\n\r\n")
                && let Ok(body) = serde_json::from_str(body)
            {
                let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 2\r\n\r\n{{}}");
                tcp.write_all(answer.as_bytes()).await.unwrap();
                return (head.to_ascii_lowercase(), body);
            }
            assert!(count > 0, "{text}");
        }
    }

    fn dropped(alone: &Alone) -> u64 {
        let text = alone.shared.metrics.encode(None);
        let line = (text.lines())
            .find_map(|line| line.strip_prefix(r#"zeugma_dropped_total{kind="spans"} "#));
        line.map_or(0, |count| count.parse().unwrap())
    }

    #[tokio::test]
    async fn a_sampled_request_is_told_to_the_collector_with_its_parent() {
        let alone = alone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let (spans, exporter) = of(Collector::parse(&url).unwrap());
        alone.shared.spans.set(spans).unwrap();
        let exporting = tokio::spawn(exporter.run(Arc::clone(&alone.shared)));
        // Not sampled, and no trace at all: nothing is told of them.
        alone.shared.account(&ended(&PARENT.replace("-01", "-00")));
        alone.shared.account(&ended("nonsense"));
        alone.shared.account(&ended(PARENT));
        let (head, body) = collect(&listener, "200 OK").await;
        assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
        assert!(
            head.contains("\r\ncontent-type: application/json"),
            "{head}"
        );
        let resource = &body["resourceSpans"][0];
        let named = json!({ "key": "service.instance.id", "value": { "stringValue": "east-gw" } });
        let attributes = resource["resource"]["attributes"].as_array().unwrap();
        assert!(attributes.contains(&named), "{body}");
        let spans = resource["scopeSpans"][0]["spans"].as_array().unwrap();
        let [span] = &spans[..] else {
            panic!("{body}");
        };
        assert_eq!(span["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(span["parentSpanId"], "00f067aa0ba902b7");
        assert_eq!(span["spanId"], "0000000000000abd");
        assert_eq!(
            (&span["name"], &span["kind"]),
            (&json!("GET shop/orders"), &json!(2))
        );
        assert_eq!(span["status"]["code"], 2);
        let at = |name: &str| span[name].as_str().unwrap().parse::<u64>().unwrap();
        assert_eq!(at("endTimeUnixNano") - at("startTimeUnixNano"), 250_000_000);
        for fact in [
            text("url.path", "/v1"),
            number("http.response.status_code", 503),
            number("http.request.resend_count", 1),
            text("zeugma.verdict", "no-healthy-endpoint"),
            text("zeugma.code", "ZG0413"),
        ] {
            assert!(
                span["attributes"].as_array().unwrap().contains(&fact),
                "{fact}"
            );
        }
        assert!(!body.to_string().contains("token"), "no query is told");
        assert_eq!(dropped(&alone), 0);
        exporting.abort();
    }

    #[test]
    fn our_span_is_the_parent_of_what_comes_and_all_else_goes_on() {
        let trace = |parent: &str| ended(parent).request.unwrap().ids.trace.clone();
        let anew = trace(PARENT);
        assert!(anew.is_said_anew());
        let said = "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000abd-01";
        assert_eq!(anew.parent().as_str(), said);
        // A later version says more; we say what ours knows.
        let later = PARENT.replacen("00", "cc", 1) + "-what-the-future";
        assert_eq!(trace(&later).parent().as_str(), said);
        let quiet = PARENT.replace("-01", "-02");
        assert_eq!(trace(&quiet).parent().as_str(), quiet);
        assert!(!trace(&quiet).is_said_anew() && trace(&quiet).recorded().is_none());
    }

    #[tokio::test]
    async fn what_finds_no_room_and_what_is_not_taken_is_counted_and_told_once() {
        let alone = alone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (spans, exporter) = of(Collector::parse(&url).unwrap());
        alone.shared.spans.set(spans).unwrap();
        let sampled = ended(PARENT);
        for _ in 0..SPANS_MAX + 3 {
            alone.shared.account(&sampled);
        }
        assert_eq!(dropped(&alone), 3);
        let exporting = tokio::spawn(exporter.run(Arc::clone(&alone.shared)));
        for _ in 0..2 {
            let (_, body) = collect(&listener, "503 Service Unavailable").await;
            let spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array();
            assert_eq!(spans.unwrap().len(), BATCH_MAX);
        }
        let lost = 3 + 2 * BATCH_MAX as u64;
        (alone.until("what is lost", |alone| {
            (dropped(alone) >= lost).then_some(())
        }))
        .await;
        exporting.abort();
    }

    #[test]
    fn a_collector_is_a_url_without_tls_and_codes_say_what_is_wrong() {
        let parse =
            |url: &str| Collector::parse(url).map(|at| format!("{}{}", at.address, at.path));
        assert_eq!(
            parse("http://otel:4318/v1/traces").unwrap(),
            "otel:4318/v1/traces"
        );
        assert_eq!(parse("http://[::1]:4318").unwrap(), "[::1]:4318/");
        for wrong in [
            "https://otel:4318",
            "otel:4318",
            "",
            "grpc://otel:4317",
            "/v1/traces",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        for (secret, told) in [
            (
                "https://me:s3cret@otel:4318/s3cret?key=s3cret",
                "`https://otel` is",
            ),
            ("s3cret@otel:4318", "what the environment names is"),
            ("s3cret", "what the environment names is"),
            ("https://otel/s3cret key", "what the environment names is"),
        ] {
            let error = parse(secret).unwrap_err();
            let all = format!("{error} {error:?}");
            assert!(all.starts_with(told) && !all.contains("s3cret"), "{all}");
        }
        for code in ["ZG0973", "ZG0974"] {
            assert!(zeugma_core::codes::find(code).is_some());
        }
    }
}
