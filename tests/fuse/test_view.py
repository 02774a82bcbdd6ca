"""Reading a store through its file-system view."""

from __future__ import annotations

import datetime as dt
import errno
import hashlib
import json
import mmap
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pagestone as ps
import pandas as pd
import pytest
from conftest import SERVER, Server

pytestmark = pytest.mark.usefixtures("needs_fuse")
BASE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class View:
    """A store and its mount."""

    def __init__(self, **options: Any) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="pagestone-view-", dir=BASE))
        self.path = str(self.dir / "s.ps")
        self.mnt = self.dir / "mnt"
        self.mnt.mkdir()
        self.s = ps.open(self.path, "w", allow_pickle=True, **options)
        self.server: Server | None = None

    def mount(self, *more: str) -> View:
        self.server = Server(SERVER, self.path, self.mnt, *more)
        return self

    def unmount(self) -> None:
        if self.server:
            self.server.end()
        self.server = None

    def close(self) -> None:
        self.unmount()
        self.s.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    def requests(self) -> dict[str, int]:
        requests: dict[str, int] = json.loads((self.mnt / ".pagestone/stat.json").read_text())["requests"]
        return requests


@pytest.fixture
def view() -> Iterator[View]:
    v = View()
    yield v
    v.close()


ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "f8": np.arange(100000, dtype="f8").reshape(100, 1000),
    "big_endian": np.arange(7, dtype=">i4"),
    "fortran": np.asfortranarray(np.arange(24, dtype="u2").reshape(2, 3, 4)),
    "scalar": np.array(3.5),
    "empty": np.zeros((0, 5), "c16"),
    "bool": np.array([True, False]),
    "bytes": np.array([b"ab", b"cde"]),
    "unicode": np.array(["grün", "\N{SNOWMAN}"]),
    "void": np.zeros(4, "V7"),
    "half": np.ones(3, "f2"),
    "datetime": np.array(["2026-11-20", "NaT"], "M8[ns]"),
    "timedelta": np.arange(4).astype("m8[25s]"),
    "structured": np.zeros(3, [("a", "i1"), ("b", "f8", (2, 3)), ("größe", ">u4")]),
    "aligned": np.ones(3, np.dtype([("a", "i1"), ("b", "f8"), ("c", "i2")], align=True)),
    "nested": np.zeros(2, [("p", [("x", "f4"), ("y", "f4")]), ("s", "S3")]),
    "quotes": np.zeros(2, [("it's", "i4"), ('"q"', "i4"), ("back\\slash", "i4")]),
    "many": np.zeros(2, [(f"a_rather_long_name_of_field_{i}", "f8") for i in range(200)]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_load_as_they_are(view: View, name: str) -> None:
    a = ARRAYS[name]
    view.s[f"g/{name}"] = a
    file = view.mount().mnt / f"head/g/{name}.npy"
    for mode in (None, "r") if a.size else (None,):
        b = np.load(file, mmap_mode=mode, max_header_size=100000)
        assert b.dtype == a.dtype and b.shape == a.shape and b.tobytes() == a.tobytes()
        assert a.ndim < 2 or not a.size or b.flags.f_contiguous == a.flags.f_contiguous
    size = file.stat().st_size
    assert size == len(file.read_bytes())
    assert name == "many" or size == 4096 + a.nbytes


def test_a_dtype_that_npy_cannot_say_is_bytes(view: View) -> None:
    a = np.arange(6, dtype="u1").view({"names": ["a", "b"], "formats": ["u2", "u2"], "offsets": [0, 1], "itemsize": 3})
    view.s["x"] = a
    b = np.load(view.mount().mnt / "head/x.npy")
    assert b.dtype == "V3" and b.tobytes() == a.tobytes()


class Thing:
    def __init__(self, **what: Any) -> None:
        self.__dict__.update(what)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thing) and list(self.__dict__) == list(other.__dict__)


PLAIN: list[Any] = [
    None, True, False, 0, 255, 256, 65535, 65536, -1, -(2**31), 2**31, 2**63 - 1, -(2**63), 2**63, -(2**200), 2**3000,
    1.5, float("inf"), -0.0, 3 - 4.5j, "", "x" * 300, "grün \N{SNOWMAN} \U0001f600", "lone \ud800 surrogate",
    [], [1, [2, [3]]], {}, {"a": 1, "b": {"c": []}}, [b"", b"x" * 300, b"\0\xff"],
    np.str_("nul at the end\0"), np.bytes_(b"too\0"), np.float32(1.5), np.int8(-3), np.bool_(True), np.complex64(1j),
    np.longlong(5), np.ulonglong(6), np.datetime64("2026-11-20T10:00"), np.timedelta64(3, "h"),
    np.array([(1, 2.5)], [("a", "i4"), ("b", "f8")])[0], np.uint64(2**64 - 1),
]  # fmt: skip


