//! Blocks that a file system does not use, left out by what partclone says.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::make::bytes;
use support::system::{run, skip};
use support::{Varv, args};

const MIB: usize = 1 << 20;

/// A file system with one file, on a device that is full of other data.
fn image(varv: &Varv) -> std::path::PathBuf {
    let image = varv.path("image");
    fs::write(&image, bytes(1, 64 * MIB)).unwrap();
    let path = image.to_str().unwrap();
    assert!(run("mkfs.ext4", &["-q", "-F", "-b", "4096", "-E", "nodiscard", path]));
    let file = varv.path("file");
    fs::write(&file, bytes(2, 5 * MIB)).unwrap();
    debugfs(&image, &["-w", "-R", &format!("write {} kept", file.display())]);
    image
}

fn debugfs(image: &Path, words: &[&str]) -> Vec<u8> {
    let output = Command::new("debugfs").args(words).arg(image).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn are_missing() -> bool {
    let mut names = ["partclone.ext4", "mkfs.ext4", "debugfs", "e2fsck"].iter();
    match names.find(|name| Command::new(name).arg("-V").output().is_err()) {
        Some(name) => skip::<()>(&format!("{name} is not installed")).is_none(),
        None => false,
    }
}

fn volume(night: &Value) -> &Value {
    &night["volumes"][0]
}

fn assert_file_system_is_whole(varv: &Varv, image: &Path) {
    let target = varv.path("restored");
    let words = args!["restore", "--overwrite", "always", image, &target];
    varv.ok(words).says(&["free blocks were left out", "come back as zeros"]);
    assert!(run("e2fsck", &["-fn", target.to_str().unwrap()]));
    assert!(debugfs(&target, &["-R", "cat kept"]) == bytes(2, 5 * MIB));
}

#[test]
fn free_blocks_are_left_out_when_that_is_asked_for() {
    if are_missing() {
        return;
    }
    let varv = Varv::new();
    let image = image(&varv);
    let night = varv.backup(args!["--free-blocks", "partclone", &image]);
    assert_eq!(volume(&night)["free_blocks"], "partclone.ext4");
    let read = night["bytes_read"].as_u64().unwrap();
    assert!((5 * MIB as u64..16 * MIB as u64).contains(&read), "{night}");
    assert_eq!(night["bytes_hole"].as_u64().unwrap() + read, 64 * MIB as u64);
    assert_file_system_is_whole(&varv, &image);
    // The same from a map that partclone has written, without reading again what has not changed.
    let map = varv.path("map");
    let (from, to) = (image.to_str().unwrap(), map.to_str().unwrap());
    assert!(run("partclone.ext4", &["-q", "-D", "-L", "/dev/null", "-s", from, "-O", to]));
    fs::write(varv.path("list"), "# nothing\n").unwrap();
    let list =
        args!["--change-list", varv.path("list"), "--made-against", night["snapshot"].as_str().unwrap()];
    let with_map = args!["--spot-check", "100", "--free-blocks", &map, &image];
    let later = varv.backup(&[list, with_map].concat());
    assert_eq!(
        (&volume(&later)["method"], &volume(&later)["free_blocks"]),
        (&json!("list"), &json!("a map"))
    );
    assert_eq!(later["bytes_new"], 0);
    assert_file_system_is_whole(&varv, &image);
    // Without the option everything is there again, whatever the list says.
    let exact = varv.backup(&[list, args![&image]].concat());
    let reason = volume(&exact)["fallback_reason"].as_str().unwrap();
    assert!(reason.contains("free blocks were left out"), "{exact}");
    assert!(varv.ok(args!["dump", &image]).stdout == fs::read(&image).unwrap());
}

#[test]
fn what_is_no_map_of_it_is_refused() {
    let varv = Varv::new();
    let (image, map) = (varv.path("image"), varv.path("map"));
    fs::write(&image, bytes(1, MIB)).unwrap();
    let words = args!["backup", "--free-blocks", &map, &image];
    for (text, why) in [
        ("0 4096\n", "no mapfile"),
        ("", "no mapfile"),
        ("0x0 ?\n0x0 0x200000 +\n", "another one"),
        ("0x0 ?\n0x1000 0x1000 +\n", "does not go on"),
        ("0x0 ?\n0x0 0x10", "cut short"),
    ] {
        fs::write(&map, text).unwrap();
        varv.ends(2, words).says(&[why]);
    }
    varv.ends(2, args!["backup", "--free-blocks", &map, &image, varv.dir("other")]).says(&["one"]);
    // What the map does not reach is in use.
    fs::write(&map, "0x0 ?\n0x0 0x80000 +\n").unwrap();
    varv.ok(words);
    assert!(varv.ok(args!["dump", &image]).stdout == fs::read(&image).unwrap());
    if !are_missing() {
        varv.ends(2, args!["backup", "--free-blocks", "partclone", &image]).says(&["not known"]);
    }
}
