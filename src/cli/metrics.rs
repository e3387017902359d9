//! What a run came to as a text file for Prometheus (the node exporter's textfile collector).

use std::fmt::{Display, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::Outcome;
use super::error::Exit;
use crate::error::{IoContext, Result};

/// When the last run succeeded: a run that fails keeps what the file says.
const LAST_SUCCESS: &str = "varv_last_success_timestamp_seconds";
/// A file that was read before is not larger.
const OLD_LEN_MAX: u64 = 1 << 20;

/// Measurements of one run, all with the same labels.
pub struct Metrics {
    labels: String,
    text: String,
}

impl Metrics {
    /// Nothing yet; `labels` are names and values.
    pub fn new(labels: &[(&str, &str)]) -> Self {
        let labels: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
        Self { labels: labels.join(","), text: String::new() }
    }

    /// A value that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, help);
        let _ = writeln!(self.text, "{name}{{{}}} {value}", self.labels);
    }

    /// Several values of one kind, told apart by `label`.
    pub fn gauges(&mut self, name: &str, help: &str, label: &str, values: &[(&str, u64)]) {
        self.head(name, help);
        for (which, value) in values {
            let _ = writeln!(self.text, "{name}{{{},{label}=\"{which}\"}} {value}", self.labels);
        }
    }

    fn head(&mut self, name: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} gauge");
    }

    /// Adds how and when a command ended, and puts the file in its place: a reader finds the old
    /// one or the new one, whole.
    pub fn finish(mut self, path: &Path, outcome: &Outcome, ended: Timestamp, seconds: f64) -> Result<()> {
        let exit = outcome.as_ref().map_or_else(Exit::of, |exit| *exit);
        self.gauge("varv_exit_code", "Exit code of the last run.", exit.code());
        self.gauge("varv_duration_seconds", "How long the last run took.", format!("{seconds:.3}"));
        let last = "varv_last_run_timestamp_seconds";
        self.gauge(last, "When the last run ended, in seconds since 1970.", ended.as_second());
        let success = match exit {
            Exit::Done => Some(ended.as_second()),
            _ => last_success(path),
        };
        if let Some(success) = success {
            let help = "When the last run ended that succeeded, in seconds since 1970.";
            self.gauge(LAST_SUCCESS, help, success);
        }
        replace(path, self.text.as_bytes())
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// What an older file says; a file that says nothing of it is none.
fn last_success(path: &Path) -> Option<i64> {
    if fs::metadata(path).ok()?.len() > OLD_LEN_MAX {
        return None;
    }
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(LAST_SUCCESS))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Writes beside, syncs, and renames over.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    // Collectors read only what ends as they expect.
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = folder.join(name);
    let written =
        write_new(&temporary, bytes).and_then(|()| fs::rename(&temporary, path).at("replace", path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
        return written;
    }
    File::open(&folder).and_then(|folder| folder.sync_all()).at("sync", &folder)
}

/// Readable by all, since a collector runs as another user.
fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let create = || OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
    let file = match create() {
        // Left by a process of the same number that was killed.
        Err(e) if e.kind() == ErrorKind::AlreadyExists => fs::remove_file(path).and_then(|()| create()),
        other => other,
    };
    let mut file = file.at("create", path)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).at("write", path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn finish(path: &Path, outcome: &Outcome, second: i64) -> String {
        let metrics = Metrics::new(&[("command", "backup"), ("label", "a \"b\"\\\n")]);
        metrics.finish(path, outcome, Timestamp::from_second(second).unwrap(), 1.5).unwrap();
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_run_that_fails_keeps_the_last_success() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("varv.prom");
        let failed = Err(Error::NotFound("x".into()));
        assert!(!finish(&path, &failed, 100).contains(LAST_SUCCESS));
        let labels = "{command=\"backup\",label=\"a \\\"b\\\"\\\\\\n\"}";
        let success = format!("\n{LAST_SUCCESS}{labels} 200\n");
        assert!(finish(&path, &Ok(Exit::Done), 200).contains(&success));
        let text = finish(&path, &Ok(Exit::Incomplete), 300);
        assert!(text.contains(&success), "{text}");
        assert!(text.contains(&format!("\nvarv_exit_code{labels} 3\n")), "{text}");
        assert!(text.contains(&format!("\nvarv_last_run_timestamp_seconds{labels} 300\n")), "{text}");
        assert!(text.contains(&format!("\nvarv_duration_seconds{labels} 1.500\n")), "{text}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("no/varv.prom");
        let done = Metrics::new(&[]).finish(&path, &Ok(Exit::Done), Timestamp::UNIX_EPOCH, 0.0);
        assert!(done.is_err());
    }
}
