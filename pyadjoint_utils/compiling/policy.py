"""What of a program is compiled, and in how large pieces: as much as the time that compiling may take allows."""

import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from pyadjoint_utils.checkpointing.schedules import Schedule
from pyadjoint_utils.compiling.merged import MergedProgram
from pyadjoint_utils.compiling.merging import Merging
from pyadjoint_utils.compiling.program import Program
from pyadjoint_utils.compiling.segments import Budget
from pyadjoint_utils.engine import Engine

_log = logging.getLogger(__name__)

# How many operations a program may have. Compiling takes more than proportionally long, so that pieces are cheaper.
_LIMITS = (math.inf, 2000.0, 1000.0, 500.0, 250.0, 120.0, 60.0)
_BLOCK_BY_BLOCK = 0.0


class Memory(NamedTuple):
    """What compiled loops keep for the derivative.

    Attributes:
        kept: ``"all"``, ``"step"`` or ``"sqrt"``.
        schedule: the schedule of the tape, if it has one.
        asked: whether the user chose.
    """

    kept: str
    schedule: Schedule | None
    asked: bool

    @classmethod
    def chosen(cls, asked: str | None, schedule: Schedule | None) -> "Memory":
        """Return what the user asked for, or what comes nearest to the tape's schedule."""
        if asked is not None or schedule is None:
            return cls(asked or "all", schedule, asked is not None)
        return cls("step" if schedule.states() >= schedule.steps else "sqrt", schedule, False)

    def __str__(self) -> str:
        if self.schedule is None:
            return self.kept
        reason = "as memory= says, and not" if self.asked else "which comes nearest to"
        return f"{self.kept}, {reason} the schedule of the tape ({self.schedule})"


class Policy:
    """Chooses programs for evaluations and derivatives of first order, and for those of second order.

    Args:
        program: the program of single Blocks.
        engines: the engines that merge Blocks, each with what compiles their programs, None for the engine itself.
        memory: what loops keep for the derivative.
        turns: the least number of repetitions that makes a loop.
        budget: how long compiling may take.
    """

    def __init__(
        self, program: Program, engines: Mapping[Engine, Any], *, memory: Memory, turns: int, budget: Budget
    ) -> None:
        self.program, self.memory, self.budget = program, memory, budget
        self.merging = Merging(program, engines, memory=memory.kept, turns=turns)
        self._chosen: dict[int, MergedProgram] = {}
        self._by_limit: dict[float, MergedProgram] = {}

    def at(self, order: int) -> MergedProgram:
        """Return the program that computes values (0), first (1) or second (2) derivatives."""
        if order not in self._chosen:
            self._chosen[order] = self.at(1) if order == 0 else self._fitting(order)
        return self._chosen[order]

    def to_run(self, order: int) -> MergedProgram:
        """Return the same program, to be compiled on this budget, whoever else has a part of it."""
        program = self.at(order)
        for segment in program.segments:
            segment.compiled.budget = self.budget
        return program

    def give_up(self, order: int) -> None:
        """Evaluate Block by Block what would have to be compiled now."""
        _log.info("The budget of %g s for compiling is used up: derivatives of order %d run Block by Block.",
                  self.budget.limit, order)  # fmt: skip
        self._chosen[order] = self._limited(_BLOCK_BY_BLOCK)

    def _limited(self, limit: float) -> MergedProgram:
        if limit not in self._by_limit:
            self._by_limit[limit] = MergedProgram(self.program, self.merging.merged(limit))
        return self._by_limit[limit]

    def _fitting(self, order: int) -> MergedProgram:
        """The program of the largest pieces that can be compiled in time."""
        # A Hessian action may still be asked for.
        allowed = self.budget.left / 2 if order == 1 else self.budget.left
        for limit in _LIMITS:
            merged = self._limited(limit)
            seconds = sum(rules.seconds(order) for rules in {s.compiled for s in merged.segments})
            if seconds <= allowed:
                break
        else:
            merged, seconds = self._limited(_BLOCK_BY_BLOCK), 0.0
        kept = self.kept_by_loops(merged)
        _log.info("Derivatives of order %d: %s.%s About %.2g s to compile, %g s allowed.",
                  order, merged.summary(), f" Loops keep: {kept}." if kept else "", seconds, allowed)  # fmt: skip
        return merged

    def kept_by_loops(self, program: MergedProgram) -> str | None:
        """Return what the loops of a program keep for the derivative, in words; None where there is no loop."""
        rules = [s.compiled for s in program.segments]
        engines = dict.fromkeys(r.engine for r in rules if r.fused.loops)
        kept = {engine.name: engine.kept_by_loops(self.memory.kept) for engine in engines}
        notes = [f"; in {name}: {note}" for name, note in kept.items() if note]
        return f"{self.memory}{''.join(notes)}" if engines else None
