//! Envoy's RBAC filters as rules of ours.
//!
//! What a chain of filters lets through is let through by each of them: their allow rules are met with each
//! other, rule by rule, and their deny rules added up. A `not_id` can be said in one place alone: a DENY policy
//! of nothing but it lets through whom it names and nobody else.

use std::sync::Arc;

use ipnet::IpNet;
use zeugma_core::authorize::path::canonical;
use zeugma_core::names::{Host, HostPattern};
use zeugma_core::snapshot::{PathPattern, Policy, Rule, SniPattern};

use super::at::At;
use super::ids::{id_pattern, meet};
use crate::pb::{self, matcher, rbac};

/// The most rules that filters may amount to together, and before they are joined too.
const RULES_MAX: usize = 4096;
/// The most that the names in one list of rules, times those in another, may be where they are met.
const PAIRS_MAX: usize = RULES_MAX * RULES_MAX;
/// The most names in one list of rules.
const NAMES_MAX: usize = 2 * RULES_MAX;
/// The most policies that let through whom they name alone.
const ONLY_MAX: usize = 64;
const METHOD: &str = ":method";

/// What one filter says.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Filter {
    /// Those it lets through; `None`: anybody.
    allow: Option<Vec<Rule>>,
    /// Those it does not, whatever else.
    deny: Vec<Rule>,
    /// Each lets through those it names alone.
    only: Vec<Vec<Rule>>,
    /// Where it asks for a verified caller.
    asks_identity: Option<String>,
    /// Where it asks for the server name of TLS.
    asks_sni: Option<String>,
    /// Where it asks for the other end of the socket, whatever a PROXY header says.
    asks_socket: Option<String>,
}

/// Where a filter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Network,
    Http,
}

/// What is known of the callers that a filter is asked about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Callers {
    /// Whether Envoy and we see the same server name of their TLS.
    pub has_sni: bool,
    pub is_verified: bool,
    pub is_proxied: bool,
}

impl Filter {
    /// Reads rules; none let anybody through.
    pub(super) fn read(
        rules: Option<&rbac::Rbac>,
        kind: Kind,
        at: &At<'_>,
    ) -> Result<Self, String> {
        use rbac::rbac::Action;

        let Some(rules) = rules else {
            return Ok(Self::default());
        };
        let mut reader = Reader {
            kind,
            filter: Self::default(),
        };
        let mut policies: Vec<_> = rules.policies.iter().collect();
        policies.sort_by_key(|(name, _)| name.as_str());
        match Action::try_from(rules.action) {
            Ok(Action::Allow) => {
                let mut allow = Vec::new();
                for (name, policy) in policies {
                    let at = at.key("policies", name);
                    add_all(&mut allow, reader.policy(policy, &at)?).map_err(|why| at.why(why))?;
                }
                reader.filter.allow = Some(joined(allow).map_err(|why| at.why(why))?);
            }
            Ok(Action::Deny) => {
                for (name, policy) in policies {
                    let at = at.key("policies", name);
                    if let Some(only) = reader.only(policy, &at)? {
                        reader.filter.only.push(only);
                        let count = reader.filter.only.len();
                        at.must(
                            count <= ONLY_MAX,
                            format!("more than {ONLY_MAX} are like it"),
                        )?;
                    } else {
                        let deny = reader.policy(policy, &at)?;
                        add_all(&mut reader.filter.deny, deny).map_err(|why| at.why(why))?;
                    }
                }
            }
            Ok(Action::Log) | Err(_) => {
                return at.field("action").refuse("it is neither ALLOW nor DENY");
            }
        }
        Ok(reader.filter)
    }

    /// Whether it can be asked about these callers.
    pub(super) fn suits(&self, callers: Callers) -> Result<(), String> {
        if let Some(place) = self.asks_identity.as_ref().filter(|_| !callers.is_verified) {
            return Err(format!(
                "{place}: it asks for a verified caller, and TLS is not ended here: it could never match"
            ));
        }
        if let Some(place) = self.asks_sni.as_ref().filter(|_| !callers.has_sni) {
            return Err(format!(
                "{place}: it asks for a server name, and TLS is not told apart by a TlsInspector and a chain of its own"
            ));
        }
        if let Some(place) = self.asks_socket.as_ref().filter(|_| callers.is_proxied) {
            return Err(format!(
                "{place}: behind a PROXY header the caller's own address alone is known; ask for `source_ip`"
            ));
        }
        Ok(())
    }
}

