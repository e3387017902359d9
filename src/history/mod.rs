//! Looking at what was backed up: which snapshot a path means, lists, searches, sums.

pub mod find;
pub mod list;
pub mod resolve;
pub mod stats;
