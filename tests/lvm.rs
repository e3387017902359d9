//! Logical volumes, with LVM as it is: each test boots a kernel of its own that has the
//! device-mapper (`tests/lab`), and runs itself in it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod support;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use support::lab::{
    assert_dump_is, assert_newest_is, boot, copy, group, how, id, in_lab, is_installed, kept, mapped, night,
    pool, scribble, sh,
};
use support::{Varv, args};

/// The fields in the table of a section of `docs/json.md`.
fn documented(section: &str) -> BTreeSet<String> {
    let page = include_str!("../docs/json.md");
    let text = page
        .split("\n## ")
        .find(|text| text.lines().next().unwrap().contains(&format!("`{section}`")))
        .unwrap();
    let own = text.split("\n### ").next().unwrap();
    let cells = own.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    cells
        .flat_map(|cell| {
            format!("`{cell}").split('`').skip(1).step_by(2).map(str::to_string).collect::<Vec<_>>()
        })
        .collect()
}

fn printed(object: &Value) -> BTreeSet<String> {
    object.as_object().unwrap().keys().cloned().collect()
}

/// Copies what a snapshot shows.
fn copy_snapshot(snapshot: &str, to: &str) {
    let is_thin = sh(&format!("lvs --noheadings -o segtype {snapshot}")) == "thin";
    let (on, off) = if is_thin { ("lvchange -ay -K", "lvchange -an") } else { ("true", "true") };
    sh(&format!("{on} {snapshot}"));
    copy(&format!("/dev/{snapshot}"), to);
    sh(&format!("{off} {snapshot}"));
}

/// Ten nights of a volume with a file system, each changed a little, all restored.
fn nights(volume: &str, method: &str, change: impl Fn(usize)) {
    let varv = Varv::new();
    let mut all = Vec::new();
    for number in 0..10 {
        change(number);
        let night = night(&varv, args![volume]);
        let row = &night["volumes"][0];
        let expected = if number == 0 { "full" } else { method };
        assert_eq!((&row["method"], &row["fallback_reason"]), (&expected.into(), &Value::Null), "{night}");
        assert_eq!(row["volume"], volume);
        assert_eq!(night["kept"], serde_json::json!([volume]));
        let [snapshot] = kept(&varv).try_into().unwrap();
        copy_snapshot(&snapshot, &number.to_string());
        all.push(night);
    }
    for (number, night) in all.iter().enumerate() {
        let words = format!("--snapshot {} {volume}", id(night));
        assert_dump_is(&varv, &words, &format!("/copies/{number}"));
    }
    // A scan of everything finds nothing that is not there.
    sh("umount /m");
    night(&varv, args![volume]);
    let whole = night(&varv, args!["--label", "other", "--no-keep", volume]);
    assert_eq!((&whole["bytes_new"], &whole["volumes"][0]["method"]), (&0.into(), &"full".into()), "{whole}");
    varv.ok(args!["check", "--read-data"]);
    varv.ok(args!["lvm", "release", "--all"]);
    assert!(kept(&varv).is_empty());
    assert!(!sh("lvs --noheadings -o lv_name vg").contains("varv"));
}

#[test]
fn ten_nights_of_a_thick_volume() {
    if !in_lab!("1G") {
        return;
    }
    group();
    sh("lvcreate -q -y -n thick -L 64M vg; mkfs.ext4 -q /dev/vg/thick; mkdir -p /m; mount /dev/vg/thick /m");
    nights("vg/thick", "cow", |number| {
        sh(&format!("head -c 3M /dev/urandom > /m/{number}; rm -f /m/{}; sync", number.wrapping_sub(3)));
    });
}

#[test]
fn ten_nights_of_a_thin_volume() {
    if !in_lab!("2G") {
        return;
    }
    pool("1G");
    sh(
        "lvcreate -q -y -n thin -V 320M --thinpool pool vg; mkfs.xfs -q /dev/vg/thin; mkdir -p /m; mount -o discard /dev/vg/thin /m",
    );
    nights("vg/thin", "thin", |number| {
        sh(&format!(
            "head -c 3M /dev/urandom > /m/{number}; rm -f /m/{}; sync; fstrim /m",
            number.wrapping_sub(3)
        ));
    });
}

