//! Backing up: one run makes one snapshot.
//!
//! ```text
//! scan ─steps→ read, cut, hash (threads) ─in order→ assemble ─frames→ encode (threads) ─in order→ packs
//! ```
//!
//! The scan walks and compares with the parent; workers read what changed; the assembler, the
//! calling thread, finds out what is new and builds maps and trees; encoders compress; the last
//! thread seals, writes and publishes. Every arrow is a bounded queue. The snapshot is published
//! when all of that is durable.

mod assemble;
mod buffers;
mod checkpoint;
pub mod cut;
mod earlier;
pub mod expect;
mod follow;
mod frames;
pub mod nightly;
mod pipeline;
mod read;
mod scan;
mod spot;
mod step;
mod stream;
mod tiers;
mod update;
mod volume;

use std::collections::{BTreeMap, HashSet};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};
use std::time::Instant;

use jiff::Timestamp;

pub use tiers::TierRule;

use crate::error::{Error, IoContext, Result};
use crate::format::bad::Slots;
use crate::format::config::Tier;
use crate::format::snapshot::{Method, PROBLEMS_MAX, Saved, Snapshot, Stats, TreeRef, VolumeInfo};
use crate::format::tree::Entry;
use crate::id::SnapshotId;
use crate::observe::{Event, Observer, Stop};
use crate::repo::Repo;
use crate::repo::catalog::Catalog;
use crate::repo::nodes::find_root;
use crate::repo::snapshots::{Listed, Snapshots};
use crate::source::exclude::{ExcludeOptions, Excludes};
use crate::source::extents::device_len;
use crate::text::escape;

#[cfg(test)]
mod tests;

pub use checkpoint::Finished;
pub use scan::ScanOptions;
pub use spot::Share;
pub use volume::{Known, Volume};

/// What is backed up.
#[derive(Debug, Clone)]
pub enum Source {
    /// A directory, file or block device.
    Path(PathBuf),
    /// Standard input, under a name.
    Stdin(Vec<u8>),
    /// What a command prints, under a name.
    Command(Vec<u8>, Vec<std::ffi::OsString>),
    /// A block device or file of which something is known.
    Volume(Box<Volume>),
}

/// How to back up.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// What.
    pub sources: Vec<Source>,
    /// The host that the snapshot is of.
    pub host: String,
    /// The series that the snapshot belongs to.
    pub label: String,
    /// Names for this snapshot.
    pub tags: Vec<String>,
    /// The snapshot's time.
    pub time: Timestamp,
    /// The local zone's offset from UTC then, in seconds.
    pub offset: i32,
    /// Who runs it.
    pub user: String,
    /// How hard to compress, …
    pub tier: Tier,
    /// … but for what these say; the first that fits counts.
    pub tier_rules: Vec<TierRule>,
    /// What to leave out.
    pub excludes: ExcludeOptions,
    /// How to look at the sources.
    pub scan: ScanOptions,
    /// Whether new chunks may be compressed against what the parent has in their place.
    pub delta: bool,
    /// Do all but write.
    pub dry_run: bool,
    /// After so many bytes that were read it is written down how far logical volumes are done.
    pub checkpoint_every: Option<u64>,
}

impl BackupOptions {
    /// A snapshot of nothing.
    fn snapshot(&self) -> Snapshot {
        Snapshot {
            time: self.time,
            offset: self.offset,
            host: self.host.clone(),
            label: self.label.clone(),
            tags: self.tags.clone(),
            user: self.user.clone(),
            varv: env!("CARGO_PKG_VERSION").into(),
            tier: self.tier,
            roots: Vec::new(),
            tree: TreeRef::new(None),
            stats: Stats::default(),
            missing: Vec::new(),
            unreadable: Vec::new(),
            volumes: Vec::new(),
        }
    }
}

/// What a backup came to.
#[derive(Debug)]
pub struct Outcome {
    /// The snapshot; `None` in a dry run.
    pub id: Option<SnapshotId>,
    /// What was counted.
    pub stats: Stats,
    /// How volumes were read of which something was known.
    pub volumes: Vec<VolumeInfo>,
    /// Paths that are left out because they could not be read.
    pub missing: Vec<String>,
    /// Exclude patterns that matched nothing.
    pub unused_patterns: Vec<String>,
}

/// A source under the path that it is kept under.
struct RootPlan {
    name: Vec<u8>,
    source: Source,
    parent: Option<Parent>,
}

/// What the parent snapshot says of a root.
struct Parent {
    entry: Entry,
    /// Whether what it needs may be gone.
    suspect: bool,
    /// How the volume was read.
    volume: Option<VolumeInfo>,
    /// What is zeros there because it could not be read: offset and length, …
    unreadable: Vec<(u64, u64)>,
    /// … if all of that is listed.
    problems_all_listed: bool,
}

