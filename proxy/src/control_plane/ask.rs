//! Dials the control plane, and has what it says serve.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::either::Either;
use zeugma_core::identity::IdPattern;
use zeugma_xds::ControlAddress;
use zeugma_xds::client::{Asked, Client, Offer, Told};

use crate::control::{Binding, Keeper, NotBound, Reloaded};
use crate::resolve;
use crate::runtime::Shared;
use crate::tls::{Credentials, TlsPeer, TlsStream};
use crate::transport::mtls::{self, Session};
use crate::transport::{Prefixed, Stream};
use crate::upstream::{self, First};

/// How long it may take to find and to connect a server, and as long for TLS.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long until a configuration is offered again that the control loop had no time for: a successor
/// has the sockets meanwhile.
const AGAIN: Duration = Duration::from_secs(2);
/// What servers of gRPC agree on.
const ALPN: &[&[u8]] = &[b"h2"];

/// Does whatever the control plane says, if there is one, for as long as the process lives.
pub(crate) async fn run(
    shared: Arc<Shared>,
    (client, tell, keeper): (Option<Client>, mpsc::Sender<Reloaded>, Option<Keeper>),
) {
    let Some(mut client) = client else {
        return;
    };
    let mut changes = shared.changes.subscribe();
    let mut peer = None;
    let side = &shared.control_plane;
    // Of what was kept all that can be is bound.
    let mut bind_at = side.is_kept().then(|| Instant::now() + AGAIN);
    // All of it is to be kept, which waits for what is being judged.
    let mut owes = false;
    // Whether something of what this server said was accepted.
    let mut is_accepted = false;
    loop {
        let bind = at_or_never(bind_at);
        let lost = async {
            match &keeper {
                Some(keeper) => keeper.lost_given().await,
                None => std::future::pending().await,
            }
        };
        // All keep what they have when they are dropped; the sleep is until a fixed moment.
        let asked = tokio::select! {
            asked = client.next(fastrand::f64) => asked,
            Ok(()) = changes.changed() => {
                if let Some(why) = disbelieved(&shared, &peer) {
                    client.cut(why, fastrand::f64);
                }
                continue;
            }
            () = bind => {
                let is_bound = bind_missing(&tell).await;
                bind_at = (!is_bound).then(|| Instant::now() + AGAIN);
                continue;
            }
            () = lost => {
                owes = !client.can_keep();
                if !owes {
                    keep(&mut client, keeper.as_ref(), None);
                }
                continue;
            }
        };
        match asked {
            Asked::Dial(server) => {
                let dialled = Box::pin(dial(&shared, server, &mut changes)).await;
                let dialled = dialled.map(|(stream, who)| {
                    peer = who;
                    stream
                });
                client.dialled(dialled, fastrand::f64);
            }
            Asked::Publish(offer) => {
                match publish(&shared, &mut client, *offer, &tell).await {
                    None => return,
                    Some(Whole::Yes) => {}
                    Some(Whole::No) => bind_at = Some(Instant::now() + AGAIN),
                }
                applied(&shared, &mut client, keeper.as_ref());
            }
            Asked::Tell(told) => {
                let is_answer = matches!(told, Told::Accepted(_) | Told::Refused(..));
                is_accepted |= matches!(told, Told::Accepted(_));
                is_accepted &= !matches!(told, Told::Connected(_));
                side.take(told, &shared.metrics);
                // Where nothing has changed nothing is published, and it is as new all the same; what is
                // refused says nothing of what serves, nor does what another control plane gave.
                let is_said = is_answer && is_accepted && client.is_confirmed();
                if is_said && !client.serves_of_another() {
                    if side.is_kept() {
                        applied(&shared, &mut client, keeper.as_ref());
                    }
                    side.applied(OffsetDateTime::now_utc(), &shared.metrics);
                }
            }
            Asked::Read(_) => {}
        }
        if client.is_confirmed() {
            side.complete();
        }
        if owes && client.can_keep() {
            owes = false;
            keep(&mut client, keeper.as_ref(), None);
        }
    }
}

