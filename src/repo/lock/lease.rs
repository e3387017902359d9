//! Locks by files that their holders renew, for file systems on which `flock` does not reach
//! other machines.
//!
//! Everybody makes their own lease and *then* looks for others': of two who come at once, at
//! least one sees the other, and whoever sees a conflict withdraws and waits. So there are never
//! two holders who conflict, though two may both withdraw and try again.
//!
//! A lease is rewritten every [`LEASE_REFRESH`]. Clocks of different machines are not compared:
//! others take a lease for dead when they themselves have watched it for [`LEASE_DEAD`] without a
//! change, and then remove it. The holder stops trusting in it [`LEASE_TRUST`] after the beginning
//! of the last renewal, which nobody can have seen earlier, and never trusts in it again.
//!
//! A name ends in `.shared.lease` or `.exclusive.lease`, so that it counts even if no room was
//! left for its content; then its time of modification is what changes.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::process::Process;
use super::{
    Clock, FOLDER, Holder, LEASE_DEAD, LEASE_REFRESH, LEASE_TRUST, Occupants, Tried, describe_all,
    is_out_of_space, is_read_only, lock_files, make_folder, read_bounded,
};
use crate::error::{Error, IoContext, Result};
use crate::store::{sync, unpoisoned};

const EXTENSION: &str = "lease";
/// Time between two looks that counts as watching, at most: a watcher that was itself asleep has
/// seen nothing.
const GLANCE_MAX: Duration = Duration::from_secs(5);

// A holder that is late by two renewals is not lost, and stops before it is taken for dead.
const _: () = assert!(LEASE_REFRESH.as_secs() * 3 < LEASE_TRUST.as_secs());
const _: () = assert!(LEASE_TRUST.as_secs() < LEASE_DEAD.as_secs());

/// What is in the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    holder: Holder,
    /// Where the holder can be looked for, if that is known.
    process: Option<Process>,
    /// Goes up with each renewal.
    counter: u64,
}

/// A lease of this process; dropping it removes the file.
pub(super) struct Lease {
    path: PathBuf,
    record: Record,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    counter: u64,
    /// When the last renewal that succeeded began.
    renewed: Duration,
    /// Why the lease is no longer to be trusted.
    lost: Option<String>,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("path", &self.path).field("state", &self.state).finish_non_exhaustive()
    }
}

impl Lease {
    fn create(dir: &Path, holder: &Holder, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let kind = if holder.exclusive { "exclusive" } else { "shared" };
        let path = make_folder(dir)?.join(holder.file_name(&format!("{kind}.{EXTENSION}")));
        let record = Record { holder: holder.clone(), process: Process::current(), counter: 0 };
        let state = Mutex::new(State { counter: 0, renewed: clock.now(), lost: None });
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        // From here on, dropping it removes the file.
        let lease = Self { path, record, clock, state };
        lease.write(0)?;
        sync(&File::open(dir.join(FOLDER))?)?;
        Ok(lease)
    }

    /// Renews the lease, or finds out that it is lost.
    pub fn refresh(&self) {
        let begun = self.clock.now();
        if self.trusted().is_err() {
            return;
        }
        let counter = self.state().counter + 1;
        match self.write(counter) {
            Ok(()) => self.renewed(counter, begun),
            Err(e) if e.kind() == ErrorKind::NotFound => self.lose("its lease was removed"),
            // It may go well the next time; if it does not, time will tell.
            Err(_) => {}
        }
    }

    /// An error once others may take this process for dead.
    pub fn still_held(&self) -> Result<()> {
        self.trusted()?;
        // A virtual machine that was stopped has a clock that stood still, but others did not.
        match File::open(&self.path) {
            Err(e) if e.kind() == ErrorKind::NotFound => self.lose("its lease was removed"),
            other => drop(other.at("open", &self.path)?),
        }
        self.trusted()
    }

    fn trusted(&self) -> Result<()> {
        let mut state = self.state();
        let late = self.clock.now().saturating_sub(state.renewed);
        if late > LEASE_TRUST && state.lost.is_none() {
            state.lost = Some(format!("its lease could not be renewed for {} s", late.as_secs()));
        }
        match &state.lost {
            None => Ok(()),
            Some(why) => Err(Error::Locked { holder: format!("this process has lost its place, {why}") }),
        }
    }

    fn renewed(&self, counter: u64, begun: Duration) {
        // A renewal that took too long may have come after others gave up.
        if self.trusted().is_ok() {
            let mut state = self.state();
            state.counter = counter;
            state.renewed = begun;
        }
    }

    fn lose(&self, why: &str) {
        self.state().lost.get_or_insert_with(|| why.to_owned());
    }

