//! One stream: what comes goes to its session, and what that says goes out.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Status;

use super::node::Subscribed;
use super::read::{Unread, read};
use super::standing::Place;
use super::wire::{Left, Requests, Taking, Telling, end, ended};
use super::{Caller, Shared, set};
use crate::plane::Claim;
use crate::session::Kind;
use crate::session::server::{Action, Limits, Message, Protocol, Session, Violation};

/// Until a stream must have said what it wants.
const FIRST: Duration = Duration::from_secs(10);
/// Types that are not served, on one stream.
const OTHER_TYPES_MAX: usize = 16;
const NAME_BYTES_MAX: usize = 4096;
/// Of names that one stream asks for, or says it has, and nobody else does.
const STRANGER_BYTES_MAX: usize = 16 << 20;
/// One response of each type that may wait, and the end.
pub(super) const WAITING_MAX: usize = 4 + OTHER_TYPES_MAX + 1;

/// A stream before its first request.
pub(super) struct Opened {
    pub(super) shared: Arc<Shared>,
    pub(super) place: Place,
    pub(super) requests: Requests,
    pub(super) tell: mpsc::Sender<Telling>,
}

/// Carries a stream until it ends.
pub(super) async fn run(
    opened: Opened,
    taking: Taking,
    protocol: Protocol,
    only: Option<Kind>,
) -> Left {
    let tell = opened.tell.clone();
    let status = match carry(opened, protocol, only).await {
        Ok(()) => ended(),
        Err(status) => status,
    };
    end(&tell, taking, status).await
}

async fn carry(opened: Opened, protocol: Protocol, only: Option<Kind>) -> Result<(), Status> {
    // What it needs as long as it lasts stands in one place, and is moved no more.
    let Some(mut begun) = Box::pin(begin(opened, protocol, only)).await? else {
        return Ok(());
    };
    let Begun {
        claim,
        stream,
        requests,
        told: Subscribed { seen, catalog },
    } = &mut *begun;
    let shared = Arc::clone(&stream.shared);
    let mut draining = shared.draining.subscribe();
    loop {
        let wakes_at = stream.wakes_at;
        let woken = async {
            match wakes_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        // What each arm waits for is kept outside of it.
        tokio::select! {
            request = requests.next() => {
                let Some(request) = request? else {
                    return Ok(());
                };
                let read = read(stream.protocol, &request, stream.limits);
                let (_again, request) = read.map_err(|why| stream.unread(&why))?;
                stream.handle(Message::Asked(request))?;
                requests.done();
            }
            changed = seen.changed() => {
                changed.map_err(|_gone| Status::unavailable("draining"))?;
                // Who may have what, and which view a node has, are documents' business too, and are
                // asked before it is told anything of them.
                let again = Box::pin(shared.subscribe(claim, &stream.place)).await?;
                *seen = again.seen;
                if !Arc::ptr_eq(&again.catalog, catalog) {
                    *catalog = again.catalog;
                    stream.handle(Message::Published(Arc::clone(catalog)))?;
                }
            }
            () = woken => {
                stream.wakes_at = None;
                stream.handle(Message::Woken)?;
            }
            () = set(&mut draining) => {
                return Err(Status::unavailable("draining"));
            }
            () = gone(&stream.tell) => return Ok(()),
        }
    }
}

/// Waits until the client has given the stream up, which a stream that reads nothing does not see.
async fn gone(tell: &mpsc::Sender<Telling>) {
    tell.closed().await;
}

/// A stream that has said who it is.
struct Begun {
    claim: Claim,
    stream: Stream,
    requests: Requests,
    told: Subscribed,
}

/// Reads and answers the first request; `None` where none comes.
async fn begin(
    opened: Opened,
    protocol: Protocol,
    only: Option<Kind>,
) -> Result<Option<Box<Begun>>, Status> {
    let Opened {
        shared,
        mut place,
        mut requests,
        tell,
    } = opened;
    let arrived = timeout(FIRST, requests.arrive()).await;
    arrived.map_err(|_elapsed| Status::deadline_exceeded("no request came"))??;
    // Where all come back at once, the rest of it may wait for memory far longer.
    let first = tokio::select! {
        first = requests.next() => first?,
        () = gone(&tell) => None,
    };
    let Some(first) = first else {
        return Ok(None);
    };
    let limits = Limits {
        names: shared.limits.names,
        other_types: OTHER_TYPES_MAX,
        name_bytes: NAME_BYTES_MAX,
        stranger_bytes: STRANGER_BYTES_MAX,
    };
    let read = read(protocol, &first, limits);
    let (claim, request) = read.map_err(|why| unread(&shared, &why, "", place.caller()))?;
    // P1: it is said once.
    let claim = claim.ok_or_else(|| Status::invalid_argument("the first request names no node"))?;
    place.is_node(&claim.id);
    let told = shared.subscribe(&claim, &place).await?;
    let mut stream = Stream {
        protocol,
        limits,
        session: Session::new(protocol, only, limits, Arc::clone(&told.catalog)),
        shared,
        place,
        tell,
        wakes_at: None,
    };
    stream.handle(Message::Asked(request))?;
    requests.done();
    Ok(Some(Box::new(Begun {
        claim,
        stream,
        requests,
        told,
    })))
}

struct Stream {
    protocol: Protocol,
    limits: Limits,
    session: Session,
    shared: Arc<Shared>,
    place: Place,
    tell: mpsc::Sender<Telling>,
    wakes_at: Option<Instant>,
}

impl Stream {
    fn handle(&mut self, message: Message<'_>) -> Result<(), Status> {
        for action in self.session.handle(message, self.shared.now()) {
            match action {
                Action::Send(response) => {
                    self.place.sent(&response);
                    let told = self.tell.try_send(Telling::Response(response));
                    // One of each type has room: the other end is gone.
                    told.map_err(|_gone| Status::cancelled("nobody reads"))?;
                }
                Action::Accepted { type_url, version } => {
                    self.place.accepted(&type_url, version);
                }
                Action::Rejected {
                    type_url,
                    version,
                    detail,
                } => self.place.rejected(&type_url, version, &detail),
                Action::WakeAt(at) => {
                    self.wakes_at = Some(self.shared.started + at.since_origin());
                }
                Action::End(violation) => return Err(self.violated(&violation)),
            }
        }
        self.place.stands(self.session.standing());
        Ok(())
    }

    fn unread(&self, why: &Unread) -> Status {
        unread(&self.shared, why, self.place.node(), self.place.caller())
    }

    fn violated(&self, violation: &Violation) -> Status {
        let (node, caller) = (self.place.node(), self.place.caller());
        self.shared.ends(violation, node, caller);
        violated(violation)
    }
}

fn unread(shared: &Shared, why: &Unread, node: &str, caller: &Caller) -> Status {
    shared.ends(why, node, caller);
    match why {
        Unread::Broken(_) | Unread::Long(..) => Status::invalid_argument(why.to_string()),
        Unread::TooMuch(violation) => violated(violation),
    }
}

fn violated(violation: &Violation) -> Status {
    match violation {
        Violation::OtherType { .. } => Status::invalid_argument(violation.to_string()),
        Violation::Names(_)
        | Violation::Strangers(_)
        | Violation::LongName(_)
        | Violation::Types(_) => Status::resource_exhausted(violation.to_string()),
    }
}
