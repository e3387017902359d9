//! Making and removing snapshots, and knowing them again.
//!
//! What is ours has tags from the moment it exists: `varv`, and of which repository, series and
//! volume it is. Names only tell people.

use std::fmt::Display;
use std::iter;

use super::command::run;
use super::report::{Kind, Lv};
use crate::error::{Error, Result};

const TAG: &str = "varv";
/// Of the group's and the snapshot's name as the device-mapper has them. It takes 127 characters, and
/// LVM adds some for the parts of a snapshot.
const MAPPED_LEN_MAX: usize = 120;
/// The first characters of LVM's uuids, all random.
const UUID_LEN: usize = 6;

/// Whose a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The repository's id.
    pub repository: String,
    /// Stands for host and label.
    pub series: String,
    /// The uuid of the volume that it is of.
    pub volume: String,
}

impl Mark {
    fn tags(&self) -> [String; 4] {
        let tag = |name: &str, value: &dyn Display| format!("{TAG}.{name}={value}");
        [
            TAG.to_string(),
            tag("repository", &self.repository),
            tag("series", &self.series),
            tag("volume", &self.volume),
        ]
    }
}

/// Whether varv made this volume.
pub fn is_marked(volume: &Lv) -> bool {
    volume.tags.iter().any(|tag| tag == TAG)
}

/// Whose it is, if varv made it.
pub fn mark_of(volume: &Lv) -> Option<Mark> {
    let value = |name: &str| {
        let prefix = format!("{TAG}.{name}=");
        volume.tags.iter().find_map(|tag| tag.strip_prefix(&prefix)).map(str::to_string)
    };
    is_marked(volume).then_some(())?;
    Some(Mark { repository: value("repository")?, series: value("series")?, volume: value("volume")? })
}

/// How much room a classic snapshot gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Size {
    /// So many percent of what it is of.
    Percent(f64),
    /// So many bytes.
    Bytes(u64),
}

impl Size {
    /// In bytes, whole extents of the volume's group.
    fn of(self, volume: &Lv) -> u64 {
        let bytes = match self {
            Size::Percent(percent) => (volume.len as f64 * percent / 100.0).ceil() as u64,
            Size::Bytes(bytes) => bytes,
        };
        bytes.max(1).next_multiple_of(volume.extent)
    }
}

/// The snapshots to be made.
#[derive(Debug, Clone)]
pub struct Plan {
    size: Size,
    suffix: String,
}

impl Plan {
    /// Of all `volumes`; `suffix` tells one run's names from another's. Refused if there is too
    /// little room.
    pub fn new(volumes: &[Lv], size: Size, suffix: String) -> Result<Self> {
        let thick = |volume: &&Lv| volume.kind == Kind::Thick;
        for first in volumes.iter().filter(thick) {
            let group = volumes.iter().filter(thick).filter(|volume| volume.group_uuid == first.group_uuid);
            let need: u64 = group.map(|volume| size.of(volume)).sum();
            if need > first.group_free {
                return Err(Error::Refused(format!(
                    "volume group {} has {} bytes free, and snapshots need {need}: make room, or give them less with --snapshot-size",
                    first.group, first.group_free
                )));
            }
        }
        Ok(Self { size, suffix })
    }

    /// The name of a volume's snapshot. Of a long one there is a part, and what no other volume has.
    pub fn name(&self, volume: &Lv) -> String {
        let with = |name: &str| format!("varv_{name}_{}", self.suffix);
        let fits = |name: &String| 1 + mapped_len(&volume.group) + mapped_len(name) <= MAPPED_LEN_MAX;
        let own = volume.uuid.get(..UUID_LEN).unwrap_or(&volume.uuid);
        let parts = (0..=volume.name.len()).rev().filter_map(|len| volume.name.get(..len));
        let mut names =
            iter::once(with(&volume.name)).chain(parts.map(|part| with(&format!("{part}_{own}"))));
        names.find(fits).unwrap_or_else(|| with(own))
    }
}

