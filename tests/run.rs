//! `varv run`: configuration, hooks, and what a failure of one step does to the others.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use support::make::{bytes, tree};
use support::system::{root_or_skip, run as run_program, skip};
use support::{Done, Varv, args, chmod};

/// A repository, a source, and a configuration file.
struct World {
    varv: Varv,
    source: PathBuf,
    config: PathBuf,
}

impl World {
    fn new(varv: Varv) -> Self {
        let (source, config) = (varv.dir("source"), varv.path("varv.toml"));
        fs::write(source.join("file"), "content").unwrap();
        varv.give(&source.join("file"));
        Self { varv, source, config }
    }

    /// Writes the file with the profile `p`: its source and these lines.
    fn profile(&self, lines: &str) -> &Self {
        let head = format!("[repositories.r]\npath = {:?}\n", self.varv.repository);
        self.write(&format!("{head}[profiles.p]\nsources = [{:?}]\n{lines}", self.source))
    }

    fn write(&self, text: &str) -> &Self {
        fs::write(&self.config, text).unwrap();
        chmod(&self.config, 0o600);
        self.varv.give(&self.config);
        self
    }

    fn run(&self) -> Done {
        self.varv.run(args!["--config", &self.config, "run", "p"])
    }

    /// How it ended, as JSON; the exit code there is that of the process.
    fn report(&self) -> Value {
        let done = self.varv.run(args!["--json", "--config", &self.config, "run", "p"]);
        let report = done.json();
        assert_eq!(report["exit_code"].as_i64(), done.code.map(i64::from), "{report} {}", done.stderr);
        report
    }

    fn snapshots(&self) -> usize {
        self.varv.snapshots().len()
    }
}

/// The steps of a report and their exit codes; −1 for one that was left out.
fn steps(report: &Value) -> Vec<(&str, i64)> {
    let steps = report["steps"].as_array().unwrap().iter();
    steps.map(|step| (step["step"].as_str().unwrap(), step["exit_code"].as_i64().unwrap_or(-1))).collect()
}

const UPKEEP: &str = "retention = { keep-last = 1 }\nprune = {}\ncheck = {}\n";

#[test]
fn a_profile_backs_up_forgets_prunes_and_checks() {
    let world = World::new(Varv::new());
    world
        .profile(&format!("label = \"l\"\ntags = [\"t\"]\nexclude = [\"*.tmp\"]\ntier = \"warm\"\n{UPKEEP}"));
    fs::write(world.source.join("x.tmp"), "x").unwrap();
    for night in ["one", "two"] {
        fs::write(world.source.join("file"), night).unwrap();
        let report = world.report();
        assert_eq!(steps(&report), [("backup", 0), ("forget", 0), ("prune", 0), ("check", 0)]);
        assert_eq!(report["steps"][0]["result"]["files_new"].as_u64(), Some(u64::from(night == "one")));
        assert_eq!(report["steps"][3]["result"]["damaged"], json!([]));
    }
    let snapshots = world.varv.snapshots();
    let told = [&snapshots[0]["label"], &snapshots[0]["tags"], &snapshots[0]["tier"]];
    assert_eq!((snapshots.len(), told), (1, [&json!("l"), &json!(["t"]), &json!("warm")]));
    let quiet = world.varv.ok(args!["-q", "--config", &world.config, "run", "p"]);
    assert_eq!((quiet.stdout, quiet.stderr), (vec![], String::new()), "cron mails what is printed");
    let loud = String::from_utf8(world.run().stdout).unwrap();
    assert!(
        ["p: backup", "p: forget", "p: prune", "p: check"].iter().all(|line| loud.contains(line)),
        "{loud}"
    );
}

#[test]
fn only_the_profiles_own_label_is_forgotten() {
    let world = World::new(Varv::new());
    for _ in 0..2 {
        world.varv.backup(args!["--label", "other", &world.source]);
        world.varv.backup(args!["--label", "mine", "--host", "elsewhere", &world.source]);
    }
    world.profile(&format!("label = \"mine\"\n{UPKEEP}"));
    assert_eq!((world.run().code, world.run().code), (Some(0), Some(0)));
    assert_eq!(world.snapshots(), 5);
}

