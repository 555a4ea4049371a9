//! What a secret says. A field that would change whom is trusted and is not supported refuses it.

use std::fmt;

use crate::client::counted;
use crate::pb::{self, Any, core, tls};

/// The most fields of a secret, and of each of them.
const FIELDS_MAX: usize = 4096;

/// What a service gave by one name.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// A certificate and its key.
    Svid {
        /// PEM: the leaf first.
        chain: Vec<u8>,
        /// PEM.
        key: Vec<u8>,
    },
    /// Whom to trust.
    Trust {
        /// Each trust domain by itself.
        bundles: Vec<TrustBundle>,
        /// PEM; empty where there are none.
        crls: Vec<u8>,
    },
}

/// The anchors of one trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle {
    /// Whose; `None` where it is not said.
    pub domain: Option<String>,
    /// PEM.
    pub anchors: Vec<u8>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Svid { .. } => f.debug_struct("Svid").finish_non_exhaustive(),
            Self::Trust { bundles, .. } => f
                .debug_struct("Trust")
                .field("bundles", bundles)
                .finish_non_exhaustive(),
        }
    }
}

/// Reads the secret of this name.
///
/// # Errors
/// Why it cannot be used, as its service is told.
pub(super) fn read(any: &Any, name: &str) -> Result<Secret, String> {
    if !counted::is_within_each(&any.value, FIELDS_MAX) {
        return Err(format!("a message of it has over {FIELDS_MAX} fields"));
    }
    let secret: tls::Secret = pb::unpack(any)?;
    if secret.name != name {
        return Err(format!("it is called `{}`", secret.name));
    }
    match secret.r#type {
        Some(tls::secret::Type::TlsCertificate(certificate)) => svid(certificate),
        Some(tls::secret::Type::ValidationContext(context)) => trust(context, name),
        Some(tls::secret::Type::SessionTicketKeys(_)) => Err(no("session_ticket_keys")),
        Some(tls::secret::Type::GenericSecret(_)) => Err(no("generic_secret")),
        None => Err("it is empty".to_owned()),
    }
}

fn no(field: &str) -> String {
    format!("`{field}` is not supported")
}

/// The first of these fields that is written.
fn none_of<const N: usize>(fields: [(&str, bool); N]) -> Result<(), String> {
    let written = fields.iter().find(|(_, is_written)| *is_written);
    written.map_or(Ok(()), |(field, _)| Err(no(field)))
}

fn svid(of: tls::TlsCertificate) -> Result<Secret, String> {
    let tls::TlsCertificate {
        certificate_chain,
        private_key,
        pkcs12,
        password,
        private_key_provider,
        tls_params,
        // They say how files are watched, and what is sent beside the certificate to those who ask.
        watched_directory: _,
        ocsp_staple: _,
        signed_certificate_timestamp: _,
    } = of;
    none_of([
        ("tls_certificate.pkcs12", pkcs12.is_some()),
        ("tls_certificate.password", password.is_some()),
        (
            "tls_certificate.private_key_provider",
            private_key_provider.is_some(),
        ),
        ("tls_certificate.tls_params", tls_params.is_some()),
    ])?;
    Ok(Secret::Svid {
        chain: inline(certificate_chain, "tls_certificate.certificate_chain")?,
        key: inline(private_key, "tls_certificate.private_key")?,
    })
}

fn trust(of: tls::CertificateValidationContext, name: &str) -> Result<Secret, String> {
    #[expect(deprecated, reason = "a service may still write it")]
    let tls::CertificateValidationContext {
        trusted_ca,
        crl,
        custom_validator_config,
        ca_certificate_provider_instance,
        system_root_certs,
        verify_certificate_spki,
        verify_certificate_hash,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        require_signed_certificate_timestamp,
        only_verify_leaf_cert_crl,
        max_verify_depth,
        // They let in more than our rules do, and these hold all the same; or change what is sent.
        allow_expired_certificate: _,
        trust_chain_verification: _,
        watched_directory: _,
        suppress_client_ca_list: _,
    } = of;
    let at = |field: &str| format!("validation_context.{field}");
    let narrower = [
        (
            "ca_certificate_provider_instance",
            ca_certificate_provider_instance.is_some(),
        ),
        ("system_root_certs", system_root_certs.is_some()),
        (
            "verify_certificate_spki",
            !verify_certificate_spki.is_empty(),
        ),
        (
            "verify_certificate_hash",
            !verify_certificate_hash.is_empty(),
        ),
        (
            "match_typed_subject_alt_names",
            !match_typed_subject_alt_names.is_empty(),
        ),
        (
            "match_subject_alt_names",
            !match_subject_alt_names.is_empty(),
        ),
        (
            "require_signed_certificate_timestamp",
            require_signed_certificate_timestamp.is_some_and(|is| is.value),
        ),
        ("only_verify_leaf_cert_crl", only_verify_leaf_cert_crl),
        ("max_verify_depth", max_verify_depth.is_some()),
    ];
    if let Some((field, _)) = narrower.iter().find(|(_, is_written)| *is_written) {
        return Err(no(&at(field)));
    }
    let crls = match crl {
        Some(crl) => inline(Some(crl), &at("crl"))?,
        None => Vec::new(),
    };
    let bundles = match (custom_validator_config, trusted_ca) {
        (Some(validator), _) => of_validator(validator)?,
        (None, anchors) => vec![TrustBundle {
            domain: name.strip_prefix("spiffe://").map(str::to_owned),
            anchors: inline(anchors, &at("trusted_ca"))?,
        }],
    };
    Ok(Secret::Trust { bundles, crls })
}

