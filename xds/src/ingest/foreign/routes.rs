//! Route configurations: the virtual hosts of a connection, and how their requests are told apart.
//!
//! A virtual host is a service. Its routes are rules in the order written, of which the first that matches
//! decides. A timeout is of the time until the head of the answer: what follows is bounded by the idle
//! timeout alone. Of a split the share of a cluster where nothing is healthy goes to the others.

use std::time::Duration;

use zeugma_core::authorize::path::canonical;
use zeugma_core::names::HostPattern;
use zeugma_core::rules::{Field, HeaderChanges, Match, PARTS_MAX, PathMatch, RuleRetries};
use zeugma_core::snapshot::{Failure, HashOn};

use super::at::At;
use super::clusters::{gateway_errors, server_errors};
use super::rbac::{Filter, Kind};
use crate::compile::METHOD;
use crate::model::check::http_rules::is_reserved;
use crate::pb::{self, core, http_rbac, matcher, percent, route};

/// Envoy's default.
const TIMEOUT: Duration = Duration::from_secs(15);
/// No limit, where a limit has to be written.
const NO_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The fields that change headers.
const REQUEST: [&str; 2] = ["request_headers_to_add", "request_headers_to_remove"];
const RESPONSE: [&str; 2] = ["response_headers_to_add", "response_headers_to_remove"];

/// A route configuration.
#[derive(Debug)]
pub(super) struct ReadRoutes {
    pub hosts: Vec<ReadHost>,
}

/// A virtual host.
#[derive(Debug)]
pub(super) struct ReadHost {
    pub name: String,
    /// Where it stands, for messages.
    pub place: String,
    pub domains: Vec<Domain>,
    pub routes: Vec<ReadRoute>,
    /// What it has in place of the filters of the connection, by their names.
    pub filters: Vec<(String, Filter)>,
    pub mirrors: Vec<ReadMirror>,
}

/// What a virtual host answers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Domain {
    /// A host, with this port or without one.
    Host(HostPattern, Option<u16>),
    /// What no other one answers to.
    Rest,
}

/// A route.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ReadRoute {
    pub label: String,
    /// Where it stands, for messages.
    pub place: String,
    pub matched: Match,
    pub to: Vec<(String, u32)>,
    pub timeout: Duration,
    pub idle: Option<Duration>,
    pub per_try: Option<Duration>,
    pub retries: RuleRetries,
    pub request: HeaderChanges,
    pub response: HeaderChanges,
    pub hash: Option<HashOn>,
}

/// A copy.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ReadMirror {
    pub cluster: String,
    pub share: f64,
}

/// Reads a route configuration.
pub(super) fn read(config: &route::RouteConfiguration, at: &At<'_>) -> Result<ReadRoutes, String> {
    at.field("validate_clusters").must(
        config.validate_clusters.is_none_or(|is| is.value),
        "a route to a cluster that is not there is refused",
    )?;
    let of_config = Headers {
        request: (
            &config.request_headers_to_add,
            &config.request_headers_to_remove,
        ),
        response: (
            &config.response_headers_to_add,
            &config.response_headers_to_remove,
        ),
    };
    let mut hosts = Vec::new();
    for (nth, host) in config.virtual_hosts.iter().enumerate() {
        hosts.push(read_host(
            host,
            of_config,
            at,
            &at.nth("virtual_hosts", nth),
        )?);
    }
    Ok(ReadRoutes { hosts })
}

/// The changes to headers that one level has.
#[derive(Debug, Clone, Copy)]
struct Headers<'a> {
    request: (&'a [core::HeaderValueOption], &'a [String]),
    response: (&'a [core::HeaderValueOption], &'a [String]),
}

