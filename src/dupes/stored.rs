//! Equal files and directories, partly equal files and shared ranges, from what a repository
//! knows: no source is opened.
//!
//! Snapshots are walked to the entries of files. What a file's bytes are follows from its map:
//! the chunks of a byte sequence depend on its bytes alone, so equal bytes have equal chunks.

mod content;
mod equal_dirs;
mod partly;
mod ranges;
mod walk;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Instant;

use jiff::Timestamp;

use super::found::{File, Findings, Group, Name};
use super::paths::{Dirs, Root};
use super::sorter::{Sorted, Sorter};
use super::{Filters, Report, Totals};
use crate::error::Result;
use crate::format::tree::Entry;
use crate::id::SnapshotId;
use crate::observe::{Event, Observer, Stop};
use crate::repo::catalog::Catalog;
use crate::repo::snapshots::Listed;
use walk::{StoredFile, Walked};

pub use content::{Key, key_of};
pub use equal_dirs::EqualDirs;
pub use partly::{Partly, PartlyFile};
pub use ranges::Range;
pub use walk::{Visit, visit};

/// Where to look in a snapshot.
#[derive(Debug, Clone)]
pub struct Place<'s> {
    /// The snapshot.
    pub listed: &'s Listed,
    /// A path in it and what is there; `None` for all of it.
    pub entry: Option<(Vec<u8>, Entry)>,
}

/// Which snapshot a root of a report is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its name.
    pub id: SnapshotId,
    /// Whose it is.
    pub host: String,
    /// Which series.
    pub label: String,
    /// When it was made.
    pub time: Timestamp,
    /// The zone's offset then, in seconds.
    pub offset: i32,
}

/// What is looked for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where a temporary file is made, if one is needed.
    pub temporary: PathBuf,
    /// Which files count.
    pub filters: Filters,
    /// Whether only groups count that have files of more than one host or label.
    pub isolate: bool,
    /// Whether to tell files that have no equal.
    pub unique: bool,
    /// Of two files, how many percent of the shorter one's bytes must be in common chunks for
    /// them to be told as partly equal; `None` to not look.
    pub share_min: Option<u64>,
}

/// What came of it, beside equal files.
#[derive(Debug, Default)]
pub struct Relations {
    /// Equal directories, the most bytes first.
    pub dirs: Vec<EqualDirs>,
    /// Partly equal files, the most bytes first.
    pub partly: Vec<Partly>,
    /// Long ranges that two volumes or large files share, the longest first.
    pub ranges: Vec<Range>,
}

impl Origin {
    /// Of a snapshot.
    pub fn new(Listed { id, snapshot }: &Listed) -> Self {
        Self {
            id: *id,
            host: snapshot.host.clone(),
            label: snapshot.label.clone(),
            time: snapshot.time,
            offset: snapshot.offset,
        }
    }
}

/// The roots of a report on these places.
pub fn roots(places: &[Place]) -> Vec<Root> {
    let several = {
        let series = |place: &Place| {
            let snapshot = &place.listed.snapshot;
            (snapshot.host.clone(), snapshot.label.clone())
        };
        let snapshots = places.iter().map(|place| place.listed.id).collect::<HashSet<_>>().len();
        let series = places.iter().map(series).collect::<HashSet<_>>().len();
        (series > 1, snapshots > series)
    };
    let root = |place: &Place| {
        let origin = Origin::new(place.listed);
        let shown = match several {
            (false, false) => String::new(),
            (true, false) => format!("{}/{}:", origin.host, origin.label),
            (false, true) => format!("{}:", origin.id.short()),
            (true, true) => format!("{}/{} {}:", origin.host, origin.label, origin.id.short()),
        };
        Root { shown: shown.into(), path: PathBuf::new(), is_reference: false, origin: Some(origin) }
    };
    places.iter().map(root).collect()
}

