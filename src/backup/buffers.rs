//! Buffers that are used again: fresh memory costs more than reading a file into it.

use std::ops::Deref;
use std::sync::{Arc, Mutex};

/// Buffers that wait to be used again; as many as were ever in use at once.
#[derive(Debug, Default)]
pub struct Buffers(Mutex<Vec<Vec<u8>>>);

/// Bytes that are being read; they go back when they are dropped.
#[derive(Debug, Default)]
pub struct Buffer {
    /// All of it is initialised; the first `used` bytes count.
    bytes: Vec<u8>,
    used: usize,
    home: Option<Arc<Buffers>>,
}

impl Buffers {
    /// An empty buffer.
    pub fn take(self: &Arc<Self>) -> Buffer {
        let bytes = self.0.lock().ok().and_then(|mut free| free.pop()).unwrap_or_default();
        Buffer { bytes, used: 0, home: Some(Arc::clone(self)) }
    }
}

impl Buffer {
    /// Makes room for `more` bytes in one go.
    pub fn reserve(&mut self, more: usize) {
        let wanted = self.used + more;
        if self.bytes.len() < wanted {
            self.bytes.resize(wanted, 0);
        }
    }

    /// Appends `len` bytes, to be filled by the caller; what they hold is not said.
    pub fn extend(&mut self, len: usize) -> &mut [u8] {
        self.reserve(len);
        let start = self.used;
        self.used += len;
        &mut self.bytes[start..start + len]
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.used]
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self { used: bytes.len(), bytes, home: None }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = &self.home
            && let Ok(mut free) = home.0.lock()
        {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_used_again_and_lengths_are_not() {
        let buffers = Arc::new(Buffers::default());
        let mut first = buffers.take();
        first.extend(3).copy_from_slice(b"abc");
        first.extend(2).copy_from_slice(b"de");
        assert_eq!(&*first, b"abcde");
        let place = first.as_ptr();
        drop(first);
        let mut again = buffers.take();
        assert!(again.is_empty());
        again.extend(4);
        assert_eq!(again.as_ptr(), place);
    }
}
