//! Letting in: every limit that sheds work is enforced here, once, and what it counts is counted by
//! guards, so that it falls again however the work ends.
//!
//! ```text
//! accept      a source's rate, or whether it is a load balancer   -> Reason, closed at once
//!             memory, connections, handshakes
//! header      a source's rate, where a load balancer tells it     -> Reason, closed at once
//! walk        the route's connections                            -> Reason, alert or close
//! request     memory, the route's requests                       -> Reason, 503
//! pool        the route's requests that wait for a connection    -> Reason, 503
//! ```
//!
//! What a limit means stands in the core's `admission`. Streams and head bytes are limits of one
//! connection, enforced by its HTTP codec.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use zeugma_core::admission::{
    Memory, RouteLimits, Sources, Watermark, connections_within, descriptors_for,
};
use zeugma_core::retry::RetryBudget;
use zeugma_core::snapshot::{ClusterIx, Listener, Snapshot};
use zeugma_core::verdict::Reason;

use crate::memory::MemoryUse;
use crate::runtime::{Published, Shared};
use crate::upstream::Pinned;

/// What is told of who may not say whose connection it is.
pub(crate) const NO_LOAD_BALANCER: &str = "it is none of `proxyProtocol.trusted`";

/// How often memory is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The limits of the whole process.
#[derive(Debug)]
pub(crate) struct Admission {
    connections_max: usize,
    handshakes: AtomicUsize,
    is_memory_short: AtomicBool,
}

impl Admission {
    /// `wanted` connections, or those that the limit of open files holds.
    pub(crate) fn new(wanted: usize, descriptors_max: u64) -> Self {
        let connections_max = connections_within(descriptors_max, wanted);
        if connections_max < wanted {
            let needed = descriptors_for(wanted);
            tracing::warn!(
                code = "ZG0924",
                limit = wanted,
                open_files = descriptors_max,
                "limits.connections is more than the limit of open files holds: at most \
                 {connections_max} connections are let in. Raise that limit to {needed} \
                 (LimitNOFILE={needed} in a systemd unit, ulimit -Hn), or lower limits.connections"
            );
        }
        Self {
            connections_max,
            handshakes: AtomicUsize::new(0),
            is_memory_short: AtomicBool::new(false),
        }
    }

    /// The connections that are let in at once.
    pub(crate) const fn connections_max(&self) -> usize {
        self.connections_max
    }

    /// Whether one more connection is let in; `sources` are those of its listener. Behind a load
    /// balancer its source is not known yet: see [`Rated::admit`]. Whoever else connects there has
    /// no rate, and must cost no more than to be closed.
    ///
    /// # Errors
    /// Why it is shed. Only one thread asks, the control thread or the one worker, so that nobody takes
    /// the last place meanwhile.
    pub(crate) fn connection(
        shared: &Shared,
        listener: &str,
        source: IpAddr,
        sources: &Rated,
    ) -> Result<(), Reason> {
        let published = shared.published.load();
        if let Some(listener) = published.listener(listener) {
            if listener.proxies.is_empty() {
                sources.admit(shared, listener, source)?;
            } else if !listener.trusts(source) {
                return Err(Reason::SourceRefused);
            }
        }
        shared.admission.memory()?;
        if shared.open.load(Ordering::Relaxed) >= shared.admission.connections_max {
            return Err(Reason::ConnectionLimit);
        }
        let handshakes = shared.admission.handshakes.load(Ordering::Relaxed);
        if handshakes >= shared.settings.limits.handshakes {
            return Err(Reason::HandshakeLimit);
        }
        Ok(())
    }

    fn memory(&self) -> Result<(), Reason> {
        if self.is_memory_short.load(Ordering::Relaxed) {
            return Err(Reason::MemoryPressure);
        }
        Ok(())
    }
}

/// The sources of one listening socket, counted under a key that callers do not know.
#[derive(Debug, Clone)]
pub(crate) struct Rated(Arc<Mutex<Sources>>);

impl Rated {
    /// Whether one more connection of `source` is within the listener's rate.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn admit(
        &self,
        shared: &Shared,
        listener: &Listener,
        source: IpAddr,
    ) -> Result<(), Reason> {
        let Some(rate) = listener.handshakes else {
            return Ok(());
        };
        // A panic while it was held left counts that are as good.
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sources.admit(source, rate, shared.now()) {
            Ok(())
        } else {
            Err(Reason::HandshakeRate)
        }
    }
}

