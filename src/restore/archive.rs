//! A directory as a pax archive, in order, with sparse members.
//!
//! Members have the directory's own name in front, as `tar -C .. NAME` makes them. What the old
//! header cannot say is in pax records: long names, nanoseconds, extended attributes. Files with
//! zeros or holes are sparse members of GNU's format 1.0: their data begins with the map as text.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;

use tar::{EntryType, Header};

use super::Context;
use super::dump::{Dump, cannot_print};
use crate::error::{Error, Result};
use crate::format::map::{Extent, Map};
use crate::format::tree::{Device, Entry, Payload};
use crate::observe::Event;
use crate::repo::nodes::{Entries, Extents};
use crate::source::path_of;

/// The unit of archives.
const BLOCK: usize = 512;
/// What the old header's number fields hold at most: eleven octal digits, seven for owners.
const SIZE_MAX: u64 = 0o777_7777_7777;
const OWNER_MAX: u64 = 0o777_7777;

/// Writes all of a directory to `out`. Ends at the first chunk that cannot be read.
pub fn tree(context: &Context, entry: &Entry, out: &mut dyn Write) -> Result<()> {
    let name = entry.name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let name = if name.is_empty() { b"root" } else { name };
    let mut archive = Archive { context, out, first_names: HashMap::new() };
    archive.dir(entry, &mut name.to_vec())?;
    archive.write(&[0; 2 * BLOCK])?;
    archive.out.flush().map_err(cannot_print)
}

struct Archive<'a> {
    context: &'a Context<'a>,
    out: &'a mut dyn Write,
    /// Files with several names: the first one, by device and inode.
    first_names: HashMap<(u64, u64), Vec<u8>>,
}

impl Archive<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.context.stop.check()?;
        self.out.write_all(bytes).map_err(cannot_print)
    }

    fn pad(&mut self, len: u64) -> Result<()> {
        let over = (len % BLOCK as u64) as usize;
        if over == 0 { Ok(()) } else { self.write(&[0; BLOCK][over..]) }
    }

    fn dir(&mut self, entry: &Entry, path: &mut Vec<u8>) -> Result<()> {
        let Some(dir) = entry.dir() else { return Err(Error::Internal("no directory")) };
        path.push(b'/');
        self.member(entry, path, EntryType::Directory, 0, Records::of(entry))?;
        let len = path.len();
        for child in Entries::of(self.context.catalog, dir) {
            let child = child?;
            path.truncate(len);
            path.extend_from_slice(&child.name);
            match child.dir() {
                Some(_) => self.dir(&child, path)?,
                None => self.file(&child, path)?,
            }
        }
        Ok(())
    }

    fn file(&mut self, entry: &Entry, path: &[u8]) -> Result<()> {
        if let Some(first) = self.first_name(entry, path) {
            let mut records = Records::of(entry);
            records.add("linkpath", &first);
            return self.member(entry, path, EntryType::Link, 0, records);
        }
        let records = Records::of(entry);
        match &entry.payload {
            Payload::File(map) | Payload::Volume(map) | Payload::Stream(map) => {
                self.content(entry, path, map)
            }
            Payload::Symlink(target) => {
                let mut records = records;
                records.add("linkpath", target);
                self.member(entry, path, EntryType::Symlink, 0, records)
            }
            Payload::BlockDevice(_) => self.member(entry, path, EntryType::Block, 0, records),
            Payload::CharDevice(_) => self.member(entry, path, EntryType::Char, 0, records),
            Payload::Fifo => self.member(entry, path, EntryType::Fifo, 0, records),
            Payload::Socket => {
                let what = "archives cannot hold sockets: it is left out".to_string();
                self.context.observer.event(Event::Problem { path: PathBuf::from(path_of(path)), what });
                Ok(())
            }
            Payload::Dir(_) => Err(Error::Internal("a directory is no file")),
        }
    }

    fn first_name(&mut self, entry: &Entry, path: &[u8]) -> Option<Vec<u8>> {
        let key = (entry.links?.device, entry.inode);
        let first = self.first_names.get(&key).cloned();
        if first.is_none() {
            self.first_names.insert(key, path.to_vec());
        }
        first
    }

    fn content(&mut self, entry: &Entry, path: &[u8], map: &Map) -> Result<()> {
        let mut records = Records::of(entry);
        if map.data_len() == map.len() {
            self.member(entry, path, EntryType::Regular, map.len(), records)?;
            self.data(map, path, map.len())?;
            return self.pad(map.len());
        }
        let text = self.sparse_map(map)?;
        let len = text.len() as u64 + map.data_len();
        records.add("GNU.sparse.major", b"1");
        records.add("GNU.sparse.minor", b"0");
        records.add("GNU.sparse.name", path);
        records.add("GNU.sparse.realsize", map.len().to_string().as_bytes());
        self.member(entry, path, EntryType::Regular, len, records)?;
        self.write(&text)?;
        self.data(map, path, map.data_len())?;
        self.pad(len)
    }

    /// The number of ranges with data, then offset and length of each, padded; a last range of no
    /// length says where the file ends.
    fn sparse_map(&self, map: &Map) -> Result<Vec<u8>> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for item in Extents::of(self.context.catalog, map) {
            let (offset, extent) = item?;
            match (ranges.last_mut(), extent) {
                (Some((start, len)), Extent::Data { .. }) if *start + *len == offset => *len += extent.len(),
                (_, Extent::Data { .. }) => ranges.push((offset, extent.len())),
                _ => {}
            }
        }
        if ranges.last().is_none_or(|(start, len)| start + len < map.len()) {
            ranges.push((map.len(), 0));
        }
        let mut text = format!("{}\n", ranges.len());
        for (offset, len) in ranges {
            text.push_str(&format!("{offset}\n{len}\n"));
        }
        let mut text = text.into_bytes();
        text.resize(text.len().next_multiple_of(BLOCK), 0);
        Ok(text)
    }

    /// The map's data, without zeros and holes unless all of it is data.
    fn data(&mut self, map: &Map, path: &[u8], expected: u64) -> Result<()> {
        let written = Dump::new(self.context, path_of(path), self.out).data_of(map)?;
        match written == expected {
            true => Ok(()),
            false => Err(Error::damaged(path_of(path).display(), "its map has another length than it says")),
        }
    }

    fn member(
        &mut self,
        entry: &Entry,
        path: &[u8],
        kind: EntryType,
        size: u64,
        mut records: Records,
    ) -> Result<()> {
        records.add("path", path);
        if size > SIZE_MAX {
            records.add("size", size.to_string().as_bytes());
        }
        let text = records.0;
        let mut extension = Header::new_ustar();
        extension.set_entry_type(EntryType::XHeader);
        // Readers that know no pax records see a harmless name.
        name_field(&mut extension, b"PaxHeaders/varv");
        extension.set_size(text.len() as u64);
        extension.set_mode(0o644);
        extension.set_cksum();
        self.write(extension.as_bytes())?;
        self.write(&text)?;
        self.pad(text.len() as u64)?;
        let header = header(entry, path, kind, size);
        self.write(header.as_bytes())
    }
}

