"""Calls of functions from outside, whose derivatives do not compute again what they have computed."""

from collections.abc import Sequence
from typing import Any

from pyadjoint_utils.engine import Arrays, Engine
from pyadjoint_utils.inside.host_function import HostFunction, Known


class Evaluation:
    """One call of a function at one point.

    A bridge keeps it beside the arguments, for the derivatives there.

    Args:
        function: the function.
        known: what the function that this one is the derivative of computed on its way, at the same point.
    """

    __slots__ = ("_before", "_known", "function")

    def __init__(self, function: HostFunction, known: Known | None = None) -> None:
        self.function, self._before = function, known
        self._known: Known = {}

    def __call__(self, arrays: Sequence[Any], engine: Engine | None = None) -> Arrays:
        """Evaluate, as the function does."""
        results, self._known = self.function.evaluate(arrays, engine, self._before)
        return results

    def tangent(self, ins: tuple[int, ...], outs: tuple[int, ...] | None = None) -> "Evaluation":
        """Return :meth:`HostFunction.tangent`, to be called at the same point."""
        return Evaluation(self.function.tangent(ins, outs), self._known)

    def adjoint(self, ins: tuple[int, ...], outs: tuple[int, ...]) -> "Evaluation":
        """Return :meth:`HostFunction.adjoint`, to be called at the same point."""
        return Evaluation(self.function.adjoint(ins, outs), self._known)
