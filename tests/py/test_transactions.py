"""Transactions: isolation, conflicts by element, merges, appends, savepoints, read-modify-write."""

from __future__ import annotations

import datetime
import os
import socket
import threading

import numpy as np
import pagestone as ps
import pytest


@pytest.fixture
def s(store):
    store["x"] = np.zeros(100_000)
    return store


def two(s, isolation="snapshot"):
    return s.begin(isolation), s.begin(isolation)


# --- one transaction -----------------------------------------------------------------------------------------------------


def test_it_reads_its_own_writes_and_nobody_else_does(s):
    with s.begin() as t:
        t["a"] = 1
        t["x"][5] = 7
        del_key = "b"
        t[del_key] = 2
        del t[del_key]
        assert t["a"] == 1 and t["x"][5] == 7 and "b" not in t and list(t) == ["a", "x"] and len(t) == 2
        assert "a" not in s and s["x"][5] == 0
        s["later"] = 1
        assert "later" not in t
    assert s["a"] == 1 and s["x"][5] == 7 and s["later"] == 1


def test_an_exception_aborts(s):
    with pytest.raises(RuntimeError), s.begin() as t:
        t["a"] = 1
        t["x"][:] = 9
        raise RuntimeError
    assert s.version == 1 and "a" not in s and s["x"].sum() == 0


def test_views_of_one_array_alias_and_become_private_afterwards(s):
    with s.begin() as t:
        a, b = t["x"], t["x"]
        a[3] = 1
        assert b[3] == 1 and np.shares_memory(a, b)
        assert type(a) is np.ndarray and a.flags.writeable
    a[3] = 99
    assert s["x"][3] == 1 and b[3] == 99
    t = s.begin()
    c = t["x"]
    c[4] = 5
    t.abort()
    c[5] = 5
    assert c[4] == 5 and s["x"][4] == 0


def test_touching_nothing_makes_no_version(s):
    with s.begin() as t:
        t["x"][:10].sum()
        t["x"][3] = 0  # the value that is there
    assert s.version == 1
    assert s.begin().commit() == 1


def test_committed_by_hand_inside_of_with(s):
    with s.begin() as t:
        t["a"] = 1
        assert t.commit() == 2
    with s.begin() as t:
        t["a"] = 2
        t.abort()
    assert s.version == 2 and s["a"] == 1


def test_base_is_what_it_began_on(s):
    t = s.begin()
    s["a"] = 1
    t["x"][0] = 5
    assert t.base.version == 1 and "a" not in t.base and t.base["x"][0] == 0
    base = t.base
    t.commit()
    assert base["x"][0] == 0 and base.version == 1


def test_a_base_that_was_closed_is_opened_again(s):
    with s.begin() as t:
        with t.base as base:
            assert base["x"].sum() == 0
        assert t.base["x"].sum() == 0
        t.depends("x", 3)
        t["x"][3] = 1
    assert s["x"][3] == 1


def test_a_forked_child_leaves_the_block_with_its_own_exception(s):
    with s.begin() as t:
        t["a"] = 1
        pid = os.fork()
        if pid == 0:
            code = 3
            try:
                try:
                    with t:
                        raise SystemExit(7)
                except SystemExit as e:
                    code = e.code
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert s["a"] == 1


def test_objects_are_fresh_copies(s):
    s["o"], s["g/n"] = {"k": [1]}, 1
    with s.begin() as t:
        t["o"]["k"].append(2)
        assert t["o"] == {"k": [1]}
        with t.edit("o") as v:
            v["k"].append(3)
        with pytest.raises(RuntimeError), t.edit("o") as v:
            v["k"].append(4)
            raise RuntimeError
        with t.edit("x") as v:
            v[0] = 8
        t.group("g")["n"] += 1
    assert s["o"] == {"k": [1, 3]} and s["x"][0] == 8 and s["g/n"] == 2


