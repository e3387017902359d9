//! Reading and checking every byte that one snapshot, or a path in it, needs.
//!
//! Its trees and maps are followed, then each frame that holds one of its chunks is read and
//! decoded once, in the order in which packs were written. What is bad is remembered, so that the
//! next backup stores it anew.

use serde::Serialize;

use super::findings::Findings;
use super::needed::Needed;
use super::{Damage, hurts, if_writable, structure};
use crate::error::{Error, Result};
use crate::format::tree::Entry;
use crate::observe::{Observer, Stop};
use crate::repo::Repo;
use crate::repo::catalog::Catalog;
use crate::repo::marks::Marks;
use crate::repo::nodes::Entries;
use crate::repo::snapshots::{Listed, Snapshots};

/// What was verified, and what was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Files; all entries that are no directory.
    pub files: u64,
    /// Their length.
    pub bytes: u64,
    /// Packs of which frames were read.
    pub packs_read: u64,
    /// Bytes of frames that were read.
    pub bytes_read: u64,
    /// All damage.
    pub damaged: Vec<Damage>,
    /// What is not damage but worth knowing.
    pub notes: Vec<String>,
}

/// Verifies one snapshot, or one entry of it, which has the whole path `path`.
pub fn verify(
    repo: &Repo,
    catalog: &Catalog,
    (listed, path, entry): (&Listed, &[u8], Option<&Entry>),
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Verified> {
    let mut findings = Findings::default();
    let seen = Marks::default();
    let mut reading = Needed { catalog, observer, stop, seen, packs_read: 0, bytes_read: 0 };
    loop {
        let needed = structure::needed(repo, catalog, (listed, path, entry), &mut findings, observer, stop)?;
        if reading.read(&needed, &mut findings)? {
            break;
        }
        // Of what is bad there may be other copies, which are to be read then.
        remember(repo, catalog, &findings)?;
    }
    if findings.any() {
        match entry {
            Some(entry) => hurts::find_below(catalog, (listed, path, entry), &mut findings, observer, stop)?,
            None => {
                let only = Snapshots { listed: vec![listed.clone()], ..Snapshots::default() };
                hurts::find(catalog, &only, &mut findings, observer, stop)?;
            }
        }
    }
    let (files, bytes) = sums(catalog, listed, entry)?;
    let (damaged, notes) = findings.finish();
    Ok(Verified {
        files,
        bytes,
        packs_read: reading.packs_read,
        bytes_read: reading.bytes_read,
        damaged,
        notes,
    })
}

/// Leads nobody to what is bad, neither the rest of this nor backups.
fn remember(repo: &Repo, catalog: &Catalog, findings: &Findings) -> Result<()> {
    catalog.shun_bad()?;
    catalog.index()?.set_bad(findings.bad.clone());
    match repo.is_locked() {
        true => if_writable(repo.remember_bad(catalog)),
        false => Ok(()),
    }
}

/// Files and bytes, as far as the roots can be read.
fn sums(catalog: &Catalog, listed: &Listed, entry: Option<&Entry>) -> Result<(u64, u64)> {
    let of = |entry: &Entry| entry.dir().map_or((1, entry.size()), |dir| (dir.files, dir.bytes));
    if let Some(entry) = entry {
        return Ok(of(entry));
    }
    let tree = listed.snapshot.tree.root();
    let tree = tree.map_err(|e| Error::damaged(format!("snapshot {}", listed.id), e))?;
    let roots = Entries::of_roots(catalog, tree).map_while(Result::ok);
    let add = |(files, bytes): (u64, u64), (more, len): (u64, u64)| {
        (files.saturating_add(more), bytes.saturating_add(len))
    };
    Ok(roots.map(|entry| of(&entry)).fold((0, 0), add))
}
