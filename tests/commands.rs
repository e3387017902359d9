//! Commands, their options and exit codes, as scripts see them.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::process::{Command, Stdio};

use support::make::{bytes, tree};
use support::tree::{assert_same, read};
use support::{Varv, args};

#[test]
fn without_a_repository() {
    let varv = Varv::without_repository();
    let source = varv.dir("source");
    for words in [args!["snapshots"], args!["backup", &source], args!["restore", &source, varv.path("t")]] {
        varv.ends(10, words).says(&["no varv repository", "varv init"]);
    }
    fs::create_dir(&varv.repository).unwrap();
    varv.ends(10, args!["snapshots"]);
    assert_eq!(fs::read_dir(&varv.repository).unwrap().count(), 0, "a wrong name must not be written to");
    let mut command = varv.command(args!["snapshots"]);
    command.env_remove("VARV_REPOSITORY");
    assert_eq!(command.output().unwrap().status.code(), Some(2));
}

#[test]
fn init_makes_one_repository() {
    let varv = Varv::without_repository();
    varv.ends(2, args!["init"]).says(&["--encryption"]);
    assert!(!varv.repository.exists());
    let made = varv.json(args!["init", "--encryption", "none"]);
    assert_eq!(made["encrypted"], false);
    varv.ends(2, args!["init", "--encryption", "none"]).says(&["one that is there needs no varv init"]);
    let full = varv.dir("full");
    fs::write(full.join("file"), "x").unwrap();
    assert_ne!(varv.run(args!["init", "-r", &full, "--encryption", "none"]).code, Some(0));
    assert_eq!(fs::read_dir(&full).unwrap().count(), 1);
}

#[test]
fn an_empty_label_or_host_is_refused() {
    let varv = Varv::new();
    let source = varv.dir("source");
    for option in ["--label", "--host"] {
        varv.ends(2, args!["backup", option, "", &source]).says(&[option]);
    }
    assert!(varv.snapshots().is_empty());
}

#[test]
fn paths_of_a_list_are_left_out_as_they_are() {
    let varv = Varv::new();
    let source = varv.dir("source");
    for name in ["a[1]", "a1", "two\nlines", "two", "kept"] {
        fs::write(source.join(name), name).unwrap();
    }
    let list = varv.path("list");
    let paths = ["a[1]", "two\nlines", "gone"].map(|name| source.join(name).to_str().unwrap().to_string());
    fs::write(&list, paths.join("\0")).unwrap();
    let done = varv.run(args!["backup", "--exclude-from0", &list, &source]);
    done.expect(0, args!["backup"]);
    done.says(&["gone"]);
    let target = varv.path("target");
    varv.restore(args![&source, &target]);
    let mut names: Vec<_> = fs::read_dir(target).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a1", "kept", "two"]);
}

#[test]
fn what_is_left_out_by_itself_and_a_time_to_come_are_said() {
    let varv = Varv::new();
    let home = varv.repository.parent().unwrap();
    let cache = varv.dir("cache").join("varv");
    fs::create_dir(&cache).unwrap();
    let done = varv.ok(args!["backup", "--time", "2100-01-01", home]);
    let left_out = |path: &std::path::Path| format!("{}: left out", path.display());
    done.says(&[&left_out(&varv.repository), &left_out(&cache), "2100-01-01", "future"]);
    let listed = String::from_utf8(varv.ok(args!["ls", "-R"]).stdout).unwrap();
    assert!(
        listed.contains("cache") && !listed.contains("varv/") && !listed.contains("repository"),
        "{listed}"
    );
    varv.ok(args!["-q", "backup", "--time", "2100-01-02", home]).is_silent();
}

#[test]
fn upgrade_has_nothing_to_do_and_does_nothing() {
    let varv = Varv::new();
    let config = || fs::read(varv.repository.join("config")).unwrap();
    let before = config();
    let said = String::from_utf8(varv.ok(args!["upgrade"]).stdout).unwrap();
    assert!(said.contains("format 1") && said.contains("nothing to do"), "{said}");
    assert_eq!((config(), varv.objects()), (before, vec![]));
    Varv::without_repository().ends(10, args!["upgrade"]);
    for name in ["config", "config.copy"] {
        let newer = String::from_utf8(config())
            .unwrap()
            .replace("format 1, needs varv 0.1.0", "format 9, needs varv 7.0.0");
        fs::write(varv.repository.join(name), newer).unwrap();
    }
    varv.ends(1, args!["upgrade"]).says(&["format 9", "varv 7.0.0 or later is needed"]);
}