def test_empty_is_filled_in_place(s):
    with s.begin() as t:
        a = t.empty("e", (300, 1000), "f4")
        assert a.sum() == 0
        a[:] = 3
        assert t["e"][5, 5] == 3
        f = t.empty("f", (3, 4), order="F")
        assert f.flags.f_contiguous
        t.empty("d0", ())[...] = 5
        t.empty("z", (0, 5))
        with pytest.raises(KeyError):
            t.create("e", 3)
    assert (s["e"] == 3).all() and s["d0"][()] == 5 and s["z"].shape == (0, 5)
    a[:] = 4
    assert (s["e"] == 3).all()
    with s.begin() as t:
        with pytest.raises(KeyError, match="delete it first"):
            t.empty("e", 3)
        del t["e"]
        t.empty("e", 3)
    assert s["e"].shape == (3,)


def test_system_calls_into_untouched_views(s, tmp_path):
    data = np.random.default_rng(1).random(100_000)
    (tmp_path / "f").write_bytes(data.tobytes())
    with s.begin() as t, open(tmp_path / "f", "rb") as f:
        assert f.readinto(t["x"]) == 800_000
    np.testing.assert_array_equal(s["x"], data)
    s["y"] = np.zeros(50_000, "u1")
    with s.begin() as t:
        a, b = socket.socketpair()
        with a, b:
            a.sendall(b"q" * 30_000)
            got = 0
            while got < 30_000:
                got += b.recv_into(memoryview(t["y"])[got:30_000])
        t["y"][40_000:].tofile(tmp_path / "g")
        t["x"].tofile(tmp_path / "h")
    assert (s["y"][:30_000] == ord("q")).all() and not s["y"][30_000:].any()
    assert (tmp_path / "g").stat().st_size == 10_000
    assert (tmp_path / "h").read_bytes() == data.tobytes()
    s["y"].tofile(tmp_path / "i")
    assert (tmp_path / "i").stat().st_size == 50_000


def test_threads_write_into_one_transaction(s):
    with s.begin() as t:
        x = t["x"]

        def work(i):
            x[i * 25_000 : (i + 1) * 25_000] = i
            t[f"o{i}"] = i
            assert t[f"o{i}"] == i

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for th in threads:
            th.start()
        for th in threads:
            th.join()
    assert [s["x"][i * 25_000 + 7] for i in range(4)] == [0, 1, 2, 3]
    assert [s[f"o{i}"] for i in range(4)] == [0, 1, 2, 3]


def test_threads_read_whole_objects_while_another_puts(s):
    """What a thread gets is one of the objects that were put, never the description of one over the bytes of another."""
    values = [
        np.full(10, 7.0), np.full(100_000, 7, "i4"), "x" * 50, "x" * 100_000, b"x" * 70_000, {1: "x" * 10}, {2: {*range(20_000)}},
        [np.full(5, 7)],
    ]  # fmt: skip
    shapes = {(10,): "f8", (100_000,): "i4"}
    wrong: list[object] = []
    done = threading.Event()

    def good(v):
        if isinstance(v, np.ndarray):
            return shapes.get(v.shape) == v.dtype.str[1:] and bool((v == 7).all())
        if isinstance(v, list):
            return v[0].shape == (5,) and bool((v[0] == 7).all())
        return any(type(v) is type(x) and v == x for x in values)

    def read():
        while not done.is_set():
            try:
                v = t["k"]
                if not good(v):
                    wrong.append(v)
            except Exception as e:
                wrong.append(e)

    with s.begin() as t:
        t["k"] = values[0]
        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(60):
            for v in values:
                t["k"] = v
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong[:3]


def test_threads_read_an_array_while_another_resizes_it(s):
    """The rows of one moment; never CorruptError, because the memory has another size by then."""
    wrong: list[BaseException] = []
    done = threading.Event()

    def read():
        while not done.is_set():
            try:
                assert t["x"].shape[0] in (10, 100_000)
            except BaseException as e:
                wrong.append(e)

    with s.begin() as t:
        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(3000):
            t.resize("x", 10)
            t.resize("x", 100_000)
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong[:3]


