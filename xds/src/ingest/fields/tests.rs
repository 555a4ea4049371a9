//! Each rule of the walk; and the walk beside one that is slow and plain, on messages at random.

use std::collections::{BTreeMap, BTreeSet};

use prost::{Message as _, Name as _};
use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage as _, Value,
};

use super::allowed::ROOTS;
use super::made::{ANY, POOL, Path_, SECTIONS, WHOLE, is_rest};
use super::*;
use crate::pb::{self, cluster, core, endpoint, hcm, listener, route, tcp_proxy};
use crate::session::Kind as Of;

fn filter(typed: &Any) -> listener::Filter {
    listener::Filter {
        name: "one".to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(typed.clone())),
    }
}

fn listener(filters: &[&Any]) -> Any {
    let last = listener::FilterChain {
        filters: filters.iter().map(|any| filter(any)).collect(),
        ..Default::default()
    };
    pb::pack(&listener::Listener {
        name: "apps".to_owned(),
        filter_chains: vec![listener::FilterChain::default(), last],
        ..Default::default()
    })
}

/// A field of bytes.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    prost::encode_length_delimiter(content.len(), &mut bytes).unwrap();
    bytes.extend(content);
    bytes
}

fn cluster(bytes: Vec<u8>) -> Any {
    Any {
        type_url: cluster::Cluster::type_url(),
        value: bytes,
    }
}

fn refused(any: &Any) -> String {
    check(any).unwrap_err()
}

const TCP_PROXY: &str = "filter_chains[1].filters[0].typed_config(envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy)";

#[test]
fn a_field_that_is_not_understood_is_refused_by_its_path_and_what_is_understood_is_not() {
    let mut proxy = tcp_proxy::TcpProxy {
        stat_prefix: "orders".to_owned(),
        cluster_specifier: Some(tcp_proxy::tcp_proxy::ClusterSpecifier::Cluster(
            "orders".to_owned(),
        )),
        ..Default::default()
    };
    let good = pb::pack(&proxy);
    assert_eq!(check(&listener(&[&good])), Ok(()));
    proxy.tunneling_config = Some(tcp_proxy::tcp_proxy::TunnelingConfig::default());
    let bad = pb::pack(&proxy);
    assert_eq!(
        refused(&listener(&[&bad])),
        format!("`{TCP_PROXY}.tunneling_config` is not supported")
    );
    // The second of its filters.
    let second = TCP_PROXY.replace("filters[0]", "filters[1]");
    assert_eq!(
        refused(&listener(&[&good, &bad])),
        format!("`{second}.tunneling_config` is not supported")
    );
}

#[test]
fn what_holds_a_type_that_is_not_understood_is_refused_with_the_type() {
    let odd = Any {
        type_url: "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo".to_owned(),
        value: vec![0xff],
    };
    let echo =
        "filter_chains[1].filters[0].typed_config(envoy.extensions.filters.network.echo.v3.Echo)";
    assert_eq!(
        refused(&listener(&[&odd])),
        format!("`{echo}` is not supported")
    );
    // By another name it is another type.
    let proxy = pb::pack(&tcp_proxy::TcpProxy::default());
    let by_another = Any {
        type_url: proxy.type_url.replace("type.googleapis.com", "example.com"),
        value: proxy.value,
    };
    assert!(refused(&listener(&[&by_another])).contains("typed_config(example.com/envoy."));
    let long = Any {
        type_url: "x".repeat(1000),
        value: Vec::new(),
    };
    assert!(refused(&listener(&[&long])).len() < 200);
    let root = Any {
        type_url: "type.googleapis.com/google.protobuf.Struct".to_owned(),
        value: Vec::new(),
    };
    assert_eq!(
        refused(&root),
        "`(google.protobuf.Struct)` is not supported"
    );
}

