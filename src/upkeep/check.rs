//! Finding out what is damaged, and what that hurts.
//!
//! The structure is always checked whole: configuration, index, the table of contents of every
//! pack, every snapshot, and that each node and chunk which a snapshot needs is where it should
//! be. The chunks themselves are read if that is asked for, all or a part of them. Only if
//! something is damaged are the snapshots walked again, for the paths that are hurt.

mod blame;
mod clerk;
mod findings;
mod foreign;
mod frames;
mod hurts;
mod needed;
mod packs;
mod part;
mod structure;
pub mod verify;

use jiff::Timestamp;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::format::bad::Bad;
use crate::id::{PackId, SnapshotId};
use crate::observe::{Event, Observer, Stop};
use crate::repo::catalog::Catalog;
use crate::repo::snapshots::Snapshots;
use crate::repo::state::Remembered;
use crate::repo::{Repo, cannot_write, layout, read_config_copy};
use crate::text::format_size;

pub use findings::Lost;
pub use part::Part;

use findings::Findings;

/// How thoroughly to check.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CheckOptions {
    /// Which packs' data is read; only of those known to be damaged if it is `None`.
    pub read_data: Option<Part>,
    /// The time that the ledger is compared with, and gets.
    pub now: Timestamp,
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// What is damaged.
    pub object: String,
    /// What is wrong with it.
    pub why: String,
    /// Which paths of which snapshots need it, as far as they fit a list.
    pub hurts: Vec<String>,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Snapshots that were checked.
    pub snapshots: u64,
    /// Packs whose table of contents was checked.
    pub packs: u64,
    /// Chunks in these packs.
    pub chunks: u64,
    /// Packs whose data was read.
    pub packs_read: u64,
    /// Bytes of packs that were read for their data.
    pub bytes_read: u64,
    /// Packs that are due to be read by age, and were not for lack of a higher limit.
    pub packs_due: u64,
    /// Their length.
    pub bytes_due: u64,
    /// All damage.
    pub damaged: Vec<Damage>,
    /// What is not damage but worth knowing.
    pub notes: Vec<String>,
}

/// What a check found, for a repair.
pub struct Examined {
    /// What is said of it.
    pub report: CheckReport,
    /// Places in packs that cannot be read.
    pub bad: Bad,
    /// What snapshots need and cannot have.
    pub lost: Lost,
    /// Snapshots whose objects are damaged.
    pub snapshots: Vec<SnapshotId>,
}

/// Whether an error speaks of damage, or of a medium that fails.
pub fn is_damage(error: &Error) -> bool {
    findings::damage_of(error).is_some()
}

/// Checks a repository.
pub fn run(repo: &Repo, options: &CheckOptions, observer: &dyn Observer, stop: &Stop) -> Result<CheckReport> {
    examine(repo, options, observer, stop).map(|examined| examined.report)
}

