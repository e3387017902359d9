//! The memory of repositories and volumes that are too large to have: what would be on the disk is
//! made up, as far as `main` says, and everything else is the program's own.
//!
//! `VARV_BENCH_MILLIONS` is the number of made-up chunks in the index (default 1), `VARV_BENCH_EXTENTS` that of the
//! volume's extents in millions (default 10; 1074 are 16 TiB in chunks of 16 KiB), and
//! `VARV_BENCH_SOURCES=PATH,PATH` what is backed up for real, as the nights of one source; the last
//! one is restored.
#![allow(clippy::panic, clippy::print_stdout, clippy::unwrap_used)]

mod house;

use std::fs;
use std::process::Command;
use std::time::Instant;

use house::{House, STOP};
use varv::codec::frame::Encoder;
use varv::format::config::Sizes;
use varv::format::map::{Builder, Extent, Map};
use varv::format::pack::{Class, Kind};
use varv::id::{ChunkId, Key, PackId};
use varv::observe::Silent;
use varv::repo::catalog::Catalog;
use varv::repo::nodes::Extents;
use varv::repo::packer::{PackWriter, Packed, PublishedPack, RawFrame};
use varv::repo::{Intent, Repo, layout};

const MILLION: u64 = 1_000_000;
const CHUNK_LEN: u32 = 16 << 10;
/// A data pack of 32 MiB has about so many chunks that shrink by half.
const PACK_CHUNKS: u64 = 4096;
const PACK_LEN: u64 = 32 << 20;
/// As many chunks are looked up at once as in a window of a restore.
const WINDOW: usize = 64 << 10;
/// The volume's extents repeat after so many, so that its nodes fit onto the disk.
const REPEAT: u64 = MILLION;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match &words[..] {
        [] => all_steps(),
        [house, step, rest @ ..] => one_step(&House::at(house.as_ref()), step, rest),
        _ => panic!("a step needs a house"),
    }
}

/// Each in a process of its own, as commands are.
fn all_steps() {
    let house = House::new(Sizes::default());
    let run = |step: &str, word: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        assert!(command.arg(house.path()).args([step, word]).status().unwrap().success());
    };
    run("crowd", &(number("VARV_BENCH_MILLIONS", 1) * MILLION).to_string());
    let sources = std::env::var("VARV_BENCH_SOURCES");
    let sources = sources.unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/src").into());
    for source in sources.split(',') {
        run("backup", source);
    }
    let last = sources.rsplit(',').next().unwrap();
    run("backup", last);
    run("restore", last);
    run("volume", &(number("VARV_BENCH_EXTENTS", 10) * MILLION).to_string());
}

