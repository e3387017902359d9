//! One entry of a tree, byte by byte, relative to the entry before.

use std::sync::Arc;

use super::super::NODE_LEVEL_MAX;
use super::super::hashtree::Root;
use super::super::map::Map;
use super::super::wire::{Decoded, Malformed, Reader, put_bytes, put_signed, put_varint};
use super::{Device, Dir, Entry, Links, Owner, Payload, Time, Xattr};
use crate::id::ChunkId;

const FLAG_SAME_OWNER: u8 = 1;
const FLAG_XATTRS: u8 = 2;
const FLAG_LINKS: u8 = 4;

/// The entry before, as far as entries are written relative to it.
#[derive(Default)]
pub(super) struct Before {
    owner: Arc<Owner>,
    modified: i64,
    changed: i64,
    inode: u64,
}

impl Before {
    pub(super) fn put(&mut self, out: &mut Vec<u8>, entry: &Entry) {
        let same_owner = entry.owner == self.owner;
        let mut flags = 0;
        if same_owner {
            flags |= FLAG_SAME_OWNER;
        }
        if !entry.xattrs.is_empty() {
            flags |= FLAG_XATTRS;
        }
        if entry.links.is_some() {
            flags |= FLAG_LINKS;
        }
        put_bytes(out, &entry.name);
        out.extend_from_slice(&[entry.code(), flags]);
        put_varint(out, entry.mode.into());
        if !same_owner {
            put_owner(out, &entry.owner);
        }
        put_time(out, entry.modified, self.modified);
        put_time(out, entry.changed, self.changed);
        put_signed(out, entry.inode.wrapping_sub(self.inode) as i64);
        if !entry.xattrs.is_empty() {
            put_xattrs(out, &entry.xattrs);
        }
        if let Some(links) = entry.links {
            put_varint(out, links.device);
            put_varint(out, links.count);
        }
        put_payload(out, &entry.payload);
        self.follow(entry);
    }

    fn follow(&mut self, entry: &Entry) {
        self.owner = Arc::clone(&entry.owner);
        self.modified = entry.modified.seconds;
        self.changed = entry.changed.seconds;
        self.inode = entry.inode;
    }

    pub(super) fn read(&mut self, reader: &mut Reader) -> Decoded<Entry> {
        let name = reader.bytes()?.to_vec();
        let code = reader.u8()?;
        let flags = reader.u8()?;
        if flags & !(FLAG_SAME_OWNER | FLAG_XATTRS | FLAG_LINKS) != 0 {
            return Err(Malformed("an entry's flags are unknown"));
        }
        let mode = reader.at_most(0o7777, "an entry's mode is unknown")? as u32;
        let owner = if flags & FLAG_SAME_OWNER != 0 {
            Arc::clone(&self.owner)
        } else {
            Arc::new(read_owner(reader)?)
        };
        let modified = read_time(reader, self.modified)?;
        let changed = read_time(reader, self.changed)?;
        let inode = self.inode.wrapping_add(reader.signed()? as u64);
        let xattrs = if flags & FLAG_XATTRS != 0 { read_xattrs(reader)? } else { Vec::new() };
        let links = if flags & FLAG_LINKS != 0 {
            Some(Links { device: reader.varint()?, count: reader.varint()? })
        } else {
            None
        };
        let payload = read_payload(reader, code)?;
        let entry = Entry { name, mode, owner, modified, changed, inode, xattrs, links, payload };
        self.follow(&entry);
        Ok(entry)
    }
}

pub(super) fn put_owner(out: &mut Vec<u8>, owner: &Owner) {
    put_varint(out, owner.uid.into());
    put_varint(out, owner.gid.into());
    put_bytes(out, &owner.user);
    put_bytes(out, &owner.group);
}

fn read_owner(reader: &mut Reader) -> Decoded<Owner> {
    let uid = reader.at_most(u32::MAX.into(), "a user number is too large")? as u32;
    let gid = reader.at_most(u32::MAX.into(), "a group number is too large")? as u32;
    Ok(Owner { uid, gid, user: reader.bytes()?.to_vec(), group: reader.bytes()?.to_vec() })
}

pub(super) fn put_time(out: &mut Vec<u8>, time: Time, seconds_before: i64) {
    put_signed(out, time.seconds.wrapping_sub(seconds_before));
    put_varint(out, time.nanos.into());
}

fn read_time(reader: &mut Reader, seconds_before: i64) -> Decoded<Time> {
    let seconds = seconds_before.wrapping_add(reader.signed()?);
    let nanos = reader.at_most(999_999_999, "a time has too many nanoseconds")? as u32;
    Ok(Time { seconds, nanos })
}

pub(super) fn put_xattrs(out: &mut Vec<u8>, xattrs: &[Xattr]) {
    put_varint(out, xattrs.len() as u64);
    for (name, value) in xattrs {
        put_bytes(out, name);
        put_bytes(out, value);
    }
}

fn read_xattrs(reader: &mut Reader) -> Decoded<Vec<Xattr>> {
    (0..reader.count(2)?)
        .map(|_| {
            let name = reader.bytes()?;
            if name.is_empty() || name.contains(&0) {
                return Err(Malformed("an attribute's name is not allowed"));
            }
            Ok((name.to_vec(), reader.bytes()?.to_vec()))
        })
        .collect()
}

pub(super) fn put_payload(out: &mut Vec<u8>, payload: &Payload) {
    match payload {
        Payload::File(map) | Payload::Volume(map) | Payload::Stream(map) => map.put(out),
        Payload::Symlink(target) => put_bytes(out, target),
        Payload::BlockDevice(device) | Payload::CharDevice(device) => {
            put_varint(out, device.major.into());
            put_varint(out, device.minor.into());
        }
        Payload::Fifo | Payload::Socket => {}
        Payload::Dir(dir) => {
            put_varint(out, dir.entries);
            put_varint(out, dir.files);
            put_varint(out, dir.bytes);
            out.extend_from_slice(&dir.content.0);
            if let Some(root) = &dir.root {
                out.push(root.level);
                out.extend_from_slice(&root.node.0);
            }
        }
    }
}

fn read_payload(reader: &mut Reader, code: u8) -> Decoded<Payload> {
    Ok(match code {
        0 => Payload::File(Map::read(reader)?),
        1 => Payload::Dir(read_dir(reader)?),
        2 => Payload::Symlink(reader.bytes()?.to_vec()),
        3 => Payload::BlockDevice(read_device(reader)?),
        4 => Payload::CharDevice(read_device(reader)?),
        5 => Payload::Fifo,
        6 => Payload::Socket,
        7 => Payload::Volume(Map::read(reader)?),
        8 => Payload::Stream(Map::read(reader)?),
        _ => return Err(Malformed("an entry's kind is unknown")),
    })
}

fn read_device(reader: &mut Reader) -> Decoded<Device> {
    let major = reader.at_most(u32::MAX.into(), "a device number is too large")? as u32;
    let minor = reader.at_most(u32::MAX.into(), "a device number is too large")? as u32;
    Ok(Device { major, minor })
}

fn read_dir(reader: &mut Reader) -> Decoded<Dir> {
    let entries = reader.varint()?;
    let files = reader.varint()?;
    let bytes = reader.varint()?;
    let content = ChunkId(reader.array()?);
    let root = if entries == 0 {
        None
    } else {
        let level = reader.u8()?;
        if level > NODE_LEVEL_MAX {
            return Err(Malformed("a directory is too deep"));
        }
        Some(Root { level, node: ChunkId(reader.array()?) })
    };
    Ok(Dir { root, entries, files, bytes, content })
}
