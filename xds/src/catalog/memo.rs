//! What a view was made of, so that of ten thousand services only those are made again whose documents
//! changed. A part is known by what it was made of; a resource of many parts, by what they became.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{Resource, Store, Traits};
use crate::compile::Context;
use crate::model::{Document, MeshRoute};
use crate::session::Kind;
use crate::sum::{self, Fnv};

/// What was made last of a view.
#[derive(Debug, Default)]
pub(crate) struct Memo {
    /// Of all documents but routes, and of the node.
    base: u128,
    /// Parts are known by where these are in memory, which is nobody else's as long as they are here.
    #[expect(dead_code, reason = "it holds places in memory")]
    routes: Vec<Arc<Document<MeshRoute>>>,
    /// Clusters and their endpoints, by what their service is made of.
    clusters: HashMap<u128, Vec<(Kind, Arc<Resource>)>>,
    /// Chains and virtual hosts, by what they are made of.
    parts: HashMap<u128, Part>,
    /// What consists of parts.
    whole: HashMap<(Kind, Arc<str>), Whole>,
}

/// A part of a resource, as one of its fields.
#[derive(Debug, Clone)]
pub(super) struct Part {
    content: u128,
    /// Where it is part of a resource, of that one's bytes. `None` where it cannot be made.
    bytes: Option<Bytes>,
}

#[derive(Debug)]
struct Whole {
    content: u128,
    resource: Arc<Resource>,
}

impl Part {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self {
            content: sum::of(&bytes),
            bytes: Some(bytes.into()),
        }
    }

    /// One that is not there.
    pub(super) const fn missing() -> Self {
        Self {
            content: 0,
            bytes: None,
        }
    }

    pub(super) const fn is_there(&self) -> bool {
        self.bytes.is_some()
    }
}

/// A memo while the next one is made of it.
pub(super) struct Making {
    before: Memo,
    next: Memo,
}

impl Making {
    /// Nothing is known where anything but routes is otherwise than it was.
    pub(super) fn new(before: Memo, context: Context<'_>) -> Self {
        let base = base(context);
        Self {
            before: if before.base == base {
                before
            } else {
                Memo::default()
            },
            next: Memo {
                base,
                routes: context.model.routes.clone(),
                ..Default::default()
            },
        }
    }

    pub(super) fn clusters(&self, input: u128) -> Option<&Vec<(Kind, Arc<Resource>)>> {
        self.before.clusters.get(&input)
    }

    pub(super) fn keep_clusters(&mut self, input: u128, made: Vec<(Kind, Arc<Resource>)>) {
        self.next.clusters.insert(input, made);
    }

    pub(super) fn part(&self, input: u128) -> Option<&Part> {
        self.before.parts.get(&input)
    }

    /// A resource of `shell`, a message of which everything is there but the fields of this number, which
    /// are `parts`, each known by its input.
    pub(super) fn whole(
        &mut self,
        store: &mut Store,
        (kind, name): (Kind, &str),
        (shell, number): (&[u8], u32),
        parts: Vec<(u128, Part)>,
    ) -> Arc<Resource> {
        let mut fnv = Fnv::default();
        fnv.add_all(shell);
        for (_, part) in &parts {
            fnv.add(&part.content.to_le_bytes());
        }
        let content = fnv.end();
        let key = (kind, Arc::from(name));
        let known = self.before.whole.remove(&key);
        if let Some(known) = known.filter(|known| known.content == content) {
            let resource = Arc::clone(&known.resource);
            self.next.parts.extend(parts);
            self.next.whole.insert(key, known);
            return resource;
        }
        let start = crate::canonical::before(number, shell);
        let (head, tail) = shell.split_at(start);
        let len = parts.iter().map(|(_, part)| part.len()).sum::<usize>();
        let mut message = Vec::with_capacity(shell.len() + len);
        message.extend_from_slice(head);
        for bytes in parts.iter().filter_map(|(_, part)| part.bytes.as_ref()) {
            message.extend_from_slice(bytes);
        }
        message.extend_from_slice(tail);
        let made = Resource::new(kind, name, &message, Traits::default());
        let resource = store.put(kind, made);
        let whole = resource.message();
        let mut at = start;
        for (input, mut part) in parts {
            let end = at + part.len();
            // Its bytes are these from now on, and are not in memory twice.
            part.bytes = part.bytes.map(|_| whole.slice(at..end));
            self.next.parts.insert(input, part);
            at = end;
        }
        let kept = Whole {
            content,
            resource: Arc::clone(&resource),
        };
        self.next.whole.insert(key, kept);
        resource
    }

    pub(super) fn end(self) -> Memo {
        self.next
    }
}

impl Part {
    fn len(&self) -> usize {
        self.bytes.as_ref().map_or(0, Bytes::len)
    }
}

/// Of everything that is the same for all routes.
fn base(context: Context<'_>) -> u128 {
    let mut fnv = Fnv::default();
    let mut add = |text: &str| {
        fnv.add(text.as_bytes());
        // No text holds this byte.
        fnv.add(&[0xff]);
    };
    add(&context.node.name);
    add(&context.node.cluster);
    add(&context.node.locality.to_string());
    for source in context.model.rest() {
        add(&source.file);
        add(&source.lines_before.to_string());
        add(&source.text);
    }
    fnv.end()
}
