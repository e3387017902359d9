//! The house, checked: who may import whom, which outside crate enters by which door, and what
//! nothing below the command line does. `docs/architecture.md` explains the floors.
//!
//! Reads the sources as text, without comments, strings and test modules; that is enough for paths.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// Top to bottom. A room imports from floors below its own; rooms on one floor are strangers.
const FLOORS: &[&[&str]] = &[
    &["cli"],
    &["backup", "restore", "history", "upkeep", "dupes"],
    &["repo"],
    &["lvm", "blocks"],
    &["source", "target"],
    &["codec", "store"],
    &["format", "chunker"],
    GROUND,
];

/// The lowest floor: used by all above, and by each other only as `EXCEPTIONS` has it.
const GROUND: &[&str] = &["id", "error", "observe", "text", "nested", "ordered", "time"];

/// Imports inside of one floor, with the reason.
const EXCEPTIONS: &[(&str, &str)] = &[
    // Errors name the object they happened on.
    ("error", "id"),
    ("observe", "id"),
    // Observers are told of problems.
    ("observe", "error"),
    // A worker that died is reported as an error.
    ("ordered", "error"),
    // Which snapshot and path is meant is one question, asked by both.
    ("restore", "history"),
];

/// The places that may name a crate. What it does for us is read in one place, and replaced there.
const DOORS: &[(&str, &[&str])] = &[
    ("argon2", &["repo/keys"]),
    ("aws_lc_rs", &["codec/seal"]),
    ("blake3", &["id"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("fastcdc", &["chunker"]),
    ("fiemap", &["dupes/shared"]),
    ("globset", &["backup/tiers", "history/find", "lvm/select"]),
    ("ignore", &["source"]),
    ("indicatif", &["cli"]),
    ("rpassword", &["cli"]),
    ("strsim", &["cli"]),
    ("tar", &["restore/archive"]),
    ("toml", &["cli/config"]),
    ("rusqlite", &["repo/index", "repo/schema"]),
    ("signal_hook", &["cli"]),
    ("thiserror", &["error"]),
    ("walkdir", &["store", "dupes"]),
    ("zstd", &["codec"]),
];

/// Crates that extend the language or the system's interface, and may be used anywhere.
const EVERYWHERE: &[&str] =
    &["crossbeam_channel", "getrandom", "jiff", "lru", "rustix", "serde", "serde_json", "zeroize"];

/// What only the command line does: to print, to read the environment, to end the process.
const ONLY_CLI: &[&str] = &[
    "println!",
    "print!",
    "eprintln!",
    "eprint!",
    "dbg!",
    "env::",
    "process::exit",
    "io::stdout",
    "io::stderr",
];

/// The most lines of a file, tests not counted. A file that grows past it has two reasons to
/// change and wants to be split; 400 reads best.
const LINES_MAX: usize = 700;

/// A source file without its comments, strings and test modules; line numbers are kept.
struct Source {
    /// As shown, such as `src/repo/keys.rs`.
    name: String,
    /// As a module path, such as `repo/keys`.
    module: String,
    text: String,
}

impl Source {
    fn new(name: &str, text: &str) -> Self {
        let module = name.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        Self { name: name.into(), module: module.into(), text: without_tests(&without_comments(text)) }
    }

    /// The top-level module that this is part of.
    fn room(&self) -> &str {
        self.module.split('/').next().unwrap()
    }

    /// Whether this is the module `door` or one below it.
    fn is_in(&self, door: &str) -> bool {
        self.module.strip_prefix(door).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    fn line(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }

    /// The rooms it names, with the position of each.
    fn imports(&self) -> Vec<(usize, String)> {
        let depth = self.module.split('/').count();
        let from_root = occurrences(&self.text, "crate::").into_iter().map(|at| (at, at + 7));
        let up = "super::".repeat(depth);
        let out_of_room = occurrences(&self.text, &up).into_iter().map(|at| (at, at + up.len()));
        from_root
            .chain(out_of_room)
            .flat_map(|(at, end)| first_names(&self.text[end..]).into_iter().map(move |name| (at, name)))
            .collect()
    }
}

/// The first name of a path, or of each path in braces.
fn first_names(path: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| is_word(*c)).collect::<String>();
    let Some(group) = path.strip_prefix('{') else { return vec![name(path)] };
    let mut names = Vec::new();
    let mut level = 0;
    let mut is_first = true;
    for (at, c) in group.char_indices() {
        match c {
            '{' => level += 1,
            '}' if level == 0 => break,
            '}' => level -= 1,
            ',' if level == 0 => is_first = true,
            c if is_word(c) && is_first => {
                is_first = false;
                names.push(name(&group[at..]));
            }
            _ => {}
        }
    }
    names
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where `wanted` stands as a path's beginning: not as the end of a longer word or path.
fn occurrences(text: &str, wanted: &str) -> Vec<usize> {
    let begins = |at: usize| {
        let before = &text[..at];
        !before.ends_with(is_word) && !before.ends_with("::") && !before.ends_with('$')
    };
    text.match_indices(wanted).map(|(at, _)| at).filter(|at| begins(*at)).collect()
}

/// Where `wanted` stands, whatever path leads to it.
fn mentions(text: &str, wanted: &str) -> Vec<usize> {
    text.match_indices(wanted).map(|(at, _)| at).filter(|at| !text[..*at].ends_with(is_word)).collect()
}

/// Where the outside crate `name` is used.
fn uses_of(text: &str, name: &str) -> Vec<usize> {
    let is_path = |end: usize| text[end..].starts_with("::");
    let is_import =
        |at: usize, end: usize| text[..at].trim_end().ends_with("use") && !text[end..].starts_with(is_word);
    occurrences(text, name)
        .into_iter()
        .filter(|at| is_path(at + name.len()) || is_import(*at, at + name.len()))
        .collect()
}

/// Blanks comments, strings and character literals, so that what they say counts for nothing.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let len = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => string(rest),
            'r' | 'b' | 'c' if !out.ends_with(is_word) => prefixed_string(rest),
            '\'' => character(rest),
            _ => 0,
        };
        if len == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            let (gone, tail) = rest.split_at(len);
            out.extend(gone.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = tail;
        }
    }
    out
}

