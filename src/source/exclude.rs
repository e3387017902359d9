//! What is left out of a backup.
//!
//! Patterns follow gitignore, rooted at each SOURCE; one that begins with a SOURCE's path means
//! that path. What a pattern matches is not listed at all. Directories that are left out for
//! what they are or hold (a mount point of the kernel's file systems or, if asked for, of any
//! other; one with a marker) stay in the backup without their content: a restored system needs
//! its mount points, and a restored cache its place, owner and marker. restic and tar do likewise.

use std::collections::{BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs as std_fs;
use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use rustix::fs::{self, FileType, Mode, OFlags, Stat};

use super::metadata::kind;
use super::walk::{Filter, LeftOut, Listed};
use crate::error::{Error, IoContext, Result};
use crate::text::escape;

/// The name of the file that marks a cache.
pub const CACHE_TAG: &[u8] = b"CACHEDIR.TAG";
/// What that file begins with.
pub const CACHE_SIGNATURE: &[u8; 43] = b"Signature: 8a477f597d28d172789f06886806bc55";

/// What was asked to be left out.
#[derive(Debug, Clone, Default)]
pub struct ExcludeOptions {
    /// Patterns; of several that match the last one decides, and those of files come first.
    pub patterns: Vec<OsString>,
    /// Files with one pattern a line; empty lines and lines that begin with `#` do not count.
    pub pattern_files: Vec<PathBuf>,
    /// Directories with an entry of such a name are kept empty but for that entry.
    pub if_present: Vec<OsString>,
    /// So are directories that carry a cache tag.
    pub caches: bool,
    /// Files with more bytes are left out.
    pub larger_than: Option<u64>,
    /// Mount points are kept empty.
    pub one_file_system: bool,
    /// Directories that are never entered, by whatever path they are met: the repository and its
    /// cache. They need not exist.
    pub never: Vec<PathBuf>,
}

/// The options, read and checked; shared between threads.
#[derive(Debug)]
pub struct Excludes {
    patterns: Vec<Pattern>,
    sources: Vec<PathBuf>,
    markers: BTreeSet<Vec<u8>>,
    caches: bool,
    larger_than: Option<u64>,
    one_file_system: bool,
    /// Device and inode.
    never: HashSet<(u64, u64)>,
}

#[derive(Debug)]
struct Pattern {
    /// A line as in gitignore.
    line: Vec<u8>,
    /// Whether it ever matched.
    matched: AtomicBool,
}

impl Excludes {
    /// Reads the pattern files and checks all patterns. `sources` are the backup's, absolute.
    pub fn new(options: &ExcludeOptions, sources: &[PathBuf]) -> Result<Self> {
        let excludes = Self {
            patterns: patterns(options)?,
            sources: sources.to_vec(),
            markers: options.if_present.iter().map(marker).collect::<Result<_>>()?,
            caches: options.caches,
            larger_than: options.larger_than,
            one_file_system: options.one_file_system,
            never: options.never.iter().filter_map(|path| identity(path)).collect(),
        };
        for source in sources {
            excludes.below(source)?;
        }
        Ok(excludes)
    }

    /// What applies below one of the sources.
    pub fn below(&self, source: &Path) -> Result<SourceExcludes<'_>> {
        let mut all = builder();
        let mut each = Vec::new();
        for pattern in &self.patterns {
            if let Some(line) = self.line_below(source, &pattern.line) {
                add(&mut all, &line, pattern)?;
                let mut alone = builder();
                add(&mut alone, &line, pattern)?;
                each.push((pattern, build(&alone)?));
            }
        }
        Ok(SourceExcludes { shared: self, all: build(&all)?, each })
    }

    /// The patterns that matched nothing below any source.
    pub fn unused(&self) -> Vec<String> {
        let unused = self.patterns.iter().filter(|pattern| !pattern.matched.load(Ordering::Relaxed));
        unused.map(Pattern::text).collect()
    }

    /// A pattern as it is below `source`: one that begins with a source's path means that path
    /// and nothing below other sources. The path of the source itself means nothing: what was
    /// named is wanted.
    fn line_below(&self, source: &Path, line: &[u8]) -> Option<Vec<u8>> {
        let (not, pattern) = match line.strip_prefix(b"!") {
            Some(rest) => (&b"!"[..], rest),
            None => (&b""[..], line),
        };
        match strip_source(pattern, source) {
            Some(b"" | b"/") => None,
            Some(rest) => Some([not, rest].concat()),
            None if self.sources.iter().any(|other| strip_source(pattern, other).is_some()) => None,
            None => Some(line.to_vec()),
        }
    }
}