def test_moves_and_copies(s):
    s["o"] = (1,)
    with s.begin() as t:
        t.move("x", "a/y")
        t.copy("a/y", "z")
        t["z"][0] = 4
        t.move("o", "p")
        assert "x" not in t and t["a/y"][0] == 0
    assert list(s) == ["a/y", "p", "z"] and s["z"][0] == 4 and s["a/y"][0] == 0
    with pytest.raises(KeyError, match=r"'z'.*delete it first"):
        s.move("p", "z")
    del s["z"]
    s.move("p", "z")
    assert s["z"] == (1,) and list(s) == ["a/y", "z"]
    s.copy("a/y", "z")
    assert s["z"].shape == (100_000,)
    s.copy("a/y", "q")
    assert s["q"].shape == (100_000,)
    for bad in (lambda: s.move("nothing", "b"), lambda: s.copy("nothing", "b")):
        with pytest.raises(KeyError):
            bad()
    with pytest.raises(ValueError):
        s.move("q", "")


# --- conflicts ------------------------------------------------------------------------------------------------------------


def test_disjoint_elements_merge_even_within_a_page(s):
    a, b = two(s)
    a["x"][3] = 1
    b["x"][4] = 2
    b["x"][90_000] = 3
    a.commit()
    b.commit()
    assert s["x"][[3, 4, 90_000]].tolist() == [1, 2, 3]
    assert s["x"].sum() == 6


def test_the_same_element_conflicts_and_says_which(s):
    a, b = two(s)
    a["x"][10:20] = 1
    b["x"][15:17] = 2
    b["x"][50_000] = 2
    a.commit()
    with pytest.raises(ps.ConflictError) as e:
        b.commit()
    assert e.value.keys == ("x",)
    assert e.value.ranges == {"x": [(15, 17)]}
    assert e.value.version == 2
    w = e.value.winner
    assert w.version == 2 and w.pid == os.getpid() and w.keys == ("x",)
    assert "x" in str(e.value) and s["x"][50_000] == 0
    import pickle

    back = pickle.loads(pickle.dumps(e.value))
    assert back.ranges == e.value.ranges and str(back) == str(e.value)
    with pytest.raises(ps.ClosedError):
        b["x"]


def test_the_same_value_by_both_conflicts_and_the_old_value_is_no_change(s):
    a, b = two(s)
    a["x"][3] = 1
    b["x"][3] = 1
    a.commit()
    with pytest.raises(ps.ConflictError):
        b.commit()
    a, b = two(s)
    a["x"][3] = 5
    b["x"][3] = 1  # what is there already
    b["x"][4] = 9
    a.commit()
    b.commit()
    assert s["x"][3] == 5 and s["x"][4] == 9


def test_structured_elements_count_whole(store):
    store["r"] = np.zeros(1000, [("id", "i4"), ("v", "f8")])
    a, b = two(store)
    a["r"]["id"][341] = 1
    b["r"]["v"][341] = 2
    a.commit()
    with pytest.raises(ps.ConflictError) as e:
        b.commit()
    assert e.value.ranges == {"r": [(341, 342)]}
    a, b = two(store)
    a["r"]["id"][341] = 5
    b["r"]["v"][342] = 2
    a.commit()
    b.commit()
    assert store["r"]["id"][341] == 5 and store["r"]["v"][342] == 2


def test_nan_and_minus_zero_are_bytes(s):
    with s.begin() as t:
        t["x"][0] = np.nan
    a, b = two(s)
    a["x"][0] = 1
    b["x"][0] = np.nan
    b["x"][1] = 1
    a.commit()
    b.commit()
    assert s["x"][0] == 1
    a, b = two(s)
    a["x"][5] = -0.0
    b["x"][5] = 3
    a.commit()
    with pytest.raises(ps.ConflictError):
        b.commit()


def test_the_winner_of_a_name_came_after_the_base(s):
    """A moved object keeps the version that last changed it: the conflict is with the move."""
    a, b = two(s)
    a.move("x", "y")
    b["y"] = 1
    version = a.commit(message="moved")
    with pytest.raises(ps.ConflictError) as e:
        b.commit()
    assert e.value.version == version and e.value.winner.message == "moved"


def test_whole_writes_conflict_with_writes_inside(s):
    a, b = two(s)
    a["x"] = np.ones(100_000)
    b["x"][3] = 2
    a.commit()
    with pytest.raises(ps.ConflictError) as e:
        b.commit()
    assert e.value.keys == ("x",) and e.value.ranges == {}
    a, b = two(s)
    del a["x"]
    b["x"][3] = 2
    a.commit()
    with pytest.raises(ps.ConflictError):
        b.commit()


