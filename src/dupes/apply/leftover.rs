//! Names that files have while one takes another's place: what a killed run leaves.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What such a name begins with; 16 hexadecimal digits, `-`, and as much of the file's own name
/// as there is room for follow.
pub const PREFIX: &str = ".varv-dupes-";
const DIGITS: usize = 16;
/// The longest name on Linux.
const NAME_MAX: usize = 255;

/// Such a name of a file.
pub fn name(random: u64, of: &OsStr) -> OsString {
    let mut name = format!("{PREFIX}{random:016x}-").into_bytes();
    let room = NAME_MAX - name.len();
    name.extend(of.as_bytes().iter().take(room));
    OsString::from_vec(name)
}

/// Whether the last name of a path, escaped or not, is one.
pub fn is_leftover(path: &[u8]) -> bool {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
    let digits = name.strip_prefix(PREFIX.as_bytes()).and_then(|rest| rest.split_at_checked(DIGITS));
    digits.is_some_and(|(digits, rest)| digits.iter().all(u8::is_ascii_hexdigit) && rest.starts_with(b"-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_names_are_known_again() {
        for of in ["a".to_owned(), "x".repeat(NAME_MAX)] {
            let name = name(7, of.as_ref());
            assert!(name.len() <= NAME_MAX);
            assert!(is_leftover(name.as_bytes()));
            assert!(is_leftover(&[b"/tmp/", name.as_bytes()].concat()));
        }
        for other in ["a", ".varv-dupes-", ".varv-dupes-note", ".varv-dupes-0123456789abcdeg-a"] {
            assert!(!is_leftover(other.as_bytes()), "{other}");
        }
        assert!(!is_leftover(b".varv-dupes-0123456789abcdef-dir/a"));
    }
}
