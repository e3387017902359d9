//! `varv dupes` on live trees.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use serde_json::Value;
use support::{Varv, args, chmod};
use tempfile::TempDir;

type Groups = BTreeSet<BTreeSet<Vec<u8>>>;

fn run(words: &[OsString]) -> support::Done {
    Command::new(env!("CARGO_BIN_EXE_varv")).env_clear().arg("dupes").args(words).output().unwrap().into()
}

fn ok(words: &[OsString]) -> support::Done {
    let done = run(words);
    done.expect(0, words);
    done
}

/// Groups of paths below `root`, from what fdupes would print; no name may hold a line break.
fn fdupes(root: &Path, words: &[OsString]) -> Groups {
    let output = ok(&[args![root, "--format", "fdupes"], words].concat()).stdout;
    let strip = |line: &[u8]| line.strip_prefix(root.as_os_str().as_bytes()).unwrap()[1..].to_vec();
    let groups = output.strip_suffix(b"\n").unwrap_or_default().split(|&b| b == b'\n').collect::<Vec<_>>();
    let groups = groups.split(|line| line.is_empty());
    groups.filter(|g| !g.is_empty()).map(|group| group.iter().map(|line| strip(line)).collect()).collect()
}

fn groups<const N: usize>(groups: [&[&str]; N]) -> Groups {
    groups.iter().map(|group| group.iter().map(|name| name.as_bytes().to_vec()).collect()).collect()
}

