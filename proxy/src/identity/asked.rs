//! Which agent is asked.

use std::fmt;

use zeugma_core::identity::TrustDomain;
use zeugma_xds::{GatewaySettings, SvidSource, WorkloadAddress};

/// An agent, and what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AskedAgent {
    /// A SPIFFE Workload API.
    WorkloadApi(WorkloadAddress),
    /// A secret discovery service.
    Sds(AskedSecrets),
}

/// The secrets that make an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AskedSecrets {
    pub(super) address: WorkloadAddress,
    /// The name of the one with the certificate.
    pub(super) svid: String,
    /// The names of those that say whom to trust.
    pub(super) bundles: Vec<String>,
    /// The trust domain that the certificate must be of.
    pub(super) own: TrustDomain,
    /// Who asks: the gateway's name, and its cluster.
    pub(super) node: String,
    pub(super) cluster: String,
}

/// Which protocol an agent speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AgentKind {
    WorkloadApi,
    Sds,
}

impl AgentKind {
    /// For people.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::WorkloadApi => "Workload API",
            Self::Sds => "SDS server",
        }
    }

    /// What helps where nobody is reached.
    pub(super) const fn unreachable(self) -> &'static str {
        match self {
            Self::WorkloadApi => {
                "start the agent, or mend `svid.workloadApi`; the gateway's user must be able to reach its socket"
            }
            Self::Sds => {
                "start the agent, or mend `svid.sds`; the gateway's user must be able to reach its socket"
            }
        }
    }
}

impl AskedAgent {
    /// That of a configuration, where its identity comes from one.
    pub(crate) fn of(settings: &GatewaySettings) -> Option<Self> {
        match &settings.svid {
            SvidSource::Files(_) => None,
            SvidSource::WorkloadApi(api) => Some(Self::WorkloadApi(api.address.clone())),
            SvidSource::Sds(sds) => Some(Self::Sds(AskedSecrets {
                address: sds.address.clone(),
                svid: sds.svid.clone(),
                bundles: sds.bundles.clone(),
                own: settings.trust_domain.clone(),
                node: settings.name.clone(),
                cluster: settings.cluster.to_string(),
            })),
        }
    }

    pub(super) const fn kind(&self) -> AgentKind {
        match self {
            Self::WorkloadApi(_) => AgentKind::WorkloadApi,
            Self::Sds(_) => AgentKind::Sds,
        }
    }

    pub(super) const fn address(&self) -> &WorkloadAddress {
        match self {
            Self::WorkloadApi(address) => address,
            Self::Sds(sds) => &sds.address,
        }
    }
}

impl AskedSecrets {
    /// All that are asked for, the certificate's first.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.svid)
            .chain(&self.bundles)
            .map(String::as_str)
    }
}

impl fmt::Display for AskedAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.kind().name(), self.address())
    }
}
