"""Compiled functions of values of any shapes: compiled once for each shapes that they are called with."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pyadjoint.enlisting import Enlist

from pyadjoint_utils.compiling.compiled import CompiledFunction, CompiledFunctional
from pyadjoint_utils.compiling.rerecorded import rerecorded
from pyadjoint_utils.functional import ReducedFunctional
from pyadjoint_utils.reduced import ReducedFunction
from pyadjoint_utils.tapes import state_of
from pyadjoint_utils.variable import bare

Shapes = tuple[tuple[int, ...], ...]


class _Versions:
    """One version of a compiled function for each shapes of its controls and inputs."""

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        self._function, self._options = function, options
        self._reduced = reduced = _reduced(function)
        self._inputs = [getattr(like, "control", like) for like in reduced._inputs]
        self._shapes = tuple([_shape(like) for like in (*[c.control for c in reduced._controls], *self._inputs)])
        self.first = function.compile(**options)
        self._known, self._updates = {self._shapes: self.first}, dict(state_of(reduced.tape).updates)

    def at(self, values: Any, inputs: Any, last: Any) -> tuple[Any, Any]:
        """Return the version for values, and the inputs for it; the first one where their number is wrong, which says so.

        Args:
            values: the controls' values.
            inputs: the inputs' values; None for those that the version ``last`` was called with.
            last: the version that was called last.
        """
        reduced = self._reduced
        self._follow(state_of(reduced.tape).updates)
        if inputs is None and self._inputs:
            point = _reduced(last)._last_point()[len(reduced._controls) :]
            inputs = reduced._inputs.delist(
                [like._ad_restore_at_checkpoint(v) for like, v in zip(self._inputs, point, strict=True)]
            )
        given, others = list(Enlist(values)), list(Enlist(() if inputs is None else inputs))
        if len(given) != len(reduced._controls) or len(others) != len(self._inputs):
            return self.first, inputs
        shapes = tuple([_shape(v) for v in (*given, *others)])
        if shapes not in self._known:
            self._known[shapes] = self._made(given, others).compile(**self._options)
        return self._known[shapes], inputs

    def _follow(self, updates: dict[Any, Any]) -> None:
        """Forget the versions that were recorded with other values of :meth:`Control.update`."""
        known = self._updates
        if updates.keys() != known.keys() or any(value is not known[bv] for bv, value in updates.items()):
            self._known, self._updates = {self._shapes: self.first}, dict(updates)

    def _made(self, values: Sequence[Any], inputs: Sequence[Any]) -> Any:
        made = rerecorded(self._reduced, values, inputs)
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
    """Versions of a compiled function; the one that was called last answers for everything but further calls."""

    __slots__ = ("__weakref__", "_last", "_versions")

    def __init__(self, function: Any, **options: Any) -> None:
        self._versions = _Versions(function, options)
        self._last = self._versions.first

    def __call__(self, values: Any, inputs: Any = None) -> Any:
        return self._called_at("__call__", values, inputs)

    def value_and_derivative(self, values: Any, inputs: Any = None) -> tuple[Any, Any]:
        """Return ``(self(values), self.derivative())``."""
        result: tuple[Any, Any] = self._called_at("value_and_derivative", values, inputs)
        return result

    def _called_at(self, method: str, values: Any, inputs: Any) -> Any:
        version, inputs = self._versions.at(values, inputs, self._last)
        result = getattr(version, method)(values, inputs)
        self._last = version  # not if it failed
        return result

    def __getattr__(self, name: str) -> Any:
        if name in _OfAnyShape.__slots__:  # of an object that is being made
            raise AttributeError(name)
        return getattr(self._last, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._last!r})"


class RespecializedFunction(_OfAnyShape):
    """A :class:`CompiledFunction` of values of any shapes, made by ``ReducedFunction.compile(respecialize=True)``.

    The program is recorded once more, and compiled, for each shapes that it is called with; its derivatives, matrices and
    ``describe()`` are those at the shapes of the last call. What is neither control nor input stays what it was, or what
    :meth:`Control.update` made it.

    Args:
        function: the function.
        **options: of :class:`CompiledFunction`.
    """

    __slots__ = ()


class RespecializedFunctional(_OfAnyShape):
    """A :class:`CompiledFunctional` of values of any shapes; see :class:`RespecializedFunction`.

    Args:
        functional: the functional.
        **options: of :class:`CompiledFunction`.
    """

    __slots__ = ()


# They have the methods of these, as their versions' own.
CompiledFunction.register(RespecializedFunction)
CompiledFunctional.register(RespecializedFunctional)
