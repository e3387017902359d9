//! Comparing sources with snapshots, verifying snapshots, and what a backup says of itself.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use serde_json::{Value, json};

use support::make::{Random, bytes, change, overwrite, sparse_file, touch, tree};
use support::system::Loop;
use support::tree::read;
use support::{Varv, args};

const METHODS: [&str; 3] = ["meta", "hash", "full"];

fn compare(varv: &Varv, words: &[OsString]) -> Value {
    let done = varv.run(&[args!["--json", "compare"], words].concat());
    let report = done.json();
    let is_empty = report["changes"].as_array().unwrap().is_empty();
    done.expect(if is_empty { 0 } else { 5 }, words);
    report
}

fn changes(report: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let rows = report["changes"].as_array().unwrap();
    rows.iter().map(|row| (text(&row["path"]), text(&row["change"]))).collect()
}

#[test]
fn an_unchanged_source_is_the_same_by_every_method() {
    let varv = Varv::new();
    let source = varv.dir("source");
    tree(&source, 1);
    fs::write(source.join("long"), bytes(3, 5 << 20)).unwrap();
    varv.backup(args![&source]);
    for method in METHODS {
        let report = compare(&varv, args!["--method", method, &source]);
        assert!(changes(&report).is_empty(), "{method}: {report}");
        let summary = &report["summary"];
        assert_eq!((&summary["errors"], &report["method"]), (&json!(0), &json!(method)));
        assert_eq!(summary["bytes_compared"] == 0, method == "meta");
        let one = compare(&varv, args!["--method", method, source.join("long")]);
        assert!(changes(&one).is_empty(), "{method}");
        assert!(changes(&compare(&varv, args!["--method", method, source.join("src")])).is_empty());
    }
}

#[test]
fn metadata_cannot_see_what_hash_and_full_see() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let (short, long) = (source.join("short"), source.join("long"));
    fs::write(&short, "one").unwrap();
    sparse_file(&long, 8 << 20, &[(0, &bytes(1, 1 << 20)), (6 << 20, &bytes(2, 1 << 20))]);
    for path in [&short, &long, &source] {
        touch(path, 1_000_000_000, 0);
    }
    varv.backup(args![&source]);
    fs::write(&short, "two").unwrap();
    // In data, and in a hole.
    overwrite(&long, 6 << 20, b"changed");
    overwrite(&long, 3 << 20, b"changed");
    for path in [&short, &long, &source] {
        touch(path, 1_000_000_000, 0);
    }
    assert!(changes(&compare(&varv, args![&source])).is_empty());
    for method in ["hash", "full"] {
        let report = compare(&varv, args!["--method", method, &source]);
        let rows = report["changes"].as_array().unwrap();
        assert_eq!(rows.len(), 2, "{method}: {report}");
        assert!(rows.iter().all(|row| row["what"] == json!(["content"])), "{report}");
        let ranges = rows[0]["ranges"].as_array().unwrap();
        let holds = |at: u64| {
            ranges.iter().any(|range| {
                let (offset, len) = (range["offset"].as_u64().unwrap(), range["len"].as_u64().unwrap());
                offset <= at && at < offset + len
            })
        };
        assert!(holds(3 << 20) && holds(6 << 20) && !holds(0) && !holds(5 << 20), "{method}: {ranges:?}");
    }
}

