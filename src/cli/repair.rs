//! `varv repair`.

use clap::Args;
use jiff::Timestamp;

use super::error::Exit;
use super::global::Global;
use super::signals::STOP;
use super::{Outcome, check, output};
use crate::repo::Intent;
use crate::text::format_size;
use crate::upkeep::check::CheckOptions;
use crate::upkeep::repair::{self, PackPlan, RepairReport};

/// Save what can be read of damaged packs, and remove what nothing needs.
///
/// A pack is put right as a whole if one bit of its table has flipped, or something was added to it.
/// Acts on what is missing and on what varv check --read-data found. What is lost is named; the
/// next backup stores it anew if its source still has it.
#[derive(Debug, Args)]
pub struct Repair {
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
}

impl Repair {
    /// Repairs.
    pub fn run(self, global: &Global) -> Outcome {
        let repo = global.open(if self.dry_run { Intent::Read } else { Intent::Change })?;
        let observer = global.observer();
        let options = CheckOptions { read_data: None, now: Timestamp::now() };
        let report = repair::run(&repo, &options, self.dry_run, &observer, &STOP)?;
        observer.finish();
        match global.json {
            true => output::json(&report),
            false => text(&report, global.quiet),
        }
        Ok(if report.damaged.is_empty() { Exit::Done } else { Exit::Damage })
    }
}

fn text(report: &RepairReport, quiet: bool) {
    let would = if report.dry_run { "would be " } else { "" };
    if !quiet {
        for name in &report.plan.configs {
            output::line(&format!("config     {name}: {would}written anew"));
        }
        for snapshot in &report.plan.snapshots {
            let done = match snapshot.action {
                "mend" => "mended: one bit had flipped",
                "put aside" => "put aside: it cannot be read",
                _ => "left: the medium does not give it",
            };
            output::line(&format!("snapshot   {}: {would}{done}", snapshot.id));
        }
        for pack in &report.plan.packs_mended {
            output::line(&format!("pack       {pack}: {would}mended, to what it was when it was written"));
        }
        report.plan.packs.iter().for_each(|pack| pack_line(pack, would));
    }
    report.damaged.iter().for_each(check::damage);
    if quiet {
        return;
    }
    if report.plan.is_empty() {
        output::line("repaired   nothing: there is nothing that a repair can do");
    } else if !report.dry_run {
        let size = format_size(report.bytes_written);
        let mended = report.plan.packs_mended.len();
        output::line(&format!(
            "repaired   {mended} packs mended, {} new ones with {size}",
            report.packs_written
        ));
    }
    output::line(&match report.damaged.len() {
        0 => "damage     none".into(),
        objects => {
            format!("damage     {objects} object(s); the next backup heals what its sources still have")
        }
    });
}

fn pack_line(pack: &PackPlan, would: &str) {
    let fate = match pack.kept_because {
        None => format!("{would}removed"),
        Some(why) => format!("kept: {why}"),
    };
    output::line(&format!(
        "pack       {}: {} chunks can be read, {} of them ({}) {would}stored anew, {} cannot; {fate}",
        pack.id,
        pack.chunks_readable,
        pack.chunks_saved,
        format_size(pack.bytes_saved),
        pack.chunks_unreadable,
    ));
}
