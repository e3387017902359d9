//! Forgetting snapshots: which ones, and what must not happen by accident.

use std::collections::{BTreeSet, HashSet};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::retention::{self, GroupBy, Policies, Policy, Verdict, emptied};
use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::repo::Repo;
use crate::repo::snapshots::{LATEST, Listed, Snapshots};

/// Which snapshots may be touched at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// Only this host's.
    pub host: Option<String>,
    /// Only those of this series.
    pub label: Option<String>,
    /// Only those with this tag.
    pub tag: Option<String>,
}

impl Reach {
    fn has(&self, Listed { snapshot, .. }: &Listed) -> bool {
        self.host.as_ref().is_none_or(|host| *host == snapshot.host)
            && self.label.as_ref().is_none_or(|label| *label == snapshot.label)
            && self.tag.as_ref().is_none_or(|tag| snapshot.tags.contains(tag))
    }
}

/// What may go.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan<'s> {
    /// What was looked at; what has no reason to stay goes.
    pub verdicts: Vec<Verdict<'s>>,
    /// Snapshots that cannot be read, and go because they were named.
    pub damaged: Vec<SnapshotId>,
}

impl<'s> Plan<'s> {
    /// By rules: a verdict on each snapshot within reach.
    pub fn by_rules(
        found: &'s Snapshots,
        protected: &HashSet<SnapshotId>,
        reach: &Reach,
        policy: &Policy,
        group_by: GroupBy,
        zone: &TimeZone,
        now: Timestamp,
    ) -> Result<Self> {
        let within = found.listed.iter().filter(|listed| reach.has(listed));
        let verdicts = retention::plan(within, protected, policy, group_by, zone, now)?;
        Ok(Self { verdicts, damaged: Vec::new() })
    }

    /// By the rules of each label; labels without any are left alone.
    pub fn by_policies(
        found: &'s Snapshots,
        protected: &HashSet<SnapshotId>,
        reach: &Reach,
        policies: &Policies,
        group_by: GroupBy,
        zone: &TimeZone,
        now: Timestamp,
    ) -> Result<Self> {
        if !group_by.label {
            return Err(Error::Refused(
                "rules of a file are those of one label each: let --group-by have label".into(),
            ));
        }
        if policies.is_empty() {
            return Err(Error::Refused(
                "the file has no rules: give it a table [default] or [labels.NAME] with keep-daily = 7 or the like"
                    .into(),
            ));
        }
        let within = found.listed.iter().filter(|listed| reach.has(listed));
        let labels: BTreeSet<&String> = within.map(|listed| &listed.snapshot.label).collect();
        let mut plan = Self { verdicts: Vec::new(), damaged: Vec::new() };
        for label in labels {
            let Some(policy) = policies.of(label) else { continue };
            if policy.is_empty() {
                return Err(Error::Refused(format!("no rule says what to keep of label '{label}'")));
            }
            let reach = Reach { label: Some(label.clone()), ..reach.clone() };
            let of_label = Self::by_rules(found, protected, &reach, policy, group_by, zone, now)?;
            plan.verdicts.extend(of_label.verdicts);
        }
        Ok(plan)
    }

    /// By ids or unique prefixes of them. Refused for what is protected or out of reach.
    pub fn by_ids(
        found: &'s Snapshots,
        protected: &HashSet<SnapshotId>,
        reach: &Reach,
        ids: &[String],
    ) -> Result<Self> {
        let mut plan = Self { verdicts: Vec::new(), damaged: Vec::new() };
        for prefix in ids {
            if prefix == LATEST {
                plan.take(may_go(found.latest(|listed| reach.has(listed))?, protected, reach)?);
                continue;
            }
            match (found.by_prefix(prefix), damaged(found, prefix)) {
                (Err(Error::NotFound(_)), Some(id)) => plan.damaged.push(id),
                (Err(e), _) => return Err(e),
                (Ok(listed), _) => plan.take(may_go(listed, protected, reach)?),
            }
        }
        Ok(plan)
    }

    fn take(&mut self, listed: &'s Listed) {
        if self.verdicts.iter().all(|verdict| verdict.listed.id != listed.id) {
            self.verdicts.push(Verdict { listed, reasons: Vec::new() });
        }
    }

    /// What goes.
    pub fn going(&self) -> Vec<SnapshotId> {
        let listed = self.verdicts.iter().filter(|verdict| !verdict.is_kept()).map(|v| v.listed.id);
        listed.chain(self.damaged.iter().copied()).collect()
    }

    /// Refused if a history would be left without any snapshot.
    pub fn refuse_last(&self, found: &Snapshots) -> Result<()> {
        let going = self.going().into_iter().collect();
        match &emptied(&found.listed, &going)[..] {
            [] => Ok(()),
            histories => {
                let names: Vec<String> =
                    histories.iter().map(|(host, label)| format!("host {host}, label {label}")).collect();
                Err(Error::Refused(format!(
                    "this would forget the last snapshot of {}: give --allow-last if that is meant",
                    names.join("; ")
                )))
            }
        }
    }

    /// Forgets; what could not be kept for `undo-forget`, for lack of room, is returned.
    pub fn execute(&self, repo: &Repo) -> Result<Vec<SnapshotId>> {
        match &self.going()[..] {
            [] => Ok(Vec::new()),
            going => repo.forget(going),
        }
    }
}

fn damaged(found: &Snapshots, prefix: &str) -> Option<SnapshotId> {
    found.damaged.iter().map(|(id, _)| *id).find(|id| id.to_string().starts_with(prefix))
}

fn may_go<'s>(listed: &'s Listed, protected: &HashSet<SnapshotId>, reach: &Reach) -> Result<&'s Listed> {
    let name = listed.id.short();
    if protected.contains(&listed.id) {
        return Err(Error::Refused(format!("snapshot {name} is protected: see varv unprotect")));
    }
    if !reach.has(listed) {
        let host = &listed.snapshot.host;
        return Err(Error::Refused(format!(
            "snapshot {name} is of host {host}, label {}: give --host {host} or --all-hosts if it is meant",
            listed.snapshot.label
        )));
    }
    Ok(listed)
}
