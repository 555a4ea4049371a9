//! Which key exchange each endpoint chose, so that the next handshake offers it a share of that one.
//!
//! A client has to guess (RFC 8446 §4.2.8). Ours guesses X25519MLKEM768, whose share costs more to
//! make than the rest of a ClientHello; to an endpoint that is known to choose another group it sends
//! that group's share alone. It still names the hybrid group as the one it prefers, so that an
//! endpoint that has learnt it may ask for it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls_pki_types::ServerName;

use super::config::provider;
use crate::hash::Configured;

/// The most endpoints whose choice is kept: those of several clusters, at about 100 bytes each.
pub const KNOWN_GROUPS_MAX: usize = 4096;
/// How long a choice is kept. Then the endpoint is offered the preferred group anew, since one that
/// takes the share of another need not say that it has learnt the preferred one.
const KEPT: Duration = Duration::from_secs(60 * 60);

/// An endpoint: one address may serve several names.
type Endpoint = (SocketAddr, ServerName<'static>);

#[derive(Debug, Clone, Copy)]
struct Chosen {
    group: NamedGroup,
    since: Instant,
}

/// The endpoints that chose another group than the one we prefer.
#[derive(Debug, Default)]
pub(super) struct KnownGroups {
    chosen: Mutex<Configured<Endpoint, Chosen>>,
}

impl KnownGroups {
    fn with<T>(&self, act: impl FnOnce(&mut Configured<Endpoint, Chosen>) -> T) -> T {
        // A panic while it was held left whole entries.
        act(&mut self.chosen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn get(&self, endpoint: &Endpoint, now: Instant) -> Option<NamedGroup> {
        let chosen = self.with(|chosen| chosen.get(endpoint).copied())?;
        (now.duration_since(chosen.since) < KEPT).then_some(chosen.group)
    }

    fn set(&self, endpoint: Endpoint, group: NamedGroup, now: Instant) {
        let preferred = provider().kx_groups.first().map(|group| group.name());
        self.with(|chosen| {
            if Some(group) == preferred {
                chosen.remove(&endpoint);
                return;
            }
            let is_kept = |kept: &Chosen| now.duration_since(kept.since) < KEPT;
            // Being used does not prolong it: a busy endpoint would never be asked again.
            if let Some(known) = chosen.get(&endpoint)
                && known.group == group
                && is_kept(known)
            {
                return;
            }
            if chosen.len() >= KNOWN_GROUPS_MAX && !chosen.contains_key(&endpoint) {
                chosen.retain(|_, kept| is_kept(kept));
                if chosen.len() >= KNOWN_GROUPS_MAX {
                    // What is forgotten costs one share that nobody uses.
                    chosen.clear();
                }
            }
            chosen.insert(endpoint, Chosen { group, since: now });
        });
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.with(|chosen| chosen.len())
    }
}

/// What rustls knows of sessions with one address: the group alone.
///
/// T2: no ticket is kept and none given, so that every handshake is a full one, whatever the endpoint
/// sends.
#[derive(Debug)]
pub(super) struct GroupsAlone {
    pub(super) known: Arc<KnownGroups>,
    pub(super) address: SocketAddr,
}

impl ClientSessionStore for GroupsAlone {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        let endpoint = (self.address, server_name);
        self.known.set(endpoint, group, Instant::now());
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        let endpoint = (self.address, server_name.to_owned());
        self.known.get(&endpoint, Instant::now())
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, _: Tls13ClientSessionValue) {}

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: NamedGroup = NamedGroup::X25519MLKEM768;
    const CLASSIC: NamedGroup = NamedGroup::X25519;

    fn endpoint(nth: usize, name: &str) -> Endpoint {
        let port = u16::try_from(nth % 60_000).unwrap();
        let host = u8::try_from(nth / 60_000).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        (SocketAddr::from(([127, 0, 0, host], port)), name)
    }

    #[test]
    fn a_choice_holds_for_its_address_and_name_until_another_is_made() {
        let (known, now) = (KnownGroups::default(), Instant::now());
        let one = endpoint(1, "a.test");
        assert_eq!(known.get(&one, now), None);
        known.set(one.clone(), CLASSIC, now);
        assert_eq!(known.get(&one, now), Some(CLASSIC));
        assert_eq!(known.get(&endpoint(2, "a.test"), now), None);
        assert_eq!(known.get(&endpoint(1, "b.test"), now), None);
        known.set(one.clone(), NamedGroup::secp256r1, now);
        assert_eq!(known.get(&one, now), Some(NamedGroup::secp256r1));
        // The preferred one needs no note.
        known.set(one.clone(), HYBRID, now);
        assert_eq!((known.get(&one, now), known.len()), (None, 0));
    }

    #[test]
    fn an_endpoint_is_offered_the_preferred_group_again_however_busy_it_is() {
        let (known, began) = (KnownGroups::default(), Instant::now());
        let busy = endpoint(1, "a.test");
        known.set(busy.clone(), CLASSIC, began);
        let late = began + KEPT - Duration::from_secs(1);
        known.set(busy.clone(), CLASSIC, late);
        assert_eq!(known.get(&busy, late), Some(CLASSIC));
        assert_eq!(known.get(&busy, began + KEPT), None);
        known.set(busy.clone(), CLASSIC, began + KEPT);
        assert_eq!(known.get(&busy, late + KEPT), Some(CLASSIC));
    }

    #[test]
    fn no_more_endpoints_are_known_than_the_limit() {
        let (known, began) = (KnownGroups::default(), Instant::now());
        for nth in 0..KNOWN_GROUPS_MAX {
            known.set(endpoint(nth, "a.test"), CLASSIC, began);
        }
        assert_eq!(known.len(), KNOWN_GROUPS_MAX);
        // One of those that are known already takes no place.
        known.set(endpoint(0, "a.test"), NamedGroup::secp256r1, began);
        assert_eq!(known.len(), KNOWN_GROUPS_MAX);
        known.set(endpoint(KNOWN_GROUPS_MAX, "a.test"), CLASSIC, began);
        assert_eq!(known.len(), 1);
        for nth in 0..KNOWN_GROUPS_MAX {
            known.set(endpoint(nth, "b.test"), CLASSIC, began + KEPT);
        }
        // What is too old goes first.
        assert_eq!(known.len(), KNOWN_GROUPS_MAX);
    }
}
