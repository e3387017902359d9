//! `varv compare`.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::Outcome;
use super::differences::{Differences, SideRow};
use super::error::Exit;
use super::excludes::ExcludeArgs;
use super::global::Global;
use super::select::SnapshotChoice;
use super::signals::STOP;
use crate::backup::absolute;
use crate::error::Error;
use crate::history::resolve::{resolve, roots};
use crate::repo::Intent;
use crate::restore::compare::{Live, Method, compare};
use crate::source::walk::raise_file_limit;
use crate::text::{escape, format_size};

/// How thoroughly to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MethodArg {
    /// Kind, size, mode, owner, time of modification and attributes
    Meta,
    /// Also the bytes of the source with the ids of chunks
    Hash,
    /// Also the bytes of the source with those in the repository
    Full,
}

/// Compare a directory, file or block device with a snapshot of it.
///
/// Lists what the source has and the snapshot has not (new), what the snapshot alone has (deleted) and
/// what differs (changed). Ends with exit code 5 if something does.
#[derive(Debug, Args)]
pub struct Compare {
    /// The directory, file or block device
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    /// What to compare
    #[arg(long, value_enum, value_name = "HOW", default_value = "meta")]
    method: MethodArg,
    #[command(flatten)]
    choice: SnapshotChoice,
    #[command(flatten)]
    excludes: ExcludeArgs,
}

/// What `compare --json` says before the changes.
#[derive(Serialize)]
struct Head {
    path: String,
    method: &'static str,
    #[serde(flatten)]
    snapshot: SideRow,
}

impl Compare {
    /// Compares.
    pub fn run(self, global: &Global) -> Outcome {
        raise_file_limit();
        let source = absolute(&self.source)?;
        let repo = global.open(Intent::Read)?;
        let observer = global.observer();
        let catalog = repo.catalog(&observer, &STOP)?;
        let path = source.as_os_str().as_bytes();
        let resolved = resolve(&repo, &catalog, &self.choice.selection(), Some(path))?;
        for notice in &resolved.notices {
            global.notice(notice);
        }
        let entry = resolved.entry.ok_or(Error::Internal("a path without an entry"))?;
        let follow = roots(&resolved.listed.snapshot).any(|root| root == path);
        let (method, word) = self.method.named();
        let excludes = self.excludes.options(global)?;
        let live = Live { entry: &entry, path, source: &source, follow, excludes: &excludes };
        let head = Head { path: escape(path), method: word, snapshot: SideRow::new(&resolved.listed) };
        let mut differences = Differences::begin(global, &head);
        let compared = compare(&repo, &catalog, &live, method, &observer, &STOP, &mut |path, change| {
            differences.row(path, &change);
            Ok(())
        })?;
        observer.finish();
        catalog.close(&observer)?;
        let summary = differences.end_with(&compared);
        if !global.quiet && !global.json && method != Method::Metadata {
            let text = format!("{} in {} files read", format_size(compared.bytes), compared.files);
            super::output::line(&text);
        }
        Ok(match summary.exit() {
            _ if compared.damage => Exit::Damage,
            _ if compared.errors > 0 => Exit::Incomplete,
            exit => exit,
        })
    }
}

impl MethodArg {
    fn named(self) -> (Method, &'static str) {
        match self {
            MethodArg::Meta => (Method::Metadata, "meta"),
            MethodArg::Hash => (Method::Hash, "hash"),
            MethodArg::Full => (Method::Full, "full"),
        }
    }
}
