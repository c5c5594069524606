"""Compiled functions of values of any shapes: compiled once for each shapes that they are called with."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pyadjoint_utils.compiling.compiled import CompiledFunction, CompiledFunctional
from pyadjoint_utils.compiling.rerecorded import rerecorded
from pyadjoint_utils.functional import ReducedFunctional
from pyadjoint_utils.reduced import ReducedFunction
from pyadjoint_utils.variable import bare

Shapes = tuple[tuple[int, ...], ...]


class _Versions:
    """One version of a compiled function for each shapes of its controls and inputs."""

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        self._function, self._options = function, options
        self._known: dict[Shapes, Any] = {}
        reduced = _reduced(function)
        self._likes = [getattr(like, "control", like) for like in (*reduced._controls, *reduced._inputs)]
        self.first = self._known[tuple(map(_shape, self._likes))] = function.compile(**options)

    def at(self, values: Any, inputs: Any) -> Any:
        """Return the version for values; the first one where their number is wrong, which says so."""
        reduced = _reduced(self._function)
        given = list(values) if reduced._controls.listed else [values]
        if inputs is None:
            others = list(reduced._inputs)
        else:
            others = list(inputs) if reduced._inputs.listed else [inputs]
        if len(given) != len(reduced._controls) or len(others) != len(reduced._inputs):
            return self.first
        shapes = tuple([_shape(v) for v in (*given, *others)])
        if shapes not in self._known:
            others = [getattr(value, "control", value) for value in others]
            self._known[shapes] = self._made(given, others).compile(**self._options)
        return self._known[shapes]

    def _made(self, values: Sequence[Any], inputs: Sequence[Any]) -> Any:
        made = rerecorded(_reduced(self._function), values, inputs)
        return made if isinstance(self._function, ReducedFunction) else _functional(self._function, made)


def _reduced(function: Any) -> ReducedFunction:
    return function if isinstance(function, ReducedFunction) else function._function


def _functional(like: ReducedFunctional, made: ReducedFunction) -> ReducedFunctional:
    callbacks = {name: value for name, value in vars(like).items() if "_cb_" in name}
    if like.derivative_components:  # they are callbacks, too
        callbacks = {k: v for k, v in callbacks.items() if not k.startswith("derivative_cb")}
    return ReducedFunctional(
        made._outputs[0],
        made._controls.delist(list(made._controls)),
        like.derivative_components,
        like.scale,
        made.tape,
        inputs=list(made._inputs),
        **callbacks,
    )


def _shape(value: Any) -> tuple[int, ...]:
    value = bare(value)
    return tuple(value.shape) if hasattr(value, "shape") else np.shape(value)


class _OfAnyShape:
    """A compiled function that is its version for the values that it was called with last."""

    _versions: _Versions

    def __init__(self, function: Any, **options: Any) -> None:
        versions = _Versions(function, options)
        self._become(versions, versions.first)

    def _become(self, versions: _Versions, version: Any) -> None:
        # They share what they know, not copies of it: another call for these shapes finds all of it.
        self.__dict__ = version.__dict__
        self._versions = versions

    def __call__(self, values: Any, inputs: Any = None) -> Any:
        return self._called_at("__call__", values, inputs)

    def value_and_derivative(self, values: Any, inputs: Any = None) -> tuple[Any, Any]:
        return self._called_at("value_and_derivative", values, inputs)

    def _called_at(self, method: str, values: Any, inputs: Any) -> Any:
        before = self.__dict__
        self._become(self._versions, self._versions.at(values, inputs))
        try:
            return getattr(super(), method)(values, inputs)
        except BaseException:
            self.__dict__ = before
            raise


class RespecializedFunction(_OfAnyShape, CompiledFunction):
    """A :class:`CompiledFunction` of values of any shapes, made by ``ReducedFunction.compile(respecialize=True)``.

    The program is recorded once more, and compiled, for each shapes that it is called with; its derivatives, matrices and
    ``describe()`` are those at the shapes of the last call. Everything that is neither control nor input stays what it was.

    Args:
        function: the function.
        **options: of :class:`CompiledFunction`.
    """


class RespecializedFunctional(_OfAnyShape, CompiledFunctional):
    """A :class:`CompiledFunctional` of values of any shapes; see :class:`RespecializedFunction`.

    Args:
        functional: the functional.
        **options: of :class:`CompiledFunction`.
    """
