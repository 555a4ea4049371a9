//! Which resources a control plane of other documents would tell a gateway.

use std::path::Path;

use crate::Sources;
use crate::catalog::{Catalog, Store};
use crate::diff::Change;
use crate::plane::Claim;
use crate::session::Kind;
use crate::state::Good;

/// A resource that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceDifference {
    /// Its type.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// What became of it.
    pub change: Change,
}

/// What differs for the gateway of this name from what the documents in `old` compile to, to those in
/// `new`, by the very bytes that travel: where these are equal nothing is told. Documents that make
/// nothing for it, be they wrong, have no resources.
#[must_use]
pub fn resource_diff(
    gateway: &str,
    locality: Option<&str>,
    (old, new): (&Path, &Path),
) -> Vec<ResourceDifference> {
    let mut store = Store::default();
    let claim = Claim {
        id: gateway.to_owned(),
        locality: locality.unwrap_or_default().to_owned(),
        ..Claim::default()
    };
    let mut of = |path: &Path| {
        let plane = Sources::read(path).ok()?.plane(&Good::default()).ok()?;
        let view = plane.view(&claim).ok()?;
        plane.catalog(&view, &mut store, None)
    };
    let (old, new) = (of(old), of(new));
    let differences = Kind::ALL
        .into_iter()
        .map(|kind| of_kind(kind, old.as_ref(), new.as_ref()));
    differences.flatten().collect()
}

fn of_kind(kind: Kind, old: Option<&Catalog>, new: Option<&Catalog>) -> Vec<ResourceDifference> {
    let shelf = |catalog: Option<&Catalog>| catalog.map(|catalog| catalog.shelf(kind).clone());
    let (old, new) = (shelf(old), shelf(new));
    let was = |name: &str| old.as_ref().and_then(|old| old.get(name));
    let is = |name: &str| new.as_ref().and_then(|new| new.get(name));
    let told = new.iter().flat_map(|new| new.iter()).filter_map(|one| {
        let change = match was(one.name()) {
            None => Change::Added,
            Some(before) if before.version() != one.version() => Change::Changed,
            Some(_) => return None,
        };
        Some((one.name().to_string(), change))
    });
    let gone = old.iter().flat_map(|old| old.iter());
    let gone = gone.filter(|one| is(one.name()).is_none());
    let gone = gone.map(|one| (one.name().to_string(), Change::Removed));
    let all = told.chain(gone);
    all.map(|(name, change)| ResourceDifference { kind, name, change })
        .collect()
}
