//! The block tools on thin volumes, and free blocks of file systems (`support/lab`).
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;
use support::lab::{copy, id, in_lab, mapped, pool, scribble, sh};
use support::sync::{by, fake_ssh, remote};
use support::{Varv, args};

const MIB: u64 = 1 << 20;

/// `varv sparse report --map` of a device.
fn report(varv: &Varv, device: &str) -> Value {
    varv.json(args!["sparse", "report", "--map", device])[0].clone()
}

/// The extents of a report, in MiB: start, length, whether they are zero, and mapped.
fn extents(report: &Value) -> Vec<(u64, u64, bool, bool)> {
    let row = |row: &Value| {
        let mebibytes = |name: &str| row[name].as_u64().unwrap() / MIB;
        let is = |name: &str| row[name].as_bool().unwrap();
        (mebibytes("start"), mebibytes("length"), is("zero"), is("data"))
    };
    report["map"].as_array().unwrap().iter().map(row).collect()
}

/// The pool's metadata snapshot, or `-`.
fn held() -> String {
    sh("dmsetup status vg-pool-tpool | awk '{ print $7 }'")
}

#[test]
fn a_thin_volume_takes_what_is_mapped_and_zeros_that_are_there_map_nothing() {
    if !in_lab!("1G") {
        return;
    }
    pool("400M");
    sh("lvcreate -q -y -n thin -V 512M --thinpool pool vg");
    sh("head -c 10M /dev/urandom | dd of=/dev/vg/thin bs=1M seek=100 conv=fsync status=none");
    // Not written out yet when it is asked for.
    sh("head -c 5M /dev/zero | dd of=/dev/vg/thin bs=1M seek=200 status=none");
    let varv = Varv::without_repository();
    let before = report(&varv, "/dev/vg/thin");
    let expected = [
        (0, 100, true, false),
        (100, 10, false, true),
        (110, 90, true, false),
        (200, 5, true, true),
        (205, 307, true, false),
    ];
    assert_eq!(extents(&before), expected);
    let sizes = ["logical", "optimum", "physical", "data", "zero", "hole"]
        .map(|name| before[format!("bytes_{name}")].as_u64().unwrap() / MIB);
    assert_eq!(sizes, [512, 10, 15, 10, 5, 497]);
    assert_eq!(held(), "-");
    // Reserved by somebody else: all is read, and that is said.
    sh("dmsetup message vg-pool-tpool 0 reserve_metadata_snap");
    let told = varv.ok(args!["--json", "sparse", "report", "/dev/vg/thin"]);
    told.says(&["somebody else has reserved", "all of it is read"]);
    assert_eq!(told.json()[0]["bytes_hole"], 0);
    assert_ne!(held(), "-");
    sh("dmsetup message vg-pool-tpool 0 release_metadata_snap");

    let from = varv.path("from");
    sh(&format!(
        "head -c 3M /dev/urandom > {0}; truncate -s 24M {0}
        head -c 5001 /dev/urandom | dd of={0} bs=1 seek=$((10 * 1024 * 1024 + 12345)) conv=notrunc status=none",
        from.display()
    ));
    let physical = || report(&varv, "/dev/vg/thin")["bytes_physical"].as_u64().unwrap();
    let of_source = 3 * MIB + 65_536;
    varv.ok(args!["sync", "--verify", &from, "/dev/vg/thin"]);
    assert_eq!(physical(), 15 * MIB + of_source);
    varv.ok(args!["copy", "--in-place", "--verify", &from, "/dev/vg/thin"]);
    assert_eq!(physical(), 15 * MIB + of_source);
    copies_replace_all_old_data(&varv, &from.display().to_string(), of_source);
}

/// Sectors that were read of a device, as the kernel counts them.
fn sectors_read(device: &str) -> u64 {
    sh(&format!("awk '{{ print $3 }}' /sys/dev/block/$(stat -L -c %Hr:%Lr {device})/stat")).parse().unwrap()
}

