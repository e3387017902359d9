//! What goes into a backup comes out of it: everything that a directory can hold.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use rustix::fs::{
    CWD, FileType, Mode, OFlags, SeekFrom, XattrFlags, lsetxattr, makedev, mkdirat, mknodat, open, openat,
    seek,
};

use support::make::{Random, bytes, sparse_file, touch};
use support::system::{is_root, root_or_skip, run, skip};
use support::tree::{assert_same, assert_tree, read};
use support::{Varv, args, chmod};

#[test]
fn files_of_every_length() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let around = |len: usize| [len - 1, len, len + 1];
    let lengths = [0, 1, 2, 3, 100, 5 << 20].into_iter().chain(around(4096)).chain(around(64 << 10));
    for len in lengths.chain(around(2 << 20)) {
        fs::write(source.join(format!("random{len}")), bytes(len as u64, len)).unwrap();
        fs::write(source.join(format!("text{len}")), Random(1).text(len)).unwrap();
        fs::write(source.join(format!("zeros{len}")), vec![0; len]).unwrap();
    }
    let target = varv.round(&source, "target");
    assert_same(&source, &target);
    for name in ["random0", "random1", "random4097", "text2097153", "random5242880", "zeros65537"] {
        let path = source.join(name);
        assert_eq!(varv.ok(args!["dump", &path]).stdout, fs::read(path).unwrap(), "{name}");
    }
}

#[test]
fn links() {
    let varv = Varv::new();
    let source = varv.dir("source");
    fs::create_dir_all(source.join("dir/below")).unwrap();
    for (name, content) in [("a", &b"small"[..]), ("big", &bytes(1, 3 << 20)), ("empty", b"")] {
        fs::write(source.join(name), content).unwrap();
        fs::hard_link(source.join(name), source.join("dir/below").join(name)).unwrap();
        fs::hard_link(source.join(name), source.join("dir").join(name)).unwrap();
        fs::hard_link(source.join(name), varv.path(&format!("outside-{name}"))).unwrap();
    }
    fs::write(source.join("lonely"), "its other name is outside").unwrap();
    fs::hard_link(source.join("lonely"), varv.path("outside")).unwrap();
    let long = "x/".repeat(2000);
    for (name, to) in [("dangling", "nowhere"), ("to-dir", "dir"), ("loop", "loop"), ("long", &long)] {
        symlink(to, source.join(name)).unwrap();
        touch(&source.join(name), 1_234_567, 89);
    }
    fs::hard_link(source.join("dangling"), source.join("dir/dangling")).unwrap();
    let target = varv.round(&source, "target");
    assert_same(&source, &target);
    assert_eq!(fs::metadata(target.join("a")).unwrap().nlink(), 3);
    assert_eq!(fs::metadata(target.join("lonely")).unwrap().nlink(), 1);
}

#[test]
fn hard_links_whose_first_name_goes_stay_one_file() {
    let varv = Varv::new();
    let source = varv.dir("source");
    fs::write(source.join("1"), "one file").unwrap();
    for name in ["2", "3", "4"] {
        fs::hard_link(source.join("1"), source.join(name)).unwrap();
    }
    varv.backup(args![&source]);
    for (gone, new) in [("1", "5"), ("2", "6"), ("5", "0")] {
        fs::hard_link(source.join("4"), source.join(new)).unwrap();
        fs::remove_file(source.join(gone)).unwrap();
        let target = varv.round(&source, &format!("without-{gone}"));
        assert_same(&source, &target);
    }
}

#[test]
fn nodes() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let node = |name, kind, device| mknodat(CWD, source.join(name), kind, Mode::from(0o640), device).unwrap();
    node("fifo", FileType::Fifo, 0);
    UnixListener::bind(source.join("socket")).unwrap();
    if root_or_skip().is_some() {
        node("null", FileType::CharacterDevice, makedev(1, 3));
        node("disk", FileType::BlockDevice, makedev(240, 1234));
        fs::hard_link(source.join("null"), source.join("null2")).unwrap();
    }
    let target = varv.round(&source, "target");
    assert_same(&source, &target);
}

