//! What the tests of the whole program share: running it, making trees, comparing them.
#![allow(dead_code, unused_imports, unused_macros)] // no test uses all of it
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

pub mod full;
pub mod lab;
pub mod make;
pub mod sync;
pub mod system;
pub mod tree;
pub mod world;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use system::{NOBODY, is_root};

/// Words of a command line; strings and paths may be mixed.
macro_rules! args {
    ($($word:expr),* $(,)?) => { &[$(std::ffi::OsString::from($word)),*][..] };
}
pub(crate) use args;

/// The program, with a home and a repository of its own.
pub struct Varv {
    home: TempDir,
    program: PathBuf,
    as_nobody: bool,
    /// Where the repository is.
    pub repository: PathBuf,
}

/// How a run of the program ended.
#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Varv {
    /// With an empty repository that is not encrypted: passphrases are slow by design.
    pub fn new() -> Self {
        let varv = Self::without_repository();
        varv.init();
        varv
    }

    /// Before `init`.
    pub fn without_repository() -> Self {
        let home = tempfile::tempdir().unwrap();
        let repository = home.path().join("repository");
        Self { home, program: env!("CARGO_BIN_EXE_varv").into(), as_nobody: false, repository }
    }

    /// Run by a user without rights, who owns the home: nobody if root runs the tests, who else
    /// runs them otherwise. The program is copied, since where it was built may be closed to nobody.
    pub fn unprivileged() -> Self {
        let mut varv = Self::without_repository();
        if is_root() {
            varv.program = varv.path("varv");
            // By another process: a child that this one forks meanwhile would keep the copy open for
            // writing, and it could not be run.
            let words = [env!("CARGO_BIN_EXE_varv"), varv.program.to_str().unwrap()];
            assert!(system::run("cp", &words));
            chown(varv.home.path(), Some(NOBODY), Some(NOBODY)).unwrap();
            varv.as_nobody = true;
        }
        varv.init();
        varv
    }

    fn init(&self) {
        self.ok(args!["init", "--encryption", "none", "--quiet"]);
    }

    /// A path in the home.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// A new directory in the home.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        self.give(&path);
        path
    }

    /// Gives a path to the user who runs the program.
    pub fn give(&self, path: &Path) {
        if self.as_nobody {
            std::os::unix::fs::lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }

    /// The program with these words. Nothing of the tests' own environment reaches it.
    pub fn command(&self, words: &[OsString]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).current_dir(self.home.path()).stdin(Stdio::null());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("VARV_")) {
            command.env_remove(name);
        }
        command.env("HOME", self.home.path()).env("XDG_CACHE_HOME", self.path("cache"));
        command.env("VARV_REPOSITORY", &self.repository);
        if self.as_nobody {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// Runs it.
    pub fn run(&self, words: &[OsString]) -> Done {
        self.command(words).output().unwrap().into()
    }

    /// Runs it, and it succeeds.
    pub fn ok(&self, words: &[OsString]) -> Done {
        self.ends(0, words)
    }

    /// Runs it, and it ends with this code.
    pub fn ends(&self, code: i32, words: &[OsString]) -> Done {
        let done = self.run(words);
        done.expect(code, words);
        done
    }

    /// What it prints as JSON.
    pub fn json(&self, words: &[OsString]) -> Value {
        self.ok(&[&[OsString::from("--json")], words].concat()).json()
    }

    /// Backs up; what it counted.
    pub fn backup(&self, words: &[OsString]) -> Value {
        self.json(&[args!["backup"], words].concat())
    }

    /// Restores; what it counted.
    pub fn restore(&self, words: &[OsString]) -> Value {
        self.json(&[args!["restore"], words].concat())
    }

    /// Backs up `source` and restores it to the new path `name` in the home.
    pub fn round(&self, source: &Path, name: &str) -> PathBuf {
        self.backup(args![source]);
        let target = self.path(name);
        self.restore(args![source, &target]);
        target
    }

    /// All snapshots, oldest first.
    pub fn snapshots(&self) -> Vec<Value> {
        match self.json(args!["snapshots"]) {
            Value::Array(rows) => rows,
            other => panic!("{other} is no array"),
        }
    }

    /// The names of all objects in the repository.
    pub fn objects(&self) -> Vec<PathBuf> {
        let mut names = Vec::new();
        for folder in ["packs", "snapshots", "tmp"] {
            files_below(&self.repository.join(folder), &mut names);
        }
        names.sort();
        names
    }
}

fn files_below(folder: &Path, names: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files_below(&path, names),
            false => names.push(path),
        }
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Self { code: output.status.code(), stdout: output.stdout, stderr }
    }
}

impl Done {
    /// Panics if it did not end with this code.
    pub fn expect(&self, code: i32, words: &[OsString]) {
        assert_eq!(
            self.code,
            Some(code),
            "varv {words:?}\n{}{}",
            String::from_utf8_lossy(&self.stdout),
            self.stderr
        );
    }

    /// Standard output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap()
    }

    /// Panics if there is anything on standard error.
    pub fn is_silent(&self) {
        assert_eq!(self.stderr, "");
    }

    /// Panics unless standard error has all these words.
    pub fn says(&self, words: &[&str]) {
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {:?}", self.stderr);
        }
    }
}

/// Makes a path's permissions these.
pub fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
