//! Going on with interrupted backups, compared with backups of everything at once.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::format::checkpoint::Checkpoint;
use crate::format::snapshot::LogicalVolume;
use crate::observe::Silent;

/// Asks to stop once so many bytes were dealt with.
struct Interrupter {
    after: u64,
    seen: AtomicU64,
    stop: Stop,
}

impl Interrupter {
    fn after(bytes: u64) -> Self {
        Self { after: bytes, seen: AtomicU64::new(0), stop: Stop::new() }
    }
}

impl Observer for Interrupter {
    fn event(&self, event: Event) {
        if let Event::Advance { bytes, .. } = event
            && self.seen.fetch_add(bytes, Ordering::Relaxed) + bytes >= self.after
        {
            self.stop.request(15);
        }
    }
}

impl World {
    fn of_today(chunker: &'static str) -> Self {
        Self { time: Timestamp::now().as_second() - 1000, ..Self::new(chunker) }
    }

    fn open(&self, intent: Intent) -> Repo {
        let open = OpenOptions {
            secret: None,
            intent,
            lock_wait: Duration::ZERO,
            command: "test",
            cache_dir: None,
            stop: &STOP,
        };
        Repo::open(&self.path("repository"), &open).unwrap()
    }

    fn name(&self) -> Vec<u8> {
        self.volume().into_os_string().into_vec()
    }

    /// A volume as `lvm backup` has it, with what `checkpoint` says of it.
    fn logical(&self, catalog: &Catalog, known: &Known, checkpoint: Option<&Checkpoint>) -> Source {
        let finished = checkpoint.and_then(|it| Finished::of(catalog, it, &self.name()).unwrap());
        let lvm = LogicalVolume { pool: "pool".into(), uuid: "u".into(), ..LogicalVolume::default() };
        Source::Volume(Box::new(Volume {
            name: Some(self.name()),
            path: self.volume(),
            known: known.clone(),
            spot_check: Share::Percent(3.0),
            lvm: Some(lvm),
            used: None,
            finished,
        }))
    }

    /// Backs up what is left to do, until so many bytes were dealt with, and writes down how far that
    /// is `every` so many; what is written down then.
    fn until(&mut self, known: &Known, every: u64, after: u64) -> (Result<Outcome>, Option<Checkpoint>) {
        let repo = self.open(Intent::Add);
        let catalog = repo.catalog(&Silent, &STOP).unwrap();
        let before = repo.checkpoints().unwrap().pop();
        let source = self.logical(&catalog, known, before.as_ref());
        let mut options = self.options("nightly", source);
        options.checkpoint_every = Some(every);
        if let Some(before) = before {
            options.time = before.snapshot.time;
        }
        let interrupter = Interrupter::after(after);
        let outcome = run(&repo, &catalog, &options, &interrupter, &interrupter.stop);
        catalog.close(&Silent).unwrap();
        (outcome, repo.checkpoints().unwrap().pop())
    }

    /// Goes on from the last checkpoint several times, each time after other lengths, as if nothing
    /// had been finished behind it; compares with a backup of everything.
    fn in_parts(&mut self, known: &Known, lengths: &[u64]) -> Outcome {
        let mut done = 0;
        for every in lengths {
            let (outcome, checkpoint) = self.until(known, *every, u64::MAX);
            assert_eq!(outcome.unwrap().volumes[0].bytes_resumed, done);
            done = checkpoint.map_or(0, |it| it.volumes[0].done);
        }
        let (outcome, _) = self.until(known, u64::MAX, u64::MAX);
        let outcome = outcome.unwrap();
        assert_eq!(outcome.volumes[0].bytes_resumed, done);
        assert_eq!(self.map_of(&outcome), self.full().1, "{} {lengths:?} {done}", self.chunker);
        self.open(Intent::Add).forget_checkpoints(|_| true).unwrap();
        outcome
    }

    fn map_of(&self, outcome: &Outcome) -> Map {
        let repo = self.open(Intent::Read);
        let catalog = repo.catalog(&Silent, &STOP).unwrap();
        let snapshot = repo.load_snapshot(&outcome.id.unwrap()).unwrap();
        let entry = find_root(&catalog, snapshot.tree.root().unwrap(), &self.name()).unwrap().unwrap();
        entry.map().unwrap().clone()
    }
}

