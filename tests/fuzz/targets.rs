//! Every decoder of bytes that somebody else may have made, as a function of bytes.
//!
//! Shared by `tests/fuzz.rs`, which runs them for a moment with every test run, and by the
//! harness in this folder, which libFuzzer drives for as long as one likes. A target panics where
//! a decoder breaks a promise; it says whether it took the bytes for what they should be.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use varv::blocks::input::no_layout;
use varv::blocks::sync::message::{MAGIC, Message, PassDone, PassEnd, Ready, Request, Role, State, VERSION};
use varv::blocks::sync::{Patience, Place, SyncOptions, over, serve};
use varv::chunker::Params;
use varv::codec::frame::{Decoder, Encoder};
use varv::codec::seal::Seal;
use varv::format::config::{Config, ConfigError, Slot, SlotKind};
use varv::format::hashtree::Entry as _;
use varv::format::object::{self, BODY_MAX, ObjectKind};
use varv::format::pack::{self, Codec, FRAME_RAW_MAX, Footer, Kind, Trailer};
use varv::format::snapshot::Snapshot;
use varv::format::wire::Reader;
use varv::format::{NODE_LEVEL_MAX, map, tree};
use varv::history::find::Pattern;
use varv::id::{ChunkId, PackId, RepositoryId, checksum, hex};
use varv::observe::Stop;
use varv::repo::keys::{Keys, Secret, parse_recovery_code};
use varv::repo::objects::open_object;
use varv::repo::reader::PackReader;
use varv::source::exclude::{ExcludeOptions, Excludes, Patterns};
use varv::store::LocalStore;
use varv::text::{escape, parse_size, unescape};

/// A decoder and what it is tried with.
pub struct Target {
    /// As on the command line.
    pub name: &'static str,
    /// Decodes; whether that went well. Panics if a promise is broken.
    pub run: fn(&[u8]) -> bool,
    /// Bytes that it must take, to be changed.
    pub samples: fn() -> Vec<Vec<u8>>,
    /// The most memory that it may ask for, by the length of what it was given.
    pub limit: fn(usize) -> usize,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "config", run: config, samples: configs, limit: few_times },
    Target { name: "slots", run: slots, samples: slot_lists, limit: few_times },
    Target { name: "recovery_code", run: recovery_code, samples: recovery_codes, limit: few_times },
    Target { name: "pack_ends", run: pack_ends, samples: packs, limit: few_times },
    Target { name: "trailer", run: trailer, samples: trailers, limit: few_times },
    Target { name: "tree_node", run: tree_node, samples: tree_nodes, limit: few_times },
    Target { name: "map_node", run: map_node, samples: map_nodes, limit: few_times },
    Target { name: "object", run: object, samples: objects, limit: few_times },
    Target { name: "snapshot", run: snapshot, samples: snapshots, limit: few_times },
    Target { name: "frame", run: frame, samples: frames, limit: as_zstd_can },
    Target { name: "seal", run: seal, samples: seals, limit: few_times },
    Target { name: "excludes", run: excludes, samples: exclude_rules, limit: matchers },
    Target { name: "texts", run: texts, samples: some_texts, limit: few_times },
    Target { name: "sync_message", run: sync_message, samples: sync_messages, limit: few_times },
    Target { name: "sync_called", run: sync_called, samples: sync_callers, limit: two_sides },
    Target { name: "sync_caller", run: sync_caller, samples: sync_answers, limit: two_sides },
];

/// A decoded value may take more than its bytes, but no more than so.
fn few_times(len: usize) -> usize {
    64 * len + (256 << 10)
}

/// What the densest zstd frame of this length holds.
fn as_zstd_can(len: usize) -> usize {
    few_times(len).max((len / 4 + 2) * (128 << 10))
}

/// Patterns are the user's own; each becomes an automaton of some size.
fn matchers(len: usize) -> usize {
    (32 << 20) + 4096 * len
}

/// The buffers of a conversation, and its threads.
fn two_sides(len: usize) -> usize {
    64 * len + (2 << 20)
}

/// The crate's own folder.
fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    if manifest.ends_with("tests/fuzz") { manifest.join("../..") } else { manifest.into() }
}

/// The repository that samples are taken from.
fn golden() -> PathBuf {
    root().join("tests/data/golden-1")
}

