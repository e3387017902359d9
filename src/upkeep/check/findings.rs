//! What a check has found so far.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::Damage;
use crate::error::{Error, Result};
use crate::format::bad::{Bad, Slots};
use crate::id::{ChunkId, PackId};
use crate::repo::bases::{Bearer, Lack};
use crate::repo::index::Location;
use crate::repo::layout;
use crate::repo::reader::OpenPack;

/// Missing chunks that are told apart; beyond that they are "more than".
const MISSING_MAX: usize = 1 << 18;
/// Damaged objects that are listed; beyond that they are counted.
const DAMAGED_MAX: usize = 100_000;
/// Paths that are listed for one damaged object; beyond that they are counted.
const PATHS_MAX: usize = 20;
/// Snapshots that are listed for one path; beyond that they are counted.
const SNAPSHOTS_MAX: usize = 5;
/// What all missing chunks are listed as until their number is known.
pub const MISSING: &str = "missing chunks";
/// An input or output error: the medium is failing. The same number on every Linux.
const EIO: i32 = 5;

/// Damage and notes, and which places in packs cannot be relied on.
#[derive(Default)]
pub struct Findings {
    damaged: Vec<Damage>,
    by_object: HashMap<String, usize>,
    unlisted: u64,
    notes: Vec<String>,
    missing: HashSet<ChunkId>,
    lacks_nodes: bool,
    /// Places in packs that cannot be read.
    pub bad: Bad,
    /// The packs of the objects that are places.
    places: HashMap<usize, PackId>,
    /// Objects that snapshots need.
    needed: BTreeSet<usize>,
    /// Nodes and chunks that snapshots need and that are in no place that can be read.
    pub lost: Lost,
    /// Chunks that are not what maps say.
    odd_chunks: HashMap<Location, String>,
    hurts: HashMap<usize, Hurts>,
}

/// Nodes and chunks that cannot be had.
#[derive(Debug, Clone, Default)]
pub struct Lost {
    /// As many as fit a list.
    pub ids: HashSet<ChunkId>,
    /// Whether there may be more: the list is full, or nodes are lost, below which nothing is known.
    pub are_more: bool,
}

impl Lost {
    fn insert(&mut self, id: ChunkId) {
        if self.ids.len() < MISSING_MAX {
            self.ids.insert(id);
        } else {
            self.are_more |= !self.ids.contains(&id);
        }
    }
}

/// The paths that one damaged object hurts.
#[derive(Default)]
struct Hurts {
    paths: BTreeMap<String, Holders>,
    more: u64,
}

/// The snapshots that have one path.
#[derive(Default)]
struct Holders {
    snapshots: Vec<String>,
    more: u64,
}

/// What an error is about and what it says of that, if it speaks of damage.
pub fn damage_of(error: &Error) -> Option<(String, String)> {
    let object = match error {
        Error::Damaged { object, .. } | Error::Missing { object } => match layout::pack_id(object) {
            Some(id) => pack_name(&id),
            None => object.clone(),
        },
        // A failing disk is just what a check is for; it must not end at the first such place.
        Error::Io { source, path, .. } if source.raw_os_error() == Some(EIO) => path.display().to_string(),
        _ => return None,
    };
    Some((object, reason(error)))
}

/// What an error says, without what it says it of.
pub fn reason(error: &Error) -> String {
    match error {
        Error::Damaged { why, .. } => why.clone(),
        Error::Missing { .. } => "it is missing from the repository".into(),
        Error::Io { source, .. } => format!("it cannot be read: {source}"),
        other => other.to_string(),
    }
}

/// The node that an object is, if it is one.
pub fn node_id(object: &str) -> Option<ChunkId> {
    let id = ["tree node ", "map node "].iter().find_map(|kind| object.strip_prefix(kind))?;
    ChunkId::from_hex(id)
}

/// What a pack is called.
pub fn pack_name(id: &PackId) -> String {
    format!("pack {id}")
}

impl Bearer for Findings {
    fn bad(&self) -> &Bad {
        &self.bad
    }

    fn add(&mut self, pack: &OpenPack, number: u32, slots: &Slots, lack: Lack) -> bool {
        self.bad_frame(&pack.id, slots, pack.frame_name(number), lack.to_string())
    }
}

impl Findings {
    /// Whether there is damage.
    pub fn any(&self) -> bool {
        !self.damaged.is_empty()
    }

    /// Something worth knowing.
    pub fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// Damage; the first that is said of an object counts.
    pub fn add(&mut self, object: &str, why: String) {
        if self.by_object.contains_key(object) {
            return;
        }
        if self.damaged.len() >= DAMAGED_MAX {
            self.unlisted += 1;
            return;
        }
        self.by_object.insert(object.to_owned(), self.damaged.len());
        self.damaged.push(Damage { object: object.to_owned(), why, hurts: Vec::new() });
    }

