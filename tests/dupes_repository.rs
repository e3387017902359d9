//! `varv dupes` on what a repository knows, and on which files it has.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use proptest::prelude::*;
use serde_json::Value;
use support::{Varv, args, chmod};

/// Bytes that look random, the same on any machine.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn report(varv: &Varv, words: &[OsString]) -> Value {
    varv.json(&[args!["dupes", "--from-repository"], words].concat())
}

/// The paths of each item of a report's array.
fn paths(items: &Value, of: &str) -> Vec<BTreeSet<String>> {
    let path = |item: &Value| item["path"].as_str().unwrap().to_owned();
    items
        .as_array()
        .unwrap()
        .iter()
        .map(|group| group[of].as_array().unwrap().iter().map(path).collect())
        .collect()
}

fn below(dir: &Path, names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| dir.join(name).to_str().unwrap().to_owned()).collect()
}

#[test]
fn planted_truth_is_found_without_the_source() {
    let varv = Varv::new();
    let dir = varv.dir("source");
    let bytes = noise(300_000, 1);
    for name in ["a/one", "a/sub/two", "b/a/one", "b/a/sub/two"] {
        fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
        fs::write(dir.join(name), &bytes).unwrap();
    }
    // Metadata make no difference, links no copy, and holes are zeros.
    chmod(&dir.join("b/a/one"), 0o600);
    symlink("one", dir.join("a/link")).unwrap();
    symlink("one", dir.join("b/a/link")).unwrap();
    fs::write(dir.join("linked"), noise(50_000, 2)).unwrap();
    fs::hard_link(dir.join("linked"), dir.join("linked2")).unwrap();
    fs::write(dir.join("zeros"), vec![0; 1 << 20]).unwrap();
    File::create(dir.join("hole")).unwrap().set_len(1 << 20).unwrap();
    let half_sparse = File::create(dir.join("sparse")).unwrap();
    half_sparse.write_all_at(&noise(5000, 3), 1 << 20).unwrap();
    fs::write(dir.join("dense"), [vec![0; 1 << 20], noise(5000, 3)].concat()).unwrap();
    fs::write(dir.join("longer"), [&bytes[..], &noise(50_000, 4)].concat()).unwrap();
    varv.backup(args![&dir]);
    fs::remove_dir_all(&dir).unwrap();

    let found = report(&varv, args![]);
    let expected = [
        below(&dir, &["a/one", "a/sub/two", "b/a/one", "b/a/sub/two"]),
        below(&dir, &["sparse", "dense"]),
        below(&dir, &["zeros", "hole"]),
    ];
    assert_eq!(paths(&found["groups"], "files"), expected, "and nothing of hard links");
    assert_eq!(paths(&found["directories"], "paths"), [below(&dir, &["a", "b/a"])], "none of those below");
    let partly = &found["partly"][0];
    assert_eq!(partly["count"], 2);
    let shared = partly["bytes_shared"].as_u64().unwrap();
    assert!((200_000..=300_000).contains(&shared), "{shared}");
    assert_eq!(found["totals"]["hard_links"], 1);
    assert_eq!(found["totals"]["bytes_read"], 0);
    let told = |format: &str| varv.ok(args!["dupes", "--from-repository", "--format", format]).stdout;
    assert!(told("text").starts_with(b"585.9 KiB wasted: 2 directories"), "directories come first");

    let lines = rows(&told("csv"));
    let of = |kind: &str, field: usize| {
        lines.iter().filter(|row| row[10] == kind).map(|row| row[field].clone()).collect::<Vec<_>>()
    };
    assert!(lines.iter().all(|row| row.len() == 13), "{lines:?}");
    assert_eq!(of("file", 3).len(), 8);
    assert_eq!(of("directory", 3).into_iter().collect::<BTreeSet<_>>(), below(&dir, &["a", "b/a"]));
    assert_eq!(of("directory", 2), vec!["600000"; 2]);
    let names = below(&dir, &["longer", "a/one", "a/sub/two", "b/a/one", "b/a/sub/two"]);
    assert_eq!(of("partly", 3).into_iter().collect::<BTreeSet<_>>(), names);
    assert!(
        of("partly", 11).iter().all(|bytes| (200_000..=300_000).contains(&bytes.parse::<u64>().unwrap()))
    );
    let groups: BTreeSet<u64> = lines.iter().map(|row| row[0].parse().unwrap()).collect();
    assert_eq!(groups, (1..=5).collect(), "each a number of its own");

    let page = told("html");
    let data = String::from_utf8(page.clone()).unwrap();
    let data = data.split_once("id=\"data\">").unwrap().1.split_once("</script>").unwrap().0;
    let data: Value = serde_json::from_str(data).unwrap();
    for kind in ["directories", "partly", "ranges"] {
        assert_eq!(data["relations"][kind], found[kind], "{kind}");
    }
    let Some(body) = support::system::shown(&page) else { return };
    for said in ["Equal directories: 1", "Partly equal files: 1", "/b/a</li>"] {
        assert!(body.replace(" </li>", "</li>").contains(said), "{said}: {body}");
    }
}

