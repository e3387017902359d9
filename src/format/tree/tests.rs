use super::super::hashtree::Entry as _;
use super::super::map::Extent;
use super::*;
use proptest::prelude::*;

fn any_payload() -> impl Strategy<Value = Payload> {
    let id = any::<[u8; 20]>().prop_map(ChunkId);
    let map = proptest::collection::vec((id.clone(), 1u32..65536), 0..4).prop_map(|chunks| {
        Map::Inline(chunks.into_iter().map(|(id, len)| Extent::Data { id, len }).collect())
    });
    prop_oneof![
        map.clone().prop_map(Payload::File),
        map.prop_map(Payload::Volume),
        any::<Vec<u8>>().prop_map(Payload::Symlink),
        any::<(u32, u32)>().prop_map(|(major, minor)| Payload::CharDevice(Device { major, minor })),
        Just(Payload::Fifo),
        Just(Payload::Socket),
        (id.clone(), id, 1u64..1000).prop_map(|(node, content, entries)| Payload::Dir(Dir {
            root: Some(Root { level: 2, node }),
            entries,
            files: 7,
            bytes: 1 << 50,
            content,
        })),
    ]
}

prop_compose! {
    fn any_entry()(
        name in proptest::collection::vec(1u8..=255, 1..20),
        mode in 0u32..=0o7777,
        owner in (any::<u32>(), any::<u32>(), any::<Vec<u8>>(), any::<Vec<u8>>()),
        seconds: [i64; 2],
        nanos in [0u32..1_000_000_000, 0u32..1_000_000_000],
        inode: u64,
        xattrs in proptest::collection::vec((proptest::collection::vec(1u8.., 1..9), any::<Vec<u8>>()), 0..3),
        links in proptest::option::of(any::<(u64, u64)>()),
        payload in any_payload(),
    ) -> Entry {
        let (uid, gid, user, group) = owner;
        let time = |i: usize| Time { seconds: seconds[i], nanos: nanos[i] };
        Entry {
            name: name.into_iter().map(|c| if c == b'/' { b'_' } else { c }).collect(),
            mode,
            owner: Arc::new(Owner { uid, gid, user, group }),
            modified: time(0),
            changed: time(1),
            inode,
            xattrs,
            links: links.map(|(device, count)| Links { device, count }),
            payload,
        }
    }
}

fn has_dots(entry: &Entry) -> bool {
    entry.name == b"." || entry.name == b".."
}

proptest! {
    #[test]
    fn leaves_come_back(mut entries in proptest::collection::vec(any_entry(), 1..20)) {
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries.dedup_by(|a, b| a.name == b.name);
        entries.retain(|e| !has_dots(e));
        prop_assume!(!entries.is_empty());
        let bytes = Entry::encode_leaf(&entries);
        prop_assert_eq!(Node::decode(&bytes, 0, false), Ok(Node::Leaf(entries)));
    }

    #[test]
    fn hostile_bytes_never_panic(bytes: Vec<u8>, level in 0u8..12) {
        let _ = Node::decode(&bytes, level, level % 2 == 0);
    }

    #[test]
    fn flipped_bits_never_panic(entry in any_entry(), at: prop::sample::Index, bit in 0u8..8) {
        let mut bytes = Entry::encode_leaf(&[entry]);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let _ = Node::decode(&bytes, 0, false);
    }
}

fn plain(name: &[u8]) -> Entry {
    Entry {
        name: name.to_vec(),
        mode: 0o644,
        owner: Arc::default(),
        modified: Time::default(),
        changed: Time::default(),
        inode: 1,
        xattrs: vec![],
        links: None,
        payload: Payload::Fifo,
    }
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for name in [&b".."[..], b".", b"", b"a/b", b"/etc", b"a\0b"] {
        let bytes = Entry::encode_leaf(&[plain(name)]);
        assert!(Node::decode(&bytes, 0, false).is_err(), "{name:?}");
    }
    assert!(Node::decode(&Entry::encode_leaf(&[plain(b"/etc")]), 0, true).is_ok());
    let unordered = Entry::encode_leaf(&[plain(b"b"), plain(b"a")]);
    assert!(Node::decode(&unordered, 0, false).is_err());
}

#[test]
fn the_content_hash_ignores_inode_and_time_changed() {
    let hash = |entry: &Entry| {
        let mut hasher = ContentHasher::new(&[1; 32]);
        entry.hash_content(&mut hasher);
        hasher.finish()
    };
    let a = plain(b"a");
    let elsewhere = Entry { inode: 99, changed: Time { seconds: 5, nanos: 5 }, ..a.clone() };
    assert_eq!(hash(&a), hash(&elsewhere));
    assert_ne!(hash(&a), hash(&Entry { mode: 0o600, ..a.clone() }));
}
