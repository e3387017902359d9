#!/bin/sh
# How long prune takes for 10, 100 and 1000 snapshots: 2000 files of 8 KiB, 20 of them changed a
# night; then the older half is forgotten. Prints a line for each number of snapshots.
#
#   benches/prune.sh target/release/varv [FOLDER]
set -eu
varv=$(realpath "$1")
work=$(mktemp -d "${2:-/tmp}/varv-prune-XXXXXX")
trap 'rm -rf "$work"' EXIT
export XDG_CACHE_HOME="$work/cache"

# Processor time that a command takes, in seconds: beside other work that says more than a clock.
seconds() {
    env time -f "%U %S %M" -o "$work/time" "$@" > "$work/out"
    awk '{ printf "%.2f", $1 + $2 }' "$work/time"
}

field() { sed "s/.*\"$1\":\([0-9]*\).*/\1/" "$work/out"; }

echo "snapshots packs MiB plan/s prune/s removed repacked freed/MiB check/s peak/MiB"
for count in 10 100 1000; do
    export VARV_REPOSITORY="$work/repository$count"
    source="$work/source$count"
    "$varv" init -q --encryption none
    mkdir "$source"
    for folder in $(seq 100); do
        mkdir "$source/$folder"
        head -c 163840 /dev/urandom | split -b 8192 - "$source/$folder/f"
    done
    for night in $(seq "$count"); do
        for change in $(seq 20); do
            folder=$(((night * 37 + change * 5) % 100 + 1))
            head -c 8192 /dev/urandom > "$source/$folder/faa"
        done
        "$varv" backup -q "$source"
    done
    "$varv" forget -q --keep-last $((count / 2))
    plan=$(seconds "$varv" --json prune --dry-run)
    packs=$(field packs)
    bytes=$(field bytes)
    prune=$(seconds "$varv" --json prune)
    peak=$(cut -d " " -f 3 "$work/time")
    removed=$(field packs_removed)
    repacked=$(field packs_repacked)
    freed=$(field bytes_freed)
    check=$(seconds "$varv" check -q)
    echo "$count $packs $((bytes >> 20)) $plan $prune $removed $repacked $((freed >> 20)) $check $((peak >> 10))"
    rm -rf "$source" "$VARV_REPOSITORY"
done
