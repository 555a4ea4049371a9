//! TLS contexts: whom a filter chain lets in by its certificate, and who must answer.
//!
//! Certificates, keys and anchors are those that the gateway holds, from a source of its own: a context names
//! them, and one that brings others is refused. A peer's chain is always verified as an SVID, by the
//! bundle of its own trust domain alone.

use zeugma_core::identity::{IdPattern, SpiffeId, TrustDomain};

use super::at::At;
use super::ids::{id_pattern, meet};
use crate::pb::{self, tls};
use tls::common_tls_context::ValidationContextType as Validation;

/// The name by which control planes ask for a proxy's own SVID.
const SVID: &str = "default";
/// The names by which they ask for the bundle of its own trust domain.
const OWN: [&str; 2] = [SVID, "ROOTCA"];
/// All bundles that there are, as SPIRE names them.
const ALL: &str = "ALL";
const H2: &str = "h2";
const HTTP1: &str = "http/1.1";

/// What is inside the TLS of a filter chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inside {
    Bytes,
    Http,
}

/// Whom a context lets in.
pub(super) fn downstream(
    context: &tls::DownstreamTlsContext,
    inside: Inside,
    own: &TrustDomain,
    at: &At<'_>,
) -> Result<Vec<IdPattern>, String> {
    let required = context.require_client_certificate;
    at.field("require_client_certificate").must(
        required.is_some_and(|required| required.value),
        "it must be true: who shows no certificate is let in nowhere",
    )?;
    let at = at.field("common_tls_context");
    let Some(common) = &context.common_tls_context else {
        return at.refuse("it is missing");
    };
    let offered: Vec<&str> = common.alpn_protocols.iter().map(String::as_str).collect();
    at.field("alpn_protocols").must(
        match inside {
            Inside::Http => offered.is_empty() || offered == [H2, HTTP1],
            Inside::Bytes => offered.is_empty(),
        },
        format!("{offered:?} is not offered: `{H2}` and `{HTTP1}` are, where HTTP is inside, and nothing else"),
    )?;
    admitted(common, own, &at)
}

/// The SNI that is sent, and who must answer.
pub(super) fn upstream(
    context: &tls::UpstreamTlsContext,
    own: &TrustDomain,
    at: &At<'_>,
) -> Result<(String, Vec<IdPattern>), String> {
    let common_at = at.field("common_tls_context");
    let Some(common) = &context.common_tls_context else {
        return common_at.refuse("it is missing");
    };
    for (nth, protocol) in common.alpn_protocols.iter().enumerate() {
        // They are what the version of HTTP makes them.
        let is_spoken = [H2, HTTP1].contains(&protocol.as_str());
        (common_at.nth("alpn_protocols", nth))
            .must(is_spoken, format!("`{protocol}` is not offered"))?;
    }
    let expected = admitted(common, own, &common_at)?;
    Ok((context.sni.clone(), expected))
}

/// The identities that a context takes.
fn admitted(
    common: &tls::CommonTlsContext,
    own: &TrustDomain,
    at: &At<'_>,
) -> Result<Vec<IdPattern>, String> {
    if let Some(params) = &common.tls_params {
        use tls::tls_parameters::TlsProtocol;
        let most = TlsProtocol::try_from(params.tls_maximum_protocol_version);
        (at.field("tls_params").field("tls_maximum_protocol_version")).must(
            matches!(most, Ok(TlsProtocol::TlsAuto | TlsProtocol::TlSv13)),
            "nothing older than TLS 1.3 is spoken",
        )?;
    }
    (at.field("tls_certificates")).must(
        common.tls_certificates.is_empty(),
        "the gateway shows its own SVID",
    )?;
    let [certificate] = common.tls_certificate_sds_secret_configs.as_slice() else {
        return (at.field("tls_certificate_sds_secret_configs"))
            .refuse("it must name one secret, the gateway's own SVID");
    };
    let certificate_at = at.nth("tls_certificate_sds_secret_configs", 0);
    // A SPIFFE ID may be another's: a peer would see another caller than was meant.
    certificate_at.field("name").must(
        certificate.name == SVID,
        format!(
            "the gateway holds no secret `{}`, but its own SVID, `{SVID}`",
            certificate.name
        ),
    )?;
    match &common.validation_context_type {
        Some(Validation::ValidationContext(context)) => {
            let at = at.field("validation_context");
            let trust = Trust::default();
            trust.of_context(context, &at)?.into_ids(own, &at)
        }
        Some(Validation::ValidationContextSdsSecretConfig(secret)) => {
            let at = at.field("validation_context_sds_secret_config");
            let trust = Trust::of_secret(secret, own, &at)?;
            trust.into_ids(own, &at)
        }
        Some(Validation::CombinedValidationContext(combined)) => {
            let at = at.field("combined_validation_context");
            let secret_at = at.field("validation_context_sds_secret_config");
            let trust = match &combined.validation_context_sds_secret_config {
                Some(secret) => Trust::of_secret(secret, own, &secret_at)?,
                None => return secret_at.refuse("it is missing"),
            };
            let at = at.field("default_validation_context");
            match &combined.default_validation_context {
                Some(context) => trust.of_context(context, &at)?.into_ids(own, &at),
                None => trust.into_ids(own, &at),
            }
        }
        Some(_) => at.refuse("a certificate provider is not supported"),
        None => at.refuse("it does not say who is let in by its certificate"),
    }
}

