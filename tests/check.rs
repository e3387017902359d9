//! Every kind of object damaged in every way: `varv check` says so, and names it.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

const DONE: i32 = 0;
const DAMAGE: i32 = 4;

/// Bytes that do not shrink, the same in each run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 24) as u8).collect()
    }
}

/// A repository with two snapshots of a small tree.
struct House {
    folder: TempDir,
    secret: Option<&'static str>,
}

impl House {
    fn new(secret: Option<&'static str>) -> Self {
        let house = Self { folder: tempfile::tempdir().unwrap(), secret };
        let mut noise = Noise(88_172_645_463_325_252);
        let source = house.source();
        fs::create_dir_all(source.join("deep/down")).unwrap();
        fs::write(source.join("noise"), noise.bytes(400_000)).unwrap();
        fs::write(source.join("deep/words"), "words and words\n".repeat(20_000)).unwrap();
        fs::write(source.join("deep/down/empty"), "").unwrap();
        let odd = std::ffi::OsStr::from_bytes(b"odd\xff\nname");
        fs::write(source.join(odd), noise.bytes(30_000)).unwrap();
        house.done(&["init", "--encryption", if secret.is_some() { "passphrase" } else { "none" }]);
        house.done(&["backup", "-q", source.to_str().unwrap()]);
        fs::write(source.join("second"), noise.bytes(50_000)).unwrap();
        house.done(&["backup", "-q", source.to_str().unwrap()]);
        house
    }

    fn source(&self) -> PathBuf {
        self.folder.path().join("source")
    }

    fn repository(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_varv"));
        command.env_clear().env("VARV_CACHE_DIR", self.folder.path().join("cache"));
        if let Some(secret) = self.secret {
            command.env("VARV_PASSPHRASE", secret);
        }
        command.arg("--repository").arg(self.repository()).args(arguments).output().unwrap()
    }

    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(DONE), "{arguments:?}: {}", both(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn check(&self, arguments: &[&str]) -> (i32, Value) {
        let output = self.run(&[&["check", "--json"], arguments].concat());
        let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.code().unwrap(), report)
    }

    /// The names of all objects in a folder, in order.
    fn objects(&self, folder: &str) -> Vec<String> {
        let mut names = Vec::new();
        list(&self.repository().join(folder), &mut names);
        let root = self.repository();
        let relative = |path: PathBuf| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let mut names: Vec<String> = names.into_iter().map(relative).collect();
        names.sort();
        names
    }

    /// Packs whose header says that they are of this class.
    fn packs(&self, class: u8) -> Vec<String> {
        let mut packs = self.objects("packs");
        packs.retain(|name| fs::read(self.repository().join(name)).unwrap()[10] == class);
        packs
    }

    /// Damages an object while `look` looks, and mends it.
    fn while_damaged(&self, name: &str, damage: &Damage, look: impl FnOnce()) {
        let path = self.repository().join(name);
        let bytes = fs::read(&path).unwrap();
        damage.apply(&path, &bytes);
        look();
        fs::write(&path, bytes).unwrap();
    }
}

fn list(folder: &Path, names: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => list(&path, names),
            false => names.push(path),
        }
    }
}

