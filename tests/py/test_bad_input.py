"""What bad input gets: one test for each line of docs/bad-input.md; each reads the message, which names the cure."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pagestone as ps
import pytest
from pagestone import _core

DOC = Path(__file__).parents[2] / "docs" / "bad-input.md"


def says(error: BaseException, *parts: str) -> None:
    text = str(error)
    for part in parts:
        assert re.search(part, text), f"{part!r} is not in {text!r}"
    assert "\n" not in text


def damage(path, offset, data):
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(data)


def in_child(fn):
    """fn() in a forked child; its exception's text, or what it returned, comes back."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            try:
                out = repr(fn())
            except BaseException as e:
                out = f"{type(e).__name__}: {e}"
            os.write(w, out.encode())
        finally:
            os._exit(0)
    os.close(w)
    with os.fdopen(r) as f:
        text = f.read()
    assert os.waitpid(pid, 0)[1] == 0
    return text


def test_object_dtypes_in_arrays(store):
    for call in (
        lambda: store.create("x", 3, object),
        lambda: store.begin().empty("x", 3, object),
        lambda: ps.share(np.array([None])),
    ):
        with pytest.raises(TypeError) as e:
            call()
        says(e.value, "holds Python objects", "pickles it|plain arrays")
    store["x"] = np.array([{"a": 1}], object)  # assigning pickles it
    assert store["x"][0] == {"a": 1}


def test_keys_that_are_not_str_or_too_long(store):
    with pytest.raises(TypeError) as e:
        store[1] = 1
    says(e.value, "keys are str, not int", r"use str\(key\)")
    with pytest.raises(ValueError) as e:
        store["x" * 2000] = 1
    says(e.value, "1,?024", "2000")
    with pytest.raises(ValueError) as e:
        store["x" * 300] = 1
    says(e.value, "250")
    with pytest.raises(ValueError) as e:
        store["a/../b"] = 1
    says(e.value, r"\.\.")
    with pytest.raises(ValueError) as e:
        store["a\0"] = 1
    says(e.value, "NUL")


def test_writing_to_a_snapshot(store):
    store["x"] = np.arange(3)
    snap = store.snapshot()
    for write in (lambda: snap.__setitem__("x", 1), lambda: snap.__delitem__("x"), lambda: snap.group("g").clear()):
        with pytest.raises(ps.ReadOnlyError) as e:
            write()
        says(e.value, r"begin\(\)", r"private\(key\)")
    with pytest.raises(ValueError):
        snap["x"][0] = 1


def test_use_after_close(store):
    store["x"] = 1
    snap = store.snapshot()
    store.close()
    store.close()
    for use in (
        lambda: store["x"], lambda: store.__setitem__("x", 1), lambda: "x" in store, lambda: len(store), lambda: list(store),
        store.begin, store.snapshot, lambda: store.version, store.stat, store.gc, store.check, store.log, lambda: store.wait(timeout=0),
        lambda: store.tag("a"), lambda: store.tags, lambda: store.versions, store.readers, lambda: store.create("y", 3), lambda: store.private("x"),
    ):  # fmt: skip
        with pytest.raises(ValueError) as e:
            use()
        says(e.value, "closed", "open it again")
        assert isinstance(e.value, ps.Error)
    assert snap["x"] == 1
    snap.close()
    with pytest.raises(ValueError) as e:
        snap["x"]
    says(e.value, "closed", r"snapshot\(\)")


def test_a_transaction_after_commit_or_abort(store):
    store["x"] = np.arange(3)
    for end, word in (("commit", "committed"), ("abort", "aborted")):
        t = store.begin()
        view = t["x"]
        getattr(t, end)()
        for use in (
            lambda: t["x"], lambda: t.__setitem__("x", 1), lambda: t.__delitem__("x"), lambda: "x" in t, lambda: list(t), lambda: len(t),
            lambda: t.create("y", 3), lambda: t.empty("y", 3), lambda: t.append("x", 1), lambda: t.resize("x", 5), t.savepoint,
            lambda: t.depends("x"), lambda: t.move("x", "y"), lambda: t.copy("x", "y"), t.commit, t.clear,
        ):  # fmt: skip
            with pytest.raises(ps.ClosedError) as e:
                use()
            says(e.value, word, "begin a new one")
        view[0] = 99  # harmless private memory
        t.abort()
    assert store["x"][0] == 0