fn one_step(house: &House, step: &str, words: &[String]) {
    let word = &words[0];
    match step {
        "crowd" => measured("index of made-up chunks, in packs that are holes", || {
            crowd(house, word.parse().unwrap());
        }),
        "backup" => measured(&format!("backup of {word}, all read"), || {
            house.backup(&house.becomes(word.as_ref()));
        }),
        "restore" => {
            measured("restore of it", || house.restore(&house.becomes(word.as_ref())));
            house.tidy();
        }
        "volume" => {
            let extents = word.parse().unwrap();
            let map = measured("map of a volume of made-up chunks, as a backup builds it", || {
                build(house, extents)
            });
            measured("plan of its restore: map walked, chunks looked up by windows", || plan(house, &map));
        }
        _ => panic!("no such step"),
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Fills the index, and makes a file of the right length for each pack, since the list of packs
/// is compared with the index whenever it is opened.
fn crowd(house: &House, chunks: u64) {
    let repo = house.open(Intent::Add);
    let catalog = repo.catalog(&Silent, &STOP).unwrap();
    for start in (0..chunks).step_by(32 * PACK_CHUNKS as usize) {
        let end = chunks.min(start + 32 * PACK_CHUNKS);
        let starts = (start..end).step_by(PACK_CHUNKS as usize);
        let packs: Vec<PublishedPack> =
            starts.map(|start| pack(start..end.min(start + PACK_CHUNKS))).collect();
        for pack in &packs {
            let path = repo.root().join(layout::pack(&pack.record.id));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::File::create(path).unwrap().set_len(PACK_LEN).unwrap();
        }
        catalog.add(&packs).unwrap();
    }
    catalog.close(&Silent).unwrap();
}

fn pack(numbers: std::ops::Range<u64>) -> PublishedPack {
    let id = PackId::of(&numbers.start.to_le_bytes());
    let record = Packed { id, class: Class::Data, len: PACK_LEN, check: [0; 16] };
    PublishedPack { record, ids: numbers.map(id_of).collect(), overhead: 0 }
}

/// An id that looks random, made of its number so that none need be kept.
fn id_of(number: u64) -> ChunkId {
    const KEY: Key = [7; 32];
    ChunkId::of(&KEY, &number.to_le_bytes())
}

/// Builds the map and stores its nodes; those that repeat are stored once, as in a backup.
fn build(house: &House, extents: u64) -> Map {
    let repo = house.open(Intent::Add);
    let catalog = repo.catalog(&Silent, &STOP).unwrap();
    let mut nodes = Nodes::new(&repo);
    let mut builder = Builder::default();
    let ids: Vec<ChunkId> = (0..REPEAT.min(extents)).map(id_of).collect();
    for id in ids.iter().cycle().take(extents as usize) {
        let extent = Extent::Data { id: *id, len: CHUNK_LEN };
        builder.push(extent, &mut |node| nodes.store(node)).unwrap();
    }
    let map = builder.finish(&mut |node| nodes.store(node)).unwrap();
    nodes.publish(&repo, &catalog);
    println!("  {} TiB, {} nodes, {} of them stored", map.len() >> 40, nodes.made, nodes.stored);
    catalog.close(&Silent).unwrap();
    map
}

/// What stores a map's nodes.
struct Nodes<'r> {
    repo: &'r Repo,
    frame: RawFrame,
    encoder: Encoder,
    writer: Option<PackWriter>,
    seen: std::collections::HashSet<ChunkId>,
    made: u64,
    stored: u64,
}

impl<'r> Nodes<'r> {
    fn new(repo: &'r Repo) -> Self {
        let writer = PackWriter::new(&**repo.store(), repo.keys(), repo.id(), Class::Metadata).unwrap();
        Self {
            repo,
            frame: RawFrame::new(Kind::Map, Vec::new()),
            encoder: Encoder::new(3).unwrap(),
            writer: Some(writer),
            seen: Default::default(),
            made: 0,
            stored: 0,
        }
    }

    fn store(&mut self, node: Vec<u8>) -> Result<ChunkId, std::convert::Infallible> {
        let id = ChunkId::of(self.repo.keys().ids(Kind::Map), &node);
        self.made += 1;
        if self.seen.insert(id) {
            self.stored += 1;
            self.frame.push(id, &node, None);
            if self.frame.raw.len() >= 256 << 10 {
                self.close_frame();
            }
        }
        Ok(id)
    }

    fn close_frame(&mut self) {
        let frame = std::mem::replace(&mut self.frame, RawFrame::new(Kind::Map, Vec::new()));
        let (frame, _) = frame.encode(&mut self.encoder, 3).unwrap();
        self.writer.as_mut().unwrap().append(frame).unwrap();
    }

    fn publish(&mut self, repo: &Repo, catalog: &Catalog) {
        self.close_frame();
        let pack = self.writer.take().unwrap().close().unwrap().publish().unwrap();
        repo.store().barrier().unwrap();
        catalog.add(&[pack]).unwrap();
    }
}

/// Walks the map and finds each window's chunks in the index, sorted by pack as a restore does.
/// Reading the packs' tables of contents is left out: they are made up.
fn plan(house: &House, map: &Map) {
    let repo = house.open(Intent::Read);
    let catalog = repo.catalog(&Silent, &STOP).unwrap();
    let mut window = Vec::with_capacity(WINDOW);
    let mut offset_end = 0;
    for item in Extents::of(&catalog, map) {
        let (offset, extent) = item.unwrap();
        offset_end = offset + extent.len();
        if let Extent::Data { id, .. } = extent {
            window.push(id);
        }
        if window.len() == WINDOW || offset_end == map.len() {
            let found = catalog.locate(&window).unwrap();
            let mut places: Vec<(u32, u32)> =
                found.iter().flatten().map(|place| (place.pack, place.slot)).collect();
            places.sort_unstable();
            assert!(places.len() == window.len(), "the index has all of them");
            window.clear();
        }
    }
    assert_eq!(offset_end, map.len());
    catalog.close(&Silent).unwrap();
}

/// Tells how long it took and the most memory that was resident meanwhile.
fn measured<T>(what: &str, f: impl FnOnce() -> T) -> T {
    // Forgets the greatest size so far; see proc(5).
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let start = Instant::now();
    let value = f();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim();
    println!("{what}: {:.1} s, at most {peak}", start.elapsed().as_secs_f64());
    value
}
