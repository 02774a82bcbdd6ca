"""Handles: Arrays, Stores and Snapshots on their way to another process.

An Array's handle names the store, the generation, the object and the view: at most 300 bytes plus the store's path,
whatever the array's size. Loading one maps the same pages. A handle keeps its generation alive for the lease
(600 s), and as long as the sending process holds a view.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core, _dtype
from ._errors import VersionExpiredError

if TYPE_CHECKING:
    from ._store import Store

_KEY_ROOM = 96  # bytes of a key that a handle carries; a longer one is found again by its object id
_DTYPE_ROOM = 24
_FORMAT = 1

_stores: weakref.WeakValueDictionary[tuple[bytes, int, int], Any] = weakref.WeakValueDictionary()
_stores_lock = threading.Lock()
_lease_ns = 600 * 10**9


class lease:
    """Set how long handles keep their version alive: ``ps.lease(3600)``.

    Applies to Arrays and Snapshots pickled from now on by this process. As a context manager it is undone at the end.

    Parameters
    ----------
    seconds : float
        At least 0. The default of a fresh process is 600.

    Examples
    --------
    >>> import pagestone as ps
    >>> with ps.lease(3600):
    ...     pass
    """

    def __init__(self, seconds: float):
        global _lease_ns
        if not seconds >= 0:
            raise ValueError("a lease is a number of seconds, at least 0")
        self._before = _lease_ns
        _lease_ns = min(int(seconds * 1e9), 2**62)

    def __enter__(self) -> lease:
        return self

    def __exit__(self, *exc: object) -> None:
        global _lease_ns
        _lease_ns = self._before


# --- varints ---------------------------------------------------------------------------------------------------------


def _put(out: bytearray, n: int) -> None:
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)


def _put_signed(out: bytearray, n: int) -> None:
    _put(out, n << 1 if n >= 0 else (-n << 1) - 1)


class _Reader:
    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def get(self) -> int:
        n = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            n |= (byte & 0x7F) << shift
            if byte < 0x80:
                return n
            shift += 7

    def get_signed(self) -> int:
        n = self.get()
        return -((n + 1) >> 1) if n & 1 else n >> 1

    def get_bytes(self) -> bytes:
        n = self.get()
        self.at += n
        return self.data[self.at - n : self.at]


# --- stores ----------------------------------------------------------------------------------------------------------


def open_store(handle: bytes, read_only: int, allow_pickle: int) -> Any:
    """The Store that `handle` names: one per process for equal arguments, as long as somebody uses it."""
    key = (handle, read_only, allow_pickle)
    with _stores_lock:
        store = _stores.get(key)
        if store is None or store.closed:
            from ._store import Store

            store = Store._from_handle(handle, read_only, allow_pickle)
            _stores[key] = store
        return store


def reduce_store(store: Store) -> Any:
    return open_store, (store._handle(), int(store.mode == "r"), int(store.allow_pickle))


def reduce_snapshot(snapshot: Any) -> Any:
    snapshot._store._lease(snapshot._gen, _lease_ns)
    return load_snapshot, (reduce_store(snapshot._store)[1], snapshot._gen, snapshot.version)


def load_snapshot(store: tuple[bytes, int, int], gen: int, version: int) -> Any:
    from ._store import Snapshot

    try:
        return Snapshot(open_store(*store), "g", gen)
    except VersionExpiredError:
        raise _expired("snapshot", version) from None


def _expired(what: str, version: int) -> VersionExpiredError:
    return VersionExpiredError(
        f"the {what} handle's version {version} is gone: its lease ran out and nobody holds it; "
        "load handles sooner, or pickle them under a longer ps.lease(seconds)"
    )


# --- arrays ----------------------------------------------------------------------------------------------------------


def reduce_array(array: Any, protocol: int) -> Any:
    """``Array.__reduce_ex__``: a handle for views of store memory, the bytes for anything else."""
    prov = array._prov
    if prov is None:
        return np.asarray(array).view(np.ndarray).__reduce_ex__(protocol)
    store = prov.store
    if store.closed:
        raise ValueError(
            "the store of this Array is closed, so it cannot be passed on as a handle; "
            "reopen the store, or pickle np.asarray(x) to send the bytes"
        )
    store._lease(prov.gen, _lease_ns)
    out = bytearray([_FORMAT])
    for n in (prov.gen, prov.version, prov.id):
        _put(out, n)
    _put(out, array.__array_interface__["data"][0] - prov.addr if array.size else 0)
    key = prov.key.encode()
    _put(out, len(key) > _KEY_ROOM)
    key = key[:_KEY_ROOM]
    _put(out, len(key))
    out += key
    dtype = _dtype.describe(array.dtype)
    if len(dtype) > _DTYPE_ROOM and _stored_dtype(store, prov) == array.dtype:
        dtype = b""
    _put(out, len(dtype))
    out += dtype
    _put(out, array.ndim)
    for n in array.shape:
        _put(out, n)
    order = 1 if array.flags.c_contiguous else 2 if array.flags.f_contiguous else 0
    _put(out, order)
    if not order:
        for n in array.strides:
            _put_signed(out, n)
    return load_array, (*reduce_store(store)[1], bytes(out))


def _stored_dtype(store: Any, prov: Any) -> Any:
    from ._store import Snapshot

    with Snapshot(store, "g", prov.gen) as snapshot:
        return snapshot._info(prov.key)["dtype"]


def load_array(handle: bytes, read_only: int, allow_pickle: int, payload: bytes) -> Any:
    """The Array that a handle describes; the view maps the same pages as the sender's."""
    from ._store import Snapshot

    store = open_store(handle, read_only, allow_pickle)
    r = _Reader(payload)
    if r.get() != _FORMAT:
        raise ValueError("an array handle of another version of pagestone")
    gen, version, object_id, offset, long_key = r.get(), r.get(), r.get(), r.get(), r.get()
    prefix, description, ndim = r.get_bytes(), r.get_bytes(), r.get()
    shape = tuple(r.get() for _ in range(ndim))
    order = r.get()
    try:
        snapshot = Snapshot(store, "g", gen)
    except VersionExpiredError:
        raise _expired("array", version) from None
    with snapshot:
        key = snapshot._find_id(object_id, prefix) if long_key else prefix.decode()
        view, info = snapshot._view(key)
    if info["id"] != object_id:
        raise ValueError(f"the array handle does not fit the object {key!r}")
    dtype = _dtype.from_description(description) if description else info["dtype"]
    if order:
        strides = _dense_strides(shape, dtype.itemsize, "CF"[order - 1])
    else:
        strides = tuple(r.get_signed() for _ in range(ndim))
    return _core._array_from(store, key, view, object_id, version, info["nbytes"], offset, dtype, shape, strides)


