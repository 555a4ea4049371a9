//! `envoy.service.status.v3.ClientStatusDiscoveryService`: what was sent to each node, and taken.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::admin::v3::{ClientResourceStatus, UpdateFailureState};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::envoy::service::status::v3::{
    ClientConfig, ClientStatusRequest, ConfigStatus,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{
    NodeMatcher, StringMatcher, string_matcher::MatchPattern,
};
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::timeout;
use tonic::Status;

use super::standing::{DETAIL_CHARS_MAX, Known, Place, is_served};
use super::stream::Opened;
use super::wire::{Left, Taking, Telling, end, ended};
use super::{Caller, Shared, lock};
use crate::session::server::Standing;

/// Until who calls has asked, and between two questions of one call.
const FIRST: Duration = Duration::from_secs(10);
const BETWEEN: Duration = Duration::from_secs(600);
/// How long who has an answer may take nothing of it, and all of it may take: it has a turn that others
/// wait for.
pub(super) const ANSWER_MOVES: Duration = Duration::from_secs(10);
const ANSWER_TAKEN: Duration = Duration::from_secs(60);
/// Until an answer may be made: of two who have the turn before, each may be as slow as it may.
const TURN: Duration = Duration::from_secs(150);
/// Bytes of what is asked.
const ASKED_BYTES_MAX: usize = 64 * 1024;
/// Of them, what each node is compared with.
const MATCHERS_MAX: usize = 64;
/// Bytes of an answer: about thirty thousand nodes.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Answers at once that nobody has taken yet, of all callers; of one caller it is one.
pub(super) const ANSWERS_MAX: usize = 8;
/// `ClientStatusResponse.config`.
const CONFIG: u32 = 1;

/// How often a call may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    Once,
    AsLongAsItIsOpen,
}

/// Answers until the client has asked all it wants.
pub(super) async fn run(opened: Opened, taking: Taking, asks: Asks) -> Left {
    let tell = opened.tell.clone();
    let status = match answer(opened, &taking, asks).await {
        Ok(Left::Untaken) => return Left::Untaken,
        Ok(Left::Taken) => ended(),
        Err(status) => status,
    };
    end(&tell, taking, status).await
}

/// Whether the last answer was taken.
async fn answer(opened: Opened, taking: &Taking, asks: Asks) -> Result<Left, Status> {
    let Opened {
        shared,
        place,
        mut requests,
        tell,
        ..
    } = opened;
    let place = Arc::new(place);
    let mut patience = FIRST;
    loop {
        let asked = requests.within(patience, "nothing is asked", &tell).await?;
        let Some(asked) = asked else {
            return Ok(Left::Taken);
        };
        let turn = tokio::select! {
            turn = timeout(TURN, shared.turn(&place)) => turn,
            () = tell.closed() => return Ok(Left::Taken),
        };
        let turn =
            turn.map_err(|_elapsed| Status::unavailable("other answers are not taken"))??;
        let bytes = shared.status(&asked, place.caller()).await?;
        requests.done();
        let (waits, taken) = oneshot::channel();
        let answer = Answer {
            bytes,
            turn,
            place: Arc::clone(&place),
            waits,
        };
        let message = Telling::Message(Bytes::from_owner(answer));
        tell.try_send(message)
            .map_err(|_gone| Status::cancelled("nobody reads"))?;
        let taken = async {
            // Nothing comes: it ends with the answer.
            taken.await.ok();
        };
        let taken = taking.while_it_moves(ANSWER_MOVES, taken);
        if timeout(ANSWER_TAKEN, taken).await != Ok(Left::Taken) {
            return Ok(Left::Untaken);
        }
        if asks == Asks::Once {
            return Ok(Left::Taken);
        }
        patience = BETWEEN;
    }
}

