"""Rules by hand as programs: differentiated on a tape of their own, with a look at whether anything got lost."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pyadjoint.overloaded_type import OverloadedType

from pyadjoint_utils.black_boxes.differences import central, precision, random_like
from pyadjoint_utils.control import Control
from pyadjoint_utils.errors import NotDifferentiableError
from pyadjoint_utils.reduced import ReducedFunction
from pyadjoint_utils.registry import owner_of
from pyadjoint_utils.tapes import push_tape, recording_on
from pyadjoint_utils.values import array
from pyadjoint_utils.variable import bare

Program = Callable[[Sequence[Any]], Sequence[Any]]


def as_numpy(values: Sequence[Any]) -> list[np.ndarray]:
    """Return what rules return, arrays of any engine and numbers, as NumPy arrays."""
    return [_one(bare(value)) for value in values]


def _one(value: Any) -> np.ndarray:
    owner = owner_of(value)
    return np.asarray(value) if owner is None else owner.to_numpy(value)


def derivative_of_program(program: Program, at: Sequence[Any], direction: Sequence[Any]) -> list[np.ndarray]:
    """Return the derivative of a program of overloaded functions along a direction; what is not taped is constant."""
    with push_tape() as tape:
        with recording_on(tape):
            inputs: list[Any] = [array(v) for v in at]
            outputs = program(inputs)
            controls = [Control(v) for v in inputs]
        known = {bv for block in tape.get_blocks() for bv in block.get_outputs()} | {c.block_variable for c in controls}
        results: list[Any] = [np.zeros(np.shape(value)) for value in as_numpy(outputs)]
        for k, y in enumerate(outputs):
            if isinstance(y, OverloadedType) and y.block_variable in known:
                results[k] = ReducedFunction(y, controls, tape).jac_action([array(d) for d in direction])
    return as_numpy(results)


def check_program(program: Program, at: Sequence[np.ndarray], name: str) -> None:
    """Raise if differences of a program give another derivative: then it takes values off the tape somewhere."""
    direction = random_like(at)
    eps = max(precision(x.dtype) for x in at)
    expected = central(lambda z: as_numpy(program(z)), at, direction, eps, None, name)
    if not expected.agrees(derivative_of_program(program, at, direction), eps):
        raise NotDifferentiableError(
            "differences of it give another derivative, so that it takes values off the tape (numpy.asarray, float, "
            "SciPy, a loop that fills an array)."
        )
