//! Giving back the space of what no snapshot needs.
//!
//! A plan is made under the shared lock: what snapshots need is marked, bases of delta frames
//! included, and packs of which little is needed are chosen to be written anew. Under the
//! exclusive lock the snapshots are read again, and what has come meanwhile is marked too. Then,
//! in this order: unfinished objects and forgotten snapshots go, packs that nobody needs go, and
//! round by round new packs take the place of old ones, durable and in the index before these go.

mod frames;
mod kept;
mod plan;

use std::time::Duration;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::observe::{Event, Observer, Stop};
use crate::repo::catalog::Catalog;
use crate::repo::snapshots::Snapshots;
use crate::repo::{Intent, Repo};

pub use plan::{PackUse, Plan, Summary};

use super::needs::Needs;
use super::rewrite::remove::Remover;
use super::rewrite::{self, Rewritten};
use kept::Kept;

/// Of what is kept, so much may be unused, in per cent. As restic's.
pub const MAX_UNUSED_DEFAULT: f64 = 5.0;

/// What is read before old packs go, at most, but for what passes it at once.
const ROUND_BYTES: u64 = 512 << 20;

/// How far to go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PruneOptions {
    /// How much may stay unused, in per cent of what is kept; 100 leaves all packs as they are
    /// that are needed in part.
    pub max_unused: f64,
    /// So many bytes of packs are written anew at most.
    pub max_repack: Option<u64>,
}

impl Default for PruneOptions {
    fn default() -> Self {
        Self { max_unused: MAX_UNUSED_DEFAULT, max_repack: None }
    }
}

/// A plan, and what it was made of.
pub struct Planned {
    /// What is to be done.
    pub plan: Plan,
    needs: Needs,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Unfinished objects of interrupted runs that were removed.
    pub unfinished_removed: u64,
    /// Forgotten snapshots that cannot be brought back any more.
    pub snapshots_removed: u64,
    /// Packs that nobody needed and that were removed.
    pub packs_removed: u64,
    /// Their length.
    pub bytes_removed: u64,
    /// Packs that were written anew.
    pub packs_repacked: u64,
    /// Their length before.
    pub bytes_repacked: u64,
    /// Packs that took their place.
    pub packs_written: u64,
    /// Their length.
    pub bytes_written: u64,
    /// Packs that were to be written anew, and were left since they are damaged.
    pub packs_damaged: u64,
    /// What packs take less than before.
    pub bytes_freed: u64,
}

/// Plans; for the holder of the shared lock.
pub fn plan(repo: &Repo, options: &PruneOptions, observer: &dyn Observer, stop: &Stop) -> Result<Planned> {
    let (catalog, _) = open(repo, observer, stop)?;
    let needs = Needs::of(&catalog, &readable(repo)?, observer, stop)?;
    let plan = plan_of(&needs, &catalog, options, observer, stop)?;
    // An index that cannot be written is of no concern before something is removed.
    let _ = catalog.close();
    Ok(Planned { plan, needs })
}