#[test]
fn maps_are_named_by_key_and_wherever_in_its_entry_the_key_stands() {
    let any = pb::pack(&core::Http2ProtocolOptions::default());
    let mut of = cluster::Cluster::default();
    of.typed_extension_protocol_options
        .insert("envoy.other".to_owned(), any.clone());
    let expected = "`typed_extension_protocol_options[envoy.other]` is not supported";
    assert_eq!(refused(&pb::pack(&of)), expected);
    let turned = [field(2, &any.encode_to_vec()), field(1, b"envoy.other")].concat();
    let bytes = [vec![0xa2, 2, u8::try_from(turned.len()).unwrap()], turned].concat();
    assert_eq!(refused(&cluster(bytes)), expected);
    // A type that is not that of the key.
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    of.typed_extension_protocol_options = [(options.to_owned(), any)].into();
    let within = format!("typed_extension_protocol_options[{options}](envoy.config.core");
    assert!(refused(&pb::pack(&of)).contains(&within));
}

#[test]
fn all_that_is_refused_is_named_up_to_a_bound_and_each_once() {
    let of = cluster::Cluster {
        lrs_report_endpoint_metrics: vec!["a".to_owned(), "b".to_owned()],
        connection_pool_per_downstream_connection: true,
        ..Default::default()
    };
    assert_eq!(
        refused(&pb::pack(&of)),
        "`connection_pool_per_downstream_connection`, `lrs_report_endpoint_metrics` are not supported"
    );
    let host = route::VirtualHost {
        include_request_attempt_count: true,
        ..Default::default()
    };
    let routes = |count: usize| {
        pb::pack(&route::RouteConfiguration {
            virtual_hosts: vec![host.clone(); count],
            ..Default::default()
        })
    };
    let all = refused(&routes(NAMED_MAX));
    assert_eq!(
        all.matches("include_request_attempt_count").count(),
        NAMED_MAX
    );
    assert!(all.ends_with("` are not supported"), "{all}");
    let more = refused(&routes(NAMED_MAX + 1));
    assert_eq!(
        more.matches("include_request_attempt_count").count(),
        NAMED_MAX
    );
    assert!(more.ends_with("` and others are not supported"), "{more}");
}

#[test]
fn a_field_without_a_name_is_refused_by_its_number_and_once() {
    let one = [0xfa, 0xff, 0x7f, 1, 0];
    let bytes = [&one[..], &one[..], &[0x9b, 0x40, 0x08, 1, 0x9c, 0x40]].concat();
    // The second is a group, of which nothing is looked at.
    assert_eq!(
        refused(&cluster(bytes)),
        "`field 262143`, `field 1027` are not supported"
    );
}

#[test]
fn what_is_at_its_default_is_not_set_and_what_a_wrapper_says_is() {
    // `use_tcp_for_dns_lookups`, false, in one byte and in three; `protocol_selection`, 0.
    let bytes = [0xe8, 2, 0, 0xe8, 2, 0x80, 0x80, 0, 0xd0, 1, 0];
    assert_eq!(check(&cluster(bytes.to_vec())), Ok(()));
    assert!(check(&cluster(vec![0xe8, 2, 1])).is_err());
    let of = cluster::Cluster {
        wait_for_warm_on_init: pb::boolean(false),
        ..Default::default()
    };
    assert_eq!(
        refused(&pb::pack(&of)),
        "`wait_for_warm_on_init` is not supported"
    );
    // One of several is set whatever it is.
    let action = route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::ClusterHeader(
            String::new(),
        )),
        ..Default::default()
    };
    let host = route::VirtualHost {
        routes: vec![route::Route {
            action: Some(route::route::Action::Route(action)),
            ..Default::default()
        }],
        ..Default::default()
    };
    let routes = route::RouteConfiguration {
        virtual_hosts: vec![host],
        ..Default::default()
    };
    assert_eq!(
        refused(&pb::pack(&routes)),
        "`virtual_hosts[0].routes[0].route.cluster_header` is not supported"
    );
}

