//! Who is in the repository: shared and exclusive locks that die with their process.
//!
//! | holds ↓ wants → | shared | exclusive |
//! |---|---|---|
//! | shared: backup, restore, dump, ls, snapshots, find, stats, check, verify, forget, the planning of prune and retier | go on together | the exclusive one waits |
//! | exclusive: init, key changes, repair, upgrade, the execution of prune and retier | the shared one waits | the second one waits |
//!
//! A lock is never turned into the other kind: who plans under the shared lock and executes under
//! the exclusive one lets go in between, and looks again at what the plan was made of.
//!
//! Locks are no part of the store. On local file systems they are `flock`s ([`LockMode::Flock`]),
//! which the kernel drops when a process dies. Where `flock` does not reach other machines they
//! are leases ([`LockMode::Lease`]): files whose owners rewrite them again and again, and which
//! are dead when nobody has for a while. The two do not see each other, so all who use a
//! repository must come by the same way: all by the network, or all on its own machine. A mount
//! that keeps lists of folders for longer than [`LEASE_DEAD`] without asking the server is not
//! safe for more than one machine.

mod flock;
mod lease;
mod process;

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rustix::io::Errno;
use rustix::time::ClockId;
use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext, Result};
use crate::id::hex;
use crate::observe::Stop;
use crate::text::escape;

/// How often a lease is renewed.
pub const LEASE_REFRESH: Duration = Duration::from_secs(10);
/// How long the holder of a lease trusts in it after the last renewal. The rest, up to
/// [`LEASE_DEAD`], is for what the holder began while it still trusted in it.
pub const LEASE_TRUST: Duration = Duration::from_secs(40);
/// How long others must see a lease unchanged before they take its holder for dead.
pub const LEASE_DEAD: Duration = Duration::from_secs(60);

/// The folder of all locks, below the repository's.
const FOLDER: &str = "locks";
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Bytes read of a lock file, at most; they are written by others.
const FILE_LEN_MAX: u64 = 16 << 10;
/// Characters of a command kept, at most, so that a lease is written in one piece.
const COMMAND_LEN_MAX: usize = 500;

/// How processes learn of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// The kernel knows: local file systems.
    Flock,
    /// By files that are renewed: network and FUSE file systems.
    Lease,
}

/// A process that holds a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Random; tells two locks of one process apart.
    pub id: String,
    /// The machine's name.
    pub host: String,
    /// The process on that machine.
    pub pid: u32,
    /// What it does, as the user would type it; empty if it could not write that down.
    pub command: String,
    /// When it got, or began to wait for, the lock.
    pub since: Timestamp,
    /// Whether nobody else may be in the repository.
    pub exclusive: bool,
}

impl Holder {
    fn new(exclusive: bool, command: &str, now: SystemTime) -> Result<Self> {
        let mut id = [0; 8];
        getrandom::fill(&mut id).map_err(io::Error::other).at("read", "/dev/urandom")?;
        Ok(Self {
            id: hex(&id),
            host: process::host(),
            pid: std::process::id(),
            command: command.chars().take(COMMAND_LEN_MAX).collect(),
            since: whole_seconds(now),
            exclusive,
        })
    }

    /// The name of this holder's file in the folder of locks.
    fn file_name(&self, extension: &str) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || ".-".contains(c) { c } else { '_' };
        let host: String = self.host.chars().take(64).map(plain).collect();
        format!("{host}-{}-{}.{extension}", self.pid, self.id)
    }

    /// What a file's name alone tells: its content may not be there yet, or no room was left.
    fn from_file_name(name: &str, modified: SystemTime, exclusive: bool) -> Option<Self> {
        let (stem, _) = name.rsplit_once(".shared.").or_else(|| name.rsplit_once(".exclusive."))?;
        let (front, id) = stem.rsplit_once('-')?;
        let (host, pid) = front.rsplit_once('-')?;
        Some(Self {
            id: id.to_owned(),
            host: host.to_owned(),
            pid: pid.parse().ok()?,
            command: String::new(),
            since: whole_seconds(modified),
            exclusive,
        })
    }

    /// Whether two holders cannot be in the repository together.
    fn conflicts(&self, exclusive: bool) -> bool {
        self.exclusive || exclusive
    }

    /// As messages show it. The text is another process's, perhaps another machine's.
    pub fn describe(&self) -> String {
        let command = match self.command.as_str() {
            "" => String::new(),
            command => format!(" ({})", escape(command.as_bytes())),
        };
        format!("host {}, process {}{command}, since {}", escape(self.host.as_bytes()), self.pid, self.since)
    }
}

