//! Block devices, as loop devices: backed up, restored onto, refused.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use support::make::{bytes, overwrite};
use support::system::{Loop, Mount, root_or_skip, run, skip};
use support::{Varv, args};

const MIB: usize = 1 << 20;
/// No multiple of a page.
const ODD_LEN: usize = 10 * MIB + 512;

/// Data, zeros, data up to the odd end.
fn volume() -> Vec<u8> {
    let mut content = vec![0; ODD_LEN];
    content[..3 * MIB].copy_from_slice(&bytes(1, 3 * MIB));
    content[6 * MIB + 512..].copy_from_slice(&bytes(2, 4 * MIB));
    content
}

/// A device and a snapshot of it.
fn saved(content: &[u8]) -> Option<(Varv, Loop)> {
    let device = Loop::new(content, 512)?;
    let varv = Varv::new();
    varv.backup(args![&device.path]);
    Some((varv, device))
}

#[test]
fn a_device_comes_back_over_random_bytes() {
    let Some((varv, source)) = saved(&volume()) else { return };
    for (sector, how) in [(512, "--overwrite=always"), (512, "--in-place"), (4096, "--overwrite=always")] {
        let len = 12 * MIB;
        let before = bytes(3, len);
        let Some(target) = Loop::new(&before, sector) else { return };
        let done = varv.ok(args!["restore", "--verify", how, &source.path, &target.path]);
        assert!(String::from_utf8_lossy(&done.stdout).contains("untouched"));
        let after = target.content();
        assert!(after[..ODD_LEN] == volume(), "{sector} {how}");
        assert!(after[ODD_LEN..] == before[ODD_LEN..], "behind the end, {sector} {how}");
    }
}

#[test]
fn bytes_behind_the_end_are_counted_and_wiped_if_asked() {
    let Some((varv, source)) = saved(&volume()) else { return };
    let Some(target) = Loop::new(&bytes(3, 12 * MIB), 512) else { return };
    let counted = varv.restore(args!["--in-place", &source.path, &target.path]);
    assert_eq!(counted["bytes_untouched"], 12 * MIB - ODD_LEN);
    let counted = varv.restore(args!["--in-place", "--wipe-rest", &source.path, &target.path]);
    assert_eq!((&counted["bytes_untouched"], &counted["bytes_written"]), (&0.into(), &0.into()));
    let after = target.content();
    assert!(after[..ODD_LEN] == volume());
    assert!(after[ODD_LEN..].iter().all(|byte| *byte == 0));
}

#[test]
fn only_what_differs_is_written_in_place() {
    let Some((varv, source)) = saved(&volume()) else { return };
    let Some(target) = Loop::new(&volume(), 512) else { return };
    let counted = varv.restore(args!["--in-place", &source.path, &target.path]);
    assert_eq!(counted["bytes_written"], 0);
    overwrite(&target.path, 9 * MIB as u64 + 7, b"spoilt");
    overwrite(&target.path, 4 * MIB as u64, b"no zeros");
    let counted = varv.restore(args!["--in-place", "--verify", &source.path, &target.path]);
    let written = counted["bytes_written"].as_u64().unwrap();
    assert!((1..=64 << 10).contains(&written), "{counted}");
    assert!(target.content() == volume());
}

#[test]
fn a_device_becomes_a_sparse_file() {
    let Some((varv, source)) = saved(&volume()) else { return };
    let image = varv.path("image");
    varv.restore(args![&source.path, &image]);
    assert!(fs::read(&image).unwrap() == volume());
    let allocated = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&image).unwrap()) * 512;
    assert!(allocated < 8 * MIB as u64, "{allocated}");
    assert!(varv.ok(args!["dump", &source.path]).stdout == volume());
}

#[test]
fn a_file_comes_back_onto_a_device() {
    let Some(target) = Loop::new(&bytes(3, 11 * MIB), 512) else { return };
    let varv = Varv::new();
    let image = varv.path("image");
    fs::write(&image, volume()).unwrap();
    varv.backup(args![&image]);
    varv.restore(args!["--overwrite", "always", &image, &target.path]);
    assert!(target.content()[..ODD_LEN] == volume());
    let dir = varv.dir("dir");
    varv.backup(args![&dir]);
    varv.ends(2, args!["restore", "--overwrite", "always", &dir, &target.path]);
}

#[test]
fn an_image_and_its_device_share_their_chunks() {
    let Some((varv, _source)) = saved(&volume()) else { return };
    let image = varv.path("image");
    fs::write(&image, volume()).unwrap();
    assert_eq!(varv.backup(args![&image])["bytes_new"], 0);
}

