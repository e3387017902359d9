//! Cases from the test suites and manuals of borg, restic, Proxmox Backup Server and rdiff-backup.
//!
//! | of others | here |
//! |---|---|
//! | hourly 3 and 2 of six within three hours | `hours_as_proxmox_tests_them` |
//! | protected ones count neither as kept nor as gone | `protected_ones_stay_and_use_up_no_place` |
//! | the day of `last` is covered | `what_last_keeps_covers_its_day` |
//! | backups that were never finished | have no snapshot here |
//! | the same second; ISO weeks; leap days; zones; summer time | `same_second_snapshots_are_two` and those after it |
//! | the oldest stays while the coarsest rule is not full | `the_oldest_stays_while_a_rule_is_not_full` |
//! | zero, minus one, all, nothing at all | `empty_policies_are_refused` |

use jiff::civil;
use proptest::prelude::*;

use super::*;
use crate::format::config::Tier;
use crate::format::snapshot::{Snapshot, Stats, TreeRef};

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap()
}

fn at(text: &str, zone: &TimeZone) -> Timestamp {
    text.parse::<Timestamp>()
        .or_else(|_| text.parse::<civil::DateTime>().and_then(|t| zone.to_timestamp(t)))
        .unwrap()
}

fn snapshot(time: Timestamp, number: usize) -> Listed {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&(number as u64).to_be_bytes());
    let snapshot = Snapshot {
        time,
        offset: 0,
        host: "host".into(),
        label: "label".into(),
        tags: Vec::new(),
        user: String::new(),
        varv: String::new(),
        tier: Tier::Hot,
        roots: Vec::new(),
        tree: TreeRef::new(None),
        stats: Stats::default(),
        missing: Vec::new(),
        unreadable: Vec::new(),
        volumes: Vec::new(),
    };
    Listed { id: SnapshotId(id), snapshot }
}

fn snapshots(times: &[&str], zone: &TimeZone) -> Vec<Listed> {
    times.iter().enumerate().map(|(number, text)| snapshot(at(text, zone), number)).collect()
}

/// One a day at three in the morning UTC, the last one on 2026-11-21.
fn nights(count: i64) -> Vec<Listed> {
    let last = at("2026-11-21T03:00:00Z", &TimeZone::UTC).as_second();
    (0..count)
        .map(|n| snapshot(Timestamp::from_second(last - (count - 1 - n) * 86_400).unwrap(), n as usize))
        .collect()
}

const NOW: &str = "2026-11-21T12:00:00Z";

fn verdicts<'s>(all: &'s [Listed], policy: &Policy, zone: &TimeZone) -> Vec<Verdict<'s>> {
    plan(all, &HashSet::new(), policy, GroupBy::default(), zone, at(NOW, zone)).unwrap()
}