async fn at_or_never(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What a server said last serves: that is known, unless some of it is another control plane's still, and kept.
fn applied(shared: &Shared, client: &mut Client, keeper: Option<&Keeper>) {
    let now = OffsetDateTime::now_utc();
    if !client.serves_of_another() {
        shared.control_plane.applied(now, &shared.metrics);
    }
    keep(client, keeper, Some(now));
}

/// Has what is new of it be kept, or all of it where nothing is; when it was said, if that is news.
fn keep(client: &mut Client, keeper: Option<&Keeper>, said: Option<OffsetDateTime>) {
    let Some(keeper) = keeper else {
        // Nobody asks for what is to be kept, which would grow.
        return client.keep_nothing();
    };
    // It is told once, and is not taken where nothing can be kept of what is being judged.
    if client.can_keep() && keeper.has_lost_given() {
        client.keep_anew();
    }
    let said = said.map(|at| u64::try_from(at.unix_timestamp()).unwrap_or_default());
    if let Some(given) = client.keep(said) {
        keeper.keep_given(given);
    }
}

/// Whether all listeners of what serves are bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whole {
    Yes,
    No,
}

/// Has what serves without some of its listeners be bound; whether all of them are.
async fn bind_missing(tell: &mpsc::Sender<Reloaded>) -> bool {
    let (answer, answered) = oneshot::channel();
    let reloaded = Reloaded {
        bind: Some(answer),
        ..Reloaded::default()
    };
    // An error is a process that hands over or ends: it is asked again, or it is over.
    tell.send(reloaded).await.is_ok() && answered.await.is_ok_and(|unbound| unbound.is_empty())
}

/// Has a configuration serve, if need be without the listeners that cannot be bound; `None` where
/// nobody wants it any more.
async fn publish(
    shared: &Arc<Shared>,
    client: &mut Client,
    offer: Offer,
    tell: &mpsc::Sender<Reloaded>,
) -> Option<Whole> {
    let mut next = Some(offer);
    let mut whole = Whole::Yes;
    while let Some(offer) = next.take() {
        if offer.binding == zeugma_xds::client::Binding::WhatCan {
            whole = Whole::No;
        }
        let unbound = offered(shared, offer, tell).await?;
        next = match client.published(&unbound, fastrand::f64) {
            Some(Asked::Publish(offer)) => Some(*offer),
            Some(Asked::Dial(_) | Asked::Tell(_) | Asked::Read(_)) | None => None,
        };
    }
    Some(whole)
}

