"""Values as files and text: NPY, CSV, and JSON that keeps types.

JSON form of a plain value: null, booleans, integers, finite floats, strings, lists and objects stand for themselves (``1`` is an int, ``1.0`` a
float). The rest is an object with one key that begins with ``$``:

    {"$float": "nan"}                  nan, inf, -inf
    {"$complex": [1.0, 2.0]}           parts as above
    {"$bytes": "AAEC"}                 base64
    {"$int": "-0x1f…"}                 an integer of more than 4,096 bits
    {"$numpy": ["<f4", "AACAPw=="]}    a NumPy scalar: dtype description, base64 of its bytes
    {"$dict": [["$x", 1], …]}          a dict in which a key begins with ``$``

Nothing here ever unpickles.
"""

from __future__ import annotations

import ast
import base64
import csv
import math
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from . import _dtype
from ._cli_out import Fail

CHUNK = 4 << 20  # bytes moved at a time
_NPY_HEADER_LIMIT = 1 << 20


class Malformed(ValueError):
    """A file is not what it should be; the text goes behind its name."""


# --- JSON ------------------------------------------------------------------------------------------------------------


def _json_float(x: float) -> Any:
    return x if math.isfinite(x) else {"$float": repr(x)}


def to_json(value: Any) -> Any:
    """A plain value as what ``json.dump`` writes and :func:`from_json` reads back with its types."""
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if value.bit_length() <= 4096 else {"$int": hex(value)}
    if kind is float:
        return _json_float(value)
    if kind is complex:
        return {"$complex": [_json_float(value.real), _json_float(value.imag)]}
    if kind is bytes:
        return {"$bytes": base64.b64encode(value).decode()}
    if kind is list:
        return [to_json(v) for v in value]
    if kind is dict:
        if any(k.startswith("$") for k in value):
            return {"$dict": [[k, to_json(v)] for k, v in value.items()]}
        return {k: to_json(v) for k, v in value.items()}
    if isinstance(value, np.generic):
        description = _dtype.describe(value.dtype).decode("utf-8", "surrogatepass")
        return {"$numpy": [description, base64.b64encode(value.tobytes()).decode()]}
    raise TypeError(f"{kind.__name__} is no plain value")


def _untag(tag: str, v: Any) -> Any:
    if tag == "$float":
        return float(v)
    if tag == "$complex":
        real, imag = (from_json(x) for x in v)
        return complex(float(real), float(imag))
    if tag == "$bytes":
        return base64.b64decode(v, validate=True)
    if tag == "$int":
        return int(v, 16)
    if tag == "$numpy":
        dtype = _dtype.from_description(str(v[0]).encode("utf-8", "surrogatepass"))
        data = base64.b64decode(v[1], validate=True)
        if dtype.hasobject or len(data) != dtype.itemsize:
            raise ValueError("wrong number of bytes")
        return np.zeros((), dtype)[()] if dtype.itemsize == 0 else np.frombuffer(data, dtype)[0]
    if tag == "$dict":
        return {str(k): from_json(x) for k, x in v}
    raise ValueError("unknown tag")


def from_json(value: Any) -> Any:
    """The plain value that :func:`to_json` made `value` of; Malformed names what is wrong."""
    if isinstance(value, list):
        return [from_json(v) for v in value]
    if not isinstance(value, dict):
        return value
    tags = [k for k in value if k.startswith("$")]
    if not tags:
        return {k: from_json(v) for k, v in value.items()}
    if len(value) != 1:
        raise Malformed(f"it has a malformed value: {tags[0]!r} next to other keys")
    try:
        return _untag(tags[0], value[tags[0]])
    except Exception as e:
        raise Malformed(f"it has a malformed value for {tags[0]!r}: {e}") from e


def elements(a: np.ndarray[Any, Any]) -> Any:
    """An array as nested lists of JSON values: structured elements as lists, times as ISO strings."""
    if a.dtype.kind in "mM":
        a = a.astype(str)

    def one(v: Any) -> Any:
        if isinstance(v, (list, tuple)):
            return [one(x) for x in v]
        if isinstance(v, np.ndarray):
            return elements(v)
        try:
            return to_json(v)
        except TypeError:
            return str(v)

    return one(a.tolist())


# --- NPY -------------------------------------------------------------------------------------------------------------


def npy_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """`dtype`, or opaque bytes of its size where the NPY format cannot describe it."""
    import warnings

    fmt = np.lib.format
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if fmt.descr_to_dtype(fmt.dtype_to_descr(dtype)) == dtype:
                return dtype
    except Exception:
        pass
    return np.dtype((np.void, dtype.itemsize))


def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any], order: str) -> bytes:
    """The bytes before the data, a multiple of 64; `dtype` from :func:`npy_dtype`."""
    descr = np.lib.format.dtype_to_descr(dtype)
    text = repr({"descr": descr, "fortran_order": order == "F", "shape": tuple(shape)})
    try:
        body, version = text.encode("latin1"), 1
    except UnicodeEncodeError:
        body, version = text.encode("utf-8"), 3
    if len(body) > 65000:
        version = max(version, 2)
    prefix = 8 + (2 if version == 1 else 4)
    body += b" " * (-(prefix + len(body) + 1) % 64) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(body).to_bytes(prefix - 8, "little") + body


def read_exactly(f: IO[bytes], n: int) -> bytes:
    data = b""
    while len(data) < n:
        piece = f.read(n - len(data))
        if not piece:
            raise Malformed("it ends too early")
        data += piece
    return data


