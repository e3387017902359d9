//! varv: content-addressed, deduplicating backup of files and block devices.
//!
//! `docs/architecture.md` is the map of this crate; each module's comment says what it is for.

pub mod backup;
pub mod blocks;
pub mod chunker;
pub mod cli;
pub mod codec;
pub mod dupes;
pub mod error;
pub mod format;
pub mod history;
pub mod id;
pub mod lvm;
pub mod nested;
pub mod observe;
pub mod ordered;
pub mod repo;
pub mod restore;
pub mod source;
pub mod store;
pub mod target;
pub mod text;
pub mod time;
pub mod upkeep;
