//! `varv key`: the ways to open a repository.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;

use super::error::Exit;
use super::global::Global;
use super::init::{ask_twice, make_key_file};
use super::secret::passphrase_from_file;
use super::{Outcome, output};
use crate::error::{Error, Result};
use crate::format::config::{Config, Slot, SlotKind};
use crate::repo::keys::{Secret, recovery_code};
use crate::repo::{Intent, Repo, slots};
use crate::text::format_size;

/// Show and change what opens the repository.
#[derive(Debug, Args)]
pub struct Key {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// List the slots: each is one passphrase or key file that opens the repository
    List,
    /// Let another passphrase or key file open the repository too
    Add(Add),
    /// Replace a passphrase or key file by another
    Change(Change),
    /// Let a passphrase or key file open the repository no more
    ///
    /// Who has kept a copy of the repository's config from before can still open it with what
    /// was removed: where a secret has become known, make a new repository.
    Remove(Remove),
    /// Print the code that opens the repository when all passphrases and key files are lost
    Export,
}

#[derive(Debug, Args)]
struct Add {
    /// What the new slot is called; passphrase or key-file if not given
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    new: NewSecret,
}

#[derive(Debug, Args)]
struct Change {
    /// The slot; if not given, the one that opens the repository now
    name: Option<String>,
    #[command(flatten)]
    new: NewSecret,
}

#[derive(Debug, Args)]
struct Remove {
    /// The slot
    name: String,
}

/// Where a new passphrase or key file comes from; the terminal is asked if nothing is given.
#[derive(Debug, Args)]
struct NewSecret {
    /// Read the new passphrase from the first line of a file
    #[arg(long, value_name = "F", conflicts_with = "new_key_file")]
    new_passphrase_file: Option<PathBuf>,
    /// Use this key file; it is made if it does not exist
    #[arg(long, value_name = "F")]
    new_key_file: Option<PathBuf>,
}

impl Key {
    /// Does what the subcommand says.
    pub fn run(self, global: &Global) -> Outcome {
        match self.command {
            KeyCommand::List => list(&global.open(Intent::Read)?, global),
            KeyCommand::Add(command) => command.run(global)?,
            KeyCommand::Change(command) => command.run(global)?,
            KeyCommand::Remove(command) => command.run(global)?,
            KeyCommand::Export => export(&global.open(Intent::Read)?, global)?,
        }
        Ok(Exit::Done)
    }
}

impl Add {
    fn run(self, global: &Global) -> Result<()> {
        let name = |config: &Config| {
            self.name.clone().unwrap_or_else(|| slots::free_name(config, self.new.default_name()))
        };
        let (mut repo, secret) =
            self.new.read(global, |repo| slots::check_add(repo.config(), &name(repo.config())))?;
        let name = name(repo.config());
        repo.add_slot(&name, &secret)?;
        report(&repo, global, &format!("added slot '{name}': {}", said(&repo, &name)));
        Ok(())
    }
}

impl Change {
    fn run(self, global: &Global) -> Result<()> {
        let (mut repo, secret) =
            self.new.read(global, |repo| slots::check_replace(repo.config(), &self.slot(repo)?))?;
        let name = self.slot(&repo)?;
        repo.replace_slot(&name, &secret)?;
        report(&repo, global, &format!("changed slot '{name}': {}", said(&repo, &name)));
        Ok(())
    }

    fn slot(&self, repo: &Repo) -> Result<String> {
        match (&self.name, used(repo)) {
            (Some(name), _) => Ok(name.clone()),
            (None, Some(slot)) => Ok(slot.name.clone()),
            (None, None) => Err(Error::Refused(
                "a recovery code opened the repository: name the slot that is to be changed".into(),
            )),
        }
    }
}

impl Remove {
    fn run(self, global: &Global) -> Result<()> {
        let mut repo = global.open(Intent::Change)?;
        repo.remove_slot(&self.name)?;
        report(&repo, global, &format!("removed slot '{}'; {} left", self.name, repo.config().slots.len()));
        Ok(())
    }
}

impl NewSecret {
    fn default_name(&self) -> &'static str {
        if self.new_key_file.is_some() { "key-file" } else { "passphrase" }
    }

    /// The new secret, and the repository under the exclusive lock. It is looked at before under
    /// the shared one: nobody has to wait, and nothing is refused, after a passphrase was typed. A key file
    /// is made only when the lock shows that the repository can be written.
    fn read(&self, global: &Global, check: impl Fn(&Repo) -> Result<()>) -> Result<(Repo, Secret)> {
        let opener = global.secret.read(global.repository()?)?;
        check(&global.open_with(opener.as_ref(), Intent::Read)?)?;
        let Some(path) = &self.new_key_file else {
            let secret = self.passphrase()?;
            return Ok((global.open_with(opener.as_ref(), Intent::Change)?, secret));
        };
        let repo = global.open_with(opener.as_ref(), Intent::Change)?;
        make_key_file(path)?;
        Ok((repo, Secret::from_key_file(path)?))
    }

    fn passphrase(&self) -> Result<Secret> {
        let text = match &self.new_passphrase_file {
            Some(path) => passphrase_from_file(path).map_err(as_refused)?,
            None if std::io::stdin().is_terminal() => ask_twice()?,
            None => {
                return Err(Error::Refused(
                    "there is no terminal to ask on: give --new-passphrase-file or --new-key-file".into(),
                ));
            }
        };
        if text.is_empty() {
            return Err(Error::Refused("an empty passphrase protects nothing".into()));
        }
        Ok(Secret::Passphrase(text))
    }
}

