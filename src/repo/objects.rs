//! Small sealed objects: compress, seal, open.

use crate::codec::frame::{Decoder, Encoder};
use crate::error::{Error, Result};
use crate::format::FORMAT;
use crate::format::object::{BODY_MAX, HEADER_LEN, Header, ObjectKind};
use crate::format::pack::SEAL_LEN;
use crate::id::RepositoryId;

use super::keys::{Keys, random};

/// The longest object that is read.
pub const OBJECT_MAX: u64 = BODY_MAX as u64 + (HEADER_LEN + SEAL_LEN) as u64;
/// Objects are small; they can afford a good level.
const LEVEL: i8 = 9;

/// The object's bytes.
pub fn seal_object(
    keys: &Keys,
    repository: &RepositoryId,
    kind: ObjectKind,
    plain: &[u8],
) -> Result<Vec<u8>> {
    let (codec, mut body) = Encoder::new(LEVEL)?.encode(plain)?;
    let header = Header { kind, codec, raw_len: plain.len() as u32, salt: random()? };
    keys.object_seal(&header.salt)?.seal(0, &bound(repository, &header), &mut body)?;
    Ok([&header.encode()[..], &body].concat())
}

/// What was sealed; `name` is for messages.
pub fn open_object(
    keys: &Keys,
    repository: &RepositoryId,
    kind: ObjectKind,
    name: &str,
    mut bytes: Vec<u8>,
) -> Result<Vec<u8>> {
    let damaged = |why: &str| Error::damaged(name, why);
    let (head, body) = bytes.split_at_mut_checked(HEADER_LEN).ok_or_else(|| damaged("it is too short"))?;
    let header = Header::decode(head, kind).map_err(|e| damaged(e.0))?;
    let plain = keys
        .object_seal(&header.salt)?
        .open(0, &bound(repository, &header), body)
        .ok_or_else(|| damaged("its seal is broken"))?;
    let mut raw = Vec::new();
    Decoder::new()?
        .decode(header.codec, plain, &[], header.raw_len as usize, &mut raw)
        .map(|()| raw)
        .ok_or_else(|| damaged("it does not decompress to what it should"))
}

fn bound(repository: &RepositoryId, header: &Header) -> [u8; 24] {
    let mut out = [0; 24];
    out[..2].copy_from_slice(&FORMAT.to_le_bytes());
    out[2..18].copy_from_slice(&repository.0);
    out[18] = header.kind.code();
    out[19] = header.codec.code();
    out[20..].copy_from_slice(&header.raw_len.to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_whole_or_not_at_all() {
        let repository = RepositoryId([1; 16]);
        for encrypted in [true, false] {
            let keys = Keys::generate(encrypted).unwrap();
            let plain = br#"{"a":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"}"#;
            let bytes = seal_object(&keys, &repository, ObjectKind::State, plain).unwrap();
            let open = |kind, bytes: &[u8]| open_object(&keys, &repository, kind, "state/x", bytes.to_vec());
            assert_eq!(open(ObjectKind::State, &bytes).unwrap(), plain);
            assert!(open(ObjectKind::Snapshot, &bytes).is_err());
            for at in 0..bytes.len() {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1;
                assert!(open(ObjectKind::State, &flipped).is_err(), "byte {at}");
                assert!(open(ObjectKind::State, &bytes[..at]).is_err(), "{at} bytes");
            }
        }
    }
}
