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

/// True in the lab. Outside of it, boots one with these empty disks and runs the test there in which
/// it stands.
macro_rules! in_lab {
    ($($disk:expr),+) => {{
        fn here() {}
        support::lab::is_in_lab(std::any::type_name_of_val(&here), &[$($disk),+])
    }};
}
pub(crate) use in_lab;

/// For [`in_lab`]: `here` is `FILE::TEST::here`.
pub fn is_in_lab(here: &str, disks: &[&str]) -> bool {
    if std::env::var_os("LAB_DISKS").is_some() {
        return true;
    }
    if !is_installed() {
        return false;
    }
    let name = here.split("::").nth(1).unwrap();
    let disks = disks.iter().flat_map(|size| ["--disk", size]);
    let output = lab("2G").args(disks).args(itself(name)).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "in the lab: {text}");
    false
}

/// Boots a lab; its disks and what is run in it follow.
fn lab(memory: &str) -> Command {
    let mut lab = Command::new(LAB);
    lab.args(["--memory", memory, "--timeout", "600"]).stdin(Stdio::null());
    lab
}

/// This program with one of its tests.
fn itself(test: &str) -> Vec<OsString> {
    let words = args!["--exact", test, "--nocapture", "--test-threads", "1"];
    [args!["--", std::env::current_exe().unwrap()], words].concat()
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

/// Copies a device's content, for a later look at it.
pub fn copy(device: &str, to: &str) {
    sh(&format!("mkdir -p /copies; dd if={device} of=/copies/{to} bs=1M conv=sparse status=none"));
}

/// What `dump` prints with these words is what is here.
pub fn assert_dump_is(varv: &Varv, words: &str, there: &str) {
    let (repository, program) = (varv.repository.display(), env!("CARGO_BIN_EXE_varv"));
    sh(&format!("{program} -r {repository} dump {words} | cmp - {there}"));
}

/// The newest snapshot is what the volume is now.
pub fn assert_newest_is(varv: &Varv, volume: &str) {
    assert_dump_is(varv, volume, &format!("/dev/{volume}"));
}

/// Bytes that a pool has mapped for a thin volume, by the device-mapper's name of it.
pub fn mapped(volume: &str) -> u64 {
    sh(&format!("dmsetup status {volume} | awk '{{ print $4 }}'")).parse::<u64>().unwrap() * 512
}

/// Boots a lab with this disk, which keeps what is written to it, and runs the test in it.
pub fn boot(name: &str, phase: &str, image: &Path) -> Option<i32> {
    let status = lab("1G")
        .arg("--disk-image")
        .arg(image)
        .args(itself(name))
        .env("VARV_TEST_PHASE", phase)
        .output()
        .unwrap();
    eprintln!("{}{}", String::from_utf8_lossy(&status.stdout), String::from_utf8_lossy(&status.stderr));
    status.status.code()
}
