//! The snapshots that a run takes, and its duty to remove them.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::unfinished::Unfinished;
use super::{Context, is_on};
use crate::error::{Error, Result};
use crate::lvm::{self, Frozen, Kind, Lv, Plan};
use crate::target::{is_swap, is_written_by_mount};

/// What is never frozen: the programs that take snapshots are there, or write there.
const NEVER_FROZEN: [&str; 10] =
    ["/", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/etc/lvm", "/run", "/dev"];

/// Snapshots of this run; those that are still here when it is dropped are removed.
pub(super) struct Taken<'a> {
    context: &'a Context<'a>,
    /// By the volume's uuid.
    snapshots: HashMap<String, Lv>,
    /// When each was there, in milliseconds after the first.
    after_ms: HashMap<String, u64>,
    /// Volumes whose file systems were frozen meanwhile, so that their journals are empty.
    frozen: HashSet<String>,
}

impl<'a> Taken<'a> {
    /// Takes a snapshot of each volume, and makes their devices be there.
    pub fn take(context: &'a Context<'a>, volumes: &[Lv], plan: &Plan) -> Result<Self> {
        // LVM freezes what is mounted; what is unmounted meanwhile has no need of it.
        let mounted = volumes.iter().filter(|volume| is_written_by_mount(&volume.device));
        let frozen = mounted.map(|volume| volume.uuid.clone()).collect();
        let mut taken = Self { context, snapshots: HashMap::new(), after_ms: HashMap::new(), frozen };
        // Thin ones first: the others may be held still meanwhile.
        let mut volumes: Vec<&Lv> = volumes.iter().collect();
        volumes.sort_by_key(|volume| volume.kind != Kind::Thin);
        let frozen = if context.options.freeze { freeze(context, &volumes)? } else { None };
        let mut first = None;
        let made = volumes.iter().try_for_each(|volume| {
            context.stop.check()?;
            lvm::create(volume, plan, &context.mark(volume))?;
            let after = first.get_or_insert_with(Instant::now).elapsed();
            taken.after_ms.insert(volume.uuid.clone(), after.as_millis() as u64);
            Ok(())
        });
        if let Some(Err(e)) = frozen.map(Frozen::thaw) {
            context.notice(format!("WARNING: {e}"));
        }
        // What is there is found before an error is looked at: it has to be removed then.
        taken.find(&volumes, plan)?;
        made?;
        taken.activate(volumes)?;
        Ok(taken)
    }

    /// Those of an interrupted run.
    pub fn again(context: &'a Context<'a>, volumes: &[Lv], unfinished: &Unfinished) -> Result<Self> {
        let uuids = || volumes.iter().map(|volume| volume.uuid.clone());
        let after_ms = volumes.iter().map(|volume| unfinished.after_ms(volume));
        let snapshots = uuids().zip(unfinished.snapshots.iter().cloned()).collect();
        let frozen = volumes.iter().filter(|volume| unfinished.left_out_free_blocks(volume));
        let frozen = frozen.map(|volume| volume.uuid.clone()).collect();
        let mut taken = Self { context, snapshots, after_ms: uuids().zip(after_ms).collect(), frozen };
        taken.activate(volumes).inspect_err(|_| taken.leave())?;
        Ok(taken)
    }

    /// Thin snapshots have no device at first.
    fn activate<'v>(&self, volumes: impl IntoIterator<Item = &'v Lv>) -> Result<()> {
        let mut thin = volumes.into_iter().filter(|volume| volume.kind == Kind::Thin);
        thin.try_for_each(|volume| lvm::set_active(self.of(volume)?, true))
    }

    fn find(&mut self, volumes: &[&Lv], plan: &Plan) -> Result<()> {
        let all = lvm::list()?;
        for volume in volumes {
            let (name, mark) = (plan.name(volume), self.context.mark(volume));
            let is_it = |lv: &&Lv| {
                lv.group_uuid == volume.group_uuid
                    && lv.name == name
                    && lvm::mark_of(lv).as_ref() == Some(&mark)
            };
            self.snapshots.extend(all.iter().find(is_it).map(|lv| (volume.uuid.clone(), lv.clone())));
        }
        Ok(())
    }

    /// The snapshot of a volume.
    pub fn of(&self, volume: &Lv) -> Result<&Lv> {
        self.snapshots.get(&volume.uuid).ok_or(Error::Internal("a snapshot that was taken is not there"))
    }

    /// Whether a volume's file system was frozen when its snapshot was taken.
    pub fn is_frozen(&self, volume: &Lv) -> bool {
        self.frozen.contains(&volume.uuid)
    }

    /// How long after the first one a volume's was there.
    pub fn after_ms(&self, volume: &Lv) -> u64 {
        self.after_ms.get(&volume.uuid).copied().unwrap_or_default()
    }

    /// Between the first one and the last.
    pub fn spread_ms(&self) -> u64 {
        self.after_ms.values().copied().max().unwrap_or_default()
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Lv> {
        self.snapshots.values()
    }

    /// Leaves all of them for a run that goes on with this one.
    pub fn leave(&mut self) {
        self.snapshots.clear();
    }

    /// Hands a snapshot out of this run's duty to remove it.
    pub fn release(&mut self, volume: &Lv) -> Option<Lv> {
        self.snapshots.remove(&volume.uuid)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        for snapshot in self.snapshots.values() {
            if let Err(e) = lvm::remove(snapshot) {
                self.context
                    .notice(format!("{} stays behind; the next run removes it: {e}", snapshot.path()));
            }
        }
    }
}

/// Holds thick volumes still, but for those that this run needs.
fn freeze(context: &Context, volumes: &[&Lv]) -> Result<Option<Frozen>> {
    let needed = NEVER_FROZEN.iter().map(Path::new);
    let needed: Vec<&Path> = needed.chain(context.options.needed.iter().map(PathBuf::as_path)).collect();
    let mut held = Vec::new();
    for &volume in volumes.iter().filter(|volume| volume.is_active()) {
        let why = match needed.iter().find(|path| is_on(path, volume)) {
            Some(path) => format!("{} is on it", path.display()),
            None if is_swap(&volume.device) => "it is swap".to_string(),
            // Of a thin volume that is held already LVM cannot take a snapshot, and its pool has to
            // be repaired by hand afterwards.
            None if volume.kind == Kind::Thin => {
                "LVM freezes thin volumes by itself, each while its own snapshot is taken".to_string()
            }
            None => {
                held.push(volume);
                continue;
            }
        };
        context.notice(format!("{}: it is not frozen, since {why}", volume.path()));
    }
    if held.is_empty() { Ok(None) } else { lvm::freeze(&held).map(Some) }
}
