//! Files that are whole or not there: temporary file, fsync, rename, fsync of the folder.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// 0644: certificates and bundles.
    Public,
    /// 0600: keys and passphrases.
    Secret,
}

impl Access {
    const fn mode(self) -> u32 {
        match self {
            Self::Public => 0o644,
            Self::Secret => 0o600,
        }
    }
}

/// The most bytes read from a file that holds keys, certificates or a passphrase.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What can go wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {what} {}", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// C5: others may read a secret.
    #[error(
        "{} is readable by others (mode {mode:04o}); run `chmod 600 {}` (C5)", .path.display(), .path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file is larger than anything it should hold.
    #[error("{} is over {FILE_BYTES_MAX} bytes; this is not a key, certificate or passphrase", .0.display())]
    TooLarge(PathBuf),
    /// A file that was to be new is there.
    #[error("{} is there already; nothing was overwritten", .0.display())]
    Exists(PathBuf),
    /// The path names no file.
    #[error("`{}` does not name a file; give a path that ends with a file name", .0.display())]
    NoName(PathBuf),
}

impl FileError {
    /// Its code in [`zeugma_core::codes`].
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } | Self::TooLarge(_) | Self::NoName(_) => "ZG0222",
            Self::Exposed { .. } => "ZG0223",
            Self::Exists(_) => "ZG0212",
        }
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Io { what, path, source }
}

/// Writes a file whole: readers see the old content or the new, never a part, also after a crash
/// or on a full disk.
///
/// A temporary file `.<name>.tmp` beside it is locked while it is written, so that writers take
/// turns and one left behind by a crash is used again instead of piling up.
///
/// # Errors
/// Any step the operating system refused; the target is then as it was.
pub fn write_atomically(path: &Path, bytes: &[u8], access: Access) -> Result<(), FileError> {
    write_whole(path, bytes, access, |from, to| {
        std::fs::rename(from, to).map_err(io_error("replace", path))
    })
}

/// As [`write_atomically`], for a file that must not be there yet; of several writers one wins.
///
/// # Errors
/// [`FileError::Exists`] if it is there; else as [`write_atomically`].
pub fn write_new(path: &Path, bytes: &[u8], access: Access) -> Result<(), FileError> {
    write_whole(path, bytes, access, |from, to| {
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(FileError::Exists(path.to_owned())),
            // File systems without it, NFS among them: the lock on the temporary file still keeps
            // other writers of ours away.
            Err(Errno::INVAL | Errno::NOSYS) if !to.exists() => {
                std::fs::rename(from, to).map_err(io_error("create", path))
            }
            Err(Errno::INVAL | Errno::NOSYS) => Err(FileError::Exists(path.to_owned())),
            Err(error) => Err(io_error("create", path)(error.into())),
        }
    })
}

fn write_whole(
    path: &Path,
    bytes: &[u8],
    access: Access,
    publish: impl FnOnce(&Path, &Path) -> Result<(), FileError>,
) -> Result<(), FileError> {
    let name = path
        .file_name()
        .ok_or_else(|| FileError::NoName(path.to_owned()))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".tmp");
    let temporary = path.with_file_name(hidden);
    let mut file = lock_temporary(&temporary)?;
    let written = fill(&mut file, bytes, access)
        .map_err(io_error("write", &temporary))
        .and_then(|()| publish(&temporary, path));
    if written.is_err() {
        // Best effort: the error below is the one to report.
        std::fs::remove_file(&temporary).ok();
    }
    written?;
    sync_folder(path)
}

fn fill(file: &mut File, bytes: &[u8], access: Access) -> io::Result<()> {
    file.set_permissions(std::fs::Permissions::from_mode(access.mode()))?;
    file.set_len(0)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Opens the temporary file and locks it, making sure it is still the one at that path: the writer
/// before us may have renamed it away while we waited.
fn lock_temporary(path: &Path) -> Result<File, FileError> {
    loop {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0))
            .open(path)
            .map_err(io_error("create", path))?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(io::Error::from)
            .map_err(io_error("lock", path))?;
        let ours = file.metadata().map_err(io_error("inspect", path))?;
        match std::fs::symlink_metadata(path) {
            Ok(there) if there.ino() == ours.ino() && there.dev() == ours.dev() => {
                return Ok(file);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("inspect", path)(error)),
        }
    }
}

fn sync_folder(path: &Path) -> Result<(), FileError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(io_error("sync", folder))
}

