//! Thin pools that fill up: what is kept holds room that they may need more.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};

use super::find;
use super::keep::Keeper;
use crate::lvm::{self, Lv};

/// How often it is looked how full they are.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The pools of this run's volumes.
#[derive(Default)]
pub(super) struct Pools {
    all: Vec<Lv>,
    /// Of those that were found above the limit, the uuids.
    full: BTreeSet<String>,
}

impl Pools {
    /// Finds those of these volumes.
    pub fn find(&mut self, all: &[Lv], volumes: &[Lv]) {
        let uuids: BTreeSet<&String> =
            volumes.iter().filter_map(|volume| volume.pool_uuid.as_ref()).collect();
        self.all = uuids.into_iter().filter_map(|uuid| find(all, uuid)).cloned().collect();
    }

    /// Whether a volume's pool was found above the limit.
    pub fn is_full(&self, volume: &Lv) -> bool {
        volume.pool_uuid.as_ref().is_some_and(|pool| self.full.contains(pool))
    }

    /// Does `work` and looks at the pools before, meanwhile and after.
    pub fn watch<T>(&mut self, keeper: &Keeper, work: impl FnOnce() -> T) -> T {
        self.look(keeper);
        let (done, wait) = bounded::<()>(0);
        thread::scope(|scope| {
            scope.spawn(move || {
                while !self.all.is_empty() && wait.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout)
                {
                    self.look(keeper);
                }
                self.look(keeper);
            });
            let result = work();
            drop(done);
            result
        })
    }

    /// What is kept in those that have passed the limit is dropped at once. True if anything was.
    pub fn look(&mut self, keeper: &Keeper) -> bool {
        let mut is_dropped = false;
        for pool in self.all.iter().filter(|pool| !self.full.contains(&pool.uuid)).collect::<Vec<_>>() {
            match lvm::pool_use(pool) {
                Ok(used) if used.is_above(keeper.pool_limit()) => {
                    self.full.insert(pool.uuid.clone());
                    is_dropped |= keeper.drop_kept_in(pool, used);
                }
                Ok(_) => {}
                Err(e) => keeper.notice(format!("{}: how full it is is not known: {e}", pool.path())),
            }
        }
        is_dropped
    }
}
