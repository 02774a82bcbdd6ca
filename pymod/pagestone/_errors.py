"""The exceptions of pagestone; the C module raises them by name."""

from __future__ import annotations

from typing import Any


class Error(Exception):
    """Base of everything that pagestone raises on its own account."""


class ConflictError(Error):
    """Another transaction committed first and changed the same thing.

    Attributes
    ----------
    keys : tuple of str
        The keys that collided, each once.
    ranges : dict of str to list of (int, int)
        For arrays changed in place by both: flat element ranges ``[lo, hi)`` in memory order. A key that
        is missing here collided as a whole.
    version : int
        The version that won: the newest that changed one of the keys, even if elements that collided were changed before it.
    winner : Commit or None
        Its log entry, looked up when asked for.
    """

    def __init__(self, text: str, items: list[tuple[str, int, int]] | None = None, version: int = 0, store: Any = None):
        super().__init__(text)
        self._items = items or []
        self._store = store
        self.version = version
        self.keys = tuple(dict.fromkeys(k for k, _, _ in self._items))
        self.ranges: dict[str, list[tuple[int, int]]] = {}
        for key, lo, hi in self._items:
            if lo < hi:
                self.ranges.setdefault(key, []).append((lo, hi))

    @property
    def winner(self) -> Any:
        """The log entry of the commit that won, or None if it is gone or the store was closed."""
        if self._store is None or self._store.closed:
            return None
        commits = self._store._commits(before=self.version + 1, limit=1)
        return commits[0] if commits and commits[0].version == self.version else None

    def __reduce__(self) -> Any:
        return type(self), (self.args[0], self._items, self.version)


class StoreFullError(Error, OSError):
    """The quota, the file system or the memory is full; nothing was lost."""


class CorruptError(Error):
    """Damaged bytes. ``object`` names the key, or the part of the store, that they belong to."""

    object: str = ""


class VersionExpiredError(Error):
    """The version was there and is gone: history= keeps more, a tag keeps one for good."""


class ReadOnlyError(Error):
    """A write to something that is read only."""


class LockedError(Error):
    """A lock could not be had within the time-out; the text names its holder."""


class PickleRefusedError(Error, ValueError):
    """A pickled object in a store that others can write: loading it could run their code."""


class WorkerLostError(Error):
    """A worker of a shared transaction died before it was done."""


class ClosedError(Error, ValueError):
    """Used after close, commit or abort."""


class ForkedError(ClosedError):
    """A transaction used in another process than the one that began it."""


class NotAStoreError(Error, ValueError):
    """The path holds something else than a store."""


class FormatError(Error, ValueError):
    """A store of a newer format, another byte order, page size or library build."""


class NotSupportedError(Error, OSError):
    """Not possible on this system or file system."""

    def __init__(self, *args: Any):
        super().__init__(*args)


class StaleStoreError(Error):
    """The store was replaced (mode ``"w"``) or deleted; what is open stays readable, nothing more can be committed."""


class StoreOSError(Error, OSError):
    """A system call failed."""


class InternalError(Error, RuntimeError):
    """An inconsistency that was caught before it did harm; please report it."""