#[test]
fn a_hook_that_fails_before_stops_the_run_and_hooks_after_run_all_the_same() {
    let world = World::new(Varv::new());
    let log = world.varv.path("log");
    let hooks = format!(
        "before = ['echo one >> {0}', 'false', 'echo three >> {0}']\nafter = ['echo $VARV_PROFILE $VARV_EXIT_CODE >> {0}']\n",
        log.display()
    );
    world.profile(&format!("{hooks}{UPKEEP}"));
    let report = world.report();
    let left_out = [("backup", -1), ("forget", -1), ("prune", -1), ("check", -1)];
    let expected = [&[("before", 0), ("before", 1)][..], &left_out, &[("after", 0)]].concat();
    assert_eq!(steps(&report), expected);
    assert_eq!(report["steps"][1]["command"], "false");
    assert_eq!((report["exit_code"].as_i64(), world.snapshots()), (Some(1), 0));
    assert_eq!(fs::read_to_string(&log).unwrap(), "one\np 1\n");
    world.run().says(&["the hook 'false' failed", "backup is left out"]);
}

#[test]
fn a_hook_that_fails_after_is_told() {
    let world = World::new(Varv::new());
    world.profile("before = ['echo to a log']\nafter = ['exit 7', 'true']\n");
    let report = world.report();
    assert_eq!(steps(&report), [("before", 0), ("backup", 0), ("after", 1), ("after", 0)]);
    assert_eq!((report["exit_code"].as_i64(), world.snapshots()), (Some(1), 1));
    world.run().says(&["to a log", "exit 7"]);
}

#[test]
fn after_a_backup_that_failed_nothing_is_forgotten_or_pruned() {
    let world = World::new(Varv::new());
    for _ in 0..2 {
        world.varv.backup(args![&world.source]);
    }
    fs::remove_dir_all(&world.source).unwrap();
    let report = world.profile(UPKEEP).report();
    assert_eq!(steps(&report), [("backup", 1), ("forget", -1), ("prune", -1), ("check", 0)]);
    assert_eq!((report["exit_code"].as_i64(), world.snapshots()), (Some(1), 2));
    assert!(report["steps"][0]["result"]["error"].as_str().unwrap().contains("source"), "{report}");
}

#[test]
fn after_a_backup_that_could_not_read_all_it_goes_on() {
    let world = World::new(Varv::unprivileged());
    world.varv.backup(args![&world.source]);
    let closed = world.source.join("closed");
    fs::write(&closed, "x").unwrap();
    world.varv.give(&closed);
    chmod(&closed, 0o000);
    let report = world.profile(UPKEEP).report();
    assert_eq!(steps(&report), [("backup", 3), ("forget", 0), ("prune", 0), ("check", 0)]);
    assert_eq!((report["exit_code"].as_i64(), world.snapshots()), (Some(3), 1));
}

#[test]
fn a_lock_counts_more_than_what_could_not_be_read() {
    let world = World::new(Varv::unprivileged());
    let closed = world.source.join("closed");
    fs::write(&closed, "x").unwrap();
    world.varv.give(&closed);
    chmod(&closed, 0o000);
    let words = args!["backup", "-q", "--stdin", "stream"];
    let mut other = world.varv.command(words).stdin(Stdio::piped()).spawn().unwrap();
    while world.varv.json(args!["locks"])[0]["command"].is_null() {
        std::thread::yield_now();
    }
    let report = world.profile("prune = {}\n").report();
    assert_eq!(steps(&report), [("backup", 3), ("prune", 11)]);
    assert_eq!(report["exit_code"], 11);
    other.stdin.take().unwrap().write_all(b"x").unwrap();
    assert!(other.wait().unwrap().success());
}

