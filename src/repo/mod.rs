//! A repository: its configuration, keys, lock, snapshots and chunks.

pub mod bad;
pub mod bases;
mod bounded;
pub mod catalog;
pub mod checkpoints;
pub mod delta;
pub mod filter;
pub mod forgotten;
pub mod frames;
pub mod index;
pub mod keys;
pub mod layout;
pub mod lock;
pub mod map_parts;
pub mod marks;
pub mod mend;
pub mod nodes;
pub mod objects;
pub mod packer;
pub mod packs;
mod place;
pub mod protected;
pub mod reader;
pub mod rebuild;
pub mod savings;
pub mod schema;
pub mod slots;
pub mod snapshots;
pub mod state;
pub mod walk;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::statvfs;

use crate::chunker::Params;
use crate::error::{Error, Result};
use crate::format::FORMAT;
use crate::format::config::{CONFIG_MAX, Config, ConfigError, Signed, Sizes, Slot, Tier};
use crate::id::{RepositoryId, hex};
use crate::observe::Stop;
use crate::store::{LocalStore, Store};

use keys::{Keys, Secret, random};
use lock::{Lock, LockMode};

/// A file system with less room than this is full: the index's log alone begins with so much.
const ROOM_MIN: u64 = 256 << 10;
/// Likewise with room for fewer files: the index has two beside it.
const FILES_MIN: u64 = 4;

/// How a repository is made.
pub struct CreateOptions {
    /// What opens it; `None` leaves it unencrypted.
    pub secret: Option<Secret>,
    /// The name of the first slot.
    pub slot: String,
    /// How files and volumes are cut.
    pub chunker: Params,
    /// zstd levels of tiers, where they are not the default.
    pub tiers: BTreeMap<Tier, i8>,
}

/// What a command means to do with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// Look only; works on read-only media, then without a lock.
    Read,
    /// Add, together with others.
    Add,
    /// Change what is there, alone.
    Change,
}

/// How a repository is opened.
pub struct OpenOptions<'a> {
    /// What opens it.
    pub secret: Option<&'a Secret>,
    /// What for.
    pub intent: Intent,
    /// How long to wait for others.
    pub lock_wait: Duration,
    /// The command, as others see it in the lock.
    pub command: &'a str,
    /// Where an index may be kept outside of the repository.
    pub cache_dir: Option<&'a Path>,
    /// Ends the waiting.
    pub stop: &'a Stop,
}

/// An opened repository.
pub struct Repo {
    root: PathBuf,
    store: Arc<dyn Store>,
    config: Config,
    id: RepositoryId,
    keys: Keys,
    slot: String,
    lock: Option<Lock>,
    lock_mode: LockMode,
    intent: Intent,
    cache_dir: Option<PathBuf>,
    notices: Vec<String>,
}

impl Repo {
    /// Makes a repository in a new or empty folder.
    pub fn create(root: &Path, options: CreateOptions) -> Result<Config> {
        Self::create_on(&LocalStore::init(root)?, options)
    }

    /// Makes a repository in an empty store.
    pub fn create_on(store: &dyn Store, options: CreateOptions) -> Result<Config> {
        let encrypted = options.secret.is_some();
        let keys = Keys::generate(encrypted)?;
        let id = RepositoryId(random()?);
        let config = Config {
            id: id.to_string(),
            created: Timestamp::now().to_string(),
            generation: 1,
            chunker: options.chunker.to_string(),
            encrypted,
            tiers: options.tiers,
            sizes: Sizes::default(),
            slots: vec![keys.wrap(&id, &options.slot, options.secret.as_ref())?],
        };
        let bytes = config.encode(&keys.config_mac());
        for name in layout::CONFIGS {
            // Of two that make the same repository at once, one finds the name taken.
            store.put(name, &bytes)?;
        }
        store.barrier()?;
        Ok(config)
    }

    /// Opens a repository.
    pub fn open(root: &Path, options: &OpenOptions) -> Result<Self> {
        Self::open_on(Arc::new(LocalStore::open(root)?), root, options)
    }

