//! The called side: does what the caller asks, until it is told to finish.

use std::thread;

use super::changes::Blocks;
use super::link::{Incoming, Outgoing, Receiver, Sender, greet};
use super::message::{Message, Ready, Request, Role, unexpected};
use super::source::{self, Pass};
use super::target::Target;
use super::watched::Patience;
use super::{LEVEL_MAX, check_block};
use crate::blocks::input::{AskLayout, Input};
use crate::error::{Error, Result};
use crate::format::wire::Malformed;
use crate::observe::{Silent, Stop};
use crate::source::path_of;

/// Serves one caller over these streams; `ask_layout` as in the caller's options. What fails is told to the caller, who tells the user.
pub fn serve<'l>(
    from: Incoming<'l>,
    to: Outgoing<'l>,
    ask_layout: AskLayout,
    patience: &'l Patience<'l>,
) -> Result<()> {
    let stop = patience.stop();
    let (mut sender, mut receiver) = greet(from, to, "the caller", stop)?;
    patience.begin();
    thread::scope(move |scope| {
        if let Some(every) = patience.beat() {
            sender.keep_alive(scope, every);
        }
        let served = answer(&mut sender, &mut receiver, ask_layout, stop);
        if let Err(e) = &served {
            // A caller that is gone need not be told.
            let _ = sender.send_now(&Message::failure(e));
        }
        served
    })
}

fn answer<'l>(
    sender: &mut Sender<'l>,
    receiver: &mut Receiver<'l>,
    ask_layout: AskLayout,
    stop: &Stop,
) -> Result<()> {
    let Message::Request(request) = receiver.receive()? else {
        return unexpected().map_err(|e| receiver.malformed(e));
    };
    check_block(u64::from(request.block)).map_err(Error::Refused)?;
    if request.level > LEVEL_MAX {
        return Err(receiver.malformed(Malformed("a level of compression that is not known")));
    }
    let end = match request.role {
        Role::Source => End::source(&request)?,
        Role::Target => End::target(&request)?,
    };
    sender.set_rate(request.rate);
    sender.send_now(&Message::Ready(end.ready()))?;
    let mut listed = Blocks::default();
    let blocks = Blocks::all(end.len.div_ceil(u64::from(request.block)));
    loop {
        match receiver.receive()? {
            Message::Ranges(ranges) => {
                listed.extend(&ranges, blocks.count()).map_err(|e| receiver.malformed(e))?;
            }
            Message::Pass { listed: is_listed, compare } => {
                let ranges = if is_listed { listed.ranges() } else { blocks.ranges() };
                let pass = Pass {
                    block: u64::from(request.block),
                    len: end.len,
                    ranges,
                    compare: compare || request.dry_run,
                    level: request.level,
                    ask_layout,
                    observer: &Silent,
                    stop,
                };
                end.pass(&pass, sender, receiver)?;
            }
            Message::Finish => {
                end.finish()?;
                return sender.send_now(&Message::Finish);
            }
            _ => return unexpected().map_err(|e| receiver.malformed(e)),
        }
    }
}

/// What is served.
struct End {
    /// The source's length.
    len: u64,
    what: What,
}

enum What {
    Source(Input),
    Target(Target),
}

impl End {
    fn source(request: &Request) -> Result<Self> {
        let input = Input::open_sized(path_of(&request.path))?;
        Ok(Self { len: input.known_len().unwrap_or(0), what: What::Source(input) })
    }

    fn target(request: &Request) -> Result<Self> {
        let target = Target::open(path_of(&request.path), request.len, request.dry_run)?;
        Ok(Self { len: request.len, what: What::Target(target) })
    }

    fn ready(&self) -> Ready {
        match &self.what {
            What::Source(_) => Ready { len: self.len, is_device: false, untouched: 0 },
            What::Target(target) => {
                Ready { len: target.old_len, is_device: target.is_device, untouched: target.untouched }
            }
        }
    }

    fn pass<'l>(&self, pass: &Pass, sender: &mut Sender<'l>, receiver: &mut Receiver<'l>) -> Result<()> {
        match &self.what {
            What::Target(target) => target.run(pass, sender, receiver).map(drop),
            What::Source(input) => {
                source::run(pass, input, sender, receiver)?;
                match receiver.receive()? {
                    Message::PassDone(_) => Ok(()),
                    _ => unexpected().map_err(|e| receiver.malformed(e)),
                }
            }
        }
    }

    fn finish(self) -> Result<()> {
        match self.what {
            What::Source(_) => Ok(()),
            What::Target(target) => target.finish(),
        }
    }
}
