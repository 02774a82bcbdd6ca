"""Store and Snapshot."""

from __future__ import annotations

import datetime as dt
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, NamedTuple

import numpy as np

from . import _core, _handles
from ._cold import byte_ranges
from ._errors import ConflictError, ReadOnlyError, VersionExpiredError
from ._group import Group
from ._mapping import AtomicMapping, ReadMapping
from ._txn import Transaction

_MISSING: Any = object()
_MODE_NAMES = {1: "r", 2: "r+", 3: "a", 4: "w", 5: "x"}
_DURABILITY_NAMES = {1: "none", 2: "ordered", 3: "full"}
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)


def to_time(ns: int) -> dt.datetime:
    """An aware local datetime, truncated to microseconds."""
    return (_EPOCH + dt.timedelta(microseconds=ns // 1000)).astimezone()


def from_time(time: dt.datetime) -> int:
    """Nanoseconds since 1970 of a datetime, at least 0 and below 2**63; a naive one is local time."""
    if time != time:
        raise ValueError(f"{time!r} is no time")
    plain = dt.datetime(
        *time.timetuple()[:6], time.microsecond, time.tzinfo, fold=time.fold
    )  # pandas has ideas of its own
    try:
        us = (plain.astimezone(dt.timezone.utc) - _EPOCH) // dt.timedelta(microseconds=1)
    except (OverflowError, ValueError):  # in UTC it is before the year 1 or after 9999
        us = -1 if plain.year < 1970 else 2**63
    return min(max(us, 0) * 1000, 2**63 - 1)


class _Commit(NamedTuple):
    version: int
    time: dt.datetime
    pid: int
    command: str
    message: str | None
    keys: tuple[str, ...]
    bytes_written: int


class Commit(_Commit):
    """One entry of :meth:`Store.log`: version, time, pid, command, message, keys, bytes_written.

    Attributes
    ----------
    keys_truncated : bool
        Whether more keys changed than the log kept.
    """

    keys_truncated = False


class Reader(NamedTuple):
    """One entry of :meth:`Store.readers`; pid and since are None for a reader without write permission."""

    pid: int | None
    command: str
    since: dt.datetime | None
    versions: tuple[int, ...]
    bytes: int


class Diff(NamedTuple):
    """What differs between two versions: :meth:`Store.diff`."""

    added: set[str]
    removed: set[str]
    changed: dict[str, list[tuple[int, int]] | None]


class Report(NamedTuple):
    """What :meth:`Store.check` found."""

    ok: bool
    errors: list[tuple[str, str]]
    objects: int
    versions: int
    pages: int
    unverified: int
    leaked: int


class Stat(NamedTuple):
    """Where the bytes are: :meth:`Store.stat`. All in bytes but objects and versions."""

    live: int
    history: int
    pinned: int
    free: int
    resident: int
    compressed: int
    leaked: int
    objects: int
    versions: int
    bytes_copied: int
    bytes_shared: int
    quota: int
    meta: int
    file_size: int


class Snapshot(_core.SnapshotBase, ReadMapping):
    """One version, read only: a Mapping that never changes. Made by :meth:`Store.snapshot` and :meth:`Store.at`.

    Keeps its version's pages until closed or collected. Pickles as a handle and works in a forked child.
    """

    @property
    def time(self) -> dt.datetime:
        """When the version was committed: an aware datetime in local time."""
        return to_time(self._time_ns)

    def __iter__(self) -> Iterator[str]:
        return self._iter_keys("")

    def _iter_keys(self, prefix: str) -> Iterator[str]:
        return self._iter(prefix, True, "k")

    def __bool__(self) -> bool:
        return len(self) > 0

    @contextmanager
    def _frozen(self) -> Iterator[Any]:
        yield self

    def _atomic(self, fn: Callable[[Any], Any]) -> Any:
        self._refuse()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, or `default` if there is none; a KeyError of the object's own code passes."""
        return self[key] if key in self else default  # noqa: SIM401

    def _refuse(self) -> None:
        raise ReadOnlyError(
            "a snapshot is read only: change the store with begin() (t[key] is writable there), "
            "or take private(key) for a writable copy of your own"
        )

    def __setitem__(self, key: str, value: Any) -> None:
        self._refuse()

    def __delitem__(self, key: str) -> None:
        self._refuse()

    def private(self, key: str) -> np.ndarray[Any, Any]:
        """A writable copy-on-write view of an array, seen by nobody else; nothing is copied until touched."""
        return self._private(key)

    def group(self, name: str) -> Group:
        """The keys below ``name/``."""
        return Group(self, name)

    def prefetch(self, key: str, index: Any = ...) -> None:
        """Decompress ahead what is about to be read, and verify it: :meth:`Store.prefetch`."""
        self._prefetch(key, byte_ranges(self._info(key), index))

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        return _handles.reduce_snapshot(self)

    def __repr__(self) -> str:
        return (
            "<pagestone.Snapshot, closed>"
            if self.closed
            else f"<pagestone.Snapshot of version {self.version}, {len(self)} keys>"
        )


class Store(_core.StoreBase, AtomicMapping):
    """A versioned store of arrays and objects, shared by all processes of the host; made by :func:`pagestone.open`.

    A MutableMapping of str keys; each assignment is one committed transaction. Iteration, ``len`` and ``in`` see one
    snapshot. Pickles as a handle, works in forked children, may be used by many threads.
    """

    closed = False
    path: str | None
    mode: str
    _timeout: int

    def __new__(cls, *args: Any, **kwargs: Any) -> Store:
        raise TypeError("stores are opened by pagestone.open(path, mode)")

    @classmethod
    def _open(cls, *args: Any) -> Store:
        """A Store from the arguments of StoreBase."""
        self = super().__new__(cls, *args)
        info = self._info()
        self.path = info["path"]
        self.mode = _MODE_NAMES[info["mode"]]
        self._timeout = args[7]
        return self

    @classmethod
    def _from_handle(cls, handle: bytes, read_only: int, allow_pickle: int, timeout: int) -> Store:
        return cls._open(None, handle, 1 if read_only else 2, 0, 0, 0, 0, timeout, 0, int(bool(allow_pickle)))

    # --- mapping

    def __iter__(self) -> Iterator[str]:
        return self._iter_keys("")

    def _iter_keys(self, prefix: str) -> Iterator[str]:
        return Snapshot(self)._iter_keys(prefix)

    def __bool__(self) -> bool:
        return len(self) > 0

    @contextmanager
    def _frozen(self) -> Iterator[Any]:
        with Snapshot(self) as snapshot:
            yield snapshot

    def _atomic(self, fn: Callable[[Any], Any]) -> Any:
        return self._atomic_at(fn)[0]

    def _atomic_at(self, fn: Callable[[Any], Any]) -> tuple[Any, int]:
        """What fn returned, and the version in which it is true."""
        while True:
            t = self.begin("serializable")
            t._untouched = True
            try:
                result = fn(t)
                return result, t.commit()
            except ConflictError:
                continue
            finally:
                t.abort()

    def clear(self) -> None:
        """Remove all keys, in one transaction."""
        self._atomic(lambda t: t._clear(""))

    def group(self, name: str) -> Group:
        """The keys below ``name/`` as a MutableMapping of their own; KeyError and keys are relative to it.

        Examples
        --------
        >>> import pagestone as ps
        >>> s = ps.open()
        >>> s.group("a/b")["x"] = 1
        >>> list(s)
        ['a/b/x']
        """
        return Group(self, name)

    # --- arrays and objects

    def private(self, key: str) -> np.ndarray[Any, Any]:
        """A writable copy-on-write view of an array, seen by nobody else; nothing is copied until touched."""
        return self._private(key)

    def create(
        self, key: str, shape: Any, dtype: Any = float, order: str = "C", fill: Any = 0, exist_ok: bool = False
    ) -> _core.Array:
        """Create and commit an array of zeros (or `fill`), lazily allocated: 1 TB costs nothing. Returns it, read only.

        See :meth:`Transaction.create` for the parameters.

        Examples
        --------
        >>> import pagestone as ps
        >>> s = ps.open()
        >>> s.create("big", (1000, 1000, 1000), "f4").nbytes
        4000000000
        """

        def step(t: Transaction) -> None:
            t._make(key, shape, dtype, order, fill, exist_ok)

        array: _core.Array = self._array_at(key, self._atomic_at(step)[1])
        return array

    def _array_at(self, key: str, version: int) -> Any:
        """What was just committed; what is there now if it is gone (history=0, and somebody else was quick)."""
        try:
            with self.at(version) as snapshot:
                return snapshot[key]
        except VersionExpiredError:
            return self[key]

    def move(self, a: str, b: str) -> None:
        """Rename key `a` to `b` in one transaction; KeyError if there is no `a`, or a `b` already. O(1)."""
        self._atomic(lambda t: t.move(a, b))

    def copy(self, a: str, b: str) -> None:
        """Make `b` a copy of `a`, sharing its pages, in place of what `b` was; one transaction."""
        self._atomic(lambda t: t.copy(a, b))

    def update_with(self, key: str, fn: Callable[[Any], Any], default: Any = _MISSING) -> Any:
        """Atomic read-modify-write: store ``fn(value)``; again if another process was first. Returns the new value.

        Parameters
        ----------
        key : str
        fn : callable
            Gets the value (arrays writable, so it may change them in place and return them), returns the new one.
            Called again after a conflict. What it returns is stored: None, too.
        default : object, optional
            What `fn` gets if there is no such key; without it, KeyError.

        Examples
        --------
        >>> import pagestone as ps
        >>> s = ps.open()
        >>> s.update_with("n", lambda n: n + 1, default=0)
        1
        """
        while True:
            t = self.begin("serializable")  # what is read counts, a key that is not there included
            try:
                value = t.get(key, default)
                if value is _MISSING:
                    raise KeyError(key)
                new = fn(value)
                if not (new is value and isinstance(new, np.ndarray) and key in t and t._info(key)["kind"] == "array"):
                    t[key] = new
                version = t.commit()
            except ConflictError:
                continue
            finally:
                t.abort()
            if not isinstance(new, np.ndarray):
                return new
            try:
                return self._array_at(key, version)
            except KeyError:
                return new

    # --- cold data

    def freeze(self, key: str) -> int:
        """Compress the newest content of a key in place: its bytes, its version and who has it open stay as they are.

        Blocks of 128 KiB are shuffled by the item size and compressed, on all processors; a block that would not
        shrink by an eighth stays as it is. Reading works as before: touching a page brings its block. Memory is
        free again when nobody uses the raw pages any more: older versions and open arrays have them.

        Returns
        -------
        int
            Bytes saved by this call.

        Raises
        ------
        KeyError
            There is no such key.
        CorruptError
            The bytes do not match their checksums: nothing damaged is frozen.
        StoreFullError
            There is no room for even one block.

        See Also
        --------
        thaw, prefetch, stat

        Examples
        --------
        >>> import numpy as np, pagestone as ps
        >>> s = ps.open()
        >>> s["x"] = np.arange(1_000_000)
        >>> s.freeze("x") > 7_000_000
        True
        >>> int(s["x"].sum())
        499999500000
        """
        return self._freeze(key, False)

    def thaw(self, key: str) -> int:
        """Make what is compressed of the newest content of a key raw again. Returns the bytes made raw.

        Raises
        ------
        KeyError
            There is no such key.
        CorruptError
            A block is damaged.
        StoreFullError
            There is no room for even one block.

        Examples
        --------
        >>> import numpy as np, pagestone as ps
        >>> s = ps.open()
        >>> s["x"] = np.zeros(131_072)
        >>> _ = s.freeze("x")
        >>> s.thaw("x")
        1048576
        """
        return self._freeze(key, True)

    def prefetch(self, key: str, index: Any = ...) -> None:
        """Decompress ahead what is about to be read, and verify it.

        Parameters
        ----------
        key : str
        index : int, slice, ... or tuple of them, optional
            What part of an array, as in ``s[key][index]``; default: all.

        Raises
        ------
        KeyError
            There is no such key.
        CorruptError
            A block is damaged. Touching it in a mapping would be SIGBUS.
        IndexError, TypeError
            The index does not fit the array, or is not a basic one.

        Notes
        -----
        Nothing else waits for this: pages that are not here come when they are touched. What was brought may be dropped
        again under memory pressure before it is used.

        Examples
        --------
        >>> import numpy as np, pagestone as ps
        >>> s = ps.open()
        >>> s["x"] = np.arange(1_000_000).reshape(1000, 1000)
        >>> _ = s.freeze("x")
        >>> s.prefetch("x", np.s_[500:510])
        """
        with Snapshot(self) as snapshot:
            snapshot.prefetch(key, index)

    # --- transactions

    def begin(self, isolation: str = "snapshot", message: str | None = None) -> Transaction:
        """Begin a transaction on the newest version.

        Parameters
        ----------
        isolation : {"snapshot", "serializable", "strict"}
            What conflicts besides changes of the same thing: with "serializable" also what was read, with "strict"
            anything committed since. Writing the value into an element that is already there is no change: alone it
            makes no version and conflicts with nobody. Assigning a whole object, ``t[k] = value``, is always one.
        message : str, optional
            For the log.

        Examples
        --------
        >>> import numpy as np, pagestone as ps
        >>> s = ps.open()
        >>> s["x"] = np.zeros(4)
        >>> with s.begin() as t:
        ...     t["x"][1:3] = 7
        >>> s["x"]
        Array([0., 7., 7., 0.])
        """
        return Transaction(self, isolation, message)

    def run(self, fn: Callable[[Transaction], Any], retries: int | None = None) -> Any:
        """Call ``fn(t)`` in a transaction and commit it, again on `ConflictError`; returns what `fn` returned.

        `retries`: how many times to try again (None: until it commits). An exception of `fn` aborts.
        """
        attempt = 0
        while True:
            t = self.begin()
            try:
                result = fn(t)
                if not t._over:
                    t.commit()
                return result
            except ConflictError:
                attempt += 1
                if retries is not None and attempt > retries:
                    raise
            finally:
                t.abort()

    # --- versions

    @property
    def versions(self) -> list[int]:
        """Numbers of the versions that are kept, oldest first."""
        return self._versions()

    def snapshot(self) -> Snapshot:
        """The newest version, read only."""
        return Snapshot(self)

    def at(self, version: Any) -> Snapshot:
        """A kept version, read only.

        Parameters
        ----------
        version : int, str or datetime
            A number; a negative one counts from the newest as in a list; a tag; or a time: the newest version that
            is not later (a naive datetime is local time).

        Raises
        ------
        VersionExpiredError
            It was there and was dropped.
        ValueError
            It never was.
        KeyError
            Unknown tag.
        """
        if isinstance(version, str):
            return Snapshot(self, "n", version)
        if isinstance(version, dt.datetime):
            return Snapshot(self, "t", from_time(version))
        if isinstance(version, bool) or not hasattr(version, "__index__"):
            raise TypeError(f"a version is an int, a tag or a datetime, not {type(version).__name__}")
        return Snapshot(self, "v", version.__index__())

    def _number(self, version: Any) -> int:
        if isinstance(version, Snapshot):
            return version.version
        with self.at(version) as s:
            return s.version

    def tag(self, name: str, version: Any = None) -> None:
        """Give a version a name that keeps it until :meth:`untag`. Names are immutable.

        Parameters
        ----------
        name : str
            1 to 200 bytes, without ``/``, not starting with a digit or ``-``.
        version : int, str or datetime, optional
            As for :meth:`at`; default: the newest.
        """
        if not isinstance(name, str):
            raise TypeError(f"a tag is a str, not {type(name).__name__}")
        if version is None:
            self._tag(name, -1)
            return
        with self._borrow(version) as s:
            if s._store._info()["uuid"] != self._info()["uuid"]:
                raise ValueError("the snapshot is of another store: its version says nothing about this one")
            self._tag(name, s.version)

    def untag(self, name: str) -> None:
        """Remove a tag; KeyError if there is none."""
        self._untag(name)

    @property
    def tags(self) -> dict[str, int]:
        """Tag -> version number."""
        return self._tags()

    def _commits(self, before: int = 0, limit: int = -1) -> list[Commit]:
        commits = []
        for version, ns, pid, command, message, keys, written, cut in self._log(before, limit):
            commits.append(Commit(version, to_time(ns), pid, command, message, keys, written))
            if cut:
                commits[-1].keys_truncated = True
        return commits

    def log(self, key: str | None = None) -> list[Commit]:
        """The commits, newest first; with `key` only those that changed it (or keys below it)."""
        if not (key is None or isinstance(key, str)):
            raise TypeError(f"keys are str, not {type(key).__name__}")
        commits = self._commits()
        if key is None:
            return commits
        below = key + "/"
        return [c for c in commits if c.keys_truncated or any(k == key or k.startswith(below) for k in c.keys)]

    def diff(self, a: Any, b: Any) -> Diff:
        """What changed from version `a` to version `b`, in time proportional to the change.

        Parameters
        ----------
        a, b : int, str, datetime or Snapshot
            As for :meth:`at`.

        Returns
        -------
        Diff
            ``added`` and ``removed`` keys; ``changed``: key -> list of flat element ranges ``(lo, hi)`` in memory
            order, or None if the object changed as a whole. A key whose pages are the same again (by :meth:`revert`,
            say) is not listed; one that was assigned anew is, as None, also if its bytes are equal.
        """
        with self._borrow(a) as sa, self._borrow(b) as sb:
            result = Diff(set(), set(), {})
            for key, what, ranges in sa._diff(sb):
                if what == 1:
                    result.added.add(key)
                elif what == 2:
                    result.removed.add(key)
                else:
                    result.changed[key] = ranges
            return result

    @contextmanager
    def _borrow(self, version: Any) -> Iterator[Snapshot]:
        if isinstance(version, Snapshot):
            yield version
        else:
            with self.at(version) as s:
                yield s

    def revert(self, key: str, version: Any) -> int:
        """Make the content that `key` had at `version` the newest again; copies no data. Returns the new version number."""
        with self._borrow(version) as old:
            if key not in old:
                raise KeyError(key)
            while True:
                t = self.begin(message=f"revert {key} to version {old.version}")
                try:
                    t._copy(old, key, key)
                    return t.commit()
                except ConflictError:
                    continue
                finally:
                    t.abort()

    def wait(self, version: int | None = None, key: str | None = None, timeout: float | None = None) -> int | None:
        """Sleep until something newer than `version` (default: now) is committed; with `key` until that key changed.

        Returns the newest version number, or None after `timeout` seconds. Does not poll. ClosedError if another thread
        closes the store meanwhile.
        """
        from ._open import timeout_ns

        after = self.version if version is None else operator.index(version)
        if not 0 <= after < 2**63:
            raise ValueError(f"version {after} is none that can be waited for: versions count from 0")
        if key is not None and not isinstance(key, str):
            raise TypeError(f"keys are str, not {type(key).__name__}")
        return self._wait(after, key, -1 if timeout is None else timeout_ns(timeout))

    # --- upkeep

    def readers(self) -> list[Reader]:
        """Who pins which versions since when, and how many bytes only they keep alive."""
        return [
            Reader(pid or None, command, to_time(ns) if ns else None, versions, n)
            for pid, command, ns, versions, n in self._readers()
        ]

    def stat(self) -> Stat:
        """Where the bytes are."""
        return Stat(**self._stat())

    def gc(self) -> None:
        """Reclaim everything that nobody needs, now; on disk also make everything durable. Freezes what ``freeze=`` of
        :func:`pagestone.open` says."""
        self._gc()

    def compact(self) -> None:
        """Move data together and give the rest of the file back. Changes no version and conflicts with nobody."""
        self._compact()

    def check(self, data: bool = True) -> Report:
        """Verify everything; does not raise for what it finds.

        Parameters
        ----------
        data : bool
            Also verify the bytes of arrays against their checksums, where they have some (``unverified`` counts
            pages without).
        """
        errors, objects, versions, pages, unverified, leaked = self._check(data)
        return Report(not errors, errors, objects, versions, pages, unverified, leaked)

    def info(self) -> dict[str, Any]:
        """Path, quota, durability, history and the like, as a dict."""
        i = self._info()
        history = {
            1: "default",
            2: i["history_value"],
            3: f"{i['history_value']}B",
            4: f"{i['history_value'] / 1e9:g}s",
            5: "all",
        }
        return {
            "path": i["path"],
            "uuid": i["uuid"].hex(),
            "mode": self.mode,
            "read_only": bool(i["read_only"]),
            "size": i["quota"] or None,
            "durability": _DURABILITY_NAMES.get(i["durability"]),
            "history": history.get(i["history"]),
            "checksums": bool(i["checksums"]),
            "freeze": f"older than {i['freeze_ns'] / 1e9:g}s" if i["freeze_ns"] else None,
            "allow_pickle": self.allow_pickle,
            "file_system": i["fs"],
            "version": self.version,
        }

    def close(self) -> None:
        """End the use of this Store. Idempotent; arrays and snapshots handed out stay valid, transactions can be ended."""
        if not self.closed:
            self.closed = True
            self._close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        return _handles.reduce_store(self)

    def __repr__(self) -> str:
        where = repr(self.path) if self.path else "in memory"
        if self.closed:
            return f"<pagestone.Store {where}, closed>"
        return f"<pagestone.Store {where}, mode {self.mode!r}, version {self.version}, {len(self)} keys>"
