//! Owners, permissions, extended attributes and times.
//!
//! The order matters: the owner first, since changing it clears set-id bits and capabilities;
//! attributes before permissions, since an unprivileged user cannot set any on a file that is
//! read-only, and an ACL changes the permissions' group bits to what they were when it was read;
//! times last. What is not allowed or not supported is counted, not an error.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmodat,
    chownat, fchmod, fchown, flistxattr, fremovexattr, fsetxattr, fstat, futimens, listxattr, openat,
    removexattr, setxattr, utimensat,
};
use rustix::io::Errno;

use super::owners::OwnerMap;
use super::shortfalls::{Shortfall, Shortfalls};
use super::tree::{Found, Kind, TargetDir};
use crate::error::{IoContext, Result};
use crate::format::tree::{Entry, Time, Xattr};

const SET_USER_ID: u32 = 0o4000;
const SET_GROUP_ID: u32 = 0o2000;

/// Room for attribute names: most often enough, and the kernel's own limit.
const NAMES_LEN: [usize; 2] = [1 << 10, 64 << 10];

/// Applies metadata, and remembers what could not be applied.
#[derive(Debug, Default)]
pub struct Metadata {
    owners: OwnerMap,
    shortfalls: Shortfalls,
}

impl Metadata {
    /// With owners turned into numbers by `owners`.
    pub fn new(owners: OwnerMap) -> Self {
        Self { owners, shortfalls: Shortfalls::default() }
    }

    /// What could not be applied so far.
    pub fn shortfalls(&self) -> &Shortfalls {
        &self.shortfalls
    }

    /// Makes an open file's metadata those of `entry`; attributes that it does not have go.
    pub fn apply_to_file(&self, fd: BorrowedFd, path: &Path, entry: &Entry) -> Result<()> {
        self.apply(&Handle::open(fd), path, entry)
    }

    /// The same for a directory; after all is written that belongs in it.
    pub fn apply_to_dir(&self, dir: &TargetDir, entry: &Entry) -> Result<()> {
        self.apply(&Handle::open(dir.as_fd()), &dir.path(), entry)
    }

    /// The same for what cannot, or must not, be opened: symlinks, pipes, sockets and devices.
    /// Fails if the name has become something else.
    pub(super) fn apply_by_name(
        &self,
        dir: &TargetDir,
        name: &OsStr,
        kind: Kind,
        entry: &Entry,
    ) -> Result<()> {
        let path = dir.path().join(name);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(dir, name, flags, Mode::empty()).at("open", &path)?;
        let found = Found::from_stat(&fstat(&fd).at("look at", &path)?);
        if found.kind != kind {
            return Err(Errno::STALE).at("set the metadata of", path);
        }
        self.apply(&Handle::held(fd.as_fd(), kind), &path, entry)
    }

    fn apply(&self, handle: &Handle, path: &Path, entry: &Entry) -> Result<()> {
        let left_out = self.apply_owner(handle, path, entry)?;
        self.remove_surplus(handle, path, &entry.xattrs)?;
        for (name, value) in &entry.xattrs {
            let set = c_name(name).and_then(|name| handle.set_xattr(&name, value));
            self.allow(Shortfall::Attribute, "set an attribute of", path, set)?;
        }
        if handle.kind != Kind::Symlink {
            let mode = Mode::from_raw_mode(entry.mode & 0o7777 & !left_out);
            self.allow(Shortfall::Permissions, "set the permissions of", path, handle.chmod(mode))?;
        }
        self.allow(Shortfall::Times, "set the times of", path, handle.set_modified(entry.modified))
    }

    /// Counts what is not allowed, or not supported here, and goes on.
    fn allow(
        &self,
        kind: Shortfall,
        action: &'static str,
        path: &Path,
        result: Result<(), Errno>,
    ) -> Result<()> {
        match result {
            Err(e) if is_shortfall(e) => {
                self.shortfalls.add(kind, path);
                Ok(())
            }
            other => other.at(action, path),
        }
    }

    /// Sets user and group, or what is allowed of them. Gives the set-id bits that must be left
    /// out, because they would lend somebody else's rights.
    fn apply_owner(&self, handle: &Handle, path: &Path, entry: &Entry) -> Result<u32> {
        let (uid, gid) = self.owners.numbers(&entry.owner);
        // Most new files have it already, and asking costs a fraction of what changing does.
        if handle.stat().is_ok_and(|stat| (stat.st_uid, stat.st_gid) == (uid, gid)) {
            return Ok(0);
        }
        let set = handle.chown(Some(uid), Some(gid));
        if set.is_ok() {
            return Ok(0);
        }
        self.allow(Shortfall::Owner, "set the owner of", path, set)?;
        // A group that one is a member of may be given without privilege.
        let _ = handle.chown(None, Some(gid));
        let stat = handle.stat().at("look at", path)?;
        let user_bit = if stat.st_uid == uid { 0 } else { SET_USER_ID };
        let group_bit = if stat.st_gid == gid { 0 } else { SET_GROUP_ID };
        let left_out = user_bit | group_bit;
        if entry.mode & left_out != 0 && handle.kind != Kind::Symlink {
            self.shortfalls.add(Shortfall::SetId, path);
        }
        Ok(left_out)
    }

