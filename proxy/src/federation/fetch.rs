//! One look at a bundle endpoint (SPIFFE_Federation.md §5.2): verified, bounded, and nothing of ours
//! sent but the question (F4: a server must not ask for a client's certificate).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::time::timeout;
use zeugma_core::identity::TrustDomain;
use zeugma_core::line::{beginning, with_causes};
use zeugma_xds::{BundleEndpoint, BundleProfile, BundleUrl};

use crate::resolve;
use crate::runtime::Shared;
use crate::tls::{
    BUNDLE_BYTES_MAX, Bundle, BundleError, PeerSlot, TlsStream, endpoint_config, web_config,
};
use crate::transport::{Prefixed, Stream};
use crate::upstream::{self, First};

/// How long all of it may take, redirects included.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long one connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How many redirects are followed (F7).
const REDIRECTS_MAX: u32 = 5;
/// The most characters that are told of an address to which a server sends us.
const SHOWN_MAX: usize = 300;
/// What we say of ourselves.
const USER_AGENT: &str = concat!("zeugma/", env!("CARGO_PKG_VERSION"));
/// The authorities for the web, as systems have them.
const ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Where they are, if not there.
const ROOTS_VARIABLE: &str = "SSL_CERT_FILE";
/// The largest file of them.
const ROOTS_BYTES_MAX: u64 = 16 << 20;

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// Too slow.
    #[error("no whole answer within {TIMEOUT:?}")]
    Timeout,
    /// The name has no addresses.
    #[error("{0}")]
    Name(String),
    /// TCP.
    #[error("{0} cannot be connected: {1}")]
    Connect(String, std::io::Error),
    /// There is nothing to verify web sites with.
    #[error(
        "no authorities for the web: {0}; install them (ca-certificates), or set SSL_CERT_FILE"
    )]
    Roots(String),
    /// It is not whom we expect, or does not speak TLS 1.3.
    #[error("{0} is not verified: {1}")]
    Tls(String, String),
    /// No HTTP.
    #[error("{0} did not answer as HTTP: {1}")]
    Http(String, hyper::Error),
    /// Another status.
    #[error("{0} answered {1}")]
    Status(String, StatusCode),
    /// A redirect that is not followed.
    #[error("{0} leads elsewhere, and is not followed: {1}")]
    Redirect(String, String),
    /// Over the limit, or cut short.
    #[error("the answer of {0} broke off or is over 1 MiB")]
    Body(String),
    /// It is no bundle that can be used.
    #[error("{}", with_causes(.0))]
    Bundle(BundleError),
}

/// A bundle, and the document it was read from.
pub(super) type Fetched = (Bundle, Bytes);

/// Asks once.
pub(super) async fn fetch(
    shared: &Shared,
    domain: &TrustDomain,
    endpoint: &BundleEndpoint,
) -> Result<Fetched, FetchError> {
    let looking = Box::pin(follow(shared, endpoint));
    let (url, document) = match timeout(TIMEOUT, looking).await {
        Ok(found) => found?,
        Err(_elapsed) => return Err(FetchError::Timeout),
    };
    let named = PathBuf::from(shown(&url));
    let bundle = Bundle::parse(&document, domain.clone(), &named).map_err(FetchError::Bundle)?;
    Ok((bundle, document))
}

/// An address as it is told.
fn shown(url: &BundleUrl) -> String {
    beginning(&url.to_string(), SHOWN_MAX)
}

/// Follows temporary redirects; each target is verified as the first is (F7).
async fn follow(
    shared: &Shared,
    endpoint: &BundleEndpoint,
) -> Result<(BundleUrl, Bytes), FetchError> {
    let mut url = endpoint.url.clone();
    for _ in 0..=REDIRECTS_MAX {
        match Box::pin(ask(shared, &url, &endpoint.profile)).await? {
            Answer::Document(document) => return Ok((url, document)),
            Answer::Elsewhere(next) => url = next,
        }
    }
    let first = shown(&endpoint.url);
    let many = format!("over {REDIRECTS_MAX} redirects");
    Err(FetchError::Redirect(first, many))
}

enum Answer {
    Document(Bytes),
    Elsewhere(BundleUrl),
}

