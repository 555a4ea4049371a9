//! What a session takes of a response that is of one kind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use zeugma_core::time::Time;

use super::super::entry::{Next, resource_of};
use super::super::{Fault, Limits, Name, Notice, References, Resource, read};
use super::{FAULT_CHARS, OfKind, cut};
use crate::body::Body;
use crate::pb::{self, Any, discovery};
use crate::session::Kind;

/// `NOT_FOUND` and `PERMISSION_DENIED` of gRPC.
const NOT_FOUND: i32 = 5;
const DENIED: i32 = 7;

/// A resource whose body is being packed.
struct New {
    name: Name,
    version: Arc<str>,
    references: References,
}

/// Takes what one response says of a kind.
pub(in super::super) struct Taking<'a> {
    pub(super) of: &'a mut OfKind,
    pub(super) kind: Kind,
    pub(super) limits: Limits,
    /// There is room for so many more.
    pub(super) resources: usize,
    pub(super) bytes: usize,
    pub(super) now: Time,
    pub(super) names: BTreeSet<Name>,
    pub(super) faults: Vec<Fault>,
    pub(super) told: Vec<Notice>,
}

impl Taking<'_> {
    /// What was touched, what is wrong, and what is to be told.
    pub(in super::super) fn end(self) -> (BTreeSet<Name>, Vec<Fault>, Vec<Notice>) {
        (self.names, self.faults, self.told)
    }

    pub(in super::super) fn fault(&mut self, name: &str, why: String) {
        let name = cut(name, FAULT_CHARS).into();
        self.faults.push(Fault { name, why });
    }

    /// Takes resources; those of a full answer have its version.
    pub(in super::super) fn resources(
        &mut self,
        resources: Vec<discovery::Resource>,
        version: Option<Arc<str>>,
    ) {
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        for resource in &resources {
            *times.entry(&resource.name).or_default() += 1;
        }
        let twice: BTreeSet<String> = (times.into_iter())
            .filter(|(_, times)| *times > 1)
            .map(|(name, _)| name.to_owned())
            .collect();
        for name in &twice {
            self.fault(name, "it comes twice in one response".to_owned());
            self.names.insert(name.as_str().into());
        }
        let (mut new, mut bodies) = (Vec::new(), Vec::new());
        for resource in resources {
            // P17; which of them is meant nobody knows.
            if !twice.contains(&resource.name) {
                let name = resource.name.clone();
                match self.resource(resource, version.as_ref()) {
                    Ok(Some((one, body))) => {
                        new.push(one);
                        bodies.push(body);
                    }
                    Ok(None) => {}
                    Err(why) => self.fault(&name, why),
                }
            }
        }
        let bodies = Body::pack(bodies, &mut self.of.patterns);
        for (
            New {
                name,
                version,
                references,
            },
            body,
        ) in new.into_iter().zip(bodies)
        {
            let entry = self.of.entries.entry(name).or_default().entry();
            entry.next = Some(Next::Put(Resource {
                version: Some(version),
                body: Arc::new(body),
                references,
            }));
        }
    }

    /// Takes one; what is new of it is to be packed, and to be put there.
    fn resource(
        &mut self,
        resource: discovery::Resource,
        version: Option<&Arc<str>>,
    ) -> Result<Option<(New, Any)>, String> {
        if resource.name.len() > self.limits.name_bytes {
            return Err(format!("its name is over {} bytes", self.limits.name_bytes));
        }
        let name: Name = resource.name.as_str().into();
        if !self.of.is_wildcard && !self.of.wanted.contains(&name) {
            // P16
            return Ok(None);
        }
        self.names.insert(Arc::clone(&name));
        let version = version.map_or_else(|| resource.version.as_str().into(), Arc::clone);
        let expires_at = pb::from_duration(resource.ttl.as_ref()).map(|ttl| self.now + ttl);
        if let (Some(body), None) = (&resource.resource, expires_at)
            && self.of.comes_again(&name, &version, body)
        {
            return Ok(None);
        }
        self.of.touch(&name);
        let entry = (self.of.entries.entry(Arc::clone(&name)).or_default()).entry();
        let Some(body) = resource.resource else {
            // P44: a heartbeat.
            let is_same =
                (entry.newest()).is_some_and(|newest| newest.version.as_ref() == Some(&version));
            if !is_same {
                self.of.forget(&name);
                return Err("it has no body, and is not the version that is there".to_owned());
            }
            entry.expires_at = expires_at;
            return Ok(None);
        };
        // What another control plane gave is handed on though it is the same: whose it is changes.
        let newest = entry.newest().filter(|newest| newest.version.is_some());
        if newest.is_some_and(|newest| newest.body.is(&body)) && !entry.is_open() {
            // P36
            if let Some(newest) = entry.newest_mut() {
                newest.version = Some(version);
            }
            if entry.next.is_none() && entry.applying.is_none() {
                entry.refused = None;
            }
            entry.expires_at = expires_at;
            return Ok(None);
        }
        let had = usize::from(entry.resources().next().is_some());
        // What it takes the place of at once; the others stay until it is judged.
        let had_bytes = resource_of(entry.next.as_ref()).map_or(0, |one| one.body.len());
        let bytes = body.value.len();
        let made = if self.resources + had == 0 {
            Err(format!(
                "there are {} resources already, the most that are kept",
                self.limits.resources
            ))
        } else if self.bytes + had_bytes < bytes {
            Err(format!(
                "with it all resources are over {} bytes, the most that are kept",
                self.limits.bytes
            ))
        } else {
            read::references(self.kind, &name, &body)
        };
        let references = match made {
            Ok(references) => references,
            Err(why) => {
                // What came before it and was not judged yet is not what is meant any more.
                entry.forget_unjudged();
                self.of.forget(&name);
                return Err(why);
            }
        };
        self.resources = self.resources + had - 1;
        self.bytes = self.bytes + had_bytes - bytes;
        entry.expires_at = expires_at;
        entry.missing_at = None;
        let new = New {
            name,
            version,
            references,
        };
        Ok(Some((new, body)))
    }

    /// Takes a name of which there is no resource any more.
    pub(in super::super) fn removed(&mut self, name: &str) {
        let name: Name = name.into();
        if !self.of.is_wildcard && !self.of.wanted.contains(&name) {
            return;
        }
        if self.of.faulty.contains(&name) {
            self.names.insert(Arc::clone(&name));
        }
        let Some(entry) = self.of.entry_mut(&name) else {
            return;
        };
        entry.missing_at = None;
        let is_gone = entry.resources().next().is_none() && entry.is_absent;
        if !is_gone {
            entry.next = Some(Next::Removed);
            self.names.insert(name);
        }
    }

    /// Takes away all that a full answer does not name.
    pub(in super::super) fn absent(&mut self) {
        let known = self.of.entries.keys().chain(&self.of.faulty);
        let absent = known.filter(|name| !self.names.contains(*name));
        let absent: Vec<Name> = absent.cloned().collect();
        let faulty: BTreeSet<Name> = self
            .faults
            .iter()
            .map(|one| Arc::clone(&one.name))
            .collect();
        for name in absent {
            if !faulty.contains(&name) {
                self.removed(&name);
            }
        }
    }

    /// Takes what a server could not make (P28).
    pub(in super::super) fn errors(&mut self, errors: Vec<discovery::ResourceError>) {
        for error in errors {
            let name = error.resource_name.unwrap_or_default().name;
            let detail = error.error_detail.unwrap_or_default();
            if detail.code == NOT_FOUND {
                self.removed(&name);
            }
            let known = self.of.entry_mut(&name.as_str().into());
            if detail.code == DENIED
                && let Some(entry) = known.filter(|entry| entry.is_unknown())
            {
                // Nothing is there that could stay (P41), and nothing will come.
                entry.next = Some(Next::Missing);
                entry.missing_at = None;
            }
            let why = cut(&detail.message, FAULT_CHARS);
            let name = cut(&name, FAULT_CHARS);
            (self.told).push(Notice::Trouble(
                self.kind,
                name,
                format!("{}: {why}", detail.code),
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::client::entry::Slot;
    use crate::session::client::fixture::fixed;
    use crate::session::client::noted::Referred;

    /// What broke: a control plane that says all of it again had each resource looked at as if it were new.
    #[test]
    fn p36_what_comes_again_as_it_is_held_is_not_touched_but_for_its_version() {
        let names = ["a", "b"];
        let mut of = OfKind::new(Kind::Cluster);
        for name in names {
            let resource = Resource {
                version: Some("1".into()),
                body: Arc::new(fixed(name, "").into()),
                references: References::default(),
            };
            of.hold(name.into(), resource);
        }
        of.settle(&mut Referred::default());
        let take = |of: &mut OfKind, version: &str, alt: &str| {
            let resources = names.map(|name| discovery::Resource {
                name: name.to_owned(),
                resource: Some(fixed(name, if name == "a" { alt } else { "" })),
                ..Default::default()
            });
            let room = (Limits::default(), 1000, 1 << 20);
            let mut taking = of.taking(Kind::Cluster, room, Time::ZERO);
            taking.resources(resources.into(), Some(version.into()));
            let (spoken_of, faults, _) = taking.end();
            assert_eq!((spoken_of.len(), faults.len()), (2, 0));
            of.touched
                .iter()
                .map(|name| name.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(take(&mut of, "2", ""), [""; 0]);
        assert!((of.entries.values()).all(|slot| matches!(slot, Slot::Rests(_))));
        let versions = of.versions();
        assert!(
            names.iter().all(|name| versions[*name] == "2"),
            "{versions:?}"
        );
        assert_eq!(take(&mut of, "3", "other"), ["a"]);
        assert!(matches!(of.entries["b"], Slot::Rests(_)));
    }
}
