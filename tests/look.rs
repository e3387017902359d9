//! `varv ls`, `varv find` and `varv stats` as a user meets them.
#![allow(clippy::unwrap_used)]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// A repository and something to back up.
struct House(TempDir);

impl House {
    fn new() -> Self {
        let house = Self(tempfile::tempdir().unwrap());
        let source = house.source();
        fs::create_dir_all(source.join("docs/deep")).unwrap();
        fs::write(source.join("docs/a.md"), "a".repeat(5000)).unwrap();
        fs::write(source.join("docs/deep/b.md"), "b").unwrap();
        fs::write(source.join("main.rs"), "fn main() {}").unwrap();
        fs::write(source.join(OsStr::from_bytes(b"odd\xff.md")), "odd").unwrap();
        std::os::unix::fs::symlink("main.rs", source.join("link")).unwrap();
        house.done(&["init", "--encryption", "none"]);
        house
    }

    fn source(&self) -> PathBuf {
        self.0.path().join("source")
    }

    fn path(&self, name: &str) -> String {
        self.source().join(name).to_str().unwrap().to_owned()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.run_os(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
    }

    fn run_os(&self, arguments: &[OsString]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_varv"));
        command.env_clear().env("VARV_CACHE_DIR", self.0.path().join("cache"));
        command.arg("-r").arg(self.0.path().join("repository")).args(arguments).output().unwrap()
    }

    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.done(&[&["--json"], arguments].concat())).unwrap()
    }

    fn backup(&self, options: &[&str]) -> String {
        let report = self.json(&[&["backup", &self.path("")], options].concat());
        report["snapshot"].as_str().unwrap().to_owned()
    }
}

fn paths(entries: &Value) -> Vec<String> {
    entries.as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn ls_lists_roots_directories_and_files() {
    let house = House::new();
    house.backup(&[]);
    let source = house.path("").trim_end_matches('/').to_owned();
    assert_eq!(house.done(&["ls"]), format!("{source}\n"));
    let names = ["docs", "link", "main.rs", "odd\\xff.md"].map(|name| format!("{source}/{name}\n"));
    assert_eq!(house.done(&["ls", &source]), names.concat());
    assert_eq!(house.done(&["ls", &house.path("docs/../main.rs")]), format!("{source}/main.rs\n"));
    let all = ["", "/a.md", "/deep", "/deep/b.md"].map(|name| format!("{source}/docs{name}\n"));
    let below = house.done(&["ls", "-R", &house.path("docs")]);
    assert_eq!(below, all[1..].concat());
    assert_eq!(house.run(&["ls", &house.path("nothing")]).status.code(), Some(1));
}

#[test]
fn sources_within_each_other_are_listed_once() {
    let house = House::new();
    house.backup(&[&house.path("docs/deep"), &house.path("main.rs")]);
    let source = house.path("").trim_end_matches('/').to_owned();
    let listed = house.done(&["ls", "-R"]);
    for path in ["", "/docs", "/docs/a.md", "/docs/deep", "/docs/deep/b.md", "/main.rs"] {
        assert_eq!(listed.lines().filter(|line| *line == format!("{source}{path}")).count(), 1, "{listed}");
    }
    let found = |arguments: &[&str]| paths(&house.json(&[&["find"], arguments].concat()));
    assert_eq!(found(&["b.md"]), [house.path("docs/deep/b.md")]);
    assert_eq!(found(&["main.rs"]), [house.path("main.rs")]);
    // Where it is no source of its own, it is found in the other.
    house.backup(&[]);
    assert_eq!(found(&["--all", "b.md"]), vec![house.path("docs/deep/b.md"); 2]);
    // Asked for by its path, all of a source is listed.
    assert!(house.done(&["ls", "-R", &source]).contains("/docs/deep/b.md\n"));
}

#[test]
fn latest_is_the_newest_that_filters_and_path_leave() {
    let house = House::new();
    let web = house.backup(&["--host", "web", "--tag", "old"]);
    let first = house.backup(&["--host", "db"]);
    let report = house.json(&["backup", "--host", "db", &house.path("docs")]);
    let last = report["snapshot"].as_str().unwrap().to_owned();
    let listed = |arguments: &[&str]| {
        let listed = house.json(&[&["ls", "--snapshot", "latest"], arguments].concat());
        listed["snapshot"].as_str().unwrap().to_owned()
    };
    assert_eq!(listed(&[]), last);
    assert_eq!(listed(&["--host", "web"]), web);
    assert_eq!(listed(&["--tag", "old"]), web);
    // Both hosts have it: who names a snapshot need not choose. The last one has another source.
    assert_eq!(listed(&[&house.path("main.rs")]), first);
    assert_eq!(listed(&[&house.path("docs/a.md")]), last);
    let none = house.run(&["ls", "--snapshot", "latest", "--host", "mail"]);
    assert_eq!(none.status.code(), Some(1));
    assert_eq!(house.json(&["stats", "latest", "--host", "web"])["each"][0]["id"], *web);
    let diff = house.run(&["--json", "diff", &web, "latest", &house.path("main.rs")]);
    let diff: Value = serde_json::from_slice(&diff.stdout).unwrap();
    assert_eq!(diff["after"]["snapshot"], *first, "{diff}");
    assert_eq!(house.json(&["protect", "latest"])["snapshots"][0], *last);
    let gone = house.json(&["forget", "--host", "web", "--allow-last", "latest"]);
    assert!(gone.to_string().contains(&web) && !gone.to_string().contains(&last), "{gone}");
}

#[test]
#[allow(clippy::print_stderr)]
fn sums_too_large_to_count_stay_at_the_largest_number() {
    let house = House::new();
    // Where files may be so long.
    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else { return eprintln!("skipped: no /dev/shm") };
    for name in ["a", "b", "c"] {
        if fs::File::create(memory.path().join(name)).unwrap().set_len(7 << 60).is_err() {
            return eprintln!("skipped: files may not have 7 EiB");
        }
    }
    let source = memory.path().to_str().unwrap();
    for _ in 0..2 {
        assert_eq!(house.json(&["backup", source])["bytes_source"], u64::MAX);
    }
    assert_eq!(house.json(&["stats"])["bytes_source"], u64::MAX);
    assert_eq!(house.json(&["ls", source])["entries"][0]["size"], 7_u64 << 60);
    assert_eq!(house.json(&["ls"])["entries"][0]["size"], u64::MAX);
    let target = house.path("restored");
    assert_eq!(house.json(&["restore", "--dry-run", source, &target])["bytes"], u64::MAX);
    assert_eq!(house.json(&["dupes", "--from-repository"])["totals"]["bytes"], u64::MAX);
    assert_eq!(house.json(&["compare", source])["summary"]["new"], 0);
}

#[test]
fn ls_shows_details_in_text_and_json() {
    let house = House::new();
    let id = house.backup(&[]);
    let long = house.done(&["ls", "-l", &house.path("")]);
    let line = |end: &str| long.lines().find(|line| line.ends_with(end)).unwrap().to_owned();
    assert!(line("/docs").starts_with("drwx"));
    assert!(line("/link -> main.rs").starts_with("lrwxrwxrwx"));
    assert!(line("/main.rs").contains(" 12 "));
    let listed = house.json(&["ls", &house.path("")]);
    assert_eq!(listed["snapshot"], *id);
    let entries = listed["entries"].as_array().unwrap();
    assert_eq!(entries[1]["target"], "main.rs");
    assert_eq!(entries[0]["size"], 5001);
    assert_eq!((&entries[0]["kind"], &entries[0]["target"]), (&"directory".into(), &Value::Null));
    assert!(entries[3]["path"].as_str().unwrap().ends_with("/odd\\xff.md"));
}

#[test]
fn names_that_are_not_text_can_be_asked_for() {
    let house = House::new();
    house.backup(&[]);
    let odd = house.source().join(OsStr::from_bytes(b"odd\xff.md")).into_os_string();
    let output = house.run_os(&["ls".into(), odd]);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout.ends_with(b"/odd\\xff.md\n"));
}