async fn ask(
    shared: &Shared,
    url: &BundleUrl,
    profile: &BundleProfile,
) -> Result<Answer, FetchError> {
    let shown = shown(url);
    let stream = connect(shared, url, profile).await?;
    let http = |error| FetchError::Http(shown.clone(), error);
    let request = Request::get(&url.path)
        .header(header::HOST, url.authority())
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new());
    let request = request.map_err(|error| FetchError::Name(error.to_string()))?;
    let (mut send, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let asking = async {
        let response = send.send_request(request).await.map_err(http)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::FOUND | StatusCode::SEE_OTHER | StatusCode::TEMPORARY_REDIRECT => {
                return elsewhere(url, &response).map(Answer::Elsewhere);
            }
            other => return Err(FetchError::Status(shown.clone(), other)),
        }
        let most = usize::try_from(BUNDLE_BYTES_MAX).unwrap_or(usize::MAX);
        let body = Limited::new(response.into_body(), most).collect().await;
        let body = body.map_err(|_| FetchError::Body(shown.clone()))?;
        Ok(Answer::Document(body.to_bytes()))
    };
    tokio::pin!(asking);
    tokio::select! {
        // Both are futures of this call: whichever ends first, the other is dropped with it.
        answer = &mut asking => answer,
        // What had come by then is read.
        _ended = connection => asking.await,
    }
}

/// Where a redirect leads.
fn elsewhere(
    from: &BundleUrl,
    response: &http::Response<Incoming>,
) -> Result<BundleUrl, FetchError> {
    let to = (response.headers().get(header::LOCATION)).and_then(|to| to.to_str().ok());
    let refused = |why: &str| FetchError::Redirect(shown(from), why.to_owned());
    let to = to.ok_or_else(|| refused("it does not say where"))?;
    if to.starts_with('/') && !to.starts_with("//") {
        let base = format!("https://{}", from.authority());
        return BundleUrl::parse(&(base + to)).map_err(|why| refused(&why));
    }
    BundleUrl::parse(to).map_err(|why| refused(&format!("`{}`: {why}", beginning(to, SHOWN_MAX))))
}

async fn connect(
    shared: &Shared,
    url: &BundleUrl,
    profile: &BundleProfile,
) -> Result<Stream, FetchError> {
    let shown = shown(url);
    let addresses = resolve::addresses_now(&url.host, url.port).await;
    let addresses = addresses.map_err(FetchError::Name)?;
    let dialling = upstream::dial(&addresses, CONNECT_TIMEOUT, First::We);
    let dialled = match timeout(CONNECT_TIMEOUT, Box::pin(dialling)).await {
        Ok(dialled) => dialled,
        Err(_elapsed) => Err(std::io::ErrorKind::TimedOut.into()),
    };
    let (tcp, _) = dialled.map_err(|error| FetchError::Connect(shown.clone(), error))?;
    let unverified = |why: String| FetchError::Tls(shown.clone(), why);
    let name = ServerName::try_from(url.host.clone()).map_err(|e| unverified(e.to_string()))?;
    let (config, slot) = match profile {
        BundleProfile::Web => {
            let roots = tokio::task::spawn_blocking(web_roots).await;
            let roots = roots.map_err(|error| FetchError::Roots(error.to_string()))?;
            let config = web_config(roots.map_err(FetchError::Roots)?);
            (config.map_err(|e| unverified(e.to_string()))?, None)
        }
        BundleProfile::Spiffe(id) => {
            // F6: by the newest bundle that there is.
            let credentials = shared.credentials.load_full();
            let config = endpoint_config(&credentials, id);
            let (config, slot) = config.map_err(|e| unverified(e.to_string()))?;
            (config, Some(slot))
        }
    };
    let carrier = Prefixed::new(tcp, Vec::new());
    let shaking = Box::pin(TlsStream::connect(config, name, carrier));
    match timeout(CONNECT_TIMEOUT, shaking).await {
        Ok(Ok(stream)) => Ok(Stream::Originated(stream)),
        Ok(Err((error, _carrier))) => {
            let refusal = slot.and_then(|slot: PeerSlot| slot.refusal(&error));
            Err(unverified(
                refusal.map_or_else(|| error.to_string(), |r| r.to_string()),
            ))
        }
        Err(_elapsed) => Err(unverified(format!(
            "no handshake within {CONNECT_TIMEOUT:?}"
        ))),
    }
}

/// What web sites are verified with; read anew each time, for they are renewed.
fn web_roots() -> Result<Arc<RootCertStore>, String> {
    let named = std::env::var_os(ROOTS_VARIABLE).map(PathBuf::from);
    let path = named
        .or_else(|| (ROOTS.iter().map(PathBuf::from)).find(|path| path.is_file()))
        .ok_or_else(|| format!("none of {}", ROOTS.join(", ")))?;
    let bytes = read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut roots = RootCertStore::empty();
    // Those of a system may have kinds that nobody uses any more.
    let all = CertificateDer::pem_slice_iter(&bytes).filter_map(Result::ok);
    roots.add_parsable_certificates(all);
    if roots.is_empty() {
        return Err(format!("{}: no certificate in it", path.display()));
    }
    Ok(Arc::new(roots))
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(ROOTS_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}
