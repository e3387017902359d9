//! Directories with equal content: names and bytes of all below them, whatever the metadata.

use std::collections::BTreeSet;

use super::super::found::Name;
use super::super::paths::{DirId, Dirs, Root};
use super::walk::DirInfo;

/// Equal directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EqualDirs {
    /// Length of all files below each.
    pub bytes: u64,
    /// How many files are below each.
    pub files: u64,
    /// The directories, at least two.
    pub dirs: Vec<Name>,
}

impl EqualDirs {
    /// What all but one of them take.
    pub fn bytes_wasted(&self) -> u64 {
        self.bytes.saturating_mul((self.dirs.len() as u64).saturating_sub(1))
    }
}

/// Groups of equal directories, those of the most bytes first; without those that follow from
/// equal directories above them.
pub fn groups(dirs: &Dirs, infos: &[DirInfo], roots: &[Root]) -> Vec<EqualDirs> {
    let is_told =
        |dir: &DirId| infos.get(*dir as usize).is_some_and(|info| info.hash.is_some() && info.bytes > 0);
    let mut ids: Vec<DirId> = (0..infos.len() as DirId).filter(is_told).collect();
    let hash = |dir: DirId| infos.get(dir as usize).and_then(|info| info.hash);
    ids.sort_unstable_by_key(|dir| (hash(*dir), *dir));
    let mut out = Vec::new();
    for class in ids.chunk_by(|a, b| hash(*a) == hash(*b)) {
        let Some(info) = class.first().and_then(|first| infos.get(*first as usize)) else { continue };
        if class.len() < 2 || follows_from_above(class, dirs, &hash) {
            continue;
        }
        let names = distinct(class, dirs, roots);
        if names.len() > 1 {
            out.push(EqualDirs { bytes: info.bytes, files: info.files, dirs: names });
        }
    }
    out.sort_by(|a, b| b.bytes_wasted().cmp(&a.bytes_wasted()).then_with(|| a.dirs.cmp(&b.dirs)));
    out
}

/// Whether each lies in a directory of its own, and all of these are equal.
fn follows_from_above(class: &[DirId], dirs: &Dirs, hash: &impl Fn(DirId) -> Option<[u8; 16]>) -> bool {
    let above: BTreeSet<DirId> = class.iter().map(|dir| dirs.above(*dir)).collect();
    let hashes: BTreeSet<_> = above.iter().map(|dir| hash(*dir)).collect();
    above.len() == class.len() && hashes.len() == 1 && !hashes.contains(&None)
}

/// Their paths; one host's path counts once, in whatever snapshots it is.
fn distinct(class: &[DirId], dirs: &Dirs, roots: &[Root]) -> Vec<Name> {
    let mut seen = BTreeSet::new();
    let mut names = Vec::new();
    for dir in class {
        let mut path = Vec::new();
        let root = dirs.path(*dir, &mut path);
        if path.len() > 1 {
            path.pop();
        }
        let origin = roots.get(root as usize).and_then(|root| root.origin.as_ref());
        if seen.insert((origin.map(|origin| &origin.host), path.clone())) {
            names.push(Name { root, path });
        }
    }
    names.sort();
    names
}
