//! Where the index is, and how it is opened there: in the repository, in a cache folder or, for who
//! only reads and finds no room in either, in memory.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FlockOperation, accessat, flock};
use rustix::io::Errno;

use super::catalog::Catalog;
use super::index::{self, Index, Opened, is_unwritable};
use super::lock::LockMode;
use super::{Intent, Repo, cache_folder, cannot_write, layout};
use crate::error::{Error, IoContext, Result};
use crate::id::{Key, RepositoryId};
use crate::observe::{Event, Observer, Stop};

/// A way to an index.
enum Place {
    /// A file that is brought up to date, and made if it is missing.
    Kept(PathBuf),
    /// The repository's own, if it knows all packs and so need not be written.
    AsItIs,
    /// Made of the packs, and gone afterwards.
    Memory,
}

impl Repo {
    /// The repository's chunks: opens the index, or makes it anew, and brings it up to date. Who
    /// only reads needs no room for that, nor a place that can be written to.
    pub fn catalog(&self, observer: &dyn Observer, stop: &Stop) -> Result<Catalog> {
        let has_no_room = self.intent == Intent::Read && self.has_no_room();
        let mut refused = has_no_room.then(|| self.no_space());
        for place in self.places() {
            match self.catalog_at(&place, observer, stop) {
                Ok(None) => {}
                Ok(Some(catalog)) => {
                    if let Some(why) = refused {
                        observer.event(Event::Notice(format!("{why}; {}", place.instead())));
                    }
                    return Ok(catalog);
                }
                Err(e) if self.intent == Intent::Read && (e.io().is_some() || is_unwritable(&e)) => {
                    refused.get_or_insert(e);
                }
                Err(e) if is_unwritable(&e) && self.is_full() => return Err(self.no_space()),
                Err(e) => return Err(e),
            }
        }
        Err(refused.unwrap_or_else(no_cache_folder))
    }

    /// SQLite maps a file beside the index into memory. Where blocks are small, a full disk has none for
    /// a page's other blocks, and the process gets a signal; so who can do without does.
    fn has_no_room(&self) -> bool {
        self.is_own() && self.is_full()
    }

    /// SQLite says only that something about its files failed.
    fn no_space(&self) -> Error {
        Error::Io { action: "write", path: self.own_index_path(), source: Errno::NOSPC.into() }
    }

    /// Where the index may be, the best first.
    fn places(&self) -> Vec<Place> {
        let own = self.is_own().then(|| Place::Kept(self.own_index_path()));
        let cache = self.cache_index_path().ok().map(Place::Kept);
        match self.intent {
            // What is added must be found by all who come after.
            Intent::Add | Intent::Change => own.or(cache).into_iter().collect(),
            Intent::Read => {
                let own = own.filter(|_| !self.has_no_room());
                own.into_iter().chain([Place::AsItIs]).chain(cache).chain([Place::Memory]).collect()
            }
        }
    }

    /// `None` where the place has none that is of use.
    fn catalog_at(&self, place: &Place, observer: &dyn Observer, stop: &Stop) -> Result<Option<Catalog>> {
        let index = match place {
            Place::Kept(path) => self.open_index(path, observer)?,
            Place::AsItIs => match self.own_index_as_it_is()? {
                Some(index) => index,
                None => return Ok(None),
            },
            Place::Memory => return self.catalog_in_memory(observer, stop).map(Some),
        };
        self.update(index, observer, stop).map(Some)
    }

    /// Where the index is: beside the packs, unless these lie where a database is not safe or
    /// cannot be written.
    pub fn index_path(&self) -> Result<PathBuf> {
        if self.is_own() { Ok(self.own_index_path()) } else { self.cache_index_path() }
    }

    fn is_own(&self) -> bool {
        self.lock_mode() == LockMode::Flock && self.is_writable()
    }

    fn own_index_path(&self) -> PathBuf {
        self.root().join(layout::INDEX).join(layout::INDEX_FILE)
    }

    fn cache_index_path(&self) -> Result<PathBuf> {
        let dir = self.cache_dir.as_deref().ok_or_else(no_cache_folder)?;
        Ok(cache_folder(dir, &self.id()).join(layout::INDEX_FILE))
    }

    /// A lock says little: a file that can be read can be locked, on a read-only medium too.
    fn is_writable(&self) -> bool {
        let folder = self.root().join(layout::INDEX);
        let is_open = || match folder.exists() {
            true => may_write(&folder) && may_write_or_make(&folder.join(layout::INDEX_FILE)),
            false => may_write(self.root()),
        };
        self.intent != Intent::Read || (self.lock.is_some() && is_open())
    }

