//! What commands print with `--json` is what `docs/json.md` says, neither more nor less.
//!
//! A new command adds its section there and a run of it to `RUNS`. A field of the page that no
//! run prints is as wrong as one that is printed and not on the page.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::process::Stdio;

use serde_json::Value;

use support::{Done, Varv};

/// What is run, in this order, in one repository: its section in the page, the exit code, and its words, in which
/// `$` is the folder that everything is in, `@` the newest snapshot.
const RUNS: &[(&str, i32, &str)] = &[
    ("error", 10, "snapshots"),
    ("init", 0, "init --encryption none"),
    ("backup", 0, "backup $/source"),
    ("backup", 0, "backup --dry-run $/source"),
    ("dupes --from-repository", 0, "dupes --from-repository --unique"),
    ("dupes --from-repository", 0, "dupes --from-repository --share 1"),
    ("dupes --against-repository", 0, "dupes --against-repository $/source"),
    ("snapshots", 0, "snapshots"),
    ("restore", 0, "restore $/source $/target"),
    ("ls", 0, "ls"),
    ("ls", 0, "ls -R $/source"),
    ("find", 0, "find *"),
    ("stats", 0, "stats"),
    ("protect", 0, "protect @"),
    ("unprotect", 0, "unprotect @"),
    ("backup", 0, "backup --force-read --exclude odd* $/source"),
    ("history", 0, "history $/source/file"),
    ("changes", 5, "changes --since 1B"),
    ("diff", 5, "diff 1B 0B"),
    ("compare", 5, "compare --method full $/source"),
    ("verify", 0, "verify"),
    ("forget", 0, "forget --keep-last 1"),
    ("undo-forget", 0, "undo-forget"),
    ("forget", 0, "forget --keep-last 1"),
    ("prune", 0, "prune --dry-run"),
    ("prune", 0, "prune"),
    ("retier", 0, "retier --older-than now --to cold --dry-run"),
    ("retier", 0, "retier --older-than now --to cold"),
    ("check", 0, "check --read-data"),
    ("repair", 0, "repair --dry-run"),
    ("backup", 0, "backup $/source/file"),
    ("backup", 0, "backup --change-list $/list --made-against @ $/source/file"),
    ("index rebuild", 0, "index rebuild"),
    ("upgrade", 0, "upgrade"),
    ("run", 0, "--config $/varv.toml run nightly"),
    ("dupes", 0, "dupes $/source"),
    ("dupes", 0, "dupes --unique $/source"),
    ("dupes --apply", 0, "dupes --apply $/report --hardlink --keep oldest --dry-run"),
    ("copy", 0, "copy $/source/file $/copied"),
    ("sync", 0, "sync $/source/file $/copied"),
    ("sparse report", 0, "sparse report --map $/source/file"),
    ("sparse make", 0, "sparse make -s 64K -w 16K $/made"),
    ("key list", 0, "key list"),
    ("key list", 0, "--repository $/locked --key-file $/key init --encryption key-file"),
    ("key add", 0, "--repository $/locked --key-file $/key key add --new-key-file $/other"),
    ("key change", 0, "--repository $/locked --key-file $/key key change key-file-2 --new-key-file $/third"),
    ("key remove", 0, "--repository $/locked --key-file $/key key remove key-file-2"),
    ("key export", 0, "--repository $/locked --key-file $/key key export"),
];

/// A section: the fields of its object, and of what they hold.
#[derive(Debug, Default, Clone)]
struct Section {
    fields: BTreeSet<String>,
    below: BTreeMap<String, BTreeSet<String>>,
}

/// The page, by command.
struct Page {
    sections: BTreeMap<String, Section>,
    /// What parts of that name have, in whatever section.
    parts: BTreeMap<String, BTreeSet<String>>,
}

/// What stands in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

