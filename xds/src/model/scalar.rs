//! Values that are written as text: parsed once, while the document is read.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize as DeriveDeserialize;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use zeugma_core::admission::Rate;
use zeugma_core::authorize::path::{canonical, is_usable};
use zeugma_core::identity::{IdPattern, SpiffeId, TrustDomain};
use zeugma_core::locality::Locality;
use zeugma_core::names::{Host, HostPattern, SniTarget};
use zeugma_core::snapshot::{Failure, PathPattern, ValuePattern};

use crate::bundle_url::BundleUrl;
use crate::control_address::ControlAddress;
use crate::workload_address::WorkloadAddress;

/// A type with one textual form.
pub(crate) trait FromText: Sized {
    /// What the text is, as an error or the schema says it.
    const FORM: &'static str;
    /// An example for the schema.
    const EXAMPLE: &'static str;

    /// Reads the text; the error says what is wrong with it.
    fn from_text(text: &str) -> Result<Self, String>;
}

/// A value written as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text<T>(pub T);

impl<'de, T: FromText> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor<T>(PhantomData<T>);

        impl<T: FromText> Visitor<'_> for TextVisitor<T> {
            type Value = Text<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::FORM)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<T>, E> {
                read(text)
            }
        }

        deserializer.deserialize_str(TextVisitor(PhantomData))
    }
}

fn read<T: FromText, E: de::Error>(text: &str) -> Result<Text<T>, E> {
    T::from_text(text)
        .map(Text)
        .map_err(|why| E::custom(format_args!("`{text}` is not {}: {why}", T::FORM)))
}

impl<T: FromText> JsonSchema for Text<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Text".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            // A field says here what it is for; its form is for the manual then.
            "$comment": T::FORM,
            "description": T::FORM,
            "examples": [T::EXAMPLE],
        })
    }
}

impl FromText for Duration {
    const FORM: &'static str = "a duration such as `500ms`, `30s`, `5m` or `1h`";
    const EXAMPLE: &'static str = "30s";

    fn from_text(text: &str) -> Result<Self, String> {
        let (number, unit) = split_unit(text);
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "" => return Err("the unit is missing".to_owned()),
            _ => return Err(format!("`{unit}` is not a unit")),
        };
        whole_number(number)?
            .checked_mul(millis)
            .filter(|millis| *millis <= DURATION_MILLIS_MAX)
            .map(Self::from_millis)
            .ok_or_else(|| "at most 24855 days are allowed".to_owned())
    }
}

/// What fits into 31 bits of seconds, so that no clock arithmetic overflows.
const DURATION_MILLIS_MAX: u64 = 0x7fff_ffff * 1000;

/// A share of a whole, written `5%`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Percent(pub f64);

impl fmt::Display for Percent {
    /// As it is written, at most four decimal places.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:.4}", self.0 * 100.0);
        write!(f, "{}%", text.trim_end_matches('0').trim_end_matches('.'))
    }
}

impl FromText for Percent {
    const FORM: &'static str = "a percentage such as `5%` or `0.5%`";
    const EXAMPLE: &'static str = "5%";

    fn from_text(text: &str) -> Result<Self, String> {
        let number = text
            .strip_suffix('%')
            .ok_or_else(|| "`%` is missing".to_owned())?;
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        if part.len() > 4 {
            return Err("at most four decimal places are allowed".to_owned());
        }
        whole_number(whole)?;
        whole_number(part)?;
        let value: f64 = number.parse().map_err(|_| "not a number".to_owned())?;
        if value > 100.0 {
            return Err("it is over 100%".to_owned());
        }
        Ok(Self(value / 100.0))
    }
}

/// Bytes, written `64KiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub usize);

impl FromText for Size {
    const FORM: &'static str = "a size such as `512B`, `64KiB`, `1MiB` or `2GiB`";
    const EXAMPLE: &'static str = "64KiB";

