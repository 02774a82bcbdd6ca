"""Many processes: increments, invariants, forks, stopped readers, killed writers; signals, threads and the GIL."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pagestone as ps
import pytest

FORK = mp.get_context("fork")


def start(fn, *args):
    p = FORK.Process(target=fn, args=args)
    p.start()
    return p


def finish(*processes, timeout=60):
    for p in processes:
        p.join(timeout)
        assert p.exitcode == 0, p


def bump(s, n):
    for _ in range(n):
        s.update_with("n", lambda v: v + 1, default=0)


@pytest.mark.parametrize("named", [True, False])
def test_increments_by_four_processes_lose_nothing(shm_path, named):
    s = ps.open(shm_path if named else None, history=10)
    finish(*[start(bump, s, 500) for _ in range(4)])
    assert s["n"] == 2000 and s.version == 2000
    assert s.check().ok


def bump_array(path, i):
    s = ps.open(path)
    for _ in range(100):
        with s.begin() as t:
            t["x"][i::4] += 1
    s.close()


def test_disjoint_writes_of_processes_all_land(path):
    s = ps.open(path, durability="none")
    s["x"] = np.zeros(10_000)
    finish(*[start(bump_array, path, i) for i in range(4)])
    assert (s["x"] == 100).all()


def write_pair(path, stop):
    s = ps.open(path)
    while not stop.is_set():

        def step(t):
            n = t["a"] + 1
            t["a"] = n
            t["x"][:] = n
            t["o"] = {"n": n, "v": np.full(1000, n)}

        s.run(step)


def read_pair(path, stop, mode):
    s = ps.open(path, mode)
    n = 0
    last = 0
    while not stop.is_set():
        n += 1
        if n % 50 == 0:
            s.close()
            s = ps.open(path, mode)
        with s.snapshot() as v:
            a, x, o = v["a"], v["x"], v["o"]
            assert a >= last
            last = a
            assert x[0] == a and x[-1] == a and (x == a).all() and o["n"] == a and (o["v"] == a).all(), (a, x, o)
            assert s.at(v.version)["a"] == a
    assert n > 10


def test_what_is_written_together_is_never_seen_apart(shm_path):
    s = ps.open(shm_path, history=1000)
    with s.begin() as t:
        t["a"], t["x"], t["o"] = 0, np.zeros(20_000), {"n": 0, "v": np.zeros(1000)}
    stop = FORK.Event()
    workers = [start(write_pair, shm_path, stop) for _ in range(2)] + [
        start(read_pair, shm_path, stop, m) for m in ("r", "r+", "r")
    ]
    time.sleep(2.5)
    stop.set()
    finish(*workers)
    assert s["a"] > 20 and s.check().ok


def hold_and_wait(path, conn):
    s = ps.open(path)
    x = s["x"]
    conn.send(os.getpid())
    conn.recv()
    conn.send(float(x.sum()))


def test_a_stopped_reader_delays_nobody(shm_path):
    s = ps.open(shm_path, history=0, timeout=5)
    s["x"] = np.ones(100_000)
    a, b = FORK.Pipe()
    p = start(hold_and_wait, shm_path, b)
    a.recv()
    os.kill(p.pid, signal.SIGSTOP)
    began = time.monotonic()
    for i in range(50):
        s["x"] = np.full(100_000, i)
    s.gc()
    assert time.monotonic() - began < 3
    os.kill(p.pid, signal.SIGCONT)
    a.send(1)
    assert a.recv() == 100_000
    finish(p)


def commit_forever(path):
    s = ps.open(path)
    i = 0
    while True:
        i += 1
        s[f"k{i % 5}"] = np.full(5000, i)


def test_killed_writers_leave_no_lock_and_lose_nothing(shm_path):
    s = ps.open(shm_path, history=5, timeout=10)
    rng = np.random.default_rng(2)
    for _ in range(15):
        p = start(commit_forever, shm_path)
        time.sleep(0.02 + rng.random() * 0.05)
        p.kill()
        p.join()
        v = s.version
        s["mine"] = v
        assert s["mine"] == v
        for k in s:
            if k != "mine":
                assert len(set(s[k].tolist())) == 1
    assert s.check().ok and s.check().leaked == 0


# --- fork -----------------------------------------------------------------------------------------------------------------------


def in_child(fn):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            fn()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def test_a_forked_child_reads_and_writes_inherited_views(store):
    store["x"] = np.arange(100_000.0)
    t = store.begin()
    view, fresh, private = t["x"], t.empty("e", 100_000), store.private("x")
    view[0] = 1
    fresh[:] = 7

    def child():
        assert view[0] == 1 and view[5] == 5 and fresh[9] == 7 and private[3] == 3
        view[:] = -1
        fresh[:] = -1
        private[:] = -1
        store["c"] = np.ones(50_000)
        assert store["x"][5] == 5

    assert in_child(child) == 0
    assert view[0] == 1 and view[5] == 5 and fresh.sum() == 700_000 and private[5] == 5
    fresh[1] = 8
    t.commit()
    assert store["e"][1] == 8 and store["e"].sum() == 700_001 and store["x"][0] == 1 and store["c"].sum() == 50_000


def test_a_child_that_keeps_a_fresh_view_cannot_change_what_was_committed(store):
    t = store.begin()
    fresh = t.empty("e", 100_000)
    fresh[:] = 7
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(r, 1)
        fresh[:] = -1
        os._exit(0)
    t.commit()
    os.write(w, b"x")
    os.waitpid(pid, 0)
    assert (store["e"] == 7).all() and (fresh == 7).all()
    assert store.check().ok


def test_the_childs_end_leaves_the_parents_pins(store):
    s = ps.open(history=0)
    s["x"] = np.arange(100_000)
    x = s["x"]
    assert in_child(lambda: None) == 0
    for i in range(10):
        s["x"] = np.full(100_000, i)
    s.gc()
    np.testing.assert_array_equal(x, np.arange(100_000))


def test_the_parents_end_leaves_the_childs_views(tmp_path):
    code = """
