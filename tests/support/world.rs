//! A repository in a store that fails and loses power on demand.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tempfile::TempDir;
use varv::backup::{self, BackupOptions, ScanOptions, Source};
use varv::chunker::{DEFAULT, Params};
use varv::error::Result;
use varv::format::config::{Sizes, Tier};
use varv::history::resolve::find_path;
use varv::id::PackId;
use varv::observe::{Silent, Stop};
use varv::repo::catalog::Catalog;
use varv::repo::{CreateOptions, Intent, OpenOptions, Repo};
use varv::restore::{self, RestoreOptions};
use varv::source::exclude::ExcludeOptions;
use varv::store::{MemoryStore, Store};

use super::make::tree;
use super::tree::{Tree, assert_tree, read};

/// What the source was when the run of this tag began.
pub type States = BTreeMap<String, Tree>;

/// A repository in a store in memory; its index is in a folder.
pub struct World {
    pub store: MemoryStore,
    index: TempDir,
    pub source: PathBuf,
    _source: TempDir,
    pub states: States,
    next: u32,
}

pub static STOP: Stop = Stop::new();

impl World {
    /// With one snapshot. Packs are small, so that there are many.
    pub fn new() -> Self {
        let store = MemoryStore::new();
        let (tiers, slot) = (BTreeMap::new(), "open".to_string());
        let chunker = Params::parse(DEFAULT).unwrap();
        Repo::create_on(&store, CreateOptions { secret: None, slot, chunker, tiers }).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        tree(&source, 1);
        let index = tempfile::tempdir().unwrap();
        let mut world = Self { store, index, source, _source: folder, states: States::new(), next: 0 };
        let sizes =
            Sizes { data_pack: 200 << 10, metadata_pack: 2 << 10, tree_frame: 100 << 10, ..Sizes::default() };
        world.open(Intent::Change).unwrap().change_config(|config| config.sizes = sizes).unwrap();
        world.backup().unwrap();
        world
    }

    /// The same with another store; the index is gone, or still the one before.
    pub fn with(&self, store: MemoryStore, index_is_kept: bool) -> Self {
        let index = tempfile::tempdir().unwrap();
        if index_is_kept {
            copy_files(&self.index.path().join("index"), &index.path().join("index"));
        }
        let folder = tempfile::tempdir().unwrap();
        let (source, states) = (self.source.clone(), self.states.clone());
        Self { store, index, source, _source: folder, states, next: self.next }
    }

    pub fn open(&self, intent: Intent) -> Result<Repo> {
        let options = OpenOptions {
            secret: None,
            intent,
            lock_wait: Duration::ZERO,
            command: "test",
            cache_dir: None,
            stop: &STOP,
        };
        let store: Arc<dyn Store> = Arc::new(self.store.clone());
        Repo::open_on(store, self.index.path(), &options)
    }

    pub fn opened(&self, intent: Intent) -> Result<(Repo, Catalog)> {
        let repo = self.open(intent)?;
        let catalog = repo.catalog(&Silent, &STOP)?;
        Ok((repo, catalog))
    }

    /// Backs up the source under a tag of its own.
    pub fn backup(&mut self) -> Result<()> {
        self.next += 1;
        let tag = self.next.to_string();
        self.states.insert(tag.clone(), read(&self.source));
        let (repo, catalog) = self.opened(Intent::Add)?;
        backup::run(&repo, &catalog, &backup_options(&self.source, vec![tag]), &Silent, &STOP)?;
        catalog.close(&Silent)
    }

    /// The tags of all snapshots.
    pub fn tags(&self) -> Vec<String> {
        let found = self.open(Intent::Read).unwrap().snapshots().unwrap();
        assert!(found.damaged.is_empty(), "{:?}", found.damaged);
        found.listed.into_iter().map(|listed| listed.snapshot.tags[0].clone()).collect()
    }

    /// Restores and compares all snapshots.
    pub fn restore_all(&self) {
        let (repo, catalog) = self.opened(Intent::Read).unwrap();
        for listed in repo.snapshots().unwrap().listed {
            let path = self.source.as_os_str().as_encoded_bytes();
            let entry = find_path(&catalog, &listed.snapshot, path).unwrap().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let target = folder.path().join("target");
            let options = RestoreOptions::default();
            let restored = restore::run(&repo, &catalog, &entry, &target, &options, &Silent, &STOP).unwrap();
            assert_eq!(restored.errors, 0);
            assert_tree(&self.states[&listed.snapshot.tags[0]], &target);
        }
    }

    /// The packs that are made against others, which are there.
    pub fn packs_above_others(&self) -> HashSet<PackId> {
        let (repo, catalog) = self.opened(Intent::Read).unwrap();
        let packs = repo.list_packs().unwrap();
        let mut above = HashSet::new();
        for (id, len) in &packs {
            let needs = catalog.reader().open(id, *len).unwrap().trailer.packs;
            assert!(needs.iter().all(|need| packs.contains_key(need)), "what pack {id} needs is gone");
            above.extend((!needs.is_empty()).then_some(*id));
        }
        above
    }

    /// After whatever happened: what was listed is there and restores, so does the next backup.
    pub fn must_be_well(&mut self, listed: &[String]) {
        let tags = self.tags();
        assert!(listed.iter().all(|tag| tags.contains(tag)), "{tags:?} lack some of {listed:?}");
        self.packs_above_others();
        self.restore_all();
        self.backup().unwrap();
        self.restore_all();
    }
}

/// Of one path, as the command line has them without any option.
pub fn backup_options(source: &Path, tags: Vec<String>) -> BackupOptions {
    BackupOptions {
        sources: vec![Source::Path(source.into())],
        host: "host".into(),
        label: "default".into(),
        tags,
        time: Timestamp::now(),
        offset: 0,
        user: String::new(),
        tier: Tier::Hot,
        tier_rules: Vec::new(),
        excludes: ExcludeOptions::default(),
        scan: ScanOptions::default(),
        delta: true,
        dry_run: false,
        checkpoint_every: None,
    }
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
