"""Objects as files: what `get`, `put`, `export` and `import` move.

One object is a list of *pieces*, buffers that together are the file: nothing big is copied on the way out, and on the way in arrays are
read straight into the store's memory.

    array    .npy   the NPY format, C or F order as stored
    bytes    .bin   as they are
    plain    .json  UTF-8, with types kept (see _cli_values)
    pickle   .pkl   one self-contained stream, as ``pickle.load`` reads it

An export is a tar file or a directory of these under ``data/`` by key, and ``manifest.json``, written last: without it an export is not
complete and not read. Reading one trusts nothing in it: names stay inside it, links are not followed, every file must have the checksum that the
manifest says before it counts, and pickled objects are loaded only when asked for.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import io
import json
import mmap
import os
import pickle
import pickletools
import shutil
import stat
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

import numpy as np

from . import _dtype
from ._cli_out import Fail, Progress, iso, safe
from ._cli_values import CHUNK, Malformed, from_json, memory_of, npy_dtype, npy_header, read_npy_header, to_json
from ._errors import CorruptError

FORMAT = "pagestone-export"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
EXTENSION = {"array": ".npy", "bytes": ".bin", "plain": ".json", "pickle": ".pkl"}
IN_MEMORY = 64 << 20  # longer bytes objects go through a temporary file

Piece = Any  # bytes or memoryview


# --- one object, out -------------------------------------------------------------------------------------------------


class Blob(NamedTuple):
    """An object as a file."""

    extension: str
    pieces: list[Piece]
    n_bytes: int
    sparse: bool  # mostly holes: look for zeros


def pickle_pieces(content: memoryview) -> list[Piece]:
    """A stored pickle as one self-contained stream: its out-of-band buffers go where the stream asks for them.

    Nothing is loaded: the stream is only scanned for the opcodes. Frames are left out, because their lengths would be wrong.
    """
    head = int.from_bytes(content[:8], "little")
    n = int.from_bytes(content[8:12], "little")
    stream = content[16 + 16 * n : head]
    if n == 0:
        return [stream]
    where = [(int.from_bytes(content[i : i + 8], "little"), int.from_bytes(content[i + 8 : i + 16], "little"))
             for i in range(16, 16 + 16 * n, 16)]  # fmt: skip
    buffers = iter(content[lo : lo + length] for lo, length in where)
    pieces: list[Piece] = []
    kept = 0  # the stream is copied up to here
    ops = [(op.name, at or 0) for op, _, at in pickletools.genops(bytes(stream))
           if op.name in ("FRAME", "NEXT_BUFFER", "READONLY_BUFFER")]  # fmt: skip
    for i, (name, pos) in enumerate(ops):
        pieces.append(stream[kept:pos])
        kept = pos + (9 if name == "FRAME" else 1)
        if name == "NEXT_BUFFER":
            data = next(buffers)
            read_only = i + 1 < len(ops) and ops[i + 1] == ("READONLY_BUFFER", pos + 1)
            pieces += [(b"\x8e" if read_only else b"\x96") + len(data).to_bytes(8, "little"), data]
    pieces.append(stream[kept:])
    return pieces


def blob(snapshot: Any, key: str, info: dict[str, Any]) -> Blob:
    """The object `key` of a snapshot as a file; runs no code of the store's."""
    kind = info["kind"]
    sparse = False
    if kind == "plain":
        pieces: list[Piece] = [json.dumps(to_json(snapshot[key]), ensure_ascii=True).encode() + b"\n"]
    else:
        view, _ = snapshot._view(key)
        content = memoryview(view)
        if kind == "array":
            pieces = [npy_header(info["shape"], npy_dtype(info["dtype"]), info["order"]), content]
            sparse = info["nbytes"] > 2 * CHUNK and info["stored"] < info["nbytes"] // 8
        elif kind == "bytes":
            pieces = [content]
        elif kind == "pickle":
            try:
                pieces = pickle_pieces(content)
            except Exception as e:
                raise Fail(f"{safe(key)}: the pickled object cannot be written as one stream ({e}): run check") from e
        else:
            raise Fail(f"{safe(key)} is of kind {kind}, which this version cannot write to a file: upgrade pagestone")
    return Blob(EXTENSION[kind], pieces, sum(len(p) for p in pieces), sparse)