/// A place in the repository, given back when dropped.
#[derive(Debug)]
pub struct Lock {
    holder: Holder,
    held: Held,
}

#[derive(Debug)]
enum Held {
    Flock {
        _held: flock::Held,
    },
    Lease(lease::Keeper),
    /// Nothing can be written here, by this machine at least: there is nothing to guard.
    ReadOnly,
}

impl Lock {
    /// Who holds it: this process.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// An error if others may have come to take this process for dead. To be asked before
    /// anything is published or removed.
    pub fn still_held(&self) -> Result<()> {
        match &self.held {
            Held::Lease(keeper) => keeper.still_held(),
            Held::Flock { .. } | Held::ReadOnly => Ok(()),
        }
    }
}

/// Takes the lock of the repository in the folder `dir`, waiting up to `wait` for others to
/// leave; then it is [`Error::Locked`]. If all who are in the way seem to have died on other
/// machines, it takes the time to make sure, whatever `wait` says. `command` is for others to read.
pub fn acquire(
    dir: &Path,
    mode: LockMode,
    exclusive: bool,
    wait: Duration,
    command: &str,
    stop: &Stop,
) -> Result<Lock> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let holder = Holder::new(exclusive, command, clock.wall())?;
    let held = match mode {
        LockMode::Flock => retry(&*clock, wait, stop, || flock::attempt(dir, &holder))?
            .map(|held| Held::Flock { _held: held }),
        LockMode::Lease => {
            let mut contender = lease::Contender::new(dir, &holder, Arc::clone(&clock));
            let lease = retry(&*clock, wait, stop, || contender.attempt())?;
            lease.map(|lease| lease::Keeper::start(lease, LEASE_REFRESH)).transpose()?.map(Held::Lease)
        }
    };
    Ok(Lock { holder, held: held.unwrap_or(Held::ReadOnly) })
}

/// Who is in the repository, and who was and has died.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Occupants {
    /// Those who hold it. Leases of other machines are among them until somebody who waits has
    /// seen them die.
    pub living: Vec<Holder>,
    /// Those who died without giving it back. What they left was removed, where that is possible.
    pub dead: Vec<Holder>,
}

/// Everybody who is in the repository, and what the dead left. Each list by time.
pub fn occupants(dir: &Path, mode: LockMode) -> Result<Occupants> {
    let mut found = match mode {
        LockMode::Flock => flock::occupants(dir)?,
        LockMode::Lease => lease::occupants(dir)?,
    };
    for holders in [&mut found.living, &mut found.dead] {
        holders.sort_by(|a, b| (a.since, &a.id).cmp(&(b.since, &b.id)));
    }
    Ok(found)
}

/// How locks work on the file system of `path`.
pub fn mode_for(path: &Path) -> Result<LockMode> {
    let found = rustix::fs::statfs(path).at("look at the file system of", path)?;
    // The type of this field differs between machines; magic numbers have 32 bits.
    Ok(mode_of(found.f_type as u32))
}

/// Whether `path` is on a file system that other machines, or a process, may serve.
pub fn is_network(path: &Path) -> Result<bool> {
    Ok(mode_for(path)? == LockMode::Lease)
}

