//! Handing the listening sockets to the next process of the same gateway, over a Unix socket in the
//! state directory.
//!
//! ```text
//! successor                            predecessor
//!   configuration loaded, connects
//!   hello {version, gateway} ------->  same user? serving?
//!                            <-------  offer {sockets} with their descriptors and the lock's, or
//!                                      refused {why}
//!   adopts, binds what is new, resolves names, accepts
//!   ready {adopted} ---------------->
//!                                      writes the last of what operators decided
//!                            <-------  yours: from here on the sockets are the successor's
//!   opens its own door                 stops accepting, drains
//! ```
//!
//! Until `yours` is written the predecessor serves as if nothing had happened, whatever becomes of
//! the successor. Both accept from the same queues in between, which loses nothing. The lock goes
//! over as the open file that holds it: there is no moment in which nobody has it.
//!
//! A message is one line of JSON. Every wait has a deadline.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, recvmsg, sendmsg, shutdown,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use zeugma_xds::Findings;

use super::inherit::{self, Adopted, Inherited, Place};
use super::last_good::Beginning;
use super::{GatewayError, Start, reload};
use crate::state::{Folder, State};

/// The file of the socket that a successor asks at.
const SOCKET: &str = "handover.sock";
/// Its name until its mode is set.
const SOCKET_NEXT: &str = ".handover.next";
/// What both sides speak.
const VERSION: u32 = 1;
/// For every answer that needs nothing but a process that runs.
const STEP: Duration = Duration::from_secs(5);
/// How long the last of what is kept may take: less than the successor waits for our word.
const LAST: Duration = Duration::from_secs(3);
/// How long a successor looks for a predecessor that lets it in: the one before may just be ending.
const ASK: Duration = Duration::from_secs(10);
/// How long a successor may take from the sockets to being ready.
pub(super) const READY: Duration = Duration::from_secs(60);
/// How long a successor waits before it asks again, and a door after an error.
const AGAIN: Duration = Duration::from_millis(50);
/// Bytes of one message.
const LINE_BYTES_MAX: usize = 256 * 1024;
/// Descriptors in one message; the kernel takes 253 (`SCM_MAX_FD`, unix(7)).
const DESCRIPTORS_MAX: usize = 128;
/// Sockets in all messages of an offer.
const SOCKETS_MAX: usize = 4096;

/// Why a gateway does not take over from the one that runs.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// There is no folder to find a predecessor in.
    #[error("--takeover needs a state directory; set spec.stateDir to a folder to write in")]
    NoState,
    /// Nobody let us in.
    #[error(
        "the gateway that holds the lock does not answer at `{path}` within {ASK:?}; it hangs, \
         drains already, or hands over to another: end it, or start again when it has ended"
    )]
    Unreachable {
        /// Its socket.
        path: PathBuf,
        /// What the last attempt met.
        #[source]
        source: io::Error,
    },
    /// The predecessor said no.
    #[error("the gateway of pid {pid} does not hand over: {why}")]
    Refused {
        /// Whom we asked.
        pid: i32,
        /// What it said.
        why: String,
    },
    /// An agent gave us no SVID: the predecessor serves better.
    #[error(
        "the agent gave no SVID in time; the gateway of pid {pid} goes on serving. Look at the agent, and start again"
    )]
    NoSvid {
        /// Whom we asked.
        pid: i32,
    },
    /// A control plane gave us no configuration, and none was kept: the predecessor serves better.
    #[error(
        "the control plane gave no configuration in time, and none was kept; the gateway of pid {pid} goes on serving. Look at the control plane, and start again"
    )]
    NoConfiguration {
        /// Whom we asked.
        pid: i32,
    },
    /// The predecessor did not keep to the protocol, or went away.
    #[error("the handover from the gateway of pid {pid} failed; it goes on serving if it can")]
    Failed {
        /// Whom we asked.
        pid: i32,
        /// What happened.
        #[source]
        source: io::Error,
    },
}