fn header(entry: &Entry, path: &[u8], kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    name_field(&mut header, path);
    header.set_size(size.min(SIZE_MAX));
    header.set_mode(entry.mode);
    header.set_uid(u64::from(entry.owner.uid).min(OWNER_MAX));
    header.set_gid(u64::from(entry.owner.gid).min(OWNER_MAX));
    header.set_mtime(u64::try_from(entry.modified.seconds).unwrap_or(0).min(SIZE_MAX));
    if let Payload::BlockDevice(Device { major, minor }) | Payload::CharDevice(Device { major, minor }) =
        entry.payload
    {
        let _ = header.set_device_major(major);
        let _ = header.set_device_minor(minor);
    }
    header.set_cksum();
    header
}

/// As much of a path as the old header holds; the whole one is in a pax record.
fn name_field(header: &mut Header, path: &[u8]) {
    let field = &mut header.as_old_mut().name;
    let len = path.len().min(field.len());
    field[..len].copy_from_slice(&path[..len]);
}

/// Pax records: `LENGTH KEY=VALUE`, the length counting itself.
struct Records(Vec<u8>);

impl Records {
    /// What the old header cannot say of an entry.
    fn of(entry: &Entry) -> Self {
        let mut records = Self(Vec::new());
        let time = entry.modified;
        // Before 1970 the fraction counts back from the next second.
        let text = match (time.seconds, time.nanos) {
            (seconds, 0) => seconds.to_string(),
            (seconds, nanos) if seconds >= 0 => format!("{seconds}.{nanos:09}"),
            (-1, nanos) => format!("-0.{:09}", 1_000_000_000 - nanos),
            (seconds, nanos) => format!("{}.{:09}", seconds + 1, 1_000_000_000 - nanos),
        };
        records.add("mtime", text.as_bytes());
        let owner = &entry.owner;
        for (key, number) in [("uid", owner.uid), ("gid", owner.gid)] {
            if u64::from(number) > OWNER_MAX {
                records.add(key, number.to_string().as_bytes());
            }
        }
        for (key, name) in [("uname", &owner.user), ("gname", &owner.group)] {
            if !name.is_empty() {
                records.add(key, name);
            }
        }
        for (name, value) in &entry.xattrs {
            let key = [b"SCHILY.xattr.", &name[..]].concat();
            records.add_bytes(&key, value);
        }
        records
    }

    fn add(&mut self, key: &str, value: &[u8]) {
        self.add_bytes(key.as_bytes(), value);
    }

    fn add_bytes(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while len != rest + len.to_string().len() {
            len = rest + len.to_string().len();
        }
        self.0.extend_from_slice(len.to_string().as_bytes());
        for part in [b" ", key, b"=", value, b"\n"] {
            self.0.extend_from_slice(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_their_own_length() {
        for len in [1, 5, 90, 91, 92, 93, 94, 95, 989, 990, 991, 992, 993, 994] {
            let mut records = Records(Vec::new());
            records.add("key", &vec![b'x'; len]);
            let text = String::from_utf8(records.0).unwrap();
            let (number, _) = text.split_once(' ').unwrap();
            assert_eq!(number.parse(), Ok(text.len()), "{text}");
        }
    }
}
