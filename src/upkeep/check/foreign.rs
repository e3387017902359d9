//! What lies in the repository's folder and is no object: noted, never touched. What has an object's name and is
//! no file is damage: something was there.

use std::fs::{self, FileType};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::findings::Findings;
use crate::id::SnapshotId;
use crate::repo::{Repo, layout};
use crate::store::UNFINISHED;
use crate::text::escape;

/// Foreign files that are named; beyond that they are counted.
const NAMED_MAX: usize = 20;
/// Where processes lock.
const LOCKS: &str = "locks";
/// What file systems put into their root.
const LOST_AND_FOUND: &str = "lost+found";

/// Notes foreign files and unfinished objects.
pub fn note(repo: &Repo, findings: &mut Findings) {
    let mut found = Found::default();
    look(repo.root(), &mut Vec::new(), &mut found);
    let Found { mut foreign, replaced } = found;
    for name in &replaced {
        findings.add(name, "it is not a file, though it has the name of an object".into());
    }
    foreign.sort_unstable();
    for name in foreign.iter().take(NAMED_MAX) {
        findings.note(format!("{name} is not of varv's making; it is left alone"));
    }
    if foreign.len() > NAMED_MAX {
        findings.note(format!("{} more files are not of varv's making", foreign.len() - NAMED_MAX));
    }
    let unfinished = fs::read_dir(repo.root().join(UNFINISHED)).map_or(0, Iterator::count);
    if unfinished > 0 {
        findings.note(format!("{unfinished} unfinished object(s) of runs that go on or were interrupted"));
    }
}

#[derive(Default)]
struct Found {
    foreign: Vec<String>,
    /// No files, where objects should be.
    replaced: Vec<String>,
}

/// What must not be where it is; a folder that cannot be listed has been complained of before.
fn look(folder: &Path, above: &mut Vec<String>, found: &mut Found) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let file_type = entry.file_type();
        let is_folder = file_type.as_ref().is_ok_and(FileType::is_dir);
        above.push(escape(entry.file_name().as_bytes()));
        let parts: Vec<&str> = above.iter().map(String::as_str).collect();
        match kind_of(&parts, is_folder) {
            _ if is_object(&parts) && file_type.is_ok_and(|kind| !kind.is_file()) => {
                found.replaced.push(above.join("/"));
            }
            Kind::Ours => {}
            Kind::Folder => look(&entry.path(), above, found),
            Kind::Foreign => found.foreign.push(above.join("/")),
        }
        above.pop();
    }
}

enum Kind {
    Ours,
    Folder,
    Foreign,
}

fn is_object(parts: &[&str]) -> bool {
    match parts {
        [layout::PACKS, _, _] => layout::pack_id(&parts.join("/")).is_some(),
        [layout::SNAPSHOTS | layout::FORGOTTEN, name] => SnapshotId::from_hex(name).is_some(),
        _ => false,
    }
}

fn kind_of(parts: &[&str], is_folder: bool) -> Kind {
    let ours = |yes| if yes { Kind::Ours } else { Kind::Foreign };
    match (parts, is_folder) {
        ([name], false) => ours(layout::CONFIGS.contains(name)),
        ([LOCKS | UNFINISHED | LOST_AND_FOUND | layout::STATE | layout::DAMAGED], true) => Kind::Ours,
        ([layout::PACKS | layout::SNAPSHOTS | layout::FORGOTTEN | layout::INDEX], true) => Kind::Folder,
        ([layout::PACKS, shard], true) if shard.len() == 2 => Kind::Folder,
        ([layout::PACKS, _, _] | [layout::SNAPSHOTS | layout::FORGOTTEN, _], false) => ours(is_object(parts)),
        ([layout::INDEX, name], false) => {
            ours(name.starts_with(layout::INDEX_FILE) || *name == layout::INDEX_TURN)
        }
        _ => Kind::Foreign,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_files_are_found_wherever_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let hex = "ab".repeat(32);
        for name in ["packs/ab", "packs/other", "snapshots", "index", "locks", "tmp", "lost+found", "mine"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        let ours = ["config", "config.copy", "index/index.sqlite-wal", "locks/x", "tmp/x"];
        let packs = [format!("packs/ab/{hex}"), format!("snapshots/{hex}")];
        for name in ours.iter().copied().chain(packs.iter().map(String::as_str)) {
            fs::write(root.join(name), b"").unwrap();
        }
        for name in ["config.bak", "packs/ab/x", "snapshots/note.txt", "packs/x"] {
            fs::write(root.join(name), b"").unwrap();
        }
        let replaced = format!("snapshots/{}", "cd".repeat(32));
        std::os::unix::fs::symlink("nowhere", root.join(&replaced)).unwrap();
        let mut found = Found::default();
        look(root, &mut Vec::new(), &mut found);
        assert_eq!(found.replaced, [replaced]);
        let mut foreign = found.foreign;
        foreign.sort();
        let expected = ["config.bak", "mine", "packs/ab/x", "packs/other", "packs/x", "snapshots/note.txt"];
        assert_eq!(foreign, expected);
    }
}
