//! What logical volumes there are, as `lvs` tells.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Number;
use super::command::run;
use crate::error::{Error, IoContext, Result};

const FIELDS: &str = "vg_name,vg_uuid,vg_free,vg_extent_size,vg_tags,lv_name,lv_uuid,lv_size,lv_attr,lv_role,\
segtype,pool_lv,pool_lv_uuid,origin_uuid,origin_size,thin_id,lv_tags,lv_dm_path,lv_kernel_major,\
lv_kernel_minor,data_percent,metadata_percent,lv_time,seg_pe_ranges";

/// What of a volume matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Extents of its own.
    Thick,
    /// A thin volume in a pool.
    Thin,
    /// A thin pool.
    Pool,
    /// A part of another volume, or of LVM itself.
    Hidden,
}

/// A logical volume.
#[derive(Debug, Clone, PartialEq)]
pub struct Lv {
    /// Its volume group.
    pub group: String,
    /// The group's name that stays.
    pub group_uuid: String,
    /// Bytes that are free in the group.
    pub group_free: u64,
    /// Bytes of an extent.
    pub extent: u64,
    /// The group's tags.
    pub group_tags: Vec<String>,
    /// Its name in the group.
    pub name: String,
    /// Its name that stays when it is renamed.
    pub uuid: String,
    /// Its length; of a classic snapshot, what it may take.
    pub len: u64,
    /// What it is.
    pub kind: Kind,
    /// `linear`, `striped`, `thin`, …
    pub segtype: String,
    /// The pool of a thin volume.
    pub pool: Option<String>,
    /// The pool's name that stays.
    pub pool_uuid: Option<String>,
    /// Of a snapshot: what it is of, if that is still there.
    pub origin_uuid: Option<String>,
    /// Whether it is a snapshot, classic or thin.
    pub is_snapshot: bool,
    /// Of a classic snapshot: the length of what it shows.
    pub origin_len: Option<u64>,
    /// A thin volume's number in its pool.
    pub thin_id: Option<u32>,
    /// Its tags.
    pub tags: Vec<String>,
    /// The device, whether it is there or not.
    pub device: PathBuf,
    /// The device's number, if it is active.
    pub number: Option<Number>,
    /// How full a snapshot or pool is, in percent.
    pub data_percent: Option<f64>,
    /// How full a pool's metadata is, in percent.
    pub metadata_percent: Option<f64>,
    /// When it was made, as LVM writes it.
    pub time: String,
    /// Which physical extents it has, in order.
    pub extents: String,
}

impl Lv {
    /// `VG/LV`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.group, self.name)
    }

    /// The device-mapper's name of it.
    pub fn mapped_name(&self) -> &str {
        self.device.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Whether its device is there.
    pub fn is_active(&self) -> bool {
        self.number.is_some()
    }
}

/// All logical volumes, hidden ones too, by group and name.
pub fn list() -> Result<Vec<Lv>> {
    let words =
        ["-a", "--reportformat", "json", "--units", "b", "--nosuffix", "-O", "vg_name,lv_name", "-o", FIELDS];
    let mut volumes = parse(&run("lvs", words)?)?;
    // Disks have other names after the next boot.
    let disks = run("pvs", ["--noheadings", "--separator", " ", "-o", "pv_name,pv_uuid"])?;
    for (name, uuid) in disks.lines().filter_map(|line| line.trim().split_once(' ')) {
        for volume in &mut volumes {
            volume.extents = by_uuid(&volume.extents, name, uuid);
        }
    }
    Ok(volumes)
}

/// Ranges of physical extents, `/dev/sda:0-9`, with the disk's uuid for its name.
fn by_uuid(extents: &str, name: &str, uuid: &str) -> String {
    let range = |range: &str| match range.rsplit_once(':') {
        Some((disk, extents)) if disk == name => format!("{uuid}:{extents}"),
        _ => range.to_string(),
    };
    extents.split(' ').map(range).collect::<Vec<_>>().join(" ")
}

#[derive(Deserialize)]
struct Printed {
    report: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    lv: Vec<Row>,
}

/// Values are text in this format, whatever they are.
#[derive(Deserialize)]
struct Row {
    vg_name: String,
    vg_uuid: String,
    vg_free: String,
    vg_extent_size: String,
    vg_tags: String,
    lv_name: String,
    lv_uuid: String,
    lv_size: String,
    lv_attr: String,
    lv_role: String,
    segtype: String,
    pool_lv: String,
    pool_lv_uuid: String,
    origin_uuid: String,
    origin_size: String,
    thin_id: String,
    lv_tags: String,
    lv_dm_path: PathBuf,
    lv_kernel_major: String,
    lv_kernel_minor: String,
    data_percent: String,
    metadata_percent: String,
    lv_time: String,
    seg_pe_ranges: String,
}

