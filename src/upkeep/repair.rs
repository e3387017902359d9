//! Repairing: what can be read of damaged packs is stored anew, what nothing needs any more goes,
//! and what is lost is named.
//!
//! A repair checks, makes a plan, and carries it out: new packs are durable and in the index
//! before an old one goes, and an old one goes only if no snapshot misses anything that may be in
//! it. So it never makes things worse: what could not be read today stays, and nobody is led to it.
//! Carried out again, or after it was interrupted, it finds done what it did.

mod plan;
mod rescue;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::id::PackId;
use crate::observe::{Event, Observer, Stop};
use crate::repo::catalog::Catalog;
use crate::repo::{Repo, layout, mend};
use crate::upkeep::check::{self, CheckOptions, Damage};

pub use plan::{PackPlan, Plan, SnapshotPlan, plan};
use rescue::Rescue;

/// What a repair did, or in a dry run would do, and what is damaged after it.
#[derive(Debug, Serialize)]
pub struct RepairReport {
    /// Whether nothing was done.
    pub dry_run: bool,
    /// The plan.
    #[serde(flatten)]
    pub plan: Plan,
    /// Packs that were written.
    pub packs_written: u64,
    /// Their length.
    pub bytes_written: u64,
    /// Unfinished objects of runs that were interrupted, removed.
    pub unfinished: u64,
    /// What is damaged still; in a dry run, what is damaged now.
    pub damaged: Vec<Damage>,
}

/// Plans, and carries the plan out unless it is a dry run.
pub fn run(
    repo: &Repo,
    options: &CheckOptions,
    dry_run: bool,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<RepairReport> {
    let (mut plan, mut damaged) = plan(repo, options, observer, stop)?;
    if !dry_run && !plan.packs_mended.is_empty() {
        let mended = std::mem::take(&mut plan.packs_mended);
        mend_packs(repo, &mended)?;
        // What could not be read without them can be now.
        (plan, damaged) = self::plan(repo, options, observer, stop)?;
        plan.packs_mended = mended;
    }
    let mut report =
        RepairReport { dry_run, plan, packs_written: 0, bytes_written: 0, unfinished: 0, damaged };
    if dry_run {
        return Ok(report);
    }
    let (packs, bytes) = execute(repo, &report.plan, observer, stop)?;
    report.unfinished = repo.store().sweep()?;
    (report.packs_written, report.bytes_written) = (packs, bytes);
    report.damaged = check::run(repo, options, observer, stop)?.damaged;
    Ok(report)
}

/// Writes packs as they were in place of what they are.
fn mend_packs(repo: &Repo, packs: &[PackId]) -> Result<()> {
    let (reader, listed) = (repo.pack_reader(), repo.list_packs()?);
    for id in packs {
        repo.still_locked()?;
        let bytes = match listed.get(id) {
            Some(len) => mend::pack(&reader, id, *len)?,
            None => None,
        };
        if let Some(bytes) = bytes {
            repo.store().replace(&layout::pack(id), &bytes)?;
        }
    }
    repo.store().barrier()
}

/// Carries a plan out, for the holder of the exclusive lock; how many packs were written, and
/// their length.
fn execute(repo: &Repo, plan: &Plan, observer: &dyn Observer, stop: &Stop) -> Result<(u64, u64)> {
    if !plan.configs.is_empty() {
        repo.rewrite_config()?;
    }
    plan.snapshots.iter().try_for_each(|snapshot| snapshot.execute(repo))?;
    let catalog = repo.catalog(observer, stop)?;
    plan.lead_elsewhere(&catalog)?;
    let written = save(repo, &catalog, plan, observer, stop)?;
    let removed: Vec<PackId> = plan.packs.iter().filter(|pack| pack.removed).map(|pack| pack.id).collect();
    repo.still_locked()?;
    catalog.index()?.remove_packs(&removed)?;
    for id in &removed {
        repo.store().remove(&layout::pack(id))?;
    }
    repo.store().barrier()?;
    let mut bad = plan.bad.clone();
    removed.iter().for_each(|id| drop(bad.packs.remove(id)));
    repo.set_bad(&bad)?;
    catalog.close(observer)?;
    Ok(written)
}

/// Stores anew what can be read of damaged packs and is nowhere else.
fn save(
    repo: &Repo,
    catalog: &Catalog,
    plan: &Plan,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<(u64, u64)> {
    let damaged: Vec<&PackPlan> = plan.packs.iter().filter(|pack| pack.chunks_saved > 0).collect();
    let bytes = damaged.iter().map(|pack| pack.bytes).sum();
    observer.event(Event::Phase { name: "saving what can be read", bytes: Some(bytes) });
    let mut rescue = Rescue::new(repo, catalog)?;
    for pack in damaged {
        stop.check()?;
        rescue::visit(catalog, &pack.id, pack.bytes, |part| rescue.take(part))?;
        observer.event(Event::Advance { bytes: pack.bytes, files: 0 });
    }
    let published = rescue.finish()?;
    repo.store().barrier()?;
    catalog.add(&published)?;
    let missing = plan.saved(catalog)?;
    if missing > 0 {
        return Err(Error::Internal("what was saved is not found again"));
    }
    Ok((published.len() as u64, published.iter().map(|pack| pack.record.len).sum()))
}
