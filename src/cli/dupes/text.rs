//! Groups for people, and as fdupes writes them.

use super::Told;
use super::out::Out;
use crate::dupes::stored::{self, EqualDirs, Partly, PartlyFile, Range, Relations};
use crate::dupes::{File, Filters, Group, Name, Options, Report, Root, Sink, Totals};
use crate::error::Result;
use crate::source::path_of;
use crate::text::{escape, format_size};

/// Places of one content among partly equal ones that are shown.
const PLACES_SHOWN: usize = 3;

/// Groups, those that waste most first, then totals unless `quiet`.
pub fn write(report: &Report, told: &Told, quiet: bool, out: &mut Out) -> Result<()> {
    if let Some(relations) = &report.relations {
        relations.dirs.iter().for_each(|group| dirs(group, &report.roots, out));
    }
    let mut text = Text { roots: &report.roots, is_passed_over: false, passed_over: 0, out };
    report.found.tell(&mut text)?;
    let passed_over = text.passed_over;
    if let Some(relations) = &report.relations {
        relations.partly.iter().for_each(|group| partly(group, &report.roots, out));
        relations.ranges.iter().for_each(|found| range(found, &report.roots, out));
    }
    if !quiet {
        totals(report, told.unique, passed_over, out);
        out.line(&told.text);
    }
    Ok(())
}

fn dirs(group: &EqualDirs, roots: &[Root], out: &mut Out) {
    let size = format_size;
    let (count, files) = (group.dirs.len(), group.files);
    let (wasted, bytes) = (size(group.bytes_wasted()), size(group.bytes));
    out.line(&format!("{wasted} wasted: {count} directories of {bytes} in {files} files"));
    group.dirs.iter().for_each(|name| out.line(&format!("  {}", escape(&shown(roots, name)))));
    out.line("");
}

fn partly(group: &Partly, roots: &[Root], out: &mut Out) {
    let size = format_size;
    let (shared, count, bytes) = (size(group.bytes_shared), group.count, size(group.bytes));
    out.line(&format!("{shared} in common: {count} contents with {bytes} of data, partly equal"));
    for PartlyFile { data, shared: common, names, places, .. } in &group.files {
        let share = common * 100 / (*data).max(1);
        for (number, name) in names.iter().take(PLACES_SHOWN).enumerate() {
            let before =
                if number == 0 { format!("{share:>3} % of {:>10}", size(*data)) } else { "=".into() };
            out.line(&format!("  {before:<19} {}", escape(&shown(roots, name))));
        }
        if let Some(more) = places.checked_sub(PLACES_SHOWN as u64).filter(|more| *more > 0) {
            out.line(&format!("  {:<19} and {more} more places", "="));
        }
    }
    if group.count > group.files.len() as u64 {
        out.line(&format!("  and {} more", group.count - group.files.len() as u64));
    }
    out.line("");
}

fn range(range: &Range, roots: &[Root], out: &mut Out) {
    out.line(&format!("{} in common, in one piece", format_size(range.len)));
    for (name, offset) in &range.ends {
        out.line(&format!("  from byte {offset} of {}", escape(&shown(roots, name))));
    }
    out.line("");
}

struct Text<'a> {
    roots: &'a [Root],
    /// Whether the current group is, since it follows from directories that were told.
    is_passed_over: bool,
    passed_over: u64,
    out: &'a mut Out,
}

/// A path as the user would write it, below the directory that was named; in a snapshot with the
/// host or snapshot before it where there are several.
pub fn shown(roots: &[Root], name: &Name) -> Vec<u8> {
    let Some(root) = roots.get(name.root as usize) else { return name.path.clone() };
    match root.origin {
        None => root.shown.join(path_of(&name.path)).into_os_string().into_encoded_bytes(),
        Some(_) => [root.shown.as_os_str().as_encoded_bytes(), &name.path].concat(),
    }
}

impl Sink for Text<'_> {
    fn group(&mut self, group: &Group) -> Result<()> {
        self.is_passed_over = group.implied;
        if group.implied {
            self.passed_over += 1;
            return Ok(());
        }
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
        if self.is_passed_over {
            return Ok(());
        }
        for (number, name) in file.names.iter().enumerate() {
            let link = if number == 0 { "" } else { "= " };
            self.out.line(&format!("  {link}{}", escape(&shown(self.roots, name))));
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        if !self.is_passed_over {
            self.out.line("");
        }
        Ok(())
    }

    fn unique(&mut self, file: &File) -> Result<()> {
        for name in &file.names {
            self.out.line(&escape(&shown(self.roots, name)));
        }
        Ok(())
    }
}

fn totals(Report { totals, relations, roots, .. }: &Report, unique: bool, passed_over: u64, out: &mut Out) {
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
    if let Some(relations) = relations {
        stored_totals(totals, relations, roots.len(), passed_over, out);
        return;
    }
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

fn stored_totals(totals: &Totals, relations: &Relations, places: usize, passed_over: u64, out: &mut Out) {
    let Relations { dirs, partly, ranges } = relations;
    out.line(&format!("snapshots  {places} were looked into in {:.2} s; no source was read", totals.seconds));
    out.line(&format!(
        "also       {} groups of equal directories, from which {passed_over} groups of files follow; {} of partly \
         equal files, {} long ranges",
        dirs.len(),
        partly.len(),
        ranges.len()
    ));
}

/// What counted as what: without it totals mean nothing.
pub fn live_policy(options: &Options) -> String {
    let yes = |is: bool, yes: &str| if is { format!(", {yes}") } else { String::new() };
    format!(
        "policy     {}{}{}{}; hard links are one file, shared bytes no waste, symlinks not followed; equal \
         means byte for byte",
        counted(&options.filters),
        yes(options.one_file_system, "on one file system"),
        yes(options.isolate, "groups below more than one directory"),
        yes(!options.references.is_empty(), "groups with a file among the references"),
    )
}

/// The same for snapshots.
pub fn stored_policy(options: &stored::Options) -> String {
    let share = match options.share_min {
        Some(share) => format!("partly equal from {share} % of the shorter"),
        None => "partly equal ones not looked for".into(),
    };
    format!(
        "policy     {}; hard links are one file, a path of one host counts once; wasted is what the sources take, \
         the repository keeps one; directories are equal by names and content; {share}",
        counted(&options.filters),
    )
}

fn counted(filters: &Filters) -> String {
    let max = match filters.max_size {
        u64::MAX => String::new(),
        max => format!(" to {}", format_size(max)),
    };
    format!(
        "files from {}{max}, empty files {}{}",
        format_size(filters.min_size),
        if filters.empty { "counted" } else { "left out" },
        if filters.hidden { "" } else { ", hidden ones left out" },
    )
}

/// A path a line, an empty line behind each group as fdupes has it; paths as they are, whatever bytes they have.
pub fn fdupes(report: &Report, out: &mut Out) -> Result<()> {
    report.found.tell(&mut Fdupes { roots: &report.roots, out })
}

struct Fdupes<'a> {
    roots: &'a [Root],
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
        Ok(())
    }

    /// Only the first name: to those who remove all but one line of a group, further names of
    /// one file look like copies.
    fn file(&mut self, file: &File) -> Result<()> {
        file.names.iter().take(1).for_each(|name| self.path(name));
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.out.bytes(b"\n");
        Ok(())
    }

    fn unique(&mut self, file: &File) -> Result<()> {
        file.names.iter().take(1).for_each(|name| self.path(name));
        Ok(())
    }
}
