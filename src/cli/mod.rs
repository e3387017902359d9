//! The command line: arguments, output, exit codes. One file a command.

mod backup;
mod changes;
mod check;
mod clock;
mod compare;
mod config;
mod copy;
mod diff;
mod differences;
mod dump;
mod dupes;
mod entry;
mod error;
mod excludes;
mod find;
mod forget;
mod global;
mod history;
mod index;
mod init;
mod key;
mod list;
mod locks;
mod lvm;
mod manual;
mod metrics;
mod output;
mod progress;
mod protect;
mod prune;
mod repair;
mod restore;
mod retier;
mod run;
mod secret;
mod select;
mod signals;
mod snapshots;
mod sparse;
mod stats;
mod sync;
mod undo_forget;
mod upgrade;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Arg, CommandFactory, FromArgMatches, Parser, Subcommand};
use signal_hook::consts::SIGPIPE;

use crate::error::Error;
use error::Exit;
use global::Global;

/// Content-addressed, deduplicating backup of files and block devices.
#[derive(Debug, Parser)]
#[command(name = "varv", version, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Init),
    Key(key::Key),
    Backup(Box<backup::Backup>),
    Restore(Box<restore::Restore>),
    Dump(dump::Dump),
    Snapshots(snapshots::Snapshots),
    #[command(name = "ls")]
    List(list::List),
    Find(find::Find),
    Stats(stats::Stats),
    History(history::History),
    Changes(changes::Changes),
    Diff(diff::Diff),
    Compare(compare::Compare),
    Verify(verify::Verify),
    Forget(Box<forget::Forget>),
    UndoForget(undo_forget::UndoForget),
    Protect(protect::Protect),
    Unprotect(protect::Unprotect),
    Prune(prune::Prune),
    Retier(retier::Retier),
    Check(check::Check),
    Repair(repair::Repair),
    Locks(locks::Locks),
    Dupes(Box<dupes::Dupes>),
    Index(index::Index),
    Upgrade(upgrade::Upgrade),
    Run(run::Run),
    Copy(Box<copy::Copy>),
    Sparse(sparse::Sparse),
    Lvm(lvm::Lvm),
    Sync(Box<sync::Sync>),
    Completions(manual::Completions),
    Man(manual::Man),
}

/// What a command comes to, if it does not fail.
type Outcome = Result<Exit, Error>;

impl Command {
    /// Whether nothing is missed, neither work nor an exit code, if it ends when nobody reads on.
    fn only_lists(&self) -> bool {
        use Command::{Find, History, List, Snapshots, Stats};
        matches!(self, List(_) | Find(_) | Snapshots(_) | Stats(_) | History(_))
    }

    fn run(self, global: &Global) -> Outcome {
        match self {
            Command::Init(command) => command.run(global),
            Command::Key(command) => command.run(global),
            Command::Backup(command) => command.run(global),
            Command::Restore(command) => command.run(global),
            Command::Dump(command) => command.run(global),
            Command::Snapshots(command) => command.run(global),
            Command::List(command) => command.run(global),
            Command::Find(command) => command.run(global),
            Command::Stats(command) => command.run(global),
            Command::History(command) => command.run(global),
            Command::Changes(command) => command.run(global),
            Command::Diff(command) => command.run(global),
            Command::Compare(command) => command.run(global),
            Command::Verify(command) => command.run(global),
            Command::Forget(command) => command.run(global),
            Command::UndoForget(command) => command.run(global),
            Command::Protect(command) => command.run(global),
            Command::Unprotect(command) => command.run(global),
            Command::Prune(command) => command.run(global),
            Command::Retier(command) => command.run(global),
            Command::Check(command) => command.run(global),
            Command::Locks(command) => command.run(global),
            Command::Repair(command) => command.run(global),
            Command::Dupes(command) => command.run(global),
            Command::Index(command) => command.run(global),
            Command::Upgrade(command) => command.run(global),
            Command::Run(command) => command.run(global),
            Command::Copy(command) => command.run(global),
            Command::Sparse(command) => command.run(global),
            Command::Lvm(command) => command.run(global),
            Command::Sync(command) => command.run(global),
            Command::Completions(command) => command.run(),
            Command::Man(command) => command.run(global),
        }
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    start(std::env::args_os())
}

fn start(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    signals::listen();
    let cli = match parse(arguments) {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are no errors, and clap knows where each belongs.
            let _ = e.print();
            return if e.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };
    if cli.command.only_lists() {
        output::end_with_reader();
    }
    let exit = match cli.command.run(&cli.global) {
        Ok(exit) => exit,
        Err(Error::Stopped(SIGPIPE)) => Exit::Done,
        Err(e) => {
            output::error(&e, cli.global.json);
            Exit::of(&e)
        }
    };
    output::exit(exit).into()
}

/// A command line, and what the environment adds to it.
fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = definition().mut_args(without_empty_variable).try_get_matches_from(arguments)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    cli.global.secret.prefer_typed(&matches);
    Ok(cli)
}

/// A variable that is empty counts as one that is not set, as scripts and units empty them.
fn without_empty_variable(arg: Arg) -> Arg {
    let value = arg.get_env().and_then(std::env::var_os);
    if value.is_some_and(|value| value.is_empty()) { arg.env(None::<&str>) } else { arg }
}

/// The command line as clap knows it.
fn definition() -> clap::Command {
    Cli::command()
}
