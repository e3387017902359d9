//! Tests with LVM as it is: each boots a kernel of its own that has the device-mapper
//! (`tests/lab`), and runs itself in it.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::system::skip;
use super::{Varv, args};

/// Boots the lab.
const LAB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/with-lvm");

/// Whether the lab can be booted; that it cannot is said.
pub fn is_installed() -> bool {
    let is_installed = Command::new(LAB).arg("--check").output().is_ok_and(|output| output.status.success());
    is_installed || skip::<()>("the LVM lab is not installed: tests/lab/install").is_some()
}

/// True in the lab. Outside of it, boots one with these empty disks and runs the test `name` there.
pub fn in_lab(name: &str, disks: &[&str]) -> bool {
    if std::env::var_os("LAB_DISKS").is_some() {
        return true;
    }
    if !is_installed() {
        return false;
    }
    let disks = disks.iter().flat_map(|size| ["--disk", size]);
    let output = Command::new(LAB)
        .args(["--memory", "2G", "--timeout", "600"])
        .args(disks)
        .arg("--")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads", "1"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "in the lab: {text}");
    false
}

/// Runs a script; what it printed.
pub fn sh(script: &str) -> String {
    let output = Command::new("bash").args(["-euo", "pipefail", "-c", script]).output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\n--\n{complaints}");
    String::from_utf8(output.stdout).unwrap().trim().to_string()
}

/// A volume group `vg` on the first disk.
pub fn group() {
    sh("disk=${LAB_DISKS%% *}; pvcreate -q $disk; vgcreate -q vg $disk");
}

/// With a thin pool `vg/pool` in it.
pub fn pool(len: &str) {
    group();
    sh(&format!("lvcreate -q -y --type thin-pool -n pool -L {len} -c 64k --poolmetadatasize 8M vg"));
}

pub fn night(varv: &Varv, words: &[OsString]) -> Value {
    varv.json(&[args!["lvm", "backup"], words].concat())
}

/// What varv keeps: the names of snapshots.
pub fn kept(varv: &Varv) -> Vec<String> {
    let rows = varv.json(args!["lvm", "status"]);
    rows.as_array().unwrap().iter().map(|row| row["snapshot"].as_str().unwrap().to_string()).collect()
}

pub fn id(night: &Value) -> &str {
    night["snapshot"].as_str().unwrap()
}

/// How a night's only volume was read, and why all of it was if there is a reason.
pub fn how(night: &Value) -> (&str, Option<&str>) {
    let row = &night["volumes"][0];
    (row["method"].as_str().unwrap(), row["fallback_reason"].as_str())
}

pub fn scribble(device: &str, mebibyte: u64, count: u64) {
    sh(&format!(
        "dd if=/dev/urandom of={device} bs=1M seek={mebibyte} count={count} oflag=direct status=none"
    ));
}

/// The newest snapshot is what the volume is now.
pub fn assert_newest_is(varv: &Varv, volume: &str) {
    let (repository, program) = (varv.repository.display(), env!("CARGO_BIN_EXE_varv"));
    sh(&format!("{program} -r {repository} dump {volume} | cmp - /dev/{volume}"));
}

/// Boots a lab with this disk, which keeps what is written to it, and runs the test in it.
pub fn boot(name: &str, phase: &str, image: &Path) -> Option<i32> {
    let status = Command::new(LAB)
        .args(["--memory", "1G", "--timeout", "600", "--disk-image"])
        .arg(image)
        .arg("--")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads", "1"])
        .env("VARV_TEST_PHASE", phase)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    eprintln!("{}{}", String::from_utf8_lossy(&status.stdout), String::from_utf8_lossy(&status.stderr));
    status.status.code()
}
