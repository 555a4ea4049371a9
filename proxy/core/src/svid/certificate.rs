//! One certificate, parsed once, and the rules as its methods.

use x509_parser::certificate::{X509Certificate, X509CertificateParser};
use x509_parser::extensions::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, GeneralName, KeyIdentifier,
    KeyUsage, SubjectAlternativeName, X509Extension,
};
use x509_parser::nom::Parser as _;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Version;

use super::crl::{Signed, content};
use super::{
    EXTENSIONS_MAX, IssuerFacts, LeafFacts, Origin, ROOT_PATH_LEN_MAX, Rule, SERIAL_OCTETS_MAX,
    Serial, Violation, key,
};
use crate::identity::{SpiffeId, TrustDomain};

/// A parsed certificate, on which the rules are checked in the order its reader wants.
#[derive(Debug)]
pub struct Certificate<'a> {
    der: &'a [u8],
    x509: X509Certificate<'a>,
    uris: Vec<&'a str>,
    san_critical: bool,
    key_usage: Option<(KeyUsage, bool)>,
    extended_key_usage: Option<ExtendedKeyUsage<'a>>,
    basic_constraints: Option<(BasicConstraints, bool)>,
    subject_key_id: Option<&'a [u8]>,
    authority_key_id: Option<&'a [u8]>,
    unknown_critical: Option<String>,
}

impl<'a> Certificate<'a> {
    /// Parses one certificate, whole: trailing bytes are refused.
    ///
    /// # Errors
    /// [`Rule::Malformed`] or [`Rule::DuplicateExtension`].
    pub fn parse(der: &'a [u8]) -> Result<Self, Violation> {
        let mut parser = X509CertificateParser::new().with_deep_parse_extensions(false);
        let (rest, x509) = parser
            .parse(der)
            .map_err(|error| malformed(format!("not an X.509 certificate: {error}")))?;
        if !rest.is_empty() {
            let detail = format!("{} bytes follow the certificate", rest.len());
            return Err(malformed(detail));
        }
        let mut certificate = Self {
            der,
            x509,
            uris: Vec::new(),
            san_critical: false,
            key_usage: None,
            extended_key_usage: None,
            basic_constraints: None,
            subject_key_id: None,
            authority_key_id: None,
            unknown_critical: None,
        };
        let extensions = certificate.x509.extensions().to_vec();
        if extensions.len() > EXTENSIONS_MAX {
            let detail = format!(
                "{} extensions; at most {EXTENSIONS_MAX} are allowed",
                extensions.len()
            );
            return Err(malformed(detail));
        }
        for (at, extension) in extensions.iter().enumerate() {
            if extensions.iter().take(at).any(|e| e.oid == extension.oid) {
                let detail = format!("extension {} occurs twice", extension.oid);
                return Err(Violation::new(Rule::DuplicateExtension, detail));
            }
            certificate.read_extension(extension)?;
        }
        Ok(certificate)
    }

