//! What is open in a gateway that runs and would be ended by another configuration, by the core's own
//! recheck.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};
use zeugma_core::identity::SpiffeId;
use zeugma_core::recheck::{Asked, Carried, Directory, Kind, judge};
use zeugma_core::snapshot::Snapshot;

use crate::admin::{Admin, AdminError, field};

/// The most that is judged; the rest is told to be there.
const JUDGED_MAX: &str = "/api/v1/connections?limit=10000";

/// What became of the question.
pub(super) struct Ends {
    /// The gateway that was asked.
    pub(super) gateway: String,
    /// How many connections and requests are open.
    open: u64,
    judged: u64,
    /// How many end, by service and reason.
    ending: BTreeMap<(String, String), u64>,
}

/// Asks which gateway this is.
///
/// # Errors
/// It does not answer.
pub(super) fn name(admin: &Admin) -> Result<String, AdminError> {
    let server = admin.get("/server_info")?;
    Ok(text(&server, "name").to_owned())
}

/// Judges what is open by `snapshot`: who may be let in, not which endpoint may answer.
///
/// # Errors
/// The gateway does not answer.
pub(super) fn of(admin: &Admin, gateway: String, snapshot: &Snapshot) -> Result<Ends, AdminError> {
    let carried = admin.part(JUDGED_MAX, "carried")?;
    let directory = Directory::new(snapshot);
    let mut ends = Ends {
        gateway,
        open: field(&carried, "total").as_u64().unwrap_or_default(),
        judged: 0,
        ending: BTreeMap::new(),
    };
    let entries = field(&carried, "connections").as_array();
    for entry in entries.into_iter().flatten() {
        let Some(judged) = judged(entry, snapshot, &directory) else {
            continue;
        };
        ends.judged += 1;
        if let Err(why) = judged {
            let service = text(entry, "service").to_owned();
            *ends.ending.entry((service, why)).or_default() += 1;
        }
    }
    Ok(ends)
}

fn text<'v>(of: &'v Value, name: &str) -> &'v str {
    field(of, name).as_str().unwrap_or_default()
}

/// Whether an entry goes on, or why it would end; `None` where it is none that this build can judge.
fn judged(entry: &Value, snapshot: &Snapshot, directory: &Directory) -> Option<Result<(), String>> {
    let kind = match text(entry, "kind") {
        "passthrough" => Kind::Passthrough,
        "tcp" => Kind::Bytes,
        "http" => Kind::Session,
        "reports" => Kind::Reports,
        "request" => Kind::Request {
            method: text(entry, "method"),
            path: text(entry, "path"),
            // They are not told: a rule that asks for one is taken to end it.
            headers: None,
        },
        _ => return None,
    };
    let id = |name: &str| SpiffeId::parse(text(entry, name)).ok();
    let (verified, claimed) = (id("source_principal"), id("source_attested"));
    let port = field(entry, "port").as_u64();
    let port = port.and_then(|port| u16::try_from(port).ok());
    let service = match (field(entry, "service").as_str(), port) {
        (Some(service), Some(port)) => directory.find(&Arc::from(service), port),
        (None, _) | (_, None) => Asked::Nothing,
    };
    let source: SocketAddr = text(entry, "source").parse().ok()?;
    let carried = Carried {
        listener: text(entry, "listener"),
        // What the listener was, who handed it on and where a split led it is not told.
        role: None,
        source: source.ip(),
        proxy: None,
        verified: verified.as_ref(),
        claimed: claimed.as_ref(),
        sni: field(entry, "sni").as_str(),
        service,
        led: None,
        kind,
    };
    Some(
        judge(snapshot, &carried)
            .map_err(|ending| ending.detail)
            .map(drop),
    )
}

impl Ends {
    pub(super) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let ending: u64 = self.ending.values().sum();
        let (gateway, judged) = (&self.gateway, self.judged);
        write!(
            out,
            "{gateway} carries {} connections and requests",
            self.open
        )?;
        if judged < self.open {
            write!(out, ", of which {judged} were judged")?;
        }
        writeln!(out, "; {ending} would be ended")?;
        for ((service, why), count) in &self.ending {
            let of = if service.is_empty() {
                "no service"
            } else {
                service
            };
            writeln!(out, "    {count} of {of}: {why}")?;
        }
        Ok(())
    }

    pub(super) fn to_json(&self) -> Value {
        let ending: Vec<_> = (self.ending.iter())
            .map(
                |((service, why), count)| json!({ "service": service, "why": why, "count": count }),
            )
            .collect();
        json!({
            "gateway": self.gateway,
            "open": self.open,
            "judged": self.judged,
            "ending": ending,
        })
    }
}