fn json(words: &[OsString]) -> Value {
    ok(&[args!["--json"], words].concat()).json()
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed * 2 + 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[test]
fn a_repository_on_the_way_is_left_out() {
    let varv = Varv::new();
    let home = varv.path("");
    let home = home.to_str().unwrap().trim_end_matches('/');
    for name in ["a", "b"] {
        fs::write(varv.path(name), "words").unwrap();
    }
    // A folder that only looks like one is none.
    for folder in ["alike", "alike/packs", "alike/snapshots"] {
        varv.dir(folder);
    }
    for name in ["alike/config", "alike/config.copy"] {
        fs::write(varv.path(name), "mine").unwrap();
    }
    let groups = |dir: &OsStr| fdupes(Path::new(dir), args![]);
    assert_eq!(groups(home.as_ref()), self::groups([&["a", "b"], &["alike/config", "alike/config.copy"]]));
    let said = ok(args![home]);
    said.says(&[&format!("{home}/repository is a repository")]);
    assert_eq!(said.stderr.matches("is a repository").count(), 1);
    // What is named is looked into.
    assert_eq!(groups(varv.repository.as_os_str()), self::groups([&["config", "config.copy"]]));
}

fn tree() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn files_are_told_apart_wherever_they_differ() {
    let root = tree();
    for len in [1, 100, 65_536, 65_537, 200_000, 3_000_000] {
        let bytes = noise(len, 7);
        let mut expected = BTreeSet::new();
        for name in ["a", "b"] {
            fs::write(root.path().join(format!("{len}-{name}")), &bytes).unwrap();
            expected.insert(format!("{len}-{name}").into_bytes());
        }
        for (name, at) in [("first", 0), ("middle", len / 2), ("last", len - 1)] {
            let mut other = bytes.clone();
            other[at] ^= 1 + (name.len() as u8);
            fs::write(root.path().join(format!("{len}-{name}")), other).unwrap();
        }
        let of_len = args!["--min-size", len.to_string(), "--max-size", len.to_string()];
        let found = fdupes(root.path(), of_len);
        assert!(found.contains(&expected), "{len}: {found:?}");
        if len > 1 {
            assert_eq!(found.len(), 1, "{len}");
        }
    }
}

#[test]
fn sets_split_and_split_again() {
    let root = tree();
    let (a, b) = (noise(400_000, 1), noise(400_000, 2));
    let mut b = [&a[..100_000], &b[100_000..380_000], &a[380_000..]].concat();
    for (name, bytes) in [("a", &a), ("b", &b), ("c", &a), ("d", &b)] {
        fs::write(root.path().join(name), bytes).unwrap();
    }
    b[300_000] ^= 1;
    fs::write(root.path().join("e"), &b).unwrap();
    assert_eq!(fdupes(root.path(), args![]), groups([&["a", "c"], &["b", "d"]]));
}

#[test]
fn many_files_of_one_length_need_few_descriptors() {
    let root = tree();
    let base = noise(70_000, 3);
    for number in 0..5000u64 {
        let file = File::create(root.path().join(number.to_string())).unwrap();
        file.write_all_at(&base, 0).unwrap();
        file.write_all_at(&(number / 2).to_be_bytes(), 30_000).unwrap();
    }
    let shell = "ulimit -Hn 96; exec \"$0\" dupes --format json \"$1\"";
    let program = env!("CARGO_BIN_EXE_varv");
    let output = Command::new("sh").args(["-c", shell, program]).arg(root.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["totals"]["groups"], 2500);
    assert_eq!(report["totals"]["longest_set"], 5000);
}

#[test]
fn a_long_pair_that_differs_early_is_hardly_read() {
    let root = tree();
    for (name, byte) in [("a", 1), ("b", 2)] {
        let file = File::create(root.path().join(name)).unwrap();
        file.set_len(1 << 30).unwrap();
        file.write_all_at(&[byte], 0).unwrap();
    }
    let report = json(args![root.path()]);
    assert_eq!(report["totals"]["groups"], 0);
    assert!(report["totals"]["bytes_read"].as_u64().unwrap() < 1 << 20);
}

#[test]
fn holes_are_equal_to_zeros_and_not_read() {
    let root = tree();
    let data = noise(8192, 4);
    for name in ["hole", "hole2", "full"] {
        let file = File::create(root.path().join(name)).unwrap();
        if name == "full" {
            file.write_all_at(&vec![0; 40 << 20], 0).unwrap();
        }
        file.set_len(40 << 20).unwrap();
        file.write_all_at(&data, 20 << 20).unwrap();
    }
    assert_eq!(fdupes(root.path(), args![]), groups([&["full", "hole", "hole2"]]));
    fs::remove_file(root.path().join("full")).unwrap();
    let report = json(args![root.path()]);
    assert_eq!(report["totals"]["groups"], 1);
    assert!(report["totals"]["bytes_read"].as_u64().unwrap() < 8 << 20);
    assert!(report["groups"][0]["bytes_wasted"].as_u64().unwrap() < 1 << 20);
}

#[test]
fn hard_links_are_one_file_and_symlinks_none() {
    let root = tree();
    let path = |name: &str| root.path().join(name);
    fs::write(path("a"), "x").unwrap();
    fs::hard_link(path("a"), path("link")).unwrap();
    symlink("a", path("symlink")).unwrap();
    assert_eq!(json(args![root.path()])["totals"]["groups"], 0);
    fs::write(path("b"), "x").unwrap();
    fs::write(path("empty"), "").unwrap();
    fs::write(path("empty2"), "").unwrap();
    let report = json(args![root.path()]);
    let group = &report["groups"][0];
    assert_eq!((&group["copies"], &group["bytes_wasted"]), (&2.into(), &1.into()));
    assert_eq!(group["files"][0]["links"][0], path("link").to_str().unwrap());
    assert_eq!(report["totals"]["empty"], 2);
    let with_empty = json(args![root.path(), "--empty"]);
    assert_eq!(with_empty["totals"]["groups"], 2);
    assert_eq!(with_empty["groups"][1]["bytes"], 0);
}

#[test]
fn a_file_with_two_names_is_unique_once() {
    let root = tree();
    fs::write(root.path().join("a"), "a").unwrap();
    fs::hard_link(root.path().join("a"), root.path().join("b")).unwrap();
    fs::write(root.path().join("other"), "another length").unwrap();
    let report = json(args![root.path(), "--unique"]);
    assert_eq!((&report["totals"]["unique"], report["unique"].as_array().unwrap().len()), (&2.into(), 2));
    assert_eq!(report["unique"][0]["links"].as_array().unwrap().len(), 1, "{report}");
}

#[test]
fn filters_choose_files() {
    let root = tree();
    fs::create_dir_all(root.path().join("keep")).unwrap();
    for name in ["a.txt", "b.txt", "c.bin", ".hidden", "keep/d.bin"] {
        fs::write(root.path().join(name), "same").unwrap();
    }
    let found = |words: &[OsString]| fdupes(root.path(), words);
    assert_eq!(found(args!["--include", "*.txt"]), groups([&["a.txt", "b.txt"]]));
    assert_eq!(found(args!["--include", "keep/", "--include", "a.*"]), groups([&["a.txt", "keep/d.bin"]]));
    assert_eq!(found(args!["--exclude", "*.txt", "--no-hidden"]), groups([&["c.bin", "keep/d.bin"]]));
    assert!(found(args!["--min-size", "5"]).is_empty());
    assert!(found(args!["--max-size", "3"]).is_empty());
    run(args![]).expect(2, args![]);
    run(args![root.path().join("a.txt")]).expect(2, args![]);
}

#[test]
fn several_roots() {
    let root = tree();
    let dir = |name: &str| {
        let path = root.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let (a, b) = (dir("a"), dir("b"));
    for (dir, name, bytes) in [(&a, "1", "in a"), (&a, "2", "in a"), (&a, "3", "both"), (&b, "4", "both")] {
        fs::write(dir.join(name), bytes).unwrap();
    }
    fs::write(b.join("5"), "alone in b").unwrap();
    let count = |words: &[OsString]| json(words)["totals"]["groups"].clone();
    assert_eq!(count(args![&a, &b]), 2);
    // One inside of another, or twice: each file still counts once.
    assert_eq!(count(args![root.path(), &a, &a, &b]), 2);
    assert_eq!(count(args![&a, &b, "--isolate"]), 1);
    let referenced = json(args![&b, "--reference", &a]);
    assert_eq!(referenced["totals"]["groups"], 1);
    let files = referenced["groups"][0]["files"].as_array().unwrap();
    let is_reference = |file: &Value| file["reference"] == (file["path"] == a.join("3").to_str().unwrap());
    assert!(files.len() == 2 && files.iter().all(is_reference), "{files:?}");
    let unique = json(args![&a, &b, "--unique"]);
    assert_eq!(unique["unique"].as_array().unwrap().len(), 1);
    assert_eq!(unique["unique"][0]["path"], b.join("5").to_str().unwrap());
}

/// What `escape` does, turned back.
fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        (rest, _) = match (first, tail) {
            (b'\\', [b'x', a, b, tail @ ..]) => {
                let digits = [*a, *b];
                (tail, out.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()))
            }
            (b'\\', [b'\\', tail @ ..]) => (tail, out.push(b'\\')),
            _ => (tail, out.push(*first)),
        };
    }
    out
}

