//! The threads of a backup, and how their errors come home.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::{self, Scope};

use crossbeam_channel::{Sender, unbounded};
use rustix::fs::{FileType, stat};

use super::assemble::{Assembled, Assembler, VolumeRead};
use super::checkpoint::Progress;
use super::cut::Cutter;
use super::frames::{Frames, ToEncode};
use super::read::Worker;
use super::scan::Scan;
use super::step::{Done, Place};
use super::stream::{self, Stream};
use super::tiers::Levels;
use super::{BackupOptions, RootPlan, Source};
use crate::chunker::{Chunker, Params};
use crate::error::{Error, Result};
use crate::format::config::Tier;
use crate::format::hashtree::Root;
use crate::format::pack::Kind;
use crate::format::snapshot::{Saved, VolumeInfo};
use crate::id::{ChunkId, PackId};
use crate::observe::{Observer, Stop};
use crate::ordered::{Output, ordered};
use crate::repo::Repo;
use crate::repo::catalog::{Catalog, lock};
use crate::repo::delta::DeltaEncoder;
use crate::repo::packs::{Packs, ToPack, Written};
use crate::repo::savings::Counting;
use crate::source::exclude::{Excludes, SourceExcludes};
use crate::source::owners::Owners;
use crate::source::walk::{THREADS_DEFAULT, Walker};

/// Threads that read: more than processors, since a cold disk wants many requests at once.
const READERS_MIN: usize = 4;
/// Batches between the scan and the assembler: at most 2 MiB of content each, or one file.
const READ_WINDOW: usize = 12;
/// Frames between the assembler and the packs: at most 4 MiB each, raw and encoded.
const ENCODE_WINDOW: usize = 4;
/// The scan recurses into directories, up to `walk::DEPTH_MAX` deep.
const SCAN_STACK: usize = 32 << 20;

/// What the pipeline made.
pub struct Finished {
    /// The tree of roots.
    pub root: Option<Root<ChunkId>>,
    /// Older packs that it needs.
    pub reused: HashSet<u32>,
    /// What was found.
    pub assembled: Assembled,
    /// How volumes were read of which something was known.
    pub volumes: Vec<VolumeInfo>,
    /// What was stored.
    pub written: Written,
    /// What was saved when it was stored.
    pub saved: Saved,
}

