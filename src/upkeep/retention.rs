//! Which snapshots a policy keeps. A pure function over snapshots, policy, zone and clock.
//!
//! Rules run finest first. Each keeps the newest snapshot of a period, and only of periods in
//! which no finer rule kept one; a rule that finds fewer periods than it may keep also keeps the
//! oldest snapshot. So do borg's `prune` and Proxmox Backup Server.

mod period;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Deserializer};

use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::repo::snapshots::Listed;
use crate::time::Interval;

use period::Period;

/// How many a rule keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Count {
    /// The rule is not there.
    #[default]
    None,
    /// So many.
    Some(u32),
    /// One of each period.
    All,
}

impl Count {
    /// Reads a number, or `all`; 0 is no rule.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Count::All),
            "0" => Ok(Count::None),
            number => number
                .parse()
                .map(Count::Some)
                .map_err(|_| format!("'{number}' is no number of snapshots: write 7, or all")),
        }
    }

    fn limit(self) -> usize {
        match self {
            Count::None => 0,
            Count::Some(count) => count as usize,
            Count::All => usize::MAX,
        }
    }
}

/// What to keep. In a configuration file the fields are `keep-last = 7`, `keep-within = "2D"`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Policy {
    /// The newest ones.
    pub keep_last: Count,
    /// One of each hour, for so many hours that have any.
    pub keep_hourly: Count,
    /// Likewise of each day.
    pub keep_daily: Count,
    /// Likewise of each ISO week.
    pub keep_weekly: Count,
    /// Likewise of each month.
    pub keep_monthly: Count,
    /// Likewise of each year.
    pub keep_yearly: Count,
    /// All that are not older.
    #[serde(deserialize_with = "interval")]
    pub keep_within: Option<Interval>,
    /// One of each hour, of those that are not older.
    #[serde(deserialize_with = "interval")]
    pub keep_within_hourly: Option<Interval>,
    /// Likewise of each day.
    #[serde(deserialize_with = "interval")]
    pub keep_within_daily: Option<Interval>,
    /// Likewise of each ISO week.
    #[serde(deserialize_with = "interval")]
    pub keep_within_weekly: Option<Interval>,
    /// Likewise of each month.
    #[serde(deserialize_with = "interval")]
    pub keep_within_monthly: Option<Interval>,
    /// Likewise of each year.
    #[serde(deserialize_with = "interval")]
    pub keep_within_yearly: Option<Interval>,
    /// All with one of these tags.
    pub keep_tag: Vec<String>,
    /// Only what is older may go, and never the newest of a group.
    #[serde(deserialize_with = "age")]
    pub older_than: Option<OlderThan>,
}

/// Since when nothing may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OlderThan {
    /// A moment.
    Moment(Timestamp),
    /// So long before now; what a file says, which is read at another time than it was written.
    Interval(Interval),
}

impl OlderThan {
    /// The moment.
    fn since(self, now: Timestamp) -> Timestamp {
        match self {
            OlderThan::Moment(moment) => moment,
            OlderThan::Interval(interval) => interval.before(now).unwrap_or(Timestamp::MIN),
        }
    }
}

/// What to keep of each label, as a file says it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Policies {
    /// By label.
    pub labels: BTreeMap<String, Policy>,
    /// For all other labels; without it they are left alone.
    pub default: Option<Policy>,
}

impl Policies {
    /// Whether nothing is said of any label.
    pub fn is_empty(&self) -> bool {
        self.labels.values().chain(&self.default).all(Policy::is_empty)
    }

    /// What to keep of this label, if anything is said of it.
    pub fn of(&self, label: &str) -> Option<&Policy> {
        self.labels.get(label).or(self.default.as_ref())
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a number of snapshots, or \"all\"")]
        enum Written {
            Number(u32),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(0) => Ok(Count::None),
            Written::Number(count) => Ok(Count::Some(count)),
            Written::Text(text) => Count::parse(&text).map_err(serde::de::Error::custom),
        }
    }
}

fn interval<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Interval>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Interval::parse(&text).map(Some).map_err(serde::de::Error::custom)
}

