//! The repository's configuration: plain text, so that anybody can see what a folder is.
//!
//! ```text
//! varv repository, format 1, needs varv 0.1.0 or later
//! {"id": …}                                   one line of JSON, see `Config`
//! check 64 hex digits mac 32 hex digits       of the two lines above, line ends included
//! ```
//!
//! The check is plain BLAKE3 and tells damage before any key is known; the MAC is keyed and tells
//! tampering after. The object is stored twice, as `config` and `config.copy`: the valid one of
//! the higher generation counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::FORMAT;
use crate::id::{Key, RepositoryId, checksum, hex, mac};

/// What every configuration begins with, whatever its format.
pub const CONFIG_START: &str = "varv repository, format ";
/// The longest configuration that is read.
pub const CONFIG_MAX: u64 = 1 << 20;

/// How hard data is compressed: a name for a zstd level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Not compressed at all.
    Store,
    /// For the nightly run.
    Hot,
    /// A little smaller.
    Warm,
    /// For what is seldom read.
    Cold,
    /// For what is kept for ever.
    Archive,
}

impl Tier {
    /// All, softest first.
    pub const ALL: [Tier; 5] = [Tier::Store, Tier::Hot, Tier::Warm, Tier::Cold, Tier::Archive];

    /// The name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Store => "store",
            Tier::Hot => "hot",
            Tier::Warm => "warm",
            Tier::Cold => "cold",
            Tier::Archive => "archive",
        }
    }

    /// From its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Tier::ALL.into_iter().find(|tier| tier.name() == name)
    }

    /// From its name as people write it; an error says which there are.
    pub fn parse(name: &str) -> Result<Self, String> {
        Self::from_name(name)
            .ok_or_else(|| format!("there is no tier '{name}': choose hot, warm, cold, archive or store"))
    }

    /// The zstd level if the repository sets no other; 0 stores.
    pub fn default_level(self) -> i8 {
        match self {
            Tier::Store => 0,
            Tier::Hot => 3,
            Tier::Warm => 6,
            Tier::Cold => 14,
            Tier::Archive => 20,
        }
    }
}

/// How a key slot's own key is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum SlotKind {
    /// By Argon2id from a passphrase.
    Passphrase {
        /// 16 random bytes, hex.
        salt: String,
        /// Memory in KiB.
        memory_kib: u32,
        /// Passes over the memory.
        passes: u32,
        /// Lanes.
        lanes: u32,
    },
    /// By hashing the content of a file.
    KeyFile {
        /// 16 random bytes, hex.
        salt: String,
    },
    /// Not at all: the keys lie open, for repositories without encryption.
    Open,
}

/// The repository's keys, each wrapped with a slot's key, hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKeys {
    /// What the others are derived from.
    pub master: String,
    /// For ids, chunk boundaries and checksums.
    pub ids: String,
    /// For map and tree nodes, snapshots and state.
    pub metadata: String,
    /// For the chunks of files and volumes.
    pub data: String,
}

/// One way to open the repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// What the user calls it.
    pub name: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// How its key is made.
    #[serde(flatten)]
    pub kind: SlotKind,
    /// What it opens.
    pub keys: WrappedKeys,
}

/// Sizes at which frames and packs are closed, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// A data pack, as stored.
    pub data_pack: u64,
    /// A metadata pack, as stored.
    pub metadata_pack: u64,
    /// A frame of chunks of files in trees, raw.
    pub tree_frame: u32,
    /// A frame of chunks of volumes and streams, raw.
    pub volume_frame: u32,
    /// A frame of map or tree nodes, raw.
    pub metadata_frame: u32,
}

impl Default for Sizes {
    /// Measured; the table is in `docs/benchmarks.md`.
    fn default() -> Self {
        Self {
            data_pack: 32 << 20,
            metadata_pack: 8 << 20,
            tree_frame: 4 << 20,
            volume_frame: 2 << 20,
            metadata_frame: 256 << 10,
        }
    }
}

/// What a repository is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The repository's name, 32 hex digits.
    pub id: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Counts the changes of this object.
    pub generation: u64,
    /// How files and volumes are cut: `fastcdc:4K,16K,64K` or `fixed:SIZE`.
    pub chunker: String,
    /// Whether frames and objects are encrypted, or only checksummed.
    pub encrypted: bool,
    /// zstd levels of tiers, where they are not the default.
    pub tiers: BTreeMap<Tier, i8>,
    /// When frames and packs are closed.
    pub sizes: Sizes,
    /// The ways to open the repository.
    pub slots: Vec<Slot>,
}

/// Why a configuration could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigError {
    /// It does not begin as one.
    Foreign,
    /// It is of a newer format.
    Newer {
        /// That format.
        found: u32,
        /// The version that reads it.
        needs: String,
    },
    /// It is not as it was written.
    Malformed(String),
}

impl Config {
    /// The repository's id.
    pub fn repository_id(&self) -> Option<RepositoryId> {
        RepositoryId::from_hex(&self.id)
    }

    /// The zstd level of a tier.
    pub fn level(&self, tier: Tier) -> i8 {
        match tier {
            Tier::Store => 0,
            _ => self.tiers.get(&tier).copied().unwrap_or(tier.default_level()),
        }
    }

