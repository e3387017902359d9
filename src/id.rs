//! Names of things by their content, and the keyed hashing behind them.
//!
//! Everything here is BLAKE3: ids are its keyed mode truncated to 20 bytes, pack and snapshot
//! names its plain mode, keys its derivation mode.

use std::fmt;

/// A 32-byte secret.
pub type Key = [u8; 32];

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// Reads the lower-case hexadecimal form; `None` if it is not one.
            pub fn from_hex(text: &str) -> Option<Self> {
                let mut bytes = [0; $len];
                hex_decode(text, &mut bytes).then_some(Self(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), &hex(&self.0)[..8])
            }
        }
    };
}

id!(
    /// A chunk's name: the keyed hash of its plain bytes. Data, map nodes and tree nodes use
    /// different keys, so that no id means two things.
    ChunkId, 20
);
id!(
    /// A pack's name: the hash of its bytes as stored.
    PackId, 32
);
id!(
    /// A snapshot's name: the hash of its object's bytes as stored.
    SnapshotId, 32
);
id!(
    /// A repository's name, random.
    RepositoryId, 16
);

impl ChunkId {
    /// The id of `bytes` under `key`.
    pub fn of(key: &Key, bytes: &[u8]) -> Self {
        Self(truncated(blake3::keyed_hash(key, bytes)))
    }
}

impl PackId {
    /// The name of a pack with these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl SnapshotId {
    /// The name of a snapshot object with these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The first eight digits, as shown in lists.
    pub fn short(&self) -> String {
        hex(&self.0[..4])
    }
}

/// A hash that is fed piece by piece.
pub struct Hasher(blake3::Hasher);

impl Hasher {
    /// Plain, for names of objects.
    pub fn plain() -> Self {
        Self(blake3::Hasher::new())
    }

    /// Keyed, for ids and checksums.
    pub fn keyed(key: &Key) -> Self {
        Self(blake3::Hasher::new_keyed(key))
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(bytes);
        self
    }

    /// The first `N` bytes of the hash so far; `N` is at most 32.
    pub fn finish<const N: usize>(&self) -> [u8; N] {
        truncated(self.0.finalize())
    }
}

/// A key for one purpose from a more general one.
pub fn derive_key(purpose: &str, key: &Key) -> Key {
    blake3::derive_key(purpose, key)
}

/// A key for one purpose from a key and a salt.
pub fn derive_salted(purpose: &str, key: &Key, salt: &[u8]) -> Key {
    let mut hasher = blake3::Hasher::new_derive_key(purpose);
    hasher.update(key).update(salt);
    *hasher.finalize().as_bytes()
}

/// Fills `out` with bytes that depend on `key` and `purpose` alone.
pub fn expand(purpose: &str, key: &Key, out: &mut [u8]) {
    let mut hasher = blake3::Hasher::new_derive_key(purpose);
    hasher.update(key);
    hasher.finalize_xof().fill(out);
}

/// A 16-byte checksum under `key`.
pub fn mac(key: &Key, parts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = Hasher::keyed(key);
    for part in parts {
        hasher.update(part);
    }
    hasher.finish()
}

/// A plain hash of `parts`, one after the other; `N` is at most 32.
pub fn checksum<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut hasher = Hasher::plain();
    for part in parts {
        hasher.update(part);
    }
    hasher.finish()
}

fn truncated<const N: usize>(hash: blake3::Hash) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&hash.as_bytes()[..N]);
    out
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .map(char::from)
        .collect()
}

/// Fills `out` from lower-case hexadecimal of just that length; false if `text` is not that.
pub fn hex_decode(text: &str, out: &mut [u8]) -> bool {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != out.len() * 2 {
        return false;
    }
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        match (digit(pair[0]), digit(pair[1])) {
            (Some(high), Some(low)) => *byte = high << 4 | low,
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trip_and_refusals() {
        let id = ChunkId::of(&[7; 32], b"hello");
        assert_eq!(ChunkId::from_hex(&id.to_string()), Some(id));
        assert_eq!(ChunkId::from_hex("00"), None);
        assert_eq!(ChunkId::from_hex(&"G".repeat(40)), None);
        assert_eq!(ChunkId::from_hex(&"é".repeat(20)), None);
    }

    #[test]
    fn ids_depend_on_the_key() {
        assert_ne!(ChunkId::of(&[1; 32], b"x"), ChunkId::of(&[2; 32], b"x"));
    }
}
