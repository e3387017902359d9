//! `varv sparse`: what it measures against what was written, `stat` and `qemu-img`.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use serde_json::Value;
use support::make::{Random, bytes, sparse_file};
use support::system::{Loop, skip};
use support::{Varv, args};

const MIB: u64 = 1 << 20;

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

#[test]
fn the_pattern_of_sparsetest() {
    let varv = Varv::without_repository();
    for order in ["", "-d", "--random"] {
        for first in ["", "-i"] {
            let options = [order, first].into_iter().filter(|word| !word.is_empty());
            let words = args!["sparse", "make", "-s", "10M", "-w", "64K", "-b", "4K", "f"];
            let words: Vec<_> = words.iter().cloned().chain(options.map(Into::into)).collect();
            let _ = fs::remove_file(varv.path("f"));
            let made = varv.json(&words);
            let content = fs::read(varv.path("f")).unwrap();
            assert_eq!(content.len() as u64, 10 * MIB, "{words:?}");
            for piece in content.chunks(64 << 10) {
                assert!(!is_zero(&piece[..4096]) && is_zero(&piece[4096..]), "{words:?}");
            }
            let meta = fs::metadata(varv.path("f")).unwrap();
            assert_eq!((&made["bytes_logical"], &made["writes"]), (&(10 * MIB).into(), &160.into()));
            assert_eq!(made["bytes_optimum"], 160 * 4096);
            assert_eq!(made["bytes_physical"], meta.blocks() * 512);
            assert_eq!(made["blocks_on_disk"], meta.blocks());
            assert_eq!(made["density"], meta.blocks() as f64 * 51200.0 / (10 * MIB) as f64);
            assert_eq!(made["efficiency"], (160 * 4096 * 100) as f64 / (meta.blocks() * 512) as f64);
            // Two blocks are never the same.
            assert!(content[..4096] != content[64 << 10..(64 << 10) + 4096]);
        }
    }
}

#[test]
fn the_lines_of_sparsetest() {
    let varv = Varv::without_repository();
    let made = varv.ok(args!["sparse", "make", "-d", "-s", "2M", "f"]);
    let text = String::from_utf8(made.stdout).unwrap();
    let wanted = "Results:\n\
        \x20 Intended logical size:         2097152 bytes;               2 M;            4096 blocks of 512 bytes\n\
        \x20 Optimum physical size:            1024 bytes;               0 M;               2 blocks of 512 bytes\n";
    assert!(text.starts_with(wanted), "{text}");
    assert!(
        text.contains("\nUsed 2 writes of 512 bytes every 1048576 bytes in descending order\nCreated "),
        "{text}"
    );
    assert!(
        text.contains(" 512 byte blocks on disk\nDensity as % of actual physical size over logical size: ")
    );
    let report = varv.ok(args!["sparse", "report", "-b", "1", "f"]);
    let report = String::from_utf8(report.stdout).unwrap();
    // The same file, the same sizes.
    for line in text.lines().filter(|line| !line.starts_with("Results") && !line.starts_with("Used")) {
        assert!(report.contains(line), "{line} is not in {report}");
    }
}

#[test]
fn what_exists_is_asked_for_and_what_cannot_be_sparse_refused() {
    let varv = Varv::without_repository();
    fs::write(varv.path("full"), vec![7; 9 << 20]).unwrap();
    fs::write(varv.path("empty"), b"").unwrap();
    varv.ends(2, args!["sparse", "make", "-s", "2M", "full"]).says(&["9437184 bytes", "--overwrite always"]);
    assert!(fs::read(varv.path("full")).unwrap() == vec![7; 9 << 20]);
    varv.ok(args!["sparse", "make", "-s", "2M", "empty"]);
    varv.ok(args!["sparse", "make", "-s", "2M", "--overwrite", "always", "full"]);
    let content = fs::read(varv.path("full")).unwrap();
    assert!(content.len() == 2 << 20 && is_zero(&content[512..1 << 20]));
    let dir = varv.dir("dir");
    for (words, said) in [
        (args!["make", &dir], "no file"),
        (args!["make", "/dev/nothing-of-ours"], "no block device"),
        (args!["make", "-s", "1", "-b", "2", "new"], "less than the block"),
        (args!["make", "-w", "1", "-b", "2", "new"], "less than the block"),
        (args!["make", "-b", "1G", "new"], "a block of"),
        (args!["make", "-s", "8E", "new"], "8 EiB"),
        (args!["report", "-b", "0", "full"], "a block of"),
        (args!["report", &dir], "directory"),
        (args!["report", "/dev/zero"], "neither a file nor a block device"),
    ] {
        let done = varv.ends(2, &[args!["sparse"], words].concat());
        assert!(done.stderr.contains(said), "{words:?}: {}", done.stderr);
    }
    varv.ends(2, args!["sparse", "make", "-d", "--random", "new"]);
    varv.ends(1, args!["sparse", "report", "missing"]).says(&["missing"]);
    assert!(!varv.path("new").exists());
}

