//! What a restore never destroys: the repository that it reads from, and what was never backed up.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::time::UNIX_EPOCH;

use rustix::fs::{Mode, OFlags, mkdirat, openat};

use support::make::bytes;
use support::system::Mount;
use support::tree::assert_same;
use support::{Varv, args, chmod};

#[test]
fn delete_leaves_the_repository_alone() {
    let varv = Varv::new();
    let source = varv.dir("source");
    fs::write(source.join("file"), "content").unwrap();
    varv.backup(args![&source]);
    let home = varv.repository.parent().unwrap();
    fs::write(home.join("other"), "other").unwrap();
    // The home itself becomes the source; the repository lies in it.
    let restored = varv.restore(args!["--overwrite", "always", "--delete", &source, home]);
    assert!(!home.join("other").exists() && home.join("file").exists(), "{restored}");
    varv.ok(args!["check", "--read-data"]);
    assert_eq!(varv.snapshots().len(), 1);
}

#[test]
fn a_folder_around_the_repository_is_not_removed() {
    let mut varv = Varv::without_repository();
    let target = varv.dir("target");
    fs::create_dir_all(target.join("folder/below")).unwrap();
    fs::write(target.join("folder/file"), "file").unwrap();
    varv.repository = target.join("folder/below/repository");
    varv.ok(args!["init", "--encryption", "none"]);
    let source = varv.dir("source");
    varv.backup(args![&source]);
    let words = args!["restore", "--overwrite", "always", "--delete", &source, &target];
    varv.ends(1, words).says(&["is the repository"]);
    assert!(target.join("folder/file").exists());
    // Nor does it make room for a file of that name.
    fs::write(source.join("folder"), "a file").unwrap();
    varv.backup(args![&source]);
    varv.ends(1, words).says(&["is the repository"]);
    varv.ok(args!["check", "--read-data"]);
}

#[test]
fn a_mount_that_was_left_out_is_not_emptied() {
    let varv = Varv::new();
    let source = varv.dir("source");
    fs::create_dir(source.join("data")).unwrap();
    varv.backup(args![&source]);
    let target = varv.round(&source, "target");
    let Some(_mount) = Mount::tmpfs(1, &target.join("data")) else { return };
    fs::write(target.join("data/precious"), "precious").unwrap();
    let words = args!["restore", "--overwrite", "always", "--delete", &source, &target];
    varv.ends(1, words).says(&["target/data", "something is mounted"]);
    assert!(target.join("data/precious").exists());
}

#[test]
fn the_repository_is_no_target() {
    let varv = Varv::new();
    let source = varv.dir("source");
    fs::create_dir(source.join("repository")).unwrap();
    fs::write(source.join("repository/config"), "no configuration").unwrap();
    varv.backup(args![&source]);
    let link = varv.path("link");
    symlink(&varv.repository, &link).unwrap();
    let before = varv.objects();
    let file = source.join("repository/config");
    for target in [&varv.repository, &varv.repository.join("packs/new"), &link, &link.join("a/b")] {
        for path in [&source, &file] {
            let words = args!["restore", "--overwrite", "always", path, target];
            varv.ends(2, words).says(&["lies in the repository"]);
        }
    }
    // Met below the target, it is passed over, and that is an error.
    let home = varv.repository.parent().unwrap();
    varv.ends(1, args!["restore", "--in-place", &source, home]).says(&["is the repository"]);
    assert_eq!(varv.objects(), before);
    varv.ok(args!["check", "--read-data"]);
}

#[test]
fn a_dry_run_tells_what_would_be_removed() {
    let varv = Varv::new();
    let source = varv.dir("source");
    for name in ["a", "b/c", "b/d"] {
        fs::create_dir_all(source.join(name).parent().unwrap()).unwrap();
        fs::write(source.join(name), name).unwrap();
    }
    let target = varv.round(&source, "target");
    fs::create_dir(target.join("b/new")).unwrap();
    for name in ["b/new/x", "b/new/y", "b/other", "other"] {
        fs::write(target.join(name), name).unwrap();
    }
    for (selection, expected) in
        [(args![], 3), (args!["--include", "b"], 2), (args!["--exclude", "other"], 1)]
    {
        let words = [args!["--overwrite=always", "--delete", &source, &target], selection].concat();
        let dry = varv.run(&[args!["--json", "restore", "--dry-run"], &words].concat());
        assert_eq!(dry.json()["deleted"], expected, "{selection:?}");
        dry.says(&["b/new would be removed"]);
        assert!(target.join("b/new/x").exists() && target.join("other").exists());
    }
    let words = args!["--overwrite=always", "--delete", &source, &target];
    assert_eq!(varv.restore(words)["deleted"], 3);
    assert_same(&source, &target);
}

