//! `varv retier`.

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::error::Exit;
use super::global::Global;
use super::signals::STOP;
use super::{Outcome, clock, output};
use crate::format::config::Tier;
use crate::repo::Intent;
use crate::text::{format_size, parse_size};
use crate::time::Interval;
use crate::upkeep::retier::{self, Estimate, RetierOptions, Retiered, Summary};

/// Compress harder what only older snapshots need.
///
/// What newer snapshots need too stays as it is. Interrupted, or stopped by --limit or --max-time,
/// the next run goes on: what was done is done.
#[derive(Debug, Args)]
pub struct Retier {
    /// What no snapshot needs that is younger, such as 30D or 2026-01-01
    #[arg(long, value_name = "TIME", value_parser = clock::timestamp)]
    older_than: Timestamp,
    /// How hard to compress: warm, cold or archive
    #[arg(long, value_name = "TIER", value_parser = tier)]
    to: Tier,
    /// Write at most so much of packs anew, such as 10G
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| parse_size(text, 1))]
    limit: Option<u64>,
    /// Begin nothing after so long, such as 2h
    #[arg(long, value_name = "T", value_parser = Interval::parse)]
    max_time: Option<Interval>,
    /// Only say what would be done, and about what that saves and costs
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// One that compresses.
fn tier(text: &str) -> Result<Tier, String> {
    match Tier::parse(text)? {
        Tier::Store => Err("'store' compresses nothing: choose hot, warm, cold or archive".into()),
        tier => Ok(tier),
    }
}

/// What `retier --json` prints.
#[derive(Serialize)]
struct Report {
    dry_run: bool,
    tier: &'static str,
    level: i8,
    #[serde(flatten)]
    plan: Summary,
    estimate: Option<Estimate>,
    done: Option<Retiered>,
}

impl Retier {
    /// Plans and, unless that is all that is wanted, executes the plan.
    pub fn run(self, global: &Global) -> Outcome {
        let repo = global.open(if self.dry_run { Intent::Read } else { Intent::Change })?;
        let observer = global.observer();
        let catalog = repo.catalog(&observer, &STOP)?;
        let options = RetierOptions {
            older_than: self.older_than,
            level: repo.config().level(self.to),
            limit: self.limit,
            max_time: self.max_time.map(|time| Duration::from_secs(time.seconds())),
        };
        let plan = retier::plan(&repo, &catalog, &options, &observer, &STOP)?;
        let (mut estimate, mut done) = (None, None);
        match self.dry_run {
            true => estimate = Some(retier::estimate(&catalog, options.level, &plan, &STOP)?),
            false => done = Some(retier::execute(&repo, catalog, &plan, &options, &observer, &STOP)?),
        }
        observer.finish();
        let level = options.level;
        let report =
            Report { dry_run: self.dry_run, tier: self.to.name(), level, plan: plan.summary, estimate, done };
        match global.json {
            true => output::json(&report),
            false => text(&report, global.quiet),
        }
        Ok(if done.is_some_and(|done| done.packs_damaged > 0) { Exit::Damage } else { Exit::Done })
    }
}

fn text(Report { tier, level, plan, estimate, done, .. }: &Report, quiet: bool) {
    if quiet && done.is_some() {
        return;
    }
    let size = format_size;
    output::line(&format!("to         {tier}, zstd level {level}"));
    output::line(&format!(
        "packs      {} with {}, {} of it to be compressed again",
        plan.packs,
        size(plan.bytes),
        size(plan.bytes_to_compress)
    ));
    if let Some(Estimate { bytes_to_save, seconds }) = estimate {
        output::line(&format!("estimate   about {} less, in about {seconds:.0} s", size(*bytes_to_save)));
    }
    if plan.packs_left > 0 {
        output::line(&format!("later      {} packs with {}", plan.packs_left, size(plan.bytes_left)));
    }
    let Some(done) = done else { return };
    output::line(&format!(
        "done       {} packs: {} are {} now",
        done.packs,
        size(done.bytes_before),
        size(done.bytes_after)
    ));
    if done.packs_left > 0 {
        output::line(&format!("left       {} packs, for lack of time: run it again", done.packs_left));
    }
}
