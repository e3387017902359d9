//! One end of the conversation: messages over any two byte streams.

use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Scope, sleep};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};

use super::message::{BODY_MAX, MAGIC, Message, VERSION};
use crate::error::{Error, Result};
use crate::format::wire::Malformed;
use crate::observe::Stop;

/// What is gathered before it is sent.
const BUFFER_LEN: usize = 64 << 10;

/// While it waits because of a limit, it is looked so often whether somebody asks to stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Where the other side's bytes come from.
pub type Incoming<'a> = Box<dyn Read + Send + 'a>;
/// Where bytes for the other side go.
pub type Outgoing<'a> = Box<dyn Write + Send + 'a>;

/// The sending half.
pub struct Sender<'a> {
    to: Arc<Mutex<BufWriter<Outgoing<'a>>>>,
    peer: String,
    pace: Option<Pace>,
    stop: &'a Stop,
    /// While this is there, the other side is told that this one is.
    beat: Option<crossbeam_channel::Sender<()>>,
}

/// The receiving half.
pub struct Receiver<'a> {
    from: BufReader<Incoming<'a>>,
    peer: String,
    body: Vec<u8>,
    stop: &'a Stop,
}

/// Greets the other side, which is called `peer` in messages, and checks that it speaks the same
/// protocol.
pub fn greet<'a>(
    from: Incoming<'a>,
    to: Outgoing<'a>,
    peer: &str,
    stop: &'a Stop,
) -> Result<(Sender<'a>, Receiver<'a>)> {
    let mut to = BufWriter::with_capacity(BUFFER_LEN, to);
    let from = BufReader::with_capacity(BUFFER_LEN, from);
    let mut receiver = Receiver { from, peer: peer.into(), body: Vec::new(), stop };
    let hello = [&MAGIC[..], &VERSION.to_le_bytes()].concat();
    // If it is gone already, what it said before tells more.
    let greeted = to.write_all(&hello).and_then(|()| to.flush());
    receiver.check_hello()?;
    greeted.map_err(|e| lost(peer, &e))?;
    let sender = Sender { to: Arc::new(Mutex::new(to)), peer: peer.into(), pace: None, stop, beat: None };
    Ok((sender, receiver))
}

impl<'a> Sender<'a> {
    /// From now on, until this is dropped, tells the other side that often that this one is there,
    /// however long it has nothing else to say.
    pub fn keep_alive<'scope>(&mut self, scope: &'scope Scope<'scope, '_>, every: Duration)
    where
        'a: 'scope,
    {
        let (beat, ended) = bounded::<()>(0);
        self.beat = Some(beat);
        let to = Arc::clone(&self.to);
        scope.spawn(move || {
            while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                let mut to = lock(&to);
                // If it fails, so does what is sent next, which is told.
                let _ = put(&mut *to, &Message::Alive).and_then(|()| to.flush());
            }
        });
    }

    /// From now on at most so many bytes a second go out as data; 0 is no limit.
    pub fn set_rate(&mut self, rate: u64) {
        self.pace = (rate > 0).then(|| Pace { rate, due: Instant::now() });
    }

    /// Sends a message, sooner or later.
    pub fn send(&mut self, message: &Message) -> Result<()> {
        if let (Some(pace), Message::Data { bytes, .. }) = (&mut self.pace, message) {
            pace.wait_for(bytes.len() as u64, self.stop)?;
        }
        put(&mut *lock(&self.to), message).map_err(|e| self.lost(&e))
    }

    /// Hangs up, so that a side that only waits for more ends as well.
    pub fn close(&mut self) {
        let mut to = lock(&self.to);
        // What cannot be sent now never will be.
        let _ = to.flush();
        *to = BufWriter::new(Box::new(std::io::sink()));
    }

    /// Sends a message, and all before it, now.
    pub fn send_now(&mut self, message: &Message) -> Result<()> {
        self.send(message)?;
        lock(&self.to).flush().map_err(|e| self.lost(&e))
    }

    /// Who was asked to stop has not lost anybody.
    fn lost(&self, error: &std::io::Error) -> Error {
        self.stop.check().err().unwrap_or_else(|| lost(&self.peer, error))
    }
}

