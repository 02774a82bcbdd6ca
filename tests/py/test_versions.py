"""Versions: at, tag, log, diff, revert, wait; history; statistics, readers, upkeep; stores on disk."""

from __future__ import annotations

import datetime as dt
import os
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pagestone as ps
import pytest


def test_each_commit_is_one_version(store):
    assert (store.version == 0 and store.versions == [0]) or store.versions == []
    for i in range(5):
        store["a"] = i
        assert store.version == i + 1
    store["a"] = [4]
    assert [store.at(v)["a"] for v in (1, 3, 5)] == [0, 2, 4]
    assert store.at(-1)["a"] == [4] and store.at(-2)["a"] == 4
    assert store.versions[-6:] == [1, 2, 3, 4, 5, 6]
    store.tag("t")
    store.gc()
    store.compact()
    assert store.version == 6
    store.clear()
    store.clear()
    store.update({})
    assert store.version == 7


def test_snapshots_never_change(store):
    store["x"] = np.zeros(10_000)
    snap = store.snapshot()
    x = snap["x"]
    for i in range(20):
        with store.begin() as t:
            t["x"][:] = i + 1
    assert snap["x"].sum() == 0 and x.sum() == 0 and snap.version == 1
    with snap as same:
        assert same is snap and not snap.closed
    assert snap.closed
    snap.close()
    assert x.sum() == 0
    assert store["x"].sum() == 200_000


def test_snapshot_is_a_mapping(store):
    store.update(a=1, b=[2])
    snap = store.snapshot()
    assert dict(snap) == {"a": 1, "b": [2]} and snap == store and len(snap) == 2 and "a" in snap
    assert snap.get("c", 5) == 5 and list(snap.keys()) == ["a", "b"] and list(snap.values()) == [1, [2]]
    again = pickle.loads(pickle.dumps(snap))
    assert again == snap and again.version == snap.version
    assert snap.time.tzinfo is not None
    assert abs((snap.time - dt.datetime.now(dt.timezone.utc)).total_seconds()) < 60


def test_at_a_time(store):
    times = []
    for i in range(4):
        store["a"] = i
        times.append(store.snapshot().time)
        time.sleep(0.002)
    for i, when in enumerate(times):
        assert store.at(when)["a"] == i
        assert store.at(when.astimezone().replace(tzinfo=None))["a"] == i
        assert store.at(when + dt.timedelta(microseconds=1))["a"] == i
        if i:
            assert store.at(when - dt.timedelta(microseconds=1))["a"] == i - 1
        assert store.at(when.astimezone(dt.timezone(dt.timedelta(hours=5))))["a"] == i
    assert store.at(dt.datetime.now() + dt.timedelta(days=1))["a"] == 3
    with pytest.raises(ValueError):
        store.at(dt.datetime(2000, 1, 1))


def test_times_far_away_and_of_pandas(store):
    pd = pytest.importorskip("pandas")
    store["a"] = 1
    utc = dt.timezone.utc
    for late in (dt.datetime(2300, 1, 1), dt.datetime.max, dt.datetime.max.replace(tzinfo=utc)):
        assert store.at(late).version == 1
    for early in (dt.datetime(1960, 1, 1), dt.datetime.min, dt.datetime.min.replace(tzinfo=utc)):
        with pytest.raises(ValueError, match="did not exist"):
            store.at(early)
    now = pd.Timestamp(store.at(1).time)
    assert store.at(now).version == store.at(now.tz_localize(None)).version == 1
    assert store.at(now - pd.Timedelta(1, "us")).version == 0
    with pytest.raises(ValueError, match="NaT"):
        store.at(pd.NaT)


def test_a_time_in_a_gap_is_expired():
    s = ps.open(history=1)
    s["a"] = 0
    s.tag("keep")
    time.sleep(0.002)
    s["a"] = 1
    gone = s.snapshot().time
    for i in range(5):
        time.sleep(0.002)
        s["a"] = i
    assert s.at("keep")["a"] == 0
    with pytest.raises(ps.VersionExpiredError):
        s.at(gone)


def test_tags(store):
    for i in range(3):
        store["a"] = i
    store.tag("new")
    store.tag("one", 1)
    store.tag("é" * 100, -2)
    store.tag("again", "one")
    store.tag("snap", store.at(1))
    assert store.tags == {"new": 3, "one": 1, "é" * 100: 2, "again": 1, "snap": 1}
    assert store.at("one")["a"] == 0 and store.at("new").version == 3
    with pytest.raises(KeyError, match="untag it first"):
        store.tag("one", 2)
    store.untag("one")
    with pytest.raises(KeyError):
        store.untag("one")
    with pytest.raises(KeyError):
        store.at("one")
    for bad in ("", "a/b", "1a", "-a", "x" * 201, "a\0b"):
        with pytest.raises(ValueError):
            store.tag(bad)
    with pytest.raises(TypeError):
        store.tag(5)