#[test]
fn what_a_pool_has_not_mapped_is_read_by_no_copy_and_no_sync() {
    if !in_lab!("1G") {
        return;
    }
    pool("400M");
    sh("lvcreate -q -y -n from -V 512M --thinpool pool vg");
    scribble("/dev/vg/from", 100, 10);
    scribble("/dev/vg/from", 511, 1);
    let varv = Varv::without_repository();
    let ssh = fake_ssh(&varv);
    let of_read = |words: &[OsString]| {
        let before = sectors_read("/dev/vg/from");
        let done = varv.json(words);
        // What is next to what is read, the kernel reads ahead.
        let read = (sectors_read("/dev/vg/from") - before) * 512;
        assert!(read <= 64 * MIB, "{words:?}: {read}");
        done
    };
    let (to, there) = (varv.path("to"), remote(Path::new("/dev/vg/from")));
    let copied = of_read(args!["copy", "/dev/vg/from", &to]);
    assert_eq!((&copied["bytes"], &copied["bytes_hole"]), (&(512 * MIB).into(), &(501 * MIB).into()));
    assert_eq!(varv.json(args!["copy", "--dry-run", "/dev/vg/from", "new"])["bytes_hole"], 501 * MIB);
    sh(&format!("cmp /dev/vg/from {}", to.display()));
    // What the file has and the volume does not becomes a hole again.
    sh(&format!("dd if=/dev/urandom of={} bs=1M seek=200 count=3 conv=notrunc status=none", to.display()));
    for from in ["/dev/vg/from", &there] {
        scribble("/dev/vg/from", 105, 1);
        let synced = of_read(&[args!["sync"], &by(&ssh)[..], args![from, &to]].concat());
        assert_eq!(synced["bytes_read_source"], 11 * MIB, "{from}");
        sh(&format!("cmp /dev/vg/from {}", to.display()));
    }
    // What is mapped in the pause belongs to it.
    let pause = "dd if=/dev/urandom of=/dev/vg/from bs=1M seek=300 count=2 oflag=direct status=none";
    let hooks = args!["--two-pass", "--verify", "--pause", pause, "--resume", "true"];
    let moved = of_read(&[args!["sync"], hooks, args!["/dev/vg/from", &to]].concat());
    assert_eq!(
        (&moved["blocks_diff"], &moved["bytes_read_source"]),
        (&2.into(), &((11 + 13 + 13) * MIB).into())
    );
    sh(&format!("cmp /dev/vg/from {}", to.display()));
    assert_eq!(held(), "-");
    // Where the pool does not tell, all is read, and that is said.
    sh("dmsetup message vg-pool-tpool 0 reserve_metadata_snap");
    for words in [args!["copy", "--overwrite", "always"], args!["sync"]] {
        let told = varv.ok(&[words, args!["/dev/vg/from", &to]].concat());
        told.says(&["somebody else has reserved", "all of it is read"]);
        sh(&format!("cmp /dev/vg/from {}", to.display()));
    }
}

/// Onto a thin volume that is full of other data, and from there onto others.
fn copies_replace_all_old_data(varv: &Varv, from: &str, of_source: u64) {
    sh("for n in full twin; do lvcreate -q -y -n $n -V 32M --thinpool pool vg; done");
    for how in [&["--overwrite=always"][..], &["--in-place"], &["--overlay"]] {
        scribble("/dev/vg/full", 0, 32);
        copy("/dev/vg/full", "old");
        let how: Vec<OsString> = how.iter().map(OsString::from).collect();
        varv.ok(&[args!["copy", "--verify"], &how[..], args![from, "/dev/vg/full"]].concat());
        sh(&format!("cmp -n 24M {from} /dev/vg/full; cmp -i 24M /copies/old /dev/vg/full"));
        assert_eq!(mapped("vg-full"), of_source + 8 * MIB, "{how:?}");
    }
    varv.ok(args!["copy", "--overwrite", "always", "--verify", "/dev/vg/full", "/dev/vg/twin"]);
    sh("cmp /dev/vg/full /dev/vg/twin");
    assert_eq!(mapped("vg-twin"), mapped("vg-full"));
    let image = varv.path("image");
    varv.ok(args!["copy", "/dev/vg/full", &image]);
    sh(&format!("cmp /dev/vg/full {}", image.display()));
    let taken = std::fs::metadata(&image).unwrap().blocks() * 512;
    assert!(taken <= of_source + 8 * MIB, "{taken}");
}

/// Prints the sums of all files below a directory.
const SUMS: &str = "sums() { (cd $1; find . -type f | sort | xargs sha256sum); }";
const FREE_BLOCKS: &[&str] = &["--free-blocks", "partclone", "vg/a", "vg/b"];

