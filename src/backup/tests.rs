//! Backups by what changed, compared with backups of everything.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use rustix::fs::{FallocateFlags, fallocate};
use tempfile::TempDir;

use super::*;
use crate::chunker::Params;
use crate::format::map::Map;
use crate::format::snapshot::Method;
use crate::id::expand;
use crate::observe::Recorder;
use crate::repo::{CreateOptions, Intent, OpenOptions};
use crate::source::changes::Changes;

mod interrupted;

static STOP: Stop = Stop::new();

/// A repository, and a file that is backed up to it.
struct World {
    dir: TempDir,
    chunker: &'static str,
    time: i64,
}

impl World {
    fn new(chunker: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = Self { dir, chunker, time: 1_700_000_000 };
        let options = CreateOptions {
            secret: None,
            slot: "x".into(),
            chunker: Params::parse(chunker).unwrap(),
            tiers: BTreeMap::new(),
        };
        Repo::create(&world.path("repository"), options).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn volume(&self) -> PathBuf {
        self.path("volume")
    }

    fn options(&mut self, label: &str, source: Source) -> BackupOptions {
        self.time += 1;
        BackupOptions {
            sources: vec![source],
            host: "h".into(),
            label: label.into(),
            tags: Vec::new(),
            time: Timestamp::from_second(self.time).unwrap(),
            offset: 0,
            user: String::new(),
            tier: Tier::Hot,
            tier_rules: Vec::new(),
            excludes: ExcludeOptions::default(),
            scan: ScanOptions { force_read: true, ..ScanOptions::default() },
            delta: true,
            dry_run: false,
            checkpoint_every: None,
        }
    }

    /// Backs up, and says what the file's map is.
    fn backup(&mut self, label: &str, source: Source) -> (Outcome, Map, Vec<Event>) {
        let options = self.options(label, source);
        let root = self.path("repository");
        let open = OpenOptions {
            secret: None,
            intent: Intent::Add,
            lock_wait: Duration::ZERO,
            command: "test",
            cache_dir: None,
            stop: &STOP,
        };
        let repo = Repo::open(&root, &open).unwrap();
        let recorder = Recorder::default();
        let catalog = repo.catalog(&recorder, &STOP).unwrap();
        let outcome = run(&repo, &catalog, &options, &recorder, &STOP).unwrap();
        let snapshot = repo.load_snapshot(&outcome.id.unwrap()).unwrap();
        let name = self.volume().into_os_string().into_vec();
        let entry = find_root(&catalog, snapshot.tree.root().unwrap(), &name).unwrap().unwrap();
        let map = entry.map().unwrap().clone();
        catalog.close(&recorder).unwrap();
        (outcome, map, recorder.events())
    }

    fn full(&mut self) -> (Outcome, Map) {
        let (outcome, map, _) = self.backup("full", Source::Path(self.volume()));
        (outcome, map)
    }

    fn by(&mut self, snapshot: SnapshotId, changes: Changes, share: Share) -> (Outcome, Map, Vec<Event>) {
        let known = Known::Since { snapshot, changes, method: Method::List };
        let volume = Volume {
            name: None,
            path: self.volume(),
            known,
            spot_check: share,
            lvm: None,
            used: None,
            finished: None,
        };
        self.backup("nightly", Source::Volume(Box::new(volume)))
    }

    fn first(&mut self) -> SnapshotId {
        self.backup("nightly", Source::Path(self.volume())).0.id.unwrap()
    }
}

/// What a change writes.
#[derive(Debug, Clone, Copy)]
enum Fill {
    Zero,
    Byte(u8),
    Noise(u8),
    Hole,
    /// What lies so many bytes before it, as if the content had moved.
    Moved(usize),
}

fn fill() -> impl Strategy<Value = Fill> {
    prop_oneof![
        1 => Just(Fill::Zero),
        1 => any::<u8>().prop_map(Fill::Byte),
        3 => any::<u8>().prop_map(Fill::Noise),
        1 => Just(Fill::Hole),
        2 => (1usize..9000).prop_map(Fill::Moved),
    ]
}

fn write(path: &Path, content: &mut [u8], range: Range<usize>, fill: Fill) {
    let range = range.start.min(content.len())..range.end.min(content.len());
    if range.is_empty() {
        return;
    }
    let file = File::options().write(true).open(path).unwrap();
    match fill {
        Fill::Zero => content[range.clone()].fill(0),
        Fill::Byte(byte) => content[range.clone()].fill(byte),
        Fill::Noise(seed) => expand("varv test noise", &[seed; 32], &mut content[range.clone()]),
        Fill::Moved(by) => {
            let from = range.start.saturating_sub(by);
            content.copy_within(from..from + range.len(), range.start);
        }
        Fill::Hole => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            content[range.clone()].fill(0);
            if fallocate(&file, flags, range.start as u64, range.len() as u64).is_ok() {
                return;
            }
        }
    }
    file.write_all_at(&content[range.clone()], range.start as u64).unwrap();
}

