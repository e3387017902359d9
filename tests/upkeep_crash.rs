//! Forget and prune killed at any moment, cut from power, without room: the repository is as it
//! was before or as it is to be, and goes on.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod support;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use varv::error::{Error, Result};
use varv::id::SnapshotId;
use varv::observe::{Event, Observer, Silent, Stop};
use varv::repo::Intent;
use varv::store::Fault;
use varv::upkeep::prune::{self, PruneOptions, Pruned};

use support::full::back_up_until_full;
use support::make::{Random, change, change_rows, rows, tree};
use support::system::{Loop, Mount, run, skip};
use support::tree::{assert_tree, read};
use support::world::{STOP, States, World};
use support::{Varv, args};

const SEEDS: u64 = 2;

fn forget(world: &World, tags: &[&str]) -> Result<Vec<SnapshotId>> {
    let repo = world.open(Intent::Add)?;
    let found = repo.snapshots()?.listed;
    let chosen = found.iter().filter(|listed| tags.contains(&listed.snapshot.tags[0].as_str()));
    repo.forget(&chosen.map(|listed| listed.id).collect::<Vec<_>>())
}

fn undo(world: &World) -> Result<()> {
    let repo = world.open(Intent::Add)?;
    let ids: Vec<SnapshotId> = repo.forgotten()?.listed.iter().map(|listed| listed.id).collect();
    repo.bring_back(&ids)
}

fn pruned(world: &World) -> Result<Pruned> {
    prune_until(world, &Silent, &STOP)
}

fn prune_until(world: &World, observer: &dyn Observer, stop: &Stop) -> Result<Pruned> {
    let options = PruneOptions { max_unused: 0.0, max_repack: None };
    let mut repo = world.open(Intent::Read)?;
    let planned = prune::plan(&repo, &options, &Silent, &STOP)?;
    prune::execute(&mut repo, planned, &options, Duration::ZERO, "test", observer, stop).map(|(_, done)| done)
}

/// With six snapshots, all durable.
fn world() -> World {
    let mut world = World::new();
    let mut random = Random(3);
    for _ in 0..5 {
        change(&world.source, &mut random);
        world.backup().unwrap();
    }
    world.store = world.store.after_power_cut(0);
    world
}

fn twin(world: &World) -> World {
    world.with(world.store.after_power_cut(0), true)
}

fn tags(world: &World) -> BTreeSet<String> {
    world.tags().into_iter().collect()
}

fn set(tags: &[&str]) -> BTreeSet<String> {
    tags.iter().map(ToString::to_string).collect()
}

/// Nothing of what must be there is gone, nothing hangs, and pruning goes on.
fn must_be_well(world: &World, listed: &[&str]) {
    let there = tags(world);
    assert!(listed.iter().all(|tag| there.contains(*tag)), "{there:?} lack some of {listed:?}");
    world.packs_above_others();
    pruned(world).unwrap();
    world.restore_all();
    // What frames that are gone now were compressed against goes the next time, and so on down.
    let is_done = (0..CHAIN_LEN).any(|_| pruned(world).unwrap().bytes_freed == 0);
    assert!(is_done, "nothing is left to be freed");
}

/// Frames that are compressed against each other, in a row.
const CHAIN_LEN: usize = 16;

const KEPT: [&str; 2] = ["3", "5"];
const GOING: [&str; 4] = ["1", "2", "4", "6"];

#[test]
fn power_is_cut_at_every_point_of_a_forget() {
    let world = world();
    let dry = twin(&world);
    forget(&dry, &GOING).unwrap();
    let points = dry.store.points();
    assert!(points > 3, "{points}");
    for point in 1..=points + 1 {
        for seed in 0..SEEDS {
            let cut = twin(&world);
            cut.store.cut_power_at(point);
            forget(&cut, &GOING).unwrap();
            let after = cut.with(cut.store.after_power_cut(point * SEEDS + seed), seed % 2 == 1);
            let there = tags(&after);
            assert!(KEPT.iter().all(|tag| there.contains(*tag)), "{there:?}");
            if point > points {
                assert_eq!(there, set(&KEPT), "it had said that it was done");
            }
            // Whatever is gone can be brought back.
            undo(&after).unwrap();
            assert_eq!(tags(&after).len(), 6);
            must_be_well(&after, &["1", "2", "3", "4", "5", "6"]);
        }
    }
}

