//! Thin pools that fill up: what is kept holds room that they may need more.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};

use super::find;
use super::keep::Keeper;
use crate::error::Result;
use crate::lvm::{self, Lv};

/// How often it is looked how full they are.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The pools of this run's volumes.
pub(super) struct Pools(Vec<Lv>);

impl Pools {
    /// Of these volumes.
    pub fn of(all: &[Lv], volumes: &[Lv]) -> Self {
        let uuids: BTreeSet<&String> =
            volumes.iter().filter_map(|volume| volume.pool_uuid.as_ref()).collect();
        Self(uuids.into_iter().filter_map(|uuid| find(all, uuid)).cloned().collect())
    }

    /// Does `work` and looks at the pools before, meanwhile and after. What is kept in those that
    /// pass `limit` is dropped at once; they are returned.
    pub fn watch<T>(
        &self,
        limit: f64,
        keeper: &Keeper,
        work: impl FnOnce() -> Result<T>,
    ) -> (Result<T>, BTreeSet<String>) {
        let mut full = BTreeSet::new();
        self.look(limit, keeper, &mut full);
        let (done, wait) = bounded::<()>(0);
        thread::scope(|scope| {
            let watcher = scope.spawn(move || {
                while !self.0.is_empty() && wait.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                    self.look(limit, keeper, &mut full);
                }
                self.look(limit, keeper, &mut full);
                full
            });
            let result = work();
            drop(done);
            let full = watcher.join().unwrap_or_default();
            (result, full)
        })
    }

    fn look(&self, limit: f64, keeper: &Keeper, full: &mut BTreeSet<String>) {
        for pool in self.0.iter().filter(|pool| !full.contains(&pool.uuid)).collect::<Vec<_>>() {
            match lvm::pool_use(pool) {
                Ok(used) if used.is_above(limit) => {
                    full.insert(pool.uuid.clone());
                    keeper.drop_kept_in(pool, used, limit);
                }
                Ok(_) => {}
                Err(e) => keeper.notice(format!("{}: how full it is is not known: {e}", pool.path())),
            }
        }
    }
}