fn create(world: &World, content: &[u8]) {
    File::create(world.volume()).unwrap().write_all(content).unwrap();
}

const CHUNKERS: [&str; 4] = ["fastcdc:256,1K,4K", "fastcdc:4K,16K,64K", "fixed:8K", "fixed:4K"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_changed_gives_what_everything_gives(
        chunker in 0usize..CHUNKERS.len(),
        layout in proptest::collection::vec((fill(), 1usize..600_000), 1..8),
        odd in 0usize..4096,
        nights in proptest::collection::vec(
            proptest::collection::vec((fill(), 0usize..2_000_000, prop_oneof![1usize..20_000, 1usize..400_000]), 0..6),
            1..4,
        ),
        more in proptest::collection::vec((0u64..2_000_000, 1u64..50_000), 0..3),
    ) {
        let mut world = World::new(CHUNKERS[chunker]);
        let len = layout.iter().map(|(_, len)| len).sum::<usize>() + odd;
        let mut content = vec![0; len];
        create(&world, &content);
        let mut at = 0;
        for (fill, len) in layout {
            write(&world.volume(), &mut content, at..at + len, fill);
            at += len;
        }
        let mut before = world.first();
        for changes in nights {
            let mut list = Changes::none(len as u64);
            for (fill, at, count) in changes {
                write(&world.volume(), &mut content, at..at + count, fill);
                list.add(at as u64..(at + count) as u64);
            }
            for (at, count) in &more {
                list.add(*at..at + count);
            }
            prop_assert!(std::fs::read(world.volume()).unwrap() == content);
            let (night, map, _) = world.by(before, list, Share::Percent(3.0));
            let (_, expected) = world.full();
            prop_assert_eq!(&night.volumes[0].fallback_reason, &None);
            prop_assert_eq!(night.volumes[0].method, Method::List);
            prop_assert_eq!(map, expected, "{}", world.chunker);
            before = night.id.unwrap();
        }
    }
}

fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    expand("varv test noise", &[seed; 32], &mut bytes);
    bytes
}

#[test]
fn an_unchanged_volume_is_hardly_read_and_takes_over_its_nodes() {
    let mut world = World::new("fastcdc:256,1K,4K");
    create(&world, &noise(1, 24 << 20));
    let before = world.first();
    let len = 24 << 20;
    let (night, map, _) = world.by(before, Changes::none(len), Share::Percent(0.0));
    assert_eq!(map, world.full().1);
    assert_eq!((night.stats.bytes_read, night.stats.bytes_new, night.volumes[0].bytes_changed), (0, 0, 0));
    let mut list = Changes::none(len);
    list.add(12 << 20..(12 << 20) + 1);
    let (night, ..) = world.by(before, list, Share::Percent(0.0));
    assert!(night.stats.bytes_read < 32 << 10, "{}", night.stats.bytes_read);
    let (night, ..) = world.by(before, Changes::none(len), Share::Default);
    let checked = night.volumes[0].bytes_spot_checked;
    assert!((4 << 20..5 << 20).contains(&checked), "{checked}");
    assert_eq!(night.stats.bytes_read, checked);
}

