//! Killed at any moment, cut from power, without room: what was listed before still restores, and
//! the next backup succeeds.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;
use varv::backup::{self, BackupOptions, ScanOptions, Source};
use varv::chunker::{DEFAULT, Params};
use varv::error::{Error, Result};
use varv::format::config::{Sizes, Tier};
use varv::history::resolve::find_path;
use varv::observe::{Silent, Stop};
use varv::repo::catalog::Catalog;
use varv::repo::{CreateOptions, Intent, OpenOptions, Repo};
use varv::restore::{self, RestoreOptions};
use varv::source::exclude::ExcludeOptions;
use varv::store::{Fault, MemoryStore, Store};

use support::make::{Random, change, tree};
use support::system::{Mount, skip};
use support::tree::{Tree, assert_tree, read};
use support::{Varv, args};

const KILLS: usize = 25;
/// What a power cut leaves differs; so many outcomes are tried for each point.
const SEEDS: u64 = 6;

/// What the source was when the run of this tag began.
type States = BTreeMap<String, Tree>;

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

/// A repository in a store in memory; its index is in a folder.
struct World {
    store: MemoryStore,
    index: TempDir,
    source: PathBuf,
    _source: TempDir,
    states: States,
    next: u32,
}

static STOP: Stop = Stop::new();

impl World {
    /// With one snapshot. Packs are small, so that there are many.
    fn new() -> Self {
        let store = MemoryStore::new();
        let (tiers, slot) = (BTreeMap::new(), "open".to_string());
        let chunker = Params::parse(DEFAULT).unwrap();
        Repo::create_on(&store, CreateOptions { secret: None, slot, chunker, tiers }).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        tree(&source, 1);
        let index = tempfile::tempdir().unwrap();
        let mut world = Self { store, index, source, _source: folder, states: States::new(), next: 0 };
        let sizes =
            Sizes { data_pack: 200 << 10, metadata_pack: 2 << 10, tree_frame: 100 << 10, ..Sizes::default() };
        world.open(Intent::Change).unwrap().change_config(|config| config.sizes = sizes).unwrap();
        world.backup().unwrap();
        world
    }

    /// The same with another store; the index is gone, or still the one before.
    fn with(&self, store: MemoryStore, index_is_kept: bool) -> Self {
        let index = tempfile::tempdir().unwrap();
        if index_is_kept {
            copy_files(&self.index.path().join("index"), &index.path().join("index"));
        }
        let folder = tempfile::tempdir().unwrap();
        let (source, states) = (self.source.clone(), self.states.clone());
        Self { store, index, source, _source: folder, states, next: self.next }
    }

    fn open(&self, intent: Intent) -> Result<Repo> {
        let options = OpenOptions {
            secret: None,
            intent,
            lock_wait: Duration::ZERO,
            command: "test",
            cache_dir: None,
            stop: &STOP,
        };
        let store: Arc<dyn Store> = Arc::new(self.store.clone());
        Repo::open_on(store, self.index.path(), &options)
    }

    fn opened(&self, intent: Intent) -> Result<(Repo, Catalog)> {
        let repo = self.open(intent)?;
        let catalog = repo.catalog(&Silent, &STOP)?;
        Ok((repo, catalog))
    }

    /// Backs up the source under a tag of its own.
    fn backup(&mut self) -> Result<()> {
        self.next += 1;
        let tag = self.next.to_string();
        self.states.insert(tag.clone(), read(&self.source));
        let (repo, catalog) = self.opened(Intent::Add)?;
        backup::run(&repo, &catalog, &self.options(tag), &Silent, &STOP)?;
        catalog.close()
    }

    fn options(&self, tag: String) -> BackupOptions {
        BackupOptions {
            sources: vec![Source::Path(self.source.clone())],
            host: "host".into(),
            label: "default".into(),
            tags: vec![tag],
            time: Timestamp::now(),
            offset: 0,
            user: String::new(),
            tier: Tier::Hot,
            excludes: ExcludeOptions::default(),
            scan: ScanOptions::default(),
            delta: true,
            dry_run: false,
        }
    }

    /// The tags of all snapshots.
    fn tags(&self) -> Vec<String> {
        let found = self.open(Intent::Read).unwrap().snapshots().unwrap();
        assert!(found.damaged.is_empty(), "{:?}", found.damaged);
        found.listed.into_iter().map(|listed| listed.snapshot.tags[0].clone()).collect()
    }

    /// Restores and compares all snapshots.
    fn restore_all(&self) {
        let (repo, catalog) = self.opened(Intent::Read).unwrap();
        for listed in repo.snapshots().unwrap().listed {
            let path = self.source.as_os_str().as_encoded_bytes();
            let entry = find_path(&catalog, &listed.snapshot, path).unwrap().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let target = folder.path().join("target");
            let options = RestoreOptions::default();
            let restored = restore::run(&repo, &catalog, &entry, &target, &options, &Silent, &STOP).unwrap();
            assert_eq!(restored.errors, 0);
            assert_tree(&self.states[&listed.snapshot.tags[0]], &target);
        }
    }

    /// After whatever happened: what was listed is there and restores, so does the next backup.
    fn must_be_well(&mut self, listed: &[String]) {
        let tags = self.tags();
        assert!(listed.iter().all(|tag| tags.contains(tag)), "{tags:?} lack some of {listed:?}");
        self.restore_all();
        self.backup().unwrap();
        self.restore_all();
    }
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
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
    let source = varv.dir("source");
    tree(&source, 1);
    let mut random = Random(3);
    let mut states = States::new();
    for number in 0.. {
        assert!(number < 100, "it is never full");
        change(&source, &mut random);
        let len = random.below(2 << 20) as usize;
        fs::write(source.join("more"), random.bytes(len)).unwrap();
        let tag = format!("run-{number}");
        states.insert(tag.clone(), read(&source));
        let done = varv.run(args!["backup", "-q", "--tag", &tag, &source]);
        if done.code != Some(0) {
            done.expect(1, args!["backup"]);
            done.says(&["No space left", "free space"]);
            break;
        }
    }
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
