//! The repository's keys and the slots that wrap them.
//!
//! A random master key; from it one key each for ids, metadata and data. A slot wraps the four
//! under a key of its own, made from a passphrase (Argon2id) or a key file. Where nothing is
//! encrypted, an open slot holds them plain: ids and checksums are keyed all the same.

use std::path::Path;

use argon2::{Algorithm, Argon2, Params, Version};
use jiff::Timestamp;
use zeroize::Zeroizing;

use crate::codec::seal::Seal;
use crate::error::{Error, Result};
use crate::format::config::{Slot, SlotKind, WrappedKeys};
use crate::format::pack::{Class, Kind};
use crate::id::{Key, RepositoryId, derive_key, derive_salted, hex, hex_decode};

/// Argon2id's memory for new slots. Measured: 64 MiB and three passes take about 0.1 s.
const ARGON_MEMORY_KIB: u32 = 64 << 10;
/// Argon2id's passes for new slots.
const ARGON_PASSES: u32 = 3;
/// More memory is refused: a hostile configuration must not be able to ask for all of it.
const ARGON_MEMORY_KIB_MAX: u32 = 128 << 10;
/// More passes are refused, likewise.
const ARGON_PASSES_MAX: u32 = 10;
/// A key file has at least so many bytes …
const KEY_FILE_MIN: usize = 32;
/// … and at most so many.
const KEY_FILE_MAX: u64 = 1 << 20;

/// What opens a slot.
pub enum Secret {
    /// Something that a person knows.
    Passphrase(Zeroizing<String>),
    /// The content of a file.
    KeyFile(Zeroizing<Vec<u8>>),
    /// The master key itself, from a recovery code.
    Master(Zeroizing<Key>),
}

impl Secret {
    /// Reads a key file.
    pub fn from_key_file(path: &Path) -> Result<Self> {
        let bytes = read_limited(path)?;
        if bytes.len() < KEY_FILE_MIN {
            return Err(Error::Refused(format!(
                "{} is no key file: it has fewer than {KEY_FILE_MIN} bytes",
                path.display()
            )));
        }
        Ok(Secret::KeyFile(bytes))
    }
}

fn read_limited(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    use crate::error::IoContext;
    use std::io::Read;
    let file = std::fs::File::open(path).at("open the key file", path)?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(KEY_FILE_MAX + 1).read_to_end(&mut bytes).at("read the key file", path)?;
    match bytes.len() as u64 > KEY_FILE_MAX {
        true => Err(Error::Refused(format!("{} is no key file: it is longer than 1 MiB", path.display()))),
        false => Ok(bytes),
    }
}

/// The content of a new key file.
pub fn new_key_file() -> Result<Zeroizing<String>> {
    Ok(Zeroizing::new(format!("varv key file\n{}\n", hex(&random::<32>()?))))
}

/// The keys of an opened repository.
#[derive(Clone)]
pub struct Keys {
    master: Zeroizing<Key>,
    ids: Zeroizing<Key>,
    metadata: Zeroizing<Key>,
    data: Zeroizing<Key>,
    chunk_ids: [Zeroizing<Key>; 3],
    encrypted: bool,
}

impl Keys {
    /// New random ones.
    pub fn generate(encrypted: bool) -> Result<Self> {
        Ok(Self::from_master(&random()?, encrypted))
    }

    fn from_master(master: &Key, encrypted: bool) -> Self {
        let derived = |purpose| Zeroizing::new(derive_key(purpose, master));
        let ids = derived("varv 2026-11 ids");
        let of_kind = |purpose| Zeroizing::new(derive_key(purpose, &ids));
        Self {
            chunk_ids: [
                of_kind("varv 2026-11 data chunk ids"),
                of_kind("varv 2026-11 map node ids"),
                of_kind("varv 2026-11 tree node ids"),
            ],
            metadata: derived("varv 2026-11 metadata"),
            data: derived("varv 2026-11 data"),
            ids,
            master: Zeroizing::new(*master),
            encrypted,
        }
    }

    /// What ids of chunks of this kind are made with.
    pub fn ids(&self, kind: Kind) -> &Key {
        &self.chunk_ids[kind as usize]
    }

    /// What chunk boundaries are made with.
    pub fn chunker(&self) -> Key {
        derive_key("varv 2026-11 chunker", &self.ids)
    }

    /// What the index's checksums are made with.
    pub fn index(&self) -> Key {
        derive_key("varv 2026-11 index", &self.ids)
    }

    /// What the configuration's MAC is made with.
    pub fn config_mac(&self) -> Key {
        derive_key("varv 2026-11 config", &self.master)
    }

