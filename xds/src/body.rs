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
//! by itself, in about a microsecond, and freed by itself. A response is there unpacked until all of it is packed;
//! to read all from disk, or to write it there anew, takes twice as much as it is unpacked while that lasts.

use std::sync::Arc;

use lz4_flex::block::{compress_with_dict, decompress_with_dict};

use crate::parallel;
use crate::pb::Any;

/// So many resources that come at once are packed by a pattern of their own.
const OWN_PATTERN_MIN: usize = 64;
/// How many of them it is made of, and of how much of each.
const SAMPLES: usize = 4;
const SAMPLE_BYTES_MAX: usize = 2048;
/// So many patterns of a kind are in use at once: each stays for as long as one body of it does.
const PATTERNS_MAX: usize = 4;

/// What resources are packed by: what they have in common with it costs next to nothing.
#[derive(Debug, Clone, Default)]
struct Pattern(Arc<Vec<u8>>);

/// What resources of one kind are packed by: the last of these. However a control plane changes what it says,
/// there are no more.
#[derive(Debug, Default)]
pub(crate) struct Patterns(Vec<Pattern>);

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

impl Patterns {
    /// What this was packed by others may be packed by.
    pub(crate) fn take(&mut self, body: &Body) {
        let pattern = &body.pattern;
        let is_same = |one: &Pattern| Arc::ptr_eq(&one.0, &pattern.0);
        if self.0.len() < PATTERNS_MAX && !self.0.iter().any(is_same) {
            self.0.push(pattern.clone());
        }
    }

    /// What these are packed by: what others were, or a new one.
    fn of(&mut self, all: &[Any]) -> Pattern {
        if self.0.is_empty() || all.len() >= OWN_PATTERN_MIN {
            // Of those that no body has any more nobody else knows.
            self.0.retain(|one| Arc::strong_count(&one.0) > 1);
            if self.0.len() < PATTERNS_MAX {
                self.0.push(Pattern::of(all));
            }
        }
        self.0.last().cloned().unwrap_or_default()
    }
}

impl Body {
    /// Packs resources of one kind by a pattern that others of it were packed by, or by a new one.
    pub(crate) fn pack(all: Vec<Any>, patterns: &mut Patterns) -> Vec<Self> {
        if all.is_empty() {
            return Vec::new();
        }
        let pattern = patterns.of(&all);
        parallel::map(all, |any| Self::new(any, &pattern))
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
        if (self.value_bytes, self.url_bytes) != (any.value.len(), any.type_url.len()) {
            return false;
        }
        let bytes = self.unpacked();
        let url = bytes.strip_prefix(&*any.value);
        url.is_some_and(|url| url == any.type_url.as_bytes())
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
        let mut patterns = Patterns::default();
        let all = endpoints(1000);
        let raw: usize = all.iter().map(|one| one.value.len()).sum();
        let packed = Body::pack(all, &mut patterns);
        let bytes: usize = packed.iter().map(|body| body.packed.len()).sum();
        assert!(bytes * 8 < raw, "{bytes} of {raw}");
        let pattern = &packed[0].pattern;
        assert!(pattern.0.len() <= SAMPLES * (SAMPLE_BYTES_MAX + 100));
        // What comes by itself later is packed by what came first.
        let [later] = &Body::pack(endpoints(1), &mut patterns)[..] else {
            panic!("one of one");
        };
        assert!(Arc::ptr_eq(&later.pattern.0, &packed[0].pattern.0));
        assert!(later.packed.len() < 60, "{}", later.packed.len());
    }
    /// What broke: each response of some size had a pattern of its own, which stayed for as long as one of its
    /// resources did.
    #[test]
    fn patterns_are_few_however_many_responses_leave_a_resource() {
        let mut patterns = Patterns::default();
        let mut left: Vec<Body> = Vec::new();
        let known = |left: &[Body]| {
            let all = left.iter().map(|body| Arc::as_ptr(&body.pattern.0));
            all.collect::<std::collections::BTreeSet<_>>().len()
        };
        for _ in 0..50 {
            let packed = Body::pack(endpoints(OWN_PATTERN_MIN), &mut patterns);
            left.extend(packed.into_iter().take(1));
            assert!(known(&left) <= PATTERNS_MAX && patterns.0.len() <= PATTERNS_MAX);
        }
        assert_eq!(known(&left), PATTERNS_MAX);
        // Those that were read from disk are no more either, and one that nobody needs makes room.
        let other = Body::from(endpoints(1).remove(0));
        patterns.take(&other);
        assert_eq!(patterns.0.len(), PATTERNS_MAX);
        let oldest = Arc::downgrade(&left[0].pattern.0);
        drop(left.remove(0));
        let fresh = Body::pack(endpoints(OWN_PATTERN_MIN), &mut patterns);
        assert_eq!(oldest.strong_count(), 0);
        assert!((left.iter()).all(|one| !Arc::ptr_eq(&one.pattern.0, &fresh[0].pattern.0)));
    }

    /// `ZEUGMA_SEED=n` plays one again.
    #[test]
    fn whatever_a_pattern_and_a_body_have_in_common_it_is_read_back() {
        // About where a match is long enough, where one may begin at last, and as far as one may refer back.
        const SIZES: [usize; 10] = [0, 1, 4, 5, 12, 13, 64, 1000, (64 << 10) - 1, 64 << 10];
        let seeds = match std::env::var("ZEUGMA_SEED") {
            Ok(seed) => {
                let seed = seed.parse().unwrap();
                seed..seed + 1
            }
            Err(_) => 0..400,
        };
        for seed in seeds {
            let mut random = fastrand::Rng::with_seed(seed);
            let size =
                |random: &mut fastrand::Rng| SIZES[random.usize(..SIZES.len())] + random.usize(..4);
            let letters = [1, 2, 255][random.usize(..3)];
            let bytes = |random: &mut fastrand::Rng| {
                let count = size(random);
                (0..count)
                    .map(|_| random.u8(..=letters))
                    .collect::<Vec<_>>()
            };
            let pattern = bytes(&mut random);
            // What the pattern ends in, and what follows that, again and again.
            let mut body = bytes(&mut random);
            for _ in 0..random.usize(..4) {
                let from = if random.bool() { &pattern } else { &body };
                let tail = from.len().min(size(&mut random));
                let tail = from[from.len() - tail..].to_vec();
                let at = random.usize(..=body.len());
                body.splice(at..at, tail);
            }
            let url = "u".repeat(random.usize(..14));
            let one = any(&url, body);
            let packed = Body::new(one.clone(), &Pattern(pattern.into()));
            assert_eq!(packed.to_any(), one, "ZEUGMA_SEED={seed}");
            assert!(packed.is(&one), "ZEUGMA_SEED={seed}");
        }
    }
}
