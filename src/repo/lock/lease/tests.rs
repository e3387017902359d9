use super::super::tests::FakeClock;
use super::super::{LockMode, retry};
use super::*;
use crate::observe::Stop;

const SECOND: Duration = Duration::from_secs(1);

fn want(exclusive: bool) -> Holder {
    Holder::new(exclusive, "varv prune", SystemTime::now()).unwrap()
}

/// A lease of another machine, as it is `age` seconds after its last renewal.
fn foreign(dir: &Path, exclusive: bool, age: u64) -> PathBuf {
    let holder = Holder { host: "far".into(), pid: 7, command: "varv backup".into(), ..want(exclusive) };
    let kind = if exclusive { "exclusive" } else { "shared" };
    let path = make_folder(dir).unwrap().join(holder.file_name(&format!("{kind}.lease")));
    fs::write(&path, serde_json::to_vec(&Record { holder, process: None, counter: 0 }).unwrap()).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.set_modified(FakeClock::wall_at(Duration::ZERO) - Duration::from_secs(age)).unwrap();
    path
}

/// What a living holder does.
fn renew(path: &Path) {
    let mut record = Seen::at(path).unwrap().unwrap().record().unwrap();
    record.counter += 1;
    fs::write(path, serde_json::to_vec(&record).unwrap()).unwrap();
}

fn take(dir: &Path, exclusive: bool, wait: Duration, clock: &Arc<FakeClock>) -> Result<Lease> {
    let wanted = want(exclusive);
    let mut contender = Contender::new(dir, &wanted, Arc::clone(clock) as Arc<dyn Clock>);
    Ok(retry(&**clock, wait, &Stop::new(), || contender.attempt())?.unwrap())
}

fn new_lease(dir: &Path, clock: &Arc<FakeClock>) -> Lease {
    take(dir, true, Duration::ZERO, clock).unwrap()
}

fn still() -> Arc<FakeClock> {
    FakeClock::new(|_| ())
}

#[test]
fn a_fresh_foreign_lease_refuses_at_once() {
    for exclusive in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let clock = still();
        let path = foreign(dir.path(), true, 5);
        let error = take(dir.path(), exclusive, Duration::ZERO, &clock).unwrap_err();
        assert!(
            matches!(&error, Error::Locked { holder } if holder.starts_with("host far, process 7 (varv"))
        );
        assert_eq!(clock.now(), Duration::ZERO);
        assert_eq!(fs::read_dir(dir.path().join(FOLDER)).unwrap().count(), 1);
        assert!(path.exists());
    }
}

#[test]
fn a_lease_that_does_not_change_is_dead_after_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let clock = still();
    let path = foreign(dir.path(), false, 0);
    take(dir.path(), true, LEASE_DEAD * 2, &clock).unwrap();
    assert!(clock.now() >= LEASE_DEAD && clock.now() < LEASE_DEAD + 2 * SECOND);
    assert!(!path.exists());
}

#[test]
fn a_lease_that_is_renewed_lives() {
    let dir = tempfile::tempdir().unwrap();
    let path = foreign(dir.path(), false, 0);
    let renewed = path.clone();
    let last = Mutex::new(Duration::ZERO);
    let clock = FakeClock::new(move |now| {
        let mut last = unpoisoned(&last);
        if now - *last >= LEASE_REFRESH {
            renew(&renewed);
            *last = now;
        }
    });
    assert!(matches!(take(dir.path(), true, LEASE_DEAD * 5, &clock), Err(Error::Locked { .. })));
    assert_eq!(clock.now(), LEASE_DEAD * 5);
    assert!(path.exists());
}

#[test]
fn a_lease_that_looks_old_is_watched_even_by_the_impatient() {
    let dir = tempfile::tempdir().unwrap();
    let clock = still();
    let path = foreign(dir.path(), true, 3600);
    take(dir.path(), true, Duration::ZERO, &clock).unwrap();
    assert!(clock.now() >= LEASE_DEAD);
    assert!(!path.exists());
}

#[test]
fn a_lease_that_looks_old_but_changes_ends_the_watch() {
    let dir = tempfile::tempdir().unwrap();
    let path = foreign(dir.path(), true, 3600);
    let renewed = path.clone();
    let clock = FakeClock::new(move |now| {
        if now > LEASE_REFRESH {
            renew(&renewed)
        }
    });
    assert!(matches!(take(dir.path(), true, Duration::ZERO, &clock), Err(Error::Locked { .. })));
    assert!(clock.now() < LEASE_REFRESH + 2 * SECOND);
    assert!(path.exists());
}

