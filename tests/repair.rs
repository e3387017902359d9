//! Every kind of object damaged in every way: check names it, repair saves what can be read, the
//! next backup heals what its source still has, and nothing ever gets worse.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;
use tempfile::TempDir;
use varv::backup::{self, BackupOptions};
use varv::chunker::Params;
use varv::observe::{Silent, Stop};
use varv::repo::{CreateOptions, Intent, OpenOptions, Repo};
use varv::store::{Damage, Fault, MemoryStore};
use varv::upkeep::check::{self, CheckOptions, Part};
use varv::upkeep::repair;

use support::make::{Random, bytes, overwrite};
use support::tree::{Tree, assert_tree, read};
use support::world::backup_options;
use support::{Varv, args};

const KINDS: [&str; 7] =
    ["deleted", "emptied", "cut short", "in a frame", "in the trailer", "in the header", "grown"];

fn damage(object: &Path, kind: &str) {
    support::chmod(object, 0o600);
    let len = fs::metadata(object).unwrap().len();
    let flip = |at: u64| overwrite(object, at, &[fs::read(object).unwrap()[at as usize] ^ 8]);
    match kind {
        "deleted" => fs::remove_file(object).unwrap(),
        "emptied" => File::create(object).map(drop).unwrap(),
        "cut short" => File::options().write(true).open(object).unwrap().set_len(len / 2).unwrap(),
        "in a frame" => flip(len / 2),
        "in the trailer" => flip(len - 60),
        "grown" => File::options().append(true).open(object).unwrap().write_all(&[0; 3000]).unwrap(),
        _ => flip(20),
    }
}

/// A repository with three snapshots, and what each was made of.
struct House {
    varv: Varv,
    source: PathBuf,
    states: BTreeMap<String, Tree>,
}

impl House {
    fn new() -> Self {
        let varv = Varv::new();
        let source = varv.dir("source");
        let mut house = House { varv, source, states: BTreeMap::new() };
        for folder in ["a", "b"] {
            fs::create_dir(house.source.join(folder)).unwrap();
            for number in 0..20 {
                let name = house.source.join(folder).join(number.to_string());
                fs::write(name, bytes(number + 100, 9_000 * number as usize)).unwrap();
            }
        }
        for night in 0..3 {
            fs::write(house.source.join(format!("a/night{night}")), bytes(night, 150_000)).unwrap();
            house.backup();
        }
        house
    }

    fn backup(&mut self) {
        let done = self.varv.run(args!["--json", "backup", &self.source]);
        assert_eq!(done.code, Some(0), "{done:?}");
        let id = done.json()["snapshot"].as_str().unwrap().to_string();
        self.states.insert(id, read(&self.source));
    }

    /// The later ones are compressed against the one before, in packs with something else.
    fn three_nights_of_a_table(&mut self) {
        let mut table = bytes(5, 2_000_000);
        for night in 3..6 {
            fs::write(self.source.join("table"), &table).unwrap();
            fs::write(self.source.join(format!("b/night{night}")), bytes(night, 150_000)).unwrap();
            self.backup();
            (0..table.len()).step_by(50_000).for_each(|at| table[at] ^= 1);
        }
    }

    fn json(&self, words: &[OsString]) -> (i32, Value) {
        let done = self.varv.run(&[args!["--json"], words].concat());
        assert!(matches!(done.code, Some(0 | 4)), "{words:?}: {done:?}");
        (done.code.unwrap(), done.json())
    }

    fn objects(&self, folder: &str) -> Vec<PathBuf> {
        let mut objects = Vec::new();
        list(&self.varv.repository.join(folder), &mut objects);
        objects.sort();
        objects
    }

    /// Each snapshot restores byte for byte, or the last check named it.
    fn every_snapshot_restores_or_is_named(&self, report: &Value) {
        let named = report["damaged"].to_string();
        for row in self.varv.snapshots() {
            let id = row["id"].as_str().unwrap();
            let target = self.varv.path("restored");
            let words = args!["restore", "-q", "--snapshot", id, &self.source, &target];
            match self.varv.run(words).code {
                Some(0) => assert_tree(&self.states[id], &target),
                // Of a path that many snapshots have, some are named and the others counted.
                _ => assert!(
                    named.contains(&id[..8]) || named.contains(" more"),
                    "{id} is not named in {named}"
                ),
            }
            let _ = fs::remove_dir_all(&target);
        }
    }
}

fn list(folder: &Path, objects: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => list(&path, objects),
            false => objects.push(path),
        }
    }
}

