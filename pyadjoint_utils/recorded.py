"""What variables were when the program ran, also after evaluations have moved them."""

from collections.abc import Iterable, Sequence
from typing import Any

from pyadjoint import Tape
from pyadjoint.tape import stop_annotating

from pyadjoint_utils.errors import StaleTapeError
from pyadjoint_utils.tapes import STALE, state_of
from pyadjoint_utils.values import ndarray
from pyadjoint_utils.variable import Variable, is_lost, recorded_value


def recorded_values(tape: Tape, variables: Sequence[Any]) -> list[Any]:
    """Return the recorded values of variables; the Blocks that computed what is lost run again.

    Args:
        tape: the tape that the variables are on; it is stale afterwards if a Block had to run.
        variables: block variables.

    Raises:
        StaleTapeError: a value is lost that no Block of this tape computes.
    """
    if any(is_lost(bv) for bv in variables):
        stand_at_the_record(tape, variables)
        return [bv._checkpoint for bv in variables]
    return [recorded_value(bv) for bv in variables]


def stand_at_the_record(tape: Tape, variables: Iterable[Any]) -> None:
    """Give variables the values of the record as their current ones."""
    variables = list(variables)
    if not any(getattr(bv, "moved", False) for bv in variables):
        return
    blocks = _blocks_for(tape, variables)
    state_of(tape).owner = STALE
    for bv in (*variables, *(bv for block in blocks for bv in block.get_dependencies())):
        if not is_lost(bv):
            bv._checkpoint = recorded_value(bv)
    with stop_annotating():
        for block in blocks:
            block.recompute()


def taped_value(bv: Any) -> Any:
    """Return a value with which a variable that stands at the record can be recorded again."""
    if type(bv) is not Variable:
        return bv.output
    bv.check_thread()
    value = ndarray(bv._checkpoint, bv.engine)
    value.block_variable = bv
    return value


def _blocks_for(tape: Tape, variables: Iterable[Any]) -> list[Any]:
    """The Blocks that compute the recorded values that are lost, in order."""
    lost = {bv for bv in variables if is_lost(bv)}
    blocks = []
    for block in reversed(tape.get_blocks()):
        if not lost.isdisjoint(block.get_outputs()):
            lost.difference_update(block.get_outputs())
            lost.update(bv for bv in block.get_dependencies() if is_lost(bv))
            blocks.append(block)
    if lost:
        raise StaleTapeError(
            f"The recorded value of a variable, {next(iter(lost)).output!r}, was overwritten by an evaluation of another "
            "tape, on which it was computed. Make a value of this tape of it before: array(x.numpy())."
        )
    return blocks[::-1]