    /// The object's bytes.
    pub fn encode(&self, mac_key: &Key) -> Vec<u8> {
        let json = serde_json::to_string(self).unwrap_or_default();
        let text = format!("{}\n{json}\n", first_line());
        let check = hex(&checksum::<32>(&[text.as_bytes()]));
        let mac = hex(&mac(mac_key, &[text.as_bytes()]));
        format!("{text}check {check} mac {mac}\n").into_bytes()
    }

    /// From the object's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Signed, ConfigError> {
        let malformed = |why: &str| ConfigError::Malformed(why.to_string());
        let text = std::str::from_utf8(bytes).map_err(|_| malformed("it is not text"))?;
        let (first, _) = text.split_once('\n').ok_or(ConfigError::Foreign)?;
        if differs_by_a_bit(first, &first_line()) {
            return Err(malformed("a bit of its first line has flipped"));
        }
        check_format(first)?;
        let (signed, check, mac) =
            sealed(text).ok_or_else(|| malformed("its last line is not a checksum"))?;
        if hex(&checksum::<32>(&[signed.as_bytes()])) != check {
            return Err(malformed("its checksum does not fit"));
        }
        let json = signed.get(first.len() + 1..).unwrap_or_default();
        let config: Config = serde_json::from_str(json).map_err(|e| ConfigError::Malformed(e.to_string()))?;
        if config.repository_id().is_none() {
            return Err(malformed("its id is not one"));
        }
        Ok(Signed { config, signed: signed.to_string(), mac: mac.to_string() })
    }
}

fn first_line() -> String {
    format!("{CONFIG_START}{FORMAT}, needs varv 0.1.0 or later")
}

/// A flipped bit must not look like a newer format.
fn differs_by_a_bit(one: &str, other: &str) -> bool {
    let bits = one.bytes().zip(other.bytes()).map(|(one, other)| (one ^ other).count_ones()).sum::<u32>();
    one.len() == other.len() && bits == 1
}

/// What is signed, its checksum and its MAC.
fn sealed(text: &str) -> Option<(&str, &str, &str)> {
    let (lines, last) = text.strip_suffix('\n')?.rsplit_once('\n')?;
    let (check, mac) = last.strip_prefix("check ")?.split_once(" mac ")?;
    Some((&text[..lines.len() + 1], check, mac))
}

fn check_format(line: &str) -> Result<(), ConfigError> {
    let rest = line.strip_prefix(CONFIG_START).ok_or(ConfigError::Foreign)?;
    let (number, needs) = rest.split_once(", needs varv ").ok_or(ConfigError::Foreign)?;
    let found: u32 = number.parse().map_err(|_| ConfigError::Foreign)?;
    if found == u32::from(FORMAT) {
        return Ok(());
    }
    let needs = needs.strip_suffix(" or later").unwrap_or(needs).to_string();
    Err(ConfigError::Newer { found, needs })
}

/// A configuration whose MAC is still to be checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// What it says.
    pub config: Config,
    signed: String,
    mac: String,
}

impl Signed {
    /// Whether it was written by somebody who has the key.
    pub fn is_authentic(&self, mac_key: &Key) -> bool {
        hex(&mac(mac_key, &[self.signed.as_bytes()])) == self.mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Config {
        let keys =
            WrappedKeys { master: "00".into(), ids: "01".into(), metadata: "02".into(), data: "03".into() };
        Config {
            id: "ab".repeat(16),
            created: "2026-11-20T03:00:00Z".into(),
            generation: 3,
            chunker: "fastcdc:4K,16K,64K".into(),
            encrypted: true,
            tiers: BTreeMap::from([(Tier::Cold, 12)]),
            sizes: Sizes::default(),
            slots: vec![
                Slot {
                    name: "a".into(),
                    created: String::new(),
                    kind: SlotKind::Passphrase { salt: "s".into(), memory_kib: 65536, passes: 3, lanes: 1 },
                    keys: keys.clone(),
                },
                Slot { name: "b".into(), created: String::new(), kind: SlotKind::Open, keys },
            ],
        }
    }

    #[test]
    fn round_trips_and_knows_its_key() {
        let config = sample();
        let signed = Config::decode(&config.encode(&[1; 32])).unwrap();
        assert!(signed.is_authentic(&[1; 32]));
        assert!(!signed.is_authentic(&[2; 32]));
        assert_eq!(signed.config, config);
        assert_eq!((config.level(Tier::Cold), config.level(Tier::Hot)), (12, 3));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let bytes = sample().encode(&[1; 32]);
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            for bit in 0..8 {
                flipped[at] = bytes[at] ^ 1 << bit;
                let noticed = Config::decode(&flipped).map(|s| s.is_authentic(&[1; 32]));
                let is_newer = matches!(noticed, Err(ConfigError::Newer { .. }));
                assert!(noticed != Ok(true) && !is_newer, "bit {bit} of byte {at}");
            }
            assert!(Config::decode(&bytes[..at]).is_err());
        }
    }

    #[test]
    fn a_newer_format_names_the_version_it_needs() {
        let text = "varv repository, format 7, needs varv 3.2.1 or later\nwhatever";
        assert_eq!(
            Config::decode(text.as_bytes()),
            Err(ConfigError::Newer { found: 7, needs: "3.2.1".into() })
        );
    }
}
