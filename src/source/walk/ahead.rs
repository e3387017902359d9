//! The look-ahead: which directories are listed next, by whom, and how many may wait to be asked
//! for.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::Stat;
use rustix::io::Errno;

use super::Listing;
use crate::error::{Error, Result};
use crate::nested::Nested;

/// Directories listed or being listed that nobody asked for yet; each keeps a descriptor open.
pub const AHEAD_DIRS_MAX: usize = 512;
/// Entries of such directories: about 20 MiB. The directory that passes this bound still counts
/// whole, so that the bound is passed by at most one directory a thread.
pub const AHEAD_ENTRIES_MAX: usize = 65_536;

/// Stands for a directory's listing, whether or not it was made already.
#[derive(Debug)]
pub struct DirHandle {
    pub(super) slot: Arc<Slot>,
    pub(super) board: Arc<Board>,
}

impl DirHandle {
    /// The path below the walk's root; empty for the root itself.
    pub fn path(&self) -> &Nested {
        &self.slot.path
    }
}

/// A handle that is dropped unasked takes its part of the look-ahead with it.
impl Drop for DirHandle {
    fn drop(&mut self) {
        let before = self.slot.swap(State::Gone);
        if matches!(before, State::Waiting) {
            self.board.withdraw(&self.slot);
        }
    }
}

/// One directory that may be asked for.
#[derive(Debug)]
pub(super) struct Slot {
    /// The directory above; `None` for the root.
    pub(super) above: Option<Above>,
    pub(super) path: Nested,
    state: Mutex<State>,
    /// Told when the state is `Running` no longer.
    settled: Condvar,
}

#[derive(Debug, Clone)]
pub(super) struct Above {
    pub(super) dir: Arc<OwnedFd>,
    pub(super) stat: Stat,
}

#[derive(Debug)]
pub(super) enum State {
    /// Nobody is at work on it.
    Waiting,
    /// A look-ahead thread is.
    Running,
    /// A look-ahead thread was.
    Done(Box<Result<Listing>>, Permit),
    /// The consumer has it, or does not want it.
    Gone,
}

