//! The source's side of a pass: compares its blocks with what the target has, and sends those
//! that differ.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::thread;

use crossbeam_channel::bounded;

use super::link::{Receiver, Sender};
use super::message::{Hash, Message, PassEnd, STATES_MAX, State, unexpected};
use super::scan::{Found, Scan, Side};
use crate::blocks::input::{AskLayout, Input};
use crate::codec::frame::Encoder;
use crate::error::{Error, Result};
use crate::observe::{Event, Observer, Stop};

/// Blocks that are read and hashed ahead of the comparison, some batches of what the target tells.
const AHEAD: usize = 4 * STATES_MAX;

/// What a pass is about.
pub struct Pass<'a> {
    /// Bytes a block.
    pub block: u64,
    /// The source's length.
    pub len: u64,
    /// The blocks that are looked at, in order.
    pub ranges: &'a [Range<u64>],
    /// Nothing is sent.
    pub compare: bool,
    /// zstd's level.
    pub level: u8,
    /// Who knows what of a source that is a device is allocated.
    pub ask_layout: AskLayout,
    /// Is told of what was done.
    pub observer: &'a dyn Observer,
    /// Asks to stop.
    pub stop: &'a Stop,
}

/// What the reading thread hands over.
enum Own {
    Zeros { first: u64, count: u64 },
    Data { block: u64, hash: Hash },
}

/// Runs a pass over what `input` was opened on; tells the target how it ended.
pub fn run<'l>(
    pass: &Pass,
    input: &Input,
    sender: &mut Sender<'l>,
    receiver: &mut Receiver<'l>,
) -> Result<PassEnd> {
    let quit = AtomicBool::new(false);
    let input = &reopened(input, pass)?;
    let side = Side::Input(input);
    let scan = Scan { side, block: pass.block, len: pass.len, stop: pass.stop, quit: &quit };
    let mut compare = Compare::new(pass, input, &mut *sender, receiver)?;
    let (found, own) = bounded(AHEAD);
    let mut end = thread::scope(|scope| {
        let reader = scope.spawn(move || {
            scan.run(pass.ranges, |item| {
                let own = match item {
                    Found::Zeros { first, count } => Own::Zeros { first, count },
                    Found::Data { block, hash } => Own::Data { block, hash },
                };
                Ok(found.send(own).is_ok())
            })
        });
        let compared = own.into_iter().try_for_each(|own| compare.item(own));
        // On failure the receiver of blocks is gone by now, so the reader ends.
        let read = reader.join().map_err(|_| Error::Internal("the reader ended early"))?;
        compared?;
        let read = read?;
        Ok(PassEnd { read, ..compare.finish()? })
    })?;
    end.changed = input.has_changed()?;
    sender.send_now(&Message::PassEnd(end))?;
    Ok(end)
}

/// The source, opened anew for a pass, so that changes are noticed from here on, and holes are those
/// of now. It must have kept its length.
fn reopened(input: &Input, pass: &Pass) -> Result<Input> {
    let again = Input::open_sized(input.path())?;
    match again.known_len() == input.known_len() {
        true => again.ask_layout(pass.ask_layout, pass.observer, pass.stop),
        false => Err(Error::Refused(format!(
            "{} has changed its length meanwhile: begin again",
            input.path().display()
        ))),
    }
}

/// The comparison, block after block.
struct Compare<'a, 'p, 'l> {
    pass: &'a Pass<'p>,
    input: &'a Input,
    sender: &'a mut Sender<'l>,
    receiver: &'a mut Receiver<'l>,
    /// What the target said and was not compared yet.
    theirs: VecDeque<Their>,
    encoder: Encoder,
    /// A block that is sent.
    bytes: Vec<u8>,
    zeros: Range<u64>,
    end: PassEnd,
}

enum Their {
    Zeros(u64),
    Hash(Hash),
}

