//! Who may call what, as the manual says it.

use std::net::IpAddr;

use crate::path;
use crate::world::{
    Backends, Call, Entry, Inbound, Opening, Peer, Policy, Protocol, Request, Route, Rule,
    RulePath, World,
};

/// What becomes of a call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// By its label in the log.
    Refused(&'static str),
    Carried {
        route: String,
        port: u16,
        /// The place of the entry of `allow` that let it in; none where the policy is audited.
        allow: Option<usize>,
        /// Of `rules`.
        rule: Option<usize>,
        /// Whether it is carried for whom a peer's gateway attests.
        attested: bool,
    },
}

/// What is known of a call to one route.
struct Facts<'a> {
    listener: &'a str,
    source: String,
    /// The SPIFFE ID of its certificate.
    id: Option<&'a str>,
    /// The peer that hands on an identity, and that identity.
    attested: Option<(&'a Peer, &'a str)>,
    /// The server name of its TLS, where that is ended or passed through.
    sni: Option<&'a str>,
    /// What is asked, where it is read.
    request: Option<&'a Request>,
}

pub(crate) fn answer(world: &World, call: &Call) -> Answer {
    match found(world, call) {
        Err(reason) => Answer::Refused(reason),
        Ok((route, port, facts)) => called(world, route, port, &facts),
    }
}

/// The route and port that a call is for.
fn found<'a>(
    world: &'a World,
    call: &'a Call,
) -> Result<(&'a Route, u16, Facts<'a>), &'static str> {
    let source = bits(call.source);
    let admitted = match call.listener {
        "mesh" => &world.mesh_sources,
        "apps" => &world.apps_sources,
        _ => &Vec::new(),
    };
    if !admitted.is_empty() && !is_in(&source, admitted) {
        return Err("source-refused");
    }
    let mut facts = Facts {
        listener: call.listener,
        source,
        id: None,
        attested: None,
        sni: None,
        request: None,
    };
    // One address, one route: what it says is never looked at.
    if call.listener == "raw" {
        let route = world.routes.iter().find(|route| route.name == "raw");
        let route = route.unwrap();
        return Ok((route, route.ports[0].number, facts));
    }
    let sni = match &call.opening {
        Opening::Plaintext if call.listener == "mesh" => return Err("not-tls"),
        Opening::Plaintext => {
            facts.request = Some(&call.request);
            let (route, port) = by_authority(world, &call.request.authority)?;
            return Ok((route, port, facts));
        }
        Opening::Tls(None) => return Err("sni-missing"),
        Opening::Tls(Some(sni)) => sni,
    };
    facts.sni = Some(sni);
    let (host, port) = server_name(sni);
    let routes = of_host(world, call.listener, &host);
    let chosen = match (port, routes.as_slice()) {
        // "Unknown or exported to nobody."
        (_, []) => return Err("sni-unknown"),
        (Some(port), routes) => {
            let found = routes.iter().find(|(_, number, _)| *number == port);
            Some(*found.ok_or("sni-unknown")?)
        }
        (None, [only]) => Some(*only),
        (None, _) => None,
    };
    let route = match chosen {
        Some((route, port, _)) if route.inbound == Inbound::Passthrough => {
            // Nobody is verified, and nothing is read.
            return Ok((route, port, facts));
        }
        Some((route, ..)) => route,
        // "On a multi-port route the bare host means :authority's port, else it is refused."
        None => {
            let (route, ..) = routes[0];
            let is_one = routes.iter().all(|(other, ..)| other.name == route.name);
            let has_http = routes
                .iter()
                .any(|(.., protocol)| *protocol == Protocol::Http);
            match () {
                () if !is_one => return Err("port-needed"),
                () if !has_http => return Err("port-needed"),
                () => route,
            }
        }
    };
    // mTLS: the caller is who its certificate says.
    facts.id = Some(&call.id);
    facts.attested = attested(world, &facts, call);
    if let Some((route, port, Protocol::Tcp)) = chosen {
        return Ok((route, port, facts));
    }
    facts.request = Some(&call.request);
    let port = within(world, call, route, chosen.map(|(_, port, _)| port))?;
    Ok((route, port, facts))
}