def test_plain_objects_are_pickles(view: View) -> None:
    for i, value in enumerate(PLAIN):
        view.s[f"p{i}"] = value
    view.mount()
    for i, value in enumerate(PLAIN):
        file = view.mnt / f"head/p{i}.pkl"
        data = file.read_bytes()
        got = pickle.loads(data)
        assert type(got) is type(view.s[f"p{i}"]) and repr(got) == repr(value), (got, value)
        assert len(data) == file.stat().st_size


def objects() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    ro = rng.random(1000)
    ro.flags.writeable = False
    frame = pd.DataFrame(
        {
            "a": np.arange(1000),
            "b": list("abcdefghij") * 100,
            "t": pd.date_range("2026-01-01", periods=1000),
            "c": pd.Categorical(list("xy") * 500),
            "f": rng.random(1000),
        }
    )
    return {
        "frame": frame,
        "series": frame["f"],
        "set": {1, 2, 3},
        "tuple": (1, "a", None),
        "arrays": [np.arange(10), np.zeros((300, 300)), np.asfortranarray(np.ones((3, 4))), ro, rng.random(5)],
        "dates": [np.arange(5).astype("M8[D]"), np.arange(5).astype(">m8[s]")],
        "objects": np.array([1, "a", None], dtype=object),
        "frames": ["x" * 100000, b"y" * 200000, list(range(50000)), np.arange(3)],  # several FRAMEs, and a buffer
        "shared": [ro, ro],
        "thing": Thing(a=1, b=np.arange(100000)),
        "nothing": {"e": np.zeros(0)},
        "masked": np.ma.masked_array([1, 2, 3], [0, 1, 0]),
        "many": [np.full(20, i) for i in range(300)],  # more pieces than one reply has
        "bytearrays": (bytearray(b"abc" * 1000), b"q" * 5000),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, (pd.DataFrame, pd.Series)):
        return type(a) is type(b) and a.equals(b)
    if isinstance(a, np.ma.MaskedArray):
        return bool((a == b).all()) and bool((a.mask == b.mask).all())
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool(np.all(a == b))
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and bool(a == b)


@pytest.mark.parametrize("name", list(objects()))
def test_pickled_objects_load_by_themselves(view: View, name: str) -> None:
    value = objects()[name]
    view.s["o"] = value
    file = view.mount().mnt / "head/o.pkl"
    with file.open("rb") as f:
        got = pickle.load(f)
    assert same(value, got) and same(view.s["o"], got)
    whole = file.read_bytes()
    assert len(whole) == file.stat().st_size
    assert same(value, pickle._loads(whole))  # type: ignore[attr-defined]  # the one in Python checks FRAMEs
    random.seed(name)
    fd = os.open(file, os.O_RDONLY | getattr(os, "O_DIRECT", 0))  # past the page cache: each read is a request
    try:
        for _ in range(30):
            off, n = random.randrange(len(whole) + 10), random.choice([1, 17, 4096, 70000])
            assert os.pread(fd, n, off) == whole[off : off + n]
    finally:
        os.close(fd)


def test_bytes_and_groups(view: View) -> None:
    view.s["readme"] = b"hello\n"
    view.s["a/b/c/deep.txt"] = b"x"
    view.s["a/b-sibling"] = b"y"
    view.s["a/b0"] = 5
    view.s["a.npy.txt"] = b"not an array"
    view.s["nul"] = b""
    view.s["x.npy.npy"] = b"bytes, called so"
    head = view.mount().mnt / "head"
    assert (head / "readme").read_bytes() == b"hello\n"
    assert sorted(os.listdir(head)) == ["a", "a.npy.txt", "nul", "readme", "x.npy.npy"]
    assert sorted(os.listdir(head / "a")) == ["b", "b-sibling", "b0.pkl"]
    assert os.listdir(head / "a/b") == ["c"] and os.listdir(head / "a/b/c") == ["deep.txt"]
    assert (head / "nul").read_bytes() == b""
    assert (head / "a/b").is_dir() and not (head / "a/b0").exists() and not (head / "a/b/c/deep").exists()
    for name in ("readme.npy", "a/b0.npy", "readme/x", "a/b0.pkl/x", "x" * 255, "x" * 256):
        assert not (head / name).exists() if len(name) < 256 else True
    with pytest.raises(NotADirectoryError):
        os.listdir(head / "readme")


