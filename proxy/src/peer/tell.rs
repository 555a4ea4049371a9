//! Tells the gateway of a peer how what is exported to it stands, for as long as it listens.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Ping, PingPong, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use zeugma_core::authorize::gateways_of;
use zeugma_core::identity::SpiffeId;
use zeugma_core::report::{Presence, Report};
use zeugma_core::verdict::Reason;

use super::{BEAT, MEDIA_TYPE, METHOD, STATUS, message, status};
use crate::connection::Visit;
use crate::http::{Counted, Moved};
use crate::runtime::{Published, Shared};
use crate::transport::Stream;

/// Reports under way at once, to all peers.
const REPORTS_MAX: usize = 1024;
/// Reports under way at once, to the gateways of one peer.
const PEER_REPORTS_MAX: usize = 64;
/// Changes that come within this time of what was told last are told together.
const REST: Duration = Duration::from_millis(100);
/// How long the other end may take to read what it is told.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is asked whether it is there, and how long its answer may take.
const PING: Duration = Duration::from_secs(3);
const PONG: Duration = Duration::from_secs(5);
/// What it gets to take the last words, and to end the connection.
const LEAVE: Duration = Duration::from_secs(1);
/// The longest list of headers of a question.
const HEADER_BYTES_MAX: u32 = 8 * 1024;
/// Streams that are begun and reset before they are looked at; one more ends the connection
/// (CVE-2023-44487).
const RESET_UNSEEN_MAX: usize = 4;

/// How many reports are under way, by peer.
#[derive(Debug, Default)]
pub(crate) struct Reporting(Mutex<BTreeMap<Arc<str>, usize>>);

/// One of them, until dropped.
#[derive(Debug)]
struct Place {
    shared: Arc<Shared>,
    peer: Arc<str>,
}

impl Place {
    fn take(shared: &Arc<Shared>, peer: &Arc<str>) -> Option<Self> {
        let mut under_way = shared.peers.reporting.lock();
        let of_peer = under_way.get(peer).copied().unwrap_or_default();
        if of_peer >= PEER_REPORTS_MAX || under_way.values().sum::<usize>() >= REPORTS_MAX {
            return None;
        }
        under_way.insert(Arc::clone(peer), of_peer + 1);
        drop(under_way);
        Some(Self {
            shared: Arc::clone(shared),
            peer: Arc::clone(peer),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut under_way = self.shared.peers.reporting.lock();
        if let Some(count) = under_way.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                under_way.remove(&self.peer);
            }
        }
    }
}

impl Reporting {
    /// A lock is held to count alone: nobody fails meanwhile.
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Arc<str>, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a report is made of beside what is published; sent whenever that changes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tidings {
    /// Counts publications.
    pub(crate) published: u64,
    /// The gateway is on its way out, though it still accepts.
    pub(crate) is_leaving: bool,
}

/// Why it is told no more.
enum Ended {
    /// The caller has gone, or has not asked.
    Gone(Option<String>),
    /// Nothing that is a question came in time.
    NoQuestion,
    /// There is no place for it.
    Full,
    /// The gateway is on its way out.
    Drained,
    /// A change does not let it go on, which the entry says.
    Told,
}

/// Carries the connection of a peer's gateway, which is verified as `id`, until it ends.
pub(crate) async fn serve(visit: &mut Visit, stream: Stream, id: &SpiffeId) -> Reason {
    let shared = Arc::clone(&visit.worker.shared);
    let source = visit.listed.source().ip();
    let moved = Arc::<Moved>::default();
    let ended = match begin(&shared, Counted::new(stream, &moved)).await {
        Ok(asked) => {
            let entry = std::rc::Rc::clone(&visit.listed);
            let to = To {
                shared: &shared,
                source,
                id,
            };
            Box::pin(answer(&to, &entry, asked)).await
        }
        Err(ended) => ended,
    };
    let (read, written) = moved.both();
    visit.moved.down.set(written);
    visit.moved.up.set(read);
    if let Some(reason) = visit.told_to_end() {
        return reason;
    }
    match ended {
        Ended::Gone(why) => {
            let reason = match why {
                Some(_) => Reason::DownstreamClosed,
                None => Reason::Completed,
            };
            visit.detail = why;
            reason
        }
        Ended::NoQuestion => Reason::HelloTimeout,
        Ended::Full => Reason::ReportLimit,
        Ended::Drained => Reason::Drained,
        Ended::Told => Reason::NoLongerAllowed,
    }
}

/// A connection with its question.
struct Asked {
    connection: Connection<Counted, Bytes>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
}

/// Waits for the question.
async fn begin(shared: &Shared, stream: Counted) -> Result<Asked, Ended> {
    let beginning = async {
        let mut connection: Connection<Counted, Bytes> = Builder::new()
            .max_concurrent_streams(1)
            .max_header_list_size(HEADER_BYTES_MAX)
            .max_pending_accept_reset_streams(RESET_UNSEEN_MAX)
            .max_local_error_reset_streams(Some(RESET_UNSEEN_MAX))
            .handshake(stream)
            .await
            .map_err(broken)?;
        match connection.accept().await {
            Some(Ok((request, respond))) => Ok(Asked {
                connection,
                request,
                respond,
            }),
            Some(Err(error)) => Err(broken(error)),
            None => Err(Ended::Gone(None)),
        }
    };
    let limit = shared.settings.limits.header_timeout;
    (timeout(limit, Box::pin(beginning)).await).unwrap_or(Err(Ended::NoQuestion))
}

fn broken(error: h2::Error) -> Ended {
    Ended::Gone(Some(error.to_string()))
}

/// Whom a report is for.
struct To<'a> {
    shared: &'a Arc<Shared>,
    source: IpAddr,
    id: &'a SpiffeId,
}

