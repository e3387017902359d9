//! What users of rdiff-backup know, and taking over what they have.
//!
//! Where else what its own tests ask for is asked here:
//!
//! | of rdiff-backup | here |
//! |---|---|
//! | times and lengths of time, good and bad; zones; summer time | `src/time.rs` |
//! | files as of a time, before the first, `1B`; a bad time | `history.rs`: `the_snapshot_of_a_time`, `bad_times_are_refused_with_an_example` |
//! | changed, new, deleted since; nothing since now | `history.rs`: `what_changed_since` |
//! | compare by metadata, hash, in full; codes of differences | `compare.rs`: `metadata_cannot_see_what_hash_and_full_see` |
//! | kinds swapped each session, interrupted sessions, each as of its time; regress, which here is any next command | below: `sessions_restore_as_of_their_times_whatever_was_interrupted` |
//! | removal of what is old, never the newest; nothing old enough | below: `what_is_older_goes_and_the_newest_never`; `upkeep.rs`: `nothing_goes_by_accident` |
//! | verify sees damage at a time that needs it, and not at others | `compare.rs`: `only_what_a_snapshot_needs_is_verified` |
//! | killed, run again, all earlier sessions restore | `crash.rs`: `a_backup_is_killed_at_any_moment` |
//! | names of a hard link come and go | `roundtrip.rs`: `hard_links_whose_first_name_goes_stay_one_file` |
//! | selection by patterns and lists, parents implied, one file system | `src/source/exclude.rs`, `src/source/walk.rs`; of a restore `overwrite.rs`: `a_part_is_selected` |
//! | shared and exclusive locks; reading where nothing can be written | `src/repo/lock/tests.rs`; `full.rs` |
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::ops::Range;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::make::{Random, change, tree};
use support::system::{root_or_skip, run, skip};
use support::tree::{Content, Tree, assert_tree, differences, read};
use support::{Varv, args};

