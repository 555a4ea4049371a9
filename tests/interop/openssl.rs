//! OpenSSL's command, as a verifier and as a TLS client.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::pki::Svid;
use crate::support::peers::{self, Debian};

/// OpenSSL, where it is installed.
#[derive(Debug)]
pub(crate) struct Openssl(PathBuf);

/// What `s_client` is to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    /// Where to connect.
    pub(crate) to: SocketAddr,
    /// The SNI.
    pub(crate) sni: &'a str,
    /// The anchor the server's chain must lead to.
    pub(crate) anchor: &'a Path,
    /// What to present.
    pub(crate) svid: Option<&'a Svid>,
    /// An option of the protocol version, such as `-tls1_3`.
    pub(crate) version: &'a str,
}

/// What `s_client` printed.
#[derive(Debug)]
pub(crate) struct Session {
    /// Everything: certificates, parameters, the answer.
    pub(crate) output: String,
    /// What went wrong, alerts among it.
    pub(crate) errors: String,
}

impl Openssl {
    /// Looks for it; `None` has been said aloud and the test may return.
    pub(crate) fn find() -> Result<Option<Self>> {
        Ok(match peers::debian("openssl", "openssl")? {
            Debian::Found(path) => Some(Self(path)),
            Debian::Missing => None,
        })
    }

    /// Verifies a chain file, leaf first, to `anchor` by the strict reading of RFC 5280.
    pub(crate) fn verify(&self, anchor: &Path, chain: &Path, purpose: &str) -> Result<()> {
        let output = Command::new(&self.0)
            .args(["verify", "-x509_strict", "-no-CApath", "-no-CAstore"])
            .args(["-purpose", purpose, "-CAfile"])
            .arg(anchor)
            .arg("-untrusted")
            .arg(chain)
            .arg(chain)
            .output()?;
        if !output.status.success() {
            bail!(
                "openssl verify {}: {}",
                chain.display(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// A new key and a signing request for it, `<folder>/<name>.csr`; `new_key` is `ec:<curve>` or
    /// what `req -newkey` takes.
    pub(crate) fn request(&self, folder: &Path, name: &str, new_key: &str) -> Result<PathBuf> {
        let request = folder.join(format!("{name}.csr"));
        let mut command = Command::new(&self.0);
        command.args(["req", "-new", "-nodes", "-subj", "/CN=ignored"]);
        match new_key.strip_prefix("ec:") {
            Some(curve) => command
                .args(["-newkey", "ec", "-pkeyopt"])
                .arg(format!("ec_paramgen_curve:{curve}")),
            None => command.args(["-newkey", new_key]),
        };
        let output = command
            .arg("-keyout")
            .arg(folder.join(format!("{name}.key")))
            .arg("-out")
            .arg(&request)
            .output()?;
        if !output.status.success() {
            bail!(
                "openssl req {new_key}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(request)
    }

    /// A TLS session in which one HTTP/1.1 request is sent; ends when the server closes.
    pub(crate) fn get(&self, call: &Call<'_>, host: &str, path: &str) -> Result<Session> {
        let mut command = Command::new("timeout");
        command
            .args(["--signal=KILL", "30"])
            .arg(&self.0)
            .args([
                "s_client",
                "-ign_eof",
                "-x509_strict",
                "-verify_return_error",
            ])
            .args(["-no-CApath", "-no-CAstore", "-alpn", "http/1.1"])
            .args([call.version, "-servername", call.sni])
            .args(["-connect", &call.to.to_string(), "-CAfile"])
            .arg(call.anchor);
        if let Some(svid) = call.svid {
            command.arg("-cert").arg(&svid.certificate);
            command.arg("-cert_chain").arg(&svid.certificate);
            command.arg("-key").arg(&svid.key);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("standard input")?;
        // A server that refused the handshake is gone before it reads this.
        write!(
            stdin,
            "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
        )
        .ok();
        drop(stdin);
        let output = child.wait_with_output()?;
        Ok(Session {
            output: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}
