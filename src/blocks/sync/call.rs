//! The calling side: reaches the other one, and leads it through the passes.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::changes::Blocks;
use super::link::{Incoming, Outgoing, Receiver, Sender, greet};
use super::message::{Message, PassDone, PassEnd, Ready, Request, Role, unexpected};
use super::serve::serve;
use super::source::{self, Pass};
use super::target::Target;
use super::watched::{Patience, Watched};
use super::{Place, SyncOptions, Synced};
use crate::blocks::input::{Input, no_layout};
use crate::blocks::plan::refuse_overlap;
use crate::error::{Error, IoContext, Result};
use crate::observe::{Event, Observer, Silent, Stop};
use crate::source::change_list::read_change_list;

/// Reaches the other side and synchronises.
pub fn run(
    source: &Place,
    target: &Place,
    options: &SyncOptions,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Synced> {
    let call = Call { source, target, options, observer, stop };
    match (&source.host, &target.host) {
        (Some(_), Some(_)) => {
            Err(Error::Refused("one side must be here: run varv sync on one of the two machines".into()))
        }
        (None, None) => call.here(),
        (Some(host), None) | (None, Some(host)) => call.there(host),
    }
}

/// Synchronises with a side that was reached already, over these streams.
pub fn over<'l>(
    (source, target): (&'l Place, &'l Place),
    options: &'l SyncOptions,
    link: (Incoming<'l>, Outgoing<'l>),
    patience: &Patience<'l>,
) -> Result<Synced> {
    let call = Call { source, target, options, observer: &Silent, stop: patience.stop() };
    let input = match source.host {
        None => Some(Input::open_sized(&source.path)?),
        Some(_) => None,
    };
    call.with_link(link, patience, "the other side", input)
}

struct Call<'a> {
    source: &'a Place,
    target: &'a Place,
    options: &'a SyncOptions,
    observer: &'a dyn Observer,
    stop: &'a Stop,
}

