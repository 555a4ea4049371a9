//! Parts of a compiled model before they are made, and what tells whether one is as it was.

use super::{Service, Services};
use crate::sum::Fnv;

/// A part that is made when it is asked for.
pub(crate) struct Unmade<'a, T> {
    /// The listener that it is of.
    pub listener: &'a str,
    input: &'a dyn Fn() -> u128,
    make: &'a dyn Fn() -> T,
}

impl<'a, T> Unmade<'a, T> {
    pub(super) const fn new(
        listener: &'a str,
        input: &'a dyn Fn() -> u128,
        make: &'a dyn Fn() -> T,
    ) -> Self {
        Self {
            listener,
            input,
            make,
        }
    }

    /// Of what it is made: equal for what becomes the same, beside what is the same for all of a
    /// model's routes, as long as their documents are in memory.
    pub(crate) fn input(&self) -> u128 {
        (self.input)()
    }

    /// Makes it.
    pub(crate) fn make(&self) -> T {
        (self.make)()
    }
}

/// Adds what a service is, and what the services are that it names: a document is told by where it is
/// in memory, for one that is read again is another one.
pub(super) fn add(services: &Services<'_>, service: &Service<'_>, to: &mut Fnv) {
    one(service, to);
    let namespace = &service.route.namespace;
    let spec = &service.route.spec;
    let mirrors = spec.mirror.iter().map(|mirror| &mirror.value.route);
    let splits = (spec.rules.iter()).flat_map(|rule| rule.value.split.iter().flatten());
    let parts = splits.filter_map(|part| part.route.as_ref());
    for reference in mirrors.chain(parts) {
        // No address is odd.
        to.add(&[1]);
        for named in services.of_route(&reference.0.id(namespace)) {
            one(named, to);
        }
    }
}

fn one(service: &Service<'_>, to: &mut Fnv) {
    to.add(&std::ptr::from_ref(service.route).addr().to_le_bytes());
    to.add(&service.port.port.to_le_bytes());
    to.add(&[u8::from(service.is_bare)]);
}
