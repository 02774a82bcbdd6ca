"""The store from outside: what several processes see, what survives them, what bad luck gets."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing as mp
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import numpy.testing
import pagestone as ps
import pytest
from pagestone import _core

PAGE = 4096
RECORD = np.dtype([("id", "<i4"), ("v", "<f8")])  # 12 bytes: record 341 lies on two pages


@contextlib.contextmanager
def child(fn, *args, expect=0):
    """Run ``fn(*args)`` in a forked process while the block runs; its exit status must be `expect` at the end."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(60)
            fn(*args)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    try:
        yield pid
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    status = os.waitpid(pid, 0)[1]
    assert os.waitstatus_to_exitcode(status) == expect


def in_child(fn, *args):
    with child(fn, *args):
        pass


class Gate:
    """A pipe that one process opens and others wait at."""

    def __init__(self):
        self.r, self.w = os.pipe()

    def open(self, n=1):
        os.write(self.w, b"x" * n)

    def wait(self):
        assert os.read(self.r, 1) == b"x"


def sound(s):
    report = s.check()
    assert report.ok, report.errors[:5]
    assert report.leaked == 0
    assert s.stat().leaked == 0


def rows(n, start=0):
    a = np.zeros(n, RECORD)
    a["id"] = np.arange(start, start + n)
    a["v"] = a["id"] * 0.5
    return a


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def stopped(pid):
    return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT | os.WNOHANG) is not None


# --- nothing is lost --------------------------------------------------------------------------------------------------------


def increment(path, n):
    with ps.open(path, "r+") as s:
        for _ in range(n):
            s.update_with("n", lambda v: v + 1)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_no_increment_is_lost(shm_path, method):
    with ps.open(shm_path, "x", history=100) as s:
        s["n"] = 0
        ctx = mp.get_context(method)
        workers = [ctx.Process(target=increment, args=(shm_path, 2000)) for _ in range(4)]
        for p in workers:
            p.start()
        for p in workers:
            p.join(60)
            assert p.exitcode == 0
        assert s["n"] == 8000
        assert s.version == 8001
        sound(s)


def write_pairs(path, seed, n):
    rng = random.Random(seed)
    s = ps.open(path, "r+")
    for _ in range(n):
        value = rng.randrange(10**9)

        def step(t, value=value):
            t["a"][...] = value
            t["b"] = value
            t["c"] = np.full(2000, value)

        s.run(step)


def read_pairs(path, seed, go):
    rng = random.Random(seed)
    s = ps.open(path, rng.choice(["r", "r+"]))
    snapshots = []
    while not go.is_set():
        with s.snapshot() as now:
            a, b, c = now["a"], now["b"], now["c"]
            assert (a == b).all() and (c == b).all()
        if rng.random() < 0.2:
            s = ps.open(path, rng.choice(["r", "r+"]))
        if rng.random() < 0.3 and len(snapshots) < 20:
            snapshots.append(s.snapshot())
        elif snapshots and rng.random() < 0.3:
            old = snapshots.pop(rng.randrange(len(snapshots)))
            assert (old["a"] == old["b"]).all() and (old["c"] == old["b"]).all()


def test_two_things_written_together_are_never_seen_apart(shm_path):
    with ps.open(shm_path, "x", history=3) as s:
        s.update(a=np.zeros(5000, int), b=0, c=np.zeros(2000, int))
        ctx = mp.get_context("fork")
        done = ctx.Event()
        readers = [ctx.Process(target=read_pairs, args=(shm_path, i, done)) for i in range(4)]
        writers = [ctx.Process(target=write_pairs, args=(shm_path, i, 150)) for i in range(4)]
        for p in readers + writers:
            p.start()
        for p in writers:
            p.join(60)
            assert p.exitcode == 0
        done.set()
        for p in readers:
            p.join(30)
            assert p.exitcode == 0
        assert s.version == 601
        sound(s)


@pytest.mark.parametrize("isolation", ["serializable", "strict"])
def test_write_skew_is_refused(store, isolation):
    store.update(x=1, y=1)
    t, u = store.begin(isolation), store.begin(isolation)
    t["x"] = -u["y"]
    u["y"] = -t["x"] if isolation == "strict" else -u["x"]
    assert t["y"] == 1
    t.commit()
    with pytest.raises(ps.ConflictError):
        u.commit()


def test_a_stopped_reader_delays_nobody(path):
    s = ps.open(path, "x", history=0)
    s["x"] = np.arange(100_000.0)
    ready = Gate()

    def reader():
        r = ps.open(path, "r")
        snapshot, view = r.snapshot(), r["x"]
        ready.open()
        os.kill(os.getpid(), signal.SIGSTOP)
        assert np.array_equal(view, np.arange(100_000.0))
        assert np.array_equal(snapshot["x"], view)

    with child(reader) as pid:
        ready.wait()
        wait_until(lambda: stopped(pid))
        slowest = 0.0
        for i in range(100):
            begin = time.monotonic()
            s["x"] = np.full(100_000, float(i))
            with s.begin() as t:
                t["x"][i] = -1
            if i % 20 == 0:
                s.gc()
                s.compact()
            slowest = max(slowest, time.monotonic() - begin)
        assert slowest < 5
        assert any(r.versions for r in s.readers())
        sound(s)
        os.kill(pid, signal.SIGCONT)
    s.gc()
    sound(s)


def torture(path, seed):
    rng = random.Random(seed)
    s = ps.open(path, "r+")
    held = []
    while True:
        key = f"k{rng.randrange(6)}"
        what = rng.randrange(8)
        if what == 0:
            s[key] = np.full(rng.choice([1, 1000, 400_000]), seed)
        elif what == 1:
            s.pop(key, None)
        elif what == 2:
            t = s.begin()
            t[key] = np.full(5000, seed)
            t.empty("mine", 300_000) if "mine" not in t else t["mine"]
            with contextlib.suppress(ps.ConflictError):
                t.commit()
        elif what == 3:
            held = [s.snapshot(), s.get(key), s.begin(), *held[:5]]
        elif what == 4:
            s.gc()
        elif what == 5:
            s.compact()
        elif what == 6:
            with contextlib.suppress(ps.ConflictError), s.begin() as t:
                if isinstance(t.get(key), np.ndarray):
                    t[key][:1] = 3
                    t.savepoint().rollback()
                    t.append(key, np.full(700, seed))
        else:
            with contextlib.suppress(KeyError):
                s.copy(key, f"k{rng.randrange(6)}")