fn read_host(
    host: &route::VirtualHost,
    of_config: Headers<'_>,
    config_at: &At<'_>,
    at: &At<'_>,
) -> Result<ReadHost, String> {
    let mut domains = Vec::new();
    for (nth, domain) in host.domains.iter().enumerate() {
        let at = at.nth("domains", nth);
        domains.push(read_domain(domain).map_err(|why| at.why(why))?);
    }
    at.field("domains")
        .must(!domains.is_empty(), "it has none")?;
    at.field("routes")
        .must(!host.routes.is_empty(), "it has none")?;
    let of_host = Headers {
        request: (
            &host.request_headers_to_add,
            &host.request_headers_to_remove,
        ),
        response: (
            &host.response_headers_to_add,
            &host.response_headers_to_remove,
        ),
    };
    let host_mirrors = read_mirrors(&host.request_mirror_policies, at)?;
    let mut routes = Vec::new();
    let mut mirrors: Option<Vec<ReadMirror>> = None;
    for (nth, one) in host.routes.iter().enumerate() {
        let place = at.nth("routes", nth);
        let levels = [(of_host, at), (of_config, config_at)];
        let (read, own) = read_route(one, nth, (host.retry_policy.as_ref(), &levels), &place)?;
        let copies = if own.is_empty() {
            host_mirrors.clone()
        } else {
            own
        };
        let known = mirrors.get_or_insert_with(|| copies.clone());
        (place.field("route").field("request_mirror_policies")).must(
            *known == copies,
            "the routes of a virtual host are copied alike or not at all",
        )?;
        routes.push(read);
    }
    let mut names: Vec<&String> = host.typed_per_filter_config.keys().collect();
    names.sort_unstable();
    let mut filters = Vec::new();
    for name in names {
        let at = at.key("typed_per_filter_config", name);
        let Some(any) = host.typed_per_filter_config.get(name) else {
            continue;
        };
        let own: http_rbac::RbacPerRoute = pb::unpack(any).map_err(|why| at.why(why))?;
        let at = at.field("rbac");
        let rules = own.rbac.as_ref().and_then(|rbac| rbac.rules.as_ref());
        filters.push((
            name.clone(),
            Filter::read(rules, Kind::Http, &at.field("rules"))?,
        ));
    }
    Ok(ReadHost {
        name: host.name.clone(),
        place: at.to_string(),
        domains,
        routes,
        filters,
        mirrors: mirrors.unwrap_or_default(),
    })
}

fn read_domain(text: &str) -> Result<Domain, String> {
    if text == "*" {
        return Ok(Domain::Rest);
    }
    let (host, port) = match text.rsplit_once(':') {
        None => (text, None),
        Some((host, port)) => {
            let port = port.parse().ok().filter(|port| *port > 0);
            let port = port.ok_or("it must be a host, `host:port`, `*.host` or `*`")?;
            (host, Some(port))
        }
    };
    let pattern = HostPattern::parse(host).map_err(|error| format!("`{text}`: {error}"))?;
    Ok(Domain::Host(pattern, port))
}

type Around<'a> = (
    Option<&'a route::RetryPolicy>,
    &'a [(Headers<'a>, &'a At<'a>)],
);

