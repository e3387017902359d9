//! The one error type of the library: what failed, on which object, and why.
//!
//! The command line adds what to do about it and the exit code.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, naming the object it went wrong on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed on a path.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: "read", "open".
        action: &'static str,
        /// The file, folder or device it was tried on.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Bytes that came from a store are not what they should be.
    #[error("{object} is damaged: {why}")]
    Damaged {
        /// The object's name in the store, or what it holds.
        object: String,
        /// What was found instead.
        why: String,
    },
    /// An object that must be there is not.
    #[error("{object} is missing from the repository")]
    Missing {
        /// The object's name in the store, or what it holds.
        object: String,
    },
    /// There is no repository at this path.
    #[error("there is no varv repository at {}: {why}", path.display())]
    NoRepository {
        /// Where it was looked for.
        path: PathBuf,
        /// What is there instead.
        why: String,
    },
    /// The repository was written by a newer varv.
    #[error(
        "the repository has format {found}; this varv reads format {known}: varv {needs} or later is needed"
    )]
    NewerFormat {
        /// The format's number in the repository.
        found: u32,
        /// The newest format known here.
        known: u32,
        /// The version of varv that the repository asks for.
        needs: String,
    },
    /// Another process holds the repository.
    #[error("the repository is locked: {holder}")]
    Locked {
        /// Who holds it, since when.
        holder: String,
    },
    /// No key slot could be opened with what was given.
    #[error("{0}")]
    WrongKey(String),
    /// What was asked for does not make sense or is refused.
    #[error("{0}")]
    Refused(String),
    /// What was asked for does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The index failed; packs and snapshots are not concerned.
    #[error("the index failed to {action}: {source}")]
    Index {
        /// What was tried, as a verb.
        action: &'static str,
        /// What the database answered.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A program of the system failed.
    #[error("{program} failed: {why}")]
    Program {
        /// Its name.
        program: String,
        /// What it complained of.
        why: String,
    },
    /// Another process holds a logical volume.
    #[error("{volume} is locked: {holder}")]
    VolumeLocked {
        /// The volume, `VG/LV`.
        volume: String,
        /// Who holds it.
        holder: String,
    },
    /// The other side of a connection failed, or is gone.
    #[error("{peer}: {what}")]
    Peer {
        /// Who it is.
        peer: String,
        /// What it told, or what became of it.
        what: String,
    },
    /// A signal asked to stop.
    #[error("stopped by signal {0}")]
    Stopped(i32),
    /// A thread of the pipeline ended without a word.
    #[error("internal error: {0}")]
    Internal(&'static str),
}

impl Error {
    /// Damage found in `object`.
    pub fn damaged(object: impl Display, why: impl Display) -> Self {
        Error::Damaged { object: object.to_string(), why: why.to_string() }
    }

    /// `object` is not in the store.
    pub fn missing(object: impl Display) -> Self {
        Error::Missing { object: object.to_string() }
    }

    /// The system's error under this one, if a system call failed.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Whether this says that stored bytes are wrong or gone.
    pub fn is_damage(&self) -> bool {
        matches!(self, Error::Damaged { .. } | Error::Missing { .. })
    }

    /// Whether the disk, or a quota on it, is full.
    pub fn is_out_of_space(&self) -> bool {
        self.io()
            .is_some_and(|e| matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    /// The same error for a second owner: as text, since causes cannot be cloned.
    pub fn duplicate(&self) -> Self {
        match self {
            Error::Io { action, path, source } => Error::Io {
                action,
                path: path.clone(),
                source: match source.raw_os_error() {
                    Some(code) => io::Error::from_raw_os_error(code),
                    None => io::Error::new(source.kind(), source.to_string()),
                },
            },
            Error::Stopped(signal) => Error::Stopped(*signal),
            Error::Damaged { object, why } => Error::damaged(object, why),
            Error::Missing { object } => Error::missing(object),
            other => Error::Refused(other.to_string()),
        }
    }
}

/// Pins the action and the path on a system error.
pub trait IoContext<T> {
    /// `action` is a verb that fits "cannot … PATH".
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::Io { action, path: path.as_ref().to_path_buf(), source: e.into() })
    }
}
