"""Handles: small, whatever they name; loaded by any process; alive as long as promised."""

from __future__ import annotations

import concurrent.futures
import copy
import io
import multiprocessing as mp
import os
import pickle
import subprocess
import sys
import time
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pagestone as ps
import pytest

START_METHODS = ["fork", "spawn", "forkserver"]


def total(a):
    """(sum, store's path, key, version, type's name, writeable): what a worker sees."""
    return float(np.asarray(a, float).sum()), a.store.path, a.key, a.version, type(a).__name__, a.flags.writeable


def address(a):
    return a.__array_interface__["data"][0]


def feed(queue, conn, a):
    queue.put(total(a))
    conn.send(a[::2])
    conn.close()


def echo(queue_in, queue_out):
    while (a := queue_in.get()) is not None:
        queue_out.put((total(a), a))


# --- size ------------------------------------------------------------------------------------------------------------------

LONG = "/".join(["k" * 200] * 5)[:1024]


@pytest.mark.parametrize("key", ["x", "a/b/c", LONG, "é" * 100], ids=["short", "nested", "1024", "utf8"])
@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("named", [False, True])
def test_at_most_300_bytes_and_the_path(shm_path, key, protocol, named):
    s = ps.open(shm_path if named else None)
    s[key] = np.arange(2.0**16).reshape((4,) * 8)
    s.create("big/" + key[:1000], (2**7, 2**6) * 3, "u1")
    s["wide/x"] = np.zeros(100, [(f"field{i}", "f8") for i in range(40)])
    room = 300 + (len(os.fsencode(shm_path)) if named else 0)
    views = [
        s[key], s[key][::-1, ::-1, 1:, :, ::2, ::-2, :, ::-1], s[key].transpose(7, 0, 6, 1, 5, 2, 4, 3)[1:, ::2],
        np.broadcast_to(s[key][0, 0, 0, 0, 0, 0, 0, 0, ...], (2**10, 2**6, 2**6, 2**6, 2**6, 2**6, 2**6, 2**6), subok=True),
        s["big/" + key[:1000]], s["big/" + key[:1000]].T[::-1, ::-1, ::-1], s["wide/x"], s["wide/x"][::-3], s["wide/x"]["field7"],
    ]  # fmt: skip
    for v in views:
        assert v.key is not None
        h = pickle.dumps(v, protocol)
        assert len(h) <= room
        w = pickle.loads(h)
        assert w.key == v.key and w.dtype == v.dtype and w.shape == v.shape
        assert w.nbytes > 10**9 or np.array_equal(w, v)


def test_anonymous_handles_with_many_members_stay_small(store):
    store[LONG] = np.arange(2.0**16).reshape((4,) * 8)
    ctx = mp.get_context("fork")
    go = ctx.Event()
    workers = [ctx.Process(target=go.wait) for _ in range(10)]
    for p in workers:
        p.start()
    v = store[LONG].transpose(7, 0, 6, 1, 5, 2, 4, 3)[1:, ::-2, ::-1, ::-1]
    h = pickle.dumps(v)
    go.set()
    for p in workers:
        p.join()
    assert len(h) <= 300
    np.testing.assert_array_equal(pickle.loads(h), v)


def test_a_view_by_another_structured_dtype_adds_its_description(store):
    store["x"] = np.arange(400.0)
    v = store["x"].view([(f"f{i}", "f4") for i in range(20)])
    h = pickle.dumps(v)
    assert len(h) > 300
    w = pickle.loads(h)
    assert w.dtype == v.dtype and w.tobytes() == v.tobytes()


def test_field_views_of_a_structured_array(store):
    store["x"] = np.array([(1, 2.5, b"abc")] * 10, [("a", "i2"), ("b", "f8"), ("c", "S3")])
    for v in (store["x"]["b"], store["x"][["a", "c"]], store["x"][::2]["c"]):
        w = pickle.loads(pickle.dumps(v))
        assert w.dtype == v.dtype
        np.testing.assert_array_equal(np.asarray(w), np.asarray(v))


