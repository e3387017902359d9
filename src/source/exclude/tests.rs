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