def test_a_transaction_in_another_process(store):
    store["x"] = np.arange(3)
    with pytest.raises(TypeError) as e:
        __import__("pickle").dumps(store.begin())
    says(e.value, r"begin\(\) there")
    t = store.begin()
    view = t["x"]
    view[0] = 5
    for use in (lambda: t["x"], lambda: t.commit(), lambda: t.__setitem__("y", 1), lambda: list(t)):
        says(Exception(in_child(use)), "^ForkedError", "process", "begin")

    def child_writes():
        view[1] = 77
        return int(store["x"][1]), int(view[1])

    assert in_child(child_writes) == "(1, 77)"
    assert view.tolist() == [5, 1, 2]
    t.commit()
    assert store["x"].tolist() == [5, 1, 2]


def test_the_quota_is_full(path):
    s = ps.open(path, size="8MB", history=0)
    s["keep"] = np.arange(1000)
    n = 0
    with pytest.raises(ps.StoreFullError) as e:
        for n in range(20):
            s[f"k{n}"] = np.full(100_000, n)
    says(e.value, "quota of 8", "size=|history=|snapshots")
    assert isinstance(e.value, OSError) and e.value.errno == 28
    with pytest.raises(ps.StoreFullError), s.begin() as t:
        t.empty("huge", 10**8)
    with pytest.raises(ps.StoreFullError), s.begin() as t:
        t["k0"][:] = 1
        t["k1"][:] = 1
        t["more"] = np.zeros(800_000)
    assert n > 3 and s["keep"][999] == 999 and all((s[f"k{i}"] == i).all() for i in range(n))
    assert s.check().ok
    del t, s["k0"]
    s.gc()
    s["k0"] = np.zeros(90_000)
    s.close()
    with ps.open(path, size="100MB") as s:
        s["large"] = np.zeros(2_000_000)


def test_the_disk_is_full(tmp_path):
    """On a file system of 16 MB of its own; needs the right to mount one."""
    mount = tmp_path / "small"
    mount.mkdir()
    r = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(mount)], capture_output=True)
    if r.returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        code = """
import sys, numpy as np, pagestone as ps
s = ps.open(sys.argv[1], history=0)
s.create("sparse", 64_000_000)
assert s["sparse"].sum() == 0
s["keep"] = np.arange(1000)
try:
    for n in range(100):
        s[f"k{n}"] = np.full(100_000, n)
except ps.StoreFullError as e:
    print(e.errno, e)
t = s.begin()
try:
    t["sparse"][:10_000_000] = 1
    t.commit()
except ps.StoreFullError as e:
    t.abort()
    del t
    print(e.errno)
assert s["keep"][999] == 999 and all((s[f"k{i}"] == i).all() for i in range(n)), n
for i in range(n):
    del s[f"k{i}"]
s.gc()
s["again"] = np.arange(500_000)
assert s["again"][499_999] == 499_999 and s.check().ok
print("fine")
"""
        r = subprocess.run(
            [sys.executable, "-c", code, str(mount / "a.ps")], capture_output=True, text=True, timeout=60
        )
        assert r.returncode == 0, r.stderr
        first, second, third = r.stdout.splitlines()
        says(Exception(first), "^28 ", "full", "free|delete")
        assert second == "28" and third == "fine"
    finally:
        ctypes.CDLL(None).umount2(os.fsencode(mount), 2)  # lazily; umount(8) needs /proc


def test_memory_is_full(store):
    """Filling it is for test_memory_limit.py, in a memory cgroup of its own."""
    found = _core.memory_limit()
    if found is None:
        pytest.skip("PAGESTONE_WITHOUT=memory_limit")
    store["x"] = 1
    with pytest.raises(ps.StoreFullError) as e:
        store.begin().empty("e", found[3], "u1")
    says(e.value, "memory (cgroup )?is full", "are kept for programs", "size=", "history=")
    assert e.value.errno == 28 and store["x"] == 1


