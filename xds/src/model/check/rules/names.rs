//! What `sni` does not meet, though it may look so.

use zeugma_core::names::HostPattern;

use super::{Checker, Way};
use crate::error::{Code, Finding};
use crate::model::scalar::{Sni, Text};
use crate::model::{MeshRoute, Model, PolicySpec, RuleSpec};

pub(super) fn check(
    model: &Model,
    check: &mut Checker<'_, MeshRoute>,
    ways: &[Way],
    rule: &RuleSpec,
    path: &str,
) {
    if rule.sni.is_none() || check.is_inherited(path) {
        return;
    }
    between_gateways(model, check, ways, rule, path);
    if path.starts_with("spec.deny") {
        without_a_name(check, ways, rule, path);
    }
}

/// Peers' gateways name the first exact host of a route whose TLS is ended.
fn between_gateways(
    model: &Model,
    check: &mut Checker<'_, MeshRoute>,
    ways: &[Way],
    rule: &RuleSpec,
    path: &str,
) {
    let route = check.document;
    let is_called = (model.gateways.iter()).any(|gateway| {
        model
            .other_peers(&gateway.spec.cluster.0.0)
            .next()
            .is_some()
    });
    let is_met = |way: &Way| way.is_mesh && way.has_identity && way.is_asked(rule);
    let Some(first) = route
        .first_host()
        .filter(|_| is_called && ways.iter().any(is_met))
    else {
        return;
    };
    let named = || rule.sni.iter().flatten().map(|Text(Sni(named))| named);
    if named().any(|named| named.matches(&first)) {
        return;
    }
    let hosts = route.hosts();
    let other = named().enumerate().find_map(|(at, named)| match named {
        HostPattern::Exact(host) if hosts.iter().any(|of| of.matches(host)) => Some((at, host)),
        HostPattern::Exact(_) | HostPattern::Below(_) => None,
    });
    let Some((at, host)) = other else {
        return;
    };
    let finding = Finding::error(
        Code::NoEffect,
        format!(
            "this name has no effect on what comes from peers' gateways: for each host of this route they name `{first}`"
        ),
    )
    .help(format!("give `{host}` a route of its own, or name `{first}` too"))
    .at(route.at(&format!("{path}.sni[{at}]")))
    .warning();
    check.push(finding);
}

/// What has no server name is denied by no entry that asks for one.
fn without_a_name(check: &mut Checker<'_, MeshRoute>, ways: &[Way], rule: &RuleSpec, path: &str) {
    let spec = &check.document.spec;
    if spec.policy == Some(PolicySpec::Audit) {
        return;
    }
    let may_be_let_in =
        |way: &Way| (spec.allow.iter()).any(|of| of.value.sni.is_none() && way.is_asked(&of.value));
    let is_kept_out =
        |way: &Way| (spec.deny.iter()).any(|of| is_of_all(&of.value) && way.is_named(&of.value));
    let open = (ways.iter())
        .find(|way| !way.has_sni && way.is_asked(rule) && may_be_let_in(way) && !is_kept_out(way));
    // One that asks for more than it can be asked is told by itself.
    if let Some(open) = open.filter(|_| ways.iter().any(|way| way.has_sni && way.is_asked(rule))) {
        let listener = &open.listener;
        let finding = Finding::error(
            Code::Unsafe,
            format!("what comes in by `{listener}` without TLS has no server name: this denies none of it"),
        )
        .help(format!(
            "deny `listeners: [{listener}]` by an entry of its own, or say by `listeners` here for which others this is"
        ))
        .at(check.document.at_key(&format!("{path}.sni")))
        .warning();
        check.push(finding);
    }
}

/// Whether it asks for listeners alone.
const fn is_of_all(rule: &RuleSpec) -> bool {
    let RuleSpec {
        from: None,
        via: None,
        listeners: Some(_),
        sources: None,
        sni: None,
        methods: None,
        paths: None,
        headers: None,
    } = rule
    else {
        return false;
    };
    true
}
