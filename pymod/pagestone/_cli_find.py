"""What the commands share: opening a store, finding a version and a key, describing an object."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

import pagestone as ps

from . import _cli_out as out
from ._cli_out import Fail, Usage, safe, size


def open_store(args: argparse.Namespace, mode: str = "r", allow_pickle: bool = False) -> ps.Store:
    try:
        return ps.open(args.store, mode, allow_pickle=allow_pickle)
    except FileNotFoundError:
        raise Fail(
            f"{safe(args.store)}: there is no such store; put makes one, and so does pagestone.open() in Python"
        ) from None


def parse_version(text: str) -> Any:
    """``12``, ``-1``, a tag, or a time."""
    if re.fullmatch(r"-?[0-9]+", text):
        return int(text)
    if text[:1].isdigit():  # no tag begins with one
        try:
            return dt.datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text))
        except ValueError:
            raise Usage(f"{text!r} is no version: write a number, a tag, or a time such as 2026-11-20T10:00") from None
    return text


def at_version(store: ps.Store, text: str | None) -> ps.Snapshot:
    if text is None:
        return store.snapshot()
    version = parse_version(text)
    try:
        return store.at(version)
    except KeyError:
        raise Fail(f"there is no tag {safe(text)!r}: pagestone tag {safe(store.path)} lists them") from None


def object_info(snapshot: Any, key: str, store: str) -> dict[str, Any]:
    try:
        return snapshot._info(key)  # type: ignore[no-any-return]
    except KeyError:
        pass
    if next(snapshot._iter(key.rstrip("/") + "/", False, "k"), None) is not None:
        raise Fail(f"{safe(key)} is a group: pagestone ls {safe(store)} {safe(key)} lists its keys")
    raise Fail(f"there is no key {safe(key)!r}: pagestone ls {safe(store)} lists them")


def keys_of(view: Any, name: str) -> list[str]:
    """The keys of the group `name`."""
    return list(view._iter(name.rstrip("/") + "/", False, "k"))


@contextlib.contextmanager
def opened(args: argparse.Namespace, allow_pickle: bool = False) -> Iterator[tuple[ps.Store, ps.Snapshot]]:
    with open_store(args, allow_pickle=allow_pickle) as store, at_version(store, args.at) as snapshot:
        yield store, snapshot


def describe(key: str, info: dict[str, Any]) -> dict[str, Any]:
    """An object for JSON."""
    d: dict[str, Any] = {"key": key, "kind": info["kind"]}
    if info["kind"] == "array":
        d.update(dtype=dtype_text(info["dtype"]), shape=list(info["shape"]), order=info["order"])
    d.update(bytes=info["nbytes"], stored=info["stored"], version=info["version"])
    return d


def dtype_text(dtype: np.dtype[Any]) -> str:
    return dtype.str if dtype.names is None and dtype.kind != "V" else str(dtype)


def commit_of(store: ps.Store, version: int) -> ps.Commit | None:
    commits = store._commits(before=version + 1, limit=1)
    return commits[0] if commits and commits[0].version == version else None


_BYTES = {"bytes", "stored", "cold", "live", "compressed", "file_size", "size", "bytes_written"}


def print_facts(facts: dict[str, Any]) -> None:
    def text(name: str, v: Any) -> str:
        if v is None:
            return "-" if name != "size" else "no quota"
        if name in _BYTES and isinstance(v, int):
            return f"{v} ({size(v)})" if v >= 1000 else str(v)
        if name == "shape":
            return out.shape(v)
        if name == "time":
            return out.local(dt.datetime.fromisoformat(v))
        if isinstance(v, bool):
            return "yes" if v else "no"
        return ", ".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v)

    out.table([(name.replace("_", " "), text(name, v)) for name, v in facts.items()])
