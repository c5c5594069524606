"""The arguments of an overloaded function: which are static, which pass a derivative, and what messages call them."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyadjoint_utils.engine import Aval, Engine
from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError
from pyadjoint_utils.jacobians.points import Points, check_marks, declared_points


class Arguments:
    """What the options of a function say of its arguments, however they are passed.

    Args:
        function: the function.
        engine: the engine that flattens containers.
        name: the function's name for messages.
        argnums: positions that pass a derivative, or None for all.
        static_argnums: positions of static arguments.
        static_argnames: their names.
        pointwise: a bool, or one per argument: whether it has an axis of points.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        engine: Engine,
        name: str,
        argnums: int | Sequence[int] | None,
        static_argnums: int | Sequence[int],
        static_argnames: str | Sequence[str],
        pointwise: bool | Sequence[bool] = False,
    ) -> None:
        self._engine, self._name = engine, name
        self._argnums = _indices(argnums, "argnums", name)
        self._static_argnums = _indices(static_argnums, "static_argnums", name) or ()
        self._static_argnames = (static_argnames,) if isinstance(static_argnames, str) else tuple(static_argnames)
        self._pointwise = check_marks(pointwise, "pointwise", name)
        self._positions, takes_any_name = _parameter_positions(function)
        unknown = sorted(set(self._static_argnames) - set(self._positions))
        if unknown and not takes_any_name:
            raise ArgumentValueError(
                f"{name}: static_argnames names {unknown[0]!r}, but the function has the parameters "
                f"{', '.join(self._positions) or '(none)'}."
            )
        both = sorted(set(self._argnums or ()) & set(self._static_argnums))
        if both:
            raise ArgumentValueError(f"{name}: argument {both[0]} is both in argnums and static: it cannot be both.")

    def static(self, args: Any, kwargs: Any) -> list[bool] | None:
        """Mark the leaves of static arguments, in the order of the flattened arguments."""
        if not self._static_argnums and not self._static_argnames:
            return None
        return self._marks(self._static_argnums, "static_argnums", self._static_argnames, args, kwargs)

    def active(self, taped: list[int], avals: list[Aval | None], args: Any, kwargs: Any) -> tuple[int, ...]:
        """Positions among the taped leaves that pass a derivative."""
        chosen = None if self._argnums is None else self._marks(self._argnums, "argnums", (), args, kwargs)
        active = []
        for k, i in enumerate(taped):
            aval = avals[i]
            if aval is not None and aval.differentiable and (chosen is None or chosen[i]):
                active.append(k)
        return tuple(active)

    def points(self, order: Sequence[int], avals: Sequence[Aval], args: Any, kwargs: Any) -> Points | None:
        """The pointwise ones among some leaves of the arguments, checked; None if there are none."""
        pointwise = self._pointwise
        if not pointwise or not order:
            return None
        paths = [argument_path(self._engine, args, kwargs, i) for i in order]
        if pointwise is True:
            return declared_points(self._name, [True] * len(order), avals, paths, every=True)
        count = max(len(args), len(self._positions))
        if not len(args) <= len(pointwise) <= count:
            raise ArgumentValueError(
                f"{self._name}: pointwise has {len(pointwise)} entries, but the function is called with {len(args)} "
                f"positional argument(s) of {count}. Write one for each, True where it has an axis of points."
            )
        marks = self._marks([k for k, mark in enumerate(pointwise) if mark], "pointwise", (), args, kwargs)
        return declared_points(self._name, [marks[i] for i in order], avals, paths, every=False)

    def _marks(
        self, argnums: Sequence[int], option: str, argnames: Sequence[str], args: Any, kwargs: Any
    ) -> list[bool]:
        """Mark the leaves of arguments that are named by position, however they were passed."""
        count = max(len(args), len(self._positions))
        for k in argnums:
            if not -count <= k < count:
                raise ArgumentValueError(
                    f"{self._name}: {option}={k} is out of range: the function takes {count} positional argument(s). "
                    f"Name positions from 0 to {count - 1}."
                )
        numbers = {k % count for k in argnums} | {self._positions[n] for n in argnames if n in self._positions}
        names = {*argnames, *(name for name, k in self._positions.items() if k in numbers)}
        positional = tuple([_marked(self._engine, arg, k in numbers) for k, arg in enumerate(args)])
        keyword = {key: _marked(self._engine, value, key in names) for key, value in kwargs.items()}
        return self._engine.flatten((positional, keyword))[0]


def argument_path(engine: Engine, args: Any, kwargs: Any, i: int) -> str:
    """Return a readable path to leaf ``i`` of the arguments, such as ``args[0]['w'][1]``."""
    count = 0
    for path, value in [(f"args[{k}]", a) for k, a in enumerate(args)] + [
        (f"kwargs[{k!r}]", a) for k, a in sorted(kwargs.items())
    ]:
        size = len(engine.flatten(value)[0])
        if i < count + size:
            return path + _inner_path(engine, value, i - count)
        count += size
    return f"leaf {i}"


def _inner_path(engine: Engine, value: Any, i: int) -> str:
    items: list[tuple[str, Any]]
    if isinstance(value, dict):
        items = [(f"[{key!r}]", value[key]) for key in sorted(value)]
    elif isinstance(value, (list, tuple)):
        items = [(f"[{k}]", item) for k, item in enumerate(value)]
    else:
        return ""
    for path, item in items:
        size = len(engine.flatten(item)[0])
        if i < size:
            return path + _inner_path(engine, item, i)
        i -= size
    return ""


def _indices(value: Any, option: str, name: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    items = tuple(value) if isinstance(value, (tuple, list, set, range)) else (value,)
    if not all(isinstance(k, int) for k in items):
        raise ArgumentTypeError(f"{name}: {option} takes an int or a sequence of ints; got {value!r}.")
    return items


def _marked(engine: Engine, tree: Any, mark: bool) -> Any:
    leaves, structure = engine.flatten(tree)
    return engine.unflatten(structure, [mark] * len(leaves))


def _parameter_positions(function: Callable[..., Any]) -> tuple[dict[str, int], bool]:
    """Return the positions of a function's named parameters, and whether there may be others."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return {}, True
    kinds = inspect.Parameter
    positional = [p.name for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    others = any(p.kind in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL, kinds.KEYWORD_ONLY) for p in parameters)
    return {name: k for k, name in enumerate(positional)}, others


def hashable(leaf: Any) -> Any:
    """Return a static argument as a key that tells 1 from 1.0 and True, and 0.0 from -0.0."""
    if isinstance(leaf, slice):
        return ("slice", hashable(leaf.start), hashable(leaf.stop), hashable(leaf.step))
    try:
        hash(leaf)
    except TypeError as error:
        raise ArgumentTypeError(
            f"A static argument must be hashable, so that a change of it is seen; got {type(leaf).__name__}. Pass its "
            "numbers as arrays in a tuple, list or dict, or give its class a __hash__."
        ) from error
    kind = type(leaf)
    return (kind, repr(leaf) if kind in (float, complex) or issubclass(kind, np.inexact) else leaf)
