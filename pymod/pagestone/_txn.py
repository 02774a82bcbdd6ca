"""Transactions."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable

import numpy as np

from . import _core
from ._errors import ForkedError
from ._group import Group
from ._mapping import AtomicMapping

if TYPE_CHECKING:
    from ._store import Snapshot, Store

_ISOLATION = {"snapshot": 0, "serializable": 1, "strict": 2}


def as_shape(shape: Any) -> tuple[int, ...]:
    try:
        return (operator.index(shape),)
    except TypeError:
        return tuple(operator.index(n) for n in shape)


def as_dtype(dtype: Any) -> np.dtype[Any]:
    d: np.dtype[Any] = np.dtype(dtype)
    if d.hasobject:
        raise TypeError(
            f"dtype {d} holds Python objects: arrays in a store hold plain bytes; "
            "store the object itself (s[key] = obj pickles it)"
        )
    return d


def apply_subarray(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """NumPy appends the shape of a subarray dtype to the array's."""
    while dtype.subdtype is not None:
        dtype, more = dtype.subdtype
        shape += more
    return shape, dtype


def rows_of(key: str, values: Any, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """`values` as an array of `dtype`: arrays by NumPy's "same_kind" rule, anything else also as in ``np.array(values, dtype)``."""
    rows = np.asarray(values)
    if rows.dtype == dtype:
        return rows
    given = isinstance(values, (np.ndarray, np.generic))
    if not given and (dtype.kind in "mMV" or rows.dtype.kind == "O"):  # tuples are records, strings and dates are times
        rows = np.asarray(values, dtype)
    elif rows.size and not np.can_cast(rows.dtype, dtype, "same_kind"):
        raise TypeError(f"cannot append {rows.dtype} to {key!r} of dtype {dtype}: cast it first")
    else:  # a Python int that does not fit raises, as in NumPy
        rows = rows.astype(dtype) if given or not rows.size else np.asarray(values, dtype)
    return rows


def check_rows(key: str, info: dict[str, Any]) -> None:
    if info["order"] == "F" and len(info["shape"]) > 1:
        raise ValueError(
            f"{key!r} is in F order: rows can be added along axis 0 in C order only; store np.ascontiguousarray(a)"
        )


def check_order(order: str) -> str:
    if order not in ("C", "F"):
        raise ValueError(f"order must be 'C' or 'F', not {order!r}")
    return order


class Savepoint:
    """A point of a transaction to go back to, array bytes included."""

    __slots__ = ("_id", "_txn")

    def __init__(self, txn: Transaction, id: int):
        self._txn, self._id = txn, id

    def rollback(self) -> None:
        """Undo everything since the savepoint. Later savepoints are gone, this one can be used again.

        No thread may write to the transaction's arrays meanwhile.
        """
        self._txn._rollback(self._id)


class Transaction(_core.TransactionBase, AtomicMapping):
    """A set of changes that becomes one version, or nothing.

    A MutableMapping that reads its own writes and sees nothing that others commit. As a context manager it commits
    at the end and aborts on an exception. May be used by many threads of the process that began it.

    ``t[k]`` of an array is a *writable* ndarray, copy-on-write: nothing is copied until touched, all views of one
    array alias, threads may write at once. Of other objects it is a fresh copy: assign it back, or use :meth:`edit`;
    arrays inside it (a DataFrame's columns) are read-only views, so ``.copy()`` first.
    """

    _message: str | None
    _isolation: str
    _base_snapshot: Snapshot | None
    _untouched: bool

    def __new__(cls, store: Store, isolation: str = "snapshot", message: str | None = None) -> Transaction:
        if isolation not in _ISOLATION:
            raise ValueError(f"isolation {isolation!r} is not one of 'snapshot', 'serializable', 'strict'")
        self = super().__new__(cls, store, _ISOLATION[isolation])
        self._message = message
        self._isolation = isolation
        self._base_snapshot = None
        self._untouched = False
        return self

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    @property
    def base(self) -> Snapshot:
        """The Snapshot that the transaction began on."""
        if self._base_snapshot is None or self._base_snapshot.closed:  # by the user: the transaction still has its own
            from ._store import Snapshot

            base: Snapshot = self._base(Snapshot)
            self._base_snapshot = base
        return self._base_snapshot

    # --- mapping

    def __iter__(self) -> Iterator[str]:
        return self._iter_keys("")

    def _iter_keys(self, prefix: str) -> Iterator[str]:
        return iter(list(self._iter(prefix, True, "k")))

    def _first(self, prefix: str = "") -> str | None:
        return next(self._iter(prefix, True, "k"), None)

    def __len__(self) -> int:
        return sum(1 for _ in self._iter("", False, "k"))

    def __bool__(self) -> bool:
        return any(True for _ in self._iter("", False, "k"))

    @contextmanager
    def _frozen(self) -> Iterator[Any]:
        yield self

    def _atomic(self, fn: Callable[[Any], Any]) -> Any:
        return fn(self)

    def _take(self, key: str) -> Any:
        if self._untouched:  # of s.pop: the value stays readable in the base, whose pages need no copy
            self._depends(key)
            return self.base[key]
        value = self[key]
        return np.array(value) if isinstance(value, np.ndarray) else value

    def clear(self) -> None:
        """Remove all keys."""
        self._clear("")

    def group(self, name: str) -> Group:
        """The keys below ``name/`` as a mapping of this transaction."""
        return Group(self, name)

    # --- arrays

    def create(
        self, key: str, shape: Any, dtype: Any = float, order: str = "C", fill: Any = 0, exist_ok: bool = False
    ) -> np.ndarray[Any, Any]:
        """Create an array of zeros (or `fill`), lazily allocated, and return it as a writable view.

        Parameters
        ----------
        key : str
        shape : int or tuple of int
        dtype : dtype
            Without Python objects.
        order : {"C", "F"}
        fill : scalar
            Values other than zero are written out: they cost the array's size.
        exist_ok : bool
            If the key holds an array of the same shape and dtype, return that; otherwise ValueError.

        Raises
        ------
        KeyError
            The key exists.
        """
        self._make(key, shape, dtype, order, fill, exist_ok)
        return self[key]  # type: ignore[no-any-return]

    def _make(self, key: str, shape: Any, dtype: Any, order: str, fill: Any, exist_ok: bool) -> None:
        shape, dtype = apply_subarray(as_shape(shape), as_dtype(dtype))
        check_order(order)
        if key in self:
            if not exist_ok:
                raise KeyError(f"{key!r} exists: delete it first, or pass exist_ok=True")
            info = self._info(key)
            if info["kind"] != "array" or info["shape"] != shape or info["dtype"] != dtype:
                raise ValueError(
                    f"{key!r} exists with another kind, shape or dtype: {info['kind']} {info['shape']} {info['dtype']}"
                )
            return
        value = np.zeros((), dtype)
        if not (type(fill) is int and fill == 0):  # 0 means zero bytes for every dtype: "" for strings
            value[...] = fill
        if value.tobytes().strip(b"\0"):
            self._empty(key, shape, dtype, order)[...] = value
        else:
            self._create(key, shape, dtype, order)

    def empty(self, key: str, shape: Any, dtype: Any = float, order: str = "C") -> np.ndarray[Any, Any]:
        """A new array in memory that is already the store's: committing copies nothing.

        All of it is reserved at once, so a full store raises here (`StoreFullError`), not later. Contents start as
        zeros. After the commit the view is harmless private memory.
        """
        shape, dtype = apply_subarray(as_shape(shape), as_dtype(dtype))
        return self._empty(key, shape, dtype, check_order(order))

    def append(self, key: str, values: Any) -> None:
        """Append rows along axis 0; O(what is added). Two transactions that both append both land, in commit order.

        So under "snapshot" isolation reading the shape and then appending does not conflict with another append: the
        rows may land behind those of others. :meth:`landed` says where, after the commit; "serializable" conflicts.

        Parameters
        ----------
        key : str
            An array of at least one dimension, in C order (F order only with one dimension).
        values : array_like
            Shape ``(n, *a.shape[1:])``, or one row ``a.shape[1:]``; cast to the array's dtype by NumPy's "same_kind"
            rule. Of structured arrays a tuple is a row; of times strings and dates are taken, too.

        Notes
        -----
        Appending reads nothing: with ``isolation="serializable"`` appends of others do not conflict with it either.
        """
        info = self._peek(key)
        if info["kind"] != "array" or not info["shape"]:
            raise TypeError(f"{key!r} is no array with an axis to append to")
        check_rows(key, info)
        row = info["shape"][1:]
        rows = rows_of(key, values, info["dtype"])
        if rows.shape == row:
            rows = rows[np.newaxis]
        if rows.shape[1:] != row or rows.ndim != len(row) + 1:
            raise ValueError(f"cannot append shape {rows.shape} to {key!r}: rows have shape {row}")
        self._append(key, np.ascontiguousarray(rows), rows.shape[0])

    def resize(self, key: str, shape: Any) -> None:
        """Change the shape along axis 0; rows that are added read zeros, also after shrinking."""
        info = self._peek(key)
        if info["kind"] != "array" or not info["shape"]:
            raise TypeError(f"{key!r} is no array with an axis to resize")
        check_rows(key, info)
        shape = as_shape(shape)
        if shape[1:] != info["shape"][1:] or len(shape) != len(info["shape"]) or shape[0] < 0:
            raise ValueError(f"cannot resize {key!r} from {info['shape']} to {shape}: only axis 0 can change")
        self._resize(key, shape)

    def landed(self, key: str) -> int:
        """After the commit: index of the first row that :meth:`append` added to `key`."""
        return self._landed(key)

    @contextmanager
    def edit(self, key: str) -> Iterator[Any]:
        """``with t.edit(k) as v:`` — change a fresh copy of an object; it is assigned back at the end of the block.

        Arrays are given writable and in place. An exception in the block assigns nothing back.
        """
        value = self[key]
        yield value
        if not isinstance(value, np.ndarray) or self._peek(key)["kind"] != "array":
            self[key] = value

    # --- keys

    def move(self, a: str, b: str) -> None:
        """Rename key `a` to `b`; KeyError if there is no `a`, or a `b` already. O(1)."""
        self._move(a, b)

    def copy(self, a: str, b: str) -> None:
        """Make `b` a copy of `a`, sharing its pages, in place of what `b` was."""
        self._copy(None, a, b)

    def depends(self, key: str, index: Any = None) -> None:
        """Declare a read: a later change of it by others makes this transaction conflict.

        Parameters
        ----------
        key : str
        index : index expression, optional
            For arrays: what is read, as in ``a[index]``; the range of memory that it spans counts. Default: all of it.
        """
        if index is None or key not in self.base:  # asking the transaction would be a read of all of it
            self._depends(key)
            return
        info = self.base._info(key)
        if info["kind"] != "array":
            raise TypeError(f"{key!r} is no array: depends() takes an index for arrays only")
        lo, hi = element_range(info["shape"], info["order"], index)
        if lo < hi:
            self._depends(key, lo, hi)

    def savepoint(self) -> Savepoint:
        """A point to go back to; they nest, and cover the bytes of arrays."""
        return Savepoint(self, self._savepoint())

    # --- the end

    def commit(self, message: str | None = None) -> int:
        """Commit, and return the number of the version made (that of the base if nothing changed).

        Raises
        ------
        ConflictError
            Somebody else committed a change of the same thing first; nothing was changed. Run it again from a new
            ``begin()``.
        StoreFullError
            No room; nothing was changed.
        LockedError
            Another process holds the commit lock for longer than the store's time-out; the transaction is still open.
        """
        try:
            return self._commit(self._message if message is None else message)
        finally:
            if self._over:
                self._base_snapshot = None  # what it pins is no longer ours

    def abort(self) -> None:
        """Forget all changes. Views handed out become private memory. Idempotent."""
        self._abort()
        self._base_snapshot = None

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, exc_type: Any, exc: Any, tb: Any) -> None:
        if exc_type is None:
            if not self._over:  # neither committed nor aborted by hand
                self.commit()
        else:
            try:
                self.abort()
            except ForkedError:  # a forked child leaves the block, by sys.exit() say: the transaction is its parent's
                pass

    def __reduce__(self) -> Any:
        raise TypeError("a Transaction belongs to its process and cannot be pickled: send the store and begin() there")

    def __repr__(self) -> str:
        return (
            "<pagestone.Transaction, over>"
            if self._over
            else f"<pagestone.Transaction on version {self._base_version}>"
        )


