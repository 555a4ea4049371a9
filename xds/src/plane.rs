//! The documents of a control plane: what serves of them, for every gateway that there is.

use std::path::PathBuf;

use zeugma_core::identity::SpiffeId;
use zeugma_core::locality::Locality;

use crate::catalog::{Catalog, Flavor, Store, catalog};
use crate::compile::Context;
use crate::envoy::undenied;
use crate::error::Findings;
use crate::model::{Document, MeshGateway, Model};
use crate::standing::{self, Asked, Refused, Standing, Whose};
use crate::state::Good;
use crate::{Sources, suggest};

/// What serves of a configuration, for any node of it.
#[derive(Debug)]
pub struct Plane {
    model: Model,
    warnings: Findings,
    refused: Refused,
    good: Good,
    files: Vec<PathBuf>,
}

/// What Envoy calls itself.
pub(crate) const ENVOY: &str = "envoy";

/// Who asks for a configuration, as it says itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Claim {
    pub id: String,
    pub cluster: String,
    pub locality: String,
    /// The program.
    pub agent: String,
    /// It is an Envoy that nobody gives secrets.
    pub is_bare: bool,
}

/// What is made for a node: whose gateway's configuration, as seen from where. Replicas that stand in
/// one place share it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct View {
    pub gateway: String,
    pub locality: String,
    pub flavor: Flavor,
}

impl Sources {
    /// Makes what a control plane serves of the documents that are right, and of the last good text of
    /// those that are not.
    ///
    /// # Errors
    /// Where there is no gateway, or not one route ever was right.
    pub fn plane(self, good: &Good) -> Result<Plane, Findings> {
        self.plane_of(good, None)
    }

    /// The same of documents that follow those of `before`, most of which are as they were.
    ///
    /// # Errors
    /// As [`plane`](Self::plane).
    pub fn plane_after(self, before: &Plane) -> Result<Plane, Findings> {
        self.plane_of(&before.good, Some(&before.model))
    }

    fn plane_of(mut self, good: &Good, before: Option<&Model>) -> Result<Plane, Findings> {
        let files = std::mem::take(&mut self.contents.watched);
        let asked = Asked {
            path: &self.path,
            whose: Whose::All,
            unbound: &[],
            before,
        };
        let standing = standing::stand(self.contents, good, asked)?;
        let Standing {
            mut model,
            warnings,
            refused,
            good,
        } = standing;
        let folder = if self.path.is_dir() {
            Some(self.path.as_path())
        } else {
            self.path.parent()
        };
        model.name_files_from(folder.unwrap_or(&self.path));
        model.served();
        Ok(Plane {
            model,
            warnings,
            refused,
            good,
            files,
        })
    }
}

impl Plane {
    /// The names of the gateways that there is something for.
    pub fn gateways(&self) -> impl Iterator<Item = &str> {
        self.model.gateways.iter().map(|one| one.name.as_str())
    }

    /// Findings that refuse nothing.
    #[must_use]
    pub const fn warnings(&self) -> &Findings {
        &self.warnings
    }

    /// The documents that are refused while this serves.
    #[must_use]
    pub const fn refused(&self) -> &Refused {
        &self.refused
    }

    /// The last good text of each document.
    #[must_use]
    pub const fn good(&self) -> &Good {
        &self.good
    }

    /// The files and folders to watch.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    fn gateway(&self, name: &str) -> Option<&Document<MeshGateway>> {
        self.model.gateways.iter().find(|one| one.name == name)
    }

    /// What a node is to be told: by its id, which is the name of a MeshGateway, alone or before a `/`;
    /// else by its cluster, where one gateway alone is of that. Where it stands it may say itself.
    ///
    /// # Errors
    /// Why there is nothing for it.
    pub(crate) fn view(&self, claim: &Claim) -> Result<View, String> {
        let name = claim.id.split('/').next().unwrap_or_default();
        let mut of_cluster = (self.model.gateways.iter())
            .filter(|one| !claim.cluster.is_empty() && one.spec.cluster.0.0 == claim.cluster);
        let gateway = match (self.gateway(name), of_cluster.next(), of_cluster.next()) {
            (Some(gateway), _, _) | (None, Some(gateway), None) => gateway,
            (None, Some(_), Some(_)) => {
                return Err(format!(
                    "several MeshGateways are of cluster `{}`, and none is called `{name}`",
                    claim.cluster
                ));
            }
            (None, None, _) => {
                let help = suggest(name, self.gateways()).unwrap_or_default();
                let cluster = &claim.cluster;
                return Err(format!(
                    "no MeshGateway is called `{name}`, or is of cluster `{cluster}`; {help}"
                ));
            }
        };
        let locality = match (claim.locality.as_str(), &gateway.spec.locality) {
            ("", Some(written)) => written.0.clone(),
            ("", None) => {
                return Err(format!(
                    "neither the node nor MeshGateway `{}` says a locality",
                    gateway.name
                ));
            }
            (text, _) => Locality::parse(text).map_err(|error| format!("`{text}`: {error}"))?,
        };
        if claim.agent == ENVOY {
            let node = gateway.node(locality.clone());
            let context = Context {
                model: &self.model,
                gateway,
                node: &node,
            };
            if let Some(finding) = undenied(context).iter().next() {
                return Err(format!("it is an Envoy: {}", finding.message));
            }
        }
        Ok(View {
            gateway: gateway.name.clone(),
            locality: locality.to_string(),
            // "gRPC C-core", "gRPC Go", "gRPC Java".
            flavor: if claim.agent.starts_with("gRPC") {
                Flavor::Grpc
            } else if claim.is_bare {
                Flavor::Bare
            } else if claim.agent == ENVOY {
                Flavor::Envoy
            } else {
                Flavor::Proxy
            },
        })
    }

    /// Whether this is one of a gateway's own identities: what the MeshPeer of its cluster says to all
    /// others.
    pub(crate) fn is_gateway(&self, gateway: &str, id: &SpiffeId) -> bool {
        let Some(gateway) = self.gateway(gateway) else {
            return false;
        };
        let cluster = &gateway.spec.cluster.0.0;
        let mut peers = self.model.peers.iter();
        peers.any(|peer| {
            peer.spec.cluster.0.0 == *cluster
                && peer.spec.spiffe_ids.iter().any(|one| one.0.matches(id))
        })
    }

    /// What a node is told; `None` where the gateway is no more.
    pub(crate) fn catalog(
        &self,
        view: &View,
        store: &mut Store,
        before: Option<&Catalog>,
    ) -> Option<Catalog> {
        let gateway = self.gateway(&view.gateway)?;
        let node = gateway.node(Locality::parse(&view.locality).ok()?);
        let context = Context {
            model: &self.model,
            gateway,
            node: &node,
        };
        let mut findings = Findings::new();
        let mut memo = store.recall(view);
        // What is of no use here is of use elsewhere, or `config check` says so.
        let made = catalog(
            (context, view.flavor),
            (store, &mut memo),
            before,
            &mut findings,
        );
        store.remember(view.clone(), memo);
        Some(made)
    }
}

#[cfg(test)]
mod tests;
