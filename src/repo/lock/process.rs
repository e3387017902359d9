//! Which process on which machine, and whether it is still there.

use std::fs;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};

/// This machine's name.
pub(super) fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A process for others to recognise. Host names are not enough: two machines may both be
/// called "localhost", and two containers on one machine count their processes apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    /// The kernel's random name for this run of the machine.
    boot: String,
    /// The namespace in which the process id counts.
    namespace: String,
    /// When the process began, in clock ticks since the boot; process ids are used again.
    started: u64,
}

impl Process {
    /// This process; `None` where /proc does not tell.
    pub fn current() -> Option<Self> {
        let (boot, namespace) = place()?;
        Some(Self { boot, namespace, started: stat(std::process::id())?.started })
    }

    /// Whether it is certain that the process, whose id is `pid`, has ended.
    pub fn is_gone(&self, pid: u32) -> bool {
        match place() {
            Some((boot, namespace)) if boot == self.boot && namespace == self.namespace => {
                has_ended(pid, self.started)
            }
            _ => false,
        }
    }
}

/// Where a process id means something.
fn place() -> Option<(String, String)> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    Some((boot.trim().to_owned(), namespace.to_str()?.to_owned()))
}

fn has_ended(pid: u32, started: u64) -> bool {
    // The kernel is asked first, since /proc may be mounted so that it hides others' processes.
    let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    match test_kill_process(id) {
        Err(Errno::SRCH) => true,
        _ => stat(pid).is_some_and(|stat| stat.started != started || stat.is_dead),
    }
}

struct Stat {
    started: u64,
    /// It has ended, and its parent did not notice yet.
    is_dead: bool,
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// Fields 3 and 22. The second is the command in parentheses, and may itself hold anything.
fn parse_stat(line: &[u8]) -> Option<Stat> {
    let end = line.iter().rposition(|&b| b == b')')?;
    let rest = std::str::from_utf8(line.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    Some(Stat { started: fields.nth(18)?.parse().ok()?, is_dead: matches!(state, "Z" | "X") })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "7 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";

    #[test]
    fn the_start_is_the_22nd_field_whatever_the_command() {
        let stat = parse_stat(LINE.as_bytes()).unwrap();
        assert_eq!((stat.started, stat.is_dead), (4242, false));
        assert!(parse_stat(LINE.replace(" S ", " Z ").as_bytes()).unwrap().is_dead);
        assert!(parse_stat(b"7 (x) S 1 2").is_none());
        assert!(parse_stat(b"").is_none());
    }

    #[test]
    fn this_process_lives() {
        let me = Process::current().unwrap();
        assert_eq!(Process::current(), Some(me.clone()));
        assert!(!me.is_gone(std::process::id()));
    }

    #[test]
    fn a_process_id_that_is_used_again_is_another_process() {
        let mut old = Process::current().unwrap();
        old.started += 1;
        assert!(old.is_gone(std::process::id()));
    }

    #[test]
    fn a_child_is_gone_when_it_has_ended() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let started = stat(child.id()).unwrap().started;
        let process = Process { started, ..Process::current().unwrap() };
        assert!(!process.is_gone(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(process.is_gone(child.id()));
    }

    #[test]
    fn nothing_is_certain_about_other_machines_and_containers() {
        let me = Process::current().unwrap();
        let elsewhere = Process { boot: "other".into(), started: 1, ..me.clone() };
        let container = Process { namespace: "other".into(), started: 1, ..me };
        assert!(!elsewhere.is_gone(std::process::id()));
        assert!(!container.is_gone(std::process::id()));
    }
}