fn block_comment(text: &str) -> usize {
    let mut level = 0;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            level += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            level -= 1;
            at += 2;
            if level == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().unwrap().len_utf8();
        }
    }
    text.len()
}

/// The length of the string that `text` begins with.
fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a string such as `b"…"` or `r#"…"#`; 0 if there is none.
fn prefixed_string(text: &str) -> usize {
    let letters = text.find(|c| !"rbc".contains(c)).unwrap_or(text.len());
    let hashes = text[letters..].find(|c| c != '#').unwrap_or(0);
    let begin = letters + hashes;
    if letters > 2 || !text[begin..].starts_with('"') {
        return 0;
    }
    if !text[..letters].contains('r') {
        return if hashes == 0 { begin + string(&text[begin..]) } else { 0 };
    }
    let end = format!("\"{}", "#".repeat(hashes));
    text[begin + 1..].find(&end).map_or(text.len(), |at| begin + 1 + at + end.len())
}

/// The length of the character that `text` begins with; 0 if it is a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => text[3..].find('\'').map_or(0, |at| at + 4),
        Some(_) => chars.next().filter(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 1),
        None => 0,
    }
}

/// Blanks what stands under `#[cfg(test)]`.
fn without_tests(text: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(MARK) {
        let (before, tests) = rest.split_at(at);
        out.push_str(before);
        let (gone, after) = tests.split_at(item_len(tests));
        out.extend(gone.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = after;
    }
    out + rest
}

/// The length of the item that `text` begins with: up to its semicolon or closing brace.
fn item_len(text: &str) -> usize {
    let mut level = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => level += 1,
            '}' => {
                level -= 1;
                if level == 0 {
                    return at + 1;
                }
            }
            ';' if level == 0 => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Files of modules that only tests have: `#[cfg(test)] mod NAME;`.
fn test_files(path: &Path, text: &str) -> Vec<PathBuf> {
    let folder = match path.file_name().unwrap().to_str().unwrap() {
        "mod.rs" | "lib.rs" | "main.rs" => path.parent().unwrap().to_path_buf(),
        _ => path.with_extension(""),
    };
    let names = text.match_indices("#[cfg(test)]").filter_map(|(at, mark)| {
        let item = text[at + mark.len()..].trim_start();
        let item = item.split_once("mod ")?.1.split_once(';')?.0;
        item.chars().all(is_word).then(|| item.to_string())
    });
    names.flat_map(|name| [folder.join(format!("{name}.rs")), folder.join(name).join("mod.rs")]).collect()
}

/// All of `src` but files that only tests have.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = BTreeMap::new();
    read_folder(&root.join("src"), &mut files);
    let tests: BTreeSet<PathBuf> = files.iter().flat_map(|(path, text)| test_files(path, text)).collect();
    let name = |path: &Path| path.strip_prefix(root).unwrap().to_str().unwrap().to_string();
    let is_code = |path: &Path| !tests.contains(path);
    files
        .iter()
        .filter(|(path, _)| is_code(path))
        .map(|(path, text)| Source::new(&name(path), text))
        .collect()
}

fn read_folder(folder: &Path, files: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_folder(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            files.insert(path, text);
        }
    }
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&room))
}