impl Page {
    fn read() -> Self {
        let text = include_str!("../docs/json.md");
        let mut page = Self { sections: BTreeMap::new(), parts: BTreeMap::new() };
        for section in text.split("\n## `").skip(1) {
            page.section(&format!("`{section}"));
        }
        let parts = page.sections.values().flat_map(|section| section.below.clone());
        page.parts = parts.collect();
        for section in text.split("\n## `").skip(1) {
            page.include(&format!("`{section}"));
        }
        page
    }

    fn section(&mut self, text: &str) {
        let mut parts = text.split("\n### ");
        let own = parts.next().unwrap();
        let names = |part| quoted(str::lines(part).next().unwrap()).map(str::to_owned);
        let below = parts.flat_map(|part| names(part).map(|name| (name, fields(part))));
        let section = Section { fields: fields(own), below: below.collect() };
        for name in quoted(own.lines().next().unwrap()) {
            assert!(self.sections.insert(name.into(), section.clone()).is_none(), "{name} twice");
        }
    }

    /// "the fields of `stats` too".
    fn include(&mut self, text: &str) {
        let own = text.split("\n### ").next().unwrap();
        let Some((_, rest)) = own.split_once("the fields of ") else { return };
        let more = &self.parts[quoted(rest).next().unwrap()];
        for name in quoted(own.lines().next().unwrap()) {
            self.sections.get_mut(name).unwrap().fields.extend(more.iter().cloned());
        }
    }

    /// What the value of a field has, if it has any.
    fn below(&self, section: &str, field: &str) -> Option<&BTreeSet<String>> {
        self.sections[section].below.get(field).or_else(|| self.parts.get(field))
    }
}

/// What stands in backquotes in a table's first column.
fn fields(text: &str) -> BTreeSet<String> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.flat_map(|row| {
        let cell = format!("`{}", row.split(" | ").next().unwrap());
        quoted(&cell).map(str::to_owned).collect::<Vec<_>>()
    })
    .collect()
}

/// The objects that a value is or has.
fn objects(value: &Value) -> Vec<&serde_json::Map<String, Value>> {
    match value {
        Value::Object(object) => vec![object],
        Value::Array(items) => items.iter().flat_map(objects).collect(),
        _ => Vec::new(),
    }
}

/// The fields that were printed: of the section itself under the empty name.
type Printed = BTreeMap<(String, String), BTreeSet<String>>;

fn collect(section: &str, value: &Value, page: &Page, printed: &mut Printed) {
    for object in objects(value) {
        let seen = printed.entry((section.into(), String::new())).or_default();
        seen.extend(object.keys().cloned());
        for (field, value) in object {
            let below = printed.entry((section.into(), field.clone())).or_default();
            below.extend(objects(value).iter().flat_map(|object| object.keys().cloned()));
            if page.below(section, field).is_none() {
                assert!(below.is_empty(), "{section}: {field} has fields that the page does not tell");
            }
        }
    }
}

fn make_source(varv: &Varv) {
    let source = varv.dir("source");
    fs::write(source.join("file"), "content").unwrap();
    fs::write(source.join("copy"), "content").unwrap();
    for name in ["dir", "same"] {
        fs::create_dir(source.join(name)).unwrap();
        fs::write(source.join(name).join("file"), "more").unwrap();
    }
    // Two that are long, and partly equal.
    let long: Vec<u8> =
        (0..4u32 << 20).flat_map(|i| i.wrapping_mul(0x9e37_79b9).rotate_left(13).to_be_bytes()).collect();
    fs::write(source.join("long"), &long).unwrap();
    fs::write(source.join("longer"), [&long[..], b"end"].concat()).unwrap();
    fs::write(source.join(OsStr::from_bytes(b"odd\xff")), "odd").unwrap();
    fs::write(varv.path("list"), "0 1\n").unwrap();
    let config = format!("[profiles.nightly]\nbefore = [\"true\"]\nsources = [{source:?}]\ncheck = {{}}\n");
    fs::write(varv.path("varv.toml"), config).unwrap();
    support::chmod(&varv.path("varv.toml"), 0o600);
    fs::write(varv.path("report"), "{\"groups\":[]}").unwrap();
    symlink("file", source.join("link")).unwrap();
}

