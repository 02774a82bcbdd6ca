"""Groups: the keys below ``a/b/`` as a mapping of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

from ._mapping import AtomicMapping

_MISSING: Any = object()


class Group(AtomicMapping):
    """A MutableMapping over the keys below a prefix; ``g["x"]`` is ``s["a/b/x"]``.

    Holds no state: a group exists as long as it has keys, and an empty one can be written to. Over a Snapshot it is read
    only; over a Transaction it belongs to it.

    Attributes
    ----------
    name : str
        The prefix without its final slash.
    """

    __slots__ = ("_parent", "_prefix")

    def __init__(self, parent: Any, name: str):
        if not isinstance(name, str):
            raise TypeError(f"a group's name is a str, not {type(name).__name__}")
        name = name[:-1] if name.endswith("/") else name
        if not name or any(part in ("", ".", "..") or "\0" in part for part in name.split("/")):
            raise ValueError(f"malformed group name {name!r}: parts between slashes must not be empty, '.' or '..'")
        if any("\ud800" <= c <= "\udfff" for c in name):
            raise ValueError(f"group name {name!r} is not valid Unicode text: it has lone surrogates")
        self._parent = parent
        self._prefix = name + "/"

    @property
    def name(self) -> str:
        """The prefix, without its final slash."""
        return self._prefix[:-1]

    def _key(self, key: Any) -> Any:
        return self._prefix + key if isinstance(key, str) else key

    def _check(self, key: Any) -> str:
        if not isinstance(key, str):
            raise TypeError(f"keys are str, not {type(key).__name__}: use str(key)")
        return self._prefix + key

    def __getitem__(self, key: str) -> Any:
        value = self._parent.get(self._key(key), _MISSING)
        if value is _MISSING:
            raise KeyError(key)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        return self._parent.get(self._key(key), default)

    def __setitem__(self, key: str, value: Any) -> None:
        self._parent[self._check(key)] = value

    def __delitem__(self, key: str) -> None:
        try:
            del self._parent[self._key(key)]
        except KeyError:
            raise KeyError(key) from None  # the key as it is called here

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._prefix + key in self._parent

    def __iter__(self) -> Iterator[str]:
        return self._parent._iter_keys(self._prefix)  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return sum(1 for _ in iter(self))

    def __bool__(self) -> bool:
        return any(True for _ in self)

    def _first(self, prefix: str = "") -> str | None:
        first: str | None = self._parent._first(self._prefix + prefix)
        return first

    def _take(self, key: str) -> Any:
        if key not in self:
            raise KeyError(key)
        return self._parent._take(self._key(key))

    @contextmanager
    def _frozen(self) -> Iterator[Any]:
        with self._parent._frozen() as parent:
            yield Group(parent, self.name)

    def _atomic(self, fn: Callable[[Any], Any]) -> Any:
        return self._parent._atomic(lambda t: fn(Group(t, self.name)))

    def clear(self) -> None:
        """Remove all keys of the group. Atomic."""
        self._parent._atomic(lambda t: t._clear(self._prefix))

    def group(self, name: str) -> Group:
        """The group `name` below this one."""
        return Group(self._parent, self._prefix + Group(self._parent, name).name)

    def __repr__(self) -> str:
        return f"<pagestone.Group {self.name!r} of {self._parent!r}>"

    def __reduce__(self) -> Any:
        return Group, (self._parent, self.name)
