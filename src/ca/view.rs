//! One certificate as people and scripts read it.

use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use time::OffsetDateTime;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey;
use zeugma_ca::files::hex;
use zeugma_ca::keys::fingerprint;
use zeugma_core::svid::{self, Origin};

use super::date;

/// What a certificate says, as text.
#[derive(Debug, Default)]
pub(super) struct View {
    parse_error: Option<String>,
    role: &'static str,
    spiffe_ids: Vec<String>,
    other_names: Vec<String>,
    subject: String,
    issuer: String,
    serial: String,
    valid: Option<[OffsetDateTime; 2]>,
    key: String,
    usage: Vec<String>,
    path_len: Option<u32>,
    subject_key_id: Option<String>,
    authority_key_id: Option<String>,
    sha256: String,
    violation: Option<(String, String)>,
}

impl View {
    pub(super) fn of(der: &CertificateDer<'_>) -> Self {
        let mut view = Self {
            sha256: fingerprint(der),
            ..Self::default()
        };
        let certificate = match X509Certificate::from_der(der) {
            Ok((_, certificate)) => certificate,
            Err(error) => {
                view.parse_error = Some(error.to_string());
                return view;
            }
        };
        view.read(&certificate);
        view.judge(der);
        view
    }

    fn read(&mut self, certificate: &X509Certificate<'_>) {
        let name = |name: &x509_parser::x509::X509Name<'_>| {
            let text = name.to_string();
            if text.is_empty() {
                "(empty)".to_owned()
            } else {
                text
            }
        };
        self.subject = name(certificate.subject());
        self.issuer = name(certificate.issuer());
        self.serial = hex(certificate.raw_serial());
        let validity = certificate.validity();
        self.valid = Some([
            validity.not_before.to_datetime(),
            validity.not_after.to_datetime(),
        ]);
        self.key = key(certificate);
        for extension in certificate.iter_extensions() {
            self.read_extension(extension.parsed_extension());
        }
        self.role = match (certificate.is_ca(), self.subject == self.issuer) {
            (false, _) => "leaf",
            (true, false) => "CA, signed by another",
            (true, true) => "CA, self-signed",
        };
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a foreign enum of every extension there is; the others are not shown"
    )]
    fn read_extension(&mut self, extension: &ParsedExtension<'_>) {
        match extension {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::URI(uri) if uri.starts_with("spiffe:") => {
                            self.spiffe_ids.push((*uri).to_owned());
                        }
                        GeneralName::DNSName(dns) => self.other_names.push((*dns).to_owned()),
                        other => self.other_names.push(other.to_string()),
                    }
                }
            }
            ParsedExtension::KeyUsage(usage) => self.usage.push(usage.to_string()),
            ParsedExtension::ExtendedKeyUsage(usage) => {
                for (set, name) in [
                    (usage.any, "any"),
                    (usage.server_auth, "serverAuth"),
                    (usage.client_auth, "clientAuth"),
                    (usage.code_signing, "codeSigning"),
                    (usage.email_protection, "emailProtection"),
                    (usage.time_stamping, "timeStamping"),
                    (usage.ocsp_signing, "OCSPSigning"),
                ] {
                    if set {
                        self.usage.push(name.to_owned());
                    }
                }
                self.usage
                    .extend(usage.other.iter().map(ToString::to_string));
            }
            ParsedExtension::BasicConstraints(constraints) => {
                self.path_len = constraints.path_len_constraint;
            }
            ParsedExtension::SubjectKeyIdentifier(id) => self.subject_key_id = Some(hex(id.0)),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                self.authority_key_id = id.key_identifier.as_ref().map(|id| hex(id.0));
            }
            _ => {}
        }
    }

    /// The first SPIFFE rule it breaks as what it looks like; time and signatures apart.
    fn judge(&mut self, der: &CertificateDer<'_>) {
        let domain = self
            .spiffe_ids
            .first()
            .and_then(|id| zeugma_core::identity::SpiffeId::parse(id).ok())
            .map(|id| id.trust_domain());
        let outcome = match (self.role, domain) {
            ("leaf", _) => svid::check_leaf(der, Origin::Presented).map(drop),
            ("CA, signed by another", Some(domain)) => {
                svid::check_issuer(der, &domain, Origin::Presented).map(drop)
            }
            (_, Some(domain)) => svid::check_anchor(der, &domain, Origin::Presented).map(drop),
            // A root or a foreign CA without a trust domain: SPIFFE has no rule for it.
            (_, None) => Ok(()),
        };
        self.violation = outcome
            .err()
            .map(|violation| (violation.rule.to_string(), violation.detail));
    }

    pub(super) fn json(&self) -> Value {
        if let Some(error) = &self.parse_error {
            return json!({ "sha256": self.sha256, "error": error });
        }
        json!({
            "role": self.role,
            "spiffeIds": self.spiffe_ids,
            "otherNames": self.other_names,
            "subject": self.subject,
            "issuer": self.issuer,
            "serial": self.serial,
            "notBefore": self.valid.map(|[from, _]| date(from)),
            "notAfter": self.valid.map(|[_, until]| date(until)),
            "key": self.key,
            "usage": self.usage,
            "pathLen": self.path_len,
            "subjectKeyId": self.subject_key_id,
            "authorityKeyId": self.authority_key_id,
            "sha256": self.sha256,
            "violation": self.violation.as_ref().map(|(rule, detail)| json!({
                "rule": rule, "detail": detail,
            })),
        })
    }

    pub(super) fn text(&self, now: OffsetDateTime) -> String {
        if let Some(error) = &self.parse_error {
            return format!(
                "not an X.509 certificate: {error}\n  SHA-256     {}\n",
                self.sha256
            );
        }
        let mut text = format!("{}\n", self.role);
        let mut line = |name: &str, value: &str| {
            text.push_str(&format!("  {name:<12}{value}\n"));
        };
        for id in &self.spiffe_ids {
            line("SPIFFE ID", id);
        }
        if !self.other_names.is_empty() {
            line("other names", &self.other_names.join(", "));
        }
        line("subject", &self.subject);
        line("issuer", &self.issuer);
        line("serial", &self.serial);
        if let Some([from, until]) = self.valid {
            let standing = standing(from, until, now);
            line(
                "valid",
                &format!("{} to {} ({standing})", date(from), date(until)),
            );
        }
        line("key", &self.key);
        let path_len = self.path_len.map(|n| format!("pathLen {n}"));
        let usage: Vec<&str> = self
            .usage
            .iter()
            .map(String::as_str)
            .chain(path_len.as_deref())
            .collect();
        line("usage", &usage.join(", "));
        if let Some(id) = &self.subject_key_id {
            line("key id", id);
        }
        if let Some(id) = &self.authority_key_id {
            line("issuer key", id);
        }
        line("SHA-256", &self.sha256);
        if let Some((rule, detail)) = &self.violation {
            line("breaks", &format!("{rule}: {detail}"));
        }
        text
    }
}

