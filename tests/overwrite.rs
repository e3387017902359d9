//! Restoring onto what is there: what is replaced, what stays, what is never touched.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use support::make::{bytes, overwrite, sparse_file, touch};
use support::tree::{assert_same, assert_tree, read};
use support::{Varv, args, chmod};

const MODES: [&str; 4] = ["always", "if-changed", "if-newer", "never"];
const TIME: i64 = 1_000_000_000;

/// What lies in the target, by its name, and which modes replace it.
const FILES: [(&str, [bool; 4]); 9] = [
    ("same", [true, false, false, false]),
    ("other-content-same-size-and-time", [true, false, false, false]),
    ("other-content-older", [true, true, true, false]),
    ("other-content-newer", [true, true, false, false]),
    ("longer", [true, true, false, false]),
    ("shorter", [true, true, false, false]),
    ("longer-and-older", [true, true, true, false]),
    ("shorter-and-newer", [true, true, false, false]),
    ("missing", [true, true, true, true]),
];

fn saved(name: &str) -> Vec<u8> {
    bytes(name.len() as u64, 20_000)
}

/// What lies in the target, and when it was modified.
fn present(name: &str) -> Option<(Vec<u8>, i64)> {
    let other = bytes(1000, 20_000);
    Some(match name {
        "missing" => return None,
        "same" => (saved(name), TIME),
        "other-content-same-size-and-time" => (other, TIME),
        "other-content-older" => (other, TIME - 1),
        "other-content-newer" => (other, TIME + 1),
        "longer" => (bytes(1000, 90_000), TIME),
        "shorter" => (bytes(1000, 100), TIME),
        "longer-and-older" => (bytes(1000, 90_000), TIME - 1),
        _ => (bytes(1000, 100), TIME + 1),
    })
}

fn put(dir: &Path, name: &str, content: &[u8], seconds: i64) {
    fs::write(dir.join(name), content).unwrap();
    touch(&dir.join(name), seconds, 0);
}

#[test]
fn modes_of_overwriting() {
    let varv = Varv::new();
    let source = varv.dir("source");
    for (name, _) in FILES {
        put(&source, name, &saved(name), TIME);
    }
    varv.backup(args![&source]);
    for in_place in [false, true] {
        for (number, mode) in MODES.into_iter().enumerate() {
            let target = varv.dir(&format!("{mode}-{in_place}"));
            for (name, _) in FILES {
                present(name).inspect(|(content, time)| put(&target, name, content, *time));
            }
            let more = if in_place { args!["--in-place"] } else { args![] };
            varv.restore(&[args!["--overwrite", mode, &source, &target], more].concat());
            for (name, replaced) in FILES {
                let expected = match replaced[number] {
                    true => (saved(name), TIME),
                    false => present(name).unwrap(),
                };
                let path = target.join(name);
                let found = (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().mtime());
                assert!(found == expected, "{name} with {mode}, in place: {in_place}");
            }
        }
    }
}

#[test]
fn equal_files_are_not_written_in_place() {
    let varv = Varv::new();
    let source = varv.dir("source");
    support::make::tree(&source, 1);
    fs::write(source.join("large"), bytes(1, 5 << 20)).unwrap();
    sparse_file(&source.join("holes"), 9 << 20, &[(4 << 20, &bytes(2, 1 << 20))]);
    let target = varv.round(&source, "target");
    let inode = |name: &str| fs::metadata(target.join(name)).unwrap().ino();
    let inodes = (inode("large"), inode("one"));

    let equal = varv.restore(args!["--in-place", "--verify", &source, &target]);
    assert_eq!(equal["bytes_written"], 0, "{equal}");
    assert_same(&source, &target);

    overwrite(&target.join("large"), 3 << 20, b"not this");
    overwrite(&target.join("holes"), 1 << 20, b"nor this");
    let repaired = varv.restore(args!["--in-place", "--verify", &source, &target]);
    let written = repaired["bytes_written"].as_u64().unwrap();
    assert!((1..=64 << 10).contains(&written), "{repaired}");
    assert_same(&source, &target);
    assert_eq!(inodes, (inode("large"), inode("one")));
}

#[test]
fn sparse_files_over_dense_ones() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let data = bytes(2, 1 << 20);
    sparse_file(&source.join("data-hole"), 4 << 20, &[(0, &data)]);
    sparse_file(&source.join("hole"), (3 << 20) + 5, &[]);
    sparse_file(&source.join("hole-data"), 4 << 20, &[(3 << 20, &data)]);
    varv.backup(args![&source]);
    for (number, how) in ["always", "exact", "never"].into_iter().enumerate() {
        for (more, word) in [("--in-place", "in-place"), ("--overwrite=always", "anew")] {
            let target = varv.dir(&format!("{how}-{word}"));
            for (name, len) in [("data-hole", 5 << 20), ("hole", 4 << 20), ("hole-data", 2 << 20)] {
                fs::write(target.join(name), bytes(number as u64, len)).unwrap();
            }
            varv.restore(args!["--sparse", how, "--verify", more, &source, &target]);
            match how {
                "never" => {
                    for name in ["data-hole", "hole", "hole-data"] {
                        let same =
                            fs::read(source.join(name)).unwrap() == fs::read(target.join(name)).unwrap();
                        assert!(same, "{name} {how} {more}");
                    }
                }
                _ => assert_same(&source, &target),
            }
        }
    }
}

