//! What goes through the pipeline: the scan's steps, and what reading makes of them.

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::Stat;

use super::cut::Piece;
use super::expect::Expected;
use super::update::{Basis, Region};
use crate::format::map::Map;
use crate::format::snapshot::VolumeInfo;
use crate::format::tree::Entry;
use crate::id::{ChunkId, SnapshotId};
use crate::nested::Nested;
use crate::source::path_of;

/// Files up to this length are read at once, longer ones in pieces of it.
pub const PIECE_LEN: u64 = 2 << 20;

/// Pieces up to this length are handed over together, and get buffers of their own: those that are used again
/// may be of any length.
const SMALL_PIECE_MAX: u64 = 64 << 10;

/// Files with several names that are remembered, so that they are read once; others are read
/// again under each name.
pub const LINKED_MAX: usize = 256 << 10;

/// How an entry compares with the parent snapshot.
#[derive(Debug, Clone)]
pub enum Change {
    /// The parent does not have it.
    New,
    /// The parent has it like this, which is otherwise as far as is known without reading it.
    Changed(Arc<Entry>),
    /// It is as the parent has it.
    Unchanged,
}

impl Change {
    /// Of what is read because the parent has it otherwise, or not. What was a directory there
    /// is new.
    pub fn since(before: Option<&Entry>) -> Self {
        match before.filter(|before| before.dir().is_none()) {
            Some(before) => Change::Changed(Arc::new(before.clone())),
            None => Change::New,
        }
    }
}

/// Whether nothing that is restored differs: all but inode, time of last change of status, and
/// number of names.
pub fn is_same(before: &Entry, after: &Entry) -> bool {
    before.mode == after.mode
        && before.owner == after.owner
        && before.modified == after.modified
        && before.xattrs == after.xattrs
        && before.payload == after.payload
}

/// An open directory and its path.
#[derive(Debug)]
pub struct Folder {
    /// Open; `None` for the folder of a root, which is opened by its path.
    pub fd: Option<Arc<OwnedFd>>,
    /// For messages.
    pub path: Nested,
}

/// Where something is.
#[derive(Debug, Clone)]
pub struct Place {
    /// The directory that it is in.
    pub folder: Arc<Folder>,
    /// Its name there; empty for a root, whose folder's path is its own.
    pub name: Vec<u8>,
}

impl Place {
    /// A root.
    pub fn root(path: &Path) -> Self {
        let path = Nested::root(path.as_os_str().as_bytes());
        Self { folder: Arc::new(Folder { fd: None, path }), name: Vec::new() }
    }

    /// The whole path.
    pub fn path(&self) -> PathBuf {
        path_of(&self.nested().whole()).to_path_buf()
    }

    /// The same, for what is in it.
    pub fn nested(&self) -> Nested {
        if self.name.is_empty() { self.folder.path.clone() } else { self.folder.path.child(&self.name) }
    }
}

/// A file to be read.
#[derive(Debug)]
pub struct FileToRead {
    /// Where it is.
    pub place: Place,
    /// The name of its entry.
    pub name: Vec<u8>,
    /// What the walk saw of it.
    pub stat: Stat,
    /// How it compares with the parent.
    pub change: Change,
    /// What the parent has as its content.
    pub earlier: Option<Box<Map>>,
}

/// Where a piece's bytes come from.
pub enum PieceSource {
    /// A range of an open file, all of it data.
    File {
        /// The file.
        file: Arc<File>,
        /// Its length.
        len: u64,
    },
    /// Bytes that were read already.
    Bytes(Vec<u8>),
    /// A hole of this length.
    Hole(u64),
}

/// A stretch of a large file, volume or stream.
pub struct PieceToRead {
    /// Where its bytes come from.
    pub source: PieceSource,
    /// Where it begins.
    pub offset: u64,
    /// Whether data may go on behind it.
    pub more_follows: bool,
    /// Whether what cannot be read becomes zeros.
    pub zero_errors: bool,
    /// What is in it if it has not changed.
    pub expected: Vec<Expected>,
}

impl PieceToRead {
    /// Of what nothing is expected.
    pub fn new(source: PieceSource, offset: u64, more_follows: bool) -> Self {
        Self { source, offset, more_follows, zero_errors: false, expected: Vec::new() }
    }

    /// The bytes to be read, if they are few: such pieces are handed over together, as a file of many small runs
    /// has thousands of them.
    pub fn small_len(&self) -> Option<u64> {
        match &self.source {
            PieceSource::Hole(_) => Some(0),
            PieceSource::File { len, .. } if *len <= SMALL_PIECE_MAX => Some(*len),
            PieceSource::File { .. } | PieceSource::Bytes(_) => None,
        }
    }
}

/// How a large file is to be checked once it was read.
pub struct LargeEnd {
    /// The file and its stat before; `None` for devices and streams.
    pub before: Option<(Arc<File>, Stat)>,
    /// The classic LVM snapshot that it was read from: it may have overflowed meanwhile.
    pub snapshot: Option<PathBuf>,
}

/// Something to do, in the order of the tree.
pub enum Step {
    /// A directory begins.
    Enter(Entry),
    /// The directory ends.
    Leave,
    /// These tree nodes were read from the repository: they need not be stored.
    Known(Vec<ChunkId>),
    /// An entry that is complete.
    Ready(Entry, Change),
    /// A file to be read at once.
    Read(FileToRead),
    /// One more name of a file that went by already under another: it is not read again.
    Again(Place, Entry, Change),
    /// A large file, volume or stream begins; what the parent has as its content, and its length, 0
    /// if that is not known yet.
    Begin(Place, Entry, Change, Option<Box<Map>>, u64),
    /// What was known of the volume that has begun, since which snapshot, and how it is read.
    Volume(Box<VolumeInfo>, Option<SnapshotId>),
    /// Between the regions to come, the volume that has begun is what it was.
    Follow(Arc<Basis>),
    /// The pieces to come are of this region.
    Region(Region),
    /// A stretch of it.
    Piece(PieceToRead),
    /// It ends.
    End(LargeEnd),
    /// Something cannot be read: it is left out, and listed as missing.
    Missing(Place, String),
    /// The parent had files that are gone: how many, and their length.
    Deleted(u64, u64),
}

impl Step {
    /// Bytes of a small file that are to be read.
    pub fn file_len(&self) -> usize {
        match self {
            Step::Read(file) => file.stat.st_size as usize,
            _ => 0,
        }
    }
}

/// What reading made of a piece.
pub struct PieceRead {
    /// Where it begins.
    pub offset: u64,
    /// Its chunks; or why it could not be read.
    pub piece: std::io::Result<Piece>,
    /// Ranges that were read as zeros because they could not be read: offset and length.
    pub unreadable: Vec<(u64, u64)>,
}

/// A file that was read whole.
pub struct FileRead {
    /// Its entry, still without content.
    pub entry: Entry,
    /// Its content.
    pub piece: Piece,
    /// How it compares with the parent.
    pub change: Change,
    /// What the parent has as its content.
    pub earlier: Option<Box<Map>>,
    /// Whether it changed while it was read.
    pub unstable: bool,
    /// Where it is.
    pub place: Place,
}

/// A step whose reading is done.
pub enum Done {
    /// Nothing was to be read.
    Step(Step),
    /// A file was read.
    File(Box<FileRead>),
    /// A piece was read.
    Piece(PieceRead),
    /// A range of the volume is what it was.
    Keep(Range<u64>),
    /// So many bytes were read to see that they are what they were.
    InVain(u64),
}
