//! Which volumes are meant by `VG/LV`, `VG`, a pattern or `@TAG`.

use globset::{GlobBuilder, GlobMatcher};

use super::report::{Kind, Lv};
use super::snapshot::is_marked;
use super::{Number, file_system};
use crate::error::{Error, Result};
use crate::target::is_swap;

/// The volumes that were meant.
#[derive(Debug, Default)]
pub struct Selected {
    /// To be backed up, each once, in the order of their paths.
    pub volumes: Vec<Lv>,
    /// What was passed over although it was meant, and why.
    pub notices: Vec<String>,
}

/// What one word means.
enum Word {
    Tag(String),
    Pattern(GlobMatcher),
    Group(String),
    Volume(String),
}

/// Finds the volumes that `words` mean among all. Those on `reserved` devices are refused if they
/// are named, and passed over otherwise.
pub fn select(all: &[Lv], words: &[String], reserved: &[Number]) -> Result<Selected> {
    let mut selected = Selected::default();
    for text in words {
        let word = Word::parse(text)?;
        let mut found = false;
        for volume in all.iter().filter(|volume| word.means(volume)) {
            found = true;
            let obstacle = obstacle(volume).or_else(|| {
                let is_reserved = volume.number.is_some_and(|number| reserved.contains(&number));
                is_reserved.then(|| "the repository or its index is on it".to_string())
            });
            match (obstacle, &word) {
                (Some(why), Word::Volume(_)) => {
                    return Err(Error::Refused(format!("{text} cannot be backed up: {why}")));
                }
                (Some(why), _) if volume.kind != Kind::Hidden && !is_marked(volume) => {
                    selected.notices.push(format!("{}: left out, {why}", volume.path()));
                }
                (Some(_), _) => {}
                (None, Word::Volume(_)) => selected.volumes.push(volume.clone()),
                (None, _) if volume.is_snapshot => {}
                (None, _)
                    if is_swap(&volume.device) || file_system(&volume.device).as_deref() == Some("swap") =>
                {
                    selected.notices.push(format!("{}: left out, it is swap", volume.path()));
                }
                (None, _) => selected.volumes.push(volume.clone()),
            }
        }
        if !found {
            return Err(Error::NotFound(format!("there is no logical volume '{text}' (lvs lists them)")));
        }
    }
    selected.volumes.sort_by(|a, b| (&a.group, &a.name).cmp(&(&b.group, &b.name)));
    selected.volumes.dedup_by(|a, b| a.uuid == b.uuid);
    match selected.volumes.is_empty() {
        true => Err(Error::Refused(format!("no volume is left to back up; {}", selected.notices.join("; ")))),
        false => Ok(selected),
    }
}

/// Why a volume cannot be backed up by a snapshot of it.
fn obstacle(volume: &Lv) -> Option<String> {
    let is_classic_snapshot = volume.kind == Kind::Thick && volume.is_snapshot;
    match volume.kind {
        Kind::Pool => Some("it is a pool, name its volumes".into()),
        Kind::Hidden => Some("it is a part of another volume".into()),
        _ if is_marked(volume) => Some("it is a snapshot that varv keeps".into()),
        _ if is_classic_snapshot => {
            Some("it is a snapshot; back up what it is of, or its device by varv backup".into())
        }
        _ => None,
    }
}

impl Word {
    fn parse(text: &str) -> Result<Self> {
        let text = text.strip_prefix("/dev/").unwrap_or(text);
        if let Some(tag) = text.strip_prefix('@') {
            return Ok(Word::Tag(tag.to_string()));
        }
        if text.contains(['*', '?', '[', '{']) {
            let pattern = if text.contains('/') { text.to_string() } else { format!("{text}/*") };
            let glob = GlobBuilder::new(&pattern).literal_separator(true).build();
            let glob = glob.map_err(|e| Error::Refused(format!("'{text}' is no pattern: {e}")))?;
            return Ok(Word::Pattern(glob.compile_matcher()));
        }
        Ok(match text.contains('/') {
            true => Word::Volume(text.to_string()),
            false => Word::Group(text.to_string()),
        })
    }

    fn means(&self, volume: &Lv) -> bool {
        match self {
            Word::Tag(tag) => volume.tags.contains(tag) || volume.group_tags.contains(tag),
            Word::Pattern(glob) => glob.is_match(volume.path()),
            Word::Group(group) => volume.group == *group,
            Word::Volume(path) => volume.path() == *path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvm::report::testing::lv;

    fn all() -> Vec<Lv> {
        let mut pool = lv("vg/pool");
        pool.kind = Kind::Pool;
        let mut hidden = lv("vg/pool_tdata");
        hidden.kind = Kind::Hidden;
        let mut snapshot = lv("vg/old");
        snapshot.is_snapshot = true;
        let mut ours = lv("vg/varv_root_1");
        (ours.is_snapshot, ours.tags) = (true, vec!["varv".into()]);
        let mut tagged = lv("data/db");
        tagged.tags = vec!["nightly".into()];
        let mut repository = lv("data/backup");
        repository.number = Some((254, 9));
        vec![tagged, repository, hidden, snapshot, pool, lv("vg/root"), ours, lv("vg/root2")]
    }

    fn names(words: &[&str]) -> Vec<String> {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        select(&all(), &words, &[(254, 9)]).unwrap().volumes.iter().map(Lv::path).collect()
    }

    #[test]
    fn words_mean_volumes() {
        assert_eq!(names(&["vg/root"]), ["vg/root"]);
        assert_eq!(names(&["/dev/vg/root", "vg/root"]), ["vg/root"]);
        assert_eq!(names(&["vg"]), ["vg/root", "vg/root2"]);
        assert_eq!(names(&["vg/r*2", "@nightly"]), ["data/db", "vg/root2"]);
        assert_eq!(names(&["*/*"]), ["data/db", "vg/root", "vg/root2"]);
        assert_eq!(names(&["v?"]), ["vg/root", "vg/root2"]);
    }

    #[test]
    fn what_cannot_be_backed_up_is_refused_by_name_and_told_otherwise() {
        for name in ["vg/pool", "vg/pool_tdata", "vg/old", "vg/varv_root_1", "data/backup"] {
            assert!(matches!(select(&all(), &[name.into()], &[(254, 9)]), Err(Error::Refused(_))), "{name}");
        }
        let selected = select(&all(), &["*/*".into()], &[(254, 9)]).unwrap();
        assert_eq!(selected.notices.len(), 3, "{:?}", selected.notices);
        for name in ["vg/none", "none", "none*", "@none"] {
            assert!(matches!(select(&all(), &[name.into()], &[]), Err(Error::NotFound(_))), "{name}");
        }
    }
}
