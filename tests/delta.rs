//! Delta frames: new chunks compressed against older ones, through forgetting, pruning and damage.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use support::make::{Random, change_rows, rows};
use support::{Varv, args};

const LEN: u64 = 3 << 20;

/// A repository and a file that changes a little, everywhere, every night.
struct World {
    varv: Varv,
    file: PathBuf,
    random: Random,
    /// Contents, by tag.
    nights: BTreeMap<String, Vec<u8>>,
    next: u32,
}

impl World {
    fn new() -> Self {
        let varv = Varv::new();
        let file = varv.dir("source").join("table");
        let mut random = Random(7);
        fs::write(&file, rows(&mut random, LEN as usize)).unwrap();
        Self { varv, file, random, nights: BTreeMap::new(), next: 0 }
    }

    fn night(&mut self, options: &[&str]) -> Value {
        let tag = format!("night{:03}", self.next);
        self.next += 1;
        self.nights.insert(tag.clone(), fs::read(&self.file).unwrap());
        let options: Vec<OsString> = options.iter().map(OsString::from).collect();
        let report = self.varv.backup(&[args!["--tag", tag, self.source()], &options[..]].concat());
        change_rows(&self.file, &mut self.random);
        report
    }

    fn nights(&mut self, count: u32) {
        for _ in 0..count {
            self.night(&[]);
        }
    }

    fn source(&self) -> &Path {
        self.file.parent().unwrap()
    }

    fn forget(&mut self, row: &Value) {
        self.varv.ok(args!["forget", "-q", row["id"].as_str().unwrap()]);
        self.nights.remove(row["tags"][0].as_str().unwrap());
    }

    fn restore_all(&self) {
        for row in self.varv.snapshots() {
            let target = self.varv.path("target");
            let id = row["id"].as_str().unwrap();
            self.varv.restore(args!["--snapshot", id, self.source(), &target]);
            let content = fs::read(target.join("table")).unwrap();
            assert!(content == self.nights[row["tags"][0].as_str().unwrap()], "{row}");
            fs::remove_dir_all(target).unwrap();
        }
    }

    /// Frames that are compressed against others, and what all data frames take.
    fn deltas(&self) -> (u64, u64) {
        let stats = self.varv.json(args!["stats"]);
        let levels = stats["levels"].as_array().unwrap();
        let of =
            |delta: bool| levels.iter().filter(move |row| row["delta"] == delta && row["kind"] == "data");
        let frames = of(true).map(|row| row["frames"].as_u64().unwrap()).sum();
        let bytes = of(true).chain(of(false)).map(|row| row["bytes_stored"].as_u64().unwrap()).sum();
        (frames, bytes)
    }

    fn data_packs(&self) -> Vec<PathBuf> {
        let mut packs: Vec<PathBuf> = self.varv.objects();
        // Byte 10 is the class; 1 is data.
        packs.retain(|path| path.to_string_lossy().contains("/packs/") && fs::read(path).unwrap()[10] == 1);
        packs.sort_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
        packs
    }
}

#[test]
fn a_night_of_small_changes_takes_little() {
    let mut world = World::new();
    let first = world.night(&[])["bytes_stored"].as_u64().unwrap();
    let second = world.night(&[])["bytes_stored"].as_u64().unwrap();
    assert!(second < first / 8, "{second} of {first}");
    let (deltas, _) = world.deltas();
    assert!(deltas > 0);
    let without = world.night(&["--no-delta"])["bytes_stored"].as_u64().unwrap();
    assert!(without > first / 2, "{without} of {first}");
    assert_eq!(world.deltas().0, deltas);
    world.restore_all();
    world.varv.ok(args!["check", "--read-data", "--quiet"]);
}

/// What comes before or behind what was there, and what is gone, changes nothing for the rest.
#[test]
fn grown_shrunk_and_shifted_content_is_like_what_it_was() {
    let mut world = World::new();
    let first = world.night(&[])["bytes_stored"].as_u64().unwrap();
    let before = fs::read(&world.file).unwrap();
    let more = rows(&mut world.random, 64 << 10);
    let cut = before.len() / 2;
    for (content, added) in [
        ([&before[..], &more].concat(), first / 32),
        (before[..cut].to_vec(), 0),
        ([&more[..40], &before[..cut]].concat(), 0),
        // More than what is looked at around a chunk, and less than a frame.
        ([&more[..], &before[..cut]].concat(), first / 32),
    ] {
        fs::write(&world.file, content).unwrap();
        let stored = world.night(&[])["bytes_stored"].as_u64().unwrap();
        assert!(stored < first / 6 + added, "{stored} of {first}");
    }
    world.restore_all();
    world.varv.ok(args!["check", "--read-data", "--quiet"]);
}

