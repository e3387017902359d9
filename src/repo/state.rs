//! What the repository remembers for its upkeep: small sealed objects in `state/`.
//!
//! A value is changed by putting a new object and then removing those that it was read from. Who
//! changes it at the same time does not see the new one and leaves it alone, so that there may be
//! several objects of one kind for a while: whoever reads takes them together. Nothing that was
//! added is ever lost; what was taken away may come back.

use crate::error::{Error, Result};
use crate::format::bad::Bad;
use crate::format::ledger::Ledger;
use crate::format::object::{BODY_MAX, ObjectKind};
use crate::format::wire::Decoded;
use crate::id::{checksum, hex};

use super::objects::{OBJECT_MAX, open_object, seal_object};
use super::{Repo, layout};

/// How often the objects are listed again if others replace them meanwhile.
const ATTEMPTS_MAX: usize = 16;

/// A kind of thing that is remembered.
pub trait State: Default {
    /// What its objects' names begin with.
    const NAME: &'static str;
    /// The plain bytes.
    fn encode(&self) -> Vec<u8>;
    /// From the plain bytes.
    fn decode(bytes: &[u8]) -> Decoded<Self>;
    /// Takes over what another object says.
    fn merge(&mut self, other: Self);
}

impl State for Ledger {
    const NAME: &'static str = "ledger";

    fn encode(&self) -> Vec<u8> {
        self.encode()
    }

    fn decode(bytes: &[u8]) -> Decoded<Self> {
        Ledger::decode(bytes)
    }

    fn merge(&mut self, other: Self) {
        self.merge(other);
    }
}

impl State for Bad {
    const NAME: &'static str = "bad";

    fn encode(&self) -> Vec<u8> {
        self.encode()
    }

    fn decode(bytes: &[u8]) -> Decoded<Self> {
        Bad::decode(bytes)
    }

    fn merge(&mut self, other: Self) {
        self.merge(other);
    }
}

/// What was remembered.
#[derive(Debug, Default)]
pub struct Remembered<S> {
    /// All that could be read.
    pub value: S,
    /// Objects that could not be read, and why.
    pub damaged: Vec<(String, Error)>,
    /// Objects that could be read.
    names: Vec<String>,
}

impl Repo {
    /// What is remembered of this kind.
    pub fn remembered<S: State>(&self) -> Result<Remembered<S>> {
        for _ in 0..ATTEMPTS_MAX {
            if let Some(remembered) = self.try_remembered()? {
                return Ok(remembered);
            }
        }
        Err(Error::Locked { holder: format!("others change what is in {}/ all the time", layout::STATE) })
    }

    /// `None` if an object was replaced while it was read.
    fn try_remembered<S: State>(&self) -> Result<Option<Remembered<S>>> {
        let (mut value, mut damaged) = (S::default(), Vec::new());
        let mut names = Vec::new();
        for name in self.state_names(S::NAME)? {
            match self.read_state::<S>(&name) {
                Ok(other) => {
                    value.merge(other);
                    names.push(name);
                }
                Err(Error::Missing { .. }) => return Ok(None),
                Err(e) if e.is_damage() => damaged.push((name, e)),
                Err(e) => return Err(e),
            }
        }
        Ok(Some(Remembered { value, damaged, names }))
    }

    fn state_names(&self, kind: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        self.store().list(layout::STATE, &mut |name, _| {
            names.extend(layout::is_state(name, kind).then(|| name.to_owned()));
            Ok(())
        })?;
        Ok(names)
    }

    fn read_state<S: State>(&self, name: &str) -> Result<S> {
        let bytes = self.store().read(name, OBJECT_MAX)?;
        if layout::state(S::NAME, &name_of(&bytes)) != name {
            return Err(Error::damaged(name, "its content has another hash than its name"));
        }
        let plain = open_object(self.keys(), &self.id(), ObjectKind::State, name, bytes)?;
        S::decode(&plain).map_err(|e| Error::damaged(name, e))
    }

    /// Remembers a value in place of what it was made from. It is durable when this returns.
    pub fn remember<S: State>(&self, value: &S, before: &Remembered<S>) -> Result<()> {
        self.still_locked()?;
        let plain = value.encode();
        if plain.len() > BODY_MAX as usize {
            return Err(Error::Refused(format!("there is too much to remember in {}/", layout::STATE)));
        }
        let bytes = seal_object(self.keys(), &self.id(), ObjectKind::State, &plain)?;
        self.store().put(&layout::state(S::NAME, &name_of(&bytes)), &bytes)?;
        self.store().barrier()?;
        self.forget_state(before)
    }

