//! `varv sync`.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::error::Exit;
use super::global::{Global, duration};
use super::lvm::layout_of;
use super::signals::STOP;
use super::{Outcome, output};
use crate::blocks::sync::{self, LEVEL_DEFAULT, Patience, Place, SyncOptions, Synced, TwoPass, Watched};
use crate::error::{Error, IoContext, Result};
use crate::text::{format_size, parse_size};

/// Make a file or device equal to another one by sending only blocks that differ.
///
/// DST, a file or device here or HOST:PATH on another machine, is overwritten where it differs
/// from SRC. SRC may be on another machine instead. The other machine needs the same varv, which is
/// run there by ssh. Interrupted, it is run again, and sends what is missing.
#[derive(Debug, Args)]
pub struct Sync {
    /// A file or device, or HOST:PATH
    #[arg(value_name = "SRC", required_unless_present = "serve")]
    source: Option<OsString>,
    /// A file or device, or HOST:PATH
    #[arg(value_name = "DST", required_unless_present = "serve")]
    target: Option<OsString>,
    /// Bytes that are compared, and sent, together
    #[arg(short, long, value_name = "SIZE", value_parser = size, default_value = "1M")]
    blocksize: u64,
    /// Only say what differs
    #[arg(long)]
    dry_run: bool,
    /// Compare all again at the end
    #[arg(long)]
    verify: bool,
    /// Look only at these ranges, which are all that DST lacks: lines of offset and length in bytes
    #[arg(long, value_name = "FILE")]
    change_list: Option<PathBuf>,
    /// Send at most so many bytes of data a second
    #[arg(long, value_name = "SIZE", value_parser = size)]
    bwlimit: Option<u64>,
    /// zstd's level for what goes to another machine, 0 to 19; 0 does not compress
    #[arg(long, value_name = "LEVEL", default_value_t = LEVEL_DEFAULT)]
    compress: u8,
    /// Give up a machine that has said nothing for so long; 0s is never
    #[arg(long, value_name = "T", value_parser = duration, default_value = "60s")]
    timeout: Duration,
    /// The remote shell and its options
    #[arg(long, value_name = "CMD", default_value = "ssh")]
    ssh: String,
    /// varv on the other machine
    #[arg(long, value_name = "PATH", default_value = "varv")]
    remote_varv: String,
    /// Synchronise while SRC is in use, run --pause, synchronise the rest, run --resume
    #[arg(long, requires_all = ["pause", "resume"])]
    two_pass: bool,
    /// The command that stops what writes to SRC
    #[arg(long, value_name = "CMD", requires = "two_pass")]
    pause: Option<String>,
    /// The command that starts it again, here or there
    #[arg(long, value_name = "CMD", requires = "two_pass")]
    resume: Option<String>,
    /// The command to run if anything fails after the pause
    #[arg(long, value_name = "CMD", requires = "two_pass")]
    on_failure: Option<String>,
    /// Be the other side, on standard input and output
    #[arg(long, hide = true, conflicts_with_all = ["source", "target"])]
    serve: bool,
}

impl Sync {
    /// Synchronises.
    pub fn run(self, global: &Global) -> Outcome {
        if self.serve {
            return serve(self.timeout);
        }
        let place = |text: &Option<OsString>| text.as_deref().map(Place::parse);
        let (Some(source), Some(target)) = (place(&self.source), place(&self.target)) else {
            return Err(Error::Internal("no SRC or DST"));
        };
        let observer = global.observer();
        let synced = sync::run(&source, &target, &self.options()?, &observer, &STOP)?;
        observer.finish();
        report(&synced, self.blocksize, self.dry_run, global);
        if synced.changed {
            output::notice(&format!("{source} was written to while it was read: run it again"));
            return Ok(Exit::Incomplete);
        }
        Ok(Exit::Done)
    }

    fn options(&self) -> Result<SyncOptions> {
        Ok(SyncOptions {
            block: self.blocksize,
            dry_run: self.dry_run,
            verify: self.verify,
            level: self.compress,
            rate: self.bwlimit.unwrap_or(0),
            change_list: self.change_list.clone(),
            two_pass: match (&self.pause, &self.resume) {
                (Some(pause), Some(resume)) => Some(TwoPass {
                    pause: pause.clone(),
                    resume: resume.clone(),
                    on_failure: self.on_failure.clone(),
                }),
                _ => None,
            },
            ssh: self.ssh.clone(),
            remote_varv: self.remote_varv.clone(),
            timeout: self.timeout,
            ask_layout: layout_of,
        })
    }
}

/// The caller tells the user what failed, so nothing is printed here.
fn serve(timeout: Duration) -> Outcome {
    // Not the buffered ones, which look for the ends of lines.
    let from = io::stdin().as_fd().try_clone_to_owned().at("open", "standard input")?;
    let to = io::stdout().as_fd().try_clone_to_owned().at("open", "standard output")?;
    let patience = Patience::new(&STOP, timeout);
    let link = |fd: OwnedFd| Box::new(Watched(fd.into(), &patience));
    let served = sync::serve(link(from), link(to), layout_of, &patience);
    Ok(served.map_or_else(|e| Exit::of(&e), |()| Exit::Done))
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text, 1)
}

/// What `sync --json` prints.
#[derive(Serialize)]
struct Report {
    dry_run: bool,
    bytes: u64,
    bytes_block: u64,
    blocks: u64,
    blocks_same: u64,
    blocks_diff: u64,
    blocks_zero: u64,
    bytes_read_source: u64,
    bytes_read_target: u64,
    bytes_sent: u64,
    bytes_written: u64,
    bytes_untouched: u64,
    verified: bool,
    source_changed: bool,
    seconds_paused: Option<f64>,
    seconds: f64,
}

fn report(synced: &Synced, block: u64, dry_run: bool, global: &Global) {
    if global.json {
        return output::json(&Report {
            dry_run,
            bytes: synced.bytes,
            bytes_block: block,
            blocks: synced.total,
            blocks_same: synced.same,
            blocks_diff: synced.diff,
            blocks_zero: synced.zero,
            bytes_read_source: synced.read_source,
            bytes_read_target: synced.read_target,
            bytes_sent: synced.sent,
            bytes_written: synced.written,
            bytes_untouched: synced.untouched,
            verified: synced.verified,
            source_changed: synced.changed,
            seconds_paused: synced.pause.map(|pause| pause.as_secs_f64()),
            seconds: synced.seconds,
        });
    }
    if !global.quiet {
        summary(synced, dry_run);
    }
}

fn summary(synced: &Synced, dry_run: bool) {
    let size = format_size;
    let done = synced.same + synced.diff + synced.zero;
    output::line(&format!(
        "same: {}, diff: {}, zero: {}, {done}/{}",
        synced.same, synced.diff, synced.zero, synced.total
    ));
    let read = synced.read_source + synced.read_target;
    match dry_run {
        true => output::line(&format!("read       {}, nothing sent: this was a dry run", size(read))),
        false => output::line(&format!(
            "read       {}, {} sent, {} written",
            size(read),
            size(synced.sent),
            size(synced.written)
        )),
    }
    if synced.untouched > 0 {
        output::line(&format!("untouched  {} of the device", size(synced.untouched)));
    }
    if synced.verified {
        output::line("verified   both sides are equal");
    }
    if let Some(pause) = synced.pause {
        output::line(&format!("paused     {:.3} s", pause.as_secs_f64()));
    }
    let rate = synced.bytes as f64 / synced.seconds.max(0.001);
    output::line(&format!("time       {:.1} s, {}/s", synced.seconds, size(rate as u64)));
}
