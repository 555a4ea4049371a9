//! Short names for the xDS types in use, and what prost leaves to us.

pub(crate) use envoy_types::pb::envoy::config::cluster::v3 as cluster;
pub(crate) use envoy_types::pb::envoy::config::common::mutation_rules::v3::{
    HeaderMutation, header_mutation,
};
pub(crate) use envoy_types::pb::envoy::config::core::v3 as core;
pub(crate) use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
pub(crate) use envoy_types::pb::envoy::config::listener::v3 as listener;
pub(crate) use envoy_types::pb::envoy::config::rbac::v3 as rbac;
pub(crate) use envoy_types::pb::envoy::config::route::v3 as route;
pub(crate) use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http_rbac;
pub(crate) use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
pub(crate) use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
pub(crate) use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
pub(crate) use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
pub(crate) use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as network_rbac;
pub(crate) use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_proxy;
pub(crate) use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate as PreviousHosts;
pub(crate) use envoy_types::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
pub(crate) use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
pub(crate) use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
pub(crate) use envoy_types::pb::envoy::extensions::upstreams::http::v3 as upstream_http;
pub(crate) use envoy_types::pb::envoy::service::discovery::v3 as discovery;
pub(crate) use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
pub(crate) use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
pub(crate) use envoy_types::pb::envoy::r#type::v3 as percent;
pub(crate) use envoy_types::pb::google::protobuf::{
    Any, BoolValue, Duration as PbDuration, ListValue, Struct, UInt32Value, Value as PbValue,
    value::Kind,
};
pub(crate) use envoy_types::pb::google::rpc::Status;

mod len;
mod read;
mod say;
mod write;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use prost::{Message, Name};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Number, Value};

/// The key of our metadata on any resource.
pub(crate) const METADATA: &str = "dev.zeugma";

/// Packs a message.
pub(crate) fn pack<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

/// What stands before the name of a type.
pub(crate) const TYPES: &str = "type.googleapis.com/";

/// Whether it says that it is a message of this type.
pub(crate) fn is_of<M: Name>(any: &Any) -> bool {
    let name = any.type_url.strip_prefix(TYPES);
    let name = name.and_then(|name| name.strip_prefix(M::PACKAGE));
    name.and_then(|name| name.strip_prefix('.')) == Some(M::NAME)
}

/// Unpacks a message of exactly this type.
pub(crate) fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M, String> {
    if !is_of::<M>(any) {
        return Err(format!(
            "it is a `{}` and not a `{}`",
            any.type_url,
            M::type_url()
        ));
    }
    M::decode(any.value.as_slice()).map_err(|error| error.to_string())
}

/// A duration as protobuf has it.
pub(crate) fn duration(duration: Duration) -> Option<PbDuration> {
    Some(PbDuration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    })
}

/// A duration from protobuf; `None` where it is missing or negative.
pub(crate) fn from_duration(duration: Option<&PbDuration>) -> Option<Duration> {
    let duration = duration?;
    Some(Duration::new(
        u64::try_from(duration.seconds).ok()?,
        u32::try_from(duration.nanos).ok()?,
    ))
}

/// A wrapped number.
pub(crate) const fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

/// A wrapped bool.
pub(crate) const fn boolean(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

/// Our metadata, made from anything serde can write.
pub(crate) fn metadata<T: Serialize>(value: &T) -> core::Metadata {
    let mut metadata = core::Metadata::default();
    if let Some(fields) = write::to_struct(value) {
        metadata.filter_metadata.insert(METADATA.to_owned(), fields);
    }
    metadata
}

/// What [`metadata`] of the value takes as field 25 of a cluster, without making it.
pub(crate) fn metadata_len<T: Serialize>(value: &T) -> usize {
    let entry = len::text_field(METADATA) + len::field(len::of_struct(value));
    // A field number over 15 takes two bytes.
    1 + len::field(len::field(entry))
}

/// Our metadata of a resource.
pub(crate) fn from_metadata<T: DeserializeOwned>(
    metadata: Option<&core::Metadata>,
) -> Result<T, String> {
    let fields = metadata
        .and_then(|metadata| metadata.filter_metadata.get(METADATA))
        .ok_or_else(|| format!("it has no `{METADATA}` metadata"))?;
    read::from_struct(fields).map_err(|error| format!("its `{METADATA}` metadata: {error}"))
}

/// A struct as JSON.
pub(crate) fn from_struct(fields: &Struct) -> Value {
    // Sorted, since protobuf's map has no order.
    let mut entries: Vec<_> = fields.fields.iter().collect();
    entries.sort_by_key(|(key, _)| key.as_str());
    Value::Object(
        entries
            .into_iter()
            .map(|(key, value)| (key.clone(), from_value(value)))
            .collect(),
    )
}

fn from_value(value: &PbValue) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => Value::Bool(*value),
        Some(Kind::NumberValue(value)) => from_number(*value),
        Some(Kind::StringValue(value)) => Value::String(value.clone()),
        Some(Kind::ListValue(list)) => list.values.iter().map(from_value).collect(),
        Some(Kind::StructValue(fields)) => from_struct(fields),
    }
}