    fn read_extension(&mut self, extension: &X509Extension<'a>) -> Result<(), Violation> {
        let (value, critical) = (extension.value, extension.critical);
        let mut understood = true;
        // The arcs of id-ce (2.5.29), RFC 5280 §4.2.1.
        match extension.oid.as_bytes() {
            [0x55, 0x1d, 14] => {
                self.subject_key_id = Some(whole::<KeyIdentifier<'_>>("subject key id", value)?.0);
                understood = false;
            }
            [0x55, 0x1d, 15] => self.key_usage = Some((whole("keyUsage", value)?, critical)),
            [0x55, 0x1d, 17] => {
                self.san_critical = critical;
                self.uris = uris(&whole("SAN", value)?)?;
            }
            [0x55, 0x1d, 19] => {
                self.basic_constraints = Some((whole("basicConstraints", value)?, critical));
            }
            // Name constraints and CRL distribution points are understood by the path builder.
            [0x55, 0x1d, 30 | 31] => {}
            [0x55, 0x1d, 35] => {
                let id: AuthorityKeyIdentifier<'_> = whole("authority key id", value)?;
                self.authority_key_id = id.key_identifier.map(|id| id.0);
                understood = false;
            }
            [0x55, 0x1d, 37] => self.extended_key_usage = Some(whole("extKeyUsage", value)?),
            _ => understood = false,
        }
        // Key identifiers are read but may not be critical (RFC 5280 §4.2.1.1, §4.2.1.2).
        if critical && !understood {
            self.unknown_critical = Some(extension.oid.to_id_string());
        }
        Ok(())
    }

    /// The one identity of a leaf: XL1, XL2, XL3.
    ///
    /// # Errors
    /// The first of these rules that is broken.
    pub fn identity(&self) -> Result<SpiffeId, Violation> {
        let [uri] = self.uris.as_slice() else {
            let detail = format!(
                "{} URI SANs; exactly one is allowed",
                if self.uris.is_empty() {
                    "no".to_owned()
                } else {
                    self.uris.len().to_string()
                }
            );
            return Err(Violation::new(Rule::XL1, detail));
        };
        // Past the scheme and trust domain, a single `/` is the root path: refused as a path that
        // is root rather than as a text with a trailing slash.
        if let Some(domain) = uri.strip_suffix('/')
            && SpiffeId::parse(domain).is_ok_and(|id| id.path().is_empty())
        {
            return Err(Violation::new(Rule::XL3, "the SPIFFE ID has the root path"));
        }
        let id = SpiffeId::parse(uri).map_err(|e| Violation::new(Rule::XL2, e.to_string()))?;
        if id.path().is_empty() {
            let detail = format!("`{id}` has no path and names a trust domain, not a workload");
            return Err(Violation::new(Rule::XL3, detail));
        }
        Ok(id)
    }

    /// The rules of a leaf that its identity does not cover: R1-R4, R10, XL5-XL11, XL13.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn check_leaf(&self, origin: Origin) -> Result<(), Violation> {
        self.check_form()?;
        if self.subject_is_empty() && !self.san_critical {
            let detail = "the subject is empty and the SAN extension is not critical";
            return Err(Violation::new(Rule::XL5, detail));
        }
        if self.basic_constraints.as_ref().is_some_and(|(b, _)| b.ca) {
            return Err(Violation::new(Rule::XL6, "the leaf is a CA certificate"));
        }
        self.check_leaf_key_usage()?;
        self.check_extended_key_usage(origin)?;
        if origin == Origin::Issued && self.authority_key_id.is_none() {
            return Err(Violation::new(Rule::R5, "no authority key identifier"));
        }
        Ok(())
    }

    /// The facts of a leaf whose identity is `id`.
    #[must_use]
    pub fn leaf_facts(&self, id: SpiffeId) -> LeafFacts {
        LeafFacts {
            id,
            serial: self.serial(),
            not_before: self.not_before(),
            not_after: self.not_after(),
            subject_key_id: self.subject_key_id.map(Into::into),
            authority_key_id: self.authority_key_id.map(Into::into),
        }
    }

