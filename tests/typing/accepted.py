"""What mypy --strict must accept."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import pagestone as ps
from numpy.typing import NDArray

s: ps.Store = ps.open("/dev/shm/x.ps", "a", size="2GB", durability="full", history=100, allow_pickle=None, timeout=None)
t: ps.Store = ps.open(Path("x.ps"), mode="r")
m: MutableMapping[str, Any] = s
with ps.open() as u:
    u["x"] = np.arange(3)
    x: ps.Array = u["x"]
    total: float = x.sum()
    store: ps.Store | None = x.store
    key: str | None = x.key
    version: int | None = x.version
private: NDArray[Any] = s.private("x")
group: ps.Group = s.group("a/b")
group["c"] = 1
deeper: MutableMapping[str, Any] = group.group("c")
snap: ps.Snapshot = s.snapshot()
read: Mapping[str, Any] = snap
for v in (1, -1, "tag", dt.datetime.now()):
    with s.at(v) as old:
        when: dt.datetime = old.time
        number: int = old.version
with s.begin("serializable", message="why") as txn:
    txn["x"][0] = 1
    a: NDArray[Any] = txn.create("y", (3, 4), "f4", order="F", fill=1, exist_ok=True)
    b: NDArray[Any] = txn.empty("z", 5)
    txn.append("y", [1, 2, 3, 4])
    txn.resize("y", (5, 4))
    point: ps.Savepoint = txn.savepoint()
    point.rollback()
    txn.depends("x", np.s_[3:5])
    with txn.edit("o") as o:
        o.append(1)
    base: ps.Snapshot = txn.base
    committed: int = txn.commit("message")
s.update_with("n", lambda n: n + 1, default=0)
result: Any = s.run(lambda t: t["x"], retries=3)
versions: list[int] = s.versions
tags: Mapping[str, int] = s.tags
s.tag("a", -1)
commits: list[ps.Commit] = s.log("x")
keys: tuple[str, ...] = commits[0].keys
d: ps.Diff = s.diff(1, "tag")
ranges: dict[str, list[tuple[int, int]] | None] = d.changed
new: int | None = s.wait(timeout=1.5)
stat: ps.Stat = s.stat()
live: int = stat.live
report: ps.Report = s.check(data=False)
ok: bool = report.ok
reader: ps.Reader = s.readers()[0]
pid: int | None = reader.pid
shared: ps.Array = ps.share(np.zeros(3))
with ps.lease(60):
    pass
path: str = ps.get_include()
try:
    txn.commit()
except ps.ConflictError as e:
    won: int = e.version
    clashes: dict[str, list[tuple[int, int]]] = e.ranges
except (ps.StoreFullError, OSError) as e2:
    code: int | None = e2.errno
