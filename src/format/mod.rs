//! What is on disk, byte by byte: bytes in, values out, no I/O.
//!
//! `docs/format.md` is the normative text; each file here is one family of records. Every
//! decoder treats its input as hostile: it returns an error that says what is wrong, never
//! panics, and never allocates what a header merely claims.

pub mod bad;
pub mod checkpoint;
pub mod config;
pub mod hashtree;
pub mod ledger;
pub mod map;
pub mod object;
pub mod pack;
pub mod snapshot;
pub mod tree;
pub mod wire;

/// The format this code writes, and the newest it reads.
pub const FORMAT: u16 = 1;

/// The unit of zeros and holes, counted from the start of a file or volume.
pub const BLOCK: u64 = 4096;

/// The fewest entries of a map or tree node that is not the last one of its level.
pub const NODE_ENTRIES_MIN: usize = 32;
/// The most entries of a map or tree node.
pub const NODE_ENTRIES_MAX: usize = 1024;
/// A node ends, past the minimum, where an entry's hash is a multiple of this.
pub const NODE_ENTRIES_MODULUS: u32 = 64;
/// A leaf ends once its entries weigh so much, in bytes, about: names and attributes can be long,
/// and a node has to fit into a frame.
pub const NODE_WEIGHT_MAX: usize = 512 << 10;
/// The deepest tree of nodes that is read: 32^9 entries fit into ten levels.
pub const NODE_LEVEL_MAX: u8 = 10;
