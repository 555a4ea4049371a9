//! Who may call a service: listener sources, export, deny, allow, in this order; nothing that no
//! rule allows is let through.

mod header;
pub mod path;
mod server_name;

use std::net::IpAddr;

use crate::engine::Headers;
use crate::identity::{IdPattern, SpiffeId};
use crate::snapshot::{
    Export, HeaderRule, Listener, Peer, PeerIx, Policy, PolicyMode, Role, Rule, Service, ServiceIx,
    Snapshot,
};
use crate::verdict::Reason;

use path::RequestPath;
use server_name::ServerName;

/// What is known of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence<'a> {
    /// Where it calls from: plaintext, or TLS that is relayed as it is.
    Network,
    /// The SPIFFE ID of its verified certificate.
    Verified(&'a SpiffeId),
    /// The SPIFFE ID that a peer's verified gateway handed on. Made by [`evidence`].
    Asserted {
        /// The gateway's own ID.
        by: &'a SpiffeId,
        /// The peer it is a gateway of.
        peer: PeerIx,
        /// The caller's ID.
        id: &'a SpiffeId,
    },
}

/// One connection or request that asks for a service.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// Where it came in.
    pub listener: &'a Listener,
    /// The address it came from.
    pub source: IpAddr,
    /// Who asks.
    pub evidence: Evidence<'a>,
    /// The server name that the caller's TLS named, where that ends here or is relayed as it is: with
    /// `None` no rule that asks for one matches.
    pub sni: Option<&'a str>,
    /// The HTTP method; `None` for what is no request.
    pub method: Option<&'a str>,
    /// The HTTP path as received, its query may follow; `None` for what is no request.
    pub path: Option<&'a str>,
    /// The headers; `None` for what is no request, and where they are not known any more: then no rule
    /// that asks for one lets in, and each that denies does.
    pub headers: Option<Headers<'a>>,
}

/// Whether it may, and what said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allow {
        /// The index of the allow rule that matched.
        rule: usize,
    },
    /// It may, since the policy is audited only; enforced, it would not.
    Audit {
        /// [`Reason::Denied`] or [`Reason::NotAllowed`].
        reason: Reason,
        /// As in [`Verdict::Deny`].
        rule: Option<usize>,
        /// As in [`Verdict::Deny`].
        nearest: Option<usize>,
    },
    /// It may not.
    Deny {
        /// [`Reason::SourceRefused`], [`Reason::NotExported`], [`Reason::Denied`] or
        /// [`Reason::NotAllowed`].
        reason: Reason,
        /// The index of the deny rule that matched.
        rule: Option<usize>,
        /// The index of the allow rule that came nearest: it failed on the fewest fields.
        nearest: Option<usize>,
    },
}

/// Decides whether a service may be called.
#[must_use]
pub fn authorize(snapshot: &Snapshot, service: ServiceIx, asking: &Asking<'_>) -> Verdict {
    audited(
        snapshot.service(service),
        enforced(snapshot, service, asking),
    )
}

/// What becomes of a verdict on a service whose policy may be audited only: who may connect to a
/// listener and what is exported is no part of it.
const fn audited(service: &Service, verdict: Verdict) -> Verdict {
    match (service.policy.mode, verdict) {
        (
            PolicyMode::Audit,
            Verdict::Deny {
                reason: reason @ (Reason::Denied | Reason::NotAllowed),
                rule,
                nearest,
            },
        ) => Verdict::Audit {
            reason,
            rule,
            nearest,
        },
        (PolicyMode::Audit | PolicyMode::Enforce, verdict) => verdict,
    }
}

fn enforced(snapshot: &Snapshot, service: ServiceIx, asking: &Asking<'_>) -> Verdict {
    let service = snapshot.service(service);
    let caller = Caller::new(snapshot, &service.policy, asking);
    let deny = |reason, rule, nearest| Verdict::Deny {
        reason,
        rule,
        nearest,
    };
    let listener = asking.listener;
    if !listener.sources.is_empty() && !contains(&listener.sources, caller.source) {
        return deny(Reason::SourceRefused, None, None);
    }
    if let Some(objection) = objected(snapshot, service, listener.role, &caller) {
        return objection;
    }
    let allow = &service.policy.allow;
    match allow
        .iter()
        .position(|rule| caller.failed_fields(rule) == 0)
    {
        Some(rule) => Verdict::Allow { rule },
        None => deny(Reason::NotAllowed, None, nearest(allow, &caller)),
    }
}

