//! `zeugma config compile`: what Envoy reads in the place of a gateway.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use tempfile::NamedTempFile;

use super::{Gateway, print_findings};
use crate::exit;

#[derive(Debug, Args)]
pub(crate) struct Compile {
    /// The YAML file, or a directory of them
    #[arg(long, value_name = "FILE|DIR")]
    config: PathBuf,
    #[command(flatten)]
    gateway: Gateway,
    /// The folder for the files; made where it is missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(super) fn run(compile: &Compile) -> io::Result<ExitCode> {
    let written = fs::create_dir_all(&compile.out).and_then(|()| fs::canonicalize(&compile.out));
    let folder = match written {
        Ok(folder) => folder,
        Err(error) => return failed(&compile.out, &error),
    };
    let options = compile.gateway.options();
    let files = match zeugma_xds::envoy_files(&compile.config, &options, &folder) {
        Ok((files, warnings)) => {
            print_findings(&warnings)?;
            files
        }
        Err(findings) => {
            print_findings(&findings)?;
            return Ok(ExitCode::from(exit::DATA));
        }
    };
    for file in &files {
        let path = folder.join(&file.name);
        if let Err(error) = replace(&folder, &path, &file.bytes) {
            return failed(&path, &error);
        }
    }
    let bootstrap = folder.join(zeugma_xds::ENVOY_BOOTSTRAP);
    writeln!(io::stdout(), "{}", bootstrap.display())?;
    Ok(ExitCode::SUCCESS)
}

fn failed(path: &Path, error: &io::Error) -> io::Result<ExitCode> {
    writeln!(
        io::stderr(),
        "error[ZG1002]: {}: cannot be written: {error}",
        path.display()
    )?;
    Ok(ExitCode::from(exit::FAILED))
}

/// Envoy sees a file that is moved into its place, and never a part of one.
fn replace(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut next = NamedTempFile::new_in(folder)?;
    next.write_all(bytes)?;
    next.persist(path)?;
    Ok(())
}