def test_history_keeps_what_it_says():
    for history, n in ((0, 0), (5, 5), ("5", 5)):
        s = ps.open(history=history)
        for i in range(30):
            s["a"] = i
        s.tag("t")
        assert len(s.versions) in (n, n + 1), history
        assert s.versions[-1] == 30
        with pytest.raises(ps.VersionExpiredError):
            s.at(10)
    s = ps.open(history="all")
    for i in range(300):
        s["a"] = i
    assert len(s.versions) >= 300 and s.at(7)["a"] == 6
    s = ps.open(history="1MB")
    for i in range(30):
        s["a"] = np.full(50_000, i)
    assert 1 < len(s.versions) < 8
    s = ps.open(history="1h")
    for i in range(50):
        s["a"] = i
    assert s.at(1)["a"] == 0


def test_tagged_and_pinned_versions_outlive_history():
    s = ps.open(history=0)
    s["x"] = np.arange(100_000)
    s.tag("first")
    s["x"] = np.zeros(100_000)
    snap = s.snapshot()
    for i in range(10):
        s["x"] = np.full(100_000, i)
    s.gc()
    np.testing.assert_array_equal(s.at("first")["x"], np.arange(100_000))
    assert not snap["x"].any()
    s.untag("first")
    snap.close()
    s["x"] = np.ones(100_000)
    s.gc()
    st = s.stat()
    assert st.history + st.pinned + st.live < 3_000_000


def test_log(store):
    store["a"] = 1
    store["g/b"] = np.arange(100_000)
    with store.begin(message="both") as t:
        t["a"] = 2
        del t["g/b"]
    log = store.log()
    version, when, *_ = log[0]
    assert version == 3 and when == log[0].time and not log[0].keys_truncated and pickle.loads(pickle.dumps(log)) == log
    assert [c.version for c in log][:3] == [3, 2, 1]
    assert log[0].message == "both" and sorted(log[0].keys) == ["a", "g/b"] and log[1].message is None
    assert (log[0].pid == os.getpid() and "python" in log[0].command) or log[0].command
    assert log[1].bytes_written >= 800_000
    assert log[0].time >= log[1].time >= log[2].time
    assert [c.version for c in store.log("g")] == [3, 2] == [c.version for c in store.log("g/b")]
    assert [c.version for c in store.log("a")] == [3, 1]
    assert store.log("nothing") == []


def test_diff(store):
    store["x"] = np.zeros((1000, 100))
    store["f"] = np.asfortranarray(np.zeros((10, 10)))
    store["o"], store["gone"] = (1,), 1
    v = store.version
    with store.begin() as t:
        t["x"][5, 7:9] = 1
        t["x"][999, 99] = 1
        t["f"][3, 0] = 1
        t["o"], t["new"] = (2,), 1
        del t["gone"]
    d = store.diff(v, -1)
    assert d.added == {"new"} and d.removed == {"gone"}
    assert d.changed == {"x": [(507, 509), (99_999, 100_000)], "f": [(3, 4)], "o": None}
    back = store.diff(-1, v)
    assert back.added == {"gone"} and back.removed == {"new"} and back.changed == d.changed
    assert store.diff(v, v) == (set(), set(), {}) and store.diff(store.snapshot(), -1) == (set(), set(), {})
    store["x"] = np.zeros((1000, 100))
    assert store.diff(v, -1).changed["x"] is None


def test_diff_leaves_out_what_was_brought_back(store):
    store["x"], store["big"], store["o"] = np.arange(10), np.arange(200_000.0), (1, 2)
    v = store.version
    with store.begin() as t:
        t["x"][3], t["big"][7] = -1, -1
        t["o"] = (3,)
    for key in ("x", "big", "o"):
        assert key in store.diff(v, -1).changed
        store.revert(key, v)
        assert key not in store.diff(v, -1).changed and key not in store.diff(-1, v).changed
    assert store.diff(v, -1) == (set(), set(), {})
    del store["big"]
    assert store.diff(v, -1).removed == {"big"}
    store.revert("big", v)
    store["x"] = store.at(v)["x"]
    assert store.diff(v, -1) == (set(), set(), {})
    with store.begin() as t:
        t["big"][100_000] = 0
    assert store.diff(v, -1) == (set(), set(), {"big": None})
    store["big"] = store["big"].astype("f4")
    assert store.diff(v, -1).changed == {"big": None}


