//! Files that changed: told by the kernel where it can, and found by looking where it cannot.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How long changes are gathered before they are told: files that belong together are replaced one
/// after the other.
const SETTLE: Duration = Duration::from_millis(100);
/// How often everything is looked at, for file systems that tell nothing.
const POLL: Duration = Duration::from_secs(5);
/// How often a change is told though nothing looks changed, so that the content itself is compared:
/// a file system may show times and numbers that do not change with it.
const READ: Duration = Duration::from_secs(60);
/// Files of one folder that are looked at.
const FILES_MAX: usize = 10_000;

/// What a file looked like. Its time alone would not do: a file that was moved here may be as old and
/// as long as the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Looks {
    inode: (u64, u64),
    len: u64,
    written: (i64, i64),
    changed: (i64, i64),
}

impl From<Metadata> for Looks {
    fn from(file: Metadata) -> Self {
        Self {
            inode: (file.dev(), file.ino()),
            len: file.len(),
            written: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

type Look = BTreeMap<PathBuf, Looks>;

/// Folders under watch, and which ones they are: another may have taken a folder's name.
type Folders = BTreeMap<PathBuf, (u64, u64)>;

/// Files and folders under watch.
#[derive(Debug)]
pub struct Watch {
    paths: Vec<PathBuf>,
    folders: Folders,
    seen: Look,
    // Held: dropping it ends the watch.
    watcher: Option<RecommendedWatcher>,
    told: mpsc::Receiver<()>,
    tell: mpsc::Sender<()>,
    // All are kept here: a busy caller drops `changed` hundreds of times a second.
    /// When the changes told are looked at.
    settled: Option<Instant>,
    /// When to look though nothing was told.
    poll: Instant,
    /// When to tell a change whatever it looks like.
    read: Instant,
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}

impl Watch {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        let (tell, told) = mpsc::channel(1);
        Self {
            paths: Vec::new(),
            folders: Folders::new(),
            seen: Look::new(),
            watcher: None,
            told,
            tell,
            settled: None,
            poll: Instant::now() + POLL,
            read: Instant::now() + READ,
        }
    }

    /// Watches these files and folders instead of those before. What is new among them counts as
    /// changed: it may have been read before it was watched.
    pub fn set(&mut self, paths: Vec<PathBuf>) {
        let folders: Folders = (paths.iter().flat_map(|path| folders_of(path)))
            .map(|folder| {
                let which = std::fs::metadata(&folder).map(|folder| (folder.dev(), folder.ino()));
                (folder, which.unwrap_or_default())
            })
            .collect();
        if paths != self.paths {
            self.paths = paths;
            self.settled = Some(Instant::now() + SETTLE);
        }
        if folders == self.folders {
            return;
        }
        self.settled = Some(Instant::now() + SETTLE);
        let tell = self.tell.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.is_ok_and(|event| is_read(event.kind)) {
                // A look of ours is told, too: it would be followed by the next, for ever.
                return;
            }
            // A full channel already says what is to be said.
            tell.try_send(()).ok();
        });
        self.watcher = match watcher {
            Ok(mut watcher) => {
                for folder in folders.keys() {
                    if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
                        tracing::warn!(
                            code = "ZG0129",
                            folder = %folder.display(), %error,
                            "changes are not told by the kernel; looking every {POLL:?}"
                        );
                    }
                }
                Some(watcher)
            }
            Err(error) => {
                tracing::warn!(code = "ZG0129", %error, "changes are not told by the kernel; looking every {POLL:?}");
                None
            }
        };
        self.folders = folders;
    }

    /// Waits until a watched file changed, or may have.
    ///
    /// # Cancel safety
    /// A change that was not returned is found by the next call.
    pub async fn changed(&mut self) {
        loop {
            let due = self.settled.map_or(self.poll, |at| at.min(self.poll));
            tokio::select! {
                _ = self.told.recv(), if self.settled.is_none() => {
                    self.settled = Some(Instant::now() + SETTLE);
                    continue;
                }
                () = tokio::time::sleep_until(due) => {}
            }
            while self.told.try_recv().is_ok() {}
            // Until the look is taken it is still due: another call may have to take it.
            let paths = self.paths.clone();
            let Ok(now) = tokio::task::spawn_blocking(move || look(&paths)).await else {
                self.poll = Instant::now() + POLL;
                continue;
            };
            self.settled = None;
            self.poll = Instant::now() + POLL;
            if now != self.seen || Instant::now() >= self.read {
                self.seen = now;
                self.read = Instant::now() + READ;
                return;
            }
        }
    }
}