impl Call<'_> {
    /// The other side is a thread, which is the target.
    fn here(&self) -> Result<Synced> {
        let input = Input::open_sized(&self.source.path)?;
        if self.target.path.exists() {
            refuse_overlap(&input, &self.target.path)?;
        }
        let (their_input, our_output) = io::pipe().at("make", "a pipe")?;
        let (our_input, their_output) = io::pipe().at("make", "a pipe")?;
        // A thread does not vanish.
        let patience = Patience::new(self.stop, Duration::ZERO);
        thread::scope(|scope| {
            let served = scope.spawn(|| {
                serve(watched(their_input, &patience), Box::new(their_output), no_layout, &patience)
            });
            let link = (watched(our_input, &patience), Box::new(our_output) as Outgoing);
            let synced = self.with_link(link, &patience, "", Some(input));
            let served = served.join().map_err(|_| Error::Internal("the target's thread ended early"))?;
            // What failed there is known here as it was, not as it was told.
            match (synced, served) {
                (Err(Error::Stopped(signal)), _) => Err(Error::Stopped(signal)),
                (Err(Error::Peer { peer, .. }), Err(e)) if peer.is_empty() => Err(e),
                (Err(Error::Refused(told)), Err(e)) if told.starts_with(": ") => Err(e),
                (synced, _) => synced,
            }
        })
    }

    fn there(&self, host: &str) -> Result<Synced> {
        let input = match self.source.host {
            None => Some(Input::open_sized(&self.source.path)?),
            Some(_) => None,
        };
        let mut remote = Remote::start(self.options, host)?;
        let patience = Patience::new(self.stop, self.options.timeout);
        let (from, to) = remote.streams()?;
        let link = (watched(from, &patience), Box::new(Watched(to, &patience)) as Outgoing);
        let synced = self.with_link(link, &patience, host, input);
        if patience.ran_out() || matches!(synced, Err(Error::Stopped(_))) {
            // It may wait for a network that is gone.
            remote.kill();
            remote.wait();
            return synced;
        }
        match (synced, remote.wait()) {
            (Err(Error::Peer { peer, what }), Some(ended)) if peer == host => {
                Err(Error::Peer { peer, what: format!("{what} ({ended})") })
            }
            (synced, _) => synced,
        }
    }

    /// `input` is the source if that is here; else the target is.
    fn with_link<'l>(
        &'l self,
        (from, to): (Incoming<'l>, Outgoing<'l>),
        patience: &Patience,
        peer: &str,
        input: Option<Input>,
    ) -> Result<Synced> {
        let (mut sender, mut receiver) = greet(from, to, peer, self.stop)?;
        patience.begin();
        thread::scope(move |scope| {
            if let Some(every) = patience.beat() {
                sender.keep_alive(scope, every);
            }
            let talked = self.talk(&mut sender, &mut receiver, input);
            if let Err(e) = &talked {
                // So that it does not speak of a lost connection; if it is gone, nobody needs it.
                let _ = sender.send_now(&Message::failure(e));
            }
            talked
        })
    }

    fn talk<'l>(
        &self,
        sender: &mut Sender<'l>,
        receiver: &mut Receiver<'l>,
        input: Option<Input>,
    ) -> Result<Synced> {
        let ready = self.ask(sender, receiver, input.as_ref())?;
        let len = input.as_ref().and_then(Input::known_len).unwrap_or(ready.len);
        let (end, untouched) = match input {
            Some(input) => {
                self.tell_of(&ready, len);
                (End::Source(input), ready.untouched)
            }
            None => {
                let target = Target::open(&self.target.path, len, self.options.dry_run)?;
                let told =
                    Ready { len: target.old_len, is_device: target.is_device, untouched: target.untouched };
                self.tell_of(&told, len);
                let untouched = target.untouched;
                (End::Target(target), untouched)
            }
        };
        let blocks = Blocks::all(len.div_ceil(self.options.block));
        let listed = match &self.options.change_list {
            Some(path) => Some(Blocks::of(&read_change_list(path, len)?, self.options.block)),
            None => None,
        };
        for message in listed.iter().flat_map(Blocks::messages) {
            sender.send(&message)?;
        }
        let synced = Synced { bytes: len, untouched, ..Synced::default() };
        let mut talk = Talk { call: self, sender, receiver, end, len, synced };
        talk.passes(&blocks, listed.as_ref())?;
        talk.sender.send_now(&Message::Finish)?;
        talk.end.finish()?;
        match talk.receiver.receive()? {
            Message::Finish => Ok(talk.synced),
            _ => unexpected().map_err(|e| talk.receiver.malformed(e)),
        }
    }

    fn ask(&self, sender: &mut Sender, receiver: &mut Receiver, input: Option<&Input>) -> Result<Ready> {
        let there = if input.is_some() { self.target } else { self.source };
        // Between two threads compression would only cost.
        let level = if there.host.is_some() { self.options.level } else { 0 };
        sender.send_now(&Message::Request(Request {
            role: if input.is_some() { Role::Target } else { Role::Source },
            block: self.options.block as u32,
            len: input.and_then(Input::known_len).unwrap_or(0),
            dry_run: self.options.dry_run,
            level,
            rate: self.options.rate,
            path: there.path.as_os_str().as_bytes().to_vec(),
        }))?;
        sender.set_rate(self.options.rate);
        match receiver.receive()? {
            Message::Ready(ready) => Ok(ready),
            _ => unexpected().map_err(|e| receiver.malformed(e)),
        }
    }

    /// It overwrites by nature, and says so.
    fn tell_of(&self, target: &Ready, len: u64) {
        if target.len == 0 || self.options.dry_run {
            return;
        }
        let cut = match !target.is_device && target.len > len {
            true => format!("; its {} bytes behind the source's end are cut off", target.len - len),
            false => String::new(),
        };
        let text = format!("{} is overwritten where it differs from {}{cut}", self.target, self.source);
        self.observer.event(Event::Notice(text));
    }
}

fn watched<'w>(from: impl Into<OwnedFd>, patience: &'w Patience<'w>) -> Incoming<'w> {
    Box::new(Watched(File::from(from.into()), patience))
}

/// Our side.
enum End {
    Source(Input),
    Target(Target),
}

impl End {
    fn finish(&mut self) -> Result<()> {
        match std::mem::replace(self, End::Target(Target::nothing())) {
            End::Source(_) => Ok(()),
            End::Target(target) => target.finish(),
        }
    }
}

/// A conversation whose sides are open.
struct Talk<'a, 'l> {
    call: &'a Call<'a>,
    sender: &'a mut Sender<'l>,
    receiver: &'a mut Receiver<'l>,
    end: End,
    len: u64,
    synced: Synced,
}