fn damaged(report: &Value) -> usize {
    report["damaged"].as_array().unwrap().len()
}

#[test]
fn packs_of_every_kind_damaged_in_every_way() {
    for kind in KINDS {
        for number in 0..6 {
            let mut house = House::new();
            let packs = house.objects("packs");
            assert_eq!(packs.len(), 6);
            let whole = fs::read(&packs[number]).unwrap();
            let is_data = whole[10] == 1;
            damage(&packs[number], kind);
            let (code, before) = house.json(args!["check", "--read-data"]);
            assert_eq!(code, 4, "{kind} {number}");
            house.every_snapshot_restores_or_is_named(&before);

            let (_, plan) = house.json(args!["repair", "--dry-run"]);
            let untouched = house.objects("packs");
            let (code, first) = house.json(args!["repair"]);
            assert!(damaged(&first) <= damaged(&before), "{kind} {number}: worse: {first}");
            assert_eq!(plan["packs"], first["packs"], "{kind}: the plan is what is done");
            assert!(code == 4 || kind.starts_with("in ") || kind == "grown", "{kind}");
            let is_mendable = ["in the trailer", "in the header", "grown"].contains(&kind);
            if is_mendable {
                assert_eq!((code, damaged(&first)), (0, 0), "{kind} {number}: {first}");
                assert_eq!(plan["packs_mended"], first["packs_mended"], "{kind}");
                assert_eq!(fs::read(&packs[number]).unwrap(), whole, "{kind}: it is as it was");
                assert_eq!(untouched, house.objects("packs"), "{kind}");
            }
            let (_, second) = house.json(args!["repair"]);
            assert_eq!(second["packs_written"], 0, "a second run does nothing");
            assert_eq!(second["damaged"], first["damaged"]);

            house.backup();
            let (code, healed) = house.json(args!["check", "--read-data"]);
            assert!(code == 0 || !is_data, "{kind} {number}: {healed}");
            house.every_snapshot_restores_or_is_named(&healed);
            let (code, last) = house.json(args!["repair"]);
            assert!(code == 0 || !is_data, "{last}");
            let (code, clean) = house.json(args!["check", "--read-data"]);
            if is_data {
                assert_eq!((code, clean["notes"].to_string().as_str()), (0, "[]"), "{kind} {number}");
                assert_eq!(packs[number].exists(), is_mendable, "{kind}: nothing needs it any more");
            }
            house.every_snapshot_restores_or_is_named(&clean);
        }
    }
}

/// Chunks that are stored anew in another place would not help frames that are made against the pack.
#[test]
fn what_is_compressed_against_a_mended_pack_can_be_read_again() {
    for kind in ["in the trailer", "grown"] {
        let mut house = House::new();
        house.three_nights_of_a_table();
        for pack in house.objects("packs") {
            damage(&pack, kind);
        }
        let (code, report) = house.json(args!["repair"]);
        assert_eq!((code, damaged(&report)), (0, 0), "{kind}: {report}");
        let (code, report) = house.json(args!["check", "--read-data"]);
        assert_eq!((code, damaged(&report)), (0, 0), "{kind}: {report}");
        let stats = house.varv.run(args!["--json", "stats"]).json();
        assert!(stats["saved"]["bytes_deltas"].as_u64().unwrap() > 0, "{stats}");
        house.every_snapshot_restores_or_is_named(&report);
    }
}

/// Once what it hurt is forgotten, it is in nobody's way.
#[test]
fn a_base_whose_table_is_lost_does_not_stop_prune() {
    let mut house = House::new();
    house.three_nights_of_a_table();
    let base =
        house.objects("packs").into_iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
    support::chmod(&base, 0o600);
    overwrite(&base, fs::metadata(&base).unwrap().len() - 90, &[7; 50]);
    assert_eq!(house.json(args!["check", "--read-data"]).0, 4);
    house.json(args!["repair"]);
    house.backup();
    let restores = |id: &str| {
        let target = house.varv.path("restored");
        let done = house.varv.run(args!["restore", "-q", "--snapshot", id, &house.source, &target]);
        let _ = fs::remove_dir_all(&target);
        done.code == Some(0)
    };
    let ids: Vec<String> =
        house.varv.snapshots().iter().map(|row| row["id"].as_str().unwrap().to_string()).collect();
    let hurt: Vec<&String> = ids.iter().filter(|id| !restores(id)).collect();
    assert!(!hurt.is_empty() && hurt.len() < ids.len(), "{hurt:?}");
    for id in hurt {
        assert_eq!(house.varv.run(args!["forget", id]).code, Some(0));
    }
    let pruned = house.varv.run(args!["prune"]);
    assert_eq!(pruned.code, Some(0), "{pruned:?}");
    assert!(!base.exists());
    let (code, report) = house.json(args!["check", "--read-data"]);
    assert_eq!((code, damaged(&report)), (0, 0), "{report}");
    house.every_snapshot_restores_or_is_named(&report);
}

