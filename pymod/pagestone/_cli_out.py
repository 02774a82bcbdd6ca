"""What the command line prints: tables, sizes, JSON, colours and progress.

Results go to stdout, everything about the work itself to stderr. Text from a store (keys, messages, commands) was written by
others: control characters in it are shown as escapes, so that no key can move the cursor.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

QUIET_S = 0.4  # work shorter than this shows no progress


class Fail(Exception):
    """The command failed: exit code 1, one line on stderr that names the cure."""


class Usage(Exception):
    """The arguments make no sense together: exit code 2."""


def safe(text: object) -> str:
    """`text` with control characters and the like as escapes."""
    s = str(text)
    return s if s.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in s)


def size(n: float) -> str:
    """``1234567`` -> ``1.2 MB`` (powers of 1,000, as ``size=`` of open)."""
    if n < 1000:
        return f"{int(n)} B"
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        n /= 1000
        if n < 999.5 or unit == "PB":
            return f"{n:.1f} {unit}" if n < 99.95 else f"{n:.0f} {unit}"
    raise AssertionError


def count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def iso(time: dt.datetime) -> str:
    """For JSON: ISO 8601 in UTC, always with microseconds."""
    return time.astimezone(dt.timezone.utc).isoformat(timespec="microseconds")


def local(time: dt.datetime) -> str:
    """For people: local time, in milliseconds."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def shape(s: Sequence[int] | None) -> str:
    """``(3, 4)`` -> ``3x4``; of a 0-d array ``()``, of what is no array ``-``."""
    return "-" if s is None else "x".join(map(str, s)) if len(s) else "()"


def emit_json(value: Any) -> None:
    """One JSON document on stdout."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def table(rows: Iterable[Sequence[object]], right: Iterable[int] = ()) -> None:
    """Print columns, aligned; those in `right` to the right. The last one is not padded."""
    cells = [[safe(c) for c in row] for row in rows]
    if not cells:
        return
    flush_right = set(right)
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    last = len(widths) - 1
    for row in cells:
        padded = (
            c.rjust(widths[i]) if i in flush_right else c if i == last else c.ljust(widths[i])
            for i, c in enumerate(row)
        )
        print("  ".join(padded).rstrip())


_CODES = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}


def color(text: str, name: str) -> str:
    """`text` in colour where stdout is a terminal and NO_COLOR is not set (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return text
    return f"\x1b[{_CODES[name]}m{text}\x1b[0m"


class Progress:
    """A bar on stderr while `total` bytes go by; nothing where stderr is no terminal or the work is short.

    ``with Progress("export", total) as bar: bar.step(n)``
    """

    def __init__(self, what: str, total: int):
        self._what, self._total = what, total
        self._done = 0
        self._start = self._last = time.monotonic()
        self._shown = False
        self._on = sys.stderr.isatty()

    def step(self, n: int) -> None:
        self._done += n
        now = time.monotonic()
        if self._on and now - self._start > QUIET_S and now - self._last > 0.1:
            self._last = now
            self._draw(now)

    def _draw(self, now: float) -> None:
        rate = self._done / max(now - self._start, 1e-9)
        if self._total:
            part = min(1.0, self._done / self._total)
            left = max(0, self._total - self._done) / rate if rate else 0
            bar = "#" * int(30 * part)
            text = f"{self._what} [{bar:<30}] {100 * part:3.0f} %  {size(self._done)} of {size(self._total)}"
            text += f"  {size(rate)}/s  {left:.0f} s left"
        else:
            text = f"{self._what} {size(self._done)}  {size(rate)}/s"
        self._shown = True
        sys.stderr.write(f"\r{text}\x1b[K")
        sys.stderr.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
    """The seconds that one long call takes, on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    start = time.monotonic()

    def tick() -> None:
        shown = False
        wait = QUIET_S
        while not done.wait(wait):
            sys.stderr.write(f"\r{what} … {time.monotonic() - start:.0f} s\x1b[K")
            sys.stderr.flush()
            shown, wait = True, 1.0
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
