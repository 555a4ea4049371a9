//! What Envoy does without: it hedges requests of every method or of none.

use std::sync::Arc;

use crate::compile::Context;
use crate::error::{Code, Finding};
use crate::model::{Document, MeshRoute};

/// A warning for each route whose requests a gateway would hedge.
pub(super) fn without(context: Context<'_>) -> Vec<Finding> {
    let routes = context.model.routes.iter();
    let hedged = routes.filter(|route| {
        let after = &route.spec.retries.hedge.after;
        after.as_ref().is_some_and(|after| after.0.0.is_some())
    });
    let warning = |route: &Arc<Document<MeshRoute>>| {
        Finding::error(
            Code::Unused,
            "Envoy hedges requests of every method, and here safe ones alone are: it hedges none of this route"
                .to_owned(),
        )
        .help("count on `retries` and `timeouts.perTry` there")
        .warning()
        .at(route.at_key("spec.retries.hedge.after"))
    };
    hedged.map(warning).collect()
}
