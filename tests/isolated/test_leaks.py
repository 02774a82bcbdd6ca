"""Nothing grows: objects, memory, descriptors, mappings over loops of everything that the module does, errors included."""

from __future__ import annotations

import gc
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pagestone as ps
import pytest
from pagestone._core import _plain_decode, _plain_encode


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def anonymous() -> int:
    """Private memory of this process in bytes; the store's shared pages do not count."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Anonymous:"))


def resources():
    return len(os.listdir("/proc/self/fd")), len(Path("/proc/self/maps").read_text().splitlines())


if not os.path.exists("/proc/self/maps"):
    pytest.skip("/proc is not mounted", allow_module_level=True)


class Unloadable:
    def __reduce__(self):
        return _fail, ()


def _fail():
    raise RuntimeError("no")


@pytest.fixture(scope="module")
def s(tmp_path_factory):
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = tmp_path_factory.mktemp("s") if base is None else Path(base) / f"pagestone-leaks-{os.getpid()}"
    s = ps.open(path / "a.ps" if base is None else path, history=2)
    s["x"], s["small"], s["f"] = np.arange(20_000.0), np.arange(3), np.asfortranarray(np.ones((50, 60)))
    s["st"] = np.zeros(10, [("a", "i4"), ("b", "f8")])
    s["o"], s["big"], s["plain"], s["b"] = (
        {"a": (np.arange(9000.0),)},
        (b"x" * 100_000, {1}),
        [1, {"a": [np.float32(2)]}],
        b"q" * 5000,
    )
    s["bad"] = Unloadable()
    yield s
    s.close()
    if base:
        import shutil

        shutil.rmtree(path)


def expect(error, f):
    try:
        f()
    except error:
        return
    raise AssertionError


def with_txn(s, f):
    with s.begin() as t:
        f(t)


def conflict(s):
    t = s.begin()
    t["x"][5] = t["x"][5] + 1
    with s.begin() as u:
        u["x"][5] = u["x"][5] + 2
    expect(ps.ConflictError, t.commit)


def cycle(s):
    class Holder:
        pass

    h = Holder()
    t = s.begin()
    h.me, h.t, h.snap = h, t, t.base
    t.holder = h
    s2 = ps.open(s.path, "r")
    s2.me = s2


LOOPS = {
    "get array": lambda s: s["x"], "get small": lambda s: s["small"], "get struct": lambda s: s["st"]["a"], "get object": lambda s: s["o"]["a"][0][5],
    "get big": lambda s: s["big"], "get plain": lambda s: s["plain"], "get bytes": lambda s: s["b"],
    "missing": lambda s: expect(KeyError, lambda: s["nothing"]), "bad key": lambda s: expect(TypeError, lambda: s.__setitem__(1, 1)),
    "surrogate": lambda s: expect(KeyError, lambda: s["\udc80"]), "unloadable": lambda s: expect(RuntimeError, lambda: s["bad"]),
    "unpicklable": lambda s: expect(Exception, lambda: s.__setitem__("q", (np.zeros(5), lambda: 1))),
    "put array": lambda s: s.__setitem__("y", np.ones(3000)), "put strided": lambda s: s.__setitem__("y", np.ones((60, 60))[::2, ::3]),
    "put big strided": lambda s: s.__setitem__("z", np.ones((400, 800))[::2, :]), "put object": lambda s: s.__setitem__("p", {"k": (np.ones(2000), {1})}),
    "put plain": lambda s: s.__setitem__("l", [1, 2.0, "x", {"k": [2**100]}]), "put bytes": lambda s: s.__setitem__("m", memoryview(b"abcd")[::2]),
    "share pages": lambda s: s.__setitem__("w", s["x"]), "delete": lambda s: (s.__setitem__("d", 1), s.__delitem__("d")),
    "views": lambda s: (s["x"][3:].reshape(-1, 1).T, s["x"].view("u8"), s["f"].T[1:]), "results": lambda s: (s["x"] + 1, s["x"].sum(), s["x"][[1, 2]], np.sort(s["x"])),
    "pickle handle": lambda s: pickle.loads(pickle.dumps(s["x"][::2])), "pickle store": lambda s: pickle.loads(pickle.dumps(s)).close(),
    "pickle snapshot": lambda s: pickle.loads(pickle.dumps(s.snapshot())), "private": lambda s: s.private("x").__setitem__(0, 1),
    "iterate": lambda s: (list(s), dict(s.snapshot().items() if "bad" not in s else {}), len(s)), "iterate half": lambda s: next(iter(s)),
    "snapshot": lambda s: s.snapshot().close(), "at": lambda s: s.at(-1), "at error": lambda s: expect(ps.VersionExpiredError, lambda: s.at(1)),
    "tags": lambda s: (s.tag("t"), s.tags, s.untag("t")), "log": lambda s: s.log("x"), "diff": lambda s: s.diff(-2, -1), "versions": lambda s: s.versions,
    "readers": lambda s: s.readers(), "stat": lambda s: (s.stat(), s.info()), "check": lambda s: s.check(), "wait": lambda s: s.wait(timeout=0),
    "txn": lambda s: with_txn(s, lambda t: t["x"].__setitem__(0, 5)), "txn abort": lambda s: s.begin().abort(), "txn dropped": lambda s: s.begin()["x"],
    "txn empty": lambda s: with_txn(s, lambda t: (t.pop("e", None), t.empty("e", 5000).fill(2))), "txn objects": lambda s: with_txn(s, lambda t: (t["o"], t["plain"], list(t))),
    "append": lambda s: with_txn(s, lambda t: (t.__setitem__("ap", np.zeros(3)), t.append("ap", [1, 2]), t.resize("ap", 2))),
    "savepoint": lambda s: with_txn(s, lambda t: (t["x"], sp := t.savepoint(), t["x"].__setitem__(9, 1), sp.rollback())),
    "conflict": conflict, "update_with": lambda s: s.update_with("n", lambda n: n + 1, default=0), "open": lambda s: ps.open(s.path, "r").close(),
    "open dropped": lambda s: ps.open(s.path)["x"], "anonymous": lambda s: ps.open().close(), "open error": lambda s: expect(FileNotFoundError, lambda: ps.open("/nope/x/y", "r")),
    "share": lambda s: ps.share(np.ones(100)), "group": lambda s: s.group("g").setdefault("a", 1), "cycle": cycle,
    "plain error": lambda s: expect(ps.CorruptError, lambda: _plain_decode(b"l\x05\0\0\0NNs\x02\0\0\0")), "plain": lambda s: _plain_decode(_plain_encode([np.str_("x"), np.void(b"a"), {"k": 10**50}])),
}  # fmt: skip
COUNTS = {
    "check": 40,
    "anonymous": 60,
    "open": 100,
    "open dropped": 100,
    "share": 100,
    "cycle": 100,
    "put big strided": 60,
    "readers": 200,
    "pickle store": 100,
    "log": 15,
}


ROUNDS = 8  # the allocators settle in the first ones; what leaks grows in each


def grown(f, s, n: int) -> list[int]:
    """What `n` calls leave: blocks of Python's allocator, bytes of private memory, descriptors, mappings."""
    blocks, memory, before = sys.getallocatedblocks(), anonymous(), resources()
    for _ in range(n):
        f(s)
    gc.collect()
    fds, maps = resources()
    return [sys.getallocatedblocks() - blocks, anonymous() - memory, fds - before[0], maps - before[1]]


@pytest.mark.parametrize("name", LOOPS)
def test_nothing_grows(s, name):
    f, n = LOOPS[name], COUNTS.get(name, 500)
    for _ in range(n // 4 + 20):
        f(s)
    gc.collect()
    allowed = [max(10, n // 10), max(30_000, n * 100), 2, 30]
    seen = []
    while not seen or any(g > a for g, a in zip(seen[-1], allowed, strict=True)):
        assert len(seen) < ROUNDS, f"{n} calls leave blocks, bytes, descriptors, mappings: {seen}, allowed: {allowed}"
        seen.append(grown(f, s, n))
