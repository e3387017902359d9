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
