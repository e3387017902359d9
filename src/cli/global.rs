//! Options that every command takes, and opening the repository that they name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::progress::Progress;
use super::secret::SecretOptions;
use super::signals::STOP;
use crate::error::{Error, Result};
use crate::repo::keys::Secret;
use crate::repo::{Intent, OpenOptions, Repo};
use crate::time::Interval;

/// Options that stand before or after the command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The repository
    #[arg(short, long, global = true, value_name = "PATH", env = "VARV_REPOSITORY", help_heading = "Global")]
    pub repository: Option<PathBuf>,
    #[command(flatten)]
    pub secret: SecretOptions,
    /// Print results as JSON
    #[arg(long, global = true, help_heading = "Global")]
    pub json: bool,
    /// Print no progress and no summary
    #[arg(short, long, global = true, help_heading = "Global")]
    pub quiet: bool,
    /// Print more
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global")]
    pub verbose: u8,
    /// Draw no progress
    #[arg(long, global = true, help_heading = "Global")]
    pub no_progress: bool,
    /// How long to wait for others who hold the repository, such as 90s or 10m
    #[arg(long, global = true, value_name = "T", default_value = "0s", value_parser = duration, help_heading = "Global")]
    pub lock_wait: Duration,
    /// Where the index is kept when it cannot be in the repository
    #[arg(long, global = true, value_name = "D", env = "VARV_CACHE_DIR", help_heading = "Global")]
    pub cache_dir: Option<PathBuf>,
    /// The configuration file of varv run, if it is not varv/varv.toml in the user's configuration
    /// folder, or /etc/varv/varv.toml
    #[arg(long, global = true, value_name = "F", help_heading = "Global")]
    pub config: Option<PathBuf>,
}

impl Global {
    /// The repository's path.
    pub fn repository(&self) -> Result<&Path> {
        self.repository.as_deref().ok_or_else(|| {
            Error::Refused("no repository is named: give --repository PATH, or set VARV_REPOSITORY".into())
        })
    }

    /// Where caches are.
    pub fn cache_dir(&self) -> Option<PathBuf> {
        let base = || user_folder("XDG_CACHE_HOME", ".cache");
        self.cache_dir.clone().or_else(|| base().map(|base| base.join("varv")))
    }

    /// Opens the repository.
    pub fn open(&self, intent: Intent) -> Result<Repo> {
        let secret = self.secret.read(self.repository()?)?;
        self.open_with(secret.as_ref(), intent)
    }

    /// Opens the repository with a secret that was read before.
    pub fn open_with(&self, secret: Option<&Secret>, intent: Intent) -> Result<Repo> {
        let root = self.repository()?;
        let cache_dir = self.cache_dir();
        let repo = Repo::open(
            root,
            &OpenOptions {
                secret,
                intent,
                lock_wait: self.lock_wait,
                command: &own_command(),
                cache_dir: cache_dir.as_deref(),
                stop: &STOP,
            },
        )?;
        for notice in repo.notices() {
            self.notice(notice);
        }
        Ok(repo)
    }

    /// Tells the user something beside the result, unless that is unwanted.
    pub fn notice(&self, text: &str) {
        if !self.quiet {
            super::output::notice(text);
        }
    }

    /// What listens to operations.
    pub fn observer(&self) -> Progress {
        Progress::new(self.quiet || self.json || self.no_progress, self.quiet)
    }
}

/// The command as others see it in the lock: without what opens the repository.
pub fn own_command() -> String {
    const SECRETS: [&str; 2] = ["--passphrase-command", "--recovery-code"];
    let mut words = Vec::new();
    let mut hide = false;
    for word in std::env::args_os().map(|word| word.to_string_lossy().into_owned()) {
        let option = word.split('=').next().unwrap_or_default();
        match (hide, SECRETS.contains(&option)) {
            (true, _) => words.push("…".to_string()),
            (false, true) => words.push(option.to_string()),
            (false, false) => words.push(word.clone()),
        }
        hide = SECRETS.contains(&word.as_str());
    }
    words.join(" ")
}

/// A folder of the user's: what the variable says, or the one of that name at home. As XDG's
/// specification has it, a path that is empty or relative does not count.
pub fn user_folder(variable: &str, at_home: &str) -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(at_home)))
}

/// A length of time such as `90s`, `10m`, `1h30m`; a number alone is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().or_else(|_| Interval::parse(text).map(Interval::seconds));
    seconds.map(Duration::from_secs)
}
