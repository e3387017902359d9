//! The clock, read once a run, and what users write of times.

use std::sync::OnceLock;

use jiff::{Timestamp, Zoned};

use crate::time::When;

/// The time at which this was first asked for, in the local zone: all times on one command line
/// are relative to the same moment.
pub fn now() -> Zoned {
    static NOW: OnceLock<Zoned> = OnceLock::new();
    NOW.get_or_init(Zoned::now).clone()
}

/// A TIME.
pub fn when(text: &str) -> Result<When, String> {
    When::parse(text, &now())
}

/// A TIME that must be a moment.
pub fn moment(text: &str) -> Result<Zoned, String> {
    when(text)?.moment()
}

/// Likewise, wherever its zone is.
pub fn timestamp(text: &str) -> Result<Timestamp, String> {
    moment(text).map(|moment| moment.timestamp())
}
