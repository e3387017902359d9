//! `varv backup`.

use std::ffi::OsString;
use std::fmt::Write;
use std::fs::File;
use std::io::IsTerminal;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};
use jiff::{Timestamp, Zoned};
use serde::Serialize;

use super::error::Exit;
use super::excludes::ExcludeArgs;
use super::global::Global;
use super::init::InitOptions;
use super::metrics::Metrics;
use super::signals::STOP;
use super::{Outcome, clock, output};
use crate::backup::{self, BackupOptions, Known, ScanOptions, Share, Source, TierRule, Volume};
use crate::error::{Error, IoContext, Result};
use crate::format::config::Tier;
use crate::format::snapshot::{Method, Stats, VolumeInfo};
use crate::lvm::FreeBlocks;
use crate::repo::{Intent, Repo, layout};
use crate::source::change_list::read_change_list;
use crate::source::extents::device_len;
use crate::source::walk::raise_file_limit;
use crate::text::format_size;

/// What becomes of ranges of volumes that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ReadErrors {
    /// The volume is left out
    Fail,
    /// Zeros are stored instead, and listed in the snapshot
    Zero,
}

/// Back up directories, files, block devices and streams.
#[derive(Debug, Args)]
pub struct Backup {
    /// Directories, files and block devices
    #[arg(value_name = "SOURCE")]
    pub(super) sources: Vec<PathBuf>,
    /// Make the repository if there is none
    #[arg(long)]
    init: bool,
    #[command(flatten)]
    init_options: InitOptions,
    /// The series of snapshots that this one belongs to
    #[arg(long, value_name = "L", default_value = "default", value_parser = NonEmptyStringValueParser::new())]
    label: String,
    /// A name for this snapshot; may be given more than once
    #[arg(long, value_name = "T")]
    tag: Vec<String>,
    /// The host that is backed up, if it is not this one
    #[arg(long, value_name = "H", value_parser = NonEmptyStringValueParser::new())]
    host: Option<String>,
    /// The snapshot's time, such as 2026-11-20T03:00:00Z or 3D for three days ago, if it is not now
    #[arg(long, value_name = "T", value_parser = clock::moment)]
    time: Option<Zoned>,
    /// How hard to compress
    #[arg(long, value_name = "TIER", default_value = "hot", value_parser = Tier::parse)]
    tier: Tier,
    /// Compress some files otherwise, such as '*.mp4=store', '>1G=warm' or '*.log>64K=cold'; may be given more than once, and the first that fits counts
    #[arg(long, value_name = "RULE", value_parser = TierRule::parse)]
    tier_for: Vec<TierRule>,
    /// Read files that look unchanged too
    #[arg(long)]
    force_read: bool,
    /// Compress everything on its own, not what changed against what it was before
    #[arg(long)]
    no_delta: bool,
    /// Do all but write
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    excludes: ExcludeArgs,
    /// Back up the content of block devices that are met inside of directories
    #[arg(long)]
    read_devices: bool,
    /// What to do with ranges of volumes that cannot be read
    #[arg(long, value_enum, default_value = "fail")]
    read_errors: ReadErrors,
    /// What of the one SOURCE may have changed since --made-against: from thin_delta, ddrescue,
    /// rbd diff, qemu-img map, nbdinfo, or lines of offset and length
    #[arg(long, value_name = "FILE", requires = "made_against")]
    pub(super) change_list: Option<PathBuf>,
    /// The snapshot since which the change list tells of changes
    #[arg(long, value_name = "SNAPSHOT", requires = "change_list")]
    made_against: Option<String>,
    /// Leave out blocks that the file system on a volume does not use, as partclone says, or a map
    /// that partclone --domain has written: they come back as zeros
    #[arg(long, value_name = "MAPFILE|partclone")]
    pub(super) free_blocks: Option<OsString>,
    /// How much of what is said to be unchanged is read and compared, in percent of the volume; by
    /// default 0.1, but at least 4 MiB and at most 256 MiB
    #[arg(long, value_name = "PCT", value_parser = percent)]
    pub(super) spot_check: Option<f64>,
    /// Write what the run came to into a text file for Prometheus, also if it fails
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// Back up standard input under this name
    #[arg(long, value_name = "NAME", conflicts_with = "from_command")]
    stdin: Option<OsString>,
    /// Back up what a command prints under this name; the command follows after --
    #[arg(long, value_name = "NAME", requires = "command")]
    from_command: Option<OsString>,
    /// The command of --from-command and its arguments; no shell is involved
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Backup {
    /// Backs up.
    pub fn run(self, global: &Global) -> Outcome {
        self.measuring("backup").around(|stats| self.back_up(global, stats))
    }

    /// Measures a run, if metrics are wanted.
    pub(super) fn measuring(&self, command: &'static str) -> Measuring {
        let host = self.host.clone().unwrap_or_else(this_host);
        Measuring { path: self.metrics.clone(), command, host, label: self.label.clone() }
    }

    /// What was counted goes into `stats`, if it comes to that.
    fn back_up(self, global: &Global, stats: &mut Option<Stats>) -> Outcome {
        let sources = self.sources()?;
        if sources.is_empty() {
            return Err(Error::Refused(
                "nothing to back up: name a SOURCE, --stdin or --from-command".into(),
            ));
        }
        let repo = self.open(global)?;
        let observer = global.observer();
        let sources = self.as_volume(sources, &repo)?;
        let catalog = repo.catalog(&observer, &STOP)?;
        let options = self.options(sources, global)?;
        let outcome = backup::run(&repo, &catalog, &options, &observer, &STOP)?;
        observer.finish();
        catalog.close(&observer)?;
        tell_unused(&outcome, global);
        match global.json {
            true => output::json(&Report::of(&outcome)),
            false if !global.quiet => summary(&outcome),
            false => {}
        }
        *stats = Some(outcome.stats.clone());
        Ok(exit(&outcome))
    }

    /// What was named.
    pub(super) fn sources(&self) -> Result<Vec<Source>> {
        let mut sources: Vec<Source> = self.sources.iter().cloned().map(Source::Path).collect();
        if let Some(name) = &self.stdin {
            if std::io::stdin().is_terminal() {
                return Err(Error::Refused("--stdin reads from a pipe or file, not from a terminal".into()));
            }
            sources.push(Source::Stdin(stream_name(name)?));
        }
        if let Some(name) = &self.from_command {
            sources.push(Source::Command(stream_name(name)?, self.command.clone()));
        } else if !self.command.is_empty() {
            return Err(Error::Refused("a command after -- needs --from-command NAME".into()));
        }
        Ok(sources)
    }

    /// The one source with what is known of it, if something is.
    fn as_volume(&self, sources: Vec<Source>, repo: &Repo) -> Result<Vec<Source>> {
        if self.change_list.is_none() && self.free_blocks.is_none() {
            return Ok(sources);
        }
        let [Source::Path(path)] = sources.as_slice() else {
            return Err(Error::Refused(
                "--change-list and --free-blocks are of one block device or file: name just that".into(),
            ));
        };
        let len = length_of(path)?;
        let known = match (&self.change_list, &self.made_against) {
            (Some(list), Some(snapshot)) => {
                let changes = read_change_list(list, len)?;
                let snapshot = repo.snapshots()?.by_prefix(snapshot)?.id;
                Known::Since { snapshot, changes, method: Method::List }
            }
            _ => Known::Full { layout: None, reason: None },
        };
        let used = self.free_blocks.as_deref().map(|word| FreeBlocks::parse(word).in_use(path, len, false));
        let used = used.transpose()?.transpose();
        let why_not = |why| Error::Refused(format!("{}: free blocks are not known: {why}", path.display()));
        let volume = Volume {
            name: None,
            path: backup::absolute(path)?,
            known,
            spot_check: self.spot_check.map_or(Share::Default, Share::Percent),
            lvm: None,
            used: used.map_err(why_not)?,
            finished: None,
        };
        Ok(vec![Source::Volume(Box::new(volume))])
    }

    /// Opens the repository, or makes it first.
    pub(super) fn open(&self, global: &Global) -> Result<Repo> {
        raise_file_limit();
        // A dry run writes nothing: without a repository it says so.
        if self.init && !self.dry_run {
            self.make_if_missing(global)?;
        }
        global.open(Intent::Add)
    }

    fn make_if_missing(&self, global: &Global) -> Result<()> {
        let root = global.repository()?;
        match layout::CONFIGS.iter().any(|name| root.join(name).exists()) {
            true => Ok(()),
            false => self.init_options.create(global).map(drop),
        }
    }

    /// How to back up these.
    pub(super) fn options(self, sources: Vec<Source>, global: &Global) -> Result<BackupOptions> {
        let time = self.time.unwrap_or_else(clock::now);
        if time > clock::now() {
            let text = format!("the snapshot is dated {}, in the future", time.strftime("%Y-%m-%d %H:%M:%S"));
            global.notice(&text);
        }
        Ok(BackupOptions {
            sources,
            host: self.host.unwrap_or_else(this_host),
            label: self.label,
            tags: self.tag,
            time: time.timestamp(),
            offset: time.offset().seconds(),
            user: std::env::var("USER").unwrap_or_default(),
            tier: self.tier,
            tier_rules: self.tier_for,
            delta: !self.no_delta,
            excludes: self.excludes.options(global)?,
            scan: ScanOptions {
                force_read: self.force_read,
                read_devices: self.read_devices,
                zero_errors: self.read_errors == ReadErrors::Zero,
            },
            dry_run: self.dry_run,
            checkpoint_every: None,
        })
    }
}

/// Of a device or file; anything else has no length.
fn length_of(path: &Path) -> Result<u64> {
    let kind = path.metadata().at("look at", path)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::Refused(format!(
            "{} is neither a block device nor a file: there is no change list for it",
            path.display()
        )));
    }
    let file = File::open(path).at("open", path)?;
    device_len(&file).at("find the length of", path)
}