/// Backs up.
pub fn run(
    repo: &Repo,
    catalog: &Catalog,
    options: &BackupOptions,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Outcome> {
    let started = Instant::now();
    let snapshots = repo.snapshots()?;
    warn_about_future(&snapshots, options, observer);
    let mut roots = plan_roots(catalog, options, &snapshots, observer)?;
    let paths: Vec<PathBuf> = roots.iter().filter_map(RootPlan::path).collect();
    let excludes = Excludes::new(&options.excludes, &paths)?;
    observer.event(Event::Phase { name: "backing up", bytes: expected_bytes(&roots) });
    let mut finished = pipeline::run(repo, catalog, options, &excludes, &roots, observer, stop);
    if let Err(e) = &finished
        && e.is_damage()
        && forget_what_is_known(&mut roots)
    {
        // What it was may be what is damaged; what was read so far is found again.
        observer.event(Event::Notice(format!("{e}: volumes are read whole")));
        finished = pipeline::run(repo, catalog, options, &excludes, &roots, observer, stop);
    }
    let finished = finished?;

    let assembled = finished.assembled;
    let mut stats = assembled.stats;
    stats.bytes_stored = finished.written.data + finished.written.metadata;
    stats.bytes_metadata = finished.written.metadata;
    stats.saved = Some(Saved {
        bytes_sparse: Some(stats.bytes_source.saturating_sub(assembled.bytes_data)),
        bytes_duplicate: Some(assembled.bytes_data.saturating_sub(stats.bytes_new)),
        ..finished.saved
    });
    stats.seconds = started.elapsed().as_secs_f64();
    if assembled.roots.is_empty() {
        return Err(Error::NotFound("none of the sources could be read: there is no snapshot".into()));
    }
    let snapshot = Snapshot {
        roots: assembled.roots,
        tree: TreeRef::new(finished.root.as_ref()),
        stats: stats.clone(),
        missing: assembled.missing.clone(),
        unreadable: assembled.unreadable,
        volumes: finished.volumes.into_iter().map(|info| dated(info, options.time)).collect(),
        ..options.snapshot()
    };
    let id = match options.dry_run {
        true => None,
        false => {
            check_all_there(repo, catalog)?;
            check_reused(repo, catalog, &finished.reused)?;
            repo.still_locked()?;
            repo.remember_bad(catalog)?;
            Some(repo.publish_snapshot(&snapshot)?)
        }
    };
    for path in excludes.met() {
        let text = format!("{}: left out, it is the repository or its cache", path.display());
        observer.event(Event::Notice(text));
    }
    Ok(Outcome {
        id,
        stats,
        volumes: snapshot.volumes,
        missing: assembled.missing,
        unused_patterns: excludes.unused(),
    })
}

/// What is read whole now was read whole last.
fn dated(info: VolumeInfo, now: Timestamp) -> VolumeInfo {
    match info.method {
        Method::Full => VolumeInfo { read_whole: Some(now), ..info },
        _ => info,
    }
}

impl RootPlan {
    fn path(&self) -> Option<PathBuf> {
        match &self.source {
            Source::Path(path) => Some(path.clone()),
            Source::Volume(volume) => Some(volume.path.clone()),
            _ => None,
        }
    }
}

/// Has all volumes read whole; false if they would be anyway.
fn forget_what_is_known(roots: &mut [RootPlan]) -> bool {
    let mut is_less = false;
    for root in roots {
        let Source::Volume(volume) = &mut root.source else { continue };
        is_less |= volume.finished.take().is_some();
        if volume.known.since().is_some() {
            let reason = Some("the parent snapshot is damaged".into());
            volume.known = Known::Full { layout: None, reason };
            is_less = true;
        }
    }
    is_less
}

/// The sources in the order of the tree of roots, each with what its parent snapshot has.
fn plan_roots(
    catalog: &Catalog,
    options: &BackupOptions,
    snapshots: &Snapshots,
    observer: &dyn Observer,
) -> Result<Vec<RootPlan>> {
    let mut roots = BTreeMap::new();
    for source in &options.sources {
        let (name, source) = match source {
            Source::Path(path) => {
                let path = absolute(path)?;
                (path.as_os_str().as_bytes().to_vec(), Source::Path(path))
            }
            Source::Stdin(name) | Source::Command(name, _) => (name.clone(), source.clone()),
            Source::Volume(volume) => {
                let name = match &volume.name {
                    Some(name) => name.clone(),
                    None => absolute(&volume.path)?.into_os_string().into_vec(),
                };
                (name, source.clone())
            }
        };
        roots.insert(name, source);
    }
    let mut planned = Vec::with_capacity(roots.len());
    for (name, source) in roots {
        let parent = match parent(catalog, options, snapshots, &name, &source) {
            Err(e) if e.is_damage() => {
                observer.event(Event::Notice(format!("the parent snapshot cannot be used: {e}")));
                None
            }
            other => other?,
        };
        planned.push(RootPlan { name, source, parent });
    }
    Ok(planned)
}

/// The path made absolute; symlinks in it stay, so that it is what the user wrote.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    if path.components().any(|part| part == Component::ParentDir) {
        return path.canonicalize().at("find", path);
    }
    let absolute = std::path::absolute(path).at("find", path)?;
    // Collecting the components takes trailing slashes and single dots away.
    Ok(absolute.components().collect())
}

