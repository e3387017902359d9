//! The content of files and volumes: chunks that were read become maps.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::super::cut::{Part, Piece};
use super::super::earlier::Earlier;
use super::super::frames::{Frames, Stream};
use super::super::scan::changed_since;
use super::super::step::{Change, FileRead, LargeEnd, PieceRead, Place};
use super::super::update::Basis;
use super::{Assembler, Nodes, VolumeRead};
use crate::error::{Error, Result};
use crate::format::map::{self, Extent, Map};
use crate::format::tree::{Entry, Payload};
use crate::id::ChunkId;
use crate::lvm::has_overflowed;
use crate::repo::map_parts::{MapPart, MapParts};

/// A file or volume that is read in pieces.
pub(super) struct Large<'c> {
    pub(super) place: Place,
    pub(super) entry: Entry,
    pub(super) change: Change,
    pub(super) content: Content<'c>,
    /// Its length, 0 if that is not known yet.
    pub(super) len: u64,
    pub(super) failed: Option<String>,
    /// Whether some of it is zeros since it could not be read.
    pub(super) has_gaps: bool,
    /// What it was, if that is followed.
    pub(super) before: Option<(Arc<Basis>, MapParts<'c>)>,
    pub(super) volume: Option<VolumeRead>,
}

/// Frames of what changed begin at multiples of this, where enough has changed.
const STRETCH_LEN: u64 = 2 << 20;

/// A file's or volume's content while its map is built.
pub(super) struct Content<'c> {
    pub(super) stream: Stream,
    /// How hard its new chunks are compressed.
    pub(super) level: i8,
    pub(super) map: map::Builder,
    /// Its length so far.
    pub(super) len: u64,
    /// Which stretch of it the last chunk that was new began in.
    pub(super) stretch: u64,
    pub(super) earlier: Option<Earlier<'c>>,
}

impl<'c> Assembler<'c> {
    pub(super) fn file(&mut self, file: FileRead, known: &HashSet<ChunkId>) -> Result<()> {
        let FileRead { mut entry, piece, change, earlier, unstable, place } = file;
        let level = self.levels.of(&entry.name, piece.len());
        let mut content = self.content(Stream::Files, level, earlier.as_deref());
        self.chunks(&piece, known, &mut content)?;
        let map = content.map.finish(&mut |bytes| self.nodes.store(Stream::Maps, &bytes))?;
        entry.payload = Payload::File(map);
        self.remember_linked(&entry);
        if unstable {
            self.problem(&place, "it changed while it was read".into());
        }
        self.complete(entry, change)
    }

    pub(super) fn piece(&mut self, read: PieceRead, known: &HashSet<ChunkId>) -> Result<()> {
        let Some(mut large) = self.large.take() else {
            return Err(Error::Internal("a piece without a file"));
        };
        for (offset, len) in read.unreadable {
            large.has_gaps = true;
            self.unreadable(&large.place, offset, len);
        }
        match read.piece {
            Ok(piece) if large.failed.is_none() => {
                let before = self.result.stats.bytes_read;
                self.chunks(&piece, known, &mut large.content)?;
                if let Some(VolumeRead { info, .. }) = &mut large.volume {
                    info.bytes_read += self.result.stats.bytes_read - before;
                }
            }
            Ok(_) => {}
            Err(e) => {
                let what = format!("cannot read it at byte {}: {e}", read.offset);
                large.failed.get_or_insert(what);
            }
        }
        self.large = Some(large);
        Ok(())
    }

