//! Where a control plane serves.

use std::fmt;
use std::net::SocketAddr;

use crate::bundle_url::BundleUrl;

/// The address of a server of xDS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlAddress {
    /// By mTLS: a name or an IP address, and a port.
    Tls(String, u16),
    /// A loopback address, in plaintext.
    Plain(SocketAddr),
}

impl ControlAddress {
    /// Reads `https://host:port`, or `http://` with a loopback address and port.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(address) = text.strip_prefix("http://") {
            return plain(address.strip_suffix('/').unwrap_or(address));
        }
        let url = BundleUrl::parse(text)?;
        if url.path != "/" {
            return Err("there must be no path in it".to_owned());
        }
        Ok(Self::Tls(url.host, url.port))
    }

    /// What HTTP calls it.
    #[must_use]
    pub fn origin(&self) -> String {
        self.to_string()
    }
}

fn plain(text: &str) -> Result<ControlAddress, String> {
    let address: SocketAddr = text.parse().map_err(|_| {
        format!(
            "`{text}` is no IP address and port, such as `127.0.0.1:15012`; a name wants `https://`"
        )
    })?;
    if address.port() == 0 {
        return Err("its port is 0".to_owned());
    }
    if !address.ip().is_loopback() {
        return Err(
            "it is not a loopback address: whoever is between could say what this gateway does; write `https://`"
                .to_owned(),
        );
    }
    Ok(ControlAddress::Plain(address))
}

impl fmt::Display for ControlAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls(host, port) if host.contains(':') => write!(f, "https://[{host}]:{port}"),
            Self::Tls(host, port) => write!(f, "https://{host}:{port}"),
            Self::Plain(address) => write!(f, "http://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_https_with_a_host_or_plaintext_on_this_machine() {
        for (text, told) in [
            (
                "https://xds.east.example:15012",
                "https://xds.east.example:15012",
            ),
            ("https://XDS.east.example/", "https://xds.east.example:443"),
            ("https://[2001:db8::1]:15012", "https://[2001:db8::1]:15012"),
            ("http://127.0.0.1:15012", "http://127.0.0.1:15012"),
            ("http://[::1]:15012/", "http://[::1]:15012"),
        ] {
            let address = ControlAddress::parse(text).unwrap();
            assert_eq!(address.to_string(), told);
            assert_eq!(ControlAddress::parse(told), Ok(address));
        }
        for (text, words) in [
            ("xds.east.example:15012", "`https://`"),
            ("https://xds.east.example/path", "no path"),
            ("https://a@b", "no user"),
            ("http://10.0.0.1:15012", "not a loopback address"),
            ("http://localhost:15012", "no IP address"),
            ("http://127.0.0.1:0", "port is 0"),
        ] {
            let error = ControlAddress::parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
