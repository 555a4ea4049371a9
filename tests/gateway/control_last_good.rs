//! The last good configuration on disk: what a gateway starts with when its files are refused.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use crate::data_mesh::HELLO;
use crate::data_services::HttpService;
use crate::mesh::{Cluster, Gateway, eventually, get};

const OTHER: &str = "other.demo.svc.clusterset.local";

fn near(service: &HttpService) -> String {
    format!(
        "
        protocol: http
        backends: [{{ endpoints: ['{}'] }}]
        allow: [{{ listeners: [apps] }}]",
        service.address()
    )
}

fn cluster(service: &HttpService) -> Cluster {
    let east = Cluster::new("east");
    east.route("demo/hello", &near(service));
    east
}

fn file(east: &Cluster) -> PathBuf {
    east.config().join("state/east-gw/last-good")
}

async fn kept(east: &Cluster) {
    let path = file(east);
    eventually("the kept configuration", async || {
        path.is_file().then_some(())
    })
    .await;
}

async fn version(gateway: &Gateway) -> String {
    gateway.admin_json("/server_info").await["config_version"].to_string()
}

/// One document cannot be used; all others are as the files say.
#[tokio::test]
async fn a_restart_serves_the_last_good_text_of_what_is_refused_and_the_files_otherwise() {
    let (hello, other) = (HttpService::start("hello"), HttpService::start("other"));
    let east = cluster(&hello);
    east.route("demo/other", &near(&hello));
    let first = east.start().await;
    kept(&east).await;
    first.finish().await;
    east.write("demo-hello.yaml", "kind: MeshRoute\nmetadata: {name: [\n");
    east.route("demo/other", &near(&other));
    let second = east.start().await;
    let said = second.message("ZG0122 configuration refused in part").await;
    assert!(said.contains("demo-hello.yaml:1"), "{said}");
    assert_eq!(get(east.apps, HELLO, "/").await.text(), "hello");
    assert_eq!(get(east.apps, OTHER, "/").await.text(), "other");
    let kept_serves = [("serves", "last-good")];
    let metrics = second.metrics().await;
    let refused = |serves| metrics.value("zeugma_config_documents_refused", serves);
    assert_eq!(refused(&kept_serves), 1.0);
    assert_eq!(refused(&[("serves", "nothing")]), 0.0);
    let dump = second.admin_json("/config_dump").await;
    assert_eq!(dump["findings"][0]["serves"], "last-good", "{dump}");
    second.finish().await;
    // The same files again, from what was kept of them: it still says so.
    let third = east.start().await;
    third.message("ZG0122 configuration refused in part").await;
    assert_eq!(get(east.apps, HELLO, "/").await.text(), "hello");
    fs::remove_file(east.config().join("demo-hello.yaml")).unwrap();
    third
        .metric_becomes("zeugma_config_documents_refused", &kept_serves, 0.0)
        .await;
    third
        .metric_becomes("zeugma_last_good_in_use", &[("kind", "config")], 0.0)
        .await;
    eventually("its end", async || {
        (get(east.apps, HELLO, "/").await.status == 404).then_some(())
    })
    .await;
    third.finish().await;
}

#[tokio::test]
async fn a_restart_without_files_serves_the_last_good_configuration() {
    let service = HttpService::start("hello");
    let mut east = cluster(&service);
    east.unset("stateDir");
    east.write_gateway();
    let start = async || {
        let mut command = Gateway::command(&east.config());
        command.args(["--name", "east-gw"]);
        command.env("STATE_DIRECTORY", east.config().join("state"));
        Gateway::start(east.name, command, east.probes, east.metrics, east.admin).await
    };
    let first = start().await;
    let before = version(&first).await;
    kept(&east).await;
    first.finish().await;
    let rename = |from: &str, to: &str| {
        for entry in fs::read_dir(east.config()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|end| end == from) {
                fs::rename(&path, path.with_extension(to)).unwrap();
            }
        }
    };
    rename("yaml", "aside");
    let second = start().await;
    second
        .message("ZG0123 configuration refused; the last good one, which was kept, serves")
        .await;
    assert_eq!(version(&second).await, before);
    assert_eq!(get(east.apps, HELLO, "/").await.text(), "hello");
    let stale = [("kind", "config")];
    second
        .metric_becomes("zeugma_last_good_in_use", &stale, 1.0)
        .await;
    let dump = second.admin_json("/config_dump").await;
    assert!(
        dump["findings"].to_string().contains("no file here"),
        "{dump}"
    );
    assert!(
        dump["resources"]["clusters"]
            .to_string()
            .contains("demo/hello")
    );
    rename("aside", "yaml");
    second
        .metric_becomes("zeugma_last_good_in_use", &stale, 0.0)
        .await;
    second.finish().await;
}

#[tokio::test]
async fn a_restart_with_unchanged_files_serves_the_very_same() {
    let service = HttpService::start("hello");
    let east = cluster(&service);
    let first = east.start().await;
    let before = version(&first).await;
    kept(&east).await;
    let inode = || fs::metadata(file(&east)).unwrap().ino();
    let written = inode();
    first.finish().await;
    let second = east.start().await;
    assert_eq!(version(&second).await, before);
    assert_eq!(get(east.apps, HELLO, "/").await.text(), "hello");
    // A change is applied, and kept in its turn.
    assert_eq!(inode(), written);
    east.route("demo/other", "protocol: http\nbackends: [{ endpoints: ['127.0.0.1:9'] }]\nallow: [{ listeners: [apps] }]");
    eventually("the next one", async || (inode() != written).then_some(())).await;
    assert_ne!(version(&second).await, before);
    second.finish().await;
}