def test_a_group_is_skipped_by_one_seek(view: View) -> None:
    with view.s.begin() as t:
        for i in range(20000):
            t[f"big/{i:05}"] = i
        t["small/x"] = 1
        t["z"] = 1
    view.mount()
    start = time.perf_counter()
    for _ in range(20):
        assert sorted(os.listdir(view.mnt / "head")) == ["big", "small", "z.pkl"]
    assert time.perf_counter() - start < 1  # a scan would take 20 × 20,000 steps
    assert len(os.listdir(view.mnt / "head/big")) == 20000


def test_long_names(view: View) -> None:
    long = "/".join(["d" * 250] * 3 + ["e" * 250])
    view.s[long] = np.arange(3)
    view.s["ä" * 125] = b"1"
    head = view.mount().mnt / "head"
    assert np.load(str(head / long) + ".npy").tolist() == [0, 1, 2]
    assert (head / ("ä" * 125)).read_bytes() == b"1"
    with pytest.raises(OSError) as e:
        (head / ("x" * 256)).stat()
    assert e.value.errno == errno.ENAMETOOLONG


def test_versions_tags_and_times(view: View) -> None:
    view.s["x"] = 1
    view.s.tag("one")
    time.sleep(0.01)
    between = dt.datetime.now()
    time.sleep(0.01)
    view.s["x"] = 2
    view.s["y"] = b"new"
    m = view.mount().mnt

    def x(scope: str) -> Any:
        return pickle.loads((m / scope / "x.pkl").read_bytes())

    assert x("head") == x("@-1") == x("@3") == x("@-2") == x("@2") == 2
    assert x("@one") == x("@1") == x("@-3") == 1
    assert x(f"@{between.isoformat()}") == 1
    utc = between.astimezone(dt.timezone.utc)
    assert x(f"@{utc.isoformat()}") == x(f"@{utc.replace(tzinfo=None).isoformat()}Z") == 1
    assert x(f"@{(between + dt.timedelta(minutes=1)).strftime('%Y-%m-%dT%H:%M')}") == 2
    assert (m / "@3/y").exists() and not (m / "@2/y").exists()
    for name in ("@4", "@-9", "@two", "@2019-01-01", "@", "@1x", "@+1", "41", "x", "@2026-13-01"):
        assert not (m / name).exists(), name
    assert set(os.listdir(m)) == {"head", ".pagestone", "@0", "@1", "@2", "@3", "@one"}
    view.s["x"] = 3
    assert x("@-1") == x("head") == 3
    assert os.stat(m / "@1/x.pkl").st_ino == os.stat(m / "@one/x.pkl").st_ino
    assert os.stat(m / "head/y").st_ino == os.stat(m / "@3/y").st_ino
    assert os.stat(m / "@2/x.pkl").st_ino != os.stat(m / "@1/x.pkl").st_ino


def test_times_of_files_are_those_of_their_commits(view: View) -> None:
    view.s["a"] = 1
    view.s["b"] = 2
    view.mount()
    times = {c.version: c.time.timestamp() for c in view.s.log()}
    assert (view.mnt / "head/a.pkl").stat().st_mtime == pytest.approx(times[1], abs=1e-5)
    assert (view.mnt / "head/b.pkl").stat().st_mtime == pytest.approx(times[2], abs=1e-5)
    view.s["b"] = 3
    assert (view.mnt / "head/b.pkl").stat().st_mtime == pytest.approx(view.s.log()[0].time.timestamp(), abs=1e-5)
    assert (view.mnt / "@2/b.pkl").stat().st_mtime == pytest.approx(times[2], abs=1e-5)


def test_dropped_versions_are_gone() -> None:
    v = View(history=2)
    try:
        v.s["x"] = 0
        v.mount()
        assert (v.mnt / "@1/x.pkl").exists()
        for i in range(20):
            v.s["x"] = i
        v.s.gc()
        time.sleep(1.1)  # names of directories are believed for a second
        assert not (v.mnt / "@1").exists()
        assert set(os.listdir(v.mnt)) == {"head", ".pagestone"} | {f"@{n}" for n in v.s.versions}
    finally:
        v.close()


