//! What fails, and what is hoped for then.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What happens to a service under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Case {
    /// The only local endpoint answers 503 from now on; there is a remote one.
    Failing,
    /// One of two local endpoints is killed; there is a remote one.
    KilledEndpoint,
    /// The gateway of the preferred cluster is killed; there is another cluster.
    KilledGateway,
    /// The host of one of two local endpoints falls silent; there is a remote one.
    CutEndpoint,
    /// The host of the preferred cluster's gateway falls silent; there is another cluster.
    CutGateway,
}

/// Where requests may go when the first choice fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Local endpoints, then a remote gateway.
    Local { endpoints: usize },
    /// No local endpoint: a preferred remote gateway, then another.
    Remote,
}

impl Case {
    pub(crate) const ALL: [Self; 5] = [
        Self::Failing,
        Self::KilledEndpoint,
        Self::KilledGateway,
        Self::CutEndpoint,
        Self::CutGateway,
    ];

    /// As typed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::KilledEndpoint => "killed-endpoint",
            Self::KilledGateway => "killed-gateway",
            Self::CutEndpoint => "cut-endpoint",
            Self::CutGateway => "cut-gateway",
        }
    }

    /// For people.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Failing => "the one local endpoint begins to answer 503, a remote one is good",
            Self::KilledEndpoint => "`kill -9` of one of two local endpoints",
            Self::KilledGateway => "`kill -9` of the preferred cluster's gateway",
            Self::CutEndpoint => "the link to one of two local endpoints is cut, without a RST",
            Self::CutGateway => "the link to the preferred cluster's gateway is cut, without a RST",
        }
    }

    pub(crate) fn layout(self) -> Layout {
        match self {
            Self::Failing => Layout::Local { endpoints: 1 },
            Self::KilledEndpoint | Self::CutEndpoint => Layout::Local { endpoints: 2 },
            Self::KilledGateway | Self::CutGateway => Layout::Remote,
        }
    }

    /// Whether it needs a link to cut.
    pub(crate) fn is_cut(self) -> bool {
        matches!(self, Self::CutEndpoint | Self::CutGateway)
    }

    /// How long requests flow after the fault.
    pub(crate) fn after(self) -> Duration {
        Duration::from_secs(if self.is_cut() { 8 } else { 4 })
    }

    /// The outage that is allowed, if any is.
    pub(crate) fn outage_max(self) -> Option<Duration> {
        match self {
            Self::Failing => None,
            Self::KilledEndpoint | Self::KilledGateway => Some(Duration::from_secs(1)),
            Self::CutEndpoint | Self::CutGateway => Some(Duration::from_secs(5)),
        }
    }
}
