//! Scanning a volume of which something is known: by what changed where that can be believed, and
//! all of it otherwise.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{FileType, Stat, fstat};

use super::super::read::open;
use super::super::spot::Spots;
use super::super::step::{LargeEnd, Place, Step};
use super::super::update::{Basis, Regions};
use super::super::volume::{Known, Volume};
use super::super::{Parent, Share};
use super::Scan;
use crate::error::Result;
use crate::format::BLOCK;
use crate::format::map::Map;
use crate::format::snapshot::{Method, SpotCheck, VolumeInfo};
use crate::format::tree::Payload;
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

/// What may be read only, and on what basis.
struct Believed {
    map: Map,
    changes: Changes,
    method: Method,
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
            Err(e) => return self.send(Step::Missing(place, e.to_string())),
        };
        let mut info = VolumeInfo {
            path: escape(&name),
            spot_check: parent.and_then(|parent| parent.volume.as_ref()?.spot_check),
            read_whole: parent.and_then(|parent| parent.volume.as_ref()?.read_whole),
            lvm: volume.lvm.clone(),
            ..VolumeInfo::default()
        };
        let believed = match &volume.known {
            Known::Full { reason, .. } => Err(reason.clone()),
            Known::Since { changes, method, .. } => {
                self.believe(&opened, changes, *method, volume.spot_check, parent, &mut info)?.map_err(Some)
            }
        };
        self.begin_volume(&opened, name, parent)?;
        match believed {
            Ok(believed) => self.by_changes(&opened, believed, info)?,
            Err(reason) => {
                info.fallback_reason = reason;
                self.whole(&opened, &volume.known, info)?;
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

    /// What is known may be wrong. Why all has to be read, if it cannot be believed.
    fn believe(
        &mut self,
        opened: &Opened,
        changes: &Changes,
        method: Method,
        share: Share,
        parent: Option<&Parent>,
        info: &mut VolumeInfo,
    ) -> Result<Result<Believed, String>> {
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
        let mut changes = changes.clone();
        for (offset, len) in &parent.unreadable {
            changes.add(*offset..offset.saturating_add(*len));
        }
        let spots = Spots {
            catalog: self.catalog,
            key: self.cutter.key,
            device: &opened.file,
            map,
            changes: &changes,
        };
        let checked = match spots.check(share, info.spot_check) {
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
        Ok(Ok(Believed { map: map.clone(), changes, method }))
    }

    fn by_changes(&mut self, opened: &Opened, believed: Believed, mut info: VolumeInfo) -> Result<()> {
        let Believed { map, changes, method } = believed;
        info.method = method;
        info.bytes_changed = changes.bytes();
        self.send(Step::Volume(Box::new(info)))?;
        let basis = Arc::new(Basis {
            file: Arc::clone(&opened.file),
            map,
            len: opened.len,
            zero_errors: self.options.zero_errors,
        });
        self.send(Step::Follow(Arc::clone(&basis)))?;
        for region in Regions::new(self.catalog, &basis.map, &changes, self.cutter.chunker) {
            let region = region?;
            self.send(Step::Region(region.clone()))?;
            let spans: Box<dyn Iterator<Item = Span> + '_> = match opened.is_device {
                true => Box::new(changes.spans(region.range)),
                false => {
                    Box::new(Spans::within(opened.file.as_fd(), region.range, BLOCK, is_sparse(&opened.stat)))
                }
            };
            self.pieces(&opened.file, spans, region.more_follows)?;
        }
        Ok(())
    }

    fn whole(&mut self, opened: &Opened, known: &Known, mut info: VolumeInfo) -> Result<()> {
        info.method = Method::Full;
        info.bytes_changed = opened.len;
        self.send(Step::Volume(Box::new(info)))?;
        match known {
            Known::Full { layout: Some(layout), .. } if layout.len() == opened.len => {
                self.pieces(&opened.file, layout.spans(0..opened.len), false)?;
            }
            _ => {
                let look_for_holes = !opened.is_device && is_sparse(&opened.stat);
                self.pieces(&opened.file, Spans::new(&opened.file, opened.len, look_for_holes), false)?;
            }
        }
        Ok(())
    }

    fn end_of(&mut self, opened: &Opened, volume: &Volume) -> Result<()> {
        let is_classic = volume.lvm.as_ref().is_some_and(|lvm| lvm.pool.is_empty());
        let snapshot = is_classic.then(|| volume.path.clone());
        let before = (!opened.is_device).then(|| (Arc::clone(&opened.file), opened.stat));
        self.send(Step::End(LargeEnd { before, snapshot }))
    }
}

impl VolumeInfo {
    fn note_spots(&mut self, bytes: u64, next: SpotCheck) {
        self.bytes_spot_checked = bytes;
        self.bytes_read = bytes;
        self.spot_check = Some(next);
    }
}