def test_objects_and_names_conflict_as_a_whole(store):
    store["o"] = (1,)
    a, b = two(store)
    a["o"], b["o"] = (2,), (3,)
    a.commit()
    with pytest.raises(ps.ConflictError) as e:
        b.commit()
    assert e.value.keys == ("o",) and e.value.ranges == {}
    a, b = two(store)
    a["new"], b["new"] = 1, 1
    a.commit()
    with pytest.raises(ps.ConflictError):
        b.commit()
    a, b = two(store)
    a["p"], b["p/q"] = 1, 1
    a.commit()
    with pytest.raises((ps.ConflictError, KeyError)) as e2:
        b.commit()
    assert "p/q" in str(e2.value)
    a, b = two(store)
    a["m"], b["n"] = 1, 1
    a.commit()
    b.commit()
    assert store["m"] == store["n"] == 1


def test_serializable_write_skew(store):
    store["a"] = store["b"] = 1
    for isolation, ok in (("snapshot", True), ("serializable", False), ("strict", False)):
        store["a"] = store["b"] = 1
        t, u = two(store, isolation)
        t["a"] = -t["b"]
        u["b"] = -u["a"]
        t.commit()
        if ok:
            u.commit()
        else:
            with pytest.raises(ps.ConflictError):
                u.commit()


def test_serializable_listing_and_absence(store):
    store["g/a"] = 1
    for read in (lambda t: list(t.group("g")), lambda t: len(t), lambda t: "g/new" in t, lambda t: t.get("g/new")):
        t = store.begin("serializable")
        read(t)
        t["result"] = 1
        store["g/new"] = 1
        with pytest.raises(ps.ConflictError):
            t.commit()
        del store["g/new"]
    t = store.begin("serializable")
    list(t.group("g"))
    t["result"] = 1
    store["h"] = 1
    t.commit()


def test_depends_narrows_and_widens(s):
    s["y"] = 0
    t = s.begin("serializable")
    t.depends("x", slice(10, 20))
    t["y"] = 1
    with s.begin() as u:
        u["x"][50] = 1
    t.commit()
    t = s.begin("serializable")
    t.depends("x", slice(10, 20))
    t["y"] = 2
    with s.begin() as u:
        u["x"][15] = 1
    with pytest.raises(ps.ConflictError):
        t.commit()
    t = s.begin()  # in any isolation
    t.depends("y")
    t["z"] = 1
    s["y"] = 5
    with pytest.raises(ps.ConflictError) as e:
        t.commit()
    assert e.value.keys == ("y",)


def test_strict_conflicts_with_anything(store):
    t = store.begin("strict")
    t["a"] = 1
    store["unrelated"] = 1
    with pytest.raises(ps.ConflictError):
        t.commit()
    with store.begin("strict") as t:
        t["a"] = 1
    store.tag("x")
    t = store.begin("strict")
    store.tag("y")  # maintenance is no change
    store.gc()
    t["a"] = 2
    t.commit()


def test_element_ranges():
    from pagestone._txn import element_range

    rng = np.random.default_rng(3)
    for shape in ((), (7,), (4, 5), (3, 1, 4)):
        for order in "CF":
            flat = np.arange(int(np.prod(shape))).reshape(shape, order=order)
            for _ in range(200):
                index = tuple(
                    rng.choice([-1, 0]) if n == 1 or rng.random() < 0.3
                    else slice(*sorted(rng.integers(0, n + 1, 2)), rng.integers(1, 3)) if rng.random() < 0.7
                    else slice(None, None, -rng.integers(1, 3))
                    for n in shape[: rng.integers(0, len(shape) + 1)]
                )  # fmt: skip
                if rng.random() < 0.3:
                    index = (*index, ...)
                picked = np.atleast_1d(flat[index])
                got = element_range(shape, order, index)
                assert got == ((int(picked.min()), int(picked.max()) + 1) if picked.size else (0, 0)), (
                    shape,
                    order,
                    index,
                )
    assert element_range((5,), "C", [1, 2]) == (0, 5)
    assert element_range((0, 3), "C", (slice(None), 1)) == (0, 0)
    assert element_range((5,), "C", np.array([True] * 5)) == (0, 5)
    assert element_range((5, 5), "C", True) == (0, 25)
    assert element_range((10**12,), "C", 10**11) == (10**11, 10**11 + 1)
    with pytest.raises(IndexError):
        element_range((5,), "C", 5)


