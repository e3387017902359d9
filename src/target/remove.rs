//! Removing what is in the way, and nothing else.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, StatxAttributes, StatxFlags, fstat, statat, statx, unlinkat};
use rustix::io::Errno;

use super::tree::{Identity, TargetDir, open_dir_at};
use crate::error::{Error, IoContext, Result};

/// How deep directories that are removed may be nested; each level holds an open directory.
const DEPTH_MAX: usize = 512;

/// How often a directory is read again because something was still, or again, in it.
const ROUNDS_MAX: usize = 4;

/// Removes a name, with all that is below it if it is a directory. One that is `kept`, or has it
/// somewhere below, is refused.
pub(super) fn remove(dir: &TargetDir, name: &OsStr, kept: Option<Identity>) -> Result<()> {
    let path = dir.path().join(name);
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // EISDIR is Linux's answer for a directory, EPERM that of POSIX.
        Err(Errno::ISDIR | Errno::PERM) if is_dir(dir.as_fd(), name).at("look at", &path)? => {}
        Err(e) => return Err(e).at("remove", path),
    }
    let bounds = Bounds { device: fstat(dir).at("look at", dir.path())?.st_dev, kept };
    walk(dir.as_fd(), name, &path, bounds, 0, &mut |_, _, _| Ok(()))?;
    walk(dir.as_fd(), name, &path, bounds, 0, &mut |dir, name, is_dir| {
        let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        unlinkat(dir, name, flags)
    })
}

/// What is never removed.
#[derive(Clone, Copy)]
struct Bounds {
    /// What is on another file system than this one.
    device: u64,
    /// This directory.
    kept: Option<Identity>,
}

type Visit<'a> = dyn FnMut(BorrowedFd, &OsStr, bool) -> rustix::io::Result<()> + 'a;

/// Visits all below a directory, and then the directory itself, so that removing works.
fn walk(
    above: BorrowedFd,
    name: &OsStr,
    path: &Path,
    bounds: Bounds,
    depth: usize,
    visit: &mut Visit,
) -> Result<()> {
    if depth >= DEPTH_MAX {
        return Err(Error::Refused(format!("{} is nested too deep; remove it by hand", path.display())));
    }
    let fd = open_dir_at(above, name).at("open", path)?;
    refuse_bounds(fd.as_fd(), path, bounds)?;
    let mut dir = Dir::new(fd).at("list", path)?;
    for _ in 0..ROUNDS_MAX {
        walk_inside(&mut dir, path, bounds, depth, visit)?;
        match ignore_missing(visit(above, name, true)) {
            Ok(()) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => dir.rewind(),
            Err(e) => return Err(e).at("remove", path),
        }
    }
    Err(Errno::NOTEMPTY).at("remove", path)
}

fn walk_inside(dir: &mut Dir, path: &Path, bounds: Bounds, depth: usize, visit: &mut Visit) -> Result<()> {
    while let Some(entry) = dir.read() {
        let entry = entry.at("list", path)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let (fd, inner) = (dir.fd().at("list", path)?, path.join(name));
        let below = match entry.file_type() {
            FileType::Unknown => is_dir(fd, name).at("look at", &inner)?,
            known => known == FileType::Directory,
        };
        if below {
            walk(fd, name, &inner, bounds, depth + 1, visit)?;
        } else {
            ignore_missing(visit(fd, name, false)).at("remove", &inner)?;
        }
    }
    Ok(())
}

fn is_dir(dir: BorrowedFd, name: &OsStr) -> rustix::io::Result<bool> {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn ignore_missing(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Another device number gives away most mounts; bind mounts of the same file system are seen
/// only by kernels since 5.8.
fn refuse_bounds(fd: BorrowedFd, path: &Path, bounds: Bounds) -> Result<()> {
    let stat = fstat(fd).at("look at", path)?;
    if bounds.kept == Some(Identity::from_stat(&stat)) {
        return Err(Error::Refused(format!("{} is the repository: it stays", path.display())));
    }
    if stat.st_dev != bounds.device || is_mount_root(fd) {
        return Err(Error::Refused(format!(
            "something is mounted at {}; unmount it, or exclude it",
            path.display()
        )));
    }
    Ok(())
}

pub(super) fn is_mount_root(fd: BorrowedFd) -> bool {
    let found = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::empty());
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::super::testing::{Mount, Victim, root_or_skip, target};
    use super::*;

    fn is_refused(result: Result<()>) -> bool {
        matches!(result, Err(Error::Refused(_)))
    }

    #[test]
    fn all_below_goes_and_nothing_else() {
        let victim = Victim::new();
        let (dir, target) = target();
        let path = dir.path();
        fs::create_dir_all(path.join("a/b/c")).unwrap();
        fs::create_dir_all(path.join("keep")).unwrap();
        for i in 0..3000 {
            fs::write(path.join(format!("a/b/{i}")), "").unwrap();
        }
        symlink(victim.dir(), path.join("a/dir")).unwrap();
        symlink(victim.file(), path.join("a/b/file")).unwrap();
        symlink("..", path.join("a/b/up")).unwrap();
        fs::hard_link(path.join("a/b/7"), path.join("keep/7")).unwrap();
        target.remove(b"a", None).unwrap();
        target.remove(b"a", None).unwrap();
        victim.check();
        assert!(!path.join("a").exists() && path.join("keep/7").exists());
        target.remove(b"keep", None).unwrap();
        assert!(target.is_empty().unwrap());
    }

    #[test]
    fn what_is_kept_stays_with_all_that_it_is_in() {
        let (dir, target) = target();
        fs::create_dir_all(dir.path().join("a/b/kept")).unwrap();
        fs::write(dir.path().join("a/file"), "").unwrap();
        let kept = Identity::of(&dir.path().join("a/b/kept"));
        assert!(kept.is_some() && is_refused(target.remove(b"a", kept)));
        assert!(dir.path().join("a/file").exists() && dir.path().join("a/b/kept").exists());
        target.remove(b"a", Identity::of(dir.path())).unwrap();
        assert!(target.is_empty().unwrap());
    }

    #[test]
    fn depth_has_a_limit_and_nothing_goes_beyond_it() {
        let (dir, target) = target();
        let nest = |depth| {
            let mut above = target.mkdir(b"d").unwrap();
            (1..depth).for_each(|_| above = above.mkdir(b"d").unwrap());
        };
        nest(DEPTH_MAX + 1);
        assert!(is_refused(target.remove(b"d", None)));
        assert!(super::super::testing::run("rm", &["-r", dir.path().join("d").to_str().unwrap()]));
        nest(DEPTH_MAX);
        target.remove(b"d", None).unwrap();
        assert!(target.is_empty().unwrap());
    }

    #[test]
    fn mounts_are_refused_before_anything_goes() {
        if root_or_skip().is_none() {
            return;
        }
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("file"), "").unwrap();
        let bind = ["--bind", outside.path().to_str().unwrap()];
        for args in [&bind[..], &["-t", "tmpfs", "none"]] {
            let (dir, target) = target();
            let point = dir.path().join("a/b/point");
            fs::create_dir_all(&point).unwrap();
            fs::write(dir.path().join("a/file"), "").unwrap();
            let Some(mount) = Mount::new(args, &point) else { return };
            assert!(is_refused(target.remove(b"a", None)), "{args:?}");
            assert!(is_refused(
                target.open_dir(b"a").unwrap().open_dir(b"b").unwrap().remove(b"point", None)
            ));
            assert!(dir.path().join("a/file").exists() && outside.path().join("file").exists());
            drop(mount);
            target.remove(b"a", None).unwrap();
            assert!(target.is_empty().unwrap());
        }
    }
}