/// Offers a configuration until it is taken or refused.
async fn offered(
    shared: &Arc<Shared>,
    offer: Offer,
    tell: &mpsc::Sender<Reloaded>,
) -> Option<NotBound> {
    let Offer {
        mut snapshot,
        resources,
        binding,
    } = offer;
    let serves = shared.published.load_full();
    // What is the same is shared; to compare ten thousand clusters takes its time.
    let sharing = tokio::task::spawn_blocking(move || {
        snapshot.share(&serves.snapshot);
        snapshot
    });
    let snapshot = sharing.await.ok()?;
    let binding = match binding {
        zeugma_xds::client::Binding::All => Binding::All,
        zeugma_xds::client::Binding::WhatCan => Binding::WhatCan,
    };
    loop {
        let (answer, answered) = oneshot::channel();
        let config = (snapshot.clone(), resources.clone(), None, binding);
        let reloaded = Reloaded {
            config: Some(config),
            answer: Some(answer),
            ..Reloaded::default()
        };
        tell.send(reloaded).await.ok()?;
        match answered.await {
            Ok(Ok(())) => return Some(NotBound::new()),
            Ok(Err(unbound)) => return Some(unbound),
            Err(_dropped) => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// Why who answers is not believed any more, if so.
fn disbelieved(shared: &Shared, peer: &Option<Arc<TlsPeer>>) -> Option<String> {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let refusal = shared.credentials.load().judge(peer.as_ref()?, now).err()?;
    Some(refusal.to_string())
}

/// What can go to another thread: a stream of a connection cannot, but what it is of can.
type Carrier = Either<TcpStream, Box<TlsStream<Prefixed>>>;

type Dialled = (Carrier, Option<Arc<TlsPeer>>);

async fn dial(
    shared: &Shared,
    server: usize,
    changes: &mut watch::Receiver<u64>,
) -> Result<Dialled, String> {
    let control_plane = shared.settings.control_plane.as_ref();
    let control_plane = control_plane.ok_or("there is none")?;
    let address = control_plane.addresses.get(server).ok_or("there is none")?;
    if matches!(address, ControlAddress::Plain(_)) {
        return reach(address, None).await;
    }
    // Nobody would let in a gateway that has no identity yet.
    while shared.credentials.load().id().is_none() {
        let changed = changes.changed().await;
        changed.map_err(|_ended| "the gateway ends".to_owned())?;
    }
    let credentials = shared.credentials.load_full();
    reach(address, Some((&credentials, &control_plane.spiffe_ids))).await
}

/// Reaches a server of a control plane, by mTLS as `who` with whoever `who` expects there.
///
/// # Errors
/// Why not, in words.
pub async fn reach_control_plane(
    address: &ControlAddress,
    who: Option<(&Arc<Credentials>, &[IdPattern])>,
) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<> + 'static, String> {
    Ok(reach(address, who).await?.0)
}

async fn reach(
    address: &ControlAddress,
    who: Option<(&Arc<Credentials>, &[IdPattern])>,
) -> Result<Dialled, String> {
    let (host, port) = match address {
        ControlAddress::Plain(address) => {
            let dialling = Box::pin(upstream::dial(
                std::slice::from_ref(address),
                DIAL_TIMEOUT,
                First::We,
            ));
            let (tcp, _) = in_time(dialling).await?;
            upstream::tune(&tcp);
            return Ok((Either::Left(tcp), None));
        }
        ControlAddress::Tls(host, port) => (host, *port),
    };
    let (credentials, ids) = who.ok_or("the server wants to know who asks")?;
    let addresses = timeout(DIAL_TIMEOUT, Box::pin(resolve::addresses_now(host, port))).await;
    let addresses = addresses.map_err(|_elapsed| {
        format!("the name `{host}` has no address within {DIAL_TIMEOUT:?}")
    })??;
    let (tcp, address) = in_time(Box::pin(upstream::dial(
        &addresses,
        DIAL_TIMEOUT,
        First::We,
    )))
    .await?;
    upstream::tune(&tcp);
    let sni: Arc<str> = host.as_str().into();
    let shaking = mtls::originate((tcp, address), credentials, &sni, ids, ALPN);
    match timeout(DIAL_TIMEOUT, Box::pin(shaking)).await {
        Ok(Ok(Session { stream, peer, .. })) => match stream {
            Stream::Originated(stream) => Ok((Either::Right(stream), Some(peer))),
            Stream::Plain(_) | Stream::Terminated(_) | Stream::Copied(_) => {
                Err("it is no TLS of ours".to_owned())
            }
        },
        Ok(Err(error)) => Err(format!("its identity is not taken: {error}")),
        Err(_elapsed) => Err(format!("no TLS within {DIAL_TIMEOUT:?}")),
    }
}

async fn in_time<T>(dialling: impl Future<Output = std::io::Result<T>>) -> Result<T, String> {
    match timeout(DIAL_TIMEOUT, dialling).await {
        Ok(dialled) => dialled.map_err(|error| error.to_string()),
        Err(_elapsed) => Err(format!("no connection within {DIAL_TIMEOUT:?}")),
    }
}
