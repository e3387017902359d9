//! What frame sizes cost and save: stored bytes, and the time of backups and a restore.
//!
//! `VARV_BENCH_FRAMES=tree:1M,2M,4M` (or `volume:`, `metadata:`) says which size is varied,
//! `VARV_BENCH_SOURCES=PATH,PATH` what is backed up, one after the other into one repository;
//! the last one is restored. Without sources there is nothing to measure.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod house;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use house::House;
use varv::format::config::Sizes;
use varv::text::{format_size, parse_size};

fn main() {
    let frames = std::env::var("VARV_BENCH_FRAMES").unwrap_or("tree:1M,2M,4M,8M".into());
    let (kind, sizes) = frames.split_once(':').unwrap();
    let sources = std::env::var("VARV_BENCH_SOURCES").unwrap_or_default();
    let sources: Vec<PathBuf> =
        sources.split(',').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    let Some(last) = sources.last() else { return println!("VARV_BENCH_SOURCES names nothing") };
    println!("{kind} frames | stored, MiB | backups, s (processor) | restore, s (processor)");
    for size in sizes.split(',') {
        let house = House::new(with(kind, parse_size(size, 1).unwrap() as u32));
        let mut stored = 0;
        let backups = timed(|| sources.iter().for_each(|path| stored += house.backup(path).bytes_stored));
        let restore = timed(|| house.restore(last));
        house.tidy();
        let size = format_size(parse_size(size, 1).unwrap());
        println!("{size} | {:.1} | {backups} | {restore}", stored as f64 / f64::from(1 << 20));
    }
}

fn with(kind: &str, size: u32) -> Sizes {
    let mut sizes = Sizes::default();
    *match kind {
        "tree" => &mut sizes.tree_frame,
        "volume" => &mut sizes.volume_frame,
        _ => &mut sizes.metadata_frame,
    } = size;
    sizes
}

/// Seconds by the clock and, which others disturb less, of the processors.
fn timed(f: impl FnOnce()) -> String {
    let (start, before) = (Instant::now(), processor_seconds());
    f();
    format!("{:.2} ({:.2})", start.elapsed().as_secs_f64(), processor_seconds() - before)
}

/// User's and system's, in hundredths in the kernel's file.
fn processor_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}
