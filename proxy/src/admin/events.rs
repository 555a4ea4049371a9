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
use tokio::time::Interval;

use super::levers::refused;
use crate::journal::{Event, LISTENERS_MAX, Listening, Next};
use crate::runtime::Shared;

/// How often a quiet stream says that it lives.
const ALIVE: Duration = Duration::from_secs(15);

/// Answers with what happens, from the event after `Last-Event-ID` on.
pub(super) async fn events(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let seen = headers.get("last-event-id").map(|value| {
        let text = value.to_str().unwrap_or_default();
        text.parse::<u64>()
    });
    let Ok(after) = seen.transpose() else {
        let wrong = "last-event-id is not the number of an event";
        return refused(StatusCode::BAD_REQUEST, "ZG0970", &wrong);
    };
    let Some(listening) = shared.admin.journal.listen(after) else {
        let text = format!(
            "{LISTENERS_MAX} listen already, or the gateway ends; end one, or ask /api/v1/failovers"
        );
        return refused(StatusCode::SERVICE_UNAVAILABLE, "ZG0971", &text);
    };
    let stream = Stream {
        shared,
        next: VecDeque::new(),
        listening,
        alive: tokio::time::interval(ALIVE),
    };
    let kind = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (kind, Body::new(stream)).into_response()
}

/// Events on their way to one listener.
struct Stream {
    shared: Arc<Shared>,
    next: VecDeque<Arc<Event>>,
    listening: Listening,
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
        loop {
            if let Some(event) = this.next.pop_front() {
                this.listening.seen = event.nth;
                return Poll::Ready(Some(Ok(Frame::data(text(&event)))));
            }
            let Next { missed, events } = this.shared.admin.journal.after(this.listening.seen);
            this.next = events;
            if missed > 0 {
                this.listening.seen += missed;
                let gap = gap(this.listening.seen, missed);
                return Poll::Ready(Some(Ok(Frame::data(gap))));
            }
            if !this.next.is_empty() {
                continue;
            }
            // What came after that look has woken it.
            match this.listening.woken.poll_recv(cx) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => break,
            }
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

/// That events up to number `last` are not kept any more.
fn gap(last: u64, missed: u64) -> Bytes {
    format!("id: {last}\nevent: gap\ndata: {{\"missed\":{missed}}}\n\n").into()
}