#[test]
fn key_files() {
    let varv = Varv::without_repository();
    let (key, source) = (varv.path("key"), varv.dir("source"));
    tree(&source, 1);
    varv.ends(2, args!["init", "--encryption", "key-file"]).says(&["--key-file"]);
    varv.ok(args!["init", "--key-file", &key]);
    varv.backup(args!["--key-file", &key, &source]);
    varv.ends(12, args!["snapshots"]);
    let target = varv.path("target");
    varv.restore(args!["--key-file", &key, &source, &target]);
    assert_same(&source, &target);
}

#[test]
fn wrong_usage() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let wrong: &[&[OsString]] = &[
        args![],
        args!["frobnicate"],
        args!["backup"],
        args!["backup", "--no-such-option", &source],
        args!["backup", "--tier", "lukewarm", &source],
        args!["backup", "--time", "yesterday-ish", &source],
        args!["backup", "--stdin", "/a/path"],
        args!["backup", "--from-command", "name"],
        args!["backup", "--", "ls"],
        args!["backup", "--exclude-larger-than", "many", &source],
        args!["restore", &source],
        args!["restore", "--overwrite", "sometimes", &source, "t"],
        args!["restore", "--sparse", "maybe", &source, "t"],
        args!["--lock-wait", "a while", "snapshots"],
        args!["restore", "--snapshot", "", &source, "t"],
    ];
    for words in wrong {
        varv.ends(2, words);
    }
    assert_eq!(varv.snapshots(), [] as [serde_json::Value; 0]);
}

#[test]
fn missing_sources() {
    let varv = Varv::new();
    let source = varv.dir("source");
    tree(&source, 1);
    let gone = varv.path("gone");
    varv.ends(1, args!["backup", &gone]).says(&["gone"]);
    assert!(varv.snapshots().is_empty());
    let done = varv.ends(3, args!["backup", "--json", &gone, &source]);
    assert_eq!(done.json()["missing"][0], gone.to_str().unwrap());
    assert_eq!(varv.snapshots().len(), 1);
    symlink("nowhere", &gone).unwrap();
    varv.ends(1, args!["backup", &gone]);
}

#[test]
fn nothing_to_restore() {
    let varv = Varv::new();
    let source = varv.dir("source");
    varv.ends(1, args!["restore", &source, varv.path("t")]).says(&["no snapshot"]);
    varv.backup(args![&source]);
    varv.ends(1, args!["restore", "--snapshot", "0123456789", &source, varv.path("t")]);
    varv.ends(1, args!["dump", "stream"]);
    assert!(!varv.path("t").exists());
}

#[test]
fn a_directory_is_dumped_as_an_archive() {
    let varv = Varv::new();
    let source = varv.dir("source");
    tree(&source, 1);
    let holes = File::create(source.join("holes")).unwrap();
    holes.set_len(8 << 20).unwrap();
    holes.write_all_at(b"data", 3 << 20).unwrap();
    fs::hard_link(source.join("holes"), source.join("the same")).unwrap();
    symlink("nowhere", source.join("a dangling link")).unwrap();
    let long = source.join("x".repeat(200)).join("y".repeat(200));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("deep"), "deep").unwrap();
    varv.backup(args![&source]);
    let archive = varv.path("archive.tar");
    let dumped = varv.command(args!["dump", &source]).stdout(File::create(&archive).unwrap()).status();
    assert!(dumped.unwrap().success());
    assert!(fs::metadata(&archive).unwrap().len() < 4 << 20, "holes were written out");
    let out = varv.dir("out");
    let untar = Command::new("tar").arg("-xpf").arg(&archive).arg("-C").arg(&out).status();
    assert!(untar.unwrap().success());
    assert_same(&source, &out.join("source"));
}

#[test]
fn targets_that_are_taken() {
    let varv = Varv::new();
    let source = varv.dir("source");
    tree(&source, 1);
    varv.backup(args![&source]);
    let (dir, file) = (varv.dir("dir"), varv.path("file"));
    fs::write(dir.join("mine"), "mine").unwrap();
    fs::write(&file, "mine").unwrap();
    varv.ends(2, args!["restore", &source, &dir]).says(&["not empty", "--overwrite"]);
    varv.ends(2, args!["restore", &source, &file]);
    varv.ends(2, args!["restore", source.join("one"), &file]).says(&["exists", "--overwrite"]);
    varv.ends(2, args!["restore", source.join("one"), &dir]).says(&["did you mean", "dir/one"]);
    varv.ends(2, args!["restore", "--overwrite", "always", source.join("one"), &dir]);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    // Parents are made, and an empty directory is free.
    let (deep, empty) = (varv.path("a/b/c"), varv.dir("empty"));
    for target in [&deep, &empty] {
        varv.restore(args![&source, target]);
        assert_same(&source, target);
    }
    let single = varv.path("d/e/one");
    varv.restore(args![source.join("one"), &single]);
    assert_eq!(fs::read(single).unwrap(), fs::read(source.join("one")).unwrap());
}

