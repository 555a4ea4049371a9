//! The documents of a folder for a control plane, each time they changed and are at rest.

use std::path::PathBuf;

use tokio::time::sleep_until;
use zeugma_xds::{Findings, Good, Sources};

use crate::control::rest::{Next, Rest};
use crate::watch::Watch;

/// Documents under watch.
#[derive(Debug)]
pub struct Documents {
    path: PathBuf,
    watch: Watch,
    rest: Rest,
    /// A change was told, and not looked at yet.
    is_told: bool,
}

impl Documents {
    /// Those of the YAML file or folder `path`; `files` are what was read of it.
    #[must_use]
    pub fn new(path: PathBuf, files: Vec<PathBuf>) -> Self {
        let mut watch = Watch::new();
        watch.set(files);
        Self {
            path,
            watch,
            rest: Rest::default(),
            is_told: false,
        }
    }

    /// Watches these files and folders from now on.
    pub fn watch(&mut self, files: Vec<PathBuf>) {
        self.watch.set(files);
    }

    /// Has them read again though nothing is told.
    pub fn ask_anew(&mut self) {
        self.is_told = true;
    }

    /// Waits until they may have changed, and nothing is being written any more; `good` is what serves.
    ///
    /// # Errors
    /// Where it cannot be told what files there are, or there is more than may be.
    ///
    /// # Cancel safety
    /// A change that was not returned is found by the next call.
    pub async fn changed(&mut self, good: &Good) -> Result<Sources, Findings> {
        loop {
            let again = match self.rest.next() {
                Next::Never => None,
                Next::At(at) | Next::ForTheRest(at) => Some(at),
            };
            let again = async {
                match again {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            if !self.is_told {
                tokio::select! {
                    () = self.watch.changed() => {}
                    () = again => {}
                }
            }
            self.is_told = true;
            let (path, good) = (self.path.clone(), good.clone());
            let read = tokio::task::spawn_blocking(move || {
                let sources = Sources::read(&path)?;
                let cut = sources.cut(&good);
                Ok::<_, Findings>((sources, cut))
            });
            // It ends where it panics, which the hook has told.
            let Ok(read) = read.await else {
                self.is_told = false;
                continue;
            };
            self.is_told = false;
            let (sources, cut) = read?;
            if let Some(sources) = self.rest.believe(sources, &cut) {
                return Ok(sources);
            }
        }
    }
}
