//! Forgetting, bringing back, pruning and locks, as users see them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use serde_json::Value;

use support::make::{Random, bytes, change, change_rows, rows, tree};
use support::tree::{assert_same, assert_tree, read};
use support::world::States;
use support::{Done, Varv, args};

/// A repository with one snapshot a night, and what the source was on each.
fn nights(varv: &Varv, count: usize) -> (PathBuf, States) {
    let source = varv.dir("source");
    tree(&source, 1);
    let mut random = Random(5);
    let mut states = States::new();
    for night in 0..count {
        let time = format!("2026-11-{:02}T03:00:00Z", night + 1);
        let tag = format!("night{night}");
        states.insert(tag.clone(), read(&source));
        varv.backup(args!["--time", time, "--tag", tag, &source]);
        change(&source, &mut random);
    }
    (source, states)
}

fn tags(rows: &Value) -> Vec<String> {
    rows.as_array().unwrap().iter().map(|row| row["tags"][0].as_str().unwrap().to_string()).collect()
}

fn listed(varv: &Varv) -> Vec<String> {
    tags(&Value::Array(varv.snapshots()))
}

/// Restores all snapshots and compares them.
fn restore_all(varv: &Varv, source: &Path, states: &States) {
    for row in varv.snapshots() {
        let target = varv.path("restored");
        varv.restore(args!["--snapshot", row["id"].as_str().unwrap(), source, &target]);
        assert_tree(&states[row["tags"][0].as_str().unwrap()], &target);
        fs::remove_dir_all(&target).unwrap();
    }
}

fn packs_len(varv: &Varv) -> u64 {
    let packs = varv.objects().into_iter().filter(|path| path.starts_with(varv.repository.join("packs")));
    packs.map(|path| fs::metadata(path).unwrap().len()).sum()
}

#[test]
fn rules_keep_what_they_say_and_a_dry_run_says_why() {
    let varv = Varv::new();
    nights(&varv, 9);
    let rules = args!["forget", "--keep-daily", "2", "--keep-weekly", "1", "--dry-run"];
    let plan = varv.json(rules);
    assert_eq!(plan["dry_run"], true);
    // 2026-11-08 is a Sunday: the two days cover two weeks, and 2026-11-01 is of the one before.
    assert_eq!(tags(&plan["kept"]), ["night0", "night7", "night8"]);
    assert_eq!(plan["kept"][0]["reasons"], serde_json::json!(["weekly 1"]));
    let text = String::from_utf8(varv.ok(rules).stdout).unwrap();
    assert!(
        text.contains("daily 1") && text.contains("forget  ") && text.contains("3 would be kept"),
        "{text}"
    );
    assert_eq!(listed(&varv).len(), 9, "a dry run forgets nothing");
    let done = varv.json(&rules[..rules.len() - 1]);
    assert_eq!((&done["kept"], &done["forgotten"]), (&plan["kept"], &plan["forgotten"]));
    assert_eq!(listed(&varv), tags(&plan["kept"]));
    assert!(varv.ok(args!["forget", "-q", "--keep-last", "1"]).stdout.is_empty());
    assert_eq!(listed(&varv), ["night8"]);
}

#[test]
fn nothing_goes_by_accident() {
    let varv = Varv::new();
    let (source, _) = nights(&varv, 2);
    varv.ends(2, args!["forget"]).says(&["no rule", "--keep-daily"]);
    varv.ends(2, args!["forget", "--keep-daily", "0"]);
    varv.ends(2, args!["forget", "--keep-daily", "-1"]);
    varv.ends(2, args!["forget", "--keep-tag", "none"]).says(&["last snapshot", "--allow-last"]);
    varv.ends(2, args!["forget", "--keep-within", "1D"]).says(&["--allow-last"]);
    let ids: Vec<String> =
        varv.snapshots().iter().map(|row| row["id"].as_str().unwrap().to_string()).collect();
    varv.ends(2, args!["forget", &ids[0], "--keep-last", "1"]).says(&["not both"]);
    varv.ends(2, args!["forget", &ids[0], &ids[1]]).says(&["--allow-last"]);
    varv.ends(1, args!["forget", "ffffffff"]).says(&["no snapshot"]);
    varv.ok(args!["forget", "--older-than", "2027-01-01"]);
    assert_eq!(listed(&varv), ["night1"], "never the newest");
    varv.ok(args!["forget", "--allow-last", &ids[1][..8]]);
    assert!(varv.snapshots().is_empty());
    varv.backup(args!["--host", "elsewhere", "--tag", "x", &source]);
    varv.backup(args!["--host", "elsewhere", "--tag", "y", &source]);
    let other = varv.snapshots()[0]["id"].as_str().unwrap().to_string();
    varv.ends(2, args!["forget", &other]).says(&["host elsewhere", "--all-hosts"]);
    varv.ok(args!["forget", "--keep-last", "1"]);
    assert_eq!(varv.snapshots().len(), 2, "only this host's");
    varv.ok(args!["forget", "--keep-last", "1", "--all-hosts"]);
    assert_eq!(listed(&varv), ["y"]);
}