/// What a service has against a request that the split of another one leads to it: whom it is not
/// exported to, and whom it denies. Who else may call is for the other to say.
#[must_use]
pub fn objection(snapshot: &Snapshot, service: ServiceIx, asking: &Asking<'_>) -> Option<Verdict> {
    let at = snapshot.service(service);
    let caller = Caller::new(snapshot, &at.policy, asking);
    let objection = objected(snapshot, at, asking.listener.role, &caller)?;
    Some(audited(at, objection))
}

fn objected(
    snapshot: &Snapshot,
    service: &Service,
    role: Role,
    caller: &Caller<'_>,
) -> Option<Verdict> {
    let deny = |reason, rule| Verdict::Deny {
        reason,
        rule,
        nearest: None,
    };
    if role == Role::Mesh && !is_exported(snapshot, &service.export, caller) {
        return Some(deny(Reason::NotExported, None));
    }
    let never = &service.policy.deny;
    let rule = never.iter().position(|rule| caller.is_denied_by(rule))?;
    Some(deny(Reason::Denied, Some(rule)))
}

/// A field of a [`Rule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleField {
    /// [`Rule::from`].
    From,
    /// [`Rule::via`].
    Via,
    /// [`Rule::listeners`].
    Listeners,
    /// [`Rule::sources`].
    Sources,
    /// [`Rule::sni`].
    Sni,
    /// [`Rule::methods`].
    Methods,
    /// [`Rule::paths`].
    Paths,
    /// [`Rule::headers`].
    Headers,
}

impl RuleField {
    /// What it is called in a configuration.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::From => "from",
            Self::Via => "via",
            Self::Listeners => "listeners",
            Self::Sources => "sources",
            Self::Sni => "sni",
            Self::Methods => "methods",
            Self::Paths => "paths",
            Self::Headers => "headers",
        }
    }
}

/// The fields of an allow rule that do not match; none: it lets in.
#[must_use]
pub fn mismatches(
    snapshot: &Snapshot,
    service: ServiceIx,
    rule: usize,
    asking: &Asking<'_>,
) -> Vec<RuleField> {
    let policy = &snapshot.service(service).policy;
    let caller = Caller::new(snapshot, policy, asking);
    let fields = (policy.allow.get(rule)).map(|rule| caller.fields(rule));
    (fields.into_iter().flatten())
        .filter(|(_, matches)| !matches)
        .map(|(field, _)| field)
        .collect()
}

/// Decides whether a caller may ask anything of a service: what a request brings beside (method, path,
/// headers, an identity handed on) counts as if it suited the rules that let in.
#[must_use]
pub fn authorize_session(snapshot: &Snapshot, service: ServiceIx, asking: &Asking<'_>) -> Verdict {
    let verdict = enforced_on_session(snapshot, service, asking);
    audited(snapshot.service(service), verdict)
}

fn enforced_on_session(snapshot: &Snapshot, service: ServiceIx, asking: &Asking<'_>) -> Verdict {
    let at = snapshot.service(service);
    let caller = Caller::new(snapshot, &at.policy, asking);
    let gateway_of = match caller.evidence {
        Evidence::Verified(id) | Evidence::Asserted { by: id, .. } => {
            peer_of(snapshot, caller.source, id)
        }
        Evidence::Network => None,
    };
    let verdict = enforced(snapshot, service, asking);
    let Verdict::Deny { reason, rule, .. } = verdict else {
        return verdict;
    };
    if reason == Reason::Denied {
        // A deny rule that asks for a method, a path or a header denies some requests, not the session.
        let whole = at.policy.deny.iter().position(|rule| {
            rule.methods.is_empty()
                && rule.paths.is_empty()
                && rule.headers.is_empty()
                && caller.is_denied_by(rule)
        });
        if whole.is_some() {
            return Verdict::Deny {
                reason,
                rule: whole.or(rule),
                nearest: None,
            };
        }
    } else if reason != Reason::NotAllowed {
        return verdict;
    }
    let may = at.policy.allow.iter().position(|rule| {
        let handed_on = gateway_of.is_some_and(|peer| rule.via.contains(&peer));
        let named = rule.from.is_empty()
            || (caller.allowed_as(rule)).is_some_and(|id| named(&rule.from, id));
        (handed_on || (rule.via.is_empty() && named))
            && caller.came_in_on(rule)
            && caller.calls_from(rule)
            && caller.surely_asks_for(rule)
    });
    may.map_or(verdict, |rule| Verdict::Allow { rule })
}

