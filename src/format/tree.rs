//! Trees: a directory's entries with their metadata.
//!
//! ```text
//! leaf    u8 0 · varint count · entries
//! inner   u8 level · varint count · for each child: varint entries · bytes first name · 20 id
//! entry   bytes name · u8 kind · u8 flags · varint mode
//!         · owner, unless flag 1: varint uid, gid · bytes user, group
//!         · time modified, time changed: signed seconds since the entry before, varint ns
//!         · signed inode since the entry before
//!         · if flag 2: varint count, then for each attribute: bytes name, value
//!         · if flag 4: varint device, links
//!         · by kind: file, volume: map · symlink: bytes target · device: varint major, minor
//!           · folder: varint entries, files, bytes · 20 content hash · if entries: u8 level · 20 id
//! ```
//!
//! Flag 1 says that the owner is that of the entry before, flag 2 that there are extended
//! attributes, flag 4 that the file has more than one name. "The entry before" starts as all
//! zeros in each node. Names come in ascending byte order and are checked: not empty, no NUL, no
//! `/`, not `.` or `..` (in the tree of a snapshot's roots they are whole paths or stream names).

mod record;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::hashtree::{self, Root, hash_ends_node};
use super::map::Map;
use super::wire::{Decoded, Malformed, Reader, put_bytes, put_varint};
use super::{NODE_ENTRIES_MAX, NODE_LEVEL_MAX};
use crate::id::{ChunkId, Hasher, Key, checksum};
use record::{Before, put_owner, put_payload, put_time, put_xattrs};

/// The longest name: NAME_MAX on Linux is 255, but roots are named by whole paths.
pub const NAME_LEN_MAX: usize = 64 << 10;
/// The most bytes that all attributes of one entry may take.
pub const XATTRS_LEN_MAX: usize = 4 << 20;

/// What an entry is, with what only that kind has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// A regular file.
    File(Map),
    /// A directory.
    Dir(Dir),
    /// A symbolic link and where it points.
    Symlink(Vec<u8>),
    /// A block device node.
    BlockDevice(Device),
    /// A character device node.
    CharDevice(Device),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// The content of a block device.
    Volume(Map),
    /// The content of a stream.
    Stream(Map),
}

impl Payload {
    /// A file, volume or stream with another content; what has none becomes a file.
    pub fn with_map(self, map: Map) -> Self {
        match self {
            Payload::Volume(_) => Payload::Volume(map),
            Payload::Stream(_) => Payload::Stream(map),
            _ => Payload::File(map),
        }
    }
}

/// A device's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// A directory's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dir {
    /// Its entries' nodes; `None` if it has no entry.
    pub root: Option<Root<ChunkId>>,
    /// How many entries it has.
    pub entries: u64,
    /// Files below it, at any depth.
    pub files: u64,
    /// Their lengths together.
    pub bytes: u64,
    /// A hash of its content without times of change, inodes and devices: equal directories
    /// have equal ones, on any host.
    pub content: ChunkId,
}

/// Seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Time {
    /// Seconds; negative before 1970.
    pub seconds: i64,
    /// Nanoseconds of the second.
    pub nanos: u32,
}

/// Who owns an entry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Owner {
    /// User by number.
    pub uid: u32,
    /// Group by number.
    pub gid: u32,
    /// User by name; empty if the number had none.
    pub user: Vec<u8>,
    /// Group by name; empty if the number had none.
    pub group: Vec<u8>,
}

/// A file with more than one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Links {
    /// The file system's device number; with the inode it names the file.
    pub device: u64,
    /// How many names it had.
    pub count: u64,
}

/// An extended attribute: name and value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name in its directory.
    pub name: Vec<u8>,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Who owns it.
    pub owner: Arc<Owner>,
    /// When its content was modified.
    pub modified: Time,
    /// When its inode was changed.
    pub changed: Time,
    /// Its inode's number.
    pub inode: u64,
    /// Extended attributes, ACLs and capabilities among them, sorted by name.
    pub xattrs: Vec<Xattr>,
    /// If it has more than one name.
    pub links: Option<Links>,
    /// What it is.
    pub payload: Payload,
}

impl Entry {
    /// The content, if it is a file, volume or stream.
    pub fn map(&self) -> Option<&Map> {
        match &self.payload {
            Payload::File(map) | Payload::Volume(map) | Payload::Stream(map) => Some(map),
            _ => None,
        }
    }

    /// Length of the content; 0 for what has none.
    pub fn size(&self) -> u64 {
        self.map().map_or(0, Map::len)
    }

    /// The directory's content, if it is one.
    pub fn dir(&self) -> Option<&Dir> {
        match &self.payload {
            Payload::Dir(dir) => Some(dir),
            _ => None,
        }
    }

