//! A damaged repository: the next backup heals what the source still has.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use support::make::{bytes, overwrite, tree};
use support::tree::{assert_same, assert_tree, read};
use support::{Varv, args};

const KINDS: [&str; 4] = ["deleted", "emptied", "cut short", "one byte changed"];

fn damage(pack: &Path, kind: &str) {
    support::chmod(pack, 0o600);
    let len = fs::metadata(pack).unwrap().len();
    match kind {
        "deleted" => fs::remove_file(pack).unwrap(),
        "emptied" => File::create(pack).map(drop).unwrap(),
        "cut short" => File::options().write(true).open(pack).unwrap().set_len(len / 2).unwrap(),
        _ => overwrite(pack, len / 2, &[!fs::read(pack).unwrap()[len as usize / 2]]),
    }
}

fn packs(varv: &Varv) -> Vec<PathBuf> {
    varv.objects().into_iter().filter(|path| path.starts_with(varv.repository.join("packs"))).collect()
}

/// Each pack of a first backup, damaged in each way; the index has seen it, or is gone.
#[test]
fn the_next_backup_restores_whole() {
    for kind in &KINDS[..3] {
        for number in 0..2 {
            for between in ["nothing", "a restore", "no index"] {
                let varv = Varv::new();
                let source = varv.dir("source");
                tree(&source, 1);
                varv.backup(args![&source]);
                damage(&packs(&varv)[number], kind);
                match between {
                    "a restore" => drop(varv.run(args!["restore", &source, varv.path("spoilt")])),
                    "no index" => fs::remove_dir_all(varv.repository.join("index")).unwrap(),
                    _ => {}
                }
                let done = varv.ok(args!["backup", &source]);
                let target = varv.path("target");
                let restored = varv.run(args!["restore", &source, &target]);
                assert_eq!(restored.code, Some(0), "{kind} {number} {between}: {done:?} {restored:?}");
                assert_same(&source, &target);
            }
        }
    }
}

/// Damage is told by exit code 4 and by name, and the rest comes back.
#[test]
fn a_restore_names_what_is_damaged() {
    for kind in KINDS {
        let varv = Varv::new();
        let source = varv.dir("source");
        fs::write(source.join("early"), bytes(1, 200_000)).unwrap();
        varv.backup(args![&source]);
        let early = packs(&varv);
        fs::write(source.join("late"), bytes(2, 200_000)).unwrap();
        varv.backup(args![&source]);
        let data = early.iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
        damage(data, kind);
        let target = varv.path("target");
        varv.ends(4, args!["restore", "-q", &source, &target]).says(&["early"]);
        assert!(fs::read(target.join("late")).unwrap() == fs::read(source.join("late")).unwrap(), "{kind}");
        varv.ends(4, args!["check", "--read-data"]);
        varv.ends(4, args!["dump", source.join("early")]).says(&["chunk", "varv check"]);
    }
}

#[test]
fn a_damaged_snapshot_leaves_the_others() {
    for kind in KINDS {
        let varv = Varv::new();
        let source = varv.dir("source");
        tree(&source, 1);
        varv.backup(args![&source]);
        let (first, before) = (varv.snapshots()[0]["id"].as_str().unwrap().to_string(), read(&source));
        support::make::change(&source, &mut support::make::Random(1));
        varv.backup(args![&source]);
        let second = varv.snapshots()[1]["id"].as_str().unwrap().to_string();
        damage(&varv.repository.join("snapshots").join(&second), kind);
        let listed = varv.run(args!["snapshots", "--json"]);
        assert_eq!(listed.code, Some(if kind == "deleted" { 0 } else { 4 }), "{kind}");
        assert_eq!(listed.json().as_array().unwrap().len(), 1);
        let target = varv.path("target");
        varv.restore(args!["--snapshot", &first, &source, &target]);
        assert_tree(&before, &target);
        varv.backup(args![&source]);
        let target = varv.path("target2");
        varv.restore(args![&source, &target]);
        assert_same(&source, &target);
    }
}

#[test]
fn each_copy_of_the_configuration_is_enough() {
    for (name, kind) in ["config", "config.copy"].into_iter().flat_map(|name| KINDS.map(|kind| (name, kind)))
    {
        let varv = Varv::new();
        let source = varv.dir("source");
        varv.backup(args![&source]);
        damage(&varv.repository.join(name), kind);
        assert_eq!(varv.snapshots().len(), 1, "{name} {kind}");
        varv.backup(args![&source]);
    }
}

