//! Groups for people, and as fdupes writes them.

use super::out::Out;
use crate::dupes::{File, Group, Name, Options, Report, Root, Sink, Totals};
use crate::error::Result;
use crate::source::path_of;
use crate::text::{escape, format_size};

/// Groups, those that waste most first, then totals unless `quiet`.
pub fn write(report: &Report, options: &Options, quiet: bool, out: &mut Out) -> Result<()> {
    report.found.tell(&mut Text { roots: &report.roots, out })?;
    if !quiet {
        totals(&report.totals, options.unique, out);
        out.line(&policy(options));
    }
    Ok(())
}

struct Text<'a> {
    roots: &'a [Root],
    out: &'a mut Out,
}

/// A path as the user would write it, below the directory that was named.
fn shown(roots: &[Root], name: &Name) -> Vec<u8> {
    let path = roots.get(name.root as usize).map(|root| root.shown.join(path_of(&name.path)));
    path.unwrap_or_default().into_os_string().into_encoded_bytes()
}

impl Sink for Text<'_> {
    fn group(&mut self, group: &Group) -> Result<()> {
        let size = format_size;
        let shared = match group.files - group.copies {
            0 => String::new(),
            shared => format!(", {shared} of them share their bytes with another"),
        };
        let line =
            format!("{} wasted: {} files of {}{shared}", size(group.wasted), group.files, size(group.len));
        self.out.line(&line);
        Ok(())
    }

    fn file(&mut self, file: &File) -> Result<()> {
        for (number, name) in file.names.iter().enumerate() {
            let link = if number == 0 { "" } else { "= " };
            self.out.line(&format!("  {link}{}", escape(&shown(self.roots, name))));
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.out.line("");
        Ok(())
    }

    fn unique(&mut self, file: &File) -> Result<()> {
        for name in &file.names {
            self.out.line(&escape(&shown(self.roots, name)));
        }
        Ok(())
    }
}

fn totals(totals: &Totals, unique: bool, out: &mut Out) {
    let size = format_size;
    out.line(&format!(
        "wasted     {} in {} files of {} groups",
        size(totals.wasted),
        totals.redundant,
        totals.groups
    ));
    if unique {
        out.line(&format!("unique     {} files", totals.unique));
    }
    out.line(&format!(
        "looked at  {} files with {} in {} directories, {} of the names hard links",
        totals.files,
        size(totals.bytes),
        totals.dirs,
        totals.hard_links
    ));
    out.line(&format!(
        "lengths    {} files have one that others have; at most {} share one",
        totals.collisions, totals.longest_set
    ));
    out.line(&format!("read       {} in {:.2} s", size(totals.bytes_read), totals.seconds));
    if totals.problems > 0 {
        out.line(&format!(
            "left out   {} paths that could not be read or changed meanwhile",
            totals.problems
        ));
    }
}

/// What counted as what: without it totals mean nothing.
pub fn policy(options: &Options) -> String {
    let size = match (options.min_size, options.max_size) {
        (min, u64::MAX) => format!("files from {}", format_size(min)),
        (min, max) => format!("files from {} to {}", format_size(min), format_size(max)),
    };
    let yes = |is: bool, yes: &str| if is { format!(", {yes}") } else { String::new() };
    format!(
        "policy     {size}, empty files {}{}{}{}{}; hard links are one file, shared bytes no waste, symlinks \
         not followed; equal means byte for byte",
        if options.empty { "counted" } else { "left out" },
        yes(!options.hidden, "hidden ones left out"),
        yes(options.one_file_system, "on one file system"),
        yes(options.isolate, "groups below more than one directory"),
        yes(!options.references.is_empty(), "groups with a file among the references"),
    )
}

/// A path a line, an empty line between groups; paths as they are, whatever bytes they have.
pub fn fdupes(report: &Report, out: &mut Out) -> Result<()> {
    report.found.tell(&mut Fdupes { roots: &report.roots, is_first: true, out })
}

struct Fdupes<'a> {
    roots: &'a [Root],
    is_first: bool,
    out: &'a mut Out,
}

impl Fdupes<'_> {
    fn path(&mut self, name: &Name) {
        self.out.bytes(&shown(self.roots, name));
        self.out.bytes(b"\n");
    }
}

impl Sink for Fdupes<'_> {
    fn group(&mut self, _: &Group) -> Result<()> {
        if !std::mem::replace(&mut self.is_first, false) {
            self.out.bytes(b"\n");
        }
        Ok(())
    }

    /// Only the first name: to those who remove all but one line of a group, further names of
    /// one file look like copies.
    fn file(&mut self, file: &File) -> Result<()> {
        file.names.iter().take(1).for_each(|name| self.path(name));
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        Ok(())
    }

    fn unique(&mut self, file: &File) -> Result<()> {
        file.names.iter().take(1).for_each(|name| self.path(name));
        Ok(())
    }
}
