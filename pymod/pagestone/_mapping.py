"""What Store, Snapshot, Transaction and Group have in common as mappings.

Iteration, ``items()``, ``values()`` and ``==`` see one snapshot each, whatever is committed meanwhile.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from contextlib import AbstractContextManager
from typing import Any, Callable

import numpy as np


def equal(a: Any, b: Any) -> bool:
    """Equality of stored values: arrays by shape, dtype and elements (NaN equals NaN), pandas objects by ``equals``."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)) or a.shape != b.shape or a.dtype != b.dtype:
            return False
        try:
            return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fcmM"))
        except TypeError:
            return bool(np.array_equal(a, b))
    if type(a) is type(b):
        if type(a) in (list, tuple):
            return len(a) == len(b) and all(x is y or equal(x, y) for x, y in zip(a, b))
        if type(a) is dict:
            return a.keys() == b.keys() and all(x is b[k] or equal(x, b[k]) for k, x in a.items())
        if hasattr(a, "equals"):
            return bool(a.equals(b))
    try:
        return bool(a == b)
    except ValueError:  # an object whose == gives an array of truth values
        return False


def same_contents(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    if len(a) != len(b):
        return False
    return all(k in b and equal(v, b[k]) for k, v in a.items())


class _FrozenItems(ItemsView[str, Any]):
    _mapping: ReadMapping

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        with self._mapping._frozen() as m:
            for k in m:
                yield k, m[k]

    def __contains__(self, item: object) -> bool:
        if not isinstance(item, tuple) or len(item) != 2:
            return False
        try:
            value = self._mapping[item[0]]
        except KeyError:
            return False
        return value is item[1] or equal(value, item[1])


class _FrozenValues(ValuesView[Any]):
    _mapping: ReadMapping

    def __iter__(self) -> Iterator[Any]:
        for _, v in self._mapping.items():
            yield v

    def __contains__(self, value: object) -> bool:
        return any(v is value or equal(v, value) for v in self)


class ReadMapping(Mapping[str, Any]):
    """Mapping methods over ``_frozen()``, a context manager that gives a mapping which does not change."""

    __slots__ = ()

    def _frozen(self) -> AbstractContextManager[Mapping[str, Any]]:
        raise NotImplementedError

    def items(self) -> ItemsView[str, Any]:
        return _FrozenItems(self)

    def values(self) -> ValuesView[Any]:
        return _FrozenValues(self)

    def keys(self) -> KeysView[str]:
        return KeysView(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        if self is other:
            return True
        with self._frozen() as mine:
            if isinstance(other, ReadMapping):
                with other._frozen() as theirs:
                    return same_contents(mine, theirs)
            return same_contents(mine, other)

    __hash__ = None  # type: ignore[assignment]


class AtomicMapping(ReadMapping, MutableMapping[str, Any]):
    """MutableMapping whose compound methods are one transaction each, through ``_atomic(fn)``."""

    __slots__ = ()

    _missing = object()

    def _first(self, prefix: str = "") -> str | None:
        """The first key below `prefix`, without it; of transactions and their groups."""
        raise NotImplementedError

    def _take(self, key: str) -> Any:
        """The value of a key that is about to be removed."""
        raise NotImplementedError

    def _atomic(self, fn: Callable[[Any], Any]) -> Any:
        """Call fn(mapping in a transaction), commit, again on conflict."""
        raise NotImplementedError

    def setdefault(self, key: str, default: Any = None) -> Any:
        """The value of `key`; if there is none, `default` is stored first. Atomic."""
        missing = self._missing
        while True:
            value = self.get(key, missing)
            if value is not missing:
                return value

            def step(t: Any) -> None:
                if key not in t:
                    t[key] = default

            self._atomic(step)

    def pop(self, key: str, default: Any = _missing) -> Any:
        """Remove `key` and return its value; KeyError, or `default`, if there is none. Atomic."""

        def step(t: Any) -> Any:
            if key not in t:
                if default is self._missing:
                    raise KeyError(key)
                return default
            value = t._take(key)
            del t[key]
            return value

        return self._atomic(step)

    def popitem(self) -> tuple[str, Any]:
        """Remove and return the first (key, value); KeyError when empty. Atomic."""

        def step(t: Any) -> tuple[str, Any]:
            key = t._first()
            if key is None:
                raise KeyError("popitem(): the mapping is empty")
            value = t._take(key)
            del t[key]
            return key, value

        return self._atomic(step)  # type: ignore[no-any-return]

    def update(self, other: Any = (), /, **kwargs: Any) -> None:
        """Store all items of a mapping, an iterable of pairs and keyword arguments, as one transaction."""
        items: list[tuple[str, Any]] = []
        if isinstance(other, Mapping):
            items += other.items()
        elif hasattr(other, "keys"):
            items += [(k, other[k]) for k in other.keys()]  # noqa: SIM118
        else:
            items += [(k, v) for k, v in other]
        items += kwargs.items()

        def step(t: Any) -> None:
            for k, v in items:
                t[k] = v

        if items:
            self._atomic(step)
