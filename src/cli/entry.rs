//! An entry of a snapshot's tree, as text and as JSON.

use jiff::Timestamp;
use serde::Serialize;

use super::output;
use crate::format::tree::{Entry, Payload, Time};
use crate::text::escape;

/// An entry in JSON.
#[derive(Serialize)]
pub struct EntryRow {
    path: String,
    kind: &'static str,
    size: u64,
    mode: String,
    uid: u32,
    gid: u32,
    user: String,
    group: String,
    mtime: Option<String>,
    target: Option<String>,
}

impl EntryRow {
    /// Times are in the zone of the snapshot, `offset` seconds from UTC.
    pub fn new(path: &[u8], entry: &Entry, offset: i32) -> Self {
        let target = match &entry.payload {
            Payload::Symlink(target) => Some(escape(target)),
            _ => None,
        };
        Self {
            path: escape(path),
            kind: entry.kind(),
            size: size(entry),
            mode: format!("{:04o}", entry.mode),
            uid: entry.owner.uid,
            gid: entry.owner.gid,
            user: escape(&entry.owner.user),
            group: escape(&entry.owner.group),
            mtime: timestamp(entry.modified).map(|time| output::rfc3339(time, offset)),
            target,
        }
    }
}

/// An entry's size: of a directory, that of all files below it.
pub fn size(entry: &Entry) -> u64 {
    entry.dir().map_or(entry.size(), |dir| dir.bytes)
}

/// A time of an entry; `None` for times that no calendar reaches.
pub fn timestamp(time: Time) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos.try_into().ok()?).ok()
}

/// A line as `ls -l` has it.
pub fn long(path: &[u8], entry: &Entry, offset: i32) -> String {
    let owner = &entry.owner;
    let size = match &entry.payload {
        Payload::BlockDevice(device) | Payload::CharDevice(device) => {
            format!("{}, {}", device.major, device.minor)
        }
        _ => size(entry).to_string(),
    };
    let time = timestamp(entry.modified)
        .map_or_else(|| format!("@{}", entry.modified.seconds), |time| output::time(time, offset));
    let target = match &entry.payload {
        Payload::Symlink(target) => format!(" -> {}", escape(target)),
        _ => String::new(),
    };
    format!(
        "{} {:<8} {:<8} {size:>12} {time} {}{target}",
        mode(entry),
        named(&owner.user, owner.uid),
        named(&owner.group, owner.gid),
        escape(path)
    )
}

fn named(name: &[u8], number: u32) -> String {
    if name.is_empty() { number.to_string() } else { escape(name) }
}

/// Kind and permissions, such as `drwxr-xr-x`.
fn mode(entry: &Entry) -> String {
    let kind = match entry.payload {
        Payload::File(_) | Payload::Stream(_) => '-',
        Payload::Dir(_) => 'd',
        Payload::Symlink(_) => 'l',
        Payload::BlockDevice(_) | Payload::Volume(_) => 'b',
        Payload::CharDevice(_) => 'c',
        Payload::Fifo => 'p',
        Payload::Socket => 's',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = entry.mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (entry.mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tree::Device;

    fn entry(mode: u32, payload: Payload) -> Entry {
        Entry {
            name: b"x".to_vec(),
            mode,
            owner: Default::default(),
            modified: Time { seconds: 1_000_000_000, nanos: 5 },
            changed: Time::default(),
            inode: 1,
            xattrs: vec![],
            links: None,
            payload,
        }
    }

    #[test]
    fn modes_are_as_ls_has_them() {
        assert_eq!(mode(&entry(0o755, Payload::Fifo)), "prwxr-xr-x");
        assert_eq!(mode(&entry(0o4750, Payload::Socket)), "srwsr-x---");
        assert_eq!(mode(&entry(0o2640, Payload::File(Default::default()))), "-rw-r-S---");
        assert_eq!(mode(&entry(0o1777, Payload::Symlink(vec![]))), "lrwxrwxrwt");
        assert_eq!(mode(&entry(0o1000, Payload::Fifo)), "p--------T");
    }

    #[test]
    fn odd_names_are_lines_of_text_and_json() {
        let link = entry(0o777, Payload::Symlink(b"to\xff".to_vec()));
        assert!(long(b"/a\n\xff", &link, 3600).ends_with("2001-09-09 02:46:40 /a\\x0a\\xff -> to\\xff"));
        let row = EntryRow::new("/ä\\".as_bytes(), &link, 0);
        assert_eq!((row.path.as_str(), row.target.as_deref()), ("/ä\\\\", Some("to\\xff")));
    }

    #[test]
    fn devices_show_their_number_and_any_time_can_be_shown() {
        let mut device = entry(0o660, Payload::BlockDevice(Device { major: 8, minor: 1 }));
        assert!(long(b"/dev/sda1", &device, 0).contains(" 8, 1 "));
        device.modified = Time { seconds: i64::MAX, nanos: 0 };
        assert!(long(b"/dev/sda1", &device, 0).contains(" @9223372036854775807 "));
        assert_eq!(EntryRow::new(b"/", &device, 0).mtime, None);
    }
}
