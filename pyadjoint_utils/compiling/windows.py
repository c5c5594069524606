"""The part of an array that each turn of a loop reads, where it moves on by the same distance each time.

    y = step(y, forcing[2 * k])        ->        the rows forcing[::2], one for each turn

So the loop gets the parts one after the other, and the derivative of the array is put together once, from the rows of all
turns, instead of being added up in its full size in every turn.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pyadjoint_utils.compiling.fused import Call, Values
from pyadjoint_utils.indexing import IndexingRules


class Window(NamedTuple):
    """What turns read of an array: the entries of an axis from ``first + turn * stride`` on.

    Attributes:
        axis: the axis.
        first: where the first turn reads.
        stride: how far the next turn is away, which may be backwards.
        turns: how many there are.
        width: how many entries a turn reads; None for a single one, whose axis is left out.
    """

    axis: int
    first: int
    stride: int
    turns: int
    width: int | None = None

    @property
    def lowest(self) -> int:
        """The lowest entry that is read."""
        return min(self.first, self.first + self.stride * (self.turns - 1))

    def rows(self, values: Values, array: Any) -> Any:
        """Return the parts of an array along a leading axis."""
        distance = abs(self.stride)
        lead = (slice(None),) * self.axis
        if self.width is None:
            stop = self.lowest + distance * (self.turns - 1) + 1
            found = values.part(array, (*lead, slice(self.lowest, stop, distance)))
        else:
            found = values.part(array, (*lead, slice(self.lowest, self.lowest + distance * self.turns)))
            shape = found.shape
            found = values.reshaped(found, (*shape[: self.axis], self.turns, distance, *shape[self.axis + 1 :]))
        if self.axis:
            found = values.moved(found, self.axis, 0)
        return values.part(found, slice(None, None, -1)) if self.stride < 0 else found


class Reading(NamedTuple):
    """An indexing in the body of a loop that reads through a window.

    Attributes:
        source: slot of the array.
        window: what it reads of it.
        rules: what is left to do in a turn.
        numbers: what is left of the index: slots, or the number itself for the entry of the window.
    """

    source: int
    window: Window
    rules: IndexingRules
    numbers: tuple[int | tuple[int], ...]


class _Candidate(NamedTuple):
    call: int
    number: int  # which of the index's numbers moves
    first: int
    slots: tuple[int, ...]  # of all numbers, in the first turn


def readings(
    body: Sequence[Any], operands: Sequence[Sequence[Any]], integers: Mapping[int, int], turns: int
) -> dict[int, Reading]:
    """Return which calls of a loop's body read through a window.

    Args:
        body: the calls.
        operands: for each, what its inputs are: an object with ``source`` and the ``slots`` of all turns.
        integers: the numbers that are known, by slot.
        turns: how many turns there are.
    """
    groups: dict[Any, list[_Candidate]] = {}
    for j, (call, given) in enumerate(zip(body, operands, strict=True)):
        if isinstance(call, Call) and isinstance(call.rules, IndexingRules) and _is_fixed(given[0]):
            moving = _moving(given[1:], integers)
            if moving is not None:
                number, first, stride = moving
                key = given[0].slots[0], call.rules.inputs[0], call.rules.axes[number], stride
                groups.setdefault(key, []).append(
                    _Candidate(j, number, first, tuple([operand.slots[0] for operand in given[1:]]))
                )
    found: dict[int, Reading] = {}
    for (source, aval, axis, stride), candidates in groups.items():
        for window, group in _windows(axis, stride, turns, aval.shape[axis], candidates):
            for c in group:
                found[c.call] = _reading(source, window, body[c.call].rules, c)
    return found


def _is_fixed(operand: Any) -> bool:
    return operand.source is None and len(set(operand.slots)) == 1


def _moving(numbers: Sequence[Any], integers: Mapping[int, int]) -> tuple[int, int, int] | None:
    """Which number of an index moves, from where on and how far in each turn; None if that cannot be said."""
    if not all(operand.source is None and all(slot in integers for slot in operand.slots) for operand in numbers):
        return None
    values = [np.array([integers[slot] for slot in operand.slots]) for operand in numbers]
    moving = [k for k, v in enumerate(values) if (v != v[0]).any()]
    if len(moving) != 1:
        return None
    (k,) = moving
    steps = np.diff(values[k])
    return (k, int(values[k][0]), int(steps[0])) if (steps == steps[0]).all() else None


def _windows(
    axis: int, stride: int, turns: int, length: int, candidates: Sequence[_Candidate]
) -> list[tuple[Window, list[_Candidate]]]:
    """Windows that what is read lies in: what lies within one stride shares one."""
    found: list[tuple[Window, list[_Candidate]]] = []
    rest = sorted(candidates, key=lambda c: c.first)
    while rest:
        first = rest[0].first
        group = [c for c in rest if c.first < first + abs(stride)]
        window = Window(axis, first, stride, turns, abs(stride))
        if group[-1].first == first or window.lowest + abs(stride) * turns > length:
            group = [c for c in group if c.first == first]
            window = Window(axis, first, stride, turns)
        found.append((window, group))
        rest = [c for c in rest if c not in group]
    return found


def _reading(source: int, window: Window, rules: IndexingRules, c: _Candidate) -> Reading:
    before, after = c.slots[: c.number], c.slots[c.number + 1 :]
    if window.width is None:
        return Reading(source, window, rules.without(c.number), (*before, *after))
    entry = (c.first - window.first,)
    return Reading(source, window, rules.within(c.number, window.width), (*before, entry, *after))
