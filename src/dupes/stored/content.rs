//! What names a file's bytes, from its map.

use crate::error::Result;
use crate::format::map::{Extent, Map};
use crate::id::Hasher;
use crate::repo::catalog::Catalog;
use crate::repo::nodes::Extents;

use super::super::record::Digest;

/// Names a content: equal bytes have equal ones in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// How long it is.
    pub len: u64,
    /// A digest of its chunks' ids.
    pub digest: Digest,
}

/// Of a map. Zeros and holes are the same bytes but not the same map, so where there are any, its
/// nodes are read; where there are none, the topmost node's id says all.
pub fn key_of(catalog: &Catalog, map: &Map) -> Result<Key> {
    let mut hasher = Hasher::plain();
    match map {
        Map::Tree(root) if root.node.data == root.node.len => {
            hasher.update(b"node").update(&[root.level]).update(&root.node.id.0);
        }
        Map::Inline(extents) => {
            let mut extents_hasher = ExtentHasher { hasher: &mut hasher, zeros: 0 };
            extents.iter().for_each(|extent| extents_hasher.add(extent));
            extents_hasher.end();
        }
        Map::Tree(_) => {
            let mut extents_hasher = ExtentHasher { hasher: &mut hasher, zeros: 0 };
            for extent in Extents::of(catalog, map) {
                extents_hasher.add(&extent?.1);
            }
            extents_hasher.end();
        }
    }
    Ok(Key { len: map.len(), digest: hasher.finish() })
}

/// Feeds extents, with neighbouring zeros and holes as one.
struct ExtentHasher<'h> {
    hasher: &'h mut Hasher,
    zeros: u64,
}

impl ExtentHasher<'_> {
    fn add(&mut self, extent: &Extent) {
        match extent {
            Extent::Data { id, len } => {
                self.end();
                self.hasher.update(&[0]).update(&len.to_be_bytes()).update(&id.0);
            }
            Extent::Zero { len } | Extent::Hole { len } => self.zeros += len,
        }
    }

    fn end(&mut self) {
        if self.zeros > 0 {
            self.hasher.update(&[1]).update(&self.zeros.to_be_bytes());
        }
        self.zeros = 0;
    }
}
