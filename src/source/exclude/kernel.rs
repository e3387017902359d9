//! The kernel's own file systems.

use std::fs as std_fs;
use std::os::fd::BorrowedFd;

use rustix::fs::{self, Stat};

/// What the kernel makes up or keeps in memory for itself: reading it is useless at best.
/// Numbers from the kernel's `magic.h` and its file systems' sources.
const KERNEL_FILE_SYSTEMS: [(u32, &str); 20] = [
    (0x0000_9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0x0000_1cd1, "devpts"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x7363_6673, "securityfs"),
    (0xf97c_ff8c, "selinuxfs"),
    (0x4341_5d53, "smackfs"),
    (0x6265_6570, "configfs"),
    (0x6573_5543, "fusectl"),
    (0x4249_4e4d, "binfmt_misc"),
    (0x1980_0202, "mqueue"),
    (0x9584_58f6, "hugetlbfs"),
    (0xcafe_4a11, "bpf"),
    (0x6165_676c, "pstore"),
    (0xde5e_81e4, "efivarfs"),
    (0x6759_6969, "rpc_pipefs"),
    (0x6e66_7364, "nfsd"),
];
/// tmpfs's number, which devtmpfs has too.
const TMPFS: u32 = 0x0102_1994;

/// Its name, if the directory is on one of them.
pub(super) fn kernel_file_system(dir: BorrowedFd, stat: &Stat) -> Option<&'static str> {
    // The type is a word of varying size and sign; the numbers have 32 bits.
    let magic = fs::fstatfs(dir).ok()?.f_type as u32;
    if magic == TMPFS {
        let mounts = std_fs::read("/proc/self/mountinfo").unwrap_or_default();
        return is_devtmpfs(&mounts, stat.st_dev).then_some("devtmpfs");
    }
    KERNEL_FILE_SYSTEMS.iter().find(|(known, _)| *known == magic).map(|(_, name)| *name)
}

/// Lines are `id parent major:minor root mount-point options… - type source options`.
fn is_devtmpfs(mounts: &[u8], device: u64) -> bool {
    let device = format!("{}:{}", fs::major(device), fs::minor(device));
    String::from_utf8_lossy(mounts).lines().any(|line| {
        let of_device = line.split(' ').nth(2) == Some(&device);
        of_device && line.split_once(" - ").is_some_and(|(_, rest)| rest.starts_with("devtmpfs "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devtmpfs_is_told_from_tmpfs_by_the_mounts() {
        let mounts = b"22 1 0:5 / /dev rw,nosuid shared:2 - devtmpfs udev rw\n\
            23 1 0:6 / /dev\xff/shm rw - tmpfs devtmpfs rw\n24 1 0:55 / /x rw - devtmpfs";
        assert!(is_devtmpfs(mounts, fs::makedev(0, 5)));
        assert!(!is_devtmpfs(mounts, fs::makedev(0, 6)));
        assert!(!is_devtmpfs(mounts, fs::makedev(0, 7)));
    }
}