/// Envoy's validator for SPIFFE, which has the anchors of each trust domain.
fn of_validator(config: core::TypedExtensionConfig) -> Result<Vec<TrustBundle>, String> {
    const AT: &str = "validation_context.custom_validator_config";
    let any = (config.typed_config).ok_or_else(|| format!("`{AT}.typed_config` is missing"))?;
    if !counted::is_within_each(&any.value, FIELDS_MAX) {
        return Err(format!("`{AT}` has over {FIELDS_MAX} fields"));
    }
    let validator: tls::SpiffeCertValidatorConfig =
        pb::unpack(&any).map_err(|error| format!("`{AT}`: {error}"))?;
    let tls::SpiffeCertValidatorConfig {
        trust_domains,
        trust_bundles,
    } = validator;
    none_of([(
        "validation_context.custom_validator_config.trust_bundles",
        trust_bundles.is_some(),
    )])?;
    let bundle = |one: tls::spiffe_cert_validator_config::TrustDomain| {
        let tls::spiffe_cert_validator_config::TrustDomain {
            name,
            trust_bundle,
            workload_trust_domain,
        } = one;
        let field = format!("{AT}.trust_domains[{name}]");
        if !workload_trust_domain.is_empty() {
            return Err(no(&format!("{field}.workload_trust_domain")));
        }
        Ok(TrustBundle {
            anchors: inline(trust_bundle, &format!("{field}.trust_bundle"))?,
            domain: Some(name),
        })
    };
    trust_domains.into_iter().map(bundle).collect()
}

