//! What a service's policy makes of a caller, and what is told of that.

use zeugma_core::authorize::{Asking, Verdict, authorize};
use zeugma_core::snapshot::{Rule, Service, ServiceIx, Snapshot};
use zeugma_core::verdict::Reason;

use crate::metrics::Metrics;

/// Whether a caller is let in, and why.
pub(crate) struct Judged<'a> {
    pub(crate) verdict: Result<(), Reason>,
    /// The rule that decided.
    pub(crate) rule: Option<&'a Rule>,
    /// What the log says of it.
    pub(crate) detail: Option<String>,
}

/// Asks the policy of a service; what it would have denied is counted.
pub(crate) fn judge<'a>(
    snapshot: &'a Snapshot,
    service: ServiceIx,
    asking: &Asking<'_>,
    metrics: &Metrics,
) -> Judged<'a> {
    let of = snapshot.service(service);
    let deny = |rule: Option<usize>| rule.and_then(|nth| of.policy.deny.get(nth));
    match authorize(snapshot, service, asking) {
        Verdict::Allow { rule } => Judged {
            verdict: Ok(()),
            rule: of.policy.allow.get(rule),
            detail: None,
        },
        Verdict::Audit {
            reason,
            rule,
            nearest,
        } => {
            metrics.audited(&of.name, reason);
            Judged {
                verdict: Ok(()),
                rule: deny(rule),
                detail: Some(explain_audit(of, reason, nearest)),
            }
        }
        Verdict::Deny {
            reason,
            rule,
            nearest,
        } => Judged {
            verdict: Err(reason),
            rule: deny(rule),
            detail: explain_denial(of, nearest),
        },
    }
}

/// Which allow rule came nearest to letting a caller in.
fn explain_denial(service: &Service, nearest: Option<usize>) -> Option<String> {
    let position = service.policy.allow.get(nearest?)?.position.as_ref()?;
    Some(format!(
        "the allow rule at {position} is the nearest to a match"
    ))
}

/// What a policy of `audit` would have done.
pub(crate) fn explain_audit(service: &Service, reason: Reason, nearest: Option<usize>) -> String {
    let denied = format!("let in by `policy: audit`; enforced: {}", reason.label());
    match explain_denial(service, nearest) {
        Some(why) => format!("{denied}: {why}"),
        None => denied,
    }
}
