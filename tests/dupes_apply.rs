//! `varv dupes --apply`: what a report says is done, nothing else is touched, and no content is lost.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;
use serde_json::Value;
use support::make::Random;
use support::system::Mount;
use support::{Done, Varv, args, chmod};
use tempfile::TempDir;

/// A tree and a report of its duplicates.
struct Plan {
    home: TempDir,
}

const ACTIONS: [&str; 2] = ["--hardlink", "--remove"];

fn varv(words: &[OsString]) -> Done {
    Command::new(env!("CARGO_BIN_EXE_varv")).env_clear().arg("dupes").args(words).output().unwrap().into()
}

impl Plan {
    /// Files by name, content and age in days.
    fn new(files: &[(&str, &str, u64)]) -> Self {
        let plan = Self { home: tempfile::tempdir().unwrap() };
        fs::create_dir(plan.root()).unwrap();
        for (name, content, age) in files {
            let path = plan.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            set_age(&path, *age);
        }
        plan.look(args![]);
        plan
    }

    fn root(&self) -> PathBuf {
        self.home.path().join("tree")
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root().join(name)
    }

    fn report(&self) -> PathBuf {
        self.home.path().join("report")
    }

    fn look(&self, words: &[OsString]) {
        let roots = if words.is_empty() { vec![self.root().into_os_string()] } else { words.to_vec() };
        let done = varv(&[&roots[..], args!["--format", "json", "--empty"]].concat());
        done.expect(0, words);
        fs::write(self.report(), done.stdout).unwrap();
    }

    fn apply(&self, code: i32, words: &[OsString]) -> Done {
        let words = [args!["--apply", self.report()], words].concat();
        let done = varv(&words);
        done.expect(code, &words);
        done
    }

    /// Inode numbers by name.
    fn inodes(&self) -> BTreeMap<Vec<u8>, u64> {
        read(&self.root())
            .into_iter()
            .map(|(name, path)| (name, fs::symlink_metadata(path).unwrap().ino()))
            .collect()
    }

    fn contents(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        contents(&self.root())
    }

    fn names(&self) -> BTreeSet<String> {
        self.contents().into_keys().map(|name| String::from_utf8(name).unwrap()).collect()
    }
}

fn set_age(path: &Path, days: u64) {
    let time = SystemTime::now() - Duration::from_secs(days * 86_400);
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

/// Files below a directory, by their path in it.
fn read(root: &Path) -> BTreeMap<Vec<u8>, PathBuf> {
    let mut out = BTreeMap::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match fs::symlink_metadata(&path).unwrap().is_dir() {
                true => pending.push(path),
                false => {
                    drop(out.insert(path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), path))
                }
            }
        }
    }
    out
}

fn contents(root: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    read(root).into_iter().map(|(name, path)| (name, fs::read(path).unwrap())).collect()
}

const THREE: &[(&str, &str, u64)] =
    &[("b/first", "same", 3), ("a/middle-longer", "same", 9), ("c", "same", 1), ("other", "none", 1)];

#[test]
fn each_rule_keeps_the_file_it_says() {
    let rules =
        [("oldest", "a/middle-longer"), ("newest", "c"), ("shortest-path", "c"), ("first-root", "b/first")];
    for (rule, kept) in rules {
        for action in ACTIONS {
            let plan = Plan::new(THREE);
            plan.look(args![plan.path("b"), plan.root()]);
            let before = plan.inodes();
            plan.apply(0, args![action, "--keep", rule]).says(&[]);
            let after = plan.inodes();
            let expected: BTreeSet<String> = match action {
                "--remove" => [kept.to_owned(), "other".into()].into(),
                _ => THREE.iter().map(|(name, ..)| (*name).to_owned()).collect(),
            };
            assert_eq!(plan.names(), expected, "{rule} {action}");
            let is_kept =
                |(name, inode): (&Vec<u8>, &u64)| name == b"other" || *inode == before[kept.as_bytes()];
            assert!(after.iter().all(is_kept), "{rule} {action}: {after:?}");
        }
    }
}