/// What stands in the secret itself: of this machine's files and variables its service has nothing to say.
fn inline(source: Option<core::DataSource>, field: &str) -> Result<Vec<u8>, String> {
    use core::data_source::Specifier;

    match source.and_then(|source| source.specifier) {
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes),
        Some(Specifier::InlineString(text)) => Ok(text.into_bytes()),
        Some(Specifier::Filename(_)) => Err(no(&format!("{field}.filename"))),
        Some(Specifier::EnvironmentVariable(_)) => {
            Err(no(&format!("{field}.environment_variable")))
        }
        None => Err(format!("`{field}` is missing")),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn text(text: &str) -> Option<core::DataSource> {
        Some(core::DataSource {
            specifier: Some(core::data_source::Specifier::InlineString(text.to_owned())),
            ..Default::default()
        })
    }

    fn secret(name: &str, of: tls::secret::Type) -> Any {
        pb::pack(&tls::Secret {
            name: name.to_owned(),
            r#type: Some(of),
        })
    }

    fn certificate() -> tls::TlsCertificate {
        tls::TlsCertificate {
            certificate_chain: text("chain"),
            private_key: text("key"),
            ..Default::default()
        }
    }

    fn refused_certificate(change: impl FnOnce(&mut tls::TlsCertificate)) -> String {
        let mut of = certificate();
        change(&mut of);
        read(
            &secret("default", tls::secret::Type::TlsCertificate(of)),
            "default",
        )
        .unwrap_err()
    }

    fn context(
        change: impl FnOnce(&mut tls::CertificateValidationContext),
    ) -> Result<Secret, String> {
        let mut of = tls::CertificateValidationContext::default();
        change(&mut of);
        let name = "spiffe://west.example";
        read(
            &secret(name, tls::secret::Type::ValidationContext(of)),
            name,
        )
    }

    fn validator(of: tls::SpiffeCertValidatorConfig) -> Option<core::TypedExtensionConfig> {
        Some(core::TypedExtensionConfig {
            name: "envoy.tls.cert_validator.spiffe".to_owned(),
            typed_config: Some(pb::pack(&of)),
        })
    }

    fn bundle(domain: Option<&str>, anchors: &str) -> TrustBundle {
        TrustBundle {
            domain: domain.map(str::to_owned),
            anchors: anchors.as_bytes().to_vec(),
        }
    }

    #[test]
    fn a_certificate_is_its_chain_and_key_and_nothing_else() {
        let of = tls::secret::Type::TlsCertificate(certificate());
        let expected = Secret::Svid {
            chain: b"chain".to_vec(),
            key: b"key".to_vec(),
        };
        assert_eq!(
            read(&secret("default", of.clone()), "default"),
            Ok(expected)
        );
        let other = read(&secret("other", of), "default").unwrap_err();
        assert_eq!(other, "it is called `other`");
        let missing = refused_certificate(|of| of.private_key = None);
        assert_eq!(missing, "`tls_certificate.private_key` is missing");
        let path = core::data_source::Specifier::Filename("/etc/shadow".to_owned());
        let file = refused_certificate(|of| {
            of.private_key.as_mut().unwrap().specifier = Some(path);
        });
        assert_eq!(
            file,
            "`tls_certificate.private_key.filename` is not supported"
        );
        let password = refused_certificate(|of| of.password = text("secret"));
        assert_eq!(password, "`tls_certificate.password` is not supported");
    }

    #[test]
    fn anchors_are_of_the_domain_that_the_name_or_the_validator_says() {
        let of_name = context(|of| of.trusted_ca = text("anchors"));
        let expected = |bundles: Vec<TrustBundle>| {
            let crls = Vec::new();
            Ok(Secret::Trust { bundles, crls })
        };
        let west = Some("west.example");
        assert_eq!(of_name, expected(vec![bundle(west, "anchors")]));
        let of = tls::CertificateValidationContext {
            trusted_ca: text("anchors"),
            ..Default::default()
        };
        let of = tls::secret::Type::ValidationContext(of);
        let own = read(&secret("ROOTCA", of), "ROOTCA");
        assert_eq!(own, expected(vec![bundle(None, "anchors")]));
        let domain = |name: &str| tls::spiffe_cert_validator_config::TrustDomain {
            name: name.to_owned(),
            trust_bundle: text(name),
            ..Default::default()
        };
        let all = context(|of| {
            of.custom_validator_config = validator(tls::SpiffeCertValidatorConfig {
                trust_domains: vec![domain("a"), domain("b")],
                ..Default::default()
            });
        });
        let both = vec![bundle(Some("a"), "a"), bundle(Some("b"), "b")];
        assert_eq!(all, expected(both));
    }

    /// Half of what a context says would let in whom it does not.
    #[test]
    fn a_context_that_trusts_fewer_than_its_anchors_do_is_refused_by_its_field() {
        let with = |change: fn(&mut tls::CertificateValidationContext)| {
            context(|of| {
                of.trusted_ca = text("anchors");
                change(of);
            })
            .unwrap_err()
        };
        for (said, field) in [
            (
                with(|of| {
                    of.match_typed_subject_alt_names
                        .push(tls::SubjectAltNameMatcher::default());
                }),
                "match_typed_subject_alt_names",
            ),
            (
                with(|of| of.verify_certificate_hash.push("00".to_owned())),
                "verify_certificate_hash",
            ),
            (
                with(|of| of.only_verify_leaf_cert_crl = true),
                "only_verify_leaf_cert_crl",
            ),
            (
                with(|of| {
                    of.custom_validator_config = validator(tls::SpiffeCertValidatorConfig {
                        trust_bundles: text("{}"),
                        ..Default::default()
                    });
                }),
                "custom_validator_config.trust_bundles",
            ),
        ] {
            assert_eq!(
                said,
                format!("`validation_context.{field}` is not supported")
            );
        }
        let nothing = context(|_| {}).unwrap_err();
        assert_eq!(nothing, "`validation_context.trusted_ca` is missing");
    }

    /// A field that is empty takes two bytes on the wire and a hundred in memory.
    #[test]
    fn what_is_made_of_many_fields_is_refused_before_it_is_decoded() {
        let many = tls::CertificateValidationContext {
            match_typed_subject_alt_names: vec![Default::default(); FIELDS_MAX + 1],
            ..Default::default()
        };
        let of = tls::secret::Type::ValidationContext(many);
        let said = read(&secret("a", of), "a").unwrap_err();
        assert_eq!(
            said,
            format!("a message of it has over {FIELDS_MAX} fields")
        );
        let said = context(|of| {
            of.custom_validator_config = validator(tls::SpiffeCertValidatorConfig {
                trust_domains: vec![Default::default(); FIELDS_MAX + 1],
                ..Default::default()
            });
        });
        assert!(said.unwrap_err().contains("has over 4096 fields"));
        // Text is no message: it is never too many fields of one.
        let long = "-----BEGIN CERTIFICATE-----\n".repeat(20_000);
        let mut of = certificate();
        of.certificate_chain = text(&long);
        let of = tls::secret::Type::TlsCertificate(of);
        assert!(read(&secret("a", of), "a").is_ok());
    }

    #[test]
    fn rubbish_and_other_secrets_are_refused_and_a_key_is_in_no_message_for_people() {
        let ticket = tls::secret::Type::SessionTicketKeys(tls::TlsSessionTicketKeys::default());
        let said = read(&secret("a", ticket), "a").unwrap_err();
        assert_eq!(said, "`session_ticket_keys` is not supported");
        let mut any = secret("a", tls::secret::Type::TlsCertificate(certificate()));
        any.value.extend([0xff, 0xff]);
        assert!(read(&any, "a").unwrap_err().contains("decode"), "{any:?}");
        any.type_url = "type.googleapis.com/x.Y".to_owned();
        assert!(read(&any, "a").unwrap_err().contains("x.Y"));
        let of = tls::secret::Type::TlsCertificate(certificate());
        let told = format!("{:?}", read(&secret("a", of), "a").unwrap());
        assert!(!told.contains("key") && !told.contains("107"), "{told}");
        assert!(tls::Secret::decode(&[0xff][..]).is_err());
    }
}
