//! What one document cannot know of itself: references, duplicates, contradictions, and fields
//! that could never have an effect.

mod backends;
mod control_plane;
pub(crate) mod http_rules;
mod peers;
mod policy;
mod route;
mod rules;
mod sockets;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;
use zeugma_core::identity::TrustDomain;

use super::scalar::{Admin, Size, Text};
use super::{
    Document, InboundSpec, MeshGateway, MeshPeer, MeshRoute, Model, Port, ProfileType,
    ProtocolSpec, RoleSpec, SvidSdsSpec, TrustDomainSpec,
};
use crate::error::{Code, Finding, Findings, suggest};

/// Everything that is wrong with the model as a whole.
pub(crate) fn check(model: &Model) -> Findings {
    let mut findings = Findings::new();
    duplicates(model, &mut findings);
    for gateway in &model.gateways {
        check_gateway(model, gateway, &mut findings);
    }
    for peer in &model.peers {
        check_peer(model, peer, &mut findings);
    }
    for domain in &model.domains {
        check_domain(model, domain, &mut findings);
    }
    peers::told_apart(model, &mut findings);
    route::hosts(model, &mut findings);
    for route in &model.routes {
        route::check(model, route, &mut findings);
    }
    findings
}

/// How many findings of one check have a suggestion.
const SUGGESTED_MAX: usize = 100;

/// One document under check.
struct Checker<'a, T> {
    document: &'a Document<T>,
    findings: &'a mut Findings,
    /// The numbers of the other documents that are being compared with it.
    beside: Vec<u32>,
}

impl<'a, T> Checker<'a, T> {
    const fn new(document: &'a Document<T>, findings: &'a mut Findings) -> Self {
        Self {
            document,
            findings,
            beside: Vec::new(),
        }
    }

    /// Compares it with other documents: what is found then may be the fault of any of them.
    fn beside(&mut self, others: impl IntoIterator<Item = u32>, compare: impl FnOnce(&mut Self)) {
        let before = self.beside.len();
        self.beside.extend(others);
        compare(self);
        self.beside.truncate(before);
    }

    fn push(&mut self, mut finding: Finding) {
        let document = self.document.nth();
        let at = finding.document();
        let own = (finding.document() != document).then_some(document);
        if own.is_some() && finding.code == Code::NoEffect {
            // What is inherited need not suit everyone; but who trusts in a denial must be told.
            let is_denial =
                (finding.place.as_ref()).is_some_and(|at| at.path.starts_with("spec.deny"));
            if !is_denial {
                return;
            }
            finding = finding.warning();
        }
        let beside = self.beside.iter().copied();
        // What it inherits may be at fault as well.
        let inherited = self.document.inherited();
        let also = beside.chain(own).chain(inherited);
        self.findings
            .push(finding)
            .also(also.filter(|nth| *nth != at));
    }

    /// Whether what is written at `path` is another document's.
    fn is_inherited(&self, path: &str) -> bool {
        self.document.at(path).document != self.document.nth()
    }

    /// A finding that points at the value at `path`.
    fn value(&mut self, code: Code, path: &str, message: String, help: &str) {
        let finding = Finding::error(code, message)
            .help(help)
            .at(self.document.at(path));
        self.push(finding);
    }

    /// A finding that points at the key of `path`.
    fn key(&mut self, code: Code, path: &str, message: String, help: &str) {
        let finding = Finding::error(code, message)
            .help(help)
            .at(self.document.at_key(path));
        self.push(finding);
    }