/// The last line has a checksum that anybody can compute, and one that needs the key.
#[test]
fn each_copy_is_enough_whatever_byte_of_the_other_is_spoilt() {
    let varv = Varv::new();
    for name in ["config", "config.copy"] {
        let file = varv.repository.join(name);
        let whole = fs::read(&file).unwrap();
        for at in (0..whole.len() - 150).step_by(41).chain(whole.len() - 150..whole.len()) {
            let mut spoilt = whole.clone();
            spoilt[at] ^= 1 << (at % 8);
            fs::write(&file, &spoilt).unwrap();
            let done = varv.run(args!["snapshots"]);
            assert_eq!(done.code, Some(0), "byte {at}: {done:?}");
        }
        let repaired = varv.run(args!["repair"]);
        assert_eq!(repaired.code, Some(0), "{repaired:?}");
        assert_eq!(fs::read(&file).unwrap(), whole);
    }
}

#[test]
fn a_spoilt_index_is_made_anew() {
    for kind in KINDS {
        let varv = Varv::new();
        let source = varv.dir("source");
        tree(&source, 1);
        varv.backup(args![&source]);
        damage(&varv.repository.join("index/index.sqlite"), kind);
        assert_eq!(varv.backup(args!["--force-read", &source])["bytes_new"], 0, "{kind}");
        let target = varv.path("target");
        varv.restore(args![&source, &target]);
        assert_same(&source, &target);
    }
}

/// Whatever page is hit, and whoever meets it first: it is made anew, and what was asked for is done.
#[test]
fn an_index_that_turns_out_to_be_damaged_is_made_anew() {
    let varv = Varv::without_repository();
    let source = varv.dir("source");
    for night in 0..3 {
        fs::write(source.join("changes"), bytes(night, 1 << 20)).unwrap();
        varv.backup(args!["--init", "--encryption", "none", "--chunker", "fixed:4K", &source]);
    }
    let index = varv.repository.join("index/index.sqlite");
    let whole = fs::read(&index).unwrap();
    let target = varv.path("target");
    let commands = [
        args!["backup", "--force-read", &source],
        args!["restore", &source, &target],
        args!["dump", source.join("changes")],
        args!["stats"],
        args!["prune", "--max-unused", "0"],
    ];
    let (pages, mut told) = (whole.len() / 4096, 0);
    for page in 1..pages {
        for command in commands {
            let _ = fs::remove_dir_all(&target);
            fs::write(&index, &whole).unwrap();
            overwrite(&index, page as u64 * 4096, &[0xa5; 4096]);
            told += usize::from(varv.ok(command).stderr.contains("the index was made anew: the index"));
            assert!(!target.exists() || read(&target) == read(&source), "page {page}");
        }
    }
    assert!(told > pages, "told {told} times of {pages} pages");
}

#[test]
fn foreign_files_in_the_repository_are_left_alone() {
    let varv = Varv::new();
    let source = varv.dir("source");
    tree(&source, 1);
    let foreign = ["packs/README", "packs/ab/notes", "snapshots/.DS_Store", "lost+found/x", "mine"];
    for name in foreign {
        let path = varv.repository.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "foreign").unwrap();
    }
    let target = varv.round(&source, "target");
    assert_same(&source, &target);
    assert_eq!(varv.snapshots().len(), 1);
    for name in foreign {
        assert!(varv.repository.join(name).exists(), "{name}");
    }
}

fn check(varv: &Varv, words: &[std::ffi::OsString]) -> (Option<i32>, serde_json::Value) {
    let done = varv.run(&[args!["--json", "check"], words].concat());
    (done.code, done.json())
}

/// Each pack damaged in each way; a check names it, and the next backup reads again what it hurts
/// and nothing else.
#[test]
fn what_a_check_found_the_next_backup_heals() {
    for kind in KINDS {
        for number in 0..2 {
            let varv = Varv::new();
            let source = varv.dir("source");
            fs::write(source.join("early"), bytes(1, 300_000)).unwrap();
            varv.backup(args![&source]);
            let early = packs(&varv);
            fs::write(source.join("late"), bytes(2, 300_000)).unwrap();
            varv.backup(args![&source]);
            let first = varv.snapshots()[0]["id"].as_str().unwrap().to_string();
            let is_data = fs::metadata(&early[number]).is_ok_and(|found| found.len() > 100_000);
            damage(&early[number], kind);
            assert_eq!(check(&varv, args!["--read-data"]).0, Some(4), "{kind} {number}");
            // The truth is not in the index.
            fs::remove_dir_all(varv.repository.join("index")).unwrap();
            let healed = varv.backup(args![&source]);
            if kind == "one byte changed" && is_data {
                assert_eq!(healed["bytes_read"], 300_000, "only what is hurt is read: {healed}");
            }
            let (code, report) = check(&varv, args!["--read-data"]);
            let lost = report["damaged"].to_string();
            match code {
                // A byte of a metadata pack may be one of a map, which can be made again.
                Some(0) => assert!(is_data || kind == "one byte changed", "{kind} {number}: {report}"),
                // What a directory was like, no source has any more.
                Some(4) if !is_data => {
                    assert!(lost.contains(&format!("all of it in {}", &first[..8])), "{lost}")
                }
                other => panic!("{kind} {number}: {other:?} {report}"),
            }
            for (name, words) in [("new", args![&source]), ("old", args!["--snapshot", &first, &source])] {
                if name == "old" && code != Some(0) {
                    continue;
                }
                let target = varv.path(name);
                varv.restore(&[words, args![&target]].concat());
                for file in fs::read_dir(&target).unwrap() {
                    let file = file.unwrap().file_name();
                    assert_eq!(
                        fs::read(target.join(&file)).unwrap(),
                        fs::read(source.join(&file)).unwrap(),
                        "{kind} {number} {name}"
                    );
                }
            }
            assert_eq!(varv.backup(args![&source])["bytes_read"], 0);
        }
    }
}

