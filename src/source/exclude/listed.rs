//! Lists of paths that are left out as they are: of names no byte means anything, so that any can
//! be in one.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf, absolute};

use super::pattern::Pattern;
use crate::error::{Error, IoContext, Result};
use crate::text::escape;

/// The paths of these files, each ended by a zero byte; from the current directory on, like those of the
/// sources, where they do not begin with a slash.
pub(super) fn listed(files: &[PathBuf]) -> Result<Vec<Pattern>> {
    let mut all = Vec::new();
    for file in files {
        let bytes = fs::read(file).at("read", file)?;
        for path in bytes.split(|&byte| byte == 0).filter(|path| !path.is_empty()) {
            let path = Path::new(OsStr::from_bytes(path));
            if path.components().any(|part| part == Component::ParentDir) {
                let (path, file) = (escape(path.as_os_str().as_bytes()), file.display());
                return Err(Error::Refused(format!("the path '{path}' in {file} goes up by ..")));
            }
            all.push(Pattern::new(absolute(path).at("find", path)?.as_os_str().as_bytes()));
        }
    }
    Ok(all)
}

/// Those that lie below a source, as paths below it. What was named as a source is wanted.
pub(super) fn below<'p>(listed: &'p [Pattern], source: &Path) -> HashMap<Vec<u8>, &'p Pattern> {
    let below = |pattern: &'p Pattern| {
        let path = Path::new(OsStr::from_bytes(&pattern.line)).strip_prefix(source).ok()?;
        let path = path.as_os_str().as_bytes().to_vec();
        (!path.is_empty()).then_some((path, pattern))
    };
    listed.iter().filter_map(below).collect()
}

/// Those that were met neither themselves nor, being left out with it, by a directory above.
pub(super) fn unused(listed: &[Pattern]) -> impl Iterator<Item = &Pattern> {
    let path = |pattern: &Pattern| Path::new(OsStr::from_bytes(&pattern.line)).to_path_buf();
    let met = listed.iter().filter(|pattern| pattern.has_matched()).map(path).collect::<HashSet<_>>();
    listed.iter().filter(move |pattern| !path(pattern).ancestors().any(|above| met.contains(above)))
}