impl HandoverError {
    /// Its code in [`zeugma_core::codes`].
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoState => "ZG0948",
            Self::Unreachable { .. }
            | Self::Refused { .. }
            | Self::NoSvid { .. }
            | Self::NoConfiguration { .. }
            | Self::Failed { .. } => "ZG0949",
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Message {
    Hello {
        version: u32,
        gateway: String,
    },
    /// Each socket has a descriptor in this message; the last one is the lock's, unless more come.
    Offer {
        sockets: Vec<Place>,
        more: bool,
    },
    Refused {
        why: String,
    },
    Ready {
        adopted: Vec<Place>,
    },
    Yours {},
}

/// A socket to hand over.
#[derive(Debug)]
pub(crate) struct Offered {
    pub(crate) place: Place,
    pub(crate) socket: OwnedFd,
}

/// What the door asks of the control loop.
#[derive(Debug)]
pub(super) enum Asked {
    /// A successor is there: what it may have, or why it may not.
    Offer {
        pid: i32,
        answer: oneshot::Sender<Result<Vec<Offered>, String>>,
    },
    /// It is ready: what is kept is to be written, and is its own from then on.
    Last { answer: oneshot::Sender<()> },
    /// It was told that the sockets are its own.
    Done { pid: i32, adopted: Vec<Place> },
    /// It did not get that far: nothing has happened.
    Abandoned { pid: i32, why: io::Error },
}

/// The socket that successors ask at.
#[derive(Debug)]
pub(super) struct Door {
    listener: UnixListener,
    /// Another descriptor of the locked file.
    lock: OwnedFd,
    gateway: String,
}

impl Door {
    /// Opens the door of the gateway that has the lock, in place of one that was there before.
    ///
    /// # Errors
    /// As the operating system says; a path over 107 bytes among others (unix(7)).
    pub(super) fn open(state: &State, gateway: &str) -> io::Result<Self> {
        let (next, path) = (state.path(SOCKET_NEXT), state.path(SOCKET));
        // Left behind by one that was killed; the lock keeps all others away.
        drop(std::fs::remove_file(&next));
        // The folder is closed to others, so nobody comes before the mode is set.
        let listener = UnixListener::bind(&next)?;
        std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&next, &path)?;
        Ok(Self {
            listener,
            lock: state.lock().try_clone_to_owned()?,
            gateway: gateway.to_owned(),
        })
    }