/// A share in percent.
pub fn percent(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches('%').parse::<f64>().ok();
    number
        .filter(|percent| (0.0..=100.0).contains(percent))
        .ok_or_else(|| format!("'{text}' is no share: give a number from 0 to 100"))
}

/// A stream's name must not be taken for a file path.
fn stream_name(name: &OsString) -> Result<Vec<u8>> {
    let bytes = name.as_bytes();
    let is_path = bytes.starts_with(b"/") || bytes.starts_with(b"./") || bytes.starts_with(b"../");
    if is_path || bytes.is_empty() || bytes.contains(&0) {
        return Err(Error::Refused(format!(
            "'{}' cannot name a stream: it must not be empty or begin with /, ./ or ../",
            name.display()
        )));
    }
    Ok(name.clone().into_vec())
}

/// This machine's name.
pub fn this_host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Writes down what a run came to.
pub struct Measuring {
    path: Option<PathBuf>,
    command: &'static str,
    host: String,
    label: String,
}

impl Measuring {
    /// Runs it; what was counted goes into the stats, if it comes to that.
    pub fn around(self, run: impl FnOnce(&mut Option<Stats>) -> Outcome) -> Outcome {
        let Some(path) = self.path else { return run(&mut None) };
        let started = Instant::now();
        let labels = [("command", self.command), ("host", &self.host), ("label", &self.label)];
        let mut metrics = Metrics::new(&labels);
        let mut stats = None;
        let outcome = run(&mut stats);
        if let Some(stats) = &stats {
            measure(&mut metrics, stats);
        }
        let written = metrics.finish(&path, &outcome, Timestamp::now(), started.elapsed().as_secs_f64());
        match (outcome, written) {
            (Ok(_), Err(e)) => Err(e),
            (outcome, Err(e)) => {
                output::notice(&e.to_string());
                outcome
            }
            (outcome, Ok(())) => outcome,
        }
    }
}