/// A night that reads everything, for a reason with these words.
fn falls_back(varv: &Varv, words: &[OsString], why: &str) -> Value {
    let night = night(varv, words);
    let (method, reason) = how(&night);
    assert!(method == "full" && reason.is_some_and(|reason| reason.contains(why)), "{why}: {night}");
    night
}

#[test]
fn what_is_known_of_a_thick_volume_is_not_believed_blindly() {
    if !in_lab!("1G") {
        return;
    }
    group();
    sh("lvcreate -q -y -n a -L 40M vg");
    let varv = Varv::new();
    scribble("/dev/vg/a", 0, 10);
    assert_eq!(how(&night(&varv, args!["vg/a"])), ("full", None));
    // More is written than the kept snapshot can hold.
    scribble("/dev/vg/a", 4, 20);
    falls_back(&varv, args!["vg/a"], "overflowed");
    assert_newest_is(&varv, "vg/a");
    // Behind the device-mapper's back: the list does not know of it, and a spot check sees it.
    let at = sh("dmsetup table vg-a-real | awk '{ print $5 }'");
    sh(&format!(
        "dd if=/dev/urandom of=${{LAB_DISKS%% *}} bs=512 seek=$(({at} + 16384)) count=8 oflag=direct status=none"
    ));
    let words = args!["lvm", "backup", "--spot-check", "100", "vg/a"];
    varv.ok(words).says(&["WARNING", "is said not to have changed"]);
    assert_newest_is(&varv, "vg/a");
    // Extended, and shrunk again: the same size, but not the same extents.
    sh("lvchange -an vg/a; lvextend -q -L 60M vg/a; lvchange -ay vg/a");
    scribble("/dev/vg/a", 50, 2);
    falls_back(&varv, args!["vg/a"], "size");
    assert_newest_is(&varv, "vg/a");
    varv.ok(args!["lvm", "release", "vg/a"]);
    sh("lvreduce -q -f -y -L 40M vg/a");
    falls_back(&varv, args!["vg/a"], "no snapshot was kept");
    assert_newest_is(&varv, "vg/a");
    // Another volume under the same name.
    sh("lvremove -q -y vg/a; lvcreate -q -y -n a -L 40M vg");
    falls_back(&varv, args!["vg/a"], "another volume");
    assert_newest_is(&varv, "vg/a");
    assert_eq!(how(&night(&varv, args!["vg/a"])), ("cow", None));
    // All of it now and then, and on demand.
    falls_back(&varv, args!["--full-every", "0s", "vg/a"], "whole 0 days ago");
    assert_eq!(how(&night(&varv, args!["--force-read", "vg/a"])), ("full", None));
    assert_eq!(how(&night(&varv, args!["--full-every", "30D", "vg/a"])), ("cow", None));
    // Without anything kept.
    assert_eq!(night(&varv, args!["--no-keep", "vg/a"])["kept"], serde_json::json!([]));
    assert!(kept(&varv).is_empty());
    falls_back(&varv, args!["vg/a"], "no snapshot was kept");
    varv.ok(args!["check", "--read-data"]);
}