impl<'a, 'p, 'l> Compare<'a, 'p, 'l> {
    fn new(
        pass: &'a Pass<'p>,
        input: &'a Input,
        sender: &'a mut Sender<'l>,
        receiver: &'a mut Receiver<'l>,
    ) -> Result<Self> {
        let level = i8::try_from(pass.level).unwrap_or(i8::MAX).min(22);
        Ok(Self {
            pass,
            input,
            sender,
            receiver,
            theirs: VecDeque::new(),
            encoder: Encoder::new(level)?,
            bytes: Vec::new(),
            zeros: 0..0,
            end: PassEnd::default(),
        })
    }

    fn item(&mut self, own: Own) -> Result<()> {
        match own {
            Own::Zeros { first, count } => self.zeros(first, count),
            Own::Data { block, hash } => {
                match self.next(1)? {
                    Their::Hash(theirs) if theirs == hash => self.end.same += 1,
                    _ => self.differs(block)?,
                }
                self.advance(1);
                Ok(())
            }
        }
    }

    fn zeros(&mut self, mut first: u64, mut count: u64) -> Result<()> {
        while count > 0 {
            let done = match self.next(count)? {
                Their::Zeros(equal) => {
                    self.end.same += equal;
                    equal
                }
                Their::Hash(_) => {
                    self.end.zero += 1;
                    self.add_zero(first)?;
                    1
                }
            };
            self.advance(done);
            first += done;
            count -= done;
        }
        Ok(())
    }

    /// What the target has next: a hash, or up to `max` blocks of zeros.
    fn next(&mut self, max: u64) -> Result<Their> {
        loop {
            match self.theirs.pop_front() {
                Some(Their::Zeros(count)) if count > max => {
                    self.theirs.push_front(Their::Zeros(count - max));
                    return Ok(Their::Zeros(max));
                }
                Some(their) => return Ok(their),
                None => self.hear()?,
            }
        }
    }

    fn hear(&mut self) -> Result<()> {
        let Message::States(states) = self.receiver.receive()? else {
            return unexpected().map_err(|e| self.receiver.malformed(e));
        };
        for state in states {
            match state {
                State::Zeros(count) => self.theirs.push_back(Their::Zeros(count)),
                State::Hashes(hashes) => self.theirs.extend(hashes.into_iter().map(Their::Hash)),
            }
        }
        Ok(())
    }

    /// Sends a block. It is read a second time, mostly from memory: to keep the bytes of all that were
    /// hashed would take them out of the processor's cache, and few differ.
    fn differs(&mut self, block: u64) -> Result<()> {
        self.end.diff += 1;
        if self.pass.compare {
            return Ok(());
        }
        self.send_zeros()?;
        let offset = block * self.pass.block;
        self.bytes.resize(self.pass.block.min(self.pass.len - offset) as usize, 0);
        self.input.read_at(offset, &mut self.bytes)?;
        let (codec, encoded) = self.encoder.encode(&self.bytes)?;
        self.end.sent += encoded.len() as u64;
        self.send(&Message::Data { block, raw_len: self.bytes.len() as u32, codec, bytes: encoded })
    }

    fn add_zero(&mut self, block: u64) -> Result<()> {
        if self.zeros.end != block || self.zeros.is_empty() {
            self.send_zeros()?;
            self.zeros.start = block;
        }
        self.zeros.end = block + 1;
        Ok(())
    }

    fn send_zeros(&mut self) -> Result<()> {
        let Range { start: first, end } = std::mem::take(&mut self.zeros);
        if end == first || self.pass.compare {
            return Ok(());
        }
        self.send(&Message::Zeros { first, count: end - first })
    }

    /// If the target is gone, what it said last tells why.
    fn send(&mut self, message: &Message) -> Result<()> {
        self.sender.send(message).map_err(|e| self.receiver.last_words().unwrap_or(e))
    }

    fn advance(&self, blocks: u64) {
        self.pass.observer.event(Event::Advance { bytes: blocks.saturating_mul(self.pass.block), files: 0 });
    }

    fn finish(mut self) -> Result<PassEnd> {
        self.send_zeros()?;
        match self.theirs.is_empty() {
            true => Ok(self.end),
            false => unexpected().map_err(|e| self.receiver.malformed(e)),
        }
    }
}