#[test]
fn runs_of_changes_cost_little_more_than_themselves() {
    let mut world = World::new("fastcdc:4K,16K,64K");
    let mut content = noise(1, 64 << 20);
    create(&world, &content);
    let before = world.first();
    let mut list = Changes::none(64 << 20);
    for number in 0..8u8 {
        let at = usize::from(number) * (8 << 20) + 123_457;
        write(&world.volume(), &mut content, at..at + (1 << 20), Fill::Noise(number + 2));
        list.add(at as u64..at as u64 + (1 << 20));
    }
    let changed = list.bytes();
    let (night, map, _) = world.by(before, list, Share::Percent(0.0));
    assert_eq!(map, world.full().1);
    let around = (night.stats.bytes_read - changed) / 8;
    assert!(around < 100 << 10, "{around} bytes around each run");
}

#[test]
fn where_cuts_never_meet_reading_goes_on() {
    // One byte throughout is cut at the largest length from where a run begins.
    let mut world = World::new("fastcdc:4K,16K,64K");
    let mut content = vec![7; 5_000_000];
    create(&world, &content);
    let before = world.first();
    write(&world.volume(), &mut content, 1_000_000..1_000_001, Fill::Byte(8));
    let mut list = Changes::none(5_000_000);
    list.add(1_000_000..1_000_001);
    list.add(3_000_000..3_000_001);
    let (_, map, _) = world.by(before, list, Share::Percent(0.0));
    assert_eq!(map, world.full().1);
}

#[test]
fn a_wrong_list_is_caught_and_everything_read() {
    let mut world = World::new("fastcdc:4K,16K,64K");
    let mut content = noise(1, 3 << 20);
    content[1 << 20..2 << 20].fill(0);
    create(&world, &content);
    let before = world.first();
    for (at, fill) in [(100, Fill::Byte(1)), (1_500_000, Fill::Byte(1)), ((3 << 20) - 1, Fill::Byte(77))] {
        write(&world.volume(), &mut content, at..at + 1, fill);
        let (night, map, events) = world.by(before, Changes::none(3 << 20), Share::Percent(100.0));
        assert_eq!(map, world.full().1);
        let info = &night.volumes[0];
        assert_eq!(info.method, Method::Full);
        assert!(info.fallback_reason.as_ref().unwrap().contains("spot check"), "{info:?}");
        let warned = |event: &Event| matches!(event, Event::Problem { what, .. } if what.contains("WARNING"));
        assert!(events.iter().any(warned), "{events:?}");
    }
}

#[test]
fn every_range_is_seen_before_any_is_seen_twice() {
    let mut world = World::new("fastcdc:4K,16K,64K");
    // 80 ranges; each night checks 16 of them.
    let content = noise(1, 20 << 20);
    create(&world, &content);
    let mut before = world.first();
    let mut starts = std::collections::BTreeSet::new();
    for _ in 0..5 {
        let (night, ..) = world.by(before, Changes::none(20 << 20), Share::Default);
        before = night.id.unwrap();
        starts.insert(night.volumes[0].spot_check.unwrap().next);
    }
    assert_eq!(starts.len(), 5, "each night goes on elsewhere");
    // Something that no list tells of is found within a turn.
    let file = File::options().write(true).open(world.volume()).unwrap();
    file.write_all_at(b"unheard of", 7 << 20).unwrap();
    let mut found = 0;
    for _ in 0..6 {
        let (night, ..) = world.by(before, Changes::none(20 << 20), Share::Default);
        before = night.id.unwrap();
        found += u32::from(night.volumes[0].method == Method::Full);
    }
    assert_eq!(found, 1);
}

#[test]
fn another_size_is_a_reason_to_read_everything() {
    let mut world = World::new("fastcdc:4K,16K,64K");
    create(&world, &noise(1, 1 << 20));
    let before = world.first();
    create(&world, &noise(1, (1 << 20) + 4096));
    let (night, map, _) = world.by(before, Changes::none((1 << 20) + 4096), Share::Default);
    assert_eq!(map, world.full().1);
    assert!(night.volumes[0].fallback_reason.as_ref().unwrap().contains("1048576"), "{:?}", night.volumes);
}
