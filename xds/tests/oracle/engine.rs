//! What the engine says, asked step by step as the gateway asks it.

use std::fs;

use zeugma_core::authorize::{Asking, Evidence, Verdict, authorize_session, evidence};
use zeugma_core::engine::{
    Arrival, Carry, Decision, Headers, Refusal, Request, SniPort, Wants, decide,
};
use zeugma_core::hello::ClientHello;
use zeugma_core::identity::SpiffeId;
use zeugma_core::shares::Shares;
use zeugma_core::snapshot::{Listener, Protocol, ServiceIx, Snapshot};
use zeugma_core::verdict::Reason;
use zeugma_xds::{Code, Findings, Loaded, NodeOptions, Place, Severity, load};

use crate::opinion::Answer;
use crate::world::{Call, Opening, World};

/// A loaded world.
pub(crate) struct Engine {
    snapshot: Snapshot,
    shares: Shares,
    /// The place in its list of the entry on each line.
    entries: Vec<usize>,
}

impl Engine {
    pub(crate) fn new(world: &World) -> Self {
        let snapshot = match loaded(world) {
            Ok(loaded) => loaded.snapshot,
            Err(findings) => panic!("{findings}\n{}", world.yaml()),
        };
        let yaml = world.yaml();
        let mut nth = 0;
        let entries = yaml.lines().map(|line| {
            nth = if line.starts_with("    - ") {
                nth + 1
            } else {
                0
            };
            nth
        });
        Self {
            shares: Shares::all_healthy(&snapshot),
            entries: entries.collect(),
            snapshot,
        }
    }

    pub(crate) fn answer(&self, call: &Call) -> Answer {
        let listener = self.snapshot.listener(call.listener).unwrap();
        let hello = match &call.opening {
            Opening::Tls(sni) => Some(ClientHello {
                sni: sni.clone(),
                ..ClientHello::default()
            }),
            Opening::Plaintext => None,
        };
        let first = match &hello {
            Some(hello) => Wants::Hello(hello),
            None => Wants::Plaintext,
        };
        let request = Request {
            authority: &call.request.authority,
            method: call.request.method,
            path: &call.request.path,
            headers: Headers(&|name, tell| {
                let values =
                    (call.request.headers.iter()).filter(|(of, _)| of.eq_ignore_ascii_case(name));
                values.for_each(|(_, value)| tell(value.as_bytes()));
            }),
        };
        let id = SpiffeId::parse(&call.id).unwrap();
        let claim = call
            .claim
            .as_deref()
            .map(|claim| SpiffeId::parse(claim).unwrap());
        match self.ask(call, listener, Evidence::Network, first) {
            Decision::ReadHttp => {
                let wants = Wants::Request(request);
                self.end(call, listener, Evidence::Network, wants)
            }
            Decision::Terminate(sni, port) => {
                let of = evidence(&self.snapshot, call.source, &id, claim.as_ref());
                let is_http = self.snapshot.service(sni).protocol == Protocol::Http
                    || port == SniPort::ByAuthority;
                let wants = if is_http {
                    Wants::RequestInside { sni, port, request }
                } else {
                    Wants::Inside(sni)
                };
                self.end(call, listener, of, wants)
            }
            decision @ (Decision::Carry(_) | Decision::Refuse(_) | Decision::Report) => {
                self.told(&decision, Evidence::Network)
            }
        }
    }

