//! Sealing: nobody without the key reads or changes a frame, a trailer or an object unnoticed.
//!
//! Encrypted repositories use AES-256-GCM. Others keep the bytes as they are and add a keyed
//! BLAKE3 checksum over the same things, of the same length, so that the layout is one.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::error::{Error, Result};
use crate::id::{Key, mac};

/// What a seal adds.
pub const SEAL_LEN: usize = 16;

/// Seals and opens under one key. The caller never uses a number twice for one key.
pub enum Seal {
    /// AES-256-GCM; the nonce is the number.
    Encrypted(Box<LessSafeKey>),
    /// Plain bytes and a keyed checksum.
    Checked(Key),
}

impl Seal {
    /// Under `key`, with or without encryption.
    pub fn new(key: &Key, encrypted: bool) -> Result<Self> {
        if !encrypted {
            return Ok(Seal::Checked(*key));
        }
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| Error::Internal("AES key"))?;
        Ok(Seal::Encrypted(Box::new(LessSafeKey::new(key))))
    }

    /// Seals `bytes` in place under `number`, bound to `bound`, and appends the seal.
    pub fn seal(&self, number: u32, bound: &[u8], bytes: &mut Vec<u8>) -> Result<()> {
        match self {
            Seal::Encrypted(key) => key
                .seal_in_place_append_tag(nonce(number), Aad::from(bound), bytes)
                .map_err(|_| Error::Internal("AES seal")),
            Seal::Checked(key) => {
                let tag = checksum(key, number, bound, bytes);
                bytes.extend_from_slice(&tag);
                Ok(())
            }
        }
    }

    /// Opens `bytes` in place; the plain ones are returned. `None` if they are not what was
    /// sealed under this key and number, bound to `bound`.
    pub fn open<'a>(&self, number: u32, bound: &[u8], bytes: &'a mut [u8]) -> Option<&'a [u8]> {
        match self {
            Seal::Encrypted(key) => {
                let plain = key.open_in_place(nonce(number), Aad::from(bound), bytes).ok()?;
                Some(plain)
            }
            Seal::Checked(key) => {
                let (plain, tag) = bytes.split_last_chunk::<SEAL_LEN>()?;
                (checksum(key, number, bound, plain) == *tag).then_some(plain)
            }
        }
    }
}

fn nonce(number: u32) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn checksum(key: &Key, number: u32, bound: &[u8], bytes: &[u8]) -> [u8; SEAL_LEN] {
    mac(key, &[&number.to_le_bytes(), &(bound.len() as u32).to_le_bytes(), bound, bytes])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_what_was_sealed() {
        for encrypted in [true, false] {
            let seal = Seal::new(&[1; 32], encrypted).unwrap();
            let mut sealed = b"some plain bytes".to_vec();
            seal.seal(7, b"bound", &mut sealed).unwrap();
            assert_eq!(sealed.len(), 16 + SEAL_LEN);
            assert_eq!(sealed.starts_with(b"some"), !encrypted);
            assert_eq!(seal.open(7, b"bound", &mut sealed.clone()), Some(&b"some plain bytes"[..]));
            assert_eq!(seal.open(8, b"bound", &mut sealed.clone()), None);
            assert_eq!(seal.open(7, b"other", &mut sealed.clone()), None);
            let other = Seal::new(&[2; 32], encrypted).unwrap();
            assert_eq!(other.open(7, b"bound", &mut sealed.clone()), None);
            for at in 0..sealed.len() {
                let mut flipped = sealed.clone();
                flipped[at] ^= 0x10;
                assert_eq!(seal.open(7, b"bound", &mut flipped), None, "byte {at}");
            }
            for len in 0..SEAL_LEN {
                assert_eq!(seal.open(7, b"bound", &mut sealed[..len].to_vec()), None);
            }
        }
    }
}
