//! What the two sides of a synchronisation say to each other, byte by byte.
//!
//! Each side first sends the eight bytes `varvsync` and its version of the protocol, a u32. Then
//! messages: a type (u8), the length of the body (u32), the body. Numbers are little-endian, or
//! varints (v) as in `format::wire`. Versions that differ do not talk to each other.
//!
//! | type | from | body |
//! |---|---|---|
//! | 1 request | caller | role of the called (u8: 0 source, 1 target), block (u32), length of the source or 0 (u64), dry run (u8), level (u8), bytes a second or 0 (u64), path |
//! | 2 ready | called | length of the source, or of what the target has now (u64), device (u8), bytes of it behind the source's end (u64) |
//! | 3 ranges | caller | pairs of first block (v) and number of blocks (v) that are to be looked at |
//! | 4 pass | caller | only the ranges (u8), only compare (u8) |
//! | 5 states | target | of its next blocks: 0 and a number of zero blocks (v), or 1, a number (v), and a BLAKE3 hash of 32 bytes each |
//! | 6 data | source | block (u64), raw length (u32), codec (u8: 0 raw, 1 zstd), bytes |
//! | 7 zeros | source | first block (u64), number of blocks (u64) |
//! | 8 pass end | source | blocks same, differing, zero (u64 each), source has changed (u8), bytes sent (u64), bytes read (u64) |
//! | 9 pass done | target | bytes written (u64), bytes read (u64) |
//! | 10 finish | caller, and the called once it has finished | |
//! | 11 failure | either | refused (u8), text |
//! | 12 alive | either, at any time | |

use crate::error::{Error, Result};
use crate::format::pack::Codec;
use crate::format::wire::{Decoded, Malformed, Reader, put_varint};

/// What opens the conversation.
pub const MAGIC: [u8; 8] = *b"varvsync";
/// The protocol that is spoken here.
pub const VERSION: u32 = 1;
/// The longest body: a block that did not shrink, and what stands before it.
pub const BODY_MAX: usize = (super::BLOCK_MAX + 1024) as usize;
/// Blocks in one message of states.
pub const STATES_MAX: usize = 256;
/// Ranges in one message.
pub const RANGES_MAX: usize = 4096;

/// A block's hash.
pub type Hash = [u8; 32];

/// Which side somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Gives.
    Source,
    /// Is made equal.
    Target,
}

/// What the caller wants of the called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What the called is to be.
    pub role: Role,
    /// Bytes a block.
    pub block: u32,
    /// Length of the source, if the caller has it.
    pub len: u64,
    /// Nothing is written.
    pub dry_run: bool,
    /// zstd's level; 0 does not compress.
    pub level: u8,
    /// The most bytes a second that the source sends; 0 without limit.
    pub rate: u64,
    /// The called's file or device.
    pub path: Vec<u8>,
}

/// The called is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Length of the source, or of what the target has now.
    pub len: u64,
    /// Whether the target is a device.
    pub is_device: bool,
    /// Bytes of a device behind the source's end.
    pub untouched: u64,
}

/// What a pass came to, on the source's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PassEnd {
    /// Blocks that were equal.
    pub same: u64,
    /// Blocks that differed and were sent.
    pub diff: u64,
    /// Blocks that differed and are zero.
    pub zero: u64,
    /// Whether the source was written to meanwhile.
    pub changed: bool,
    /// Bytes sent as data, after compression.
    pub sent: u64,
    /// Bytes of the source that were read.
    pub read: u64,
}

/// What a pass came to, on the target's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PassDone {
    /// Bytes written as data.
    pub written: u64,
    /// Bytes of the target that were read.
    pub read: u64,
}

/// What the target has, block after block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// So many blocks of zeros.
    Zeros(u64),
    /// A block with this hash each.
    Hashes(Vec<Hash>),
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Message {
    Request(Request),
    Ready(Ready),
    Ranges(Vec<(u64, u64)>),
    Pass { listed: bool, compare: bool },
    States(Vec<State>),
    Data { block: u64, raw_len: u32, codec: Codec, bytes: Vec<u8> },
    Zeros { first: u64, count: u64 },
    PassEnd(PassEnd),
    PassDone(PassDone),
    Finish,
    Failure { refused: bool, text: String },
    Alive,
}

