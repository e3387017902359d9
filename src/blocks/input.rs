//! What is copied or synchronised: a file, a block device, or a stream that can be read once.

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, Stat, fadvise, fstat, fsync, major, minor};

use crate::error::{Error, IoContext, Result};
use crate::observe::{Event, Observer, Stop};
use crate::source::changes::Changes;
use crate::source::extents::{Span, Spans, device_len, read_at, same};

/// Where bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Standard input.
    Stdin,
    /// A file, a block device, or something that is read like a stream.
    Path(PathBuf),
}

/// Asks somebody what of a device is allocated, all else being holes: `None` where nobody knows of
/// such devices, text where it would be known if not for that.
pub type AskLayout = fn(&File, &Stop) -> Result<Option<Result<Changes, String>>>;

/// Asks nobody.
pub fn no_layout(_: &File, _: &Stop) -> Result<Option<Result<Changes, String>>> {
    Ok(None)
}

/// An origin, open.
pub struct Input {
    file: File,
    path: PathBuf,
    kind: Kind,
    /// What of a device is not allocated, if somebody has told.
    layout: Option<Changes>,
}

/// What can be known about it before it is read.
enum Kind {
    File { stat: Stat },
    Device { len: u64, writes: Option<Writes> },
    Stream,
}

/// What the kernel has counted of a device's life: sectors written and discarded.
#[derive(Debug, PartialEq, Eq)]
struct Writes(u64, u64);

impl Input {
    /// Opens an origin. A directory is refused.
    pub fn open(origin: &Origin) -> Result<Self> {
        match origin {
            Origin::Path(path) => Self::open_path(path),
            Origin::Stdin => {
                let path = PathBuf::from("standard input");
                let file = io::stdin().as_fd().try_clone_to_owned().at("open", &path)?.into();
                Ok(Self { file, path, kind: Kind::Stream, layout: None })
            }
        }
    }

    /// Opens something with a length, that can be read more than once; anything else is refused.
    pub fn open_sized(path: &Path) -> Result<Self> {
        let refused = || Error::Refused(format!("{} is neither a file nor a block device", path.display()));
        // Opening a pipe would wait for somebody who writes.
        if fs::metadata(path).at("open", path)?.file_type().is_fifo() {
            return Err(refused());
        }
        let input = Self::open_path(path)?;
        if input.known_len().is_some() { Ok(input) } else { Err(refused()) }
    }

    fn open_path(path: &Path) -> Result<Self> {
        let file = File::open(path).at("open", path)?;
        let meta = file.metadata().at("look at", path)?;
        let kind = if meta.is_dir() {
            return Err(Error::Refused(format!(
                "{} is a directory; name a file or a device in it",
                path.display()
            )));
        } else if meta.is_file() {
            Kind::File { stat: fstat(&file).at("look at", path)? }
        } else if meta.file_type().is_block_device() {
            // What was written before must not be counted later; and what is in memory of it may be
            // older than what a file system on it has written since past this cache.
            fsync(&file).at("write out", path)?;
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
            Kind::Device { len: device_len(&file).at("measure", path)?, writes: writes(meta.rdev()) }
        } else {
            Kind::Stream
        };
        Ok(Self { file, path: path.to_path_buf(), kind, layout: None })
    }

    /// With the holes that somebody else knows of. Where they cannot be told, all is read, and the
    /// observer is told why.
    pub fn ask_layout(self, ask: AskLayout, observer: &dyn Observer, stop: &Stop) -> Result<Self> {
        if !matches!(self.kind, Kind::Device { .. }) {
            return Ok(self);
        }
        let why = match ask(&self.file, stop) {
            Ok(None) => return Ok(self),
            Ok(Some(Ok(layout))) => return Ok(self.with_layout(layout)),
            Err(stopped @ Error::Stopped(_)) => return Err(stopped),
            Ok(Some(Err(why))) => why,
            Err(e) => e.to_string(),
        };
        let what = "what of it is allocated is not known, so that all of it is read";
        observer.event(Event::Notice(format!("{}: {what}: {why}", self.path.display())));
        Ok(self)
    }

    /// With holes as `layout` has them, which is of the same length and not older than the input.
    pub fn with_layout(self, layout: Changes) -> Self {
        let fits = self.known_len() == Some(layout.len());
        Self { layout: fits.then_some(layout), ..self }
    }

    /// The path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length; `None` for a stream.
    pub fn known_len(&self) -> Option<u64> {
        match &self.kind {
            Kind::File { stat } => Some(u64::try_from(stat.st_size).unwrap_or(0)),
            Kind::Device { len, .. } => Some(*len),
            Kind::Stream => None,
        }
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        matches!(self.kind, Kind::File { .. })
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Data and holes in a range that begins at a multiple of `block`.
    pub fn spans(&self, range: Range<u64>, block: u64) -> Box<dyn Iterator<Item = Span> + '_> {
        match &self.layout {
            Some(layout) => Box::new(layout.spans_of_blocks(range, block)),
            None => Box::new(Spans::within(self.file.as_fd(), range, block, self.is_file())),
        }
    }

    /// Fills the buffer from `offset` on. An end before that is an error.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let wanted = buffer.len();
        match read_at(&self.file, buffer, offset).at("read", &self.path)? {
            read if read == wanted => Ok(()),
            read => Err(io::Error::other(format!(
                "it ended at byte {}, shorter than it was at first",
                offset + read as u64
            )))
            .at("read", &self.path),
        }
    }

    /// Reads the next bytes of a stream until the buffer is full or the stream ends.
    pub fn read_on(&self, mut buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while !buffer.is_empty() {
            match (&self.file).read(buffer) {
                Ok(0) => break,
                Ok(len) => {
                    filled += len;
                    buffer = &mut buffer[len..];
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e).at("read", &self.path),
            }
        }
        Ok(filled)
    }

    /// Whether it was written to since it was opened, as far as the kernel tells: a file's times
    /// and length, a device's counters of writes that reached it.
    pub fn has_changed(&self) -> Result<bool> {
        match &self.kind {
            Kind::Stream => Ok(false),
            Kind::File { stat } => Ok(!same(stat, &fstat(&self.file).at("look at", &self.path)?)),
            Kind::Device { writes: before, .. } => {
                fsync(&self.file).at("write out", &self.path)?;
                let meta = self.file.metadata().at("look at", &self.path)?;
                Ok(*before != writes(meta.rdev()))
            }
        }
    }
}

/// `None` where /sys does not tell. Fields as in the kernel's Documentation/block/stat.rst.
fn writes(device: u64) -> Option<Writes> {
    let path = format!("/sys/dev/block/{}:{}/stat", major(device), minor(device));
    let text = fs::read_to_string(path).ok()?;
    let mut fields = text.split_whitespace().map(|field| field.parse().unwrap_or(0));
    let written = fields.nth(6)?;
    Some(Writes(written, fields.nth(6).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_to_a_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, b"abc").unwrap();
        let input = Input::open(&Origin::Path(path.clone())).unwrap();
        assert!(!input.has_changed().unwrap());
        assert!(input.read_at(2, &mut [0; 2]).unwrap_err().to_string().contains("it ended at byte 3"));
        fs::write(&path, b"abcd").unwrap();
        assert!(input.has_changed().unwrap());
        assert!(Input::open(&Origin::Path(dir.path().into())).is_err());
    }
}
