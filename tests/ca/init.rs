//! `zeugma init`.

use zeugma_proxy::tls::{Credentials, SvidFiles};
use zeugma_xds::{Color, Loaded, NodeOptions};

use crate::support::{Bench, Killer, files};

const EAST: &str = "init east --trust-domain east.example --cluster east";
const WEST: &str = "init west --trust-domain west.example --cluster west --peer east";

#[test]
fn a_cluster_alone_has_all_that_a_gateway_needs() {
    let bench = Bench::new();
    let said = bench.ok(EAST);
    assert!(
        said.contains("next: zeugma gateway --config east\n"),
        "{said}"
    );
    let names: Vec<String> = files(&bench.path("east"))
        .iter()
        .map(|path| {
            path.strip_prefix(bench.path("east"))
                .unwrap()
                .display()
                .to_string()
        })
        .filter(|name| !name.starts_with("ca/"))
        .collect();
    assert_eq!(
        names,
        [
            "admin.token",
            "bundles/east.example.json",
            "gateway.yaml",
            "gw.key",
            "gw.pem",
            "hello.yaml",
            "init.json"
        ]
    );
    let said = bench.ok("ca verify east/gw.pem --bundles east/bundles");
    assert!(
        said.contains("spiffe://east.example/zeugma/gateway"),
        "{said}"
    );
}

#[test]
fn two_clusters_of_one_root_trust_each_other_after_two_commands() {
    let bench = Bench::new();
    bench.ok(EAST);
    bench.ok(&format!("{WEST} --ca east/ca"));
    assert!(!bench.path("west/ca").exists());
    for (cluster, other) in [("east", "west"), ("west", "east")] {
        bench.ok(&format!(
            "ca verify {other}/gw.pem --bundles {cluster}/bundles"
        ));
        bench.ok(&format!(
            "ca verify {cluster}/gw.pem --bundles {cluster}/bundles"
        ));
        let peer = read(&bench, &format!("{cluster}/peer-{other}.yaml"));
        assert!(peer.contains("kind: MeshPeer"), "{peer}");
        let hello = read(&bench, &format!("{cluster}/hello.yaml"));
        assert!(
            hello.contains(&format!("- {{ peer: \"{other}\" }}")),
            "{hello}"
        );
    }
    assert_eq!(
        bench.ok("ca --dir east/ca trust-domain list"),
        "east.example\nwest.example\n"
    );
}

#[test]
fn two_clusters_of_two_roots_trust_each_other_too() {
    let bench = Bench::new();
    bench.ok(EAST);
    bench.ok(WEST);
    assert!(bench.path("west/ca/root.key").exists());
    bench.ok("ca verify west/gw.pem --bundles east/bundles");
    bench.ok("ca verify east/gw.pem --bundles west/bundles");
}

#[test]
fn nothing_is_overwritten() {
    let bench = Bench::new();
    bench.ok(EAST);
    let before: Vec<_> = contents(&bench);
    let said = bench.fails(EAST, 1);
    assert!(
        said.contains("east/gateway.yaml is there already"),
        "{said}"
    );
    assert_eq!(contents(&bench), before);

    // A route of one's own stays as it is; the peer's document is written beside it.
    let own = "kind: MeshRoute # mine\n";
    std::fs::write(bench.path("east/hello.yaml"), own).unwrap();
    bench.ok(WEST);
    assert_eq!(read(&bench, "east/hello.yaml"), own);
    assert!(bench.path("east/peer-west.yaml").exists());

    std::fs::create_dir(bench.path("north")).unwrap();
    std::fs::write(bench.path("north/hello.yaml"), own).unwrap();
    let said = bench.fails("init north --trust-domain north.example --cluster north", 1);
    assert!(said.contains("north/hello.yaml is there already"), "{said}");
}

fn read(bench: &Bench, name: &str) -> String {
    std::fs::read_to_string(bench.path(name)).unwrap()
}

