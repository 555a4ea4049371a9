//! The service that a request is for, by the host that it names.

use std::rc::Rc;
use std::sync::Arc;

use http::Method;
use zeugma_core::route::{check_authority, check_authority_port, route_authority};
use zeugma_core::snapshot::ServiceIx;
use zeugma_core::verdict::Reason;

use super::Exchange;
use crate::http::{Routed, headers};
use crate::runtime::Published;

impl Exchange {
    /// Finds the service that the request's host names, within what the SNI allows.
    pub(super) fn route(&mut self, published: &Published) -> Result<ServiceIx, Reason> {
        if (self.head.method == Method::CONNECT && self.upgrade.is_none())
            || !headers::has_target(&self.head)
        {
            return Err(Reason::RequestMalformed);
        }
        let authority = headers::authority(&self.head).ok_or(Reason::AuthorityMissing)?;
        // Callers keep to one on a connection, mostly.
        let before = self.context.routed.borrow().as_ref().map(Rc::clone);
        let known = before
            .filter(|one| one.generation == published.generation && *one.authority == *authority);
        let (routed, service) = match known {
            Some(routed) => {
                let service = routed.service.ok_or(Reason::AuthorityUnknown);
                (routed, service)
            }
            None => {
                let service = self.find(published, authority);
                let routed = Rc::new(Routed {
                    generation: published.generation,
                    service: service.ok(),
                    ..Routed::unknown(authority.into())
                });
                if service.is_ok() {
                    self.context.routed.replace(Some(Rc::clone(&routed)));
                }
                (routed, service)
            }
        };
        if let Some(request) = self.record.facts().and_then(|facts| facts.request.as_mut()) {
            request.routed = Some(routed);
        }
        let service = service?;
        let at = published.snapshot.service(service);
        let name = Arc::clone(&at.name);
        (self.record.entry()).is_of(&name, at.port);
        if let Some(closed) = self.record.facts() {
            closed.service = Some(name);
        }
        Ok(service)
    }

    /// The service that an authority stands for on this connection.
    fn find(&self, published: &Published, authority: &str) -> Result<ServiceIx, Reason> {
        let snapshot = &published.snapshot;
        let listener = published
            .listener(&self.context.origin.listener)
            .ok_or(Reason::Drained)?;
        match (&self.context.sni_service, listener.only) {
            (Some(sni), None) => {
                let any_port = sni.any_port;
                let sni = if sni.generation == published.generation {
                    sni.ix
                } else {
                    let again = snapshot
                        .services
                        .iter()
                        .position(|service| service.name == sni.name && service.port == sni.port);
                    ServiceIx(again.ok_or(Reason::SniUnknown)?)
                };
                if any_port {
                    check_authority_port(snapshot, listener, sni, authority)
                } else {
                    check_authority(snapshot, listener, sni, authority)
                }
            }
            (_, Some(only)) => Ok(only),
            (None, None) => route_authority(snapshot, listener, authority),
        }
    }
}
