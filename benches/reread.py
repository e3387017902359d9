"""The floor of reading a sparse file again: BLAKE3 of its data ranges, on two threads.

    python3 benches/reread.py FILE        (needs the package blake3; prints MiB read)
"""

import os
import sys
import threading

import blake3

PIECE_LEN = 1 << 20


def data_ranges(fd):
    """(start, end) of all that is no hole."""
    offset, size = 0, os.fstat(fd).st_size
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:
            return
        offset = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, offset


def hash_ranges(path, ranges):
    hasher, buffer = blake3.blake3(), memoryview(bytearray(PIECE_LEN))
    fd = os.open(path, os.O_RDONLY)
    for start, end in ranges:
        while start < end:
            n = os.preadv(fd, [buffer[: min(PIECE_LEN, end - start)]], start)
            hasher.update(buffer[:n])
            start += n


def main(path):
    ranges = list(data_ranges(os.open(path, os.O_RDONLY)))
    total = sum(end - start for start, end in ranges)
    halves, seen = ([], []), 0
    for start, end in ranges:
        halves[seen >= total / 2].append((start, end))
        seen += end - start
    threads = [threading.Thread(target=hash_ranges, args=(path, half)) for half in halves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(total >> 20)


main(sys.argv[1])