def test_create_returns_the_array_that_it_made(store, monkeypatch):
    commit = ps.Transaction.commit

    def and_somebody_deletes_it(t, message=None):
        version = commit(t, message)
        monkeypatch.undo()
        del store["x"]
        return version

    monkeypatch.setattr(ps.Transaction, "commit", and_somebody_deletes_it)
    assert store.create("x", 3).version == 1 and "x" not in store


def test_revert(store):
    store["x"] = np.arange(200_000.0)
    store["o"] = (1,)
    with store.begin() as t:
        t["x"][0] = -1
        t["o"] = (2,)
    before = store.stat().live
    assert store.revert("x", 1) == 4
    assert store["x"][0] == 0 and store["o"] == (2,)
    assert store.stat().live - before < 400_000
    del store["o"]
    store.revert("o", 2)
    assert store["o"] == (1,)
    with pytest.raises(KeyError):
        store.revert("nothing", 1)
    with store.begin() as t:
        t["x"][1] = -1
    assert store.at(1)["x"][1] == 1 and store["x"][1] == -1 and store.check().ok


# --- waiting ---------------------------------------------------------------------------------------------------------------------


def test_wait(store):
    assert store.wait(timeout=0.01) is None
    store["a"] = 1
    assert store.wait(0, timeout=5) == 1
    got = []
    th = threading.Thread(target=lambda: got.append(store.wait(timeout=20)))
    th.start()
    time.sleep(0.1)
    store["a"] = 2
    th.join(20)
    assert got == [2]
    got.clear()
    th = threading.Thread(target=lambda: got.append(store.wait(key="b", timeout=20)))
    th.start()
    time.sleep(0.1)
    store["a"] = 3
    time.sleep(0.1)
    assert not got
    store["b"] = 1
    th.join(20)
    assert got == [4]
    assert store.wait(key="b", timeout=0.01) is None
    assert store.wait(2, key="a", timeout=1) == 4
    for arguments, error in (({"key": 5}, TypeError), ({"version": 1.5}, TypeError), ({"version": "0"}, TypeError)):
        with pytest.raises(error):
            store.wait(timeout=0.01, **arguments)
    for version in (-1, 2**64 + 3):
        with pytest.raises(ValueError, match="versions count from 0"):
            store.wait(version, timeout=0.01)
    with pytest.raises(TypeError, match="keys are str"):
        store.log(5)


@pytest.mark.parametrize("key", [None, "x"])
def test_closing_a_store_ends_the_waits_on_it(key):
    s = ps.open()
    with pytest.raises(ValueError, match="closed"):
        closer = threading.Timer(0.1, s.close)
        closer.start()
        s.wait(key=key, timeout=60)
    closer.join()


def test_wait_for_another_process(path):
    s = ps.open(path)
    code = "import sys, time, pagestone as ps; s = ps.open(sys.argv[1]); time.sleep(0.2); s['x'] = 5"
    p = subprocess.Popen([sys.executable, "-c", code, path])
    assert s.wait(key="x", timeout=30) == 1
    assert s["x"] == 5
    r = ps.open(path, "r")
    assert r.wait(0, timeout=5) == 1
    assert p.wait(30) == 0


# --- upkeep ------------------------------------------------------------------------------------------------------------------------


def test_readers_name_who_pins_what(store):
    store["x"] = np.arange(100_000)
    x = store["x"]
    store["x"] = np.zeros(100_000)
    me = [r for r in store.readers() if r.pid == os.getpid()]
    assert len(me) == 1 and 1 in me[0].versions and me[0].command
    assert (dt.datetime.now(dt.timezone.utc) - me[0].since).total_seconds() < 3600
    del x


def test_statistics_add_up(store):
    st = store.stat()
    assert st.objects == 0 and st.compressed == 0 and st.leaked == 0
    store["x"] = np.zeros(1_000_000) + 1
    st = store.stat()
    assert st.objects == 1 and 8_000_000 <= st.live < 9_000_000 and st.bytes_copied >= 8_000_000
    assert st.resident >= 8_000_000
    store.copy("x", "y")
    assert store.stat().bytes_shared >= 8_000_000
    store["x"] = 1
    del store["y"]
    st = store.stat()
    assert st.history >= 8_000_000 and st.live < 1_000_000


def test_check_is_ok_and_counts(store):
    for i in range(100):
        store[f"k{i}"] = np.full(i * 100, i)
    r = store.check()
    assert r.ok and r.errors == [] and r.objects >= 100 and r.leaked == 0
    assert store.check(data=False).ok


