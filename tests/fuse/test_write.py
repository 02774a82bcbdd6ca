"""Writing through the view of a store: every tool that writes files writes objects."""

import contextlib
import os
import pickle
import random
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pagestone as ps
import pytest

SERVER = Path(ps.__file__).parent / "bin" / "pagestone-fuse"
pytestmark = pytest.mark.skipif(
    not SERVER.exists() or not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no server, or no right to /dev/fuse"
)
BASE = os.environ.get("PAGESTONE_TEST_DIR", "/dev/shm")
LIMIT = 120  # seconds until a mount that hangs is aborted


class Mount:
    """A store of its own, mounted; aborted by a timer when a test hangs on it."""

    def __init__(self, base, **options):
        self.dir = Path(tempfile.mkdtemp(prefix="pagestone-write-", dir=base))
        self.store = str(self.dir / "s.ps")
        ps.open(self.store, "w", **options).close()
        self.point = self.dir / "mnt"
        self.point.mkdir()
        try:
            self.start()
        except BaseException:
            self.remove()
            raise

    timer = proc = None

    def start(self):
        self.log = (self.dir / "log").open("ab")
        self.proc = subprocess.Popen(
            [SERVER, "--view", self.store, self.point, "--foreground"], stderr=self.log, stdout=self.log
        )
        for _ in range(500):
            if self.proc.poll() is not None or str(self.point) in Path("/proc/self/mounts").read_text():
                break
            time.sleep(0.01)
        assert self.proc.poll() is None, self.messages()
        minor = os.minor(os.stat(self.point).st_dev)
        self.abort = Path(f"/sys/fs/fuse/connections/{minor}/abort")
        self.timer = threading.Timer(LIMIT, lambda: self.abort.write_text("1"))
        self.timer.daemon = True
        self.timer.start()
        self.head = self.point / "head"

    def messages(self):
        self.log.flush()
        return (self.dir / "log").read_text(errors="replace")

    def stop(self):
        if self.timer:
            self.timer.cancel()
        if subprocess.run(["umount", self.point], capture_output=True, timeout=60).returncode:
            subprocess.run(["umount", "-l", self.point], capture_output=True, timeout=60)
        if not self.proc:
            return
        try:
            self.proc.wait(30)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                self.abort.write_text("1")
            self.proc.kill()
            self.proc.wait(30)
        self.log.close()

    def remove(self):
        self.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def open(self, mode="r", **options):
        return ps.open(self.store, mode, **options)

    def workers(self):
        text = Path(f"/proc/{self.proc.pid}/task/{self.proc.pid}/children").read_text()
        return [int(p) for p in text.split()]

    def versions(self):
        with self.open() as s:
            return s.version


@pytest.fixture
def m():
    mount = Mount(BASE)
    yield mount
    mount.remove()


def sh(command, cwd=None, check=True):
    r = subprocess.run(["bash", "-c", command], cwd=cwd, capture_output=True, text=True, timeout=100)
    if check:
        assert r.returncode == 0, (command, r.stdout, r.stderr)
    return r


