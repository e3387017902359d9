//! Going on with a run of the same volumes that was interrupted: its LVM snapshots are still there,
//! and a checkpoint says how far it came.

use super::known::Past;
use super::{Context, find};
use crate::backup::Finished;
use crate::error::Result;
use crate::format::checkpoint::{self, Checkpoint};
use crate::lvm::{self, Kind, Lv};
use crate::text::{escape, format_size};

/// An interrupted run.
pub(super) struct Unfinished {
    /// How far it came.
    pub checkpoint: Checkpoint,
    /// Its snapshots, in the order of the volumes.
    pub snapshots: Vec<Lv>,
}

impl Unfinished {
    /// Of just these volumes, all of whose snapshots are what they were: what is backed up together
    /// is of one moment, or everything is begun anew.
    pub fn find(context: &Context, volumes: &[Lv], pasts: &[Past], all: &[Lv]) -> Result<Option<Self>> {
        if context.backup.scan.force_read {
            return Ok(None);
        }
        for checkpoint in context.repo.checkpoints()? {
            let is_ours = checkpoint.is_of_series(&context.backup.host, &context.backup.label);
            if !is_ours || checkpoint.volumes.len() != volumes.len() {
                continue;
            }
            let of = |(volume, past)| snapshot_of(context, &checkpoint, volume, past, all).transpose();
            let found: Option<Result<Vec<Lv>>> = volumes.iter().zip(pasts).map(of).collect();
            if let Some(snapshots) = found.transpose()? {
                return Ok(Some(Self { checkpoint, snapshots }));
            }
        }
        Ok(None)
    }

    /// Whether this is one of its snapshots.
    pub fn has(&self, snapshot: &Lv) -> bool {
        self.snapshots.iter().any(|own| own.uuid == snapshot.uuid)
    }

    /// How long after the first of the run a volume's snapshot was taken, in milliseconds.
    pub fn after_ms(&self, volume: &Lv) -> u64 {
        entry(&self.checkpoint, volume).map_or(0, |entry| entry.lvm.taken_after_ms)
    }

    /// Whether a volume's free blocks were left out: then its snapshot could be trusted to know them.
    pub fn left_out_free_blocks(&self, volume: &Lv) -> bool {
        entry(&self.checkpoint, volume).is_some_and(|entry| entry.free_blocks)
    }
}

fn entry<'c>(checkpoint: &'c Checkpoint, volume: &Lv) -> Option<&'c checkpoint::Unfinished> {
    let path = escape(volume.path().as_bytes());
    checkpoint.volumes.iter().find(|entry| entry.path == path && entry.lvm.uuid == volume.uuid)
}

/// The snapshot of a volume that an interrupted run read, if it still is what it was.
fn snapshot_of(
    context: &Context,
    checkpoint: &Checkpoint,
    volume: &Lv,
    past: &Past,
    all: &[Lv],
) -> Result<Option<Lv>> {
    let Some(entry) = entry(checkpoint, volume).filter(|entry| entry.lvm.extents == volume.extents) else {
        return Ok(None);
    };
    let is_ours = |lv: &&Lv| {
        lvm::mark_of(lv).as_ref() == Some(&context.mark(volume))
            // That run was finished after all.
            && past.kept.as_ref().map(|kept| &kept.uuid) != Some(&lv.uuid)
    };
    let Some(snapshot) = find(all, &entry.lvm.snapshot_uuid).filter(is_ours) else { return Ok(None) };
    let len = if volume.kind == Kind::Thin { Some(snapshot.len) } else { snapshot.origin_len };
    let is_usable = match volume.kind {
        _ if len != Some(volume.len) || ![0, volume.len].contains(&entry.bytes) => false,
        Kind::Thin => snapshot.kind == Kind::Thin && snapshot.pool_uuid == volume.pool_uuid,
        _ => {
            snapshot.origin_uuid.as_ref() == Some(&volume.uuid)
                && snapshot.is_active()
                && !lvm::has_overflowed(&snapshot.device)?
        }
    };
    Ok(is_usable.then(|| snapshot.clone()))
}

/// What of a volume is finished; it is said.
pub(super) fn finished(
    context: &Context,
    checkpoint: Option<&Checkpoint>,
    volume: &Lv,
) -> Result<Option<Finished>> {
    let Some(checkpoint) = checkpoint else { return Ok(None) };
    let finished = Finished::of(context.catalog, checkpoint, volume.path().as_bytes())?;
    let done = finished.as_ref().map_or(0, |finished| finished.done);
    context.notice(format!(
        "{}: an interrupted run of {} is gone on with, {} of {} are done",
        volume.path(),
        checkpoint.snapshot.time.strftime("%Y-%m-%d %H:%M:%S UTC"),
        format_size(done),
        format_size(volume.len)
    ));
    Ok(finished)
}
