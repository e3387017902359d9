//! Names of users and groups.
//!
//! Read from `/etc/passwd` and `/etc/group` by ourselves: the system's name service (NSS) loads
//! shared libraries at run time, which a static binary cannot do. Accounts that only a directory
//! service knows keep their numbers and have no names.

use std::collections::HashMap;
use std::fs;
use std::sync::{Arc, PoisonError, RwLock};

use crate::format::tree::Owner;

/// The most pairs of user and group that are kept; past it, the cache starts anew.
pub const OWNERS_MAX: usize = 65_536;

type Names = HashMap<u32, Vec<u8>>;

/// Names for numbers, shared between threads and, as [`Arc`]s, between entries.
#[derive(Default)]
pub struct Owners {
    users: Names,
    groups: Names,
    known: RwLock<HashMap<(u32, u32), Arc<Owner>>>,
}

impl Owners {
    /// The system's; files that cannot be read give no names.
    pub fn of_system() -> Self {
        let read = |path| fs::read(path).unwrap_or_default();
        Self::parse(&read("/etc/passwd"), &read("/etc/group"))
    }

    /// From the content of the two files.
    pub fn parse(passwd: &[u8], group: &[u8]) -> Self {
        Self { users: names(passwd), groups: names(group), known: RwLock::default() }
    }

    /// The owner with these numbers.
    pub fn get(&self, uid: u32, gid: u32) -> Arc<Owner> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(owner) = known.get(&(uid, gid)) {
            return owner.clone();
        }
        drop(known);
        self.remember(uid, gid)
    }

    fn remember(&self, uid: u32, gid: u32) -> Arc<Owner> {
        let name = |names: &Names, id| names.get(&id).cloned().unwrap_or_default();
        let owner = Owner { uid, gid, user: name(&self.users, uid), group: name(&self.groups, gid) };
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= OWNERS_MAX {
            known.clear();
        }
        known.entry((uid, gid)).or_insert_with(|| Arc::new(owner)).clone()
    }
}

/// Both files have lines `name:password:number:…`. Of several names for a number the first one
/// counts, as for the system. Lines that refer to other services (`+`, `-`) are none of ours.
fn names(file: &[u8]) -> Names {
    let mut names = Names::new();
    for line in file.split(|&byte| byte == b'\n') {
        if let Some((number, name)) = name_of_line(line) {
            names.entry(number).or_insert_with(|| name.to_vec());
        }
    }
    names
}

fn name_of_line(line: &[u8]) -> Option<(u32, &[u8])> {
    let mut fields = line.split(|&byte| byte == b':');
    let name = fields.next().filter(|name| !matches!(name.first(), None | Some(b'+' | b'-' | b'#')))?;
    let number = std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()?;
    Some((number, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/sh\n# comment:x:5:\n+nis:x:6:6\n\nbroken\nbad:x:ten:1:\n\
        toor:x:0:0::/:/bin/sh\nj\xfcrgen:x:1000:100::/home/j:/bin/sh";
    const GROUP: &[u8] = b"root:x:0:\nusers:x:100:a,b\n";

    #[test]
    fn names_are_found() {
        let owners = Owners::parse(PASSWD, GROUP);
        let owner = owners.get(1000, 100);
        assert_eq!((&owner.user[..], &owner.group[..]), (&b"j\xfcrgen"[..], &b"users"[..]));
        assert_eq!(owners.get(0, 0).user, b"root");
        for uid in [5, 6, 10, 4_000_000_000] {
            let owner = owners.get(uid, 7);
            assert_eq!((owner.uid, owner.gid, owner.user.len(), owner.group.len()), (uid, 7, 0, 0));
        }
    }

    #[test]
    fn equal_owners_are_shared() {
        let owners = Owners::of_system();
        let first = owners.get(0, 0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert!(Arc::ptr_eq(&first, &owners.get(0, 0))));
            }
        });
    }

    #[test]
    fn the_cache_is_bounded() {
        let owners = Owners::default();
        for uid in 0..OWNERS_MAX as u32 + 10 {
            owners.get(uid, 0);
        }
        assert_eq!(owners.known.read().unwrap().len(), 10);
    }
}
