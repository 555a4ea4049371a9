//! Certificates read from wherever they are: PEM, DER, a SPIFFE bundle, standard input.

use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use zeugma_ca::files::{self, FILE_BYTES_MAX};
use zeugma_proxy::tls::PemError;

use super::CaError;

/// Reads every certificate of a file, or of standard input for `-`.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let (name, bytes) = if path == Path::new("-") {
        ("standard input".to_owned(), stdin()?)
    } else {
        (path.display().to_string(), files::read(path)?)
    };
    let found = parse(&bytes).map_err(|source| CaError::Pem {
        source_name: name.clone(),
        source,
    })?;
    if found.is_empty() {
        return Err(CaError::NoCertificate { source_name: name });
    }
    Ok(found)
}

/// Standard input, up to the limit of a file.
pub(super) fn stdin() -> Result<Vec<u8>, CaError> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(FILE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(CaError::Stdin)?;
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    // A DER certificate is a SEQUENCE of more than 127 bytes: 30 82 ...
    if let [0x30, 0x81..=0x83, ..] = bytes {
        return Ok(vec![CertificateDer::from(bytes.to_vec())]);
    }
    if let Ok(bundle) = serde_json::from_slice::<serde_json::Value>(bytes) {
        return Ok(from_bundle(&bundle));
    }
    let found = CertificateDer::pem_slice_iter(bytes);
    found.map(|one| one.map_err(PemError::from)).collect()
}

fn from_bundle(bundle: &serde_json::Value) -> Vec<CertificateDer<'static>> {
    let keys = bundle.get("keys").and_then(|keys| keys.as_array());
    keys.into_iter()
        .flatten()
        .filter_map(|key| key.pointer("/x5c/0")?.as_str())
        .filter_map(|text| base64::engine::general_purpose::STANDARD.decode(text).ok())
        .map(CertificateDer::from)
        .collect()
}