/// A file's parent is what had its path.
#[test]
fn a_renamed_file_is_new() {
    let mut world = World::new();
    let first = world.night(&[])["bytes_stored"].as_u64().unwrap();
    let renamed = world.source().join("renamed");
    fs::rename(&world.file, &renamed).unwrap();
    let report = world.varv.backup(args![world.source()]);
    assert!(report["bytes_stored"].as_u64().unwrap() > first / 2, "{report}");
    assert_eq!(world.deltas().0, 0);
    let target = world.varv.path("target");
    world.varv.restore(args![world.source(), &target]);
    support::tree::assert_same(world.source(), &target);
}

fn saved(report: &Value, field: &str) -> i64 {
    report["saved"][field].as_i64().unwrap()
}

/// From the source to what frames take, nothing is left out and nothing counts twice.
#[test]
fn what_was_saved_by_what_adds_up() {
    let mut world = World::new();
    let hole = world.source().join("hole");
    support::make::sparse_file(&hole, 1 << 20, &[(0, &[1; 4096])]);
    let again = world.source().join("again");
    fs::copy(&world.file, &again).unwrap();
    let first = world.night(&[]);
    assert_eq!(saved(&first, "bytes_sparse"), (1 << 20) - 4096);
    assert_eq!(saved(&first, "bytes_duplicate"), LEN as i64);
    assert!(saved(&first, "bytes_compressed") > LEN as i64 / 3, "{first}");
    // Rows of noise: only chunks that were not looked at make a difference.
    assert!(saved(&first, "bytes_frames").abs() < LEN as i64 / 16, "{first}");
    assert_eq!(saved(&first, "bytes_deltas"), 0);
    let second = world.night(&["--tier", "cold"]);
    assert_eq!(saved(&second, "bytes_sparse"), (1 << 20) - 4096, "of an unchanged file, too");
    assert!(saved(&second, "bytes_deltas") > saved(&second, "bytes_compressed") / 2, "{second}");
    for report in [&first, &second] {
        let field = |name: &str| report[name].as_i64().unwrap();
        let kept = field("bytes_source") - saved(report, "bytes_sparse") - saved(report, "bytes_duplicate");
        assert_eq!(kept, field("bytes_new"), "{report}");
    }
    world.varv.backup(args!["--tier-for", "*=store", "--label", "raw", "--force-read", &hole]);
    fs::write(world.source().join("raw"), rows(&mut world.random, 1 << 20)).unwrap();
    let raw = world.varv.backup(args!["--tier", "store", world.source()]);
    assert!(saved(&raw, "bytes_tiers") < -(1 << 18), "tier store takes more: {raw}");
    let stats = world.varv.json(args!["stats"]);
    let field = |name: &str| stats[name].as_i64().unwrap();
    let levels = stats["levels"].as_array().unwrap().iter().filter(|row| row["kind"] == "data");
    let sum = |name: &str| levels.clone().map(|row| row[name].as_i64().unwrap()).sum::<i64>();
    let raw = field("bytes_source") - saved(&stats, "bytes_sparse") - saved(&stats, "bytes_duplicate")
        + field("bytes_unused");
    assert_eq!(raw, sum("bytes_raw"), "{stats}");
    let ways = ["bytes_compressed", "bytes_frames", "bytes_deltas", "bytes_tiers"];
    let less: i64 = ways.iter().map(|name| saved(&stats, name)).sum();
    assert_eq!(raw - less, sum("bytes_stored") - 16 * sum("frames"), "{stats}");
}

/// Each base is paid for by what is made against it: 20 nights take less than all of them begun
/// anew twice.
#[test]
fn chains_end() {
    let mut world = World::new();
    let first = world.night(&[])["bytes_stored"].as_u64().unwrap();
    world.nights(19);
    let (_, all) = world.deltas();
    assert!(all < 3 * first, "{all}, of which {first} in the first night");
    world.restore_all();
    world.varv.ok(args!["check", "--read-data", "--quiet"]);
}

