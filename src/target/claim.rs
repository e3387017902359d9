//! Claiming a device: nobody else may use it, and what is on it is told to who would overwrite it.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, SeekFrom, fstat, open, seek};
use rustix::io::Errno;

use super::in_use::{Kernel, Number};
use crate::error::{Error, IoContext, Result};
use crate::text::format_size;

/// How often, and how far apart, a mapped device's open count is looked at: whoever looks at new
/// devices (udev, blkid) opens them for a moment.
const OPEN_COUNT_TRIES: u32 = 5;
const OPEN_COUNT_WAIT: Duration = Duration::from_millis(200);

/// Opens the device so that no mount, swap, mapping or other claim can come in between, after
/// which it is looked at who uses it without a claim.
pub fn claim(path: &Path) -> Result<OwnedFd> {
    let meta = fs::metadata(path).at("look at", path)?;
    if !meta.file_type().is_block_device() {
        return Err(Error::Refused(format!("{} is no block device; check the name", path.display())));
    }
    let flags = OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = match open(path, flags, Mode::empty()) {
        Err(Errno::BUSY) => {
            let user = Kernel::read().user_of(Number::from_raw(meta.rdev()));
            return Err(in_use(path, user.unwrap_or("another program holds it".to_string())));
        }
        other => other.at("open for writing", path)?,
    };
    let stat = fstat(&fd).at("look at", path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
        return Err(Error::Refused(format!("{} was exchanged meanwhile; check it", path.display())));
    }
    match unclaimed_user(Number::from_raw(stat.st_rdev)) {
        Some(user) => Err(in_use(path, user)),
        None => Ok(fd),
    }
}

fn unclaimed_user(number: Number) -> Option<String> {
    let kernel = Kernel::read();
    kernel.user_of(number).or_else(|| {
        (kernel.is_mapped(number) && opened_by_others(number))
            .then(|| "another program, such as a virtual machine, has it open".to_string())
    })
}

/// Whether a mapped device is open more often than by us. Only dmsetup can tell; without it, the
/// claim and the other signs must do.
fn opened_by_others(number: Number) -> bool {
    (0..OPEN_COUNT_TRIES).all(|again| {
        if again > 0 {
            sleep(OPEN_COUNT_WAIT);
        }
        open_count(number).is_some_and(|count| count > 1)
    })
}

fn open_count(number: Number) -> Option<u64> {
    let (major, minor) = (number.major.to_string(), number.minor.to_string());
    let args = ["info", "-c", "--noheadings", "-o", "open", "-j", &major, "-m", &minor];
    let output = run_tool("dmsetup", &args.map(AsRef::as_ref))?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

fn in_use(path: &Path, user: String) -> Error {
    Error::Refused(format!("{} is in use: {user}; release it first, or name another device", path.display()))
}

/// A device's size and what is seen on it, for the one who is about to overwrite it.
pub fn describe(path: &Path) -> Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = open(path, flags, Mode::empty()).at("open", path)?;
    let len = seek(&fd, SeekFrom::End(0)).at("measure", path)?;
    Ok(format!("{} has {} ({len} bytes); {}", path.display(), format_size(len), content_seen(path)))
}

fn content_seen(path: &Path) -> String {
    match run_tool("blkid", &["-p".as_ref(), path.as_os_str()]) {
        None => "blkid is not installed, so what is on it is not known".to_string(),
        Some(output) => match String::from_utf8_lossy(&output.stdout).trim().rsplit_once(": ") {
            Some((_, seen)) => format!("blkid sees on it: {seen}"),
            None => "blkid sees nothing on it".to_string(),
        },
    }
}

/// Runs a program that may not be installed, and need not be on an ordinary user's PATH; `None` if
/// it is not there.
pub fn run_tool(program: &str, args: &[&std::ffi::OsStr]) -> Option<Output> {
    ["", "/usr/sbin/", "/sbin/"]
        .iter()
        .find_map(|dir| Command::new(format!("{dir}{program}")).args(args).stdin(Stdio::null()).output().ok())
}