    /// The rules of a CA certificate below an anchor: R1-R4, R10, XC1-XC7, and XC9 if issued.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn check_issuer(
        &self,
        domain: &TrustDomain,
        origin: Origin,
    ) -> Result<IssuerFacts, Violation> {
        let found = self.ca_trust_domain()?;
        let Some(found) = found else {
            let detail = "the issuer has no URI SAN that names its trust domain; if it may sign \
                          for the trust domain, put it into that bundle as an anchor";
            return Err(Violation::new(Rule::XC3, detail));
        };
        same_domain(&found, domain)?;
        self.check_ca(origin)?;
        if origin == Origin::Issued {
            self.check_path_len(0)?;
            if self.authority_key_id.is_none() {
                return Err(Violation::new(Rule::R5, "no authority key identifier"));
            }
        }
        Ok(self.issuer_facts(Some(found)))
    }

    /// The rules of an anchor: as an issuer, but a presented one may name no trust domain.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn check_anchor(
        &self,
        domain: &TrustDomain,
        origin: Origin,
    ) -> Result<IssuerFacts, Violation> {
        let found = self.ca_trust_domain()?;
        match (&found, origin) {
            (Some(found), _) => same_domain(found, domain)?,
            (None, Origin::Presented) => {}
            (None, Origin::Issued) => {
                let detail = "the anchor has no URI SAN that names its trust domain";
                return Err(Violation::new(Rule::XC3, detail));
            }
        }
        self.check_ca(origin)?;
        if origin == Origin::Issued {
            self.check_path_len(0)?;
            self.check_self_issued()?;
        }
        Ok(self.issuer_facts(found))
    }

    /// The rules of a root of ours.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn check_root(&self) -> Result<IssuerFacts, Violation> {
        if !self.uris.is_empty() {
            let detail = "a root is of no trust domain and has no URI SAN";
            return Err(Violation::new(Rule::XC3, detail));
        }
        self.check_ca(Origin::Issued)?;
        self.check_path_len(ROOT_PATH_LEN_MAX)?;
        self.check_self_issued()?;
        Ok(self.issuer_facts(None))
    }

    /// Whether `now` (Unix seconds) is within the validity.
    ///
    /// # Errors
    /// [`Rule::Expired`] or [`Rule::NotYetValid`], with how far off.
    pub fn check_time(&self, now: i64) -> Result<(), Violation> {
        if now < self.not_before() {
            let early = self.not_before().saturating_sub(now);
            let detail = format!("valid only in {early} s; check this machine's clock");
            return Err(Violation::new(Rule::NotYetValid, detail));
        }
        // RFC 5280 §4.1.2.5: valid up to and including notAfter.
        if now > self.not_after() {
            let late = now.saturating_sub(self.not_after());
            return Err(Violation::new(
                Rule::Expired,
                format!("expired {late} s ago"),
            ));
        }
        Ok(())
    }

    /// The serial.
    #[must_use]
    pub fn serial(&self) -> Serial {
        Serial(self.x509.raw_serial().into())
    }

    /// Start of validity, in Unix seconds.
    #[must_use]
    pub fn not_before(&self) -> i64 {
        self.x509.validity().not_before.timestamp()
    }

    /// End of validity, in Unix seconds.
    #[must_use]
    pub fn not_after(&self) -> i64 {
        self.x509.validity().not_after.timestamp()
    }

    /// The subject, as its DER bytes.
    #[must_use]
    pub fn subject(&self) -> &'a [u8] {
        self.x509.subject.as_raw()
    }

    /// The issuer field, as its DER bytes.
    #[must_use]
    pub fn issuer(&self) -> &'a [u8] {
        self.x509.issuer.as_raw()
    }

    /// The subject key identifier.
    #[must_use]
    pub const fn subject_key_id(&self) -> Option<&'a [u8]> {
        self.subject_key_id
    }

    /// The key identifier of the issuer.
    #[must_use]
    pub const fn authority_key_id(&self) -> Option<&'a [u8]> {
        self.authority_key_id
    }

    /// The public key with its algorithm, as DER bytes.
    #[must_use]
    pub fn public_key(&self) -> &'a [u8] {
        self.x509.tbs_certificate.subject_pki.raw
    }

    /// The content of the public key's algorithm identifier, and the key.
    #[must_use]
    pub fn public_key_parts(&self) -> Option<(&'a [u8], &[u8])> {
        let info = &self.x509.tbs_certificate.subject_pki;
        let algorithm = content(content(info.raw)?)?;
        Some((algorithm, &info.subject_public_key.data))
    }

    /// What its issuer signed, and how. Whether the signature is right is for the TLS library to say.
    #[must_use]
    pub fn signed(&self) -> Option<Signed<'a>> {
        let signed_bytes = self.x509.tbs_certificate.as_ref().len();
        Signed::split(self.der, signed_bytes, &self.x509.signature_value.data)
    }

    /// Whether its key may sign CRLs (R9).
    #[must_use]
    pub fn signs_crls(&self) -> bool {
        (self.key_usage.as_ref()).is_some_and(|(usage, _)| usage.crl_sign())
    }

    /// The rules of RFC 5280 for any certificate: R1, R2, R3, R4, R10.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn check_form(&self) -> Result<(), Violation> {
        if self.x509.version() != X509Version::V3 {
            let detail = format!(
                "version {}; only 3 is allowed",
                self.x509.version().0.saturating_add(1)
            );
            return Err(Violation::new(Rule::R1, detail));
        }
        check_serial(self.x509.raw_serial())?;
        let validity = self.x509.validity();
        check_time_encoding("notBefore", validity.not_before)?;
        check_time_encoding("notAfter", validity.not_after)?;
        if validity.not_before >= validity.not_after {
            let detail = "notBefore is not before notAfter";
            return Err(Violation::new(Rule::R3, detail));
        }
        key::check_public_key(self.x509.public_key())?;
        key::check_signature(&self.x509)?;
        match &self.unknown_critical {
            Some(oid) => {
                let detail = format!("critical extension {oid} is not understood");
                Err(Violation::new(Rule::R10, detail))
            }
            None => Ok(()),
        }
    }

    fn check_leaf_key_usage(&self) -> Result<(), Violation> {
        let Some((usage, critical)) = &self.key_usage else {
            return Err(Violation::new(Rule::XL7, "no keyUsage extension"));
        };
        if !critical {
            let detail = "the keyUsage extension is not critical";
            return Err(Violation::new(Rule::XL13, detail));
        }
        if usage.key_cert_sign() || usage.crl_sign() {
            let detail = format!("keyUsage is {usage}; a leaf signs no certificates and no CRLs");
            return Err(Violation::new(Rule::XL9, detail));
        }
        if !usage.digital_signature() {
            let detail = format!("keyUsage is {usage}, without digitalSignature");
            return Err(Violation::new(Rule::XL8, detail));
        }
        Ok(())
    }

    fn check_extended_key_usage(&self, origin: Origin) -> Result<(), Violation> {
        let Some(usage) = &self.extended_key_usage else {
            return match origin {
                Origin::Issued => Err(Violation::new(Rule::XL10, "no extended key usage")),
                Origin::Presented => Ok(()),
            };
        };
        if usage.any {
            let detail = "the extended key usage includes anyExtendedKeyUsage";
            return Err(Violation::new(Rule::XL11, detail));
        }
        let detail = match (usage.server_auth, usage.client_auth) {
            (true, true) => return Ok(()),
            (true, false) => "the extended key usage has no clientAuth",
            (false, true) => "the extended key usage has no serverAuth",
            (false, false) => "the extended key usage has neither serverAuth nor clientAuth",
        };
        Err(Violation::new(Rule::XL10, detail))
    }

    fn check_ca(&self, origin: Origin) -> Result<(), Violation> {
        self.check_form()?;
        match &self.basic_constraints {
            Some((constraints, true)) if constraints.ca => {}
            Some((constraints, false)) if constraints.ca => {
                let detail = "basicConstraints is not critical";
                return Err(Violation::new(Rule::XC1, detail));
            }
            _ => return Err(Violation::new(Rule::XC1, "not a CA certificate")),
        }
        match &self.key_usage {
            Some((usage, true)) if usage.key_cert_sign() => {}
            Some((usage, true)) => {
                let detail = format!("keyUsage is {usage}, without keyCertSign");
                return Err(Violation::new(Rule::XC2, detail));
            }
            Some((_, false)) => {
                let detail = "the keyUsage extension is not critical";
                return Err(Violation::new(Rule::XC2, detail));
            }
            None => return Err(Violation::new(Rule::XC2, "no keyUsage extension")),
        }
        if self.subject_is_empty() {
            return Err(Violation::new(Rule::XC7, "the subject is empty"));
        }
        if origin == Origin::Presented {
            // Deployed CAs set digitalSignature (Istio's example roots do) and omit key
            // identifiers; neither opens a door, since a CA certificate is never a peer (XL6).
            return Ok(());
        }
        if let Some((usage, _)) = &self.key_usage
            && usage.digital_signature()
        {
            let detail = "a CA certificate sets digitalSignature";
            return Err(Violation::new(Rule::XC6, detail));
        }
        if self.subject_key_id.is_none() {
            return Err(Violation::new(Rule::R6, "no subject key identifier"));
        }
        Ok(())
    }

    fn check_path_len(&self, max: u32) -> Result<(), Violation> {
        match self.path_len() {
            Some(length) if length <= max => Ok(()),
            Some(length) => {
                let detail = format!("pathLen is {length}; at most {max} is allowed");
                Err(Violation::new(Rule::XC9, detail))
            }
            None => {
                let detail = format!("no pathLen; at most {max} is allowed");
                Err(Violation::new(Rule::XC9, detail))
            }
        }
    }

    fn check_self_issued(&self) -> Result<(), Violation> {
        if self.subject() == self.issuer() {
            return Ok(());
        }
        let detail = "subject and issuer of a self-signed certificate differ";
        Err(Violation::new(Rule::R12, detail))
    }

    /// XC3: at most one URI SAN, a SPIFFE ID without a path.
    fn ca_trust_domain(&self) -> Result<Option<TrustDomain>, Violation> {
        let uri = match self.uris.as_slice() {
            [] => return Ok(None),
            [uri] => uri,
            more => {
                let detail = format!("{} URI SANs; a CA certificate has at most one", more.len());
                return Err(Violation::new(Rule::XC3, detail));
            }
        };
        let id = SpiffeId::parse(uri).map_err(|e| Violation::new(Rule::XC3, e.to_string()))?;
        if !id.path().is_empty() {
            let detail = format!("`{id}` has a path; a CA certificate names a trust domain");
            return Err(Violation::new(Rule::XC3, detail));
        }
        Ok(Some(id.trust_domain()))
    }

    fn issuer_facts(&self, trust_domain: Option<TrustDomain>) -> IssuerFacts {
        IssuerFacts {
            trust_domain,
            serial: self.serial(),
            not_before: self.not_before(),
            not_after: self.not_after(),
            path_len: self.path_len(),
            subject_key_id: self.subject_key_id.map(Into::into),
            authority_key_id: self.authority_key_id.map(Into::into),
        }
    }

    fn path_len(&self) -> Option<u32> {
        let (constraints, _) = self.basic_constraints.as_ref()?;
        constraints.path_len_constraint
    }

    fn subject_is_empty(&self) -> bool {
        self.x509.subject().iter().next().is_none()
    }
}

