"""The view of a store under its supervisor: what a client reads is right, however often the worker dies."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pagestone as ps
import pytest
from conftest import SERVER, Server

pytestmark = pytest.mark.usefixtures("needs_fuse")

READER = """
import os, random, sys, time
import numpy as np
point, seconds, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
r, end, n = random.Random(seed), time.monotonic() + seconds, 0
while time.monotonic() < end:
    i, where = r.randrange(8), r.choice(["head", "@1"])
    path = f"{point}/{where}/g/x{i}.npy"
    a = np.load(path, mmap_mode="r") if r.random() < 0.5 else np.load(path)
    assert a.shape == (1 << 18,) and (a == np.arange(1 << 18) * (i + 1)).all(), path
    assert sorted(os.listdir(f"{point}/{where}/g")) == [f"x{i}.npy" for i in range(8)]
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # so that the next one asks the server again
    os.close(fd)
    n += 1
print(n)
"""


def test_a_view_whose_worker_is_killed_100_times_shows_every_byte(folder: Path, servers: list[Server]):
    store, point = str(folder / "s.ps"), folder / "mnt"
    point.mkdir()
    with ps.open(store, "w") as s, s.begin() as t:
        for i in range(8):
            t[f"g/x{i}"] = np.arange(1 << 18) * (i + 1)
    server = Server(SERVER, store, point)
    servers.append(server)
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, point, "16", str(i)], stdout=subprocess.PIPE) for i in range(2)
    ]
    rnd = random.Random(7)
    time.sleep(0.5)
    for _ in range(100):
        server.kill_worker()
        time.sleep(rnd.uniform(0.05, 0.2))
    for r in readers:
        out, _ = r.communicate(timeout=60)
        assert r.returncode == 0, server.messages()
        assert int(out) > 20
    assert server.messages().count("died") == 100
