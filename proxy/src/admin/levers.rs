//! What the admin interface changes: each lever is a POST, and leaves an event in the journal; and
//! what it does not tell everybody: the tap, which shows who asks for what.
//!
//! On the Unix socket, whose mode lets its user alone in, nothing more is asked. On a loopback
//! address, where every process of the host gets in, the token of `adminToken` is, and without one
//! nothing can be changed or tapped.

use std::fmt::Display;
use std::fs::Metadata;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};
use zeugma_core::fleet::Evacuation;
use zeugma_core::locality::{Locality, LocalityError};
use zeugma_core::simulate::Lever;

use super::{as_json, beside, check, tap};
use crate::control::decided::{Care, Granted, Wish, WishError};
use crate::control::drill::LASTS_MAX;
use crate::logging::LevelError;
use crate::runtime::Shared;
use crate::simulation::RATE;

/// The highest rate that is played.
const RATE_MAX: f64 = 1e6;

/// The shortest token.
const TOKEN_BYTES_MIN: usize = 16;
/// The longest token.
const TOKEN_BYTES_MAX: usize = 256;

/// Who may change or tap something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Access {
    /// Whoever gets in: the socket is of its user alone.
    Socket,
    /// Whoever knows the token of this file.
    Token(PathBuf),
    /// Nobody.
    Nobody,
}

/// Why a lever is refused.
#[derive(Debug, thiserror::Error)]
enum AccessError {
    #[error(
        "nothing can be changed or tapped on an address without a token; set spec.admin to a unix socket, or spec.adminToken to a file"
    )]
    Nobody,
    #[error("send the token of spec.adminToken as `authorization: Bearer TOKEN`")]
    Unknown,
    #[error("the token of spec.adminToken cannot be used: {0}")]
    Unusable(#[from] io::Error),
}

impl AccessError {
    /// The answer's status, and the code in [`zeugma_core::codes`].
    const fn answer(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Nobody => (StatusCode::FORBIDDEN, "ZG0962"),
            Self::Unknown => (StatusCode::UNAUTHORIZED, "ZG0963"),
            Self::Unusable(_) => (StatusCode::INTERNAL_SERVER_ERROR, "ZG0964"),
        }
    }
}

/// The paths that change something, and the tap.
pub(super) fn routes(shared: &Arc<Shared>, access: Access) -> Router {
    let access = Arc::new(access);
    Router::new()
        .route("/drain_listeners", post(drain))
        .route("/quitquitquit", post(quit))
        .route("/api/v1/failover/evacuate", post(evacuate))
        .route("/api/v1/failover/reset", post(reset))
        .route("/api/v1/failover/drill", post(drill))
        .route("/api/v1/failover/drill/renew", post(renew_drill))
        .route("/api/v1/failover/drill/end", post(end_drill))
        .route("/api/v1/check", post(check::check))
        .route("/api/v1/tap", get(tap::tap))
        .route("/logging", get(logging).post(logging))
        .with_state(Arc::clone(shared))
        .layer(middleware::from_fn_with_state(access, authorized))
}

/// What was asked for is not done: why, and the code that `zeugma explain` knows more of.
pub(super) fn refused(status: StatusCode, code: &str, why: &dyn Display) -> Response {
    (status, format!("{why} ({code})\n")).into_response()
}

async fn authorized(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    match access.check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => {
            let (status, code) = error.answer();
            refused(status, code, &error)
        }
    }
}

impl Access {
    fn check(&self, headers: &HeaderMap) -> Result<(), AccessError> {
        let path = match self {
            Self::Socket => return Ok(()),
            Self::Nobody => return Err(AccessError::Nobody),
            Self::Token(path) => path,
        };
        // Read each time: another token needs no restart.
        let token = read_token(path)?;
        let said = (headers.get(header::AUTHORIZATION))
            .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        if said.is_some_and(|said| is_same(said, token.as_bytes())) {
            Ok(())
        } else {
            Err(AccessError::Unknown)
        }
    }
}

/// Compares every byte, so that the time says nothing of which is wrong.
fn is_same(said: &[u8], token: &[u8]) -> bool {
    let differs = (said.iter().zip(token)).fold(0, |differs, (a, b)| differs | (a ^ b));
    said.len() == token.len() && differs == 0
}

fn read_token(path: &Path) -> io::Result<String> {
    let file = std::fs::File::open(path)?;
    check_mode(&file.metadata()?)?;
    let mut text = String::new();
    // A line end may follow; one byte more tells a longer one.
    file.take(TOKEN_BYTES_MAX as u64 + 2)
        .read_to_string(&mut text)?;
    let token = text.trim_end();
    let is_token = (TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len())
        && token.bytes().all(|byte| byte.is_ascii_graphic());
    if is_token {
        Ok(token.to_owned())
    } else {
        Err(io::Error::other(format!(
            "it is not one line of {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} visible ASCII characters"
        )))
    }
}