#[test]
fn pools_are_left_as_they_were_and_never_fill_up_by_what_is_kept() {
    if !in_lab!("1G") {
        return;
    }
    pool("64M");
    sh("lvcreate -q -y -n a -V 64M --thinpool pool vg");
    let held = || sh("dmsetup status vg-pool-tpool | awk '{ print $7 }'");
    let varv = Varv::new();
    scribble("/dev/vg/a", 0, 10);
    assert_eq!(how(&night(&varv, args!["vg/a"])), ("full", None));
    assert_eq!(held(), "-");
    // Reserved by somebody else: left alone, and said.
    sh("dmsetup message vg-pool-tpool 0 reserve_metadata_snap");
    falls_back(&varv, args!["vg/a"], "somebody else has reserved");
    assert_ne!(held(), "-");
    // Reserved by a run that was killed: released.
    sh("lvchange -q --addtag varv.reserved vg/pool");
    assert_eq!(how(&night(&varv, args!["vg/a"])), ("thin", None));
    assert_eq!((held().as_str(), sh("lvs --noheadings -o lv_tags vg/pool").as_str()), ("-", ""));
    // What was discarded is a hole, and is not read.
    sh("blkdiscard -f -o 4M -l 4M /dev/vg/a");
    let night_after = night(&varv, args!["--spot-check", "0", "vg/a"]);
    assert_eq!((how(&night_after), night_after["bytes_hole"].as_u64()), (("thin", None), Some(4 << 20)));
    assert_newest_is(&varv, "vg/a");
    // Grown beyond the limit: what is kept goes, and nothing new is kept.
    scribble("/dev/vg/a", 0, 30);
    let words = args!["lvm", "backup", "--pool-limit", "50", "vg/a"];
    varv.ok(words).says(&["the limit is 50 %", "nothing is kept"]);
    assert!(kept(&varv).is_empty());
    assert_newest_is(&varv, "vg/a");
    assert!(!sh("lvs --noheadings -a -o lv_name vg").contains("varv"));
}

