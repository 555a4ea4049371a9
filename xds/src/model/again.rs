//! What a model has in common with the one before it: of ten thousand documents one has changed.

use std::collections::HashMap;
use std::sync::Arc;

use super::{AnyDocument, Document, Kind, MeshRoute, Model};
use crate::error::Finding;
use crate::files::Source;

/// Routes that were read before, by file and line.
#[derive(Debug, Default)]
pub(crate) struct Again<'m> {
    routes: HashMap<(&'m str, u32), &'m Arc<Document<MeshRoute>>>,
}

impl<'m> Again<'m> {
    /// Of `before`; nothing where the defaults are not the very same there and in `sources`, for a route
    /// holds what it inherits.
    pub(crate) fn of(before: Option<&'m Model>, sources: &[Source]) -> Self {
        let Some(before) = before else {
            return Self::default();
        };
        let now: Vec<&Source> = (sources.iter())
            .filter(|one| one.text.contains(Kind::Defaults.as_str()))
            .collect();
        let both = before.defaults.iter().zip(&now);
        let mut both = both.map(|(one, now)| (one.source(), now));
        let is_as_it_was =
            |(one, now): (&Source, &&Source)| one.nth == now.nth && is_same(one, now);
        if now.len() != before.defaults.len() || !both.all(is_as_it_was) {
            return Self::default();
        }
        let routes = before.routes.iter();
        Self {
            routes: routes
                .map(|route| ((&*route.source.file, route.source.lines_before), route))
                .collect(),
        }
    }

    /// The document that is written in `source`: the one that was read before, where it is the same.
    pub(crate) fn read(&self, source: Source) -> Result<AnyDocument, Box<(Source, Finding)>> {
        match self.known(&source) {
            Some(route) => Ok(AnyDocument::Route(route)),
            None => AnyDocument::read(source),
        }
    }

    fn known(&self, source: &Source) -> Option<Arc<Document<MeshRoute>>> {
        let known = self.routes.get(&(&*source.file, source.lines_before))?;
        if !is_same(&known.source, source) {
            return None;
        }
        let mut route = Arc::clone(known);
        if route.is_new || route.source.nth != source.nth {
            let route = Arc::make_mut(&mut route);
            route.is_new = false;
            route.source.nth = source.nth;
        }
        Some(route)
    }
}

/// Whether both are one text at one place.
fn is_same(one: &Source, other: &Source) -> bool {
    one.file == other.file
        && one.lines_before == other.lines_before
        && one.text == other.text
        && one.folder == other.folder
}
