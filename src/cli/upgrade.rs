//! `varv upgrade`.

use clap::Args;
use serde::Serialize;

use super::error::Exit;
use super::global::Global;
use super::{Outcome, output};
use crate::format::FORMAT;
use crate::repo::Intent;

/// Bring the repository to the newest format that this version knows.
///
/// Nothing else ever changes a repository's format. There is one format so far, so there is
/// nothing to do.
#[derive(Debug, Args)]
pub struct Upgrade {}

/// What `upgrade --json` prints.
#[derive(Serialize)]
struct Upgraded {
    format: u16,
    upgraded: bool,
}

impl Upgrade {
    /// Opens the repository, which refuses formats that are not known, and says which it has.
    pub fn run(self, global: &Global) -> Outcome {
        global.open(Intent::Read)?;
        if global.json {
            output::json(&Upgraded { format: FORMAT, upgraded: false });
        } else if !global.quiet {
            output::line(&format!("format {FORMAT} is the newest that this version knows: nothing to do"));
        }
        Ok(Exit::Done)
    }
}
