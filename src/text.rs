//! Sizes and byte strings as people write and read them.

use std::fmt::Write;

/// Reads a SIZE: a number of bytes, or one with a unit: `B`, `K M G T P E`, `KiB`…, `KB`…; all
/// are powers of two. A bare number counts `unit` bytes.
pub fn parse_size(text: &str, unit: u64) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size; write a number, or one with a unit, such as 64K or 2G");
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let suffix = text[digits..].trim().to_ascii_uppercase();
    let factor = match suffix.as_str() {
        "" => unit,
        "B" => 1,
        _ => {
            let mut letters = suffix.chars();
            let power = letters.next().and_then(|c| "KMGTPE".find(c)).ok_or_else(wrong)?;
            if !matches!(letters.as_str(), "" | "B" | "IB") {
                return Err(wrong());
            }
            1u64 << (10 * (power + 1))
        }
    };
    number.checked_mul(factor).ok_or_else(|| format!("'{text}' is more than 16 EiB"))
}

/// A size for people: `1.4 GiB`.
pub fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// A byte string as text that can be turned back: UTF-8 as it is, other bytes as `\xNN`,
/// control characters likewise, a backslash doubled.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for piece in bytes.utf8_chunks() {
        for c in piece.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if c.is_ascii_control() => {
                    let _ = write!(out, "\\x{:02x}", c as u32);
                }
                c => out.push(c),
            }
        }
        for byte in piece.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// The bytes that [`escape`] made this text of; `None` if it did not.
pub fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = match (byte, tail) {
            (b'\\', [b'\\', tail @ ..]) => {
                out.push(b'\\');
                tail
            }
            (b'\\', [b'x', a, b, tail @ ..]) => {
                let digits = [*a, *b];
                let digits = std::str::from_utf8(&digits).ok()?;
                out.push(u8::from_str_radix(digits, 16).ok()?);
                tail
            }
            (b'\\', _) => return None,
            (byte, tail) => {
                out.push(byte);
                tail
            }
        };
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_powers_of_two() {
        for (text, bytes) in [
            ("0", 0),
            ("7", 7),
            ("7B", 7),
            ("64K", 65536),
            ("64KiB", 65536),
            ("1mb", 1 << 20),
            ("2 G", 2 << 30),
            ("15E", 15 << 60),
        ] {
            assert_eq!(parse_size(text, 1), Ok(bytes), "{text}");
        }
        assert_eq!(parse_size("1024", 512), Ok(512 << 10));
        for text in ["", "K", "-1", "1X", "1KK", "16E", "1.5G", "99999999999999999999"] {
            assert!(parse_size(text, 1).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!(format_size(1023), "1023 B");
        assert_eq!(format_size(1536), "1.5 KiB");
        assert_eq!(format_size((1 << 30) - 1), "1.0 GiB");
        assert_eq!(format_size(u64::MAX), "16.0 EiB");
    }

    proptest! {
        #[test]
        fn escapes_can_be_undone(bytes: Vec<u8>) {
            prop_assert_eq!(unescape(&escape(&bytes)), Some(bytes));
        }
    }
}
