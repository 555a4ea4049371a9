//! The last good text of each document.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::codec::{Coded as _, Read, Reader, Writer};
use crate::files::Source;
use crate::model::{DocumentId, Kind};

/// The form that is written. Another version of this program may write another one.
const FORM: u8 = 1;

/// The last good text of each document, packed: line by line, since most lines of ten thousand
/// routes are the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Good {
    /// Shared: it goes to and fro between threads with every look at the files.
    bytes: Arc<[u8]>,
}

impl Good {
    pub(crate) fn of<'a>(documents: impl Iterator<Item = (DocumentId, &'a Source)>) -> Self {
        let mut to = Writer::sharing();
        to.byte(FORM);
        for (id, source) in documents {
            to.text(id.kind.as_str());
            to.text(&id.namespace);
            to.text(&id.name);
            source.file.write(&mut to);
            source.folder.write(&mut to);
            source.lines_before.write(&mut to);
            to.number(source.text.split_inclusive('\n').count() as u64);
            for line in source.text.split_inclusive('\n') {
                to.text(line);
            }
        }
        Self {
            bytes: to.into_bytes().into(),
        }
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.into(),
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The documents that stood below `path`; none where they are of another form.
    pub(crate) fn documents(&self, path: &Path) -> BTreeMap<DocumentId, Source> {
        let mut documents = BTreeMap::new();
        let mut from = Reader::new(&self.bytes);
        if from.byte() != Ok(FORM) {
            return documents;
        }
        while !from.is_empty() {
            let Ok((id, source)) = document(&mut from) else {
                break;
            };
            if let Some(id) = id.filter(|_| Path::new(&*source.file).starts_with(path)) {
                documents.insert(id, source);
            }
        }
        documents
    }
}

/// A document, unless its kind is not known here.
fn document(from: &mut Reader<'_>) -> Read<(Option<DocumentId>, Source)> {
    let kind = Kind::of(&from.text()?);
    let namespace = String::read(from)?;
    let name = String::read(from)?;
    let mut source = Source {
        file: from.text()?,
        folder: std::path::PathBuf::read(from)?,
        lines_before: u32::read(from)?,
        nth: 0,
        text: String::new(),
    };
    for _ in 0..from.number()? {
        source.text.push_str(&from.text()?);
    }
    let id = kind.map(|kind| DocumentId {
        kind,
        namespace,
        name,
    });
    Ok((id, source))
}
