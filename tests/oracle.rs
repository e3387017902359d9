//! Plain copies of random nights are the oracle, while random snapshots are forgotten and brought
//! back, pruned, compressed again, damaged and repaired. After each step every snapshot that is
//! there restores as its copy, or what does not is named: by the restore itself, and by a check,
//! which names no more than that either.
//!
//! `VARV_TEST_NIGHTS` in the environment makes the history longer, `VARV_TEST_SEED` another one.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::Value;

use support::make::{Random, change_rows, overwrite, punch_hole, rows};
use support::tree::{Tree, assert_tree, read};
use support::{Varv, args, chmod};

const NIGHTS: u64 = 12;
const SEED: u64 = 1;
/// Both are long enough to be compressed against the night before.
const TABLE_LEN: u64 = 1 << 20;
const VOLUME_LEN: u64 = 3 << 20;
/// No more snapshots than a check lists for one path, so that it can be held to its word.
const SNAPSHOTS_MAX: usize = 5;

/// What was backed up, and a copy of it.
struct Night {
    number: u64,
    root: PathBuf,
    copy: Tree,
}

/// The paths of each snapshot that do not restore.
type Lost = BTreeMap<String, BTreeSet<String>>;

struct World {
    varv: Varv,
    random: Random,
    dir: PathBuf,
    volume: PathBuf,
    /// Of the volume: the last snapshot, and what was written since.
    volume_changes: Option<(String, String)>,
    /// By the snapshots' ids: those that are there, and those that can be brought back.
    nights: BTreeMap<String, Night>,
    forgotten: BTreeMap<String, Night>,
    lost: Lost,
    steps: BTreeMap<&'static str, u32>,
    count: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let (varv, mut random) = (Varv::new(), Random(seed));
        // With the same keys, the same bytes are cut and packed alike.
        let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden-1/plain");
        for name in ["config", "config.copy"] {
            fs::copy(keys.join(name), varv.repository.join(name)).unwrap();
        }
        let (dir, volume) = (varv.dir("source"), varv.path("volume"));
        fs::write(dir.join("table"), rows(&mut random, TABLE_LEN as usize)).unwrap();
        fs::create_dir_all(dir.join("folder/below")).unwrap();
        File::create(&volume).unwrap().set_len(VOLUME_LEN).unwrap();
        overwrite(&volume, 100_000, &rows(&mut random, 2 << 20));
        let (nights, lost, steps) = Default::default();
        Self {
            varv,
            random,
            dir,
            volume,
            volume_changes: None,
            nights,
            forgotten: BTreeMap::new(),
            count: 0,
            lost,
            steps,
        }
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.random.below(times) == 0
    }

    fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.random.below(words.len() as u64) as usize]
    }

    fn did(&mut self, step: &'static str) {
        *self.steps.entry(step).or_default() += 1;
    }

    /// A row here and there in the table, and a few files of all kinds.
    fn change_dir(&mut self) {
        if self.one_in(12) {
            fs::write(self.dir.join("table"), rows(&mut self.random, TABLE_LEN as usize)).unwrap();
        }
        change_rows(&self.dir.join("table"), &mut self.random);
        for _ in 0..3 {
            let name = self.pick(&["a", "b", "folder/c", "folder/d", "folder/below/e", "folder/below/f"]);
            let path = self.dir.join(name);
            let len = self.random.below(120_000) as usize;
            match self.random.below(5) {
                0 => drop(fs::remove_file(&path)),
                1 => drop(fs::hard_link(
                    self.dir.join("table"),
                    self.dir.join(self.random.below(3).to_string()),
                )),
                2 => fs::write(&path, self.random.text(len)).unwrap(),
                // Equal contents meet.
                3 => fs::write(&path, support::make::bytes(self.random.below(3), 70_000)).unwrap(),
                _ => fs::write(&path, self.random.bytes(len)).unwrap(),
            }
        }
    }

    /// Data, zeros and holes; the list of what changed goes on.
    fn change_volume(&mut self) {
        for _ in 0..8 {
            let (at, len) = (self.random.below(VOLUME_LEN - 200_000), 1 + self.random.below(20_000));
            match self.random.below(4) {
                0 => drop(punch_hole(&self.volume, at, len * 5)),
                1 => overwrite(&self.volume, at, &vec![0; len as usize * 5]),
                _ => overwrite(&self.volume, at, &rows(&mut self.random, len as usize)),
            }
            if let Some((_, list)) = &mut self.volume_changes {
                writeln!(list, "{at} {}", len * 5).unwrap();
            }
        }
    }

    fn back_up(&mut self, root: PathBuf, options: &[OsString]) -> String {
        let report = self.varv.backup(&[args!["--tier", "hot"], options, args![&root]].concat());
        let id = report["snapshot"].as_str().unwrap().to_string();
        let copy = read(&root);
        self.count += 1;
        self.nights.insert(id.clone(), Night { number: self.count, root, copy });
        // Whatever was damaged before: what was backed up just now is whole.
        assert_eq!(self.lost_of(&id), BTreeSet::new(), "{id} is new");
        id
    }

    fn night(&mut self) {
        self.did("nights");
        self.change_dir();
        self.change_volume();
        let options = if self.one_in(6) { args!["--no-delta"].to_vec() } else { vec![] };
        self.back_up(self.dir.clone(), &options);
        let list = self.varv.path("list");
        let options = match self.volume_changes.take() {
            Some((id, changes)) if self.nights.contains_key(&id) && !self.one_in(3) => {
                self.did("lists of changes");
                fs::write(&list, changes).unwrap();
                args!["--change-list", &list, "--made-against", id].to_vec()
            }
            _ => vec![],
        };
        let id = self.back_up(self.volume.clone(), &options);
        self.volume_changes = Some((id, String::new()));
    }

    fn forget(&mut self, id: &str) {
        self.did("forgotten");
        self.varv.ok(args!["forget", "-q", "--allow-last", id]);
        self.forgotten.insert(id.to_string(), self.nights.remove(id).unwrap());
        self.lost.remove(id);
    }

    /// Ids are other ones each time; their order is not.
    fn ids(&self) -> Vec<String> {
        let mut ids: Vec<(u64, String)> =
            self.nights.iter().map(|(id, night)| (night.number, id.clone())).collect();
        ids.sort();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    fn forget_some(&mut self) {
        for id in self.ids() {
            let are_many = |night: &Night| {
                self.nights.values().filter(|other| other.root == night.root).count() > SNAPSHOTS_MAX
            };
            if are_many(&self.nights[&id]) || self.one_in(5) {
                self.forget(&id);
            }
        }
    }

    /// What cannot be told from whole snapshots stays away.
    fn undo_forget(&mut self) {
        if self.lost.is_empty() {
            self.did("brought back");
            self.varv.ok(args!["undo-forget", "-q"]);
            self.nights.append(&mut self.forgotten);
        }
    }

    /// Prunes; refuses while something that is needed is missing, and then leaves all as it was.
    fn prune(&mut self) {
        self.did("prunes");
        let share = self.pick(&["0", "0", "5", "50"]);
        let (objects, done) = (self.varv.objects(), self.varv.run(args!["prune", "--max-unused", share]));
        match done.code {
            Some(0) => self.forgotten.clear(),
            _ => {
                done.expect(4, args!["prune"]);
                // What is damaged and was not known to be: it goes on with the rest.
                if !done.stderr.is_empty() {
                    assert!(done.stderr.contains("damaged") || done.stderr.contains("missing"), "{done:?}");
                }
                if self.varv.objects() != objects {
                    self.forgotten.clear();
                }
            }
        }
        self.forgotten.retain(|id, _| self.varv.repository.join("forgotten").join(id).exists());
    }

    fn retier(&mut self) {
        self.did("retiers");
        let words = args!["retier", "-q", "--older-than", "now", "--to", self.pick(&["warm", "cold"])];
        let done = self.varv.run(words);
        assert!(matches!(done.code, Some(0 | 4)), "{done:?}");
    }

    /// Does to a few random objects what disks and people do.
    fn damage(&mut self) {
        self.did("damages");
        for _ in 0..1 + self.random.below(2) {
            let mut objects = self.varv.objects();
            objects.sort_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
            let object = &objects[self.random.below(objects.len() as u64) as usize];
            let len = fs::metadata(object).unwrap().len();
            let at = self.random.below(len.max(1));
            chmod(object, 0o600);
            match self.random.below(8) {
                0 => fs::remove_file(object).unwrap(),
                1 => fs::write(object, b"").unwrap(),
                2 => File::options().write(true).open(object).unwrap().set_len(at).unwrap(),
                3 => overwrite(object, at & !511, &self.random.bytes(512)),
                4 => overwrite(object, at & !4095, &[0; 4096]),
                _ if len > 0 => {
                    overwrite(object, at, &[fs::read(object).unwrap()[at as usize] ^ 1 << (at % 8)])
                }
                _ => {}
            }
        }
        self.lost = self.all_lost();
        *self.steps.entry("files lost").or_default() +=
            self.lost.values().map(BTreeSet::len).sum::<usize>() as u32;
    }

    /// What a snapshot does not give back. All of it is named, and nothing else differs.
    fn lost_of(&self, id: &str) -> BTreeSet<String> {
        let Night { root, copy, .. } = &self.nights[id];
        let target = self.varv.path("restored");
        let done = self.varv.run(args!["restore", "--snapshot", id, root, &target]);
        if done.code == Some(0) {
            assert_tree(copy, &target);
            remove(&target);
            return BTreeSet::new();
        }
        done.expect(4, args!["restore", id]);
        let is_named = |path: &str| {
            let target = target.to_str().unwrap();
            let above = path.match_indices('/').map(|(at, _)| &path[..at]).chain([path, ""]);
            let mut above =
                above.map(|path| format!("{target}{}{path}: ", if path.is_empty() { "" } else { "/" }));
            above.any(|name| done.stderr.contains(&name))
        };
        let found = if target.exists() { read(&target) } else { Tree::new() };
        remove(&target);
        let differs = |(path, node): (&Vec<u8>, _)| (found.get(path) != Some(node)).then(|| path.clone());
        let names = copy
            .iter()
            .filter_map(differs)
            .chain(found.keys().filter(|path| !copy.contains_key(*path)).cloned());
        let names: BTreeSet<String> = names.map(|path| plain(&path)).collect();
        let is_gone = found.is_empty();
        // A file of several names is told of by its first one.
        let first =
            |path: &String| copy.get(format!("/{path}").as_bytes()).map(|node| node.first_name.clone());
        let first = |path: &String| String::from_utf8(first(path).unwrap_or_default()).unwrap();
        for path in names.iter().filter(|_| !is_gone) {
            let is_named = is_named(path) || is_named(first(path).trim_start_matches('/'));
            assert!(is_named, "{path} of {id} is lost and not named in {}", done.stderr);
        }
        assert!(!names.is_empty(), "{id} restores, and yet: {}", done.stderr);
        names
    }

    /// What each snapshot does not give back; those that cannot be read give nothing.
    fn all_lost(&self) -> Lost {
        let listed = self.listed();
        let mut lost = Lost::new();
        for (id, night) in &self.nights {
            let of_it = match listed.contains(id) {
                true => self.lost_of(id),
                false => night.copy.keys().map(|path| plain(path)).collect(),
            };
            if !of_it.is_empty() {
                lost.insert(id.clone(), of_it);
            }
        }
        lost
    }

    fn listed(&self) -> BTreeSet<String> {
        let done = self.varv.run(args!["--json", "snapshots"]);
        assert!(matches!(done.code, Some(0 | 4)), "{done:?}");
        let rows = done.json();
        rows.as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_string()).collect()
    }

    /// Nothing is lost that was not before.
    fn is_no_worse(&mut self, step: &str) {
        let now = self.all_lost();
        for (id, paths) in &now {
            let before = self.lost.get(id).unwrap_or_else(|| panic!("{step} made {id} worse: {paths:?}"));
            assert!(paths.is_subset(before), "{step} made {id} worse: {paths:?}, {before:?}");
        }
        self.lost = now;
    }

    /// A check that reads everything names what is lost, and nothing else.
    fn check(&mut self) {
        self.did("checks");
        let done = self.varv.run(args!["--json", "check", "--read-data"]);
        let report = done.json();
        done.expect(if report["damaged"] == Value::Array(vec![]) { 0 } else { 4 }, args!["check"]);
        self.names_what_is_lost(&report);
    }

    fn names_what_is_lost(&self, report: &Value) {
        let named = self.named(report);
        for (id, paths) in &self.lost {
            for path in paths {
                let whole = self.whole_path(id, path);
                let is_it = |(snapshot, name): &(String, String)| {
                    id.starts_with(snapshot) && (name.is_empty() || whole.starts_with(name))
                };
                assert!(named.iter().any(is_it), "{whole} of {id} is lost, and not in {report}");
            }
        }
        for (snapshot, name) in &named {
            let Some(id) = self.nights.keys().find(|id| id.starts_with(snapshot)) else {
                panic!("{snapshot} is not there: {report}");
            };
            let lost = self.lost.get(id).unwrap_or_else(|| panic!("all of {id} restores, and yet: {report}"));
            let is_it = |path: &String| name.is_empty() || self.whole_path(id, path).starts_with(name);
            assert!(lost.iter().any(is_it), "{name} of {id} restores, and yet: {report}");
        }
    }

    fn whole_path(&self, id: &str, path: &str) -> String {
        let root = self.nights[id].root.to_str().unwrap();
        if path.is_empty() { root.to_string() } else { format!("{root}/{path}") }
    }

    /// Snapshots, and what of them a report says is hurt; nothing stands for all.
    fn named(&self, report: &Value) -> Vec<(String, String)> {
        let mut named = Vec::new();
        for damage in report["damaged"].as_array().unwrap() {
            let object = damage["object"].as_str().unwrap();
            if let Some(id) = object.strip_prefix("snapshot ").filter(|id| self.nights.contains_key(*id)) {
                named.push((id.to_string(), String::new()));
            }
            for hurt in damage["hurts"].as_array().unwrap() {
                let hurt = hurt.as_str().unwrap();
                let (path, snapshots) = hurt.rsplit_once(" in ").unwrap();
                assert!(!snapshots.contains("more"), "the lists are to be whole: {hurt}");
                let path = if path == "all of it" { "" } else { path };
                named.extend(snapshots.split(", ").map(|snapshot| (snapshot.to_string(), path.to_string())));
            }
        }
        named
    }

    /// Repairs; a snapshot that cannot be read is put aside, or mended.
    fn repair(&mut self) {
        self.did("repairs");
        let done = self.varv.run(args!["--json", "repair"]);
        assert!(matches!(done.code, Some(0 | 4)), "{done:?}");
        let report = done.json();
        let listed = self.listed();
        let gone: Vec<String> = self.nights.keys().filter(|id| !listed.contains(*id)).cloned().collect();
        for id in gone {
            let aside = report["snapshots"].as_array().unwrap();
            // What is gone altogether nobody can name but who knew it.
            assert!(aside.iter().any(|row| row["id"] == *id) || !self.object_of(&id).exists(), "{report}");
            assert!(self.lost.contains_key(&id));
            self.nights.remove(&id);
            self.lost.remove(&id);
        }
        self.is_no_worse("repair");
        self.names_what_is_lost(&report);
    }

    fn object_of(&self, id: &str) -> PathBuf {
        self.varv.repository.join("snapshots").join(id)
    }

    /// Snapshots that are gone with their object are missed by nobody.
    fn miss(&mut self) {
        let gone: Vec<String> =
            self.nights.keys().filter(|id| !self.object_of(id).exists()).cloned().collect();
        for id in gone {
            self.nights.remove(&id);
            self.lost.remove(&id);
        }
    }

    fn damage_and_repair(&mut self) {
        self.damage();
        self.miss();
        match self.random.below(4) {
            0 => self.prune(),
            1 => self.retier(),
            _ => {}
        }
        self.is_no_worse("what knew of no damage");
        self.check();
        self.is_no_worse("check");
        self.repair();
        // Those whose content is still there heal.
        self.night();
        self.is_no_worse("backup");
        self.check();
        if self.one_in(2) {
            self.prune();
            self.is_no_worse("prune");
        }
        for id in self.lost.keys().cloned().collect::<Vec<_>>() {
            self.forget(&id);
        }
        self.forgotten.clear();
        self.varv.ok(args!["prune", "-q"]);
    }

    fn step(&mut self) {
        self.night();
        self.forget_some();
        match self.random.below(6) {
            0 => self.undo_forget(),
            1 | 2 => self.prune(),
            3 => self.retier(),
            4 => self.damage_and_repair(),
            _ => {}
        }
        assert_eq!(self.listed(), self.nights.keys().cloned().collect());
        self.is_no_worse("a night");
        assert!(self.lost.is_empty());
    }
}

/// A path below the root, without a slash in front.
fn plain(path: &[u8]) -> String {
    String::from_utf8(path.to_vec()).unwrap().trim_start_matches('/').to_string()
}

fn remove(target: &Path) {
    let _ = fs::remove_file(target).or_else(|_| fs::remove_dir_all(target));
}

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn every_snapshot_is_its_plain_copy_or_what_is_lost_is_named() {
    let (nights, seed) = (number("VARV_TEST_NIGHTS", NIGHTS), number("VARV_TEST_SEED", SEED));
    eprintln!("the same again: VARV_TEST_SEED={seed} VARV_TEST_NIGHTS={nights}");
    let mut world = World::new(seed);
    for _ in 0..nights {
        world.step();
    }
    // So that each of them is tried in the shortest history too.
    world.damage_and_repair();
    world.prune();
    world.is_no_worse("the last prune");
    world.check();
    world.varv.ok(args!["check", "--read-data", "-q"]);
    eprintln!("{:?}", world.steps);
}
