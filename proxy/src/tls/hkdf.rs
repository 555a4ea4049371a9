//! The key derivation of TLS 1.3 from keys that are made ready once (RFC 5869, RFC 8446 §7.1).
//!
//! rustls hands every derivation to the library's own HKDF, which hashes the two blocks of its key
//! anew each time. A handshake derives several secrets from one key: here a key's state is kept for
//! as long as rustls keeps the key.
//!
//! By RustCrypto's HMAC, not by the library of all other cryptography, of whose time for so few blocks
//! much is not hashing: callgrind shows it (`benches/handshake.rs` says how). Without SHA-NI (x86
//! before Ice Lake and Zen) and on aarch64 sha2 hashes by portable code, which may be slower than the
//! other library's by more than that.
//!
//! What outlives a call is wiped: a key's states with the key, a tag when rustls has it. Not wiped
//! is what the library leaves of a call on the stack: the padded block of a key, copies of states.
//! rustls itself leaves an extracted secret on the heap (`extract_prk_from_secret`).

use std::sync::LazyLock;

use hmac::digest::{FixedOutput, KeyInit, Output};
use hmac::{Hmac as HmacOf, Mac};
use rustls::crypto::hash::{Hash, HashAlgorithm};
use rustls::crypto::hmac::{Hmac, Key, Tag};
use rustls::crypto::tls13::HkdfUsingHmac;
use rustls::{CipherSuiteCommon, SupportedCipherSuite, Tls13CipherSuite};
use sha2::{Sha256, Sha384};
use zeroize::{optimization_barrier, zeroize_bytes};

use super::transcript;

/// Keys that are no secrets.
static BLANK_SHA256: LazyLock<HmacOf<Sha256>> = LazyLock::new(|| ready(&[]));
static BLANK_SHA384: LazyLock<HmacOf<Sha384>> = LazyLock::new(|| ready(&[]));
static WITH_SHA256: With<HmacOf<Sha256>> = With {
    blank: &BLANK_SHA256,
};
static WITH_SHA384: With<HmacOf<Sha384>> = With {
    blank: &BLANK_SHA384,
};
static SHA256: HkdfUsingHmac<'static> = HkdfUsingHmac(&WITH_SHA256);
static SHA384: HkdfUsingHmac<'static> = HkdfUsingHmac(&WITH_SHA384);

/// As `suite`, with this derivation, and the hash of the same library. Lives as long as the
/// process: for what is made once.
pub(super) fn deriving(suite: SupportedCipherSuite) -> SupportedCipherSuite {
    let Some(of) = suite.tls13() else {
        return suite;
    };
    let algorithm = of.common.hash_provider.algorithm();
    let (hash, hkdf_provider): (&'static dyn Hash, _) = if algorithm == HashAlgorithm::SHA256 {
        (&transcript::SHA256, &SHA256)
    } else if algorithm == HashAlgorithm::SHA384 {
        (&transcript::SHA384, &SHA384)
    } else {
        return suite;
    };
    SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: of.common.suite,
            hash_provider: hash,
            confidentiality_limit: of.common.confidentiality_limit,
        },
        hkdf_provider,
        aead_alg: of.aead_alg,
        quic: of.quic,
    })))
}

/// HMAC with one hash function.
struct With<M: 'static> {
    blank: &'static LazyLock<M>,
}

#[expect(clippy::expect_used, reason = "any length is that of a key")]
fn ready<M: Mac + KeyInit>(key: &[u8]) -> M {
    // RFC 2104 §2: shorter keys are padded, longer ones hashed.
    <M as Mac>::new_from_slice(key).expect("HMAC takes keys of any length")
}

impl<M: Mac + FixedOutput + KeyInit + Clone + Send + Sync> Hmac for With<M> {
    fn with_key(&self, key: &[u8]) -> Box<dyn Key> {
        Box::new(Ready {
            key: ready::<M>(key),
            blank: self.blank,
        })
    }

    fn hash_output_len(&self) -> usize {
        M::output_size()
    }
}

