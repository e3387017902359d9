//! `varv lvm`: logical volumes, and the snapshots that are kept of them.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::backup::{Backup, Report, exit, percent, summary, tell_unused};
use super::error::Exit;
use super::global::Global;
use super::select::SnapshotChoice;
use super::signals::STOP;
use super::{Outcome, output};
use crate::backup::nightly::{self, Night, NightlyOptions};
use crate::backup::{Share, Source};
use crate::error::{Error, Result};
use crate::format::snapshot::{Stats, VolumeInfo};
use crate::history::resolve::resolve;
use crate::lvm::{self, FreeBlocks, Kept, Kind, Lock, Size};
use crate::observe::Stop;
use crate::repo::Intent;
use crate::source::changes::Changes;
use crate::text::{escape, format_size, parse_size};
use crate::time::Interval;

/// Where volumes' locks are; gone after a boot, as are those who held them.
const LOCKS: &str = "/run/varv";

/// What of a thin volume is allocated, for the tools that read devices.
pub(super) fn layout_of(device: &File, stop: &Stop) -> Result<Option<Result<Changes, String>>> {
    lvm::layout_of(device, Path::new(LOCKS), stop)
}

/// Back up logical volumes by snapshots of them.
#[derive(Debug, Args)]
pub struct Lvm {
    #[command(subcommand)]
    command: LvmCommand,
}

#[derive(Debug, Subcommand)]
enum LvmCommand {
    /// Back up logical volumes, all named together in one snapshot
    ///
    /// Name them as SOURCE: VG/LV, VG, a pattern such as 'vg/vm-*', or @TAG. Groups, patterns and
    /// tags pass over snapshots, pools, hidden volumes and swap. An LVM snapshot of each is taken,
    /// and kept until the next night, so that only what has changed since is read then.
    Backup(Box<LvmBackup>),
    /// Show the snapshots that varv keeps, of what, and what they cost
    Status,
    /// Print what is needed to make a backed-up volume's group again, as vgcfgbackup writes it
    Config(Config),
    /// Remove the snapshots that varv keeps: the next backup reads everything
    Release(Release),
}

#[derive(Debug, Args)]
struct LvmBackup {
    #[command(flatten)]
    backup: Backup,
    /// Room of a thick volume's snapshot: a size, or a part of the volume such as 10%
    #[arg(long, value_name = "S", default_value = "10%", value_parser = snapshot_size)]
    snapshot_size: Size,
    /// Keep no snapshot for the next night
    #[arg(long)]
    no_keep: bool,
    /// A thin pool whose data or metadata is as full as this keeps nothing, in percent
    #[arg(long, value_name = "PCT", default_value = "90", value_parser = percent)]
    pool_limit: f64,
    /// Read all of a volume when it was last read whole so long ago, such as 30D
    #[arg(long, value_name = "T", value_parser = Interval::parse)]
    full_every: Option<Interval>,
    /// Hold thick volumes still together while snapshots are taken, 30 seconds at most
    #[arg(long)]
    freeze: bool,
    /// After so much that was read it is written down how far the run is: if it is interrupted, the
    /// next one goes on from there; 0 for never
    #[arg(long, value_name = "SIZE", default_value = "8G", value_parser = checkpoint_every)]
    checkpoint_every: u64,
    /// A file or directory that goes into the same snapshot; may be given more than once
    #[arg(long, value_name = "PATH")]
    also: Vec<PathBuf>,
}

#[derive(Debug, Args)]
struct Config {
    /// The volume, as it was backed up
    #[arg(value_name = "VG/LV")]
    volume: String,
    #[command(flatten)]
    choice: SnapshotChoice,
}

#[derive(Debug, Args)]
struct Release {
    /// Of these volumes
    #[arg(value_name = "VG/LV", required_unless_present = "all")]
    volumes: Vec<String>,
    /// Of all volumes
    #[arg(long, conflicts_with = "volumes")]
    all: bool,
}

impl Lvm {
    /// Does what the subcommand says.
    pub fn run(self, global: &Global) -> Outcome {
        match self.command {
            LvmCommand::Backup(command) => command.run(global),
            LvmCommand::Status => status(global),
            LvmCommand::Config(command) => command.run(global),
            LvmCommand::Release(command) => command.run(global),
        }
    }
}

