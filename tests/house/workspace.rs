//! What cargo says about the workspace.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

/// The packages of the workspace.
pub(crate) struct Workspace {
    pub(crate) packages: Vec<Package>,
    pub(crate) members: BTreeSet<String>,
    pub(crate) default_members: BTreeSet<String>,
}

/// One package of ours.
pub(crate) struct Package {
    pub(crate) name: String,
    /// Its Cargo.toml, relative to the root.
    pub(crate) manifest: String,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) license: Option<String>,
    pub(crate) unpublished: bool,
}

/// One line of a package's dependency tables.
#[derive(Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    #[serde(deserialize_with = "kind")]
    pub(crate) kind: DependencyKind,
}

/// Which table a dependency stands in.
#[derive(PartialEq, Eq)]
pub(crate) enum DependencyKind {
    Normal,
    Build,
    Development,
}

fn kind<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<DependencyKind, D::Error> {
    Ok(
        match Option::<String>::deserialize(deserializer)?.as_deref() {
            None => DependencyKind::Normal,
            Some("build") => DependencyKind::Build,
            Some("dev") => DependencyKind::Development,
            Some(other) => return Err(serde::de::Error::custom(format!("kind {other}"))),
        },
    )
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<MetadataPackage>,
    workspace_members: BTreeSet<String>,
    workspace_default_members: BTreeSet<String>,
}

#[derive(Deserialize)]
struct MetadataPackage {
    id: String,
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
    license: Option<String>,
    publish: Option<Vec<String>>,
}

impl Workspace {
    /// Asks `cargo metadata`.
    pub(crate) fn load() -> Self {
        let text = cargo(&["metadata", "--format-version=1", "--no-deps"]);
        let metadata: Metadata = serde_json::from_str(&text).unwrap();
        let packages = metadata
            .packages
            .into_iter()
            .filter(|package| metadata.workspace_members.contains(&package.id))
            .map(|package| Package {
                manifest: relative(&package.manifest_path),
                name: package.name,
                dependencies: package.dependencies,
                license: package.license,
                unpublished: package.publish.is_some_and(|to| to.is_empty()),
            })
            .collect();
        Self {
            packages,
            members: metadata.workspace_members,
            default_members: metadata.workspace_default_members,
        }
    }

    /// The names of our packages.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.packages.iter().map(|package| package.name.as_str())
    }
}

/// What `package` links at run time, its dependencies' dependencies included; procedural macros
/// and build scripts run in the compiler and are not counted.
pub(crate) fn tree(package: &str) -> BTreeSet<String> {
    cargo(&[
        "tree",
        "--package",
        package,
        "--edges=normal,no-proc-macro",
        "--prefix=none",
        "--format={p}",
    ])
    .lines()
    .filter_map(|line| line.split_whitespace().next())
    .map(str::to_owned)
    .collect()
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .args(["--locked", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "cargo {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a file named from the root.
pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).expect(path)
}

/// A path as it reads from the root.
pub(crate) fn relative(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap()
        .to_string_lossy()
        .into_owned()
}

/// Every document of the repository.
pub(crate) fn markdown_files() -> Vec<String> {
    let mut files = Vec::new();
    walk(root(), "md", &mut files);
    files.sort();
    files
}

/// Adds the files below `folder` that end in `extension`, leaving out what is built or hidden.
pub(crate) fn walk(folder: &Path, extension: &str, files: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let entry = entry.unwrap();
        let path = entry.path();
        let name = entry.file_name();
        let hidden = name.to_string_lossy().starts_with('.');
        if entry.file_type().unwrap().is_dir() {
            if !hidden && name != "target" {
                walk(&path, extension, files);
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            files.push(relative(&path));
        }
    }
}