/// Without any check: metadata that cannot be read, and trailers that are not what they were, are
/// found by the backup itself.
#[test]
fn a_backup_does_not_rely_on_what_it_finds_damaged() {
    let varv = Varv::new();
    let source = varv.dir("source");
    tree(&source, 1);
    varv.backup(args![&source]);
    for pack in packs(&varv) {
        let len = fs::metadata(&pack).unwrap().len();
        support::chmod(&pack, 0o600);
        overwrite(&pack, 60, &[!fs::read(&pack).unwrap()[60]]);
        overwrite(&pack, len - 15, &[!fs::read(&pack).unwrap()[len as usize - 15]]);
    }
    let mut codes = Vec::new();
    for _ in 0..3 {
        codes.push(varv.run(args!["backup", "--force-read", &source]).code);
    }
    assert_eq!(codes.last(), Some(&Some(0)), "{codes:?}");
    let target = varv.path("target");
    varv.restore(args![&source, &target]);
    assert_same(&source, &target);
    let (code, report) = check(&varv, args!["--read-data"]);
    assert_eq!(code, Some(0), "the backups named what was damaged; now nothing needs it: {report}");
    assert!(report["notes"].to_string().contains("varv repair removes it"), "{report}");
}

#[test]
fn the_ledger_says_what_is_due() {
    let varv = Varv::new();
    let source = varv.dir("source");
    for night in 0..4 {
        fs::write(source.join(night.to_string()), bytes(night, 200_000)).unwrap();
        varv.backup(args![&source]);
    }
    let due = |words: &[std::ffi::OsString]| {
        let (code, report) = check(&varv, &[args!["--read-data"], words].concat());
        assert_eq!(code, Some(0), "{report}");
        (report["packs_read"].as_u64().unwrap(), report["packs_due"].as_u64().unwrap())
    };
    assert_eq!(due(args!["--max-age", "30D", "--limit", "1B"]), (1, 7), "one pack at least");
    assert!(due(args!["--max-age", "30D", "--limit", "300K"]).0 > 0);
    let (read, left) = due(args!["--max-age", "30D"]);
    assert!(read > 0 && read < 8 && left == 0);
    assert_eq!(due(args!["--max-age", "30D"]), (0, 0));
    let mut ledger = fs::read_dir(varv.repository.join("state")).unwrap();
    let ledger = ledger.next().unwrap().unwrap().path();
    damage(&ledger, "one byte changed");
    let (code, report) = check(&varv, args![]);
    assert_eq!((code, report["damaged"].as_array().unwrap().len()), (Some(4), 1), "{report}");
    assert_eq!(due(args!["--max-age", "30D"]), (8, 0));
    varv.ends(2, args!["check", "--read-data=10%", "--limit", "1G"]);
    varv.ends(2, args!["check", "--limit", "1G"]);
}

/// A mark keeps backups away; a restore still tries, for the medium may have had but a moment.
#[test]
fn what_is_marked_and_sound_again_restores() {
    let varv = Varv::new();
    let source = varv.dir("source");
    tree(&source, 1);
    varv.backup(args![&source]);
    let all = packs(&varv);
    let whole: Vec<Vec<u8>> = all.iter().map(|pack| fs::read(pack).unwrap()).collect();
    all.iter().for_each(|pack| damage(pack, "one byte changed"));
    assert_eq!(check(&varv, args!["--read-data"]).0, Some(4));
    for (pack, bytes) in all.iter().zip(&whole) {
        fs::write(pack, bytes).unwrap();
    }
    let target = varv.path("target");
    varv.restore(args![&source, &target]);
    assert_same(&source, &target);
    assert_eq!(check(&varv, args![]).0, Some(0), "a check reads again what was bad");
    assert_eq!(varv.backup(args!["--force-read", &source])["bytes_new"], 0);
}