fn contents(bench: &Bench) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    files(bench.root())
        .into_iter()
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_made() {
    let bench = Bench::new();
    bench.ok(EAST);
    std::fs::create_dir(bench.path("other")).unwrap();
    std::fs::write(bench.path("other/init.json"), "{}").unwrap();
    let before = contents(&bench);
    for (words, code, why) in [
        (
            "init west --trust-domain west.example --cluster east --peer east",
            65,
            "error[ZG1022]: --peer is a cluster named `east` too",
        ),
        (
            "init west --trust-domain east.example --cluster west --peer east",
            65,
            "error[ZG1022]: --peer is of the trust domain `east.example` too",
        ),
        (
            "init west --trust-domain west.example --cluster west --peer east --base-port 15000",
            65,
            "error[ZG1022]: --peer has the base port 15000 too",
        ),
        (
            "init west --trust-domain west.example --cluster west --peer nowhere",
            1,
            "error[ZG0222]: cannot read nowhere/init.json",
        ),
        ("init west --trust-domain West --cluster west", 64, "ID2"),
        (
            "init west --trust-domain west.example --cluster ../west",
            64,
            "a cluster's name is",
        ),
        (
            "init west --trust-domain west.example",
            64,
            "error[ZG1001]: the following required arguments",
        ),
        (
            "init west --trust-domain west.example --cluster west --peer other",
            65,
            "error[ZG1021]: other/init.json was not made by `zeugma init`",
        ),
    ] {
        let said = bench.fails(words, code);
        assert!(said.contains(why), "{words}: {said}");
        assert!(!bench.path("west").exists(), "{words}");
    }
    assert_eq!(contents(&bench), before);
}

#[test]
fn killed_at_any_moment_init_can_be_run_again() {
    let mut killer = Killer::new();
    for _ in 0..12 {
        let bench = Bench::new();
        killer.kill(&mut bench.command(EAST));
        if !bench.path("east/gateway.yaml").exists() {
            bench.ok(EAST);
        }
        bench.ok("ca verify east/gw.pem --bundles east/bundles");
        bench.ok(&format!("{WEST} --ca east/ca"));
        bench.ok("ca verify west/gw.pem --bundles east/bundles");
    }
    killer.report();
}

/// What `zeugma gateway --config` would read of a folder, certificates included.
fn load(bench: &Bench, cluster: &str) -> Loaded {
    let loaded = zeugma_xds::load(&bench.path(cluster), &NodeOptions::default())
        .unwrap_or_else(|findings| panic!("{}", findings.to_human(Color::Plain)));
    let warnings = loaded.warnings.to_human(Color::Plain);
    assert!(loaded.warnings.is_empty(), "{warnings}");
    let written = loaded.settings.svid.files().unwrap();
    let files = SvidFiles {
        certificate: written.certificate.clone(),
        key: written.key.clone(),
        bundles: written.bundles.clone(),
        crls: written.crls.clone(),
        denied: written.denied.clone(),
        domains: Vec::new(),
        own: None,
    };
    let credentials = Credentials::load(&files, 1).unwrap();
    assert_eq!(
        credentials.id().unwrap().as_str(),
        format!("spiffe://{cluster}.example/zeugma/gateway")
    );
    loaded
}

#[test]
fn what_init_writes_loads_without_a_finding() {
    let bench = Bench::new();
    bench.ok(EAST);
    let alone = load(&bench, "east");
    assert_eq!(alone.settings.cluster, "east");
    assert_eq!(alone.snapshot.services.len(), 1);

    bench.ok(&format!("{WEST} --ca east/ca"));
    let mut ports = Vec::new();
    for cluster in ["east", "west"] {
        let loaded = load(&bench, cluster);
        assert_eq!(loaded.snapshot.services.len(), 1);
        assert_eq!(loaded.snapshot.peers.len(), 1);
        ports.push(loaded.settings.metrics);
        ports.push(loaded.settings.probes);
    }
    ports.sort();
    ports.dedup();
    assert_eq!(ports.len(), 4);
}

#[test]
fn a_third_cluster_joins_by_its_own_ports() {
    let bench = Bench::new();
    bench.ok(EAST);
    bench.ok(&format!("{WEST} --ca east/ca"));
    bench.ok(
        "init north --trust-domain north.example --cluster north --peer east --ca east/ca --base-port 17000",
    );
    assert_eq!(load(&bench, "east").snapshot.peers.len(), 2);
    assert_eq!(load(&bench, "north").snapshot.peers.len(), 1);
    bench.ok("ca verify north/gw.pem --bundles east/bundles");
}
