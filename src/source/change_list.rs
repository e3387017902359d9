//! Lists of what changed in a volume, as other tools write them.
//!
//! | first of it | made by | what of it may have changed |
//! |---|---|---|
//! | `<` | `thin_delta` | `different`, `right_only`, `left_only` |
//! | `[` and `start` | `qemu-img map --output=json` of an overlay | ranges of depth 0, the overlay itself |
//! | `[` and `exists` | `rbd diff --format=json` | all ranges |
//! | `[` and `type` | `nbdinfo --map=qemu:dirty-bitmap:NAME --json` | ranges that are `dirty` |
//! | a status line | ddrescue mapfiles, `partclone.X --domain` | ranges with status `+` |
//! | two numbers | `offset length` a line, in bytes | all ranges |
//!
//! A list is untrusted input: what is not understood, contradicts itself or reaches beyond the
//! volume is an error that names its line, since a list of another volume, or half a list, would
//! make a backup that is wrong. Lists that tell of every range must leave no gap; what they do not
//! reach at the volume's end counts as changed.

mod json;
mod lines;
mod thin;

use std::io::{BufRead, ErrorKind};
use std::path::Path;

use super::changes::Changes;
use crate::error::{Error, IoContext, Result};
use crate::format::BLOCK;

/// The longest line or element of a list.
const LINE_MAX: u64 = 4096;

/// Reads the list at `path` of a volume of `len` bytes.
pub fn read_change_list(path: &Path, len: u64) -> Result<Changes> {
    read_file(path, |input| read(input, len))
}

/// Reads the ddrescue mapfile at `path`, as `partclone --domain` writes it, of a volume of `len`
/// bytes: what is finished, or in the domain, as if it had changed.
pub fn read_map_file(path: &Path, len: u64) -> Result<Changes> {
    read_file(path, |input| read_whole_map(input, len))
}

/// The same of what a program prints.
pub fn read_map(printed: impl std::io::Read, len: u64) -> Result<Changes, String> {
    let mut input = Input { reader: std::io::BufReader::new(printed), line: 1 };
    read_whole_map(&mut input, len).map_err(|wrong| told(wrong, input.line))
}

fn read_whole_map<R: BufRead>(input: &mut Input<R>, len: u64) -> Parsed<Changes> {
    let mut sink = Sink::new(len);
    match lines::read(input, &mut sink)? {
        true => Ok(sink.changes),
        false => Err(wrong("it is no mapfile of ddrescue or partclone")),
    }
}

fn read_file(
    path: &Path,
    read: impl FnOnce(&mut Input<std::io::BufReader<std::fs::File>>) -> Parsed<Changes>,
) -> Result<Changes> {
    let file = std::fs::File::open(path).at("open", path)?;
    let mut input = Input { reader: std::io::BufReader::new(file), line: 1 };
    read(&mut input).map_err(|wrong| match wrong {
        Wrong::Io(source) => Error::Io { action: "read", path: path.to_path_buf(), source },
        wrong => Error::Refused(format!("{}: {}", path.display(), told(wrong, input.line))),
    })
}

/// What is wrong, in words.
fn told(wrong: Wrong, line: u64) -> String {
    match wrong {
        Wrong::Io(e) => e.to_string(),
        Wrong::List(why) => format!("line {line}: {why}"),
        Wrong::Json(e) => e.to_string(),
    }
}

/// Reads what `thin_delta` prints for two volumes of one pool, whose word counts: what is not
/// allocated any more is a hole. With `allocated`, the two are one: what it has is added, to
/// `into` as all the rest.
pub fn read_thin_delta(
    printed: impl std::io::Read,
    into: Changes,
    allocated: bool,
) -> Result<Changes, String> {
    let mut input = Input { reader: std::io::BufReader::new(printed), line: 1 };
    let trust = if allocated { Trust::Allocated } else { Trust::Unmapped };
    let mut sink = Sink { changes: into, told: 0, trust };
    thin::read(&mut input, &mut sink).map_err(|wrong| told(wrong, input.line))?;
    Ok(sink.changes)
}

