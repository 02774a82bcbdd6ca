"""``ps.open``: what the arguments mean."""

from __future__ import annotations

import os
import re
from typing import Any

from ._errors import NotSupportedError
from ._store import Store

_MODES = {"r": 1, "r+": 2, "a": 3, "w": 4, "x": 5}
_DURABILITY = {None: 0, "none": 1, "ordered": 2, "full": 3}
_SIZE_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "pb": 10**15,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "pib": 2**50,
}  # fmt: skip
_TIME_UNITS = {"s": 1, "sec": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_size(size: Any) -> int:
    """Bytes of ``2_000_000``, ``"2GB"`` (2·10⁹) or ``"2GiB"`` (2·2³⁰)."""
    if isinstance(size, str):
        m = _NUMBER.fullmatch(size)
        if not m or m[2].lower() not in _SIZE_UNITS:
            raise ValueError(
                f"size {size!r} is not understood: write bytes, or a number with kB, MB, GB, TB, KiB, MiB, GiB or TiB"
            )
        n = int(float(m[1]) * _SIZE_UNITS[m[2].lower()]) if "." in m[1] else int(m[1]) * _SIZE_UNITS[m[2].lower()]
    else:
        n = _index(size, "size")
    if not 0 < n < 2**63:
        raise ValueError(f"size must be positive and below 8 EiB, not {size!r}")
    return n


def _index(value: Any, name: str) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a number or a str, not bool")
    try:
        return int(value.__index__())
    except AttributeError:
        raise TypeError(f"{name} must be an int or a str with a unit, not {type(value).__name__}") from None


def parse_history(history: Any) -> tuple[int, int]:
    """(kind, value) of pgs_options for None, 100, ``"64MB"``, ``"1h"``, ``"all"``, 0."""
    if history is None:
        return 0, 0
    kind, value = _history(history)
    if value >= 2**63:
        raise ValueError(f'history {history!r} is out of range: use "all" to keep everything')
    return kind, value


def _history(history: Any) -> tuple[int, int]:
    if isinstance(history, str):
        if history == "all":
            return 5, 0
        m = _NUMBER.fullmatch(history)
        unit = m[2].lower() if m else ""
        if m and unit in _TIME_UNITS:
            return 4, int(float(m[1]) * _TIME_UNITS[unit] * 1e9)
        if m and unit and unit in _SIZE_UNITS:
            return 3, parse_size(history)
        if m and m[1].isdigit() and not unit:
            return 2, int(m[1])
        raise ValueError(
            f'history {history!r} is not understood: a number of versions, a byte budget ("64MB"), '
            'an age ("90s", "30min", "1h", "7d"), "all" or 0'
        )
    n = _index(history, "history")
    if n < 0:
        raise ValueError("history cannot be negative")
    return 2, n


def parse_freeze(freeze: Any) -> int:
    """freeze_ns of pgs_options for None, ``"older than 1h"``, ``"never"``."""
    if freeze is None:
        return 0
    if not isinstance(freeze, str):
        raise TypeError(f"freeze must be a str or None, not {type(freeze).__name__}")
    if freeze == "never":
        return 2**64 - 1
    if freeze == "history":
        raise NotSupportedError(
            'freeze="history" (old versions compressed, the newest raw) is not there yet: freeze="older than 1h" compresses '
            "what was not changed for an hour, whatever version shows it, and freeze(key) compresses now"
        )
    words = freeze.split(None, 2)
    m = _NUMBER.fullmatch(words[2]) if len(words) == 3 and words[:2] == ["older", "than"] else None
    if not m or m[2].lower() not in _TIME_UNITS:
        raise ValueError(
            f'freeze {freeze!r} is not understood: "older than" and an age ("90s", "30min", "1h", "7d"), "never", or None'
        )
    ns = int(float(m[1]) * _TIME_UNITS[m[2].lower()] * 1e9)
    if not 0 < ns < 2**63:
        raise ValueError(f"freeze {freeze!r} is out of range: an age is more than 0 and less than 292 years")
    return ns


def open(
    path: str | os.PathLike[str] | None = None,
    mode: str = "a",
    *,
    size: int | str | None = None,
    durability: str | None = None,
    history: int | str | None = None,
    freeze: str | None = None,
    allow_pickle: bool | None = None,
    timeout: float | None = 30,
) -> Store:
    """Open a store, creating it if need be.

    Parameters
    ----------
    path : path-like, optional
        A directory, usually ``*.ps``, on tmpfs (``/dev/shm/demo.ps``) or on a disk. None: an anonymous store in memory,
        which other processes of the same user and PID namespace get through handles and which is gone with the last.
    mode : {"a", "r", "r+", "w", "x"}
        ``r`` read only (also without write permission); ``r+`` must exist; ``a`` create if missing; ``w`` anew: who has the
        old one open keeps reading it and their next commit raises; ``x`` must not exist.
    size : int or str, optional
        Quota: bytes, ``"2GB"`` = 2·10⁹, ``"2GiB"``; at least 128 KiB. Kept in the store, as the next two. Without one a
        store in memory may take what the machine and the memory cgroup leave (swap is not counted), less a head-room of a
        sixteenth of the whole, 64 MiB to 4 GiB: then `StoreFullError`, before the kernel kills a process. A quota takes
        the place of that limit.
    durability : {"none", "ordered", "full"}, optional
        ``none``: safe against killed processes (default in memory); ``ordered``: after a power loss some last commits may be
        missing, never a torn one; ``full``: a returned commit survives power loss (default on disk).
    history : int or str, optional
        What is kept besides tags and what readers use: a number of versions, a byte budget ``"64MB"``, an age ``"1h"``,
        ``"all"`` or 0. Default: a tenth of the live bytes, at least 64 MB.
    freeze : str, optional
        ``"older than 1h"``: keys that were not changed for so long are compressed, a part after a commit now and then, another
        at close, the rest by :meth:`Store.gc`. ``"never"``: nothing is, but by :meth:`Store.freeze`. Kept in the store.
    allow_pickle : bool, optional
        Whether pickled objects are loaded. Default: only where nobody but the calling user (or root) can write the store.
    timeout : float, optional
        Longest wait for another process's lock, in seconds; None: for ever.

    Returns
    -------
    Store

    Raises
    ------
    FileNotFoundError, FileExistsError
        As `mode` demands.
    NotAStoreError, FormatError, CorruptError, NotSupportedError
        The path holds something else, a newer store, a damaged one, or lies on a network file system.

    Examples
    --------
    >>> import numpy as np, pagestone as ps
    >>> with ps.open() as s:
    ...     s["x"] = np.arange(3)
    ...     s["x"].sum()
    np.int64(3)
    """
    if not isinstance(mode, str) or mode not in _MODES:
        raise ValueError(f"mode {mode!r} is not one of 'r', 'r+', 'a', 'w', 'x'")
    if not (durability is None or isinstance(durability, str)) or durability not in _DURABILITY:
        raise ValueError(f"durability {durability!r} is not one of 'none', 'ordered', 'full'")
    if path is None and mode in ("r", "r+"):
        raise ValueError(f"an anonymous store (path=None) is always new: mode {mode!r} needs a path")
    if mode == "r" and not (size is durability is history is freeze is None):
        raise ValueError("mode 'r' cannot change size, durability, history or freeze: open with 'r+'")
    if allow_pickle not in (None, True, False):
        raise TypeError(f"allow_pickle is True, False or None, not {allow_pickle!r}")
    if path is not None and not os.fspath(path):
        raise FileNotFoundError(2, "an empty path names no store: use None for an anonymous one")
    kind, value = parse_history(history)
    freeze_ns = parse_freeze(freeze)
    return Store._open(
        None if path is None else os.fsencode(os.path.abspath(path)),
        None,
        _MODES[mode],
        0 if size is None else parse_size(size),
        _DURABILITY[durability],
        kind,
        value,
        timeout_ns(timeout),
        0,
        -1 if allow_pickle is None else int(bool(allow_pickle)),
        freeze_ns,
    )


def timeout_ns(timeout: float | None) -> int:
    """Nanoseconds for the C library: None waits for ever; 0 gives up at once."""
    if timeout is None:
        return -1
    if not timeout >= 0:
        raise ValueError("timeout is a number of seconds, at least 0, or None")
    return max(1, int(min(timeout * 1e9, 2.0**62)))