def chunks(pieces: Iterable[Piece]) -> Iterator[memoryview]:
    for piece in pieces:
        view = memoryview(piece)
        for lo in range(0, len(view), CHUNK):
            yield view[lo : lo + CHUNK]


def _is_zero(chunk: memoryview) -> bool:
    return not np.frombuffer(chunk, np.uint8).any()


def _write(f: IO[bytes], chunk: memoryview) -> None:
    """All of it: with PYTHONUNBUFFERED stdout is a raw file, whose writes may be short."""
    while chunk:
        chunk = chunk[f.write(chunk) :]


class _Whole:
    """What tarfile writes to, likewise."""

    def __init__(self, f: IO[bytes]):
        self._f = f

    def write(self, data: bytes) -> int:
        _write(self._f, memoryview(data))
        return len(data)


def write_blob(f: IO[bytes], b: Blob, bar: Progress, digest: Any = None, holes: bool = False) -> None:
    """Write to `f`; with `holes` zeros of sparse arrays are left out (`f` is an empty file)."""
    for chunk in chunks(b.pieces):
        if digest is not None:
            digest.update(chunk)
        if holes and b.sparse and _is_zero(chunk):
            f.seek(len(chunk), os.SEEK_CUR)
        else:
            _write(f, chunk)
        bar.step(len(chunk))
    if holes and b.sparse:
        f.truncate(b.n_bytes)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when complete; what is no regular file (a pipe) is written directly."""
    try:
        plain = stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        plain = True
    if not plain:
        with open(path, "wb") as f:
            yield f
        return
    folder, name = os.path.split(os.path.realpath(path))
    part = os.path.join(folder, f".{name[:200]}.{os.getpid()}.part")
    try:
        f = open(part, "xb")  # noqa: SIM115
    except OSError as e:
        raise OSError(e.errno, e.strerror, path) from None
    try:
        with f:
            yield f
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


# --- export ----------------------------------------------------------------------------------------------------------


class _Hashing(io.RawIOBase):
    """What tarfile reads a member from: the pieces, hashed as they go by."""

    def __init__(self, b: Blob, bar: Progress, digest: Any):
        super().__init__()
        self._chunks, self._rest = chunks(b.pieces), memoryview(b"")
        self._bar, self._digest = bar, digest

    def read(self, n: int = -1) -> bytes:
        out = bytearray()
        while n < 0 or len(out) < n:
            if not self._rest:
                self._rest = next(self._chunks, memoryview(b""))
                if not self._rest:
                    break
            part = self._rest[: len(self._rest) if n < 0 else n - len(out)]
            self._rest = self._rest[len(part) :]
            out += part
        self._digest.update(out)
        self._bar.step(len(out))
        return bytes(out)


class _TarSink:
    def __init__(self, f: Any, mtime: float, stream: bool):
        self._tar = tarfile.open(fileobj=f, mode="w|" if stream else "w", copybufsize=CHUNK)  # type: ignore[call-overload]  # noqa: SIM115
        self._mtime = int(mtime)

    def add(self, name: str, b: Blob, bar: Progress, digest: Any) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mtime, member.mode = b.n_bytes, self._mtime, 0o644
        self._tar.addfile(member, _Hashing(b, bar, digest))

    def close(self) -> None:
        self._tar.close()


class _DirSink:
    def __init__(self, path: str):
        self._path = path
        if os.path.isdir(path) and os.listdir(path):
            raise Fail(f"{path} is not empty: name a new directory, or a file *.tar")
        os.makedirs(path, exist_ok=True)

    def add(self, name: str, b: Blob, bar: Progress, digest: Any) -> None:
        path = os.path.join(self._path, *name.split("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as f:
            write_blob(f, b, bar, digest, holes=True)

    def close(self) -> None:
        pass


def _file_name(key: str, extension: str, taken: set[str], number: int) -> str:
    """``data/<key><extension>``; where that is too long or in the way of another, ``other/<number><extension>``."""
    name = f"data/{key}{extension}"
    parts = name.split("/")
    clear = all("/".join(parts[:i]) not in taken for i in range(2, len(parts)))
    if clear and len(parts[-1].encode()) <= 255 and len(name) < 2000:
        taken.add(name)
        return name
    return f"other/{number:06}{extension}"


def _entry(key: str, info: dict[str, Any], name: str, b: Blob, digest: Any) -> dict[str, Any]:
    entry = {"key": key, "kind": info["kind"], "file": name, "size": b.n_bytes, "sha256": digest.hexdigest()}
    if info["kind"] == "array":
        entry["dtype"] = _dtype.describe(info["dtype"]).decode("utf-8", "surrogatepass")
        entry["shape"] = list(info["shape"])
        entry["order"] = info["order"]
        if b.sparse:
            entry["sparse"] = True
    return entry


def export_to(sink: Any, snapshot: Any, about: dict[str, Any]) -> dict[str, Any]:
    """Write all objects of a snapshot and the manifest; returns that."""
    total = sum(info["nbytes"] for _, info in snapshot._iter("", False, "i"))
    objects: list[dict[str, Any]] = []
    taken: set[str] = set()
    with Progress("export", total) as bar:
        for key, info in snapshot._iter("", False, "i"):
            if info["kind"] == "dir":
                continue
            b = blob(snapshot, key, info)
            name = _file_name(key, b.extension, taken, len(objects))
            digest = hashlib.sha256()
            sink.add(name, b, bar, digest)
            objects.append(_entry(key, info, name, b, digest))
        manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, **about, "objects": objects}
        text = json.dumps(manifest, indent=1, ensure_ascii=True).encode() + b"\n"
        sink.add(MANIFEST, Blob("", [text], len(text), False), bar, hashlib.sha256())
    sink.close()
    return manifest


def export(snapshot: Any, target: str, about: dict[str, Any], force: bool) -> dict[str, Any]:
    """Export to ``-`` (a tar on stdout), a file ``*.tar``, or a directory."""
    mtime = snapshot.time.timestamp()
    if target == "-":
        return export_to(_TarSink(_Whole(sys.stdout.buffer), mtime, True), snapshot, about)
    if not target.endswith(".tar") or os.path.isdir(target):
        return export_to(_DirSink(target), snapshot, about)
    if os.path.lexists(target) and not force:
        raise Fail(f"{target} exists: remove it, or replace it with -f")
    with replacing(target) as f:
        manifest = export_to(_TarSink(f, mtime, False), snapshot, about)
        f.flush()
        os.fsync(f.fileno())
    return manifest


# --- import ----------------------------------------------------------------------------------------------------------


def safe_name(name: Any) -> str:
    """`name` if it is a relative path that stays below its root."""
    if not isinstance(name, str) or "\0" in name or any(p in ("", ".", "..") for p in name.split("/")):
        raise Fail(
            f"the manifest names the file {name!r}, which may lie outside the export: it is damaged or malicious"
        )
    return name


class _TarSource:
    def __init__(self, f: IO[bytes]):
        try:
            self._tar = tarfile.open(fileobj=f, mode="r:*")  # noqa: SIM115
        except tarfile.TarError:
            raise Fail("the source is no tar file: give a tar file or a directory that export wrote") from None

    def open(self, name: str) -> IO[bytes]:
        try:
            member = self._tar.getmember(name)
        except KeyError:
            raise FileNotFoundError(name) from None
        f = self._tar.extractfile(member) if member.isreg() else None
        if f is None:
            raise Fail(f"{name} in the export is no regular file: it is damaged or malicious")
        return f


class _DirSource:
    def __init__(self, path: str):
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def open(self, name: str) -> IO[bytes]:
        *folders, last = name.split("/")
        fds = [self._fd]
        try:
            for folder in folders:
                fds.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fds[-1]))
            fd = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fds[-1])
        except FileNotFoundError:
            raise FileNotFoundError(name) from None
        except OSError as e:
            raise Fail(f"{name} in the export cannot be opened: {e.strerror} (links are not followed)") from None
        finally:
            for fd_ in fds[1:]:
                os.close(fd_)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise Fail(f"{name} in the export is no regular file: it is damaged or malicious")
        return open(fd, "rb", buffering=0)


@contextlib.contextmanager
def source_of(path: str) -> Iterator[Any]:
    """An export to read: a directory, a tar file, or ``-`` for a tar on stdin."""
    if path == "-":
        with tempfile.TemporaryFile() as f:
            shutil.copyfileobj(sys.stdin.buffer, f, CHUNK)
            f.seek(0)
            yield _TarSource(f)
    elif os.path.isdir(path):
        yield _DirSource(path)
    else:
        with open(path, "rb") as f:
            yield _TarSource(f)


_FIELDS = {"key": str, "kind": str, "file": str, "size": int, "sha256": str}
_ARRAY_FIELDS = {"dtype": str, "shape": list, "order": str}


def read_manifest(source: Any) -> dict[str, Any]:
    """The manifest, with every field of the right type and every name inside the export."""
    try:
        with source.open(MANIFEST) as f:
            manifest = json.load(f)
    except FileNotFoundError:
        raise Fail(f"there is no {MANIFEST}: it is no export, or one that was not finished") from None
    except (ValueError, RecursionError) as e:
        raise Fail(f"{MANIFEST} is malformed ({e}): export again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise Fail(f"{MANIFEST} is not one of an export")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise Fail(
            f"the export has format version {manifest.get('format_version')!r}, known is {FORMAT_VERSION}: upgrade pagestone"
        )
    objects = manifest.get("objects")
    seen: set[str] = set()
    for entry in objects if isinstance(objects, list) else [None]:
        is_array = isinstance(entry, dict) and entry.get("kind") == "array"
        fields = {**_FIELDS, **(_ARRAY_FIELDS if is_array else {})}
        if not isinstance(entry, dict) or any(type(entry.get(f)) is not t for f, t in fields.items()):
            raise Fail(f"{MANIFEST} has a malformed entry: export again")
        if entry["kind"] not in EXTENSION or entry["size"] < 0 or entry["key"] in seen:
            raise Fail(f"{MANIFEST} has a malformed or doubled entry for {safe(entry['key'])!r}: export again")
        seen.add(entry["key"])
        safe_name(entry["file"])
    return manifest


class _Checked:
    """A file of an export, hashed as it is read."""

    def __init__(self, f: IO[bytes], entry: dict[str, Any], bar: Progress):
        self._f, self._entry, self._bar = f, entry, bar
        self._digest = hashlib.sha256()
        self._left: int = entry["size"]

    def read(self, n: int) -> bytes:
        data = self._f.read(min(n, self._left))
        self._count(data)
        return data

    def readinto(self, memory: memoryview) -> None:
        """Fill `memory`, or raise Malformed."""
        at = 0
        while at < len(memory):
            part = memory[at : at + CHUNK]
            n = self._f.readinto(part)  # type: ignore[attr-defined]
            if not n:
                raise Malformed("it ends too early")
            self._count(part[:n])
            at += n

    def _count(self, data: Any) -> None:
        self._digest.update(data)
        self._left -= len(data)
        self._bar.step(len(data))

    def finish(self) -> None:
        """Everything was read, and it was what the manifest says."""
        if self._left != 0 or self._f.read(1):
            raise Malformed(f"it has not the {self._entry['size']} bytes that the manifest says")
        if self._digest.hexdigest() != self._entry["sha256"].lower():
            raise Malformed("its checksum is not the one in the manifest")


def read_array(f: Any, t: Any, key: str, sparse: bool = False, expect: dict[str, Any] | None = None) -> Any:
    """Read an NPY stream into the new array `key` of a transaction, without a copy in between."""
    shape, dtype, order, _ = read_npy_header(f)
    if expect is not None:
        try:
            dtype_kept = _dtype.from_description(expect["dtype"].encode("utf-8", "surrogatepass"))
        except CorruptError:
            raise Malformed(f"{expect['dtype'][:80]!r} in the manifest is no dtype") from None
        if dtype_kept.hasobject or npy_dtype(dtype_kept) != dtype:
            raise Malformed(f"its dtype {dtype} is not the {expect['dtype']} that the manifest says")
        if list(shape) != expect["shape"] or order != expect["order"]:
            raise Malformed("its shape is not the one that the manifest says")
        dtype = dtype_kept
    if not sparse:
        a = t.empty(key, shape, dtype, order)
        f.readinto(memory_of(a))
        return a
    a = t.create(key, shape, dtype, order)
    memory = memory_of(a)
    buffer, zeros = memoryview(bytearray(CHUNK)), memoryview(bytes(4096))
    for lo in range(0, len(memory), CHUNK):
        part = buffer[: min(CHUNK, len(memory) - lo)]
        f.readinto(part)
        for at in range(
            0, len(part), 4096
        ):  # a page that is not touched stays a hole, and takes no memory until the commit
            if part[at : at + 4096] != zeros[: len(part) - at]:
                memory[lo + at : lo + min(at + 4096, len(part))] = part[at : at + 4096]
    return a


@contextlib.contextmanager
def as_buffer(f: Any, n: int) -> Iterator[Any]:
    """The `n` bytes of a stream as a buffer; many of them by way of a temporary file, so that memory stays bounded."""
    if n <= IN_MEMORY:
        memory = bytearray(n)
        f.readinto(memoryview(memory))
        yield memory
        return
    with tempfile.TemporaryFile() as spool:
        while n:
            data = f.read(min(CHUNK, n))
            if not data:
                raise Malformed("it ends too early")
            spool.write(data)
            n -= len(data)
        spool.flush()
        with mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ) as m, memoryview(m) as view:
            yield view


def _import_one(source: Any, t: Any, e: dict[str, Any], bar: Progress) -> None:
    key, kind = e["key"], e["kind"]
    with source.open(e["file"]) as f:
        checked = _Checked(f, e, bar)
        if kind == "array":
            read_array(checked, t, key, bool(e.get("sparse")), e)
            checked.finish()
            return
        with as_buffer(checked, e["size"]) as data:
            checked.finish()  # before anything looks at it
            if kind == "bytes":
                t[key] = data
            elif kind == "plain":
                t[key] = from_json(json.loads(bytes(data)))
                if t._info(key)["kind"] == "pickle":
                    raise Malformed("it is nested too deeply for a plain value")
            else:
                t[key] = pickle.loads(data)


def import_objects(
    store: Any, source: Any, manifest: dict[str, Any], message: str | None, force: bool, batch: int
) -> int:
    """Put every object of the export into the store, in one transaction or in batches; returns the newest version."""
    objects = manifest["objects"]
    step = batch or max(1, len(objects))
    version: int = store.version
    with Progress("import", sum(e["size"] for e in objects)) as bar:
        for lo in range(0, len(objects), step):
            with store.begin(message=message) as t:
                for e in objects[lo : lo + step]:
                    key = e["key"]
                    if key in t:
                        if not force:
                            raise Fail(
                                f"{safe(key)} exists in the store: replace what is there with -f, or import into a new store"
                            )
                        del t[key]
                    try:
                        _import_one(source, t, e, bar)
                    except FileNotFoundError:
                        raise Fail(f"{safe(e['file'])} is missing in the export: export again") from None
                    except (Malformed, json.JSONDecodeError, EOFError, pickle.UnpicklingError) as err:
                        raise Fail(f"{safe(key)} ({safe(e['file'])}): {err}; export again") from err
                version = t.commit()
    return version


def about(store: Any, snapshot: Any, version_of_pagestone: str) -> dict[str, Any]:
    """What the manifest says besides the objects."""
    info = store.info()
    return {
        "pagestone": version_of_pagestone,
        "exported": iso(dt.datetime.now(dt.timezone.utc)),
        "store": {"path": info["path"], "uuid": info["uuid"]},
        "version": snapshot.version,
        "time": iso(snapshot.time),
    }