def test_xattrs(view: View) -> None:
    view.s["g/a"] = np.zeros((2, 3), order="F")
    view.s["b"] = b""
    m = view.mount().mnt

    def all_of(path: str) -> dict[str, bytes]:
        names = os.listxattr(m / path)
        return {n.removeprefix("user.pagestone."): os.getxattr(m / path, n) for n in names}

    assert all_of("head/g/a.npy") == {
        "key": b"g/a",
        "version": b"1",
        "dtype": b"<f8",
        "shape": b"(2, 3)",
        "order": b"F",
    }
    assert all_of("@1/g/a.npy") == all_of("head/g/a.npy")
    assert all_of("head/b") == {"key": b"b", "version": b"2"}
    assert all_of("head/g") == {"key": b"g"}
    assert os.listxattr(m) == []
    for name in ("user.pagestone.shape", "user.other"):
        with pytest.raises(OSError) as e:
            os.getxattr(m / "head/b", name)
        assert e.value.errno == errno.ENODATA


def test_statfs_shows_the_quota() -> None:
    v = View(size=64 << 20)
    try:
        v.s["x"] = np.ones(1 << 20)
        v.mount()
        st = os.statvfs(v.mnt)
        assert st.f_blocks * st.f_frsize == 64 << 20
        assert 40 << 20 < st.f_bavail * st.f_frsize < 56 << 20
    finally:
        v.close()


def test_json(view: View) -> None:
    view.s['k"ü'] = 1
    m = view.mount().mnt / ".pagestone"
    assert sorted(os.listdir(m)) == ["log.json", "readers.json", "stat.json"]
    stat = json.loads((m / "stat.json").read_text())
    assert stat["version"] == 1 and stat["objects"] == 1 and stat["path"] == view.path
    log = json.loads((m / "log.json").read_text())
    assert log[0]["keys"] == ['k"ü'] and log[0]["version"] == 1
    with view.s.snapshot():
        assert any(r["pid"] == os.getpid() for r in json.loads((m / "readers.json").read_text()))
    view.s["z"] = 2
    assert json.loads((m / "stat.json").read_text())["version"] == 2


def checksums(root: Path) -> bytes:
    return subprocess.run(
        f"cd '{root}' && find . -type f | LC_ALL=C sort | xargs -d '\\n' sha256sum",
        shell=True, check=True, capture_output=True, timeout=60,
    ).stdout  # fmt: skip


def test_a_version_stays_the_same_whatever_happens(view: View) -> None:
    rng = np.random.default_rng(2)
    for i in range(30):
        view.s[f"g{i % 4}/a{i}"] = rng.random(int(rng.integers(1, 50000)))
        view.s[f"g{i % 4}/o{i}"] = {"x": rng.random(int(rng.integers(1, 500))), 3: i}
        view.s[f"b{i}"] = rng.bytes(int(rng.integers(0, 9000)))
    view.s.tag("kept")
    n = view.s.version
    view.mount()
    before = checksums(view.mnt / "@kept")
    assert len(before.splitlines()) == 90
    assert checksums(view.mnt / "head") == before
    for i in range(100):
        kind = i % 4
        if kind == 0:
            with view.s.begin() as t:
                t[f"g{i % 4}/a{i % 28 // 4 * 4}"][:1] = i
        elif kind == 1:
            view.s[f"b{i % 30}"] = rng.bytes(100)
        elif kind == 2:
            view.s.pop(f"g{i % 30 % 4}/o{i % 30}", None)
        else:
            view.s[f"new/{i}"] = i
    assert checksums(view.mnt / f"@{n}") == before
    view.s.gc()
    view.s.compact()
    subprocess.run(["sync"], timeout=60)
    view.unmount()
    view.mount()
    assert checksums(view.mnt / "@kept") == before
    assert checksums(view.mnt / "head") != before


def test_what_is_open_keeps_its_version(view: View) -> None:
    a = np.arange(1 << 18)
    view.s["a"] = a
    view.s["b"] = b"old" * 100000
    view.s["gone"] = 1
    head = view.mount().mnt / "head"
    mapped = np.load(head / "a.npy", mmap_mode="r")
    with (head / "b").open("rb") as f, os.scandir(head) as listing:
        assert f.read(3) == b"old"
        view.s["a"] = -a
        view.s["b"] = b"new"
        del view.s["gone"]
        view.s["more"] = 1
        view.s.gc()
        assert (mapped == a).all()
        assert f.read() == (b"old" * 100000)[3:]
        assert sorted(e.name for e in listing) == ["a.npy", "b", "gone.pkl"]
        assert (np.load(head / "a.npy") == -a).all()
        assert (head / "b").read_bytes() == b"new"
        assert sorted(os.listdir(head)) == ["a.npy", "b", "more.pkl"]
        assert (mapped == a).all()
    del mapped