fn files(folder: &str) -> Vec<Vec<u8>> {
    let mut paths = vec![golden().join(folder)];
    let mut found = Vec::new();
    while let Some(path) = paths.pop() {
        match path.is_dir() {
            true => paths.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path())),
            false => found.push(path),
        }
    }
    found.sort();
    found.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn golden_config(name: &str) -> Config {
    Config::decode(&fs::read(golden().join(name).join("config")).unwrap()).unwrap().config
}

/// What opens the golden repository that is not encrypted.
fn golden_keys() -> (Keys, RepositoryId) {
    let config = golden_config("plain");
    let id = config.repository_id().unwrap();
    (Keys::unwrap(&id, &config.slots, None, false).unwrap().0, id)
}

/// Bytes as they are, and once more as the first two lines of a configuration whose checksum fits.
fn config(bytes: &[u8]) -> bool {
    let check = hex(&checksum::<32>(&[bytes]));
    let whole = [bytes, format!("check {check} mac {}\n", "00".repeat(16)).as_bytes()].concat();
    let as_it_is = read_config(bytes);
    read_config(&whole) || as_it_is
}

fn read_config(bytes: &[u8]) -> bool {
    match Config::decode(bytes) {
        Ok(signed) => {
            assert!(!signed.is_authentic(&[0; 32]));
            let config = signed.config;
            assert!(config.repository_id().is_some());
            let again = Config::decode(&config.encode(&[0; 32])).unwrap();
            assert!(again.is_authentic(&[0; 32]));
            assert_eq!(again.config, config);
            true
        }
        Err(ConfigError::Foreign | ConfigError::Newer { .. } | ConfigError::Malformed(_)) => false,
    }
}

fn configs() -> Vec<Vec<u8>> {
    let whole = [files("plain/config"), files("encrypted/config")].concat();
    let lines = |bytes: &Vec<u8>| {
        let text = std::str::from_utf8(bytes).unwrap();
        text.split_inclusive('\n').take(2).collect::<String>().into_bytes()
    };
    whole.iter().map(lines).chain(whole.iter().cloned()).collect()
}

/// Slots as JSON, tried with each kind of secret.
fn slots(bytes: &[u8]) -> bool {
    let Ok(slots) = serde_json::from_slice::<Vec<Slot>>(bytes) else { return false };
    let id = golden_config("encrypted").repository_id().unwrap();
    let key_file = Secret::from_key_file(&golden().join("key")).unwrap();
    let passphrase = Secret::Passphrase(String::from("gyttja och lera").into());
    if slots.iter().all(|slot| is_cheap(&slot.kind)) {
        for secret in [None, Some(&key_file), Some(&passphrase)] {
            let _ = Keys::unwrap(&id, &slots, secret, true);
        }
    }
    true
}

/// What is refused without work, or allowed and no work: Argon2id itself is not in question.
fn is_cheap(kind: &SlotKind) -> bool {
    match kind {
        SlotKind::Passphrase { memory_kib, passes, .. } => {
            (*memory_kib <= 64 && *passes <= 2) || *memory_kib > (128 << 10) || *passes > 10
        }
        SlotKind::KeyFile { .. } | SlotKind::Open => true,
    }
}

fn slot_lists() -> Vec<Vec<u8>> {
    ["encrypted", "plain"].map(|name| serde_json::to_vec(&golden_config(name).slots).unwrap()).into()
}

fn recovery_code(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    match parse_recovery_code(text) {
        Ok(Secret::Master(master)) => {
            let code = varv::repo::keys::recovery_code(&master);
            let Ok(Secret::Master(again)) = parse_recovery_code(&code) else { panic!("{text}") };
            assert_eq!(*master, *again);
            true
        }
        Ok(_) => panic!("a code is a master key"),
        Err(_) => false,
    }
}

fn recovery_codes() -> Vec<Vec<u8>> {
    [[0; 32], [0xa5; 32]].map(|master| varv::repo::keys::recovery_code(&master).as_bytes().to_vec()).into()
}