    fn from_text(text: &str) -> Result<Self, String> {
        let (number, unit) = split_unit(text);
        let bytes = match unit {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "" => return Err("the unit is missing".to_owned()),
            _ => return Err(format!("`{unit}` is not a unit")),
        };
        whole_number(number)?
            .checked_mul(bytes)
            .filter(|bytes| *bytes <= SIZE_BYTES_MAX)
            .and_then(|bytes| usize::try_from(bytes).ok())
            .map(Self)
            .ok_or_else(|| "at most 1024GiB is allowed".to_owned())
    }
}

/// Beyond the memory of any machine a gateway runs on; each field has a range of its own.
const SIZE_BYTES_MAX: u64 = 1 << 40;

impl FromText for Rate {
    const FORM: &'static str = "a rate such as `100/s`";
    const EXAMPLE: &'static str = "100/s";

    fn from_text(text: &str) -> Result<Self, String> {
        let (number, unit) = split_unit(text);
        let count = whole_number(number)?;
        match unit {
            "/s" => {}
            "" => return Err("`/s` is missing".to_owned()),
            _ => return Err(format!("`{unit}` is not `/s`")),
        }
        u32::try_from(count)
            .ok()
            .filter(|count| *count <= RATE_MAX)
            .and_then(Self::per_second)
            .ok_or_else(|| format!("write 1/s to {RATE_MAX}/s"))
    }
}

/// More a second than one thread accepts.
const RATE_MAX: u32 = 1_000_000;

fn split_unit(text: &str) -> (&str, &str) {
    text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    )
}

fn whole_number(text: &str) -> Result<u64, String> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err("it does not begin with a whole number".to_owned());
    }
    text.parse()
        .map_err(|_| "the number is too large".to_owned())
}

impl FromText for TrustDomain {
    const FORM: &'static str = "a trust domain such as `east.example`";
    const EXAMPLE: &'static str = "east.example";

    fn from_text(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|error| error.to_string())
    }
}

impl FromText for SpiffeId {
    const FORM: &'static str = "a SPIFFE ID such as `spiffe://acme.example/ca`";
    const EXAMPLE: &'static str = "spiffe://acme.example/ca";

    fn from_text(text: &str) -> Result<Self, String> {
        let id = Self::parse(text).map_err(|error| error.to_string())?;
        if id.path().is_empty() {
            // X.509-SVID §4 (XL3).
            return Err("it names a trust domain, and nobody in it".to_owned());
        }
        Ok(id)
    }
}

impl FromText for BundleUrl {
    const FORM: &'static str = "a URL such as `https://acme.example/bundle`";
    const EXAMPLE: &'static str = "https://acme.example/bundle";

    fn from_text(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

impl FromText for ControlAddress {
    const FORM: &'static str =
        "`https://` and a host with a port, or `http://` and a loopback address with a port";
    const EXAMPLE: &'static str = "https://xds.east.example:15012";

    fn from_text(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

impl FromText for WorkloadAddress {
    const FORM: &'static str =
        "`unix://` and an absolute path, or `tcp://` and a loopback address with a port";
    const EXAMPLE: &'static str = "unix:///run/zeugma/workload.sock";

    fn from_text(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

impl FromText for IdPattern {
    const FORM: &'static str =
        "a SPIFFE ID such as `spiffe://east.example/ns/shop/sa/cart`, or all below one, `.../*`";
    const EXAMPLE: &'static str = "spiffe://east.example/ns/shop/*";

    fn from_text(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|error| error.to_string())
    }
}

impl FromText for Locality {
    const FORM: &'static str = "a locality such as `eu/eu-1/rack-a`";
    const EXAMPLE: &'static str = "eu/eu-1/rack-a";

    fn from_text(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|error| error.to_string())
    }
}

impl FromText for HostPattern {
    const FORM: &'static str = "a host such as `orders.shop.svc.clusterset.local`, or `*.x`";
    const EXAMPLE: &'static str = "orders.shop.svc.clusterset.local";

    fn from_text(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|error| error.to_string())
    }
}

impl FromText for SocketAddr {
    const FORM: &'static str = "an address and port such as `0.0.0.0:15443` or `[::]:15443`";
    const EXAMPLE: &'static str = "0.0.0.0:15443";

    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| {
            "write an IP address, `:` and a port; names are not looked up here".to_owned()
        })
    }
}

impl FromText for IpNet {
    const FORM: &'static str = "a network such as `10.0.0.0/8`, or one address";
    const EXAMPLE: &'static str = "10.0.0.0/8";

