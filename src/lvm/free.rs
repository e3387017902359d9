//! Which blocks of a volume its file system has in use, by what others say: partclone, or a map
//! that partclone or the like has written. All others need not be stored, if the user wants that.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::command::{command, file_system};
use crate::error::{Error, IoContext, Result};
use crate::source::change_list::{read_map, read_map_file};
use crate::source::changes::Changes;

/// The word for it in place of a map.
const PARTCLONE: &str = "partclone";

/// Who says which blocks are free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FreeBlocks {
    /// partclone's program for the file system.
    Partclone,
    /// A ddrescue mapfile: what is not `+` is free.
    Map(PathBuf),
}

/// What is in use.
#[derive(Debug, Clone)]
pub struct InUse {
    /// These ranges, as if they were what has changed.
    pub ranges: Changes,
    /// Who says so.
    pub by: String,
}

impl FreeBlocks {
    /// As the user writes it.
    pub fn parse(word: &OsStr) -> Self {
        if word == PARTCLONE { Self::Partclone } else { Self::Map(word.into()) }
    }

    /// What of a volume of `len` bytes, on a device that nobody writes to, is in use; or why
    /// partclone cannot tell.
    pub fn in_use(&self, device: &Path, len: u64) -> Result<Result<InUse, String>> {
        match self {
            Self::Partclone => partclone(device, len),
            Self::Map(path) => Ok(Ok(InUse { ranges: read_map_file(path, len)?, by: "a map".into() })),
        }
    }
}

fn partclone(device: &Path, len: u64) -> Result<Result<InUse, String>> {
    let Some(kind) = file_system(device) else { return Ok(Err("there is no file system on it".into())) };
    let program = format!("{PARTCLONE}.{kind}");
    let words =
        ["--domain", "--quiet", "--logfile", "/dev/null", "--output", "-", "--source"].map(OsStr::new);
    let started = command(&program, words.into_iter().chain([device.as_os_str()]))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(e) => return Ok(Err(format!("{program} cannot be run: {e}"))),
    };
    let printed = child.stdout.take().ok_or(Error::Internal("a pipe was not made"))?;
    let ranges = read_map(printed, len);
    let status = child.wait().at("run", Path::new(&program))?;
    Ok(match ranges {
        _ if !status.success() => Err(format!("{program} cannot read its file system")),
        Ok(ranges) => Ok(InUse { ranges, by: program }),
        Err(why) => Err(format!("{program}: {why}")),
    })
}
