//! Buffered writing, and paths as they are shown.

use serde::Serialize;

use crate::cli::output;

/// What is written at once.
const BUFFER_LEN: usize = 64 << 10;

/// Standard output with a buffer.
#[derive(Default)]
pub struct Out(Vec<u8>);

impl Out {
    /// Writes bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        if self.0.len() >= BUFFER_LEN {
            self.flush();
        }
    }

    /// Writes text and ends the line.
    pub fn line(&mut self, text: &str) {
        self.bytes(text.as_bytes());
        self.bytes(b"\n");
    }

    /// Writes a value as JSON.
    pub fn json(&mut self, value: &impl Serialize) {
        match serde_json::to_vec(value) {
            Ok(bytes) => self.bytes(&bytes),
            Err(e) => output::notice(&format!("cannot print JSON: {e}")),
        }
    }

    /// Writes an object's fields without its closing brace, so that more can follow.
    pub fn open_object(&mut self, value: &impl Serialize) {
        match serde_json::to_vec(value) {
            Ok(bytes) => self.bytes(bytes.strip_suffix(b"}").unwrap_or(&bytes)),
            Err(e) => output::notice(&format!("cannot print JSON: {e}")),
        }
    }

    /// Writes an array as one more field of an object, an item a line.
    pub fn array<T: Serialize>(&mut self, name: &str, items: impl Iterator<Item = T>) {
        self.bytes(format!(",\"{name}\":[").as_bytes());
        for (number, item) in items.enumerate() {
            self.bytes(if number > 0 { b",\n" } else { b"\n" });
            self.json(&item);
        }
        self.bytes(b"]");
    }

    /// Writes out what the buffer holds.
    pub fn flush(&mut self) {
        output::write(&self.0);
        self.0.clear();
    }
}