def test_a_path_that_is_no_store(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "other").write_text("x")
    with pytest.raises(ps.NotAStoreError) as e:
        ps.open(tmp_path / "file")
    says(e.value, "file is not a directory")
    with pytest.raises(ps.NotAStoreError) as e:
        ps.open(tmp_path / "folder")
    says(e.value, "no store", "new name or an empty directory")
    with pytest.raises(ps.NotAStoreError):
        ps.open(tmp_path / "folder", "w")
    with pytest.raises(FileNotFoundError) as e:
        ps.open(tmp_path / "missing", "r")
    says(e.value, "no store at .*missing")
    with pytest.raises(FileNotFoundError) as e:
        ps.open(tmp_path / "no" / "such" / "place.ps")
    says(e.value, "no directory")
    with ps.open(tmp_path / "a.ps"), pytest.raises(FileExistsError) as e:
        ps.open(tmp_path / "a.ps", "x")
    says(e.value, "exists")
    (tmp_path / "junk.ps").mkdir()
    (tmp_path / "junk.ps" / "pages").write_bytes(os.urandom(8192))
    for mode in ("r", "a"):
        with pytest.raises((ps.NotAStoreError, ps.CorruptError, ps.FormatError)):
            ps.open(tmp_path / "junk.ps", mode)
    assert (tmp_path / "folder" / "other").read_text() == "x"


def make(path, n=50):
    with ps.open(path, durability="none") as s:
        for i in range(n):
            s[f"k{i}"] = {"v": i, "t": (i,)}
        s["x"] = np.arange(100_000.0)
    return os.path.join(path, "pages")


@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_store_of_a_newer_format(shm_path, mode):
    pages = make(shm_path)
    for sb in (0, 512 * 4096):
        damage(pages, sb + 8, (99).to_bytes(4, "little"))
    with pytest.raises(ps.FormatError) as e:
        ps.open(shm_path, mode)
    says(e.value, "newer Pagestone", "99", "upgrade")


@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_store_of_another_endianness(shm_path, mode):
    pages = make(shm_path)
    for sb in (0, 512 * 4096):
        with open(pages, "rb") as f:
            f.seek(sb)
            head = f.read(24)
        swapped = head[:8][::-1] + b"".join(head[i : i + 4][::-1] for i in range(8, 24, 4))
        damage(pages, sb, swapped)
    with pytest.raises(ps.FormatError) as e:
        ps.open(shm_path, mode)
    says(e.value, "endianness")


EXERCISE = """
import sys, numpy as np, pagestone as ps
found = []
try:
    s = ps.open(sys.argv[1], sys.argv[2])
    for k in [f"k{i}" for i in range(50)] + ["x"]:
        try:
            v = s[k]
            assert k == "x" or v == {"v": int(k[1:]), "t": (int(k[1:]),)}, (k, v)
        except (ps.Error, KeyError, OSError) as e:
            found.append(e)
    try:
        list(s.items()), s.log(), s.versions, s.stat(), s.readers()
    except (ps.Error, OSError) as e:
        found.append(e)
    r = s.check()
    found += [ps.CorruptError(str(x)) for x in r.errors]
    if sys.argv[2] == "a":
        s["new"] = 1
except (ps.Error, OSError) as e:
    found.append(e)
for e in found[:3]:
    print(type(e).__name__, getattr(e, "object", ""), e)
"""


def exercise(path, mode):
    r = subprocess.run([sys.executable, "-c", EXERCISE, path, mode], capture_output=True, text=True, timeout=60)
    assert r.returncode == 0, (r.returncode, r.stdout, r.stderr)
    return r.stdout


@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_truncated_store(shm_path, mode):
    pages = make(shm_path)
    os.truncate(pages, 5000)
    os.unlink(os.path.join(shm_path, "control"))
    assert re.search("Error", exercise(shm_path, mode))
    os.truncate(pages, 0)
    assert re.search("Error", exercise(shm_path, mode))


def test_a_damaged_store(shm_path):
    """Where a leaf was overwritten, the object is named; what is not damaged is still there."""
    pages = make(shm_path)
    size = os.path.getsize(pages)
    data = Path(pages).read_bytes()[: 8 << 20]
    at = [m.start() for m in re.finditer(rb"k17", data)]
    assert at
    for offset in at:
        damage(pages, offset - offset % 4096 + 100, os.urandom(64))
    out = exercise(shm_path, "r")
    assert "CorruptError" in out
    says(Exception(out.splitlines()[0]), "damaged|checksum|check|corrupt")
    assert os.path.getsize(pages) == size


