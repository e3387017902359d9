//! What only some systems and users have: root's rights, loop devices, mounts.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// The user that has no rights.
pub const NOBODY: u32 = 65534;

/// Says why a test, or a part of one, is left out.
pub fn skip<T>(why: &str) -> Option<T> {
    eprintln!("skipped: {why}");
    None
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub fn root_or_skip() -> Option<()> {
    if is_root() { Some(()) } else { skip("needs root") }
}

/// Runs a program; false if it is missing or fails.
pub fn run(program: &str, words: &[&str]) -> bool {
    Command::new(program).args(words).output().is_ok_and(|output| output.status.success())
}

/// A loop device over an image in a folder of its own.
pub struct Loop {
    pub path: PathBuf,
    image: PathBuf,
    _dir: Option<TempDir>,
}

impl Loop {
    /// `None` where there are none, which is said. Its partitions are devices too.
    pub fn new(image: &[u8], sector: u32) -> Option<Self> {
        root_or_skip()?;
        let dir = tempfile::tempdir().unwrap();
        let image_path = dir.path().join("image");
        fs::write(&image_path, image).unwrap();
        Self::over(&image_path, Some(dir), &["--partscan", "--sector-size", &sector.to_string()])
    }

    /// Another device over a part of the same image.
    pub fn twin(&self, start: u64, len: u64) -> Option<Self> {
        Self::over(&self.image, None, &["--offset", &start.to_string(), "--sizelimit", &len.to_string()])
    }

    fn over(image: &Path, dir: Option<TempDir>, words: &[&str]) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).args(words).arg(image).output();
        match output {
            Ok(output) if output.status.success() => {
                let path = String::from_utf8(output.stdout).unwrap().trim().into();
                Some(Self { path, image: image.to_path_buf(), _dir: dir })
            }
            _ => skip("no loop devices"),
        }
    }

    /// What is on the device. Closing it does not write it out where a child of another thread still
    /// has it open.
    pub fn content(&self) -> Vec<u8> {
        File::open(&self.path).unwrap().sync_all().unwrap();
        fs::read(&self.image).unwrap()
    }

    /// The file that it is over.
    pub fn image_path(&self) -> &Path {
        &self.image
    }

    /// The device node of a partition.
    pub fn partition(&self, number: u32) -> PathBuf {
        format!("{}p{number}", self.path.display()).into()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["--detach", self.path.to_str().unwrap()]);
    }
}

/// Something mounted, until it is dropped.
pub struct Mount(PathBuf);

impl Mount {
    pub fn new(words: &[&str], point: &Path) -> Option<Self> {
        root_or_skip()?;
        let point_word = point.to_str().unwrap();
        match run("mount", &[words, &[point_word]].concat()) {
            true => Some(Self(point.to_path_buf())),
            false => skip("cannot mount"),
        }
    }

    /// A file system in memory, of so many MiB.
    pub fn tmpfs(mebibytes: u32, point: &Path) -> Option<Self> {
        Self::new(&["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "none"], point)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run("umount", &[self.0.to_str().unwrap()]);
    }
}

/// What a browser without a screen makes of a page up to its data; `None` with a message if there is
/// none.
pub fn shown(page: &[u8]) -> Option<String> {
    let names = ["chromium-headless-shell", "chromium", "google-chrome", "chrome"];
    let runs =
        |name: &&&str| Command::new(name).arg("--version").output().is_ok_and(|done| done.status.success());
    let Some(browser) = names.iter().find(runs) else { return skip("no browser") };
    let file = tempfile::Builder::new().suffix(".html").tempfile().unwrap();
    fs::write(file.path(), page).unwrap();
    let done = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"])
        .arg(format!("file://{}", file.path().display()))
        .output()
        .unwrap();
    let shown = String::from_utf8(done.stdout).unwrap();
    Some(shown.split_once("id=\"data\"").unwrap().0.to_owned())
}
