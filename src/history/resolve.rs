//! Which snapshot, and which path in it, is meant.
//!
//! A path that is in the snapshots of more than one host and label is never guessed at: without
//! something that selects one of them, it is refused with the list of them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use jiff::tz::Offset;

use crate::error::{Error, IoContext, Result};
use crate::format::snapshot::Snapshot;
use crate::format::tree::Entry;
use crate::repo::Repo;
use crate::repo::catalog::Catalog;
use crate::repo::nodes::{find_entry, find_root};
use crate::repo::snapshots::{LATEST, Listed, Snapshots};
use crate::text::{escape, unescape};
use crate::time::When;

/// How many sources are looked at to name some below a path that is none.
const SOURCES_NAMED: usize = 1000;

/// What the user said about the snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Just this one: its id, a unique prefix of it, or the word for the newest one that fits.
    pub snapshot: Option<String>,
    /// Of each host and label the newest that is not after this, or the first one.
    pub at: Option<When>,
    /// Only those of this host.
    pub host: Option<String>,
    /// Only those of this series.
    pub label: Option<String>,
    /// Only those with this tag.
    pub tag: Option<String>,
}

/// What was meant.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The snapshot.
    pub listed: Listed,
    /// The path's entry in it; `None` means all roots, if no path was given.
    pub entry: Option<Entry>,
    /// The whole path as the snapshot has it; empty if none was given.
    pub path: Vec<u8>,
    /// What the user should know: snapshots that could not be read and so were not considered,
    /// and that there is none as old as was asked for.
    pub notices: Vec<String>,
}

/// Finds the newest snapshot that has `path`, or that of the time that was selected; without a
/// path the newest one.
pub fn resolve(
    repo: &Repo,
    catalog: &Catalog,
    selection: &Selection,
    path: Option<&[u8]>,
) -> Result<Resolved> {
    let found = repo.snapshots()?;
    let chosen = selection.choose_for(&found, path)?;
    let at = selection.at.as_ref();
    let (picked, entry, path) = match path {
        None => {
            let picked = as_of(&chosen, at, &mut |_| Ok(Some(())))?.ok_or_else(|| nothing_fits(&found))?;
            (picked.listed, None, Vec::new())
        }
        Some(path) => {
            let (listed, entry, path) = resolve_path(catalog, &chosen, at, path, &found)?;
            (listed, Some(entry), path)
        }
    };
    let mut notices = selection.damaged(&found);
    notices.extend(at.and_then(|at| too_early(at, &chosen, picked)));
    notices.extend(gone_since(at, &chosen, picked, &path));
    Ok(Resolved { listed: picked.clone(), entry, path, notices })
}

impl Selection {
    /// The snapshots that fit but for their time, oldest first.
    pub fn choose<'s>(&self, found: &'s Snapshots) -> Result<Vec<&'s Listed>> {
        self.choose_for(found, None)
    }

    /// The same for a path that is looked for in them.
    fn choose_for<'s>(&self, found: &'s Snapshots, path: Option<&[u8]>) -> Result<Vec<&'s Listed>> {
        match &self.snapshot {
            Some(prefix) => Ok(vec![self.named(found, prefix, path)?]),
            None => Ok(found.listed.iter().filter(|listed| self.fits(&listed.snapshot)).collect()),
        }
    }

    /// The one snapshot with this id or unique prefix of it, if it fits; or the newest that fits and has the
    /// path's root.
    pub fn named<'s>(&self, found: &'s Snapshots, prefix: &str, path: Option<&[u8]>) -> Result<&'s Listed> {
        if prefix == LATEST {
            let paths = path.map(whole_paths).transpose()?.unwrap_or_default();
            return found.latest(|Listed { snapshot, .. }| {
                let holds = paths.iter().any(|path| holds_root(snapshot, path));
                self.fits(snapshot) && (paths.is_empty() || holds)
            });
        }
        let listed = by_prefix(found, prefix)?;
        match self.fits(&listed.snapshot) {
            true => Ok(listed),
            false => Err(Error::Refused(format!(
                "snapshot {} is not of the host, label or tag that was given",
                listed.id.short()
            ))),
        }
    }

    /// Notices of the snapshots that could not be read and may be meant.
    pub fn damaged(&self, found: &Snapshots) -> Vec<String> {
        match self.snapshot.as_deref() {
            None | Some(LATEST) => found.damaged.iter().map(|(_, error)| error.to_string()).collect(),
            Some(_) => Vec::new(),
        }
    }

    fn fits(&self, snapshot: &Snapshot) -> bool {
        let is = |wanted: &Option<String>, value: &str| wanted.as_ref().is_none_or(|wanted| wanted == value);
        is(&self.host, &snapshot.host)
            && is(&self.label, &snapshot.label)
            && self.tag.as_ref().is_none_or(|tag| snapshot.tags.contains(tag))
    }
}

