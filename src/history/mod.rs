//! Looking at what was backed up: which snapshot a path means, lists, searches, versions,
//! differences, sums.

pub mod changes;
pub mod diff;
pub mod find;
pub mod list;
pub mod ranges;
pub mod resolve;
pub mod stats;
pub mod versions;