fn mode_of(magic: u32) -> LockMode {
    match magic {
        0x6969 // NFS
        | 0xFF53_4D42 // CIFS
        | 0xFE53_4D42 // SMB 2
        | 0x517B // SMB
        | 0x6573_5546 // FUSE: sshfs, rclone, virtiofs
        | 0x0102_1997 // 9p
        | 0x00C3_6400 // Ceph
        | 0x5346_414F // AFS
        | 0x6B41_4653 // kAFS
        | 0x7375_7245 // Coda
        | 0x0BD0_0BD0 // Lustre
        | 0x4750_4653 // GPFS
        | 0x7461_636F // OCFS2
        | 0x0116_1970 // GFS2
        | 0x00C0_FFEE // hostfs
        => LockMode::Lease,
        _ => LockMode::Flock,
    }
}

/// Time as locks see it; tests bring their own.
trait Clock: Send + Sync {
    /// Since some fixed moment, never backwards, counting also while the machine sleeps.
    fn now(&self) -> Duration;

    /// The time of day.
    fn wall(&self) -> SystemTime;

    /// Lets time pass.
    fn sleep(&self, pause: Duration);
}

struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        let time = rustix::time::clock_gettime(ClockId::Boottime);
        Duration::try_from(time).unwrap_or_default()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, pause: Duration) {
        std::thread::sleep(pause);
    }
}

/// What came of one attempt to get a lock.
enum Tried<T> {
    /// The lock.
    Got(T),
    /// Nothing can be written here; a shared lock needs nothing more.
    ReadOnly,
    /// Others are in the way.
    Busy {
        holder: String,
        /// They seem to be dead, and one who keeps looking will know.
        suspect: bool,
    },
}

/// Attempts until the lock is there (`None`: it needs none), or the time is over.
fn retry<T>(
    clock: &dyn Clock,
    wait: Duration,
    stop: &Stop,
    mut attempt: impl FnMut() -> Result<Tried<T>>,
) -> Result<Option<T>> {
    let deadline = clock.now().saturating_add(wait);
    let mut pause = PAUSE_FIRST;
    loop {
        stop.check()?;
        let left = deadline.saturating_sub(clock.now());
        match attempt()? {
            Tried::Got(lock) => return Ok(Some(lock)),
            Tried::ReadOnly => return Ok(None),
            Tried::Busy { suspect: true, .. } => clock.sleep(jittered(pause)),
            Tried::Busy { holder, .. } if left.is_zero() => return Err(Error::Locked { holder }),
            Tried::Busy { .. } => clock.sleep(jittered(pause).min(left)),
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Between half of `pause` and all of it, so that two who met do not meet again for ever.
fn jittered(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX);
    pause.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

/// The folder of locks, made if it is not there.
fn make_folder(dir: &Path) -> io::Result<PathBuf> {
    let folder = dir.join(FOLDER);
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
        _ => Ok(folder),
    }
}

/// The files in the folder of locks whose names end in `.extension`.
fn lock_files(dir: &Path, extension: &str) -> Result<Vec<(PathBuf, String)>> {
    let folder = dir.join(FOLDER);
    let entries = match fs::read_dir(&folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.at("list", &folder)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.at("list", &folder)?.path();
        if path.extension() == Some(OsStr::new(extension))
            && let Some(name) = path.file_name().and_then(OsStr::to_str).map(str::to_owned)
        {
            files.push((path, name));
        }
    }
    Ok(files)
}

fn read_bounded(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(FILE_LEN_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The first holder in the way, and how many more there are.
fn describe_all(holders: &[Holder]) -> String {
    match holders {
        [] => "another process holds it".to_owned(),
        [one] => one.describe(),
        [first, others @ ..] => format!("{}, and {} more", first.describe(), others.len()),
    }
}

fn is_read_only(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::ROFS)
}

fn is_out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

fn whole_seconds(time: SystemTime) -> Timestamp {
    let time = Timestamp::try_from(time).unwrap_or_default();
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests;
