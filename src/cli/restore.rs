//! `varv restore`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::error::Exit;
use super::global::Global;
use super::select::{SnapshotChoice, tell_apart};
use super::signals::STOP;
use super::{Outcome, output};
use crate::error::{Error, Result};
use crate::format::snapshot::Snapshot;
use crate::format::tree::Entry;
use crate::history::resolve::resolve;
use crate::lvm::NewVolume;
use crate::repo::Intent;
use crate::restore::{self, Overwrite, RestoreOptions, Restored};
use crate::source::walk::raise_file_limit;
use crate::target::Sparse;
use crate::text::{escape, format_size};

/// What becomes of things that are there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OverwriteArg {
    /// They are replaced
    Always,
    /// They are replaced if size or time of modification differ
    IfChanged,
    /// They are replaced if they are older
    IfNewer,
    /// They stay
    Never,
}

/// What becomes of zeros and holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SparseArg {
    /// Both become holes
    Always,
    /// Zeros are allocated, holes are holes
    Exact,
    /// Both are allocated
    Never,
}

/// Restore a path of a snapshot.
///
/// TARGET becomes the restored thing itself: a directory's content lies directly in TARGET, a
/// file or volume becomes the file or block device TARGET.
#[derive(Debug, Args)]
pub struct Restore {
    /// The path in the snapshot, a stream's name or a volume
    #[arg(value_name = "PATH")]
    path: OsString,
    /// The directory, file or block device to restore to
    #[arg(value_name = "TARGET")]
    target: PathBuf,
    #[command(flatten)]
    choice: SnapshotChoice,
    /// What becomes of things that are there already
    #[arg(long, value_enum, value_name = "WHEN")]
    overwrite: Option<OverwriteArg>,
    /// Write only what differs into files and devices that are there
    #[arg(long)]
    in_place: bool,
    /// What becomes of zeros and holes
    #[arg(long, value_enum, value_name = "HOW", default_value = "always")]
    sparse: SparseArg,
    /// Read all back and compare
    #[arg(long)]
    verify: bool,
    /// Remove what the snapshot does not have
    #[arg(long)]
    delete: bool,
    /// Restore only what this pattern matches, as in gitignore; may be given more than once
    #[arg(long, value_name = "P")]
    include: Vec<OsString>,
    /// Do not restore what this pattern matches; may be given more than once
    #[arg(long, value_name = "P")]
    exclude: Vec<OsString>,
    /// Make the part of a device zero that lies behind the volume's end
    #[arg(long)]
    wipe_rest: bool,
    /// Give files to users and groups by name where this system knows it, not by number
    #[arg(long)]
    owners_by_name: bool,
    /// Make TARGET, /dev/VG/LV, as a logical volume of the size and type that PATH had
    #[arg(long)]
    create_lv: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

impl Restore {
    /// Restores.
    pub fn run(self, global: &Global) -> Outcome {
        raise_file_limit();
        let repo = global.open(Intent::Read)?;
        let observer = global.observer();
        let catalog = repo.catalog(&observer, &STOP)?;
        let resolved = resolve(&repo, &catalog, &self.choice.selection(), Some(self.path.as_bytes()))?;
        for notice in &resolved.notices {
            global.notice(notice);
        }
        let apart = tell_apart(&catalog, &resolved, global)?;
        let entry = resolved.entry.ok_or(Error::Internal("a path without an entry"))?;
        for range in &resolved.listed.snapshot.unreadable {
            output::notice(&format!(
                "{}: {} bytes at {} could not be read when they were backed up and are zeros",
                range.path, range.len, range.offset
            ));
        }
        let path = escape(&entry.name);
        let of = resolved.listed.snapshot.volumes.iter().filter(|volume| volume.path == path);
        for by in of.filter_map(|volume| volume.free_blocks.as_ref()) {
            global.notice(&format!("{path}: free blocks were left out, by {by}, and come back as zeros"));
        }
        if self.create_lv {
            self.make_volume(&entry, &resolved.listed.snapshot, global)?;
            if self.dry_run {
                return Ok(Exit::Done);
            }
        }
        let options = RestoreOptions { path: resolved.path, apart, ..self.options() };
        let restored = restore::run(&repo, &catalog, &entry, &self.target, &options, &observer, &STOP)?;
        observer.finish();
        catalog.close(&observer)?;
        report(&restored, &resolved.listed.id.to_string(), self.dry_run, global);
        Ok(match restored.errors {
            0 => Exit::Done,
            _ if restored.damage => Exit::Damage,
            _ => Exit::Failed,
        })
    }

