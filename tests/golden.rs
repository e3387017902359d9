//! Repositories of every format that was ever released open for ever, and give back what went
//! into them.
//!
//! `tests/data/golden-N` holds what one version made: the same sources in a repository without
//! encryption (`plain`) and in one that a passphrase and a key file open (`encrypted`), and what
//! both must give back. A new format gets a new folder; the old ones are never made again.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};
use serde_json::Value;
use varv::format::config::SlotKind;
use varv::id::hex;
use varv::observe::Stop;
use varv::repo::keys::{Secret, random};
use varv::repo::{Intent, OpenOptions, Repo};
use zeroize::Zeroizing;

use support::make::{Random, bytes, overwrite, sparse_file, touch};
use support::system::{Loop, is_root, run};
use support::tree::{Content, read};
use support::{Varv, args, chmod};

const PASSPHRASE: &str = "gyttja och lera";
/// Under these paths the sources were backed up.
const TREE: &str = "/tmp/varv-golden/tree";
const VOLUME: &str = "/tmp/varv-golden/volume";
const VOLUME_LEN: usize = 1 << 20;
/// The snapshots in order.
const NIGHTS: [(&str, &str); 2] =
    [("first", "2026-11-20T03:00:00+01:00"), ("second", "2026-11-21T03:00:00+01:00")];

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// The folders of all formats.
fn goldens() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(data())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    assert!(!found.is_empty());
    found
}

/// A copy of a golden repository and what opens it.
struct Golden {
    varv: Varv,
    folder: PathBuf,
    unlock: Vec<String>,
}

impl Golden {
    fn new(folder: &Path, name: &str, unlock: &[&str]) -> Self {
        let mut varv = Varv::unprivileged();
        varv.repository = varv.path("golden");
        copy(&folder.join(name), &varv);
        let unlock = unlock.iter().map(|word| word.to_string()).collect();
        Self { varv, folder: folder.into(), unlock }
    }

    /// The same repository by every way that opens it.
    fn all(folder: &Path) -> Vec<Self> {
        let key_file = folder.join("key").to_str().unwrap().to_owned();
        let by_key = Self::new(folder, "encrypted", &["--key-file", "KEY"]);
        let copied = by_key.varv.path("key");
        fs::copy(key_file, &copied).unwrap();
        by_key.varv.give(&copied);
        let by_key = Self { unlock: vec!["--key-file".into(), copied.to_str().unwrap().into()], ..by_key };
        let command = format!("echo {PASSPHRASE}");
        let by_passphrase = Self::new(folder, "encrypted", &["--passphrase-command", &command]);
        vec![Self::new(folder, "plain", &[]), by_key, by_passphrase]
    }

    fn words(&self, words: &[&OsStr]) -> Vec<std::ffi::OsString> {
        self.unlock.iter().map(OsStr::new).chain(words.iter().copied()).map(OsStr::to_owned).collect()
    }

    fn ok(&self, words: &[&str]) -> support::Done {
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        self.varv.ok(&self.words(&words))
    }

    fn json(&self, words: &[&str]) -> Value {
        self.ok(&[&["--json"], words].concat()).json()
    }

    fn expected(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).unwrap()
    }

    /// Lists and restores everything.
    fn gives_back_what_went_in(&self) {
        let Value::Array(snapshots) = self.json(&["snapshots"]) else { panic!("no array") };
        assert_eq!(snapshots.len(), NIGHTS.len());
        for ((night, time), snapshot) in NIGHTS.iter().zip(snapshots) {
            assert_eq!(snapshot["time"], *time);
            let id = snapshot["id"].as_str().unwrap();
            let listed = self.json(&["ls", "-R", "--snapshot", id, TREE]);
            let expected: Value = serde_json::from_str(&self.expected(&format!("{night}.ls.json"))).unwrap();
            assert_eq!(listed["entries"], expected);
            let target = self.varv.path(night);
            self.ok(&["restore", "--verify", "--snapshot", id, TREE, target.to_str().unwrap()]);
            assert_lines(&self.expected(&format!("{night}.tree")), &description(&target));
            let image = self.varv.path(&format!("{night}.image"));
            self.ok(&["restore", "--snapshot", id, VOLUME, image.to_str().unwrap()]);
            assert!(fs::read(image).unwrap() == volume(night), "{night}");
        }
    }
}

