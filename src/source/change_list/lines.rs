//! Lists with a range a line: plain ones, and ddrescue's mapfiles.

use std::io::BufRead;

use super::{Input, Parsed, Sink, wrong};

/// What ddrescue knows of a range; `+` is finished, or in the domain.
const RANGE_STATES: &str = "?*/-+";
/// What it was doing: the second word of a mapfile's first line.
const CURRENT_STATES: &str = "?*/-FG+";

/// Whether it is a mapfile.
pub(super) fn read<R: BufRead>(input: &mut Input<R>, sink: &mut Sink) -> Parsed<bool> {
    let mut is_map = None;
    while let Some(line) = input.until(b'\n')? {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let is_comment = words.first().is_none_or(|word| word.starts_with('#'));
        match is_map {
            _ if is_comment => {}
            None if is_current(&words) => is_map = Some(true),
            Some(true) => map_line(&words, sink).map_err(wrong)?,
            None | Some(false) => {
                is_map = Some(false);
                plain_line(&words, sink).map_err(wrong)?;
            }
        }
        input.line += 1;
    }
    if is_map == Some(true) {
        sink.told_all();
    }
    Ok(is_map == Some(true))
}

fn is_current(words: &[&str]) -> bool {
    matches!(words, [_, state] | [_, state, _] if is_state(state, CURRENT_STATES))
}

fn is_state(word: &str, states: &str) -> bool {
    word.len() == 1 && states.contains(word)
}

fn map_line(words: &[&str], sink: &mut Sink) -> Result<(), String> {
    match words {
        [start, len, state] if is_state(state, RANGE_STATES) => {
            sink.told(number(start)?, number(len)?, *state == "+")
        }
        _ => Err("a mapfile has a position, a size and a status on each line".into()),
    }
}

fn plain_line(words: &[&str], sink: &mut Sink) -> Result<(), String> {
    match words {
        [start, len] => sink.changed(number(start)?, number(len)?, 1),
        _ => Err("a list of ranges has an offset and a length, in bytes, on each line".into()),
    }
}

fn number(word: &str) -> Result<u64, String> {
    let parsed = match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        Some(digits) if !digits.starts_with('+') => u64::from_str_radix(digits, 16).ok(),
        None if !word.starts_with('+') => word.parse().ok(),
        _ => None,
    };
    parsed.ok_or_else(|| format!("'{word}' is no number of bytes"))
}
