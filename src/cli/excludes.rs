//! What of a source is left out.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::global::Global;
use crate::error::Result;
use crate::source::exclude::ExcludeOptions;
use crate::text::parse_size;

/// Options of commands that look at sources.
#[derive(Debug, Args)]
pub struct ExcludeArgs {
    /// Leave out what this pattern matches, as in gitignore; may be given more than once
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<OsString>,
    /// Read patterns from a file, one a line
    #[arg(long, value_name = "F")]
    exclude_from: Vec<PathBuf>,
    /// Leave out the paths in a file, each ended by a zero byte as find -print0 writes them: no
    /// patterns, and from the current directory on if they do not begin with a slash
    #[arg(long, value_name = "F")]
    exclude_from0: Vec<PathBuf>,
    /// Leave out what is in directories that have an entry of this name
    #[arg(long, value_name = "NAME")]
    exclude_if_present: Vec<OsString>,
    /// Leave out what is in directories that are marked as caches (CACHEDIR.TAG)
    #[arg(long)]
    exclude_caches: bool,
    /// Leave out files that are larger
    #[arg(long, value_name = "SIZE", value_parser = size)]
    exclude_larger_than: Option<u64>,
    /// Do not enter other file systems
    #[arg(long)]
    one_file_system: bool,
}

impl ExcludeArgs {
    /// What `source` understands; the repository and its cache never count.
    pub fn options(self, global: &Global) -> Result<ExcludeOptions> {
        let mut never = vec![global.repository()?.to_path_buf()];
        never.extend(global.cache_dir());
        Ok(ExcludeOptions {
            patterns: self.exclude,
            pattern_files: self.exclude_from,
            path_files: self.exclude_from0,
            if_present: self.exclude_if_present,
            caches: self.exclude_caches,
            larger_than: self.exclude_larger_than,
            one_file_system: self.one_file_system,
            never,
        })
    }
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text, 1)
}