fn run(varv: &Varv, code: i32, words: &str) -> Done {
    let home = varv.path("").to_str().unwrap().trim_end_matches('/').to_owned();
    let word = |word: &str| match word {
        "@" => varv.snapshots().pop().unwrap()["id"].as_str().unwrap().into(),
        word => OsString::from(word.replace('$', &home)),
    };
    let words = words.split(' ').map(word);
    varv.ends(code, &[OsString::from("--json")].into_iter().chain(words).collect::<Vec<_>>())
}

#[test]
fn what_is_printed_is_what_the_page_says() {
    let page = Page::read();
    let varv = Varv::without_repository();
    make_source(&varv);
    let mut printed = Printed::new();
    for (section, code, words) in RUNS {
        let section = if words.contains(" init ") { "init" } else { section };
        collect(section, &run(&varv, *code, words).json(), &page, &mut printed);
    }
    collect("locks", &with_a_lock(&varv), &page, &mut printed);
    lose_a_pack(&varv);
    collect("check", &run(&varv, 4, "check").json(), &page, &mut printed);
    break_a_pack_and_a_snapshot(&varv);
    collect("repair", &run(&varv, 4, "repair --dry-run").json(), &page, &mut printed);
    // What needs LVM is compared in `tests/lvm.rs`.
    for (name, section) in page.sections.iter().filter(|(name, _)| !name.starts_with("lvm ")) {
        let of = |field: &str| printed.get(&(name.clone(), field.into())).cloned().unwrap_or_default();
        assert_eq!(section.fields, of(""), "left: docs/json.md, right: what {name} prints");
        for field in &section.fields {
            let Some(fields) = page.below(name, field) else { continue };
            // A number may have the name of what elsewhere is a list.
            if of(field).is_empty() && !section.below.contains_key(field) {
                continue;
            }
            assert_eq!(*fields, of(field), "left: docs/json.md, right: what {field} of {name} holds");
        }
    }
}

/// What `locks` prints while somebody is in the repository.
fn with_a_lock(varv: &Varv) -> Value {
    let words = ["backup", "-q", "--stdin", "stream"].map(OsString::from);
    let mut child = varv.command(&words).stdin(Stdio::piped()).spawn().unwrap();
    let rows = loop {
        let rows = run(varv, 0, "locks").json();
        if rows[0]["command"].is_string() {
            break rows;
        }
        std::thread::yield_now();
    };
    child.kill().unwrap();
    child.wait().unwrap();
    rows
}

fn lose_a_pack(varv: &Varv) {
    let packs = varv.objects().into_iter().filter(|path| path.to_string_lossy().contains("/packs/"));
    let largest = packs.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    fs::remove_file(largest).unwrap();
}

fn break_a_pack_and_a_snapshot(varv: &Varv) {
    for folder in ["/packs/", "/snapshots/"] {
        let path = varv.objects().into_iter().find(|path| path.to_string_lossy().contains(folder)).unwrap();
        fs::write(path, "damaged").unwrap();
    }
}

/// The commands below these words, from their own help.
fn commands(varv: &Varv, words: &[&str]) -> Vec<String> {
    let arguments: Vec<OsString> = words.iter().chain(&["--help"]).map(OsString::from).collect();
    let help = String::from_utf8(varv.ok(&arguments).stdout).unwrap();
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return vec![words.join(" ")] };
    let lines = list.lines().take_while(|line| !line.is_empty());
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let name = |line: &str| line.split_whitespace().next().unwrap().to_owned();
    names.map(name).flat_map(|name| commands(varv, &[words, &[&name]].concat())).collect()
}

#[test]
fn every_command_is_on_the_page() {
    let page = Page::read();
    let commands = commands(&Varv::without_repository(), &[]);
    assert!(commands.iter().any(|name| name == "key add"), "{commands:?}");
    for name in commands {
        assert!(page.sections.contains_key(&name), "{name} has no section in docs/json.md");
    }
}