#[test]
fn owners_and_permissions() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let modes = [0o4755, 0o2755, 0o6711, 0o1777, 0o000, 0o444, 0o200, 0o777];
    for mode in modes.into_iter().filter(|mode| is_root() || mode & 0o400 != 0) {
        fs::write(source.join(format!("file{mode:o}")), "x").unwrap();
        fs::create_dir(source.join(format!("dir{mode:o}"))).unwrap();
        symlink("x", source.join(format!("link{mode:o}"))).unwrap();
        if root_or_skip().is_some() {
            for kind in ["file", "dir", "link"] {
                let path = source.join(format!("{kind}{mode:o}"));
                std::os::unix::fs::lchown(path, Some(mode), Some(4_000_000_000)).unwrap();
            }
        }
        let mode_of_dir = if is_root() { mode } else { mode | 0o500 };
        chmod(&source.join(format!("file{mode:o}")), mode);
        chmod(&source.join(format!("dir{mode:o}")), mode_of_dir);
    }
    chmod(&source, 0o711);
    let target = varv.round(&source, "target");
    assert_same(&source, &target);
}

#[test]
fn attributes() {
    let varv = Varv::new();
    let source = varv.dir("source");
    fs::write(source.join("file"), "x").unwrap();
    fs::write(source.join("large"), bytes(1, 3 << 20)).unwrap();
    fs::create_dir(source.join("dir")).unwrap();
    symlink("file", source.join("link")).unwrap();
    let set = |name: &str, attribute: &str, value: &[u8]| {
        lsetxattr(source.join(name), attribute, value, XattrFlags::empty()).is_ok()
    };
    if !set("file", "user.plain", b"value") {
        return skip("no attributes here").unwrap_or_default();
    }
    for name in ["file", "large", "dir"] {
        assert!(set(name, "user.empty", b""));
        assert!(set(name, "user.100%\n\u{e4}", &bytes(3, 1500)));
    }
    if root_or_skip().is_some() {
        assert!(set("link", "trusted.of-a-link", b"\0\xff"));
        // cap_net_raw, as `setcap` writes it: it must come after the owner.
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(set("file", "security.capability", &capability));
    }
    let file = source.join("file");
    let acl = |words: &[&str], name: &str| {
        run("setfacl", &[words, &[source.join(name).to_str().unwrap()]].concat())
    };
    if acl(&["-m", "u:12345:rwx,m::r"], "file") {
        assert!(acl(&["-d", "-m", "u:777:rx"], "dir"));
        fs::write(source.join("dir/inherits"), "x").unwrap();
    } else {
        let _: Option<()> = skip("no setfacl, or no ACLs here");
    }
    let target = varv.round(&source, "target");
    assert_same(&source, &target);
    assert!(!read(&file)[&b""[..]].xattrs.is_empty());
}

#[test]
fn times() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let times = [(-1, 999_999_999), (-1_500_000_000, 1), (0, 0), (1, 123_456_789), (13_500_000_000, 500)];
    for (seconds, nanos) in times {
        let (file, dir) = (source.join(format!("file{seconds}")), source.join(format!("dir{seconds}")));
        fs::create_dir(&dir).unwrap();
        for path in [&file, &dir.join("child")] {
            fs::write(path, "x").unwrap();
            touch(path, seconds, nanos);
        }
        symlink("x", dir.join("link")).unwrap();
        touch(&dir.join("link"), seconds, nanos);
        touch(&dir, seconds, nanos);
    }
    touch(&source, -86_400, 7);
    let target = varv.round(&source, "target");
    assert_same(&source, &target);
}

#[test]
fn names() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let long = [b'n'; 255];
    let names: [&[u8]; 10] = [
        b"\xff\xfe",
        b"new\nline",
        b" ",
        b"-r",
        b"*?[x]",
        b"back\\slash",
        b"\\x41",
        "\u{e4}\u{1f600}".as_bytes(),
        &long,
        b"...",
    ];
    for name in names {
        let name = OsStr::from_bytes(name);
        fs::write(source.join(name), name.as_bytes()).unwrap();
        fs::create_dir(source.join("dirs").join(name))
            .or_else(|_| fs::create_dir_all(source.join("dirs").join(name)))
            .unwrap();
        symlink(name, source.join("dirs").join(name).join(name)).unwrap();
    }
    let target = varv.round(&source, "target");
    assert_same(&source, &target);
    for name in names {
        let path = source.join(OsStr::from_bytes(name));
        assert_eq!(varv.ok(args!["dump", &path]).stdout, name, "{name:?}");
    }
}

