#!/usr/bin/env bash
# Many nights of many files, and how long it takes to look back over them.
#
# usage: benches/history.sh VARV FOLDER [NIGHTS [FILES [CHANGES]]]
#
# Makes FOLDER with a tree of FILES files and backs it up NIGHTS times with CHANGES files
# rewritten before each, then times looking at a file, a directory and all. A FOLDER that has a
# repository already is only looked at.
set -euo pipefail

varv=$(realpath "$1")
folder=$2
nights=${3:-365}
files=${4:-100000}
changes=${5:-100}
mkdir -p "$folder"
folder=$(realpath "$folder")
tree=$folder/tree
export VARV_REPOSITORY=$folder/repository VARV_CACHE_DIR=$folder/cache TZ=UTC
RANDOM=1

# Each of the 100 directories has its share of the files.
name() {
  echo "$tree/d$(($1 % 100))/f$1"
}

make_tree() {
  local number
  for number in $(seq 0 99); do mkdir -p "$tree/d$number"; done
  for number in $(seq 0 $((files - 1))); do
    echo "file $number of night 0" > "$tree/d$((number % 100))/f$number"
  done
}

change() {
  local count
  for count in $(seq "$changes"); do
    echo "change $count of night $1" > "$(name $(((RANDOM * 32768 + RANDOM) % files)))"
  done
}

build() {
  local night
  "$varv" init -q --encryption none
  make_tree
  for night in $(seq "$nights"); do
    change "$night"
    echo "night $night" > "$tree/d7/nightly"
    "$varv" backup -q --time "$((1735700000 + night * 86400))" "$tree"
  done
}

# Where others work on the machine too, processor time is what counts.
measure() {
  local TIMEFORMAT="%R %U %S" real user system
  read -r real user system < <({ time { "$varv" -q "$@" > "$folder/out" || [ $? -eq 5 ]; }; } 2>&1)
  printf '%8s s, processors %6s s and %6s s in the kernel  %8d lines  varv %s\n' "$real" "$user" "$system" \
    "$(wc -l < "$folder/out")" "$*"
}

[ -e "$VARV_REPOSITORY/config" ] || build
measure history "$(name 5)"
measure history "$tree/d7/nightly"
measure history "$tree/d7"
measure history "$tree"
measure changes --since 2020-01-01
measure changes --since "$((nights / 2))B" "$tree/d7"
measure diff 1B 0B
measure ls --at 300B "$tree/d7"
