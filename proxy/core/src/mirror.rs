//! Whether a request or connection is copied to another route, and what the copy's answer says beside
//! the primary's. A copy never delays or changes the primary.

use std::time::Duration;

use crate::balance::fraction;
use crate::engine;
use crate::plan::{Attempt, Plan, Why};
use crate::retry::Sender;
use crate::shares::ClusterShares;
use crate::snapshot::{Endpoint, EndpointTls, Mirror, Role};
use crate::verdict::Reason;

/// Tells a mirror's draw from those of level and endpoint.
const MIRROR_PART: u64 = 0x6d69_7272;

/// What a mirror makes of one request or connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copying {
    /// It is copied, and one more copy is under way.
    Copy(Terms),
    /// It is not meant to be copied.
    Skip(Skipped),
    /// It should have been copied and is not; this is counted.
    Drop(Dropped),
}

/// What a copy gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// How long it may take; of a connection to be connected, and once its primary is over.
    pub within: Duration,
    /// How many bytes of its answer's body, and of the primary's, are compared at most; `None`: nothing
    /// is.
    pub compared_bytes_max: Option<usize>,
}

/// Why nothing is copied, and nothing is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Skipped {
    /// It is a copy itself.
    Copy,
    /// It goes on as something else than HTTP.
    Upgrade,
    /// A peer's gateway sent it, which has mirrored it already.
    ByPeer,
    /// It is not of the share that is copied.
    NotDrawn,
}

impl Skipped {
    /// The word for programs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Upgrade => "upgrade",
            Self::ByPeer => "by-peer",
            Self::NotDrawn => "not-drawn",
        }
    }
}

/// Why a copy that should have been made was not, or was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dropped {
    /// As many copies are under way as may be.
    InFlight,
    /// The body is over the limit.
    Body,
    /// The copy could not be read away as fast as the request came.
    Slow,
    /// The copy took longer than its timeout.
    Timeout,
    /// No endpoint took it.
    Unreachable,
    /// No backend that is healthy had capacity left.
    OverCapacity,
    /// A change took its right to go on.
    Ended,
}

impl Dropped {
    /// The word in logs and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::InFlight => "in-flight",
            Self::Body => "body",
            Self::Slow => "slow",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::OverCapacity => "over-capacity",
            Self::Ended => "ended",
        }
    }
}

/// What a mirror looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Original {
    /// Who sent it: a peer's gateway has mirrored it already.
    pub sender: Sender,
    /// Whether it is a copy itself.
    pub kind: Kind,
    /// Its `content-length`; `None` if it has none or no body.
    pub body_bytes: Option<u64>,
}

/// Whether a request is a copy, or one that cannot have any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// It is answered to its caller.
    Primary,
    /// Its answer is thrown away.
    Mirrored,
    /// It asks to go on as another protocol, of which there is no copy.
    Upgraded,
}

/// What is known of an answer once it is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its HTTP status.
    pub status: u16,
    /// gRPC's status, of its trailers or its head, where it has one.
    pub grpc: Option<Box<[u8]>>,
    /// Its `content-encoding`, where it has one.
    pub encoding: Option<Box<[u8]>>,
    /// How its body ended.
    pub body: Body,
}

/// How an answer's body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// In order: of so many bytes, with this SHA-256 of those that were looked at.
    Whole {
        /// All of it.
        bytes: u64,
        /// Of the whole, if that is not over the limit.
        sha256: [u8; 32],
    },
    /// Before its end.
    CutShort,
}

/// What an answer and a copy's are beside each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Compared {
    /// The same status and the same body.
    Same,
    /// Another status, of HTTP or of gRPC.
    Status,
    /// The same status and another body.
    Body,
    /// Nobody can tell.
    Not(Uncompared),
}

/// Why two answers were not compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Uncompared {
    /// Both bodies are over the limit.
    Limit,
    /// One is encoded otherwise: other bytes may mean the same.
    Encoding,
    /// No endpoint's answer reached the caller whole, or not in time.
    Primary,
    /// The copy has no answer, or none that is whole.
    Copy,
}

impl Compared {
    /// The word in logs and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Status => "status",
            Self::Body => "body",
            Self::Not(Uncompared::Limit) => "limit",
            Self::Not(Uncompared::Encoding) => "encoding",
            Self::Not(Uncompared::Primary) => "primary",
            Self::Not(Uncompared::Copy) => "copy",
        }
    }

    /// Whether the two differ.
    #[must_use]
    pub const fn is_difference(self) -> bool {
        match self {
            Self::Status | Self::Body => true,
            Self::Same | Self::Not(_) => false,
        }
    }
}