#[test]
fn paths_longer_than_the_kernel_takes() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir: OwnedFd = open(&source, flags, Mode::empty()).unwrap();
    let name = "d".repeat(250);
    for _ in 0..20 {
        mkdirat(&dir, &name, Mode::from(0o755)).unwrap();
        dir = openat(&dir, &name, flags, Mode::empty()).unwrap();
    }
    let file = openat(&dir, "file", OFlags::CREATE | OFlags::WRONLY, Mode::from(0o644)).unwrap();
    File::from(file).write_all(b"down here").unwrap();
    let target = varv.round(&source, "target");
    assert_same(&source, &target);
    // And again, through what the parent knows.
    assert_eq!(varv.backup(args![&source])["files_unchanged"], 1);
}

#[test]
fn wide_and_deep_directories() {
    let varv = Varv::new();
    let source = varv.dir("source");
    for number in 0..3000 {
        fs::write(source.join(format!("{number}")), format!("{}", number % 1000)).unwrap();
    }
    fs::create_dir_all(source.join("d/".repeat(300))).unwrap();
    let target = varv.round(&source, "target");
    assert_same(&source, &target);
    assert_eq!(varv.backup(args![&source])["files_unchanged"], 3000);
}

#[test]
fn what_cannot_be_read_is_left_out_and_listed() {
    let varv = Varv::unprivileged();
    let source = varv.dir("source");
    for (name, mode) in [("good", 0o644), ("closed", 0o000)] {
        fs::write(source.join(name), name).unwrap();
        varv.give(&source.join(name));
        chmod(&source.join(name), mode);
    }
    let closed = source.join("closed-dir");
    fs::create_dir(&closed).unwrap();
    fs::write(closed.join("file"), "x").unwrap();
    varv.give(&closed);
    chmod(&closed, 0o000);

    let done = varv.ends(3, args!["backup", "--json", &source]);
    done.says(&["closed", "closed-dir", "Permission denied"]);
    assert_eq!(done.json()["errors"], 2);
    assert_eq!(done.json()["missing"].as_array().unwrap().len(), 2);
    let target = varv.path("target");
    varv.restore(args![&source, &target]);
    assert_eq!(fs::read(target.join("good")).unwrap(), b"good");
    assert!(!target.join("closed").exists());
    chmod(&closed, 0o700);
}

#[test]
fn nodes_that_are_not_allowed_are_counted_with_all_their_names() {
    let Some(()) = root_or_skip() else { return };
    let varv = Varv::unprivileged();
    let source = varv.dir("source");
    mknodat(CWD, source.join("disk"), FileType::BlockDevice, Mode::from(0o644), makedev(7, 200)).unwrap();
    fs::hard_link(source.join("disk"), source.join("same")).unwrap();
    varv.ok(args!["backup", "-q", &source]);
    varv.ok(args!["restore", &source, varv.path("target")]).says(&["not made: 2"]);
}

#[test]
fn many_small_runs_come_back() {
    let varv = Varv::new();
    let file = varv.path("file");
    let content = bytes(7, 5 << 20);
    let runs: Vec<(u64, &[u8])> = (0..1000usize)
        .map(|number| (number as u64 * (12 << 10), &content[number * 4096..][..(number % 3 + 1) * 1000]))
        .chain([(20 << 20, &content[..]), (26 << 20, &content[..70_000])])
        .collect();
    sparse_file(&file, 30 << 20, &runs);
    let target = varv.round(&file, "target");
    assert_same(&file, &target);
}

