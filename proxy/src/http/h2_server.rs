//! HTTP/2 from callers: `h2` itself, without hyper's server around it.
//!
//! hyper hides which stream a body belongs to, which windows of our own need (`flow`), and cannot
//! be asked to PING by need.

use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::body::Outgoing;
use super::date;
use super::expect::{self, Across, Interim};
use super::flow::{Flow, FlowIo, H2_WINDOW, Side};
use super::headers::Present;
use super::keepalive::{Keepalive, Pings, When};
use super::stream::{self, Incoming, Whose};
use super::{Context, DATA_FRAME_BUDGET, Ended, Look, STREAM_SEND_BYTES, Watch, exchange};
use crate::transport::sent::Link;

/// When a caller that is no peer's gateway is asked whether it is there.
const CALLER: Pings = Pings {
    interval: Duration::from_secs(15),
    timeout: Duration::from_secs(10),
    when: When::Always,
};

/// Streams reset by the caller that `h2` keeps until they are looked at; one more ends the connection
/// (CVE-2023-44487).
const RESET_UNSEEN_MAX: usize = 20;
/// Streams of a connection that `h2` may have to reset for breaking the protocol; one more ends it.
const RESET_BY_ERROR_MAX: usize = 1024;

/// Carries an HTTP/2 connection of a caller until it ends.
pub(super) async fn serve<S>(
    context: &Rc<Context>,
    mut watch: Watch,
    (stream, link): (S, Option<Link>),
    peer: Option<Pings>,
) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let shared = &context.worker.shared;
    let limits = &shared.settings.limits;
    let flow = Flow::new(&shared.windows, Side::Server, limits.streams);
    let io = FlowIo::new(stream, &flow);
    let mut handshake = pin!(
        Builder::new()
            .max_concurrent_streams(limits.streams)
            // h2 refuses what is as long as its limit, too.
            .max_header_list_size(
                u32::try_from(limits.header_bytes.saturating_add(1)).unwrap_or(u32::MAX),
            )
            .initial_window_size(H2_WINDOW)
            .initial_connection_window_size(H2_WINDOW)
            .max_send_buffer_size(STREAM_SEND_BYTES)
            .data_frame_budget(DATA_FRAME_BUDGET)
            .max_pending_accept_reset_streams(RESET_UNSEEN_MAX)
            .max_local_error_reset_streams(Some(RESET_BY_ERROR_MAX))
            .enable_connect_protocol()
            .handshake::<_, Bytes>(io)
    );
    let mut connection = loop {
        // The handshake is pinned outside of the loop; the other arm only waits.
        tokio::select! {
            begun = &mut handshake => match begun {
                Ok(connection) => break connection,
                Err(error) => return Ended::of_h2(&error),
            },
            look = watch.next() => match look {
                Look::Fine => {}
                Look::Leave => return Ended::Drained,
                Look::End(ended) => return ended,
            }
        }
    };
    let asking = peer.unwrap_or(CALLER);
    let mut keepalive = Keepalive::new(connection.ping_pong(), &flow, link, asking);
    let mut is_told = false;
    loop {
        let driving = std::future::poll_fn(|cx| {
            flow.driven_by(cx);
            flow.gather();
            loop {
                match connection.poll_accept(cx) {
                    Poll::Ready(Some(Ok((request, respond)))) => {
                        begin(context, &flow, request, respond)
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Ended::of_h2(&error)),
                    Poll::Ready(None) if flow.is_flooded() => {
                        let detail = "the caller reset more streams than it may".to_owned();
                        return Poll::Ready(Ended::Calmed(detail));
                    }
                    Poll::Ready(None) => return Poll::Ready(Ended::Ok),
                    Poll::Pending if flow.is_flooded() && !is_told => {
                        is_told = true;
                        connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                    }
                    // Writes what it has gathered meanwhile.
                    Poll::Pending if flow.release() => {}
                    Poll::Pending => break,
                }
            }
            keepalive.poll(cx, true).map(|_silent| {
                flow.fell_silent();
                Ended::Silent
            })
        });
        // The connection is outside of the loop; the other arm only waits.
        tokio::select! {
            ended = driving => return ended,
            look = watch.next() => match look {
                Look::Fine => {}
                Look::Leave => connection.graceful_shutdown(),
                Look::End(ended) => return ended,
            }
        }
    }
}

