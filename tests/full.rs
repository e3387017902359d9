//! On a full disk, and where nothing may be written: what only reads goes on.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use support::make::{bytes, overwrite, tree};
use support::system::{Mount, root_or_skip, run, skip};
use support::tree::{assert_tree, read};
use support::{Varv, args};

/// A repository with one snapshot on a small file system of its own.
struct Small {
    varv: Varv,
    source: PathBuf,
    point: PathBuf,
    _mounted: Mount,
}

impl Small {
    fn new() -> Option<Self> {
        let mut varv = Varv::without_repository();
        let point = varv.dir("small");
        let mounted = Mount::tmpfs(16, &point)?;
        varv.repository = point.join("repository");
        let source = varv.dir("source");
        tree(&source, 1);
        varv.ok(args!["init", "-q", "--encryption", "none"]);
        varv.backup(args![&source]);
        Some(Self { varv, source, point, _mounted: mounted })
    }

    fn lose_index(&self) {
        fs::remove_dir_all(self.varv.repository.join("index")).unwrap();
    }

    /// Takes all the room there is.
    fn fill(&self) {
        let mut file = File::create(self.point.join("filler")).unwrap();
        for len in [1 << 16, 1] {
            while file.write(&vec![1; len]).is_ok_and(|written| written > 0) {}
        }
    }

    /// Every command that only reads does so; `says` is on standard error of each.
    fn reads(&self, cache: &Path, says: &[&str]) {
        let Self { varv, source, .. } = self;
        let commands = [
            args!["snapshots"],
            args!["ls", source],
            args!["find", "*"],
            args!["stats"],
            args!["check", "--read-data"],
            args!["locks"],
        ];
        for words in commands {
            varv.ok(&[args!["--cache-dir", cache], words].concat());
        }
        let target = varv.path("restored");
        let done = varv.run(args!["restore", "--cache-dir", cache, source, &target]);
        done.expect(0, args!["restore"]);
        done.says(says);
        assert_tree(&read(source), &target);
        fs::remove_dir_all(target).unwrap();
    }
}

#[test]
fn an_index_that_is_there_is_read() {
    let Some(small) = Small::new() else { return };
    small.fill();
    small.reads(&small.varv.path("cache"), &[]);
    assert!(!small.varv.path("cache").exists());
}

#[test]
fn an_index_is_made_in_the_cache_folder() {
    let Some(small) = Small::new() else { return };
    small.lose_index();
    small.fill();
    small.reads(&small.varv.path("cache"), &["No space left", "the index is kept in"]);
}

#[test]
fn an_index_is_made_in_memory() {
    let Some(small) = Small::new() else { return };
    small.lose_index();
    small.fill();
    small.reads(&small.point.join("cache"), &["No space left", "the index is made in memory"]);
    // What adds needs room, and says so.
    small.varv.ends(1, args!["backup", &small.source]).says(&["No space left"]);
    fs::remove_file(small.point.join("filler")).unwrap();
    small.varv.backup(args![&small.source]);
    small.reads(&small.point.join("cache"), &[]);
}

#[test]
fn a_backup_says_that_the_disk_is_full_where_only_the_index_sees_it() {
    let Some(small) = Small::new() else { return };
    small.fill();
    for words in [args!["backup", &small.source], args!["repair"]] {
        small.varv.ends(1, words).says(&["No space left", "varv forget and varv prune"]);
    }
}

/// The index can neither be read nor be made anew where it is.
#[test]
fn prune_frees_a_full_disk_with_a_damaged_index() {
    let Some(small) = Small::new() else { return };
    let index = small.varv.repository.join("index/index.sqlite");
    fs::write(small.source.join("gone"), bytes(1, 3 << 20)).unwrap();
    small.varv.backup(args![&small.source]);
    fs::remove_file(small.source.join("gone")).unwrap();
    small.varv.backup(args![&small.source]);
    for page in 1..fs::metadata(&index).unwrap().len() / 4096 {
        overwrite(&index, page * 4096 + 2000, &[0xa5; 64]);
    }
    small.fill();
    // SQLite finds room for its files, and then none for a new index.
    let filler = File::options().write(true).open(small.point.join("filler")).unwrap();
    filler.set_len(filler.metadata().unwrap().len() - (64 << 10)).unwrap();
    small.varv.ok(args!["forget", "-q", "--keep-last", "1"]);
    let done = small.varv.ok(args!["--json", "prune", "--max-unused", "0"]);
    done.says(&["the index was made anew"]);
    assert!(done.json()["done"]["bytes_freed"].as_u64().unwrap() > 2 << 20, "{done:?}");
    small.reads(&small.point.join("cache"), &[]);
    small.varv.backup(args![&small.source]);
}

