"""One call of a program with a rule by hand: its value and derivatives in terms of the taped leaves of its arguments."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pyadjoint import stop_annotating

from pyadjoint_utils import trees
from pyadjoint_utils.annotation import annotate_tape
from pyadjoint_utils.errors import ArgumentValueError, NotDifferentiableError, NotLinearError
from pyadjoint_utils.transforming.leaves import array_of, input_of
from pyadjoint_utils.transforming.rule_block import Values
from pyadjoint_utils.transforming.traced import Traced
from pyadjoint_utils.transforming.transformations import jvp, linear_adjoint, vjp
from pyadjoint_utils.values import ndarray

_LEAF, _NOTHING = trees.flatten(0)[1], trees.flatten(None)[1]


class RuledCall:
    """A program with a rule at one call: all but the values of its taped leaves is fixed.

    Args:
        owner: the program with its rule.
        static: the arguments that are not differentiated, by position.
        structure: the containers of the others.
        leaves: what is in them.
        taped: positions of the taped leaves.
    """

    def __init__(
        self, owner: Any, static: dict[int, Any], structure: Any, leaves: list[Any], taped: Sequence[int]
    ) -> None:
        self.owner, self._static, self._structure = owner, static, structure
        self._leaves = [None if k in set(taped) else leaf for k, leaf in enumerate(leaves)]
        self._taped = list(taped)
        self.out_structure: Any = None
        self.likes: list[ndarray] = []  # zeros like the outputs that pass a derivative

    def __str__(self) -> str:
        return self.owner.name

    # What is handed to the user's functions ------------------------------------------------------------------------------

    @property
    def statics(self) -> list[Any]:
        return [self._static[k] for k in sorted(self._static)]

    def primals(self, x: Values) -> tuple[Any, ...]:
        leaves = list(self._leaves)
        for k, value in zip(self._taped, x, strict=True):
            leaves[k] = value
        return trees.unflatten(self._structure, leaves)

    def arguments(self, x: Values) -> list[Any]:
        primals = iter(self.primals(x))
        count = len(self._static) + len(trees.unflatten(self._structure, self._leaves))
        return [self._static[k] if k in self._static else next(primals) for k in range(count)]

    def directions(self, x: Values, dx: Values) -> tuple[Any, ...]:
        leaves = [_zero(leaf) for leaf in self._leaves]
        moving = iter(dx)
        for k, value in zip(self._taped, x, strict=True):
            leaves[k] = next(moving) if value.aval.differentiable else _zero(value)
        return trees.unflatten(self._structure, leaves)

    def cotangents(self, yb: Values) -> Any:
        found = iter(yb)
        return trees.unflatten(self.out_structure, [next(found) if live else None for live in self._live])

    # What comes back -----------------------------------------------------------------------------------------------------

    def outputs(self, result: Any) -> list[ndarray]:
        """The leaves of a result; the first tells containers and shapes."""
        leaves, structure = trees.flatten(result)
        values = [array_of(leaf) for leaf in leaves]
        if self.out_structure is None:
            self.out_structure = structure
            self._live = [y.aval.differentiable for y in values]
            self.likes = [y._ad_init_zero() for y in values if y.aval.differentiable]
        # A result may be an argument, or stand in it twice.
        return [ndarray(y._value, y._engine) for y in values]

    def tangents_of(self, result: Any) -> list[Any]:
        """The tangents that a rule returned, for the outputs that pass a derivative."""
        found = self._up_to(self.out_structure, result, "tangents in the containers of the outputs")
        live = [value for value, live in zip(found, self._live, strict=True) if live]
        return [self._like(value, like) for value, like in zip(live, self.likes, strict=True)]

    def cotangents_of(self, result: Any, x: Values) -> list[Any]:
        """The cotangents that a rule returned, for the taped leaves that pass a derivative."""
        arguments = trees.unflatten(self._structure, self._leaves)
        if not isinstance(result, tuple) or len(result) != len(arguments):
            given = f"{len(result)} entries" if isinstance(result, tuple) else type(result).__name__
            raise ArgumentValueError(
                f"{self.owner.name}: its bwd must return a tuple with one entry for each of the {len(arguments)} "
                f"differentiated argument(s), None for zero; got {given}."
            )
        found: list[Any] = []
        for argument, entry in zip(self.primals(x), result, strict=True):
            leaves, structure = trees.flatten(argument)
            what = "cotangents in the containers of the arguments"
            found += [None] * len(leaves) if entry is None else self._up_to(structure, entry, what)
        pairs = [(found[k], v) for k, v in zip(self._taped, x, strict=True) if v.aval.differentiable]
        return [self._like(value, like) for value, like in pairs]

    def _up_to(self, structure: Any, tree: Any, what: str) -> list[Any]:
        try:
            found = structure.flatten_up_to(tree)
        except (ValueError, TypeError):
            found = None
        if found is None or any(trees.flatten(item)[1] not in (_LEAF, _NOTHING) for item in found):
            raise ArgumentValueError(
                f"{self.owner.name}: its rule must return {what}, {structure}; got {trees.flatten(tree)[1]}."
            )
        return found

    def _like(self, value: Any, like: ndarray) -> Any:
        if value is None:
            return like._ad_init_zero()
        value = array_of(value)
        if value.shape != like.shape:
            raise ArgumentValueError(
                f"{self.owner.name}: its rule returned a derivative of shape {value.shape} where {like.shape} belongs."
            )
        if value.dtype.kind == "c" and like.dtype.kind != "c":
            return np.real(value)
        return value

    # Derivatives ---------------------------------------------------------------------------------------------------------

    def run(self, program: Callable[[Values], list[Any]], *given: Values) -> list[ndarray]:
        """Run a rule; where annotation is on, what it loses on its way is noticed."""
        leaves = [value for values in given for value in values]
        if not annotate_tape():
            return [array_of(value) for value in program(leaves)]
        inputs = [input_of(leaf, "an argument", self.owner.name) for leaf in leaves]
        return Traced(lambda x: (program(x), None), leaves, inputs, f"the rule of {self.owner.name}").handed()[0]

    def split(self, z: Values, x: Values) -> tuple[Values, Values]:
        return z[: len(x)], z[len(x) :]

    def second(self, x: Values, dx: Values, yb: Values, dyb: Values) -> list[ndarray]:
        floating = [k for k, v in enumerate(x) if v.aval.differentiable]

        def program(*z: Any) -> tuple[Any, ...]:
            moved = list(x)
            for k, value in zip(floating, z, strict=False):
                moved[k] = value
            return tuple(self.pull(moved, z[len(floating) :]))

        return list(jvp(program, (*[x[k] for k in floating], *yb), (*dx, *dyb))[1])

    def value(self, x: Values) -> list[ndarray]:
        raise NotImplementedError

    def tangents(self, x: Values, dx: Values) -> list[ndarray]:
        return self.run(lambda z: self.push(*self.split(z, x)), x, dx)

    def adjoints(self, x: Values, yb: Values) -> list[ndarray]:
        return self.run(lambda z: self.pull(*self.split(z, x)), x, yb)

    def push(self, x: Values, dx: Values) -> list[Any]:
        raise NotImplementedError

    def pull(self, x: Values, yb: Values) -> list[Any]:
        raise NotImplementedError


def _zero(leaf: Any) -> Any:
    """The tangent of a leaf that does not move; None for what cannot."""
    return leaf._ad_init_zero() if isinstance(leaf, ndarray) and leaf.aval.differentiable else None


class ForwardCall(RuledCall):
    """A program with a rule for tangents at one call."""

    def value(self, x: Values) -> list[ndarray]:
        # As in JAX: the tangent belongs to the rule's own value, whatever the program alone returns.
        return self.outputs(self._rule(x, self._zeros(x))[0])

    def _rule(self, x: Values, dx: Values) -> tuple[Any, Any]:
        result = self.owner.jvp(*self.statics, self.primals(x), self.directions(x, dx))
        if not isinstance(result, tuple) or len(result) != 2:
            raise ArgumentValueError(
                f"{self.owner.name}: its jvp must return a pair of value and tangent; got {type(result).__name__}."
            )
        return result

    def _zeros(self, x: Values) -> list[ndarray]:
        return [v._ad_init_zero() for v in x if v.aval.differentiable]

    def push(self, x: Values, dx: Values) -> list[Any]:
        return self.tangents_of(self._rule(x, dx)[1])

    def pull(self, x: Values, yb: Values) -> list[Any]:
        def push(*dx: Any) -> tuple[Any, ...]:
            return tuple(self.push(x, dx))

        zeros = self._zeros(x)
        if not self.owner.linear:
            self._check_linear(push, zeros)
            self.owner.linear = True
        return list(vjp(push, *zeros)[1](tuple(yb)))

    def _check_linear(self, push: Callable[..., Any], zeros: Values) -> None:
        try:
            with stop_annotating():
                linear_adjoint(push, *zeros)
        except NotLinearError as error:
            raise NotDifferentiableError(
                f"{self.owner.name}: the tangent that its jvp returns must be linear in the tangents that it is given, and "
                "it is not. Its transpose, which adjoints are, does not exist."
            ) from error


class ReverseCall(RuledCall):
    """A program with a rule for cotangents at one call."""

    _kept: tuple[list[Any], Any] | None = None  # the point of the last value, and the residuals there

    def value(self, x: Values) -> list[ndarray]:
        value, residuals = self._forward(x)
        self._kept = [v._value for v in x], residuals
        return self.outputs(value)

    def _forward(self, x: Values) -> tuple[Any, Any]:
        result = self.owner.fwd(*self.arguments(x))
        if not isinstance(result, tuple) or len(result) != 2:
            raise ArgumentValueError(
                f"{self.owner.name}: its fwd must return a pair of value and residuals; got {type(result).__name__}."
            )
        return result

    def _residuals(self, x: Values) -> Any:
        if not annotate_tape() and self._kept is not None:
            point, residuals = self._kept
            if all(a is v._value for a, v in zip(point, x, strict=True)):
                return residuals
        return self._forward(x)[1]

    def pull(self, x: Values, yb: Values) -> list[Any]:
        result = self.owner.bwd(*self.statics, self._residuals(x), self.cotangents(yb))
        return self.cotangents_of(result, x)

    def push(self, x: Values, dx: Values) -> list[Any]:
        """The adjoint of the adjoint, which is linear in the cotangent."""

        def pull(*yb: Any) -> tuple[Any, ...]:
            return tuple(self.pull(x, yb))

        return list(vjp(pull, *self.likes)[1](tuple(dx)))