#[test]
fn what_it_counts_is_what_it_did() {
    let plan = Plan::new(THREE);
    fs::hard_link(plan.path("c"), plan.path("link")).unwrap();
    plan.look(args![]);
    let dry = plan.apply(0, args!["--remove", "--keep", "oldest", "--dry-run", "--json"]).json();
    assert_eq!(plan.names().len(), 5);
    let done = plan.apply(0, args!["--remove", "--keep", "oldest", "--json"]).json();
    for field in ["groups", "files", "names", "bytes", "errors", "action"] {
        assert_eq!(dry[field], done[field], "{field}");
    }
    assert_eq!((&done["groups"], &done["files"], &done["names"]), (&1.into(), &2.into(), &3.into()));
    assert_eq!(plan.names(), ["a/middle-longer".to_owned(), "other".into()].into());
    assert_eq!(
        plan.apply(3, args!["--remove", "--keep", "oldest", "--json"]).json()["files"],
        0,
        "it is done"
    );
}

#[test]
fn a_script_does_what_applying_does() {
    let names: [&[u8]; 6] = [b"a", b"line\nbreak", b"bad\xff", b"it's", b"-rf", b"$(touch x) `y` \"z\" \\"];
    for action in ["--hardlink", "--remove"] {
        let plan = Plan::new(&[]);
        for name in names {
            fs::write(plan.path(OsStr::from_bytes(name)), "same").unwrap();
        }
        plan.look(args![]);
        let before = plan.inodes();
        let script = plan.apply(0, args![action, "--keep", "shortest-path", "--dry-run"]).stdout;
        assert_eq!(plan.inodes(), before, "a dry run changes nothing");
        let path = plan.home.path().join("script");
        fs::write(&path, script).unwrap();
        assert!(Command::new("sh").arg(&path).status().unwrap().success());
        let inodes: BTreeSet<u64> = plan.inodes().into_values().collect();
        assert_eq!(inodes.len(), 1, "{action}");
        assert_eq!(plan.inodes().len(), if action == "--remove" { 1 } else { names.len() });
    }
}

/// What happens to a file after the report, in words and in deed.
type Change = (&'static str, &'static dyn Fn(&Plan));

#[test]
fn what_changed_since_is_left_alone() {
    const LEN: usize = 1000;
    let changes: [Change; 6] = [
        ("longer", &|plan| fs::write(plan.path("other"), "longer").unwrap()),
        ("other bytes, length and time as before", &|plan| {
            let time = fs::metadata(plan.path("other")).unwrap().modified().unwrap();
            fs::write(plan.path("other"), "SAME".repeat(LEN)).unwrap();
            File::options().write(true).open(plan.path("other")).unwrap().set_modified(time).unwrap();
        }),
        ("another file", &|plan| {
            fs::write(plan.path("new"), "same".repeat(LEN)).unwrap();
            fs::rename(plan.path("new"), plan.path("other")).unwrap();
        }),
        ("a symlink", &|plan| {
            fs::rename(plan.path("other"), plan.path("moved")).unwrap();
            symlink("moved", plan.path("other")).unwrap();
        }),
        ("touched", &|plan| set_age(&plan.path("other"), 2)),
        ("gone", &|plan| fs::remove_file(plan.path("other")).unwrap()),
    ];
    for action in ACTIONS {
        for (what, change) in &changes {
            // The one that is kept changes, or the other.
            for keep in ["oldest", "newest"] {
                let content = "same".repeat(LEN);
                let plan = Plan::new(&[("one", &content, 5), ("other", &content, 4)]);
                change(&plan);
                let before = (plan.inodes(), plan.contents());
                let done = plan.apply(3, args![action, "--keep", keep]);
                done.says(&["tree/o"]);
                assert_eq!((plan.inodes(), plan.contents()), before, "{action} {what} {keep}");
            }
        }
    }
}

#[test]
fn references_are_never_touched() {
    let plan =
        Plan::new(&[("kept/a", "same", 1), ("kept/b", "same", 1), ("x/c", "same", 99), ("x/d", "same", 50)]);
    plan.look(args![plan.path("x"), "--reference", plan.path("kept")]);
    plan.apply(0, args!["--remove", "--keep", "oldest"]);
    assert_eq!(plan.names(), ["kept/a".to_owned(), "kept/b".into()].into());
}

#[test]
fn the_last_copy_stays_whatever_a_report_says() {
    let plan = Plan::new(&[("one", "same", 5), ("other", "same", 4)]);
    let report = fs::read_to_string(plan.report()).unwrap();
    // One file twice: by another name of it, and by the same.
    fs::remove_file(plan.path("other")).unwrap();
    fs::hard_link(plan.path("one"), plan.path("other")).unwrap();
    let mut forged: Value = serde_json::from_str(&report).unwrap();
    let one = forged["groups"][0]["files"]
        .as_array()
        .unwrap()
        .iter()
        .find(|f| f["path"].as_str().unwrap().ends_with("one"))
        .unwrap()
        .clone();
    let mut link = one.clone();
    link["path"] = plan.path("other").to_str().unwrap().into();
    for second in [one.clone(), link] {
        forged["groups"][0]["files"] = Value::Array(vec![one.clone(), second]);
        fs::write(plan.report(), forged.to_string()).unwrap();
        for action in ACTIONS {
            plan.apply(0, args![action, "--keep", "oldest"]);
            assert_eq!(plan.names().len(), 2, "{action}");
        }
    }
}