#[test]
fn every_night_of_a_device() {
    let Some((varv, source)) = saved(&volume()) else { return };
    let mut nights = vec![(varv.snapshots()[0]["id"].clone(), volume())];
    for night in 1..4 {
        overwrite(&source.path, night * 1_234_567, &bytes(night, 50_000));
        let counted = varv.backup(args![&source.path]);
        assert!(counted["bytes_new"].as_u64().unwrap() < 400_000, "{counted}");
        nights.push((counted["snapshot"].clone(), source.content()));
    }
    for (id, content) in nights {
        assert!(varv.ok(args!["dump", "--snapshot", id.as_str().unwrap(), &source.path]).stdout == content);
    }
}

#[test]
fn a_device_is_not_overwritten_unasked() {
    let Some((varv, source)) = saved(&volume()) else { return };
    let before = bytes(3, 12 * MIB);
    let Some(target) = Loop::new(&before, 512) else { return };
    for more in
        [args![], args!["--overwrite=if-changed"], args!["--overwrite=if-newer"], args!["--overwrite=never"]]
    {
        let words = [args!["restore", &source.path, &target.path], more].concat();
        varv.ends(2, &words).says(&["12.0 MiB", "--overwrite always", "--in-place", "blkid"]);
    }
    varv.ok(args!["restore", "--dry-run", "--overwrite=always", &source.path, &target.path]);
    assert!(target.content() == before);
}

#[test]
fn a_device_that_is_too_small_is_refused() {
    let Some((varv, source)) = saved(&volume()) else { return };
    let before = bytes(3, 10 * MIB);
    let Some(target) = Loop::new(&before, 512) else { return };
    for how in ["--overwrite=always", "--in-place"] {
        varv.ends(2, args!["restore", how, &source.path, &target.path]);
    }
    assert!(target.content() == before);
}

#[test]
fn a_device_in_use_is_refused() {
    let Some((varv, source)) = saved(&volume()) else { return };
    let Some(target) = Loop::new(&vec![0; 16 * MIB], 512) else { return };
    if !run("mkfs.ext4", &["-q", target.path.to_str().unwrap()]) {
        return skip("no mkfs.ext4").unwrap_or_default();
    }
    let point = varv.dir("point");
    let Some(mounted) = Mount::new(&[target.path.to_str().unwrap()], &point) else { return };
    fs::write(point.join("file"), "in use").unwrap();
    for how in ["--overwrite=always", "--in-place"] {
        varv.ends(2, args!["restore", how, &source.path, &target.path]).says(&["use"]);
    }
    assert_eq!(fs::read(point.join("file")).unwrap(), b"in use");
    drop(mounted);
    varv.ok(args!["restore", "-q", "--overwrite=always", &source.path, &target.path]);
    assert!(target.content()[..ODD_LEN] == volume());
}

#[test]
fn what_is_under_dev_and_no_device_is_refused() {
    let varv = Varv::new();
    let file = varv.path("file");
    fs::write(&file, "x").unwrap();
    varv.backup(args![&file]);
    let mistyped = "/dev/varv-no-such-disk";
    symlink(mistyped, varv.path("link")).unwrap();
    for target in
        [mistyped.into(), "/dev/shm/varv-no-such-dir/x".into(), "/dev/null".into(), varv.path("link")]
    {
        varv.ends(2, args!["restore", "--overwrite=always", &file, &target]).says(&["/dev"]);
    }
    assert!(!Path::new(mistyped).exists());
}

#[test]
fn a_device_inside_of_a_tree_is_a_node_unless_asked() {
    let Some(device) = Loop::new(&volume(), 512) else { return };
    if root_or_skip().is_none() {
        return;
    }
    let varv = Varv::new();
    let source = varv.dir("source");
    let number = std::os::unix::fs::MetadataExt::rdev(&fs::metadata(&device.path).unwrap());
    let (kind, mode) = (rustix::fs::FileType::BlockDevice, rustix::fs::Mode::from(0o600));
    rustix::fs::mknodat(rustix::fs::CWD, source.join("disk"), kind, mode, number).unwrap();
    let target = varv.round(&source, "target");
    support::tree::assert_same(&source, &target);
    varv.backup(args!["--read-devices", &source]);
    assert!(varv.ok(args!["dump", source.join("disk")]).stdout == volume());
    let target = varv.path("target2");
    varv.restore(args![&source, &target]);
    assert!(fs::read(target.join("disk")).unwrap() == volume());
}
