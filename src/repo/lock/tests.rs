use super::*;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

const MODES: [LockMode; 2] = [LockMode::Flock, LockMode::Lease];
const CHILD: &str = "VARV_TEST_LOCK";

/// A clock that stands still except while somebody sleeps.
pub(super) struct FakeClock {
    now: Mutex<Duration>,
    /// Called after each sleep, with the time.
    each: Box<dyn Fn(Duration) + Send + Sync>,
}

impl FakeClock {
    pub fn new(each: impl Fn(Duration) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { now: Mutex::default(), each: Box::new(each) })
    }

    pub fn wall_at(now: Duration) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000) + now
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Duration {
        *self.now.lock().unwrap()
    }

    fn wall(&self) -> SystemTime {
        Self::wall_at(self.now())
    }

    fn sleep(&self, pause: Duration) {
        *self.now.lock().unwrap() += pause;
        (self.each)(self.now());
    }
}

fn take(dir: &Path, mode: LockMode, exclusive: bool) -> Result<Lock> {
    acquire(dir, mode, exclusive, Duration::ZERO, "varv backup /home", &Stop::new())
}

fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join(FOLDER)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "repository").collect()
}

fn refusal(result: Result<Lock>) -> String {
    match result.unwrap_err() {
        Error::Locked { holder } => holder,
        other => panic!("{other}"),
    }
}

#[test]
fn shared_holders_go_together_and_an_exclusive_one_alone() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let first = take(dir.path(), mode, false).unwrap();
        let second = take(dir.path(), mode, false).unwrap();
        assert!(first.still_held().is_ok() && second.still_held().is_ok());
        refusal(take(dir.path(), mode, true));
        drop((first, second));
        let alone = take(dir.path(), mode, true).unwrap();
        refusal(take(dir.path(), mode, true));
        refusal(take(dir.path(), mode, false));
        assert!(alone.holder().exclusive);
        drop(alone);
        assert!(take(dir.path(), mode, false).is_ok());
        assert!(files(dir.path()).is_empty());
    }
}

#[test]
fn a_refusal_names_who_is_in_the_way() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let lock = take(dir.path(), mode, false).unwrap();
        let text = refusal(take(dir.path(), mode, true));
        let since = lock.holder().since;
        let (host, pid) = (process::host(), std::process::id());
        assert_eq!(text, format!("host {host}, process {pid} (varv backup /home), since {since}"));
        let _second = take(dir.path(), mode, false).unwrap();
        assert!(refusal(take(dir.path(), mode, true)).ends_with(", and 1 more"));
    }
}

#[test]
fn holders_are_listed_oldest_first() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        assert!(occupants(dir.path(), mode).unwrap().living.is_empty());
        let locks = [(); 3].map(|()| take(dir.path(), mode, false).unwrap());
        let mut expected: Vec<Holder> = locks.iter().map(|lock| lock.holder().clone()).collect();
        expected.sort_by(|a, b| (a.since, &a.id).cmp(&(b.since, &b.id)));
        assert_eq!(occupants(dir.path(), mode).unwrap().living, expected);
        drop(locks);
        assert!(occupants(dir.path(), mode).unwrap().living.is_empty());
    }
}

#[test]
fn who_waits_gets_the_lock_when_it_is_free() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let held = Mutex::new(Some(take(dir.path(), mode, true).unwrap()));
        std::thread::scope(|scope| {
            let wait = || acquire(dir.path(), mode, false, Duration::from_secs(600), "", &Stop::new());
            let waiting = scope.spawn(wait);
            held.lock().unwrap().take();
            assert!(waiting.join().unwrap().is_ok());
        });
    }
}

#[test]
fn who_waits_heeds_a_signal() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let _held = take(dir.path(), mode, true).unwrap();
        let stop = Stop::new();
        std::thread::scope(|scope| {
            let wait = || acquire(dir.path(), mode, false, Duration::MAX, "", &stop);
            let waiting = scope.spawn(wait);
            stop.request(15);
            assert!(matches!(waiting.join().unwrap(), Err(Error::Stopped(15))));
        });
    }
}

#[test]
fn waiting_ends_at_its_time() {
    let clock = FakeClock::new(|_| ());
    let busy = || Ok(Tried::<()>::Busy { holder: "h".into(), suspect: false });
    let result = retry(&*clock, Duration::from_secs(7), &Stop::new(), busy);
    assert!(matches!(result, Err(Error::Locked { holder }) if holder == "h"));
    assert_eq!(clock.now(), Duration::from_secs(7));
}