/// Checks a repository; all that is known of the damage.
pub fn examine(
    repo: &Repo,
    options: &CheckOptions,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Examined> {
    let mut findings = Findings::default();
    check_configs(repo, &mut findings)?;
    let vanished = check_index(repo, &mut findings, observer, stop)?;
    let catalog = repo.catalog(&Muted(observer), stop)?;
    catalog.shun_bad()?;
    let known = known_bad(repo, &mut findings)?;
    let packs = packs::Packs {
        repo,
        catalog: &catalog,
        part: options.read_data,
        now: options.now,
        known: &known.value,
        findings: &mut findings,
        observer,
        stop,
    }
    .check()?;
    catalog.index()?.set_bad(findings.bad.clone());
    let snapshots = repo.snapshots()?;
    for (id, error) in &snapshots.damaged {
        findings.add(&format!("snapshot {id}"), findings::reason(error));
    }
    structure::check(repo, &catalog, &snapshots, &mut findings, observer, stop)?;
    findings.vanished(&vanished);
    remember(repo, &catalog, &known, options, &findings)?;
    findings.forgive(&known.value);
    if findings.any() {
        hurts::find(&catalog, &snapshots, &mut findings, observer, stop)?;
    }
    foreign::note(repo, &mut findings);
    let (bad, lost) = (catalog.index()?.bad().clone(), std::mem::take(&mut findings.lost));
    let report = report(&catalog, &snapshots, packs, options, findings)?;
    catalog.close(observer)?;
    let snapshots = snapshots.damaged.iter().map(|(id, _)| *id).collect();
    Ok(Examined { report, bad, lost, snapshots })
}

/// What was known to be bad.
fn known_bad(repo: &Repo, findings: &mut Findings) -> Result<Remembered<Bad>> {
    let known = repo.remembered::<Bad>()?;
    for (name, error) in &known.damaged {
        let why = format!("{}; varv check --read-data finds out again what it told", findings::reason(error));
        findings.add(name, why);
    }
    Ok(known)
}

/// What was to be remembered, as far as anything can be written: on a full disk or a medium that
/// is read-only, what was found is told, and backups find out by themselves or go on being careful.
fn if_writable(remembered: Result<()>) -> Result<()> {
    match remembered {
        Err(error) if cannot_write(&error) => Ok(()),
        done => done,
    }
}

/// Remembers what is bad, so that no backup relies on it; or that all is there again.
fn remember(
    repo: &Repo,
    catalog: &Catalog,
    known: &Remembered<Bad>,
    options: &CheckOptions,
    findings: &Findings,
) -> Result<()> {
    if !repo.is_locked() {
        return Ok(());
    }
    if options.read_data.is_some_and(|part| part.is_whole()) {
        if_writable(repo.forget_damaged(known))?;
    }
    let mut bad = catalog.index()?.bad().clone();
    match findings.lacks() {
        true => bad.suspects = repo.snapshot_ids()?.into_iter().collect(),
        false => {
            bad.suspects.clear();
            let _ = catalog.index()?.clear_suspects();
        }
    }
    if_writable(repo.set_bad(&bad))
}

fn report(
    catalog: &Catalog,
    snapshots: &Snapshots,
    packs: packs::Counts,
    options: &CheckOptions,
    mut findings: Findings,
) -> Result<CheckReport> {
    if matches!(options.read_data, Some(part @ Part::Share { .. }) if !part.is_whole()) {
        findings.note(format!(
            "the data of {} of {} packs was read, {} of {}; other days read others",
            packs.packs_read,
            packs.packs,
            format_size(packs.bytes_read),
            format_size(packs.bytes)
        ));
    }
    if packs.packs_left > 0 {
        findings.note(format!(
            "{} packs, {}, are due too; the next runs read them, the oldest first",
            packs.packs_left,
            format_size(packs.bytes_left)
        ));
    }
    let (damaged, notes) = findings.finish();
    Ok(CheckReport {
        snapshots: (snapshots.listed.len() + snapshots.damaged.len()) as u64,
        packs: packs.packs,
        chunks: catalog.index()?.counts()?.chunks,
        packs_read: packs.packs_read,
        bytes_read: packs.bytes_read,
        packs_due: packs.packs_left,
        bytes_due: packs.bytes_left,
        damaged,
        notes,
    })
}

/// Each copy of the configuration for itself; opening was content with one.
fn check_configs(repo: &Repo, findings: &mut Findings) -> Result<()> {
    for name in layout::CONFIGS {
        match read_config_copy(&**repo.store(), name) {
            Ok(signed) if !signed.is_authentic(&repo.keys().config_mac()) => {
                findings.add(name, "it was changed by somebody without the key".into());
            }
            Ok(signed) if signed.config == *repo.config() => {}
            Ok(signed) if signed.config.generation < repo.config().generation => {
                findings.note(format!("{name} is older than its other copy: a change of it was interrupted"));
            }
            Ok(_) => findings.add(name, "it is not the same as its other copy".into()),
            Err(error) => findings.error(error)?,
        }
    }
    Ok(())
}

/// Whether the index can be relied on; makes it anew if not. The packs that it misses.
fn check_index(
    repo: &Repo,
    findings: &mut Findings,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Vec<PackId>> {
    observer.event(Event::Phase { name: "checking the index", bytes: None });
    let state = repo.inspect_index()?;
    if let Some(why) = &state.stale
        && !repo.list_packs()?.is_empty()
    {
        findings.note(format!("the index was made anew: {why}"));
    }
    if state.stale.is_none() && state.unknown > 0 {
        findings.note(format!("the index did not know {} pack(s); now it does", state.unknown));
    }
    if let Some(error) = state.damaged {
        // The packs are the truth: what it says must not spoil the rest of the check.
        let made =
            match repo.rebuild_index(&Muted(observer), stop).and_then(|catalog| catalog.close(observer)) {
                Ok(()) => "it was made anew, as varv index rebuild does",
                Err(e) if e.is_out_of_space() || repo.is_full() => {
                    repo.remove_index()?;
                    "it was removed, and the next command for which there is room makes it anew"
                }
                Err(e) => return Err(e),
            };
        let object = format!("{}/{}", layout::INDEX, layout::INDEX_FILE);
        findings.add(&object, format!("{}; {made}", findings::reason(&error)));
    }
    Ok(state.vanished)
}

/// Passes on all but notices: what opening the index notices, the check says itself and better.
struct Muted<'a>(&'a dyn Observer);

impl Observer for Muted<'_> {
    fn event(&self, event: Event) {
        if !matches!(event, Event::Notice(_)) {
            self.0.event(event);
        }
    }
}
