//! What the environment means beside what is typed.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::ffi::OsString;
use std::fs;

use support::{Done, Varv, args};

fn with(varv: &Varv, words: &[OsString], variables: &[(&str, &str)]) -> Done {
    varv.command(words).envs(variables.iter().copied()).output().unwrap().into()
}

#[test]
fn a_variable_that_is_empty_is_not_set() {
    let varv = Varv::new();
    let repository = varv.repository.to_str().unwrap();
    let others = ["VARV_PASSPHRASE_FILE", "VARV_PASSPHRASE_COMMAND", "VARV_KEY_FILE", "VARV_CACHE_DIR"];
    for name in others {
        with(&varv, args!["snapshots"], &[(name, "")]).expect(0, args![name]);
    }
    let empty = [("VARV_REPOSITORY", "")];
    with(&varv, args!["snapshots", "-r", repository], &empty).expect(0, args![]);
    with(&varv, args!["completions", "bash"], &empty).expect(0, args![]);
    let unnamed = with(&varv, args!["snapshots"], &empty);
    unnamed.expect(2, args![]);
    unnamed.says(&["no repository is named"]);
    varv.ends(2, args!["snapshots", "-r", ""]);
}

#[test]
fn what_is_typed_wins() {
    let varv = Varv::without_repository();
    let [right, wrong, key] = ["right", "wrong", "key"].map(|name| varv.path(name));
    fs::write(&right, "right\n").unwrap();
    fs::write(&wrong, "wrong\n").unwrap();
    varv.ok(args!["init", "--encryption", "passphrase", "--passphrase-file", &right]);
    varv.ok(args!["key", "add", "--passphrase-file", &right, "--new-key-file", &key]);
    let [right, wrong, key] = [&right, &wrong, &key].map(|path| path.to_str().unwrap());
    let echo = ["--passphrase-command", "echo right"];
    for (variable, option) in [
        (("VARV_PASSPHRASE_FILE", wrong), echo),
        (("VARV_KEY_FILE", wrong), ["--passphrase-file", right]),
        (("VARV_PASSPHRASE_COMMAND", "false"), ["--key-file", key]),
        (("VARV_PASSPHRASE", "wrong"), ["--key-file", key]),
    ] {
        with(&varv, args![option[0], option[1], "snapshots"], &[variable]).expect(0, args![option[0]]);
        with(&varv, args!["snapshots", option[0], option[1]], &[variable]).expect(0, args![option[0]]);
        assert_ne!(with(&varv, args!["snapshots"], &[variable]).code, Some(0));
    }
}

#[test]
fn folders_of_the_user_are_absolute() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let file = |folder: &str, profile: &str| {
        let folder = varv.path(folder).join("varv");
        fs::create_dir_all(&folder).unwrap();
        let text = format!("[profiles.{profile}]\nsources = [{source:?}]\n");
        fs::write(folder.join("varv.toml"), text).unwrap();
    };
    // The program runs in the home: a folder that is relative, or empty, would be found in it.
    file("", "here");
    file("relative", "here");
    file(".config", "user");
    for folder in ["", "relative"] {
        with(&varv, args!["run", "user"], &[("XDG_CONFIG_HOME", folder)]).expect(0, args![folder]);
    }
}

#[test]
fn lengths_of_time_to_wait_are_as_all_others() {
    let varv = Varv::new();
    for wait in ["0", "90", "90s", "1h30m", "2D", "1W"] {
        varv.ok(args!["--lock-wait", wait, "snapshots"]);
    }
    for wait in ["", "1x", "-1s", "2B"] {
        varv.ends(2, args!["--lock-wait", wait, "snapshots"]);
    }
}