/// Why `room` must not import `other`; `None` if it may.
fn forbidden(room: &str, other: &str) -> Option<String> {
    let (Some(own), Some(theirs)) = (floor(room), floor(other)) else {
        return Some(format!("{room} or {other} is in no floor of the house: give it one in FLOORS"));
    };
    if room == other || theirs > own || EXCEPTIONS.contains(&(room, other)) {
        return None;
    }
    Some(match theirs == own {
        true => format!("{room} and {other} share a floor: neither imports the other"),
        false => format!("{room} is below {other}: a room imports only from floors below its own"),
    })
}

fn import_violations(source: &Source) -> Vec<String> {
    let broken = |(at, other): (usize, String)| {
        let why = forbidden(source.room(), &other)?;
        Some(format!("{}:{}: imports {other}: {why}", source.name, source.line(at)))
    };
    source.imports().into_iter().filter_map(broken).collect()
}

fn door_violations(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for (name, doors) in DOORS.iter().filter(|(_, doors)| !doors.iter().any(|door| source.is_in(door))) {
        for at in uses_of(&source.text, name) {
            let line = source.line(at);
            found.push(format!("{}:{line}: uses {name}, whose door is {}", source.name, doors.join(", ")));
        }
    }
    found
}

fn silence_violations(source: &Source) -> Vec<String> {
    let found =
        |word: &&str| mentions(&source.text, word).into_iter().map(|at| (at, word.to_string())).collect();
    let all: Vec<(usize, String)> = ONLY_CLI.iter().flat_map(|word| -> Vec<_> { found(word) }).collect();
    let say = |(at, word): (usize, String)| {
        format!(
            "{}:{}: {word} belongs into cli: nothing below it prints, exits or reads the environment",
            source.name,
            source.line(at)
        )
    };
    all.into_iter().map(say).collect()
}

/// Sources with a place in the house: not the two roots, which only declare and start.
fn rooms() -> Vec<Source> {
    sources().into_iter().filter(|source| !matches!(source.module.as_str(), "lib" | "main")).collect()
}

fn assert_none(violations: Vec<String>) {
    let mut text = String::new();
    for violation in &violations {
        let _ = writeln!(text, "  {violation}");
    }
    assert!(violations.is_empty(), "the house is broken (see docs/architecture.md):\n{text}");
}

#[test]
fn rooms_import_only_from_floors_below() {
    assert_none(rooms().iter().flat_map(import_violations).collect());
}

#[test]
fn each_dependency_enters_by_its_door() {
    assert_none(rooms().iter().flat_map(door_violations).collect());
}

#[test]
fn only_the_command_line_prints_exits_and_reads_the_environment() {
    assert_none(rooms().iter().filter(|s| s.room() != "cli").flat_map(silence_violations).collect());
}

#[test]
fn every_dependency_has_been_given_a_place() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let section = manifest.split("\n[").find_map(|part| part.strip_prefix("dependencies]\n")).unwrap();
    let names: Vec<String> = section
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, _)| name.replace('-', "_"))
        .collect();
    assert!(names.len() > 10, "Cargo.toml is read wrongly");
    let is_placed =
        |name: &str| EVERYWHERE.contains(&name) || DOORS.iter().any(|(placed, _)| *placed == name);
    let homeless: Vec<String> = names
        .iter()
        .filter(|name| !is_placed(name))
        .map(|name| format!("Cargo.toml: {name} has no door: say in DOORS where it may be used"))
        .collect();
    assert_none(homeless);
}

#[test]
fn every_room_is_in_the_house() {
    let mut homeless: Vec<String> = rooms()
        .iter()
        .filter(|source| floor(source.room()).is_none())
        .map(|source| format!("{}: {} is in no floor: give it one in FLOORS", source.name, source.room()))
        .collect();
    homeless.dedup();
    assert_none(homeless);
}

