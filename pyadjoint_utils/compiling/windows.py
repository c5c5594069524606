"""The part of an array that each turn of a loop reads: what moves on by the same distance each time, or in any order.

    y = step(y, forcing[2 * k])        ->        the rows forcing[::2], one for each turn
    y = step(y, forcing[order[k]])     ->        the rows forcing[order]

So the loop gets the parts one after the other, and the derivative of the array is put together once, from the rows of all
turns, instead of being added up in its full size in every turn.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pyadjoint_utils.compiling.fused import Call, Values
from pyadjoint_utils.indexing import IndexingRules

_GATHERED = 2**17  # numbers that may be put together for a loop, however small the array is that they come from


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


class Picks(NamedTuple):
    """What turns read of an array: entries of some axes in any order, the same ones several times or never.

    Attributes:
        axes: the axes, in ascending order.
    """

    axes: tuple[int, ...]

    def rows(self, values: Values, array: Any, places: Sequence[Any]) -> Any:
        """Return the parts of an array along a leading axis, where each turn reads at these places of the axes."""
        for k, axis in enumerate(self.axes):
            array = values.moved(array, axis, k) if axis != k else array
        return values.engine.picked(array, tuple(places))


class Reading(NamedTuple):
    """An indexing in the body of a loop whose parts are put together before the loop.

    Attributes:
        source: slot of the array.
        window: what turns read of it.
        rules: what is left to do in a turn.
        numbers: what is left of the index: slots, or the number itself for the entry of the window.
        places: of picks, the slots of their places in all turns, axis by axis.
    """

    source: int
    window: Window | Picks
    rules: IndexingRules
    numbers: tuple[int | tuple[int], ...]
    places: tuple[tuple[int, ...], ...] = ()


class _Candidate(NamedTuple):
    call: int
    number: int  # which of the index's numbers moves
    first: int
    slots: tuple[int, ...]  # of all numbers, in the first turn


def readings(
    body: Sequence[Any], operands: Sequence[Sequence[Any]], integers: Mapping[int, int], turns: int
) -> dict[int, Reading]:
    """Return which calls of a loop's body read what can be put together before the loop.

    Args:
        body: the calls.
        operands: for each, what its inputs are: an object with ``source`` and the ``slots`` of all turns.
        integers: the numbers that are known, by slot.
        turns: how many turns there are.
    """
    groups: dict[Any, list[_Candidate]] = {}
    found: dict[int, Reading] = {}
    for j, (call, given) in enumerate(zip(body, operands, strict=True)):
        if not (isinstance(call, Call) and isinstance(call.rules, IndexingRules) and _is_fixed(given[0])):
            continue
        indices = _indices(given[1:], integers)
        moving = [k for k, v in enumerate(indices) if (v != v[0]).any()]
        if not moving:
            continue
        slots = tuple([operand.slots[0] for operand in given[1:]])
        steps = np.diff(indices[moving[0]])
        if len(moving) == 1 and (steps == steps[0]).all():
            (k,) = moving
            key = given[0].slots[0], call.rules.inputs[0], call.rules.axes[k], int(steps[0])
            groups.setdefault(key, []).append(_Candidate(j, k, int(indices[k][0]), slots))
        elif _pays(call.rules, moving, turns):
            rest = tuple([slot for k, slot in enumerate(slots) if k not in moving])
            places = tuple([tuple(given[1 + k].slots) for k in moving])
            picks = Picks(tuple([call.rules.axes[k] for k in moving]))
            rules = functools.reduce(IndexingRules.without, reversed(moving), call.rules)
            found[j] = Reading(given[0].slots[0], picks, rules, rest, places)
    for (source, aval, axis, stride), candidates in groups.items():
        for window, group in _windows(axis, stride, turns, aval.shape[axis], candidates):
            for c in group:
                found[c.call] = _reading(source, window, body[c.call].rules, c)
    return found


def _is_fixed(operand: Any) -> bool:
    return operand.source is None and len(set(operand.slots)) == 1


def _indices(numbers: Sequence[Any], integers: Mapping[int, int]) -> list[np.ndarray]:
    """The numbers of an index in all turns; none if that cannot be said."""
    if not all(operand.source is None and all(slot in integers for slot in operand.slots) for operand in numbers):
        return []
    return [np.array([integers[slot] for slot in operand.slots]) for operand in numbers]


def _pays(rules: IndexingRules, moving: Sequence[int], turns: int) -> bool:
    """Whether the parts of all turns take little memory, beside the array at least."""
    size = math.prod(rules.inputs[0].shape)
    part = size // max(1, math.prod(rules.inputs[0].shape[rules.axes[k]] for k in moving))
    return turns * part <= max(size, _GATHERED)


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
