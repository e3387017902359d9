//! What could not be restored for want of privilege or of support by the file system: counted,
//! and said once at the end, instead of once a file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A kind of thing that could not be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortfall {
    /// The owner or group is another.
    Owner,
    /// Set-user-id or set-group-id was left out, as the owner is another.
    SetId,
    /// The permissions are others.
    Permissions,
    /// An extended attribute, ACL or capability is missing, or a surplus one is there.
    Attribute,
    /// The times are others.
    Times,
    /// A symlink, device, pipe or socket was not made.
    Node,
}

impl Shortfall {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Owner, Self::SetId, Self::Permissions, Self::Attribute, Self::Times, Self::Node];

    fn what(self) -> &'static str {
        match self {
            Self::Owner => "owner or group not set",
            Self::SetId => "set-id bits left out because the owner is another",
            Self::Permissions => "permissions not set",
            Self::Attribute => "extended attributes not set",
            Self::Times => "times not set",
            Self::Node => "links, device nodes, pipes or sockets not made",
        }
    }
}

/// How often something could not be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missed {
    /// What.
    pub kind: Shortfall,
    /// How often; for attributes, each one counts.
    pub count: u64,
    /// The first path concerned.
    pub example: PathBuf,
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, first {}", self.kind.what(), self.count, self.example.display())
    }
}

/// Counts shortfalls from all threads.
#[derive(Debug, Default)]
pub struct Shortfalls {
    kinds: [(AtomicU64, OnceLock<PathBuf>); Shortfall::ALL.len()],
}

impl Shortfalls {
    /// Counts one.
    pub fn add(&self, kind: Shortfall, path: &Path) {
        let (count, example) = &self.kinds[kind as usize];
        example.get_or_init(|| path.to_path_buf());
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// What could not be restored, by kind; empty if all could.
    pub fn missed(&self) -> Vec<Missed> {
        let all = Shortfall::ALL.iter().zip(&self.kinds);
        all.filter_map(|(&kind, (count, example))| {
            let count = count.load(Ordering::Relaxed);
            (count > 0).then(|| Missed { kind, count, example: example.get().cloned().unwrap_or_default() })
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_path_and_the_count_are_kept() {
        let shortfalls = Shortfalls::default();
        assert_eq!(shortfalls.missed(), []);
        shortfalls.add(Shortfall::Node, Path::new("/t/a"));
        shortfalls.add(Shortfall::Owner, Path::new("/t/b"));
        shortfalls.add(Shortfall::Node, Path::new("/t/c"));
        let said: Vec<String> = shortfalls.missed().iter().map(Missed::to_string).collect();
        assert_eq!(
            said,
            [
                "owner or group not set: 1, first /t/b",
                "links, device nodes, pipes or sockets not made: 2, first /t/a"
            ]
        );
    }
}
