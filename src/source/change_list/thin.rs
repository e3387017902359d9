//! What `thin_delta` writes: XML without text, comments or entities, in units of pool blocks.

use std::io::BufRead;

use super::{Input, Parsed, Sink, Trust, wrong};

const SECTOR: u64 = 512;
/// Blocks of a pool have from 64 KiB to 1 GiB, in steps of 64 KiB.
const BLOCK_SECTORS_MIN: u64 = 128;
const BLOCK_SECTORS_MAX: u64 = 1 << 21;

/// Where in the list the next element is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Begin,
    Superblock,
    Diff,
    DiffDone,
    Done,
}

pub(super) fn read<R: BufRead>(input: &mut Input<R>, sink: &mut Sink) -> Parsed<()> {
    let (mut at, mut block) = (At::Begin, 0);
    while input.first_byte()?.is_some() {
        let text = input.until(b'>')?.ok_or_else(|| wrong("it ends"))?;
        let element = text.strip_prefix('<').ok_or_else(|| wrong("there is text between elements"))?;
        let name = element.split([' ', '\n', '\t', '/']).find(|name| !name.is_empty()).unwrap_or_default();
        at = match (at, name, element.starts_with('/')) {
            (At::Begin, "superblock", false) => {
                block = block_bytes(element).map_err(wrong)?;
                At::Superblock
            }
            (At::Superblock, "diff", false) => At::Diff,
            (At::Diff, "same" | "different" | "left_only" | "right_only", false) => {
                range(element, name, block, sink).map_err(wrong)?;
                At::Diff
            }
            (At::Diff, "diff", true) => At::DiffDone,
            (At::DiffDone, "superblock", true) => At::Done,
            _ => return Err(wrong(format!("<{element}> is nothing that thin_delta writes here"))),
        };
        input.line += text.matches('\n').count() as u64;
    }
    if at == At::Done { Ok(()) } else { Err(wrong("the list ends early: it may have been cut short")) }
}

fn block_bytes(element: &str) -> Result<u64, String> {
    let sectors = attribute(element, "data_block_size")?;
    let is_possible = (BLOCK_SECTORS_MIN..=BLOCK_SECTORS_MAX).contains(&sectors);
    match is_possible && sectors.is_multiple_of(BLOCK_SECTORS_MIN) {
        true => Ok(sectors * SECTOR),
        false => Err(format!("no pool has blocks of {sectors} sectors")),
    }
}

fn range(element: &str, name: &str, block: u64, sink: &mut Sink) -> Result<(), String> {
    let bytes = |name| {
        let blocks = attribute(element, name)?;
        blocks.checked_mul(block).ok_or_else(|| format!("{blocks} blocks are more than any volume has"))
    };
    let (start, len) = (bytes("begin")?, bytes("length")?);
    let end = sink.end(start, len, block)?;
    match (sink.trust, name) {
        (Trust::Unmapped, "left_only") => sink.changes.add_hole(start..end),
        (Trust::Allocated, _) => sink.changes.add(start..end),
        (_, "same") => {}
        _ => sink.changes.add(start..end),
    }
    Ok(())
}

/// A number in an element: `name="12"`.
fn attribute(element: &str, name: &str) -> Result<u64, String> {
    let value = element.split_ascii_whitespace().find_map(|word| {
        let value = word.strip_prefix(name)?.strip_prefix("=\"")?;
        value.trim_end_matches('/').strip_suffix('"')
    });
    let number = value.filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    number.and_then(|digits| digits.parse().ok()).ok_or_else(|| format!("it has no number {name}"))
}
