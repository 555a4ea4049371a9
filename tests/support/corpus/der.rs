//! Certificates byte by byte (RFC 5280 §4.1): every field can be made wrong on its own.

use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;
pub(crate) const UTF8_STRING: u8 = 0x0c;
pub(crate) const UTC_TIME: u8 = 0x17;
pub(crate) const GENERALIZED_TIME: u8 = 0x18;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;

/// One element: tag, length, content (X.690 §8.1).
pub(crate) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        short @ 0..=0x7f => out.push(u8::try_from(short).unwrap()),
        long => {
            let octets = long.to_be_bytes();
            let octets: Vec<u8> = octets.into_iter().skip_while(|byte| *byte == 0).collect();
            out.push(0x80 | u8::try_from(octets.len()).unwrap());
            out.extend(octets);
        }
    }
    out.extend_from_slice(content);
    out
}

pub(crate) fn sequence(elements: &[&[u8]]) -> Vec<u8> {
    tlv(SEQUENCE, &elements.concat())
}

/// An object identifier (X.690 §8.19).
pub(crate) fn oid(arcs: &[u32]) -> Vec<u8> {
    let mut content = vec![u8::try_from(arcs[0] * 40 + arcs[1]).unwrap()];
    for arc in &arcs[2..] {
        let mut groups = vec![u8::try_from(arc & 0x7f).unwrap()];
        let mut rest = arc >> 7;
        while rest > 0 {
            groups.push(0x80 | u8::try_from(rest & 0x7f).unwrap());
            rest >>= 7;
        }
        content.extend(groups.into_iter().rev());
    }
    tlv(OID, &content)
}

/// A name of one attribute, the common name; `None`: the empty name.
pub(crate) fn name(common_name: Option<&str>) -> Vec<u8> {
    let Some(text) = common_name else {
        return sequence(&[]);
    };
    let attribute = sequence(&[&oid(&[2, 5, 4, 3]), &tlv(UTF8_STRING, text.as_bytes())]);
    sequence(&[&tlv(SET, &attribute)])
}

/// A time as RFC 5280 §4.1.2.5 wants it before 2050.
pub(crate) fn utc_time(unix: i64) -> Vec<u8> {
    tlv(UTC_TIME, &digits(unix)[2..])
}

/// A time as RFC 5280 §4.1.2.5 wants it from 2050 on.
pub(crate) fn generalized_time(unix: i64) -> Vec<u8> {
    tlv(GENERALIZED_TIME, &digits(unix))
}

fn digits(unix: i64) -> Vec<u8> {
    let at = OffsetDateTime::from_unix_timestamp(unix).unwrap();
    let (date, time) = (at.date(), at.time());
    format!(
        "{:04}{:02}{:02}{:02}{:02}{:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
    .into_bytes()
}

/// A SAN of one type: 1 mail, 2 DNS, 6 URI, 7 IP.
pub(crate) fn san(kind: u8, text: &[u8]) -> Vec<u8> {
    tlv(0x80 | kind, text)
}

/// An extension, by the DER of its identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extension {
    pub(crate) id: Vec<u8>,
    pub(crate) critical: bool,
    pub(crate) value: Vec<u8>,
}

impl Extension {
    pub(crate) fn new(arcs: &[u32], critical: bool, value: Vec<u8>) -> Self {
        Self {
            id: oid(arcs),
            critical,
            value,
        }
    }

    fn der(&self) -> Vec<u8> {
        // DER leaves out a default (X.690 §11.5): `critical` is FALSE unless said.
        let critical: &[u8] = if self.critical { &[1, 1, 0xff] } else { &[] };
        sequence(&[&self.id, critical, &tlv(OCTET_STRING, &self.value)])
    }
}

/// The bits of keyUsage, counted from the left (RFC 5280 §4.2.1.3).
pub(crate) fn key_usage(bits: &[u8]) -> Vec<u8> {
    let octet = bits.iter().fold(0_u8, |octet, bit| octet | (0x80 >> bit));
    let unused = u8::try_from(octet.trailing_zeros().min(7)).unwrap();
    tlv(BIT_STRING, &[unused, octet])
}

/// basicConstraints of a CA.
pub(crate) fn ca(path_len: Option<u8>) -> Vec<u8> {
    let path_len = path_len.map_or_else(Vec::new, |len| tlv(INTEGER, &[len]));
    sequence(&[&[1, 1, 0xff], &path_len])
}

pub(crate) const SUBJECT_KEY_ID: &[u32] = &[2, 5, 29, 14];
pub(crate) const KEY_USAGE: &[u32] = &[2, 5, 29, 15];
pub(crate) const SUBJECT_ALT_NAME: &[u32] = &[2, 5, 29, 17];
pub(crate) const BASIC_CONSTRAINTS: &[u32] = &[2, 5, 29, 19];
pub(crate) const NAME_CONSTRAINTS: &[u32] = &[2, 5, 29, 30];
pub(crate) const AUTHORITY_KEY_ID: &[u32] = &[2, 5, 29, 35];
pub(crate) const EXTENDED_KEY_USAGE: &[u32] = &[2, 5, 29, 37];

