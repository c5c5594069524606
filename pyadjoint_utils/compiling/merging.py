"""Runs of Blocks as programs of one engine."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.compiling.fused import Call, Fused
from pyadjoint_utils.compiling.grouping import Grouping
from pyadjoint_utils.compiling.program import Program, Step
from pyadjoint_utils.compiling.repetitions import Rolling, repetitions
from pyadjoint_utils.compiling.segments import Constants, Segment, SegmentRules, number_key
from pyadjoint_utils.engine import Aval, Engine
from pyadjoint_utils.registry import convert
from pyadjoint_utils.variable import entered


class Run(NamedTuple):
    """Steps that follow each other in one engine, as calls; no engine for steps that run by themselves."""

    engine: Engine | None
    steps: list[Step]
    calls: list[Any]


class Merging:
    """Turns a program of Blocks into one of segments.

    Args:
        program: the program.
        engines: the engines that merge Blocks, each with what compiles their programs, None for the engine itself.
        memory: what loops keep for the derivative.
        turns: the least number of repetitions that makes a loop.
    """

    def __init__(self, program: Program, engines: Mapping[Engine, Any], *, memory: str, turns: int) -> None:
        self.program, self._compilers = program, engines
        self._grouping = Grouping(program, list(engines))
        self.memory, self._turns = memory, turns
        self._fresh = itertools.count(len(program.avals))
        self._varied = _varied(program)
        self._constants: dict[Engine, Constants] = {}
        self._boundaries: dict[tuple[Engine, int], Any] = {}

    @cached_property
    def runs(self) -> list[Run]:
        """The runs of steps, with loops in their calls."""
        result: list[Run] = []
        needed = set(self.program.outputs)
        for engine, steps in reversed(list(self._grouping.groups())):
            calls: list[Any] = []
            if engine is not None and (len(steps) > 1 or not isinstance(steps[0].block, EngineBlock)):
                calls = [self._call(step, engine) for step in steps]
                if engine.loops:
                    rolling = Rolling(self._fresh, self._constants[engine], turns=self._turns, memory=self.memory)
                    calls = rolling.rolled(calls, needed & {slot for step in steps for slot in step.outputs})
            result.append(Run(engine if calls else None, steps, calls))
            needed.update(slot for step in steps for slot in step.inputs)
        return result[::-1]

    @cached_property
    def guests(self) -> dict[str, Counter[str]]:
        """For every engine, what it computes although NumPy recorded it."""
        counts: dict[str, Counter[str]] = {}
        for engine, steps, _ in self.runs:
            for step in steps:
                if engine is not None and isinstance(step.block, EngineBlock) and step.engine is not engine:
                    counts.setdefault(engine.name, Counter())[step.block.rules.name] += 1
        return counts

    @property
    def reasons(self) -> dict[str, int]:
        """Why steps are in no program, and how many each time."""
        counts: dict[str, int] = {}
        for i, reason in self._grouping.reasons.items():
            text = f"{self.program.steps[i].name}: {reason}"
            counts[text] = counts.get(text, 0) + 1
        return counts

    def merged(self, limit: float) -> list[Step]:
        """Return the steps, with programs of at most so many operations, which only a single loop may exceed."""
        result: list[Step] = []
        needed = set(self.program.outputs)
        for run in reversed(self.runs):
            if run.engine is None or limit < 1:
                result += reversed(run.steps)
            else:
                for calls in reversed(list(_pieces(run.calls, limit))):
                    result.append(self._segment(run.engine, calls, needed))
                    needed.update(slot for call in calls for slot in call.inputs)
            needed.update(slot for step in run.steps for slot in step.inputs)
        return result[::-1]

    def _segment(self, engine: Engine, calls: Sequence[Any], needed: set[int]) -> Step:
        constants = self._constants[engine]
        taken: dict[int, None] = {}
        produced: dict[int, None] = {}
        for call in calls:
            taken.update(dict.fromkeys(slot for slot in call.inputs if slot not in produced))
            produced.update(dict.fromkeys(call.outputs))
        outputs = [slot for slot in produced if slot in needed]
        inputs = [slot for slot in taken if slot not in constants.arrays]
        kept = [slot for slot in taken if slot in constants.arrays]
        active = [i for i, slot in enumerate(inputs) if slot in self._varied]
        avals = [*[self._aval(slot) for slot in inputs], *[constants.aval(slot) for slot in kept]]
        values = tuple([constants.array(slot) for slot in kept])
        compiler = self._compilers[engine]
        # A compiler takes numbers that are no arrays for a part of the program.
        numbers = [number_key(v) for v in values if type(v) not in engine.array_types] if compiler else []
        rules = _segment_rules(
            (engine, compiler, *numbers),
            Fused(calls, [*inputs, *kept], outputs),
            tuple(avals),
            len(inputs),
            tuple(active),
            tuple([self._aval(slot) for slot in outputs]),
        )
        differentiable = [k for k, slot in enumerate(outputs) if slot in self._varied]
        return Segment(rules, inputs, outputs, values, differentiable)

    def _aval(self, slot: int) -> Aval:
        aval = self.program.avals[slot]
        assert aval is not None  # only values with arrays meet an engine
        return aval

    def _call(self, step: Step, engine: Engine) -> Call:
        lowered = step.lowered(engine, self.program.constants)
        assert lowered is not None  # the engine can run it
        rules, constants = lowered.rules, self._constants.setdefault(engine, Constants(engine, self._fresh))
        inputs, stops, casts = [], [], []
        for i, (slot, aval) in enumerate(zip(step.inputs, rules.inputs[: rules.dependencies], strict=False)):
            known = self._aval(slot)
            if known.dtype != aval.dtype and aval.differentiable:
                casts.append(i)
            if i not in step.active and slot in self._varied and known.differentiable:
                stops.append(i)
            inputs.append(constants.slot(self._boundary(slot, engine)) if slot in self.program.constants else slot)
        inputs += [*map(constants.slot, lowered.constants), *map(constants.integer, lowered.numbers)]
        return Call(rules, inputs, step.outputs, stops, casts)

    def _boundary(self, slot: int, engine: Engine) -> Any:
        """A recorded value as an array of an engine; converted once."""
        key = engine, slot
        if key not in self._boundaries:
            value, aval = self.program.constants[slot], self._aval(slot)
            self._boundaries[key] = entered(value, aval, engine) if aval.differentiable else convert(value, engine)
        return self._boundaries[key]


def _pieces(calls: Sequence[Any], limit: float) -> Iterator[Sequence[Any]]:
    """Cut calls where the limit of operations is reached; where they repeat, at equal places, so that pieces are equal."""
    if sum(call.work.operations for call in calls) > limit:
        places, start, last, size = _places(calls), 0, 0, 0
        for k, call in enumerate(calls):
            last = k if k in places else last
            size += call.work.operations
            if size > limit and k > start:
                cut = last if last > start else k
                yield calls[start:cut]
                start, size = cut, sum(c.work.operations for c in calls[cut : k + 1])
        calls = calls[start:]
    yield calls


def _places(calls: Sequence[Any]) -> set[int]:
    found = repetitions(calls, 2)
    if not found:
        return set(range(len(calls)))
    first, period, turns = found[0]
    inside = range(first, first + period * turns)
    return {k for k in range(len(calls)) if k not in inside or (k - first) % period == 0}


def _segment_rules(how: tuple[Any, ...], fused: Fused, *signature: Any) -> SegmentRules:
    """The rules of a fused function, prepared once for the same functions in the same places."""
    # They are kept where they live as long as the functions do; arithmetic lives for ever.
    members = [call.rules for call in fused.members()]
    holder = next((rules for rules in members if not rules.lasting), members[0])
    key = (how, fused.key, *signature)
    rules = holder.programs.get(key)
    if rules is None:
        rules = holder.programs[key] = SegmentRules(how[0], fused, *signature, compiler=how[1])
    return rules


def _varied(program: Program) -> set[int]:
    """The slots that depend on the controls through derivatives."""
    varied = set(program.sources[: program.n_controls])
    for step in program.steps:
        if any(step.inputs[i] in varied for i in step.active):
            varied.update(step.outputs[k] for k in step.differentiable)
    return varied
