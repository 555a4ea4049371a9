//! Certificates and programs that every mesh of a run shares.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::peers;
use crate::pki::{Domain, Svid};

/// Clusters: the callers', the preferred remote one, another.
pub(crate) const CLUSTERS: [&str; 3] = ["east", "west", "north"];

/// What a run is made of.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) folder: PathBuf,
    /// Of the gateways of [`CLUSTERS`].
    pub(crate) gateways: [Svid; 3],
    /// A folder with the anchor of every trust domain.
    pub(crate) bundles: PathBuf,
    /// All of them in one file.
    pub(crate) anchors: PathBuf,
    pub(crate) envoy: PathBuf,
}

impl Site {
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let pki = folder.join("pki");
        let bundles = pki.join("bundles");
        fs::create_dir_all(&bundles)?;
        let mut all = String::new();
        let mut gateways = Vec::new();
        for cluster in CLUSTERS {
            let domain = Domain::new(&pki, &trust_domain(cluster))?;
            let anchor = fs::read_to_string(&domain.anchor)?;
            fs::write(bundles.join(format!("{cluster}.example.pem")), &anchor)?;
            all.push_str(&anchor);
            gateways.push(domain.svid("/zeugma/gateway", None)?);
        }
        let anchors = pki.join("anchors.pem");
        fs::write(&anchors, all)?;
        Ok(Self {
            folder: folder.to_owned(),
            gateways: gateways.try_into().ok().context("three gateways")?,
            bundles,
            anchors,
            envoy: peers::envoy()?,
        })
    }

    /// What the programs say their versions are.
    pub(crate) fn versions(&self) -> Result<[String; 2]> {
        let [zeugma, envoy] = [Path::new(zeugma()), &self.envoy].map(version);
        Ok([zeugma?, envoy?])
    }
}

/// The gateway under test.
pub(crate) const fn zeugma() -> &'static str {
    env!("CARGO_BIN_EXE_zeugma")
}

pub(crate) fn trust_domain(cluster: &str) -> String {
    format!("{cluster}.example")
}

fn version(program: &Path) -> Result<String> {
    let output = Command::new(program).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    // Envoy begins with where it lies, which is nobody's business.
    let version = text.rsplit_once("  version: ").map(|(_, rest)| rest);
    Ok(version.unwrap_or(&text).to_owned())
}