/// Bases are kept as long as something is made against them, and move together with that.
#[test]
fn what_is_forgotten_is_given_back() {
    let mut world = World::new();
    world.nights(6);
    let rows = world.varv.snapshots();
    for row in &rows[..5] {
        world.forget(row);
    }
    let done = world.varv.json(args!["prune", "--max-unused", "0"]);
    assert_eq!(done["done"]["packs_damaged"], 0);
    world.restore_all();
    world.varv.ok(args!["check", "--read-data", "--quiet"]);
    let again = world.varv.json(args!["prune", "--max-unused", "0"]);
    assert_eq!(again["packs_repack"], 0, "{again}");
    // The next night finds what was moved.
    let next = world.night(&[])["bytes_stored"].as_u64().unwrap();
    assert!(next < LEN / 20, "{next}");
    world.restore_all();
}

#[test]
fn random_nights_are_forgotten_and_pruned() {
    let mut world = World::new();
    let mut random = Random(3);
    for _ in 0..24 {
        world.night(if random.below(6) == 0 { &["--no-delta"] } else { &[] });
        let rows = world.varv.snapshots();
        for row in rows.iter().skip(1) {
            if random.below(4) == 0 {
                world.forget(row);
            }
        }
        if random.below(3) == 0 {
            let share = ["0", "5", "50"][random.below(3) as usize];
            world.varv.ok(args!["prune", "-q", "--max-unused", share]);
            world.varv.ok(args!["check", "--read-data", "--quiet"]);
            world.restore_all();
        }
    }
    world.restore_all();
}