/// The snapshot with this id or unique prefix of one, or what is wrong with it.
pub fn by_prefix<'s>(found: &'s Snapshots, prefix: &str) -> Result<&'s Listed> {
    let damaged = found.damaged.iter().find(|(id, _)| id.to_string().starts_with(prefix));
    match (found.by_prefix(prefix), damaged) {
        (Err(Error::NotFound(_)), Some((_, error))) => Err(error.duplicate()),
        (result, _) => result,
    }
}

/// A snapshot that was picked by time, and what it was asked for.
pub struct Picked<'s, T> {
    /// The snapshot.
    pub listed: &'s Listed,
    /// What `has` found in it.
    pub found: T,
}

/// Of `snapshots`, oldest first, those for which `has` finds something count. Among them the
/// newest one not after `at`; the first one if all are; the newest one without `at`. Where
/// backups are counted and there are fewer, the first one.
pub fn as_of<'s, T>(
    snapshots: &[&'s Listed],
    at: Option<&When>,
    has: &mut dyn FnMut(&Listed) -> Result<Option<T>>,
) -> Result<Option<Picked<'s, T>>> {
    let (split, mut skipped) = match at {
        Some(When::Moment(time)) => {
            (snapshots.partition_point(|listed| listed.snapshot.time <= time.timestamp()), 0)
        }
        Some(When::Backups(count)) => (snapshots.len(), *count),
        None => (snapshots.len(), 0),
    };
    let mut first = None;
    for &listed in snapshots[..split].iter().rev().chain(&snapshots[split..]) {
        let Some(found) = has(listed)? else { continue };
        first = Some(Picked { listed, found });
        if skipped == 0 {
            break;
        }
        skipped -= 1;
    }
    Ok(first)
}

/// What to tell if nothing as old as asked for is there.
pub fn too_early(at: &When, chosen: &[&Listed], picked: &Listed) -> Option<String> {
    let series = of_series(chosen, picked);
    let is_short = match at {
        When::Moment(time) => picked.snapshot.time > time.timestamp(),
        When::Backups(count) => series.len() <= *count,
    };
    is_short.then(|| {
        format!(
            "there is no snapshot as old as that: {} of {} is used",
            picked.id.short(),
            shown_time(picked)
        )
    })
}

/// What to tell if there is a newer snapshot as of the same time, of the same root, without the path.
fn gone_since(at: Option<&When>, chosen: &[&Listed], picked: &Listed, path: &[u8]) -> Option<String> {
    let not_after = |listed: &&&Listed| match at {
        None => true,
        Some(When::Moment(time)) => listed.snapshot.time <= time.timestamp(),
        Some(When::Backups(_)) => false,
    };
    let series = of_series(chosen, picked);
    let newest = series.iter().filter(not_after).rfind(|listed| holds_root(&listed.snapshot, path))?;
    (newest.snapshot.time > picked.snapshot.time).then(|| {
        format!(
            "the snapshot {} of {} does not have it any more: {} of {} is used",
            newest.id.short(),
            shown_time(newest),
            picked.id.short(),
            shown_time(picked)
        )
    })
}

/// Whether the path is one of the snapshot's roots, or below one.
fn holds_root(snapshot: &Snapshot, path: &[u8]) -> bool {
    roots(snapshot).any(|root| below(&root, path).is_some())
}

/// The snapshots of the same host and label.
fn of_series<'s>(chosen: &[&'s Listed], one: &Listed) -> Vec<&'s Listed> {
    let same = |listed: &&&Listed| series(listed) == series(one);
    chosen.iter().filter(same).copied().collect()
}

/// Host and label.
fn series(listed: &Listed) -> (&str, &str) {
    (&listed.snapshot.host, &listed.snapshot.label)
}

/// What all snapshots of one host and label say of a path, or of all that they hold.
#[derive(Debug)]
pub struct Series<'s> {
    /// Those that hold the path's root, oldest first.
    pub snapshots: Vec<&'s Listed>,
    /// The whole path; empty means all roots.
    pub path: Vec<u8>,
}