fn both(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[derive(Debug, Clone, Copy)]
enum Damage {
    Delete,
    Empty,
    Truncate,
    Flip(usize),
    FlipFromEnd(usize),
}

impl Damage {
    fn apply(&self, path: &Path, bytes: &[u8]) {
        let flipped = |at: usize| {
            let mut bytes = bytes.to_vec();
            bytes[at] ^= 0x20;
            bytes
        };
        match *self {
            Damage::Delete => fs::remove_file(path).unwrap(),
            Damage::Empty => fs::write(path, b"").unwrap(),
            Damage::Truncate => fs::write(path, &bytes[..bytes.len() - 7]).unwrap(),
            Damage::Flip(at) => fs::write(path, flipped(at)).unwrap(),
            Damage::FlipFromEnd(at) => fs::write(path, flipped(bytes.len() - at)).unwrap(),
        }
    }
}

const DAMAGES: [Damage; 6] = [
    Damage::Delete,
    Damage::Empty,
    Damage::Truncate,
    Damage::Flip(0),
    Damage::FlipFromEnd(40),
    Damage::FlipFromEnd(1),
];

/// The names of what is damaged.
fn damaged(report: &Value) -> Vec<&str> {
    report["damaged"].as_array().unwrap().iter().map(|damage| damage["object"].as_str().unwrap()).collect()
}

fn hurts(report: &Value) -> Vec<&str> {
    let damaged = report["damaged"].as_array().unwrap().iter();
    damaged.flat_map(|d| d["hurts"].as_array().unwrap().iter().map(|hurt| hurt.as_str().unwrap())).collect()
}

fn pack_name(object: &str) -> String {
    format!("pack {}", object.rsplit('/').next().unwrap())
}

#[test]
fn a_sound_repository_is_sound() {
    for secret in [None, Some("correct horse")] {
        let house = House::new(secret);
        let (code, report) = house.check(&["--read-data"]);
        assert_eq!(code, DONE, "{report}");
        assert_eq!(report["snapshots"], 2);
        assert_eq!(report["packs"], report["packs_read"]);
        let bytes: u64 = house.objects("packs").iter().map(|name| len(&house, name)).sum();
        assert_eq!(report["bytes_read"].as_u64(), Some(bytes));
        assert_eq!(
            (&report["damaged"], &report["notes"]),
            (&Value::from([(); 0].to_vec()), &Value::from([(); 0].to_vec()))
        );
        assert!(report["chunks"].as_u64().unwrap() > 20);
        let quiet = house.run(&["check", "-q", "--read-data"]);
        assert_eq!((quiet.status.code(), both(&quiet).as_str()), (Some(DONE), ""));
        assert!(house.done(&["check"]).contains("damage     none"));
    }
}

fn len(house: &House, name: &str) -> u64 {
    fs::metadata(house.repository().join(name)).unwrap().len()
}

#[test]
fn a_damaged_configuration_is_named() {
    let house = House::new(None);
    for name in ["config", "config.copy"] {
        for damage in DAMAGES {
            house.while_damaged(name, &damage, || {
                let (code, report) = house.check(&[]);
                assert_eq!(code, DAMAGE, "{name} {damage:?}");
                assert_eq!(damaged(&report), [name], "{damage:?}");
            });
        }
    }
    assert_eq!(house.check(&[]).0, DONE);
}

#[test]
fn a_damaged_snapshot_is_named() {
    let house = House::new(Some("correct horse"));
    let name = &house.objects("snapshots")[0];
    for damage in DAMAGES.into_iter().filter(|damage| !matches!(damage, Damage::Delete)) {
        house.while_damaged(name, &damage, || {
            let (code, report) = house.check(&[]);
            assert_eq!(code, DAMAGE, "{damage:?}");
            assert_eq!(damaged(&report), [name.replace("snapshots/", "snapshot ")], "{damage:?}");
            assert_eq!(report["snapshots"], 2);
        });
    }
}

#[test]
fn what_is_no_file_where_an_object_should_be_is_named() {
    let house = House::new(None);
    for name in [&house.objects("snapshots")[0], &house.packs(1)[0]] {
        let (path, aside) = (house.repository().join(name), house.repository().join("locks/aside"));
        fs::rename(&path, &aside).unwrap();
        for replace in [|path: &Path| fs::create_dir(path), |path: &Path| symlink("/etc/passwd", path)] {
            replace(&path).unwrap();
            let (code, report) = house.check(&[]);
            assert_eq!(code, DAMAGE, "{name}");
            assert!(damaged(&report).contains(&name.as_str()), "{report}");
            fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).unwrap();
        }
        fs::rename(&aside, &path).unwrap();
    }
    assert_eq!(house.check(&[]).0, DONE);
}

#[test]
fn damaged_packs_are_named_with_the_files_that_need_them() {
    let house = House::new(None);
    for class in [1, 2] {
        for name in house.packs(class) {
            for damage in DAMAGES {
                house.while_damaged(&name, &damage, || {
                    let (code, report) = house.check(&[]);
                    assert_eq!(code, DAMAGE, "{name} {damage:?}");
                    assert!(damaged(&report).contains(&pack_name(&name).as_str()), "{damage:?} {report}");
                    assert!(!hurts(&report).is_empty(), "{name} {damage:?} {report}");
                    if class == 1 {
                        assert!(hurts(&report).iter().all(|hurt| hurt.contains("/source/")), "{report}");
                    }
                });
                house.done(&["index", "rebuild"]);
            }
        }
    }
    assert_eq!(house.check(&["--read-data"]).0, DONE);
}

#[test]
fn what_is_gone_for_good_stays_damage() {
    let house = House::new(None);
    let first = &house.packs(1)[0];
    fs::remove_file(house.repository().join(first)).unwrap();
    let (_, report) = house.check(&[]);
    assert!(damaged(&report).contains(&pack_name(first).as_str()), "{report}");
    // Now the index has forgotten the pack, but the snapshots have not.
    let (code, report) = house.check(&[]);
    assert_eq!(code, DAMAGE);
    assert!(damaged(&report)[0].starts_with("chunk "), "{report}");
    let text = both(&house.run(&["check", "-q"]));
    assert!(text.contains("hurts") && text.contains("/source/"), "{text}");
}

