//! Nights that are compressed against the nights before: what is needed to read them stays bounded.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use support::make::{Random, overwrite};
use support::world::STOP;
use support::{Varv, args};
use varv::id::PackId;
use varv::observe::Silent;
use varv::repo::reader::OpenPack;
use varv::repo::{Intent, OpenOptions, Repo};

const NIGHTS: u64 = 12;
/// Likewise: the steps of a chain.
const DEPTH_MAX: u8 = 4;
const LEN: usize = 16 << 20;
/// As docs/architecture.md says: raw bytes of all frames that one delta frame needs.
const NEEDED_MAX: u64 = 32 << 20;

type Packs = HashMap<PackId, Arc<OpenPack>>;

fn packs(varv: &Varv) -> Packs {
    let options = OpenOptions {
        secret: None,
        intent: Intent::Read,
        lock_wait: Duration::ZERO,
        command: "test",
        cache_dir: None,
        stop: &STOP,
    };
    let repo = Repo::open(&varv.repository, &options).unwrap();
    let catalog = repo.catalog(&Silent, &STOP).unwrap();
    let named = |id: PackId| (id, catalog.pack_named(&id).unwrap());
    repo.list_packs().unwrap().into_keys().map(named).collect()
}

/// Adds what has to be decoded before a frame can be.
fn needed(packs: &Packs, pack: &OpenPack, frame: u32, all: &mut HashSet<(PackId, u32)>) -> u64 {
    let mut len = 0;
    for base in &pack.trailer.frames[frame as usize].bases {
        let holder = match base.pack {
            0 => pack,
            number => &packs[&pack.trailer.packs[number as usize - 1]],
        };
        if all.insert((holder.id, base.frame)) {
            len += u64::from(holder.trailer.frames[base.frame as usize].raw_len);
            len += needed(packs, holder, base.frame, all);
        }
    }
    len
}

/// The most that a frame needs, in raw bytes, and the deepest one.
fn most_and_deepest(packs: &Packs) -> (u64, u8) {
    let frames =
        packs.values().flat_map(|pack| (0..).zip(&pack.trailer.frames).map(move |(n, f)| (pack, n, f)));
    let (mut most, mut deepest) = (0, 0);
    for (pack, number, frame) in frames {
        most = most.max(needed(packs, pack, number, &mut HashSet::new()));
        deepest = deepest.max(frame.depth);
    }
    (most, deepest)
}

/// One chunk of each of many files: what they were before is in more frames than one may need.
#[test]
fn what_a_frame_needs_is_bounded() {
    let varv = Varv::new();
    let source = varv.dir("source");
    let mut random = Random(6);
    let files: Vec<_> = (0..440).map(|n| source.join(format!("{n:03}"))).collect();
    files.iter().for_each(|path| fs::write(path, random.bytes(100 << 10)).unwrap());
    varv.ok(args!["backup", "-q", &source]);
    files.iter().step_by(5).for_each(|path| overwrite(path, 50 << 10, &random.bytes(8)));
    varv.ok(args!["backup", "-q", &source]);
    let (most, deepest) = most_and_deepest(&packs(&varv));
    assert!(most > NEEDED_MAX / 2, "{most}: the limit was not tried");
    assert!(most <= NEEDED_MAX, "{most}");
    assert_eq!(deepest, 1);
    let newest = varv.path("newest");
    varv.ok(args!["restore", "-q", &source, &newest]);
    support::tree::assert_same(&source, &newest);
}

#[test]
fn chains_have_few_steps() {
    let varv = Varv::new();
    let source = varv.path("source");
    let mut random = Random(5);
    let mut bytes = random.bytes(LEN);
    for _ in 0..NIGHTS {
        fs::write(&source, &bytes).unwrap();
        varv.ok(args!["backup", "-q", &source]);
        for _ in 0..300 {
            let at = random.below(LEN as u64 - 8) as usize;
            bytes[at..at + 8].copy_from_slice(&random.bytes(8));
        }
    }
    let (most, deepest) = most_and_deepest(&packs(&varv));
    assert!(most <= NEEDED_MAX, "{most}");
    assert_eq!(deepest, DEPTH_MAX);
    let newest = varv.path("newest");
    varv.ok(args!["restore", "-q", &source, &newest]);
    varv.ok(args!["check", "-q", "--read-data"]);
    assert!(fs::read(newest).unwrap() == fs::read(source).unwrap());
}