/// The one host and label that `path` is in, whether or not its newest snapshot still has it.
pub fn series_of<'s>(
    catalog: &Catalog,
    selection: &Selection,
    found: &'s Snapshots,
    path: Option<&[u8]>,
) -> Result<Series<'s>> {
    let chosen = selection.choose_for(found, path)?;
    let Some(path) = path else {
        let mut newest: BTreeMap<_, &Listed> = BTreeMap::new();
        newest.extend(chosen.iter().map(|listed| (series(listed), *listed)));
        return match newest.len() {
            0 => Err(nothing_fits(found)),
            1 => Ok(Series { snapshots: chosen, path: Vec::new() }),
            _ => Err(ambiguous("what is asked for", &newest.into_values().collect::<Vec<_>>())),
        };
    };
    let (listed, _, path) = resolve_path(catalog, &chosen, None, path, found)?;
    let holds = |listed: &&Listed| holds_root(&listed.snapshot, &path);
    Ok(Series { snapshots: of_series(&chosen, listed).into_iter().filter(holds).collect(), path })
}

/// Of each host and label, the newest of these snapshots or that of a time, by their time.
pub fn one_of_each_series<'s>(chosen: &[&'s Listed], at: Option<&When>) -> Result<Vec<&'s Listed>> {
    let mut picked = Vec::new();
    for of_one in by_series(chosen).into_values() {
        picked.extend(as_of(&of_one, at, &mut |_| Ok(Some(())))?.map(|picked| picked.listed));
    }
    picked.sort_by_key(|listed| (listed.snapshot.time, listed.id));
    Ok(picked)
}

fn by_series<'s>(chosen: &[&'s Listed]) -> BTreeMap<(&'s str, &'s str), Vec<&'s Listed>> {
    let mut all: BTreeMap<_, Vec<&Listed>> = BTreeMap::new();
    for &listed in chosen {
        all.entry(series(listed)).or_default().push(listed);
    }
    all
}

fn nothing_fits(found: &Snapshots) -> Error {
    Error::NotFound(match found.listed.is_empty() {
        true => "there is no snapshot yet".into(),
        false => "no snapshot is of the host, label or tag that was given: see varv snapshots".into(),
    })
}

fn resolve_path<'s>(
    catalog: &Catalog,
    chosen: &[&'s Listed],
    at: Option<&When>,
    path: &[u8],
    found: &Snapshots,
) -> Result<(&'s Listed, Entry, Vec<u8>)> {
    if chosen.is_empty() {
        return Err(nothing_fits(found));
    }
    for name in whole_paths(path)? {
        let mut picked = Vec::new();
        for of_one in by_series(chosen).into_values() {
            picked.extend(as_of(&of_one, at, &mut |listed| find_path(catalog, &listed.snapshot, &name))?);
        }
        if picked.len() > 1 {
            let candidates: Vec<&Listed> = picked.iter().map(|picked| picked.listed).collect();
            return Err(ambiguous(&escape(&name), &candidates));
        }
        if let Some(Picked { listed, found }) = picked.pop() {
            return Ok((listed, found, name));
        }
    }
    let whole = whole_paths(path)?.pop().unwrap_or_default();
    let below: BTreeSet<String> = chosen
        .iter()
        .flat_map(|listed| roots(&listed.snapshot))
        .filter(|root| below(&whole, root).is_some())
        .map(|root| escape(&root))
        .take(SOURCES_NAMED)
        .collect();
    let hint = match below.is_empty() {
        true => "varv ls and varv find show what is there".to_string(),
        false => format!("the sources below it are each on their own: {}", Vec::from_iter(below).join(", ")),
    };
    Err(Error::NotFound(format!(
        "'{}' is in none of the {} snapshots that were looked at: {hint}",
        escape(path),
        chosen.len()
    )))
}

fn ambiguous(what: &str, candidates: &[&Listed]) -> Error {
    let mut text = format!(
        "{what} is in snapshots of more than one host or label: choose with --host, --label or --snapshot"
    );
    for listed in candidates {
        let (host, label) = series(listed);
        let _ = write!(
            text,
            "\n      host {host}, label {label}: {} of {}",
            listed.id.short(),
            shown_time(listed)
        );
    }
    Error::Refused(text)
}

fn shown_time(Listed { snapshot, .. }: &Listed) -> String {
    let zone = Offset::from_seconds(snapshot.offset).unwrap_or(Offset::UTC);
    snapshot.time.display_with_offset(zone).to_string()
}

/// The whole paths that `path` may stand for, the likelier first: what does not look like a file
/// path is a stream or a logical volume, if there is one of that name.
pub fn whole_paths(path: &[u8]) -> Result<Vec<Vec<u8>>> {
    let absolute = absolute(path)?;
    Ok(match is_file_path(path) {
        true => vec![absolute],
        false => vec![path.to_vec(), absolute],
    })
}

fn is_file_path(path: &[u8]) -> bool {
    let first = path.split(|&byte| byte == b'/').next().unwrap_or_default();
    matches!(first, b"" | b"." | b"..")
}

