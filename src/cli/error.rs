//! Exit codes, and what to do about an error.

use std::process::ExitCode;

use crate::error::Error;

/// How a command ended. The numbers are a contract with scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All is well.
    Done,
    /// It failed.
    Failed,
    /// Wrong usage, or refused.
    Usage,
    /// Done, but some source was unreadable.
    Incomplete,
    /// Damage was found.
    Damage,
    /// What was compared differs.
    Different,
    /// There is no repository.
    NoRepository,
    /// Somebody else holds the repository.
    Locked,
    /// The key does not fit.
    WrongKey,
    /// A signal stopped it.
    Signal(i32),
}

impl Exit {
    /// For an error.
    pub fn of(error: &Error) -> Self {
        match error {
            Error::Damaged { .. } | Error::Missing { .. } => Exit::Damage,
            Error::NoRepository { .. } => Exit::NoRepository,
            Error::Locked { .. } | Error::VolumeLocked { .. } => Exit::Locked,
            Error::WrongKey(_) => Exit::WrongKey,
            Error::Refused(_) => Exit::Usage,
            Error::Stopped(signal) => Exit::Signal(*signal),
            Error::Io { .. }
            | Error::NewerFormat { .. }
            | Error::NotFound(_)
            | Error::Index { .. }
            | Error::Program { .. }
            | Error::Internal(_) => Exit::Failed,
        }
    }

    /// Its number.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Incomplete => 3,
            Exit::Damage => 4,
            Exit::Different => 5,
            Exit::NoRepository => 10,
            Exit::Locked => 11,
            Exit::WrongKey => 12,
            Exit::Signal(signal) => 128u8.saturating_add(signal.unsigned_abs() as u8),
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// What to do about an error, if there is something to say.
pub fn hint(error: &Error) -> Option<&'static str> {
    match error {
        Error::NoRepository { .. } => Some("make one with varv init, or name another with --repository"),
        Error::WrongKey(_) => Some(
            "give --passphrase-file, --passphrase-command, VARV_PASSPHRASE, --key-file or --recovery-code",
        ),
        Error::VolumeLocked { .. } => Some("wait for it with --lock-wait 10m"),
        Error::Locked { .. } => Some("wait for it with --lock-wait 10m, or see varv locks"),
        Error::Damaged { .. } | Error::Missing { .. } => Some("varv check names everything that is damaged"),
        Error::Index { .. } => Some("varv index rebuild makes the index anew from the packs"),
        error if error.is_out_of_space() => {
            Some("free space on the disk, or run varv forget and varv prune; finished packs are kept")
        }
        _ => None,
    }
}