#[test]
fn hard_links_take_no_metadata_away() {
    let plan = Plan::new(&[("one", "same", 5), ("other", "same", 4)]);
    chmod(&plan.path("other"), 0o600);
    plan.look(args![]);
    let before = plan.inodes();
    plan.apply(3, args!["--hardlink", "--keep", "oldest"]).says(&["owner or mode"]);
    assert_eq!(plan.inodes(), before);
}

#[test]
fn what_is_no_report_is_refused_before_anything_is_done() {
    let plan = Plan::new(&[("a1", "aaaa", 1), ("a2", "aaaa", 1), ("b1", "bb", 1), ("b2", "bb", 1)]);
    let whole = fs::read(plan.report()).unwrap();
    let before = plan.inodes();
    for bad in [&whole[..whole.len() - 20], b"{}", b"[]", b"", b"{\"groups\":[{\"bytes\":1}]}"] {
        fs::write(plan.report(), bad).unwrap();
        plan.apply(2, args!["--remove", "--keep", "oldest"]).says(&["is no report"]);
    }
    fs::write(plan.report(), &whole).unwrap();
    plan.apply(2, args!["--remove"]).says(&["--keep"]);
    plan.apply(2, args!["--keep", "oldest"]).says(&["--hardlink"]);
    plan.apply(2, args!["--keep", "oldest", "--remove", "--hardlink"]);
    assert_eq!(plan.inodes(), before);

    let repository = Varv::new();
    repository.backup(args![plan.root()]);
    let stored = repository.ok(args!["dupes", "--from-repository", "--json"]).stdout;
    fs::write(plan.report(), stored).unwrap();
    plan.apply(2, args!["--remove", "--keep", "oldest"]).says(&["report of snapshots"]);
    assert_eq!(plan.inodes(), before);
}

/// A file system on which files can share bytes, or a message.
fn shared_bytes(home: &Path) -> Option<(Mount, PathBuf)> {
    support::system::root_or_skip()?;
    let (image, point) = (home.join("image"), home.join("mounted"));
    File::create(&image).unwrap().set_len(400 << 20).unwrap();
    fs::create_dir(&point).unwrap();
    let made = support::system::run("mkfs.xfs", &["-q", image.to_str().unwrap()])
        || support::system::run("mkfs.btrfs", &["-q", image.to_str().unwrap()]);
    let mount = made.then(|| Mount::new(&["-o", "loop", image.to_str().unwrap()], &point)).flatten();
    let mount = mount.or_else(|| support::system::skip("no file system that can share bytes"))?;
    Some((mount, point))
}

#[test]
fn bytes_are_shared_and_metadata_kept() {
    let home = tempfile::tempdir().unwrap();
    let Some((_mount, point)) = shared_bytes(home.path()) else { return };
    let bytes = vec![7u8; 300_000];
    for (name, age) in [("one", 5), ("other", 3)] {
        fs::write(point.join(name), &bytes).unwrap();
        set_age(&point.join(name), age);
    }
    fs::hard_link(point.join("other"), point.join("second")).unwrap();
    chmod(&point.join("other"), 0o640);
    File::open(point.join("other")).unwrap().sync_all().unwrap();
    let report = home.path().join("report");
    fs::write(&report, varv(args![&point, "--format", "json"]).stdout).unwrap();
    let before = fs::metadata(point.join("other")).unwrap();
    varv(args!["--apply", &report, "--reflink", "--keep", "oldest"]).expect(0, args![]);
    let after = fs::metadata(point.join("other")).unwrap();
    assert_ne!(before.ino(), after.ino());
    assert_eq!(
        (before.mode(), before.mtime(), before.mtime_nsec()),
        (after.mode(), after.mtime(), after.mtime_nsec())
    );
    assert_eq!(after.ino(), fs::metadata(point.join("second")).unwrap().ino(), "links stay links");
    assert_eq!(fs::read(point.join("other")).unwrap(), bytes);
    let found = varv(args![&point, "--json"]).json();
    assert_eq!((&found["groups"][0]["copies"], &found["totals"]["bytes_wasted"]), (&1.into(), &0.into()));
    assert_eq!(fs::read_dir(&point).unwrap().count(), 3, "nothing is left beside them");
}

