//! Logical volumes: what there is, snapshots of them, and what has changed since one was taken.
//!
//! All is asked of LVM's own programs, and of the kernel by `dmsetup`; only the exceptions of a
//! classic snapshot are read from their device. Nothing here knows of repositories.

mod command;
mod cow;
mod free;
mod freeze;
mod kept;
mod lock;
mod new;
mod report;
mod select;
mod snapshot;
mod thin;

use std::path::Path;

use rustix::fs::{major, minor};

pub use command::file_system;
pub use cow::{changes_since, has_overflowed};
pub use free::{FreeBlocks, InUse};
pub use freeze::{Frozen, freeze};
pub use kept::{Kept, kept};
pub use lock::Lock;
pub use new::NewVolume;
pub use report::{Kind, Lv, group_config, list};
pub use select::{Selected, select};
pub use snapshot::{Mark, Plan, Size, create, is_marked, mark_of, remove, set_active};
pub use thin::{PoolUse, delta, layout, layout_of, pool_use};

/// A block device's number, major and minor.
pub type Number = (u32, u32);

/// The devices that hold a file system's file: its own, and all that this one is made of.
pub fn devices_below(path: &Path) -> Vec<Number> {
    let Ok(found) = rustix::fs::stat(path) else { return Vec::new() };
    let mut pending = vec![(major(found.st_dev), minor(found.st_dev))];
    let mut seen = Vec::new();
    while let Some(number) = pending.pop() {
        if seen.contains(&number) {
            continue;
        }
        seen.push(number);
        let slaves = format!("/sys/dev/block/{}:{}/slaves", number.0, number.1);
        for slave in std::fs::read_dir(slaves).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(slave.path().join("dev")).unwrap_or_default();
            pending.extend(parse_number(&text));
        }
    }
    seen
}

fn parse_number(text: &str) -> Option<Number> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
