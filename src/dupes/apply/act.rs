//! Touching files: each step leaves at every instant an equal file under some name.
//!
//! What takes a file's place is made beside it under a name of its own and exchanged with it in
//! one call. Only then is it sure what was there, and that goes last; if it is not what was
//! compared, or the file that is kept is gone or changed, the two are exchanged back. To remove a
//! file it is set aside first, for the same reason. A kill leaves one file with a name that begins
//! with [`leftover::PREFIX`].

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat, StatxFlags, fstat, ioctl_ficlone, linkat,
    openat, renameat, renameat_with, statat, statx, unlinkat,
};
use rustix::io::Errno;

use super::{Action, FileRow, Step, leftover};
use crate::dupes::open::open_file;
use crate::dupes::record::Inode;
use crate::dupes::report::timestamp;
use crate::error::{Error, IoContext, Result};
use crate::format::map::Map;
use crate::format::tree::Payload;
use crate::observe::Stop;
use crate::source::extents::read_at;
use crate::source::metadata::{entry, kind, xattrs_of_fd};
use crate::source::owners::Owners;
use crate::target::{Metadata, OwnerMap};

/// What is compared at once.
const STEP_LEN: usize = 1 << 20;

/// A file that is as the report says.
pub struct Known {
    /// Where it was opened.
    pub path: PathBuf,
    /// For reading.
    pub file: File,
    /// What it was when it was opened.
    pub stat: Stat,
}

/// Compares and acts; has two buffers.
pub struct Actor<'a> {
    stop: &'a Stop,
    owners: Owners,
    buffers: [Vec<u8>; 2],
    /// What was read to compare.
    pub bytes_read: u64,
}

/// The directory of a name, and the name in it.
struct Place<'p> {
    dir: OwnedFd,
    name: &'p OsStr,
    path: &'p Path,
}

fn changed(path: &Path) -> Error {
    Error::Refused(format!("{} is not what the report says any more", path.display()))
}

impl Known {
    /// Whether it was not written to since it was opened. Links that come and go change its inode's
    /// time, so that does not count.
    fn is_unchanged(&self) -> bool {
        fstat(&self.file).is_ok_and(|now| is_same(&self.stat, &now))
    }

    /// When its inode changed, as whoever serves the file system has it; none if it cannot say.
    fn inode_changed(&self) -> Option<(i64, u32)> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
        let now = statx(&self.file, "", flags, StatxFlags::CTIME).ok()?;
        Some((now.stx_ctime.tv_sec, now.stx_ctime.tv_nsec))
    }

    /// Whether it still has the name that it was opened by.
    fn is_there(&self) -> bool {
        let now = statat(CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW);
        self.is_unchanged() && now.is_ok_and(|now| is_same(&self.stat, &now))
    }
}

fn is_same(a: &Stat, b: &Stat) -> bool {
    let key = |stat: &Stat| {
        let Inode { len, device, inode, modified, .. } = Inode::new(stat);
        (len, device, inode, modified, kind(stat))
    };
    key(a) == key(b)
}

impl<'a> Actor<'a> {
    /// With buffers.
    pub fn new(stop: &'a Stop) -> Self {
        let buffer = || vec![0; STEP_LEN];
        Self { stop, owners: Owners::of_system(), buffers: [buffer(), buffer()], bytes_read: 0 }
    }

    /// Opens a file of the report if it is still the one.
    pub fn open(&self, path: &Path, row: &FileRow, len: u64) -> Result<Known> {
        let file = File::from(open_file(CWD, path).at("open", path)?);
        let stat = fstat(&file).at("look at", path)?;
        let inode = Inode::new(&stat);
        let is_time = row.modified.is_none() || row.modified == timestamp(inode.modified);
        let is_it = kind(&stat) == FileType::RegularFile
            && inode.len == len
            && Some(inode.device) == row.device
            && Some(inode.inode) == row.inode;
        match is_it && is_time {
            true => Ok(Known { path: path.to_path_buf(), file, stat }),
            false => Err(changed(path)),
        }
    }

