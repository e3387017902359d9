//! Holding volumes still while snapshots of all of them are taken.
//!
//! The device-mapper suspends each device, which freezes the file system on it, writes out what
//! is pending and lets nothing pass; taking its snapshot lets it go on. `fsfreeze` would not do:
//! on kernels before 6.6 LVM cannot suspend a device whose file system is frozen, and leaves it
//! half suspended.
//!
//! A helper resumes them: when its input ends, which it does however this process ends, and after
//! [`FREEZE_MAX`] at the latest.

use std::ffi::OsString;
use std::process::{Child, ChildStdin, Stdio};

use super::command::{command, run};
use super::report::Lv;
use crate::error::{Error, IoContext, Result};

/// How long volumes are held at most, in seconds.
const FREEZE_MAX: u32 = 30;
/// Its standard input is this process's; `cat` ends with it.
const HELPER: &str = r#"timeout "$1" cat > /dev/null; shift; for name; do dmsetup resume "$name"; done"#;

/// Volumes that are held, until it is dropped.
#[derive(Debug)]
pub struct Frozen {
    helper: Child,
    input: Option<ChildStdin>,
}

/// Holds these volumes. If one cannot be, all are let go.
pub fn freeze(volumes: &[&Lv]) -> Result<Frozen> {
    let names = volumes.iter().map(|volume| volume.mapped_name().into());
    let words = ["-c".into(), HELPER.into(), "sh".into(), FREEZE_MAX.to_string().into()];
    let mut helper = command("sh", words.into_iter().chain(names).collect::<Vec<OsString>>())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .at("run", "sh")?;
    let input = helper.stdin.take();
    let frozen = Frozen { helper, input };
    for volume in volumes {
        run("dmsetup", ["suspend", volume.mapped_name()])?;
    }
    Ok(frozen)
}

impl Frozen {
    /// Lets them go. An error if that has happened before, so that not all was taken at one time.
    pub fn thaw(mut self) -> Result<()> {
        let is_early = matches!(self.helper.try_wait(), Ok(Some(_)));
        self.end();
        match is_early {
            false => Ok(()),
            true => Err(Error::Program {
                program: "freezing".into(),
                why: format!(
                    "taking the snapshots took more than {FREEZE_MAX} s, so that volumes were let go before"
                ),
            }),
        }
    }

    fn end(&mut self) {
        self.input = None;
        let _ = self.helper.wait();
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_ends_when_it_is_dropped() {
        let frozen = freeze(&[]).unwrap();
        let id = frozen.helper.id();
        frozen.thaw().unwrap();
        assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
    }
}
