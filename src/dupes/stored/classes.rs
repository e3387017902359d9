//! Files of snapshots with one content, to groups: names of one inode together, and a path of one
//! host once, in whatever snapshots it is.
//!
//! ```text
//! path     u32 host · path · u8 0 · record of the walk
//! inode    u32 host · u8 1 · u64 device · u64 inode · path · u8 0 · record; of files with one
//!          name u8 0, and the rest as before
//! ```

use std::collections::BTreeSet;

use super::super::Totals;
use super::super::class::Class;
use super::super::found::{File, Findings, Name};
use super::super::paths::{DirId, Dirs, Root};
use super::super::sorter::{Sorted, Sorter, Temporary};
use super::walk::{DirHash, DirInfo, StoredFile};
use super::{Key, Options, partly};
use crate::error::Result;
use crate::observe::Stop;

/// What was walked.
#[derive(Clone, Copy)]
pub struct Walk<'a> {
    /// The places.
    pub roots: &'a [Root],
    /// Their directories.
    pub dirs: &'a Dirs,
    /// What those hold.
    pub infos: &'a [DirInfo],
}

/// Makes groups.
pub struct Collector<'a> {
    /// What is looked for.
    pub options: &'a Options,
    /// Where.
    pub walk: Walk<'a>,
    /// What was found.
    pub findings: Findings,
    /// What was counted.
    pub totals: &'a mut Totals,
    /// What wants to know names.
    pub partly: Option<&'a mut partly::Found>,
}

/// One content, while its names are met.
struct Met {
    key: Key,
    data: u64,
    paths: Sorter,
    names: u64,
    dirs: u64,
    last_dir: DirId,
    /// The hash that all of the directories have.
    hash: Option<DirHash>,
}

