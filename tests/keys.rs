//! What opens a repository, through the whole program: `init`, `key` and exit codes.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

const DONE: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const LOCKED: i32 = 11;
const WRONG_KEY: i32 = 12;

/// A folder with a repository in it, or a place for one.
struct Place {
    dir: TempDir,
}

/// What varv answered.
struct Answer {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// With a repository that a passphrase opens.
    fn with_passphrase(passphrase: &str) -> Self {
        let place = Self::new();
        place.with(passphrase, &["init"]).expect(DONE);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_string()
    }

    fn file(&self, name: &str, content: &str) -> String {
        fs::write(self.path(name), content).unwrap();
        self.text(name)
    }

    /// Runs varv with a passphrase in its environment.
    fn with(&self, passphrase: &str, arguments: &[&str]) -> Answer {
        run(self.command(arguments).env("VARV_PASSPHRASE", passphrase))
    }

    /// Runs varv without one.
    fn run(&self, arguments: &[&str]) -> Answer {
        run(&mut self.command(arguments))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_varv"));
        command.env_clear().arg("-r").arg(self.path("repository")).args(arguments);
        command
    }

    /// The slots as (name, kind, used).
    fn slots(&self, passphrase: &str) -> Vec<(String, String, bool)> {
        let text = |value: &Value| value.as_str().unwrap().to_string();
        let slots: Value =
            serde_json::from_str(&self.with(passphrase, &["key", "list", "--json"]).expect(DONE)).unwrap();
        let slot = |slot: &Value| (text(&slot["name"]), text(&slot["kind"]), slot["used"] == true);
        slots.as_array().unwrap().iter().map(slot).collect()
    }
}

fn run(command: &mut Command) -> Answer {
    let Output { status, stdout, stderr } = command.stdin(std::process::Stdio::null()).output().unwrap();
    Answer {
        code: status.code().unwrap(),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

impl Answer {
    /// Standard output, after the exit code was seen to be this.
    fn expect(self, code: i32) -> String {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }

    /// It was refused with this code and said all of `words`.
    fn refused(self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "'{word}' is not in: {}", self.stderr);
        }
    }
}

