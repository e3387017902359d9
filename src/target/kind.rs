//! What a target path is now.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext, Result};

/// The most symlinks that are followed to find out where a path leads.
const SYMLINKS_MAX: u32 = 40;

/// What a target path is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    /// Nothing is there.
    Missing,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// Anything else.
    File,
}

/// Says what a target path is, symlinks followed. What is under /dev and no block device is
/// refused: a mistyped device must not become a file in memory.
pub fn check_target_path(path: &Path) -> Result<TargetKind> {
    let kind = match fs::metadata(path) {
        Ok(meta) if meta.file_type().is_block_device() => return Ok(TargetKind::BlockDevice),
        Ok(meta) if meta.is_dir() => TargetKind::Directory,
        Ok(_) => TargetKind::File,
        Err(e) if e.kind() == io::ErrorKind::NotFound => TargetKind::Missing,
        Err(e) => return Err(e).at("look at", path),
    };
    if leads_to(path, SYMLINKS_MAX).starts_with("/dev") {
        return Err(Error::Refused(format!(
            "{} is under /dev, but is no block device; check the name",
            path.display()
        )));
    }
    Ok(kind)
}

/// Where a path leads, of which only a part may exist.
fn leads_to(path: &Path, symlinks_left: u32) -> PathBuf {
    if let Ok(real) = fs::canonicalize(path) {
        return real;
    }
    let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
        return path.to_path_buf();
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    match fs::read_link(path) {
        Ok(to) if symlinks_left > 0 => leads_to(&parent.join(to), symlinks_left - 1),
        _ => leads_to(parent, symlinks_left).join(name),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Loop;
    use super::*;

    #[test]
    fn target_paths() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "").unwrap();
        std::os::unix::fs::symlink("/dev/varv-test/gone", path("dangling")).unwrap();
        std::os::unix::fs::symlink("loop", path("loop")).unwrap();
        assert_eq!(check_target_path(&path("file")).unwrap(), TargetKind::File);
        assert_eq!(check_target_path(dir.path()).unwrap(), TargetKind::Directory);
        assert_eq!(check_target_path(&path("a/b/c")).unwrap(), TargetKind::Missing);
        assert_eq!(check_target_path(Path::new("no-such-name")).unwrap(), TargetKind::Missing);
        assert!(check_target_path(&path("loop")).is_err());
        let up_to_root = Path::new("../../../../../../../../../../../../..");
        let odd = dir.path().join(up_to_root).join("dev/shm/x");
        for bad in ["/dev/varv-test/gone", "/dev/null", "/dev", "/dev/shm"].map(PathBuf::from) {
            assert!(matches!(check_target_path(&bad), Err(Error::Refused(_))), "{}", bad.display());
        }
        assert!(matches!(check_target_path(&path("dangling")), Err(Error::Refused(_))));
        assert!(matches!(check_target_path(&odd), Err(Error::Refused(_))));
        if let Some(device) = Loop::new(&[1; 1 << 20], 512) {
            std::os::unix::fs::symlink(&device.path, path("device")).unwrap();
            assert_eq!(check_target_path(&path("device")).unwrap(), TargetKind::BlockDevice);
        }
    }
}
