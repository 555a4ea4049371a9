//! `zeugma ca inspect`: what certificates say, for people. Nothing is trusted, nothing is refused.

use std::io::{self, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::json;

use super::manage::object;
use super::view::View;
use super::{CaError, Output, Place, print, print_json};

/// How long a server may take from the first packet to its certificate.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// A file (PEM, DER or SPIFFE bundle), `-` for standard input, or `host:port` of a TLS server
    #[arg(value_name = "FILE|HOST:PORT|-")]
    what: String,
    /// The server name to ask for [default: the host, if it is a name]
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
}

/// Why a server's certificate could not be seen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("`{0}` is not a server name; give --sni NAME")]
    Name(String),
    #[error("cannot connect to {address}")]
    Connect {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("{address} presented no certificate; is it a TLS 1.3 server?")]
    Handshake {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
}

impl ProbeError {
    /// Its code in [`zeugma_core::codes`].
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::Name(_) | Self::Connect { .. } | Self::Handshake { .. } => "ZG0228",
            Self::Tls(_) => "ZG0908",
        }
    }
}

pub(super) fn inspect(place: &Place, args: &InspectArgs) -> Result<ExitCode, CaError> {
    let path = PathBuf::from(&args.what);
    let (chain, secured) = match args.what.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() && !path.exists() => {
            let seen = probe(&args.what, args.sni.as_deref().unwrap_or(host))?;
            (seen.chain, Some(seen.summary))
        }
        _ => (super::files::certificates(&path)?, None),
    };
    let now = time::OffsetDateTime::now_utc();
    let views: Vec<View> = chain.iter().map(|der| View::of(der)).collect();
    if place.output == Output::Json {
        return print_json(object(json!({
            "kind": "CertificateList",
            "connection": secured,
            "certificates": views.iter().map(View::json).collect::<Vec<_>>(),
        })));
    }
    let mut text = secured.map_or_else(String::new, |summary| format!("{summary}\n\n"));
    let count = views.len();
    for (number, view) in (1..).zip(&views) {
        if number > 1 {
            text.push('\n');
        }
        text.push_str(&format!(
            "certificate {number} of {count}: {}",
            view.text(now)
        ));
    }
    print(&text)
}

struct Seen {
    chain: Vec<CertificateDer<'static>>,
    summary: String,
}

/// Connects, takes the certificates the server presents, and goes away.
fn probe(address: &str, name: &str) -> Result<Seen, ProbeError> {
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let server_name =
        ServerName::try_from(name.to_owned()).map_err(|_| ProbeError::Name(name.to_owned()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let onlooker = Arc::new(Onlooker {
        seen: Mutex::new(Vec::new()),
        provider: Arc::clone(&provider),
    });
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(ProbeError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&onlooker) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let mut tls = ClientConnection::new(Arc::new(config), server_name).map_err(ProbeError::Tls)?;
    let outcome =
        connect(address).and_then(|mut socket| shake_hands(&mut tls, &mut socket, address));
    let chain = onlooker
        .seen
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    // A server that wants a certificate of ours ends the handshake after showing its own.
    match outcome {
        Err(error) if chain.is_empty() => return Err(error),
        _ => {}
    }
    let group = tls
        .negotiated_key_exchange_group()
        .map(|group| format!(", {:?}", group.name()));
    let summary = format!(
        "{address} speaks TLS 1.3{}; nothing below was verified",
        group.unwrap_or_default()
    );
    Ok(Seen { chain, summary })
}

fn connect(address: &str) -> Result<TcpStream, ProbeError> {
    let fail = |source| ProbeError::Connect {
        address: address.to_owned(),
        source,
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in zeugma_proxy::addresses_of(address).map_err(fail)? {
        match TcpStream::connect_timeout(&candidate, PROBE_TIMEOUT) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(fail(last))
}

fn shake_hands(
    tls: &mut ClientConnection,
    socket: &mut TcpStream,
    address: &str,
) -> Result<(), ProbeError> {
    let started = Instant::now();
    let mut step = || -> io::Result<bool> {
        let left = PROBE_TIMEOUT.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        socket.set_write_timeout(Some(left))?;
        while tls.wants_write() {
            tls.write_tls(socket)?;
        }
        if !tls.is_handshaking() {
            return Ok(false);
        }
        if tls.read_tls(socket)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        tls.process_new_packets().map_err(io::Error::other)?;
        Ok(true)
    };
    loop {
        match step() {
            Ok(true) => {}
            Ok(false) => break,
            Err(source) => {
                return Err(ProbeError::Handshake {
                    address: address.to_owned(),
                    source,
                });
            }
        }
    }
    tls.send_close_notify();
    // The server may be gone already; its certificates are here.
    tls.write_tls(socket).ok();
    socket.flush().ok();
    Ok(())
}

/// Keeps what a server presents and accepts it: this connection carries nothing.
#[derive(Debug)]
struct Onlooker {
    seen: Mutex<Vec<CertificateDer<'static>>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Onlooker {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clear();
        seen.push(end_entity.clone().into_owned());
        seen.extend(intermediates.iter().map(|der| der.clone().into_owned()));
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // The server does hold the key of what it shows.
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
