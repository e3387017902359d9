//! `varv forget`.

use std::collections::HashSet;
use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::backup::this_host;
use super::clock;
use super::error::Exit;
use super::global::Global;
use super::select::Filters;
use super::{Outcome, config, output};
use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::repo::Intent;
use crate::repo::snapshots::{Listed, Snapshots};
use crate::time::Interval;
use crate::upkeep::forget::{Plan, Reach};
use crate::upkeep::retention::{Count, GroupBy, OlderThan, Policies, Policy, Verdict};

/// Forget snapshots, by rules that say what to keep, or by their ids.
///
/// Rules run finest first. Each keeps the newest snapshot of a period, and only of periods in
/// which no finer rule kept one; a rule that finds fewer periods than it may keep also keeps the
/// oldest snapshot. What is forgotten takes room until varv prune has run, and until then
/// varv undo-forget brings it back.
#[derive(Debug, Args)]
pub struct Forget {
    /// Snapshots, by their ids or unique prefixes of them; or latest
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    rules: Rules,
    /// Take the rules of each label from a TOML file: tables [labels.NAME], and [default] for others
    #[arg(long, value_name = "FILE", conflicts_with = "ids", help_heading = "Rules")]
    policy: Option<PathBuf>,
    /// Those of a profile.
    #[arg(skip)]
    policies: Option<Policies>,
    #[command(flatten)]
    filters: Filters,
    /// Of all hosts, not of this one alone
    #[arg(long, conflicts_with = "host")]
    all_hosts: bool,
    /// What snapshots are thinned together that have the same: host, label, both, or nothing
    #[arg(long, value_name = "LIST", default_value = "host,label", value_parser = GroupBy::parse)]
    group_by: GroupBy,
    /// Also forget the last snapshot of a host and label
    #[arg(long)]
    allow_last: bool,
    /// Only say what would be forgotten, and which rule keeps what
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// What to keep.
#[derive(Debug, Args)]
#[command(next_help_heading = "Rules")]
struct Rules {
    /// Keep the N newest; N may be 'all' here and below
    #[arg(long, value_name = "N", value_parser = Count::parse)]
    keep_last: Option<Count>,
    /// Keep one an hour, of N hours that have any
    #[arg(long, value_name = "N", value_parser = Count::parse)]
    keep_hourly: Option<Count>,
    /// Keep one a day, of N days that have any
    #[arg(long, value_name = "N", value_parser = Count::parse)]
    keep_daily: Option<Count>,
    /// Keep one an ISO week, of N weeks that have any
    #[arg(long, value_name = "N", value_parser = Count::parse)]
    keep_weekly: Option<Count>,
    /// Keep one a month, of N months that have any
    #[arg(long, value_name = "N", value_parser = Count::parse)]
    keep_monthly: Option<Count>,
    /// Keep one a year, of N years that have any
    #[arg(long, value_name = "N", value_parser = Count::parse)]
    keep_yearly: Option<Count>,
    /// Keep all that are younger than T, such as 3D or 2W
    #[arg(long, value_name = "T", value_parser = Interval::parse)]
    keep_within: Option<Interval>,
    /// Keep one an hour of those that are younger
    #[arg(long, value_name = "T", value_parser = Interval::parse)]
    keep_within_hourly: Option<Interval>,
    /// Keep one a day of those that are younger
    #[arg(long, value_name = "T", value_parser = Interval::parse)]
    keep_within_daily: Option<Interval>,
    /// Keep one an ISO week of those that are younger
    #[arg(long, value_name = "T", value_parser = Interval::parse)]
    keep_within_weekly: Option<Interval>,
    /// Keep one a month of those that are younger
    #[arg(long, value_name = "T", value_parser = Interval::parse)]
    keep_within_monthly: Option<Interval>,
    /// Keep one a year of those that are younger
    #[arg(long, value_name = "T", value_parser = Interval::parse)]
    keep_within_yearly: Option<Interval>,
    /// Keep those with this tag; may be given several times
    #[arg(long, value_name = "TAG")]
    keep_tag: Vec<String>,
    /// Forget only what is older than a time, such as 60D or 2026-01-01, and never the newest
    #[arg(long, value_name = "TIME", value_parser = clock::timestamp)]
    older_than: Option<Timestamp>,
}

impl Rules {
    fn policy(self) -> Policy {
        Policy {
            keep_last: self.keep_last.unwrap_or_default(),
            keep_hourly: self.keep_hourly.unwrap_or_default(),
            keep_daily: self.keep_daily.unwrap_or_default(),
            keep_weekly: self.keep_weekly.unwrap_or_default(),
            keep_monthly: self.keep_monthly.unwrap_or_default(),
            keep_yearly: self.keep_yearly.unwrap_or_default(),
            keep_within: self.keep_within,
            keep_within_hourly: self.keep_within_hourly,
            keep_within_daily: self.keep_within_daily,
            keep_within_weekly: self.keep_within_weekly,
            keep_within_monthly: self.keep_within_monthly,
            keep_within_yearly: self.keep_within_yearly,
            keep_tag: self.keep_tag,
            older_than: self.older_than.map(OlderThan::Moment),
        }
    }
}

/// What `forget --json` prints.
#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    kept: Vec<Row<'a>>,
    forgotten: Vec<Row<'a>>,
    forgotten_damaged: Vec<String>,
    not_undoable: Vec<String>,
}

