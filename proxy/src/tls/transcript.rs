//! The hash of a handshake's messages (RFC 8446 §4.4.1), by the library that [`super::hkdf`]
//! derives keys with, and for the same reason: a handshake forks it again and again, each time for
//! a few blocks.

use std::marker::PhantomData;

use rustls::crypto::hash::{Context, Hash, HashAlgorithm, Output};
use sha2::{Digest, Sha256, Sha384};

pub(super) static SHA256: By<Sha256> = By(HashAlgorithm::SHA256, PhantomData);
pub(super) static SHA384: By<Sha384> = By(HashAlgorithm::SHA384, PhantomData);

/// A hash function as rustls wants it.
pub(super) struct By<D>(HashAlgorithm, PhantomData<fn() -> D>);

impl<D: Digest + Clone + Send + Sync + 'static> Hash for By<D> {
    fn start(&self) -> Box<dyn Context> {
        Box::new(Begun(D::new()))
    }

    fn hash(&self, data: &[u8]) -> Output {
        Output::new(&D::digest(data))
    }

    fn output_len(&self) -> usize {
        <D as Digest>::output_size()
    }

    fn algorithm(&self) -> HashAlgorithm {
        self.0
    }
}

struct Begun<D>(D);

impl<D: Digest + Clone + Send + Sync + 'static> Context for Begun<D> {
    fn fork_finish(&self) -> Output {
        Output::new(&self.0.clone().finalize())
    }

    fn fork(&self) -> Box<dyn Context> {
        Box::new(Self(self.0.clone()))
    }

    fn finish(self: Box<Self>) -> Output {
        Output::new(&self.0.finalize())
    }

    fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs::cipher_suite;

    use super::*;

    #[test]
    fn messages_are_hashed_as_the_library_hashes_them() {
        let pairs: [(&dyn Hash, _); 2] = [
            (&SHA256, cipher_suite::TLS13_AES_128_GCM_SHA256),
            (&SHA384, cipher_suite::TLS13_AES_256_GCM_SHA384),
        ];
        for (ours, suite) in pairs {
            let theirs = suite.tls13().unwrap().common.hash_provider;
            assert_eq!(ours.algorithm(), theirs.algorithm());
            assert_eq!(ours.output_len(), theirs.output_len());
            let hashed = |hash: &dyn Hash| {
                let mut context = hash.start();
                let mut outputs = vec![hash.hash(b"whole"), context.fork_finish()];
                for length in [0, 1, 63, 64, 65, 300] {
                    context.update(&vec![7; length]);
                    outputs.push(context.fork_finish());
                }
                let mut fork = context.fork();
                fork.update(b"another way");
                outputs.extend([context.finish(), fork.finish()]);
                let bytes = outputs.iter().map(|output| output.as_ref().to_vec());
                bytes.collect::<Vec<_>>()
            };
            assert_eq!(hashed(ours), hashed(theirs));
        }
    }
}
