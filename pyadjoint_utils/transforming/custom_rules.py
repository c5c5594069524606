"""Programs with derivatives by hand: rules that are programs of overloaded functions themselves, to any order."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from pyadjoint import AdjFloat, stop_annotating
from pyadjoint.overloaded_type import OverloadedType

from pyadjoint_utils import trees
from pyadjoint_utils.annotation import annotate_tape
from pyadjoint_utils.captures import captured, check_captures
from pyadjoint_utils.conversion import copied
from pyadjoint_utils.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    NotDifferentiableError,
    UnsupportedError,
)
from pyadjoint_utils.prepared import put_on_tape
from pyadjoint_utils.registry import tracing_engine
from pyadjoint_utils.transforming.leaves import input_of
from pyadjoint_utils.transforming.rule_block import RuleBlock
from pyadjoint_utils.transforming.ruled_calls import ForwardCall, ReverseCall, RuledCall
from pyadjoint_utils.values import array, ndarray

Function = Callable[..., Any]


class _Custom:
    """A program with a rule for its derivative.

    Args:
        fun: the program.
        nondiff_argnums: positions of arguments that are not differentiated, such as functions and sizes.
    """

    def __init__(self, fun: Function, nondiff_argnums: int | Sequence[int] = ()) -> None:
        if not callable(fun):
            raise ArgumentTypeError(
                f"{type(self).__name__} takes a function; got {type(fun).__name__}. As a decorator with options write "
                f"@functools.partial({type(self).__name__}, nondiff_argnums=(0,))."
            )
        self.fun = fun
        self.nondiff_argnums = (nondiff_argnums,) if isinstance(nondiff_argnums, int) else tuple(nondiff_argnums)
        self.name = getattr(fun, "__name__", None) or type(fun).__name__
        self._looked_at = False
        functools.update_wrapper(self, fun, updated=())

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        rules = self._rules()
        args = self._bound(args, kwargs)
        numbers = sorted(k % len(args) for k in self.nondiff_argnums if -len(args) <= k < len(args))
        self._check_static([args[k] for k in numbers])
        leaves, structure = trees.flatten(tuple([arg for k, arg in enumerate(args) if k not in numbers]))
        self._check_tracers(leaves)
        taped = [k for k, leaf in enumerate(leaves) if isinstance(leaf, (ndarray, AdjFloat))]
        if not taped or not annotate_tape():
            return self.fun(*args)
        if not self._looked_at:
            for rule in (self.fun, *rules):
                check_captures(rule, self.name)
            self._looked_at = True
        at = self._at({k: args[k] for k in numbers}, structure, [_constant(leaf) for leaf in leaves], taped)
        given = [leaves[k] for k in taped]
        with stop_annotating():
            outputs = at.value([input_of(leaf, "an argument", self.name) for leaf in given])
        dependencies = [copied(leaf) if isinstance(leaf, AdjFloat) else leaf for leaf in given]
        put_on_tape(lambda x: RuleBlock(at, x), dependencies, outputs)
        return trees.unflatten(at.out_structure, outputs)

    def _rules(self) -> tuple[Function, ...]:
        raise NotImplementedError

    def _at(self, *call: Any) -> "RuledCall":
        raise NotImplementedError

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """All arguments by position, defaults filled in."""
        try:
            bound = inspect.signature(self.fun).bind(*args, **kwargs)
        except ValueError:  # a function that Python cannot look into
            bound = None
        if bound is not None:
            bound.apply_defaults()
            args, kwargs = bound.args, bound.kwargs
        if kwargs:
            raise ArgumentTypeError(
                f"{self.name}: rules speak of positional arguments; got the keyword-only argument(s) {', '.join(kwargs)}."
            )
        return args

    def _check_static(self, values: list[Any]) -> None:
        for value in values:
            for path, found in captured(value):
                raise ArgumentTypeError(
                    f"{self.name}: an argument in nondiff_argnums holds a taped value ({type(found).__name__}"
                    f"{f' {path}' if path else ''}), whose derivative would be lost. Make it a differentiated argument; "
                    "for that, a rule may return zeros."
                )

    def _check_tracers(self, leaves: list[Any]) -> None:
        for leaf in leaves:
            if (engine := tracing_engine(leaf)) is not None:
                raise ArgumentTypeError(
                    f"{self.name} got a value of {engine.name}'s own differentiation, which does not know its rule. Use "
                    f"{engine.name}'s way to give a rule there."
                )


def _constant(leaf: Any) -> Any:
    """A leaf as a rule sees it where it is not taped: numbers that can vary are arrays, others stay what they are."""
    if isinstance(leaf, (OverloadedType, bool, int, str, bytes)) or callable(leaf):
        return leaf
    try:
        return array(leaf)
    except ArgumentTypeError:
        return leaf


# Forward rules -----------------------------------------------------------------------------------------------------------


class custom_jvp(_Custom):
    """A program whose derivative is a rule for tangents; adjoints are its transpose.

    Args:
        fun: a program of overloaded functions and NumPy operations of positional arguments in nested containers.
        nondiff_argnums: positions of arguments that are not differentiated, such as functions and sizes. They come first,
            by themselves, when the rule is called.

    Example:
        >>> import numpy as np
        >>> from pyadjoint_utils import custom_jvp, grad
        >>> @custom_jvp
        ... def f(x, y):
        ...     return np.sin(x) * y
        >>> @f.defjvp
        ... def f_jvp(primals, tangents):
        ...     (x, y), (x_dot, y_dot) = primals, tangents
        ...     return f(x, y), np.cos(x) * x_dot * y + np.sin(x) * y_dot
        >>> round(float(grad(f)(2.0, 3.0)), 6)
        -1.248441
    """

    def __init__(self, fun: Function, nondiff_argnums: int | Sequence[int] = ()) -> None:
        super().__init__(fun, nondiff_argnums)
        self.jvp: Function | None = None
        self.linear = False  # whether it was seen that the rule is linear in the tangents

    def defjvp(self, jvp: Function, symbolic_zeros: bool = False) -> Function:
        """Define the rule, ``jvp(*nondiff_args, primals, tangents) -> (value, tangent)``, and return it.

        Args:
            jvp: a program that is linear in the tangents. What does not vary has a zero tangent; what is no floating or
                complex number has None.
            symbolic_zeros: not supported.

        Raises:
            UnsupportedError: ``symbolic_zeros`` is set.
        """
        _refuse_symbolic_zeros(symbolic_zeros)
        self.jvp, self.linear, self._looked_at = jvp, False, False
        return jvp

    def defjvps(self, *jvps: Function | None) -> None:
        """Define one rule for each argument, ``rule(tangent, value, *primals) -> tangent``; None for zero.

        Args:
            jvps: the rules, in the order of the arguments.

        Raises:
            ArgumentValueError: the program has ``nondiff_argnums``, with which this cannot be combined.
        """
        if self.nondiff_argnums:
            raise ArgumentValueError(f"{self.name}: defjvps cannot be combined with nondiff_argnums; use defjvp.")

        def rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
            value = self(*primals)
            pairs = zip(jvps, tangents, strict=False)
            terms = [one(tangent, value, *primals) for one, tangent in pairs if one is not None and tangent is not None]
            total = trees.mapped(lambda y: None, value) if not terms else functools.reduce(_sum, terms)
            return value, total

        self.defjvp(rule)

    def _rules(self) -> tuple[Function, ...]:
        if self.jvp is None:
            raise NotDifferentiableError(
                f"{self.name} is a custom_jvp without a rule. Define one: @{self.name}.defjvp."
            )
        return (self.jvp,)

    def _at(self, *call: Any) -> "ForwardCall":
        return ForwardCall(self, *call)


def _sum(a: Any, b: Any) -> Any:
    """The sum of two values in equal containers."""
    leaves, structure = trees.flatten(a)
    return trees.unflatten(structure, [x + y for x, y in zip(leaves, structure.flatten_up_to(b), strict=True)])


# Reverse rules -----------------------------------------------------------------------------------------------------------


class custom_vjp(_Custom):
    """A program whose derivative is a rule for cotangents; tangents are its transpose.

    Args:
        fun: a program of overloaded functions and NumPy operations of positional arguments in nested containers.
        nondiff_argnums: positions of arguments that are not differentiated, such as functions and sizes. They come first,
            by themselves, when the backward rule is called; the forward rule has the arguments of ``fun``.

    Example:
        >>> import numpy as np
        >>> from pyadjoint_utils import custom_vjp, grad
        >>> @custom_vjp
        ... def f(x, y):
        ...     return np.sin(x) * y
        >>> def f_fwd(x, y):
        ...     return f(x, y), (np.cos(x), np.sin(x), y)
        >>> def f_bwd(residuals, g):
        ...     cos_x, sin_x, y = residuals
        ...     return cos_x * g * y, sin_x * g
        >>> f.defvjp(f_fwd, f_bwd)
        >>> round(float(grad(f)(2.0, 3.0)), 6)
        -1.248441
    """

    def __init__(self, fun: Function, nondiff_argnums: int | Sequence[int] = ()) -> None:
        super().__init__(fun, nondiff_argnums)
        self.fwd: Function | None = None
        self.bwd: Function | None = None

    def defvjp(self, fwd: Function, bwd: Function, symbolic_zeros: bool = False) -> None:
        """Define the rule.

        Args:
            fwd: takes the arguments of the program; returns a pair of its value and residuals, what ``bwd`` needs.
            bwd: ``bwd(*nondiff_args, residuals, cotangent)`` returns ``J^H`` times the cotangent under ``Re<a, b>``: a
                tuple with one entry for each differentiated argument, in its containers; None for zero.
            symbolic_zeros: not supported.

        Raises:
            UnsupportedError: ``symbolic_zeros`` is set.
        """
        _refuse_symbolic_zeros(symbolic_zeros)
        self.fwd, self.bwd, self._looked_at = fwd, bwd, False

    def _rules(self) -> tuple[Function, ...]:
        if self.fwd is None or self.bwd is None:
            raise NotDifferentiableError(
                f"{self.name} is a custom_vjp without a rule. Define one: {self.name}.defvjp(fwd, bwd)."
            )
        return (self.fwd, self.bwd)

    def _at(self, *call: Any) -> "ReverseCall":
        return ReverseCall(self, *call)


def _refuse_symbolic_zeros(symbolic_zeros: bool) -> None:
    if symbolic_zeros:
        raise UnsupportedError("Rules are called with zeros, not with symbolic zeros. Leave symbolic_zeros=False.")
