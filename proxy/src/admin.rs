//! What a gateway tells of itself: probes, metrics, and the admin interface. Never a secret.

mod api;
mod check;
mod events;
mod explain;
mod levers;
mod tap;
mod ui;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use zeugma_core::identity::SpiffeId;
use zeugma_core::shares::EndpointStatus;
use zeugma_xds::{AdminAddress, GatewaySettings};

use self::levers::Access;
use crate::control::handover::Offered;
use crate::control::inherit::{Adopted, At, Place, Role};
use crate::metrics::{CLASSIC_TYPE, OPEN_TYPE, classic};
use crate::runtime::{Published, Shared};

/// Connections to one of these interfaces at once.
const CONNECTIONS_MAX: usize = 128;
/// How long a request's head may take to come in.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one connection may last.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a connection that was accepted before the interfaces were passed on may still ask, and
/// how long the process waits for the last answer.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long accepting pauses after an error.
const BACK_OFF: Duration = Duration::from_millis(100);

/// The interfaces, bound.
#[derive(Debug)]
pub(crate) struct Interfaces {
    pub(crate) probes: TcpListener,
    pub(crate) metrics: TcpListener,
    pub(crate) admin: AdminListener,
}

/// Where the admin interface listens.
#[derive(Debug)]
pub(crate) enum AdminListener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
    /// Nowhere: nothing is written, and the default place cannot be used.
    Nowhere,
}

/// A Unix socket's file, removed when the gateway ends.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode: another gateway may have put its own in this place.
    file: (u64, u64),
}

