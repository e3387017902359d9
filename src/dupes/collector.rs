//! Makes groups of classes of equal files.

use std::fs::File as Opened;

use super::class::{Class, Place};
use super::compare::Member;
use super::found::{File, Findings, Name};
use super::heads::WHOLE_MAX;
use super::open::Opener;
use super::sets::Told;
use super::sorter::Sorter;
use super::{Options, Totals, shared};
use crate::error::Result;

/// Collects groups, and files without an equal if they are asked for.
pub struct Collector<'a> {
    options: &'a Options,
    opener: &'a Opener<'a>,
    /// What was found so far.
    pub findings: Findings,
    /// What was counted of it.
    pub totals: Totals,
    sharing: shared::Sharing,
    /// A large class of which more will be told.
    large: Option<Gathered>,
    path: Vec<u8>,
}

/// A class, and one of its files that has holes.
struct Gathered {
    class: Class,
    len: u64,
    sparse: Option<Member>,
}

impl<'a> Collector<'a> {
    /// None yet.
    pub fn new(options: &'a Options, opener: &'a Opener<'a>) -> Self {
        let findings = Findings::new(Sorter::new(&options.temporary));
        let (totals, sharing) = (Totals::default(), shared::Sharing::default());
        Self { options, opener, findings, totals, sharing, large: None, path: Vec::new() }
    }

    /// Takes equal files.
    pub fn take(&mut self, told: Told) -> Result<()> {
        let (members, is_last) = match told {
            Told::Class(members) if members.len() == 1 => {
                return members.iter().try_for_each(|member| self.unique(member));
            }
            Told::Class(members) => {
                let class = self.gather(None, members)?;
                return self.group(class);
            }
            Told::Some(members) => (members, false),
            Told::Last(members) => (members, true),
        };
        let large = self.large.take();
        let class = self.gather(large, members)?;
        if is_last {
            return self.group(class);
        }
        self.large = Some(class);
        Ok(())
    }

    /// Takes a file that has no equal.
    pub fn unique(&mut self, member: &Member) -> Result<()> {
        if !self.options.unique {
            return Ok(());
        }
        self.totals.unique += 1;
        let file = self.file(member);
        self.findings.add_unique(&file)
    }

    fn gather(&mut self, to: Option<Gathered>, members: Vec<Member>) -> Result<Gathered> {
        let len = members.first().map_or(0, |member| member.inode.len);
        let class = || Gathered { class: Class::new(&self.options.temporary), len, sparse: None };
        let mut gathered = to.unwrap_or_else(class);
        for member in members {
            let (file, place) = (self.file(&member), self.place(&member));
            gathered.class.add(&file, place)?;
            if member.inode.is_sparse && len > WHOLE_MAX {
                gathered.sparse.get_or_insert(member);
            }
        }
        Ok(gathered)
    }

    fn group(&mut self, Gathered { class, len, sparse }: Gathered) -> Result<()> {
        if class.count() < 2 || !self.is_wanted(&class) {
            return Ok(());
        }
        let sparse = sparse.and_then(|member| open(self.opener, &member));
        let data = sparse.map_or(len, |file| shared::data_len(&file, len));
        let group = self.findings.add((len, data), false, &class.finish()?)?;
        self.totals.groups += 1;
        self.totals.redundant += group.files - 1;
        self.totals.wasted = self.totals.wasted.saturating_add(group.wasted);
        Ok(())
    }

    fn is_wanted(&self, class: &Class) -> bool {
        let roots = class.roots();
        let is_reference =
            |root: &u32| self.opener.roots.get(*root as usize).is_some_and(|root| root.is_reference);
        let has_both = || roots.iter().any(is_reference) && !roots.iter().all(is_reference);
        (!self.options.isolate || roots.len() > 1) && (self.options.references.is_empty() || has_both())
    }

    fn file(&mut self, member: &Member) -> File {
        let names = member.names.iter().map(|(dir, name)| {
            let root = self.opener.below(*dir, name, &mut self.path);
            Name { root, path: self.path.clone() }
        });
        let mut names: Vec<Name> = names.collect();
        names.sort_unstable();
        File { inode: member.inode, copy: 0, names }
    }

    fn place(&mut self, member: &Member) -> Option<Place> {
        let opener = self.opener;
        let opened = || open(opener, member);
        let device = member.inode.device;
        let file = self.sharing.is_possible(device, opened).then(opened).flatten()?;
        shared::places(&file).map(|digest| (device, digest))
    }
}

fn open(opener: &Opener, member: &Member) -> Option<Opened> {
    let (dir, name) = member.names.first()?;
    opener.open(*dir, name, &mut Vec::new()).ok()
}
