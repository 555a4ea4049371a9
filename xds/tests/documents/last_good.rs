//! What was compiled, as bytes: the same again, and never a panic whatever becomes of the bytes.

use std::fs;
use std::path::Path;

use zeugma_xds::{LastGood, LastGoodError, Loaded, NodeOptions, Sources, StateDir, load};

use crate::many;
use crate::robust::{Draw, full};
use crate::support::{EAST, WEST_PEER, route};

fn options(name: Option<&str>, locality: Option<&str>) -> NodeOptions {
    NodeOptions {
        name: name.map(str::to_owned),
        locality: locality.map(str::to_owned),
    }
}

/// A folder with a configuration that uses most fields and has a warning.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = route(
        "elsewhere",
        "protocol: http, backends: [{endpoints: ['10.0.0.1:9']}, {name: far, locality: us, \
         endpoints: ['10.0.0.2:9']}], failover: {order: []}, allow: [{listeners: [apps]}], \
         mirror: [{route: shop/orders, peer: west, percent: 5%}]",
    );
    let documents = [EAST, WEST_PEER, &full(), &elsewhere].concat();
    fs::write(dir.path().join("mesh.yaml"), documents).unwrap();
    dir
}

fn again(loaded: &Loaded, path: &Path, options: &NodeOptions) -> Result<Loaded, LastGoodError> {
    LastGood::from_bytes(loaded.last_good.as_bytes().to_vec()).load(path, options)
}

#[test]
fn what_was_kept_is_the_same_again() {
    let dir = folder();
    let options = NodeOptions::default();
    let loaded = load(dir.path(), &options).unwrap();
    assert!(!loaded.warnings.is_empty());
    assert_eq!(again(&loaded, dir.path(), &options).unwrap(), loaded);
    let sources = Sources::read(dir.path()).unwrap();
    assert_eq!(sources.made(&loaded.last_good, &options), Ok(true));
    // The same bytes in every run: protobuf's maps have no order.
    let other = load(dir.path(), &options).unwrap();
    assert_eq!(other.last_good, loaded.last_good);
}

#[test]
fn a_change_of_any_file_is_seen() {
    let dir = folder();
    let options = NodeOptions::default();
    let kept = load(dir.path(), &options).unwrap().last_good;
    let made = || Sources::read(dir.path()).unwrap().made(&kept, &options);
    let file = dir.path().join("mesh.yaml");
    let text = fs::read_to_string(&file).unwrap();
    // As long as before, and as old as a file system can tell.
    fs::write(&file, text.replace("10.0.0.1:9", "10.0.0.3:9")).unwrap();
    assert_eq!(made(), Ok(false));
    fs::write(&file, &text).unwrap();
    assert_eq!(made(), Ok(true));
    fs::write(dir.path().join("more.yaml"), route("more", "")).unwrap();
    assert_eq!(made(), Ok(false));
    fs::rename(dir.path().join("more.yaml"), dir.path().join("more.txt")).unwrap();
    assert_eq!(made(), Ok(true));
    fs::rename(&file, dir.path().join("other.yaml")).unwrap();
    assert_eq!(made(), Ok(false));
}

#[test]
fn what_another_node_kept_is_not_used() {
    let dir = folder();
    let here = NodeOptions::default();
    let loaded = load(dir.path(), &here).unwrap();
    for (other, words) in [
        (options(Some("east-gw"), None), "--name none, not east-gw"),
        (options(None, Some("us")), "--locality none, not us"),
    ] {
        let error = again(&loaded, dir.path(), &other).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(matches!(error, LastGoodError::OtherOptions(_)));
        let sources = Sources::read(dir.path()).unwrap();
        assert!(sources.made(&loaded.last_good, &other).is_err());
    }
    let elsewhere = again(&loaded, Path::new("/elsewhere"), &here).unwrap_err();
    assert!(matches!(elsewhere, LastGoodError::OtherOptions(_)));
}

