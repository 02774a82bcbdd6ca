"""Arrays: every dtype without objects, every layout, and where provenance goes and where it does not."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pagestone as ps
import pytest

STRUCT = np.dtype([("a", "i1"), ("b", ">f8"), ("c", "S3", (2,)), ("d", [("e", "U2"), ("f", "c8")])])
ALIGNED = np.dtype([("a", "i1"), ("b", "f8")], align=True)
OFFSETS = np.dtype({"names": ["x", "y"], "formats": ["i4", "f2"], "offsets": [8, 2], "itemsize": 24})
TITLED = np.dtype({"names": ["x"], "formats": ["i4"], "titles": ["The X"], "offsets": [0]})
DTYPES = [
    "?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "g", "c8", "c16", "G",
    ">i4", ">f8", ">c16", ">U3", "S1", "S10", "U1", "U7", "V1", "V13", "M8[ns]", "M8[D]", "M8[25us]", ">M8[s]", "m8", "m8[ms]",
    "q", "Q", "l",
    STRUCT, ALIGNED, OFFSETS, TITLED, np.dtype([]), np.dtype([("a", "S0"), ("b", "i2")]),
]  # fmt: skip
SHAPES = [(), (0,), (1,), (5,), (3, 4), (0, 3), (2, 0, 2), (2, 3, 4), (1,) * 8]


def make(dtype, shape, order="C"):
    dtype = np.dtype(dtype)
    a = np.zeros(shape, dtype, order)
    if dtype.itemsize and a.size:
        n = a.nbytes
        raw = np.frombuffer((np.arange(n) * 37 % 100 + 28).astype("u1").tobytes(), "u1")
        if dtype.kind == "?" or dtype.kind == "b":
            raw = raw % 2
        if dtype.kind == "U" or dtype.names:
            for i in np.ndindex(a.shape):
                a[i] = np.array(tuple(1 for _ in dtype.names) if dtype.names and dtype != STRUCT else (1, 2.5, b"xy", ("é", 1j)) if dtype == STRUCT else "é", dtype)  # fmt: skip
            return a
        a = np.ndarray(shape, dtype, raw.astype("u1").tobytes(), order=order).copy(order)
    return a


def check_same(a, b):
    assert a.dtype == b.dtype
    assert a.dtype.isalignedstruct == b.dtype.isalignedstruct
    assert a.dtype.descr == b.dtype.descr if a.dtype.names is None else a.dtype.fields == b.dtype.fields
    assert a.shape == b.shape
    assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back(store, dtype):
    for i, shape in enumerate(SHAPES):
        a = make(dtype, shape)
        store[f"a{i}"] = a
        b = store[f"a{i}"]
        assert type(b) is ps.Array
        check_same(a, b)
        assert not b.flags.writeable
        assert b.flags.aligned == a.flags.aligned
        with store.begin() as t:
            check_same(a, t[f"a{i}"])
        check_same(a, store.private(f"a{i}"))
        check_same(a, pickle.loads(pickle.dumps(b)))


@pytest.mark.parametrize("dtype", ["f8", ">i2", STRUCT], ids=str)
def test_order_is_kept_and_strided_becomes_c(store, dtype):
    f = make(dtype, (3, 4, 5), "F")
    store["f"] = f
    assert store["f"].flags.f_contiguous and not store["f"].flags.c_contiguous
    check_same(f, store["f"])
    for name, view in {
        "step": make(dtype, (7, 8))[::2, 1::3], "neg": make(dtype, (5, 6))[::-1, ::-1],
        "t": make(dtype, (4, 5, 6)).transpose(1, 0, 2), "bc": np.broadcast_to(make(dtype, (3,)), (4, 3)),
    }.items():  # fmt: skip
        store[name] = view
        check_same(view, store[name])
        assert store[name].flags.c_contiguous


def test_a_large_strided_array(store):
    base = np.arange(2_000_000.0).reshape(1000, 2000)
    store["s"] = base[::2, ::-3]
    np.testing.assert_array_equal(store["s"], base[::2, ::-3])
    store["s"] = base[::-2, ::-3]
    with store.begin() as t:
        t["s"] = base[1::2, ::-3]
        t["u"] = base[::2, ::-3]
    np.testing.assert_array_equal(store["s"], base[1::2, ::-3])
    np.testing.assert_array_equal(store["u"], base[::2, ::-3])
    store["t"] = base.reshape(10, 100, 2000).transpose(2, 0, 1)
    np.testing.assert_array_equal(store["t"], base.reshape(10, 100, 2000).transpose(2, 0, 1))


def test_ml_dtypes(store):
    ml = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    a = np.arange(5).astype(ml.bfloat16)
    store["a"] = a
    check_same(a, store["a"])


@pytest.mark.parametrize("dtype", [object, [("a", "i4"), ("b", object)]])
def test_object_arrays_are_pickled_and_refused_as_arrays(store, dtype):
    a = np.zeros(3, dtype)
    store["o"] = a
    back = store["o"]
    assert type(back) is np.ndarray and back.dtype == a.dtype
    with pytest.raises(TypeError, match="Python objects"):
        store.create("x", 3, dtype)
    with store.begin() as t, pytest.raises(TypeError, match="Python objects"):
        t.empty("x", 3, dtype)
    with pytest.raises(TypeError, match="Python objects"):
        ps.share(a)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_subclasses_of_ndarray_are_pickled(store):
    store["m"] = np.matrix([[1, 2]])
    assert type(store["m"]) is np.matrix
    store["ma"] = np.ma.masked_array([1, 2, 3], [0, 1, 0])
    assert type(store["ma"]) is np.ma.MaskedArray
    assert store["ma"].mask.tolist() == [False, True, False]
    store["r"] = np.rec.array([(1, 2.0)], dtype=[("a", int), ("b", float)])
    assert type(store["r"]) is np.recarray


def test_a_memmap_is_an_array(store, tmp_path):
    m = np.memmap(tmp_path / "m", "f4", "w+", shape=(3, 5))
    m[:] = 7
    store["m"] = m
    assert type(store["m"]) is ps.Array
    np.testing.assert_array_equal(store["m"], m)
    store["d"] = {"m": m}
    assert type(store["d"]["m"]) is np.ndarray
    assert store["d"]["m"].sum() == 105


def test_field_names_of_a_view_are_its_own(store):
    store["s"] = np.zeros(3, [("a", "i4"), ("b", "f8")])
    store["s"].dtype.names = ("p", "q")
    assert store["s"].dtype.names == ("a", "b")
    x = store["s"]
    x.dtype.names = ("p", "q")
    assert pickle.loads(pickle.dumps(x)).dtype.names == ("p", "q")


def test_dtypes_that_are_equal_but_not_the_same(store):
    plain = np.dtype({"names": ["a", "b"], "formats": ["i1", "f8"], "offsets": [0, 8], "itemsize": 16})
    aligned = np.dtype([("a", "i1"), ("b", "f8")], align=True)
    store["p"], store["a"] = np.zeros(1, plain), np.zeros(1, aligned)
    assert not store["p"].dtype.isalignedstruct
    assert store["a"].dtype.isalignedstruct


# --- read only ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def x(store):
    store["x"] = np.arange(60_000.0).reshape(30, 40, 50)
    return store["x"]


def test_it_cannot_be_written_nor_made_writable(store, x):
    store["s"] = np.zeros(3, [("a", "i4")])
    for write in (
        lambda: x.__setitem__(0, 1), lambda: x.fill(0), lambda: x.sort(), lambda: x.setflags(write=True),
        lambda: np.add(x, 1, out=x), lambda: x[1:].__setitem__(..., 0), lambda: x.T.setflags(write=True),
        lambda: np.asarray(x).setflags(write=True), lambda: store["s"][0].__setitem__("a", 5),
        lambda: memoryview(x).cast("B").__setitem__(0, 1), lambda: x.byteswap(inplace=True),
        lambda: np.frombuffer(x, "u1").setflags(write=True),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError)):
            write()
    assert store["s"]["a"].tolist() == [0, 0, 0]
    with pytest.raises(ValueError):
        x += 1


# --- provenance --------------------------------------------------------------------------------------------------------

VIEWS = {
    "self": lambda x: x, "slice": lambda x: x[2:7], "step": lambda x: x[::3, ::-1], "row": lambda x: x[3], "T": lambda x: x.T,
    "swap": lambda x: x.swapaxes(0, 2), "reshape": lambda x: x.reshape(30, 2000), "ravel": lambda x: x.ravel(),
    "newaxis": lambda x: x[:, None], "ellipsis": lambda x: x[..., 5], "view": lambda x: x.view("u8"), "squeeze": lambda x: x[:1].squeeze(),
    "real": lambda x: x.real, "iter": lambda x: next(iter(x)), "split": lambda x: np.split(x, 3)[1], "empty": lambda x: x[5:5],
    "diagonal": lambda x: x.diagonal(), "broadcast": lambda x: np.broadcast_to(x, (2, 30, 40, 50), subok=True),
    "flip": lambda x: np.flip(x, 1), "0d": lambda x: x[1, 2, 3, ...], "expand": lambda x: np.expand_dims(x, 0),
    "moveaxis": lambda x: np.moveaxis(x, 0, -1), "view()": lambda x: x.view(), "shallow": lambda x: np.array(x, copy=None, subok=True),
}  # fmt: skip
RESULTS = {
    "add": lambda x: x + 1, "radd": lambda x: 1 + x, "neg": lambda x: -x, "sin": lambda x: np.sin(x), "cmp": lambda x: x > 3,
    "sum": lambda x: x.sum(0), "mean": lambda x: x.mean((0, 1)), "copy": lambda x: x.copy(), "astype": lambda x: x.astype("f4"),
    "take": lambda x: x.take([1, 2]), "nptake": lambda x: np.take(x, [1, 2], axis=0), "fancy": lambda x: x[[1, 2]],
    "mask": lambda x: x[x > 5], "zeros_like": np.zeros_like, "empty_like": np.empty_like, "sort": np.sort, "cumsum": np.cumsum,
    "concatenate": lambda x: np.concatenate([x, x]), "where": lambda x: np.where(x > 3, x, 0), "flatten": lambda x: x.flatten(),
    "clip": lambda x: x.clip(1, 2), "round": lambda x: x.round(), "dot": lambda x: x[0] @ x[0].T, "outer": lambda x: np.multiply.outer(x[0, 0], x[0, 0]),
    "reduceat": lambda x: np.add.reduceat(x, [0, 5]), "argsort": lambda x: x.argsort(), "repeat": lambda x: x.repeat(2),
    "rollT": lambda x: np.roll(x, 1), "compress": lambda x: x.compress([True, False, True], 0), "choose": lambda x: x[np.array(3), np.array([1, 2])],
    "conj": lambda x: x.conj() + 0, "copy.copy": copy.copy, "deepcopy": copy.deepcopy, "unique": np.unique,
    "einsum": lambda x: np.einsum("ijk->k", x), "stack": lambda x: np.stack([x, x]), "pad": lambda x: np.pad(x, 1), "asarray": np.asarray,
    "vstack": np.vstack, "tile": lambda x: np.tile(x, 2), "ravelF": lambda x: x.ravel("F"), "apply": lambda x: np.apply_along_axis(lambda v: v * 2, 0, x),
}  # fmt: skip


@pytest.mark.parametrize("how", VIEWS)
def test_views_carry_provenance_and_travel_as_handles(store, x, how):
    v = VIEWS[how](x)
    assert type(v) is ps.Array
    assert v.store is store and v.key == "x" and v.version == 1
    assert v.size == 0 or np.shares_memory(v, x) or v.base is not None
    for protocol in (2, 3, 4, 5):
        h = pickle.dumps(v, protocol)
        w = pickle.loads(h)
        assert type(w) is ps.Array and w.dtype == v.dtype and w.shape == v.shape
        assert v.size == 0 or all(a == b for a, b, n in zip(v.strides, w.strides, v.shape) if n > 1)
        np.testing.assert_array_equal(w, v)
        assert w.key == "x" and w.version == 1
        assert protocol < 4 or len(h) <= 300


@pytest.mark.parametrize("how", RESULTS)
def test_results_carry_none(x, how):
    v = RESULTS[how](x)
    expected = RESULTS[how](np.array(x))
    assert isinstance(v, np.ndarray)
    assert type(v) is np.ndarray or (v.store is None and v.key is None and v.version is None)
    w = pickle.loads(pickle.dumps(v))
    assert type(w) is np.ndarray
    if how != "empty_like":
        np.testing.assert_array_equal(v, expected)
        np.testing.assert_array_equal(w, expected)
    if type(v) is ps.Array:
        assert v.flags.writeable
        assert type(v[1:]) is not ps.Array or v[1:].store is None


def test_reductions_and_elements_are_scalars(x):
    assert type(x.sum()) is np.float64
    assert type(x.max()) is np.float64
    assert type(x[1, 2, 3]) is np.float64
    assert type(np.linalg.norm(x)) is np.float64
    assert type(np.sin(x[1, 2, 3, ...])) is np.float64
    assert x.item(5) == 5.0
    assert type(x.tolist()) is list


def test_the_functions_of_numpy_that_write_into_a_copy_of_ours(x):
    y = x.copy()
    z = y
    y += 1
    assert y is z
    assert np.add(x, 1, out=y) is y
    np.testing.assert_array_equal(y, np.asarray(x) + 1)


def test_provenance_ends_where_the_memory_ends(x):
    x.__setstate__((1, (2,), np.dtype("f8"), False, b"\0" * 16))
    assert x.store is None
    assert pickle.loads(pickle.dumps(x)).tolist() == [0.0, 0.0]


def test_shape_dtype_and_strides_assigned_in_place(store, x):
    y = x.view()
    y.shape = (30, 2000)
    w = pickle.loads(pickle.dumps(y))
    assert w.shape == (30, 2000)
    np.testing.assert_array_equal(w, y)


def test_python_subclasses_of_array_work(store):
    class Sub(ps.Array):
        pass

    store["x"] = np.arange(5)
    v = store["x"].view(Sub)
    assert type(v) is Sub and v.store is store
    assert type(v[1:]) is Sub
    del v


def test_arrays_of_another_store_are_stored_by_content(store):
    other = ps.open()
    other["x"] = np.arange(50_000)
    store["y"] = other["x"]
    store["z"] = other["x"][::2]
    other.close()
    np.testing.assert_array_equal(store["y"], np.arange(50_000))
    np.testing.assert_array_equal(store["z"], np.arange(0, 50_000, 2))


def test_assigning_an_array_of_the_same_store_shares_its_pages(store):
    store["x"] = np.arange(1_000_000.0)
    before = store.stat()
    store["y"] = store["x"]
    store["z"] = store["x"].reshape(1000, 1000).T
    store.copy("x", "w")
    after = store.stat()
    assert after.live - before.live < 1_000_000
    for k in "yw":
        np.testing.assert_array_equal(store[k], np.arange(1_000_000.0))
        assert store[k].key == k
    np.testing.assert_array_equal(store["z"], np.arange(1_000_000.0).reshape(1000, 1000).T)
    assert store["z"].flags.f_contiguous
    with store.begin() as t:
        t["y"][5] = -1
    assert store["x"][5] == 5 and store["w"][5] == 5
    assert store.check().ok


def test_views_outlive_everything(store, tmp_path):
    s = ps.open(tmp_path / "v.ps", size="64MB", history=0)
    rng = np.random.default_rng(5)
    want = rng.random(500_000)
    s["x"] = want
    s["o"] = {"a": want[:1000], "b": 5}
    views = [
        s["x"],
        s["x"][5:],
        s["x"].view(np.ndarray),
        memoryview(s["x"]),
        s["o"]["a"],
        s.private("x"),
        s.at(-1)["x"],
    ]
    t = s.begin()
    views += [t["x"], t["x"][::2]]
    t.abort()
    del s["x"], s["o"]
    for _ in range(30):
        s["y"] = rng.random(500_000)
    s.gc()
    s.close()
    del s
    for v, w in zip(views, [want, want[5:], want, want, want[:1000], want, want, want, want[::2]]):
        np.testing.assert_array_equal(np.asarray(v), w)


# --- private --------------------------------------------------------------------------------------------------------------


def test_private_views_are_writable_and_seen_by_nobody(store, x):
    p, q = store.private("x"), store.private("x")
    assert type(p) is np.ndarray and p.flags.writeable
    p[0] = -1
    assert x[0, 0, 0] == 0 and q[0, 0, 0] == 0 and store["x"][0, 0, 0] == 0
    assert p[0, 0, 0] == -1
    assert store.version == 1
    store["f"] = np.asfortranarray(np.ones((3, 4)))
    assert store.private("f").flags.f_contiguous
    store["o"] = (1,)
    with pytest.raises(TypeError, match="private"):
        store.private("o")
    with pytest.raises(KeyError):
        store.private("nothing")
    snap = store.snapshot()
    snap.private("x")[:] = 5
    assert snap["x"][0, 0, 1] == 1


def test_create_is_lazy(store, kernel_tells_dirty_pages):
    a = store.create("big", (10**12,), "u1")
    assert a.nbytes == 10**12 and type(a) is ps.Array
    assert a[0] == 0 and a[10**12 - 1] == 0
    assert store.stat().live < 10_000_000
    with store.begin() as t:
        t["big"][10**11] = 7
    assert store["big"][10**11] == 7
    assert int(store["big"][10**11 - 5000 : 10**11 + 5000].sum()) == 7
    h = pickle.loads(pickle.dumps(store["big"]))
    assert h[10**11] == 7


def test_create_and_its_arguments(store):
    assert store.create("c", 5).tolist() == [0.0] * 5
    assert store.create("f", (2, 3), "i4", order="F", fill=7).flags.f_contiguous
    assert (store["f"] == 7).all()
    assert store.create("s", 2, "S3").tolist() == [b"", b""]
    assert store.create("s2", 2, "U3", fill="ab").tolist() == ["ab", "ab"]
    assert np.signbit(store.create("m", 2, fill=-0.0)).all()
    assert np.isnan(store.create("n", 2, fill=np.nan)).all()
    assert store.create("sub", 2, np.dtype(("i4", (3,)))).shape == (2, 3)
    assert store.create("e", (0, 3)).shape == (0, 3)
    assert store.create("d0", ()).shape == ()
    with pytest.raises(KeyError, match="exists"):
        store.create("c", 5)
    assert store.create("c", 5, exist_ok=True).key == "c"
    with pytest.raises(ValueError, match="exists with another"):
        store.create("c", 6, exist_ok=True)
    with pytest.raises(ValueError):
        store.create("neg", -1)
    with pytest.raises(ValueError):
        store.create("o", 1, order="K")
    with pytest.raises((ValueError, OverflowError)):
        store.create("huge", (2**40, 2**40))
    with pytest.raises(TypeError):
        store.create("o", "abc")
