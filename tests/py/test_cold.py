"""Cold data: arrays that are compressed read, slice, travel and change as ever; whichever way their bytes come."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pagestone as ps
import pytest
from pagestone import _cli, _core

N = 8 << 20  # bytes of most arrays here
HAVE_FUSE = _core.capabilities()["fuse"][0]  # asked now: the answer is kept, and tests switch it off
SERVER = Path(ps.__file__).parent / "bin" / "pagestone-fuse"


def walk(n_bytes: int = N, seed: int = 0, dtype: str = "i8") -> np.ndarray:
    """Compressible, and no two pages are equal."""
    n = n_bytes // np.dtype(dtype).itemsize
    return np.cumsum(np.random.default_rng(seed).integers(0, 9, n)).astype(dtype)


@pytest.fixture(params=["eager", "pager"], autouse=True)
def way(request, monkeypatch):
    """How mappings come by their bytes. Children of a test go the same way."""
    off = os.environ.get("PAGESTONE_WITHOUT", "")
    if request.param == "pager":
        if not HAVE_FUSE:
            pytest.skip("no FUSE")
        if not SERVER.exists() and not os.environ.get("PAGESTONE_SERVER"):
            pytest.skip("the server is not built")
        return "pager"
    monkeypatch.setenv("PAGESTONE_WITHOUT", f"{off},fuse".lstrip(","))
    return "eager"


def in_process(code: str, *args: str, **env: str) -> str:
    """Run Python code in a fresh process; what it prints."""
    head = "import sys, os, numpy as np, pagestone as ps\n"
    r = subprocess.run([sys.executable, "-c", head + code, *args], capture_output=True, text=True, timeout=120,
                       env={**os.environ, **env})  # fmt: skip
    assert r.returncode == 0, r.stderr
    return r.stdout.strip()


@pytest.fixture
def cold(shm_path):
    """A store with a cold array x, and the array."""
    x = walk()
    with ps.open(shm_path) as s:
        s["x"] = x
        assert s.freeze("x") > N // 2
        yield s, x


# --- what stays as it was --------------------------------------------------------------------------------------------


def test_freeze_and_thaw_change_nothing_but_the_bytes_that_are_taken(path):
    x = walk()
    with ps.open(path, history=0) as s:
        s["x"] = x
        version, before = s.version, s.stat()
        saved = s.freeze("x")
        s.gc()
        after = s.stat()
        assert s.version == version and s.log()[0].version == version
        assert 0 < after.compressed < N - saved + N // 8
        assert before.compressed == 0 and after.live < before.live - saved // 2
        assert np.array_equal(s["x"], x) and s["x"].version == version
        assert s.freeze("x") == 0
        assert s.thaw("x") == N
        s.gc()
        assert s.stat().compressed == 0 and np.array_equal(s["x"], x)
        assert s.check().ok
    assert os.path.exists(path)


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8", "c16", "S3", "M8[ns]", [("a", "i4"), ("b", "f8")]])
def test_all_kinds_of_elements(store, dtype):
    x = walk(1 << 20).astype("i8").view("u1")[: 24 * 40_000]
    x = x.view(dtype) if not isinstance(dtype, list) else x.view("i4")[: 3 * 80_000].view(np.dtype(dtype))
    store["x"] = x
    store.freeze("x")
    assert store["x"].tobytes() == x.tobytes()
    assert store.check().ok


def test_the_order_and_the_shape_stay(store):
    x = np.asfortranarray(walk().reshape(1024, 64, 16))
    store["x"] = x
    store.freeze("x")
    y = store["x"]
    assert y.flags.f_contiguous and y.shape == x.shape and np.array_equal(y, x)
    assert np.array_equal(y[5:900:7, ::-3, 2], x[5:900:7, ::-3, 2])


def test_bytes_and_pickled_objects(store):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": walk(1 << 20), "b": walk(1 << 20, 1, "f8"), "c": ["x", "yy"] * (1 << 16)})
    store["frame"] = frame
    store["bytes"] = walk(1 << 20).tobytes()
    store["list"] = list(range(100_000))
    assert store.freeze("frame") > 1 << 20 and store.freeze("bytes") > 1 << 19
    store.freeze("list")
    pd.testing.assert_frame_equal(store["frame"], frame)
    assert bytes(store["bytes"]) == walk(1 << 20).tobytes()
    assert store["list"] == list(range(100_000))
    assert store.check().ok


def test_what_cannot_be_compressed_stays_raw(store):
    store["noise"] = np.random.default_rng(1).integers(0, 256, 1 << 20, dtype="u1")
    store["small"] = 5
    store["hole"] = 0
    del store["hole"]
    store.create("hole", 1 << 34, "u1")
    assert [store.freeze(k) for k in ("noise", "small", "hole")] == [0, 0, 0]
    assert store.stat().compressed == 0


def test_wrong_keys(store):
    store["a/b"] = 1
    for call in (store.freeze, store.thaw, store.prefetch):
        for key in ("none", "a", ""):
            with pytest.raises(KeyError):
                call(key)
        with pytest.raises((TypeError, KeyError)):
            call(5)
    store.close()
    with pytest.raises(ps.ClosedError):
        store.freeze("a/b")


def test_a_read_only_store_cannot_freeze(shm_path):
    with ps.open(shm_path) as s:
        s["x"] = walk()
    with ps.open(shm_path, "r") as s, pytest.raises(ps.ReadOnlyError):
        s.freeze("x")


# --- memory ----------------------------------------------------------------------------------------------------------


def test_a_private_view_is_written_and_nobody_sees(cold):
    s, x = cold
    p = s.private("x")
    p[::1000] = -1
    expected = x.copy()
    expected[::1000] = -1
    assert np.array_equal(p, expected) and np.array_equal(s["x"], x)


def test_a_transaction_on_a_cold_array(cold):
    s, x = cold
    x = x.copy()
    with s.begin() as t:
        a = t["x"]
        assert np.array_equal(a, x)
        a[1000:1010] = x[1000:1010] = 5
        a[-1] = x[-1] = 7
        a[500_000] = a[500_000]  # no change
        assert np.array_equal(t["x"], x)
    assert np.array_equal(s["x"], x)
    assert s.diff(-2, -1).changed == {"x": [(999, 1010), (len(x) - 1, len(x))]} or s.diff(-2, -1).changed["x"]
    copied = s.stat().bytes_copied
    with s.begin() as t:
        t["x"][3] = 1
    assert s.stat().bytes_copied - copied < 1 << 20
    assert s.check().ok


def test_views_of_before_and_after_live_together(store):
    x = walk()
    store["x"] = x
    raw = store["x"]
    store.freeze("x")
    cold = store["x"]
    store.thaw("x")
    store["x"] = x + 1
    for _ in range(3):
        store.gc()
    assert np.array_equal(raw, x) and np.array_equal(cold, x) and np.array_equal(store["x"], x + 1)


def test_old_versions_keep_their_cold_blocks(shm_path):
    with ps.open(shm_path, history="all") as s:
        arrays = []
        x = walk()
        for i in range(4):
            x = x.copy()
            x[i * 1000 : i * 1000 + 500] = i
            with s.begin() as t:
                if i == 0:
                    t["x"] = x
                else:
                    t["x"][:] = x
            s.freeze("x")
            arrays.append((s.version, x))
        for version, expected in arrays:
            assert np.array_equal(s.at(version)["x"], expected)
        s.revert("x", arrays[0][0])
        assert np.array_equal(s["x"], arrays[0][1])
        assert s.check().ok


def test_append_and_resize_of_cold_arrays(cold):
    s, x = cold
    with s.begin() as t:
        t.append("x", np.arange(1000))
    assert np.array_equal(s["x"], np.concatenate([x, np.arange(1000)]))
    with s.begin() as t:
        t.resize("x", (len(x) // 2 + 3,))
    assert np.array_equal(s["x"], x[: len(x) // 2 + 3])
    assert s.check().ok


def test_system_calls_take_cold_memory(cold, tmp_path):
    s, x = cold
    with open(tmp_path / "out", "wb", buffering=0) as f:
        assert os.write(f.fileno(), memoryview(s["x"]).cast("B")) == N
    assert np.array_equal(np.fromfile(tmp_path / "out", "i8"), x)


def test_threads_read_and_freeze_at_the_same_time(store):
    arrays = {f"k{i}": walk(2 << 20, i) for i in range(6)}
    for k, v in arrays.items():
        store[k] = v
    wrong: list[object] = []
    end = time.monotonic() + 1.5

    def read(seed: int) -> None:
        r = random.Random(seed)
        while time.monotonic() < end:
            k = r.choice(list(arrays))
            try:
                if not np.array_equal(store[k], arrays[k]):
                    wrong.append(k)
                r.choice([store.freeze, store.thaw, store.prefetch])(k)
            except Exception as e:
                wrong.append(e)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert store.check().ok


# --- processes -------------------------------------------------------------------------------------------------------


def test_a_forked_child_reads_what_the_parent_never_touched(cold):
    s, x = cold
    a = s["x"]
    pid = os.fork()
    if pid == 0:
        ok = np.array_equal(a, x) and np.array_equal(s["x"], x)
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert np.array_equal(a, x)


def test_pickled_handles_of_cold_arrays(cold):
    s, x = cold
    with mp.get_context("spawn").Pool(2) as pool:
        assert pool.map(np.sum, [s["x"], s["x"][100:200]]) == [x.sum(), x[100:200].sum()]
    assert np.array_equal(pickle.loads(pickle.dumps(s["x"])), x)


def test_another_process_reads_and_freezes(cold):
    s, x = cold
    assert int(in_process("print(ps.open(sys.argv[1], 'r')['x'].sum())", s.path)) == x.sum()
    s["y"] = x
    in_process("ps.open(sys.argv[1]).freeze('y')", s.path)
    assert np.array_equal(s["y"], x) and s.check().ok


def test_killed_users_leave_nothing_in_the_way(shm_path):
    x = walk(2 << 20)
    with ps.open(shm_path, history=0) as s:
        s["x"] = x
        code = """
