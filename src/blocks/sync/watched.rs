//! Pipes and sockets to another machine, which may be gone without a word.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::observe::Stop;

/// A side says that it is there so many times while the other one waits for it.
const BEATS: u32 = 4;
/// Who takes nothing may be making zeros on a slow disk, and is waited for longer by this factor.
const WRITE_FACTOR: u32 = 10;
/// A pipe that takes bytes takes so many at once: what POSIX calls `PIPE_BUF`, on Linux.
const PIPE_BUF: usize = 4096;

/// How long the other side is waited for.
pub struct Patience<'a> {
    stop: &'a Stop,
    limit: Option<Duration>,
    has_begun: AtomicBool,
    ran_out: AtomicBool,
}

impl<'a> Patience<'a> {
    /// Waits until `stop`, or for so long once [`Self::begin`] was called; zero is without limit.
    pub fn new(stop: &'a Stop, limit: Duration) -> Self {
        let limit = (!limit.is_zero()).then_some(limit);
        Self { stop, limit, has_begun: AtomicBool::new(false), ran_out: AtomicBool::new(false) }
    }

    /// What asks to stop.
    pub fn stop(&self) -> &'a Stop {
        self.stop
    }

    /// The other side has greeted: no user is typing a password any more.
    pub fn begin(&self) {
        self.has_begun.store(true, Ordering::Relaxed);
    }

    /// How often this side has to say that it is there.
    pub fn beat(&self) -> Option<Duration> {
        self.limit.map(|limit| limit / BEATS)
    }

    /// Whether the other side is given up.
    pub fn ran_out(&self) -> bool {
        self.ran_out.load(Ordering::Relaxed)
    }

    fn limit(&self, factor: u32) -> Option<Duration> {
        let has_begun = self.has_begun.load(Ordering::Relaxed);
        self.limit.filter(|_| has_begun).map(|limit| limit.saturating_mul(factor))
    }

    /// Notes that a wait took too long.
    fn note(&self, waited: Result<()>, did: &str, limit: Option<Duration>) -> Result<()> {
        waited.map_err(|e| match (e.kind(), limit) {
            (ErrorKind::TimedOut, Some(limit)) => {
                self.ran_out.store(true, Ordering::Relaxed);
                Error::new(ErrorKind::TimedOut, format!("it {did} nothing for {} s", limit.as_secs()))
            }
            _ => e,
        })
    }
}

/// A pipe or socket. Who asks to stop ends the wait for the other side.
pub struct Watched<'a>(pub File, pub &'a Patience<'a>);

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let limit = self.1.limit(1);
        self.1.note(self.1.stop.wait_to_read(&self.0, limit), "said", limit)?;
        self.0.read(buffer)
    }
}

impl Write for Watched<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        if self.1.ran_out() {
            return Err(ErrorKind::TimedOut.into());
        }
        let limit = self.1.limit(WRITE_FACTOR);
        self.1.note(self.1.stop.wait_to_write(&self.0, limit), "took", limit)?;
        self.0.write(&bytes[..bytes.len().min(PIPE_BUF)])
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}