    /// A reference that names nothing.
    fn unknown<'s>(
        &mut self,
        path: &str,
        message: String,
        name: &str,
        known: impl IntoIterator<Item = &'s str>,
    ) {
        // To compare every wrong name with every right one would be quadratic in both.
        let help = if self.findings.len() < SUGGESTED_MAX {
            suggest(name, known)
        } else {
            Some("write a name that exists".to_owned())
        };
        let finding = Finding::error(Code::UnknownReference, message)
            .maybe_help(help)
            .at(self.document.at(path));
        self.push(finding);
    }

    /// A field that is written but could have no effect.
    fn no_effect(&mut self, path: &str, why: &str, help: &str) {
        let name = path.rsplit('.').next().unwrap_or(path);
        self.key(
            Code::NoEffect,
            path,
            format!("`{name}` has no effect: {why}"),
            help,
        );
    }

    /// A number out of its range.
    fn range<N: PartialOrd + std::fmt::Display>(
        &mut self,
        path: &str,
        value: Option<N>,
        range: RangeInclusive<N>,
    ) {
        if let Some(value) = value
            && !range.contains(&value)
        {
            self.value(
                Code::BadValue,
                path,
                format!("{value} is out of range"),
                &format!("write {} to {}", range.start(), range.end()),
            );
        }
    }

    /// A duration below what can work.
    fn at_least(&mut self, path: &str, value: Option<&Text<Duration>>, millis: u64) {
        if let Some(Text(value)) = value
            && *value < Duration::from_millis(millis)
        {
            self.value(
                Code::BadValue,
                path,
                format!("{value:?} is too short"),
                &format!("write `{millis}ms` or more"),
            );
        }
    }

    /// A size out of its range.
    fn size(&mut self, path: &str, value: Option<&Text<Size>>, range: RangeInclusive<usize>) {
        self.range(path, value.map(|size| size.0.0), range);
    }

    /// A name that is also a key of a map.
    fn map_key(&mut self, path: &str, key: &str) {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if key.is_empty() || key.len() > 63 || !key.chars().all(good) {
            self.key(
                Code::BadValue,
                path,
                format!("`{key}` is not a name"),
                "write 1 to 63 letters, digits, `-` or `_`",
            );
        }
    }
}

/// What served before comes first, so that of two that cannot both be it is the new one that is told.
fn old_before_new<'a, T: 'a>(
    documents: impl IntoIterator<Item = &'a Document<T>>,
) -> Vec<&'a Document<T>> {
    let mut documents: Vec<_> = documents.into_iter().collect();
    documents.sort_by_key(|document| document.is_new);
    documents
}

/// The numbers of all gateways.
fn gateways(model: &Model) -> impl Iterator<Item = u32> {
    model.gateways.iter().map(Document::nth)
}

fn duplicates(model: &Model, findings: &mut Findings) {
    fn twice<'a, T>(
        kind: &str,
        documents: impl IntoIterator<Item = &'a Document<T>>,
        id: impl Fn(&Document<T>) -> String,
        path: &str,
        findings: &mut Findings,
    ) where
        T: 'a,
    {
        let mut seen: BTreeMap<String, &Document<T>> = BTreeMap::new();
        for document in old_before_new(documents) {
            let id = id(document);
            match seen.get(&id) {
                Some(first) => {
                    let finding =
                        Finding::error(Code::Duplicate, format!("a second {kind} `{id}`"))
                            .help(format!("the first is at {}", first.position(path)))
                            .at(document.at(path));
                    findings.push(finding).also([first.nth()]);
                }
                None => {
                    seen.insert(id, document);
                }
            }
        }
    }

    let name = "metadata.name";
    twice(
        "MeshGateway",
        &model.gateways,
        |gateway| gateway.name.clone(),
        name,
        findings,
    );
    twice(
        "MeshPeer",
        &model.peers,
        |peer| peer.name.clone(),
        name,
        findings,
    );
    let routes = model.routes.iter().map(AsRef::as_ref);
    twice("MeshRoute", routes, Document::id, name, findings);
    twice(
        "TrustDomain",
        &model.domains,
        |domain| domain.name.clone(),
        name,
        findings,
    );
    twice(
        "MeshDefaults",
        model.defaults.iter().map(AsRef::as_ref),
        |defaults| match defaults.namespace.as_str() {
            "" => "of the mesh".to_owned(),
            namespace => format!("of namespace {namespace}"),
        },
        name,
        findings,
    );
    twice(
        "MeshPeer of cluster",
        &model.peers,
        |peer| peer.spec.cluster.0.0.clone(),
        "spec.cluster",
        findings,
    );
}

