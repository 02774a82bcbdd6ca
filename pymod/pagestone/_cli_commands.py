"""The commands: each is a function of the parsed arguments that prints its result and returns the exit code.

Those over keys and values are in _cli_keys; here are versions and upkeep, and the list of all.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from typing import Any, Callable

import pagestone as ps

from . import _cli_cold as cold
from . import _cli_io as cio
from . import _cli_keys as keys
from . import _cli_out as out
from ._cli_find import at_version, commit_of, object_info, open_store, opened, print_facts
from ._cli_out import Fail, Usage, color, count, emit_json, safe, size


def run(args: argparse.Namespace) -> int:
    return _COMMANDS[args.command](args)


# --- versions --------------------------------------------------------------------------------------------------------


def _commit_json(c: ps.Commit) -> dict[str, Any]:
    return {
        "version": c.version, "time": out.iso(c.time), "pid": c.pid, "command": c.command, "message": c.message,
        "keys": list(c.keys), "keys_truncated": c.keys_truncated, "bytes_written": c.bytes_written,
    }  # fmt: skip


def _names(c: ps.Commit, key: str) -> bool:
    name = key.rstrip("/")
    return any(k == name or k.startswith(name + "/") for k in c.keys)


def _was_there(store: ps.Store, key: str) -> bool:
    """Whether any version that is kept has the key or the group."""
    for version in reversed(store.versions):
        try:
            with store.at(version) as s:
                if key.rstrip("/") in s or next(s._iter(key.rstrip("/") + "/", False, "k"), None) is not None:
                    return True
        except ps.VersionExpiredError:  # dropped meanwhile
            pass
    return False


def _commits(store: ps.Store, key: str | None, limit: int | None) -> Iterator[ps.Commit]:
    """Newest first, a batch at a time."""
    before, n = 0, 0
    while limit is None or n < limit:
        batch = store._commits(before, 1000 if limit is None or key is not None else min(1000, limit - n))
        for c in batch:
            before = c.version
            if key is None or c.keys_truncated or _names(c, key):
                yield c
                n += 1
                if n == limit:
                    return
        if not batch or before <= 1:
            return


def log(args: argparse.Namespace) -> int:
    if args.n is not None and args.n < 1:
        raise Usage("-n is at least 1")
    with open_store(args) as store:
        commits = _commits(store, args.key, args.n)
        if args.key is not None:
            found = list(commits)  # a commit of very many keys does not name them all
            if not any(_names(c, args.key) for c in found) and not _was_there(store, args.key):
                raise Fail(
                    f"there is no key {safe(args.key)!r} in any version that is kept: pagestone ls {safe(args.store)} lists keys"
                )
            commits = iter(found)
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
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(open_store(args))
        if args.a is None and len(store.versions) < 2:
            raise Fail(f"version {store.version} is the only one that is kept: there is none to compare it with")
        a = stack.enter_context(at_version(store, args.a or "-2"))
        b = stack.enter_context(at_version(store, args.b))
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
            what = "" if ranges is None else f"  {count(n, 'element')}: {shown}"
            lines.append((k, color("~", "yellow"), what))
        for k, mark, what in sorted(lines):
            print(f"{mark} {safe(k)}{what}")
    return 0


def at(args: argparse.Namespace) -> int:
    with open_store(args) as store, at_version(store, args.version) as s:
        commit = commit_of(store, s.version)
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
        print_facts(facts)
    return 0


def tag(args: argparse.Namespace) -> int:
    if args.name is None:
        with open_store(args) as store:
            tags = dict(sorted(store.tags.items()))
        if args.json:
            emit_json(tags)
        else:
            out.table([(f"v{v}", n) for n, v in tags.items()], right=(0,))
        return 0
    with open_store(args, "r+") as store, at_version(store, args.version) as s:
        store.tag(args.name, s.version)
        if args.json:
            emit_json({"tag": args.name, "version": s.version})
    return 0


def untag(args: argparse.Namespace) -> int:
    with open_store(args, "r+") as store:
        try:
            store.untag(args.name)
        except KeyError:
            raise Fail(f"there is no tag {safe(args.name)!r}: pagestone tag {safe(args.store)} lists them") from None
    if args.json:
        emit_json({"untagged": args.name})
    return 0


def revert(args: argparse.Namespace) -> int:
    with open_store(args, "r+") as store, at_version(store, args.version) as old:
        object_info(old, args.key, f"{args.store} --at {args.version}")
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
    with open_store(args) as store:
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
    with open_store(args) as store:
        mine = os.getpid()
        found = [r for r in store.readers() if r.pid != mine]
    if args.json:
        emit_json([{"pid": r.pid, "command": r.command, "since": r.since and out.iso(r.since), "versions": list(r.versions), "bytes": r.bytes}
                   for r in found])  # fmt: skip
        return 0
    out.table(
        [
            (
                r.pid or "-",
                out.local(r.since) if r.since else "-",
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
    with open_store(args) as store, out.busy("check"):
        r = store.check(data=not args.no_data)
    if args.json:
        emit_json({"ok": r.ok, "errors": [{"object": o, "problem": p} for o, p in r.errors], "objects": r.objects,
                   "versions": r.versions, "pages": r.pages, "unverified": r.unverified, "leaked": r.leaked})  # fmt: skip
        return 0 if r.ok else 1
    for obj, problem in r.errors:
        print(f"{color('damaged', 'red')}  {safe(obj) or 'the store'}: {safe(problem)}")
    rest = f", {r.unverified} without a checksum" if r.unverified else ""
    rest += f", {r.leaked} belonging to nobody (gc takes them back)" if r.leaked else ""
    verdict = color("ok", "green") if r.ok else color(f"{count(len(r.errors), 'problem')}", "red")
    print(f"{verdict}: {count(r.objects, 'object')}, {count(r.versions, 'version')}, {count(r.pages, 'page')}{rest}")
    return 0 if r.ok else 1


def gc_compact(args: argparse.Namespace) -> int:
    with open_store(args, "r+") as store:
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
    with opened(args) as (store, snapshot):
        manifest = cio.export(snapshot, args.target, cio.about(store, snapshot, ps.__version__), args.force)
    n, total = len(manifest["objects"]), sum(e["size"] for e in manifest["objects"])
    if args.json:
        emit_json({"target": args.target, "version": manifest["version"], "objects": n, "bytes": total})
    elif args.target != "-":
        print(f"version {manifest['version']}: {count(n, 'object')}, {size(total)}")
    return 0


def import_(args: argparse.Namespace) -> int:
    if args.batch < 0:
        raise Usage("--batch is at least 1")
    with cio.source_of(args.source) as source:
        manifest = cio.read_manifest(source)
        pickled = [e["key"] for e in manifest["objects"] if e["kind"] == "pickle"]
        if pickled and not args.allow_pickle:
            raise Fail(
                f"{count(len(pickled), 'pickled object')}, such as {safe(pickled[0])!r}: --allow-pickle loads them, which runs their code; nothing was imported"
            )
        with open_store(args, "a") as store:
            version = cio.import_objects(store, source, manifest, args.message, args.force, args.batch)
    n, total = len(manifest["objects"]), sum(e["size"] for e in manifest["objects"])
    if args.json:
        emit_json({"version": version, "objects": n, "bytes": total})
    else:
        print(f"version {version}: {count(n, 'object')}, {size(total)}")
    return 0


def doctor(args: argparse.Namespace) -> int:
    from ._cli_doctor import doctor as examine

    return examine(args.store, args.timeout, args.json)


# --- the file-system view ---------------------------------------------------------------------------------------------


def mount(args: argparse.Namespace) -> int:
    from . import _mount

    if args.store is None:
        found = _mount.mounts()
        if args.json:
            emit_json([m._asdict() for m in found])
        for m in [] if args.json else found:
            print(f"{safe(m.directory)}  {safe(m.store)}  {safe(m.state)}")
        return 0
    if args.dir is None:
        raise Usage("mount needs a directory, too")
    how = _mount.mount_here if args.foreground else _mount.mount
    how(args.store, args.dir, read_only=args.read_only, allow_other=args.allow_other)
    if args.json:
        emit_json({"directory": os.path.abspath(args.dir), "store": os.path.abspath(args.store)})
    return 0


def umount(args: argparse.Namespace) -> int:
    from . import _mount

    _mount.umount(args.dir, lazy=args.lazy, force=args.force)
    if args.json:
        emit_json({"directory": os.path.abspath(args.dir)})
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "ls": keys.ls, "info": keys.info, "cat": keys.cat, "put": keys.put, "get": keys.get, "rm": keys.rm, "cp": keys.cp_mv,
    "mv": keys.cp_mv, "log": log, "diff": diff, "at": at, "tag": tag, "untag": untag, "revert": revert, "stat": stat_,
    "readers": readers, "check": check, "gc": gc_compact, "compact": gc_compact, "freeze": cold.freeze_thaw, "thaw": cold.freeze_thaw, "export": export, "import": import_,
    "doctor": doctor, "mount": mount, "umount": umount,
}  # fmt: skip