/// Executes a plan: gives the shared lock back and takes the exclusive one.
pub fn execute(
    repo: &mut Repo,
    planned: Planned,
    options: &PruneOptions,
    lock_wait: Duration,
    command: &str,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<(Plan, Pruned)> {
    repo.change_lock(Intent::Change, lock_wait, command, stop)?;
    let mut done = Pruned { unfinished_removed: repo.store().sweep()?, ..Pruned::default() };
    let (catalog, has_index) = open(repo, observer, stop)?;
    let Planned { plan, needs } = renewed(repo, &catalog, planned, options, observer, stop)?;
    repo.still_locked()?;
    done.snapshots_removed = repo.drop_forgotten()?;
    remove_idle_protections(repo)?;
    let mut remover = Remover { repo, catalog: &catalog, has_index, observer };
    remover.remove(&plan.unused.iter().map(|pack| (pack.id, pack.len)).collect::<Vec<_>>())?;
    done.packs_removed = plan.unused.len() as u64;
    done.bytes_removed = plan.bytes_unused();
    match remover.has_index {
        true => repack(&mut remover, &needs, &plan, options, &mut done, stop)?,
        false if plan.repack.is_empty() => {}
        false => observer.event(Event::Notice(
            "the disk was full: run varv prune again to write packs anew that are needed in part".into(),
        )),
    }
    done.bytes_freed = (done.bytes_removed + done.bytes_repacked).saturating_sub(done.bytes_written);
    if remover.has_index {
        catalog.tidy()?;
        catalog.close()?;
    }
    Ok((plan, done))
}

fn plan_of(
    needs: &Needs,
    catalog: &Catalog,
    options: &PruneOptions,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Plan> {
    let kept = Kept { needs, max_unused: options.max_unused };
    Ok(Plan::new(kept.uses(catalog, observer, stop)?, options))
}

/// Writes the chosen packs anew.
fn repack(
    remover: &mut Remover,
    needs: &Needs,
    plan: &Plan,
    options: &PruneOptions,
    done: &mut Pruned,
    stop: &Stop,
) -> Result<()> {
    if plan.repack.is_empty() {
        return Ok(());
    }
    let bytes = plan.repack.iter().flatten().map(|pack| pack.len).sum();
    remover.observer.event(Event::Phase { name: "writing packs anew", bytes: Some(bytes) });
    let kept = Kept { needs, max_unused: options.max_unused };
    let mut rewritten = Rewritten::default();
    for groups in rewrite::rounds(&plan.repack, ROUND_BYTES) {
        rewrite::round(remover, groups, &kept, &mut rewritten, stop)?;
    }
    done.packs_damaged = rewritten.packs_damaged;
    done.packs_repacked = rewritten.packs_before;
    done.bytes_repacked = rewritten.bytes_before;
    done.packs_written = rewritten.packs_after;
    done.bytes_written = rewritten.bytes_after;
    Ok(())
}

/// The repository's chunks, and whether that is the index on disk: on a full disk it cannot even
/// be opened, and one is made in memory.
fn open(repo: &Repo, observer: &dyn Observer, stop: &Stop) -> Result<(Catalog, bool)> {
    match repo.catalog(observer, stop) {
        Err(e) if repo.is_full() && !matches!(e, Error::Stopped(_)) && !e.is_damage() => {
            observer.event(Event::Notice(format!("{e}: the disk is full, the index is made in memory")));
            Ok((repo.catalog_in_memory(observer, stop)?, false))
        }
        opened => opened.map(|catalog| (catalog, true)),
    }
}

/// All snapshots; refused if one is damaged, since nobody knows what it needs.
fn readable(repo: &Repo) -> Result<Snapshots> {
    let found = repo.snapshots()?;
    match found.damaged.first() {
        None => Ok(found),
        Some((id, _)) => Err(Error::damaged(
            format!("snapshot {id}"),
            "what it needs is not known, so nothing is pruned: forget it, by its id, to go on without it",
        )),
    }
}

/// The plan, made anew if the repository is not as it was.
fn renewed(
    repo: &Repo,
    catalog: &Catalog,
    planned: Planned,
    options: &PruneOptions,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Planned> {
    let Planned { plan, needs } = planned;
    let snapshots = readable(repo)?;
    if needs.still_hold(catalog, &snapshots)? {
        return Ok(Planned { plan, needs });
    }
    let needs = needs.renewed(catalog, &snapshots, observer, stop)?;
    let plan = plan_of(&needs, catalog, options, observer, stop)?;
    Ok(Planned { plan, needs })
}

/// Protections of snapshots that are gone for good.
fn remove_idle_protections(repo: &Repo) -> Result<()> {
    let mut idle = repo.protected()?;
    for id in repo.snapshot_ids()? {
        idle.remove(&id);
    }
    let idle: Vec<_> = idle.into_iter().collect();
    if idle.is_empty() { Ok(()) } else { repo.unprotect(&idle) }
}
