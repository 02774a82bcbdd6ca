"""What a value becomes in the store: bytes, plain values with their exact types, pickles with their buffers in place."""

from __future__ import annotations

import array
import collections
import ctypes
import dataclasses
import enum
import math
import mmap
import pickle
import struct

import hypothesis.strategies as st
import numpy as np
import pagestone as ps
import pytest
from hypothesis import HealthCheck, given, settings
from pagestone._core import _plain_decode, _plain_encode

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def kind(s, key):
    return s.snapshot()._info(key)["kind"]


def same(a, b):
    """Equal, of the same types all the way down, NaNs by their bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.generic):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes() and (not isinstance(a, (str, bytes)) or a == b)
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(v, b[k]) for k, v in a.items())
    return a == b


# --- plain -------------------------------------------------------------------------------------------------------------------

NAN = struct.unpack("d", b"\x01\x02\x03\x04\x05\x06\xf8\xff")[0]
STRUCTURED = np.array(
    [(1, 2.5, b"ab", (3, "é"))], [("a", ">i2"), ("b", "f8"), ("c", "S4"), ("d", [("e", "i4"), ("f", "U2")])]
)[0]
PLAIN = [
    None, True, False, 0, 1, -1, 2**62, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**1000, -(10**1000), 0.0, -0.0, 1.5, math.inf, NAN,
    1j, complex(-0.0, NAN), "", "x", "é\U0001f600", "a\0b", "\ud800", "a" * 100_000, [], {}, [[]], {"": {}}, [None, [True, {"a": [1.0]}]],
    {"z": 1, "a": 2, "\udcff": [3]}, list(range(10_000)), [b"x", b""],
    np.bool_(True), np.int8(-3), np.uint64(2**64 - 1), np.longlong(5), np.ulonglong(6), np.intp(7), np.float16(1.5), np.float32(1e-3),
    np.float64(NAN), np.longdouble(1) / 3, np.complex64(1j), np.clongdouble(2), np.str_("é\0"), np.str_(""), np.bytes_(b"a\0b\0"), np.bytes_(b""),
    np.datetime64("2026-11-20T10:00:00.123"), np.datetime64("NaT"), np.timedelta64(5, "us"), np.timedelta64(3), np.datetime64(1, "25s"),
    np.void(b"abc"), STRUCTURED, [np.float32(1), {"k": np.int16(2)}], np.str_("\udc80"),
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=lambda v: f"{type(v).__name__}-{str(v)[:12]!a}")
def test_plain_values_keep_their_types_and_need_no_pickle(shm_path, value):
    with ps.open(shm_path, allow_pickle=False) as s:
        s["v"] = value
        assert kind(s, "v") == "plain"
        assert same(s["v"], value)
        with s.begin() as t:
            assert same(t["v"], value)
            t["w"] = value
            assert same(t["w"], value)


class Color(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


class MyFloat(float):
    pass


Point = collections.namedtuple("Point", "x y")
deep: list = []
for _ in range(200):
    deep = [deep]


@pytest.mark.parametrize(
    "value",
    [Color.RED, Text("x"), MyFloat(1), Point(1, 2), (1, 2), {1, 2}, collections.OrderedDict(a=1), collections.defaultdict(int, a=1),
     {1: 2}, {"a": (1,)}, [1, {2}], {Text("k"): 1}, deep, frozenset([1]), range(3), slice(1, 2), Ellipsis, int, 1 .__add__,
     np.dtype("f8"), np.float64],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_everything_else_goes_to_pickle_with_its_type(store, value):
    store["v"] = value
    assert kind(store, "v") == "pickle"
    assert type(store["v"]) is type(value)
    assert store["v"] == value or value is deep


def test_self_reference_and_sharing(store):
    a: list = [1]
    a.append(a)
    store["a"] = a
    b = store["a"]
    assert b[1] is b
    d: dict = {}
    d["me"] = [d, d]
    store["d"] = d
    assert store["d"]["me"][1]["me"][0]["me"] is not None
    row = [0, 0]
    store["grid"] = [row, row]
    assert store["grid"] == [[0, 0], [0, 0]]
    assert kind(store, "grid") == "plain"


def test_a_fresh_object_each_time(store):
    store["v"] = [1]
    store["v"].append(2)
    assert store["v"] == [1]
    with store.begin() as t:
        t["v"].append(2)
        with t.edit("v") as v:
            v.append(3)
    assert store["v"] == [1, 3]


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text(st.characters()) | st.binary()
    | st.integers(-100, 100).map(np.int8) | st.floats(width=32).map(np.float32) | st.text(max_size=5).map(np.str_)
)  # fmt: skip
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=5), v, max_size=4), max_leaves=20
)


@QUICK
@given(values)
def test_encoding_and_decoding_are_inverse(value):
    b = _plain_encode(value)
    assert b is not None
    assert same(_plain_decode(b), value)


@QUICK
@given(st.binary(max_size=200))
def test_decoding_any_bytes_gives_a_value_or_corrupt_error(data):
    try:
        _plain_decode(data)
    except ps.CorruptError:
        pass


@settings(QUICK, max_examples=400)
@given(
    values, st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 3)
)
def test_decoding_damaged_encodings_gives_a_value_or_corrupt_error(value, edits, cut):
    b = bytearray(_plain_encode([value, np.float64(1), STRUCTURED]))
    for at, byte in edits:
        b[at % len(b)] = byte
    if cut:
        del b[-cut:]
    try:
        _plain_decode(bytes(b))
    except (ps.CorruptError, MemoryError):
        pass


@pytest.mark.parametrize(
    "desc",
    ["|O", "O", "{'names':['a'],'formats':['O'],'offsets':[0],'itemsize':8}", "(" * 5000, "-" * 60000, "{" * 500, "('<i4',(3,))", "nonsense",
     "{'names':['a'],'formats':['<i4'],'offsets':[100],'itemsize':4}", "{}", "('<i4',(2,2,2))", "!os:system", "__import__('os')", "", "S-1", "U999999999999", "<f9"],
)  # fmt: skip
def test_a_stored_dtype_that_is_none_is_damage(desc):
    d = desc.encode()
    data = b"n" + struct.pack("<H", len(d) & 0xFFFF) + d + struct.pack("<I", 8) + b"\0" * 8
    with pytest.raises(ps.CorruptError):
        _plain_decode(data)


# --- bytes ---------------------------------------------------------------------------------------------------------------------


def test_bytes_likes_become_bytes(store):
    m = mmap.mmap(-1, 4096)
    m[:3] = b"abc"
    grid = np.arange(24, dtype="u1").reshape(4, 6)
    for value, want in {
        "bytes": (b"abc", b"abc"), "empty": (b"", b""), "bytearray": (bytearray(b"abc"), b"abc"), "view": (memoryview(b"abc")[1:], b"bc"),
        "strided": (memoryview(b"abcdef")[::2], b"ace"), "array": (array.array("i", [1, 2]), struct.pack("ii", 1, 2)), "mmap": (m, bytes(m)),
        "ctypes": ((ctypes.c_char * 3)(b"x"), b"x\0\0"), "2d": (memoryview(grid), grid.tobytes()), "T": (memoryview(grid.T), grid.T.tobytes()),
        "picklebuffer": (pickle.PickleBuffer(b"abc"), b"abc"), "large": (b"x" * 3_000_000, b"x" * 3_000_000),
    }.values():  # fmt: skip
        store["b"] = value
        assert type(store["b"]) is bytes
        assert store["b"] == want
        assert kind(store, "b") == "bytes"


# --- pickles --------------------------------------------------------------------------------------------------------------------


def address(a):
    return a.__array_interface__["data"][0]


def window(s, key):
    view, info = s.snapshot()._view(key)
    lo = np.frombuffer(view, "u1").__array_interface__["data"][0]
    return lo, lo + info["nbytes"]


def assert_in_place(s, key, *arrays):
    lo, hi = window(s, key)
    for a in arrays:
        assert isinstance(a, np.ndarray)
        assert lo <= address(a) < hi, "a copy, not a view of the store"
        assert not a.flags.writeable
        assert address(a) % 64 == 0 or a.base is not None
        with pytest.raises(ValueError):
            a.flat[0] = 1


@dataclasses.dataclass
class Model:
    name: str
    weights: np.ndarray
    layers: list


def test_arrays_inside_of_objects_are_views_of_the_store(store):
    big = np.arange(100_000.0)
    layers = [
        big[:5000].astype("f4"),
        np.asfortranarray(big[:6000].reshape(60, 100)),
        big[:1000].view("M8[s]"),
        big[:5000].view("m8[ns]").astype(">m8[ns]"),
    ]
    store["m"] = Model("net", big, [*layers, {"deep": (big[::2], big[:6000].reshape(60, 100).T)}])
    m = store["m"]
    assert type(m) is Model and m.name == "net"
    flat = [m.weights, *m.layers[:4], *m.layers[4]["deep"]]
    for got, want in zip(flat, [big, *layers, big[::2], big[:6000].reshape(60, 100).T]):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    assert_in_place(store, "m", *flat)
    assert m.layers[1].flags.f_contiguous
    with store.begin() as t:
        t["m"].layers.append(1)
        with pytest.raises(ValueError):
            t["m"].weights[0] = 5
    assert len(store["m"].layers) == 5


def test_small_arrays_inside_of_objects(store):
    store["o"] = (
        np.arange(3),
        np.zeros(0),
        np.array(5.0),
        np.array(["a"]),
        np.array([(1, 2.0)], "i4,f8"),
        np.array([], "M8[s]"),
    )
    o = store["o"]
    assert o[0].tolist() == [0, 1, 2] and o[1].size == 0 and o[2].shape == () and o[3].tolist() == ["a"]
    assert o[4].dtype == np.dtype("i4,f8") and o[5].dtype == "M8[s]"
    assert not o[0].flags.writeable


def test_an_array_twice_in_an_object_is_stored_once(store):
    a = np.arange(100_000.0)
    store["o"] = [(a, a), {"x": a}]
    o = store["o"]
    assert o[0][0] is o[0][1] is o[1]["x"]
    assert store.snapshot()._info("o")["nbytes"] < 1_000_000


def test_arrays_of_the_store_inside_of_objects_are_stored_by_content(store):
    store["x"] = np.arange(50_000.0)
    store["o"] = (store["x"], store["x"][::2], {"v": store["x"][5:10]})
    del store["x"]
    store.gc()
    o = store["o"]
    assert type(o[0]) is np.ndarray
    np.testing.assert_array_equal(o[0], np.arange(50_000.0))
    np.testing.assert_array_equal(o[1], np.arange(0, 50_000, 2.0))
    np.testing.assert_array_equal(o[2]["v"], np.arange(5, 10.0))


def test_object_masked_and_matrix_arrays(store):
    store["o"] = {
        "o": np.array([1, "a", None], object),
        "ma": np.ma.masked_greater(np.arange(5), 3),
        "s": np.array(["x", "yy"]),
    }
    o = store["o"]
    assert o["o"].tolist() == [1, "a", None]
    assert o["ma"].tolist() == [0, 1, 2, 3, None]
    assert o["s"].tolist() == ["x", "yy"]
    if hasattr(np.dtypes, "StringDType"):
        store["t"] = np.array(["abc", "x" * 100], np.dtypes.StringDType())
        assert store["t"].tolist() == ["abc", "x" * 100]


def test_update_with_stores_pickled_arrays_that_were_changed_in_place(store):
    store["o"] = np.array([1, None], object)
    store["m"] = np.ma.masked_array([1, 2], [0, 1])
    store["x"] = np.arange(3)

    def change(a):
        a[0] = 5
        return a

    for key in "omx":
        before = store.version
        assert store.update_with(key, change)[0] == 5
        assert store[key][0] == 5 and store.version == before + 1


def test_texts_of_gigabytes_are_left_to_pickle():
    large = bytes(2**30)  # no page of it is touched
    assert _plain_encode(large[:5]) is not None
    assert _plain_encode([large]) is None and _plain_encode({"a": large}) is None


def test_bytearrays_and_pickle_buffers_inside_of_objects(store):
    store["o"] = (bytearray(b"x" * 5000), pickle.PickleBuffer(b"abc" * 1000), b"q" * 5000)
    a, b, c = store["o"]
    assert bytes(a) == b"x" * 5000 and bytes(b) == b"abc" * 1000 and c == b"q" * 5000


def test_an_object_that_cannot_be_pickled_changes_nothing(store):
    store["a"] = 1
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        store["a"] = (lambda: 1, np.zeros(5))
    with store.begin() as t:
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            t["a"] = lambda: 1
        assert t["a"] == 1
    assert store["a"] == 1 and store.version == 1


def test_pickling_may_use_the_same_store(store):
    store["o"] = Nested(store)
    assert store["inner"] == 5 and store["o"] == "done"


class Nested:
    def __init__(self, s):
        self.s = s

    def __reduce__(self):
        self.s["inner"] = 5
        return str, ("done",)


def test_private_bytes_of_an_array_in_an_object_stay_after_everything_is_gone(store):
    store["o"] = {"a": np.arange(100_000)}
    a = store["o"]["a"]
    del store["o"]
    for i in range(5):
        store["y"] = np.full(200_000, i)
    store.gc()
    store.close()
    np.testing.assert_array_equal(a, np.arange(100_000))


# --- pandas ------------------------------------------------------------------------------------------------------------------------


def test_dataframe_columns_are_views_of_the_store(store):
    pd = pytest.importorskip("pandas")
    n = 20_000
    df = pd.DataFrame({
        "f": np.arange(n, dtype=float), "g": np.arange(n, dtype="f4"), "i": np.arange(n), "b": np.arange(n) % 2 == 0,
        "t": pd.date_range("2026-01-01", periods=n, freq="s"), "d": pd.to_timedelta(np.arange(n), unit="s"), "s": [f"x{k}" for k in range(n)],
        "z": pd.date_range("2026-01-01", periods=n, freq="min", tz="UTC"), "c": pd.Categorical(["u", "v"] * (n // 2)),
    })  # fmt: skip
    store["df"] = df
    got = store["df"]
    pd.testing.assert_frame_equal(got, df)
    assert_in_place(store, "df", *(got[c].to_numpy() for c in "fgibtd"))
    assert_in_place(store, "df", got["z"].array._ndarray, got["c"].array.codes)
    series, index = df["f"], pd.Index(np.arange(5000))
    store["series"], store["index"], store["multi"] = series, index, df.set_index(["i", "t"])
    pd.testing.assert_series_equal(store["series"], series)
    pd.testing.assert_index_equal(store["index"], index)
    pd.testing.assert_frame_equal(store["multi"], df.set_index(["i", "t"]))
    assert_in_place(store, "series", store["series"].to_numpy())
    assert_in_place(store, "index", store["index"].to_numpy())
    got2 = store["df"]
    got2["f"] = 0.0
    pd.testing.assert_frame_equal(store["df"], df)
    assert float(got["f"].sum()) == float(df["f"].sum())
    assert store == {"df": df, "series": series, "index": index, "multi": df.set_index(["i", "t"])}


# --- who may load ---------------------------------------------------------------------------------------------------------------------


def test_pickles_are_refused_where_others_can_write(shm_path):
    import os

    with ps.open(shm_path) as s:
        assert s.allow_pickle
        assert os.stat(shm_path).st_mode & 0o777 == 0o700
        assert all(os.stat(os.path.join(shm_path, f)).st_mode & 0o777 == 0o600 for f in os.listdir(shm_path))
        s["p"], s["x"], s["l"], s["b"] = {1, 2}, np.arange(3), [1, "a"], b"raw"
        s["df"] = {"k": (np.arange(3),)}
    for victim, mode in ((shm_path, 0o770), (shm_path, 0o777), (os.path.join(shm_path, "pages"), 0o666)):
        before = os.stat(victim).st_mode
        os.chmod(victim, mode)
        try:
            with ps.open(shm_path) as s:
                assert not s.allow_pickle
                with pytest.raises(ps.PickleRefusedError, match="allow_pickle=True") as e:
                    s["p"]
                assert isinstance(e.value, (ps.Error, ValueError)) and "'p'" in str(e.value)
                for access in (s.snapshot().__getitem__, s.begin().__getitem__, s.get, s.pop):
                    with pytest.raises(ps.PickleRefusedError):
                        access("df")
                assert s["x"].tolist() == [0, 1, 2] and s["l"] == [1, "a"] and s["b"] == b"raw"
                s["p2"] = {5}
                with pytest.raises(ps.PickleRefusedError):
                    s["p2"]
                del s["p2"]
            with ps.open(shm_path, allow_pickle=True) as s:
                assert s["p"] == {1, 2}
        finally:
            os.chmod(victim, before)
    with ps.open(shm_path) as s:
        assert s["p"] == {1, 2}
    with ps.open(shm_path, allow_pickle=False) as s, pytest.raises(ps.PickleRefusedError):
        s["p"]
