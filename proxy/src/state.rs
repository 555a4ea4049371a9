//! The folder where a gateway keeps what outlives it, and the lock that makes it the only one.
//!
//! `<stateDir>/<name>/`, mode 0700, holds `lock` and what its owners write there: never a secret.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
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
        "the state directory `{path}` cannot be used; let the gateway's user, and nobody else, write \
         there, or name another folder in spec.stateDir"
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
        "a gateway of the name `{name}` runs already: `{path}` is locked; take over from it with \
         --takeover, end it first, or give this one another name or spec.stateDir"
    )]
    Held {
        /// The gateway's name.
        name: String,
        /// Its lock.
        path: PathBuf,
    },
}

impl StateError {
    /// Its code in [`zeugma_core::codes`].
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unusable { .. } => "ZG0932",
            Self::Held { .. } => "ZG0933",
        }
    }
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
    /// The lock ends with the last descriptor of this open file.
    lock: File,
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
                        code = "ZG0931",
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
        let path = folder_of(&StateDir::Given(dir.to_owned()), name);
        let unusable = |path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Unusable { path, source }
        };
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&path).map_err(unusable(&path))?;
        check_own(&path).map_err(unusable(&path))?;
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

    /// Makes it this gateway's own.
    ///
    /// # Errors
    /// [`StateError::Held`] while another gateway of the name runs; [`StateError::Unusable`] where
    /// the file system has no locks.
    pub(crate) fn claim(self) -> Result<State, StateError> {
        self.try_claim()?.map_err(|held| StateError::Held {
            path: held.path(LOCK),
            name: held.name,
        })
    }

    /// Makes it this gateway's own, or gives it back while another gateway of the name runs.
    ///
    /// # Errors
    /// [`StateError::Unusable`] where the file system has no locks.
    pub(crate) fn try_claim(self) -> Result<Result<State, Self>, StateError> {
        match flock(&self.lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Ok(State {
                path: self.path,
                lock: self.lock,
            })),
            Err(Errno::WOULDBLOCK) => Ok(Err(self)),
            Err(error) => Err(StateError::Unusable {
                path: self.path(LOCK),
                source: error.into(),
            }),
        }
    }

    /// Makes it this gateway's own by a descriptor of the lock that another gateway holds.
    ///
    /// # Errors
    /// If it is of another file, or does not hold the lock.
    pub(crate) fn adopt(self, lock: OwnedFd) -> io::Result<State> {
        let lock = File::from(lock);
        let (theirs, ours) = (lock.metadata()?, self.lock.metadata()?);
        if (theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()) {
            return Err(io::Error::other("the lock is of another folder"));
        }
        // Of the open file that holds the lock this says so again; of any other it fails.
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(State {
            path: self.path,
            lock,
        })
    }

    /// Where a file of this name is.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.path.join(file)
    }
}

impl State {
    /// The open file that holds the lock.
    pub(crate) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Where a file of this name is.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.path.join(file)
    }
}

/// Whether the folder is this user's alone: who else can write there could hand a gateway its
/// configuration, or stand at its door.
fn check_own(path: &Path) -> io::Result<()> {
    let folder = std::fs::metadata(path)?;
    let user = rustix::process::geteuid().as_raw();
    let refused = |what| Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    if folder.uid() != user {
        return refused(format!("it is of user {}, not {user}", folder.uid()));
    }
    let mode = folder.mode() & 0o777;
    if mode & 0o022 != 0 {
        return refused(format!(
            "it is writable by others (mode {mode:03o}); run `chmod 700` on it"
        ));
    }
    Ok(())
}