/// What the newest snapshot of the same host and label that has the root says of it; or the
/// snapshot that a source's changes are known since.
fn parent(
    catalog: &Catalog,
    options: &BackupOptions,
    snapshots: &Snapshots,
    name: &[u8],
    source: &Source,
) -> Result<Option<Parent>> {
    let path = escape(name);
    let has_root = |Listed { snapshot, .. }: &&Listed| {
        snapshot.host == options.host
            && snapshot.label == options.label
            && snapshot.roots.iter().any(|root| root.path == path)
    };
    let made_against = if let Source::Volume(volume) = source { volume.known.since() } else { None };
    let parent = match made_against {
        Some(id) => {
            let parent = snapshots.listed.iter().find(|listed| listed.id == id).filter(has_root);
            Some(parent.ok_or_else(|| {
                Error::Refused(format!(
                    "snapshot {} has no {path} of host {}, label {}: the list of changes was made against another one",
                    id.short(),
                    options.host,
                    options.label
                ))
            })?)
        }
        None => snapshots.listed.iter().rev().find(has_root),
    };
    let Some(Listed { id, snapshot }) = parent else { return Ok(None) };
    let root = snapshot.tree.root().map_err(|e| Error::damaged("a snapshot", e))?;
    let Some(entry) = find_root(catalog, root, name)? else { return Ok(None) };
    let unreadable = snapshot.unreadable.iter().filter(|range| range.path == path);
    Ok(Some(Parent {
        entry,
        suspect: catalog.is_suspect(id)?,
        volume: snapshot.volumes.iter().find(|volume| volume.path == path).cloned(),
        unreadable: unreadable.map(|range| (range.offset, range.len)).collect(),
        problems_all_listed: snapshot.unreadable.len() < PROBLEMS_MAX,
    }))
}

/// About how much there is to go through, as far as that is known: files and devices have a
/// length, directories are probably as large as they were.
fn expected_bytes(roots: &[RootPlan]) -> Option<u64> {
    let of_root = |root: &RootPlan| match (root.path(), &root.parent) {
        (Some(path), _) if has_length(&path) => {
            std::fs::File::open(path).ok().and_then(|file| device_len(&file).ok())
        }
        (_, Some(Parent { entry, .. })) => Some(entry.dir().map_or(entry.size(), |dir| dir.bytes)),
        (_, None) => None,
    };
    roots.iter().map(of_root).try_fold(0, |sum: u64, len| Some(sum.saturating_add(len?)))
}

/// Opening anything else may wait, or do something.
fn has_length(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() || found.file_type().is_block_device())
}

fn warn_about_future(snapshots: &Snapshots, options: &BackupOptions, observer: &dyn Observer) {
    let newest = snapshots
        .listed
        .iter()
        .rfind(|listed| listed.snapshot.host == options.host && listed.snapshot.label == options.label);
    if let Some(newest) = newest.filter(|newest| newest.snapshot.time > options.time) {
        let text = format!(
            "snapshot {} is dated {}, later than this one: is the clock right?",
            newest.id.short(),
            newest.snapshot.time
        );
        observer.event(Event::Notice(text));
    }
}

/// Unchanged files rely on packs that nobody looked at: none may have gone since the start.
fn check_all_there(repo: &Repo, catalog: &Catalog) -> Result<()> {
    let packs = repo.list_packs()?;
    let index = catalog.index()?;
    match index.packs().iter().find(|pack| packs.get(&pack.id) != Some(&pack.len)) {
        Some(gone) => Err(Error::missing(format!("pack {}", gone.id))),
        None => Ok(()),
    }
}

/// Each older pack that the snapshot relies on must still be what the index knows. One that is
/// not is remembered, so that the next backup stores anew what was in it.
fn check_reused(repo: &Repo, catalog: &Catalog, reused: &HashSet<u32>) -> Result<()> {
    for number in reused {
        let record = catalog.index()?.pack(*number).cloned();
        let record = record.ok_or(Error::Internal("a pack was dropped from the index"))?;
        let why = match catalog.reader().check(&record.id, record.len) {
            Ok(check) if check == record.trailer_check => {
                repo.store().adopt(&crate::repo::layout::pack(&record.id));
                continue;
            }
            Ok(_) => "it is not what it was".into(),
            Err(Error::Damaged { why, .. }) => why,
            Err(e) => return Err(e),
        };
        catalog.index()?.add_bad(&record.id, &Slots::all());
        repo.remember_bad(catalog)?;
        let object = format!("pack {}", record.id);
        return Err(Error::damaged(object, format_args!("{why}; the next backup will not rely on it")));
    }
    Ok(())
}
