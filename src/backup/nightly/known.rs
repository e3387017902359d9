//! What is known of a volume: its last backup, the snapshot that was kept of it then, and so what
//! has changed since.

use std::time::Duration;

use super::{Context, find, is_due};
use crate::backup::{BackupOptions, Known};
use crate::error::{Error, Result};
use crate::format::snapshot::{LogicalVolume, Method, VolumeInfo};
use crate::id::SnapshotId;
use crate::lvm::{self, Kind, Lv};
use crate::repo::snapshots::{Listed, Snapshots};
use crate::source::changes::Changes;
use crate::text::escape;

/// What was before.
pub(super) struct Past {
    /// The newest backup of a volume of this name.
    last: Option<(SnapshotId, VolumeInfo)>,
    /// The LVM snapshot that it was made of, if it is still there.
    pub kept: Option<Lv>,
}

impl Past {
    /// Of a volume, by the series that `backup` goes on with.
    pub fn of(volume: &Lv, all: &[Lv], snapshots: &Snapshots, backup: &BackupOptions) -> Self {
        let path = escape(volume.path().as_bytes());
        let newest = snapshots.listed.iter().rev().find(|Listed { snapshot, .. }| {
            snapshot.host == backup.host
                && snapshot.label == backup.label
                && snapshot.roots.iter().any(|root| root.path == path)
        });
        let last = newest.and_then(|Listed { id, snapshot }| {
            let info = snapshot.volumes.iter().find(|info| info.path == path)?;
            Some((*id, info.clone()))
        });
        let uuid = last.as_ref().and_then(|(_, info)| Some(&info.lvm.as_ref()?.snapshot_uuid));
        let kept = uuid.and_then(|uuid| find(all, uuid)).filter(|kept| lvm::is_marked(kept)).cloned();
        Self { last, kept }
    }

    /// What is known of `volume`, of which `snapshot` was taken just now.
    pub fn known(&self, context: &Context, volume: &Lv, snapshot: &Lv, all: &[Lv]) -> Result<Known> {
        let reason = match self.since(context, volume, snapshot, all) {
            Ok(Ok((snapshot, changes))) => {
                let method = if volume.kind == Kind::Thin { Method::Thin } else { Method::Cow };
                return Ok(Known::Since { snapshot, changes, method });
            }
            Ok(Err(reason)) => reason,
            Err(stopped @ Error::Stopped(_)) => return Err(stopped),
            Err(e) => Some(format!("what has changed cannot be read: {e}")),
        };
        let layout = match volume.kind {
            Kind::Thin => layout(context, volume, snapshot, all)?,
            _ => None,
        };
        Ok(Known::Full { layout, reason })
    }

    /// What has changed since which backup; or why that is not known, if there is a reason worth
    /// telling.
    fn since(
        &self,
        context: &Context,
        volume: &Lv,
        snapshot: &Lv,
        all: &[Lv],
    ) -> Result<Result<(SnapshotId, Changes), Option<String>>> {
        let Some((id, info)) = &self.last else { return Ok(Err(None)) };
        if context.backup.scan.force_read {
            return Ok(Err(None));
        }
        if is_due(info.read_whole, context.backup.time, context.options.full_every) {
            return Ok(Err(Some(format!("it was last read whole {}", ago(info, context)))));
        }
        let (before, kept) = match self.comparable(volume) {
            Ok(found) => found,
            Err(reason) => return Ok(Err(Some(reason))),
        };
        let changes = match (volume.kind, pool_of(volume, all)) {
            (Kind::Thin, Some(pool)) => {
                lvm::delta(kept, snapshot, pool, &context.options.locks, context.stop)?
            }
            _ if before.extents != volume.extents => Err("it was resized or moved".into()),
            _ => lvm::changes_since(kept, volume.len)?,
        };
        Ok(changes.map(|changes| (*id, changes)).map_err(Some))
    }

    /// Whether the kept snapshot tells of this volume.
    fn comparable(&self, volume: &Lv) -> Result<(&LogicalVolume, &Lv), String> {
        let Some(before) = self.last.as_ref().and_then(|(_, info)| info.lvm.as_ref()) else {
            return Err("the last backup of this name was not of a logical volume".into());
        };
        if before.uuid != volume.uuid {
            return Err("it is another volume than the one of this name in the last backup".into());
        }
        let Some(kept) = &self.kept else { return Err("no snapshot was kept of the last backup".into()) };
        let len = if volume.kind == Kind::Thin { Some(kept.len) } else { kept.origin_len };
        if kept.kind != volume.kind {
            return Err("its kind has changed".into());
        }
        if len != Some(volume.len) {
            return Err("its size has changed".into());
        }
        if volume.kind == Kind::Thick && kept.origin_uuid.as_ref() != Some(&volume.uuid) {
            return Err("the kept snapshot is of another volume".into());
        }
        Ok((before, kept))
    }
}

fn pool_of<'l>(volume: &Lv, all: &'l [Lv]) -> Option<&'l Lv> {
    find(all, volume.pool_uuid.as_deref()?)
}

/// What of a thin volume is allocated. Not to know costs only time.
fn layout(context: &Context, volume: &Lv, snapshot: &Lv, all: &[Lv]) -> Result<Option<Changes>> {
    let Some(pool) = pool_of(volume, all) else { return Ok(None) };
    let why = match lvm::layout(snapshot, pool, &context.options.locks, context.stop) {
        Ok(Ok(layout)) => return Ok(Some(layout)),
        Err(stopped @ Error::Stopped(_)) => return Err(stopped),
        Ok(Err(why)) => why,
        Err(e) => e.to_string(),
    };
    context.notice(format!("{}: what of it is allocated is not known: {why}", volume.path()));
    Ok(None)
}

/// How long ago all of a volume was read, in days.
fn ago(info: &VolumeInfo, context: &Context) -> String {
    const DAY: u64 = 24 * 60 * 60;
    let since = info.read_whole.map(|then| context.backup.time.duration_since(then).unsigned_abs());
    let days = since.map_or(0, |since: Duration| since.as_secs() / DAY);
    format!("{days} days ago")
}
