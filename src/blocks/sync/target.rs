//! The target's side of a pass: tells what it has, and writes what it is sent.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rustix::fs::{Advice, fadvise};

use super::link::{Receiver, Sender};
use super::message::{Message, PassDone, PassEnd, STATES_MAX, State, unexpected};
use super::scan::{Found, Scan, Side};
use super::source::Pass;
use crate::blocks::input::{Input, Origin};
use crate::blocks::output::{Output, Writer, Zeros, open_file, target_kind};
use crate::codec::frame::Decoder;
use crate::error::{Error, IoContext, Result};
use crate::format::BLOCK;
use crate::format::pack::Codec;
use crate::format::wire::Malformed;
use crate::target::{DeviceTarget, TargetKind};

/// States are told when there are so many.
const TELL_AT: usize = 64;

/// The target, open.
pub struct Target {
    output: Option<Output>,
    /// In a dry run, what is there.
    input: Option<Input>,
    /// A file that is longer than the source gets this length once it has been synchronised.
    cut_to: Option<u64>,
    /// Its length as it was.
    pub old_len: u64,
    /// Whether it is a device.
    pub is_device: bool,
    /// Bytes of a device behind the source's end.
    pub untouched: u64,
}

impl Target {
    /// Opens the target for a source of this length. A file gets that length, a longer one at the end
    /// of a pass; a device must have it.
    pub fn open(path: &Path, len: u64, dry_run: bool) -> Result<Self> {
        let kind = target_kind(path)?;
        if len > crate::blocks::LEN_MAX {
            return Err(Error::Refused(format!("{len} bytes are more than anything can hold")));
        }
        match kind {
            TargetKind::BlockDevice => Self::open_device(path, len, dry_run),
            TargetKind::Directory => {
                Err(Error::Refused(format!("{} is a directory; name a file or a device", path.display())))
            }
            TargetKind::File | TargetKind::Missing => Self::open_file(path, len, dry_run, kind),
        }
    }

    /// Nothing, of which nothing is known.
    pub fn nothing() -> Self {
        Self { output: None, input: None, cut_to: None, old_len: 0, is_device: false, untouched: 0 }
    }

    fn open_device(path: &Path, len: u64, dry_run: bool) -> Result<Self> {
        // Claimed in a dry run too: what would be refused is.
        let device = DeviceTarget::open(path, len)?;
        let (old_len, untouched) = (device.device_len(), device.device_len() - len);
        let (output, input) = match dry_run {
            false => (Some(Output::Device(device)), None),
            true => {
                drop(device);
                (None, Some(Input::open(&Origin::Path(path.into()))?))
            }
        };
        Ok(Self { output, input, cut_to: None, old_len, is_device: true, untouched })
    }

    fn open_file(path: &Path, len: u64, dry_run: bool, kind: TargetKind) -> Result<Self> {
        let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let exists = kind == TargetKind::File;
        let meta = exists.then(|| std::fs::metadata(path).at("look at", path)).transpose()?;
        if meta.as_ref().is_some_and(|meta| !meta.is_file()) {
            return Err(Error::Refused(format!("{} is neither a file nor a block device", path.display())));
        }
        let old_len = meta.map_or(0, |meta| meta.len());
        let mut target = Self { old_len, ..Self::nothing() };
        if dry_run {
            target.input = exists.then(|| Input::open(&Origin::Path(path.into()))).transpose()?;
            return Ok(target);
        }
        target.cut_to = (old_len > len).then_some(len);
        let file = open_file(path, exists, (old_len <= len).then_some(len))?;
        target.output = Some(Output::File(file.unseen()));
        Ok(target)
    }

