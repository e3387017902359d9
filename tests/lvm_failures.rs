//! Backups and restores of logical volumes that something happens to in the middle (`support/lab`).
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::ffi::OsString;

use support::lab::{
    assert_dump_is, assert_newest_is, copy, group, how, in_lab, kept, night, pool, scribble, sh,
};
use support::{Done, Varv, args};

/// Backs up while a script runs that begins once a part of the first volume is done.
fn while_it_runs(varv: &Varv, script: &str, volumes: &[OsString]) -> Done {
    let state = varv.repository.join("state");
    let script = format!(
        "(until ls {}/checkpoint-*; do sleep 0.02; done; {script}) > /dev/null 2>&1 &",
        state.display()
    );
    // A stream of this name is read before all volumes.
    let begin = args!["lvm", "backup", "--checkpoint-every", "16M", "--from-command", "a"];
    varv.run(&[begin, volumes, args!["--", "sh", "-c", script]].concat())
}

/// No snapshot is here but those that the next night needs.
fn assert_only_kept_are_left(varv: &Varv) {
    let all = sh("lvs --noheadings -o vg_name,lv_name --separator / @varv");
    let mut all: Vec<&str> = all.split_whitespace().collect();
    let mut kept = kept(varv);
    all.sort_unstable();
    kept.sort_unstable();
    assert_eq!(all, kept);
}

#[test]
fn a_classic_snapshot_that_overflows_costs_its_volume_this_night() {
    if !in_lab!("2G") {
        return;
    }
    group();
    sh("lvcreate -q -y -n a -L 300M vg; lvcreate -q -y -n b -L 40M vg");
    let varv = Varv::new();
    scribble("/dev/vg/a", 0, 300);
    scribble("/dev/vg/b", 0, 10);
    let overflow = "dd if=/dev/urandom of=/dev/vg/a bs=1M count=60 oflag=direct";
    let done = while_it_runs(&varv, overflow, args!["vg/a", "vg/b"]);
    done.says(&["vg/a: its snapshot overflowed while it was read"]);
    assert_eq!(done.code, Some(3));
    // The other volume of the same night is backed up.
    assert_newest_is(&varv, "vg/b");
    assert_only_kept_are_left(&varv);
    // The volume itself has taken no harm.
    assert_eq!(how(&night(&varv, args!["vg/a", "vg/b"])).0, "full");
    assert_newest_is(&varv, "vg/a");
    varv.ok(args!["check", "--read-data"]);
}

#[test]
fn a_pool_that_runs_full_costs_what_is_kept_in_it() {
    if !in_lab!("2G") {
        return;
    }
    pool("400M");
    // An error at once, not after a minute.
    sh(
        "lvchange -q --errorwhenfull y vg/pool; for n in a b; do lvcreate -q -y -n $n -V 300M --thinpool pool vg; done",
    );
    let varv = Varv::new();
    scribble("/dev/vg/a", 0, 200);
    scribble("/dev/vg/b", 0, 10);
    night(&varv, args!["vg/a", "vg/b"]);
    assert_eq!(kept(&varv).len(), 2);
    scribble("/dev/vg/a", 0, 80);
    copy("/dev/vg/a", "a");
    // Some program writes until the pool has no block left.
    let fill = "dd if=/dev/urandom of=/dev/vg/b bs=1M oflag=direct";
    let done = while_it_runs(&varv, fill, args!["vg/a", "vg/b"]);
    done.says(&["the limit is 90 %", "nothing is kept"]);
    assert_eq!(done.code, Some(0));
    assert!(kept(&varv).is_empty());
    assert!(!sh("lvs --noheadings -a -o lv_name vg").contains("varv"));
    assert_eq!(sh("dmsetup status vg-pool-tpool | awk '{ print $7 }'"), "-");
    assert_dump_is(&varv, "vg/a", "/copies/a");
    // What was kept has given its room back, and the next night is as any.
    sh("cmp /dev/vg/a /copies/a; blkdiscard -f /dev/vg/b");
    assert_eq!(
        how(&night(&varv, args!["vg/a", "vg/b"])),
        ("full", Some("no snapshot was kept of the last backup"))
    );
    assert_eq!(kept(&varv).len(), 2);
    varv.ok(args!["check", "--read-data"]);
}