/// SQLite maps a file into memory, of whose pages a file system with small blocks may have a part.
#[test]
fn a_full_disk_with_small_blocks_sends_no_signal() {
    let mut varv = Varv::without_repository();
    let (image, point) = (varv.path("image"), varv.dir("small"));
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let image = image.to_str().unwrap();
    if !run("mkfs.ext4", &["-q", "-b", "1024", "-m", "0", image]) {
        let _ = skip::<()>("no mkfs.ext4");
        return;
    }
    let Some(_mounted) = Mount::new(&["-o", "loop", image], &point) else { return };
    varv.repository = point.join("repository");
    let (source, target) = (varv.dir("source"), varv.path("target"));
    tree(&source, 1);
    varv.backup(args!["--init", "--encryption", "none", &source]);
    let filler = point.join("filler");
    for free in (8..=72).step_by(8) {
        let _ = fs::remove_file(&filler);
        let _ = fs::remove_dir_all(varv.repository.join("index"));
        let mut file = File::create(&filler).unwrap();
        while file.write(&[1; 1024]).is_ok_and(|written| written > 0) {}
        file.set_len(file.metadata().unwrap().len().saturating_sub(free << 10)).unwrap();
        varv.ok(args!["restore", "-q", &source, &target]);
        fs::remove_dir_all(&target).unwrap();
    }
    // The disk becomes full at another moment each time.
    for free in (0..=1280).step_by(64) {
        let _ = fs::remove_file(&filler);
        fs::write(source.join("new"), bytes(free, 600 << 10)).unwrap();
        let mut file = File::create(&filler).unwrap();
        while file.write(&[1; 1024]).is_ok_and(|written| written > 0) {}
        file.set_len(file.metadata().unwrap().len().saturating_sub(free << 10)).unwrap();
        let done = varv.run(args!["backup", "-q", &source]);
        assert!(matches!(done.code, Some(0 | 1)), "{free}: {done:?}");
        varv.ok(args!["forget", "-q", "--keep-last", "1"]);
        varv.ok(args!["prune", "-q", "--max-unused", "0"]);
    }
    fs::remove_file(&filler).unwrap();
    varv.ok(args!["check", "--read-data"]);
    varv.ok(args!["restore", "-q", &source, &target]);
}

/// What is said of the packs is what counts, wherever the index is hit and whether that is seen.
#[test]
fn a_damaged_index_hides_no_damage_of_packs() {
    let Some(small) = Small::new() else { return };
    let index = small.varv.repository.join("index/index.sqlite");
    let whole = fs::read(&index).unwrap();
    let objects = small.varv.objects();
    let len = |path: &&PathBuf| fs::metadata(path).unwrap().len();
    let pack = objects.iter().max_by_key(len).unwrap();
    overwrite(pack, len(&pack) / 2, &[0xa5; 8]);
    let cache = small.point.join("cache");
    // Where bytes look random are ids of chunks.
    let is_random = |bytes: &[u8]| bytes.iter().collect::<BTreeSet<_>>().len() > 32;
    let rows: Vec<usize> =
        (0..whole.len() - 64).step_by(64).filter(|at| is_random(&whole[*at..at + 64])).collect();
    assert!(rows.len() >= 8, "only {} places with rows", rows.len());
    let mut seen = 0;
    for at in rows.iter().step_by(rows.len() / 8) {
        fs::write(&index, &whole).unwrap();
        overwrite(&index, *at as u64, &[0xa5; 64]);
        small.fill();
        let done = small.varv.run(args!["--json", "check", "--read-data", "--cache-dir", &cache]);
        let report = done.json();
        done.expect(4, args!["check"]);
        let named: Vec<&str> =
            report["damaged"].as_array().unwrap().iter().map(|d| d["object"].as_str().unwrap()).collect();
        let id = pack.file_name().unwrap().to_str().unwrap();
        assert!(named.iter().any(|object| object.contains(id)), "{report}");
        seen += u32::from(named.contains(&"index/index.sqlite"));
        small.varv.ok(args!["ls", "--cache-dir", &cache, &small.source]);
        fs::remove_file(small.point.join("filler")).unwrap();
    }
    assert!(seen > 0, "no damage of the index was seen");
}

#[test]
fn an_index_that_must_not_be_written_and_is_old() {
    if root_or_skip().is_none() {
        return;
    }
    let Some(small) = Small::new() else { return };
    let index = small.varv.repository.join("index");
    let kept = small.varv.path("kept");
    assert!(run("cp", &["-r", index.to_str().unwrap(), kept.to_str().unwrap()]));
    fs::write(small.source.join("new"), "new").unwrap();
    small.varv.backup(args![&small.source]);
    fs::remove_dir_all(&index).unwrap();
    fs::rename(kept, &index).unwrap_or_else(|_| {
        assert!(run("cp", &["-r", small.varv.path("kept").to_str().unwrap(), index.to_str().unwrap()]));
    });
    let repository = small.varv.repository.to_str().unwrap();
    assert!(run("mount", &["-o", "remount,ro", small.point.to_str().unwrap()]), "{repository}");
    small.reads(&small.varv.path("cache"), &[]);
    // Not even a cache folder.
    small.reads(&small.point.join("cache"), &["the index is made in memory"]);
}