fn check_mode(metadata: &Metadata) -> io::Result<()> {
    if metadata.mode() & 0o077 == 0 {
        Ok(())
    } else {
        Err(io::Error::other(
            "others may read or write it; `chmod 600` it",
        ))
    }
}

async fn drain(State(shared): State<Arc<Shared>>) -> &'static str {
    shared
        .admin
        .journal
        .add("lever", json!({ "lever": "drain" }));
    tracing::info!(code = "ZG0902", "draining: asked by the admin interface");
    shared.admin.levers.drain.notify_one();
    "draining\n"
}

async fn quit(State(shared): State<Arc<Shared>>) -> &'static str {
    shared
        .admin
        .journal
        .add("lever", json!({ "lever": "quit" }));
    tracing::info!(
        code = "ZG0902",
        "draining without a delay: asked by the admin interface"
    );
    shared.admin.levers.quit.notify_one();
    "draining without a delay\n"
}

/// What is meant by a lever of failover: one of these, and for a backend its route too.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Of {
    locality: Option<String>,
    peer: Option<String>,
    backend: Option<String>,
    /// `namespace/name`.
    route: Option<String>,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    force: bool,
    /// How long a drill lasts.
    seconds: Option<f64>,
    /// Requests in a second to each service, where it is only tried.
    rate: Option<f64>,
}

/// Which drill is meant.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfDrill {
    id: u64,
}

/// What failover is asked for cannot be understood.
#[derive(Debug, thiserror::Error)]
enum OfError {
    #[error("say one of `locality`, `peer`, or `backend` with its `route`")]
    NotOne,
    #[error("`locality`: {0}")]
    Locality(#[from] LocalityError),
    #[error("`seconds` of a drill is 1 to {}", LASTS_MAX.as_secs())]
    Seconds,
    #[error("`rate` is more than 0 and at most {RATE_MAX} requests in a second")]
    Rate,
}

impl Of {
    /// What is meant but for a route alone.
    fn evacuation(&self) -> Result<Evacuation, OfError> {
        match (&self.locality, &self.peer, &self.backend, &self.route) {
            (Some(place), None, None, None) => Ok(Evacuation::Locality(Locality::parse(place)?)),
            (None, Some(peer), None, None) => Ok(Evacuation::Peer(peer.as_str().into())),
            (None, None, Some(backend), Some(route)) => Ok(Evacuation::Backend {
                route: route.as_str().into(),
                backend: backend.as_str().into(),
            }),
            _ => Err(OfError::NotOne),
        }
    }

    /// What is to be reset.
    fn lever_to_reset(&self) -> Result<Lever, OfError> {
        match (&self.locality, &self.peer, &self.backend, &self.route) {
            (None, None, None, Some(route)) => Ok(Lever::Reset(route.as_str().into())),
            _ => self.evacuation().map(Lever::End),
        }
    }

    fn lasts(&self) -> Result<Duration, OfError> {
        let lasts = (self.seconds).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let range = Duration::from_secs(1)..=LASTS_MAX;
        lasts
            .filter(|lasts| range.contains(lasts))
            .ok_or(OfError::Seconds)
    }

