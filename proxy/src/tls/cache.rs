//! Chains that were verified: their signatures are not computed again for each handshake.
//!
//! A cache belongs to one [`Credentials`](super::Credentials), so that another bundle or CRL begins
//! with an empty one: no entry outlives what it was verified with. A chain is kept once the peer
//! has proved to hold its key: strangers fill nothing, neither with worthless chains nor with those
//! of others. Whether the peer holds the key, is denied, expected or let in is asked for each
//! handshake.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls_pki_types::CertificateDer;

use super::possession::LeafKey;
use super::verify::{TlsPeer, Usage};

/// The most chains kept: room for the workloads of several clusters, at about a kilobyte each.
pub const CACHED_CHAINS_MAX: usize = 16 * 1024;
/// Locks are held for a lookup; this many keep workers apart.
const SHARDS: usize = 16;
/// A shard forgets what was not used while this many others came.
const GENERATION_MAX: usize = CACHED_CHAINS_MAX / SHARDS / 2;

/// A presented chain in one role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ChainKey {
    digest: [u8; 32],
    role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Role {
    Client,
    Server,
}

impl ChainKey {
    /// The key of a chain; `None` where it cannot be hashed.
    pub(super) fn new(
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
    ) -> Option<Self> {
        let suite = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13()?;
        let mut hash = suite.common.hash_provider.start();
        for der in std::iter::once(leaf).chain(intermediates) {
            // With its length, so that no two chains are the same bytes.
            hash.update(&der.len().to_be_bytes());
            hash.update(der);
        }
        Some(Self {
            digest: hash.finish().as_ref().try_into().ok()?,
            role: match usage {
                Usage::Client => Role::Client,
                Usage::Server => Role::Server,
            },
        })
    }
}

/// What is known of a chain that was verified.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) peer: Arc<TlsPeer>,
    /// What it signs with, if that is of the common kind.
    pub(super) key: Option<Arc<LeafKey>>,
}

/// A chain that a peer presents and that is valid.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) known: Known,
    /// As what it is kept once its key is proved; none where it is kept already.
    pub(super) new: Option<New>,
}

/// A chain that was verified at `from`, and holds to the second `until`.
#[derive(Debug, Clone, Copy)]
pub(super) struct New {
    pub(super) key: ChainKey,
    pub(super) from: i64,
    pub(super) until: i64,
}

#[derive(Debug)]
struct Kept {
    known: Known,
    /// The seconds of Unix time in which it holds.
    from: i64,
    until: i64,
}

/// Two generations: what is looked up moves to the young one, and the old one is dropped when the
/// young one is full.
#[derive(Debug, Default)]
struct Shard {
    young: HashMap<ChainKey, Kept>,
    old: HashMap<ChainKey, Kept>,
}

impl Shard {
    fn insert(&mut self, key: ChainKey, kept: Kept) {
        if self.young.len() >= GENERATION_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, kept);
    }

    fn get(&mut self, key: &ChainKey, now: i64) -> Option<Known> {
        if let Some(kept) = self.old.remove(key) {
            self.insert(*key, kept);
        }
        let kept = self.young.get(key)?;
        if now < kept.from || now > kept.until {
            self.young.remove(key);
            return None;
        }
        Some(kept.known.clone())
    }
}

/// The chains that were verified with one set of bundles and CRLs.
#[derive(Debug)]
pub(super) struct ChainCache {
    shards: [Mutex<Shard>; SHARDS],
}

impl Default for ChainCache {
    fn default() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }
}

impl ChainCache {
    fn with<T>(&self, key: &ChainKey, act: impl FnOnce(&mut Shard) -> T) -> Option<T> {
        let first = key.digest.first().copied().unwrap_or_default();
        let shard = self.shards.get(usize::from(first) % SHARDS)?;
        // A panic while it was held left whole entries.
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        Some(act(&mut shard))
    }

    /// What is known of a chain that was verified and holds at `now`, in Unix seconds.
    pub(super) fn get(&self, key: &ChainKey, now: i64) -> Option<Known> {
        self.with(key, |shard| shard.get(key, now)).flatten()
    }

    /// Keeps a chain whose key is proved.
    pub(super) fn keep(&self, claim: &Claim) {
        if let Some(New { key, from, until }) = claim.new {
            self.insert(key, &claim.known, from, until);
        }
    }

    /// Keeps a chain that was verified at `now`, up to the second `until`.
    fn insert(&self, key: ChainKey, known: &Known, now: i64, until: i64) {
        if until < now {
            return;
        }
        let kept = Kept {
            known: known.clone(),
            from: now,
            until,
        };
        self.with(&key, |shard| shard.insert(key, kept));
    }

    /// How many chains it keeps.
    pub(super) fn len(&self) -> usize {
        let shards = self.shards.iter();
        shards
            .map(|shard| {
                let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
                shard.young.len() + shard.old.len()
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use zeugma_core::identity::SpiffeId;

    use super::*;

    fn peer(not_after: i64) -> Known {
        let peer = Arc::new(TlsPeer {
            id: SpiffeId::parse("spiffe://east.example/ns/shop/sa/cart").unwrap(),
            serials: Vec::new(),
            issuers: Vec::new(),
            anchor: [0; 32],
            not_after,
        });
        Known { peer, key: None }
    }

    fn key(nth: usize, usage: Usage) -> ChainKey {
        let leaf = CertificateDer::from(nth.to_be_bytes().to_vec());
        ChainKey::new(&leaf, &[], usage).unwrap()
    }

    #[test]
    fn an_entry_holds_for_its_chain_role_and_time_alone() {
        let cache = ChainCache::default();
        let held = peer(200);
        cache.insert(key(1, Usage::Client), &held, 100, 200);
        let get = |nth, usage, now| Some(cache.get(&key(nth, usage), now)?.peer);
        assert_eq!(get(1, Usage::Client, 200), Some(Arc::clone(&held.peer)));
        assert_eq!(get(1, Usage::Server, 150), None);
        assert_eq!(get(2, Usage::Client, 150), None);
        assert_eq!(get(1, Usage::Client, 201), None, "after its end");
        assert_eq!(get(1, Usage::Client, 150), None, "and it is forgotten");
        cache.insert(key(1, Usage::Client), &held, 100, 200);
        assert_eq!(get(1, Usage::Client, 99), None, "the clock was set back");
        cache.insert(key(1, Usage::Client), &held, 300, 200);
        assert_eq!(cache.len(), 0, "never held");
    }

    #[test]
    fn chains_that_are_cut_differently_are_different() {
        let whole = CertificateDer::from(b"ab".to_vec());
        let (a, b) = (
            CertificateDer::from(b"a".to_vec()),
            CertificateDer::from(b"b".to_vec()),
        );
        let one = ChainKey::new(&whole, &[], Usage::Client);
        let two = ChainKey::new(&a, &[b], Usage::Client);
        assert_ne!(one, two);
    }

    #[test]
    fn the_bound_is_reached_and_what_is_used_stays() {
        let cache = ChainCache::default();
        let held = peer(i64::MAX);
        let used = key(0, Usage::Client);
        cache.insert(used, &held, 0, i64::MAX);
        let mut most = 0;
        for nth in 1..CACHED_CHAINS_MAX * 3 {
            cache.insert(key(nth, Usage::Client), &held, 0, i64::MAX);
            assert!(cache.get(&used, 1).is_some(), "{nth}");
            if nth % 1024 == 0 {
                most = most.max(cache.len());
            }
        }
        assert!(most <= CACHED_CHAINS_MAX, "{most}");
        assert!(most > CACHED_CHAINS_MAX / 2, "{most}");
    }
}
