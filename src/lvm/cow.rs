//! What has changed in a thick volume since a classic snapshot of it was taken: the exceptions in
//! the snapshot's copy-on-write device.
//!
//! The layout is that of `drivers/md/dm-snap-persistent.c`, all integers little-endian:
//!
//! | where | what |
//! |---|---|
//! | bytes 0 to 3 | magic `SnAp` |
//! | 4 to 7 | 1 if valid; 0 once it has overflowed |
//! | 8 to 11 | version 1 |
//! | 12 to 15 | sectors of a chunk |
//! | chunk `1 + (E + 1) × k` | table k: `E` pairs of `u64`: chunk of the origin, chunk of this device; `E` is a chunk's bytes / 16 |
//!
//! The first pair whose second number is 0 ends the list. The kernel writes the device under the
//! page cache, so it has to be read past it.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::command::run;
use super::report::Lv;
use crate::error::{IoContext, Result};
use crate::source::changes::Changes;

const MAGIC: u32 = 0x7041_6e53;
const VERSION: u32 = 1;
const SECTOR: u64 = 512;
/// What LVM makes: 4 KiB to 512 KiB.
const CHUNK_MIN: u64 = 4 << 10;
const CHUNK_MAX: u64 = 512 << 10;
const ENTRY_LEN: usize = 16;
/// Addresses and lengths of reads past the page cache are multiples of this.
const ALIGN: usize = 4096;

/// What has changed in a volume of `len` bytes since `snapshot` was taken; or why that is not
/// known.
pub fn changes_since(snapshot: &Lv, len: u64) -> Result<Result<Changes, String>> {
    if has_overflowed(&snapshot.device)? {
        return Ok(Err("the kept snapshot has overflowed".into()));
    }
    let path = PathBuf::from(format!("{}-cow", snapshot.device.display()));
    let file = File::options().read(true).custom_flags(OFlags::DIRECT.bits().cast_signed()).open(&path);
    let file = file.at("open", &path)?;
    read(&Direct(file), len).at("read", &path)
}

/// Whether a classic snapshot's room was too small; what was read from it before is right.
pub fn has_overflowed(device: &Path) -> Result<bool> {
    let name = device.file_name().unwrap_or_default();
    let status = run("dmsetup", ["status".as_ref(), name])?;
    Ok(status.contains(" snapshot Invalid") || status.contains(" snapshot Overflow"))
}

/// Bytes at an offset.
trait ReadAt {
    /// All of `len` bytes at `offset`, both multiples of [`ALIGN`].
    fn read(&self, offset: u64, len: usize) -> std::io::Result<Vec<u8>>;
}

/// A device that is read past the page cache.
struct Direct(File);

impl ReadAt for Direct {
    fn read(&self, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
        let mut room = vec![0; len + ALIGN];
        let start = room.as_ptr().align_offset(ALIGN);
        let Some(aligned) = room.get_mut(start..start + len) else {
            return Err(std::io::Error::other("no aligned memory"));
        };
        self.0.read_exact_at(aligned, offset)?;
        Ok(aligned.to_vec())
    }
}

fn read(device: &impl ReadAt, len: u64) -> std::io::Result<Result<Changes, String>> {
    let header = device.read(0, ALIGN)?;
    let field = |at: usize| number(&header, at, 4) as u32;
    let chunk = u64::from(field(12)) * SECTOR;
    if field(0) != MAGIC || field(8) != VERSION {
        return Ok(Err("the kept snapshot's list of changes has an unknown form".into()));
    }
    if field(4) != 1 {
        return Ok(Err("the kept snapshot has overflowed".into()));
    }
    if !(CHUNK_MIN..=CHUNK_MAX).contains(&chunk) || !chunk.is_power_of_two() {
        return Ok(Err(format!("the kept snapshot has chunks of {chunk} bytes")));
    }
    tables(device, chunk, len)
}