    fn from_text(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(address.to_canonical().into());
        }
        let net: Self = text
            .parse()
            .map_err(|_| "write an address, `/` and the length of the prefix".to_owned())?;
        if net.trunc() == net {
            crate::net::canonical(net)
        } else {
            Err(format!(
                "bits are set beyond the prefix; write `{}`",
                net.trunc()
            ))
        }
    }
}

/// `namespace/name`, or a name in the document's own namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    pub namespace: Option<String>,
    pub name: String,
}

impl FromText for Reference {
    const FORM: &'static str = "a reference such as `shop/orders`";
    const EXAMPLE: &'static str = "shop/orders";

    fn from_text(text: &str) -> Result<Self, String> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        for part in namespace.iter().chain(&[name]) {
            check_name(part)?;
        }
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        })
    }
}

/// A name that other fields refer to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Name(pub String);

impl FromText for Name {
    const FORM: &'static str = "a name of letters, digits, `-`, `_` and `.`";
    const EXAMPLE: &'static str = "orders";

    fn from_text(text: &str) -> Result<Self, String> {
        check_name(text)?;
        Ok(Self(text.to_owned()))
    }
}

/// The longest name, as Kubernetes has it.
const NAME_CHARS_MAX: usize = 253;

fn check_name(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    if text.len() > NAME_CHARS_MAX {
        return Err(format!("it is over {NAME_CHARS_MAX} characters"));
    }
    match text
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')))
    {
        Some(bad) => Err(format!("{bad:?} may not stand in a name")),
        None => Ok(()),
    }
}

/// Where an endpoint or a gateway is, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub host: TargetHost,
    pub port: Option<u16>,
}

/// The host of a [`Target`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TargetHost {
    Ip(IpAddr),
    Name(Host),
}

impl FromText for Target {
    const FORM: &'static str =
        "an address such as `10.0.1.10:8080`, `[::1]:8080` or `gw.west.example:15443`";
    const EXAMPLE: &'static str = "10.0.1.10:8080";

    fn from_text(text: &str) -> Result<Self, String> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self {
                host: TargetHost::Ip(ip),
                port: None,
            });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        let port = match port.map(str::parse::<u16>) {
            None => None,
            Some(Ok(0)) => return Err("port 0 cannot be connected to".to_owned()),
            Some(Ok(port)) => Some(port),
            Some(Err(_)) => return Err("the port is not 1 to 65535".to_owned()),
        };
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let host = match bare.parse::<IpAddr>() {
            Ok(ip) => TargetHost::Ip(ip),
            Err(_) => TargetHost::Name(Host::parse(bare).map_err(|error| error.to_string())?),
        };
        Ok(Self { host, port })
    }
}

/// Where the admin API listens, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Admin {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl FromText for Admin {
    const FORM: &'static str =
        "`unix:` and a path, or a loopback address such as `127.0.0.1:15000`";
    const EXAMPLE: &'static str = "unix:/run/zeugma/admin.sock";

    fn from_text(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("the path is empty".to_owned()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => SocketAddr::from_text(text).map(Self::Tcp),
        }
    }
}

/// The host that a caller's TLS names, in whatever form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sni(pub HostPattern);

impl FromText for Sni {
    const FORM: &'static str =
        "a host such as `orders.shop.svc.clusterset.local`, or all below one, `*.x`";
    const EXAMPLE: &'static str = "orders.shop.svc.clusterset.local";

    fn from_text(text: &str) -> Result<Self, String> {
        let named = SniTarget::parse(text.strip_prefix("*.").unwrap_or(text));
        if let Ok(SniTarget {
            host,
            port: Some(_),
        }) = named
        {
            return Err(format!("write `{host}`, which is for all of its ports"));
        }
        HostPattern::from_text(text).map(Self)
    }
}

/// An HTTP method, in upper case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Method(pub Arc<str>);

