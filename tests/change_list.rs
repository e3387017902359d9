//! Backing up by a list of what changed, made by other tools, from the command line.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;
use support::make::{bytes, overwrite};
use support::system::skip;
use support::{Varv, args};

const LEN: usize = 6 << 20;

/// An image with a snapshot, and then a change of 5000 bytes at 3 000 000.
fn changed() -> (Varv, PathBuf, String) {
    let varv = Varv::new();
    let image = varv.path("image");
    fs::write(&image, bytes(1, LEN)).unwrap();
    let snapshot = varv.backup(args![&image])["snapshot"].as_str().unwrap().to_string();
    overwrite(&image, 3_000_000, &bytes(2, 5000));
    (varv, image, snapshot)
}

fn by_list(varv: &Varv, image: &PathBuf, snapshot: &str, list: &str) -> Value {
    fs::write(varv.path("list"), list).unwrap();
    varv.backup(args!["--change-list", varv.path("list"), "--made-against", &snapshot[..10], image])
}

#[test]
fn only_what_changed_is_read_and_the_rest_is_there() {
    let (varv, image, snapshot) = changed();
    let night = by_list(&varv, &image, &snapshot, "# changed tonight\n3000000 5000\n");
    assert!(varv.ok(args!["dump", &image]).stdout == fs::read(&image).unwrap());
    let volume = &night["volumes"][0];
    assert_eq!((&volume["method"], &volume["fallback_reason"]), (&"list".into(), &Value::Null));
    assert_eq!(volume["volume"], image.to_str().unwrap());
    assert_eq!(
        (volume["bytes_source"].as_u64(), volume["bytes_changed"].as_u64()),
        (Some(LEN as u64), Some(8192))
    );
    let stored = volume["bytes_stored"].as_u64().unwrap();
    let new = night["bytes_new"].as_u64().unwrap();
    assert!(stored > 0 && stored <= new && new < 300_000, "{night}");
    let checked = volume["bytes_spot_checked"].as_u64().unwrap();
    assert!((4 << 20..5 << 20).contains(&checked), "{volume}");
    assert_eq!(volume["bytes_read"], night["bytes_read"]);
    let read = night["bytes_read"].as_u64().unwrap() - checked;
    assert!((8192..300_000).contains(&read), "{night}");
    assert_eq!(varv.backup(args!["--label", "other", &image])["bytes_new"], 0);
    varv.ok(args!["check", "--read-data"]);
}

#[test]
fn a_list_since_an_older_snapshot_is_taken_as_such() {
    let (varv, image, first) = changed();
    varv.backup(args!["--force-read", &image]);
    overwrite(&image, 100, &bytes(3, 100));
    by_list(&varv, &image, &first, "0 4096\n3000000 5000\n");
    assert!(varv.ok(args!["dump", &image]).stdout == fs::read(&image).unwrap());
}

