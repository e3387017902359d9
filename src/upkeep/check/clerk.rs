//! Writes down which packs were read and found good.

use std::collections::HashSet;

use jiff::Timestamp;

use super::findings::{Findings, reason};
use super::if_writable;
use super::packs::Listed;
use super::part::seconds;
use crate::error::Result;
use crate::format::ledger::Ledger;
use crate::id::PackId;
use crate::repo::{Repo, cannot_write};

/// Keeps the ledger.
pub struct Clerk<'a> {
    repo: &'a Repo,
    ledger: Ledger,
    can_write: bool,
}

impl<'a> Clerk<'a> {
    /// Reads the ledger. Where it is damaged, packs are due again, and nothing else is lost.
    pub fn new(repo: &'a Repo, findings: &mut Findings) -> Result<Self> {
        let before = repo.remembered::<Ledger>()?;
        for (name, error) in &before.damaged {
            let why = format!("{}; the packs that it told of are due to be read", reason(error));
            findings.add(name, why);
        }
        if repo.is_locked() && !before.damaged.is_empty() {
            if_writable(repo.forget_damaged(&before))?;
        }
        Ok(Self { repo, ledger: before.value, can_write: repo.is_locked() })
    }

    /// What it knew at the start.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Adds good packs and takes bad ones out; of packs that are gone, nothing is kept.
    pub fn write<'p>(
        &mut self,
        good: impl Iterator<Item = &'p PackId>,
        bad: &HashSet<PackId>,
        all: &[Listed],
        now: Timestamp,
        findings: &mut Findings,
    ) -> Result<()> {
        let mut good = good.peekable();
        if !self.can_write || (good.peek().is_none() && bad.is_empty()) {
            return Ok(());
        }
        // Others may have written meanwhile.
        let before = self.repo.remembered::<Ledger>()?;
        let mut ledger = before.value.clone();
        let heads: HashSet<[u8; 8]> =
            all.iter().filter_map(|pack| pack.id.0.first_chunk().copied()).collect();
        ledger.retain(|head| heads.contains(head));
        good.for_each(|id| ledger.insert(id, seconds(now)));
        bad.iter().for_each(|id| ledger.remove(id));
        match self.repo.remember(&ledger, &before) {
            Err(error) if cannot_write(&error) => {
                self.can_write = false;
                findings.note(format!("what was read is not written down: {error}"));
                Ok(())
            }
            done => done,
        }
    }
}
