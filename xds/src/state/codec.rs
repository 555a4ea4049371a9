//! Values as bytes, and back: each type names its fields once, for both ways.
//!
//! Texts are kept once and named by number after that, so that what is read back shares them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use zeugma_core::identity::{IdPattern, TrustDomain};
use zeugma_core::names::Host;
use zeugma_core::snapshot::{ClusterPolicy, Table};

use crate::names::ByName;

/// The bytes are not what [`Writer`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Corrupt(pub(crate) &'static str);

pub(crate) type Read<T> = Result<T, Corrupt>;

/// What can be written and read back.
pub(crate) trait Coded: Sized {
    fn write(&self, to: &mut Writer);
    fn read(from: &mut Reader<'_>) -> Read<Self>;
}

/// What a cluster takes, or somewhat more.
const ONE: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    /// `None`: each is written as often as it is there.
    texts: Option<ByName<u64, Box<str>>>,
    /// What clusters share, in the order it was written.
    pub(super) policies: Vec<Arc<ClusterPolicy>>,
}

impl Writer {
    /// One that writes a text once, for a [`Reader`].
    pub(crate) fn sharing() -> Self {
        Self {
            texts: Some(ByName::default()),
            ..Self::default()
        }
    }

    /// One for a value that is small and written by itself.
    pub(crate) fn of_one() -> Self {
        Self {
            bytes: Vec::with_capacity(ONE),
            ..Self::default()
        }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    /// Bytes as they are, of a length that is known otherwise.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Seven bits a byte, the lowest first; the highest bit says that more follow.
    pub(crate) fn number(&mut self, mut number: u64) {
        loop {
            let [low, ..] = number.to_le_bytes();
            number >>= 7;
            if number == 0 {
                return self.byte(low & 0x7f);
            }
            self.byte(low | 0x80);
        }
    }

    /// A text by its number, from 1; 0 and the text itself where it is new.
    pub(crate) fn text(&mut self, text: &str) {
        if let Some(texts) = &mut self.texts {
            if let Some(known) = texts.get(text).copied() {
                return self.number(known);
            }
            let next = texts.len() as u64 + 1;
            texts.insert(text.into(), next);
        }
        self.byte(0);
        self.number(text.len() as u64);
        self.bytes.extend_from_slice(text.as_bytes());
    }
}

/// What a text was last read as, beside the text.
#[derive(Debug)]
struct Known {
    text: Arc<str>,
    host: Option<Host>,
    ids: Option<IdPattern>,
}

#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    texts: Vec<Known>,
    /// What clusters share, in the order it was read.
    pub(super) policies: Vec<Arc<ClusterPolicy>>,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            texts: Vec::new(),
            policies: Vec::new(),
        }
    }

    /// Whether all was read.
    pub(crate) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What is left.
    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Read<&'a [u8]> {
        let (bytes, rest) = (self.rest.split_at_checked(len)).ok_or(Corrupt("it ends too soon"))?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let bytes = self.bytes(N)?;
        bytes.try_into().map_err(|_| Corrupt("it ends too soon"))
    }

    pub(crate) fn byte(&mut self) -> Read<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn number(&mut self) -> Read<u64> {
        let mut number = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Corrupt("a number is too long"))
    }

    /// How many entries follow, each of a byte at least: no more than could be there.
    fn count(&mut self) -> Read<usize> {
        let count = usize::read(self)?;
        if count > self.rest.len() {
            return Err(Corrupt("a list is longer than what is left"));
        }
        Ok(count)
    }

    fn known(&mut self) -> Read<&mut Known> {
        let number = usize::read(self)?;
        let at = match number.checked_sub(1) {
            Some(at) => at,
            None => {
                let len = usize::read(self)?;
                let text = std::str::from_utf8(self.bytes(len)?)
                    .map_err(|_| Corrupt("a text is not UTF-8"))?;
                self.texts.push(Known {
                    text: text.into(),
                    host: None,
                    ids: None,
                });
                self.texts.len() - 1
            }
        };
        (self.texts.get_mut(at)).ok_or(Corrupt("a text is named before it is written"))
    }

    pub(crate) fn text(&mut self) -> Read<Arc<str>> {
        self.known().map(|known| Arc::clone(&known.text))
    }
}