fn check_gateway(model: &Model, gateway: &Document<MeshGateway>, findings: &mut Findings) {
    let mut check = Checker::new(gateway, findings);
    let spec = &gateway.spec;
    if spec.listeners.is_empty() {
        check.key(
            Code::MissingField,
            "spec.listeners",
            "there are no listeners".to_owned(),
            "write at least one, such as `mesh: {address: \"0.0.0.0:15443\", role: mesh}`",
        );
    }
    for name in gateway.listeners_as_written() {
        let path = format!("spec.listeners.{name}");
        check.map_key(&path, name);
        let Some(listener) = spec.listeners.get(name) else {
            continue;
        };
        let address = listener.address.0;
        let is_workloads = listener.role == RoleSpec::Workloads;
        if is_workloads && !address.ip().is_loopback() && listener.sources.is_empty() {
            check.value(
                Code::Unsafe,
                &format!("{path}.address"),
                format!("anyone who reaches {address} would count as a workload of this cluster"),
                "write `sources`, the networks of the workloads, or a loopback address",
            );
        }
        if listener.route.is_some() {
            check_one_route(model, &mut check, name);
        }
        if let Some(proxy) = &listener.proxy_protocol {
            let trusted: Vec<IpNet> = proxy.trusted.iter().map(|net| net.0).collect();
            check_trusted(
                &mut check,
                &format!("{path}.proxyProtocol.trusted"),
                &trusted,
            );
        }
    }
    check_svid(&mut check);
    control_plane::check(&mut check);
    sockets::check(&mut check);
    if let Some(Text(Admin::Tcp(address))) = &spec.admin
        && !address.ip().is_loopback()
    {
        check.value(
            Code::Unsafe,
            "spec.admin",
            format!("whoever reaches {address} could change this gateway"),
            "write `unix:` and a path, or a loopback address",
        );
    }
    if spec.admin_token.is_some() && !matches!(spec.admin, Some(Text(Admin::Tcp(_)))) {
        check.no_effect(
            "spec.adminToken",
            "a Unix socket lets its user alone in, and asks for no token",
            "remove it, or write a loopback address as `admin`",
        );
    }
    gateway_ranges(&mut check);
}

/// Who may say of a connection that it is somebody else's.
fn check_trusted(check: &mut Checker<'_, MeshGateway>, path: &str, trusted: &[IpNet]) {
    const HELP: &str = "write the networks of the load balancers, or remove `proxyProtocol`";
    if trusted.is_empty() {
        let message = "nobody could connect: there is no load balancer".to_owned();
        check.key(Code::MissingField, path, message, HELP);
    }
    for (at, net) in trusted.iter().enumerate() {
        if net.prefix_len() == 0 {
            let message = format!("{net} is everybody, and any caller could name any source");
            check.value(Code::Unsafe, &format!("{path}[{at}]"), message, HELP);
        }
    }
}

fn gateway_ranges(check: &mut Checker<'_, MeshGateway>) {
    let spec = &check.document.spec;
    let limits = &spec.limits;
    check.range("spec.workers", spec.workers, 1..=1024);
    check.range(
        "spec.limits.connections",
        limits.connections,
        1..=10_000_000,
    );
    check.range("spec.limits.handshakes", limits.handshakes, 1..=10_000_000);
    check.range("spec.limits.streams", limits.streams, 1..=100_000);
    check.size(
        "spec.limits.headerBytes",
        limits.header_bytes.as_ref(),
        8 * 1024..=1 << 20,
    );
    check.size(
        "spec.limits.memory",
        limits.memory.as_ref(),
        1 << 20..=1 << 40,
    );
    check.at_least(
        "spec.limits.handshakeTimeout",
        limits.handshake_timeout.as_ref(),
        1,
    );
    check.at_least(
        "spec.limits.headerTimeout",
        limits.header_timeout.as_ref(),
        1,
    );
}

fn check_one_route(model: &Model, check: &mut Checker<'_, MeshGateway>, name: &str) {
    let gateway = check.document;
    let Some(listener) = gateway.spec.listeners.get(name) else {
        return;
    };
    let Some(Text(reference)) = &listener.route else {
        return;
    };
    let path = format!("spec.listeners.{name}.route");
    if listener.role == RoleSpec::Mesh {
        check.key(
            Code::Contradiction,
            &path,
            "a mesh listener serves every exported route".to_owned(),
            "remove `route`, or write `role: workloads`",
        );
        return;
    }
    let id = reference.id(&gateway.namespace);
    let Some(route) = model.route(&id) else {
        if gateway.spec.control_plane.is_some() {
            // The control plane has it.
            return;
        }
        check.unknown(
            &path,
            format!("no MeshRoute `{id}`"),
            &id,
            model.route_ids(),
        );
        return;
    };
    check.beside([route.nth()], |check| {
        one_route(check, route, &id, &path);
    });
}