/// What is known of a caller with a verified ID that claims to hand on another's.
///
/// The claim counts only from a gateway of a peer (its ID is in [`Peer::ids`]) that attests for
/// the claimed ID's trust domain; from anyone else it is as if it had not been made.
#[must_use]
pub fn evidence<'a>(
    snapshot: &Snapshot,
    source: IpAddr,
    verified: &'a SpiffeId,
    claimed: Option<&'a SpiffeId>,
) -> Evidence<'a> {
    let Some(id) = claimed else {
        return Evidence::Verified(verified);
    };
    match candidates(snapshot, source.to_canonical(), verified)
        .find(|(_, peer)| may_assert(peer, verified, id))
    {
        Some((peer, _)) => Evidence::Asserted {
            by: verified,
            peer,
            id,
        },
        None => Evidence::Verified(verified),
    }
}

/// The peer that a caller with this verified ID is of.
///
/// It is of a peer if its ID is in [`Peer::ids`] or of their trust domain, and the peer calls from
/// `source`. Where several fit, one that lists the ID comes first, then one that lists the source,
/// then the order of the snapshot.
#[must_use]
pub fn peer_of(snapshot: &Snapshot, source: IpAddr, id: &SpiffeId) -> Option<PeerIx> {
    candidates(snapshot, source.to_canonical(), id)
        .next()
        .map(|(ix, _)| ix)
}

/// The peers whose gateway a caller with this verified ID is: those that list the ID, which is not
/// every workload of their trust domain. They are told how what is exported to them stands; nobody
/// else is.
#[must_use]
pub fn gateways_of(snapshot: &Snapshot, source: IpAddr, id: &SpiffeId) -> Vec<PeerIx> {
    candidates(snapshot, source.to_canonical(), id)
        .filter(|(_, peer)| peer.ids.iter().any(|pattern| pattern.matches(id)))
        .map(|(ix, _)| ix)
        .collect()
}

/// The peer whose gateway a verified caller is.
#[must_use]
pub fn gateway_of(snapshot: &Snapshot, source: IpAddr, id: &SpiffeId) -> Option<PeerIx> {
    let ix = peer_of(snapshot, source, id)?;
    let mut ids = snapshot.peer(ix).ids.iter();
    ids.any(|pattern| pattern.matches(id)).then_some(ix)
}

/// The peers that fit a caller best, all equally well.
fn candidates<'s>(
    snapshot: &'s Snapshot,
    source: IpAddr,
    id: &SpiffeId,
) -> impl Iterator<Item = (PeerIx, &'s Peer)> {
    let fits = snapshot.peers.iter().map(|peer| fit(peer, source, id));
    let best = fits.clone().max().flatten();
    (snapshot.peers.iter().zip(fits.collect::<Vec<_>>()))
        .enumerate()
        .filter(move |(_, (_, fit))| fit.is_some() && *fit == best)
        .map(|(ix, (peer, _))| (PeerIx(ix), peer))
}

/// How well a caller fits a peer: whether the peer lists its ID, then its source.
fn fit(peer: &Peer, source: IpAddr, id: &SpiffeId) -> Option<(bool, bool)> {
    let listed = peer.ids.iter().any(|pattern| pattern.matches(id));
    let of_domain = peer.ids.iter().any(|pattern| match pattern {
        IdPattern::Exact(of) | IdPattern::Below(of) => {
            of.trust_domain_str() == id.trust_domain_str()
        }
    });
    ((listed || of_domain) && peer.calls_from(source)).then_some((listed, !peer.sources.is_empty()))
}