impl LvmBackup {
    fn run(self, global: &Global) -> Outcome {
        self.backup.measuring("lvm backup").around(|stats| self.back_up(global, stats))
    }

    fn back_up(mut self, global: &Global, stats: &mut Option<Stats>) -> Outcome {
        if self.backup.change_list.is_some() {
            return Err(Error::Refused(
                "--change-list is for varv backup: here LVM tells what has changed".into(),
            ));
        }
        let volumes = std::mem::take(&mut self.backup.sources);
        if volumes.is_empty() {
            return Err(Error::Refused(
                "nothing to back up: name a volume VG/LV, a group VG, a pattern or @TAG".into(),
            ));
        }
        let nightly = self.nightly(volumes, global)?;
        let mut sources = self.backup.sources()?;
        sources.extend(self.also.into_iter().map(Source::Path));
        let repo = self.backup.open(global)?;
        let observer = global.observer();
        let catalog = repo.catalog(&observer, &STOP)?;
        let mut options = self.backup.options(sources, global)?;
        options.checkpoint_every = Some(self.checkpoint_every).filter(|every| *every > 0);
        let night = nightly::run(&repo, &catalog, &options, &nightly, &observer, &STOP)?;
        observer.finish();
        catalog.close(&observer)?;
        tell_unused(&night.outcome, global);
        report(&night, global);
        *stats = Some(night.outcome.stats.clone());
        Ok(exit(&night.outcome))
    }

    fn nightly(&self, volumes: Vec<PathBuf>, global: &Global) -> Result<NightlyOptions> {
        let word = |path: PathBuf| {
            let word = path.into_os_string().into_string();
            word.map_err(|word: OsString| Error::Refused(format!("no volume is named '{}'", word.display())))
        };
        let mut needed = vec![global.repository()?.to_path_buf()];
        needed.extend(global.cache_dir());
        Ok(NightlyOptions {
            volumes: volumes.into_iter().map(word).collect::<Result<_>>()?,
            snapshot_size: self.snapshot_size,
            keep: !self.no_keep,
            pool_limit: self.pool_limit,
            spot_check: self.backup.spot_check.map_or(Share::Default, Share::Percent),
            full_every: self.full_every.map(|every| Duration::from_secs(every.seconds())),
            free_blocks: self.backup.free_blocks.as_deref().map(FreeBlocks::parse),
            freeze: self.freeze,
            needed,
            locks: LOCKS.into(),
            lock_wait: global.lock_wait,
        })
    }
}

/// Room of a snapshot: a size, or a share in percent.
fn snapshot_size(text: &str) -> Result<Size, String> {
    match text.strip_suffix('%') {
        Some(_) => percent(text).map(Size::Percent),
        None => parse_size(text, 1).map(Size::Bytes),
    }
}

fn checkpoint_every(text: &str) -> Result<u64, String> {
    parse_size(text, 1)
}

/// What `lvm backup --json` prints.
#[derive(Serialize)]
struct NightReport<'a> {
    #[serde(flatten)]
    report: Report<'a>,
    spread_ms: u64,
    kept: &'a [String],
}

fn report(night: &Night, global: &Global) {
    if global.json {
        let report = Report::of(&night.outcome);
        return output::json(&NightReport { report, spread_ms: night.spread_ms, kept: &night.kept });
    }
    if global.quiet {
        return;
    }
    if night.spread_ms > 0 {
        output::line(&format!("taken      within {} ms", night.spread_ms));
    }
    summary(&night.outcome);
}

/// What `lvm status --json` prints, and in it `lvm release --json`.
#[derive(Serialize)]
struct KeptReport<'a> {
    volume: Option<&'a str>,
    snapshot: String,
    snapshot_uuid: &'a str,
    kind: &'static str,
    repository_id: Option<&'a str>,
    taken: &'a str,
    bytes: u64,
    bytes_used: Option<u64>,
    valid: bool,
}

impl<'a> From<&'a Kept> for KeptReport<'a> {
    fn from(kept: &'a Kept) -> Self {
        Self {
            volume: kept.volume.as_deref(),
            snapshot: kept.snapshot.path(),
            snapshot_uuid: &kept.snapshot.uuid,
            kind: if kept.snapshot.kind == Kind::Thin { "thin" } else { "classic" },
            repository_id: kept.mark.as_ref().map(|mark| mark.repository.as_str()),
            taken: &kept.snapshot.time,
            bytes: kept.bytes,
            bytes_used: kept.bytes_used,
            valid: kept.is_valid,
        }
    }
}

