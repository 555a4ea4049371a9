//! The last good configuration on disk: kept when one was applied, used at start. Beside it the
//! numbers of the newest CRLs, below which none is taken any more.
//!
//! ```text
//! files unchanged since it was kept ----> it, without reading them as YAML
//! files that say what a gateway is -----> the files, and of each document that is refused the last
//!                                         good text; kept once they serve
//! files refused, and it is usable ------> it, told loudly
//! files refused otherwise --------------> no start
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use zeugma_xds::client;
use zeugma_xds::{
    Findings, GatewaySettings, Good, LastGood, LastGoodError, Loaded, NodeOptions, STATE_BYTES_MAX,
    Sources, StateDir,
};

use super::{GatewayError, reload};
use crate::control_plane;
use crate::state;
use crate::tls::CrlNumbers;

/// Its name in the gateway's folder.
const FILE: &str = "last-good";
/// The name of the file of CRL numbers.
const NUMBERS: &str = "crl-numbers";
/// Gateways of one configuration whose state is looked for where no name says which it is.
const GATEWAYS_MAX: usize = 64;
/// After how long what a control plane gave is given again, where not even all of it could be written.
const AGAIN: Duration = Duration::from_secs(10);
/// The largest one: 16 issuers of 1,024 trust domains, at 430 bytes each.
const NUMBERS_BYTES_MAX: u64 = 8 << 20;

/// What a gateway starts with.
#[derive(Debug)]
pub(super) struct Beginning {
    pub(super) loaded: Loaded,
    /// What is wrong with the files, where the last good configuration serves in their place.
    pub(super) findings: Option<Findings>,
    /// Whether it is what is kept already.
    pub(super) is_kept: bool,
}

impl Beginning {
    /// Loads the files, or what was kept of them.
    ///
    /// # Errors
    /// [`GatewayError::Config`], where neither can be used.
    pub(super) fn load(config: &Path, node: &NodeOptions) -> Result<Self, GatewayError> {
        let sources = Sources::read(config);
        let kept = Kept::find(sources.as_ref().ok(), node);
        let refused = match sources {
            Ok(sources) => {
                let is_same = kept.as_ref().filter(|kept| kept.is_of(&sources, node));
                if let Some(loaded) = is_same.and_then(|kept| kept.load(config, node)) {
                    return Ok(Self {
                        loaded,
                        findings: None,
                        is_kept: true,
                    });
                }
                let good = kept.as_ref().and_then(Kept::good).unwrap_or_default();
                match sources.renew(node, &good, &[]) {
                    Ok(loaded) => {
                        return Ok(Self {
                            loaded,
                            findings: None,
                            is_kept: false,
                        });
                    }
                    Err(findings) => findings,
                }
            }
            Err(findings) => findings,
        };
        let text = reload::describe(&refused);
        let Some(loaded) = kept.and_then(|kept| kept.load(config, node)) else {
            return Err(GatewayError::Config(text));
        };
        tracing::error!(
            code = "ZG0123",
            version = %loaded.snapshot.version,
            "configuration refused; the last good one, which was kept, serves\n{text}"
        );
        Ok(Self {
            loaded,
            findings: Some(refused),
            is_kept: true,
        })
    }
}

/// What the file holds.
struct Kept {
    path: PathBuf,
    content: LastGood,
}

impl Kept {
    /// What the gateway kept that these options choose.
    fn find(sources: Option<&Sources>, node: &NodeOptions) -> Option<Self> {
        let told = sources.map(|sources| sources.state_dirs(node));
        let told = told.unwrap_or_default();
        match told.as_slice() {
            // Where not even the gateway's own document says it, its name alone may lead there.
            [] => Self::read(&StateDir::Default, node.name.as_ref()?),
            [(name, dir)] => Self::read(dir, name),
            // One of them may be new: it is the one that ran here with these options.
            several => {
                let mut all = several
                    .iter()
                    .take(GATEWAYS_MAX)
                    .filter_map(|(name, dir)| Self::read(dir, name))
                    .filter(|kept| sources.is_some_and(|sources| kept.suits(sources, node)));
                let only = all.next();
                only.filter(|_| all.next().is_none())
            }
        }
    }

