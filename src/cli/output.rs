//! What is printed: results on standard output, everything else on standard error.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use jiff::tz::Offset;
use serde::Serialize;
use signal_hook::consts::SIGPIPE;

use super::error::{Exit, hint};
use super::signals::STOP;
use crate::error::Error;
use crate::format::snapshot::Saved;
use crate::text::format_size;

/// Prints a result as one line.
pub fn line(text: &str) {
    write(text.as_bytes());
    write(b"\n");
}

/// Whether the command does nothing but print, so that it may end with its reader.
static ONLY_PRINTS: AtomicBool = AtomicBool::new(false);
/// Whether standard output takes nothing more.
static IS_CLOSED: AtomicBool = AtomicBool::new(false);
/// Whether that is for another reason than that its reader went away.
static HAS_FAILED: AtomicBool = AtomicBool::new(false);

/// What is kept instead of being printed, while [`capture`] is under way.
static CAPTURED: Mutex<Option<Vec<u8>>> = Mutex::new(None);

/// What `f` prints, which is not printed.
pub fn capture<T>(f: impl FnOnce() -> T) -> (T, Vec<u8>) {
    let swap = |kept| {
        let mut captured = CAPTURED.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *captured, kept)
    };
    swap(Some(Vec::new()));
    let done = f();
    (done, swap(None).unwrap_or_default())
}

/// Prints bytes as they are.
pub fn write(bytes: &[u8]) {
    if let Some(kept) = CAPTURED.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        kept.extend_from_slice(bytes);
        return;
    }
    if IS_CLOSED.load(Ordering::Relaxed) {
        return;
    }
    if let Err(e) = io::stdout().write_all(bytes) {
        closed(&e);
    }
}

/// A reader that went away (`| head`) ends a list quietly. Whatever does more is done to its end, and its exit
/// code says how it ended.
fn closed(error: &io::Error) {
    IS_CLOSED.store(true, Ordering::Relaxed);
    if error.kind() != ErrorKind::BrokenPipe {
        HAS_FAILED.store(true, Ordering::Relaxed);
        notice(&format!("cannot write to standard output: {error}"));
    }
    if ONLY_PRINTS.load(Ordering::Relaxed) {
        STOP.request(SIGPIPE);
    }
}

/// Lets the command end when nobody reads what it prints.
pub fn end_with_reader() {
    ONLY_PRINTS.store(true, Ordering::Relaxed);
}

/// How a command ends whose result may not have been printed.
pub fn exit(exit: Exit) -> Exit {
    match exit {
        Exit::Done if HAS_FAILED.load(Ordering::Relaxed) => Exit::Failed,
        other => other,
    }
}

/// Prints a line beside the result. If that cannot be printed either, there is nobody left to be told.
fn tell(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints a result as JSON, on one line.
pub fn json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => line(&text),
        Err(e) => notice(&format!("cannot print JSON: {e}")),
    }
}

/// Prints the fields of an object and the brace behind them; what stands before them is printed
/// already.
pub fn fields(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => write(text.trim_start_matches('{').as_bytes()),
        Err(e) => notice(&format!("cannot print JSON: {e}")),
    }
}

/// A JSON array that is printed item by item, each on a line, so that it may be of any length.
pub struct Array {
    is_empty: bool,
}

impl Array {
    /// Prints `opening`, which ends with the array's bracket.
    pub fn begin(opening: &str) -> Self {
        write(opening.as_bytes());
        Self { is_empty: true }
    }

    /// As the last field, `name`, of an object whose other fields are those of `head`.
    pub fn of_object(head: &impl Serialize, name: &str) -> Self {
        let head = serde_json::to_string(head).unwrap_or_default();
        let fields = head.strip_suffix('}').unwrap_or_default();
        let comma = if fields.len() > 1 { "," } else { "" };
        Self::begin(&format!("{fields}{comma}\"{name}\":["))
    }

    /// Prints an item.
    pub fn item(&mut self, value: &impl Serialize) {
        if !std::mem::replace(&mut self.is_empty, false) {
            write(b",\n");
        }
        match serde_json::to_string(value) {
            Ok(text) => write(text.as_bytes()),
            Err(e) => notice(&format!("cannot print JSON: {e}")),
        }
    }

    /// Prints `closing`, which begins with the array's bracket.
    pub fn end(self, closing: &str) {
        line(closing);
    }
}

/// Tells the user something beside the result.
pub fn notice(text: &str) {
    tell(&format!("varv: {text}"));
}

/// What failed, and what to do about it, as JSON.
pub fn failure(error: &Error) -> serde_json::Value {
    serde_json::json!({ "error": error.to_string(), "hint": hint(error) })
}

/// Tells what failed, and what to do about it.
pub fn error(error: &Error, as_json: bool) {
    if as_json {
        json(&failure(error));
    }
    tell(&format!("varv: {error}"));
    if let Some(hint) = hint(error) {
        tell(&format!("      {hint}"));
    }
}

/// A time as people read it, in the zone that it was recorded in.
pub fn time(time: Timestamp, offset: i32) -> String {
    let zone = Offset::from_seconds(offset).unwrap_or(Offset::UTC).to_time_zone();
    time.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A time as RFC 3339, with the zone that it was recorded in.
pub fn rfc3339(time: Timestamp, offset: i32) -> String {
    time.display_with_offset(Offset::from_seconds(offset).unwrap_or(Offset::UTC)).to_string()
}

/// What was saved by what, in one line.
pub fn saved(saved: &Saved) -> String {
    let exact = |bytes: Option<u64>| bytes.map_or("an unknown part".into(), format_size);
    let about = |bytes: i64| format_size(bytes.unsigned_abs());
    let tiers = if saved.bytes_tiers < 0 { "more taken by tiers" } else { "by tiers" };
    format!(
        "saved      {} by holes and zeros, {} by deduplication; about {} by compression, {} by frames, {} by deltas, {} {tiers}",
        exact(saved.bytes_sparse),
        exact(saved.bytes_duplicate),
        about(saved.bytes_compressed),
        about(saved.bytes_frames),
        about(saved.bytes_deltas),
        about(saved.bytes_tiers)
    )
}