/// Reads a file of the folder of the gateway `name`; `None` where it is not there.
///
/// # Errors
/// As the operating system says; if others can write to the folder, or it has more than `max` bytes.
pub(crate) fn read(
    dir: &StateDir,
    name: &str,
    file: &str,
    max: u64,
) -> io::Result<Option<Vec<u8>>> {
    let folder = folder_of(dir, name);
    let read = || -> io::Result<_> {
        check_own(&folder)?;
        let file = File::open(folder.join(file))?;
        let len = file.metadata()?.len().min(max);
        let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or_default());
        file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
        check_len(bytes.len() as u64, max)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Refuses what would not be read.
///
/// # Errors
/// It has more than `max` bytes.
pub(crate) fn check_len(len: u64, max: u64) -> io::Result<()> {
    if len > max {
        let what = format!("it has over {max} bytes, and no more are read");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    Ok(())
}

/// Replaces a file of a gateway's folder at once: whoever reads it, after a crash too, finds the old
/// or the new.
///
/// # Errors
/// As the operating system says; the file is then as it was.
pub(crate) fn write(folder: &Path, file: &str, bytes: &[u8]) -> io::Result<()> {
    let next = folder.join(format!(".{file}.next"));
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
        .and_then(|()| std::fs::rename(&next, folder.join(file)));
    if written.is_err() {
        // Best effort: the error below is the one to report.
        std::fs::remove_file(&next).ok();
    }
    written?;
    File::open(folder)?.sync_all()
}

/// Adds to the end of a file of a gateway's folder, which must be there; who reads it tells what is not
/// whole.
///
/// # Errors
/// As the operating system says, and what of it is there then nobody knows; if it would have more than `max`
/// bytes.
pub(crate) fn append(folder: &Path, file: &str, bytes: &[u8], max: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(folder.join(file))?;
    let len = file.metadata()?.len();
    check_len(len.saturating_add(bytes.len() as u64), max)?;
    file.write_all(bytes)?;
    file.sync_data()
}

/// Where the folder of the gateway `name` is, whether or not it is there.
pub(crate) fn folder_of(dir: &StateDir, name: &str) -> PathBuf {
    let variable = || std::env::var_os(VARIABLE).and_then(|value| first_of(&value));
    let dir = match dir {
        StateDir::Given(dir) => dir.clone(),
        StateDir::Default => variable().unwrap_or_else(|| DEFAULT.into()),
    };
    // `.` and `..` are names too, and other folders.
    let is_dots = name.bytes().all(|byte| byte == b'.');
    dir.join(if is_dots { "_" } else { name })
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
                "a gateway of the name `east-gw` runs already: `{}` is locked; take over from it \
                 with --takeover, end it first, or give this one another name or spec.stateDir",
                lock.display()
            )
        );
        let other = claim(&dir, "west-gw").unwrap();
        assert_ne!(first.path(""), other.path(""));
        drop(first);
        claim(&dir, "east-gw").unwrap();
    }

    #[test]
    fn the_lock_goes_over_with_its_descriptor_alone() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name| {
            let given = StateDir::Given(dir.path().to_owned());
            Folder::open(&given, name).unwrap().unwrap()
        };
        let first = open("east-gw").claim().unwrap();
        let passed = || first.lock().try_clone_to_owned().unwrap();
        let error = open("west-gw").adopt(passed()).unwrap_err();
        assert_eq!(error.to_string(), "the lock is of another folder");
        // Another open file of the lock holds nothing.
        let other = File::open(dir.path().join("east-gw/lock")).unwrap();
        open("east-gw").adopt(other.into()).unwrap_err();
        let second = open("east-gw").adopt(passed()).unwrap();
        drop(first);
        claim(dir.path(), "east-gw").unwrap_err();
        drop(second);
        claim(dir.path(), "east-gw").unwrap();
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
        assert!(
            error
                .to_string()
                .contains("let the gateway's user, and nobody else")
        );
        assert!(matches!(error, StateError::Unusable { path, .. } if path == file.join("east-gw")));
    }

    #[test]
    fn a_file_is_replaced_whole_and_is_nobody_elses() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let state = claim(dir.path(), "east-gw").unwrap();
        write(&state.path(""), "last", b"one").unwrap();
        write(&state.path(""), "last", b"two").unwrap();
        assert_eq!(std::fs::read(state.path("last")).unwrap(), b"two");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&state.path("last")), 0o600);
        assert_eq!(mode(&state.path("")), 0o700);
        let names: Vec<_> = std::fs::read_dir(state.path("")).unwrap().collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    /// What broke: it was cut at the limit, and what was left of it was read.
    #[test]
    fn no_file_is_made_or_read_that_is_too_long() {
        let dir = tempfile::tempdir().unwrap();
        let given = StateDir::Given(dir.path().to_owned());
        let state = claim(dir.path(), "east-gw").unwrap();
        write(&state.path(""), "last", b"one").unwrap();
        append(&state.path(""), "last", b"two", 6).unwrap();
        let error = append(&state.path(""), "last", b"3", 6).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        let read = |max| read(&given, "east-gw", "last", max);
        assert_eq!(read(6).unwrap().unwrap(), b"onetwo");
        assert_eq!(read(5).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn systemd_may_name_several_folders() {
        let first = first_of("/var/lib/one:/var/lib/two".as_ref());
        assert_eq!(first, Some("/var/lib/one".into()));
        assert_eq!(first_of("".as_ref()), None);
    }
}