/// By its words alone: what is asked for need not exist any more.
fn absolute(path: &[u8]) -> Result<Vec<u8>> {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let mut whole = PathBuf::new();
    for part in std::path::absolute(path).at("find", path)?.components() {
        match part {
            Component::ParentDir => {
                whole.pop();
            }
            part => whole.push(part),
        }
    }
    Ok(whole.into_os_string().into_vec())
}

/// A path's entry in a snapshot, reading no more nodes than lead to it.
pub fn find_path(catalog: &Catalog, snapshot: &Snapshot, path: &[u8]) -> Result<Option<Entry>> {
    let tree = snapshot.tree.root().map_err(|e| Error::damaged("a snapshot", e))?;
    let mut around: Vec<Vec<u8>> = roots(snapshot).collect();
    // One root may lie inside of another; the inner one was backed up for itself.
    around.sort_by_key(|root| std::cmp::Reverse(root.len()));
    for root in around {
        let Some(below) = below(&root, path) else { continue };
        let entry = find_root(catalog, tree.clone(), &root)?;
        if let Some(entry) = entry.map(|entry| descend(catalog, entry, below)).transpose()?.flatten() {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// The roots of the snapshot that lie below the entry and are not in it, by their paths below it, as
/// where other file systems were left out of one source and are sources themselves.
pub fn roots_apart(catalog: &Catalog, resolved: &Resolved) -> Result<Vec<Vec<u8>>> {
    let mut apart = Vec::new();
    for root in roots(&resolved.listed.snapshot) {
        let (Some(entry), Some(rest)) = (&resolved.entry, below(&resolved.path, &root)) else { continue };
        let rest = rest.strip_prefix(b"/").unwrap_or(rest);
        if rest.is_empty() || entry.dir().is_none() {
            continue;
        }
        let found = descend(catalog, entry.clone(), rest)?;
        if found.is_none_or(|found| found.dir().is_some_and(|dir| dir.entries == 0)) {
            apart.push(rest.to_vec());
        }
    }
    Ok(apart)
}

/// The paths of a snapshot's roots.
pub fn roots(snapshot: &Snapshot) -> impl Iterator<Item = Vec<u8>> {
    snapshot.roots.iter().filter_map(|root| unescape(&root.path))
}

/// The roots that lie below another one, whose tree may have them too. They are listed as roots only:
/// what an outer one has of them may be less.
pub fn inner_roots(snapshot: &Snapshot) -> HashSet<Vec<u8>> {
    let all: HashSet<Vec<u8>> = roots(snapshot).collect();
    let is_inner = |root: &&Vec<u8>| above(root).any(|path| all.contains(path));
    all.iter().filter(is_inner).cloned().collect()
}

/// All directories that a whole path is in.
fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(at, _)| &path[..at.max(1)]).filter(|above| above.len() < path.len())
}

/// What of `path` is left below `root`; `None` if it is not below it.
fn below<'p>(root: &[u8], path: &'p [u8]) -> Option<&'p [u8]> {
    let rest = path.strip_prefix(root)?;
    match rest.first() {
        None | Some(b'/') => Some(rest),
        Some(_) if root == b"/" => Some(rest),
        Some(_) => None,
    }
}

fn descend(catalog: &Catalog, mut entry: Entry, path: &[u8]) -> Result<Option<Entry>> {
    for name in path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
        let Some(dir) = entry.dir() else { return Ok(None) };
        match find_entry(catalog, dir, name)? {
            Some(found) => entry = found,
            None => return Ok(None),
        }
    }
    Ok(Some(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_below_roots_by_whole_names() {
        assert_eq!(below(b"/a", b"/a"), Some(&b""[..]));
        assert_eq!(below(b"/a", b"/a/b/c"), Some(&b"/b/c"[..]));
        assert_eq!(below(b"/a", b"/ab"), None);
        assert_eq!(below(b"/", b"/ab"), Some(&b"ab"[..]));
        assert_eq!(below(b"/a/b", b"/a"), None);
    }

    #[test]
    fn only_what_looks_like_a_file_path_is_surely_one() {
        for path in [&b"/a"[..], b"./a", b"../a", b".", b".."] {
            assert_eq!(whole_paths(path).unwrap().len(), 1, "{path:?}");
        }
        for path in [&b"dump.sql"[..], b"vg/root", b".hidden", b"..."] {
            assert_eq!(whole_paths(path).unwrap()[0], path, "{path:?}");
        }
    }

    #[test]
    fn dots_are_resolved_by_words() {
        assert_eq!(absolute(b"/a/./b//c/../d/").unwrap(), b"/a/b/d");
        assert_eq!(absolute(b"/../..").unwrap(), b"/");
        assert_eq!(absolute(b"/\xff/x").unwrap(), b"/\xff/x");
    }
}
