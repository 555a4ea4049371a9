//! Where a gateway's configuration comes from, if not from files: a control plane.
//!
//! ```text
//! ask (dials, drives the session) --configuration--> control loop --bound, published--> ask --ACK-->
//!  |                                                                                    |
//!  `--what is told--> known (log, findings, metrics, /api/v1)                           `--> kept on disk
//! ```
//!
//! What was kept serves from the start, until a server has said something else.

mod ask;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use zeugma_core::snapshot::Node;
use zeugma_xds::client::{Client, ClientOptions, Kept, MESSAGE_BYTES_MAX, Resumed, Told};
use zeugma_xds::{ControlPlane, GatewaySettings, Kind, Loaded, STATE_BYTES_MAX};

pub use self::ask::reach_control_plane;
pub(crate) use self::ask::run;
use crate::metrics::Metrics;
use crate::state;

/// The name of the file in the gateway's folder.
pub(crate) const FILE: &str = "control-plane";
/// How long the start waits for a server where there is something that was kept (P43).
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// The most refused resources that are remembered, and told of at once.
const REFUSED_MAX: usize = 100;
/// The code of a control plane that answers ...
const ANSWERS: &str = "ZG0521";
/// ... of one that does not ...
const FAILS: &str = "ZG0522";
/// ... of what is refused ...
const REFUSED: &str = "ZG0523";
/// ... of what was kept ...
const KEPT: &str = "ZG0524";
/// ... of what was kept of another one ...
const FORMER: &str = "ZG0527";
/// ... of what it misses ...
const MISSING: &str = "ZG0525";
/// ... and of a gateway without any configuration.
pub(crate) const AWAITED: &str = "ZG0526";

/// What is known of the control plane.
#[derive(Debug)]
pub(crate) struct Side {
    /// Its servers; none where the files are the configuration.
    addresses: Vec<String>,
    known: Mutex<Known>,
    /// Whether a server has said all there is to know, once.
    is_answered: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Known {
    /// The server that answers.
    connected: Option<usize>,
    /// Why none does.
    lost: Option<Lost>,
    /// When what serves was said last.
    updated: Option<OffsetDateTime>,
    /// Whether what serves is what was kept.
    is_kept: bool,
    /// Who gave that, all of it or what is left of it, where it is none of the servers that are asked.
    former: Option<String>,
    refused: BTreeMap<(Kind, String), String>,
}

#[derive(Debug)]
struct Lost {
    in_a_row: u32,
    server: usize,
    why: String,
    since: OffsetDateTime,
}

/// What a gateway begins with.
pub(crate) struct Begun {
    client: Client,
    side: Side,
}

impl Begun {
    /// Its parts, which there are even where the files are the configuration.
    pub(crate) fn parts(begun: Option<Self>) -> (Option<Client>, Side) {
        match begun {
            Some(Self { client, side }) => (Some(client), side),
            None => (None, Side::none()),
        }
    }
}

/// Begins to be what a control plane says, with what was kept; nothing where the files are the
/// configuration.
pub(crate) fn begin(loaded: &mut Loaded) -> Option<Begun> {
    let settings = &loaded.settings;
    let control_plane = settings.control_plane.as_ref()?;
    let kept = kept(settings);
    let options = options(&loaded.snapshot.node, control_plane);
    let by = kept.as_ref().and_then(Kept::by);
    let former = by.filter(|by| !options.servers.iter().any(|one| one == by));
    let former = former.map(str::to_owned);
    let (client, resumed) = Client::new(options, kept.as_ref());
    let side = Side::of(control_plane);
    if kept.is_some() && resumed.is_none() {
        let path = state::folder_of(&settings.state_dir, &settings.name).join(FILE);
        let error = "nothing of it serves";
        tracing::warn!(code = "ZG0124", path = %path.display(), error, "what the control plane gave last is not used");
    }
    if let Some(resumed) = resumed {
        let Resumed {
            snapshot,
            resources,
            refused,
        } = resumed;
        for (kind, name, why) in refused.iter().take(REFUSED_MAX) {
            let kind = kind.as_str();
            tracing::warn!(
                code = "ZG0124",
                kind,
                name,
                why,
                "a resource that the control plane gave last is left out; the others that were kept serve"
            );
        }
        let at = kept.and_then(|kept| i64::try_from(kept.at()).ok());
        let at = at.and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
        let age = at.map(|at| (OffsetDateTime::now_utc() - at).whole_seconds());
        let version = &snapshot.version;
        match &former {
            None => tracing::info!(
                code = KEPT,
                age_seconds = age,
                %version,
                "the configuration that the control plane gave last, which was kept, serves until it answers"
            ),
            Some(by) => tracing::warn!(
                code = FORMER,
                age_seconds = age,
                %version,
                by,
                "the configuration that another control plane gave, which was kept, serves until one of controlPlane.addresses answers"
            ),
        }
        let mut known = side.lock();
        known.updated = at;
        known.is_kept = true;
        known.former = former;
        drop(known);
        loaded.snapshot = snapshot;
        loaded.resources = resources;
    }
    Some(Begun { client, side })
}

fn kept(settings: &GatewaySettings) -> Option<Kept> {
    let (dir, name) = (&settings.state_dir, &settings.name);
    let read = state::read(dir, name, FILE, STATE_BYTES_MAX).map_err(|error| error.to_string());
    let kept = read.and_then(|bytes| {
        let kept = bytes.map(|bytes| Kept::from_bytes(&bytes)).transpose();
        kept.map_err(|error| error.to_string())
    });
    kept.unwrap_or_else(|error| {
        let path = state::folder_of(dir, name).join(FILE);
        tracing::warn!(code = "ZG0124", path = %path.display(), error, "what the control plane gave last cannot be read");
        None
    })
}

fn options(node: &Node, control_plane: &ControlPlane) -> ClientOptions {
    ClientOptions {
        node: node.clone(),
        servers: control_plane
            .addresses
            .iter()
            .map(|one| one.origin())
            .collect(),
        on_empty: control_plane.on_empty,
        message_bytes_max: MESSAGE_BYTES_MAX,
    }
}

impl Side {
    /// The files are the configuration.
    pub(crate) fn none() -> Self {
        Self {
            addresses: Vec::new(),
            known: Mutex::default(),
            is_answered: watch::channel(true).0,
        }
    }