#[test]
fn power_is_cut_at_every_point_of_a_prune() {
    let world = world();
    forget(&world, &GOING).unwrap();
    let world = twin(&world);
    let dry = twin(&world);
    let done = pruned(&dry).unwrap();
    assert!(done.packs_removed > 0 && done.packs_repacked > 0, "{done:?}");
    assert!(!world.packs_above_others().is_empty(), "there are delta frames");
    assert!(done.bytes_freed > 0);
    let points = dry.store.points();
    println!("{points} points of durability, {done:?}");
    for point in 1..=points + 1 {
        for seed in 0..SEEDS {
            let cut = twin(&world);
            cut.store.cut_power_at(point);
            pruned(&cut).unwrap();
            let mut after = cut.with(cut.store.after_power_cut(point * SEEDS + seed), seed % 2 == 1);
            must_be_well(&after, &KEPT);
            after.backup().unwrap();
        }
    }
}

/// Asks to stop when packs are about to be removed.
struct StopAtRemoval(Stop);

impl Observer for StopAtRemoval {
    fn event(&self, event: Event) {
        if matches!(event, Event::Phase { name: "removing packs", .. }) {
            self.0.request(2);
        }
    }
}

/// Thousands of packs may be about to go, and the tables of all are read before the first one does.
#[test]
fn a_prune_is_stopped_before_it_removes() {
    let world = world();
    forget(&world, &GOING).unwrap();
    let packs = || world.open(Intent::Read).unwrap().list_packs().unwrap();
    let before = packs();
    let observer = StopAtRemoval(Stop::new());
    let stopped = prune_until(&world, &observer, &observer.0);
    assert!(matches!(stopped, Err(Error::Stopped(2))), "{stopped:?}");
    assert_eq!(packs(), before);
    must_be_well(&world, &KEPT);
}

/// How an operation fails: in turns, or in both ways in a long run.
fn faults(operation: u64) -> Vec<Fault> {
    match (std::env::var_os("VARV_TEST_ROUNDS"), operation % 2) {
        (Some(_), _) => vec![Fault::Io, Fault::NoSpace],
        (None, 0) => vec![Fault::Io],
        (None, _) => vec![Fault::NoSpace],
    }
}

#[test]
fn every_operation_of_a_prune_fails_once() {
    let world = world();
    forget(&world, &GOING).unwrap();
    let world = twin(&world);
    let dry = twin(&world);
    pruned(&dry).unwrap();
    let operations = dry.store.operations();
    println!("{operations} operations");
    for operation in 1..=operations {
        for fault in faults(operation) {
            let failing = twin(&world);
            failing.store.fail_at(operation, fault);
            match (pruned(&failing), fault) {
                (Err(e), Fault::NoSpace) => assert!(e.is_out_of_space(), "{operation}: {e}"),
                (Err(e), Fault::Io) => assert!(!matches!(e, Error::Internal(_)), "{operation}: {e}"),
                (Ok(_), _) => {}
            }
            failing.store.heal();
            must_be_well(&failing, &KEPT);
        }
    }
}

