//! What is kept for the next night, and what goes.

use super::Context;
use super::known::Past;
use super::pools::Pools;
use super::taken::Taken;
use super::unfinished::Unfinished;
use crate::backup::Outcome;
use crate::error::Result;
use crate::lvm::{self, Kind, Lv, PoolUse};
use crate::text::{escape, format_size};

/// Decides and does it, for the volumes whose locks are held.
pub(super) struct Keeper<'a> {
    context: &'a Context<'a>,
    volumes: &'a [Lv],
    pasts: &'a [Past],
}

impl<'a> Keeper<'a> {
    /// Of these volumes.
    pub fn new(context: &'a Context<'a>, volumes: &'a [Lv], pasts: &'a [Past]) -> Self {
        Self { context, volumes, pasts }
    }

    /// Tells the user.
    pub fn notice(&self, text: String) {
        self.context.notice(text);
    }

    /// Removes what earlier runs left behind: snapshots of this series that its newest backup was
    /// not made of. `unfinished` may be gone on with. True if there was any.
    pub fn remove_left_behind(&self, all: &[Lv], unfinished: Option<&Unfinished>) -> Result<bool> {
        let mut found = false;
        for (volume, past) in self.volumes.iter().zip(self.pasts) {
            let mark = self.context.mark(volume);
            let kept = past.kept.as_ref().map(|kept| &kept.uuid);
            let is_used = |lv: &Lv| Some(&lv.uuid) == kept || unfinished.is_some_and(|run| run.has(lv));
            let is_left = |lv: &&Lv| lvm::mark_of(lv).as_ref() == Some(&mark) && !is_used(lv);
            for left in all.iter().filter(is_left) {
                lvm::remove(left)?;
                self.notice(format!("{}: removed, an earlier run left it behind", left.path()));
                found = true;
            }
        }
        Ok(found)
    }

    /// How full a pool may be, in percent.
    pub fn pool_limit(&self) -> f64 {
        self.context.options.pool_limit
    }

    /// What is kept in a pool goes at once: the pool needs the room more. True if anything did.
    pub fn drop_kept_in(&self, pool: &Lv, used: PoolUse) -> bool {
        let (PoolUse { data, metadata }, limit) = (used, self.pool_limit());
        self.notice(format!(
            "{}: {data:.0} % of its data and {metadata:.0} % of its metadata are used, the limit is {limit:.0} %: nothing is kept in it",
            pool.path()
        ));
        if self.context.backup.dry_run {
            return false;
        }
        let kept = self.pasts.iter().filter_map(|past| past.kept.as_ref());
        let here = kept.filter(|kept| kept.pool_uuid.as_ref() == Some(&pool.uuid));
        here.map(|kept| self.remove(kept)).filter(|is_gone| *is_gone).count() > 0
    }

    /// Whether it is gone.
    fn remove(&self, snapshot: &Lv) -> bool {
        let removed = lvm::remove(snapshot);
        if let Err(e) = &removed {
            self.notice(format!("{} cannot be removed: {e}", snapshot.path()));
        }
        removed.is_ok()
    }

    /// The repository has its snapshot: what was kept is replaced, of volumes that are in it. The
    /// volumes of which a snapshot is kept are returned.
    pub fn finish(&self, mut taken: Taken, outcome: &Outcome, pools: &Pools) -> Result<Vec<String>> {
        if outcome.id.is_none() {
            return Ok(Vec::new());
        }
        let mut kept = Vec::new();
        for (volume, past) in self.volumes.iter().zip(self.pasts) {
            let path = escape(volume.path().as_bytes());
            if outcome.volumes.iter().all(|info| info.path != path) {
                continue;
            }
            // Of those in full pools nothing is left.
            if let Some(old) = past.kept.as_ref().filter(|old| !pools.is_full(old)) {
                self.remove(old);
            }
            if self.keeps(volume, pools) && self.keep(volume, &mut taken)? {
                kept.push(volume.path());
                if past.kept.is_none() {
                    self.tell_costs(volume);
                }
            }
        }
        Ok(kept)
    }

    fn keeps(&self, volume: &Lv, pools: &Pools) -> bool {
        // Two devices with one UUID confuse btrfs when it mounts.
        let is_twin =
            volume.kind == Kind::Thick && lvm::file_system(&volume.device).as_deref() == Some("btrfs");
        if is_twin && self.context.options.keep {
            self.notice(format!(
                "{}: no snapshot is kept, since btrfs would take it for the volume",
                volume.path()
            ));
        }
        self.context.options.keep && !pools.is_full(volume) && !is_twin
    }

    /// Thin ones need no device until the next night; of classic ones that have overflowed nothing
    /// can be told.
    fn keep(&self, volume: &Lv, taken: &mut Taken) -> Result<bool> {
        let snapshot = taken.of(volume)?;
        match volume.kind {
            Kind::Thin => lvm::set_active(snapshot, false)?,
            _ if lvm::has_overflowed(&snapshot.device)? => return Ok(false),
            _ => {}
        }
        Ok(taken.release(volume).is_some())
    }

    fn tell_costs(&self, volume: &Lv) {
        let cost = match volume.kind {
            Kind::Thin => "it holds the pool's room of what is overwritten until then".to_string(),
            _ => format!(
                "it takes room in the volume group ({} are free now), and writes to the volume are slower until then",
                format_size(volume.group_free)
            ),
        };
        self.notice(format!(
            "{}: a snapshot is kept, so that the next backup reads only what has changed: {cost}; --no-keep or varv lvm release do without",
            volume.path()
        ));
    }
}
