//! `zeugma config fmt`: one layout for all documents.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use tempfile::NamedTempFile;

use crate::exit;

#[derive(Debug, Args)]
pub(crate) struct Fmt {
    /// YAML files, or directories of them
    #[arg(required = true, value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,
    /// Write nothing, name the files that would change, and exit 2 if there are any
    #[arg(long)]
    check: bool,
}

/// What became of the files, the worst of it first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Good,
    WouldChange,
    Refused,
    Failed,
}

pub(super) fn run(fmt: &Fmt) -> io::Result<ExitCode> {
    let mut worst = Outcome::Good;
    for path in &fmt.paths {
        match zeugma_xds::yaml_files(path) {
            Ok(files) => {
                for file in files {
                    worst = worst.max(one(&file, fmt.check)?);
                }
            }
            Err(findings) => {
                super::print_findings(&findings)?;
                worst = worst.max(Outcome::Failed);
            }
        }
    }
    Ok(match worst {
        Outcome::Good => ExitCode::SUCCESS,
        Outcome::WouldChange => ExitCode::from(exit::FINDINGS),
        Outcome::Refused => ExitCode::from(exit::DATA),
        Outcome::Failed => ExitCode::from(exit::FAILED),
    })
}

fn one(file: &Path, is_check: bool) -> io::Result<Outcome> {
    let mut err = io::stderr().lock();
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            writeln!(
                err,
                "error[ZG0105]: {}: cannot be read: {error}",
                file.display()
            )?;
            return Ok(Outcome::Failed);
        }
    };
    let formatted = match zeugma_xds::format(&text) {
        Ok(formatted) if formatted == text => return Ok(Outcome::Good),
        Ok(formatted) => formatted,
        Err(error) => {
            writeln!(err, "error[{}]: {}: {error}", error.code(), file.display())?;
            return Ok(Outcome::Refused);
        }
    };
    if is_check {
        writeln!(io::stdout(), "{}", file.display())?;
        return Ok(Outcome::WouldChange);
    }
    match replace(file, &formatted) {
        Ok(()) => writeln!(io::stdout(), "{}", file.display()).map(|()| Outcome::Good),
        Err(error) => {
            writeln!(
                err,
                "error[ZG1002]: {}: cannot be written: {error}",
                file.display()
            )?;
            Ok(Outcome::Failed)
        }
    }
}

/// Readers see the old text or the new, never a part. A link stays a link; owner and mode stay.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let file = fs::canonicalize(file)?;
    let folder = file.parent().unwrap_or_else(|| Path::new("/"));
    // A name with a dot in front is none that a gateway reads.
    let mut next = tempfile::Builder::new()
        .prefix(".zeugma-fmt-")
        .tempfile_in(folder)?;
    next.write_all(text.as_bytes())?;
    let was = fs::metadata(&file)?;
    fchown(next.as_file(), Some(was.uid()), Some(was.gid()))?;
    next.as_file().set_permissions(was.permissions())?;
    next.as_file().sync_all()?;
    NamedTempFile::persist(next, &file)?;
    Ok(())
}