def test_a_store_of_another_user(shm_path):
    """Where others can write, pickled objects are refused unless asked for; everything else works."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a store away")
    with ps.open(shm_path) as s:
        s["p"], s["x"] = {1, 2}, np.arange(3)
    for name in ("", "pages", "control"):
        os.chown(os.path.join(shm_path, name), 12345, 12345)
    with ps.open(shm_path) as s:
        assert not s.allow_pickle
        assert s["x"].tolist() == [0, 1, 2]
        with pytest.raises(ps.PickleRefusedError) as e:
            s["p"]
        says(e.value, "run their code", "allow_pickle=True")
    with ps.open(shm_path, allow_pickle=True) as s:
        assert s["p"] == {1, 2}


def test_a_version_that_is_gone(store):
    s = ps.open(history=2)
    for i in range(10):
        s["a"] = i
    for use in (lambda: s.at(3), lambda: s.diff(3, -1), lambda: s.revert("a", 3), lambda: s.tag("t", 3)):
        with pytest.raises(ps.VersionExpiredError) as e:
            use()
        says(e.value, "version 3 is gone", "tag", "history")
    with pytest.raises(ValueError) as e:
        s.at(11)
    says(e.value, "11 never was", "newest is 10")
    with pytest.raises(KeyError):
        s.at("no such tag")
    with pytest.raises(TypeError) as e:
        s.at(1.0)
    says(e.value, "int, a tag or a datetime")


HOLDER = """
import sys, pagestone as ps
s = ps.open(sys.argv[1])
sys.stdin.readline()
s["held"] = 1
"""


def test_a_lock_that_cannot_be_had(shm_path):
    """A committer stopped in the middle: others wait as long as they said, and learn who holds it."""
    s = ps.open(shm_path, timeout=0.3)
    env = {**os.environ, "PAGESTONE_STOP": "commit_locked"}
    from pagestone import _core

    if not hasattr(_core, "_testing"):
        pytest.skip("needs a testing build (PAGESTONE_TESTING_BUILD=1)")
    p = subprocess.Popen([sys.executable, "-c", HOLDER, shm_path], stdin=subprocess.PIPE, env=env)
    p.stdin.write(b"\n")
    p.stdin.flush()
    os.waitid(os.P_PID, p.pid, os.WSTOPPED)
    t = s.begin()
    t["x"] = 0
    start = time.monotonic()
    with pytest.raises(ps.LockedError) as e:
        t.commit()
    assert 0.2 < time.monotonic() - start < 2
    says(e.value, str(p.pid), "python")
    assert "held" not in s  # reading goes on
    os.kill(p.pid, signal.SIGCONT)
    while p.poll() is None:
        time.sleep(0.01)
    assert t.commit() > 0  # it was still open
    p = subprocess.Popen([sys.executable, "-c", HOLDER, shm_path], stdin=subprocess.PIPE, env=env)
    p.stdin.write(b"\n")
    p.stdin.flush()
    os.waitid(os.P_PID, p.pid, os.WSTOPPED)
    p.kill()
    p.wait()
    s["x"] = 1


def test_two_opens_of_one_path_in_one_process(path):
    a = ps.open(path)
    r = ps.open(path, "r")
    n = ps.open(path, "r+", allow_pickle=False)
    a["x"] = (1,)
    assert r["x"] == (1,)
    with pytest.raises(ps.ReadOnlyError) as e:
        r["y"] = 1
    says(e.value, "read only", "'r\\+' or 'a'")
    with pytest.raises(ps.PickleRefusedError):
        n["x"]
    a.close()
    assert r["x"] == (1,)
    n["y"] = 2
    assert r["y"] == 2
    r.close()
    assert n["y"] == 2


def test_a_forked_child_using_the_parents_transaction(store):
    t = store.begin()
    t["y"] = 1

    def child():
        store["c"] = 5  # its own transactions work
        return store["c"]

    assert in_child(child) == "5"
    says(Exception(in_child(lambda: t.commit())), "ForkedError", "process", "begin")
    assert t.commit() == 2
    assert store["y"] == 1 and store["c"] == 5


def test_a_store_that_was_replaced(path):
    old = ps.open(path)
    old["x"] = np.arange(100_000)
    x = old["x"]
    new = ps.open(path, "w")
    assert len(new) == 0
    with pytest.raises(ps.StaleStoreError) as e:
        old["y"] = 1
    says(e.value, "replaced", "open it again|open")
    np.testing.assert_array_equal(x, np.arange(100_000))
    np.testing.assert_array_equal(old["x"], x)
    new["y"] = 1
    assert "y" not in old


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"mode": "q"}, ValueError, "'r', 'r\\+', 'a', 'w', 'x'"),
        ({"mode": ["a"]}, ValueError, "'r', 'r\\+', 'a', 'w', 'x'"),
        ({"durability": []}, ValueError, "'none', 'ordered', 'full'"),
        ({"allow_pickle": "no"}, TypeError, "True, False or None"),
        ({"size": "5 florin"}, ValueError, "GiB"),
        ({"size": 0}, ValueError, "positive"),
        ({"size": -5}, ValueError, "positive"),
        ({"size": True}, TypeError, "size"),
        ({"size": 1.5}, TypeError, "size"),
        ({"durability": "some"}, ValueError, "'none', 'ordered', 'full'"),
        ({"history": "x"}, ValueError, "30min"),
        ({"history": -1}, ValueError, "negative"),
        ({"history": 2**64 + 5}, ValueError, "out of range.*all"),
        ({"history": "99999999999999w"}, ValueError, "out of range.*all"),
        ({"history": 1.5}, TypeError, "history"),
        ({"timeout": -1}, ValueError, "timeout"),
        ({"timeout": "x"}, TypeError, ""),
        ({"mode": "r", "size": "1GB"}, ValueError, "open with 'r\\+'"),
    ],
)
def test_arguments_of_open(shm_path, arguments, error, text):
    with pytest.raises(error) as e:
        ps.open(shm_path, **arguments)
    says(e.value, text)
    assert not os.path.exists(shm_path)


def test_a_size_below_what_a_store_needs(path):
    for size in (1, 4096, "100kB", 128 * 1024 - 1):
        for where in (path, None):
            with pytest.raises(ValueError) as e:
                ps.open(where, size=size)
            says(e.value, "too small", "at least 131072 bytes")
    assert not os.path.exists(path)
    with ps.open(path, "x", size=128 * 1024) as s:
        for i in range(300):
            s["x"] = i
        with pytest.raises(ValueError):
            ps.open(path, size=4096)
        with pytest.raises(ValueError):
            ps.open(path, "w", size=4096)
        s["x"] = "still there"
        assert s["x"] == "still there" and s.info()["size"] == 128 * 1024


def test_a_full_store_tells_no_more_free_than_its_quota():
    s = ps.open(size="1MB", history=0)
    s["x"] = 1
    with pytest.raises(ps.StoreFullError) as e:
        s["y"] = np.zeros(1_000_000)
    free = re.search(r"([\d.]+) ([kM])B free of a quota of 1.0 MB", str(e.value))
    assert free and float(free[1]) * {"k": 1e3, "M": 1e6}[free[2]] < 1e6, str(e.value)


def test_stores_and_snapshots_made_by_hand(store):
    for make in (lambda: ps.Store(), lambda: ps.Store("/tmp/x.ps"), lambda: ps.Store(path="x")):
        with pytest.raises(TypeError) as e:
            make()
        says(e.value, r"pagestone\.open")
    for make in (lambda: ps.Snapshot(), lambda: ps.Snapshot("x"), lambda: ps.Snapshot(store=store)):
        with pytest.raises(TypeError) as e:
            make()
        says(e.value, r"Store\.snapshot\(\)", r"Store\.at\(\)")


def test_a_store_that_was_deleted(path):
    for durability in ("none", "ordered", "full"):
        s = ps.open(path, "x", durability=durability)
        s["x"] = np.arange(100_000)
        x, t = s["x"], s.begin()
        t["y"] = 1
        shutil.rmtree(path)
        for write in (lambda: s.__setitem__("y", 1), t.commit, s.gc, lambda: s.tag("t"), lambda: s.pop("x")):
            with pytest.raises(ps.StaleStoreError) as e:
                write()
            says(e.value, "deleted", re.escape(path), "copy it into a new store")
        assert "StaleStoreError" in in_child(lambda: s.__setitem__("y", 1))
        np.testing.assert_array_equal(x, np.arange(100_000))
        assert list(s) == ["x"] and s.version == 1 and s.check().ok
        with ps.open(path, "x") as new:
            new.update(s)
            assert new == s
        s.close()
        shutil.rmtree(path)


def test_paths_that_lead_nowhere(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError) as e:
        ps.open(tmp_path / "file", "x")
    says(e.value, "exists already")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for mode, error in (
        ("a", FileNotFoundError),
        ("w", FileNotFoundError),
        ("r", FileNotFoundError),
        ("x", FileExistsError),
    ):
        with pytest.raises(error) as e:
            ps.open(tmp_path / "link", mode)
        if mode != "r":
            says(e.value, "link")
    (tmp_path / "nothing").mkdir()
    ps.open(tmp_path / "link").close()
    before = os.getcwd()
    (tmp_path / "empty").mkdir()
    os.chdir(tmp_path / "empty")
    try:
        for path in ("", b""):
            with pytest.raises(FileNotFoundError) as e:
                ps.open(path)
            says(e.value, "an empty path", "None")
        assert os.listdir() == []
    finally:
        os.chdir(before)
    if os.path.isdir("/proc/self"):
        with pytest.raises(OSError) as e:
            ps.open("/proc/pagestone-test.ps")
        says(e.value, "/proc")
        assert "no directory /proc" not in str(e.value)


def test_begin_and_transaction_arguments(store):
    with pytest.raises(ValueError) as e:
        store.begin("dirty")
    says(e.value, "'snapshot', 'serializable', 'strict'")
    store["a"] = np.zeros((3, 4))
    store["f"] = np.asfortranarray(np.zeros((3, 4)))
    store["o"] = (1,)
    t = store.begin()
    for use, error, text in (
        (lambda: t.append("f", np.zeros((1, 4))), ValueError, "F order"),
        (lambda: t.resize("f", (5, 4)), ValueError, "F order"),
        (lambda: t.append("a", np.zeros((2, 5))), ValueError, r"rows have shape \(4,\)"),
        (lambda: t.append("a", np.zeros(4, complex)), TypeError, "cast it first"),
        (lambda: t.append("o", 1), TypeError, "no array"),
        (lambda: t.append("nothing", 1), KeyError, "nothing"),
        (lambda: t.resize("a", (3, 5)), ValueError, "only axis 0"),
        (lambda: t.resize("a", 3), ValueError, "only axis 0"),
        (lambda: t.resize("a", (-1, 4)), ValueError, "only axis 0"),
        (lambda: t.resize("o", 3), TypeError, "no array"),
        (lambda: t.move("nothing", "x"), KeyError, "nothing"),
        (lambda: t.copy("nothing", "x"), KeyError, "nothing"),
        (lambda: t.create("a", 3), KeyError, "exist_ok=True"),
        (lambda: t.depends("o", slice(3)), TypeError, "arrays only"),
        (lambda: t.depends("a", (0, 0, 0)), IndexError, "shape"),
        (lambda: t.empty("e", 3, order="A"), ValueError, "'C' or 'F'"),
    ):
        with pytest.raises(error) as e2:
            use()
        says(e2.value, text)
    assert t.commit() == 3


def test_each_line_of_the_table_has_a_test_here():
    lines = [line for line in DOC.read_text().splitlines() if line.startswith("| ") and "`test_" in line]
    named = {m for line in lines for m in re.findall(r"`(test_\w+)`", line)}
    assert len(lines) >= 15
    assert named <= set(globals())


def test_interrupted_by_errors_threads_still_agree(store):
    """Errors in many threads at once leave the store usable."""
    store["x"] = np.arange(10)

    def work():
        for _ in range(50):
            for bad in (
                lambda: store["nothing"],
                lambda: store.__setitem__(1, 1),
                lambda: store.at(10**6),
                lambda: store.create("x", 1),
            ):
                try:
                    bad()
                except (KeyError, TypeError, ValueError):
                    continue
                raise AssertionError

    threads = [threading.Thread(target=work) for _ in range(4)]
    for th in threads:
        th.start()
    for th in threads:
        th.join()
    assert store.version == 1


def test_damaged_bytes_name_their_object(tmp_path):
    path = str(tmp_path / "s.ps")
    with ps.open(path) as s:
        s["big"] = b"0123456789" * 20_000
        s["fine"] = 1
    with open(f"{path}/pages", "r+b") as f:
        at = f.read().index(b"0123456789" * 100)
        f.seek(at + 5000)
        f.write(b"!")
    with ps.open(path) as s:
        for read in (lambda: s["big"], lambda: s.begin()["big"]):
            with pytest.raises(ps.CorruptError, match=r"'big' is damaged: .*check\(\)") as e:
                read()
            assert e.value.object == "big"
        assert s["fine"] == 1 and not s.check().ok