/// Compares the answer that the caller got with the copy's; of neither more than `body_bytes_max` bytes
/// of body were looked at.
///
/// Headers and other trailers than gRPC's status are not compared: they name times, hosts and
/// connections.
#[must_use]
pub fn compared(
    primary: Option<&Answer>,
    copy: Option<&Answer>,
    body_bytes_max: usize,
) -> Compared {
    let Some(copy) = copy else {
        return Compared::Not(Uncompared::Copy);
    };
    let Some(primary) = primary else {
        return Compared::Not(Uncompared::Primary);
    };
    if primary.status != copy.status {
        return Compared::Status;
    }
    let (one, other) = match (primary.body, copy.body) {
        (Body::CutShort, _) => return Compared::Not(Uncompared::Primary),
        (_, Body::CutShort) => return Compared::Not(Uncompared::Copy),
        (one @ Body::Whole { .. }, other @ Body::Whole { .. }) => (one, other),
    };
    if primary.grpc != copy.grpc {
        return Compared::Status;
    }
    if primary.encoding != copy.encoding {
        return Compared::Not(Uncompared::Encoding);
    }
    let limit = u64::try_from(body_bytes_max).unwrap_or(u64::MAX);
    let is_over = |body| matches!(body, Body::Whole { bytes, .. } if bytes > limit);
    match (is_over(one), is_over(other)) {
        (true, true) => Compared::Not(Uncompared::Limit),
        (false, false) if one == other => Compared::Same,
        // One that is over the limit is longer than one that is not.
        (true | false, _) => Compared::Body,
    }
}

/// Decides about the copy of a request or connection for the mirror at `ix` of its service; `in_flight` are this
/// mirror's copies under way on this worker, which the caller counts.
#[must_use]
pub fn copying(
    mirror: &Mirror,
    ix: usize,
    original: &Original,
    in_flight: usize,
    draw: u64,
) -> Copying {
    match original.kind {
        Kind::Mirrored => return Copying::Skip(Skipped::Copy),
        Kind::Upgraded => return Copying::Skip(Skipped::Upgrade),
        Kind::Primary => {}
    }
    if original.sender == Sender::PeerGateway {
        return Copying::Skip(Skipped::ByPeer);
    }
    // Each mirror draws for itself: 5 % here and 5 % there are not the same 5 %.
    let part = MIRROR_PART.wrapping_add(u64::try_from(ix).unwrap_or_default());
    if fraction(draw, part) >= mirror.share {
        return Copying::Skip(Skipped::NotDrawn);
    }
    let limit = u64::try_from(mirror.body_bytes_max).unwrap_or(u64::MAX);
    if original.body_bytes.is_some_and(|bytes| bytes > limit) {
        return Copying::Drop(Dropped::Body);
    }
    if in_flight >= mirror.in_flight_max {
        return Copying::Drop(Dropped::InFlight);
    }
    Copying::Copy(Terms {
        within: mirror.timeout,
        compared_bytes_max: mirror.compare.then_some(mirror.body_bytes_max),
    })
}

/// The attempts of a plan that a copy may take: what becomes of one shows nothing.
pub fn attempts(plan: Plan<'_>) -> impl Iterator<Item = Attempt> {
    plan.filter(|attempt| attempt.why != Why::Trial)
}

/// Whether an endpoint takes copies of connections: one that speaks TLS itself has none of its caller's.
#[must_use]
pub fn takes_bytes(endpoint: &Endpoint) -> bool {
    endpoint.tls != EndpointTls::Workload
}