/// Whether nothing was written: a file or folder was opened, read, or closed after that.
fn is_read(event: EventKind) -> bool {
    match event {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        EventKind::Access(_) => true,
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => false,
    }
}

/// The folders whose changes say that `path` changed: its own, and for a folder itself; of a link to
/// a folder, which may be made to lead elsewhere, both.
fn folders_of(path: &Path) -> Vec<PathBuf> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match (path.is_dir(), path.is_symlink()) {
        (true, false) => vec![path.to_owned()],
        (true, true) => vec![path.to_owned(), parent.to_owned()],
        (false, _) => vec![parent.to_owned()],
    }
}

fn look(paths: &[PathBuf]) -> Look {
    let mut seen = Look::new();
    for path in paths {
        note(&mut seen, path);
        if let Ok(entries) = std::fs::read_dir(path) {
            for entry in entries.flatten().take(FILES_MAX) {
                note(&mut seen, &entry.path());
            }
        }
    }
    seen
}

fn note(seen: &mut Look, path: &Path) {
    // Through links: Kubernetes replaces a link, not the file.
    if let Ok(metadata) = std::fs::metadata(path)
        && metadata.is_file()
    {
        seen.insert(path.to_owned(), metadata.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_told(watch: &mut Watch) -> bool {
        tokio::time::timeout(Duration::from_secs(20), watch.changed())
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn a_write_a_rename_and_a_new_file_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        std::fs::write(&file, "1").unwrap();
        let mut watch = Watch::new();
        watch.set(vec![file.clone(), folder.path().to_owned()]);
        std::fs::write(&file, "22").unwrap();
        assert!(is_told(&mut watch).await);
        let next = folder.path().join(".a.next");
        std::fs::write(&next, "333").unwrap();
        std::fs::rename(&next, &file).unwrap();
        assert!(is_told(&mut watch).await);
        std::fs::write(folder.path().join("b.yaml"), "").unwrap();
        assert!(is_told(&mut watch).await);
    }

    #[tokio::test]
    async fn a_change_that_keeps_length_and_time_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        std::fs::write(&file, "1").unwrap();
        let written = std::fs::metadata(&file).unwrap().modified().unwrap();
        let mut watch = Watch::new();
        watch.set(vec![folder.path().to_owned()]);
        // What was there before it was watched may have been read before it changed.
        assert!(is_told(&mut watch).await);
        std::fs::write(&file, "2").unwrap();
        let open = std::fs::File::options().write(true).open(&file).unwrap();
        open.set_modified(written).unwrap();
        assert!(is_told(&mut watch).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_content_is_read_again_though_nothing_looks_changed() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = Watch::new();
        watch.set(vec![folder.path().to_owned()]);
        let started = Instant::now();
        watch.changed().await;
        assert!(started.elapsed() >= READ, "{:?}", started.elapsed());
    }

    /// What the kernel tells of our own looks is no reason to look again.
    #[test]
    fn reading_is_no_change() {
        let read = [
            AccessKind::Open(AccessMode::Any),
            AccessKind::Close(AccessMode::Read),
            AccessKind::Read,
        ];
        assert!(read.into_iter().map(EventKind::Access).all(is_read));
        let written = AccessKind::Close(AccessMode::Write);
        assert!(!is_read(EventKind::Access(written)) && !is_read(EventKind::Any));
    }

    #[tokio::test]
    async fn a_change_is_told_to_a_caller_that_keeps_being_interrupted() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = Watch::new();
        watch.set(vec![folder.path().to_owned()]);
        std::fs::write(folder.path().join("b.yaml"), "").unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let interrupted = Duration::from_millis(5);
        while tokio::time::timeout(interrupted, watch.changed())
            .await
            .is_err()
        {
            assert!(Instant::now() < deadline, "the change was never told");
        }
    }
}
