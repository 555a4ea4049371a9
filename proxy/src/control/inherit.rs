//! Listening sockets that somebody else opened: systemd, or the gateway before this one.
//!
//! A socket is never closed and opened again on the way: what the kernel has queued stays queued.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use listenfd::ListenFd;
use rustix::net::{SocketType, sockopt};
use serde::{Deserialize, Serialize};
use zeugma_core::snapshot::Snapshot;
use zeugma_xds::{AdminAddress, GatewaySettings};

/// How many descriptors are taken from systemd; far above what a gateway listens on.
const SYSTEMD_MAX: usize = 1024;

/// What a listening socket of a gateway is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Role {
    /// The listener of this name.
    Listener(String),
    Admin,
    Probes,
    Metrics,
}

/// Where a socket listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum At {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A socket that this gateway listens on, as its configuration says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Place {
    pub(crate) role: Role,
    pub(crate) at: At,
}

/// A listening socket that was opened for us.
#[derive(Debug)]
struct Given {
    /// What it was for where it comes from another gateway.
    place: Option<Place>,
    /// What systemd calls it.
    name: Option<String>,
    bound: At,
    socket: OwnedFd,
}

/// The listening sockets that were opened for us.
#[derive(Debug, Default)]
pub(crate) struct Inherited(Vec<Given>);

/// Those of them that the configuration has a place for.
#[derive(Debug, Default)]
pub(crate) struct Adopted {
    sockets: Vec<(Place, OwnedFd)>,
    /// What the gateway before called those that were its own.
    before: Vec<Place>,
}

/// Why inherited sockets are not used.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// `$LISTEN_FDS` is no number of descriptors.
    #[error("LISTEN_FDS={0} is not a number of sockets up to {SYSTEMD_MAX}")]
    Count(String),
    /// A descriptor is not a listening stream socket.
    #[error(
        "descriptor {descriptor} of systemd cannot be used; give it ListenStream= in the socket unit"
    )]
    Unusable {
        /// Its number.
        descriptor: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Descriptors belong to nothing that the configuration listens on.
    #[error(
        "sockets of systemd belong to no listener: {0}; let a listener's address be the same, or set \
         FileDescriptorName= in the socket unit to a listener's name, `admin`, `probes` or `metrics`"
    )]
    Unwanted(String),
}

impl InheritError {
    /// Its code in [`zeugma_core::codes`].
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Count(_) | Self::Unusable { .. } | Self::Unwanted(_) => "ZG0952",
        }
    }
}