    fn ask<'a>(
        &'a self,
        call: &'a Call,
        listener: &'a Listener,
        evidence: Evidence<'a>,
        wants: Wants<'a>,
    ) -> Decision<'a> {
        let arrival = Arrival {
            listener,
            source: call.source,
            evidence,
            sni: None,
            wants,
        };
        decide(&self.snapshot, &self.shares, &arrival, &|_| 0, 1)
    }

    fn end(
        &self,
        call: &Call,
        listener: &Listener,
        evidence: Evidence<'_>,
        wants: Wants<'_>,
    ) -> Answer {
        let arrival = Arrival {
            listener,
            source: call.source,
            evidence,
            sni: named(call),
            wants,
        };
        let decision = decide(&self.snapshot, &self.shares, &arrival, &|_| 0, 1);
        if let Decision::Carry(carry) = &decision {
            self.check_session(call, listener, evidence, carry.service);
        }
        self.told(&decision, evidence)
    }

    /// A session in which one request is let in is not refused as a whole.
    fn check_session(
        &self,
        call: &Call,
        listener: &Listener,
        evidence: Evidence<'_>,
        service: ServiceIx,
    ) {
        let session = Asking {
            listener,
            source: call.source,
            evidence: match evidence {
                Evidence::Asserted { by, .. } => Evidence::Verified(by),
                same @ (Evidence::Network | Evidence::Verified(_)) => same,
            },
            sni: named(call).filter(|_| evidence != Evidence::Network),
            method: None,
            path: None,
            headers: None,
        };
        let verdict = authorize_session(&self.snapshot, service, &session);
        assert!(
            !matches!(verdict, Verdict::Deny { .. }),
            "the session is {verdict:?}, and this request in it is carried: {call:?}"
        );
    }

    fn told(&self, decision: &Decision<'_>, evidence: Evidence<'_>) -> Answer {
        match decision {
            Decision::Carry(Carry {
                service,
                rule,
                matched,
                ..
            }) => {
                let service = self.snapshot.service(*service);
                Answer::Carried {
                    route: service.name.to_string(),
                    port: service.port,
                    allow: rule.map(|rule| {
                        let position = service.policy.allow[rule].position.as_ref();
                        self.entries[position.unwrap().line as usize - 1] - 1
                    }),
                    rule: matched.map(|matched| matched.rule),
                    attested: matches!(evidence, Evidence::Asserted { .. }),
                }
            }
            // Why nobody has such a name makes no difference.
            Decision::Refuse(Refusal {
                reason: Reason::SniMalformed,
                ..
            })
            | Decision::Refuse(Refusal {
                reason: Reason::NotExported,
                service: None,
                ..
            }) => Answer::Refused("sni-unknown"),
            Decision::Refuse(refusal) => Answer::Refused(refusal.reason.label()),
            Decision::Terminate(..) | Decision::ReadHttp | Decision::Report => {
                panic!("{decision:?} is no end")
            }
        }
    }
}

/// What the TLS of a call names.
fn named(call: &Call) -> Option<&str> {
    match &call.opening {
        Opening::Tls(sni) => sni.as_deref(),
        Opening::Plaintext => None,
    }
}

/// The entries of `allow` and `deny` for which a world is refused, by route, list and place.
pub(crate) fn refused(world: &World) -> Vec<(String, &'static str, usize)> {
    let Err(findings) = loaded(world) else {
        return Vec::new();
    };
    let yaml = world.yaml();
    let lines: Vec<&str> = yaml.lines().collect();
    let mut entries = Vec::new();
    for finding in findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
    {
        assert_eq!(finding.code, Code::NoEffect, "{finding:?}\n{yaml}");
        entries.push(entry_at(&lines, finding.place.as_ref().unwrap()));
    }
    entries.sort();
    entries.dedup();
    entries
}

/// The entry that a finding points at.
fn entry_at(lines: &[&str], place: &Place) -> (String, &'static str, usize) {
    let path = place.path.strip_prefix("spec.").unwrap();
    let (list, rest) = path.split_once('[').unwrap();
    let nth = rest.split(']').next().unwrap().parse().unwrap();
    let above = &lines[..usize::try_from(place.line).unwrap()];
    let metadata = above
        .iter()
        .rev()
        .find_map(|line| line.strip_prefix("metadata: "));
    let metadata: serde_json::Value = serde_json::from_str(metadata.unwrap()).unwrap();
    let list = if list == "allow" { "allow" } else { "deny" };
    (metadata["name"].as_str().unwrap().to_owned(), list, nth)
}

fn loaded(world: &World) -> Result<Loaded, Findings> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh.yaml");
    fs::write(&path, world.yaml()).unwrap();
    load(&path, &NodeOptions::default())
}
