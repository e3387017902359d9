//! Live trees: from arguments to a report.

use std::path::PathBuf;

use super::out::Out;
use super::{Dupes, FileFilters, Format, Told, csv, html, json, text};
use crate::cli::Outcome;
use crate::cli::error::Exit;
use crate::cli::global::Global;
use crate::cli::signals::STOP;
use crate::dupes::{self, Filters, Options, Report, Temporary};
use crate::source::walk::raise_file_limit;

impl FileFilters {
    /// The options of a search below `roots`.
    pub fn options(self, roots: Vec<PathBuf>) -> Options {
        Options {
            roots,
            references: Vec::new(),
            temporary: Temporary::new(std::env::temp_dir()),
            one_file_system: self.one_file_system,
            filters: self.filters(),
            isolate: false,
            unique: false,
        }
    }

    /// Which files count.
    pub fn filters(self) -> Filters {
        Filters {
            min_size: self.min_size,
            max_size: self.max_size.unwrap_or(u64::MAX),
            empty: self.empty,
            hidden: !self.no_hidden,
            include: self.include,
            exclude: self.exclude,
        }
    }
}

/// Finds, and reports.
pub fn run(arguments: Dupes, global: &Global) -> Outcome {
    raise_file_limit();
    let format = arguments.format(global);
    let Dupes { dirs, filters, isolate, unique, reference, .. } = arguments;
    let options = Options { references: reference, isolate, unique, ..filters.options(dirs) };
    let observer = global.observer();
    let report = dupes::run(&options, &observer, &STOP)?;
    observer.finish();
    let mut out = Out::default();
    let told = Told {
        text: text::live_policy(&options),
        unique: options.unique,
        policy: json::Policy::new(&options.filters, options.one_file_system, options.isolate),
    };
    write(&report, &told, format, global.quiet, &mut out)?;
    out.flush();
    Ok(if report.totals.problems == 0 { Exit::Done } else { Exit::Incomplete })
}

/// Writes a report.
pub fn write(
    report: &Report,
    told: &Told,
    format: Format,
    quiet: bool,
    out: &mut Out,
) -> crate::error::Result<()> {
    match format {
        Format::Text => text::write(report, told, quiet, out),
        Format::Fdupes => text::fdupes(report, out),
        Format::Json => json::write(report, told, out),
        Format::Csv => csv::write(report, out),
        Format::Html => html::write(report, told, out),
    }
}
