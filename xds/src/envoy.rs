//! A gateway's resources as files that Envoy reads by itself: each a `DiscoveryResponse`, and beside
//! them the bootstrap that names them.

mod exported;
mod hedged;
mod secrets;
mod trust;
mod undenied;

use std::collections::HashMap;
use std::io;
use std::path::Path;

use prost::Message as _;
use serde_json::json;
use zeugma_core::snapshot::Node;

pub(crate) use self::exported::Exports;
pub(crate) use self::secrets::Secrets;
use self::trust::trust;
pub(crate) use self::undenied::undenied;
use crate::compile::Context;
use crate::error::{Code, Finding, Findings};
use crate::packed::{Resources, compile};
use crate::pb::{self, Any, DiscoveryResponse, cluster, core, hcm, listener, route, tls};
use crate::settings::{ForeignDomain, SvidFiles};

/// A file for Envoy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvoyFile {
    /// Its name in the folder.
    pub name: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// The bootstrap, which Envoy is started with; the last file to be written.
pub const BOOTSTRAP: &str = "envoy.json";
const LISTENERS: &str = "listeners.pb";
const CLUSTERS: &str = "clusters.pb";
/// What the secrets of [`common_tls`](crate::compile) are called.
const OWN: &str = "default";
/// See [`OWN`].
const TRUST: &str = "ROOTCA";

/// The files of what `context` compiles to, for the folder `folder`, an absolute path; `svid` is where
/// the gateway's identity is, and `domains` are further trust domains.
pub(crate) fn files(
    context: Context<'_>,
    (svid, domains): (&SvidFiles, &[ForeignDomain]),
    folder: &Path,
    findings: &mut Findings,
) -> Result<Vec<EnvoyFile>, Findings> {
    for warning in hedged::without(context) {
        findings.push(warning);
    }
    let Resources {
        clusters,
        routes,
        listeners,
    } = compile(context, findings);
    let numbered = routes.iter().enumerate();
    let folder = Folder {
        folder,
        // Envoy takes no file for routes or secrets that holds more than one.
        routes: numbered
            .map(|(nth, (name, _))| (name.clone(), format!("routes-{nth:05}.pb")))
            .collect(),
        exports: Exports::new(context),
        secrets: Secrets::in_files(source(folder, OWN_FILE), source(folder, TRUST_FILE)),
    };
    let mut files = vec![
        response(OWN_FILE, vec![pb::pack(&own(svid)?)]),
        response(
            TRUST_FILE,
            vec![pb::pack(&trust(context, svid, domains, findings)?)],
        ),
    ];
    let read = |error: String| Findings::from(Finding::error(Code::BadResource, error));
    for (name, config) in routes {
        let config = folder.hosts(&config).map_err(read)?;
        files.extend((folder.routes.get(&name)).map(|file| response(file, vec![config])));
    }
    let clusters: Result<_, _> = (clusters.into_iter())
        .map(|(_, any)| folder.cluster(&any))
        .collect();
    files.push(response(CLUSTERS, clusters.map_err(read)?));
    let listeners: Result<_, _> = (listeners.into_iter())
        .map(|(_, any)| folder.listener(&any))
        .collect();
    files.push(response(LISTENERS, listeners.map_err(read)?));
    files.push(EnvoyFile {
        name: BOOTSTRAP.to_owned(),
        bytes: format!("{:#}\n", folder.bootstrap(context.node)).into_bytes(),
    });
    Ok(files)
}

const OWN_FILE: &str = "secret-own.pb";
const TRUST_FILE: &str = "secret-trust.pb";

fn response(name: &str, resources: Vec<Any>) -> EnvoyFile {
    let type_url = resources.first().map(|any| any.type_url.clone());
    let response = DiscoveryResponse {
        version_info: "1".to_owned(),
        type_url: type_url.unwrap_or_default(),
        resources,
        ..Default::default()
    };
    EnvoyFile {
        name: name.to_owned(),
        bytes: response.encode_to_vec(),
    }
}

