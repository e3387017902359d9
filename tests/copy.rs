//! `varv copy`, compared with what sparsecopy did, byte by byte.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Stdio;

use proptest::prelude::*;
use support::make::{Random, bytes, sparse_file, write_sparse};
use support::system::{Loop, Mount, root_or_skip, run, skip};
use support::{Varv, args};

const MIB: usize = 1 << 20;

/// sparsecopy's options, as far as they change what is written.
#[derive(Debug, Clone, Default)]
struct Options {
    overlay: bool,
    nocheck: bool,
    max: Option<usize>,
    block: Option<usize>,
    seek: usize,
    final_len: Option<usize>,
    check: bool,
    quiet: bool,
}

impl Options {
    fn words(&self) -> Vec<OsString> {
        let mut words: Vec<String> = Vec::new();
        let mut size = |name: &str, value: Option<usize>| {
            // Blocks where they are whole ones, bytes where not: both are read.
            words.extend(value.map(|value| match value % 512 {
                0 => format!("{name}{}", value / 512),
                _ => format!("{name}{value}B"),
            }));
        };
        size("-m", self.max);
        size("-b", self.block);
        size("-s", (self.seek > 0).then_some(self.seek));
        size("-f", self.final_len);
        words.extend(self.overlay.then(|| "-o".to_string()));
        words.extend(self.nocheck.then(|| "-n".to_string()));
        words.extend(self.check.then(|| "-c".to_string()));
        words.extend(self.quiet.then(|| "-q".to_string()));
        words.into_iter().map(OsString::from).collect()
    }
}

/// What sparsecopy would have left, block by block.
fn oracle(source: &[u8], target: &[u8], is_device: bool, options: &Options) -> Vec<u8> {
    let mut out = match is_device || options.overlay {
        true => target.to_vec(),
        false => Vec::new(),
    };
    let source = &source[..source.len().min(options.max.unwrap_or(usize::MAX))];
    for (number, block) in source.chunks(options.block.unwrap_or(512)).enumerate() {
        let at = options.seek + number * options.block.unwrap_or(512);
        if out.len() < at + block.len() {
            out.resize(at + block.len(), 0);
        }
        if !(options.nocheck && block.iter().all(|byte| *byte == 0)) {
            out[at..at + block.len()].copy_from_slice(block);
        }
    }
    if out.len() < options.seek + source.len() {
        out.resize(options.seek + source.len(), 0);
    }
    if let Some(len) = options.final_len.filter(|_| !is_device) {
        out.resize(len, 0);
    }
    out
}

/// Zeros and data in turn, of lengths that are and are not multiples of a block.
fn layout(random: &mut Random, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len);
    while out.len() < len {
        let run = match random.below(4) {
            0 => random.below(700) as usize,
            1 => 512 * (1 + random.below(6) as usize),
            2 => 4096 * (1 + random.below(8) as usize),
            _ => 65536 * (1 + random.below(3) as usize),
        };
        match random.below(2) {
            0 => out.resize(out.len() + run, 0),
            _ => out.extend(random.bytes(run)),
        }
    }
    out.truncate(len);
    out
}

fn random_options(random: &mut Random) -> Options {
    let overlay = random.below(2) == 0;
    let any = |random: &mut Random| match random.below(2) {
        0 => 512 * random.below(600) as usize,
        _ => random.below(300_000) as usize,
    };
    let maybe = |random: &mut Random| (random.below(3) == 0).then(|| any(random));
    Options {
        overlay,
        nocheck: overlay && random.below(2) == 0,
        max: maybe(random),
        block: (random.below(2) == 0).then(|| [512, 1000, 4096, 65536, 524_288][random.below(5) as usize]),
        seek: maybe(random).unwrap_or(0),
        final_len: maybe(random),
        check: random.below(6) == 0,
        quiet: random.below(4) == 0,
    }
}