import os, sys, time, numpy as np, pagestone as ps
s = ps.open(history=0)
s["x"] = np.arange(100_000)
x, snap = s["x"], s.snapshot()
r, w = os.pipe()
if os.fork():
    os._exit(0)
os.close(w)
os.read(r, 1)
for i in range(10):
    s["x"] = np.full(100_000, i)
s.gc()
assert x[77] == 77 and snap["x"][5] == 5 and s["x"][0] == 9
open(sys.argv[1], "w").write("fine")
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], timeout=60, check=True)
    for _ in range(200):
        if (tmp_path / "out").exists() and (tmp_path / "out").read_text():
            break
        time.sleep(0.05)
    assert (tmp_path / "out").read_text() == "fine"


def test_fork_while_threads_work(store):
    store["n"] = 0
    stop = threading.Event()

    def work():
        while not stop.is_set():
            store.update_with("n", lambda n: n + 1)
            store["n"]

    threads = [threading.Thread(target=work) for _ in range(2)]
    for th in threads:
        th.start()

    def child():
        for _ in range(5):
            store.update_with("n", lambda n: n + 1)
        assert store.snapshot()["n"] > 0

    statuses = [in_child(child) for _ in range(20)]
    stop.set()
    for th in threads:
        th.join()
    assert statuses == [0] * 20


# --- read-only users ---------------------------------------------------------------------------------------------------------------


def read_as_somebody_else(path, conn):
    os.setuid(12345)
    conn.recv()
    s = ps.open(path, "r")
    x, snap = s["x"], s.snapshot()
    conn.send("ready")
    conn.recv()
    assert x.sum() == sum(range(100_000)) and snap["x"][7] == 7 and s["x"][0] == 9 and s.version > snap.version
    for write in (lambda: s.__setitem__("y", 1), s.begin, s.gc, lambda: s.tag("t")):
        with pytest.raises(ps.ReadOnlyError):
            write()
    with pytest.raises((PermissionError, ps.ReadOnlyError)):
        ps.open(path, "r+")
    assert s.wait(0, timeout=5) == s.version and s.log() and s.versions and s.stat().objects == 2
    conn.send((s["p"], x[5:]))
    assert conn.recv() == "done"


