//! Making a file or device equal to another one, here or on another machine, by sending only
//! blocks that differ.
//!
//! The target tells the hashes of its blocks in one stream, the source sends what differs in
//! another, so nobody waits for an answer. Whoever was started by the user calls; the other side is
//! a varv that the remote shell starts, or a thread of this process. Either may be the source.

mod call;
mod changes;
mod link;
pub mod message;
mod place;
mod scan;
mod serve;
mod source;
mod target;
mod two_pass;
mod watched;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::input::{AskLayout, no_layout};
use crate::error::{Error, Result};
use crate::observe::{Observer, Stop};

pub use call::over;
pub use place::Place;
pub use serve::serve;
pub use two_pass::TwoPass;
pub use watched::{Patience, Watched};

/// The block where none is given.
pub const BLOCK_DEFAULT: u64 = 1 << 20;
/// The longest block: each side holds some of them.
pub const BLOCK_MAX: u64 = 16 << 20;
/// The shortest: below that hashes are most of what is sent.
pub const BLOCK_MIN: u64 = 4096;
/// How long the other side may say nothing where nothing else is given.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// zstd's level where none is given.
pub const LEVEL_DEFAULT: u8 = 3;
/// The highest: beyond it frames need windows that are refused.
pub const LEVEL_MAX: u8 = 19;

/// How to synchronise.
#[derive(Debug, Clone)]
pub struct SyncOptions {
    /// Bytes a block, a multiple of 4096.
    pub block: u64,
    /// Only say what would be sent.
    pub dry_run: bool,
    /// Compare all again at the end.
    pub verify: bool,
    /// zstd's level for data that goes to another machine; 0 does not compress.
    pub level: u8,
    /// The most bytes of data a second; 0 without limit.
    pub rate: u64,
    /// Only these ranges differ from what the target holds.
    pub change_list: Option<PathBuf>,
    /// Synchronise, pause, synchronise, resume.
    pub two_pass: Option<TwoPass>,
    /// The remote shell, as words for sh.
    pub ssh: String,
    /// varv on the other machine, as words for its shell.
    pub remote_varv: String,
    /// How long the other machine may say nothing; zero is without limit.
    pub timeout: Duration,
    /// Who knows what of a device here is allocated.
    pub ask_layout: AskLayout,
}

impl Default for SyncOptions {
    fn default() -> Self {
        Self {
            block: BLOCK_DEFAULT,
            dry_run: false,
            verify: false,
            level: LEVEL_DEFAULT,
            rate: 0,
            change_list: None,
            two_pass: None,
            ssh: "ssh".into(),
            remote_varv: "varv".into(),
            timeout: TIMEOUT_DEFAULT,
            ask_layout: no_layout,
        }
    }
}

/// What a synchronisation came to. With two passes, blocks are of the last one, and bytes of both.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Synced {
    /// Length of the source.
    pub bytes: u64,
    /// Blocks that were looked at.
    pub total: u64,
    /// Blocks that were equal.
    pub same: u64,
    /// Blocks that differed and were sent.
    pub diff: u64,
    /// Blocks that differed and are zero, of which no data was sent.
    pub zero: u64,
    /// Bytes that were read from the source.
    pub read_source: u64,
    /// Bytes that were read from the target.
    pub read_target: u64,
    /// Bytes sent as data, after compression.
    pub sent: u64,
    /// Bytes written as data.
    pub written: u64,
    /// Bytes of a device behind the source's end.
    pub untouched: u64,
    /// Whether both sides were compared at the end, and found equal.
    pub verified: bool,
    /// Whether the source was written to while it was read for the last time.
    pub changed: bool,
    /// Time between the end of the command that paused and the start of the one that resumes.
    pub pause: Option<Duration>,
    /// How long it took.
    pub seconds: f64,
}

/// Makes `target` equal to `source`.
pub fn run(
    source: &Place,
    target: &Place,
    options: &SyncOptions,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Synced> {
    let started = Instant::now();
    refuse_options(options)?;
    let mut synced = call::run(source, target, options, observer, stop)?;
    synced.seconds = started.elapsed().as_secs_f64();
    Ok(synced)
}

fn refuse_options(options: &SyncOptions) -> Result<()> {
    check_block(options.block).map_err(Error::Refused)?;
    if options.level > LEVEL_MAX {
        return Err(Error::Refused(format!("the level of compression is 0 to {LEVEL_MAX}")));
    }
    if options.two_pass.is_some() && options.dry_run {
        return Err(Error::Refused("--two-pass pauses and resumes: it cannot be run dry".into()));
    }
    if options.verify && options.dry_run {
        return Err(Error::Refused("a dry run writes nothing that --verify could compare".into()));
    }
    Ok(())
}

/// Whether blocks may have this length; the error says which may.
fn check_block(block: u64) -> Result<(), String> {
    match (BLOCK_MIN..=BLOCK_MAX).contains(&block) && block.is_multiple_of(BLOCK_MIN) {
        true => Ok(()),
        false => {
            Err(format!("a block of {block} bytes is not possible: choose a multiple of 4096 up to 16 MiB"))
        }
    }
}