/// The lines of a table without quotes, but for its head.
fn rows(csv: &[u8]) -> Vec<Vec<String>> {
    let text = std::str::from_utf8(csv).unwrap();
    text.lines().skip(1).map(|line| line.split(',').map(str::to_owned).collect()).collect()
}

#[test]
fn hosts_and_times_are_chosen() {
    let varv = Varv::new();
    let dir = varv.dir("source");
    fs::write(dir.join("file"), "first").unwrap();
    varv.backup(args!["--host", "one", "--time", "2026-01-01T00:00:00Z", &dir]);
    fs::write(dir.join("file"), "second").unwrap();
    fs::write(dir.join("copy"), "first").unwrap();
    varv.backup(args!["--host", "one", "--time", "2026-01-02T00:00:00Z", &dir]);
    fs::write(dir.join("file"), "first").unwrap();
    fs::remove_file(dir.join("copy")).unwrap();
    varv.backup(args!["--host", "two", "--time", "2026-01-03T00:00:00Z", &dir]);

    let groups = |words: &[OsString]| paths(&report(&varv, words)["groups"], "files");
    let (file, copy) = (below(&dir, &["file"]), below(&dir, &["copy", "file"]));
    assert_eq!(groups(args![]), std::slice::from_ref(&copy), "the newest of both hosts");
    assert_eq!(groups(args!["--host", "one"]), Vec::<BTreeSet<_>>::new());
    assert_eq!(groups(args!["--host", "one", "--all"]), [copy], "a file and what it was");
    assert_eq!(groups(args!["--at", "2026-01-01T12:00:00Z"]), std::slice::from_ref(&file), "on both hosts");
    assert_eq!(groups(args!["--at", "1B"]), std::slice::from_ref(&file), "of the other the first");
    assert_eq!(groups(args!["--isolate", "--at", "2026-01-01"]), [file], "of two hosts");
    assert_eq!(groups(args![dir.join("file"), "--all"]).len(), 1);
    let text = varv.ok(args!["dupes", "--from-repository"]).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("one/default:/") && text.contains("two/default:/"), "{text}");
    varv.ends(1, args!["dupes", "--from-repository", "/nowhere"]).says(&["/nowhere is in none of the 2"]);
    varv.ends(2, args!["dupes", "--host", "one", &dir]).says(&["--host needs --from-repository"]);
}

#[test]
fn large_files_share_ranges() {
    let varv = Varv::new();
    let dir = varv.dir("source");
    let common = noise(8 << 20, 5);
    let a = [noise(10 << 20, 6), common.clone()].concat();
    let b = [noise(4 << 20, 7), common, noise(7 << 20, 8)].concat();
    fs::write(dir.join("a"), &a).unwrap();
    fs::write(dir.join("b"), &b).unwrap();
    varv.backup(args![&dir]);
    let mut changed = a;
    changed[0] ^= 1;
    fs::write(dir.join("a"), changed).unwrap();
    varv.backup(args![&dir]);

    let found = report(&varv, args!["--share", "40"]);
    let ranges = found["ranges"].as_array().unwrap();
    assert_eq!(ranges.len(), 1, "{ranges:?}");
    let bytes = ranges[0]["bytes"].as_u64().unwrap();
    assert!((7 << 20..=8 << 20).contains(&bytes), "{bytes}");
    for end in ranges[0]["ends"].as_array().unwrap() {
        let begin = if end["path"].as_str().unwrap().ends_with('a') { 10 << 20 } else { 4 << 20 };
        assert!((begin..begin + (1 << 20)).contains(&end["offset"].as_u64().unwrap()), "{end}");
    }
    let csv = varv.ok(args!["dupes", "--from-repository", "--share", "40", "--format", "csv"]).stdout;
    let lines: Vec<_> = rows(&csv).into_iter().filter(|row| row[10] == "range").collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().all(|row| row[1] == bytes.to_string() && row[11] == row[1]), "{lines:?}");
    assert_eq!(found["partly"].as_array().unwrap().len(), 1);
    assert_eq!(report(&varv, args!["--share", "60"])["partly"].as_array().unwrap().len(), 0);
    let versions = report(&varv, args!["--all", "--share", "90"]);
    let members = versions["partly"][0]["members"].as_array().unwrap();
    assert_eq!(members.len(), 2, "two versions of a");
    assert!(
        members.iter().all(|file| file["paths"][0]["path"].as_str().unwrap().ends_with("/a")),
        "{members:?}"
    );
    assert_eq!(report(&varv, args!["--no-partly"])["ranges"].as_array().unwrap().len(), 0);
}

