//! `varv prune`.

use clap::Args;
use serde::Serialize;

use super::error::Exit;
use super::global::{Global, own_command};
use super::signals::STOP;
use super::{Outcome, output};
use crate::repo::Intent;
use crate::text::{format_size, parse_size};
use crate::upkeep::prune::{self, Abandoned, MAX_UNUSED_DEFAULT, PruneOptions, Pruned, Summary};

/// Give back the space of what no snapshot needs.
///
/// Packs that nobody needs are removed, and packs of which little is needed are written anew.
/// Forgotten snapshots cannot be brought back afterwards. Plans beside other commands; to execute
/// the plan it waits until it is alone, as long as --lock-wait says.
#[derive(Debug, Args)]
pub struct Prune {
    /// How much may stay unused, in per cent of what is kept
    #[arg(long, value_name = "PCT", default_value_t = MAX_UNUSED_DEFAULT, value_parser = per_cent)]
    max_unused: f64,
    /// Write at most so much of packs anew, such as 10G
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| parse_size(text, 1))]
    max_repack: Option<u64>,
    /// Only say what would be done
    #[arg(short = 'n', long)]
    dry_run: bool,
}

fn per_cent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<f64>();
    number
        .ok()
        .filter(|number| (0.0..=100.0).contains(number))
        .ok_or_else(|| format!("'{text}' is not a share; write a number from 0 to 100, such as 5 or 5%"))
}

/// What `prune --json` prints.
#[derive(Serialize)]
struct Report {
    dry_run: bool,
    #[serde(flatten)]
    plan: Summary,
    interrupted: Vec<Row>,
    done: Option<Pruned>,
}

/// An interrupted backup that is forgotten.
#[derive(Serialize)]
struct Row {
    host: String,
    label: String,
    time: String,
    reason: &'static str,
}

impl Row {
    fn new(Abandoned { snapshot, is_too_old }: &Abandoned) -> Self {
        Self {
            host: snapshot.host.clone(),
            label: snapshot.label.clone(),
            time: output::rfc3339(snapshot.time, snapshot.offset),
            reason: if *is_too_old { "too_old" } else { "lost" },
        }
    }
}

impl Prune {
    /// Plans and, unless that is all that is wanted, executes the plan.
    pub fn run(self, global: &Global) -> Outcome {
        let mut repo = global.open(Intent::Read)?;
        let observer = global.observer();
        let options = PruneOptions { max_unused: self.max_unused, max_repack: self.max_repack };
        let planned = prune::plan(&repo, &options, &observer, &STOP)?;
        let (plan, done) = match self.dry_run {
            true => (planned.plan, None),
            false => {
                let (wait, command) = (global.lock_wait, own_command());
                let (plan, done) =
                    prune::execute(&mut repo, planned, &options, wait, &command, &observer, &STOP)?;
                (plan, Some(done))
            }
        };
        observer.finish();
        let interrupted = plan.abandoned.iter().map(Row::new).collect();
        let report = Report { dry_run: self.dry_run, plan: plan.summary(), interrupted, done };
        match global.json {
            true => output::json(&report),
            false => text(&report, &plan.abandoned, global.quiet),
        }
        Ok(if done.is_some_and(|done| done.packs_damaged > 0) { Exit::Damage } else { Exit::Done })
    }
}

fn text(Report { plan, done, .. }: &Report, abandoned: &[Abandoned], quiet: bool) {
    if quiet && done.is_some() {
        return;
    }
    let size = format_size;
    output::line(&format!("packs      {} with {}", plan.packs, size(plan.bytes)));
    output::line(&format!(
        "unused     {} with {}: to be removed",
        plan.packs_unused,
        size(plan.bytes_unused)
    ));
    output::line(&format!(
        "repack     {} with {}: to be written anew without what nobody needs",
        plan.packs_repack,
        size(plan.bytes_repack)
    ));
    output::line(&format!(
        "to free    about {}; about {} more stay unused",
        size(plan.bytes_to_free),
        size(plan.bytes_left_unused)
    ));
    for Abandoned { snapshot, is_too_old } in abandoned {
        let why = match is_too_old {
            true => "nobody goes on with it after 7 days",
            false => "something of what it stored is lost",
        };
        output::line(&format!(
            "forgets    the interrupted backup of host {}, label {}, from {}: {why}",
            snapshot.host,
            snapshot.label,
            output::time(snapshot.time, snapshot.offset)
        ));
    }
    let Some(done) = done else { return };
    if done.unfinished_removed > 0 {
        output::line(&format!(
            "cleaned up {} unfinished objects of interrupted runs",
            done.unfinished_removed
        ));
    }
    output::line(&format!(
        "done       {} packs removed, {} written anew as {}, {} forgotten snapshots dropped",
        done.packs_removed, done.packs_repacked, done.packs_written, done.snapshots_removed
    ));
    output::line(&format!("freed      {}", size(done.bytes_freed)));
}