/// Names the first line that differs: all of them would fill the screen.
fn assert_lines(expected: &str, actual: &str) {
    for (expected, actual) in expected.lines().zip(actual.lines()) {
        assert_eq!(expected, actual);
    }
    assert_eq!(expected.lines().count(), actual.lines().count());
}

/// Into the folder of the program's user; git keeps neither empty folders nor modes.
fn copy(from: &Path, varv: &Varv) {
    for entry in walkdir::WalkDir::new(from) {
        let entry = entry.unwrap();
        let to = varv.repository.join(entry.path().strip_prefix(from).unwrap());
        match entry.file_type().is_dir() {
            true => fs::create_dir(&to).unwrap(),
            false => drop(fs::copy(entry.path(), &to).unwrap()),
        }
        varv.give(&to);
    }
}

#[test]
fn golden_repositories_give_back_what_went_into_them() {
    for folder in goldens() {
        for golden in Golden::all(&folder) {
            golden.gives_back_what_went_in();
            golden.ok(&["check", "--read-data"]);
        }
    }
}

#[test]
fn golden_repositories_take_another_night() {
    for folder in goldens() {
        for golden in Golden::all(&folder) {
            let source = golden.varv.dir("source");
            fs::write(source.join("new"), "tonight").unwrap();
            golden.ok(&["backup", source.to_str().unwrap()]);
            let restored = golden.varv.path("restored");
            golden.ok(&["restore", source.to_str().unwrap(), restored.to_str().unwrap()]);
            assert_eq!(fs::read_to_string(restored.join("new")).unwrap(), "tonight");
            golden.ok(&["check", "--read-data"]);
        }
    }
}

#[test]
fn golden_repositories_can_be_read_only() {
    for folder in goldens() {
        for golden in Golden::all(&folder) {
            set_modes(&golden.varv.repository, 0o500, 0o400);
            golden.gives_back_what_went_in();
            golden.ok(&["check", "--read-data"]);
            assert!(!golden.varv.repository.join("locks").exists(), "something was written");
            set_modes(&golden.varv.repository, 0o700, 0o600);
        }
    }
}

fn set_modes(folder: &Path, of_dirs: u32, of_files: u32) {
    for entry in walkdir::WalkDir::new(folder).contents_first(true) {
        let entry = entry.unwrap();
        chmod(entry.path(), if entry.file_type().is_dir() { of_dirs } else { of_files });
    }
}

/// What a user without rights cannot give to a file whose owner is another.
const SET_ID: u32 = 0o6000;

/// Everything about a tree but its owners, which not everybody can restore: a line an entry.
fn description(root: &Path) -> String {
    let mut out = String::new();
    for (path, node) in read(root) {
        let content = match &node.content {
            Content::File { len, hash } => format!("file {len} {}", &hash.to_hex()[..32]),
            Content::Dir => "directory".into(),
            Content::Symlink(target) => format!("symlink {}", target.to_bytes().escape_ascii()),
            Content::Device(_) | Content::Other => "other".into(),
        };
        let (seconds, nanos) = node.modified;
        let first = node.first_name.escape_ascii();
        let _ = write!(
            out,
            "{} {:o} {seconds}.{nanos:09} {content} {first}",
            path.escape_ascii(),
            node.mode & !SET_ID
        );
        for (name, value) in node.xattrs.iter().filter(|(name, _)| name.to_bytes().starts_with(b"user.")) {
            let _ = write!(out, " {}={}", name.to_string_lossy(), hex(value));
        }
        out.push('\n');
    }
    out
}

/// Data, zeros, data up to the end; some of it changes.
fn volume(night: &str) -> Vec<u8> {
    let mut content = vec![0; VOLUME_LEN];
    content[..20_000].copy_from_slice(&Random(1).text(20_000));
    content[VOLUME_LEN - 10_000..].copy_from_slice(&bytes(2, 10_000));
    if night == "second" {
        content[300_000..304_000].copy_from_slice(&Random(3).text(4000));
    }
    content
}

