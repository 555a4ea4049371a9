//! Pipes for `splice(2)`: bytes go from one socket to another without being copied to us.
//!
//! A pipe costs two descriptors, so a direction holds one only while there are bytes in it. What a
//! user may have of large pipes is bounded by the kernel (pipe(7), `pipe-user-pages-soft`: 64 of
//! 1 MiB); where it gives no more, bytes are copied.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use rustix::process::{Resource, getrlimit};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::metrics::PipeMeter;

/// The most that a pipe may hold without privileges (proc(5), `pipe-max-size`).
const PIPE_BYTES: usize = 1024 * 1024;
/// Pipes that a worker has at most; each holds up to [`PIPE_BYTES`] of the kernel's memory.
const PIPES_MAX: usize = 64;
/// Which part of the open files pipes may be at most: connections go before.
const DESCRIPTORS_DIVISOR: u64 = 8;
/// A pipe's descriptors.
const DESCRIPTORS: u64 = 2;

/// The pipes of one worker.
#[derive(Debug)]
pub(crate) struct Pipes {
    /// Empty ones, the last used at the end.
    idle: RefCell<Vec<Ends>>,
    /// How few were idle at any moment since the last look: so many are not needed.
    idle_min: Cell<usize>,
    open: Cell<usize>,
    open_max: usize,
    meter: PipeMeter,
}

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe that a direction uses; it goes back when dropped, if it is empty.
#[derive(Debug)]
pub(super) struct Pipe {
    /// `None` only while it is being dropped.
    ends: Option<Ends>,
    bytes: usize,
    of: Rc<Pipes>,
}

/// How filling a pipe went.
#[derive(Debug)]
pub(super) enum Filled {
    Bytes(usize),
    /// The socket has ended.
    End,
    /// The kernel does not splice from this socket.
    Unsupported,
}

impl Pipes {
    pub(crate) fn new(meter: PipeMeter) -> Self {
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let share = usize::try_from(files / DESCRIPTORS_DIVISOR / DESCRIPTORS);
        Self {
            idle: RefCell::default(),
            idle_min: Cell::new(0),
            open: Cell::new(0),
            open_max: share.unwrap_or(PIPES_MAX).min(PIPES_MAX),
            meter,
        }
    }

    /// An empty pipe, or `None` where there can be no more.
    pub(super) fn take(self: &Rc<Self>) -> Option<Pipe> {
        let idle = self.idle.borrow_mut().pop();
        let ends = match idle {
            Some(ends) => ends,
            None if self.open.get() >= self.open_max => {
                self.meter.fell_back("limit");
                return None;
            }
            None => match open() {
                Ok(ends) => {
                    self.note_open(self.open.get() + 1);
                    ends
                }
                Err(errno) => {
                    self.meter.fell_back(cause(errno));
                    return None;
                }
            },
        };
        self.idle_min
            .set(self.idle_min.get().min(self.idle.borrow().len()));
        Some(Pipe {
            ends: Some(ends),
            bytes: 0,
            of: Rc::clone(self),
        })
    }

    /// Closes the pipes that nobody needed since the last call.
    pub(crate) fn close_unneeded(&self) {
        let mut idle = self.idle.borrow_mut();
        let unneeded = self.idle_min.get().min(idle.len());
        idle.drain(..unneeded);
        self.note_open(self.open.get().saturating_sub(unneeded));
        self.idle_min.set(idle.len());
    }

    fn note_open(&self, now: usize) {
        self.meter.open(self.open.get(), now);
        self.open.set(now);
    }
}

impl Drop for Pipes {
    fn drop(&mut self) {
        self.note_open(0);
    }
}

fn open() -> Result<Ends, Errno> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    fcntl_setpipe_size(&write, PIPE_BYTES)?;
    Ok(Ends { read, write })
}

/// Why there is no pipe (pipe(2), fcntl(2)).
fn cause(errno: Errno) -> &'static str {
    if errno == Errno::PERM {
        "quota"
    } else if errno == Errno::MFILE || errno == Errno::NFILE {
        "descriptors"
    } else {
        "memory"
    }
}