def test_readers_without_write_permission(shm_path):
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    a, b = FORK.Pipe()
    p = start(read_as_somebody_else, shm_path, b)  # before anything is open here
    s = ps.open(shm_path, history=0)
    s["x"] = np.arange(100_000.0)
    s["p"] = {1, 2}
    for name in ("..", "."):
        os.chmod(os.path.join(shm_path, name), 0o755)
    for name in os.listdir(shm_path):
        os.chmod(os.path.join(shm_path, name), 0o644)
    a.send("go")
    assert a.recv() == "ready"
    for i in range(10):
        s["x"] = np.full(100_000, float(i))
    s.gc()
    (nameless,) = [r for r in s.readers() if r.pid is None]
    assert nameless.since is None and nameless.versions and nameless.command
    a.send("go on")
    p_value, view = a.recv()
    assert p_value == {1, 2} and view[0] == 5
    a.send("done")
    finish(p)
    del view
    s["x"] = np.zeros(3)
    s.gc()


# --- signals and the GIL ------------------------------------------------------------------------------------------------------------


class Alarm(Exception):
    pass


@contextlib.contextmanager
def alarm(after, action=signal.SIG_DFL):
    def handler(*_):
        raise Alarm

    before = signal.signal(signal.SIGALRM, handler if action == signal.SIG_DFL else action)
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_signals_interrupt_a_wait(store):
    began = time.monotonic()
    with pytest.raises(Alarm), alarm(0.2):
        store.wait(timeout=30)
    assert time.monotonic() - began < 3
    calls = []
    with alarm(0.1, lambda *_: calls.append(1)):  # a handler that raises nothing does not end it
        assert store.wait(timeout=0.5) is None
    assert calls == [1]


def test_ctrl_c_interrupts_a_wait(store):
    def interrupt():
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    th = threading.Thread(target=interrupt)
    th.start()
    with pytest.raises(KeyboardInterrupt):
        store.wait(timeout=30)
    th.join()
    store["a"] = 1


STOPPED = """
import sys, pagestone as ps
s = ps.open(sys.argv[1])
s["held"] = 1
"""


@contextlib.contextmanager
def somebody_inside(path):
    """Another process, stopped while it holds the commit lock."""
    from pagestone import _core

    if not hasattr(_core, "_testing"):
        pytest.skip("needs a testing build (PAGESTONE_TESTING_BUILD=1)")
    p = subprocess.Popen([sys.executable, "-c", STOPPED, path], env={**os.environ, "PAGESTONE_STOP": "commit_locked"})
    os.waitid(os.P_PID, p.pid, os.WSTOPPED)
    try:
        yield p
    finally:
        p.kill()
        p.wait()


def test_signals_interrupt_a_wait_for_the_lock(shm_path):
    s = ps.open(shm_path)
    with somebody_inside(shm_path):
        began = time.monotonic()
        with pytest.raises(Alarm), alarm(0.2):
            s["a"] = 1
        t = s.begin()
        t["a"] = 2
        with pytest.raises(Alarm), alarm(0.2):
            t.commit()
        for call in (lambda: s.tag("t"), s.gc):
            with pytest.raises(Alarm), alarm(0.2):
                call()
        assert time.monotonic() - began < 6
    assert t.commit() >= 1
    assert s["a"] == 2


def test_waiting_never_holds_the_gil(shm_path):
    s = ps.open(shm_path, timeout=2)
    s["x"] = np.zeros(10)
    with somebody_inside(shm_path):
        ticks = 0
        errors = []
        t = s.begin()
        t["b"] = 1

        def block(f):
            try:
                f()
            except ps.LockedError as e:
                errors.append(e)

        calls = (
            lambda: s.__setitem__("a", 1),
            lambda: s.__delitem__("x"),
            t.commit,
            lambda: s.tag("a"),
            lambda: s.wait(timeout=2),
        )
        threads = [threading.Thread(target=block, args=(f,)) for f in calls]
        threads += [threading.Thread(target=lambda: block(lambda: list(t)))]  # blocked by t's own commit
        for th in threads:
            th.start()
        began = time.monotonic()
        while any(th.is_alive() for th in threads):
            ticks += 1
            assert s["x"].sum() == 0 and "x" in s and len(s) == 1
            time.sleep(0.001)
        assert 1.5 < time.monotonic() - began < 10
        assert ticks > 300
        assert len(errors) == 4 and all(isinstance(e, ps.LockedError) for e in errors)


