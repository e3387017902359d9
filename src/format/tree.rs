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

use std::sync::Arc;

use super::hashtree::{self, Root, hash_ends_node};
use super::map::Map;
use super::wire::{Decoded, Malformed, Reader, put_bytes, put_signed, put_varint};
use super::{NODE_ENTRIES_MAX, NODE_LEVEL_MAX};
use crate::id::{ChunkId, Hasher, Key, checksum};

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

const FLAG_SAME_OWNER: u8 = 1;
const FLAG_XATTRS: u8 = 2;
const FLAG_LINKS: u8 = 4;

/// The entry before, as far as entries are written relative to it.
#[derive(Default)]
struct Before {
    owner: Arc<Owner>,
    modified: i64,
    changed: i64,
    inode: u64,
}

impl Before {
    fn put(&mut self, out: &mut Vec<u8>, entry: &Entry) {
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

    fn read(&mut self, reader: &mut Reader) -> Decoded<Entry> {
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

fn put_owner(out: &mut Vec<u8>, owner: &Owner) {
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

fn put_time(out: &mut Vec<u8>, time: Time, seconds_before: i64) {
    put_signed(out, time.seconds.wrapping_sub(seconds_before));
    put_varint(out, time.nanos.into());
}

fn read_time(reader: &mut Reader, seconds_before: i64) -> Decoded<Time> {
    let seconds = seconds_before.wrapping_add(reader.signed()?);
    let nanos = reader.at_most(999_999_999, "a time has too many nanoseconds")? as u32;
    Ok(Time { seconds, nanos })
}

fn put_xattrs(out: &mut Vec<u8>, xattrs: &[Xattr]) {
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

fn put_payload(out: &mut Vec<u8>, payload: &Payload) {
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

#[cfg(test)]
mod tests {
    use super::super::hashtree::Entry as _;
    use super::super::map::Extent;
    use super::*;
    use proptest::prelude::*;

    fn any_payload() -> impl Strategy<Value = Payload> {
        let id = any::<[u8; 20]>().prop_map(ChunkId);
        let map = proptest::collection::vec((id.clone(), 1u32..65536), 0..4).prop_map(|chunks| {
            Map::Inline(chunks.into_iter().map(|(id, len)| Extent::Data { id, len }).collect())
        });
        prop_oneof![
            map.clone().prop_map(Payload::File),
            map.prop_map(Payload::Volume),
            any::<Vec<u8>>().prop_map(Payload::Symlink),
            any::<(u32, u32)>().prop_map(|(major, minor)| Payload::CharDevice(Device { major, minor })),
            Just(Payload::Fifo),
            Just(Payload::Socket),
            (id.clone(), id, 1u64..1000).prop_map(|(node, content, entries)| Payload::Dir(Dir {
                root: Some(Root { level: 2, node }),
                entries,
                files: 7,
                bytes: 1 << 50,
                content,
            })),
        ]
    }

    prop_compose! {
        fn any_entry()(
            name in proptest::collection::vec(1u8..=255, 1..20),
            mode in 0u32..=0o7777,
            owner in (any::<u32>(), any::<u32>(), any::<Vec<u8>>(), any::<Vec<u8>>()),
            seconds: [i64; 2],
            nanos in [0u32..1_000_000_000, 0u32..1_000_000_000],
            inode: u64,
            xattrs in proptest::collection::vec((proptest::collection::vec(1u8.., 1..9), any::<Vec<u8>>()), 0..3),
            links in proptest::option::of(any::<(u64, u64)>()),
            payload in any_payload(),
        ) -> Entry {
            let (uid, gid, user, group) = owner;
            let time = |i: usize| Time { seconds: seconds[i], nanos: nanos[i] };
            Entry {
                name: name.into_iter().map(|c| if c == b'/' { b'_' } else { c }).collect(),
                mode,
                owner: Arc::new(Owner { uid, gid, user, group }),
                modified: time(0),
                changed: time(1),
                inode,
                xattrs,
                links: links.map(|(device, count)| Links { device, count }),
                payload,
            }
        }
    }

    fn has_dots(entry: &Entry) -> bool {
        entry.name == b"." || entry.name == b".."
    }

    proptest! {
        #[test]
        fn leaves_come_back(mut entries in proptest::collection::vec(any_entry(), 1..20)) {
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            entries.dedup_by(|a, b| a.name == b.name);
            entries.retain(|e| !has_dots(e));
            prop_assume!(!entries.is_empty());
            let bytes = Entry::encode_leaf(&entries);
            prop_assert_eq!(Node::decode(&bytes, 0, false), Ok(Node::Leaf(entries)));
        }

        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>, level in 0u8..12) {
            let _ = Node::decode(&bytes, level, level % 2 == 0);
        }

        #[test]
        fn flipped_bits_never_panic(entry in any_entry(), at: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = Entry::encode_leaf(&[entry]);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let _ = Node::decode(&bytes, 0, false);
        }
    }

    fn plain(name: &[u8]) -> Entry {
        Entry {
            name: name.to_vec(),
            mode: 0o644,
            owner: Arc::default(),
            modified: Time::default(),
            changed: Time::default(),
            inode: 1,
            xattrs: vec![],
            links: None,
            payload: Payload::Fifo,
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in [&b".."[..], b".", b"", b"a/b", b"/etc", b"a\0b"] {
            let bytes = Entry::encode_leaf(&[plain(name)]);
            assert!(Node::decode(&bytes, 0, false).is_err(), "{name:?}");
        }
        assert!(Node::decode(&Entry::encode_leaf(&[plain(b"/etc")]), 0, true).is_ok());
        let unordered = Entry::encode_leaf(&[plain(b"b"), plain(b"a")]);
        assert!(Node::decode(&unordered, 0, false).is_err());
    }

    #[test]
    fn the_content_hash_ignores_inode_and_time_changed() {
        let hash = |entry: &Entry| {
            let mut hasher = ContentHasher::new(&[1; 32]);
            entry.hash_content(&mut hasher);
            hasher.finish()
        };
        let a = plain(b"a");
        let elsewhere = Entry { inode: 99, changed: Time { seconds: 5, nanos: 5 }, ..a.clone() };
        assert_eq!(hash(&a), hash(&elsewhere));
        assert_ne!(hash(&a), hash(&Entry { mode: 0o600, ..a.clone() }));
    }
}