/// A moment of night `number`, in seconds since 1970.
fn night(number: i64) -> String {
    (1_700_000_000 + number * 86_400).to_string()
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// What is at `path` in this night: each time something of another kind.
fn swap(path: &Path, number: i64) {
    remove(path);
    match number % 4 {
        0 => fs::write(path, format!("file of night {number}")).unwrap(),
        1 => {
            fs::create_dir(path).unwrap();
            fs::write(path.join("below"), format!("below in night {number}")).unwrap();
        }
        2 => symlink(format!("target of night {number}"), path).unwrap(),
        _ => {}
    }
}

fn swap_all(source: &Path, number: i64) {
    for name in 0..4 {
        swap(&source.join(format!("swapped{name}")), name + number);
    }
}

fn restored(varv: &Varv, source: &Path, at: &str, expected: &Tree) {
    let target = varv.path("restored");
    remove(&target);
    varv.restore(args!["--at", at, source, &target]);
    assert_tree(expected, &target);
}

/// Four sessions in which files, directories and links take each other's places, one that is killed
/// while it runs, and one that is taken back.
#[test]
fn sessions_restore_as_of_their_times_whatever_was_interrupted() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let mut states = Vec::new();
    for number in 0..4 {
        swap_all(&source, number);
        varv.backup(args!["--time", night(number), &source]);
        states.push(read(&source));
    }
    // It has read the source and waits for the rest of a stream.
    let words = args!["backup", "-q", "--time", night(4), &source, "--stdin", "stream"];
    let mut killed = varv.command(words).stdin(Stdio::piped()).spawn().unwrap();
    while varv.json(args!["locks"])[0]["command"].is_null() {
        std::thread::yield_now();
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    // Nothing has to be run by hand: it was never there.
    assert_eq!(varv.snapshots().len(), 4);
    let check = |states: &[Tree]| {
        for (number, state) in (0..).zip(states) {
            restored(&varv, &source, &night(number), state);
        }
        varv.ok(args!["check", "--read-data"]);
    };
    check(&states);
    restored(&varv, &source, &night(-1), &states[0]);
    restored(&varv, &source, "0B", &states[3]);
    restored(&varv, &source, "99B", &states[0]);
    // A forced regress drops the newest session.
    let newest = varv.snapshots()[3]["id"].as_str().unwrap().to_owned();
    varv.ok(args!["forget", newest]);
    restored(&varv, &source, "now", &states[2]);
    swap_all(&source, 7);
    varv.backup(args!["--time", night(5), &source]);
    states[3] = states[2].clone();
    check(&states);
    restored(&varv, &source, "now", &read(&source));
}

/// `remove increments --older-than`: any number of sessions at once, never the newest, and nothing
/// to do is no error.
#[test]
fn what_is_older_goes_and_the_newest_never() {
    let varv = Varv::new();
    let source = varv.dir("source");
    for number in 0..5 {
        swap_all(&source, number);
        varv.backup(args!["--time", night(number), &source]);
    }
    let forgotten = |time: &str| {
        let report = varv.json(args!["forget", "--older-than", time]);
        report["forgotten"].as_array().unwrap().len()
    };
    assert_eq!([forgotten(&night(0)), forgotten(&night(2)), forgotten(&night(2))], [0, 2, 0]);
    assert_eq!(forgotten("now"), 2);
    assert_eq!(varv.snapshots().len(), 1);
    varv.ends(2, args!["forget", "--older-than", "2B"]).says(&["counts backups"]);
}

fn rdiff_backup(words: &[&str], paths: [&Path; 2]) {
    let paths = paths.map(|path| path.to_str().unwrap());
    assert!(run("rdiff-backup", &[words, &paths].concat()), "rdiff-backup {words:?}");
}

/// Without the times of links, which rdiff-backup does not restore.
fn timeless_links(mut tree: Tree) -> Tree {
    for node in tree.values_mut() {
        if matches!(node.content, Content::Symlink(_)) {
            node.modified = (0, 0);
        }
    }
    tree
}

/// Adds sessions to a repository of rdiff-backup; what it restores of each itself, since it keeps no
/// fractions of seconds.
fn old_sessions(varv: &Varv, source: &Path, old: &Path, sessions: Range<i64>) -> Vec<(String, Tree)> {
    let mut states = Vec::new();
    for number in sessions {
        change(source, &mut Random(number as u64));
        swap_all(source, number);
        rdiff_backup(&["--current-time", &night(number), "backup"], [source, old]);
        let target = varv.path("restored");
        remove(&target);
        rdiff_backup(&["restore", "--at", &night(number)], [old, &target]);
        states.push((night(number), read(&target)));
    }
    states
}

fn import(varv: &Varv, old: &Path, folder: &Path, path: &Path) -> (bool, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/import-rdiff-backup");
    // As installed: the script finds varv in PATH.
    let bin = varv.path("bin");
    if !bin.exists() {
        fs::create_dir(&bin).unwrap();
        symlink(env!("CARGO_BIN_EXE_varv"), bin.join("varv")).unwrap();
    }
    let mut search: Vec<PathBuf> = vec![bin];
    search.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
    let inherited = varv.command(&[]);
    let mut command = Command::new(script);
    command.args([old, folder, path]).args(["--label", "old", "--quiet"]);
    for (name, value) in inherited.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.env("PATH", std::env::join_paths(search).unwrap()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn an_old_history_is_taken_over() {
    if !run("rdiff-backup", &["--version"]) {
        return skip("no rdiff-backup").unwrap_or_default();
    }
    let varv = Varv::new();
    let (source, old, folder) = (varv.dir("source"), varv.path("old"), varv.dir("folder"));
    tree(&source, 1);
    let mut states = old_sessions(&varv, &source, &old, 0..3);
    // Without root it is found under the folder that it was restored to.
    let path = if root_or_skip().is_some() { source.clone() } else { folder.clone() };
    let (done, said) = import(&varv, &old, &folder, &path);
    assert!(done && said.matches("session").count() == 3, "{said}");
    // The next session alone is added by another run.
    states.extend(old_sessions(&varv, &source, &old, 3..4));
    let (done, said) = import(&varv, &old, &folder, &path);
    assert!(done && said.matches("session").count() == 1, "{said}");
    let snapshots = varv.snapshots();
    assert_eq!(snapshots.len(), 4);
    for (time, state) in states {
        let target = varv.path("restored");
        remove(&target);
        varv.restore(args!["--at", &time, &path, &target]);
        let found = differences(&timeless_links(state), &timeless_links(read(&target)));
        assert!(found.is_empty(), "{time}: {found:?}");
    }
    if path == source {
        // The history goes on.
        change(&source, &mut Random(9));
        varv.backup(args!["--label", "old", &source]);
        restored(&varv, &source, "now", &read(&source));
        assert_eq!(varv.json(args!["history", &source])["versions"].as_array().unwrap().len(), 5);
    }
}