/// A connection whose handshake is under way, until dropped.
#[derive(Debug)]
pub(crate) struct Shaking {
    shared: Arc<Shared>,
    /// For its source, which may still be to be told.
    pub(crate) sources: Rated,
}

impl Shaking {
    pub(crate) fn begin(shared: &Arc<Shared>, sources: &Rated) -> Self {
        shared.admission.handshakes.fetch_add(1, Ordering::Relaxed);
        Self {
            shared: Arc::clone(shared),
            sources: sources.clone(),
        }
    }
}

impl Drop for Shaking {
    fn drop(&mut self) {
        let admission = &self.shared.admission;
        admission.handshakes.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is under way of one route on this gateway, over all its workers.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    connections: AtomicU32,
    pending: AtomicU32,
    requests: AtomicU32,
    /// What failed may be tried once more by it.
    pub(crate) budget: RetryBudget,
}

impl UnderWay {
    /// Those of the clusters of `snapshot`, in their order: one for each route, kept from what was
    /// published before.
    pub(crate) fn of(snapshot: &Snapshot, before: Option<&Published>) -> Arc<[Arc<Self>]> {
        let mut routes: HashMap<&str, Arc<Self>> = HashMap::new();
        if let Some(before) = before {
            if are_of_the_same_routes(&before.snapshot, snapshot) {
                return Arc::clone(&before.under_way);
            }
            for (cluster, under_way) in before.snapshot.clusters.iter().zip(&*before.under_way) {
                routes.insert(&cluster.route, Arc::clone(under_way));
            }
        }
        let clusters = snapshot.clusters.iter();
        clusters
            .map(|cluster| Arc::clone(routes.entry(&cluster.route).or_default()))
            .collect()
    }

