//! Running LVM's programs.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Error, IoContext, Result};

/// A program of the system with these words: messages in English, no input, and in a process
/// group of its own, so that a key that stops us does not stop it halfway.
pub(super) fn command(program: &str, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let in_sbin = Path::new("/usr/sbin").join(program);
    let program = if in_sbin.exists() { in_sbin } else { program.into() };
    let mut command = Command::new(program);
    command.args(words).env("LC_ALL", "C").stdin(Stdio::null()).process_group(0);
    command
}

/// Runs it; what it printed. An error has the last lines that it complained with.
pub(super) fn run(program: &str, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<String> {
    let output = command(program, words).output().at("run", program)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines = complaints.lines().map(str::trim).filter(|line| {
        // What LVM says of thin pools each time is no reason.
        !line.is_empty() && !line.starts_with("WARNING:") && !line.starts_with("File descriptor")
    });
    let why = lines.collect::<Vec<_>>().join("; ");
    let why = if why.is_empty() { output.status.to_string() } else { why };
    Err(Error::Program { program: program.into(), why })
}

/// What kind of file system, or swap, is on a device, as blkid names it.
pub fn file_system(device: &Path) -> Option<String> {
    let words = [OsStr::new("-p"), "-o".as_ref(), "value".as_ref(), "-s".as_ref(), "TYPE".as_ref()];
    let printed = run("blkid", words.into_iter().chain([device.as_os_str()])).ok()?;
    Some(printed.trim().to_string()).filter(|name| !name.is_empty())
}
