//! The files of a group in a report, of which there may be more than fit in memory.
//!
//! ```text
//! record   u64 number · the file as in the report, its names in the order that is acted on
//! ```

use std::cmp::{Ordering, Reverse};

use super::leftover::is_leftover;
use super::{FileRow, Keep};
use crate::dupes::sorter::{Sorted, Sorter, Temporary};
use crate::error::{Error, Result};
use crate::text::unescape;

const NUMBER_LEN: usize = 8;

/// A group in a report.
pub struct Planned {
    /// The length of each file.
    pub bytes: u64,
    /// The file that is kept; none if the group has no files.
    pub kept: Option<FileRow>,
    /// Its number.
    number: u64,
    files: Sorted,
}

/// Takes the files of a group.
pub struct Rows {
    keep: Keep,
    kept: Option<(u64, FileRow)>,
    count: u64,
    sorter: Sorter,
}

impl Rows {
    /// None yet.
    pub fn new(keep: Keep, temporary: &Temporary) -> Self {
        Self { keep, kept: None, count: 0, sorter: Sorter::of_class(temporary) }
    }

    /// Adds a file.
    pub fn push(&mut self, row: FileRow) -> Result<()> {
        let row = leftovers_last(row);
        let mut record = self.count.to_be_bytes().to_vec();
        serde_json::to_writer(&mut record, &row).map_err(|_| Error::Internal("a row cannot be written"))?;
        self.sorter.push(&record)?;
        if self.kept.as_ref().is_none_or(|(_, kept)| order(self.keep, &row, kept).is_lt()) {
            self.kept = Some((self.count, row));
        }
        self.count += 1;
        Ok(())
    }

    /// The group of files with so many bytes.
    pub fn finish(self, bytes: u64) -> Result<Planned> {
        let (number, kept) = self.kept.unzip();
        Ok(Planned { bytes, kept, number: number.unwrap_or_default(), files: self.sorter.finish()? })
    }
}

impl Planned {
    /// Calls `each` with all files but that which is kept.
    pub fn for_each_other(&self, mut each: impl FnMut(FileRow) -> Result<()>) -> Result<()> {
        let wrong = Error::Internal("a row cannot be read back");
        let mut records = self.files.records()?;
        while let Some(record) = records.next()? {
            let Some((number, row)) = record.split_first_chunk::<NUMBER_LEN>() else { return Err(wrong) };
            if u64::from_be_bytes(*number) != self.number {
                let Ok(row) = serde_json::from_slice(row) else { return Err(wrong) };
                each(row)?;
            }
        }
        Ok(())
    }
}

/// A name that a killed run left stands for a file only if it has no other.
fn leftovers_last(row: FileRow) -> FileRow {
    let FileRow { path, links, .. } = row;
    let mut names = [vec![path], links].concat();
    names.sort_by_key(|name| is_leftover(name.as_bytes()));
    let mut names = names.into_iter();
    FileRow { path: names.next().unwrap_or_default(), links: names.collect(), ..row }
}

/// That which is kept comes first.
fn order(keep: Keep, a: &FileRow, b: &FileRow) -> Ordering {
    let class = |row: &FileRow| (!row.reference, is_leftover(row.path.as_bytes()));
    // A file whose time no calendar has is kept last of all.
    let no_time = |row: &FileRow| row.modified.is_none();
    let len = |row: &FileRow| unescape(&row.path).map_or(usize::MAX, |path| path.len());
    let by_rule = match keep {
        Keep::Oldest => (no_time(a), a.modified).cmp(&(no_time(b), b.modified)),
        Keep::Newest => (no_time(a), Reverse(a.modified)).cmp(&(no_time(b), Reverse(b.modified))),
        Keep::FirstRoot => a.root.cmp(&b.root),
        Keep::ShortestPath => len(a).cmp(&len(b)),
    };
    class(a).cmp(&class(b)).then(by_rule).then_with(|| a.path.cmp(&b.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: u64) -> FileRow {
        FileRow {
            path: format!("/{}", "x".repeat(200 - number as usize)),
            links: Vec::new(),
            root: 0,
            reference: false,
            device: Some(1),
            inode: Some(number),
            modified: None,
            copy: number,
        }
    }

    #[test]
    fn a_group_that_does_not_fit_is_handed_out_in_order_without_the_one_that_is_kept() {
        for memory_max in [1, 48 << 20] {
            let temporary = Temporary::with_memory(std::env::temp_dir(), memory_max);
            let mut rows = Rows::new(Keep::ShortestPath, &temporary);
            (0..100).for_each(|number| rows.push(row(number)).unwrap());
            let group = rows.finish(7).unwrap();
            assert_eq!((group.bytes, group.kept.as_ref()), (7, Some(&row(99))));
            let mut others = Vec::new();
            let take = |other| {
                others.push(other);
                Ok(())
            };
            group.for_each_other(take).unwrap();
            assert_eq!(others, (0..99).map(row).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_a_killed_run_left_is_kept_only_if_there_is_nothing_else() {
        const LEFT: &str = "/.varv-dupes-0123456789abcdef-b";
        let file = |path: &str, links: &[&str]| FileRow {
            path: path.into(),
            links: links.iter().map(|link| (*link).into()).collect(),
            ..row(0)
        };
        let kept = |files: &[FileRow]| {
            let temporary = Temporary::new(std::env::temp_dir());
            let mut rows = Rows::new(Keep::ShortestPath, &temporary);
            files.iter().for_each(|file| rows.push(file.clone()).unwrap());
            rows.finish(1).unwrap().kept.unwrap()
        };
        let long = file(&format!("/{}", "long".repeat(20)), &[]);
        assert_eq!(kept(&[file(LEFT, &[]), long.clone()]), long);
        assert_eq!(kept(&[file(LEFT, &["/a"]), long]), file("/a", &[LEFT]));
        assert_eq!(kept(&[file(LEFT, &[])]), file(LEFT, &[]));
    }
}
