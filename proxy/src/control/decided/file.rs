//! `<stateDir>/<name>/failover`: the evacuations, and the levels that come back by a reset alone.
//!
//! Written beside the control loop, one file after the other and each the latest: a thousand levels
//! that turn in a second are a few files. Of two processes in a handover one writes: the one before
//! until it has written its last, the one after once it has taken over and read that.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use zeugma_core::fleet::{Evacuation, Fleet, Kept};
use zeugma_core::locality::Locality;

use super::{Answer, Granted};
use crate::state;

/// Its name in the gateway's folder.
const FILE: &str = "failover";
/// The largest one that is read.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// What could not be written is tried again so long after.
const AGAIN: Duration = Duration::from_secs(10);
/// How long the last file may take at the end of the process.
const LAST: Duration = Duration::from_secs(2);

/// One evacuation, as it is written and told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Written {
    #[serde(flatten)]
    pub(super) of: Place,
    /// RFC 3339.
    pub(super) since: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Place {
    Locality(String),
    Peer(String),
    Backend { route: String, name: String },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct WrittenLevel {
    cluster: String,
    level: String,
    damped: f64,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct WrittenFile {
    pub(super) evacuations: Vec<Written>,
    #[serde(default)]
    kept: Vec<WrittenLevel>,
}

impl WrittenFile {
    pub(super) fn of(evacuations: Vec<Written>, fleet: &Fleet) -> Self {
        let of = |kept: Kept| WrittenLevel {
            cluster: kept.cluster.to_string(),
            level: kept.level.to_string(),
            damped: kept.damped,
        };
        Self {
            evacuations,
            kept: fleet.kept().map(of).collect(),
        }
    }

    /// What was kept, or nothing where there is none; told where it cannot be read.
    pub(super) fn read(folder: &Path) -> Self {
        read(&folder.join(FILE)).unwrap_or_else(|error| {
            tracing::warn!(
                code = "ZG0439",
                %error,
                "what operators decided of failover cannot be read: nothing is evacuated"
            );
            Self::default()
        })
    }

    /// The levels that come back by a reset alone.
    pub(super) fn kept(&self) -> Vec<Kept> {
        let of = |level: &WrittenLevel| Kept {
            cluster: level.cluster.as_str().into(),
            level: level.level.as_str().into(),
            damped: level.damped,
        };
        self.kept.iter().map(of).collect()
    }
}

fn read(path: &Path) -> io::Result<WrittenFile> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(WrittenFile::default()),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

impl Place {
    pub(super) fn of(evacuation: &Evacuation) -> Self {
        match evacuation {
            Evacuation::Locality(place) => Self::Locality(place.to_string()),
            Evacuation::Peer(name) => Self::Peer(name.to_string()),
            Evacuation::Backend { route, backend } => Self::Backend {
                route: route.to_string(),
                name: backend.to_string(),
            },
        }
    }

    pub(super) fn parsed(self) -> Option<Evacuation> {
        Some(match self {
            Self::Locality(text) => Evacuation::Locality(Locality::parse(&text).ok()?),
            Self::Peer(name) => Evacuation::Peer(name.into()),
            Self::Backend { route, name } => Evacuation::Backend {
                route: route.into(),
                backend: name.into(),
            },
        })
    }
}

/// Whose the file is.
#[derive(Debug, Default)]
enum Owner {
    /// Nobody's: it cannot be kept.
    #[default]
    Nobody,
    /// Another process's, which hands over or is handed over to.
    Other(Arc<Path>),
    Own(Arc<Path>),
}

/// Somebody who waits for what was decided to be kept.
#[derive(Debug)]
struct Waiting {
    told: Value,
    answer: oneshot::Sender<Answer>,
}

impl Waiting {
    fn tell(mut self, kept: bool) {
        if let Some(fields) = self.told.as_object_mut() {
            fields.insert("kept".to_owned(), kept.into());
        }
        // Nobody waits any more.
        self.answer.send(Ok(Granted::Done(self.told))).ok();
    }
}

/// Writes what was decided.
#[derive(Debug, Default)]
pub(in crate::control) struct Keeping {
    owner: Owner,
    writing: Option<JoinHandle<io::Result<()>>>,
    /// Those of what is being written.
    waiting: Vec<Waiting>,
    /// Those of what is written next.
    next: Vec<Waiting>,
    is_due: bool,
    /// Whether the last file could not be written, and when it is tried again.
    is_unkept: bool,
    again: Option<Instant>,
    /// Who is told when nothing more is written here.
    lend: Option<oneshot::Sender<()>>,
    written: u64,
}

impl Keeping {
    /// In `folder`, which another process writes to until it has handed over, where one does.
    pub(super) fn begin(folder: Option<PathBuf>, is_taking: bool) -> Self {
        let owner = match folder.map(Arc::from) {
            None => Owner::Nobody,
            Some(folder) if is_taking => Owner::Other(folder),
            Some(folder) => Owner::Own(folder),
        };
        Self {
            owner,
            ..Self::default()
        }
    }

    /// Has it written, soon.
    pub(super) fn due(&mut self) {
        self.is_due = true;
    }

    /// Answers `told` once it is written, and says whether it could be.
    pub(super) fn tell_when_kept(&mut self, told: Value, answer: oneshot::Sender<Answer>) {
        let waiting = Waiting { told, answer };
        match self.owner {
            Owner::Own(_) => {
                self.next.push(waiting);
                self.is_due = true;
            }
            Owner::Nobody | Owner::Other(_) => waiting.tell(false),
        }
    }

    /// Whether something is to be written, and nothing is at this moment.
    pub(super) fn may_write(&self) -> bool {
        let is_due = self.is_due || self.again.is_some_and(|at| at <= Instant::now());
        matches!(self.owner, Owner::Own(_)) && is_due && self.writing.is_none()
    }

    /// Waits until what could not be written may be tried again; for ever where nothing is to be.
    pub(super) fn again(&self) -> impl Future<Output = ()> + use<> {
        let is_own = matches!(self.owner, Owner::Own(_)) && self.writing.is_none();
        let at = self.again.filter(|_| is_own);
        async move {
            match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Writes `file`.
    pub(super) fn write(&mut self, file: WrittenFile) {
        let Owner::Own(folder) = &self.owner else {
            return;
        };
        let folder = Arc::clone(folder);
        self.is_due = false;
        self.again = None;
        self.written += 1;
        self.waiting.append(&mut self.next);
        self.writing = Some(tokio::task::spawn_blocking(move || {
            state::write(&folder, FILE, &serde_json::to_vec_pretty(&file)?)
        }));
    }

    /// Waits until what is being written is; for ever where nothing is.
    ///
    /// # Cancel safety
    /// Safe: a task that is not dropped.
    pub(in crate::control) async fn written(&mut self) -> io::Result<()> {
        let Some(writing) = &mut self.writing else {
            return std::future::pending().await;
        };
        let written = writing.await;
        self.writing = None;
        written.unwrap_or_else(|panicked| Err(io::Error::other(panicked)))
    }

    /// Takes how that went, and tells those who wait.
    pub(in crate::control) fn settle(&mut self, written: &io::Result<()>) {
        let kept = written.is_ok();
        match written {
            Err(error) if !self.is_unkept => tracing::warn!(
                code = "ZG0439",
                %error,
                "what operators decided of failover cannot be kept: it ends with the process, unless \
                 it can be written by then, which is tried again"
            ),
            Ok(()) if self.is_unkept => tracing::info!(
                code = "ZG0439",
                "what operators decided of failover is kept again"
            ),
            Ok(()) | Err(_) => {}
        }
        self.is_unkept = !kept;
        self.again = self.is_unkept.then(|| Instant::now() + AGAIN);
        self.waiting
            .drain(..)
            .for_each(|waiting| waiting.tell(kept));
        if !self.is_due {
            self.let_go();
        }
    }

    /// Writes what is due and nothing more from then on, which `told` hears: it is another process's.
    pub(in crate::control) fn lend(&mut self, told: oneshot::Sender<()>) {
        self.lend = Some(told);
        self.is_due |= self.again.is_some();
        if self.writing.is_none() && !self.may_write() {
            self.let_go();
        }
    }

    fn let_go(&mut self) {
        if let Some(told) = self.lend.take() {
            self.owner = match std::mem::take(&mut self.owner) {
                Owner::Own(folder) | Owner::Other(folder) => Owner::Other(folder),
                Owner::Nobody => Owner::Nobody,
            };
            // Whoever asked has given up; then it is told of as abandoned.
            told.send(()).ok();
        }
    }

    /// It is this process's, in a folder where anything can be kept; which that is.
    pub(in crate::control) fn take(&mut self) -> Option<Arc<Path>> {
        self.lend = None;
        self.owner = match std::mem::take(&mut self.owner) {
            Owner::Own(folder) | Owner::Other(folder) => Owner::Own(folder),
            Owner::Nobody => Owner::Nobody,
        };
        match &self.owner {
            Owner::Own(folder) => Some(Arc::clone(folder)),
            Owner::Nobody | Owner::Other(_) => None,
        }
    }

    /// It is another process's for good.
    pub(in crate::control) fn give_up(&mut self) {
        self.owner = Owner::Nobody;
        let waiting = self.waiting.drain(..).chain(self.next.drain(..));
        waiting.for_each(|waiting| waiting.tell(false));
    }

    /// Writes the last of it, at the end of the process.
    pub(super) async fn finish(&mut self, file: impl FnOnce() -> WrittenFile) {
        let finishing = async {
            if self.writing.is_some() {
                let written = self.written().await;
                self.settle(&written);
            }
            self.is_due |= self.again.is_some();
            if self.may_write() {
                self.write(file());
                let written = self.written().await;
                self.settle(&written);
            }
        };
        if tokio::time::timeout(LAST, finishing).await.is_err() {
            let late: io::Result<()> = Err(io::ErrorKind::TimedOut.into());
            self.settle(&late);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(nth: usize) -> WrittenFile {
        WrittenFile {
            evacuations: Vec::new(),
            kept: vec![WrittenLevel {
                cluster: nth.to_string(),
                level: "near".to_owned(),
                damped: 0.0,
            }],
        }
    }

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        (dir, path)
    }

    /// As the control loop does.
    async fn run(keeping: &mut Keeping, nth: usize) {
        while keeping.may_write() || keeping.writing.is_some() {
            if keeping.may_write() {
                keeping.write(file(nth));
            }
            let written = keeping.written().await;
            keeping.settle(&written);
        }
    }

    /// What broke: each of a thousand levels that came back was a file, with the control thread waiting
    /// for the disk.
    #[tokio::test]
    async fn a_thousand_changes_are_a_few_files_and_the_last_is_what_is_kept() {
        let (_dir, path) = folder();
        let mut keeping = Keeping::begin(Some(path.clone()), false);
        let mut answers = Vec::new();
        for nth in 0..1000 {
            let (answer, answered) = oneshot::channel();
            keeping.tell_when_kept(serde_json::json!({}), answer);
            answers.push(answered);
            if keeping.may_write() {
                keeping.write(file(nth));
            }
        }
        run(&mut keeping, 1000).await;
        assert_eq!(keeping.written, 2);
        assert_eq!(WrittenFile::read(&path), file(1000));
        for answered in answers {
            let Ok(Ok(Granted::Done(told))) = answered.await else {
                panic!("no answer");
            };
            assert_eq!(told["kept"], true);
        }
    }

    /// What broke: in a handover both wrote.
    #[tokio::test]
    async fn of_two_processes_one_writes() {
        let (_dir, path) = folder();
        let mut before = Keeping::begin(Some(path.clone()), false);
        let mut after = Keeping::begin(Some(path.clone()), true);
        after.due();
        assert!(!after.may_write(), "it has not taken over");
        before.due();
        before.write(file(1));
        before.due();
        let (told, mut hears) = oneshot::channel();
        before.lend(told);
        assert!(hears.try_recv().is_err(), "its last is not written");
        run(&mut before, 2).await;
        hears.await.unwrap();
        assert_eq!(WrittenFile::read(&path), file(2));
        before.due();
        assert!(!before.may_write());
        assert_eq!(after.take().as_deref(), Some(&*path));
        run(&mut after, 3).await;
        assert_eq!(WrittenFile::read(&path), file(3));
        // Abandoned: what came meanwhile is written.
        before.take();
        assert!(before.may_write());
        before.give_up();
        assert!(!before.may_write());
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_told_to_whoever_waits() {
        let (_dir, path) = folder();
        std::fs::create_dir(path.join(FILE)).unwrap();
        let mut keeping = Keeping::begin(Some(path), false);
        let (answer, answered) = oneshot::channel();
        keeping.tell_when_kept(serde_json::json!({}), answer);
        keeping.finish(|| file(1)).await;
        let Ok(Ok(Granted::Done(told))) = answered.await else {
            panic!("no answer");
        };
        assert_eq!(told["kept"], false);
    }

    /// What broke: it was written once more when something else was decided, and else never.
    #[tokio::test]
    async fn what_could_not_be_written_is_tried_again_by_and_by_and_at_the_end() {
        let (_dir, path) = folder();
        let is_in_the_way = path.join(FILE);
        std::fs::create_dir(&is_in_the_way).unwrap();
        let mut keeping = Keeping::begin(Some(path.clone()), false);
        keeping.due();
        run(&mut keeping, 1).await;
        assert!(!keeping.may_write(), "not at once");
        std::fs::remove_dir(&is_in_the_way).unwrap();
        keeping.finish(|| file(2)).await;
        assert_eq!(WrittenFile::read(&path), file(2));
        keeping.finish(|| file(3)).await;
        assert_eq!(WrittenFile::read(&path), file(2), "it is kept");

        std::fs::remove_file(&is_in_the_way).unwrap();
        std::fs::create_dir(&is_in_the_way).unwrap();
        keeping.due();
        run(&mut keeping, 4).await;
        std::fs::remove_dir(&is_in_the_way).unwrap();
        tokio::time::pause();
        keeping.again().await;
        tokio::time::resume();
        run(&mut keeping, 5).await;
        assert_eq!(WrittenFile::read(&path), file(5));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let file = WrittenFile {
            evacuations: [
                Evacuation::Locality(Locality::parse("eu/eu-1").unwrap()),
                Evacuation::Peer("west".into()),
                Evacuation::Backend {
                    route: "shop/orders".into(),
                    backend: "eu-1".into(),
                },
            ]
            .iter()
            .map(|of| Written {
                of: Place::of(of),
                since: "2026-01-01T00:00:00Z".to_owned(),
            })
            .collect(),
            kept: Vec::new(),
        };
        let text = serde_json::to_string(&file).unwrap();
        assert!(text.contains(r#"{"locality":"eu/eu-1","since":"#), "{text}");
        assert_eq!(serde_json::from_str::<WrittenFile>(&text).unwrap(), file);
    }
}
