"""Handles: Arrays, Stores and Snapshots on their way to another process.

An Array's handle names the store, the generation, the object and the view: at most 300 bytes plus the store's path,
whatever the array's size. Loading one maps the same pages. A handle keeps its generation alive for the lease
(600 s), and as long as the sending process holds a view.
"""

from __future__ import annotations

import os
import weakref
from _thread import allocate_lock
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core, _dtype
from ._errors import StaleStoreError, VersionExpiredError

if TYPE_CHECKING:
    from ._store import Snapshot, Store

_ROOM = 298  # bytes of a whole pickle at protocol 4 or 5, without the store's path
_AROUND = 56  # of them around the two byte strings of an array's handle
_READ_ONLY, _ALLOW_PICKLE, _LONG_KEY, _UNNAMED, _MOVED = 1, 2, 4, 8, 16

_stores: weakref.WeakValueDictionary[tuple[bytes, int], Store] = weakref.WeakValueDictionary()
_stores_lock = allocate_lock()
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
        _lease_ns = int(min(seconds * 1e9, 2**62))

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
    def __init__(self, data: bytes, at: int):
        self.data, self.at = data, at

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


def _flags(store: Store) -> int:
    return _READ_ONLY * (store.mode == "r") | _ALLOW_PICKLE * store.allow_pickle


def _store_of(handle: bytes, uuid: bytes, flags: int) -> Store:
    """The Store behind arrays that came by handle: one per process, page file and rights, as long as somebody uses it."""
    key = (uuid, flags & (_READ_ONLY | _ALLOW_PICKLE))
    with _stores_lock:
        store = _stores.get(key)
        if store is None or store.closed:
            store = _stores[key] = load_store(handle, uuid, flags)
        return store


def load_store(handle: bytes, uuid: bytes, flags: int, timeout_ns: int = 30 * 10**9) -> Store:
    """A Store of its own over the store that `handle` names."""
    from ._store import Store

    store = Store._from_handle(handle, flags & _READ_ONLY, flags & _ALLOW_PICKLE, timeout_ns)
    if store._info()["uuid"][: len(uuid)] != uuid:
        where = store.path
        store.close()
        raise StaleStoreError(f"the store at {where!r} was replaced since this handle was made: open the path again")
    return store


def reduce_store(store: Store) -> Any:
    return load_store, (store._handle(), store._info()["uuid"], _flags(store), store._timeout)


def _lease(store: Store, gen: int) -> None:
    from ._errors import ReadOnlyError

    try:
        store._lease(gen, _lease_ns)
    except ReadOnlyError:
        pass  # without write permission: our own pin is what keeps it


def reduce_snapshot(snapshot: Snapshot) -> Any:
    store = snapshot._store
    _lease(store, snapshot._gen)
    return load_snapshot, (*reduce_store(store)[1], snapshot._gen, snapshot.version)


def load_snapshot(handle: bytes, uuid: bytes, flags: int, timeout_ns: int, gen: int, version: int) -> Snapshot:
    return _open_gen(_store_of(handle, uuid, flags), gen, "snapshot", version)


def _open_gen(store: Store, gen: int, what: str, version: int) -> Snapshot:
    from ._store import Snapshot

    try:
        snapshot = Snapshot(store, "g", gen)
        if snapshot.version == version:
            return snapshot
        snapshot.close()  # generations, unlike versions, may be counted again after a power loss
        raise VersionExpiredError
    except VersionExpiredError:
        raise VersionExpiredError(
            f"the {what} handle's version {version} is gone: its lease ran out and nobody holds it; "
            "load handles sooner, or pickle them under a longer ps.lease(seconds)"
        ) from None


# --- arrays ----------------------------------------------------------------------------------------------------------


