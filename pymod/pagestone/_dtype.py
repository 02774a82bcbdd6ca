"""Dtypes as bytes, readable by other languages: what the catalog stores for an array.

Simple dtypes are their NumPy string (``<f8``, ``|S10``, ``<M8[ns]``). Structured ones are a Python literal with
names, formats, offsets and item size, nested; reading it evaluates nothing but literals. Metadata is not kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_EXTENSION_MODULES = ("ml_dtypes",)  # dtypes that NumPy's strings cannot name; imported when met


def _tree(dtype: np.dtype[Any]) -> Any:
    if dtype.hasobject:
        raise TypeError(
            f"dtype {dtype} holds Python objects: arrays in a store hold plain bytes; "
            "store the object itself (s[key] = obj pickles it) or convert with astype()"
        )
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return (_tree(base), tuple(int(n) for n in shape))
    if dtype.names is None:
        text = dtype.str
        if np.dtype(text) == dtype:
            return text
        module = dtype.type.__module__.split(".")[0]
        if module in _EXTENSION_MODULES:
            return f"!{module}:{dtype.name}"
        raise TypeError(
            f"dtype {dtype!r} has no description that NumPy alone can read back; view it as void or integers"
        )
    assert dtype.fields is not None
    fields = [dtype.fields[name] for name in dtype.names]
    tree: dict[str, Any] = {
        "names": list(dtype.names),
        "formats": [_tree(f[0]) for f in fields],
        "offsets": [int(f[1]) for f in fields],
        "itemsize": int(dtype.itemsize),
    }
    if any(len(f) > 2 for f in fields):
        tree["titles"] = [f[2] if len(f) > 2 else None for f in fields]
    if dtype.isalignedstruct:
        tree["aligned"] = True
    return tree


def _build(tree: Any) -> np.dtype[Any]:
    if isinstance(tree, str):
        if tree.startswith("!"):
            module, _, name = tree[1:].partition(":")
            if module not in _EXTENSION_MODULES:
                raise ValueError(f"unknown dtype module {module!r}")
            extended: np.dtype[Any] = np.dtype(getattr(__import__(module), name))
            return extended
        return np.dtype(tree)
    if isinstance(tree, tuple):
        base, shape = tree
        return np.dtype((_build(base), shape))
    spec = {k: tree[k] for k in ("names", "offsets", "itemsize", "titles") if k in tree}
    spec["formats"] = [_build(f) for f in tree["formats"]]
    return np.dtype(spec, align=bool(tree.get("aligned", False)))  # type: ignore[call-overload,no-any-return]


def describe(dtype: np.dtype[Any]) -> bytes:
    """The bytes that describe `dtype`; TypeError if it holds objects."""
    tree = _tree(dtype)
    return (tree if isinstance(tree, str) else repr(tree)).encode("utf-8", "surrogatepass")


def from_description(description: bytes) -> np.dtype[Any]:
    """The dtype that `description` stands for; CorruptError if it stands for none."""
    import ast

    from ._errors import CorruptError

    try:
        text = description.decode("utf-8", "surrogatepass")
        return _build(ast.literal_eval(text) if text[:1] in "{(" else text)
    except ImportError as e:
        raise TypeError(f"the array's dtype needs a package that is not installed: {e}") from e
    except Exception as e:
        raise CorruptError(f"malformed dtype description {description[:80]!r}: run check()") from e