/// Why no endpoint of a cluster that stands like this is tried for a copy.
#[must_use]
pub fn nothing_to_try(of: &ClusterShares) -> Dropped {
    // Copies go where workloads' traffic does.
    if engine::nothing_to_try(of, Role::Workloads) == Reason::OverCapacity {
        Dropped::OverCapacity
    } else {
        Dropped::Unreachable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::ClusterIx;

    fn mirror(share: f64) -> Mirror {
        Mirror {
            route: "a/canary".into(),
            to: ClusterIx(0),
            host: "canary.a".into(),
            share,
            timeout: Duration::from_secs(2),
            body_bytes_max: 1024,
            in_flight_max: 64,
            compare: true,
            position: None,
        }
    }

    const ORIGINAL: Original = Original {
        sender: Sender::Caller,
        kind: Kind::Primary,
        body_bytes: None,
    };

    const fn is_copied(copying: Copying) -> bool {
        matches!(copying, Copying::Copy(_))
    }

    #[test]
    fn a_copy_gets_the_time_of_its_mirror_and_is_compared_where_that_is_asked_for() {
        for compare in [true, false] {
            let mirror = Mirror {
                compare,
                ..mirror(1.0)
            };
            let terms = Terms {
                within: Duration::from_secs(2),
                compared_bytes_max: compare.then_some(1024),
            };
            let copying = copying(&mirror, 0, &ORIGINAL, 0, 1);
            assert_eq!(copying, Copying::Copy(terms));
        }
    }

    #[test]
    fn the_share_is_drawn_and_each_mirror_draws_for_itself() {
        let mirror = mirror(0.05);
        let is = |ix, draw| is_copied(copying(&mirror, ix, &ORIGINAL, 0, draw));
        let first = (0..100_000).filter(|draw| is(0, *draw)).count();
        assert!(first.abs_diff(5000) < 300, "{first}");
        let both = (0..100_000)
            .filter(|draw| is(0, *draw) && is(1, *draw))
            .count();
        assert!(both.abs_diff(250) < 80, "{both}");
    }

    #[test]
    fn all_and_nothing_are_exact() {
        for draw in 0..1000 {
            assert!(is_copied(copying(&mirror(1.0), 0, &ORIGINAL, 0, draw)));
            let nothing = copying(&mirror(0.0), 0, &ORIGINAL, 0, draw);
            assert_eq!(nothing, Copying::Skip(Skipped::NotDrawn));
        }
    }

    #[test]
    fn copies_are_never_copied_and_peers_have_copied_already() {
        let of = |kind, sender| {
            let original = Original {
                kind,
                sender,
                ..ORIGINAL
            };
            copying(&mirror(1.0), 0, &original, 0, 1)
        };
        let (caller, peer) = (Sender::Caller, Sender::PeerGateway);
        assert_eq!(of(Kind::Mirrored, peer), Copying::Skip(Skipped::Copy));
        assert_eq!(of(Kind::Primary, peer), Copying::Skip(Skipped::ByPeer));
        assert_eq!(of(Kind::Upgraded, caller), Copying::Skip(Skipped::Upgrade));
    }

    #[test]
    fn copies_under_way_and_their_bodies_are_bounded() {
        let of = |in_flight, body_bytes| {
            let original = Original {
                body_bytes,
                ..ORIGINAL
            };
            copying(&mirror(1.0), 0, &original, in_flight, 1)
        };
        assert!(is_copied(of(63, Some(1024))));
        assert_eq!(of(64, None), Copying::Drop(Dropped::InFlight));
        assert_eq!(of(0, Some(1025)), Copying::Drop(Dropped::Body));
    }

    const fn whole(status: u16, bytes: u64, first: u8) -> Answer {
        Answer {
            status,
            grpc: None,
            encoding: None,
            body: Body::Whole {
                bytes,
                sha256: [first; 32],
            },
        }
    }

    fn beside(primary: &Answer, copy: &Answer) -> Compared {
        compared(Some(primary), Some(copy), 1024)
    }

    #[test]
    fn answers_are_compared_by_status_and_then_by_body() {
        let answer = whole(200, 10, 1);
        assert_eq!(beside(&answer, &answer), Compared::Same);
        assert_eq!(beside(&answer, &whole(500, 10, 1)), Compared::Status);
        assert_eq!(beside(&answer, &whole(200, 10, 2)), Compared::Body);
        assert_eq!(beside(&answer, &whole(200, 11, 1)), Compared::Body);
    }

    #[test]
    fn the_status_of_grpc_is_a_status() {
        let with = |code: &[u8]| Answer {
            grpc: Some(code.into()),
            ..whole(200, 10, 1)
        };
        assert_eq!(beside(&with(b"0"), &with(b"0")), Compared::Same);
        assert_eq!(beside(&with(b"0"), &with(b"13")), Compared::Status);
        assert_eq!(beside(&with(b"0"), &whole(200, 10, 1)), Compared::Status);
    }

    #[test]
    fn bodies_over_the_limit_are_not_compared_unless_one_is_shorter() {
        let limit = Compared::Not(Uncompared::Limit);
        assert_eq!(beside(&whole(200, 1025, 1), &whole(200, 1025, 1)), limit);
        assert_eq!(beside(&whole(200, 1025, 1), &whole(200, 9999, 2)), limit);
        let (short, long) = (whole(200, 1024, 1), whole(200, 1025, 1));
        assert_eq!(beside(&short, &long), Compared::Body);
        assert_eq!(beside(&long, &short), Compared::Body);
        assert_eq!(beside(&long, &whole(404, 1025, 1)), Compared::Status);
    }

    #[test]
    fn what_was_encoded_otherwise_may_mean_the_same() {
        let with = |coding: &[u8]| Answer {
            encoding: Some(coding.into()),
            ..whole(200, 10, 1)
        };
        let not = Compared::Not(Uncompared::Encoding);
        assert_eq!(beside(&with(b"gzip"), &with(b"gzip")), Compared::Same);
        assert_eq!(beside(&with(b"gzip"), &with(b"br")), not);
        assert_eq!(beside(&whole(200, 10, 1), &with(b"gzip")), not);
    }

    #[test]
    fn an_answer_that_is_not_whole_has_a_status_alone() {
        let cut = |status| Answer {
            body: Body::CutShort,
            ..whole(status, 0, 0)
        };
        let primary = Compared::Not(Uncompared::Primary);
        let copy = Compared::Not(Uncompared::Copy);
        let whole = whole(200, 10, 1);
        assert_eq!(beside(&cut(200), &whole), primary);
        assert_eq!(beside(&whole, &cut(200)), copy);
        assert_eq!(beside(&cut(200), &cut(500)), Compared::Status);
        assert_eq!(compared(None, Some(&whole), 1024), primary);
        assert_eq!(compared(Some(&whole), None, 1024), copy);
    }
}
