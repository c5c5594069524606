"""Point maps: overloaded functions of fields whose shapes are declared."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pyadjoint.overloaded_type import OverloadedType

from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError
from pyadjoint_utils.overloading import overload

Spec = tuple[int, ...]


def point_map(
    source: Spec | tuple[Spec, ...],
    target: Spec | tuple[Spec, ...],
    bare: bool = False,
    pointwise: bool = True,
    dtype: Any = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that overloads an autograd function of fields, with the shapes of its arguments declared.

    Args:
        source: one shape per argument, where -1 is the axis of points and ``()`` a scalar parameter, for example
            ``((-1,), (-1, 2), ())``; or a single shape such as ``(-1, 2)`` for a function of one array.
        target: the shape of the result, or a tuple of shapes for a function that returns a tuple.
        bare: True for a function ``f(u, g, p)`` of separate arguments, False for ``f((u, g, p))`` of one tuple.
        pointwise: the result at a point depends on the arguments at that point and on the scalars alone.
        dtype: NumPy dtype to which Python numbers, NumPy arrays and integer arrays are cast; floating values on the
            tape keep theirs. None casts nothing.

    Returns:
        A decorator; the decorated function is called with its arguments or with one tuple of them, and returns
        :class:`ndarray` values that are on the tape.

    Raises:
        ArgumentTypeError: a shape is no tuple of ints; in a call, an argument is no array or number.
        ArgumentValueError: a shape has several axes of points; in a call, the number of arguments or the shape of an
            argument or result does not fit.

    Example:
        >>> import autograd.numpy as np
        >>> from pyadjoint_utils import array, point_map
        >>> @point_map(((-1,), (-1, 2), ()), (-1, 2), bare=True)
        ... def flux(u, g, p):
        ...     return np.reshape(u**p, (-1, 1)) * g
        >>> flux(array([1.0, 2.0]), array([[1.0, 2.0], [3.0, 4.0]]), 2.0).shape
        (2, 2)
    """
    inputs, single = _specs(source, "source")
    outputs, one_output = _specs(target, "target")
    _check_specs(inputs, outputs, pointwise)

    def decorate(f: Callable[..., Any]) -> Callable[..., Any]:
        name = getattr(f, "__name__", type(f).__name__)

        @functools.wraps(f)
        def checked(*args: Any) -> Any:
            points = _check_arguments(name, inputs, args)
            result = f(*args) if bare or single else f(args)
            _check_results(name, outputs, (result,) if one_output else result, points)
            return result

        with_points = [-1 in spec for spec in inputs]
        options: dict[str, Any] = {"name": name}
        if pointwise:
            options |= {"pointwise": with_points, "out_pointwise": [-1 in spec for spec in outputs]}
        mapped = overload(checked, "autograd", **options)

        @functools.wraps(f)
        def call(*args: Any) -> Any:
            if len(args) == 1 and isinstance(args[0], (tuple, list)):
                args = tuple(args[0])
            _check_arguments(name, inputs, args)
            return mapped(*(args if dtype is None else [_cast_constant(a, np.dtype(dtype)) for a in args]))

        return call

    return decorate


def _specs(spec: Any, which: str) -> tuple[tuple[Spec, ...], bool]:
    """Return the shapes, and whether there was a single one that is not in a tuple."""
    if isinstance(spec, (tuple, list)):
        if all(isinstance(n, int) for n in spec):
            return (tuple(spec),), True
        if all(isinstance(s, (tuple, list)) and all(isinstance(n, int) for n in s) for s in spec):
            return tuple([tuple(s) for s in spec]), False
    raise ArgumentTypeError(
        f"point_map: {which} is a shape or a tuple of shapes, such as (-1, 2) or ((-1,), (-1, 2), ()); got {spec!r}."
    )


