//! The streams of one connection.

use std::fmt;
use std::time::Duration;

use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request};
use zeugma_core::line::with_causes;

use super::read::{Secret, read};
use crate::client::counted::{Counted, plain};
use crate::client::stream::{HEAD_BYTES_MAX, Once, Requests, cut};
use crate::pb::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::pb::{Any, Status, core, tls};

/// How long HTTP/2 may take to begin.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take until every secret has come. An agent has to find out who asks, which takes a
/// kubelet up to 30 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
/// After which part of that it is told.
const SILENCE_TOLD: Duration = Duration::from_secs(10);
/// How often a host that says nothing is asked whether it lives: servers of gRPC end connections that ask
/// more than once in 5 minutes ...
const PING: Duration = Duration::from_secs(360);
/// ... and how long it has to answer that.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The largest response.
const RESPONSE_BYTES_MAX: usize = 4 << 20;
/// Between two responses of one secret: one that never rests is read no faster.
const PACE: Duration = Duration::from_millis(100);
/// gRPC's INTERNAL, by which an Envoy refuses.
const REFUSED: i32 = 13;

/// What is asked of a service, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The node's id.
    pub node: String,
    /// Its cluster.
    pub cluster: String,
    /// The names of secrets, each once.
    pub names: Vec<String>,
}

/// What comes of it.
#[derive(Debug)]
pub enum Heard<'a> {
    /// These have not come for 10 s.
    Silence(Vec<&'a str>),
    /// A secret; what is said to that is its ACK or NACK.
    Given(&'a str, Secret),
    /// One that cannot be read, and why; its service is told.
    Unreadable(&'a str, &'a str),
}

/// Why nothing comes any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// There is no HTTP/2.
    #[error("{0}")]
    Handshake(String),
    /// These secrets have not come in time.
    #[error("no {} within {ANSWER_TIMEOUT:?}", Names(.0))]
    Silent(Vec<String>),
    /// The service says why.
    #[error("{0}")]
    Refused(String),
    /// It gives us nothing: it knows nobody like us.
    #[error("{0}")]
    Denied(String),
    /// It says nothing of why.
    #[error("it ended the stream of `{0}`")]
    Closed(String),
}

/// Names for people.
struct Names<'a>(&'a [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, name) in self.0.iter().enumerate() {
            write!(f, "{}`{name}`", if nth == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// What a stream brought, and who waits for what is said to it.
struct Came {
    nth: usize,
    any: Result<Any, String>,
    verdict: oneshot::Sender<Result<(), String>>,
}

/// Asks a service at the other end of these bytes, and tells all that comes.
///
/// # Cancel safety
/// What was heard was heard; all streams end with it.
pub async fn follow<S>(
    io: S,
    asked: &Asked,
    mut hear: impl FnMut(Heard<'_>) -> Result<(), String>,
) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let channel = match shake_hands(io).await {
        Ok(channel) => channel,
        Err(why) => return Ended::Handshake(cut(&why)),
    };
    let (tell, mut told) = mpsc::channel(1);
    let mut streams = JoinSet::new();
    for (nth, name) in asked.names.iter().enumerate() {
        let stream = Stream {
            channel: channel.clone(),
            name: name.clone(),
            nth,
            tell: tell.clone(),
        };
        streams.spawn(stream.run(asked.node()));
    }
    drop(channel);
    let began = Instant::now();
    let mut missing: Vec<&str> = asked.names.iter().map(String::as_str).collect();
    let mut is_told = false;
    loop {
        let wait = if is_told {
            ANSWER_TIMEOUT
        } else {
            SILENCE_TOLD
        };
        // Each arm's state is kept outside of it; a message is taken whole.
        let came = tokio::select! {
            // What was said before the end counts.
            biased;
            Some(came) = told.recv() => came,
            Some(ended) = streams.join_next() => {
                return ended.unwrap_or_else(|error| Ended::Refused(error.to_string()));
            }
            () = sleep_until(began + wait), if !missing.is_empty() => {
                if is_told {
                    return Ended::Silent(missing.into_iter().map(str::to_owned).collect());
                }
                is_told = true;
                // Nobody waits for what is said to that.
                hear(Heard::Silence(missing.clone())).ok();
                continue;
            }
        };
        let Some(name) = asked.names.get(came.nth) else {
            continue;
        };
        let secret = came.any.and_then(|any| read(&any, name));
        let verdict = match secret {
            Ok(secret) => hear(Heard::Given(name, secret)),
            Err(why) => {
                hear(Heard::Unreadable(name, &cut(&why))).ok();
                Err(why)
            }
        };
        // A service that gives what cannot be used is not silent: it may mend that.
        missing.retain(|one| *one != name);
        // It may have ended meanwhile.
        came.verdict.send(verdict).ok();
    }
}

impl Asked {
    fn node(&self) -> core::Node {
        core::Node {
            id: self.node.clone(),
            cluster: self.cluster.clone(),
            user_agent_name: "zeugma".to_owned(),
            user_agent_version_type: Some(core::node::UserAgentVersionType::UserAgentVersion(
                env!("CARGO_PKG_VERSION").to_owned(),
            )),
            ..Default::default()
        }
    }
}

async fn shake_hands<S>(io: S) -> Result<Channel, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // The bytes are dialled already, and whoever listens at a path has no name.
    let endpoint = tonic::transport::Endpoint::from_static("http://localhost")
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING_TIMEOUT)
        .http2_max_header_list_size(HEAD_BYTES_MAX);
    let connecting = endpoint.connect_with_connector(Once(Some(io)));
    match timeout(HANDSHAKE_TIMEOUT, connecting).await {
        Ok(connected) => connected.map_err(|error| with_causes(&error)),
        Err(_elapsed) => Err(format!("no HTTP/2 within {HANDSHAKE_TIMEOUT:?}")),
    }
}

