//! Asking a gateway that runs, through its admin interface.

use std::ffi::OsStr;
use std::io::Write as _;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use zeugma_xds::{AdminAddress, NodeOptions, Sources, admin_socket_default};

use crate::{ca, exit};

/// The longest answer.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stream of lines may be silent: a gateway says every 15 s that it lives.
const SILENCE: Duration = Duration::from_secs(45);
/// The longest line of one.
const LINE_BYTES_MAX: usize = 4 << 20;

/// Which gateway.
#[derive(Debug, Clone, Args)]
pub(crate) struct Target {
    /// Where its admin interface is: `unix:/path` or a loopback address [default: of --config, else
    /// admin.sock in $RUNTIME_DIRECTORY or /run/zeugma]
    #[arg(long, env = "ZEUGMA_ADMIN", value_name = "ADDRESS")]
    admin: Option<String>,
    /// The configuration that it runs with, which says where that is
    #[arg(long, value_name = "FILE|DIR")]
    config: Option<PathBuf>,
    /// Which MeshGateway of that configuration, where it has several
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The file of the token, for `tap` and what changes something on an address [default: of --config]
    #[arg(long, env = "ZEUGMA_ADMIN_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// How to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Human,
    /// For scripts
    Json,
}

/// Why a gateway is not asked, or gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    #[error(
        "`{0}` is no admin address; write `unix:/path` or a loopback address such as 127.0.0.1:15000"
    )]
    Address(String),
    #[error(
        "{0} does not say where the admin interface of one gateway is; give --name, or --admin"
    )]
    Config(String),
    #[error("{0} cannot be read: {1}")]
    Sources(String, String),
    #[error("no gateway answers at {0}; does it run, and is that its spec.admin?")]
    Connect(String, #[source] std::io::Error),
    #[error("the admin interface at {0} is not yours; ask as the user that runs the gateway")]
    Denied(String, #[source] std::io::Error),
    #[error("no valid answer from {0}")]
    Http(String, #[source] hyper::Error),
    #[error("the answer of {0} broke off or is over 256 MiB")]
    Body(String),
    #[error("no answer from {0} within {TIMEOUT:?}")]
    Timeout(String),
    #[error("{0} refused {1}: {code} {3}", code = .2.as_u16())]
    Refused(String, String, StatusCode, String),
    #[error("{0} has no route `{1}`{help}", help = .2.as_ref().map_or_else(String::new, |help| format!("; {help}")))]
    Service(String, String, Option<String>),
    #[error("{0} are of no route: leave --service out, which is for `routes` and `connections`")]
    NotByService(String),
    #[error("the answer of {0} to {1} is not JSON")]
    Json(String, String, #[source] serde_json::Error),
    #[error("the token file {0} cannot be read")]
    Token(String, #[source] std::io::Error),
    #[error("no event loop")]
    Runtime(#[source] std::io::Error),
    #[error("cannot print")]
    Print(#[source] std::io::Error),
}

impl AdminError {
    /// Its code in [`zeugma_core::codes`].
    const fn code(&self) -> &'static str {
        match self {
            Self::Address(_) => "ZG1003",
            Self::Config(_) | Self::Sources(..) => "ZG1004",
            Self::Connect(..) | Self::Timeout(_) => "ZG1005",
            Self::Denied(..) => "ZG1006",
            Self::Http(..) | Self::Body(_) | Self::Json(..) => "ZG1007",
            Self::Refused(..) => "ZG1008",
            Self::Token(..) => "ZG1009",
            Self::Service(..) | Self::NotByService(_) => "ZG1010",
            Self::Runtime(_) => "ZG0908",
            Self::Print(_) => "ZG1002",
        }
    }

    /// Ends the command.
    pub(crate) fn fail(&self) -> ExitCode {
        let exit = match self {
            Self::Address(_) | Self::NotByService(_) => exit::USAGE,
            Self::Config(_) | Self::Sources(..) | Self::Token(..) => exit::DATA,
            Self::Denied(..) => exit::DENIED,
            Self::Refused(_, _, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED, _) => {
                exit::DENIED
            }
            Self::Refused(_, _, StatusCode::BAD_REQUEST, _) => exit::USAGE,
            Self::Refused(_, _, StatusCode::SERVICE_UNAVAILABLE, _) => exit::UNAVAILABLE,
            Self::Connect(..) | Self::Timeout(_) => exit::UNAVAILABLE,
            Self::Http(..)
            | Self::Body(_)
            | Self::Refused(..)
            | Self::Service(..)
            | Self::Json(..)
            | Self::Runtime(_)
            | Self::Print(_) => exit::FAILED,
        };
        ca::fail(self, self.code(), exit)
    }

    /// Whether to ask again may help: it did not answer, or was busy.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Connect(..) | Self::Http(..) | Self::Body(_) | Self::Timeout(_) => true,
            Self::Refused(_, _, status, _) => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            Self::Address(_)
            | Self::Config(_)
            | Self::Sources(..)
            | Self::Denied(..)
            | Self::Service(..)
            | Self::NotByService(_)
            | Self::Json(..)
            | Self::Token(..)
            | Self::Runtime(_)
            | Self::Print(_) => false,
        }
    }
}

/// A path with what is asked of it.
pub(crate) fn query(path: &str, asked: &[(&str, &str)]) -> String {
    let mut text = path.to_owned();
    for (nth, (name, value)) in asked.iter().enumerate() {
        text.push(if nth == 0 { '?' } else { '&' });
        text.push_str(name);
        text.push('=');
        text.extend(utf8_percent_encode(value, NON_ALPHANUMERIC));
    }
    text
}

/// A connection of either kind.
trait Socket: AsyncRead + AsyncWrite + Unpin {}

impl Socket for TcpStream {}

impl Socket for UnixStream {}

/// A gateway's admin interface.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    at: AdminAddress,
    token_file: Option<PathBuf>,
}

impl Target {
    /// Where it is.
    /// The one whose admin interface is there.
    pub(crate) const fn at(admin: String) -> Self {
        Self {
            admin: Some(admin),
            config: None,
            name: None,
            token_file: None,
        }
    }

    pub(crate) fn admin(&self) -> Result<Admin, AdminError> {
        let (at, token_file) = self.place()?;
        Ok(Admin {
            at,
            token_file: self.token_file.clone().or(token_file),
        })
    }

    /// The configuration that was named, where no address was, and which gateway of it.
    pub(crate) fn files(&self) -> Option<(&Path, NodeOptions)> {
        let config = self.config.as_deref().filter(|_| self.admin.is_none())?;
        let options = NodeOptions {
            name: self.name.clone(),
            locality: None,
        };
        Some((config, options))
    }

    fn place(&self) -> Result<(AdminAddress, Option<PathBuf>), AdminError> {
        if let Some(written) = &self.admin {
            let at = match written.strip_prefix("unix:") {
                Some(path) if !path.is_empty() => Ok(AdminAddress::Unix(path.into())),
                Some(_) => Err(AdminError::Address(written.clone())),
                None => (written.parse::<SocketAddr>().ok())
                    .filter(|address| address.ip().is_loopback())
                    .map(AdminAddress::Tcp)
                    .ok_or_else(|| AdminError::Address(written.clone())),
            };
            return Ok((at?, None));
        }
        let Some(config) = &self.config else {
            return Ok((AdminAddress::Default, None));
        };
        let shown = config.display().to_string();
        let sources = Sources::read(config)
            .map_err(|findings| AdminError::Sources(shown.clone(), findings.to_string()))?;
        let options = NodeOptions {
            name: self.name.clone(),
            locality: None,
        };
        sources.admin(&options).ok_or(AdminError::Config(shown))
    }
}

impl Admin {
    /// The JSON that `GET path` answers.
    pub(crate) fn get(&self, path: &str) -> Result<Value, AdminError> {
        let body = self.text(Method::GET, path)?;
        serde_json::from_slice(&body)
            .map_err(|error| AdminError::Json(self.shown(), path.to_owned(), error))
    }

    /// One part of the JSON that `GET path` answers; null where it has none of that name.
    pub(crate) fn part(&self, path: &str, name: &str) -> Result<Value, AdminError> {
        let mut document = self.get(path)?;
        Ok((document.get_mut(name))
            .map(Value::take)
            .unwrap_or_default())
    }

    /// What `GET path` answers.
    pub(crate) fn read(&self, path: &str) -> Result<Bytes, AdminError> {
        self.text(Method::GET, path)
    }

    /// What `POST path` answers.
    pub(crate) fn post(&self, path: &str) -> Result<Bytes, AdminError> {
        self.text(Method::POST, path)
    }

    /// The JSON that `POST path` answers.
    pub(crate) fn post_json(&self, path: &str) -> Result<Value, AdminError> {
        serde_json::from_slice(&self.post(path)?)
            .map_err(|error| AdminError::Json(self.shown(), path.to_owned(), error))
    }

    /// Where it is, for people.
    pub(crate) fn shown(&self) -> String {
        match &self.at {
            AdminAddress::Unix(path) => format!("unix:{}", path.display()),
            AdminAddress::Tcp(address) => address.to_string(),
            AdminAddress::Default => format!("unix:{}", default_socket().display()),
        }
    }

    fn text(&self, method: Method, path: &str) -> Result<Bytes, AdminError> {
        runtime()?.block_on(async {
            timeout(TIMEOUT, self.ask(method, path))
                .await
                .unwrap_or_else(|_elapsed| Err(AdminError::Timeout(self.shown())))
        })
    }

    async fn ask(&self, method: Method, path: &str) -> Result<Bytes, AdminError> {
        // To look wants no token, and whoever looks may not be able to read it.
        let token = if method == Method::GET {
            None
        } else {
            self.token()?
        };
        let request = self.request(method, path, token);
        let (status, body) = self.exchange(self.connect().await?, request).await?;
        if status == StatusCode::OK {
            return Ok(body);
        }
        Err(self.refused(path, status, &body))
    }

    fn refused(&self, path: &str, status: StatusCode, body: &[u8]) -> AdminError {
        let said = String::from_utf8_lossy(body).trim().to_owned();
        AdminError::Refused(self.shown(), path.to_owned(), status, said)
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        token: Option<HeaderValue>,
    ) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().unwrap_or_default();
        let host = match &self.at {
            AdminAddress::Tcp(address) => HeaderValue::from_str(&address.to_string()).ok(),
            AdminAddress::Unix(_) | AdminAddress::Default => None,
        };
        let localhost = HeaderValue::from_static("localhost");
        request
            .headers_mut()
            .insert(header::HOST, host.unwrap_or(localhost));
        if let Some(token) = token {
            request.headers_mut().insert(header::AUTHORIZATION, token);
        }
        request
    }

    async fn connect(&self) -> Result<Box<dyn Socket>, AdminError> {
        let path = match &self.at {
            AdminAddress::Tcp(address) => {
                let stream = TcpStream::connect(address).await;
                let stream = stream.map_err(|error| self.unconnected(error))?;
                return Ok(Box::new(stream));
            }
            AdminAddress::Unix(path) => path.clone(),
            AdminAddress::Default => default_socket(),
        };
        let stream = UnixStream::connect(path).await;
        let stream = stream.map_err(|error| self.unconnected(error))?;
        Ok(Box::new(stream))
    }

    fn unconnected(&self, error: std::io::Error) -> AdminError {
        if error.kind() == std::io::ErrorKind::PermissionDenied {
            AdminError::Denied(self.shown(), error)
        } else {
            AdminError::Connect(self.shown(), error)
        }
    }

    /// Reads the lines that `GET path` answers to who has the token, until `each` has seen enough or
    /// the answer ends.
    ///
    /// # Errors
    /// As of [`AdminError`]; those of `each`. There is no deadline but for the head of the answer and
    /// for silence.
    pub(crate) async fn lines(
        &self,
        path: &str,
        mut each: impl FnMut(&[u8]) -> Result<ControlFlow<()>, AdminError>,
    ) -> Result<ControlFlow<()>, AdminError> {
        let http = |error| AdminError::Http(self.shown(), error);
        let late = |_elapsed| AdminError::Timeout(self.shown());
        let asking = async {
            let stream = self.connect().await?;
            let (send, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
            Ok((send, connection))
        };
        let (mut send, connection) = timeout(TIMEOUT, asking).await.map_err(late)??;
        let reading = async {
            let request = self.request(Method::GET, path, self.token()?);
            let asked = send.send_request(request);
            let response = timeout(TIMEOUT, asked).await.map_err(late)?.map_err(http)?;
            let (status, mut body) = (response.status(), response.into_body());
            let mut held = Vec::new();
            while let Some(frame) = timeout(SILENCE, body.frame()).await.map_err(late)? {
                let Ok(frame) = frame else {
                    // A gateway that ends, or hands over, has no time for a better end.
                    break;
                };
                let data = frame.into_data().unwrap_or_default();
                held.extend_from_slice(&data);
                if status != StatusCode::OK {
                    return Err(self.refused(path, status, &held));
                }
                while let Some(end) = held.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = held.drain(..=end).collect();
                    if each(line.trim_ascii_end())?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                if held.len() > LINE_BYTES_MAX {
                    return Err(AdminError::Body(self.shown()));
                }
            }
            Ok(ControlFlow::Continue(()))
        };
        tokio::pin!(reading);
        tokio::select! {
            // Both are futures of this call: whichever ends first, the other is dropped with it.
            read = &mut reading => read,
            // What had come by then is read.
            _ended = connection => reading.await,
        }
    }

    async fn exchange(
        &self,
        stream: Box<dyn Socket>,
        request: Request<Empty<Bytes>>,
    ) -> Result<(StatusCode, Bytes), AdminError> {
        let http = |error| AdminError::Http(self.shown(), error);
        let (mut send, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
        let answer = async {
            let response = send.send_request(request).await.map_err(http)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|_| AdminError::Body(self.shown()))?;
            Ok((status, body.to_bytes()))
        };
        tokio::pin!(answer);
        tokio::select! {
            // Both are futures of this call: whichever ends first, the other is dropped with it.
            answer = &mut answer => answer,
            ended = connection => match ended {
                Err(error) => Err(http(error)),
                Ok(()) => answer.await,
            },
        }
    }

    fn token(&self) -> Result<Option<HeaderValue>, AdminError> {
        let Some(path) = &self.token_file else {
            return Ok(None);
        };
        let wrong = |error| AdminError::Token(path.display().to_string(), error);
        let text = std::fs::read_to_string(path).map_err(wrong)?;
        let mut value = HeaderValue::from_str(&format!("Bearer {}", text.trim()))
            .map_err(|_| wrong(std::io::Error::other("it holds what no header may hold")))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// What asks.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, AdminError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AdminError::Runtime)
}

fn default_socket() -> PathBuf {
    admin_socket_default(std::env::var_os("RUNTIME_DIRECTORY").as_deref() as Option<&OsStr>)
}

/// A field of a JSON object; null where it has none of that name.
pub(crate) fn field<'v>(of: &'v Value, name: &str) -> &'v Value {
    of.get(name).unwrap_or(&Value::Null)
}

/// Prints text on standard output.
pub(crate) fn print(text: &str) -> Result<ExitCode, AdminError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever read the output, such as `head`, has seen enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(AdminError::Print(error))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Prints a document of ours, which has a version.
pub(crate) fn print_json(kind: &str, content: Value) -> Result<ExitCode, AdminError> {
    let mut document = json!({ "apiVersion": "cli.zeugma.dev/v1", "kind": kind });
    if let (Some(all), Value::Object(content)) = (document.as_object_mut(), content) {
        all.extend(content);
    }
    print(&format!("{document:#}\n"))
}
