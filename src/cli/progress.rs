//! Progress on a terminal, notices and problems on standard error.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::output;
use crate::observe::{Event, Observer};

/// Draws what an operation does.
pub struct Progress {
    bar: ProgressBar,
    quiet: bool,
}

impl Progress {
    /// Draws nothing if `hidden` or if standard error is no terminal; says no notices if `quiet`.
    pub fn new(hidden: bool, quiet: bool) -> Self {
        let bar = match hidden || !std::io::stderr().is_terminal() {
            true => ProgressBar::hidden(),
            false => ProgressBar::no_length(),
        };
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, quiet }
    }

    fn begin(&self, name: &'static str, bytes: Option<u64>) {
        let template = match bytes {
            Some(_) => "{prefix} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left",
            None => "{prefix} {spinner} {bytes} {bytes_per_sec}, {elapsed}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar.set_prefix(name);
        self.bar.reset();
        match bytes {
            Some(bytes) => self.bar.set_length(bytes),
            None => self.bar.unset_length(),
        }
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| output::notice(text));
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Progress {
    fn event(&self, event: Event) {
        match event {
            Event::Phase { name, bytes } => self.begin(name, bytes),
            Event::Expect { bytes } => self.bar.inc_length(bytes),
            Event::Advance { bytes, .. } => self.bar.inc(bytes),
            Event::Notice(text) if !self.quiet => self.say(&text),
            Event::Notice(_) => {}
            Event::Problem { path, what } => self.say(&format!("{}: {what}", path.display())),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
