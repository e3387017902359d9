//! Every name inside a repository.

use crate::id::{PackId, SnapshotId};

/// The configuration, and its copy.
pub const CONFIGS: [&str; 2] = ["config", "config.copy"];
/// Where packs are.
pub const PACKS: &str = "packs";
/// Where snapshots are.
pub const SNAPSHOTS: &str = "snapshots";
/// Where forgotten snapshots wait for prune.
pub const FORGOTTEN: &str = "forgotten";
/// Where upkeep remembers things.
pub const STATE: &str = "state";
/// Begins the names of objects that protect snapshots.
const PROTECTED: &str = "protected-";
/// Where a repair puts snapshots that cannot be read.
pub const DAMAGED: &str = "damaged";
/// Where the index is, unless it is in the cache folder.
pub const INDEX: &str = "index";
/// The index in its folder.
pub const INDEX_FILE: &str = "index.sqlite";
/// Locked while the index beside it is opened or made.
pub const INDEX_TURN: &str = "turn";

/// A pack's name: spread over 256 folders.
pub fn pack(id: &PackId) -> String {
    let hex = id.to_string();
    format!("{PACKS}/{}/{hex}", &hex[..2])
}

/// The pack of this name; `None` if it is not one's.
pub fn pack_id(name: &str) -> Option<PackId> {
    let id = PackId::from_hex(name.rsplit('/').next()?)?;
    (pack(&id) == name).then_some(id)
}

/// A snapshot's name.
pub fn snapshot(id: &SnapshotId) -> String {
    format!("{SNAPSHOTS}/{id}")
}

/// What a snapshot that cannot be read is put aside as.
pub fn damaged_snapshot(id: &SnapshotId) -> String {
    format!("{DAMAGED}/{id}")
}

/// The snapshot of this name; `None` if it is not one's.
pub fn snapshot_id(name: &str) -> Option<SnapshotId> {
    SnapshotId::from_hex(name.strip_prefix(SNAPSHOTS)?.strip_prefix('/')?)
}

/// The name under which a forgotten snapshot waits.
pub fn forgotten(id: &SnapshotId) -> String {
    format!("{FORGOTTEN}/{id}")
}

/// The forgotten snapshot of this name; `None` if it is not one's.
pub fn forgotten_id(name: &str) -> Option<SnapshotId> {
    SnapshotId::from_hex(name.strip_prefix(FORGOTTEN)?.strip_prefix('/')?)
}

/// What says that a snapshot is protected.
pub fn protected(id: &SnapshotId) -> String {
    format!("{STATE}/{PROTECTED}{id}")
}

/// The snapshot that the object of this name protects; `None` if it is another kind of state.
pub fn protected_id(name: &str) -> Option<SnapshotId> {
    SnapshotId::from_hex(name.strip_prefix(STATE)?.strip_prefix('/')?.strip_prefix(PROTECTED)?)
}

/// The name of an object that remembers something of this kind.
pub fn state(kind: &str, hash: &str) -> String {
    format!("{STATE}/{kind}-{hash}")
}

/// Whether an object of this name remembers something of this kind.
pub fn is_state(name: &str, kind: &str) -> bool {
    let rest = name.strip_prefix(STATE).and_then(|rest| rest.strip_prefix('/')?.strip_prefix(kind));
    rest.is_some_and(|rest| rest.starts_with('-'))
}