    /// Rewrites the file, which must be there: one that was removed must not come back. The text
    /// never gets shorter and fits one write, so readers see the old one or the new one.
    fn write(&self, counter: u64) -> io::Result<()> {
        let text = serde_json::to_vec(&Record { counter, ..self.record.clone() })?;
        let file = OpenOptions::new().write(true).open(&self.path)?;
        match file.write_all_at(&text, 0) {
            Err(e) if is_out_of_space(&e) => file.set_modified(self.clock.wall())?,
            other => other?,
        }
        sync(&file)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        unpoisoned(&self.state)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A lease and the thread that renews it.
#[derive(Debug)]
pub(super) struct Keeper {
    lease: Arc<Lease>,
    /// Dropped to end the thread.
    quit: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub fn start(lease: Lease, every: Duration) -> Result<Self> {
        let lease = Arc::new(lease);
        let (quit, quitting) = channel();
        let renewed = Arc::clone(&lease);
        let renew = move || {
            while quitting.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                renewed.refresh();
            }
        };
        let thread = std::thread::Builder::new().name("lease".to_owned()).spawn(renew);
        let thread = thread.at("renew", &lease.path)?;
        Ok(Self { lease, quit: Some(quit), thread: Some(thread) })
    }

    pub fn still_held(&self) -> Result<()> {
        self.lease.still_held()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.quit.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A lease as others see it.
#[derive(Clone, PartialEq, Eq)]
struct Seen {
    content: Vec<u8>,
    modified: SystemTime,
}

impl Seen {
    /// `None` if the file is gone.
    fn at(path: &Path) -> io::Result<Option<Self>> {
        // Opened anew each time, which is when network file systems ask the server.
        let file = match File::open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        Ok(Some(Self { content: read_bounded(&file)?, modified: file.metadata()?.modified()? }))
    }

    fn record(&self) -> Option<Record> {
        serde_json::from_slice(&self.content).ok()
    }

    fn is_gone(&self) -> bool {
        self.record().is_some_and(|r| r.process.is_some_and(|process| process.is_gone(r.holder.pid)))
    }

    fn holder(&self, name: &str) -> Option<Holder> {
        let exclusive = is_exclusive(name);
        self.record().map(|r| r.holder).or_else(|| Holder::from_file_name(name, self.modified, exclusive))
    }
}

/// What is not known to be shared counts as exclusive.
fn is_exclusive(name: &str) -> bool {
    !name.ends_with(".shared.lease")
}

/// What one who waits knows of another's lease.
struct Watch {
    seen: Seen,
    /// When it was last looked at.
    looked: Duration,
    /// For how long it was watched without a change.
    unchanged: Duration,
    /// It has changed while it was watched, so its holder lives, or did.
    changed: bool,
}

impl Watch {
    fn new(seen: Seen, now: Duration) -> Self {
        Self { seen, looked: now, unchanged: Duration::ZERO, changed: false }
    }

    fn look(&mut self, seen: Seen, now: Duration) {
        if seen == self.seen {
            self.unchanged += now.saturating_sub(self.looked).min(GLANCE_MAX);
        } else {
            self.seen = seen;
            self.unchanged = Duration::ZERO;
            self.changed = true;
        }
        self.looked = now;
    }

    fn is_dead(&self) -> bool {
        self.unchanged >= LEASE_DEAD
    }

    /// Whether it is worth watching: its time of modification is long ago, if clocks agree. A
    /// living holder would have changed it before long.
    fn is_suspect(&self, wall: SystemTime) -> bool {
        !self.changed && wall.duration_since(self.seen.modified).is_ok_and(|age| age > LEASE_DEAD)
    }
}

/// One who wants a lease, and remembers what it saw of others' while it waits.
pub(super) struct Contender<'a> {
    dir: &'a Path,
    wanted: &'a Holder,
    clock: Arc<dyn Clock>,
    watches: HashMap<String, Watch>,
}

impl<'a> Contender<'a> {
    pub fn new(dir: &'a Path, wanted: &'a Holder, clock: Arc<dyn Clock>) -> Self {
        Self { dir, wanted, clock, watches: HashMap::new() }
    }

    /// One attempt to get the lock, without waiting.
    pub fn attempt(&mut self) -> Result<Tried<Lease>> {
        // A first look, so that those who only wait do not stand in others' way.
        if let Some(busy) = self.look_around()? {
            return Ok(busy);
        }
        let lease = match Lease::create(self.dir, self.wanted, Arc::clone(&self.clock)) {
            Err(e) if is_read_only(&e) && !self.wanted.exclusive => return Ok(Tried::ReadOnly),
            other => other.at("make a lease in", self.dir.join(FOLDER))?,
        };
        match self.look_around()? {
            Some(busy) => Ok(busy),
            None => lease.still_held().map(|()| Tried::Got(lease)),
        }
    }

    /// Who is in the way, if anybody is; removes the dead.
    fn look_around(&mut self) -> Result<Option<Tried<Lease>>> {
        let mut in_the_way = Vec::new();
        let mut suspect = true;
        for (path, name) in lock_files(self.dir, EXTENSION)? {
            let mine = name.contains(&self.wanted.id);
            if mine || !(self.wanted.exclusive || is_exclusive(&name)) {
                continue;
            }
            if self.lives(&path, &name)?
                && let Some(watch) = self.watches.get(&name)
            {
                suspect &= watch.is_suspect(self.clock.wall());
                in_the_way.push(watch.seen.holder(&name));
            }
        }
        let busy = |holder| Tried::Busy { holder, suspect };
        let named: Vec<Holder> = in_the_way.iter().flatten().cloned().collect();
        Ok((!in_the_way.is_empty()).then(|| busy(describe_all(&named))))
    }

    /// Looks at one lease; removes it if its holder is dead.
    fn lives(&mut self, path: &Path, name: &str) -> Result<bool> {
        let Some(seen) = Seen::at(path).at("read", path)? else { return Ok(false) };
        let now = self.clock.now();
        let watch = self.watches.entry(name.to_owned()).or_insert_with(|| Watch::new(seen.clone(), now));
        watch.look(seen, now);
        if !watch.is_dead() && !watch.seen.is_gone() {
            return Ok(true);
        }
        remove(path).at("remove", path)?;
        Ok(false)
    }
}

/// All whose death is not certain at a glance, and those whose is; what these left is removed.
pub(super) fn occupants(dir: &Path) -> Result<Occupants> {
    let mut found = Occupants::default();
    for (path, name) in lock_files(dir, EXTENSION)? {
        match Seen::at(&path).at("read", &path)? {
            Some(seen) if seen.is_gone() => {
                let _ = remove(&path);
                found.dead.extend(seen.holder(&name));
            }
            Some(seen) => found.living.extend(seen.holder(&name)),
            None => {}
        }
    }
    Ok(found)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