#[test]
fn surplus_is_removed_only_if_asked_and_only_within_the_selection() {
    let varv = Varv::new();
    let source = varv.dir("source");
    support::make::tree(&source, 1);
    varv.backup(args![&source]);
    let outside = varv.dir("outside");
    fs::write(outside.join("treasure"), "x").unwrap();
    let target = varv.path("target");
    let spoil = || {
        fs::create_dir_all(target.join("src/surplus/deep")).unwrap();
        fs::write(target.join("src/surplus/deep/file"), "x").unwrap();
        fs::write(target.join("docs/surplus.txt"), "x").unwrap();
        fs::write(target.join("surplus"), "x").unwrap();
        let _ = symlink(&outside, target.join("src/surplus/link"));
        let _ = symlink(&outside, target.join("src/surplus-link"));
    };
    varv.restore(args![&source, &target]);
    spoil();
    varv.restore(args!["--overwrite", "always", &source, &target]);
    assert!(target.join("src/surplus/deep/file").exists() && target.join("surplus").exists());

    varv.restore(args!["--overwrite", "always", "--delete", "--include", "/src", &source, &target]);
    assert!(!target.join("src/surplus").exists() && !target.join("src/surplus-link").is_symlink());
    assert!(target.join("docs/surplus.txt").exists() && target.join("surplus").exists());

    spoil();
    varv.restore(args!["--overwrite", "always", "--delete", "--exclude", "*.txt", &source, &target]);
    assert!(target.join("docs/surplus.txt").exists());
    assert!(!target.join("surplus").exists() && !target.join("src/surplus").exists());

    spoil();
    varv.restore(args!["--overwrite", "if-changed", "--delete", &source, &target]);
    assert_same(&source, &target);
    assert!(outside.join("treasure").exists());
}

#[test]
fn a_part_is_selected() {
    let varv = Varv::new();
    let source = varv.dir("source");
    for name in ["a/x.txt", "a/x.bin", "a/b/y.txt", "c/z.bin", "d/x.txt"] {
        fs::create_dir_all(source.join(name).parent().unwrap()).unwrap();
        fs::write(source.join(name), name).unwrap();
    }
    varv.backup(args![&source]);
    let restored = |name: &str, words: &[OsString]| {
        let target = varv.path(name);
        varv.restore(&[words, args![&source, &target]].concat());
        let tree = read(&target);
        tree.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(restored("t1", args!["--include", "*.txt"]), " /a /a/b /a/b/y.txt /a/x.txt /d /d/x.txt");
    assert_eq!(restored("t2", args!["--include", "/a/b"]), " /a /a/b /a/b/y.txt");
    assert_eq!(
        restored("t3", args!["--include", "/a", "--exclude", "*.bin", "--exclude", "b"]),
        " /a /a/x.txt"
    );
    assert_eq!(restored("t4", args!["--exclude", "/a", "--exclude", "/d"]), " /c /c/z.bin");
}

/// Something of each kind under every name, rotated.
fn kinds(dir: &Path, shift: usize) {
    for (number, name) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
        let path = dir.join(name);
        match (number + shift) % 5 {
            0 => fs::write(&path, bytes(shift as u64, 10_000)).unwrap(),
            1 => {
                fs::create_dir_all(path.join("below")).unwrap();
                fs::write(path.join("below/file"), format!("{shift}")).unwrap();
            }
            2 => symlink("elsewhere", &path).unwrap(),
            3 => fs::write(&path, bytes(shift as u64, 3 << 20)).unwrap(),
            _ => {
                fs::write(dir.join("other-name"), format!("linked {shift}")).unwrap();
                fs::hard_link(dir.join("other-name"), &path).unwrap();
            }
        }
    }
}

#[test]
fn kinds_are_swapped() {
    let varv = Varv::new();
    let source = varv.dir("source");
    kinds(&source, 0);
    varv.backup(args![&source]);
    let modes: [&[OsString]; 3] =
        [args!["--overwrite=always"], args!["--in-place"], args!["--in-place", "--overwrite=always"]];
    for (number, words) in modes.into_iter().enumerate() {
        for shift in 0..5 {
            let target = varv.dir(&format!("target{number}-{shift}"));
            kinds(&target, shift);
            varv.restore(&[words, args!["--verify", "--delete", &source, &target]].concat());
            assert_same(&source, &target);
        }
    }
}

