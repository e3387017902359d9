//! Equal files and directories, partly equal files and shared ranges, from what a repository
//! knows: no source is opened.
//!
//! Snapshots are walked to the entries of files. What a file's bytes are follows from its map:
//! the chunks of a byte sequence depend on its bytes alone, so equal bytes have equal chunks.

mod classes;
mod content;
mod equal_dirs;
mod partly;
mod ranges;
mod walk;

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Instant;

use jiff::Timestamp;

use super::found::Findings;
use super::paths::Root;
use super::sorter::{Sorter, Temporary};
use super::{Filters, Report};
use crate::error::Result;
use crate::format::tree::Entry;
use crate::id::SnapshotId;
use crate::observe::{Event, Observer, Stop};
use crate::repo::catalog::Catalog;
use crate::repo::snapshots::Listed;
use classes::{Collector, Walk};
use walk::Walked;

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
#[derive(Debug, Clone)]
pub struct Options {
    /// Where what does not fit in memory goes.
    pub temporary: Temporary,
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
        walk: Walk { roots: &roots, dirs: &dirs, infos: &infos },
        findings: Findings::new(Sorter::new(&options.temporary)),
        totals: &mut totals,
        partly: partly.as_mut(),
    };
    collector.take(&files, stop)?;
    let found = collector.findings.finish()?;
    totals.seconds = begin.elapsed().as_secs_f64();
    let (partly, ranges) = partly.map(partly::Found::finish).unwrap_or_default();
    let relations = Relations { dirs: dir_groups, partly, ranges };
    Ok(Report { roots, found, totals, left_out: Vec::new(), relations: Some(relations) })
}