impl FromText for Method {
    const FORM: &'static str = "an HTTP method in upper case, such as `GET`";
    const EXAMPLE: &'static str = "GET";

    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > 32 {
            return Err("a method is 1 to 32 letters".to_owned());
        }
        // RFC 9110 §9.1: methods are case-sensitive, so `get` would silently match nothing.
        if text.chars().any(|c| c.is_ascii_lowercase()) {
            return Err(format!("write `{}`", text.to_ascii_uppercase()));
        }
        if text.chars().all(|c| c.is_ascii_uppercase() || c == '-') {
            Ok(Self(text.into()))
        } else {
            Err("only letters and `-` may stand in a method".to_owned())
        }
    }
}

impl FromText for PathPattern {
    const FORM: &'static str = "a path such as `/v1/orders`, or all below one, `/v1/*`";
    const EXAMPLE: &'static str = "/v1/*";

    fn from_text(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err("it does not begin with `/`".to_owned());
        }
        let (kept, make): (&str, fn(Arc<str>) -> Self) = match text.strip_suffix("/*") {
            Some(_) => (text.trim_end_matches('*'), Self::Below),
            None => (text, Self::Exact),
        };
        match kept
            .chars()
            .find(|c| matches!(c, '*' | '?' | '#') || c.is_whitespace() || c.is_control())
        {
            Some('*') => Err("`*` may stand only as the whole last segment".to_owned()),
            Some(bad) => Err(format!("{bad:?} may not stand in a path")),
            None if is_usable(kept) => Ok(make(kept.into())),
            None => Err(
                "no request is matched by it: `//`, dot segments, `;` parameters and escaped slashes are never taken at their word; write the path that the service sees".to_owned(),
            ),
        }
    }
}

/// A path that rules tell requests apart by, as requests are compared with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RulePath(pub Arc<str>);

impl FromText for RulePath {
    const FORM: &'static str = "a path such as `/v1`";
    const EXAMPLE: &'static str = "/v1";

    fn from_text(text: &str) -> Result<Self, String> {
        if text.contains('*') {
            return Err(
                "`*` stands for itself nowhere; write `prefix: /v1` for all below".to_owned(),
            );
        }
        match PathPattern::from_text(text)? {
            PathPattern::Exact(path) | PathPattern::Below(path) => canonical(&path)
                .map(|path| Self(path.into()))
                .ok_or_else(|| "no request is matched by it".to_owned()),
        }
    }
}

/// The name of a gRPC service or method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GrpcName(pub String);

impl FromText for GrpcName {
    const FORM: &'static str = "a gRPC name such as `shop.Orders`";
    const EXAMPLE: &'static str = "shop.Orders";

    fn from_text(text: &str) -> Result<Self, String> {
        let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
        match text.chars().find(|c| !is_good(*c)) {
            Some(bad) => Err(format!("{bad:?} may not stand in it")),
            None if text.is_empty() => Err("it is empty".to_owned()),
            None if text.split('.').any(str::is_empty) => {
                Err("no part between dots may be empty".to_owned())
            }
            None => Ok(Self(text.to_owned())),
        }
    }
}

/// The name of a header, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldName(pub String);

/// The longest name of a header.
const FIELD_NAME_BYTES_MAX: usize = 128;

impl FromText for FieldName {
    const FORM: &'static str = "the name of a header such as `x-mesh`";
    const EXAMPLE: &'static str = "x-mesh";

    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > FIELD_NAME_BYTES_MAX {
            return Err(format!("a name is 1 to {FIELD_NAME_BYTES_MAX} characters"));
        }
        // RFC 9110 §5.6.2: a token.
        let is_good = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        match text.chars().find(|c| !is_good(*c)) {
            Some(bad) => Err(format!("{bad:?} may not stand in it")),
            None => Ok(Self(text.to_ascii_lowercase())),
        }
    }
}

impl FromText for ValuePattern {
    const FORM: &'static str = "a value such as `acme`, or all that begin so, `acme-*`";
    const EXAMPLE: &'static str = "acme-*";