    /// An error unless all bytes are equal.
    pub fn compare(&mut self, kept: &Known, other: &Known) -> Result<()> {
        let [first, second] = &mut self.buffers;
        let mut at = 0;
        loop {
            self.stop.check()?;
            let read = read_at(&kept.file, first, at).at("read", &kept.path)?;
            let read_other = read_at(&other.file, second, at).at("read", &other.path)?;
            self.bytes_read += (read + read_other) as u64;
            if first.get(..read) != second.get(..read_other) {
                return Err(changed(&other.path));
            }
            if read < STEP_LEN {
                break;
            }
            at += read as u64;
        }
        match (kept.is_there(), other.is_unchanged()) {
            (true, true) => Ok(()),
            (false, _) => Err(changed(&kept.path)),
            (true, false) => Err(changed(&other.path)),
        }
    }

    /// An error if it would take more from the file than its bytes.
    pub fn allow(&self, action: Action, kept: &Known, other: &Known, has_more_names: bool) -> Result<()> {
        let (a, b) = (&kept.stat, &other.stat);
        let refuse = |why: &str| Err(Error::Refused(why.into()));
        match action {
            Action::Hardlink if a.st_dev != b.st_dev => refuse("it is on another file system"),
            Action::Hardlink if (a.st_mode, a.st_uid, a.st_gid) != (b.st_mode, b.st_uid, b.st_gid) => {
                refuse("its owner or mode is not that of the file that is kept")
            }
            Action::Hardlink => {
                let xattrs =
                    |known: &Known| xattrs_of_fd(&known.file).at("read the attributes of", &known.path);
                match xattrs(kept)? == xattrs(other)? {
                    true => Ok(()),
                    false => refuse("its extended attributes are not those of the file that is kept"),
                }
            }
            Action::Reflink if a.st_dev != b.st_dev => refuse("it is on another file system"),
            Action::Reflink if has_more_names => refuse("it has names that are not in the report"),
            Action::Reflink | Action::Remove => Ok(()),
        }
    }

    /// Does it to one name.
    pub fn act(&self, kept: &Known, other: &Known, step: &Step) -> Result<()> {
        let place = Place::open(step.name)?;
        match step.action {
            Action::Remove => place.remove(kept, other),
            Action::Hardlink => {
                place.replace(kept, other, &|aside| place.link(&kept.path, &kept.stat, aside))
            }
            Action::Reflink => match step.first {
                None => place.replace(kept, other, &|aside| self.clone(&place, kept, other, aside)),
                Some(first) => {
                    let stat = statat(CWD, first, AtFlags::SYMLINK_NOFOLLOW).at("look at", first)?;
                    place.replace(kept, other, &|aside| place.link(first, &stat, aside))
                }
            },
        }
    }

    /// Makes a file with the bytes of the one that is kept and the metadata of the other.
    fn clone(&self, place: &Place, kept: &Known, other: &Known, aside: &OsStr) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let made =
            openat(&place.dir, aside, flags, Mode::RUSR | Mode::WUSR).at("make a file beside", place.path)?;
        let filled = self.fill(place, kept, other, &made);
        if filled.is_err() {
            unlinkat(&place.dir, aside, AtFlags::empty()).at("remove a file beside", place.path)?;
        }
        filled
    }

    fn fill(&self, place: &Place, kept: &Known, other: &Known, made: &OwnedFd) -> Result<()> {
        ioctl_ficlone(made, &kept.file).at("share bytes with", place.path)?;
        let xattrs = xattrs_of_fd(&other.file).at("read the attributes of", place.path)?;
        let entry = entry(
            place.name.as_bytes().to_vec(),
            &other.stat,
            &self.owners,
            xattrs,
            Payload::File(Map::default()),
        );
        let metadata = Metadata::new(OwnerMap::default());
        metadata.apply_to_file(made.as_fd(), place.path, &entry)?;
        if !metadata.shortfalls().missed().is_empty() {
            return Err(Error::Refused("its metadata cannot be kept".into()));
        }
        rustix::fs::fsync(made).at("sync", place.path)
    }
}