fn read_route(
    one: &route::Route,
    nth: usize,
    (host_retries, around): Around<'_>,
    at: &At<'_>,
) -> Result<(ReadRoute, Vec<ReadMirror>), String> {
    use route::route::Action;

    (at.field("typed_per_filter_config")).must(
        one.typed_per_filter_config.is_empty(),
        "filters are asked of a virtual host as a whole",
    )?;
    let action = match &one.action {
        Some(Action::Route(action)) => action,
        Some(Action::Redirect(_)) => {
            return at.field("redirect").refuse("requests are not redirected");
        }
        Some(Action::DirectResponse(_)) => {
            return at
                .field("direct_response")
                .refuse("requests are not answered here");
        }
        Some(Action::FilterAction(_) | Action::NonForwardingAction(_)) | None => {
            return at.refuse("it leads to no cluster");
        }
    };
    let matched = match &one.r#match {
        Some(matched) => read_match(matched, &at.field("match"))?,
        None => return at.field("match").refuse("it is missing"),
    };
    let own = Headers {
        request: (&one.request_headers_to_add, &one.request_headers_to_remove),
        response: (
            &one.response_headers_to_add,
            &one.response_headers_to_remove,
        ),
    };
    // The most specific one is the first, and what follows overrules it.
    let levels = || std::iter::once((own, at)).chain(around.iter().copied());
    let mut request = HeaderChanges::default();
    let mut response = HeaderChanges::default();
    for (headers, at) in levels() {
        let (add, remove) = headers.request;
        change(&mut request, (add, remove), REQUEST, at)?;
        let (add, remove) = headers.response;
        change(&mut response, (add, remove), RESPONSE, at)?;
    }
    let place = at.to_string();
    let at = at.field("route");
    let to = clusters(action, &at)?;
    let timeout = match super::duration(action.timeout.as_ref(), &at.field("timeout"))? {
        None => TIMEOUT,
        Some(Duration::ZERO) => NO_TIMEOUT,
        Some(timeout) => timeout,
    };
    let idle = super::duration(action.idle_timeout.as_ref(), &at.field("idle_timeout"))?;
    let idle = idle.map(|idle| if idle.is_zero() { NO_TIMEOUT } else { idle });
    let policy_at = at.field("retry_policy");
    let policy = action.retry_policy.as_ref().or(host_retries);
    let (retries, per_try) = read_retries(policy, &policy_at)?;
    let label = if one.name.is_empty() {
        nth.to_string()
    } else {
        one.name.clone()
    };
    let route = ReadRoute {
        label,
        place,
        matched,
        to,
        timeout,
        idle,
        per_try,
        retries,
        request,
        response,
        hash: read_hash(&action.hash_policy, &at)?,
    };
    Ok((route, read_mirrors(&action.request_mirror_policies, &at)?))
}

fn read_match(one: &route::RouteMatch, at: &At<'_>) -> Result<Match, String> {
    use route::query_parameter_matcher::QueryParameterMatchSpecifier;
    use route::route_match::PathSpecifier;

    at.field("case_sensitive").must(
        one.case_sensitive.is_none_or(|is| is.value),
        "paths are told apart by their case",
    )?;
    let certain = |path: &str, name| match canonical(path) {
        Some(certain) if certain == path => Ok(()),
        Some(certain) => at
            .field(name)
            .refuse(format!("it must be written `{certain}`")),
        None => at
            .field(name)
            .refuse(format!("no request is matched by `{path}`")),
    };
    let path = match &one.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) if prefix == "/" => PathMatch::Any,
        Some(PathSpecifier::Prefix(prefix)) => {
            certain(prefix, "prefix")?;
            PathMatch::Begins(prefix.as_str().into())
        }
        Some(PathSpecifier::Path(path)) => {
            certain(path, "path")?;
            PathMatch::Exact(path.as_str().into())
        }
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            certain(prefix, "path_separated_prefix")?;
            at.field("path_separated_prefix")
                .must(!prefix.ends_with('/'), "it must not end with `/`")?;
            PathMatch::Prefix(prefix.as_str().into())
        }
        _ => {
            return at.refuse(
                "its path is matched by `prefix`, `path` or `path_separated_prefix` alone",
            );
        }
    };
    let mut method = None;
    let mut headers = Vec::new();
    for (nth, header) in one.headers.iter().enumerate() {
        let at = at.nth("headers", nth);
        let value = literal_header(header, &at)?;
        if header.name == METHOD {
            at.must(method.is_none(), "a request has one method")?;
            method = Some(value.into());
        } else {
            at.field("name").must(
                !header.name.starts_with(':') && !header.name.eq_ignore_ascii_case("host"),
                format!("of these `{METHOD}` alone can be asked for"),
            )?;
            headers.push(Field {
                name: header.name.to_ascii_lowercase().into(),
                value: value.into(),
            });
        }
    }
    let mut query = Vec::new();
    for (nth, parameter) in one.query_parameters.iter().enumerate() {
        let at = at.nth("query_parameters", nth);
        let Some(QueryParameterMatchSpecifier::StringMatch(text)) =
            &parameter.query_parameter_match_specifier
        else {
            return at.refuse("it is matched by `string_match` alone");
        };
        query.push(Field {
            name: parameter.name.as_str().into(),
            value: literal(text, &at.field("string_match"))?.into(),
        });
    }
    Ok(Match {
        rule: 0,
        path,
        method,
        headers,
        query,
    })
}