    fn open_index(&self, path: &Path, observer: &dyn Observer) -> Result<Index> {
        let folder = path.parent().ok_or(Error::Internal("an index without a folder"))?;
        make_private_folder(folder)?;
        // Who finds no index makes one, and must not take away what another is just making.
        let _turn = take_turn(folder)?;
        let key = self.keys().index();
        match Index::open(path, index::Access::ReadWrite, &key, &self.id())? {
            Opened::Usable(index) => Ok(*index),
            Opened::Stale(why) => {
                if path.exists() || !self.list_packs()?.is_empty() {
                    observer.event(Event::Notice(format!("the index is made anew: {why}")));
                }
                remove_index(path)?;
                // What is made by half would only have to be explained by the next who comes.
                self.create_index(path).inspect_err(|_| _ = remove_index(path))
            }
        }
    }

    fn create_index(&self, path: &Path) -> Result<Index> {
        let mut index = Index::create(path, &self.keys().index(), &self.id())?;
        // Which packs vanished before, only the old one could have told.
        index.add_suspects(&self.snapshot_ids()?)?;
        Ok(index)
    }

    /// The repository's own index, if it is there and need not be written.
    fn own_index_as_it_is(&self) -> Result<Option<Index>> {
        let path = self.own_index_path();
        match Index::open(&path, index::Access::ReadOnly, &self.keys().index(), &self.id()) {
            Ok(Opened::Usable(index)) if self.knows_all_packs(&index)? => Ok(Some(*index)),
            _ => Ok(None),
        }
    }

    fn knows_all_packs(&self, index: &Index) -> Result<bool> {
        let packs = self.list_packs()?;
        let known = index.packs().iter().filter(|pack| packs.get(&pack.id) == Some(&pack.len)).count();
        Ok(known == packs.len() && known == index.packs().len())
    }

    /// The index as it is, before anything brings it up to date.
    pub(super) fn open_index_as_it_is(&self) -> Result<Opened> {
        if !self.is_writable()
            && let Some(index) = self.own_index_as_it_is()?
        {
            return Ok(Opened::Usable(Box::new(index)));
        }
        let (key, id) = (self.keys().index(), self.id());
        let path = match self.index_path() {
            Ok(path) => path,
            Err(e) => return Ok(Opened::Stale(e.to_string())),
        };
        match Index::open(&path, index::Access::ReadWrite, &key, &id) {
            Err(e) if cannot_write(&e) || is_unwritable(&e) => {
                Index::open(&path, index::Access::ReadOnly, &key, &id)
            }
            opened => opened,
        }
    }

    /// Removes the index; the next command makes it anew. For the holder of the exclusive lock.
    pub fn remove_index(&self) -> Result<()> {
        remove_index(&self.index_path()?)
    }

    /// Makes the index anew from the packs alone.
    pub fn rebuild_index(&self, observer: &dyn Observer, stop: &Stop) -> Result<Catalog> {
        let path = self.index_path()?;
        if let Some(folder) = path.parent() {
            make_private_folder(folder)?;
            let _turn = take_turn(folder)?;
            remove_index(&path)?;
        }
        let index = self.open_index(&path, observer)?;
        self.update(index, observer, stop)
    }
}

impl Place {
    /// What is done where a better place was not to be had.
    fn instead(&self) -> String {
        match self {
            Place::Kept(path) => format!("the index is kept in {} for now", path.display()),
            Place::AsItIs => "the index is read as it is".into(),
            Place::Memory => "the index is made in memory for now".into(),
        }
    }
}

fn no_cache_folder() -> Error {
    Error::Refused("the index needs a cache folder here: name one with --cache-dir".into())
}

fn may_write(path: &Path) -> bool {
    accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok()
}

fn may_write_or_make(file: &Path) -> bool {
    !file.exists() || may_write(file)
}

fn make_private_folder(folder: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).at("create", folder)
}

/// Waits until no other process opens or makes the index; lasts until it is dropped.
fn take_turn(folder: &Path) -> Result<File> {
    let path = folder.join(layout::INDEX_TURN);
    // Only to write, a pipe would be waited for.
    let mut options = File::options();
    let file = options.create(true).read(true).append(true).mode(0o600).open(&path).at("open", &path)?;
    flock(&file, FlockOperation::LockExclusive).at("lock", &path)?;
    Ok(file)
}

/// An index in place of the one at `path`, as `fill` makes it of an empty one. Others wait until it
/// knows all packs, or these would get other numbers.
pub(super) fn remade(
    path: &Path,
    key: &Key,
    id: &RepositoryId,
    fill: impl FnOnce(Index) -> Result<Index>,
) -> Result<Index> {
    let _turn = take_turn(path.parent().ok_or(Error::Internal("an index without a folder"))?)?;
    Index::create(path, key, id).and_then(fill).inspect_err(|_| _ = remove_index(path))
}

fn remove_index(path: &Path) -> Result<()> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match fs::remove_file(&name) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).at("remove", &name),
            _ => {}
        }
    }
    Ok(())
}
