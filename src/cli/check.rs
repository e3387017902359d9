//! `varv check`.

use clap::Args;
use jiff::Timestamp;

use super::error::Exit;
use super::global::Global;
use super::signals::STOP;
use super::{Outcome, output};
use crate::error::Error;
use crate::repo::Intent;
use crate::text::{format_size, parse_size};
use crate::time::Interval;
use crate::upkeep::check::{self, CheckOptions, CheckReport, Damage, Part};

const DAY_SECONDS: i64 = 86_400;

/// Find out what is damaged, and which files that hurts.
///
/// Checks that everything is there which snapshots need. With --read-data, also reads it and
/// checks each byte.
#[derive(Debug, Args)]
pub struct Check {
    /// Read the data too: all of it, or such a share, another one each day
    #[arg(long, value_name = "PCT", num_args = 0..=1, require_equals = true,
          default_missing_value = "100%", value_parser = percent)]
    read_data: Option<f64>,
    /// Read only packs that were not read and found good for so long, such as 30D; those never
    /// read first, then the oldest
    #[arg(long, value_name = "T", requires = "read_data", value_parser = Interval::parse)]
    max_age: Option<Interval>,
    /// Read no more than so much
    #[arg(long, value_name = "SIZE", requires = "read_data", value_parser = size)]
    limit: Option<u64>,
}

impl Check {
    /// Checks.
    pub fn run(self, global: &Global) -> Outcome {
        let repo = global.open(Intent::Read)?;
        let observer = global.observer();
        let options = self.options(Timestamp::now())?;
        let report = check::run(&repo, &options, &observer, &STOP)?;
        observer.finish();
        match global.json {
            true => output::json(&report),
            false => text(&report, global.quiet),
        }
        Ok(if report.damaged.is_empty() { Exit::Done } else { Exit::Damage })
    }

    fn options(&self, now: Timestamp) -> Result<CheckOptions, Error> {
        let is_due = self.max_age.is_some() || self.limit.is_some();
        let read_data = match self.read_data {
            None => None,
            Some(percent) if is_due && percent < 100.0 => {
                return Err(Error::Refused(
                    "a share of the data and --max-age or --limit exclude each other: leave the share away"
                        .into(),
                ));
            }
            Some(_) if is_due => Some(Part::Due { max_age: self.max_age, limit: self.limit }),
            Some(percent) => {
                let day = now.as_second().div_euclid(DAY_SECONDS);
                Some(Part::of_day(percent, day.unsigned_abs()))
            }
        };
        Ok(CheckOptions { read_data, now })
    }
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text, 1)
}

/// A share such as `10%` or `2.5`.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    match number.parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err(format!("'{text}' is not a share: write a number above 0 and up to 100, such as 10%")),
    }
}

fn text(report: &CheckReport, quiet: bool) {
    report.damaged.iter().for_each(damage);
    if quiet {
        return;
    }
    for note in &report.notes {
        output::line(&format!("note       {note}"));
    }
    let read = match report.packs_read {
        0 => "their data was not read".into(),
        packs => format!("the data of {packs} of them was read, {}", format_size(report.bytes_read)),
    };
    output::line(&format!(
        "checked    {} snapshots, {} packs with {} chunks; {read}",
        report.snapshots, report.packs, report.chunks
    ));
    output::line(&match report.damaged.len() {
        0 => "damage     none".into(),
        1 => "damage     1 object".into(),
        objects => format!("damage     {objects} objects"),
    });
}

/// Prints what is damaged, and what that hurts.
pub fn damage(Damage { object, why, hurts }: &Damage) {
    output::line(&format!("damaged    {object}: {why}"));
    for hurt in hurts {
        output::line(&format!("  hurts    {hurt}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_above_nothing_and_not_above_all() {
        assert_eq!((percent("10%"), percent("2.5"), percent("100%")), (Ok(10.0), Ok(2.5), Ok(100.0)));
        for text in ["0", "0%", "-1", "101%", "", "x", "NaN", "inf", "%"] {
            assert!(percent(text).is_err(), "{text}");
        }
    }
}