/// Begins to answer a request.
fn begin(
    context: &Rc<Context>,
    flow: &Flow,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let (head, recv) = request.into_parts();
    let passing = Across::default();
    let (body, interim) = if recv.is_end_stream() {
        // It needs no window, and nothing more comes of it.
        let over = Incoming::Over {
            present: Present::of(&head.headers),
            passing: passing.clone(),
        };
        (over, None)
    } else {
        let window = flow.open(respond.stream_id().as_u32());
        let interim = expect::expects_continue(&head.headers).then(Interim::default);
        let whose = Whose::Caller {
            interim: interim.clone(),
            passing: passing.clone(),
        };
        let body = Incoming::h2(recv, window, &head.headers, whose);
        (body, interim)
    };
    let request = Request::from_parts(head, body);
    let asked = Asked {
        is_head: request.method() == Method::HEAD,
        interim,
        passing,
        header_timeout: context.worker.shared.settings.limits.header_timeout,
    };
    // Neither in the task's own future, which tokio moves, and all that is in it.
    let answering = Box::pin(exchange::exchange(context, request));
    // Ends with its stream: when the caller resets it or its connection ends.
    drop(tokio::task::spawn_local(Box::pin(answer(
        answering, respond, asked,
    ))));
}

/// What its answer has to know of a request.
#[derive(Debug)]
struct Asked {
    is_head: bool,
    /// It waits to be asked for its body.
    interim: Option<Interim>,
    passing: Across,
    header_timeout: Duration,
}

async fn answer(
    mut answering: Pin<Box<impl Future<Output = Response<Outgoing>>>>,
    mut respond: SendResponse<Bytes>,
    asked: Asked,
) {
    let is_head = asked.is_head;
    let answered = std::future::poll_fn(|cx| {
        let answered = answering.as_mut().poll(cx);
        while let Some(interim) = asked.passing.pop(cx) {
            // An error is seen by what comes behind it.
            respond.send_informational(interim).ok();
        }
        if let Poll::Ready(response) = answered {
            return Poll::Ready(Some(response));
        }
        if asked
            .interim
            .as_ref()
            .is_some_and(|interim| interim.take(cx))
        {
            let mut asks = Response::new(());
            *asks.status_mut() = StatusCode::CONTINUE;
            // An error is seen by what reads the body.
            respond.send_informational(asks).ok();
        }
        respond.poll_reset(cx).map(|_reset| None)
    });
    let Some(response) = answered.await else {
        // The caller has gone; the exchange goes with it and says so.
        return;
    };
    drop(answering);
    let (mut head, body) = response.into_parts();
    complete(&mut head.headers, &body, head.status, is_head);
    let is_end = is_head || body.is_end_stream();
    // An answer of ours is as short as a head.
    let patience = body.patience().unwrap_or(asked.header_timeout);
    let sent = respond.send_response(Response::from_parts(head, ()), is_end);
    match sent {
        Ok(_stream) if is_end => Box::pin(read_away(body, patience)).await,
        Ok(mut stream) => {
            if let Err(error) = stream::send(body, &mut stream, Some(patience)).await {
                tracing::debug!(%error, "a response was not sent to its end");
            }
        }
        Err(error) => {
            tracing::debug!(%error, "a response was not sent");
            respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}

/// Reads to the end what has no bytes: an answer to HEAD, whose end may come behind its head.
async fn read_away(mut body: Outgoing, patience: Duration) {
    let is_empty = |frame: Frame<Bytes>| frame.into_data().is_ok_and(|bytes| bytes.is_empty());
    let reading = async {
        // One that has bytes all the same is not listened to.
        while let Some(Ok(frame)) = body.frame().await
            && is_empty(frame)
        {}
    };
    // Who does not end it is not waited for: the record says so.
    timeout(patience, reading).await.ok();
}

/// Leaves the headers that HTTP/2 has, and names the length of a body that is known, and the time.
fn complete(headers: &mut http::HeaderMap, body: &Outgoing, status: StatusCode, is_head: bool) {
    // Looking each of them up would hash it, and most answers have few headers.
    let has = |name: &HeaderName| headers.keys().any(|key| key == name);
    let (has_date, has_length) = (has(&header::DATE), has(&header::CONTENT_LENGTH));
    if has(&header::CONNECTION) {
        // RFC 9113 §8.2.2: our own answers name it for HTTP/1.1.
        headers.remove(header::CONNECTION);
    }
    if !has_date && let Some(now) = date::now() {
        headers.insert(header::DATE, now);
    }
    // RFC 9110 §8.6: not in answers that have none by definition.
    let has_body = !is_head && !status.is_informational() && status != StatusCode::NO_CONTENT;
    if has_body
        && status != StatusCode::NOT_MODIFIED
        && !has_length
        && let Some(length) = body.size_hint().exact()
        && !body.is_end_stream()
    {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
}