def eventually(what, seconds=10):
    """The last close of a file is told to the server after close() has returned."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- single files -------------------------------------------------------------------------------------------------------


def test_cp_of_a_file_is_one_transaction_and_reads_back(m):
    data = os.urandom(3_000_000)
    src = m.dir / "src"
    src.write_bytes(data)
    before = m.versions()
    sh(f"cp {src} {m.head}/a")
    assert m.versions() == before + 1
    assert (m.head / "a").read_bytes() == data
    with m.open() as s:
        assert s["a"] == data
        assert s.log()[0].keys == ("a",)


def test_cp_of_an_npy_is_an_array_and_keeps_its_header(m):
    x = np.random.default_rng(1).normal(size=(300, 70))
    src = m.dir / "x.npy"
    np.save(src, x)
    sh(f"cp {src} {m.head}/x.npy")
    with m.open() as s:
        assert np.array_equal(s["x"], x)
    assert (m.head / "x.npy").read_bytes() == src.read_bytes()
    assert np.array_equal(np.load(m.head / "x.npy", mmap_mode="r"), x)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", "CF")
def test_headers_of_every_version_are_kept(m, version, order):
    x = np.asarray(np.arange(24, dtype="<i2").reshape(4, 6), order=order)
    with open(m.dir / "x.npy", "wb") as f:
        np.lib.format.write_array(f, x, version=version)
    shutil.copy(m.dir / "x.npy", m.head / "x.npy")
    assert (m.head / "x.npy").read_bytes() == (m.dir / "x.npy").read_bytes()
    with m.open() as s:
        assert np.array_equal(s["x"], x)
        assert s["x"].flags.f_contiguous == (order == "F")


@pytest.mark.parametrize(
    "x",
    [
        np.zeros(0),
        np.float32(3.5),
        np.zeros((3, 0, 2), "i1"),
        np.array(["a", "bcd"]),
        np.array(["2026-11-20"], "M8[D]"),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.zeros(5, dtype=np.dtype({"names": ["a", "b"], "formats": ["i1", "f8"], "offsets": [0, 8], "itemsize": 24})),
        np.arange(10, dtype=">i8"),
        np.array([b"xy", b"z"]),
        np.array([True, False]),
        np.array([1 + 2j]),
    ],
    ids=lambda x: f"{x.dtype.str}{x.shape}",
)
def test_np_save_of_every_type(m, x):
    np.save(m.head / "x.npy", x)
    back = np.load(m.head / "x.npy")
    assert back.dtype == np.asarray(x).dtype and np.array_equal(back, x)
    with m.open() as s:
        assert np.array_equal(s["x"], x)


def test_np_save_over_a_name_keeps_old_mappings(m):
    np.save(m.head / "x.npy", np.arange(100_000))
    old = np.load(m.head / "x.npy", mmap_mode="r")
    np.save(m.head / "x.npy", np.arange(100_000) * 2)
    new = np.load(m.head / "x.npy", mmap_mode="r")
    assert old[5] == 5 and old[99_999] == 99_999
    assert new[5] == 10 and new[99_999] == 199_998


def test_open_memmap_w_is_published_when_unmapped_and_whole(m):
    before = m.versions()
    a = np.lib.format.open_memmap(m.head / "x.npy", "w+", "f8", (1000, 100))
    a[:] = np.arange(100_000).reshape(1000, 100)
    with m.open() as s:
        assert "x" not in s
    del a
    eventually(lambda: m.versions() > before)
    assert m.versions() == before + 1
    with m.open() as s:
        assert np.array_equal(s["x"].ravel(), np.arange(100_000))


def test_open_memmap_flush_publishes(m):
    a = np.lib.format.open_memmap(m.head / "x.npy", "w+", "f8", (1000, 100))
    a[:] = 1
    a.flush()
    with m.open() as s:
        assert s["x"].sum() == 100_000
    a[0] = 2
    a.flush()
    with m.open() as s:
        assert s["x"][0, 0] == 2
    del a


def test_open_memmap_r_plus_changes_what_is_committed(m):
    with m.open("a") as s:
        s["x"] = np.zeros((1000, 100))
    a = np.lib.format.open_memmap(m.head / "x.npy", "r+")
    a[7] = 7
    del a
    with m.open() as s:
        eventually(lambda: s["x"][7, 7] == 7)
        assert s["x"].sum() == 700


def test_pickles(m):
    value = {"a": [1, 2, {3}], "b": object}
    with open(m.head / "v.pkl", "wb") as f:
        pickle.dump(value, f)
    with open(m.head / "v.pkl", "rb") as f:
        assert pickle.load(f) == value
    with m.open() as s:
        assert s["v"] == value


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol_read_back(m, protocol):
    data = pickle.dumps([1, "a", (2.5, None)], protocol)
    (m.head / "v.pkl").write_bytes(data)
    assert (m.head / "v.pkl").read_bytes() == data
    with m.open() as s:
        assert s["v"] == [1, "a", (2.5, None)]


def test_what_is_no_pickle_reads_back_too(m):
    for data in (b"", b"garbage", pickle.dumps(1) + pickle.dumps(2)):
        (m.head / "v.pkl").write_bytes(data)
        eventually(lambda data=data: (m.head / "v.pkl").read_bytes() == data)


def test_append(m):
    (m.head / "log").write_text("one\n")
    with open(m.head / "log", "a") as f:
        f.write("two\n")
    sh("echo three >> log; echo four >> log", cwd=m.head)
    assert (m.head / "log").read_text() == "one\ntwo\nthree\nfour\n"
    with m.open() as s:
        eventually(lambda: s["log"] == b"one\ntwo\nthree\nfour\n")


def test_reopening_for_append_at_once(m):
    p = m.head / "log"
    for i in range(200):
        with open(p, "a") as f:
            f.write(f"{i}\n")
    assert p.read_text() == "".join(f"{i}\n" for i in range(200))


def test_truncate_by_name_and_by_handle(m):
    p = m.head / "t"
    p.write_bytes(b"x" * 10_000)
    os.truncate(p, 5000)
    with m.open() as s:
        assert s["t"] == b"x" * 5000
    os.truncate(p, 6000)
    with m.open() as s:
        assert s["t"] == b"x" * 5000 + bytes(1000)
    with open(p, "r+b") as f:
        f.truncate(10)
    assert p.stat().st_size == 10
    with m.open() as s:
        assert s["t"] == b"x" * 10


def test_touch_makes_an_empty_file(m):
    sh("touch e", cwd=m.head)
    with m.open() as s:
        eventually(lambda: "e" in s)
        assert s["e"] == b""
    assert (m.head / "e").stat().st_size == 0


def test_a_shell_redirection_publishes_once(m):
    before = m.versions()
    sh("{ echo a; } > f", cwd=m.head)
    eventually(lambda: m.versions() > before)
    time.sleep(0.1)
    assert m.versions() == before + 1


def test_sparse_files(m):
    with open(m.head / "big", "wb") as f:
        f.truncate(1 << 28)
        f.seek(1 << 27)
        f.write(b"here")
    with m.open() as s:
        eventually(lambda: "big" in s, 60)
        assert bytes(memoryview(s["big"])[1 << 27 : (1 << 27) + 4]) == b"here"


def test_a_sparse_array_takes_few_pages(m):
    a = np.lib.format.open_memmap(m.head / "x.npy", "w+", "f8", (1 << 27,))
    a[12345] = 1
    del a
    with m.open() as s:
        eventually(lambda: "x" in s, 60)
        assert s["x"][12345] == 1 and s.stat().live < 1 << 24


def test_every_file_is_one_transaction(m):
    src = m.dir / "src"
    src.mkdir()
    for i in range(10):
        np.save(src / f"x{i}.npy", np.arange(i))
        (src / f"t{i}").write_text(str(i))
    before = m.versions()
    sh(f"cp {src}/* {m.head}")
    with m.open() as s:
        assert s.version == before + 20
        changed = [c.keys for c in s.log() if c.version > before]
    assert sorted(changed) == sorted([(f"x{i}",) for i in range(10)] + [(f"t{i}",) for i in range(10)])


# --- errors -------------------------------------------------------------------------------------------------------------------


def test_a_bad_npy_is_an_error_of_close(m):
    f = os.open(m.head / "x.npy", os.O_CREAT | os.O_RDWR)
    os.write(f, b"no array")
    with pytest.raises(OSError, match="Invalid argument"):
        os.fsync(f)
    assert os.pread(f, 100, 0) == b"no array"
    with pytest.raises(OSError, match="Invalid argument"):
        os.close(f)
    eventually(lambda: not (m.head / "x.npy").exists())


def test_an_npy_of_objects_is_refused(m):
    src = m.dir / "o.npy"
    np.save(src, np.array([{}, None], dtype=object), allow_pickle=True)
    assert "Invalid argument" in sh(f"cp {src} {m.head}/o.npy", check=False).stderr


def test_a_cut_off_npy_leaves_what_was_there(m):
    np.save(m.head / "x.npy", np.arange(1000))
    whole = (m.head / "x.npy").read_bytes()
    with pytest.raises(OSError, match="Invalid argument"):
        (m.head / "x.npy").write_bytes(whole[:-8])
    with m.open() as s:
        assert np.array_equal(s["x"], np.arange(1000))
    eventually(lambda: (m.head / "x.npy").read_bytes() == whole)


def test_a_full_store_is_an_error_of_close_and_nothing_is_lost():
    m = Mount(BASE, size="8MB")
    try:
        (m.head / "a").write_bytes(b"a" * 5_000_000)
        f = os.open(m.head / "b", os.O_CREAT | os.O_RDWR)
        os.write(f, b"b" * 5_000_000)
        with pytest.raises(OSError, match="No space"):
            os.fsync(f)
        assert os.pread(f, 3, 4_999_000) == b"bbb"
        with m.open("a") as s:
            del s["a"]
            s.gc()
        os.fsync(f)
        os.close(f)
        with m.open() as s:
            assert s["b"] == b"b" * 5_000_000
        r = sh(f"head -c 6000000 /dev/zero | tr '\\0' c > {m.dir}/c; cp {m.dir}/c {m.head}/b2", check=False)
        assert "No space" in r.stderr
        eventually(lambda: not (m.head / "b2").exists())
    finally:
        m.remove()


def test_what_went_on_from_committed_bytes_conflicts(m):
    (m.head / "a").write_bytes(b"old")
    f = os.open(m.head / "a", os.O_WRONLY | os.O_APPEND)
    os.write(f, b" mine")
    with m.open("a") as s:
        s["a"] = b"theirs"
    with pytest.raises(OSError, match="busy"):
        os.close(f)
    with m.open() as s:
        assert s["a"] == b"theirs"
    eventually(lambda: (m.head / "a").read_bytes() == b"theirs")


def test_what_was_made_from_nothing_replaces(m):
    with open(m.head / "a", "wb") as f:
        f.write(b"mine")
        with m.open("a") as s:
            s["a"] = b"theirs"
    with m.open() as s:
        assert s["a"] == b"mine"


def test_commits_through_the_api_while_a_file_is_written(m):
    src = os.urandom(20_000_000)
    with open(m.head / "big", "wb") as f, m.open("a") as s:
        for i in range(0, len(src), 1_000_000):
            f.write(src[i : i + 1_000_000])
            s[f"k{i}"] = i
    with m.open() as s:
        assert s["big"] == src and len(s) == 21


# --- names ------------------------------------------------------------------------------------------------------------------------


def test_mv_decides_the_kind(m):
    x = np.arange(5000.0)
    np.save(m.dir / "x.npy", x)
    shutil.copy(m.dir / "x.npy", m.head / "x.npy.tmp")
    with m.open() as s:
        assert isinstance(s["x.npy.tmp"], bytes)
    sh("mv x.npy.tmp x.npy", cwd=m.head)
    with m.open() as s:
        assert np.array_equal(s["x"], x) and list(s) == ["x"]
    sh("mv x.npy y.npy", cwd=m.head)
    sh("mv y.npy y.bak", cwd=m.head)
    with m.open() as s:
        assert list(s) == ["y.bak"] and s["y.bak"] == (m.dir / "x.npy").read_bytes()
    (m.head / "bad").write_bytes(b"bad")
    with pytest.raises(OSError, match="Invalid argument"):
        os.rename(m.head / "bad", m.head / "bad.npy")
    assert (m.head / "bad").read_bytes() == b"bad"


def test_rename_while_open(m):
    with open(m.head / "tmp", "wb") as f:
        np.save(f, np.arange(10))
        os.rename(m.head / "tmp", m.head / "x.npy")
        assert not (m.head / "tmp").exists()
    with m.open() as s:
        assert list(s) == ["x"] and np.array_equal(s["x"], np.arange(10))


def test_rename_replaces_and_noreplace_does_not(m):
    (m.head / "a").write_text("a")
    (m.head / "b").write_text("b")
    assert sh("mv -n a b; cat b", cwd=m.head).stdout == "b"
    before = m.versions()
    os.rename(m.head / "a", m.head / "b")
    assert m.versions() == before + 1
    assert (m.head / "b").read_text() == "a" and os.listdir(m.head) == ["b"]


def test_an_editors_dance(m):
    p = m.head / "conf.ini"
    p.write_text("old")
    p.chmod(0o640)
    with open(m.head / ".conf.swp", "w") as f:
        f.write("new")
        f.flush()
        os.fsync(f.fileno())
        os.fchmod(f.fileno(), 0o640)
    os.rename(p, m.head / "conf.ini~")
    os.rename(m.head / ".conf.swp", p)
    os.unlink(m.head / "conf.ini~")
    assert p.read_text() == "new" and stat.S_IMODE(p.stat().st_mode) == 0o640
    assert os.listdir(m.head) == ["conf.ini"]


def test_rm_and_files_that_are_removed_while_open(m):
    (m.head / "a").write_text("a")
    with open(m.head / "b", "w+") as f:
        f.write("kept")
        f.flush()
        before = m.versions()
        os.unlink(m.head / "b")
        f.seek(0)
        assert f.read() == "kept"
        f.write(" and written")
    os.unlink(m.head / "a")
    assert os.listdir(m.head) == []
    time.sleep(0.1)
    with m.open() as s:
        assert len(s) == 0 and s.version == before + 1


def test_mkdir_rmdir(m):
    d = m.head / "d" / "e"
    d.mkdir(parents=True)
    assert os.listdir(m.head / "d") == ["e"]
    with pytest.raises(FileExistsError):
        d.mkdir()
    (d / "f").write_text("x")
    with pytest.raises(OSError, match="not empty"):
        d.rmdir()
    (d / "f").unlink()
    d.rmdir()
    (m.head / "d").rmdir()
    assert os.listdir(m.head) == []


def test_a_directory_outlives_its_last_entry(m):
    with m.open("a") as s:
        s["g/h/x"] = np.arange(3)
    (m.head / "g" / "h" / "x.npy").unlink()
    assert os.listdir(m.head / "g") == ["h"]
    sh("rm -r g", cwd=m.head)
    assert os.listdir(m.head) == []


def test_directories_move_in_one_transaction(m):
    for i in range(20):
        p = m.head / "a" / f"d{i % 4}"
        p.mkdir(parents=True, exist_ok=True)
        np.save(p / f"x{i}.npy", np.arange(i))
        (p / f"t{i}").write_text(str(i))
    os.symlink("d0", m.head / "a" / "link")
    (m.head / "a" / "d1" / "t1").chmod(0o600)
    before = m.versions()
    os.rename(m.head / "a", m.head / "b")
    assert m.versions() == before + 1
    assert not (m.head / "a").exists()
    assert np.array_equal(np.load(m.head / "b" / "d3" / "x19.npy"), np.arange(19))
    assert os.readlink(m.head / "b" / "link") == "d0"
    assert stat.S_IMODE((m.head / "b" / "d1" / "t1").stat().st_mode) == 0o600
    (m.head / "empty").mkdir()
    os.rename(m.head / "b", m.head / "empty")
    with pytest.raises(OSError):
        os.rename(m.head / "empty", m.head / "empty" / "d1")


def test_a_working_directory_moves_along(m):
    (m.head / "a" / "b").mkdir(parents=True)
    sh("cd a/b && mv ../../a ../../c && echo x > f && cat f", cwd=m.head)
    assert (m.head / "c" / "b" / "f").read_text() == "x\n"
    os.rename(m.head / "c", m.head / ("long" * 40))
    (m.head / ("long" * 40) / "b" / "g").write_text("y")
    with m.open() as s:
        assert s["long" * 40 + "/b/g"] == b"y"


def test_names_of_one_stem(m):
    """ "x", "x.npy" and "x.pkl" are one key through the API; nothing is ever lost for that."""
    np.save(m.head / "x.npy", np.arange(3))
    (m.head / "x.pkl").write_bytes(pickle.dumps(1))
    assert sorted(os.listdir(m.head)) == ["x.npy", "x.pkl"]
    assert pickle.loads((m.head / "x.pkl").read_bytes()) == 1
    with pytest.raises(FileExistsError):
        (m.head / "x").mkdir()
    with pytest.raises(FileExistsError):
        (m.head / "x").write_text("x")
    (m.head / "y").mkdir()
    np.save(m.head / "y.npy", np.arange(4))
    assert np.array_equal(np.load(m.head / "y.npy"), np.arange(4))
    (m.head / "y" / "z").write_text("z")
    assert sorted(os.listdir(m.head)) == ["x.npy", "x.pkl", "y", "y.npy"]


def test_links_special_files_and_old_versions_are_refused(m):
    (m.head / "a").write_text("a")
    with pytest.raises(PermissionError):
        os.link(m.head / "a", m.head / "b")
    with pytest.raises(PermissionError):
        os.mkfifo(m.head / "p")
    with pytest.raises(OSError, match=r"Read-only|not permitted|Permission"):
        (m.point / f"@{m.versions()}" / "b").write_text("b")
    with pytest.raises(OSError, match=r"Read-only|not permitted|Permission"):
        (m.point / "b").mkdir()


def test_names_that_are_no_keys(m):
    for name in (b"\xff\xfe", b"x" * 251, b"x" * 255):
        with pytest.raises(OSError):
            os.close(os.open(os.fsencode(m.head) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    long = m.head / ("x" * 246 + ".npy")
    np.save(long, np.arange(3))
    assert np.load(long).sum() == 3
    deep = m.head.joinpath(*["d" * 200] * 4)
    deep.mkdir(parents=True)
    (deep / ("f" * 200)).write_text("deep")
    np.save(deep / ("a" * 200 + ".npy"), np.arange(4))
    os.rename(m.head / ("d" * 200), m.head / "e")
    assert len(list((m.head / "e").rglob("*"))) == 5


def test_mode_and_times_are_kept(m):
    p = m.head / "a"
    p.write_text("a")
    p.chmod(0o751)
    os.utime(p, ns=(1, 1_234_567_890_123_456_789))
    st = p.stat()
    assert stat.S_IMODE(st.st_mode) == 0o751 and st.st_mtime_ns == 1_234_567_890_123_456_789
    np.save(m.head / "x.npy", np.arange(3))
    raw = (m.head / "x.npy").read_bytes()
    (m.head / "x.npy").chmod(0o600)
    assert (m.head / "x.npy").read_bytes() == raw
    with m.open("a") as s:
        s["a"] = b"new"
    assert p.stat().st_mtime_ns != 1_234_567_890_123_456_789


# --- tools -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(m):
    src = m.dir / "src"
    (src / "sub" / "deep").mkdir(parents=True)
    rng = np.random.default_rng(3)
    for i in range(12):
        np.save(src / "sub" / f"x{i}.npy", rng.normal(size=(i, 50)))
        (src / "sub" / "deep" / f"t{i}.txt").write_bytes(rng.bytes(i * 1000))
    (src / "o.pkl").write_bytes(pickle.dumps({"a": 1}))
    (src / "run.sh").write_text("#!/bin/sh\n")
    (src / "run.sh").chmod(0o755)
    os.symlink("sub/x3.npy", src / "link")
    os.symlink("nowhere", src / "dangling")
    (src / "hollow").mkdir()
    for i, p in enumerate(sorted(src.rglob("*"))):
        os.utime(p, ns=(0, 1_600_000_000_000_000_000 + i * 1_000_000_000), follow_symlinks=False)
    return src


def listing(top):
    out = {}
    for p in sorted(top.rglob("*")):
        st = p.lstat()
        kind = stat.S_IFMT(st.st_mode)
        data = os.readlink(p) if stat.S_ISLNK(st.st_mode) else p.read_bytes() if stat.S_ISREG(st.st_mode) else ""
        times = 0 if stat.S_ISDIR(st.st_mode) else st.st_mtime_ns
        out[str(p.relative_to(top))] = (kind, stat.S_IMODE(st.st_mode), times, data)
    return out


def test_cp_a(m, tree):
    sh(f"cp -a {tree} {m.head}/dst")
    assert listing(m.head / "dst") == listing(tree)
    sh(f"diff -r --no-dereference {tree} {m.head}/dst")


def test_tar(m, tree):
    sh(f"tar cf {m.dir}/t.tar -C {tree} . && mkdir {m.head}/dst && tar xf {m.dir}/t.tar -C {m.head}/dst")
    assert listing(m.head / "dst") == listing(tree)
    sh(f"tar df {m.dir}/t.tar -C {m.head}/dst")


@pytest.mark.skipif(not shutil.which("rsync"), reason="no rsync")
def test_rsync_twice_transfers_once(m, tree):
    sh(f"rsync -a {tree}/ {m.head}/dst/")
    assert listing(m.head / "dst") == listing(tree)
    before = m.versions()
    again = sh(f"rsync -a --itemize-changes --stats {tree}/ {m.head}/dst/").stdout
    assert "Number of regular files transferred: 0" in again
    assert [line for line in again.splitlines() if line[:2] in ("<f", ">f", "cL", ".f", ".L")] == []
    np.save(tree / "sub" / "x3.npy", np.arange(7))
    sh(f"rsync -a --delete {tree}/ {m.head}/dst/")
    assert m.versions() > before
    with m.open() as s:
        assert np.array_equal(s["dst/sub/x3"], np.arange(7))
    (tree / "sub" / "x4.npy").unlink()
    sh(f"rsync -a --delete {tree}/ {m.head}/dst/")
    assert not (m.head / "dst" / "sub" / "x4.npy").exists()
    sh(f"rsync -a --inplace {tree}/ {m.head}/dst/")
    assert listing(m.head / "dst") == listing(tree)


@pytest.mark.skipif(not shutil.which("git"), reason="no git")
def test_git(m, tree):
    sh(
        f"mkdir repo && cd repo && cp -a {tree}/. . && git init -q && git config user.email a@b && git config user.name a && git add -A && "
        "git commit -qm one && echo two >> run.sh && git commit -qam two && git checkout -q HEAD~1 && git fsck --strict && git status --porcelain",
        cwd=m.head,
    )
    sh(f"git clone -q {m.head}/repo {m.dir}/clone && cd {m.dir}/clone && git fsck")
    assert "git gc" not in sh("git gc -q && git log --oneline | wc -l", cwd=m.head / "repo").stderr


@pytest.mark.skipif(not shutil.which("fio"), reason="no fio")
@pytest.mark.parametrize("engine", ["psync", "mmap"])
def test_fio_verify(m, engine):
    sh(
        f"fio --name=v --directory={m.head} --rw=randwrite --bs=4k-64k --bsrange=4k-64k --size=16m --verify=crc32c --do_verify=1 "
        f"--ioengine={engine} --fsync=64 --verify_fatal=1 --randseed=7 --fallocate=none"
    )


def test_sqlite(m):
    src = m.dir / "a.db"
    with contextlib.closing(sqlite3.connect(src)) as c:
        c.execute("create table t (i integer, x real)")
        c.executemany("insert into t values (?, ?)", [(i, i / 2) for i in range(10_000)])
        c.commit()
    shutil.copy(src, m.head / "a.db")
    with contextlib.closing(sqlite3.connect(f"file:{m.head}/a.db?mode=ro", uri=True)) as c:
        assert c.execute("select sum(x) from t").fetchone() == (sum(range(10_000)) / 2,)


def test_hdf5(m):
    h5py = pytest.importorskip("h5py")
    with h5py.File(m.dir / "a.h5", "w") as f:
        f["x"] = np.arange(100_000)
    shutil.copy(m.dir / "a.h5", m.head / "a.h5")
    with h5py.File(m.head / "a.h5", "r") as f:
        assert f["x"][-1] == 99_999


def test_pandas(m):
    pd = pytest.importorskip("pandas")
    df = pd.DataFrame({"a": range(1000), "b": [i / 3 for i in range(1000)]})
    df.to_csv(m.head / "t.csv", index=False)
    assert pd.read_csv(m.head / "t.csv").equals(df)
    df.to_pickle(m.head / "t.pkl")
    assert pd.read_pickle(m.head / "t.pkl").equals(df)


def test_gzip_zip_and_savez(m):
    np.savez(m.head / "z.npz", a=np.arange(5), b=np.eye(3))
    with np.load(m.head / "z.npz") as z:
        assert np.array_equal(z["b"], np.eye(3))
    sh(
        "seq 100000 > n && gzip -k n && gunzip -c n.gz | cmp - n && dd if=n of=n2 bs=4k conv=notrunc,fsync 2>/dev/null && cmp n n2",
        cwd=m.head,
    )
    sh("sort -n n -o n3 && sed -i s/^5$/five/ n3 && grep -c five n3", cwd=m.head)


def test_two_writers_share_a_file(m):
    p = m.head / "a"
    p.write_bytes(bytes(20_000))
    f, g = os.open(p, os.O_RDWR), os.open(p, os.O_RDWR)
    os.pwrite(f, b"f", 0)
    os.pwrite(g, b"g", 10_000)
    assert os.pread(f, 1, 10_000) == b"g"
    os.close(f)
    os.close(g)
    with m.open() as s:
        assert s["a"][0:1] == b"f" and s["a"][10_000:10_001] == b"g"


def test_the_name_shows_what_is_being_written(m):
    p = m.head / "a"
    with open(p, "w") as f:
        f.write("one")
        f.flush()
        os.fsync(f.fileno())
        f.write(" two")
        f.flush()
        assert p.stat().st_size == 7 and p.read_text() == "one two"
        assert os.listdir(m.head) == ["a"]
    assert p.read_text() == "one two"


# --- random testing ----------------------------------------------------------------------------------------------------------------------


class Fsx:
    """Reads, writes, truncations and mappings against bytes in memory, as Apple's fsx does."""

    LARGEST = 300_000

    def __init__(self, path, seed):
        self.path, self.r, self.model = path, random.Random(seed), bytearray()
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)

    def span(self):
        at = self.r.randrange(self.LARGEST)
        return at, self.r.randrange(1, min(60_000, self.LARGEST - at) + 1)

    def put(self, at, data):
        if len(self.model) < at + len(data):
            self.model.extend(bytes(at + len(data) - len(self.model)))
        self.model[at : at + len(data)] = data

    def read(self):
        at, n = self.span()
        assert os.pread(self.fd, n, at) == self.model[at : at + n]

    def write(self):
        at, n = self.span()
        data = self.r.randbytes(n)
        os.pwrite(self.fd, data, at)
        self.put(at, data)

    def truncate(self):
        n = self.r.randrange(self.LARGEST)
        os.ftruncate(self.fd, n)
        del self.model[n:]
        self.model.extend(bytes(n - len(self.model)))

    def map_write(self):
        import mmap

        if len(self.model) < 2:
            return
        with mmap.mmap(self.fd, len(self.model)) as view:
            at = self.r.randrange(len(self.model) - 1)
            data = self.r.randbytes(self.r.randrange(1, min(40_000, len(self.model) - at) + 1))
            view[at : at + len(data)] = data
            self.put(at, data)
            if self.r.random() < 0.3:
                view.flush()

    def map_read(self):
        import mmap

        if self.model:
            with mmap.mmap(self.fd, len(self.model), prot=mmap.PROT_READ) as view:
                assert view[:] == self.model

    def punch(self):
        at, n = self.span()
        subprocess.run(
            ["fallocate", "-p", "-o", str(at), "-l", str(n), f"/dev/fd/{self.fd}"], pass_fds=[self.fd], check=True
        )
        n = max(0, min(n, len(self.model) - at))
        self.model[at : at + n] = bytes(n)

    def fsync(self):
        os.fsync(self.fd)

    def reopen(self):
        os.close(self.fd)
        if self.r.random() < 0.3:
            assert self.path.read_bytes() == self.model
        if self.r.random() < 0.2:
            other = self.path.with_name(f"f{self.r.randrange(1000)}")
            os.rename(self.path, other)
            self.path = other
        self.fd = os.open(self.path, os.O_RDWR)
        assert os.fstat(self.fd).st_size == len(self.model)

    def steps(self, n, after=lambda: None):
        what = [self.read] * 4 + [self.write] * 5 + [self.truncate, self.map_write, self.map_write, self.map_read]
        what += [self.fsync, self.reopen]
        for _ in range(n):
            self.r.choice(what)()
            after()