#[test]
fn snapshots_configurations_and_state() {
    for kind in ["emptied", "cut short", "in a frame"] {
        let mut house = House::new();
        let snapshot = house.objects("snapshots")[0].clone();
        let whole = fs::read(&snapshot).unwrap();
        damage(&snapshot, kind);
        damage(&house.varv.repository.join("config"), kind);
        house.json(args!["check", "--read-data"]);
        for state in house.objects("state") {
            damage(&state, kind);
        }
        let (code, before) = house.json(args!["check"]);
        assert_eq!(code, 4);
        let id = snapshot.file_name().unwrap().to_str().unwrap();
        assert!(before["damaged"].to_string().contains(id), "{before}");
        let (code, report) = house.json(args!["repair"]);
        assert_eq!((code, damaged(&report)), (0, 0), "{kind}: {report}");
        assert_eq!(report["snapshots"][0]["id"], id);
        match kind {
            "in a frame" => assert_eq!(fs::read(&snapshot).unwrap(), whole, "one bit is put right"),
            _ => assert!(!snapshot.exists()),
        }
        let aside = house.varv.repository.join("damaged").join(id);
        assert_eq!(aside.exists(), kind == "cut short", "{kind}");
        house.backup();
        let (code, clean) = house.json(args!["check", "--read-data"]);
        assert_eq!(code, 0, "{clean}");
        house.every_snapshot_restores_or_is_named(&clean);
    }
}

#[test]
fn many_packs_at_once_and_a_source_that_changed() {
    let mut house = House::new();
    let mut random = Random(7);
    for (number, pack) in house.objects("packs").into_iter().enumerate() {
        let len = fs::metadata(&pack).unwrap().len();
        if fs::read(&pack).unwrap()[10] == 1 {
            damage(&pack, KINDS[3 + number % 3]);
            let at = random.below(len);
            support::chmod(&pack, 0o600);
            overwrite(&pack, at, &[!fs::read(&pack).unwrap()[at as usize]]);
        }
    }
    fs::remove_file(house.source.join("a/night0")).unwrap();
    house.json(args!["check", "--read-data"]);
    house.json(args!["repair"]);
    house.backup();
    let (_, report) = house.json(args!["check", "--read-data"]);
    house.every_snapshot_restores_or_is_named(&report);
    let newest = house.varv.snapshots().pop().unwrap()["id"].as_str().unwrap()[..8].to_string();
    assert!(!report["damaged"].to_string().contains(&newest), "what was backed up last is whole: {report}");
}

#[test]
fn check_and_repair_are_killed_at_any_moment() {
    let mut house = House::new();
    let mut random = Random(std::process::id().into());
    for round in 0..6 {
        let packs = house.objects("packs");
        let pack = &packs[random.below(packs.len() as u64) as usize];
        damage(pack, KINDS[3 + round % 3]);
        for command in [&["check", "--read-data"][..], &["repair"], &["repair"], &["check", "--read-data"]] {
            let started = Instant::now();
            let words: Vec<OsString> = command.iter().map(OsString::from).collect();
            let mut child = house
                .varv
                .command(&words)
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            sleep(Duration::from_micros(random.below(60_000)));
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(started.elapsed() < Duration::from_secs(60));
        }
        let (_, before) = house.json(args!["check", "--read-data"]);
        house.every_snapshot_restores_or_is_named(&before);
        house.json(args!["repair"]);
        house.backup();
    }
    let (_, report) = house.json(args!["check", "--read-data"]);
    house.every_snapshot_restores_or_is_named(&report);
}

/// A repository in memory with a damaged pack and the means to look at it.
struct Memory {
    store: MemoryStore,
    folder: TempDir,
    source: TempDir,
}