impl Inherited {
    /// Takes the descriptors that systemd passed, if it did (sd_listen_fds(3)).
    ///
    /// # Errors
    /// [`InheritError::Count`] and [`InheritError::Unusable`].
    pub(crate) fn from_systemd() -> Result<Self, InheritError> {
        let variable = |name| std::env::var(name).ok();
        // They are for the process of this number alone; its children inherit the variables.
        let pid = variable("LISTEN_PID").and_then(|pid| pid.parse().ok());
        if pid != Some(std::process::id()) {
            return Ok(Self::default());
        }
        let count = variable("LISTEN_FDS").unwrap_or_default();
        if !count
            .parse::<usize>()
            .is_ok_and(|count| count <= SYSTEMD_MAX)
        {
            return Err(InheritError::Count(count));
        }
        let names = variable("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let mut descriptors = ListenFd::from_env();
        let mut given = Vec::new();
        for nth in 0..descriptors.len() {
            let taken =
                take(&mut descriptors, nth).and_then(|socket| Ok((bound(&socket)?, socket)));
            let (bound, socket) = taken.map_err(|source| InheritError::Unusable {
                // SD_LISTEN_FDS_START
                descriptor: nth + 3,
                source,
            })?;
            given.push(Given {
                place: None,
                name: names.next(),
                bound,
                socket,
            });
        }
        Ok(Self(given))
    }

    /// Adds a socket that another gateway listened on.
    ///
    /// # Errors
    /// If it is not a listening stream socket, or not where it is said to be.
    pub(crate) fn add(&mut self, place: Place, socket: OwnedFd) -> io::Result<()> {
        let mut bound = bound(&socket)?;
        let is_there = match (&place.at, &bound) {
            (At::Tcp(said), At::Tcp(bound)) if said.port() == 0 => said.ip() == bound.ip(),
            (At::Tcp(said), At::Tcp(bound)) => said == bound,
            // It was moved into place after it was bound: the kernel knows its first path alone.
            (At::Unix(_), At::Unix(_)) => true,
            (At::Tcp(_), At::Unix(_)) | (At::Unix(_), At::Tcp(_)) => false,
        };
        if !is_there {
            return Err(io::Error::other(format!(
                "it listens on {bound}, not on {}",
                place.at
            )));
        }
        if let At::Unix(_) = place.at {
            bound = place.at.clone();
        }
        self.0.push(Given {
            place: Some(place),
            name: None,
            bound,
            socket,
        });
        Ok(())
    }

    /// Gives each socket to the place it belongs to: by its address, else as it was configured
    /// before, else by its name. Returns what is left over.
    pub(crate) fn assign(self, places: &[Place]) -> (Adopted, Self) {
        let rules: [fn(&Given, &Place) -> bool; 3] = [
            |given, place| given.bound == place.at,
            |given, place| given.place.as_ref() == Some(place),
            |given, place| given.name.as_deref() == Some(place.role.name()),
        ];
        let mut given: Vec<Option<Given>> = self.0.into_iter().map(Some).collect();
        let mut adopted = Adopted::default();
        let mut left: Vec<&Place> = places.iter().collect();
        for belongs in rules {
            left.retain(|place| {
                let found = given
                    .iter_mut()
                    .find(|given| given.as_ref().is_some_and(|given| belongs(given, place)));
                let Some(found) = found.and_then(Option::take) else {
                    return true;
                };
                adopted.sockets.push(((*place).clone(), found.socket));
                adopted.before.extend(found.place);
                false
            });
        }
        (adopted, Self(given.into_iter().flatten().collect()))
    }

    /// As [`assign`](Self::assign), and everything must have a place.
    ///
    /// # Errors
    /// [`InheritError::Unwanted`].
    pub(crate) fn assign_all(self, places: &[Place]) -> Result<Adopted, InheritError> {
        let (adopted, rest) = self.assign(places);
        if rest.0.is_empty() {
            Ok(adopted)
        } else {
            Err(InheritError::Unwanted(rest.to_string()))
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Inherited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, given) in self.0.iter().enumerate() {
            let comma = if nth > 0 { ", " } else { "" };
            let name = given.place.as_ref().map(|place| place.role.name());
            match name.or(given.name.as_deref()) {
                Some(name) => write!(f, "{comma}`{name}` on {}", given.bound)?,
                None => write!(f, "{comma}{}", given.bound)?,
            }
        }
        Ok(())
    }
}

impl Adopted {
    /// Adds what others passed: a place that has a socket already keeps it.
    pub(crate) fn extend(&mut self, other: Self) {
        for (place, socket) in other.sockets {
            if !self.sockets.iter().any(|(taken, _)| *taken == place) {
                self.sockets.push((place, socket));
            }
        }
        self.before.extend(other.before);
    }

    /// What of another gateway's has a place here, as that gateway calls it.
    pub(crate) fn before(&self) -> &[Place] {
        &self.before
    }

    /// The socket of a listener, or of an interface on a TCP address.
    pub(crate) fn tcp(&mut self, role: &Role) -> Option<TcpListener> {
        self.take(role, |at| matches!(at, At::Tcp(_)))
            .map(TcpListener::from)
    }

    /// The socket of an interface that has a path.
    pub(crate) fn unix(&mut self, role: &Role) -> Option<UnixListener> {
        self.take(role, |at| matches!(at, At::Unix(_)))
            .map(UnixListener::from)
    }

    fn take(&mut self, role: &Role, of: impl Fn(&At) -> bool) -> Option<OwnedFd> {
        let of_role = |(place, _): &(Place, OwnedFd)| place.role == *role && of(&place.at);
        let nth = self.sockets.iter().position(of_role)?;
        Some(self.sockets.swap_remove(nth).1)
    }
}

/// Everything that a gateway listens on.
pub(crate) fn places(settings: &GatewaySettings, snapshot: &Snapshot) -> Vec<Place> {
    let admin = match &settings.admin {
        AdminAddress::Tcp(address) => At::Tcp(*address),
        AdminAddress::Unix(path) => At::Unix(path.clone()),
        AdminAddress::Default => At::Unix(crate::admin::default_socket()),
    };
    let listeners = snapshot.listeners.iter().map(|listener| Place {
        role: Role::Listener(listener.name.to_string()),
        at: At::Tcp(listener.address),
    });
    let of = |role, at| Place { role, at };
    listeners
        .chain([
            of(Role::Admin, admin),
            of(Role::Probes, At::Tcp(settings.probes)),
            of(Role::Metrics, At::Tcp(settings.metrics)),
        ])
        .collect()
}

/// A listening stream socket of either family, which systemd passed as its `nth`.
fn take(descriptors: &mut ListenFd, nth: usize) -> io::Result<OwnedFd> {
    let tcp = descriptors.take_tcp_listener(nth);
    if let Ok(Some(tcp)) = tcp {
        return Ok(tcp.into());
    }
    match descriptors.take_unix_listener(nth)? {
        Some(unix) => Ok(unix.into()),
        None => Err(io::Error::other("it was taken already")),
    }
}

/// Where a socket listens; makes it non-blocking, as everything here is.
fn bound(socket: &OwnedFd) -> io::Result<At> {
    if sockopt::socket_type(socket)? != SocketType::STREAM || !sockopt::socket_acceptconn(socket)? {
        return Err(io::Error::other("it is not a listening stream socket"));
    }
    rustix::io::ioctl_fionbio(socket.as_fd(), true)?;
    let address = rustix::net::getsockname(socket)?;
    if let Ok(address) = SocketAddr::try_from(address.clone()) {
        return Ok(At::Tcp(address));
    }
    let unix = rustix::net::SocketAddrUnix::try_from(address)?;
    match unix.path_bytes() {
        Some(path) => {
            use std::os::unix::ffi::OsStrExt as _;
            Ok(At::Unix(std::ffi::OsStr::from_bytes(path).into()))
        }
        None => Err(io::Error::other("it has neither an address nor a path")),
    }
}

impl Role {
    /// What messages and `FileDescriptorName=` call it.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Listener(name) => name,
            Self::Admin => "admin",
            Self::Probes => "probes",
            Self::Metrics => "metrics",
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening() -> (SocketAddr, OwnedFd) {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        (socket.local_addr().unwrap(), socket.into())
    }

