//! Backing up logical volumes: snapshots of all, one snapshot of the repository, and what the next
//! night needs to know what has changed.
//!
//! All of it happens under the volumes' locks. Until the repository's snapshot is published, the
//! LVM snapshot of the night before stays, so that a run that fails costs nothing; from then on the
//! new one takes its place. What this run made is removed however it ends; after SIGKILL or a
//! power cut the next run finds it by its tags.

mod keep;
mod known;
mod pools;
mod taken;
mod unfinished;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use self::keep::Keeper;
use self::known::Past;
use self::pools::Pools;
use self::taken::Taken;
use self::unfinished::Unfinished;
use super::{BackupOptions, Outcome, Share, Source, Volume};
use crate::error::{Error, Result};
use crate::format::checkpoint::Checkpoint;
use crate::format::snapshot::LogicalVolume;
use crate::id::{Hasher, hex};
use crate::lvm::{self, FreeBlocks, InUse, Kind, Lock, Lv, Mark, Plan, Size};
use crate::observe::{Event, Observer, Stop};
use crate::repo::Repo;
use crate::repo::catalog::Catalog;
use crate::target::devices_below;

/// How to back up logical volumes.
#[derive(Debug, Clone)]
pub struct NightlyOptions {
    /// `VG/LV`, `VG`, patterns, `@TAG`.
    pub volumes: Vec<String>,
    /// Room of classic snapshots.
    pub snapshot_size: Size,
    /// Whether snapshots are kept for the next night.
    pub keep: bool,
    /// A pool that is as full as this, in percent, keeps nothing.
    pub pool_limit: f64,
    /// How much of what should be unchanged is read and compared.
    pub spot_check: Share,
    /// All is read when it was last read so long ago.
    pub full_every: Option<Duration>,
    /// Who says which blocks are free, if they are to be left out.
    pub free_blocks: Option<FreeBlocks>,
    /// Whether file systems are frozen while snapshots are taken.
    pub freeze: bool,
    /// Never backed up, and never frozen, since the run needs them: the repository, its index, ….
    pub needed: Vec<PathBuf>,
    /// Where volumes' locks are.
    pub locks: PathBuf,
    /// How long to wait for them.
    pub lock_wait: Duration,
}

/// What a night came to.
#[derive(Debug)]
pub struct Night {
    /// What was backed up.
    pub outcome: Outcome,
    /// Milliseconds between the first snapshot and the last one.
    pub spread_ms: u64,
    /// Volumes of which a snapshot is kept.
    pub kept: Vec<String>,
}

/// What all parts of a night share.
struct Context<'a> {
    repo: &'a Repo,
    catalog: &'a Catalog,
    backup: &'a BackupOptions,
    options: &'a NightlyOptions,
    observer: &'a dyn Observer,
    stop: &'a Stop,
}