/// The device-mapper's names have hyphens twice.
fn mapped_len(name: &str) -> usize {
    name.len() + name.matches('-').count()
}

/// Takes a snapshot of `volume` that nobody can write to. A thin one is not active afterwards.
pub fn create(volume: &Lv, plan: &Plan, mark: &Mark) -> Result<()> {
    let name = plan.name(volume);
    let mut words: Vec<String> =
        ["--snapshot", "--yes", "--permission", "r", "--name", &name].map(str::to_string).into();
    for tag in mark.tags() {
        words.extend(["--addtag".into(), tag]);
    }
    if volume.kind == Kind::Thick {
        words.extend(["--size".into(), format!("{}b", plan.size.of(volume))]);
    }
    words.push(volume.path());
    run("lvcreate", words).map(drop)
}

/// Makes a thin snapshot's device be there, or not.
pub fn set_active(snapshot: &Lv, active: bool) -> Result<()> {
    let words: &[&str] = if active { &["-ay", "-K"] } else { &["-an"] };
    run("lvchange", words.iter().copied().chain([snapshot.path().as_str()])).map(drop)
}

/// Removes a snapshot of ours; anything else is refused.
pub fn remove(snapshot: &Lv) -> Result<()> {
    if !is_marked(snapshot) {
        return Err(Error::Internal("a volume that varv did not make is to be removed"));
    }
    // Looked for by its uuid: the name may be another's by now.
    let select = format!("lv_uuid={}", snapshot.uuid);
    run("lvremove", ["--yes", "--select", &select, &snapshot.group]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvm::report::testing::lv;

    #[test]
    fn what_is_ours_is_known_by_its_tags() {
        let mark = Mark { repository: "00ff".into(), series: "ab".into(), volume: "x-y".into() };
        let mut volume = lv("vg/root");
        assert_eq!(mark_of(&volume), None);
        assert!(matches!(remove(&volume), Err(Error::Internal(_))));
        volume.tags = mark.tags().to_vec();
        assert_eq!(mark_of(&volume), Some(mark));
        volume.tags.pop();
        assert!(is_marked(&volume) && mark_of(&volume).is_none());
    }

    #[test]
    fn room_is_counted_by_group() {
        let volume = |name: &str, len: u64, free: u64| Lv { len, group_free: free, ..lv(name) };
        let plan = |volumes: &[Lv]| Plan::new(volumes, Size::Percent(10.0), "1".into());
        let mib = 1 << 20;
        assert!(plan(&[volume("vg/a", 100 * mib, 12 * mib)]).is_ok());
        assert!(plan(&[volume("vg/a", 100 * mib, 11 * mib)]).is_err());
        let two = [volume("vg/a", 100 * mib, 20 * mib), volume("vg/b", 100 * mib, 20 * mib)];
        assert!(plan(&two).is_err());
        let thin = Lv { kind: Kind::Thin, ..volume("vg/a", 100 * mib, 0) };
        assert!(plan(&[thin]).is_ok());
        let other = Lv { group_uuid: "other".into(), ..two[1].clone() };
        assert!(plan(&[two[0].clone(), other]).is_ok());
        assert_eq!(Size::Bytes(1).of(&two[0]), 4 * mib);
    }

    #[test]
    fn names_are_of_bounded_length() {
        let plan = Plan::new(&[], Size::Bytes(1), "20261121-031500".into()).unwrap();
        assert_eq!(plan.name(&lv("vg/root")), "varv_root_20261121-031500");
        for (group, name) in [("v".repeat(3), "x".repeat(100)), ("v".repeat(60), "a-".repeat(30))] {
            let name = plan.name(&lv(&format!("{group}/{name}")));
            let len = 1 + mapped_len(&group) + mapped_len(&name);
            assert!((MAPPED_LEN_MAX - 1..=MAPPED_LEN_MAX).contains(&len), "{name}");
        }
        assert_eq!(plan.name(&lv(&format!("{}/x", "v".repeat(100)))), "varv_vvvvvv_20261121-031500");
    }
}