    fn listener(name: &str, address: SocketAddr) -> Place {
        Place {
            role: Role::Listener(name.to_owned()),
            at: At::Tcp(address),
        }
    }

    fn of_systemd(name: &str, (address, socket): (SocketAddr, OwnedFd)) -> Given {
        Given {
            place: None,
            name: Some(name.to_owned()),
            bound: At::Tcp(address),
            socket,
        }
    }

    #[test]
    fn an_address_goes_before_a_name() {
        let (one, two) = (listening(), listening());
        let (at_one, any) = (one.0, "[::]:15443".parse().unwrap());
        // The second is called as the listener whose address the first has.
        let inherited = Inherited(vec![of_systemd("apps", one), of_systemd("mesh", two)]);
        let places = [listener("mesh", at_one), listener("apps", any)];
        let (mut adopted, rest) = inherited.assign(&places);
        let mesh = adopted.tcp(&places[0].role).unwrap();
        assert_eq!(mesh.local_addr().unwrap(), at_one);
        // Its name is taken: nothing belongs to it.
        assert!(adopted.tcp(&places[1].role).is_none());
        assert!(rest.to_string().starts_with("`mesh` on 127.0.0.1:"));
    }

    #[test]
    fn a_name_is_enough_where_the_address_differs() {
        let (at, socket) = listening();
        let inherited = Inherited(vec![of_systemd("admin", (at, socket))]);
        let admin = Place {
            role: Role::Admin,
            at: At::Tcp("127.0.0.1:0".parse().unwrap()),
        };
        let mut adopted = inherited.assign_all(&[admin]).unwrap();
        let admin = adopted.tcp(&Role::Admin).unwrap();
        assert_eq!(admin.local_addr().unwrap(), at);
    }

    #[test]
    fn what_belongs_nowhere_is_refused_by_its_name_and_address() {
        let (at, socket) = listening();
        let inherited = Inherited(vec![of_systemd("zeugma.socket", (at, socket))]);
        let error = inherited.assign_all(&[]).unwrap_err();
        let said = error.to_string();
        let expected = format!("belong to no listener: `zeugma.socket` on {at}; let a listener's");
        assert!(said.contains(&expected), "{said}");
    }

    #[test]
    fn a_free_port_is_found_again_by_the_listener_it_was_for() {
        let free: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut inherited = Inherited::default();
        let mut ports = Vec::new();
        for name in ["one", "two"] {
            let (at, socket) = listening();
            inherited.add(listener(name, free), socket).unwrap();
            ports.push(at);
        }
        let places = [listener("two", free), listener("one", free)];
        let (mut adopted, rest) = inherited.assign(&places);
        assert!(rest.is_empty());
        for (place, at) in places.iter().zip(ports.iter().rev()) {
            let socket = adopted.tcp(&place.role).unwrap();
            assert_eq!(socket.local_addr().unwrap(), *at);
        }
    }

    #[test]
    fn a_socket_that_is_not_what_it_is_said_to_be_is_not_taken() {
        let (at, socket) = listening();
        let elsewhere: SocketAddr = "127.0.0.2:15443".parse().unwrap();
        let mut inherited = Inherited::default();
        let error = inherited
            .add(listener("mesh", elsewhere), socket)
            .unwrap_err();
        let said = format!("it listens on {at}, not on 127.0.0.2:15443");
        assert_eq!(error.to_string(), said);
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let error = inherited.add(listener("mesh", at), one.into()).unwrap_err();
        assert_eq!(error.to_string(), "it is not a listening stream socket");
        let file = std::fs::File::open("/dev/null").unwrap();
        inherited
            .add(listener("mesh", at), file.into())
            .unwrap_err();
        assert!(inherited.is_empty());
    }
}
