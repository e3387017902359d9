//! Small sealed objects: snapshots and state.
//!
//! ```text
//! header   48   magic "varvobjt" 8 · format u16 · kind u8 · key wrap u8 · codec u8 · zero 3
//!               · plain length u32 · salt 28
//! body          sealed with the key derived from the metadata key and the salt
//! ```

use super::FORMAT;
use super::pack::Codec;
use super::wire::{Decoded, Malformed, Reader};

/// Length of the header.
pub const HEADER_LEN: usize = 48;
/// The longest plain body.
pub const BODY_MAX: u32 = 64 << 20;

const MAGIC: &[u8; 8] = b"varvobjt";

/// What a sealed object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// A snapshot.
    Snapshot,
    /// Something that the repository remembers for its upkeep.
    State,
}

impl ObjectKind {
    /// The number on disk; apart from the classes of packs, so that none can pass for another.
    pub fn code(self) -> u8 {
        match self {
            ObjectKind::Snapshot => 17,
            ObjectKind::State => 18,
        }
    }
}

/// A sealed object's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the object is.
    pub kind: ObjectKind,
    /// How its body is stored below the seal.
    pub codec: Codec,
    /// Length of the plain body.
    pub raw_len: u32,
    /// Random, new for every object.
    pub salt: [u8; 28],
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        out[10] = self.kind.code();
        out[12] = self.codec.code();
        out[16..20].copy_from_slice(&self.raw_len.to_le_bytes());
        out[20..].copy_from_slice(&self.salt);
        out
    }

    /// From the first [`HEADER_LEN`] bytes of an object that should be a `kind`.
    pub fn decode(bytes: &[u8], kind: ObjectKind) -> Decoded<Self> {
        let mut reader = Reader::new(bytes);
        if reader.array::<8>()? != *MAGIC {
            return Err(Malformed("it does not begin as a sealed object"));
        }
        if reader.u16()? != FORMAT {
            return Err(Malformed("its format is unknown"));
        }
        if reader.u8()? != kind.code() {
            return Err(Malformed("it is another kind of object"));
        }
        if reader.u8()? != 0 {
            return Err(Malformed("its key wrap is unknown"));
        }
        let codec = Codec::from_code(reader.u8()?)?;
        if reader.array::<3>()? != [0; 3] {
            return Err(Malformed("its header has unknown fields"));
        }
        let raw_len = reader.u32()?;
        if raw_len > BODY_MAX {
            return Err(Malformed("it is too long"));
        }
        Ok(Self { kind, codec, raw_len, salt: reader.array()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses() {
        let header = Header { kind: ObjectKind::State, codec: Codec::Zstd, raw_len: 77, salt: [3; 28] };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes, ObjectKind::State), Ok(header));
        assert!(Header::decode(&bytes, ObjectKind::Snapshot).is_err());
        for len in 0..HEADER_LEN {
            assert!(Header::decode(&bytes[..len], ObjectKind::State).is_err());
        }
        let huge = Header { raw_len: u32::MAX, ..header };
        assert!(Header::decode(&huge.encode(), ObjectKind::State).is_err());
    }
}
