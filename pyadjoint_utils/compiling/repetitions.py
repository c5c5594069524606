"""Where calls repeat: find the period, and show what every operand of a turn is."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pyadjoint_utils.compiling.fused import Fused
from pyadjoint_utils.compiling.loop_operands import LoopOperands, Operand
from pyadjoint_utils.compiling.loops import Loop
from pyadjoint_utils.compiling.segments import Constants
from pyadjoint_utils.compiling.windows import readings

# Fewer turns than this are cheaper as they are; a loop forbids the compiler to merge the operations of several turns.
TURNS = 16
# Half as many make a loop where they are more operations than this, by themselves or inside of another loop: compiling
# them would take longer, and inside of a loop they run no faster one after the other.
_MANY, _MANY_INSIDE = 256, 64
_CANDIDATES = 12  # how many periods are tried in one stretch
_REACH = 4  # how far back the last values that later calls need may lie without collecting those of all turns


class Repetition(NamedTuple):
    """Calls ``start`` to ``start + period * turns`` repeat as far as their functions go."""

    start: int
    period: int
    turns: int


class Rolling:
    """Puts loops in the place of repetitions.

    Args:
        fresh: numbers of slots that nobody uses.
        constants: what is known before the program runs.
        turns: the least number of turns that makes a loop; half of it does where these are many operations.
        memory: what a loop keeps for the derivative.
    """

    def __init__(
        self,
        fresh: Iterator[int],
        constants: Constants,
        *,
        turns: int = TURNS,
        memory: str = "all",
    ) -> None:
        self._fresh, self._constants, self._turns, self._memory = fresh, constants, turns, memory
        self._fewest = max(2, turns // 2)

    def rolled(self, calls: Sequence[Any], needed: set[int], *, inside: bool = False) -> list[Any]:
        """Return calls that compute the same with loops instead of repetitions.

        Args:
            calls: in an order in which they can run.
            needed: slots that are used afterwards.
            inside: whether they are a turn of a loop.
        """
        found = self._best(calls, needed, _MANY_INSIDE if inside else _MANY)
        if found is None:
            return list(calls)
        start, stop, loop = found
        before, after = calls[:start], calls[stop:]
        later = needed.union(loop.inputs, *[call.inputs for call in after])
        return [*self.rolled(before, later, inside=inside), loop, *self.rolled(after, needed, inside=inside)]

    def _best(self, calls: Sequence[Any], needed: set[int], many: int) -> tuple[int, int, Loop] | None:
        for candidate in repetitions(calls, self._fewest):
            if not self._pays(calls, candidate, candidate.turns, many):
                continue
            table = _Table(calls, candidate)
            first, last = table.longest()
            if self._pays(calls, candidate, last - first, many):
                start, stop = (candidate.start + k * candidate.period for k in (first, last))
                return start, stop, self._loop(calls, table, first, last, needed.union(*_inputs(calls[stop:])))
        return None

    def _pays(self, calls: Sequence[Any], candidate: Repetition, turns: int, many: int) -> bool:
        """Whether so many turns are better a loop."""
        turn = calls[candidate.start : candidate.start + candidate.period]
        return turns >= self._turns or (
            turns >= self._fewest and turns * sum(call.work.operations for call in turn) > many
        )

    def _loop(self, calls: Sequence[Any], table: "_Table", first: int, last: int, used: set[int]) -> Loop:
        length, start = last - first, table.start + first * table.period
        body = calls[start : start + table.period]
        produced = [(j, o) for j, call in enumerate(body) for o in range(len(call.outputs))]
        slots = {(j, o): [calls[start + k * table.period + j].outputs[o] for k in range(length)] for j, o in produced}
        inside = {value: next(self._fresh) for value in produced}
        operands = table.operands(first, last)
        depths, collected = _kept(operands, slots, used)
        taken = LoopOperands(self._fresh, self._constants, inside, depths, body)
        turn = self._turn(body, operands, taken, inside, length)
        results = [inside[value] for value in (*depths, *collected)]
        return Loop(
            Fused(self.rolled(turn, set(results), inside=True), taken.arguments, results),
            taken.registers,
            taken.constants,
            taken.rows,
            [_wanted(slots[value][::-1][:depth], used) for value, depth in depths.items()],
            [_wanted(slots[value], used) for value in collected],
            length,
            self._memory,
        )

    def _turn(
        self,
        body: Sequence[Any],
        operands: Sequence[Operand],
        taken: LoopOperands,
        inside: dict[tuple[int, int], int],
        length: int,
    ) -> list[Any]:
        """The calls of a turn on the slots inside."""
        following = iter(operands)
        grouped = [[next(following) for _ in call.inputs] for call in body]
        reading = readings(body, grouped, self._constants.integers, length)
        turn = []
        for j, (call, given) in enumerate(zip(body, grouped, strict=True)):
            outputs = [inside[j, o] for o in range(len(call.outputs))]
            if j in reading:
                turn.append(taken.read(reading[j], call, outputs))
            else:
                turn.append(call.at([taken.of(operand) for operand in given], outputs))
        return turn


def _kept(
    operands: Sequence[Operand], slots: dict[tuple[int, int], list[int]], used: set[int]
) -> tuple[dict[tuple[int, int], int], list[tuple[int, int]]]:
    """Which results are carried, for how many turns, and which are collected."""
    depths: dict[tuple[int, int], int] = {}
    for operand in operands:
        if operand.lag and operand.source is not None:
            depths[operand.source] = max(depths.get(operand.source, 0), operand.lag)
    collected = []
    for value, of_turns in slots.items():
        length = len(of_turns)
        wanted = [k for k, slot in enumerate(of_turns) if slot in used]
        if wanted and length - wanted[0] <= max(depths.get(value, 0), min(_REACH, length)):
            depths[value] = max(depths.get(value, 0), length - wanted[0])
        elif wanted:
            collected.append(value)
    return depths, collected


def _wanted(slots: Sequence[int], used: set[int]) -> list[int | None]:
    return [slot if slot in used else None for slot in slots]


def _inputs(calls: Sequence[Any]) -> Iterator[tuple[int, ...]]:
    return (call.inputs for call in calls)


def repetitions(calls: Sequence[Any], turns: int) -> list[Repetition]:
    """Return where the functions of calls repeat at least so many times, what covers most first."""
    if len(calls) < turns:
        return []
    numbers: dict[Any, int] = {}
    ids = np.array([numbers.setdefault(call.key, len(numbers)) for call in calls])
    found = []
    for period in _periods(ids, turns):
        breaks = np.flatnonzero(ids[period:] != ids[:-period])
        edges = np.concatenate([[-1], breaks, [len(ids) - period]])
        k = int(np.argmax(np.diff(edges)))
        start, stop = int(edges[k]) + 1, int(edges[k + 1]) + period
        if (stop - start) // period >= turns:
            found.append(Repetition(start, period, (stop - start) // period))
    return sorted(found, key=lambda r: (-r.period * r.turns, r.period))[:_CANDIDATES]


def _periods(ids: np.ndarray, turns: int) -> list[int]:
    """Distances at which equal calls follow each other, what occurs most first."""
    order = np.argsort(ids, kind="stable")
    gaps = np.diff(order)[np.diff(ids[order]) == 0]
    periods, counts = np.unique(gaps[gaps <= len(ids) // turns], return_counts=True)
    weight = periods * counts
    return periods[np.argsort(-weight, kind="stable")][: 4 * _CANDIDATES].tolist()


class _Table:
    """Where every operand of every turn comes from; one row for each turn."""

    def __init__(self, calls: Sequence[Any], repetition: Repetition) -> None:
        self.start, self.period, self.turns = repetition
        stretch = calls[self.start : self.start + self.period * self.turns]
        producers = {slot: (i, o) for i, call in enumerate(stretch) for o, slot in enumerate(call.outputs)}
        used = list(itertools.chain.from_iterable(_inputs(stretch)))
        outside = (-1, 0)
        origin = np.array([producers.get(slot, outside) for slot in used]).reshape(self.turns, -1, 2)
        self.slots = np.array(used).reshape(self.turns, -1)
        self._call, self._output = origin[..., 0], origin[..., 1]

    def longest(self) -> tuple[int, int]:
        """Return the longest range of turns in which every operand is of one kind."""
        best, first = (0, 0), 0
        # The first turns may use what later ones do not: an initial value of another kind, a reference to the start.
        for first in range(min(_REACH, self.turns)):
            last = self._consistent(first)
            if last - first > best[1] - best[0]:
                best = first, last
            if last == self.turns:
                break
        if best[1] < self.turns - (best[1] - best[0]):
            last = self._consistent(best[1])
            best = max(best, (best[1], last), key=lambda r: r[1] - r[0])
        return best

    def _seen(self, first: int) -> tuple[Any, Any, Any]:
        """Whether an operand is computed since turn ``first``, how many turns ago, and by which output of a turn."""
        turn, position = np.divmod(self._call[first:], self.period)
        lag = np.arange(first, self.turns)[:, None] - turn
        return turn >= first, lag, position * (1 + self._output.max()) + self._output[first:]

    def _consistent(self, first: int) -> int:
        """Return the first turn that does not fit to those since ``first``."""
        inside, lag, source = self._seen(first)
        turns = np.arange(len(inside))
        stop = len(inside)
        registers: dict[tuple[int, int], int] = {}  # the initial entries: (source, lag) -> slot
        for q in range(inside.shape[1]):
            since = int(np.argmax(inside[:, q])) if inside[:, q].any() else len(inside)
            if since == len(inside):
                continue
            d = int(lag[since, q])
            if since > d:  # it came from outside for too long to be the beginning of a carry
                stop = min(stop, since)
                continue
            same = (lag[:, q] == d) & (source[:, q] == source[since, q])
            wrong = np.where(inside[:, q], ~same, turns >= d)
            stop = min(stop, int(np.argmax(wrong)) if wrong.any() else stop)
            for t in range(since):
                entry = (int(source[since, q]), d - t)
                slot = int(self.slots[first + t, q])
                if registers.setdefault(entry, slot) != slot:
                    stop = min(stop, t)
        return first + stop

    def operands(self, first: int, last: int) -> list[Operand]:
        """Return what the operands of turns ``first`` to ``last`` are, where they are consistent."""
        inside, lag, source = self._seen(first)
        inside = inside[: last - first]
        found = []
        for q in range(inside.shape[1]):
            slots = self.slots[first:last, q].tolist()
            if inside[:, q].any():
                k = int(np.argmax(inside[:, q]))
                place = divmod(int(source[k, q]), 1 + int(self._output.max()))
                found.append(Operand(place, int(lag[k, q]), slots))
            else:
                found.append(Operand(None, 0, slots))
        return found