    fn from_text(text: &str) -> Result<Self, String> {
        let (kept, make): (&str, fn(Arc<str>) -> Self) = match text.strip_suffix('*') {
            Some(kept) => (kept, Self::Begins),
            None => (text, Self::Exact),
        };
        if text.is_empty() {
            return Err("it is empty; `*` is any value".to_owned());
        }
        if kept.contains('*') {
            return Err("`*` may stand only at the end".to_owned());
        }
        if text.trim() != text {
            return Err("a space at its begin or end would be lost".to_owned());
        }
        // A deny rule looks at what stands between commas.
        if kept.contains(',') {
            return Err("`,` parts two values; write each for itself".to_owned());
        }
        match kept.chars().find(|c| !matches!(c, ' '..='~')) {
            Some(bad) => Err(format!("{bad:?} may not stand in it")),
            None if kept.len() > FIELD_VALUE_BYTES_MAX => {
                Err(format!("it is over {FIELD_VALUE_BYTES_MAX} characters"))
            }
            None => Ok(make(kept.into())),
        }
    }
}

/// The value of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldValue(pub String);

/// The longest value of a header.
const FIELD_VALUE_BYTES_MAX: usize = 4096;

impl FromText for FieldValue {
    const FORM: &'static str = "the value of a header, visible ASCII";
    const EXAMPLE: &'static str = "east";

    fn from_text(text: &str) -> Result<Self, String> {
        if text.len() > FIELD_VALUE_BYTES_MAX {
            return Err(format!("it is over {FIELD_VALUE_BYTES_MAX} characters"));
        }
        // RFC 9110 §5.5: no space around it, and what is not ASCII is read differently.
        if text.trim() != text {
            return Err("a space at its begin or end would be lost".to_owned());
        }
        match text.chars().find(|c| !matches!(c, ' '..='~')) {
            Some(bad) => Err(format!("{bad:?} may not stand in it")),
            None => Ok(Self(text.to_owned())),
        }
    }
}

/// How an attempt failed, as `on` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cause(pub Failure);

/// The words for causes, by the field that takes them.
pub(crate) const CAUSES: [(&str, Failure); 10] = [
    ("connect", Failure::Connect),
    ("connect-failure", Failure::Connect),
    ("refused-stream", Failure::RefusedStream),
    ("reset", Failure::Reset),
    ("timeout", Failure::Timeout),
    ("unavailable", Failure::Unavailable),
    ("cancelled", Failure::Grpc(1)),
    ("deadline-exceeded", Failure::Grpc(4)),
    ("resource-exhausted", Failure::Grpc(8)),
    ("internal", Failure::Grpc(13)),
];

impl FromText for Cause {
    const FORM: &'static str = "`connect`, `connect-failure` (the same), `refused-stream`, `reset`, `timeout`, `unavailable` (gRPC status 14), `cancelled` (1), `deadline-exceeded` (4), `resource-exhausted` (8), `internal` (13) or an HTTP status of 400 to 599";
    const EXAMPLE: &'static str = "503";

    fn from_text(text: &str) -> Result<Self, String> {
        if let Some((_, failure)) = CAUSES.iter().find(|(word, _)| *word == text) {
            return Ok(Self(*failure));
        }
        match text.parse::<u16>() {
            Ok(status @ 400..=599) => Ok(Self(Failure::Status(status))),
            Ok(_) => Err("only 400 to 599 are failures".to_owned()),
            Err(_) => Err(
                crate::error::suggest(text, CAUSES.iter().map(|(word, _)| *word))
                    .unwrap_or_default(),
            ),
        }
    }
}

/// `perTry`: a duration, or `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MaybeDuration(pub Option<Duration>);

impl FromText for MaybeDuration {
    const FORM: &'static str = "`none`, or a duration such as `500ms`, `30s`, `5m` or `1h`";
    const EXAMPLE: &'static str = "2s";

    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            text => Duration::from_text(text).map(Some).map(Self),
        }
    }
}

/// `slow.over`: so many times, or `none`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MaybeTimes(pub Option<f64>);

impl MaybeTimes {
    const MAX: f64 = 1000.0;
}

impl FromText for MaybeTimes {
    const FORM: &'static str = "`none`, or so many times such as `3x` or `1.5x`";
    const EXAMPLE: &'static str = "3x";

