//! Undoing the flip of one bit, where something tells that it was undone: what a bad cell or a
//! ray does, and a medium's own checksums miss.
//!
//! Objects are named by the hash of their bytes, and a pack's footer has a checksum of its header
//! and trailer; so all flips can be tried. Bytes that are many are not tried: each flip costs a
//! hash of all of them.

use super::layout;
use super::reader::{OpenPack, PackReader};
use crate::error::{Error, Result};
use crate::format::pack::{FOOTER_LEN, Footer, HEADER_LEN, TRAILER_MAX};
use crate::id::{PackId, SnapshotId};

/// Bytes that are hashed in all, at most: a few seconds.
const WORK_MAX: u64 = 1 << 34;

/// Calls `is_right` with each of all forms of `bytes` with one bit flipped, until it says yes; then
/// that form is left in `bytes`.
fn flip(bytes: &mut [u8], mut is_right: impl FnMut(&[u8]) -> bool) -> bool {
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            if is_right(bytes) {
                return true;
            }
            bytes[at] ^= 1 << bit;
        }
    }
    false
}

fn is_affordable(len: usize) -> bool {
    (len as u64).saturating_mul(len as u64).saturating_mul(8) <= WORK_MAX
}

/// A snapshot object's bytes as they were before one bit flipped; `None` if it was not that.
pub fn snapshot(id: &SnapshotId, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    (is_affordable(bytes.len()) && flip(&mut bytes, |bytes| SnapshotId::of(bytes) == *id)).then_some(bytes)
}

/// Opens a pack whose header, trailer or footer has one bit flipped; an error if it is worse.
pub fn open_pack(reader: &PackReader, id: &PackId, len: u64) -> Result<OpenPack> {
    let worse = || Error::damaged(format!("pack {id}"), "its table of contents cannot be read");
    if len < (HEADER_LEN + FOOTER_LEN) as u64 {
        return Err(worse());
    }
    let name = layout::pack(id);
    let (mut header, mut footer) = ([0; HEADER_LEN], [0; FOOTER_LEN]);
    reader.store().get(&name, 0, &mut header)?;
    reader.store().get(&name, len - FOOTER_LEN as u64, &mut footer)?;
    let trailer_of = |footer: &Footer| {
        let trailer_len = footer.trailer_len.min(TRAILER_MAX) as usize;
        let mut trailer = vec![0; trailer_len];
        reader.store().get(&name, len - (FOOTER_LEN + trailer_len) as u64, &mut trailer).map(|()| trailer)
    };
    if let Ok(whole) = Footer::decode(&footer, len) {
        let mut trailer = trailer_of(&whole)?;
        let found = whole.fits(&header, &trailer)
            || (is_affordable(trailer.len())
                && (flip_header(&mut header, |header| whole.fits(header, &trailer))
                    || flip(&mut trailer, |trailer| whole.fits(&header, trailer))));
        if found {
            return reader.open_parts(id, len, &header, &mut trailer, whole);
        }
    }
    let fits = |bytes: &[u8]| {
        let Ok(footer) = Footer::decode(bytes, len) else { return false };
        is_affordable(footer.trailer_len as usize)
            && trailer_of(&footer).is_ok_and(|trailer| footer.fits(&header, &trailer))
    };
    if !flip(&mut footer, fits) {
        return Err(worse());
    }
    let footer = Footer::decode(&footer, len).map_err(|_| worse())?;
    let mut trailer = trailer_of(&footer)?;
    reader.open_parts(id, len, &header, &mut trailer, footer)
}

fn flip_header(header: &mut [u8; HEADER_LEN], is_right: impl Fn(&[u8; HEADER_LEN]) -> bool) -> bool {
    flip(&mut header[..], |bytes| bytes.first_chunk().is_some_and(&is_right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_flip_is_undone_and_two_are_not() {
        let whole: Vec<u8> = (0..200).collect();
        let id = SnapshotId::of(&whole);
        for at in 0..whole.len() {
            let mut spoilt = whole.clone();
            spoilt[at] ^= 1 << (at % 8);
            assert_eq!(snapshot(&id, spoilt.clone()), Some(whole.clone()));
            spoilt[(at + 1) % whole.len()] ^= 4;
            assert_eq!(snapshot(&id, spoilt), None);
        }
        assert_eq!(snapshot(&id, whole[..100].to_vec()), None);
        assert_eq!(snapshot(&id, Vec::new()), None);
        assert!(!is_affordable(1 << 20) && is_affordable(40 << 10));
    }
}