/// A volume of several segments has a row for each.
fn parse(text: &str) -> Result<Vec<Lv>> {
    let printed: Printed = serde_json::from_str(text).map_err(|e| Error::Program {
        program: "lvs".into(),
        why: format!("it printed what is no list of volumes: {e}"),
    })?;
    let mut volumes: Vec<Lv> = Vec::new();
    for row in printed.report.into_iter().flat_map(|part| part.lv) {
        match volumes.last_mut().filter(|last| last.uuid == row.lv_uuid) {
            Some(last) => {
                last.extents.push(' ');
                last.extents.push_str(&row.seg_pe_ranges);
            }
            None => volumes.push(row.volume()?),
        }
    }
    Ok(volumes)
}

impl Row {
    fn volume(self) -> Result<Lv> {
        let number = |text: &str, what: &str| {
            text.parse::<u64>().map_err(|_| Error::Program {
                program: "lvs".into(),
                why: format!("it says that {what} of {}/{} is '{text}'", self.vg_name, self.lv_name),
            })
        };
        let some = |text: &str| Some(text.to_string()).filter(|text| !text.is_empty());
        let words =
            |text: &str| text.split(',').filter(|word| !word.is_empty()).map(str::to_string).collect();
        let has_role = |role: &str| self.lv_role.split(',').any(|word| word == role);
        let kind = match self.segtype.as_str() {
            "thin-pool" => Kind::Pool,
            _ if self.lv_name.starts_with('[') || has_role("private") => Kind::Hidden,
            "thin" => Kind::Thin,
            _ => Kind::Thick,
        };
        let major_minor = self.lv_kernel_major.parse().ok().zip(self.lv_kernel_minor.parse().ok());
        Ok(Lv {
            group_free: number(&self.vg_free, "the free room")?,
            extent: number(&self.vg_extent_size, "the extent")?.max(1),
            len: number(&self.lv_size, "the size")?,
            origin_len: self.origin_size.parse().ok(),
            kind,
            is_snapshot: has_role("snapshot") || self.lv_attr.starts_with(['s', 'S']),
            // What caches a volume is called its pool, too.
            pool: some(&self.pool_lv).filter(|_| kind == Kind::Thin),
            pool_uuid: some(&self.pool_lv_uuid).filter(|_| kind == Kind::Thin),
            origin_uuid: some(&self.origin_uuid),
            thin_id: self.thin_id.parse().ok(),
            tags: words(&self.lv_tags),
            group_tags: words(&self.vg_tags),
            number: major_minor,
            data_percent: self.data_percent.parse().ok(),
            metadata_percent: self.metadata_percent.parse().ok(),
            name: self.lv_name.trim_matches(['[', ']']).to_string(),
            group: self.vg_name,
            group_uuid: self.vg_uuid,
            uuid: self.lv_uuid,
            segtype: self.segtype,
            device: self.lv_dm_path,
            time: self.lv_time,
            extents: self.seg_pe_ranges,
        })
    }
}