#[test]
fn odd_names_come_back_from_every_format() {
    let root = tree();
    let names: [&[u8]; 5] =
        [b"line\nbreak", b"bad\xff", b"</script><b>&amp;", b"quote\",comma\\", "é'`".as_bytes()];
    fs::create_dir(root.path().join("<")).unwrap();
    for name in names {
        fs::write(root.path().join(OsStr::from_bytes(name)), "same").unwrap();
    }
    let paths = || names.iter().map(|name| root.path().join(OsStr::from_bytes(name)));
    let expected: BTreeSet<Vec<u8>> = paths().map(|path| path.as_os_str().as_bytes().to_vec()).collect();
    let of_json = |files: &Value, path: &dyn Fn(&Value) -> String| -> BTreeSet<Vec<u8>> {
        files.as_array().unwrap().iter().map(|file| unescape(&path(file))).collect()
    };
    let report = json(args![root.path()]);
    let path = |file: &Value| file["path"].as_str().unwrap().to_owned();
    assert_eq!(of_json(&report["groups"][0]["files"], &path), expected);

    let text = |format: &str| String::from_utf8(ok(args![root.path(), "--format", format]).stdout).unwrap();
    let html = text("html");
    let data = html.split_once("id=\"data\">").unwrap().1.split_once("</script>").unwrap().0;
    let data: Value = serde_json::from_str(data).unwrap();
    let path = |file: &Value| file[0].as_str().unwrap().to_owned();
    assert_eq!(of_json(&data["groups"][0]["files"], &path), expected);

    let rows: BTreeSet<Vec<u8>> =
        text("csv").lines().skip(1).map(|line| unescape(&csv_field(line, 3))).collect();
    assert_eq!(rows, expected);

    let lines: BTreeSet<Vec<u8>> =
        text("text").lines().filter_map(|line| line.strip_prefix("  ")).map(unescape).collect();
    assert_eq!(lines, expected);

    let raw = ok(args![root.path(), "--format", "fdupes"]).stdout;
    assert!(expected.iter().all(|path| raw.windows(path.len()).any(|window| window == path)));
}

#[test]
fn the_page_shows_itself_in_a_browser() {
    let root = tree();
    fs::create_dir(root.path().join("dir")).unwrap();
    for name in ["<b>one</b>", "dir/two", "dir/three"] {
        fs::create_dir_all(root.path().join(name).parent().unwrap()).unwrap();
        fs::write(root.path().join(name), noise(5000, 4)).unwrap();
    }
    let page = ok(args![root.path(), "--format", "html"]).stdout;
    let Some(body) = support::system::shown(&page) else { return };
    // What the script made: a row, a total, and cells of the map.
    assert_eq!(body.matches("<tr>").count(), 1 + 1, "the head and a group: {body}");
    assert!(body.contains(">9.8 KiB<") && body.contains("1 group<"), "{body}");
    assert!(body.contains("class=\"cell"), "{body}");
    assert!(body.contains("&lt;") && !body.contains("<b>one"), "names are text: {body}");
}

