//! Finding paths in snapshots by a pattern.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use globset::{GlobBuilder, GlobMatcher};

use super::resolve::inner_roots;
use crate::error::{Error, Result};
use crate::format::tree::Entry;
use crate::id::ChunkId;
use crate::observe::Stop;
use crate::repo::catalog::Catalog;
use crate::repo::marks::Marks;
use crate::repo::nodes::{Entries, push_name};
use crate::repo::snapshots::Listed;

/// What is looked for.
#[derive(Debug, Clone)]
pub struct Pattern {
    matcher: GlobMatcher,
    /// Whether it is matched against whole paths, not names.
    is_of_paths: bool,
}

impl Pattern {
    /// A glob as in gitignore. Without a slash it means names; with one whole paths, or their
    /// ends if it does not begin with one.
    pub fn new(text: &str) -> Result<Self> {
        let is_of_paths = text.contains('/');
        let anchored = match is_of_paths && !text.starts_with('/') {
            true => format!("**/{text}"),
            false => text.to_owned(),
        };
        let glob = GlobBuilder::new(&anchored).literal_separator(true).backslash_escape(true).build();
        let glob = glob.map_err(|e| Error::Refused(format!("'{text}' is not a pattern: {}", e.kind())))?;
        Ok(Self { matcher: glob.compile_matcher(), is_of_paths })
    }

    fn matches(&self, path: &[u8]) -> bool {
        let name = || path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let subject = if self.is_of_paths { path } else { name() };
        self.matcher.is_match(OsStr::from_bytes(subject))
    }
}

/// What is called with a snapshot, a path in it and the path's entry.
pub type Each<'a> = dyn FnMut(&Listed, &[u8], &Entry) -> Result<()> + 'a;

/// Calls `each` with every path of these snapshots that matches, once each, in their order.
pub fn find(
    catalog: &Catalog,
    snapshots: &[&Listed],
    pattern: &Pattern,
    stop: &Stop,
    each: &mut Each,
) -> Result<()> {
    let mut search = Search { catalog, pattern, stop, barren: Marks::default() };
    snapshots.iter().try_for_each(|listed| search.snapshot(listed, each))
}

struct Search<'a> {
    catalog: &'a Catalog,
    pattern: &'a Pattern,
    stop: &'a Stop,
    /// Directories below which no name matches, by their topmost nodes.
    barren: Marks,
}

/// A directory on the way to where we are.
struct OpenDir<'a> {
    path_len: usize,
    ordinal: Option<u64>,
    entries: Entries<'a>,
    is_barren: bool,
}

impl<'a> Search<'a> {
    fn snapshot(&mut self, listed: &Listed, each: &mut Each) -> Result<()> {
        let tree = listed.snapshot.tree.root();
        let tree = tree.map_err(|e| Error::damaged(format!("snapshot {}", listed.id), e))?;
        let entries = Entries::of_roots(self.catalog, tree);
        let mut stack = vec![OpenDir { path_len: 0, ordinal: None, entries, is_barren: true }];
        let inner = inner_roots(&listed.snapshot);
        let mut path = Vec::new();
        while let Some(dir) = stack.last_mut() {
            self.stop.check()?;
            path.truncate(dir.path_len);
            let Some(entry) = dir.entries.next().transpose()? else {
                self.leave(&mut stack);
                continue;
            };
            push_name(&mut path, &entry.name);
            if dir.path_len > 0 && inner.contains(&path) {
                // It may have matches, in a snapshot where it is no root.
                dir.is_barren = false;
                continue;
            }
            if self.pattern.matches(&path) {
                dir.is_barren = false;
                each(listed, &path, &entry)?;
            }
            let below = self.enter(path.len(), &entry)?;
            stack.extend(below);
        }
        Ok(())
    }

    fn enter(&self, path_len: usize, entry: &Entry) -> Result<Option<OpenDir<'a>>> {
        let Some(dir) = entry.dir() else { return Ok(None) };
        let Some(root) = &dir.root else { return Ok(None) };
        // What a pattern of paths finds below a directory depends on where that is.
        let ordinal = if self.pattern.is_of_paths { None } else { self.ordinal(&root.node)? };
        if ordinal.is_some_and(|ordinal| self.barren.contains(ordinal)) {
            return Ok(None);
        }
        let entries = Entries::of(self.catalog, dir);
        Ok(Some(OpenDir { path_len, ordinal, entries, is_barren: true }))
    }

    fn ordinal(&self, id: &ChunkId) -> Result<Option<u64>> {
        let mut index = self.catalog.index()?;
        let location = index.locate(std::slice::from_ref(id))?.pop().flatten();
        Ok(location.and_then(|location| index.ordinal(location)))
    }

    fn leave(&mut self, stack: &mut Vec<OpenDir>) {
        let Some(dir) = stack.pop() else { return };
        match (dir.is_barren, dir.ordinal, stack.last_mut()) {
            (true, Some(ordinal), _) => {
                self.barren.insert(ordinal);
            }
            (false, _, Some(above)) => above.is_barren = false,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_are_matched_as_in_gitignore() {
        let matches = |pattern: &str, path: &[u8]| Pattern::new(pattern).unwrap().matches(path);
        assert!(matches("*.rs", b"/a/b/c.rs"));
        assert!(matches("c?r*", b"/a/c.rs"));
        assert!(!matches("b", b"/a/b/c"));
        assert!(matches("b/*", b"/a/b/c"));
        assert!(!matches("/b/*", b"/a/b/c"));
        assert!(matches("/a/**", b"/a/b/c"));
        assert!(!matches("/a/*", b"/a/b/c"));
        assert!(matches("vg/*", b"vg/root"));
        assert!(matches("{x,y}[0-9]", b"/y7"));
        assert!(matches("\\*", b"/*"));
        assert!(matches("odd*", b"/a/odd\xff\n"));
        assert!(matches("/a/*/\\[x", b"/a/\xff/[x"));
    }

    #[test]
    fn broken_patterns_are_refused() {
        for text in ["[a", "{a", "a\\"] {
            assert!(matches!(Pattern::new(text), Err(Error::Refused(_))), "{text}");
        }
    }
}