#[test]
fn a_path_of_two_series_is_not_guessed_at() {
    let house = House::new();
    let web = house.backup(&["--host", "web", "--label", "one"]);
    let db = house.backup(&["--host", "db", "--label", "one"]);
    let path = house.path("main.rs");
    let refused = house.run(&["ls", &path]);
    assert_eq!(refused.status.code(), Some(2));
    let errors = String::from_utf8(refused.stderr).unwrap();
    for candidate in [&web[..8], &db[..8], "host web, label one", "host db, label one"] {
        assert!(errors.contains(candidate), "{errors}");
    }
    assert_eq!(house.json(&["ls", "--host", "web", &path])["snapshot"], *web);
    assert_eq!(house.json(&["ls", "--snapshot", &db[..12], &path])["snapshot"], *db);
    assert_eq!(house.run(&["ls", "--label", "one", &path]).status.code(), Some(2));
    assert_eq!(house.run(&["ls", "--host", "web", "--snapshot", &db, &path]).status.code(), Some(2));
    assert_eq!(house.run(&["ls", "--host", "mail", &path]).status.code(), Some(1));
}

#[test]
fn the_newest_snapshot_that_has_the_path_is_meant() {
    let house = House::new();
    let first = house.backup(&[]);
    fs::remove_file(house.source().join("main.rs")).unwrap();
    let second = house.backup(&[]);
    assert_eq!(house.json(&["ls", &house.path("main.rs")])["snapshot"], *first);
    assert_eq!(house.json(&["ls", &house.path("docs")])["snapshot"], *second);
    assert_eq!(house.json(&["ls"])["snapshot"], *second);
}