#[test]
fn free_blocks_need_not_be_stored() {
    if !in_lab!("2G") {
        return;
    }
    pool("500M");
    sh("lvcreate -q -y -n a -L 100M vg; lvcreate -q -y -n b -V 320M --thinpool pool vg
        lvcreate -q -y -n c -L 40M vg; lvcreate -q -y -n to -L 320M vg");
    for (volume, len) in [("a", 100), ("b", 320), ("c", 40), ("to", 320)] {
        scribble(&format!("/dev/vg/{volume}"), 0, len);
    }
    sh("mkfs.ext4 -q -E nodiscard /dev/vg/a; mkfs.xfs -q -K -f /dev/vg/b; mkdir /m
        for n in a b; do mkdir /$n; mount /dev/vg/$n /$n; head -c 5M /dev/urandom > /$n/file; done; sync");
    let varv = Varv::new();
    let words: Vec<OsString> = FREE_BLOCKS.iter().map(OsString::from).collect();
    let night = |also: &[OsString]| varv.run(&[args!["--json", "lvm", "backup"], &words, also].concat());
    let first = night(args!["vg/c"]);
    first.says(&["vg/c: free blocks are not known"]);
    let by = [0, 1, 2].map(|at| first.json()["volumes"][at]["free_blocks"].clone());
    assert_eq!(by, ["partclone.ext4".into(), "partclone.xfs".into(), Value::Null], "{by:?}");
    // XFS has a log of 64 MiB.
    let read = [0, 1].map(|at| first.json()["volumes"][at]["bytes_read"].as_u64().unwrap() / MIB);
    assert!(read[0] < 20 && read[1] < 100, "{read:?}");
    // By what changed: files are new, changed in part, and gone.
    let nights = [1, 2].map(|number| {
        sh(&format!(
            "{SUMS}; for n in a b; do
                head -c 2M /dev/urandom > /$n/new{number}; mv /$n/file /$n/moved{number}
                head -c 5000 /dev/urandom | dd of=/$n/moved{number} bs=1 seek=123456 conv=notrunc status=none
                head -c 1M /dev/urandom > /$n/file; rm -f /$n/moved$(({number} - 1))
                sync -f /$n; sums /$n > /root/${{n}}{number}
            done"
        ));
        let night = night(&[]).json();
        let how = [0, 1].map(|at| night["volumes"][at]["method"].as_str().unwrap().to_string());
        assert_eq!(how, ["cow", "thin"], "{night}");
        night
    });
    for (number, night) in (1..).zip(&nights) {
        for (volume, mount, look) in
            [("a", "mount -t ext4", "e2fsck -fn"), ("b", "mount -t xfs -o nouuid", "xfs_repair -n")]
        {
            let way: &[OsString] =
                if number == 1 { args!["--overwrite", "always"] } else { args!["--in-place"] };
            let path = format!("vg/{volume}");
            let words = [args!["restore", "--verify", "--snapshot", id(night)], way].concat();
            varv.ok(&[&words[..], args![&path, "/dev/vg/to"]].concat()).says(&["come back as zeros"]);
            // The log of a file system that was frozen, not unmounted, is gone through by mounting.
            sh(&format!(
                "{SUMS}; {mount} /dev/vg/to /m; sums /m | cmp - /root/{volume}{number}
                umount /m; {look} /dev/vg/to"
            ));
        }
    }
    varv.ok(args!["check", "--read-data"]);
}

#[test]
fn what_only_a_journal_knows_of_is_no_free_block() {
    if !in_lab!("3G") {
        return;
    }
    pool("900M");
    sh("for n in live to; do lvcreate -q -y -n $n -L 400M vg; done; mkdir /m
        lvcreate -q -y -n crashed -V 400M --thinpool pool vg");
    let varv = Varv::new();
    let backup = |volume: &str| {
        varv.run(args!["--json", "lvm", "backup", "--no-keep", "--free-blocks", "partclone", volume])
    };
    let comes_back = |volume: &str, to: &str| {
        varv.ok(args!["restore", "--overwrite", "always", "--verify", volume, format!("/dev/{to}")]);
        sh(&format!("mount /dev/{to} /m; (cd /m; sha256sum --quiet -c /root/sums); umount /m"));
    };
    for kind in ["ext4", "xfs", "btrfs"] {
        // As the disk is when the power goes: the file is safe by what the journal has.
        sh(&format!(
            "wipefs -qa /dev/vg/live; mkfs.{kind} -q /dev/vg/live; mount /dev/vg/live /m; sync -f /m
            for n in 1 2 3; do head -c 1M /dev/urandom > /m/$n; sync /m/$n; done
            (cd /m; sha256sum 1 2 3 > /root/sums)
            dd if=/dev/vg/live of=/dev/vg/crashed bs=1M iflag=direct oflag=direct status=none
            umount /m; wipefs -qa /dev/vg/live"
        ));
        let crashed = backup("vg/crashed");
        crashed.says(&["vg/crashed: free blocks are not known", "journal"]);
        assert_eq!(crashed.json()["volumes"][0]["free_blocks"], Value::Null, "{kind}");
        sh("wipefs -qa /dev/vg/crashed");
        comes_back("vg/crashed", "vg/to");
        // It has been mounted and unmounted: now its own map is right.
        let clean = backup("vg/to").json();
        assert_eq!(clean["volumes"][0]["free_blocks"], format!("partclone.{kind}"));
        sh("wipefs -qa /dev/vg/to");
        comes_back("vg/to", "vg/live");
    }
}
