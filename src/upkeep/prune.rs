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
use crate::format::checkpoint::Checkpoint;
use crate::observe::{Event, Observer, Stop};
use crate::repo::catalog::Catalog;
use crate::repo::checkpoints::{as_listed, is_too_old};
use crate::repo::snapshots::Snapshots;
use crate::repo::{Intent, Repo};

pub use plan::{Abandoned, PackUse, Plan, Summary};

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
    let plan = plan_of(repo, &needs, &catalog, options, observer, stop)?;
    // An index that cannot be written is of no concern before something is removed.
    let _ = catalog.close(observer);
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
    let unfinished_removed = repo.store().sweep()?;
    let run = Run { repo, options, observer, stop };
    let mut first = run.pass(Some(planned), ROUND_BYTES)?;
    first.done.unfinished_removed = unfinished_removed;
    if first.is_complete {
        return Ok((first.plan, first.done));
    }
    // What the first pass gave back may be room enough for an index on disk, and for new packs.
    let again = "the disk is full: free some space and run varv prune again to write packs anew that are needed in part";
    match run.pass(None, 0) {
        Ok(second) => {
            if !second.is_complete {
                observer.event(Event::Notice(again.into()));
            }
            Ok((first.plan, first.done.and(second.done)))
        }
        Err(e) if e.is_out_of_space() && first.done.packs_removed > 0 => {
            observer.event(Event::Notice(format!("{e}: {again}")));
            Ok((first.plan, first.done))
        }
        Err(e) => Err(e),
    }
}

/// How to prune.
struct Run<'a> {
    repo: &'a Repo,
    options: &'a PruneOptions,
    observer: &'a dyn Observer,
    stop: &'a Stop,
}

/// What a pass did.
struct Pass {
    plan: Plan,
    done: Pruned,
    /// Whether packs were written anew as planned: that needs an index on disk.
    is_complete: bool,
}

impl Run<'_> {
    /// Packs are written anew in rounds of so many bytes, at least one group each.
    fn pass(&self, planned: Option<Planned>, round_bytes: u64) -> Result<Pass> {
        let Self { repo, options, observer, stop } = *self;
        let (catalog, has_index) = open(repo, observer, stop)?;
        let Planned { plan, needs } = match planned {
            Some(planned) => renewed(repo, &catalog, planned, options, observer, stop)?,
            None => {
                let needs = Needs::of(&catalog, &readable(repo)?, observer, stop)?;
                Planned { plan: plan_of(repo, &needs, &catalog, options, observer, stop)?, needs }
            }
        };
        repo.still_locked()?;
        let mut done = Pruned { snapshots_removed: repo.drop_forgotten()?, ..Pruned::default() };
        remove_idle_protections(repo)?;
        let mut remover = Remover { repo, catalog: &catalog, has_index, observer, stop };
        remover.remove(&plan.unused.iter().map(|pack| (pack.id, pack.len)).collect::<Vec<_>>())?;
        done.packs_removed = plan.unused.len() as u64;
        done.bytes_removed = plan.bytes_unused();
        if remover.has_index {
            let kept = Kept { needs: &needs, max_unused: options.max_unused };
            repack(&mut remover, &kept, &plan, round_bytes, &mut done, stop)?;
        }
        done.bytes_freed = (done.bytes_removed + done.bytes_repacked).saturating_sub(done.bytes_written);
        // They hurt nobody.
        if let Err(e) = repo.forget_checkpoints(|unfinished| !is_needed(unfinished, &needs)) {
            observer.event(Event::Notice(e.to_string()));
        }
        let is_complete = remover.has_index || plan.repack.is_empty();
        if remover.has_index {
            catalog.tidy()?;
            catalog.close(observer)?;
        }
        Ok(Pass { plan, done, is_complete })
    }
}

impl Pruned {
    /// Both.
    fn and(self, other: Self) -> Self {
        Self {
            unfinished_removed: self.unfinished_removed + other.unfinished_removed,
            snapshots_removed: self.snapshots_removed + other.snapshots_removed,
            packs_removed: self.packs_removed + other.packs_removed,
            bytes_removed: self.bytes_removed + other.bytes_removed,
            packs_repacked: self.packs_repacked + other.packs_repacked,
            bytes_repacked: self.bytes_repacked + other.bytes_repacked,
            packs_written: self.packs_written + other.packs_written,
            bytes_written: self.bytes_written + other.bytes_written,
            packs_damaged: self.packs_damaged + other.packs_damaged,
            bytes_freed: self.bytes_freed + other.bytes_freed,
        }
    }
}

fn plan_of(
    repo: &Repo,
    needs: &Needs,
    catalog: &Catalog,
    options: &PruneOptions,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Plan> {
    let kept = Kept { needs, max_unused: options.max_unused };
    let mut plan = Plan::new(kept.uses(catalog, observer, stop)?, options);
    plan.abandoned = abandoned(repo, needs)?;
    Ok(plan)
}

/// Writes the chosen packs anew.
fn repack(
    remover: &mut Remover,
    kept: &Kept,
    plan: &Plan,
    round_bytes: u64,
    done: &mut Pruned,
    stop: &Stop,
) -> Result<()> {
    if plan.repack.is_empty() {
        return Ok(());
    }
    let bytes = plan.repack.iter().flatten().map(|pack| pack.len).sum();
    remover.observer.event(Event::Phase { name: "writing packs anew", bytes: Some(bytes) });
    let mut rewritten = Rewritten::default();
    for groups in rewrite::rounds(&plan.repack, round_bytes) {
        rewrite::round(remover, groups, kept, &mut rewritten, stop)?;
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
        Err(e)
            if e.is_out_of_space()
                || (repo.is_full() && !matches!(e, Error::Stopped(_)) && !e.is_damage()) =>
        {
            observer.event(Event::Notice(format!("{e}: the disk is full, the index is made in memory")));
            Ok((repo.catalog_in_memory(observer, stop)?, false))
        }
        opened => opened.map(|catalog| (catalog, true)),
    }
}

/// All snapshots, unfinished ones too; refused if one is damaged, since nobody knows what it needs.
fn readable(repo: &Repo) -> Result<Snapshots> {
    let mut found = repo.snapshots()?;
    found.unfinished = repo.checkpoints()?.iter().map(as_listed).collect::<Result<_>>()?;
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
    let plan = plan_of(repo, &needs, catalog, options, observer, stop)?;
    Ok(Planned { plan, needs })
}

/// Unfinished backups that nobody can go on with.
fn abandoned(repo: &Repo, needs: &Needs) -> Result<Vec<Abandoned>> {
    let mut all = repo.all_checkpoints()?;
    all.retain(|checkpoint| !is_needed(checkpoint, needs));
    Ok(all.into_iter().map(Abandoned::from).collect())
}

impl From<Checkpoint> for Abandoned {
    fn from(checkpoint: Checkpoint) -> Self {
        Self { is_too_old: is_too_old(&checkpoint), snapshot: checkpoint.snapshot }
    }
}

fn is_needed(checkpoint: &Checkpoint, needs: &Needs) -> bool {
    as_listed(checkpoint).is_ok_and(|it| needs.has(&it.id))
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
