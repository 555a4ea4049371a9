//! The bytes of a resource as a control plane sent them, packed.
//!
//! ```text
//! a response --> Body::pack --> session (what came, held) --the same Arc--> holdings (what serves)
//!                                                                            |        |
//!                                                   ingest unpacks one by one'        `--> kept: unpacked,
//!                                                                                          on disk
//! ```
//!
//! All of it is needed again whenever more than single clusters changes, and a part for each cluster that
//! does: it is kept in memory, since the disk may be full or read-only. Ten thousand services are 50,000
//! resources of 60 MB, of which each says mostly what others of its kind say. So each is packed by itself
//! (LZ4) with a [`Pattern`] before it, some resources that came with it, and takes about an eighth; it is read
//! by itself, in about a microsecond, and freed by itself.

use std::sync::Arc;

use lz4_flex::block::{compress_with_dict, decompress_with_dict};

use crate::parallel;
use crate::pb::Any;

/// So many resources that come at once are packed by a pattern of their own.
const OWN_PATTERN_MIN: usize = 64;
/// How many of them it is made of, and of how much of each.
const SAMPLES: usize = 4;
const SAMPLE_BYTES_MAX: usize = 2048;

/// What resources are packed by: what they have in common with it costs next to nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pattern(Arc<Vec<u8>>);

/// A resource, packed.
#[derive(Debug, Clone)]
pub(crate) struct Body {
    value_bytes: usize,
    /// Its type's URL is packed behind it.
    url_bytes: usize,
    pattern: Pattern,
    packed: Box<[u8]>,
}

impl Pattern {
    /// Some of these, from all over.
    fn of(all: &[Any]) -> Self {
        let every = all.len().div_ceil(SAMPLES).max(1);
        let mut pattern = Vec::new();
        for any in all.iter().step_by(every) {
            let some = any.value.iter().take(SAMPLE_BYTES_MAX);
            pattern.extend(some.chain(any.type_url.as_bytes()));
        }
        Self(pattern.into())
    }
}

impl Body {
    /// Packs resources of one kind by the pattern that others of it were packed by, or by a new one.
    pub(crate) fn pack(all: Vec<Any>, pattern: &mut Pattern) -> Vec<Self> {
        if pattern.0.is_empty() || all.len() >= OWN_PATTERN_MIN {
            *pattern = Pattern::of(&all);
        }
        parallel::map(all, |any| Self::new(any, pattern))
    }

    fn new(any: Any, pattern: &Pattern) -> Self {
        let Any {
            type_url,
            value: mut bytes,
        } = any;
        let value_bytes = bytes.len();
        bytes.extend_from_slice(type_url.as_bytes());
        Self {
            value_bytes,
            url_bytes: type_url.len(),
            pattern: pattern.clone(),
            packed: compress_with_dict(&bytes, &pattern.0).into(),
        }
    }

    /// What it was packed by.
    pub(crate) fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// The bytes of the resource, as they came.
    pub(crate) const fn len(&self) -> usize {
        self.value_bytes
    }

    /// As it came.
    pub(crate) fn to_any(&self) -> Any {
        let mut value = self.unpacked();
        let type_url = value.split_off(self.value_bytes);
        Any {
            type_url: String::from_utf8(type_url).unwrap_or_default(),
            value,
        }
    }

    /// Whether it came as this.
    pub(crate) fn is(&self, any: &Any) -> bool {
        (self.value_bytes, self.url_bytes) == (any.value.len(), any.type_url.len())
            && self.to_any() == *any
    }

    #[expect(
        clippy::expect_used,
        reason = "these bytes were packed by `new`, and are nobody else's"
    )]
    fn unpacked(&self) -> Vec<u8> {
        let bytes = self.value_bytes + self.url_bytes;
        decompress_with_dict(&self.packed, bytes, &self.pattern.0).expect("it was packed so")
    }
}

impl PartialEq for Body {
    fn eq(&self, other: &Self) -> bool {
        let sizes = |one: &Self| (one.value_bytes, one.url_bytes);
        if sizes(self) != sizes(other) {
            return false;
        }
        // By one pattern equal bytes are packed alike.
        if Arc::ptr_eq(&self.pattern.0, &other.pattern.0) {
            self.packed == other.packed
        } else {
            self.unpacked() == other.unpacked()
        }
    }
}

impl Eq for Body {}

#[cfg(test)]
impl From<Any> for Body {
    /// By no pattern.
    fn from(any: Any) -> Self {
        Self::new(any, &Pattern::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: Vec<u8>) -> Any {
        Any {
            type_url: type_url.to_owned(),
            value,
        }
    }

    /// What two thirds of all resources are alike in.
    fn endpoints(n: usize) -> Vec<Any> {
        let of = |n: usize| {
            let text = format!(
                "outbound|shop/svc-{n}:80, 10.1.{}.{}:8080, {}",
                n / 256,
                n % 256,
                "the same of each of them, again and again; ".repeat(10)
            );
            any("type.example/Endpoints", text.into_bytes())
        };
        (0..n).map(of).collect()
    }

    #[test]
    fn whatever_is_packed_is_read_back() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut noise = |bytes: usize| (0..bytes).map(|_| random.u8(..)).collect::<Vec<_>>();
        let long = b"much of the same ".repeat(100_000);
        let all = [
            any("", Vec::new()),
            any("type.example/A", Vec::new()),
            any("", b"a".to_vec()),
            any("type.example/A", noise(3)),
            any("type.example/\u{e9}\0", noise(70_000)),
            any("type.example/A", long),
        ];
        for pattern in [
            Pattern::default(),
            Pattern::of(&all),
            Pattern::of(&endpoints(9)),
        ] {
            for one in &all {
                let body = Body::new(one.clone(), &pattern);
                assert_eq!((body.to_any(), body.len()), (one.clone(), one.value.len()));
                assert!(body.is(one) && body == Body::from(one.clone()));
            }
        }
    }

    #[test]
    fn bodies_are_equal_by_what_they_hold_and_not_by_how_it_is_packed() {
        let [one, other] = [b"one", b"two"].map(|value| any("type.example/A", value.to_vec()));
        let renamed = any("type.example/B", one.value.clone());
        let pattern = Pattern::of(&endpoints(1));
        for by in [&pattern, &Pattern::default()] {
            let body = Body::new(one.clone(), by);
            assert_eq!(body, Body::new(one.clone(), &pattern));
            for wrong in [&other, &renamed] {
                assert!(!body.is(wrong));
                assert_ne!(body, Body::new(wrong.clone(), &pattern));
            }
        }
    }

    #[test]
    fn what_others_say_too_takes_next_to_nothing() {
        let mut pattern = Pattern::default();
        let all = endpoints(1000);
        let raw: usize = all.iter().map(|one| one.value.len()).sum();
        let packed = Body::pack(all, &mut pattern);
        let bytes: usize = packed.iter().map(|body| body.packed.len()).sum();
        assert!(bytes * 8 < raw, "{bytes} of {raw}");
        assert!(pattern.0.len() <= SAMPLES * (SAMPLE_BYTES_MAX + 100));
        // What comes by itself later is packed by what came first.
        let [later] = &Body::pack(endpoints(1), &mut pattern)[..] else {
            panic!("one of one");
        };
        assert!(Arc::ptr_eq(&later.pattern.0, &packed[0].pattern.0));
        assert!(later.packed.len() < 60, "{}", later.packed.len());
    }
}