impl To<'_> {
    /// The name of its peer, the first of several that it may be of.
    fn peer(&self, published: &Published) -> Option<Arc<str>> {
        let snapshot = &published.snapshot;
        let peers = gateways_of(snapshot, self.source, self.id);
        peers.first().map(|ix| Arc::clone(&snapshot.peer(*ix).name))
    }

    /// How things stand, and what is to be told of it.
    async fn report(
        &self,
        told: Option<(Arc<Published>, Report)>,
        published: &Arc<Published>,
        presence: Presence,
    ) -> Result<(Report, Vec<Bytes>), Ended> {
        let snapshot = &published.snapshot;
        let peers = gateways_of(snapshot, self.source, self.id);
        let before = match told {
            Some((before, mut report)) if Arc::ptr_eq(&before.snapshot, snapshot) => {
                let shares = (&*before.shares, &*published.shares);
                let changes = report.update(snapshot, shares, &peers);
                report.presence = presence;
                return Ok((report, message::changes(presence, &changes, false)));
            }
            Some((_, report)) => Some(report),
            None => None,
        };
        let published = Arc::clone(published);
        // Of ten thousand services it takes milliseconds, which traffic does not wait for.
        let whole = tokio::task::spawn_blocking(move || {
            let mut report = Report::to(&published.snapshot, &published.shares, &peers);
            report.presence = presence;
            let messages = message::messages(before.as_ref(), &report);
            (report, messages)
        });
        (whole.await).map_err(|error| Ended::Gone(Some(error.to_string())))
    }
}

/// Answers the question, and tells what comes.
async fn answer(to: &To<'_>, entry: &crate::recheck::Entry, asked: Asked) -> Ended {
    let Asked {
        mut connection,
        request,
        mut respond,
    } = asked;
    let is_known = request.method() == Method::POST && request.uri().path() == METHOD;
    let published = to.shared.published.load_full();
    let place = (to.peer(&published)).and_then(|peer| Place::take(to.shared, &peer));
    drop(published);
    let refused = match (is_known, &place) {
        (false, _) => Some((status::UNIMPLEMENTED, Ended::Gone(None))),
        (true, None) => Some((status::RESOURCE_EXHAUSTED, Ended::Full)),
        (true, Some(_)) => None,
    };
    let ended = if let Some((status, ended)) = refused {
        // The other end may be gone, which is the end as well.
        respond.send_response(head(Some(status)), true).ok();
        ended
    } else {
        match respond.send_response(head(None), false) {
            Ok(stream) => {
                // What it asks besides is not read: its window is all that it may send.
                let _unread = request;
                let pings = connection.ping_pong();
                let telling = pin!(tell(to, entry, stream));
                let asking = pin!(ask_if_there(pings));
                drive(&mut connection, telling, asking).await
            }
            Err(error) => broken(error),
        }
    };
    drop(place);
    connection.graceful_shutdown();
    let leaving = poll_fn(|cx| connection.poll_closed(cx));
    let has_left = timeout(LEAVE, leaving).await.is_ok();
    if has_left && matches!(ended, Ended::Drained) {
        // It was told, and has gone as it should.
        return Ended::Gone(None);
    }
    ended
}

/// Moves the connection's bytes until one of the others has ended.
async fn drive(
    connection: &mut Connection<Counted, Bytes>,
    mut telling: impl Future<Output = Ended> + Unpin,
    mut asking: impl Future<Output = Ended> + Unpin,
) -> Ended {
    loop {
        // They are pinned outside of the loop, and a stream that is begun is looked at at once.
        tokio::select! {
            biased;
            ended = &mut telling => return ended,
            ended = &mut asking => return ended,
            next = connection.accept() => match next {
                Some(Ok((_request, mut respond))) => respond.send_reset(h2::Reason::REFUSED_STREAM),
                Some(Err(error)) => return broken(error),
                None => return Ended::Gone(None),
            },
        }
    }
}

fn head(status: Option<&'static str>) -> Response<()> {
    let mut head = Response::new(());
    let headers = head.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    if let Some(status) = status {
        headers.insert(STATUS, HeaderValue::from_static(status));
    }
    head
}

