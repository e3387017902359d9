//! How an operation tells the outside what it does, and how the outside tells it to stop.
//!
//! Operations never print. They send [`Event`]s to an [`Observer`]; the command line draws
//! them, tests record them.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// While nothing comes, it is looked so often whether somebody asks to stop, in nanoseconds.
const LOOK_EVERY: i64 = 100_000_000;

/// Something that happened during an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A part of the work begins; `bytes` is how much of it there is, if that is known.
    Phase {
        /// What begins, as shown to the user.
        name: &'static str,
        /// Bytes of work, if known.
        bytes: Option<u64>,
    },
    /// More work has turned up than was announced.
    Expect {
        /// Additional bytes of work.
        bytes: u64,
    },
    /// Work was done.
    Advance {
        /// Bytes handled since the last such event.
        bytes: u64,
        /// Files handled since the last such event.
        files: u64,
    },
    /// Something the user should know, that is no error.
    Notice(String),
    /// One file or range failed; the operation goes on.
    Problem {
        /// The path concerned.
        path: PathBuf,
        /// What happened, without the path.
        what: String,
    },
}

/// Listens to an operation.
pub trait Observer: Sync {
    /// Called from any thread; must not block for long.
    fn event(&self, event: Event);
}

/// Hears nothing.
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _: Event) {}
}

/// Remembers all but [`Event::Advance`]; for tests.
#[derive(Default)]
pub struct Recorder(Mutex<Vec<Event>>);

impl Recorder {
    /// What was heard so far.
    pub fn events(&self) -> Vec<Event> {
        self.0.lock().map(|events| events.clone()).unwrap_or_default()
    }
}

impl Observer for Recorder {
    fn event(&self, event: Event) {
        if !matches!(event, Event::Advance { .. })
            && let Ok(mut events) = self.0.lock()
        {
            events.push(event);
        }
    }
}

/// Asks running operations to stop; set from a signal handler.
#[derive(Default)]
pub struct Stop(AtomicI32);

impl Stop {
    /// Nothing asks to stop yet.
    pub const fn new() -> Self {
        Self(AtomicI32::new(0))
    }

    /// Asks to stop, because of `signal`.
    pub fn request(&self, signal: i32) {
        self.0.store(signal, Ordering::Relaxed);
    }

    /// An error once a stop was asked for.
    pub fn check(&self) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            0 => Ok(()),
            signal => Err(Error::Stopped(signal)),
        }
    }

    /// Waits until a pipe or socket has something to read, or has ended; an error once a stop was
    /// asked for, or the limit has passed.
    pub fn wait_to_read(&self, from: impl AsFd, limit: Option<Duration>) -> io::Result<()> {
        self.wait(PollFd::new(&from, PollFlags::IN), limit)
    }

    /// Waits until a pipe or socket takes bytes, a pipe as many as `PIPE_BUF`, or is closed at its
    /// other end; an error once a stop was asked for, or the limit has passed.
    pub fn wait_to_write(&self, to: impl AsFd, limit: Option<Duration>) -> io::Result<()> {
        self.wait(PollFd::new(&to, PollFlags::OUT), limit)
    }

    fn wait(&self, wanted: PollFd, limit: Option<Duration>) -> io::Result<()> {
        let began = Instant::now();
        let mut wanted = [wanted];
        let look = Timespec { tv_sec: 0, tv_nsec: LOOK_EVERY };
        loop {
            self.check().map_err(io::Error::other)?;
            match poll(&mut wanted, Some(&look)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
            if limit.is_some_and(|limit| began.elapsed() >= limit) {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}
