//! `varv locks`.

use clap::Args;
use serde::Serialize;

use super::error::Exit;
use super::global::Global;
use super::{Outcome, output};
use crate::error::Error;
use crate::repo::lock::{Holder, mode_for, occupants};
use crate::repo::{layout, read_config_copy};
use crate::store::LocalStore;

/// Show who is in the repository: host, process, command, since when.
///
/// Needs no passphrase and takes no lock. What processes left that died is removed, and said.
#[derive(Debug, Args)]
pub struct Locks {}

/// A holder in JSON.
#[derive(Serialize)]
struct Row<'a> {
    host: &'a str,
    process: u32,
    command: &'a str,
    since: String,
    exclusive: bool,
    dead: bool,
}

impl<'a> Row<'a> {
    fn new(holder: &'a Holder, dead: bool) -> Self {
        Self {
            host: &holder.host,
            process: holder.pid,
            command: &holder.command,
            since: holder.since.to_string(),
            exclusive: holder.exclusive,
            dead,
        }
    }
}

impl Locks {
    /// Lists them.
    pub fn run(&self, global: &Global) -> Outcome {
        let root = global.repository()?;
        let store = LocalStore::open(root)?;
        if layout::CONFIGS
            .iter()
            .all(|name| matches!(read_config_copy(&store, name), Err(Error::Missing { .. })))
        {
            return Err(Error::NoRepository {
                path: root.to_path_buf(),
                why: "it has no configuration".into(),
            });
        }
        let found = occupants(root, mode_for(root)?)?;
        let living = found.living.iter().map(|holder| Row::new(holder, false));
        let dead = found.dead.iter().map(|holder| Row::new(holder, true));
        if global.json {
            output::json(&living.chain(dead).collect::<Vec<_>>());
            return Ok(Exit::Done);
        }
        for holder in &found.living {
            let kind = if holder.exclusive { "exclusive" } else { "shared   " };
            output::line(&format!("{kind}  {}", holder.describe()));
        }
        for holder in &found.dead {
            output::line(&format!("dead       {}; its lock was removed", holder.describe()));
        }
        if found.living.is_empty() && !global.quiet {
            output::line("nobody is in the repository");
        }
        Ok(Exit::Done)
    }
}
