//! `varv run`.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::config::{Absolute, Check, Config, Lvm, Profile, Prune, Repository, Retier, Value};
use super::error::Exit;
use super::global::{Global, duration};
use super::secret::SecretOptions;
use super::signals::STOP;
use super::{Command, Outcome, output, parse};
use crate::error::{Error, IoContext, Result};
use crate::upkeep::retention::Policies;

/// Do what a profile of the configuration file says: back up, forget, prune, retier, check.
///
/// After a backup that failed, nothing is forgotten, pruned or compressed again; after one that could not read all
/// of its source, it goes on. The exit code is the first of 130 and 143, 4, 1, 12, 10, 11, 2, 3, 5
/// that one of the steps ended with. A hook that fails counts as 1.
#[derive(Debug, Args)]
pub struct Run {
    /// The profile
    #[arg(value_name = "PROFILE")]
    profile: String,
    /// Run no hooks, and only say what would be backed up, forgotten and pruned
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// What is done, in this order.
struct Plan {
    before: Vec<String>,
    steps: Vec<Step>,
    after: Vec<String>,
}

/// A command that is run as if it had been typed.
struct Step {
    name: &'static str,
    command: Command,
    /// Whether it must not be run after a backup that failed.
    needs_backup: bool,
}

/// How a step ended.
#[derive(Serialize)]
struct Done {
    step: &'static str,
    /// A hook's command.
    command: Option<String>,
    /// `None` if it was left out.
    exit_code: Option<u8>,
    seconds: f64,
    /// What it printed.
    result: Option<serde_json::Value>,
}

/// What `run --json` prints.
#[derive(Serialize)]
struct Report<'a> {
    profile: &'a str,
    dry_run: bool,
    exit_code: u8,
    seconds: f64,
    steps: &'a [Done],
}

impl Run {
    /// Runs it all.
    pub fn run(self, global: &Global) -> Outcome {
        let started = Instant::now();
        let config = Config::load(global.config.as_deref())?;
        let profile = config.profile(&self.profile)?;
        let global = globals(global, profile, config.repository(profile)?)?;
        let plan = Plan::new(profile, self.dry_run)?;
        let mut runner =
            Runner { profile: &self.profile, global: &global, steps: Vec::new(), exits: Vec::new() };
        runner.run(plan);
        let Runner { steps, exits, .. } = runner;
        let exit = Exit::worst(exits);
        if global.json {
            output::json(&Report {
                profile: &self.profile,
                dry_run: self.dry_run,
                exit_code: exit.code(),
                seconds: started.elapsed().as_secs_f64(),
                steps: &steps,
            });
        }
        Ok(exit)
    }
}

/// The global options as the profile has them; those that were typed where it has none.
fn globals(typed: &Global, profile: &Profile, repository: Option<&Repository>) -> Result<Global> {
    let mut global = typed.clone();
    if let Some(wait) = &profile.lock_wait {
        global.lock_wait = duration(wait).map_err(|why| Error::Refused(format!("lock-wait: {why}")))?;
    }
    let Some(Repository { path, passphrase_file, passphrase_command, key_file, cache_dir }) = repository
    else {
        return Ok(global);
    };
    global.repository = Some(path.0.clone());
    if let Some(folder) = cache_dir {
        global.cache_dir = Some(folder.0.clone());
    }
    if passphrase_file.is_some() || passphrase_command.is_some() || key_file.is_some() {
        global.secret = SecretOptions {
            passphrase_file: passphrase_file.as_ref().map(|path| path.0.clone()),
            passphrase_command: passphrase_command.clone(),
            key_file: key_file.as_ref().map(|path| path.0.clone()),
            recovery_code: None,
        };
    }
    Ok(global)
}