#[test]
fn a_pool_that_is_full_already_gives_up_what_is_kept_in_it() {
    if !in_lab!("1G") {
        return;
    }
    pool("200M");
    sh("lvchange -q --errorwhenfull y vg/pool; lvcreate -q -y -n a -V 400M --thinpool pool vg");
    let varv = Varv::new();
    scribble("/dev/vg/a", 0, 100);
    night(&varv, args!["vg/a"]);
    // LVM takes no snapshot in a pool without a free block.
    sh("! dd if=/dev/urandom of=/dev/vg/a bs=1M oflag=direct status=none 2> /dev/null");
    let before = kept(&varv);
    varv.ends(1, args!["lvm", "backup", "--dry-run", "vg/a"]).says(&["reached threshold"]);
    assert_eq!(kept(&varv), before);
    let done = varv.ok(args!["lvm", "backup", "vg/a"]);
    done.says(&["100 % of its data", "the limit is 90 %", "nothing is kept"]);
    assert!(kept(&varv).is_empty());
    assert_newest_is(&varv, "vg/a");
    assert_eq!(how(&night(&varv, args!["vg/a"])).0, "full");
}

#[test]
fn thin_volumes_that_were_resized_are_read_by_what_they_have() {
    if !in_lab!("1G") {
        return;
    }
    pool("300M");
    sh("lvcreate -q -y -n a -V 100M --thinpool pool vg");
    let varv = Varv::new();
    scribble("/dev/vg/a", 0, 20);
    night(&varv, args!["vg/a"]);
    sh("lvextend -q -L 140M vg/a");
    scribble("/dev/vg/a", 120, 3);
    // The pool keeps what was behind the end of a volume that was shrunk.
    for (resize, read) in [("true", 23), ("lvreduce -q -f -y -L 60M vg/a", 20)] {
        sh(resize);
        let resized = night(&varv, args!["vg/a"]);
        assert_eq!(how(&resized), ("full", Some("its size has changed")));
        assert_eq!(resized["bytes_read"], read << 20);
        assert_newest_is(&varv, "vg/a");
    }
    scribble("/dev/vg/a", 58, 2);
    let after = night(&varv, args!["--spot-check", "0", "vg/a"]);
    assert_eq!((how(&after), after["volumes"][0]["bytes_changed"].as_u64()), (("thin", None), Some(2 << 20)));
    assert_newest_is(&varv, "vg/a");
    // What had been cut off is there again.
    sh("lvextend -q -L 140M vg/a");
    assert_eq!(night(&varv, args!["vg/a"])["bytes_read"], 25 << 20);
    assert_newest_is(&varv, "vg/a");
}

#[test]
fn what_was_left_behind_gives_its_room_back_before_more_is_asked_for() {
    if !in_lab!("300M") {
        return;
    }
    group();
    sh(
        "lvcreate -q -y -n a -L 80M vg; lvcreate -q -y -n rest -l $(($(vgs --noheadings -o vg_free_count vg) - 4)) vg",
    );
    let varv = Varv::new();
    scribble("/dev/vg/a", 0, 10);
    night(&varv, args!["vg/a"]);
    let kill = "kill -KILL $PPID";
    let words = args!["lvm", "backup", "--from-command", "zz", "vg/a", "--", "sh", "-c", kill];
    assert_eq!(varv.run(words).code, None);
    assert_eq!((kept(&varv).len(), sh("vgs --noheadings -o vg_free_count vg").as_str()), (2, "0"));
    // A dry run takes nothing away, so that it finds no room.
    varv.ends(2, args!["lvm", "backup", "--dry-run", "vg/a"]).says(&["--snapshot-size"]);
    assert_eq!(kept(&varv).len(), 2);
    let done = varv.run(args!["--json", "lvm", "backup", "vg/a"]);
    done.says(&["an earlier run left it behind"]);
    assert_eq!(how(&done.json()), ("cow", None));
    assert_only_kept_are_left(&varv);
}