def read_npy_header(f: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], str, int]:
    """(shape, dtype, order, length of the header) of an NPY stream; evaluates nothing but literals."""
    start = read_exactly(f, 8)
    if start[:6] != b"\x93NUMPY" or start[6] not in (1, 2, 3):
        raise Malformed("it is no NPY file of version 1 to 3")
    width = 2 if start[6] == 1 else 4
    n = int.from_bytes(read_exactly(f, width), "little")
    if n > _NPY_HEADER_LIMIT:
        raise Malformed(f"its header claims {n} bytes")
    try:
        head = ast.literal_eval(read_exactly(f, n).decode("utf-8" if start[6] == 3 else "latin1").strip())
        shape, fortran = head["shape"], head["fortran_order"]
        if (
            not (isinstance(shape, tuple) and all(type(k) is int and k >= 0 for k in shape))
            or type(fortran) is not bool
        ):
            raise ValueError("shape or order")
        dtype = np.lib.format.descr_to_dtype(head["descr"])
    except ValueError as e:
        raise Malformed(f"its header is malformed ({e})") from None
    except Exception as e:
        raise Malformed(f"its header is malformed ({type(e).__name__})") from None
    if dtype.hasobject:
        raise Malformed("it holds pickled Python objects: load it in Python, if you trust it, and store the objects")
    while dtype.subdtype is not None:
        dtype, more = dtype.subdtype
        shape += more
    return shape, dtype, "F" if fortran else "C", 8 + width + n


def memory_of(a: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of a dense array in memory order."""
    if a.nbytes == 0:
        return memoryview(b"")
    flat = a.reshape(-1) if a.flags.c_contiguous else a.T.reshape(-1)
    return memoryview(flat.view(np.uint8))  # type: ignore[arg-type]


# --- CSV -------------------------------------------------------------------------------------------------------------


def _cell(v: Any) -> Any:
    if isinstance(v, bytes):
        return v.decode("utf-8", "backslashreplace")
    return repr(v) if isinstance(v, float) else v


def csv_rows(a: np.ndarray[Any, Any], key: str) -> Iterator[list[Any]]:
    """Rows of at most two dimensions; of a structured array first the names. A chunk of rows is in memory at a time."""
    if a.ndim > 2 or (a.ndim == 2 and a.dtype.names):
        raise Fail(
            f"{key} has {a.ndim} dimensions: CSV has rows and columns; use --format npy, or pick a slice in Python"
        )
    if a.dtype.names:
        for name in a.dtype.names:
            field = a.dtype[name]
            if field.names or field.subdtype:
                raise Fail(f"{key} has the nested field {name!r}, which CSV cannot show: use --format npy")
        yield list(a.dtype.names)
    rows = np.atleast_1d(a)
    step = max(1, (1 << 20) // max(1, rows[:1].nbytes))
    for lo in range(0, len(rows), step):
        part = rows[lo : lo + step]
        if a.dtype.names:
            columns = [_column(part[n]) for n in a.dtype.names]
            yield from (list(r) for r in zip(*columns))
        else:
            values = _column(part)
            yield from ([v] if part.ndim == 1 else v for v in values)


def _column(a: np.ndarray[Any, Any]) -> list[Any]:
    if a.dtype.kind in "mMV":
        a = a.astype(str)
    values = a.tolist()
    return [[_cell(x) for x in v] if isinstance(v, list) else _cell(v) for v in values]


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _typed(column: list[str]) -> np.ndarray[Any, Any]:
    """A column as int64, float64 (empty cells are nan), bool (True and False) or text."""
    text = np.array([c.strip() for c in column])
    filled = [c for c in text.tolist() if c]
    if filled and all(c in ("True", "False") for c in filled) and len(filled) == len(column):
        return np.array([c == "True" for c in filled])
    if not filled or not all(_number(c) for c in filled):
        return np.array(column) if column else np.array([], "f8")
    if len(filled) == len(column):
        try:
            return text.astype(np.int64)
        except (ValueError, OverflowError):
            pass
    return np.where(text == "", "nan", text).astype(np.float64)


def read_csv(lines: Iterator[str], header: str, dtype: str | None, name: str) -> np.ndarray[Any, Any]:
    """An array of a CSV table.

    Columns of one numeric type give a plain array (one column: 1-d), a header or columns of different types a structured one. `header` is "yes",
    "no" or "auto": a first row without any number, True, False or empty cell is one.
    """
    rows = [r for r in csv.reader(lines) if r]
    width = len(rows[0]) if rows else 0
    bad = next((i for i, r in enumerate(rows) if len(r) != width), None)
    if bad is not None:
        raise Fail(f"{name}: row {bad + 1} has {len(rows[bad])} cells, the first has {width}: make them equal")
    if not rows:
        raise Fail(f"{name}: there are no rows")
    first = [c.strip() for c in rows[0]]
    named = header == "yes" or (
        header == "auto" and all(c and c not in ("True", "False") and not _number(c) for c in first)
    )
    body = rows[1:] if named else rows
    columns = [_typed([r[i] for r in body]) for i in range(width)]
    if dtype is not None:
        try:
            columns = [np.array([r[i].strip() for r in body]).astype(dtype) for i in range(width)]
        except (ValueError, TypeError) as e:
            raise Fail(f"{name}: not all cells are {dtype}: {e}") from None
    numeric = all(c.dtype.kind in "if" for c in columns) or all(c.dtype == columns[0].dtype for c in columns)
    if not named and numeric and (columns[0].dtype.kind != "U" or width == 1):
        return columns[0] if width == 1 else np.stack(columns, axis=1)
    names = first if named else [f"f{i}" for i in range(width)]
    if len(set(names)) != width:
        raise Fail(f"{name}: two columns have the same name: rename one, or --header no")
    table = np.empty(len(body), [(n, c.dtype) for n, c in zip(names, columns)])
    for n, c in zip(names, columns):
        table[n] = c
    return table
