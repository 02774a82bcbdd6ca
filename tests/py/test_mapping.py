"""A store, a group, a snapshot and a transaction behave as mappings: CPython's own tests, and what they leave out."""

from __future__ import annotations

import threading
import unittest

import numpy as np
import pagestone as ps
import pytest

mapping_tests = pytest.importorskip("test.mapping_tests", reason="CPython's test package is not installed")


def _fresh_group() -> ps.Group:
    return ps.open().group("g")


class TestStoreProtocol(mapping_tests.BasicTestMappingProtocol):
    type2test = staticmethod(lambda: ps.open())


class TestGroupProtocol(mapping_tests.BasicTestMappingProtocol):
    type2test = staticmethod(_fresh_group)


class TestNestedGroupProtocol(mapping_tests.BasicTestMappingProtocol):
    type2test = staticmethod(lambda: ps.open().group("a/b").group("c"))


class TestTransactionProtocol(mapping_tests.BasicTestMappingProtocol):
    type2test = staticmethod(lambda: ps.open().begin())


def test_the_protocol_tests_are_all_there():
    for case in (TestStoreProtocol, TestGroupProtocol):
        assert len(unittest.defaultTestLoader.getTestCaseNames(case)) == 14


def test_keys_come_in_order_and_popitem_takes_the_first(store):
    for k in ("b", "a/z", "c", "a/y", "é", "B"):
        store[k] = k
    assert list(store) == ["B", "a/y", "a/z", "b", "c", "é"]
    assert store.popitem() == ("B", "B")
    assert list(store.group("a")) == ["y", "z"]
    assert store.group("a").popitem() == ("y", "a/y")


def test_popitem_looks_at_no_more_than_the_first_key(store, monkeypatch):
    store.update({f"g/{i}": i for i in range(20)})
    monkeypatch.setattr(ps.Transaction, "_iter_keys", None)  # which lists all keys
    assert store.popitem() == ("g/0", 0)
    assert store.group("g").popitem() == ("1", 1)
    with store.begin() as t:
        assert t.popitem() == ("g/10", 10)
        assert t.group("g").popitem() == ("11", 11)
    assert len(store) == 16
    with pytest.raises(KeyError):
        store.group("none").popitem()


def test_iteration_sees_one_snapshot(store):
    store.update(a=1, b=2, c=3)
    seen = []
    for k, v in store.items():
        seen.append((k, v))
        store.clear()
        store["zz"] = 0
    assert seen == [("a", 1), ("b", 2), ("c", 3)]
    keys = iter(store)
    store["zzz"] = 1
    assert list(keys) == ["zz"]
    values = iter(store.values())
    assert next(values) == 0
    del store["zzz"]
    assert list(values) == [1]


def test_update_is_one_transaction_and_all_or_nothing(store):
    store.update({"a": 1}, b=2)
    assert store.version == 1
    with pytest.raises(TypeError):
        store.update([("c", 3), (4, 4)])
    assert sorted(store) == ["a", "b"]
    assert store.version == 1


def test_clear_setdefault_pop_are_one_version_each(store):
    store.update({f"k{i}": i for i in range(10)})
    v = store.version
    store.clear()
    assert store.version == v + 1
    store.clear()
    assert store.version == v + 1  # nothing changed
    assert store.setdefault("x", [1]) == [1]
    assert store.setdefault("x", [2]) == [1]
    assert store.version == v + 2
    assert store.pop("x") == [1]
    assert store.pop("x", None) is None
    assert store.version == v + 3


def test_pop_of_an_array_gives_its_bytes(store):
    store["a"] = np.arange(100_000)
    a = store.pop("a")
    assert "a" not in store
    store.gc()
    np.testing.assert_array_equal(a, np.arange(100_000))
    store.group("g")["x"] = np.ones(3)
    np.testing.assert_array_equal(store.group("g").pop("x"), np.ones(3))


def test_equality_compares_contents(store):
    other = ps.open()
    for s in (store, other):
        s["a"] = np.array([1.0, np.nan])
        s["b"] = {"x": [1, np.float32(2)]}
        s["c"] = [np.arange(3), "x"]
    assert store == other
    assert store == store.snapshot()
    assert store != {}
    assert store == dict(store.items())
    other["a"] = np.array([1.0, 2.0])
    assert store != other
    other["a"] = np.array([1.0, np.nan], "f4")
    assert store != other
    del other["a"]
    assert store != other
    assert store != 3


def test_values_and_items_contain(store):
    store["a"] = np.arange(3)
    store["b"] = "x"
    assert "x" in store.values()
    assert ("b", "x") in store.items()
    assert ("b", "y") not in store.items()
    assert ("q", "y") not in store.items()
    assert "q" not in store.values()


def test_bool_does_not_scan(store):
    assert not store
    store["a"] = None
    assert store
    assert not store.group("g")
    assert store.snapshot()
    assert not store.at(0)