impl Collector<'_> {
    /// Takes all files, sorted by content.
    pub fn take(&mut self, files: &Sorted, stop: &Stop) -> Result<()> {
        let mut met: Option<Met> = None;
        let mut written = Vec::new();
        let mut records = files.records()?;
        while let Some(record) = records.next()? {
            let file = StoredFile::read(record)?;
            if met.as_ref().is_some_and(|met| met.key != file.key)
                && let Some(met) = met.take()
            {
                stop.check()?;
                self.end(met)?;
            }
            let hash = self.walk.infos.get(file.dir as usize).and_then(|info| info.hash);
            let met = met.get_or_insert_with(|| Met::new(&file, hash, &self.options.temporary));
            met.names += 1;
            if file.dir != met.last_dir {
                met.last_dir = file.dir;
                met.dirs += 1;
                met.hash = met.hash.filter(|known| Some(*known) == hash);
            }
            self.walk.put_path(&file, &mut written);
            written.extend_from_slice(record);
            met.paths.push(&written)?;
        }
        met.map_or(Ok(()), |met| self.end(met))
    }

    fn end(&mut self, met: Met) -> Result<()> {
        let Met { key, data, paths, names, dirs, hash, .. } = met;
        let mut class = Class::new(&self.options.temporary);
        let mut last = None;
        for_each_file(self.walk, &self.distinct(paths)?, |file| {
            self.totals.hard_links += file.names.len() as u64 - 1;
            if let Some(partly) = &mut self.partly {
                partly.name(&key, file);
            }
            class.add(file, None)?;
            last = Some(file.clone());
            Ok(())
        })?;
        match (class.count(), last) {
            (1, Some(file)) if self.options.unique => {
                self.totals.unique += 1;
                self.findings.add_unique(&file)
            }
            (2.., _) if !self.options.isolate || self.spans_series(class.roots()) => {
                // Where the files lie in as many equal directories, one in each, telling these is enough.
                let implied = dirs == class.count() && names == class.count() && hash.is_some();
                let group = self.findings.add((key.len, data), implied, &class.finish()?)?;
                self.totals.groups += 1;
                self.totals.redundant += group.files - 1;
                self.totals.wasted = self.totals.wasted.saturating_add(group.wasted);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The names by inode, those of one path once.
    fn distinct(&self, paths: Sorter) -> Result<Sorted> {
        let mut out = Sorter::of_class(&self.options.temporary);
        let (mut before, mut written) = (Vec::new(), Vec::new());
        let paths = paths.finish()?;
        let mut records = paths.records()?;
        while let Some(record) = records.next()? {
            let path = path_len(record, 4);
            let (name, stored) = record.split_at(path);
            if name == before {
                continue;
            }
            before.clear();
            before.extend_from_slice(name);
            let StoredFile { inode, .. } = StoredFile::read(stored)?;
            let (host, path) = name.split_at(4);
            written.clear();
            written.extend_from_slice(host);
            written.push(u8::from(inode.links > 1));
            written.extend_from_slice(&inode.device.to_be_bytes());
            written.extend_from_slice(&inode.inode.to_be_bytes());
            written.extend_from_slice(path);
            written.extend_from_slice(stored);
            out.push(&written)?;
        }
        out.finish()
    }

    fn spans_series(&self, roots: &BTreeSet<u32>) -> bool {
        let origin = |root: &u32| self.walk.roots.get(*root as usize).and_then(|root| root.origin.as_ref());
        let series = roots.iter().filter_map(origin).map(|origin| (&origin.host, &origin.label));
        series.collect::<BTreeSet<_>>().len() > 1
    }
}

impl Met {
    fn new(first: &StoredFile, hash: Option<DirHash>, temporary: &Temporary) -> Self {
        let paths = Sorter::of_class(temporary);
        Self { key: first.key, data: first.data, paths, names: 0, dirs: 1, last_dir: first.dir, hash }
    }
}

impl Walk<'_> {
    /// Writes a file's host and path.
    fn put_path(&self, file: &StoredFile, out: &mut Vec<u8>) {
        let wanted = self.roots.get(file.root as usize).and_then(host);
        let number = self.roots.iter().position(|root| host(root) == wanted).unwrap_or_default();
        let mut path = Vec::new();
        self.dirs.path(file.dir, &mut path);
        out.clear();
        out.extend_from_slice(&(number as u32).to_be_bytes());
        out.extend_from_slice(&path);
        out.extend_from_slice(&file.name);
        out.push(0);
    }
}

fn host(root: &Root) -> Option<&str> {
    root.origin.as_ref().map(|origin| origin.host.as_str())
}

/// Where a path that begins at `start` ends, with the zero behind it.
fn path_len(record: &[u8], start: usize) -> usize {
    let rest = record.get(start..).unwrap_or_default();
    record.len().min(start + rest.iter().position(|&byte| byte == 0).map_or(rest.len(), |end| end + 1))
}

/// Calls `each` with every file and its names.
fn for_each_file(walk: Walk, inodes: &Sorted, mut each: impl FnMut(&File) -> Result<()>) -> Result<()> {
    /// Host, whether there may be more names, device and inode.
    const KEY_LEN: usize = 4 + 1 + 16;
    let mut file: Option<(Vec<u8>, File)> = None;
    let mut records = inodes.records()?;
    while let Some(record) = records.next()? {
        let stored = StoredFile::read(record.split_at(path_len(record, KEY_LEN)).1)?;
        let key = record.get(..KEY_LEN).unwrap_or_default();
        let mut path = Vec::new();
        let root = walk.dirs.path(stored.dir, &mut path);
        path.extend_from_slice(&stored.name);
        let name = Name { root, path };
        match &mut file {
            Some((of, file)) if *of == key && stored.inode.links > 1 => file.names.push(name),
            other => {
                let next = File { inode: stored.inode, copy: 0, names: vec![name] };
                if let Some((_, file)) = other.replace((key.to_vec(), next)) {
                    each(&file)?;
                }
            }
        }
    }
    file.map_or(Ok(()), |(_, file)| each(&file))
}
