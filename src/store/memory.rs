//! A store in memory that fails, loses power or is damaged on demand; for tests.
//!
//! Operations (creating, each write, publishing, …) are counted, so that a test can run once
//! without faults and then once for every operation that could fail. Durability points (the sync
//! of an object's content, and the barrier) are counted too, for the same with the power.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::io::Errno;

use super::durable::unpoisoned;
use super::{Store, UNFINISHED, Upload, bounded, checked, is_plain, shorter_than};
use crate::error::{Error, IoContext, Result};

type Bytes = Arc<[u8]>;
type Objects = BTreeMap<String, Bytes>;

/// A store in memory. Clones share their objects, like two processes in one repository.
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<Mutex<State>>);

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The disk is full, and stays so: every later operation that writes fails as well.
    NoSpace,
    /// The disk answers with an I/O error, once.
    Io,
}

/// What happens to a stored object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// One bit changes; bits are counted from the start of the object, around its end.
    Flip(u64),
    /// It ends after this many bytes.
    Truncate(u64),
    /// It has no content.
    Empty,
    /// It is gone.
    Delete,
}

#[derive(Default)]
struct State {
    objects: Objects,
    disk: Disk,
    /// Uploads begun and neither published nor dropped.
    unfinished: u64,
    operations: u64,
    fault: Option<(u64, Fault)>,
    points: u64,
    cut_at: Option<u64>,
    /// The disk when the power went.
    cut: Option<Disk>,
}

/// What a loss of power would leave.
#[derive(Default, Clone)]
struct Disk {
    durable: Objects,
    /// What was published and removed since the last barrier, in order.
    pending: Vec<(String, Option<Bytes>)>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Operations so far, whether they succeeded or not.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Lets the operation with this number fail; the first has number 1.
    pub fn fail_at(&self, operation: u64, fault: Fault) {
        self.state().fault = Some((operation, fault));
    }

    /// The disk works, and has room, again.
    pub fn heal(&self) {
        self.state().fault = None;
    }

    /// Durability points so far: contents synced and barriers.
    pub fn points(&self) -> u64 {
        self.state().points
    }

    /// Loses the power in the durability point with this number, before it has taken effect; the
    /// first has number 1. Operations go on as if nothing had happened, which no test should
    /// mind, since only [`MemoryStore::after_power_cut`] shows what is left.
    pub fn cut_power_at(&self, point: u64) {
        self.state().cut_at = Some(point);
    }

    /// What is found after the power came back, if it was lost where
    /// [`MemoryStore::cut_power_at`] said, or else now. Of each name that was published or removed
    /// since the last barrier, any of its states since then may be found; `seed` chooses.
    /// Contents are always whole.
    pub fn after_power_cut(&self, seed: u64) -> MemoryStore {
        let state = self.state();
        let disk = state.cut.as_ref().unwrap_or(&state.disk);
        let objects = disk.survivors(seed);
        let disk = Disk { durable: objects.clone(), pending: Vec::new() };
        let after = State { objects, disk, unfinished: state.unfinished, ..State::default() };
        MemoryStore(Arc::new(Mutex::new(after)))
    }

    /// Damages an object, also where a loss of power would leave it; false if there is none.
    pub fn damage(&self, name: &str, damage: Damage) -> bool {
        let mut state = self.state();
        let Disk { durable, pending } = &mut state.disk;
        if let Some(bytes) = durable.remove(name).and_then(|bytes| damage.applied(&bytes)) {
            durable.insert(name.to_owned(), bytes);
        }
        for (_, bytes) in pending.iter_mut().filter(|(pending, _)| pending == name) {
            *bytes = bytes.take().and_then(|bytes| damage.applied(&bytes));
        }
        let Some(bytes) = state.objects.remove(name) else { return false };
        if let Some(bytes) = damage.applied(&bytes) {
            state.objects.insert(name.to_owned(), bytes);
        }
        true
    }

    /// All objects' names, in order; not counted as an operation.
    pub fn names(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        unpoisoned(&self.0)
    }

    /// The state, after one more operation was counted; or that operation's failure.
    fn operate(&self, what: &'static str, name: &str, writes: bool) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.operations += 1;
        match state.fault {
            Some((at, Fault::Io)) if at == state.operations => Err(Errno::IO).at(what, name),
            Some((at, Fault::NoSpace)) if at <= state.operations && writes => {
                Err(Errno::NOSPC).at(what, name)
            }
            _ => Ok(state),
        }
    }
}

impl State {
    fn durability_point(&mut self) {
        self.points += 1;
        if self.cut_at == Some(self.points) && self.cut.is_none() {
            self.cut = Some(self.disk.clone());
        }
    }

    fn publish(&mut self, name: &str, bytes: Bytes) {
        self.objects.insert(name.to_owned(), Arc::clone(&bytes));
        self.disk.pending.push((name.to_owned(), Some(bytes)));
    }