/// What live files are, by their paths: whether the repository has them.
fn against(varv: &Varv, dir: &Path) -> BTreeMap<String, bool> {
    let found = varv.json(args!["dupes", "--against-repository", dir]);
    let files = found["checked"].as_array().unwrap();
    files.iter().map(|file| (file["path"].as_str().unwrap().to_owned(), !file["stored"].is_null())).collect()
}

#[test]
fn what_is_lost_with_its_pack_is_not_safe() {
    let varv = Varv::new();
    let dir = varv.dir("source");
    fs::write(dir.join("file"), noise(100_000, 9)).unwrap();
    varv.backup(args![&dir]);
    assert!(against(&varv, &dir).values().all(|safe| *safe));
    let is_pack = |path: &std::path::PathBuf| path.to_string_lossy().contains("/packs/");
    let packs = varv.objects().into_iter().filter(is_pack);
    fs::remove_file(packs.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()).unwrap();
    assert!(against(&varv, &dir).values().all(|safe| !*safe));
}

#[test]
fn an_unreadable_file_is_neither_safe_nor_nowhere() {
    let varv = Varv::unprivileged();
    let dir = varv.dir("source");
    for name in ["a", "b"] {
        fs::write(dir.join(name), "same").unwrap();
        varv.give(&dir.join(name));
    }
    varv.backup(args![&dir]);
    chmod(&dir.join("b"), 0);
    let done = varv.ends(3, args!["dupes", "--against-repository", &dir]);
    done.says(&["source/b"]);
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(text.contains("source/a = ") && !text.contains("source/b"), "{text}");
    varv.ends(2, args!["dupes", "--against-repository", "--format", "html", &dir])
        .says(&["text, json or csv"]);
}

/// More contents with one beginning than are held at once.
#[test]
fn files_are_found_among_very_many_that_begin_alike() {
    const FILES: usize = 8192 + 100;
    let varv = Varv::without_repository();
    varv.ok(args!["init", "--encryption", "none", "--chunker", "fixed:4K"]);
    let (dir, live) = (varv.dir("source"), varv.dir("live"));
    let head = noise(4096, 1);
    let bytes = |number: usize| [&head[..], &number.to_be_bytes()].concat();
    (0..FILES).for_each(|number| fs::write(dir.join(number.to_string()), bytes(number)).unwrap());
    varv.backup(args![&dir]);
    let mut expected = BTreeMap::new();
    for number in (0..FILES).step_by(10).chain([FILES, FILES + 1]) {
        let path = live.join(number.to_string());
        fs::write(&path, bytes(number)).unwrap();
        expected.insert(path.to_str().unwrap().to_owned(), number < FILES);
    }
    assert_eq!(against(&varv, &live), expected);
}

/// What files are made of: pieces of zeros and noise, and so long runs of either.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let piece = (0u64..3, prop::sample::select(vec![1usize, 4096, 10_000, 70_000]));
    prop::collection::vec(piece, 0..4).prop_map(|pieces| {
        let piece = |(seed, len)| if seed == 0 { vec![0; len] } else { noise(len, seed) };
        pieces.into_iter().flat_map(piece).collect()
    })
}

fn write_all(root: &Path, files: &BTreeMap<String, Vec<u8>>, sparse: bool) {
    for (name, bytes) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = File::create(path).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        for (number, block) in bytes.chunks(4096).enumerate() {
            if !sparse || block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, number as u64 * 4096).unwrap();
            }
        }
    }
}

type Groups = BTreeSet<BTreeSet<Vec<u8>>>;

/// Groups by comparing all pairs whole.
fn oracle(root: &Path, files: &BTreeMap<String, Vec<u8>>) -> Groups {
    let mut classes: BTreeMap<&[u8], BTreeSet<Vec<u8>>> = BTreeMap::new();
    for (name, bytes) in files.iter().filter(|(_, bytes)| !bytes.is_empty()) {
        classes.entry(bytes).or_default().insert(root.join(name).as_os_str().as_bytes().to_vec());
    }
    classes.into_values().filter(|class| class.len() > 1).collect()
}

