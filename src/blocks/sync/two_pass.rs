//! Moving something that is in use: synchronise while it runs, pause it, synchronise what has
//! changed, resume it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, IoContext, Result};
use crate::observe::{Event, Observer};

/// The commands of a move; each goes to `/bin/sh -c`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TwoPass {
    /// Stops what writes to the source.
    pub pause: String,
    /// Starts it again, here or there.
    pub resume: String,
    /// Is run if anything fails after the pause.
    pub on_failure: Option<String>,
}

impl TwoPass {
    /// Pauses, runs `last_pass`, and resumes; how long the pause was.
    pub fn run(
        &self,
        last_pass: impl FnOnce() -> Result<()>,
        names: (&str, &str),
        observer: &dyn Observer,
    ) -> Result<Duration> {
        let (source, target) = names;
        if let Err(e) = shell(&self.pause) {
            // Nobody knows how far it came.
            return Err(self.failed(
                &e,
                &format!("{source} is good, {target} is not complete; {source} may be paused"),
                observer,
            ));
        }
        let paused = Instant::now();
        if let Err(e) = last_pass() {
            let good = format!("{source} is good, and still paused; {target} is not complete");
            return Err(self.failed(&e, &good, observer));
        }
        let pause = paused.elapsed();
        match shell(&self.resume) {
            Ok(()) => Ok(pause),
            Err(e) => {
                let good = format!("{source} and {target} are good and equal, and not resumed");
                Err(self.failed(&e, &good, observer))
            }
        }
    }

    /// Runs what is to be run on failure; the error, with a word on which side is good. A signal
    /// stays one.
    fn failed(&self, error: &Error, good: &str, observer: &dyn Observer) -> Error {
        let mut what = format!("{error}\n{good}");
        match self.on_failure.as_deref().map(shell) {
            None => what.push_str("; no --on-failure is given, so it stays as it is"),
            Some(Ok(())) => what.push_str("; the command of --on-failure was run"),
            Some(Err(e)) => what.push_str(&format!("; --on-failure failed as well: {e}")),
        }
        if let Error::Stopped(signal) = error {
            observer.event(Event::Problem { path: "after the pause".into(), what });
            return Error::Stopped(*signal);
        }
        Error::Peer { peer: "after the pause".into(), what }
    }
}

/// Runs a command; standard output is ours, so what it prints goes to standard error.
fn shell(command: &str) -> Result<()> {
    let out = rustix::stdio::stderr().try_clone_to_owned().map_or_else(|_| Stdio::null(), Stdio::from);
    let status = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(out)
        .status()
        .at("run", Path::new(command))?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::Peer { peer: format!("'{command}'"), what: format!("it failed ({status})") }),
    }
}