/// The options' patterns, those of files first: what stands on the command line has the last
/// word.
fn patterns(options: &ExcludeOptions) -> Result<Vec<Pattern>> {
    let mut patterns = Vec::new();
    for path in &options.pattern_files {
        let file = std_fs::read(path).at("read", path)?;
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
    fn new(line: &[u8]) -> Self {
        Self { line: line.to_vec(), matched: AtomicBool::new(false) }
    }

    fn text(&self) -> String {
        // Not `escape`, which would double the backslashes that the user wrote.
        String::from_utf8_lossy(&self.line).into_owned()
    }

    fn refuse(&self, why: impl std::fmt::Display) -> Error {
        Error::Refused(format!("the exclude pattern '{}' is wrong: {why}", self.text()))
    }
}

/// What follows the source's path in a pattern that begins with it, as written or with
/// backslashes before its special characters.
fn strip_source<'a>(mut pattern: &'a [u8], source: &Path) -> Option<&'a [u8]> {
    let source = source.as_os_str().as_bytes();
    for byte in source.strip_suffix(b"/").unwrap_or(source) {
        pattern = match pattern {
            [first, rest @ ..] | [b'\\', first, rest @ ..] if first == byte => rest,
            _ => return None,
        };
    }
    matches!(pattern.first(), None | Some(b'/')).then_some(pattern)
}

fn builder() -> GitignoreBuilder {
    // Paths are given relative to the source. The root is taken off their beginning where it
    // stands there, which `/` never does.
    let mut builder = GitignoreBuilder::new("/");
    // A pattern that can match nothing is better refused than let through.
    builder.allow_unclosed_class(false);
    builder
}

fn add(builder: &mut GitignoreBuilder, line: &[u8], pattern: &Pattern) -> Result<()> {
    let line = std::str::from_utf8(line)
        .map_err(|_| pattern.refuse("it is not UTF-8; write ? for each byte that is not"))?;
    match builder.add_line(None, &without_alternatives(line)) {
        Ok(_) => Ok(()),
        Err(ignore::Error::Glob { err, .. }) => Err(pattern.refuse(err)),
        Err(error) => Err(pattern.refuse(error)),
    }
}