#[test]
fn damage_counts_more_than_failure() {
    let world = World::new(Varv::new());
    fs::write(world.source.join("long"), bytes(1, 300_000)).unwrap();
    world.varv.backup(args![&world.source]);
    let packs =
        world.varv.objects().into_iter().filter(|path| path.starts_with(world.varv.repository.join("packs")));
    fs::remove_file(packs.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()).unwrap();
    // Without sources: a backup would heal it.
    let report = world.write("[profiles.p]\ncheck = {}\nafter = ['false']\n").report();
    assert_eq!(steps(&report), [("check", 4), ("after", 1)]);
    assert_eq!(report["exit_code"], 4, "{report}");
}

#[test]
fn a_missing_repository_and_a_wrong_key_have_their_own_codes() {
    let world = World::new(Varv::without_repository());
    let report = world.profile(UPKEEP).report();
    assert_eq!(steps(&report), [("backup", 10), ("forget", -1), ("prune", -1), ("check", 10)]);
    assert_eq!(report["exit_code"], 10);
    let (key, other) = (world.varv.path("key"), world.varv.path("other"));
    world.varv.ok(args!["--key-file", &key, "init", "--encryption", "key-file"]);
    fs::write(&other, fs::read_to_string(&key).unwrap().chars().rev().collect::<String>()).unwrap();
    chmod(&other, 0o600);
    let head = format!("[repositories.r]\npath = {:?}\nkey-file = ", world.varv.repository);
    let tail = format!("[profiles.p]\nsources = [{:?}]\nafter = ['false']\n", world.source);
    world.write(&format!("{head}{key:?}\n{tail}")).report();
    assert_eq!(world.snapshots_with(&key), 1);
    let report = world.write(&format!("{head}{other:?}\n{}", tail.replace("after = ['false']", ""))).report();
    assert_eq!((steps(&report), &report["exit_code"]), (vec![("backup", 12)], &json!(12)));
}

impl World {
    fn snapshots_with(&self, key: &Path) -> usize {
        self.varv.json(args!["--key-file", key, "snapshots"]).as_array().unwrap().len()
    }
}

#[test]
fn a_signal_ends_the_run_and_hooks_after_still_run() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let world = World::new(Varv::new());
        tree(&world.source, 1);
        let log = world.varv.path("log");
        let after = format!("after = ['echo $VARV_EXIT_CODE > {}']\n", log.display());
        let report = world.profile(&format!("before = ['kill -{signal} $PPID']\n{after}{UPKEEP}")).report();
        assert_eq!(report["exit_code"], code, "{report}");
        assert_eq!(steps(&report).last(), Some(&("after", 0)));
        assert_eq!(fs::read_to_string(&log).unwrap(), format!("{code}\n"));
        assert_eq!(world.snapshots(), 0);
    }
}

#[test]
fn wrong_values_are_refused_before_anything_is_run() {
    let world = World::new(Varv::new());
    let mark = world.varv.path("mark");
    let hook = format!("before = ['touch {}']\n", mark.display());
    for (lines, says) in [
        ("tier = \"lukewarm\"\n", "there is no tier 'lukewarm'"),
        ("lable = \"x\"\n", "did you mean 'label'?"),
        ("lock-wait = \"soon\"\n", "lock-wait"),
        ("prune = { max-unused = 200 }\n", "max-unused"),
        ("check = { read-data = \"much\" }\n", "not a share"),
        ("retention = {}\n", "keep-daily"),
        ("retention = { keep-within = \"x\" }\n", "length of time"),
        ("exclude-larger-than = \"big\"\n", "exclude-larger-than"),
        ("repository = \"q\"\n", "did you mean"),
    ] {
        let done = world.profile(&format!("{lines}{hook}")).run();
        assert_eq!(done.code, Some(2), "{lines}: {}", done.stderr);
        if says == "did you mean" {
            done.says(&["there is no repository 'q'"]);
        } else {
            done.says(&[says]);
        }
    }
    assert!(!mark.exists());
    world.profile(UPKEEP);
    world.varv.ends(2, args!["--config", &world.config, "run", "q"]).says(&["there is no profile 'q'"]);
    world.write("[profiles.p]\n").run().says(&["nothing to do"]);
    world.varv.ends(2, args!["run", "p"]).says(&["no configuration file", "/etc/varv/varv.toml", "--config"]);
}