fn age<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<OlderThan>, D::Error> {
    Ok(interval(deserializer)?.map(OlderThan::Interval))
}

/// One granularity's two rules.
struct Rule {
    name: &'static str,
    name_within: &'static str,
    period: Period,
    count: Count,
    within: Option<Interval>,
}

impl Policy {
    /// Whether it keeps nothing, and so would forget all.
    pub fn is_empty(&self) -> bool {
        let rules = self.rules();
        rules.iter().all(|rule| rule.count == Count::None && rule.within.is_none())
            && self.keep_within.is_none()
            && self.keep_tag.is_empty()
            && self.older_than.is_none()
    }

    /// The finest first.
    fn rules(&self) -> [Rule; 6] {
        let rule =
            |name, name_within, period, count, within| Rule { name, name_within, period, count, within };
        [
            rule("last", "", Period::Snapshot, self.keep_last, None),
            rule("hourly", "within hourly", Period::Hour, self.keep_hourly, self.keep_within_hourly),
            rule("daily", "within daily", Period::Day, self.keep_daily, self.keep_within_daily),
            rule("weekly", "within weekly", Period::Week, self.keep_weekly, self.keep_within_weekly),
            rule("monthly", "within monthly", Period::Month, self.keep_monthly, self.keep_within_monthly),
            rule("yearly", "within yearly", Period::Year, self.keep_yearly, self.keep_within_yearly),
        ]
    }
}

/// What snapshots are grouped by; each group is thinned for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupBy {
    /// Whether hosts are kept apart.
    pub host: bool,
    /// Whether labels are.
    pub label: bool,
}

impl Default for GroupBy {
    fn default() -> Self {
        Self { host: true, label: true }
    }
}

impl GroupBy {
    /// Reads `host,label`, one of them, or nothing.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut by = Self { host: false, label: false };
        for word in text.split(',').filter(|word| !word.is_empty()) {
            match word {
                "host" => by.host = true,
                "label" => by.label = true,
                other => return Err(format!("'{other}' is nothing to group by: write host,label")),
            }
        }
        Ok(by)
    }

    fn key(self, listed: &Listed) -> (&str, &str) {
        let part = |wanted, text| if wanted { text } else { "" };
        (part(self.host, &listed.snapshot.host), part(self.label, &listed.snapshot.label))
    }
}

/// A snapshot, and the rules that keep it; one without any goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict<'s> {
    /// The snapshot.
    pub listed: &'s Listed,
    /// Why it stays: `daily 3`, `weekly oldest`, `protected`.
    pub reasons: Vec<String>,
}

impl Verdict<'_> {
    /// Whether it stays.
    pub fn is_kept(&self) -> bool {
        !self.reasons.is_empty()
    }
}

/// What the policy makes of the snapshots: a verdict on each, oldest first within its group.
/// An empty policy is refused.
pub fn plan<'s>(
    snapshots: impl IntoIterator<Item = &'s Listed>,
    protected: &HashSet<SnapshotId>,
    policy: &Policy,
    group_by: GroupBy,
    zone: &TimeZone,
    now: Timestamp,
) -> Result<Vec<Verdict<'s>>> {
    if policy.is_empty() {
        return Err(Error::Refused(
            "no rule says what to keep: give --keep-daily 7 or the like, --older-than, or snapshots".into(),
        ));
    }
    let mut groups: BTreeMap<(&str, &str), Vec<&Listed>> = BTreeMap::new();
    for listed in snapshots {
        groups.entry(group_by.key(listed)).or_default().push(listed);
    }
    let decide = |mut group: Vec<&'s Listed>| {
        group.sort_by_key(|listed| (listed.snapshot.time, listed.id));
        Group { snapshots: group, reasons: Vec::new(), zone, now }.decide(policy, protected)
    };
    Ok(groups.into_values().flat_map(decide).collect())
}

/// Snapshots that are thinned together, oldest first, and why each stays.
struct Group<'s, 'z> {
    snapshots: Vec<&'s Listed>,
    reasons: Vec<Vec<String>>,
    zone: &'z TimeZone,
    now: Timestamp,
}