/// Whose certificates are verified, and who of them is let in.
#[derive(Debug, Default)]
struct Trust {
    /// `None`: whatever the gateway holds bundles of.
    domains: Option<Vec<TrustDomain>>,
    /// `None`: anybody of those.
    ids: Option<Vec<IdPattern>>,
}

impl Trust {
    fn of_secret(
        secret: &tls::SdsSecretConfig,
        own: &TrustDomain,
        at: &At<'_>,
    ) -> Result<Self, String> {
        let name = secret.name.as_str();
        let domains = match SpiffeId::parse(name) {
            _ if name == ALL => None,
            _ if OWN.contains(&name) => Some(vec![own.clone()]),
            Ok(id) if id.path().is_empty() => Some(vec![id.trust_domain()]),
            Ok(_) | Err(_) => {
                return at.field("name").refuse(format!(
                    "the gateway holds no bundle `{name}`; it is asked for one by `ROOTCA`, its own, or \
                     `spiffe://<trust domain>`"
                ));
            }
        };
        Ok(Self { domains, ids: None })
    }

    /// What a context narrows it to.
    fn of_context(
        self,
        context: &tls::CertificateValidationContext,
        at: &At<'_>,
    ) -> Result<Self, String> {
        let Self { mut domains, ids } = self;
        let anchors = "the anchors are those of the bundles that the gateway holds";
        at.field("trusted_ca")
            .must(context.trusted_ca.is_none(), anchors)?;
        if let Some(validator) = &context.custom_validator_config {
            let at = at.field("custom_validator_config");
            let at = at.field("typed_config");
            let Some(any) = &validator.typed_config else {
                return at.refuse("it is missing");
            };
            let config: tls::SpiffeCertValidatorConfig =
                pb::unpack(any).map_err(|why| at.why(why))?;
            let mut named = Vec::new();
            for (nth, domain) in config.trust_domains.iter().enumerate() {
                let at = at.nth("trust_domains", nth);
                let name = TrustDomain::parse(&domain.name);
                named.push(name.map_err(|error| at.field("name").why(error))?);
            }
            if let Some(before) = domains {
                named.retain(|domain| before.contains(domain));
            }
            at.field("trust_domains")
                .must(!named.is_empty(), "none of them is one that is verified")?;
            domains = Some(named);
        }
        let matchers = &context.match_typed_subject_alt_names;
        if matchers.is_empty() {
            return Ok(Self { domains, ids });
        }
        let mut matched = Vec::new();
        for (nth, san) in matchers.iter().enumerate() {
            let at = at.nth("match_typed_subject_alt_names", nth);
            at.field("san_type").must(
                san.san_type == i32::from(tls::subject_alt_name_matcher::SanType::Uri),
                "an SVID is known by its URI alone",
            )?;
            matched.push(id_pattern(san.matcher.as_ref(), &at.field("matcher"))?);
        }
        Ok(Self {
            domains,
            ids: Some(matched),
        })
    }

    /// Who is let in.
    fn into_ids(self, own: &TrustDomain, at: &At<'_>) -> Result<Vec<IdPattern>, String> {
        let of_domains = |domains: &[TrustDomain]| -> Vec<IdPattern> {
            domains
                .iter()
                .map(|one| IdPattern::Below(one.id()))
                .collect()
        };
        let ids = match (self.domains, self.ids) {
            (None, None) => {
                return at.refuse(format!(
                    "it lets in whoever has a certificate of any bundle; it must name identities by \
                     `match_typed_subject_alt_names`, or trust domains, such as `{own}`"
                ));
            }
            (Some(domains), None) => of_domains(&domains),
            (None, Some(ids)) => ids,
            (Some(domains), Some(ids)) => meet(&of_domains(&domains), &ids),
        };
        at.must(
            !ids.is_empty(),
            "nobody has an identity that is of its trust domains too",
        )?;
        Ok(ids)
    }
}
