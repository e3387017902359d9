//! What is to blame if a chunk cannot be had.

use super::findings::{Findings, pack_name};
use crate::error::Result;
use crate::id::ChunkId;
use crate::repo::catalog::Catalog;
use crate::repo::index::Location;

/// What a chunk that no look-up finds would be found in, if that were not damaged; `None` if it is
/// in no pack at all.
pub fn culprit(catalog: &Catalog, findings: &Findings, id: &ChunkId) -> Result<Option<String>> {
    let places = catalog.index()?.copies(id)?;
    let mut names = places.into_iter().map(|place| name_of(catalog, findings, place));
    names.next().transpose()
}

/// The chunk, frame or pack that damage was found in.
fn name_of(catalog: &Catalog, findings: &Findings, place: Location) -> Result<String> {
    let id = catalog.index()?.pack(place.pack).map(|pack| pack.id).unwrap_or(crate::id::PackId([0; 32]));
    let Ok(pack) = catalog.pack(place.pack) else { return Ok(pack_name(&id)) };
    let slot = pack.slot(place.slot)?;
    let frame = pack.frame_name(slot.frame);
    let names = [format!("chunk {} in {frame}", slot.id), frame];
    Ok(names.into_iter().find(|name| findings.is_listed(name)).unwrap_or_else(|| pack_name(&id)))
}
