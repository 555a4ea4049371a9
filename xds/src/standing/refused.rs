//! What is told of documents that are refused while all others serve.

use serde_json::Value;

use crate::error::Findings;

/// What serves in place of a document that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Serves {
    /// Its last good text.
    LastGood,
    /// The document, without what it refers to and is not there.
    Rest,
    /// Nothing: it never was good, or its last good text suits the others no more.
    Nothing,
}

impl Serves {
    /// As it is shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LastGood => "last-good",
            Self::Rest => "rest",
            Self::Nothing => "nothing",
        }
    }
}

/// A document that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedDocument {
    /// `MeshRoute shop/orders`, or `shop.yaml:12` where not even that can be read.
    pub name: String,
    /// What serves instead.
    pub serves: Serves,
    /// Its numbers: of the text that is refused, and of the one that serves.
    pub(crate) numbers: Vec<u32>,
}

/// The documents that are refused while all others serve.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refused {
    pub(crate) documents: Vec<RefusedDocument>,
    pub(crate) findings: Findings,
}

impl Refused {
    /// Whether every document serves as it stands in the files.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }

    /// The documents.
    #[must_use]
    pub fn documents(&self) -> &[RefusedDocument] {
        &self.documents
    }

    /// What is wrong with them.
    #[must_use]
    pub const fn findings(&self) -> &Findings {
        &self.findings
    }

    /// The documents in one line, each with what serves in its place.
    #[must_use]
    pub fn summary(&self) -> String {
        const SHOWN_MAX: usize = 20;
        let shown = self.documents.iter().take(SHOWN_MAX);
        let mut text = shown
            .map(|document| format!("{} ({})", document.name, document.serves.as_str()))
            .collect::<Vec<_>>()
            .join(", ");
        let more = self.documents.len().saturating_sub(SHOWN_MAX);
        if more > 0 {
            text.push_str(&format!(" and {more} more"));
        }
        text
    }

    /// The findings for a script, each with the `document` that is refused for it and what `serves`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut json = self.findings.to_json();
        let all = json.as_array_mut().into_iter().flatten();
        for (finding, value) in self.findings.iter().zip(all) {
            let numbers = std::iter::once(&finding.place.as_ref().map_or(0, |at| at.document))
                .chain(&finding.also)
                .copied()
                .collect::<Vec<_>>();
            let document = numbers.iter().find_map(|nth| {
                (self.documents.iter()).find(|document| document.numbers.contains(nth))
            });
            let (Some(value), Some(document)) = (value.as_object_mut(), document) else {
                continue;
            };
            value.insert("document".to_owned(), document.name.as_str().into());
            value.insert("serves".to_owned(), document.serves.as_str().into());
        }
        json
    }
}