/// An answer, and the room that it takes until it is sent.
struct Answer {
    bytes: Vec<u8>,
    #[expect(dead_code, reason = "it is held as long as the bytes are")]
    turn: Turn,
    #[expect(dead_code, reason = "its caller has it until then")]
    place: Arc<Place>,
    #[expect(dead_code, reason = "its other end sees when it is dropped")]
    waits: oneshot::Sender<Infallible>,
}

type Turn = [OwnedSemaphorePermit; 2];

impl AsRef<[u8]> for Answer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Shared {
    /// Waits until an answer may be made.
    async fn turn(&self, place: &Place) -> Result<Turn, Status> {
        let closed = |_closed| Status::unavailable("draining");
        let of_caller = Arc::clone(place.answers()).acquire_owned();
        let of_caller = of_caller.await.map_err(closed)?;
        let of_all = Arc::clone(&self.answers).acquire_owned();
        Ok([of_caller, of_all.await.map_err(closed)?])
    }

    /// The nodes that were asked for, as far as `caller` may have their configuration.
    async fn status(&self, asked: &Bytes, caller: &Caller) -> Result<Vec<u8>, Status> {
        if asked.len() > ASKED_BYTES_MAX {
            let text = format!("over {ASKED_BYTES_MAX} bytes of matchers");
            return Err(Status::invalid_argument(text));
        }
        let asked = ClientStatusRequest::decode(asked.as_ref())
            .map_err(|_broken| Status::invalid_argument("it is no ClientStatusRequest"))?;
        if asked.node_matchers.len() > MATCHERS_MAX {
            let text = format!("over {MATCHERS_MAX} node_matchers");
            return Err(Status::invalid_argument(text));
        }
        let matchers = (asked.node_matchers.iter()).map(Matcher::read);
        let matchers: Vec<Matcher<'_>> = matchers.collect::<Result<_, _>>()?;
        let plane = lock(&self.plane).plane.clone();
        let mut may_have = BTreeMap::new();
        let (mut answer, mut from) = (Vec::new(), 0);
        while let Some((known, next)) = self.standings.page(from) {
            for one in &known {
                if !matchers.is_empty() && !matchers.iter().any(|of| of.accepts(&one.node)) {
                    continue;
                }
                let gateway = may_have.entry(one.view.gateway.clone());
                if *gateway.or_insert_with(|| self.may_have(&plane, &one.view, caller)) {
                    append(one, &mut answer)?;
                }
            }
            from = next;
            // Others are served meanwhile.
            tokio::task::yield_now().await;
        }
        answer.shrink_to_fit();
        Ok(answer)
    }
}

/// Writes of one node.
fn append(one: &Known, to: &mut Vec<u8>) -> Result<(), Status> {
    let config = ClientConfig {
        node: Some(Node {
            id: one.node.clone(),
            ..Default::default()
        }),
        generic_xds_configs: (one.types.iter().filter(|of| is_served(of)))
            .map(of_type)
            .collect(),
        ..Default::default()
    };
    prost::encoding::message::encode(CONFIG, &config, to);
    if to.len() > ANSWER_BYTES_MAX {
        let text = format!("over {ANSWER_BYTES_MAX} bytes; ask for fewer nodes by node_matchers");
        return Err(Status::resource_exhausted(text));
    }
    Ok(())
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
            details: details.chars().take(DETAIL_CHARS_MAX).collect(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plane::View;

    #[test]
    fn an_answer_ends_where_it_is_too_long() {
        let known = Known {
            node: "x".repeat(1 << 20),
            view: View {
                gateway: "east-gw".to_owned(),
                locality: "eu".to_owned(),
                flavor: crate::catalog::Flavor::Proxy,
            },
            types: Vec::new(),
        };
        let mut answer = Vec::new();
        for _ in 0..15 {
            assert!(append(&known, &mut answer).is_ok());
        }
        let ended = append(&known, &mut answer).unwrap_err();
        assert_eq!(ended.code(), tonic::Code::ResourceExhausted);
    }
}