pub(crate) const SERVER_AUTH: &[u32] = &[1, 3, 6, 1, 5, 5, 7, 3, 1];
pub(crate) const CLIENT_AUTH: &[u32] = &[1, 3, 6, 1, 5, 5, 7, 3, 2];
pub(crate) const CODE_SIGNING: &[u32] = &[1, 3, 6, 1, 5, 5, 7, 3, 3];
pub(crate) const ANY_USAGE: &[u32] = &[2, 5, 29, 37, 0];

pub(crate) const ECDSA_WITH_SHA1: &[u32] = &[1, 2, 840, 10_045, 4, 1];
const ECDSA_WITH_SHA256: &[u32] = &[1, 2, 840, 10_045, 4, 3, 2];
const ECDSA_WITH_SHA384: &[u32] = &[1, 2, 840, 10_045, 4, 3, 3];

/// A certificate before it is signed.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// The version's number as encoded (2 is v3); `None` leaves the field out, which is v1.
    pub(crate) version: Option<u8>,
    /// The content octets of the serial.
    pub(crate) serial: Vec<u8>,
    /// The signature algorithm; `None`: the signing key's own.
    pub(crate) algorithm: Option<Vec<u8>>,
    pub(crate) issuer: Vec<u8>,
    pub(crate) not_before: Vec<u8>,
    pub(crate) not_after: Vec<u8>,
    pub(crate) subject: Vec<u8>,
    pub(crate) public_key: Vec<u8>,
    pub(crate) extensions: Vec<Extension>,
}

impl Spec {
    /// The extension with this identifier, to be changed in place.
    pub(crate) fn extension(&mut self, arcs: &[u32]) -> &mut Extension {
        let id = oid(arcs);
        let found = self.extensions.iter_mut().find(|e| e.id == id);
        found.unwrap_or_else(|| panic!("no extension {arcs:?}"))
    }

    /// Takes an extension out.
    pub(crate) fn without(&mut self, arcs: &[u32]) {
        let id = oid(arcs);
        self.extensions.retain(|extension| extension.id != id);
    }

    /// Replaces the SANs.
    pub(crate) fn names(&mut self, names: &[Vec<u8>]) {
        self.extension(SUBJECT_ALT_NAME).value = tlv(SEQUENCE, &names.concat());
    }

    /// Replaces the SANs by one URI.
    pub(crate) fn uri(&mut self, uri: &str) {
        self.names(&[san(6, uri.as_bytes())]);
    }

    /// Replaces the extended key usages.
    pub(crate) fn usages(&mut self, usages: &[&[u32]]) {
        let oids: Vec<u8> = usages.iter().flat_map(|arcs| oid(arcs)).collect();
        self.extension(EXTENDED_KEY_USAGE).value = tlv(SEQUENCE, &oids);
    }

    /// Signs with `key`.
    pub(crate) fn sign(&self, key: &KeyPair) -> CertificateDer<'static> {
        let algorithm = self.algorithm.clone().unwrap_or_else(|| algorithm(key));
        let extensions: Vec<u8> = self.extensions.iter().flat_map(Extension::der).collect();
        let extensions = if self.extensions.is_empty() {
            Vec::new()
        } else {
            tlv(0xa3, &tlv(SEQUENCE, &extensions))
        };
        let version = self
            .version
            .map_or_else(Vec::new, |number| tlv(0xa0, &tlv(INTEGER, &[number])));
        let signed = sequence(&[
            &version,
            &tlv(INTEGER, &self.serial),
            &algorithm,
            &self.issuer,
            &sequence(&[&self.not_before, &self.not_after]),
            &self.subject,
            &self.public_key,
            &extensions,
        ]);
        let mut signature = vec![0];
        signature.extend(key.sign(&signed).unwrap());
        let der = sequence(&[&signed, &algorithm, &tlv(BIT_STRING, &signature)]);
        CertificateDer::from(der)
    }
}

/// The public key of `key` with its algorithm.
pub(crate) fn public_key(key: &KeyPair) -> Vec<u8> {
    key.subject_public_key_info()
}

/// An RSA public key of `bits` that nobody holds: nothing needs to be signed with it.
pub(crate) fn rsa_public_key(bits: usize) -> Vec<u8> {
    let mut modulus = vec![0];
    modulus.extend(std::iter::repeat_n(0xc5, bits / 8));
    let key = sequence(&[&tlv(INTEGER, &modulus), &tlv(INTEGER, &[1, 0, 1])]);
    let algorithm = sequence(&[&oid(&[1, 2, 840, 113_549, 1, 1, 1]), &[5, 0]]);
    let mut bits = vec![0];
    bits.extend(key);
    sequence(&[&algorithm, &tlv(BIT_STRING, &bits)])
}

fn algorithm(key: &KeyPair) -> Vec<u8> {
    let arcs = if key.algorithm() == &rcgen::PKCS_ECDSA_P384_SHA384 {
        ECDSA_WITH_SHA384
    } else {
        ECDSA_WITH_SHA256
    };
    sequence(&[&oid(arcs)])
}