fn malformed(detail: impl Into<String>) -> Violation {
    Violation::new(Rule::Malformed, detail)
}

/// Parses an extension's value, all of it: what one parser ignores another may read.
fn whole<'a, T>(name: &str, value: &'a [u8]) -> Result<T, Violation>
where
    T: FromDer<'a, x509_parser::error::X509Error>,
{
    match T::from_der(value) {
        Ok(([], parsed)) => Ok(parsed),
        Ok((rest, _)) => Err(malformed(format!("{} bytes follow the {name}", rest.len()))),
        Err(error) => Err(malformed(format!(
            "the {name} extension is no valid DER: {error}"
        ))),
    }
}

fn uris<'a>(san: &SubjectAlternativeName<'a>) -> Result<Vec<&'a str>, Violation> {
    let mut uris = Vec::new();
    for name in &san.general_names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::Invalid(tag, _) => {
                return Err(malformed(format!("a SAN of type {tag} is malformed")));
            }
            GeneralName::OtherName(..)
            | GeneralName::RFC822Name(_)
            | GeneralName::DNSName(_)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::IPAddress(_)
            | GeneralName::RegisteredID(_) => {}
        }
    }
    Ok(uris)
}

fn same_domain(found: &TrustDomain, leaf: &TrustDomain) -> Result<(), Violation> {
    if found == leaf {
        return Ok(());
    }
    let detail = format!("a CA certificate of {found} where one of {leaf} is needed");
    Err(Violation::new(Rule::XC4, detail))
}

pub(super) fn check_serial(octets: &[u8]) -> Result<(), Violation> {
    let fault = match octets {
        [] => "empty".to_owned(),
        long if long.len() > SERIAL_OCTETS_MAX => {
            format!(
                "{} octets; at most {SERIAL_OCTETS_MAX} are allowed",
                long.len()
            )
        }
        [0x80..=0xff, ..] => "negative".to_owned(),
        zero if zero.iter().all(|b| *b == 0) => "zero".to_owned(),
        [0, 0..=0x7f, ..] => "not minimally encoded".to_owned(),
        _ => return Ok(()),
    };
    Err(Violation::new(Rule::R2, format!("the serial is {fault}")))
}

/// RFC 5280 §4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050 on.
fn check_time_encoding(name: &str, time: ASN1Time) -> Result<(), Violation> {
    let utc_expected = time.to_datetime().year() < 2050;
    if time.is_utctime() == utc_expected {
        return Ok(());
    }
    let detail = if utc_expected {
        format!("{name} is before 2050 and encoded as GeneralizedTime")
    } else {
        format!("{name} is after 2049 and encoded as UTCTime")
    };
    Err(Violation::new(Rule::R3, detail))
}
