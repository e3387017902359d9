//! Backups of logical volumes that are interrupted, and gone on with (`support/lab`).
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod support;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::lab::{
    assert_dump_is, assert_newest_is, boot, copy, group, how, in_lab, is_installed, kept, pool, scribble, sh,
};
use support::{Varv, args};

/// How far a checkpoint lies behind the one before.
const EVERY: &str = "16M";
const MIB: u64 = 1 << 20;

fn words(volumes: &[&str]) -> Vec<OsString> {
    let begin = args![
        "--json",
        "lvm",
        "backup",
        "--checkpoint-every",
        EVERY,
        "--spot-check",
        "0",
        "--snapshot-size",
        "50%"
    ];
    begin.iter().cloned().chain(volumes.iter().map(OsString::from)).collect()
}

/// Runs a backup until a checkpoint is there, and ends it with this signal.
fn interrupt(varv: &Varv, volumes: &[&str], signal: &str) -> std::process::ExitStatus {
    let mut run = until_checkpoint(varv, volumes, 1);
    sh(&format!("kill -{signal} {}", run.id()));
    run.wait().unwrap()
}

/// Runs a backup until so many checkpoints were there, one after another.
fn until_checkpoint(varv: &Varv, volumes: &[&str], count: usize) -> Child {
    let mut run = varv.command(&words(volumes));
    let mut run = run.stdout(Stdio::null()).spawn().unwrap();
    let state = varv.repository.join("state");
    let mut seen = BTreeSet::new();
    while seen.len() < count {
        assert!(run.try_wait().unwrap().is_none(), "it was over before it was interrupted");
        std::thread::sleep(Duration::from_millis(20));
        let names = std::fs::read_dir(&state).into_iter().flatten().flatten().map(|entry| entry.file_name());
        seen.extend(names.filter(|name| name.to_string_lossy().starts_with("checkpoint-")));
    }
    run
}

fn resumed(night: &Value) -> u64 {
    night["volumes"][0]["bytes_resumed"].as_u64().unwrap()
}

/// What is read is the rest, and a chunk or two before it.
fn assert_reads_only_the_rest(night: &Value, len: u64) {
    let (done, read) = (resumed(night), night["volumes"][0]["bytes_read"].as_u64().unwrap());
    assert!(done >= 16 * MIB && read <= len - done + MIB / 4, "{night}");
    println!("{} of {} MiB read, {} were done", read / MIB, len / MIB, done / MIB);
}

#[test]
fn a_killed_backup_is_gone_on_with() {
    if !in_lab!("2G") {
        return;
    }
    group();
    sh("lvcreate -q -y -n a -L 200M vg; lvcreate -q -y -n b -L 40M vg");
    scribble("/dev/vg/a", 0, 200);
    copy("/dev/vg/a", "a");
    let varv = Varv::new();
    assert_eq!(interrupt(&varv, &["vg/a"], "KILL").code(), None);
    assert_eq!((varv.snapshots().len(), kept(&varv).len()), (0, 1));
    // What the snapshot shows is backed up, whatever has become of the volume; also after a prune.
    assert_eq!(varv.json(args!["prune"])["interrupted"], serde_json::json!([]));
    scribble("/dev/vg/a", 100, 5);
    let before = kept(&varv);
    varv.ok(&words(&["--dry-run", "vg/a"]));
    assert_eq!(kept(&varv), before);
    let done = varv.ok(&words(&["vg/a"]));
    done.says(&["is gone on with"]);
    assert_reads_only_the_rest(&done.json(), 200 * MIB);
    assert_eq!(how(&done.json()), ("full", None));
    assert_eq!(kept(&varv), before);
    assert_dump_is(&varv, "vg/a", "/copies/a");
    // The next night knows what has changed since, and is interrupted as well.
    scribble("/dev/vg/a", 120, 70);
    copy("/dev/vg/a", "a");
    assert_eq!(interrupt(&varv, &["vg/a"], "TERM").code(), Some(143));
    assert_eq!(kept(&varv).len(), 2);
    scribble("/dev/vg/a", 50, 1);
    let night_after = varv.json(&words(&["vg/a"])[1..]);
    assert_eq!(how(&night_after), ("cow", None));
    assert!(resumed(&night_after) > 120 * MIB, "{night_after}");
    assert!(night_after["bytes_read"].as_u64().unwrap() < 60 * MIB, "{night_after}");
    assert_dump_is(&varv, "vg/a", "/copies/a");
    assert_eq!(kept(&varv).len(), 1);
    assert_eq!(how(&varv.json(&words(&["vg/a"])[1..])), ("cow", None));
    assert_newest_is(&varv, "vg/a");
    // Named with another volume it is no moment of both: all is begun anew.
    scribble("/dev/vg/a", 0, 70);
    interrupt(&varv, &["vg/a"], "KILL");
    let both = varv.ok(&words(&["vg/a", "vg/b"]));
    both.says(&["an earlier run left it behind"]);
    assert_eq!(resumed(&both.json()), 0);
    assert_newest_is(&varv, "vg/a");
    // A snapshot that has overflowed meanwhile is not gone on with.
    scribble("/dev/vg/a", 0, 70);
    interrupt(&varv, &["vg/a"], "KILL");
    scribble("/dev/vg/a", 60, 140);
    let anew = varv.ok(&words(&["vg/a"]));
    anew.says(&["an earlier run left it behind"]);
    assert_eq!(resumed(&anew.json()), 0);
    assert_newest_is(&varv, "vg/a");
    assert_eq!(sh(&format!("ls {}/state", varv.repository.display())), "");
    varv.ok(args!["check", "--read-data"]);
    // What has lost something is gone on with by nobody: a dry run names it, and leaves it.
    scribble("/dev/vg/a", 0, 70);
    interrupt(&varv, &["vg/a"], "KILL");
    let is_older = "! -newer state/checkpoint-* -printf '%T@ %p\\n'";
    let newest = format!("find packs -type f {is_older} | sort -n | tail -1 | cut -d' ' -f2");
    sh(&format!("cd {}; rm $({newest})", varv.repository.display()));
    let dry_run = varv.ok(args!["prune", "--dry-run"]);
    assert!(String::from_utf8_lossy(&dry_run.stdout).contains("forgets    the interrupted backup of host"));
    let rows = [args!["prune", "--dry-run"], args!["prune"], args!["prune"]].map(|words| {
        let row = &varv.json(words)["interrupted"][0];
        [&row["label"], &row["reason"]].map(|value| value.as_str().unwrap_or("").to_string())
    });
    assert_eq!(rows, [["default", "lost"], ["default", "lost"], ["", ""]]);
}