#[test]
fn hard_links_over_what_is_linked_otherwise() {
    let varv = Varv::new();
    let source = varv.dir("source");
    for (name, other) in [("a", "b"), ("c", "d")] {
        fs::write(source.join(name), name).unwrap();
        fs::hard_link(source.join(name), source.join(other)).unwrap();
    }
    fs::write(source.join("e"), "alone").unwrap();
    varv.backup(args![&source]);
    let outside = varv.path("outside");
    for (number, mode) in ["--overwrite=always", "--in-place"].into_iter().enumerate() {
        let target = varv.dir(&format!("target{number}"));
        let _ = fs::remove_file(&outside);
        fs::write(&outside, "do not touch").unwrap();
        for name in ["a", "c", "e"] {
            fs::hard_link(&outside, target.join(name)).unwrap();
        }
        fs::write(target.join("b"), "x").unwrap();
        fs::hard_link(target.join("b"), target.join("d")).unwrap();
        varv.restore(args![mode, &source, &target]);
        assert_same(&source, &target);
        assert_eq!(fs::read(&outside).unwrap(), b"do not touch", "{mode}");
    }
}

#[test]
fn read_only_files_and_directories_are_no_obstacle() {
    let varv = Varv::unprivileged();
    let source = varv.dir("source");
    fs::create_dir(source.join("dir")).unwrap();
    for name in ["dir/small", "dir/large"] {
        fs::write(source.join(name), bytes(1, if name == "dir/large" { 3 << 20 } else { 100 })).unwrap();
        chmod(&source.join(name), 0o444);
    }
    for name in ["dir/small", "dir/large", "dir", ""] {
        varv.give(&source.join(name));
    }
    chmod(&source.join("dir"), 0o555);
    varv.backup(args![&source]);
    let target = varv.path("target");
    varv.restore(args![&source, &target]);
    assert_same(&source, &target);
    for mode in ["--overwrite=always", "--in-place"] {
        chmod(&target.join("dir"), 0o755);
        for name in ["dir/small", "dir/large"] {
            chmod(&target.join(name), 0o644);
            overwrite(&target.join(name), 10, b"spoilt");
            chmod(&target.join(name), 0o444);
        }
        chmod(&target.join("dir"), 0o555);
        varv.restore(args![mode, "--verify", &source, &target]);
        assert_same(&source, &target);
    }
    for dir in [source, target] {
        chmod(&dir.join("dir"), 0o755);
    }
}

/// Every way of restoring over a directory in which somebody planted symlinks leaves alone what
/// they lead to.
#[test]
fn planted_symlinks_are_not_followed() {
    let varv = Varv::new();
    let source = varv.dir("source");
    fs::create_dir(source.join("dir")).unwrap();
    for name in ["dir/file", "file", "large"] {
        fs::write(source.join(name), bytes(1, if name == "large" { 3 << 20 } else { 100 })).unwrap();
        touch(&source.join(name), TIME, 0);
    }
    symlink("x", source.join("link")).unwrap();
    varv.backup(args![&source]);
    let victim = varv.dir("victim");
    fs::write(victim.join("file"), "do not touch").unwrap();
    touch(&victim.join("file"), 5, 0);
    let before = read(&victim);
    let modes = MODES.map(|mode| format!("--overwrite={mode}"));
    for (number, mode) in modes.iter().map(String::as_str).chain(["--in-place"]).enumerate() {
        let target = varv.dir(&format!("target{number}"));
        symlink(&victim, target.join("dir")).unwrap();
        for name in ["file", "large", "link"] {
            symlink(victim.join("file"), target.join(name)).unwrap();
        }
        let done = varv.run(args!["restore", mode, "--delete", "--verify", &source, &target]);
        assert!(matches!(done.code, Some(0 | 1)), "{done:?}");
        assert_tree(&before, &victim);
        if matches!(mode, "--overwrite=always" | "--in-place") {
            assert_same(&source, &target);
        }
    }
}

#[test]
fn a_target_given_through_a_symlink() {
    let varv = Varv::new();
    let source = varv.dir("source");
    support::make::tree(&source, 1);
    varv.backup(args![&source]);
    let real = varv.dir("real");
    symlink(&real, varv.path("alias")).unwrap();
    varv.restore(args![&source, varv.path("alias")]);
    assert_same(&source, &real);
}

#[test]
fn an_interrupted_restore_is_completed_by_the_next() {
    let varv = Varv::new();
    let source = varv.dir("source");
    support::make::tree(&source, 1);
    fs::write(source.join("large"), bytes(1, 20 << 20)).unwrap();
    varv.backup(args![&source]);
    let target: PathBuf = varv.path("target");
    let mut random = support::make::Random(1);
    for _ in 0..8 {
        let mut child = varv.command(args!["restore", "-q", "--in-place", &source, &target]).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_micros(random.below(150_000)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    varv.restore(args!["--in-place", "--delete", "--verify", &source, &target]);
    let leftovers: Vec<_> =
        read(&target).into_keys().filter(|path| !read(&source).contains_key(path)).collect();
    for path in leftovers {
        assert!(path.contains(&b'.'), "{} is no unfinished file", path.escape_ascii());
    }
    File::open(target.join("large")).unwrap();
    assert!(fs::read(target.join("large")).unwrap() == fs::read(source.join("large")).unwrap());
}