fn tables(device: &impl ReadAt, chunk: u64, len: u64) -> std::io::Result<Result<Changes, String>> {
    let mut changes = Changes::none(len);
    let entries = chunk / ENTRY_LEN as u64;
    // Each chunk of the origin is named once at most.
    let tables_max = len.div_ceil(chunk) / entries + 1;
    for table in 0..tables_max {
        let bytes = device.read((1 + (entries + 1) * table) * chunk, chunk as usize)?;
        for entry in bytes.chunks_exact(ENTRY_LEN) {
            let (old, new) = (number(entry, 0, 8), number(entry, 8, 8));
            if new == 0 {
                return Ok(Ok(changes));
            }
            match old.checked_mul(chunk).filter(|start| *start < len) {
                Some(start) => changes.add(start..start + chunk),
                None => {
                    return Ok(Err(format!(
                        "the kept snapshot tells of a change in chunk {old}, which is behind the volume's end"
                    )));
                }
            }
        }
    }
    // A volume all of whose chunks have changed may end its list with the last table.
    Ok(Ok(changes))
}

/// A little-endian number of `len` bytes, at most 8; bytes that are not there are zeros.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let taken = bytes.get(at..at + len).unwrap_or_default();
    taken.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHUNK: usize = 4096;
    const LEN: u64 = 8 << 20;

    impl ReadAt for Vec<u8> {
        fn read(&self, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
            let start = offset as usize;
            self.get(start..start + len)
                .map(<[u8]>::to_vec)
                .ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
        }
    }

    /// As the kernel writes it: exceptions one after the other, each table before its data.
    fn device(changed: &[u64]) -> Vec<u8> {
        let mut bytes = vec![0; CHUNK];
        for (at, value) in [(0, MAGIC), (4, 1), (8, VERSION), (12, 8)] {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let per_table = CHUNK / ENTRY_LEN;
        for (number, old) in changed.iter().enumerate() {
            let table = (1 + (per_table + 1) * (number / per_table)) * CHUNK;
            let at = table + number % per_table * ENTRY_LEN;
            bytes.resize(bytes.len().max(table + (per_table + 1) * CHUNK), 0);
            bytes[at..at + 8].copy_from_slice(&old.to_le_bytes());
            bytes[at + 8..at + 16].copy_from_slice(&(number as u64 + 2).to_le_bytes());
        }
        bytes.resize(bytes.len() + 2 * CHUNK, 0);
        bytes
    }

    fn changed(changes: &Changes) -> Vec<u64> {
        let (mut out, mut at) = (Vec::new(), 0);
        while let Some(range) = changes.next_changed(at) {
            out.extend(range.start / CHUNK as u64..range.end / CHUNK as u64);
            at = range.end;
        }
        out
    }

    #[test]
    fn exceptions_are_found_in_every_table() {
        for count in [0u64, 1, 255, 256, 257, 600] {
            let list: Vec<u64> = (0..count).map(|number| number * 7 % 2048).collect();
            let mut sorted = list.clone();
            sorted.sort_unstable();
            assert_eq!(changed(&read(&device(&list), LEN).unwrap().unwrap()), sorted, "{count}");
        }
        let all: Vec<u64> = (0..2048).collect();
        assert_eq!(read(&device(&all), LEN).unwrap().unwrap().bytes(), LEN);
    }

    #[test]
    fn what_cannot_be_believed_is_said() {
        let good = device(&[1, 2, 3]);
        for (at, value, why) in
            [(0, 0u32, "form"), (4, 0, "overflowed"), (8, 2, "form"), (12, 3, "chunks of 1536")]
        {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let said = read(&bad, LEN).unwrap().unwrap_err();
            assert!(said.contains(why), "{said}");
        }
        assert!(read(&device(&[2048]), LEN).unwrap().unwrap_err().contains("behind the volume's end"));
        assert!(read(&good[..4096].to_vec(), LEN).is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..9000) {
            let mut device = device(&[5, 9]);
            for (byte, place) in bytes.into_iter().zip(at..) {
                if let Some(old) = device.get_mut(place) {
                    *old = byte;
                }
            }
            let _ = read(&device, LEN);
        }
    }
}