#[test]
fn files_that_others_could_read_or_change_are_refused() {
    let world = World::new(Varv::new());
    let key = world.varv.path("key");
    fs::write(&key, "secret\n").unwrap();
    let head = format!("[repositories.r]\npath = {:?}\npassphrase-file = {key:?}\n", world.varv.repository);
    world.write(&format!("{head}[profiles.p]\nsources = [{:?}]\n", world.source));
    for (mode, code) in [(0o644, 2), (0o604, 2), (0o602, 2), (0o400, 0), (0o600, 0)] {
        chmod(&key, mode);
        let done = world.run();
        assert_eq!(done.code, Some(code), "{mode:o}: {}", done.stderr);
        if code == 2 {
            done.says(&["others can read", "chmod go-rwx"]);
        }
    }
    for (mode, code) in [(0o646, 2), (0o644, 0)] {
        chmod(&world.config, mode);
        assert_eq!(world.run().code, Some(code), "{mode:o}");
    }
}

#[test]
fn the_users_file_is_found() {
    let world = World::new(Varv::new());
    world.profile("label = \"named\"\n");
    let user = world.varv.path(".config/varv/varv.toml");
    fs::create_dir_all(user.parent().unwrap()).unwrap();
    let text = fs::read_to_string(&world.config).unwrap().replace("named", "of the user");
    fs::write(&user, text).unwrap();
    chmod(&user, 0o600);
    let run = |words: &[std::ffi::OsString]| {
        let mut command = world.varv.command(words);
        command.env_remove("XDG_CONFIG_HOME");
        Done::from(command.output().unwrap()).expect(0, words);
    };
    run(args!["run", "p"]);
    run(args!["run", "p", "--config", &world.config]);
    let labels: Vec<Value> = world.varv.snapshots().iter().map(|row| row["label"].clone()).collect();
    assert_eq!(labels, ["of the user", "named"]);
}

#[test]
fn without_a_repository_in_the_file_the_usual_one_is_meant() {
    let world = World::new(Varv::new());
    world.write(&format!("[profiles.p]\nsources = [{:?}]\n", world.source));
    assert_eq!((world.run().code, world.snapshots()), (Some(0), 1));
}

#[test]
fn a_dry_run_changes_nothing() {
    let world = World::new(Varv::new());
    for _ in 0..2 {
        world.varv.backup(args![&world.source]);
    }
    let mark = world.varv.path("mark");
    let objects = world.varv.objects();
    world.profile(&format!("before = ['touch {}']\n{UPKEEP}", mark.display()));
    let report = world.varv.json(args!["--config", &world.config, "run", "--dry-run", "p"]);
    assert_eq!(steps(&report), [("backup", 0), ("forget", 0), ("prune", 0), ("check", 0)]);
    assert_eq!(report["steps"][1]["result"]["forgotten"].as_array().unwrap().len(), 1);
    assert!(!mark.exists() && world.varv.objects() == objects);
}