fn one_route(
    check: &mut Checker<'_, MeshGateway>,
    route: &Document<MeshRoute>,
    id: &str,
    path: &str,
) {
    if route.ports().len() > 1 {
        check.value(
            Code::Contradiction,
            path,
            format!("`{id}` has several ports, and nothing here says which is meant"),
            "give each port a route of its own",
        );
    }
    let is_http = |port: &Port| port.protocol == ProtocolSpec::Http;
    if route.ports().len() == 1 && route.ports().iter().any(is_http) {
        check.value(
            Code::Contradiction,
            path,
            format!("`{id}` is http, and a one-route listener is plain TCP: one address, one route"),
            "remove `route` here, a workloads listener tells http routes apart by Host; or write `protocol: tcp` there",
        );
    }
    if route.inbound() == InboundSpec::Passthrough {
        check.value(
            Code::Contradiction,
            path,
            format!("`{id}` passes TLS through by its SNI, which a one-route listener never reads"),
            "write `inbound: terminate` there, or use a workloads listener without `route`",
        );
    }
}

fn check_domain(model: &Model, domain: &Document<TrustDomainSpec>, findings: &mut Findings) {
    let mut check = Checker::new(domain, findings);
    let is_own =
        |gateway: &Document<MeshGateway>| gateway.spec.trust_domain.0.as_str() == domain.name;
    // Of several gateways one may be what another one calls foreign.
    if !model.gateways.is_empty() && model.gateways.iter().all(is_own) {
        check.beside(gateways(model), |check| {
            check.value(
                Code::Contradiction,
                "metadata.name",
                format!(
                    "`{}` is the gateway's own trust domain, whose bundle comes by `svid` alone",
                    domain.name
                ),
                "remove the document, and put the bundle into `svid.files.bundles` if it is not there",
            );
        });
    }
    if let Err(error) = TrustDomain::parse(&domain.name) {
        check.value(
            Code::BadValue,
            "metadata.name",
            format!("`{}` is not a trust domain: {error}", domain.name),
            "write the trust domain, such as `acme.example`",
        );
    }
    if domain.is_written("metadata.namespace") {
        check.no_effect(
            "metadata.namespace",
            "a TrustDomain is of no namespace",
            "remove it",
        );
    }
    check_endpoint(&mut check);
}

/// A gateway has one SVID, of one source.
fn check_svid(check: &mut Checker<'_, MeshGateway>) {
    let svid = &check.document.spec.svid;
    let written = [
        ("files", svid.files.is_some()),
        ("workloadApi", svid.workload_api.is_some()),
        ("sds", svid.sds.is_some()),
    ];
    let mut written = (written.iter()).filter_map(|(name, is_written)| is_written.then_some(*name));
    match (written.next(), written.next()) {
        (None, _) => check.key(
            Code::MissingField,
            "spec.svid",
            "it says nowhere where the gateway's certificate comes from".to_owned(),
            "write `files: {certificate, key, bundles}`, or `workloadApi: unix:///path` of an agent's socket",
        ),
        (Some(first), Some(second)) => check.key(
            Code::Contradiction,
            &format!("spec.svid.{second}"),
            format!("the gateway's certificate comes from `{first}` already"),
            &format!("write one of `{first}` and `{second}`, not both"),
        ),
        (Some(_), None) => {}
    }
    if svid.denied.is_some() && svid.files.is_some() {
        check.key(
            Code::Contradiction,
            "spec.svid.denied",
            "it stands beside `workloadApi`, and the gateway's certificate comes from `files`"
                .to_owned(),
            "write it as `files.denied`",
        );
    }
    if let Some(sds) = &svid.sds {
        check_secrets(check, sds);
    }
}

/// The most secrets that say whom to trust.
const TRUSTS_MAX: usize = 64;
/// The longest name of a secret, in bytes.
const SECRET_NAME_BYTES_MAX: usize = 2048;

/// Each secret is asked for once, by a name.
fn check_secrets(check: &mut Checker<'_, MeshGateway>, sds: &SvidSdsSpec) {
    let bundles = sds.bundles.as_deref();
    if bundles.is_some_and(|bundles| bundles.is_empty() || bundles.len() > TRUSTS_MAX) {
        check.key(
            Code::BadValue,
            "spec.svid.sds.bundles",
            format!("there are 1 to {TRUSTS_MAX} secrets that say whom to trust"),
            "leave it out for `[ROOTCA]`",
        );
    }
    let own = sds
        .svid
        .iter()
        .map(|name| ("spec.svid.sds.svid".to_owned(), name));
    let others = bundles.into_iter().flatten().enumerate();
    let others = others.map(|(nth, name)| (format!("spec.svid.sds.bundles[{nth}]"), name));
    let mut seen = Vec::new();
    let wrong: Vec<_> = own
        .chain(others)
        .filter_map(|(path, name)| {
            let wrong = if name.is_empty() || name.len() > SECRET_NAME_BYTES_MAX {
                Some(format!(
                    "a secret's name has 1 to {SECRET_NAME_BYTES_MAX} bytes"
                ))
            } else if seen.contains(&name) {
                Some(format!("`{name}` is asked for already"))
            } else {
                None
            };
            seen.push(name);
            Some((path, wrong?))
        })
        .collect();
    for (path, wrong) in wrong {
        check.key(Code::BadValue, &path, wrong, "write each name once");
    }
}