def test_many_threads_on_one_store(store):
    stop = threading.Event()
    errors = []

    def guard(f):
        def run():
            try:
                i = 0
                while not stop.is_set():
                    i += 1
                    f(i)
            except BaseException as e:
                errors.append(e)

        return threading.Thread(target=run)

    store["x"], store["o"] = np.zeros(1000), {"v": 0}
    snaps = [store.snapshot()]

    def read(i):
        assert (store["x"] == store["x"][0]).all() or True
        v = store["x"]
        assert v.min() == v.max()
        store["o"]["v"]
        list(store.items())

    def write(i):
        store["x"] = np.full(1000, i)
        store["o"] = {"v": i, "t": (i,)}

    def snap(i):
        old, snaps[0] = snaps[0], store.snapshot()
        assert len(old) >= 2
        try:
            old["x"], list(old), old.version
        finally:
            old.close()

    def shared(i):
        try:
            snaps[0]["x"].sum()
            dict(snaps[0])
        except ps.ClosedError:
            pass

    threads = [guard(f) for f in (read, read, write, snap, shared, shared)]
    for th in threads:
        th.start()
    time.sleep(2)
    stop.set()
    for th in threads:
        th.join()
    assert errors == []


# --- resources ------------------------------------------------------------------------------------------------------------------------


def counts():
    return len(os.listdir("/proc/self/fd")), len(Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.usefixtures("proc")
def test_descriptors_and_mappings_do_not_grow_with_objects(shm_path):
    s = ps.open(shm_path)
    for i in range(50):
        s[f"k{i}"] = np.full(3000, i)
    views = [s[f"k{i}"] for i in range(50)]
    fds, maps = counts()
    for i in range(2000):
        s[f"k{i}"] = np.full(3000, i)
    views += [s[f"k{i}"] for i in range(2000)]
    views += [ps.open(shm_path, "r")[f"k{i}"] for i in range(200)]
    assert all(v[5] == v[-1] for v in views)
    fds2, maps2 = counts()
    assert fds2 - fds <= 3 and maps2 - maps <= 40
    del views


def test_modules_cannot_be_imported_in_a_subinterpreter():
    code = """
import pagestone, sys
try:
    import _xxsubinterpreters as sub
except ImportError:
    sys.exit(77)
i = sub.create()
try:
    sub.run_string(i, "import numpy, pagestone")
except Exception as e:
    print("refused", e)
"""
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    if r.returncode == 77:
        pytest.skip("no subinterpreters here")
    assert r.returncode == 0 and "refused" in r.stdout, r.stderr


def test_close_gives_back_descriptors_and_mappings(tmp_path):
    path = str(tmp_path / "s.ps")
    s = ps.open(path)
    s["x"] = np.arange(100_000)
    kept = s["x"]
    with s.begin() as t:
        t["y"] = 1
    s.close()
    s.close()
    assert s.closed
    for use in (
        lambda: s["x"],
        lambda: s.snapshot(),
        lambda: s.begin(),
        lambda: s.stat(),
        lambda: len(s),
        lambda: s.wait(),
    ):
        with pytest.raises(ValueError, match="open it again"):
            use()
    assert kept.sum() == np.arange(100_000).sum()
    if os.path.exists("/proc/self/maps"):
        assert path in Path("/proc/self/maps").read_text()  # the view holds it
        del kept, t
        gc.collect()
        assert path not in Path("/proc/self/maps").read_text()
        assert not any(
            path in os.readlink(f"/proc/self/fd/{n}")
            for n in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{n}")
        )


def test_a_killed_reader_is_no_reader(shm_path):
    with ps.open(shm_path) as s:
        s["x"] = np.zeros(50_000)
        for _ in range(3):
            r, w = os.pipe()
            pid = os.fork()
            if pid == 0:
                held = s.snapshot()
                os.write(w, b"1")
                signal.pause()
                os._exit(held.version)
            os.read(r, 1)
            assert [x.pid for x in s.readers()] == [pid]
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            assert s.readers() == []
            os.close(r)
            os.close(w)
