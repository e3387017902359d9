//! Reading a report file by file: it may be larger than memory, and so may a group.

use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::rows::{Planned, Rows};
use super::{FileRow, Keep};
use crate::dupes::sorter::Temporary;
use crate::error::{Error, Result};

/// A directory in a report, or a snapshot.
#[derive(Debug, Deserialize)]
struct PlannedRoot {
    snapshot: Option<String>,
}

/// How a report is read.
pub struct Plan<'a> {
    /// Where it is.
    pub report: &'a Path,
    /// Which file of a group is kept.
    pub keep: Keep,
    /// For groups that do not fit in memory.
    pub temporary: &'a Temporary,
}

/// What takes groups, and the error that it ended with.
struct Taker<'a> {
    plan: &'a Plan<'a>,
    each: &'a mut dyn FnMut(Planned) -> Result<()>,
    failed: Option<Error>,
    has_groups: bool,
    has_snapshots: bool,
}
impl Plan<'_> {
    /// Hands out all groups in turn.
    pub fn for_each_group(
        &self,
        report: impl Read,
        each: &mut dyn FnMut(Planned) -> Result<()>,
    ) -> Result<()> {
        let mut taker = Taker { plan: self, each, failed: None, has_groups: false, has_snapshots: false };
        let mut json = serde_json::Deserializer::from_reader(report);
        let read = Whole(&mut taker).deserialize(&mut json).and_then(|()| json.end());
        if let Some(error) = taker.failed {
            return Err(error);
        }
        let refused =
            |why: &dyn fmt::Display| Error::Refused(format!("{} is no report: {why}", self.report.display()));
        read.map_err(|e| refused(&e))?;
        match (taker.has_groups, taker.has_snapshots) {
            (true, false) => Ok(()),
            (true, true) => Err(Error::Refused("a report of snapshots says nothing about live files".into())),
            (false, _) => Err(refused(&"it has no groups; varv dupes --format json writes one")),
        }
    }
}

impl Taker<'_> {
    /// What is wrong with more than the report ends reading it.
    fn hold<T, E: serde::de::Error>(&mut self, result: Result<T>) -> std::result::Result<T, E> {
        result.map_err(|error| {
            self.failed = Some(error);
            E::custom("stopped")
        })
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
        while let Some(group) = seq.next_element_seed(Group(&mut *self.0))? {
            // Of snapshots nothing is taken: their paths are of another time, or host.
            if !self.0.has_snapshots {
                let taken = (self.0.each)(group);
                self.0.hold(taken)?;
            }
        }
        Ok(())
    }
}

struct Group<'t, 'a>(&'t mut Taker<'a>);

impl<'de> DeserializeSeed<'de> for Group<'_, '_> {
    type Value = Planned;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Planned, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Group<'_, '_> {
    type Value = Planned;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a group of files")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Planned, A::Error> {
        let (mut bytes, mut rows) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "bytes" => bytes = Some(map.next_value()?),
                "files" => rows = Some(map.next_value_seed(Files(&mut *self.0))?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let bytes = bytes.ok_or_else(|| A::Error::missing_field("bytes"))?;
        let rows = rows.ok_or_else(|| A::Error::missing_field("files"))?;
        self.0.hold(rows.finish(bytes))
    }
}

struct Files<'t, 'a>(&'t mut Taker<'a>);

impl<'de> DeserializeSeed<'de> for Files<'_, '_> {
    type Value = Rows;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Rows, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Files<'_, '_> {
    type Value = Rows;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Rows, A::Error> {
        let Plan { keep, temporary, .. } = self.0.plan;
        let mut rows = Rows::new(*keep, temporary);
        while let Some(row) = seq.next_element::<FileRow>()? {
            self.0.hold(rows.push(row))?;
        }
        Ok(rows)
    }
}
