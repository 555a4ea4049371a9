//! `envoy.service.status.v3.ClientStatusDiscoveryService`: what was sent to each node, and taken.

use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::admin::v3::{ClientResourceStatus, UpdateFailureState};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::envoy::service::status::v3::{
    ClientConfig, ClientStatusRequest, ClientStatusResponse, ConfigStatus,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{
    NodeMatcher, StringMatcher, string_matcher::MatchPattern,
};
use prost::Message as _;
use tokio::time::timeout;
use tonic::Status;

use super::stream::Opened;
use super::wire::{Telling, ended};
use super::{Caller, Shared, lock};
use crate::session::server::Standing;

/// Until who asks has said what for, and then until an answer is taken.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of what is asked.
const ASKED_BYTES_MAX: usize = 64 * 1024;

/// How often a call may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    Once,
    AsLongAsItIsOpen,
}

/// Answers until the client has asked all it wants.
pub(super) async fn run(opened: Opened, asks: Asks) {
    let tell = opened.tell.clone();
    let status = answer(opened, asks).await.err().unwrap_or_else(ended);
    // Nobody may be there to take it.
    timeout(PATIENCE, tell.send(Telling::End(status)))
        .await
        .ok();
}

async fn answer(opened: Opened, asks: Asks) -> Result<(), Status> {
    let Opened {
        shared,
        place,
        mut requests,
        tell,
        ..
    } = opened;
    loop {
        let asked = tokio::select! {
            asked = requests.next() => asked?,
            () = tell.closed() => return Ok(()),
        };
        let Some(asked) = asked else {
            return Ok(());
        };
        let response = shared.status(&asked, place.caller())?;
        requests.done();
        let message = Telling::Message(response.encode_to_vec().into());
        let told = timeout(PATIENCE, tell.send(message)).await;
        told.map_err(|_elapsed| Status::deadline_exceeded("nobody takes the answer"))?
            .map_err(|_gone| Status::cancelled("nobody reads"))?;
        if asks == Asks::Once {
            return Ok(());
        }
    }
}

impl Shared {
    /// The nodes that were asked for, as far as `caller` may have their configuration.
    fn status(&self, asked: &Bytes, caller: &Caller) -> Result<ClientStatusResponse, Status> {
        if asked.len() > ASKED_BYTES_MAX {
            let text = format!("over {ASKED_BYTES_MAX} bytes of matchers");
            return Err(Status::invalid_argument(text));
        }
        let asked = ClientStatusRequest::decode(asked.as_ref())
            .map_err(|_broken| Status::invalid_argument("it is no ClientStatusRequest"))?;
        let matchers = (asked.node_matchers.iter()).map(Matcher::read);
        let matchers: Vec<Matcher<'_>> = matchers.collect::<Result<_, _>>()?;
        let plane = lock(&self.plane).plane.clone();
        let mut config = Vec::new();
        self.standings.each(|node, view, types| {
            let is_asked = matchers.is_empty() || matchers.iter().any(|one| one.accepts(node));
            if is_asked && self.may_have(&plane, view, caller) {
                config.push(ClientConfig {
                    node: Some(Node {
                        id: node.to_owned(),
                        ..Default::default()
                    }),
                    generic_xds_configs: types.iter().map(of_type).collect(),
                    ..Default::default()
                });
            }
        });
        Ok(ClientStatusResponse { config })
    }
}

/// One for each type: of a node with twenty thousand resources each would say the same.
fn of_type(of: &Standing) -> GenericXdsConfig {
    let is_taken = of.sent.is_some() && of.sent == of.accepted;
    let config_status = if of.rejected.is_some() {
        ConfigStatus::Error
    } else if of.sent.is_none() {
        ConfigStatus::NotSent
    } else if of.is_behind || of.unacknowledged.is_some() {
        ConfigStatus::Stale
    } else {
        ConfigStatus::Synced
    };
    let client_status = if of.rejected.is_some() {
        ClientResourceStatus::Nacked
    } else if is_taken {
        ClientResourceStatus::Acked
    } else {
        ClientResourceStatus::Requested
    };
    GenericXdsConfig {
        type_url: of.type_url.to_string(),
        version_info: (of.accepted.or(of.sent)).map_or_else(String::new, |of| of.to_string()),
        config_status: config_status.into(),
        client_status: client_status.into(),
        error_state: (of.rejected.as_ref()).map(|(version, details)| UpdateFailureState {
            details: details.clone(),
            version_info: version.to_string(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// What a node's id must be.
struct Matcher<'a> {
    pattern: Option<&'a MatchPattern>,
    is_any_case: bool,
}

impl<'a> Matcher<'a> {
    fn read(of: &'a NodeMatcher) -> Result<Self, Status> {
        let only = "of node_matchers, node_id is read, as exact, prefix, suffix or contains";
        if !of.node_metadatas.is_empty() {
            return Err(Status::invalid_argument(only));
        }
        let Some(StringMatcher {
            match_pattern,
            ignore_case,
        }) = &of.node_id
        else {
            return Ok(Self {
                pattern: None,
                is_any_case: false,
            });
        };
        let pattern = match match_pattern {
            Some(
                MatchPattern::Exact(_)
                | MatchPattern::Prefix(_)
                | MatchPattern::Suffix(_)
                | MatchPattern::Contains(_),
            ) => match_pattern.as_ref(),
            Some(MatchPattern::SafeRegex(_) | MatchPattern::Custom(_)) | None => {
                return Err(Status::invalid_argument(only));
            }
        };
        Ok(Self {
            pattern,
            is_any_case: *ignore_case,
        })
    }

    fn accepts(&self, node: &str) -> bool {
        let folded = |text: &str| {
            if self.is_any_case {
                text.to_ascii_lowercase()
            } else {
                text.to_owned()
            }
        };
        let node = folded(node);
        match self.pattern {
            Some(MatchPattern::Exact(text)) => node == folded(text),
            Some(MatchPattern::Prefix(text)) => node.starts_with(&folded(text)),
            Some(MatchPattern::Suffix(text)) => node.ends_with(&folded(text)),
            Some(MatchPattern::Contains(text)) => node.contains(&folded(text)),
            // What else there is, is refused where it is read.
            Some(MatchPattern::SafeRegex(_) | MatchPattern::Custom(_)) | None => true,
        }
    }
}