    /// Whether it is not known to be made with other options.
    fn suits(&self, sources: &Sources, node: &NodeOptions) -> bool {
        !matches!(
            sources.made(&self.content, node),
            Err(LastGoodError::OtherOptions(_) | LastGoodError::Damaged(_))
        )
    }

    fn read(dir: &StateDir, name: &str) -> Option<Self> {
        let path = state::folder_of(dir, name).join(FILE);
        match state::read(dir, name, FILE, STATE_BYTES_MAX) {
            Ok(bytes) => bytes.map(|bytes| Self {
                path,
                content: LastGood::from_bytes(bytes),
            }),
            Err(error) => {
                tracing::warn!(
                    code = "ZG0124",
                    path = %path.display(), %error,
                    "the last good configuration cannot be read"
                );
                None
            }
        }
    }

    fn is_of(&self, sources: &Sources, node: &NodeOptions) -> bool {
        self.told(sources.made(&self.content, node))
            .unwrap_or(false)
    }

    fn good(&self) -> Option<Good> {
        self.told(self.content.good())
    }

    fn load(&self, config: &Path, node: &NodeOptions) -> Option<Loaded> {
        self.told(self.content.clone().load(config, node))
    }

    fn told<T>(&self, result: Result<T, LastGoodError>) -> Option<T> {
        if let Err(error) = &result {
            tracing::warn!(
                code = "ZG0124",
                path = %self.path.display(), %error,
                "the last good configuration that was kept is not used"
            );
        }
        result.ok()
    }
}

/// The newest CRLs that were used before this start, as far as that was kept.
pub(super) fn crl_numbers(settings: &GatewaySettings) -> CrlNumbers {
    let (dir, name) = (&settings.state_dir, &settings.name);
    let read = state::read(dir, name, NUMBERS, NUMBERS_BYTES_MAX).and_then(|bytes| {
        let text = String::from_utf8(bytes.unwrap_or_default()).ok();
        let numbers = text.and_then(|text| CrlNumbers::from_text(&text));
        numbers.ok_or_else(|| io::Error::other("it is damaged"))
    });
    read.unwrap_or_else(|error| {
        tracing::warn!(
            code = "ZG0208",
            path = %state::folder_of(dir, name).join(NUMBERS).display(), %error,
            "the numbers of CRLs that were used before cannot be read: an older CRL is not told"
        );
        CrlNumbers::default()
    })
}

/// What is to be written next; a newer one takes its place.
#[derive(Debug, Default)]
struct Next {
    last_good: Option<LastGood>,
    numbers: Option<CrlNumbers>,
    given: Given,
    /// What is on disk of it is not what more can be added to.
    has_lost_given: bool,
    /// All of it could not be written.
    is_unwritable: bool,
    /// That it cannot be kept was told, and it was not kept since.
    is_told: bool,
    takes_no_given: bool,
    turn: Turn,
}

/// What a control plane gave that is not written yet.
#[derive(Debug, Default)]
struct Given {
    /// In place of what is there.
    whole: Option<client::Kept>,
    /// After that.
    more: Option<client::More>,
}

impl Given {
    const fn is_none(&self) -> bool {
        self.whole.is_none() && self.more.is_none()
    }

    fn take(&mut self, given: client::Keep) {
        match given {
            client::Keep::Whole(whole) => {
                *self = Self {
                    whole: Some(whole),
                    more: None,
                }
            }
            client::Keep::More(later) => match &mut self.more {
                Some(more) => more.take(later),
                None => self.more = Some(later),
            },
        }
    }

    fn write(&self, folder: &Path) -> io::Result<()> {
        let more = self.more.as_ref().map(client::More::to_bytes);
        match (&self.whole, more) {
            (Some(whole), more) => {
                let mut bytes = whole.to_bytes();
                bytes.extend(more.unwrap_or_default());
                state::check_len(bytes.len() as u64, STATE_BYTES_MAX)?;
                state::write(folder, control_plane::FILE, &bytes)
            }
            (None, Some(more)) => {
                state::append(folder, control_plane::FILE, &more, STATE_BYTES_MAX)
            }
            (None, None) => Ok(()),
        }
    }
}

/// Whose the folder is: of two processes in a handover one writes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The gateway's before.
    Later,
    #[default]
    Now,
    /// The successor's.
    Over,
}

