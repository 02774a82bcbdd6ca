"""What Pagestone costs: one table of times, ratios within this run, and counts.

    python bench/bench_store.py [--json] [--quick] [--only TEXT] [--dir /dev/shm]

Times are medians of several rounds. Where a row is "x memcpy", each round times ``np.copyto`` between two warm buffers of the same size just before, and
the median is of the ratios: the machine may be slow, the ratio should not be. System calls are counted by strace, where it is installed, as the
difference between doing a thing N times and not at all. bench/README.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import platform
import re
import resource
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

MB = 10**6
WARM = 6  # puts over an old array until pages go round instead of being fresh


class Row(NamedTuple):
    """One line of the table; `target` is the most that `value` should be, None for what is there to compare with."""

    name: str
    value: float | None
    unit: str
    target: float | None = None
    note: str = ""


class Bench:
    """Where to measure and how often."""

    def __init__(self, folder: Path, rounds: int, loops: int):
        self.folder, self.rounds, self.loops = folder, rounds, loops

    def per_call(self, call: Callable[[], Any]) -> float:
        """Seconds per call of something short: the median of rounds of many calls."""
        times = []
        for _ in range(self.rounds):
            steps = range(self.loops)
            start = time.perf_counter()
            for _ in steps:
                call()
            times.append((time.perf_counter() - start) / self.loops)
        return statistics.median(times)

    def each(self, call: Callable[[], Any], n: int | None = None, warm: int = 1) -> list[float]:
        """Seconds of every single call, after `warm` that are not counted."""
        for _ in range(warm):
            call()
        times = []
        for _ in range(n or self.rounds):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return times

    @contextmanager
    def store(self, name: str, **options: Any) -> Iterator[ps.Store]:
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        with ps.open(path, "x", **options) as s:
            yield s
        shutil.rmtree(path, ignore_errors=True)

    def in_process(self, code: str, n: int | None = None) -> float:
        """The median of the number that `code` prints, each time in a new process (with compiled modules at hand)."""
        values = []
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        env["PYTHONPYCACHEPREFIX"] = str(self.folder / "pycache")
        for _ in range((n or self.rounds) + 1):
            r = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=120, env=env)
            values.append(float(r.stdout))
        return statistics.median(values[1:])

    def system_calls(self, setup: str, step: str, n: int) -> float | None:
        """System calls per `step`, or None without strace."""
        if shutil.which("strace") is None:
            return None
        totals = []
        for times in (0, n):
            code = f"{setup}\n{step}\nfor _ in range({times}):\n    {step}"
            with tempfile.NamedTemporaryFile("r") as out:
                r = subprocess.run(
                    ["strace", "-f", "-c", "-o", out.name, sys.executable, "-c", code], capture_output=True
                )
                text = out.read()
            total = re.search(r"^\s*100\.00\s+\S+\s+(?:\d+\s+)?(\d+)", text, re.M)
            if r.returncode != 0 or not total:
                return None
            totals.append(int(total[1]))
        return max(0, totals[1] - totals[0]) / n


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def calls_note(n: float | None) -> str:
    return "system calls not counted (no strace)" if n is None else f"{n:.2f} system calls"


# --- the rows --------------------------------------------------------------------------------------------------------


def get_small(b: Bench) -> Iterator[Row]:
    with b.store("small.ps") as s:
        d = {}
        for i in range(1000):
            d[f"group/key{i}"] = i
        s.update(d)
        k = "group/key500"
        plain = b.per_call(lambda: d[k])
        got = b.per_call(lambda: s[k])
    setup = "import pagestone as ps\ns = ps.open()\ns['k'] = 1"
    n = b.system_calls(setup, "s['k']", 10_000)
    yield Row(
        "s[k] of a small object, 1,000 keys", got * 1e6, "µs", 1.5, f"{got / plain:.0f} x dict[k]; {calls_note(n)}"
    )


def get_array(b: Bench) -> Iterator[Row]:
    setup = "import numpy as np, pagestone as ps\ns = ps.open()\ns['k'] = np.ones({})"
    for size in (10**3, 10**6, 10**8):
        with b.store("array.ps") as s:
            s["k"] = np.ones(size // 8)
            got = b.per_call(lambda: s["k"])
        n = b.system_calls(setup.format(size // 8), "s['k']", 10_000) if size < 10**8 else None
        yield Row(f"s[k] of an array of {size:,} bytes", got * 1e6, "µs", 2, calls_note(n) if size < 10**8 else "")


def put_small(b: Bench) -> Iterator[Row]:
    with ps.open() as s:
        s["k"] = 0
        got = b.per_call(lambda: s.__setitem__("k", 1))
    n = b.system_calls("import pagestone as ps\ns = ps.open()\nfor i in range(1000): s['k'] = i", "s['k'] = 1", 2000)
    yield Row("s[k] = small, committed, in memory", got * 1e6, "µs", 10, calls_note(n))


def _ratios(
    b: Bench, put: Callable[[np.ndarray[Any, Any]], None], before: Callable[[], None] = lambda: None
) -> tuple[float, str]:
    """(median of put / memcpy, what else to say) of 100 MB."""
    source, warm = np.random.default_rng(0).random(100 * MB // 8), np.ones(100 * MB // 8)
    ratios, times, n_faults = [], [], []
    for i in range(b.rounds + WARM):
        before()
        np.copyto(warm, source)
        start = time.perf_counter()
        np.copyto(warm, source)
        copy = time.perf_counter() - start
        f = faults()
        start = time.perf_counter()
        put(source)
        took = time.perf_counter() - start
        if i >= WARM:
            ratios.append(took / copy)
            times.append(took)
            n_faults.append(faults() - f)
    took = statistics.median(times) * 1e3
    return statistics.median(
        ratios
    ), f"best {min(ratios):.2f}; {took:.0f} ms, {statistics.median(n_faults):.0f} page faults"


def put_recycled(b: Bench) -> Iterator[Row]:
    with b.store("recycled.ps", history=0) as s:
        ratio, note = _ratios(b, lambda a: s.__setitem__("k", a))
    yield Row(
        "put of 100 MB over an old one, recycled pages",
        ratio,
        "x memcpy",
        1.3,
        note,
    )


def put_fresh(b: Bench) -> Iterator[Row]:
    stores: list[ps.Store] = []
    path = b.folder / "fresh.ps"

    def before() -> None:
        while stores:
            stores.pop().close()
        shutil.rmtree(path, ignore_errors=True)
        stores.append(ps.open(path, "x"))

    ratio, note = _ratios(b, lambda a: stores[0].__setitem__("k", a), before)
    stores[0].close()
    shutil.rmtree(path, ignore_errors=True)
    yield Row("put of 100 MB into fresh pages", ratio, "x memcpy", 3, note)

    def write(a: np.ndarray[Any, Any]) -> None:
        with open(path, "wb") as out:
            out.write(memoryview(a).cast("B"))

    def remove() -> None:
        path.unlink(missing_ok=True)

    ratio, note = _ratios(b, write, remove)
    remove()
    yield Row("  for comparison: write() of 100 MB to a new file there", ratio, "x memcpy", None, note)


def change_part(b: Bench) -> Iterator[Row]:
    n, part = 10**9 // 8, 10 * MB // 8
    with b.store("part.ps") as s:
        with s.begin() as t:
            t.empty("k", n)[...] = 1.0
        where = iter(range(0, n - part, 3 * part + 1000))

        def step() -> None:
            lo = next(where)
            with s.begin() as t:
                t["k"][lo : lo + part] += 1

        f = faults()
        times = b.each(step, min(b.rounds, 25))
        f = (faults() - f) // (len(times) + 1)
        assert s["k"].sum() > n
    a = np.ones(part)
    alone = statistics.median(b.each(lambda: np.add(a, 1, out=a)))
    got = statistics.median(times)
    yield Row(
        "10 MB of a 1 GB array changed and committed",
        got * 1e3,
        "ms",
        20,
        f"best {min(times) * 1e3:.1f}; {f} page faults; NumPy alone {alone * 1e3:.1f} ms",
    )


def snapshot(b: Bench) -> Iterator[Row]:
    with ps.open() as s:
        s["k"] = 1
        got = b.per_call(s.snapshot)
    n = b.system_calls("import pagestone as ps\ns = ps.open()\ns['k'] = 1", "s.snapshot()", 10_000)
    yield Row("s.snapshot()", got * 1e6, "µs", 1, calls_note(n))


def open_store(b: Bench) -> Iterator[Row]:
    with b.store("open.ps") as s:
        with s.begin() as t:
            for i in range(1000):
                t[f"key{i}"] = i
        code = "import time, pagestone as ps; a = time.perf_counter(); s = ps.open({!r}, {!r}); s['key7']; print(time.perf_counter() - a)"
        for mode in ("r+", "r"):
            got = b.in_process(code.format(str(b.folder / "open.ps"), mode))
            yield Row(f"open an existing store, mode {mode!r}, and read a key", got * 1e3, "ms", 2, "in a new process")


def import_time(b: Bench) -> Iterator[Row]:
    code = "import time, {}; a = time.perf_counter(); import {}; print(time.perf_counter() - a)"
    got = b.in_process(code.format("numpy", "pagestone"), 2 * b.rounds)
    base = b.in_process(code.format("sys", "numpy"))
    yield Row("import pagestone, over NumPy", got * 1e3, "ms", 20, f"NumPy itself {base * 1e3:.0f} ms")


# --- what else one could use -----------------------------------------------------------------------------------------


def _answer(conn: Any) -> None:
    """A process that takes what it is sent and answers with one element of it."""
    while (a := conn.recv()) is not None:
        conn.send(float(a[-1]))


def passing(b: Bench) -> Iterator[Row]:
    context = mp.get_context("forkserver")
    here, there = context.Pipe()
    child = context.Process(target=_answer, args=(there,), daemon=True)
    child.start()

    def passed(a: Any) -> float:
        def step() -> None:
            here.send(a)
            here.recv()

        return statistics.median(b.each(step))

    with b.store("passing.ps") as s:
        s["k"] = np.ones(100 * MB // 8)
        a = s["k"]
        handle = passed(a)
        pickled = passed(np.asarray(a))
        here.send(None)
        child.join()
    yield Row(
        "100 MB to another process and an answer, as an Array", handle * 1e6, "µs", None, "a handle through a Pipe"
    )
    yield Row("  for comparison: pickled through the same Pipe", pickled * 1e6, "µs", None, f"{pickled / handle:.0f} x")


def manager(b: Bench) -> Iterator[Row]:
    a = np.ones(MB // 8)
    with ps.open() as s:
        s["k"] = a
        put = statistics.median(b.each(lambda: s.__setitem__("k", a)))
        got = statistics.median(b.each(lambda: s["k"]))
    with mp.get_context("forkserver").Manager() as m:
        d = m.dict()
        d["k"] = a
        their_put = statistics.median(b.each(lambda: d.__setitem__("k", a)))
        their_get = statistics.median(b.each(lambda: d["k"]))
    yield Row("put of 1 MB", put * 1e6, "µs", None, "")
    yield Row(
        "  for comparison: into a multiprocessing.Manager().dict()",
        their_put * 1e6,
        "µs",
        None,
        f"{their_put / put:.0f} x",
    )
    yield Row("get of 1 MB", got * 1e6, "µs", None, "")
    yield Row(
        "  for comparison: from a multiprocessing.Manager().dict()",
        their_get * 1e6,
        "µs",
        None,
        f"{their_get / got:.0f} x",
    )


def npy_files(b: Bench) -> Iterator[Row]:
    path = b.folder / "x.npy"
    a = np.ones(100 * MB // 8)
    with b.store("npy.ps", history=0) as s:
        put = statistics.median(b.each(lambda: s.__setitem__("k", a), warm=WARM))
        got = statistics.median(b.each(lambda: s["k"]))
    save = statistics.median(b.each(lambda: np.save(path, a)))
    load = statistics.median(b.each(lambda: np.load(path, mmap_mode="r")))
    path.unlink()
    yield Row("put of 100 MB", put * 1e3, "ms", None, "replaced atomically, old version readable")
    yield Row("  for comparison: np.save over a file there", save * 1e3, "ms", None, f"{save / put:.1f} x")
    yield Row("get of 100 MB", got * 1e6, "µs", None, "")
    yield Row("  for comparison: np.load(mmap_mode='r')", load * 1e6, "µs", None, f"{load / got:.0f} x")


BENCHES = [
    get_small,
    get_array,
    put_small,
    put_recycled,
    put_fresh,
    change_part,
    snapshot,
    open_store,
    import_time,
    passing,
    manager,
    npy_files,
]


# --- the table -------------------------------------------------------------------------------------------------------


def about() -> dict[str, Any]:
    cpus = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", cpus.read_text(), re.M) if cpus.exists() else None
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0] if cpus.exists() else 0.0,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pagestone": ps.__version__,
    }


def show(row: Row) -> None:
    value = "-" if row.value is None else f"{row.value:,.2f}" if row.value < 100 else f"{row.value:,.0f}"
    target = "" if row.target is None else f"<= {row.target:g}"
    mark = "" if row.target is None or row.value is None else "ok" if row.value <= row.target else "MISSED"
    print(f"{row.name:<58} {value:>10} {row.unit:<8} {target:>7} {mark:<6}  {row.note}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--quick", action="store_true", help="few rounds: rough figures in a quarter of a minute")
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="benchmarks whose name contains this: " + " ".join(f.__name__ for f in BENCHES),
    )
    parser.add_argument("--dir", default="/dev/shm", help="where to make stores (default: /dev/shm)")
    args = parser.parse_args()
    free = shutil.disk_usage(args.dir).free
    big = {get_array, put_recycled, put_fresh, change_part, passing, npy_files}
    if free < 2 * 10**9 and any(args.only in f.__name__ for f in big):
        print(
            f"{args.dir} has {free / 1e9:.1f} GB free, the benchmarks need 2: name another place with --dir",
            file=sys.stderr,
        )
        return 1
    machine = about()
    if not args.json:
        print(", ".join(f"{k} {v}" for k, v in machine.items()))
        if machine["load"] > 0.5:
            print(
                f"the machine is busy (load {machine['load']:.1f}): expect worse figures than it can give",
                file=sys.stderr,
            )
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="pagestone-bench-", dir=args.dir) as folder:
        b = Bench(Path(folder), 5 if args.quick else 15, 5_000 if args.quick else 20_000)
        for bench in BENCHES:
            if args.only in bench.__name__:
                for row in bench(b):
                    rows.append(row)
                    if not args.json:
                        show(row)
    if args.json:
        print(json.dumps({"machine": machine, "rows": [r._asdict() for r in rows]}, indent=2, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
