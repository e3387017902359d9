//! Lists of paths that are left out as they are: of names no byte means anything, so that any can
//! be in one.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::pattern::Pattern;
use crate::error::{Error, IoContext, Result};
use crate::text::escape;

/// The paths of these files, each ended by a zero byte.
pub(super) fn listed(files: &[PathBuf]) -> Result<Vec<Pattern>> {
    let mut all = Vec::new();
    for file in files {
        let bytes = fs::read(file).at("read", file)?;
        for path in bytes.split(|&byte| byte == 0).filter(|path| !path.is_empty()) {
            if Path::new(OsStr::from_bytes(path)).components().any(|part| part == Component::ParentDir) {
                let (path, file) = (escape(path), file.display());
                return Err(Error::Refused(format!("the path '{path}' in {file} goes up by ..")));
            }
            all.push(Pattern::new(path));
        }
    }
    Ok(all)
}

/// Those that lie below a source, as paths below it. Paths that do not begin with a slash are
/// below every source.
pub(super) fn below<'p>(listed: &'p [Pattern], source: &Path) -> HashMap<Vec<u8>, &'p Pattern> {
    let mut found = HashMap::new();
    for listed in listed {
        let path = Path::new(OsStr::from_bytes(&listed.line));
        let rest = if path.is_absolute() { path.strip_prefix(source).ok() } else { Some(path) };
        let names = rest.into_iter().flat_map(Path::components).filter_map(|part| match part {
            Component::Normal(name) => Some(name.as_bytes()),
            _ => None,
        });
        let path = names.collect::<Vec<_>>().join(&b'/');
        // What was named as a source is wanted.
        if !path.is_empty() {
            found.insert(path, listed);
        }
    }
    found
}