impl Pipe {
    pub(super) const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Counts a socket that cannot be spliced from.
    pub(super) fn note_unsupported(&self) {
        self.of.meter.fell_back("unsupported");
    }

    /// Fills the pipe, which is empty, with what has come in at `source`.
    ///
    /// It is filled only when empty: then "would block" says that the socket has nothing, and not
    /// that the pipe takes no more.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
    ) -> Poll<io::Result<Filled>> {
        debug_assert!(self.is_empty(), "filled only when empty");
        let Some(ends) = &self.ends else {
            return Poll::Ready(Ok(Filled::Unsupported));
        };
        let filling = || {
            let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
            Ok(splice(source, None, &ends.write, None, PIPE_BYTES, flags)?)
        };
        loop {
            ready!(source.poll_read_ready(cx))?;
            return Poll::Ready(match source.try_io(Interest::READABLE, filling) {
                Ok(0) => Ok(Filled::End),
                Ok(n) => {
                    self.bytes = n;
                    Ok(Filled::Bytes(n))
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) if is_unsupported(&error) => Ok(Filled::Unsupported),
                Err(error) => Err(error),
            });
        }
    }

    /// Writes what the pipe holds to `sink`; returns how much it took.
    pub(super) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        sink: &TcpStream,
    ) -> Poll<io::Result<usize>> {
        let Some(ends) = &self.ends else {
            return Poll::Ready(Ok(0));
        };
        // Not SPLICE_F_MORE: the last bytes would wait for more that need not come.
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let draining = || Ok(splice(&ends.read, None, sink, None, self.bytes, flags)?);
        loop {
            ready!(sink.poll_write_ready(cx))?;
            return Poll::Ready(match sink.try_io(Interest::WRITABLE, draining) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.bytes = self.bytes.saturating_sub(n);
                    Ok(n)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => Err(error),
            });
        }
    }
}

/// Whether the kernel, or a filter of system calls, does not know this use of splice(2).
fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::NOMEM)
    )
}

impl Drop for Pipe {
    /// Nothing that one connection left in a pipe may come out into another.
    fn drop(&mut self) {
        let Some(ends) = self.ends.take() else {
            return;
        };
        if self.is_empty() {
            debug_assert_eq!(rustix::io::ioctl_fionread(&ends.read), Ok(0));
            self.of.idle.borrow_mut().push(ends);
        } else {
            self.of.note_open(self.of.open.get().saturating_sub(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Pipes {
        pub(in crate::relay) fn with_max(open_max: usize) -> Rc<Self> {
            let mut pipes = Self::new(PipeMeter::default());
            pipes.open_max = open_max;
            Rc::new(pipes)
        }

        /// How many are open, and how many of those are idle.
        pub(in crate::relay) fn counts(&self) -> (usize, usize) {
            (self.open.get(), self.idle.borrow().len())
        }
    }

    #[test]
    fn pipes_go_back_up_to_a_limit_and_close_when_nobody_needs_them() {
        let pipes = Pipes::with_max(3);
        let taken: Vec<Pipe> = (0..3).map(|_| pipes.take().unwrap()).collect();
        assert!(pipes.take().is_none(), "over the limit");
        assert_eq!(pipes.counts(), (3, 0));
        drop(taken);
        assert_eq!(pipes.counts(), (3, 3));
        // All were needed since the last look.
        pipes.close_unneeded();
        assert_eq!(pipes.counts(), (3, 3));
        drop(pipes.take().unwrap());
        pipes.close_unneeded();
        assert_eq!(pipes.counts(), (1, 1));
        pipes.close_unneeded();
        assert_eq!(pipes.counts(), (0, 0));
    }

    #[test]
    fn a_pipe_that_holds_bytes_is_never_used_again() {
        let pipes = Pipes::with_max(3);
        let mut pipe = pipes.take().unwrap();
        let ends = pipe.ends.as_ref().unwrap();
        rustix::io::write(&ends.write, b"of another connection").unwrap();
        pipe.bytes = 21;
        drop(pipe);
        assert_eq!(pipes.counts(), (0, 0));
    }
}