    /// What seals the pack with this class and salt.
    pub fn pack_seal(&self, class: Class, salt: &[u8; 32]) -> Result<Seal> {
        let key = match class {
            Class::Data => &self.data,
            Class::Metadata => &self.metadata,
        };
        Seal::new(&derive_salted("varv 2026-11 pack", key, salt), self.encrypted)
    }

    /// What seals the object with this salt.
    pub fn object_seal(&self, salt: &[u8; 28]) -> Result<Seal> {
        Seal::new(&derive_salted("varv 2026-11 object", &self.metadata, salt), self.encrypted)
    }

    /// The master key, for a recovery code.
    pub fn master(&self) -> &Key {
        &self.master
    }

    /// A slot that holds these keys, made as slots are made today.
    pub fn wrap(&self, repository: &RepositoryId, name: &str, secret: Option<&Secret>) -> Result<Slot> {
        self.wrap_as(repository, name, new_slot_kind(secret)?, secret)
    }

    /// A slot of this kind, whose salt is new, that holds these keys.
    pub fn wrap_as(
        &self,
        repository: &RepositoryId,
        name: &str,
        kind: SlotKind,
        secret: Option<&Secret>,
    ) -> Result<Slot> {
        let seal = slot_seal(&kind, secret)?;
        let wrap = |purpose: Purpose, key: &Key| wrap_key(&seal, repository, name, purpose, key);
        Ok(Slot {
            name: name.to_string(),
            created: Timestamp::now().to_string(),
            keys: WrappedKeys {
                master: wrap(Purpose::Master, &self.master)?,
                ids: wrap(Purpose::Ids, &self.ids)?,
                metadata: wrap(Purpose::Metadata, &self.metadata)?,
                data: wrap(Purpose::Data, &self.data)?,
            },
            kind,
        })
    }

    /// Opens the first slot that `secret` fits; its name is returned too.
    pub fn unwrap(
        repository: &RepositoryId,
        slots: &[Slot],
        secret: Option<&Secret>,
        encrypted: bool,
    ) -> Result<(Self, String)> {
        if let Some(Secret::Master(master)) = secret {
            return Ok((Self::from_master(master, encrypted), "recovery code".into()));
        }
        for slot in slots.iter().filter(|slot| fits(&slot.kind, secret)) {
            let seal = slot_seal(&slot.kind, secret)?;
            if let Some(master) = unwrap_master(&seal, repository, slot) {
                return Ok((Self::from_master(&master, encrypted), slot.name.clone()));
            }
        }
        Err(Error::WrongKey(wrong_key(slots, secret)))
    }
}

fn wrong_key(slots: &[Slot], secret: Option<&Secret>) -> String {
    let kinds = |wanted: fn(&SlotKind) -> bool| slots.iter().filter(|s| wanted(&s.kind)).count();
    let passphrases = kinds(|k| matches!(k, SlotKind::Passphrase { .. }));
    let key_files = kinds(|k| matches!(k, SlotKind::KeyFile { .. }));
    let has = format!("the repository opens with {passphrases} passphrase(s) and {key_files} key file(s)");
    match secret {
        None => format!("a passphrase or key file is needed: {has}"),
        Some(Secret::Passphrase(_)) => format!("wrong passphrase: {has}"),
        Some(Secret::KeyFile(_)) => format!("wrong key file: {has}"),
        Some(Secret::Master(_)) => "wrong recovery code".into(),
    }
}

fn fits(kind: &SlotKind, secret: Option<&Secret>) -> bool {
    matches!(
        (kind, secret),
        (SlotKind::Open, None | Some(Secret::Passphrase(_)))
            | (SlotKind::Passphrase { .. }, Some(Secret::Passphrase(_)))
            | (SlotKind::KeyFile { .. }, Some(Secret::KeyFile(_)))
    )
}

fn new_slot_kind(secret: Option<&Secret>) -> Result<SlotKind> {
    let salt = hex(&random::<16>()?);
    Ok(match secret {
        None => SlotKind::Open,
        Some(Secret::KeyFile(_)) => SlotKind::KeyFile { salt },
        Some(Secret::Passphrase(_)) => {
            SlotKind::Passphrase { salt, memory_kib: ARGON_MEMORY_KIB, passes: ARGON_PASSES, lanes: 1 }
        }
        Some(Secret::Master(_)) => return Err(Error::Internal("a recovery code is no slot")),
    })
}

/// What wraps a slot's keys; `None` for an open slot.
fn slot_seal(kind: &SlotKind, secret: Option<&Secret>) -> Result<Option<Seal>> {
    let key = match (kind, secret) {
        (SlotKind::Passphrase { salt, memory_kib, passes, lanes }, Some(Secret::Passphrase(text))) => {
            argon2(text, &slot_salt(salt)?, *memory_kib, *passes, *lanes)?
        }
        (SlotKind::KeyFile { salt }, Some(Secret::KeyFile(bytes))) => {
            let hash = derive_salted("varv 2026-11 key file", &[0; 32], bytes);
            Zeroizing::new(derive_salted("varv 2026-11 key file slot", &hash, &slot_salt(salt)?))
        }
        _ => return Ok(None),
    };
    Seal::new(&key, true).map(Some)
}