# --- what travels -----------------------------------------------------------------------------------------------------------


def test_loading_maps_the_same_pages(store):
    store["x"] = np.arange(1_000_000.0)
    v = pickle.loads(pickle.dumps(store["x"]))
    assert address(v) == address(store["x"])


def test_asarray_pickles_the_bytes(store):
    store["x"] = np.arange(1000.0)
    h = pickle.dumps(np.asarray(store["x"]))
    assert len(h) > 8000
    store.close()
    assert pickle.loads(h).sum() == 499500


def test_copies_are_private(store):
    store["x"] = np.arange(5)
    for f in (copy.copy, copy.deepcopy):
        y = f(store["x"])
        y[0] = 9
        assert store["x"][0] == 0
        assert not isinstance(y, ps.Array) or y.store is None
    assert copy.deepcopy({"a": store["x"]})["a"].tolist() == [0, 1, 2, 3, 4]


def test_protocol_5_with_a_callback_still_sends_a_handle(store):
    store["x"] = np.arange(10_000.0)
    buffers = []
    h = pickle.dumps([store["x"], store["x"].copy()], protocol=5, buffer_callback=buffers.append)
    a, b = pickle.loads(h, buffers=buffers)
    assert a.key == "x" and b.sum() == a.sum()
    assert sum(x.raw().nbytes for x in buffers) <= 80_000


def test_forking_pickler(store):
    store["x"] = np.arange(10_000.0)
    for obj in (store["x"], store["x"] + 1, store["x"].copy(), [store["x"][3:]]):
        back = pickle.loads(ForkingPickler.dumps(obj))
        np.testing.assert_array_equal(back, obj)
    buf = io.BytesIO()
    ForkingPickler(buf, 4).dump(store["x"])
    assert len(buf.getvalue()) <= 300


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("named", [False, True])
def test_queues_pipes_and_process_arguments(shm_path, method, named):
    ctx = mp.get_context(method)
    s = ps.open(shm_path if named else None)
    s["x"] = np.arange(100_000.0)
    want = (float(np.arange(100_000.0).sum()), s.path, "x", 1, "Array", False)
    queue, (a, b) = ctx.Queue(), ctx.Pipe()
    p = ctx.Process(target=feed, args=(queue, b, s["x"]))
    p.start()
    b.close()
    assert queue.get(timeout=20) == want
    got = a.recv()
    assert got.key == "x" and got[1] == 2.0
    p.join(60)
    assert p.exitcode == 0
    q_in = ctx.Queue()
    p = ctx.Process(target=echo, args=(q_in, queue))
    p.start()
    for i in range(5):
        q_in.put(s["x"][i * 1000 :])
        t, v = queue.get(timeout=20)
        assert t[0] == s["x"][i * 1000 :].sum()
        assert v.shape == (100_000 - i * 1000,)
    q_in.put(None)
    p.join(60)
    assert p.exitcode == 0


@pytest.mark.parametrize("method", START_METHODS)
def test_pools(method):
    ctx = mp.get_context(method)
    s = ps.open()
    s["x"] = np.arange(1000.0)
    shared = ps.share(np.ones(5000))
    parts = [s["x"][i * 100 : (i + 1) * 100] for i in range(10)]
    with ctx.Pool(2) as pool:
        assert [r[0] for r in pool.map(total, parts)] == [float(p.sum()) for p in parts]
        assert pool.apply(total, (shared,)) == (5000.0, None, None, shared.version, "Array", False)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=ctx) as ex:
        assert [r[0] for r in ex.map(total, parts)] == [float(p.sum()) for p in parts]
        assert ex.submit(double, s["x"]).result(60).tolist() == (np.arange(1000.0) * 2).tolist()
        assert ex.submit(put, s, "y", s["x"][:3]).result(60) == 2
    assert s["y"].tolist() == [0.0, 1.0, 2.0]


