//! Private keys: the authority's encrypted at rest, a workload's as plain PKCS#8.

use std::fmt;
use std::path::{Path, PathBuf};

use pkcs8::pkcs5::pbes2;
use pkcs8::pkcs5::scrypt;
use pkcs8::{EncryptedPrivateKeyInfo, LineEnding, PrivateKeyInfo, SecretDocument};
use rcgen::{KeyPair, PublicKeyData as _, SubjectPublicKeyInfo};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;

use crate::files::{self, Access, FileError};

/// The longest passphrase, in bytes.
pub const PASSPHRASE_BYTES_MAX: usize = 1024;

// 16 MiB and about 50 ms: below OpenSSL's default limit of 32 MiB for scrypt, so that
// `openssl pkey` reads these files. The passphrase we generate has 256 bits of its own.
const SCRYPT_LOG_N: u8 = 14;
const SCRYPT_R: u32 = 8;
const SCRYPT_P: u32 = 1;

/// What can go wrong with a key or its passphrase.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no usable key in the file.
    #[error("{} holds no private key that can be used: {why}", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The key does not decrypt.
    #[error("{} does not decrypt with this passphrase; give the one it was made with by --passphrase-file or ZEUGMA_CA_PASSPHRASE_FILE", .0.display())]
    Passphrase(PathBuf),
    /// The passphrase is empty or too long.
    #[error("the passphrase in {} is {bytes} bytes; it must be 1 to {PASSPHRASE_BYTES_MAX}", .path.display())]
    PassphraseLength {
        /// The file.
        path: PathBuf,
        /// How long it is.
        bytes: usize,
    },
    /// A key could not be made or encoded.
    #[error("cannot make a key: {0}")]
    Generate(String),
    /// R4: an algorithm that is not issued for.
    #[error("a {0} key; use ECDSA P-256 or P-384, Ed25519, or RSA of 2048 bits or more (R4)")]
    Algorithm(String),
}

impl KeyError {
    /// Its code in [`zeugma_core::codes`].
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::File(error) => error.code(),
            Self::Passphrase(_) | Self::PassphraseLength { .. } => "ZG0214",
            Self::Parse { .. } | Self::Algorithm(_) => "ZG0215",
            Self::Generate(_) => "ZG0226",
        }
    }
}

/// The SHA-256 of a certificate's DER, in hexadecimal.
#[must_use]
pub fn fingerprint(der: &[u8]) -> String {
    files::hex(&Sha256::digest(der))
}

/// What encrypts the authority's keys; never printed, wiped when dropped.
#[derive(Clone)]
pub struct Passphrase(Vec<u8>);

impl Drop for Passphrase {
    fn drop(&mut self) {
        use pkcs8::der::zeroize::Zeroize as _;
        self.0.zeroize();
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

impl Passphrase {
    /// Reads the first line of a file that only its owner may read.
    ///
    /// # Errors
    /// The file cannot be read or is exposed (C5), or the passphrase is empty or too long.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let mut bytes = files::read_secret(path)?;
        let end = bytes
            .iter()
            .position(|b| matches!(b, b'\n' | b'\r'))
            .unwrap_or(bytes.len());
        bytes.truncate(end);
        if bytes.is_empty() || bytes.len() > PASSPHRASE_BYTES_MAX {
            return Err(KeyError::PassphraseLength {
                path: path.to_owned(),
                bytes: bytes.len(),
            });
        }
        Ok(Self(bytes))
    }

    /// Draws one of 256 bits and keeps it in a file (0600).
    ///
    /// # Errors
    /// No randomness, or the file cannot be written.
    pub fn generate(path: &Path) -> Result<Self, KeyError> {
        let mut drawn = [0u8; 32];
        getrandom::fill(&mut drawn).map_err(|e| KeyError::Generate(e.to_string()))?;
        let text = files::hex(&drawn);
        files::write_atomically(path, format!("{text}\n").as_bytes(), Access::Secret)?;
        Ok(Self(text.into_bytes()))
    }
}

/// The key of a leaf.
#[derive(Debug)]
pub struct SubjectKey(KeyPair);

impl SubjectKey {
    /// Makes an ECDSA P-256 key.
    ///
    /// # Errors
    /// No randomness.
    pub fn generate() -> Result<Self, KeyError> {
        KeyPair::generate()
            .map(Self)
            .map_err(|e| KeyError::Generate(e.to_string()))
    }

