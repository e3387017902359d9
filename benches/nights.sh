#!/bin/bash
# What a night of a volume of 8 GiB reads: nothing changed, then 256 MiB in 103 runs of 1 to 4 MiB,
# half of them over data and half where nothing was. Prints what varv says that it has read, and what
# the kernel says that was read of the disk, by LVM too. Needs LVM, as in the lab:
#
#   tests/lab/with-lvm --timeout 1200 --disk 24G --disk 8G -- benches/nights.sh target/release/varv
#
# The first disk holds the volumes, the second one the repository; both are overwritten.
set -euo pipefail
varv=$(realpath "$1")
read -r disk repository <<< "$LAB_DISKS"
slots=103 # of 79 MiB, each begins with 8 MiB of data and has one run of changes

pvcreate -q "$disk"
vgcreate -q vg "$disk"
lvcreate -q -y --type thin-pool -n pool -L 9G -c 64k --poolmetadatasize 64M vg
lvcreate -q -y -n thick -L 8G vg
lvcreate -q -y -n thin -V 8G --thinpool pool vg
mkfs.ext4 -q "$repository"
mkdir -p /repository
mount "$repository" /repository
export VARV_REPOSITORY=/repository/r XDG_CACHE_HOME=/repository/cache
"$varv" init -q --encryption none

every_slot() { seq 0 $((slots - 1)); }

# The same on both, so that the repository needs room for it only once.
fill() {
    for slot in $(every_slot); do
        head -c 8M /dev/urandom > /content
        for kind in thick thin; do
            dd if=/content of=/dev/vg/$kind bs=1M seek=$((slot * 79)) oflag=direct status=none
        done
    done
}

change() {
    for slot in $(every_slot); do
        len=$((slot % 4 + 1))
        from=$((slot % 2 ? 0 : 20 << 20))
        at=$((slot * (79 << 20) + from + RANDOM % 1024 * 4096))
        dd if=/dev/urandom of="/dev/vg/$1" bs="${len}M" count=1 seek="$at" iflag=fullblock oflag=seek_bytes,direct status=none
    done
}

disk_reads() { awk '{ print $3 }' "/sys/block/${disk#/dev/}/stat"; }

night() {
    echo 3 > /proc/sys/vm/drop_caches
    before=$(disk_reads)
    "$varv" --json lvm backup "vg/$2" > /night
    by_disk=$(awk -v sectors=$(($(disk_reads) - before)) 'BEGIN { printf "%.1f", sectors / 2048 }')
    field() { grep -o "\"$1\":[0-9]*" /night | tail -1 | cut -d: -f2; }
    method=$(grep -o '"method":"[a-z]*"' /night | cut -d'"' -f4)
    mib() { awk -v bytes="$(field "$1")" 'BEGIN { printf "%.1f", bytes / 1048576 }'; }
    echo "| $2 | $1 | $method | $(mib bytes_changed) | $(mib bytes_read) | $(mib bytes_spot_checked) | $by_disk |"
}

echo "| volume | night | known by | changed, MiB | read, MiB | of it spot checks | read of the disk |"
fill
for kind in thick thin; do
    night first $kind
    night unchanged $kind
    change $kind
    night changed $kind
    night unchanged $kind
done
