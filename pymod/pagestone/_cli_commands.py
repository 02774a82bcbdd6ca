"""The commands: each is a function of the parsed arguments that prints its result and returns the exit code."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from typing import IO, Any, Callable

import numpy as np

import pagestone as ps

from . import _cli_io as cio
from . import _cli_out as out
from . import _cli_values as values
from ._cli_out import Fail, Progress, Usage, color, emit_json, safe, size


def run(args: argparse.Namespace) -> int:
    return _COMMANDS[args.command](args)


# --- opening and finding ---------------------------------------------------------------------------------------------


def _open(args: argparse.Namespace, mode: str = "r", allow_pickle: bool = False) -> ps.Store:
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


def _at(store: ps.Store, text: str | None) -> ps.Snapshot:
    if text is None:
        return store.snapshot()
    version = parse_version(text)
    try:
        return store.at(version)
    except KeyError:
        raise Fail(f"there is no tag {safe(text)!r}: pagestone tag {safe(store.path)} lists them") from None


def _info(snapshot: Any, key: str, store: str) -> dict[str, Any]:
    try:
        return snapshot._info(key)  # type: ignore[no-any-return]
    except KeyError:
        pass
    if next(snapshot._iter(key.rstrip("/") + "/", False, "k"), None) is not None:
        raise Fail(f"{safe(key)} is a group: pagestone ls {safe(store)} {safe(key)} lists its keys")
    raise Fail(f"there is no key {safe(key)!r}: pagestone ls {safe(store)} lists them")


def _keys_of(view: Any, name: str) -> list[str]:
    """The keys of the group `name`."""
    return list(view._iter(name.rstrip("/") + "/", False, "k"))


@contextlib.contextmanager
def _snapshot(args: argparse.Namespace, allow_pickle: bool = False) -> Iterator[tuple[ps.Store, ps.Snapshot]]:
    with _open(args, allow_pickle=allow_pickle) as store, _at(store, args.at) as snapshot:
        yield store, snapshot


def _describe(key: str, info: dict[str, Any]) -> dict[str, Any]:
    """An object for JSON."""
    d: dict[str, Any] = {"key": key, "kind": info["kind"]}
    if info["kind"] == "array":
        d.update(dtype=_dtype_text(info["dtype"]), shape=list(info["shape"]), order=info["order"])
    d.update(bytes=info["nbytes"], stored=info["stored"], version=info["version"])
    return d


def _dtype_text(dtype: np.dtype[Any]) -> str:
    return dtype.str if dtype.names is None and dtype.kind != "V" else str(dtype)


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
    with _snapshot(args) as (_, snapshot):
        found = ((k, i) for k, i in _listing(snapshot, args.prefix) if i["kind"] != "dir")
        if args.json:
            emit_json({"version": snapshot.version, "keys": [_describe(k, i) for k, i in found]})
        elif args.long:
            out.table(
                [
                    (i["kind"], "-" if i["dtype"] is None else _dtype_text(i["dtype"]), out.shape(i["shape"]),
                     size(i["nbytes"]), f"v{i['version']}", k)
                    for k, i in found
                ],
                right=(3, 4),
            )  # fmt: skip
        else:
            for k, _ in found:
                print(safe(k))
    return 0


def _commit_of(store: ps.Store, version: int) -> ps.Commit | None:
    commits = store._commits(before=version + 1, limit=1)
    return commits[0] if commits and commits[0].version == version else None


def info(args: argparse.Namespace) -> int:
    with _snapshot(args) as (store, snapshot):
        if args.key is None:
            about = store.info()
            stat_ = store.stat()
            facts = {
                "path": about["path"], "uuid": about["uuid"], "file_system": about["file_system"],
                "version": snapshot.version, "time": out.iso(snapshot.time), "keys": len(snapshot),
                "versions_kept": stat_.versions, "tags": len(store.tags), "live": stat_.live, "file_size": stat_.file_size,
                "size": about["size"], "durability": about["durability"], "history": about["history"],
                "checksums": about["checksums"], "read_only": about["read_only"],
            }  # fmt: skip
        else:
            obj = _info(snapshot, args.key, args.store)
            facts = _describe(args.key, obj)
            commit = _commit_of(store, obj["version"])
            facts["time"] = out.iso(commit.time) if commit else None
        if args.json:
            emit_json(facts)
        else:
            _print_facts(facts)
    return 0


_BYTES = {"bytes", "stored", "live", "file_size", "size", "bytes_written"}


def _print_facts(facts: dict[str, Any]) -> None:
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


def _write_all(pieces: Any, n: int, what: str) -> None:
    sys.stdout.flush()
    with Progress(what, n) as bar:
        cio.write_blob(sys.stdout.buffer, cio.Blob("", list(pieces), n, False), bar)


def _plain_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(values.to_json(value), ensure_ascii=False, indent=2 if isinstance(value, (list, dict)) else None)


def _cat_json(snapshot: Any, key: str, info: dict[str, Any]) -> None:
    d = _describe(key, info)
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
    with _snapshot(args, args.allow_pickle) as (_, snapshot):
        info = _info(snapshot, args.key, args.store)
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
    with _snapshot(args) as (_, snapshot):
        info = _info(snapshot, args.key, args.store)
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
            emit_json({**_describe(args.key, info), "file": path, "file_bytes": b.n_bytes})
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
        store = stack.enter_context(_open(args, "a"))
        bar = stack.enter_context(Progress("put", n or 0))
        while True:
            try:
                with store.begin(message=args.message) as t:
                    _put_value(args, t, f, n, bar)
                    described = _describe(args.key, t._info(args.key))
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
            below = _keys_of(t, key)
            if below and not args.recursive:
                raise Fail(f"{safe(key)} is a group of {len(below)} keys: remove it with -r; nothing was removed")
            if not below and key not in removed and not args.force:
                raise Fail(f"there is no key {safe(key)!r}; nothing was removed")
            for k in below:
                del t[k]
            removed += below
        return removed

    with _open(args, "r+") as store:
        removed, version = _change(store, args.message, step)
    if args.json:
        emit_json({"removed": removed, "version": version})
    return 0


def _pairs(t: Any, args: argparse.Namespace) -> list[tuple[str, str]]:
    """(from, to) of every key that cp or mv takes."""
    source, target = args.source.rstrip("/"), args.target
    below = [] if source in t else _keys_of(t, source)
    if source not in t and not below:
        raise Fail(f"there is no key {safe(args.source)!r}: pagestone ls {safe(args.store)} lists them")
    if below and args.command == "cp" and not args.recursive:
        raise Fail(f"{safe(source)} is a group of {len(below)} keys: copy it with -r")
    if target.endswith("/") or (target not in t and _keys_of(t, target)):
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

    with _open(args, "r+") as store:
        pairs, version = _change(store, args.message, step)
    if args.json:
        name = "moved" if args.command == "mv" else "copied"
        emit_json({name: [{"from": a, "to": b} for a, b in pairs], "version": version})
    return 0


# --- versions --------------------------------------------------------------------------------------------------------


def _commit_json(c: ps.Commit) -> dict[str, Any]:
    return {
        "version": c.version, "time": out.iso(c.time), "pid": c.pid, "command": c.command, "message": c.message,
        "keys": list(c.keys), "keys_truncated": c.keys_truncated, "bytes_written": c.bytes_written,
    }  # fmt: skip


def _commits(store: ps.Store, key: str | None, limit: int | None) -> Iterator[ps.Commit]:
    """Newest first, a batch at a time."""
    before, n = 0, 0
    below = None if key is None else key.rstrip("/") + "/"
    while limit is None or n < limit:
        batch = store._commits(before, 1000 if limit is None or key is not None else min(1000, limit - n))
        for c in batch:
            before = c.version
            if below is None or c.keys_truncated or any(k == below[:-1] or k.startswith(below) for k in c.keys):
                yield c
                n += 1
                if n == limit:
                    return
        if not batch or before <= 1:
            return


def log(args: argparse.Namespace) -> int:
    if args.n is not None and args.n < 1:
        raise Usage("-n is at least 1")
    with _open(args) as store:
        commits = _commits(store, args.key, args.n)
        if args.json:
            emit_json([_commit_json(c) for c in commits])
            return 0
        names: dict[int, list[str]] = {}
        for name, version in store.tags.items():
            names.setdefault(version, []).append(name)
        for c in commits:
            keys = ", ".join(c.keys[:5]) + (f" and {len(c.keys) - 5} more" if len(c.keys) > 5 else "")
            keys += ", …" if c.keys_truncated else ""
            head = color(f"v{c.version}", "yellow") + "".join(
                color(f" [{safe(t)}]", "bold") for t in names.get(c.version, [])
            )
            who = f"{c.pid} {c.command if len(c.command) <= 40 else c.command[:39] + '…'}"
            message = f"  — {safe(c.message)}" if c.message else ""
            print(f"{head}  {out.local(c.time)}  {size(c.bytes_written)}  {safe(keys)}{message}  ({safe(who)})")
    return 0


def diff(args: argparse.Namespace) -> int:
    with _open(args) as store, _at(store, args.a) as a, _at(store, args.b) as b:
        d = store.diff(a, b)
        if args.json:
            changed = {k: None if r is None else [list(x) for x in r] for k, r in sorted(d.changed.items())}
            emit_json(
                {
                    "from": a.version,
                    "to": b.version,
                    "added": sorted(d.added),
                    "removed": sorted(d.removed),
                    "changed": changed,
                }
            )
            return 0
        lines = [(k, color("+", "green"), "") for k in d.added] + [(k, color("-", "red"), "") for k in d.removed]
        for k, ranges in d.changed.items():
            n = sum(hi - lo for lo, hi in ranges or [])
            shown = ", ".join(f"{lo}:{hi}" for lo, hi in (ranges or [])[:4]) + (
                ", …" if ranges and len(ranges) > 4 else ""
            )
            what = "" if ranges is None else f"  {n} element{'s' * (n != 1)}: {shown}"
            lines.append((k, color("~", "yellow"), what))
        for k, mark, what in sorted(lines):
            print(f"{mark} {safe(k)}{what}")
    return 0


def at(args: argparse.Namespace) -> int:
    with _open(args) as store, _at(store, args.version) as s:
        commit = _commit_of(store, s.version)
        facts: dict[str, Any] = {
            "version": s.version,
            "time": out.iso(s.time),
            "keys": len(s),
            "tags": sorted(n for n, v in store.tags.items() if v == s.version),
            "newest": store.version,
        }
        if args.json:
            emit_json({**facts, "commit": _commit_json(commit) if commit else None})
            return 0
        if commit:
            facts.update(
                by=commit.command,
                pid=commit.pid,
                message=commit.message,
                changed=commit.keys[:20],
                bytes_written=commit.bytes_written,
            )
        _print_facts(facts)
    return 0


def tag(args: argparse.Namespace) -> int:
    if args.name is None:
        with _open(args) as store:
            tags = dict(sorted(store.tags.items()))
        if args.json:
            emit_json(tags)
        else:
            out.table([(f"v{v}", n) for n, v in tags.items()], right=(0,))
        return 0
    with _open(args, "r+") as store, _at(store, args.version) as s:
        store.tag(args.name, s.version)
        if args.json:
            emit_json({"tag": args.name, "version": s.version})
    return 0


def untag(args: argparse.Namespace) -> int:
    with _open(args, "r+") as store:
        try:
            store.untag(args.name)
        except KeyError:
            raise Fail(f"there is no tag {safe(args.name)!r}: pagestone tag {safe(args.store)} lists them") from None
    if args.json:
        emit_json({"untagged": args.name})
    return 0


def revert(args: argparse.Namespace) -> int:
    with _open(args, "r+") as store, _at(store, args.version) as old:
        _info(old, args.key, f"{args.store} --at {args.version}")
        version = store.revert(args.key, old)
        if args.json:
            emit_json({"key": args.key, "from": old.version, "version": version})
    return 0


# --- upkeep ----------------------------------------------------------------------------------------------------------

_STAT_MEANING = {
    "live": "objects of the newest version",
    "history": "kept by older versions",
    "pinned": "kept by readers only",
    "free": "in the file, for reuse",
    "resident": "in memory now",
    "compressed": "compressed",
    "leaked": "belonging to nobody",
    "quota": "may be used",
    "meta": "catalog, history and the like",
    "file_size": "of the page file",
}


def stat_(args: argparse.Namespace) -> int:
    with _open(args) as store:
        s = store.stat()._asdict()
        version = store.version
    if args.json:
        emit_json({"version": version, **s})
        return 0
    rows = [
        (n.replace("_", " "), size(s[n]) if n != "quota" or s[n] else "-", text) for n, text in _STAT_MEANING.items()
    ]
    rows += [("objects", str(s["objects"]), "in the newest version"), ("versions", str(s["versions"]), "kept")]
    out.table(rows, right=(1,))
    return 0


def readers(args: argparse.Namespace) -> int:
    with _open(args) as store:
        mine = os.getpid()
        found = [r for r in store.readers() if r.pid != mine]
    if args.json:
        emit_json([{"pid": r.pid, "command": r.command, "since": out.iso(r.since), "versions": list(r.versions), "bytes": r.bytes}
                   for r in found])  # fmt: skip
        return 0
    out.table(
        [
            (
                r.pid or "-",
                out.local(r.since),
                size(r.bytes),
                ", ".join(f"v{v}" for v in r.versions),
                r.command or "(read only)",
            )
            for r in found
        ],
        right=(0, 2),
    )
    return 0


def check(args: argparse.Namespace) -> int:
    with _open(args) as store, out.busy("check"):
        r = store.check(data=not args.no_data)
    if args.json:
        emit_json({"ok": r.ok, "errors": [{"object": o, "problem": p} for o, p in r.errors], "objects": r.objects,
                   "versions": r.versions, "pages": r.pages, "unverified": r.unverified, "leaked": r.leaked})  # fmt: skip
        return 0 if r.ok else 1
    for obj, problem in r.errors:
        print(f"{color('damaged', 'red')}  {safe(obj) or 'the store'}: {safe(problem)}")
    rest = f", {r.unverified} without a checksum" if r.unverified else ""
    rest += f", {r.leaked} belonging to nobody (gc takes them back)" if r.leaked else ""
    verdict = color("ok", "green") if r.ok else color(f"{len(r.errors)} problem{'s' * (len(r.errors) != 1)}", "red")
    print(f"{verdict}: {r.objects} objects, {r.versions} versions, {r.pages} pages{rest}")
    return 0 if r.ok else 1


def gc_compact(args: argparse.Namespace) -> int:
    with _open(args, "r+") as store:
        before = store.stat()
        with out.busy(args.command):
            if args.command == "gc":
                store.gc()
            else:
                store.compact()
        after = store.stat()
    if args.json:
        emit_json({"before": before._asdict(), "after": after._asdict()})
        return 0
    print(f"free {size(before.free)} -> {size(after.free)}, file {size(before.file_size)} -> {size(after.file_size)}")
    return 0


def export(args: argparse.Namespace) -> int:
    if args.json and args.target == "-":
        raise Usage("--json and the tar cannot both go to stdout: name a file")
    with _snapshot(args) as (store, snapshot):
        manifest = cio.export(snapshot, args.target, cio.about(store, snapshot, ps.__version__), args.force)
    n, total = len(manifest["objects"]), sum(e["size"] for e in manifest["objects"])
    if args.json:
        emit_json({"target": args.target, "version": manifest["version"], "objects": n, "bytes": total})
    elif args.target != "-":
        print(f"version {manifest['version']}: {n} object{'s' * (n != 1)}, {size(total)}")
    return 0


def import_(args: argparse.Namespace) -> int:
    if args.batch < 0:
        raise Usage("--batch is at least 1")
    with cio.source_of(args.source) as source:
        manifest = cio.read_manifest(source)
        pickled = [e["key"] for e in manifest["objects"] if e["kind"] == "pickle"]
        if pickled and not args.allow_pickle:
            raise Fail(
                f"{len(pickled)} pickled objects, such as {safe(pickled[0])!r}: --allow-pickle loads them, which runs their code; nothing was imported"
            )
        with _open(args, "a") as store:
            version = cio.import_objects(store, source, manifest, args.message, args.force, args.batch)
    n, total = len(manifest["objects"]), sum(e["size"] for e in manifest["objects"])
    if args.json:
        emit_json({"version": version, "objects": n, "bytes": total})
    else:
        print(f"version {version}: {n} object{'s' * (n != 1)}, {size(total)}")
    return 0


def doctor(args: argparse.Namespace) -> int:
    from ._cli_doctor import doctor as examine

    return examine(args.store, args.timeout, args.json)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "ls": ls, "info": info, "cat": cat, "put": put, "get": get, "rm": rm, "cp": cp_mv, "mv": cp_mv, "log": log, "diff": diff,
    "at": at, "tag": tag, "untag": untag, "revert": revert, "stat": stat_, "readers": readers, "check": check,
    "gc": gc_compact, "compact": gc_compact, "export": export, "import": import_, "doctor": doctor,
}  # fmt: skip
