//! `varv index`.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::error::Exit;
use super::global::Global;
use super::signals::STOP;
use super::{Outcome, output};
use crate::repo::Intent;
use crate::text::format_size;

/// Look after the index.
#[derive(Debug, Args)]
pub struct Index {
    #[command(subcommand)]
    command: IndexCommand,
}

#[derive(Debug, Subcommand)]
enum IndexCommand {
    /// Make the index anew from the packs
    Rebuild,
}

/// What `index rebuild --json` prints.
#[derive(Serialize)]
struct Rebuilt {
    packs: u64,
    packs_unreadable: u64,
    chunks: u64,
    bytes: u64,
}

impl Index {
    /// Does what the subcommand says.
    pub fn run(self, global: &Global) -> Outcome {
        match self.command {
            IndexCommand::Rebuild => rebuild(global),
        }
    }
}

fn rebuild(global: &Global) -> Outcome {
    let repo = global.open(Intent::Read)?;
    let observer = global.observer();
    let catalog = repo.rebuild_index(&observer, &STOP)?;
    let counts = catalog.index()?.counts()?;
    let all = repo.list_packs()?.len() as u64;
    catalog.close(&observer)?;
    observer.finish();
    let rebuilt = Rebuilt {
        packs: counts.packs,
        packs_unreadable: all.saturating_sub(counts.packs),
        chunks: counts.chunks,
        bytes: counts.file_bytes,
    };
    match global.json {
        true => output::json(&rebuilt),
        false if global.quiet => {}
        false => output::line(&format!(
            "index      {} packs, {} chunks, {}",
            rebuilt.packs,
            rebuilt.chunks,
            format_size(rebuilt.bytes)
        )),
    }
    Ok(if rebuilt.packs_unreadable == 0 { Exit::Done } else { Exit::Damage })
}