    /// A word for the kind, as in lists and JSON.
    pub fn kind(&self) -> &'static str {
        match self.payload {
            Payload::File(_) => "file",
            Payload::Dir(_) => "directory",
            Payload::Symlink(_) => "symlink",
            Payload::BlockDevice(_) => "block-device",
            Payload::CharDevice(_) => "char-device",
            Payload::Fifo => "fifo",
            Payload::Socket => "socket",
            Payload::Volume(_) => "volume",
            Payload::Stream(_) => "stream",
        }
    }

    fn code(&self) -> u8 {
        match self.payload {
            Payload::File(_) => 0,
            Payload::Dir(_) => 1,
            Payload::Symlink(_) => 2,
            Payload::BlockDevice(_) => 3,
            Payload::CharDevice(_) => 4,
            Payload::Fifo => 5,
            Payload::Socket => 6,
            Payload::Volume(_) => 7,
            Payload::Stream(_) => 8,
        }
    }

    /// Feeds what counts for a directory's content hash: all but time changed, inode, device
    /// and, for directories below, node ids.
    pub fn hash_content(&self, hasher: &mut ContentHasher) {
        let out = &mut hasher.scratch;
        out.clear();
        put_bytes(out, &self.name);
        out.push(self.code());
        put_varint(out, self.mode.into());
        put_owner(out, &self.owner);
        put_time(out, self.modified, 0);
        put_xattrs(out, &self.xattrs);
        match &self.payload {
            Payload::Dir(dir) => out.extend_from_slice(&dir.content.0),
            payload => put_payload(out, payload),
        }
        hasher.hasher.update(out);
    }
}

/// Makes a directory's content hash, entry by entry.
pub struct ContentHasher {
    hasher: Hasher,
    scratch: Vec<u8>,
}

impl ContentHasher {
    /// Keyed with the key of tree nodes' ids.
    pub fn new(key: &Key) -> Self {
        Self { hasher: Hasher::keyed(key), scratch: Vec::new() }
    }

    /// The hash of the entries fed.
    pub fn finish(&self) -> ChunkId {
        ChunkId(self.hasher.finish())
    }
}

/// What stands for a tree node in the node above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// The node.
    pub id: ChunkId,
    /// The first name below it.
    pub first: Vec<u8>,
    /// Entries below it.
    pub entries: u64,
}

impl hashtree::Entry for Entry {
    type Child = Child;

    fn ends_node(&self) -> bool {
        // By name alone: what happens to a file does not move the ends of nodes.
        hash_ends_node(&checksum::<4>(&[&self.name]))
    }

    fn weight(&self) -> usize {
        let xattrs: usize = self.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        let target = if let Payload::Symlink(target) = &self.payload { target.len() } else { 0 };
        self.name.len() + xattrs + target
    }

    fn encode_leaf(entries: &[Self]) -> Vec<u8> {
        let mut out = vec![0];
        put_varint(&mut out, entries.len() as u64);
        let mut before = Before::default();
        for entry in entries {
            before.put(&mut out, entry);
        }
        out
    }

    fn encode_inner(level: u8, children: &[Child]) -> Vec<u8> {
        let mut out = vec![level];
        put_varint(&mut out, children.len() as u64);
        for child in children {
            put_varint(&mut out, child.entries);
            put_bytes(&mut out, &child.first);
            out.extend_from_slice(&child.id.0);
        }
        out
    }

    fn child_of_leaf(id: ChunkId, entries: &[Self]) -> Child {
        let first = entries.first().map(|e| e.name.clone()).unwrap_or_default();
        Child { id, first, entries: entries.len() as u64 }
    }

    fn child_of_inner(id: ChunkId, children: &[Child]) -> Child {
        let first = children.first().map(|c| c.first.clone()).unwrap_or_default();
        Child { id, first, entries: children.iter().map(|c| c.entries).sum() }
    }

    fn child_id(child: &Child) -> ChunkId {
        child.id
    }
}

/// A decoded tree node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// Entries.
    Leaf(Vec<Entry>),
    /// Nodes of the level below.
    Inner(Vec<Child>),
}

impl Node {
    /// From a node's bytes; `level` is what the node above says of it. `roots` says that the
    /// names are those of a snapshot's roots.
    pub fn decode(bytes: &[u8], level: u8, roots: bool) -> Decoded<Self> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != level || level > NODE_LEVEL_MAX {
            return Err(Malformed("a tree node has the wrong level"));
        }
        let count = reader.count(8)?;
        if count == 0 || count > NODE_ENTRIES_MAX {
            return Err(Malformed("a tree node has a wrong number of entries"));
        }
        let node = if level == 0 {
            Node::Leaf(read_entries(&mut reader, count, roots)?)
        } else {
            Node::Inner(read_children(&mut reader, count)?)
        };
        reader.end()?;
        Ok(node)
    }
}

fn read_entries(reader: &mut Reader, count: usize, roots: bool) -> Decoded<Vec<Entry>> {
    let mut before = Before::default();
    let mut entries: Vec<Entry> = Vec::with_capacity(count);
    for _ in 0..count {
        let entry = before.read(reader)?;
        check_name(&entry.name, roots)?;
        if entries.last().is_some_and(|last| last.name >= entry.name) {
            return Err(Malformed("names are not in order"));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn read_children(reader: &mut Reader, count: usize) -> Decoded<Vec<Child>> {
    let mut children: Vec<Child> = Vec::with_capacity(count);
    for _ in 0..count {
        let entries = reader.varint()?;
        let first = reader.bytes()?.to_vec();
        if children.last().is_some_and(|last| last.first >= first) {
            return Err(Malformed("names are not in order"));
        }
        children.push(Child { entries, first, id: ChunkId(reader.array()?) });
    }
    Ok(children)
}

/// A name that could lead out of its directory is never let in.
fn check_name(name: &[u8], roots: bool) -> Decoded<()> {
    let bad = name.is_empty()
        || name.len() > NAME_LEN_MAX
        || name.contains(&0)
        || (!roots && (name.contains(&b'/') || name == b"." || name == b".."));
    if bad { Err(Malformed("a name is not allowed")) } else { Ok(()) }
}
