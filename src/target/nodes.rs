//! Symlinks, pipes, sockets, device nodes and hard links.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Mode, linkat, makedev, mknodat, readlinkat, statat, symlinkat};
use rustix::io::Errno;

use super::Existing;
use super::metadata::Metadata;
use super::place::Place;
use super::tree::{Kind, TargetDir, checked};
use crate::error::{Error, Result};
use crate::format::tree::{Device, Entry, Payload};

impl Metadata {
    /// Makes what is neither file nor directory, with its metadata. False if that is not allowed
    /// here, which is counted.
    pub fn make_node(&self, dir: &TargetDir, existing: Existing, entry: &Entry) -> Result<bool> {
        let node = Node::of(&entry.payload)?;
        if existing == Existing::InPlace && node.is_there(dir, checked(&entry.name)?) {
            self.apply_by_name(dir, checked(&entry.name)?, node.kind(), entry)?;
            return Ok(true);
        }
        let place = match make(dir, &entry.name, existing, |name| node.make(dir, name)) {
            Ok(place) => place,
            Err(e) => return self.count_unmade(dir, entry, e).map(|()| false),
        };
        if let Err(e) = self.apply_by_name(dir, place.current(), node.kind(), entry) {
            place.abandon(dir);
            return Err(e);
        }
        place.publish(dir)?;
        Ok(true)
    }

    fn count_unmade(&self, dir: &TargetDir, entry: &Entry, error: Error) -> Result<()> {
        match error.io().and_then(|e| e.raw_os_error()).map(Errno::from_raw_os_error) {
            Some(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL) => {
                self.count_node(&dir.path_of(&entry.name));
                Ok(())
            }
            _ => Err(error),
        }
    }
}

/// Makes `name` one more name of a file that is in the target already. Neither name is followed
/// if it is a symlink.
pub fn make_hard_link(
    from: &TargetDir,
    from_name: &[u8],
    dir: &TargetDir,
    name: &[u8],
    existing: Existing,
) -> Result<()> {
    let source = checked(from_name)?;
    if existing != Existing::Refuse && is_same_file(from, from_name, dir, name)? {
        return Ok(());
    }
    make(dir, name, existing, |name| linkat(from, source, dir, name, AtFlags::empty()))?.publish(dir)
}

fn is_same_file(from: &TargetDir, from_name: &[u8], dir: &TargetDir, name: &[u8]) -> Result<bool> {
    let (Some(one), Some(other)) = (from.look(from_name)?, dir.look(name)?) else { return Ok(false) };
    Ok(one.identity == other.identity)
}

fn make(
    dir: &TargetDir,
    name: &[u8],
    existing: Existing,
    call: impl FnMut(&OsStr) -> rustix::io::Result<()>,
) -> Result<Place> {
    Place::make(dir, name, existing, call).map(|((), place)| place)
}

/// What is made by one call.
enum Node<'a> {
    Symlink(&'a [u8]),
    Special { file_type: FileType, device: u64 },
}

impl<'a> Node<'a> {
    fn of(payload: &'a Payload) -> Result<Self> {
        let special = |file_type| Node::Special { file_type, device: 0 };
        Ok(match payload {
            Payload::Symlink(target) => Node::Symlink(target),
            Payload::BlockDevice(device) => Node::device(FileType::BlockDevice, *device),
            Payload::CharDevice(device) => Node::device(FileType::CharacterDevice, *device),
            Payload::Fifo => special(FileType::Fifo),
            Payload::Socket => special(FileType::Socket),
            Payload::File(_) | Payload::Dir(_) | Payload::Volume(_) | Payload::Stream(_) => {
                return Err(Error::Internal("what has content is no node"));
            }
        })
    }

    fn device(file_type: FileType, device: Device) -> Self {
        Node::Special { file_type, device: makedev(device.major, device.minor) }
    }

    fn kind(&self) -> Kind {
        match self {
            Node::Symlink(_) => Kind::Symlink,
            Node::Special { file_type, .. } => Kind::of(*file_type),
        }
    }