#[test]
fn where_bytes_cannot_be_shared_nothing_is_touched() {
    let plan = Plan { home: tempfile::tempdir_in("/dev/shm").unwrap() };
    fs::create_dir(plan.root()).unwrap();
    for name in ["one", "other"] {
        fs::write(plan.path(name), "same").unwrap();
    }
    plan.look(args![]);
    let before = plan.inodes();
    plan.apply(3, args!["--reflink", "--keep", "newest"]).says(&["share bytes"]);
    assert_eq!(plan.inodes(), before);
}

/// Kills until one run ends by itself; all contents are there after each.
#[test]
fn killed_in_the_middle_nothing_is_lost() {
    let mut random = Random(std::process::id().into());
    for action in ACTIONS {
        let plan = Plan::new(&[]);
        for number in 0..600 {
            fs::write(plan.path(number.to_string()), format!("{}", number % 40).repeat(100)).unwrap();
        }
        let all: BTreeSet<Vec<u8>> = plan.contents().into_values().collect();
        let mut usual = 20_000;
        for round in 0..30 {
            plan.look(args![]);
            let mut child = Command::new(env!("CARGO_BIN_EXE_varv"))
                .args([OsStr::new("dupes"), "--apply".as_ref(), plan.report().as_os_str(), action.as_ref()])
                .args(["--keep", "oldest", "-q"])
                .spawn()
                .unwrap();
            let started = Instant::now();
            std::thread::sleep(Duration::from_micros(random.below(usual)));
            child.kill().unwrap();
            let ended = child.wait().unwrap().success();
            let left: BTreeSet<Vec<u8>> = plan.contents().into_values().collect();
            assert_eq!(left, all, "{action} in round {round}");
            if ended {
                usual = (started.elapsed().as_micros() as u64).max(1000);
                break;
            }
        }
        plan.look(args![]);
        plan.apply(0, args![action, "--keep", "oldest"]);
        let inodes: BTreeSet<u64> = plan.inodes().into_values().collect();
        assert_eq!(inodes.len(), 40, "{action}");
        assert!(plan.names().iter().all(|name| !name.contains("varv")), "{action}: {:?}", plan.names());
        assert!(usual > 0);
    }
}

/// Files, links to some of them, and what is there in the end.
type Left = (&'static [(&'static str, &'static str, u64)], &'static [(&'static str, &'static str)]);

#[test]
fn what_a_killed_run_left_goes_with_the_next() {
    const LEFT: &str = ".varv-dupes-0123456789abcdef-b";
    // A file that was set aside, or replaced; a link that was to be exchanged; both at once.
    let cases: [Left; 3] = [
        (&[("aa", "same", 5), (LEFT, "same", 9)], &[]),
        (&[("aa", "same", 5), ("b", "same", 4)], &[("aa", LEFT)]),
        (
            &[("aa", "same", 5), ("b", "same", 4), (LEFT, "same", 9)],
            &[("b", ".varv-dupes-0000000000000000-c")],
        ),
    ];
    for action in ACTIONS {
        for (files, links) in cases {
            let plan = Plan::new(files);
            for (from, to) in links {
                fs::hard_link(plan.path(from), plan.path(to)).unwrap();
            }
            plan.look(args![]);
            let script = plan.apply(0, args![action, "--keep", "oldest", "--dry-run"]).stdout;
            plan.apply(0, args![action, "--keep", "oldest"]);
            let own = files.iter().map(|(name, ..)| (*name).to_owned()).filter(|name| *name != LEFT);
            let mut expected: BTreeSet<String> = own.collect();
            if action == "--remove" {
                expected = ["aa".to_owned()].into();
            }
            assert_eq!(plan.names(), expected, "{action} {files:?}");
            assert!(String::from_utf8(script).unwrap().contains("rm -- "), "{action} {files:?}");
        }
    }
}

#[test]
fn what_a_killed_run_left_is_named_and_never_taken_for_rubbish() {
    const LEFT: &str = ".varv-dupes-0123456789abcdef-b";
    let plan = Plan::new(&[(LEFT, "the only copy", 1), ("aa", "same", 5), ("b", "same", 4)]);
    let done = varv(args![plan.root()]);
    done.expect(0, args![]);
    done.says(&["1 files were set aside by a run of --apply that was killed", LEFT]);
    plan.apply(0, args!["--remove", "--keep", "oldest"]);
    assert_eq!(plan.names(), [LEFT.to_owned(), "aa".into()].into());
}

