//! `varv sync`: files and devices made equal, here and over a remote shell; killed, refused, lied to.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value;
use support::make::{Random, bytes, overwrite, sparse_file, write_sparse};
use support::system::{Loop, Mount, run, skip};
use support::{Varv, args};

const MIB: usize = 1 << 20;

/// A remote shell that stays here: as ssh does, it gives the words behind the host to a shell.
fn fake_ssh(varv: &Varv) -> PathBuf {
    let path = varv.path("ssh");
    fs::write(&path, "#!/bin/sh\nshift\nexec /bin/sh -c \"$*\"\n").unwrap();
    support::chmod(&path, 0o755);
    path
}

/// A remote shell by which only so much comes through, in either direction: so many reads of a pipe.
fn cut_off(varv: &Varv, there: u64, back: u64) -> PathBuf {
    let path = varv.path("cut");
    let through = |count: u64| format!("dd bs=64k count={count} status=none");
    // The shell itself keeps nothing open: what comes to an end is seen at the other side.
    let script = format!(
        "#!/bin/sh\nshift\nexec 3<&0 4>&1\n{} <&3 3<&- 4>&- | /bin/sh -c \"$*\" 3<&- 4>&- | \
         {} >&4 3<&- 4>&- &\nexec 3<&- 4>&- <&- >&-\nwait\n",
        through(there),
        through(back)
    );
    fs::write(&path, script).unwrap();
    support::chmod(&path, 0o755);
    path
}

/// Words that lead to the varv under test by the remote shell.
fn by(ssh: &Path) -> Vec<std::ffi::OsString> {
    let remote = ["--remote-varv".into(), env!("CARGO_BIN_EXE_varv").into()];
    [&["--ssh".into(), ssh.as_os_str().to_owned()][..], &remote].concat()
}

fn remote(path: &Path) -> String {
    format!("other:{}", path.display())
}

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

/// What a naive comparison counts: blocks same, differing, and differing but zero.
fn oracle(source: &[u8], target: &[u8], block: usize) -> (u64, u64, u64) {
    let mut target = target.to_vec();
    target.resize(source.len().max(target.len()), 0);
    let (mut same, mut diff, mut zero) = (0, 0, 0);
    for (number, new) in source.chunks(block).enumerate() {
        let old = &target[number * block..number * block + new.len()];
        match (new == old, new.iter().all(|byte| *byte == 0)) {
            (true, _) => same += 1,
            (false, true) => zero += 1,
            (false, false) => diff += 1,
        }
    }
    (same, diff, zero)
}

