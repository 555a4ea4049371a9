//! What a question leaves open: the listener, the address, whether TLS comes first.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::identity::{IdPattern, SpiffeId};
use crate::listed::listed;
use crate::names::{Host, SniTarget, parse_authority};
use crate::snapshot::{Listener, Lookup, Peer, Protocol, Role, Service, ServiceIx, Snapshot};

use super::Question;

/// The longest host or SNI that is looked for, a port behind it included.
const HOST_BYTES_MAX: usize = 300;

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// It names a listener that there is not.
    #[error("no listener `{name}`; there are: {known}", known = listed(.known))]
    Listener {
        /// As asked.
        name: String,
        /// Those that there are.
        known: Vec<Arc<str>>,
    },
    /// It names a peer that there is not.
    #[error("no peer `{name}`; there are: {known}", known = listed(.known))]
    Peer {
        /// As asked.
        name: String,
        /// Those that there are.
        known: Vec<Arc<str>>,
    },
    /// What is called is longer than a host and a port can be.
    #[error("the host is over {HOST_BYTES_MAX} bytes")]
    HostTooLong,
    /// There is no listener at all.
    #[error("the gateway has no listener")]
    NoListener,
    /// The SNI is longer than a host and a port can be.
    #[error("the SNI is over {HOST_BYTES_MAX} bytes")]
    SniTooLong,
    /// No ClientHello can hold this SNI.
    #[error("the SNI is empty or holds a NUL, which no ClientHello can say (RFC 6066 §3)")]
    NoSni,
    /// It has an SNI, and comes in where requests without TLS are read alone.
    #[error(
        "listener `{listener}` carries one http route and reads no TLS: ask without an SNI, or of another \
         listener"
    )]
    SniUnread {
        /// The listener.
        listener: Arc<str>,
    },
}

/// What the question did not say, and what is taken in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assumed {
    /// This listener.
    Listener(Arc<str>),
    /// This source address.
    Source(IpAddr),
    /// This is the peer's gateway.
    Gateway(SpiffeId),
    /// Nobody is verified on this way: who calls does not count.
    NobodyVerified,
    /// Nothing reads a request on this way: the SNI alone says what is called.
    HostUnread,
    /// The bytes of a listener for one route are not looked into: the SNI does not count.
    SniUnread,
}

/// A question with nothing left open.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) listener: &'a Listener,
    pub(super) source: IpAddr,
    /// What its TLS names, where that is read.
    pub(super) sni: Option<String>,
    /// The ID of the certificate.
    pub(super) verified: Option<SpiffeId>,
    /// The ID that is handed on.
    pub(super) claimed: Option<SpiffeId>,
    pub(super) assumed: Vec<Assumed>,
}

pub(super) fn facts<'a>(
    snapshot: &'a Snapshot,
    question: &Question,
) -> Result<Facts<'a>, QuestionError> {
    if question.host.len() > HOST_BYTES_MAX {
        return Err(QuestionError::HostTooLong);
    }
    if let Some(sni) = &question.sni {
        if sni.len() > HOST_BYTES_MAX {
            return Err(QuestionError::SniTooLong);
        }
        if sni.is_empty() || sni.contains('\0') {
            return Err(QuestionError::NoSni);
        }
    }
    let mut assumed = Vec::new();
    let via = (question.via.as_deref())
        .map(|name| peer(snapshot, name))
        .transpose()?;
    let listener = match &question.listener {
        Some(name) => snapshot.listener(name).ok_or_else(|| {
            let known = snapshot.listeners.iter();
            QuestionError::Listener {
                name: name.clone(),
                known: known.map(|listener| Arc::clone(&listener.name)).collect(),
            }
        })?,
        None => {
            let likeliest = likeliest(snapshot, question).ok_or(QuestionError::NoListener)?;
            assumed.push(Assumed::Listener(Arc::clone(&likeliest.name)));
            likeliest
        }
    };
    let source = question.source.unwrap_or_else(|| {
        let source = usual_source(listener, via);
        assumed.push(Assumed::Source(source));
        source
    });
    let (verified, claimed) = match via {
        None => (question.from.clone(), None),
        Some(peer) => {
            let gateway = peer.ids.first().map(gateway_of);
            assumed.extend(gateway.clone().map(Assumed::Gateway));
            (gateway, question.from.clone())
        }
    };
    if let Some(only) = listener.only.filter(|_| question.sni.is_some()) {
        match snapshot.service(only).protocol {
            Protocol::Http => {
                let listener = Arc::clone(&listener.name);
                return Err(QuestionError::SniUnread { listener });
            }
            Protocol::Tcp => assumed.push(Assumed::SniUnread),
        }
    }
    let begins_with_tls = begins_with_tls(snapshot, listener, question);
    let sni = || match &question.sni {
        Some(sni) => sni.clone(),
        None => sni_of(&question.host),
    };
    Ok(Facts {
        listener,
        source,
        sni: begins_with_tls.then(sni),
        verified,
        claimed,
        assumed,
    })
}