def _dense_strides(shape: tuple[int, ...], itemsize: int, order: str) -> tuple[int, ...]:
    strides = [0] * len(shape)
    step = itemsize
    for i in range(len(shape)) if order == "F" else reversed(range(len(shape))):
        strides[i] = step
        step *= max(shape[i], 1)
    return tuple(strides)


# --- unnamed arrays ----------------------------------------------------------------------------------------------------

_unnamed: Any = None
_unnamed_count = 0
_unnamed_lock = threading.Lock()


def share(a: Any) -> Any:
    """An unnamed :class:`Array` with the contents of `a`, in memory that other processes can map.

    It lives while any process uses it: its memory is given back when the last view, in whatever process, is gone (and the
    lease of handles under way has run out). Passing it on by pickle sends a handle.

    Parameters
    ----------
    a : array_like
        Any array without Python objects.

    Returns
    -------
    Array
        Read-only, with the dtype, shape and order of `a`.

    Examples
    --------
    >>> import pickle, numpy as np, pagestone as ps
    >>> x = ps.share(np.arange(1_000_000))
    >>> len(pickle.dumps(x)) < 1000
    True
    """
    global _unnamed, _unnamed_count
    a = np.asarray(a)
    if a.dtype.hasobject:
        raise TypeError(f"dtype {a.dtype} holds Python objects: share() is for plain arrays")
    with _unnamed_lock:
        if _unnamed is None:
            from ._open import open as open_

            _unnamed = open_(None, history=0)
        store = _unnamed
        _unnamed_count += 1
        key = f"{id(store):x}-{_unnamed_count}"
    import os

    key = f"{os.getpid()}-{key}"
    store[key] = a
    shared = store[key]
    del store[key]
    return shared