/// An unusable new passphrase is no wrong key.
fn as_refused(error: Error) -> Error {
    match error {
        Error::WrongKey(why) => Error::Refused(why),
        other => other,
    }
}

/// The slot that opened the repository; `None` after a recovery code.
fn used(repo: &Repo) -> Option<&Slot> {
    repo.config().slots.iter().find(|slot| slot.name == repo.slot())
}

fn said(repo: &Repo, name: &str) -> &'static str {
    repo.config().slots.iter().find(|slot| slot.name == name).map_or("", |slot| kind(&slot.kind))
}

fn report(repo: &Repo, global: &Global, done: &str) {
    match global.json {
        true => list(repo, global),
        false if !global.quiet => output::line(done),
        false => {}
    }
}

/// What `key list --json` prints of a slot.
#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    kind: &'static str,
    created: &'a str,
    memory_kib: Option<u32>,
    passes: Option<u32>,
    lanes: Option<u32>,
    used: bool,
}

impl<'a> Row<'a> {
    fn new(slot: &'a Slot, used: bool) -> Self {
        let (memory_kib, passes, lanes) = match slot.kind {
            SlotKind::Passphrase { memory_kib, passes, lanes, .. } => {
                (Some(memory_kib), Some(passes), Some(lanes))
            }
            SlotKind::KeyFile { .. } | SlotKind::Open => (None, None, None),
        };
        Self {
            name: &slot.name,
            kind: kind(&slot.kind),
            created: &slot.created,
            memory_kib,
            passes,
            lanes,
            used,
        }
    }
}

fn kind(kind: &SlotKind) -> &'static str {
    match kind {
        SlotKind::Passphrase { .. } => "passphrase",
        SlotKind::KeyFile { .. } => "key-file",
        SlotKind::Open => "open",
    }
}

fn list(repo: &Repo, global: &Global) {
    let row = |slot| Row::new(slot, slot.name == repo.slot());
    let rows: Vec<Row> = repo.config().slots.iter().map(row).collect();
    if global.json {
        return output::json(&rows);
    }
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    for row in &rows {
        table_line(row, width);
    }
    if used(repo).is_none() {
        output::line("opened with the recovery code");
    }
}

fn table_line(row: &Row, width: usize) {
    let parameters = match (row.memory_kib, row.passes, row.lanes) {
        (Some(memory), Some(passes), Some(lanes)) => {
            let memory = format_size(u64::from(memory) << 10);
            format!("Argon2id {memory}, passes {passes}, lanes {lanes}  ")
        }
        _ => String::new(),
    };
    let opened = if row.used { "opened with this" } else { "" };
    let text = format!("{:width$}  {:10}  {}  {parameters}{opened}", row.name, row.kind, local(row.created));
    output::line(text.trim_end());
}

/// A time from the configuration, in this machine's zone; as it stands if it is none.
fn local(text: &str) -> String {
    match text.parse::<Timestamp>() {
        Ok(time) => output::time(time, TimeZone::system().to_offset(time).seconds()),
        Err(_) => text.to_string(),
    }
}

/// What `key export --json` prints.
#[derive(Serialize)]
struct Exported<'a> {
    repository_id: &'a str,
    recovery_code: &'a str,
}

fn export(repo: &Repo, global: &Global) -> Result<()> {
    if !repo.config().encrypted {
        return Err(Error::Refused("the repository is not encrypted: it opens without any code".into()));
    }
    let code = recovery_code(repo.keys().master());
    if global.json {
        output::json(&Exported { repository_id: &repo.config().id, recovery_code: &code });
        return Ok(());
    }
    output::line(&code);
    if !global.quiet {
        how_to_use(repo);
    }
    Ok(())
}

fn how_to_use(repo: &Repo) {
    output::line(&format!(
        "\nThis code opens repository {} without a passphrase or key file:\n\n    \
         varv -r {} --recovery-code CODE snapshots\n\n\
         Write it down, keep it where neither fire nor thief finds both it and the repository. Upper and\n\
         lower case, hyphens and spaces do not matter; the last character of each group finds mistakes.\n\
         Whoever has it can read all backups, and it stays valid whatever slots are changed or removed.",
        &repo.config().id[..8],
        repo.root().display()
    ));
}