    fn side(&self) -> Side<'_> {
        match (&self.output, &self.input) {
            (Some(output), _) => Side::Output(output),
            (None, Some(input)) => Side::Input(input),
            (None, None) => Side::Nothing,
        }
    }

    /// Runs a pass; tells the source when all is on the disk.
    pub fn run(
        &self,
        pass: &Pass,
        sender: &mut Sender,
        receiver: &mut Receiver,
    ) -> Result<(PassEnd, PassDone)> {
        if let (true, Some(output)) = (pass.compare, &self.output) {
            // So that it comes from the disk; where that is not possible, it comes from memory.
            let _ = fadvise(output, 0, None, Advice::DontNeed);
        }
        let before = self.written();
        let (end, read) = self.exchange(pass, sender, receiver)?;
        if let Some(output) = &self.output {
            if let (Output::File(file), Some(len), false) = (output, self.cut_to, pass.compare) {
                file.set_len(len)?;
            }
            output.sync()?;
        }
        let done = PassDone { written: self.written() - before, read };
        sender.send_now(&Message::PassDone(done))?;
        Ok((end, done))
    }

    fn written(&self) -> u64 {
        self.output.as_ref().map_or(0, |output| output.content().counts().written)
    }

    /// One thread tells, the caller's writes. What fails here is told by whoever holds the sender.
    fn exchange(&self, pass: &Pass, sender: &mut Sender, receiver: &mut Receiver) -> Result<(PassEnd, u64)> {
        let quit = AtomicBool::new(false);
        let failure = Mutex::new(Failure::default());
        let Pass { block, len, stop, .. } = *pass;
        let scan = Scan { side: self.side(), block, len, stop, quit: &quit };
        thread::scope(|scope| {
            let teller = scope.spawn(|| tell(scan, pass.ranges, sender, &failure));
            let written = self.write(pass, receiver);
            if let Err(e) = &written {
                quit.store(true, Ordering::Relaxed);
                // The teller may wait for a source that waits for us.
                if lock(&failure).leave(Message::failure(e)) {
                    let _ = receiver.last_words();
                }
            }
            let told = teller.join().map_err(|_| Error::Internal("the reader ended early"))?;
            match (written, told) {
                // Whose failure came first is known by what it is: the other one lost its partner.
                (Err(Error::Peer { .. }), Err(e)) if !matches!(e, Error::Peer { .. }) => Err(e),
                (written, told) => Ok((written?, told?)),
            }
        })
    }

    fn write(&self, pass: &Pass, receiver: &mut Receiver) -> Result<PassEnd> {
        let mut decoder = Decoder::new()?;
        let mut scratch = Vec::new();
        let mut writer = self
            .output
            .as_ref()
            .map(|output| Writer::new(output, BLOCK as usize, Zeros::Make, crate::blocks::LEN_MAX));
        let end = loop {
            pass.stop.check()?;
            match (receiver.receive()?, &mut writer) {
                (Message::PassEnd(end), _) => break end,
                (Message::Data { block, raw_len, codec, bytes }, Some(writer)) if !pass.compare => {
                    let (offset, len) = range(pass, block, 1).map_err(|e| receiver.malformed(e))?;
                    let raw = decode(&mut decoder, codec, &bytes, raw_len, len, &mut scratch)
                        .map_err(|e| receiver.malformed(e))?;
                    writer.data(offset, raw)?;
                }
                (Message::Zeros { first, count }, Some(writer)) if !pass.compare => {
                    let (offset, len) = range(pass, first, count).map_err(|e| receiver.malformed(e))?;
                    writer.zeros(offset, len)?;
                }
                _ => return unexpected().map_err(|e| receiver.malformed(e)),
            }
        };
        if let Some(writer) = writer {
            writer.finish()?;
        }
        Ok(end)
    }

    /// Ends the writing.
    pub fn finish(self) -> Result<()> {
        match self.output {
            Some(output) => output.finish().map(drop),
            None => Ok(()),
        }
    }
}

/// Where blocks lie, in bytes: only within the source's length.
fn range(pass: &Pass, first: u64, count: u64) -> Result<(u64, u64), Malformed> {
    let wrong = Malformed("blocks that lie behind the end");
    let end = first.checked_add(count).ok_or(wrong.clone())?;
    if count == 0 || end > pass.len.div_ceil(pass.block) {
        return Err(wrong);
    }
    let offset = first * pass.block;
    Ok((offset, (count.saturating_mul(pass.block)).min(pass.len - offset)))
}

fn decode<'a>(
    decoder: &mut Decoder,
    codec: Codec,
    bytes: &'a [u8],
    raw_len: u32,
    wanted: u64,
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8], Malformed> {
    if u64::from(raw_len) != wanted {
        return Err(Malformed("a block of another length"));
    }
    decoder
        .decode_in(codec, bytes, &[], wanted as usize, scratch)
        .ok_or(Malformed("a block that cannot be read"))
}

/// What the writing half leaves for the telling half, which has the sender.
#[derive(Default)]
struct Failure {
    is_over: bool,
    message: Option<Message>,
}

impl Failure {
    /// True if the telling half will send it; else nobody waits for it any more.
    fn leave(&mut self, message: Message) -> bool {
        self.message = Some(message);
        !self.is_over
    }
}

fn lock(failure: &Mutex<Failure>) -> std::sync::MutexGuard<'_, Failure> {
    failure.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the source what is here. Returns the bytes that were read.
fn tell(scan: Scan, ranges: &[Range<u64>], sender: &mut Sender, failure: &Mutex<Failure>) -> Result<u64> {
    let mut states = States::default();
    let scanned = scan.run(ranges, |found| {
        match found {
            Found::Zeros { count, .. } => states.zeros(count),
            Found::Data { hash, .. } => states.hash(hash),
        }
        match states.len >= TELL_AT {
            true => sender.send_now(&states.take()).map(|()| true),
            false => Ok(true),
        }
    });
    let told = scanned.and_then(|read| {
        if states.len > 0 {
            sender.send_now(&states.take())?;
        }
        Ok(read)
    });
    let mut failure = lock(failure);
    failure.is_over = true;
    if let (Err(e), None) = (&told, &failure.message) {
        failure.message = Some(Message::failure(e));
    }
    if let Some(message) = &failure.message {
        // If it cannot be told, the source is gone.
        let _ = sender.send_now(message);
        sender.close();
    }
    told
}

/// States that are gathered.
#[derive(Default)]
struct States {
    list: Vec<State>,
    len: usize,
}

impl States {
    fn zeros(&mut self, count: u64) {
        self.len += 1;
        match self.list.last_mut() {
            Some(State::Zeros(last)) => *last += count,
            _ => self.list.push(State::Zeros(count)),
        }
    }

    fn hash(&mut self, hash: super::message::Hash) {
        self.len += 1;
        match self.list.last_mut() {
            Some(State::Hashes(hashes)) if hashes.len() < STATES_MAX => hashes.push(hash),
            _ => self.list.push(State::Hashes(vec![hash])),
        }
    }

    fn take(&mut self) -> Message {
        self.len = 0;
        Message::States(std::mem::take(&mut self.list))
    }
}