#[test]
fn a_single_file_is_a_root() {
    let varv = Varv::new();
    let file = varv.path("file");
    sparse_file(&file, 5 << 20, &[(0, b"begin"), (3 << 20, &bytes(1, 100_000))]);
    touch(&file, 1000, 5);
    chmod(&file, 0o640);
    let target = varv.round(&file, "target");
    assert_same(&file, &target);
    assert_eq!(varv.backup(args![&file])["files_unchanged"], 1);
}

#[test]
fn nodes_and_links_are_roots_too() {
    let varv = Varv::new();
    let fifo = varv.path("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from(0o640), 0).unwrap();
    assert_same(&fifo, &varv.round(&fifo, "target"));
}

#[test]
fn several_roots_keep_their_paths() {
    let varv = Varv::new();
    let (one, two, file) = (varv.dir("one"), varv.dir("two"), varv.path("file"));
    fs::write(one.join("a"), "a").unwrap();
    fs::write(two.join("b"), "b").unwrap();
    fs::write(&file, "f").unwrap();
    varv.backup(args![&one, &two, &file]);
    for (source, name) in [(&one, "t1"), (&two, "t2"), (&file, "t3"), (&one.join("a"), "t4")] {
        let target = varv.path(name);
        varv.restore(args![source, &target]);
        assert_same(source, &target);
    }
    let paths = &varv.snapshots()[0]["paths"];
    assert_eq!(paths.as_array().unwrap().len(), 3);
    // Adding a source changes nothing for the others.
    let three = varv.dir("three");
    let again = varv.backup(args![&one, &two, &three, &file]);
    assert_eq!((&again["files_unchanged"], &again["files_new"]), (&3.into(), &0.into()));
}

#[test]
fn a_root_inside_of_another_root() {
    let varv = Varv::new();
    let outer = varv.dir("outer");
    fs::create_dir(outer.join("inner")).unwrap();
    fs::write(outer.join("inner/file"), "x").unwrap();
    varv.backup(args![&outer, outer.join("inner"), outer.join("inner/file")]);
    for (source, name) in
        [(outer.clone(), "t1"), (outer.join("inner"), "t2"), (outer.join("inner/file"), "t3")]
    {
        let target = varv.path(name);
        varv.restore(args![&source, &target]);
        assert_same(&source, &target);
    }
}

#[test]
fn a_source_keeps_the_path_under_which_it_was_given() {
    let varv = Varv::new();
    let real = varv.dir("real");
    fs::write(real.join("file"), "x").unwrap();
    fs::write(varv.path("single"), "y").unwrap();
    symlink("real", varv.path("alias")).unwrap();
    symlink("single", varv.path("alias-of-file")).unwrap();
    let home = real.parent().unwrap();
    let given = [
        ("real", "real"),
        ("./real/", "real"),
        ("real/../real/.", "real"),
        ("alias", "alias"),
        ("alias/", "alias"),
        ("alias-of-file", "alias-of-file"),
    ];
    for (number, (given, kept)) in given.into_iter().enumerate() {
        varv.backup(args![given]);
        let kept = home.join(kept);
        assert_eq!(varv.snapshots()[number]["paths"][0], kept.to_str().unwrap(), "{given}");
        let target = varv.path(&format!("target{number}"));
        varv.restore(args![given, &target]);
        assert_same(&kept.canonicalize().unwrap(), &target);
    }
}

/// Data and where it lies.
type Parts<'d> = &'d [(u64, &'d [u8])];

#[test]
fn holes_and_zeros() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let (data, zeros) = (bytes(1, 1 << 20), vec![0; 1 << 20]);
    let mebi = 1 << 20;
    let files: [(&str, u64, Parts); 10] = [
        ("all-hole", 5 * mebi, &[]),
        ("hole-of-odd-length", 1_000_003, &[]),
        ("data-hole", 4 * mebi, &[(0, &data)]),
        ("hole-data", 5 * mebi, &[(4 * mebi, &data)]),
        ("hole-data-hole", 9 * mebi + 13, &[(4 * mebi, &data)]),
        ("six-bytes-between-holes", 2 * mebi, &[(mebi - 3, b"sixbyt")]),
        ("hole-of-one-block", 3 * 4096, &[(0, &data[..4096]), (8192, &data[..4096])]),
        (
            "zeros-shorter-than-a-block",
            4096,
            &[(0, &data[..100]), (200, &zeros[..3000]), (3200, &data[..896])],
        ),
        ("allocated-zeros", mebi, &[(0, &zeros)]),
        ("data-zeros-hole-data", 5 * mebi, &[(0, &data), (mebi, &zeros), (4 * mebi, &data)]),
    ];
    for (name, len, parts) in files {
        sparse_file(&source.join(name), len, parts);
    }
    let counted = varv.backup(args![&source]);
    assert!(counted["bytes_hole"].as_u64().unwrap() > 20 << 20, "{counted}");
    let restored = |how: &str| {
        let target = varv.path(how);
        varv.restore(args!["--sparse", how, "--verify", &source, &target]);
        target
    };
    let allocated = |dir: &Path, name: &str| fs::metadata(dir.join(name)).unwrap().blocks() * 512;

    let always = restored("always");
    assert_same(&source, &always);
    assert_eq!(allocated(&always, "allocated-zeros"), 0);
    assert_eq!(allocated(&always, "all-hole"), 0);

    let exact = restored("exact");
    assert_same(&source, &exact);
    for (name, ..) in files {
        assert_eq!(data_ranges(&exact.join(name)), data_ranges(&source.join(name)), "{name}");
    }
    assert!(allocated(&exact, "allocated-zeros") >= mebi);

    let never = restored("never");
    for (name, len, _) in files {
        assert_eq!(fs::read(never.join(name)).unwrap(), fs::read(source.join(name)).unwrap(), "{name}");
        assert!(allocated(&never, name) >= len, "{name}");
    }
}

/// Where a file has blocks.
fn data_ranges(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        at = seek(&file, SeekFrom::Hole(start)).unwrap();
        ranges.push((start, at));
    }
    ranges
}

#[test]
fn dense_and_sparse_bytes_have_the_same_chunks() {
    let varv = Varv::new();
    let (sparse, dense) = (varv.dir("sparse"), varv.dir("dense"));
    let mut random = Random(5);
    for number in 0..4 {
        let parts: Vec<(u64, Vec<u8>)> = (0..6)
            .map(|_| {
                (random.below(6 << 20), {
                    let len = random.below(300_000) as usize;
                    random.bytes(len)
                })
            })
            .collect();
        let parts: Vec<(u64, &[u8])> = parts.iter().map(|(at, bytes)| (*at, bytes.as_slice())).collect();
        let name = format!("file{number}");
        sparse_file(&sparse.join(&name), 7 << 20, &parts);
        fs::write(dense.join(&name), fs::read(sparse.join(&name)).unwrap()).unwrap();
    }
    assert!(varv.backup(args![&sparse])["bytes_new"].as_u64().unwrap() > 0);
    assert_eq!(varv.backup(args![&dense])["bytes_new"], 0);
}

#[test]
fn a_file_of_eight_tebibytes_with_little_in_it() {
    let varv = Varv::new();
    let (source, len) = (varv.path("huge"), 8 << 40);
    if File::create(&source).unwrap().set_len(len).is_err() {
        return skip("files cannot be that long here").unwrap_or_default();
    }
    let data = bytes(8, 1 << 20);
    let places = [0, (5 << 40) + 12_345, len - (1 << 20)];
    sparse_file(&source, len, &places.map(|at| (at, data.as_slice())));
    touch(&source, 77, 0);
    let target = varv.round(&source, "target");
    assert_eq!(fs::metadata(&target).unwrap().len(), len);
    assert_eq!(data_ranges(&target), data_ranges(&source));
    for at in places {
        let mut found = vec![0; 1 << 20];
        File::open(&target).unwrap().read_exact_at(&mut found, at).unwrap();
        assert!(found == data, "at {at}");
    }
}

#[test]
fn standard_input() {
    let varv = Varv::new();
    for (name, content) in [("dump.sql", bytes(1, 5_000_000)), ("none", vec![]), ("zeros", vec![0; 3 << 20])]
    {
        let mut child =
            varv.command(args!["backup", "--quiet", "--stdin", name]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&content).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(varv.ok(args!["dump", name]).stdout == content, "{name}");
        let target = varv.path(name);
        varv.restore(args![name, &target]);
        assert!(fs::read(target).unwrap() == content, "{name}");
    }
}

#[test]
fn commands() {
    let varv = Varv::new();
    let shell = |name: &str, script: &str| {
        varv.run(args!["backup", "--from-command", name, "--", "sh", "-c", script])
    };
    assert_eq!(shell("numbers", "seq 100000").code, Some(0));
    let numbers: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(varv.ok(args!["dump", "numbers"]).stdout, numbers.as_bytes());
    assert_eq!(shell("silent", "true").code, Some(0));
    assert_eq!(varv.ok(args!["dump", "silent"]).stdout, b"");

    let before = varv.snapshots();
    for script in ["exit 7", "seq 100000; exit 1", "seq 1000000; kill -9 $$"] {
        let done = shell("failing", script);
        assert_eq!(done.code, Some(1), "{script}: {}", done.stderr);
    }
    varv.ends(1, args!["backup", "--from-command", "x", "--", "/no/such/program"]);
    assert_eq!(varv.snapshots(), before);
}

#[test]
fn a_quiet_command_is_not_run_by_a_shell() {
    let varv = Varv::new();
    varv.ok(args!["backup", "-q", "--from-command", "words", "--", "printf", "%s|", "a b", "$HOME", "*"]);
    assert_eq!(varv.ok(args!["dump", "words"]).stdout, b"a b|$HOME|*|");
}

#[test]
fn a_second_run_reads_nothing() {
    let varv = Varv::new();
    let source = varv.dir("source");
    support::make::tree(&source, 3);
    let first = varv.backup(args![&source]);
    let second = varv.backup(args![&source]);
    assert_eq!(second["files_unchanged"], first["files_new"]);
    for zero in ["files_new", "files_changed", "files_deleted", "bytes_read", "bytes_new"] {
        assert_eq!(second[zero], 0, "{zero}");
    }
    assert_eq!(second["bytes_source"], first["bytes_source"]);
    let forced = varv.backup(args!["--force-read", &source]);
    assert!(forced["bytes_read"].as_u64().unwrap() > 1_000_000, "{forced}");
    assert_eq!(forced["bytes_new"], 0);
    let target = varv.path("target");
    varv.restore(args![&source, &target]);
    assert_same(&source, &target);
}

#[test]
fn every_change_is_seen() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let file = |name: &str| source.join(name);
    for name in ["content", "appended", "same-size-and-time", "mode", "replaced", "gone", "stays"] {
        fs::write(file(name), bytes(1, 50_000)).unwrap();
        touch(&file(name), 1_000_000_000, 0);
    }
    varv.backup(args![&source]);
    let before = read(&source);
    let id = varv.snapshots()[0]["id"].as_str().unwrap().to_string();

    fs::write(file("content"), bytes(2, 50_000)).unwrap();
    File::options().append(true).open(file("appended")).unwrap().write_all(b"more").unwrap();
    support::make::overwrite(&file("same-size-and-time"), 100, b"changed");
    touch(&file("same-size-and-time"), 1_000_000_000, 0);
    chmod(&file("mode"), 0o600);
    fs::write(file("new"), bytes(3, 50_000)).unwrap();
    touch(&file("new"), 1_000_000_000, 0);
    fs::rename(file("new"), file("replaced")).unwrap();
    fs::remove_file(file("gone")).unwrap();
    fs::write(file("added"), "x").unwrap();

    let counted = varv.backup(args![&source]);
    let of = |name: &str| counted[name].as_u64().unwrap();
    assert_eq!(
        (of("files_new"), of("files_changed"), of("files_unchanged"), of("files_deleted")),
        (1, 5, 1, 1)
    );
    let (new, old) = (varv.path("new"), varv.path("old"));
    varv.restore(args![&source, &new]);
    assert_same(&source, &new);
    varv.restore(args!["--snapshot", &id, &source, &old]);
    assert_tree(&before, &old);
}

