//! Where a side is: a path here, or `HOST:PATH`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::source::path_of;

/// A path, on this machine or another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The other machine, as the remote shell knows it: `host`, `user@host`.
    pub host: Option<String>,
    /// The path there.
    pub path: PathBuf,
}

impl Place {
    /// Reads what the user wrote. What has a colon and no slash in front of it is on another
    /// machine, as rsync and scp have it; `./a:b` is a file here. Brackets hold an IPv6 address.
    pub fn parse(text: &OsStr) -> Self {
        let bytes = text.as_bytes();
        let here = || Self { host: None, path: PathBuf::from(text) };
        let colon = match bytes.iter().position(|byte| *byte == b']') {
            Some(bracket) if bytes.contains(&b'[') && bytes.get(bracket + 1) == Some(&b':') => bracket + 1,
            _ => match bytes.iter().position(|byte| *byte == b':') {
                Some(colon) => colon,
                None => return here(),
            },
        };
        let (host, path) = (&bytes[..colon], &bytes[colon + 1..]);
        match std::str::from_utf8(host) {
            Ok(name) if !host.is_empty() && !host.contains(&b'/') && !path.is_empty() => Self {
                host: Some(name.chars().filter(|c| !matches!(c, '[' | ']')).collect()),
                path: path_of(path).to_path_buf(),
            },
            _ => here(),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            Some(host) => write!(f, "{host}:{}", self.path.display()),
            None => write!(f, "{}", self.path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_from_paths() {
        for (text, host, path) in [
            ("/a/b", None, "/a/b"),
            ("./a:b", None, "./a:b"),
            ("/a:b", None, "/a:b"),
            (":b", None, ":b"),
            ("a:", None, "a:"),
            ("a:b", Some("a"), "b"),
            ("u@a:/b:c", Some("u@a"), "/b:c"),
            ("u@[::1]:/b", Some("u@::1"), "/b"),
        ] {
            let place = Place::parse(OsStr::new(text));
            assert_eq!((place.host.as_deref(), place.path), (host, PathBuf::from(path)), "{text}");
        }
    }
}