#[test]
fn every_operation_of_a_forget_fails_once() {
    let world = world();
    let dry = twin(&world);
    forget(&dry, &GOING).unwrap();
    for operation in 1..=dry.store.operations() {
        for fault in faults(operation) {
            let failing = twin(&world);
            failing.store.fail_at(operation, fault);
            let result = forget(&failing, &GOING);
            failing.store.heal();
            // A full disk is no reason to fail: what has no room is gone for good, and named.
            let lost = match (result, fault) {
                (Ok(lost), _) => lost.len(),
                (Err(_), Fault::Io) => 0,
                (Err(e), Fault::NoSpace) => panic!("{operation}: {e}"),
            };
            assert!(lost == 0 || fault == Fault::NoSpace);
            undo(&failing).unwrap();
            assert_eq!(tags(&failing).len(), 6 - lost, "{operation}");
            failing.restore_all();
        }
    }
}

/// What a prune that stops in the middle of writing leaves takes no room.
#[test]
fn what_has_no_room_is_taken_back() {
    let world = world();
    forget(&world, &GOING).unwrap();
    let world = twin(&world);
    let dry = twin(&world);
    let packs = |world: &World| {
        world.store.names().into_iter().filter(|name| name.starts_with("packs/")).collect::<BTreeSet<_>>()
    };
    let (before, operations) = (packs(&world), dry.store.operations());
    pruned(&dry).unwrap();
    let mut taken_back = 0;
    for operation in operations + 1..=dry.store.operations() {
        let full = twin(&world);
        full.store.fail_at(operation, Fault::NoSpace);
        if pruned(&full).is_err() {
            taken_back += 1;
            let after = packs(&full);
            assert!(after.is_subset(&before), "{operation}: {:?}", after.difference(&before));
        }
    }
    assert!(taken_back > 3, "{taken_back}");
}

/// What the source was when the run of this tag began, and a repository with some nights.
fn nights(varv: &Varv, count: usize) -> (PathBuf, States, Random) {
    let source = varv.dir("source");
    tree(&source, 1);
    fs::write(source.join("table"), rows(&mut Random(1), 1 << 20)).unwrap();
    let (mut states, mut random) = (States::new(), Random(std::process::id().into()));
    for night in 0..count {
        let tag = format!("night{night}");
        states.insert(tag.clone(), read(&source));
        varv.backup(args!["--tag", tag, &source]);
        change_nightly(&source, &mut random);
    }
    (source, states, random)
}

/// The table's nights are compressed against each other.
fn change_nightly(source: &Path, random: &mut Random) {
    change(source, random);
    change_rows(&source.join("table"), random);
}

fn restore_all(varv: &Varv, source: &Path, states: &States) {
    for row in varv.snapshots() {
        let target = varv.path("restored");
        varv.restore(args!["--snapshot", row["id"].as_str().unwrap(), source, &target]);
        assert_tree(&states[row["tags"][0].as_str().unwrap()], &target);
        fs::remove_dir_all(&target).unwrap();
    }
}