#[test]
fn what_differs_is_listed_by_kind() {
    let varv = Varv::new();
    let source = varv.dir("source");
    for name in ["gone/file", "longer", "mode", "link", "turned"] {
        let path = source.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    fs::remove_file(source.join("link")).unwrap();
    symlink("mode", source.join("link")).unwrap();
    varv.backup(args![&source]);
    fs::remove_dir_all(source.join("gone")).unwrap();
    fs::write(source.join("longer"), "xx").unwrap();
    fs::set_permissions(source.join("mode"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(source.join("link")).unwrap();
    symlink("longer", source.join("link")).unwrap();
    fs::remove_file(source.join("turned")).unwrap();
    fs::create_dir_all(source.join("turned/below")).unwrap();
    fs::write(source.join("skipped.tmp"), "x").unwrap();
    for method in METHODS {
        let report = compare(&varv, args!["--method", method, "--exclude", "*.tmp", &source]);
        let mut found = changes(&report);
        found.remove(source.to_str().unwrap());
        let expected = [
            ("gone", "deleted"),
            ("gone/file", "deleted"),
            ("link", "changed"),
            ("longer", "changed"),
            ("mode", "changed"),
            ("turned", "changed"),
            ("turned/below", "new"),
        ];
        let expected = expected
            .map(|(name, change)| (source.join(name).to_str().unwrap().to_owned(), change.to_owned()));
        assert_eq!(found, BTreeMap::from(expected), "{method}");
    }
    let text = varv.ends(5, args!["compare", &source]).stdout;
    assert!(String::from_utf8(text).unwrap().contains("skipped.tmp"));
    varv.ends(1, args!["compare", source.join("nothing")]);
    varv.ends(2, args!["compare", "--method", "magic", &source]);
}

#[test]
fn a_comparison_agrees_with_the_next_backup() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let mut random = Random(5);
    tree(&source, 2);
    varv.backup(args!["--time", "2026-01-01", &source]);
    for night in 2..5 {
        change(&source, &mut random);
        let before = read(&source);
        let live = METHODS.map(|method| changes(&compare(&varv, args!["--method", method, &source])));
        assert_eq!(before, read(&source), "a comparison changes nothing");
        varv.backup(args!["--time", format!("2026-01-0{night}"), &source]);
        let stored = varv.run(args!["--json", "diff", "1B", "0B", &source]).json();
        for found in live {
            assert_eq!(found, changes(&stored), "night {night}");
        }
    }
    // An older night is compared with what is there now.
    let since = varv.run(args!["--json", "diff", "2026-01-02", "now", &source]).json();
    assert_eq!(changes(&compare(&varv, args!["--at", "2026-01-02T12:00:00", &source])), changes(&since));
}

#[test]
fn what_cannot_be_read_is_no_difference() {
    let varv = Varv::unprivileged();
    let source = varv.dir("source");
    let secret = source.join("secret");
    fs::write(&secret, "secret").unwrap();
    varv.give(&secret);
    varv.backup(args![&source]);
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    let done = varv.ends(3, args!["compare", "--method", "hash", &source]);
    done.says(&["secret"]);
}

#[test]
fn devices_are_compared() {
    let Some(device) = Loop::new(&bytes(1, 4 << 20), 512) else { return };
    let varv = Varv::new();
    varv.backup(args![&device.path]);
    for method in METHODS {
        assert!(changes(&compare(&varv, args!["--method", method, &device.path])).is_empty(), "{method}");
    }
    overwrite(&device.path, 2 << 20, &bytes(2, 4096));
    for method in ["hash", "full"] {
        let report = compare(&varv, args!["--method", method, &device.path]);
        let range = &report["changes"][0]["ranges"][0];
        let (offset, len) = (range["offset"].as_u64().unwrap(), range["len"].as_u64().unwrap());
        assert!(offset <= 2 << 20 && (2 << 20) + 4096 <= offset + len, "{method}: {range}");
    }
}

fn data_packs(varv: &Varv) -> Vec<std::path::PathBuf> {
    let mut packs: Vec<_> =
        varv.objects().into_iter().filter(|path| path.starts_with(varv.repository.join("packs"))).collect();
    packs.sort_by_key(|pack| std::cmp::Reverse(fs::metadata(pack).unwrap().len()));
    packs
}

/// Changes one byte in the middle of a pack.
fn damage(pack: &Path) {
    support::chmod(pack, 0o600);
    let at = fs::metadata(pack).unwrap().len() / 2;
    overwrite(pack, at, &[!fs::read(pack).unwrap()[at as usize]]);
}

#[test]
fn only_what_a_snapshot_needs_is_verified() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let (old, new, both) = (source.join("old"), source.join("new"), source.join("both"));
    fs::write(&both, "both").unwrap();
    fs::write(&old, bytes(1, 300_000)).unwrap();
    varv.backup(args!["--time", "2026-01-01", &source]);
    let pack = data_packs(&varv).remove(0);
    fs::remove_file(&old).unwrap();
    fs::write(&new, bytes(2, 100_000)).unwrap();
    varv.backup(args!["--time", "2026-01-02", &source]);
    let whole = varv.json(args!["verify"]);
    assert_eq!((&whole["files"], &whole["bytes"]), (&json!(2), &json!(100_004)));
    assert_eq!((&whole["damaged"], &whole["snapshot"]), (&json!([]), &varv.snapshots()[1]["id"]));
    let one = varv.json(args!["verify", &new]);
    assert!(one["bytes_read"].as_u64() < whole["bytes_read"].as_u64(), "{one} {whole}");
    assert_eq!(varv.json(args!["verify", "--at", "2026-01-01", &source])["bytes"], 300_004);

    damage(&pack);
    let done = varv.ends(4, args!["--json", "verify", "--at", "2026-01-01T12:00:00"]);
    let damaged = done.json()["damaged"].clone();
    assert!(damaged.to_string().contains(old.to_str().unwrap()), "{damaged}");
    let damaged = varv.ends(4, args!["--json", "verify", "--at", "2026-01-01", &old]).json();
    assert!(damaged["damaged"][0]["hurts"][0].as_str().unwrap().starts_with(old.to_str().unwrap()));
    // The newest snapshot does not need it; nor do other files, unless they share its frame.
    varv.ok(args!["verify", &new]);
    // Gone altogether.
    fs::remove_file(&pack).unwrap();
    varv.ends(4, args!["verify", "--at", "2026-01-01", &old]);
    varv.ok(args!["verify", &new]);
}

#[test]
fn a_full_comparison_tells_damage_from_difference() {
    let varv = Varv::new();
    let source = varv.dir("source");
    fs::write(source.join("file"), bytes(1, 300_000)).unwrap();
    varv.backup(args![&source]);
    damage(&data_packs(&varv)[0]);
    varv.ok(args!["compare", "--method", "hash", &source]);
    varv.ends(4, args!["compare", "--method", "full", &source]).says(&["file"]);
}

#[test]
fn a_backup_counts_what_became_of_files() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let write = |name: &str, len: usize| {
        let path = source.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![7; len]).unwrap();
    };
    for (name, len) in [("kept", 10), ("edited", 100), ("gone", 1000), ("dir/a", 2000), ("file", 4000)] {
        write(name, len);
    }
    varv.backup(args![&source]);
    write("edited", 150);
    fs::remove_file(source.join("gone")).unwrap();
    // A directory becomes a file, and a file a directory.
    fs::remove_dir_all(source.join("dir")).unwrap();
    write("dir", 5);
    fs::remove_file(source.join("file")).unwrap();
    write("file/below", 6);
    let stats = varv.backup(args![&source]);
    for (name, value) in [
        ("files_new", 2),
        ("files_changed", 1),
        ("files_unchanged", 1),
        ("files_deleted", 3),
        ("bytes_files_new", 11),
        ("bytes_files_changed", 150),
        ("bytes_files_changed_before", 100),
        ("bytes_files_deleted", 7000),
        ("bytes_source", 171),
    ] {
        assert_eq!(stats[name], value, "{name}: {stats}");
    }
    assert_eq!(varv.snapshots()[1]["stats"]["bytes_files_changed_before"], 100);
    let shown = String::from_utf8(varv.ok(args!["snapshots", "-v"]).stdout).unwrap();
    assert!(shown.contains("3 deleted (6.8 KiB)"), "{shown}");
}