/// What the goldens hold; times are set at the end, from below.
fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    for name in [
        &b"odd\xff\xfename"[..],
        b"new\nline",
        b" blank ",
        b"-r",
        b"back\\slash",
        "\u{e5}\u{e4}\u{f6}".as_bytes(),
        &[b'n'; 255],
    ] {
        fs::write(root.join("a").join(OsStr::from_bytes(name)), name).unwrap();
    }
    for number in 0..60 {
        fs::write(root.join(format!("a/b/file{number}")), Random(number).text(100 * number as usize))
            .unwrap();
    }
    fs::write(root.join("random"), bytes(9, 30_000)).unwrap();
    fs::write(root.join("two names"), "the same").unwrap();
    fs::hard_link(root.join("two names"), root.join("a/b/c/second name")).unwrap();
    symlink("a/b", root.join("link")).unwrap();
    symlink(OsStr::from_bytes(b"nowhere\xff"), root.join("dangling")).unwrap();
    sparse_file(&root.join("sparse"), 3 << 20, &[(1 << 20, &bytes(4, 5000)), ((3 << 20) - 3, b"end")]);
    fs::write(root.join("attributes"), "has some").unwrap();
    lsetxattr(root.join("attributes"), "user.colour", b"grey\0blue", XattrFlags::empty()).unwrap();
    mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    drop(UnixListener::bind(root.join("socket")).unwrap());
    fs::set_permissions(root.join("random"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o1777)).unwrap();
    set_times(root);
}

fn change_tree(root: &Path) {
    fs::remove_file(root.join("a/b/file7")).unwrap();
    fs::write(root.join("a/b/file8"), "shorter").unwrap();
    overwrite(&root.join("sparse"), 2 << 20, &bytes(5, 3000));
    fs::write(root.join("empty/no more"), "").unwrap();
    set_times(root);
}

fn set_times(root: &Path) {
    for (entry, second) in
        walkdir::WalkDir::new(root).contents_first(true).sort_by_file_name().into_iter().zip(0..)
    {
        touch(entry.unwrap().path(), 1_763_600_000 - 1_000_003 * second, 123_456_789);
    }
}

/// Makes `tests/data/golden-1` anew: for a new format, in a folder of its own. As root:
/// `cargo test --test golden make_golden -- --ignored`.
#[test]
#[ignore = "makes what the others test against"]
fn make_golden() {
    let folder = data().join("golden-1");
    assert!(is_root() && !folder.exists() && !Path::new(TREE).exists(), "needs root and nothing in its way");
    fs::create_dir_all(&folder).unwrap();
    let key = folder.join("key");
    let plain = Varv::without_repository();
    let encrypted = Varv::without_repository();
    plain.ok(args!["init", "--encryption=none"]);
    encrypted.ok(args!["init", "--encryption=key-file", "--key-file", &key]);
    add_passphrase(&encrypted.repository, &key);
    make_tree(Path::new(TREE));
    for (night, time) in NIGHTS {
        if night == "second" {
            change_tree(Path::new(TREE));
        }
        let Some(device) = Loop::new(&volume(night), 512) else { return };
        symlink(&device.path, VOLUME).unwrap();
        let words = args!["--quiet", "backup", "--host=golden", "--time", time, TREE, VOLUME];
        plain.ok(words);
        encrypted.ok(&[args!["--key-file", &key], words].concat());
        fs::remove_file(VOLUME).unwrap();
        fs::write(folder.join(format!("{night}.tree")), description(Path::new(TREE))).unwrap();
        let listed = &plain.json(args!["ls", "-R", TREE])["entries"];
        fs::write(folder.join(format!("{night}.ls.json")), serde_json::to_string_pretty(listed).unwrap())
            .unwrap();
    }
    for (varv, name) in [(plain, "plain"), (encrypted, "encrypted")] {
        for part in ["index", "locks", "tmp"] {
            let _ = fs::remove_dir_all(varv.repository.join(part));
        }
        assert!(run("cp", &["-r", varv.repository.to_str().unwrap(), folder.join(name).to_str().unwrap()]));
    }
    fs::remove_dir_all(Path::new(TREE).parent().unwrap()).unwrap();
}

/// One that takes neither time nor memory: a test has no secrets.
fn add_passphrase(repository: &Path, key: &Path) {
    let key = Secret::from_key_file(key).unwrap();
    let stop = Stop::default();
    let options = OpenOptions {
        secret: Some(&key),
        intent: Intent::Change,
        lock_wait: Duration::ZERO,
        command: "test",
        cache_dir: None,
        stop: &stop,
    };
    let mut repo = Repo::open(repository, &options).unwrap();
    let salt = hex(&random::<16>().unwrap());
    let kind = SlotKind::Passphrase { salt, memory_kib: 64, passes: 1, lanes: 1 };
    let secret = Secret::Passphrase(Zeroizing::new(PASSPHRASE.into()));
    let slot = repo.keys().wrap_as(&repo.id(), "cheap", kind, Some(&secret)).unwrap();
    repo.change_config(|config| config.slots.push(slot)).unwrap();
}