/// The port that a request inside TLS is for: "each request's authority must be an exported host that
/// matches the SNI's route, else 421".
fn within(
    world: &World,
    call: &Call,
    route: &Route,
    of_sni: Option<u16>,
) -> Result<u16, &'static str> {
    let authority = &call.request.authority;
    if authority.is_empty() {
        return Err("authority-missing");
    }
    let Some((host, port)) = split(authority) else {
        return Err("misdirected");
    };
    let routes = of_host(world, call.listener, host);
    let port = port.filter(|port| !is_listeners_own(call.listener, *port, &routes));
    let named = match (port, routes.as_slice()) {
        (Some(port), routes) => routes.iter().find(|(_, number, _)| *number == port),
        (None, [only]) => Some(only),
        (None, routes) => {
            if !routes.iter().any(|(other, ..)| other.name == route.name) {
                return Err("misdirected");
            }
            return of_sni.ok_or("port-needed");
        }
    };
    match named {
        Some((other, port, Protocol::Http)) if other.name == route.name => Ok(*port),
        Some(_) | None => Err("misdirected"),
    }
}

fn by_authority<'w>(world: &'w World, authority: &str) -> Result<(&'w Route, u16), &'static str> {
    if authority.is_empty() {
        return Err("authority-missing");
    }
    let (host, port) = split(authority).ok_or("authority-unknown")?;
    let routes = of_host(world, "apps", host);
    let port = port.filter(|port| !is_listeners_own("apps", *port, &routes));
    let named = match (port, routes.as_slice()) {
        (_, []) => return Err("authority-unknown"),
        (Some(port), routes) => routes.iter().find(|(_, number, _)| *number == port),
        (None, [only]) => Some(only),
        (None, _) => return Err("port-needed"),
    };
    match named {
        Some((route, port, Protocol::Http)) => Ok((route, *port)),
        Some(_) | None => Err("authority-unknown"),
    }
}

/// RFC 9110 §7.2: the port of the address that a client was pointed at is no port of the service,
/// unless the service has one of that number.
fn is_listeners_own(listener: &str, port: u16, routes: &[(&Route, u16, Protocol)]) -> bool {
    let own = if listener == "mesh" { 15443 } else { 15001 };
    port == own && !routes.iter().any(|(_, number, _)| *number == port)
}

/// What becomes of a call to a route.
fn called(world: &World, route: &Route, port: u16, facts: &Facts<'_>) -> Answer {
    if facts.listener == "mesh" && !is_exported(world, route, facts) {
        return Answer::Refused("not-exported");
    }
    let is_denied = route.deny.iter().any(|entry| denies(entry, facts));
    let allowed = route.allow.iter().position(|entry| allows(entry, facts));
    let allow = match (is_denied, allowed, route.policy) {
        (false, Some(nth), _) => Some(nth),
        (true, _, Policy::Audit) | (false, None, Policy::Audit) => None,
        (true, _, Policy::Enforce) => return Answer::Refused("denied"),
        (false, None, Policy::Enforce) => return Answer::Refused("not-allowed"),
    };
    // "rules are skipped for what arrives from a MeshPeer's gateway".
    let rule = match facts.request {
        Some(request) if !route.rules.is_empty() && !is_gateway(world, facts) => {
            match ruled(&route.rules, request) {
                Some(nth) => Some(nth),
                None => return Answer::Refused("no-rule"),
            }
        }
        Some(_) | None => None,
    };
    // "What arrived on a mesh listener is served by this cluster's own backends only."
    if facts.listener == "mesh" && route.backends == Backends::PeersAlone {
        return Answer::Refused("no-local-endpoint");
    }
    Answer::Carried {
        route: format!("shop/{}", route.name),
        port,
        allow,
        rule,
        attested: facts.attested.is_some(),
    }
}

/// "Fields of one rule must all match", each by one of its values; an identity is the one of the
/// certificate, and with `via` the attested one.
fn allows(entry: &Entry, facts: &Facts<'_>) -> bool {
    let id = match &entry.via {
        Some(_) => facts.attested.map(|(_, id)| id),
        None => facts.id,
    };
    (entry.from.as_ref()).is_none_or(|from| id.is_some_and(|id| is_named(id, from)))
        && is_where_it_says(entry, facts)
        && (entry.sni.as_ref()).is_none_or(|names| {
            // "A host, or `*.x` for any depth below `x`, for every port of it."
            let host = facts.sni.map(|sni| server_name(sni).0);
            host.is_some_and(|host| is_host(host.strip_suffix('.').unwrap_or(&host), names))
        })
        && (entry.methods.as_ref()).is_none_or(|methods| {
            (facts.request).is_some_and(|asked| methods.contains(&asked.method))
        })
        && (entry.paths.as_ref()).is_none_or(|paths| {
            (facts.request)
                .is_some_and(|asked| paths.iter().any(|of| path::surely(of, &asked.path)))
        })
        && (entry.headers.as_ref()).is_none_or(|headers| {
            facts.request.is_some_and(|asked| {
                headers.iter().all(|(name, named)| {
                    let values = values_of(asked, name);
                    let is_named = |value: &&str| {
                        (named.iter()).any(|of| match of.strip_suffix('*') {
                            // A begin says nothing of a second value in one line.
                            Some(begin) if !begin.is_empty() => {
                                value.split(',').all(|one| one.trim().starts_with(begin))
                            }
                            _ => is_value(value, of),
                        })
                    };
                    !values.is_empty() && values.iter().all(is_named)
                })
            })
        })
}

/// As [`allows`], but in doubt it matches: an attested identity always counts, a method in another
/// case does, and so does a path that some server might take for one of these.
fn denies(entry: &Entry, facts: &Facts<'_>) -> bool {
    let attested = facts.attested.map(|(_, id)| id);
    let ids = match &entry.via {
        Some(_) => [attested, None],
        None => [attested, facts.id],
    };
    (entry.from.as_ref()).is_none_or(|from| ids.into_iter().flatten().any(|id| is_named(id, from)))
        && is_where_it_says(entry, facts)
        && (entry.sni.as_ref()).is_none_or(|names| {
            let hosts = facts.sni.map(hosts_perhaps).unwrap_or_default();
            hosts.iter().any(|host| is_host(host, names))
        })
        && (entry.methods.as_ref()).is_none_or(|methods| {
            let is_asked = |asked: &Request| {
                let asked = asked.method.to_ascii_uppercase();
                methods.contains(&&*asked)
            };
            facts.request.is_some_and(is_asked)
        })
        && (entry.paths.as_ref()).is_none_or(|paths| {
            (facts.request)
                .is_some_and(|asked| paths.iter().any(|of| path::perhaps(of, &asked.path)))
        })
        && (entry.headers.as_ref()).is_none_or(|headers| {
            facts.request.is_some_and(|asked| {
                headers.iter().all(|(name, named)| {
                    let lines = values_of(asked, name).join(",");
                    let whole = values_of(asked, name);
                    let mut values = lines.split(',').chain(whole.iter().copied());
                    !whole.is_empty()
                        && values.any(|value| {
                            let value = value.trim().to_ascii_lowercase();
                            (named.iter()).any(|of| is_value(&value, &of.to_ascii_lowercase()))
                        })
                })
            })
        })
}

/// The values of a header, one for each of its lines.
fn values_of<'r>(request: &'r Request, name: &str) -> Vec<&'r str> {
    let lines = request.headers.iter();
    lines
        .filter(|(of, _)| of.eq_ignore_ascii_case(name))
        .map(|(_, value)| *value)
        .collect()
}