const ALL: Known = Known::Full { layout: None, reason: None };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]
    #[test]
    fn in_parts_as_at_once(
        chunker in 0usize..CHUNKERS.len(),
        layout in proptest::collection::vec((fill(), 1usize..900_000), 1..8),
        odd in 0usize..4096,
        changes in proptest::collection::vec((fill(), 0usize..4_000_000, 1usize..400_000), 0..6),
        lengths in proptest::collection::vec(1u64..3_000_000, 1..4),
    ) {
        let mut world = World::of_today(CHUNKERS[chunker]);
        let len = layout.iter().map(|(_, len)| len).sum::<usize>() + odd;
        let mut content = vec![0; len];
        create(&world, &content);
        let mut at = 0;
        for (fill, len) in layout {
            write(&world.volume(), &mut content, at..at + len, fill);
            at += len;
        }
        let first = world.in_parts(&ALL, &lengths);
        prop_assert_eq!(first.volumes[0].method, Method::Full);
        let mut list = Changes::none(len as u64);
        for (fill, at, count) in changes {
            write(&world.volume(), &mut content, at..at + count, fill);
            list.add(at as u64..(at + count) as u64);
        }
        let known = Known::Since { snapshot: first.id.unwrap(), changes: list, method: Method::Thin };
        let night = world.in_parts(&known, &lengths);
        prop_assert_eq!(night.volumes[0].method, Method::Thin);
    }
}

#[test]
fn what_is_finished_is_not_read_again() {
    let mut world = World::of_today("fastcdc:256,1K,4K");
    let len: u64 = 64 << 20;
    create(&world, &noise(1, len as usize));
    let (stopped, checkpoint) = world.until(&ALL, 1 << 20, 16 << 20);
    assert!(matches!(stopped, Err(Error::Stopped(15))));
    let done = checkpoint.unwrap().volumes[0].done;
    assert!((14 << 20..len).contains(&done), "{done}");
    let (outcome, _) = world.until(&ALL, 1 << 20, u64::MAX);
    let outcome = outcome.unwrap();
    let info = &outcome.volumes[0];
    let read = info.bytes_read - info.bytes_spot_checked;
    assert!((len - done..len - done + 16_384).contains(&read), "{read} of {len}, {done} were done");
    assert_eq!((info.method, info.bytes_resumed, info.bytes_changed), (Method::Full, done, len));
    assert_eq!(world.map_of(&outcome), world.full().1);
}

#[test]
fn what_was_finished_and_is_lost_is_read_again() {
    let mut world = World::of_today("fastcdc:4K,16K,64K");
    create(&world, &noise(1, 8 << 20));
    let (_, checkpoint) = world.until(&ALL, 1 << 20, u64::MAX);
    assert!(checkpoint.unwrap().volumes[0].done > 1 << 20);
    // All packs are gone, as if by somebody who does not know of checkpoints.
    for folder in std::fs::read_dir(world.path("repository/packs")).unwrap() {
        std::fs::remove_dir_all(folder.unwrap().path()).unwrap();
    }
    assert_eq!(world.in_parts(&ALL, &[]).volumes[0].bytes_read, 8 << 20);
}

#[test]
fn a_volume_that_is_not_what_was_finished_is_read_whole() {
    let mut world = World::of_today("fastcdc:4K,16K,64K");
    create(&world, &noise(1, 8 << 20));
    let _ = world.until(&ALL, 1 << 20, u64::MAX);
    create(&world, &noise(2, 8 << 20));
    let (outcome, _) = world.until(&ALL, 1 << 20, u64::MAX);
    let outcome = outcome.unwrap();
    assert_eq!(outcome.volumes[0].bytes_resumed, 0);
    assert!(outcome.volumes[0].fallback_reason.as_ref().unwrap().contains("spot check"));
    assert_eq!(world.map_of(&outcome), world.full().1);
    // Of another length it is not even compared.
    world.open(Intent::Add).forget_checkpoints(|_| true).unwrap();
    let _ = world.until(&ALL, 1 << 20, u64::MAX);
    create(&world, &noise(2, (8 << 20) + 4096));
    let (outcome, _) = world.until(&ALL, 1 << 20, u64::MAX);
    let info = &outcome.unwrap().volumes[0];
    assert_eq!((info.bytes_resumed, &info.fallback_reason), (0, &None));
}
