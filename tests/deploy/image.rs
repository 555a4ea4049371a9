//! The gateway where a container runs it: as nobody, on a root that cannot be written to.
//!
//! The image is a second build of everything, with the C library inside. `.ci/run` makes it, of the
//! development profile; elsewhere ZEUGMA_IMAGE=1 does. That a release is under 30 MB is for
//! `deploy/image/build.sh` to see, which refuses one that is not.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::kubernetes::config_of;
use crate::support::peers::{is_everything_required, skip};
use crate::{ZEUGMA, folder, is_root, printed, repository};

const USER: &str = "65532:65532";

/// Runs `pod.sh` on a root.
fn serves_as_a_pod(root: &Path, work: &Path) {
    let config = work.join("config");
    fs::create_dir_all(&config).unwrap();
    config_of("east", &config);
    let mut pod = Command::new("timeout");
    pod.args([
        "--kill-after=5",
        "150",
        "unshare",
        "--net",
        "--mount",
        "--pid",
    ]);
    pod.args(["--fork", "--kill-child", "--mount-proc", "bash"]);
    pod.arg(repository("tests/deploy/pod.sh"));
    let said = printed(pod.arg(root).arg(ZEUGMA).arg(config).arg(work.join("pod")));
    assert_eq!(said.matches("ok: ").count(), 8, "{said}");
}

/// The binary that the other tests run, with the libraries that it names: all but the image.
#[test]
fn a_pod_serves_as_nobody_on_a_root_that_is_read_only() {
    if !is_root() {
        return;
    }
    let work = folder("pod");
    let root = work.join("root");
    let add = |from: &Path, to: &str| {
        let to = root.join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    };
    add(Path::new(ZEUGMA), "/usr/bin/zeugma");
    let libraries = printed(Command::new("ldd").arg(ZEUGMA));
    for word in libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        add(Path::new(word), word);
    }
    serves_as_a_pod(&root, &work);
}

/// Whether they are of what is compiled, `build.sh` says; a compiler that cannot read them only warns.
#[test]
fn what_was_counted_for_a_release_is_read_by_the_compiler_without_a_word() {
    let counts = repository("deploy/image/zeugma.profdata");
    let bytes = fs::read(&counts).unwrap();
    let ours = b"zeugma_proxy";
    assert!(bytes.windows(ours.len()).any(|name| name == ours));
    let work = folder("profile");
    let source = work.join("one.rs");
    fs::write(&source, "pub fn one(n: u32) -> u32 { n.count_ones() }").unwrap();
    let said = |counts: &Path| {
        let mut option = OsString::from("-Cprofile-use=");
        option.push(counts);
        let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.args(["--crate-type=lib", "--emit=obj", "--out-dir"]);
        let output = rustc.arg(&work).arg(option).arg(&source).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert_eq!(said(&counts), "");
    // It would say so.
    let cut = work.join("cut.profdata");
    fs::write(&cut, &bytes[..2000]).unwrap();
    assert!(said(&cut).contains("malformed"));
}

#[test]
fn the_image_is_one_static_program_the_same_each_time_and_serves_as_a_pod() {
    if !is_everything_required() && env::var_os("ZEUGMA_IMAGE").is_none() {
        skip("the image is a second build of everything; set ZEUGMA_IMAGE=1").unwrap();
        return;
    }
    if !is_root() {
        return;
    }
    let work = folder("image");
    let [first, again] = ["first", "again"].map(|name| {
        let output = work.join(name);
        let mut build = Command::new(repository("deploy/image/build.sh"));
        build.args(["--profile", "dev", "--output"]).arg(&output);
        printed(&mut build);
        output
    });
    let index = fs::read(first.join("oci/index.json")).unwrap();
    assert_eq!(index, fs::read(again.join("oci/index.json")).unwrap());

    let index: Value = serde_json::from_slice(&index).unwrap();
    let oci = first.join("oci");
    let manifest = json_blob(&oci, &index["manifests"][0]);
    let image = json_blob(&oci, &manifest["config"]);
    assert_eq!(image["config"]["User"], USER);
    assert_eq!(image["config"]["Entrypoint"][0], "/usr/bin/zeugma");
    let [layer] = manifest["layers"].as_array().unwrap().as_slice() else {
        panic!("{manifest}");
    };
    let root = work.join("root");
    fs::create_dir(&root).unwrap();
    let layer = blob(&oci, layer);
    let mut tar = Command::new("tar");
    printed(
        tar.args(["--numeric-owner", "-xpzf"])
            .arg(layer)
            .arg("-C")
            .arg(&root),
    );
    let files = printed(
        Command::new("find")
            .args([".", "-type", "f"])
            .current_dir(&root),
    );
    let mut files: Vec<_> = files.lines().collect();
    files.sort_unstable();
    assert_eq!(
        files,
        ["./usr/bin/zeugma", "./usr/share/doc/zeugma/LICENSE"]
    );
    let foreign = printed(Command::new("find").arg(&root).args(["-user", "65532"]));
    assert_eq!(foreign.lines().count(), 2, "its own folders: {foreign}");

    serves_as_a_pod(&root, &work);
    // A hundred megabytes each.
    for made in [first, again, root] {
        fs::remove_dir_all(made).unwrap();
    }
}

#[test]
fn an_engine_makes_the_same_of_the_containerfile() {
    let read = |path| fs::read_to_string(repository(path)).unwrap();
    let file = read("deploy/image/Containerfile");
    let says = |line: &str| assert!(file.lines().any(|found| found == line), "no {line}");
    says("FROM scratch");
    says(&format!("USER {USER}"));
    says("ENTRYPOINT [\"/usr/bin/zeugma\"]");
    says("CMD [\"--help\"]");
    says("STOPSIGNAL SIGTERM");
    says("EXPOSE 15001/tcp 15020/tcp 15021/tcp 15443/tcp");
    let layout = read("deploy/image/layout.py");
    for words in [
        "USER = 65532",
        "\"Entrypoint\": [\"/usr/bin/zeugma\"]",
        "\"Cmd\": [\"--help\"]",
        "\"StopSignal\": \"SIGTERM\"",
        "(15001, 15020, 15021, 15443)",
    ] {
        assert!(layout.contains(words), "{words}");
    }
}

/// The file of a descriptor, whose size and digest are what it says (OCI image-spec, descriptor.md).
fn blob(oci: &Path, descriptor: &Value) -> std::path::PathBuf {
    let digest = descriptor["digest"].as_str().unwrap();
    let digest = digest.strip_prefix("sha256:").unwrap();
    let path = oci.join("blobs/sha256").join(digest);
    assert_eq!(fs::metadata(&path).unwrap().len(), descriptor["size"]);
    let sum = printed(Command::new("sha256sum").arg(&path));
    assert!(sum.starts_with(digest), "{sum}");
    path
}

fn json_blob(oci: &Path, descriptor: &Value) -> Value {
    serde_json::from_slice(&fs::read(blob(oci, descriptor)).unwrap()).unwrap()
}
