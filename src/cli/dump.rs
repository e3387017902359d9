//! `varv dump`.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use clap::Args;

use super::Outcome;
use super::error::Exit;
use super::global::Global;
use super::select::{SnapshotChoice, tell_apart};
use super::signals::STOP;
use crate::error::Error;
use crate::history::resolve::resolve;
use crate::repo::Intent;
use crate::restore;

/// Print the bytes of a file, volume or stream; of a directory, a pax archive.
#[derive(Debug, Args)]
pub struct Dump {
    /// The path in the snapshot, a stream's name or a volume
    #[arg(value_name = "PATH")]
    path: OsString,
    #[command(flatten)]
    choice: SnapshotChoice,
}

impl Dump {
    /// Prints them.
    pub fn run(self, global: &Global) -> Outcome {
        if io::stdout().is_terminal() {
            return Err(Error::Refused(
                "bytes are not printed on a terminal: redirect them to a file or a command".into(),
            ));
        }
        let repo = global.open(Intent::Read)?;
        let observer = global.observer();
        let catalog = repo.catalog(&observer, &STOP)?;
        let resolved = resolve(&repo, &catalog, &self.choice.selection(), Some(self.path.as_bytes()))?;
        for notice in &resolved.notices {
            global.notice(notice);
        }
        tell_apart(&catalog, &resolved, global)?;
        let entry = resolved.entry.ok_or(Error::Internal("a path without an entry"))?;
        let path = Path::new(&self.path);
        restore::dump(&repo, &catalog, &entry, path, &mut io::stdout().lock(), &observer, &STOP)?;
        catalog.close(&observer)?;
        Ok(Exit::Done)
    }
}
