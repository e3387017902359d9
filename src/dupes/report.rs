//! A report as JSON has it: what is written for people's scripts, and read back as a plan.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::found::{File, Group, Name};
use super::paths::Root;
use crate::format::tree::Time;
use crate::source::path_of;
use crate::text::escape;

/// What a group is, but for its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRow {
    /// The length of each file.
    pub bytes: u64,
    /// How much of it is not holes.
    pub bytes_data: u64,
    /// What one copy alone would not take.
    pub bytes_wasted: u64,
    /// How many of the files take room of their own.
    pub copies: u64,
    /// Whether it follows from equal directories, which are told too.
    pub implied: bool,
}

/// A file in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRow {
    /// Its path, absolute and escaped.
    pub path: String,
    /// Its other names.
    pub links: Vec<String>,
    /// The number of the root that it was found below, in the order of the report's.
    pub root: u32,
    /// Whether one of its names lies in a directory of references.
    pub reference: bool,
    /// The file system's device number; of files in snapshots it is not known.
    pub device: Option<u64>,
    /// The inode's number; likewise.
    pub inode: Option<u64>,
    /// When it was modified; null for times that no calendar has.
    pub modified: Option<Timestamp>,
    /// Files of a group with the same number share their bytes on the disk.
    pub copy: u64,
}

impl GroupRow {
    /// Of a group.
    pub fn new(group: &Group) -> Self {
        let Group { len, data, wasted, copies, implied, .. } = *group;
        Self { bytes: len, bytes_data: data, bytes_wasted: wasted, copies, implied }
    }
}

impl FileRow {
    /// Of a file below one of these roots.
    pub fn new(file: &File, roots: &[Root]) -> Self {
        let root = |name: &Name| roots.get(name.root as usize);
        let path = |name: &Name| whole_path(name, roots);
        let mut names = file.names.iter();
        let first = names.next();
        let is_live = first.and_then(root).is_none_or(|root| root.origin.is_none());
        Self {
            path: first.map(path).unwrap_or_default(),
            links: names.map(path).collect(),
            root: first.map_or(0, |name| name.root),
            reference: file.names.iter().any(|name| root(name).is_some_and(|root| root.is_reference)),
            device: is_live.then_some(file.inode.device),
            inode: is_live.then_some(file.inode.inode),
            modified: timestamp(file.inode.modified),
            copy: file.copy,
        }
    }
}

/// A name's whole path, escaped.
pub fn whole_path(name: &Name, roots: &[Root]) -> String {
    let root = roots.get(name.root as usize);
    let path = root.map(|root| root.path.join(path_of(&name.path))).unwrap_or_default();
    escape(path.as_os_str().as_encoded_bytes())
}

/// None for times that no calendar has.
pub fn timestamp(time: Time) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos.try_into().ok()?).ok()
}
