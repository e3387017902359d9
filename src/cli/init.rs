//! `varv init`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::Outcome;
use super::error::Exit;
use super::global::Global;
use super::output;
use super::secret::ask;
use crate::chunker::{DEFAULT, Params};
use crate::error::{Error, IoContext, Result};
use crate::format::config::{Config, Tier};
use crate::repo::keys::{Secret, new_key_file};
use crate::repo::{CreateOptions, Repo};

/// How a repository is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Encryption {
    /// With a passphrase
    Passphrase,
    /// With the file that --key-file names; it is made if it does not exist
    KeyFile,
    /// Not at all: whoever can read the repository can read everything in it
    None,
}

/// Make a repository.
#[derive(Debug, Args)]
pub struct Init {
    #[command(flatten)]
    options: InitOptions,
}

/// How a repository is made; also for `backup --init`.
#[derive(Debug, Args)]
pub struct InitOptions {
    /// How the repository is protected; a passphrase in the environment selects passphrase
    #[arg(long, value_enum)]
    encryption: Option<Encryption>,
    /// How files and volumes are cut: fastcdc:MIN,AVERAGE,MAX or fixed:SIZE
    #[arg(long, value_name = "CHUNKER", default_value = DEFAULT, value_parser = Params::parse)]
    chunker: Params,
    /// The zstd level of a tier, such as cold=14
    #[arg(long, value_name = "TIER=LEVEL", value_parser = tier_level)]
    tier_level: Vec<(Tier, i8)>,
}

impl Init {
    /// Makes the repository that was named.
    pub fn run(&self, global: &Global) -> Outcome {
        let config = self.options.create(global)?;
        if global.json {
            output::json(&Created::new(global.repository()?, &config));
        }
        Ok(Exit::Done)
    }
}

#[derive(Serialize)]
struct Created<'a> {
    repository: String,
    repository_id: &'a str,
    encrypted: bool,
    chunker: &'a str,
}

impl<'a> Created<'a> {
    fn new(root: &Path, config: &'a Config) -> Self {
        Self {
            repository: root.display().to_string(),
            repository_id: &config.id,
            encrypted: config.encrypted,
            chunker: &config.chunker,
        }
    }
}

impl InitOptions {
    /// Makes the repository.
    pub fn create(&self, global: &Global) -> Result<Config> {
        let root = global.repository()?;
        let encryption = self.encryption(global)?;
        let secret = match encryption {
            Encryption::None => None,
            Encryption::Passphrase => Some(new_passphrase(global)?),
            Encryption::KeyFile => Some(key_file(global)?),
        };
        let slot = match encryption {
            Encryption::None => "open",
            Encryption::Passphrase => "passphrase",
            Encryption::KeyFile => "key-file",
        };
        let config = Repo::create(
            root,
            CreateOptions {
                secret,
                slot: slot.into(),
                chunker: self.chunker,
                tiers: self.tier_level.iter().copied().collect::<BTreeMap<_, _>>(),
            },
        )?;
        if !global.quiet && !global.json {
            self.report(root, encryption, &config, global);
        }
        Ok(config)
    }

    fn report(&self, root: &Path, encryption: Encryption, config: &Config, global: &Global) {
        output::line(&format!("made repository {} at {}", &config.id[..8], root.display()));
        let advice = match encryption {
            Encryption::None => "it is not encrypted: whoever can read it can read all backups".to_string(),
            Encryption::Passphrase => {
                "without the passphrase, or a code from varv key export, nothing can be restored".to_string()
            }
            Encryption::KeyFile => format!(
                "without {} nothing can be restored: keep a copy of it somewhere else",
                global.secret.key_file.as_deref().unwrap_or(Path::new("the key file")).display()
            ),
        };
        output::line(&advice);
    }

    fn encryption(&self, global: &Global) -> Result<Encryption> {
        let has_passphrase = std::env::var_os("VARV_PASSPHRASE").is_some()
            || global.secret.passphrase_file.is_some()
            || global.secret.passphrase_command.is_some();
        match self.encryption {
            Some(chosen) => Ok(chosen),
            None if has_passphrase => Ok(Encryption::Passphrase),
            None if global.secret.key_file.is_some() => Ok(Encryption::KeyFile),
            None => Err(Error::Refused(
                "choose how the repository is protected: --encryption passphrase, key-file or none".into(),
            )),
        }
    }
}

fn tier_level(text: &str) -> Result<(Tier, i8), String> {
    let wrong = || format!("'{text}' is not TIER=LEVEL with hot, warm, cold or archive and 1 to 22");
    let (tier, level) = text.split_once('=').ok_or_else(wrong)?;
    let tier = Tier::from_name(tier).filter(|tier| *tier != Tier::Store).ok_or_else(wrong)?;
    let level = level.parse().ok().filter(|level| (1..=22).contains(level)).ok_or_else(wrong)?;
    Ok((tier, level))
}

/// A passphrase for a new slot: as given, or asked for twice.
fn new_passphrase(global: &Global) -> Result<Secret> {
    let text = match global.secret.passphrase()? {
        Some(text) => text,
        None if std::io::stdin().is_terminal() => ask_twice()?,
        None => {
            return Err(Error::Refused(
                "no passphrase is given: set VARV_PASSPHRASE, or use --passphrase-file or --passphrase-command"
                    .into(),
            ));
        }
    };
    if text.is_empty() {
        return Err(Error::Refused("an empty passphrase protects nothing: use --encryption none".into()));
    }
    Ok(Secret::Passphrase(text))
}

/// A new passphrase, asked for twice.
pub fn ask_twice() -> Result<zeroize::Zeroizing<String>> {
    let text = ask("New passphrase: ")?;
    if *ask("The same again: ")? != *text {
        return Err(Error::Refused("the two passphrases differ".into()));
    }
    Ok(text)
}

fn key_file(global: &Global) -> Result<Secret> {
    let path = global.secret.key_file.as_deref().ok_or_else(|| {
        Error::Refused(
            "--encryption key-file needs --key-file PATH; the file is made if it does not exist".into(),
        )
    })?;
    make_key_file(path)?;
    Secret::from_key_file(path)
}

/// Makes a key file, unless there is one.
pub fn make_key_file(path: &Path) -> Result<()> {
    let opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = match opened {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        other => other.at("make the key file", path)?,
    };
    file.write_all(new_key_file()?.as_bytes()).at("write the key file", path)?;
    file.sync_all().at("write the key file", path)
}