def test_a_commit_shows_at_once(view: View) -> None:
    """Also right after a listing, whose names the kernel believes for a moment."""
    view.s["x"] = np.arange(3)
    head = view.mount().mnt / "head"
    for i in range(200):
        os.listdir(head)
        subprocess.run(["ls", "-l", head], stdout=subprocess.DEVNULL, timeout=30) if i % 50 == 0 else None
        view.s["x"] = np.full(i + 1, i)
        assert np.load(head / "x.npy").tolist() == [i] * (i + 1)
    del view.s["x"]
    with pytest.raises(FileNotFoundError):
        (head / "x.npy").open()


def test_reading_while_others_commit(view: View) -> None:
    """Each read sees one version, whole."""
    view.s["a"] = np.zeros(20000, "i8")
    view.s["o"] = [0, np.zeros(3000, "i8")]
    head = view.mount().mnt / "head"
    stop = threading.Event()

    def commit() -> None:
        i = 0
        while not stop.is_set():
            i += 1
            with view.s.begin() as t:
                t["a"] = np.full(20000 + i % 3, i)
                t["o"] = [i, np.full(3000, i)]

    writer = threading.Thread(target=commit)
    writer.start()
    try:
        for _ in range(300):
            a = np.load(head / "a.npy")
            assert (a == a[0]).all() and len(a) == (20000 + a[0] % 3 if a[0] else 20000)
            i, b = pickle.loads((head / "o.pkl").read_bytes())
            assert (b == i).all()
    finally:
        stop.set()
        writer.join()


def test_a_sparse_terabyte_lists_stats_and_maps_at_once(view: View) -> None:
    view.s.create("tera", (1 << 37,), "f8")
    head = view.mount().mnt / "head"
    start = time.perf_counter()
    assert os.listdir(head) == ["tera.npy"]
    assert (head / "tera.npy").stat().st_size == (1 << 40) + 4096
    a = np.load(head / "tera.npy", mmap_mode="r")
    assert a.shape == (1 << 37,) and a[0] == a[1 << 36] == a[-1] == 0
    assert time.perf_counter() - start < 2
    del a


def test_a_second_process_reads_from_the_page_cache(view: View) -> None:
    a = np.random.default_rng(3).random(1 << 20)
    view.s["a"] = a
    file = view.mount().mnt / "head/a.npy"
    digest = hashlib.sha256(a.tobytes()).hexdigest()
    code = (
        "import sys, hashlib, numpy as np; a = np.load(sys.argv[1], mmap_mode='r'); "
        "print(hashlib.sha256(a.tobytes()).hexdigest())"
    )

    def read() -> str:
        run = subprocess.run([sys.executable, "-c", code, file], check=True, capture_output=True, timeout=60)
        return run.stdout.decode().strip()

    assert read() == digest
    before = view.requests()["read"]  # reading the numbers is two requests itself
    assert read() == digest
    view.s["other"] = 1  # a commit changes nothing about it
    assert read() == digest
    assert view.requests()["read"] - before <= 2


def test_listing_with_attributes_asks_no_name(view: View) -> None:
    n = 20000
    with view.s.begin() as t:
        for i in range(n):
            t[f"g{i // 1000}/{i}"] = i
    view.mount()
    before = view.requests()
    start = time.perf_counter()
    out = subprocess.run(["ls", "-lR", view.mnt / "head"], check=True, capture_output=True, timeout=60).stdout
    elapsed = time.perf_counter() - start
    after = view.requests()
    assert out.count(b".pkl") == n
    assert after["lookup"] - before["lookup"] < n / 4  # a machine that is busy may be slower than the names are valid
    print(f"ls -lR of {n} objects: {elapsed:.2f} s")


def damage(view: View, pattern: bytes) -> int:
    """Flip a bit in every copy of `pattern` in the store's files."""
    n = 0
    for file in Path(view.path).rglob("*"):
        if not file.is_file() or file.stat().st_size < len(pattern):
            continue
        with file.open("r+b") as f, mmap.mmap(f.fileno(), 0) as m:
            at = m.find(pattern)
            while at >= 0:
                m[at] ^= 1
                n += 1
                at = m.find(pattern, at + 1)
    return n


