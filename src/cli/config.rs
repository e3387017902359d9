//! The configuration file: repositories, profiles, and what to keep. Kept in TOML.
//!
//! Everything in it is checked when it is read: keys that nobody knows are refused with the nearest
//! one that is known, paths must be absolute, and neither the file nor the secrets that it names
//! may be open to other users, since it says which commands are run.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};

use super::global::user_folder;
use crate::error::{Error, IoContext, Result};
use crate::lvm::FreeBlocks;
use crate::upkeep::retention::{Policies, Policy};

/// The file for the whole machine.
const OF_SYSTEM: &str = "/etc/varv/varv.toml";
/// Its place in the user's configuration folder.
const OF_USER: &str = "varv/varv.toml";
/// A longer file is none.
const LEN_MAX: u64 = 1 << 20;
/// How much a name must be like another to be suggested, from 0 to 1; clap has the same.
const ALIKE_MIN: f64 = 0.7;

/// What a configuration file says.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// By name.
    pub repositories: BTreeMap<String, Repository>,
    /// By name.
    pub profiles: BTreeMap<String, Profile>,
}

/// Where backups go, and what opens it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Repository {
    pub path: Absolute,
    pub passphrase_file: Option<Absolute>,
    pub passphrase_command: Option<String>,
    pub key_file: Option<Absolute>,
    pub cache_dir: Option<Absolute>,
}

/// What `varv run` does. Keys are named as the options of the commands that they are for.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Profile {
    /// A name of `repositories`; not needed if there is only one.
    pub repository: Option<String>,
    /// Without any, and without volumes and a command, nothing is backed up.
    pub sources: Vec<Absolute>,
    /// A command whose output is backed up with the sources.
    pub from_command: Option<FromCommand>,
    pub label: Option<String>,
    pub host: Option<String>,
    pub tags: Vec<String>,
    pub tier: Option<String>,
    pub tier_for: Vec<String>,
    pub exclude: Vec<String>,
    pub exclude_from: Vec<Absolute>,
    pub exclude_from0: Vec<Absolute>,
    pub exclude_if_present: Vec<String>,
    pub exclude_caches: bool,
    pub exclude_larger_than: Option<Value>,
    pub one_file_system: bool,
    pub read_devices: bool,
    pub read_errors: Option<String>,
    pub force_read: bool,
    pub no_delta: bool,
    /// `partclone`, or the path of a map.
    #[serde(deserialize_with = "free_blocks")]
    pub free_blocks: Option<OsString>,
    pub metrics: Option<Absolute>,
    /// Logical volumes, backed up together with the sources.
    pub lvm: Option<Lvm>,
    pub lock_wait: Option<String>,
    /// Commands for a shell, one after the other.
    pub before: Vec<String>,
    /// Likewise; they run whatever became of the rest.
    pub after: Vec<String>,
    /// What `forget` keeps; it is left out without it, as are those below.
    pub retention: Option<Policy>,
    pub prune: Option<Prune>,
    /// What older snapshots alone need, compressed harder; each rule in turn.
    pub retier: Vec<Retier>,
    pub check: Option<Check>,
}

/// A stream: its name, and what prints it, without a shell.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FromCommand {
    pub name: String,
    pub command: Vec<String>,
}

/// Options of `lvm backup`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Lvm {
    pub volumes: Vec<String>,
    pub snapshot_size: Option<Value>,
    pub no_keep: bool,
    pub pool_limit: Option<Value>,
    pub spot_check: Option<Value>,
    pub full_every: Option<String>,
    pub checkpoint_every: Option<Value>,
    pub freeze: bool,
}

/// Options of `prune`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Prune {
    pub max_unused: Option<Value>,
    pub max_repack: Option<Value>,
}

/// Options of `retier`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Retier {
    pub older_than: String,
    pub to: String,
    pub limit: Option<Value>,
    pub max_time: Option<String>,
}

/// Options of `check`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Check {
    /// `true` for all of it, or a share.
    pub read_data: Option<Value>,
    pub max_age: Option<String>,
    pub limit: Option<Value>,
}

/// What stands behind `=`, or `true` or `false`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged, expecting = "expected true, false, a number, or text such as \"20G\" or \"10%\"")]
pub enum Value {
    Switch(bool),
    Integer(i64),
    Number(f64),
    Text(String),
}

/// A path that means the same wherever the command is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absolute(pub PathBuf);