/// Tells how things stand, at once whenever that changes and every [`BEAT`], until it is over.
async fn tell(to: &To<'_>, entry: &crate::recheck::Entry, mut stream: SendStream<Bytes>) -> Ended {
    let mut tidings = to.shared.peers.tidings.subscribe();
    let mut told: Option<(Arc<Published>, Report)> = None;
    loop {
        let now = *tidings.borrow_and_update();
        let published = to.shared.published.load_full();
        let is_last = to.shared.is_draining();
        let presence = if now.is_leaving {
            Presence::Leaving
        } else {
            Presence::Serving
        };
        let (report, messages) = match to.report(told.take(), &published, presence).await {
            Ok(reported) => reported,
            Err(ended) => return ended,
        };
        told = Some((published, report));
        for message in messages {
            // Both arms end it where they are not the one that is waited for.
            let sent = tokio::select! {
                sent = timeout(READ_TIMEOUT, send(&mut stream, message)) => sent,
                _ = entry.asked_to_leave(None) => {
                    bid_farewell(&mut stream, status::PERMISSION_DENIED);
                    return Ended::Told;
                }
            };
            match sent {
                Ok(Ok(())) => {}
                Ok(Err(ended)) => return ended,
                Err(_elapsed) => {
                    let why = format!("what it is told is not read for {READ_TIMEOUT:?}");
                    return Ended::Gone(Some(why));
                }
            }
        }
        if is_last {
            bid_farewell(&mut stream, status::UNAVAILABLE);
            return Ended::Drained;
        }
        let wakes = wait(to.shared, &mut tidings, Instant::now());
        tokio::select! {
            () = wakes => {}
            _ = entry.asked_to_leave(None) => {
                bid_farewell(&mut stream, status::PERMISSION_DENIED);
                return Ended::Told;
            }
            gone = poll_fn(|cx| stream.poll_reset(cx)) => {
                return Ended::Gone(gone.err().map(|error| error.to_string()));
            }
        }
    }
}

/// Waits until there is something to tell, or it is time for a beat.
async fn wait(shared: &Shared, tidings: &mut watch::Receiver<Tidings>, told: Instant) {
    // Each arm waits for state, and is looked at anew.
    tokio::select! {
        changed = tidings.changed() => {
            if changed.is_err() {
                // The control thread is gone, and the process with it.
                std::future::pending::<()>().await;
            }
            sleep_until(told + REST).await;
        }
        _ = shared.draining() => {}
        () = sleep_until(told + BEAT) => {}
    }
}

/// Sends a message as the other end has room for it.
async fn send(stream: &mut SendStream<Bytes>, mut message: Bytes) -> Result<(), Ended> {
    while !message.is_empty() {
        stream.reserve_capacity(message.len());
        let capacity = poll_fn(|cx| stream.poll_capacity(cx)).await;
        let capacity = match capacity {
            Some(Ok(capacity)) => capacity.min(message.len()),
            Some(Err(error)) => return Err(broken(error)),
            None => return Err(Ended::Gone(None)),
        };
        let part = message.split_to(capacity);
        stream.send_data(part, false).map_err(broken)?;
    }
    Ok(())
}

/// Ends the answer, saying why.
fn bid_farewell(stream: &mut SendStream<Bytes>, status: &'static str) {
    let mut trailers = HeaderMap::new();
    trailers.insert(STATUS, HeaderValue::from_static(status));
    // It ends one way or the other.
    stream.send_trailers(trailers).ok();
}

/// Asks again and again whether the other end is there; ends when it is not.
async fn ask_if_there(pings: Option<PingPong>) -> Ended {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        sleep(PING).await;
        match timeout(PONG, pings.ping(Ping::opaque())).await {
            Ok(Ok(_pong)) => {}
            Ok(Err(error)) => return broken(error),
            Err(_elapsed) => {
                return Ended::Gone(Some("the caller answered no PING".to_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Alone;

    #[tokio::test]
    async fn there_is_a_place_for_so_many_of_one_peer_and_of_all() {
        let alone = Alone::new(
            "{ apps: { address: '127.0.0.1:0', role: workloads } }",
            "",
            1,
        );
        let take = |peer: usize| Place::take(&alone.shared, &format!("peer {peer}").into());
        let mut places: Vec<Place> = (0..PEER_REPORTS_MAX).filter_map(|_| take(0)).collect();
        assert_eq!(places.len(), PEER_REPORTS_MAX);
        assert!(take(0).is_none());
        for peer in 1..REPORTS_MAX / PEER_REPORTS_MAX {
            places.extend((0..PEER_REPORTS_MAX).filter_map(|_| take(peer)));
        }
        assert_eq!(places.len(), REPORTS_MAX);
        assert!(take(REPORTS_MAX).is_none());
        // What ends leaves its place.
        places.pop();
        assert!(take(REPORTS_MAX).is_some());
        drop(places);
        assert_eq!(alone.shared.peers.reporting.lock().len(), 0);
    }
}
