//! A file, volume or stream as bytes, in order.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::window::Window;
use super::{Context, Restored};
use crate::error::{Error, Result};
use crate::format::map::{Extent, Map};
use crate::repo::nodes::Extents;
use crate::target::{Content, Counts, Empty};

/// So much is held in memory.
const BUFFER_LEN: u64 = 16 << 20;

/// Writes the content to `out`. Ends at the first chunk that cannot be read.
pub fn dump(context: &Context, map: &Map, path: &Path, out: &mut dyn Write) -> Result<()> {
    let mut dump = Dump::new(context, path, out);
    for item in Extents::of(context.catalog, map) {
        dump.extent(item?.1)?;
    }
    dump.flush()?;
    dump.out.flush().map_err(cannot_print)
}

/// Writing to standard output failed.
pub fn cannot_print(source: std::io::Error) -> Error {
    Error::Io { action: "write to", path: PathBuf::from("standard output"), source }
}

/// Writes extents as they come, some at a time.
pub struct Dump<'a> {
    context: &'a Context<'a>,
    path: &'a Path,
    out: &'a mut dyn Write,
    window: Vec<Extent>,
    len: u64,
}

impl<'a> Dump<'a> {
    /// To `out`; `path` is for messages.
    pub fn new(context: &'a Context<'a>, path: &'a Path, out: &'a mut dyn Write) -> Self {
        Self { context, path, out, window: Vec::new(), len: 0 }
    }

    /// Writes a map's data alone; how much it was.
    pub fn data_of(mut self, map: &Map) -> Result<u64> {
        let mut written = 0;
        for item in Extents::of(self.context.catalog, map) {
            let (_, extent) = item?;
            if extent.data_len() > 0 {
                written += extent.len();
                self.extent(extent)?;
            }
        }
        self.flush()?;
        Ok(written)
    }

    fn extent(&mut self, extent: Extent) -> Result<()> {
        if self.len + extent.len() > BUFFER_LEN {
            self.flush()?;
        }
        match extent {
            Extent::Zero { len } | Extent::Hole { len } if len > BUFFER_LEN => self.zeros(len),
            extent => {
                self.len += extent.len();
                self.window.push(extent);
                Ok(())
            }
        }
    }

    fn zeros(&mut self, len: u64) -> Result<()> {
        let zeros = vec![0; 1 << 20];
        let mut left = len;
        while left > 0 {
            let now = left.min(zeros.len() as u64);
            self.write(&zeros[..now as usize])?;
            left -= now;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.context.stop.check()?;
        self.out.write_all(bytes).map_err(cannot_print)
    }

    fn flush(&mut self) -> Result<()> {
        let buffer = Arc::new(Buffer { bytes: Mutex::new(vec![0; self.len as usize]) });
        let mut window = Window::default();
        let to = window.open(buffer.clone(), self.path.to_path_buf());
        let mut at = 0;
        for extent in self.window.drain(..) {
            if let Extent::Data { id, len } = extent {
                window.piece(to, at, id, len);
            }
            at += extent.len();
        }
        let mut restored = Restored::default();
        window.write(self.context)?.note(self.context, &mut restored);
        if restored.errors > 0 {
            return Err(Error::damaged(self.path.display(), "not all of its chunks can be read"));
        }
        let bytes = Arc::into_inner(buffer).and_then(|buffer| buffer.bytes.into_inner().ok());
        let bytes = bytes.ok_or(Error::Internal("a buffer is still in use"))?;
        self.write(&bytes)?;
        self.len = 0;
        Ok(())
    }
}

/// A stretch of the content in memory.
struct Buffer {
    bytes: Mutex<Vec<u8>>,
}

impl Content for Buffer {
    fn size(&self) -> u64 {
        self.bytes.lock().map_or(0, |bytes| bytes.len() as u64)
    }

    fn write_at(&self, offset: u64, new: &[u8]) -> Result<()> {
        let mut bytes = self.bytes.lock().map_err(|_| Error::Internal("a writer ended early"))?;
        let start = offset as usize;
        match bytes.get_mut(start..start + new.len()) {
            Some(place) => place.copy_from_slice(new),
            None => return Err(Error::Internal("a range lies behind the end of a buffer")),
        }
        Ok(())
    }

    fn zero_at(&self, _: u64, _: u64, _: Empty) -> Result<()> {
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let bytes = self.bytes.lock().map_err(|_| Error::Internal("a writer ended early"))?;
        let start = offset as usize;
        match bytes.get(start..start + buffer.len()) {
            Some(place) => buffer.copy_from_slice(place),
            None => return Err(Error::Internal("a range lies behind the end of a buffer")),
        }
        Ok(())
    }

    fn counts(&self) -> Counts {
        Counts::default()
    }
}