def reduce_array(array: Any, protocol: int) -> Any:
    """``Array.__reduce_ex__``: a handle for views of store memory, the bytes for anything else."""
    prov = array._prov
    if prov is None:
        return array.view(np.ndarray).__reduce_ex__(protocol)
    store = prov.store
    if store.closed:
        raise ValueError(
            "the store of this Array is closed, so it cannot be passed on as a handle; "
            "reopen the store, or pickle np.asarray(x) to send the bytes"
        )
    gen, at = prov.lease(_lease_ns)  # the view's pin may have moved to a newer version in which the object is unchanged
    handle = store._handle()
    dtype = _dtype.describe(array.dtype)
    if dtype == _dtype.describe(prov.dtype):
        dtype = b""
    view = bytearray()
    _put(view, len(dtype))
    view += dtype
    order = 1 if array.flags.c_contiguous else 2 if array.flags.f_contiguous else 0
    _put(view, array.ndim * 3 + order)
    for n in array.shape:
        _put(view, n)
    if not order:
        for n in array.strides:
            _put_signed(view, n)
    key = prov.key.encode("utf-8", "surrogateescape")
    out = bytearray([0])
    out += store._info()["uuid"][:8]
    offset = array.__array_interface__["data"][0] - prov.addr if array.size else 0
    moved = at - prov.version
    for n in (gen, at, prov.id, offset, moved) if moved else (gen, at, prov.id, offset):
        _put(out, n)
    room = _ROOM - _AROUND - len(out) - len(view) + len(dtype) - 2 - (0 if store.path else len(handle))
    flags = _flags(store) | _UNNAMED * prov.unnamed | _MOVED * bool(moved)
    if len(key) > room:  # found again by its object id
        flags |= _LONG_KEY
        key = key[: max(room, 0)]
    out[0] = flags
    _put(out, len(key))
    out += key
    return _load_array, (handle, bytes(out + view))


def _load_array(handle: bytes, payload: bytes) -> _core.Array:
    """The Array that a handle describes; the view maps the same pages as the sender's."""
    flags, uuid = payload[0], payload[1:9]
    r = _Reader(payload, 9)
    gen, version, object_id, offset = r.get(), r.get(), r.get(), r.get()
    shown = version - r.get() if flags & _MOVED else version
    name, description = r.get_bytes(), r.get_bytes()
    ndim, order = divmod(r.get(), 3)
    shape = tuple(r.get() for _ in range(ndim))
    store = _store_of(handle, uuid, flags)
    with _open_gen(store, gen, "array", version) as snapshot:
        key = snapshot._find_id(object_id, name) if flags & _LONG_KEY else name.decode("utf-8", "surrogateescape")
        view, info = snapshot._view(key)
        if info["id"] != object_id:
            raise ValueError(f"the array handle does not fit the object {key!r}")
        stored = info["dtype"]
        dtype = _dtype.from_description(description) if description else stored
        if order:
            strides = _dense_strides(shape, dtype.itemsize, "CF"[order - 1])
        else:
            strides = tuple(r.get_signed() for _ in range(ndim))
        unnamed = bool(flags & _UNNAMED)
        return _core._array_from(
            snapshot, key, unnamed, stored, view, object_id, info["nbytes"], offset, dtype, shape, strides, shown
        )


_load_array.__module__ = "pagestone"  # where pickles name it, in fewer bytes


def _dense_strides(shape: tuple[int, ...], itemsize: int, order: str) -> tuple[int, ...]:
    strides = [0] * len(shape)
    step = itemsize
    for i in range(len(shape)) if order == "F" else reversed(range(len(shape))):
        strides[i] = step
        step *= max(shape[i], 1)
    return tuple(strides)


# --- unnamed arrays --------------------------------------------------------------------------------------------------

_unnamed: Any = None
_unnamed_count = 0
_unnamed_lock = allocate_lock()


def share(a: Any) -> _core.Array:
    """An unnamed :class:`Array` with the contents of `a`, in memory that other processes can map.

    It lives while any process uses it: its memory is used again once the last view, in whatever process, is gone (and the
    lease of handles under way has run out). Passing it on by pickle sends a handle.

    Parameters
    ----------
    a : array_like
        Any array without Python objects.

    Returns
    -------
    Array
        Read-only, with the dtype, shape and order of `a`; its ``key`` is None.

    Examples
    --------
    >>> import pickle, numpy as np, pagestone as ps
    >>> x = ps.share(np.arange(1_000_000))
    >>> len(pickle.dumps(x)) <= 300
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
        key = f"{os.getpid():x}-{_unnamed_count:x}"
    store[key] = a
    with store.snapshot() as snapshot:
        view, info = snapshot._view(key)
        shared = _core._array_from(
            snapshot, key, True, info["dtype"], view, info["id"], info["nbytes"], 0, info["dtype"], info["shape"],
            _dense_strides(info["shape"], info["dtype"].itemsize, info["order"]),
        )  # fmt: skip
    del store[key]
    weakref.finalize(view, _collect, store).atexit = False  # of the memory: slices outlive the array
    return shared


def _collect(store: Store) -> None:
    """Give the memory of unnamed arrays back that nobody shows any more."""
    from ._errors import Error

    try:
        store._gc()
    except (Error, OSError):
        pass  # the next share() or gc does it


def _after_fork() -> None:
    global _stores_lock, _unnamed_lock
    _stores_lock, _unnamed_lock = allocate_lock(), allocate_lock()


os.register_at_fork(after_in_child=_after_fork)
