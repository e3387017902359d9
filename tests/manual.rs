//! Completions and manual pages.
#![allow(clippy::unwrap_used)]

use std::process::Command;

fn varv(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_varv")).env_clear().args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn every_shell_gets_completions() {
    for shell in ["bash", "zsh", "fish", "elvish"] {
        let (code, script) = varv(&["completions", shell]);
        assert_eq!(code, Some(0));
        for word in ["snapshots", "passphrase-file", "one-file-system"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert_eq!(varv(&["completions", "cmd.exe"]).0, Some(2));
}

#[test]
fn every_command_has_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("made/man1");
    assert_eq!(varv(&["man", folder.to_str().unwrap()]).0, Some(0));
    let (_, help) = varv(&["--help"]);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let mut pages = 0;
    for name in commands.take_while(|line| !line.is_empty()).filter_map(|line| line.split(' ').nth(2)) {
        if !name.is_empty() {
            let page = std::fs::read_to_string(folder.join(format!("varv-{name}.1"))).unwrap();
            assert!(page.contains(".SH SYNOPSIS"), "{name}");
            pages += 1;
        }
    }
    assert!(pages >= 4, "{help}");
    assert!(folder.join("varv.1").exists() && folder.join("varv-key-add.1").exists());
}
