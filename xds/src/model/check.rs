//! What one document cannot know of itself: references, duplicates, contradictions.

use super::Model;
use crate::error::Findings;

/// Everything that is wrong with the model as a whole.
pub(crate) fn check(_model: &Model) -> Findings {
    Findings::new()
}
