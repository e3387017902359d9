//! Sources that are read once from front to back: standard input, and what a command prints.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use jiff::Timestamp;

use super::Source;
use crate::error::{Error, IoContext, Result};
use crate::format::map::Map;
use crate::format::tree::{Entry, Payload, Time};
use crate::observe::Stop;
use crate::source::owners::Owners;

/// An opened stream. Reading fails once it is to stop.
pub struct Stream<'s> {
    /// Not `Stdin`, which reads ahead: whether there is more could not be told from outside.
    bytes: File,
    child: Option<(Child, String)>,
    stop: &'s Stop,
}

impl<'s> Stream<'s> {
    /// Starts the command, if the source is one; `None` if it is no stream.
    pub fn open(source: &Source, stop: &'s Stop) -> Result<Option<Self>> {
        match source {
            Source::Path(_) | Source::Volume(_) => Ok(None),
            Source::Stdin(_) => {
                let stdin = io::stdin().as_fd().try_clone_to_owned().at("read", "standard input")?;
                Ok(Some(Self { bytes: stdin.into(), child: None, stop }))
            }
            Source::Command(_, words) => {
                let (program, arguments) =
                    words.split_first().ok_or_else(|| Error::Refused("there is no command to run".into()))?;
                let mut child = Command::new(program)
                    .args(arguments)
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .spawn()
                    .at("run", program)?;
                let output = child.stdout.take().ok_or(Error::Internal("a command without output"))?;
                let child = Some((child, program.to_string_lossy().into_owned()));
                Ok(Some(Self { bytes: OwnedFd::from(output).into(), child, stop }))
            }
        }
    }

    /// What it was all about must have gone well, or what was read is not to be trusted.
    pub fn finish(mut self) -> Result<()> {
        let Some((mut child, program)) = self.child.take() else { return Ok(()) };
        let status = child.wait().at("wait for", &program)?;
        match status.success() {
            true => Ok(()),
            false => Err(Error::NotFound(format!("{program} failed ({status}): there is no snapshot"))),
        }
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stop.wait_to_read(&self.bytes, None)?;
        self.bytes.read(buffer)
    }
}

impl Drop for Stream<'_> {
    /// A command whose output nobody reads any more is ended.
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The entry of a stream: it belongs to who runs this, and is from now.
pub fn entry(name: &[u8], owners: &Owners) -> Entry {
    let now = Timestamp::now();
    let time = Time { seconds: now.as_second(), nanos: now.subsec_nanosecond().unsigned_abs() };
    Entry {
        name: name.to_vec(),
        mode: 0o600,
        owner: owners.get(rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()),
        modified: time,
        changed: time,
        inode: 0,
        xattrs: Vec::new(),
        links: None,
        payload: Payload::Stream(Map::default()),
    }
}