#[test]
fn several_volumes_and_files_are_one_snapshot() {
    if !in_lab!("2G", "300M") {
        return;
    }
    pool("200M");
    sh("for name in one two swap; do lvcreate -q -y -n $name -L 40M vg; done; mkswap /dev/vg/swap
        lvcreate -q -y -n thin -V 80M --thinpool pool vg; lvcreate -q -s -y -n by-hand -L 8M vg/one
        lvcreate -q -y -n repo -L 200M vg; mkfs.ext4 -q /dev/vg/repo; mkdir /repo; mount /dev/vg/repo /repo
        lvchange -q --addtag nightly vg/two
        for name in one two thin; do mkfs.ext4 -q /dev/vg/$name; mkdir /$name; mount /dev/vg/$name /$name; done
        echo '<domain/>' > /root/domain.xml");
    let mut varv = Varv::without_repository();
    varv.repository = "/repo/repository".into();
    varv.ok(args!["init", "--encryption", "none"]);
    let all = night(&varv, args!["--freeze", "--also", "/root/domain.xml", "vg"]);
    let names: Vec<&str> =
        all["volumes"].as_array().unwrap().iter().map(|row| row["volume"].as_str().unwrap()).collect();
    assert_eq!(names, ["vg/one", "vg/thin", "vg/two"]);
    assert_eq!(all["errors"], 0);
    assert!(all["spread_ms"].as_u64().unwrap() > 0, "{all}");
    let plain = printed(&varv.backup(args!["--label", "plain", "/root/domain.xml"]));
    assert_eq!(printed(&all), &plain | &documented("lvm backup"));
    let status = varv.json(args!["lvm", "status"]);
    assert_eq!(printed(&status[0]), documented("lvm status"));
    let config = varv.json(args!["lvm", "config", "vg/two"]);
    assert_eq!(printed(&config), documented("lvm config"));
    assert_eq!((&config["kind"], &config["tags"]), (&"linear".into(), &serde_json::json!(["nightly"])));
    assert!(config["config"].as_str().unwrap().contains("extent_size"), "{config}");
    assert_eq!(sh("dmsetup info -c --noheadings -o suspended | sort -u"), "Active");
    sh("touch /one/x /two/x /thin/x; sync");
    let text =
        String::from_utf8(varv.ok(args!["dump", "--label", "default", "/root/domain.xml"]).stdout).unwrap();
    assert_eq!(text, "<domain/>\n");
    assert_eq!(varv.snapshots().len(), 2);
    let tagged = night(&varv, args!["@nightly"]);
    assert_eq!((&tagged["volumes"][0]["volume"], how(&tagged).0), (&"vg/two".into(), "cow"));
    for (name, why) in [
        ("vg/repo", "the repository"),
        ("vg/pool", "a pool"),
        ("vg/by-hand", "a snapshot"),
        (&kept(&varv)[0], "varv keeps"),
    ] {
        varv.ends(2, args!["lvm", "backup", name]).says(&[why]);
    }
    varv.ends(1, args!["lvm", "backup", "vg/none"]).says(&["no logical volume"]);
    varv.ends(2, args!["lvm", "backup", "--snapshot-size", "1T", "vg/one"]).says(&["--snapshot-size"]);
    assert_eq!(kept(&varv).len(), 3);
    varv.ok(args!["lvm", "release", "vg/one", "vg/thin"]);
    assert_eq!(kept(&varv).len(), 1);
}

#[test]
fn nothing_is_left_behind() {
    if !in_lab!("1G") {
        return;
    }
    pool("100M");
    sh("lvcreate -q -y -n a -L 40M vg; lvcreate -q -y -n b -V 40M --thinpool pool vg");
    let varv = Varv::new();
    scribble("/dev/vg/a", 0, 10);
    scribble("/dev/vg/b", 0, 10);
    night(&varv, args!["vg/a", "vg/b"]);
    let before = kept(&varv);
    // A stream that fails, and one that kills the program, are read after the volumes.
    let with_stream = |script: &str| {
        let words = args!["lvm", "backup", "--from-command", "zz", "vg/a", "vg/b", "--", "sh", "-c", script];
        varv.run(words)
    };
    scribble("/dev/vg/a", 20, 1);
    scribble("/dev/vg/b", 20, 1);
    assert_eq!(with_stream("exit 1").code, Some(1));
    assert_eq!(kept(&varv), before);
    assert_eq!(with_stream("kill -TERM $PPID; sleep 60").code, Some(143));
    assert_eq!(kept(&varv), before);
    assert_eq!(with_stream("kill -KILL $PPID").code, None);
    assert_eq!(kept(&varv).len(), 4);
    assert_eq!(varv.snapshots().len(), 1);
    let after = varv.run(args!["--json", "lvm", "backup", "vg/a", "vg/b"]);
    after.says(&["an earlier run left it behind"]);
    let after = after.json();
    assert_eq!(after["volumes"][0]["method"], "cow");
    assert_eq!(after["volumes"][1]["method"], "thin");
    assert_eq!(kept(&varv).len(), 2);
    assert_newest_is(&varv, "vg/a");
    assert_newest_is(&varv, "vg/b");
    // Two at once: the second one is refused, or waits.
    let mut first = varv.command(args![
        "lvm",
        "backup",
        "--from-command",
        "zz",
        "vg/a",
        "--",
        "sh",
        "-c",
        "echo >/tmp/runs; sleep 4"
    ]);
    let mut first = first.stdout(Stdio::null()).spawn().unwrap();
    sh("until [ -e /tmp/runs ]; do sleep 0.1; done");
    varv.ends(11, args!["lvm", "backup", "vg/a"]).says(&["vg/a is locked", "process"]);
    varv.ok(args!["--lock-wait", "5m", "lvm", "backup", "vg/a"]);
    assert!(first.wait().unwrap().success());
    // A dry run changes nothing.
    let before = kept(&varv);
    night(&varv, args!["--dry-run", "vg/a", "vg/b"]);
    assert_eq!(kept(&varv), before);
    varv.ok(args!["check", "--read-data"]);
}

#[test]
fn nights_come_back_onto_any_device() {
    if !in_lab!("1G", "600M") {
        return;
    }
    pool("200M");
    sh("lvcreate -q -y -n thick -L 40M vg; lvcreate -q -y -n thin -V 100M --thinpool pool vg
        mkdir -p /m; for name in thick thin; do mkfs.ext4 -q /dev/vg/$name; done");
    let varv = Varv::new();
    let fill = |volume: &str, number: u32| {
        sh(&format!(
            "mount /dev/vg/{volume} /m; head -c 9M /dev/urandom > /m/{number}; echo {number} > /m/night; umount /m"
        ));
        copy(&format!("/dev/vg/{volume}"), &format!("{volume}{number}"));
    };
    let nights: Vec<Value> = (1..=2)
        .map(|number| {
            fill("thick", number);
            fill("thin", number);
            night(&varv, args!["vg/thick", "vg/thin"])
        })
        .collect();
    let restore = |words: &[OsString]| varv.json(&[args!["restore", "--verify"], words].concat());
    // Another disk, empty: the group, then the volumes, as they were the night before last.
    sh("disk=${LAB_DISKS##* }; pvcreate -q $disk; vgcreate -q new $disk
        lvcreate -q -y --type thin-pool -n pool -L 150M -c 64k --poolmetadatasize 4M new");
    for name in ["thick", "thin"] {
        let (path, target) = (format!("vg/{name}"), format!("/dev/new/{name}"));
        restore(args!["--create-lv", "--snapshot", id(&nights[0]), &path, &target]);
        sh(&format!(
            "cmp /copies/{name}1 {target}; e2fsck -fn {target}; mount {target} /m; grep -qx 1 /m/night; umount /m"
        ));
        assert_eq!(sh(&format!("lvs --noheadings -o segtype {target}")) == "thin", name == "thin");
        varv.ends(2, args!["restore", "--create-lv", &path, &target]).says(&["exists already"]);
        varv.ends(2, args!["restore", &path, &target]).says(&["--overwrite always", "--in-place"]);
    }
    // No more is mapped than has data, whether the volume is new or full of old data.
    let of_data = mapped("vg-thin") + (2 << 20);
    assert!(mapped("new-thin") <= of_data, "{} of {of_data}", mapped("new-thin"));
    scribble("/dev/new/thin", 0, 100);
    restore(args!["--overwrite", "always", "vg/thin", "/dev/new/thin"]);
    assert!(mapped("new-thin") <= of_data, "{} of {of_data}", mapped("new-thin"));
    sh("cmp /copies/thin2 /dev/new/thin");
    // In place only what differs is written, and sharing with a snapshot stays.
    scribble("/dev/new/thin", 70, 2);
    sh("lvcreate -q -s -n twin new/thin");
    let used = || {
        sh("dmsetup status new-pool-tpool | awk '{ split($6, n, \"/\"); print n[1] }'")
            .parse::<u64>()
            .unwrap()
    };
    let before = used();
    let done = restore(args!["--in-place", "vg/thin", "/dev/new/thin"]);
    sh("cmp /copies/thin2 /dev/new/thin");
    assert!(done["bytes_written"].as_u64().unwrap() <= 2 << 20, "{done}");
    assert!((used() - before) * 65_536 <= 2 << 20, "{before} {}", used());
    // Onto the volume itself, and onto a larger one full of old data.
    let done = restore(args!["--in-place", "--snapshot", id(&nights[0]), "vg/thick", "/dev/vg/thick"]);
    sh("cmp /copies/thick1 /dev/vg/thick");
    assert!(done["bytes_equal"].as_u64().unwrap() > 10 << 20, "{done}");
    sh("lvcreate -q -y -n larger -L 60M new");
    scribble("/dev/new/larger", 0, 60);
    let done = restore(args!["--overwrite", "always", "vg/thick", "/dev/new/larger"]);
    sh("cmp -n $((40 << 20)) /copies/thick2 /dev/new/larger");
    assert_eq!(done["bytes_untouched"], 20 << 20);
    // What was restored onto the origin is more than its kept snapshot had room for.
    falls_back(&varv, args!["vg/thick"], "overflowed");
    assert_newest_is(&varv, "vg/thick");
}

#[test]
fn bad_sectors_cost_one_volume_or_one_night() {
    if !in_lab!("600M") {
        return;
    }
    // A disk under the group whose sectors can be made bad. It begins behind the start of the disk
    // below, so that LVM sees it only once.
    const DISK: &str = "disk=${LAB_DISKS%% *}; from=2048; len=$(($(blockdev --getsz $disk) - from))";
    let make_good = || {
        sh(&format!("{DISK}; echo 0 $len linear $disk $from | dmsetup load disk; dmsetup resume disk"));
    };
    // From 20 MiB on in a volume, 64 sectors.
    let make_bad = |volume: &str| {
        let table = sh(&format!("dmsetup table vg-{volume}-real 2>/dev/null || dmsetup table vg-{volume}"));
        let start = table.split(' ').nth(4).unwrap().parse::<u64>().unwrap() + 40_960;
        let end = start + 64;
        sh(&format!(
            "{DISK}; printf '%s\n' \"0 {start} linear $disk $from\" '{start} 64 error' \
            \"{end} $((len - {end})) linear $disk $((from + {end}))\" | dmsetup load disk
            dmsetup resume disk; echo 3 > /proc/sys/vm/drop_caches"
        ));
    };
    sh("dmsetup create disk --notable");
    make_good();
    sh("dmsetup mknodes; pvcreate -q /dev/mapper/disk; vgcreate -q vg /dev/mapper/disk
        for name in bad good target; do lvcreate -q -y -n $name -L 40M vg; done");
    let varv = Varv::new();
    scribble("/dev/vg/bad", 0, 40);
    scribble("/dev/vg/good", 0, 5);
    night(&varv, args!["vg/bad", "vg/good"]);
    let before = kept(&varv);
    scribble("/dev/vg/bad", 19, 3);
    make_bad("bad");
    let words = args!["lvm", "backup", "vg/bad", "vg/good"];
    varv.ends(3, words).says(&["vg/bad", "cannot read"]);
    let after = kept(&varv);
    assert_eq!((after.len(), &after[0], after[1] == before[1]), (2, &before[0], false));
    varv.ends(1, args!["lvm", "backup", "vg/bad"]).says(&["there is no snapshot"]);
    varv.ends(3, args!["lvm", "backup", "--read-errors", "zero", "vg/bad"])
        .says(&["vg/bad", "zeros are stored instead"]);
    make_good();
    // The list of changes knows nothing of it: what was zeros instead is read again.
    assert_eq!(how(&night(&varv, args!["vg/bad"])), ("cow", None));
    assert_newest_is(&varv, "vg/bad");
    // A restore onto a bad device fails, and can be run again.
    make_bad("target");
    let words = args!["restore", "--overwrite", "always", "vg/bad", "/dev/vg/target"];
    assert_eq!(varv.run(words).code, Some(1));
    make_good();
    varv.ok(args!["restore", "--in-place", "--verify", "vg/bad", "/dev/vg/target"]);
    sh("cmp /dev/vg/bad /dev/vg/target");
}

#[test]
fn a_power_cut_costs_one_night() {
    const NAME: &str = "a_power_cut_costs_one_night";
    const LAB_FAILED: i32 = 125;
    let mut varv = Varv::without_repository();
    varv.repository = "/repo/repository".into();
    match std::env::var("VARV_TEST_PHASE").unwrap_or_default().as_str() {
        "before" => {
            pool("100M");
            sh("lvcreate -q -y -n a -L 40M vg; lvcreate -q -y -n b -V 40M --thinpool pool vg
                lvcreate -q -y -n repo -L 300M vg; mkfs.ext4 -q /dev/vg/repo; mkdir /repo; mount /dev/vg/repo /repo");
            varv.ok(args!["init", "--encryption", "none"]);
            scribble("/dev/vg/a", 0, 10);
            scribble("/dev/vg/b", 0, 10);
            night(&varv, args!["vg/a", "vg/b"]);
            scribble("/dev/vg/a", 20, 2);
            scribble("/dev/vg/b", 20, 2);
            // The volumes are read and their snapshots are there: now the power goes.
            let cut = "echo o > /proc/sysrq-trigger; sleep 600";
            varv.run(args!["lvm", "backup", "--from-command", "zz", "vg/a", "vg/b", "--", "sh", "-c", cut]);
            panic!("there is still power");
        }
        "after" => {
            sh("vgchange -q -ay vg; mkdir /repo; mount /dev/vg/repo /repo");
            assert_eq!(varv.snapshots().len(), 1);
            varv.ok(args!["check", "--read-data"]);
            assert_eq!(kept(&varv).len(), 4);
            let night = night(&varv, args!["vg/a", "vg/b"]);
            let methods = [&night["volumes"][0]["method"], &night["volumes"][1]["method"]];
            assert_eq!(methods, ["cow", "thin"], "{night}");
            assert_newest_is(&varv, "vg/a");
            assert_newest_is(&varv, "vg/b");
            assert_eq!(kept(&varv).len(), 2);
            varv.ok(args!["check", "--read-data"]);
        }
        _ => {
            if !is_installed() {
                return;
            }
            let image = varv.path("disk");
            std::fs::File::create(&image).unwrap().set_len(800 << 20).unwrap();
            assert_eq!(boot(NAME, "before", &image), Some(LAB_FAILED));
            assert_eq!(boot(NAME, "after", &image), Some(0));
        }
    }
}

#[test]
fn what_is_frozen_is_let_go_whatever_happens() {
    if !in_lab!("300M") {
        return;
    }
    group();
    sh("lvcreate -q -y -n a -L 40M vg; mkfs.ext4 -q /dev/vg/a; mkdir /a; mount /dev/vg/a /a");
    let varv = Varv::new();
    // In place of lvcreate; what is written here is gone with the lab.
    let in_place_of_lvcreate = |script: &str| {
        let _ = std::fs::remove_file("/usr/sbin/lvcreate");
        std::fs::write("/usr/sbin/lvcreate", format!("#!/bin/sh\n{script}\n")).unwrap();
        support::chmod(Path::new("/usr/sbin/lvcreate"), 0o755);
    };
    let words = args!["lvm", "backup", "--freeze", "vg/a"];
    in_place_of_lvcreate("dmsetup info -c --noheadings -o suspended vg-a > /seen; kill -KILL $PPID");
    assert_eq!(varv.run(words).code, None);
    sh("grep -q Suspended /seen; timeout 20 touch /a/x; timeout 20 sync -f /a");
    // Without the kill, the helper waits for half a minute.
    in_place_of_lvcreate("timeout 60 sh -c 'touch /a/y; sync -f /a'; exec lvm lvcreate \"$@\"");
    varv.ok(words).says(&["WARNING", "30 s"]);
    in_place_of_lvcreate("exec lvm lvcreate \"$@\"");
    let done = varv.ok(words);
    assert!(!done.stderr.contains("WARNING"), "{}", done.stderr);
}

#[test]
fn a_profile_backs_up_volumes_and_files() {
    if !in_lab!("300M") {
        return;
    }
    group();
    sh("lvcreate -q -y -n a -L 40M vg; lvcreate -q -y -n b -L 40M vg; lvchange -q --addtag nightly vg/b");
    let varv = Varv::new();
    let config = varv.path("varv.toml");
    let also = varv.dir("also");
    std::fs::write(
        &config,
        format!(
            "[profiles.volumes]\nsources = [{also:?}]\n\
            lvm = {{ volumes = [\"@nightly\"], full-every = \"30D\", spot-check = 1, snapshot-size = \"20%\" }}\n"
        ),
    )
    .unwrap();
    support::chmod(&config, 0o600);
    for method in ["full", "cow"] {
        let done = varv.json(args!["--config", &config, "run", "volumes"]);
        let night = &done["steps"][0]["result"];
        assert_eq!((&done["steps"][0]["step"], how(night).0), (&"lvm backup".into(), method), "{done}");
        assert_eq!(night["kept"], serde_json::json!(["vg/b"]));
    }
    let roots = varv.snapshots().pop().unwrap()["paths"].clone();
    assert_eq!(roots, serde_json::json!([also.to_str().unwrap(), "vg/b"]));
}