/// The fields of structs, in the order they are written.
macro_rules! coded {
    ($($name:ty { $($field:ident),* $(,)? })*) => {$(
        impl Coded for $name {
            fn write(&self, to: &mut Writer) {
                let Self { $($field),* } = self;
                $($field.write(to);)*
            }
            fn read(from: &mut Reader<'_>) -> Read<Self> {
                Ok(Self { $($field: Coded::read(from)?),* })
            }
        }
    )*};
}

/// The variants of enums with their numbers, which never change their meaning.
macro_rules! coded_enum {
    ($($name:ty { $($tag:literal $variant:ident $({ $($field:ident),* })? $(( $($inner:ident),* ))?),* $(,)? })*) => {$(
        impl Coded for $name {
            fn write(&self, to: &mut Writer) {
                match self {
                    $(Self::$variant $({ $($field),* })? $(( $($inner),* ))? => {
                        to.byte($tag);
                        $($($field.write(to);)*)?
                        $($($inner.write(to);)*)?
                    })*
                }
            }
            fn read(from: &mut Reader<'_>) -> Read<Self> {
                match from.byte()? {
                    $($tag => {
                        $($(let $field = Coded::read(from)?;)*)?
                        $($(let $inner = Coded::read(from)?;)*)?
                        Ok(Self::$variant $({ $($field),* })? $(( $($inner),* ))?)
                    })*
                    _ => Err(Corrupt(concat!("no such ", stringify!($name)))),
                }
            }
        }
    )*};
}

pub(crate) use {coded, coded_enum};

macro_rules! numbers {
    ($($name:ty),*) => {$(
        impl Coded for $name {
            fn write(&self, to: &mut Writer) {
                to.number(u64::try_from(*self).unwrap_or(u64::MAX));
            }
            fn read(from: &mut Reader<'_>) -> Read<Self> {
                Self::try_from(from.number()?).map_err(|_| Corrupt("a number is too large"))
            }
        }
    )*};
}

numbers!(u16, u32, u64, usize);

impl Coded for bool {
    fn write(&self, to: &mut Writer) {
        to.byte((*self).into());
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        match from.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Corrupt("no such bool")),
        }
    }
}

impl Coded for f64 {
    fn write(&self, to: &mut Writer) {
        to.bytes.extend_from_slice(&self.to_le_bytes());
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        from.array().map(Self::from_le_bytes)
    }
}

impl Coded for u128 {
    fn write(&self, to: &mut Writer) {
        to.bytes.extend_from_slice(&self.to_le_bytes());
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        from.array().map(Self::from_le_bytes)
    }
}

impl Coded for Duration {
    fn write(&self, to: &mut Writer) {
        self.as_secs().write(to);
        self.subsec_nanos().write(to);
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        let (seconds, nanos) = (u64::read(from)?, u32::read(from)?);
        // `Duration::new` carries whole seconds over, and panics where they do not fit.
        if nanos >= 1_000_000_000 {
            return Err(Corrupt("a duration has too many nanoseconds"));
        }
        Ok(Self::new(seconds, nanos))
    }
}

impl Coded for Arc<str> {
    fn write(&self, to: &mut Writer) {
        to.text(self);
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        from.text()
    }
}

impl Coded for String {
    fn write(&self, to: &mut Writer) {
        to.text(self);
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        from.text().map(|text| text.as_ref().to_owned())
    }
}

impl Coded for PathBuf {
    fn write(&self, to: &mut Writer) {
        use std::os::unix::ffi::OsStrExt as _;
        let bytes = self.as_os_str().as_bytes();
        to.number(bytes.len() as u64);
        to.bytes.extend_from_slice(bytes);
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        use std::os::unix::ffi::OsStrExt as _;
        let len = from.count()?;
        Ok(std::ffi::OsStr::from_bytes(from.bytes(len)?).into())
    }
}

