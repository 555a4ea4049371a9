//! A table that several snapshots have in common: to copy it costs one count, and whether two are one is
//! seen at a glance.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::slice;
use std::sync::Arc;

/// Things in a fixed order, shared until somebody writes.
pub struct Table<T>(Arc<[T]>);

impl<T> Table<T> {
    /// Whether both are one and the same, whatever is in it.
    #[must_use]
    pub fn is_one_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T: Clone> Table<T> {
    /// Has other things in it: all of it is written anew.
    pub fn edit(&mut self, edit: impl FnOnce(&mut Vec<T>)) {
        let mut things = self.to_vec();
        edit(&mut things);
        *self = things.into();
    }
}

impl<T> Deref for Table<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

/// Copies it first where it is shared.
impl<T: Clone> DerefMut for Table<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        Arc::make_mut(&mut self.0)
    }
}

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(Arc::from([]))
    }
}

impl<T: fmt::Debug> fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: PartialEq> PartialEq for Table<T> {
    fn eq(&self, other: &Self) -> bool {
        // No share or weight in it is NaN, so that it is equal to itself.
        self.is_one_with(other) || self.0 == other.0
    }
}

impl<T> From<Vec<T>> for Table<T> {
    fn from(things: Vec<T>) -> Self {
        Self(things.into())
    }
}

impl<T> FromIterator<T> for Table<T> {
    fn from_iter<I: IntoIterator<Item = T>>(things: I) -> Self {
        Self(things.into_iter().collect())
    }
}

impl<'a, T> IntoIterator for &'a Table<T> {
    type Item = &'a T;
    type IntoIter = slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<'a, T: Clone> IntoIterator for &'a mut Table<T> {
    type Item = &'a mut T;
    type IntoIter = slice::IterMut<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_one_with_what_it_is_of_until_it_is_written() {
        let first: Table<u32> = vec![1, 2].into();
        let mut other = first.clone();
        assert!(other.is_one_with(&first));
        other[0] = 3;
        assert!(!other.is_one_with(&first));
        assert_eq!((&*first, &*other), (&[1, 2][..], &[3, 2][..]));
        other[0] = 1;
        assert_eq!(first, other);
        other.edit(|things| things.push(4));
        assert_eq!(&*other, &[1, 2, 4]);
    }
}