impl<'p> Place<'p> {
    fn open(path: &'p Path) -> Result<Self> {
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::Refused(format!("{} is no file", path.display())));
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { dir: openat(CWD, above, flags, Mode::empty()).at("open", above)?, name, path })
    }

    fn look(&self, name: &OsStr) -> Result<Stat> {
        statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW).at("look at", self.path)
    }

    /// A name that nobody has, from which the file's own can be seen.
    fn aside(&self) -> Result<OsString> {
        let random = getrandom::u64().map_err(std::io::Error::other).at("make a name beside", self.path)?;
        Ok(leftover::name(random, self.name))
    }

    fn unlink(&self, name: &OsStr) -> Result<()> {
        unlinkat(&self.dir, name, AtFlags::empty()).at("remove", self.path)
    }

    /// Makes `aside` a name of the file at `path`, which must be that of `stat`.
    fn link(&self, path: &Path, stat: &Stat, aside: &OsStr) -> Result<()> {
        linkat(CWD, path, &self.dir, aside, AtFlags::empty()).at("link", path)?;
        if !is_same(stat, &self.look(aside)?) {
            self.unlink(aside)?;
            return Err(changed(path));
        }
        Ok(())
    }

    /// Puts what `make` makes in the place of the file.
    fn replace(&self, kept: &Known, other: &Known, make: &dyn Fn(&OsStr) -> Result<()>) -> Result<()> {
        if !is_same(&other.stat, &self.look(self.name)?) {
            return Err(changed(self.path));
        }
        let aside = self.aside()?;
        make(&aside)?;
        let exchange = || renameat_with(&self.dir, &aside, &self.dir, self.name, RenameFlags::EXCHANGE);
        match exchange() {
            Ok(()) => {}
            // Some file systems cannot exchange; what was there a moment ago goes at once.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                if !kept.is_there() || !other.is_unchanged() {
                    self.unlink(&aside)?;
                    return Err(changed(self.path));
                }
                return renameat(&self.dir, &aside, &self.dir, self.name).at("replace", self.path);
            }
            Err(e) => {
                self.unlink(&aside)?;
                return Err(e).at("replace", self.path);
            }
        }
        if !(is_same(&other.stat, &self.look(&aside)?) && other.is_unchanged() && kept.is_there()) {
            exchange().at("put back", self.path)?;
            self.unlink(&aside)?;
            return Err(changed(self.path));
        }
        self.unlink(&aside)
    }

    fn remove(&self, kept: &Known, other: &Known) -> Result<()> {
        if !is_same(&other.stat, &self.look(self.name)?) {
            return Err(changed(self.path));
        }
        let aside = self.aside()?;
        let flags = RenameFlags::NOREPLACE;
        let before = kept.inode_changed();
        renameat_with(&self.dir, self.name, &self.dir, &aside, flags).at("set aside", self.path)?;
        // Setting a file aside changes its inode's time. If that of a file on another file system
        // goes along, it is the same one: overlays and the like show a file in two places.
        let is_alias = kept.stat.st_dev != other.stat.st_dev && kept.inode_changed() != before;
        let is_left = is_same(&other.stat, &self.look(&aside)?) && other.is_unchanged() && kept.is_there();
        if is_alias || !is_left {
            renameat_with(&self.dir, &aside, &self.dir, self.name, flags).at("put back", self.path)?;
            return Err(match is_alias {
                true => Error::Refused(format!("it seems to be {} in another place", kept.path.display())),
                false => changed(self.path),
            });
        }
        self.unlink(&aside)
    }
}
