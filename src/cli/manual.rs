//! `varv completions` and `varv man`: made from the command line's own definition.

use std::fs;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use clap_complete::generate;

use super::error::Exit;
use super::global::Global;
use super::{Outcome, definition, output};
use crate::error::IoContext;

/// Shells that completions can be made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
    Elvish,
}

/// Print what a shell needs to complete varv's commands and options.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Write the manual, one page a command.
#[derive(Debug, Args)]
pub struct Man {
    /// The folder, such as /usr/local/share/man/man1; it is made if it does not exist
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

impl Completions {
    /// Prints them.
    pub fn run(self) -> Outcome {
        let shell = match self.shell {
            Shell::Bash => clap_complete::Shell::Bash,
            Shell::Zsh => clap_complete::Shell::Zsh,
            Shell::Fish => clap_complete::Shell::Fish,
            Shell::Elvish => clap_complete::Shell::Elvish,
        };
        // Into memory first: the generator panics where it cannot write.
        let mut script = Vec::new();
        generate(shell, &mut definition(), "varv", &mut script);
        output::write(&script);
        Ok(Exit::Done)
    }
}

impl Man {
    /// Writes the pages.
    pub fn run(self, global: &Global) -> Outcome {
        fs::create_dir_all(&self.folder).at("make", &self.folder)?;
        clap_mangen::generate_to(definition(), &self.folder).at("write the manual into", &self.folder)?;
        if !global.quiet {
            output::line(&format!("wrote the manual into {}: see varv.1", self.folder.display()));
        }
        Ok(Exit::Done)
    }
}