fn key(certificate: &X509Certificate<'_>) -> String {
    let key = certificate.public_key();
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => format!("RSA {} bits", rsa.key_size()),
        Ok(PublicKey::EC(point)) => match point.key_size() {
            256 => "ECDSA P-256".to_owned(),
            384 => "ECDSA P-384".to_owned(),
            bits => format!("ECDSA, {bits} bits"),
        },
        _ if key.algorithm.algorithm.to_id_string() == "1.3.101.112" => "Ed25519".to_owned(),
        _ => format!("algorithm {}", key.algorithm.algorithm),
    }
}

fn standing(from: OffsetDateTime, until: OffsetDateTime, now: OffsetDateTime) -> String {
    if now < from {
        format!("begins in {}", span(from - now))
    } else if now > until {
        format!("expired {} ago", span(now - until))
    } else {
        format!("ends in {}", span(until - now))
    }
}

/// The two largest units.
fn span(length: time::Duration) -> String {
    let (days, hours) = (length.whole_days(), length.whole_hours() % 24);
    let (minutes, seconds) = (length.whole_minutes() % 60, length.whole_seconds() % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {seconds}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_told_in_its_two_largest_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m 1s"),
            (3_600, "1h 0m"),
            (86_399, "23h 59m"),
            (90_000, "1d 1h"),
        ] {
            assert_eq!(span(time::Duration::seconds(seconds)), text);
        }
    }
}
