//! Which blocks of a volume its file system has in use, by what others say: partclone, or a map
//! that partclone or the like has written. All others need not be stored, if the user wants that.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::command::{command, file_system, run};
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
    /// partclone cannot tell. If its file system was not frozen, its journal has to be empty.
    pub fn in_use(&self, device: &Path, len: u64, is_frozen: bool) -> Result<Result<InUse, String>> {
        match self {
            Self::Partclone => partclone(device, len, is_frozen),
            Self::Map(path) => Ok(Ok(InUse { ranges: read_map_file(path, len)?, by: "a map".into() })),
        }
    }
}

fn partclone(device: &Path, len: u64, is_frozen: bool) -> Result<Result<InUse, String>> {
    let Some(kind) = file_system(device) else { return Ok(Err("there is no file system on it".into())) };
    if !is_frozen && let Err(why) = has_empty_journal(&kind, device) {
        return Ok(Err(why));
    }
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

/// What is only in a journal is in use, and partclone does not see it: the file system's own map is
/// older. An error says why that may be so; the file systems' own tools are asked.
fn has_empty_journal(kind: &str, device: &Path) -> Result<(), String> {
    let asks = |program: &str, words: &[&str], is_empty: fn(&str) -> bool| {
        let words = words.iter().map(OsStr::new).chain([device.as_os_str()]);
        match run(program, words) {
            Ok(said) if is_empty(&said) => Ok(()),
            Ok(_) => Err("it was not unmounted, and its journal has what its map of them lacks".to_string()),
            Err(e) => Err(format!("it is not mounted, and whether its journal is empty cannot be told: {e}")),
        }
    };
    match kind {
        "ext2" | "ext3" | "ext4" => asks("dumpe2fs", &["-h"], is_clean_ext),
        "xfs" => asks("xfs_logprint", &["-t"], |said| said.contains("<CLEAN>")),
        "btrfs" => asks("btrfs", &["inspect-internal", "dump-super"], |said| {
            said.lines().any(|line| line.split_whitespace().eq(["log_root", "0"]))
        }),
        "vfat" | "exfat" => Ok(()),
        _ => Err("it is not mounted, and whether its journal is empty cannot be told".into()),
    }
}

fn is_clean_ext(said: &str) -> bool {
    let field = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    field("Filesystem state:") == "clean" && !field("Filesystem features:").contains("needs_recovery")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_that_is_not_known_to_be_empty_is_not_trusted() {
        for (features, state, is_clean) in [
            ("has_journal extent", "clean", true),
            ("has_journal needs_recovery extent", "clean", false),
            ("extent", "not clean", false),
            ("extent", "clean with errors", false),
        ] {
            let said = format!("Filesystem features:      {features}\nFilesystem state:         {state}\n");
            assert_eq!(is_clean_ext(&said), is_clean, "{said}");
        }
        assert!(!is_clean_ext(""));
        assert!(has_empty_journal("nilfs2", Path::new("/dev/null")).is_err());
        assert!(has_empty_journal("ext4", Path::new("/dev/null")).is_err());
    }
}
