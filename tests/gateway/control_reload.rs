//! Changes of files, however they are made; and documents of which each stands for itself.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::data_mesh::HELLO;
use crate::data_services::HttpService;
use crate::many;
use crate::mesh::{Cluster, Gateway, eventually, get};

fn near(service: &HttpService) -> String {
    format!(
        "
        protocol: http
        backends: [{{ endpoints: ['{}'] }}]
        allow: [{{ listeners: [apps] }}]",
        service.address()
    )
}

/// Services that answer by their names, and a cluster whose route `demo/hello` leads to the first.
fn world() -> (HttpService, HttpService, Cluster) {
    let (old, new) = (HttpService::start("old"), HttpService::start("new"));
    let east = Cluster::new("east");
    east.route("demo/hello", &near(&old));
    (old, new, east)
}

async fn says(east: &Cluster, word: &str) {
    eventually(word, async || {
        (get(east.apps, HELLO, "/").await.text() == word).then_some(())
    })
    .await;
}

fn file(east: &Cluster) -> PathBuf {
    east.config().join("demo-hello.yaml")
}

#[tokio::test]
async fn a_typo_in_one_document_stops_no_other_change() {
    let (old, new, mut east) = world();
    east.route("demo/other", &near(&old));
    let gateway = east.start().await;
    east.write("demo-hello.yaml", &broken(&file(&east)));
    gateway
        .message("ZG0122 configuration refused in part: MeshRoute demo/hello (last-good)")
        .await;
    // Another document, and the gateway's own.
    east.route("demo/other", &near(&new));
    let second = east.listen("second", "role: workloads");
    east.write_gateway();
    eventually("the new listener", async || {
        tokio::net::TcpStream::connect(second).await.ok()
    })
    .await;
    eventually("the other route", async || {
        let host = "other.demo.svc.clusterset.local";
        (get(east.apps, host, "/").await.text() == "new").then_some(())
    })
    .await;
    says(&east, "old").await;
    let findings = gateway.admin_json("/config_dump").await["findings"].clone();
    assert_eq!(findings[0]["document"], "MeshRoute demo/hello");
    assert_eq!(findings[0]["serves"], "last-good");
    east.route("demo/hello", &near(&new));
    says(&east, "new").await;
    gateway
        .metric_becomes(
            "zeugma_config_documents_refused",
            &[("serves", "last-good")],
            0.0,
        )
        .await;
    gateway.finish().await;
}

fn broken(path: &Path) -> String {
    fs::read_to_string(path)
        .unwrap()
        .replace("backends", "backend")
}

/// It is refused for what only the operating system knows, and tried again when asked.
#[tokio::test]
async fn an_address_that_is_taken_refuses_the_gateways_document_alone() {
    let (_old, new, mut east) = world();
    let gateway = east.start().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    east.relisten("more", address, "role: workloads");
    east.write_gateway();
    let said = gateway.message("ZG0113").await;
    assert!(said.contains(&address.to_string()), "{said}");
    gateway
        .message("ZG0122 configuration refused in part: MeshGateway east-gw (last-good)")
        .await;
    east.route("demo/hello", &near(&new));
    says(&east, "new").await;
    let refused = [("serves", "last-good")];
    gateway
        .metric_becomes("zeugma_config_documents_refused", &refused, 1.0)
        .await;
    drop(taken);
    gateway.signal(Signal::HUP);
    gateway
        .metric_becomes("zeugma_config_documents_refused", &refused, 0.0)
        .await;
    tokio::net::TcpStream::connect(address).await.unwrap();
    gateway.finish().await;
}

#[tokio::test]
async fn a_deleted_document_is_deleted_and_an_empty_folder_deletes_nothing() {
    let (_old, _new, east) = world();
    let gateway = east.start().await;
    let text = fs::read(file(&east)).unwrap();
    fs::remove_file(file(&east)).unwrap();
    eventually("its end", async || {
        (get(east.apps, HELLO, "/").await.status == 404).then_some(())
    })
    .await;
    fs::write(file(&east), text).unwrap();
    says(&east, "old").await;
    for entry in fs::read_dir(east.config()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "yaml") {
            fs::remove_file(path).unwrap();
        }
    }
    gateway
        .message("ZG0121 configuration refused; the last good one serves")
        .await;
    assert_eq!(get(east.apps, HELLO, "/").await.text(), "old");
    gateway.finish().await;
}