    fn from_text(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let number = (text.strip_suffix('x')).ok_or_else(|| "`x` is missing".to_owned())?;
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        if part.len() > 2 {
            return Err("at most two decimal places are allowed".to_owned());
        }
        whole_number(whole)?;
        whole_number(part)?;
        let times: f64 = number.parse().map_err(|_| "not a number".to_owned())?;
        if times <= 1.0 || times > Self::MAX {
            return Err("more than 1x is needed, and at most 1000x".to_owned());
        }
        Ok(Self(Some(times)))
    }
}

/// A whole number in decimal, as YAML 1.2 has it: no `_`, no sign, no leading zero.
pub(crate) fn whole<'de, D, N>(deserializer: D) -> Result<N, D::Error>
where
    D: Deserializer<'de>,
    N: std::str::FromStr,
{
    struct WholeVisitor<N>(PhantomData<N>);

    impl<N: std::str::FromStr> Visitor<'_> for WholeVisitor<N> {
        type Value = N;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a whole number")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<N, E> {
            let is_plain = !text.is_empty()
                && text.bytes().all(|b| b.is_ascii_digit())
                && (text == "0" || !text.starts_with('0'));
            if !is_plain {
                return Err(E::custom(format_args!("`{text}` is not a whole number")));
            }
            text.parse()
                .map_err(|_| E::custom(format_args!("`{text}` is too large for this field")))
        }
    }

    deserializer.deserialize_str(WholeVisitor(PhantomData))
}

/// As [`whole`], for a field that may be left out.
pub(crate) fn whole_or_none<'de, D, N>(deserializer: D) -> Result<Option<N>, D::Error>
where
    D: Deserializer<'de>,
    N: std::str::FromStr,
{
    whole(deserializer).map(Some)
}

/// An endpoint: an address, or an address with a weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndpointSpec {
    pub address: Target,
    pub weight: Option<u32>,
}

/// The long form of an endpoint.
#[derive(Debug, DeriveDeserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct EndpointFields {
    /// Where it is: an IP address or a name, with a port unless the route's `targetPort` is meant.
    address: Text<Target>,
    /// Its share of the traffic relative to the other endpoints of its level. Default 1; 1 to
    /// 10000. To take an endpoint out of use, remove it.
    #[serde(default, deserialize_with = "whole_or_none")]
    weight: Option<u32>,
}