@pytest.mark.parametrize("seed", range(4))
def test_fsx(m, seed):
    f = Fsx(m.head / "f", seed)
    f.steps(250)
    if seed == 0:
        f.punch()
        f.map_read()
    f.reopen()
    os.close(f.fd)
    with m.open() as s:
        eventually(lambda: s[f.path.name] == f.model)


# --- deaths ---------------------------------------------------------------------------------------------------------------------------------


def needs_resend():
    release = tuple(int(p) for p in os.uname().release.split(".")[:2])
    return pytest.mark.skipif(release < (6, 9), reason="this kernel does not send requests again")


@needs_resend()
@pytest.mark.parametrize("seed", range(int(os.environ.get("SEEDS", "2"))))
def test_kills_in_the_middle_of_writes(m, seed):
    r = random.Random(seed)
    done = threading.Event()

    def killer():
        while not done.wait(r.random() * 0.05):
            for pid in m.workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    t = threading.Thread(target=killer)
    t.start()
    try:
        f = Fsx(m.head / "f", seed)
        f.steps(150)
        for i in range(20):
            data = r.randbytes(200_000)
            (m.head / f"w{i}").write_bytes(data)
            assert (m.head / f"w{i}").read_bytes() == data
            (m.head / f"d{i}").mkdir()
            os.rename(m.head / f"w{i}", m.head / f"d{i}" / "w")
            os.rename(m.head / f"d{i}", m.head / f"e{i}")
            assert (m.head / f"e{i}" / "w").read_bytes() == data
            if i % 2:
                os.unlink(m.head / f"e{i}" / "w")
                os.rmdir(m.head / f"e{i}")
        os.close(f.fd)
    finally:
        done.set()
        t.join()
    assert f.path.read_bytes() == f.model
    assert sorted(os.listdir(m.head)) == sorted([f.path.name, *(f"e{i}" for i in range(0, 20, 2))])
    with m.open() as s:
        eventually(lambda: s[f.path.name] == f.model)
        assert s.check().ok if hasattr(s.check(), "ok") else True