#[test]
fn numbers_are_read_packed_and_one_by_one() {
    // `http_health_check.expected_statuses` is not understood; `retriable_status_codes` is.
    for codes in [&[0x3a, 2, 0xf4, 3][..], &[0x38, 0xf4, 3]] {
        let policy = field(16, codes);
        assert_eq!(policy[0], 0x82);
        let host = [
            vec![0x82, 1, u8::try_from(codes.len()).unwrap()],
            codes.to_vec(),
        ]
        .concat();
        let any = Any {
            type_url: route::RouteConfiguration::type_url(),
            value: field(2, &host),
        };
        let decoded: route::RouteConfiguration = pb::unpack(&any).unwrap();
        let policy = decoded.virtual_hosts[0].retry_policy.as_ref().unwrap();
        assert_eq!(policy.retriable_status_codes, [500]);
        assert_eq!(check(&any), Ok(()));
    }
}

#[test]
fn what_cannot_be_read_is_refused_where_that_is() {
    let broken = [0x0a, 5, b'a'];
    assert_eq!(refused(&cluster(broken.to_vec())), "it cannot be read");
    // `common_lb_config`
    let within = [&[0xda, 1, 3][..], &broken].concat();
    assert_eq!(
        refused(&cluster(within)),
        "`common_lb_config`: it cannot be read"
    );
    // The name as a number.
    assert_eq!(
        refused(&cluster(vec![0x08, 1])),
        "`name`: it is of another kind than this field"
    );
    // What was refused before that is told too.
    let both = [&[0xe8, 2, 1][..], &broken].concat();
    assert_eq!(
        refused(&cluster(both)),
        "`use_tcp_for_dns_lookups` is not supported; it cannot be read"
    );
    let typed = [field(1, b"type.googleapis.com/x"), vec![0x10, 1]].concat();
    let socket = [
        vec![0xc2, 1, u8::try_from(typed.len() + 2).unwrap()],
        field(3, &typed),
    ]
    .concat();
    assert_eq!(
        refused(&cluster(socket)),
        "`transport_socket.typed_config`: it cannot be read"
    );
}

/// Where one message is there twice, what decodes it makes one of the two, with the type of one and the
/// bytes of the other.
#[test]
fn a_message_that_comes_in_two_parts_is_refused() {
    let twice = [0xda, 1, 0, 0xda, 1, 0];
    assert_eq!(
        refused(&cluster(twice.to_vec())),
        "`common_lb_config`: it is there twice"
    );
}

#[test]
fn messages_within_messages_are_bounded() {
    let nested = |depth: usize| {
        let mut principal = Vec::new();
        for _ in 0..depth {
            // `not_id`
            principal = field(8, &principal);
        }
        let policy = field(2, &principal);
        let entry = [field(1, b"p"), field(2, &policy)].concat();
        let rules = field(1, &field(2, &entry));
        let rbac = Any {
            type_url: pb::network_rbac::Rbac::type_url(),
            value: rules,
        };
        listener(&[&rbac])
    };
    assert_eq!(check(&nested(40)), Ok(()));
    let deep = refused(&nested(100));
    assert!(
        deep.ends_with(".not_id`: it is nested too deeply"),
        "{deep}"
    );
}

#[test]
fn routes_within_a_listener_are_looked_at_too() {
    let manager = hcm::HttpConnectionManager {
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::RouteConfig(
            route::RouteConfiguration {
                vhds: Some(route::Vhds::default()),
                ..Default::default()
            },
        )),
        ..Default::default()
    };
    let said = refused(&listener(&[&pb::pack(&manager)]));
    assert!(
        said.ends_with("HttpConnectionManager).route_config.vhds` is not supported"),
        "{said}"
    );
}

