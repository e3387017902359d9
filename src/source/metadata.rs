//! From what the kernel says of a file to a tree entry.
//!
//! All extended attributes that the kernel lists are kept as they are: ACLs
//! (`system.posix_acl_*`, `system.nfs4_acl`), capabilities and labels (`security.*`), `trusted.*`
//! and `user.*`. Which of them a target takes is known only where they are restored, so nothing
//! is dropped here.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{self, FileType, Stat};
use rustix::io::Errno;

use super::owners::Owners;
use crate::format::tree::{Device, Entry, Links, Payload, Time, XATTRS_LEN_MAX, Xattr};

/// Most files have no attributes, or few: their names fit in here, at the cost of one call.
const XATTR_NAMES_LEN: usize = 1024;
/// Most values, ACLs and labels among them, fit in here.
const XATTR_VALUE_LEN: usize = 512;

/// What kind of file a stat is of.
pub fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The entry for a file with this stat; the caller read its attributes and its content.
pub fn entry(name: Vec<u8>, stat: &Stat, owners: &Owners, xattrs: Vec<Xattr>, payload: Payload) -> Entry {
    Entry {
        name,
        mode: stat.st_mode & 0o7777,
        owner: owners.get(stat.st_uid, stat.st_gid),
        modified: modified(stat),
        changed: changed(stat),
        inode: stat.st_ino,
        xattrs,
        links: links(stat),
        payload,
    }
}

/// The payload of what has no content of its own; `None` for files and directories, and for
/// what Linux does not have.
pub fn payload_without_content(dir: impl AsFd, name: &[u8], stat: &Stat) -> io::Result<Option<Payload>> {
    Ok(Some(match kind(stat) {
        FileType::Symlink => Payload::Symlink(fs::readlinkat(dir, name, Vec::new())?.into_bytes()),
        FileType::BlockDevice => Payload::BlockDevice(device(stat)),
        FileType::CharacterDevice => Payload::CharDevice(device(stat)),
        FileType::Fifo => Payload::Fifo,
        FileType::Socket => Payload::Socket,
        _ => return Ok(None),
    }))
}

/// Whether nothing shows that a file's content or metadata changed since `entry` was made.
///
/// The time of change is the one that no program can set back; the inode tells a file that took
/// another one's name. What a block device holds has no such signs: a volume is never unchanged.
pub fn unchanged(stat: &Stat, entry: &Entry) -> bool {
    let same_kind = match &entry.payload {
        Payload::File(_) => kind(stat) == FileType::RegularFile && entry.size() == stat.st_size as u64,
        Payload::Dir(_) => kind(stat) == FileType::Directory,
        Payload::Symlink(target) => {
            kind(stat) == FileType::Symlink && target.len() as u64 == stat.st_size as u64
        }
        Payload::BlockDevice(known) => kind(stat) == FileType::BlockDevice && *known == device(stat),
        Payload::CharDevice(known) => kind(stat) == FileType::CharacterDevice && *known == device(stat),
        Payload::Fifo => kind(stat) == FileType::Fifo,
        Payload::Socket => kind(stat) == FileType::Socket,
        Payload::Volume(_) | Payload::Stream(_) => false,
    };
    same_kind
        && entry.inode == stat.st_ino
        && entry.modified == modified(stat)
        && entry.changed == changed(stat)
}

// The types of a stat's fields differ from machine to machine.
#[allow(clippy::unnecessary_cast)]
fn modified(stat: &Stat) -> Time {
    Time { seconds: stat.st_mtime as i64, nanos: stat.st_mtime_nsec as u32 }
}

#[allow(clippy::unnecessary_cast)]
fn changed(stat: &Stat) -> Time {
    Time { seconds: stat.st_ctime as i64, nanos: stat.st_ctime_nsec as u32 }
}

/// Directories have several links without having several names.
#[allow(clippy::unnecessary_cast)]
fn links(stat: &Stat) -> Option<Links> {
    let several = stat.st_nlink > 1 && kind(stat) != FileType::Directory;
    several.then_some(Links { device: stat.st_dev as u64, count: stat.st_nlink as u64 })
}

fn device(stat: &Stat) -> Device {
    Device { major: fs::major(stat.st_rdev), minor: fs::minor(stat.st_rdev) }
}

/// The extended attributes of an open file or directory, sorted by name.
pub fn xattrs_of_fd(fd: impl AsFd) -> io::Result<Vec<Xattr>> {
    xattrs(&Opened(fd.as_fd()))
}

/// The extended attributes of what cannot be opened without side effects, symlinks and nodes,
/// sorted by name. The kernel has no call relative to a directory for this, but takes the
/// directory's entry in `/proc`, where no other path can be swapped in.
pub fn xattrs_of_path(dir: impl AsFd, name: &[u8]) -> io::Result<Vec<Xattr>> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    xattrs(&Named(CString::new(path)?))
}