#[test]
fn init_on_the_way() {
    let varv = Varv::without_repository();
    let source = varv.dir("source");
    let words = args!["backup", "--dry-run", "--init", "--encryption", "none", &source];
    varv.ends(10, words).says(&["no varv repository"]);
    assert!(!varv.repository.exists(), "a dry run writes nothing");
    varv.ends(2, args!["backup", "--init", &source]).says(&["--encryption"]);
    for _ in 0..2 {
        varv.ok(args!["backup", "-q", "--init", "--encryption", "none", &source]);
    }
    assert_eq!(varv.snapshots().len(), 2);
}

#[test]
fn a_dry_run_writes_nothing() {
    let varv = Varv::new();
    let source = varv.dir("source");
    tree(&source, 1);
    let before = varv.objects();
    let counted = varv.backup(args!["--dry-run", &source]);
    assert!(counted["snapshot"].is_null());
    assert!(counted["bytes_new"].as_u64().unwrap() > 0);
    assert_eq!(varv.objects(), before);
    let real = varv.backup(args![&source]);
    for same in ["files_new", "bytes_new", "bytes_source", "bytes_read", "chunks_new"] {
        assert_eq!(counted[same], real[same], "{same}");
    }
    let target = varv.path("target");
    let counted = varv.restore(args!["--dry-run", &source, &target]);
    assert!(!target.exists());
    let real = varv.restore(args![&source, &target]);
    assert_eq!((&counted["files"], &counted["dirs"]), (&real["files"], &real["dirs"]));
}

#[test]
fn a_dry_run_over_a_full_target_changes_nothing() {
    let varv = Varv::new();
    let source = varv.dir("source");
    tree(&source, 1);
    varv.backup(args![&source]);
    let target = varv.dir("target");
    tree(&target, 2);
    fs::write(target.join("mine"), "mine").unwrap();
    let before = read(&target);
    varv.restore(args!["--dry-run", "--overwrite", "always", "--delete", &source, &target]);
    assert_eq!(before, read(&target));
}

#[test]
fn tags_labels_and_hosts() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let file = source.join("file");
    let backup = |content: &str, words: &[OsString]| {
        fs::write(&file, content).unwrap();
        varv.backup(&[words, args![&source]].concat());
    };
    backup("plain", args![]);
    backup("tagged", args!["--tag", "a", "--tag", "b"]);
    backup("labelled", args!["--label", "weekly"]);
    backup("foreign", args!["--host", "elsewhere"]);
    let count =
        |words: &[OsString]| varv.json(&[args!["snapshots"], words].concat()).as_array().unwrap().len();
    assert_eq!(count(args![]), 4);
    assert_eq!(count(args!["--tag", "b"]), 1);
    assert_eq!(count(args!["--label", "weekly"]), 1);
    assert_eq!(count(args!["--label", "default"]), 3);
    assert_eq!(count(args!["--host", "elsewhere"]), 1);
    // More than one history has the path: never a guess.
    varv.ends(2, args!["dump", &file]).says(&["elsewhere", "weekly", "--snapshot"]);
    assert_eq!(varv.ok(args!["dump", "--label", "weekly", &file]).stdout, b"labelled");
    assert_eq!(varv.ok(args!["dump", "--host", "elsewhere", &file]).stdout, b"foreign");
    assert_eq!(varv.ok(args!["dump", "--tag", "a", &file]).stdout, b"tagged");
    let id = varv.snapshots()[0]["id"].as_str().unwrap().to_string();
    assert_eq!(varv.ok(args!["dump", "--snapshot", &id[..8], &file]).stdout, b"plain");
}

#[test]
fn excludes() {
    let varv = Varv::new();
    let source = varv.dir("source");
    for name in [
        "a.o",
        "a.c",
        "keep.o",
        "build/x",
        "src/build/y",
        "cache/CACHEDIR.TAG",
        "cache/z",
        "nobackup/.no",
        "nobackup/w",
        "big",
    ] {
        let path = source.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, name).unwrap();
    }
    fs::write(source.join("cache/CACHEDIR.TAG"), "Signature: 8a477f597d28d172789f06886806bc55\n").unwrap();
    fs::write(source.join("big"), bytes(1, 20_000)).unwrap();
    let patterns = varv.path("patterns");
    fs::write(&patterns, "# a comment\n\n/build\n").unwrap();
    let absolute = source.join("src/build");
    let words = args![
        "--exclude",
        "*.o",
        "--exclude",
        "!keep.o",
        "--exclude",
        &absolute,
        "--exclude",
        "matches-nothing",
        "--exclude-from",
        &patterns,
        "--exclude-caches",
        "--exclude-if-present",
        ".no",
        "--exclude-larger-than",
        "10K",
        &source,
    ];
    let done = varv.ok(&[args!["backup"], words].concat());
    done.says(&["matches-nothing"]);
    let target = varv.path("target");
    varv.restore(args![&source, &target]);
    let left: Vec<String> =
        read(&target).keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
    let expected =
        ["", "/a.c", "/cache", "/cache/CACHEDIR.TAG", "/keep.o", "/nobackup", "/nobackup/.no", "/src"];
    assert_eq!(left, expected);
}

