//! `/api/v1/events`: what happens, as it happens (server-sent events, WHATWG HTML §9.2).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::Frame;
use tokio::sync::mpsc;
use tokio::time::Interval;

use super::levers::refused;
use crate::journal::{Event, LISTENERS_MAX, Listening};
use crate::runtime::Shared;

/// How often a quiet stream says that it lives.
const ALIVE: Duration = Duration::from_secs(15);

/// Answers with what happens, from the event after `Last-Event-ID` on.
pub(super) async fn events(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let seen = headers.get("last-event-id").map(|value| {
        let text = value.to_str().unwrap_or_default();
        text.parse::<u64>()
    });
    let after = match seen {
        Some(Ok(nth)) => nth,
        None => 0,
        Some(Err(_)) => {
            let wrong = "last-event-id is not the number of an event";
            return refused(StatusCode::BAD_REQUEST, "ZG0970", &wrong);
        }
    };
    let Some(Listening { before, live }) = shared.admin.journal.listen(after) else {
        let text = format!(
            "{LISTENERS_MAX} listen already, or the gateway ends; end one, or ask /api/v1/failovers"
        );
        return refused(StatusCode::SERVICE_UNAVAILABLE, "ZG0971", &text);
    };
    let stream = Stream {
        before: before.into(),
        live,
        alive: tokio::time::interval(ALIVE),
    };
    let kind = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (kind, Body::new(stream)).into_response()
}

/// Events on their way to one listener.
#[derive(Debug)]
struct Stream {
    before: VecDeque<Arc<Event>>,
    live: mpsc::Receiver<Arc<Event>>,
    alive: Interval,
}

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        if let Some(event) = this.before.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(text(&event)))));
        }
        match this.live.poll_recv(cx) {
            Poll::Ready(Some(event)) => return Poll::Ready(Some(Ok(Frame::data(text(&event))))),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {}
        }
        if this.alive.poll_tick(cx).is_ready() {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b": alive\n\n")))));
        }
        Poll::Pending
    }
}

/// One event; JSON has no line ends of its own.
fn text(event: &Event) -> Bytes {
    let data = event.to_json();
    format!("id: {}\nevent: {}\ndata: {data}\n\n", event.nth, event.kind).into()
}
