"""Pickling with every array buffer out of band, so that what is loaded are views of the store."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np


def _as_dtype(array: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return array.view(dtype)


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, np.ndarray) or obj.dtype.hasobject or not _is_plain(obj):
            return NotImplemented
        if not obj.flags.forc:  # NumPy would copy it into the stream
            obj = np.ascontiguousarray(obj)
        elif type(obj) is not np.ndarray:  # an Array: by content, never as a handle
            obj = obj.view(np.ndarray)
        if obj.dtype.kind in "mM":  # NumPy does not export these out of band
            return _as_dtype, (obj.view(np.dtype("i8").newbyteorder(obj.dtype.byteorder)), obj.dtype)
        return obj.__reduce_ex__(5)


def _is_plain(obj: np.ndarray[Any, Any]) -> bool:
    from ._core import Array

    return type(obj) is np.ndarray or isinstance(obj, (Array, np.memmap))


def dump(obj: Any) -> tuple[bytes, list[Any]]:
    """(stream, buffers) of `obj`, by pickle protocol 5."""
    buffers: list[Any] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(obj)
    return stream.getvalue(), [b.raw() for b in buffers]


def load(stream: Any, buffers: list[Any]) -> Any:
    """The object of a verified stream and its buffers."""
    return pickle.loads(stream, buffers=buffers)