impl SocketFile {
    /// The file of a socket that was bound there before.
    fn of(path: &Path) -> io::Result<Self> {
        let bound = std::fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            file: (bound.dev(), bound.ino()),
        })
    }

    /// Leaves it to the process that the socket was passed on to.
    fn leave(mut self) {
        // Of no file: nothing is removed.
        self.file = (0, 0);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let found = std::fs::symlink_metadata(&self.path);
        if found.is_ok_and(|found| (found.dev(), found.ino()) == self.file) {
            // It may already be gone; nothing is served from it any more.
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// Why an interface is not bound.
#[derive(Debug, thiserror::Error)]
#[error("{what} `{address}` cannot be bound; choose another address or end what holds it")]
pub struct BindError {
    what: &'static str,
    address: String,
    #[source]
    source: io::Error,
}

impl BindError {
    /// Its code in [`zeugma_core::codes`].
    #[must_use]
    pub const fn code(&self) -> &'static str {
        "ZG0113"
    }
}

impl Interfaces {
    /// Binds all of them, but those that were opened for us.
    ///
    /// # Errors
    /// The first that cannot be bound.
    pub(crate) fn bind(
        settings: &GatewaySettings,
        adopted: &mut Adopted,
    ) -> Result<Self, BindError> {
        let admin = match &settings.admin {
            AdminAddress::Tcp(address) => {
                let given = adopted.tcp(&Role::Admin);
                AdminListener::Tcp(bind_tcp("spec.admin", *address, given)?)
            }
            AdminAddress::Unix(path) => {
                bind_or_adopt(path, adopted).map_err(|source| BindError {
                    what: "spec.admin",
                    address: format!("unix:{}", path.display()),
                    source,
                })?
            }
            AdminAddress::Default => {
                let path = default_socket();
                bind_or_adopt(&path, adopted).unwrap_or_else(|error| {
                    tracing::warn!(
                        code = "ZG0961",
                        path = %path.display(), %error,
                        "no admin interface: the socket's default place cannot be used; write \
                         spec.admin"
                    );
                    AdminListener::Nowhere
                })
            }
        };
        let (probes, metrics) = (adopted.tcp(&Role::Probes), adopted.tcp(&Role::Metrics));
        Ok(Self {
            probes: bind_tcp("spec.probes", settings.probes, probes)?,
            metrics: bind_tcp("spec.metrics", settings.metrics, metrics)?,
            admin,
        })
    }

    /// Every socket of them, to be passed on.
    ///
    /// # Errors
    /// Too many open files.
    pub(crate) fn offered(&self, settings: &GatewaySettings) -> io::Result<Vec<Offered>> {
        let admin = match (&self.admin, &settings.admin) {
            (AdminListener::Unix(listener, file), _) => {
                Some((listener.as_fd(), At::Unix(file.path.clone())))
            }
            (AdminListener::Tcp(listener), AdminAddress::Tcp(address)) => {
                Some((listener.as_fd(), At::Tcp(*address)))
            }
            (AdminListener::Tcp(listener), AdminAddress::Unix(_) | AdminAddress::Default) => {
                Some((listener.as_fd(), At::Tcp(listener.local_addr()?)))
            }
            (AdminListener::Nowhere, _) => None,
        };
        let probes = (self.probes.as_fd(), At::Tcp(settings.probes));
        let metrics = (self.metrics.as_fd(), At::Tcp(settings.metrics));
        (admin.into_iter().map(|admin| (Role::Admin, admin)))
            .chain([(Role::Probes, probes), (Role::Metrics, metrics)])
            .map(|(role, (socket, at))| {
                Ok(Offered {
                    place: Place { role, at },
                    socket: socket.try_clone_to_owned()?,
                })
            })
            .collect()
    }
}

fn bind_tcp(
    what: &'static str,
    address: SocketAddr,
    given: Option<std::net::TcpListener>,
) -> Result<TcpListener, BindError> {
    given
        .map_or_else(|| crate::listener::bind(address), Ok)
        .and_then(TcpListener::from_std)
        .map_err(|source| BindError {
            what,
            address: address.to_string(),
            source,
        })
}

/// Where the admin interface listens unless something else is written: the folder that systemd made
/// for the process, else `/run/zeugma`.
pub(crate) fn default_socket() -> PathBuf {
    zeugma_xds::admin_socket_default(std::env::var_os("RUNTIME_DIRECTORY").as_deref())
}

fn bind_or_adopt(path: &Path, adopted: &mut Adopted) -> io::Result<AdminListener> {
    match adopted.unix(&Role::Admin) {
        Some(given) => {
            let given = UnixListener::from_std(given)?;
            Ok(AdminListener::Unix(given, SocketFile::of(path)?))
        }
        None => bind_unix(path),
    }
}

/// Binds a socket that only this user can connect, from its first moment on.
///
/// It is bound under another name in a folder that is closed to others, and moved into place with
/// its mode. What is in its place is replaced only if it is a socket that nobody listens on.
fn bind_unix(path: &Path) -> io::Result<AdminListener> {
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    std::fs::create_dir_all(folder)?;
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "what is there is not a socket; move it away or choose another path",
            ));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "a process listens there",
            ));
        }
        Ok(_left_behind) => {}
    }
    // A short name: the path of a socket has 107 bytes at most (unix(7)).
    let private = folder.join(format!(".{:04x}", fastrand::u16(..)));
    std::fs::DirBuilder::new().mode(0o700).create(&private)?;
    let bound = bind_within(&private, path);
    // Empty again, unless binding failed half-way; the socket is not in it.
    drop(std::fs::remove_dir_all(&private));
    bound
}

fn bind_within(private: &Path, path: &Path) -> io::Result<AdminListener> {
    let hidden = private.join("s");
    let listener = UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
    let mut file = SocketFile::of(&hidden)?;
    std::fs::rename(&hidden, path)?;
    path.clone_into(&mut file.path);
    Ok(AdminListener::Unix(listener, file))
}