def test_get_does_not_hide_a_keyerror_of_the_object_itself(store):
    store["bad"] = RaisesWhenLoaded()
    for mapping in (store, store.begin(), store.snapshot()):
        with pytest.raises(KeyError, match="inner"):
            mapping["bad"]
    for mapping in (store, store.snapshot()):
        with pytest.raises(KeyError, match="inner"):
            mapping.get("bad", None)
        assert mapping.get("nothing") is None and mapping.get(5, 6) == 6


class RaisesWhenLoaded:
    def __reduce__(self):
        return _raise_inner, ()


def _raise_inner():
    raise KeyError("inner")


@pytest.mark.parametrize("key", [1, None, b"a", 1.5, ("a",), [1]])
def test_keys_that_are_no_str(store, key):
    with pytest.raises(TypeError, match=r"keys are str.*use str\(key\)"):
        store[key] = 1
    with pytest.raises(KeyError):
        store[key]
    with pytest.raises(KeyError):
        del store[key]
    assert key not in store
    assert store.get(key, 5) == 5


@pytest.mark.parametrize(
    "key",
    ["", "/", "a/", "/a", "a//b", ".", "..", "a/./b", "a/..", "x" * 1025, "a/" + "b" * 251, "a\0b", "\0a", "a\udc80"],
)
def test_malformed_keys(store, key):
    with pytest.raises(ValueError):
        store[key] = 1
    with pytest.raises(KeyError):
        store[key]
    with pytest.raises(KeyError):
        del store[key]
    assert key not in store
    assert store.get(key) is None
    for read in (lambda: store.pop(key), lambda: store.revert(key, 0), lambda: store.update_with(key, lambda v: v)):
        with pytest.raises(KeyError):
            read()
    assert store.pop(key, 5) == 5
    with pytest.raises(ValueError):
        store.update_with(key, lambda v: v, default=1)
    assert store.version == 0


@pytest.mark.parametrize(
    "key", ["a", "é" * 125, "x" * 250, "/".join(["y" * 204] * 5), "a.b", "...", " ", "a\nb", "\U0001f600"]
)
def test_well_formed_keys(store, key):
    store[key] = key
    assert store[key] == key
    assert list(store) == [key]
    with store.begin() as t:
        t[key] = np.arange(3)
    assert store[key].key == key
    del store[key]
    assert len(store) == 0


def test_a_key_and_a_group_of_the_same_name_do_not_coexist(store):
    store["a/b"] = 1
    with pytest.raises(KeyError) as e:
        store["a"] = 1
    assert "'a'" in str(e.value) and "'a/b'" in str(e.value)
    with pytest.raises(KeyError) as e:
        store["a/b/c"] = 1
    assert "a/b/c" in str(e.value)
    del store["a/b"]
    store["a"] = 1
    store["a.npy"] = b"x"  # a plain "a" shows as a.pkl
    with pytest.raises(KeyError) as e:
        store["a"] = np.arange(3)
    assert "a.npy" in str(e.value)
    assert store["a"] == 1


def test_group_keys_and_errors_are_relative(store):
    g = store.group("g/")
    g["x"] = 1
    assert store["g/x"] == 1
    assert g.name == "g"
    assert len(g) == 1
    with pytest.raises(KeyError) as e:
        g["y"]
    assert e.value.args == ("y",)
    with pytest.raises(KeyError) as e:
        del g["y"]
    assert e.value.args == ("y",)
    with pytest.raises(TypeError):
        g[3] = 1
    for bad in ("", "/", "a//b", "..", "a\0", "a\udc80"):
        for parent in (store, g, store.snapshot()):
            with pytest.raises(ValueError):
                parent.group(bad)
    with pytest.raises(TypeError):
        store.group(3)
    store["gg"] = 2
    g.clear()
    assert list(store) == ["gg"]
    assert dict(store.snapshot().group("g")) == {}


def test_group_of_a_transaction_belongs_to_it(store):
    with store.begin() as t:
        g = t.group("g")
        g["x"] = 1
        g.update(y=2)
        assert list(g) == ["x", "y"]
        assert len(store) == 0
    assert store.version == 1
    assert dict(store) == {"g/x": 1, "g/y": 2}
    with pytest.raises(ps.ReadOnlyError):
        store.snapshot().group("g")["x"] = 2


def test_concurrent_setdefault_and_popitem_lose_nothing(store):
    results: list[object] = []

    def work(n: int) -> None:
        for i in range(50):
            results.append((i, store.setdefault(f"k{i}", n)))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for th in threads:
        th.start()
    for th in threads:
        th.join()
    assert len(set(results)) == 50
    popped: list[str] = []

    def drain() -> None:
        while True:
            try:
                popped.append(store.popitem()[0])
            except KeyError:
                return

    threads = [threading.Thread(target=drain) for _ in range(4)]
    for th in threads:
        th.start()
    for th in threads:
        th.join()
    assert sorted(popped) == sorted(f"k{i}" for i in range(50))
