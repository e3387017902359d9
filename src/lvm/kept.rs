//! What varv keeps in volume groups: which snapshots, of what, and what they cost.

use super::cow;
use super::report::{Kind, Lv, list};
use super::snapshot::{Mark, is_marked, mark_of, remove};
use crate::error::Result;

/// A snapshot that varv made and that is still there.
#[derive(Debug)]
pub struct Kept {
    /// The snapshot.
    pub snapshot: Lv,
    /// The path of the volume that it is of, if that is still there.
    pub volume: Option<String>,
    /// The uuid of the volume that it is of.
    pub volume_uuid: String,
    /// Whose it is.
    pub mark: Option<Mark>,
    /// Bytes that it takes: of the volume group if it is classic, mapped in the pool if it is
    /// thin, which it may share with the volume.
    pub bytes: u64,
    /// Bytes of a classic one that are used.
    pub bytes_used: Option<u64>,
    /// Whether it still tells what has changed.
    pub is_valid: bool,
}

/// All that varv keeps, or left behind, on this machine.
pub fn kept() -> Result<Vec<Kept>> {
    let all = list()?;
    all.iter().filter(|lv| is_marked(lv)).map(|snapshot| Kept::of(snapshot, &all)).collect()
}

impl Kept {
    fn of(snapshot: &Lv, all: &[Lv]) -> Result<Self> {
        let mark = mark_of(snapshot);
        let of = mark.as_ref().map(|mark| mark.volume.clone()).or_else(|| snapshot.origin_uuid.clone());
        let volume_uuid = of.unwrap_or_default();
        let volume = all.iter().find(|lv| lv.uuid == volume_uuid).map(Lv::path);
        let used = snapshot.data_percent.unwrap_or_default() / 100.0 * snapshot.len as f64;
        let (bytes, bytes_used) = match snapshot.kind {
            Kind::Thin => (used as u64, None),
            _ => (snapshot.len, Some(used as u64)),
        };
        // Of one that is not active nothing can be told.
        let is_classic = snapshot.kind != Kind::Thin && snapshot.is_active();
        let is_valid = !is_classic || !cow::has_overflowed(&snapshot.device)?;
        Ok(Self { snapshot: snapshot.clone(), volume, volume_uuid, mark, bytes, bytes_used, is_valid })
    }

    /// Removes it.
    pub fn release(&self) -> Result<()> {
        remove(&self.snapshot)
    }
}