#[test]
fn a_resource_with_our_metadata_is_ours() {
    let with = |key: &str| core::Metadata {
        filter_metadata: [(key.to_owned(), pb::Struct::default())].into(),
        ..Default::default()
    };
    let (ours, others) = (with(METADATA), with("envoy.lb"));
    for (of, is_expected) in [(Some(ours), true), (Some(others), false), (None, false)] {
        let cluster = cluster::Cluster {
            name: METADATA.to_owned(),
            metadata: of.clone(),
            ..Default::default()
        };
        let listener = listener::Listener {
            metadata: of.clone(),
            ..Default::default()
        };
        let endpoint = endpoint::LbEndpoint {
            metadata: of.clone(),
            ..Default::default()
        };
        let place = endpoint::LocalityLbEndpoints {
            lb_endpoints: vec![endpoint],
            ..Default::default()
        };
        let endpoints = endpoint::ClusterLoadAssignment {
            endpoints: vec![place],
            ..Default::default()
        };
        let host = route::VirtualHost {
            routes: vec![route::Route {
                metadata: of,
                ..Default::default()
            }],
            ..Default::default()
        };
        let routes = route::RouteConfiguration {
            virtual_hosts: vec![host],
            ..Default::default()
        };
        for (kind, any) in [
            (Of::Cluster, pb::pack(&cluster)),
            (Of::Listener, pb::pack(&listener)),
            (Of::Endpoints, pb::pack(&endpoints)),
            (Of::Routes, pb::pack(&routes)),
        ] {
            assert_eq!(is_ours(kind, &any), is_expected, "{kind:?}");
        }
    }
}

/// What the list says of a message in a place: the lines of it.
type Lines = Vec<Path_>;

/// The same by reflection, each place by the lines themselves.
fn expected(message: &DynamicMessage, lines: &[Path_], at: &str, out: &mut BTreeSet<String>) {
    let dot = if at.is_empty() { "" } else { "." };
    for (field, value) in message.fields() {
        let here = format!("{at}{dot}{}", field.name());
        let lines = under(lines, &field);
        if lines.is_empty() {
            out.insert(here);
            continue;
        }
        if let Value::List(values) = value {
            for (nth, value) in values.iter().enumerate() {
                of_value(value, &lines, &format!("{here}[{nth}]"), out);
            }
        } else if let Value::Map(values) = value {
            let values: BTreeMap<&MapKey, &Value> = values.iter().collect();
            for (key, value) in values {
                let key = key.as_str().unwrap();
                let here = format!("{here}[{key}]");
                match of_key(&lines, key).as_slice() {
                    [] => drop(out.insert(here)),
                    some => of_value(value, some, &here, out),
                }
            }
        } else {
            of_value(value, &lines, &here, out);
        }
    }
    for unknown in message.unknown_fields() {
        out.insert(format!("{at}{dot}field {}", unknown.number()));
    }
}

fn of_value(value: &Value, lines: &[Path_], at: &str, out: &mut BTreeSet<String>) {
    let Value::Message(message) = value else {
        return;
    };
    if lines
        .iter()
        .any(|line| is_rest(&line[1..]) && line[0].of.is_none())
    {
        return;
    }
    if message.descriptor().full_name() != ANY {
        return of_message(message, &rests(lines), at, out);
    }
    let url = message.get_field_by_name("type_url").unwrap();
    let url = url.as_str().unwrap();
    let name = url.strip_prefix("type.googleapis.com/").unwrap_or("");
    let lines: Lines = (lines.iter())
        .filter(|line| line[0].of.as_deref() == Some(name))
        .cloned()
        .collect();
    if lines.is_empty() {
        let name = if name.is_empty() { url } else { name };
        out.insert(format!("{at}({name})"));
        return;
    }
    let value = message.get_field_by_name("value").unwrap();
    let of = POOL.get_message_by_name(name).unwrap();
    let held = DynamicMessage::decode(of, value.as_bytes().unwrap().clone()).unwrap();
    of_message(&held, &rests(&lines), &format!("{at}({name})"), out);
}

fn of_message(message: &DynamicMessage, rests: &[Path_], at: &str, out: &mut BTreeSet<String>) {
    if let Some(lines) = lines_of(&message.descriptor(), rests) {
        expected(message, &lines, at, out);
    }
}

/// Those of a message's fields; `None` where it is understood whole.
fn lines_of(message: &MessageDescriptor, rests: &[Path_]) -> Option<Lines> {
    match rests {
        [rest] if is_rest(rest) => None,
        [rest] if rest.is_empty() && WHOLE.contains(&message.full_name()) => None,
        [rest] if rest.is_empty() => Some(
            SECTIONS
                .get(message.full_name())
                .cloned()
                .unwrap_or_default(),
        ),
        rests => Some(rests.to_vec()),
    }
}