/// The SNI of whoever calls this host.
fn sni_of(host: &str) -> String {
    match parse_authority(host) {
        Ok((host, port)) => SniTarget { host, port }.to_string(),
        Err(_no_host) => host.to_owned(),
    }
}

fn peer<'a>(snapshot: &'a Snapshot, name: &str) -> Result<&'a Peer, QuestionError> {
    let found = snapshot.peers.iter().find(|peer| *peer.name == *name);
    found.ok_or_else(|| QuestionError::Peer {
        name: name.to_owned(),
        known: snapshot
            .peers
            .iter()
            .map(|peer| Arc::clone(&peer.name))
            .collect(),
    })
}

/// One ID that a peer's gateway may have.
fn gateway_of(pattern: &IdPattern) -> SpiffeId {
    match pattern {
        IdPattern::Exact(id) => id.clone(),
        IdPattern::Below(parent) => {
            SpiffeId::parse(&format!("{parent}/gateway")).unwrap_or_else(|_too_long| parent.clone())
        }
    }
}

/// Where a caller mostly comes in: whoever is somebody by the mesh, all others as workloads, on the
/// listener that has the host.
fn likeliest<'a>(snapshot: &'a Snapshot, question: &Question) -> Option<&'a Listener> {
    let of_role = |role| {
        snapshot
            .listeners
            .iter()
            .filter(move |one| one.role == role)
    };
    let (mesh, workloads) = (|| of_role(Role::Mesh), || of_role(Role::Workloads));
    let has = |listener: &&Listener| asked_for(snapshot, listener, question).is_some();
    if question.from.is_some() || question.via.is_some() {
        return mesh()
            .find(has)
            .or_else(|| mesh().next())
            .or_else(|| workloads().next());
    }
    let alone = || workloads().filter(|one| one.only.is_some());
    let shared = || workloads().filter(|one| one.only.is_none());
    if question.sni.is_some() {
        // Where TLS is read.
        return (shared().find(has))
            .or_else(|| mesh().find(has))
            .or_else(|| shared().next())
            .or_else(|| mesh().next())
            .or_else(|| workloads().next());
    }
    // Bytes without TLS come in where nothing else does.
    let is_tcp = |one: &&Listener| {
        asked_for(snapshot, one, question).is_some_and(|of| of.protocol == Protocol::Tcp)
    };
    (alone().find(is_tcp))
        .or_else(|| shared().find(has))
        .or_else(|| alone().find(has))
        .or_else(|| shared().next())
        .or_else(|| workloads().next())
        .or_else(|| mesh().next())
}

/// The service that the SNI, or else the host, stands for on a listener.
fn asked_for<'a>(
    snapshot: &'a Snapshot,
    listener: &Listener,
    question: &Question,
) -> Option<&'a Service> {
    let (host, port) = match &question.sni {
        Some(sni) => {
            let target = SniTarget::parse(sni).ok()?;
            (target.host, target.port)
        }
        None => parse_authority(&question.host).ok()?,
    };
    if let Some(only) = listener.only {
        let service = snapshot.service(only);
        return is_of(service, &host, port).then_some(service);
    }
    let found = match listener.hosts.lookup(&host, port) {
        Lookup::Found(ix) => Some(ix),
        Lookup::PortNeeded => listener.hosts.ports(&host).first().map(|(_, ix)| *ix),
        // The port may be the listener's own.
        Lookup::NoSuchPort => match listener.hosts.lookup(&host, None) {
            Lookup::Found(ix) => Some(ix),
            Lookup::PortNeeded | Lookup::NoSuchPort | Lookup::Unknown => None,
        },
        Lookup::Unknown => None,
    };
    found.map(|ix: ServiceIx| snapshot.service(ix))
}

fn is_of(service: &Service, host: &Host, port: Option<u16>) -> bool {
    service.hosts.iter().any(|pattern| pattern.matches(host))
        && port.is_none_or(|port| port == service.port)
}

/// An address that the listener, and the peer, would call from.
fn usual_source(listener: &Listener, via: Option<&Peer>) -> IpAddr {
    let of_peer = via.and_then(|peer| peer.sources.first());
    (of_peer.or_else(|| listener.sources.first()))
        .map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |net| net.addr())
}

fn begins_with_tls(snapshot: &Snapshot, listener: &Listener, question: &Question) -> bool {
    if listener.role == Role::Mesh {
        return true;
    }
    if listener.only.is_some() {
        return false;
    }
    let is_tcp = (asked_for(snapshot, listener, question))
        .is_some_and(|service| service.protocol == Protocol::Tcp);
    is_tcp || question.sni.is_some() || question.from.is_some() || question.via.is_some()
}