#[test]
fn what_is_forgotten_comes_back_until_prune() {
    let varv = Varv::new();
    let (source, states) = nights(&varv, 4);
    varv.ok(args!["forget", "--keep-last", "1"]);
    assert_eq!(listed(&varv), ["night3"]);
    let there = varv.json(args!["undo-forget", "--dry-run"]);
    assert_eq!(tags(&there["brought_back"]), ["night0", "night1", "night2"]);
    let id = there["brought_back"][1]["id"].as_str().unwrap();
    varv.ok(args!["undo-forget", &id[..10]]);
    assert_eq!(listed(&varv), ["night1", "night3"]);
    varv.ok(args!["undo-forget"]);
    assert_eq!(listed(&varv).len(), 4);
    restore_all(&varv, &source, &states);
    varv.ok(args!["forget", "--keep-last", "2"]);
    varv.ok(args!["prune", "--dry-run"]);
    assert_eq!(varv.json(args!["undo-forget", "--dry-run"])["brought_back"].as_array().unwrap().len(), 2);
    varv.ok(args!["prune"]);
    assert!(varv.json(args!["undo-forget"])["brought_back"].as_array().unwrap().is_empty());
    assert_eq!(listed(&varv), ["night2", "night3"]);
    restore_all(&varv, &source, &states);
    varv.ok(args!["check", "--read-data", "--quiet"]);
}

#[test]
fn protected_snapshots_stay() {
    let varv = Varv::new();
    nights(&varv, 4);
    let id = varv.snapshots()[1]["id"].as_str().unwrap().to_string();
    varv.ok(args!["protect", &id[..8]]);
    assert_eq!(varv.snapshots()[1]["protected"], true);
    assert_eq!(varv.snapshots()[0]["protected"], false);
    varv.ends(2, args!["forget", &id]).says(&["protected", "unprotect"]);
    let done = varv.json(args!["forget", "--keep-last", "1"]);
    assert_eq!(tags(&done["kept"]), ["night1", "night3"]);
    varv.ok(args!["prune"]);
    assert_eq!(listed(&varv), ["night1", "night3"]);
    varv.ok(args!["unprotect", &id]);
    varv.ok(args!["forget", "--keep-last", "1"]);
    assert_eq!(listed(&varv), ["night3"]);
}

#[test]
fn prune_does_what_it_planned() {
    let varv = Varv::new();
    let (source, states) = nights(&varv, 8);
    let idle = varv.json(args!["prune", "--dry-run", "--max-unused", "0"]);
    assert_eq!((&idle["bytes_unused"], &idle["bytes_repack"]), (&Value::from(0), &Value::from(0)), "{idle}");
    varv.ok(args!["forget", "--keep-last", "2"]);
    let plan = varv.json(args!["prune", "--dry-run", "--max-unused", "0"]);
    assert_eq!(plan["done"], Value::Null);
    assert_eq!(plan["bytes"], packs_len(&varv));
    let before = packs_len(&varv);
    let report = varv.json(args!["prune", "--max-unused", "0"]);
    for (name, value) in plan.as_object().unwrap() {
        assert!(["done", "dry_run"].contains(&name.as_str()) || report[name] == *value, "{name}");
    }
    let done = &report["done"];
    let number = |value: &Value| value.as_u64().unwrap();
    assert_eq!(done["bytes_removed"], plan["bytes_unused"]);
    assert_eq!(done["bytes_repacked"], plan["bytes_repack"]);
    assert_eq!(done["packs_repacked"], plan["packs_repack"]);
    assert_eq!(done["snapshots_removed"], 6);
    assert_eq!(before - packs_len(&varv), number(&done["bytes_freed"]));
    let (planned, freed) = (number(&plan["bytes_to_free"]), number(&done["bytes_freed"]));
    assert!(planned > 0 && planned.abs_diff(freed) < planned / 10 + 2000, "{plan} {done}");
    restore_all(&varv, &source, &states);
    varv.ok(args!["check", "--read-data", "--quiet"]);
    let again = varv.json(args!["prune", "--max-unused", "0"]);
    assert_eq!(
        (&again["bytes_unused"], &again["bytes_repack"]),
        (&Value::from(0), &Value::from(0)),
        "{again}"
    );
    assert!(varv.ok(args!["prune", "-q"]).stdout.is_empty());
    // What stayed is still known: nothing is stored again.
    let target = varv.path("again");
    varv.restore(args![&source, &target]);
    assert_eq!(varv.backup(args!["--force-read", &target])["bytes_new"], 0);
    // And nothing of that rests on the index.
    fs::remove_dir_all(varv.repository.join("index")).unwrap();
    varv.ok(args!["check", "--read-data", "--quiet"]);
}