fn is_value(value: &str, of: &str) -> bool {
    match of.split_once('*') {
        Some((begin, _)) => value.starts_with(begin),
        None => value == of,
    }
}

fn is_host(host: &str, names: &[&str]) -> bool {
    names.iter().any(|of| match of.strip_prefix("*.") {
        Some(above) => (host.split_once('.'))
            .is_some_and(|(_, rest)| rest == above || rest.ends_with(&format!(".{above}"))),
        None => host == *of,
    })
}

fn is_where_it_says(entry: &Entry, facts: &Facts<'_>) -> bool {
    (entry.via.as_ref())
        .is_none_or(|via| (facts.attested).is_some_and(|(peer, _)| via.contains(&peer.name)))
        && (entry.listeners.as_ref()).is_none_or(|names| names.contains(&facts.listener))
        && (entry.sources.as_ref()).is_none_or(|nets| is_in(&facts.source, nets))
}

// Peers.

/// "A caller is of a peer if its verified ID is in that MeshPeer's `spiffeIDs` or of their trust
/// domain; `sources` tells apart peers that share one": who lists the ID comes before who shares the
/// trust domain, then who lists the source before who may call from anywhere.
fn peers_of<'w>(world: &'w World, id: &str, source: &str) -> Vec<&'w Peer> {
    let may_call = |peer: &&Peer| peer.sources.is_empty() || is_in(source, &peer.sources);
    let lists = |peer: &&Peer| peer.ids.iter().any(|of| is_id(id, of));
    let shares = |peer: &&Peer| peer.ids.iter().any(|of| domain(of) == domain(id));
    let all = || world.peers.iter().filter(may_call);
    let mut of: Vec<&Peer> = all().filter(lists).collect();
    if of.is_empty() {
        of = all().filter(shares).collect();
    }
    if of.iter().any(|peer| !peer.sources.is_empty()) {
        of.retain(|peer| !peer.sources.is_empty());
    }
    of
}