/// Where the files will be. What names another resource by a stream is made to name its file, and what
/// our gateway does by itself is said.
struct Folder<'a> {
    folder: &'a Path,
    /// The file of each route configuration.
    routes: HashMap<String, String>,
    /// Who may reach what.
    exports: Exports,
    /// Where the certificate and the bundles are.
    secrets: Secrets,
}

fn source(folder: &Path, file: &str) -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(
            core::config_source::ConfigSourceSpecifier::PathConfigSource(core::PathConfigSource {
                path: text(&folder.join(file)),
                ..Default::default()
            }),
        ),
        ..Default::default()
    }
}

impl Folder<'_> {
    fn hosts(&self, any: &Any) -> Result<Any, String> {
        let mut routes: route::RouteConfiguration = pb::unpack(any)?;
        self.exports.guard_hosts(&mut routes)?;
        Ok(pb::pack(&routes))
    }

    fn listener(&self, any: &Any) -> Result<Any, String> {
        let mut listener: listener::Listener = pb::unpack(any)?;
        for chain in &mut listener.filter_chains {
            self.exports.guard_chain(&listener.name, chain)?;
            self.secrets.chain(chain)?;
            for filter in &mut chain.filters {
                let Some(listener::filter::ConfigType::TypedConfig(any)) = &mut filter.config_type
                else {
                    continue;
                };
                let Ok(mut manager) = pb::unpack::<hcm::HttpConnectionManager>(any) else {
                    continue;
                };
                if let Some(hcm::http_connection_manager::RouteSpecifier::Rds(rds)) =
                    &mut manager.route_specifier
                {
                    let file = (self.routes.get(&rds.route_config_name))
                        .ok_or_else(|| format!("no routes `{}`", rds.route_config_name))?;
                    rds.config_source = Some(source(self.folder, file));
                }
                *any = pb::pack(&manager);
            }
        }
        Ok(pb::pack(&listener))
    }

    fn cluster(&self, any: &Any) -> Result<Any, String> {
        let mut cluster: cluster::Cluster = pb::unpack(any)?;
        self.secrets.cluster(&mut cluster)?;
        Ok(pb::pack(&cluster))
    }

    fn bootstrap(&self, node: &Node) -> serde_json::Value {
        let source = |file: &str| {
            json!({
                "resource_api_version": "V3",
                "path_config_source": { "path": text(&self.folder.join(file)) },
            })
        };
        json!({
            "node": {
                "id": &*node.name,
                "cluster": &*node.cluster,
                "locality": {
                    "region": &*node.locality.region,
                    "zone": &*node.locality.zone,
                    "sub_zone": &*node.locality.subzone,
                },
            },
            // Envoy says which port it got: `--admin-address-path`.
            "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } } },
            "dynamic_resources": {
                "lds_config": source(LISTENERS),
                "cds_config": source(CLUSTERS),
            },
        })
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn own(svid: &SvidFiles) -> Result<tls::Secret, Findings> {
    let certificate = tls::TlsCertificate {
        certificate_chain: Some(file(&svid.certificate)?),
        private_key: Some(file(&svid.key)?),
        ..Default::default()
    };
    Ok(tls::Secret {
        name: OWN.to_owned(),
        r#type: Some(tls::secret::Type::TlsCertificate(certificate)),
    })
}

fn file(path: &Path) -> Result<core::DataSource, Findings> {
    let path = std::path::absolute(path).map_err(|error| unreadable(path, &error))?;
    Ok(core::DataSource {
        specifier: Some(core::data_source::Specifier::Filename(text(&path))),
        ..Default::default()
    })
}

fn unreadable(path: &Path, error: &io::Error) -> Findings {
    Finding::error(
        Code::Unreadable,
        format!("{}: cannot be read: {error}", path.display()),
    )
    .into()
}