# --- rows --------------------------------------------------------------------------------------------------------------------


def test_appends_of_two_transactions_both_land(store):
    store["log"] = np.zeros((0, 3))
    a, b = two(store)
    a.append("log", np.full((1000, 3), 1.0))
    b.append("log", [2, 2, 2])
    b.append("log", np.full((2, 3), 3.0))
    a.commit()
    b.commit()
    assert a.landed("log") == 0 and b.landed("log") == 1000
    assert store["log"].shape == (1003, 3)
    assert store["log"][:, 0].tolist() == [1.0] * 1000 + [2.0, 3.0, 3.0]


def test_append_kinds(store):
    store["i"] = np.arange(3, dtype="i4")
    store["s"] = np.array(["a"], "U5")
    store["r"] = np.zeros(1, [("a", "i2"), ("b", "f8")])
    with store.begin() as t:
        t.append("i", 3)
        t.append("i", [4, 5])
        t.append("i", np.array([], float))
        t.append("s", ["bc", "d"])
        t.append("r", np.array([(1, 2.0)], store["r"].dtype))
        assert t["i"].tolist() == [0, 1, 2, 3, 4, 5]
        t["i"][0] = 9
        t.append("i", 6)
        assert t["i"].tolist() == [9, 1, 2, 3, 4, 5, 6]
    assert store["i"].dtype == "i4" and store["s"].tolist() == ["a", "bc", "d"] and store["r"]["b"].tolist() == [0, 2]
    with pytest.raises(TypeError):
        store.begin().append("i", 1.5)


def test_append_takes_what_an_array_of_the_dtype_takes(store):
    store["records"] = np.zeros(1, [("a", "i4"), ("b", "f8")])
    store["days"] = np.array(["2020-01-01"], "M8[D]")
    store["spans"] = np.array([1], "m8[s]")
    store["small"] = np.array([1], "i2")
    with store.begin() as t:
        t.append("records", [(1, 2.5), (3, 4.5)])
        t.append("records", (5, 6.5))
        t.append("records", t["records"][1])
        t.append("days", [datetime.date(2020, 1, 2)])
        t.append("days", "2020-01-03")
        t.append("spans", [datetime.timedelta(seconds=4)])
        t.append("small", [])
        t.append("small", 7)
        with pytest.raises(TypeError, match="cast it first"):
            t.append("small", [1.5])
        with pytest.raises(TypeError, match="cast it first"):
            t.append("days", np.array(["2020-01-03"]))
    assert store["records"].tolist() == [(0, 0.0), (1, 2.5), (3, 4.5), (5, 6.5), (1, 2.5)]
    assert [str(d) for d in store["days"]] == ["2020-01-01", "2020-01-02", "2020-01-03"]
    assert store["spans"].tolist()[1] == datetime.timedelta(seconds=4)
    assert store["small"].tolist() == [1, 7]


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="NumPy 1 wraps it around")
def test_an_integer_that_does_not_fit_is_not_appended(store):
    store["small"] = np.array([1], "i2")
    with store.begin() as t, pytest.raises(OverflowError):
        t.append("small", [70_000])


def test_appending_is_no_read(store):
    """Declared appends land in every isolation that asks for less than strict."""
    store["log"] = np.zeros(2)
    a, b = two(store, "serializable")
    a.append("log", [1.0])
    b.append("log", [2.0])
    b.commit()
    a.commit()
    assert store["log"].tolist() == [0, 0, 2, 1]
    a, b = two(store, "serializable")
    a["log"]
    a.append("log", [3.0])
    b.append("log", [4.0])
    b.commit()
    with pytest.raises(ps.ConflictError):
        a.commit()