/// What is in common, by counting: of a block that both files have, what the shorter has of it.
fn in_common(a: &[u64], b: &[u64]) -> usize {
    let bytes = |of: &[u64], other: &[u64]| of.iter().filter(|block| other.contains(block)).count();
    match a.len().cmp(&b.len()) {
        std::cmp::Ordering::Less => bytes(a, b),
        std::cmp::Ordering::Greater => bytes(b, a),
        std::cmp::Ordering::Equal => bytes(a, b).max(bytes(b, a)),
    }
}

/// Groups of partly equal files as sets of indexes, by comparing all pairs again and again.
fn partly_oracle(files: &[Vec<u64>], share: usize) -> BTreeSet<BTreeSet<usize>> {
    let mut groups: Vec<BTreeSet<usize>> = (0..files.len()).map(|number| [number].into()).collect();
    for a in 0..files.len() {
        for b in 0..a {
            let shorter = files[a].len().min(files[b].len());
            if in_common(&files[a], &files[b]) * 100 < shorter * share {
                continue;
            }
            let (with, without): (Vec<_>, Vec<_>) =
                groups.into_iter().partition(|group| group.contains(&a) || group.contains(&b));
            groups = without;
            groups.push(with.into_iter().flatten().collect());
        }
    }
    groups.into_iter().filter(|group| group.len() > 1).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn shares_are_what_counting_finds(
        files in prop::collection::btree_set(prop::collection::vec(1u64..30, 1..12), 2..10),
        share in 10usize..95,
    ) {
        const BLOCK: usize = 64 << 10;
        let files: Vec<Vec<u64>> = files.into_iter().collect();
        let varv = Varv::without_repository();
        varv.ok(args!["init", "--encryption", "none", "--chunker", "fixed:64K"]);
        let dir = varv.dir("source");
        for (number, blocks) in files.iter().enumerate() {
            let bytes: Vec<u8> = blocks.iter().flat_map(|seed| noise(BLOCK, *seed)).collect();
            fs::write(dir.join(number.to_string()), bytes).unwrap();
        }
        varv.backup(args![&dir]);
        let found = report(&varv, args!["--share", share.to_string()]);
        let number = |path: &str| path.rsplit('/').next().unwrap().parse::<usize>().unwrap();
        let mut groups = BTreeSet::new();
        for group in found["partly"].as_array().unwrap() {
            let members = group["members"].as_array().unwrap();
            let of = |member: &Value| number(member["paths"][0]["path"].as_str().unwrap());
            let numbers: BTreeSet<usize> = members.iter().map(of).collect();
            let mut all: BTreeMap<u64, BTreeMap<usize, usize>> = BTreeMap::new();
            for number in &numbers {
                for block in &files[*number] {
                    *all.entry(*block).or_default().entry(*number).or_default() += 1;
                }
            }
            let common = || all.values().filter(|of| of.len() > 1);
            let saved: usize = common().map(|of| of.values().sum::<usize>() - 1).sum();
            prop_assert_eq!(&group["bytes_shared"], saved * BLOCK);
            for member in members {
                let own: usize = common().filter_map(|blocks| blocks.get(&of(member))).sum();
                prop_assert_eq!(&member["bytes_shared"], own * BLOCK);
            }
            groups.insert(numbers);
        }
        prop_assert_eq!(groups, partly_oracle(&files, share));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn finds_what_comparing_finds(
        stored in prop::collection::btree_map("[a-c]{1}/[a-z]{3}", content(), 0..20),
        more in prop::collection::btree_map("[a-c]{1}/[a-z]{3}", content(), 0..10),
        sparse: bool,
    ) {
        let varv = Varv::new();
        let (dir, live) = (varv.dir("source"), varv.dir("live"));
        write_all(&dir, &stored, sparse);
        varv.backup(args![&dir]);
        let output = varv.ok(args!["dupes", "--from-repository", "--format", "fdupes"]).stdout;
        let lines: Vec<&[u8]> = output.split(|&byte| byte == b'\n').collect();
        let groups = lines.split(|line| line.is_empty()).filter(|group| !group.is_empty());
        let groups: Groups = groups.map(|group| group.iter().map(|line| line.to_vec()).collect()).collect();
        prop_assert_eq!(groups, oracle(&dir, &stored));

        let mut files = more;
        files.extend(stored.iter().map(|(name, bytes)| (format!("copied/{name}"), bytes.clone())));
        write_all(&live, &files, !sparse);
        let known: BTreeSet<&Vec<u8>> = stored.values().collect();
        let expected: BTreeMap<String, bool> = files
            .iter()
            .filter(|(_, bytes)| !bytes.is_empty())
            .map(|(name, bytes)| (live.join(name).to_str().unwrap().to_owned(), known.contains(bytes)))
            .collect();
        prop_assert_eq!(against(&varv, &live), expected);
    }
}