impl<'de> Deserialize<'de> for Absolute {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(PathBuf::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl Absolute {
    fn new(path: PathBuf) -> Result<Self, String> {
        match path.is_absolute() {
            true => Ok(Self(path)),
            false => Err(format!(
                "'{}' is no absolute path: write it from / on, such as /etc/varv",
                path.display()
            )),
        }
    }
}

fn free_blocks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<OsString>, D::Error> {
    let word = OsString::from(String::deserialize(deserializer)?);
    match FreeBlocks::parse(&word) {
        FreeBlocks::Partclone => Ok(Some(word)),
        FreeBlocks::Map(path) => Absolute::new(path).map(|_| Some(word)).map_err(D::Error::custom),
    }
}

impl Config {
    /// Reads the file that was named, else the user's, else the system's.
    pub fn load(named: Option<&Path>) -> Result<Self> {
        let path = match named {
            Some(path) => path.to_path_buf(),
            None => find()?,
        };
        let config: Self = read(&path)?;
        for Repository { passphrase_file, key_file, .. } in config.repositories.values() {
            for secret in [passphrase_file, key_file].into_iter().flatten() {
                refuse_open_secret(&secret.0)?;
            }
        }
        Ok(config)
    }

    /// The profile of this name.
    pub fn profile(&self, name: &str) -> Result<&Profile> {
        let profile = self.profiles.get(name);
        profile.ok_or_else(|| Error::Refused(no_such("profile", name, self.profiles.keys())))
    }

    /// A profile's repository; `None` if the file has none at all.
    pub fn repository(&self, profile: &Profile) -> Result<Option<&Repository>> {
        let mut all = self.repositories.values();
        match (&profile.repository, all.next(), all.next()) {
            (Some(name), ..) => {
                let found = self.repositories.get(name);
                let missing = || Error::Refused(no_such("repository", name, self.repositories.keys()));
                found.map(Some).ok_or_else(missing)
            }
            (None, only, None) => Ok(only),
            (None, _, Some(_)) => Err(Error::Refused(
                "the profile does not say which of the repositories it is for: add repository = \"NAME\""
                    .into(),
            )),
        }
    }
}

/// What to keep of each label, from a file of its own.
pub fn policies(path: &Path) -> Result<Policies> {
    read(path)
}

fn find() -> Result<PathBuf> {
    let of_user = user_folder("XDG_CONFIG_HOME", ".config").map(|folder| folder.join(OF_USER));
    let places: Vec<PathBuf> = of_user.into_iter().chain([OF_SYSTEM.into()]).collect();
    let found = places.iter().find(|path| path.exists()).cloned();
    found.ok_or_else(|| {
        let names: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
        Error::Refused(format!(
            "there is no configuration file at {}: make one, or name it with --config",
            names.join(" or ")
        ))
    })
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    const ACTION: &str = "read the configuration file";
    let found = fs::metadata(path).at(ACTION, path)?;
    if found.is_file() && is_open_to_others(&found, 0o022) {
        return Err(Error::Refused(format!(
            "others could change {}, which says what is run and kept: chmod go-w it, and let it be yours or \
             root's",
            path.display()
        )));
    }
    if found.len() > LEN_MAX {
        return Err(Error::Refused(format!("{} is too long for a configuration file", path.display())));
    }
    let text = fs::read_to_string(path).at(ACTION, path)?;
    parse(&text).map_err(|(line, why)| match line {
        Some(line) => Error::Refused(format!("{}, line {line}: {why}", path.display())),
        None => Error::Refused(format!("{}: {why}", path.display())),
    })
}

/// What a text says; or in which line what is wrong.
fn parse<T: DeserializeOwned>(text: &str) -> Result<T, (Option<usize>, String)> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map(|before| before.matches('\n').count() + 1);
        (line, unknown_key(error.message()).unwrap_or_else(|| error.message().to_owned()))
    })
}

/// What serde says of a key that nobody knows, with the nearest one instead of them all.
fn unknown_key(message: &str) -> Option<String> {
    let (unknown, known) = message.strip_prefix("unknown field `")?.split_once('`')?;
    let known = known.split('`').skip(1).step_by(2);
    Some(no_such("key", unknown, known))
}

fn no_such(what: &str, name: &str, known: impl Iterator<Item = impl AsRef<str>>) -> String {
    let known: Vec<String> = known.map(|known| known.as_ref().to_owned()).collect();
    let alike = |known: &String| strsim::jaro_winkler(known, name);
    let nearest = known.iter().max_by(|a, b| alike(a).total_cmp(&alike(b)));
    match nearest.filter(|nearest| alike(nearest) >= ALIKE_MIN) {
        Some(nearest) => format!("there is no {what} '{name}': did you mean '{nearest}'?"),
        None if known.is_empty() => format!("there is no {what} '{name}', nor any other"),
        None => format!("there is no {what} '{name}'; there are {}", known.join(", ")),
    }
}

