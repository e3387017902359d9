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
            | Error::Peer { .. }
            | Error::NewerFormat { .. }
            | Error::NotFound(_)
            | Error::Index { .. }
            | Error::Program { .. }
            | Error::Internal(_) => Exit::Failed,
        }
    }

    /// The one that counts of several: what stopped or broke most.
    pub fn worst(exits: impl IntoIterator<Item = Exit>) -> Self {
        exits.into_iter().min_by_key(|exit| exit.rank()).unwrap_or(Exit::Done)
    }

    /// Less counts more. A contract as well.
    fn rank(self) -> u8 {
        match self {
            Exit::Signal(_) => 0,
            Exit::Damage => 1,
            Exit::Failed => 2,
            Exit::WrongKey => 3,
            Exit::NoRepository => 4,
            Exit::Locked => 5,
            Exit::Usage => 6,
            Exit::Incomplete => 7,
            Exit::Different => 8,
            Exit::Done => 9,
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
        error if error.is_out_of_space() => Some(
            "free space there; in a repository varv forget and varv prune do so, and finished packs are kept",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_exits_the_first_of_a_fixed_order_counts() {
        let order = [
            Exit::Signal(2),
            Exit::Damage,
            Exit::Failed,
            Exit::WrongKey,
            Exit::NoRepository,
            Exit::Locked,
            Exit::Usage,
            Exit::Incomplete,
            Exit::Different,
            Exit::Done,
        ];
        assert_eq!(order.map(Exit::code), [130, 4, 1, 12, 10, 11, 2, 3, 5, 0]);
        for (at, first) in order.into_iter().enumerate() {
            assert_eq!(Exit::worst(order[at..].iter().rev().copied()), first);
        }
        assert_eq!(Exit::worst([]), Exit::Done);
        assert_eq!(Exit::worst([Exit::Failed, Exit::Signal(15)]).code(), 143);
    }
}
