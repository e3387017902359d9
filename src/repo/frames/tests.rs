//! Base lists that nobody's writer makes: each ends in an error that says so, soon, and without
//! taking memory for what is only claimed.

use proptest::prelude::*;

use super::*;
use crate::codec::frame::Encoder;
use crate::error::Error;
use crate::format::pack::{Class, Codec, Kind};
use crate::id::{ChunkId, PackId, RepositoryId};
use crate::repo::index::{Index, NewPack};
use crate::repo::keys::Keys;
use crate::repo::layout;
use crate::repo::packer::{PackWriter, PackedBase, RawFrame};
use crate::repo::reader::PackReader;
use crate::store::{MemoryStore, Store};

const REPOSITORY: RepositoryId = RepositoryId([3; 16]);
/// Packs' names are theirs, not the hash of what they hold: so they can name each other.
const A: PackId = PackId([1; 32]);
const B: PackId = PackId([2; 32]);

/// A frame of zeros in chunks of these lengths.
#[derive(Debug, Clone)]
struct Forged {
    chunks: Vec<u32>,
    depth: u8,
    bases: Vec<PackedBase>,
}

fn plain(chunks: &[u32]) -> Forged {
    Forged { chunks: chunks.to_vec(), depth: 0, bases: Vec::new() }
}

fn delta(depth: u8, bases: &[PackedBase]) -> Forged {
    Forged { chunks: vec![100, 200], depth, bases: bases.to_vec() }
}

fn base(pack: PackId, frame: u32, slot: u32, count: u32) -> PackedBase {
    PackedBase { pack: Some(pack), frame, slot, count }
}

struct World {
    store: Arc<MemoryStore>,
    catalog: Catalog,
}

impl World {
    /// Of packs with these names and frames.
    fn new(packs: &[(PackId, Vec<Forged>)]) -> Self {
        let store = Arc::new(MemoryStore::new());
        let keys = Keys::generate(false).unwrap();
        let mut index = Index::in_memory(&keys.index(), &REPOSITORY).unwrap();
        for (name, frames) in packs {
            let mut pack = PackWriter::new(&*store, &keys, REPOSITORY, Class::Data).unwrap();
            for frame in frames {
                let mut raw = RawFrame::new(Kind::Data, Vec::new());
                for (number, len) in frame.chunks.iter().enumerate() {
                    raw.push(ChunkId([number as u8; 20]), &vec![0; *len as usize], []);
                }
                let (codec, stored) = Encoder::new(1).unwrap().encode(&raw.raw).unwrap();
                assert!(codec == Codec::Zstd || raw.raw.len() < 64);
                pack.append(raw.encoded(1, codec, stored, frame.depth, frame.bases.clone()).0).unwrap();
            }
            let pack = pack.close().unwrap().publish().unwrap();
            let len = pack.record.len;
            let bytes = store.read(&layout::pack(&pack.record.id), len).unwrap();
            store.remove(&layout::pack(&pack.record.id)).unwrap();
            store.put(&layout::pack(name), &bytes).unwrap();
            let (class, trailer_check) = (Class::Data, pack.record.check);
            index
                .add_packs(&[NewPack { id: *name, class, len, trailer_check, ids: &pack.ids, before: None }])
                .unwrap();
        }
        let reader = PackReader::new(store.clone(), keys, REPOSITORY);
        let catalog = Catalog::new(reader, index, 32 << 20).unwrap();
        Self { store, catalog }
    }

    fn frame(&self, pack: PackId, number: u32) -> Result<Vec<u8>> {
        let pack = self.catalog.pack_named(&pack)?;
        FrameReader::new(&self.catalog)?.frame(&pack, number)
    }

    /// Why a frame cannot be read, although its pack can be opened.
    fn refused(&self, pack: PackId, number: u32) -> String {
        assert!(self.catalog.pack_named(&pack).is_ok());
        match self.frame(pack, number) {
            Err(Error::Damaged { object, why, .. }) => format!("{object}: {why}"),
            Err(e) => panic!("{e}"),
            Ok(raw) => panic!("{} bytes were read", raw.len()),
        }
    }
}

/// A pack whose trailer is refused when it is opened.
fn not_opened(frames: Vec<Forged>) -> String {
    let world = World::new(&[(A, frames)]);
    match world.frame(A, 0) {
        Err(Error::Damaged { why, .. }) => why,
        Err(e) => panic!("{e}"),
        Ok(raw) => panic!("{} bytes were read", raw.len()),
    }
}

#[test]
fn a_list_as_it_should_be_is_read() {
    let world = World::new(&[
        (A, vec![plain(&[1000, 1000]), delta(1, &[base(A, 0, 0, 2)])]),
        (B, vec![delta(2, &[base(A, 1, 2, 1), base(A, 0, 1, 1)])]),
    ]);
    assert_eq!(world.frame(B, 0).unwrap().len(), 300);
}

#[test]
fn a_circle_is_refused() {
    for (first, second) in [(1, 1), (2, 1), (15, 14), (1, 15)] {
        let world = World::new(&[
            (A, vec![delta(first, &[base(B, 0, 0, 1)])]),
            (B, vec![delta(second, &[base(A, 0, 0, 1)])]),
        ]);
        for pack in [A, B] {
            assert!(world.refused(pack, 0).contains("as deep as itself"));
        }
    }
}

#[test]
fn a_frame_that_names_itself_is_refused() {
    // By its own pack's name, since the short way to write it does not even open.
    let world = World::new(&[(A, vec![delta(1, &[base(A, 0, 0, 1)])])]);
    assert!(world.refused(A, 0).contains("as deep as itself"));
    let itself = PackedBase { pack: None, frame: 0, slot: 0, count: 1 };
    assert!(not_opened(vec![delta(1, &[itself])]).contains("does not come before"));
}