/// Rounds of a test; `VARV_TEST_ROUNDS` in the environment makes it longer.
fn rounds(usual: usize) -> usize {
    std::env::var("VARV_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Of each round of five, what is killed.
const KILLED: [&[&str]; 5] = [
    &["forget", "-q", "--keep-last", "2"],
    &["prune", "-q", "--max-unused", "0"],
    &["retier", "-q", "--older-than", "now", "--to", "warm"],
    &["check", "-q", "--read-data"],
    &["repair", "-q"],
];

#[test]
fn upkeep_is_killed_at_any_moment() {
    let varv = Varv::new();
    let (source, mut states, mut random) = nights(&varv, 3);
    let mut killed = 0;
    for round in 0..rounds(20) {
        let tag = format!("round{round}");
        states.insert(tag.clone(), read(&source));
        varv.backup(args!["--tag", &tag, &source]);
        change_nightly(&source, &mut random);
        let words: Vec<OsString> = KILLED[round % KILLED.len()].iter().map(OsString::from).collect();
        if round % KILLED.len() == 1 {
            varv.ok(args!["forget", "-q", "--keep-last", "2"]);
        }
        let usual = {
            // A dry run takes about as long up to where it begins to write.
            let started = Instant::now();
            varv.ok(args!["prune", "-q", "--dry-run"]);
            started.elapsed().as_micros() as u64
        };
        let newest = varv.snapshots().pop().unwrap();
        let mut child = varv.command(&words).spawn().unwrap();
        sleep(Duration::from_micros(random.below(usual * 3)));
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
        assert!(varv.snapshots().contains(&newest), "the newest vanished");
        if round % 4 == 0 {
            restore_all(&varv, &source, &states);
            varv.ok(args!["check", "--read-data", "--quiet"]);
        }
    }
    println!("{killed} were killed before they were done");
    restore_all(&varv, &source, &states);
    varv.ok(args!["undo-forget", "-q"]);
    restore_all(&varv, &source, &states);
    varv.ok(args!["forget", "-q", "--keep-last", "1"]);
    varv.ok(args!["prune", "-q", "--max-unused", "0"]);
    restore_all(&varv, &source, &states);
    varv.ok(args!["check", "--read-data", "--quiet"]);
    let tmp = varv.repository.join("tmp");
    assert_eq!(fs::read_dir(tmp).unwrap().count(), 0, "unfinished objects were swept");
}

#[test]
fn a_full_tmpfs_is_pruned() {
    let varv = Varv::without_repository();
    let point = varv.dir("small");
    let options = ["-t", "tmpfs", "-o", "size=24m,nr_inodes=300", "tmpfs", point.to_str().unwrap()];
    let Some(_mounted) = Mount::new(&options[..5], &point) else { return };
    prune_when_full(varv, &point);
}

#[test]
fn a_full_ext4_is_pruned() {
    let Some(device) = Loop::new(&vec![0; 32 << 20], 512) else { return };
    // No blocks are kept for root.
    if !run("mkfs.ext4", &["-q", "-m", "0", "-N", "400", device.path.to_str().unwrap()]) {
        return skip("no mkfs.ext4").unwrap_or_default();
    }
    let varv = Varv::without_repository();
    let point = varv.dir("small");
    let Some(_mounted) = Mount::new(&[device.path.to_str().unwrap()], &point) else { return };
    prune_when_full(varv, &point);
}

/// Backs up until the file system is full, then takes the last byte and the last inode as well.
fn prune_when_full(mut varv: Varv, point: &Path) {
    varv.repository = point.join("repository");
    varv.ok(args!["init", "-q", "--encryption", "none"]);
    // What is made against something keeps it, and moving both takes room.
    let (source, mut states) = back_up_until_full(&varv, args!["--no-delta"]);
    assert!(varv.snapshots().len() > 2);
    fill_up(&point.join("filler"));
    assert!(!varv.snapshots().is_empty(), "it can be listed");
    let newest = varv.snapshots().pop().unwrap();
    varv.ok(args!["forget", "-q", "--keep-last", "1"]);
    assert_eq!(varv.snapshots(), [newest]);
    let done = varv.json(args!["prune"]);
    assert!(done["done"]["bytes_freed"].as_u64().unwrap() > 2 << 20, "{done}");
    restore_all(&varv, &source, &states);
    varv.ok(args!["check", "--read-data", "--quiet"]);
    varv.ok(args!["prune", "-q", "--max-unused", "0"]);
    states.insert("after".into(), read(&source));
    varv.backup(args!["--tag", "after", &source]);
    restore_all(&varv, &source, &states);
    varv.ok(args!["check", "--read-data", "--quiet"]);
}

/// Takes all bytes, then all inodes.
fn fill_up(folder: &Path) {
    let _ = fs::create_dir(folder);
    let _ = File::create(folder.join("bytes")).map(|mut file| {
        for len in [1 << 20, 4096, 1] {
            while file.write_all(&vec![7; len]).is_ok() {}
        }
        let _ = file.sync_all();
    });
    (0..).take_while(|number| File::create(folder.join(number.to_string())).is_ok()).for_each(drop);
}
