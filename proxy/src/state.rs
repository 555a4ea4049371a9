//! The folder where a gateway keeps what outlives it, and the lock that makes it the only one.
//!
//! `<stateDir>/<name>/`, mode 0700, holds `lock` and what its owners write there: never a secret.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use zeugma_xds::StateDir;

/// Where the state is if nothing else is said.
const DEFAULT: &str = "/var/lib/zeugma";
/// What systemd sets to the folder of `StateDirectory=`, or to several with `:` between them
/// (systemd.exec(5)).
const VARIABLE: &str = "STATE_DIRECTORY";
/// The file whose lock says that a gateway of this name runs.
const LOCK: &str = "lock";

/// Why a gateway cannot have its state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder that was asked for cannot be used.
    #[error(
        "the state directory `{path}` cannot be used; let the gateway's user write there, or name \
         another folder in spec.stateDir"
    )]
    Unusable {
        /// The folder or file that was refused.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another gateway has it.
    #[error(
        "a gateway of the name `{name}` runs already: `{path}` is locked; end it first, or give this \
         one another name or spec.stateDir"
    )]
    Held {
        /// The gateway's name.
        name: String,
        /// Its lock.
        path: PathBuf,
    },
}

/// The folder of one gateway, not locked yet.
#[derive(Debug)]
pub(crate) struct Folder {
    name: String,
    path: PathBuf,
    lock: File,
}

/// The folder of one gateway, locked for it as long as this lives.
#[derive(Debug)]
pub(crate) struct State {
    path: PathBuf,
    /// Held: the lock ends with the last descriptor of this open file.
    _lock: File,
}

impl Folder {
    /// Makes the folder of the gateway `name`, or opens the one that is there; `None`, with a
    /// warning, where nobody asked for one and it cannot be had.
    ///
    /// # Errors
    /// [`StateError::Unusable`] where it was asked for.
    pub(crate) fn open(dir: &StateDir, name: &str) -> Result<Option<Self>, StateError> {
        let variable = std::env::var_os(VARIABLE).and_then(|value| first_of(&value));
        match (dir, variable) {
            (StateDir::Given(dir), _) => Self::open_in(dir, name).map(Some),
            (StateDir::Default, Some(dir)) => Self::open_in(&dir, name).map(Some),
            (StateDir::Default, None) => match Self::open_in(Path::new(DEFAULT), name) {
                Ok(folder) => Ok(Some(folder)),
                Err(StateError::Unusable { path, source }) => {
                    tracing::warn!(
                        path = %path.display(), error = %source,
                        "no state directory: nothing is kept for the next start and no other \
                         gateway can take over; set spec.stateDir to a folder to write in"
                    );
                    Ok(None)
                }
                Err(held @ StateError::Held { .. }) => Err(held),
            },
        }
    }

    fn open_in(dir: &Path, name: &str) -> Result<Self, StateError> {
        // `.` and `..` are names too, and other folders.
        let is_dots = name.bytes().all(|byte| byte == b'.');
        let path = dir.join(if is_dots { "_" } else { name });
        let unusable = |path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Unusable { path, source }
        };
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&path).map_err(unusable(&path))?;
        let lock = path.join(LOCK);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock)
            .map_err(unusable(&lock))?;
        Ok(Self {
            name: name.to_owned(),
            path,
            lock,
        })
    }

    /// Where a file of this name is.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.path.join(file)
    }

    /// As [`Folder::claim`], where there is a folder.
    pub(crate) fn claim_if_any(folder: Option<Self>) -> Result<Option<State>, StateError> {
        folder.map(Self::claim).transpose()
    }

    /// Makes it this gateway's own.
    ///
    /// # Errors
    /// [`StateError::Held`] while another gateway of the name runs; [`StateError::Unusable`] where
    /// the file system has no locks.
    pub(crate) fn claim(self) -> Result<State, StateError> {
        match flock(&self.lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(State {
                path: self.path,
                _lock: self.lock,
            }),
            Err(Errno::WOULDBLOCK) => Err(StateError::Held {
                path: self.path.join(LOCK),
                name: self.name,
            }),
            Err(error) => Err(StateError::Unusable {
                path: self.path.join(LOCK),
                source: error.into(),
            }),
        }
    }
}

impl State {
    /// Where a file of this name is.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.path.join(file)
    }

    /// Replaces a file at once: whoever reads it, after a crash too, finds the old or the new.
    ///
    /// # Errors
    /// As the operating system says; the file is then as it was.
    pub(crate) fn write(&self, file: &str, bytes: &[u8]) -> io::Result<()> {
        let next = self.path(&format!(".{file}.next"));
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&next)
            .and_then(|mut next| {
                next.write_all(bytes)?;
                next.sync_all()
            })
            .and_then(|()| std::fs::rename(&next, self.path(file)));
        if written.is_err() {
            // Best effort: the error below is the one to report.
            std::fs::remove_file(&next).ok();
        }
        written?;
        File::open(&self.path)?.sync_all()
    }
}

fn first_of(folders: &std::ffi::OsStr) -> Option<PathBuf> {
    std::env::split_paths(folders).find(|path| !path.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(dir: &Path, name: &str) -> Result<State, StateError> {
        let given = StateDir::Given(dir.to_owned());
        Folder::open(&given, name)?.unwrap().claim()
    }

    #[test]
    fn a_folder_has_one_gateway_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("made/on/the/way");
        let first = claim(&dir, "east-gw").unwrap();
        let error = claim(&dir, "east-gw").unwrap_err();
        let lock = dir.join("east-gw/lock");
        assert_eq!(
            error.to_string(),
            format!(
                "a gateway of the name `east-gw` runs already: `{}` is locked; end it first, or \
                 give this one another name or spec.stateDir",
                lock.display()
            )
        );
        let other = claim(&dir, "west-gw").unwrap();
        assert_ne!(first.path(""), other.path(""));
        drop(first);
        claim(&dir, "east-gw").unwrap();
    }

    #[test]
    fn a_name_of_dots_is_a_folder_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let state = claim(dir.path(), "..").unwrap();
        assert_eq!(state.path("lock"), dir.path().join("_/lock"));
    }

    #[test]
    fn a_folder_that_was_asked_for_must_be_usable() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = Folder::open(&StateDir::Given(file.clone()), "east-gw").unwrap_err();
        assert!(error.to_string().contains("let the gateway's user write"));
        assert!(matches!(error, StateError::Unusable { path, .. } if path == file.join("east-gw")));
    }

    #[test]
    fn a_file_is_replaced_whole_and_is_nobody_elses() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let state = claim(dir.path(), "east-gw").unwrap();
        state.write("last", b"one").unwrap();
        state.write("last", b"two").unwrap();
        assert_eq!(std::fs::read(state.path("last")).unwrap(), b"two");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&state.path("last")), 0o600);
        assert_eq!(mode(&state.path("")), 0o700);
        let names: Vec<_> = std::fs::read_dir(state.path("")).unwrap().collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn systemd_may_name_several_folders() {
        let first = first_of("/var/lib/one:/var/lib/two".as_ref());
        assert_eq!(first, Some("/var/lib/one".into()));
        assert_eq!(first_of("".as_ref()), None);
    }
}
