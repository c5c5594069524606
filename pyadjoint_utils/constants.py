"""Constants of recorded calls: each is stored once on a tape, and what the user does to theirs later changes nothing."""

import weakref
from typing import Any

import numpy as np

from pyadjoint_utils.engine import Engine
from pyadjoint_utils.registry import convert

_SMALL = 1024  # bytes up to which arrays are found by their content
_DLPACK_CPU = 1


class _Kept(weakref.ref[Any]):
    """An array that Blocks keep, with what tells whether it still is what the user gave.

    Attributes:
        key: where it is found.
        source: the user's array, if nobody can write to that.
    """

    __slots__ = ("key", "source")

    key: Any
    source: weakref.ref[Any] | None


class KeptConstants:
    """The constants that the Blocks of one tape keep, as long as one of them does.

    A constant of a loop is the same object in every turn, so that it is found by its identity; whether somebody has
    written to it since is seen by a comparison, which takes no memory and a fraction of a copy's time.
    """

    def __init__(self) -> None:
        self._kept: dict[Any, _Kept] = {}

    def array(self, array: Any, owner: Engine, engine: Engine) -> Any:
        """Return the user's array as an array of an engine that nobody else can write to.

        Args:
            array: the user's array.
            owner: the engine that owns it.
            engine: the engine that takes it.
        """
        aval = owner.aval(array)
        small = type(array) is np.ndarray and array.nbytes <= _SMALL
        key = (array.tobytes() if small else id(array), aval, engine.name)
        entry = self._kept.get(key)
        found = None if entry is None else entry()
        if entry is not None and found is not None and (small or _unchanged(array, owner, entry.source, found, engine)):
            return found
        own = owner.copy(array)
        kept = convert(own, engine)
        if kept is not array and (small or own is array or _on_host(array)):
            self._keep(key, kept, array if own is array else None)
        return kept

    def number(self, engine: Engine, number: complex, dtype: np.dtype) -> Any:
        """Return a Python number as an engine takes it beside its arrays."""
        key = (np.asarray(number, dtype).tobytes(), dtype, engine.name)
        entry = self._kept.get(key)
        kept = None if entry is None else entry()
        if kept is None:
            kept = engine.number(number, dtype)
            if type(kept) is not type(number):
                self._keep(key, kept)
        return kept

    def _keep(self, key: Any, kept: Any, source: Any = None) -> None:
        try:
            entry = _Kept(kept, self._forget)
            entry.key, entry.source = key, None if source is None else weakref.ref(source)
        except TypeError:  # an engine's arrays need not take weak references
            return
        self._kept[key] = entry

    def _forget(self, entry: Any) -> None:
        key = entry.key
        if self._kept.get(key) is entry:
            del self._kept[key]


def _unchanged(array: Any, owner: Engine, source: weakref.ref[Any] | None, kept: Any, engine: Engine) -> bool:
    if source is not None:
        return source() is array
    return _equal(owner.to_numpy(array), engine.to_numpy(kept))


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays of one shape are the same in every bit, or in every number where an engine narrows integers."""
    if a.dtype != b.dtype:
        return a.dtype.kind in "iu" and np.array_equal(a, b)
    if a.dtype.kind == "c":
        return _equal(a.real, b.real) and _equal(a.imag, b.imag)
    if a.dtype.itemsize > 8:  # with bits between the numbers that mean nothing
        return False
    bits = f"u{a.dtype.itemsize}"
    return bool((a.view(bits) == b.view(bits)).all())


def _on_host(array: Any) -> bool:
    """Whether an array can be compared where it is; elsewhere that would stop the program until the device is done."""
    device = getattr(array, "__dlpack_device__", None)
    return device is None or device()[0] == _DLPACK_CPU