#[test]
fn patterns_may_begin_with_the_path_and_those_of_no_use_are_named() {
    let varv = Varv::new();
    let source = varv.dir("source");
    for name in ["etc/a", "etc/b", "var/a"] {
        fs::create_dir_all(source.join(name).parent().unwrap()).unwrap();
        fs::write(source.join(name), name).unwrap();
    }
    varv.backup(args![&source]);
    let found = |target: &str, words: &[std::ffi::OsString]| {
        let target = varv.path(target);
        let done = varv.ok(&[args!["restore", &source, &target], words].concat());
        let names = ["etc/a", "etc/b", "var/a"].map(|name| target.join(name).exists());
        (names, done.stderr)
    };
    let etc = source.join("etc");
    assert_eq!(found("one", args!["--include", &etc]).0, [true, true, false]);
    assert_eq!(found("two", args!["--exclude", etc.join("b")]).0, [true, false, true]);
    assert_eq!(found("three", args!["--include", &source, "--exclude", "/var"]).0, [true, true, false]);
    let (names, said) = found("four", args!["--include", "/srv/x", "--exclude", "b"]);
    assert_eq!(names, [false; 3]);
    assert!(said.contains("'/srv/x' matched nothing"), "{said}");
}

#[test]
fn what_stays_is_not_verified() {
    let varv = Varv::new();
    let source = varv.dir("source");
    fs::write(source.join("file"), "file").unwrap();
    fs::write(source.join("new"), "new").unwrap();
    varv.backup(args![&source]);
    for mode in ["never", "if-newer"] {
        let target = varv.dir(mode);
        fs::write(target.join("file"), "newer").unwrap();
        let restored = varv.restore(args!["--overwrite", mode, "--verify", &source, &target]);
        assert_eq!((&restored["skipped"], &restored["bytes_verified"]), (&1.into(), &3.into()));
        assert_eq!(fs::read(target.join("file")).unwrap(), b"newer");
    }
}

#[test]
fn paths_longer_than_the_kernel_takes_are_verified() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let mut dir = OwnedFd::from(fs::File::open(&source).unwrap());
    let name = "n".repeat(50);
    for _ in 0..100 {
        mkdirat(&dir, &name, Mode::RWXU).unwrap();
        dir = openat(&dir, &name, OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let file = openat(&dir, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
    fs::File::from(file).write_all(b"deep").unwrap();
    varv.backup(args![&source]);
    let target = varv.path("target");
    for more in [args![], args!["--in-place"], args!["--in-place", "--include", "file"]] {
        let words = [more, args!["--verify", &source, &target]].concat();
        assert_eq!(varv.restore(&words)["bytes_verified"], 4);
    }
    assert_eq!(varv.restore(args!["--verify", "--include", "none", &source, varv.path("no")])["files"], 0);
}

#[test]
fn what_could_not_be_restored_whole_is_not_taken_for_unchanged() {
    let varv = Varv::new();
    let source = varv.dir("source");
    fs::write(source.join("large"), bytes(1, 9 << 20)).unwrap();
    fs::write(source.join("medium"), bytes(2, 1 << 20)).unwrap();
    varv.backup(args![&source]);
    let size = |path: &std::path::PathBuf| fs::metadata(path).unwrap().len();
    let pack = varv.objects().into_iter().max_by_key(size).unwrap();
    let good = fs::read(&pack).unwrap();
    let mut bad = good.clone();
    for at in (4096..bad.len() - (64 << 10)).step_by(3 << 20) {
        bad[at] ^= 1;
    }
    chmod(&pack, 0o600);
    for mode in ["if-changed", "if-newer"] {
        fs::write(&pack, &bad).unwrap();
        let target = varv.path(mode);
        varv.ends(4, args!["restore", &source, &target]);
        assert_eq!(fs::metadata(target.join("large")).unwrap().modified().unwrap(), UNIX_EPOCH);
        fs::write(&pack, &good).unwrap();
        varv.restore(args!["--overwrite", mode, &source, &target]);
        assert_same(&source, &target);
    }
}

#[test]
fn a_source_inside_another_is_told_of_and_not_removed() {
    let varv = Varv::new();
    let source = varv.dir("source");
    for name in ["etc/file", "boot/kernel", "srv/data/file"] {
        fs::create_dir_all(source.join(name).parent().unwrap()).unwrap();
        fs::write(source.join(name), name).unwrap();
    }
    let (boot, data) = (source.join("boot"), source.join("srv/data"));
    // As with --one-file-system the one is there and empty, the other not at all.
    varv.backup(args!["--exclude", "/boot/*", "--exclude", "/srv", &source, &boot, &data]);
    let target = varv.path("target");
    let done = varv.ok(args!["restore", &source, &target]);
    done.says(&["source/boot is a source of its own", "source/srv/data is a source of its own"]);
    varv.ok(args!["restore", "--in-place", &boot, target.join("boot")]).is_silent();
    varv.restore(args![&data, target.join("srv/data")]);
    fs::write(target.join("srv/other"), "other").unwrap();
    varv.restore(args!["--overwrite", "always", "--delete", &source, &target]);
    assert!(target.join("boot/kernel").exists() && target.join("srv/data/file").exists());
    varv.ends(1, args!["restore", source.parent().unwrap(), varv.path("new")]).says(&[
        source.to_str().unwrap(),
        "boot, ",
        "each on their own",
    ]);
    // What is in the outer one too needs no word.
    varv.backup(args!["--label", "both", &source, &boot]);
    varv.ok(args!["restore", "--label", "both", "--dry-run", &source, varv.path("new")]).is_silent();
}