fn may_assert(peer: &Peer, by: &SpiffeId, id: &SpiffeId) -> bool {
    peer.ids.iter().any(|pattern| pattern.matches(by))
        && peer.attests.iter().any(|domain| id.is_of(domain))
}

fn is_exported(snapshot: &Snapshot, export: &Export, caller: &Caller<'_>) -> bool {
    let to = |ix: PeerIx| match export {
        Export::Nobody => false,
        Export::To(peers) => peers.contains(&ix),
        Export::AllPeers => true,
    };
    match caller.evidence {
        Evidence::Verified(id) => candidates(snapshot, caller.source, id).any(|(ix, _)| to(ix)),
        Evidence::Asserted { peer, .. } => to(peer),
        // Nothing but the source tells who relayed TLS is from; to name a peer that may call from
        // anywhere would be to name everybody.
        Evidence::Network => snapshot.peers.iter().enumerate().any(|(ix, peer)| {
            let named = matches!(export, Export::To(_));
            to(PeerIx(ix)) && peer.calls_from(caller.source) && !(named && peer.sources.is_empty())
        }),
    }
}

/// The rule that failed on the fewest fields; the first of several.
fn nearest(allow: &[Rule], caller: &Caller<'_>) -> Option<usize> {
    (allow.iter().enumerate())
        .min_by_key(|(_, rule)| caller.failed_fields(rule))
        .map(|(ix, _)| ix)
}

fn contains(nets: &[ipnet::IpNet], source: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&source))
}

/// An [`Asking`] with its parts in the form that rules are compared with.
struct Caller<'a> {
    listener: &'a str,
    /// An IPv4 address that came in on an IPv6 socket is an IPv4 address.
    source: IpAddr,
    evidence: Evidence<'a>,
    /// `None` also where no rule asks for it.
    sni: Option<ServerName<'a>>,
    method: Option<&'a str>,
    /// `None` also where no rule asks for it.
    path: Option<RequestPath<'a>>,
    headers: Option<Headers<'a>>,
}

impl<'a> Caller<'a> {
    fn new(snapshot: &Snapshot, policy: &Policy, asking: &Asking<'a>) -> Self {
        let evidence = match asking.evidence {
            // The peer may have lost the right since the assertion was taken.
            Evidence::Asserted { by, peer, id }
                if !snapshot
                    .peers
                    .get(peer.0)
                    .is_some_and(|peer| may_assert(peer, by, id)) =>
            {
                Evidence::Verified(by)
            }
            same @ (Evidence::Network | Evidence::Verified(_) | Evidence::Asserted { .. }) => same,
        };
        let rules = || policy.allow.iter().chain(&policy.deny);
        Self {
            listener: &asking.listener.name,
            source: asking.source.to_canonical(),
            evidence,
            sni: (asking.sni)
                .filter(|_| rules().any(|rule| !rule.sni.is_empty()))
                .map(ServerName::new),
            method: asking.method,
            path: (asking.path)
                .filter(|_| rules().any(|rule| !rule.paths.is_empty()))
                .map(RequestPath::new),
            headers: asking.headers,
        }
    }

    /// How many fields of an allow rule do not match; 0: the rule matches.
    fn failed_fields(&self, rule: &Rule) -> usize {
        let fields = self.fields(rule).into_iter();
        fields.filter(|(_, matches)| !matches).count()
    }

