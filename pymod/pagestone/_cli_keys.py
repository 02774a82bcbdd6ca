"""The commands over keys and values: ls info cat get put rm cp mv."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from typing import IO, Any, Callable

import numpy as np

import pagestone as ps

from . import _cli_io as cio
from . import _cli_out as out
from . import _cli_values as values
from ._cli_find import commit_of, describe, dtype_text, keys_of, object_info, open_store, opened, print_facts
from ._cli_out import Fail, Progress, Usage, count, emit_json, safe, size

# --- reading ---------------------------------------------------------------------------------------------------------


def _listing(snapshot: Any, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A key, the keys of a group, or else those that begin with `prefix`."""
    name = prefix.rstrip("/")
    if name and name in snapshot:
        yield name, snapshot._info(name)
        return
    group = name + "/" if name else ""
    found = iter(snapshot._iter(group, False, "i"))
    first = next(found, None)
    if first is None and prefix:
        found = iter(snapshot._iter(prefix, False, "i"))
        first = next(found, None)
        if first is None:
            raise Fail(f"no key begins with {safe(prefix)!r}")
    if first is not None:
        yield first
        yield from found


def ls(args: argparse.Namespace) -> int:
    with opened(args) as (_, snapshot):
        found = ((k, i) for k, i in _listing(snapshot, args.prefix) if i["kind"] != "dir")
        if args.json:
            emit_json({"version": snapshot.version, "keys": [describe(k, i) for k, i in found]})
        elif args.long:
            out.table(
                [
                    (i["kind"], "-" if i["dtype"] is None else dtype_text(i["dtype"]), out.shape(i["shape"]),
                     size(i["nbytes"]), f"v{i['version']}", k)
                    for k, i in found
                ],
                right=(3, 4),
            )  # fmt: skip
        else:
            for k, _ in found:
                print(safe(k))
    return 0


def info(args: argparse.Namespace) -> int:
    with opened(args) as (store, snapshot):
        if args.key is None:
            about = store.info()
            stat_ = store.stat()
            facts = {
                "path": about["path"], "uuid": about["uuid"], "file_system": about["file_system"],
                "version": snapshot.version, "time": out.iso(snapshot.time), "keys": len(snapshot),
                "versions_kept": stat_.versions, "tags": len(store.tags), "live": stat_.live, "compressed": stat_.compressed, "file_size": stat_.file_size,
                "size": about["size"], "durability": about["durability"], "history": about["history"], "freeze": about["freeze"],
                "checksums": about["checksums"], "read_only": about["read_only"],
            }  # fmt: skip
        else:
            obj = object_info(snapshot, args.key, args.store)
            facts = describe(args.key, obj)
            cold, compressed = snapshot._cold(args.key)
            if cold or args.json:
                facts["stored"] += compressed - cold
                facts["cold"] = cold
            commit = commit_of(store, obj["version"])
            facts["time"] = out.iso(commit.time) if commit else None
        if args.json:
            emit_json(facts)
        else:
            print_facts(facts)
    return 0


def _write_all(pieces: Any, n: int, what: str) -> None:
    sys.stdout.flush()
    with Progress(what, n) as bar:
        cio.write_blob(sys.stdout.buffer, cio.Blob("", list(pieces), n, False), bar)


def _plain_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(values.to_json(value), ensure_ascii=False, indent=2 if isinstance(value, (list, dict)) else None)


def _cat_json(snapshot: Any, key: str, info: dict[str, Any]) -> None:
    d = describe(key, info)
    value = snapshot[key]
    if info["kind"] == "array":
        d["value"] = values.elements(np.asarray(value))
    elif info["kind"] == "pickle":
        d["repr"] = repr(value)
    else:
        d["value"] = values.to_json(value)
    emit_json(d)


def _cat_array(snapshot: Any, key: str, info: dict[str, Any], form: str | None) -> None:
    if form in ("npy", "raw"):
        b = cio.blob(snapshot, key, info)
        pieces = b.pieces if form == "npy" else b.pieces[1:]
        _write_all(pieces, sum(len(p) for p in pieces), "cat")
    elif form == "csv":
        import csv

        writer = csv.writer(sys.stdout, lineterminator="\n")
        with Progress("cat", 0):
            writer.writerows(values.csv_rows(np.asarray(snapshot[key]), key))
    else:
        print(np.asarray(snapshot[key]))