#[test]
fn every_label_has_its_own_rules() {
    let world = World::new(Varv::new());
    for label in ["a", "b", "c"] {
        for night in 1..6 {
            let time = format!("2026-01-0{night}T03:00:00Z");
            world.varv.backup(args!["--label", label, "--time", time, &world.source]);
        }
    }
    let policy = world.varv.path("policy.toml");
    let forget = |text: &str, words: &[std::ffi::OsString]| {
        fs::write(&policy, text).unwrap();
        chmod(&policy, 0o600);
        world.varv.run(&[args!["forget", "--policy", &policy], words].concat())
    };
    for (text, words, says) in [
        ("[labels.a]\nkeep-dayly = 1", args![], "did you mean 'keep-daily'?"),
        ("[labels.a]\n[labels.b]\nkeep-last = 9", args![], "label 'a'"),
        ("", args![], "no rules"),
        ("[labels.other]\n[default]\n", args![], "no rules"),
        ("[labels.a]\nkeep-last = 1", args!["--group-by", "host"], "--group-by"),
        ("[labels.a]\nkeep-last = 1", args!["--keep-daily", "2"], "not both"),
    ] {
        let done = forget(text, words);
        assert_eq!(done.code, Some(2), "{text}: {}", done.stderr);
        done.says(&[says]);
    }
    assert_eq!(world.snapshots(), 15);
    // Labels of which nothing is said are left alone.
    forget("[labels.a]\nkeep-last = 1\n", args![]).expect(0, args!["forget"]);
    let count = |label: &str| world.varv.json(args!["snapshots", "--label", label]).as_array().unwrap().len();
    assert_eq!((count("a"), count("b"), count("c")), (1, 5, 5));
    forget("[labels.b]\nkeep-daily = 3\n[default]\nkeep-last = 2\n", args![]).expect(0, args!["forget"]);
    assert_eq!((count("a"), count("b"), count("c")), (1, 3, 2));
}

#[test]
fn after_volumes_that_could_not_be_backed_up_nothing_is_forgotten_either() {
    let world = World::new(Varv::new());
    for _ in 0..2 {
        world.varv.backup(args![&world.source]);
    }
    let lvm = "lvm = { volumes = [\"no-such-group/volume\"] }\n[[profiles.p.retier]]\nolder-than = \"now\"\n\
               to = \"cold\"\n[profiles.p.check]\n[profiles.p.prune]\n[profiles.p.retention]\nkeep-last = 1\n";
    let report = world.profile(lvm).report();
    let left_out = [("forget", -1), ("prune", -1), ("retier", -1), ("check", 0)];
    assert_eq!(steps(&report)[1..], left_out);
    assert_ne!(steps(&report)[0], ("lvm backup", 0));
    assert_eq!(world.snapshots(), 2);
}

#[test]
fn old_snapshots_go_and_what_they_need_is_compressed_harder() {
    let world = World::new(Varv::new());
    for day in 1..=3 {
        fs::write(world.source.join("file"), bytes(day, 100_000)).unwrap();
        world.varv.backup(args!["--time", format!("2026-01-0{day}"), &world.source]);
    }
    let rules = |older_than: &str| {
        format!(
            "check = {{}}\nprune = {{}}\nretention = {{ older-than = \"{older_than}\" }}\n\
             [[profiles.p.retier]]\nolder-than = \"7D\"\nto = \"warm\"\nmax-time = \"1h\"\n\
             [[profiles.p.retier]]\nolder-than = \"90D\"\nto = \"cold\"\nlimit = \"10G\"\n"
        )
    };
    let report = world.profile(&rules("200Y")).report();
    let all = [("backup", 0), ("forget", 0), ("prune", 0), ("retier", 0), ("retier", 0), ("check", 0)];
    assert_eq!((&steps(&report)[..], world.snapshots()), (&all[..], 4));
    assert_eq!(
        (&report["steps"][3]["result"]["tier"], &report["steps"][4]["result"]["tier"]),
        (&json!("warm"), &json!("cold"))
    );
    world.profile(&rules("1D")).report();
    assert_eq!(world.snapshots(), 2, "of this one and of the one before");
    for (text, says) in [
        ("retention = { older-than = \"yesterday\" }", "line 5: 'yesterday' is not a length of time"),
        ("[[profiles.p.retier]]\nolder-than = \"7D\"\nto = \"store\"", "the profile's retier"),
        ("[[profiles.p.retier]]\nolder-than = \"some time\"\nto = \"cold\"", "the profile's retier"),
        ("[[profiles.p.retier]]\nolder-than = \"7D\"\ntoo = \"cold\"", "did you mean 'to'?"),
    ] {
        world.profile(text);
        let done = world.run();
        assert_eq!(done.code, Some(2), "{text}: {}", done.stderr);
        done.says(&[says]);
    }
}