def element_range(shape: tuple[int, ...], order: str, index: Any) -> tuple[int, int]:
    """Flat element range [lo, hi), in memory order, that ``a[index]`` spans; all of it for fancy indexing."""
    n = 1
    strides = [0] * len(shape)
    for i in range(len(shape)) if order == "F" else reversed(range(len(shape))):
        strides[i] = n
        n *= shape[i]
    if n == 0:
        return 0, 0
    parts = [p for p in (index if isinstance(index, tuple) else (index,)) if p is not None]
    if not all(p is ... or isinstance(p, (slice, int, np.integer)) for p in parts) or any(
        isinstance(p, bool) for p in parts
    ):
        return 0, n
    dots = [i for i, p in enumerate(parts) if p is ...]
    at = dots[0] if dots else len(parts)
    head, tail = parts[:at], parts[at + 1 :]
    if len(dots) > 1 or len(head) + len(tail) > len(shape):
        raise IndexError(f"index {index!r} does not fit an array of shape {shape}")
    parts = [*head, *[slice(None)] * (len(shape) - len(head) - len(tail)), *tail]
    lo = hi = 0
    for part, extent, stride in zip(parts, shape, strides):
        if isinstance(part, slice):
            where = range(extent)[part]
            if not where:
                return 0, 0
            first, last = min(where[0], where[-1]), max(where[0], where[-1])
        else:
            first = last = range(extent)[part]  # IndexError
        lo += first * stride
        hi += last * stride
    return lo, hi + 1