struct Ready<M: Clone + 'static> {
    key: M,
    blank: &'static M,
}

impl<M: Mac + FixedOutput + Clone + Send + Sync> Key for Ready<M> {
    fn sign_concat(&self, first: &[u8], middle: &[&[u8]], last: &[u8]) -> Tag {
        let mut mac = self.key.clone();
        Mac::update(&mut mac, first);
        for part in middle {
            Mac::update(&mut mac, part);
        }
        Mac::update(&mut mac, last);
        // In place: what is returned is moved, and leaves itself behind.
        let mut bytes = Output::<M>::default();
        mac.finalize_into(&mut bytes);
        let tag = Tag::new(&bytes);
        zeroize_bytes(&mut bytes);
        tag
    }

    fn tag_len(&self) -> usize {
        M::output_size()
    }
}

impl<M: Clone> Drop for Ready<M> {
    fn drop(&mut self) {
        // The memory is given back without the secret.
        self.key.clone_from(self.blank);
        optimization_barrier(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs::cipher_suite;
    use rustls::crypto::tls13::Hkdf;

    use super::*;

    fn of(suite: SupportedCipherSuite) -> &'static dyn Hkdf {
        suite.tls13().unwrap().hkdf_provider
    }

    /// RFC 5869 A.1 and A.3.
    #[test]
    fn what_is_derived_is_what_the_rfc_says() {
        let salt: Vec<u8> = (0..=0x0c).collect();
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        let hkdf = of(deriving(cipher_suite::TLS13_AES_128_GCM_SHA256));
        for (salt, info, expected) in [
            (
                Some(&salt[..]),
                &info[..],
                [
                    0x3c, 0xb2, 0x5f, 0x25, 0xfa, 0xac, 0xd5, 0x7a, 0x90, 0x43, 0x4f, 0x64, 0xd0,
                    0x36, 0x2f, 0x2a, 0x2d, 0x2d, 0x0a, 0x90, 0xcf, 0x1a, 0x5a, 0x4c, 0x5d, 0xb0,
                    0x2d, 0x56, 0xec, 0xc4, 0xc5, 0xbf, 0x34, 0x00, 0x72, 0x08, 0xd5, 0xb8, 0x87,
                    0x18, 0x58, 0x65,
                ],
            ),
            (
                None,
                &[],
                [
                    0x8d, 0xa4, 0xe7, 0x75, 0xa5, 0x63, 0xc1, 0x8f, 0x71, 0x5f, 0x80, 0x2a, 0x06,
                    0x3c, 0x5a, 0x31, 0xb8, 0xa1, 0x1f, 0x5c, 0x5e, 0xe1, 0x87, 0x9e, 0xc3, 0x45,
                    0x4e, 0x5f, 0x3c, 0x73, 0x8d, 0x2d, 0x9d, 0x20, 0x13, 0x95, 0xfa, 0xa4, 0xb6,
                    0x1a, 0x96, 0xc8,
                ],
            ),
        ] {
            let mut okm = [0; 42];
            let expander = hkdf.extract_from_secret(salt, &[0x0b; 22]);
            // In pieces, as rustls gives it.
            let (front, back) = info.split_at(info.len() / 2);
            expander.expand_slice(&[front, back], &mut okm).unwrap();
            assert_eq!(okm, expected);
        }
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits = hex.as_bytes().chunks(2);
        let byte = |two: &[u8]| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap();
        digits.map(byte).collect()
    }

    /// RFC 5869 A.2.
    #[test]
    fn what_is_derived_from_longer_inputs_is_what_the_rfc_says() {
        let [ikm, salt, info] = [0x00, 0x60, 0xb0].map(|from| (from..=from + 0x4f).collect());
        let (ikm, salt, info): (Vec<u8>, Vec<u8>, Vec<u8>) = (ikm, salt, info);
        let hkdf = of(deriving(cipher_suite::TLS13_AES_128_GCM_SHA256));
        let mut okm = [0; 82];
        let expander = hkdf.extract_from_secret(Some(&salt), &ikm);
        expander.expand_slice(&[&info], &mut okm).unwrap();
        let expected = "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c\
                        59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71\
                        cc30c58179ec3e87c14c01d5c1f3434f1d87";
        assert_eq!(okm.to_vec(), bytes(expected));
    }

    /// RFC 4231 §4.2 to §4.5, §4.7 and §4.8: short keys, and such as are hashed first.
    #[test]
    fn tags_are_what_the_rfc_says() {
        let fourth: Vec<u8> = (0x01..=0x19).collect();
        let sixth = b"Test Using Larger Than Block-Size Key - Hash Key First";
        let seventh = b"This is a test using a larger than block-size key and a larger than \
                        block-size data. The key needs to be hashed before being used by the \
                        HMAC algorithm.";
        for (key, data, sha256, sha384) in [
            (
                &[0x0b; 20][..],
                &b"Hi There"[..],
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
                "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59c\
                 faea9ea9076ede7f4af152e8b2fa9cb6",
            ),
            (
                b"Jefe",
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
                "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e\
                 8e2240ca5e69e2c78b3239ecfab21649",
            ),
            (
                &[0xaa; 20],
                &[0xdd; 50],
                "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
                "88062608d3e6ad8a0aa2ace014c8a86f0aa635d947ac9febe83ef4e55966144b\
                 2a5ab39dc13814b94e3ab6e101a34f27",
            ),
            (
                &fourth,
                &[0xcd; 50],
                "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
                "3e8a69b7783c25851933ab6290af6ca77a9981480850009cc5577c6e1f573b4e\
                 6801dd23c4a7d679ccf8a386c674cffb",
            ),
            (
                &[0xaa; 131],
                sixth,
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
                "4ece084485813e9088d2c63a041bc5b44f9ef1012a2b588f3cd11f05033ac4c6\
                 0c2ef6ab4030fe8296248df163f44952",
            ),
            (
                &[0xaa; 131],
                seventh,
                "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
                "6617178e941f020d351e2f254e8fd32c602420feb0b8fb9adccebb82461e99c5\
                 a678cc31e799176d3860e6110c46523e",
            ),
        ] {
            let both: [&dyn Hmac; 2] = [&WITH_SHA256, &WITH_SHA384];
            for (hmac, expected) in both.into_iter().zip([sha256, sha384]) {
                let tag = hmac.with_key(key).sign(&[data]);
                assert_eq!(tag.as_ref(), bytes(expected));
            }
        }
    }

    #[test]
    fn every_suite_derives_as_the_library_does() {
        for suite in [
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ] {
            let (ours, theirs) = (of(deriving(suite)), of(suite));
            let derived = |hkdf: &dyn Hkdf| {
                let early = hkdf.extract_from_zero_ikm(None);
                let salt = early.expand_block(&[b"derived", &[1; 70]]);
                let next = hkdf.extract_from_secret(Some(salt.as_ref()), &[7; 32]);
                let secret = next.expand_block(&[&[2; 200]]);
                let mut long = [0; 500];
                let expander = hkdf.expander_for_okm(&secret);
                expander
                    .expand_slice(&[b"a", b"", b"b"], &mut long)
                    .unwrap();
                let signed = hkdf.hmac_sign(&secret, b"finished");
                let last = hkdf.extract_from_zero_ikm(Some(secret.as_ref()));
                let end = last.expand_block(&[]);
                let too_long = expander.expand_slice(&[], &mut [0; 255 * 64 + 1]).is_err();
                let parts = [
                    salt.as_ref(),
                    secret.as_ref(),
                    &long,
                    signed.as_ref(),
                    end.as_ref(),
                ];
                (parts.concat(), too_long, expander.hash_len())
            };
            assert_eq!(derived(ours), derived(theirs), "{suite:?}");
            let suites = (deriving(suite).suite(), suite.suite());
            assert_eq!(suites.0, suites.1);
        }
    }
}
