"""What a compiled function consists of, in words."""

from collections import Counter
from collections.abc import Iterator, Sequence

from pyadjoint_utils.compiling.merged import MergedProgram
from pyadjoint_utils.compiling.policy import Policy
from pyadjoint_utils.compiling.segments import Segment

_ORDERS = {1: "Values and first derivatives", 2: "Second derivatives"}


def description(policy: Policy, inputs: Sequence[str], outputs: Sequence[str]) -> str:
    """Return the plan of a compiled function as text.

    Args:
        policy: what gives its programs.
        inputs: the controls' shapes and dtypes.
        outputs: the outputs'.
    """
    return "\n".join(_lines(policy, inputs, outputs))


def _lines(policy: Policy, inputs: Sequence[str], outputs: Sequence[str]) -> Iterator[str]:
    yield f"{', '.join(inputs)} -> {', '.join(outputs)}: {len(policy.program.steps)} Blocks of the tape"
    first, second = policy.at(1), policy.at(2)
    for order, program in ((1, first), (2, second)):
        if order == 2 and second is first:
            yield f"{_ORDERS[2]}: the same steps"
            continue
        yield f"{_ORDERS[order]}: {program.summary()}"
        yield from _steps(program)
        crossings = _crossings(program)
        yield "  crossings between engines: " + (", ".join(crossings) if crossings else "none")
    for engine, names in policy.merging.guests.items():
        yield f"NumPy's arithmetic in {engine}: " + ", ".join(f"{count} x {name}" for name, count in names.items())
    for reason, count in policy.merging.reasons.items():
        yield f"Not merged: {count} x {reason}" if count > 1 else f"Not merged: {reason}"
    kept = policy.kept_by_loops(first)
    if kept is not None:
        yield f"Loops keep for the derivative: {kept}"
    elif policy.memory.schedule is not None:
        yield f"No loop: all values are kept, and not as the schedule of the tape says ({policy.memory.schedule})"
    budget = policy.budget
    yield f"Compiling: {budget.spent:.2f} s of {budget.limit:g} s used"


def _steps(program: MergedProgram) -> Iterator[str]:
    for k, step in enumerate(program.steps, 1):
        if isinstance(step, Segment):
            rules = step.compiled
            yield (
                f"  {k}. {rules.engine.name}: {step.name} ({rules.fused.blocks} Blocks, {rules.work.operations} "
                f"operations to compile, {rules.built} maps compiled)"
            )
            for reason, count in Counter(rules.reasons).items():
                yield (
                    f"     not compiled: {count} maps, {reason}" if count > 1 else f"     not compiled: a map, {reason}"
                )
        else:
            yield f"  {k}. {'tape' if step.engine is None else step.engine.name}: {step.name} (a Block by itself)"


def _crossings(program: MergedProgram) -> list[str]:
    """Arrays that one engine hands to another."""
    holds = {slot: program.engines[slot].name for slot in (*program.sources, *program.constants)}
    counts: Counter[str] = Counter()
    for step in program.steps:
        for slot in step.inputs:
            if step.engine is not None and slot in holds and holds[slot] != step.engine.holds:
                counts[f"{holds[slot]} -> {step.engine.holds}"] += 1
        holds |= {
            slot: program.engines[slot].name if step.engine is None else step.engine.holds for slot in step.outputs
        }
    return [f"{pair} ({count})" if count > 1 else pair for pair, count in counts.items()]