    /// Removes attributes that the entry does not have: of a file that is written in place, or
    /// inherited from a directory's default ACL.
    fn remove_surplus(&self, handle: &Handle, path: &Path, wanted: &[Xattr]) -> Result<()> {
        for name in handle.xattr_names().at("list the attributes of", path)? {
            if is_content(&name) && !wanted.iter().any(|(wanted, _)| *wanted == name) {
                let removed = match c_name(&name).and_then(|name| handle.remove_xattr(&name)) {
                    Err(Errno::NODATA) => Ok(()),
                    other => other,
                };
                self.allow(Shortfall::Attribute, "remove an attribute of", path, removed)?;
            }
        }
        Ok(())
    }

    /// Counts a node that could not be made.
    pub fn count_node(&self, path: &Path) {
        self.shortfalls.add(Shortfall::Node, path);
    }
}

/// Whether an error says "not allowed" or "not supported here" of metadata. `NOSPC`, `2BIG` and
/// `RANGE` are what file systems answer whose attributes have little room; `NOENT` is what is
/// answered for a name in /proc where that is not mounted.
fn is_shortfall(error: Errno) -> bool {
    matches!(
        error,
        Errno::PERM
            | Errno::ACCESS
            | Errno::INVAL
            | Errno::OPNOTSUPP
            | Errno::NOSYS
            | Errno::NOSPC
            | Errno::TOOBIG
            | Errno::RANGE
            | Errno::NOENT
    )
}

/// Whether an attribute belongs to what was backed up; labels that the system's own policy gives
/// (`security.selinux`, `system.nfs4_acl`) do not, and stay.
fn is_content(name: &[u8]) -> bool {
    let policy = name.starts_with(b"security.") || name.starts_with(b"system.");
    !policy || name == b"security.capability" || name.starts_with(b"system.posix_acl_")
}

fn c_name(name: &[u8]) -> Result<CString, Errno> {
    CString::new(name).map_err(|_| Errno::INVAL)
}

/// Something whose metadata can be set without going through its name again.
struct Handle<'a> {
    fd: BorrowedFd<'a>,
    kind: Kind,
    /// Its name in /proc, if it is only held, not open: that names the thing itself, be it a
    /// symlink, and nobody can put another in its place.
    held: Option<String>,
}

impl<'a> Handle<'a> {
    fn open(fd: BorrowedFd<'a>) -> Self {
        Self { fd, kind: Kind::File, held: None }
    }

    fn held(fd: BorrowedFd<'a>, kind: Kind) -> Self {
        Self { fd, kind, held: Some(format!("/proc/self/fd/{}", fd.as_raw_fd())) }
    }

    fn stat(&self) -> Result<Stat, Errno> {
        fstat(self.fd)
    }

    fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        // This number means "unchanged" to the kernel, and is nobody's.
        if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
            return Err(Errno::INVAL);
        }
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        match self.held {
            None => fchown(self.fd, uid, gid),
            Some(_) => chownat(self.fd, "", uid, gid, AtFlags::EMPTY_PATH),
        }
    }

    fn chmod(&self, mode: Mode) -> Result<(), Errno> {
        match &self.held {
            None => fchmod(self.fd, mode),
            Some(path) => chmodat(CWD, path, mode, AtFlags::empty()),
        }
    }

    fn set_modified(&self, time: Time) -> Result<(), Errno> {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.min(999_999_999).into() },
        };
        match &self.held {
            None => futimens(self.fd, &times),
            Some(path) => utimensat(CWD, path, &times, AtFlags::empty()),
        }
    }

    fn set_xattr(&self, name: &CString, value: &[u8]) -> Result<(), Errno> {
        match &self.held {
            None => fsetxattr(self.fd, name, value, XattrFlags::empty()),
            Some(path) => setxattr(path, name, value, XattrFlags::empty()),
        }
    }

    fn remove_xattr(&self, name: &CString) -> Result<(), Errno> {
        match &self.held {
            None => fremovexattr(self.fd, name),
            Some(path) => removexattr(path, name),
        }
    }

    /// The attributes that it has; none where there is no support for them.
    fn xattr_names(&self) -> Result<Vec<Vec<u8>>, Errno> {
        let mut answer = Err(Errno::RANGE);
        for len in NAMES_LEN {
            let mut names = vec![0; len];
            answer = match &self.held {
                None => flistxattr(self.fd, &mut names),
                Some(path) => listxattr(path, &mut names),
            }
            .map(|filled| split_names(&names[..filled.min(len)]));
            if !matches!(answer, Err(Errno::RANGE)) {
                break;
            }
        }
        match answer {
            Err(e) if is_shortfall(e) => Ok(Vec::new()),
            other => other,
        }
    }
}