/// What filters let through, one after the other.
#[derive(Debug, Clone)]
pub(super) struct Passed {
    allow: Vec<Rule>,
    deny: Vec<Rule>,
}

impl Passed {
    /// Those of this rule.
    pub(super) fn of(rule: Rule) -> Self {
        Self {
            allow: vec![rule],
            deny: Vec::new(),
        }
    }

    /// What another filter leaves of it.
    pub(super) fn and(&mut self, filter: &Filter) -> Result<(), String> {
        for rules in filter.allow.iter().chain(&filter.only) {
            let both = all_of(&self.allow, rules);
            self.allow = both.map_err(|why| format!("with other RBAC filters {why}"))?;
        }
        add_all(&mut self.deny, filter.deny.clone())
            .map_err(|why| format!("with other RBAC filters {why}"))
    }

    /// As a policy.
    pub(super) fn policy(&self) -> Policy {
        Policy {
            allow: self.allow.clone(),
            deny: self.deny.clone(),
            ..Policy::default()
        }
    }
}

struct Reader {
    kind: Kind,
    filter: Filter,
}

impl Reader {
    fn policy(&mut self, policy: &rbac::Policy, at: &At<'_>) -> Result<Vec<Rule>, String> {
        let mut principals = Vec::new();
        for (nth, principal) in policy.principals.iter().enumerate() {
            let at = at.nth("principals", nth);
            let more = self.principal(principal, &at)?;
            add_all(&mut principals, more).map_err(|why| at.why(why))?;
        }
        let mut permissions = Vec::new();
        for (nth, permission) in policy.permissions.iter().enumerate() {
            let at = at.nth("permissions", nth);
            let more = self.permission(permission, &at)?;
            add_all(&mut permissions, more).map_err(|why| at.why(why))?;
        }
        let both =
            joined(principals).and_then(|principals| all_of(&principals, &joined(permissions)?));
        both.map_err(|why| at.why(why))
    }

    /// Whom a DENY policy lets through where it denies everybody else.
    fn only(&mut self, policy: &rbac::Policy, at: &At<'_>) -> Result<Option<Vec<Rule>>, String> {
        use rbac::{permission::Rule as Permitted, principal::Identifier};

        let [principal] = policy.principals.as_slice() else {
            return Ok(None);
        };
        let Some(Identifier::NotId(other)) = &principal.identifier else {
            return Ok(None);
        };
        let at_principal = at.nth("principals", 0);
        let at_principal = at_principal.field("not_id");
        let is_any = |one: &rbac::Permission| matches!(one.rule, Some(Permitted::Any(true)));
        at_principal.must(
            policy.permissions.iter().any(is_any),
            "it can be said of any permission alone",
        )?;
        let named = joined(self.principal(other, &at_principal)?);
        named.map(Some).map_err(|why| at_principal.why(why))
    }

