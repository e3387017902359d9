//! Snapshots: one backup run each, as a small JSON object below a seal (`object`).
//!
//! Paths in it are text: bytes that are not UTF-8 are written `\xNN`, a backslash is doubled.
//! Unknown fields are ignored, so that later versions may add some.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::config::Tier;
use super::hashtree::Root;
use super::{NODE_LEVEL_MAX, wire::Malformed};
use crate::id::ChunkId;

/// Paths that failed are listed up to this number, and counted beyond.
pub const PROBLEMS_MAX: usize = 1000;

/// One backup run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When the run began, or what `--time` said.
    pub time: Timestamp,
    /// The local zone's offset from UTC then, in seconds.
    pub offset: i32,
    /// The host that was backed up.
    pub host: String,
    /// What the user calls this series of runs.
    pub label: String,
    /// What the user calls this run.
    pub tags: Vec<String>,
    /// Who ran it.
    pub user: String,
    /// The version of varv that ran.
    pub varv: String,
    /// How hard new data was compressed.
    pub tier: Tier,
    /// What was backed up, in the order of the tree of roots.
    pub roots: Vec<RootInfo>,
    /// The tree of roots: one entry a root, named by its whole path.
    pub tree: TreeRef,
    /// What happened.
    pub stats: Stats,
    /// Paths that could not be read and are left out.
    pub missing: Vec<String>,
    /// Ranges of volumes that could not be read and were stored as zeros.
    pub unreadable: Vec<UnreadableRange>,
    /// Volumes of which something was known before they were read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeInfo>,
}

/// How a volume was read, and what the next run needs to read less of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeInfo {
    /// The root's path, escaped.
    pub path: String,
    /// How it was known what has changed.
    pub method: Method,
    /// Why all of it was read although something was known.
    pub fallback_reason: Option<String>,
    /// Its length.
    pub bytes_source: u64,
    /// Bytes that were read, those of spot checks among them.
    pub bytes_read: u64,
    /// Bytes that may have changed, as far as was known.
    pub bytes_changed: u64,
    /// What its new chunks take in packs.
    pub bytes_stored: u64,
    /// Bytes that were said to be unchanged, and were read and compared.
    pub bytes_spot_checked: u64,
    /// Bytes up to which it was finished already by a run that was interrupted.
    pub bytes_resumed: u64,
    /// Who said which blocks its file system did not use: these hold nothing, whatever was there.
    pub free_blocks: Option<String>,
    /// When all of it was read.
    pub read_whole: Option<Timestamp>,
    /// Where the next run's spot checks go on.
    pub spot_check: Option<SpotCheck>,
    /// The logical volume, if it is one.
    pub lvm: Option<LogicalVolume>,
}

/// How it was known what has changed in a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// It was not: all of it was read, but for what is known not to be allocated.
    #[default]
    Full,
    /// By the mappings of a thin pool.
    Thin,
    /// By the exceptions of a classic snapshot.
    Cow,
    /// By a list.
    List,
}

impl Method {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Method::Full => "full",
            Method::Thin => "thin",
            Method::Cow => "cow",
            Method::List => "list",
        }
    }
}

/// The order in which a volume's ranges are spot-checked: number `next`, then each time `step`
/// further, modulo their number, which has no divisor in common with `step`. So every range has
/// its turn before any has a second one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpotCheck {
    /// Length of a range.
    pub unit: u64,
    /// From one range to the next in the order.
    pub step: u64,
    /// The first range of the next run.
    pub next: u64,
}

/// What is needed to know a logical volume again, and to make it anew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogicalVolume {
    /// LVM's name for it, which stays when it is renamed.
    pub uuid: String,
    /// The snapshot that was read: LVM's name for it.
    pub snapshot_uuid: String,
    /// `linear`, `thin`, …
    pub segtype: String,
    /// The pool of a thin volume; empty otherwise.
    pub pool: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// The physical extents of a thick volume, in order.
    pub extents: String,
    /// When the snapshot was taken, in milliseconds after the first one of the run.
    pub taken_after_ms: u64,
    /// What `vgcfgbackup` wrote of its volume group.
    pub group_config: String,
}