def test_processes_killed_at_any_moment_leave_no_lock_and_no_byte(path):
    s = ps.open(path, "x", history=5)
    s["stays"] = np.arange(10_000)
    rng = random.Random(7)
    for i in range(25):
        pids = []
        for j in range(2):
            pid = os.fork()
            if pid == 0:
                try:
                    torture(path, 100 * i + j)
                except BaseException:
                    traceback.print_exc()
                os._exit(1)
            pids.append(pid)
        time.sleep(rng.uniform(0.005, 0.06))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        begin = time.monotonic()
        s["alive"] = i
        assert time.monotonic() - begin < 5
        assert s["alive"] == i and np.array_equal(s["stays"], np.arange(10_000))
        if i % 5 == 0:
            sound(s)
    s.gc()
    sound(s)
    assert {r.pid for r in s.readers()} <= {os.getpid()}
    s.clear()
    for _ in range(7):
        s["alive"] = time.monotonic()
    s.gc()
    assert s.stat().history + s.stat().live < 200_000


def test_a_transaction_killed_in_the_middle_is_nothing(shm_path):
    s = ps.open(shm_path, "x")
    s["x"] = np.zeros(300_000)

    def worker():
        t = ps.open(shm_path, "r+").begin()
        t["x"][:] = 1
        t["y"] = b"x" * 500_000
        t.empty("z", 1_000_000)[:] = 2
        os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(5):
        with child(worker, expect=-signal.SIGKILL):
            pass
    assert list(s) == ["x"] and not s["x"].any() and s.version == 1
    free = s.stat().resident
    s["q"] = 1
    s.gc()
    assert s.stat().resident <= free + 10**6
    sound(s)


# --- descriptors, mappings, memory ------------------------------------------------------------------------------------------


def n_fds():
    return len(os.listdir("/proc/self/fd"))


def n_maps():
    return Path("/proc/self/maps").read_text().count("\n")


@pytest.mark.usefixtures("proc")
def test_descriptors_and_mappings_do_not_grow_with_the_number_of_objects(shm_path):
    s = ps.open(shm_path, "x")
    with s.begin() as t:
        for i in range(10_000):
            t[f"k{i}"] = np.full(1200, i)
    view = s["k0"]
    fds, maps = n_fds(), n_maps()
    held = [s[f"k{i}"] for i in range(10_000)]
    assert all(a[0] == i == a[-1] for i, a in enumerate(held))
    assert n_fds() == fds
    assert n_maps() < maps + 50  # the heap's own growth
    del view, held


