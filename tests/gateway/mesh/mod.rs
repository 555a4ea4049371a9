//! What a test of the gateway needs: clusters with their folders, certificates and gateways, the
//! services behind them, and callers.
//!
//! ```text
//! let service = Service::http("one").await;
//! let mut east = Cluster::new("east");
//! east.route("shop/orders", &format!("
//!     protocol: http
//!     backends: [{{ endpoints: ['{}'] }}]
//!     allow: [{{ listeners: [apps] }}]", service.address));
//! let gateway = east.start().await;
//! let reply = get(east.apps, "orders.shop.svc.clusterset.local", "/").await;
//! gateway.log(|line| line["verdict"] == "completed").await;
//! gateway.finish().await;
//! ```

mod agent;
pub(crate) mod by_hand;
mod ca;
mod cluster;
mod control_plane;
mod dns;
mod gateway;
pub(crate) mod hello;
mod http;
mod namespace;
mod pair;
pub(crate) mod secrets;
mod service;
pub(crate) mod strangers;

use std::time::Duration;

pub(crate) use agent::{Agent, Answer, Said};
pub(crate) use ca::{Ca, Identity, alert_of};
pub(crate) use cluster::{Cluster, TOKEN};
pub(crate) use control_plane::{ControlPlane, Heard, Manner};
pub(crate) use dns::{NameServer, Zone};
pub(crate) use gateway::{Gateway, Metrics};
pub(crate) use http::{Body, Reply, collect, empty, frames, full, get, h1, h2, send};
pub(crate) use namespace::{Link, Namespace, is_root_or_skipped};
pub(crate) use pair::Pair;
pub(crate) use service::Service;

/// How long anything may take; far above what it takes on a busy machine, and above the longest pause
/// before a control plane is asked again (30 s), which is drawn.
pub(crate) const DEADLINE: Duration = Duration::from_secs(45);
/// How often what tells nothing by itself (a table in `/proc`, a counter) is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Waits for an event of a test.
///
/// # Panics
/// If it does not come within [`DEADLINE`].
pub(crate) async fn within<T>(what: &str, event: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, event)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// Looks until `look` sees something.
///
/// # Panics
/// If it does not within [`DEADLINE`].
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let mut ticks = tokio::time::interval(LOOK);
    within(what, async {
        loop {
            ticks.tick().await;
            if let Some(seen) = look().await {
                return seen;
            }
        }
    })
    .await
}