/// Writes the last good configuration beside the control loop: a slow disk holds up nothing.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    folder: Arc<Path>,
    next: Arc<Mutex<Next>>,
    /// Held while anything is written.
    writing: Arc<Mutex<()>>,
    told: Arc<Notify>,
    /// Told where what a control plane gave must be given again.
    lost: Arc<Notify>,
}

impl Keeper {
    /// Keeps it in `folder`, which is this gateway's; first of all what it began with, where that is
    /// not kept yet.
    pub(super) fn begin(folder: PathBuf, unkept: Option<LastGood>, turn: Turn) -> Self {
        let this = Self {
            folder: folder.into(),
            next: Arc::default(),
            writing: Arc::default(),
            told: Arc::default(),
            lost: Arc::default(),
        };
        this.next().turn = turn;
        if let Some(unkept) = unkept {
            this.keep(unkept);
        }
        this
    }

    /// From now on this is so, for whoever else keeps something too. What was not written yet is written
    /// when it may be.
    pub(super) fn turn(&self, turn: Turn) {
        self.next().turn = turn;
        self.told.notify_one();
    }

    /// From now on another process writes; waits until what is being written here is.
    ///
    /// # Cancel safety
    /// It is the other process's all the same, until this one has its turn again.
    pub(super) fn give_over(&self) -> impl Future<Output = ()> + use<> {
        self.turn(Turn::Over);
        let writing = Arc::clone(&self.writing);
        async move {
            // One that failed while it held it writes nothing either.
            let waiting = tokio::task::spawn_blocking(move || drop(writing.lock()));
            waiting.await.ok();
        }
    }

    /// Keeps this instead of what was kept before.
    pub(super) fn keep(&self, last_good: LastGood) {
        self.next().last_good = Some(last_good);
        self.told.notify_one();
    }

    /// Keeps these beside it.
    pub(super) fn keep_numbers(&self, numbers: &CrlNumbers) {
        if !numbers.is_empty() {
            self.next().numbers = Some(numbers.clone());
            self.told.notify_one();
        }
    }

    /// Keeps what a control plane gave.
    pub(crate) fn keep_given(&self, given: client::Keep) {
        let mut next = self.next();
        if !next.takes_no_given {
            next.given.take(given);
            self.told.notify_one();
        }
    }

    /// Waits until nothing is kept to which what is given could be added.
    ///
    /// # Cancel safety
    /// Safe: a permit that is kept until it is taken.
    pub(crate) async fn lost_given(&self) {
        self.lost.notified().await;
    }

    /// Whether what is given next must be all of it; that is told once.
    pub(crate) fn has_lost_given(&self) -> bool {
        std::mem::take(&mut self.next().has_lost_given)
    }

    /// From now on nothing of what a control plane gives is kept.
    pub(super) fn keep_nothing_given(&self) {
        self.next().takes_no_given = true;
    }