    /// Opens a repository whose objects are in `store`; in `root` are only its locks and its
    /// index.
    pub fn open_on(store: Arc<dyn Store>, root: &Path, options: &OpenOptions) -> Result<Self> {
        // Without a configuration nothing may be locked, or a folder of locks would be left in
        // whatever was named by mistake.
        read_configs(&*store, root)?;
        let lock_mode = lock::mode_for(root)?;
        let lock = take_lock(root, lock_mode, options)?;
        let (configs, mut notices) = read_configs(&*store, root)?;
        let (signed, (keys, slot), spoilt) = first_good(configs, |signed| unlock(signed, options.secret))?;
        notices.extend(spoilt.map(|e| format!("{e}; its other copy is used")));
        notices.extend(interrupted(root, lock_mode));
        if !signed.config.encrypted && options.secret.is_some() {
            notices.push("the repository is not encrypted; the passphrase is not used".into());
        }
        let id = signed.config.repository_id().ok_or(Error::Internal("a configuration without an id"))?;
        if lock.is_none() && options.intent == Intent::Read {
            notices.push("the repository cannot be written to: it is read without a lock".into());
        }
        Ok(Self {
            root: root.to_path_buf(),
            store,
            config: signed.config,
            id,
            keys,
            slot,
            lock,
            lock_mode,
            intent: options.intent,
            cache_dir: options.cache_dir.map(Path::to_path_buf),
            notices,
        })
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its objects.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// What it says of itself.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its name.
    pub fn id(&self) -> RepositoryId {
        self.id
    }

    /// Its keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The name of the slot that was opened.
    pub fn slot(&self) -> &str {
        &self.slot
    }

    /// How processes lock it.
    pub fn lock_mode(&self) -> LockMode {
        self.lock_mode
    }

    /// What the user should know about how it was opened.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Whether others see that it is in use; not so on media that cannot be written to.
    pub fn is_locked(&self) -> bool {
        self.lock.is_some()
    }

    /// An error if the lock was lost; to be asked before anything is published or removed.
    pub fn still_locked(&self) -> Result<()> {
        self.lock.as_ref().map_or(Ok(()), Lock::still_held)
    }

    /// Gives the lock back and takes another one. In between, others may have been here: all that
    /// was read before is to be read again.
    pub fn change_lock(
        &mut self,
        intent: Intent,
        lock_wait: Duration,
        command: &str,
        stop: &Stop,
    ) -> Result<()> {
        self.lock = None;
        let exclusive = intent == Intent::Change;
        self.lock = Some(lock::acquire(&self.root, self.lock_mode, exclusive, lock_wait, command, stop)?);
        self.intent = intent;
        let (configs, _) = read_configs(&*self.store, &self.root)?;
        let (signed, ..) = first_good(configs, |signed| Ok(check_authentic(signed, &self.keys, None)))?;
        self.config = signed.config;
        Ok(())
    }

    /// Whether there is hardly any room for files, or hardly any for their names.
    pub fn is_full(&self) -> bool {
        statvfs(&self.root).is_ok_and(|found| {
            found.f_bavail.saturating_mul(found.f_frsize) < ROOM_MIN
                || (found.f_files > 0 && found.f_favail < FILES_MIN)
        })
    }

    /// Changes the configuration; for the holder of the exclusive lock.
    pub fn change_config(&mut self, change: impl FnOnce(&mut Config)) -> Result<()> {
        if self.intent != Intent::Change {
            return Err(Error::Internal("the configuration is changed without the exclusive lock"));
        }
        let mut config = self.config.clone();
        change(&mut config);
        config.generation += 1;
        self.still_locked()?;
        write_config(&*self.store, &config, &self.keys)?;
        self.config = config;
        Ok(())
    }

    /// Writes both copies of the configuration anew, as they are; for the holder of the exclusive
    /// lock.
    pub fn rewrite_config(&self) -> Result<()> {
        self.still_locked()?;
        write_config(&*self.store, &self.config, &self.keys)
    }

    /// A slot with these keys for another secret.
    pub fn new_slot(&self, name: &str, secret: &Secret) -> Result<Slot> {
        self.keys.wrap(&self.id, name, Some(secret))
    }
}

/// The keys that the secret opens in a configuration, and the slot's name; or why the configuration
/// is not to be trusted.
fn unlock(signed: &Signed, secret: Option<&Secret>) -> Result<Result<(Keys, String)>> {
    let config = &signed.config;
    if !config.encrypted && matches!(secret, Some(Secret::KeyFile(_) | Secret::Master(_))) {
        return Err(Error::Refused(
            "the repository is not encrypted, but a key was given: leave it away if that is right".into(),
        ));
    }
    let id = config.repository_id().ok_or(Error::Internal("a configuration without an id"))?;
    let (keys, slot) = Keys::unwrap(&id, &config.slots, secret, config.encrypted)?;
    Ok(check_authentic(signed, &keys, secret).map(|()| (keys, slot)))
}

/// The first configuration that can be trusted, what `check` makes of it, and what was wrong with
/// those before. A secret that the newest does not open is wrong: an older copy may have the slot that
/// was removed from this one.
fn first_good<T>(
    configs: Vec<Signed>,
    mut check: impl FnMut(&Signed) -> Result<Result<T>>,
) -> Result<(Signed, T, Option<Error>)> {
    let mut first_error = None;
    for signed in configs {
        match check(&signed)? {
            Ok(made) => return Ok((signed, made, first_error)),
            Err(e) => drop(first_error.get_or_insert(e)),
        }
    }
    Err(first_error.unwrap_or(Error::Internal("there is no configuration")))
}

/// A slot's keys fit the repository that they are wrapped for; a recovery code may be another's.
fn check_authentic(signed: &Signed, keys: &Keys, secret: Option<&Secret>) -> Result<()> {
    if signed.is_authentic(&keys.config_mac()) {
        return Ok(());
    }
    Err(match secret {
        Some(Secret::Master(_)) => Error::WrongKey("the recovery code is not of this repository".into()),
        _ => Error::damaged("config", "it was changed by somebody without the key"),
    })
}

fn take_lock(root: &Path, mode: LockMode, options: &OpenOptions) -> Result<Option<Lock>> {
    let exclusive = options.intent == Intent::Change;
    match lock::acquire(root, mode, exclusive, options.lock_wait, options.command, options.stop) {
        Ok(lock) => Ok(Some(lock)),
        Err(e) if options.intent == Intent::Read && cannot_write(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// What died in here since somebody looked last. Nothing follows from it but that it is told.
fn interrupted(root: &Path, mode: LockMode) -> Vec<String> {
    let dead = lock::occupants(root, mode).map(|found| found.dead).unwrap_or_default();
    let tell = |holder: &lock::Holder| format!("interrupted: {}; its lock was removed", holder.describe());
    dead.iter().map(tell).collect()
}

/// Whether an error says that this place or medium is not ours to write to.
pub fn cannot_write(error: &Error) -> bool {
    use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let cannot = [PermissionDenied, ReadOnlyFilesystem, StorageFull, QuotaExceeded];
    error.io().is_some_and(|e| cannot.contains(&e.kind()))
}

/// Both copies, the spare one first: at any instant one of them is whole.
fn write_config(store: &dyn Store, config: &Config, keys: &Keys) -> Result<()> {
    let bytes = config.encode(&keys.config_mac());
    for name in layout::CONFIGS.iter().rev() {
        store.replace(name, &bytes)?;
        store.barrier()?;
    }
    Ok(())
}

/// The copies of the configuration that are whole, the newest first and equal ones once, and what is
/// wrong with the others.
fn read_configs(store: &dyn Store, root: &Path) -> Result<(Vec<Signed>, Vec<String>)> {
    let mut whole: Vec<Signed> = Vec::new();
    let mut notices = Vec::new();
    let mut first_error = None;
    for name in layout::CONFIGS {
        match read_config_copy(store, name) {
            Ok(signed) if whole.contains(&signed) => {}
            Ok(signed) => whole.push(signed),
            Err(e @ Error::NewerFormat { .. }) => return Err(e),
            Err(e) => {
                notices.push(format!("{e}; its other copy is used"));
                first_error.get_or_insert(e);
            }
        }
    }
    whole.sort_by_key(|signed| std::cmp::Reverse(signed.config.generation));
    match first_error {
        _ if !whole.is_empty() => Ok((whole, notices)),
        Some(Error::Missing { .. }) | None => {
            Err(Error::NoRepository { path: root.to_path_buf(), why: "it has no configuration".into() })
        }
        Some(e) => Err(e),
    }
}

/// One copy of the configuration, checked as far as that is possible without a key.
pub fn read_config_copy(store: &dyn Store, name: &str) -> Result<Signed> {
    let bytes = store.read(name, CONFIG_MAX)?;
    Config::decode(&bytes).map_err(|e| match e {
        ConfigError::Newer { found, needs } => Error::NewerFormat { found, known: u32::from(FORMAT), needs },
        ConfigError::Foreign => Error::damaged(name, "it does not begin as a varv configuration"),
        ConfigError::Malformed(why) => Error::damaged(name, why),
    })
}

/// Where the index of a repository is kept outside of it.
fn cache_folder(cache_dir: &Path, id: &RepositoryId) -> PathBuf {
    cache_dir.join(hex(&id.0))
}
