#!/usr/bin/env python3
"""Reads a repository by docs/format.md alone, to prove that the text says enough.

    read_repo.py                                check the worked example of that page
    read_repo.py REPOSITORY                     check all snapshots and list them
    read_repo.py REPOSITORY --against ROOT DIR  and compare the files of root ROOT with those in DIR
    read_repo.py --make VARV                    make a repository with this program, then do both

Reads unencrypted repositories, whole objects at a time: it is short, not fast.
Comments name the sections of docs/format.md. Exit code 0, or 1 and a word about what is wrong.
Needs the packages blake3 and zstandard; without them it says so and exits with 0.
"""

import json
import math
import os
import random
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    from blake3 import blake3
    import zstandard
except ImportError as missing:
    print(f"skipped: {missing}; this reader needs the packages blake3 and zstandard")
    sys.exit(0)


class Damaged(Exception):
    pass


def check(condition, why):
    if not condition:
        raise Damaged(why)


# 1. Conventions


class Record:
    def __init__(self, data):
        self.data, self.at = data, 0

    def left(self):
        return len(self.data) - self.at

    def take(self, count):
        check(count <= self.left(), "a record ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def u(self, width):
        return int.from_bytes(self.take(width), "little")

    def u8(self):
        return self.u(1)

    def varint(self):
        value = shift = 0
        while True:
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                check(byte or not shift, "a varint is not in its shortest form")
                check(value < 1 << 64, "a varint is too large")
                return value
            shift += 7

    def signed(self):
        value = self.varint()
        return value >> 1 if value & 1 == 0 else -(value >> 1) - 1

    def string(self):
        return self.take(self.varint())

    def end(self):
        check(self.left() == 0, "bytes are left over")


def varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def signed(value):
    return varint(2 * value if value >= 0 else -2 * value - 1)


def string(value):
    return varint(len(value)) + value


def u32(value):
    return value.to_bytes(4, "little")


def wrap64(value):
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def derive(context, material, length=32):
    return blake3(material, derive_key_context=context).digest(length=length)


# 3. Configuration


def read_config(folder):
    best = None
    for name in ("config", "config.copy"):
        try:
            data = (folder / name).read_bytes()
        except FileNotFoundError:
            continue
        first, body, last, rest = data.split(b"\n")
        check(rest == b"", "the configuration has more than three lines")
        check(first.startswith(b"varv repository, format 1, "), "the format is not 1")
        text = first + b"\n" + body + b"\n"
        words = last.split(b" ")
        check([words[0], words[2]] == [b"check", b"mac"], "the configuration's last line")
        if words[1].decode() != blake3(text).hexdigest():
            continue
        config = json.loads(body)
        if best is None or config["generation"] > best[0]["generation"]:
            best = config, text, words[3].decode()
    check(best, "there is no good configuration")
    return best


# 4. Keys


class Keys:
    def __init__(self, master):
        ids = derive("varv 2026-11 ids", master)
        self.ids = [
            derive(f"varv 2026-11 {name} ids", ids) for name in ("data chunk", "map node", "tree node")
        ]
        self.gear = derive("varv 2026-11 gear table", derive("varv 2026-11 chunker", ids), 2048)
        self.of_class = {
            1: derive("varv 2026-11 data", master),
            2: derive("varv 2026-11 metadata", master),
        }
        self.config = derive("varv 2026-11 config", master)


# 5. Seals, where nothing is encrypted


def opened(key, number, bound, sealed):
    check(len(sealed) >= 16, "a seal is missing")
    plain, tag = sealed[:-16], sealed[-16:]
    made = blake3(u32(number) + u32(len(bound)) + bound + plain, key=key).digest(length=16)
    check(made == tag, "a seal is broken")
    return plain


def decoded(codec, stored, prefix, length):
    if codec == 1:
        # To this decoder, a prefix is a dictionary of raw content.
        raw = zstandard.DICT_TYPE_RAWCONTENT
        prefix = zstandard.ZstdCompressionDict(prefix, dict_type=raw) if prefix else None
        decoder = zstandard.ZstdDecompressor(dict_data=prefix, max_window_size=32 << 20)
        # The size in zstd's header, if any, is a claim like any other.
        stored = decoder.decompressobj().decompress(stored)
    else:
        check(codec == 0, "a codec is unknown")
    check(len(stored) == length, "a frame has the wrong length")
    return stored


class Repository:
    def __init__(self, folder):
        self.folder = Path(folder)
        self.config, text, mac = read_config(self.folder)
        check(not self.config["encrypted"], "the repository is encrypted, which this reader does not read")
        self.id = bytes.fromhex(self.config["id"])
        slot = next(slot for slot in self.config["slots"] if slot["kind"] == "open")
        self.keys = Keys(bytes.fromhex(slot["keys"]["master"]))
        check(blake3(text, key=self.keys.config).digest(length=16).hex() == mac, "the configuration's MAC")
        for name, key in ("metadata", 2), ("data", 1):
            check(slot["keys"][name] == self.keys.of_class[key].hex(), "the keys derived and wrapped differ")
        self.chunker = Chunker(self.config["chunker"], self.keys.gear)
        self.chunks = {}
        self.packs = {}
        for path in sorted(self.folder.glob("packs/??/*")):
            self.read_pack(path)
        frames = [frame for pack in self.packs.values() for frame in pack["frames"]]
        self.deltas = sum(frame["depth"] > 0 for frame in frames)
        # What others are compressed against is less deep.
        for frame in sorted(frames, key=lambda frame: frame["depth"]):
            self.decode(frame)

    # 6. Packs

    def read_pack(self, path):
        data = path.read_bytes()
        check(blake3(data).hexdigest() == path.name and path.parent.name == path.name[:2], "a pack's name")
        header, footer = Record(data[:48]), Record(data[-28:])
        check(header.take(8) == b"varvpack" and header.u(2) == 1, "a pack's header")
        klass, key_wrap, zero = header.u8(), header.u8(), header.u(4)
        check(klass in (1, 2) and key_wrap == 0 and zero == 0, "a pack's header")
        key = derive("varv 2026-11 pack", self.keys.of_class[klass] + header.take(32))
        trailer_len, checksum = footer.u(4), footer.take(16)
        check(footer.take(8) == b"varvend\n", "a pack's footer")
        sealed = data[-28 - trailer_len : -28]
        made = blake3(data[:48] + sealed + u32(trailer_len)).digest(length=16)
        check(made == checksum, "a pack's checksum")

        def bound(number, codec, length):
            return b"\1\0" + self.id + bytes([klass]) + u32(number) + bytes([codec]) + u32(length)

        number = (1 << 32) - 1
        trailer = Record(opened(key, number, bound(number, 0, trailer_len - 16), sealed))
        names = [path.name] + [trailer.take(32).hex() for _ in range(trailer.varint())]
        at, frames, slots = 48, [], []
        for number in range(trailer.varint()):
            stored_len, raw_len = trailer.varint(), trailer.varint()
            kind, codec, _level, depth = (trailer.u8() for _ in range(4))
            bases = [tuple(trailer.varint() for _ in range(4)) for _ in range(trailer.varint())]
            check(len(bases) <= 256 and (depth > 0) == (len(bases) > 0) and depth <= 15, "a frame's depth")
            check(all(base[0] or base[1] < number for base in bases), "a base comes after its frame")
            check((klass == 1) == (kind == 0) and kind <= 2, "a frame's kind")
            check(kind == 0 or not bases, "metadata with bases")
            lengths = [trailer.varint() for _ in range(trailer.varint())]
            check(sum(lengths) == raw_len <= 8 << 20, "a frame's length")
            sealed = data[at : at + stored_len]
            frame = {
                "kind": kind,
                "codec": codec,
                "depth": depth,
                "stored": opened(key, number, bound(number, codec, raw_len), sealed),
                "raw_len": raw_len,
                "bases": [(names[pack], *rest) for pack, *rest in bases],
                "slots": range(len(slots), len(slots) + len(lengths)),
                "pack": path.name,
            }
            frames.append(frame)
            at += stored_len
            start = 0
            for length in lengths:
                slots.append([number, start, length])
                start += length
        check(at == len(data) - 28 - trailer_len, "frames do not end where the trailer begins")
        for slot in slots:
            slot.append(trailer.take(20))
        trailer.end()
        self.packs[path.name] = {"frames": frames, "slots": slots}

    def decode(self, frame):
        prefix = b"".join(self.base(frame, *base) for base in frame["bases"])
        check(len(prefix) <= 16 << 20, "bases are too long")
        raw = decoded(frame["codec"], frame.pop("stored"), prefix, frame["raw_len"])
        frame["raw"] = raw
        # 7. Chunk ids
        for slot in frame["slots"]:
            _, start, length, id = self.packs[frame["pack"]]["slots"][slot]
            chunk = raw[start : start + length]
            made = blake3(chunk, key=self.keys.ids[frame["kind"]]).digest(length=20)
            check(made == id, "a chunk's id")
            self.chunks[frame["kind"], id] = chunk

    def base(self, frame, pack, number, slot, count):
        check(pack in self.packs, "a base's pack is missing")
        holder = self.packs[pack]
        check(number < len(holder["frames"]) and count > 0, "a base's frame is missing")
        base, slots = holder["frames"][number], holder["slots"][slot : slot + count]
        check(len(slots) == count and all(at[0] == number for at in slots), "a base is not in its frame")
        check(base["depth"] < frame["depth"], "a base is not less deep")
        return base["raw"][slots[0][1] : slots[-1][1] + slots[-1][2]]

    def chunk(self, kind, id):
        check((kind, id) in self.chunks, f"chunk {id.hex()} is missing")
        return self.chunks[kind, id]

    # 12. Sealed objects, 13. snapshots

    def snapshots(self):
        for path in sorted(self.folder.glob("snapshots/*")):
            data = path.read_bytes()
            check(blake3(data).hexdigest() == path.name, "a snapshot's name")
            header = Record(data[:48])
            check(header.take(8) == b"varvobjt" and header.u(2) == 1, "a snapshot's header")
            kind, key_wrap, codec = header.u8(), header.u8(), header.u8()
            check(kind == 17 and key_wrap == 0 and header.take(3) == bytes(3), "a snapshot's header")
            length, salt = header.u(4), header.take(28)
            key = derive("varv 2026-11 object", self.keys.of_class[2] + salt)
            bound = b"\1\0" + self.id + bytes([kind, codec]) + u32(length)
            yield path.name, json.loads(decoded(codec, opened(key, 0, bound, data[48:]), b"", length))

    # 8. Node trees: leaves in order; where nodes end is checked on the way

    def leaves(self, kind, level, id, parse_child, ends):
        record = Record(self.chunk(kind, id))
        check(record.u8() == level <= 10, "a node's level")
        if level == 0:
            yield record, lambda entries, last: self.check_end(entries, last, ends)
            return
        children = parse_child(record)
        record.end()
        for child in children:
            yield from self.leaves(kind, level - 1, child, parse_child, ends)
        # Which node is the last of its level only the whole tree tells; the inner ones of this node are not.
        self.check_end(children, True, lambda id: int.from_bytes(id[:4], "little") % 64 == 0)

    @staticmethod
    def check_end(entries, last, ends):
        check(0 < len(entries) <= 1024, "a node's number of entries")
        early = [e for e in entries[31:-1] if ends(e)]
        check(not early, "a node goes on behind an entry that ends it")
        if not last:
            check(len(entries) == 1024 or (len(entries) >= 32 and ends(entries[-1])), "a node ends too early")

    # 9. Maps

    def extents(self, record):
        codes = [record.varint() for _ in range(record.varint())]
        out = []
        for code in codes:
            length, kind = code >> 2, code & 3
            check(length > 0 and kind <= 2, "an extent")
            out.append((kind, length, record.take(20) if kind == 0 else None))
        return out

    def map(self, record):
        level = record.u8()
        if level == 0:
            extents = self.extents(record)
            check(len(extents) <= 16, "an inline map is too long")
        else:
            sums = [record.varint() for _ in range(3)]
            extents = self.map_tree(level - 1, record.take(20))
            made = [sum(e[1] for e in extents), sum(e[1] for e in extents if e[0] == 0), len(extents)]
            check(made == sums and len(extents) > 16, "a map's sums")
        for one, two in zip(extents, extents[1:]):
            check(one[0] == 0 or one[0] != two[0], "two zeros or holes side by side")
        return extents

    def map_tree(self, level, id):
        def children(record):
            count = record.varint()
            for _ in range(3 * count):
                record.varint()
            return [record.take(20) for _ in range(count)]

        def ends(extent):
            return extent[0] == 0 and int.from_bytes(extent[2][:4], "little") % 64 == 0

        leaves = []
        for record, check_end in self.leaves(1, level, id, children, ends):
            leaves.append((self.extents(record), check_end))
            record.end()
        for number, (extents, check_end) in enumerate(leaves):
            check_end(extents, number == len(leaves) - 1)
        return [extent for extents, _ in leaves for extent in extents]

    def content(self, extents):
        out = bytearray()
        for kind, length, id in extents:
            part = self.chunk(0, id) if kind == 0 else bytes(length)
            check(len(part) == length, "a chunk's length")
            out += part
        return bytes(out)

    # 10. Trees

    def entries(self, level, id, roots=False):
        def children(record):
            out = []
            for _ in range(record.varint()):
                record.varint()
                record.string()
                out.append(record.take(20))
            return out

        def ends(entry):
            return int.from_bytes(blake3(entry["name"]).digest()[:4], "little") % 64 == 0

        leaves = []
        for record, check_end in self.leaves(2, level, id, children, ends):
            leaves.append((self.leaf(record), check_end))
            record.end()
        for number, (entries, check_end) in enumerate(leaves):
            check_end(entries, number == len(leaves) - 1)
        entries = [entry for entries, _ in leaves for entry in entries]
        names = [entry["name"] for entry in entries]
        check(names == sorted(set(names)), "names are not in order")
        for name in names:
            check(name and b"\0" not in name, "a name")
            check(roots or (b"/" not in name and name not in (b".", b"..")), "a name")
        return entries

    def leaf(self, record):
        owner, modified, changed, inode = (0, 0, b"", b""), 0, 0, 0
        entries = []
        for _ in range(record.varint()):
            name, kind, flags, mode = record.string(), record.u8(), record.u8(), record.varint()
            check(flags < 8 and mode < 1 << 12 and kind <= 8, "an entry")
            if not flags & 1:
                owner = (record.varint(), record.varint(), record.string(), record.string())
            modified = wrap64(modified + record.signed())
            modified_nanos = record.varint()
            changed = wrap64(changed + record.signed())
            record.varint()
            inode = (inode + record.signed()) % (1 << 64)
            attributes = []
            if flags & 2:
                attributes = [(record.string(), record.string()) for _ in range(record.varint())]
            links = (record.varint(), record.varint()) if flags & 4 else None
            start = record.at
            entry = dict(name=name, kind=kind, mode=mode, owner=owner, inode=inode, links=links)
            entry.update(modified=modified * 10**9 + modified_nanos, attributes=attributes)
            if kind in (0, 7, 8):
                entry["map"] = self.map(record)
            elif kind == 1:
                entry["counts"] = [record.varint() for _ in range(3)]
                entry["hash"] = record.take(20)
                entry["top"] = (record.u8(), record.take(20)) if entry["counts"][0] else None
            elif kind == 2:
                entry["target"] = record.string()
            elif kind in (3, 4):
                entry["device"] = (record.varint(), record.varint())
            entry["hashed"] = (
                string(name) + bytes([kind]) + varint(mode)
                + varint(owner[0]) + varint(owner[1]) + string(owner[2]) + string(owner[3])
                + signed(modified) + varint(modified_nanos)
                + varint(len(attributes)) + b"".join(string(n) + string(v) for n, v in attributes)
                + (entry["hash"] if kind == 1 else record.data[start : record.at])
            )  # fmt: skip
            entries.append(entry)
        return entries

    def below(self, entry):
        """The entries of a directory; its counts and content hash are checked by `walk`."""
        return self.entries(*entry["top"]) if entry["top"] else []

    def walk(self, entry, path, out):
        """Puts all below an entry into `out` by path; gives the files and bytes below it."""
        out[path] = entry
        if entry["kind"] != 1:
            return 1, sum(length for _, length, _ in entry.get("map", []))
        entries, files, size = self.below(entry), 0, 0
        hasher = blake3(key=self.keys.ids[2])
        for child in entries:
            more = self.walk(child, path + b"/" + child["name"], out)
            files, size = files + more[0], size + more[1]
            hasher.update(child["hashed"])
        check(entry["counts"] == [len(entries), files, size], "a directory's counts")
        check(hasher.digest(length=20) == entry["hash"], "a directory's content hash")
        return files, size

    def roots(self, snapshot):
        tree = snapshot["tree"]
        return self.entries(tree["level"], bytes.fromhex(tree["id"]), roots=True)


# 11. Chunker

MASKS = {
    7: 0x0000000018035100, 8: 0x0000001800035300, 9: 0x0000019000353000, 10: 0x0000590003530000,
    11: 0x0000D90003530000, 12: 0x0000D90103530000, 13: 0x0000D90303530000, 14: 0x0000D90313530000,
    15: 0x0000D90F03530000, 16: 0x0000D90303537000, 17: 0x0000D90703537000, 18: 0x0000D90707537000,
    19: 0x0000D91707537000, 20: 0x0000D91747537000, 21: 0x0000D91767537000,
}  # fmt: skip


class Chunker:
    def __init__(self, text, gear):
        kind, sizes = text.split(":")
        self.sizes = [int(size) for size in sizes.split(",")]
        self.fixed = kind == "fixed"
        check(self.fixed or kind == "fastcdc", "the chunker is unknown")
        self.gear = [int.from_bytes(gear[i : i + 8], "little") for i in range(0, 2048, 8)]
        if not self.fixed:
            bits = math.floor(math.log2(self.sizes[1]) + 0.5)
            self.strict, self.loose = MASKS[bits + 1], MASKS[bits - 1]

    def parts(self, data):
        """Zeros as (None, length), chunks as (bytes, length)."""
        blocks = [data[i : i + 4096] for i in range(0, len(data), 4096)]
        at = 0
        while at < len(blocks):
            zero = not any(blocks[at])
            end = at
            while end < len(blocks) and (not any(blocks[end])) == zero:
                end += 1
            run = b"".join(blocks[at:end])
            if zero:
                yield None, len(run)
            else:
                yield from self.cut(run, at * 4096)
            at = end

    def cut(self, run, offset):
        at = 0
        while at < len(run):
            length = self.length(run[at : at + max(self.sizes)], offset + at)
            yield run[at : at + length], length
            at += length

    def length(self, s, offset):
        if self.fixed:
            return min(len(s), self.sizes[0] - offset % self.sizes[0])
        low, average, high = self.sizes
        n = min(len(s), high)
        if n <= low:
            return n
        c, h = min(average, n) // 2 * 2, 0
        for i in range(low, n // 2 * 2):
            h = (2 * h + self.gear[s[i]]) & 0xFFFFFFFFFFFFFFFF
            if h & (self.strict if i < c else self.loose) == 0:
                return i
        return n


def check_cuts(repository, entry, data):
    """That cutting the content again gives the map that is stored, holes taken as zeros."""
    merged = []
    for kind, length, id in entry["map"]:
        if kind and merged and merged[-1][0] is None:
            merged[-1] = (None, merged[-1][1] + length)
        else:
            merged.append((id, length))
    key = repository.keys.ids[0]
    made = [
        (blake3(chunk, key=key).digest(length=20) if chunk is not None else None, length)
        for chunk, length in repository.chunker.parts(data)
    ]
    check(made == merged, "the content is cut otherwise")


def compare(repository, snapshot, root, folder):
    roots = {entry["name"]: entry for entry in repository.roots(snapshot)}
    check(os.fsencode(root) in roots, f"there is no root {root}")
    found = {}
    repository.walk(roots[os.fsencode(root)], b"", found)
    there = {b""}
    for above, folders, files in os.walk(os.fsencode(folder)):
        below = above[len(os.fsencode(folder)) :]
        there |= {below + b"/" + name for name in folders + files}
    check(set(found) == there, f"names differ: {sorted(set(found) ^ there)[:5]}")
    types = {0: stat.S_ISREG, 1: stat.S_ISDIR, 2: stat.S_ISLNK, 5: stat.S_ISFIFO, 6: stat.S_ISSOCK}
    size = cut = 0
    for path, entry in found.items():
        whole = os.fsencode(folder) + path
        info = os.lstat(whole)
        check(types[entry["kind"]](info.st_mode), f"{whole}: the kind")
        check(entry["mode"] == stat.S_IMODE(info.st_mode), f"{whole}: the mode")
        check(entry["owner"][:2] == (info.st_uid, info.st_gid), f"{whole}: the owner")
        check(entry["modified"] == info.st_mtime_ns, f"{whole}: the time")
        check(entry["inode"] == info.st_ino, f"{whole}: the inode")
        if entry["kind"] == 2:
            check(entry["target"] == os.readlink(whole), f"{whole}: the target")
        if entry["kind"] != 0:
            continue
        several = (info.st_dev, info.st_nlink) if info.st_nlink > 1 else None
        check(entry["links"] == several, f"{whole}: the names")
        data = repository.content(entry["map"])
        check(data == Path(os.fsdecode(whole)).read_bytes(), f"{whole}: the content")
        size += len(data)
        check_cuts(repository, entry, data)
        cut += len(entry["map"])
    print(f"{root}: {len(found)} entries, {size} bytes, {cut} extents are as in {folder}")


def make_source(folder):
    rng = random.Random(11)
    (folder / "sub" / "empty").mkdir(parents=True)
    (folder / "hello").write_text("hello, layer\n")
    os.link(folder / "hello", folder / "sub" / "second name")
    os.symlink("sub/second name", folder / "link")
    os.mkfifo(folder / "pipe")
    for number in range(3000):
        (folder / "sub" / f"{number:x}").write_bytes(f"{number}\n".encode() * (number % 50))
    text = b" ".join(b"%d" % rng.randrange(5000) for _ in range(600_000))
    (folder / "text").write_bytes(text)
    rows = b"".join(b"%016x row\n" % rng.randrange(1 << 60) for _ in range(50_000))
    (folder / "rows").write_bytes(rows)
    noise = rng.randbytes(1_200_001)
    (folder / "noise").write_bytes(noise)
    with open(folder / "sparse", "wb") as file:
        file.write(noise[:70_001])
        file.seek(1 << 20)
        file.write(bytes(8192) + noise[:100_000] + bytes(50_000) + noise)
        file.truncate(4 << 20)


def change_rows(folder):
    with open(folder / "rows", "r+b") as file:
        for at in range(0, 1 << 20, 20_000):
            file.seek(at)
            file.write(b"changed %d" % random.randrange(1 << 20))


def run_all(repository_folder, against):
    repository = Repository(repository_folder)
    for id, snapshot in sorted(repository.snapshots(), key=lambda found: found[1]["time"]):
        found = {}
        roots = repository.roots(snapshot)
        for entry in roots:
            repository.walk(entry, entry["name"], found)
        for entry in found.values():
            if "map" in entry:
                repository.content(entry["map"])
        print(f"snapshot {id[:8]} of {snapshot['time']}: {len(roots)} roots, {len(found)} entries")
        last = snapshot
    if against:
        compare(repository, last, *against)
    return repository.deltas


def make(varv):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        source = folder / "source"
        make_source(source)
        for number, chunker in enumerate(["fastcdc:4K,16K,64K", "fastcdc:64,300,1K", "fixed:12K"]):
            repository = folder / f"repository{number}"
            base = [varv, "-q", "--repository", str(repository)]
            subprocess.run(base + ["init", "--encryption", "none", "--chunker", chunker], check=True)
            subprocess.run(base + ["backup", str(source)], check=True)
            change_rows(source)
            subprocess.run(base + ["backup", str(source)], check=True)
            deltas = run_all(repository, (str(source), source))
            check(deltas > 0, "no delta frame was made")


def example():
    """17. Worked example."""
    folder = Path(__file__).parent / "example"
    run_all(folder, None)
    repository, found = Repository(folder), {}
    [(_, snapshot)] = repository.snapshots()
    for root in repository.roots(snapshot):
        repository.walk(root, root["name"], found)
    contents = {path: repository.content(e["map"]) for path, e in found.items() if "map" in e}
    wanted = {
        b"/srv/demo/hello": b"hello, layer\n",
        b"/srv/demo/sparse": b"0123456789" * 10 + bytes(12188),
    }
    check(contents == wanted, "the example holds something else")
    print("the example holds what docs/format.md says")


def main(words):
    if not words:
        example()
    elif len(words) == 2 and words[0] == "--make":
        make(os.path.abspath(words[1]))
    elif len(words) == 1 or (len(words) == 4 and words[1] == "--against"):
        run_all(words[0], words[2:])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Damaged as why:
        sys.exit(f"read_repo.py: {why}")
