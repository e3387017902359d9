//! Scanning a volume of which something is known: by what changed where that can be believed, and
//! all of it otherwise.

use std::fs::File;
use std::io::ErrorKind;
use std::sync::Arc;

use rustix::fs::{FileType, Stat, fstat};

use super::super::Parent;
use super::super::checkpoint::Finished;
use super::super::read::open;
use super::super::spot::Spots;
use super::super::step::{LargeEnd, Place, Step};
use super::super::update::{Basis, Regions};
use super::super::volume::{Known, Volume};
use super::Scan;
use crate::error::Result;
use crate::format::map::Map;
use crate::format::snapshot::{Method, SpotCheck, VolumeInfo};
use crate::format::tree::Payload;
use crate::id::SnapshotId;
use crate::observe::Event;
use crate::source::changes::Changes;
use crate::source::extents::{Span, Spans, device_len, is_sparse};
use crate::source::metadata;
use crate::source::path_of;
use crate::text::escape;

/// An opened volume.
struct Opened {
    place: Place,
    file: Arc<File>,
    stat: Stat,
    len: u64,
    is_device: bool,
}

/// What is claimed of a volume: it is as the map says, but for what has changed.
struct Claim {
    map: Map,
    changes: Changes,
    method: Method,
    /// Why all of it counts as changed, if that is worth telling.
    reason: Option<String>,
}

