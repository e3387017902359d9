//! Killed at any moment, cut from power, without room: what was listed before still restores, and
//! the next backup succeeds.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use varv::error::Error;
use varv::store::Fault;

use support::full::back_up_until_full;
use support::make::{Random, change, tree};
use support::system::{Mount, skip};
use support::tree::{assert_tree, read};
use support::world::{States, World};
use support::{Varv, args};

const KILLS: usize = 25;
/// What a power cut leaves differs; so many outcomes are tried for each point.
const SEEDS: u64 = 6;

#[test]
fn a_backup_is_killed_at_any_moment() {
    let varv = Varv::new();
    let source = varv.dir("source");
    tree(&source, 1);
    let mut random = Random(std::process::id().into());
    let mut states = States::new();
    let mut usual = 0;
    for tag in ["first", "second"] {
        states.insert(tag.into(), read(&source));
        let started = Instant::now();
        varv.backup(args!["--tag", tag, &source]);
        usual = started.elapsed().as_micros() as u64;
        change(&source, &mut random);
    }
    let mut published = 0;
    for number in 0..KILLS {
        change(&source, &mut random);
        let tag = format!("killed-{number}");
        states.insert(tag.clone(), read(&source));
        let listed = varv.snapshots();
        let mut child = varv.command(args!["backup", "-q", "--tag", &tag, &source]).spawn().unwrap();
        sleep(Duration::from_micros(random.below(usual * 3 / 2)));
        child.kill().unwrap();
        child.wait().unwrap();
        let now = varv.snapshots();
        published += now.len() - listed.len();
        assert!(listed.iter().all(|row| now.contains(row)), "a snapshot vanished");
        restore_newest(&varv, &source, &states, 2);
        if number % 3 == 0 {
            let tag = format!("whole-{number}");
            states.insert(tag.clone(), read(&source));
            varv.backup(args!["--tag", &tag, &source]);
        }
    }
    varv.backup(args!["--tag", "last", &source]);
    states.insert("last".into(), read(&source));
    restore_newest(&varv, &source, &states, usize::MAX);
    varv.ok(args!["check", "--read-data", "--quiet"]);
    println!("{published} of {KILLS} were complete when they were killed");
    // Nothing of that rests on the index.
    fs::remove_dir_all(varv.repository.join("index")).unwrap();
    restore_newest(&varv, &source, &states, 3);
}

/// Restores and compares the newest snapshots.
fn restore_newest(varv: &Varv, source: &Path, states: &States, count: usize) {
    for row in varv.snapshots().iter().rev().take(count) {
        let target = varv.path("restored");
        varv.restore(args!["--snapshot", row["id"].as_str().unwrap(), source, &target]);
        assert_tree(&states[row["tags"][0].as_str().unwrap()], &target);
        fs::remove_dir_all(&target).unwrap();
    }
}