impl<'de> Deserialize<'de> for EndpointSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EndpointVisitor;

        impl<'de> Visitor<'de> for EndpointVisitor {
            type Value = EndpointSpec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address such as `10.0.1.10:8080`, or `{address, weight}`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<EndpointSpec, E> {
                read(text).map(|Text(address)| EndpointSpec {
                    address,
                    weight: None,
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<EndpointSpec, A::Error> {
                let fields =
                    EndpointFields::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(EndpointSpec {
                    address: fields.address.0,
                    weight: fields.weight,
                })
            }
        }

        deserializer.deserialize_any(EndpointVisitor)
    }
}

impl JsonSchema for EndpointSpec {
    fn schema_name() -> Cow<'static, str> {
        "Endpoint".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let text = generator.subschema_for::<Text<Target>>();
        let fields = generator.subschema_for::<EndpointFields>();
        json_schema!({"anyOf": [text, fields]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit_and_stay_in_range() {
        for (text, millis) in [
            ("0s", 0),
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(
                Duration::from_text(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in ["", "5", "s", "-1s", "1.5s", "1d", "1 s", "5000000h", "1s1s"] {
            assert!(Duration::from_text(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_more_than_one() {
        assert_eq!(MaybeTimes::from_text("3x"), Ok(MaybeTimes(Some(3.0))));
        assert_eq!(MaybeTimes::from_text("1.25x"), Ok(MaybeTimes(Some(1.25))));
        assert_eq!(MaybeTimes::from_text("none"), Ok(MaybeTimes(None)));
        for text in [
            "3", "x", "1x", "0.5x", "1000.01x", "1.001x", "-3x", "1e1x", "NaNx", "3 x",
        ] {
            assert!(MaybeTimes::from_text(text).is_err(), "{text}");
        }
    }

    #[test]
    fn percentages_and_sizes_need_their_unit_and_stay_in_range() {
        assert_eq!(Percent::from_text("5%"), Ok(Percent(0.05)));
        assert_eq!(Percent::from_text("100%"), Ok(Percent(1.0)));
        assert_eq!(Percent::from_text("0.5%"), Ok(Percent(0.005)));
        for text in ["0%", "7%", "29%", "57%", "0.5%", "33.3333%", "100%"] {
            assert_eq!(Percent::from_text(text).unwrap().to_string(), text);
        }
        for text in ["5", "%", "101%", "-5%", "5.00001%", "1e1%", "NaN%", "5 %"] {
            assert!(Percent::from_text(text).is_err(), "{text}");
        }
        assert_eq!(Size::from_text("64KiB"), Ok(Size(65536)));
        assert_eq!(Size::from_text("1GiB"), Ok(Size(1 << 30)));
        assert_eq!(Size::from_text("1024GiB"), Ok(Size(1 << 40)));
        for text in [
            "64",
            "64K",
            "64KB",
            "1025GiB",
            "KiB",
            "99999999999999999999B",
        ] {
            assert!(Size::from_text(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks_are_exact() {
        assert!(IpNet::from_text("10.0.0.0/8").is_ok());
        assert_eq!(
            IpNet::from_text("203.0.113.7").unwrap().to_string(),
            "203.0.113.7/32"
        );
        assert!(
            IpNet::from_text("10.1.0.0/8")
                .unwrap_err()
                .contains("`10.0.0.0/8`")
        );
        assert!(IpNet::from_text("10.0.0.0/33").is_err());
        // An IPv4 caller is compared as such, whatever socket it came in on.
        for (text, expected) in [
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.1", "10.0.0.1/32"),
        ] {
            assert_eq!(IpNet::from_text(text).unwrap().to_string(), expected);
        }
        assert!(
            IpNet::from_text("::/0")
                .unwrap_err()
                .contains("`0.0.0.0/0`")
        );
    }

    #[test]
    fn targets_are_addresses_or_names_with_or_without_a_port() {
        for (text, port) in [
            ("10.0.1.10:8080", Some(8080)),
            ("10.0.1.10", None),
            ("[::1]:80", Some(80)),
            ("::1", None),
            ("gw.west.example:15443", Some(15443)),
            ("localhost", None),
        ] {
            assert_eq!(Target::from_text(text).unwrap().port, port, "{text}");
        }
        for text in ["", ":80", "a:0", "a:65536", "a b:80", "10.0.1.10:", "a/b:1"] {
            assert!(Target::from_text(text).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_hold_a_star_only_as_the_last_segment() {
        assert_eq!(
            PathPattern::from_text("/v1/*"),
            Ok(PathPattern::Below("/v1/".into()))
        );
        assert_eq!(
            PathPattern::from_text("/*"),
            Ok(PathPattern::Below("/".into()))
        );
        assert_eq!(
            PathPattern::from_text("/v1"),
            Ok(PathPattern::Exact("/v1".into()))
        );
        for text in ["v1", "", "/v*", "/*/a", "/a?b", "/a b", "/a#b", "/**"] {
            assert!(PathPattern::from_text(text).is_err(), "{text}");
        }
        for text in ["/a/../b", "/a//b", "/a%2fb", "/a;b", "//*", "/a/./*", "/a%"] {
            let error = PathPattern::from_text(text).unwrap_err();
            assert!(error.contains("no request is matched"), "{text}: {error}");
        }
    }

    #[test]
    fn methods_are_case_sensitive_and_the_error_says_so() {
        assert_eq!(Method::from_text("GET"), Ok(Method("GET".into())));
        assert_eq!(Method::from_text("get").unwrap_err(), "write `GET`");
        assert!(Method::from_text("*").is_err());
        assert!(Method::from_text("").is_err());
    }

    #[test]
    fn causes_are_words_or_statuses() {
        assert_eq!(Cause::from_text("503").unwrap().0, Failure::Status(503));
        assert_eq!(
            Cause::from_text("connect-failure").unwrap().0,
            Failure::Connect
        );
        assert!(Cause::from_text("200").is_err());
        assert!(Cause::from_text("resett").unwrap_err().contains("`reset`"));
    }
}