#[test]
fn the_repository_is_not_backed_up_into_itself() {
    let varv = Varv::new();
    let home = varv.repository.parent().unwrap().to_path_buf();
    fs::write(home.join("file"), "x").unwrap();
    for _ in 0..2 {
        varv.backup(args![&home]);
    }
    let target = tempfile::tempdir().unwrap();
    let target = target.path().join("t");
    varv.restore(args![&home, &target]);
    assert!(target.join("file").exists());
    assert!(!target.join("repository/config").exists());
}

#[test]
fn quiet_says_nothing() {
    let varv = Varv::new();
    let source = varv.dir("source");
    tree(&source, 1);
    for words in [args!["-q", "backup", &source], args!["restore", &source, varv.path("t"), "-q"]] {
        let done = varv.ok(words);
        assert_eq!((done.stdout, done.stderr), (vec![], String::new()));
    }
    assert!(!varv.ok(args!["-q", "snapshots"]).stdout.is_empty());
}

#[test]
fn a_failure_is_json_too() {
    let varv = Varv::without_repository();
    let done = varv.ends(10, args!["--json", "snapshots"]);
    assert!(done.json()["error"].as_str().unwrap().contains("no varv repository"));
    assert!(done.json()["hint"].as_str().unwrap().contains("varv init"));
}

#[test]
fn times_of_snapshots() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let file = source.join("file");
    for time in ["2026-03-01T12:00:00+02:00", "2026-01-01T00:00:00Z"] {
        fs::write(&file, time).unwrap();
        varv.ok(args!["backup", "-q", "--time", time, &source]);
    }
    let times: Vec<String> =
        varv.snapshots().iter().map(|row| row["time"].as_str().unwrap().to_string()).collect();
    assert_eq!(times, ["2026-01-01T00:00:00+00:00", "2026-03-01T12:00:00+02:00"]);
    assert_eq!(varv.ok(args!["dump", &file]).stdout, b"2026-03-01T12:00:00+02:00");
}

/// Standard output that nobody reads.
fn unread() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn a_reader_that_goes_away_ends_lists_and_nothing_else() {
    let varv = Varv::new();
    let source = varv.dir("source");
    tree(&source, 1);
    let unread_by = |code: i32, words: &[OsString]| {
        let done = varv.command(words).stdout(unread()).output().unwrap();
        assert_eq!((done.status.code(), done.stderr), (Some(code), Vec::new()), "{words:?}");
    };
    unread_by(0, args!["backup", &source]);
    unread_by(0, args!["ls", "-R"]);
    unread_by(0, args!["snapshots"]);
    fs::write(source.join("more"), "more").unwrap();
    unread_by(5, args!["compare", &source]);
    let packs = varv.objects().into_iter().filter(|path| path.starts_with(varv.repository.join("packs")));
    packs.for_each(|pack| fs::remove_file(pack).unwrap());
    unread_by(4, args!["check"]);
    varv.ok(args!["locks"]).is_silent();
}

#[test]
fn what_cannot_be_told_stops_nothing() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let mut command = varv.command(args!["backup", &source, varv.path("missing")]);
    assert_eq!(command.stderr(full()).output().unwrap().status.code(), Some(3));
    assert_eq!(varv.snapshots().len(), 1);
    let done = varv.command(args!["snapshots"]).stdout(full()).output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8(done.stderr).unwrap().contains("No space left"));
    varv.ok(args!["locks"]).is_silent();
}

#[test]
fn nohup_is_respected() {
    let varv = Varv::new();
    let program = varv.command(&[]);
    let mut shell = Command::new("sh");
    let script = "trap '' HUP; exec \"$0\" backup -q --from-command name -- sh -c 'kill -HUP $PPID; echo x'";
    shell.args(["-c", script]).arg(program.get_program()).env("VARV_REPOSITORY", &varv.repository);
    assert!(shell.status().unwrap().success());
    assert_eq!(varv.ok(args!["dump", "name"]).stdout, b"x\n");
}