    fn of(control_plane: &ControlPlane) -> Self {
        Self {
            addresses: control_plane
                .addresses
                .iter()
                .map(ToString::to_string)
                .collect(),
            known: Mutex::default(),
            is_answered: watch::channel(false).0,
        }
    }

    /// Whether there is nothing to serve yet.
    pub(crate) fn is_awaited(&self) -> bool {
        !self.addresses.is_empty() && self.lock().updated.is_none()
    }

    /// Whether what serves is what was kept.
    pub(crate) fn is_kept(&self) -> bool {
        self.lock().is_kept
    }

    /// Waits until a server has said all there is to know, or for so long as a start may take.
    pub(crate) async fn answered(&self) {
        let mut answered = self.is_answered.subscribe();
        let waiting = answered.wait_for(|is_answered| *is_answered);
        // Late: what was kept serves, or nothing does and the gateway is not ready.
        drop(tokio::time::timeout(ANSWER_WAIT, waiting).await);
    }

    /// Tells when what was kept was said.
    pub(crate) fn tell_age(&self, metrics: &Metrics) {
        if let Some(at) = self.lock().updated {
            metrics.control_plane_updated(at.unix_timestamp());
        }
    }

    /// What a server said last serves.
    fn applied(&self, now: OffsetDateTime, metrics: &Metrics) {
        let mut known = self.lock();
        known.updated = Some(now);
        known.is_kept = false;
        known.former = None;
        drop(known);
        metrics.control_plane_updated(now.unix_timestamp());
    }

    /// All that is wanted is there.
    fn complete(&self) {
        self.is_answered
            .send_if_modified(|is_answered| !std::mem::replace(is_answered, true));
    }

    /// Takes what is told.
    fn take(&self, told: Told, metrics: &Metrics) {
        match told {
            Told::Connected(server) => self.connected(server, metrics),
            Told::Lost(server, why) => self.lost(server, why, metrics),
            Told::Accepted(_) => metrics.control_plane_answered("accepted"),
            Told::Refused(kind, name, why) => self.refused(kind, name, why, metrics),
            Told::Mended(kind, name) => {
                let mut known = self.lock();
                known.refused.remove(&(kind, name));
                metrics.control_plane_refused(known.refused.len());
            }
            Told::Missing(kind, name) => {
                let kind = kind.as_str();
                tracing::warn!(
                    code = MISSING,
                    kind,
                    name,
                    "the control plane has not sent a resource in time that another refers to: it goes on without"
                );
            }
            Told::Expired(kind, name) => {
                let kind = kind.as_str();
                tracing::warn!(
                    code = MISSING,
                    kind,
                    name,
                    "the time to live of a resource is over"
                );
            }
            Told::Trouble(kind, name, why) => {
                let kind = kind.as_str();
                tracing::warn!(
                    code = MISSING,
                    kind,
                    name,
                    why,
                    "the control plane could not make a resource; what is there stays"
                );
            }
            Told::Strange(url) => {
                tracing::debug!(url, "the control plane sent what nobody asked for");
            }
        }
    }