def test_damaged_objects_are_io_errors(view: View) -> None:
    marks = {name: os.urandom(24) for name in ("bytes", "pickle.pkl", "plain.pkl")}  # too large to lie in the catalog
    view.s["bytes"] = marks["bytes"] + bytes(100000)
    view.s["pickle"] = (marks["pickle.pkl"], bytes(100000))
    view.s["plain"] = [marks["plain.pkl"], bytes(100000)]
    view.s["sound"] = b"fine"
    for mark in marks.values():
        assert damage(view, mark) > 0
    head = view.mount().mnt / "head"
    assert sorted(os.listdir(head)) == ["bytes", "pickle.pkl", "plain.pkl", "sound"]
    subprocess.run(["ls", "-l", head], check=True, stdout=subprocess.DEVNULL, timeout=30)
    for name in marks:
        with pytest.raises(OSError) as e:
            (head / name).read_bytes()
        assert e.value.errno == errno.EIO, name
    assert (head / "sound").read_bytes() == b"fine"


def test_a_damaged_catalog_is_an_error_and_no_more(view: View) -> None:
    mark = os.urandom(24)
    view.s["inline"] = mark
    assert damage(view, mark) > 0
    m = view.mount().mnt
    with pytest.raises(OSError) as e:
        (m / "head/inline").read_bytes()
    assert e.value.errno == errno.EIO
    assert os.listdir(m)
    assert (m / ".pagestone/log.json").read_text()


def test_a_stopped_client_delays_nobody(view: View) -> None:
    view.s["x"] = np.arange(1 << 16)
    head = view.mount().mnt / "head"
    code = (
        "import sys, os, signal, mmap; f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ);"
        "m[5000]; d = os.scandir(sys.argv[2]); next(d); print('ready', flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
    )
    client = subprocess.Popen([sys.executable, "-c", code, head / "x.npy", head], stdout=subprocess.PIPE)
    try:
        assert client.stdout and client.stdout.readline() == b"ready\n"
        start = time.perf_counter()
        for i in range(50):
            view.s["x"] = np.full(1 << 16, i)
            assert np.load(head / "x.npy")[0] == i
        view.s.gc()
        assert time.perf_counter() - start < 10
    finally:
        client.send_signal(signal.SIGKILL)
        client.wait(30)
        if client.stdout:
            client.stdout.close()


def test_versions_are_read_only(view: View) -> None:
    view.s["x"] = b"1"
    m = view.mount().mnt
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        with pytest.raises(OSError) as e:
            os.open(m / "@1/x", flags)
        assert e.value.errno in (errno.EROFS, errno.EACCES)
    assert (m / "@1/x").stat().st_mode & 0o222 == 0
    assert view.s["x"] == b"1" and view.s.version == 1


def test_a_read_only_mount(view: View) -> None:
    view.s["x"] = b"1"
    m = view.mount("--read-only").mnt
    assert (m / "head/x").read_bytes() == b"1"
    assert (m / "head/x").stat().st_mode & 0o222 == 0
    for call in (
        lambda: (m / "head/x").write_bytes(b"2"),
        lambda: (m / "head/y").mkdir(),
        lambda: (m / "head/x").unlink(),
    ):
        with pytest.raises(OSError) as e:
            call()
        assert e.value.errno == errno.EROFS
    view.s["x"] = b"2"
    assert (m / "head/x").read_bytes() == b"2"


def test_what_is_open_survives_the_worker(view: View) -> None:
    data = os.urandom(3 << 20)
    view.s["d"] = data
    view.s["small"] = b"little"
    with view.s.begin() as t:
        for i in range(3000):
            t[f"g/{i:04}"] = i
    head = view.mount().mnt / "head"
    with (head / "d").open("rb", buffering=0) as f, (head / "small").open("rb") as g, os.scandir(head / "g") as listing:
        assert f.read(4096) == data[:4096]
        names = [next(listing).name for _ in range(10)]
        time.sleep(0.3)  # for the leases, which are set beside the requests
        view.s["d"] = b"new"
        del view.s["small"]
        view.s["g/zzzz"] = 1
        view.s.gc()
        for _ in range(3):
            assert view.server
            view.server.kill_worker()
            assert (head / "d").read_bytes() == b"new"
        assert f.read() == data[4096:]
        assert g.read() == b"little"
        names += [e.name for e in listing]
        assert names == [f"{i:04}.pkl" for i in range(3000)]
        assert f.seek(0) == 0 and f.read(10) == data[:10]
