//! `varv sync` when something happens meanwhile: kills, lost connections, full disks, sources that
//! change.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use support::make::{Random, bytes, overwrite};
use support::sync::{by, counted, fake_ssh, oracle, remote, script, wait_until};
use support::system::{Mount, run};
use support::{Varv, args};

const MIB: usize = 1 << 20;

/// A remote shell by which only so much comes through, in either direction: so many reads of a pipe.
fn cut_off(varv: &Varv, there: u64, back: u64) -> PathBuf {
    let through = |count: u64| format!("dd bs=64k count={count} status=none");
    // The shell itself keeps nothing open: what comes to an end is seen at the other side.
    let lines = format!(
        "shift\nexec 3<&0 4>&1\n{} <&3 3<&- 4>&- | /bin/sh -c \"$*\" 3<&- 4>&- | \
         {} >&4 3<&- 4>&- &\nexec 3<&- 4>&- <&- >&-\nwait",
        through(there),
        through(back)
    );
    script(varv, "cut", &lines)
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
    let ssh = script(&varv, "ssh", "printf 'varvsync\\001\\000\\000\\000'\nexec sleep 600");
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
    wait_until(|| fs::read(varv.path("to")).is_ok_and(|there| there.iter().any(|byte| *byte != 0)));
    fs::File::options().write(true).open(varv.path("from")).unwrap().set_len(MIB as u64).unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
    assert!(said.contains("cannot read from") && said.contains("shorter than it was"), "{said}");
}

#[test]
fn a_source_that_changes_is_noticed() {
    let varv = Varv::without_repository();
    fs::write(varv.path("from"), bytes(1, 3 * MIB)).unwrap();
    let mut child =
        varv.command(args!["sync", "--bwlimit", "10M", "from", "to"]).stderr(Stdio::piped()).spawn().unwrap();
    // Once the first block is there, the source is being read, and the limit keeps it so for a while.
    wait_until(|| fs::read(varv.path("to")).is_ok_and(|there| there.iter().any(|byte| *byte != 0)));
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
    let ssh = script(&varv, "ssh", "printf 'varvsync\\001\\000\\000\\000'\ntouch began\nexec sleep 600");
    for words in [args!["from", "other:/to"], args!["other:/from", "to"]] {
        let _ = fs::remove_file(varv.path("began"));
        let mut child = varv
            .command(&[args!["sync", "--ssh", &ssh], words].concat())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until(|| varv.path("began").exists());
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
    wait_until(|| fs::read(varv.path("to")).unwrap()[..MIB] == content[..MIB]);
    assert_eq!(fs::metadata(varv.path("to")).unwrap().len(), 5 * MIB as u64);
    child.kill().unwrap();
    child.wait().unwrap();
    varv.ok(args!["sync", "from", "to"]).says(&["3145728 bytes behind the source's end are cut off"]);
    assert!(fs::read(varv.path("to")).unwrap() == content);
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