    /// What went wrong, if it speaks of damage; other errors end the check.
    pub fn error(&mut self, error: Error) -> Result<()> {
        let Some((object, why)) = damage_of(&error) else { return Err(error) };
        self.lacks_nodes |= matches!(error, Error::Missing { .. });
        self.add(&object, why);
        Ok(())
    }

    /// A node or chunk that a snapshot needs cannot be had.
    pub fn lose(&mut self, id: ChunkId) {
        self.lost.insert(id);
    }

    /// As [`Findings::lose`], of a node.
    pub fn lose_node(&mut self, id: ChunkId) {
        self.lost.insert(id);
        self.lost.are_more = true;
    }

    /// A chunk that is in no pack.
    pub fn missing_chunk(&mut self, id: ChunkId) {
        if self.missing.is_empty() {
            self.add(MISSING, "no pack that can be read has what snapshots need".into());
        }
        if self.missing.len() < MISSING_MAX {
            self.missing.insert(id);
        }
    }

    /// A pack that nothing can be read from.
    pub fn bad_pack(&mut self, id: &PackId, why: String) {
        self.bad_place(id, &Slots::all(), &pack_name(id), why);
    }

    /// A frame that cannot be opened; whether that was not known.
    pub fn bad_frame(&mut self, pack: &PackId, slots: &Slots, name: String, why: String) -> bool {
        self.bad_place(pack, slots, &name, why)
    }

    fn bad_place(&mut self, pack: &PackId, slots: &Slots, name: &str, why: String) -> bool {
        self.add(name, why);
        self.places.extend(self.by_object.get(name).map(|number| (*number, *pack)));
        self.bad.add(pack, slots)
    }

    /// A chunk that a map says something wrong about.
    pub fn odd_chunk(&mut self, at: Location, name: String, why: String) {
        self.add(&name, why);
        self.odd_chunks.insert(at, name);
    }

    /// What is to blame if the chunk there is not what a map says.
    pub fn odd(&self, at: Location) -> Option<&str> {
        self.odd_chunks.get(&at).map(String::as_str)
    }

    /// Whether damage to this was found.
    pub fn is_listed(&self, object: &str) -> bool {
        self.by_object.contains_key(object)
    }

    /// A snapshot needs this damaged object.
    pub fn need(&mut self, object: &str) {
        self.add(object, "it cannot be read".into());
        self.needed.extend(self.by_object.get(object));
    }

    /// Whether snapshots need what is gone or cannot be read.
    pub fn lacks(&self) -> bool {
        self.lacks_nodes || !self.missing.is_empty() || !self.needed.is_empty()
    }

    /// Nothing is damaged that was known to be and that no snapshot needs: what was in it has been
    /// stored anew.
    pub fn forgive(&mut self, known: &Bad) {
        let (needed, places, bad) = (&self.needed, &self.places, &self.bad.packs);
        // What is missing may be in a pack of which nothing can be read.
        let lacks = self.lacks_nodes || !self.missing.is_empty();
        let may_go = |pack: &PackId| {
            known.packs.contains_key(pack) && !(lacks && bad.get(pack).is_some_and(Slots::is_all))
        };
        let is_forgiven = |number: &usize| !needed.contains(number) && places.get(number).is_some_and(may_go);
        let forgiven: BTreeSet<usize> = (0..self.damaged.len()).filter(is_forgiven).collect();
        if forgiven.is_empty() {
            return;
        }
        let packs: BTreeSet<&PackId> = forgiven.iter().filter_map(|number| places.get(number)).collect();
        for pack in packs {
            let name = pack_name(pack);
            self.notes
                .push(format!("{name} is damaged, but nothing in it is needed: varv repair removes it"));
        }
        let before = std::mem::take(&mut self.damaged);
        self.by_object.clear();
        for (_, damage) in (0..).zip(before).filter(|(number, _)| !forgiven.contains(number)) {
            self.by_object.insert(damage.object.clone(), self.damaged.len());
            self.damaged.push(damage);
        }
        (self.places, self.needed) = Default::default();
    }

    /// Packs that the index had and the store has not. A prune whose index is elsewhere does
    /// that too, so that it is damage only if something is missing.
    pub fn vanished(&mut self, packs: &[PackId]) {
        let lost = self.lacks_nodes || !self.missing.is_empty();
        for id in packs {
            match lost {
                true => self.add(&pack_name(id), "it is missing from the repository".into()),
                false => self.note(format!("{} is gone, but nothing needs it", pack_name(id))),
            }
        }
    }