/// Where the bundle of a trust domain comes from; nothing of it is inferred (F1).
fn check_endpoint(check: &mut Checker<'_, TrustDomainSpec>) {
    const PROFILE: &str = "spec.bundleEndpointProfile";
    let spec = &check.document.spec;
    let profile = match (&spec.bundle_endpoint_url, &spec.bundle_endpoint_profile) {
        (None, None) if spec.bundle.is_none() => {
            return check.key(
                Code::MissingField,
                "spec",
                "there is neither `bundle` nor `bundleEndpointURL`".to_owned(),
                "write the file of its bundle, or where it is served",
            );
        }
        (None, None) => return,
        (None, Some(_)) => {
            return check.no_effect(
                PROFILE,
                "nothing is fetched without `bundleEndpointURL`",
                "write where the bundle is served, or remove it",
            );
        }
        (Some(_), None) => {
            return check.key(
                Code::MissingField,
                "spec.bundleEndpointURL",
                "`bundleEndpointProfile` is missing: how the endpoint is verified".to_owned(),
                "write `bundleEndpointProfile: {type: https_web}`, or https_spiffe with its `endpointSPIFFEID`",
            );
        }
        (Some(_), Some(profile)) => profile,
    };
    match (profile.kind, &profile.endpoint_spiffe_id) {
        (ProfileType::HttpsWeb, Some(_)) => check.no_effect(
            &format!("{PROFILE}.endpointSPIFFEID"),
            "`https_web` verifies the name in the URL",
            "write `type: https_spiffe`, or remove it",
        ),
        (ProfileType::HttpsSpiffe, None) => check.key(
            Code::MissingField,
            &format!("{PROFILE}.type"),
            "`endpointSPIFFEID` is missing: who must answer".to_owned(),
            "write the endpoint's SPIFFE ID, as its operator tells it",
        ),
        (ProfileType::HttpsSpiffe, Some(Text(id)))
            if spec.bundle.is_none() && id.trust_domain().as_str() == check.document.name =>
        {
            check.key(
                Code::MissingField,
                PROFILE,
                "`bundle` is missing: nothing verifies the first answer".to_owned(),
                "write the file of a bundle that came another way",
            );
        }
        (ProfileType::HttpsWeb, None) | (ProfileType::HttpsSpiffe, Some(_)) => {}
    }
}

fn check_peer(model: &Model, peer: &Document<MeshPeer>, findings: &mut Findings) {
    let mut check = Checker::new(peer, findings);
    let spec = &peer.spec;
    if spec.gateways.is_empty() {
        check.key(
            Code::MissingField,
            "spec.gateways",
            "the peer has no gateways".to_owned(),
            "write at least one, such as `gw.west.example:15443`",
        );
    }
    for (at, Text(gateway)) in spec.gateways.iter().enumerate() {
        if gateway.port.is_none() {
            check.value(
                Code::MissingField,
                &format!("spec.gateways[{at}]"),
                "the port is missing".to_owned(),
                "write `host:port`; Zeugma and Istio use 15443",
            );
        }
    }
    if spec.spiffe_ids.is_empty() {
        check.key(
            Code::Unsafe,
            "spec.spiffeIDs",
            "nobody is expected to answer".to_owned(),
            "write the SPIFFE IDs of its gateways, such as `spiffe://west.example/zeugma/gateway`",
        );
    }
    peers::attests(model, &mut check);
    check.at_least("spec.keepalive.ping", spec.keepalive.ping.as_ref(), 100);
    check.at_least(
        "spec.keepalive.timeout",
        spec.keepalive.timeout.as_ref(),
        100,
    );
    if peer.is_written("metadata.namespace") {
        check.no_effect(
            "metadata.namespace",
            "a MeshPeer is of no namespace",
            "remove it",
        );
    }
}