#[test]
fn an_encrypted_repository_is_pruned() {
    let varv = Varv::without_repository();
    let key = varv.path("key");
    varv.ok(args!["init", "-q", "--key-file", &key]);
    let source = varv.dir("source");
    tree(&source, 1);
    let mut random = Random(2);
    for _ in 0..4 {
        varv.ok(args!["backup", "-q", "--key-file", &key, &source]);
        change(&source, &mut random);
    }
    varv.ok(args!["backup", "-q", "--key-file", &key, &source]);
    varv.ok(args!["forget", "-q", "--key-file", &key, "--keep-last", "1"]);
    let done = varv.json(args!["prune", "--key-file", &key, "--max-unused", "0"]);
    assert!(done["done"]["packs_repacked"].as_u64().unwrap() > 0, "{done}");
    varv.ok(args!["check", "--key-file", &key, "--read-data", "-q"]);
    let target = varv.path("target");
    varv.restore(args!["--key-file", &key, &source, &target]);
    assert_same(&source, &target);
}

#[test]
fn a_limit_on_repacking_is_kept() {
    let varv = Varv::new();
    nights(&varv, 6);
    varv.ok(args!["forget", "--keep-last", "1"]);
    let plan = varv.json(args!["prune", "--max-unused", "0", "--max-repack", "100K", "--dry-run"]);
    assert!(plan["bytes_repack"].as_u64().unwrap() <= 100 << 10, "{plan}");
    let none = varv.json(args!["prune", "--max-unused", "100", "--dry-run"]);
    assert_eq!(none["packs_repack"], 0);
    varv.ends(2, args!["prune", "--max-unused", "101"]);
    varv.ends(2, args!["prune", "--max-unused", "-1"]);
}

/// What is stored twice, by two that did not know of each other, is kept once.
#[test]
fn second_copies_go() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let content = varv.path("source/file");
    fs::write(&content, bytes(1, 9 << 20)).unwrap();
    let children: Vec<Child> = (0..4).map(|_| start(&varv, args!["backup", &source])).collect();
    children.into_iter().for_each(end);
    varv.ok(args!["prune", "--max-unused", "0"]);
    assert!(packs_len(&varv) < 10 << 20, "{}", packs_len(&varv));
    varv.ok(args!["check", "--read-data", "--quiet"]);
}

#[test]
fn damage_stops_prune_before_it_makes_it_worse() {
    let varv = Varv::new();
    let (source, states) = nights(&varv, 3);
    // A pack that the second night needs is gone.
    let before: Vec<PathBuf> = varv.objects();
    varv.backup(args!["--tag", "last", &source]);
    let new: Vec<PathBuf> = varv.objects().into_iter().filter(|path| !before.contains(path)).collect();
    let pack = new.iter().find(|path| path.starts_with(varv.repository.join("packs"))).unwrap();
    let kept = varv.path("pack");
    fs::rename(pack, &kept).unwrap();
    let objects = varv.objects();
    varv.ends(4, args!["prune"]).says(&["missing", "nothing is pruned"]);
    assert_eq!(varv.objects(), objects);
    fs::rename(&kept, pack).unwrap();
    // A snapshot that cannot be read is in the way, until it is forgotten.
    let row = varv.snapshots().pop().unwrap();
    let id = row["id"].as_str().unwrap();
    fs::write(varv.repository.join("snapshots").join(id), b"damaged").unwrap();
    varv.ends(4, args!["prune"]).says(&[id, "nothing is pruned"]);
    varv.ok(args!["forget", id]);
    varv.ok(args!["prune"]);
    restore_all(&varv, &source, &states);
}

