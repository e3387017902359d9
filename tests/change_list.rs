//! Backing up by a list of what changed, made by other tools, from the command line.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use support::make::{bytes, overwrite};
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
