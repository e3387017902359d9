//! `varv sync` and other machines: a real sshd, strangers, and anything that a peer may say.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use proptest::prelude::*;
use support::make::{Random, bytes};
use support::sync::{counted, script};
use support::system::{run, skip};
use support::{Varv, args};

const MIB: usize = 1 << 20;

#[test]
fn who_is_no_varv_and_who_is_another_is_told() {
    let varv = Varv::without_repository();
    fs::write(varv.path("from"), b"abc").unwrap();
    for (shell, said) in [
        ("exit 255", "ssh could not connect"),
        ("exit 127", "--remote-varv"),
        ("echo Welcome to the machine", "Welcome"),
        ("printf 'varvsync\\002\\000\\000\\000'; cat >/dev/null", "version 2"),
        ("printf 'varvsync\\001\\000\\000\\000'", "connection was lost"),
        ("printf 'varvsync\\001\\000\\000\\000\\002\\377\\377\\377\\377'; cat >/dev/null", "protocol"),
        ("printf 'varvsync\\001\\000\\000\\000\\011\\000\\000\\000\\000'; cat >/dev/null", "protocol"),
    ] {
        let ssh = script(&varv, "ssh", shell);
        for words in [args!["from", "other:/to"], args!["other:/from", "to"]] {
            let done = varv.ends(1, &[args!["sync", "--ssh", &ssh], words].concat());
            assert!(done.stderr.contains(said), "{shell}: {}", done.stderr);
        }
    }
}

/// An sshd of our own, on a free port, with keys of its own.
struct Sshd {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
    /// Open for as long as it writes there.
    _log: BufReader<ChildStderr>,
}