fn slot_salt(text: &str) -> Result<[u8; 16]> {
    let mut salt = [0; 16];
    if hex_decode(text, &mut salt) {
        Ok(salt)
    } else {
        Err(Error::damaged("config", "a slot's salt is wrong"))
    }
}

fn argon2(text: &str, salt: &[u8], memory_kib: u32, passes: u32, lanes: u32) -> Result<Zeroizing<Key>> {
    if memory_kib > ARGON_MEMORY_KIB_MAX || passes > ARGON_PASSES_MAX || lanes > 4 {
        return Err(Error::damaged("config", "a slot asks for more memory or passes than are allowed"));
    }
    let params = Params::new(memory_kib, passes, lanes, Some(32))
        .map_err(|_| Error::damaged("config", "a slot's parameters are not allowed"))?;
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(text.as_bytes(), salt, key.as_mut())
        .map_err(|_| Error::Internal("Argon2id"))?;
    Ok(key)
}

/// What a wrapped key is for; the number is its nonce, since a slot's key wraps each just once.
#[derive(Clone, Copy)]
enum Purpose {
    Master = 0,
    Ids = 1,
    Metadata = 2,
    Data = 3,
}

impl Purpose {
    /// What a wrapped key is bound to: it cannot be moved to another repository or slot.
    fn bound(self, repository: &RepositoryId, slot: &str) -> Vec<u8> {
        [b"varv slot ", &repository.0[..], &[self as u8], slot.as_bytes()].concat()
    }
}

fn wrap_key(
    seal: &Option<Seal>,
    repository: &RepositoryId,
    slot: &str,
    purpose: Purpose,
    key: &Key,
) -> Result<String> {
    let mut bytes = Zeroizing::new(key.to_vec());
    if let Some(seal) = seal {
        seal.seal(purpose as u32, &purpose.bound(repository, slot), &mut bytes)?;
    }
    Ok(hex(&bytes))
}

fn unwrap_master(seal: &Option<Seal>, repository: &RepositoryId, slot: &Slot) -> Option<Zeroizing<Key>> {
    let text = &slot.keys.master;
    let mut bytes = Zeroizing::new(vec![0; text.len() / 2]);
    if !hex_decode(text, &mut bytes) {
        return None;
    }
    let bound = Purpose::Master.bound(repository, &slot.name);
    let plain = match seal {
        Some(seal) => seal.open(Purpose::Master as u32, &bound, &mut bytes)?,
        None => &bytes,
    };
    plain.try_into().ok().map(Zeroizing::new)
}

/// Random bytes from the kernel.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| Error::Internal("the kernel gives no random bytes"))?;
    Ok(bytes)
}

/// Digits of a recovery code: Crockford's base 32, without I, L, O and U.
const CODE_DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Characters of key in a group of the code; a check digit follows.
const CODE_GROUP: usize = 6;

/// The master key as text that can be typed: nine groups of six digits and a check digit each.
pub fn recovery_code(master: &Key) -> Zeroizing<String> {
    let digits = base32(master);
    let groups: Vec<String> = digits
        .chunks(CODE_GROUP)
        .enumerate()
        .map(|(number, group)| {
            let check = check_digit(number, group);
            group.iter().chain([&check]).map(|d| char::from(CODE_DIGITS[usize::from(*d)])).collect()
        })
        .collect();
    Zeroizing::new(groups.join("-"))
}

/// Reads a recovery code; the error names the group that is wrong.
pub fn parse_recovery_code(text: &str) -> Result<Secret> {
    let typed: Vec<u8> = text.bytes().filter(|c| !b"- \n\t".contains(c)).collect();
    let mut digits = Vec::with_capacity(64);
    for (number, group) in typed.chunks(CODE_GROUP + 1).enumerate() {
        let values: Option<Vec<u8>> = group.iter().map(|c| code_value(*c)).collect();
        let wrong = || Error::WrongKey(format!("the recovery code has a mistake in group {}", number + 1));
        let values = values.ok_or_else(wrong)?;
        let (check, values) = values.split_last().ok_or_else(wrong)?;
        if check_digit(number, values) != *check {
            return Err(wrong());
        }
        digits.extend_from_slice(values);
    }
    let master = from_base32(&digits)
        .ok_or_else(|| Error::WrongKey("the recovery code has the wrong length".into()))?;
    Ok(Secret::Master(Zeroizing::new(master)))
}