/// A file below an overlay's upper or lower directory, and the same as the overlay shows it.
#[test]
fn one_file_in_two_places_is_not_removed() {
    let home = tempfile::tempdir_in("/dev/shm").unwrap();
    let dir = |name: &str| {
        let path = home.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(dir);
    fs::write(upper.join("a"), "only in the upper").unwrap();
    fs::write(lower.join("b"), "only in the lower").unwrap();
    let option = |name: &str, path: &Path| format!("{name}={}", path.display());
    let options =
        [option("lowerdir", &lower), option("upperdir", &upper), option("workdir", &work)].join(",");
    let Some(_mount) = Mount::new(&["-t", "overlay", "-o", &options, "none"], &merged) else { return };
    let report = home.path().join("report");
    for roots in [[&upper, &lower, &merged], [&merged, &upper, &lower]] {
        let [first, second, third] = roots;
        fs::write(&report, varv(args![first, second, third, "--json"]).stdout).unwrap();
        varv(args!["--apply", &report, "--remove", "--keep", "first-root"]);
        assert_eq!(fs::read(upper.join("a")).unwrap(), b"only in the upper");
        assert_eq!(fs::read(lower.join("b")).unwrap(), b"only in the lower");
        let left = fs::read_dir(&upper).unwrap().chain(fs::read_dir(&lower).unwrap());
        assert!(left.map(|entry| entry.unwrap().file_name()).all(|name| name.len() == 1));
    }
}

/// Files that not even root may change, and a file system on which nobody may.
#[test]
fn what_cannot_be_changed_is_named_and_the_rest_done() {
    let plan = Plan::new(&[]);
    let Some(_mount) = Mount::tmpfs(16, &plan.root()) else { return };
    let names = ["a", "locked/b", "c"];
    fs::create_dir(plan.path("locked")).unwrap();
    names.iter().for_each(|name| fs::write(plan.path(name), "same").unwrap());
    let words = ["-o", "bind", plan.path("locked").to_str().unwrap()].map(str::to_owned);
    let Some(_bind) = Mount::new(&words.each_ref().map(String::as_str), &plan.path("locked")) else { return };
    assert!(support::system::run("mount", &["-o", "remount,bind,ro", plan.path("locked").to_str().unwrap()]));
    for action in ACTIONS {
        plan.look(args![]);
        plan.apply(3, args![action, "--keep", "shortest-path"]).says(&["locked/b", "Read-only"]);
        let inodes = plan.inodes();
        assert_eq!(
            inodes.get(&b"c"[..]).is_some_and(|inode| *inode == inodes[&b"a"[..]]),
            action == "--hardlink"
        );
        assert_eq!(plan.contents()[&b"locked/b"[..]], b"same");
        assert!(plan.names().iter().all(|name| !name.contains("varv")), "{action}: {:?}", plan.names());
        let _ = fs::remove_file(plan.path("c"));
        fs::write(plan.path("c"), "same").unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn contents_stay_and_duplicates_go(
        files in prop::collection::btree_map("[a-c]{1}/[a-z]{2}", (0u8..6, 0u64..5), 0..40),
        action in prop::sample::select(&ACTIONS[..]),
        keep in prop::sample::select(vec!["oldest", "newest", "first-root", "shortest-path"]),
    ) {
        let files: Vec<(String, String, u64)> =
            files.into_iter().map(|(name, (content, age))| (name, content.to_string().repeat(70_000), age)).collect();
        let files: Vec<(&str, &str, u64)> = files.iter().map(|(a, b, c)| (a.as_str(), b.as_str(), *c)).collect();
        let plan = Plan::new(&files);
        let before = plan.contents();
        plan.apply(0, args![action, "--keep", keep]);
        let after = plan.contents();
        let distinct = |files: &BTreeMap<Vec<u8>, Vec<u8>>| files.values().cloned().collect::<BTreeSet<_>>();
        prop_assert_eq!(distinct(&after), distinct(&before));
        if action == "--hardlink" {
            prop_assert_eq!(&after, &before);
        }
        let inodes: BTreeSet<u64> = plan.inodes().into_values().collect();
        prop_assert_eq!(inodes.len(), distinct(&after).len());
    }
}