fn put(to: &mut impl Write, message: &Message) -> std::io::Result<()> {
    let (kind, body) = message.encode();
    to.write_all(&[kind])?;
    to.write_all(&(body.len() as u32).to_le_bytes())?;
    to.write_all(&body)
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Receiver<'_> {
    /// The next message. A failure that the other side tells of is an error here.
    pub fn receive(&mut self) -> Result<Message> {
        loop {
            match self.next()? {
                Message::Alive => {}
                message => return Ok(message),
            }
        }
    }

    fn next(&mut self) -> Result<Message> {
        let mut head = [0; 5];
        self.from.read_exact(&mut head).map_err(|e| self.lost(&e))?;
        let [kind, len @ ..] = head;
        let len = u32::from_le_bytes(len) as usize;
        if len > BODY_MAX {
            return Err(self.malformed(Malformed("a message is too long")));
        }
        self.body.clear();
        // Grows with what arrives, not with what the head claims.
        let read = (&mut self.from).take(len as u64).read_to_end(&mut self.body);
        if read.map_err(|e| self.lost(&e))? < len {
            return Err(self.lost(&ErrorKind::UnexpectedEof.into()));
        }
        match Message::decode(kind, &self.body).map_err(|e| self.malformed(e))? {
            Message::Failure { refused: true, text } => Err(Error::Refused(format!("{}: {text}", self.peer))),
            Message::Failure { text, .. } => Err(Error::Peer { peer: self.peer.clone(), what: text }),
            message => Ok(message),
        }
    }

    /// Who was asked to stop has not lost anybody.
    fn lost(&self, error: &std::io::Error) -> Error {
        self.stop.check().err().unwrap_or_else(|| lost(&self.peer, error))
    }

    /// What a message that makes no sense here comes to.
    pub fn malformed(&self, why: Malformed) -> Error {
        Error::Peer { peer: self.peer.clone(), what: format!("it does not follow the protocol: {why}") }
    }

    /// Reads until the other side is gone, for the failure that it may have told of.
    pub fn last_words(&mut self) -> Option<Error> {
        loop {
            match self.receive() {
                Ok(_) => {}
                Err(e) if is_lost(&e) => return None,
                Err(e) => return Some(e),
            }
        }
    }

    fn check_hello(&mut self) -> Result<()> {
        let mut hello = Vec::new();
        let len = MAGIC.len() + 4;
        (&mut self.from).take(len as u64).read_to_end(&mut hello).map_err(|e| self.lost(&e))?;
        let Some((magic, version)) = hello.split_first_chunk::<8>() else {
            return Err(self.no_varv(&hello));
        };
        if *magic != MAGIC {
            return Err(self.no_varv(&hello));
        }
        let Ok(version) = <[u8; 4]>::try_from(version) else { return Err(self.no_varv(&hello)) };
        match u32::from_le_bytes(version) {
            VERSION => Ok(()),
            theirs => Err(Error::Peer {
                peer: self.peer.clone(),
                what: format!(
                    "it speaks version {theirs} of the protocol, and this varv version {VERSION}: install the same \
                     varv on both sides"
                ),
            }),
        }
    }

    fn no_varv(&self, said: &[u8]) -> Error {
        let what = match said.is_empty() {
            true => "it said nothing".to_string(),
            false => format!("it said '{}'", crate::text::escape(said)),
        };
        Error::Peer {
            peer: self.peer.clone(),
            what: format!("{what}, which is not how varv begins: is varv there? --remote-varv says where"),
        }
    }
}

const LOST: &str = "the connection was lost";

fn lost(peer: &str, error: &std::io::Error) -> Error {
    let why = match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe => String::new(),
        _ => format!(" ({error})"),
    };
    Error::Peer {
        peer: peer.into(),
        what: format!("{LOST}{why}; what was written stays, and running it again sends what is missing"),
    }
}

fn is_lost(error: &Error) -> bool {
    matches!(error, Error::Peer { what, .. } if what.starts_with(LOST))
}

/// Keeps a rate; time in which nothing was sent is not made up for.
struct Pace {
    rate: u64,
    due: Instant,
}

impl Pace {
    fn wait_for(&mut self, len: u64, stop: &Stop) -> Result<()> {
        loop {
            stop.check()?;
            let left = self.due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            sleep(left.min(LOOK_EVERY));
        }
        let takes = Duration::try_from_secs_f64(len as f64 / self.rate as f64).unwrap_or(Duration::MAX);
        let now = Instant::now();
        self.due = now.checked_add(takes).unwrap_or(now);
        Ok(())
    }
}
