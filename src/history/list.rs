//! Listing directories of a snapshot.

use std::collections::HashSet;

use super::resolve::{Resolved, inner_roots};
use crate::error::{Error, Result};
use crate::format::tree::Entry;
use crate::observe::Stop;
use crate::repo::catalog::Catalog;
use crate::repo::nodes::{Entries, push_name};

/// Calls `each` with the whole path and the entry of all that `resolved` lists: the roots if no
/// path was given, a directory's entries, anything else itself. `recursive` goes on into
/// directories, each right after itself; no path comes twice.
pub fn list(
    catalog: &Catalog,
    resolved: &Resolved,
    recursive: bool,
    stop: &Stop,
    each: &mut dyn FnMut(&[u8], &Entry) -> Result<()>,
) -> Result<()> {
    let entries = match &resolved.entry {
        None => {
            let tree = resolved.listed.snapshot.tree.root();
            let tree = tree.map_err(|e| Error::damaged(format!("snapshot {}", resolved.listed.id), e))?;
            Entries::of_roots(catalog, tree)
        }
        Some(entry) => match entry.dir() {
            None => return each(&resolved.path, entry),
            Some(dir) => Entries::of(catalog, dir),
        },
    };
    let inner =
        if resolved.entry.is_none() { inner_roots(&resolved.listed.snapshot) } else { HashSet::new() };
    let mut path = resolved.path.clone();
    let mut open = vec![(path.len(), entries)];
    while let Some((above_len, entries)) = open.last_mut() {
        let is_root = *above_len == 0;
        stop.check()?;
        path.truncate(*above_len);
        let Some(entry) = entries.next().transpose()? else {
            open.pop();
            continue;
        };
        push_name(&mut path, &entry.name);
        if !is_root && inner.contains(&path) {
            continue;
        }
        each(&path, &entry)?;
        if let Some(dir) = entry.dir().filter(|_| recursive) {
            open.push((path.len(), Entries::of(catalog, dir)));
        }
    }
    Ok(())
}