#[test]
fn a_watcher_that_slept_has_not_watched() {
    let seen = Seen { content: vec![1], modified: SystemTime::now() };
    let mut watch = Watch::new(seen.clone(), Duration::ZERO);
    watch.look(seen.clone(), LEASE_DEAD * 100);
    assert!(!watch.is_dead());
    for glance in 1..=LEASE_DEAD.as_secs() {
        watch.look(seen.clone(), LEASE_DEAD * 100 + Duration::from_secs(glance));
    }
    assert!(watch.is_dead());
}

#[test]
fn a_lease_of_a_process_that_is_gone_is_removed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let gone = |path: &Path| {
        let mut record = Seen::at(path).unwrap().unwrap().record().unwrap();
        // This machine, but a process id that no kernel gives away.
        (record.process, record.holder.pid) = (Process::current(), 0x7fff_fff0);
        fs::write(path, serde_json::to_vec(&record).unwrap()).unwrap();
    };
    let clock = still();
    let path = foreign(dir.path(), true, 0);
    gone(&path);
    take(dir.path(), false, Duration::ZERO, &clock).unwrap();
    assert!(!path.exists());
    let path = foreign(dir.path(), true, 0);
    gone(&path);
    assert!(super::super::occupants(dir.path(), LockMode::Lease).unwrap().living.is_empty());
    assert!(!path.exists());
}

#[test]
fn a_lease_without_content_counts_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let clock = still();
    let path = foreign(dir.path(), false, 0);
    fs::write(&path, b"").unwrap();
    take(dir.path(), false, Duration::ZERO, &clock).unwrap();
    let error = take(dir.path(), true, Duration::ZERO, &clock).unwrap_err().to_string();
    assert!(error.contains("host far, process 7, since"), "{error}");
    fs::rename(&path, dir.path().join(FOLDER).join("odd.lease")).unwrap();
    let error = take(dir.path(), false, Duration::ZERO, &clock).unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
}

#[test]
fn two_that_come_at_once_both_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let clock: Arc<dyn Clock> = still();
    let (a, b) = (want(true), want(false));
    let mut contenders = [&a, &b].map(|wanted| Contender::new(dir.path(), wanted, Arc::clone(&clock)));
    assert!(contenders.iter_mut().all(|c| c.look_around().unwrap().is_none()));
    let _leases = [&a, &b].map(|wanted| Lease::create(dir.path(), wanted, Arc::clone(&clock)).unwrap());
    assert!(contenders.iter_mut().all(|c| c.look_around().unwrap().is_some()));
}

#[test]
fn a_renewal_changes_what_others_see() {
    let dir = tempfile::tempdir().unwrap();
    let lease = new_lease(dir.path(), &still());
    let before = Seen::at(&lease.path).unwrap().unwrap();
    lease.refresh();
    let after = Seen::at(&lease.path).unwrap().unwrap();
    assert_ne!(before.content, after.content);
    assert_eq!(after.record().unwrap().counter, 1);
    assert_eq!(after.record().unwrap().holder, lease.record.holder);
}

#[test]
fn a_holder_stops_trusting_before_others_take_it_for_dead() {
    let dir = tempfile::tempdir().unwrap();
    let clock = still();
    let lease = new_lease(dir.path(), &clock);
    clock.sleep(LEASE_TRUST);
    lease.still_held().unwrap();
    lease.refresh();
    clock.sleep(LEASE_TRUST);
    lease.still_held().unwrap();
    clock.sleep(SECOND);
    let before = fs::read(&lease.path).unwrap();
    assert!(matches!(lease.still_held(), Err(Error::Locked { .. })));
    // Too late: others may be about to remove it.
    lease.refresh();
    assert!(lease.still_held().is_err());
    assert_eq!(fs::read(&lease.path).unwrap(), before);
}

#[test]
fn a_renewal_that_ends_too_late_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let clock = still();
    let lease = new_lease(dir.path(), &clock);
    let begun = clock.now();
    clock.sleep(LEASE_TRUST + SECOND);
    lease.renewed(1, begun);
    assert!(lease.still_held().is_err());
}

#[test]
fn a_removed_lease_is_lost_and_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let clock = still();
    let lease = new_lease(dir.path(), &clock);
    fs::remove_file(&lease.path).unwrap();
    lease.refresh();
    assert!(!lease.path.exists());
    assert!(matches!(lease.still_held(), Err(Error::Locked { .. })));
    let unaware = new_lease(dir.path(), &clock);
    fs::remove_file(&unaware.path).unwrap();
    assert!(matches!(unaware.still_held(), Err(Error::Locked { .. })));
}

#[test]
fn the_keeper_renews_until_it_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let lease = new_lease(dir.path(), &still());
    let path = lease.path.clone();
    let keeper = Keeper::start(lease, Duration::from_millis(1)).unwrap();
    while keeper.lease.state().counter < 3 {
        std::thread::yield_now();
    }
    keeper.still_held().unwrap();
    drop(keeper);
    assert!(!path.exists());
}
