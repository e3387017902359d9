//! What the tests of `varv sync` share: remote shells, words, and a naive comparison.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Varv, chmod};

/// A program in the home: these lines for a shell.
pub fn script(varv: &Varv, name: &str, lines: &str) -> PathBuf {
    let path = varv.path(name);
    fs::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
    chmod(&path, 0o755);
    path
}

/// A remote shell that stays here: as ssh does, it gives the words behind the host to a shell.
pub fn fake_ssh(varv: &Varv) -> PathBuf {
    script(varv, "ssh", "shift\nexec /bin/sh -c \"$*\"")
}

/// Words that lead to the varv under test by the remote shell.
pub fn by(ssh: &Path) -> Vec<OsString> {
    let remote = ["--remote-varv".into(), env!("CARGO_BIN_EXE_varv").into()];
    [&["--ssh".into(), ssh.as_os_str().to_owned()][..], &remote].concat()
}

pub fn remote(path: &Path) -> String {
    format!("other:{}", path.display())
}

/// What a naive comparison counts: blocks same, differing, and differing but zero.
pub fn oracle(source: &[u8], target: &[u8], block: usize) -> (u64, u64, u64) {
    let mut target = target.to_vec();
    target.resize(source.len().max(target.len()), 0);
    let (mut same, mut diff, mut zero) = (0, 0, 0);
    for (number, new) in source.chunks(block).enumerate() {
        let old = &target[number * block..number * block + new.len()];
        match (new == old, new.iter().all(|byte| *byte == 0)) {
            (true, _) => same += 1,
            (false, true) => zero += 1,
            (false, false) => diff += 1,
        }
    }
    (same, diff, zero)
}

pub fn counted(json: &Value) -> (u64, u64, u64) {
    let number = |name: &str| json[name].as_u64().unwrap();
    assert_eq!(
        number("blocks"),
        number("blocks_same") + number("blocks_diff") + number("blocks_zero"),
        "{json}"
    );
    (number("blocks_same"), number("blocks_diff"), number("blocks_zero"))
}

/// Waits for what another process does.
pub fn wait_until(is_so: impl Fn() -> bool) {
    while !is_so() {
        std::thread::yield_now();
    }
}