impl Memory {
    fn new() -> Self {
        let (store, folder, source) =
            (MemoryStore::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for number in 0..8 {
            fs::write(source.path().join(number.to_string()), bytes(number, 120_000)).unwrap();
        }
        let chunker = Params::parse("fastcdc:4K,16K,64K").unwrap();
        let options = CreateOptions { secret: None, slot: "s".into(), chunker, tiers: BTreeMap::new() };
        Repo::create_on(&store, options).unwrap();
        let memory = Memory { store, folder, source };
        memory.backup(&memory.store).unwrap();
        memory
    }

    fn with<T>(
        &self,
        store: &MemoryStore,
        intent: Intent,
        work: impl FnOnce(&Repo) -> varv::error::Result<T>,
    ) -> varv::error::Result<T> {
        let root = tempfile::tempdir_in(self.folder.path()).unwrap();
        let options = OpenOptions {
            secret: None,
            intent,
            lock_wait: Duration::ZERO,
            command: "test",
            cache_dir: None,
            stop: &Stop::new(),
        };
        work(&Repo::open_on(Arc::new(store.clone()), root.path(), &options)?)
    }

    fn backup(&self, store: &MemoryStore) -> varv::error::Result<()> {
        let time = Timestamp::from_second(1_795_219_200).unwrap();
        let options = BackupOptions { time, ..backup_options(self.source.path(), Vec::new()) };
        self.with(store, Intent::Add, |repo| {
            let catalog = repo.catalog(&Silent, &Stop::new())?;
            backup::run(repo, &catalog, &options, &Silent, &Stop::new()).map(drop)
        })
    }

    fn options(read_data: bool) -> CheckOptions {
        let now = Timestamp::from_second(1_795_219_200).unwrap();
        CheckOptions { read_data: read_data.then_some(Part::WHOLE), now }
    }

    fn check(&self, store: &MemoryStore) -> check::CheckReport {
        let work = |repo: &Repo| check::run(repo, &Self::options(true), &Silent, &Stop::new());
        self.with(store, Intent::Add, work).unwrap()
    }

    fn repair(&self, store: &MemoryStore) -> varv::error::Result<repair::RepairReport> {
        let work = |repo: &Repo| repair::run(repo, &Self::options(false), false, &Silent, &Stop::new());
        self.with(store, Intent::Change, work)
    }
}

fn hurt(report: &[check::Damage]) -> Vec<String> {
    let mut hurt: Vec<String> = report.iter().flat_map(|damage| damage.hurts.clone()).collect();
    hurt.sort();
    hurt.dedup();
    hurt
}

/// Whether what one line of a report hurts, the other one hurt too.
fn is_part_of(line: &str, before: &str) -> bool {
    let snapshot = line.rsplit(' ').next().unwrap();
    line == before || before == format!("all of it in {snapshot}")
}

#[test]
fn a_repair_is_cut_from_power_or_runs_out_of_room_anywhere() {
    for damage in [Damage::Flip(60 * 8 + 5), Damage::Flip(20 * 8)] {
        let memory = Memory::new();
        let packs: Vec<String> =
            memory.store.names().into_iter().filter(|name| name.starts_with("packs/")).collect();
        for pack in &packs {
            assert!(memory.store.damage(pack, damage));
        }
        let before = hurt(&memory.check(&memory.store).damaged);
        assert!(!before.is_empty());
        let whole = memory.store.after_power_cut(0);
        let (points, operations) = (whole.points(), whole.operations());
        memory.repair(&whole).unwrap();
        let after = hurt(&memory.check(&whole).damaged);
        let (points, operations) = (whole.points() - points, whole.operations() - operations);
        for point in 1..=points {
            let store = memory.store.after_power_cut(0);
            store.cut_power_at(point);
            memory.repair(&store).unwrap();
            for seed in 0..2 {
                let store = store.after_power_cut(seed);
                // Where a directory could not be read before, its files may be named now.
                let found = hurt(&memory.check(&store).damaged);
                let was_hurt = |line: &String| before.iter().any(|before| is_part_of(line, before));
                assert!(found.iter().all(was_hurt), "point {point}: {found:?} {before:?}");
                memory.repair(&store).unwrap();
                assert_eq!(hurt(&memory.check(&store).damaged), after, "point {point}");
            }
        }
        for (operation, fault) in
            (1..=operations).step_by(4).flat_map(|n| [(n, Fault::NoSpace), (n, Fault::Io)])
        {
            let store = memory.store.after_power_cut(0);
            store.fail_at(operation, fault);
            let _ = memory.repair(&store);
            store.heal();
            memory.repair(&store).unwrap();
            assert_eq!(hurt(&memory.check(&store).damaged), after, "operation {operation} {fault:?}");
        }
        memory.backup(&whole).unwrap();
        memory.repair(&whole).unwrap();
        let healed = memory.check(&whole).damaged;
        assert!(healed.is_empty(), "{healed:?}");
    }
}