fn is_gateway(world: &World, facts: &Facts<'_>) -> bool {
    let of = |id| peers_of(world, id, &facts.source);
    facts.id.is_some_and(|id| {
        of(id)
            .iter()
            .any(|peer| peer.ids.iter().any(|gateway| is_id(id, gateway)))
    })
}

/// "Removed, except from a gateway whose peer `attests` for that ID's trust domain."
fn attested<'a>(
    world: &'a World,
    facts: &Facts<'_>,
    call: &'a Call,
) -> Option<(&'a Peer, &'a str)> {
    let claim = call.claim.as_deref()?;
    let peer = peers_of(world, &call.id, &facts.source)
        .into_iter()
        .find(|peer| {
            let is_its_gateway = peer.ids.iter().any(|gateway| is_id(&call.id, gateway));
            is_its_gateway && peer.attests.contains(&domain(claim))
        })?;
    Some((peer, claim))
}

fn is_exported(world: &World, route: &Route, facts: &Facts<'_>) -> bool {
    let to_all = route.export.contains(&"*");
    let to = |peer: &&Peer| to_all || route.export.contains(&peer.name);
    match (facts.attested, facts.id) {
        (Some((peer, _)), _) => to(&peer),
        (None, Some(id)) => peers_of(world, id, &facts.source).iter().any(to),
        // "On a passthrough route a named peer needs `MeshPeer.sources`."
        (None, None) => world.peers.iter().any(|peer| {
            let is_there = is_in(&facts.source, &peer.sources);
            to(&peer) && (is_there || (to_all && peer.sources.is_empty()))
        }),
    }
}

// Identities.

fn is_named(id: &str, list: &[String]) -> bool {
    list.iter().any(|of| is_id(id, of))
}

/// An ID, or all below one on the borders of segments.
fn is_id(id: &str, of: &str) -> bool {
    let segments: Vec<&str> = id.split('/').collect();
    let of: Vec<&str> = of.split('/').collect();
    match of.split_last() {
        Some((&"*", above)) => segments.len() > above.len() && segments.starts_with(above),
        Some(_) | None => segments == of,
    }
}

fn domain(id: &str) -> &str {
    id.split('/').nth(2).unwrap_or_default()
}

// Networks, in bits. An IPv4-mapped address is an IPv4 address.

fn bits(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4
            .octets()
            .iter()
            .map(|byte| format!("{byte:08b}"))
            .collect(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, e, f, high, low] = v6.segments();
            if [a, b, c, d, e, f] == [0, 0, 0, 0, 0, 0xffff] {
                format!("{high:016b}{low:016b}")
            } else {
                v6.segments()
                    .iter()
                    .map(|part| format!("{part:016b}"))
                    .collect()
            }
        }
    }
}

fn is_in(source: &str, nets: &[&str]) -> bool {
    nets.iter().any(|net| {
        let (address, length) = net
            .split_once('/')
            .map_or((*net, None), |(address, length)| {
                (address, Some(length.parse::<usize>().unwrap()))
            });
        let mapped = address.starts_with("::ffff:") && address.contains('.');
        let address = bits(address.parse().unwrap());
        let length = length.map(|length| if mapped { length - 96 } else { length });
        let length = length.unwrap_or(address.len());
        source.len() == address.len() && source.starts_with(&address[..length])
    })
}

// Names.

