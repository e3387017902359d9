//! Where a repository's objects are: immutable byte strings under names.
//!
//! An object is invisible until it is published whole, and once published is never changed. The
//! operations are few enough for an object store to offer them: there is no append, and no
//! rename but the one that publishes.
//!
//! A name is relative and `/`-separated: `config`, `snapshots/<hex>`, or `packs/ab/<hex>`, where
//! the folder in the middle is two hexadecimal digits. Other names are refused, so that bytes
//! from a store cannot lead out of it.
//!
//! What is published or removed is certain to survive a loss of power only after
//! [`Store::barrier`]; an object's content is safe before its name appears.

mod durable;
mod local;
mod memory;

pub(crate) use durable::{sync, unpoisoned};
pub use local::LocalStore;
pub use memory::{Damage, Fault, MemoryStore};

use crate::error::{Error, Result};
use crate::text::escape;

/// The folder of unfinished objects; no object's name begins with it.
pub const UNFINISHED: &str = "tmp";

/// Bytes in one part of a name, at most: what every file system takes.
const NAME_PART_LEN_MAX: usize = 255;

/// Where a repository's objects are.
pub trait Store: Send + Sync {
    /// Begins an object whose name need not be known yet; nothing is visible until it is
    /// published.
    fn create(&self) -> Result<Box<dyn Upload>>;

    /// Fills `buf` from `offset` on. An object that ends earlier is [`Error::Damaged`], one that
    /// is not there [`Error::Missing`].
    fn get(&self, name: &str, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// The object's length in bytes; `None` if there is no such object.
    fn len(&self, name: &str) -> Result<Option<u64>>;

    /// Calls `each` with the full name and length of every object below `folder`, in no order.
    /// What is no object (other kinds of files, names that are none) is passed over.
    fn list(&self, folder: &str, each: &mut dyn FnMut(&str, u64) -> Result<()>) -> Result<()>;

    /// Removes the object; it is fine if there is none.
    fn remove(&self, name: &str) -> Result<()>;

    /// All that was published and removed before is durable when this returns.
    fn barrier(&self) -> Result<()>;

    /// Removes unfinished objects and says how many; only for the holder of the exclusive lock,
    /// since it cannot tell dead uploads from live ones.
    fn sweep(&self) -> Result<u64>;

    /// The name as messages should show it.
    fn describe(&self, name: &str) -> String;

    /// Lets the next barrier cover an object that was found here: whoever published it may have
    /// been killed before their own barrier. For objects of others on which one is going to rely.
    fn adopt(&self, _name: &str) {}

    /// Publishes `bytes` under a name that must be free.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut upload = self.create()?;
        upload.write(bytes)?;
        upload.publish(name)
    }

    /// Publishes `bytes` under a name that may be taken: see [`Upload::replace`].
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut upload = self.create()?;
        upload.write(bytes)?;
        upload.replace(name)
    }

    /// A whole small object; one above `len_max` bytes is refused as damaged before anything is
    /// allocated.
    fn read(&self, name: &str, len_max: u64) -> Result<Vec<u8>> {
        let len = self.len(name)?.ok_or_else(|| Error::missing(name))?;
        let mut bytes = vec![0; bounded(name, len, len_max)?];
        self.get(name, 0, &mut bytes)?;
        Ok(bytes)
    }
}

/// An object being written. Dropped without being published, it leaves nothing behind.
pub trait Upload: Send {
    /// Adds bytes at the end.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Makes the content durable and the object visible under `name`, whole or not at all. If
    /// the name is taken, the error's kind is [`std::io::ErrorKind::AlreadyExists`].
    fn publish(self: Box<Self>, name: &str) -> Result<()>;

    /// As [`Upload::publish`], but in place of what is there: at any instant, readers find the
    /// old object or the new one. For the configuration, the only object whose name says nothing
    /// about its content.
    fn replace(self: Box<Self>, name: &str) -> Result<()>;
}

/// `name` if it can be an object's.
fn checked(name: &str) -> Result<&str> {
    match is_name(name) {
        true => Ok(name),
        false => Err(Error::Refused(format!("'{}' is no name of an object", escape(name.as_bytes())))),
    }
}

