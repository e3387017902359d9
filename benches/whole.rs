//! A whole backup, and a whole restore: of `VARV_BENCH_SOURCE`, or of this crate's build folder.
//! `benches/corpus` makes a source of what is on any machine.
#![allow(clippy::unwrap_used)]

mod house;

use std::path::PathBuf;

use divan::Bencher;
use divan::counter::BytesCount;
use house::House;
use varv::format::config::Sizes;

fn main() {
    divan::main();
}

fn source() -> PathBuf {
    let default = || concat!(env!("CARGO_MANIFEST_DIR"), "/target/release/deps").into();
    std::env::var_os("VARV_BENCH_SOURCE").map_or_else(default, PathBuf::from)
}

/// Into an empty repository.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn first_backup(bencher: Bencher) {
    let source = source();
    let len = House::new(Sizes::default()).backup(&source).bytes_source;
    bencher
        .counter(BytesCount::new(len))
        .with_inputs(|| House::new(Sizes::default()))
        .bench_local_refs(|house| house.backup(&source));
}

/// All is read again, and nothing of it is new.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn backup_again(bencher: Bencher) {
    let source = source();
    let house = House::new(Sizes::default());
    let len = house.backup(&source).bytes_source;
    bencher.counter(BytesCount::new(len)).bench_local(|| house.backup(&source));
}

/// To a new path, synced.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn restore(bencher: Bencher) {
    let source = source();
    let house = House::new(Sizes::default());
    let len = house.backup(&source).bytes_source;
    let mut is_first = true;
    bencher
        .counter(BytesCount::new(len))
        .with_inputs(|| {
            if !std::mem::take(&mut is_first) {
                house.tidy()
            }
        })
        .bench_local_values(|()| house.restore(&source));
    house.tidy();
}