    /// Each field of an allow rule, and whether it matches.
    fn fields(&self, rule: &Rule) -> [(RuleField, bool); 8] {
        let is_from = rule.from.is_empty()
            || self
                .allowed_as(rule)
                .is_some_and(|id| named(&rule.from, id));
        // RFC 9110 §9.1: the method is case-sensitive.
        let is_method = rule.methods.is_empty()
            || (self.method).is_some_and(|is| rule.methods.iter().any(|name| &**name == is));
        let is_path = rule.paths.is_empty()
            || (self.path.as_ref())
                .is_some_and(|path| rule.paths.iter().any(|of| path.surely_is(of)));
        let has_headers = rule.headers.is_empty()
            || (self.headers)
                .is_some_and(|headers| rule.headers.iter().all(|of| header::surely(of, headers)));
        [
            (RuleField::From, is_from),
            (RuleField::Via, self.came_via(rule)),
            (RuleField::Listeners, self.came_in_on(rule)),
            (RuleField::Sources, self.calls_from(rule)),
            (RuleField::Sni, self.surely_asks_for(rule)),
            (RuleField::Methods, is_method),
            (RuleField::Paths, is_path),
            (RuleField::Headers, has_headers),
        ]
    }

    /// Whether a deny rule matches; in doubt (an ID handed on, a path that servers read
    /// differently, a server name that is no host, a method in another case, one of several values of a
    /// header) it does.
    fn is_denied_by(&self, rule: &Rule) -> bool {
        let of_method = |name: &str| (self.method).is_some_and(|is| name.eq_ignore_ascii_case(is));
        (rule.from.is_empty() || self.denied_as(rule).any(|id| named(&rule.from, id)))
            && self.came_via(rule)
            && self.came_in_on(rule)
            && self.calls_from(rule)
            && self.may_ask_for(rule)
            && (rule.methods.is_empty() || rule.methods.iter().any(|name| of_method(name)))
            && (rule.paths.is_empty()
                || (self.path.as_ref())
                    .is_some_and(|path| rule.paths.iter().any(|of| path.may_be(of))))
            && (rule.headers.is_empty() || self.may_have(&rule.headers))
    }

    fn may_have(&self, rules: &[HeaderRule]) -> bool {
        match self.headers {
            Some(headers) => rules.iter().all(|of| header::perhaps(of, headers)),
            // Of a request nobody knows them any more.
            None => self.method.is_some(),
        }
    }

    /// Who the caller is to an allow rule: without `via` the one whose certificate was verified.
    fn allowed_as(&self, rule: &Rule) -> Option<&'a SpiffeId> {
        match (self.evidence, rule.via.is_empty()) {
            (Evidence::Verified(id) | Evidence::Asserted { by: id, .. }, true)
            | (Evidence::Asserted { id, .. }, false) => Some(id),
            (Evidence::Network, _) | (Evidence::Verified(_), false) => None,
        }
    }

    /// Who the caller is to a deny rule: an ID handed on always counts.
    fn denied_as(&self, rule: &Rule) -> impl Iterator<Item = &'a SpiffeId> {
        let handed_on = match self.evidence {
            Evidence::Asserted { id, .. } => Some(id),
            Evidence::Network | Evidence::Verified(_) => None,
        };
        self.allowed_as(rule).into_iter().chain(handed_on)
    }

    fn came_via(&self, rule: &Rule) -> bool {
        rule.via.is_empty()
            || match self.evidence {
                Evidence::Asserted { peer, .. } => rule.via.contains(&peer),
                Evidence::Network | Evidence::Verified(_) => false,
            }
    }

    fn came_in_on(&self, rule: &Rule) -> bool {
        rule.listeners.is_empty() || rule.listeners.iter().any(|name| &**name == self.listener)
    }

    fn calls_from(&self, rule: &Rule) -> bool {
        rule.sources.is_empty() || contains(&rule.sources, self.source)
    }

    fn surely_asks_for(&self, rule: &Rule) -> bool {
        let surely = |sni: &ServerName<'_>| rule.sni.iter().any(|of| sni.surely_is(of));
        rule.sni.is_empty() || self.sni.as_ref().is_some_and(surely)
    }

    fn may_ask_for(&self, rule: &Rule) -> bool {
        let may = |sni: &ServerName<'_>| rule.sni.iter().any(|of| sni.may_be(of));
        rule.sni.is_empty() || self.sni.as_ref().is_some_and(may)
    }
}

fn named(from: &[IdPattern], id: &SpiffeId) -> bool {
    from.iter().any(|pattern| pattern.matches(id))
}

#[cfg(test)]
#[path = "authorize/tests.rs"]
mod tests;