#[test]
fn metrics_tell_success_and_failure() {
    let varv = Varv::new();
    let source = varv.dir("source");
    fs::write(source.join("file"), "x").unwrap();
    let file = varv.path("varv.prom");
    varv.ok(args!["backup", "--metrics", &file, "--label", "home", "--host", "h", &source]);
    let text = fs::read_to_string(&file).unwrap();
    let labels = "command=\"backup\",host=\"h\",label=\"home\"";
    let has = |text: &str, line: String| assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    has(&text, "# TYPE varv_backup_files gauge".into());
    has(&text, format!("varv_backup_files{{{labels},state=\"new\"}} 1"));
    has(&text, format!("varv_backup_bytes{{{labels},kind=\"source\"}} 1"));
    has(&text, format!("varv_exit_code{{{labels}}} 0"));
    let success = text.lines().find(|line| line.starts_with("varv_last_success")).unwrap().to_owned();
    varv.ends(1, args!["backup", "--metrics", &file, "--label", "home", "--host", "h", varv.path("none")]);
    let text = fs::read_to_string(&file).unwrap();
    has(&text, format!("varv_exit_code{{{labels}}} 1"));
    has(&text, success);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("varv_") && value.parse::<f64>().is_ok(), "{line}");
    }
    // The backup is done, but what was asked for was not.
    varv.ends(1, args!["backup", "--metrics", varv.path("no/such/folder"), &source]);
    assert!(File::open(&file).is_ok());
    assert_eq!(varv.snapshots().len(), 2);
}

