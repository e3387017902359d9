//! What of a thin volume is allocated, and where two of a pool differ: by the pool's metadata,
//! which `thin_delta` reads while a snapshot of it is reserved.
//!
//! A pool has one such snapshot at most. So a tag on the pool says that it is ours: what a crash
//! left reserved is released by the next run, and what others reserved is left alone.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;

use rustix::fs::{major, minor};

use super::Number;
use super::command::{command, run};
use super::lock::Lock;
use super::report::{Kind, Lv, list};
use crate::error::{Error, IoContext, Result};
use crate::observe::Stop;
use crate::source::change_list::read_thin_delta;
use crate::source::changes::Changes;

/// Says that the pool's metadata snapshot is ours.
const RESERVED_TAG: &str = "varv.reserved";
/// Where the status line of a pool has what is used, …
const USED_METADATA_FIELD: usize = 4;
const USED_DATA_FIELD: usize = 5;
/// … and the block of its metadata snapshot.
const HELD_FIELD: usize = 6;

/// How full a pool is, in percent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PoolUse {
    /// Its data.
    pub data: f64,
    /// Its metadata.
    pub metadata: f64,
}

impl PoolUse {
    /// Whether either is at the limit, in percent.
    pub fn is_above(self, limit: f64) -> bool {
        self.data >= limit || self.metadata >= limit
    }
}

/// How full a pool is, as the kernel says: its status line has blocks of metadata used and all,
/// then blocks of data, `216/2048 247/8192`.
pub fn pool_use(pool: &Lv) -> Result<PoolUse> {
    let status = run("dmsetup", ["status", &device_of(pool)])?;
    let percent = |at: usize| {
        let (used, all) = status.split_whitespace().nth(at)?.split_once('/')?;
        Some(100.0 * used.parse::<f64>().ok()? / all.parse::<f64>().ok().filter(|all| *all > 0.0)?)
    };
    match (percent(USED_METADATA_FIELD), percent(USED_DATA_FIELD)) {
        (Some(metadata), Some(data)) => Ok(PoolUse { data, metadata }),
        _ => Err(Error::Program {
            program: "dmsetup status".into(),
            why: format!("it says '{}'", status.trim()),
        }),
    }
}

/// The device-mapper's name of the pool proper.
fn device_of(pool: &Lv) -> String {
    format!("{}-tpool", pool.mapped_name())
}

/// What of the thin volume behind an open device is allocated, by now: what was written to it before
/// is written out. `None` if it is anything else; an error that is text as with [`layout`].
pub fn layout_of(device: &File, locks: &Path, stop: &Stop) -> Result<Option<Result<Changes, String>>> {
    let found = rustix::fs::fstat(device).map_err(std::io::Error::from).at("look at", "the device")?;
    let number = (major(found.st_rdev), minor(found.st_rdev));
    if !is_of_lvm(number) {
        return Ok(None);
    }
    device.sync_all().at("write out", "the device")?;
    let all = list()?;
    let is_it = |lv: &&Lv| lv.kind == Kind::Thin && lv.number == Some(number);
    let Some(volume) = all.iter().find(is_it) else { return Ok(None) };
    match all.iter().find(|lv| Some(&lv.uuid) == volume.pool_uuid.as_ref()) {
        Some(pool) => layout(volume, pool, locks, stop).map(Some),
        None => Ok(None),
    }
}

/// The device-mapper's devices have an identity, which says who made them.
fn is_of_lvm((major, minor): Number) -> bool {
    let uuid = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/dm/uuid"));
    uuid.is_ok_and(|uuid| uuid.starts_with("LVM-"))
}

/// What of `volume` is allocated: all else are holes. An error that is text says why that is not
/// known. The volume is active; a snapshot that nobody writes to, unless what is known may grow old.
pub fn layout(volume: &Lv, pool: &Lv, locks: &Path, stop: &Stop) -> Result<Result<Changes, String>> {
    if has_other_origin(volume)? {
        return Ok(Err("parts of it are another volume's (an external origin)".into()));
    }
    let mut layout = Changes::none(volume.len);
    layout.add_hole(0..volume.len);
    compare(volume, volume, pool, locks, stop, layout)
}

/// Where `new` may differ from `old`, of the same pool and length: what is not allocated any more
/// is a hole.
pub fn delta(old: &Lv, new: &Lv, pool: &Lv, locks: &Path, stop: &Stop) -> Result<Result<Changes, String>> {
    if has_other_origin(new)? {
        return Ok(Err("parts of it are another volume's (an external origin)".into()));
    }
    if old.pool_uuid != new.pool_uuid {
        return Ok(Err("it has moved to another pool".into()));
    }
    compare(old, new, pool, locks, stop, Changes::none(new.len))
}