/// The one value that a header must have.
pub(super) fn literal_header<'h>(
    header: &'h route::HeaderMatcher,
    at: &At<'_>,
) -> Result<&'h str, String> {
    use route::header_matcher::HeaderMatchSpecifier;

    at.field("invert_match")
        .must(!header.invert_match, "it is not supported")?;
    at.field("treat_missing_header_as_empty")
        .must(!header.treat_missing_header_as_empty, "it is not supported")?;
    #[expect(deprecated, reason = "control planes in use say it")]
    match &header.header_match_specifier {
        Some(HeaderMatchSpecifier::StringMatch(text)) => literal(text, &at.field("string_match")),
        Some(HeaderMatchSpecifier::ExactMatch(text)) => Ok(text),
        _ => at.refuse("a header is matched by its whole value alone"),
    }
}

fn literal<'t>(text: &'t matcher::StringMatcher, at: &At<'_>) -> Result<&'t str, String> {
    at.field("ignore_case")
        .must(!text.ignore_case, "it is not supported")?;
    match &text.match_pattern {
        Some(matcher::string_matcher::MatchPattern::Exact(text)) => Ok(text),
        _ => at.refuse("a text is matched by `exact` alone"),
    }
}

/// The clusters that a route leads to, with their weights.
fn clusters(action: &route::RouteAction, at: &At<'_>) -> Result<Vec<(String, u32)>, String> {
    use route::route_action::ClusterSpecifier;

    match &action.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => Ok(vec![(name.clone(), 1)]),
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            let at = at.field("weighted_clusters");
            let parts: Vec<(String, u32)> = (weighted.clusters.iter())
                .map(|one| {
                    (
                        one.name.clone(),
                        one.weight.map_or(0, |weight| weight.value),
                    )
                })
                .collect();
            (at.field("clusters")).must(
                parts.len() <= PARTS_MAX,
                format!("a split has at most {PARTS_MAX} parts"),
            )?;
            let sum: u64 = parts.iter().map(|(_, weight)| u64::from(*weight)).sum();
            (at.field("clusters")).must(sum > 0, "none of them has a weight")?;
            #[expect(deprecated, reason = "control planes in use say it")]
            let total = weighted.total_weight;
            (at.field("total_weight")).must(
                total.is_none_or(|total| u64::from(total.value) == sum),
                format!("it is not the sum of the weights, {sum}"),
            )?;
            Ok(parts)
        }
        _ => at.refuse("it leads to a cluster, or to some by weight, alone"),
    }
}

fn read_hash(
    policies: &[route::route_action::HashPolicy],
    at: &At<'_>,
) -> Result<Option<HashOn>, String> {
    use route::route_action::hash_policy::PolicySpecifier;

    let policy = match policies {
        [] => return Ok(None),
        [one] => one,
        [_, ..] => {
            return at
                .nth("hash_policy", 1)
                .refuse("a key is made of one thing");
        }
    };
    let at = at.nth("hash_policy", 0);
    match &policy.policy_specifier {
        Some(PolicySpecifier::Header(header)) => {
            let name = header.header_name.to_ascii_lowercase();
            (at.field("header").field("header_name")).must(
                !name.is_empty() && !name.starts_with(':'),
                "a header alone can be hashed",
            )?;
            Ok(Some(HashOn::Header(name.into())))
        }
        Some(PolicySpecifier::ConnectionProperties(of)) if of.source_ip => Ok(Some(HashOn::Source)),
        _ => at.refuse("a key is made of a header or the source address alone"),
    }
}

