//! Paths in trees that may be deep.

use std::cmp::Ordering;
use std::sync::Arc;

/// A path as its last name and what is above it. Whole paths for each level of nested directories would
/// take the square of their depth: 400 MiB for 2048 levels with names of 200 bytes.
#[derive(Debug, Clone)]
pub struct Nested(Arc<Step>);

#[derive(Debug)]
struct Step {
    above: Option<Nested>,
    name: Vec<u8>,
    depth: usize,
}

impl Nested {
    /// What other paths begin with; it may be empty.
    pub fn root(path: &[u8]) -> Self {
        Self(Arc::new(Step { above: None, name: path.to_vec(), depth: 0 }))
    }

    /// A name in it.
    pub fn child(&self, name: &[u8]) -> Self {
        let depth = self.depth() + 1;
        Self(Arc::new(Step { above: Some(self.clone()), name: name.to_vec(), depth }))
    }

    /// Its last name; all of it if nothing is above.
    pub fn name(&self) -> &[u8] {
        &self.0.name
    }

    /// How many names are below its root.
    pub fn depth(&self) -> usize {
        self.0.depth
    }

    /// All of it, a slash between two names.
    pub fn whole(&self) -> Vec<u8> {
        let mut names: Vec<&[u8]> = self.upwards().map(Nested::name).collect();
        let mut whole = Vec::with_capacity(names.iter().map(|name| name.len() + 1).sum());
        while let Some(name) = names.pop() {
            if !whole.is_empty() && !whole.ends_with(b"/") {
                whole.push(b'/');
            }
            whole.extend_from_slice(name);
        }
        whole
    }

    /// Itself, and all that is above, up to its root.
    fn upwards(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |path| path.0.above.as_ref())
    }
}

/// As a walk meets them that goes into a directory before it goes on behind it: name by name.
impl Ord for Nested {
    fn cmp(&self, other: &Self) -> Ordering {
        let depth = self.depth().min(other.depth());
        let level = |path: &Self| path.depth() - depth;
        let pairs = self.upwards().skip(level(self)).zip(other.upwards().skip(level(other)));
        let apart = pairs.take_while(|(a, b)| !Arc::ptr_eq(&a.0, &b.0));
        // The difference that is topmost counts.
        let order = apart.map(|(a, b)| a.name().cmp(b.name())).filter(|order| order.is_ne()).last();
        order.unwrap_or(self.depth().cmp(&other.depth()))
    }
}

impl PartialOrd for Nested {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Nested {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Nested {}

/// One after the other: a stored tree may be as deep as whoever wrote it liked, and the stack is not.
impl Drop for Step {
    fn drop(&mut self) {
        let mut above = self.above.take();
        while let Some(step) = above.and_then(|path| Arc::into_inner(path.0)) {
            above = { step }.above.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(names: &[&str]) -> Nested {
        names.iter().fold(Nested::root(b""), |path, name| path.child(name.as_bytes()))
    }

    #[test]
    fn paths_are_put_together() {
        assert_eq!(nested(&[]).whole(), b"");
        assert_eq!(nested(&["a", "b"]).whole(), b"a/b");
        assert_eq!(nested(&["/", "b"]).whole(), b"/b");
        assert_eq!(Nested::root(b"/x").child(b"y").whole(), b"/x/y");
        assert_eq!((nested(&["a", "b"]).name(), nested(&["a", "b"]).depth()), (&b"b"[..], 2));
    }

    #[test]
    fn they_are_in_the_order_of_a_walk() {
        let shared = nested(&["a"]);
        let paths = [
            nested(&[]),
            shared.clone(),
            shared.child(b"b"),
            shared.child(b"b").child(b"z"),
            shared.child(b"b."),
            nested(&["a", "c"]),
            nested(&["a.", "a"]),
            nested(&["b"]),
        ];
        for (i, a) in paths.iter().enumerate() {
            for (j, b) in paths.iter().enumerate() {
                assert_eq!(a.cmp(b), i.cmp(&j), "{a:?} {b:?}");
            }
        }
        assert_eq!(nested(&["a", "b"]), shared.child(b"b"));
    }

    #[test]
    fn depth_costs_no_stack() {
        let deep = (0..1_000_000).fold(Nested::root(b""), |path, _| path.child(b"d"));
        assert_eq!(deep.depth(), 1_000_000);
        drop(deep);
    }
}
