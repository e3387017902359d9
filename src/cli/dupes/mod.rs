//! `varv dupes`.

mod against;
mod apply;
mod csv;
mod html;
mod json;
mod live;
mod out;
mod stored;
mod text;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Outcome;
use super::global::Global;
use crate::error::{Error, Result};
use crate::text::parse_size;

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Groups for people, those that waste most first, and totals
    Text,
    /// A path a line, an empty line behind each group
    Fdupes,
    /// One JSON value, which --apply takes
    Json,
    /// A line a name
    Csv,
    /// A page for a browser, in one file
    Html,
}

/// Find files with equal content.
///
/// Hard links to one file are one file, and files that share their bytes on the disk waste
/// nothing. Symlinks are not followed. Nothing is changed but by --apply.
#[derive(Debug, Args)]
pub struct Dupes {
    /// Directories to look into; with --from-repository, paths in snapshots
    #[arg(value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// Look at what the repository has of the DIRs, or at all of it; no source is read
    #[arg(long, conflicts_with_all = ["reference", "one_file_system"])]
    from_repository: bool,
    /// Tell which files below the DIRs the repository has, by content, and which it does not
    #[arg(long, conflicts_with_all = ["from_repository", "reference", "isolate", "unique"])]
    against_repository: bool,
    #[command(flatten)]
    snapshots: stored::Snapshots,
    #[command(flatten)]
    apply: apply::Apply,
    /// How the report is written
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    #[command(flatten)]
    filters: FileFilters,
    /// Tell only groups with files below more than one DIR
    #[arg(long)]
    isolate: bool,
    /// Tell the files that have no equal instead
    #[arg(long, conflicts_with_all = ["isolate", "reference"])]
    unique: bool,
    /// A directory whose files are kept: only groups with files there and elsewhere are told
    #[arg(long, value_name = "DIR")]
    reference: Vec<PathBuf>,
}

/// What a report says of itself.
struct Told {
    /// What counted as what, in words.
    text: String,
    /// The same as JSON.
    policy: json::Policy,
    /// Whether files without an equal were asked for.
    unique: bool,
}

/// Which files count.
#[derive(Debug, Args)]
pub struct FileFilters {
    /// Only files of at least so many bytes
    #[arg(long, value_name = "SIZE", default_value = "1", value_parser = size)]
    min_size: u64,
    /// Only files of at most so many bytes
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_size: Option<u64>,
    /// Only files that match, or lie in directories that do; as in gitignore
    #[arg(long, value_name = "PATTERN")]
    include: Vec<OsString>,
    /// Leave out what matches, as in gitignore
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<OsString>,
    /// Leave out names that begin with a dot
    #[arg(long)]
    no_hidden: bool,
    /// Count empty files too
    #[arg(long)]
    empty: bool,
    /// Stay on the file systems of the DIRs
    #[arg(short = 'x', long)]
    one_file_system: bool,
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text, 1)
}

impl Dupes {
    /// Finds, or does what was planned.
    pub fn run(self, global: &Global) -> Outcome {
        if self.apply.is_given() {
            return self.apply.run(global);
        }
        if self.from_repository {
            return stored::run(self, global);
        }
        if let Some(option) = self.snapshots.given().filter(|_| !self.against_repository) {
            return Err(Error::Refused(format!("{option} needs --from-repository or --against-repository")));
        }
        if self.dirs.is_empty() {
            return Err(Error::Refused("no directory is named".into()));
        }
        if self.against_repository {
            return against::run(self, global);
        }
        live::run(self, global)
    }

    fn format(&self, global: &Global) -> Format {
        if global.json { Format::Json } else { self.format }
    }
}
