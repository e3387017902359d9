//! Reading: what several threads do with the scan's steps.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Stat, fstat};

use super::buffers::{Buffer, Buffers};
use super::cut::{Cutter, Part, Piece};
use super::step::{Done, FileRead, FileToRead, PIECE_LEN, PieceRead, PieceSource, PieceToRead, Place, Step};
use crate::format::BLOCK;
use crate::format::map::Map;
use crate::format::tree::Payload;
use crate::source::extents::{Span, Spans, is_sparse, read_at, read_once_at, same};
use crate::source::metadata;
use crate::source::open::open_file;
use crate::source::owners::Owners;

/// Reads for one thread.
#[derive(Clone)]
pub struct Worker<'c> {
    /// Where it reads to.
    pub buffers: Arc<Buffers>,
    /// Cuts what was read.
    pub cutter: Cutter<'c>,
    /// Names owners.
    pub owners: &'c Owners,
}

impl Worker<'_> {
    /// Does a batch of steps. The files of a batch are read into one buffer, since allocating
    /// one for each costs more than reading it.
    pub fn work(&self, steps: Vec<Step>) -> Vec<Done> {
        let mut buffer = self.buffers.take();
        buffer.reserve(steps.iter().map(Step::file_len).sum());
        let mut done: Vec<Done> = steps.into_iter().map(|step| self.step(step, &mut buffer)).collect();
        let buffer = Arc::new(buffer);
        for done in &mut done {
            if let Done::File(file) = done {
                file.piece = Piece::new(Arc::clone(&buffer), std::mem::take(&mut file.piece.parts));
            }
        }
        done
    }

    fn step(&self, step: Step, buffer: &mut Buffer) -> Done {
        match step {
            Step::Read(file) => match self.read_file(&file, buffer) {
                Ok(read) => Done::File(Box::new(read)),
                Err(e) => Done::Step(Step::Missing(file.place, e.to_string())),
            },
            Step::Piece(piece) => Done::Piece(self.read_piece(piece)),
            other => Done::Step(other),
        }
    }

    fn read_file(&self, wanted: &FileToRead, buffer: &mut Buffer) -> io::Result<FileRead> {
        let file = open(&wanted.place)?;
        let before = fstat(&file)?;
        if FileType::from_raw_mode(before.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it is no file any more"));
        }
        let xattrs = metadata::xattrs_of_fd(&file)?;
        let piece = Piece::new(Arc::default(), self.read_whole(&file, &before, buffer)?);
        let unstable = !same(&before, &fstat(&file)?) || !same(&before, &wanted.stat);
        let payload = Payload::File(Map::default());
        let entry = metadata::entry(wanted.name.clone(), &before, self.owners, xattrs, payload);
        let (change, place, earlier) = (wanted.change.clone(), wanted.place.clone(), wanted.earlier.clone());
        Ok(FileRead { entry, piece, change, earlier, unstable, place })
    }

    fn read_whole(&self, file: &File, stat: &Stat, buffer: &mut Buffer) -> io::Result<Vec<Part>> {
        // One that has just grown beyond all bounds is kept as far as it fits, and reported.
        let len = (stat.st_size as u64).min(2 * PIECE_LEN);
        let begin = buffer.len();
        let mut spans = Vec::new();
        for span in Spans::new(file, len, is_sparse(stat)) {
            let Span::Data(range) = span else { continue };
            let bytes = buffer.extend((range.end - range.start) as usize);
            read_once_at(file, bytes, range.start).and_then(|read| all_of(bytes, read))?;
            spans.push((range.start, range.end - range.start));
        }
        Ok(self.cutter.cut_spans(buffer, begin, &spans, len))
    }

    /// Reads and cuts a stretch.
    pub fn read_piece(&self, wanted: PieceToRead) -> PieceRead {
        let is_small = wanted.small_len().is_some();
        let PieceToRead { source, offset, more_follows, zero_errors, expected } = wanted;
        let mut unreadable = Vec::new();
        let piece = match source {
            PieceSource::Hole(len) => Ok(Piece::hole(len)),
            PieceSource::Bytes(body) => Ok(self.cutter.cut(body.into(), offset, more_follows, &expected)),
            PieceSource::File { file, len } => {
                let mut body = if is_small { Buffer::default() } else { self.buffers.take() };
                let bytes = body.extend(len as usize);
                // What lies around small pieces is read, too, where cuts have yet to meet.
                let read_at = if is_small { read_at } else { read_once_at };
                let read = match read_at(&file, bytes, offset).and_then(|read| all_of(bytes, read)) {
                    Err(_) if zero_errors => read_around(&file, offset, bytes, &mut unreadable),
                    other => other,
                };
                read.map(|()| self.cutter.cut(body, offset, more_follows, &expected))
            }
        };
        PieceRead { offset, piece, unreadable }
    }
}

fn all_of(wanted: &[u8], read: usize) -> io::Result<()> {
    if read < wanted.len() { Err(shrank()) } else { Ok(()) }
}

/// Reads block by block; blocks that cannot be read become zeros and are listed.
fn read_around(
    file: &File,
    offset: u64,
    bytes: &mut [u8],
    unreadable: &mut Vec<(u64, u64)>,
) -> io::Result<()> {
    for (number, block) in bytes.chunks_mut(BLOCK as usize).enumerate() {
        let at = offset + number as u64 * BLOCK;
        match read_at(file, block, at) {
            Ok(read) if read == block.len() => {}
            Ok(_) => return Err(shrank()),
            Err(_) => {
                block.fill(0);
                match unreadable.last_mut() {
                    Some((start, len)) if *start + *len == at => *len += block.len() as u64,
                    _ => unreadable.push((at, block.len() as u64)),
                }
            }
        }
    }
    Ok(())
}

fn shrank() -> io::Error {
    io::Error::other("it became shorter while it was read")
}

/// Opens what is at a place for reading; only a root may be a symlink.
pub fn open(place: &Place) -> io::Result<File> {
    match &place.folder.fd {
        Some(fd) => open_file(fd, place.name.as_slice(), false),
        None => open_file(CWD, &place.path(), true),
    }
}
