//! Decoders meet bytes that nobody would have written: changed samples and noise.
//!
//! The targets are those of `tests/fuzz`, where libFuzzer runs them for longer. Here each runs
//! `VARV_FUZZ_ITERATIONS` times from `VARV_FUZZ_SEED`, both with defaults: the same bytes each time. A failure
//! prints what leads back to it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

#[path = "support/make.rs"]
#[allow(dead_code)]
mod make;
#[path = "fuzz/targets.rs"]
mod targets;

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use make::Random;
use peak_alloc::PeakAlloc;
use targets::{TARGETS, Target};

/// Counts what the process has allocated, so that a decoder that believes a header is found out.
/// What zstd and SQLite allocate by themselves is not seen.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// There is one count for all threads.
static ALONE: Mutex<()> = Mutex::new(());

/// A few seconds for all targets without optimisation.
const ITERATIONS: u64 = 10_000;
const SEED: u64 = 20_261_121;
/// The longest input that is made.
const LEN_MAX: usize = 256 << 10;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Tells what was tried if it is dropped in a panic.
struct Attempt<'a> {
    target: &'a Target,
    seed: u64,
    bytes: &'a [u8],
}

impl Attempt<'_> {
    /// Runs the target and holds it to its limit; whether it took the bytes.
    fn run(&self) -> bool {
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage();
        let taken = (self.target.run)(self.bytes);
        let used = MEMORY.peak_usage() - before;
        let limit = (self.target.limit)(self.bytes.len());
        assert!(used <= limit, "{used} bytes allocated, of {limit} allowed");
        taken
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("target {}, seed {}, bytes {}", self.target.name, self.seed, self.bytes.escape_ascii());
        }
    }
}

#[test]
fn samples_are_taken() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for target in TARGETS {
        for bytes in (target.samples)() {
            let attempt = Attempt { target, seed: 0, bytes: &bytes };
            assert!(attempt.run(), "{} refuses a sample", target.name);
        }
    }
}

/// Every target has its binary, so that none is forgotten.
#[test]
fn the_harness_has_every_target() {
    let manifest = include_str!("fuzz/Cargo.toml");
    let names = manifest.split("[[bin]]").skip(1).map(|bin| bin.split('"').nth(1).unwrap());
    assert!(names.eq(TARGETS.iter().map(|target| target.name)));
}

/// What libFuzzer begins with: `cargo test --test fuzz write_corpora -- --ignored`.
#[test]
#[ignore = "writes files"]
fn write_corpora() {
    for target in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target.name);
        fs::create_dir_all(&folder).unwrap();
        for (number, bytes) in (target.samples)().iter().enumerate() {
            fs::write(folder.join(format!("sample{number}")), bytes).unwrap();
        }
    }
}

#[test]
fn changed_samples_and_noise_do_no_harm() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (iterations, seed) = (setting("VARV_FUZZ_ITERATIONS", ITERATIONS), setting("VARV_FUZZ_SEED", SEED));
    eprintln!("VARV_FUZZ_ITERATIONS={iterations} VARV_FUZZ_SEED={seed}");
    for target in TARGETS {
        let samples = (target.samples)();
        let mut random = Random(seed);
        let mut taken = 0;
        for _ in 0..iterations {
            let bytes = input(&mut random, &samples);
            taken += u64::from(Attempt { target, seed, bytes: &bytes }.run());
        }
        eprintln!("{}: {taken} of {iterations} taken", target.name);
    }
}

/// Noise now and then; most often a sample with some changes.
fn input(random: &mut Random, samples: &[Vec<u8>]) -> Vec<u8> {
    if random.below(16) == 0 {
        let len = random.below(300) as usize;
        return random.bytes(len);
    }
    let mut bytes = pick(random, samples).clone();
    for _ in 0..=random.below(4) {
        change(random, &mut bytes, samples);
    }
    bytes.truncate(LEN_MAX);
    bytes
}

fn pick<'s>(random: &mut Random, samples: &'s [Vec<u8>]) -> &'s Vec<u8> {
    &samples[random.below(samples.len() as u64) as usize]
}

/// A place in it, its end too.
fn place(random: &mut Random, bytes: &[u8]) -> usize {
    // Most decisions are made at the beginning.
    let within = if random.below(2) == 0 { bytes.len().min(64) } else { bytes.len() };
    random.below(within as u64 + 1) as usize
}

fn change(random: &mut Random, bytes: &mut Vec<u8>, samples: &[Vec<u8>]) {
    let at = place(random, bytes);
    let end = (at + random.below(40) as usize).min(bytes.len());
    match random.below(8) {
        0 => bytes.truncate(at),
        1 => drop(bytes.drain(at..end)),
        2 => {
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
        3 => {
            // The longest numbers, and the lengths that a decoder might believe.
            let number = [&[0xff; 9][..], b"\xff\xff\xff\xff\x0f", &[0; 4], &[0x80; 8], b"4294967296"];
            let number = number[random.below(5) as usize];
            let over = if random.below(2) == 0 { at } else { (at + number.len()).min(bytes.len()) };
            bytes.splice(at..over, number.iter().copied());
        }
        4 => {
            let other = pick(random, samples);
            let from = place(random, other);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        _ if at == bytes.len() => bytes.push(random.below(256) as u8),
        5 => bytes[at] = random.below(256) as u8,
        6 => bytes[at] = bytes[at].wrapping_add(1),
        _ => bytes[at] ^= 1 << random.below(8),
    }
}