fn refuse_open_secret(path: &Path) -> Result<()> {
    let found = fs::metadata(path).at("read the secret file", path)?;
    match found.is_file() && is_open_to_others(&found, 0o066) {
        true => Err(Error::Refused(format!(
            "others can read {}: make it yours or root's alone with chmod go-rwx",
            path.display()
        ))),
        false => Ok(()),
    }
}

/// Whether anybody but its user and root has one of these permissions. The group of root has no
/// other members, or such as are trusted like root.
fn is_open_to_others(found: &Metadata, permissions: u32) -> bool {
    let of_group = if found.gid() == 0 { 0 } else { 0o070 };
    let is_ours = found.uid() == 0 || found.uid() == geteuid().as_raw();
    !is_ours || found.mode() & permissions & (of_group | 0o007) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> (Option<usize>, String) {
        parse::<Config>(text).unwrap_err()
    }

    #[test]
    fn the_example_is_valid() {
        let config: Config = parse(include_str!("../../dist/varv.toml")).unwrap();
        let profile = config.profile("nightly").unwrap();
        assert!(!profile.sources.is_empty() && profile.retention.as_ref().is_some_and(|r| !r.is_empty()));
        assert!(config.repository(profile).unwrap().is_some());
        assert!(profile.prune.is_some() && profile.check.is_some());
    }

    #[test]
    fn unknown_keys_are_told_with_the_nearest_known_one() {
        for (text, line, nearest) in [
            ("[profiles.a]\nlable = \"x\"", 2, "label"),
            ("[profiles.a]\n\nexclude-cache = true", 3, "exclude-caches"),
            ("[profiles.a.retention]\nkeep-dayly = 7", 2, "keep-daily"),
            ("[repositories.a]\npath = \"/r\"\npasphrase-file = \"/p\"", 3, "passphrase-file"),
            ("[profile.a]", 1, "profiles"),
            ("[profiles.a.check]\nread_data = true", 2, "read-data"),
            ("[[profiles.a.retier]]\nolder-then = \"30D\"", 2, "older-than"),
            ("[profiles.a.retention]\nolder_than = \"1Y\"", 2, "older-than"),
        ] {
            let (found, why) = wrong(text);
            assert_eq!(found, Some(line), "{text}: {why}");
            assert!(why.contains(&format!("did you mean '{nearest}'?")), "{why}");
        }
        assert!(wrong("xyzzy = 1").1.contains("there are"), "{:?}", wrong("xyzzy = 1"));
    }

    #[test]
    fn values_are_checked() {
        for (text, what) in [
            ("[profiles.a]\nsources = [\"home\"]", "absolute"),
            ("[profiles.a]\nfree-blocks = \"map\"", "absolute"),
            ("[profiles.a]\nfrom-command = { name = \"dump\" }", "command"),
            ("[repositories.a]\n", "path"),
            ("[profiles.a.retention]\nkeep-daily = -1", "a number of snapshots"),
            ("[profiles.a.retention]\nkeep-daily = \"some\"", "write 7, or all"),
            ("[profiles.a.retention]\nkeep-within = \"3X\"", "not a length of time"),
            ("[profiles.a.retention]\nolder-than = \"2026-01-01\"", "not a length of time"),
            ("[[profiles.a.retier]]\nto = \"cold\"", "older-than"),
            ("[profiles.a]\nbefore = \"x\"", "sequence"),
            ("[profiles.a", "unclosed table"),
        ] {
            let (line, why) = wrong(text);
            assert!(line.is_some() && why.contains(what), "{text}: {why}");
        }
    }

    #[test]
    fn a_profile_needs_to_say_which_of_several_repositories() {
        let both = "[repositories.a]\npath=\"/a\"\n[repositories.b]\npath=\"/b\"\n[profiles.p]\n";
        let config: Config = parse(both).unwrap();
        assert!(config.repository(config.profile("p").unwrap()).is_err());
        let config: Config = parse(&format!("{both}repository = \"b\"")).unwrap();
        let found = config.repository(config.profile("p").unwrap()).unwrap().unwrap();
        assert_eq!(found.path.0, Path::new("/b"));
        let config: Config = parse(&format!("{both}repository = \"c\"")).unwrap();
        assert!(config.repository(config.profile("p").unwrap()).is_err());
        let config: Config = parse("[profiles.p]").unwrap();
        assert!(config.repository(config.profile("p").unwrap()).unwrap().is_none());
    }
}
