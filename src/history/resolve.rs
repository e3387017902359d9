//! Which snapshot, and which path in it, is meant.
//!
//! A path that is in the snapshots of more than one host and label is never guessed at: without
//! something that selects one of them, it is refused with the list of them.

use std::collections::BTreeMap;
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
use crate::repo::snapshots::{Listed, Snapshots};
use crate::text::{escape, unescape};

/// What the user said about the snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Just this one: its id or a unique prefix of it.
    pub snapshot: Option<String>,
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
    /// Snapshots that could not be read, and so were not considered.
    pub notices: Vec<String>,
}

/// Finds the newest snapshot that has `path`; without a path the newest one.
pub fn resolve(
    repo: &Repo,
    catalog: &Catalog,
    selection: &Selection,
    path: Option<&[u8]>,
) -> Result<Resolved> {
    let found = repo.snapshots()?;
    let chosen = selection.choose(&found)?;
    let (listed, entry, path) = match path {
        None => {
            let newest = chosen.last().ok_or_else(|| nothing_fits(&found))?;
            ((*newest).clone(), None, Vec::new())
        }
        Some(path) => {
            let (listed, entry, path) = resolve_path(catalog, &chosen, path, &found)?;
            (listed.clone(), Some(entry), path)
        }
    };
    let notices = match selection.snapshot {
        None => found.damaged.iter().map(|(_, error)| error.to_string()).collect(),
        Some(_) => Vec::new(),
    };
    Ok(Resolved { listed, entry, path, notices })
}

impl Selection {
    /// The snapshots that fit, oldest first.
    pub fn choose<'s>(&self, found: &'s Snapshots) -> Result<Vec<&'s Listed>> {
        let Some(prefix) = &self.snapshot else {
            return Ok(found.listed.iter().filter(|listed| self.fits(&listed.snapshot)).collect());
        };
        let damaged = found.damaged.iter().find(|(id, _)| id.to_string().starts_with(prefix));
        match (found.by_prefix(prefix), damaged) {
            (Err(Error::NotFound(_)), Some((_, error))) => Err(error.duplicate()),
            (Err(error), _) => Err(error),
            (Ok(listed), _) if self.fits(&listed.snapshot) => Ok(vec![listed]),
            (Ok(listed), _) => Err(Error::Refused(format!(
                "snapshot {} is not of the host, label or tag that was given",
                listed.id.short()
            ))),
        }
    }

    fn fits(&self, snapshot: &Snapshot) -> bool {
        let is = |wanted: &Option<String>, value: &str| wanted.as_ref().is_none_or(|wanted| wanted == value);
        is(&self.host, &snapshot.host)
            && is(&self.label, &snapshot.label)
            && self.tag.as_ref().is_none_or(|tag| snapshot.tags.contains(tag))
    }
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
    path: &[u8],
    found: &Snapshots,
) -> Result<(&'s Listed, Entry, Vec<u8>)> {
    if chosen.is_empty() {
        return Err(nothing_fits(found));
    }
    for name in whole_paths(path)? {
        let mut newest = newest_of_each_series(catalog, chosen, &name)?;
        if newest.len() > 1 {
            return Err(ambiguous(&name, &newest));
        }
        if let Some((listed, entry)) = newest.pop() {
            return Ok((listed, entry, name));
        }
    }
    Err(Error::NotFound(format!(
        "'{}' is in none of the {} snapshots that were looked at: varv ls and varv find show what is there",
        escape(path),
        chosen.len()
    )))
}

/// For each host and label, the newest snapshot that has the path.
fn newest_of_each_series<'s>(
    catalog: &Catalog,
    chosen: &[&'s Listed],
    path: &[u8],
) -> Result<Vec<(&'s Listed, Entry)>> {
    let mut newest: BTreeMap<(&str, &str), (&Listed, Entry)> = BTreeMap::new();
    for listed in chosen.iter().rev() {
        let series = (listed.snapshot.host.as_str(), listed.snapshot.label.as_str());
        if !newest.contains_key(&series)
            && let Some(entry) = find_path(catalog, &listed.snapshot, path)?
        {
            newest.insert(series, (listed, entry));
        }
    }
    Ok(newest.into_values().collect())
}

fn ambiguous(path: &[u8], newest: &[(&Listed, Entry)]) -> Error {
    let mut text = format!(
        "{} is in snapshots of more than one host or label: choose with --host, --label or --snapshot",
        escape(path)
    );
    for (Listed { id, snapshot }, _) in newest {
        let zone = Offset::from_seconds(snapshot.offset).unwrap_or(Offset::UTC);
        let time = snapshot.time.display_with_offset(zone);
        let _ = write!(
            text,
            "\n      host {}, label {}: newest is {} of {time}",
            snapshot.host,
            snapshot.label,
            id.short()
        );
    }
    Error::Refused(text)
}

/// The whole paths that `path` may stand for, the likelier first: what does not look like a file
/// path is a stream or a logical volume, if there is one of that name.
fn whole_paths(path: &[u8]) -> Result<Vec<Vec<u8>>> {
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
    let mut roots: Vec<Vec<u8>> = snapshot.roots.iter().filter_map(|root| unescape(&root.path)).collect();
    // One root may lie inside of another; the inner one was backed up for itself.
    roots.sort_by_key(|root| std::cmp::Reverse(root.len()));
    for root in roots {
        let Some(below) = below(&root, path) else { continue };
        let entry = find_root(catalog, tree.clone(), &root)?;
        if let Some(entry) = entry.map(|entry| descend(catalog, entry, below)).transpose()?.flatten() {
            return Ok(Some(entry));
        }
    }
    Ok(None)
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
