//! The long way between two proxies: a thread of the harness, on the load generator's core, which
//! has nothing else to do while a sample is taken.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::sync::oneshot;

use crate::long_way::{LongWay, WAY_BYTES_MAX};

/// A relay that runs. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Relay {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    most: [Arc<AtomicUsize>; 2],
    _end: oneshot::Sender<()>,
}

impl Relay {
    /// A way to `target`.
    pub(crate) fn start(target: SocketAddr, one_way: Duration) -> Result<Self> {
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = oneshot::channel::<()>();
        thread::spawn(move || -> Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async move {
                let way = LongWay::to(target, one_way).await?;
                tell.send((way.address, way.most.clone()))?;
                // An error is the end: nothing is ever sent.
                ended.await.ok();
                Ok(())
            })
        });
        let (address, most) = told.recv().context("a relay does not listen")?;
        Ok(Self {
            address,
            most,
            _end: end,
        })
    }

    /// Whether it has only delayed what came since it was asked before.
    ///
    /// # Errors
    /// It was full, and held up what came: the figure would be its own.
    pub(crate) fn check(&self) -> Result<()> {
        let most = self
            .most
            .each_ref()
            .map(|most| most.swap(0, Ordering::Relaxed));
        let most = most.into_iter().max().unwrap_or(0);
        ensure!(
            most < WAY_BYTES_MAX,
            "the relay was full: {most} bytes on their way"
        );
        Ok(())
    }
}
