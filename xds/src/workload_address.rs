//! Where a SPIFFE Workload API is served.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The longest path that a Unix socket can have (unix(7): `sun_path`).
const PATH_BYTES_MAX: usize = 107;

/// The address of a Workload Endpoint (SPIFFE_Workload_Endpoint.md §4: WE4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkloadAddress {
    /// A Unix socket, by its absolute path.
    Unix(PathBuf),
    /// A loopback address: what comes by it is a private key, and is not encrypted.
    Tcp(SocketAddr),
}

impl WorkloadAddress {
    /// Reads `unix:///path` or `tcp://127.0.0.1:port`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://") {
            return socket(path);
        }
        if let Some(address) = text.strip_prefix("tcp://") {
            return tcp(address);
        }
        let path = text.strip_prefix("unix:").unwrap_or(text);
        Err(match path.strip_prefix('/') {
            Some(path) => format!("write `unix:///{}`", path.trim_start_matches('/')),
            None => "it begins with neither `unix:///` nor `tcp://`".to_owned(),
        })
    }
}

fn socket(path: &str) -> Result<WorkloadAddress, String> {
    if !path.starts_with('/') {
        return Err("after `unix://` stands no absolute path; write `unix:///path`".to_owned());
    }
    if path.contains(['?', '#', '%', '\0']) {
        return Err("there must be no `?`, `#` or `%` in it".to_owned());
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(format!("its path is over {PATH_BYTES_MAX} bytes"));
    }
    Ok(WorkloadAddress::Unix(path.into()))
}

fn tcp(text: &str) -> Result<WorkloadAddress, String> {
    let address: SocketAddr = (text.parse())
        .map_err(|_| format!("`{text}` is no IP address and port, such as `127.0.0.1:8081`"))?;
    if address.port() == 0 {
        return Err("its port is 0".to_owned());
    }
    if !address.ip().is_loopback() {
        return Err(
            "it is not a loopback address: the private key would cross the network".to_owned(),
        );
    }
    Ok(WorkloadAddress::Tcp(address))
}

impl fmt::Display for WorkloadAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SPIFFE_Workload_Endpoint.md §4: `unix` with an absolute path and no authority, `tcp` with an IP
    /// address and a port, nothing else.
    #[test]
    fn an_address_is_a_socket_or_an_ip_address_with_a_port() {
        for text in [
            "unix:///run/zeugma/workload.sock",
            "unix:///a",
            "tcp://127.0.0.1:8081",
            "tcp://[::1]:8081",
        ] {
            assert_eq!(WorkloadAddress::parse(text).unwrap().to_string(), text);
        }
        for (text, words) in [
            ("/run/a.sock", "write `unix:///run/a.sock`"),
            ("unix:/run/a.sock", "write `unix:///run/a.sock`"),
            ("unix://run/a.sock", "write `unix:///path`"),
            ("unix://", "write `unix:///path`"),
            ("unix:a.sock", "neither"),
            ("", "neither"),
            ("http://127.0.0.1:1", "neither"),
            ("UNIX:///a", "neither"),
            ("unix:///a?b", "no `?`"),
            ("unix:///a#b", "no `?`"),
            ("unix:///a%20b", "no `?`"),
            ("tcp://localhost:1", "no IP address"),
            ("tcp://127.0.0.1", "no IP address"),
            ("tcp://127.0.0.1:1/", "no IP address"),
            ("tcp://127.0.0.1:0", "port is 0"),
            ("tcp://10.0.0.1:1", "private key"),
            ("tcp://0.0.0.0:1", "private key"),
        ] {
            let error = WorkloadAddress::parse(text).unwrap_err();
            assert!(error.contains(words), "{text:?}: {error}");
        }
        let path = |bytes| format!("unix:///{}", "x".repeat(bytes - 1));
        assert!(WorkloadAddress::parse(&path(PATH_BYTES_MAX)).is_ok());
        let long = WorkloadAddress::parse(&path(PATH_BYTES_MAX + 1));
        assert!(long.unwrap_err().contains("107"));
    }
}
