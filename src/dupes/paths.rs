//! Where files are: directories as a tree in two arrays, so that ten million names fit.

use std::path::PathBuf;

use super::stored::Origin;

/// A directory's number.
pub type DirId = u32;

/// A directory that was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// As it was named.
    pub shown: PathBuf,
    /// Absolute, without symlinks.
    pub path: PathBuf,
    /// Whether its files are kept whatever happens.
    pub is_reference: bool,
    /// The snapshot that it stands for, if it is no directory.
    pub origin: Option<Origin>,
}

/// The directories that were met, each as its name and the one that it is in.
#[derive(Debug, Default)]
pub struct Dirs {
    /// For each the one above, itself for a root, and where its name ends in `names`.
    dirs: Vec<(DirId, u64)>,
    names: Vec<u8>,
    /// How many of them are roots, which come first.
    roots: u32,
}

impl Dirs {
    /// With the roots' directories, which have no names.
    pub fn new(roots: usize) -> Self {
        let roots = u32::try_from(roots).unwrap_or(u32::MAX);
        Self { dirs: (0..roots).map(|root| (root, 0)).collect(), names: Vec::new(), roots }
    }

    /// Adds one.
    pub fn add(&mut self, above: DirId, name: &[u8]) -> DirId {
        self.names.extend_from_slice(name);
        self.dirs.push((above, self.names.len() as u64));
        (self.dirs.len() - 1) as DirId
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.dirs.len() as u64
    }

    /// The one that a directory is in, itself for a root.
    pub fn above(&self, dir: DirId) -> DirId {
        self.dirs.get(dir as usize).map_or(dir, |(above, _)| *above)
    }

    fn name(&self, dir: DirId) -> &[u8] {
        let end = |dir: usize| self.dirs.get(dir).map_or(0, |(_, end)| *end as usize);
        let start = (dir as usize).checked_sub(1).map_or(0, end);
        self.names.get(start..end(dir as usize)).unwrap_or_default()
    }

    /// The number of its root; and puts its path below that into `out`, with a slash behind each
    /// name.
    pub fn path(&self, dir: DirId, out: &mut Vec<u8>) -> u32 {
        out.clear();
        let mut at = dir;
        let mut chain = Vec::with_capacity(16);
        while at >= self.roots
            && let Some((above, _)) = self.dirs.get(at as usize)
        {
            chain.push(at);
            at = *above;
        }
        for dir in chain.into_iter().rev() {
            out.extend_from_slice(self.name(dir));
            out.push(b'/');
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_put_together_again() {
        let mut dirs = Dirs::new(2);
        let a = dirs.add(1, b"a");
        let b = dirs.add(a, b"b\xff");
        let c = dirs.add(0, b"c");
        let mut path = Vec::new();
        for (dir, root, expected) in
            [(0, 0, &b""[..]), (1, 1, b""), (a, 1, b"a/"), (b, 1, b"a/b\xff/"), (c, 0, b"c/")]
        {
            assert_eq!(dirs.path(dir, &mut path), root);
            assert_eq!(path, expected);
        }
        assert_eq!(dirs.count(), 5);
    }
}