/// Whether sparsecopy would have stopped before it wrote anything.
fn stops(old: &[u8], options: &Options) -> bool {
    options.check && old.iter().take(options.block.unwrap_or(512)).any(|byte| *byte != 0)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]
    #[test]
    fn files_become_what_sparsecopy_made_of_them(seed: u64) {
        let random = &mut Random(seed);
        let varv = Varv::without_repository();
        let (len, old_len) = (random.below(500_000) as usize, random.below(500_000) as usize);
        let (source, old) = (layout(random, len), layout(random, old_len));
        let options = random_options(random);
        let (from, to) = (varv.path("from"), varv.path("to"));
        write_sparse(&from, &source);
        for how in ["--overwrite=always", "--in-place"] {
            write_sparse(&to, &old);
            let inode = fs::metadata(&to).unwrap().ino();
            let words = [args!["copy", how, &from, &to], &options.words()[..]].concat();
            let (code, wanted) = match stops(&old, &options) {
                true => (2, old.clone()),
                false => (0, oracle(&source, &old, false, &options)),
            };
            let done = varv.ends(code, &words);
            prop_assert_eq!(done.stdout.is_empty(), options.quiet || code == 2);
            prop_assert!(fs::read(&to).unwrap() == wanted, "{:?} {:?}", words, seed);
            prop_assert_eq!(fs::metadata(&to).unwrap().ino(), inode);
        }
        // The same from a pipe, onto a file that is new.
        let new = varv.path("new");
        let words = [args!["copy", "-", &new], &options.words()[..]].concat();
        let mut child = varv.command(&words).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        // It need not read what it will not write.
        let _ = child.stdin.take().unwrap().write_all(&source);
        prop_assert!(child.wait().unwrap().success());
        prop_assert!(fs::read(&new).unwrap() == oracle(&source, &[], false, &options), "{:?}", words);
    }
}

#[test]
fn whether_the_last_block_is_zero_is_for_all_of_it_to_say() {
    let varv = Varv::without_repository();
    let source = [vec![0; 3000], vec![1; 3000]].concat();
    fs::write(varv.path("from"), &source).unwrap();
    fs::write(varv.path("to"), vec![7; 5000]).unwrap();
    // Its first 2000 bytes are what is left of a block that is not zero, so they are written.
    varv.ok(args!["copy", "-o", "-n", "-b", "4096B", "-f", "2000B", "from", "to"]);
    assert_eq!(fs::read(varv.path("to")).unwrap(), vec![0; 2000]);
}

#[test]
fn devices_become_what_sparsecopy_made_of_them() {
    let garbage = bytes(9, MIB);
    for seed in 0..12 {
        let random = &mut Random(seed);
        let Some(device) = Loop::new(&garbage, 512) else { return };
        let varv = Varv::without_repository();
        let len = random.below(700_000) as usize;
        let source = layout(random, len);
        let mut options = random_options(random);
        options.seek = options.seek.min(MIB - len);
        (options.check, options.quiet) = (false, false);
        write_sparse(&varv.path("from"), &source);
        let how = if seed % 2 == 0 { "--overwrite=always" } else { "--in-place" };
        let words = [args!["copy", how, "from", &device.path], &options.words()[..]].concat();
        let done = varv.ok(&words);
        assert!(device.content() == oracle(&source, &garbage, true, &options), "{words:?}");
        assert!(String::from_utf8_lossy(&done.stdout).contains("untouched"), "{done:?}");
        // And back: the device as a source.
        varv.ok(args!["copy", "--verify", &device.path, "back"]);
        assert!(fs::read(varv.path("back")).unwrap() == device.content());
    }
}

/// sparsecopy's sizes: a bare number counts blocks of 512 bytes, units are powers of two.
#[test]
fn sizes_are_those_of_sparsecopy() {
    let varv = Varv::without_repository();
    let sizes: [(&str, u64); 16] = [
        ("0", 0),
        ("1", 512),
        ("1024", 512 << 10),
        ("1B", 1),
        ("513b", 513),
        ("3K", 3 << 10),
        ("3k", 3 << 10),
        ("3KiB", 3 << 10),
        ("2M", 2 << 20),
        ("2MiB", 2 << 20),
        ("5G", 5 << 30),
        ("5GiB", 5 << 30),
        ("7T", 7 << 40),
        ("7TiB", 7 << 40),
        ("9P", 9 << 50),
        ("1E", 1 << 60),
    ];
    for (text, bytes) in sizes {
        for option in ["-f", "--finalsize"] {
            let done = varv.json(args!["copy", "--dry-run", option, text, "/dev/null", "new"]);
            assert_eq!(done["bytes_target"], bytes, "{option} {text}");
        }
        for option in ["-m", "--max", "--maxwrite"] {
            let done = varv.json(args!["copy", "--dry-run", option, text, "/dev/zero", "new"]);
            assert_eq!(done["bytes"], bytes, "{option} {text}");
        }
        for option in ["-s", "--seek"] {
            let done = varv.json(args!["copy", "--dry-run", "-m0", option, text, "/dev/zero", "new"]);
            assert_eq!(done["bytes_target"], bytes, "{option} {text}");
        }
        let code = if (1..=16 << 20).contains(&bytes) { 0 } else { 2 };
        for option in ["-b", "--blocksize"] {
            varv.ends(code, args!["copy", "--dry-run", "-m0", option, text, "/dev/zero", "new"]);
        }
    }
    for text in ["", "-1", "1.5", "K", "1KB2", "0x10", "16E", "99999999999999999999", "36028797018963968"] {
        for option in ["-f", "-m", "-s", "-b"] {
            let word = format!("{option}{text}");
            varv.ends(2, args!["copy", "--dry-run", &word, "/dev/zero", "new"]);
        }
    }
    assert!(!varv.path("new").exists());
}