/// Nothing says which of two it is, but what was kept.
#[tokio::test]
async fn a_second_gateways_document_holds_up_neither_a_change_nor_a_restart() {
    let (hello, other) = (HttpService::start("hello"), HttpService::start("other"));
    let east = cluster(&hello);
    let first = east.start().await;
    kept(&east).await;
    let own = fs::read_to_string(east.config().join("gateway.yaml")).unwrap();
    east.write("another.yaml", &own.replace("east-gw", "another-gw"));
    let refused = "configuration refused in part: MeshGateway another-gw (nothing)";
    first.message(refused).await;
    first.message("say which with `--name`").await;
    let both = async |gateway: &Gateway, word: &str| {
        eventually(word, async || {
            (get(east.apps, HELLO, "/").await.text() == word).then_some(())
        })
        .await;
        let info = gateway.admin_json("/server_info").await;
        assert_eq!(info["name"], "east-gw", "{info}");
    };
    east.route("demo/hello", &near(&other));
    both(&first, "other").await;
    first.finish().await;
    let second = east.start().await;
    second.message(refused).await;
    both(&second, "other").await;
    second.finish().await;
    // Files that changed meanwhile.
    east.route("demo/hello", &near(&hello));
    let third = east.start().await;
    third.message(refused).await;
    both(&third, "hello").await;
    third.finish().await;
}

#[tokio::test]
async fn a_damaged_one_is_told_and_not_used() {
    let service = HttpService::start("hello");
    let east = cluster(&service);
    let first = east.start().await;
    kept(&east).await;
    first.finish().await;
    let mut bytes = fs::read(file(&east)).unwrap();
    let half = bytes.len() / 2;
    bytes[half] ^= 1;
    fs::write(file(&east), bytes).unwrap();
    let second = east.start().await;
    let said = second
        .message("ZG0124 the last good configuration that was kept is not used")
        .await;
    assert!(said.contains("its checksum is wrong"), "{said}");
    assert_eq!(get(east.apps, HELLO, "/").await.text(), "hello");
    second.finish().await;
    // It alone is left, and it is damaged: there is nothing to start with.
    fs::write(file(&east), "zeugma state\n").unwrap();
    east.write("demo-hello.yaml", "kind: Nonsense\n");
    let third = Gateway::try_start(&east.config());
    assert_eq!(third.status.code(), Some(65), "{third:?}");
}

#[tokio::test]
async fn one_that_cannot_be_kept_is_a_warning() {
    let service = HttpService::start("hello");
    let east = cluster(&service);
    fs::create_dir_all(file(&east)).unwrap();
    let gateway = east.start().await;
    gateway
        .message("ZG0124 the last good configuration cannot be read")
        .await;
    gateway
        .message("ZG0125 the last good configuration cannot be kept")
        .await;
    assert_eq!(get(east.apps, HELLO, "/").await.text(), "hello");
    gateway.finish().await;
}

/// What is on disk then is older than what serves, and may let in whom it does not.
#[tokio::test]
async fn what_is_older_than_what_serves_is_not_left_behind() {
    let service = HttpService::start("hello");
    let east = cluster(&service);
    let first = east.start().await;
    kept(&east).await;
    // As on a full disk: nothing can be written beside it.
    fs::create_dir(east.config().join("state/east-gw/.last-good.next")).unwrap();
    let nobody = "protocol: http\nbackends: [{ endpoints: ['127.0.0.1:9'] }]\nallow: []";
    east.route("demo/hello", nobody);
    first
        .message("ZG0125 the last good configuration cannot be kept")
        .await;
    eventually("its end", async || (!file(&east).exists()).then_some(())).await;
    first.finish().await;
    east.write("demo-hello.yaml", "kind: Nonsense\n");
    let second = Gateway::try_start(&east.config());
    assert_eq!(second.status.code(), Some(65), "{second:?}");
}

/// Whoever can write there could have it serve what they like.
#[tokio::test]
async fn a_folder_that_others_can_write_is_not_believed() {
    let service = HttpService::start("hello");
    let east = cluster(&service);
    let first = east.start().await;
    kept(&east).await;
    first.finish().await;
    let folder = east.config().join("state/east-gw");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o770)).unwrap();
    let route = fs::read(east.config().join("demo-hello.yaml")).unwrap();
    east.write("demo-hello.yaml", "kind: Nonsense\n");
    let refused = Gateway::try_start(&east.config());
    assert_eq!(refused.status.code(), Some(65), "{refused:?}");
    fs::write(east.config().join("demo-hello.yaml"), route).unwrap();
    let refused = Gateway::try_start(&east.config());
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("writable by others (mode 770)"), "{said}");
    if crate::mesh::is_root_or_skipped("a folder of another user") {
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&folder, Some(65534), None).unwrap();
        let refused = Gateway::try_start(&east.config());
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("it is of user 65534, not 0"), "{said}");
    }
}