    /// Those whom a principal is, each by itself.
    fn principal(&mut self, principal: &rbac::Principal, at: &At<'_>) -> Result<Vec<Rule>, String> {
        use rbac::principal::Identifier;

        let each = |reader: &mut Self, set: &rbac::principal::Set, at: &At<'_>| {
            let all = set.ids.iter().enumerate();
            all.map(|(nth, id)| reader.principal(id, &at.nth("ids", nth)))
                .collect::<Result<Vec<_>, _>>()
        };
        #[expect(deprecated, reason = "control planes in use say it")]
        match &principal.identifier {
            Some(Identifier::Any(true)) => Ok(vec![Rule::default()]),
            Some(Identifier::AndIds(set)) => {
                let at = at.field("and_ids");
                let all = each(self, set, &at)?;
                let mut all = all.iter();
                let both = all.try_fold(vec![Rule::default()], |one, other| all_of(&one, other));
                both.map_err(|why| at.why(why))
            }
            Some(Identifier::OrIds(set)) => {
                let at = at.field("or_ids");
                let any = joined(each(self, set, &at)?.concat());
                any.map_err(|why| at.why(why))
            }
            Some(Identifier::Authenticated(authenticated)) => {
                let at = at.field("authenticated");
                self.filter
                    .asks_identity
                    .get_or_insert_with(|| at.to_string());
                let mut from = Vec::new();
                if let Some(name) = &authenticated.principal_name {
                    from.push(id_pattern(Some(name), &at.field("principal_name"))?);
                }
                Ok(vec![Rule {
                    from,
                    ..Rule::default()
                }])
            }
            Some(Identifier::SourceIp(range)) => sources(range, &at.field("source_ip")),
            Some(Identifier::DirectRemoteIp(range)) => {
                let at = at.field("direct_remote_ip");
                self.filter
                    .asks_socket
                    .get_or_insert_with(|| at.to_string());
                sources(range, &at)
            }
            Some(Identifier::RemoteIp(range)) => {
                let at = at.field("remote_ip");
                at.must(
                    self.kind == Kind::Network,
                    "of requests it is what a header says; ask for `direct_remote_ip`",
                )?;
                sources(range, &at)
            }
            Some(Identifier::NotId(_)) => at.field("not_id").refuse(
                "it can be said as the only principal of a DENY policy of any permission alone",
            ),
            _ => at.refuse("a principal of this kind is not supported"),
        }
    }

    /// What a permission is of, each by itself.
    fn permission(
        &mut self,
        permission: &rbac::Permission,
        at: &At<'_>,
    ) -> Result<Vec<Rule>, String> {
        use rbac::permission::Rule as Permitted;

        let each = |reader: &mut Self, set: &rbac::permission::Set, at: &At<'_>| {
            let all = set.rules.iter().enumerate();
            all.map(|(nth, rule)| reader.permission(rule, &at.nth("rules", nth)))
                .collect::<Result<Vec<_>, _>>()
        };
        match &permission.rule {
            Some(Permitted::Any(true)) => Ok(vec![Rule::default()]),
            Some(Permitted::AndRules(set)) => {
                let at = at.field("and_rules");
                let all = each(self, set, &at)?;
                let mut all = all.iter();
                let both = all.try_fold(vec![Rule::default()], |one, other| all_of(&one, other));
                both.map_err(|why| at.why(why))
            }
            Some(Permitted::OrRules(set)) => {
                let at = at.field("or_rules");
                let any = joined(each(self, set, &at)?.concat());
                any.map_err(|why| at.why(why))
            }
            Some(Permitted::Header(header)) => {
                let at = at.field("header");
                self.of_http(&at)?;
                method(header, &at).map(|method| {
                    vec![Rule {
                        methods: vec![method],
                        ..Rule::default()
                    }]
                })
            }
            Some(Permitted::UrlPath(path)) => {
                let at = at.field("url_path");
                let at = at.field("path");
                self.of_http(&at)?;
                path_pattern(path, &at).map(|path| {
                    vec![Rule {
                        paths: vec![path],
                        ..Rule::default()
                    }]
                })
            }
            Some(Permitted::RequestedServerName(name)) => {
                let at = at.field("requested_server_name");
                self.filter.asks_sni.get_or_insert_with(|| at.to_string());
                server_name(name, &at).map(|name| {
                    vec![Rule {
                        sni: vec![SniPattern::Text(name)],
                        ..Rule::default()
                    }]
                })
            }
            _ => at.refuse("a permission of this kind is not supported"),
        }
    }

    fn of_http(&self, at: &At<'_>) -> Result<(), String> {
        at.must(
            self.kind == Kind::Http,
            "connections have no such thing, but requests",
        )
    }
}

fn sources(range: &pb::core::CidrRange, at: &At<'_>) -> Result<Vec<Rule>, String> {
    Ok(vec![Rule {
        sources: vec![pb::from_cidr(range).map_err(|why| at.why(why))?],
        ..Rule::default()
    }])
}

fn server_name(name: &matcher::StringMatcher, at: &At<'_>) -> Result<HostPattern, String> {
    use matcher::string_matcher::MatchPattern;

    at.field("ignore_case")
        .must(!name.ignore_case, "it is not supported")?;
    let (field, text, pattern): (_, _, fn(Host) -> HostPattern) = match &name.match_pattern {
        Some(MatchPattern::Exact(text)) => ("exact", text.as_str(), HostPattern::Exact),
        Some(MatchPattern::Suffix(text)) => match text.strip_prefix('.') {
            Some(text) => ("suffix", text, HostPattern::Below),
            None => {
                return (at.field("suffix"))
                    .refuse("it must begin with `.`: names are told apart by whole labels");
            }
        },
        _ => return at.refuse("a server name is matched by `exact` or `suffix` alone"),
    };
    let at = at.field(field);
    let host = Host::parse(text).map_err(|error| at.why(error))?;
    // A deny rule that matches nothing would let through what it names.
    at.must(
        host.as_str() == text,
        format!("no server name is matched by it; `{host}` would be"),
    )?;
    Ok(pattern(host))
}

