//! Where a trust domain serves its bundle.

use std::fmt;
use std::net::IpAddr;

use zeugma_core::names::Host;

/// The longest one.
const BYTES_MAX: usize = 2048;

/// An `https` URL without a user (SPIFFE_Federation.md §5.2: F3), fragment or surprise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleUrl {
    /// A name, or an address as text, without brackets.
    pub host: String,
    /// The port; 443 where none is written.
    pub port: u16,
    /// Path and query, with the `/` in front.
    pub path: String,
}

impl BundleUrl {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > BYTES_MAX {
            return Err(format!("it is over {BYTES_MAX} bytes"));
        }
        let rest = text
            .strip_prefix("https://")
            .ok_or_else(|| "it does not begin with `https://`".to_owned())?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err("there must be no user in it".to_owned());
        }
        if path.contains('#') {
            return Err("there must be no `#` in it".to_owned());
        }
        if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("its path has characters that must be escaped".to_owned());
        }
        let (host, port) = host_and_port(authority)?;
        Ok(Self {
            host,
            port,
            path: if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            },
        })
    }

    /// The host and, unless it is 443, the port: what a request names.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = match self.host.parse() {
            Ok(IpAddr::V6(v6)) => format!("[{v6}]"),
            Ok(IpAddr::V4(_)) | Err(_) => self.host.clone(),
        };
        match self.port {
            443 => host,
            port => format!("{host}:{port}"),
        }
    }
}

fn host_and_port(authority: &str) -> Result<(String, u16), String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (ip, port) = rest
                .split_once(']')
                .ok_or_else(|| "a `]` is missing".to_owned())?;
            let ip: std::net::Ipv6Addr = ip
                .parse()
                .map_err(|_| format!("`{ip}` is no IPv6 address"))?;
            let port = match port.strip_prefix(':') {
                Some(port) => Some(port),
                None if port.is_empty() => None,
                None => return Err("behind `]` stands no port".to_owned()),
            };
            (ip.to_string(), port)
        }
        None => {
            let (host, port) = authority
                .split_once(':')
                .map_or((authority, None), |(host, port)| (host, Some(port)));
            let host = match host.parse::<std::net::Ipv4Addr>() {
                Ok(ip) => ip.to_string(),
                Err(_) => Host::parse(host)
                    .map_err(|error| format!("`{host}` is no host: {error}"))?
                    .to_string(),
            };
            (host, port)
        }
    };
    let port = match port {
        None => 443,
        Some(text) => (text.parse().ok())
            .filter(|port: &u16| *port > 0 && text.bytes().all(|byte| byte.is_ascii_digit()))
            .ok_or_else(|| format!("`{text}` is no port"))?,
    };
    Ok((host, port))
}

impl fmt::Display for BundleUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}{}", self.authority(), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_https_with_a_host_and_without_a_user() {
        for (text, read) in [
            (
                "https://acme.example/bundle",
                ("acme.example", 443, "/bundle"),
            ),
            ("https://ACME.example", ("acme.example", 443, "/")),
            (
                "https://acme.example:8443?a=b",
                ("acme.example", 8443, "/?a=b"),
            ),
            ("https://192.0.2.1/x/y", ("192.0.2.1", 443, "/x/y")),
            ("https://[2001:DB8::1]:1/", ("2001:db8::1", 1, "/")),
        ] {
            let url = BundleUrl::parse(text).unwrap();
            assert_eq!((&*url.host, url.port, &*url.path), read);
            assert_eq!(BundleUrl::parse(&url.to_string()), Ok(url));
        }
        for (text, words) in [
            ("http://acme.example/", "`https://`"),
            ("HTTPS://acme.example/", "`https://`"),
            ("acme.example/bundle", "`https://`"),
            ("https://user@acme.example/", "no user"),
            ("https://user:word@acme.example/", "no user"),
            ("https:///bundle", "no host"),
            ("https://a b/", "no host"),
            ("https://acme.example:0/", "no port"),
            ("https://acme.example:+1/", "no port"),
            ("https://acme.example:65536/", "no port"),
            ("https://[::1/", "`]` is missing"),
            ("https://[::g]/", "no IPv6"),
            ("https://[::1]x/", "no port"),
            ("https://acme.example/#top", "no `#`"),
            ("https://acme.example/a b", "escaped"),
            ("https://acme.example/\r\nhost: b", "escaped"),
        ] {
            let error = BundleUrl::parse(text).unwrap_err();
            assert!(error.contains(words), "{text:?}: {error}");
        }
        let long = format!("https://acme.example/{}", "x".repeat(BYTES_MAX));
        assert!(BundleUrl::parse(&long).unwrap_err().contains("2048"));
    }
}