/// An editor, `cp` or a network writes a file in pieces: what is not there yet is not deleted.
#[tokio::test]
async fn a_file_that_is_written_slowly_deletes_nothing() {
    const OTHER: &str = "other.demo.svc.clusterset.local";
    let (old, new, east) = world();
    let hello = fs::read_to_string(file(&east)).unwrap();
    let other = hello.replace("name: hello", "name: other");
    east.write("demo-hello.yaml", &format!("{hello}---\n{other}"));
    let gateway = east.start().await;
    let (before, now) = (old.address().to_string(), new.address().to_string());
    let text = format!("{hello}---\n{other}").replace(&before, &now);
    let path = file(&east);
    let writes = std::thread::spawn(move || {
        use std::io::Write as _;
        let mut file = fs::File::create(path).unwrap();
        for piece in text.as_bytes().chunks(text.len().div_ceil(6)) {
            file.write_all(piece).unwrap();
            // Longer than what is gathered, and no wait for anything.
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
    });
    eventually("both routes as they were written", async || {
        let (hello, other) = (
            get(east.apps, HELLO, "/").await,
            get(east.apps, OTHER, "/").await,
        );
        assert_eq!((hello.status, other.status), (200, 200));
        (hello.text() == "new" && other.text() == "new").then_some(())
    })
    .await;
    writes.join().unwrap();
    let said = gateway.told();
    assert!(!said.contains("refused"), "{said}");
    gateway.finish().await;
}

/// As kubelet does it: links to files below a link to a folder, which is replaced at once.
#[tokio::test]
async fn a_config_map_is_swapped() {
    let (old, new, east) = world();
    east.write_gateway();
    let gateway_yaml = fs::read_to_string(gateway_file(&east)).unwrap();
    for entry in fs::read_dir(east.config()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "yaml") {
            fs::remove_file(path).unwrap();
        }
    }
    let route = |service: &HttpService| {
        format!(
            "apiVersion: zeugma.dev/v1alpha1\nkind: MeshRoute\nmetadata: {{ name: hello, namespace: demo }}\nspec: {{ protocol: http, backends: [{{ endpoints: ['{}'] }}], allow: [{{ listeners: [apps] }}] }}\n",
            service.address()
        )
    };
    let mount = |version: &str, service: &HttpService| {
        let folder = east.config().join(version);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("gateway.yaml"), &gateway_yaml).unwrap();
        fs::write(folder.join("hello.yaml"), route(service)).unwrap();
        symlink(version, east.config().join("..data_tmp")).unwrap();
        fs::rename(
            east.config().join("..data_tmp"),
            east.config().join("..data"),
        )
        .unwrap();
    };
    mount("..2026_01_01", &old);
    for name in ["gateway.yaml", "hello.yaml"] {
        symlink(format!("..data/{name}"), east.config().join(name)).unwrap();
    }
    let command = Gateway::command(&east.config());
    let gateway = Gateway::start(east.name, command, east.probes, east.metrics, east.admin).await;
    says(&east, "old").await;
    mount("..2026_01_02", &new);
    says(&east, "new").await;
    fs::remove_dir_all(east.config().join("..2026_01_01")).unwrap();
    mount("..2026_01_03", &old);
    says(&east, "old").await;
    gateway.finish().await;
}

/// In place of a file system that tells nothing: a process that may not ask.
#[tokio::test]
async fn a_change_that_the_kernel_does_not_tell_is_found_by_looking() {
    let (_old, new, east) = world();
    let forbidden = "echo 0 > /proc/sys/user/max_inotify_instances && exec \"$@\"";
    let wrapper = [
        "unshare",
        "--user",
        "--map-root-user",
        "sh",
        "-c",
        forbidden,
        "sh",
    ];
    let gateway = east.start_under(&wrapper).await;
    gateway
        .message("ZG0129 changes are not told by the kernel")
        .await;
    east.route("demo/hello", &near(&new));
    says(&east, "new").await;
    gateway.finish().await;
}

/// The configuration is a link to a folder; a deployment makes it lead to the next one.
#[tokio::test]
async fn a_link_to_the_folder_is_made_to_lead_elsewhere() {
    let (_old, new, east) = world();
    east.write_gateway();
    let outside = tempfile::tempdir().unwrap();
    let link = outside.path().join("current");
    symlink(east.config(), &link).unwrap();
    let command = Gateway::command(&link);
    let gateway = Gateway::start(east.name, command, east.probes, east.metrics, east.admin).await;
    says(&east, "old").await;
    let next = outside.path().join("next");
    let copied = std::process::Command::new("cp")
        .arg("-r")
        .args([&east.config(), &next])
        .status();
    assert!(copied.unwrap().success());
    east.route("demo/hello", &near(&new));
    fs::rename(file(&east), next.join("demo-hello.yaml")).unwrap();
    symlink(&next, outside.path().join("tmp")).unwrap();
    fs::rename(outside.path().join("tmp"), &link).unwrap();
    says(&east, "new").await;
    gateway.finish().await;
}

/// The CPU of the control thread, and of all threads that have not ended, in nanoseconds.
fn cpu(gateway: &Gateway) -> (u64, u64) {
    let of = |task: &Path| {
        let text = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
        let first = text.split(' ').next().unwrap_or_default();
        first.parse::<u64>().unwrap_or_default()
    };
    let tasks = PathBuf::from(format!("/proc/{}/task", gateway.pid()));
    let control = of(&tasks.join(gateway.pid().to_string()));
    let all = fs::read_dir(tasks).unwrap();
    (control, all.map(|task| of(&task.unwrap().path())).sum())
}

/// Reading and compiling is done beside it, and of the fleet only what changed is looked at.
#[tokio::test]
async fn a_change_of_one_route_of_a_thousand_costs_the_control_thread_little() {
    let (_old, new, east) = world();
    east.write("many.yaml", &many::mesh(1000).join("---\n"));
    let gateway = east.start().await;
    let (control, all) = cpu(&gateway);
    east.route("demo/hello", &near(&new));
    says(&east, "new").await;
    let (control, all) = (cpu(&gateway).0 - control, cpu(&gateway).1 - all);
    #[expect(clippy::print_stdout, reason = "a figure to look at")]
    {
        println!(
            "control thread {} us, all {} us",
            control / 1000,
            all / 1000
        );
    }
    // A hundredth in a release build; what is done for each route there would be most of it.
    assert!(control * 4 < all, "control thread {control} ns of {all} ns");
    gateway.finish().await;
}

fn gateway_file(east: &Cluster) -> PathBuf {
    east.config().join("gateway.yaml")
}
