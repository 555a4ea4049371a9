//! What the kernel knows of the bytes that were given to a connection: whether the other end's
//! host takes them.
//!
//! Asked over netlink (sock_diag(7)): `ioctl` and `TCP_INFO` have no safe function.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};
use tokio::net::TcpStream;

/// `struct nlmsghdr` (netlink(7)) and `struct inet_diag_req_v2` (sock_diag(7)).
const HEAD_BYTES: usize = 16;
const REQUEST_BYTES: usize = 56;
/// `struct inet_diag_msg`, and where in it the state stands, and the bytes that were not acknowledged.
const ANSWER_BYTES: usize = 72;
const STATE_AT: usize = 1;
const QUEUED_AT: usize = 60;
/// An answer has a handful of attributes; `struct tcp_info` is the longest, with some 300 bytes.
const ROOM_BYTES: usize = 4096;
/// Late answers to earlier questions that are passed over.
const STALE_MAX: usize = 4;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const IPPROTO_TCP: u8 = 6;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const INET_DIAG_INFO: u16 = 2;
/// Where the fields stand in `struct tcp_info` (`linux/tcp.h`; the last since Linux 4.9).
const RETRANSMITS_AT: usize = 2;
const RTO_AT: usize = 8;
const UNACKED_AT: usize = 24;
const LAST_DATA_SENT_AT: usize = 44;
const LAST_ACK_RECV_AT: usize = 56;
const RTT_AT: usize = 68;
const BYTES_ACKED_AT: usize = 120;
const MIN_RTT_AT: usize = 148;
/// The states in which more may be sent (`linux/tcp_states.h`).
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;

thread_local! {
    static ASKING: Cell<Option<(OwnedFd, u32)>> = const { Cell::new(None) };
}

/// The two ends of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    near: SocketAddr,
    far: SocketAddr,
}

/// What became of the bytes that were given to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Those that the other end's host has acknowledged, ever.
    pub(crate) acked: u64,
    /// Those that it has not, sent or not.
    pub(crate) queued: u32,
    /// Packets that it has not acknowledged and should.
    pub(crate) unacked: u32,
    /// Whether some were sent once more since it acknowledged any.
    pub(crate) is_resent: bool,
    /// Since when nothing came from it, not even an acknowledgement.
    pub(crate) silent: Duration,
    /// Since when nothing was sent to it: what it has not acknowledged is that old at least. None
    /// where this end is closed: of the FIN, the kernel does not say.
    pub(crate) unsent: Option<Duration>,
    /// When the kernel sends once more what is not acknowledged.
    pub(crate) resent_after: Duration,
    /// How long acknowledgements take, mostly and at least.
    pub(crate) round_trip: Duration,
    pub(crate) round_trip_min: Duration,
}

impl Link {
    /// The ends of a connection that is open.
    pub(crate) fn of(tcp: &TcpStream) -> Option<Self> {
        Some(Self {
            near: tcp.local_addr().ok()?,
            far: tcp.peer_addr().ok()?,
        })
    }

    /// What became of the bytes that were given to it; none where the kernel does not say.
    pub(crate) fn sent(&self) -> Option<Sent> {
        let (asking, seq) = match ASKING.take() {
            Some((asking, seq)) => (asking, seq.wrapping_add(1)),
            None => (ask_the_kernel()?, 0),
        };
        let sent = self.ask(&asking, seq);
        ASKING.set(Some((asking, seq)));
        sent
    }

    fn ask(&self, asking: &OwnedFd, seq: u32) -> Option<Sent> {
        send(asking, &self.question(seq), SendFlags::DONTWAIT).ok()?;
        let mut room = [0; ROOM_BYTES];
        // The kernel answers before it returns from being asked.
        for _ in 0..STALE_MAX {
            let (_, n) = recv(asking, &mut room[..], RecvFlags::DONTWAIT).ok()?;
            let answer = room.get(..n)?;
            if u32::from_ne_bytes(at(answer, 8)?) == seq {
                return parse(answer);
            }
        }
        None
    }

    fn question(&self, seq: u32) -> [u8; HEAD_BYTES + REQUEST_BYTES] {
        let (family, near, scope) = match self.near {
            SocketAddr::V4(near) => (AF_INET, IpAddr::V4(*near.ip()), 0),
            SocketAddr::V6(near) => (AF_INET6, IpAddr::V6(*near.ip()), near.scope_id()),
        };
        let mut question = [0; HEAD_BYTES + REQUEST_BYTES];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            if let Some(to) = question.get_mut(at..at + bytes.len()) {
                to.copy_from_slice(bytes);
            }
            at += bytes.len();
        };
        put(&72_u32.to_ne_bytes());
        put(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        put(&NLM_F_REQUEST.to_ne_bytes());
        put(&seq.to_ne_bytes());
        // nlmsg_pid; then what is asked of, in which states: all.
        put(&[0; 4]);
        put(&[family, IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0]);
        put(&u32::MAX.to_ne_bytes());
        put(&self.near.port().to_be_bytes());
        put(&self.far.port().to_be_bytes());
        put(&octets(near));
        put(&octets(self.far.ip()));
        put(&scope.to_ne_bytes());
        // INET_DIAG_NOCOOKIE.
        put(&[0xff; 8]);
        question
    }
}

/// Whether the process may not ask, ever: it is not tried at each look.
static IS_REFUSED: AtomicBool = AtomicBool::new(false);