def cat(args: argparse.Namespace) -> int:
    with opened(args, args.allow_pickle) as (_, snapshot):
        info = object_info(snapshot, args.key, args.store)
        kind = info["kind"]
        if kind != "array" and args.format in ("npy", "csv"):
            raise Fail(f"{safe(args.key)} is no array but {kind}: leave --format {args.format} out")
        if kind == "pickle" and args.format != "raw" and not args.allow_pickle:
            raise Fail(
                f"{safe(args.key)} is a pickled object: get writes it to a file; --allow-pickle loads it, which runs its code"
            )
        if args.json:
            _cat_json(snapshot, args.key, info)
        elif kind == "array":
            _cat_array(snapshot, args.key, info, args.format)
        elif kind == "plain" and args.format == "raw":
            _write_all([_plain_text(snapshot[args.key]).encode("utf-8", "surrogatepass")], 0, "cat")
        elif kind == "plain":
            print(_plain_text(snapshot[args.key]))
        elif kind == "pickle" and args.format != "raw":
            print(repr(snapshot[args.key]))
        else:
            b = cio.blob(snapshot, args.key, info)
            _write_all(b.pieces, b.n_bytes, "cat")
    return 0


def get(args: argparse.Namespace) -> int:
    with opened(args) as (_, snapshot):
        info = object_info(snapshot, args.key, args.store)
        b = cio.blob(snapshot, args.key, info)
        if args.file == "-":
            if args.json:
                raise Usage("--json and the value cannot both go to stdout: name a FILE")
            _write_all(b.pieces, b.n_bytes, "get")
            return 0
        path = args.file or "."
        default = os.path.isdir(path)
        if default:
            path = os.path.normpath(os.path.join(path, args.key.split("/")[-1] + b.extension))
            if os.path.lexists(path) and not args.force:
                raise Fail(f"{safe(path)} exists: name a FILE, or replace it with -f")
        with Progress("get", b.n_bytes) as bar, cio.replacing(path) as f:
            cio.write_blob(f, b, bar, holes=stat.S_ISREG(os.fstat(f.fileno()).st_mode))
        if args.json:
            emit_json({**describe(args.key, info), "file": path, "file_bytes": b.n_bytes})
        elif default:
            print(safe(path))
    return 0


# --- writing ---------------------------------------------------------------------------------------------------------


def _change(store: ps.Store, message: str | None, fn: Callable[[Any], Any]) -> tuple[Any, int]:
    """``fn(t)`` in one transaction, again if another process was first; (result, version)."""
    while True:
        t = store.begin("serializable", message=message)
        try:
            result = fn(t)
            return result, t.commit()
        except ps.ConflictError:
            continue
        finally:
            t.abort()


class _Counted:
    """A stream that moves a bar."""

    def __init__(self, f: IO[bytes], bar: Progress):
        self._f, self._bar = f, bar

    def read(self, n: int) -> bytes:
        data = self._f.read(n)
        self._bar.step(len(data))
        return data

    def readinto(self, memory: memoryview) -> None:
        at = 0
        while at < len(memory):
            n = self._f.readinto(memory[at : at + values.CHUNK])  # type: ignore[attr-defined]
            if not n:
                raise values.Malformed("it ends too early")
            self._bar.step(n)
            at += n


def _put_bytes(t: Any, key: str, f: IO[bytes], n: int | None, bar: Progress) -> None:
    """Bytes of any length in bounded memory: many of a file straight from its pages, many of a pipe by way of a temporary file."""
    import mmap
    import tempfile

    if n is not None and n > cio.IN_MEMORY:
        with out.busy(f"put {size(n)}"), mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m, memoryview(m) as view:
            t[key] = view
        return
    head = bytearray()
    while len(head) <= cio.IN_MEMORY and (data := f.read(values.CHUNK)):
        head += data
        bar.step(len(data))
    if len(head) <= cio.IN_MEMORY:
        t[key] = head
        return
    with tempfile.TemporaryFile() as spool:
        spool.write(head)
        head.clear()
        while data := f.read(values.CHUNK):
            spool.write(data)
            bar.step(len(data))
        spool.flush()
        with mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ) as m, memoryview(m) as view:
            t[key] = view