#[test]
fn holes_are_not_read() {
    let varv = Varv::without_repository();
    sparse_file(&varv.path("f"), 6 << 40, &[(4 << 40, &bytes(1, 8192)), (5 << 40, &[0; 4096])]);
    let report = varv.json(args!["sparse", "report", "-b", "4K", "f"]);
    let one = &report[0];
    assert_eq!((&one["bytes_data"], &one["bytes_zero"]), (&8192.into(), &4096.into()));
    assert_eq!((&one["bytes_hole"], &one["extents"]), (&((6u64 << 40) - 12288).into(), &5.into()));
    assert_eq!((&one["bytes_optimum"], &one["map"]), (&8192.into(), &Value::Null));
}

#[test]
fn a_device_is_read_as_a_whole() {
    let image = [vec![0; 65536], bytes(1, 65536), vec![0; 65536]].concat();
    let Some(device) = Loop::new(&image, 512) else { return };
    let varv = Varv::without_repository();
    let report = varv.json(args!["sparse", "report", "--map", &device.path, &device.path]);
    assert_eq!(report.as_array().unwrap().len(), 2);
    let one = &report[0];
    assert_eq!((&one["bytes_logical"], &one["bytes_physical"]), (&196_608.into(), &196_608.into()));
    assert_eq!((&one["bytes_optimum"], &one["bytes_hole"]), (&65536.into(), &0.into()));
    assert_eq!(one["map"].as_array().unwrap().len(), 3);
}

/// Where data is, according to a map in qemu-img's form; neighbours are one.
fn data(map: &Value) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for extent in map.as_array().unwrap() {
        let number = |name: &str| extent[name].as_u64().unwrap();
        let (start, end) = (number("start"), number("start") + number("length"));
        assert_eq!((number("offset"), number("depth"), &extent["present"]), (start, 0, &true.into()));
        match out.last_mut() {
            _ if extent["data"] == false => assert_eq!(extent["zero"], true),
            Some(last) if last.1 == start => last.1 = end,
            _ => out.push((start, end)),
        }
    }
    out
}

fn qemu_map(path: &Path) -> Option<Value> {
    let words = ["map", "-f", "raw", "--output=json"];
    match Command::new("qemu-img").args(words).arg(path).output() {
        Ok(output) if output.status.success() => Some(serde_json::from_slice(&output.stdout).unwrap()),
        _ => skip("no qemu-img"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(30) })]
    #[test]
    fn the_map_is_that_of_qemu_img_and_tells_the_truth(seed: u64) {
        let random = &mut Random(seed);
        let varv = Varv::without_repository();
        let len = 512 * (1 + random.below(2000));
        let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
        for _ in 0..random.below(6) {
            let at = random.below(len);
            let run = random.below(40_000).min(len - at) as usize;
            runs.push((at, if random.below(2) == 0 { vec![0; run] } else { random.bytes(run) }));
        }
        let path = varv.path("f");
        let slices: Vec<(u64, &[u8])> = runs.iter().map(|(at, run)| (*at, &run[..])).collect();
        sparse_file(&path, len, &slices);
        let report = varv.json(args!["sparse", "report", "--map", "f"]);
        let map = &report[0]["map"];
        // Each byte once, zeros where zeros are said to be.
        let content = fs::read(&path).unwrap();
        let mut at = 0;
        for extent in map.as_array().unwrap() {
            let (start, length) = (extent["start"].as_u64().unwrap(), extent["length"].as_u64().unwrap());
            prop_assert_eq!(start, at);
            at += length;
            prop_assert_eq!(extent["zero"] == true, is_zero(&content[start as usize..at as usize]), "{}", seed);
        }
        prop_assert_eq!(at, len);
        prop_assert_eq!(report[0]["extents"].as_u64(), Some(map.as_array().unwrap().len() as u64));
        let Some(wanted) = qemu_map(&path) else { return Ok(()) };
        prop_assert_eq!(data(map), data(&wanted), "{}", seed);
    }
}

#[test]
fn the_table_of_qemu_img() {
    let varv = Varv::without_repository();
    sparse_file(&varv.path("f"), MIB, &[(294_912, &bytes(1, 4096))]);
    let report = varv.ok(args!["sparse", "report", "--map", "f"]);
    let text = String::from_utf8(report.stdout).unwrap();
    let table = "Offset          Length          Mapped to       File\n\
        0x48000         0x1000          0x48000         f\n";
    assert!(text.starts_with(table), "{text}");
    match Command::new("qemu-img").args(["map", "-f", "raw", "f"]).current_dir(varv.path("")).output() {
        Ok(output) if output.status.success() => assert_eq!(String::from_utf8(output.stdout).unwrap(), table),
        _ => skip("no qemu-img").unwrap_or(()),
    }
}