    /// Lets successors in, one after the other, until one has taken over.
    pub(super) async fn serve(self, ask: mpsc::Sender<Asked>) {
        loop {
            let (stream, pid) = match self.admit().await {
                Ok(admitted) => admitted,
                Err(error) => {
                    tracing::warn!(code = "ZG0946", %error, "a process at the handover socket is not let in");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            };
            let done = match self.hand_over(Wire::new(stream), pid, &ask).await {
                Ok(adopted) => Asked::Done { pid, adopted },
                Err(why) => Asked::Abandoned { pid, why },
            };
            let is_done = matches!(done, Asked::Done { .. });
            if ask.send(done).await.is_err() || is_done {
                return;
            }
        }
    }

    async fn admit(&self) -> io::Result<(UnixStream, i32)> {
        let (stream, _) = self.listener.accept().await?;
        let pid = peer(&stream)?;
        Ok((stream, pid))
    }

    async fn hand_over(
        &self,
        mut wire: Wire,
        pid: i32,
        ask: &mpsc::Sender<Asked>,
    ) -> io::Result<Vec<Place>> {
        let offered = match self.offer(&mut wire, pid, ask).await? {
            Ok(offered) => offered,
            Err(why) => {
                let refused = Message::Refused { why: why.clone() };
                wire.send(&refused, &[]).await?;
                return Err(io::Error::other(format!("refused: {why}")));
            }
        };
        let mut chunks = offered.chunks(DESCRIPTORS_MAX).peekable();
        // A gateway listens on something, admin at the least.
        while let Some(chunk) = chunks.next() {
            let more = chunks.peek().is_some();
            let sockets = chunk.iter().map(|offered| offered.place.clone()).collect();
            let mut descriptors: Vec<_> = chunk.iter().map(|one| one.socket.as_fd()).collect();
            if !more {
                descriptors.push(self.lock.as_fd());
            }
            let offer = Message::Offer { sockets, more };
            wire.send(&offer, &descriptors).await?;
        }
        drop(offered);
        let Message::Ready { adopted } = wire.receive(READY).await? else {
            return Err(unexpected("ready"));
        };
        let (answer, written) = oneshot::channel();
        let gone = |()| io::Error::other("the control loop has ended");
        ask.send(Asked::Last { answer })
            .await
            .map_err(|_| gone(()))?;
        let late = |_| io::Error::other("what operators decided was not written in time");
        let written = timeout(LAST, written).await.map_err(late)?;
        written.map_err(|_| gone(()))?;
        // The point of no return: written, it is read, since both are on one machine.
        wire.send(&Message::Yours {}, &[]).await?;
        Ok(adopted)
    }

    async fn offer(
        &self,
        wire: &mut Wire,
        pid: i32,
        ask: &mpsc::Sender<Asked>,
    ) -> io::Result<Result<Vec<Offered>, String>> {
        let Message::Hello { version, gateway } = wire.receive(STEP).await? else {
            return Err(unexpected("hello"));
        };
        if version != VERSION {
            return Ok(Err(format!(
                "it speaks version {VERSION} of the handover, not {version}; restart it instead"
            )));
        }
        if gateway != self.gateway {
            return Ok(Err(format!("it is `{}`, not `{gateway}`", self.gateway)));
        }
        let (answer, answered) = oneshot::channel();
        let gone = |_| io::Error::other("the control loop has ended");
        ask.send(Asked::Offer { pid, answer })
            .await
            .map_err(|_| io::Error::other("the control loop has ended"))?;
        let offered = answered.await.map_err(gone)?;
        Ok(offered.and_then(|offered| {
            if offered.len() > SOCKETS_MAX {
                return Err(format!(
                    "it has over {SOCKETS_MAX} sockets; restart it instead"
                ));
            }
            Ok(offered)
        }))
    }
}

/// A handover that this process is the successor of, before it is ready.
#[derive(Debug)]
pub(super) struct Taking {
    wire: Wire,
    pid: i32,
}

/// How a process with `--takeover` begins.
#[derive(Debug)]
pub(super) enum Begun {
    /// Nobody had the lock.
    Alone(State),
    /// Another has it, and passes on what it listens on.
    After(State, Inherited, Taking),
}

/// Asks the gateway that has the lock of `folder` for its sockets, or takes the lock if nobody has
/// it.
///
/// Whoever begins with the last good configuration because its files are `refused` has nothing that
/// the other does not serve already, and leaves it alone.
///
/// # Errors
/// Those of the folder; all of [`HandoverError`]; the findings of refused files.
pub(super) async fn begin(
    mut folder: Folder,
    gateway: &str,
    refused: Option<&Findings>,
) -> Result<Begun, GatewayError> {
    let deadline = Instant::now() + ASK;
    loop {
        folder = match (folder.try_claim()?, refused) {
            (Ok(state), _) => return Ok(Begun::Alone(state)),
            (Err(_held), Some(findings)) => {
                return Err(GatewayError::Config(reload::describe(findings)));
            }
            (Err(held), None) => held,
        };
        let path = folder.path(SOCKET);
        let asking = timeout_at(deadline, UnixStream::connect(&path));
        let source = match asking.await {
            Ok(Ok(stream)) => return take(stream, folder, gateway).await,
            Ok(Err(error)) => error,
            Err(elapsed) => elapsed.into(),
        };
        if Instant::now() + AGAIN >= deadline {
            return Err(HandoverError::Unreachable { path, source }.into());
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn take(stream: UnixStream, folder: Folder, gateway: &str) -> Result<Begun, GatewayError> {
    let pid = peer(&stream).map_err(|source| HandoverError::Failed { pid: 0, source })?;
    let failed = |source| HandoverError::Failed { pid, source };
    let mut wire = Wire::new(stream);
    let hello = Message::Hello {
        version: VERSION,
        gateway: gateway.to_owned(),
    };
    wire.send(&hello, &[]).await.map_err(failed)?;
    let mut inherited = Inherited::default();
    let mut count = 0;
    loop {
        let (sockets, more) = match wire.receive(ASK).await.map_err(failed)? {
            Message::Offer { sockets, more } => (sockets, more),
            Message::Refused { why } => return Err(HandoverError::Refused { pid, why }.into()),
            Message::Hello { .. } | Message::Ready { .. } | Message::Yours {} => {
                return Err(failed(unexpected("offer")).into());
            }
        };
        count += sockets.len();
        if count > SOCKETS_MAX {
            return Err(failed(io::Error::other("too many sockets")).into());
        }
        for place in sockets {
            let socket = wire.descriptor().map_err(failed)?;
            inherited.add(place, socket).map_err(failed)?;
        }
        if !more {
            break;
        }
    }
    let lock = wire.descriptor().map_err(failed)?;
    let state = folder.adopt(lock).map_err(failed)?;
    Ok(Begun::After(state, inherited, Taking { wire, pid }))
}

impl Taking {
    /// The predecessor.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Tells the predecessor that this process accepts on `adopted`, and waits for its word that it
    /// stops.
    ///
    /// # Errors
    /// [`HandoverError::Failed`]: the sockets are still the predecessor's.
    pub(super) async fn finish(mut self, adopted: Vec<Place>) -> Result<(), HandoverError> {
        let pid = self.pid;
        let failed = |source| HandoverError::Failed { pid, source };
        let ready = Message::Ready { adopted };
        self.wire.send(&ready, &[]).await.map_err(failed)?;
        let answer = match self.wire.receive(STEP).await {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                // Its word may be on its way. After this it cannot be given any more, so that what
                // is there is what holds.
                self.wire.close().map_err(failed)?;
                self.wire.receive(STEP).await.map_err(|_end| error)
            }
            answer => answer,
        };
        match answer.map_err(failed)? {
            Message::Yours {} => Ok(()),
            Message::Hello { .. }
            | Message::Offer { .. }
            | Message::Refused { .. }
            | Message::Ready { .. } => Err(failed(unexpected("yours"))),
        }
    }
}

/// The process at the other end, which must run as the same user: descriptors are as good as the
/// user's word.
fn peer(stream: &UnixStream) -> io::Result<i32> {
    let who = stream.peer_cred()?;
    let own = rustix::process::geteuid().as_raw();
    if who.uid() != own {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("its user is {}, not {own}", who.uid()),
        ));
    }
    // Without one it is in another PID namespace.
    Ok(who.pid().unwrap_or(0))
}

fn unexpected(wanted: &str) -> io::Error {
    invalid(format!("another message than `{wanted}`"))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Messages and descriptors over a connection.
#[derive(Debug)]
struct Wire {
    stream: UnixStream,
    read: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Wire {
    const fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            read: Vec::new(),
            descriptors: VecDeque::new(),
        }
    }

    /// Sends one message with descriptors.
    async fn send(&mut self, message: &Message, with: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let sending = async {
            let mut left = line.as_slice();
            let mut with = with;
            while !left.is_empty() {
                let n = self
                    .stream
                    .async_io(Interest::WRITABLE, || send_some(&self.stream, left, with))
                    .await?;
                // They went with the first byte.
                with = &[];
                left = left.get(n..).unwrap_or_default();
            }
            Ok(())
        };
        timeout(STEP, sending).await?
    }

    /// Receives one message; its descriptors are kept for [`descriptor`](Self::descriptor).
    async fn receive(&mut self, within: Duration) -> io::Result<Message> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(|error| invalid(error.to_string()));
            }
            if self.read.len() > LINE_BYTES_MAX {
                return Err(invalid(format!("a message over {LINE_BYTES_MAX} bytes")));
            }
            let reading = self
                .stream
                .async_io(Interest::READABLE, || receive_some(&self.stream));
            let late = |_elapsed| {
                let what = format!("no answer within {within:?}");
                io::Error::new(io::ErrorKind::TimedOut, what)
            };
            let (bytes, descriptors) = timeout_at(deadline, reading).await.map_err(late)??;
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.read.extend_from_slice(&bytes);
            self.descriptors.extend(descriptors);
            if self.descriptors.len() > SOCKETS_MAX {
                return Err(invalid("too many descriptors".to_owned()));
            }
        }
    }

    /// The next descriptor that came.
    fn descriptor(&mut self) -> io::Result<OwnedFd> {
        self.descriptors
            .pop_front()
            .ok_or_else(|| invalid("a message without its descriptor".to_owned()))
    }

    /// Lets no more messages come: the other end fails to send them.
    fn close(&self) -> io::Result<()> {
        Ok(shutdown(&self.stream, Shutdown::Read)?)
    }
}