fn build(builder: &GitignoreBuilder) -> Result<Gitignore> {
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

fn marker(name: &OsString) -> Result<Vec<u8>> {
    let name = name.clone().into_vec();
    if name.is_empty() || name.contains(&b'/') {
        let name = escape(&name);
        return Err(Error::Refused(format!("'{name}' is not a name that a directory can contain")));
    }
    Ok(name)
}

/// Patterns alone, for selecting what is restored.
#[derive(Debug)]
pub struct Patterns(Gitignore);

impl Patterns {
    /// From the command line; rooted at what is restored.
    pub fn new(patterns: &[OsString]) -> Result<Self> {
        let mut builder = builder();
        for pattern in patterns {
            let pattern = Pattern::new(&literal_line(pattern)?);
            add(&mut builder, &pattern.line, &pattern)?;
        }
        build(&builder).map(Self)
    }

    /// Whether the path, relative to the root, matches.
    pub fn matches(&self, path: &[u8], is_dir: bool) -> bool {
        self.0.matched(Path::new(OsStr::from_bytes(path)), is_dir).is_ignore()
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std_fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// What is left out below one source.
#[derive(Debug)]
pub struct SourceExcludes<'a> {
    shared: &'a Excludes,
    all: Gitignore,
    /// Each pattern alone. The matcher of all names only the one that decides, but those that it
    /// outranks have matched too.
    each: Vec<(&'a Pattern, Gitignore)>,
}

impl SourceExcludes<'_> {
    /// Whether patterns leave out the entry at this path below the source. The directories above
    /// it must have been asked about before: what is in one that is left out is not reached.
    pub fn excludes(&self, path: &[u8], is_dir: bool) -> bool {
        let path = Path::new(OsStr::from_bytes(path));
        let decision = self.all.matched(path, is_dir);
        if !decision.is_none() {
            self.count(path, is_dir);
        }
        decision.is_ignore()
    }

    /// Most patterns match soon or never; those that did are not tried again.
    fn count(&self, path: &Path, is_dir: bool) {
        let open = self.each.iter().filter(|(pattern, _)| !pattern.matched.load(Ordering::Relaxed));
        for (pattern, alone) in open {
            if !alone.matched(path, is_dir).is_none() {
                pattern.matched.store(true, Ordering::Relaxed);
            }
        }
    }

    fn is_too_large(&self, stat: &Stat) -> bool {
        let limit = self.shared.larger_than.unwrap_or(u64::MAX);
        kind(stat) == FileType::RegularFile && stat.st_size as u64 > limit
    }

    fn may_be_marker(&self, name: &[u8]) -> bool {
        self.shared.markers.contains(name) || (self.shared.caches && name == CACHE_TAG)
    }

    fn is_marker(&self, dir: BorrowedFd, name: &[u8]) -> bool {
        self.shared.markers.contains(name) || (self.shared.caches && name == CACHE_TAG && is_cache_tag(dir))
    }
}

impl Filter for SourceExcludes<'_> {
    /// Markers are always listed: a pattern that matches them must not hide what they say.
    fn lists(&self, path: &[u8], stat: &Stat) -> bool {
        if self.shared.never.contains(&(stat.st_dev, stat.st_ino)) {
            return false;
        }
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
        let is_dir = kind(stat) == FileType::Directory;
        self.may_be_marker(name) || !(self.excludes(path, is_dir) || self.is_too_large(stat))
    }

    fn empties(&self, dir: BorrowedFd, stat: &Stat, above: Option<&Stat>) -> Option<LeftOut> {
        // What was named as a source is wanted, whatever it is.
        if above.is_none_or(|above| above.st_dev == stat.st_dev) {
            return None;
        }
        match self.shared.one_file_system {
            true => Some(LeftOut::OtherFileSystem),
            false => kernel_file_system(dir, stat).map(LeftOut::KernelFileSystem),
        }
    }

    fn prunes(&self, dir: BorrowedFd, entries: &mut Vec<Listed>) -> Option<LeftOut> {
        let marker = entries.iter().find(|entry| self.is_marker(dir, &entry.name))?.name.clone();
        entries.retain(|entry| self.may_be_marker(&entry.name));
        Some(LeftOut::Marked(marker))
    }
}

/// Whether the directory's cache tag is one. One that cannot be read is none: better a cache in
/// the backup than a directory missing from it.
fn is_cache_tag(dir: BorrowedFd) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    fs::openat(dir, CACHE_TAG, flags, Mode::empty()).is_ok_and(begins_with_signature)
}

fn begins_with_signature(file: OwnedFd) -> bool {
    let mut start = [0; CACHE_SIGNATURE.len()];
    fs::fstat(&file).is_ok_and(|stat| kind(&stat) == FileType::RegularFile)
        && std_fs::File::from(file).read_exact(&mut start).is_ok()
        && start == *CACHE_SIGNATURE
}

/// What the kernel makes up or keeps in memory for itself: reading it is useless at best.
/// Numbers from the kernel's `magic.h` and its file systems' sources.
const KERNEL_FILE_SYSTEMS: [(u32, &str); 20] = [
    (0x0000_9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0x0000_1cd1, "devpts"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x7363_6673, "securityfs"),
    (0xf97c_ff8c, "selinuxfs"),
    (0x4341_5d53, "smackfs"),
    (0x6265_6570, "configfs"),
    (0x6573_5543, "fusectl"),
    (0x4249_4e4d, "binfmt_misc"),
    (0x1980_0202, "mqueue"),
    (0x9584_58f6, "hugetlbfs"),
    (0xcafe_4a11, "bpf"),
    (0x6165_676c, "pstore"),
    (0xde5e_81e4, "efivarfs"),
    (0x6759_6969, "rpc_pipefs"),
    (0x6e66_7364, "nfsd"),
];
/// tmpfs's number, which devtmpfs has too.
const TMPFS: u32 = 0x0102_1994;