#[test]
fn find_matches_names_and_paths() {
    let house = House::new();
    let first = house.backup(&[]);
    fs::remove_file(house.source().join("docs/a.md")).unwrap();
    let second = house.backup(&[]);
    let found = house.json(&["find", "*.md"]);
    assert_eq!(paths(&found).len(), 2);
    assert!(found.as_array().unwrap().iter().all(|row| row["snapshot"] == *second));
    let found = house.json(&["find", "--all", "*.md"]);
    assert_eq!(paths(&found).len(), 5);
    let found = house.json(&["find", "--snapshot", &first, "docs/*.md"]);
    assert_eq!(paths(&found), [house.path("docs/a.md")]);
    let text = house.done(&["find", "odd*"]);
    assert!(text.starts_with(&second[..8]) && text.ends_with("/odd\\xff.md\n"), "{text}");
    assert_eq!(house.done(&["find", "nothing"]), "");
    assert_eq!(house.json(&["find", "nothing"]), Value::Array(vec![]));
    assert_eq!(house.run(&["find", "[a"]).status.code(), Some(2));
}

#[test]
fn find_all_agrees_with_a_walk_of_each() {
    let house = House::new();
    let ids: Vec<String> = (0..4)
        .map(|night| {
            fs::write(house.source().join(format!("docs/deep/night{night}")), "x").unwrap();
            house.backup(&[])
        })
        .collect();
    let mut expected = Vec::new();
    for id in &ids {
        let all = house.json(&["ls", "-R", "--snapshot", id]);
        let matching = |path: &String| path.rsplit('/').next().unwrap().starts_with("night");
        expected.extend(paths(&all["entries"]).into_iter().filter(matching));
    }
    assert_eq!(paths(&house.json(&["find", "--all", "night*"])), expected);
    assert_eq!(expected.len(), 10);
}

/// Bytes that do not shrink and are nowhere else.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

#[test]
fn stats_say_what_each_snapshot_holds_alone() {
    let house = House::new();
    let write = |name: &str, seed| fs::write(house.source().join(name), noise(seed, 100_000)).unwrap();
    write("kept", 1);
    write("docs/twice", 2);
    write("docs/deep/twice", 2);
    let first = house.backup(&["--time", "2026-01-01T00:00:00Z"]);
    fs::remove_file(house.source().join("docs/twice")).unwrap();
    fs::remove_file(house.source().join("docs/deep/twice")).unwrap();
    write("new", 3);
    house.backup(&["--time", "2026-01-02T00:00:00Z"]);
    house.backup(&["--time", "2026-01-03T00:00:00Z"]);
    let stats = house.json(&["stats"]);
    let each = stats["each"].as_array().unwrap();
    let alone: Vec<u64> = each.iter().map(|row| row["bytes_alone"].as_u64().unwrap()).collect();
    assert_eq!(alone, [100_000, 0, 0]);
    // About: the noise shares a frame with words that do shrink.
    assert!((95_000..105_000).contains(&each[0]["bytes_alone_stored"].as_u64().unwrap()));
    assert_eq!(each[2]["bytes_alone_stored"], 0);
    // The two trees' small files are there as well.
    let distinct = stats["bytes_deduplicated"].as_u64().unwrap();
    assert!((305_000..306_000).contains(&distinct), "{stats}");
    assert_eq!(stats["bytes_unused"], 0);
    let source: u64 = each.iter().map(|row| row["bytes_source"].as_u64().unwrap()).sum();
    assert_eq!(stats["bytes_source"], source);
    let only = house.json(&["stats", &first[..8]]);
    assert_eq!(only["each"].as_array().unwrap().len(), 1);
    assert_eq!(only["bytes_source"], source);
}

#[test]
fn stats_count_what_is_on_the_disk() {
    let house = House::new();
    fs::write(house.source().join("noise"), noise(7, 200_000)).unwrap();
    house.backup(&[]);
    let stats = house.json(&["stats"]);
    let number = |value: &Value| value.as_u64().unwrap();
    let packs = number(&stats["bytes_data"]) + number(&stats["bytes_metadata"]);
    let levels = stats["levels"].as_array().unwrap();
    let frames: u64 = levels.iter().map(|level| number(&level["bytes_stored"])).sum();
    assert!(frames < packs && packs < frames + 10_000, "{stats}");
    assert!(number(&stats["bytes_repository"]) > packs + number(&stats["bytes_index"]));
    let raw = levels.iter().filter(|level| level["kind"] == "data").map(|level| number(&level["bytes_raw"]));
    assert_eq!(raw.sum::<u64>(), number(&stats["bytes_deduplicated"]));
    assert!(levels.iter().all(|level| level["tiers"][0] == "hot"), "{stats}");
    let text = house.done(&["stats"]);
    for word in ["snapshots  1", "metadata", "alone"] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn an_empty_repository_has_stats() {
    let house = House::new();
    let stats = house.json(&["stats"]);
    assert_eq!((&stats["snapshots"], &stats["packs"]), (&0.into(), &0.into()));
    assert_eq!(house.run(&["ls"]).status.code(), Some(1));
    assert_eq!(house.json(&["find", "x"]), Value::Array(vec![]));
}