def test_compact_gives_the_file_back(shm_path):
    s = ps.open(shm_path, history=0)
    for i in range(60):
        s[f"k{i}"] = np.full(100_000, i)
    for i in range(0, 60, 2):
        del s[f"k{i}"]
    kept = s["k31"]
    s.gc()
    s.compact()
    s.gc()
    assert all((s[f"k{i}"] == i).all() for i in range(1, 60, 2)) and (kept == 31).all()
    assert s.check().ok
    del kept
    s.compact()
    s.gc()
    assert all((s[f"k{i}"] == i).all() for i in range(1, 60, 2))
    assert s.stat().resident < 0.9 * 60 * 800_000


# --- settings and reopening -----------------------------------------------------------------------------------------------------


def test_settings_are_kept_and_changed_for_all(path):
    with ps.open(path, size="1GB", durability="ordered", history=7) as s:
        i = s.info()
        assert i["size"] == 10**9 and i["durability"] == "ordered" and i["history"] == 7
        with ps.open(path) as t:
            assert t.info()["size"] == 10**9 and t.info()["history"] == 7
        with ps.open(path, size="2GiB", durability="none", history="1h"):
            pass
        with ps.open(path) as t:
            i = t.info()
            assert i["size"] == 2 * 2**30 and i["durability"] == "none" and i["history"] == "3600s"


def test_defaults_by_medium(path):
    with ps.open(path) as s:
        kind = subprocess.run(
            ["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True
        ).stdout.strip()
        assert (s.info()["file_system"] == "tmpfs") == (kind == "tmpfs")  # /dev/shm may be a directory of the disk
        assert s.info()["durability"] == ("none" if kind == "tmpfs" else "full")
        assert s.info()["history"] == "default"


@pytest.mark.parametrize("durability", ["none", "ordered", "full"])
def test_reopening_finds_everything(path, durability):
    with ps.open(path, durability=durability) as s:
        s["x"] = np.arange(50_000.0)
        s["o"] = {"a": (np.arange(3),)}
        with s.begin() as t:
            t["x"][7] = -7
        s.tag("t")
    for mode in ("r", "r+", "a"):
        with ps.open(path, mode) as s:
            assert s["x"][7] == -7 and s["x"].sum() == np.arange(50_000.0).sum() - 14
            assert s["o"]["a"][0].tolist() == [0, 1, 2]
            assert s.version == 3 and s.tags == {"t": 3} and s.at(2)["x"][7] == 7 and s.mode == mode
            assert s.check().ok


def test_modes(path):
    with pytest.raises(FileNotFoundError):
        ps.open(path, "r+")
    with ps.open(path, "x") as s:
        s["a"] = 1
    with ps.open(path, "w") as s:
        assert len(s) == 0
        s["b"] = 1
    with ps.open(path, "a") as s:
        assert list(s) == ["b"]
    with ps.open(os.fsencode(path)) as s, ps.open(__import__("pathlib").Path(path)) as t:
        assert s == t
    for mode in ("a", "w", "x"):
        with ps.open(None, mode) as s:
            s["a"] = 1
            assert s.path is None
    assert "r+" in repr(ps.open(path, "r+"))
    for name in ("control", "pages"):
        assert os.path.exists(os.path.join(path, name))


def test_a_sparse_terabyte_on_disk_opens_at_once(path, kernel_tells_dirty_pages):
    with ps.open(path) as s:
        s.create("big", (2**20, 2**17), "f8")
    with ps.open(path) as s:
        start = time.perf_counter()
        a = s["big"]
        assert time.perf_counter() - start < 0.5
        assert a.nbytes == 2**40 and a[12345, 678] == 0
        with s.begin() as t:
            t["big"][2**20 - 1, 5] = 7
        assert s["big"][2**20 - 1, 5] == 7 and a[2**20 - 1, 5] == 0


def test_paths_that_are_not_utf8(shm_path):
    path = os.fsencode(shm_path) + b"-\xff.ps"
    with ps.open(path) as s:
        s["a"] = np.arange(5)
        assert os.fsencode(s.path) == path
        assert pickle.loads(pickle.dumps(s["a"])).tolist() == [0, 1, 2, 3, 4]
        assert pickle.loads(pickle.dumps(s))["a"][1] == 1


def test_overwriting_a_large_array_again_and_again_goes_round_in_the_same_memory() -> None:
    with ps.open() as s:
        a = np.ones(100_000_000 // 8)
        for _ in range(8):
            s["k"] = a
        before = s.stat().resident
        for _ in range(6):
            s["k"] = a
            assert s.stat().resident == before  # nothing punched, nothing faulted in anew