fn send_some(stream: &UnixStream, bytes: &[u8], with: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX + 1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !with.is_empty() && !control.push(SendAncillaryMessage::ScmRights(with)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let bytes = [IoSlice::new(bytes)];
    // No signal where the other end is gone, but an error.
    Ok(sendmsg(stream, &bytes, &mut control, SendFlags::NOSIGNAL)?)
}

fn receive_some(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX + 1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; 16 * 1024];
    let received = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(invalid("descriptors were lost on the way".to_owned()));
    }
    bytes.truncate(received.bytes);
    Ok((bytes, descriptors))
}

/// What a process comes with.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) state: Option<State>,
    /// The sockets that were opened for it.
    pub(super) adopted: Adopted,
    /// Those of the gateway before that a configuration to come may have a place for.
    pub(super) left: Inherited,
    /// Whom it takes over from.
    pub(super) taking: Option<Taking>,
}

/// Finds what others opened for a gateway: systemd, and the gateway before it if it is to take over.
///
/// # Errors
/// All that its parts can meet; the gateway before serves on.
pub(super) async fn arrive(start: Start, beginning: &Beginning) -> Result<Arrival, GatewayError> {
    let Beginning {
        loaded, findings, ..
    } = beginning;
    let settings = &loaded.settings;
    let places = inherit::places(settings, &loaded.snapshot);
    let mut adopted = Inherited::from_systemd()?.assign_all(&places)?;
    let folder = Folder::open(&settings.state_dir, &settings.name)?;
    let begun = match (start, folder) {
        (Start::Alone, None) => None,
        (Start::TakeOver, None) => return Err(HandoverError::NoState.into()),
        (Start::Alone, Some(folder)) => Some(Begun::Alone(folder.claim()?)),
        (Start::TakeOver, Some(folder)) => {
            Some(begin(folder, &settings.name, findings.as_ref()).await?)
        }
    };
    let mut left = Inherited::default();
    let (state, taking) = match begun {
        None => (None, None),
        Some(Begun::Alone(state)) => (Some(state), None),
        Some(Begun::After(state, inherited, taking)) => {
            let (ours, rest) = inherited.assign(&places);
            let pid = taking.pid;
            if settings.control_plane.is_some() {
                // What it will say may have a place for them.
                left = rest;
            } else if !rest.is_empty() {
                tracing::info!(code = "ZG0947", pid, sockets = %rest, "these stay behind: the configuration has no place for them");
            }
            adopted.extend(ours);
            (Some(state), Some(taking))
        }
    };
    Ok(Arrival {
        state,
        adopted,
        left,
        taking,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::inherit::{At, Role};

    fn pair() -> (Wire, Wire) {
        let (one, two) = UnixStream::pair().unwrap();
        (Wire::new(one), Wire::new(two))
    }

    fn place(nth: usize) -> Place {
        Place {
            role: Role::Listener(format!("listener-{nth}")),
            at: At::Unix(format!("/run/{nth}").into()),
        }
    }

    #[tokio::test]
    async fn descriptors_arrive_in_the_order_of_their_names_over_many_messages() {
        const COUNT: usize = 300;
        let (mut from, mut to) = pair();
        let sending = async {
            let files: Vec<OwnedFd> = (0..COUNT)
                .map(|nth| {
                    let file = tempfile::tempfile().unwrap();
                    io::Write::write_all(&mut &file, nth.to_string().as_bytes()).unwrap();
                    file.into()
                })
                .collect();
            for (nth, chunk) in files.chunks(DESCRIPTORS_MAX).enumerate() {
                let first = nth * DESCRIPTORS_MAX;
                let sockets = (first..first + chunk.len()).map(place).collect();
                let more = first + chunk.len() < COUNT;
                let offer = Message::Offer { sockets, more };
                let with: Vec<_> = chunk.iter().map(AsFd::as_fd).collect();
                from.send(&offer, &with).await.unwrap();
            }
        };
        let receiving = async {
            let mut got = Vec::new();
            loop {
                let Message::Offer { sockets, more } = to.receive(STEP).await.unwrap() else {
                    panic!("no offer");
                };
                for socket in sockets {
                    let file = std::fs::File::from(to.descriptor().unwrap());
                    let mut text = [0; 8];
                    let n = std::os::unix::fs::FileExt::read_at(&file, &mut text, 0).unwrap();
                    let text = String::from_utf8_lossy(&text[..n]).into_owned();
                    assert_eq!(socket.role.name(), format!("listener-{text}"));
                    got.push(text);
                }
                if !more {
                    return got.len();
                }
            }
        };
        let ((), got) = tokio::join!(sending, receiving);
        assert_eq!(got, COUNT);
        assert!(to.descriptor().is_err());
    }

    #[tokio::test]
    async fn a_message_has_an_end_within_its_limit() {
        let (from, mut to) = pair();
        let long = vec![b'x'; LINE_BYTES_MAX + 64 * 1024];
        let sending = async {
            let mut left = long.as_slice();
            // Until the other end has enough of it.
            while !left.is_empty() {
                let sent = from
                    .stream
                    .async_io(Interest::WRITABLE, || send_some(&from.stream, left, &[]));
                let Ok(n) = sent.await else { return };
                left = left.get(n..).unwrap_or_default();
            }
        };
        let receiving = async {
            let error = to.receive(STEP).await.unwrap_err();
            drop(to);
            error
        };
        let ((), error) = tokio::join!(sending, receiving);
        let said = format!("a message over {LINE_BYTES_MAX} bytes");
        assert_eq!(error.to_string(), said);
    }

    #[tokio::test(start_paused = true)]
    async fn a_predecessor_that_says_nothing_keeps_its_sockets() {
        let (wire, mut predecessor) = pair();
        let taking = Taking { wire, pid: 7 };
        let error = taking.finish(vec![place(1)]).await.unwrap_err();
        let said = "the handover from the gateway of pid 7 failed; it goes on serving if it can";
        assert_eq!(error.to_string(), said);
        let ready = predecessor.receive(STEP).await.unwrap();
        assert!(matches!(ready, Message::Ready { adopted } if adopted == [place(1)]));
        // Its word comes too late, and it learns that.
        let error = predecessor.send(&Message::Yours {}, &[]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_predecessor_that_gives_its_word_and_dies_has_given_it() {
        let (wire, mut predecessor) = pair();
        predecessor.send(&Message::Yours {}, &[]).await.unwrap();
        let taking = Taking { wire, pid: 7 };
        let finishing = taking.finish(Vec::new());
        let dying = async {
            predecessor.receive(STEP).await.unwrap();
            drop(predecessor);
        };
        let (finished, ()) = tokio::join!(finishing, dying);
        finished.unwrap();
    }
}