#[test]
fn what_was_read_and_is_as_it_was_counts_as_unchanged() {
    let varv = Varv::new();
    let source = varv.dir("source");
    tree(&source, 1);
    fs::write(source.join("large"), bytes(1, 9 << 20)).unwrap();
    fs::write(source.join("plain"), "plain").unwrap();
    let files = varv.backup(args![&source])["files_new"].clone();
    let read = varv.backup(args!["--force-read", &source]);
    assert_eq!((&read["files_unchanged"], &read["files_changed"]), (&files, &0.into()), "{read}");
    assert!(read["bytes_read"].as_u64().unwrap() > 9 << 20);
    // Only its time of last change of status differs.
    fs::rename(source.join("large"), source.join("moved")).unwrap();
    fs::rename(source.join("moved"), source.join("large")).unwrap();
    assert_eq!(varv.backup(args![&source])["files_changed"], 0);
    overwrite(&source.join("large"), 5 << 20, b"new");
    support::chmod(&source.join("plain"), 0o604);
    assert_eq!(varv.backup(args!["--force-read", &source])["files_changed"], 2);
}

#[test]
fn what_is_left_out_is_asked_for_on_neither_side() {
    let varv = Varv::new();
    let source = varv.dir("source");
    for name in ["kept", "one.tmp", "dir/two.tmp", "gone/three.tmp", "big", "cache/inside", "gone/file"] {
        fs::create_dir_all(source.join(name).parent().unwrap()).unwrap();
        fs::write(source.join(name), name).unwrap();
    }
    fs::write(source.join("big"), bytes(1, 5000)).unwrap();
    fs::write(source.join("cache/.nobackup"), "").unwrap();
    varv.backup(args![&source]);
    fs::remove_dir_all(source.join("gone")).unwrap();
    let excludes =
        args!["--exclude", "*.tmp", "--exclude-larger-than", "4K", "--exclude-if-present", ".nobackup"];
    let mut found = changes(&compare(&varv, &[excludes, args![&source]].concat()));
    found.remove(source.to_str().unwrap());
    let names: Vec<_> = found.into_keys().collect();
    let expected = ["gone", "gone/file"].map(|name| source.join(name).to_str().unwrap().to_owned());
    assert_eq!(names, expected);
}