#[test]
fn the_first_backup_and_the_making_of_the_index_are_killed() {
    let varv = Varv::new();
    let source = varv.dir("source");
    tree(&source, 1);
    let states = States::from([("whole".to_string(), read(&source))]);
    let mut random = Random(std::process::id().into());
    for number in 0..10 {
        let mut child = varv.command(args!["backup", "-q", "--tag", "whole", &source]).spawn().unwrap();
        sleep(Duration::from_micros(random.below(60_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        if number % 2 == 0 {
            let _ = fs::remove_dir_all(varv.repository.join("index"));
        }
    }
    varv.backup(args!["--tag", "whole", &source]);
    restore_newest(&varv, &source, &states, 2);
}

#[test]
fn a_signal_stops_cleanly_and_what_was_stored_is_found_again() {
    let varv = Varv::new();
    let mut child = varv
        .command(args!["backup", "-q", "--stdin", "stream"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let content = Random(1).bytes(40 << 20);
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(&content).unwrap();
    rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    // The pipe stays open, and nothing comes.
    assert_eq!(child.wait().unwrap().code(), Some(143));
    drop(pipe);
    assert!(varv.snapshots().is_empty());
    let again = varv.path("again");
    fs::write(&again, &content).unwrap();
    let counted = varv.backup(args![&again]);
    assert!(counted["bytes_new"].as_u64().unwrap() < 10 << 20, "{counted}");
}

#[test]
fn power_is_cut_at_every_point_of_durability() {
    let mut world = World::new();
    let listed = world.tags();
    world.store = world.store.after_power_cut(0);
    // A cut shows only afterwards, so each point needs a store of its own.
    let twin = world.store.after_power_cut(0);
    let mut random = Random(7);
    (0..3).for_each(|_| change(&world.source, &mut random));
    let mut dry = world.with(twin, true);
    dry.backup().unwrap();
    let points = dry.store.points();
    println!("{points} points of durability");
    assert!(points > 3, "{points}");
    for point in 1..=points + 1 {
        for seed in 0..SEEDS {
            let mut cut = world.with(world.store.after_power_cut(0), true);
            cut.store.cut_power_at(point);
            cut.backup().unwrap();
            let index_is_kept = seed % 2 == 1;
            let mut after = cut.with(cut.store.after_power_cut(point * SEEDS + seed), index_is_kept);
            // Behind the last point, the backup has said that it is done.
            let promised = if point > points { cut.tags() } else { listed.clone() };
            after.must_be_well(&promised);
        }
    }
}

#[test]
fn every_operation_of_the_store_fails_once() {
    let mut world = World::new();
    let listed = world.tags();
    world.store = world.store.after_power_cut(0);
    change(&world.source, &mut Random(8));
    let mut dry = world.with(world.store.after_power_cut(0), true);
    dry.backup().unwrap();
    let operations = dry.store.operations();
    println!("{operations} operations");
    for operation in 1..=operations {
        for fault in [Fault::Io, Fault::NoSpace] {
            let mut failing = world.with(world.store.after_power_cut(0), true);
            failing.store.fail_at(operation, fault);
            // Some operations may fail without harm, and after the last one nothing is written.
            match (failing.backup(), fault) {
                (Err(e), Fault::NoSpace) => assert!(e.is_out_of_space(), "{operation}: {e}"),
                (Err(e), Fault::Io) => assert!(!matches!(e, Error::Internal(_)), "{operation}: {e}"),
                (Ok(()), _) => {}
            }
            failing.store.heal();
            failing.must_be_well(&listed);
        }
    }
}

#[test]
fn a_full_file_system() {
    let varv = Varv::without_repository();
    let point = varv.dir("small");
    let Some(_mounted) = Mount::tmpfs(24, &point) else { return };
    fill_up(varv, &point);
}

#[test]
fn a_full_ext4() {
    let Some(device) = support::system::Loop::new(&vec![0; 32 << 20], 512) else { return };
    if !support::system::run("mkfs.ext4", &["-q", device.path.to_str().unwrap()]) {
        return skip("no mkfs.ext4").unwrap_or_default();
    }
    let varv = Varv::without_repository();
    let point = varv.dir("small");
    let Some(_mounted) = Mount::new(&[device.path.to_str().unwrap()], &point) else { return };
    fill_up(varv, &point);
}

/// Backs up to a file system until it is full; some room, and all goes on.
fn fill_up(mut varv: Varv, point: &Path) {
    varv.repository = point.join("repository");
    let reserve = point.join("reserve");
    fs::write(&reserve, vec![1; 8 << 20]).unwrap();
    varv.ok(args!["init", "-q", "--encryption", "none"]);
    let (source, mut states) = back_up_until_full(&varv, &[]);
    let listed = varv.snapshots();
    assert!(listed.len() > 1);
    restore_newest(&varv, &source, &states, usize::MAX);
    fs::remove_file(reserve).unwrap();
    states.insert("after".into(), read(&source));
    varv.backup(args!["--tag", "after", &source]);
    assert_eq!(varv.snapshots().len(), listed.len() + 1);
    varv.ok(args!["check", "--read-data", "--quiet"]);
    restore_newest(&varv, &source, &states, usize::MAX);
}

#[test]
fn a_full_target() {
    let varv = Varv::new();
    let source = varv.dir("source");
    tree(&source, 1);
    fs::write(source.join("large"), Random(1).bytes(6 << 20)).unwrap();
    varv.backup(args![&source]);
    let point = varv.dir("small");
    let Some(_mounted) = Mount::tmpfs(4, &point) else { return };
    varv.ends(1, args!["restore", "-q", &source, point.join("target")]).says(&["No space left"]);
}