fn from_number(value: f64) -> Value {
    match whole(value) {
        Some(value) => Value::Number(Number::from(value)),
        None => Number::from_f64(value).map_or(Value::Null, Value::Number),
    }
}

/// Protobuf has doubles alone; a whole number below 2^53 is read back as one.
fn whole(value: f64) -> Option<u64> {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "none is given but of what is whole, not negative and below 2^53"
    )]
    (value.fract() == 0.0 && (0.0..EXACT_MAX).contains(&value)).then_some(value as u64)
}

/// A socket address as xDS has it.
pub(crate) fn address(host: &str, port: u16) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: host.to_owned(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port.into())),
            ..Default::default()
        })),
    }
}

/// Host and port of an xDS address.
pub(crate) fn from_address(address: Option<&core::Address>) -> Result<(String, u16), String> {
    let Some(core::address::Address::SocketAddress(socket)) =
        address.and_then(|address| address.address.as_ref())
    else {
        return Err("it has no socket address".to_owned());
    };
    let Some(core::socket_address::PortSpecifier::PortValue(port)) = socket.port_specifier else {
        return Err("its address has no port".to_owned());
    };
    let port = u16::try_from(port).map_err(|_| format!("port {port} is over 65535"))?;
    Ok((socket.address.clone(), port))
}

/// A socket address of an xDS address that must hold an IP address.
pub(crate) fn from_socket(address: Option<&core::Address>) -> Result<SocketAddr, String> {
    let (host, port) = from_address(address)?;
    let ip: IpAddr = host
        .parse()
        .map_err(|_| format!("`{host}` is not an IP address"))?;
    Ok(SocketAddr::new(ip, port))
}

/// A network as xDS has it.
pub(crate) fn cidr(net: &IpNet) -> core::CidrRange {
    core::CidrRange {
        address_prefix: net.network().to_string(),
        prefix_len: number(net.prefix_len().into()),
    }
}

/// A network from xDS.
pub(crate) fn from_cidr(range: &core::CidrRange) -> Result<IpNet, String> {
    let len = range.prefix_len.map_or(0, |len| len.value);
    let ip: IpAddr = range
        .address_prefix
        .parse()
        .map_err(|_| format!("`{}` is not an IP address", range.address_prefix))?;
    u8::try_from(len)
        .ok()
        .and_then(|len| IpNet::new(ip, len).ok())
        .map(|net| net.trunc())
        .ok_or_else(|| format!("a prefix of {len} bits is too long for {ip}"))
        .and_then(crate::net::canonical)
}

/// A text that must be exactly this.
pub(crate) fn exactly(text: &str) -> matcher::StringMatcher {
    matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Exact(
            text.to_owned(),
        )),
        ignore_case: false,
    }
}

/// A text that must end with this.
pub(crate) fn ending(text: &str) -> matcher::StringMatcher {
    matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Suffix(
            text.to_owned(),
        )),
        ignore_case: false,
    }
}

/// A text that must begin with this.
pub(crate) fn beginning(text: &str) -> matcher::StringMatcher {
    matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Prefix(
            text.to_owned(),
        )),
        ignore_case: false,
    }
}

#[cfg(test)]
mod tests;