/// Serves all of them until cancelled; when `passed_on`, only what is open already.
pub(crate) async fn serve(
    interfaces: Interfaces,
    shared: Arc<Shared>,
    passed_on: CancellationToken,
) {
    let passed_on = &passed_on;
    let Interfaces {
        probes,
        metrics,
        admin,
    } = interfaces;
    let probe_routes = Router::new()
        .route("/ready", get(ready))
        .route("/livez", get(async || "live\n"))
        .with_state(Arc::clone(&shared));
    let metric_routes = Router::new()
        .route("/metrics", get(metrics_text))
        .route("/stats/prometheus", get(metrics_text))
        .with_state(Arc::clone(&shared));
    let admin_routes = probe_routes
        .clone()
        .merge(metric_routes.clone())
        .route(
            "/server_info",
            get(server_info).with_state(Arc::clone(&shared)),
        )
        .route(
            "/config_dump",
            get(config_dump).with_state(Arc::clone(&shared)),
        )
        .route("/clusters", get(clusters).with_state(Arc::clone(&shared)))
        .route("/listeners", get(listeners).with_state(Arc::clone(&shared)))
        .route("/certs", get(certs).with_state(Arc::clone(&shared)))
        .route(
            "/api/v1/events",
            get(events::events).with_state(Arc::clone(&shared)),
        )
        .route(
            "/events",
            get(events::events).with_state(Arc::clone(&shared)),
        )
        .merge(api::routes(&shared))
        .merge(ui::routes(&shared));
    let admin = async {
        match admin {
            AdminListener::Tcp(listener) => {
                let access =
                    (shared.settings.admin_token.clone()).map_or(Access::Nobody, Access::Token);
                let routes = (admin_routes.merge(levers::routes(&shared, access)))
                    .layer(middleware::from_fn(from_this_host));
                let accept = async || Ok(listener.accept().await?.0);
                serve_on(accept, routes, passed_on).await;
            }
            AdminListener::Unix(listener, file) => {
                let routes = admin_routes.merge(levers::routes(&shared, Access::Socket));
                let accept = async || Ok(listener.accept().await?.0);
                let leaving = async {
                    passed_on.cancelled().await;
                    file.leave();
                };
                tokio::join!(serve_on(accept, routes, passed_on), leaving);
            }
            AdminListener::Nowhere => {}
        }
    };
    let listeners_end = async {
        passed_on.cancelled().await;
        // They ask the next process for what comes.
        shared.admin.end_streams();
    };
    tokio::join!(
        serve_on(
            async || Ok(probes.accept().await?.0),
            probe_routes,
            passed_on
        ),
        serve_on(
            async || Ok(metrics.accept().await?.0),
            at_their_address(metric_routes, shared.settings.metrics),
            passed_on
        ),
        admin,
        listeners_end,
    );
}

/// Answers only who names this host: a page that a browser loaded from elsewhere may have its own
/// name resolve to a loopback address, and would read what is answered.
async fn from_this_host(request: Request, next: Next) -> Response {
    let named = (request.headers().get(header::HOST)).and_then(|host| host.to_str().ok());
    if named.is_some_and(is_this_host) {
        return next.run(request).await;
    }
    let text = "name this host as it is bound: a loopback address, or localhost";
    levers::refused(StatusCode::MISDIRECTED_REQUEST, "ZG0972", &text)
}

/// Routes of which a loopback address tells nothing to whoever names another host.
fn at_their_address(routes: Router, address: SocketAddr) -> Router {
    if address.ip().is_loopback() {
        routes.layer(middleware::from_fn(from_no_name))
    } else {
        routes
    }
}

/// As [`from_this_host`], for what is read from other hosts as well where it is forwarded to a loopback
/// address: by any number, since a name alone can be made to resolve to another.
async fn from_no_name(request: Request, next: Next) -> Response {
    let named = (request.headers().get(header::HOST)).and_then(|host| host.to_str().ok());
    if named.is_some_and(|host| is_this_host(host) || is_number(host)) {
        return next.run(request).await;
    }
    let text = "name this host by its address, or localhost\n";
    (StatusCode::MISDIRECTED_REQUEST, text).into_response()
}

/// Whether a Host header means a loopback address, whatever its port.
fn is_this_host(host: &str) -> bool {
    let Some(name) = name_of(host) else {
        return false;
    };
    name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        || name.eq_ignore_ascii_case("localhost")
}

/// Whether a Host header is an address.
fn is_number(host: &str) -> bool {
    name_of(host).is_some_and(|name| name.parse::<IpAddr>().is_ok())
}

/// A Host header without its port.
fn name_of(host: &str) -> Option<&str> {
    match host.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((name, rest))) if rest.is_empty() || rest.starts_with(':') => Some(name),
        Some(_) => None,
        None => Some(host.split_once(':').map_or(host, |(name, _port)| name)),
    }
}