/// What is needed to make a volume group again, as `vgcfgbackup` writes it. It goes by a file in
/// `folder`.
pub fn group_config(group: &str, folder: &Path) -> Result<String> {
    let path = folder.join(format!("group.{group}.{}", std::process::id()));
    let written = run("vgcfgbackup", ["-f".as_ref(), path.as_os_str(), group.as_ref()]);
    let text = written.and_then(|_| std::fs::read_to_string(&path).at("read", &path));
    let _ = std::fs::remove_file(&path);
    text
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A thick volume of 64 MiB.
    pub fn lv(path: &str) -> Lv {
        let (group, name) = path.split_once('/').unwrap();
        Lv {
            group: group.into(),
            group_uuid: group.into(),
            group_free: 1 << 30,
            extent: 4 << 20,
            group_tags: Vec::new(),
            name: name.into(),
            uuid: path.into(),
            len: 64 << 20,
            kind: Kind::Thick,
            segtype: "linear".into(),
            pool: None,
            pool_uuid: None,
            origin_uuid: None,
            is_snapshot: false,
            origin_len: None,
            thin_id: None,
            tags: Vec::new(),
            device: format!("/dev/mapper/{group}-{name}").into(),
            number: None,
            data_percent: None,
            metadata_percent: None,
            time: String::new(),
            extents: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = r#"{"report": [{"lv": [
      {"vg_name":"vg", "vg_uuid":"8q", "vg_free":"297795584", "vg_extent_size":"4194304", "vg_tags":"a,b", "lv_name":"thick", "lv_uuid":"Ra", "lv_size":"67108864", "lv_attr":"owi-a-s---", "lv_role":"public,origin,thickorigin", "segtype":"linear", "pool_lv":"", "pool_lv_uuid":"", "origin":"", "origin_uuid":"", "origin_size":"67108864", "thin_id":"", "lv_tags":"", "lv_dm_path":"/dev/mapper/vg-thick", "lv_kernel_major":"254", "lv_kernel_minor":"0", "data_percent":"", "metadata_percent":"", "lv_time":"2026-11-21 15:31:58 +0000", "seg_pe_ranges":"/dev/ubda:0-9"},
      {"vg_name":"vg", "vg_uuid":"8q", "vg_free":"297795584", "vg_extent_size":"4194304", "vg_tags":"a,b", "lv_name":"thick", "lv_uuid":"Ra", "lv_size":"67108864", "lv_attr":"owi-a-s---", "lv_role":"public,origin,thickorigin", "segtype":"linear", "pool_lv":"", "pool_lv_uuid":"", "origin":"", "origin_uuid":"", "origin_size":"67108864", "thin_id":"", "lv_tags":"", "lv_dm_path":"/dev/mapper/vg-thick", "lv_kernel_major":"254", "lv_kernel_minor":"0", "data_percent":"", "metadata_percent":"", "lv_time":"2026-11-21 15:31:58 +0000", "seg_pe_ranges":"/dev/ubda:20-25"},
      {"vg_name":"vg", "vg_uuid":"8q", "vg_free":"297795584", "vg_extent_size":"4194304", "vg_tags":"", "lv_name":"[pool_tdata]", "lv_uuid":"xI", "lv_size":"134217728", "lv_attr":"Twi-ao----", "lv_role":"private,thin,pool,data", "segtype":"linear", "pool_lv":"", "pool_lv_uuid":"", "origin":"", "origin_uuid":"", "origin_size":"", "thin_id":"", "lv_tags":"", "lv_dm_path":"/dev/mapper/vg-pool_tdata", "lv_kernel_major":"254", "lv_kernel_minor":"2", "data_percent":"", "metadata_percent":"", "lv_time":"2026-11-21 15:31:58 +0000", "seg_pe_ranges":"/dev/ubda:18-49"},
      {"vg_name":"vg", "vg_uuid":"8q", "vg_free":"297795584", "vg_extent_size":"4194304", "vg_tags":"", "lv_name":"snap", "lv_uuid":"0l", "lv_size":"134217728", "lv_attr":"Vwi---tz-k", "lv_role":"public,snapshot,thinsnapshot", "segtype":"thin", "pool_lv":"pool", "pool_lv_uuid":"om", "origin":"thin", "origin_uuid":"Ug", "origin_size":"", "thin_id":"2", "lv_tags":"varv,varv.r=00", "lv_dm_path":"/dev/mapper/vg-snap", "lv_kernel_major":"-1", "lv_kernel_minor":"-1", "data_percent":"2.34", "metadata_percent":"", "lv_time":"", "seg_pe_ranges":""}
    ]}]}"#;

    #[test]
    fn volumes_are_read_and_segments_joined() {
        let volumes = parse(PRINTED).unwrap();
        let [thick, hidden, snap] = volumes.as_slice() else { panic!("{volumes:?}") };
        assert_eq!((thick.path().as_str(), thick.kind, thick.len), ("vg/thick", Kind::Thick, 64 << 20));
        assert_eq!(thick.extents, "/dev/ubda:0-9 /dev/ubda:20-25");
        assert_eq!(by_uuid(&thick.extents, "/dev/ubda", "uu-id"), "uu-id:0-9 uu-id:20-25");
        assert_eq!(by_uuid(&thick.extents, "/dev/ubd", "uu-id"), thick.extents);
        assert_eq!((thick.number, thick.is_snapshot), (Some((254, 0)), false));
        assert_eq!((hidden.kind, hidden.name.as_str()), (Kind::Hidden, "pool_tdata"));
        assert_eq!((snap.kind, snap.is_snapshot, snap.is_active()), (Kind::Thin, true, false));
        assert_eq!((snap.thin_id, snap.data_percent, snap.tags.len()), (Some(2), Some(2.34), 2));
        assert_eq!(snap.mapped_name(), "vg-snap");
    }

    #[test]
    fn a_cache_is_no_thin_pool() {
        let cached = PRINTED.replace(r#""segtype":"thin""#, r#""segtype":"cache""#);
        let snap = parse(&cached).unwrap().pop().unwrap();
        assert_eq!((snap.kind, snap.pool, snap.pool_uuid), (Kind::Thick, None, None));
    }

    #[test]
    fn what_is_no_list_is_an_error() {
        for wrong in ["", "{}", &PRINTED.replace("\"67108864\"", "\"many\""), &PRINTED[..900]] {
            assert!(matches!(parse(wrong), Err(Error::Program { .. })), "{wrong}");
        }
    }
}