impl Scan<'_> {
    /// A root that is a volume, kept under `name`.
    pub fn volume(&mut self, name: Vec<u8>, volume: &Volume, parent: Option<&Parent>) -> Result<()> {
        // What is told of it has its own name, not that of the snapshot that is read.
        let place = Place::root(path_of(&name));
        let opened = open(&Place::root(&volume.path)).and_then(|file| {
            let stat = fstat(&file)?;
            let len = device_len(&file)?;
            let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
            Ok(Opened { place: place.clone(), file: Arc::new(file), stat, len, is_device })
        });
        let opened = match opened {
            Ok(opened) => opened,
            Err(e) if volume.lvm.is_some() && e.kind() == ErrorKind::NotFound => {
                let why = "it is not active, so that its snapshot has no device: lvchange -ay makes one";
                return self.send(Step::Missing(place, why.into()));
            }
            Err(e) => return self.send(Step::Missing(place, e.to_string())),
        };
        let mut info = VolumeInfo {
            path: escape(&name),
            spot_check: parent.and_then(|parent| parent.volume.as_ref()?.spot_check),
            read_whole: parent.and_then(|parent| parent.volume.as_ref()?.read_whole),
            lvm: volume.lvm.clone(),
            free_blocks: volume.used.as_ref().map(|used| used.by.clone()),
            ..VolumeInfo::default()
        };
        let mut claim = match &volume.known {
            Known::Full { reason, .. } => Err(reason.clone()),
            Known::Since { changes, method, .. } => {
                self.since_parent(&opened, volume, changes, *method, parent)?.map_err(Some)
            }
        };
        info.bytes_changed = claim.as_ref().map_or(opened.len, |claim| claim.changes.bytes());
        if let Some(finished) = &volume.finished {
            claim = go_on(claim, &opened, volume, finished, &mut info);
        }
        let believed = match claim {
            Ok(claim) => self.checked(&opened, claim, volume, &mut info)?.map_err(Some),
            Err(reason) => Err(reason),
        };
        self.begin_volume(&opened, name, parent)?;
        match believed {
            Ok(claim) => self.by_changes(&opened, claim, volume.known.since(), info)?,
            Err(reason) => {
                info.fallback_reason = reason;
                (info.bytes_changed, info.bytes_resumed) = (opened.len, 0);
                self.whole(&opened, volume, info, parent.and_then(|parent| parent.entry.map()))?;
            }
        }
        self.end_of(&opened, volume)
    }

    fn begin_volume(&mut self, opened: &Opened, name: Vec<u8>, parent: Option<&Parent>) -> Result<()> {
        let (payload, xattrs) = match opened.is_device {
            true => (Payload::Volume(Map::default()), Ok(Vec::new())),
            false => (Payload::File(Map::default()), metadata::xattrs_of_fd(&opened.file)),
        };
        let xattrs = xattrs.unwrap_or_else(|e| {
            self.problem(&opened.place, format!("its attributes cannot be read: {e}"));
            Vec::new()
        });
        let entry = metadata::entry(name, &opened.stat, self.owners, xattrs, payload);
        self.begin(opened.place.clone(), entry, parent.map(|parent| &parent.entry), opened.len)
    }

    /// What has changed since the parent snapshot; or why that is of no use.
    fn since_parent(
        &self,
        opened: &Opened,
        volume: &Volume,
        changes: &Changes,
        method: Method,
        parent: Option<&Parent>,
    ) -> Result<Result<Claim, String>> {
        let Some((parent, map)) = parent.and_then(|parent| Some((parent, parent.entry.map()?))) else {
            return Ok(Err("the parent snapshot cannot be used".into()));
        };
        if map.len() != opened.len || changes.len() != opened.len {
            let why = format!("its size was {} bytes and is {}", map.len(), opened.len);
            return Ok(Err(why));
        }
        if !parent.problems_all_listed {
            return Ok(Err("too much of it was unreadable in the parent snapshot".into()));
        }
        if !self.is_whole(&parent.entry) {
            return Ok(Err("the parent snapshot has lost some of its data".into()));
        }
        let left_out = parent.volume.as_ref().is_some_and(|before| before.free_blocks.is_some());
        if left_out && volume.used.is_none() {
            return Ok(Err("free blocks were left out of the parent snapshot".into()));
        }
        let mut changes = changes.clone();
        if let Some(used) = &volume.used {
            changes.leave_out(&used.ranges);
        }
        for (offset, len) in &parent.unreadable {
            changes.add(*offset..offset.saturating_add(*len));
        }
        Ok(Ok(Claim { map: map.clone(), changes, method, reason: None }))
    }

    /// What is claimed may be wrong. Why all has to be read, if it cannot be believed.
    fn checked(
        &mut self,
        opened: &Opened,
        claim: Claim,
        volume: &Volume,
        info: &mut VolumeInfo,
    ) -> Result<Result<Claim, String>> {
        let spots = Spots {
            catalog: self.catalog,
            key: self.cutter.key,
            device: &opened.file,
            map: &claim.map,
            changes: &claim.changes,
            // There may be anything in free blocks.
            skips_holes: volume.used.is_some(),
        };
        let checked = match spots.check(volume.spot_check, info.spot_check) {
            Err(e) if e.is_damage() => return Ok(Err(format!("the parent snapshot: {e}"))),
            other => other?,
        };
        info.note_spots(checked.bytes, checked.next);
        if let Some(mismatch) = &checked.mismatch {
            let what = format!(
                "{} at byte {}, though it is said not to have changed since the parent snapshot",
                mismatch.what, mismatch.offset
            );
            let warning =
                format!("WARNING: what is known of its changes is wrong: {what}; all of it is read");
            self.observer.event(Event::Problem { path: opened.place.path(), what: warning });
            return Ok(Err(format!("a spot check failed: {what}")));
        }
        Ok(Ok(claim))
    }

    fn by_changes(
        &mut self,
        opened: &Opened,
        claim: Claim,
        since: Option<SnapshotId>,
        mut info: VolumeInfo,
    ) -> Result<()> {
        let Claim { map, changes, method, reason } = claim;
        (info.method, info.fallback_reason) = (method, reason);
        let has_layout = info.free_blocks.is_some();
        self.send(Step::Volume(Box::new(info), since))?;
        let basis = Arc::new(Basis {
            file: Arc::clone(&opened.file),
            map,
            len: opened.len,
            zero_errors: self.options.zero_errors,
        });
        self.send(Step::Follow(Arc::clone(&basis)))?;
        let mut of_file = Spans::new(&opened.file, 0, is_sparse(&opened.stat));
        for region in Regions::new(self.catalog, &basis.map, &changes, self.cutter.chunker) {
            let region = region?;
            self.send(Step::Region(region.clone()))?;
            let spans: Box<dyn Iterator<Item = Span> + '_> = match opened.is_device || has_layout {
                true => Box::new(changes.spans(region.range)),
                false => Box::new(of_file.over(region.range)),
            };
            self.pieces(&opened.file, spans, region.more_follows, None)?;
        }
        Ok(())
    }

    fn whole(
        &mut self,
        opened: &Opened,
        volume: &Volume,
        mut info: VolumeInfo,
        earlier: Option<&Map>,
    ) -> Result<()> {
        info.method = Method::Full;
        self.send(Step::Volume(Box::new(info), None))?;
        match volume.layout(opened.len) {
            Some(layout) => self.pieces(&opened.file, layout.spans(0..opened.len), false, earlier),
            None => {
                let look_for_holes = !opened.is_device && is_sparse(&opened.stat);
                let spans = Spans::new(&opened.file, opened.len, look_for_holes);
                self.pieces(&opened.file, spans, false, earlier)
            }
        }
    }

    fn end_of(&mut self, opened: &Opened, volume: &Volume) -> Result<()> {
        let is_classic = volume.lvm.as_ref().is_some_and(|lvm| lvm.pool.is_empty());
        let snapshot = is_classic.then(|| volume.path.clone());
        let before = (!opened.is_device).then(|| (Arc::clone(&opened.file), opened.stat));
        self.send(Step::End(LargeEnd { before, snapshot }))
    }
}

/// What an interrupted run has finished need not be read again, if what was known then is what is
/// known now.
fn go_on(
    claim: Result<Claim, Option<String>>,
    opened: &Opened,
    volume: &Volume,
    finished: &Finished,
    info: &mut VolumeInfo,
) -> Result<Claim, Option<String>> {
    if finished.map.len() != opened.len || finished.free_blocks != volume.used.is_some() {
        return claim;
    }
    let (mut changes, method, reason) = match claim {
        Ok(claim) if finished.since == volume.known.since() => (claim.changes, claim.method, None),
        Err(reason) if finished.since.is_none() && volume.known.since().is_none() => {
            let layout = volume.layout(opened.len);
            (layout.unwrap_or_else(|| Changes::all(opened.len)), Method::Full, reason)
        }
        claim => return claim,
    };
    changes.go_on_from(finished.done, finished.settled);
    info.bytes_resumed = finished.done;
    Ok(Claim { map: finished.map.clone(), changes, method, reason })
}

impl VolumeInfo {
    fn note_spots(&mut self, bytes: u64, next: SpotCheck) {
        self.bytes_spot_checked = bytes;
        self.bytes_read = bytes;
        self.spot_check = Some(next);
    }
}
