//! Requests, read by hand: their names stay where they are in the bytes, for of one that comes back
//! there are tens of thousands; and nothing is made of what is too much, or is not looked at.

use std::borrow::Cow;

use crate::canonical::{self, Part};
use crate::plane::{Claim, ENVOY};
use crate::session::server::{Asks, Limits, Protocol, Request, Violation};

/// Bytes of what a node says of itself, of each thing that it says.
const CLAIM_BYTES_MAX: usize = 256;
/// What is kept of why a client refused something.
const DETAIL_BYTES_MAX: usize = 4000;

/// Why a request is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unread {
    #[error("it is no {0}")]
    Broken(&'static str),
    #[error("a {0} of over {1} bytes")]
    Long(&'static str, usize),
    #[error(transparent)]
    TooMuch(#[from] Violation),
}

/// Reads a request, and who sends it where it says so.
///
/// # Errors
/// Where it is none, or over a limit.
pub(super) fn read(
    protocol: Protocol,
    mut bytes: &[u8],
    limits: Limits,
) -> Result<(Option<Claim>, Request<'_>), Unread> {
    let broken = || {
        Unread::Broken(match protocol {
            Protocol::Sotw => "DiscoveryRequest",
            Protocol::Delta => "DeltaDiscoveryRequest",
        })
    };
    let texts = Texts::of(bytes);
    let text = |value| texts.text(value).ok_or_else(broken);
    let (mut node, mut request, mut version) = (None, Request::default(), "");
    let mut names = Names::new(limits.names);
    let (mut less, mut known) = (Names::new(limits.names), Names::new(limits.names));
    while !bytes.is_empty() {
        let Part {
            number, message, ..
        } = canonical::next(&mut bytes).ok_or_else(broken)?;
        let Some(value) = message else {
            continue;
        };
        match Field::of(protocol, number) {
            Field::Node => node = Some(claim(value)?),
            Field::TypeUrl => {
                let url = at_most(limits.name_bytes, "type URL", text(value)?)?;
                url.clone_into(&mut request.type_url);
            }
            Field::Names => names.push(Cow::Borrowed(text(value)?), alike(value, bytes))?,
            Field::Less => less.push(Cow::Borrowed(text(value)?), alike(value, bytes))?,
            Field::Known => {
                let (name, version) = canonical::entry(value).ok_or_else(broken)?;
                let entry = (Cow::Borrowed(text(name)?), Cow::Borrowed(text(version)?));
                known.push(entry, alike(value, bytes))?;
            }
            Field::Version => version = text(value)?,
            Field::Nonce => {
                let nonce = at_most(CLAIM_BYTES_MAX, "nonce", text(value)?)?;
                nonce.clone_into(&mut request.nonce);
            }
            Field::Error => request.error = Some(detail(value).ok_or_else(broken)?),
            Field::Other => {}
        }
    }
    request.asks = match protocol {
        Protocol::Sotw => Asks::Whole {
            version: at_most(CLAIM_BYTES_MAX, "version", version)?.to_owned(),
            names: names.list,
        },
        Protocol::Delta => Asks::Changes {
            subscribe: names.list,
            unsubscribe: less.list,
            known: known.list,
        },
    };
    Ok((node, request))
}

/// Of a request. Most are short, which makes all of it one text, lengths and all: that is looked at once then,
/// and not each of the tens of thousands that it holds.
#[derive(Debug, Clone, Copy)]
struct Texts<'a> {
    at: usize,
    whole: Option<&'a str>,
}

impl<'a> Texts<'a> {
    fn of(request: &'a [u8]) -> Self {
        Self {
            at: request.as_ptr().addr(),
            whole: std::str::from_utf8(request).ok(),
        }
    }

    /// A part of the request; `None` where it is no text.
    fn text(&self, value: &'a [u8]) -> Option<&'a str> {
        let start = value.as_ptr().addr().wrapping_sub(self.at);
        let within =
            (self.whole).and_then(|whole| whole.get(start..start.wrapping_add(value.len())));
        // What is empty is anywhere, and an end may fall within a character that the next field goes on with.
        within.or_else(|| std::str::from_utf8(value).ok())
    }
}

/// What stands in a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Node,
    TypeUrl,
    /// All names, or more.
    Names,
    Less,
    Known,
    Version,
    Nonce,
    Error,
    Other,
}

impl Field {
    /// By its number in the `.proto`.
    const fn of(protocol: Protocol, number: u32) -> Self {
        match (protocol, number) {
            (Protocol::Sotw, 1) => Self::Version,
            (Protocol::Sotw, 2) | (Protocol::Delta, 1) => Self::Node,
            (Protocol::Sotw | Protocol::Delta, 3) => Self::Names,
            (Protocol::Sotw, 4) | (Protocol::Delta, 2) => Self::TypeUrl,
            (Protocol::Sotw, 5) | (Protocol::Delta, 6) => Self::Nonce,
            (Protocol::Sotw, 6) | (Protocol::Delta, 7) => Self::Error,
            (Protocol::Delta, 4) => Self::Less,
            (Protocol::Delta, 5) => Self::Known,
            (Protocol::Sotw | Protocol::Delta, _) => Self::Other,
        }
    }
}

/// As many as there may be: one takes two bytes of a request, and twenty times that here.
struct Names<T> {
    list: Vec<T>,
    max: usize,
}

impl<T> Names<T> {
    const fn new(max: usize) -> Self {
        Self {
            list: Vec::new(),
            max,
        }
    }

    /// One that `more` may follow that are like it.
    fn push(&mut self, name: T, more: usize) -> Result<(), Violation> {
        if self.list.len() >= self.max {
            return Err(Violation::Names(self.max));
        }
        if self.list.is_empty() {
            // Room that grows would be copied, and handed out anew, a dozen times.
            self.list.reserve_exact(more.min(self.max) + 1);
        }
        self.list.push(name);
        Ok(())
    }
}

/// How many fields of this length the rest may hold.
const fn alike(value: &[u8], rest: &[u8]) -> usize {
    rest.len() / (value.len() + 2)
}

fn at_most<'a>(max: usize, what: &'static str, text: &'a str) -> Result<&'a str, Unread> {
    if text.len() > max {
        return Err(Unread::Long(what, max));
    }
    Ok(text)
}

/// Of a `Node`; what else it says may be long, and is not looked at.
pub(super) fn claim(mut bytes: &[u8]) -> Result<Claim, Unread> {
    let (mut claim, mut metadata): (_, &[u8]) = (Claim::default(), &[]);
    while !bytes.is_empty() {
        let part = canonical::next(&mut bytes).ok_or(Unread::Broken("Node"))?;
        let Some(value) = part.message else {
            continue;
        };
        match part.number {
            1 => claim.id = said("node id", value)?,
            2 => claim.cluster = said("node cluster", value)?,
            3 => metadata = value,
            4 => claim.locality = locality(value)?,
            6 => claim.agent = said("user agent name", value)?,
            _ => {}
        }
    }
    // Anybody else's is anybody's; and what of an Envoy's is not read here says nothing to us.
    claim.is_bare = claim.agent == ENVOY && is_bare(metadata).unwrap_or_default();
    Ok(claim)
}

/// Whether a node's metadata says that nobody gives it secrets; `None` where it is not read.
fn is_bare(mut metadata: &[u8]) -> Option<bool> {
    const KEY: &[u8] = b"zeugma.dev/secrets";
    let mut is_bare = false;
    while !metadata.is_empty() {
        let part = canonical::next(&mut metadata)?;
        // `Struct.fields`, a map, is field 1.
        let Some(entry) = part.message.filter(|_| part.number == 1) else {
            continue;
        };
        let (key, mut value) = canonical::entry(entry)?;
        if key == KEY {
            // `Value.string_value` is field 3.
            let said = canonical::next(&mut value)?;
            is_bare = said.number == 3 && said.message == Some(b"none");
        }
    }
    Some(is_bare)
}

fn said(what: &'static str, bytes: &[u8]) -> Result<String, Unread> {
    let text = std::str::from_utf8(bytes).map_err(|_not_utf8| Unread::Broken("Node"))?;
    at_most(CLAIM_BYTES_MAX, what, text).map(str::to_owned)
}

/// `region/zone/sub_zone`, as far as it goes.
fn locality(mut bytes: &[u8]) -> Result<String, Unread> {
    let mut parts = [const { String::new() }; 3];
    while !bytes.is_empty() {
        let part = canonical::next(&mut bytes).ok_or(Unread::Broken("Locality"))?;
        let at = usize::try_from(part.number).ok();
        let at = at.and_then(|number| number.checked_sub(1));
        if let Some((to, value)) = at.and_then(|at| parts.get_mut(at)).zip(part.message) {
            *to = said("locality", value)?;
        }
    }
    let len = parts.iter().take_while(|part| !part.is_empty()).count();
    let joined = parts.get(..len).unwrap_or_default().join("/");
    at_most(CLAIM_BYTES_MAX, "locality", &joined)?;
    Ok(joined)
}

/// The message of a `Status`, as far as it is kept; `None` where it is none.
fn detail(mut bytes: &[u8]) -> Option<String> {
    let mut message: &[u8] = &[];
    while !bytes.is_empty() {
        let part = canonical::next(&mut bytes)?;
        if part.number == 2 {
            message = part.message?;
        }
    }
    let text = std::str::from_utf8(message).ok()?;
    let kept = text.get(..text.floor_char_boundary(DETAIL_BYTES_MAX))?;
    Some(kept.to_owned())
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::{Locality, Node};
    use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
    use envoy_types::pb::google::rpc;
    use prost::Message as _;

    use super::*;

    const LIMITS: Limits = Limits {
        names: 10,
        other_types: 1,
        name_bytes: 64,
        stranger_bytes: 1000,
    };

    fn node() -> Node {
        Node {
            id: "east-gw/1".to_owned(),
            cluster: "east".to_owned(),
            locality: Some(Locality {
                region: "eu".to_owned(),
                zone: "eu-1".to_owned(),
                sub_zone: String::new(),
            }),
            user_agent_name: "envoy".to_owned(),
            client_features: vec!["x".to_owned(); 3],
            ..Default::default()
        }
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|nth| format!("n{nth}")).collect()
    }

    fn status(message: &str) -> rpc::Status {
        rpc::Status {
            code: 3,
            message: message.to_owned(),
            ..Default::default()
        }
    }

    fn claimed() -> Claim {
        Claim {
            id: "east-gw/1".to_owned(),
            cluster: "east".to_owned(),
            locality: "eu/eu-1".to_owned(),
            agent: "envoy".to_owned(),
            is_bare: false,
        }
    }

    #[test]
    fn a_node_says_in_its_metadata_that_nobody_gives_it_secrets() {
        use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};

        let text = |text: &str| Value {
            kind: Some(Kind::StringValue(text.to_owned())),
        };
        let number = Value {
            kind: Some(Kind::NumberValue(0.0)),
        };
        let long = || ("else".to_owned(), text(&"x".repeat(5000)));
        for (key, value, expected) in [
            ("zeugma.dev/secrets", text("none"), true),
            ("zeugma.dev/secrets", text("sds"), false),
            ("zeugma.dev/secrets", number, false),
            ("zeugma.dev/secret", text("none"), false),
        ] {
            let node = Node {
                metadata: Some(Struct {
                    fields: [(key.to_owned(), value), long()].into(),
                }),
                ..node()
            };
            let claim = claim(&node.encode_to_vec()).unwrap();
            assert_eq!(claim.is_bare, expected, "{key}");
        }
        let other = Node {
            metadata: Some(Struct {
                fields: [("zeugma.dev/secrets".to_owned(), text("none"))].into(),
            }),
            user_agent_name: "gRPC Go".to_owned(),
            ..node()
        };
        assert!(!claim(&other.encode_to_vec()).unwrap().is_bare);
    }

    #[test]
    fn metadata_that_is_not_read_says_nothing() {
        let empty = b"\x0a\x16\x0a\x12zeugma.dev/secrets\x12\x00";
        let group: &[u8] = b"\x0b\x0c";
        let cut_off: &[u8] = b"\x0a\x05";
        for metadata in [empty, group, cut_off] {
            let mut bytes = node().encode_to_vec();
            prost::encoding::bytes::encode(3, &metadata.to_vec(), &mut bytes);
            // What broke: it ended the stream.
            assert_eq!(claim(&bytes), Ok(claimed()));
        }
    }

    #[test]
    fn what_is_read_is_what_another_wrote() {
        let written = DeltaDiscoveryRequest {
            node: Some(node()),
            type_url: "t".to_owned(),
            resource_names_subscribe: names(10),
            resource_names_unsubscribe: names(2),
            initial_resource_versions: [("a".to_owned(), "1".to_owned())].into(),
            response_nonce: "7".to_owned(),
            error_detail: Some(status("no")),
            ..Default::default()
        };
        let bytes = written.encode_to_vec();
        let (node_of, request) = read(Protocol::Delta, &bytes, LIMITS).unwrap();
        assert_eq!(node_of, Some(claimed()));
        assert_eq!((&*request.type_url, &*request.nonce), ("t", "7"));
        assert_eq!(request.error.as_deref(), Some("no"));
        let expected = Asks::Changes {
            subscribe: names(10).into_iter().map(Cow::Owned).collect(),
            unsubscribe: names(2).into_iter().map(Cow::Owned).collect(),
            known: vec![("a".into(), "1".into())],
        };
        assert_eq!(request.asks, expected);

        let written = DiscoveryRequest {
            version_info: "v".to_owned(),
            node: Some(node()),
            resource_names: names(10),
            type_url: "t".to_owned(),
            response_nonce: "7".to_owned(),
            error_detail: Some(status("")),
            ..Default::default()
        };
        let bytes = written.encode_to_vec();
        let (node_of, request) = read(Protocol::Sotw, &bytes, LIMITS).unwrap();
        assert_eq!(node_of, Some(claimed()));
        assert_eq!((&*request.type_url, &*request.nonce), ("t", "7"));
        // P8: by its presence alone.
        assert_eq!(request.error.as_deref(), Some(""));
        let expected = Asks::Whole {
            version: "v".to_owned(),
            names: names(10).into_iter().map(Cow::Owned).collect(),
        };
        assert_eq!(request.asks, expected);
    }

    #[test]
    fn texts_are_the_same_whether_all_of_a_request_is_one_or_not() {
        let long = "x".repeat(300);
        // A length of 66 is written as `B`, and one of 200 as two bytes that are no text.
        for version in ["1", "", "ä", "日本", &"y".repeat(66), &"z".repeat(200)] {
            let known = [("a".to_owned(), version.to_owned())];
            for extra in [None, Some(&long)] {
                let written = DeltaDiscoveryRequest {
                    resource_names_subscribe: extra.into_iter().cloned().collect(),
                    initial_resource_versions: known.clone().into(),
                    ..Default::default()
                };
                let bytes = written.encode_to_vec();
                let (_, request) = read(Protocol::Delta, &bytes, LIMITS).unwrap();
                let expected = Asks::Changes {
                    subscribe: extra.into_iter().map(Cow::from).collect(),
                    unsubscribe: Vec::new(),
                    known: vec![("a".into(), version.into())],
                };
                assert_eq!(request.asks, expected);
            }
        }
        for broken in [&b"\x1a\x01\xc3\x1a\x01\xa4"[..], b"\x1a\x02a\xc3\x80\x01"] {
            let why = read(Protocol::Delta, broken, LIMITS).unwrap_err();
            assert_eq!(why, Unread::Broken("DeltaDiscoveryRequest"));
        }
        // All of it is a text, in which the name ends within `â`: what ends that is the key of field 20.
        let cut = read(Protocol::Delta, b"\x1a\x01\xc3\xa2\x01\x00", LIMITS);
        assert_eq!(cut.unwrap_err(), Unread::Broken("DeltaDiscoveryRequest"));
    }

    #[test]
    fn names_are_read_as_far_as_there_may_be_so_many() {
        let delta = |of: DeltaDiscoveryRequest| (Protocol::Delta, of.encode_to_vec());
        let known = names(11).into_iter().map(|name| (name, String::new()));
        let all = [
            delta(DeltaDiscoveryRequest {
                resource_names_subscribe: names(11),
                ..Default::default()
            }),
            delta(DeltaDiscoveryRequest {
                resource_names_unsubscribe: names(11),
                ..Default::default()
            }),
            delta(DeltaDiscoveryRequest {
                initial_resource_versions: known.collect(),
                ..Default::default()
            }),
            (
                Protocol::Sotw,
                DiscoveryRequest {
                    resource_names: names(11),
                    ..Default::default()
                }
                .encode_to_vec(),
            ),
        ];
        for (protocol, bytes) in all {
            let unread = read(protocol, &bytes, LIMITS).unwrap_err();
            assert_eq!(unread, Unread::TooMuch(Violation::Names(10)));
        }
    }

    #[test]
    fn what_a_node_says_of_itself_is_short() {
        let of = |long: usize| {
            let text = "x".repeat(long);
            let place = |zone: &str| Locality {
                region: "eu".to_owned(),
                zone: zone.to_owned(),
                ..Default::default()
            };
            [
                (
                    "node id",
                    Node {
                        id: text.clone(),
                        ..node()
                    },
                ),
                (
                    "node cluster",
                    Node {
                        cluster: text.clone(),
                        ..node()
                    },
                ),
                (
                    "user agent name",
                    Node {
                        user_agent_name: text.clone(),
                        ..node()
                    },
                ),
                (
                    "locality",
                    Node {
                        locality: Some(place(&text[3..])),
                        ..node()
                    },
                ),
            ]
        };
        let read = |node: Node| {
            let request = DeltaDiscoveryRequest {
                node: Some(node),
                ..Default::default()
            };
            let bytes = request.encode_to_vec();
            read(Protocol::Delta, &bytes, LIMITS).map(|(claim, _)| claim)
        };
        for (what, node) in of(257) {
            assert_eq!(read(node), Err(Unread::Long(what, 256)));
        }
        for (what, node) in of(256) {
            assert!(read(node).is_ok(), "{what}");
        }
    }

    #[test]
    fn why_a_client_refused_something_is_cut() {
        // Three bytes each: 4000 is within one.
        for (text, len) in [
            ("no", 2),
            (&*"é".repeat(100), 200),
            (&*"€".repeat(20_000), 3999),
        ] {
            let request = DiscoveryRequest {
                error_detail: Some(status(text)),
                ..Default::default()
            };
            let bytes = request.encode_to_vec();
            let (_, request) = read(Protocol::Sotw, &bytes, LIMITS).unwrap();
            assert_eq!(request.error.unwrap().len(), len);
        }
    }

    #[test]
    fn other_long_things_and_what_is_no_request_are_refused() {
        let long = "x".repeat(300);
        let (type_url, response_nonce) = (long.clone(), long.clone());
        let all = [
            DiscoveryRequest {
                type_url,
                ..Default::default()
            },
            DiscoveryRequest {
                response_nonce,
                ..Default::default()
            },
            DiscoveryRequest {
                version_info: long,
                ..Default::default()
            },
        ];
        for request in all {
            let bytes = request.encode_to_vec();
            let unread = read(Protocol::Sotw, &bytes, LIMITS);
            assert!(matches!(unread, Err(Unread::Long(..))), "{unread:?}");
        }
        for bytes in [
            &b"\x02\xff\xff"[..],
            b"\x1a\x01\xff",
            b"\x12\x02\x0a\x05",
            b"\x1b",
        ] {
            let unread = read(Protocol::Sotw, bytes, LIMITS);
            assert!(matches!(unread, Err(Unread::Broken(_))), "{unread:?}");
        }
    }
}