    fn rate(&self) -> Result<f64, OfError> {
        let rate = self.rate.unwrap_or(RATE);
        (rate > 0.0 && rate <= RATE_MAX)
            .then_some(rate)
            .ok_or(OfError::Rate)
    }
}

/// Takes all traffic off a place.
async fn evacuate(State(shared): State<Arc<Shared>>, Query(of): Query<Of>) -> Response {
    let care = if of.force { Care::Force } else { Care::Careful };
    let wish = of.evacuation().map(|evacuation| match of.dry_run {
        true => Wish::Try(Lever::Evacuate(evacuation), None),
        false => Wish::Evacuate(evacuation, care),
    });
    ask(&shared, wish, of.rate()).await
}

/// Lets traffic come back.
async fn reset(State(shared): State<Arc<Shared>>, Query(of): Query<Of>) -> Response {
    let wish = of.lever_to_reset().map(|lever| match lever {
        lever if of.dry_run => Wish::Try(lever, None),
        Lever::Reset(route) => Wish::Reset(route),
        Lever::End(evacuation) | Lever::Evacuate(evacuation) => Wish::End(evacuation),
    });
    ask(&shared, wish, of.rate()).await
}

/// Takes all traffic off a place for a time.
async fn drill(State(shared): State<Arc<Shared>>, Query(of): Query<Of>) -> Response {
    let wish = of.evacuation().and_then(|evacuation| {
        let lasts = of.lasts()?;
        Ok(match of.dry_run {
            true => Wish::Try(Lever::Evacuate(evacuation), Some(lasts)),
            false => Wish::Drill(evacuation, lasts),
        })
    });
    ask(&shared, wish, of.rate()).await
}

/// Says that whoever began a drill is there, and how it stands.
async fn renew_drill(State(shared): State<Arc<Shared>>, Query(of): Query<OfDrill>) -> Response {
    ask(&shared, Ok(Wish::Renew(of.id)), Ok(RATE)).await
}

/// Ends a drill before its time.
async fn end_drill(State(shared): State<Arc<Shared>>, Query(of): Query<OfDrill>) -> Response {
    ask(&shared, Ok(Wish::EndDrill(of.id)), Ok(RATE)).await
}

async fn ask(shared: &Shared, wish: Result<Wish, OfError>, rate: Result<f64, OfError>) -> Response {
    let (wish, rate) = match wish.and_then(|wish| Ok((wish, rate?))) {
        Ok(asked) => asked,
        Err(error) => return refused(StatusCode::BAD_REQUEST, "ZG0438", &error),
    };
    match shared.admin.levers.failover.ask(wish).await {
        Ok(Granted::Done(answer)) => answered(answer),
        Ok(Granted::Ground(ground)) => beside(move || answered(ground.play(rate))).await,
        Err(error) => {
            let (status, code) = match &error {
                WishError::Nothing(..) | WishError::NotEvacuated(_) | WishError::NoRoute(..) => {
                    (StatusCode::NOT_FOUND, "ZG0438")
                }
                WishError::NoDrill => (StatusCode::GONE, "ZG0438"),
                WishError::LeavesNothing(_) | WishError::DrillLeavesNothing(_) => {
                    (StatusCode::CONFLICT, "ZG0437")
                }
                WishError::Already(_) | WishError::Drilling => (StatusCode::CONFLICT, "ZG0438"),
                WishError::HandingOver | WishError::Busy => {
                    (StatusCode::SERVICE_UNAVAILABLE, "ZG0438")
                }
            };
            refused(status, code, &error)
        }
    }
}

fn answered(mut answer: Value) -> Response {
    if let Some(fields) = answer.as_object_mut() {
        fields.insert("apiVersion".to_owned(), "api.zeugma.dev/v1".into());
    }
    as_json(&answer)
}

/// What the log tells; `?level=debug` and `?zeugma_proxy::probe=debug` change it, by POST.
async fn logging(
    method: Method,
    State(shared): State<Arc<Shared>>,
    Query(levels): Query<Vec<(String, String)>>,
) -> Response {
    let logging = &shared.admin.logging;
    let is_change = method == Method::POST && !levels.is_empty();
    let done = if is_change {
        logging.set(&levels)
    } else {
        Ok(())
    };
    match done.and_then(|()| logging.filter()) {
        Ok(filter) => {
            if is_change {
                let data = json!({ "lever": "logging", "filter": filter });
                shared.admin.journal.add("lever", data);
                tracing::info!(code = "ZG0967", filter, "what the log tells was changed");
            }
            as_json(&json!({ "apiVersion": "api.zeugma.dev/v1", "filter": filter }))
        }
        Err(error @ LevelError::NotOurs) => refused(StatusCode::CONFLICT, "ZG0968", &error),
        Err(error) => refused(StatusCode::BAD_REQUEST, "ZG0968", &error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use axum::http::HeaderValue;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn said(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))])
    }

    fn write(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_lever_on_an_address_wants_the_token_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        write(&path, &format!("{TOKEN}\n"), 0o600);
        let access = Access::Token(path);
        assert!(access.check(&said("Bearer 0123456789abcdef")).is_ok());
        for wrong in [
            "Bearer 0123456789abcdeg",
            "Bearer 0123456789abcde",
            "Bearer ",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
        ] {
            let error = access.check(&said(wrong)).unwrap_err();
            assert!(matches!(error, AccessError::Unknown), "{wrong}: {error}");
        }
        assert!(access.check(&HeaderMap::new()).is_err());
        assert!(Access::Socket.check(&HeaderMap::new()).is_ok());
        let nobody = Access::Nobody.check(&said("Bearer 0123456789abcdef"));
        assert!(matches!(nobody, Err(AccessError::Nobody)));
    }

    #[test]
    fn a_token_that_others_may_read_or_that_is_none_opens_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let access = Access::Token(path.clone());
        let long = "x".repeat(TOKEN_BYTES_MAX + 1);
        for (text, mode, why) in [
            (TOKEN, 0o640, "chmod 600"),
            (TOKEN, 0o602, "chmod 600"),
            ("short", 0o600, "visible ASCII"),
            ("0123456789 abcdef", 0o600, "visible ASCII"),
            (long.as_str(), 0o600, "visible ASCII"),
            ("", 0o600, "visible ASCII"),
        ] {
            write(&path, text, mode);
            let error = access.check(&said("Bearer 0123456789abcdef")).unwrap_err();
            assert!(error.to_string().contains(why), "{text}: {error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(access.check(&said("Bearer 0123456789abcdef")).is_err());
    }
}