    fn object(&self, name: &str) -> Result<&Bytes> {
        self.objects.get(checked(name)?).ok_or_else(|| Error::missing(name))
    }
}

impl Disk {
    fn settle(&mut self) {
        for (name, bytes) in std::mem::take(&mut self.pending) {
            set(&mut self.durable, name, bytes);
        }
    }

    fn survivors(&self, seed: u64) -> Objects {
        let mut changes: BTreeMap<&String, Vec<&Option<Bytes>>> = BTreeMap::new();
        for (name, bytes) in &self.pending {
            changes.entry(name).or_default().push(bytes);
        }
        let mut objects = self.durable.clone();
        let mut random = seed;
        for (name, states) in changes {
            let chosen = next(&mut random) % (states.len() as u64 + 1);
            if let Some(state) = usize::try_from(chosen).ok().and_then(|n| n.checked_sub(1)) {
                set(&mut objects, name.clone(), states[state].clone());
            }
        }
        objects
    }
}

fn set(objects: &mut Objects, name: String, bytes: Option<Bytes>) {
    match bytes {
        Some(bytes) => objects.insert(name, bytes),
        None => objects.remove(&name),
    };
}

/// SplitMix64: the same sequence for the same seed, everywhere.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl Damage {
    /// What is left of `bytes`; `None` if nothing, not even an empty object.
    fn applied(self, bytes: &Bytes) -> Option<Bytes> {
        let mut bytes = bytes.to_vec();
        match self {
            Damage::Flip(bit) => flip(&mut bytes, bit),
            Damage::Truncate(len) => bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX)),
            Damage::Empty => bytes.clear(),
            Damage::Delete => return None,
        }
        Some(bytes.into())
    }
}

fn flip(bytes: &mut [u8], bit: u64) {
    let at = (bit / 8).checked_rem(bytes.len() as u64).and_then(|at| usize::try_from(at).ok());
    if let Some(byte) = at.and_then(|at| bytes.get_mut(at)) {
        *byte ^= 1 << (bit % 8);
    }
}

impl Store for MemoryStore {
    fn create(&self) -> Result<Box<dyn Upload>> {
        self.operate("create", UNFINISHED, true)?.unfinished += 1;
        Ok(Box::new(Unfinished { store: self.clone(), bytes: Vec::new() }))
    }

    fn get(&self, name: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        let state = self.operate("read", name, false)?;
        let bytes = state.object(name)?;
        let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
        match from.and_then(|from| from.get(..buf.len())) {
            Some(range) => buf.copy_from_slice(range),
            None => return Err(shorter_than(name, offset, buf.len())),
        }
        Ok(())
    }

    fn len(&self, name: &str) -> Result<Option<u64>> {
        let state = self.operate("look at", name, false)?;
        Ok(state.objects.get(checked(name)?).map(|bytes| bytes.len() as u64))
    }

    fn list(&self, folder: &str, each: &mut dyn FnMut(&str, u64) -> Result<()>) -> Result<()> {
        if !is_plain(folder) {
            checked(folder)?;
        }
        let prefix = format!("{folder}/");
        let state = self.operate("list", folder, false)?;
        let below = state.objects.iter().filter(|(name, _)| name.starts_with(&prefix));
        let found: Vec<(String, u64)> =
            below.map(|(name, bytes)| (name.clone(), bytes.len() as u64)).collect();
        drop(state);
        found.iter().try_for_each(|(name, len)| each(name, *len))
    }

    fn remove(&self, name: &str) -> Result<()> {
        // Not counted as a write: removing is how a full disk becomes less full.
        let mut state = self.operate("remove", name, false)?;
        if state.objects.remove(checked(name)?).is_some() {
            state.disk.pending.push((name.to_owned(), None));
        }
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        let mut state = self.operate("sync", "", false)?;
        state.durability_point();
        state.disk.settle();
        Ok(())
    }

    fn sweep(&self) -> Result<u64> {
        Ok(std::mem::take(&mut self.operate("list", UNFINISHED, false)?.unfinished))
    }

    fn describe(&self, name: &str) -> String {
        format!("memory:{name}")
    }

    fn read(&self, name: &str, len_max: u64) -> Result<Vec<u8>> {
        let state = self.operate("read", name, false)?;
        let bytes = state.object(name)?;
        bounded(name, bytes.len() as u64, len_max)?;
        Ok(bytes.to_vec())
    }
}

struct Unfinished {
    store: MemoryStore,
    bytes: Vec<u8>,
}

impl Unfinished {
    fn finish(&mut self, name: &str, replace: bool) -> Result<()> {
        let mut state = self.store.operate("publish", name, true)?;
        checked(name)?;
        state.durability_point();
        if !replace && state.objects.contains_key(name) {
            return Err(io::Error::from(Errno::EXIST)).at("publish", name);
        }
        state.publish(name, std::mem::take(&mut self.bytes).into());
        Ok(())
    }
}

