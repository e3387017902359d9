//! Directories nested deeply: what a command keeps of each level must not grow with its whole path.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use varv::source::walk::raise_file_limit;

mod support;
use support::{Varv, args, system::skip};

/// Whole paths of all levels would take 280 MB.
const DEPTH: usize = 1500;
const NAME_LEN: usize = 250;
/// What a command may write to, in KiB, its threads' stacks included.
const DATA_MAX: usize = 256 << 10;

fn nest(root: &Path) {
    let mut dir: OwnedFd = std::fs::File::open(root).unwrap().into();
    let name = "n".repeat(NAME_LEN);
    for _ in 0..DEPTH {
        openat(&dir, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        mkdirat(&dir, &name, Mode::RWXU).unwrap();
        dir = openat(&dir, &name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
}

/// Runs a command that may not take more memory; with its standard output thrown away.
fn bounded(varv: &Varv, words: &[OsString]) {
    let command = varv.command(words);
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -d \"$0\" && exec \"$@\""]).arg(DATA_MAX.to_string());
    shell.arg(command.get_program()).args(command.get_args()).env_clear();
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let done = shell.stdout(Stdio::null()).output().unwrap();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{words:?}: {} {errors:.300}", done.status);
}

#[test]
fn depth_costs_little_memory() {
    if raise_file_limit() < DEPTH as u64 + 700 {
        return skip("too few files may be open").unwrap_or_default();
    }
    let varv = Varv::new();
    let (source, target) = (varv.dir("source"), varv.path("target"));
    nest(&source);
    bounded(&varv, args!["backup", &source]);
    bounded(&varv, args!["backup", &source]);
    bounded(&varv, args!["restore", "--verify", &source, &target]);
    bounded(&varv, args!["restore", "--overwrite", "if-changed", "--delete", &source, &target]);
    bounded(&varv, args!["compare", "--method", "full", &source]);
    bounded(&varv, args!["dump", &source]);
    bounded(&varv, args!["find", "nothing"]);
    bounded(&varv, args!["dupes", &source]);
    bounded(&varv, args!["check"]);
    // Too deep for a recursive removal on a test's stack.
    let remove = move || drop(varv);
    thread::Builder::new().stack_size(64 << 20).spawn(remove).unwrap().join().unwrap();
}