/// A whole pack's header and footer.
fn pack_ends(bytes: &[u8]) -> bool {
    let header = pack::Header::decode(bytes);
    let Some((_, end)) = bytes.split_last_chunk::<{ pack::FOOTER_LEN }>() else { return false };
    let footer = Footer::decode(end, bytes.len() as u64);
    if let Ok(footer) = &footer {
        assert_eq!(footer.encode(), *end);
        assert!(u64::from(footer.trailer_len) < bytes.len() as u64);
    }
    if let Ok(header) = &header {
        assert_eq!(header.encode(), bytes[..pack::HEADER_LEN]);
    }
    header.is_ok() && footer.is_ok()
}

fn packs() -> Vec<Vec<u8>> {
    // Their middle is nothing to this decoder.
    let ends = |bytes: &Vec<u8>| {
        let (header, rest) = bytes.split_at(pack::HEADER_LEN);
        [header, &rest[rest.len().saturating_sub(2000)..]].concat()
    };
    files("plain/packs").iter().map(ends).collect()
}

/// A trailer below its seal.
fn trailer(bytes: &[u8]) -> bool {
    const PACK_LEN: u64 = 1 << 30;
    let Ok(trailer) = Trailer::decode(bytes, PACK_LEN) else { return false };
    assert_eq!(trailer.encode(), bytes, "two forms of one trailer");
    assert!(trailer.frames_end() <= PACK_LEN);
    let mut slots = 0;
    for frame in &trailer.frames {
        assert!(frame.raw_len <= FRAME_RAW_MAX);
        let of_frame = trailer.slots_of(frame);
        assert_eq!(of_frame.iter().map(|slot| slot.len).sum::<u32>(), frame.raw_len);
        slots += of_frame.len();
    }
    assert_eq!(slots, trailer.slots.len());
    true
}

/// The opened packs of the golden repository, by trailer.
fn open_packs() -> Vec<(PackReader, varv::repo::reader::OpenPack)> {
    let root = golden().join("plain");
    let store = Arc::new(LocalStore::open(&root).unwrap());
    let (keys, repository) = golden_keys();
    let open = |bytes: Vec<u8>| {
        let reader = PackReader::new(store.clone(), keys.clone(), repository);
        let pack = reader.open(&PackId::of(&bytes), bytes.len() as u64).unwrap();
        (reader, pack)
    };
    files("plain/packs").into_iter().map(open).collect()
}

fn trailers() -> Vec<Vec<u8>> {
    let mut with_bases = Trailer::default();
    let id = |n: u8| ChunkId([n; ChunkId::LEN]);
    with_bases.packs.push(PackId([7; PackId::LEN]));
    for number in 0..2u32 {
        let base = pack::Base { pack: 1 - number, frame: 0, slot: 0, count: 1 };
        with_bases.frames.push(pack::Frame {
            offset: 48 + 100 * u64::from(number),
            stored_len: 100,
            raw_len: 300,
            kind: Kind::Data,
            codec: Codec::Zstd,
            level: -3,
            depth: 1 + number as u8,
            bases: vec![base],
            slot: 2 * number,
            chunks: 2,
        });
        for (offset, len) in [(0, 100), (100, 200)] {
            with_bases.slots.push(pack::Slot { id: id(offset as u8), frame: number, offset, len });
        }
    }
    open_packs().iter().map(|(_, pack)| pack.trailer.encode()).chain([with_bases.encode()]).collect()
}

/// All chunks of a kind in the golden repository.
fn chunks(kind: Kind) -> Vec<Vec<u8>> {
    let mut decoder = Decoder::new().unwrap();
    let mut found = Vec::new();
    for (reader, pack) in open_packs() {
        for (number, frame) in pack.trailer.frames.iter().enumerate().filter(|(_, frame)| frame.kind == kind)
        {
            let (mut stored, mut raw) = (Vec::new(), Vec::new());
            let memory = [&mut stored, &mut raw];
            reader.frame(&pack, number as u32, &[], &mut decoder, memory).unwrap();
            let slots = pack.trailer.slots_of(frame);
            found.extend(slots.iter().map(|slot| reader.chunk(&pack, slot, &raw).unwrap().to_vec()));
        }
    }
    found
}