impl Talk<'_, '_> {
    fn passes(&mut self, all: &Blocks, listed: Option<&Blocks>) -> Result<()> {
        let options = self.call.options;
        let first = listed.unwrap_or(all);
        self.pass("synchronising", first, listed.is_some(), false)?;
        let Some(two_pass) = &options.two_pass else { return self.verify(first, listed.is_some()) };
        let names = (self.call.source.to_string(), self.call.target.to_string());
        let observer = self.call.observer;
        // What changed meanwhile is on no list.
        let last = || {
            self.pass("synchronising, paused", all, false, false)?;
            if self.synced.changed {
                return Err(Error::Peer {
                    peer: names.0.clone(),
                    what: "it was written to in the pause".into(),
                });
            }
            self.verify(all, false)
        };
        let pause = two_pass.run(last, (&names.0, &names.1), observer)?;
        self.synced.pause = Some(pause);
        Ok(())
    }

    fn verify(&mut self, blocks: &Blocks, is_listed: bool) -> Result<()> {
        if !self.call.options.verify {
            return Ok(());
        }
        let found = self.synced.clone();
        self.pass("verifying", blocks, is_listed, true)?;
        let differing = self.synced.diff + self.synced.zero;
        let Synced { read_source, read_target, changed, .. } = self.synced;
        self.synced = Synced { verified: true, read_source, read_target, changed, ..found };
        match differing {
            0 => Ok(()),
            _ => Err(Error::Peer {
                peer: self.call.target.to_string(),
                what: format!(
                    "{differing} blocks differ from {} after all: either that was written to, or this does not \
                     keep what is written; run it again",
                    self.call.source
                ),
            }),
        }
    }

    fn pass(&mut self, name: &'static str, blocks: &Blocks, is_listed: bool, compare: bool) -> Result<()> {
        let Call { options, observer, stop, .. } = *self.call;
        let bytes = blocks.count().saturating_mul(options.block).min(self.len);
        observer.event(Event::Phase { name, bytes: Some(bytes) });
        self.sender.send_now(&Message::Pass { listed: is_listed, compare })?;
        let level = if self.call.target.host.is_some() { options.level } else { 0 };
        let pass = Pass {
            block: options.block,
            len: self.len,
            ranges: blocks.ranges(),
            compare: compare || options.dry_run,
            level,
            ask_layout: options.ask_layout,
            observer,
            stop,
        };
        let (end, done) = match &self.end {
            End::Target(target) => target.run(&pass, self.sender, self.receiver)?,
            End::Source(input) => {
                let end = source::run(&pass, input, self.sender, self.receiver)?;
                match self.receiver.receive()? {
                    Message::PassDone(done) => (end, done),
                    _ => return unexpected().map_err(|e| self.receiver.malformed(e)),
                }
            }
        };
        self.count(blocks.count(), &end, &done);
        Ok(())
    }

    fn count(&mut self, total: u64, end: &PassEnd, done: &PassDone) {
        let synced = &mut self.synced;
        (synced.total, synced.same, synced.diff, synced.zero) = (total, end.same, end.diff, end.zero);
        synced.changed = end.changed;
        synced.sent += end.sent;
        synced.written += done.written;
        synced.read_source += end.read;
        synced.read_target += done.read;
    }
}

/// A varv on another machine, and the remote shell that leads there.
struct Remote(Child);

impl Remote {
    /// Runs `SSH HOST VARV sync --serve`. The words of the shells may have arguments of their own.
    fn start(options: &SyncOptions, host: &str) -> Result<Self> {
        let SyncOptions { ssh, remote_varv, timeout, .. } = options;
        if host.starts_with('-') {
            return Err(Error::Refused(format!("'{host}' is no host")));
        }
        let served = format!("{remote_varv} sync --serve --timeout {}s", timeout.as_secs());
        Command::new("/bin/sh")
            .args(["-c", &format!("exec {ssh} \"$@\""), "sh", host, &served])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .at("run", ssh)
            .map(Self)
    }

    fn streams(&mut self) -> Result<(ChildStdout, File)> {
        let no_pipe = Error::Internal("a child without pipes");
        match (self.0.stdout.take(), self.0.stdin.take()) {
            (Some(stdout), Some(stdin)) => Ok((stdout, OwnedFd::from(stdin).into())),
            _ => Err(no_pipe),
        }
    }

    fn kill(&mut self) {
        // If it has ended, that is what was wanted.
        let _ = self.0.kill();
    }

    /// Waits for its end; what there is to say of it if it failed. Its streams are closed by now, so
    /// it ends.
    fn wait(&mut self) -> Option<String> {
        let status = self.0.wait().ok()?;
        match status.code() {
            Some(0) => None,
            Some(127) => Some("the shell there found no varv: --remote-varv says where it is".into()),
            Some(255) => Some("ssh could not connect or was cut off".into()),
            _ => Some(format!("ended with {status}")),
        }
    }
}