    /// A lock is held to move a pointer alone: nobody fails meanwhile.
    fn next(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes whatever is to be kept, for ever.
    pub(super) fn run(&self) -> impl Future<Output = ()> + use<> {
        let this = self.clone();
        async move {
            let mut again = None;
            loop {
                let due = async {
                    match again {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                // A permit that is kept until it is taken, and a sleep until a fixed moment.
                tokio::select! {
                    () = this.told.notified() => {}
                    () = due => {
                        again = None;
                        this.lost.notify_one();
                        continue;
                    }
                }
                let write = this.clone();
                let written = tokio::task::spawn_blocking(move || write.write()).await;
                match written {
                    Ok(Ok(())) => tracing::debug!("the last good configuration is kept"),
                    Ok(Err(error)) => tracing::warn!(
                        code = "ZG0125",
                        path = %this.folder.join(FILE).display(), %error,
                        "the last good configuration cannot be kept: a start with files that are \
                         refused will fail"
                    ),
                    Err(error) => {
                        tracing::error!(code = "ZG0906", %error, "keeping the configuration failed")
                    }
                }
                again = match this.next().is_unwritable {
                    true => again.or_else(|| Some(Instant::now() + AGAIN)),
                    false => None,
                };
            }
        }
    }

    fn write(&self) -> io::Result<()> {
        // Before the turn is looked at: whoever ends it waits for this.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Next {
            last_good,
            numbers,
            given,
            ..
        } = {
            let mut next = self.next();
            if next.turn != Turn::Now {
                return Ok(());
            }
            let left = Next {
                takes_no_given: next.takes_no_given,
                has_lost_given: next.has_lost_given,
                is_unwritable: next.is_unwritable && next.given.is_none(),
                is_told: next.is_told,
                ..Next::default()
            };
            std::mem::replace(&mut *next, left)
        };
        if let Err(error) = given.write(&self.folder) {
            // What is there is older than what serves, and may let in whom it does not.
            std::fs::remove_file(self.folder.join(control_plane::FILE)).ok();
            let mut next = self.next();
            next.has_lost_given = true;
            // Where not even all of it can be written, it is tried again later, unless it is too much.
            next.is_unwritable =
                given.whole.is_some() && error.kind() != io::ErrorKind::FileTooLarge;
            if given.whole.is_none() {
                self.lost.notify_one();
            }
            let is_told = std::mem::replace(&mut next.is_told, true);
            drop(next);
            if !is_told {
                tracing::warn!(
                    code = "ZG0125",
                    path = %self.folder.join(control_plane::FILE).display(), %error,
                    "what the control plane gave cannot be kept: after a restart nothing serves before it answers"
                );
            }
        } else if !given.is_none() {
            self.next().is_told = false;
        }
        if let Some(numbers) = numbers
            && let Err(error) = state::write(&self.folder, NUMBERS, numbers.to_text().as_bytes())
        {
            tracing::warn!(
                code = "ZG0208",
                path = %self.folder.join(NUMBERS).display(), %error,
                "the numbers of CRLs cannot be kept: after a restart an older CRL is not told"
            );
        }
        let Some(next) = last_good else {
            return Ok(());
        };
        let bytes = next.as_bytes();
        let fits = state::check_len(bytes.len() as u64, STATE_BYTES_MAX);
        let written = fits.and_then(|()| state::write(&self.folder, FILE, bytes));
        written.inspect_err(|_| {
            // What is there is older than what serves, and may let in whom it does not. It can be
            // removed where nothing can be written; if not, the warning is all that is left.
            std::fs::remove_file(self.folder.join(FILE)).ok();
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What broke: the one before went on after it had said that all is the successor's.
    #[tokio::test]
    async fn of_two_processes_in_a_handover_one_writes() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::begin(dir.path().to_owned(), None, Turn::Now);
        let is_kept = || dir.path().join(FILE).exists();
        let mut over = {
            let _under_way = keeper.writing.lock().unwrap();
            let mut over = Box::pin(keeper.give_over());
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(over.as_mut().poll(&mut context).is_pending());
            over
        };
        over.as_mut().await;
        keeper.keep(LastGood::from_bytes(b"two".to_vec()));
        keeper.write().unwrap();
        assert!(!is_kept(), "it is the successor's");
        // Which gave up.
        keeper.turn(Turn::Now);
        keeper.write().unwrap();
        assert!(is_kept());
    }

    /// What broke: nobody tried before the control plane said something else.
    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_written_whole_is_asked_for_again_after_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("not there yet");
        let keeper = Keeper::begin(folder.clone(), None, Turn::Now);
        // No resources, of the beginning of 1970.
        let sum: u128 = 0x0880_945b_4fab_1be9_5aa0_7330_5527_3845;
        let part = [&2_u64.to_le_bytes()[..], &sum.to_le_bytes(), &[0; 2]].concat();
        let bytes = [&b"zeugma resources 2\n"[..], &part].concat();
        let all = || client::Keep::Whole(client::Kept::from_bytes(&bytes).unwrap());
        let began = Instant::now();
        for tries in 1..=2 {
            keeper.keep_given(all());
            tokio::select! {
                () = keeper.run() => {}
                () = keeper.lost_given() => {}
            }
            assert_eq!(began.elapsed(), AGAIN * tries);
            assert!(keeper.has_lost_given());
        }
        std::fs::create_dir(&folder).unwrap();
        keeper.keep_given(all());
        keeper.write().unwrap();
        assert!(folder.join(control_plane::FILE).exists());
        assert!(!keeper.next().is_unwritable);
    }
}
