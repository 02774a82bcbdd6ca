"""A store in memory without a quota ends in StoreFullError, not in the kernel's killing a process.

The memory cgroup of a container is made small here: a group below our own, which a child enters before it imports anything.
Without the right to make one (or /sys/fs/cgroup) those tests skip.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pagestone as ps
import pytest
from pagestone import _core

LIMIT = 256 << 20
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@pytest.fixture
def limited() -> None:
    if not _core.capabilities()["memory_limit"][0]:
        pytest.skip("PAGESTONE_WITHOUT=memory_limit")


def _new_group() -> tuple[Path, str]:
    """An empty memory cgroup below our own, and the name of its limit."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            above, limit = V1 / path.lstrip("/"), "memory.limit_in_bytes"
            if not above.is_dir():  # another name for it inside a container
                above = V1
        elif controllers == "" and (V2 / "cgroup.controllers").exists():
            # The groups with children may hold no process, so not below ours but at the top.
            above, limit = V2, "memory.max"
        else:
            continue
        group = above / f"pagestone-test-{os.getpid()}"
        group.mkdir()
        if (group / limit).exists():
            return group, limit
        group.rmdir()
    raise OSError("no memory controller")


@pytest.fixture
def group(limited: None, proc: None) -> Iterator[Path]:
    """A memory cgroup of 256 MiB."""
    try:
        g, limit = _new_group()
    except OSError as e:
        pytest.skip(f"no memory cgroup can be made here: {e}")
    try:
        (g / limit).write_text(str(LIMIT))
        yield g
    finally:
        g.rmdir()


def run_in(group: Path, code: str, *args: object) -> str:
    """What a Python that lives in the group prints. Killed by the kernel, it has return code −9."""
    enter = f"import os; open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
    r = subprocess.run(
        [sys.executable, "-c", enter + code, *map(str, args)], capture_output=True, text=True, timeout=120
    )
    assert r.returncode == 0, (r.returncode, r.stderr[-2000:])
    return r.stdout


FILL = """
import sys, numpy as np, pagestone as ps
s = ps.open(sys.argv[1] if len(sys.argv) > 1 else None)
def fill(name):
    for n in range(1000):
        try:
            s[f"{name}{n}"] = np.full(125_000, n)
        except ps.StoreFullError as e:
            assert e.errno == 28
            return n, str(e)
n, text = fill("k")
for i in range(n):
    assert (s[f"k{i}"] == i).all(), i
assert f"k{n}" not in s and s.check().ok
try:
    with s.begin() as t:
        t.empty("large", 200_000_000)
    raise SystemExit("not refused")
except ps.StoreFullError:
    pass
small = 0
try:
    for small in range(1_000_000):
        s[f"small{small}"] = "x" * 50
except ps.StoreFullError:
    pass
for i in range(0, n, 2):
    del s[f"k{i}"]
again, _ = fill("again")
for i in range(1, n, 2):
    assert (s[f"k{i}"] == i).all(), i
for i in range(again):
    assert (s[f"again{i}"] == i).all(), i
for i in range(0, again, 2):
    del s[f"again{i}"]
with s.begin() as t:
    for i in range(1, n, 2):
        t[f"k{i}"][:10] = -1
assert s.check().ok
print(n, again, small)
print(text)
"""


def test_a_store_without_a_path_fills_its_cgroup_and_the_process_lives(group: Path) -> None:
    counts, text = run_in(group, FILL).splitlines()
    n, again, _ = map(int, counts.split())
    assert n >= 50 and again >= n // 3
    assert re.search(r"the memory cgroup is full: the store needs .* of 268 MB in all 67\.1 MB are kept", text), text
    assert "raise the cgroup's limit" in text and "size=" in text


def test_a_store_on_tmpfs_does_too(group: Path) -> None:
    if not os.path.ismount("/dev/shm"):
        pytest.skip("/dev/shm is no tmpfs")
    path = f"/dev/shm/pagestone-test-memory-{os.getpid()}.ps"
    try:
        counts, text = run_in(group, FILL, path).splitlines()
        assert int(counts.split()[0]) >= 50 and "the memory cgroup is full" in text
    finally:
        subprocess.run(["rm", "-rf", path], check=True)


def test_history_goes_first(group: Path) -> None:
    code = """
import numpy as np, pagestone as ps
s = ps.open(history="all")
for i in range(100):
    s["x"] = np.full(1_250_000, i)
assert (s["x"] == 99).all() and len(s.versions) < 50, s.versions
print(len(s.versions))
"""
    assert int(run_in(group, code)) >= 1


def test_several_processes_fill_one_cgroup(group: Path) -> None:
    code = """
import os, sys, numpy as np, pagestone as ps
s = ps.open()
pids = []
for p in range(4):
    pid = os.fork()
    if pid == 0:
        n = 0
        try:
            for n in range(1000):
                s[f"{p}-{n}"] = np.full(125_000, n)
        except ps.StoreFullError:
            os._exit(0)
        os._exit(1)
    pids.append(pid)
codes = [os.waitpid(p, 0)[1] for p in pids]
assert codes == [0] * 4, codes
assert all((s[k] == int(k.split("-")[1])).all() for k in s)
print(len(s))
"""
    assert int(run_in(group, code)) >= 50


def test_doctor_names_the_cgroup(group: Path) -> None:
    out = run_in(group, "from pagestone._core import memory_limit; print(*memory_limit(), sep=',')")
    by, left, kept, total = out.split(",")
    assert by == "memory cgroup" and int(total) == LIMIT and int(kept) == LIMIT // 4 and int(left) < LIMIT - LIMIT // 4
    out = run_in(group, "from pagestone._cli import main; main(['doctor'])")
    assert re.search(r"memory for stores .* of 268 MB \(memory cgroup\); 67\.1 MB stay free", out), out


def test_a_quota_takes_the_place_of_the_limit(limited: None) -> None:
    """Who says size= decides alone."""
    by, left, kept, total = _core.memory_limit()
    assert by in ("machine", "memory cgroup") and 0 < kept <= total // 4 and left <= total
    with ps.open(size="8MB", history=0) as s, pytest.raises(ps.StoreFullError, match="quota"):
        for n in range(20):
            s[f"k{n}"] = b"x" * 1_000_000


def test_without_the_capability_nothing_limits() -> None:
    code = "from pagestone._core import memory_limit; print(memory_limit())"
    env = {**os.environ, "PAGESTONE_WITHOUT": "memory_limit"}
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert r.stdout == "None\n", r.stderr