/// The ports of the routes that a host is of: "exact beats wildcard, longer wildcard beats shorter", and
/// "only what is exported is reachable through the mesh listener".
fn of_host<'w>(world: &'w World, listener: &str, host: &str) -> Vec<(&'w Route, u16, Protocol)> {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if !is_name(&host) {
        return Vec::new();
    }
    let strength = |of: &str| match of.strip_prefix("*.") {
        None => (of == host).then_some(usize::MAX),
        Some(below) => host.ends_with(&format!(".{below}")).then_some(below.len()),
    };
    let all = || {
        world
            .routes
            .iter()
            .flat_map(|route| route.hosts.iter().map(move |of| (route, *of)))
    };
    let best = all().filter_map(|(_, of)| strength(of)).max();
    all()
        .filter(|(_, of)| best.is_some() && strength(of) == best)
        .filter(|(route, _)| listener == "apps" || !route.export.is_empty())
        .flat_map(|(route, _)| {
            route
                .ports
                .iter()
                .map(move |port| (route, port.number, port.protocol))
        })
        .collect()
}

/// RFC 1035 §2.3.4 and RFC 6066 §3: labels of 1 to 63, and no address.
fn is_name(host: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    host.len() <= 253 && host.split('.').all(is_label) && host.parse::<IpAddr>().is_err()
}

/// "Istio's `outbound_.<port>_._.<host>`; both forms are always accepted."
fn server_name(sni: &str) -> (String, Option<u16>) {
    let sni = sni.to_ascii_lowercase();
    let parts = sni
        .strip_prefix("outbound_.")
        .and_then(|rest| rest.split_once("_._."));
    match parts.and_then(|(port, host)| Some((host.to_owned(), number(port)?))) {
        Some((host, port)) => (host, Some(port)),
        None => (sni, None),
    }
}

/// Every host that somebody might read in a server name: "in doubt a `deny` matches", and where labels go
/// before one as in Istio's forms, what stands after them may be meant.
fn hosts_perhaps(sni: &str) -> Vec<String> {
    let (host, _) = server_name(sni);
    let host = host.strip_suffix('.').unwrap_or(&host).to_owned();
    let labels: Vec<&str> = host.split('.').collect();
    let mut hosts = vec![host.clone()];
    if labels[0] == "outbound_" {
        for (nth, label) in labels.iter().enumerate() {
            if label.ends_with('_') {
                hosts.push(labels[nth + 1..].join("."));
            }
        }
    }
    hosts
}

fn split(authority: &str) -> Option<(&str, Option<u16>)> {
    match authority.rsplit_once(':') {
        None => Some((authority, None)),
        Some((host, port)) => Some((host, Some(number(port)?))),
    }
}

fn number(text: &str) -> Option<u16> {
    let number: u16 = text.parse().ok()?;
    (number.to_string() == text && number > 0).then_some(number)
}

// Rules.

/// The first in Gateway API's order of precedence: an exact path, the longest prefix, a method, the most
/// headers, the order they are written in.
fn ruled(rules: &[Rule], request: &Request) -> Option<usize> {
    let first = |reading: Option<&path::Reading<'_>>| {
        let matching = rules.iter().enumerate().filter(|(_, rule)| {
            let is_path = (rule.path).is_none_or(|of| is_path(of, reading));
            is_path
                && rule.method.is_none_or(|method| method == request.method)
                && rule.headers.iter().all(|header| has_once(request, header))
        });
        let precedence = |rule: &Rule| {
            let (exact, prefix) = match rule.path {
                Some(RulePath::Exact(_)) => (true, 0),
                // As no path: Gateway API's default.
                Some(RulePath::Prefix("/")) | None => (false, 0),
                Some(RulePath::Prefix(prefix)) => (false, prefix.len()),
            };
            (exact, prefix, rule.method.is_some(), rule.headers.len())
        };
        let best = matching.clone().map(|(_, rule)| precedence(rule)).max()?;
        matching
            .filter(|(_, rule)| precedence(rule) == best)
            .map(|(nth, _)| nth)
            .next()
    };
    if (rules.iter()).all(|rule| matches!(rule.path, None | Some(RulePath::Prefix("/")))) {
        return first(None);
    }
    path::agreed(&|reading| first(Some(reading)), &request.path)
}

