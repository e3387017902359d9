//! What a backup would be if it ended here: for those who go on with it.

use super::super::checkpoint::{Progress, settled_from};
use super::super::frames::Stream;
use super::content::{Large, take_over};
use super::{Assembler, VolumeRead, root_info};
use crate::error::Result;
use crate::format::hashtree;
use crate::format::map::Extent;
use crate::format::snapshot::TreeRef;
use crate::format::tree::Entry;
use crate::repo::map_parts::MapParts;

impl Assembler<'_> {
    /// Tells how far volumes are done, if so much was read since that was told last.
    pub(super) fn checkpoint_if_due(&mut self) -> Result<()> {
        let read = self.result.stats.bytes_read;
        let Some(mut checkpoints) = self.checkpoints.take_if(|it| it.is_due(read)) else { return Ok(()) };
        let mut builder = hashtree::Builder::default();
        let mut roots = Vec::new();
        let unfinished = self.unfinished(&mut checkpoints)?;
        for entry in checkpoints.finished().iter().cloned().chain(unfinished) {
            roots.push(root_info(&entry));
            builder.push(entry, &mut |bytes| self.nodes.store(Stream::Trees, &bytes))?;
        }
        let tree = self.finish_dir(builder)?;
        self.nodes.frames.publish()?;
        checkpoints.write(TreeRef::new(tree.as_ref()), roots, read)?;
        self.checkpoints = Some(checkpoints);
        Ok(())
    }

    /// The volume that is being read, as if the rest of it were what it was before.
    fn unfinished(&mut self, checkpoints: &mut Progress) -> Result<Option<Entry>> {
        let is_sound = |large: &&Large| large.failed.is_none() && !large.has_gaps;
        let Some(large) = self.large.as_ref().filter(is_sound) else { return Ok(None) };
        let Some(VolumeRead { since, .. }) = &large.volume else { return Ok(None) };
        let basis = large.before.as_ref().map(|(basis, _)| basis);
        let (mut map, done) = (large.content.map.clone(), large.content.len);
        let settled = settled_from(self.catalog, basis, done, large.len)?;
        if settled > done {
            let gap = Extent::Hole { len: settled - done };
            map.push(gap, &mut |bytes| self.nodes.store(Stream::Maps, &bytes))?;
        }
        if let Some(basis) = basis {
            let mut rest = MapParts::of(self.catalog, &basis.map);
            take_over(&mut self.nodes, &mut map, &mut rest, settled..large.len)?;
        }
        let map = map.finish(&mut |bytes| self.nodes.store(Stream::Maps, &bytes))?;
        let entry = Entry { payload: large.entry.payload.clone().with_map(map), ..large.entry.clone() };
        checkpoints.note(&entry, *since, done, settled);
        Ok(Some(entry))
    }
}