fn is_name(name: &str) -> bool {
    let parts: Vec<&str> = name.split('/').take(4).collect();
    let shape = match parts[..] {
        [_] => true,
        [folder, _] => folder != UNFINISHED,
        [folder, shard, _] => folder != UNFINISHED && is_shard(shard),
        _ => false,
    };
    shape && parts.iter().all(|part| is_plain(part))
}

/// Whether this is one part of a name; a leading dot is for files that are not ours.
fn is_plain(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('.')
        && !part.contains(['/', '\0'])
        && part.len() <= NAME_PART_LEN_MAX
}

/// Whether this is a folder that spreads many objects: two hexadecimal digits.
fn is_shard(part: &str) -> bool {
    part.len() == 2 && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The folder a name is in; the root is "".
fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn shorter_than(name: &str, offset: u64, len: usize) -> Error {
    Error::damaged(name, format_args!("it is shorter than {} bytes", offset.saturating_add(len as u64)))
}

fn bounded(name: &str, len: u64, len_max: u64) -> Result<usize> {
    usize::try_from(len)
        .ok()
        .filter(|_| len <= len_max)
        .ok_or_else(|| Error::damaged(name, format_args!("it has {len} bytes, more than {len_max}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::ErrorKind;

    /// What every store must do, tried on each of them.
    fn on_every_store(test: impl Fn(&dyn Store)) {
        let folder = tempfile::tempdir().unwrap();
        test(&LocalStore::init(folder.path()).unwrap());
        test(&MemoryStore::new());
    }

    fn listed(store: &dyn Store, folder: &str) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        let mut insert = |name: &str, len| {
            assert_eq!(all.insert(name.to_owned(), len), None);
            Ok(())
        };
        store.list(folder, &mut insert).unwrap();
        all
    }

    fn kind(result: Result<()>) -> Option<ErrorKind> {
        result.unwrap_err().io().map(std::io::Error::kind)
    }

    #[test]
    fn what_is_put_can_be_had_in_ranges() {
        on_every_store(|store| {
            store.put("packs/ab/abcd", b"0123456789").unwrap();
            let mut buf = [0; 4];
            store.get("packs/ab/abcd", 6, &mut buf).unwrap();
            assert_eq!(&buf, b"6789");
            store.get("packs/ab/abcd", 10, &mut []).unwrap();
            assert_eq!(store.len("packs/ab/abcd").unwrap(), Some(10));
            assert_eq!(store.read("packs/ab/abcd", 10).unwrap(), b"0123456789");
        });
    }

    #[test]
    fn short_long_and_absent_objects_are_told_apart() {
        on_every_store(|store| {
            store.put("config", b"0123").unwrap();
            for offset in [1, 4, 5, u64::MAX] {
                let error = store.get("config", offset, &mut [0; 4]).unwrap_err();
                assert!(matches!(&error, Error::Damaged { object, .. } if object == "config"), "{error}");
            }
            assert!(matches!(store.read("config", 3), Err(Error::Damaged { .. })));
            assert!(matches!(store.get("other", 0, &mut []), Err(Error::Missing { .. })));
            assert!(matches!(store.read("packs/00/x", 9), Err(Error::Missing { .. })));
            assert_eq!(store.len("packs/00/x").unwrap(), None);
            assert_eq!(store.len("config/x").unwrap(), None);
        });
    }

    #[test]
    fn a_name_is_given_once() {
        on_every_store(|store| {
            store.put("snapshots/1", b"first").unwrap();
            assert_eq!(kind(store.put("snapshots/1", b"second")), Some(ErrorKind::AlreadyExists));
            assert_eq!(store.read("snapshots/1", 99).unwrap(), b"first");
            assert_eq!(store.sweep().unwrap(), 0);
        });
    }

    #[test]
    fn replacing_needs_nothing_to_be_there() {
        on_every_store(|store| {
            store.replace("config", b"first").unwrap();
            store.replace("config", b"2nd").unwrap();
            assert_eq!(store.read("config", 99).unwrap(), b"2nd");
            assert_eq!(store.sweep().unwrap(), 0);
        });
    }

    #[test]
    fn an_upload_is_invisible_until_published_and_may_change_threads() {
        on_every_store(|store| {
            let mut upload = store.create().unwrap();
            upload.write(b"abc").unwrap();
            assert!(listed(store, "packs").is_empty());
            let publish = move || {
                upload.write(&vec![7; 9 << 20]).unwrap();
                upload.publish("packs/00/x").unwrap();
            };
            std::thread::spawn(publish).join().unwrap();
            assert_eq!(listed(store, "packs"), BTreeMap::from([("packs/00/x".into(), (9 << 20) + 3)]));
        });
    }

    #[test]
    fn a_dropped_upload_leaves_nothing_and_a_forgotten_one_is_swept() {
        on_every_store(|store| {
            drop(store.create().unwrap());
            assert_eq!(store.sweep().unwrap(), 0);
            std::mem::forget(store.create().unwrap());
            std::mem::forget(store.create().unwrap());
            assert_eq!(store.sweep().unwrap(), 2);
            assert_eq!(store.sweep().unwrap(), 0);
        });
    }

    #[test]
    fn a_list_holds_one_folder_with_lengths() {
        on_every_store(|store| {
            for name in ["config", "packs/00/a", "packs/ff/b", "packs/direct", "packs2/c", "snapshots/d"] {
                store.put(name, name.as_bytes()).unwrap();
            }
            let packs = ["packs/00/a", "packs/ff/b", "packs/direct"];
            assert_eq!(listed(store, "packs"), packs.map(|n| (n.to_owned(), n.len() as u64)).into());
            assert!(listed(store, "nowhere").is_empty());
            let stop = store.list("packs", &mut |_, _| Err(Error::Stopped(2)));
            assert!(matches!(stop, Err(Error::Stopped(2))));
        });
    }

    #[test]
    fn objects_can_be_removed_while_they_are_listed() {
        on_every_store(|store| {
            store.put("packs/00/a", b"a").unwrap();
            store.put("packs/01/b", b"b").unwrap();
            store.list("packs", &mut |name, _| store.remove(name)).unwrap();
            assert!(listed(store, "packs").is_empty());
        });
    }

    #[test]
    fn removal_is_seen_at_once_and_may_be_repeated() {
        on_every_store(|store| {
            store.put("packs/00/a", b"a").unwrap();
            store.get("packs/00/a", 0, &mut [0]).unwrap();
            store.remove("packs/00/a").unwrap();
            store.remove("packs/00/a").unwrap();
            store.remove("nowhere/a").unwrap();
            assert!(matches!(store.get("packs/00/a", 0, &mut [0]), Err(Error::Missing { .. })));
            store.put("packs/00/a", b"b").unwrap();
            store.barrier().unwrap();
            assert_eq!(store.read("packs/00/a", 1).unwrap(), b"b");
        });
    }

    #[test]
    fn names_do_not_lead_out_of_the_store() {
        let long = "x".repeat(256);
        on_every_store(|store| {
            for name in [
                "", "/", "a/", "/a", "../a", "a/../b", ".", "a//b", "a/b/c", "a/00/b/c", "tmp/a", "a\0",
                &long,
            ] {
                assert!(matches!(store.put(name, b""), Err(Error::Refused(_))), "{name:?}");
                assert!(matches!(store.get(name, 0, &mut []), Err(Error::Refused(_))), "{name:?}");
                assert!(matches!(store.remove(name), Err(Error::Refused(_))), "{name:?}");
                assert!(matches!(store.len(name), Err(Error::Refused(_))), "{name:?}");
            }
            assert!(matches!(store.list("../x", &mut |_, _| Ok(())), Err(Error::Refused(_))));
            assert_eq!(store.sweep().unwrap(), 0);
        });
    }

    #[test]
    fn many_threads_may_publish_and_wait_for_durability() {
        on_every_store(|store| {
            std::thread::scope(|scope| {
                for thread in 0..8u8 {
                    scope.spawn(move || {
                        for number in 0..8u8 {
                            store.put(&format!("packs/{number:02x}/{thread}"), &[thread]).unwrap();
                            store.barrier().unwrap();
                        }
                    });
                }
            });
            assert_eq!(listed(store, "packs").len(), 64);
        });
    }
}