#[test]
fn files_are_short_enough_to_read() {
    let lines = |source: &Source| source.text.lines().filter(|line| !line.trim().is_empty()).count();
    let long = |source: &Source| {
        let count = lines(source);
        (count > LINES_MAX).then(|| {
            format!("{}: {count} lines of code, of {LINES_MAX}: split it by reason to change", source.name)
        })
    };
    assert_none(sources().iter().filter_map(long).collect());
}

/// The checks themselves: what they must see, and what they must overlook.
mod checks {
    use super::*;

    fn source(name: &str, text: &str) -> Source {
        Source::new(name, text)
    }

    #[test]
    fn imports_are_seen_in_every_shape() {
        let text = "use crate::{error::{Error, Result}, repo};\nfn f() { crate::backup::run() }\nuse super::super::cli;";
        let names: Vec<String> =
            source("src/store/local.rs", text).imports().into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["error", "repo", "backup", "cli"]);
        let found = import_violations(&source("src/store/local.rs", text));
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("src/store/local.rs:1: imports repo: store is below repo"), "{found:?}");
        assert!(found[1].starts_with("src/store/local.rs:2: imports backup"), "{found:?}");
        assert!(
            import_violations(&source("src/repo/mod.rs", "use super::cli;"))[0].contains("repo is below cli")
        );
    }

    #[test]
    fn neighbours_are_strangers() {
        assert!(forbidden("backup", "restore").is_some_and(|why| why.contains("share a floor")));
        assert!(forbidden("history", "restore").is_some());
        assert_eq!(forbidden("restore", "history"), None);
        assert_eq!(forbidden("restore", "restore"), None);
        assert!(forbidden("attic", "id").is_some_and(|why| why.contains("in no floor")));
    }

    #[test]
    fn crates_are_seen_at_the_wrong_door() {
        for text in ["use zstd::bulk;", "fn f() { zstd::decode() }", "use zstd;", "use zstd as z;"] {
            assert_eq!(door_violations(&source("src/repo/mod.rs", text)).len(), 1, "{text}");
            assert_eq!(door_violations(&source("src/codec/frame.rs", text)).len(), 0, "{text}");
        }
        for text in
            ["let zstd = 1;", "use crate::codec::zstd::X;", "my_zstd::f()", "// zstd::f", "\"zstd::f\""]
        {
            assert_eq!(door_violations(&source("src/repo/mod.rs", text)).len(), 0, "{text}");
        }
        let rusqlite = "use rusqlite::Connection;";
        assert!(door_violations(&source("src/repo/index/run.rs", rusqlite)).is_empty());
        assert!(!door_violations(&source("src/repo/indexes.rs", rusqlite)).is_empty());
    }

    #[test]
    fn noise_below_the_command_line_is_seen() {
        for text in [
            "println!()",
            "std::env::var(X)",
            "use std::env::{self};",
            "std::process::exit(1)",
            "std::io::stdout()",
        ] {
            assert_eq!(silence_violations(&source("src/repo/mod.rs", text)).len(), 1, "{text}");
        }
        assert!(silence_violations(&source("src/repo/mod.rs", "env!(\"CARGO_PKG_VERSION\")")).is_empty());
    }

    #[test]
    fn comments_strings_and_tests_count_for_nothing() {
        let text = "//! crate::cli\n/* crate::cli /* crate::cli */ */\nconst A: &str = \"crate::cli \\\" crate::cli\";\n\
            const B: &[u8] = br#\"crate::cli \" crate::cli\"#;\nconst C: char = '\"'; fn f<'a>(x: &'a str) {}\n\
            #[cfg(test)]\nmod tests {\n    use crate::cli;\n    fn f() { let _ = '}'; }\n}\nuse crate::id;\n";
        let source = source("src/store/local.rs", text);
        assert_eq!(
            source.imports().into_iter().map(|(at, name)| (source.line(at), name)).collect::<Vec<_>>(),
            [(11, "id".into())]
        );
        assert_eq!(
            test_files(
                Path::new("src/repo/lock.rs"),
                "#[cfg(test)]\nmod tests;\n#[cfg(test)]\nmod inner { }"
            ),
            [PathBuf::from("src/repo/lock/tests.rs"), PathBuf::from("src/repo/lock/tests/mod.rs")]
        );
    }

    #[test]
    fn the_sources_are_there() {
        let all = sources();
        assert!(all.len() > 50 && all.iter().any(|source| source.module == "repo/keys"));
        assert!(!all.iter().any(|source| source.name.ends_with("tests.rs")));
    }
}