fn slot(name: &str, kind: &str, used: bool) -> (String, String, bool) {
    (name.into(), kind.into(), used)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_passphrase_gives_way_to_a_key_file() {
    let place = Place::with_passphrase("one");
    let key = place.text("key");
    place.with("one", &["key", "add", "--name", "usb", "--new-key-file", &key]).expect(DONE);
    assert_eq!(mode(&place.path("key")), 0o600);
    assert_eq!(place.slots("one"), [slot("passphrase", "passphrase", true), slot("usb", "key-file", false)]);

    let listed = place.run(&["--key-file", &key, "key", "list"]).expect(DONE);
    let used: Vec<&str> = listed.lines().filter(|line| line.contains("opened with this")).collect();
    assert!(matches!(used[..], [line] if line.starts_with("usb ")), "{listed}");
    assert!(listed.contains("Argon2id 64.0 MiB, passes 3, lanes 1"), "{listed}");

    place.run(&["--key-file", &key, "key", "remove", "passphrase"]).expect(DONE);
    place.with("one", &["snapshots"]).refused(WRONG_KEY, &["wrong passphrase", "--key-file"]);
    place.run(&["--key-file", &key, "snapshots"]).expect(DONE);
    place.run(&["--key-file", &key, "key", "remove", "usb"]).refused(USAGE, &["'usb' is the last slot"]);
    place.run(&["--key-file", &key, "snapshots"]).expect(DONE);
}

/// Cut off after the first copy was written, the change holds: the other copy opens nothing.
#[test]
fn a_slot_that_only_the_older_copy_has_is_gone() {
    let place = Place::with_passphrase("one");
    let two = place.file("two", "two\n");
    place.with("one", &["key", "add", "--new-passphrase-file", &two]).expect(DONE);
    let config = place.path("repository/config");
    let before = fs::read(&config).unwrap();
    place.with("two", &["key", "remove", "passphrase"]).expect(DONE);
    fs::write(&config, before).unwrap();
    place.with("one", &["snapshots"]).refused(WRONG_KEY, &["wrong passphrase"]);
    place.with("two", &["snapshots"]).expect(DONE);
}

#[test]
fn the_slot_that_opened_is_the_one_that_is_changed() {
    let place = Place::with_passphrase("one");
    let two = place.file("two", "two\nsecond line\n");
    let three = place.file("three", "three\n");
    place.with("one", &["key", "add", "--new-passphrase-file", &two]).expect(DONE);
    place.with("two", &["key", "change", "--new-passphrase-file", &three]).expect(DONE);
    place.with("two", &["snapshots"]).refused(WRONG_KEY, &[]);
    assert_eq!(
        place.slots("three"),
        [slot("passphrase", "passphrase", false), slot("passphrase-2", "passphrase", true)]
    );
    let key = place.text("key");
    place.with("three", &["key", "change", "passphrase", "--new-key-file", &key]).expect(DONE);
    place.with("one", &["snapshots"]).refused(WRONG_KEY, &[]);
    assert_eq!(
        place.slots("three"),
        [slot("passphrase", "key-file", false), slot("passphrase-2", "passphrase", true)]
    );
}

#[test]
fn changes_are_refused_before_anything_is_made() {
    let place = Place::with_passphrase("one");
    let key = place.text("key");
    for (arguments, words) in [
        (&["key", "add", "--name", "passphrase", "--new-key-file", &key][..], &["already"][..]),
        (&["key", "add", "--name", "a b", "--new-key-file", &key], &["white space"]),
        (&["key", "change", "nobody", "--new-key-file", &key], &["'nobody'", "the slots are passphrase"]),
        (&["key", "remove", "nobody"], &["'nobody'", "the slots are passphrase"]),
        (&["key", "remove", "passphrase"], &["the last slot"]),
        (&["key", "add"], &["--new-passphrase-file", "--new-key-file"]),
        (&["key", "add", "--new-passphrase-file", &place.file("empty", "\n")], &["is empty"]),
        (&["key", "add", "--new-key-file", &place.file("short", "short")], &["no key file"]),
    ] {
        place.with("one", arguments).refused(USAGE, words);
    }
    place.with("two", &["key", "add", "--new-key-file", &key]).refused(WRONG_KEY, &["wrong passphrase"]);
    assert!(!place.path("key").exists(), "a key file was made for a slot that was refused");
    // Nor for one that cannot be stored, since somebody else is at work.
    let lock = fs::File::open(place.path("repository/locks/repository")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockShared).unwrap();
    place.with("one", &["--lock-wait", "0", "key", "add", "--new-key-file", &key]).refused(LOCKED, &["lock"]);
    assert!(!place.path("key").exists(), "a key file was made for a slot that was not stored");
    assert_eq!(place.slots("one"), [slot("passphrase", "passphrase", true)]);
}

#[test]
fn a_recovery_code_opens_when_all_else_is_lost() {
    let place = Place::with_passphrase("one");
    let told = place.with("one", &["key", "export"]).expect(DONE);
    assert!(told.contains("--recovery-code"), "{told}");
    let code = place.with("one", &["-q", "key", "export"]).expect(DONE);
    let code = code.trim_end();
    assert_eq!(told.lines().next(), Some(code));
    assert_eq!(code.split('-').count(), 9);
    let json: Value =
        serde_json::from_str(&place.with("one", &["--json", "key", "export"]).expect(DONE)).unwrap();
    assert_eq!(json["recovery_code"], code);

    let typed = code.to_lowercase().replace('-', " ");
    place.run(&["--recovery-code", &typed, "snapshots"]).expect(DONE);
    let new = place.file("new", "new\n");
    let change = |more: &[&str]| {
        let first = ["--recovery-code", code, "key", "change", "--new-passphrase-file", &new];
        place.run(&[&first[..], more].concat())
    };
    change(&[]).refused(USAGE, &["name the slot"]);
    change(&["passphrase"]).expect(DONE);
    assert_eq!(place.slots("new"), [slot("passphrase", "passphrase", true)]);

    let (first, rest) = code.split_at(1);
    let wrong = format!("{}{rest}", if first == "0" { "1" } else { "0" });
    place.run(&["--recovery-code", &wrong, "snapshots"]).refused(WRONG_KEY, &["mistake in group 1"]);
    let other = Place::with_passphrase("other").with("other", &["-q", "key", "export"]).expect(DONE);
    place
        .run(&["--recovery-code", other.trim_end(), "snapshots"])
        .refused(WRONG_KEY, &["not of this repository"]);
}

#[test]
fn a_key_file_is_made_once_and_missed_later() {
    let place = Place::new();
    let key = place.text("key");
    place.run(&["init", "--encryption", "key-file"]).refused(USAGE, &["--key-file PATH"]);
    let said = place.run(&["init", "--encryption", "key-file", "--key-file", &key]).expect(DONE);
    assert!(said.contains("keep a copy of it somewhere else"), "{said}");
    assert_eq!(mode(&place.path("key")), 0o600);
    place.run(&["--key-file", &key, "snapshots"]).expect(DONE);
    place.run(&["snapshots"]).refused(WRONG_KEY, &["key file is needed", "1 key file(s)"]);

    fs::rename(&key, place.path("moved")).unwrap();
    place.run(&["--key-file", &key, "snapshots"]).refused(FAILED, &["cannot open the key file", &key]);
    assert!(!place.path("key").exists(), "a key file was made where one had to be opened");
    place.run(&["--key-file", &place.text("moved"), "snapshots"]).expect(DONE);
}

#[test]
fn without_encryption_there_are_no_keys_to_change() {
    let place = Place::new();
    place.run(&["init", "--encryption", "none"]).expect(DONE);
    assert_eq!(place.slots("ignored"), [slot("open", "open", true)]);
    let key = place.text("key");
    place.run(&["key", "add", "--new-key-file", &key]).refused(USAGE, &["not encrypted"]);
    place.run(&["key", "change", "--new-key-file", &key]).refused(USAGE, &["not encrypted"]);
    place.run(&["key", "export"]).refused(USAGE, &["not encrypted"]);
    place.run(&["key", "remove", "open"]).refused(USAGE, &["the last slot"]);
    assert!(!place.path("key").exists());
}

#[test]
fn init_refuses_what_it_cannot_do_well() {
    let place = Place::new();
    place.run(&["init"]).refused(USAGE, &["--encryption", "passphrase, key-file or none"]);
    place.run(&["init", "--encryption", "passphrase"]).refused(USAGE, &["VARV_PASSPHRASE"]);
    place.with("", &["init"]).refused(USAGE, &["empty passphrase"]);
    for chunker in ["fastcdc", "fastcdc:16K,4K,64K", "fixed:1000", "fixed:0", "rabin:4K"] {
        let arguments = ["init", "--encryption", "none", "--chunker", chunker];
        place.run(&arguments).refused(USAGE, &["--chunker"]);
    }
    assert!(!place.path("repository").exists(), "something was made for a command that was refused");

    let note = place.path("repository/note");
    fs::create_dir(place.path("repository")).unwrap();
    fs::write(&note, "mine").unwrap();
    place.run(&["init", "--encryption", "none"]).refused(USAGE, &["not empty"]);
    assert_eq!(fs::read_dir(place.path("repository")).unwrap().count(), 1);
    assert_eq!(fs::read(&note).unwrap(), b"mine");
}

#[test]
fn init_does_not_make_a_second_repository_over_the_first() {
    let place = Place::with_passphrase("one");
    place.with("two", &["init"]).refused(USAGE, &[]);
    place.with("one", &["snapshots"]).expect(DONE);
}

#[test]
fn what_is_in_a_repository_is_for_its_owner_only() {
    let place = Place::with_passphrase("one");
    place.with("one", &["backup", "-q", &place.file("note", "mine")]).expect(DONE);
    place.with("one", &["key", "add", "--new-key-file", &place.text("key")]).expect(DONE);
    let mut folders = vec![place.path("repository")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        assert_eq!(mode(&folder), 0o700, "{}", folder.display());
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                assert_eq!(mode(&path), 0o600, "{}", path.display());
                files += 1;
            }
        }
    }
    assert!(files >= 5, "configurations, packs, a snapshot and an index are missing");
}