async fn serve_on<S>(
    accept: impl AsyncFn() -> io::Result<S>,
    routes: Router,
    passed_on: &CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut open = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = accept() => accepted,
            Some(_ended) = open.join_next() => continue,
            () = passed_on.cancelled() => break,
        };
        let Ok(stream) = stream else {
            tokio::time::sleep(BACK_OFF).await;
            continue;
        };
        // Over the limit: closed at once, so that a probe sees it and nothing piles up.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let answer = TowerToHyperService::new(routes.clone());
        let closes = passed_on.clone();
        let service = service_fn(move |request| {
            let (answering, closes) = (answer.call(request), closes.clone());
            async move {
                let mut response = answering.await?;
                if closes.is_cancelled() {
                    // The next question is for another process.
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(header::CONNECTION, close);
                }
                Ok::<_, Infallible>(response)
            }
        });
        let passed_on = passed_on.clone();
        open.spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = pin!(connection);
            let leaving = async {
                passed_on.cancelled().await;
                // What is on its way is answered: closed at once, it would be lost.
                tokio::time::sleep(LAST_WORDS / 2).await;
            };
            let serving = async {
                // The connection is pinned outside; the other arm only waits.
                tokio::select! {
                    ended = &mut connection => return ended,
                    () = leaving => connection.as_mut().graceful_shutdown(),
                }
                connection.await
            };
            // Whatever ends it, there is nobody to tell.
            drop(tokio::time::timeout(CONNECTION_TIMEOUT, serving).await);
            drop(place);
        });
    }
    while open.join_next().await.is_some() {}
}

async fn ready(
    State(shared): State<Arc<Shared>>,
) -> Result<&'static str, (StatusCode, &'static str)> {
    if shared.ready.load(Ordering::Acquire) {
        Ok("ready\n")
    } else {
        Err((StatusCode::SERVICE_UNAVAILABLE, "not ready\n"))
    }
}

/// OpenMetrics for whoever asks for it, else the text format that every scraper reads.
async fn metrics_text(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    shared.metrics.log_dropped(shared.log.dropped());
    shared.metrics.workers_stalled(shared.pulses.stalled());
    let asked = headers.get_all(header::ACCEPT).iter();
    let is_open = asked.into_iter().any(|accepted| {
        (accepted.to_str()).is_ok_and(|text| text.contains("application/openmetrics-text"))
    });
    beside(move || {
        let text = shared.metrics.encode(Some(shared.published.load_full()));
        if is_open {
            ([(header::CONTENT_TYPE, OPEN_TYPE)], text).into_response()
        } else {
            ([(header::CONTENT_TYPE, CLASSIC_TYPE)], classic(&text)).into_response()
        }
    })
    .await
}