    fn connected(&self, server: usize, metrics: &Metrics) {
        let address = self.address(server);
        tracing::info!(code = ANSWERS, address, "the control plane answers");
        let mut known = self.lock();
        known.connected = Some(server);
        known.lost = None;
        drop(known);
        metrics.control_plane_connected(true);
    }

    fn lost(&self, server: usize, why: String, metrics: &Metrics) {
        metrics.control_plane_connected(false);
        let mut known = self.lock();
        known.connected = None;
        let before = known.lost.take();
        let is_news =
            (before.as_ref()).is_none_or(|lost| (lost.server, &lost.why) != (server, &why));
        if is_news {
            let address = self.address(server);
            let serves = known.updated.is_some();
            tracing::warn!(
                code = FAILS,
                address,
                why,
                serves,
                "the control plane fails; what it gave last serves, and it is asked again"
            );
        }
        let (in_a_row, since) = before.map_or_else(
            || (1, OffsetDateTime::now_utc()),
            |lost| (lost.in_a_row.saturating_add(1), lost.since),
        );
        known.lost = Some(Lost {
            in_a_row,
            server,
            why,
            since,
        });
    }

    fn refused(&self, kind: Kind, name: String, why: String, metrics: &Metrics) {
        metrics.control_plane_answered("refused");
        let mut known = self.lock();
        let is_new = known.refused.get(&(kind, name.clone())) != Some(&why);
        if is_new && known.refused.len() < REFUSED_MAX {
            let kind = kind.as_str();
            tracing::error!(
                code = REFUSED,
                kind,
                name,
                why,
                "a resource of the control plane is refused; its last good one serves, if there is one"
            );
        }
        if known.refused.len() < REFUSED_MAX {
            known.refused.insert((kind, name), why);
        }
        metrics.control_plane_refused(known.refused.len());
    }

    fn address(&self, server: usize) -> &str {
        self.addresses.get(server).map_or("", String::as_str)
    }

    /// What is wrong at present, as findings.
    pub(crate) fn findings(&self) -> Vec<Value> {
        let finding = |code, severity, message: String, help| json!({ "code": code, "severity": severity, "message": message, "help": help });
        let known = self.lock();
        let mut found = Vec::new();
        if let Some(lost) = &known.lost {
            let (times, why) = (lost.in_a_row, &lost.why);
            let (severity, serves) = match known.updated {
                Some(_) => ("warning", "what it gave last serves"),
                None => ("error", "nothing serves"),
            };
            let address = self.address(lost.server);
            let message = format!(
                "the control plane at {address} fails, {times} times in a row: {why}; {serves}"
            );
            found.push(finding(
                FAILS,
                severity,
                message,
                "look whether it runs, and at `controlPlane`",
            ));
        } else if !self.addresses.is_empty() && known.updated.is_none() {
            let message = "the control plane has not sent a configuration yet; nothing serves";
            found.push(finding(
                AWAITED,
                "error",
                message.to_owned(),
                "look at the control plane's log",
            ));
        }
        if let Some(by) = &known.former {
            let message = format!(
                "what serves is, all or some of it, what the control plane at {by} gave before the start, which is not asked any more"
            );
            let help = "see that one of `controlPlane.addresses` answers, and with all of it";
            found.push(finding(FORMER, "warning", message, help));
        }
        for ((kind, name), why) in &known.refused {
            let message = format!(
                "{} `{name}` of the control plane is refused: {why}",
                kind.as_str()
            );
            found.push(finding(
                REFUSED,
                "error",
                message,
                "change it at the control plane",
            ));
        }
        found
    }

    /// How it stands; null where the files are the configuration.
    pub(crate) fn to_json(&self, now: OffsetDateTime) -> Value {
        if self.addresses.is_empty() {
            return Value::Null;
        }
        let known = self.lock();
        let moment = |at: OffsetDateTime| at.format(&Rfc3339).ok();
        json!({
            "addresses": self.addresses,
            "connected": known.connected.map(|server| self.address(server)),
            "failing_since": known.lost.as_ref().and_then(|lost| moment(lost.since)),
            "why": known.lost.as_ref().map(|lost| &lost.why),
            "updated": known.updated.and_then(moment),
            "age_seconds": known.updated.map(|at| (now - at).whole_seconds().max(0)),
            "kept": known.is_kept,
            "kept_from": known.former,
            "refused": known.refused.len(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing that holds it can fail.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
