//! What becomes of the frames of a pack that is written anew. Pure.

use crate::format::pack::{Frame, Trailer};
use crate::upkeep::rewrite::Fate;

/// What a chunk takes in a trailer: its id and its length.
const SLOT_LEN: u64 = 23;
/// What a frame takes in a trailer.
const FRAME_ENTRY_LEN: u64 = 16;

/// What becomes of one frame. `is_live` says of a slot whether its chunk is needed; a frame that
/// a delta frame is made against is needed whole. Up to `max_unused` per cent may stay unused. A
/// delta frame is small, and its chunks would not be so without what they are made against.
pub fn fate(
    trailer: &Trailer,
    frame: &Frame,
    is_live: impl Fn(u32) -> bool,
    is_base: bool,
    max_unused: f64,
) -> Fate {
    let live = live_bytes(trailer, frame, is_live);
    match live {
        _ if is_base => Fate::Whole,
        0 => Fate::Gone,
        _ if !frame.bases.is_empty() => Fate::Whole,
        live if unused_share(frame, live) * 100.0 <= max_unused => Fate::Whole,
        _ => Fate::Chunks,
    }
}

/// Bytes of the frame's raw content that are needed.
pub fn live_bytes(trailer: &Trailer, frame: &Frame, is_live: impl Fn(u32) -> bool) -> u64 {
    let slots = (frame.slot..).zip(trailer.slots_of(frame));
    slots.filter(|(number, _)| is_live(*number)).map(|(_, slot)| u64::from(slot.len)).sum()
}

fn unused_share(frame: &Frame, live: u64) -> f64 {
    1.0 - live as f64 / f64::from(frame.raw_len.max(1))
}

/// About what a frame takes in packs with its trailer's share, once this has become of it.
pub fn len_after(trailer: &Trailer, frame: &Frame, fate: Fate, is_live: impl Fn(u32) -> bool) -> u64 {
    let whole = u64::from(frame.stored_len) + FRAME_ENTRY_LEN;
    match fate {
        Fate::Gone => 0,
        Fate::Whole | Fate::Level(_) => whole + u64::from(frame.chunks) * SLOT_LEN,
        Fate::Chunks => {
            let live = live_bytes(trailer, frame, &is_live);
            let slots = (frame.slot..frame.slot.saturating_add(frame.chunks)).filter(|slot| is_live(*slot));
            let share = live as f64 / f64::from(frame.raw_len.max(1));
            (whole as f64 * share) as u64 + slots.count() as u64 * SLOT_LEN
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::pack::{Base, Codec, Kind, Slot};
    use crate::id::ChunkId;

    fn trailer() -> Trailer {
        let frame = |number: u32| Frame {
            offset: 48 + u64::from(number) * 500,
            stored_len: 500,
            raw_len: 1000,
            kind: Kind::Data,
            codec: Codec::Zstd,
            level: 3,
            depth: 0,
            bases: vec![],
            slot: number * 10,
            chunks: 10,
        };
        let slot = |number: u32| Slot {
            id: ChunkId([number as u8; 20]),
            frame: number / 10,
            offset: number % 10 * 100,
            len: 100,
        };
        Trailer { packs: vec![], frames: (0..2).map(frame).collect(), slots: (0..20).map(slot).collect() }
    }

    #[test]
    fn mostly_needed_frames_stay_whole() {
        let trailer = trailer();
        let frame = &trailer.frames[1];
        let fate = |dead: u32, max_unused| fate(&trailer, frame, |slot| slot >= 10 + dead, false, max_unused);
        assert_eq!(fate(0, 0.0), Fate::Whole);
        assert_eq!(fate(1, 0.0), Fate::Chunks);
        assert_eq!(fate(1, 10.1), Fate::Whole);
        assert_eq!(fate(2, 10.1), Fate::Chunks);
        assert_eq!(fate(10, 100.0), Fate::Gone);
    }

    #[test]
    fn bases_stay_whatever_is_needed_of_them() {
        let trailer = trailer();
        assert_eq!(fate(&trailer, &trailer.frames[0], |_| false, true, 0.0), Fate::Whole);
    }

    #[test]
    fn delta_frames_stay_whole_or_go() {
        let mut trailer = trailer();
        trailer.frames[1].bases = vec![Base { pack: 0, frame: 0, slot: 0, count: 1 }];
        let fate = |live: u32| fate(&trailer, &trailer.frames[1], |slot| slot < 10 + live, false, 0.0);
        assert_eq!((fate(0), fate(1), fate(10)), (Fate::Gone, Fate::Whole, Fate::Whole));
    }

    #[test]
    fn lengths_are_shares() {
        let trailer = trailer();
        let frame = &trailer.frames[0];
        assert_eq!(len_after(&trailer, frame, Fate::Gone, |_| true), 0);
        assert_eq!(len_after(&trailer, frame, Fate::Whole, |_| false), 516 + 230);
        assert_eq!(len_after(&trailer, frame, Fate::Chunks, |slot| slot < 5), 258 + 115);
    }
}