fn method(header: &pb::route::HeaderMatcher, at: &At<'_>) -> Result<Arc<str>, String> {
    at.field("name").must(
        header.name == METHOD,
        format!("of headers `{METHOD}` alone can be asked for"),
    )?;
    at.field("invert_match")
        .must(!header.invert_match, "it is not supported")?;
    super::routes::literal_header(header, at).map(Into::into)
}

fn path_pattern(path: &matcher::PathMatcher, at: &At<'_>) -> Result<PathPattern, String> {
    use matcher::string_matcher::MatchPattern;

    let Some(matcher::path_matcher::Rule::Path(text)) = &path.rule else {
        return at.refuse("it is missing");
    };
    at.field("ignore_case")
        .must(!text.ignore_case, "it is not supported")?;
    let (path, pattern) = match &text.match_pattern {
        Some(MatchPattern::Exact(path)) => (path, PathPattern::Exact(path.as_str().into())),
        Some(MatchPattern::Prefix(prefix)) if prefix.ends_with('/') => {
            (prefix, PathPattern::Below(prefix.as_str().into()))
        }
        Some(MatchPattern::Prefix(_)) => {
            return (at.field("prefix"))
                .refuse("it must end with `/`: paths are told apart by whole elements");
        }
        _ => return at.refuse("a path is matched by `exact` or `prefix` alone"),
    };
    // A deny rule that matches nothing, or something else, would let through what it names.
    match canonical(path) {
        Some(certain) if certain == *path => Ok(pattern),
        Some(certain) => at.refuse(format!("`{path}` must be written `{certain}`")),
        None => at.refuse(format!("no request is matched by the path `{path}`")),
    }
}

/// Those that are of a rule of each list.
fn all_of(one: &[Rule], other: &[Rule]) -> Result<Vec<Rule>, String> {
    if names(one).saturating_mul(names(other)) > PAIRS_MAX {
        return Err(too_many());
    }
    let pairs = one.iter().flat_map(|a| other.iter().map(move |b| (a, b)));
    let both = pairs.filter_map(|(a, b)| both(a, b));
    // One more than there may be is enough to tell.
    joined(both.take(RULES_MAX + 1).collect())
}

fn too_many() -> String {
    format!("it amounts to more than {RULES_MAX} rules")
}

/// What it costs to look at rules.
fn names(rules: &[Rule]) -> usize {
    let of = |rule: &Rule| {
        let named = [
            &rule.from.len(),
            &rule.sources.len(),
            &rule.sni.len(),
            &rule.methods.len(),
            &rule.paths.len(),
        ];
        named.into_iter().sum::<usize>().max(1)
    };
    rules.iter().map(of).sum()
}

/// Adds rules to those before.
fn add_all(all: &mut Vec<Rule>, more: Vec<Rule>) -> Result<(), String> {
    all.extend(more);
    (all.len() <= RULES_MAX).then_some(()).ok_or_else(too_many)
}

/// Those that are of both rules; `None`: nobody is.
fn both(a: &Rule, b: &Rule) -> Option<Rule> {
    Some(Rule {
        from: common(&a.from, &b.from, meet)?,
        sources: common(&a.sources, &b.sources, meet_nets)?,
        sni: common(&a.sni, &b.sni, meet_names)?,
        methods: common(&a.methods, &b.methods, |a, b| {
            a.iter().filter(|one| b.contains(one)).cloned().collect()
        })?,
        paths: common(&a.paths, &b.paths, meet_paths)?,
        ..Rule::default()
    })
}

/// What both of two fields name, of which an empty one names anything; `None`: nothing.
fn common<T: Clone>(a: &[T], b: &[T], meet: impl Fn(&[T], &[T]) -> Vec<T>) -> Option<Vec<T>> {
    match (a, b) {
        ([], any) | (any, []) => Some(any.to_vec()),
        (a, b) => Some(meet(a, b)).filter(|both| !both.is_empty()),
    }
}

fn meet_nets(a: &[IpNet], b: &[IpNet]) -> Vec<IpNet> {
    let mut both: Vec<IpNet> = Vec::new();
    for (a, b) in a.iter().flat_map(|a| b.iter().map(move |b| (a, b))) {
        let narrower = if b.contains(a) {
            Some(*a)
        } else {
            a.contains(b).then_some(*b)
        };
        both.extend(narrower.filter(|net| !both.contains(net)));
    }
    both
}