fn counted(json: &Value) -> (u64, u64, u64) {
    let number = |name: &str| json[name].as_u64().unwrap();
    assert_eq!(
        number("blocks"),
        number("blocks_same") + number("blocks_diff") + number("blocks_zero"),
        "{json}"
    );
    (number("blocks_same"), number("blocks_diff"), number("blocks_zero"))
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
    for (words, said) in [
        (args!["from", "same"], "the same"),
        (args!["-b", "5000", "from", "to"], "multiple of 4096"),
        (args!["-b", "1G", "from", "to"], "multiple of 4096"),
        (args!["/dev/zero", "to"], "neither a file nor a block device"),
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
    if !run("mkfs.ext4", &["-q", "-b", "4096", device.path.to_str().unwrap()]) {
        return skip("no mkfs.ext4").unwrap_or(());
    }
    let varv = Varv::without_repository();
    let point = varv.dir("point");
    let Some(_mount) = Mount::new(&[device.path.to_str().unwrap()], &point) else { return };
    for seed in 0..3 {
        let content = bytes(seed, 65536);
        let mut file =
            fs::OpenOptions::new().create(true).truncate(false).write(true).open(point.join("f")).unwrap();
        file.write_all(&content).unwrap();
        file.sync_all().unwrap();
        varv.ok(args!["sync", "-b", "4096", &device.path, "to"]);
        let there = fs::read(varv.path("to")).unwrap();
        for block in content.chunks(4096) {
            assert!(there.chunks(4096).any(|other| other == block), "{seed}");
        }
    }
}

#[test]
fn a_full_disk_is_told_from_either_side() {
    let varv = Varv::without_repository();
    let ssh = fake_ssh(&varv);
    let point = varv.dir("point");
    fs::write(varv.path("from"), bytes(1, 24 * MIB)).unwrap();
    let Some(_mount) = Mount::tmpfs(2, &point) else { return };
    for to in [point.join("to").display().to_string(), remote(&point.join("to"))] {
        let done = varv.ends(1, &[args!["sync"], &by(&ssh)[..], args!["from", &to]].concat());
        done.says(&["No space left"]);
    }
    let from = remote(&varv.path("from"));
    let done = varv.ends(1, &[args!["sync"], &by(&ssh)[..], args![&from, point.join("to")]].concat());
    done.says(&["No space left"]);
}

#[test]
fn who_is_no_varv_and_who_is_another_is_told() {
    let varv = Varv::without_repository();
    fs::write(varv.path("from"), b"abc").unwrap();
    for (shell, said) in [
        ("exit 255", "ssh could not connect"),
        ("exit 127", "--remote-varv"),
        ("echo Welcome to the machine", "Welcome"),
        ("printf 'varvsync\\002\\000\\000\\000'; cat >/dev/null", "version 2"),
        ("printf 'varvsync\\001\\000\\000\\000'", "connection was lost"),
        ("printf 'varvsync\\001\\000\\000\\000\\002\\377\\377\\377\\377'; sleep 0.1", "protocol"),
        ("printf 'varvsync\\001\\000\\000\\000\\011\\000\\000\\000\\000'; sleep 0.1", "protocol"),
    ] {
        let ssh = varv.path("ssh");
        fs::write(&ssh, format!("#!/bin/sh\n{shell}\n")).unwrap();
        support::chmod(&ssh, 0o755);
        for words in [args!["from", "other:/to"], args!["other:/from", "to"]] {
            let done = varv.ends(1, &[args!["sync", "--ssh", &ssh], words].concat());
            assert!(done.stderr.contains(said), "{shell}: {}", done.stderr);
        }
    }
}

#[test]
fn killed_and_run_again_only_the_rest_is_sent() {
    let varv = Varv::without_repository();
    let ssh = fake_ssh(&varv);
    let content = bytes(1, 48 * MIB);
    fs::write(varv.path("from"), &content).unwrap();
    let to = remote(&varv.path("to"));
    let random = &mut Random(std::process::id().into());
    let words = [args!["sync", "-q", "-b", "64K"], &by(&ssh)[..], args!["from", &to]].concat();
    for _ in 0..6 {
        let mut child = varv.command(&words).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(random.below(150_000)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let there = fs::read(varv.path("to")).unwrap_or_default();
    let done = varv.json(&[&words[..], args!["--verify"]].concat());
    // What a killed run's other side still writes while it ends need not be sent.
    assert!(counted(&done).1 <= oracle(&content, &there, 64 << 10).1);
    assert!(fs::read(varv.path("to")).unwrap() == content);
}

#[test]
fn a_connection_that_is_lost_anywhere_is_told_and_the_rest_sent_later() {
    let varv = Varv::without_repository();
    let content = bytes(1, 4 * MIB);
    let old = bytes(2, 5 * MIB);
    fs::write(varv.path("from"), &content).unwrap();
    let ssh = fake_ssh(&varv);
    for (there, back) in [(0, 99), (1, 99), (2, 99), (5, 99), (99, 0), (99, 1), (99, 2), (9, 3)] {
        let cut = cut_off(&varv, there, back);
        for is_push in [true, false] {
            fs::write(varv.path("to"), &old).unwrap();
            let words = match is_push {
                true => args!["from", remote(&varv.path("to"))],
                false => args![remote(&varv.path("from")), "to"],
            };
            let small = args!["sync", "-q", "-b", "64K", "--compress", "0"];
            let done = varv.run(&[small, &by(&cut)[..], words].concat());
            // With so much let through, what is lost may be nothing.
            assert!(matches!(done.code, Some(0 | 1)), "{there} {back} {is_push}: {done:?}");
            let is_lost =
                ["connection was lost", "it said nothing"].iter().any(|said| done.stderr.contains(said));
            assert_eq!(is_lost, done.code == Some(1), "{there} {back} {is_push}: {}", done.stderr);
            let now = fs::read(varv.path("to")).unwrap();
            for (number, block) in now.chunks(65536).enumerate() {
                let at = number * 65536;
                let is_whole = |whole: &[u8]| whole.get(at..at + block.len()) == Some(block);
                assert!(is_whole(&old) || is_whole(&content), "{there} {back} {is_push}: block {number}");
            }
            varv.ok(&[small, &by(&ssh)[..], words].concat());
            assert!(fs::read(varv.path("to")).unwrap() == content);
        }
    }
}

#[test]
fn a_side_that_falls_silent_is_given_up() {
    let varv = Varv::without_repository();
    fs::write(varv.path("from"), bytes(1, MIB)).unwrap();
    let ssh = varv.path("ssh");
    fs::write(&ssh, "#!/bin/sh\nprintf 'varvsync\\001\\000\\000\\000'\nexec sleep 600\n").unwrap();
    support::chmod(&ssh, 0o755);
    for words in [args!["from", "other:/to"], args!["other:/from", "to"]] {
        let done = varv.ends(1, &[args!["sync", "--timeout", "1s", "--ssh", &ssh], words].concat());
        done.says(&["other: ", "connection was lost", "it said nothing for 1 s"]);
    }
    let mut called = varv
        .command(args!["sync", "--serve", "--timeout", "1s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    called.stdin.as_mut().unwrap().write_all(b"varvsync\x01\0\0\0").unwrap();
    assert_eq!(called.wait().unwrap().code(), Some(1));
}

#[test]
fn a_side_that_has_nothing_to_say_is_waited_for() {
    let varv = Varv::without_repository();
    let ssh = fake_ssh(&varv);
    fs::write(varv.path("from"), bytes(1, MIB)).unwrap();
    let words = args!["sync", "--timeout", "2s", "--two-pass", "--pause", "sleep 5", "--resume", "true"];
    for (from, to) in [("from".into(), remote(&varv.path("to"))), (remote(&varv.path("from")), "to".into())] {
        varv.ok(&[words, &by(&ssh)[..], args![&from, &to]].concat());
        assert_eq!(fs::read(varv.path("to")).unwrap(), bytes(1, MIB));
        fs::remove_file(varv.path("to")).unwrap();
    }
}

#[test]
fn a_source_that_becomes_shorter_is_told() {
    let varv = Varv::without_repository();
    fs::write(varv.path("from"), bytes(1, 12 * MIB)).unwrap();
    let mut child =
        varv.command(args!["sync", "--bwlimit", "10M", "from", "to"]).stderr(Stdio::piped()).spawn().unwrap();
    while !fs::read(varv.path("to")).is_ok_and(|there| there.iter().any(|byte| *byte != 0)) {
        std::thread::yield_now();
    }
    fs::File::options().write(true).open(varv.path("from")).unwrap().set_len(MIB as u64).unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
    assert!(said.contains("cannot read from") && said.contains("shorter than it was"), "{said}");
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
fn a_source_that_changes_is_noticed() {
    let varv = Varv::without_repository();
    fs::write(varv.path("from"), bytes(1, 3 * MIB)).unwrap();
    let mut child =
        varv.command(args!["sync", "--bwlimit", "10M", "from", "to"]).stderr(Stdio::piped()).spawn().unwrap();
    // Once the first block is there, the source is being read, and the limit keeps it so for a while.
    while !fs::read(varv.path("to")).is_ok_and(|there| there.iter().any(|byte| *byte != 0)) {
        std::thread::yield_now();
    }
    overwrite(&varv.path("from"), 0, b"changed");
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3), "{said}");
    assert!(said.contains("was written to"), "{said}");
}

#[test]
fn a_signal_ends_the_wait_for_a_side_that_says_nothing() {
    let varv = Varv::without_repository();
    fs::write(varv.path("from"), b"abc").unwrap();
    let ssh = varv.path("ssh");
    fs::write(&ssh, "#!/bin/sh\nprintf 'varvsync\\001\\000\\000\\000'\ntouch began\nexec sleep 600\n")
        .unwrap();
    support::chmod(&ssh, 0o755);
    for words in [args!["from", "other:/to"], args!["other:/from", "to"]] {
        let _ = fs::remove_file(varv.path("began"));
        let mut child = varv
            .command(&[args!["sync", "--ssh", &ssh], words].concat())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while !varv.path("began").exists() {
            std::thread::yield_now();
        }
        assert!(run("kill", &["-TERM", &child.id().to_string()]));
        assert_eq!(child.wait().unwrap().code(), Some(143));
    }
}

#[test]
fn a_longer_target_is_cut_only_at_the_end() {
    let varv = Varv::without_repository();
    let content = bytes(1, 2 * MIB);
    fs::write(varv.path("from"), &content).unwrap();
    fs::write(varv.path("to"), bytes(2, 5 * MIB)).unwrap();
    let words = args!["sync", "--bwlimit", "512K", "from", "to"];
    let mut child = varv.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while fs::read(varv.path("to")).unwrap()[..MIB] != content[..MIB] {
        std::thread::yield_now();
    }
    assert_eq!(fs::metadata(varv.path("to")).unwrap().len(), 5 * MIB as u64);
    child.kill().unwrap();
    child.wait().unwrap();
    varv.ok(args!["sync", "from", "to"]).says(&["3145728 bytes behind the source's end are cut off"]);
    assert!(fs::read(varv.path("to")).unwrap() == content);
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

#[test]
fn a_move_that_fails_says_which_side_is_good() {
    let varv = Varv::without_repository();
    fs::write(varv.path("from"), bytes(1, 2 * MIB)).unwrap();
    for (pause, resume, said) in [
        ("false", "true", "from is good, to is not complete; from may be paused"),
        ("truncate -s 1M from", "true", "from is good, and still paused; to is not complete"),
        ("true", "exit 3", "from and to are good and equal, and not resumed"),
    ] {
        fs::write(varv.path("from"), bytes(1, 2 * MIB)).unwrap();
        let _ = fs::remove_file(varv.path("failed"));
        let words = args!["sync", "--two-pass", "--pause", pause, "--resume", resume, "from", "to"];
        let done = varv.ends(1, &[words, args!["--on-failure", "echo x >>failed"]].concat());
        done.says(&[said, "on-failure was run"]);
        assert_eq!(fs::read(varv.path("failed")).unwrap(), b"x\n");
        fs::write(varv.path("from"), bytes(1, 2 * MIB)).unwrap();
        varv.ends(1, words).says(&[said, "no --on-failure is given"]);
    }
}

/// An sshd of our own, on a free port, with keys of its own.
struct Sshd {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Sshd {
    fn new() -> Option<Self> {
        let program = Path::new("/usr/sbin/sshd");
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let keygen = |name: &str| {
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", path(name).to_str().unwrap()])
        };
        if !program.exists() || !keygen("host") || !keygen("user") {
            return skip("no sshd or ssh-keygen");
        }
        fs::copy(path("user.pub"), path("authorized")).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized\n\
             PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n",
            dir.path().display()
        );
        fs::write(path("config"), config).unwrap();
        if support::system::is_root() {
            fs::create_dir_all("/run/sshd").ok()?;
        }
        let child = Command::new(program)
            .args(["-D", "-e", "-f", path("config").to_str().unwrap()])
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut sshd = Self { child, dir, port };
        for _ in 0..100 {
            if sshd.child.try_wait().unwrap().is_some() {
                break;
            }
            if Command::new("/bin/sh").args(["-c", &sshd.ssh(), "ssh"]).arg("true").output().is_ok()
                && Command::new("/bin/sh")
                    .args(["-c", &format!("{} localhost true", sshd.ssh())])
                    .output()
                    .is_ok_and(|output| output.status.success())
            {
                return Some(sshd);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        skip("sshd does not start, or does not let us in")
    }

    fn ssh(&self) -> String {
        let dir = self.dir.path().display();
        format!(
            "ssh -F /dev/null -p {} -i {dir}/user -o IdentitiesOnly=yes -o BatchMode=yes -o \
             StrictHostKeyChecking=no -o UserKnownHostsFile={dir}/known -o LogLevel=ERROR",
            self.port
        )
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn over_a_real_sshd_both_ways() {
    let Some(sshd) = Sshd::new() else { return };
    let varv = Varv::without_repository();
    let mut content = bytes(1, 20 * MIB);
    fs::write(varv.path("to"), &content).unwrap();
    content[5 * MIB..6 * MIB].fill(0);
    content[9 * MIB] ^= 1;
    content.extend(Random(7).text(3 * MIB));
    fs::write(varv.path("from"), &content).unwrap();
    let there = |name: &str| format!("localhost:{}", varv.path(name).display());
    let by = args!["sync", "--ssh", sshd.ssh(), "--remote-varv", env!("CARGO_BIN_EXE_varv"), "--verify"];
    let done = varv.json(&[by, args!["from", there("to")]].concat());
    assert_eq!(counted(&done), (18, 4, 1));
    // Text shrinks on its way.
    assert!(done["bytes_sent"].as_u64().unwrap() < 2 * MIB as u64, "{done}");
    assert!(fs::read(varv.path("to")).unwrap() == content);
    varv.json(&[by, args![there("from"), "pulled"]].concat());
    assert!(fs::read(varv.path("pulled")).unwrap() == content);
    let done = varv.ends(1, &[by, args!["from", there("from/x")]].concat());
    done.says(&["localhost: ", "Not a directory"]);
    let wrong = args!["sync", "--ssh", sshd.ssh(), "--remote-varv", "/no/varv", "from", "localhost:/x"];
    varv.ends(1, wrong).says(&["--remote-varv"]);
}

/// Bytes for the called side: a conversation that goes well up to some point.
fn conversation(random: &mut Random, role: u8, path: &Path) -> Vec<u8> {
    let mut out = b"varvsync\x01\0\0\0".to_vec();
    let mut say = |kind: u8, body: &[u8]| {
        out.push(kind);
        out.extend((body.len() as u32).to_le_bytes());
        out.extend(body);
    };
    let mut request = vec![role];
    request.extend(4096u32.to_le_bytes());
    request.extend(65536u64.to_le_bytes());
    request.extend([0, 3]);
    request.extend(0u64.to_le_bytes());
    request.extend(path.as_os_str().as_encoded_bytes());
    say(1, &request);
    say(3, &[1, 2, 5, 1]);
    say(4, &[random.below(2) as u8, random.below(2) as u8]);
    for _ in 0..random.below(6) {
        match random.below(4) {
            0 => say(5, &[0, random.below(30) as u8]),
            1 => say(5, &[&[1, 1][..], &[7; 32]].concat()),
            2 => {
                let head = [&random.below(20).to_le_bytes()[..], &4096u32.to_le_bytes(), &[0]].concat();
                say(6, &[&head[..], &random.bytes(4096)].concat());
            }
            _ => say(7, &[random.below(20).to_le_bytes(), random.below(20).to_le_bytes()].concat()),
        }
    }
    say(8, &[0; 41]);
    say(10, &[]);
    out
}

/// The process is asked something, its answers are read and thrown away; it must end by itself and
/// not by a signal or a panic.
fn survives(mut child: Child, said: &[u8], why: &str) {
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    // It may have hung up already.
    let _ = stdin.write_all(said);
    drop(stdin);
    reader.join().unwrap().unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    let code = child.wait().unwrap().code();
    assert!(matches!(code, Some(0..=2)) && !stderr.contains("panicked"), "{why}: {code:?} {stderr}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]
    #[test]
    fn the_called_side_survives_anything(seed: u64) {
        let random = &mut Random(seed);
        let varv = Varv::without_repository();
        fs::write(varv.path("file"), bytes(seed, 65536)).unwrap();
        let role = random.below(2) as u8;
        let mut said = conversation(random, role, &varv.path("file"));
        // The path stays: what it leads to would be written to.
        let path = 17 + 23..17 + 23 + varv.path("file").as_os_str().len();
        for _ in 0..random.below(4) {
            let at = random.below(said.len() as u64) as usize;
            if !(13..17).contains(&at) && !path.contains(&at) {
                said[at] ^= 1 << random.below(8);
            }
        }
        if random.below(3) == 0 {
            said.truncate(random.below(said.len() as u64) as usize);
        }
        let child = varv
            .command(args!["sync", "--serve"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        survives(child, &said, &format!("seed {seed}"));
        // Nothing outside of what was asked for is written.
        prop_assert!(fs::metadata(varv.path("file")).unwrap().len() <= 65536 || role == 1);
    }

    #[test]
    fn the_calling_side_survives_anything(seed: u64) {
        let random = &mut Random(seed);
        let varv = Varv::without_repository();
        fs::write(varv.path("file"), bytes(seed, 65536)).unwrap();
        // What a called side says: ready, then states or data, then the ends of a pass.
        let mut said = b"varvsync\x01\0\0\0".to_vec();
        let mut say = |kind: u8, body: &[u8]| {
            said.push(kind);
            said.extend((body.len() as u32).to_le_bytes());
            said.extend(body);
        };
        say(2, &[&65536u64.to_le_bytes()[..], &[0], &0u64.to_le_bytes()].concat());
        for _ in 0..random.below(5) {
            match random.below(3) {
                0 => say(5, &[0, 1 + random.below(16) as u8]),
                1 => say(5, &[&[1, 2][..], &[7; 64]].concat()),
                _ => say(7, &[random.below(20).to_le_bytes(), random.below(20).to_le_bytes()].concat()),
            }
        }
        say(8, &[0; 41]);
        say(9, &[0; 16]);
        for _ in 0..random.below(4) {
            let at = random.below(said.len() as u64) as usize;
            said[at] ^= 1 << random.below(8);
        }
        fs::write(varv.path("said"), &said).unwrap();
        let ssh = varv.path("ssh");
        fs::write(&ssh, "#!/bin/sh\ncat said; exec >&-; cat >/dev/null\n").unwrap();
        support::chmod(&ssh, 0o755);
        for words in [args!["file", "other:/to"], args!["other:/from", "made"]] {
            let words = [args!["sync", "-b", "4096", "--ssh", &ssh], words].concat();
            let done = varv.run(&words);
            prop_assert!(matches!(done.code, Some(0..=2)), "{} {:?}", seed, done);
            prop_assert!(!done.stderr.contains("panicked"), "{} {:?}", seed, done);
        }
    }
}