fn start(varv: &Varv, words: &[std::ffi::OsString]) -> Child {
    varv.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn end(child: Child) {
    Done::from(child.wait_with_output().unwrap()).expect(0, args!["a child"]);
}

#[test]
fn two_prunes_a_retier_and_three_backups_at_once() {
    let varv = Varv::new();
    let sources: Vec<PathBuf> = (0..3)
        .map(|number| {
            let source = varv.dir(&format!("source{number}"));
            tree(&source, 1);
            fs::write(source.join("own"), bytes(number, 2 << 20)).unwrap();
            fs::write(source.join("table"), rows(&mut Random(number), 1 << 20)).unwrap();
            source
        })
        .collect();
    let mut random = Random(std::process::id().into());
    for round in 0..4 {
        let mut children: Vec<Child> = sources
            .iter()
            .enumerate()
            .map(|(number, source)| {
                start(&varv, args!["backup", "--lock-wait", "60s", "--label", number.to_string(), source])
            })
            .collect();
        for _ in 0..2 {
            children.push(start(&varv, args!["prune", "--lock-wait", "60s", "--max-unused", "0"]));
        }
        let retier = args!["retier", "--lock-wait", "60s", "--older-than", "now", "--to", "warm"];
        children.push(start(&varv, retier));
        children.into_iter().for_each(end);
        for (number, source) in sources.iter().enumerate() {
            let target = varv.path(&format!("target{round}-{number}"));
            varv.restore(args!["--verify", source, &target]);
            assert_same(source, &target);
            change(source, &mut random);
            change_rows(&source.join("table"), &mut random);
        }
        varv.ok(args!["forget", "-q", "--keep-last", "2"]);
    }
    varv.ok(args!["prune", "-q"]);
    varv.ok(args!["check", "--read-data", "--quiet"]);
    assert_eq!(varv.snapshots().len(), 6);
}

#[test]
fn who_is_in_the_way_is_said() {
    let varv = Varv::new();
    let text = |done: Done| String::from_utf8(done.stdout).unwrap();
    assert!(text(varv.ok(args!["locks"])).contains("nobody"));
    let mut child =
        varv.command(args!["backup", "-q", "--stdin", "stream"]).stdin(Stdio::piped()).spawn().unwrap();
    let rows = loop {
        let rows = varv.json(args!["locks"]);
        if rows[0]["command"].as_str().is_some() {
            break rows;
        }
        std::thread::yield_now();
    };
    assert_eq!(rows[0]["process"], child.id());
    assert_eq!((&rows[0]["exclusive"], &rows[0]["dead"]), (&Value::from(false), &Value::from(false)));
    assert!(rows[0]["command"].as_str().unwrap().contains("--stdin stream"));
    let pid = child.id().to_string();
    varv.ends(11, args!["prune"]).says(&["locked", &pid, "--stdin stream", "varv locks"]);
    varv.ok(args!["prune", "--dry-run"]);
    child.kill().unwrap();
    child.wait().unwrap();
    let rows = varv.json(args!["locks"]);
    assert_eq!(
        (&rows[0]["process"], &rows[0]["dead"]),
        (&Value::from(pid.parse::<u64>().unwrap()), &Value::from(true))
    );
    assert_eq!(varv.json(args!["locks"]), Value::Array(vec![]), "what it left was removed");
    varv.ok(args!["prune"]);
    varv.ends(10, args!["locks", "-r", varv.path("nowhere")]);
}

#[test]
fn the_next_command_tells_of_a_crash() {
    let varv = Varv::new();
    let mut child =
        varv.command(args!["backup", "-q", "--stdin", "stream"]).stdin(Stdio::piped()).spawn().unwrap();
    while varv.json(args!["locks"])[0]["command"].as_str().is_none() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    varv.ok(args!["snapshots"]).says(&["interrupted", &child.id().to_string(), "--stdin stream"]);
    assert!(varv.ok(args!["snapshots"]).stderr.is_empty(), "it is told once");
}

/// Rounds of the test below; `VARV_TEST_ROUNDS` in the environment makes it longer.
fn rounds(usual: usize) -> usize {
    std::env::var("VARV_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Plain copies of random nights are the oracle, while random snapshots are forgotten, brought
/// back and pruned.
#[test]
fn random_nights_are_forgotten_and_pruned() {
    let varv = Varv::new();
    let source = varv.dir("source");
    tree(&source, 1);
    let mut random = Random(11);
    let mut oracle: BTreeMap<String, support::tree::Tree> = BTreeMap::new();
    let mut forgotten: BTreeMap<String, support::tree::Tree> = BTreeMap::new();
    for night in 0..rounds(16) {
        let tag = format!("night{night}");
        oracle.insert(tag.clone(), read(&source));
        varv.backup(args!["--tag", &tag, &source]);
        change(&source, &mut random);
        for row in varv.snapshots() {
            if random.below(3) == 0 {
                varv.ok(args!["forget", "-q", "--allow-last", row["id"].as_str().unwrap()]);
                let tag = row["tags"][0].as_str().unwrap().to_string();
                forgotten.insert(tag.clone(), oracle.remove(&tag).unwrap());
            }
        }
        match random.below(4) {
            0 => {
                varv.ok(args!["undo-forget", "-q"]);
                oracle.append(&mut forgotten);
            }
            1 | 2 => {
                let share = ["0", "5", "50", "100"][random.below(4) as usize];
                varv.ok(args!["prune", "-q", "--max-unused", share]);
                forgotten.clear();
            }
            _ => {}
        }
        let mut tags = listed(&varv);
        tags.sort();
        assert_eq!(tags, oracle.keys().cloned().collect::<Vec<_>>());
        if night % 4 == 3 {
            restore_all(&varv, &source, &oracle);
            varv.ok(args!["check", "--read-data", "--quiet"]);
        }
    }
    restore_all(&varv, &source, &oracle);
}