fn split_names(names: &[u8]) -> Vec<Vec<u8>> {
    names.split(|&c| c == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    use std::sync::Arc;

    use rustix::fs::getxattr;

    use super::super::shortfalls::Missed;
    use super::super::testing::{NOBODY, as_nobody, entry, file_entry, root_or_skip, skip, target};
    use super::super::{Existing, write_whole};
    use super::*;
    use crate::format::tree::{Dir, Owner, Payload};
    use crate::id::ChunkId;

    const CAPABILITY: &[u8] = b"security.capability";
    const ACL: &[u8] = b"system.posix_acl_access";

    fn owner(uid: u32, gid: u32) -> Arc<Owner> {
        Arc::new(Owner { uid, gid, ..Owner::default() })
    }

    fn write(metadata: &Metadata, dir: &TargetDir, existing: Existing, entry: &Entry) {
        write_whole(dir, b"content", existing, metadata, entry).unwrap();
    }

    fn attribute(path: &Path, name: &[u8]) -> Option<Vec<u8>> {
        let mut value = vec![0; 256];
        let len = getxattr(path, OsStr::from_bytes(name), &mut value).ok()?;
        value.truncate(len);
        Some(value)
    }

    /// Capability to bind low ports, permitted and effective.
    fn capability() -> Vec<u8> {
        [0x0200_0001_u32, 1 << 10, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// What `setfacl -m u:5:r` makes of mode 640: owner rw, user 5 r, group r, mask r, other none.
    fn acl() -> Vec<u8> {
        let none = u32::MAX;
        let rules = [(1u16, 6u16, none), (2, 4, 5), (4, 4, none), (0x10, 4, none), (0x20, 0, none)];
        let mut bytes = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in rules {
            bytes.extend(
                tag.to_le_bytes().into_iter().chain(permissions.to_le_bytes()).chain(id.to_le_bytes()),
            );
        }
        bytes
    }

    fn kinds(metadata: &Metadata) -> Vec<(Shortfall, u64)> {
        metadata.shortfalls().missed().iter().map(|Missed { kind, count, .. }| (*kind, *count)).collect()
    }

    /// Whether the file system that tests use has attributes for users.
    fn has_attributes(dir: &Path) -> bool {
        let set = setxattr(dir, "user.varv", b"", XattrFlags::empty()).is_ok();
        let _ = removexattr(dir, "user.varv");
        set || skip::<()>("no extended attributes here").is_some()
    }

    #[test]
    fn everything_comes_back_with_privilege() {
        if root_or_skip().is_none() {
            return;
        }
        let (dir, target) = target();
        if !has_attributes(dir.path()) {
            return;
        }
        let metadata = Metadata::default();
        let mut entry = file_entry("f");
        entry.owner = owner(1234, 4321);
        entry.mode = 0o6750;
        entry.xattrs = vec![(CAPABILITY.to_vec(), capability()), (b"user.empty".to_vec(), vec![])];
        for existing in [Existing::Refuse, Existing::Replace, Existing::InPlace] {
            write(&metadata, &target, existing, &entry);
            let path = dir.path().join("f");
            let found = fs::metadata(&path).unwrap();
            assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (1234, 4321, 0o6750));
            assert_eq!((found.mtime(), found.mtime_nsec()), (1_000_000_000, 7));
            assert_eq!(attribute(&path, CAPABILITY), Some(capability()));
            assert_eq!(attribute(&path, b"user.empty"), Some(vec![]));
        }
        assert_eq!(kinds(&metadata), []);
    }

    #[test]
    fn acls_come_back_and_surplus_ones_go() {
        let (dir, target) = target();
        let path = dir.path().join("f");
        if !has_attributes(dir.path()) {
            return;
        }
        let metadata = Metadata::default();
        let mut with = file_entry("f");
        with.xattrs = vec![(ACL.to_vec(), acl()), (b"user.a".to_vec(), b"1".to_vec())];
        write(&metadata, &target, Existing::Refuse, &with);
        if attribute(&path, ACL).is_none() {
            return;
        }
        assert_eq!(attribute(&path, ACL), Some(acl()));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        let without = Entry { mode: 0o604, ..file_entry("f") };
        write(&metadata, &target, Existing::InPlace, &without);
        assert_eq!((attribute(&path, ACL), attribute(&path, b"user.a")), (None, None));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o604);

        // A default ACL of the directory must not add to what was backed up.
        setxattr(dir.path(), "system.posix_acl_default", &acl(), XattrFlags::empty()).unwrap();
        write(&metadata, &target, Existing::Replace, &without);
        assert_eq!(attribute(&path, ACL), None);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o604);
        assert_eq!(kinds(&metadata), []);
    }

    #[test]
    fn many_attributes_are_found() {
        let (dir, target) = target();
        if !has_attributes(dir.path()) {
            return;
        }
        let metadata = Metadata::default();
        let names: Vec<_> = (0..30).map(|i| format!("user.{i:0>60}")).collect();
        let mut with = file_entry("f");
        with.xattrs = names.iter().map(|name| (name.clone().into_bytes(), vec![])).collect();
        write(&metadata, &target, Existing::Refuse, &with);
        write(&metadata, &target, Existing::InPlace, &file_entry("f"));
        let path = dir.path().join("f");
        assert!(names.iter().all(|name| attribute(&path, name.as_bytes()).is_none()));
    }

    #[test]
    fn directories_get_theirs_last() {
        let (dir, target) = target();
        let metadata = Metadata::default();
        let inner = target.mkdir(b"d").unwrap();
        write(&metadata, &inner, Existing::Refuse, &file_entry("f"));
        let content = Dir { root: None, entries: 0, files: 0, bytes: 0, content: ChunkId([0; 20]) };
        let entry = Entry { mode: 0o1555, ..entry("d", Payload::Dir(content)) };
        metadata.apply_to_dir(&inner, &entry).unwrap();
        let found = fs::metadata(dir.path().join("d")).unwrap();
        assert_eq!((found.mode() & 0o7777, found.mtime()), (0o1555, 1_000_000_000));
    }

    #[test]
    fn without_privilege_what_is_missing_is_counted() {
        if root_or_skip().is_none() {
            return;
        }
        let (dir, target) = target();
        let metadata = Metadata::default();
        as_nobody(&target, || {
            let mut foreign = Entry { owner: owner(0, 0), mode: 0o6755, ..file_entry("foreign") };
            foreign.xattrs = vec![(CAPABILITY.to_vec(), capability())];
            write(&metadata, &target, Existing::Refuse, &foreign);
            let own_user = Entry { owner: owner(NOBODY, 0), mode: 0o6755, ..file_entry("user") };
            write(&metadata, &target, Existing::Refuse, &own_user);
            let mut own = Entry { owner: owner(NOBODY, NOBODY), mode: 0o6444, ..file_entry("own") };
            own.xattrs = vec![(b"user.a".to_vec(), b"1".to_vec())];
            write(&metadata, &target, Existing::Refuse, &own);
        });
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("foreign"), mode("user"), mode("own")), (0o755, 0o4755, 0o6444));
        if has_attributes(dir.path()) {
            assert_eq!(attribute(&dir.path().join("own"), b"user.a"), Some(b"1".to_vec()));
        }
        let expected = [(Shortfall::Owner, 2), (Shortfall::SetId, 2), (Shortfall::Attribute, 1)];
        assert_eq!(kinds(&metadata), expected);
        assert_eq!(metadata.shortfalls().missed()[0].example, dir.path().join("foreign"));
    }

    #[test]
    fn hostile_metadata_is_no_accident() {
        let (dir, target) = target();
        let metadata = Metadata::default();
        let mut entry = Entry { owner: owner(u32::MAX, u32::MAX), mode: u32::MAX, ..file_entry("f") };
        entry.modified = Time { seconds: i64::MIN, nanos: u32::MAX };
        entry.xattrs = vec![(b"user.a\0b".to_vec(), vec![]), (b"nonsense".to_vec(), vec![0; 100_000])];
        write(&metadata, &target, Existing::Refuse, &entry);
        assert_eq!(fs::metadata(dir.path().join("f")).unwrap().mode() & 0o7777, 0o1777);
        let expected = [(Shortfall::Owner, 1), (Shortfall::SetId, 1), (Shortfall::Attribute, 2)];
        assert_eq!(kinds(&metadata)[..3], expected);
    }

    #[test]
    fn names_of_owners_are_looked_up() {
        if root_or_skip().is_none() {
            return;
        }
        let (dir, target) = target();
        let files = tempfile::tempdir().unwrap();
        fs::write(files.path().join("passwd"), "ann:x:1005:5::/:\n").unwrap();
        fs::write(files.path().join("group"), "staff:x:50:\n").unwrap();
        let owners = OwnerMap::from_files(&files.path().join("passwd"), &files.path().join("group"));
        let ann = Owner { uid: 1, gid: 2, user: b"ann".to_vec(), group: b"gone".to_vec() };
        write(
            &Metadata::new(owners),
            &target,
            Existing::Refuse,
            &Entry { owner: ann.into(), ..file_entry("f") },
        );
        let found = fs::metadata(dir.path().join("f")).unwrap();
        assert_eq!((found.uid(), found.gid()), (1005, 2));
    }
}
