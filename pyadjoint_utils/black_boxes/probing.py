"""Complex steps and differences of a black box around a point."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pyadjoint_utils.black_boxes.differences import (
    Function,
    central,
    complex_step,
    largest,
    precision,
    random_like,
    wide_dtype,
)
from pyadjoint_utils.engine import Aval
from pyadjoint_utils.errors import NotDifferentiableError


class Probe:
    """Moves some leaves of a black box's arguments.

    Args:
        point: the :class:`~pyadjoint_utils.black_boxes.linearization.Point`.
        ins: positions of the leaves.
    """

    def __init__(self, point: Any, ins: Sequence[int]) -> None:
        self._point, self._ins, self._name = point, tuple(ins), point.name
        self._x = [point.leaves[i] for i in ins]

    def outputs(self, x: Sequence[Any]) -> list[np.ndarray]:
        """The differentiable outputs with other values of the leaves."""
        with np.errstate(all="ignore"):  # what is not finite is looked for
            outputs = self._point.at(self._ins, x).value()
        return [outputs[k] for k in self._point.differentiable]

    def central(self, g: Function, dx: Sequence[Any], *, nested: bool) -> list[np.ndarray]:
        """The derivative of a function of the leaves; ``nested`` in or of other differences."""
        at, direction, eps = self._prepared(dx)
        # In differences of differences the step eps**(1/6) balances both, and the inner ones are right to eps**(5/6).
        eps = eps ** (5 / 6) if nested else eps
        return central(g, at, direction, eps, self._point.box.step, self._name).value

    def complex_step(self, dx: Sequence[Any]) -> list[np.ndarray]:
        """The derivative of the differentiable outputs."""
        self.check_analytic()
        found = complex_step(self.outputs, *self._prepared(dx))
        if not np.isfinite(largest(found)):
            raise NotDifferentiableError(f"{self._name}: a complex step gave values that are not finite at this point.")
        return found

    def check_analytic(self) -> None:
        """Once for these leaves, or more of them: compare the complex step with differences."""
        known = self._point.signature.analytic
        if any(set(self._ins) <= set(ins) for ins in known):
            return
        avals = [Aval(x.shape, x.dtype) for x in self._x]
        if any(aval.dtype.kind == "c" for aval in (*avals, *self._point.outputs)):
            raise NotDifferentiableError(
                f"{self._name}: complex-step takes real arguments and outputs; got {', '.join(map(str, avals))} -> "
                f'{", ".join(map(str, self._point.outputs))}. Use method="central".'
            )
        at, direction, eps = self._prepared(random_like(self._x))
        expected = central(self.outputs, at, direction, eps, self._point.box.step, self._name)
        try:
            found = complex_step(self.outputs, at, direction, eps)
        except Exception as error:  # opaque code refuses what it does not like in any way
            raise NotDifferentiableError(
                f"{self._name} does not take complex arguments, which complex-step needs "
                f'({type(error).__name__}: {error}). Use method="central".'
            ) from error
        if not expected.agrees(found, eps):
            raise NotDifferentiableError(
                f"{self._name} is not analytic when it is called with complex arguments: its complex step and its "
                "differences disagree. Something in it drops or conjugates the imaginary part (abs, real, norm, vdot, "
                'an array of floats that is filled). Use method="central".'
            )
        known.add(self._ins)

    def _prepared(self, dx: Sequence[Any]) -> tuple[list[np.ndarray], list[np.ndarray], float]:
        """Point and direction in the dtypes to probe in, and the function's precision there."""
        wide, eps = self._precision()
        dtypes = [wide_dtype(x.dtype) if wide else x.dtype for x in self._x]
        at = [x.astype(dtype) for x, dtype in zip(self._x, dtypes, strict=True)]
        return at, [d.astype(dtype) for d, dtype in zip(dx, dtypes, strict=True)], eps

    def _precision(self) -> tuple[bool, float]:
        """Whether the function takes arguments of low precision in double precision, and what precision is left."""
        known = self._point.signature.precisions
        if self._ins in known:
            return known[self._ins]
        wide = [x.astype(wide_dtype(x.dtype)) for x in self._x]
        accepted, dtypes = True, [self._point.outputs[k].dtype for k in self._point.differentiable]
        if any(x.dtype != w.dtype for x, w in zip(self._x, wide, strict=True)):
            try:
                dtypes = [y.dtype for y in self.outputs(wide)]
            except Exception:  # as above
                accepted = False
        dtypes += [x.dtype for x in (wide if accepted else self._x)]
        result = known[self._ins] = (accepted, max(map(precision, dtypes)))
        return result