    /// Reads an unencrypted PEM key (PKCS#8, SEC1 or PKCS#1) that only its owner may read (C5).
    ///
    /// # Errors
    /// The file cannot be read, is exposed, or holds no supported key.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let refuse = |why: String| KeyError::Parse {
            path: path.to_owned(),
            why,
        };
        let bytes = files::read_secret(path)?;
        // Not the decoder's words: a line without its breaks, which it tells, is the whole key.
        let no_pem = |_| refuse("it is no private key in PEM; is the file whole?".to_owned());
        let der = PrivateKeyDer::from_pem_slice(&bytes).map_err(no_pem)?;
        let pair = KeyPair::try_from(&der).map_err(|e| refuse(e.to_string()))?;
        Ok(Self(pair))
    }

    /// The key as PKCS#8 PEM. A secret: for a file of mode 0600 and nowhere else.
    #[must_use]
    pub fn pem(&self) -> String {
        files::pem("PRIVATE KEY", self.0.serialized_der())
    }

    /// Its public half as SubjectPublicKeyInfo DER.
    #[must_use]
    pub fn public_key_der(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }
}

/// Reads a SubjectPublicKeyInfo that a leaf may be issued for (R4).
pub(crate) fn public_key(der: &[u8]) -> Result<SubjectPublicKeyInfo, KeyError> {
    let refuse = |what: &str| Err(KeyError::Algorithm(what.to_owned()));
    let Ok(([], parsed)) = x509_parser::x509::SubjectPublicKeyInfo::from_der(der) else {
        return refuse("malformed");
    };
    match parsed.parsed() {
        Ok(PublicKey::RSA(key)) if key.key_size() < 2048 => {
            return refuse(&format!("{} bit RSA", key.key_size()));
        }
        Ok(PublicKey::DSA(_)) => return refuse("DSA"),
        Ok(PublicKey::GostR3410(_) | PublicKey::GostR3410_2012(_)) => return refuse("GOST"),
        Ok(PublicKey::RSA(_) | PublicKey::EC(_) | PublicKey::Unknown(_)) => {}
        Err(_) => return refuse("malformed"),
    }
    let key = SubjectPublicKeyInfo::from_der(der)
        .or_else(|_| refuse(&parsed.algorithm.algorithm.to_id_string()))?;
    let known = [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ];
    if known.contains(&key.algorithm()) {
        Ok(key)
    } else {
        refuse(&format!("{:?}", key.algorithm()))
    }
}

/// A key of the authority itself.
#[derive(Debug)]
pub(crate) struct SigningKey(KeyPair);

impl SigningKey {
    /// The root's: ECDSA P-384.
    pub(crate) fn generate_root() -> Result<Self, KeyError> {
        Self::generate(&rcgen::PKCS_ECDSA_P384_SHA384)
    }

    /// An issuer's: ECDSA P-256.
    pub(crate) fn generate_issuer() -> Result<Self, KeyError> {
        Self::generate(&rcgen::PKCS_ECDSA_P256_SHA256)
    }

    fn generate(algorithm: &'static rcgen::SignatureAlgorithm) -> Result<Self, KeyError> {
        KeyPair::generate_for(algorithm)
            .map(Self)
            .map_err(|e| KeyError::Generate(e.to_string()))
    }

    /// The subject key identifier: the leftmost 160 bits of the SHA-256 of the
    /// SubjectPublicKeyInfo (RFC 7093 §2 method 4, which rcgen calls method 1), in hexadecimal.
    pub(crate) fn id(&self) -> String {
        let digest = Sha256::digest(self.0.subject_public_key_info());
        files::hex(digest.get(..20).unwrap_or_default())
    }

    pub(crate) fn pair(&self) -> &KeyPair {
        &self.0
    }

    /// Writes the key encrypted: PKCS#8, PBES2 with scrypt and AES-256-CBC, mode 0600 (C5).
    pub(crate) fn write(&self, path: &Path, passphrase: &Passphrase) -> Result<(), KeyError> {
        let fail = |e: &dyn fmt::Display| KeyError::Generate(e.to_string());
        let (mut salt, mut iv) = ([0u8; 16], [0u8; 16]);
        getrandom::fill(&mut salt).map_err(|e| fail(&e))?;
        getrandom::fill(&mut iv).map_err(|e| fail(&e))?;
        let params =
            scrypt::Params::new(SCRYPT_LOG_N, SCRYPT_R, SCRYPT_P, 32).map_err(|e| fail(&e))?;
        let scheme =
            pbes2::Parameters::scrypt_aes256cbc(params, &salt, &iv).map_err(|e| fail(&e))?;
        let sealed = PrivateKeyInfo::try_from(self.0.serialized_der())
            .and_then(|key| key.encrypt_with_params(scheme, &passphrase.0))
            .map_err(|e| fail(&e))?;
        let text = sealed
            .to_pem("ENCRYPTED PRIVATE KEY", LineEnding::LF)
            .map_err(|e| fail(&e))?;
        files::write_atomically(path, text.as_bytes(), Access::Secret)?;
        Ok(())
    }