#[test]
fn damage_is_told_and_never_a_panic() {
    let dir = folder();
    let options = NodeOptions::default();
    let loaded = load(dir.path(), &options).unwrap();
    let good = loaded.last_good.as_bytes();
    let read = |bytes: Vec<u8>| LastGood::from_bytes(bytes).load(dir.path(), &options);
    for len in 0..good.len() {
        let error = read(good[..len].to_vec()).unwrap_err();
        assert!(matches!(error, LastGoodError::Damaged(_)), "{len}: {error}");
    }
    let mut longer = good.to_vec();
    longer.push(0);
    assert!(read(longer).is_err());
    for at in 0..good.len() {
        let mut flipped = good.to_vec();
        flipped[at] ^= 1 << (at % 8);
        assert!(read(flipped).is_err(), "byte {at}");
    }
}

/// The checksum finds accidents; what is changed together with it must be found by reading.
#[test]
fn damage_with_a_good_checksum_is_never_a_panic() {
    const ROUNDS: usize = 3000;
    let seed = std::env::var("ZEUGMA_SEED").map_or(20, |seed| seed.parse().unwrap());
    #[expect(clippy::print_stdout, reason = "the seed, for a run that failed")]
    {
        println!("ZEUGMA_SEED={seed}");
    }
    let mut draw = Draw(seed);
    let dir = folder();
    let options = NodeOptions::default();
    let loaded = load(dir.path(), &options).unwrap();
    let (head, body) = loaded
        .last_good
        .as_bytes()
        .split_at(b"zeugma state\n".len() + 16);
    let magic = &head[..head.len() - 16];
    let (mut refused, mut read) = (0, 0);
    for _ in 0..ROUNDS {
        let mut body = body.to_vec();
        for _ in 0..=draw.below(3) {
            let at = draw.below(body.len());
            match draw.below(3) {
                0 => body[at] = draw.next().to_le_bytes()[0],
                1 if body.len() > 1 => drop(body.remove(at)),
                _ => body.truncate(at.max(1)),
            }
        }
        let mut bytes = magic.to_vec();
        bytes.extend(fnv_1a(&body).to_le_bytes());
        bytes.extend(body);
        match LastGood::from_bytes(bytes).load(dir.path(), &options) {
            Ok(_) => read += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(refused > ROUNDS / 3, "{refused} refused, {read} read");
}

/// FNV-1a of 128 bits (draft-eastlake-fnv §2, §5).
fn fnv_1a(bytes: &[u8]) -> u128 {
    bytes
        .iter()
        .fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash, byte| {
            (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
        })
}

#[test]
fn the_state_directory_is_known_though_the_rest_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let of = |text: &str, name: Option<&str>| {
        fs::write(dir.path().join("mesh.yaml"), text).unwrap();
        Sources::read(dir.path())
            .unwrap()
            .state_dirs(&options(name, None))
    };
    let given = |path: &str| StateDir::Given(dir.path().join(path));
    let gateway = "kind: MeshGateway\nmetadata: {name: a}\nspec: {stateDir: s, nonsense: 1}\n";
    let (a, b) = (
        ("a".to_owned(), given("s")),
        ("b".to_owned(), StateDir::Default),
    );
    assert_eq!(of(gateway, None), std::slice::from_ref(&a));
    assert_eq!(of(gateway, Some("b")), []);
    let two = format!("{gateway}---\nkind: MeshGateway\nmetadata: {{name: b}}\n---\na: [\n");
    assert_eq!(of(&two, Some("b")), std::slice::from_ref(&b));
    assert_eq!(of(&two, None), [a, b]);
    assert_eq!(of("kind: MeshGateway\nmetadata: {name: [\n", None), []);
}

/// What grows with the routes grows in proportion to them, and by no more than this for each: what
/// was compiled, and the text itself.
#[test]
fn a_thousand_more_routes_take_a_thousand_times_one() {
    const ROUTE_BYTES_MAX: usize = 1400;
    let bytes = |routes: usize| {
        let dir = tempfile::tempdir().unwrap();
        let documents = many::mesh(routes).join("---\n");
        fs::write(
            dir.path().join("mesh.yaml"),
            format!("{EAST}---\n{documents}"),
        )
        .unwrap();
        let loaded = load(dir.path(), &NodeOptions::default()).unwrap();
        assert_eq!(loaded.snapshot.services.len(), routes);
        assert_eq!(loaded.snapshot.clusters.len(), routes * 2);
        loaded.last_good.as_bytes().len()
    };
    let (few, many) = (bytes(200), bytes(1200));
    let each = (many - few) / 1000;
    assert!(each <= ROUTE_BYTES_MAX, "{each} bytes for each route");
}
