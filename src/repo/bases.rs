//! What delta frames lack: damage to a frame hurts all frames that are compressed against it, and
//! those against them.

use std::collections::HashSet;
use std::fmt;

use super::index::Index;
use super::reader::{OpenPack, PackReader};
use crate::error::Result;
use crate::format::bad::{Bad, Slots};
use crate::format::pack::{Base, Frame};
use crate::id::PackId;
use crate::observe::Stop;

/// What a frame is compressed against and cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// A pack that is gone.
    Pack(PackId),
    /// A frame of a pack, by its number, that is damaged.
    Frame(PackId, u32),
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Lack::Pack(pack) => write!(f, "it needs pack {pack}, which is missing"),
            Lack::Frame(pack, frame) => write!(f, "it needs frame {frame} of pack {pack}, which is damaged"),
        }
    }
}

/// Who knows what is bad, and learns of more.
pub trait Bearer {
    /// What is known.
    fn bad(&self) -> &Bad;
    /// A frame that lacks something; whether that was not known.
    fn add(&mut self, pack: &OpenPack, number: u32, slots: &Slots, lack: Lack) -> bool;
}

impl Bearer for Index {
    fn bad(&self) -> &Bad {
        Index::bad(self)
    }

    fn add(&mut self, pack: &OpenPack, _: u32, slots: &Slots, _: Lack) -> bool {
        self.add_bad(&pack.id, slots)
    }
}

/// Adds the frames that need what is bad or gone, until there are no more. `packs` are those to be
/// looked at, with their lengths; `all` is what the store has.
pub fn spread(
    reader: &PackReader,
    packs: &[(PackId, u64)],
    all: &HashSet<PackId>,
    bearer: &mut dyn Bearer,
    stop: &Stop,
) -> Result<()> {
    let mut deltas = packs.to_vec();
    loop {
        let (mut next, mut found) = (Vec::new(), false);
        for (id, len) in deltas {
            stop.check()?;
            // Whoever cannot be opened is complained of elsewhere.
            let Ok(pack) = reader.open(&id, len) else { continue };
            for (number, frame) in (0..).zip(&pack.trailer.frames) {
                let Some(lack) = lack(&pack, frame, all, bearer.bad()) else { continue };
                found |= bearer.add(&pack, number, &Slots::range(frame.slot, frame.chunks), lack);
            }
            next.extend(has_bases(&pack).then_some((id, len)));
        }
        deltas = next;
        if !found {
            return Ok(());
        }
    }
}

/// Whether a pack has delta frames.
pub fn has_bases(pack: &OpenPack) -> bool {
    pack.trailer.frames.iter().any(|frame| !frame.bases.is_empty())
}

fn lack(pack: &OpenPack, frame: &Frame, all: &HashSet<PackId>, bad: &Bad) -> Option<Lack> {
    frame.bases.iter().find_map(|base| {
        let id = pack_of(pack, base)?;
        let is_bad = || (base.slot..base.slot.saturating_add(base.count)).any(|slot| bad.contains(&id, slot));
        match all.contains(&id) {
            false => Some(Lack::Pack(id)),
            true => is_bad().then_some(Lack::Frame(id, base.frame)),
        }
    })
}

/// The pack that a base lies in.
fn pack_of(pack: &OpenPack, base: &Base) -> Option<PackId> {
    match base.pack.checked_sub(1) {
        None => Some(pack.id),
        Some(at) => pack.trailer.packs.get(at as usize).copied(),
    }
}
