"""Indexing by numbers, slices and new axes: the numbers are arguments, so that ``x[0]`` and ``x[1]`` are one function."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pyadjoint_utils.engine import Arrays, Aval, Engine
from pyadjoint_utils.rules import Rules


class _Slice(NamedTuple):
    """A slice that can be hashed."""

    start: int | None
    stop: int | None
    step: int | None


class _Argument(NamedTuple):
    """Stands in an index for an array that was given."""

    position: int


_NUMBER = "number"  # stands in an index for a number
_INTEGER = Aval((), np.dtype(np.int32))


class IndexingRules(Rules):
    """The rules of ``x[items]``, called with ``x`` and the numbers in the index.

    Args:
        engine: the engine that runs it.
        items: the index; a mark stands for each number.
        source: shape and dtype of ``x``.
    """

    def __init__(self, engine: Engine, items: tuple[Any, ...], source: Aval) -> None:
        getitem = engine.function("getitem")
        assert getitem is not None  # an engine that merges Blocks has it
        self.items = items
        count = items.count(_NUMBER)
        super().__init__(
            engine,
            lambda leaves: (getitem(leaves[0], _filled(items, leaves[1:])),),
            [source, *[_INTEGER] * count],
            1,
            (0,),
            name="getitem",
            lasting=True,
        )
        shape = np.broadcast_to(np.empty(()), source.shape)[_filled(items, [0] * count)].shape
        self.outputs = (Aval(shape, source.dtype),)

    @property
    def axes(self) -> list[int]:
        """The axis of ``x`` that each number stands for."""
        return _axes(self.items, len(self.inputs[0].shape))

    def at_numbers(self, numbers: tuple[int, ...]) -> Rules:
        """Return the rules of ``x`` alone, at these numbers."""
        return _rules_at(self, numbers)

    def without(self, number: int) -> "IndexingRules":
        """Return the rules for what is left of ``x`` where the axis of one of the numbers is gone."""
        place = [k for k, item in enumerate(self.items) if item == _NUMBER][number]
        items = (*self.items[:place], *self.items[place + 1 :])
        # A single index without any item would be the empty tuple, which all engines take, too.
        return indexing_rules(self.engine, items, _resized(self.inputs[0], self.axes[number], None))

    def within(self, number: int, length: int) -> "IndexingRules":
        """Return the rules for an ``x`` whose axis of one of the numbers has another length."""
        return indexing_rules(self.engine, self.items, _resized(self.inputs[0], self.axes[number], length))


@functools.cache
def indexing_rules(engine: Engine, items: tuple[Any, ...], source: Aval) -> IndexingRules:
    """Return the rules of ``x[items]``, the same ones each time."""
    return IndexingRules(engine, items, source)


@functools.cache
def _rules_at(rules: IndexingRules, numbers: tuple[int, ...]) -> Rules:
    found = Rules(
        rules.engine,
        lambda leaves: rules.function((*leaves, *numbers)),
        rules.inputs[:1],
        1,
        (0,),
        name=rules.name,
        lasting=True,
    )
    found.outputs = rules.outputs
    return found


def indexing_of(rules: Rules, engine: Engine, known: Sequence[Any]) -> tuple[IndexingRules, tuple[int, ...]] | None:
    """Return the rules of a recorded indexing, and the numbers in its index.

    Args:
        rules: those that were recorded.
        engine: the engine that is to run it.
        known: the values of its arguments that never change, None for the others.

    Returns:
        None if it is something else, or is indexed by arrays.
    """
    if rules.named is None or rules.named.name != "getitem":
        return None
    index = _index(rules)
    if index is None:
        return None
    source = rules.inputs[0]
    numbers: list[Any] = [known[n.position] if type(n) is _Argument else n for n in index.numbers]
    if any(n is None for n in numbers):
        return None
    positions = []
    for axis, number in zip(index.axes, map(int, numbers), strict=True):
        length = source.shape[axis]
        if not -length <= number < length:
            return None
        positions.append(number % length)
    return indexing_rules(engine, index.items, source), tuple(positions)


def is_bound(rules: Rules, source: Aval) -> bool:
    """Whether an indexing says something else of an array of another shape than the recorded one.

    ``x[-1]`` and a mask are recorded as numbers that count from the beginning.
    """
    if rules.named is None or rules.named.name != "getitem" or source == rules.inputs[0]:
        return False
    index, recorded = _index(rules), rules.inputs[0].shape
    if index is None or len(source.shape) != len(recorded):
        return True
    return any(source.shape[axis] != recorded[axis] for axis in index.axes)


class _Index(NamedTuple):
    items: tuple[Any, ...]
    numbers: tuple[int | _Argument, ...]
    axes: tuple[int, ...]


@functools.cache  # on rules that last
def _index(rules: Rules) -> _Index | None:
    """The index that a function was called with; None if arrays are in it, or if no value on the tape is indexed."""
    assert rules.named is not None
    (x, index), _ = rules.named.arguments(tuple([_Argument(k) for k in range(len(rules.inputs))]))
    if x != _Argument(0) or not rules.dependencies:
        return None
    items: list[Any] = []
    numbers: list[int | _Argument] = []
    # An argument is a tuple, too.
    for item in index if type(index) is tuple else (index,):
        if _is_number(item, rules):
            numbers.append(item)
            items.append(_NUMBER)
        elif isinstance(item, slice):
            items.append(_Slice(item.start, item.stop, item.step))
        elif item is None or item is Ellipsis:
            items.append(item)
        else:
            return None
    return _Index(tuple(items), tuple(numbers), tuple(_axes(items, len(rules.inputs[0].shape))))


def _is_number(item: Any, rules: Rules) -> bool:
    if isinstance(item, _Argument):
        aval = rules.inputs[item.position]
        return aval.shape == () and aval.dtype.kind in "iu"
    return isinstance(item, (int, np.integer)) and not isinstance(item, bool)


def _filled(items: Sequence[Any], numbers: Arrays | Sequence[Any]) -> tuple[Any, ...]:
    given = iter(numbers)
    return tuple([next(given) if i == _NUMBER else slice(*i) if isinstance(i, _Slice) else i for i in items])


def _axes(items: Sequence[Any], ndim: int) -> list[int]:
    """The axis that each number stands for."""
    axis, found = 0, []
    rest = ndim - sum(i is not None and i is not Ellipsis for i in items)
    for i in items:
        if i == _NUMBER:
            found.append(axis)
        axis += rest if i is Ellipsis else i is not None
    return found


def _resized(aval: Aval, axis: int, length: int | None) -> Aval:
    size = () if length is None else (length,)
    return Aval((*aval.shape[:axis], *size, *aval.shape[axis + 1 :]), aval.dtype)