/// Runs the pipeline over all roots.
pub fn run(
    repo: &Repo,
    catalog: &Catalog,
    options: &BackupOptions,
    excludes: &Excludes,
    roots: &[RootPlan],
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Finished> {
    let config = repo.config();
    let params = Params::parse(&config.chunker).map_err(|why| Error::damaged("config", why))?;
    let chunker = Chunker::new(params, &repo.keys().chunker());
    let cutter = Cutter { chunker: &chunker, key: repo.keys().ids(Kind::Data) };
    let owners = Owners::of_system();
    let levels = Levels { config, tier: options.tier, rules: &options.tier_rules };
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let mut planned = Vec::with_capacity(roots.len());
    for root in roots {
        let filter = root.path().map(|path| excludes.below(&path)).transpose()?;
        planned.push((root, filter));
    }
    let packs = Packs::new(&**repo.store(), repo.keys(), repo.id(), config.sizes);
    catalog.index()?.load_filters()?;
    let (used, reusable) = unbounded();
    let bases: Arc<Mutex<HashSet<PackId>>> = Arc::default();
    let counting = Counting::new(config.level(Tier::Hot));
    let encoders = encoders(catalog, processors, &bases, &counting, &used)?;

    thread::scope(|scope| {
        let worker = Worker { buffers: Arc::default(), cutter, owners: &owners };
        let readers = vec![worker.clone(); READERS_MIN.max(2 * processors)];
        let readers = readers.into_iter().map(|worker| move |steps| worker.work(steps)).collect();
        let (steps, done) = ordered(scope, readers, READ_WINDOW);
        let (frames, encoded) = ordered(scope, encoders, ENCODE_WINDOW);
        let (publish, published) = unbounded();
        let dry_run = options.dry_run;
        let writer = scope.spawn(move || match dry_run {
            true => packs.count_all(encoded),
            false => packs.write_all(encoded, publish),
        });
        let scan = Scan::new(options.scan, catalog, cutter, &owners, observer, stop, steps);
        let scanner = thread::Builder::new()
            .name("scan".into())
            .stack_size(SCAN_STACK)
            .spawn_scoped(scope, {
                let (planned, owners) = (&planned, &owners);
                move || scan_all(scope, scan, planned, owners)
            })
            .map_err(|_| Error::Internal("no thread can be started"))?;
        let frames = Frames::new(catalog, config.sizes, frames, reusable, published);
        let assembler =
            Assembler::new(catalog, frames, repo.keys(), &worker, levels, options.delta, observer);
        let assembler = assembler.telling(Progress::new(repo, options));
        let assembled = assemble(assembler, done, || {
            scanner.join().map_err(|_| Error::Internal("the scan ended early"))?
        });
        let written = writer.join().map_err(|_| Error::Internal("the writer ended early"))?;
        match (assembled, written) {
            (Ok((root, mut reused, mut assembled)), Ok(written)) => {
                let (index, bases) = (catalog.index()?, lock(&bases)?);
                let relied_on = index.packs().iter().filter(|pack| bases.contains(&pack.id));
                reused.extend(relied_on.map(|pack| pack.number));
                let volumes = std::mem::take(&mut assembled.volumes);
                let volumes = volumes.into_iter().map(VolumeRead::counted).collect();
                Ok(Finished { root, reused, assembled, volumes, written, saved: counting.saved()? })
            }
            // When writing fails, the assembler only sees that nobody takes its frames.
            (Err(Error::Internal(_)), Err(cause)) | (Ok(_), Err(cause)) => Err(cause),
            (Err(cause), _) => Err(cause),
        }
    })
}

fn encoders<'c>(
    catalog: &'c Catalog,
    count: usize,
    bases: &Arc<Mutex<HashSet<PackId>>>,
    counting: &'c Counting,
    used: &Sender<Vec<u8>>,
) -> Result<Vec<impl FnMut(ToEncode) -> Result<ToPack> + Send + 'c>> {
    (0..count)
        .map(|_| {
            let mut encoder = DeltaEncoder::new(catalog, Arc::clone(bases))?;
            let used = used.clone();
            Ok(move |work| {
                let ToEncode::Frame { frame, level, stored } = work else { return Ok(ToPack::Close) };
                let (encoded, raw) = encoder.encode(frame, level)?;
                counting.add(&encoded, &raw)?;
                if let Some(stored) = stored {
                    stored.fetch_add(encoded.stored_len(), Ordering::Relaxed);
                }
                let _ = used.send(raw);
                Ok(encoded.into())
            })
        })
        .collect()
}

/// Takes all that was read; `scanned` tells, once nothing more comes, whether that was all.
fn assemble(
    mut assembler: Assembler,
    done: Output<Vec<Done>>,
    scanned: impl FnOnce() -> Result<()>,
) -> Result<(Option<Root<ChunkId>>, HashSet<u32>, Assembled)> {
    while let Some(batch) = done.next() {
        assembler.apply(batch?)?;
    }
    match scanned() {
        Ok(()) => assembler.finish(),
        Err(stopped @ Error::Stopped(_)) => {
            assembler.abandon()?;
            Err(stopped)
        }
        Err(e) => Err(e),
    }
}

fn scan_all<'scope, 'f: 'scope>(
    scope: &'scope Scope<'scope, '_>,
    mut scan: Scan,
    roots: &'f [(&'f RootPlan, Option<SourceExcludes<'f>>)],
    owners: &Owners,
) -> Result<()> {
    for (root, filter) in roots {
        let before = root.parent.as_ref().map(|parent| parent.entry.clone());
        scan.begin_root(root.parent.as_ref().is_some_and(|parent| parent.suspect));
        match (&root.source, filter) {
            (Source::Path(path), Some(filter)) => {
                let name = root.name.clone();
                match stat(path) {
                    Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Directory => {
                        let walker = Walker::new(scope, path, THREADS_DEFAULT, filter);
                        scan.tree(&walker, path, name, before)?;
                    }
                    Ok(found) => scan.single(path, name, &found, before)?,
                    Err(e) => scan.missing(Place::root(path), std::io::Error::from(e).to_string())?,
                }
            }
            (Source::Volume(volume), _) => scan.volume(root.name.clone(), volume, root.parent.as_ref())?,
            (source, _) => {
                let Some(mut stream) = Stream::open(source, scan.stop())? else { continue };
                scan.stream(stream::entry(&root.name, owners), &mut stream, before.as_ref())?;
                stream.finish()?;
            }
        }
    }
    scan.finish()
}
