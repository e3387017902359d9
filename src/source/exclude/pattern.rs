//! Patterns as gitignore has them: where they come from, which are refused, and what they match.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::ExcludeOptions;
use crate::error::{Error, IoContext, Result};

/// A pattern, and whether it was of use.
#[derive(Debug)]
pub(super) struct Pattern {
    /// A line as in gitignore.
    pub(super) line: Vec<u8>,
    /// Whether it ever matched.
    matched: AtomicBool,
}

/// The options' patterns, those of files first: what stands on the command line has the last
/// word.
pub(super) fn patterns(options: &ExcludeOptions) -> Result<Vec<Pattern>> {
    let mut patterns = Vec::new();
    for path in &options.pattern_files {
        let file = fs::read(path).at("read", path)?;
        patterns.extend(lines(&file).map(Pattern::new));
    }
    for pattern in &options.patterns {
        patterns.push(Pattern::new(&literal_line(pattern)?));
    }
    Ok(patterns)
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    let file = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file);
    let lines = file.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.filter(|line| !line.trim_ascii().is_empty() && !line.starts_with(b"#"))
}

/// On a command line `#` begins no comment.
fn literal_line(pattern: &OsStr) -> Result<Vec<u8>> {
    let bytes = pattern.as_bytes();
    if bytes.trim_ascii().is_empty() {
        return Err(Error::Refused("an exclude pattern is empty".into()));
    }
    Ok(if bytes.starts_with(b"#") { [b"\\", bytes].concat() } else { bytes.to_vec() })
}

impl Pattern {
    pub(super) fn new(line: &[u8]) -> Self {
        Self { line: line.to_vec(), matched: AtomicBool::new(false) }
    }

    /// Whether it ever matched.
    pub(super) fn has_matched(&self) -> bool {
        self.matched.load(Ordering::Relaxed)
    }

    pub(super) fn note_match(&self) {
        self.matched.store(true, Ordering::Relaxed);
    }

    pub(super) fn text(&self) -> String {
        // Not `escape`, which would double the backslashes that the user wrote.
        String::from_utf8_lossy(&self.line).into_owned()
    }

    fn refuse(&self, why: impl std::fmt::Display) -> Error {
        Error::Refused(format!("the exclude pattern '{}' is wrong: {why}", self.text()))
    }
}

/// What follows the source's path in a pattern that begins with it, as written or with
/// backslashes before its special characters.
pub(super) fn strip_source<'a>(mut pattern: &'a [u8], source: &Path) -> Option<&'a [u8]> {
    let source = source.as_os_str().as_bytes();
    for byte in source.strip_suffix(b"/").unwrap_or(source) {
        pattern = match pattern {
            [first, rest @ ..] | [b'\\', first, rest @ ..] if first == byte => rest,
            _ => return None,
        };
    }
    matches!(pattern.first(), None | Some(b'/')).then_some(pattern)
}

pub(super) fn builder() -> GitignoreBuilder {
    // Paths are given relative to the source. The root is taken off their beginning where it
    // stands there, which `/` never does.
    let mut builder = GitignoreBuilder::new("/");
    // A pattern that can match nothing is better refused than let through.
    builder.allow_unclosed_class(false);
    builder
}

pub(super) fn add(builder: &mut GitignoreBuilder, line: &[u8], pattern: &Pattern) -> Result<()> {
    let line = std::str::from_utf8(line)
        .map_err(|_| pattern.refuse("it is not UTF-8; write ? for each byte that is not"))?;
    match builder.add_line(None, &without_alternatives(line)) {
        Ok(_) => Ok(()),
        Err(ignore::Error::Glob { err, .. }) => Err(pattern.refuse(err)),
        Err(error) => Err(pattern.refuse(error)),
    }
}

pub(super) fn build(builder: &GitignoreBuilder) -> Result<Gitignore> {
    builder.build().map_err(|error| Error::Refused(format!("the exclude patterns are too much: {error}")))
}

/// The matcher takes `{a,b}` as alternatives, gitignore takes braces as they are.
fn without_alternatives(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '{' | '}' => out.extend(['\\', c]),
            '\\' => out.extend([c].into_iter().chain(chars.next())),
            '[' => {
                let class = class_len(chars.as_str());
                out.push('[');
                out.extend(chars.by_ref().take(class));
            }
            c => out.push(c),
        }
    }
    out
}

/// How many characters after a `[` belong to the class, its `]` included; 0 if there is none.
fn class_len(rest: &str) -> usize {
    let negation = rest.chars().take(1).filter(|c| matches!(c, '!' | '^')).count();
    // A `]` that comes first is one of the class.
    let end = rest.chars().skip(negation + 1).position(|c| c == ']');
    end.map_or(0, |end| negation + end + 2)
}

/// Patterns alone, for selecting what is restored.
#[derive(Debug)]
pub struct Patterns {
    all: Gitignore,
    /// Each alone: which of them ever matched.
    each: Vec<(Pattern, Gitignore)>,
}

impl Patterns {
    /// From the command line; rooted at `root`, which they may begin with.
    pub fn new(patterns: &[OsString], root: &Path) -> Result<Self> {
        let mut all = builder();
        let mut each = Vec::new();
        for pattern in patterns {
            let pattern = Pattern::new(&literal_line(pattern)?);
            let line = strip_root(&pattern.line, root);
            add(&mut all, &line, &pattern)?;
            let mut alone = builder();
            add(&mut alone, &line, &pattern)?;
            each.push((pattern, build(&alone)?));
        }
        Ok(Self { all: build(&all)?, each })
    }

    /// Whether the path, relative to the root, matches.
    pub fn matches(&self, path: &[u8], is_dir: bool) -> bool {
        let path = Path::new(OsStr::from_bytes(path));
        let decision = self.all.matched(path, is_dir);
        if !decision.is_none() {
            for (pattern, alone) in self.each.iter().filter(|(pattern, _)| !pattern.has_matched()) {
                if !alone.matched(path, is_dir).is_none() {
                    pattern.note_match();
                }
            }
        }
        decision.is_ignore()
    }

    /// Those that matched nothing that was asked for.
    pub fn unused(&self) -> impl Iterator<Item = String> {
        self.each
            .iter()
            .map(|(pattern, _)| pattern)
            .filter(|pattern| !pattern.has_matched())
            .map(Pattern::text)
    }
}

/// A pattern as it is below the root. The path of the root itself means all that is in it.
fn strip_root<'a>(line: &'a [u8], root: &Path) -> Cow<'a, [u8]> {
    let (not, pattern) = match line.strip_prefix(b"!") {
        Some(rest) => (&b"!"[..], rest),
        None => (&b""[..], line),
    };
    match strip_source(pattern, root) {
        None => Cow::Borrowed(line),
        Some(b"" | b"/") => Cow::Owned([not, b"/**"].concat()),
        Some(rest) => Cow::Owned([not, rest].concat()),
    }
}
