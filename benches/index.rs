//! The index at 1 and 10 million chunks, or as many millions as `VARV_BENCH_MILLIONS=1,10,50` says.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::fs;
use std::time::Instant;
use varv::format::pack::Class;
use varv::id::{ChunkId, Key, PackId, RepositoryId};
use varv::repo::index::{Access, BATCH_CHUNKS, Index, Merge, NewPack, Opened};

const KEY: Key = [7; 32];
const REPOSITORY: RepositoryId = RepositoryId([3; 16]);
/// A data pack of 32 MiB has about so many chunks of 16 KiB that shrink by half.
const PACK_CHUNKS: u64 = 4096;
const LOOK_UPS: u64 = 1 << 20;
const BATCH: usize = 1 << 16;

fn main() {
    let millions = std::env::var("VARV_BENCH_MILLIONS").unwrap_or("1,10".into());
    for count in millions.split(',') {
        run(count.parse::<u64>().unwrap() * 1_000_000);
    }
}

fn run(chunks: u64) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    println!("{chunks} chunks");
    fill(&path, chunks);
    let len = fs::metadata(&path).unwrap().len();
    println!("  file              {:8} MiB, {:.1} bytes a chunk", len >> 20, len as f64 / chunks as f64);
    let opened = Index::open(&path, Access::ReadWrite, &KEY, &REPOSITORY).unwrap();
    let Opened::Usable(mut index) = opened else { return };
    println!("  runs              {:8}", index.counts().unwrap().runs);
    timed("single, no filters", 1 << 16, || look_up(&mut index, 0..chunks, 1 << 16, 1));
    timed("known, no filters", LOOK_UPS, || look_up(&mut index, 0..chunks, LOOK_UPS, BATCH));
    timed("load filters", chunks, || index.load_filters().unwrap());
    timed("single", 1 << 16, || look_up(&mut index, 0..chunks, 1 << 16, 1));
    timed("known", LOOK_UPS, || look_up(&mut index, 0..chunks, LOOK_UPS, BATCH));
    timed("unknown", LOOK_UPS, || look_up(&mut index, chunks..2 * chunks, LOOK_UPS, BATCH));
    timed("verify", chunks, || index.verify().unwrap());
    index.close().unwrap();
    println!("  peak memory       {:>8}", proc_value("/proc/self/status", "VmHWM:"));
}

fn fill(path: &std::path::Path, chunks: u64) {
    let written = || proc_value("/proc/self/io", "write_bytes:").parse::<u64>().unwrap_or(0);
    let before = written();
    let mut index = Index::create(path, &KEY, &REPOSITORY).unwrap();
    let (mut adding, mut merging, mut longest) = (0.0, 0.0, 0f64);
    for start in (0..chunks).step_by(BATCH_CHUNKS) {
        let ids: Vec<ChunkId> = (start..chunks.min(start + BATCH_CHUNKS as u64)).map(id).collect();
        let packs: Vec<NewPack> = (start..)
            .step_by(PACK_CHUNKS as usize)
            .zip(ids.chunks(PACK_CHUNKS as usize))
            .map(new_pack)
            .collect();
        adding += seconds(|| index.add_packs(&packs).unwrap());
        let merge = seconds(|| assert!(matches!(index.merge_if_due(u64::MAX), Ok(Merge::Done(_)))));
        merging += merge;
        longest = longest.max(merge);
    }
    merging += seconds(|| index.close().unwrap());
    println!("  add               {:8.0} k/s", chunks as f64 / adding / 1e3);
    println!(
        "  add and merge     {:8.0} k/s, longest merge {longest:.1} s",
        chunks as f64 / (adding + merging) / 1e3
    );
    println!("  written           {:8} MiB", (written() - before) >> 20);
}

fn new_pack((number, ids): (u64, &[ChunkId])) -> NewPack<'_> {
    NewPack {
        id: PackId::of(&number.to_le_bytes()),
        class: Class::Data,
        len: 32 << 20,
        trailer_check: [0; 16],
        ids,
        before: None,
    }
}

fn look_up(index: &mut Index, range: std::ops::Range<u64>, count: u64, batch: usize) {
    let known = range.start == 0;
    let ids: Vec<ChunkId> =
        (0..count).map(|n| id(range.start + mix(n) % (range.end - range.start))).collect();
    for ids in ids.chunks(batch) {
        assert!(index.locate(ids).unwrap().iter().all(|found| found.is_some() == known));
    }
}

/// An id that looks random, made of its number so that none need be kept.
fn id(number: u64) -> ChunkId {
    let mut bytes = [0; 24];
    for (at, piece) in (1..).zip(bytes.as_chunks_mut::<8>().0) {
        *piece = mix(number.wrapping_mul(3).wrapping_add(at)).to_be_bytes();
    }
    let mut id = ChunkId([0; ChunkId::LEN]);
    id.0.copy_from_slice(&bytes[..ChunkId::LEN]);
    id
}

/// SplitMix64.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn timed(what: &str, count: u64, f: impl FnOnce()) {
    let seconds = seconds(f);
    println!("  {what:18}{:8.0} k/s, {seconds:.2} s", count as f64 / seconds / 1e3);
}

fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

/// What follows `name` in a file of the kernel's.
fn proc_value(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("?").trim().into()
}