fn kernel_file_system(dir: BorrowedFd, stat: &Stat) -> Option<&'static str> {
    // The type is a word of varying size and sign; the numbers have 32 bits.
    let magic = fs::fstatfs(dir).ok()?.f_type as u32;
    if magic == TMPFS {
        let mounts = std_fs::read("/proc/self/mountinfo").unwrap_or_default();
        return is_devtmpfs(&mounts, stat.st_dev).then_some("devtmpfs");
    }
    KERNEL_FILE_SYSTEMS.iter().find(|(known, _)| *known == magic).map(|(_, name)| *name)
}

/// Lines are `id parent major:minor root mount-point options… - type source options`.
fn is_devtmpfs(mounts: &[u8], device: u64) -> bool {
    let device = format!("{}:{}", fs::major(device), fs::minor(device));
    String::from_utf8_lossy(mounts).lines().any(|line| {
        let of_device = line.split(' ').nth(2) == Some(&device);
        of_device && line.split_once(" - ").is_some_and(|(_, rest)| rest.starts_with("devtmpfs "))
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;
    use crate::source::walk::{Listing, Walker};

    fn options(patterns: &[&str]) -> ExcludeOptions {
        ExcludeOptions { patterns: patterns.iter().map(OsString::from).collect(), ..Default::default() }
    }

    fn excludes(source: &str, patterns: &[&str]) -> Excludes {
        Excludes::new(&options(patterns), &[source.into()]).unwrap()
    }

    /// As a walk asks: from the top, and not below what is left out. A path that ends with a
    /// slash is a directory's.
    fn left_out(source: &SourceExcludes, path: &[u8]) -> bool {
        let (path, is_dir) = match path.strip_suffix(b"/") {
            Some(path) => (path, true),
            None => (path, false),
        };
        let above = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/');
        above.into_iter().any(|(at, _)| source.excludes(&path[..at], true)) || source.excludes(path, is_dir)
    }

    #[test]
    fn patterns_follow_gitignore() {
        let cases: [(&[&str], &str, bool); 58] = [
            // Without a slash: at any depth.
            (&["foo"], "foo", true),
            (&["foo"], "a/b/foo", true),
            (&["foo"], "foo/", true),
            (&["foo"], "foobar", false),
            (&["*.o"], "a.o", true),
            (&["*.o"], "x/y/a.o", true),
            (&["*.o"], "a.oo", false),
            (&["fo?"], "fox", true),
            (&["fo?"], "fo", false),
            (&["fo?"], "fo/x", false),
            (&["[ab]c"], "bc", true),
            (&["[!ab]c"], "bc", false),
            (&["[^ab]c"], "xc", true),
            (&["[]x]"], "]", true),
            // With a slash: from the source.
            (&["/foo"], "foo", true),
            (&["/foo"], "a/foo", false),
            (&["a/foo"], "a/foo", true),
            (&["a/foo"], "b/a/foo", false),
            (&["a/*"], "a/b", true),
            (&["a/*"], "a/b/c", true),
            (&["a/*.c"], "a/b/x.c", false),
            (&["/*.c"], "x.c", true),
            (&["/*.c"], "a/x.c", false),
            // With a slash at the end: directories.
            (&["foo/"], "foo/", true),
            (&["foo/"], "foo", false),
            (&["foo/"], "a/foo/", true),
            (&["foo/"], "foo/bar", true),
            (&["/a/foo/"], "a/foo/x", true),
            // Two asterisks.
            (&["**/foo"], "foo", true),
            (&["**/foo"], "a/b/foo", true),
            (&["**/foo/bar"], "a/foo/bar", true),
            (&["foo/**"], "foo/", false),
            (&["foo/**"], "foo/a/b", true),
            (&["a/**/b"], "a/b", true),
            (&["a/**/b"], "a/x/y/b", true),
            (&["a/**/b"], "c/a/x/b", false),
            // Exceptions; the last match decides.
            (&["*.o", "!keep.o"], "keep.o", false),
            (&["*.o", "!keep.o"], "a/drop.o", true),
            (&["!keep.o", "*.o"], "keep.o", true),
            (&["foo/", "!foo/bar"], "foo/bar", true),
            (&["foo/*", "!foo/bar"], "foo/bar", false),
            (&["foo/*", "!foo/bar"], "foo/baz", true),
            (&["/*", "!/etc"], "etc/", false),
            (&["/*", "!/etc"], "usr/", true),
            // The source's path.
            (&["/srv/data/foo"], "foo", true),
            (&["/srv/data/foo"], "a/foo", false),
            (&["/srv/data/foo"], "srv/data/foo", false),
            (&["/srv/data/*.o"], "a/x.o", false),
            (&["/srv/data/**/x.o"], "a/x.o", true),
            (&["foo/*", "!/srv/data/foo/bar"], "foo/bar", false),
            (&["/srv/data"], "srv/data", false),
            (&["/srv/data/"], "a/", false),
            (&["/srv/database"], "base", false),
            // Special characters as they are.
            (&["\\#a"], "#a", true),
            (&["#a"], "#a", true),
            (&["\\!a"], "!a", true),
            (&["{a,b}"], "a", false),
            (&["{a,[}]b}"], "{a,}b}", true),
        ];
        for (patterns, path, expected) in cases {
            let excludes = excludes("/srv/data", patterns);
            let source = excludes.below(Path::new("/srv/data")).unwrap();
            assert_eq!(left_out(&source, path.as_bytes()), expected, "{patterns:?} {path}");
        }
    }

    #[test]
    fn names_need_not_be_utf8() {
        let excludes = excludes("/s", &["*.o", "caf?", "/d\u{e9}/*"]);
        let source = excludes.below(Path::new("/s")).unwrap();
        assert!(left_out(&source, b"\xff\xfe.o"));
        assert!(left_out(&source, b"\xc3/\xff.o"));
        assert!(left_out(&source, b"caf\xe9"));
        assert!(left_out(&source, b"d\xc3\xa9/\xff"));
        assert!(left_out(&source, b"a\nb.o"));
        assert!(!left_out(&source, b"\xff.oo"));
        assert!(!left_out(&source, b"d\xe9/x"));
    }

    #[test]
    fn the_source_may_be_the_root() {
        let excludes = excludes("/", &["/proc", "/var/cache/*", "tmp/", "/"]);
        let source = excludes.below(Path::new("/")).unwrap();
        for (path, expected) in [
            ("proc/", true),
            ("chroot/proc/", false),
            ("var/cache/apt/", true),
            ("var/cache/", false),
            ("srv/var/cache/x", false),
            ("a/tmp/", true),
            ("etc/passwd", false),
        ] {
            assert_eq!(left_out(&source, path.as_bytes()), expected, "{path}");
        }
        assert_eq!(excludes.unused(), ["/"]);
    }

    #[test]
    fn a_pattern_of_one_source_leaves_the_others_alone() {
        let sources = ["/srv".into(), "/home/".into(), "/srv/a[1]".into()];
        let patterns = ["/srv/x", "/home/y", "/z", "/srv/a[1]/b", "/srv/a\\[1\\]/c"];
        let excludes = Excludes::new(&options(&patterns), &sources).unwrap();
        let asked =
            |source: &str, path: &str| left_out(&excludes.below(Path::new(source)).unwrap(), path.as_bytes());
        assert!(asked("/srv", "x") && !asked("/srv", "srv/x") && !asked("/srv", "y"));
        assert!(asked("/home/", "y") && !asked("/home/", "x") && !asked("/home/", "srv/x"));
        assert!(asked("/srv", "z") && asked("/home/", "z"));
        assert!(asked("/srv/a[1]", "b") && asked("/srv/a[1]", "c") && !asked("/srv/a[1]", "x"));
        // In the source above it, the brackets are a pattern's.
        assert!(asked("/srv", "a[1]/c") && asked("/srv", "a1/b") && !asked("/srv", "a[1]/b"));
        assert_eq!(excludes.unused(), Vec::<String>::new());
    }

    #[test]
    fn a_source_need_not_be_utf8() {
        let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        let patterns = vec![OsString::from_vec(b"/s\xff/x".to_vec())];
        let options = ExcludeOptions { patterns, ..Default::default() };
        let excludes = Excludes::new(&options, &[path(b"/s\xff")]).unwrap();
        assert!(left_out(&excludes.below(&path(b"/s\xff")).unwrap(), b"x"));
        let refused = Excludes::new(&options, &[path(b"/t")]).unwrap_err();
        assert!(matches!(refused, Error::Refused(_)), "{refused}");
    }

    #[test]
    fn wrong_patterns_are_refused_by_name() {
        for pattern in ["a[b", "a[z-a]", "a\\", "!x[", "/srv/x[", "[a{"] {
            let error = Excludes::new(&options(&["ok", pattern]), &["/srv".into()]).unwrap_err();
            assert!(matches!(error, Error::Refused(_)));
            assert!(error.to_string().contains(pattern), "{error}");
        }
        for pattern in ["", "  "] {
            assert!(matches!(Excludes::new(&options(&[pattern]), &[]), Err(Error::Refused(_))));
        }
        let if_present = vec!["a/b".into()];
        let options = ExcludeOptions { if_present, ..Default::default() };
        assert!(matches!(Excludes::new(&options, &[]), Err(Error::Refused(_))));
    }

    #[test]
    fn patterns_come_from_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("patterns");
        std_fs::write(&file, "\u{feff}# comment\n*.o\r\n\n   \n\\#x\nspace\\ \n!no.o\nlast").unwrap();
        let mut options = options(&["!yes.o"]);
        options.pattern_files = vec![file];
        let excludes = Excludes::new(&options, &["/s".into()]).unwrap();
        let source = excludes.below(Path::new("/s")).unwrap();
        assert_eq!(excludes.unused().len(), 6);
        for (path, expected) in
            [("a.o", true), ("no.o", false), ("yes.o", false), ("#x", true), ("space ", true), ("last", true)]
        {
            assert_eq!(left_out(&source, path.as_bytes()), expected, "{path}");
        }
        assert_eq!(excludes.unused(), Vec::<String>::new());
        options.pattern_files = vec![dir.path().join("missing")];
        let missing = Excludes::new(&options, &[]).unwrap_err();
        assert!(missing.to_string().contains("missing") && missing.io().is_some());
    }

    #[test]
    fn patterns_that_matched_are_told_from_those_that_did_not() {
        let excludes = excludes("/s", &["*.log", "build/*", "!x.log", "never", "dir/", "*.log"]);
        let source = excludes.below(Path::new("/s")).unwrap();
        assert!(!source.excludes(b"other", false) && !source.excludes(b"dir", false));
        assert_eq!(excludes.unused().len(), 6);
        // `build/*` matched too, though another pattern decides.
        assert!(source.excludes(b"build/x.log", false));
        assert_eq!(excludes.unused(), ["never", "dir/"]);
    }

    /// What a walk finds, directories with a slash, and what it leaves empty.
    fn walk(root: &Path, options: &ExcludeOptions) -> (Vec<String>, Vec<LeftOut>) {
        let excludes = Excludes::new(options, &[root.to_path_buf()]).unwrap();
        let filter = excludes.below(root).unwrap();
        let mut found = (Vec::new(), Vec::new());
        std::thread::scope(|scope| {
            let walker = Walker::new(scope, root, 2, &filter);
            let listing = walker.take(walker.root()).unwrap();
            collect(&walker, "", listing, &mut found);
        });
        found
    }

    fn collect(walker: &Walker, path: &str, listing: Listing, found: &mut (Vec<String>, Vec<LeftOut>)) {
        found.1.extend(listing.left_out);
        for entry in listing.entries {
            let path = format!("{path}{}", String::from_utf8(entry.name).unwrap());
            match entry.subdir {
                None => found.0.push(path),
                Some(subdir) => {
                    found.0.push(format!("{path}/"));
                    collect(walker, &format!("{path}/"), walker.take(subdir).unwrap(), found);
                }
            }
        }
    }

    fn tree(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            std_fs::create_dir_all(path.parent().unwrap()).unwrap();
            std_fs::write(path, content).unwrap();
        }
        root
    }

    #[test]
    fn marked_directories_keep_their_marker_only() {
        let root = tree(&[
            ("a/.nobackup", b""),
            ("a/file", b""),
            ("a/sub/file", b""),
            ("b/CACHEDIR.TAG", b"Signature: 8a477f597d28d172789f06886806bc55\n# more"),
            ("b/file", b""),
            ("c/CACHEDIR.TAG", b"Signature: something else, as long as the true one"),
            ("c/file", b""),
            ("d/CACHEDIR.TAG/file", b""),
        ]);
        let mut options = options(&[".nobackup", "sub"]);
        assert_eq!(walk(root.path(), &options).1, []);
        options.if_present = vec![".nobackup".into(), ".other".into()];
        options.caches = true;
        let (found, left_out) = walk(root.path(), &options);
        let expected = [
            "a/",
            "a/.nobackup",
            "b/",
            "b/CACHEDIR.TAG",
            "c/",
            "c/CACHEDIR.TAG",
            "c/file",
            "d/",
            "d/CACHEDIR.TAG/",
            "d/CACHEDIR.TAG/file",
        ];
        assert_eq!(found, expected);
        assert_eq!(left_out, [LeftOut::Marked(b".nobackup".to_vec()), LeftOut::Marked(CACHE_TAG.to_vec())]);
    }

    #[test]
    fn large_files_and_the_repository_are_left_out() {
        let root = tree(&[("small", &[0; 10]), ("large", &[0; 11]), ("repo/config", b""), ("d/repo/x", b"")]);
        let mut options = options(&[]);
        options.larger_than = Some(10);
        options.never = vec![root.path().join("repo"), root.path().join("missing")];
        assert_eq!(walk(root.path(), &options).0, ["d/", "d/repo/", "d/repo/x", "small"]);
        // Named as a source, it is wanted.
        assert_eq!(walk(&root.path().join("repo"), &options).0, ["config"]);
    }

    #[test]
    fn the_kernels_file_systems_are_left_empty() {
        let root = fs::stat("/").unwrap();
        let excludes = excludes("/", &[]);
        let source = excludes.below(Path::new("/")).unwrap();
        let empties = |path: &str, above: Option<&Stat>| {
            let dir = File::open(path).unwrap();
            source.empties(dir.as_fd(), &fs::fstat(&dir).unwrap(), above)
        };
        assert_eq!(empties("/proc", Some(&root)), Some(LeftOut::KernelFileSystem("proc")));
        assert_eq!(empties("/proc", None), None);
        let proc = fs::stat("/proc").unwrap();
        assert_eq!(empties("/proc/self", Some(&proc)), None);
        let mut options = options(&[]);
        options.one_file_system = true;
        let excludes = Excludes::new(&options, &[]).unwrap();
        let source = excludes.below(Path::new("/")).unwrap();
        let dir = File::open("/proc").unwrap();
        assert_eq!(source.empties(dir.as_fd(), &proc, Some(&root)), Some(LeftOut::OtherFileSystem));
    }

    #[test]
    fn devtmpfs_is_told_from_tmpfs_by_the_mounts() {
        let mounts = b"22 1 0:5 / /dev rw,nosuid shared:2 - devtmpfs udev rw\n\
            23 1 0:6 / /dev\xff/shm rw - tmpfs devtmpfs rw\n24 1 0:55 / /x rw - devtmpfs";
        assert!(is_devtmpfs(mounts, fs::makedev(0, 5)));
        assert!(!is_devtmpfs(mounts, fs::makedev(0, 6)));
        assert!(!is_devtmpfs(mounts, fs::makedev(0, 7)));
    }
}
