#!/usr/bin/env python3
"""Levels of zstd against what they cost, on any data: a table, and a plot as SVG.

    python3 benches/tiers.py VARV PLOT.svg NAME=SOURCE...

Each source (a file or a directory, better not more than 128 MiB: level 20 stores 2 MB/s) is read
once, so that it is in memory, and then stored at each level in a repository of its own below
TMPDIR. Seconds are those of the processors in user mode, which other work on the machine
disturbs less than the clock; they count the whole backup, with cutting and hashing.

Where a line bends most, it has its knee (a circle in the plot, bold in the table): the point
that is farthest above the line between the curve's ends, time being logarithmic.
"""

import json
import math
import os
import subprocess
import sys
import tempfile

LEVELS = [1, 2, 3, 4, 6, 8, 9, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
COLOURS = ["#1b6ca8", "#c8553d", "#3b7d4f", "#7d4f9e", "#8a7a1f"]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 420, 60, 110, 20, 50


def measure(varv, source, level):
    """Bytes of data, what they take, and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        repository = os.path.join(folder, "repository")
        call = [varv, "-q", "-r", repository]
        init = ["init", "--encryption", "none", "--tier-level", f"hot={level}"]
        subprocess.run(call + init, check=True)
        process = subprocess.Popen(call + ["backup", source])
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit(f"the backup of {source} failed")
        text = subprocess.run(call + ["--json", "stats"], check=True, capture_output=True).stdout
        data = [row for row in json.loads(text)["levels"] if row["kind"] == "data"]
        raw, stored = (sum(row[key] for row in data) for key in ("bytes_raw", "bytes_stored"))
        return raw, stored, usage.ru_utime


def knee(points):
    """The number of the point where the curve of (seconds, ratio) bends most."""
    xs = [math.log(seconds) for seconds, _ in points]
    ys = [ratio for _, ratio in points]
    width, height = xs[-1] - xs[0] or 1, ys[-1] - ys[0] or 1
    above = [(y - ys[0]) / height - (x - xs[0]) / width for x, y in zip(xs, ys)]
    return max(range(len(points)), key=lambda n: above[n])


def best(points):
    """The numbers of those points that no other one beats in both."""
    beaten = lambda n: any(s <= points[n][0] and r > points[n][1] for s, r in points)
    return [n for n in range(len(points)) if not beaten(n)]


def table(results):
    print("| source | level | stored, MiB | ratio | MB/s a processor |")
    print("|---|--:|--:|--:|--:|")
    for name, rows in results.items():
        points = [(seconds, raw / stored) for _, raw, stored, seconds in rows]
        kept = best(points)
        bend = kept[knee([points[n] for n in kept])]
        for number, (level, raw, stored, seconds) in enumerate(rows):
            shown = f"**{level}**" if number == bend else f"{level}" if number in kept else f"({level})"
            first = name if number == 0 else ""
            speed = raw / 1e6 / seconds
            print(f"| {first} | {shown} | {stored / 2**20:.1f} | {raw / stored:.2f} | {speed:.1f} |")


def plot(results, path):
    """Speed to the right, logarithmic; how much less is stored than at level 1, upwards."""
    curves = {}
    for name, rows in results.items():
        first = rows[0][2]
        curves[name] = [(raw / 1e6 / s, 100 - 100 * stored / first, level) for level, raw, stored, s in rows]
    speeds = [speed for curve in curves.values() for speed, _, _ in curve]
    low, high = math.floor(math.log10(min(speeds))), math.ceil(math.log10(max(speeds)))
    top = 5 * math.ceil(max(gain for curve in curves.values() for _, gain, _ in curve) / 5 + 0.1)
    x = lambda speed: LEFT + (math.log10(speed) - low) / (high - low) * (WIDTH - LEFT - RIGHT)
    y = lambda gain: HEIGHT - BOTTOM - gain / top * (HEIGHT - TOP - BOTTOM)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    line = '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="#ddd"/>'
    text = '<text x="{:.1f}" y="{:.1f}" text-anchor="{}" fill="{}">{}</text>'
    for power in range(low, high + 1):
        at = x(10**power)
        out.append(line.format(at, TOP, at, HEIGHT - BOTTOM))
        out.append(text.format(at, HEIGHT - BOTTOM + 16, "middle", "#444", f"{10**power:g}"))
    for gain in range(0, top + 1, 5):
        out.append(line.format(LEFT, y(gain), WIDTH - RIGHT, y(gain)))
        out.append(text.format(LEFT - 6, y(gain) + 4, "end", "#444", f"{gain} %"))
    out.append(text.format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "middle", "#444", "MB/s a processor"))
    out.append(text.format(LEFT, TOP - 6, "start", "#444", "less stored than at level 1"))
    for colour, (name, curve) in zip(COLOURS, curves.items()):
        points = " ".join(f"{x(speed):.1f},{y(gain):.1f}" for speed, gain, _ in curve)
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        costs = [(1 / speed, gain) for speed, gain, _ in curve]
        kept = best(costs)
        bend = kept[knee([costs[n] for n in kept])]
        for number, (speed, gain, level) in enumerate(curve):
            radius = 5 if number == bend else 2
            out.append(f'<circle cx="{x(speed):.1f}" cy="{y(gain):.1f}" r="{radius}" fill="{colour}"/>')
            if level in (1, 3, 6, 9, 14, 20) or number == bend:
                out.append(text.format(x(speed) + 4, y(gain) - 6, "start", colour, level))
        speed, gain, _ = curve[-1]
        row = TOP + 16 * (1 + list(curves).index(name))
        out.append(text.format(WIDTH - RIGHT + 12, row, "start", colour, name))
    out.append("</svg>")
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(out) + "\n")


def read_once(source):
    """Into the page cache."""
    paths = [source] if os.path.isfile(source) else [
        os.path.join(folder, name) for folder, _, names in os.walk(source) for name in names
    ]
    for path in filter(os.path.isfile, paths):
        with open(path, "rb") as file:
            while file.read(1 << 20):
                pass


def main(varv, path, *sources):
    results = {}
    for name, source in (source.split("=", 1) for source in sources):
        read_once(source)
        results[name] = []
        for level in LEVELS:
            results[name].append((level, *measure(varv, source, level)))
            print(name, *results[name][-1], file=sys.stderr, flush=True)
    table(results)
    plot(results, path)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
