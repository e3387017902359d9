//! Small tools for files and devices as a whole: copying, measuring and synchronising them,
//! sparsely.
//!
//! What is read, found to be zero and written is done by the parts that backup and restore use
//! (`source`, `chunker`, `target`); nothing here knows of repositories.

pub mod copy;
mod feed;
pub mod input;
pub mod make;
pub mod measure;
mod output;
mod plan;
pub mod sync;
mod verify;

/// The longest file or device: the kernel counts with signed numbers.
pub const LEN_MAX: u64 = i64::MAX as u64;