#[test]
fn pauses_stay_between_half_and_all() {
    for _ in 0..1000 {
        let pause = jittered(PAUSE_MAX);
        assert!(pause >= PAUSE_MAX / 2 && pause <= PAUSE_MAX, "{pause:?}");
    }
}

/// Not a test by itself: the other process of the tests below.
#[test]
fn as_child() {
    let Ok(task) = std::env::var(CHILD) else { return };
    let (mode, dir) = task.split_once(' ').unwrap();
    let mode = if mode == "Flock" { LockMode::Flock } else { LockMode::Lease };
    let _lock = take(Path::new(dir), mode, true).unwrap();
    io::stdout().write_all(b"\nheld\n").unwrap();
    // Ends when it is killed, or its parent ends.
    let _ = io::stdin().read_line(&mut String::new());
}

fn holding_child(dir: &Path, mode: LockMode) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "repo::lock::tests::as_child", "--nocapture"])
        .env(CHILD, format!("{mode:?} {}", dir.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(io::Result::ok).any(|line| line == "held"), "the child ended");
    child
}

#[test]
fn a_lock_dies_with_its_process() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let mut child = holding_child(dir.path(), mode);
        assert_eq!(occupants(dir.path(), mode).unwrap().living[0].pid, child.id());
        assert!(refusal(take(dir.path(), mode, false)).contains(&format!("process {} ", child.id())));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(files(dir.path()).len(), 1);
        let lock = take(dir.path(), mode, true).unwrap();
        assert_eq!(occupants(dir.path(), mode).unwrap().living, [lock.holder().clone()]);
        assert_eq!(files(dir.path()).len(), 1);
    }
}

#[test]
fn many_contenders_are_never_in_conflict() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        // The number of shared holders, or -1 for an exclusive one.
        let inside = Mutex::new(0);
        let stop = Stop::new();
        let enter = |exclusive: bool| {
            let lock = acquire(dir.path(), mode, exclusive, Duration::from_secs(600), "", &stop).unwrap();
            let mut count = inside.lock().unwrap();
            assert!(if exclusive { *count == 0 } else { *count >= 0 }, "{mode:?}: {count}");
            *count += if exclusive { -1 } else { 1 };
            drop(count);
            std::thread::yield_now();
            *inside.lock().unwrap() -= if exclusive { -1 } else { 1 };
            drop(lock);
        };
        std::thread::scope(|scope| {
            for thread in 0..6 {
                scope.spawn(move || (0..4).for_each(|round| enter((thread + round) % 3 == 0)));
            }
        });
        assert!(files(dir.path()).is_empty());
    }
}

#[test]
fn what_others_wrote_is_shown_harmlessly() {
    let mut holder = Holder::new(false, &"x".repeat(9999), SystemTime::now()).unwrap();
    assert_eq!(holder.command.len(), COMMAND_LEN_MAX);
    holder.host = "../\x1b[2J".into();
    holder.command = "varv\n".into();
    assert!(holder.describe().contains("host ../\\x1b[2J") && holder.describe().contains("(varv\\x0a)"));
    assert!(holder.file_name("json").starts_with(".._"));
}

#[test]
fn a_file_name_tells_who_it_is() {
    let holder = Holder::new(true, "", FakeClock::wall_at(Duration::ZERO)).unwrap();
    let name = holder.file_name("exclusive.lease");
    let read = Holder::from_file_name(&name, FakeClock::wall_at(Duration::ZERO), true);
    assert_eq!(read.unwrap().describe(), holder.describe());
    for name in ["x.lease", "a-b-c.shared.lease", "a-1.shared.lease"] {
        assert!(Holder::from_file_name(name, SystemTime::now(), true).is_none());
    }
}

#[test]
fn network_file_systems_are_known() {
    assert_eq!(mode_of(0x6969), LockMode::Lease);
    assert_eq!(mode_of(0xFF53_4D42), LockMode::Lease);
    assert_eq!(mode_of(0xEF53), LockMode::Flock);
    assert_eq!(mode_for(Path::new("/proc")).unwrap(), LockMode::Flock);
    assert!(!is_network(Path::new("/proc")).unwrap());
    assert!(mode_for(Path::new("/proc/absent")).is_err());
}
