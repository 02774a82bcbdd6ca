"""Cold data: what part of an array an index names, in bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

BLOCK = 128 * 1024  # what is compressed as one
_MOST_RANGES = 10_000


def byte_ranges(info: dict[str, Any], index: Any) -> list[tuple[int, int]]:
    """The bytes of an object, in memory order, that a basic index of the array reads; ``...``: all.

    Parts that lie less than a block apart are one range.
    """
    if index is Ellipsis or (index is None and info["kind"] != "array"):
        return [(0, info["nbytes"])]
    if info["kind"] != "array":
        raise TypeError(f"only arrays have an index, and this is {info['kind']}")
    whole = _without_data(info["shape"], info["dtype"], info["order"])
    part = whole[_checked(index)]
    if part.size == 0:
        return []
    start = part.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    return _split(start, part.shape, part.strides, part.itemsize)


def _checked(index: Any) -> Any:
    """An index that makes a view, whatever it is: nothing may be read."""
    if isinstance(index, str):
        return index
    parts = index if isinstance(index, tuple) else (index,)
    for p in parts:
        basic = p is None or p is Ellipsis or isinstance(p, slice)
        if not basic and (isinstance(p, (bool, np.bool_)) or getattr(p, "ndim", 0) != 0 or not hasattr(p, "__index__")):
            raise TypeError(
                f"prefetch() takes ints, slices, ... or the name of a field, not {type(p).__name__}: "
                "give the slice that has what you need"
            )
    return parts if any(p is Ellipsis for p in parts) else (*parts, Ellipsis)


def _without_data(shape: tuple[int, ...], dtype: np.dtype[Any], order: str) -> np.ndarray[Any, Any]:
    """An array of that layout whose elements must not be looked at: to see what an index does."""
    strides = [dtype.itemsize] * len(shape)
    axes = range(len(shape) - 1) if order == "F" else range(len(shape) - 1, 0, -1)
    for i in axes:
        nxt = i + 1 if order == "F" else i - 1
        strides[nxt] = strides[i] * max(shape[i], 1)
    return np.lib.stride_tricks.as_strided(np.empty(1, dtype), shape, strides)


def _split(start: int, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> list[tuple[int, int]]:
    extent = itemsize  # of what lies less than a block apart
    far: list[tuple[int, int]] = []
    for n, stride in sorted(zip(shape, strides), key=lambda a: abs(a[1])):
        if stride < 0:
            start += stride * (n - 1)
        if far or (abs(stride) - extent >= BLOCK and n > 1):
            far.append((n, abs(stride)))
        else:
            extent += abs(stride) * (n - 1)
    starts = [start]
    for n, stride in reversed(far):
        if len(starts) * n > _MOST_RANGES:
            extent += stride * (n - 1)
        else:
            starts = [s + i * stride for s in starts for i in range(n)]
    return [(s, s + extent) for s in starts]
