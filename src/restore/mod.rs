//! Restoring: a path of a snapshot back to a directory, a file or a device.
//!
//! The plan goes through the tree in windows; the chunks of a window are looked up together, and
//! each frame that holds some of them is read and decoded once, by several threads, which write
//! its chunks wherever they belong (`window`). Directories get their metadata when nothing is
//! written below them any more.

mod archive;
pub mod compare;
mod content;
mod delete;
mod dump;
mod plan;
mod select;
mod verify;
mod window;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use select::Filter;

use crate::error::{Error, Result};
use crate::format::tree::{Entry, Time};
use crate::observe::{Event, Observer, Stop};
use crate::repo::Repo;
use crate::repo::catalog::Catalog;
use crate::target::{
    Content, Counts, DeviceTarget, Identity, Metadata, Missed, OwnerMap, Sparse, TargetDir, TargetKind,
    check_target_path, describe,
};

/// What becomes of things that are there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overwrite {
    /// Nothing may be there.
    #[default]
    Refuse,
    /// They are replaced.
    Always,
    /// They are replaced if size or time of modification differ.
    IfChanged,
    /// They are replaced if they are older.
    IfNewer,
    /// They stay.
    Never,
}

/// How to restore.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// What becomes of things that are there already.
    pub overwrite: Overwrite,
    /// Write only what differs into files and devices that are there.
    pub in_place: bool,
    /// What becomes of zeros and holes.
    pub sparse: Sparse,
    /// Read all back and compare.
    pub verify: bool,
    /// Remove what the snapshot does not have.
    pub delete: bool,
    /// The whole path of what is restored, which patterns may begin with.
    pub path: Vec<u8>,
    /// What of it is a source of its own in the snapshot, by its path below: nothing there is removed.
    pub apart: Vec<Vec<u8>>,
    /// Only what these patterns match, as in gitignore.
    pub include: Vec<std::ffi::OsString>,
    /// But not what these match.
    pub exclude: Vec<std::ffi::OsString>,
    /// Make the part of a device zero that lies behind the volume's end.
    pub wipe_rest: bool,
    /// Give files to users and groups by name, not by number.
    pub owners_by_name: bool,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What a restore came to.
#[derive(Debug, Default)]
pub struct Restored {
    /// Directories, made or there.
    pub dirs: u64,
    /// Files, volumes and nodes restored.
    pub files: u64,
    /// Files and nodes left as they were.
    pub skipped: u64,
    /// Things removed because the snapshot does not have them.
    pub deleted: u64,
    /// Length of what was restored.
    pub bytes: u64,
    /// What was done to contents.
    pub counts: Counts,
    /// What the file system allocated for the large files restored, and what they needed.
    pub allocated: Option<(u64, u64)>,
    /// What could not be kept for lack of rights or support.
    pub missed: Vec<Missed>,
    /// Files that could not be restored whole.
    pub errors: u64,
    /// Whether bytes in the repository were the reason.
    pub damage: bool,
    /// Bytes read back and compared.
    pub verified: u64,
    /// Bytes of the device behind the volume's end, that stay as they are.
    pub untouched: u64,
    /// How long it took.
    pub seconds: f64,
}

impl Restored {
    fn add_counts(&mut self, more: Counts) {
        self.counts += more;
    }
}

/// What all parts of a restore share.
struct Context<'a> {
    repo: &'a Repo,
    catalog: &'a Catalog,
    options: &'a RestoreOptions,
    filter: &'a Filter,
    metadata: &'a Metadata,
    /// The repository's folder, which nothing is written to and which nothing removes.
    repository: Option<Identity>,
    observer: &'a dyn Observer,
    stop: &'a Stop,
}

/// What the context of those borrows who write to no target.
#[derive(Default)]
struct Reading {
    options: RestoreOptions,
    filter: Filter,
    metadata: Metadata,
}

impl Reading {
    fn context<'a>(
        &'a self,
        repo: &'a Repo,
        catalog: &'a Catalog,
        observer: &'a dyn Observer,
        stop: &'a Stop,
    ) -> Context<'a> {
        let Self { options, filter, metadata } = self;
        Context { repo, catalog, options, filter, metadata, repository: None, observer, stop }
    }
}

