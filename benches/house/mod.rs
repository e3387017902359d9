//! A repository to measure, through the library: options that the command line does not have.
#![allow(dead_code, clippy::unwrap_used)] // no bench uses all of it

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tempfile::TempDir;
use varv::backup::{self, BackupOptions, ScanOptions, Source};
use varv::chunker::{DEFAULT, Params};
use varv::format::config::{Sizes, Tier};
use varv::format::snapshot::Stats;
use varv::history::resolve::{Selection, resolve};
use varv::observe::{Silent, Stop};
use varv::repo::{CreateOptions, Intent, OpenOptions, Repo};
use varv::restore::{self, RestoreOptions};
use varv::store::LocalStore;

/// Nothing stops a bench.
pub static STOP: Stop = Stop::new();

/// A folder that holds a repository without encryption.
pub struct House {
    path: PathBuf,
    /// The folder, gone in the end; `None` if another process has it.
    _home: Option<TempDir>,
}

impl House {
    /// In the folder for temporary files, which wants to be on the disk that is to be measured.
    pub fn new(sizes: Sizes) -> Self {
        let home = tempfile::tempdir().unwrap();
        let house = Self { path: home.path().into(), _home: Some(home) };
        let options = CreateOptions {
            secret: None,
            slot: "open".into(),
            chunker: Params::parse(DEFAULT).unwrap(),
            tiers: Default::default(),
        };
        Repo::create(&house.root(), options).unwrap();
        house.open(Intent::Change).change_config(|config| config.sizes = sizes).unwrap();
        house
    }

    /// The one that another process made.
    pub fn at(path: &Path) -> Self {
        Self { path: path.into(), _home: None }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn root(&self) -> PathBuf {
        self.path.join("repository")
    }

    /// For a command of this intent.
    pub fn open(&self, intent: Intent) -> Repo {
        let options = OpenOptions {
            secret: None,
            intent,
            lock_wait: Duration::ZERO,
            command: "bench",
            cache_dir: None,
            stop: &STOP,
        };
        Repo::open_on(Arc::new(LocalStore::open(self.root()).unwrap()), &self.root(), &options).unwrap()
    }

    /// One path that stands for this source from now on, so that sources become nights of it.
    pub fn becomes(&self, source: &Path) -> PathBuf {
        let path = self.path.join("source");
        let _ = std::fs::remove_file(&path);
        symlink(source, &path).unwrap();
        path
    }

    /// Backs up one path, all of which is read.
    pub fn backup(&self, source: &Path) -> Stats {
        let repo = self.open(Intent::Add);
        let catalog = repo.catalog(&Silent, &STOP).unwrap();
        let options = BackupOptions {
            sources: vec![Source::Path(source.into())],
            host: "bench".into(),
            label: "default".into(),
            tags: Vec::new(),
            time: Timestamp::now(),
            offset: 0,
            user: String::new(),
            tier: Tier::Hot,
            tier_rules: Vec::new(),
            delta: true,
            excludes: Default::default(),
            scan: ScanOptions { force_read: true, ..Default::default() },
            dry_run: false,
            checkpoint_every: None,
        };
        let outcome = backup::run(&repo, &catalog, &options, &Silent, &STOP).unwrap();
        catalog.close(&Silent).unwrap();
        outcome.stats
    }

    /// Restores a path to a new one in this folder, which is removed again.
    pub fn restore(&self, source: &Path) {
        let target = self.path.join("restored");
        let repo = self.open(Intent::Read);
        let catalog = repo.catalog(&Silent, &STOP).unwrap();
        let path = std::os::unix::ffi::OsStrExt::as_bytes(source.as_os_str());
        let resolved = resolve(&repo, &catalog, &Selection::default(), Some(path)).unwrap();
        let entry = resolved.entry.unwrap();
        let options = RestoreOptions::default();
        restore::run(&repo, &catalog, &entry, &target, &options, &Silent, &STOP).unwrap();
    }

    /// Removes what [`House::restore`] made.
    pub fn tidy(&self) {
        let target = self.path.join("restored");
        match target.is_dir() {
            true => std::fs::remove_dir_all(target).unwrap(),
            false => std::fs::remove_file(target).unwrap(),
        }
    }
}