#[test]
fn a_base_in_the_same_pack_comes_first() {
    let later = PackedBase { pack: None, frame: 1, slot: 2, count: 1 };
    assert!(not_opened(vec![delta(1, &[later]), plain(&[100])]).contains("does not come before"));
}

#[test]
fn depths_that_do_not_fit_are_refused() {
    assert!(not_opened(vec![delta(16, &[base(B, 0, 0, 1)])]).contains("too deep"));
    assert!(not_opened(vec![delta(0, &[base(B, 0, 0, 1)])]).contains("depth does not fit"));
    assert!(not_opened(vec![delta(3, &[])]).contains("depth does not fit"));
}

#[test]
fn more_than_256_bases_are_refused() {
    let many = |count: usize| delta(1, &vec![base(A, 0, 0, 1); count]);
    assert!(not_opened(vec![plain(&[10]), many(257)]).contains("too many bases"));
    let world = World::new(&[(A, vec![plain(&[10]), many(256)])]);
    assert_eq!(world.frame(A, 1).unwrap().len(), 300);
}

#[test]
fn bases_that_are_nowhere_are_refused() {
    let there = || (A, vec![plain(&[1000, 1000]), plain(&[500])]);
    for (frame, slot, count) in [
        (0, 0, 0),
        (0, 0, 3),
        (0, 1, 2),
        (0, 2, 1),
        (1, 0, 1),
        (0, 0, u32::MAX),
        (0, u32::MAX, 1),
        (0, u32::MAX, u32::MAX),
        (0, 1, u32::MAX),
    ] {
        let world = World::new(&[there(), (B, vec![delta(1, &[base(A, frame, slot, count)])])]);
        let why = world.refused(B, 0);
        assert!(why.contains("not where it says"), "{frame} {slot} {count}: {why}");
    }
    let world = World::new(&[there(), (B, vec![delta(1, &[base(A, 2, 0, 1)])])]);
    world.refused(B, 0);
    // A pack that is not there is missing, which is damage too.
    let world = World::new(&[(A, vec![delta(1, &[base(B, 0, 0, 1)])])]);
    let error = world.frame(A, 0).unwrap_err();
    assert!(error.is_damage() && error.to_string().contains(&B.to_string()), "{error}");
}

/// 256 times 8 MiB, of which not one is decoded.
#[test]
fn a_prefix_that_is_too_long_is_refused_before_it_is_made() {
    let world = World::new(&[
        (A, vec![plain(&[8 << 20])]),
        (B, vec![delta(1, &vec![base(A, 0, 0, 1); 256]), delta(1, &[base(A, 0, 0, 1); 2])]),
    ]);
    let before = world.store.operations();
    assert!(world.refused(B, 0).contains("not where it says"));
    assert!(world.store.operations() - before < 10, "only packs' ends were read");
    assert_eq!(world.frame(B, 1).unwrap().len(), 300, "16 MiB are allowed");
}

/// Each frame needs all of the level below it, which are more than the cache keeps: by following
/// the lists 16 to the 10th frames would be decoded.
#[test]
fn what_would_take_for_ever_is_refused() {
    const WIDTH: u32 = 16;
    const LEVELS: u32 = 10;
    let mut frames: Vec<Forged> = (0..WIDTH).map(|_| plain(&[100, (8 << 20) - 100])).collect();
    for level in 1..LEVELS {
        let below: Vec<PackedBase> = (0..WIDTH)
            .map(|n| (level - 1) * WIDTH + n)
            .map(|frame| PackedBase { pack: None, frame, slot: 2 * frame, count: 1 })
            .collect();
        let wide = Forged { chunks: vec![100, (8 << 20) - 100], depth: level as u8, bases: below };
        frames.extend(vec![wide; WIDTH as usize]);
    }
    let last = frames.len() as u32 - 1;
    let world = World::new(&[(A, frames)]);
    assert!(world.refused(A, last).contains("too much is to be decoded"));
}

fn some_base() -> impl Strategy<Value = PackedBase> {
    let number = || prop_oneof![4 => 0..4u32, 1 => Just(u32::MAX), 1 => any::<u32>()];
    (0..4u8, number(), number(), number()).prop_map(|(pack, frame, slot, count)| PackedBase {
        pack: if pack == 0 { None } else { Some(PackId([pack; 32])) },
        frame,
        slot,
        count,
    })
}

fn some_frame() -> impl Strategy<Value = Forged> {
    let bases = prop::collection::vec(some_base(), 0..5);
    (prop::collection::vec(1..300u32, 1..4), 0..17u8, bases).prop_map(|(chunks, depth, bases)| Forged {
        chunks,
        depth: if bases.is_empty() { 0 } else { depth },
        bases,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..Default::default() })]

    #[test]
    fn every_list_is_read_or_refused(packs in prop::collection::vec(prop::collection::vec(some_frame(), 1..4), 1..4)) {
        let packs: Vec<(PackId, Vec<Forged>)> =
            packs.into_iter().enumerate().map(|(n, frames)| (PackId([n as u8 + 1; 32]), frames)).collect();
        let world = World::new(&packs);
        for (name, frames) in &packs {
            for (number, frame) in frames.iter().enumerate() {
                match world.frame(*name, number as u32) {
                    Ok(raw) => prop_assert_eq!(raw.len() as u32, frame.chunks.iter().sum::<u32>()),
                    Err(e) => prop_assert!(e.is_damage(), "{}", e),
                }
            }
        }
    }
}