    /// Makes the logical volume that is restored to, or says what it would be.
    fn make_volume(&self, entry: &Entry, snapshot: &Snapshot, global: &Global) -> Result<()> {
        if entry.map().is_none() {
            return Err(Error::Refused(format!("a {} cannot be restored onto a device", entry.kind())));
        }
        let path = escape(&entry.name);
        let was = snapshot.volumes.iter().find(|info| info.path == path).and_then(|info| info.lvm.as_ref());
        let pool = was.map(|lvm| lvm.pool.as_str()).filter(|pool| !pool.is_empty());
        let new = NewVolume::plan(&self.target, entry.size(), pool)?;
        if let Some(lvm) = was.filter(|lvm| lvm.pool.is_empty() && lvm.segtype != "linear") {
            global.notice(&format!("it was {}: it is made linear; lvconvert changes that", lvm.segtype));
        }
        match self.dry_run {
            true => global.notice(&format!("would make {new}")),
            false => {
                new.create()?;
                global.notice(&format!("made {new}"));
            }
        }
        Ok(())
    }

    fn options(&self) -> RestoreOptions {
        RestoreOptions {
            overwrite: match self.overwrite {
                // What was made just now holds nothing.
                None if self.create_lv => Overwrite::Always,
                None => Overwrite::Refuse,
                Some(OverwriteArg::Always) => Overwrite::Always,
                Some(OverwriteArg::IfChanged) => Overwrite::IfChanged,
                Some(OverwriteArg::IfNewer) => Overwrite::IfNewer,
                Some(OverwriteArg::Never) => Overwrite::Never,
            },
            in_place: self.in_place,
            sparse: match self.sparse {
                SparseArg::Always => Sparse::Always,
                SparseArg::Exact => Sparse::Exact,
                SparseArg::Never => Sparse::Never,
            },
            verify: self.verify,
            delete: self.delete,
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            wipe_rest: self.wipe_rest,
            owners_by_name: self.owners_by_name,
            dry_run: self.dry_run,
            ..RestoreOptions::default()
        }
    }
}

/// What `restore --json` prints.
#[derive(Serialize)]
struct Report<'a> {
    snapshot: &'a str,
    dry_run: bool,
    dirs: u64,
    files: u64,
    skipped: u64,
    deleted: u64,
    bytes: u64,
    bytes_written: u64,
    bytes_equal: u64,
    bytes_zeroed: u64,
    bytes_allocated: Option<u64>,
    bytes_needed: Option<u64>,
    bytes_verified: u64,
    bytes_untouched: u64,
    errors: u64,
    seconds: f64,
}

fn report(restored: &Restored, snapshot: &str, dry_run: bool, global: &Global) {
    for missed in &restored.missed {
        global.notice(&missed.to_string());
    }
    if global.json {
        return output::json(&Report {
            snapshot,
            dry_run,
            dirs: restored.dirs,
            files: restored.files,
            skipped: restored.skipped,
            deleted: restored.deleted,
            bytes: restored.bytes,
            bytes_written: restored.counts.written,
            bytes_equal: restored.counts.equal,
            bytes_zeroed: restored.counts.zeroed,
            bytes_allocated: restored.allocated.map(|(allocated, _)| allocated),
            bytes_needed: restored.allocated.map(|(_, needed)| needed),
            bytes_verified: restored.verified,
            bytes_untouched: restored.untouched,
            errors: restored.errors,
            seconds: restored.seconds,
        });
    }
    if !global.quiet {
        summary(restored, dry_run);
    }
}

fn summary(restored: &Restored, dry_run: bool) {
    let verb = if dry_run { "would restore" } else { "restored  " };
    output::line(&format!(
        "{verb} {} files in {} directories, {}",
        restored.files,
        restored.dirs,
        format_size(restored.bytes)
    ));
    if dry_run {
        if restored.deleted > 0 {
            output::line(&format!("would remove {}", restored.deleted));
        }
        return;
    }
    let counts = restored.counts;
    output::line(&format!(
        "written    {}, {} equal already, {} zeros or holes",
        format_size(counts.written),
        format_size(counts.equal),
        format_size(counts.zeroed)
    ));
    if let Some((allocated, needed)) = restored.allocated {
        output::line(&format!(
            "allocated  {} for {} of data in large files",
            format_size(allocated),
            format_size(needed)
        ));
    }
    if restored.skipped + restored.deleted > 0 {
        output::line(&format!(
            "others     {} left as they were, {} removed",
            restored.skipped, restored.deleted
        ));
    }
    if restored.untouched > 0 {
        output::line(&format!(
            "untouched  {} behind the volume's end; --wipe-rest makes them zero",
            format_size(restored.untouched)
        ));
    }
    if restored.verified > 0 {
        output::line(&format!("verified   {}", format_size(restored.verified)));
    }
    let rate = restored.bytes as f64 / restored.seconds.max(0.001);
    output::line(&format!("time       {:.1} s, {}/s", restored.seconds, format_size(rate as u64)));
    if restored.errors > 0 {
        output::line(&format!("errors     {}", restored.errors));
    }
}
