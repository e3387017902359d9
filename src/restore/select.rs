//! Which part of a tree is restored.

use super::RestoreOptions;
use crate::error::Result;
use crate::source::exclude::Patterns;
use crate::source::path_of;

/// `--include` and `--exclude`.
#[derive(Default)]
pub struct Filter {
    include: Option<Patterns>,
    exclude: Option<Patterns>,
}

impl Filter {
    /// From the options. Patterns may begin with the path of what is restored.
    pub fn new(options: &RestoreOptions, path: &[u8]) -> Result<Self> {
        let patterns = |lines: &[std::ffi::OsString]| match lines.is_empty() {
            true => Ok(None),
            false => Patterns::new(lines, path_of(path)).map(Some),
        };
        Ok(Self { include: patterns(&options.include)?, exclude: patterns(&options.exclude)? })
    }

    /// The patterns that matched nothing that was asked for.
    pub fn unused(&self) -> Vec<String> {
        self.include.iter().chain(&self.exclude).flat_map(Patterns::unused).collect()
    }

    /// Whether nothing is left out.
    pub fn takes_all(&self) -> bool {
        self.include.is_none() && self.exclude.is_none()
    }

    /// Whether the entry, and all below it, stays away.
    pub fn excludes(&self, path: &[u8], is_dir: bool) -> bool {
        self.exclude.as_ref().is_some_and(|patterns| patterns.matches(path, is_dir))
    }

    /// Whether the entry is wanted: it, or a directory that it is in, matches.
    pub fn includes(&self, path: &[u8], is_dir: bool) -> bool {
        let Some(patterns) = &self.include else { return true };
        let folders = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at]);
        patterns.matches(path, is_dir) || folders.into_iter().any(|folder| patterns.matches(folder, true))
    }
}