/// One secret's.
struct Stream {
    channel: Channel,
    name: String,
    nth: usize,
    tell: mpsc::Sender<Came>,
}

/// What of a response counts.
struct Read {
    any: Result<Any, String>,
    version: String,
    nonce: String,
}

/// What is said to a response.
struct Said {
    nonce: String,
    /// That was accepted last.
    version: String,
    error: Option<Status>,
}

impl Stream {
    /// What changed is asked for first, and all of it where the service knows no better.
    async fn run(self, node: core::Node) -> Ended {
        let type_url = <tls::Secret as prost::Name>::type_url();
        let name = self.name.clone();
        let first = DeltaDiscoveryRequest {
            node: Some(node.clone()),
            type_url: type_url.clone(),
            resource_names_subscribe: vec![name.clone()],
            ..Default::default()
        };
        let answer = |said: Said| DeltaDiscoveryRequest {
            type_url: type_url.clone(),
            response_nonce: said.nonce,
            error_detail: said.error,
            ..Default::default()
        };
        if let Some(ended) = self.ask(DELTA, first, of_changes, answer).await {
            return ended;
        }
        let asking = || DiscoveryRequest {
            type_url: type_url.clone(),
            resource_names: vec![name.clone()],
            ..Default::default()
        };
        let first = DiscoveryRequest {
            node: Some(node),
            ..asking()
        };
        let answer = |said: Said| DiscoveryRequest {
            version_info: said.version,
            response_nonce: said.nonce,
            error_detail: said.error,
            ..asking()
        };
        let ended = self.ask(WHOLE, first, of_all, answer).await;
        let neither = || Ended::Refused("it serves no secrets".to_owned());
        ended.unwrap_or_else(neither)
    }

    /// `None` where there is no such method.
    async fn ask<T, U>(
        &self,
        method: &'static str,
        first: T,
        read: fn(U, &str) -> Read,
        answer: impl Fn(Said) -> T,
    ) -> Option<Ended>
    where
        T: Message + 'static,
        U: Message + Default + 'static,
    {
        // One is said to each response, and the next one is read after that.
        let (requests, asked) = mpsc::channel(1);
        requests.try_send(first).ok()?;
        let mut grpc =
            Grpc::new(self.channel.clone()).max_decoding_message_size(RESPONSE_BYTES_MAX);
        if let Err(error) = grpc.ready().await {
            return Some(Ended::Refused(cut(&with_causes(&error))));
        }
        let path = PathAndQuery::from_static(method);
        let request = Request::new(Requests(asked));
        let codec = Counted::<T, U>::new(plain);
        // Whoever follows has a deadline for the first answer, and after it pings tell of life.
        let mut answers = match grpc.streaming(request, path, codec).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return why(&status),
        };
        let mut accepted = String::new();
        loop {
            let next = Instant::now() + PACE;
            let response = match answers.message().await {
                Ok(Some(response)) => response,
                Ok(None) => return Some(Ended::Closed(self.name.clone())),
                Err(status) => return why(&status),
            };
            let Read {
                any,
                version,
                nonce,
            } = read(response, &self.name);
            let (verdict, said) = oneshot::channel();
            let came = Came {
                nth: self.nth,
                any,
                verdict,
            };
            self.tell.send(came).await.ok()?;
            let error = match said.await.ok()? {
                Ok(()) => {
                    accepted = version;
                    None
                }
                Err(why) => Some(Status {
                    code: REFUSED,
                    message: cut(&format!("secret `{}`: {why}", self.name)),
                    details: Vec::new(),
                }),
            };
            let said = Said {
                nonce,
                version: accepted.clone(),
                error,
            };
            sleep_until(next).await;
            if requests.send(answer(said)).await.is_err() {
                return Some(Ended::Closed(self.name.clone()));
            }
        }
    }
}

const DELTA: &str = "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets";
const WHOLE: &str = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";

fn of_changes(response: DeltaDiscoveryResponse, name: &str) -> Read {
    let mut resources = response.resources.into_iter();
    let mut of_name = resources.by_ref().filter(|one| one.name == name);
    let any = match of_name.next_back() {
        Some(resource) => {
            let empty = || "it is empty".to_owned();
            resource.resource.ok_or_else(empty)
        }
        None => Err(missing(&response.removed_resources)),
    };
    Read {
        any,
        version: String::new(),
        nonce: response.nonce,
    }
}

fn of_all(response: DiscoveryResponse, _: &str) -> Read {
    let mut resources = response.resources;
    let any = match (resources.pop(), resources.len()) {
        (Some(any), 0) => Ok(any),
        (Some(_), more) => Err(format!("{} secrets were given for one", more + 1)),
        (None, _) => Err(missing(&[])),
    };
    Read {
        any,
        version: response.version_info,
        nonce: response.nonce,
    }
}

/// A secret that is taken away: an identity is not ended by that.
fn missing(removed: &[String]) -> String {
    if removed.is_empty() {
        "it is not in the response; the last one stays".to_owned()
    } else {
        "it was removed; the last one stays".to_owned()
    }
}

/// How a status ends a stream; `None` where there is no such method.
fn why(status: &tonic::Status) -> Option<Ended> {
    let mut text = format!("{:?}", status.code());
    if !status.message().is_empty() {
        text = format!("{text}: {}", status.message());
    }
    let text = cut(&text);
    if status.code() == Code::Unimplemented {
        return None;
    }
    Some(if status.code() == Code::PermissionDenied {
        Ended::Denied(text)
    } else {
        Ended::Refused(text)
    })
}
