//! What runs out while nothing changes, and has to be told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::UnixTime;
use zeugma_core::identity::TrustDomain;

use crate::runtime::Shared;
use crate::tls::{CRL_GRACE_SECONDS, Credentials};

/// How often CRLs are looked at.
const LOOK: Duration = Duration::from_secs(30);

/// Of how much of its life an SVID should have been renewed, in hundredths: agents and timers renew
/// at half of it.
const LIFE_LEFT_WARN: i64 = 20;

/// Tells of CRLs that are past their nextUpdate and of an SVID that nobody renews, once each, for ever.
pub(super) async fn watch_expiry(shared: Arc<Shared>) {
    let mut changes = shared.changes.subscribe();
    let mut ticks = tokio::time::interval(LOOK);
    let mut told = BTreeMap::new();
    let mut told_of_own = None;
    loop {
        // Both arms only wait.
        tokio::select! {
            _ = ticks.tick() => {}
            changed = changes.changed() => if changed.is_err() {
                return;
            },
        }
        let now = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX);
        look(&shared, now, &mut told);
        look_at_own(&shared.credentials.load(), now, &mut told_of_own);
    }
}

/// Whether a moment is past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    EndsSoon,
    Ended,
}

/// What is to be told of a certificate at a moment.
fn life_at(now: i64, from: i64, to: i64) -> Option<Life> {
    let (left, whole) = (to.saturating_sub(now), to.saturating_sub(from));
    if left <= 0 {
        Some(Life::Ended)
    } else {
        let is_late = left.saturating_mul(100) < whole.saturating_mul(LIFE_LEFT_WARN);
        is_late.then_some(Life::EndsSoon)
    }
}

fn look_at_own(credentials: &Credentials, now: i64, told: &mut Option<(i64, Life)>) {
    let (Some(from), Some(to)) = (credentials.not_before(), credentials.not_after()) else {
        return;
    };
    let next = life_at(now, from, to).map(|life| (to, life));
    if next != *told {
        let not_after = to;
        match next {
            Some((_, Life::EndsSoon)) => tracing::warn!(
                code = "ZG0265",
                not_after,
                "the gateway's own certificate expires soon and nobody has renewed it"
            ),
            Some((_, Life::Ended)) => tracing::error!(
                code = "ZG0265",
                not_after,
                "the gateway's own certificate has expired: every peer refuses it"
            ),
            None => {}
        }
        *told = next;
    }
}

fn look(shared: &Shared, now: i64, told: &mut BTreeMap<TrustDomain, i64>) {
    let credentials = shared.credentials.load();
    shared.metrics.forget_crls();
    let mut stale = BTreeMap::new();
    for (domain, due) in credentials.crls().due() {
        shared.metrics.crl(domain.as_str(), due, now > due);
        if now <= due {
            continue;
        }
        if told.get(domain) != Some(&due) {
            tracing::warn!(
                code = "ZG0207",
                trust_domain = %domain,
                next_update = due,
                refused_from = due.saturating_add(CRL_GRACE_SECONDS),
                "the CRL is past its nextUpdate and is honoured for 24 h; then the trust domain is \
                 refused. Get a new CRL from its CA"
            );
        }
        stale.insert(domain.clone(), due);
    }
    *told = stale;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_told_of_when_a_fifth_of_its_life_is_left_and_when_it_has_ended() {
        for (now, told) in [
            (0, None),
            (500, None),
            (800, None),
            (801, Some(Life::EndsSoon)),
            (999, Some(Life::EndsSoon)),
            (1_000, Some(Life::Ended)),
            (2_000, Some(Life::Ended)),
        ] {
            assert_eq!(life_at(now, 0, 1_000), told, "{now}");
        }
    }
}