fn under(lines: &[Path_], field: &FieldDescriptor) -> Lines {
    let of_field = lines.iter().filter(|line| line[0].name == field.name());
    of_field.cloned().collect()
}

fn of_key(lines: &[Path_], key: &str) -> Lines {
    let of = |key: Option<&str>| -> Lines {
        let found = lines.iter().filter(|line| line[0].key.as_deref() == key);
        found.cloned().collect()
    };
    let own = of(Some(key));
    if own.is_empty() { of(None) } else { own }
}

fn rests(lines: &[Path_]) -> Lines {
    lines.iter().map(|line| line[1..].to_vec()).collect()
}

/// A message at random, mostly of what is understood.
fn message(
    rng: &mut fastrand::Rng,
    of: &MessageDescriptor,
    lines: Option<&[Path_]>,
    depth: usize,
) -> DynamicMessage {
    let mut message = DynamicMessage::new(of.clone());
    for field in of.fields() {
        let lines = lines.map(|lines| under(lines, &field));
        let is_understood = lines.as_ref().is_none_or(|lines| !lines.is_empty());
        let is_message = matches!(field.kind(), Kind::Message(_));
        let odds = match (is_understood, is_message) {
            (true, true) => 4,
            (true, false) => 3,
            (false, _) => 40,
        };
        if rng.u32(..odds) != 0 || (is_message && depth == 0) {
            continue;
        }
        let lines = lines.unwrap_or_default();
        let value = if field.is_map() {
            let entry = field.kind();
            let kind = entry.as_message().unwrap().map_entry_value_field().kind();
            if entry.as_message().unwrap().map_entry_key_field().kind() != Kind::String {
                continue;
            }
            let keys = lines.iter().filter_map(|line| line[0].key.clone());
            let keys: Vec<String> = keys.chain(["a".to_owned(), String::new()]).collect();
            let count = rng.usize(1..3);
            let entries = (0..count).map(|_| {
                let key = rng.choice(&keys).unwrap().clone();
                let value = value(rng, &kind, &of_key(&lines, &key), depth);
                (MapKey::String(key), value)
            });
            Value::Map(entries.collect())
        } else if field.is_list() {
            let count = rng.usize(1..4);
            let values = (0..count).map(|_| value(rng, &field.kind(), &lines, depth));
            Value::List(values.collect())
        } else {
            value(rng, &field.kind(), &lines, depth)
        };
        message.set_field(&field, value);
    }
    message
}

fn value(rng: &mut fastrand::Rng, kind: &Kind, lines: &[Path_], depth: usize) -> Value {
    let number = if rng.bool() { 0 } else { rng.u8(..) };
    match kind {
        Kind::Double => Value::F64(f64::from(number)),
        Kind::Float => Value::F32(f32::from(number)),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(-i32::from(number)),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(-i64::from(number)),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(u32::from(number) << 8),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(u64::from(number) << 40),
        Kind::Bool => Value::Bool(number > 0),
        Kind::Enum(_) => Value::EnumNumber(i32::from(number % 3)),
        Kind::String => Value::String("a".repeat(usize::from(number % 3))),
        Kind::Bytes => Value::Bytes(vec![0xff; usize::from(number % 3)].into()),
        Kind::Message(of) if of.full_name() == ANY => Value::Message(any(rng, of, lines, depth)),
        Kind::Message(of) => {
            let lines = lines_of(of, &rests(lines));
            Value::Message(message(rng, of, lines.as_deref(), depth.saturating_sub(1)))
        }
    }
}