/// The same of a root, which is named by its path; a symlink that leads to it is followed.
pub fn xattrs_of_root(path: &Path) -> io::Result<Vec<Xattr>> {
    xattrs(&Named(CString::new(path.canonicalize()?.into_os_string().into_vec())?))
}

/// The two ways of asking for attributes; like the kernel, both answer ERANGE if there is more
/// than fits.
trait Attributes {
    fn names(&self, buffer: &mut [u8]) -> rustix::io::Result<usize>;
    fn value(&self, name: &CStr, buffer: &mut [u8]) -> rustix::io::Result<usize>;
}

struct Opened<'a>(BorrowedFd<'a>);

impl Attributes for Opened<'_> {
    fn names(&self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        fs::flistxattr(self.0, buffer)
    }

    fn value(&self, name: &CStr, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        fs::fgetxattr(self.0, name, buffer)
    }
}

struct Named(CString);

impl Attributes for Named {
    fn names(&self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        fs::llistxattr(&*self.0, buffer)
    }

    fn value(&self, name: &CStr, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        fs::lgetxattr(&*self.0, name, buffer)
    }
}

fn xattrs(file: &impl Attributes) -> io::Result<Vec<Xattr>> {
    let mut few = [0; XATTR_NAMES_LEN];
    match file.names(&mut few) {
        Ok(0) => Ok(Vec::new()),
        Ok(len) => values(file, &few[..len]),
        Err(Errno::RANGE) => values(file, &grown(XATTR_NAMES_LEN, |buffer| file.names(buffer))?),
        // The file system has none.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn values(file: &impl Attributes, names: &[u8]) -> io::Result<Vec<Xattr>> {
    let mut xattrs = Vec::new();
    let mut total = 0;
    for name in names.split_inclusive(|&byte| byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::ILSEQ)?;
        let Some(value) = value(file, name)? else { continue };
        total += name.count_bytes() + value.len();
        xattrs.push((name.to_bytes().to_vec(), value));
    }
    if total > XATTRS_LEN_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the attributes take more than 4 MiB"));
    }
    xattrs.sort_unstable();
    Ok(xattrs)
}