/// A snapshot in it.
#[derive(Serialize)]
pub struct Row<'a> {
    id: String,
    time: String,
    host: &'a str,
    label: &'a str,
    paths: Vec<&'a str>,
    tags: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    reasons: Option<&'a [String]>,
}

impl<'a> Row<'a> {
    /// Without reasons.
    pub fn new(Listed { id, snapshot }: &'a Listed) -> Self {
        Self {
            id: id.to_string(),
            time: output::rfc3339(snapshot.time, snapshot.offset),
            host: &snapshot.host,
            label: &snapshot.label,
            paths: snapshot.roots.iter().map(|root| root.path.as_str()).collect(),
            tags: &snapshot.tags,
            reasons: None,
        }
    }
}

impl Forget {
    /// By rules that stand in no option and no file of their own.
    pub fn with_policies(self, policies: Policies) -> Self {
        Self { policies: Some(policies), ..self }
    }

    /// Forgets.
    pub fn run(self, global: &Global) -> Outcome {
        let repo = global.open(if self.dry_run { Intent::Read } else { Intent::Add })?;
        let found = repo.snapshots()?;
        let protected = repo.protected()?;
        let (dry_run, allow_last) = (self.dry_run, self.allow_last);
        let plan = self.plan(&found, &protected)?;
        if !allow_last {
            plan.refuse_last(&found)?;
        }
        let lost = if dry_run { Vec::new() } else { plan.execute(&repo)? };
        match global.json {
            true => output::json(&report(&plan, dry_run, &lost)),
            false => text(&plan, dry_run, global),
        }
        if !lost.is_empty() {
            output::notice(&format!(
                "the disk is full: {} of them could not be kept for varv undo-forget",
                lost.len()
            ));
        }
        let left = || found.damaged.iter().filter(|(id, _)| !plan.damaged.contains(id));
        for (_, error) in left() {
            output::notice(&error.to_string());
        }
        Ok(if left().next().is_none() { Exit::Done } else { Exit::Damage })
    }

    fn plan<'s>(self, found: &'s Snapshots, protected: &HashSet<SnapshotId>) -> Result<Plan<'s>> {
        let policy = self.rules.policy();
        let policies = match (self.policies, &self.policy) {
            (None, Some(path)) => Some(config::policies(path)?),
            (given, _) => given,
        };
        let Filters { label, host, tag } = self.filters;
        let host = if self.all_hosts { None } else { host.or_else(|| Some(this_host())) };
        let reach = Reach { host, label, tag };
        let now = clock::now();
        let (zone, now) = (now.time_zone(), now.timestamp());
        let group_by = self.group_by;
        match (policies, policy.is_empty(), self.ids.is_empty()) {
            (Some(policies), true, true) => {
                Plan::by_policies(found, protected, &reach, &policies, group_by, zone, now)
            }
            (None, _, true) => Plan::by_rules(found, protected, &reach, &policy, group_by, zone, now),
            (None, true, false) => Plan::by_ids(found, protected, &reach, &self.ids),
            (Some(_), ..) => Err(Error::Refused("give either rules or a file of them, not both".into())),
            _ => Err(Error::Refused("give either snapshots or rules, not both".into())),
        }
    }
}

fn report<'a>(plan: &'a Plan, dry_run: bool, lost: &[SnapshotId]) -> Report<'a> {
    let row = |verdict: &&'a Verdict<'a>| Row { reasons: Some(&verdict.reasons), ..Row::new(verdict.listed) };
    let (kept, forgotten): (Vec<_>, Vec<_>) = plan.verdicts.iter().partition(|verdict| verdict.is_kept());
    Report {
        dry_run,
        kept: kept.iter().map(row).collect(),
        forgotten: forgotten.iter().map(row).collect(),
        forgotten_damaged: plan.damaged.iter().map(SnapshotId::to_string).collect(),
        not_undoable: lost.iter().map(SnapshotId::to_string).collect(),
    }
}

/// A dry run exists to show the list; otherwise it is a summary.
fn text(plan: &Plan, dry_run: bool, global: &Global) {
    if global.quiet && !dry_run {
        return;
    }
    for verdict in &plan.verdicts {
        if dry_run || global.verbose > 0 || !verdict.is_kept() {
            let word = if verdict.is_kept() { "keep  " } else { "forget" };
            output::line(
                format!("{word}  {}  {}", line(verdict.listed), verdict.reasons.join(", ")).trim_end(),
            );
        }
    }
    for id in &plan.damaged {
        output::line(&format!("forget  {}  damaged", id.short()));
    }
    let going = plan.going().len();
    let kept = plan.verdicts.iter().filter(|verdict| verdict.is_kept()).count();
    output::line(&match (going, dry_run) {
        (0, _) => format!("{kept} kept, nothing to forget"),
        (_, true) => format!("{kept} would be kept, {going} forgotten"),
        (_, false) => {
            format!("{kept} kept, {going} forgotten: varv undo-forget brings them back until varv prune")
        }
    });
}

/// A snapshot in a line.
pub fn line(Listed { id, snapshot }: &Listed) -> String {
    format!(
        "{}  {}  {}  {}",
        id.short(),
        output::time(snapshot.time, snapshot.offset),
        snapshot.host,
        snapshot.label
    )
}