/// What is not allocated shows the external origin's bytes, if there is one: the fifth word behind
/// the range, pool and number in the device-mapper's table.
fn has_other_origin(volume: &Lv) -> Result<bool> {
    let table = run("dmsetup", ["table", volume.mapped_name()])?;
    Ok(table.split_whitespace().count() > 5)
}

fn compare(
    old: &Lv,
    new: &Lv,
    pool: &Lv,
    locks: &Path,
    stop: &Stop,
    into: Changes,
) -> Result<Result<Changes, String>> {
    let (Some(old), Some(new)) = (old.thin_id, new.thin_id) else {
        return Ok(Err("LVM does not tell its number in the pool".into()));
    };
    let _lock = Lock::take(locks, &pool.uuid, &pool.path(), std::time::Duration::MAX, stop)?;
    let name = device_of(pool);
    let reserved = match Reserved::new(pool, &name)? {
        Ok(reserved) => reserved,
        Err(why) => return Ok(Err(why)),
    };
    let changes = thin_delta(pool, old, new, into);
    reserved.release()?;
    changes.map(Ok)
}

/// The pool's metadata snapshot, ours until it is dropped.
struct Reserved<'p> {
    pool: &'p Lv,
    name: &'p str,
    is_held: bool,
}

impl<'p> Reserved<'p> {
    /// Others' is left alone; then the reason is returned.
    fn new(pool: &'p Lv, name: &'p str) -> Result<Result<Self, String>> {
        let tags = run("lvs", ["--noheadings", "-o", "lv_tags", &pool.path()])?;
        let is_ours = tags.trim().split(',').any(|tag| tag == RESERVED_TAG);
        match (is_held(name)?, is_ours) {
            (true, false) => {
                return Ok(Err(format!(
                    "somebody else has reserved the metadata of {} (if nobody has: dmsetup message {name} 0 release_metadata_snap)",
                    pool.path()
                )));
            }
            (true, true) => message(name, "release_metadata_snap")?,
            (false, _) => {}
        }
        if !is_ours {
            run("lvchange", ["--addtag", RESERVED_TAG, &pool.path()])?;
        }
        message(name, "reserve_metadata_snap")?;
        Ok(Ok(Self { pool, name, is_held: true }))
    }

    fn release(mut self) -> Result<()> {
        self.is_held = false;
        self.give_back()
    }

    fn give_back(&self) -> Result<()> {
        message(self.name, "release_metadata_snap")?;
        run("lvchange", ["--deltag", RESERVED_TAG, &self.pool.path()]).map(drop)
    }
}

impl Drop for Reserved<'_> {
    /// After an error; if this fails too, the next run does it.
    fn drop(&mut self) {
        if self.is_held {
            let _ = self.give_back();
        }
    }
}

fn message(name: &str, text: &str) -> Result<()> {
    run("dmsetup", ["message", name, "0", text]).map(drop)
}

fn is_held(name: &str) -> Result<bool> {
    let status = run("dmsetup", ["status", name])?;
    let field = status.split_whitespace().nth(HELD_FIELD);
    Ok(field.is_some_and(|field| field != "-"))
}

fn thin_delta(pool: &Lv, old: u32, new: u32, into: Changes) -> Result<Changes> {
    let mut metadata = pool.device.clone().into_os_string();
    metadata.push("_tmeta");
    let (old, new) = (old.to_string(), new.to_string());
    let words = [
        "--metadata-snap".as_ref(),
        "--thin1".as_ref(),
        old.as_ref(),
        "--thin2".as_ref(),
        new.as_ref(),
        metadata.as_os_str(),
    ];
    let mut child = command("thin_delta", words)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .at("run", "thin_delta (of thin-provisioning-tools)")?;
    let output = child.stdout.take().ok_or(Error::Internal("a program without output"))?;
    let is_layout = old == new;
    let read = read_thin_delta(output, into, is_layout);
    if read.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().at("wait for", "thin_delta")?;
    let failed = |why: String| Error::Program { program: "thin_delta".into(), why };
    match read {
        Ok(changes) if status.success() => Ok(changes),
        Ok(_) => Err(failed(status.to_string())),
        Err(why) => Err(failed(why)),
    }
}
