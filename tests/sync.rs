//! `varv sync`: files and devices made equal, here and over a remote shell; what is refused.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::io::Write;

use proptest::prelude::*;
use support::make::{Random, bytes, overwrite, sparse_file, write_sparse};
use support::sync::{by, counted, fake_ssh, oracle, remote};
use support::system::{Loop, Mount, run, skip};
use support::{Varv, args};

const MIB: usize = 1 << 20;

/// Blocks of zeros and data, some of them as they are in `other`.
fn layout(random: &mut Random, len: usize, other: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(len);
    while out.len() < len {
        let run = 1 + random.below(40_000) as usize;
        match random.below(4) {
            0 => out.resize(out.len() + run, 0),
            1 => out.extend(random.bytes(run)),
            2 => out.extend(random.text(run)),
            _ => {
                let end = (out.len() + run).min(other.len());
                match out.len() < end {
                    true => out.extend_from_slice(&other[out.len()..end]),
                    false => out.resize(out.len() + run, 0),
                }
            }
        }
    }
    out.truncate(len);
    out
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]
    #[test]
    fn any_file_becomes_any_other(seed: u64) {
        let random = &mut Random(seed);
        let varv = Varv::without_repository();
        let ssh = fake_ssh(&varv);
        let (len, old_len) = (random.below(600_000) as usize, random.below(600_000) as usize);
        let old = layout(random, old_len, &[]);
        let source = layout(random, len, &old);
        let block = [4096, 12_288, 65_536, 1 << 20][random.below(4) as usize];
        let (from, to) = (varv.path("from"), varv.path("to"));
        write_sparse(&from, &source);
        let size = block.to_string();
        for (name, from_word, to_word) in [
            ("here", from.display().to_string(), to.display().to_string()),
            ("push", from.display().to_string(), remote(&to)),
            ("pull", remote(&from), to.display().to_string()),
        ] {
            write_sparse(&to, &old);
            let words = [args!["sync", "-b", &size], &by(&ssh)[..]].concat();
            let words = [&words[..], args![&from_word, &to_word]].concat();
            let dry = varv.json(&[&words[..], args!["--dry-run"]].concat());
            prop_assert!(fs::read(&to).unwrap() == old, "{} {}", name, seed);
            let done = varv.json(&[&words[..], args!["--verify"]].concat());
            prop_assert!(fs::read(&to).unwrap() == source, "{} {}", name, seed);
            let wanted = oracle(&source, &old, block);
            prop_assert_eq!(counted(&done), wanted, "{} {}", name, seed);
            prop_assert_eq!(counted(&dry), wanted, "{} {}", name, seed);
            let again = varv.json(&words);
            prop_assert_eq!(&again["bytes_sent"], 0);
            prop_assert_eq!(counted(&again).0, source.len().div_ceil(block) as u64);
        }
    }
}

#[test]
fn devices_full_of_garbage_both_ways() {
    let garbage = bytes(9, 2 * MIB);
    for seed in 0..6 {
        let random = &mut Random(seed);
        let Some(device) = Loop::new(&garbage, if seed % 2 == 0 { 512 } else { 4096 }) else { return };
        let varv = Varv::without_repository();
        let ssh = fake_ssh(&varv);
        let len = 512 * (1000 + random.below(3000) as usize);
        let source = layout(random, len, &garbage);
        write_sparse(&varv.path("from"), &source);
        let (from, to) = (varv.path("from"), device.path.clone());
        let to_word = if seed < 3 { to.display().to_string() } else { remote(&to) };
        let words = [args!["sync", "-b", "64K", "--verify"], &by(&ssh)[..], args![&from, &to_word]].concat();
        let done = varv.json(&words);
        let after = device.content();
        assert!(after[..len] == source && after[len..] == garbage[len..], "{seed}");
        assert_eq!(done["bytes_untouched"], 2 * MIB - len);
        // And back into a file, whose zeros become holes.
        varv.ok(&[args!["sync"], &by(&ssh)[..], args![&to_word, "back"]].concat());
        assert!(fs::read(varv.path("back")).unwrap() == after);
    }
}