/// Of a large group the page lists some files, which stand for all in the map.
#[test]
fn the_map_shows_all_that_a_large_group_wastes() {
    let root = tree();
    for name in (0..300).map(|number| format!("many/{number}")).chain(["one/a".into(), "one/b".into()]) {
        let path = root.path().join(&name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, noise(if name.starts_with("many") { 10_240 } else { 204_800 }, 7)).unwrap();
    }
    let page = ok(args![root.path(), "--format", "html"]).stdout;
    let Some(body) = support::system::shown(&page) else { return };
    for cell in ["many, 2.9 MiB", "one, 200.0 KiB"] {
        assert!(body.contains(&format!("aria-label=\"{cell}\"")), "{cell}: {body}");
    }
}

fn csv_field(line: &str, wanted: usize) -> String {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => fields.last_mut().unwrap().extend(chars.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => fields.last_mut().unwrap().push(c),
        }
    }
    fields.swap_remove(wanted)
}

#[test]
fn what_cannot_be_read_is_named_and_left_out() {
    let varv = Varv::unprivileged();
    let dir = varv.dir("tree");
    for name in ["a", "b", "locked"] {
        let path = dir.join(name);
        fs::write(&path, "same").unwrap();
        varv.give(&path);
    }
    chmod(&dir.join("locked"), 0);
    let closed = dir.join("closed");
    fs::create_dir(&closed).unwrap();
    varv.give(&closed);
    chmod(&closed, 0);
    let done = varv.ends(3, args!["--json", "dupes", &dir]);
    done.says(&["tree/locked", "tree/closed"]);
    let report = done.json();
    assert_eq!(report["groups"][0]["files"].as_array().unwrap().len(), 2);
    assert_eq!((&report["totals"]["errors"], report["left_out"].as_array().unwrap().len()), (&2.into(), 2));
    chmod(&closed, 0o700);
}

#[test]
fn files_that_come_go_and_grow_meanwhile_do_no_harm() {
    let root = tree();
    let bytes = noise(100_000, 9);
    let path = |number: usize| root.path().join(number.to_string());
    (0..200).for_each(|number| fs::write(path(number), &bytes).unwrap());
    let mut child = Command::new(env!("CARGO_BIN_EXE_varv"))
        .args(["dupes", "--format", "fdupes"])
        .arg(root.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    for number in (0..200).step_by(2) {
        let _ = fs::remove_file(path(number));
        let mut longer = bytes.clone();
        longer.push(0);
        let _ = fs::write(path(number + 1), longer);
    }
    let mut output = Vec::new();
    std::io::Read::read_to_end(&mut child.stdout.take().unwrap(), &mut output).unwrap();
    let code = child.wait().unwrap().code();
    assert!(matches!(code, Some(0 | 3)), "{code:?}");
    // Afterwards all that is left is equal again.
    assert_eq!(fdupes(root.path(), args![]).len(), 1);
}

/// Groups by comparing all pairs whole.
fn oracle(files: &BTreeMap<String, Vec<u8>>) -> Groups {
    let mut classes: BTreeMap<&[u8], BTreeSet<Vec<u8>>> = BTreeMap::new();
    for (name, bytes) in files.iter().filter(|(_, bytes)| !bytes.is_empty()) {
        classes.entry(bytes).or_default().insert(name.clone().into_bytes());
    }
    classes.into_values().filter(|class| class.len() > 1).collect()
}

fn write_all(root: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in files {
        let path: PathBuf = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn finds_what_comparing_all_pairs_finds(
        files in proptest::collection::btree_map(
            "[a-c]{1}/[a-z]{3}",
            (prop::sample::select(vec![0usize, 1, 5000, 65_536, 65_537, 90_000, 300_000]), 0u64..2,
             proptest::option::of(0.0f64..1.0)),
            0..60,
        ),
    ) {
        let content = |(len, seed, change): (usize, u64, Option<f64>)| {
            let mut bytes = noise(len, seed);
            if let Some(at) = change.filter(|_| len > 0) {
                bytes[(at * 4.0) as usize * len / 4] ^= 0x55;
            }
            bytes
        };
        let files: BTreeMap<String, Vec<u8>> =
            files.into_iter().map(|(name, shape)| (name, content(shape))).collect();
        let root = tree();
        write_all(root.path(), &files);
        prop_assert_eq!(fdupes(root.path(), args![]), oracle(&files));
    }
}
