//! curl, for requests by a program we did not write.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::pki::Svid;

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The status code.
    pub(crate) status: u16,
    /// The version curl spoke: `1.1` or `2`.
    pub(crate) version: String,
    /// The headers by lower-case name; of several, the last.
    pub(crate) headers: BTreeMap<String, String>,
    /// The body, as text.
    pub(crate) body: String,
}

impl Answer {
    /// A header, empty where it is missing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// The version of HTTP to speak.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Version {
    /// HTTP/1.1.
    H1,
    /// HTTP/2 without TLS, with prior knowledge.
    H2,
}

/// One GET of `url`.
pub(crate) fn get(url: &str) -> Result<Answer> {
    run(&[], url)
}

/// One GET of `path` from the gateway at `address` in the name of `host`.
pub(crate) fn get_host(
    address: SocketAddr,
    host: &str,
    path: &str,
    version: Version,
) -> Result<Answer> {
    let version = match version {
        Version::H1 => "--http1.1",
        Version::H2 => "--http2-prior-knowledge",
    };
    run(
        &[version, "--header", &format!("host: {host}")],
        &format!("http://{address}{path}"),
    )
}

/// Any request; `arguments` as on curl's command line.
pub(crate) fn run(arguments: &[&str], url: &str) -> Result<Answer> {
    // The mark cannot be part of a header line, so what follows it is the body.
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--include", "--noproxy", "*"])
        .args([
            "--max-time",
            "30",
            "--write-out",
            "\n%{http_version} %{http_code}",
        ])
        .args(arguments)
        .arg(url)
        .output()
        .context("no curl; run `apt-get install curl`")?;
    if !output.status.success() {
        bail!("curl {url}: {}", String::from_utf8_lossy(&output.stderr));
    }
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// The status of what `to` answers in the name of `host`: by TLS to who has a certificate; `None` where
/// there is no answer.
pub(crate) fn status(
    to: SocketAddr,
    by: Option<&Svid>,
    host: &str,
    method: &str,
    path: &str,
) -> Result<Option<u16>> {
    status_with(to, by, (host, method, path), &[])
}

/// The same with headers.
pub(crate) fn status_with(
    to: SocketAddr,
    by: Option<&Svid>,
    (host, method, path): (&str, &str, &str),
    headers: &[&str],
) -> Result<Option<u16>> {
    let (scheme, port) = match by {
        Some(_) => ("https", 443),
        None => ("http", 80),
    };
    let to = format!("{host}:{port}:{to}");
    let mut arguments = vec![
        "--http1.1",
        "--path-as-is",
        "--insecure",
        "--connect-to",
        &to,
    ];
    match method {
        "HEAD" => arguments.push("--head"),
        _ => arguments.extend(["--request", method]),
    }
    let files = by.map(|by| {
        (
            by.certificate.display().to_string(),
            by.key.display().to_string(),
        )
    });
    if let Some((certificate, key)) = &files {
        arguments.extend(["--cert", certificate, "--key", key]);
    }
    for header in headers {
        arguments.extend(["--header", header]);
    }
    Ok(run(&arguments, &format!("{scheme}://{host}{path}"))
        .ok()
        .map(|answer| answer.status))
}

fn parse(text: &str) -> Result<Answer> {
    let (text, last) = text.rsplit_once('\n').context("curl's last line")?;
    let (version, status) = last.split_once(' ').context("curl's last line")?;
    let (head, body) = text.split_once("\r\n\r\n").context("no header section")?;
    let headers = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Ok(Answer {
        status: status.parse()?,
        version: version.to_owned(),
        headers,
        body: body.to_owned(),
    })
}
