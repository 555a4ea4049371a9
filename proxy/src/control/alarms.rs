//! What runs out while nothing changes, and has to be told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::UnixTime;
use zeugma_core::identity::TrustDomain;

use crate::runtime::Shared;
use crate::tls::CRL_GRACE_SECONDS;

/// How often CRLs are looked at.
const LOOK: Duration = Duration::from_secs(30);

/// Tells of CRLs that are past their nextUpdate, once each, for ever.
pub(super) async fn watch_crls(shared: Arc<Shared>) {
    let mut changes = shared.changes.subscribe();
    let mut ticks = tokio::time::interval(LOOK);
    let mut told = BTreeMap::new();
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