/// `/v1` is `/v1`, `/v1/` and `/v1/x`, and not `/v1x`.
fn is_path(of: RulePath, reading: Option<&path::Reading<'_>>) -> bool {
    match of {
        RulePath::Prefix("/") => true,
        RulePath::Exact(exact) => reading.is_some_and(|path| path.is(exact)),
        RulePath::Prefix(prefix) => reading.is_some_and(|path| path.is_at_or_below(prefix)),
    }
}

/// "One that a request has twice is matched by nothing."
fn has_once(request: &Request, (name, value): &(&str, &str)) -> bool {
    let mut values = request
        .headers
        .iter()
        .filter(|(of, _)| of.eq_ignore_ascii_case(name));
    values.next().is_some_and(|(_, first)| first == value) && values.next().is_none()
}

// What has no effect.

/// The entries that are errors, by route, list and place: "an `allow` entry none of whose paths exist on
/// its route is an error, and so is any field that has no effect on any path of its route."
pub(crate) fn without_effect(world: &World) -> Vec<(String, &'static str, usize)> {
    let mut useless = Vec::new();
    for route in &world.routes {
        for (list, entries) in [("allow", &route.allow), ("deny", &route.deny)] {
            for (nth, entry) in entries.iter().enumerate() {
                let denies_all = || is_believed(world, entry) && is_called_so(route, entry);
                if !can_match(world, route, entry) || (list == "deny" && !denies_all()) {
                    useless.push((route.name.to_owned(), list, nth));
                }
            }
        }
    }
    useless.sort();
    useless
}

fn can_match(world: &World, route: &Route, entry: &Entry) -> bool {
    let needs_identity = entry.from.is_some() || entry.via.is_some();
    let needs_requests =
        entry.methods.is_some() || entry.paths.is_some() || entry.headers.is_some();
    let has_http = route
        .ports
        .iter()
        .any(|port| port.protocol == Protocol::Http);
    let ends_tls = route.inbound == Inbound::Terminate;
    // The table "What each path does": arrives on, is an identity known, are requests read. A server name is
    // what comes with TLS: that is every way but plaintext's.
    let table = [
        (
            ("mesh", true),
            !route.export.is_empty(),
            ends_tls,
            ends_tls && has_http,
        ),
        (("apps", true), true, ends_tls, ends_tls && has_http),
        (("apps", false), has_http, false, true),
        (("raw", false), route.name == "raw", false, false),
    ];
    let is_there = table
        .into_iter()
        .any(|((listener, tls), leads, identity, requests)| {
            leads
                && (tls || entry.sni.is_none())
                && entry
                    .listeners
                    .as_ref()
                    .is_none_or(|names| names.contains(&listener))
                && (identity || !needs_identity)
                && (requests || !needs_requests)
        });
    let may_be_attested = entry.via.as_ref().is_none_or(|via| {
        world
            .peers
            .iter()
            .filter(|peer| via.contains(&peer.name))
            .any(|peer| match &entry.from {
                Some(from) => from.iter().any(|id| peer.attests.contains(&domain(id))),
                None => !peer.attests.is_empty(),
            })
    });
    is_there && may_be_attested
}

/// Of an entry of `deny` every ID must be one that a peer in `via` is believed about: one that is not
/// would deny nobody.
fn is_believed(world: &World, entry: &Entry) -> bool {
    let (Some(via), Some(from)) = (&entry.via, &entry.from) else {
        return true;
    };
    from.iter().all(|id| {
        world
            .peers
            .iter()
            .any(|peer| via.contains(&peer.name) && peer.attests.contains(&domain(id)))
    })
}

/// Of an entry of `deny` somebody must come by every name: one by which nobody does would deny nobody.
fn is_called_so(route: &Route, entry: &Entry) -> bool {
    let below = |host: &str, above: &str| host.ends_with(&format!(".{above}"));
    let meets = |a: &str, b: &str| match (a.strip_prefix("*."), b.strip_prefix("*.")) {
        (None, None) => a == b,
        (Some(above), None) => below(b, above),
        (None, Some(above)) => below(a, above),
        (Some(a), Some(b)) => a == b || below(a, b) || below(b, a),
    };
    (entry.sni.iter().flatten()).all(|name| route.hosts.iter().any(|host| meets(name, host)))
}
