//! One content, however long, window by window.

use std::path::Path;
use std::sync::Arc;

use super::window::Window;
use super::{Context, Restored};
use crate::error::Result;
use crate::format::map::{Extent, Map};
use crate::repo::nodes::Extents;
use crate::target::{Content, Empty};

/// Writes all of a map into something open. What fails is reported under `path`.
pub fn write_content(
    context: &Context,
    map: &Map,
    content: &Arc<dyn Content + Send>,
    path: &Path,
    restored: &mut Restored,
) -> Result<()> {
    let mut window = Window::default();
    let mut to = window.open(Arc::clone(content), path.to_path_buf());
    for item in Extents::of(context.catalog, map) {
        let (offset, extent) = match item {
            Ok(item) => item,
            Err(e) if e.is_damage() => {
                context.problem(path.to_path_buf(), &e, restored);
                break;
            }
            Err(e) => return Err(e),
        };
        match extent {
            Extent::Data { id, len } => window.piece(to, offset, id, len),
            Extent::Zero { len } => content.zero_at(offset, len, Empty::Zero)?,
            Extent::Hole { len } => content.zero_at(offset, len, Empty::Hole)?,
        }
        if window.is_full() {
            std::mem::take(&mut window).write(context)?.note(context, restored);
            to = window.open(Arc::clone(content), path.to_path_buf());
        }
    }
    window.write(context)?.note(context, restored);
    Ok(())
}