fn measure(metrics: &mut Metrics, stats: &Stats) {
    let files = [
        ("new", stats.files_new),
        ("changed", stats.files_changed),
        ("unchanged", stats.files_unchanged),
        ("deleted", stats.files_deleted),
    ];
    metrics.gauges("varv_backup_files", "Files of the last backup, by what became of them.", "state", &files);
    let bytes = [
        ("source", stats.bytes_source),
        ("read", stats.bytes_read),
        ("hole", stats.bytes_hole),
        ("zero", stats.bytes_zero),
        ("new", stats.bytes_new),
        ("stored", stats.bytes_stored),
        ("metadata", stats.bytes_metadata),
    ];
    metrics.gauges("varv_backup_bytes", "Bytes of the last backup, by what they are.", "kind", &bytes);
    let help = "Paths and ranges that the last backup could not read, or that changed meanwhile.";
    metrics.gauge("varv_backup_errors", help, stats.errors);
}

/// As many patterns that matched nothing are named.
const UNUSED_NAMED: usize = 20;

/// Patterns that matched nothing were probably meant otherwise.
pub fn tell_unused(outcome: &backup::Outcome, global: &Global) {
    let (named, counted) = outcome.unused_patterns.split_at(outcome.unused_patterns.len().min(UNUSED_NAMED));
    for pattern in named {
        global.notice(&format!("the pattern '{pattern}' matched nothing"));
    }
    if !counted.is_empty() {
        global.notice(&format!("{} more patterns matched nothing", counted.len()));
    }
}