#[test]
fn the_volume_of_the_repository_is_known_whatever_lies_between() {
    if !in_lab!("2G") {
        return;
    }
    group();
    // btrfs has no number of its device, and has two here; a file of one has an ext4 within.
    sh("for n in one two; do lvcreate -q -y -n $n -L 300M vg; done; mkfs.btrfs -q -d single /dev/vg/one /dev/vg/two
        lvcreate -q -y -n a -L 40M vg; mkdir /repo /inner; mount /dev/vg/two /repo
        btrfs -q subvolume create /repo/sub; truncate -s 100M /repo/sub/image; mkfs.ext4 -q /repo/sub/image
        mount -o loop /repo/sub/image /inner");
    for repository in ["/repo/sub/repository", "/inner/repository"] {
        let mut varv = Varv::without_repository();
        varv.repository = repository.into();
        varv.ok(args!["init", "--encryption", "none"]);
        let done = varv.run(args!["--json", "lvm", "backup", "--no-keep", "--freeze", "vg"]);
        done.says(&["vg/one: left out, the repository", "vg/two: left out, the repository"]);
        let night = done.json();
        assert_eq!(
            (&night["volumes"].as_array().unwrap().len(), &night["volumes"][0]["volume"]),
            (&1, &"vg/a".into())
        );
        varv.ends(2, args!["lvm", "backup", "vg/one"]).says(&["the repository"]);
    }
}

#[test]
fn long_names_and_volumes_that_are_not_active() {
    if !in_lab!("600M") {
        return;
    }
    pool("200M");
    let (group, long) = ("group-".repeat(9), "volume-".repeat(7));
    sh(&format!(
        "vgrename -q vg {group}; lvcreate -q -y -n {long} -L 40M {group}
        lvcreate -q -y -n {long}thin -V 40M --thinpool pool {group}"
    ));
    let (thick, thin) = (format!("{group}/{long}"), format!("{group}/{long}thin"));
    let varv = Varv::new();
    for volume in [&thick, &thin] {
        scribble(&format!("/dev/{volume}"), 3, 2);
        assert_eq!(how(&night(&varv, args![volume])), ("full", None));
        scribble(&format!("/dev/{volume}"), 4, 2);
    }
    let both = night(&varv, args![&thick, &thin]);
    assert_eq!([0, 1].map(|at| both["volumes"][at]["method"].as_str().unwrap()), ["cow", "thin"], "{both}");
    assert_newest_is(&varv, &thick);
    assert_newest_is(&varv, &thin);
    // A thin volume that is not active is read like any other; a thick one's snapshot has no device.
    varv.ok(args!["lvm", "release", "--all"]);
    sh(&format!("lvchange -an {thick} {thin}"));
    let words = args!["lvm", "backup", &thick, &thin];
    varv.ends(3, words).says(&[&thick, "it is not active", "lvchange -ay"]);
    assert_only_kept_are_left(&varv);
    assert_eq!(kept(&varv).len(), 1);
    sh(&format!("lvchange -ay {thick} {thin}"));
    assert_newest_is(&varv, &thin);
}

/// The second disk under a name of the device-mapper, so that it can be taken away.
const DISK: &str = "disk=${LAB_DISKS##* }; len=$(($(blockdev --getsz $disk) - 2048))";
const GONE: &str = "dmsetup wipe_table --noflush --nolockfs disk";

fn come_back() {
    sh(&format!("{DISK}; echo 0 $len linear $disk 2048 | dmsetup load disk; dmsetup resume disk"));
}

#[test]
fn a_disk_that_disappears_costs_its_volumes_this_night() {
    if !in_lab!("1G", "1G") {
        return;
    }
    group();
    sh(&format!("{DISK}; echo 0 $len linear $disk 2048 | dmsetup create disk; dmsetup mknodes"));
    sh("pvcreate -q /dev/mapper/disk; vgcreate -q gone /dev/mapper/disk
        lvcreate -q -y -n a -L 300M gone; lvcreate -q -y -n stays -L 40M vg");
    let varv = Varv::new();
    scribble("/dev/gone/a", 0, 300);
    scribble("/dev/vg/stays", 0, 10);
    night(&varv, args!["gone/a", "vg/stays"]);
    scribble("/dev/gone/a", 100, 5);
    copy("/dev/gone/a", "a");
    let done = while_it_runs(&varv, GONE, args!["--force-read", "gone/a", "vg/stays"]);
    done.says(&["gone/a", "cannot"]);
    assert!(matches!(done.code, Some(1 | 3)), "{done:?}");
    if done.code == Some(3) {
        assert_newest_is(&varv, "vg/stays");
    }
    come_back();
    // As after a boot: what the kernel knows of a disk that was gone is of no use.
    sh("vgchange -q -an gone; vgchange -q -ay gone; cmp /dev/gone/a /copies/a");
    night(&varv, args!["gone/a", "vg/stays"]);
    assert_newest_is(&varv, "gone/a");
    assert_newest_is(&varv, "vg/stays");
    assert_only_kept_are_left(&varv);
    varv.ok(args!["lvm", "release", "--all"]);
    // A target that disappears is an error, and the restore can be run again.
    sh("lvcreate -q -y -n target -L 300M gone; sync");
    let restore = args!["restore", "--overwrite", "always", "gone/a", "/dev/gone/target"];
    let mut run = varv.command(restore);
    let run = run.spawn().unwrap();
    let is_written = "[ $(awk '{ print $7 }' /sys/block/$dm/stat) -gt 0 ]";
    sh(&format!(
        "dm=dm-$(dmsetup info -c --noheadings -o minor gone-target); until {is_written}; do :; done; {GONE}"
    ));
    let code = run.wait_with_output().unwrap().status.code();
    assert_eq!(code, Some(1));
    come_back();
    sh("vgchange -q -an gone; vgchange -q -ay gone");
    varv.ok(args!["restore", "--in-place", "--verify", "gone/a", "/dev/gone/target"]);
    sh("cmp /copies/a /dev/gone/target");
}

#[test]
fn sectors_of_4096_bytes_and_odd_sizes() {
    if !in_lab!("600M") {
        return;
    }
    // Extents of 64 KiB, so that a volume may have nearly any length.
    sh("disk=${LAB_DISKS%% *}; pvcreate -q $disk; vgcreate -q -s 64k vg $disk
        truncate -s 500M /root/large; loop=$(losetup -f --show --sector-size 4096 /root/large)
        pvcreate -q $loop; vgcreate -q -s 64k large $loop
        for group in vg large; do
            lvcreate -q -y --type thin-pool -n pool -L 80M -c 64k --poolmetadatasize 4M $group
            lvcreate -q -y -n thick -l 333 $group
            lvcreate -q -y -n thin -V 21315584b --thinpool pool $group
        done; blockdev --getss /dev/large/thick | grep -qx 4096");
    let varv = Varv::new();
    for round in 0..3 {
        for volume in ["large/thick", "large/thin"] {
            sh(&format!("size=$(blockdev --getsize64 /dev/{volume})
                dd if=/dev/urandom of=/dev/{volume} bs=4096 seek=$((size / 4096 - 3 - {round})) count=3 oflag=direct status=none
                dd if=/dev/urandom of=/dev/{volume} bs=12288 seek=$((17 * {round})) count=16 oflag=direct status=none"));
        }
        let night = night(&varv, args!["large/thick", "large/thin"]);
        let expected = if round == 0 { ["full", "full"] } else { ["cow", "thin"] };
        let methods = [0, 1].map(|at| night["volumes"][at]["method"].as_str().unwrap());
        assert_eq!(methods, expected, "{night}");
        assert_newest_is(&varv, "large/thick");
        assert_newest_is(&varv, "large/thin");
    }
    // Onto sectors of 512 bytes, onto the same again, and by the volumes' own length.
    for kind in ["thick", "thin"] {
        let path = format!("large/{kind}");
        for target in [format!("/dev/vg/{kind}"), format!("/dev/large/{kind}")] {
            scribble(&target, 3, 4);
            varv.ok(args!["restore", "--overwrite", "always", "--verify", &path, &target]);
        }
        sh(&format!("cmp /dev/vg/{kind} /dev/large/{kind}"));
        scribble(&format!("/dev/large/{kind}"), 5, 1);
        let made = format!("/dev/large/made-{kind}");
        varv.ok(args!["restore", "--create-lv", "--verify", &path, &made]);
        sh(&format!("cmp /dev/vg/{kind} {made}"));
        varv.ok(args!["restore", "--in-place", "--verify", &path, format!("/dev/large/{kind}")]);
        sh(&format!("cmp /dev/vg/{kind} /dev/large/{kind}"));
    }
}
