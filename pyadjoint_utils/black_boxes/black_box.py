"""NumPy code that no engine looks into: its derivatives are given by hand, or taken by probing it."""

import functools
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pyadjoint_utils.black_boxes.engine import ENGINE, called
from pyadjoint_utils.black_boxes.hand_rules import HandRules
from pyadjoint_utils.black_boxes.linearization import Signature
from pyadjoint_utils.engine import Engine
from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError, NotDifferentiableError
from pyadjoint_utils.jacobians.points import check_marks
from pyadjoint_utils.overloading import Overloaded

METHODS = ("complex-step", "central")


class Fields(NamedTuple):
    """Positions of leaves whose first axis counts points that do not influence each other.

    Attributes:
        ins: among the arguments' leaves.
        outs: among the outputs'.
    """

    ins: frozenset[int] = frozenset()
    outs: frozenset[int] = frozenset()


_NEEDED_BY = {
    "jvp": "tangents and Hessian actions need jvp=",
    "vjp": "gradients and Hessian actions need vjp=",
}


class BlackBox:
    """A function that is only called, with what is known of its derivatives.

    Args:
        engine: the engine that flattens its arguments.
        function: the function.
        rules: those of ``jvp``, ``vjp``, ``hvp`` that were given.
        method: one of :data:`METHODS`, or None.
        step: relative step of differences, or None.
        argnums: positions that pass a derivative, or None for all.
        name: what messages call it.
        pointwise: as for :func:`overload`.
        out_pointwise: likewise.
    """

    def __init__(
        self,
        engine: Engine,
        function: Callable[..., Any],
        rules: dict[str, Callable[..., Any]],
        method: str | None,
        step: float | None,
        argnums: Sequence[int] | None,
        name: str,
        pointwise: Any = False,
        out_pointwise: Any = None,
    ) -> None:
        self.engine, self.function, self.method, self.step, self.name = engine, function, method, step, name
        self._pointwise = check_marks(pointwise, "pointwise", name)
        self._out_pointwise = check_marks(out_pointwise, "out_pointwise", name)
        self.rules = HandRules(engine, rules, argnums, name)
        self.signatures: dict[Any, Signature] = {}
        self._parameters = _parameters(function)

    def bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Sort arguments that were passed by name into the positional ones, and fill in defaults."""
        if self._parameters is None:
            return args, kwargs
        try:
            bound = self._parameters.bind(*args, **kwargs)
        except TypeError:  # Python says it better when the function is called
            return args, kwargs
        for p in self._parameters.parameters.values():
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is not p.empty:
                bound.arguments.setdefault(p.name, p.default)
        return bound.args, bound.kwargs

    def fields(self, structure: Any, leaves: Sequence[Any], out_structure: Any, count: int) -> Fields:
        """Which leaves of the arguments and of the outputs are fields of points, as declared."""
        if not self._pointwise:
            return Fields()
        args, kwargs = self.engine.unflatten(structure, range(len(leaves)))
        marks = [True] * len(args) if self._pointwise is True else self._pointwise
        chosen = [arg for arg, mark in zip(args, marks, strict=False) if mark]
        chosen += [kwargs] if self._pointwise is True else []
        ins = [i for i in self.engine.flatten(chosen)[0] if np.ndim(leaves[i])]
        result = self.engine.unflatten(out_structure, range(count))
        items = result if isinstance(result, (tuple, list)) else [result]
        flags = self._out_pointwise
        flags = [flags is not False] * len(items) if isinstance(flags, (bool, type(None))) else flags
        outs = self.engine.flatten([item for item, flag in zip(items, flags, strict=False) if flag])[0]
        return Fields(frozenset(ins), frozenset(outs))

    def missing(self, kind: str) -> NotDifferentiableError:
        has = " and ".join(f"a {known}" for known in ("jvp", "vjp", "hvp") if known in self.rules)
        return NotDifferentiableError(
            f"{self.name} has {has or 'no rule and no method'}{f' but no {kind}' if has else ''}; "
            f'{_NEEDED_BY[kind]}..., or method="central" to probe it.'
        )


def _parameters(function: Callable[..., Any]) -> inspect.Signature | None:
    # Those of built-in functions and ufuncs (out=, where=, dtype=) are no mathematical arguments.
    if isinstance(function, (np.ufunc, types.BuiltinFunctionType)):
        return None
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def overload_numpy(
    function: Callable[..., Any] | None = None,
    *,
    jvp: Callable[..., Any] | None = None,
    vjp: Callable[..., Any] | None = None,
    hvp: Callable[..., Any] | None = None,
    method: str | None = None,
    argnums: int | Sequence[int] | None = None,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
    pointwise: bool | Sequence[bool] = False,
    out_pointwise: bool | Sequence[bool] | None = None,
    name: str | None = None,
    step: float | None = None,
) -> Any:
    """Overload NumPy code that no engine can differentiate, with derivatives by hand or by probing it.

    ``primals`` is the tuple of the function's positional arguments in their containers (arguments passed by name are
    sorted in, defaults filled in); keyword-only arguments are handed to the rules by name. Arrays come as copies.

    Args:
        function: takes and returns NumPy arrays and numbers in nested containers; None to use as a decorator with options.
        jvp: ``jvp(primals, tangents)`` returns the outputs' tangents in the outputs' container. ``tangents`` looks like
            ``primals``, with None for what is no floating or complex number.
        vjp: ``vjp(primals, cotangents)`` returns ``J^H`` times the cotangents under ``Re<a, b>``: a tuple with one entry
            for each positional argument, or for each one of ``argnums``, in the container of that argument; None where
            nothing is differentiated. A single entry need not be in a tuple. ``cotangents`` looks like the outputs.
        hvp: ``hvp(primals, tangents, cotangents, cotangent_tangents)`` returns, in the form of ``vjp``, the derivative of
            ``vjp`` in both, ``d/de vjp(primals + e tangents, cotangents + e cotangent_tangents)``. Without it and without
            a method, ``vjp`` itself is differentiated on a tape of its own; it then has to compute with overloaded
            functions, or with NumPy functions and operators of its arguments. That nothing got lost is checked once.
        method: fills in the rules that are missing: ``"complex-step"`` (real arguments and outputs of a function that is
            analytic when called with complex ones; exact first derivatives) or ``"central"`` (extrapolated central
            differences). An adjoint is then probed one entry at a time. None: a missing rule is an error when needed.
        argnums: positions of the arguments that pass a derivative; None for every floating or complex one.
        static_argnums: positions of arguments that are no values of the tape.
        static_argnames: their names.
        pointwise: a bool, or one per argument, as for :func:`overload`.
        out_pointwise: a bool, or one per item of the result; None for all of them if an argument is pointwise.
        name: the function's name for messages.
        step: perturbation of central differences, relative to the largest entry of an argument; None to derive it from
            the precision.

    Returns:
        A function of arrays of any engine, taped or not.

    Raises:
        ArgumentTypeError: a rule is no function.
        ArgumentValueError: an unknown method or a step that is no positive number; when a derivative is taken, a rule that
            returned another number of arrays, or other shapes, than it should.
        NotDifferentiableError: when a derivative is taken, a rule is missing, the third derivative is asked for, or
            probing gave no trustworthy number.

    Example:
        >>> import numpy as np
        >>> from pyadjoint_utils import Control, ReducedFunctional, array, overload_numpy
        >>> x = array([1.0, 2.0])
        >>> cube = overload_numpy(lambda x: x**3, vjp=lambda primals, yb: 3 * primals[0] ** 2 * yb)
        >>> ReducedFunctional(cube(x).sum(), Control(x)).derivative().tolist()
        [3.0, 12.0]
        >>> probed = overload_numpy(lambda x: np.exp(-x).sum(), method="complex-step")
        >>> bool(np.allclose(ReducedFunctional(probed(x), Control(x)).derivative(), -np.exp([-1.0, -2.0]), rtol=1e-15))
        True
    """
    options: dict[str, Any] = {"argnums": argnums, "static_argnums": static_argnums, "static_argnames": static_argnames}
    options |= {"pointwise": pointwise, "out_pointwise": out_pointwise}
    rules: dict[str, Any] = {"jvp": jvp, "vjp": vjp, "hvp": hvp}
    for kind, rule in rules.items():
        if rule is not None and not callable(rule):
            raise ArgumentTypeError(f"overload_numpy: {kind} takes a function; got {type(rule).__name__}.")
    if method is not None and method not in METHODS:
        raise ArgumentValueError(
            f"overload_numpy: method takes one of {', '.join(map(repr, METHODS))}; got {method!r}."
        )
    if step is not None and (method is None or not (isinstance(step, (int, float)) and 0 < step < 1)):
        raise ArgumentValueError(
            f"overload_numpy: step takes a number between 0 and 1 together with method=; got step={step!r}, "
            f"method={method!r}."
        )
    if function is None:
        return lambda f: overload_numpy(f, **rules, method=method, step=step, name=name, **options)
    if not callable(function):
        raise ArgumentTypeError(
            f"overload_numpy takes a function; got {type(function).__name__}. As a decorator with options write "
            "@overload_numpy(vjp=...)."
        )
    given = {kind: rule for kind, rule in rules.items() if rule is not None}
    title = name or getattr(function, "__name__", None) or type(function).__name__
    numbers = (argnums,) if isinstance(argnums, int) else argnums
    box = BlackBox(ENGINE, function, given, method, step, numbers, title, pointwise, out_pointwise)

    @functools.wraps(function, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        return called(box, args, kwargs)

    return Overloaded(call, ENGINE, name=title, **options)
