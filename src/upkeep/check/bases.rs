//! Damage to a frame hurts all frames that are compressed against it, and those against them.

use std::collections::HashSet;

use super::findings::{Findings, pack_name};
use crate::error::Result;
use crate::format::bad::Slots;
use crate::format::pack::{Base, Frame};
use crate::id::PackId;
use crate::observe::Stop;
use crate::repo::reader::{OpenPack, PackReader};

/// Adds the frames that need what is damaged or gone, until there are no more. `packs` are those
/// with such frames, with their lengths; `all` is what the store has.
pub fn spread(
    reader: &PackReader,
    packs: &[(PackId, u64)],
    all: &HashSet<PackId>,
    findings: &mut Findings,
    stop: &Stop,
) -> Result<()> {
    loop {
        let mut found = false;
        for (id, len) in packs {
            stop.check()?;
            // Whoever cannot be opened has been complained of.
            let Ok(pack) = reader.open(id, *len) else { continue };
            for (number, frame) in (0..).zip(&pack.trailer.frames) {
                let Some(why) = complaint(&pack, frame, all, findings) else { continue };
                let slots = Slots::range(frame.slot, frame.chunks);
                found |= findings.bad_frame(id, &slots, pack.frame_name(number), why);
            }
        }
        if !found {
            return Ok(());
        }
    }
}

fn complaint(pack: &OpenPack, frame: &Frame, all: &HashSet<PackId>, findings: &Findings) -> Option<String> {
    frame.bases.iter().find_map(|base| {
        let id = base_pack(pack, base)?;
        let is_bad =
            || (base.slot..base.slot.saturating_add(base.count)).any(|slot| findings.bad.contains(&id, slot));
        match all.contains(&id) {
            false => Some(format!("it needs {}, which is missing", pack_name(&id))),
            true if is_bad() => {
                Some(format!("it needs frame {} of {}, which is damaged", base.frame, pack_name(&id)))
            }
            true => None,
        }
    })
}

/// The pack that a base lies in.
fn base_pack(pack: &OpenPack, base: &Base) -> Option<PackId> {
    match base.pack.checked_sub(1) {
        None => Some(pack.id),
        Some(at) => pack.trailer.packs.get(at as usize).copied(),
    }
}