/// The times of those that stay, without seconds, in the zone.
fn kept(all: &[Listed], policy: &Policy, zone: &TimeZone) -> Vec<String> {
    verdicts(all, policy, zone)
        .iter()
        .filter(|verdict| verdict.is_kept())
        .map(|v| v.listed.snapshot.time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M").to_string())
        .collect()
}

fn days(all: &[Listed], policy: &Policy) -> Vec<String> {
    kept(all, policy, &TimeZone::UTC).into_iter().map(|time| time[5..10].to_string()).collect()
}

fn policy(change: impl FnOnce(&mut Policy)) -> Policy {
    let mut policy = Policy::default();
    change(&mut policy);
    policy
}

fn length(text: &str) -> Option<Interval> {
    Some(Interval::parse(text).unwrap())
}

const PBS: [&str; 6] = [
    "2026-11-20T09:39:00Z",
    "2026-11-20T10:49:00Z",
    "2026-11-20T10:59:00Z",
    "2026-11-20T11:39:00Z",
    "2026-11-20T11:49:00Z",
    "2026-11-20T11:59:00Z",
];

#[test]
fn hours_as_proxmox_tests_them() {
    let all = snapshots(&PBS, &TimeZone::UTC);
    let hours = |n| policy(|p| p.keep_hourly = Count::Some(n));
    let times = |n| kept(&all, &hours(n), &TimeZone::UTC);
    assert_eq!(times(3), ["2026-11-20 09:39", "2026-11-20 10:59", "2026-11-20 11:59"]);
    assert_eq!(times(2), ["2026-11-20 10:59", "2026-11-20 11:59"]);
    let last = policy(|p| p.keep_last = Count::Some(2));
    assert_eq!(kept(&all, &last, &TimeZone::UTC), ["2026-11-20 11:49", "2026-11-20 11:59"]);
}

#[test]
fn protected_ones_stay_and_use_up_no_place() {
    let all = snapshots(&PBS, &TimeZone::UTC);
    let protected = HashSet::from([all[5].id, all[1].id]);
    let hours = policy(|p| p.keep_hourly = Count::Some(2));
    let found =
        plan(&all, &protected, &hours, GroupBy::default(), &TimeZone::UTC, at(NOW, &TimeZone::UTC)).unwrap();
    let reasons: Vec<String> = found.iter().map(|v| v.reasons.join(", ")).collect();
    assert_eq!(reasons, ["", "protected", "hourly 2", "", "hourly 1", "protected"]);
}

#[test]
fn what_last_keeps_covers_its_day() {
    let both = policy(|p| (p.keep_last, p.keep_daily) = (Count::Some(1), Count::Some(1)));
    assert_eq!(days(&nights(5), &both), ["11-20", "11-21"]);
}

#[test]
fn daily_seven_and_weekly_three_keep_ten_of_thirty() {
    let both = policy(|p| (p.keep_daily, p.keep_weekly) = (Count::Some(7), Count::Some(3)));
    let expected = ["10-25", "11-01", "11-08", "11-15", "11-16", "11-17", "11-18", "11-19", "11-20", "11-21"];
    let found = days(&nights(30), &both);
    assert_eq!(found.len(), 10);
    // The week of the 15th has a snapshot that a daily rule kept, so the weekly one passes it over.
    assert_eq!(found, expected);
}

#[test]
fn the_oldest_stays_while_a_rule_is_not_full() {
    let yearly = policy(|p| (p.keep_daily, p.keep_yearly) = (Count::Some(2), Count::Some(5)));
    assert_eq!(days(&nights(30), &yearly), ["10-23", "11-20", "11-21"]);
    let full = policy(|p| p.keep_daily = Count::Some(2));
    assert_eq!(days(&nights(30), &full), ["11-20", "11-21"]);
    let monthly = policy(|p| p.keep_monthly = Count::Some(3));
    assert_eq!(days(&nights(30), &monthly), ["10-23", "10-31", "11-21"]);
    let verdicts_of = nights(30);
    let found = verdicts(&verdicts_of, &monthly, &TimeZone::UTC);
    assert_eq!(found[0].reasons, ["monthly oldest"]);
    let all = policy(|p| p.keep_monthly = Count::All);
    assert_eq!(days(&nights(30), &all), ["10-31", "11-21"], "all asks for no more than there are");
}

#[test]
fn borgs_example_of_a_year() {
    // daily 14, monthly 6, yearly 1 over a year and a day, as in borg's manual.
    let rules = policy(|p| {
        (p.keep_daily, p.keep_monthly, p.keep_yearly) = (Count::Some(14), Count::Some(6), Count::Some(1));
    });
    let found = kept(&nights(400), &rules, &TimeZone::UTC);
    assert_eq!(found.len(), 14 + 6 + 1, "{found:?}");
    assert!(found.contains(&"2025-12-31 03:00".to_string()), "{found:?}");
    assert!(found.contains(&"2026-05-31 03:00".to_string()), "{found:?}");
    assert!(found.contains(&"2026-10-31 03:00".to_string()), "{found:?}");
}

#[test]
fn within_keeps_all_that_is_young_and_fills_no_place() {
    let within = policy(|p| p.keep_within = length("2D"));
    assert_eq!(days(&nights(9), &within), ["11-20", "11-21"]);
    let more = policy(|p| (p.keep_within, p.keep_last) = (length("2D"), Count::Some(2)));
    assert_eq!(days(&nights(9), &more), ["11-18", "11-19", "11-20", "11-21"]);
    let weekly = policy(|p| p.keep_within_weekly = length("14D"));
    assert_eq!(days(&nights(30), &weekly), ["11-08", "11-15", "11-21"]);
    let daily = policy(|p| (p.keep_daily, p.keep_within_daily) = (Count::Some(1), length("3D")));
    assert_eq!(days(&nights(9), &daily), ["11-19", "11-20", "11-21"]);
}

#[test]
fn tags_keep() {
    let mut all = nights(5);
    all[0].snapshot.tags = vec!["release".into()];
    let rules = policy(|p| {
        p.keep_tag = vec!["release".into()];
        p.keep_last = Count::Some(1);
    });
    assert_eq!(days(&all, &rules), ["11-17", "11-21"]);
}

#[test]
fn older_than_never_takes_the_newest() {
    let cut = |text: &str| policy(|p| p.older_than = Some(OlderThan::Moment(at(text, &TimeZone::UTC))));
    assert_eq!(days(&nights(4), &cut("2026-11-20T00:00:00Z")), ["11-20", "11-21"]);
    assert_eq!(
        days(&nights(4), &cut("2026-11-20T03:00:00Z")),
        ["11-20", "11-21"],
        "just as old is not older"
    );
    assert_eq!(days(&nights(4), &cut("2027-01-01T00:00:00Z")), ["11-21"]);
    assert_eq!(days(&nights(4), &cut("2020-01-01T00:00:00Z")).len(), 4);
    let both = policy(|p| {
        p.older_than = Some(OlderThan::Moment(at("2026-11-20T00:00:00Z", &TimeZone::UTC)));
        p.keep_weekly = Count::Some(2);
    });
    assert_eq!(days(&nights(9), &both), ["11-15", "11-20", "11-21"]);
}

#[test]
fn same_second_snapshots_are_two() {
    let all = snapshots(&["2026-11-20T03:00:00Z"; 3], &TimeZone::UTC);
    let last = policy(|p| p.keep_last = Count::Some(2));
    let found = verdicts(&all, &last, &TimeZone::UTC);
    let reasons: Vec<String> = found.iter().map(|v| v.reasons.join(", ")).collect();
    assert_eq!(reasons, ["", "last 2", "last 1"]);
    let daily = policy(|p| p.keep_daily = Count::Some(1));
    assert_eq!(kept(&all, &daily, &TimeZone::UTC).len(), 1);
}

#[test]
fn weeks_are_those_of_iso() {
    // 2026-12-31 is a Thursday: the week 53 of 2026 lasts until Sunday, 2027-01-03.
    let times =
        ["2026-12-28T03:00:00Z", "2026-12-31T03:00:00Z", "2027-01-03T03:00:00Z", "2027-01-04T03:00:00Z"];
    let all = snapshots(&times, &TimeZone::UTC);
    let weekly = policy(|p| p.keep_weekly = Count::Some(2));
    assert_eq!(kept(&all, &weekly, &TimeZone::UTC), ["2027-01-03 03:00", "2027-01-04 03:00"]);
}

#[test]
fn leap_days_are_days() {
    let times =
        ["2028-02-28T12:00:00Z", "2028-02-29T00:00:00Z", "2028-02-29T23:59:59Z", "2028-03-01T00:00:00Z"];
    let all = snapshots(&times, &TimeZone::UTC);
    let daily = policy(|p| p.keep_daily = Count::Some(3));
    assert_eq!(
        kept(&all, &daily, &TimeZone::UTC),
        ["2028-02-28 12:00", "2028-02-29 23:59", "2028-03-01 00:00"]
    );
    let monthly = policy(|p| p.keep_monthly = Count::Some(2));
    assert_eq!(kept(&all, &monthly, &TimeZone::UTC), ["2028-02-29 23:59", "2028-03-01 00:00"]);
}

#[test]
fn days_are_those_of_the_zone() {
    let times = ["2026-11-19T23:30:00Z", "2026-11-20T05:00:00Z", "2026-11-20T23:30:00Z"];
    let berlin = zone("Europe/Berlin");
    let all = snapshots(&times, &berlin);
    let daily = policy(|p| p.keep_daily = Count::Some(2));
    assert_eq!(kept(&all, &daily, &TimeZone::UTC), ["2026-11-19 23:30", "2026-11-20 23:30"]);
    assert_eq!(kept(&all, &daily, &berlin), ["2026-11-20 06:00", "2026-11-21 00:30"]);
}

#[test]
fn the_hour_that_comes_twice_is_two() {
    let berlin = zone("Europe/Berlin");
    // 02:30 in summer time, 02:30 in winter time, 03:30.
    let times = ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"];
    let all = snapshots(&times, &berlin);
    let hourly = policy(|p| p.keep_hourly = Count::Some(3));
    assert_eq!(kept(&all, &hourly, &berlin).len(), 3);
    let daily = policy(|p| p.keep_daily = Count::Some(1));
    assert_eq!(kept(&all, &daily, &berlin), ["2026-10-25 03:30"]);
}

#[test]
fn groups_are_thinned_apart() {
    let mut all = nights(4);
    all[0].snapshot.label = "other".into();
    all[1].snapshot.host = "elsewhere".into();
    let last = policy(|p| p.keep_last = Count::Some(1));
    let count = |group_by| {
        let now = at(NOW, &TimeZone::UTC);
        let found = plan(&all, &HashSet::new(), &last, group_by, &TimeZone::UTC, now).unwrap();
        found.iter().filter(|verdict| verdict.is_kept()).count()
    };
    assert_eq!(count(GroupBy::default()), 3);
    assert_eq!(count(GroupBy::parse("host").unwrap()), 2);
    assert_eq!(count(GroupBy::parse("label").unwrap()), 2);
    assert_eq!(count(GroupBy::parse("").unwrap()), 1);
    assert!(GroupBy::parse("paths").is_err());
}

#[test]
fn empty_policies_are_refused() {
    let all = nights(3);
    for empty in [Policy::default(), policy(|p| p.keep_daily = Count::parse("0").unwrap())] {
        assert!(empty.is_empty());
        let now = at(NOW, &TimeZone::UTC);
        let refused = plan(&all, &HashSet::new(), &empty, GroupBy::default(), &TimeZone::UTC, now);
        assert!(matches!(refused, Err(Error::Refused(_))));
    }
    assert_eq!(Count::parse("all"), Ok(Count::All));
    for text in ["-1", "x", "", "1.5"] {
        assert!(Count::parse(text).is_err(), "{text}");
    }
}

#[test]
fn histories_that_would_be_empty_are_named() {
    let mut all = nights(3);
    all[0].snapshot.label = "other".into();
    let going: HashSet<SnapshotId> = [all[0].id, all[1].id].into();
    assert_eq!(emptied(&all, &going), [("host".to_string(), "other".to_string())]);
}

#[test]
fn policies_are_read_from_files() {
    let read = serde_json::from_str::<Policy>;
    let text = r#"{"keep-daily": 7, "keep-monthly": "all", "keep-within": "2D", "keep-tag": ["x"]}"#;
    let expected = policy(|p| {
        (p.keep_daily, p.keep_monthly, p.keep_within) = (Count::Some(7), Count::All, length("2D"));
        p.keep_tag = vec!["x".into()];
    });
    assert_eq!(read(text).unwrap(), expected);
    assert!(read(r#"{"keep-dayly": 7}"#).is_err());
    assert!(read(r#"{"keep-within": "2 days"}"#).is_err());
    assert!(read(r#"{"keep-daily": -1}"#).is_err());
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let count =
        prop_oneof![3 => Just(Count::None), 5 => (1u32..6).prop_map(Count::Some), 1 => Just(Count::All)];
    let within = proptest::option::weighted(0.3, (1u32..400).prop_map(|days| format!("{days}D")));
    (proptest::array::uniform6(count), proptest::array::uniform6(within)).prop_map(|(counts, within)| {
        let within = within.map(|text| text.and_then(|text| length(&text)));
        Policy {
            keep_last: counts[0],
            keep_hourly: counts[1],
            keep_daily: counts[2],
            keep_weekly: counts[3],
            keep_monthly: counts[4],
            keep_yearly: counts[5],
            keep_within: within[0],
            keep_within_hourly: within[1],
            keep_within_daily: within[2],
            keep_within_weekly: within[3],
            keep_within_monthly: within[4],
            keep_within_yearly: within[5],
            ..Policy::default()
        }
    })
}

/// Up to two years back, some in clusters.
fn any_history() -> impl Strategy<Value = Vec<Listed>> {
    let now = at(NOW, &TimeZone::UTC).as_second();
    proptest::collection::vec((0i64..730, 0i64..86_400), 0..60).prop_map(move |ages| {
        let time = |(days, seconds)| Timestamp::from_second(now - days * 86_400 - seconds).unwrap();
        let mut times: Vec<Timestamp> = ages.into_iter().map(time).collect();
        times.sort_unstable();
        times.into_iter().enumerate().map(|(number, time)| snapshot(time, number)).collect()
    })
}

proptest! {
    #[test]
    fn what_stays_once_stays(all in any_history(), policy in any_policy()) {
        prop_assume!(!policy.is_empty());
        let berlin = zone("Europe/Berlin");
        let stays = |all: &[Listed]| -> Vec<Listed> {
            verdicts(all, &policy, &berlin).iter().filter(|v| v.is_kept()).map(|v| v.listed.clone()).collect()
        };
        let once = stays(&all);
        prop_assert_eq!(&stays(&once), &once);
        // The newest is kept by any rule that counts.
        let counts = policy.rules().iter().any(|rule| rule.count != Count::None);
        if counts && let Some(newest) = all.last() {
            prop_assert!(once.contains(newest));
        }
    }

    #[test]
    fn the_order_of_the_list_does_not_matter(all in any_history(), policy in any_policy()) {
        prop_assume!(!policy.is_empty());
        let reversed: Vec<Listed> = all.iter().rev().cloned().collect();
        prop_assert_eq!(
            verdicts(&all, &policy, &TimeZone::UTC),
            verdicts(&reversed, &policy, &TimeZone::UTC)
        );
    }

    #[test]
    fn no_rule_keeps_more_than_it_may(all in any_history(), count in 1u32..9) {
        let rules = policy(|p| (p.keep_daily, p.keep_weekly) = (Count::Some(count), Count::Some(count)));
        let found = verdicts(&all, &rules, &TimeZone::UTC);
        for rule in ["daily ", "weekly "] {
            let counted = |v: &&Verdict| v.reasons.iter().any(|r| r.starts_with(rule) && !r.ends_with("oldest"));
            prop_assert!(found.iter().filter(counted).count() <= count as usize);
        }
    }
}