impl Upload for Unfinished {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        drop(self.store.operate("write", UNFINISHED, true)?);
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn publish(mut self: Box<Self>, name: &str) -> Result<()> {
        self.finish(name, false)
    }

    fn replace(mut self: Box<Self>, name: &str) -> Result<()> {
        self.finish(name, true)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let mut state = self.store.state();
        state.unfinished = state.unfinished.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small history with every operation that writes.
    fn history(store: &MemoryStore) -> Result<()> {
        store.put("packs/00/a", b"aaaa")?;
        store.put("packs/01/b", b"bbbb")?;
        store.barrier()?;
        store.put("snapshots/1", b"1")?;
        store.barrier()?;
        store.remove("packs/00/a")
    }

    #[test]
    fn every_operation_can_fail_once_and_leaves_nothing_unfinished() {
        let plain = MemoryStore::new();
        history(&plain).unwrap();
        for operation in 1..=plain.operations() {
            let store = MemoryStore::new();
            store.fail_at(operation, Fault::Io);
            let error = history(&store).unwrap_err();
            assert_eq!(error.io().unwrap().raw_os_error(), Some(Errno::IO.raw_os_error()));
            assert_eq!(store.operations(), operation);
            assert_eq!(store.sweep().unwrap(), 0);
        }
    }

    #[test]
    fn a_full_disk_stays_full_but_can_be_read_and_emptied() {
        let store = MemoryStore::new();
        store.put("config", b"x").unwrap();
        store.fail_at(store.operations() + 1, Fault::NoSpace);
        assert!(store.put("a", b"").unwrap_err().is_out_of_space());
        assert!(store.put("a", b"").unwrap_err().is_out_of_space());
        assert_eq!(store.read("config", 1).unwrap(), b"x");
        store.remove("config").unwrap();
        store.barrier().unwrap();
        store.heal();
        store.put("a", b"").unwrap();
    }

    #[test]
    fn what_a_barrier_covered_survives_every_power_cut() {
        let plain = MemoryStore::new();
        history(&plain).unwrap();
        assert_eq!(plain.points(), 5);
        for point in 1..=plain.points() + 1 {
            for seed in 0..20 {
                let store = MemoryStore::new();
                store.cut_power_at(point);
                history(&store).unwrap();
                let names = store.after_power_cut(seed).names();
                let has = |name: &str| names.iter().any(|n| n == name);
                assert!(point <= 3 || has("packs/01/b"), "{point} {names:?}");
                assert!(point <= 5 || has("snapshots/1"), "{point} {names:?}");
                assert!(!has("snapshots/1") || (has("packs/01/b") && point >= 5), "{point} {names:?}");
            }
        }
    }

    #[test]
    fn what_no_barrier_covered_survives_or_not() {
        let store = MemoryStore::new();
        store.put("a", b"1").unwrap();
        store.barrier().unwrap();
        store.remove("a").unwrap();
        store.put("a", b"2").unwrap();
        let mut found = [false; 3];
        for seed in 0..50 {
            match store.after_power_cut(seed).read("a", 1).as_deref() {
                Ok(b"1") => found[0] = true,
                Ok(b"2") => found[1] = true,
                _ => found[2] = true,
            }
        }
        assert_eq!(found, [true; 3]);
    }

    #[test]
    fn the_store_after_a_power_cut_is_on_its_own() {
        let store = MemoryStore::new();
        store.put("a", b"1").unwrap();
        store.barrier().unwrap();
        std::mem::forget(store.create().unwrap());
        let after = store.after_power_cut(0);
        after.remove("a").unwrap();
        assert_eq!(after.sweep().unwrap(), 1);
        assert_eq!(store.names(), ["a"]);
        assert_eq!(after.after_power_cut(1).operations(), 0);
    }

    #[test]
    fn objects_can_be_damaged() {
        let store = MemoryStore::new();
        store.put("a", &[0, 0]).unwrap();
        assert!(store.damage("a", Damage::Flip(9)));
        assert_eq!(store.read("a", 9).unwrap(), [0, 2]);
        assert!(store.damage("a", Damage::Flip(9 + 16)));
        assert!(store.damage("a", Damage::Truncate(1)));
        assert_eq!(store.read("a", 9).unwrap(), [0]);
        assert!(store.damage("a", Damage::Empty));
        assert!(store.damage("a", Damage::Flip(3)));
        assert_eq!(store.len("a").unwrap(), Some(0));
        assert!(store.damage("a", Damage::Delete));
        assert_eq!(store.len("a").unwrap(), None);
        assert!(!store.damage("a", Damage::Empty));
        assert!((0..9).all(|seed| store.after_power_cut(seed).names().is_empty()));
    }

    #[test]
    fn clones_share_their_objects() {
        let store = MemoryStore::new();
        store.clone().put("a", b"1").unwrap();
        assert_eq!(store.names(), ["a"]);
    }
}