/// How a backup ended.
pub fn exit(outcome: &backup::Outcome) -> Exit {
    if outcome.stats.errors > 0 { Exit::Incomplete } else { Exit::Done }
}

/// What `backup --json` prints.
#[derive(Serialize)]
pub struct Report<'a> {
    snapshot: Option<String>,
    #[serde(flatten)]
    stats: &'a Stats,
    missing: &'a [String],
    volumes: Vec<VolumeReport<'a>>,
}

/// How a volume was read of which something was known.
#[derive(Serialize)]
struct VolumeReport<'a> {
    volume: &'a str,
    bytes_source: u64,
    bytes_read: u64,
    bytes_changed: u64,
    bytes_stored: u64,
    bytes_spot_checked: u64,
    bytes_resumed: u64,
    free_blocks: Option<&'a str>,
    method: Method,
    fallback_reason: Option<&'a str>,
}

impl<'a> From<&'a VolumeInfo> for VolumeReport<'a> {
    fn from(info: &'a VolumeInfo) -> Self {
        Self {
            volume: &info.path,
            bytes_source: info.bytes_source,
            bytes_read: info.bytes_read,
            bytes_changed: info.bytes_changed,
            bytes_stored: info.bytes_stored,
            bytes_spot_checked: info.bytes_spot_checked,
            bytes_resumed: info.bytes_resumed,
            free_blocks: info.free_blocks.as_deref(),
            method: info.method,
            fallback_reason: info.fallback_reason.as_deref(),
        }
    }
}

impl<'a> Report<'a> {
    /// Of a backup.
    pub fn of(outcome: &'a backup::Outcome) -> Self {
        Self {
            snapshot: outcome.id.map(|id| id.to_string()),
            stats: &outcome.stats,
            missing: &outcome.missing,
            volumes: outcome.volumes.iter().map(VolumeReport::from).collect(),
        }
    }
}

/// Prints what a backup counted, for people.
pub fn summary(outcome: &backup::Outcome) {
    let stats = &outcome.stats;
    let size = format_size;
    output::line(&format!(
        "files      {} new, {} changed, {} unchanged, {} deleted, in {} directories",
        stats.files_new, stats.files_changed, stats.files_unchanged, stats.files_deleted, stats.dirs
    ));
    output::line(&format!(
        "source     {}: {} read, {} skipped as holes, {} were zeros",
        size(stats.bytes_source),
        size(stats.bytes_read),
        size(stats.bytes_hole),
        size(stats.bytes_zero)
    ));
    let data_read = stats.bytes_read.saturating_sub(stats.bytes_zero);
    output::line(&format!(
        "stored     {} new in {} chunks, {} deduplicated; {} in packs, {} of it metadata",
        size(stats.bytes_new),
        stats.chunks_new,
        size(data_read.saturating_sub(stats.bytes_new)),
        size(stats.bytes_stored),
        size(stats.bytes_metadata)
    ));
    stats.saved.iter().for_each(|saved| output::line(&output::saved(saved)));
    for volume in &outcome.volumes {
        output::line(&volume_line(volume));
    }
    let rate = stats.bytes_read as f64 / stats.seconds.max(0.001);
    let time = format!("time       {:.1} s, {}/s", stats.seconds, size(rate as u64));
    output::line(&time);
    if stats.errors > 0 {
        output::line(&format!("errors     {}: {} left out", stats.errors, outcome.missing.len()));
    }
    match &outcome.id {
        Some(id) => output::line(&format!("snapshot   {}", id.short())),
        None => output::line("snapshot   none: this was a dry run"),
    }
}

/// A night of a volume in one line.
fn volume_line(info: &VolumeInfo) -> String {
    let how = match (info.method, &info.fallback_reason) {
        (Method::Full, None) => "all of it".to_string(),
        (Method::Full, Some(reason)) => format!("all of it, since {reason}"),
        (method, _) => format!(
            "by {}: {} may have changed, {} checked",
            method.name(),
            format_size(info.bytes_changed),
            format_size(info.bytes_spot_checked)
        ),
    };
    let size = format_size;
    let mut line = format!(
        "volume     {}: {} of {} read, {how}",
        info.path,
        size(info.bytes_read),
        size(info.bytes_source)
    );
    if info.bytes_resumed > 0 {
        let _ = write!(line, "; {} were finished by an interrupted run", size(info.bytes_resumed));
    }
    if let Some(by) = &info.free_blocks {
        let _ = write!(line, "; without free blocks, by {by}");
    }
    line
}
