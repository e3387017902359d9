//! What `--delete` removes, and what no restore touches: the repository that it reads from.

use std::path::Path;

use super::Context;
use super::plan::joined;
use crate::error::{Error, Result};
use crate::target::{Identity, Kind, TargetDir, is_temporary_name};

/// The repository, or a folder in it, is no target: what is written there destroys backups.
pub fn refuse_inside(repository: Option<Identity>, target: &Path) -> Result<()> {
    let whole = std::path::absolute(target).unwrap_or_else(|_| target.to_path_buf());
    // By its words, and by where symlinks lead: the first that exists has all above it.
    let real = whole.ancestors().find_map(|path| path.canonicalize().ok());
    let is_inside = |path: &Path| path.ancestors().any(|path| Identity::of(path) == repository);
    match repository.is_some() && real.is_some_and(|real| is_inside(&real)) {
        true => Err(Error::Refused(format!(
            "{} lies in the repository: restoring there would destroy backups; name another target",
            target.display()
        ))),
        false => Ok(()),
    }
}

/// What of a directory of the target `--delete` removes: what the snapshot, which has `names` there
/// in their order, does not have, within the selection only. The repository stays, and so does what
/// the snapshot has as a source of its own.
pub fn others(context: &Context, dir: &TargetDir, names: &[Vec<u8>], path: &[u8]) -> Result<Vec<Vec<u8>>> {
    let (filter, apart) = (context.filter, &context.options.apart);
    let mut others = Vec::new();
    if apart.iter().any(|root| root == path) {
        return Ok(others);
    }
    for name in dir.list()? {
        let name = name?;
        let Some(found) = dir.look(&name)? else { continue };
        let below = joined(path, &name);
        let is_dir = found.kind == Kind::Dir;
        let spared = filter.excludes(&below, is_dir)
            || !filter.includes(&below, is_dir)
            || is_temporary_name(&name)
            || apart.iter().any(|root| is_on_the_way(&below, root))
            || Some(found.identity) == context.repository;
        if !spared && names.binary_search(&name).is_err() {
            others.push(name);
        }
    }
    // An empty directory of the snapshot may be a mount point that was left out of the backup.
    if !others.is_empty() && names.is_empty() && !path.is_empty() && dir.is_mount_root() {
        return Err(Error::Refused(
            "something is mounted here, and the snapshot has none of it: unmount it, or exclude it".into(),
        ));
    }
    others.sort();
    Ok(others)
}

/// Whether the path is the root or leads to it.
fn is_on_the_way(path: &[u8], root: &[u8]) -> bool {
    root.strip_prefix(path).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
}
