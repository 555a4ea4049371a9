//! One call of a Workload API: connected, asked, listened to until it ends.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;
use zeugma_core::line::with_causes;
use zeugma_xds::WorkloadAddress;

use super::answer::{AnswerError, Request, Response, read};
use super::dial::{CONNECT_TIMEOUT, Dialled, dial};
use crate::tls::Given;

/// The largest answer, in bytes: what other clients take, too.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// How long it may take until the first answer. An agent has to find out who asks, which takes a
/// kubelet up to 30 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
/// After which part of that it is told.
pub(super) const SILENCE_TOLD: Duration = Duration::from_secs(10);
/// How often a host that says nothing is asked whether it lives. gRPC servers end connections that
/// ask more than once in 5 minutes (grpc-go `keepalive.EnforcementPolicy`); one that died is noticed
/// by its socket.
const PING: Duration = Duration::from_secs(360);
/// How long it has to answer that.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The largest head of an answer.
const HEAD_BYTES_MAX: u32 = 16 << 10;
/// Its address in HTTP, where there is a path and no host.
const METHOD: &str = "/SpiffeWorkloadAPI/FetchX509SVID";

/// Why nothing comes any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// There is nobody.
    #[error("{0}")]
    Connect(String),
    /// It took too long.
    #[error("no connection within {CONNECT_TIMEOUT:?}")]
    ConnectTimeout,
    /// It says nothing, or not all.
    #[error("{0}")]
    Silent(String),
    /// It says why.
    #[error("{0}")]
    Refused(String),
    /// It knows nobody like us.
    #[error("{0}")]
    Denied(String),
    /// It says nothing of why.
    #[error("it ended its answer")]
    Closed,
}

/// What a call brings before it ends.
#[derive(Debug)]
pub(super) enum Event {
    /// It is connected, and this is so since [`SILENCE_TOLD`].
    Silence(String),
    /// An answer.
    Answer(Result<Given, AnswerError>),
    /// What came of secrets so far, if it is a whole, and why one of them is refused.
    Secrets(Option<Given>, Option<AnswerError>),
}

/// Asks, and tells all that comes.
pub(super) async fn call(address: &WorkloadAddress, mut tell: impl FnMut(Event)) -> Ended {
    let from = address.to_string();
    let channel = match timeout(CONNECT_TIMEOUT, connect(address)).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return Ended::Connect(with_causes(&error)),
        Err(_elapsed) => return Ended::ConnectTimeout,
    };
    let mut asking = Box::pin(ask(channel));
    let first = match timeout(SILENCE_TOLD, &mut asking).await {
        Ok(first) => first,
        Err(_elapsed) => {
            tell(Event::Silence("it has not answered".to_owned()));
            match timeout(ANSWER_TIMEOUT.saturating_sub(SILENCE_TOLD), asking).await {
                Ok(first) => first,
                Err(_elapsed) => {
                    return Ended::Silent(format!("no answer within {ANSWER_TIMEOUT:?}"));
                }
            }
        }
    };
    let (mut answer, mut answers) = match first {
        Ok((Some(answer), answers)) => (answer, answers),
        Ok((None, _)) => return Ended::Closed,
        Err(status) => return why(&status),
    };
    loop {
        tell(Event::Answer(read(answer, from.clone())));
        // For the next one nobody knows a time; whether there is still anybody the pings tell.
        answer = match answers.message().await {
            Ok(Some(next)) => next,
            Ok(None) => return Ended::Closed,
            Err(status) => return why(&status),
        };
    }
}

async fn connect(address: &WorkloadAddress) -> Result<Channel, tonic::transport::Error> {
    let uri = match address {
        // A name is wanted in HTTP, and whoever listens at a path has none.
        WorkloadAddress::Unix(_) => "http://localhost".to_owned(),
        WorkloadAddress::Tcp(address) => format!("http://{address}"),
    };
    let endpoint = Endpoint::from_shared(uri)?
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING_TIMEOUT)
        .http2_max_header_list_size(HEAD_BYTES_MAX);
    endpoint.connect_with_connector(Dial(address.clone())).await
}

/// Opens the socket: by tonic's own connector the C library would be linked to look up names.
struct Dial(WorkloadAddress);

type Dialling = dyn Future<Output = io::Result<TokioIo<Dialled>>> + Send;

impl Service<Uri> for Dial {
    type Response = TokioIo<Dialled>;
    type Error = io::Error;
    type Future = Pin<Box<Dialling>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let address = self.0.clone();
        Box::pin(async move { Ok(TokioIo::new(dial(&address).await?)) })
    }
}

/// The first answer, and those to come.
async fn ask(channel: Channel) -> Result<(Option<Response>, Streaming<Response>), Status> {
    let mut client = Grpc::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    let ready = client.ready().await;
    ready.map_err(|error| Status::unavailable(with_causes(&error)))?;
    let mut request = tonic::Request::new(Request {});
    // SPIFFE_Workload_Endpoint.md §6 (WE1): so that nobody is made to ask by a forged request.
    let header = MetadataValue::from_static("true");
    request.metadata_mut().insert("workload.spiffe.io", header);
    let path = PathAndQuery::from_static(METHOD);
    let codec = ProstCodec::<Request, Response>::default();
    let mut answers = client
        .server_streaming(request, path, codec)
        .await?
        .into_inner();
    Ok((answers.message().await?, answers))
}

fn why(status: &Status) -> Ended {
    let mut text = format!("{:?}", status.code());
    if !status.message().is_empty() {
        text = format!("{text}: {}", status.message());
    }
    if status.code() == Code::PermissionDenied {
        Ended::Denied(text)
    } else {
        Ended::Refused(text)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_that_is_connected_and_says_nothing_is_told_of_and_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let began = Instant::now();
        let mut told = Vec::new();
        let ended = call(&WorkloadAddress::Unix(path), |event| {
            assert!(matches!(event, Event::Silence(_)), "{event:?}");
            told.push(began.elapsed());
        })
        .await;
        assert!(matches!(ended, Ended::Silent(_)), "{ended}");
        assert_eq!(told, [SILENCE_TOLD]);
        assert_eq!(began.elapsed(), ANSWER_TIMEOUT);
    }

    #[tokio::test]
    async fn where_there_is_nobody_the_system_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let address = WorkloadAddress::Unix(folder.path().join("agent.sock"));
        let ended = call(&address, |event| panic!("{event:?}")).await;
        assert!(ended.to_string().contains("No such file"), "{ended}");
    }
}