fn read<R: BufRead>(input: &mut Input<R>, len: u64) -> Parsed<Changes> {
    let mut sink = Sink::new(len);
    match input.first_byte()? {
        None => return Err(wrong("the list is empty: if nothing has changed, let it say so in a comment")),
        Some(b'<') => thin::read(input, &mut sink)?,
        Some(b'[') => json::read(&mut input.reader, &mut sink)?,
        Some(_) => _ = lines::read(input, &mut sink)?,
    }
    Ok(sink.changes)
}

/// Why a list is not understood.
#[derive(Debug)]
enum Wrong {
    Io(std::io::Error),
    /// On the line that was read last.
    List(String),
    /// Says where by itself.
    Json(serde_json::Error),
}

type Parsed<T> = std::result::Result<T, Wrong>;

fn wrong(why: impl Into<String>) -> Wrong {
    Wrong::List(why.into())
}

impl From<std::io::Error> for Wrong {
    fn from(e: std::io::Error) -> Self {
        Wrong::Io(e)
    }
}

/// Where ranges go; they are checked against the volume's length.
struct Sink {
    changes: Changes,
    /// Where the range before ended, for lists that tell of every range.
    told: u64,
    trust: Trust,
}

/// How far a list is believed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// All that differs is read.
    None,
    /// What is allocated no more is a hole.
    Unmapped,
    /// What both have is what there is.
    Allocated,
}

impl Sink {
    fn new(len: u64) -> Self {
        Self { changes: Changes::none(len), told: 0, trust: Trust::None }
    }

    /// A range of bytes that may have changed. Tools count in units of `unit` bytes, so the last
    /// one may reach beyond the volume's end.
    fn changed(&mut self, start: u64, len: u64, unit: u64) -> Result<(), String> {
        let end = self.end(start, len, unit)?;
        self.changes.add(start..end);
        Ok(())
    }

    /// A volume's own list may have more: of a thin one that was shrunk the pool keeps all blocks.
    fn end(&self, start: u64, len: u64, unit: u64) -> Result<u64, String> {
        let volume = self.changes.len();
        let limit = volume.checked_next_multiple_of(unit).unwrap_or(u64::MAX);
        let is_own = self.trust != Trust::None;
        let end = start.checked_add(len).filter(|end| is_own || *end <= limit);
        end.ok_or_else(|| {
            format!("{len} bytes at {start} reach beyond the volume, which has {volume}: this list is of another one")
        })
    }

    /// The next range of a list that tells of every range.
    fn told(&mut self, start: u64, len: u64, changed: bool) -> Result<(), String> {
        if start != self.told {
            return Err(format!("the list does not go on where it was: {start} follows after {}", self.told));
        }
        self.told = self.end(start, len, BLOCK)?;
        if changed { self.changed(start, len, BLOCK) } else { Ok(()) }
    }

    /// A list that tells of every range ends.
    fn told_all(&mut self) {
        self.changes.add(self.told..u64::MAX);
    }
}

/// A list's bytes, with the number of the line.
struct Input<R> {
    reader: R,
    line: u64,
}

impl<R: BufRead> Input<R> {
    /// The first byte that is no blank; it stays to be read.
    fn first_byte(&mut self) -> Parsed<Option<u8>> {
        loop {
            let byte = match self.reader.fill_buf() {
                Ok(bytes) => bytes.first().copied(),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(e.into()),
            };
            match byte {
                Some(byte) if byte.is_ascii_whitespace() => {
                    self.line += u64::from(byte == b'\n');
                    self.reader.consume(1);
                }
                other => return Ok(other),
            }
        }
    }