    const fn count(&self, what: What) -> &AtomicU32 {
        match what {
            What::Connection => &self.connections,
            What::Pending => &self.pending,
            What::Request => &self.requests,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum What {
    Connection,
    Pending,
    Request,
}

impl What {
    const fn limit(self, limits: &RouteLimits) -> Option<u32> {
        match self {
            Self::Connection => limits.connections,
            Self::Pending => limits.pending,
            Self::Request => limits.requests,
        }
    }

    const fn reason(self) -> Reason {
        match self {
            Self::Connection => Reason::RouteConnectionLimit,
            Self::Pending => Reason::PendingLimit,
            Self::Request => Reason::RequestLimit,
        }
    }
}

/// Whether clusters of the same routes stand in the same places.
fn are_of_the_same_routes(one: &Snapshot, other: &Snapshot) -> bool {
    let mut both = one.clusters.iter().zip(&other.clusters);
    one.clusters.len() == other.clusters.len()
        && both.all(|(one, other)| Arc::ptr_eq(one, other) || one.route == other.route)
}

/// One that is under way, until dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    under_way: Arc<UnderWay>,
    what: What,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.under_way
            .count(self.what)
            .fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a connection of a TCP service.
///
/// # Errors
/// Its route has as many as it may.
pub(crate) fn route_connection(published: &Published, to: ClusterIx) -> Result<Counted, Reason> {
    enter(published, to, What::Connection)
}

/// Counts a request.
///
/// # Errors
/// Memory is short, or its route has as many as it may.
pub(crate) fn request(shared: &Shared, to: &Pinned) -> Result<Counted, Reason> {
    shared.admission.memory()?;
    enter(&to.published, to.cluster, What::Request)
}

/// Whether two clusters are one route's, so that a request that is counted for the one is for the
/// other.
pub(crate) fn is_one_route(one: &Pinned, other: &Pinned) -> bool {
    Arc::ptr_eq(
        one.published.under_way_of(one.cluster),
        other.published.under_way_of(other.cluster),
    )
}

/// Counts a request that waits for a connection to an endpoint.
///
/// # Errors
/// As many of its route wait as may.
pub(crate) fn pending(to: &Pinned) -> Result<Counted, Reason> {
    enter(&to.published, to.cluster, What::Pending)
}

fn enter(published: &Published, to: ClusterIx, what: What) -> Result<Counted, Reason> {
    let under_way = Arc::clone(published.under_way_of(to));
    let limit = what.limit(&published.snapshot.cluster(to).policy.limits);
    let limit = limit.unwrap_or(u32::MAX);
    // One step, so that workers that enter at once never are one too many, nor one too few.
    let entered =
        under_way
            .count(what)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                (count < limit).then(|| count + 1)
            });
    match entered {
        Ok(_before) => Ok(Counted { under_way, what }),
        Err(_full) => Err(what.reason()),
    }
}

/// Looks at the memory in use, and sheds new work while it is short; ends at once without a
/// watermark.
pub(crate) async fn watch_memory(shared: Arc<Shared>) {
    let memory = MemoryUse::of_this_process();
    let written = shared.settings.limits.memory_bytes;
    let Some(mut watermark) = Watermark::choose(written, memory.bytes_max()) else {
        return;
    };
    shared.metrics.memory_watermark(watermark.bytes());
    let mut look = tokio::time::interval(LOOK);
    let mut is_readable = true;
    loop {
        // Its first tick is at once.
        look.tick().await;
        look_at_memory(&shared, &memory, &mut watermark, &mut is_readable);
    }
}

/// One look; `is_readable` is whether the last one saw anything, so that it is told once.
fn look_at_memory(
    shared: &Shared,
    memory: &MemoryUse,
    watermark: &mut Watermark,
    is_readable: &mut bool,
) {
    let used = match memory.used_bytes() {
        Ok(used) => used,
        Err(error) => {
            // No descriptor is left, or its cgroup is gone: what was short must not shed for
            // ever, and the next look may see again.
            if std::mem::replace(is_readable, false) {
                tracing::error!(code = "ZG0920", %error, "the memory in use cannot be read; limits.memory has no effect meanwhile");
            }
            watermark.forget();
            shared
                .admission
                .is_memory_short
                .store(false, Ordering::Relaxed);
            return;
        }
    };
    *is_readable = true;
    let (now, changed) = watermark.look(used);
    let is_short = now == Memory::Short;
    let admission = &shared.admission;
    admission.is_memory_short.store(is_short, Ordering::Relaxed);
    shared.metrics.memory(used, is_short);
    match now {
        _ if !changed => {}
        Memory::Short => tracing::warn!(
            code = "ZG0918",
            used,
            watermark = watermark.bytes(),
            "memory is short: new connections and requests are shed"
        ),
        Memory::Enough => tracing::info!(
            code = "ZG0919",
            used,
            watermark = watermark.bytes(),
            "memory is enough again: new connections and requests are let in"
        ),
    }
}

/// Nobody has come to a listening socket yet.
pub(crate) fn sources() -> Rated {
    Rated(Arc::new(Mutex::new(Sources::new(fastrand::u64(..)))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Alone;

    #[test]
    fn who_is_no_load_balancer_is_shed_before_anything_is_done_for_it() {
        let alone = Alone::new(
            "{ apps: { address: '127.0.0.1:0', role: workloads, handshakes: { perSource: 1/s }, \
             proxyProtocol: { trusted: ['127.0.0.1/32'] } } }",
            "",
            1,
        );
        let sources = sources();
        let connection = |source: &str| {
            Admission::connection(&alone.shared, "apps", source.parse().unwrap(), &sources)
        };
        for _ in 0..3 {
            assert_eq!(connection("127.0.0.2"), Err(Reason::SourceRefused));
            // The callers that it hands on have a rate each, and it has none.
            assert_eq!(connection("127.0.0.1"), Ok(()));
            assert_eq!(connection("::ffff:127.0.0.1"), Ok(()));
        }
    }

    #[test]
    fn memory_that_cannot_be_read_for_a_while_sheds_nothing_and_is_read_again() {
        let alone = Alone::new(
            "{ apps: { address: '127.0.0.1:0', role: workloads } }",
            "",
            1,
        );
        let shared = &alone.shared;
        let process = tempfile::tempdir().unwrap();
        let status = process.path().join("status");
        let memory = MemoryUse::below(process.path(), process.path());
        let mut watermark = Watermark::choose(Some(1 << 20), None).unwrap();
        let mut is_readable = true;
        let mut look = || {
            look_at_memory(shared, &memory, &mut watermark, &mut is_readable);
            shared.admission.memory()
        };
        std::fs::write(&status, "VmRSS: 2048 kB\n").unwrap();
        assert_eq!(look(), Err(Reason::MemoryPressure));
        std::fs::remove_file(&status).unwrap();
        assert_eq!((look(), look()), (Ok(()), Ok(())));
        std::fs::write(&status, "VmRSS: 1000 kB\n").unwrap();
        assert_eq!(look(), Ok(()), "it was forgotten that it was short");
        std::fs::write(&status, "VmRSS: 2048 kB\n").unwrap();
        assert_eq!(look(), Err(Reason::MemoryPressure));
    }
}
