"""The derivative of a program at a point, as functions of directions and of cotangents."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pyadjoint_utils import trees
from pyadjoint_utils.engine import Aval
from pyadjoint_utils.errors import ArgumentTypeError
from pyadjoint_utils.transforming.calls import Call
from pyadjoint_utils.transforming.leaves import FLOAT0, Seeds, without_derivative
from pyadjoint_utils.transforming.sweeps import adjoints, tangents
from pyadjoint_utils.transforming.traced import Traced
from pyadjoint_utils.values import ndarray

_LISTED = 5  # differences that a message lists


class _Map:
    """A linear map of a program at the point where it ran.

    Args:
        call: the call of the program.
        program: its run.
    """

    def __init__(self, call: Call, program: Traced) -> None:
        self._program, self._structure = program, call.structure

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()} map of {self._program!r}>"


class Tangent(_Map):
    """The derivative of a program, ``J``, applied to directions of its arguments."""

    def __call__(self, *tangents: Any) -> Any:
        """Return ``J`` times a direction, given as one value for each argument, in the containers of the result."""
        return self._applied(tangents, many=False)

    def batched(self, *tangents: Any) -> Any:
        """Return ``J`` times many directions in one sweep; all arrays have a leading axis more, one entry for each."""
        return self._applied(tangents, many=True)

    def _applied(self, given: tuple[Any, ...], *, many: bool) -> Any:
        program = self._program
        directions = directions_of(program, self._structure, given, many=many)
        return outputs_of(program, tangents(program, directions), directions.size)


class Cotangent(_Map):
    """The adjoint of the derivative of a program, ``J^H`` under ``Re<a, b>``, applied to cotangents of its result."""

    def __call__(self, cotangent: Any) -> tuple[Any, ...]:
        """Return ``J^H`` times a cotangent in the containers of the result: a tuple with one value for each argument."""
        return self._applied(cotangent, many=False)

    def batched(self, cotangent: Any) -> tuple[Any, ...]:
        """Return ``J^H`` times many cotangents in one sweep; all arrays have a leading axis more, one entry for each."""
        return self._applied(cotangent, many=True)

    def _applied(self, given: Any, *, many: bool) -> tuple[Any, ...]:
        program = self._program
        values = in_containers(program.name, "cotangent", given, "result", program.structure)
        paths = trees.paths(given, "cotangent")
        chosen, names = [values[k] for k in program.live], [paths[k] for k in program.live]
        seeds = Seeds(chosen, program.outs, names, program.name, many=many)
        return trees.unflatten(self._structure, inputs_of(program, adjoints(program, seeds), seeds.size))


def directions_of(program: Traced, structure: Any, given: Sequence[Any], *, many: bool = False) -> Seeds:
    """Return directions, one for each argument of a program, as those of its active inputs."""
    values = in_containers(program.name, "tangents", tuple(given), "arguments", structure)
    paths = trees.paths(tuple(given), "tangents")
    for k, (value, x) in enumerate(zip(values, program.inputs, strict=True)):
        if k not in program.active and getattr(value, "dtype", None) != FLOAT0 and np.any(np.asarray(value)):
            raise ArgumentTypeError(
                f"{program.name}: {paths[k]} belongs to an argument that cannot vary, {x.aval}. Give zeros there, or make "
                "it a float."
            )
    chosen, names = [values[k] for k in program.active], [paths[k] for k in program.active]
    return Seeds(chosen, program.ins, names, program.name, many=many)


def in_containers(name: str, what: str, tree: Any, owner: str, structure: Any) -> list[Any]:
    """Return the leaves of directions or cotangents.

    Args:
        name: the transformation, for messages.
        what: how messages call the tree.
        tree: the directions or cotangents.
        owner: how messages call what they belong to.
        structure: its containers.

    Raises:
        ArgumentTypeError: they are in other containers.
    """
    leaves, found = trees.flatten(tree)
    wrong = trees.mismatches(found, structure, what)
    if wrong:
        listed = ", ".join(wrong[:_LISTED]) + (f" and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else "")
        raise ArgumentTypeError(
            f"{name}: {what} must be in the containers of the {owner}, a value for each of theirs: {listed}. Give zeros "
            "for what is to stay as it is."
        )
    return leaves


def inputs_of(program: Traced, found: Sequence[Any], size: int | None = None) -> list[Any]:
    """Return derivatives by all inputs from those by the active ones."""
    known = dict(zip(program.active, found, strict=True))
    return [known[k] if k in known else without_derivative(x, size) for k, x in enumerate(program.inputs)]


def outputs_of(program: Traced, found: Sequence[Any], size: int | None = None) -> Any:
    """Return tangents of all outputs, in their containers, from those of the live ones."""
    known = dict(zip(program.live, found, strict=True))
    leaves = [known[k] if k in known else _constant(aval, size) for k, aval in enumerate(program.avals)]
    return trees.unflatten(program.structure, leaves)


def _constant(aval: Aval, size: int | None) -> Any:
    if not aval.differentiable:
        return without_derivative(aval, size)
    return ndarray(np.zeros(aval.shape if size is None else (size, *aval.shape), aval.dtype))
