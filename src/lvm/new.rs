//! Making a logical volume to restore to.

use std::fmt::{self, Display, Formatter};
use std::path::Path;

use super::command::run;
use super::report::{Kind, list};
use crate::error::{Error, Result};
use crate::text::format_size;

/// A volume that is to be made.
#[derive(Debug, PartialEq, Eq)]
pub struct NewVolume {
    group: String,
    name: String,
    /// At least so long: LVM makes whole extents.
    len: u64,
    pool: Option<String>,
}

impl NewVolume {
    /// For `len` bytes at `/dev/VG/LV`; thin in the pool of this name, if it was in one. Refused if
    /// something is there, or the pool is not.
    pub fn plan(target: &Path, len: u64, pool: Option<&str>) -> Result<Self> {
        let names: Vec<&str> = target.to_str().unwrap_or_default().split('/').collect();
        let ["", "dev", group, name] = names.as_slice() else {
            return Err(Error::Refused(format!("{}: --create-lv makes /dev/VG/LV", target.display())));
        };
        let all = list()?;
        if all.iter().any(|lv| lv.group == *group && lv.name == *name) {
            return Err(Error::Refused(format!(
                "{} exists already: leave out --create-lv, and say --in-place or --overwrite always",
                target.display()
            )));
        }
        let has_pool = |pool: &&str| {
            all.iter().any(|lv| lv.kind == Kind::Pool && lv.group == *group && lv.name == **pool)
        };
        if let Some(pool) = pool.filter(|pool| !has_pool(pool)) {
            return Err(Error::Refused(format!(
                "it was a thin volume in a pool named {pool}, and {group} has none: make it (lvcreate --type thin-pool -n {pool} -L SIZE {group}), or make the volume by hand"
            )));
        }
        Ok(Self { group: group.to_string(), name: name.to_string(), len, pool: pool.map(str::to_string) })
    }

    /// Makes it.
    pub fn create(&self) -> Result<()> {
        let len = format!("{}b", self.len.max(1));
        let mut words = vec!["--yes", "--name", &self.name];
        match &self.pool {
            Some(pool) => words.extend(["--virtualsize", &len, "--thinpool", pool]),
            None => words.extend(["--type", "linear", "--size", &len]),
        }
        words.push(&self.group);
        run("lvcreate", words).map(drop)
    }
}

impl Display for NewVolume {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{}/{}, {}", self.group, self.name, format_size(self.len))?;
        match &self.pool {
            Some(pool) => write!(f, ", thin in {pool}"),
            None => write!(f, ", linear"),
        }
    }
}
