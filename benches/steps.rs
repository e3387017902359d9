//! The steps that all data goes through, a core each: the zero test, cutting, hashing, frames.
#![allow(clippy::unwrap_used)]

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use varv::chunker::{Chunker, Params, is_zero, stretches};
use varv::codec::frame::{Decoder, Encoder};
use varv::codec::seal::Seal;
use varv::format::pack::Codec;
use varv::id::{ChunkId, expand};

const LEN: usize = 8 << 20;

fn main() {
    divan::main();
}

fn noise() -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    expand("varv bench noise", &[0; 32], &mut bytes);
    bytes
}

/// What shrinks as programs do: this one, again and again if it is short.
fn program() -> Vec<u8> {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    program.into_iter().cycle().take(LEN).collect()
}

#[divan::bench]
fn zero_test(bencher: Bencher) {
    let zeros = vec![0; LEN];
    bencher.counter(BytesCount::new(LEN)).bench(|| is_zero(black_box(&zeros)));
}

#[divan::bench]
fn zero_test_of_data(bencher: Bencher) {
    let noise = noise();
    bencher.counter(BytesCount::new(LEN)).bench(|| stretches(black_box(&noise)));
}

#[divan::bench(args = ["fastcdc:4K,16K,64K", "fastcdc:8K,64K,256K", "fixed:64K"])]
fn chunker(bencher: Bencher, params: &str) {
    let noise = noise();
    let chunker = Chunker::new(Params::parse(params).unwrap(), &[1; 32]);
    bencher.counter(BytesCount::new(LEN)).bench(|| {
        let mut at = 0;
        while let Some(len) = chunker.cut(black_box(&noise[at..]), at as u64, true) {
            at += len;
        }
        at
    });
}

#[divan::bench(args = [4096, 16384, 65536])]
fn chunk_ids(bencher: Bencher, len: usize) {
    let noise = noise();
    bencher
        .counter(BytesCount::new(LEN))
        .bench(|| noise.chunks(len).fold(0, |all, chunk| all ^ ChunkId::of(&[2; 32], chunk).0[0]));
}

#[divan::bench(args = [1, 3, 6, 9], consts = [65536, 262_144, 1_048_576, 4_194_304], sample_count = 5, sample_size = 1)]
fn encode<const FRAME: usize>(bencher: Bencher, level: i8) {
    let program = program();
    let mut encoder = Encoder::new(level).unwrap();
    bencher.counter(BytesCount::new(LEN)).bench_local(|| {
        program.chunks(FRAME).map(|frame| encoder.encode(frame).unwrap().1.len()).sum::<usize>()
    });
}

#[divan::bench(sample_count = 20)]
fn encode_noise(bencher: Bencher) {
    let noise = noise();
    let mut encoder = Encoder::new(3).unwrap();
    bencher.counter(BytesCount::new(LEN)).bench_local(|| encoder.encode(&noise).unwrap().0);
}

#[divan::bench(consts = [65536, 262_144, 1_048_576, 4_194_304], sample_count = 20)]
fn decode<const FRAME: usize>(bencher: Bencher) {
    let program = program();
    let mut encoder = Encoder::new(3).unwrap();
    let frames: Vec<(Codec, Vec<u8>)> =
        program.chunks(FRAME).map(|frame| encoder.encode(frame).unwrap()).collect();
    let mut decoder = Decoder::new().unwrap();
    let mut scratch = Vec::new();
    bencher.counter(BytesCount::new(LEN)).bench_local(|| {
        for (codec, stored) in &frames {
            black_box(decoder.decode_in(*codec, stored, &[], FRAME, &mut scratch).unwrap());
        }
    });
}

#[divan::bench(args = [true, false], sample_count = 20)]
fn seal(bencher: Bencher, encrypted: bool) {
    let seal = Seal::new(&[3; 32], encrypted).unwrap();
    bencher
        .counter(BytesCount::new(LEN))
        .with_inputs(noise)
        .bench_local_refs(|bytes| seal.seal(0, b"bound", bytes).unwrap());
}