def double(a):
    return a * 2


def put(s, k, v):
    s[k] = v
    return s.version


def run_python(code: str, *args: str, stdin: bytes = b"") -> str:
    env = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(ps.__file__))}
    r = subprocess.run([sys.executable, "-c", code, *args], input=stdin, capture_output=True, env=env, timeout=120)
    assert r.returncode == 0, r.stderr.decode()
    return r.stdout.decode()


@pytest.mark.parametrize("named", [False, True])
def test_an_unrelated_process(shm_path, named):
    s = ps.open(shm_path if named else None)
    s["x"] = np.arange(1000.0)
    s["s"] = np.arange(5)
    code = """
import pickle, sys
a, small, store, snapshot, group = pickle.load(sys.stdin.buffer)
assert a.key == "x" and a.sum() == 2004, a
assert small.tolist() == [0, 1, 2, 3, 4]
assert snapshot["x"].sum() == 499500 and snapshot.version == 2
store["from/child"] = a
print(group["child"][0], store.version)
"""
    h = pickle.dumps((s["x"][3:1000:332], s["s"], s, s.snapshot(), s.group("from")))
    assert run_python(code, stdin=h).split() == ["3.0", "3"]
    assert s["from/child"].sum() == 2004


def test_handles_of_stores_are_stores_of_their_own(shm_path):
    s = ps.open(shm_path)
    a, b = (pickle.loads(pickle.dumps(s)) for _ in range(2))
    a["x"] = 1
    a.close()
    assert b["x"] == 1 and s["x"] == 1
    r = pickle.loads(pickle.dumps(ps.open(shm_path, "r", timeout=3)))
    assert r.mode == "r"
    with pytest.raises(ps.ReadOnlyError):
        r["y"] = 1
    n = ps.open(shm_path, allow_pickle=False)
    assert pickle.loads(pickle.dumps(n)).allow_pickle is False


def test_handles_do_not_survive_the_replacement_of_their_store(shm_path):
    s = ps.open(shm_path)
    s["x"] = np.arange(100_000)
    h, hs = pickle.dumps(s["x"]), pickle.dumps(s)
    new = ps.open(shm_path, "w")
    new["x"] = np.zeros(100_000, int)
    code = """
import pagestone as ps, pickle, sys
for h in pickle.load(sys.stdin.buffer):
    try:
        pickle.loads(h)
    except ps.StaleStoreError as e:
        print("replaced" in str(e))
"""
    assert run_python(code, stdin=pickle.dumps([h, hs])).split() == ["True", "True"]
    np.testing.assert_array_equal(s["x"], np.arange(100_000))


# --- how long they live -------------------------------------------------------------------------------------------------------


def overwrite(s, n=3):
    for i in range(n):
        s["x"] = np.full(100_000, i)
    s.gc()


def test_a_lease_keeps_the_version(shm_path):
    s = ps.open(shm_path, history=0)
    s["x"] = np.arange(100_000)
    h = pickle.dumps(s["x"])
    overwrite(s)
    for _ in range(3):  # however often it is loaded
        assert pickle.loads(h)[5] == 5
        overwrite(s)
    assert h and run_python("import sys, pickle; print(pickle.load(sys.stdin.buffer)[7])", stdin=h).strip() == "7"


def test_an_expired_lease_says_so(shm_path):
    s = ps.open(shm_path, history=0)
    for data in (np.arange(100_000), np.arange(3)):
        s["x"] = data
        with ps.lease(0.05):
            h = pickle.dumps(s["x"])
            hs = pickle.dumps(s.snapshot())
        time.sleep(0.4)
        overwrite(s)
        with pytest.raises(ps.VersionExpiredError, match=r"lease.*ps\.lease"):
            pickle.loads(h)
        with pytest.raises(ps.VersionExpiredError, match="lease"):
            pickle.loads(hs)