/// Tells, once, where the kernel may not be asked.
pub(crate) fn try_to_ask() {
    drop(ask_the_kernel());
}

fn ask_the_kernel() -> Option<OwnedFd> {
    if IS_REFUSED.load(Ordering::Relaxed) {
        return None;
    }
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(netlink::SOCK_DIAG),
    );
    match socket {
        Ok(asking) => Some(asking),
        // They may be free at the next look.
        Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => None,
        Err(error) => {
            if !IS_REFUSED.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    code = "ZG0925",
                    %error,
                    "the kernel may not be asked what hosts have acknowledged: requests go into links \
                     that are cut until a PING or a timeout finds them; allow AF_NETLINK \
                     (RestrictAddressFamilies= of systemd, or a seccomp profile)"
                );
            }
            None
        }
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    let mut octets = [0; 16];
    match address {
        IpAddr::V4(address) => {
            if let Some(first) = octets.first_chunk_mut() {
                *first = address.octets();
            }
        }
        IpAddr::V6(address) => octets = address.octets(),
    }
    octets
}

fn parse(answer: &[u8]) -> Option<Sent> {
    // Anything else says that there is no such connection.
    if u16::from_ne_bytes(at(answer, 4)?) != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    let queued = u32::from_ne_bytes(at(answer, HEAD_BYTES + QUEUED_AT)?);
    let is_open = matches!(
        answer.get(HEAD_BYTES + STATE_AT)?,
        &ESTABLISHED | &CLOSE_WAIT
    );
    let mut rest = answer.get(HEAD_BYTES + ANSWER_BYTES..)?;
    // `struct rtattr` (rtnetlink(7)): a length that counts itself, a type, and up to a word's end.
    loop {
        let length = usize::from(u16::from_ne_bytes(at(rest, 0)?));
        if u16::from_ne_bytes(at(rest, 2)?) == INET_DIAG_INFO {
            let facts = rest.get(4..length)?;
            let word = |from| at(facts, from).map(u32::from_ne_bytes);
            let millis = |from| word(from).map(|n| Duration::from_millis(n.into()));
            let micros = |from| word(from).map(|n| Duration::from_micros(n.into()));
            return Some(Sent {
                acked: u64::from_ne_bytes(at(facts, BYTES_ACKED_AT)?),
                queued,
                unacked: word(UNACKED_AT)?,
                is_resent: *facts.get(RETRANSMITS_AT)? > 0,
                silent: millis(LAST_ACK_RECV_AT)?,
                unsent: millis(LAST_DATA_SENT_AT).filter(|_| is_open),
                resent_after: micros(RTO_AT)?,
                round_trip: micros(RTT_AT)?,
                round_trip_min: micros(MIN_RTT_AT)?,
            });
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Shutdown, TcpListener, TcpStream as Plain};

    use super::*;

    /// Gives a connection bytes until it takes none.
    fn fill(tcp: &mut Plain) -> u64 {
        tcp.set_nonblocking(true).unwrap();
        let mut given = 0;
        while let Ok(n) = tcp.write(&[7; 1 << 16]) {
            given += n as u64;
        }
        given
    }

    fn acknowledged_bytes_are_told_from_those_that_wait(bind: &str, dial: &str) {
        let listener = TcpListener::bind(bind).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut near = Plain::connect((dial, port)).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let given = fill(&mut near);
        let tcp = TcpStream::from_std(near.try_clone().unwrap()).unwrap();
        let link = Link::of(&tcp).unwrap();
        let full = link.sent().unwrap();
        assert!(full.queued > 0, "{full:?}");
        // The SYN counts (RFC 9293 §3.4).
        assert!(full.acked <= given + 1 && full.acked > 1, "{full:?}");

        let mut all = vec![0; usize::try_from(given).unwrap()];
        far.read_exact(&mut all).unwrap();
        let empty = loop {
            let sent = link.sent().unwrap();
            if sent.queued == 0 {
                break sent;
            }
        };
        assert_eq!(empty.acked, given + 1);
        assert_eq!((empty.unacked, empty.is_resent), (0, false));
        // Over loopback; a kernel waits 200 ms at least (`TCP_RTO_MIN`).
        assert!(
            empty.resent_after >= Duration::from_millis(200),
            "{empty:?}"
        );
        assert!(empty.round_trip_min <= empty.round_trip, "{empty:?}");
        assert!(!empty.round_trip_min.is_zero(), "{empty:?}");
        assert!(empty.silent < Duration::from_secs(60), "{empty:?}");
        assert!(empty.unsent.unwrap() < Duration::from_secs(60), "{empty:?}");

        // As seen from the end that accepted.
        far.set_nonblocking(true).unwrap();
        let tcp = TcpStream::from_std(far).unwrap();
        let back = Link::of(&tcp).unwrap();
        assert_eq!(back.sent().map(|sent| sent.queued), Some(0));

        near.shutdown(Shutdown::Write).unwrap();
        assert_eq!(link.sent().unwrap().unsent, None);
    }

    #[tokio::test]
    async fn the_kernel_tells_what_the_other_end_has_taken() {
        for (bind, dial) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("[::1]:0", "::1"),
            ("[::]:0", "127.0.0.1"),
        ] {
            acknowledged_bytes_are_told_from_those_that_wait(bind, dial);
        }
        let none = Link {
            near: "127.0.0.1:1".parse().unwrap(),
            far: "127.0.0.1:2".parse().unwrap(),
        };
        assert_eq!(none.sent(), None);
    }
}