/// What is tried again, and how long one try may take.
fn read_retries(
    policy: Option<&route::RetryPolicy>,
    at: &At<'_>,
) -> Result<(RuleRetries, Option<Duration>), String> {
    let Some(policy) = policy else {
        let none = RuleRetries {
            attempts: Some(0),
            on: Some(Vec::new()),
            any_method: Some(true),
        };
        return Ok((none, None));
    };
    let on = causes(policy, at)?;
    for (nth, predicate) in policy.retry_host_predicate.iter().enumerate() {
        use route::retry_policy::retry_host_predicate::ConfigType;
        let at = at.nth("retry_host_predicate", nth);
        let is_known = predicate.config_type.as_ref().is_some_and(|config| {
            let ConfigType::TypedConfig(any) = config;
            pb::unpack::<pb::PreviousHosts>(any).is_ok()
        });
        at.must(
            is_known,
            "another endpoint is taken by that alone that it was not tried",
        )?;
    }
    let per_try = super::duration(
        policy.per_try_timeout.as_ref(),
        &at.field("per_try_timeout"),
    )?;
    let retries = RuleRetries {
        attempts: Some(if on.is_empty() {
            0
        } else {
            policy.num_retries.map_or(1, |count| count.value)
        }),
        on: Some(on),
        any_method: Some(true),
    };
    Ok((retries, per_try.filter(|limit| !limit.is_zero())))
}

/// What a policy has tried again.
fn causes(policy: &route::RetryPolicy, at: &At<'_>) -> Result<Vec<Failure>, String> {
    let broken = [
        Failure::Connect,
        Failure::RefusedStream,
        Failure::Reset,
        Failure::Timeout,
    ];
    let mut on: Vec<Failure> = Vec::new();
    for word in policy
        .retry_on
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
    {
        let more: Vec<Failure> = match word {
            "5xx" => broken.into_iter().chain(server_errors()).collect(),
            // That there is no answer counts as one of them, as it does for `5xx`.
            "gateway-error" => broken.into_iter().chain(gateway_errors()).collect(),
            "reset" => vec![Failure::Reset],
            "connect-failure" => vec![Failure::Connect],
            "refused-stream" => vec![Failure::RefusedStream],
            "retriable-status-codes" => {
                let mut codes = Vec::new();
                for (nth, code) in policy.retriable_status_codes.iter().enumerate() {
                    let code = u16::try_from(*code)
                        .ok()
                        .filter(|code| (100..600).contains(code));
                    match code {
                        Some(code) => codes.push(Failure::Status(code)),
                        None => {
                            return at
                                .nth("retriable_status_codes", nth)
                                .refuse("it is no status");
                        }
                    }
                }
                codes
            }
            "cancelled" => vec![Failure::Grpc(1)],
            "deadline-exceeded" => vec![Failure::Grpc(4)],
            "resource-exhausted" => vec![Failure::Grpc(8)],
            "internal" => vec![Failure::Grpc(13)],
            "unavailable" => vec![Failure::Unavailable],
            other => {
                return at
                    .field("retry_on")
                    .refuse(format!("`{other}` is not supported"));
            }
        };
        on.extend(more);
    }
    on.sort_unstable();
    on.dedup();
    Ok(on)
}

fn read_mirrors(
    policies: &[route::route_action::RequestMirrorPolicy],
    at: &At<'_>,
) -> Result<Vec<ReadMirror>, String> {
    let mut mirrors = Vec::new();
    for (nth, policy) in policies.iter().enumerate() {
        let at = at.nth("request_mirror_policies", nth);
        at.field("cluster")
            .must(!policy.cluster.is_empty(), "it is missing")?;
        (at.field("disable_shadow_host_suffix_append")).must(
            policy.disable_shadow_host_suffix_append,
            "it must be true: copies are sent to the host of what they are copies of",
        )?;
        let fraction = policy.runtime_fraction.as_ref();
        let share = match fraction.and_then(|fraction| fraction.default_value) {
            Some(fraction) => share(fraction),
            None => 1.0,
        };
        mirrors.push(ReadMirror {
            cluster: policy.cluster.clone(),
            share,
        });
    }
    Ok(mirrors)
}

