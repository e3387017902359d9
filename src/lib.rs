//! varv: content-addressed, deduplicating backup of files and block devices.

pub mod error;
pub mod format;
pub mod id;
pub mod observe;
pub mod text;