@pytest.mark.usefixtures("proc")
def test_scattered_versions_of_an_array_stay_below_the_limit_of_mappings(shm_path):
    s = ps.open(shm_path, "x", history="all")
    n = 600
    s["x"] = np.zeros(n * PAGE, "u1")
    held, fds = [], n_fds()
    rng = np.random.default_rng(1)
    for v in range(60):
        with s.begin() as t:
            t["x"].reshape(n, PAGE)[rng.choice(n, n // 4, replace=False), 7] = v + 1
        held.append((s["x"], np.array(s["x"])))
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    assert n_maps() < limit // 2
    assert n_fds() <= fds + 1
    for view, expected in held:
        assert np.array_equal(view, expected)
    sound(s)


def test_more_small_arrays_are_edited_at_once_than_there_are_mappings(store):
    n = 20_000  # two mappings each would be more than half of the usual limit
    with store.begin() as t:
        for i in range(n):
            t[f"k{i}"] = np.full(600, i)
    with store.begin() as t:
        held = []
        for i in range(n):
            a = t[f"k{i}"]
            a[i % 600] = -1
            if i % 999 == 0:
                held.append((i, a))
        t.append(f"k{n - 1}", np.arange(100))
    for i in range(0, n - 1, 7):
        a = store[f"k{i}"]
        assert a[i % 600] == -1 and a.sum() == 599 * i - 1
    assert store[f"k{n - 1}"].shape == (700,) and store[f"k{n - 1}"][-1] == 99
    for i, a in held:
        a[0] = 7  # its own memory: the store does not see it
        assert store[f"k{i}"][0] in (i, -1)
    assert store.check().ok


@pytest.mark.usefixtures("proc")
def test_a_hundred_stores_at_once(tmp_path):
    fds = n_fds()
    stores = [ps.open() if i % 2 else ps.open(tmp_path / f"{i}.ps", "x") for i in range(100)]
    for i, s in enumerate(stores):
        s["x"] = np.full(5000, i)
    again = [ps.open(tmp_path / f"{i}.ps", "r") for i in range(0, 100, 2)]

    def look():
        for i, s in enumerate(stores):
            assert (s["x"] == i).all()
            s["y"] = i

    in_child(look)
    assert [s["y"] for s in stores] == list(range(100))
    assert [s["y"] for s in again] == list(range(0, 100, 2))
    for s in (*stores, *again):
        s.close()
    s = stores = again = None
    gc.collect()
    assert n_fds() <= fds + 2


def test_system_calls_read_and_write_untouched_views(store, tmp_path):
    n = 300_000
    data = np.random.default_rng(0).integers(0, 256, n, "u1")
    (tmp_path / "in").write_bytes(data.tobytes())
    store["x"] = np.zeros(n, "u1")
    store.create("y", n, "u1")
    store["z"] = data
    with store.begin() as t:
        with open(tmp_path / "in", "rb", buffering=0) as f:
            assert f.readinto(t["x"]) == n
        a, b = socket.socketpair()
        sender = threading.Thread(target=lambda: (a.sendall(data), a.close()))
        sender.start()
        view, got = memoryview(t["y"]), 0
        while got < n:
            got += b.recv_into(view[got:])
        sender.join()
        b.close()
        del view
        t["z"].tofile(tmp_path / "out")
        e = t.empty("e", n, "u1")
        with open(tmp_path / "in", "rb", buffering=0) as f:
            assert f.readinto(e) == n
    assert (tmp_path / "out").read_bytes() == data.tobytes()
    store["z"].tofile(tmp_path / "out2")
    assert (tmp_path / "out2").read_bytes() == data.tobytes()
    for key in "xye":
        assert np.array_equal(store[key], data)
    a, b = socket.socketpair()
    with pytest.raises((BufferError, TypeError, ValueError)):
        b.recv_into(store["z"])
    a.close()
    b.close()
    sound(store)


def test_a_forked_child_never_changes_what_the_parent_sees(path):
    s = ps.open(path, "x")
    s["x"] = np.arange(200_000)
    s.create("holes", 200_000, int)
    want = np.arange(200_000)
    t = s.begin()
    view, private, fresh, holes = t["x"], s.private("x"), t.empty("new", 200_000, int), t["holes"]
    view[:10] = fresh[:10] = private[:10] = holes[:10] = -5

    def scribble():
        for a in (view, private, fresh, holes):
            assert (a[:10] == -5).all()
            a[:] = 99
        for how in (lambda: t["x"], lambda: t.commit(), lambda: s["x"].__setitem__(0, 1)):
            with pytest.raises(ValueError):
                how()
        assert np.array_equal(s["x"], want)
        s["child"] = 1

    in_child(scribble)
    want[:10] = -5
    for a in (view, private):
        assert np.array_equal(a, want)
    assert (fresh[:10] == -5).all() and not fresh[10:].any()
    assert (holes[:10] == -5).all() and not holes[10:].any()
    t.commit()
    assert s["child"] == 1
    assert np.array_equal(s["x"], want)
    for key in ("new", "holes"):
        assert (s[key][:10] == -5).all() and not s[key][10:].any()
    sound(s)


def test_a_view_of_empty_kept_by_a_child_cannot_change_what_was_committed(path):
    s = ps.open(path, "x")
    t = s.begin()
    fresh = t.empty("x", 600_000)
    fresh[:] = 1
    go, done = Gate(), Gate()

    def keep():
        go.wait()
        fresh[:] = 666
        done.open()

    with child(keep):
        fresh[7] = 7
        t.commit()
        go.open()
        done.wait()
    fresh[:] = 555  # ours is harmless too
    want = np.ones(600_000)
    want[7] = 7
    assert np.array_equal(s["x"], want)
    sound(s)


SPARSE = """
import os, subprocess, sys, numpy as np, pagestone as ps
d = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", d], check=True)
with ps.open(d + "/s.ps", "x", history=0) as s:
    s.create("x", 1 << 27, "u1")
    with s.begin() as t:
        t["x"][5_000_000] = 9
used = lambda: os.statvfs(d).f_blocks - os.statvfs(d).f_bfree
r = ps.open(d + "/s.ps", "r")
before = used()
assert int(r["x"].sum()) == 9
assert int(r.private("x").sum()) == 9
w = ps.open(d + "/s.ps", "r+")
with w.begin() as t:
    assert int(t["x"].sum()) == 9
assert w.version == 2
assert used() <= before + 4, (before, used())
full = 0
for i in range(40):
    try:
        w[f"k{i}"] = np.full(1_000_000, i, "u1")
    except ps.StoreFullError:
        full += 1
        assert f"k{i}" not in w
assert 20 < full < 40
for k in list(w):
    if k != "x":
        assert (w[k] == int(k[1:])).all()
kept = [w[k] for k in w if k != "x"]
try:
    w.begin().empty("e", 10_000_000)
    raise SystemExit("room for more than there is")
except ps.StoreFullError:
    pass
assert w.check().ok
for k in list(w):
    if k != "x":
        del w[k]
assert all((a == a[0]).all() for a in kept)
del kept
for i in range(5):
    w["again"] = np.full(1_000_000, i, "u1")
assert int(w["x"].sum()) == 9 and w.check().ok and w.check().leaked == 0
print("fine")
"""


def test_a_full_tmpfs_is_an_error_and_a_scan_of_a_sparse_array_allocates_nothing(tmp_path):
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    r = subprocess.run(["unshare", "-m", sys.executable, "-c", SPARSE, tmp_path], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    assert r.stdout == "fine\n"


def test_a_terabyte_opens_at_once(path):
    s = ps.open(path, "x")
    known = _core.capabilities()
    asks = known["pagemap_scan"][0] or known["pagemap"][0]  # else all pages are compared: minutes for 1 TiB of holes
    n = 2**37 if asks else 2**25
    a = s.create("x", n)
    assert a.nbytes == 8 * n and a[n // 2] == 0 and a[-1] == 0
    with s.begin() as t:
        t["x"][n // 2] = 5
        t["x"][-1] = 6
    assert (s["x"][n // 2], s["x"][-1], s["x"][123456]) == (5, 6, 0)
    assert a[-1] == 0
    assert s.stat().live < 10**6
    assert s.diff(1, 2).changed.keys() == {"x"}
    with ps.open(path, "r") as r:
        assert r["x"][-1] == 6
    s.copy("x", "y")
    assert s["y"][-1] == 6 and s.stat().live < 10**6
    sound(s)


def test_what_no_machine_can_hold_is_refused_at_once(store):
    store["x"] = 1
    store["x"] = 2
    for put in (
        lambda: store.begin().empty("e", 2**40),
        lambda: store.create("e", 2**40, fill=1),
        lambda: store.__setitem__("e", np.broadcast_to(np.ones(1), (2**40,))),
    ):
        with pytest.raises(ps.StoreFullError):
            put()
    assert list(store) == ["x"] and store.versions == [0, 1, 2]  # not even history went for it
    sound(store)


# --- views ------------------------------------------------------------------------------------------------------------------


def test_views_outlive_everything(path):
    s = ps.open(path, "x", size="24MB", history=0)
    want = np.arange(250_000.0)
    s["x"] = want
    s["d"] = {"t": (1, 2), "a": np.arange(50_000)}
    t = s.begin()
    views = [s["x"], s.snapshot()["x"], s.private("x"), t["x"], t.base["x"], s["x"][::2]]
    inner = s["d"]["a"]
    t.abort()
    del s["x"], s["d"]
    for i in range(60):
        try:
            s[f"p{i % 20}"] = np.full(200_000, i)
        except ps.StoreFullError:
            del s[next(iter(s))]
    s.gc()
    s.compact()
    s.clear()
    s.close()
    del s
    gc.collect()
    other = ps.open(path, "r+")
    for i in range(20):
        with contextlib.suppress(ps.StoreFullError):
            other["q"] = np.full(200_000, i)
    other.gc()
    for v in views[:5]:
        assert np.array_equal(v, want)
    assert np.array_equal(views[5], want[::2]) and np.array_equal(inner, np.arange(50_000))
    sound(other)
    del views, v, inner, t  # t.base pins, too
    gc.collect()
    other.clear()
    other.gc()
    assert other.stat().history + other.stat().pinned + other.stat().live < 100_000


def test_a_store_that_is_replaced_stays_for_its_readers(path):
    s = ps.open(path, "x")
    s["x"] = np.arange(100_000)
    view, snapshot = s["x"], s.snapshot()
    new = ps.open(path, "w")
    assert list(new) == [] and new.version == 0
    new["x"] = np.zeros(100_000)
    assert np.array_equal(view, np.arange(100_000)) and np.array_equal(snapshot["x"], view)
    assert np.array_equal(s["x"], view)
    with pytest.raises(ps.StaleStoreError):
        s["y"] = 1
    assert ps.open(path)["x"].dtype == float
    in_child(lambda: np.testing.assert_array_equal(s["x"], view))
    sound(new)


def test_a_store_that_is_moved_or_deleted_while_open(path):
    s = ps.open(path, "x")
    s["x"] = np.arange(100_000)
    view = s["x"]
    os.rename(path, path + "2")
    s["y"] = 1
    assert ps.open(path + "2", "r")["y"] == 1
    with pytest.raises(FileNotFoundError):
        ps.open(path, "r")
    in_child(lambda: s.__setitem__("z", 2))
    assert s["z"] == 2
    shutil.rmtree(path + "2")
    assert np.array_equal(view, np.arange(100_000)) and s["y"] == 1
    with pytest.raises(ps.StaleStoreError, match="deleted"):
        s["y"] = 5
    in_child(lambda: np.testing.assert_array_equal(s["x"], view))
    s.close()
    with ps.open(path, "x") as new:
        assert list(new) == []
    assert np.array_equal(view, np.arange(100_000))


def test_closerange_and_use_afterwards(path):
    script = """
import os, sys, numpy as np, pagestone as ps
s = ps.open(sys.argv[1], "x", history=2)
m = ps.open()
s["x"] = m["x"] = np.arange(100_000)
t = s.begin(); t["x"][0] = 9
view = s["x"]
os.closerange(3, 256)
assert s["x"][-1] == 99_999 and m["x"][-1] == 99_999
t.commit()
for i in range(30):
    s["y"] = np.full(60_000, i)
    if i == 9: files = [open(sys.argv[1] + f"-{j}", "w+") for j in range(20)]  # of the program, by our old numbers
    try: m["y"] = np.full(60_000, i)
    except OSError as e: assert "closed" in str(e)  # nobody can open a memfd again
assert view[0] == 0 and s["x"][0] == 9
if os.fork() == 0:
    assert s["x"][0] == 9 and m["x"][-1] == 99_999
    s["z"] = 1
    os._exit(0)
assert os.wait()[1] == 0
assert s["z"] == 1 and m["x"][5] == 5
other = ps.open(sys.argv[1], "r")
assert other["z"] == 1
s.gc()
assert s.check().ok and m.check().ok and s.check().leaked == 0
s.close(); m.close()
for f in files:
    f.write("mine"); f.seek(0); assert f.read() == "mine"
print("fine")
"""
    r = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
    assert (r.returncode, r.stdout) == (0, "fine\n"), r.stderr


# --- history ----------------------------------------------------------------------------------------------------------------


def test_the_file_does_not_grow_with_the_number_of_commits(shm_path):
    s = ps.open(shm_path, "x", history=100)
    with s.begin() as t:
        for i in range(1000):
            t[f"k{i:04}"] = i
        t["x"] = np.zeros(50_000)
    rng = random.Random(3)
    sizes = []
    for i in range(22_000):
        s[f"k{rng.randrange(1000):04}"] = i
        if i % 50 == 0:
            with s.begin() as t:
                t["x"][rng.randrange(50_000)] = i
        if i in (11_000, 21_999):
            s.gc()
            sizes.append(s.stat())
    assert sizes[1].file_size <= sizes[0].file_size * 1.05
    assert sizes[1].resident <= sizes[0].resident * 1.05 + 100_000  # the log keeps its newest 10,000 entries
    assert len(s.versions) == 101
    sound(s)


def test_dropping_one_of_many_versions_touches_few_pages(shm_path):
    s = ps.open(shm_path, "x", history=0)
    with s.begin() as t:
        for i in range(20_000):
            t[f"k{i:05}"] = "x" * 60
    for i in range(100):
        s[f"k{i * 199:05}"] = i
        s.tag(f"t{i}")
    s.gc()

    def pages():
        return np.fromfile(shm_path + "/" + name, "u8").reshape(-1, 512)[: 8 << 10]

    name = max(os.listdir(shm_path), key=lambda f: os.stat(shm_path + "/" + f).st_blocks)
    before = pages()
    s.untag("t50")
    s.gc()
    assert (pages() != before).any(1).sum() < 50
    sound(s)


@pytest.mark.parametrize("history", ["all", 0, 3, "1MB", "1s"])
def test_history_keeps_what_it_says(shm_path, history):
    s = ps.open(shm_path, "x", history=history)
    for i in range(30):
        s["x"] = np.full(20_000, i)
        if i == 4:
            s.tag("mark")
    s.gc()
    kept = s.versions
    assert kept[-1] == 30 and 5 in kept
    if history == "all":
        assert kept == list(range(31))
    elif history == 0:
        assert kept == [5, 30]
    elif history == 3:
        assert kept == [5, 28, 29, 30] or kept == [5, 27, 28, 29, 30]
    elif history == "1MB":
        assert 4 <= len(kept) <= 10
        assert s.stat().history <= 1_400_000
    else:
        time.sleep(1.1)
        s["y"] = 1
        s["y"] = 2
        s.gc()
        assert len(s.versions) <= 4
    for v in kept:
        if v in s.versions and v:
            assert (s.at(v)["x"] == v - 1).all()
    if history != "all":
        with pytest.raises(ps.VersionExpiredError):
            s.at(7)
        assert s.at("mark").version == 5
    with pytest.raises(ValueError):
        s.at(99)
    with pytest.raises(KeyError):
        s.at("nobody")
    sound(s)


def test_times_between_dropped_versions_are_expired(shm_path):
    s = ps.open(shm_path, "x", history="all")
    times = []
    for i in range(8):
        s["x"] = i
        times.append(s.snapshot().time)
        time.sleep(0.002)
    for v, when in enumerate(times, 1):
        assert s.at(when).version == v and s.at(when.replace(tzinfo=None)).version == v
    s.tag("two", 2)
    s.close()
    s = ps.open(shm_path, history=3)
    s["y"] = 1
    s.gc()
    assert 2 in s.versions and 4 not in s.versions
    assert s.at(times[1]).version == 2
    with pytest.raises(ps.VersionExpiredError):
        s.at(times[3])
    with pytest.raises((ps.VersionExpiredError, ValueError)):
        s.at(times[0].replace(year=2001))
    assert s.at(times[0].replace(year=2030)).version == s.version
    s.untag("two")
    s["y"] = 2
    with pytest.raises(ps.VersionExpiredError):
        s.at(times[1])


def test_tags_and_negative_numbers(store):
    for i in range(5):
        store["x"] = i
    store.tag("a")
    store.tag("b", 2)
    store.tag("c", "b")
    third = store.at(3)
    store.tag("d", third)
    assert third["x"] == 2  # still ours
    with ps.open() as other, pytest.raises(ValueError):
        other.tag("d", third)
    assert store.tags == {"a": 5, "b": 2, "c": 2, "d": 3}
    assert store.at("c")["x"] == 1 and store.at(-1).version == 5 and store.at(-6).version == 0
    for bad in ("", "1a", "-a", "a/b", "x" * 201):
        with pytest.raises(ValueError):
            store.tag(bad)
    with pytest.raises(KeyError):
        store.tag("a", 1)
    with pytest.raises(KeyError):
        store.untag("nobody")
    with pytest.raises(ValueError):
        store.at(-7)
    assert store.version == 5


def test_diff_names_the_elements(store):
    a = rows(5000)
    store.update(x=a, y=np.arange(3000), gone=1, same=np.arange(10), obj=[1])
    with store.begin() as t:
        t["x"]["v"][341] = -1  # over the end of a page
        t["x"][1000:1003] = (7, 7)
        t["y"][::1000] = -1
        del t["gone"]
        t["new/x"] = 1
        t["obj"] = [2]
        t["same"][3] = 3
    d = store.diff(-2, -1)
    assert (d.added, d.removed) == ({"new/x"}, {"gone"})
    assert d.changed.pop("obj") is None
    assert d.changed == {"x": [(341, 342), (1000, 1003)], "y": [(0, 1), (1000, 1001), (2000, 2001)]}
    back = store.diff(-1, -2)
    assert (back.added, back.removed) == ({"gone"}, {"new/x"}) and back.changed["x"] == d.changed["x"]
    store.revert("x", 1)
    assert store.diff(1, store.version).changed.keys() == {"y", "obj"}  # x: a new object over the old pages


# --- conflicts --------------------------------------------------------------------------------------------------------------


def test_fields_and_elements_within_one_page_merge(shm_path):
    s = ps.open(shm_path, "x")
    s["x"] = rows(1000)
    s["n"] = np.zeros(100, "i2")
    s["s"] = np.zeros(2000, "S10")

    def one():
        with s.begin() as t:
            t["x"]["v"][10] = -1
            t["x"]["id"][341] = -1
            t["n"][1::2] = 1
            t["s"][409] = b"0123456789"

    t = s.begin()
    t["x"]["id"][11] = -2
    t["x"][342] = (-3, -3)
    t["n"][::2] = 2
    t["s"][410] = b"abcdefghij"
    in_child(one)
    t.commit()
    want = rows(1000)
    want["v"][10] = want["id"][341] = -1
    want["id"][11] = -2
    want[342] = (-3, -3)
    assert np.array_equal(s["x"], want)
    assert s["n"].tolist() == [2, 1] * 50
    assert s["s"][409:411].tolist() == [b"0123456789", b"abcdefghij"]
    sound(s)


def test_two_fields_of_one_record_conflict_also_over_a_page_boundary(shm_path):
    s = ps.open(shm_path, "x")
    s["x"] = rows(1000)
    t, u = s.begin(), s.begin()
    t["x"]["id"][341] = -1  # bytes 4092 to 4096
    u["x"]["v"][341] = -1  # bytes 4096 to 4104
    u["x"]["v"][5] = -1
    t.commit("winner")
    with pytest.raises(ps.ConflictError) as e:
        u.commit()
    assert e.value.keys == ["x"] or set(e.value.keys) == {"x"}
    assert [tuple(r) for r in dict(e.value.ranges)["x"]] == [(341, 342)]
    assert s["x"][341].tolist() == (-1, 170.5) and s["x"][5].tolist() == (5, 2.5)


def test_the_same_value_written_twice_conflicts_and_the_old_value_does_not(store):
    store["x"] = np.arange(10)
    t, u, v = store.begin(), store.begin(), store.begin()
    t["x"][3] = 33
    u["x"][3] = 33
    v["x"][3] = 3
    v["x"][4] = 44
    t.commit()
    with pytest.raises(ps.ConflictError):
        u.commit()
    v.commit()
    assert store["x"].tolist() == [0, 1, 2, 33, 44, 5, 6, 7, 8, 9]


def append_rows(path, who, n):
    s = ps.open(path, "r+")
    for i in range(n):
        t = s.begin()
        t.append("x", np.full((3, 5), who * 1000 + i, "i4"))
        t.commit()
        at = t.landed("x")
        with s.snapshot() as now:
            assert (now["x"][at : at + 3] == who * 1000 + i).all()


def test_appends_of_several_processes_all_land(shm_path):
    s = ps.open(shm_path, "x", history=10)
    s.create("x", (0, 5), "i4")
    with child(append_rows, shm_path, 1, 150), child(append_rows, shm_path, 2, 150):
        append_rows(shm_path, 3, 150)
    x = s["x"]
    assert x.shape == (1350, 5)
    values, counts = np.unique(x, return_counts=True)
    assert values.tolist() == [w * 1000 + i for w in (1, 2, 3) for i in range(150)] and (counts == 15).all()
    for who in (1, 2, 3):
        mine = x[:, 0][x[:, 0] // 1000 == who]
        assert (np.diff(mine) >= 0).all()
    sound(s)


def test_appends_merge_with_changes_of_other_elements_and_with_page_ends(store):
    for n in (0, 1, 340, 341, 342, 683, 5000):
        store["x"] = rows(n)
        t, u, v = store.begin(), store.begin(), store.begin()
        t.append("x", rows(7, 100_000))
        u.append("x", rows(400, 200_000))
        if n:
            u["x"]["v"][n - 1] = -1
            v["x"]["v"][0] = -2 if n > 1 else 0
        for x in (t, u, v):
            x.commit()
        want = np.concatenate([rows(n), rows(7, 100_000), rows(400, 200_000)])
        if n:
            want["v"][n - 1] = -1
        if n > 1:
            want["v"][0] = -2
        assert np.array_equal(store["x"], want)
    sound(store)


def test_resize_shrinks_and_grows_to_zeros(store):
    store["x"] = np.arange(1, 5001.0).reshape(1000, 5)
    held = store["x"]
    for cut in (0, 1, 511, 512, 513, 999):
        with store.begin() as t:
            t["x"] = np.ones((1000, 5))
        with store.begin() as t:
            view = t["x"]
            t.resize("x", (cut, 5))
            t.resize("x", (3000, 5))
            assert t["x"][:cut].all() and not t["x"][cut:].any()
            del view
        assert store["x"].shape == (3000, 5) and store["x"][:cut].all() and not store["x"][cut:].any()
        with store.begin() as t:
            t.resize("x", (cut, 5))
        with store.begin() as t:
            t.resize("x", (2000, 5))
        assert store["x"][:cut].all() and not store["x"][cut:].any()
    assert held.shape == (1000, 5) and held[-1, -1] == 5000
    store["f"] = np.ones((10, 10), order="F")
    with store.begin() as t, pytest.raises(ValueError):
        t.resize("f", (20, 10))
    sound(store)


def test_views_of_one_array_in_a_transaction_alias_also_after_growth(store):
    store["x"] = np.zeros(1000)
    with store.begin() as t:
        a = t["x"]
        t.append("x", np.ones(5000))
        b = t["x"]
        a[5] = 7
        b[6] = 8
        assert b[5] == 7 and a[6] == 8 and a.shape == (1000,) and b.shape == (6000,)
    assert store["x"][4:8].tolist() == [0, 7, 8, 0] and store["x"].sum() == 5015


def test_savepoints_nest_and_cover_bytes_and_keys(store):
    store.update(x=np.zeros(300_000), y=1, z=b"z")
    with store.begin() as t:
        t["x"][:5] = 1
        one = t.savepoint()
        t["x"][5:200_000] = 2
        t["y"] = 2
        del t["z"]
        t["new"] = np.ones(10)
        t.append("x", np.ones(3))
        two = t.savepoint()
        t["x"][:] = 3
        t.move("new", "newer")
        two.rollback()
        assert t["x"][6] == 2 and t["x"][-1] == 1 and "newer" not in t and t["new"].sum() == 10
        one.rollback()
        assert t["x"].shape == (300_000,) and t["x"].sum() == 5 and t["y"] == 1 and t["z"] == b"z" and "new" not in t
        t["x"][-1] = 4
        one.rollback()
        t["x"][-2] = 6
    assert store["x"].sum() == 11 and store["x"][-2] == 6 and sorted(store) == ["x", "y", "z"]
    sound(store)


def test_move_replaces_nothing_and_copy_does(store):
    store.update(a=1, b=2)
    for move in (store.move, store.begin().move):
        with pytest.raises(KeyError):
            move("a", "b")
        with pytest.raises(KeyError):
            move("nobody", "c")
    store.copy("a", "b")
    assert dict(store) == {"a": 1, "b": 1}


def test_names_that_do_not_coexist_are_refused_at_commit_too(store):
    for first, second in (("a", "a/b"), ("a/b", "a"), ("g/x.npy", "g/x")):
        t, u = store.begin(), store.begin()
        t[first] = b"bytes"
        u[second] = np.arange(3)
        t.commit()
        with pytest.raises((ps.ConflictError, KeyError)) as e:
            u.commit()
        assert first in str(e.value) and second in str(e.value)
        store.clear()


def test_keys_of_exactly_1024_bytes(path):
    s = ps.open(path, "x")
    parts = ["é" * 125] * 4 + ["x" * 20]
    key = "/".join(parts)
    assert len(key.encode()) == 1024
    s[key] = np.arange(5000)
    s["/".join(parts[:-1]) + "/" + "y" * 20] = 1
    with pytest.raises(ValueError):
        s[key + "x"] = 1
    with pytest.raises(KeyError):
        s[key + "x"]
    with s.begin() as t:
        t[key][0] = 5
    assert s[key][0] == 5 and next(iter(s)) == key and pickle.loads(pickle.dumps(s[key])).key == key
    assert s.log()[0].keys == (key,)
    s.copy(key, "short")
    s.move(key, "moved")
    assert s["moved"][0] == 5
    sound(s)


@pytest.mark.parametrize("n", [10, 400, 150_000, 400_000])
def test_an_array_takes_the_place_of_another(store, n):
    """Whatever its strides; also of itself."""
    a = np.arange(2 * n)
    for value in (a, a[::2], a[::-1], a.reshape(2, n).T, a.reshape(2, n)[:, ::2], np.zeros((0, 3))):
        store["x"] = a
        store["x"] = value
        assert np.array_equal(store["x"], value)
        store["x"] = b"other"
        store["x"] = value
        assert np.array_equal(store["x"], value)
    store["x"] = a
    store["x"] = store["x"][::-2]
    assert np.array_equal(store["x"], a[::-2])
    with store.begin() as t:
        t["x"] = a
        t["x"] = t["x"][::2]
        t["x"][0] = -1
        point = t.savepoint()
        t["x"] = t["x"][::-1]
        t["x"] = t["x"][::-1]
        assert t["x"][0] == -1 and np.array_equal(t["x"][1:], a[2::2])
        t["x"] = t["x"][::2]
        t.append("x", [7, 8])
        assert t["x"][-2:].tolist() == [7, 8]
        t.resize("x", 5)
        point.rollback()
        assert t["x"][0] == -1 and np.array_equal(t["x"][1:], a[2::2])
    assert store["x"][0] == -1 and np.array_equal(store["x"][1:], a[2::2])
    sound(store)


def test_no_room_for_an_array_leaves_what_it_would_have_replaced():
    s = ps.open(size="12MB")
    s["x"] = np.arange(1_000_000)
    with s.begin() as t:
        t["x"][3] = -3
        for big in (np.arange(2_000_000), np.arange(2_000_000)[::-1]):
            with pytest.raises(ps.StoreFullError):
                t["x"] = big
        assert t["x"].size == 1_000_000 and t["x"][3] == -3
    assert s["x"].size == 1_000_000 and s["x"][3] == -3
    sound(s)


# --- shared pages -----------------------------------------------------------------------------------------------------------


def test_copies_share_pages_and_survive_the_deletion_of_every_other(path):
    n = 300_000
    want = np.arange(float(n))
    names = ["a", "b", "c", "d"]
    rng = random.Random(11)
    for durability in ("none", "ordered"):
        s = ps.open(path, "w", history=2, durability=durability)
        for round_ in range(6):
            s["a"] = want
            s.tag("keep")
            live = s.stat().live
            s.copy("a", "b")
            s["c"] = s["a"]
            s["d"] = 1
            del s["d"]
            s.copy("a", "d")
            assert s.stat().live < live + 200_000
            assert len({s[k].__array_interface__["data"][0] for k in names}) == 1
            order = rng.sample(names, 4)
            for i, k in enumerate(order):
                how = (round_ + i) % 4
                if how == 0:
                    del s[k]
                elif how == 1:
                    s[k] = 0
                elif how == 2:
                    with s.begin() as t:
                        t[k][rng.randrange(n)] = -1
                    del s[k]
                else:
                    with s.begin() as t:
                        t.resize(k, (10,))
                    del s[k]
                s["other"] = np.full(250_000, round_)
                s["other"] = np.full(250_000, -round_)
                s.gc()
                for left in order[i + 1 :]:
                    assert np.array_equal(s[left], want)
                sound(s)
            with s.at("keep") as old:
                assert np.array_equal(old["a"], want)
            s.revert("a", "keep")
            assert np.array_equal(s["a"], want)
            s.untag("keep")
            sound(s)
            s.clear()
        for i in range(4):
            s["i"] = i
        s.gc()
        sound(s)
        assert s.stat().live + s.stat().history < 100_000
        s.close()


@pytest.mark.parametrize("durability", ["none", "full"])
def test_objects_of_every_kind_can_be_copied_and_reverted(path, durability):
    s = ps.open(path, "x", durability=durability)
    values = {
        "bytes": b"x" * 300_000,
        "plain": ["y" * 100_000, 1],
        "pickle": {"big": (1, np.arange(100_000)), "text": "t" * 20_000},
        "stream": ({"only": "s" * 90_000},),
        "small": {1: 2},
        "array": np.arange(90_000),
    }
    for k, v in values.items():
        s[k] = v

    def same(a, b):
        return np.array_equal(a, b) if isinstance(b, np.ndarray) else repr(a) == repr(b)

    live = s.stat().live
    for k in values:
        s.copy(k, "copy/" + k)
        s.move(k, "moved/" + k)
        v = s.version
        s["moved/" + k] = 0
        s.revert("moved/" + k, v)
        s.compact()
    assert s.stat().live < live + 100_000
    for k, v in values.items():
        assert same(s["copy/" + k], v) and same(s["moved/" + k], v)
    sound(s)


def test_compaction_moves_pages_under_readers_and_transactions(path):
    """What a transaction has touched applies to the pages where they are now."""
    s = ps.open(path, "x", history=0)
    for i in range(30):
        s[f"pad{i}"] = np.full(60_000, i)
    s["x"] = np.arange(400_000)
    s["s"] = rows(50_000)
    for i in range(0, 30, 2):
        del s[f"pad{i}"]
    s.gc()
    t, u = s.begin(), s.begin()
    view, snapshot, fresh = s["x"], s.snapshot(), t.empty("e", 300_000)
    t["x"][::5000] = -1
    t.append("x", np.full(70_000, 7))
    fresh[:] = 3
    t.copy("s", "s2")
    u["s"]["v"][341] = -1
    u["x"][1] = -2

    def compact():
        with ps.open(path, "r+") as other:
            for _ in range(3):
                other.compact()
                sound(other)

    in_child(compact)
    s.compact()
    t["x"][1:400_000:50_000] = -3
    want = np.arange(400_000)
    assert np.array_equal(view, want) and np.array_equal(snapshot["x"], want)
    u.commit()
    with pytest.raises(ps.ConflictError):
        t.commit()
    t = s.begin()
    t["x"][::5000] = -1
    t.append("x", np.full(70_000, 7))
    s.compact()
    t.commit()
    want[1] = -2
    want[::5000] = -1
    s.compact()
    assert np.array_equal(s["x"], np.concatenate([want, np.full(70_000, 7)]))
    assert s["s"]["v"][341] == -1 and s["s"]["id"][341] == 341
    for i in range(1, 30, 2):
        assert (s[f"pad{i}"] == i).all()
    sound(s)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_user_without_write_permission_reads():
    folder = tempfile.mkdtemp(prefix="pagestone-test-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    path = folder + "/r.ps"
    try:
        s = ps.open(path, "x", history=0)
        s["x"] = np.arange(100_000)
        s["text"] = "hello"
        s["object"] = {1: 2}
        for d in (folder, path):
            os.chmod(d, 0o755)
        for f in os.listdir(path):
            os.chmod(path + "/" + f, 0o644)
        ready, go = Gate(), Gate()

        def nobody():
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            r = ps.open(path, "r")
            view, snapshot = r["x"], r.snapshot()
            with pytest.raises(ps.Error):
                r["y"] = 1
            with pytest.raises(OSError):
                ps.open(path, "r+")
            ready.open()
            go.wait()
            assert np.array_equal(view, np.arange(100_000))
            assert np.array_equal(snapshot["x"], view) and snapshot["text"] == "hello"
            assert r["x"][0] == 19 and r.version == 23
            assert r["object"] == {1: 2}
            private = r.private("x")
            private[:] = 0
            assert r["x"][-1] == 19
            assert r.wait(22, timeout=1) == 23
            assert pickle.loads(pickle.dumps(view))[-1] == 99_999
            in_child(lambda: np.testing.assert_array_equal(view, np.arange(100_000)))
            assert r.check().ok

        with child(nobody):
            ready.wait()
            for i in range(20):
                s["x"] = np.full(100_000, i)
                s.gc()
            assert s.stat().pinned >= 800_000
            s.compact()
            assert any(r.pid is None for r in s.readers())
            go.open()
        s["y"] = 1
        s.gc()
        assert s.stat().pinned < 100_000
        sound(s)
    finally:
        shutil.rmtree(folder)


def test_readers_are_named(shm_path):
    s = ps.open(shm_path, "x", history=0)
    s["x"] = np.arange(100_000)
    ready, go = Gate(), Gate()

    def reader():
        held = ps.open(shm_path, "r+")["x"]
        ready.open()
        go.wait()
        del held

    with child(reader) as pid:
        ready.wait()
        s["x"] = 1
        s.gc()
        (r,) = [r for r in s.readers() if r.pid == pid]
        assert r.versions == (1,) and "python" in r.command and 800_000 <= r.bytes < 1_000_000
        assert abs(r.since.timestamp() - time.time()) < 30
        go.open()
    assert all(r.pid != pid for r in s.readers())


def test_waiting_wakes_at_the_commit(shm_path):
    s = ps.open(shm_path, "x")
    s["x"] = 0
    assert s.wait(timeout=0.05) is None and s.wait(0) == 1
    go = Gate()

    def later():
        go.wait()
        time.sleep(0.1)
        w = ps.open(shm_path)
        w["y"] = 1
        time.sleep(0.1)
        w["x"] = 1

    with child(later):
        cpu = time.process_time()
        go.open()
        assert s.wait(key="x", timeout=20) == 3
        assert time.process_time() - cpu < 0.1
    assert s["x"] == 1
    with child(s.wait, expect=-signal.SIGKILL) as pid:
        time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)

    def interrupted():
        with pytest.raises(KeyboardInterrupt):
            s.wait()

    with child(interrupted) as pid:
        wchan = Path(f"/proc/{pid}/wchan")
        wait_until(lambda: (wchan.exists() and "futex" in wchan.read_text()) or time.sleep(0.2) is None)
        os.kill(pid, signal.SIGINT)
    sound(s)


def commit_for_ever(path):
    s = ps.open(path, "r+")
    while True:
        s["busy"] = np.full(300_000, time.monotonic())


def test_the_holder_of_a_lock_is_named(tmp_path):
    path = str(tmp_path / "s.ps")
    s = ps.open(path, "x", durability="full", timeout=0.2, history=0)
    s["x"] = np.arange(10_000)
    worker = mp.get_context("fork").Process(target=commit_for_ever, args=(path,))
    worker.start()
    rng = random.Random(1)
    try:
        for _ in range(100):
            time.sleep(rng.uniform(0.001, 0.02))
            os.kill(worker.pid, signal.SIGSTOP)
            t = s.begin()
            t["y"] = 1
            begin = time.monotonic()
            try:
                t.commit()
            except ps.LockedError as e:
                assert time.monotonic() - begin < 3
                assert str(worker.pid) in str(e) and "python" in str(e)
                assert s["x"].sum() == 49_995_000 and isinstance(e, ps.Error)
                assert t["y"] == 1
                os.kill(worker.pid, signal.SIGKILL)
                worker.join()
                t.commit()
                break
            finally:
                t.abort()
                if worker.is_alive():
                    os.kill(worker.pid, signal.SIGCONT)
        else:
            pytest.skip("it was never stopped in the middle of a commit")
    finally:
        worker.kill()
        worker.join()
    s["z"] = 1
    sound(s)


def test_signals_are_handled_while_waiting_for_a_lock(tmp_path):
    path = str(tmp_path / "s.ps")
    s = ps.open(path, "x", durability="full", history=0)
    worker = mp.get_context("fork").Process(target=commit_for_ever, args=(path,))
    worker.start()
    wait_until(lambda: "busy" in s)

    class Interrupted(Exception):
        pass

    def handler(*args):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for _ in range(100):
            os.kill(worker.pid, signal.SIGSTOP)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            begin = time.monotonic()
            try:
                s["y"] = 1
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupted:
                assert time.monotonic() - begin < 5
                break
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                os.kill(worker.pid, signal.SIGCONT)
            time.sleep(0.005)
    finally:
        signal.signal(signal.SIGALRM, before)
        worker.kill()
        worker.join()
    s["y"] = 2
    assert s["y"] == 2
    sound(s)


# --- threads and pools --------------------------------------------------------------------------------------------------------


def test_eight_threads_on_one_store(path):
    s = ps.open(path, "x", history=5, durability="none")
    s.update(n=0, x=np.zeros(8000, int), y=np.arange(50_000))
    errors = []

    def work(i):
        try:
            rng = random.Random(i)
            for j in range(40):
                s.update_with("n", lambda n: n + 1)
                with s.begin() as t:
                    t["x"][i * 1000 + j] += 1
                s[f"mine/{i}"] = np.full(rng.choice([10, 30_000]), j)
                assert (s[f"mine/{i}"] == j).all()
                a = s["y"]
                assert (np.diff(a) == 1).all()
                if j % 10 == i % 10:
                    s.run(lambda t: t.__setitem__("y", np.arange(i, i + 50_000)))
                    s.gc()
                if j % 13 == i:
                    with s.at(rng.choice([-1, -2])) as old:
                        assert len(old) >= 3
                if j == 20 and i % 2:
                    in_child(lambda: s[f"mine/{i}"].sum())
        except BaseException as e:
            errors.append(e)
            raise

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    assert s["n"] == 320 and s["x"].sum() == 320 and s["x"].reshape(8, 1000)[:, :40].all()
    sound(s)


def test_threads_share_one_transaction(store):
    store["x"] = np.zeros(800_000)
    with store.begin() as t:

        def work(i):
            view = t["x"][i * 100_000 : (i + 1) * 100_000]
            view[:] = i
            t[f"k/{i}"] = np.full(1000, i)
            assert (t[f"k/{i}"] == i).all()

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert np.array_equal(store["x"], np.repeat(np.arange(8.0), 100_000))
    assert [store[f"k/{i}"][0] for i in range(8)] == list(range(8))


def use_handles(args):
    store, snapshot, group, array, part, fields, old, zero, empty = args
    assert store["x"].sum() == snapshot["x"].sum() == array.sum() == 4950 and group["b"] == 1
    assert part.tolist() == [98, 95, 92] and fields.dtype == float and old[0] == 5
    assert zero == 7 and zero.shape == () and empty.shape == (0, 3)
    store.update_with("count", lambda n: n + 1)
    group["c"] = os.getpid()
    return array[10:20], snapshot, part.copy()


@pytest.mark.parametrize("named", [False, True])
def test_handles_of_every_kind_travel_through_a_pool(shm_path, named):
    s = ps.open(shm_path if named else None)
    s.update(x=np.full(100, 5), count=0, s=rows(10))
    s["g/b"] = 1
    s["zero"], s["empty"] = np.array(7), np.zeros((0, 3))
    old = s["x"]
    s["x"] = np.arange(100)
    args = (s, s.snapshot(), s.group("g"), s["x"], s["x"][98:90:-3], s["s"]["v"], old, s["zero"], s["empty"])
    with mp.get_context("spawn").Pool(2) as pool:
        for array, snapshot, copy in pool.map(use_handles, [args] * 4):
            assert array.tolist() == list(range(10, 20)) and array.key == "x"
            assert snapshot["count"] == 0 and copy.tolist() == [98, 95, 92]
    assert s["count"] == 4
    sound(s)


def test_arrays_of_no_dimension_and_of_no_element(store):
    for a in (
        np.array(5.0),
        np.zeros(0),
        np.zeros((3, 0, 2)),
        np.array((1, 2.0), RECORD),
        np.zeros(4, "S0"),
        np.zeros(4, []),
    ):
        store["x"] = a
        b = store["x"]
        assert b.shape == a.shape and b.dtype == a.dtype and b.tobytes() == a.tobytes()
        assert store.private("x").shape == a.shape
        assert pickle.loads(pickle.dumps(b)).shape == a.shape
        store["y"] = store["x"]
        store.copy("x", "z")
        with store.begin() as t:
            assert t["x"].shape == a.shape
            if a.size and a.dtype == float:
                t["x"][...] = 6
        assert store["y"].tobytes() == store["z"].tobytes() == a.tobytes()
        store.clear()
    store.create("a", (0, 3))
    with store.begin() as t:
        t.append("a", np.zeros((0, 3)))
        t.append("a", np.ones((2, 3)))
        t.resize("a", (0, 3))
        t.append("a", [1, 2, 3])
    assert store["a"].tolist() == [[1, 2, 3]]
    store.create("s", 3, [("a", "S0"), ("b", "i4")])
    with store.begin() as t:
        t["s"]["b"][1] = 5
    assert store["s"]["b"].tolist() == [0, 5, 0]
    sound(store)


def test_fortran_order_is_kept_and_merges(store):
    a = np.asfortranarray(np.arange(600_000.0).reshape(600, 1000))
    store["x"] = a
    t, u = store.begin(), store.begin()
    t["x"][::2, 7] = -1
    u["x"][1::2, 7] = -2
    u["x"][:, 999] = -3
    t.commit()
    u.commit()
    a[::2, 7], a[1::2, 7], a[:, 999] = -1, -2, -3
    x = store["x"]
    assert x.flags.f_contiguous and not x.flags.c_contiguous and np.array_equal(x, a)
    store.copy("x", "y")
    store["z"] = store["x"].T
    assert store["y"].flags.f_contiguous and store["z"].flags.c_contiguous and np.array_equal(store["z"], a.T)
    with store.begin() as t, pytest.raises(ValueError):
        t.append("x", np.zeros((1, 1000)))
    sound(store)