def _check_specs(inputs: Sequence[Spec], outputs: Sequence[Spec], pointwise: bool) -> None:
    has_points = any(-1 in spec for spec in inputs)
    for which, specs in (("source", inputs), ("target", outputs)):
        for k, spec in enumerate(specs):
            where = f"point_map: {which}[{k}] = {spec}"
            if spec.count(-1) > 1 or any(n < -1 for n in spec):
                raise ArgumentValueError(
                    f"{where}: a shape has at most one axis of points, written -1, and sizes >= 0 otherwise."
                )
            if pointwise and -1 in spec[1:]:
                raise ArgumentValueError(
                    f"{where}: the axis of points comes first in a pointwise map. Write (-1, ...), or pointwise=False."
                )
    if pointwise and has_points and not all(-1 in spec for spec in outputs):
        raise ArgumentValueError(
            f"point_map: target {tuple(outputs)} has no axis of points, but source has. A map that mixes points is not "
            "pointwise: write pointwise=False."
        )
    if not has_points and any(-1 in spec for spec in outputs):
        raise ArgumentValueError(
            f"point_map: target {tuple(outputs)} has an axis of points (-1), but source {tuple(inputs)} has none."
        )


def _check_arguments(name: str, specs: Sequence[Spec], args: Sequence[Any]) -> int | None:
    """Raise if the arguments do not have the declared shapes; return the number of points."""
    if len(args) != len(specs):
        raise ArgumentValueError(
            f"{name} takes {len(specs)} argument(s) of shapes {tuple(specs)}, separately or in one tuple; got {len(args)}."
        )
    return _check_shapes(f"{name}: args", specs, args, None)


def _check_results(name: str, specs: Sequence[Spec], results: Any, points: int | None) -> None:
    if not isinstance(results, (tuple, list)) or len(results) != len(specs):
        found = f"{len(results)} value(s)" if isinstance(results, (tuple, list)) else type(results).__name__
        raise ArgumentValueError(
            f"{name} has the target {tuple(specs)}, a tuple of {len(specs)} array(s); it returns {found}."
        )
    _check_shapes(f"{name}: result", specs, results, points)


def _check_shapes(where: str, specs: Sequence[Spec], values: Sequence[Any], points: int | None) -> int | None:
    for k, (spec, value) in enumerate(zip(specs, values, strict=True)):
        points = _fit(f"{where}[{k}]", spec, value, points)
    return points


def _fit(where: str, spec: Spec, value: Any, points: int | None) -> int | None:
    """Raise if a shape is not the declared one with this number of points; return the number of points."""
    shape, dtype = _shape(where, value), getattr(value, "dtype", None)
    fits = len(shape) == len(spec) and all(n in (-1, size) for n, size in zip(spec, shape, strict=True))
    found = shape[spec.index(-1)] if fits and -1 in spec else points
    if fits and points in (None, found):
        return found
    given = f"{shape}" if dtype is None else f"{shape} ({dtype})"
    if fits:
        raise ArgumentValueError(
            f"{where} has the shape {given}, so {found} points, but another argument has {points}; all arrays of a "
            "point map have the same number of points."
        )
    expected = str(spec) if points is None else str(tuple([points if n == -1 else n for n in spec]))
    raise ArgumentValueError(
        f"{where} has the shape {given}, but {spec} is declared (-1 is the axis of points); reshape it to {expected}."
    )


def _shape(where: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, (int, float, complex)):
        return ()
    if not hasattr(value, "shape"):
        raise ArgumentTypeError(
            f"{where} is an array or a number; got {type(value).__name__}. Write array(...) around lists."
        )
    return tuple(value.shape)


def _cast_constant(value: Any, dtype: np.dtype) -> Any:
    taped = isinstance(value, OverloadedType)
    if not taped and isinstance(value, (int, float, complex, np.ndarray, np.generic)):
        return np.asarray(value, dtype)
    kind = np.dtype(value.dtype).kind if taped and hasattr(value, "dtype") else ""
    return value.astype(dtype) if kind in ("b", "i", "u") else value
