//! Lists that are an array of objects: from `qemu-img map`, `rbd diff` and `nbdinfo`.
//!
//! Objects are taken one by one, so that a list of any length takes no memory.

use std::io::BufRead;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};

use super::{Parsed, Sink, Wrong};

pub(super) fn read<R: BufRead>(reader: &mut R, sink: &mut Sink) -> Parsed<()> {
    let mut json = serde_json::Deserializer::from_reader(reader);
    let read = json.deserialize_seq(List { sink }).and_then(|()| json.end());
    read.map_err(|e| if e.is_io() { Wrong::Io(e.into()) } else { Wrong::Json(e) })
}

struct List<'s> {
    sink: &'s mut Sink,
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("an array of ranges")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut maker = None;
        while let Some(row) = list.next_element::<Row>()? {
            let its = row.maker().map_err(A::Error::custom)?;
            if *maker.get_or_insert(its) != its {
                return Err(A::Error::custom("it is of another kind than those before it"));
            }
            row.take(its, self.sink).map_err(A::Error::custom)?;
        }
        if matches!(maker, Some(Maker::Qemu | Maker::Nbd)) {
            self.sink.told_all();
        }
        Ok(())
    }
}

/// Who writes such a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Maker {
    Qemu,
    Rbd,
    Nbd,
}

/// All fields that matter of all kinds; others are passed over.
#[derive(Deserialize)]
struct Row {
    start: Option<Number>,
    offset: Option<Number>,
    length: Option<Number>,
    depth: Option<u64>,
    exists: Option<serde_json::Value>,
    description: Option<String>,
}

/// A number; older versions of rbd write it as a string.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Plain(u64),
    Text(String),
}

impl Row {
    fn maker(&self) -> Result<Maker, String> {
        match (&self.start, self.depth, &self.exists, self.description.as_deref()) {
            (Some(_), Some(_), None, _) => Ok(Maker::Qemu),
            (None, None, Some(exists), None) if is_truth(exists) => Ok(Maker::Rbd),
            (None, None, None, Some("dirty" | "clean")) => Ok(Maker::Nbd),
            (None, None, None, Some(other)) => Err(format!(
                "'{other}' is no state of a dirty bitmap: give nbdinfo --map=qemu:dirty-bitmap:NAME"
            )),
            _ => Err("it has not the fields of qemu-img map, rbd diff or nbdinfo".into()),
        }
    }

    fn take(&self, maker: Maker, sink: &mut Sink) -> Result<(), String> {
        let (offset, len) = (number(&self.offset), number(&self.length)?);
        match maker {
            Maker::Qemu => sink.told(number(&self.start)?, len, self.depth == Some(0)),
            Maker::Rbd => sink.changed(offset?, len, 1),
            Maker::Nbd => sink.told(offset?, len, self.description.as_deref() == Some("dirty")),
        }
    }
}

fn number(field: &Option<Number>) -> Result<u64, String> {
    match field {
        Some(Number::Plain(number)) => Some(*number),
        Some(Number::Text(text)) => text.parse().ok(),
        None => None,
    }
    .ok_or_else(|| "its offset or length is no number".into())
}

/// A truth value; older versions of rbd write it as a string.
fn is_truth(value: &serde_json::Value) -> bool {
    value.is_boolean() || matches!(value.as_str(), Some("true" | "false"))
}