    /// Removes the objects that could be read.
    pub fn forget_state<S>(&self, before: &Remembered<S>) -> Result<()> {
        before.names.iter().try_for_each(|name| self.store().remove(name))
    }

    /// Removes the objects that could not be read.
    pub fn forget_damaged<S>(&self, before: &Remembered<S>) -> Result<()> {
        before.damaged.iter().try_for_each(|(name, _)| self.store().remove(name))
    }
}

fn name_of(bytes: &[u8]) -> String {
    hex(&checksum::<32>(&[bytes]))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::format::bad::Slots;
    use crate::id::PackId;
    use crate::observe::Stop;
    use crate::repo::{CreateOptions, Intent, OpenOptions};
    use crate::store::{Damage, MemoryStore};

    fn with_repo(test: impl Fn(&MemoryStore, &dyn Fn(&MemoryStore) -> Repo)) {
        let (folder, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
        let chunker = crate::chunker::Params::parse("fixed:4096").unwrap();
        let options =
            CreateOptions { secret: None, slot: "first".into(), chunker, tiers: Default::default() };
        Repo::create_on(&store, options).unwrap();
        test(&store, &|store| open(store, folder.path()));
    }

    fn open(store: &MemoryStore, root: &Path) -> Repo {
        let options = OpenOptions {
            secret: None,
            intent: Intent::Add,
            lock_wait: Duration::ZERO,
            command: "test",
            cache_dir: None,
            stop: &Stop::new(),
        };
        Repo::open_on(Arc::new(store.clone()), root, &options).unwrap()
    }

    fn pack(number: u8) -> PackId {
        PackId([number; 32])
    }

    fn note(repo: &Repo, number: u8) {
        let before = repo.remembered::<Ledger>().unwrap();
        let mut ledger = before.value.clone();
        ledger.insert(&pack(number), number.into());
        repo.remember(&ledger, &before).unwrap();
    }

    #[test]
    fn two_at_once_lose_nothing() {
        with_repo(|store, open| {
            let repo = open(store);
            note(&repo, 1);
            let (first, second) =
                (repo.remembered::<Ledger>().unwrap(), repo.remembered::<Ledger>().unwrap());
            for (number, before) in [(2, first), (3, second)] {
                let mut ledger = before.value.clone();
                ledger.insert(&pack(number), number.into());
                repo.remember(&ledger, &before).unwrap();
            }
            assert_eq!(repo.state_names("ledger").unwrap().len(), 2);
            note(&repo, 4);
            assert_eq!(repo.state_names("ledger").unwrap().len(), 1);
            let ledger = repo.remembered::<Ledger>().unwrap().value;
            assert_eq!([1, 2, 3, 4].map(|n| ledger.last(&pack(n))), [1, 2, 3, 4].map(Some));
        });
    }

    #[test]
    fn a_loss_of_power_leaves_it_as_it_was_or_as_it_is() {
        with_repo(|store, open| {
            note(&open(store), 1);
            let points = store.points();
            note(&open(store), 2);
            let all = store.points() - points;
            for point in 1..=all + 1 {
                for seed in 0..8 {
                    let store = store.after_power_cut(seed);
                    store.cut_power_at(point);
                    note(&open(&store), 3);
                    let after = store.after_power_cut(seed * 31);
                    let ledger = open(&after).remembered::<Ledger>().unwrap();
                    assert!(ledger.damaged.is_empty());
                    let known = [1, 2].map(|number| ledger.value.last(&pack(number)));
                    assert_eq!(known, [Some(1), Some(2)], "point {point} seed {seed}");
                }
            }
        });
    }

    #[test]
    fn what_is_damaged_is_named_and_replaced() {
        with_repo(|store, open| {
            let repo = open(store);
            let mut bad = Bad::default();
            bad.add(&pack(1), &Slots::all());
            repo.remember(&bad, &Remembered::default()).unwrap();
            let name = repo.state_names("bad").unwrap().remove(0);
            assert!(store.damage(&name, Damage::Flip(900)));
            let found = repo.remembered::<Bad>().unwrap();
            assert_eq!((found.value.is_empty(), found.damaged.len()), (true, 1));
            assert!(found.damaged[0].1.to_string().starts_with(&name));
            repo.remember(&bad, &found).unwrap();
            repo.forget_damaged(&found).unwrap();
            let found = repo.remembered::<Bad>().unwrap();
            assert_eq!((found.value == bad, found.damaged.len()), (true, 0));
            assert_eq!(repo.remembered::<Ledger>().unwrap().value, Ledger::default());
        });
    }
}