/// `None` if the attribute went since it was listed, or is listed but not there to be read.
fn value(file: &impl Attributes, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let mut small = [0; XATTR_VALUE_LEN];
    match file.value(name, &mut small) {
        Ok(len) => Ok(Some(small[..len].to_vec())),
        Err(Errno::RANGE) => grown(XATTR_VALUE_LEN, |buffer| file.value(name, buffer)).map(Some),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Asks again with ever larger buffers: what is asked for may grow between two calls.
fn grown(len: usize, ask: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; len];
    while buffer.len() < XATTRS_LEN_MAX {
        buffer.resize(buffer.len() * 4, 0);
        match ask(&mut buffer) {
            Err(Errno::RANGE) => {}
            Err(error) => return Err(error.into()),
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
        }
    }
    Err(Errno::RANGE.into())
}

#[cfg(test)]
#[allow(clippy::print_stderr)]
mod tests {
    use std::cell::Cell;
    use std::fs::File;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{FileExt, symlink};
    use std::os::unix::net::UnixListener;

    use rustix::fs::{AtFlags, CWD, Mode, Timestamps, XattrFlags};
    use tempfile::TempDir;

    use super::*;
    use crate::format::tree::Node;

    struct Fixture {
        root: TempDir,
        dir: File,
        owners: Owners,
    }

    impl Fixture {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let dir = File::open(root.path()).unwrap();
            Self { root, dir, owners: Owners::of_system() }
        }

        fn path(&self, name: &[u8]) -> std::path::PathBuf {
            self.root.path().join(std::ffi::OsStr::from_bytes(name))
        }

        fn file(&self, name: &[u8]) -> File {
            File::create_new(self.path(name)).unwrap()
        }

        fn stat(&self, name: &[u8]) -> Stat {
            fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW).unwrap()
        }

        fn entry(&self, name: &[u8]) -> Entry {
            let stat = self.stat(name);
            let payload = payload_without_content(&self.dir, name, &stat).unwrap();
            let xattrs = xattrs_of_path(&self.dir, name).unwrap();
            let payload = payload.unwrap_or(Payload::File(Default::default()));
            let entry = entry(name.to_vec(), &stat, &self.owners, xattrs, payload);
            let bytes = crate::format::hashtree::Entry::encode_leaf(std::slice::from_ref(&entry));
            assert_eq!(Node::decode(&bytes, 0, false), Ok(Node::Leaf(vec![entry.clone()])));
            entry
        }

        /// False, with a word, where the file system or the user's rights do not allow it.
        fn set(&self, name: &[u8], attribute: &str, value: &[u8]) -> bool {
            match fs::lsetxattr(self.path(name), attribute, value, XattrFlags::empty()) {
                Ok(()) => true,
                Err(error) => {
                    eprintln!("skipped: {attribute} cannot be set here: {error}");
                    false
                }
            }
        }
    }

    #[test]
    fn a_file_with_a_name_that_is_not_utf8() {
        let fixture = Fixture::new();
        let name = b"na\xffme\n";
        let file = fixture.file(name);
        let time = |tv_sec, tv_nsec| fs::Timespec { tv_sec, tv_nsec };
        let times = Timestamps { last_access: time(1, 2), last_modification: time(-12_345_678, 987_654_321) };
        fs::futimens(&file, &times).unwrap();
        fs::fchmod(&file, Mode::from_raw_mode(0o4751)).unwrap();
        let entry = fixture.entry(name);
        assert_eq!((&entry.name[..], entry.mode, entry.kind()), (&name[..], 0o4751, "file"));
        assert_eq!(entry.modified, Time { seconds: -12_345_678, nanos: 987_654_321 });
        assert!(entry.changed.seconds > 1_600_000_000);
        assert_eq!((entry.links, entry.xattrs.len()), (None, 0));
        assert_eq!(entry.inode, fixture.stat(name).st_ino);
        assert_eq!(entry.owner.uid, rustix::process::geteuid().as_raw());
    }

    #[test]
    fn all_kinds() {
        let fixture = Fixture::new();
        symlink("target \u{e9}", fixture.path(b"link")).unwrap();
        let long = "t/".repeat(2000);
        symlink(&long, fixture.path(b"long link")).unwrap();
        fs::mkfifoat(&fixture.dir, "fifo", Mode::RUSR).unwrap();
        let _socket = UnixListener::bind(fixture.path(b"socket")).unwrap();
        assert_eq!(fixture.entry(b"link").payload, Payload::Symlink("target \u{e9}".into()));
        assert_eq!(fixture.entry(b"long link").payload, Payload::Symlink(long.into_bytes()));
        assert_eq!(fixture.entry(b"fifo").payload, Payload::Fifo);
        assert_eq!(fixture.entry(b"socket").payload, Payload::Socket);
        let null = fs::stat("/dev/null").unwrap();
        let device = payload_without_content(CWD, b"/dev/null", &null).unwrap();
        assert_eq!(device, Some(Payload::CharDevice(Device { major: 1, minor: 3 })));
        let stat = fs::fstat(&fixture.dir).unwrap();
        assert_eq!(payload_without_content(CWD, b".", &stat).unwrap(), None);
    }

    #[test]
    fn names_of_one_file_are_told() {
        let fixture = Fixture::new();
        fixture.file(b"a");
        std::fs::hard_link(fixture.path(b"a"), fixture.path(b"b")).unwrap();
        std::fs::create_dir(fixture.path(b"dir")).unwrap();
        let (a, b) = (fixture.entry(b"a"), fixture.entry(b"b"));
        assert_eq!(a.links, Some(Links { device: fixture.stat(b"a").st_dev, count: 2 }));
        assert_eq!((a.links, a.inode), (b.links, b.inode));
        assert_eq!(fixture.entry(b"dir").links, None);
    }

    #[test]
    fn attributes_come_sorted_and_whole() {
        let fixture = Fixture::new();
        let file = fixture.file(b"f");
        let large = vec![7; 3000];
        if !fixture.set(b"f", "user.z", &large) {
            return;
        }
        fixture.set(b"f", "user.empty", b"");
        fixture.set(b"f", "user.\u{e9}", b"\0\xff");
        let expected = vec![
            (b"user.empty".to_vec(), vec![]),
            (b"user.z".to_vec(), large),
            ("user.\u{e9}".as_bytes().to_vec(), vec![0, 255]),
        ];
        assert_eq!(xattrs_of_fd(&file).unwrap(), expected);
        assert_eq!(xattrs_of_path(&fixture.dir, b"f").unwrap(), expected);
        assert_eq!(fixture.entry(b"f").xattrs, expected);
    }

    #[test]
    fn many_attributes() {
        let fixture = Fixture::new();
        let file = fixture.file(b"f");
        let name = |i| format!("user.{i:02}{}", "n".repeat(100));
        if (0..20).all(|i| fixture.set(b"f", &name(i), &[i])) {
            let expected: Vec<_> = (0..20).map(|i| (name(i).into_bytes(), vec![i])).collect();
            assert_eq!(xattrs_of_fd(&file).unwrap(), expected);
        }
    }

    #[test]
    fn acls_are_attributes() {
        let fixture = Fixture::new();
        std::fs::create_dir(fixture.path(b"d")).unwrap();
        // Owner, user 1, group, mask, others; as in the kernel's posix_acl_xattr.h.
        let entries =
            [(1u16, 6u16, u32::MAX), (2, 4, 1), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)];
        let mut acl = 2u32.to_le_bytes().to_vec();
        for (tag, rights, id) in entries {
            acl.extend(tag.to_le_bytes().into_iter().chain(rights.to_le_bytes()).chain(id.to_le_bytes()));
        }
        let names = ["system.posix_acl_access", "system.posix_acl_default"];
        if names.iter().all(|name| fixture.set(b"d", name, &acl)) {
            let expected = names.map(|name| (name.as_bytes().to_vec(), acl.clone()));
            assert_eq!(fixture.entry(b"d").xattrs, expected);
            assert_eq!(fixture.entry(b"d").mode, 0o640);
        }
    }

    #[test]
    fn a_symlink_has_attributes_of_its_own() {
        let fixture = Fixture::new();
        fixture.file(b"target");
        symlink("target", fixture.path(b"link")).unwrap();
        fixture.set(b"target", "user.target", b"x");
        if fixture.set(b"link", "trusted.link", b"y") {
            assert_eq!(fixture.entry(b"link").xattrs, [(b"trusted.link".to_vec(), b"y".to_vec())]);
        }
        assert!(fixture.entry(b"link").xattrs.iter().all(|(name, _)| name != b"user.target"));
    }

    #[test]
    fn file_systems_without_attributes_have_none() {
        let proc = File::open("/proc/self").unwrap();
        assert_eq!(xattrs_of_fd(&proc).unwrap(), []);
        assert_eq!(xattrs_of_path(&proc, b"exe").unwrap(), []);
        let gone = xattrs_of_path(&proc, b"gone").unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    }

    /// Larger at every call; one of its attributes went.
    struct Growing(Cell<usize>);

    impl Attributes for Growing {
        fn names(&self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
            let names = b"user.b\0user.a\0user.gone\0";
            self.0.set(self.0.get() * 4);
            if self.0.get() < 40_000 {
                return Err(Errno::RANGE);
            }
            buffer[..names.len()].copy_from_slice(names);
            Ok(names.len())
        }

        fn value(&self, name: &CStr, buffer: &mut [u8]) -> rustix::io::Result<usize> {
            match name.to_bytes() {
                b"user.gone" => Err(Errno::NODATA),
                _ if buffer.len() < 100_000 => Err(Errno::RANGE),
                _ => Ok(100_000),
            }
        }
    }

    #[test]
    fn what_grows_is_asked_for_again() {
        let found = xattrs(&Growing(Cell::new(1000))).unwrap();
        let shape: Vec<_> = found.iter().map(|(name, value)| (&name[..], value.len())).collect();
        assert_eq!(shape, [(&b"user.a"[..], 100_000), (b"user.b", 100_000)]);
    }

    #[test]
    fn changes_show() {
        let fixture = Fixture::new();
        let file = fixture.file(b"f");
        let old = fixture.entry(b"f");
        assert!(unchanged(&fixture.stat(b"f"), &old));
        let with = |change: fn(&mut Entry)| {
            let mut entry = old.clone();
            change(&mut entry);
            unchanged(&fixture.stat(b"f"), &entry)
        };
        assert!(with(|e| e.name = b"other".to_vec()));
        assert!(!with(|e| e.inode += 1));
        assert!(!with(|e| e.modified.nanos ^= 1));
        assert!(!with(|e| e.changed.seconds -= 1));
        assert!(!with(|e| e.payload = Payload::Fifo));
        assert!(!with(|e| e.payload = Payload::Volume(Default::default())));
        // Same times, another size.
        file.write_all_at(b"x", 0).unwrap();
        let stat = fixture.stat(b"f");
        let entry = Entry { modified: modified(&stat), changed: changed(&stat), ..old.clone() };
        assert!(!unchanged(&stat, &entry));
    }

    #[test]
    fn other_kinds_can_be_unchanged() {
        let fixture = Fixture::new();
        symlink("t", fixture.path(b"link")).unwrap();
        fs::mkfifoat(&fixture.dir, "fifo", Mode::RUSR).unwrap();
        for name in [&b"link"[..], b"fifo"] {
            assert!(unchanged(&fixture.stat(name), &fixture.entry(name)));
        }
        assert!(!unchanged(&fixture.stat(b"link"), &fixture.entry(b"fifo")));
    }
}