def test_a_generation_counted_again_is_not_the_version_that_was_sent(store):
    """After a power loss generations may be counted again; version numbers are not."""
    store["x"] = np.arange(1000)
    load, arguments = store.snapshot().__reduce__()
    assert load(*arguments).version == store.version
    with pytest.raises(ps.VersionExpiredError):
        load(*arguments[:-1], store.version - 1)


@pytest.mark.parametrize("data", [np.arange(100_000), np.arange(3)], ids=["large", "small"])
def test_a_view_of_the_sender_keeps_the_version_past_the_lease(shm_path, data):
    s = ps.open(shm_path, history=0)
    s["x"] = data
    x = s["x"]
    with ps.lease(0):
        h = pickle.dumps(x)
    overwrite(s)
    assert pickle.loads(h)[2] == 2
    part = x[1:]
    del x
    overwrite(s)
    assert pickle.loads(h)[2] == 2
    del part
    for _ in range(5):
        time.sleep(0.2)  # a lease is rounded up
        overwrite(s)
        try:
            pickle.loads(h)
        except ps.VersionExpiredError:
            return
    pytest.fail("the version is still there")


def test_a_lease_survives_the_sender(shm_path):
    s = ps.open(shm_path, history=0)
    code = """
import sys, pickle, numpy as np, pagestone as ps
s = ps.open(sys.argv[1])
s["x"] = np.arange(100_000)
sys.stdout.write(pickle.dumps(s["x"]).hex())
"""
    h = bytes.fromhex(run_python(code, shm_path))
    overwrite(s)
    assert pickle.loads(h)[9] == 9


@pytest.mark.parametrize("bad", [-1, float("nan"), "x", None])
def test_bad_leases(bad):
    with pytest.raises((ValueError, TypeError)):
        ps.lease(bad)


def test_lease_is_undone_at_the_end_of_a_block():
    from pagestone import _handles

    before = _handles._lease_ns
    with ps.lease(5):
        assert _handles._lease_ns == 5 * 10**9
        with ps.lease(float("inf")):
            assert _handles._lease_ns > 10**18
    assert _handles._lease_ns == before


def test_an_array_of_a_closed_store_cannot_be_passed_on():
    s = ps.open()
    s["x"] = np.arange(5)
    x = s["x"]
    s.close()
    assert x.sum() == 10
    with pytest.raises(ValueError, match=r"closed.*np\.asarray"):
        pickle.dumps(x)


def test_damaged_handles_raise(store):
    store["x"] = np.arange(1000.0)
    f, (handle, payload) = store["x"][::2].__reduce_ex__(4)
    rng = np.random.default_rng(1)
    for i in range(300):
        bad = bytearray(payload)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        if i % 5 == 0:
            del bad[rng.integers(len(bad)) :]
        try:
            a = f(handle, bytes(bad))
        except (ps.Error, ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError):
            continue
        assert a.shape is not None
        if a.nbytes < 10**6:
            a.tobytes()


# --- unnamed arrays ---------------------------------------------------------------------------------------------------------


def test_share_is_unnamed_and_read_only():
    a = np.asfortranarray(np.arange(12_000.0).reshape(3, 4000))
    x = ps.share(a)
    assert type(x) is ps.Array and x.key is None and not x.flags.writeable
    assert x.flags.f_contiguous and x.store is not None
    a[0] = -1
    assert x[0, 1] == 1 and address(x) == address(pickle.loads(pickle.dumps(x)))
    y = pickle.loads(pickle.dumps(x[1:]))
    assert y.key is None and address(y) == address(x[1:])
    z = pickle.loads(pickle.dumps(y))
    np.testing.assert_array_equal(z, x[1:])
    for other in (ps.share(5), ps.share([1, 2]), ps.share(np.zeros(0)), ps.share(np.zeros(3, [("a", "i2")]))):
        assert other.key is None
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(other)), other)
    assert list(x.store) == []