    fn make(&self, dir: &TargetDir, name: &OsStr) -> rustix::io::Result<()> {
        match self {
            Node::Symlink(target) => symlinkat(OsStr::from_bytes(target), dir, name),
            Node::Special { file_type, device } => {
                mknodat(dir, name, *file_type, Mode::RUSR | Mode::WUSR, *device)
            }
        }
    }

    /// Whether the name is this already.
    fn is_there(&self, dir: &TargetDir, name: &OsStr) -> bool {
        match self {
            Node::Symlink(target) => {
                readlinkat(dir, name, Vec::new()).is_ok_and(|to| to.as_bytes() == *target)
            }
            Node::Special { file_type, device } => {
                statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|found| {
                    FileType::from_raw_mode(found.st_mode) == *file_type && found.st_rdev == *device
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

    use super::super::shortfalls::Shortfall;
    use super::super::testing::{Victim, as_nobody, entry, file_entry, root_or_skip, target};
    use super::*;

    const ALL: [Existing; 3] = [Existing::Refuse, Existing::Replace, Existing::InPlace];

    fn link_entry(name: &str, to: &str) -> Entry {
        Entry { mode: 0o777, ..entry(name, Payload::Symlink(to.into())) }
    }

    fn null_entry() -> Entry {
        Entry { mode: 0o666, ..entry("null", Payload::CharDevice(Device { major: 1, minor: 3 })) }
    }

    #[test]
    fn symlinks_get_their_own_metadata() {
        let victim = Victim::new();
        let (dir, target) = target();
        let metadata = Metadata::default();
        let entry = link_entry("l", victim.file().to_str().unwrap());
        assert!(metadata.make_node(&target, Existing::Refuse, &entry).unwrap());
        let found = fs::symlink_metadata(dir.path().join("l")).unwrap();
        assert_eq!((found.mtime(), found.mtime_nsec()), (1_000_000_000, 7));
        assert_eq!(fs::read_link(dir.path().join("l")).unwrap(), victim.file());
        assert_eq!(metadata.shortfalls().missed(), []);
        victim.check();
    }

    #[test]
    fn symlinks_get_owners_and_attributes() {
        if root_or_skip().is_none() {
            return;
        }
        let victim = Victim::new();
        let (dir, target) = target();
        let metadata = Metadata::default();
        let mut entry = link_entry("l", victim.file().to_str().unwrap());
        entry.owner =
            std::sync::Arc::new(crate::format::tree::Owner { uid: 5, gid: 6, ..Default::default() });
        entry.xattrs = vec![(b"trusted.varv".to_vec(), b"v".to_vec())];
        metadata.make_node(&target, Existing::Refuse, &entry).unwrap();
        let path = dir.path().join("l");
        let found = fs::symlink_metadata(&path).unwrap();
        assert_eq!((found.uid(), found.gid()), (5, 6));
        let mut value = [0; 9];
        assert_eq!(rustix::fs::lgetxattr(&path, "trusted.varv", &mut value), Ok(1));
        assert!(rustix::fs::getxattr(victim.file(), "trusted.varv", &mut value).is_err());
        victim.check();
    }

    #[test]
    fn what_is_in_the_way_is_refused_or_replaced() {
        let victim = Victim::new();
        for existing in ALL {
            let (dir, target) = target();
            let metadata = Metadata::default();
            symlink(victim.file(), dir.path().join("n")).unwrap();
            for payload in [Payload::Fifo, Payload::Symlink(b"to".to_vec()), Payload::Socket] {
                let made = metadata.make_node(&target, existing, &entry("n", payload));
                assert_eq!(made.is_ok(), existing != Existing::Refuse, "{existing:?}");
            }
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
            victim.check();
        }
    }

    #[test]
    fn pipes_and_sockets_get_their_permissions() {
        let (dir, target) = target();
        let metadata = Metadata::default();
        for (name, payload) in [("p", Payload::Fifo), ("s", Payload::Socket)] {
            metadata.make_node(&target, Existing::Refuse, &entry(name, payload)).unwrap();
            let found = fs::symlink_metadata(dir.path().join(name)).unwrap();
            assert_eq!((found.mode() & 0o7777, found.mtime()), (0o640, 1_000_000_000));
        }
        assert!(fs::symlink_metadata(dir.path().join("p")).unwrap().file_type().is_fifo());
        assert!(fs::symlink_metadata(dir.path().join("s")).unwrap().file_type().is_socket());
        assert_eq!(metadata.shortfalls().missed(), []);
        let content = metadata.make_node(&target, Existing::Refuse, &file_entry("f"));
        assert!(content.is_err());
    }

    #[test]
    fn devices_need_root() {
        if root_or_skip().is_none() {
            return;
        }
        let (dir, target) = target();
        let metadata = Metadata::default();
        assert!(metadata.make_node(&target, Existing::Refuse, &null_entry()).unwrap());
        let found = fs::symlink_metadata(dir.path().join("null")).unwrap();
        assert_eq!((found.rdev(), found.mode() & 0o7777), (makedev(1, 3), 0o666));
        target.remove(b"null", None).unwrap();
        as_nobody(&target, || {
            assert!(!metadata.make_node(&target, Existing::Refuse, &null_entry()).unwrap());
        });
        let missed = metadata.shortfalls().missed();
        assert_eq!((missed.len(), missed[0].kind, missed[0].count), (1, Shortfall::Node, 1));
        assert_eq!(missed[0].example, dir.path().join("null"));
    }

    #[test]
    fn what_is_right_already_keeps_its_inode() {
        let (dir, target) = target();
        let metadata = Metadata::default();
        let inode = || fs::symlink_metadata(dir.path().join("l")).unwrap().ino();
        metadata.make_node(&target, Existing::Refuse, &link_entry("l", "a")).unwrap();
        let before = inode();
        metadata.make_node(&target, Existing::InPlace, &link_entry("l", "a")).unwrap();
        assert_eq!(inode(), before);
        metadata.make_node(&target, Existing::InPlace, &link_entry("l", "b")).unwrap();
        assert_ne!(inode(), before);
    }

    #[test]
    fn metadata_goes_to_what_was_made_or_nowhere() {
        let victim = Victim::new();
        let (dir, target) = target();
        symlink(victim.file(), dir.path().join("p")).unwrap();
        let entry = entry("p", Payload::Fifo);
        let applied = Metadata::default().apply_by_name(&target, OsStr::new("p"), Kind::Fifo, &entry);
        assert!(applied.is_err());
        victim.check();
    }

    #[test]
    fn hard_links_do_not_follow() {
        let victim = Victim::new();
        let (dir, target) = target();
        let other = target.mkdir(b"d").unwrap();
        fs::write(dir.path().join("f"), "one").unwrap();
        make_hard_link(&target, b"f", &other, b"g", Existing::Refuse).unwrap();
        let inode = |name: &str| fs::symlink_metadata(dir.path().join(name)).unwrap().ino();
        assert_eq!(inode("f"), inode("d/g"));
        assert!(make_hard_link(&target, b"f", &other, b"g", Existing::Refuse).is_err());
        make_hard_link(&target, b"f", &other, b"g", Existing::Replace).unwrap();

        symlink(victim.file(), dir.path().join("d/l")).unwrap();
        assert!(make_hard_link(&target, b"f", &other, b"l", Existing::Refuse).is_err());
        make_hard_link(&target, b"f", &other, b"l", Existing::InPlace).unwrap();
        assert_eq!(inode("f"), inode("d/l"));

        symlink(victim.file(), dir.path().join("source")).unwrap();
        make_hard_link(&target, b"source", &other, b"h", Existing::Refuse).unwrap();
        assert!(dir.path().join("d/h").is_symlink());
        for bad in [&b"../x"[..], b"..", b""] {
            assert!(make_hard_link(&target, bad, &other, b"x", Existing::Refuse).is_err());
            assert!(make_hard_link(&target, b"f", &other, bad, Existing::Refuse).is_err());
        }
        assert_eq!(fs::read_dir(dir.path().join("d")).unwrap().count(), 3);
        victim.check();
    }
}
