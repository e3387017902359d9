//! How a new thing gets its name: directly if the name is free, else beside what is there, which
//! it replaces in one step when it is complete.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, renameat, unlinkat};
use rustix::io::Errno;

use super::Existing;
use super::tree::{Kind, TargetDir, checked};
use crate::error::{Error, IoContext, Result};

const PREFIX: &str = ".varv-tmp-";

/// How many temporary names are tried; more than one is taken only after a crash.
const NAMES_MAX: u32 = 1000;

/// Whether a name is one of those that an interrupted restore may leave behind.
pub fn is_temporary_name(name: &[u8]) -> bool {
    name.starts_with(PREFIX.as_bytes())
}

/// Where something new was made.
#[derive(Debug)]
pub(super) struct Place {
    /// The name it is to have in the end.
    name: OsString,
    /// The name it has until then, if that one was taken.
    temporary: Option<OsString>,
}

impl Place {
    /// Makes something by `make`, which is given a name and must fail if that is taken.
    pub(super) fn make<T>(
        dir: &TargetDir,
        name: &[u8],
        existing: Existing,
        mut make: impl FnMut(&OsStr) -> rustix::io::Result<T>,
    ) -> Result<(T, Self)> {
        let name = checked(name)?;
        match make(name) {
            Ok(made) => return Ok((made, Self { name: name.to_owned(), temporary: None })),
            Err(Errno::EXIST) => refuse(dir, name, existing)?,
            Err(e) => return Err(e).at("make", dir.path().join(name)),
        }
        for _ in 0..NAMES_MAX {
            let temporary = temporary_name();
            match make(&temporary) {
                Ok(made) => return Ok((made, Self { name: name.to_owned(), temporary: Some(temporary) })),
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e).at("make", dir.path().join(temporary)),
            }
        }
        Err(Errno::EXIST).at("make", dir.path().join(name))
    }

    /// The name it has now.
    pub(super) fn current(&self) -> &OsStr {
        self.temporary.as_deref().unwrap_or(&self.name)
    }

    /// Gives it its name.
    pub(super) fn publish(mut self, dir: &TargetDir) -> Result<()> {
        let Some(temporary) = self.temporary.take() else { return Ok(()) };
        let renamed = renameat(dir, &temporary, dir, &self.name);
        // Needed even after success: renaming one hard link over another of the same file does
        // nothing.
        remove_quietly(dir, &temporary);
        renamed.at("replace", dir.path().join(&self.name))
    }

    /// Removes it again, whatever its name.
    pub(super) fn discard(&self, dir: &TargetDir) {
        remove_quietly(dir, self.current());
    }

    /// Removes it again, unless it has its name already: what is there of it may be worth having.
    pub(super) fn abandon(&self, dir: &TargetDir) {
        if let Some(temporary) = &self.temporary {
            remove_quietly(dir, temporary);
        }
    }
}

fn remove_quietly(dir: &TargetDir, name: &OsStr) {
    // Most often it is gone already; if something failed before, that is what is reported.
    let _ = unlinkat(dir, name, AtFlags::empty());
}

fn refuse(dir: &TargetDir, name: &OsStr, existing: Existing) -> Result<()> {
    let path = dir.path().join(name);
    if existing == Existing::Refuse {
        return Err(Error::Refused(format!(
            "{} exists already; --overwrite always or --in-place would replace it",
            path.display()
        )));
    }
    if dir.kind_of(name.as_bytes())? == Some(Kind::Dir) {
        return Err(Error::Refused(format!(
            "{} is a directory; remove it first, or name another target",
            path.display()
        )));
    }
    Ok(())
}

fn temporary_name() -> OsString {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{count}", std::process::id()).into()
}