/// Finds what is equal in the places, which are in the order of their series and time.
pub fn run(
    catalog: &Catalog,
    places: &[Place],
    options: &Options,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Report> {
    let begin = Instant::now();
    let roots = roots(places);
    observer.event(Event::Phase { name: "walking snapshots", bytes: None });
    let Walked { files, dirs, infos, mut totals, chunks } = walk::walk(catalog, places, options, stop)?;
    observer.event(Event::Phase { name: "comparing", bytes: None });
    let dir_groups = equal_dirs::groups(&dirs, &infos, &roots);
    let mut partly = match chunks {
        Some(chunks) => Some(partly::find(chunks, options, stop)?),
        None => None,
    };
    let mut collector = Collector {
        options,
        roots: &roots,
        dirs: &dirs,
        infos: &infos,
        findings: Findings::new(Sorter::new(&options.temporary)),
        totals: &mut totals,
    };
    for_each_class(&files, stop, |class| {
        let files = collector.files(&class);
        if let (Some(partly), Some(first)) = (&mut partly, class.first()) {
            partly.name(&first.key, &files);
        }
        collector.class(&class, files)
    })?;
    let found = collector.findings.finish()?;
    totals.seconds = begin.elapsed().as_secs_f64();
    let (partly, ranges) = partly.map(partly::Found::finish).unwrap_or_default();
    let relations = Relations { dirs: dir_groups, partly, ranges };
    Ok(Report { roots, found, totals, left_out: Vec::new(), relations: Some(relations) })
}

/// Calls `each` with the files of each content.
fn for_each_class(
    files: &Sorted,
    stop: &Stop,
    mut each: impl FnMut(Vec<StoredFile>) -> Result<()>,
) -> Result<()> {
    let mut class: Vec<StoredFile> = Vec::new();
    let mut records = files.records()?;
    while let Some(record) = records.next()? {
        let file = StoredFile::read(record)?;
        if class.first().is_some_and(|first| first.key != file.key) {
            stop.check()?;
            each(std::mem::take(&mut class))?;
        }
        class.push(file);
    }
    if class.is_empty() { Ok(()) } else { each(class) }
}

struct Collector<'a> {
    options: &'a Options,
    roots: &'a [Root],
    dirs: &'a Dirs,
    infos: &'a [walk::DirInfo],
    findings: Findings,
    totals: &'a mut Totals,
}

impl Collector<'_> {
    fn host(&self, root: u32) -> &str {
        let origin = self.roots.get(root as usize).and_then(|root| root.origin.as_ref());
        origin.map_or("", |origin| &origin.host)
    }

    /// The distinct files of a class: names of one inode together, and a path of one host once,
    /// in whatever snapshots it is.
    fn files(&mut self, class: &[StoredFile]) -> Vec<File> {
        let mut seen: HashSet<(&str, Vec<u8>)> = HashSet::new();
        let mut links: HashMap<(&str, u64, u64), usize> = HashMap::new();
        let mut files: Vec<File> = Vec::new();
        let mut linked = 0;
        for stored in class {
            let mut path = Vec::new();
            let root = self.dirs.path(stored.dir, &mut path);
            path.extend_from_slice(&stored.name);
            let host = self.host(root);
            if !seen.insert((host, path.clone())) {
                continue;
            }
            let name = Name { root, path };
            let known = match stored.inode.links {
                0 | 1 => None,
                _ => links.get(&(host, stored.inode.device, stored.inode.inode)).copied(),
            };
            match known.and_then(|number| files.get_mut(number)) {
                Some(file) => {
                    linked += 1;
                    file.names.push(name);
                }
                None => {
                    links.insert((host, stored.inode.device, stored.inode.inode), files.len());
                    files.push(File { inode: stored.inode, copy: files.len() as u64, names: vec![name] });
                }
            }
        }
        self.totals.hard_links += linked;
        files
    }

    fn class(&mut self, class: &[StoredFile], files: Vec<File>) -> Result<()> {
        let Some(first) = class.first() else { return Ok(()) };
        match files.as_slice() {
            [file] if self.options.unique => {
                self.totals.unique += 1;
                self.findings.add_unique(file)
            }
            [_, _, ..] if !self.options.isolate || self.spans_series(&files) => {
                let count = files.len() as u64;
                let group = Group {
                    len: first.key.len,
                    data: first.data,
                    files: count,
                    names: files.iter().map(|file| file.names.len() as u64).sum(),
                    copies: count,
                    wasted: first.data.saturating_mul(count - 1),
                    implied: self.is_implied(class, count),
                };
                self.totals.groups += 1;
                self.totals.redundant += count - 1;
                self.totals.wasted += group.wasted;
                self.findings.add(&group, &files)
            }
            _ => Ok(()),
        }
    }

    fn spans_series(&self, files: &[File]) -> bool {
        let origin = |name: &Name| self.roots.get(name.root as usize).and_then(|root| root.origin.as_ref());
        let series = files.iter().flat_map(|file| &file.names).filter_map(origin);
        series.map(|origin| (&origin.host, &origin.label)).collect::<BTreeSet<_>>().len() > 1
    }

    /// Whether the files lie in as many equal directories, one in each, so that telling these is
    /// enough.
    fn is_implied(&self, class: &[StoredFile], count: u64) -> bool {
        let dirs: BTreeSet<u32> = class.iter().map(|file| file.dir).collect();
        let hashes: BTreeSet<_> =
            dirs.iter().map(|dir| self.infos.get(*dir as usize).and_then(|info| info.hash)).collect();
        dirs.len() as u64 == count
            && class.len() as u64 == count
            && matches!(hashes.first(), Some(Some(_)))
            && hashes.len() == 1
    }
}