fn share(fraction: percent::FractionalPercent) -> f64 {
    use percent::fractional_percent::DenominatorType;

    let whole = match DenominatorType::try_from(fraction.denominator) {
        Ok(DenominatorType::Hundred) | Err(_) => 100.0,
        Ok(DenominatorType::TenThousand) => 10_000.0,
        Ok(DenominatorType::Million) => 1_000_000.0,
    };
    (f64::from(fraction.numerator) / whole).min(1.0)
}

/// Makes the changes of one more level, which come after those of the levels before.
fn change(
    changes: &mut HeaderChanges,
    (add, remove): (&[core::HeaderValueOption], &[String]),
    [added, removed]: [&'static str; 2],
    at: &At<'_>,
) -> Result<(), String> {
    use core::header_value_option::HeaderAppendAction;

    // What begins so in an answer is how a call ended, and how its messages are read.
    let is_grpc = |name: &str| added == RESPONSE[0] && name.starts_with("grpc-");
    let changeable = |name: &str, at: &At<'_>| {
        changeable(name, at).and_then(|name| {
            at.must(!is_grpc(&name), format!("`{name}` is the service's own"))?;
            Ok(name)
        })
    };
    for (nth, name) in remove.iter().enumerate() {
        let at = at.nth(removed, nth);
        let name = changeable(name, &at)?;
        at.must(
            !is_in(&changes.set, &name) && !is_in(&changes.add, &name),
            format!("`{name}` is set or added by another level"),
        )?;
        if !changes.remove.iter().any(|known| **known == *name) {
            changes.remove.push(name.into());
        }
    }
    for (nth, option) in add.iter().enumerate() {
        let at = at.nth(added, nth);
        let Some(header) = &option.header else {
            return at.field("header").refuse("it is missing");
        };
        let place = at.field("header");
        let name = changeable(&header.key, &place.field("key"))?;
        let value = header_value(&header.value, &place.field("value"))?;
        #[expect(deprecated, reason = "control planes in use say it")]
        let is_added = match (
            option.append,
            HeaderAppendAction::try_from(option.append_action),
        ) {
            (Some(append), Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => append.value,
            (None, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => true,
            (None, Ok(HeaderAppendAction::OverwriteIfExistsOrAdd)) => false,
            (Some(_), _) => return at.field("append").refuse("`append_action` is there too"),
            (None, _) => {
                return (at.field("append_action"))
                    .refuse("a header is set or added, whatever is there");
            }
        };
        at.must(
            !changes.remove.iter().any(|known| **known == *name),
            format!("`{name}` is removed too"),
        )?;
        let field = Field {
            name: name.clone().into(),
            value: value.into(),
        };
        if is_added {
            at.must(!is_in(&changes.set, &name), format!("`{name}` is set too"))?;
            changes.add.push(field);
        } else {
            at.must(
                !is_in(&changes.add, &name),
                format!("`{name}` is added too"),
            )?;
            changes.set.retain(|known| *known.name != *name);
            changes.set.push(field);
        }
    }
    Ok(())
}

fn is_in(fields: &[Field], name: &str) -> bool {
    fields.iter().any(|field| *field.name == *name)
}

fn changeable(name: &str, at: &At<'_>) -> Result<String, String> {
    let lower = name.to_ascii_lowercase();
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    at.must(
        !lower.is_empty() && lower.bytes().all(is_token),
        format!("`{name}` is not the name of a header"),
    )?;
    at.must(
        !is_reserved(&lower),
        format!("`{lower}` is the gateway's own"),
    )?;
    Ok(lower)
}

fn header_value(value: &str, at: &At<'_>) -> Result<String, String> {
    at.must(!value.is_empty(), "it is empty")?;
    at.must(
        value.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
        "it holds what no header may",
    )?;
    let plain = value.replace("%%", "");
    at.must(!plain.contains('%'), "command operators are not supported")?;
    Ok(value.replace("%%", "%"))
}
