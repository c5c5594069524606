"""Calls that repeat, as one loop of the engine.

    y = step(y, p, f[0]); y = step(y, p, f[1]); ...        ->        loop(body, carry=y, constants=p, rows=f)

A run of calls with a period is cut into turns, and every operand of a turn is shown to be one of four things: computed in
the same turn, computed a fixed number of turns ago (*carried*), the same in all turns (*constant*), or another one in each
turn (a *row*). What later calls need of a turn is the last carry, or is *collected*.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from pyadjoint_utils.compiling.fused import Call, Fused, Row, Values
from pyadjoint_utils.compiling.windows import Picks, Window
from pyadjoint_utils.engine import Arrays, Aval, Work

MEMORY = ("all", "step", "sqrt")


class Rows(NamedTuple):
    """An operand of which every turn takes another part.

    Attributes:
        slots: those of all turns, or the one of an array that holds them.
        window: what of that array turns read, if it is not one row each.
        places: of picks, the slots of their places in all turns, axis by axis, or the one of an array that holds them.
    """

    slots: Sequence[int]
    window: Window | Picks | None = None
    places: tuple[Sequence[int], ...] = ()

    @property
    def inputs(self) -> list[int]:
        """All slots."""
        return [slot for group in (self.slots, *self.places) for slot in group]

    def of(self, values: Values) -> Any:
        """Return the parts along a leading axis."""
        if isinstance(self.window, Picks):
            return self.window.rows(values, values.one(self.slots[0]), [_stacked(values, p) for p in self.places])
        if self.window is not None:
            return self.window.rows(values, values.one(self.slots[0]))
        return _stacked(values, self.slots)


def _stacked(values: Values, slots: Sequence[int]) -> Any:
    return values.one(slots[0]) if len(slots) == 1 else values.stacked(slots)


class Loop:
    """A fused function that runs many times, as a call of another one.

    Args:
        body: takes the registers' entries, the constants and one of each rows; returns a new entry for every register
            and what is collected.
        registers: what is carried: the slots of the initial entries, one turn ago first; where an entry is never read,
            its aval.
        constants: slots.
        rows: for each, the slots of all turns; or the one slot of a constant that holds them stacked; or that of an array
            and the window that turns read of it.
        last: slots for the last entries of every register, None where nobody needs one.
        collected: for each, the slots for all turns, None where nobody needs one.
        length: how many turns.
        memory: what is kept for the derivative: ``"all"``, the state at every ``"step"``, or ``"sqrt"`` of them.
    """

    def __init__(
        self,
        body: Fused,
        registers: Sequence[Sequence[int | Aval]],
        constants: Sequence[int],
        rows: Sequence["Rows"],
        last: Sequence[Sequence[int | None]],
        collected: Sequence[Sequence[int | None]],
        length: int,
        memory: str = "all",
    ) -> None:
        self.body, self.length, self.memory = body, length, memory
        self._registers, self._constants, self._rows = registers, constants, rows
        self._last, self._collected = last, collected
        inputs: list[Any] = [*constants, *(slot for group in (*registers, *[r.inputs for r in rows]) for slot in group)]
        outputs = [slot for group in (*last, *collected) for slot in group]
        self.inputs = tuple([slot for slot in inputs if isinstance(slot, int)])
        self.outputs = tuple([slot for slot in outputs if slot is not None])
        self.key: Hashable = (
            *(body.key, length, memory, len(constants)),
            tuple([slot if isinstance(slot, Aval) else None for slot in inputs]),
            tuple([len(group) for group in registers]),
            tuple([(len(r.slots), r.window, tuple(map(len, r.places))) for r in rows]),
            tuple([slot is None for slot in outputs]),
        )

    @property
    def blocks(self) -> int:
        """How many Blocks of the tape it stands for."""
        return self.body.blocks * self.length

    def members(self) -> list[Call]:
        """Return the calls of the body."""
        return self.body.members()

    @property
    def loops(self) -> int:
        """This loop and those in its body."""
        return 1 + self.body.loops

    @property
    def work(self) -> Work:
        """What there is to compile: one turn."""
        return self.body.work

    def __str__(self) -> str:
        return f"loop of {self.length} x ({self.body})"

    def run(self, values: Values) -> None:
        """Compute the outputs."""
        engine, function = values.engine, self.body.function(values.engine)
        depths = [len(group) for group in self._registers]

        def turn(carry: Arrays, constants: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
            results = function((*carry, *constants, *row))
            return _shifted(carry, results[: len(depths)], depths), results[len(depths) :]

        initial = tuple(
            [
                engine.zeros(slot) if isinstance(slot, Aval) else values.one(slot)
                for group in self._registers
                for slot in group
            ]
        )
        constants = tuple([values.one(slot) for slot in self._constants])
        rows = tuple([r.of(values) for r in self._rows])
        last, collected = self._turns(values, turn, initial, constants, rows)
        for slot, value in zip([slot for group in self._last for slot in group], last, strict=True):
            if slot is not None:
                values[slot] = value
        for group, stack in zip(self._collected, collected, strict=True):
            values.update({slot: Row(stack, k) for k, slot in enumerate(group) if slot is not None})

    def _turns(
        self, values: Values, turn: Any, carry: Arrays, constants: Arrays, rows: Arrays
    ) -> tuple[Arrays, Arrays]:
        engine, length = values.engine, self.length
        inner = math.isqrt(length)
        if self.memory != "sqrt" or inner < 2:
            return engine.loop(turn, carry, constants, rows, length, remake=self.memory != "all")
        outer = length // inner
        whole = outer * inner

        def chunk(carry: Arrays, constants: Arrays, rows: Arrays) -> tuple[Arrays, Arrays]:
            return engine.loop(turn, carry, constants, rows, inner)

        chunked = tuple([values.folded(values.part(r, slice(0, whole)), outer, inner) for r in rows])
        carry, collected = engine.loop(chunk, carry, constants, chunked, outer, remake=True)
        collected = tuple([values.unfolded(y, whole) for y in collected])
        if whole == length:
            return carry, collected
        rest = tuple([values.part(r, slice(whole, length)) for r in rows])
        carry, others = engine.loop(turn, carry, constants, rest, length - whole)
        return carry, tuple([values.joined(a, b) for a, b in zip(collected, others, strict=True)])


def _shifted(carry: Arrays, new: Arrays, depths: Sequence[int]) -> Arrays:
    """Put a new entry in front of every register and drop its oldest one."""
    result: list[Any] = []
    position = 0
    for value, depth in zip(new, depths, strict=True):
        result += [value, *carry[position : position + depth - 1]]
        position += depth
    return tuple(result)
