//! A list that may be left out: what is written empty is something else than what is not written.

use std::borrow::Cow;
use std::ops::Deref;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{Deserialize, Deserializer};

/// A list; empty where it is not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct List<T>(Option<Vec<T>>);

impl<T> List<T> {
    /// Whether it is written, be it empty.
    pub(crate) const fn is_written(&self) -> bool {
        self.0.is_some()
    }

    /// Adds to it.
    pub(crate) fn extend(&mut self, more: impl IntoIterator<Item = T>) {
        self.0.get_or_insert_default().extend(more);
    }

    /// Gives back the room that nothing is in.
    pub(crate) fn shrink_to_fit(&mut self) {
        if let Some(list) = &mut self.0 {
            list.shrink_to_fit();
        }
    }
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> From<Vec<T>> for List<T> {
    fn from(list: Vec<T>) -> Self {
        Self(Some(list))
    }
}

impl<T> Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl<'a, T> IntoIterator for &'a List<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::from)
    }
}

impl<T: JsonSchema> JsonSchema for List<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        Vec::<T>::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Vec::<T>::json_schema(generator)
    }
}