#[test]
fn several_volumes_are_gone_on_with_together() {
    if !in_lab!("2G") {
        return;
    }
    pool("600M");
    sh("for name in a b c; do lvcreate -q -y -n $name -V 200M --thinpool pool vg; done");
    for name in ["a", "b"] {
        scribble(&format!("/dev/vg/{name}"), 0, 100);
        copy(&format!("/dev/vg/{name}"), name);
    }
    let varv = Varv::new();
    let all = ["vg/a", "vg/b", "vg/c"];
    assert_eq!(interrupt(&varv, &all, "TERM").code(), Some(143));
    assert_eq!(kept(&varv).len(), 3);
    for name in ["a", "b"] {
        scribble(&format!("/dev/vg/{name}"), 10, 5);
    }
    // As after a boot.
    sh("vgchange -q -an vg; vgchange -q -ay vg");
    let done = varv.ok(&words(&all));
    done.says(&["vg/a: an interrupted run", "vg/c: an interrupted run"]);
    let night = done.json();
    assert!(resumed(&night) >= 16 * MIB, "{night}");
    let read = night["bytes_read"].as_u64().unwrap();
    assert!(read <= 200 * MIB - resumed(&night) + MIB / 4, "{night}");
    for name in ["a", "b"] {
        assert_dump_is(&varv, &format!("vg/{name}"), &format!("/copies/{name}"));
    }
    assert_eq!(kept(&varv).len(), 3);
    let next = varv.json(&words(&all)[1..]);
    assert_eq!(how(&next), ("thin", None));
    all.iter().for_each(|volume| assert_newest_is(&varv, volume));
    varv.ok(args!["check", "--read-data"]);
}

/// The volume, its snapshot and the repository are on a disk that loses what was not written to it.
#[test]
fn a_power_cut_costs_what_was_read_since_the_last_checkpoint() {
    const NAME: &str = "a_power_cut_costs_what_was_read_since_the_last_checkpoint";
    const LAB_FAILED: i32 = 125;
    let mut varv = Varv::without_repository();
    varv.repository = "/repo/repository".into();
    match std::env::var("VARV_TEST_PHASE").unwrap_or_default().as_str() {
        "before" => {
            group();
            sh("lvcreate -q -y -n a -L 200M vg; lvcreate -q -y -n copy -L 200M vg
                lvcreate -q -y -n repo -L 500M vg; mkfs.ext4 -q /dev/vg/repo; mkdir /repo; mount /dev/vg/repo /repo");
            varv.ok(args!["init", "--encryption", "none"]);
            scribble("/dev/vg/a", 0, 200);
            sh("dd if=/dev/vg/a of=/dev/vg/copy bs=1M oflag=direct status=none");
            // Its name is seen before it is durable; at the sight of the next one it is.
            let mut run = until_checkpoint(&varv, &["vg/a"], 2);
            std::fs::write("/proc/sysrq-trigger", "o").unwrap();
            sh("sleep 600");
            let _ = run.wait();
            panic!("there is still power");
        }
        "after" => {
            sh("vgchange -q -ay vg; mkdir /repo; mount /dev/vg/repo /repo");
            assert_eq!((varv.snapshots().len(), kept(&varv).len()), (0, 1));
            scribble("/dev/vg/a", 5, 10);
            let done = varv.ok(&words(&["vg/a"]));
            done.says(&["is gone on with"]);
            assert_reads_only_the_rest(&done.json(), 200 * MIB);
            assert_dump_is(&varv, "vg/a", "/dev/vg/copy");
            assert_eq!(how(&varv.json(&words(&["vg/a"])[1..])), ("cow", None));
            assert_newest_is(&varv, "vg/a");
            varv.ok(args!["check", "--read-data"]);
        }
        _ => {
            if !is_installed() {
                return;
            }
            let image = varv.path("disk");
            std::fs::File::create(&image).unwrap().set_len(1200 << 20).unwrap();
            assert_eq!(boot(NAME, "before", &image), Some(LAB_FAILED));
            assert_eq!(boot(NAME, "after", &image), Some(0));
        }
    }
}