def _put_value(args: argparse.Namespace, t: Any, f: IO[bytes], n: int | None, bar: Progress) -> None:
    name = "stdin" if args.file == "-" else args.file
    npy = args.npy or (args.file.endswith(".npy") and not (args.csv or args.text or args.plain or args.bytes))
    try:
        if npy:
            if args.key in t:
                del t[args.key]
            counted = _Counted(f, bar)
            cio.read_array(counted, t, args.key)
            if counted.read(1):
                raise values.Malformed("it goes on after the array")
        elif args.csv:
            import io

            text = io.StringIO(f.read().decode("utf-8-sig"), newline="")
            t[args.key] = values.read_csv(text, args.header, args.dtype, name)
        elif args.text:
            t[args.key] = f.read().decode("utf-8")
        elif args.plain:
            t[args.key] = values.from_json(json.load(f))
            if t._info(args.key)["kind"] == "pickle":
                raise Fail(f"{safe(name)} is nested deeper than 64: flatten it, or put it as bytes")
        else:
            _put_bytes(t, args.key, f, n, bar)
    except UnicodeDecodeError as e:
        raise Fail(f"{safe(name)} is not UTF-8 ({e.reason} at byte {e.start}): put it as bytes") from None
    except json.JSONDecodeError as e:
        raise Fail(f"{safe(name)} is not JSON: {e}") from None
    except values.Malformed as e:
        raise Fail(f"{safe(name)}: {e}") from None


def put(args: argparse.Namespace) -> int:
    if (args.dtype or args.header != "auto") and not args.csv:
        raise Usage("--dtype and --header belong to --csv")
    with contextlib.ExitStack() as stack:
        f = sys.stdin.buffer if args.file == "-" else stack.enter_context(open(args.file, "rb"))
        st = os.fstat(f.fileno())
        n = st.st_size if stat.S_ISREG(st.st_mode) and args.file != "-" else None
        store = stack.enter_context(open_store(args, "a"))
        bar = stack.enter_context(Progress("put", n or 0))
        while True:
            try:
                with store.begin(message=args.message) as t:
                    _put_value(args, t, f, n, bar)
                    described = describe(args.key, t._info(args.key))
                    described["version"] = t.commit()
                break
            except ps.ConflictError:  # somebody else wrote the key meanwhile: later wins, as with s[key] = value
                if n is None:
                    raise
                f.seek(0)
        if args.json:
            emit_json(described)
    return 0


def rm(args: argparse.Namespace) -> int:
    def step(t: Any) -> list[str]:
        removed = []
        for key in args.keys:
            if key in t:
                del t[key]
                removed.append(key)
                continue
            below = keys_of(t, key)
            if below and not args.recursive:
                raise Fail(
                    f"{safe(key)} is a group of {count(len(below), 'key')}: remove it with -r; nothing was removed"
                )
            if not below and key not in removed and not args.force:
                raise Fail(f"there is no key {safe(key)!r}; nothing was removed")
            for k in below:
                del t[k]
            removed += below
        return removed

    with open_store(args, "r+") as store:
        removed, version = _change(store, args.message, step)
    if args.json:
        emit_json({"removed": removed, "version": version})
    return 0


def _pairs(t: Any, args: argparse.Namespace) -> list[tuple[str, str]]:
    """(from, to) of every key that cp or mv takes."""
    source, target = args.source.rstrip("/"), args.target
    below = [] if source in t else keys_of(t, source)
    if source not in t and not below:
        raise Fail(f"there is no key {safe(args.source)!r}: pagestone ls {safe(args.store)} lists them")
    if below and args.command == "cp" and not args.recursive:
        raise Fail(f"{safe(source)} is a group of {count(len(below), 'key')}: copy it with -r")
    if target.endswith("/") or (target not in t and keys_of(t, target)):
        target = target.rstrip("/") + "/" + source.split("/")[-1]
    if target == source or (below and target.startswith(source + "/")):
        raise Fail(f"{safe(target)} is {safe(source)} itself or inside it: name another target")
    pairs = [(k, target + k[len(source) :]) for k in below] or [(source, target)]
    if not args.force:
        for _, b in pairs:
            if b in t:
                raise Fail(f"{safe(b)} exists: replace it with -f")
    return pairs


def cp_mv(args: argparse.Namespace) -> int:
    def step(t: Any) -> list[tuple[str, str]]:
        pairs = _pairs(t, args)
        for a, b in pairs:
            if args.command == "mv":
                if b in t:
                    del t[b]
                t.move(a, b)
            else:
                t.copy(a, b)
        return pairs

    with open_store(args, "r+") as store:
        pairs, version = _change(store, args.message, step)
    if args.json:
        name = "moved" if args.command == "mv" else "copied"
        emit_json({name: [{"from": a, "to": b} for a, b in pairs], "version": version})
    return 0