/// Makes an answer on another thread: one of ten thousand routes takes its time, and the control
/// thread has other work.
async fn beside(make: impl FnOnce() -> Response + Send + 'static) -> Response {
    match tokio::task::spawn_blocking(make).await {
        Ok(response) => response,
        Err(_panicked) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn server_info(State(shared): State<Arc<Shared>>) -> Response {
    let published = shared.published.load();
    let node = &published.snapshot.node;
    as_json(&json!({
        "version": env!("CARGO_PKG_VERSION"),
        "name": &*node.name,
        "cluster": &*node.cluster,
        "locality": node.locality.to_string(),
        "trust_domain": node.trust_domain.to_string(),
        "state": if shared.ready.load(Ordering::Acquire) { "LIVE" } else { "DRAINING" },
        "uptime_seconds": shared.started.elapsed().as_secs(),
        "config_generation": published.generation,
        "config_version": &*published.snapshot.version,
        "connections": shared.open.load(Ordering::Relaxed),
    }))
}

/// The configuration that serves: the xDS resources it was made from, and where the gateway's own
/// certificate is read from, never what a key holds.
async fn config_dump(State(shared): State<Arc<Shared>>) -> Response {
    beside(move || {
        let published = shared.published.load_full();
        as_json(&json!({
            "generation": published.generation,
            "version": &*published.snapshot.version,
            "resources": shared.resources.load().to_json(),
            "findings": Value::clone(&shared.findings.load()),
        }))
    })
    .await
}

async fn clusters(State(shared): State<Arc<Shared>>) -> Response {
    beside(move || clusters_json(&shared.published.load_full())).await
}

fn clusters_json(published: &Published) -> Response {
    let mut all = BTreeMap::new();
    for (cluster, shares) in published
        .snapshot
        .clusters
        .iter()
        .zip(&published.shares.clusters)
    {
        let levels: Vec<Value> = cluster
            .levels
            .iter()
            .zip(&shares.levels)
            .map(|(level, share)| {
                let endpoints: Vec<Value> = level
                    .members
                    .iter()
                    .map(|ix| {
                        let endpoint = cluster.endpoint(*ix);
                        let status = shares.endpoints.get(ix.0).copied();
                        json!({
                            "address": endpoint.address.to_string(),
                            "backend": &*endpoint.backend,
                            "locality": endpoint.locality.to_string(),
                            "weight": endpoint.weight,
                            "given": shares.parts.get(ix.0).unwrap_or(&1.0),
                            "status": status.map(EndpointStatus::label),
                        })
                    })
                    .collect();
                json!({ "name": &*level.name, "share": share, "endpoints": endpoints })
            })
            .collect();
        all.insert(
            &*cluster.name,
            json!({ "too_few": shares.too_few, "levels": levels }),
        );
    }
    as_json(&json!({ "clusters": all }))
}

async fn listeners(State(shared): State<Arc<Shared>>) -> Response {
    let published = shared.published.load();
    let all: Vec<Value> = published
        .snapshot
        .listeners
        .iter()
        .map(|listener| {
            json!({
                "name": &*listener.name,
                "address": listener.address.to_string(),
                "role": listener.role.label(),
            })
        })
        .collect();
    as_json(&json!({ "listeners": all }))
}

/// A document as it is read by programs.
fn as_json(document: &Value) -> Response {
    (
        [(header::CONTENT_TYPE, "application/json")],
        document.to_string(),
    )
        .into_response()
}

async fn certs(State(shared): State<Arc<Shared>>) -> Response {
    let credentials = shared.credentials.load();
    as_json(&json!({
        "spiffe_id": credentials.id().map(SpiffeId::as_str),
        "not_before": credentials.not_before(),
        "not_after": credentials.not_after(),
        "generation": credentials.generation(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        let metadata = std::fs::symlink_metadata(path).unwrap();
        assert!(metadata.file_type().is_socket());
        metadata.mode() & 0o777
    }

    #[tokio::test]
    async fn the_admin_socket_is_of_its_user_alone_and_replaces_only_one_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/admin.sock");
        let first = bind_unix(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        let files = std::fs::read_dir(path.parent().unwrap()).unwrap();
        assert_eq!(files.count(), 1, "nothing else is left");
        let in_use = bind_unix(&path).unwrap_err();
        assert_eq!(in_use.kind(), io::ErrorKind::AddrInUse);
        // A gateway that was killed leaves its file.
        let AdminListener::Unix(listener, file) = first else {
            panic!("a Unix socket");
        };
        drop(listener);
        let second = bind_unix(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        drop(file);
        assert_eq!(mode(&path), 0o600, "it is not the first one's file");
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn only_a_loopback_host_is_this_host() {
        for host in [
            "127.0.0.1:15000",
            "127.0.0.1",
            "127.9.9.9:1",
            "localhost:15000",
            "LocalHost",
            "[::1]:15000",
            "[::1]",
        ] {
            assert!(is_this_host(host), "{host}");
        }
        for host in [
            "",
            ":15000",
            "10.0.0.1:15000",
            "example.com:15000",
            "localhost.example.com",
            "127.0.0.1.example.com:15000",
            "[2001:db8::1]:15000",
        ] {
            assert!(!is_this_host(host), "{host}");
            assert_eq!(
                is_number(host),
                host.contains("10.") || host.contains("2001"),
                "{host}"
            );
        }
    }

    #[tokio::test]
    async fn a_file_in_the_way_of_the_admin_socket_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.txt");
        std::fs::write(&path, "precious").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for taken in [path.as_path(), link.as_path(), folder.path()] {
            let refused = bind_unix(taken).unwrap_err().to_string();
            assert!(refused.contains("move it away"), "{refused}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
