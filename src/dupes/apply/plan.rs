//! Reading a report group by group: it may be larger than memory.

use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::FileRow;
use crate::error::{Error, Result};

/// A group in a report.
#[derive(Debug, Deserialize)]
pub struct Planned {
    /// The length of each file.
    pub bytes: u64,
    /// The files.
    pub files: Vec<FileRow>,
}

/// A directory in a report, or a snapshot.
#[derive(Debug, Deserialize)]
struct PlannedRoot {
    snapshot: Option<String>,
}

/// What takes groups, and the error that it ended with.
struct Taker<'a> {
    each: &'a mut dyn FnMut(Planned) -> Result<()>,
    failed: Option<Error>,
    has_groups: bool,
    has_snapshots: bool,
}

/// Hands out all groups in turn.
pub fn for_each_group(
    report: impl Read,
    path: &Path,
    each: &mut dyn FnMut(Planned) -> Result<()>,
) -> Result<()> {
    let mut taker = Taker { each, failed: None, has_groups: false, has_snapshots: false };
    let mut json = serde_json::Deserializer::from_reader(report);
    let read = Whole(&mut taker).deserialize(&mut json).and_then(|()| json.end());
    if let Some(error) = taker.failed {
        return Err(error);
    }
    let refused = |why: &dyn fmt::Display| Error::Refused(format!("{} is no report: {why}", path.display()));
    read.map_err(|e| refused(&e))?;
    match (taker.has_groups, taker.has_snapshots) {
        (true, false) => Ok(()),
        (true, true) => Err(Error::Refused("a report of snapshots says nothing about live files".into())),
        (false, _) => Err(refused(&"it has no groups; varv dupes --format json writes one")),
    }
}

struct Whole<'t, 'a>(&'t mut Taker<'a>);

impl<'de> DeserializeSeed<'de> for Whole<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Whole<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a report of varv dupes")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "roots" => {
                    let roots: Vec<PlannedRoot> = map.next_value()?;
                    self.0.has_snapshots |= roots.iter().any(|root| root.snapshot.is_some());
                }
                "groups" => {
                    self.0.has_groups = true;
                    map.next_value_seed(Groups(&mut *self.0))?;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

struct Groups<'t, 'a>(&'t mut Taker<'a>);

impl<'de> DeserializeSeed<'de> for Groups<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Groups<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("groups of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<(), A::Error> {
        while let Some(group) = seq.next_element::<Planned>()? {
            // Of snapshots nothing is taken: their paths are of another time, or host.
            if self.0.has_snapshots {
                continue;
            }
            if let Err(error) = (self.0.each)(group) {
                self.0.failed = Some(error);
                return Err(serde::de::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}