    /// Reads a key that [`write`](Self::write) wrote.
    pub(crate) fn read(path: &Path, passphrase: &Passphrase) -> Result<Self, KeyError> {
        let refuse = |why: String| KeyError::Parse {
            path: path.to_owned(),
            why,
        };
        let bytes = files::read_secret(path)?;
        let text = String::from_utf8(bytes).map_err(|e| refuse(e.to_string()))?;
        let (label, sealed) = SecretDocument::from_pem(&text).map_err(|e| refuse(e.to_string()))?;
        if label != "ENCRYPTED PRIVATE KEY" {
            return Err(refuse(format!(
                "a `{label}` where an `ENCRYPTED PRIVATE KEY` is expected; the authority's keys are never kept in the clear"
            )));
        }
        let info = EncryptedPrivateKeyInfo::try_from(sealed.as_bytes())
            .map_err(|e| refuse(e.to_string()))?;
        let key = info
            .decrypt(&passphrase.0)
            .map_err(|_| KeyError::Passphrase(path.to_owned()))?;
        KeyPair::try_from(&PrivatePkcs8KeyDer::from(key.as_bytes()))
            .map(Self)
            .map_err(|e| refuse(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn c5_an_authority_key_is_encrypted_and_0600_and_comes_back_with_its_passphrase() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        let passphrase = Passphrase::generate(&folder.path().join("passphrase")).unwrap();
        let key = SigningKey::generate_root().unwrap();
        key.write(&path, &passphrase).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"));
        assert_eq!(SigningKey::read(&path, &passphrase).unwrap().id(), key.id());

        let other = Passphrase::generate(&folder.path().join("other")).unwrap();
        let error = SigningKey::read(&path, &other).unwrap_err();
        assert!(matches!(error, KeyError::Passphrase(_)), "{error}");
    }

    #[test]
    fn a_passphrase_is_the_first_line_of_an_unexposed_file_within_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p");
        let with = |text: &[u8]| {
            files::write_atomically(&path, text, Access::Secret).unwrap();
            Passphrase::read(&path)
        };
        assert_eq!(with(b"secret\r\n").unwrap().0, b"secret");
        assert_eq!(with(b"secret").unwrap().0, b"secret");
        assert!(with(b"").is_err());
        assert!(with(b"\nx").is_err());
        assert!(with(&[b'a'; 1024]).is_ok());
        assert!(with(&[b'a'; 1025]).is_err());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            Passphrase::read(&path),
            Err(KeyError::File(FileError::Exposed { .. }))
        ));
    }

    #[test]
    fn nothing_of_a_key_is_told_where_it_is_no_pem() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("leaf.key");
        let pem = SubjectKey::generate().unwrap().pem();
        let line = pem.lines().nth(1).unwrap();
        let bytes = format!("{:?}", &line.as_bytes()[..8]);
        let bytes = bytes.trim_matches(['[', ']']);
        for bad in [pem.replace('\n', ""), pem.replace('\n', "\\n")] {
            files::write_atomically(&path, bad.as_bytes(), Access::Secret).unwrap();
            let said = SubjectKey::read(&path).unwrap_err().to_string();
            assert!(said.contains("no private key in PEM"), "{said}");
            assert!(!said.contains(&line[..8]), "{said}");
            assert!(!said.contains(bytes), "{said}");
        }
    }

    #[test]
    fn an_authority_key_in_the_clear_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("issuer.key");
        let passphrase = Passphrase::generate(&folder.path().join("passphrase")).unwrap();
        let plain = SubjectKey::generate().unwrap().pem();
        files::write_atomically(&path, plain.as_bytes(), Access::Secret).unwrap();
        let error = SigningKey::read(&path, &passphrase).unwrap_err();
        assert!(
            error.to_string().contains("never kept in the clear"),
            "{error}"
        );
    }
}
