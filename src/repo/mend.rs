//! Undoing the flip of one bit, and cutting off what was added behind an object's end, where something
//! tells that it was undone: what a bad cell or a ray does, and a medium's own checksums miss, or what
//! a file system leaves that lost its power.
//!
//! Objects are named by the hash of their bytes, and a pack's footer has a checksum of its header
//! and trailer; so all flips can be tried. Bytes that are many are not tried: each flip costs a
//! hash of all of them.

use super::layout;
use super::reader::{OpenPack, PackReader};
use crate::error::{Error, Result};
use crate::format::pack::{FOOTER_LEN, Footer, HEADER_LEN, MAGIC_END, TRAILER_MAX};
use crate::id::{PackId, SnapshotId};

/// Bytes that are hashed in all, at most: a few seconds.
const WORK_MAX: u64 = 1 << 34;
/// The longest pack that is put right, several times as long as they are made.
const PACK_MAX: u64 = 128 << 20;
/// So many places in a pack that look like its end are tried, the last ones.
const ENDS_MAX: usize = 16;

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

/// A pack's bytes as they were named, without what was added behind their end, or with the one bit
/// flipped back in its header, trailer or footer; `None` if it was neither of these.
pub fn pack(reader: &PackReader, id: &PackId, len: u64) -> Result<Option<Vec<u8>>> {
    if len > PACK_MAX {
        return Ok(None);
    }
    let mut bytes = reader.store().read(&layout::pack(id), PACK_MAX)?;
    if let Some(end) = end_of(id, &bytes) {
        bytes.truncate(end);
        return Ok(Some(bytes));
    }
    let Some(Table { header, trailer, footer }) = table(reader, id, len)? else { return Ok(None) };
    let table = [&trailer[..], &footer.encode()].concat();
    let Some(at) = bytes.len().checked_sub(table.len()).filter(|at| *at >= HEADER_LEN) else {
        return Ok(None);
    };
    if bytes[..HEADER_LEN] == header && bytes[at..] == table {
        return Ok(None);
    }
    bytes[..HEADER_LEN].copy_from_slice(&header);
    bytes[at..].copy_from_slice(&table);
    Ok((PackId::of(&bytes) == *id).then_some(bytes))
}

/// Where a pack ended to which bytes were added.
fn end_of(id: &PackId, bytes: &[u8]) -> Option<usize> {
    let looks_like_one = |end: &usize| {
        end.checked_sub(FOOTER_LEN).is_some_and(|at| Footer::decode(&bytes[at..*end], *end as u64).is_ok())
    };
    let magics = bytes.windows(MAGIC_END.len()).enumerate().rev().filter(|(_, window)| window == MAGIC_END);
    let ends = magics.map(|(at, _)| at + MAGIC_END.len()).filter(|end| *end < bytes.len());
    ends.filter(looks_like_one).take(ENDS_MAX).find(|end| PackId::of(&bytes[..*end]) == *id)
}

/// Opens a pack whose header, trailer or footer has one bit flipped; an error if it is worse.
pub fn open_pack(reader: &PackReader, id: &PackId, len: u64) -> Result<OpenPack> {
    match table(reader, id, len)? {
        Some(mut table) => reader.open_parts(id, len, &table.header, &mut table.trailer, table.footer),
        None => Err(Error::damaged(format!("pack {id}"), "its table of contents cannot be read")),
    }
}

/// What tells what is in a pack; the three fit each other.
struct Table {
    header: [u8; HEADER_LEN],
    trailer: Vec<u8>,
    footer: Footer,
}

/// A pack's table, one bit of it flipped back if there is need; `None` if that does not do.
fn table(reader: &PackReader, id: &PackId, len: u64) -> Result<Option<Table>> {
    if len < (HEADER_LEN + FOOTER_LEN) as u64 {
        return Ok(None);
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
            return Ok(Some(Table { header, trailer, footer: whole }));
        }
    }
    let fits = |bytes: &[u8]| {
        let Ok(footer) = Footer::decode(bytes, len) else { return false };
        is_affordable(footer.trailer_len as usize)
            && trailer_of(&footer).is_ok_and(|trailer| footer.fits(&header, &trailer))
    };
    if !flip(&mut footer, fits) {
        return Ok(None);
    }
    let Ok(footer) = Footer::decode(&footer, len) else { return Ok(None) };
    Ok(Some(Table { header, trailer: trailer_of(&footer)?, footer }))
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
