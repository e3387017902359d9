//! Where the passphrase, key file or recovery code comes from.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use zeroize::Zeroizing;

use crate::error::{Error, IoContext, Result};
use crate::format::config::SlotKind;
use crate::repo::keys::{Secret, parse_recovery_code};
use crate::repo::{layout, read_config_copy};
use crate::store::LocalStore;

/// What opens the repository.
#[derive(Debug, Clone, Default, Args)]
pub struct SecretOptions {
    /// Read the passphrase from the first line of a file
    #[arg(long, global = true, value_name = "F", env = "VARV_PASSPHRASE_FILE", help_heading = "Global")]
    pub passphrase_file: Option<PathBuf>,
    /// Read the passphrase from what a command prints
    #[arg(long, global = true, value_name = "C", env = "VARV_PASSPHRASE_COMMAND", help_heading = "Global")]
    pub passphrase_command: Option<String>,
    /// Open the repository with a key file
    #[arg(long, global = true, value_name = "F", env = "VARV_KEY_FILE", help_heading = "Global")]
    pub key_file: Option<PathBuf>,
    /// Open the repository with the code that `key export` printed
    #[arg(long, global = true, value_name = "C", help_heading = "Global")]
    pub recovery_code: Option<String>,
}

impl SecretOptions {
    /// Where an option was typed, it is meant: the environment has none of the others then.
    pub fn prefer_typed(&mut self, matches: &ArgMatches) {
        let is_typed = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let [file, command, key_file, code] =
            ["passphrase_file", "passphrase_command", "key_file", "recovery_code"].map(is_typed);
        if file || command || key_file || code {
            self.passphrase_file.take_if(|_| !file);
            self.passphrase_command.take_if(|_| !command);
            self.key_file.take_if(|_| !key_file);
        }
    }

    /// What was given; asks on a terminal if nothing was and the repository wants a passphrase.
    pub fn read(&self, root: &Path) -> Result<Option<Secret>> {
        if let Some(code) = &self.recovery_code {
            return parse_recovery_code(code).map(Some);
        }
        if let Some(path) = &self.key_file {
            return Secret::from_key_file(path).map(Some);
        }
        match self.passphrase()? {
            Some(text) => Ok(Some(Secret::Passphrase(text))),
            None if wants_passphrase(root) && std::io::stdin().is_terminal() => {
                ask(&format!("Passphrase of {}: ", root.display())).map(|text| Some(Secret::Passphrase(text)))
            }
            None => Ok(None),
        }
    }

    /// A passphrase from the options or the environment.
    pub fn passphrase(&self) -> Result<Option<Zeroizing<String>>> {
        if let Some(path) = &self.passphrase_file {
            return passphrase_from_file(path).map(Some);
        }
        if let Some(command) = &self.passphrase_command {
            return passphrase_from_command(command).map(Some);
        }
        match std::env::var("VARV_PASSPHRASE") {
            Ok(text) => Ok(Some(Zeroizing::new(text))),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => {
                Err(Error::Refused("VARV_PASSPHRASE is not UTF-8".into()))
            }
        }
    }
}

/// The first line of a file.
pub fn passphrase_from_file(path: &Path) -> Result<Zeroizing<String>> {
    let text = Zeroizing::new(fs::read_to_string(path).at("read the passphrase file", path)?);
    first_line(&text, &path.display().to_string())
}

fn passphrase_from_command(command: &str) -> Result<Zeroizing<String>> {
    let output = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::inherit())
        .stderr(Stdio::inherit())
        .output()
        .at("run the passphrase command", "/bin/sh")?;
    if !output.status.success() {
        return Err(Error::WrongKey(format!("the passphrase command failed ({})", output.status)));
    }
    let text = Zeroizing::new(String::from_utf8_lossy(&output.stdout).into_owned());
    first_line(&text, "what the passphrase command printed")
}

fn first_line(text: &str, whose: &str) -> Result<Zeroizing<String>> {
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(Zeroizing::new(line.to_string())),
        _ => Err(Error::WrongKey(format!("the first line of {whose} is empty"))),
    }
}

/// Asks for a passphrase on the terminal.
pub fn ask(prompt: &str) -> Result<Zeroizing<String>> {
    let text = rpassword::prompt_password(prompt).at("read the passphrase from", "the terminal")?;
    Ok(Zeroizing::new(text))
}

fn wants_passphrase(root: &Path) -> bool {
    let config = LocalStore::open(root)
        .ok()
        .and_then(|store| layout::CONFIGS.iter().find_map(|name| read_config_copy(&store, name).ok()));
    config.is_some_and(|signed| {
        signed.config.slots.iter().any(|slot| matches!(slot.kind, SlotKind::Passphrase { .. }))
    })
}
