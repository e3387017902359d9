//! `varv check`.

use clap::Args;
use jiff::Timestamp;

use super::error::Exit;
use super::global::Global;
use super::signals::STOP;
use super::{Outcome, output};
use crate::repo::Intent;
use crate::text::format_size;
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
}

impl Check {
    /// Checks.
    pub fn run(self, global: &Global) -> Outcome {
        let repo = global.open(Intent::Read)?;
        let observer = global.observer();
        let options = CheckOptions { read_data: self.read_data.map(part_of_today) };
        let report = check::run(&repo, &options, &observer, &STOP)?;
        observer.finish();
        match global.json {
            true => output::json(&report),
            false => text(&report, global.quiet),
        }
        Ok(if report.damaged.is_empty() { Exit::Done } else { Exit::Damage })
    }
}

fn part_of_today(percent: f64) -> Part {
    let day = Timestamp::now().as_second().div_euclid(DAY_SECONDS);
    Part::of_day(percent, day.unsigned_abs())
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

fn damage(Damage { object, why, hurts }: &Damage) {
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
