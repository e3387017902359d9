//! Which two snapshots a comparison over time means, and what differs between them.

use std::collections::BTreeSet;

use super::diff::{Each, Side, diff};
use super::resolve::{Picked, Selection, Series, as_of, by_prefix, find_path, roots, series_of, whole_paths};
use crate::error::{Error, Result};
use crate::observe::Stop;
use crate::repo::catalog::Catalog;
use crate::repo::snapshots::{LATEST, Listed, Snapshots};
use crate::text::escape;
use crate::time::When;

/// What is compared with what.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair<'s> {
    /// The whole path; empty means all roots.
    pub path: Vec<u8>,
    /// The earlier side.
    pub before: &'s Listed,
    /// The later side.
    pub after: &'s Listed,
}

/// The snapshots of a path's history as of two times. Without a path, those of each root that
/// the history ever had: roots of one label may be backed up by turns.
pub fn pairs<'s>(series: &Series<'s>, since: &When, at: Option<&When>) -> Result<Vec<Pair<'s>>> {
    let paths = match series.path.is_empty() {
        true => series.snapshots.iter().flat_map(|listed| roots(&listed.snapshot)).collect(),
        false => BTreeSet::from([series.path.clone()]),
    };
    let is_whole = series.path.is_empty();
    let mut pairs = Vec::with_capacity(paths.len());
    for path in paths {
        let mut holds = |listed: &Listed| {
            Ok((!is_whole || roots(&listed.snapshot).any(|root| root == path)).then_some(()))
        };
        let before = as_of(&series.snapshots, Some(since), &mut holds)?;
        let after = as_of(&series.snapshots, at, &mut holds)?;
        let (Some(Picked { listed: before, .. }), Some(Picked { listed: after, .. })) = (before, after)
        else {
            continue;
        };
        if (before.snapshot.time, before.id) > (after.snapshot.time, after.id) {
            return Err(Error::Refused("--since is later than --at: nothing can have changed".into()));
        }
        pairs.push(Pair { path, before, after });
    }
    Ok(pairs)
}

/// One side of a comparison as the user named it.
#[derive(Debug, Clone)]
pub struct Point {
    /// As it was written: maybe an id or a unique prefix of one.
    pub text: String,
    /// As a time, if it can be one; else what is wrong with it.
    pub when: Result<When, String>,
}

/// The two snapshots that were named, and the path that one of them has at least.
pub fn pair_of<'s>(
    catalog: &Catalog,
    selection: &Selection,
    found: &'s Snapshots,
    points: [&Point; 2],
    path: Option<&[u8]>,
) -> Result<Pair<'s>> {
    let [before, after] = [
        point(catalog, selection, found, points[0], path)?,
        point(catalog, selection, found, points[1], path)?,
    ];
    let Some(path) = path else { return Ok(Pair { path: Vec::new(), before, after }) };
    for path in whole_paths(path)? {
        for listed in [before, after] {
            if find_path(catalog, &listed.snapshot, &path)?.is_some() {
                return Ok(Pair { path, before, after });
            }
        }
    }
    Err(Error::NotFound(format!("{} is in neither of the two snapshots", escape(path))))
}

/// What is the beginning of an id is one, even if it could be a time as well.
fn point<'s>(
    catalog: &Catalog,
    selection: &Selection,
    found: &'s Snapshots,
    point: &Point,
    path: Option<&[u8]>,
) -> Result<&'s Listed> {
    if point.text == LATEST {
        return selection.named(found, LATEST, path);
    }
    let is_hex = point.text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let named = is_hex.then(|| by_prefix(found, &point.text));
    match (named, &point.when) {
        (Some(Ok(_)), _) => selection.named(found, &point.text, path),
        (Some(Err(error)), Err(_)) => Err(error),
        (None, Err(_)) => Err(Error::Refused(format!(
            "'{}' is neither the id of a snapshot nor a time: write a1b2c3d4, 2026-11-20 or 3D",
            point.text
        ))),
        (_, Ok(when)) => {
            let series = series_of(catalog, selection, found, path)?;
            let picked = as_of(&series.snapshots, Some(when), &mut |_| Ok(Some(())))?;
            picked.map(|picked| picked.listed).ok_or(Error::Internal("a history without snapshots"))
        }
    }
}

impl Pair<'_> {
    /// Calls `each` with all that differs.
    pub fn diff(&self, catalog: &Catalog, stop: &Stop, each: &mut Each) -> Result<()> {
        let side = |listed: &Listed| match self.path.is_empty() {
            true => {
                let tree = listed.snapshot.tree.root();
                tree.map(Side::Roots).map_err(|e| Error::damaged(format!("snapshot {}", listed.id), e))
            }
            false => Ok(find_path(catalog, &listed.snapshot, &self.path)?.map_or(Side::Nothing, Side::Entry)),
        };
        if self.before.snapshot.tree == self.after.snapshot.tree {
            return Ok(());
        }
        diff(catalog, &self.path, side(self.before)?, side(self.after)?, stop, each)
    }
}