impl Slot {
    /// The directory that a walk begins with.
    pub(super) fn root() -> Self {
        Self {
            above: None,
            path: Nested::root(b""),
            state: Mutex::new(State::Waiting),
            settled: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn swap(&self, state: State) -> State {
        mem::replace(&mut *self.lock(), state)
    }

    /// Waits for a look-ahead thread that is at work, then takes what there is.
    pub(super) fn claim(&self) -> State {
        let mut state = self.lock();
        while matches!(*state, State::Running) {
            state = self.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        mem::replace(&mut *state, State::Gone)
    }

    /// Whether it is now `Running`.
    pub(super) fn start(&self) -> bool {
        let mut state = self.lock();
        let waiting = matches!(*state, State::Waiting);
        if waiting {
            *state = State::Running;
        }
        waiting
    }

    /// Ends `Running`, unless the handle was dropped meanwhile.
    fn settle(&self, settled: State) {
        let mut state = self.lock();
        // What is dropped here may hold handles of its own: not under the lock.
        let unwanted = match *state {
            State::Running => mem::replace(&mut *state, settled),
            _ => settled,
        };
        drop(state);
        drop(unwanted);
        self.settled.notify_all();
    }

    pub(super) fn child(&self, name: &[u8], above: Above) -> Arc<Self> {
        Arc::new(Self {
            above: Some(above),
            path: self.path.child(name),
            state: Mutex::new(State::Waiting),
            settled: Condvar::new(),
        })
    }
}

/// Slots are ordered as a depth-first walk meets them.
impl Ord for Slot {
    fn cmp(&self, other: &Self) -> Ordering {
        self.path.cmp(&other.path)
    }
}

impl PartialOrd for Slot {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Slot {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for Slot {}

/// What look-ahead threads may take up, and how much of it is under way.
#[derive(Debug, Default)]
pub(super) struct Board {
    plan: Mutex<Plan>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Plan {
    /// The next one that the consumer will ask for is the first.
    waiting: BTreeSet<Arc<Slot>>,
    dirs: usize,
    entries: usize,
    stopped: bool,
}

impl Plan {
    fn has_room(&self) -> bool {
        self.dirs < AHEAD_DIRS_MAX && self.entries < AHEAD_ENTRIES_MAX
    }
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Directories that wait, those listed ahead, and their entries.
    #[cfg(test)]
    pub(super) fn under_way(&self) -> (usize, usize, usize) {
        let plan = self.lock();
        (plan.waiting.len(), plan.dirs, plan.entries)
    }

    pub(super) fn offer(&self, slots: impl Iterator<Item = Arc<Slot>>) {
        self.lock().waiting.extend(slots);
        self.changed.notify_all();
    }

    pub(super) fn withdraw(&self, slot: &Arc<Slot>) {
        self.lock().waiting.remove(slot);
    }

    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// The next directory to list ahead; waits until there is one and room for it. `None` at
    /// the end.
    pub(super) fn next(self: &Arc<Self>) -> Option<(Arc<Slot>, Permit)> {
        let mut plan = self.lock();
        loop {
            if plan.stopped {
                return None;
            }
            if plan.has_room()
                && let Some(slot) = plan.waiting.pop_first()
            {
                plan.dirs += 1;
                return Some((slot, Permit { board: self.clone(), entries: 0 }));
            }
            plan = self.changed.wait(plan).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A directory's share of the look-ahead; dropping it gives the share back.
#[derive(Debug)]
pub(super) struct Permit {
    board: Arc<Board>,
    entries: usize,
}

impl Permit {
    fn count(&mut self, entries: usize) {
        self.board.lock().entries += entries;
        self.entries += entries;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut plan = self.board.lock();
        plan.dirs -= 1;
        plan.entries -= self.entries;
        drop(plan);
        self.board.changed.notify_one();
    }
}

/// A listing that is being made ahead. Should the thread end early, the consumer that may wait
/// for it is told.
pub(super) struct Running<'a> {
    pub(super) slot: &'a Slot,
    pub(super) permit: Option<Permit>,
}

impl Running<'_> {
    pub(super) fn finish(mut self, listing: Result<Listing>) {
        let Some(mut permit) = self.permit.take() else { return };
        // Out of descriptors, which the consumer can free and a look-ahead cannot: its turn.
        if listing.as_ref().is_err_and(is_out_of_descriptors) {
            return self.slot.settle(State::Waiting);
        }
        permit.count(listing.as_ref().map_or(0, |listing| listing.entries.len()));
        self.slot.settle(State::Done(Box::new(listing), permit));
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            let died = Box::new(Err(Error::Internal("a thread that lists directories ended early")));
            self.slot.settle(State::Done(died, permit));
        }
    }
}

fn is_out_of_descriptors(error: &Error) -> bool {
    let code = error.io().and_then(std::io::Error::raw_os_error);
    code.is_some_and(|code| [Errno::MFILE, Errno::NFILE].contains(&Errno::from_raw_os_error(code)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::IoContext;

    #[test]
    fn entries_count_for_the_bound() {
        let board = Arc::new(Board::default());
        let handle = |path: &str| DirHandle { slot: slot(path.as_bytes()), board: board.clone() };
        let handles = [handle("b"), handle("a")];
        board.offer(handles.iter().map(|handle| handle.slot.clone()));
        let (first, mut permit) = board.next().unwrap();
        assert_eq!(first.path.whole(), b"a");
        permit.count(AHEAD_ENTRIES_MAX);
        assert!(!board.lock().has_room());
        drop(permit);
        assert!(board.lock().has_room());
        drop(handles);
        assert!(board.lock().waiting.is_empty());
        board.stop();
        assert!(board.next().is_none());
    }

    fn slot(path: &[u8]) -> Arc<Slot> {
        let names = path.split(|byte| *byte == b'/');
        let path = names.fold(Nested::root(b""), |path, name| path.child(name));
        Arc::new(Slot { path, ..Slot::root() })
    }

    fn permit() -> Option<Permit> {
        let board = Arc::<Board>::default();
        board.lock().dirs = 1;
        Some(Permit { board, entries: 0 })
    }

    #[test]
    fn out_of_descriptors_is_left_to_the_consumer() {
        let slot = slot(b"a");
        assert!(slot.start());
        let error = Err::<(), _>(Errno::MFILE).at("open", "a").unwrap_err();
        Running { slot: &slot, permit: permit() }.finish(Err(error));
        assert!(matches!(slot.claim(), State::Waiting));
    }

    #[test]
    fn a_thread_that_ends_early_leaves_nobody_waiting() {
        let slot = slot(b"a");
        assert!(slot.start());
        drop(Running { slot: &slot, permit: permit() });
        let State::Done(result, _) = slot.claim() else { panic!("not settled") };
        assert!(matches!(*result, Err(Error::Internal(_))));
    }

    proptest! {
        #[test]
        fn slots_sort_as_a_walk_meets_them(a in "[a!.\u{e9}]{1,3}(/[a!.]{1,3}){0,3}", b in "[a!.]{1,3}(/[a!.]{1,3}){0,3}") {
            let components = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
            prop_assert_eq!(slot(a.as_bytes()).cmp(&slot(b.as_bytes())), components(&a).cmp(&components(&b)));
        }
    }
}