impl Plan {
    /// All values are checked here, before anything is run.
    fn new(profile: &Profile, dry_run: bool) -> Result<Self> {
        let mut steps = Vec::new();
        let mut add = |words: Words, needs_backup| -> Result<()> {
            let (name, command) = (words.name, words.parse()?);
            steps.push(Step { name, command, needs_backup });
            Ok(())
        };
        if !profile.sources.is_empty() || profile.lvm.is_some() || profile.from_command.is_some() {
            add(backup(profile).switch("--dry-run", dry_run), false)?;
        }
        if profile.retention.is_some() {
            add(forget(profile).switch("--dry-run", dry_run), true)?;
        }
        if let Some(options) = &profile.prune {
            add(prune(options).switch("--dry-run", dry_run), true)?;
        }
        for rule in &profile.retier {
            add(retier(rule).switch("--dry-run", dry_run), true)?;
        }
        if let Some(options) = &profile.check {
            add(check(options), false)?;
        }
        if steps.is_empty() {
            return Err(Error::Refused(
                "the profile has nothing to do: give it sources, retention, prune, retier or check".into(),
            ));
        }
        if let Some(policy) = &profile.retention {
            if policy.is_empty() {
                return Err(Error::Refused(
                    "retention says nothing to keep: add keep-daily = 7 or the like".into(),
                ));
            }
            let policies = Policies { default: Some(policy.clone()), ..Policies::default() };
            steps = steps.into_iter().map(|step| step.keeping(&policies)).collect();
        }
        let hooks = |hooks: &[String]| if dry_run { Vec::new() } else { hooks.to_vec() };
        Ok(Self { before: hooks(&profile.before), steps, after: hooks(&profile.after) })
    }
}

impl Step {
    fn keeping(self, policies: &Policies) -> Self {
        let command = match self.command {
            Command::Forget(forget) => Command::Forget(Box::new(forget.with_policies(policies.clone()))),
            other => other,
        };
        Self { command, ..self }
    }
}

/// A command line.
struct Words {
    name: &'static str,
    words: Vec<OsString>,
}

impl Words {
    fn new(name: &'static str) -> Self {
        Self { name, words: ["varv"].into_iter().chain(name.split(' ')).map(OsString::from).collect() }
    }

    fn switch(mut self, option: &str, on: bool) -> Self {
        self.words.extend(on.then(|| option.into()));
        self
    }

    fn each<T: Into<OsString>>(mut self, option: &str, values: impl IntoIterator<Item = T>) -> Self {
        for value in values {
            let mut word = OsString::from(format!("{option}="));
            word.push(value.into());
            self.words.push(word);
        }
        self
    }

    fn names<T: Into<OsString>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.words.extend(names.into_iter().map(Into::into));
        self
    }

    fn value(self, option: &str, value: &Option<Value>) -> Self {
        match value {
            None => self,
            Some(Value::Switch(on)) => self.switch(option, *on),
            Some(Value::Integer(number)) => self.each(option, [number.to_string()]),
            Some(Value::Number(number)) => self.each(option, [number.to_string()]),
            Some(Value::Text(text)) => self.each(option, [text]),
        }
    }

    fn parse(self) -> Result<Command> {
        let cli = parse(self.words).map_err(|error| {
            let text = error.to_string();
            let first = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
            Error::Refused(format!("the profile's {}: {first}", self.name))
        })?;
        Ok(cli.command)
    }
}

fn backup(profile: &Profile) -> Words {
    let paths = |paths: &[Absolute]| paths.iter().map(|path| path.0.clone()).collect::<Vec<_>>();
    let words = Words::new(if profile.lvm.is_some() { "lvm backup" } else { "backup" })
        .each("--label", &profile.label)
        .each("--host", &profile.host)
        .each("--tag", &profile.tags)
        .each("--tier", &profile.tier)
        .each("--tier-for", &profile.tier_for)
        .each("--exclude", &profile.exclude)
        .each("--exclude-from", paths(&profile.exclude_from))
        .each("--exclude-from0", paths(&profile.exclude_from0))
        .each("--exclude-if-present", &profile.exclude_if_present)
        .switch("--exclude-caches", profile.exclude_caches)
        .value("--exclude-larger-than", &profile.exclude_larger_than)
        .switch("--one-file-system", profile.one_file_system)
        .switch("--read-devices", profile.read_devices)
        .each("--read-errors", &profile.read_errors)
        .switch("--force-read", profile.force_read)
        .switch("--no-delta", profile.no_delta)
        .each("--free-blocks", &profile.free_blocks)
        .each("--from-command", profile.from_command.as_ref().map(|stream| &stream.name))
        .each("--metrics", profile.metrics.as_ref().map(|path| path.0.clone()));
    let words = match &profile.lvm {
        Some(lvm) => volumes(words.each("--also", paths(&profile.sources)), lvm),
        None => words.names(paths(&profile.sources)),
    };
    match &profile.from_command {
        Some(stream) => words.names(["--"]).names(&stream.command),
        None => words,
    }
}

