"""What the view of a store costs: ratios and rates of one run.

    python bench/bench_view.py [--json] [--quick] [--dir /dev/shm]

Mounts a store of its own in DIR. Beside each rate is that of the same on the plain file system there, since machines differ; bench/README.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np
import pagestone as ps

SERVER = Path(ps.__file__).parent / "bin" / "pagestone-fuse"


class Row(NamedTuple):
    """One line of the table; `target` is the least that `value` should be."""

    name: str
    value: float
    unit: str
    target: float | None = None
    note: str = ""


class Mounted:
    """A store, its mount point, and a plain directory beside it."""

    def __init__(self, folder: Path, rounds: int, n_bytes: int):
        self.folder, self.rounds, self.n_bytes = folder, rounds, n_bytes
        self.store = str(folder / "bench.ps")
        self.plain = folder / "plain"
        self.head = folder / "mnt" / "head"

    def rate(self, call: Callable[[], Any], undo: Callable[[], Any]) -> float:
        """GB/s of something that moves n_bytes: the median of rounds, after two that warm the store's pages."""
        times = []
        for i in range(self.rounds + 2):
            start = time.perf_counter()
            call()
            if i > 1:
                times.append(time.perf_counter() - start)
            undo()
        return self.n_bytes / statistics.median(times) / 1e9


@contextmanager
def mounted(folder: Path, rounds: int, n_bytes: int) -> Iterator[Mounted]:
    """Mounted for the time of a with block."""
    m = Mounted(folder, rounds, n_bytes)
    ps.open(m.store, "w", history=0).close()  # pages go round instead of being fresh each time
    m.plain.mkdir()
    (folder / "mnt").mkdir()
    subprocess.run([SERVER, "--view", m.store, folder / "mnt"], check=True)
    try:
        yield m
    finally:
        if subprocess.run(["umount", folder / "mnt"], check=False).returncode:
            subprocess.run(["umount", "-l", folder / "mnt"], check=False)


def bench_cp(m: Mounted) -> Iterator[Row]:
    """Copying an array's file into the store, and the same to the plain file system."""
    source = m.folder / "source.npy"
    np.save(source, np.random.default_rng(0).random(m.n_bytes // 8))
    for suffix in (".npy", ".bin"):
        plain, into = m.plain / f"x{suffix}", m.head / f"x{suffix}"
        base = m.rate(lambda to=plain: subprocess.run(["cp", source, to], check=True), plain.unlink)
        rate = m.rate(lambda to=into: subprocess.run(["cp", source, to], check=True), into.unlink)
        yield Row(f"cp to {into.name}", rate, "GB/s", 0.6, f"plain {base:.2f} GB/s")
    source.unlink()


def bench_save(m: Mounted) -> Iterator[Row]:
    """np.save of zeros: many small pages for the kernel, no data to read."""
    x = np.zeros(m.n_bytes // 8)
    plain, into = m.plain / "z.npy", m.head / "z.npy"
    base = m.rate(lambda: np.save(plain, x), plain.unlink)
    rate = m.rate(lambda: np.save(into, x), into.unlink)
    yield Row("np.save(np.zeros)", rate, "GB/s", 0.5, f"plain {base:.2f} GB/s")


def bench_small(m: Mounted) -> Iterator[Row]:
    """Small files: a transaction each."""
    n = 500
    start = time.perf_counter()
    for i in range(n):
        (m.head / f"f{i}").write_bytes(b"x" * 1000)
    rate = n / (time.perf_counter() - start)
    start = time.perf_counter()
    for i in range(n):
        (m.head / f"f{i}").unlink()
    yield Row("write files of 1 KB", rate, "/s", None)
    yield Row("remove them", n / (time.perf_counter() - start), "/s", None)


BENCHES: list[Callable[[Mounted], Iterator[Row]]] = [bench_cp, bench_save, bench_small]


def main() -> int:
    """Print the table; exit status 1 if something misses its target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--quick", action="store_true", help="less data, fewer rounds")
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where the store lies")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pagestone-bench-", dir=args.dir))
    rows: list[Row] = []
    try:
        with mounted(folder, 1 if args.quick else 3, 1 << (27 if args.quick else 30)) as m:
            for bench in BENCHES:
                for row in bench(m):
                    rows.append(row)
                    if not args.json:
                        target = f"target {row.target:g}" if row.target else ""
                        print(f"{row.name:32} {row.value:10.2f} {row.unit:6} {target:12} {row.note}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if args.json:
        json.dump([row._asdict() for row in rows], sys.stdout, indent=1)
    return int(any(row.target is not None and row.value < row.target for row in rows))


if __name__ == "__main__":
    sys.exit(main() if os.access("/dev/fuse", os.R_OK | os.W_OK) else "no right to /dev/fuse")