#[test]
fn a_flipped_bit_anywhere_in_a_pack_is_found_by_reading() {
    for secret in [None, Some("correct horse")] {
        let house = House::new(secret);
        let mut noise = Noise(3);
        for class in [1, 2] {
            for name in house.packs(class) {
                // Opening a key by passphrase takes long on purpose.
                for _ in 0..if secret.is_some() { 2 } else { 12 } {
                    let at = noise.next() % len(&house, &name);
                    house.while_damaged(&name, &Damage::Flip(at as usize), || {
                        let (code, report) = house.check(&["--read-data"]);
                        assert_eq!(code, DAMAGE, "byte {at} of {name}");
                        let id = pack_name(&name);
                        assert!(damaged(&report).iter().any(|object| object.contains(&id)), "{at} {report}");
                        assert!(!hurts(&report).is_empty(), "byte {at} of {name}: {report}");
                    });
                    house.run(&["index", "rebuild"]);
                }
            }
        }
        assert_eq!(house.check(&["--read-data"]).0, DONE);
    }
}

#[test]
fn an_index_is_made_anew() {
    let house = House::new(None);
    let name = "index/index.sqlite";
    let whole = fs::read(house.repository().join(name)).unwrap();
    let mut noise = Noise(9);
    let random = (0..12).map(|_| Damage::Flip((noise.next() % whole.len() as u64) as usize));
    for damage in DAMAGES.into_iter().chain(random) {
        damage.apply(&house.repository().join(name), &whole);
        let (code, report) = house.check(&[]);
        match code {
            DONE => {}
            DAMAGE => assert_eq!(damaged(&report), [name], "{damage:?}"),
            code => panic!("{damage:?}: exit code {code}"),
        }
        let (code, report) = house.check(&["--read-data"]);
        assert_eq!((code, report["damaged"].as_array().unwrap().len()), (DONE, 0), "{damage:?}: {report}");
    }
    fs::remove_file(house.repository().join(name)).unwrap();
    let (code, report) = house.check(&[]);
    assert_eq!(code, DONE);
    assert!(report["notes"][0].as_str().unwrap().contains("made anew"), "{report}");
    assert!(house.done(&["index", "rebuild"]).starts_with("index "));
}

#[test]
fn foreign_files_and_unfinished_objects_are_notes() {
    let house = House::new(None);
    let root = house.repository();
    fs::write(root.join("packs/mine.txt"), "x").unwrap();
    fs::create_dir_all(root.join("tmp")).unwrap();
    fs::write(root.join("tmp/half"), "x").unwrap();
    let (code, report) = house.check(&[]);
    let notes = report["notes"].to_string();
    assert_eq!(code, DONE, "{report}");
    assert!(notes.contains("packs/mine.txt") && notes.contains("1 unfinished"), "{notes}");
    assert!(both(&house.run(&["check", "-q"])).is_empty());
}

#[test]
fn a_part_of_the_data_is_read_and_said() {
    let house = House::new(None);
    let (code, report) = house.check(&["--read-data=0.5%"]);
    assert_eq!(code, DONE);
    assert!(report["packs_read"].as_u64() < report["packs"].as_u64());
    assert!(report["notes"][0].as_str().unwrap().contains("packs was read"), "{report}");
    assert_eq!(house.run(&["check", "--read-data=0"]).status.code(), Some(2));
}

#[test]
fn without_any_configuration_there_is_no_repository() {
    let house = House::new(None);
    fs::write(house.repository().join("config"), "x").unwrap();
    fs::write(house.repository().join("config.copy"), "x").unwrap();
    assert_eq!(house.run(&["check"]).status.code(), Some(DAMAGE));
    fs::remove_file(house.repository().join("config")).unwrap();
    fs::remove_file(house.repository().join("config.copy")).unwrap();
    assert_eq!(house.run(&["check"]).status.code(), Some(10));
}

/// Two packs whose names were mixed up: nothing is lost, and it is said where each belongs.
#[test]
fn packs_with_each_others_names_can_be_put_right() {
    let house = House::new(None);
    let packs: Vec<PathBuf> = house.packs(1).into_iter().map(|name| house.repository().join(name)).collect();
    let [first, second, ..] = &packs[..] else { panic!("{packs:?}") };
    let exchange = || {
        let aside = house.folder.path().join("aside");
        fs::rename(first, &aside).unwrap();
        fs::rename(second, first).unwrap();
        fs::rename(&aside, second).unwrap();
    };
    exchange();
    let (code, report) = house.check(&["--read-data"]);
    assert_eq!(code, DAMAGE);
    for (found, is) in [(first, second), (second, first)] {
        let name = |path: &Path| path.strip_prefix(house.repository()).unwrap().to_str().unwrap().to_owned();
        let damaged = report["damaged"].as_array().unwrap().iter();
        let mut whys = damaged.filter(|it| it["object"] == pack_name(&name(found))).map(|it| &it["why"]);
        assert!(whys.any(|why| why.as_str().unwrap().ends_with(&name(is))), "{report}");
    }
    exchange();
    assert_eq!(house.check(&["--read-data"]).0, DONE);
}
