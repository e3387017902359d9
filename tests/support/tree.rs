//! Everything about a directory tree that a backup must keep, to be compared.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, lgetxattr, llistxattr, openat, readlinkat, statat,
};

/// How much more a copy may be given by the file system than its original: room for its own maps.
const ALLOCATED_SLACK: u64 = 64 << 10;

/// All entries by their paths; the root's is empty.
pub type Tree = BTreeMap<Vec<u8>, Node>;

/// What must be the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub mode: u32,
    pub owner: (u32, u32),
    pub modified: (i64, i64),
    pub content: Content,
    pub xattrs: BTreeMap<CString, Vec<u8>>,
    /// The first path of the same file in this tree.
    pub first_name: Vec<u8>,
    /// Bytes that the file system gave it; may be less in a copy.
    pub allocated: Allocated,
}

/// Compared by itself, as a copy may have less.
#[derive(Debug, Clone, Copy, Eq)]
pub struct Allocated(pub u64);

impl PartialEq for Allocated {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    File { len: u64, hash: blake3::Hash },
    Dir,
    Symlink(CString),
    Device(u64),
    Other,
}

/// Reads a tree, or a single file. Goes by open directories, so that paths may be of any length.
pub fn read(root: &Path) -> Tree {
    let mut reader = Reader::default();
    let stat = statat(CWD, root, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    let name = CString::new(std::os::unix::ffi::OsStrExt::as_bytes(root.as_os_str())).unwrap();
    reader.entry(&CWD, &name, Vec::new(), &stat);
    reader.tree
}

#[derive(Default)]
struct Reader {
    tree: Tree,
    first_names: HashMap<(u64, u64), Vec<u8>>,
}

impl Reader {
    fn entry(&mut self, dir: &impl AsFd, name: &CString, path: Vec<u8>, stat: &Stat) {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let first_name =
            self.first_names.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.clone()).clone();
        let node = Node {
            mode: stat.st_mode,
            owner: (stat.st_uid, stat.st_gid),
            modified: (stat.st_mtime, stat.st_mtime_nsec as i64),
            content: content(dir, name, kind, stat),
            xattrs: xattrs(dir, name),
            first_name,
            allocated: Allocated(stat.st_blocks as u64 * 512),
        };
        self.tree.insert(path.clone(), node);
        if kind == FileType::Directory {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            self.below(openat(dir, name, flags, Mode::empty()).unwrap(), &path);
        }
    }

    fn below(&mut self, dir: OwnedFd, path: &[u8]) {
        let mut names: Vec<CString> =
            Dir::read_from(&dir).unwrap().map(|entry| entry.unwrap().file_name().to_owned()).collect();
        names.retain(|name| !matches!(name.as_bytes(), b"." | b".."));
        names.sort();
        for name in names {
            let path = [path, name.as_bytes()].join(&b'/');
            let stat = statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            self.entry(&dir, &name, path, &stat);
        }
    }
}

fn content(dir: &impl AsFd, name: &CString, kind: FileType, stat: &Stat) -> Content {
    match kind {
        FileType::RegularFile => Content::File { len: stat.st_size as u64, hash: hash(dir, name) },
        FileType::Directory => Content::Dir,
        FileType::Symlink => Content::Symlink(readlinkat(dir, name, Vec::new()).unwrap()),
        FileType::BlockDevice | FileType::CharacterDevice => Content::Device(stat.st_rdev),
        _ => Content::Other,
    }
}

fn hash(dir: &impl AsFd, name: &CString) -> blake3::Hash {
    let mut file = File::from(openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap());
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return hasher.finalize(),
            len => hasher.update(&buffer[..len]),
        };
    }
}

/// By way of /proc, as there is no call that takes a directory and a name.
fn xattrs(dir: &impl AsFd, name: &CString) -> BTreeMap<CString, Vec<u8>> {
    let mut path = match dir.as_fd().as_raw_fd() {
        fd if fd < 0 => Vec::new(),
        fd => format!("/proc/self/fd/{fd}/").into_bytes(),
    };
    path.extend_from_slice(name.as_bytes());
    let mut names = vec![0; 64 << 10];
    let len = llistxattr(path.as_slice(), &mut names[..]).unwrap_or(0);
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &CString| {
        let mut value = vec![0; 64 << 10];
        let len = lgetxattr(path.as_slice(), name, &mut value[..]).unwrap();
        value[..len].to_vec()
    };
    names.map(|name| CString::new(name).unwrap()).map(|name| (name.clone(), value(&name))).collect()
}

/// What is not the same, in words.
pub fn differences(expected: &Tree, actual: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, node) in expected {
        let path_word = path.escape_ascii();
        match actual.get(path) {
            None => found.push(format!("{path_word}: missing")),
            Some(other) if other != node => found.push(format!("{path_word}:\n  {node:?}\n  {other:?}")),
            Some(other) if other.allocated.0 > node.allocated.0 + ALLOCATED_SLACK => found.push(format!(
                "{path_word}: {} bytes allocated instead of {}",
                other.allocated.0, node.allocated.0
            )),
            Some(_) => {}
        }
    }
    let surplus = actual.keys().filter(|path| !expected.contains_key(*path));
    found.extend(surplus.map(|path| format!("{}: should not be there", path.escape_ascii())));
    found
}

/// Panics, and says how, if a tree is not as it should be.
pub fn assert_tree(expected: &Tree, actual: &Path) {
    let found = differences(expected, &read(actual));
    assert!(found.is_empty(), "{} differs:\n{}", actual.display(), found.join("\n"));
}

/// The same for a copy of something that is still there.
pub fn assert_same(expected: &Path, actual: &Path) {
    assert_tree(&read(expected), actual);
}
