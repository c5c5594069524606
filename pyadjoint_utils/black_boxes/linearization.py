"""A black box at a point: its value, and first and second derivatives by the rules at hand or by probing."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pyadjoint import stop_annotating
from pyadjoint.overloaded_type import OverloadedType

from pyadjoint_utils.black_boxes.differences import largest, random_like, wide_dtype
from pyadjoint_utils.black_boxes.probing import Probe
from pyadjoint_utils.black_boxes.unit_probing import pulled
from pyadjoint_utils.engine import Aval
from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError, NotDifferentiableError
from pyadjoint_utils.running import RUNNING
from pyadjoint_utils.transforming.rule_programs import Program, as_numpy, check_program, derivative_of_program

Leaves = Sequence[Any]


class Signature:
    """What is learnt once about calls with arguments of the same containers, shapes and dtypes."""

    def __init__(self, structure: Any, outputs: list[Aval], fields: Any) -> None:
        self.structure, self.outputs, self.fields = structure, outputs, fields
        self.precisions: dict[tuple[int, ...], tuple[bool, float]] = {}
        self.analytic: set[tuple[int, ...]] = set()
        self.checked: set[Any] = set()


class Point:
    """A black box at a point.

    Positions ``ins`` and ``outs`` count the leaves of its arguments and outputs.

    Args:
        box: the :class:`~pyadjoint_utils.black_boxes.black_box.BlackBox`.
        structure: the containers of ``(positional arguments, keyword arguments)``.
        leaves: what is in them.
        signature: that of another point with the same structure, or None to look it up.
    """

    def __init__(self, box: Any, structure: Any, leaves: Leaves, signature: Signature | None = None) -> None:
        self.box, self.structure, self.leaves = box, structure, list(leaves)
        self.name = box.name
        self._signature = signature

    @property
    def signature(self) -> Signature:
        if self._signature is None:
            self._signature = self.box.signatures.get(self._key())
            if self._signature is None:
                self.value()
        return self._signature

    @property
    def outputs(self) -> list[Aval]:
        return self.signature.outputs

    @property
    def differentiable(self) -> list[int]:
        return [k for k, aval in enumerate(self.outputs) if aval.differentiable]

    @property
    def exact(self) -> bool:
        """Whether tangents are right to rounding."""
        return "jvp" in self.box.rules or self.box.method == "complex-step"

    def _key(self) -> Any:
        return self.structure, tuple([_kind(leaf) for leaf in self.leaves])

    def at(self, ins: Sequence[int], values: Sequence[Any]) -> "Point":
        """The point with other values of some leaves."""
        leaves = list(self.leaves)
        for i, value in zip(ins, values, strict=True):
            leaves[i] = value
        return Point(self.box, self.structure, leaves, self.signature)

    # Value -------------------------------------------------------------------------------------------------------------

    def value(self) -> list[np.ndarray]:
        """The outputs, in arrays that nobody else holds."""
        outputs, structure = self._call()
        avals = [Aval(y.shape, y.dtype) for y in outputs]
        known = self._signature or self.box.signatures.get(self._key())
        if known is None:
            fields = self.box.fields(self.structure, self.leaves, structure, len(avals))
            known = self.box.signatures[self._key()] = Signature(structure, avals, fields)
        elif (structure, [a.shape for a in avals]) != (known.structure, [a.shape for a in known.outputs]):
            raise ArgumentValueError(
                f"{self.name} returned {_listed(avals)} in other containers or shapes than before, "
                f"{_listed(known.outputs)}, for arguments of the same shapes and dtypes. Pass what its outputs' shapes "
                "depend on with static_argnums."
            )
        self._signature = known
        return outputs

    def _call(self) -> tuple[list[np.ndarray], Any]:
        engine = self.box.engine
        # Copies: opaque code may write to its arguments, keep them, and return a buffer that it writes to later.
        args, kwargs = engine.unflatten(self.structure, [_copied(leaf) for leaf in self.leaves])
        RUNNING.engines.append(engine)
        try:
            with stop_annotating():
                result = self.box.function(*args, **kwargs)
        finally:
            RUNNING.engines.pop()
        leaves, structure = engine.flatten(result)
        return [self._output(k, leaf) for k, leaf in enumerate(leaves)], structure

    def _output(self, k: int, leaf: Any) -> np.ndarray:
        found = np.array(leaf) if isinstance(leaf, (np.ndarray, np.generic, int, float, complex)) else None
        if found is None or found.dtype.kind not in "biufcV" or isinstance(leaf, OverloadedType):
            given = (
                type(leaf).__name__ if found is None or isinstance(leaf, OverloadedType) else f"one of {found.dtype}"
            )
            raise ArgumentTypeError(
                f"{self.name}: output {k} is not a NumPy array of numbers; got {given}. Return arrays and numbers in "
                "tuples, lists or dicts (None is allowed); take a value off the tape with y.numpy()."
            )
        return found

    # First derivatives -------------------------------------------------------------------------------------------------

    def tangent(self, ins: Sequence[int], dx: Leaves, *, nested: bool = False) -> list[Any]:
        """``J dx`` for every output, None for one that is not differentiable."""
        box = self.box
        if "jvp" in box.rules:
            return self._full(as_numpy(box.rules.jvp(self, ins, self.leaves, dx)))
        if box.method is None:
            raise box.missing("jvp")
        if not largest(dx):
            return self._full([np.zeros(*self.outputs[k]) for k in self.differentiable])
        if box.method == "complex-step":
            return self._full(Probe(self, ins).complex_step(dx))
        return self._full((probe := Probe(self, ins)).central(probe.outputs, dx, nested=nested))

    def adjoint(self, ins: Sequence[int], outs: Sequence[int], yb: Leaves, *, nested: bool = False) -> list[Any]:
        """``J^H yb`` for the leaves ``ins``."""
        if "vjp" in self.box.rules:
            return as_numpy(self.box.rules.vjp(self, ins, outs, self.leaves, yb))
        return [rows[0] for rows in self.adjoints(ins, outs, [w[None] for w in yb], nested=nested)]

    def adjoints(self, ins: Sequence[int], outs: Sequence[int], yb: Leaves, *, nested: bool = False) -> list[Any]:
        """``J^H yb`` for the leaves ``ins``, and for seeds that are stacked along a leading axis."""
        box = self.box
        if "vjp" in box.rules:
            rows = [self.adjoint(ins, outs, row) for row in zip(*yb, strict=True)]
            return [np.stack(found) for found in zip(*rows, strict=True)]
        if box.method is None:
            raise box.missing("vjp")
        if not largest(yb):
            return [np.zeros((len(yb[0]), *self.leaves[i].shape), wide_dtype(self.leaves[i].dtype)) for i in ins]
        if box.method == "complex-step" and "jvp" not in box.rules:
            Probe(self, ins).check_analytic()
        return [pulled(self, i, outs, yb, nested=nested) for i in ins]

    # Second derivatives ------------------------------------------------------------------------------------------------

    def second(self, ins: Sequence[int], outs: Sequence[int], dx: Leaves, yb: Leaves, dyb: Leaves) -> list[Any]:
        """``d/de J(x + e dx)^H (yb + e dyb)`` for the leaves ``ins``."""
        box, n = self.box, len(ins)
        if "hvp" in box.rules:
            return as_numpy(box.rules.hvp(self, ins, outs, self.leaves, dx, yb, dyb))
        if box.method is not None:
            return self._along(
                ins,
                dx,
                lambda x: self.at(ins, x).adjoint(ins, outs, yb, nested=True),
                lambda: self.adjoint(ins, outs, dyb),
            )
        if "vjp" not in box.rules:
            raise box.missing("vjp")

        def program(z: Leaves) -> list[Any]:
            return box.rules.vjp(self, ins, outs, self.at(ins, z[:n]).leaves, z[n:])

        return self._through_the_tape("vjp", program, ins, [*dx, *dyb], list(yb), outs)

    def tangent_along(self, ins: Sequence[int], dx: Leaves, tx: Leaves, tdx: Leaves) -> list[Any]:
        """``d/de J(x + e tx) (dx + e tdx)`` for every output."""
        box, n = self.box, len(ins)
        if box.method is not None:
            pick = self.differentiable

            def directional(point: Point, along: Leaves, nested: bool) -> list[Any]:
                found = point.tangent(ins, along, nested=nested)
                return [found[k] for k in pick]

            return self._full(
                self._along(
                    ins, tx, lambda x: directional(self.at(ins, x), dx, True), lambda: directional(self, tdx, False)
                )
            )
        if "jvp" not in box.rules:
            raise box.missing("jvp")

        def program(z: Leaves) -> list[Any]:
            return box.rules.jvp(self, ins, self.at(ins, z[:n]).leaves, z[n:])

        return self._full(self._through_the_tape("jvp", program, ins, [*tx, *tdx], list(dx), ()))

    def _along(self, ins: Sequence[int], dx: Leaves, moving: Program, fixed: Callable[[], list[Any]]) -> list[Any]:
        """The derivative of a first derivative, which is linear in its seeds: differences in the point alone."""
        results = fixed()
        if not largest(dx):
            return results
        found = Probe(self, ins).central(moving, dx, nested=not (self.exact or "vjp" in self.box.rules))
        return [a + b for a, b in zip(results, found, strict=True)]

    def _through_the_tape(
        self, kind: str, program: Program, ins: Sequence[int], direction: Leaves, seeds: Leaves, outs: Sequence[int]
    ) -> list[Any]:
        """Differentiate a rule as a program on a tape of its own."""
        at, key = [*[self.leaves[i] for i in ins], *seeds], (kind, tuple(ins), tuple(outs))
        try:
            if key not in self.signature.checked:
                # Seeds can be zero, where nothing could be seen.
                check_program(
                    program, [*at[: len(ins)], *random_like(seeds, sized=False)], f"the {kind} of {self.name}"
                )
                self.signature.checked.add(key)
            return derivative_of_program(program, at, direction)
        except Exception as error:
            raise NotDifferentiableError(
                f"{self.name} has a {kind} but no hvp, and its {kind} cannot be differentiated as a program: {error} "
                'Give hvp=..., method="central" to take differences of the rules, or compute in the rule with overloaded '
                "functions, or NumPy functions and operators, of its arguments alone."
            ) from error

    def _full(self, values: Leaves) -> list[Any]:
        results: list[Any] = [None] * len(self.outputs)
        for k, value in zip(self.differentiable, values, strict=True):
            results[k] = value
        return results


def _kind(leaf: Any) -> Any:
    """What of a leaf decides about containers, shapes and dtypes of the outputs."""
    if isinstance(leaf, np.ndarray):
        return leaf.shape, leaf.dtype
    if isinstance(leaf, (float, complex)):
        return type(leaf)
    try:
        hash(leaf)
    except TypeError:
        return type(leaf), id(leaf)
    return type(leaf), leaf


def _copied(leaf: Any) -> Any:
    return np.array(leaf) if isinstance(leaf, np.ndarray) else leaf


def _listed(avals: Sequence[Aval]) -> str:
    return ", ".join(map(str, avals)) or "nothing"