/// What the program of `docs/change-lists.md` makes of a stream that was dumped; `None` without awk.
fn ranges(dumped: &str) -> Option<String> {
    let page = include_str!("../docs/change-lists.md");
    let program = page.split("```awk\n").nth(1).unwrap().split("```").next().unwrap();
    let size = format!("size={LEN}");
    let awk = Command::new("awk")
        .args(["-v", "object=5", "-v", &size, program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut awk) = awk else { return skip("no awk") };
    awk.stdin.take().unwrap().write_all(dumped.as_bytes()).unwrap();
    Some(String::from_utf8(awk.wait_with_output().unwrap().stdout).unwrap())
}

/// As `zstreamdump -v` printed it once, as it did later, and as `zstream dump -v` does.
#[test]
fn a_stream_of_zfs_becomes_a_list() {
    let begin = "BEGIN record\n\thdrtype = 1\n\ttoname = tank/vms@b\n\nFREEOBJECTS firstobj = 0 numobjs = 1\n\
        OBJECT object = 5 type = 19 bonustype = 17 blksz = 16384 bonuslen = 264\n\
        FREE object = 5 offset = 6291456 length = -1\nFREE object = 5 offset = 6275072 length = -1\n\
        FREE object = 1 offset = 512 length = 1024\n";
    let writes = [
        "checksum type = 7\noffset = 2998272 length = 16384 props = 2001f001f\n",
        "checksum type = 7 compression type = 0\n    offset = 2998272 logical_size = 16384 compressed_size = 0 \
         payload_size = 16384 props = 2001f001f\n",
        "checksum type = 7 compression type = 0 flags = 0 offset = 2998272 logical_size = 16384 \
         compressed_size = 0 payload_size = 16384 props = 2001f001f salt = 0 iv = 0 mac = 0\n",
    ];
    for write in writes {
        let write = |object| format!("WRITE object = {object} type = 19 {write}");
        let end = "WRITE_EMBEDDED object = 5 offset = 16384 length = 16384 toguid = 1 comp = 15\n\
            END checksum = 1/2/3/4\nSUMMARY:\n\tTotal DRR_BEGIN records = 1\n\tTotal stream length = 3228736 (0x314440)\n";
        let Some(list) = ranges(&[begin, &write(1), &write(5), end].concat()) else { return };
        assert_eq!(list, "6275072 16384\n2998272 16384\n16384 16384\n# that is all\n");
        let (varv, image, snapshot) = changed();
        by_list(&varv, &image, &snapshot, &list);
        assert!(varv.ok(args!["dump", &image]).stdout == fs::read(&image).unwrap());
    }
    // Nothing has changed, and nobody knows.
    let (varv, image, snapshot) = changed();
    fs::write(varv.path("list"), ranges(begin).unwrap()).unwrap();
    let words = args!["backup", "--change-list", varv.path("list"), "--made-against", &snapshot, &image];
    varv.ends(2, words).says(&["list: line 2"]);
    fs::write(&image, bytes(1, LEN)).unwrap();
    let night = by_list(&varv, &image, &snapshot, &ranges("END checksum = 1/2/3/4\n").unwrap());
    assert_eq!(night["volumes"][0]["bytes_changed"], 0);
}

#[test]
fn a_list_that_forgets_a_change_is_caught() {
    let (varv, image, snapshot) = changed();
    fs::write(varv.path("list"), "[]").unwrap();
    let words = args![
        "backup",
        "--spot-check=100%",
        "--change-list",
        varv.path("list"),
        "--made-against",
        &snapshot,
        &image
    ];
    let done = varv.ok(words);
    done.says(&["WARNING"]);
    assert!(String::from_utf8_lossy(&done.stdout).contains("all of it, since a spot check failed"));
    assert!(varv.ok(args!["dump", &image]).stdout == fs::read(&image).unwrap());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (varv, image, snapshot) = changed();
    let list = varv.path("list");
    let other = varv.path("other");
    fs::write(&other, bytes(3, 100)).unwrap();
    let others = varv.backup(args![&other])["snapshot"].as_str().unwrap().to_string();
    let before = varv.snapshots().len();
    let words = |snapshot: &str, source: &PathBuf| {
        args!["backup", "--change-list", &list, "--made-against", snapshot, source].to_vec()
    };
    fs::write(&list, "0 4096\n9000000 1\n").unwrap();
    varv.ends(2, &words(&snapshot, &image)).says(&["list: line 2", "another"]);
    fs::write(&list, "0 4096\n").unwrap();
    varv.ends(2, &words(&others, &image)).says(&["another"]);
    varv.ends(1, &words("0123456789", &image)).says(&["no snapshot"]);
    varv.ends(2, &[words(&snapshot, &image), vec![other.into()]].concat()).says(&["one"]);
    varv.ends(2, &words(&snapshot, &varv.dir("dir"))).says(&["block device"]);
    varv.ends(2, args!["backup", "--change-list", &list, &image]).says(&["--made-against"]);
    assert_eq!(varv.snapshots().len(), before);
}
