//! Looking at what was backed up: which snapshot a path means, lists, searches, sums.

pub mod resolve;