fn any(
    rng: &mut fastrand::Rng,
    of: &MessageDescriptor,
    lines: &[Path_],
    depth: usize,
) -> DynamicMessage {
    let types: Vec<&str> = (lines.iter())
        .filter_map(|line| line[0].of.as_deref())
        .collect();
    let all: Vec<MessageDescriptor> = POOL.all_messages().collect();
    let known = rng.choice(&types).filter(|_| rng.u32(..10) != 0);
    let held = match known {
        Some(name) => POOL.get_message_by_name(name).unwrap(),
        None => rng.choice(&all).unwrap().clone(),
    };
    let name = held.full_name().to_owned();
    let own: Lines = (lines.iter())
        .filter(|line| line[0].of.as_deref() == Some(&*name))
        .cloned()
        .collect();
    let lines = lines_of(&held, &rests(&own));
    let inner = message(rng, &held, lines.as_deref(), depth.saturating_sub(1));
    let prefix = match rng.u32(..20) {
        0 => "",
        1 => "example.com/",
        _ => "type.googleapis.com/",
    };
    let mut any = DynamicMessage::new(of.clone());
    any.set_field_by_name("type_url", Value::String(format!("{prefix}{name}")));
    let bytes = shuffled(rng, &inner.encode_to_vec());
    any.set_field_by_name("value", Value::Bytes(bytes.into()));
    any
}

/// The fields in another order, perhaps with one that nobody knows.
fn shuffled(rng: &mut fastrand::Rng, bytes: &[u8]) -> Vec<u8> {
    let mut fields = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let before = rest;
        next(&mut rest).unwrap();
        fields.push(before[..before.len() - rest.len()].to_vec());
    }
    if rng.u32(..20) == 0 {
        // 8190, as a number.
        fields.push(vec![0xf0, 0xff, 3, rng.u8(..128)]);
    }
    rng.shuffle(&mut fields);
    fields.concat()
}

#[test]
fn the_walk_names_what_reflection_finds_and_nothing_else() {
    let seed = std::env::var("ZEUGMA_SEED").map_or(20, |seed| seed.parse().unwrap());
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut clean, mut named) = (0, 0);
    for round in 0..2000 {
        let name = ROOTS[round % ROOTS.len()];
        let of = POOL.get_message_by_name(name).unwrap();
        let lines = &SECTIONS[name];
        let depth = rng.usize(1..10);
        let made = message(&mut rng, &of, Some(lines), depth).encode_to_vec();
        let bytes = shuffled(&mut rng, &made);
        let read = DynamicMessage::decode(of, bytes.as_slice()).unwrap();
        let mut found = BTreeSet::new();
        expected(&read, lines, "", &mut found);
        let any = Any {
            type_url: format!("type.googleapis.com/{name}"),
            value: bytes,
        };
        let mut walk = Walk::new(usize::MAX);
        walk.resource(&any);
        assert_eq!(
            walk.broken, None,
            "ZEUGMA_SEED={seed}, round {round}: {read:?}"
        );
        let count = walk.refused.len();
        let refused: BTreeSet<String> = walk.refused.into_iter().collect();
        assert_eq!(refused, found, "ZEUGMA_SEED={seed}, round {round}");
        assert_eq!(
            count,
            refused.len(),
            "each once: ZEUGMA_SEED={seed}, round {round}"
        );
        assert_eq!(check(&any).is_ok(), found.is_empty());
        clean += usize::from(found.is_empty());
        named += found.len();
    }
    assert!(clean > 200 && named > 1000, "{clean} {named}");
}

/// Whatever the bytes are, the walk ends, and says no more than it may.
#[test]
fn bytes_at_random_neither_stop_the_walk_nor_make_it_talk() {
    let mut rng = fastrand::Rng::with_seed(7);
    for round in 0..20_000 {
        let name = ROOTS[round % ROOTS.len()];
        let len = rng.usize(..200);
        let mut bytes: Vec<u8> = (0..len).map(|_| rng.u8(..)).collect();
        if rng.bool() {
            let of = POOL.get_message_by_name(name).unwrap();
            bytes = message(&mut rng, &of, None, 3).encode_to_vec();
            for _ in 0..3 {
                if let Some(at) = rng.usize(..=bytes.len()).checked_sub(1) {
                    bytes[at] = rng.u8(..);
                }
            }
        }
        let any = Any {
            type_url: format!("type.googleapis.com/{name}"),
            value: bytes,
        };
        if let Err(said) = check(&any) {
            assert!(said.len() < NAMED_MAX * 1000, "{said}");
        }
    }
}
