//! Whether a request is copied to another route. A copy never delays or changes the request.

use crate::balance::fraction;
use crate::retry::Sender;
use crate::snapshot::Mirror;

/// Tells a mirror's draw from those of level and endpoint.
const MIRROR_PART: u64 = 0x6d69_7272;

/// What a mirror makes of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copying {
    /// It is copied, and one more copy is under way.
    Copy,
    /// It is not meant to be copied.
    Skip,
    /// It should have been copied and is not; this is counted.
    Drop(Dropped),
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

/// Whether a request is a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// It is answered to its caller.
    Primary,
    /// Its answer is thrown away.
    Mirrored,
}

/// Decides about the request's copy for the mirror at `ix` of its service; `in_flight` are this
/// mirror's copies under way on this worker, which the caller counts.
#[must_use]
pub fn copying(
    mirror: &Mirror,
    ix: usize,
    original: &Original,
    in_flight: usize,
    draw: u64,
) -> Copying {
    if original.kind == Kind::Mirrored || original.sender == Sender::PeerGateway {
        return Copying::Skip;
    }
    // Each mirror draws for itself: 5 % here and 5 % there are not the same 5 %.
    let part = MIRROR_PART.wrapping_add(u64::try_from(ix).unwrap_or_default());
    if fraction(draw, part) >= mirror.share {
        return Copying::Skip;
    }
    let limit = u64::try_from(mirror.body_bytes_max).unwrap_or(u64::MAX);
    if original.body_bytes.is_some_and(|bytes| bytes > limit) {
        return Copying::Drop(Dropped::Body);
    }
    if in_flight >= mirror.in_flight_max {
        return Copying::Drop(Dropped::InFlight);
    }
    Copying::Copy
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        }
    }

    const ORIGINAL: Original = Original {
        sender: Sender::Caller,
        kind: Kind::Primary,
        body_bytes: None,
    };

    #[test]
    fn the_share_is_drawn_and_each_mirror_draws_for_itself() {
        let mirror = mirror(0.05);
        let is = |ix, draw| copying(&mirror, ix, &ORIGINAL, 0, draw) == Copying::Copy;
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
            assert_eq!(copying(&mirror(1.0), 0, &ORIGINAL, 0, draw), Copying::Copy);
            assert_eq!(copying(&mirror(0.0), 0, &ORIGINAL, 0, draw), Copying::Skip);
        }
    }

    #[test]
    fn copies_are_never_copied_and_peers_have_copied_already() {
        let copy = Original {
            kind: Kind::Mirrored,
            ..ORIGINAL
        };
        assert_eq!(copying(&mirror(1.0), 0, &copy, 0, 1), Copying::Skip);
        let peer = Original {
            sender: Sender::PeerGateway,
            ..ORIGINAL
        };
        assert_eq!(copying(&mirror(1.0), 0, &peer, 0, 1), Copying::Skip);
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
        assert_eq!(of(63, Some(1024)), Copying::Copy);
        assert_eq!(of(64, None), Copying::Drop(Dropped::InFlight));
        assert_eq!(of(0, Some(1025)), Copying::Drop(Dropped::Body));
    }
}