    /// Remembers that a path of a snapshot is hurt by a damaged object.
    pub fn hurt(&mut self, object: &str, path: &str, snapshot: &str) {
        let Some(&number) = self.by_object.get(object) else { return };
        let hurts = self.hurts.entry(number).or_default();
        if hurts.paths.len() >= PATHS_MAX && !hurts.paths.contains_key(path) {
            hurts.more += 1;
            return;
        }
        let holders = hurts.paths.entry(path.to_owned()).or_default();
        match holders.snapshots.len() < SNAPSHOTS_MAX {
            _ if holders.snapshots.last().is_some_and(|last| last == snapshot) => {}
            true => holders.snapshots.push(snapshot.to_owned()),
            false => holders.more += 1,
        }
    }

    /// All damage and all notes.
    pub fn finish(mut self) -> (Vec<Damage>, Vec<String>) {
        if let Some(&number) = self.by_object.get(MISSING) {
            self.damaged[number].object = name_missing(&self.missing);
        }
        for (number, hurts) in self.hurts {
            self.damaged[number].hurts = hurts.lines();
        }
        if self.unlisted > 0 {
            self.notes.push(format!("{} more objects are damaged than are listed", self.unlisted));
        }
        (self.damaged, self.notes)
    }
}

fn name_missing(missing: &HashSet<ChunkId>) -> String {
    let first = missing.iter().min().map(ToString::to_string).unwrap_or_default();
    match missing.len() {
        1 => format!("chunk {first}"),
        MISSING_MAX.. => format!("chunk {first} and more than {} others", MISSING_MAX - 1),
        len => format!("chunk {first} and {} others", len - 1),
    }
}

impl Hurts {
    fn lines(self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .paths
            .into_iter()
            .map(|(path, Holders { snapshots, more })| match more {
                0 => format!("{path} in {}", snapshots.join(", ")),
                _ => format!("{path} in {} and {more} more", snapshots.join(", ")),
            })
            .collect();
        if self.more > 0 {
            lines.push(format!("and {} more paths in these and other snapshots", self.more));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_bounded_and_the_rest_is_counted() {
        let mut findings = Findings::default();
        findings.add("pack x", "why".into());
        findings.add("pack x", "why else".into());
        for path in 0..PATHS_MAX + 7 {
            for snapshot in 0..SNAPSHOTS_MAX + 2 {
                findings.hurt("pack x", &format!("/{path:03}"), &format!("s{snapshot}"));
            }
        }
        let (damaged, _) = findings.finish();
        assert_eq!((damaged.len(), damaged[0].why.as_str()), (1, "why"));
        assert_eq!(damaged[0].hurts.len(), PATHS_MAX + 1);
        assert_eq!(damaged[0].hurts[0], "/000 in s0, s1, s2, s3, s4 and 2 more");
        assert!(damaged[0].hurts[PATHS_MAX].starts_with("and 49 more"));
    }

    #[test]
    fn missing_chunks_are_one_entry() {
        let mut findings = Findings::default();
        for number in 0..3 {
            findings.missing_chunk(ChunkId([number; 20]));
            findings.missing_chunk(ChunkId([number; 20]));
        }
        assert!(findings.is_listed(MISSING) && findings.lacks());
        let (damaged, _) = findings.finish();
        assert_eq!(damaged.len(), 1);
        assert!(damaged[0].object.ends_with("0000 and 2 others"), "{}", damaged[0].object);
    }

    #[test]
    fn what_was_known_and_is_not_needed_is_forgiven() {
        let (known_pack, new_pack) = (PackId([1; 32]), PackId([2; 32]));
        let known = Bad { packs: [(known_pack, Slots::all())].into(), ..Bad::default() };
        let find = |needed: &[&str]| {
            let mut findings = Findings::default();
            findings.bad_frame(&known_pack, &Slots::range(0, 2), "frame 0".into(), "w".into());
            findings.bad_frame(&known_pack, &Slots::range(2, 2), "frame 1".into(), "w".into());
            findings.bad_pack(&new_pack, "w".into());
            findings.need(&pack_name(&new_pack));
            needed.iter().for_each(|object| findings.need(object));
            findings.forgive(&known);
            findings.hurt(&pack_name(&new_pack), "/a", "s");
            let (damaged, notes) = findings.finish();
            assert!(damaged.iter().any(|damage| damage.hurts == ["/a in s"]));
            (damaged.len(), notes.len())
        };
        assert_eq!((find(&[]), find(&["frame 1"])), ((1, 1), (2, 1)));
    }

    #[test]
    fn vanished_packs_are_damage_only_if_something_is_missing() {
        let mut findings = Findings::default();
        findings.vanished(&[PackId([1; 32])]);
        assert!(!findings.any());
        findings.missing_chunk(ChunkId([1; 20]));
        findings.vanished(&[PackId([1; 32])]);
        assert_eq!(findings.finish().0.len(), 2);
    }
}