fn tree_node(bytes: &[u8]) -> bool {
    let level = bytes.first().copied().unwrap_or(0);
    let mut taken = false;
    for roots in [false, true] {
        let Ok(node) = tree::Node::decode(bytes, level, roots) else { continue };
        assert!(level <= NODE_LEVEL_MAX);
        let again = match &node {
            tree::Node::Leaf(entries) => {
                for name in entries.iter().map(|entry| &entry.name).filter(|_| !roots) {
                    assert!(!name.contains(&b'/') && !matches!(&name[..], b"" | b"." | b".."));
                }
                tree::Entry::encode_leaf(entries)
            }
            tree::Node::Inner(children) => tree::Entry::encode_inner(level, children),
        };
        assert_eq!(tree::Node::decode(&again, level, roots), Ok(node));
        taken = true;
    }
    taken
}

fn tree_nodes() -> Vec<Vec<u8>> {
    let child = |name: &[u8]| tree::Child { id: ChunkId([1; 20]), first: name.to_vec(), entries: 40 };
    let inner = tree::Entry::encode_inner(1, &[child(b"a"), child(b"b"), child(b"c")]);
    chunks(Kind::Tree).into_iter().chain([inner]).collect()
}

fn map_node(bytes: &[u8]) -> bool {
    let level = bytes.first().copied().unwrap_or(0);
    let inline = map::Map::read(&mut Reader::new(bytes));
    if let Ok(map) = inline {
        assert!(map.len() <= map::LEN_MAX && map.data_len() <= map.len());
    }
    let Ok(node) = map::Node::decode(bytes, level) else { return false };
    let again = match &node {
        map::Node::Leaf(extents) => map::Extent::encode_leaf(extents),
        map::Node::Inner(children) => map::Extent::encode_inner(level, children),
    };
    assert_eq!(again, bytes, "two forms of one node");
    true
}

fn map_nodes() -> Vec<Vec<u8>> {
    let data = |n: u8| map::Extent::Data { id: ChunkId([n; 20]), len: 1000 + u32::from(n) };
    let mut extents: Vec<map::Extent> = (0..40).map(data).collect();
    extents.extend([map::Extent::Zero { len: 4096 }, map::Extent::Hole { len: 1 << 40 }]);
    let child = |n: u8| map::Child { id: ChunkId([n; 20]), len: 1 << 30, data: 1 << 20, extents: 99 };
    let made = [map::Extent::encode_leaf(&extents), map::Extent::encode_inner(2, &[child(1), child(2)])];
    chunks(Kind::Map).into_iter().chain(made).collect()
}

fn object(bytes: &[u8]) -> bool {
    if let Ok(header) = object::Header::decode(bytes, ObjectKind::State) {
        assert_eq!(header.encode(), bytes[..object::HEADER_LEN]);
    }
    let (keys, repository) = golden_keys();
    open_object(&keys, &repository, ObjectKind::Snapshot, "snapshot", bytes.to_vec()).is_ok()
}

fn objects() -> Vec<Vec<u8>> {
    files("plain/snapshots")
}

fn snapshot(bytes: &[u8]) -> bool {
    let Ok(snapshot) = serde_json::from_slice::<Snapshot>(bytes) else { return false };
    let _ = snapshot.tree.root();
    snapshot.roots.iter().for_each(|root| drop(unescape(&root.path)));
    let again = serde_json::to_vec(&snapshot).unwrap();
    assert!(serde_json::from_slice::<Snapshot>(&again).is_ok());
    true
}

fn snapshots() -> Vec<Vec<u8>> {
    let (keys, repository) = golden_keys();
    let open = |bytes| open_object(&keys, &repository, ObjectKind::Snapshot, "snapshot", bytes).unwrap();
    objects().into_iter().map(open).collect()
}

/// A codec, the raw length that a trailer or header claims, and what is stored.
fn frame(bytes: &[u8]) -> bool {
    let mut reader = Reader::new(bytes);
    let (Ok(codec), Ok(raw_len)) = (reader.u8(), reader.u32()) else { return false };
    let Ok(codec) = Codec::from_code(codec) else { return false };
    if raw_len > BODY_MAX {
        return false;
    }
    let stored = reader.take(reader.remaining()).unwrap();
    let mut raw = Vec::new();
    let decoded = Decoder::new().unwrap().decode(codec, stored, &[], raw_len as usize, &mut raw);
    assert!(decoded.is_none_or(|()| raw.len() == raw_len as usize));
    decoded.is_some()
}

