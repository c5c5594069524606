"""What the body of a loop takes from outside: entries of registers, constants and rows, each with its slot inside."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pyadjoint_utils.compiling.fused import Call
from pyadjoint_utils.compiling.loops import Rows
from pyadjoint_utils.compiling.segments import Constants
from pyadjoint_utils.compiling.windows import Reading
from pyadjoint_utils.engine import Aval


class Operand(NamedTuple):
    """What an input of a turn is.

    Attributes:
        source: the position in the turn and the number of the output that computes it; None if it comes from outside.
        lag: how many turns ago.
        slots: its slots in all turns.
    """

    source: tuple[int, int] | None
    lag: int
    slots: list[int]


class LoopOperands:
    """Collects what the calls of a loop's body take.

    Args:
        fresh: numbers of slots that nobody uses.
        constants: what is known before the program runs; the numbers of indices in it come to be known inside, too.
        computed: the slot inside of every result of the body.
        depths: for every result that is carried, for how many turns.
        body: the calls of the first turn.
    """

    def __init__(
        self,
        fresh: Iterator[int],
        constants: Constants,
        computed: dict[tuple[int, int], int],
        depths: dict[tuple[int, int], int],
        body: Sequence[Any],
    ) -> None:
        self._fresh, self._known, self._computed, self._depths = fresh, constants, computed, depths
        carried = [(value, lag) for value, depth in depths.items() for lag in range(1, depth + 1)]
        self._entries = {entry: next(fresh) for entry in carried}
        self._initial: dict[Any, int | Aval] = {(value, lag): body[value[0]].avals[value[1]] for value, lag in carried}
        self._constants: dict[int, int] = {}
        self._rows: dict[Rows, int] = {}

    def of(self, operand: Operand) -> int:
        """Return the slot inside for an input of a turn."""
        if operand.source is None:
            if len(set(operand.slots)) == 1:
                return self._constant(operand.slots[0])
            return self._row(Rows(tuple(operand.slots)))
        if not operand.lag:
            return self._computed[operand.source]
        for k in range(operand.lag):
            self._initial[operand.source, operand.lag - k] = operand.slots[k]
        return self._entries[operand.source, operand.lag]

    def read(self, reading: Reading, call: Call, outputs: Sequence[int]) -> Call:
        """Return what is left to do in a turn of an indexing whose parts are put together before the loop."""
        row = self._row(Rows((reading.source,), reading.window, reading.places))
        numbers = [n if isinstance(n, int) else self._known.integer(*n) for n in reading.numbers]
        return Call(reading.rules, [row, *map(self._constant, numbers)], outputs, call.stops, call.casts)

    def _row(self, rows: Rows) -> int:
        return self._rows.setdefault(rows, next(self._fresh))

    def _constant(self, slot: int) -> int:
        inside = self._constants.setdefault(slot, next(self._fresh))
        if slot in self._known.integers:
            self._known.integers[inside] = self._known.integers[slot]
        return inside

    @property
    def arguments(self) -> list[int]:
        """The slots inside: registers' entries, constants, rows."""
        return [*self._entries.values(), *self._constants.values(), *self._rows.values()]

    @property
    def registers(self) -> list[list[int | Aval]]:
        """The slots of the initial entries, by register."""
        return [[self._initial[value, lag] for lag in range(1, depth + 1)] for value, depth in self._depths.items()]

    @property
    def constants(self) -> list[int]:
        """The slots of what is the same in all turns."""
        return list(self._constants)

    @property
    def rows(self) -> list[Rows]:
        """What is another one in each turn; rows of constants are one array."""
        return [self._packed(rows) for rows in self._rows]

    def _packed(self, rows: Rows) -> Rows:
        if rows.window is None:
            return Rows(self._one(rows.slots))
        return rows._replace(places=tuple(map(self._one, rows.places)))

    def _one(self, slots: Sequence[int]) -> Sequence[int]:
        """The slot of a constant that holds several, or these."""
        slot = self._known.packed(slots)
        return slots if slot is None else (slot,)