fn status(global: &Global) -> Outcome {
    let kept = lvm::kept()?;
    match global.json {
        true => output::json(&kept.iter().map(KeptReport::from).collect::<Vec<_>>()),
        false => kept.iter().for_each(|kept| output::line(&line(kept))),
    }
    Ok(Exit::Done)
}

/// A kept snapshot in one line.
fn line(kept: &Kept) -> String {
    let cost = match kept.bytes_used {
        Some(used) => format!("{} of {} used", format_size(used), format_size(kept.bytes)),
        None => format!("{} mapped", format_size(kept.bytes)),
    };
    let state = match (&kept.volume, kept.is_valid) {
        (None, _) => ", its volume is gone",
        (_, false) => ", overflowed",
        _ => "",
    };
    format!(
        "{}  {}  taken {}  {cost}{state}",
        kept.volume.as_deref().unwrap_or("?"),
        kept.snapshot.path(),
        kept.snapshot.time
    )
}

/// What `lvm config --json` prints.
#[derive(Serialize)]
struct ConfigReport<'a> {
    snapshot: String,
    volume: &'a str,
    volume_uuid: &'a str,
    kind: &'a str,
    pool: Option<&'a str>,
    tags: &'a [String],
    bytes: u64,
    config: &'a str,
}

impl Config {
    fn run(self, global: &Global) -> Outcome {
        let repo = global.open(Intent::Read)?;
        let observer = global.observer();
        let catalog = repo.catalog(&observer, &STOP)?;
        let resolved = resolve(&repo, &catalog, &self.choice.selection(), Some(self.volume.as_bytes()))?;
        let volumes = &resolved.listed.snapshot.volumes;
        let of = |info: &'_ &VolumeInfo| info.path == escape(&resolved.path);
        let Some((info, lvm)) = volumes.iter().find(of).and_then(|info| Some((info, info.lvm.as_ref()?)))
        else {
            return Err(Error::NotFound(format!("{} was not backed up by lvm backup", self.volume)));
        };
        // A group's configuration is with the first of its volumes.
        let group = |path: &str| path.split('/').next().map(str::to_string);
        let config = volumes.iter().filter(|other| group(&other.path) == group(&info.path));
        let config = config.filter_map(|other| other.lvm.as_ref()).find(|lvm| !lvm.group_config.is_empty());
        let config = config.map_or("", |lvm| lvm.group_config.as_str());
        match global.json {
            true => output::json(&ConfigReport {
                snapshot: resolved.listed.id.to_string(),
                volume: &info.path,
                volume_uuid: &lvm.uuid,
                kind: &lvm.segtype,
                pool: Some(lvm.pool.as_str()).filter(|pool| !pool.is_empty()),
                tags: &lvm.tags,
                bytes: info.bytes_source,
                config,
            }),
            false => output::write(config.as_bytes()),
        }
        Ok(Exit::Done)
    }
}

impl Release {
    fn run(self, global: &Global) -> Outcome {
        let mut kept = lvm::kept()?;
        for volume in &self.volumes {
            let name = volume.strip_prefix("/dev/").unwrap_or(volume);
            if !kept.iter().any(|kept| is_of(kept, name)) {
                global.notice(&format!("{volume}: nothing is kept of it"));
            }
        }
        let names: Vec<&str> =
            self.volumes.iter().map(|volume| volume.strip_prefix("/dev/").unwrap_or(volume)).collect();
        kept.retain(|kept| self.all || names.iter().any(|name| is_of(kept, name)));
        for kept in &kept {
            let volume = kept.volume.clone().unwrap_or_else(|| kept.snapshot.path());
            let _lock = Lock::take(Path::new(LOCKS), &kept.volume_uuid, &volume, global.lock_wait, &STOP)?;
            kept.release()?;
            if !global.json && !global.quiet {
                output::line(&format!("removed  {}", kept.snapshot.path()));
            }
        }
        if global.json {
            output::json(&kept.iter().map(KeptReport::from).collect::<Vec<_>>());
        }
        Ok(Exit::Done)
    }
}

/// Whether it is of the volume of this name, or has the name itself.
fn is_of(kept: &Kept, name: &str) -> bool {
    kept.volume.as_deref() == Some(name) || kept.snapshot.path() == name
}