/// Makes a folder (and those above it) and makes that durable.
///
/// # Errors
/// The operating system refused.
pub fn make_folder(path: &Path, access: Access) -> Result<(), FileError> {
    let mode = match access {
        Access::Public => 0o755,
        Access::Secret => 0o700,
    };
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        make_folder(parent, Access::Public)?;
    }
    match std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), mode).create(path)
    {
        Ok(()) => sync_folder(path),
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(io_error("create folder", path)(error)),
    }
}

/// Reads a file of at most [`FILE_BYTES_MAX`] bytes.
///
/// # Errors
/// The operating system refused, or the file is larger.
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let file = File::open(path).map_err(io_error("read", path))?;
    read_open(file, path)
}

/// Reads a file that only its owner may read (C5).
///
/// # Errors
/// As [`read`], and group or world have any permission on it.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, FileError> {
    let file = File::open(path).map_err(io_error("read", path))?;
    // The descriptor's own mode, so that nobody can swap the file between check and use.
    let mode = file
        .metadata()
        .map_err(io_error("inspect", path))?
        .permissions()
        .mode()
        & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    read_open(file, path)
}

fn read_open(file: File, path: &Path) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(io_error("read", path))?;
    if u64::try_from(bytes.len()).is_ok_and(|n| n > FILE_BYTES_MAX) {
        return Err(FileError::TooLarge(path.to_owned()));
    }
    Ok(bytes)
}

/// A lock that one process holds at a time; it ends with the process.
#[derive(Debug)]
pub(crate) struct ProcessLock {
    _file: File,
}

impl ProcessLock {
    /// Waits for the lock.
    pub(crate) fn take(path: &Path) -> Result<Self, FileError> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io_error("create", path))?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(io::Error::from)
            .map_err(io_error("lock", path))?;
        Ok(Self { _file: file })
    }
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

/// One PEM block, RFC 7468.
#[must_use]
pub fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for (at, character) in body.chars().enumerate() {
        if at > 0 && at % 64 == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text.push_str(&format!("\n-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_keeps_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gw.pem");
        write_atomically(&path, b"old, and longer than the new one", Access::Public).unwrap();
        write_atomically(&path, b"new", Access::Public).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_temporary_left_by_a_crash_is_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gw.key");
        let left = folder.path().join(".gw.key.tmp");
        std::fs::write(&left, "half a key, world readable, longer").unwrap();
        write_atomically(&path, b"key", Access::Secret).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"key");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(!left.exists());
    }

    #[test]
    fn writers_of_one_file_take_turns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::thread::scope(|scope| {
            for letter in [b'a', b'b', b'c', b'd'] {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..50 {
                        write_atomically(path, &[letter; 10_000], Access::Public).unwrap();
                        let read = read(path).unwrap();
                        assert_eq!(read.len(), 10_000);
                        assert!(read.iter().all(|b| *b == read[0]));
                    }
                });
            }
        });
    }

    #[test]
    fn of_several_that_make_a_new_file_one_wins() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let won: usize = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..8_u8)
                .map(|n| {
                    let path = &path;
                    scope.spawn(move || match write_new(path, &[n; 100], Access::Secret) {
                        Ok(()) => 1,
                        Err(FileError::Exists(_)) => 0,
                        Err(error) => panic!("{error}"),
                    })
                })
                .collect();
            writers.into_iter().map(|w| w.join().unwrap()).sum()
        });
        assert_eq!(won, 1);
        let read = read(&path).unwrap();
        assert!(read.len() == 100 && read.iter().all(|b| *b == read[0]));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn c5_a_secret_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k");
        write_atomically(&path, b"secret", Access::Secret).unwrap();
        assert_eq!(read_secret(&path).unwrap(), b"secret");
        for mode in [0o640, 0o604, 0o620, 0o611, 0o644] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = read_secret(&path).unwrap_err();
            assert!(matches!(error, FileError::Exposed { .. }), "{error}");
        }
    }

    #[test]
    fn a_file_over_the_limit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("big");
        let file = File::create(&path).unwrap();
        file.set_len(FILE_BYTES_MAX).unwrap();
        assert!(read(&path).is_ok());
        file.set_len(FILE_BYTES_MAX + 1).unwrap();
        assert!(matches!(read(&path), Err(FileError::TooLarge(_))));
    }

    #[test]
    fn pem_lines_are_64_characters() {
        // RFC 7468 §2: 64 characters except the last line; 48 bytes are exactly 64.
        let text = pem("X", &[0; 49]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "-----BEGIN X-----");
        assert_eq!(lines[1].len(), 64);
        assert_eq!(lines[2], "AA==");
        assert_eq!(lines[3], "-----END X-----");
    }
}