impl<T: Coded> Coded for Option<T> {
    fn write(&self, to: &mut Writer) {
        self.is_some().write(to);
        if let Some(value) = self {
            value.write(to);
        }
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        bool::read(from)?.then(|| T::read(from)).transpose()
    }
}

impl<T: Coded> Coded for Vec<T> {
    fn write(&self, to: &mut Writer) {
        self.len().write(to);
        for value in self {
            value.write(to);
        }
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        /// What is taken on trust: a count that is not true must not take all memory.
        const TRUSTED: usize = 1024;
        let count = from.count()?;
        let mut values = Self::with_capacity(count.min(TRUSTED));
        for _ in 0..count {
            values.push(T::read(from)?);
        }
        values.shrink_to_fit();
        Ok(values)
    }
}

impl<T: Coded> Coded for Table<T> {
    fn write(&self, to: &mut Writer) {
        self.len().write(to);
        for value in self {
            value.write(to);
        }
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        Vec::read(from).map(Self::from)
    }
}

impl<T: Coded> Coded for Box<T> {
    fn write(&self, to: &mut Writer) {
        T::write(self, to);
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        T::read(from).map(Self::new)
    }
}

impl<T: Coded> Coded for Arc<T> {
    fn write(&self, to: &mut Writer) {
        T::write(self, to);
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        T::read(from).map(Self::new)
    }
}

impl<A: Coded, B: Coded> Coded for (A, B) {
    fn write(&self, to: &mut Writer) {
        self.0.write(to);
        self.1.write(to);
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        Ok((A::read(from)?, B::read(from)?))
    }
}

impl Coded for IpAddr {
    fn write(&self, to: &mut Writer) {
        match self {
            Self::V4(ip) => {
                to.byte(4);
                to.bytes.extend_from_slice(&ip.octets());
            }
            Self::V6(ip) => {
                to.byte(6);
                to.bytes.extend_from_slice(&ip.octets());
            }
        }
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        match from.byte()? {
            4 => from.array::<4>().map(|ip| Ipv4Addr::from(ip).into()),
            6 => from.array::<16>().map(|ip| Ipv6Addr::from(ip).into()),
            _ => Err(Corrupt("no such kind of address")),
        }
    }
}

impl Coded for SocketAddr {
    fn write(&self, to: &mut Writer) {
        self.ip().write(to);
        self.port().write(to);
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        Ok(Self::new(IpAddr::read(from)?, u16::read(from)?))
    }
}

impl Coded for IpNet {
    fn write(&self, to: &mut Writer) {
        self.addr().write(to);
        to.byte(self.prefix_len());
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        let (ip, len) = (IpAddr::read(from)?, from.byte()?);
        Self::new(ip, len).map_err(|_| Corrupt("a network is longer than its address"))
    }
}

impl Coded for Host {
    fn write(&self, to: &mut Writer) {
        to.text(self.as_str());
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        let known = from.known()?;
        if let Some(host) = &known.host {
            return Ok(host.clone());
        }
        let host = Self::parse(&known.text).map_err(|_| Corrupt("a host is not one"))?;
        known.host = Some(host.clone());
        Ok(host)
    }
}

impl Coded for IdPattern {
    fn write(&self, to: &mut Writer) {
        to.text(&self.to_string());
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        let known = from.known()?;
        if let Some(ids) = &known.ids {
            return Ok(ids.clone());
        }
        let ids = Self::parse(&known.text).map_err(|_| Corrupt("a SPIFFE ID is not one"))?;
        known.ids = Some(ids.clone());
        Ok(ids)
    }
}

impl Coded for TrustDomain {
    fn write(&self, to: &mut Writer) {
        to.text(self.as_str());
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        Self::parse(&from.text()?).map_err(|_| Corrupt("a trust domain is not one"))
    }
}