r = np.random.default_rng(os.getpid())
s = ps.open(sys.argv[1])
print(flush=True)
while True:
    s[f"k{r.integers(3)}"] = np.array(s["x"])
    k = f"k{r.integers(3)}"
    try:
        r.choice([s.freeze, s.thaw, s.prefetch, s.get])(k)
        r.choice([s.freeze, s.thaw])("x")
    except KeyError:
        pass
"""
        for i in range(6):
            p = subprocess.Popen([sys.executable, "-c", "import sys, os, numpy as np, pagestone as ps\n" + code, s.path],
                                 stdout=subprocess.PIPE)  # fmt: skip
            p.stdout.readline()
            time.sleep(0.05 + 0.05 * i)
            p.send_signal(signal.SIGKILL)
            p.wait()
            p.stdout.close()
            assert np.array_equal(s["x"], x)
            assert all(np.array_equal(s[k], x) for k in s)
        assert s.check().ok
        for _ in range(3):
            s.gc()
        assert s.check().leaked == 0


# --- by itself -------------------------------------------------------------------------------------------------------


def test_what_was_not_changed_for_some_time_is_frozen_by_gc(shm_path):
    with ps.open(shm_path, freeze="older than 0.5s") as s:
        assert s.info()["freeze"] == "older than 0.5s"
        s["old"] = x = walk(1 << 20)
        time.sleep(0.6)
        s["new"] = x
        s.gc()
        assert s.snapshot()._cold("old")[0] == 1 << 20 and s.snapshot()._cold("new")[0] == 0
        assert s.version == 2 and np.array_equal(s["old"], x)
    assert in_process("print(ps.open(sys.argv[1]).info()['freeze'])", shm_path) == "older than 0.5s"
    time.sleep(0.6)
    with ps.open(shm_path):
        pass
    with ps.open(shm_path, freeze="never") as s:  # the close before did the rest
        assert s.snapshot()._cold("new")[0] == 1 << 20
        assert s.info()["freeze"] is None
    with pytest.raises(ValueError, match="r\\+"):
        ps.open(shm_path, "r", freeze="never")


@pytest.mark.parametrize(
    "freeze, error", [("", ValueError), ("1h", ValueError), ("older than", ValueError), ("older than 3", ValueError),
                      ("older than 3 apples", ValueError), ("older than 0s", ValueError), ("older than 999999999999w", ValueError),
                      (5, TypeError), ("history", ps.NotSupportedError)],
)  # fmt: skip
def test_policies_that_are_none(freeze, error):
    with pytest.raises(error, match="freeze"):
        ps.open(freeze=freeze)


# --- the budget of the eager way -------------------------------------------------------------------------------------


def test_a_small_budget_serves_one_array_after_the_other(store, way, monkeypatch):
    if way != "eager":
        pytest.skip("the pager has no budget")
    monkeypatch.setenv("PAGESTONE_COLD_BUDGET", "5M")
    arrays = [walk(2 << 20, i) for i in range(6)]
    for i, a in enumerate(arrays):
        store[f"k{i}"] = a
        store.freeze(f"k{i}")
    for _ in range(2):
        for i, a in enumerate(arrays):
            assert np.array_equal(store[f"k{i}"], a)
    if "proc_fd" in os.environ.get("PAGESTONE_WITHOUT", "") or not os.path.exists("/proc/self/fd"):
        return  # no image is shared then: each array is a copy of its own, and only one that is larger than the budget is refused
    kept = [store["k0"], store["k1"]]
    with pytest.raises(MemoryError, match=r"PAGESTONE_COLD_BUDGET.*FUSE"):
        store["k2"]
    del kept[0]
    assert np.array_equal(store["k2"], arrays[2]) and np.array_equal(kept[0], arrays[1])


# --- ahead of need ---------------------------------------------------------------------------------------------------


def test_prefetch_takes_what_an_index_takes(store):
    store["x"] = x = walk().reshape(-1, 1024)
    store["f"] = np.asfortranarray(x)
    store["e"] = np.empty((0, 5))
    store["b"] = b"b" * 1_000_000
    for k in store:
        store.freeze(k)
    for k in ("x", "f"):
        for index in (
            ...,
            3,
            -1,
            (3, 4),
            np.s_[5:10],
            np.s_[:, 5:9],
            np.s_[::-7, ::3],
            np.s_[..., 0],
            None,
            np.int8(4),
        ):
            store.prefetch(k, index)
        with pytest.raises(IndexError):
            store.prefetch(k, 1024)
        for index in ([1, 2], np.arange(3), True, 1.5):
            with pytest.raises(TypeError, match="slices"):
                store.prefetch(k, index)
    store.prefetch("e")
    store.prefetch("e", np.s_[:, 2])
    store.prefetch("b")
    with pytest.raises(TypeError, match="only arrays"):
        store.prefetch("b", 3)
    with store.snapshot() as snapshot:
        snapshot.prefetch("x", 0)


def damage(store: ps.Store, x: np.ndarray) -> None:
    """Flip a byte in the middle of the compressed data of the newest object."""
    with open(os.path.join(store.path, "pages"), "r+b") as f:
        data = f.read()
        at = [i for i in range(0, len(data), 4096) if data[i : i + 4] == b"\x28\xb5\x2f\xfd"]  # zstd's magic number
        where = at[len(at) // 2] + 300
        f.seek(where)
        f.write(bytes([data[where] ^ 0x40]))


def test_damage_is_an_error_of_prefetch_check_and_copies(shm_path, way):
    x = walk()
    with ps.open(shm_path) as s:
        s["x"] = x
        s.freeze("x")
        damage(s, x)
        with pytest.raises(ps.CorruptError, match="'x' is damaged"):
            s.prefetch("x")
        report = s.check()
        assert not report.ok and report.errors[0][0] == "x"
        with pytest.raises(ps.CorruptError):
            s.thaw("x")
        if way == "eager":
            with pytest.raises(ps.CorruptError):
                s["x"]
        else:
            code = "a = ps.open(sys.argv[1], 'r')['x']\nos.kill(os.getpid(), 0)\na.sum()"
            r = subprocess.run([sys.executable, "-c", "import sys, os, pagestone as ps\n" + code, s.path], timeout=60)
            assert r.returncode == -signal.SIGBUS
        s.prefetch("x", np.s_[:1000])


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_commands_freeze_and_thaw(shm_path, capsys):
    with ps.open(shm_path, history=0) as s:
        s["a/x"] = walk()
        s["a/y"] = walk(seed=1)
        s["z"] = 5

    def run(*args: str, code: int = 0) -> str:
        capsys.readouterr()
        assert _cli.main([*args]) == code
        return capsys.readouterr().out if code == 0 else capsys.readouterr().err

    assert "is a group" in run("freeze", shm_path, "a", code=1)
    assert "no key" in run("freeze", shm_path, "none", code=1)
    d = json.loads(run("freeze", shm_path, "a/x", "--json"))
    assert d["keys"] == {"a/x": d["saved"]} and d["saved"] > N // 2 and 0 < d["compressed"] < N
    assert run("freeze", shm_path).startswith("3 keys: ")
    info = json.loads(run("info", shm_path, "a/x", "--json"))
    assert info["cold"] == info["bytes"] == N and info["stored"] < N // 2
    assert "cold" in run("info", shm_path, "a/x") and "cold" not in run("info", shm_path, "z")
    assert "compressed" in run("info", shm_path)
    assert json.loads(run("thaw", shm_path, "-r", "a", "--json"))["raw"] == 2 * N
    assert json.loads(run("thaw", shm_path, "--json"))["raw"] == 0
