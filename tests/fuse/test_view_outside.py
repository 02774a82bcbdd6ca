"""The view under head/ as programs see it: what is true of any file system right after a name was listed, moved, closed or removed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pagestone as ps
import pytest
from conftest import SERVER, Server

pytestmark = pytest.mark.usefixtures("needs_fuse")
BASE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture
def head() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="pagestone-outside-", dir=BASE))
    (folder / "m").mkdir()
    store = ps.open(str(folder / "s.ps"), "w")
    server = Server(SERVER, str(folder / "s.ps"), folder / "m")
    yield folder / "m/head"
    server.end()
    store.close()
    shutil.rmtree(folder, ignore_errors=True)


def list_with_attributes(folder: Path) -> None:
    for entry in os.scandir(folder):
        entry.stat(follow_symlinks=False)


def test_what_was_just_listed_and_moved_opens_for_writing(head: Path) -> None:
    (head / "d").mkdir()
    for i in range(20):
        (head / "d" / f"a{i}").write_bytes(b"one")
        list_with_attributes(head / "d")
        os.rename(head / "d" / f"a{i}", head / "d" / f"b{i}")
        with open(head / "d" / f"b{i}", "ab") as f:
            f.write(b" two")
        assert (head / "d" / f"b{i}").read_bytes() == b"one two"
    list_with_attributes(head / "d")
    os.rename(head / "d", head / "e")
    with open(head / "e/b3", "ab") as f:
        f.write(b" three")
    assert (head / "e/b3").read_bytes() == b"one two three"
    list_with_attributes(head / "e")
    os.rename(head / "e/b3", head / "e/c3")
    (head / "e/b3").write_bytes(b"new")
    with open(head / "e/b3", "ab") as f:
        f.write(b"er")
    assert (head / "e/b3").read_bytes() == b"newer"
    assert (head / "e/c3").read_bytes() == b"one two three"


def test_a_file_that_is_closed_while_its_directory_is_listed_is_in_the_listing_once(head: Path) -> None:
    (head / "d").mkdir()
    for i in range(300):
        (head / "d" / f"f{i}").touch()  # stored by RELEASE, which close(2) does not wait for
        assert sorted(os.listdir(head / "d")) == sorted(f"f{k}" for k in range(i + 1))


def test_attributes_that_were_just_set_are_shown_after_a_listing(head: Path) -> None:
    (head / "f").write_bytes(b"x")
    (head / "l").symlink_to("f")
    for t in range(10**18, 10**18 + 10):
        list_with_attributes(head)
        os.utime(head / "l", ns=(t, t), follow_symlinks=False)
        os.chmod(head / "f", 0o600 + t % 8 * 8)
        assert os.lstat(head / "l").st_mtime_ns == t
        assert os.stat(head / "f").st_mode & 0o777 == 0o600 + t % 8 * 8


def test_fsync_of_a_file_that_was_removed_or_moved_while_open(head: Path) -> None:
    for how in ("unlink", "rename"):
        for data in (b"", b"data"):
            (head / "f").write_bytes(data)
            fd = os.open(head / "f", os.O_RDONLY)
            os.rename(head / "f", head / "g")
            if how == "unlink":
                os.unlink(head / "g")
            os.fsync(fd)
            assert os.read(fd, 10) == data
            os.close(fd)


def test_opening_again_right_after_close(head: Path) -> None:
    want = b""
    (head / "f").write_bytes(want)
    for i in range(400):
        with open(head / "f", "r+b", buffering=0) as f:
            if i % 3 == 0:
                f.truncate(0)
                want = b""
            f.seek(len(want))
            f.write(b"%03d" % i)
        want += b"%03d" % i
        if i % 50 == 0:
            assert (head / "f").read_bytes() == want
    assert (head / "f").read_bytes() == want