fn volumes(words: Words, lvm: &Lvm) -> Words {
    let Lvm { volumes, snapshot_size, no_keep, pool_limit, spot_check, full_every, checkpoint_every, freeze } =
        lvm;
    words
        .value("--snapshot-size", snapshot_size)
        .switch("--no-keep", *no_keep)
        .value("--pool-limit", pool_limit)
        .value("--spot-check", spot_check)
        .each("--full-every", full_every)
        .value("--checkpoint-every", checkpoint_every)
        .switch("--freeze", *freeze)
        .names(volumes)
}

fn forget(profile: &Profile) -> Words {
    let label = profile.label.as_deref().unwrap_or("default");
    Words::new("forget").each("--label", [label]).each("--host", &profile.host)
}

fn prune(Prune { max_unused, max_repack }: &Prune) -> Words {
    Words::new("prune").value("--max-unused", max_unused).value("--max-repack", max_repack)
}

fn retier(Retier { older_than, to, limit, max_time }: &Retier) -> Words {
    Words::new("retier")
        .each("--older-than", [older_than])
        .each("--to", [to])
        .value("--limit", limit)
        .each("--max-time", max_time)
}

/// What is due is read, or nothing is due.
fn check(Check { read_data, max_age, limit }: &Check) -> Words {
    let reads = read_data.is_none() && (max_age.is_some() || limit.is_some());
    Words::new("check")
        .switch("--read-data", reads)
        .value("--read-data", read_data)
        .each("--max-age", max_age)
        .value("--limit", limit)
}

/// Runs steps, and keeps how they ended.
struct Runner<'a> {
    profile: &'a str,
    global: &'a Global,
    steps: Vec<Done>,
    exits: Vec<Exit>,
}

