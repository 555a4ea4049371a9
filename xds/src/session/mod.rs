//! Streams of xDS as state machines: what came, and when, goes in; what is to be done comes out. No
//! socket is opened here.

pub(crate) mod client;
pub(crate) mod server;

use prost::Name as _;

use crate::pb::{cluster, endpoint, listener, route};

/// A kind of resource, in the order in which a server makes before it breaks (P30).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `Cluster`, by CDS.
    Cluster,
    /// `ClusterLoadAssignment`, by EDS.
    Endpoints,
    /// `Listener`, by LDS.
    Listener,
    /// `RouteConfiguration`, by RDS.
    Routes,
}

impl Kind {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Cluster, Self::Endpoints, Self::Listener, Self::Routes];

    /// What it is called on the wire.
    #[must_use]
    pub fn type_url(self) -> String {
        match self {
            Self::Cluster => cluster::Cluster::type_url(),
            Self::Endpoints => endpoint::ClusterLoadAssignment::type_url(),
            Self::Listener => listener::Listener::type_url(),
            Self::Routes => route::RouteConfiguration::type_url(),
        }
    }

    /// The kind that is called so.
    pub(crate) fn of_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// Whether all of them are asked for at once, and a full answer is the whole set (P13). Of the others
    /// those that these refer to are asked for, by name.
    pub(crate) const fn is_wildcard(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }

    /// The word for one of them.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Endpoints => "endpoints of cluster",
            Self::Listener => "listener",
            Self::Routes => "route configuration",
        }
    }
}
