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
        if not isinstance(obj, np.ndarray) or obj.dtype.hasobject:
            return NotImplemented
        from ._core import Array

        if isinstance(obj, Array):  # by content, never as a handle
            return (
                obj.view(np.ndarray).__reduce_ex__(5) if obj.flags.forc else np.ascontiguousarray(obj).__reduce_ex__(5)
            )
        if type(obj) is not np.ndarray:
            return NotImplemented
        if not obj.flags.forc:  # NumPy would copy it into the stream
            return (
                np.ascontiguousarray(obj).__reduce_ex__(5)
                if obj.dtype.kind not in "mM"
                else self._times(np.ascontiguousarray(obj))
            )
        if obj.dtype.kind in "mM":  # NumPy does not export these out of band
            return self._times(obj)
        return NotImplemented

    @staticmethod
    def _times(obj: np.ndarray[Any, Any]) -> Any:
        return _as_dtype, (obj.view(np.dtype("i8").newbyteorder(obj.dtype.byteorder)), obj.dtype)


def dump(obj: Any) -> tuple[bytes, list[Any]]:
    """(stream, buffers) of `obj`, by pickle protocol 5."""
    buffers: list[Any] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(obj)
    return stream.getvalue(), [b.raw() for b in buffers]


def load(stream: Any, buffers: list[Any]) -> Any:
    """The object of a verified stream and its buffers."""
    return pickle.loads(stream, buffers=buffers)
