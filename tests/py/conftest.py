"""Fixtures: stores in memory, on tmpfs and on a disk; nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pagestone as ps
import pytest
from pagestone import _core


@pytest.fixture
def kernel_tells_dirty_pages() -> None:
    """Without PAGEMAP_SCAN and /proc/self/pagemap a commit compares all pages: minutes for a terabyte, even of holes."""
    known = _core.capabilities()
    if not known["pagemap_scan"][0] and not known["pagemap"][0]:
        pytest.skip("neither PAGEMAP_SCAN nor pagemap: a terabyte would be compared")


@pytest.fixture
def proc() -> None:
    """For tests that look at processes through /proc, which a bare chroot has not."""
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("/proc is not mounted")


@pytest.fixture
def store() -> Iterator[ps.Store]:
    """A fresh anonymous store."""
    with ps.open() as s:
        yield s


def _directory(where: str, tmp_path: Path) -> Path:
    return tmp_path if where == "disk" else Path(tempfile.mkdtemp(prefix="pagestone-test-", dir="/dev/shm"))


@pytest.fixture(params=["disk", "shm"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a store may be made: in a temporary directory, and on /dev/shm."""
    if request.param == "shm" and not os.access("/dev/shm", os.W_OK):
        pytest.skip("/dev/shm is not there")
    folder = _directory(request.param, tmp_path)
    yield str(folder / "test.ps")
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)


@pytest.fixture
def shm_path() -> Iterator[str]:
    """Where a store may be made, in memory if possible: for tests to which the medium means nothing."""
    folder = tempfile.mkdtemp(prefix="pagestone-test-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    yield folder + "/test.ps"
    shutil.rmtree(folder, ignore_errors=True)
