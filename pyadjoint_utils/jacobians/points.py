"""Functions of points: arguments and results whose leading axis counts points that do not influence each other."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pyadjoint_utils.engine import Aval
from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError

# Functions of NumPy names that act on each entry by itself, beside the ufuncs.
_ELEMENTWISE = {"where", "clip", "round", "astype", "real", "imag"}
_LINEAR = {
    *(
        "add",
        "subtract",
        "negative",
        "positive",
        "conj",
        "real",
        "imag",
        "astype",
        "sum",
        "mean",
        "cumsum",
        "trace",
        "diff",
    ),
    *("getitem", "reshape", "ravel", "transpose", "swapaxes", "moveaxis", "squeeze", "expand_dims", "broadcast_to"),
    *("flip", "roll", "repeat", "tile", "concatenate", "stack", "hstack", "vstack", "diagonal"),
}
_BILINEAR = {"multiply", "matmul", "dot"}


class Nature(NamedTuple):
    """What is known of a function by its NumPy name.

    Attributes:
        elementwise: it acts on each entry of its broadcast arguments by itself.
        linear: it is linear, over the real numbers, in all its arguments together.
        bilinear: it is linear in each of its arguments.
    """

    elementwise: bool = False
    linear: bool = False
    bilinear: bool = False


UNKNOWN = Nature()


class Points(NamedTuple):
    """Between which inputs and outputs of a function the Jacobian is block-diagonal.

    Attributes:
        inputs: a mark for each input that is pointwise, dependencies first.
        outputs: a mark for each output that is.
        paths: what messages call the inputs; empty where nobody had to declare anything.
    """

    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...] = ()
    paths: tuple[str, ...] = ()

    @property
    def declared(self) -> bool:
        """Whether it is the user's word, and not a fact about a function of NumPy."""
        return bool(self.paths)

    def tangent(self, ins: Sequence[int], outs: Sequence[int], others: Sequence[int]) -> "Points":
        """What holds for the map ``(*x, *dx, *others) -> dy``."""
        names = [f"the tangent of {self._path(i)}" for i in ins]
        return self._derived(ins, [self.inputs[i] for i in ins], names, others, [self.outputs[k] for k in outs])

    def adjoint(self, ins: Sequence[int], outs: Sequence[int], others: Sequence[int]) -> "Points | None":
        """What holds for the map ``(*x, *yb, *others) -> xb``."""
        seeds = [self.outputs[k] for k in outs]
        # The cotangent of what is no field of points reaches all points, by a derivative that may depend on all of them.
        if not all(seeds):
            return None
        names = [f"the cotangent of output {k}" for k in outs]
        return self._derived(ins, seeds, names, others, [self.inputs[i] for i in ins])

    def _derived(
        self, ins: Sequence[int], seeds: list[bool], names: list[str], others: Sequence[int], outputs: list[bool]
    ) -> "Points":
        x, rest = [self.inputs[i] for i in ins], [self.inputs[i] for i in others]
        paths = [*map(self._path, ins), *names, *map(self._path, others)] if self.paths else []
        return Points((*x, *seeds, *rest), tuple(outputs), tuple(paths))

    def _path(self, i: int) -> str:
        return self.paths[i] if self.paths else ""


def nature_of(name: str) -> Nature:
    """What is known of a function by its NumPy name."""
    found = getattr(np, name, None)
    elementwise = name in _ELEMENTWISE or (isinstance(found, np.ufunc) and found.signature is None)
    return Nature(elementwise, name in _LINEAR, name in _BILINEAR)


def points_of_elementwise(inputs: Sequence[Aval], outputs: Sequence[Aval]) -> Points | None:
    """What holds for a function that acts on each entry: what is broadcast along the first axis acts on all points."""
    shape, *others = {y.shape for y in outputs}
    if others or not shape:
        return None
    marks = [len(x.shape) == len(shape) and x.shape[0] == shape[0] for x in inputs]
    return Points(tuple(marks), (True,) * len(outputs))


def declared_points(
    name: str, marks: Sequence[bool], avals: Sequence[Aval], paths: Sequence[str], *, every: bool
) -> Points | None:
    """Check the pointwise arguments of a call.

    Args:
        name: the function's name.
        marks: whether each input was declared pointwise.
        avals: shape and dtype of each input.
        paths: what messages call each input.
        every: whether all arguments were declared at once, which does not mean numbers: they have no axis.

    Returns:
        The inputs' marks; None if no input is pointwise.

    Raises:
        ArgumentValueError: the inputs have no axis of points, or axes of different lengths.
    """
    marked = [i for i, mark in enumerate(marks) if mark and (avals[i].shape or not every)]
    if not marked:
        return None
    first = marked[0]
    for i in marked:
        if not avals[i].shape:
            raise ArgumentValueError(
                f"{name}: {paths[i]} is declared pointwise, but {avals[i]} has no axis of points. Declare parameters, "
                "which act on all points, with False: pointwise=(True, False)."
            )
        if avals[i].shape[0] != avals[first].shape[0]:
            raise ArgumentValueError(
                f"{name}: pointwise arguments have a first axis of as many points; {paths[first]} is {avals[first]} and "
                f"{paths[i]} is {avals[i]}. Declare parameters, which act on all points, with False: "
                "pointwise=(True, False)."
            )
    return Points(tuple([i in marked for i in range(len(avals))]), (), tuple(paths))


def with_outputs(
    name: str,
    points: Points,
    declared: Any,
    items: Sequence[Sequence[int]],
    inputs: Sequence[Aval],
    outputs: Sequence[Aval],
) -> Points:
    """Add the outputs' marks, once their shapes are known.

    Args:
        name: the function's name.
        points: the inputs' marks.
        declared: the option ``out_pointwise``.
        items: the positions of the outputs in each item of the function's result.
        inputs: shape and dtype of each input.
        outputs: shape and dtype of each output.

    Raises:
        ArgumentValueError: an output has another number of points, or the option another number of entries.
    """
    flags = [declared is not False] * len(items) if isinstance(declared, (bool, type(None))) else list(declared)
    if len(flags) != len(items):
        raise ArgumentValueError(
            f"{name}: out_pointwise has {len(flags)} entries, but the function returns {len(items)} item(s)."
        )
    marks = [False] * len(outputs)
    first = points.inputs.index(True)
    count = inputs[first].shape[:1]
    for item, flag in zip(items, flags, strict=True):
        for k in item:
            marks[k] = flag
            if flag and outputs[k].shape[:1] != count:
                raise ArgumentValueError(
                    f"{name}: output {k} is {outputs[k]}, but {points.paths[first]} is {inputs[first]}: the result of a "
                    f"pointwise function has {count[0]} points along its first axis. Declare other outputs with "
                    "out_pointwise=(True, False), or the function with pointwise=False."
                )
    return points._replace(outputs=tuple(marks))


def check_marks(value: Any, option: str, name: str) -> Any:
    """Return a bool, None, or a tuple of bools."""
    if isinstance(value, (bool, np.bool_, type(None))):
        return None if value is None else bool(value)
    marks = tuple(value) if isinstance(value, (tuple, list, np.ndarray)) else (None,)
    if not all(isinstance(mark, (bool, np.bool_)) for mark in marks):
        raise ArgumentTypeError(
            f"{name}: {option} takes a bool, or a bool for each {'output' if 'out' in option else 'argument'}; "
            f"got {value!r}."
        )
    return tuple([bool(mark) for mark in marks])
