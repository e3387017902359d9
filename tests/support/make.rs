//! Files and trees, the same on every run.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FallocateFlags, Timespec, Timestamps, UTIME_OMIT, fallocate, utimensat};

/// Numbers that look random and are the same for the same seed (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit
    }

    /// Bytes that do not shrink.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.number().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// Bytes that shrink, like text.
    pub fn text(&mut self, len: usize) -> Vec<u8> {
        let mut text = Vec::with_capacity(len + 16);
        while text.len() < len {
            text.extend_from_slice(format!("line {}\n", self.below(5000)).as_bytes());
        }
        text.truncate(len);
        text
    }
}

/// Rows of a table: they shrink to about half, and none is like another one. Of those of
/// [`Random::text`] each is found in many places, and the fast levels look only at the last one.
pub fn rows(random: &mut Random, len: usize) -> Vec<u8> {
    let mut rows = Vec::with_capacity(len + 32);
    while rows.len() < len {
        rows.extend_from_slice(format!("{:016x} row\n", random.number()).as_bytes());
    }
    rows.truncate(len);
    rows
}

/// Changes a row here and there in a file of [`rows`].
pub fn change_rows(path: &Path, random: &mut Random) {
    let len = fs::metadata(path).unwrap().len();
    for at in (0..len).step_by(24 << 10) {
        let offset = at + random.below(20 << 10);
        overwrite(path, offset, &rows(random, 40));
    }
}

/// Bytes that do not shrink.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    Random(seed).bytes(len)
}

/// A file of this length with data at some offsets and holes elsewhere.
pub fn sparse_file(path: &Path, len: u64, data: &[(u64, &[u8])]) {
    let file = File::create(path).unwrap();
    file.set_len(len).unwrap();
    for (offset, bytes) in data {
        file.write_all_at(bytes, *offset).unwrap();
    }
}

/// Changes some bytes of a file.
pub fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

/// Takes a range's blocks away; false where the file system cannot.
pub fn punch_hole(path: &Path, offset: u64, len: u64) -> bool {
    let file = File::options().write(true).open(path).unwrap();
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, flags, offset, len).is_ok()
}

/// Sets the time of modification, of a symlink itself too.
pub fn touch(path: &Path, seconds: i64, nanos: i64) {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos as _ },
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A directory as people have them: about 40 files of all sizes in some folders, with links.
pub fn tree(root: &Path, seed: u64) {
    let mut random = Random(seed);
    for folder in ["", "docs", "docs/old", "src", "empty"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    for number in 0..40 {
        let folder = ["", "docs", "docs/old", "src"][random.below(4) as usize];
        let len = match random.below(10) {
            0 => 0,
            1 => 300_000 + random.below(700_000),
            2 => 4096 * random.below(5),
            _ => random.below(30_000),
        } as usize;
        let content = if random.below(2) == 0 { random.text(len) } else { random.bytes(len) };
        fs::write(root.join(folder).join(format!("file{number}")), content).unwrap();
    }
    symlink("docs/old", root.join("link")).unwrap();
    fs::write(root.join("one"), random.bytes(10_000)).unwrap();
    fs::hard_link(root.join("one"), root.join("src/two")).unwrap();
    sparse_file(&root.join("sparse"), 1 << 20, &[(500_000, &random.bytes(5000))]);
    fs::write(root.join("table"), rows(&mut random, 600_000)).unwrap();
}

/// Changes a tree of [`tree`] as a day of work does.
pub fn change(root: &Path, random: &mut Random) {
    for _ in 0..3 {
        let path = root.join("src").join(format!("new{}", random.below(8)));
        let len = random.below(200_000) as usize;
        fs::write(path, random.bytes(len)).unwrap();
    }
    let offset = random.below(900_000);
    overwrite(&root.join("sparse"), offset, &random.bytes(3000));
    let _ = fs::remove_file(root.join("docs").join(format!("file{}", random.below(40))));
    fs::write(root.join("today"), random.text(20_000)).unwrap();
    change_rows(&root.join("table"), random);
}

/// Writes a file whose zeros are holes here and there, as file systems have them.
pub fn write_sparse(path: &Path, content: &[u8]) {
    let runs: Vec<(u64, &[u8])> = content
        .chunks(4096)
        .enumerate()
        .filter(|(number, block)| number % 7 == 0 || block.iter().any(|byte| *byte != 0))
        .map(|(number, block)| (number as u64 * 4096, block))
        .collect();
    let _ = fs::remove_file(path);
    sparse_file(path, content.len() as u64, &runs);
}
