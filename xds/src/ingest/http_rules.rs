//! Routes of a virtual host: how requests are told apart, and where copies of them go.

use std::collections::BTreeMap;
use std::time::Duration;

use zeugma_core::rules::{
    Field, HeaderChanges, HttpRule, Match, PARTS_MAX, Part, PathMatch, RuleRetries, RuleTimeouts,
    Rules,
};
use zeugma_core::snapshot::{Mirror, Position};

use super::Names;
use super::clusters::{all, failure};
use crate::compile::METHOD;
use crate::meta::{ChainMeta, MirrorMeta, PartMeta, RouteMeta, RuleMeta};
use crate::pb::{self, listener, matcher, percent, route};

/// What the routes of a virtual host tell apart, in the order of its routes; `None` where they are
/// one that takes all.
pub(super) fn rules(routes: &[route::Route], names: &Names) -> Result<Option<Rules>, String> {
    let mut matches = Vec::new();
    let mut list: BTreeMap<usize, HttpRule> = BTreeMap::new();
    for (nth, route) in routes.iter().enumerate() {
        let meta: RouteMeta = pb::from_metadata(route.metadata.as_ref())?;
        let Some(meta) = meta.rule else {
            if routes.len() > 1 {
                return Err(format!("route {nth} is of no rule"));
            }
            return Ok(None);
        };
        let wanted = matched(route.r#match.as_ref(), meta.nth);
        matches.push(wanted.map_err(|error| format!("route {nth}: {error}"))?);
        let built = rule(route, &meta, names).map_err(|error| format!("route {nth}: {error}"))?;
        match list.get(&meta.nth) {
            Some(known) if *known != built => {
                return Err(format!("rule {} differs between its routes", meta.nth));
            }
            Some(_) => {}
            None => drop(list.insert(meta.nth, built)),
        }
    }
    if !list.keys().copied().eq(0..list.len()) {
        return Err("a rule has no route".to_owned());
    }
    Ok(Some(Rules {
        matches,
        list: list.into_values().collect(),
    }))
}

fn matched(one: Option<&route::RouteMatch>, rule: usize) -> Result<Match, String> {
    use route::header_matcher::HeaderMatchSpecifier;
    use route::query_parameter_matcher::QueryParameterMatchSpecifier;
    use route::route_match::PathSpecifier;

    let one = one.ok_or("it matches nothing")?;
    let path = match &one.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) if prefix == "/" => PathMatch::Any,
        Some(PathSpecifier::Path(path)) => PathMatch::Exact(path.as_str().into()),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            PathMatch::Prefix(prefix.as_str().into())
        }
        _ => return Err("its path is neither whole nor a prefix by elements".to_owned()),
    };
    let mut method = None;
    let mut headers = Vec::new();
    for header in &one.headers {
        let Some(HeaderMatchSpecifier::StringMatch(value)) = &header.header_match_specifier else {
            return Err(format!(
                "header `{}` is not matched by its text",
                header.name
            ));
        };
        let value = literal(value)?;
        if header.name == METHOD {
            method = Some(value.into());
        } else {
            headers.push(field(&header.name, value));
        }
    }
    let query = (one.query_parameters.iter()).map(|parameter| {
        match &parameter.query_parameter_match_specifier {
            Some(QueryParameterMatchSpecifier::StringMatch(value)) => {
                Ok(field(&parameter.name, literal(value)?))
            }
            _ => Err(format!(
                "query parameter `{}` is not matched by its text",
                parameter.name
            )),
        }
    });
    Ok(Match {
        rule,
        path,
        method,
        headers,
        query: query.collect::<Result<_, _>>()?,
    })
}

fn literal(text: &matcher::StringMatcher) -> Result<&str, String> {
    match &text.match_pattern {
        Some(matcher::string_matcher::MatchPattern::Exact(text)) => Ok(text),
        _ => Err("a text is not matched as it stands".to_owned()),
    }
}

fn field(name: &str, value: &str) -> Field {
    Field {
        name: name.into(),
        value: value.into(),
    }
}