@needs_resend()
def test_an_open_file_outlives_the_worker(m):
    with open(m.head / "a", "wb") as f:
        f.write(b"x" * 100_000)
        f.flush()
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        (worker,) = m.workers()
        os.kill(worker, signal.SIGKILL)
        f.write(b"y" * 100_000)
    assert (m.head / "a").read_bytes() == b"x" * 100_000 + b"y" * 100_000
    before = m.versions()
    eventually(lambda: m.versions() >= before)


def test_unmounting_stores_what_is_closed(m):
    (m.head / "a").write_text("a")
    np.lib.format.open_memmap(m.head / "x.npy", "w+", "f8", (3000,))[:] = 1
    m.stop()
    with m.open() as s:
        assert s["a"] == b"a" and s["x"].sum() == 3000
    m.start()
    assert np.load(m.head / "x.npy").sum() == 3000


GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "mount.md"
# The commands as `pagestone` has them, without asking which of them this installation's command line knows.
PRELUDE = """
pagestone() { case $1 in mount) "$SERVER" --view "$2" "$3";; umount) "$SERVER" --umount "$2";; *) python -m pagestone "$@";; esac; }
ls() { LC_ALL=C command ls "$@"; }
"""


@pytest.mark.skipif(not GUIDE.exists(), reason="without documents")
def test_the_examples_of_the_guide():
    folder = Path(tempfile.mkdtemp(prefix="pagestone-guide-", dir=BASE))
    environment = {**os.environ, "SERVER": str(SERVER), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    steps = []
    for block in re.findall(r"^```console\n(.*?)^```", GUIDE.read_text(), re.M | re.S):
        for step in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, output = step.partition("\n")
            steps.append((command, output))
    assert len(steps) > 10
    try:
        for command, output in steps:
            r = subprocess.run(
                ["timeout", "60", "bash", "-c", PRELUDE + command],
                cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )  # fmt: skip
            assert (r.returncode, r.stdout) == (0, output), command
    finally:
        subprocess.run(["umount", "-l", folder / "m"], capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, *sys.argv[1:]]))