/// Damage to what frames are made against is told of all snapshots that it hurts, and the next
/// backup heals what it can.
#[test]
fn a_damaged_base_hurts_what_is_made_against_it() {
    let mut world = World::new();
    world.nights(4);
    let packs = world.data_packs();
    let first = &packs[0];
    let mut bytes = fs::read(first).unwrap();
    for at in (100..bytes.len() - 40_000).step_by(1000) {
        bytes[at] ^= 1;
    }
    fs::set_permissions(first, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(first, bytes).unwrap();
    let done = world.varv.run(args!["--json", "check", "--read-data"]);
    let report = done.json();
    done.expect(4, args!["check"]);
    let hurts = report["damaged"].to_string();
    let rows = world.varv.snapshots();
    for row in &rows {
        assert!(hurts.contains(&row["id"].as_str().unwrap()[..8]), "{row} is not in {hurts}");
    }
    // What the source has is stored anew, and this night is whole.
    world.varv.ends(4, args!["repair", "-q"]);
    world.night(&[]);
    let rows = world.varv.snapshots();
    let last = rows.last().unwrap();
    let target = world.varv.path("healed");
    world.varv.restore(args!["--snapshot", last["id"].as_str().unwrap(), world.source(), &target]);
    assert!(fs::read(target.join("table")).unwrap() == world.nights[last["tags"][0].as_str().unwrap()]);
}

#[test]
fn a_missing_base_is_named() {
    let mut world = World::new();
    world.nights(3);
    fs::remove_file(&world.data_packs()[0]).unwrap();
    let done = world.varv.run(args!["check"]);
    done.expect(4, args!["check"]);
    let rows = world.varv.snapshots();
    let target = world.varv.path("target");
    for row in &rows {
        let id = row["id"].as_str().unwrap();
        let code = world.varv.run(args!["restore", "--snapshot", id, world.source(), &target]).code;
        assert!(code == Some(3) || code == Some(4), "{code:?}");
        let _ = fs::remove_dir_all(&target);
    }
}

/// Without a check having said so: nobody can read what is made against a pack that is gone.
#[test]
fn what_lost_its_base_is_stored_anew() {
    for index_is_lost in [false, true] {
        let mut world = World::new();
        world.nights(3);
        fs::remove_file(&world.data_packs()[0]).unwrap();
        if index_is_lost {
            fs::remove_dir_all(world.varv.repository.join("index")).unwrap();
        }
        // Reading notices first, and changes nothing.
        world.varv.run(args!["stats"]);
        let report = world.night(&[]);
        assert!(report["bytes_stored"].as_u64().unwrap() > LEN / 4, "{report}");
        let (newest, target) = (world.varv.snapshots().pop().unwrap(), world.varv.path("target"));
        world.varv.restore(args!["--snapshot", newest["id"].as_str().unwrap(), world.source(), &target]);
        let tag = newest["tags"][0].as_str().unwrap();
        assert!(
            fs::read(target.join("table")).unwrap() == world.nights[tag],
            "index is lost: {index_is_lost}"
        );
    }
}

/// What cannot be read any more and what nobody needs is no hindrance.
#[test]
fn a_missing_base_does_not_keep_prune_from_its_work_for_ever() {
    let mut world = World::new();
    world.night(&[]);
    let first = world.data_packs()[0].clone();
    fs::write(world.source().join("other"), rows(&mut world.random, 50_000)).unwrap();
    world.night(&[]);
    fs::write(&world.file, rows(&mut world.random, LEN as usize)).unwrap();
    world.night(&[]);
    fs::remove_file(first).unwrap();
    let objects = world.varv.objects();
    world.varv.ends(4, args!["prune"]).says(&["missing"]);
    assert_eq!(world.varv.objects(), objects);
    for row in &world.varv.snapshots()[..2] {
        world.forget(row);
    }
    // The second night's pack has frames made against what is gone, and the other file.
    world.varv.ok(args!["prune", "-q", "--max-unused", "0"]);
    world.restore_all();
    world.varv.ok(args!["check", "--read-data", "--quiet"]);
}

/// What is forgotten may come back: what it is made against stays where it is.
#[test]
fn what_forgotten_nights_are_made_against_is_not_moved() {
    let mut world = World::new();
    for day in 1..=3 {
        world.night(&["--time", &format!("2026-01-0{day}")]);
    }
    let last = world.varv.snapshots()[2]["id"].as_str().unwrap().to_string();
    world.varv.ok(args!["forget", "-q", &last]);
    let words = args!["retier", "--older-than", "now", "--to", "cold"];
    assert_eq!(world.varv.json(words)["packs"], 0);
    world.varv.ok(args!["undo-forget", "-q"]);
    world.restore_all();
    assert!(world.varv.json(words)["packs"].as_u64().unwrap() > 0);
    world.restore_all();
    world.varv.ok(args!["check", "--read-data", "--quiet"]);
}

#[test]
fn what_only_older_nights_need_is_compressed_harder() {
    let mut world = World::new();
    for day in 1..=4 {
        world.night(&["--time", &format!("2026-01-0{day}")]);
    }
    // What the last night is made against stays, and so does all of this chain.
    let none = world.varv.json(args!["retier", "--older-than", "2026-01-04", "--to", "cold", "--dry-run"]);
    assert_eq!(none["packs"], 0, "{none}");
    fs::write(&world.file, rows(&mut world.random, LEN as usize)).unwrap();
    world.night(&["--time", "2026-01-05"]);
    let words = args!["retier", "--older-than", "2026-01-05", "--to", "cold"];
    let plan = world.varv.json(&[words, args!["--dry-run"]].concat());
    assert!(plan["packs"].as_u64().unwrap() > 0 && plan["done"] == Value::Null, "{plan}");
    let timeless = world.varv.json(&[words, args!["--max-time", "0s"]].concat());
    assert_eq!(timeless["done"]["packs_left"], plan["packs"]);
    let (deltas, before) = world.deltas();
    let done = world.varv.json(words);
    assert_eq!(done["done"]["packs"], plan["packs"]);
    let (still, after) = world.deltas();
    assert!(still == deltas && after < before, "{after} of {before}");
    world.varv.ok(args!["check", "--read-data", "--quiet"]);
    world.restore_all();
    let again = world.varv.json(&[words, args!["--dry-run"]].concat());
    assert_eq!(again["packs"], 0, "each frame is tried once a level: {again}");
    world.varv.ends(2, args!["retier", "--older-than", "now", "--to", "store"]);
}

#[test]
fn tiers_follow_names_and_lengths() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let mut random = Random(5);
    for (name, len) in [("film.mp4", 100_000), ("table", 3 << 20), ("small", 50_000)] {
        fs::write(source.join(name), rows(&mut random, len)).unwrap();
    }
    varv.backup(args!["--tier-for", "*.mp4=store", "--tier-for", ">1M=cold", &source]);
    let stats = varv.json(args!["stats"]);
    let data = stats["levels"].as_array().unwrap().iter().filter(|row| row["kind"] == "data");
    let levels: BTreeMap<i64, u64> =
        data.map(|row| (row["level"].as_i64().unwrap(), row["bytes_raw"].as_u64().unwrap())).collect();
    assert_eq!(levels, BTreeMap::from([(0, 100_000), (3, 50_000), (14, 3 << 20)]));
    let target = varv.path("target");
    varv.restore(args!["--verify", &source, &target]);
    support::tree::assert_same(&source, &target);
    varv.ends(2, args!["backup", "--tier-for", "*.mp4", &source]).says(&["is no rule"]);
}
