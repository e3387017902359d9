//! `docs/nightly-lvm.md`, tried as it is written (`support/lab`): its profile, and all commands that it
//! shows, in their order, the worst day with an empty disk included.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod support;

use std::fs;
use std::path::Path;

use support::chmod;
use support::lab::{in_lab, scribble, sh};

const PAGE: &str = include_str!("../docs/nightly-lvm.md");

/// The lines of code blocks in this language, without their indentation.
fn code(page: &str, language: &str) -> Vec<String> {
    let blocks = page.split("```").skip(1).step_by(2);
    let own = blocks.filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n'));
    own.flat_map(|block| block.lines().map(|line| line.trim_start().to_string())).collect()
}

/// Types a command as somebody who has exported the passphrase.
fn type_in(command: &str) {
    println!("# {command}\n{}", sh(&format!("export VARV_PASSPHRASE='not so secret'\n{command}")));
}

/// Types all commands of a part of the page.
fn follow(page: &str) {
    code(page, "console").iter().filter_map(|line| line.strip_prefix("# ")).for_each(type_in);
}

#[test]
fn the_page_can_be_followed() {
    if !in_lab!("2G", "600G") {
        return;
    }
    let (nights, worst_day) = PAGE.split_at(PAGE.find("## On the worst day").unwrap());
    // What the page takes for granted: volumes, a repository, something beside them.
    sh("disk=${LAB_DISKS%% *}; pvcreate -q $disk; vgcreate -q vg $disk
        lvcreate -q -y --type thin-pool -n pool -L 400M vg
        lvcreate -q -y -n root -L 100M vg; lvcreate -q -y -n db -V 200M --thinpool pool vg
        lvcreate -q -y -n vm-1 -L 40M vg; lvchange -q --addtag nightly vg/vm-1
        mkdir -p /m /etc/libvirt /etc/varv /backup; touch /etc/libvirt/domain.xml
        for n in root db; do
            mkfs.ext4 -q /dev/vg/$n; mount /dev/vg/$n /m; head -c 9M /dev/urandom > /m/file
            sha256sum < /m/file > /root/$n.sum; umount /m
        done");
    sh(&format!(
        "ln -sf {} /usr/local/bin/varv; ln -sf ${{LAB_DISKS##* }} /dev/sda2",
        env!("CARGO_BIN_EXE_varv")
    ));
    fs::write("/etc/varv/passphrase", "not so secret\n").unwrap();
    fs::write("/etc/varv/varv.toml", code(PAGE, "toml").join("\n")).unwrap();
    for file in ["/etc/varv/passphrase", "/etc/varv/varv.toml"] {
        chmod(Path::new(file), 0o600);
    }
    type_in("varv -r /backup/repository init");
    follow(nights);
    scribble("/dev/vg/vm-1", 3, 2);
    type_in("varv run volumes");
    // The machine is gone, but for its backup; there is another disk.
    sh("vgremove -q -f -y vg; wipefs -qa ${LAB_DISKS%% *}; ln -s /backup/repository /mnt/repository");
    follow(worst_day);
    sh("sha256sum < /mnt/root/file | cmp - /root/root.sum; umount /mnt/root
        e2fsck -fn /dev/vg/db; mount /dev/vg/db /m; sha256sum < /m/file | cmp - /root/db.sum");
    assert_eq!(sh("lvs --noheadings -o pool_lv vg/db"), "pool");
}