/// Backs up the volumes, together with the sources in `backup`.
pub fn run(
    repo: &Repo,
    catalog: &Catalog,
    backup: &BackupOptions,
    options: &NightlyOptions,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Night> {
    let context = Context { repo, catalog, backup, options, observer, stop };
    let reserved: Vec<_> = options.needed.iter().flat_map(|path| devices_below(path)).collect();
    let selected = lvm::select(&lvm::list()?, &options.volumes, &reserved)?;
    for notice in selected.notices {
        observer.event(Event::Notice(notice));
    }
    if matches!(options.free_blocks, Some(FreeBlocks::Map(_))) && selected.volumes.len() != 1 {
        return Err(Error::Refused("a map of free blocks is of one volume: name just that".into()));
    }
    let _locks = context.lock(&selected.volumes)?;
    context.night(&selected.volumes, Pools::default())
}

impl<'a> Context<'a> {
    /// In the order of their uuids, so that two runs never wait for each other.
    fn lock(&self, volumes: &[Lv]) -> Result<Vec<Lock>> {
        let mut volumes: Vec<&Lv> = volumes.iter().collect();
        volumes.sort_by(|a, b| a.uuid.cmp(&b.uuid));
        let NightlyOptions { locks, lock_wait, .. } = self.options;
        volumes.iter().map(|lv| Lock::take(locks, &lv.uuid, &lv.path(), *lock_wait, self.stop)).collect()
    }

    /// All is looked at as it is now that nobody else works with the volumes; and again where room
    /// had to be made.
    fn night(&self, selected: &[Lv], mut pools: Pools) -> Result<Night> {
        let all = &lvm::list()?;
        let volumes: Vec<Lv> =
            selected.iter().filter_map(|volume| find(all, &volume.uuid)).cloned().collect();
        let snapshots = self.repo.snapshots()?;
        let pasts: Vec<Past> =
            volumes.iter().map(|volume| Past::of(volume, all, &snapshots, self.backup)).collect();
        let keeper = Keeper::new(self, &volumes, &pasts);
        let unfinished = Unfinished::find(self, &volumes, &pasts, all)?;
        if !self.backup.dry_run && keeper.remove_left_behind(all, unfinished.as_ref())? {
            return self.night(selected, pools);
        }
        let unfinished = unfinished.filter(|_| !self.backup.dry_run);
        let configs = self.group_configs(&volumes)?;
        pools.find(all, &volumes);
        let taken = match &unfinished {
            Some(unfinished) => Taken::again(self, &volumes, unfinished),
            None => self.take(&volumes),
        };
        let mut taken = match taken {
            Ok(taken) => taken,
            // LVM takes no snapshots in a pool that is full.
            Err(_) if pools.look(&keeper) => return self.night(selected, pools),
            Err(e) => return Err(e),
        };
        let checkpoint = unfinished.map(|unfinished| unfinished.checkpoint);
        let backup = self.with_volumes(&volumes, &pasts, all, &taken, configs, checkpoint.as_ref());
        let outcome =
            pools.watch(&keeper, || super::run(self.repo, self.catalog, &backup?, self.observer, self.stop));
        let outcome = outcome.inspect_err(|_| self.leave(&volumes, &mut taken, &pools))?;
        let spread_ms = taken.spread_ms();
        if outcome.id.is_some() {
            self.forget_checkpoints(&volumes);
        }
        let kept = keeper.finish(taken, &outcome, &pools)?;
        Ok(Night { outcome, spread_ms, kept })
    }

    fn take(&self, volumes: &[Lv]) -> Result<Taken<'_>> {
        if !self.backup.dry_run {
            self.forget_checkpoints(volumes);
        }
        let plan = Plan::new(volumes, self.options.snapshot_size, suffix()?)?;
        Taken::take(self, volumes, &plan)
    }

    /// The options, with the snapshots that were taken as sources. A run that goes on with another
    /// is of that one's time, as its snapshots are.
    fn with_volumes(
        &self,
        volumes: &[Lv],
        pasts: &[Past],
        all: &[Lv],
        taken: &Taken,
        configs: Vec<String>,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<BackupOptions> {
        let mut backup = self.backup.clone();
        if let Some(Checkpoint { snapshot, .. }) = checkpoint {
            (backup.time, backup.offset) = (snapshot.time, snapshot.offset);
        }
        for ((volume, past), group_config) in volumes.iter().zip(pasts).zip(configs) {
            let snapshot = taken.of(volume)?;
            backup.sources.push(Source::Volume(Box::new(Volume {
                name: Some(volume.path().into_bytes()),
                path: snapshot.device.clone(),
                known: past.known(self, volume, snapshot, all)?,
                spot_check: self.options.spot_check,
                lvm: Some(describe(volume, taken, group_config)?),
                used: self.used(volume, taken)?,
                finished: unfinished::finished(self, checkpoint, volume)?,
            })));
        }
        Ok(backup)
    }

    /// What a volume's file system uses, if all else is to be left out; nothing is where that is not
    /// known.
    fn used(&self, volume: &Lv, taken: &Taken) -> Result<Option<InUse>> {
        let Some(free_blocks) = &self.options.free_blocks else { return Ok(None) };
        let used = free_blocks.in_use(&taken.of(volume)?.device, volume.len, taken.is_frozen(volume))?;
        let not_known =
            |why: &String| self.notice(format!("{}: free blocks are not known: {why}", volume.path()));
        Ok(used.inspect_err(not_known).ok())
    }

    /// What a failed run has read is not read again if its snapshots stay; they do if that is
    /// worth it, and possible.
    fn leave(&self, volumes: &[Lv], taken: &mut Taken, pools: &Pools) {
        let has_overflowed =
            |lv: &Lv| lv.kind != Kind::Thin && lvm::has_overflowed(&lv.device).unwrap_or(true);
        let is_lost = volumes.iter().any(|volume| pools.is_full(volume)) || taken.all().any(has_overflowed);
        let is_of = |checkpoint: &Checkpoint| {
            let read = |lv: &Lv| checkpoint.volumes.iter().any(|volume| volume.lvm.snapshot_uuid == lv.uuid);
            taken.all().all(read)
        };
        let is_known = || self.repo.checkpoints().is_ok_and(|all| all.iter().any(is_of));
        if is_lost || !is_known() {
            return;
        }
        for snapshot in taken.all() {
            self.notice(format!(
                "{} stays, so that the next run goes on from here; varv lvm release removes it",
                snapshot.path()
            ));
        }
        taken.leave();
    }

    /// Of these volumes nothing is left to go on with.
    fn forget_checkpoints(&self, volumes: &[Lv]) {
        let is_over = |checkpoint: &Checkpoint| {
            let is_one = |uuid: &str| volumes.iter().any(|volume| volume.uuid == uuid);
            checkpoint.is_of_series(&self.backup.host, &self.backup.label)
                && checkpoint.volumes.iter().any(|volume| is_one(&volume.lvm.uuid))
        };
        if let Err(e) = self.repo.forget_checkpoints(is_over) {
            self.notice(format!("how far an earlier run came is not forgotten: {e}"));
        }
    }

    /// What is needed to make a volume's group anew: with the first of its volumes.
    fn group_configs(&self, volumes: &[Lv]) -> Result<Vec<String>> {
        let mut seen = BTreeSet::new();
        let config = |volume: &Lv| match seen.insert(volume.group_uuid.clone()) {
            true => lvm::group_config(&volume.group, &self.options.locks),
            false => Ok(String::new()),
        };
        volumes.iter().map(config).collect()
    }

    fn mark(&self, volume: &Lv) -> Mark {
        Mark {
            repository: self.repo.id().to_string(),
            series: series(&self.backup.host, &self.backup.label),
            volume: volume.uuid.clone(),
        }
    }

    fn notice(&self, text: String) {
        self.observer.event(Event::Notice(text));
    }
}

/// What is needed to know a volume again and to make it anew.
fn describe(volume: &Lv, taken: &Taken, group_config: String) -> Result<LogicalVolume> {
    Ok(LogicalVolume {
        uuid: volume.uuid.clone(),
        snapshot_uuid: taken.of(volume)?.uuid.clone(),
        segtype: volume.segtype.clone(),
        pool: volume.pool.clone().unwrap_or_default(),
        tags: volume.tags.clone(),
        extents: volume.extents.clone(),
        taken_after_ms: taken.after_ms(volume),
        group_config,
    })
}

/// Stands for a host and label, in a form that LVM takes as a tag.
fn series(host: &str, label: &str) -> String {
    let hash: [u8; 8] =
        Hasher::plain().update(host.as_bytes()).update(&[0]).update(label.as_bytes()).finish();
    hex(&hash)
}

/// Tells the snapshots of one run from all others, and people when they were taken.
fn suffix() -> Result<String> {
    let mut random = [0; 2];
    getrandom::fill(&mut random).map_err(|_| Error::Internal("the system gives no random bytes"))?;
    Ok(format!("{}-{}", Timestamp::now().strftime("%Y%m%d-%H%M%S"), hex(&random)))
}

fn find<'l>(all: &'l [Lv], uuid: &str) -> Option<&'l Lv> {
    all.iter().find(|volume| volume.uuid == uuid)
}

/// Whether so much time has passed since.
fn is_due(last: Option<Timestamp>, now: Timestamp, every: Option<Duration>) -> bool {
    let (Some(last), Some(every)) = (last, every) else { return false };
    now.duration_since(last).unsigned_abs() >= every && now > last
}

/// Whether `path` is on the file system of a volume.
fn is_on(path: &Path, volume: &Lv) -> bool {
    volume.number.is_some_and(|number| devices_below(path).contains(&number))
}