def test_shared_memory_is_given_back_with_the_last_view():
    x = ps.share(np.zeros(1))
    s = x.store
    s.gc()
    before = s.stat()
    kept = [ps.share(np.ones(300_000)) for _ in range(5)]
    assert s.stat().pinned + s.stat().live - before.live - before.pinned > 5 * 2_400_000 * 0.99
    part = kept[2][10:20]
    del kept
    s.gc()
    assert part.sum() == 10
    del part
    s.gc()
    after = s.stat()
    assert after.pinned + after.live <= before.pinned + before.live + 100_000
    piece = ps.share(np.ones(300_000))[10:20]
    plain = np.asarray(piece)
    with_it = s.stat().pinned
    del piece
    assert s.stat().pinned == with_it
    del plain  # nobody calls gc() for it
    assert s.stat().pinned <= with_it - 2_400_000
    for _ in range(50):
        ps.share(np.ones(300_000))
    assert s.stat().file_size < 200_000_000


# --- pins that move --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [20, 128, 4096], ids=["inline", "1KB", "32KB"])
def test_a_kept_view_keeps_its_own_pages_only(shm_path, n):
    s = ps.open(shm_path, size=24 * 2**20, history=0)
    s["small"] = np.arange(float(n))
    s["big"] = np.zeros(2**20)
    kept = [s["small"]]
    version = kept[0].version
    for i in range(50):
        s["big"] = np.full(2**20, i, "f8")  # 8 MB of 24
        if i % 10 == 5:
            kept.append(s["small"][2:])
    s.gc()
    assert kept[0].version == version and all(x[-1] == n - 1 for x in kept)
    (reader,) = s.readers()
    assert reader.versions[-1] > version + 40 and reader.bytes < 2**20
    assert s.stat().pinned < 2**20
    assert s.check().ok


def test_a_private_array_moves_like_others(shm_path):
    s = ps.open(shm_path, size=24 * 2**20, history=0)
    s["small"] = np.arange(4096.0)
    x = s.private("small")
    x[0] = -1
    for i in range(20):
        s["big"] = np.full(2**20, i, "f8")
    assert x[0] == -1 and np.array_equal(x[1:], np.arange(1, 4096.0))


def test_the_handle_of_a_view_that_moved(shm_path):
    s = ps.open(shm_path, history=0)
    s["x"] = np.arange(1000.0)
    s["other"] = 1
    x = s["x"]
    version = x.version
    for i in range(5):
        s["other"] = i
        s.gc()
    assert x._prov.gen > version
    with ps.lease(0):
        h = pickle.dumps(x[::3])
    assert len(h) <= 300 + len(os.fsencode(shm_path))
    gen = x._prov.gen
    s["x"] = np.zeros(3)
    for i in range(5):
        s["other"] = i
        s.gc()
    assert x._prov.gen == gen  # the handle is good as long as this view is
    code = "import sys, pickle; x = pickle.load(sys.stdin.buffer); print(x.sum(), x.version, x.key, pickle.loads(pickle.dumps(x)).version)"
    out = subprocess.run([sys.executable, "-c", code], input=h, capture_output=True, check=True).stdout.split()
    assert out == [str(np.arange(1000.0)[::3].sum()).encode(), str(version).encode(), b"x", str(version).encode()]
    y = pickle.loads(h)
    del x
    assert y.version == version and y[1] == 3
    assert s.check().ok


def test_an_array_that_moved_is_assigned_without_a_copy(shm_path):
    s = ps.open(shm_path, history=0)
    s["x"] = np.arange(2.0**17)
    x = s["x"]
    for i in range(5):
        s["other"] = i
        s.gc()
    before = s.stat().live
    s["y"] = x
    assert s.stat().live - before < 2**18 and np.array_equal(s["y"], x)
    assert s.check().ok