impl Runner<'_> {
    fn run(&mut self, plan: Plan) {
        let ready = plan.before.into_iter().all(|command| self.hook("before", command) == Exit::Done);
        let mut may_remove = true;
        for step in plan.steps {
            let stopped = self.exits.iter().any(|exit| matches!(exit, Exit::Signal(_)));
            if !ready || stopped || (step.needs_backup && !may_remove) {
                self.leave_out(step.name);
                continue;
            }
            let is_backup = matches!(step.command, Command::Backup(_) | Command::Lvm(_));
            let exit = self.step(step);
            may_remove &= !is_backup || matches!(exit, Exit::Done | Exit::Incomplete);
        }
        for command in plan.after {
            self.hook("after", command);
        }
    }

    fn step(&mut self, Step { name, command, .. }: Step) -> Exit {
        self.announce(name);
        let started = Instant::now();
        let (outcome, result) = match self.global.json {
            true => {
                let (outcome, printed) =
                    output::capture(|| STOP.check().and_then(|()| command.run(self.global)));
                let failed = outcome.as_ref().err().map(output::failure);
                (outcome, failed.or_else(|| serde_json::from_slice(&printed).ok()))
            }
            false => (STOP.check().and_then(|()| command.run(self.global)), None),
        };
        let exit = match outcome {
            Ok(exit) => exit,
            Err(error) => {
                output::error(&error, false);
                Exit::of(&error)
            }
        };
        self.end(name, None, exit, started, result)
    }

    /// Runs a hook's command, which is waited for whatever happens. After a signal during one before
    /// the rest, there is no rest.
    fn hook(&mut self, step: &'static str, command: String) -> Exit {
        self.announce(&format!("{step}: {command}"));
        let started = Instant::now();
        let exit = match self.shell(&command) {
            Ok(()) if step == "before" => STOP.check().map_or_else(|error| Exit::of(&error), |()| Exit::Done),
            Ok(()) => Exit::Done,
            Err(error) => {
                output::error(&error, false);
                Exit::Failed
            }
        };
        self.end(step, Some(command), exit, started, None)
    }

    fn shell(&self, command: &str) -> Result<()> {
        let exit = Exit::worst(self.exits.iter().copied());
        let repository = self.global.repository.as_deref().unwrap_or(Path::new(""));
        let status = Process::new("/bin/sh")
            .args(["-c", command])
            .stdin(Stdio::null())
            // Standard output is for results.
            .stdout(std::io::stderr())
            .env("VARV_PROFILE", self.profile)
            .env("VARV_REPOSITORY", repository)
            .env("VARV_EXIT_CODE", exit.code().to_string())
            .status()
            .at("run the hook with", "/bin/sh")?;
        match status.success() {
            true => Ok(()),
            false => Err(Error::NotFound(format!("the hook '{command}' failed ({status})"))),
        }
    }

    fn announce(&self, what: &str) {
        if !self.global.quiet && !self.global.json {
            output::line(&format!("{}: {what}", self.profile));
        }
    }

    fn end(
        &mut self,
        step: &'static str,
        command: Option<String>,
        exit: Exit,
        started: Instant,
        result: Option<serde_json::Value>,
    ) -> Exit {
        let seconds = started.elapsed().as_secs_f64();
        self.steps.push(Done { step, command, exit_code: Some(exit.code()), seconds, result });
        self.exits.push(exit);
        exit
    }

    fn leave_out(&mut self, step: &'static str) {
        output::notice(&format!("{step} is left out, since what comes before it failed or was stopped"));
        self.steps.push(Done { step, command: None, exit_code: None, seconds: 0.0, result: None });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::upkeep::retention::Policy;

    /// Has every key.
    const PROFILE: &str = r#"
sources = ["/a"]
label = "l"
host = "h"
tags = ["t"]
tier = "warm"
tier-for = ["*.log=cold"]
exclude = ["x"]
exclude-from = ["/x"]
exclude-from0 = ["/x"]
exclude-if-present = ["x"]
exclude-caches = true
exclude-larger-than = "1G"
one-file-system = true
read-devices = true
read-errors = "zero"
force-read = true
no-delta = true
free-blocks = "partclone"
from-command = { name = "stream", command = ["dump", "--all"] }
metrics = "/m"
prune = { max-unused = "5%", max-repack = "1G" }
retier = [{ older-than = "30D", to = "cold", limit = "1G", max-time = "1h" }]
check = { read-data = true, max-age = "30D", limit = "1G" }
lvm = { volumes = ["vg"], snapshot-size = "10%", no-keep = true, pool-limit = 80, spot-check = 1, full-every = "30D", checkpoint-every = "1G", freeze = true }
"#;

    /// What `varv run` says itself, and what only somebody who types it can mean: a snapshot's time,
    /// a repository that is to be made, what is of one night.
    const OF_BACKUP_ALONE: [&str; 9] = [
        "dry-run",
        "time",
        "init",
        "encryption",
        "chunker",
        "tier-level",
        "change-list",
        "made-against",
        "stdin",
    ];
    /// Likewise; and which snapshots, which are the profile's own.
    const OF_FORGET_ALONE: [&str; 8] =
        ["dry-run", "label", "host", "tag", "policy", "all-hosts", "group-by", "allow-last"];

    /// The options of a command, but for global ones.
    fn options(name: &str) -> BTreeSet<String> {
        let mut command = crate::cli::definition();
        for name in name.split(' ') {
            command = command.find_subcommand(name).unwrap().clone();
        }
        command.get_arguments().filter_map(|argument| argument.get_long()).map(str::to_string).collect()
    }

    fn without(mut options: BTreeSet<String>, these: &[&str]) -> BTreeSet<String> {
        options.retain(|option| !these.contains(&option.as_str()));
        options
    }

    fn of_words(words: &Words) -> BTreeSet<String> {
        let options = words.words.iter().filter_map(|word| word.to_str()?.strip_prefix("--"));
        let options = options.take_while(|option| !option.is_empty());
        options.map(|option| option.split('=').next().unwrap().to_string()).collect()
    }

    #[test]
    fn profiles_have_a_key_for_every_option() {
        let profile: Profile = toml::from_str(PROFILE).unwrap();
        let words = backup(&profile);
        assert_eq!(of_words(&words), without(options("lvm backup"), &OF_BACKUP_ALONE));
        assert!(words.words.ends_with(&["vg", "--", "dump", "--all"].map(OsString::from)));
        words.parse().unwrap();
        for words in [
            prune(profile.prune.as_ref().unwrap()),
            retier(&profile.retier[0]),
            check(profile.check.as_ref().unwrap()),
        ] {
            assert_eq!(of_words(&words), without(options(words.name), &["dry-run"]), "{}", words.name);
            words.parse().unwrap();
        }
        // The error for a key that there is not names all that there are.
        let error = toml::from_str::<Policy>("xyzzy = 1").unwrap_err();
        let keys = error.message().split('`').skip(3).step_by(2).map(str::to_string).collect();
        assert_eq!(without(options("forget"), &OF_FORGET_ALONE), keys);
    }
}