fn rule(route: &route::Route, meta: &RuleMeta, names: &Names) -> Result<HttpRule, String> {
    let parts = meta.parts.as_ref();
    if parts.is_some_and(|parts| parts.len() > PARTS_MAX) {
        return Err(format!("its split has more than {PARTS_MAX} parts"));
    }
    let split = parts.map(|parts| parts.iter().map(|one| part(one, names)).collect());
    Ok(HttpRule {
        label: meta.label.as_str().into(),
        split: split.transpose()?,
        timeouts: RuleTimeouts {
            response_headers: meta.response_headers_millis.map(Duration::from_millis),
            per_try: (meta.per_try_millis)
                .map(|millis| (millis > 0).then(|| Duration::from_millis(millis))),
        },
        retries: RuleRetries {
            attempts: meta.attempts,
            on: (meta.on.as_ref()).map(|on| all(on, failure)).transpose()?,
            any_method: meta.any_method,
        },
        request: changes(
            &route.request_headers_to_add,
            &route.request_headers_to_remove,
        )?,
        response: changes(
            &route.response_headers_to_add,
            &route.response_headers_to_remove,
        )?,
        position: Some(Position::from(&meta.position)),
    })
}

fn part(meta: &PartMeta, names: &Names) -> Result<Part, String> {
    Ok(Part {
        label: meta.label.as_str().into(),
        weight: meta.weight,
        outbound: names.cluster(&meta.outbound)?,
        own: (meta.own.as_deref())
            .map(|name| names.cluster(name))
            .transpose()?,
        host: meta.host.as_deref().map(Into::into),
        service: (meta.service.as_deref())
            .map(|id| names.service(id))
            .transpose()?,
    })
}

fn changes(
    options: &[pb::core::HeaderValueOption],
    remove: &[String],
) -> Result<HeaderChanges, String> {
    use pb::core::header_value_option::HeaderAppendAction;

    let mut changes = HeaderChanges {
        remove: remove.iter().map(|name| name.as_str().into()).collect(),
        ..HeaderChanges::default()
    };
    for option in options {
        let header = option
            .header
            .as_ref()
            .ok_or("a header that is added has no name")?;
        let field = field(&header.key, &header.value);
        match HeaderAppendAction::try_from(option.append_action) {
            Ok(HeaderAppendAction::OverwriteIfExistsOrAdd) => changes.set.push(field),
            Ok(HeaderAppendAction::AppendIfExistsOrAdd) => changes.add.push(field),
            _ => return Err(format!("header `{}` is neither set nor added", header.key)),
        }
    }
    Ok(changes)
}

/// The copies of a route's requests.
pub(super) fn mirrors(route: &route::Route, names: &Names) -> Result<Vec<Mirror>, String> {
    let Some(route::route::Action::Route(action)) = &route.action else {
        return Err("its route leads to no cluster".to_owned());
    };
    let meta: RouteMeta = pb::from_metadata(route.metadata.as_ref())?;
    if meta.mirrors.len() != action.request_mirror_policies.len() {
        return Err("its mirrors do not match their metadata".to_owned());
    }
    action
        .request_mirror_policies
        .iter()
        .zip(meta.mirrors)
        .map(|(policy, meta)| mirror(meta, &policy.cluster, share(policy), names))
        .collect()
}

/// The copies of the connections of a filter chain.
pub(super) fn copies(chain: &listener::FilterChain, names: &Names) -> Result<Vec<Mirror>, String> {
    let Some(metadata) = &chain.metadata else {
        return Ok(Vec::new());
    };
    let meta: ChainMeta = pb::from_metadata(Some(metadata))?;
    (meta.mirrors.into_iter())
        .map(|copies| mirror(copies.mirror, &copies.cluster, copies.share, names))
        .collect()
}

fn mirror(meta: MirrorMeta, cluster: &str, share: f64, names: &Names) -> Result<Mirror, String> {
    if !(0.0..=1.0).contains(&share) {
        return Err(format!("a share of {share} is copied"));
    }
    Ok(Mirror {
        route: meta.route.into(),
        to: names.cluster(cluster)?,
        host: meta.host.into(),
        share,
        timeout: Duration::from_millis(meta.timeout_millis),
        body_bytes_max: meta.body_bytes_max,
        in_flight_max: meta.in_flight_max,
        compare: meta.compare,
        position: meta.position.as_ref().map(Position::from),
    })
}

/// The share of requests that is mirrored; all where nothing is written, as Envoy has it.
fn share(policy: &route::route_action::RequestMirrorPolicy) -> f64 {
    use percent::fractional_percent::DenominatorType;

    let Some(fraction) = policy
        .runtime_fraction
        .as_ref()
        .and_then(|fraction| fraction.default_value)
    else {
        return 1.0;
    };
    let whole = match DenominatorType::try_from(fraction.denominator) {
        Ok(DenominatorType::Hundred) | Err(_) => 100.0,
        Ok(DenominatorType::TenThousand) => 10_000.0,
        Ok(DenominatorType::Million) => 1_000_000.0,
    };
    (f64::from(fraction.numerator) / whole).min(1.0)
}
