//! Several processes in one repository at the same time.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use support::make::{Random, bytes, change, tree};
use support::tree::assert_same;
use support::{Done, Varv, args};

const BACKUPS: usize = 4;

/// Directories that have half of their bytes in common.
fn sources(varv: &Varv) -> Vec<PathBuf> {
    let source = |number: usize| {
        let source = varv.dir(&format!("source{number}"));
        tree(&source, 1);
        fs::write(source.join("shared"), bytes(99, 8 << 20)).unwrap();
        fs::write(source.join("own"), bytes(number as u64, 4 << 20)).unwrap();
        source
    };
    (0..BACKUPS).map(source).collect()
}

fn start(varv: &Varv, words: &[std::ffi::OsString]) -> Child {
    varv.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn end(child: Child) {
    Done::from(child.wait_with_output().unwrap()).expect(0, args!["a child"]);
}

fn restore_all(varv: &Varv, sources: &[PathBuf], name: &str) {
    for (number, source) in sources.iter().enumerate() {
        let target = varv.path(&format!("{name}{number}"));
        varv.restore(args!["--verify", source, &target]);
        assert_same(source, &target);
    }
}

#[test]
fn backups_at_once() {
    let varv = Varv::new();
    let sources = sources(&varv);
    for night in 0..3 {
        let children: Vec<Child> =
            sources.iter().map(|source| start(&varv, args!["backup", source])).collect();
        children.into_iter().for_each(end);
        assert_eq!(varv.snapshots().len(), BACKUPS * (night + 1));
        restore_all(&varv, &sources, &format!("night{night}-"));
        for source in &sources {
            change(source, &mut Random(night as u64));
        }
    }
    // Whatever was stored twice, the index holds together: nothing is new.
    for source in &sources {
        varv.backup(args!["-q", source]);
        assert_eq!(varv.backup(args!["--force-read", source])["bytes_new"], 0);
    }
}

#[test]
fn backups_of_the_same_source_at_once() {
    let varv = Varv::new();
    let source = sources(&varv).remove(0);
    let children: Vec<Child> = (0..BACKUPS).map(|_| start(&varv, args!["backup", &source])).collect();
    children.into_iter().for_each(end);
    let rows = varv.snapshots();
    assert_eq!(rows.len(), BACKUPS);
    for (number, row) in rows.iter().enumerate() {
        let target = varv.path(&format!("target{number}"));
        varv.restore(args!["--snapshot", row["id"].as_str().unwrap(), &source, &target]);
        assert_same(&source, &target);
    }
}

#[test]
fn all_make_the_index_anew_at_once() {
    let varv = Varv::new();
    let sources = sources(&varv);
    for source in &sources {
        varv.backup(args![source]);
    }
    fs::remove_dir_all(varv.repository.join("index")).unwrap();
    let mut children: Vec<Child> =
        sources.iter().map(|source| start(&varv, args!["backup", "--force-read", source])).collect();
    let target = varv.path("meanwhile");
    children.push(start(&varv, args!["restore", &sources[0], &target]));
    children.into_iter().for_each(end);
    assert_same(&sources[0], &target);
    restore_all(&varv, &sources, "after");
    assert_eq!(varv.backup(args!["--force-read", &sources[1]])["bytes_new"], 0);
}

#[test]
fn readers_are_not_disturbed() {
    let varv = Varv::new();
    let sources = sources(&varv);
    varv.backup(args![&sources[0]]);
    let backups: Vec<Child> =
        sources[1..].iter().map(|source| start(&varv, args!["backup", source])).collect();
    for number in 0..4 {
        assert!(!varv.snapshots().is_empty());
        let target = varv.path(&format!("target{number}"));
        varv.restore(args![&sources[0], &target]);
        assert_same(&sources[0], &target);
    }
    backups.into_iter().for_each(end);
    restore_all(&varv, &sources, "after");
    varv.ok(args!["check", "--read-data", "--quiet"]);
}

/// Who is killed in the middle of it must not harm the others.
#[test]
fn one_of_them_is_killed() {
    let varv = Varv::new();
    let sources = sources(&varv);
    let mut random = Random(std::process::id().into());
    for _ in 0..5 {
        let mut children: Vec<Child> =
            sources.iter().map(|source| start(&varv, args!["backup", source])).collect();
        let mut victim = children.remove(0);
        std::thread::sleep(std::time::Duration::from_micros(random.below(200_000)));
        victim.kill().unwrap();
        victim.wait().unwrap();
        children.into_iter().for_each(end);
        for source in &sources {
            change(source, &mut random);
        }
    }
    for source in &sources {
        varv.backup(args![source]);
    }
    restore_all(&varv, &sources, "after");
    varv.ok(args!["check", "--read-data", "--quiet"]);
}
