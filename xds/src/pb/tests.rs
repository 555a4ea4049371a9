use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::*;
use crate::meta::{
    AnyClusterMeta, ClusterMeta, EndpointMeta, ExportMeta, HashMeta, PeerMeta, RouteMeta,
};

/// What JSON says, read as the metadata that it stands for.
fn read<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    from_metadata(Some(&of(value)))
}

/// JSON as metadata, by the library's own way of writing it.
fn of(value: Value) -> core::Metadata {
    fn kind(value: Value) -> Kind {
        match value {
            Value::Null => Kind::NullValue(0),
            Value::Bool(value) => Kind::BoolValue(value),
            Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap()),
            Value::String(value) => Kind::StringValue(value),
            Value::Array(values) => Kind::ListValue(ListValue {
                values: values.into_iter().map(one).collect(),
            }),
            Value::Object(fields) => Kind::StructValue(Struct {
                fields: (fields.into_iter())
                    .map(|(key, value)| (key, one(value)))
                    .collect(),
            }),
        }
    }
    fn one(value: Value) -> PbValue {
        PbValue {
            kind: Some(kind(value)),
        }
    }
    let Kind::StructValue(fields) = kind(value) else {
        panic!("no object");
    };
    core::Metadata {
        filter_metadata: [(METADATA.to_owned(), fields)].into(),
        ..Default::default()
    }
}

/// Written, it is what JSON says, and as long as was told; read, it is the same again.
fn goes_to_and_fro<T: Serialize + DeserializeOwned + PartialEq + Debug>(json: Value) {
    let value: T = serde_json::from_value(json.clone()).unwrap();
    let written = metadata(&value);
    assert_eq!(written, of(serde_json::to_value(&value).unwrap()), "{json}");
    assert_eq!(from_metadata::<T>(Some(&written)).unwrap(), value, "{json}");
    assert_eq!(read::<T>(json.clone()).unwrap(), value, "{json}");
    let cluster = cluster::Cluster {
        metadata: Some(written),
        ..Default::default()
    };
    assert_eq!(metadata_len(&value), cluster.encoded_len(), "{json}");
}

fn endpoint() -> Value {
    json!({"backend": "a", "peer": null, "workload": true, "version": "h2", "each": false})
}

fn traffic() -> Value {
    json!({
        "kind": "traffic",
        "route": "shop/orders",
        "failover": {
            "start": 0.7, "full": 0.35, "holdMillis": 5000, "failbackAfterMillis": 30000,
            "failbackRampMillis": 0, "useAll": false,
        },
        "passive": {
            "on": ["5xx", "reset"], "errorRate": {"over": 0.5, "requests": 20}, "maxEjected": 0.5,
            "keepAtLeast": 1,
        },
        "hashOn": {"header": "x-user"},
        "slowStartMillis": 1,
        "timeouts": {
            "connectPeerMillis": 1, "responseHeadersMillis": 2, "idleMillis": 3, "perTryMillis": null,
        },
        "retries": {"attempts": 2, "on": [], "budget": 0.2, "bufferBytes": 65536, "anyMethod": false},
        "service": {
            "id": "shop/orders:443", "port": 443, "ports": 1, "hosts": ["orders.shop"],
            "protocol": "tcp", "inbound": "passthrough", "isAudited": false, "own": null,
            "export": {"to": ["west"]}, "position": {"file": "mesh.yaml", "line": 7},
        },
    })
}

#[test]
fn metadata_goes_to_and_fro_as_json_does() {
    goes_to_and_fro::<EndpointMeta>(endpoint());
    goes_to_and_fro::<AnyClusterMeta>(traffic());
    goes_to_and_fro::<AnyClusterMeta>(json!({
        "kind": "peer", "peer": "west", "cluster": "w", "locality": "eu", "attests": [], "sources": ["::/0"],
    }));
    goes_to_and_fro::<RouteMeta>(json!({"mirrors": []}));
    for one in [json!("source"), json!({"header": "x"})] {
        let value: HashMeta = serde_json::from_value(one.clone()).unwrap();
        assert_eq!(
            read::<Holder<HashMeta>>(json!({"it": one})).unwrap().it,
            value
        );
    }
    for one in [json!("nobody"), json!("allPeers"), json!({"to": []})] {
        let value: ExportMeta = serde_json::from_value(one.clone()).unwrap();
        assert_eq!(
            read::<Holder<ExportMeta>>(json!({"it": one})).unwrap().it,
            value
        );
    }
}

#[derive(Debug, serde::Deserialize)]
struct Holder<T> {
    it: T,
}

#[test]
fn what_is_wrong_with_metadata_is_told_as_of_json() {
    let with = |of: Value, path: &str, value: Value| {
        let mut of = of;
        let (parent, field) = path.rsplit_once('/').unwrap();
        of.pointer_mut(parent).unwrap()[field] = value;
        of
    };
    fn same<T: DeserializeOwned + Debug>(json: Value) {
        let told = read::<T>(json.clone()).unwrap_err();
        let expected = serde_json::from_value::<T>(json.clone()).unwrap_err();
        assert_eq!(
            told,
            format!("its `{METADATA}` metadata: {expected}"),
            "{json}"
        );
    }
    same::<EndpointMeta>(json!({}));
    same::<EndpointMeta>(with(endpoint(), "/other", json!(1)));
    same::<EndpointMeta>(with(endpoint(), "/backend", json!(7)));
    same::<EndpointMeta>(with(endpoint(), "/workload", json!("yes")));
    same::<EndpointMeta>(with(endpoint(), "/capacity", json!(5_000_000_000_u64)));
    same::<EndpointMeta>(with(endpoint(), "/version", json!("h4")));
    same::<EndpointMeta>(with(endpoint(), "/backend", json!(null)));
    for version in [json!(3), json!(null), json!([]), json!({})] {
        same::<EndpointMeta>(with(endpoint(), "/version", version));
    }
    for hash in [json!(3), json!({}), json!({"header": "x", "source": null})] {
        same::<Holder<HashMeta>>(json!({"it": hash}));
    }
    same::<AnyClusterMeta>(with(traffic(), "/route", json!(null)));
    same::<PeerMeta>(json!({"peer": [1]}));
    same::<ClusterMeta>(json!({"route": "a", "failover": []}));
    // Of doubles that are no whole numbers of ours none is read as one.
    for number in [-1.0, 0.5, 9.1e15, f64::MAX] {
        let json = with(endpoint(), "/capacity", json!(number));
        assert!(read::<EndpointMeta>(json).is_err(), "{number}");
    }
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut metadata = of(endpoint());
        let fields = metadata.filter_metadata.get_mut(METADATA).unwrap();
        let kind = Some(Kind::NumberValue(number));
        fields
            .fields
            .insert("capacity".to_owned(), PbValue { kind });
        let read = from_metadata::<EndpointMeta>(Some(&metadata)).unwrap();
        assert_eq!(read.capacity, None, "{number}");
        assert_eq!(written(number).kind, Some(Kind::NullValue(0)), "{number}");
    }
    assert!(
        from_metadata::<EndpointMeta>(None)
            .unwrap_err()
            .contains(METADATA)
    );
}

fn written(number: f64) -> PbValue {
    #[derive(serde::Serialize)]
    struct One {
        it: f64,
    }
    let mut written = write::to_struct(&One { it: number }).unwrap();
    written.fields.remove("it").unwrap()
}