impl<'s> Group<'s, '_> {
    fn decide(mut self, policy: &Policy, protected: &HashSet<SnapshotId>) -> Vec<Verdict<'s>> {
        self.reasons = vec![Vec::new(); self.snapshots.len()];
        let free = self.set_aside(policy, protected);
        self.keep_within(&free, policy);
        for rule in policy.rules() {
            self.apply(&free, &rule);
        }
        self.keep_young(policy);
        self.snapshots
            .into_iter()
            .zip(self.reasons)
            .map(|(listed, reasons)| Verdict { listed, reasons })
            .collect()
    }

    /// Protected and tagged snapshots stay and use up no place. The others, newest first.
    fn set_aside(&mut self, policy: &Policy, protected: &HashSet<SnapshotId>) -> Vec<usize> {
        for (listed, reasons) in self.snapshots.iter().zip(&mut self.reasons) {
            if protected.contains(&listed.id) {
                reasons.push("protected".into());
            }
            let tags = policy.keep_tag.iter().filter(|tag| listed.snapshot.tags.contains(tag));
            reasons.extend(tags.map(|tag| format!("tag {tag}")));
        }
        (0..self.snapshots.len()).rev().filter(|&at| self.reasons[at].is_empty()).collect()
    }

    fn keep_within(&mut self, free: &[usize], policy: &Policy) {
        for &at in free {
            if policy.keep_within.is_some_and(|within| self.is_within(at, within)) {
                self.reasons[at].push("within".into());
            }
        }
    }

    fn apply(&mut self, free: &[usize], rule: &Rule) {
        let kept = free.iter().filter(|&&at| !self.reasons[at].is_empty());
        let mut seen: BTreeSet<String> = kept.map(|&at| self.period(at, rule)).collect();
        let newest: Vec<usize> =
            free.iter().copied().filter(|&at| seen.insert(self.period(at, rule))).collect();
        for (&at, place) in newest.iter().zip(1..=rule.count.limit()) {
            self.reasons[at].push(format!("{} {place}", rule.name));
        }
        for &at in &newest {
            if rule.within.is_some_and(|within| self.is_within(at, within)) {
                self.reasons[at].push(rule.name_within.into());
            }
        }
        let wants_more = matches!(rule.count, Count::Some(count) if newest.len() < count as usize);
        if let Some(&oldest) = free.last().filter(|&&at| wants_more && self.reasons[at].is_empty()) {
            self.reasons[oldest].push(format!("{} oldest", rule.name));
        }
    }

    /// With `older_than`, whatever is younger stays, and the newest.
    fn keep_young(&mut self, policy: &Policy) {
        let Some(older_than) = policy.older_than else { return };
        let cut = older_than.since(self.now);
        for (listed, reasons) in self.snapshots.iter().zip(&mut self.reasons) {
            if listed.snapshot.time >= cut && reasons.is_empty() {
                reasons.push("not older".into());
            }
        }
        if let Some(newest) = self.reasons.last_mut().filter(|reasons| reasons.is_empty()) {
            newest.push("newest".into());
        }
    }

    fn period(&self, at: usize, rule: &Rule) -> String {
        match rule.period {
            // Two of the same second are two.
            Period::Snapshot => self.snapshots[at].id.to_string(),
            period => period.of(self.snapshots[at].snapshot.time, self.zone),
        }
    }

    fn is_within(&self, at: usize, within: Interval) -> bool {
        within.before(self.now).is_none_or(|since| self.snapshots[at].snapshot.time >= since)
    }
}

/// The histories, as host and label, of which nothing would be left without `going`.
pub fn emptied(all: &[Listed], going: &HashSet<SnapshotId>) -> Vec<(String, String)> {
    let series = |listed: &Listed| (listed.snapshot.host.clone(), listed.snapshot.label.clone());
    let (go, stay): (Vec<&Listed>, Vec<&Listed>) = all.iter().partition(|listed| going.contains(&listed.id));
    let stay: BTreeSet<(String, String)> = stay.into_iter().map(series).collect();
    let go: BTreeSet<(String, String)> = go.into_iter().map(series).collect();
    go.difference(&stay).cloned().collect()
}
