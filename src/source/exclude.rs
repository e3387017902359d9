//! What is left out of a backup.
//!
//! Patterns follow gitignore, rooted at each SOURCE; one that begins with a SOURCE's path means
//! that path. What a pattern matches is not listed at all. Directories that are left out for
//! what they are or hold (a mount point of the kernel's file systems or, if asked for, of any
//! other; one with a marker) stay in the backup without their content: a restored system needs
//! its mount points, and a restored cache its place, owner and marker. restic and tar do likewise.

mod kernel;
mod listed;
mod pattern;

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs as std_fs;
use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use ignore::gitignore::Gitignore;
use rustix::fs::{self, FileType, Mode, OFlags, Stat};

use super::metadata::kind;
use super::walk::{Filter, LeftOut, Listed};
use crate::error::{Error, Result};
use crate::text::escape;
use kernel::kernel_file_system;
pub use pattern::Patterns;
use pattern::{Pattern, add, build, builder, patterns, strip_source};

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
    /// Files with paths, each ended by a zero byte, that are left out whatever patterns say.
    pub path_files: Vec<PathBuf>,
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

/// A directory that is never entered.
#[derive(Debug)]
struct Never {
    path: PathBuf,
    met: AtomicBool,
}

/// The options, read and checked; shared between threads.
#[derive(Debug)]
pub struct Excludes {
    patterns: Vec<Pattern>,
    listed: Vec<Pattern>,
    sources: Vec<PathBuf>,
    markers: BTreeSet<Vec<u8>>,
    caches: bool,
    larger_than: Option<u64>,
    one_file_system: bool,
    /// By device and inode.
    never: HashMap<(u64, u64), Never>,
}

impl Excludes {
    /// Reads the files with patterns and paths and checks all patterns. `sources` are the backup's, absolute.
    pub fn new(options: &ExcludeOptions, sources: &[PathBuf]) -> Result<Self> {
        let excludes = Self {
            patterns: patterns(options)?,
            listed: listed::listed(&options.path_files)?,
            sources: sources.to_vec(),
            markers: options.if_present.iter().map(marker).collect::<Result<_>>()?,
            caches: options.caches,
            larger_than: options.larger_than,
            one_file_system: options.one_file_system,
            never: options.never.iter().filter_map(|path| never(path)).collect(),
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
        let listed = listed::below(&self.listed, source);
        Ok(SourceExcludes { shared: self, all: build(&all)?, each, listed })
    }

    /// The patterns and listed paths that matched nothing below any source.
    pub fn unused(&self) -> Vec<String> {
        let patterns = self.patterns.iter().filter(|pattern| !pattern.has_matched());
        patterns.chain(listed::unused(&self.listed)).map(Pattern::text).collect()
    }

    /// Which of the directories that are never entered were met.
    pub fn met(&self) -> impl Iterator<Item = &Path> {
        self.never.values().filter(|never| never.met.load(Ordering::Relaxed)).map(|never| &*never.path)
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

fn marker(name: &OsString) -> Result<Vec<u8>> {
    let name = name.clone().into_vec();
    if name.is_empty() || name.contains(&b'/') {
        let name = escape(&name);
        return Err(Error::Refused(format!("'{name}' is not a name that a directory can contain")));
    }
    Ok(name)
}

fn never(path: &Path) -> Option<((u64, u64), Never)> {
    let found = std_fs::metadata(path).ok()?;
    Some(((found.dev(), found.ino()), Never { path: path.to_path_buf(), met: AtomicBool::new(false) }))
}

/// What is left out below one source.
#[derive(Debug)]
pub struct SourceExcludes<'a> {
    shared: &'a Excludes,
    all: Gitignore,
    /// Each pattern alone. The matcher of all names only the one that decides, but those that it
    /// outranks have matched too.
    each: Vec<(&'a Pattern, Gitignore)>,
    /// Paths that are left out as they are.
    listed: HashMap<Vec<u8>, &'a Pattern>,
}

impl SourceExcludes<'_> {
    /// Whether patterns or lists leave out the entry at this path below the source. The directories above
    /// it must have been asked about before: what is in one that is left out is not reached.
    pub fn excludes(&self, path: &[u8], is_dir: bool) -> bool {
        if let Some(listed) = self.listed.get(path) {
            listed.note_match();
            return true;
        }
        let path = Path::new(OsStr::from_bytes(path));
        let decision = self.all.matched(path, is_dir);
        if !decision.is_none() {
            self.count(path, is_dir);
        }
        decision.is_ignore()
    }

    /// Whether an entry as a snapshot has it would be left out: for itself, or with a directory that
    /// it is in.
    pub fn would_exclude(&self, path: &[u8], is_dir: bool, len: u64) -> bool {
        let folders = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at]);
        (!is_dir && len > self.shared.larger_than.unwrap_or(u64::MAX))
            || folders.into_iter().any(|folder| self.excludes(folder, true))
            || self.excludes(path, is_dir)
    }

    /// Most patterns match soon or never; those that did are not tried again.
    fn count(&self, path: &Path, is_dir: bool) {
        let open = self.each.iter().filter(|(pattern, _)| !pattern.has_matched());
        for (pattern, alone) in open {
            if !alone.matched(path, is_dir).is_none() {
                pattern.note_match();
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
        if let Some(never) = self.shared.never.get(&(stat.st_dev, stat.st_ino)) {
            never.met.store(true, Ordering::Relaxed);
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
    fn paths_come_from_lists() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("paths");
        std_fs::write(&file, b"/s/a\0/s/./b*/c\n\0/s/d/\0/s/d/x/y\0/other/e\0/t//# f \xff\0/s\0here/g\0")
            .unwrap();
        let options = ExcludeOptions { path_files: vec![file.clone()], ..options(&["!a"]) };
        let here = std::env::current_dir().unwrap().join("here");
        let excludes = Excludes::new(&options, &["/s".into(), "/t".into(), here.clone()]).unwrap();
        assert!(left_out(&excludes.below(&here).unwrap(), b"g"));
        let (s, t) = (excludes.below(Path::new("/s")).unwrap(), excludes.below(Path::new("/t")).unwrap());
        let cases: [(&[u8], bool, bool); 8] = [
            (b"a", true, false),
            (b"x/a", false, false),
            (b"b*/c\n", true, false),
            (b"bb/c\n", false, false),
            (b"d/x", true, false),
            (b"# f \xff", false, true),
            (b"e", false, false),
            (b"other/e", false, false),
        ];
        for (path, in_s, in_t) in cases {
            assert_eq!((left_out(&s, path), left_out(&t, path)), (in_s, in_t), "{}", escape(path));
        }
        assert_eq!(excludes.unused(), ["/other/e", "/s"]);
        std_fs::write(&file, b"a/../b\0").unwrap();
        let refused = Excludes::new(&options, &[]).unwrap_err();
        assert!(refused.to_string().contains("a/../b"), "{refused}");
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
}