    /// The bytes up to `end`, which is taken too; `None` if nothing is left.
    fn until(&mut self, end: u8) -> Parsed<Option<String>> {
        let mut bytes = Vec::new();
        let read = std::io::Read::take(&mut self.reader, LINE_MAX).read_until(end, &mut bytes)?;
        if read == 0 {
            return Ok(None);
        }
        if bytes.pop() != Some(end) {
            return Err(wrong(match read as u64 {
                LINE_MAX => "it is too long",
                _ => "it does not end: the list may have been cut short",
            }));
        }
        String::from_utf8(bytes).map(Some).map_err(|_| wrong("it is no text"))
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // one range is what is meant
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ops::Range;

    const LEN: u64 = 1 << 20;

    fn parse(text: &[u8]) -> Result<Vec<Range<u64>>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let changes = read_change_list(file.path(), LEN)?;
        let mut out = Vec::new();
        let mut at = 0;
        while let Some(range) = changes.next_changed(at) {
            at = range.end;
            out.push(range);
        }
        Ok(out)
    }

    fn ranges(text: &str) -> Vec<Range<u64>> {
        parse(text.as_bytes()).unwrap()
    }

    fn refusal(text: &str) -> String {
        match parse(text.as_bytes()) {
            Err(Error::Refused(why)) => why,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    const THIN: &str = r#"<superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="0">
  <diff left="2" right="3">
    <different begin="0" length="1"/>
    <same begin="1" length="3"/>
    <right_only begin="5" length="2"/>
    <left_only begin="9" length="1"/>
  </diff>
</superblock>
"#;

    #[test]
    fn thin_delta() {
        assert_eq!(ranges(THIN), [0..65_536, 327_680..458_752, 589_824..655_360]);
        assert!(ranges(&THIN[..THIN.len() - 1].replace('\n', " ")).len() == 3);
    }

    #[test]
    fn thin_delta_that_is_no_whole_list() {
        let cut = THIN.find("  </diff>").unwrap();
        assert!(refusal(&THIN[..cut]).contains("cut short"));
        assert!(refusal(&THIN[..cut - 3]).contains("line 6"), "{}", refusal(&THIN[..cut - 3]));
        for (from, to, why) in [
            ("\"128\"", "\"127\"", "line 1"),
            ("\"128\"", "\"18446744073709551615\"", "line 1"),
            ("<same", "<sane", "line 4"),
            ("begin=\"9\"", "begin=\"16\"", "beyond the volume"),
            ("begin=\"9\"", "begin=\"x\"", "line 6"),
            ("length=\"1\"", "length=\"18446744073709551615\"", "line 3"),
            (" length=\"3\"", "", "line 4"),
            ("<diff left=\"2\" right=\"3\">", "", "line 3"),
            ("</diff>", "</diff><diff left=\"1\" right=\"2\">", "line 7"),
        ] {
            let why_not = refusal(&THIN.replacen(from, to, 1));
            assert!(why_not.contains(why), "{from}: {why_not}");
        }
        let dump = "<superblock uuid=\"\" data_block_size=\"128\">\n<device dev_id=\"1\">\n";
        assert!(refusal(dump).contains("thin_delta"), "{}", refusal(dump));
    }

    #[test]
    fn plain_lists() {
        assert_eq!(
            ranges("# ours\n\n0 1\n0x10000 0x1000\n  8192\t1 \n"),
            [0..4096, 8192..12_288, 65_536..69_632]
        );
        assert_eq!(ranges("# nothing has changed\n"), []);
        assert!(refusal("0 1\n8192 409").contains("line 2"));
        assert!(refusal("0 1\n8192\n").contains("line 2"));
        assert!(refusal("0 1 2\n").contains("line 1"));
        assert!(refusal("0 -1\n").contains("line 1"));
        assert!(refusal("1048576 1\n").contains("beyond the volume"));
        assert!(refusal("").contains("empty"));
        assert!(refusal(" \n\n").contains("empty"));
        assert!(refusal(&"9".repeat(5000)).contains("too long"));
    }

    #[test]
    fn ddrescue_mapfiles() {
        let map = "# Mapfile. Created by GNU ddrescue version 1.27\n# current_pos  current_status  current_pass\n\
            0x00000000     +               1\n#      pos        size  status\n\
            0x00000000  0x00010000  +\n0x00010000  0x00020000  ?\n0x00030000  0x000D0000  +\n";
        assert_eq!(ranges(map), [0..65_536, 196_608..LEN]);
        let short = map.replace("0x000D0000  +", "0x00001000  ?");
        assert_eq!(ranges(&short), [0..65_536, 200_704..LEN]);
        assert!(refusal(&map.replace("0x00030000 ", "0x00030200 ")).contains("line 7"));
        assert!(refusal(&map.replace("  ?", "  x")).contains("line 6"));
        assert!(refusal(&map.replace("0x000D0000", "0x000D2000")).contains("beyond the volume"));
    }

    #[test]
    fn qemu_img_map() {
        let map = r#"[{ "start": 0, "length": 65536, "depth": 0, "present": true, "zero": false, "data": true, "offset": 327680},
{ "start": 65536, "length": 131072, "depth": 1, "present": true, "zero": false, "data": true, "offset": 0},
{ "start": 196608, "length": 4096, "depth": 0, "present": true, "zero": true, "data": false},
{ "start": 200704, "length": 847872, "depth": 1, "present": false, "zero": true, "data": false}]
"#;
        assert_eq!(ranges(map), [0..65_536, 196_608..200_704]);
        let overlapping = map.replace("65536, \"length\": 131072", "61440, \"length\": 135168");
        assert!(refusal(&overlapping).contains("61440 follows after 65536"), "{}", refusal(&overlapping));
        assert!(refusal(&map.replace("\"depth\": 1, \"present\": false, ", "")).contains("line 4"));
        assert!(refusal(&map.replace("847872", "900000")).contains("beyond the volume"));
        assert!(parse(map.trim_end().trim_end_matches(']').as_bytes()).is_err());
    }

    #[test]
    fn rbd_diff() {
        let old = r#"[{"offset":"0","length":"4096","exists":"true"},{"offset":"65536","length":"4096","exists":"false"}]"#;
        assert_eq!(ranges(old), [0..4096, 65_536..69_632]);
        assert_eq!(ranges(&old.replace("\"0\"", "0").replace("\"true\"", "true")), [0..4096, 65_536..69_632]);
        assert_eq!(ranges("[]\n"), []);
        assert!(refusal(&old.replace("\"65536\"", "\"x\"")).contains("line 1"));
        assert!(refusal(&old.replace(",\"exists\":\"false\"", "")).contains("line 1"));
        assert!(refusal(&format!("{old}[]")).contains("line 1"));
    }

    #[test]
    fn nbd_dirty_bitmaps() {
        let map = r#"[ { "offset": 0, "length": 65536, "type": 1, "description": "dirty" },
            { "offset": 65536, "length": 983040, "type": 0, "description": "clean" } ]"#;
        assert_eq!(ranges(map), [0..65_536]);
        let allocation = map.replace("clean", "data");
        assert!(refusal(&allocation).contains("line 2"), "{}", refusal(&allocation));
    }

    #[test]
    fn a_huge_list_takes_no_memory() {
        let mut text = String::new();
        for number in 0..200_000u64 {
            text.push_str(&format!("{} 1\n", number * 7919 % LEN));
        }
        assert_eq!(ranges(&text), [0..LEN]);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>, from in 0usize..600, to in 0usize..600, kind in 0usize..4) {
            let _ = parse(&bytes);
            let whole: &[u8] = match kind {
                0 => THIN.as_bytes(),
                1 => br#"[{"offset":"0","length":"4096","exists":"true"}]"#,
                2 => b"# x\n0x0 + 1\n0x0 0x1000 +\n",
                _ => b"0 4096\n",
            };
            let (from, to) = (from.min(whole.len()), to.min(whole.len()));
            let _ = parse(&[&whole[..from], &bytes, &whole[to..]].concat());
        }
    }
}