#[test]
fn a_path_may_change_its_kind_every_night() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let path = source.join("it");
    let mut nights = Vec::new();
    for night in 0..8 {
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        match night % 4 {
            0 => fs::write(&path, bytes(night, 10_000)).unwrap(),
            1 => {
                fs::create_dir_all(path.join("below")).unwrap();
                fs::write(path.join("below/file"), bytes(night, 10_000)).unwrap();
            }
            2 => symlink(format!("night{night}"), &path).unwrap(),
            _ => fs::write(path.with_file_name("other"), "x").unwrap(),
        }
        let id = varv.backup(args![&source])["snapshot"].as_str().unwrap().to_string();
        nights.push((id, read(&source)));
    }
    for (number, (id, expected)) in nights.iter().enumerate() {
        let target = varv.path(&format!("night{number}"));
        varv.restore(args!["--snapshot", id, &source, &target]);
        assert_tree(expected, &target);
    }
}

#[test]
fn a_part_of_a_snapshot() {
    let varv = Varv::new();
    let source = varv.dir("source");
    support::make::tree(&source, 4);
    varv.backup(args![&source]);
    for (part, name) in [("docs", "t1"), ("docs/old", "t2"), ("one", "t3"), ("link", "t4"), ("empty", "t5")] {
        let target = varv.path(name);
        varv.restore(args![source.join(part), &target]);
        assert_same(&source.join(part), &target);
    }
    varv.ends(1, args!["restore", source.join("nothing"), varv.path("t6")]).says(&["nothing"]);
    varv.ends(1, args!["restore", source.join("one/below-a-file"), varv.path("t6")]);
}