impl Sshd {
    fn new() -> Option<Self> {
        let program = Path::new("/usr/sbin/sshd");
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let keygen = |name: &str| {
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", path(name).to_str().unwrap()])
        };
        if !program.exists() || !keygen("host") || !keygen("user") {
            return skip("no sshd or ssh-keygen");
        }
        fs::copy(path("user.pub"), path("authorized")).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized\n\
             PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n",
            dir.path().display()
        );
        fs::write(path("config"), config).unwrap();
        if support::system::is_root() {
            fs::create_dir_all("/run/sshd").ok()?;
        }
        let mut child = Command::new(program)
            .args(["-D", "-e", "-f", path("config").to_str().unwrap()])
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        // Lines of its log, until it ends or listens.
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::from("\n");
        while !line.is_empty() && !line.starts_with("Server listening on") {
            line.clear();
            log.read_line(&mut line).unwrap();
        }
        let sshd = Self { child, dir, port, _log: log };
        match !line.is_empty() && run("/bin/sh", &["-c", &format!("{} localhost true", sshd.ssh())]) {
            true => Some(sshd),
            false => skip("sshd does not start, or does not let us in"),
        }
    }

    fn ssh(&self) -> String {
        let dir = self.dir.path().display();
        format!(
            "ssh -F /dev/null -p {} -i {dir}/user -o IdentitiesOnly=yes -o BatchMode=yes -o \
             StrictHostKeyChecking=no -o UserKnownHostsFile={dir}/known -o LogLevel=ERROR",
            self.port
        )
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn over_a_real_sshd_both_ways() {
    let Some(sshd) = Sshd::new() else { return };
    let varv = Varv::without_repository();
    let mut content = bytes(1, 20 * MIB);
    fs::write(varv.path("to"), &content).unwrap();
    content[5 * MIB..6 * MIB].fill(0);
    content[9 * MIB] ^= 1;
    content.extend(Random(7).text(3 * MIB));
    fs::write(varv.path("from"), &content).unwrap();
    let there = |name: &str| format!("localhost:{}", varv.path(name).display());
    let by = args!["sync", "--ssh", sshd.ssh(), "--remote-varv", env!("CARGO_BIN_EXE_varv"), "--verify"];
    let done = varv.json(&[by, args!["from", there("to")]].concat());
    assert_eq!(counted(&done), (18, 4, 1));
    // Text shrinks on its way.
    assert!(done["bytes_sent"].as_u64().unwrap() < 2 * MIB as u64, "{done}");
    assert!(fs::read(varv.path("to")).unwrap() == content);
    varv.json(&[by, args![there("from"), "pulled"]].concat());
    assert!(fs::read(varv.path("pulled")).unwrap() == content);
    let done = varv.ends(1, &[by, args!["from", there("from/x")]].concat());
    done.says(&["localhost: ", "Not a directory"]);
    let wrong = args!["sync", "--ssh", sshd.ssh(), "--remote-varv", "/no/varv", "from", "localhost:/x"];
    varv.ends(1, wrong).says(&["--remote-varv"]);
}

/// Bytes for the called side: a conversation that goes well up to some point.
fn conversation(random: &mut Random, role: u8, path: &Path) -> Vec<u8> {
    let mut out = b"varvsync\x01\0\0\0".to_vec();
    let mut say = |kind: u8, body: &[u8]| {
        out.push(kind);
        out.extend((body.len() as u32).to_le_bytes());
        out.extend(body);
    };
    let mut request = vec![role];
    request.extend(4096u32.to_le_bytes());
    request.extend(65536u64.to_le_bytes());
    request.extend([0, 3]);
    request.extend(0u64.to_le_bytes());
    request.extend(path.as_os_str().as_encoded_bytes());
    say(1, &request);
    say(3, &[1, 2, 5, 1]);
    say(4, &[random.below(2) as u8, random.below(2) as u8]);
    for _ in 0..random.below(6) {
        match random.below(4) {
            0 => say(5, &[0, random.below(30) as u8]),
            1 => say(5, &[&[1, 1][..], &[7; 32]].concat()),
            2 => {
                let head = [&random.below(20).to_le_bytes()[..], &4096u32.to_le_bytes(), &[0]].concat();
                say(6, &[&head[..], &random.bytes(4096)].concat());
            }
            _ => say(7, &[random.below(20).to_le_bytes(), random.below(20).to_le_bytes()].concat()),
        }
    }
    say(8, &[0; 41]);
    say(10, &[]);
    out
}

/// The process is asked something, its answers are read and thrown away; it must end by itself and
/// not by a signal or a panic.
fn survives(mut child: Child, said: &[u8], why: &str) {
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    // It may have hung up already.
    let _ = stdin.write_all(said);
    drop(stdin);
    reader.join().unwrap().unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    let code = child.wait().unwrap().code();
    assert!(matches!(code, Some(0..=2)) && !stderr.contains("panicked"), "{why}: {code:?} {stderr}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]
    #[test]
    fn the_called_side_survives_anything(seed: u64) {
        let random = &mut Random(seed);
        let varv = Varv::without_repository();
        fs::write(varv.path("file"), bytes(seed, 65536)).unwrap();
        let role = random.below(2) as u8;
        let mut said = conversation(random, role, &varv.path("file"));
        // The path stays: what it leads to would be written to.
        let path = 17 + 23..17 + 23 + varv.path("file").as_os_str().len();
        for _ in 0..random.below(4) {
            let at = random.below(said.len() as u64) as usize;
            if !(13..17).contains(&at) && !path.contains(&at) {
                said[at] ^= 1 << random.below(8);
            }
        }
        if random.below(3) == 0 {
            said.truncate(random.below(said.len() as u64) as usize);
        }
        let child = varv
            .command(args!["sync", "--serve"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        survives(child, &said, &format!("seed {seed}"));
        // Nothing outside of what was asked for is written.
        prop_assert!(fs::metadata(varv.path("file")).unwrap().len() <= 65536 || role == 1);
    }

    #[test]
    fn the_calling_side_survives_anything(seed: u64) {
        let random = &mut Random(seed);
        let varv = Varv::without_repository();
        fs::write(varv.path("file"), bytes(seed, 65536)).unwrap();
        // What a called side says: ready, then states or data, then the ends of a pass.
        let mut said = b"varvsync\x01\0\0\0".to_vec();
        let mut say = |kind: u8, body: &[u8]| {
            said.push(kind);
            said.extend((body.len() as u32).to_le_bytes());
            said.extend(body);
        };
        say(2, &[&65536u64.to_le_bytes()[..], &[0], &0u64.to_le_bytes()].concat());
        for _ in 0..random.below(5) {
            match random.below(3) {
                0 => say(5, &[0, 1 + random.below(16) as u8]),
                1 => say(5, &[&[1, 2][..], &[7; 64]].concat()),
                _ => say(7, &[random.below(20).to_le_bytes(), random.below(20).to_le_bytes()].concat()),
            }
        }
        say(8, &[0; 41]);
        say(9, &[0; 16]);
        for _ in 0..random.below(4) {
            let at = random.below(said.len() as u64) as usize;
            said[at] ^= 1 << random.below(8);
        }
        fs::write(varv.path("said"), &said).unwrap();
        let ssh = script(&varv, "ssh", "cat said; exec >&-; cat >/dev/null");
        for words in [args!["file", "other:/to"], args!["other:/from", "made"]] {
            let words = [args!["sync", "-b", "4096", "--ssh", &ssh], words].concat();
            let done = varv.run(&words);
            prop_assert!(matches!(done.code, Some(0..=2)), "{} {:?}", seed, done);
            prop_assert!(!done.stderr.contains("panicked"), "{} {:?}", seed, done);
        }
    }
}