fn code_value(c: u8) -> Option<u8> {
    let c = match c.to_ascii_uppercase() {
        b'O' => b'0',
        b'I' | b'L' => b'1',
        c => c,
    };
    CODE_DIGITS.iter().position(|digit| *digit == c).map(|value| value as u8)
}

/// Finds a wrong digit in all cases, since odd weights can be inverted modulo 32, and nearly all
/// swapped ones.
fn check_digit(number: usize, group: &[u8]) -> u8 {
    let sum: usize = group.iter().enumerate().map(|(i, d)| (2 * i + 3) * usize::from(*d)).sum();
    ((sum + number * 7) % 32) as u8
}

fn base32(key: &Key) -> Vec<u8> {
    let bit = |i: usize| key.get(i / 8).map_or(0, |byte| byte >> (7 - i % 8) & 1);
    (0..52).map(|digit| (0..5).fold(0, |value, i| value << 1 | bit(digit * 5 + i))).collect()
}

fn from_base32(digits: &[u8]) -> Option<Key> {
    if digits.len() != 52 {
        return None;
    }
    let bit = |i: usize| digits[i / 5] >> (4 - i % 5) & 1;
    let mut key = [0; 32];
    for (i, byte) in key.iter_mut().enumerate() {
        *byte = (0..8).fold(0, |value, b| value << 1 | bit(i * 8 + b));
    }
    (256..260).all(|i| bit(i) == 0).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPOSITORY: RepositoryId = RepositoryId([9; 16]);

    fn passphrase(text: &str) -> Secret {
        Secret::Passphrase(Zeroizing::new(text.into()))
    }

    #[test]
    fn slots_open_with_their_own_secret_only() {
        let keys = Keys::generate(true).unwrap();
        let file = Secret::KeyFile(Zeroizing::new(vec![4; 40]));
        let slots = [
            keys.wrap(&REPOSITORY, "first", Some(&passphrase("one"))).unwrap(),
            keys.wrap(&REPOSITORY, "second", Some(&passphrase("two"))).unwrap(),
            keys.wrap(&REPOSITORY, "file", Some(&file)).unwrap(),
        ];
        let open = |secret: Option<&Secret>| Keys::unwrap(&REPOSITORY, &slots, secret, true);
        for (secret, slot) in [(passphrase("one"), "first"), (passphrase("two"), "second"), (file, "file")] {
            let (opened, name) = open(Some(&secret)).unwrap();
            assert_eq!((opened.master(), name.as_str()), (keys.master(), slot));
        }
        assert!(matches!(open(Some(&passphrase("three"))), Err(Error::WrongKey(_))));
        assert!(matches!(open(None), Err(Error::WrongKey(_))));
        let elsewhere = Keys::unwrap(&RepositoryId([8; 16]), &slots[..1], Some(&passphrase("one")), true);
        assert!(elsewhere.is_err(), "a slot opens in another repository");
    }

    #[test]
    fn hostile_parameters_are_refused() {
        let keys = Keys::generate(true).unwrap();
        let mut slot = keys.wrap(&REPOSITORY, "a", Some(&passphrase("one"))).unwrap();
        if let SlotKind::Passphrase { memory_kib, .. } = &mut slot.kind {
            *memory_kib = u32::MAX;
        }
        let opened = Keys::unwrap(&REPOSITORY, &[slot], Some(&passphrase("one")), true);
        assert!(matches!(opened, Err(Error::Damaged { .. })));
    }

    #[test]
    fn recovery_codes_come_back_and_show_mistakes() {
        let keys = Keys::generate(true).unwrap();
        let code = recovery_code(keys.master());
        let read = |text: &str| match parse_recovery_code(text) {
            Ok(Secret::Master(master)) => Some(*master),
            _ => None,
        };
        assert_eq!(read(&code), Some(*keys.master()));
        assert_eq!(read(&code.to_lowercase().replace('-', " ")), Some(*keys.master()));
        for at in (0..code.len()).filter(|at| code.as_bytes()[*at] != b'-') {
            for digit in CODE_DIGITS {
                let mut wrong = code.as_bytes().to_vec();
                if wrong[at] != *digit {
                    wrong[at] = *digit;
                    assert_ne!(read(std::str::from_utf8(&wrong).unwrap()), Some(*keys.master()));
                }
            }
        }
        assert_eq!(read(&code[..20]), None);
        assert_eq!(read(""), None);
    }

    #[test]
    fn without_encryption_the_slot_is_open() {
        let keys = Keys::generate(false).unwrap();
        let slot = keys.wrap(&REPOSITORY, "open", None).unwrap();
        let (opened, _) = Keys::unwrap(&REPOSITORY, &[slot], None, false).unwrap();
        assert_eq!(opened.ids(Kind::Data), keys.ids(Kind::Data));
    }
}
