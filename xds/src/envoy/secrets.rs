//! Where an Envoy has its certificate and its trust bundles from, which what is compiled for our gateway
//! leaves open.

use std::time::Duration;

use crate::compile::ads;
use crate::pb::{self, cluster, core, listener, tls};

/// The cluster of an Envoy's bootstrap that leads to its secret discovery service: an agent beside it, for
/// a key crosses no network.
pub(crate) const CLUSTER: &str = "sds";

/// The sources of both.
#[derive(Debug)]
pub(crate) struct Secrets {
    own: core::ConfigSource,
    trust: core::ConfigSource,
}

impl Secrets {
    /// From files.
    pub(super) const fn in_files(own: core::ConfigSource, trust: core::ConfigSource) -> Self {
        Self { own, trust }
    }

    /// From the service that [`CLUSTER`] leads to.
    pub(crate) fn by_cluster() -> Self {
        use core::api_config_source::ApiType;
        use core::grpc_service::{EnvoyGrpc, TargetSpecifier};

        let service = core::GrpcService {
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                cluster_name: CLUSTER.to_owned(),
                ..Default::default()
            })),
            ..Default::default()
        };
        let source = core::ConfigSource {
            resource_api_version: core::ApiVersion::V3.into(),
            config_source_specifier: Some(
                core::config_source::ConfigSourceSpecifier::ApiConfigSource(
                    core::ApiConfigSource {
                        // The state of the world: SPIRE's agent serves no other.
                        api_type: ApiType::Grpc.into(),
                        transport_api_version: core::ApiVersion::V3.into(),
                        grpc_services: vec![service],
                        set_node_on_first_message_only: true,
                        ..Default::default()
                    },
                ),
            ),
            ..Default::default()
        };
        Self {
            own: source.clone(),
            trust: source,
        }
    }

    /// From nowhere, for an Envoy that has no agent: what needs them lets nobody in and reaches nobody, and
    /// nothing else waits for them. On the stream of all other resources there are none.
    pub(crate) fn nowhere() -> Self {
        // As short as it can be: zero is for ever.
        const PATIENCE: Duration = Duration::from_millis(1);
        let source = core::ConfigSource {
            initial_fetch_timeout: pb::duration(PATIENCE),
            ..ads()
        };
        Self {
            own: source.clone(),
            trust: source,
        }
    }

    /// Has a chain of a listener take them from there.
    pub(crate) fn chain(&self, chain: &mut listener::FilterChain) -> Result<(), String> {
        match &mut chain.transport_socket {
            Some(socket) => self.socket(socket),
            None => Ok(()),
        }
    }

    /// Has a cluster take them from there.
    pub(crate) fn cluster(&self, cluster: &mut cluster::Cluster) -> Result<(), String> {
        let sockets = cluster.transport_socket_matches.iter_mut();
        for socket in sockets.filter_map(|one| one.transport_socket.as_mut()) {
            self.socket(socket)?;
        }
        Ok(())
    }

    fn socket(&self, socket: &mut core::TransportSocket) -> Result<(), String> {
        let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &mut socket.config_type
        else {
            return Ok(());
        };
        if let Ok(mut context) = pb::unpack::<tls::DownstreamTlsContext>(any) {
            context
                .common_tls_context
                .iter_mut()
                .for_each(|tls| self.name(tls));
            *any = pb::pack(&context);
        } else if let Ok(mut context) = pb::unpack::<tls::UpstreamTlsContext>(any) {
            context
                .common_tls_context
                .iter_mut()
                .for_each(|tls| self.name(tls));
            *any = pb::pack(&context);
        } else if let Ok(mut around) = pb::unpack::<pb::ProxyProtocolUpstreamTransport>(any) {
            if let Some(inner) = &mut around.transport_socket {
                self.socket(inner)?;
            }
            *any = pb::pack(&around);
        }
        Ok(())
    }

    fn name(&self, tls: &mut tls::CommonTlsContext) {
        use tls::common_tls_context::ValidationContextType;

        for own in &mut tls.tls_certificate_sds_secret_configs {
            own.sds_config = Some(self.own.clone());
        }
        if let Some(ValidationContextType::CombinedValidationContext(both)) =
            &mut tls.validation_context_type
            && let Some(trust) = &mut both.validation_context_sds_secret_config
        {
            trust.sds_config = Some(self.trust.clone());
        }
    }
}