/// A root as listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootInfo {
    /// Its path, escaped.
    pub path: String,
    /// Its kind: directory, file, volume, stream, …
    pub kind: String,
}

/// The topmost node of the tree of roots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeRef {
    /// The node's id, hex; empty if there are no roots.
    pub id: String,
    /// The node's level.
    pub level: u8,
}

impl TreeRef {
    /// For a tree that was built.
    pub fn new(root: Option<&Root<ChunkId>>) -> Self {
        Self { id: root.map(|r| r.node.to_string()).unwrap_or_default(), level: root.map_or(0, |r| r.level) }
    }

    /// The node, if there is one.
    pub fn root(&self) -> Result<Option<Root<ChunkId>>, Malformed> {
        if self.id.is_empty() {
            return Ok(None);
        }
        match ChunkId::from_hex(&self.id) {
            Some(node) if self.level <= NODE_LEVEL_MAX => Ok(Some(Root { level: self.level, node })),
            _ => Err(Malformed("its tree is not named by an id")),
        }
    }
}

/// A range of a volume that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadableRange {
    /// The volume's path, escaped.
    pub path: String,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

/// What each way of storing less saved, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Saved {
    /// Holes and zeros, which are not stored; none if that was not counted.
    pub bytes_sparse: Option<u64>,
    /// What was stored already; none if that was not counted.
    pub bytes_duplicate: Option<u64>,
    /// Chunks compressed, each by itself: about.
    pub bytes_compressed: i64,
    /// Compressed together in frames: about.
    pub bytes_frames: i64,
    /// Compressed against older chunks: about.
    pub bytes_deltas: i64,
    /// Other levels than that of tier hot: about; less than nothing where more is stored.
    pub bytes_tiers: i64,
}

/// What a backup run counted. Files are all entries that are no directory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Files that the parent did not have.
    pub files_new: u64,
    /// Files that the parent had otherwise.
    pub files_changed: u64,
    /// Files that are as the parent had them.
    pub files_unchanged: u64,
    /// Files that only the parent had.
    pub files_deleted: u64,
    /// Directories.
    pub dirs: u64,
    /// Length of all files and volumes.
    pub bytes_source: u64,
    /// Length of the new files.
    pub bytes_files_new: u64,
    /// Length of the changed files as they are now.
    pub bytes_files_changed: u64,
    /// Length that the changed files had before.
    pub bytes_files_changed_before: u64,
    /// Length that the deleted files had.
    pub bytes_files_deleted: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Bytes skipped as holes.
    pub bytes_hole: u64,
    /// Bytes that were zeros and cut out.
    pub bytes_zero: u64,
    /// Bytes in chunks that the repository did not have.
    pub bytes_new: u64,
    /// What those and the metadata take in packs.
    pub bytes_stored: u64,
    /// Of those, metadata.
    pub bytes_metadata: u64,
    /// What was saved by what; none in snapshots of before that was counted.
    pub saved: Option<Saved>,
    /// Chunks that the repository did not have.
    pub chunks_new: u64,
    /// Paths and ranges that could not be read, or changed meanwhile.
    pub errors: u64,
    /// How long it took.
    pub seconds: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_may_be_added_later() {
        let json = r#"{"time":"2026-11-20T03:00:00Z","offset":3600,"host":"h","label":"l","tags":[],
            "user":"u","varv":"9","tier":"hot","roots":[{"path":"/a","kind":"file","x":1}],
            "tree":{"id":"","level":0},"stats":{"files_new":3},"missing":[],"unreadable":[],"later":{}}"#;
        let snapshot: Snapshot = serde_json::from_str(json).unwrap();
        assert_eq!(snapshot.stats.files_new, 3);
        assert_eq!(snapshot.tree.root(), Ok(None));
    }

    #[test]
    fn a_tree_must_be_an_id() {
        let tree = TreeRef { id: "zz".into(), level: 0 };
        assert!(tree.root().is_err());
        let tree = TreeRef { id: "00".repeat(20), level: NODE_LEVEL_MAX + 1 };
        assert!(tree.root().is_err());
    }
}