impl Message {
    /// Type and body.
    pub fn encode(&self) -> (u8, Vec<u8>) {
        let mut body = Vec::new();
        let kind = match self {
            Message::Request(request) => {
                body.push(u8::from(request.role == Role::Target));
                body.extend(request.block.to_le_bytes());
                body.extend(request.len.to_le_bytes());
                body.extend([u8::from(request.dry_run), request.level]);
                body.extend(request.rate.to_le_bytes());
                body.extend(&request.path);
                1
            }
            Message::Ready(ready) => {
                body.extend(ready.len.to_le_bytes());
                body.push(u8::from(ready.is_device));
                body.extend(ready.untouched.to_le_bytes());
                2
            }
            Message::Ranges(ranges) => {
                for (first, count) in ranges {
                    put_varint(&mut body, *first);
                    put_varint(&mut body, *count);
                }
                3
            }
            Message::Pass { listed, compare } => {
                body.extend([u8::from(*listed), u8::from(*compare)]);
                4
            }
            Message::States(states) => {
                states.iter().for_each(|state| put_state(&mut body, state));
                5
            }
            Message::Data { block, raw_len, codec, bytes } => {
                body.reserve(bytes.len() + 16);
                body.extend(block.to_le_bytes());
                body.extend(raw_len.to_le_bytes());
                body.push(u8::from(*codec == Codec::Zstd));
                body.extend_from_slice(bytes);
                6
            }
            Message::Zeros { first, count } => {
                body.extend(first.to_le_bytes());
                body.extend(count.to_le_bytes());
                7
            }
            Message::PassEnd(end) => {
                for number in [end.same, end.diff, end.zero, end.sent, end.read] {
                    body.extend(number.to_le_bytes());
                }
                body.push(u8::from(end.changed));
                8
            }
            Message::PassDone(done) => {
                body.extend(done.written.to_le_bytes());
                body.extend(done.read.to_le_bytes());
                9
            }
            Message::Finish => 10,
            Message::Failure { refused, text } => {
                body.push(u8::from(*refused));
                body.extend(text.as_bytes());
                11
            }
            Message::Alive => 12,
        };
        (kind, body)
    }

    /// Reads a body back. What does not make sense on its own is malformed; what does not make
    /// sense at its place in the conversation is for the caller to see.
    pub fn decode(kind: u8, body: &[u8]) -> Decoded<Self> {
        let mut reader = Reader::new(body);
        let message = match kind {
            1 => Message::Request(Request {
                role: if flag(&mut reader)? { Role::Target } else { Role::Source },
                block: reader.u32()?,
                len: reader.u64()?,
                dry_run: flag(&mut reader)?,
                level: reader.u8()?,
                rate: reader.u64()?,
                path: rest(&mut reader)?,
            }),
            2 => Message::Ready(Ready {
                len: reader.u64()?,
                is_device: flag(&mut reader)?,
                untouched: reader.u64()?,
            }),
            3 => Message::Ranges(ranges(&mut reader)?),
            4 => Message::Pass { listed: flag(&mut reader)?, compare: flag(&mut reader)? },
            5 => Message::States(states(&mut reader)?),
            6 => Message::Data {
                block: reader.u64()?,
                raw_len: reader.u32()?,
                codec: if flag(&mut reader)? { Codec::Zstd } else { Codec::Raw },
                bytes: rest(&mut reader)?,
            },
            7 => Message::Zeros { first: reader.u64()?, count: reader.u64()? },
            8 => Message::PassEnd(PassEnd {
                same: reader.u64()?,
                diff: reader.u64()?,
                zero: reader.u64()?,
                sent: reader.u64()?,
                read: reader.u64()?,
                changed: flag(&mut reader)?,
            }),
            9 => Message::PassDone(PassDone { written: reader.u64()?, read: reader.u64()? }),
            10 => Message::Finish,
            11 => Message::Failure {
                refused: flag(&mut reader)?,
                text: String::from_utf8_lossy(&rest(&mut reader)?).into_owned(),
            },
            12 => Message::Alive,
            _ => return Err(Malformed("a message of unknown type")),
        };
        match reader.remaining() {
            0 => Ok(message),
            _ => Err(Malformed("a message is too long")),
        }
    }