/// The file of the machine is used if there is no other, and only then.
#[test]
fn the_file_of_the_machine_is_the_last_resort() {
    if root_or_skip().is_none() {
        return;
    }
    let world = World::new(Varv::new());
    world.profile("label = \"of-machine\"\n");
    // In a mount namespace of its own, so that nobody else sees it.
    let script =
        "mount -t tmpfs none /etc && mkdir /etc/varv && cp \"$0\" /etc/varv/varv.toml && exec \"$@\"";
    let run = || {
        let program = world.varv.command(args!["run", "p"]);
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(&world.config).arg(program.get_program());
        command.args(program.get_args()).env_remove("XDG_CONFIG_HOME");
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        Done::from(command.output().unwrap())
    };
    if !run_program("unshare", &["--mount", "mount", "-t", "tmpfs", "none", "/etc"]) {
        return skip("no mount namespaces").unwrap_or_default();
    }
    run().expect(0, args!["run", "p"]);
    assert_eq!(world.varv.snapshots()[0]["label"], "of-machine");
    let own = world.varv.path(".config/varv/varv.toml");
    fs::create_dir_all(own.parent().unwrap()).unwrap();
    fs::write(&own, "[profiles.other]\n").unwrap();
    chmod(&own, 0o600);
    run().expect(2, args!["run", "p"]);
}

/// The units as they are, but for the place of the program.
#[test]
fn the_units_for_systemd_are_valid() {
    let folder = tempfile::tempdir().unwrap();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/systemd");
    let mut copies = Vec::new();
    for unit in ["varv@.service", "varv@.timer"] {
        let text = fs::read_to_string(units.join(unit)).unwrap();
        let copy = folder.path().join(unit.replace('@', "@nightly"));
        let text = text.replace("/usr/bin/varv", env!("CARGO_BIN_EXE_varv"));
        assert!(unit.ends_with("timer") || text.contains(env!("CARGO_BIN_EXE_varv")));
        fs::write(&copy, text).unwrap();
        copies.push(copy);
    }
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&copies).output();
    let Ok(output) = output else {
        return skip("no systemd-analyze").unwrap_or_default();
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("varv@"), "{said}");
}

/// The units, for a profile whose name has a hyphen, as systemd reads them; and what the service
/// starts, with the environment that it gives.
#[test]
fn the_units_are_valid_and_start_a_profile() {
    const NAME: &str = "varv@my-nights";
    let world = World::new(Varv::new());
    let head = format!("[repositories.r]\npath = {:?}\n", world.varv.repository);
    world.write(&format!("{head}[profiles.my-nights]\nsources = [{:?}]\n", world.source));
    let service = include_str!("../dist/systemd/varv@.service");
    let timer = include_str!("../dist/systemd/varv@.timer");
    // %I would be my/nights.
    assert!(!service.contains("%I") && !timer.contains("%I"));
    let value = |key: &str| service.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    let words: Vec<String> =
        value("ExecStart=/usr/bin/varv ").split(' ').map(|word| word.replace("%i", "my-nights")).collect();
    let words: Vec<_> = words.iter().map(std::ffi::OsString::from).collect();
    let mut command = world.varv.command(&[args!["--config", &world.config], &words].concat());
    let cache = world.varv.path("of-the-unit");
    let (variable, folder) = value("Environment=").split_once('=').unwrap();
    assert_eq!(folder, "%C/varv");
    let done: Done = command.env(variable, &cache).output().unwrap().into();
    assert_eq!((done.code, world.snapshots()), (Some(0), 1), "{done:?}");
    let units = [("service", service), ("timer", timer)].map(|(kind, text)| {
        let path = world.varv.path(&format!("{NAME}.{kind}"));
        fs::write(&path, text.replace("/usr/bin/varv", env!("CARGO_BIN_EXE_varv"))).unwrap();
        path
    });
    match Command::new("systemd-analyze").args(["verify", "--man=no"]).args(units).output() {
        Ok(output) => {
            let said = Done::from(output);
            assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
        }
        Err(_) => skip("no systemd-analyze").unwrap_or(()),
    }
}
