//! What is backed up: walking directories, their entries' metadata, and what is left out.
//!
//! Nothing here knows of repositories. A walk yields names and stats in the order of the tree
//! format; the backup decides what to read.

pub mod change_list;
pub mod changes;
pub mod exclude;
pub mod extents;
pub mod metadata;
pub mod open;
pub mod owners;
pub mod walk;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A name's bytes as a path.
pub fn path_of(name: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(name))
}