/// Restores an entry of a snapshot so that `target` becomes it.
pub fn run(
    repo: &Repo,
    catalog: &Catalog,
    entry: &Entry,
    target: &Path,
    options: &RestoreOptions,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Restored> {
    let started = Instant::now();
    let owners = if options.owners_by_name { OwnerMap::by_name() } else { OwnerMap::Numeric };
    let metadata = Metadata::new(owners);
    let filter = Filter::new(options, &options.path)?;
    let repository = Identity::of(repo.root());
    delete::refuse_inside(repository, target)?;
    let context =
        Context { repo, catalog, options, filter: &filter, metadata: &metadata, repository, observer, stop };
    let bytes = entry.dir().map_or(entry.size(), |dir| dir.bytes);
    observer.event(Event::Phase { name: "restoring", bytes: Some(bytes) });
    let mut restored = match check_target_path(target)? {
        TargetKind::BlockDevice => context.to_device(entry, target)?,
        _ if entry.dir().is_some() => context.to_directory(entry, target)?,
        _ => context.to_file(entry, target)?,
    };
    for pattern in filter.unused() {
        observer.event(Event::Notice(format!("the pattern '{pattern}' matched nothing")));
    }
    restored.missed = metadata.shortfalls().missed();
    restored.seconds = started.elapsed().as_secs_f64();
    Ok(restored)
}

impl Context<'_> {
    fn to_device(&self, entry: &Entry, target: &Path) -> Result<Restored> {
        let Some(map) = entry.map() else {
            return Err(Error::Refused(format!("a {} cannot be restored onto a device", entry.kind())));
        };
        if self.options.overwrite != Overwrite::Always && !self.options.in_place {
            return Err(Error::Refused(format!(
                "{} is a device: {}\nuse --overwrite always to write all of it, or --in-place to write only what differs",
                target.display(),
                describe(target)?
            )));
        }
        let mut device = DeviceTarget::open(target, map.len())?;
        if self.options.in_place {
            device = device.in_place();
        }
        let untouched = device.device_len() - map.len();
        if self.options.dry_run {
            return Ok(Restored { files: 1, bytes: map.len(), untouched, ..Restored::default() });
        }
        let device = Arc::new(device);
        let mut restored = Restored { bytes: map.len(), ..Restored::default() };
        let content = Arc::clone(&device) as Arc<dyn Content + Send>;
        content::write_content(self, map, &content, target, &mut restored)?;
        drop(content);
        if self.options.wipe_rest {
            device.wipe_rest()?;
        }
        let device = Arc::into_inner(device).ok_or(Error::Internal("the device is still in use"))?;
        restored.add_counts(device.finish()?);
        restored.files += u64::from(restored.errors == 0);
        restored.untouched = if self.options.wipe_rest { 0 } else { untouched };
        if self.options.verify {
            verify::path(self, entry, target, &mut restored)?;
        }
        Ok(restored)
    }

    fn to_directory(&self, entry: &Entry, target: &Path) -> Result<Restored> {
        if target.exists() && !target.is_dir() {
            return Err(Error::Refused(format!("{} is no directory", target.display())));
        }
        self.refuse_dangerous_delete(target)?;
        if !self.may_overwrite() && target.exists() && !TargetDir::open_root(target)?.is_empty()? {
            return Err(Error::Refused(format!(
                "{} is not empty: use --overwrite always, if-changed, if-newer or never, or --in-place",
                target.display()
            )));
        }
        if self.options.dry_run {
            return plan::count(self, entry, target);
        }
        let root = Arc::new(TargetDir::open_root(target)?);
        let mut restored = plan::restore_tree(self, entry, Arc::clone(&root))?;
        if self.options.verify {
            verify::tree(self, entry, &root, &mut restored)?;
        }
        Ok(restored)
    }

    fn refuse_dangerous_delete(&self, target: &Path) -> Result<()> {
        let is_root = target.canonicalize().is_ok_and(|path| path == Path::new("/"));
        match self.options.delete && is_root {
            true => {
                Err(Error::Refused("--delete is refused at /: it would remove the running system".into()))
            }
            false => Ok(()),
        }
    }

    fn may_overwrite(&self) -> bool {
        self.options.in_place || self.options.overwrite != Overwrite::Refuse
    }

    fn to_file(&self, entry: &Entry, target: &Path) -> Result<Restored> {
        if target.is_dir() {
            let name = entry.name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            return Err(Error::Refused(format!(
                "{} is a directory: did you mean {}?",
                target.display(),
                target.join(crate::source::path_of(name)).display()
            )));
        }
        let exists = target.symlink_metadata().is_ok();
        if exists && !self.may_overwrite() {
            return Err(Error::Refused(format!(
                "{} exists: use --overwrite always, or --in-place to write only what differs",
                target.display()
            )));
        }
        if self.options.dry_run {
            return Ok(Restored { files: 1, bytes: entry.size(), ..Restored::default() });
        }
        let (dir, name) = TargetDir::open_parent(target)?;
        let entry = Entry { name, ..entry.clone() };
        let dir = Arc::new(dir);
        let mut restored = plan::restore_single(self, &entry, Arc::clone(&dir))?;
        if self.options.verify {
            verify::path(self, &entry, target, &mut restored)?;
        }
        Ok(restored)
    }

    /// Tells of something that failed, and counts it.
    fn problem(&self, path: PathBuf, error: &Error, restored: &mut Restored) {
        restored.errors += 1;
        restored.damage |= error.is_damage();
        self.observer.event(Event::Problem { path, what: error.to_string() });
    }
}

/// The metadata of a file that could not be restored whole: with the snapshot's time and length, the
/// next restore would take it for unchanged, so that it is dated 1970.
fn incomplete(entry: &Entry) -> Entry {
    Entry { modified: Time::default(), ..entry.clone() }
}

/// Writes the content of a file, volume or stream to `out`, or a directory as a pax archive. Ends at the first chunk that cannot
/// be read.
pub fn dump(
    repo: &Repo,
    catalog: &Catalog,
    entry: &Entry,
    path: &Path,
    out: &mut dyn Write,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<()> {
    let reading = Reading::default();
    let context = reading.context(repo, catalog, observer, stop);
    let bytes = entry.dir().map_or(entry.size(), |dir| dir.bytes);
    observer.event(Event::Phase { name: "dumping", bytes: Some(bytes) });
    match entry.map() {
        Some(map) => dump::dump(&context, map, path, out),
        None if entry.dir().is_some() => archive::tree(&context, entry, out),
        None => Err(Error::Refused(format!("a {} has no bytes to dump", entry.kind()))),
    }
}
