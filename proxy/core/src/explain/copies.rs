//! What the mirrors of a service make of what was asked, as the gateway has it: [`copying`] decides, and a
//! plan of the mirror's own says where the copy goes.

use crate::engine::{Arrival, sender_of};
use crate::fleet::Fleet;
use crate::mirror::{
    Copying, Dropped, Kind, Original, attempts, copying, nothing_to_try, takes_bytes,
};
use crate::plan::{Attempt, plan};
use crate::snapshot::{Cluster, ClusterIx, Mirror, Protocol, Service};

use super::{Asked, Destination, Question, see};

/// The most mirrors that are shown; the rest is counted.
pub const MIRRORS_MAX: usize = 16;

/// What one mirror makes of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Copied {
    /// Its place in [`Service::mirrors`].
    pub mirror: usize,
    /// What becomes of the copy, with no other under way; `None`: what would be copied is refused before.
    pub copying: Option<Copying>,
    /// Where copies go; its attempts are those of this one, of a request no more than one.
    pub to: Option<Destination>,
}

impl Asked<'_> {
    /// What each mirror of a service makes of it; `is_carried`: it comes as far as to be copied.
    pub(super) fn copies(
        &self,
        service: &Service,
        arrival: &Arrival<'_>,
        fleet: &Fleet,
        is_carried: bool,
    ) -> Vec<Copied> {
        let original = Original {
            sender: sender_of(self.world.0, arrival),
            kind: kind(self.question, arrival),
            body_bytes: body_bytes(self.question, arrival),
        };
        let all = service.mirrors.iter().enumerate().take(MIRRORS_MAX);
        all.map(|(nth, mirror)| {
            let copying = copying(mirror, nth, &original, 0, self.beside.draw);
            let to = self.copied_to(mirror, service.protocol, arrival, fleet);
            let is_untaken = to.as_ref().is_none_or(|to| to.attempts.is_empty());
            let copying = match copying {
                Copying::Copy(_) if is_untaken => Copying::Drop(self.untaken(mirror.to)),
                decided @ (Copying::Copy(_) | Copying::Skip(_) | Copying::Drop(_)) => decided,
            };
            Copied {
                mirror: nth,
                copying: is_carried.then_some(copying),
                to,
            }
        })
        .collect()
    }

    /// Where the copies of a mirror go, and the endpoints that this one may be given to.
    fn copied_to(
        &self,
        mirror: &Mirror,
        protocol: Protocol,
        arrival: &Arrival<'_>,
        fleet: &Fleet,
    ) -> Option<Destination> {
        let (snapshot, shares) = self.world;
        let (cluster, of) = (
            snapshot.cluster(mirror.to),
            shares.clusters.get(mirror.to.0)?,
        );
        let keyed = self.keyed(mirror.to, arrival);
        let draw = keyed.and_then(|keyed| keyed.key);
        // What is under way at the endpoints of other clusters nobody told.
        let planned = plan(cluster, of, &|_| 0, draw.unwrap_or(self.beside.draw));
        let full = (of.metered.as_ref()).map(|metered| metered.full(self.beside.now));
        let planned = attempts(planned.within(full.unwrap_or_default()));
        let tried: Vec<Attempt> = match protocol {
            // A copy of a request is not sent again.
            Protocol::Http => planned.take(1).collect(),
            Protocol::Tcp => planned.filter(|one| takes(cluster, one)).collect(),
        };
        let to = (mirror.to, of);
        Some(see(snapshot, to, fleet, tried, self.beside.now))
    }

    fn untaken(&self, to: ClusterIx) -> Dropped {
        let of = self.world.1.clusters.get(to.0);
        of.map_or(Dropped::Unreachable, nothing_to_try)
    }
}

fn takes(cluster: &Cluster, attempt: &Attempt) -> bool {
    takes_bytes(cluster.endpoint(attempt.endpoint))
}

/// The kind of what is asked: what is said to be a copy comes from a peer's gateway, and is not copied for
/// that alone.
fn kind(question: &Question, arrival: &Arrival<'_>) -> Kind {
    let says = |name: &str, token: &str| {
        let mut values = question.headers.iter().filter(|(header, _)| header == name);
        values.any(|(_, value)| {
            let mut tokens = value.split(',').map(str::trim);
            tokens.any(|one| one.eq_ignore_ascii_case(token))
        })
    };
    let is_upgrade = arrival.request().is_some()
        && question.method == "GET"
        && says("connection", "upgrade")
        && says("upgrade", "websocket");
    if is_upgrade {
        Kind::Upgraded
    } else {
        Kind::Primary
    }
}

/// How long its body is, where the question has that header.
fn body_bytes(question: &Question, arrival: &Arrival<'_>) -> Option<u64> {
    arrival.request()?;
    let mut headers = question.headers.iter();
    let (_, value) = headers.find(|(name, _)| name == "content-length")?;
    value.parse().ok()
}