#[test]
fn an_impossible_length_leaves_nothing_behind() {
    let varv = Varv::without_repository();
    let (source, old) = (varv.path("source"), varv.path("old"));
    fs::write(&source, "words").unwrap();
    fs::write(&old, "old").unwrap();
    // More than a file of ext4 may have.
    let done = varv.run(args!["copy", "--finalsize", "7E", &source, varv.path("new")]);
    if done.code == Some(0) {
        return skip("files may be that long here").unwrap_or_default();
    }
    done.says(&["set the length of", "new"]);
    assert!(!varv.path("new").exists());
    varv.ends(1, args!["copy", "--in-place", "--finalsize", "7E", &source, &old]);
    assert_eq!(fs::read(&old).unwrap(), b"old");
}

#[test]
fn progress_is_drawn_where_it_is_asked_for() {
    let varv = Varv::without_repository();
    fs::write(varv.path("from"), bytes(1, MIB)).unwrap();
    let done = varv.ok(args!["copy", "-q", "-p", "from", "to"]);
    assert!(done.stdout.is_empty(), "{done:?}");
    assert!(fs::read(varv.path("to")).unwrap() == bytes(1, MIB));
}

/// Whoever listens may be gone.
#[test]
fn a_broken_pipe_ends_without_a_panic() {
    let varv = Varv::without_repository();
    let block = [7; 4096];
    let runs: Vec<(u64, &[u8])> = (0..4000).map(|number| (number * 16384, &block[..])).collect();
    sparse_file(&varv.path("from"), 64 << 20, &runs);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let words = args!["sparse", "report", "--map", "from"];
    let done = varv.command(words).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let done = done.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.code().is_some() && !said.contains("panicked"), "{:?} {said}", done.status);
}

#[test]
fn null_and_zero_make_empty_files() {
    let varv = Varv::without_repository();
    varv.ok(args!["copy", "-f", "64M", "/dev/null", "null"]);
    varv.ok(args!["copy", "-m", "131072", "/dev/zero", "zero"]);
    for name in ["null", "zero"] {
        let meta = fs::metadata(varv.path(name)).unwrap();
        assert_eq!((meta.len(), meta.blocks()), (64 << 20, 0), "{name}");
    }
}

#[test]
fn holes_are_not_read_and_zeros_become_holes() {
    let varv = Varv::without_repository();
    let content = bytes(1, MIB);
    sparse_file(&varv.path("from"), 8 << 40, &[(4 << 40, &content), (5 << 40, &[0; MIB])]);
    let counted = varv.json(args!["copy", "from", "to"]);
    assert_eq!((&counted["bytes"], &counted["bytes_data"]), (&(8u64 << 40).into(), &MIB.into()));
    assert_eq!(counted["bytes_hole"], (8u64 << 40) - 2 * MIB as u64);
    let meta = fs::metadata(varv.path("to")).unwrap();
    assert_eq!(meta.len(), 8 << 40);
    assert!(meta.blocks() * 512 < 2 * MIB as u64, "{}", meta.blocks());
    let verified = varv.json(args!["copy", "--in-place", "--verify", "from", "to"]);
    assert_eq!((&verified["bytes_written"], &verified["bytes_verified"]), (&0.into(), &(8u64 << 40).into()));
}

#[test]
fn a_new_file_gets_ordinary_permissions_and_an_old_one_keeps_its_own() {
    let varv = Varv::without_repository();
    fs::write(varv.path("from"), b"abc").unwrap();
    varv.ok(args!["copy", "from", "new"]);
    fs::write(varv.path("plain"), b"x").unwrap();
    let mode = |name: &str| fs::metadata(varv.path(name)).unwrap().permissions().mode();
    assert_eq!(mode("new"), mode("plain"));
    support::chmod(&varv.path("plain"), 0o604);
    symlink("plain", varv.path("link")).unwrap();
    varv.ok(args!["copy", "--overwrite", "always", "from", "link"]);
    assert_eq!((mode("plain") & 0o777, fs::read(varv.path("plain")).unwrap()), (0o604, b"abc".to_vec()));
    assert!(fs::symlink_metadata(varv.path("link")).unwrap().is_symlink());
}