#[test]
fn every_tier_and_chunker_gives_the_bytes_back() {
    for chunker in ["fastcdc:4K,16K,64K", "fastcdc:16K,64K,256K", "fixed:4096", "fixed:1M"] {
        let varv = Varv::without_repository();
        varv.ok(args!["init", "-q", "--encryption", "none", "--chunker", chunker]);
        let source = varv.dir("source");
        support::make::tree(&source, 6);
        for tier in ["hot", "warm", "cold", "archive", "store"] {
            fs::write(source.join(tier), Random(tier.len() as u64).text(400_000)).unwrap();
            varv.backup(args!["--tier", tier, &source]);
        }
        let target = varv.path("target");
        varv.restore(args!["--verify", &source, &target]);
        assert_same(&source, &target);
    }
}

#[test]
fn an_encrypted_repository() {
    let varv = Varv::without_repository();
    let secret = varv.path("secret");
    fs::write(&secret, "correct horse\nsecond line\n").unwrap();
    let source = varv.dir("source");
    let content = Random(9).text(100_000);
    fs::write(source.join("plainly visible name"), &content).unwrap();
    varv.ok(args!["init", "-q", "--passphrase-file", &secret]);
    varv.backup(args!["--passphrase-file", &secret, "--tier", "store", &source]);
    for object in varv.objects() {
        let bytes = fs::read(&object).unwrap();
        let shows = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
        assert!(!shows(b"plainly visible name") && !shows(&content[..40]), "{}", object.display());
    }
    let target = varv.path("target");
    varv.restore(args!["--passphrase-command", "echo correct horse", &source, &target]);
    assert_same(&source, &target);
    let wrong = varv.path("wrong");
    fs::write(&wrong, "correct hors\n").unwrap();
    varv.ends(12, args!["snapshots", "--passphrase-file", &wrong]);
    varv.ends(12, args!["snapshots"]);
}

#[test]
fn nodes_as_roots_keep_their_attributes() {
    let Some(()) = root_or_skip() else { return };
    let varv = Varv::new();
    let node = varv.path("fifo");
    mknodat(CWD, &node, FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    if lsetxattr(&node, "trusted.colour", b"grey", XattrFlags::empty()).is_err() {
        return skip("no attributes here").unwrap_or(());
    }
    symlink(&node, varv.path("link")).unwrap();
    assert_same(&node, &varv.round(&node, "restored"));
    assert_same(&node, &varv.round(&varv.path("link"), "by way of a link"));
}