fn frames() -> Vec<Vec<u8>> {
    let text: Vec<u8> = (0..3000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
    let zeros = vec![0; 1 << 20];
    let encode = |(level, raw): (i8, &[u8])| {
        let (codec, stored) = Encoder::new(level).unwrap().encode(raw).unwrap();
        [&[codec.code()][..], &(raw.len() as u32).to_le_bytes(), &stored].concat()
    };
    [(0, &text[..100]), (3, &text), (9, &text), (3, &zeros)].map(encode).into()
}

const SEALED: &[u8] = b"what was sealed";

/// Nothing opens but what was sealed.
fn seal(bytes: &[u8]) -> bool {
    let opens = |encrypted: &bool| {
        let seal = Seal::new(&[5; 32], *encrypted).unwrap();
        seal.open(9, b"bound", &mut bytes.to_vec()).map(|plain| assert_eq!(plain, SEALED)).is_some()
    };
    [true, false].iter().any(opens)
}

fn seals() -> Vec<Vec<u8>> {
    let sealed = |encrypted| {
        let mut bytes = SEALED.to_vec();
        Seal::new(&[5; 32], encrypted).unwrap().seal(9, b"bound", &mut bytes).unwrap();
        bytes
    };
    [true, false].map(sealed).into()
}

/// Lines of patterns, the last of which is taken for a path.
fn excludes(bytes: &[u8]) -> bool {
    let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').take(8).collect();
    let Some(path) = lines.pop() else { return false };
    if let Some(pattern) = lines.first().and_then(|line| std::str::from_utf8(line).ok()) {
        let _ = Pattern::new(pattern);
    }
    let patterns: Vec<OsString> = lines.iter().map(|line| OsString::from_vec(line.to_vec())).collect();
    if let Ok(patterns) = Patterns::new(&patterns, Path::new("/srv/source")) {
        patterns.matches(path, false);
    }
    let options = ExcludeOptions { patterns, ..Default::default() };
    let source = PathBuf::from("/srv/source");
    let Ok(excludes) = Excludes::new(&options, std::slice::from_ref(&source)) else { return false };
    let below = excludes.below(&source).unwrap();
    for is_dir in [false, true] {
        below.excludes(path, is_dir);
    }
    assert!(excludes.unused().len() <= lines.len());
    true
}

fn exclude_rules() -> Vec<Vec<u8>> {
    let rules = "*.o\n!keep.o\n/srv/source/a[b-d]/**\n\\#{x,y}\ntarget/\n**/cache/*\ntarget/x.o";
    vec![rules.into(), "[!a]?\\*\na/b/c".into()]
}

/// Small texts from the command line and the configuration.
fn texts(bytes: &[u8]) -> bool {
    assert_eq!(unescape(&escape(bytes)).as_deref(), Some(bytes));
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    if let Some(plain) = unescape(text) {
        let _ = escape(&plain);
    }
    let size = parse_size(text, 512);
    match Params::parse(text) {
        Ok(params) => assert!(Params::parse(&params.to_string()) == Ok(params)),
        Err(why) => assert!(!why.is_empty()),
    }
    let _ = ChunkId::from_hex(text);
    size.is_ok() || Params::parse(text).is_ok()
}

fn some_texts() -> Vec<Vec<u8>> {
    ["fastcdc:4K,16K,64K", "fixed:8192", "12MiB", "3", "16777215T"]
        .map(|text| text.as_bytes().to_vec())
        .into()
}

/// A message of `sync`: its type, then its body.
fn sync_message(bytes: &[u8]) -> bool {
    let Some((kind, body)) = bytes.split_first() else { return false };
    let Ok(message) = Message::decode(*kind, body) else { return false };
    let (kind, body) = message.encode();
    assert_eq!(Message::decode(kind, &body), Ok(message));
    true
}

fn sync_messages() -> Vec<Vec<u8>> {
    let states = vec![State::Zeros(300), State::Hashes(vec![[7; 32]; 3]), State::Zeros(1)];
    let messages = [
        request(Role::Target),
        Message::Ready(Ready { len: 1 << 40, is_device: true, untouched: 512 }),
        Message::Ranges(vec![(0, 1), (5, 1 << 30)]),
        Message::Pass { listed: true, compare: false },
        Message::States(states),
        Message::Data { block: 3, raw_len: 4, codec: Codec::Raw, bytes: b"data".to_vec() },
        Message::Zeros { first: 7, count: 2 },
        Message::PassEnd(PassEnd::default()),
        Message::PassDone(PassDone::default()),
        Message::Failure { refused: true, text: "it is mounted".into() },
    ];
    let bytes = |message: &Message| {
        let (kind, body) = message.encode();
        [&[kind][..], &body].concat()
    };
    messages.iter().map(bytes).collect()
}

/// A conversation about a file that is only read: a role, and what the caller says once it was
/// told that the called side is ready.
fn sync_called(bytes: &[u8]) -> bool {
    let Some((role, said)) = bytes.split_first() else { return false };
    let role = if role % 2 == 0 { Role::Source } else { Role::Target };
    let opening = [&MAGIC[..], &VERSION.to_le_bytes(), &spoken(&[request(role)])].concat();
    let from = std::io::Cursor::new([&opening, said].concat());
    let (stop, out) = (Stop::new(), Box::new(std::io::sink()));
    serve(Box::new(from), out, no_layout, &Patience::new(&stop, Duration::ZERO)).is_ok()
}

/// What a called side says to a caller that would only read: the role of the called, then all
/// that it says once both have greeted.
fn sync_caller(bytes: &[u8]) -> bool {
    let Some((role, said)) = bytes.split_first() else { return false };
    let here = || Place { host: None, path: root().join("Cargo.lock") };
    let there = || Place { host: Some("other".into()), path: "/there".into() };
    let (source, target) = if role % 2 == 0 { (there(), here()) } else { (here(), there()) };
    let from = std::io::Cursor::new([&MAGIC[..], &VERSION.to_le_bytes(), said].concat());
    let options = SyncOptions { block: 4096, dry_run: true, ..SyncOptions::default() };
    let (stop, out) = (Stop::new(), Box::new(std::io::sink()));
    let link = (Box::new(from) as Box<dyn std::io::Read + Send>, out as Box<dyn std::io::Write + Send>);
    over((&source, &target), &options, link, &Patience::new(&stop, Duration::ZERO)).is_ok()
}

fn sync_answers() -> Vec<Vec<u8>> {
    let len = fs::metadata(root().join("Cargo.lock")).unwrap().len();
    let states =
        Message::States(vec![State::Zeros(1), State::Hashes(vec![[7; 32]; len.div_ceil(4096) as usize - 1])]);
    let ready = |len: u64| Message::Ready(Ready { len, is_device: false, untouched: 0 });
    let source = [ready(40_960), Message::Alive, Message::PassEnd(PassEnd::default()), Message::Finish];
    let target =
        [ready(len), states, Message::PassDone(PassDone::default()), Message::Alive, Message::Finish];
    vec![[&[0][..], &spoken(&source)].concat(), [&[1][..], &spoken(&target)].concat()]
}

/// Nothing is written, and the path is not for the fuzzer to choose.
fn request(role: Role) -> Message {
    let path = root().join("Cargo.lock").into_os_string().into_vec();
    Message::Request(Request { role, block: 4096, len: 40_960, dry_run: true, level: 3, rate: 0, path })
}

fn spoken(messages: &[Message]) -> Vec<u8> {
    let bytes = |message: &Message| {
        let (kind, body) = message.encode();
        [&[kind][..], &(body.len() as u32).to_le_bytes(), &body].concat()
    };
    messages.iter().flat_map(bytes).collect()
}

fn sync_callers() -> Vec<Vec<u8>> {
    let blocks = fs::metadata(root().join("Cargo.lock")).unwrap().len().div_ceil(4096);
    let pass = Message::Pass { listed: false, compare: false };
    let listed = [Message::Ranges(vec![(1, 2)]), Message::Pass { listed: true, compare: true }];
    let done = Message::PassDone(PassDone::default());
    let states =
        |count: u64| Message::States(vec![State::Zeros(1), State::Hashes(vec![[7; 32]; count as usize - 1])]);
    let [ranges, listed] = listed;
    let to_source =
        [pass.clone(), states(blocks), done.clone(), ranges, listed, states(2), done, Message::Finish];
    let to_target = [pass, Message::PassEnd(PassEnd::default()), Message::Finish];
    vec![[&[0][..], &spoken(&to_source)].concat(), [&[1][..], &spoken(&to_target)].concat()]
}