#[test]
fn consent_is_asked_for() {
    let varv = Varv::without_repository();
    fs::write(varv.path("from"), b"abc").unwrap();
    fs::write(varv.path("full"), b"old").unwrap();
    fs::write(varv.path("empty"), b"").unwrap();
    varv.ok(args!["copy", "from", "empty"]);
    let done = varv.ends(2, args!["copy", "from", "full"]);
    done.says(&["3 bytes", "--overwrite always", "--in-place", "--overlay"]);
    assert_eq!(fs::read(varv.path("full")).unwrap(), b"old");
    let Some(device) = Loop::new(&[7; 65536], 512) else { return };
    varv.ends(2, args!["copy", "from", &device.path]).says(&["64.0 KiB", "blkid", "--overwrite always"]);
    assert!(device.content() == [7; 65536]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let varv = Varv::without_repository();
    let dir = varv.dir("dir");
    fs::write(varv.path("from"), vec![1; 5000]).unwrap();
    fs::write(varv.path("to"), vec![2; 5000]).unwrap();
    fs::hard_link(varv.path("from"), varv.path("same")).unwrap();
    for (words, said) in [
        (args!["-n", "from", "new"], "--dry-run"),
        (args!["-o", "-n", "--verify", "from", "new"], "--nocheck"),
        (args!["-b", "0", "from", "new"], "block"),
        (args!["-b", "1G", "from", "new"], "block"),
        (args!["-s", "8E", "from", "new"], "8 EiB"),
        (args!["-s", "9223372036854775807B", "from", "new"], "8 EiB"),
        (args!["-f", "15E", "from", "new"], "8 EiB"),
        (args!["-e", "-m", "1", "from", "new"], "--max"),
        (args!["from", "-"], "standard input"),
        (args!["from", &dir], "did you mean"),
        (args![&dir, "new"], "directory"),
        (args!["--overwrite=always", "from", "same"], "the same"),
        (args!["-o", "-s", "1M", "from", "from"], "the same"),
        (args!["from", "/dev/full"], "no block device"),
        (args!["-o", "-c", "from", "to"], "not zero"),
        (args!["--overwrite=always", "--reflink=always", "-m1", "from", "to"], "--reflink"),
    ] {
        let words = [args!["copy"], words].concat();
        let done = varv.ends(2, &words);
        assert!(done.stderr.contains(said), "{words:?}: {}", done.stderr);
        assert!(!varv.path("new").exists());
    }
    // Nobody makes directories where a disk should be mounted.
    for words in [args!["copy"], args!["copy", "--dry-run"], args!["sync"], args!["sync", "--dry-run"]] {
        varv.ends(1, &[words, args!["from", "no/new"]].concat()).says(&["no: No such file"]);
    }
    varv.ends(1, args!["sparse", "make", "no/new"]).says(&["no: No such file"]);
    assert!(!varv.path("no").exists());
    for words in [args!["-m", "1X", "from", "new"], args!["-s", "16E", "from", "new"], args!["from"]] {
        varv.ends(2, &[args!["copy"], words].concat());
    }
    varv.ends(1, args!["copy", "missing", "new"]).says(&["cannot open", "missing"]);
    assert!(fs::read(varv.path("to")).unwrap() == vec![2; 5000]);
    assert!(fs::read(varv.path("from")).unwrap() == vec![1; 5000]);
}

#[test]
fn the_first_block_is_checked() {
    let varv = Varv::without_repository();
    fs::write(varv.path("from"), b"abc").unwrap();
    fs::write(varv.path("to"), [&[0; 1024][..], b"x"].concat()).unwrap();
    varv.ok(args!["copy", "-c", "-o", "from", "missing"]);
    varv.ends(2, args!["copy", "-c", "-b", "4K", "-o", "from", "to"]);
    varv.ok(args!["copy", "-c", "-o", "from", "to"]);
    varv.ends(2, args!["copy", "-c", "-o", "from", "to"]);
}

#[test]
fn devices_that_are_too_small_or_in_use_are_refused() {
    let varv = Varv::without_repository();
    fs::write(varv.path("from"), vec![1; 2 * MIB]).unwrap();
    let Some(device) = Loop::new(&vec![7; MIB], 512) else { return };
    let to = &device.path;
    varv.ends(2, args!["copy", "--overwrite=always", "from", to]).says(&["too small"]);
    varv.ends(2, args!["copy", "--overwrite=always", "-m1M", "-s1", "from", to]).says(&["too small"]);
    varv.ends(2, args!["copy", "--overwrite=always", to, to]).says(&["the same"]);
    if let Some(twin) = device.twin(0, MIB as u64) {
        varv.ends(2, args!["copy", "--overlay", "-m1K", "-s1", to, &twin.path]).says(&["of the same file"]);
        varv.ends(2, args!["sync", to, &twin.path]).says(&["of the same file"]);
    }
    assert!(device.content() == vec![7; MIB]);
    // A stream tells its length too late.
    let mut child = varv
        .command(args!["copy", "--overwrite=always", "-", to])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(&vec![1; 2 * MIB]);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let Some(mounted) = Loop::new(&vec![0; 2 * MIB], 512) else { return };
    let point = varv.dir("point");
    if !run("mkfs.ext4", &["-q", mounted.path.to_str().unwrap()]) {
        return skip("no mkfs.ext4").unwrap_or(());
    }
    let Some(_mount) = Mount::new(&[mounted.path.to_str().unwrap()], &point) else { return };
    varv.ends(2, args!["copy", "--overwrite=always", "-m1M", "from", &mounted.path]).says(&["mounted"]);
}

#[test]
fn zeros_onto_a_used_device_are_zeros() {
    let varv = Varv::without_repository();
    sparse_file(&varv.path("from"), 8 * MIB as u64, &[(3 * MIB as u64, &bytes(1, MIB))]);
    for sector in [512, 4096] {
        let Some(device) = Loop::new(&bytes(2, 8 * MIB), sector) else { return };
        varv.ok(args!["copy", "--overwrite=always", "--verify", "from", &device.path]);
        assert!(device.content() == fs::read(varv.path("from")).unwrap());
    }
}

#[test]
fn a_full_disk_is_told() {
    let varv = Varv::without_repository();
    let point = varv.dir("point");
    fs::write(varv.path("from"), bytes(1, 4 * MIB)).unwrap();
    if let Some(_mount) = Mount::tmpfs(2, &point) {
        let done = varv.ends(1, args!["copy", "from", point.join("to")]);
        done.says(&["cannot write to", "No space left"]);
    }
}

#[test]
fn a_reflink_shares_blocks() {
    let Some(()) = root_or_skip() else { return };
    let varv = Varv::without_repository();
    let (image, point) = (varv.path("image"), varv.dir("point"));
    sparse_file(&image, 320 << 20, &[]);
    if !run("mkfs.xfs", &["-q", "-m", "reflink=1", image.to_str().unwrap()]) {
        return skip("no mkfs.xfs").unwrap_or(());
    }
    let Some(_mount) = Mount::new(&["-o", "loop", image.to_str().unwrap()], &point) else { return };
    fs::write(point.join("from"), bytes(1, MIB)).unwrap();
    let counted = varv.json(args!["copy", point.join("from"), point.join("to")]);
    assert_eq!(counted["reflinked"], true);
    assert!(fs::read(point.join("to")).unwrap() == bytes(1, MIB));
    let counted = varv.json(args!["copy", "--reflink=never", point.join("from"), point.join("other")]);
    assert_eq!((&counted["reflinked"], &counted["bytes_written"]), (&false.into(), &MIB.into()));
    varv.ends(1, args!["copy", "--reflink=always", point.join("from"), "elsewhere"]);
}

#[test]
fn a_dry_run_writes_nothing_and_quiet_says_nothing() {
    let varv = Varv::without_repository();
    fs::write(varv.path("from"), b"abc").unwrap();
    let counted = varv.json(args!["copy", "--dry-run", "-s1", "from", "to"]);
    assert_eq!((&counted["bytes"], &counted["bytes_target"]), (&3.into(), &515.into()));
    assert!(!varv.path("to").exists());
    let done = varv.ok(args!["copy", "-q", "from", "to"]);
    assert!(done.stdout.is_empty() && done.stderr.is_empty());
}

#[test]
fn a_killed_copy_is_completed_in_place() {
    let varv = Varv::without_repository();
    let content = bytes(1, 64 * MIB);
    fs::write(varv.path("from"), &content).unwrap();
    let random = &mut Random(std::process::id().into());
    for _ in 0..5 {
        let mut child = varv
            .command(args!["copy", "-q", "--in-place", "from", "to"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_micros(random.below(60_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        varv.ok(args!["copy", "--in-place", "--verify", "from", "to"]);
        assert!(fs::read(varv.path("to")).unwrap() == content);
        support::make::overwrite(&varv.path("to"), random.below(60 << 20), &random.bytes(MIB));
    }
}
