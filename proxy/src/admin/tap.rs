//! `/api/v1/tap`: requests and connections as each ends, one JSON object a line. Paths and identities
//! are nothing for every process of the host: on an address it wants the token.
//!
//! The first line says what is watched; `dropped` ones say what was lost since the one before.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::Frame;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Interval;
use zeugma_core::identity::IdPattern;
use zeugma_core::verdict::Reason;

use crate::runtime::Shared;
use crate::tap::{Filter, Kind, RATE, RATE_MAX, Statuses, TAPS_MAX, Watching};

/// How often what was dropped is told.
const TELL: Duration = Duration::from_secs(1);
/// After how many such moments a quiet stream says that it lives.
const ALIVE_AFTER: u32 = 15;

/// What is asked for; unknown words are an error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    kind: Option<String>,
    service: Option<String>,
    listener: Option<String>,
    source: Option<String>,
    from: Option<String>,
    verdict: Option<String>,
    status: Option<String>,
    path: Option<String>,
    #[serde(default)]
    failed: bool,
    rate: Option<u32>,
}

impl Asked {
    fn filter(&self) -> Result<(Filter, u32), String> {
        let kind = match self.kind.as_deref() {
            None => None,
            Some("request") => Some(Kind::Request),
            Some("connection") => Some(Kind::Connection),
            Some(other) => return Err(format!("kind `{other}` is not request or connection")),
        };
        let source = (self.source.as_deref())
            .map(|text| {
                let address = || text.parse::<IpAddr>().map(IpNet::from);
                let net = text.parse::<IpNet>().or_else(|_| address());
                net.map_err(|_| {
                    format!("source `{text}` is no network such as 10.0.0.0/8, nor an address")
                })
            })
            .transpose()?;
        let from = (self.from.as_deref())
            .map(|text| IdPattern::parse(text).map_err(|error| format!("from `{text}`: {error}")))
            .transpose()?;
        let verdict = (self.verdict.as_deref())
            .map(|text| {
                let found = Reason::ALL.iter().find(|known| known.label() == text);
                let found = found.copied();
                found.ok_or_else(|| format!("verdict `{text}` is none that there is"))
            })
            .transpose()?;
        let status = (self.status.as_deref())
            .map(|text| {
                let known = Statuses::parse(text);
                known.ok_or_else(|| format!("status `{text}` is neither 503 nor 5xx, as it were"))
            })
            .transpose()?;
        let rate = self.rate.unwrap_or(RATE);
        if !(1..=RATE_MAX).contains(&rate) {
            return Err(format!("rate {rate} is not 1 to {RATE_MAX} a second"));
        }
        let filter = Filter {
            kind,
            service: self.service.clone(),
            listener: self.listener.clone(),
            source,
            from,
            verdict,
            status,
            path: self.path.clone(),
            failed: self.failed,
        };
        Ok((filter, rate))
    }
}

/// Answers with what ends from now on.
pub(super) async fn tap(State(shared): State<Arc<Shared>>, Query(asked): Query<Asked>) -> Response {
    let (filter, rate) = match asked.filter() {
        Ok(good) => good,
        Err(wrong) => return (StatusCode::BAD_REQUEST, wrong + "\n").into_response(),
    };
    let Some(watching) = shared.admin.taps.watch(filter, rate) else {
        let text = format!("{TAPS_MAX} watch already, or the gateway ends; end one\n");
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    let stream = Stream {
        first: Some(json!({ "kind": "tap", "gateway": &*shared.settings.name, "rate": rate })),
        watching,
        told: (0, 0),
        tell: tokio::time::interval(TELL),
        quiet: 0,
    };
    let kind = [
        (header::CONTENT_TYPE, "application/x-ndjson"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (kind, Body::new(stream)).into_response()
}

/// Lines on their way to one who watches.
#[derive(Debug)]
struct Stream {
    first: Option<Value>,
    watching: Watching,
    /// What was dropped, as it was last told.
    told: (u64, u64),
    tell: Interval,
    /// How many moments nothing was told.
    quiet: u32,
}

impl Stream {
    /// What is to be told at this moment.
    fn notice(&mut self) -> Option<Value> {
        let now = self.watching.dropped();
        if now != self.told {
            let (rate, slow) = (now.0 - self.told.0, now.1 - self.told.1);
            self.told = now;
            return Some(json!({ "kind": "dropped", "over_rate": rate, "not_read": slow }));
        }
        self.quiet += 1;
        (self.quiet >= ALIVE_AFTER).then(|| json!({ "kind": "alive" }))
    }
}

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        let line = |value: Value| Poll::Ready(Some(Ok(Frame::data(format!("{value}\n").into()))));
        if let Some(first) = this.first.take() {
            return line(first);
        }
        // First of all: under a flood of lines there would be no other moment.
        while this.tell.poll_tick(cx).is_ready() {
            if let Some(notice) = this.notice() {
                this.quiet = 0;
                return line(notice);
            }
        }
        match this.watching.lines.poll_recv(cx) {
            Poll::Ready(Some(one)) => {
                this.quiet = 0;
                this.watching.took(&one);
                Poll::Ready(Some(Ok(Frame::data(one))))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}