    /// A failure as the other side gets to know it.
    pub fn failure(error: &Error) -> Self {
        Message::Failure { refused: matches!(error, Error::Refused(_)), text: error.to_string() }
    }
}

/// The next message was not the one that is due.
pub fn unexpected<T>() -> Result<T, Malformed> {
    Err(Malformed("a message that is not due"))
}

fn put_state(body: &mut Vec<u8>, state: &State) {
    match state {
        State::Zeros(count) => {
            body.push(0);
            put_varint(body, *count);
        }
        State::Hashes(hashes) => {
            body.push(1);
            put_varint(body, hashes.len() as u64);
            hashes.iter().for_each(|hash| body.extend(hash));
        }
    }
}

fn states(reader: &mut Reader) -> Decoded<Vec<State>> {
    let mut states = Vec::new();
    while reader.remaining() > 0 {
        let is_data = flag(reader)?;
        let count = reader.varint()?;
        if count == 0 || states.len() == STATES_MAX {
            return Err(Malformed("states of no blocks, or of too many"));
        }
        states.push(match is_data {
            false => State::Zeros(count),
            true if count > STATES_MAX as u64 => return Err(Malformed("too many hashes")),
            true => State::Hashes((0..count).map(|_| reader.array()).collect::<Decoded<_>>()?),
        });
    }
    Ok(states)
}

fn ranges(reader: &mut Reader) -> Decoded<Vec<(u64, u64)>> {
    let mut ranges = Vec::new();
    while reader.remaining() > 0 {
        if ranges.len() == RANGES_MAX {
            return Err(Malformed("too many ranges"));
        }
        ranges.push((reader.varint()?, reader.varint()?));
    }
    Ok(ranges)
}

fn flag(reader: &mut Reader) -> Decoded<bool> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed("a flag is neither 0 nor 1")),
    }
}

fn rest(reader: &mut Reader) -> Decoded<Vec<u8>> {
    reader.take(reader.remaining()).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all() -> Vec<Message> {
        vec![
            Message::Request(Request {
                role: Role::Target,
                block: 1 << 20,
                len: 7,
                dry_run: true,
                level: 3,
                rate: 9,
                path: b"/a\xff".to_vec(),
            }),
            Message::Ready(Ready { len: 1, is_device: true, untouched: 2 }),
            Message::Ranges(vec![(1, 2), (1 << 40, 3)]),
            Message::Pass { listed: true, compare: false },
            Message::States(vec![State::Zeros(1 << 30), State::Hashes(vec![[7; 32]; 3])]),
            Message::Data { block: 5, raw_len: 4, codec: Codec::Zstd, bytes: vec![1; 10] },
            Message::Zeros { first: 1, count: 2 },
            Message::PassEnd(PassEnd { same: 1, diff: 2, zero: 3, changed: true, sent: 4, read: 5 }),
            Message::PassDone(PassDone { written: 1, read: 2 }),
            Message::Finish,
            Message::Failure { refused: true, text: "no".into() },
            Message::Alive,
        ]
    }

    #[test]
    fn messages_come_back() {
        for message in all() {
            let (kind, body) = message.encode();
            assert_eq!(Message::decode(kind, &body), Ok(message));
        }
        assert!(Message::decode(13, &[]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(kind: u8, body: Vec<u8>) {
            if let Ok(message) = Message::decode(kind % 14, &body) {
                let (kind, body) = message.encode();
                prop_assert_eq!(Message::decode(kind, &body), Ok(message));
            }
        }

        #[test]
        fn flipped_and_cut_messages_are_read_without_harm(
            index: prop::sample::Index, flip: prop::sample::Index, bit in 0u8..8, cut: prop::sample::Index,
        ) {
            let (kind, mut body) = index.get(&all()).encode();
            if !body.is_empty() {
                let at = flip.index(body.len());
                body[at] ^= 1 << bit;
                body.truncate(body.len() - cut.index(body.len()));
            }
            let _ = Message::decode(kind, &body);
        }
    }
}
