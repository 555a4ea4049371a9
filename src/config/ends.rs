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
        sni: match entry.get("sni") {
            // A gateway of an older build tells none: a name that is no host is let in by no rule that asks
            // for one, and may be any that is denied.
            None => Some(""),
            Some(told) => told.as_str(),
        },
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

#[cfg(test)]
mod tests {
    use zeugma_xds::NodeOptions;

    use super::*;

    /// Whether what asked for this server name, of what is listed, goes on with `rules`.
    fn goes_on(rules: &str, sni: Option<Value>) -> bool {
        let dir = tempfile::tempdir().unwrap();
        let mesh = format!(
            "
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshGateway
metadata: {{ name: east-gw }}
spec:
  trustDomain: east.example
  cluster: east
  locality: eu/eu-1
  svid: {{ files: {{ certificate: gw.pem, key: gw.key, bundles: bundles/ }} }}
  listeners:
    mesh: {{ address: '0.0.0.0:15443', role: mesh }}
    apps: {{ address: '127.0.0.1:15001', role: workloads }}
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: {{ name: db, namespace: shop }}
spec:
  port: 5432
  hosts: [one.example, two.example]
  backends: [{{ endpoints: ['10.0.0.1:5432'] }}]
  {rules}
"
        );
        std::fs::write(dir.path().join("mesh.yaml"), mesh).unwrap();
        let checked = zeugma_xds::check(dir.path(), &NodeOptions::default());
        assert!(!checked.findings.has_errors(), "{}", checked.findings);
        let snapshot = &checked.gateways[0].snapshot;
        let mut entry = json!({
            "kind": "tcp",
            "listener": "apps",
            "source": "127.0.0.1:40000",
            "service": "shop/db",
            "port": 5432,
            "source_principal": "spiffe://east.example/ns/shop/sa/cart",
        });
        if let Some(sni) = sni {
            entry["sni"] = sni;
        }
        judged(&entry, snapshot, &Directory::new(snapshot))
            .unwrap()
            .is_ok()
    }

    #[test]
    fn a_rule_by_server_name_is_taken_to_end_what_is_told_without_one() {
        let anybody = "allow: [{ listeners: [apps] }]";
        let denied = "allow: [{ listeners: [apps] }]\n  deny: [{ sni: [one.example] }]";
        let allowed = "allow: [{ sni: [one.example] }]";
        let (one, two) = (Some(json!("one.example")), Some(json!("two.example")));
        for (rules, sni, expected) in [
            (anybody, None, true),
            (denied, one.clone(), false),
            (denied, two.clone(), true),
            (allowed, one, true),
            (allowed, two, false),
            // It came without TLS, or named none.
            (denied, Some(Value::Null), true),
            (allowed, Some(Value::Null), false),
            // Such a gateway is older.
            (denied, None, false),
            (allowed, None, false),
        ] {
            assert_eq!(goes_on(rules, sni.clone()), expected, "{rules}: {sni:?}");
        }
    }
}