fn meet_names(a: &[SniPattern], b: &[SniPattern]) -> Vec<SniPattern> {
    let is_within = |inner: &HostPattern, outer: &HostPattern| match inner {
        HostPattern::Exact(host) => outer.matches(host),
        HostPattern::Below(host) => {
            matches!(outer, HostPattern::Below(_)) && (inner == outer || outer.matches(host))
        }
    };
    let mut both: Vec<SniPattern> = Vec::new();
    for (a, b) in a.iter().flat_map(|a| b.iter().map(move |b| (a, b))) {
        let (x, y) = match (a, b) {
            (SniPattern::Text(x), SniPattern::Text(y))
            | (SniPattern::Host(x), SniPattern::Host(y)) => (x, y),
            // Of what both name there is no pattern; no rule of a stranger names hosts.
            (SniPattern::Text(_), SniPattern::Host(_))
            | (SniPattern::Host(_), SniPattern::Text(_)) => continue,
        };
        let narrower = if is_within(x, y) {
            Some(a)
        } else {
            is_within(y, x).then_some(b)
        };
        both.extend(narrower.filter(|name| !both.contains(name)).cloned());
    }
    both
}

fn meet_paths(a: &[PathPattern], b: &[PathPattern]) -> Vec<PathPattern> {
    let is_within = |inner: &PathPattern, outer: &PathPattern| match (inner, outer) {
        (PathPattern::Exact(a), PathPattern::Exact(b)) => a == b,
        (PathPattern::Exact(a) | PathPattern::Below(a), PathPattern::Below(b)) => {
            a.starts_with(&**b)
        }
        (PathPattern::Below(_), PathPattern::Exact(_)) => false,
    };
    let mut both: Vec<PathPattern> = Vec::new();
    for (a, b) in a.iter().flat_map(|a| b.iter().map(move |b| (a, b))) {
        let narrower = if is_within(a, b) {
            Some(a)
        } else {
            is_within(b, a).then_some(b)
        };
        both.extend(narrower.filter(|path| !both.contains(path)).cloned());
    }
    both
}

/// The same rules, those in one that differ in what one field names.
fn joined(rules: Vec<Rule>) -> Result<Vec<Rule>, String> {
    if rules.len() > RULES_MAX || names(&rules) > NAMES_MAX {
        return Err(too_many());
    }
    let mut all: Vec<Rule> = Vec::new();
    for rule in rules {
        let known = all.iter_mut().find_map(|known| join(known, &rule));
        if known.is_none() {
            all.push(rule);
        }
    }
    Ok(all)
}

/// Takes a rule into another one that differs in one field; whether it did.
fn join(known: &mut Rule, rule: &Rule) -> Option<()> {
    let differs = [
        known.from != rule.from,
        known.sources != rule.sources,
        known.sni != rule.sni,
        known.methods != rule.methods,
        known.paths != rule.paths,
    ];
    match differs {
        [false, false, false, false, false] => Some(()),
        [true, false, false, false, false] => add(&mut known.from, &rule.from),
        [false, true, false, false, false] => add(&mut known.sources, &rule.sources),
        [false, false, true, false, false] => add(&mut known.sni, &rule.sni),
        [false, false, false, true, false] => add(&mut known.methods, &rule.methods),
        [false, false, false, false, true] => add(&mut known.paths, &rule.paths),
        _ => None,
    }
}

fn add<T: Clone + PartialEq>(known: &mut Vec<T>, more: &[T]) -> Option<()> {
    if known.is_empty() || more.is_empty() {
        // One of them names anything.
        known.clear();
        return Some(());
    }
    let new: Vec<T> = (more.iter().filter(|one| !known.contains(one)))
        .cloned()
        .collect();
    known.extend(new);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_kind_are_met_with_each_other() {
        let of = |kind: fn(HostPattern) -> SniPattern, pattern| {
            kind(HostPattern::parse(pattern).unwrap())
        };
        let (text, host) = (SniPattern::Text, SniPattern::Host);
        for kind in [text, host] {
            let both = meet_names(&[of(kind, "*.a")], &[of(kind, "b.a"), of(kind, "b.c")]);
            assert_eq!(both, [of(kind, "b.a")]);
        }
        // `outbound_.80_._.b.a` is below `a` by its text, and is the host `b.a`.
        let both = meet_names(&[of(text, "*.a")], &[of(host, "b.a")]);
        assert_eq!(both, []);
        let both = meet_names(&[of(host, "b.a")], &[of(text, "b.a")]);
        assert_eq!(both, []);
    }
}