#[test]
fn the_line_of_blocksync() {
    let varv = Varv::without_repository();
    let mut content = bytes(1, 64 * MIB);
    fs::write(varv.path("to"), &content).unwrap();
    for number in [3, 17, 60] {
        content[number * MIB + 5] ^= 1;
    }
    content[20 * MIB..21 * MIB].fill(0);
    fs::write(varv.path("from"), &content).unwrap();
    let done = varv.ok(args!["sync", "from", "to"]);
    let text = String::from_utf8(done.stdout.clone()).unwrap();
    assert!(text.starts_with("same: 60, diff: 3, zero: 1, 64/64\n"), "{text}");
    done.says(&["to is overwritten where it differs from from"]);
    assert!(fs::read(varv.path("to")).unwrap() == content);
    let done = varv.ok(args!["sync", "-q", "from", "to"]);
    assert!(done.stdout.is_empty() && done.stderr.is_empty());
}

#[test]
fn holes_are_read_on_neither_side() {
    let varv = Varv::without_repository();
    for name in ["from", "to"] {
        sparse_file(&varv.path(name), 4 << 40, &[(1 << 40, &bytes(1, 3 * MIB))]);
    }
    let done = varv.json(args!["sync", "from", "to"]);
    assert_eq!(counted(&done), (4 << 20, 0, 0));
    assert_eq!(
        (&done["bytes_read_source"], &done["bytes_read_target"]),
        (&(3 * MIB).into(), &(3 * MIB).into())
    );
    overwrite(&varv.path("to"), 3 << 40, b"garbage");
    assert_eq!(counted(&varv.json(args!["sync", "--verify", "from", "to"])).2, 1);
}

