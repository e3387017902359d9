//! What a check has found so far.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Damage;
use crate::error::{Error, Result};
use crate::id::{ChunkId, PackId};
use crate::repo::index::Location;
use crate::repo::layout;

/// Missing chunks that are told apart; beyond that they are "more than".
const MISSING_MAX: usize = 1 << 18;
/// Damaged objects that are listed; beyond that they are counted.
const DAMAGED_MAX: usize = 100_000;
/// Paths that are listed for one damaged object; beyond that they are counted.
const PATHS_MAX: usize = 20;
/// Snapshots that are listed for one path; beyond that they are counted.
const SNAPSHOTS_MAX: usize = 5;
/// What all missing chunks are listed as until their number is known.
const MISSING: &str = "missing chunks";
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
    bad_packs: HashMap<u32, String>,
    bad_frames: HashMap<(u32, u32), String>,
    bad_chunks: HashMap<Location, String>,
    hurts: HashMap<usize, Hurts>,
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

/// What a pack is called.
pub fn pack_name(id: &PackId) -> String {
    format!("pack {id}")
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

    /// A chunk that is in no pack.
    pub fn missing_chunk(&mut self, id: ChunkId) {
        if self.missing.is_empty() {
            self.add(MISSING, "no pack that can be read has what snapshots need".into());
        }
        if self.missing.len() < MISSING_MAX {
            self.missing.insert(id);
        }
    }

    /// A pack that nothing can be read from; `number` is its number in the index.
    pub fn bad_pack(&mut self, id: &PackId, number: Option<u32>, why: String) {
        let name = pack_name(id);
        self.add(&name, why);
        self.bad_packs.extend(number.map(|number| (number, name)));
    }

    /// A frame that cannot be opened.
    pub fn bad_frame(&mut self, pack: u32, frame: u32, name: String, why: String) {
        self.add(&name, why);
        self.bad_frames.insert((pack, frame), name);
    }

    /// A chunk that is not what it should be.
    pub fn bad_chunk(&mut self, at: Location, name: String, why: String) {
        self.add(&name, why);
        self.bad_chunks.insert(at, name);
    }

    /// Whether nothing can be read from this pack.
    pub fn is_bad_pack(&self, number: u32) -> bool {
        self.bad_packs.contains_key(&number)
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

    /// What is to blame if the chunk there cannot be had; `frame_of` says in which frame it is.
    pub fn blame(
        &self,
        place: Option<Location>,
        frame_of: impl FnOnce(Location) -> Result<u32>,
    ) -> Result<Option<&str>> {
        let Some(at) = place else { return Ok(Some(MISSING)) };
        let bad = self.bad_packs.get(&at.pack).or_else(|| self.bad_chunks.get(&at));
        if bad.is_some() || !self.bad_frames.keys().any(|(pack, _)| *pack == at.pack) {
            return Ok(bad.map(String::as_str));
        }
        Ok(self.bad_frames.get(&(at.pack, frame_of(at)?)).map(String::as_str))
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
        assert_eq!(findings.blame(None, |_| Ok(0)).unwrap(), Some(MISSING));
        let (damaged, _) = findings.finish();
        assert_eq!(damaged.len(), 1);
        assert!(damaged[0].object.ends_with("0000 and 2 others"), "{}", damaged[0].object);
    }

    #[test]
    fn the_smallest_bad_place_is_blamed() {
        let mut findings = Findings::default();
        findings.bad_pack(&PackId([1; 32]), Some(1), "w".into());
        findings.bad_frame(2, 5, "frame 5".into(), "w".into());
        let at = |pack, slot| Some(Location { pack, slot });
        let frame = |at: Location| Ok(at.slot);
        assert!(findings.blame(at(1, 0), frame).unwrap().is_some());
        assert_eq!(findings.blame(at(2, 5), frame).unwrap(), Some("frame 5"));
        assert_eq!(findings.blame(at(2, 6), frame).unwrap(), None);
        assert_eq!(findings.blame(at(3, 5), frame).unwrap(), None);
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