def test_many_appends_cost_what_they_add(store):
    store["a"] = np.zeros(0)
    for i in range(200):
        with store.begin() as t:
            t.append("a", np.full(1000, i))
    assert store["a"].shape == (200_000,)
    assert (store["a"].reshape(200, 1000) == np.arange(200)[:, None]).all()
    assert store.stat().live < 8 * 200_000 + 2_000_000


def test_shrinking_and_growing_reads_zeros(store):
    store["a"] = np.ones((10, 1000))
    with store.begin() as t:
        x = t["a"]
        t.resize("a", (3, 1000))
        t.resize("a", (20, 1000))
        assert t["a"][:3].all() and not t["a"][3:].any()
        assert x[0, 0] == 1
    assert store["a"].shape == (20, 1000) and store["a"].sum() == 3000
    with store.begin() as t:
        t.resize("a", (2, 1000))
    with store.begin() as t:
        t.resize("a", (5, 1000))
    assert store["a"].sum() == 2000


# --- savepoints ----------------------------------------------------------------------------------------------------------------


def test_savepoints_nest_and_cover_bytes(s):
    with s.begin() as t:
        t["x"][0] = 1
        t["a"] = 1
        p = t.savepoint()
        t["x"][0] = 2
        t["x"][50_000] = 2
        del t["a"]
        t["b"] = (2,)
        q = t.savepoint()
        x = t["x"]
        x[:] = 3
        t["c"] = 3
        q.rollback()
        assert x[0] == 2 and x[1] == 0 and x[50_000] == 2 and "c" not in t and t["b"] == (2,)
        q.rollback()
        p.rollback()
        assert x[0] == 1 and x[50_000] == 0 and t["a"] == 1 and "b" not in t
        with pytest.raises((ValueError, ps.Error)):
            q.rollback()
    assert s["x"][0] == 1 and s["x"].sum() == 1 and sorted(s) == ["a", "x"]


# --- read-modify-write -----------------------------------------------------------------------------------------------------------


def test_update_with(store):
    with pytest.raises(KeyError):
        store.update_with("n", lambda n: n + 1)
    assert store.update_with("n", lambda n: n + 1, default=0) == 1
    assert store.update_with("n", lambda n: n + 1) == 2
    assert store.update_with("l", lambda v: [*v, 1], default=[]) == [1]
    store["x"] = np.zeros(1000)

    def bump(x):
        x[3] += 1
        return x

    r = store.update_with("x", bump)
    assert r[3] == 1 and store["x"][3] == 1
    assert store.update_with("x", lambda x: x * 2)[3] == 2
    assert store["x"][3] == 2
    assert store.update_with("new", lambda x: x + 1, np.zeros(2)).tolist() == [1, 1]
    with pytest.raises(ZeroDivisionError):
        store.update_with("n", lambda n: n / 0)
    assert store["n"] == 2
    with pytest.raises(KeyError, match="inner"):
        store.update_with("n", lambda n: {}["inner"])
    with pytest.raises(TypeError):
        store.update_with("n", lambda n: n, other=1)


def test_update_with_by_threads_loses_nothing(store):
    store["n"] = 0
    store["x"] = np.zeros(1000)

    def work():
        for _ in range(100):
            store.update_with("n", lambda n: n + 1)
            store.update_with("x", lambda x: x + 1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for th in threads:
        th.start()
    for th in threads:
        th.join()
    assert store["n"] == 400 and (store["x"] == 400).all()


def test_run_again_on_conflict(store):
    store["n"] = 0
    calls = []

    def fn(t):
        calls.append(1)
        n = t["n"]
        if len(calls) < 3:
            store["n"] = n + 10
        t["n"] = n + 1
        return n

    assert store.run(fn) == 20 and store["n"] == 21 and len(calls) == 3
    calls.clear()
    with pytest.raises(ps.ConflictError):
        store.run(fn, retries=1)
    assert len(calls) == 2
    assert store.run(lambda t: t.abort()) is None
    with pytest.raises(RuntimeError):
        store.run(lambda t: (_ for _ in ()).throw(RuntimeError()))


def test_messages_are_in_the_log(store):
    with store.begin(message="first") as t:
        t["a"] = 1
    t = store.begin(message="second")
    t["a"] = 2
    t.commit("better")
    assert [c.message for c in store.log()][:2] == ["better", "first"]