    pub(super) fn large(&mut self) -> Result<&mut Large<'c>> {
        self.large.as_mut().ok_or(Error::Internal("a volume has not begun"))
    }

    /// A range is what it was: the extents of the map before are taken over, whole nodes of them
    /// where the new map has nothing open.
    pub(super) fn keep(&mut self, range: Range<u64>) -> Result<()> {
        let Some(large) = self.large.as_mut().filter(|large| large.failed.is_none()) else { return Ok(()) };
        let (_, before) = large.before.as_mut().ok_or(Error::Internal("nothing is followed"))?;
        take_over(&mut self.nodes, &mut large.content.map, before, range.clone())?;
        large.content.len += range.end - range.start;
        self.progress += range.end - range.start;
        Ok(())
    }

    pub(super) fn read_in_vain(&mut self, len: u64) {
        self.result.stats.bytes_read += len;
        if let Some(volume) = self.large.as_mut().and_then(|large| large.volume.as_mut()) {
            volume.info.bytes_read += len;
        }
    }

    pub(super) fn end(&mut self, end: LargeEnd) -> Result<()> {
        let Some(large) = self.large.take() else {
            return Err(Error::Internal("an end without a file"));
        };
        let Large { place, mut entry, change, content, failed, volume, has_gaps, .. } = large;
        if volume.is_some() {
            self.nodes.frames.count_into(None)?;
        }
        // What was to be zeros instead of bytes that could not be read would be wrong then.
        let failed = match end.snapshot.as_deref().map(has_overflowed) {
            Some(Ok(true)) => {
                Some("its snapshot overflowed while it was read: give it more with --snapshot-size".into())
            }
            Some(Err(e)) => failed.or_else(|| Some(e.to_string())),
            Some(Ok(false)) | None => failed,
        };
        if let Some(what) = failed {
            self.missing(&place, what);
            return Ok(());
        }
        let map = content.map.finish(&mut |bytes| self.nodes.store(Stream::Maps, &bytes))?;
        entry.payload = entry.payload.with_map(map);
        if let Some(mut volume) = volume {
            if let Some(checkpoints) = self.checkpoints.as_mut().filter(|_| !has_gaps) {
                checkpoints.finish(&entry, volume.since);
            }
            volume.info.bytes_source = entry.size();
            self.result.volumes.push(volume);
        }
        self.remember_linked(&entry);
        if end.before.as_ref().is_some_and(changed_since) {
            self.problem(&place, "it changed while it was read".into());
        }
        self.complete(entry, change)
    }

    pub(super) fn content(&self, stream: Stream, level: i8, earlier: Option<&Map>) -> Content<'c> {
        let earlier = earlier.filter(|_| self.delta).map(|map| Earlier::of(self.catalog, map));
        Content { stream, level, map: map::Builder::default(), len: 0, stretch: 0, earlier }
    }

    /// Takes a piece's chunks, as far as they are new, and adds its extents to a map.
    fn chunks(&mut self, piece: &Piece, known: &HashSet<ChunkId>, content: &mut Content) -> Result<()> {
        let stats = &mut self.result.stats;
        for part in &piece.parts {
            let extent = match *part {
                Part::Chunk { id, start, len } => {
                    stats.bytes_read += len as u64;
                    if !known.contains(&id) && !self.nodes.frames.has_taken(&id) {
                        content.take(&mut self.nodes.frames, id, piece.bytes(start, len))?;
                    }
                    Extent::Data { id, len: len as u32 }
                }
                Part::Zero(len) => {
                    stats.bytes_read = stats.bytes_read.saturating_add(len);
                    stats.bytes_zero = stats.bytes_zero.saturating_add(len);
                    Extent::Zero { len }
                }
                Part::Hole(len) => {
                    stats.bytes_hole = stats.bytes_hole.saturating_add(len);
                    Extent::Hole { len }
                }
                Part::Open { .. } => return Err(Error::Internal("a piece was not joined")),
            };
            self.progress = self.progress.saturating_add(extent.len());
            content.len += extent.len();
            content.map.push(extent, &mut |bytes| self.nodes.store(Stream::Maps, &bytes))?;
        }
        Ok(())
    }
}

impl Content<'_> {
    /// Takes the chunk that follows, which is new.
    fn take(&mut self, frames: &mut Frames, id: ChunkId, bytes: &[u8]) -> Result<()> {
        let near = self.earlier.as_mut().map(|earlier| earlier.near(self.len, bytes.len() as u64));
        let mut like = near.into_iter().flatten().peekable();
        let stream = if like.peek().is_some() { Stream::Changes } else { self.stream };
        // Frames of the same ranges every night: each night's are made against one or two of the
        // last, and not against ever more that overlap.
        let stretch = self.len / STRETCH_LEN;
        if stream == Stream::Changes && stretch != self.stretch {
            frames.cut(stream, self.level)?;
        }
        self.stretch = stretch;
        frames.take(stream, self.level, id, bytes, like)
    }
}

/// Adds a range of a stored map to one that is being built.
pub(super) fn take_over(
    nodes: &mut Nodes,
    map: &mut map::Builder,
    from: &mut MapParts,
    range: Range<u64>,
) -> Result<()> {
    let store = &mut |bytes: Vec<u8>| nodes.store(Stream::Maps, &bytes);
    let mut at = range.start;
    while at < range.end {
        let level = map.level_open(store)?;
        let part = from.next(at..range.end, level)?;
        match part {
            MapPart::Node(level, child) => map.push_node(level, child, store)?,
            MapPart::Extent(extent) => map.push(extent, store)?,
        }
        at += part.len();
    }
    Ok(())
}