#[test]
fn only_what_a_change_list_names_is_read() {
    let varv = Varv::without_repository();
    let old = bytes(1, 16 * MIB);
    let mut new = old.clone();
    new[3 * MIB + 7] ^= 1;
    new[9 * MIB] ^= 1;
    fs::write(varv.path("from"), &new).unwrap();
    fs::write(varv.path("to"), &old).unwrap();
    fs::write(varv.path("list"), format!("# changed\n{} 1\n{} 4096\n", 3 * MIB + 7, 9 * MIB)).unwrap();
    let ssh = fake_ssh(&varv);
    let to = remote(&varv.path("to"));
    let done =
        varv.json(&[args!["sync", "--change-list", "list"], &by(&ssh)[..], args!["from", &to]].concat());
    assert_eq!(counted(&done), (0, 2, 0));
    assert_eq!(
        (&done["bytes_read_source"], &done["bytes_read_target"]),
        (&(2 * MIB).into(), &(2 * MIB).into())
    );
    assert!(fs::read(varv.path("to")).unwrap() == new);
    fs::write(varv.path("list"), "nonsense\n").unwrap();
    varv.ends(2, args!["sync", "--change-list", "list", "from", "to"]).says(&["list: line 1"]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let varv = Varv::without_repository();
    let ssh = fake_ssh(&varv);
    fs::write(varv.path("from"), vec![1; 5 * MIB]).unwrap();
    fs::hard_link(varv.path("from"), varv.path("same")).unwrap();
    let dir = varv.dir("dir");
    let dir_there = remote(&dir);
    assert!(run("mkfifo", &[varv.path("pipe").to_str().unwrap()]));
    for (words, said) in [
        (args!["from", "same"], "the same"),
        (args!["-b", "5000", "from", "to"], "multiple of 4096"),
        (args!["-b", "1G", "from", "to"], "multiple of 4096"),
        (args!["/dev/zero", "to"], "neither a file nor a block device"),
        (args!["pipe", "to"], "neither a file nor a block device"),
        (args!["from", "pipe"], "neither a file nor a block device"),
        (args!["from", &dir], "directory"),
        (args!["from", &dir_there], "directory"),
        (args!["a:b", "c:d"], "one side must be here"),
        (args!["--compress", "30", "from", "to"], "level"),
        (args!["from", "/dev/full"], "no block device"),
        (args!["from", "other:/dev/full"], "no block device"),
    ] {
        let done = varv.ends(2, &[args!["sync"], &by(&ssh)[..], words].concat());
        assert!(done.stderr.contains(said), "{words:?}: {}", done.stderr);
    }
    varv.ends(2, args!["sync", "from"]);
    varv.ends(2, args!["sync", "--two-pass", "from", "to"]);
    varv.ends(1, args!["sync", "missing", "to"]);
    assert!(!varv.path("to").exists());
    let Some(device) = Loop::new(&vec![7; MIB], 512) else { return };
    varv.ends(2, args!["sync", "from", &device.path]).says(&["too small"]);
    let there = remote(&device.path);
    let done = varv.ends(2, &[args!["sync"], &by(&ssh)[..], args!["from", &there]].concat());
    done.says(&["other: ", "too small"]);
    assert!(device.content() == vec![7; MIB]);
    let Some(mounted) = Loop::new(&vec![0; 8 * MIB], 512) else { return };
    if !run("mkfs.ext4", &["-q", mounted.path.to_str().unwrap()]) {
        return skip("no mkfs.ext4").unwrap_or(());
    }
    let Some(_mount) = Mount::new(&[mounted.path.to_str().unwrap()], &dir) else { return };
    varv.ends(2, args!["sync", "from", &mounted.path]).says(&["mounted"]);
}

/// A mounted file system writes past the device's own cache, which then is old.
#[test]
fn what_was_written_to_a_mounted_device_is_seen() {
    let Some(device) = Loop::new(&vec![0; 16 * MIB], 512) else { return };
    let path = device.path.to_str().unwrap();
    if !run("mkfs.ext4", &["-q", "-b", "4096", path]) {
        return skip("no mkfs.ext4").unwrap_or(());
    }
    let varv = Varv::without_repository();
    let point = varv.dir("point");
    let Some(_mount) = Mount::new(&[path], &point) else { return };
    // Otherwise the kernel goes on writing (inode tables after mkfs, what the journal has), now and
    // then while the device is read, and that is noticed.
    let hold_still = |how: &str| assert!(run("mount", &["-o", how, point.to_str().unwrap()]), "{how}");
    for seed in 0..3 {
        let content = bytes(seed, 65536);
        let mut file =
            fs::OpenOptions::new().create(true).truncate(false).write(true).open(point.join("f")).unwrap();
        file.write_all(&content).unwrap();
        drop(file);
        hold_still("remount,ro");
        varv.ok(args!["sync", "-b", "4096", &device.path, "to"]);
        hold_still("remount,rw");
        let there = fs::read(varv.path("to")).unwrap();
        for block in content.chunks(4096) {
            assert!(there.chunks(4096).any(|other| other == block), "{seed}");
        }
    }
}

#[test]
fn a_limit_is_kept() {
    let varv = Varv::without_repository();
    fs::write(varv.path("from"), bytes(1, 3 * MIB)).unwrap();
    let done = varv.json(args!["sync", "--bwlimit", "10M", "from", "to"]);
    // The last MiB begins when the two before it are due.
    assert!(done["seconds"].as_f64().unwrap() >= 0.2, "{done}");
}

#[test]
fn a_move_pauses_synchronises_and_resumes() {
    let varv = Varv::without_repository();
    let content = bytes(1, 4 * MIB);
    fs::write(varv.path("from"), &content).unwrap();
    // Pausing is when the last bytes are written.
    let words = args![
        "sync",
        "--two-pass",
        "--verify",
        "--pause",
        "printf last | dd of=from conv=notrunc status=none; echo p",
        "--resume",
        "cmp from to && touch resumed",
        "--on-failure",
        "touch failed",
        "from",
        "to"
    ];
    let done = varv.json(words);
    assert_eq!(counted(&done), (3, 1, 0));
    assert!(done["seconds_paused"].as_f64().unwrap() > 0.0);
    assert!(varv.path("resumed").exists() && !varv.path("failed").exists());
    let text = String::from_utf8(varv.ok(words).stdout).unwrap();
    assert!(text.contains("paused  "), "{text}");
}
