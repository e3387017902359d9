//! Times, versions and differences as a user meets them.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use support::make::{Random, bytes, change, overwrite, touch, tree};
use support::tree::{Tree, read};
use support::{Varv, args};

/// A repository with a few nights of one directory.
struct Nights {
    varv: Varv,
    source: PathBuf,
}

impl Nights {
    fn new() -> Self {
        let varv = Varv::new();
        let source = varv.dir("source");
        Self { varv, source }
    }

    /// A backup of that time; its id.
    fn night(&self, time: &str) -> String {
        let done = self.varv.backup(args!["--time", time, &self.source]);
        done["snapshot"].as_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.source.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// The content of `path` at a time.
    fn at(&self, time: &str, path: &Path) -> String {
        String::from_utf8(self.varv.ok(args!["dump", "--at", time, path]).stdout).unwrap()
    }
}

fn changes(report: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let rows = report["changes"].as_array().unwrap();
    rows.iter().map(|row| (text(&row["path"]), text(&row["change"]))).collect()
}

/// What a comparison says as JSON, with exit code 5 if it differs.
fn differing(varv: &Varv, words: &[std::ffi::OsString]) -> Value {
    let done = varv.run(&[args!["--json"], words].concat());
    let report = done.json();
    let is_empty = report["changes"].as_array().unwrap().is_empty();
    done.expect(if is_empty { 0 } else { 5 }, words);
    report
}

#[test]
fn the_snapshot_of_a_time() {
    let nights = Nights::new();
    let file = nights.write("file", "one");
    let other = nights.write("other", "x");
    nights.night("2026-01-01T03:00:00Z");
    fs::write(&file, "two").unwrap();
    nights.night("2026-01-02T03:00:00Z");
    fs::remove_file(&file).unwrap();
    nights.night("2026-01-03T03:00:00Z");
    fs::write(&file, "four").unwrap();
    nights.night("2026-01-04T03:00:00Z");
    for (time, content) in [
        ("now", "four"),
        ("2026-01-04T03:00:00Z", "four"),
        // It was deleted: the newest that has it.
        ("2026-01-04T02:59:59Z", "two"),
        ("2026-01-03T12:00:00+02:00", "two"),
        ("2026-01-02T02:59:59Z", "one"),
        ("2025-01-01", "one"),
        ("0", "one"),
        ("0B", "four"),
        ("1B", "two"),
        ("2B", "one"),
        ("9B", "one"),
    ] {
        assert_eq!(nights.at(time, &file), content, "{time}");
    }
    let varv = &nights.varv;
    varv.ok(args!["dump", "--at", "9B", &file]).says(&["no snapshot as old as that"]);
    varv.ok(args!["dump", "--at", "2025-01-01", &file]).says(&["no snapshot as old as that"]);
    assert!(varv.ok(args!["dump", "--at", "2B", &file]).stderr.is_empty());
    assert_eq!(nights.at("3B", &other), "x");
    let target = varv.path("target");
    varv.restore(args!["--at", "2026-01-03T12:00:00Z", &nights.source, &target]);
    assert!(target.join("other").exists() && !target.join("file").exists());
    let listed = varv.json(args!["ls", "--at", "2026-01-02T12:00:00Z"]);
    assert_eq!(listed["snapshot"], varv.snapshots()[1]["id"]);
    let found = varv.json(args!["find", "--at", "2026-01-02T12:00:00Z", "file"]);
    assert_eq!(found[0]["snapshot"], varv.snapshots()[1]["id"]);
    assert_eq!(varv.json(args!["find", "--at", "1B", "file"]), json!([]));
}

#[test]
fn bad_times_are_refused_with_an_example() {
    let nights = Nights::new();
    let file = nights.write("file", "one");
    let id = nights.night("2026-01-01T03:00:00Z");
    for time in ["", "hello", "-1", "3d", "2026-02-29", "B", "99999999999999999999D"] {
        let at = format!("--at={time}");
        assert!(!nights.varv.ends(2, args!["dump", at, &file]).stderr.is_empty());
    }
    nights.varv.ends(2, args!["dump", "--at", "yesterday", &file]).says(&["2026-11-20", "3D", "2B"]);
    nights.varv.ends(2, args!["dump", "--at", "now", "--snapshot", id, &file]);
    nights.varv.ends(2, args!["backup", "--time", "2B", &nights.source]).says(&["counts backups"]);
}

#[test]
fn a_time_does_not_choose_between_hosts() {
    let nights = Nights::new();
    let file = nights.write("file", "web");
    nights.varv.backup(args!["--host", "web", "--time", "2026-01-01T03:00:00Z", &nights.source]);
    fs::write(&file, "db").unwrap();
    nights.varv.backup(args!["--host", "db", "--time", "2026-01-02T03:00:00Z", &nights.source]);
    for words in [
        args!["dump", "--at", "2026-01-01T12:00:00Z", &file],
        args!["history", &file],
        args!["changes", "--since", "1B", &file],
        args!["changes", "--since", "1B"],
        args!["diff", "1B", "0B"],
    ] {
        nights.varv.ends(2, words).says(&["host web", "host db", "--host"]);
    }
    assert_eq!(nights.varv.ok(args!["dump", "--host", "web", "--at", "now", &file]).stdout, b"web");
    assert_eq!(nights.varv.ok(args!["dump", "--host", "db", "--at", "0", &file]).stdout, b"db");
}

#[test]
fn every_version_of_a_path() {
    let nights = Nights::new();
    let file = nights.write("dir/file", "");
    let content = bytes(1, 300_000);
    fs::write(&file, &content).unwrap();
    nights.night("2026-01-01T03:00:00Z");
    nights.night("2026-01-02T03:00:00Z");
    overwrite(&file, 150_000, b"changed");
    nights.night("2026-01-03T03:00:00Z");
    fs::remove_file(&file).unwrap();
    nights.night("2026-01-04T03:00:00Z");
    nights.night("2026-01-05T03:00:00Z");
    fs::create_dir(&file).unwrap();
    nights.night("2026-01-06T03:00:00Z");
    fs::remove_dir(&file).unwrap();
    fs::write(&file, &content).unwrap();
    nights.night("2026-01-07T03:00:00Z");
    touch(&file, 1_000_000_000, 0);
    nights.night("2026-01-08T03:00:00Z");
    // Something else of the same label, without the path's root.
    let elsewhere = nights.varv.dir("elsewhere");
    nights.varv.backup(args!["--time", "2026-01-09T03:00:00Z", &elsewhere]);

    let history = nights.varv.json(args!["history", &file]);
    assert_eq!(history["path"], file.to_str().unwrap());
    let versions = history["versions"].as_array().unwrap();
    let words = |name: &str| versions.iter().map(|row| row[name].clone()).collect::<Vec<_>>();
    assert_eq!(words("change"), ["created", "changed", "deleted", "created", "changed", "changed"]);
    assert_eq!(words("snapshots"), [2, 1, 2, 1, 1, 1]);
    let kinds = [json!("file"), json!("file"), Value::Null, json!("directory"), json!("file"), json!("file")];
    assert_eq!(words("kind"), kinds);
    assert_eq!(words("what")[1], json!(["content", "metadata"]));
    assert_eq!(words("what")[4][0], "kind");
    assert_eq!(words("what")[5], json!(["metadata"]));
    let anew: Vec<Option<u64>> = versions.iter().map(|row| row["bytes_new"].as_u64()).collect();
    assert_eq!(anew[0], Some(300_000));
    assert!(anew[1].is_some_and(|bytes| bytes > 0 && bytes <= 3 * 65_536), "{anew:?}");
    assert_eq!(anew[2], None);
    assert_eq!(anew[4], Some(0), "its chunks are those of the first version");
    assert_eq!(versions[0]["last_time"], "2026-01-02T03:00:00+00:00");
    assert_eq!(versions[2]["bytes"], Value::Null);

    let of_dir = nights.varv.json(args!["history", file.parent().unwrap()]);
    assert_eq!(of_dir["versions"].as_array().unwrap().len(), 6);
    let text = nights.varv.ok(args!["history", &file]).stdout;
    assert_eq!(text.iter().filter(|&&byte| byte == b'\n').count(), 6);
    nights.varv.ends(1, args!["history", nights.source.join("nothing")]);
}

#[test]
fn what_changed_since() {
    let nights = Nights::new();
    let [kept, edited, gone] = ["kept", "edited", "gone"].map(|name| nights.write(name, name));
    let below = nights.write("dir/below", "b");
    nights.night("2026-01-01T03:00:00Z");
    fs::write(&edited, "other").unwrap();
    fs::remove_file(&gone).unwrap();
    let added = nights.write("added/file", "new");
    nights.night("2026-01-02T03:00:00Z");
    fs::remove_dir_all(below.parent().unwrap()).unwrap();
    nights.night("2026-01-03T03:00:00Z");
    let varv = &nights.varv;
    let shown = |path: &Path| path.to_str().unwrap().to_owned();
    let expect = |report: &Value, rows: &[(&Path, &str)]| {
        let mut found = changes(report);
        // Directories whose entries came or went have another time of modification.
        found.remove(&shown(&nights.source));
        let rows = rows.iter().map(|(path, change)| (shown(path), change.to_string()));
        assert_eq!(found, rows.collect::<BTreeMap<_, _>>());
    };
    let first = differing(varv, args!["changes", "--since", "2026-01-01T12:00:00Z", "--at", "1B"]);
    let of_night = [
        (added.as_path(), "new"),
        (added.parent().unwrap(), "new"),
        (edited.as_path(), "changed"),
        (gone.as_path(), "deleted"),
    ];
    expect(&first, &of_night);
    assert_eq!(first["summary"]["new"], 2);
    assert_eq!(first["compared"][0]["path"], shown(&nights.source));
    assert_eq!(first["compared"][0]["after"]["snapshot"], varv.snapshots()[1]["id"]);
    let all = differing(varv, args!["changes", "--since", "2B"]);
    let of_both = [&of_night[..], &[(&below, "deleted"), (below.parent().unwrap(), "deleted")]].concat();
    expect(&all, &of_both);
    // The path is gone, but its history is not.
    let of_path = differing(varv, args!["changes", "--since", "2B", &below]);
    assert_eq!(changes(&of_path), BTreeMap::from([(shown(&below), "deleted".to_owned())]));
    assert!(changes(&differing(varv, args!["changes", "--since", "2B", &kept])).is_empty());
    assert!(changes(&differing(varv, args!["changes", "--since", "now"])).is_empty());
    varv.ends(2, args!["changes", "--since", "0B", "--at", "1B"]).says(&["later than --at"]);
    varv.ends(2, args!["changes"]);
    varv.ends(5, args!["changes", "--since", "2020-01-01"]).says(&["no snapshot as old as that"]);
    // Roots that are backed up by turns have histories of their own.
    let elsewhere = varv.dir("elsewhere");
    varv.backup(args!["--time", "2026-01-04T03:00:00Z", &elsewhere]);
    expect(&differing(varv, args!["changes", "--since", "2026-01-01T12:00:00Z"]), &of_both);
}

#[test]
fn snapshots_are_named_by_id_or_time() {
    let nights = Nights::new();
    let file = nights.write("file", "one");
    let first = nights.night("2026-01-01T03:00:00Z");
    fs::write(&file, "two").unwrap();
    let second = nights.night("2026-01-02T03:00:00Z");
    let varv = &nights.varv;
    let by_id = differing(varv, args!["diff", &first, &second[..12], &file]);
    assert_eq!((&by_id["before"]["snapshot"], &by_id["after"]["snapshot"]), (&json!(first), &json!(second)));
    assert_eq!(by_id["changes"][0]["bytes_differing"], 3);
    assert_eq!(by_id["changes"][0]["ranges"], json!([{ "offset": 0, "len": 3 }]));
    assert_eq!(differing(varv, args!["diff", "2026-01-01T12:00:00Z", "now", &file]), by_id);
    assert_eq!(differing(varv, args!["diff", "1B", "0B", &file]), by_id);
    assert!(changes(&differing(varv, args!["diff", &first, &first])).is_empty());
    assert_eq!(changes(&differing(varv, args!["diff", &second, &first])).len(), 1);
    varv.ends(2, args!["diff", "yesterday", "now"]).says(&["neither the id of a snapshot nor a time"]);
    varv.ends(1, args!["diff", "abcdabcdef", "now"]);
    varv.ends(1, args!["diff", "1B", "0B", nights.source.join("nothing")]);
}

#[test]
fn ranges_of_long_files() {
    let nights = Nights::new();
    let file = nights.source.join("image");
    let len: u64 = 64 << 20;
    support::make::sparse_file(&file, len, &[(0, &bytes(1, 8 << 20)), (40 << 20, &bytes(2, 8 << 20))]);
    nights.night("2026-01-01T03:00:00Z");
    let places: [u64; 3] = [1 << 20, 20 << 20, 44 << 20];
    places.iter().for_each(|place| overwrite(&file, *place, &bytes(9, 4096)));
    nights.night("2026-01-02T03:00:00Z");
    let report = differing(&nights.varv, args!["diff", "1B", "0B", &file]);
    let row = &report["changes"][0];
    let ranges: Vec<(u64, u64)> = row["ranges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|range| (range["offset"].as_u64().unwrap(), range["len"].as_u64().unwrap()))
        .collect();
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    assert_eq!(row["ranges_count"], 3);
    for (place, (offset, len)) in places.iter().zip(&ranges) {
        assert!(*offset <= *place && place + 4096 <= offset + len, "{place} in {ranges:?}");
        assert!(*len <= 4 * 65_536, "{ranges:?}");
    }
    let sum: u64 = ranges.iter().map(|(_, len)| len).sum();
    assert_eq!(row["bytes_differing"], sum);
    // What is cut off or added is a range too.
    fs::File::options().write(true).open(&file).unwrap().set_len(len - 4096).unwrap();
    nights.night("2026-01-03T03:00:00Z");
    let report = differing(&nights.varv, args!["diff", "1B", "0B", &file]);
    assert_eq!(report["changes"][0]["ranges"], json!([{ "offset": len - 4096, "len": 4096 }]));
}

#[test]
fn only_its_holes_differ() {
    let nights = Nights::new();
    let file = nights.source.join("image");
    fs::write(&file, vec![0; 1 << 20]).unwrap();
    touch(&file, 1_000_000_000, 0);
    nights.night("2026-01-01T03:00:00Z");
    if !support::make::punch_hole(&file, 0, 1 << 20) {
        return;
    }
    touch(&file, 1_000_000_000, 0);
    nights.night("2026-01-02T03:00:00Z");
    let report = differing(&nights.varv, args!["diff", "1B", "0B", &file]);
    assert_eq!(report["changes"][0]["what"], json!(["holes"]));
}

/// What a look at all of both says.
fn naive(before: &Tree, after: &Tree, root: &Path) -> BTreeMap<String, String> {
    let shown = |path: &[u8]| format!("{}{}", root.display(), std::str::from_utf8(path).unwrap());
    let mut found = BTreeMap::new();
    for (path, node) in before {
        match after.get(path) {
            None => drop(found.insert(shown(path), "deleted".into())),
            Some(now) => {
                let same = (node.mode, node.owner, node.modified, &node.content, &node.xattrs)
                    == (now.mode, now.owner, now.modified, &now.content, &now.xattrs);
                if !same {
                    found.insert(shown(path), "changed".into());
                }
            }
        }
    }
    for path in after.keys().filter(|path| !before.contains_key(*path)) {
        found.insert(shown(path), "new".into());
    }
    found
}

#[test]
fn differences_are_those_of_a_naive_comparison() {
    let nights = Nights::new();
    let source = &nights.source;
    let mut random = Random(7);
    tree(source, 1);
    // Directories of many nodes, whose ends move.
    let crowd = source.join("crowd");
    fs::create_dir(&crowd).unwrap();
    for number in 0..3000 {
        fs::write(crowd.join(format!("{number:04}")), b"x").unwrap();
    }
    let mut trees = Vec::new();
    for night in 0..6 {
        nights.night(&format!("2026-01-{:02}T03:00:00Z", night + 1));
        trees.push(read(source));
        change(source, &mut random);
        for _ in 0..40 {
            let path = crowd.join(format!("{:04}", random.below(3300)));
            match random.below(3) {
                0 => drop(fs::remove_file(path)),
                1 => fs::write(path, random.text(20)).unwrap(),
                _ if path.exists() => touch(&path, random.below(1 << 30) as i64, 0),
                _ => {}
            }
        }
        if night == 3 {
            fs::remove_dir_all(source.join("docs")).unwrap();
            fs::write(source.join("docs"), "a file now").unwrap();
        }
        if night == 4 {
            fs::remove_file(source.join("docs")).unwrap();
            fs::create_dir(source.join("docs")).unwrap();
        }
    }
    let ids: Vec<String> =
        nights.varv.snapshots().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect();
    let mut checked = 0;
    for (a, before) in trees.iter().enumerate() {
        for (b, after) in trees.iter().enumerate() {
            let report = differing(&nights.varv, args!["diff", &ids[a], &ids[b]]);
            let expected = naive(before, after, source);
            assert_eq!(changes(&report), expected, "{a} and {b}");
            checked += expected.len();
        }
    }
    assert!(checked > 1000, "{checked}");
    // Nothing else is in the repository: what a version of all of it stored anew is what its backup did.
    let versions = nights.varv.json(args!["history", source]);
    let anew = |rows: &Value, of: &dyn Fn(&Value) -> u64| {
        rows.as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    let counted = anew(&versions["versions"], &|row| row["bytes_new"].as_u64().unwrap());
    let stored = nights.varv.json(args!["snapshots"]);
    assert_eq!(counted, anew(&stored, &|row| row["stats"]["bytes_new"].as_u64().unwrap()));
}

#[test]
fn what_is_gone_since_is_said() {
    let varv = Varv::new();
    let [source, other] = ["source", "other"].map(|name| varv.dir(name));
    fs::write(source.join("file"), "file").unwrap();
    varv.backup(args!["--time", "2026-01-01", &source]);
    fs::remove_file(source.join("file")).unwrap();
    varv.backup(args!["--time", "2026-01-02", &source]);
    // Of another root: says nothing about this one.
    varv.backup(args!["--time", "2026-01-03", &other]);
    let file = source.join("file");
    let newest = varv.snapshots()[1]["id"].as_str().unwrap()[..8].to_string();
    for words in [args!["dump", &file], args!["dump", "--at", "now", &file]] {
        let done = varv.ok(words);
        assert_eq!(done.stdout, b"file");
        done.says(&[&newest, "does not have it any more"]);
    }
    for words in [args!["dump", "--at", "2026-01-01", &file], args!["dump", "--at", "0B", &file]] {
        varv.ok(words).is_silent();
    }
    varv.ok(args!["ls", &source]).is_silent();
}

#[test]
fn an_id_of_another_host_or_label_is_refused() {
    let varv = Varv::new();
    let source = varv.dir("source");
    for label in ["a", "b"] {
        varv.backup(args!["--label", label, &source]);
    }
    let ids: Vec<String> =
        varv.snapshots().iter().map(|row| row["id"].as_str().unwrap().to_string()).collect();
    varv.ok(args!["diff", &ids[0], &ids[1]]);
    for filter in [["--label", "a"], ["--tag", "x"], ["--host", "x"]] {
        varv.ends(2, args!["diff", &ids[0], &ids[1], filter[0], filter[1]]).says(&["is not of the host"]);
    }
}
