//! Which numbers stand for an owner on this system.

use std::collections::HashMap;
use std::path::Path;

use crate::format::tree::Owner;

/// How owners are turned into numbers.
#[derive(Debug, Default)]
pub enum OwnerMap {
    /// The numbers that were backed up.
    #[default]
    Numeric,
    /// The numbers that the names have here; where a name is not known, the number backed up.
    ByName {
        /// Users by name.
        users: HashMap<Vec<u8>, u32>,
        /// Groups by name.
        groups: HashMap<Vec<u8>, u32>,
    },
}

impl OwnerMap {
    /// By name, as the running system's /etc/passwd and /etc/group have them. What cannot be
    /// read knows no names.
    pub fn by_name() -> Self {
        Self::from_files(Path::new("/etc/passwd"), Path::new("/etc/group"))
    }

    /// By name, as these files have them.
    pub fn from_files(passwd: &Path, group: &Path) -> Self {
        Self::ByName { users: read(passwd), groups: read(group) }
    }

    /// User and group numbers of an owner.
    pub fn numbers(&self, owner: &Owner) -> (u32, u32) {
        match self {
            OwnerMap::Numeric => (owner.uid, owner.gid),
            OwnerMap::ByName { users, groups } => (
                users.get(&owner.user).copied().unwrap_or(owner.uid),
                groups.get(&owner.group).copied().unwrap_or(owner.gid),
            ),
        }
    }
}

fn read(path: &Path) -> HashMap<Vec<u8>, u32> {
    parse(&std::fs::read(path).unwrap_or_default())
}

/// Name and number are the first and third field in both files. The first line of a name counts.
fn parse(text: &[u8]) -> HashMap<Vec<u8>, u32> {
    let mut numbers = HashMap::new();
    for line in text.split(|&c| c == b'\n') {
        let mut fields = line.split(|&c| c == b':');
        if let (Some(name), Some(number)) = (fields.next(), fields.nth(1).and_then(number))
            && !name.is_empty()
        {
            numbers.entry(name.to_vec()).or_insert(number);
        }
    }
    numbers
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(user: &str, group: &str) -> Owner {
        Owner { uid: 7, gid: 8, user: user.into(), group: group.into() }
    }

    #[test]
    fn names_are_looked_up_and_numbers_kept_where_unknown() {
        let users =
            parse(b"root:x:0:0:root:/root:/bin/sh\nann:x:1005:5::/:\nann:x:9:9::/:\n+::::::\nbad:x:y\n");
        let map = OwnerMap::ByName { users, groups: parse(b"staff:x:50:ann,bob\n:x:1:\n") };
        assert_eq!(map.numbers(&owner("ann", "staff")), (1005, 50));
        assert_eq!(map.numbers(&owner("bob", "")), (7, 8));
        assert_eq!(map.numbers(&owner("bad", "root")), (7, 8));
        assert_eq!(OwnerMap::Numeric.numbers(&owner("ann", "staff")), (7, 8));
    }

    #[test]
    fn the_system_knows_root() {
        let root = Owner { user: b"root".to_vec(), group: b"root".to_vec(), ..Owner::default() };
        assert_eq!(OwnerMap::by_name().numbers(&Owner { uid: 5, gid: 5, ..root }), (0, 0));
    }
}
