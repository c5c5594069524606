"""Programs with derivatives by hand: rules that are programs of overloaded functions themselves, to any order."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pyadjoint import AdjFloat, stop_annotating
from pyadjoint.overloaded_type import OverloadedType

from pyadjoint_utils import trees
from pyadjoint_utils.annotation import annotate_tape
from pyadjoint_utils.captures import captured, check_captures
from pyadjoint_utils.conversion import copied
from pyadjoint_utils.engine import tracing_engine
from pyadjoint_utils.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    NotDifferentiableError,
    UnsupportedError,
)
from pyadjoint_utils.leaves import array_of, input_of
from pyadjoint_utils.prepared import put_on_tape
from pyadjoint_utils.rule_block import RuleBlock, Values
from pyadjoint_utils.traced import Traced
from pyadjoint_utils.transformations import jvp, linear_adjoint, vjp
from pyadjoint_utils.values import array, ndarray

Function = Callable[..., Any]
_LEAF, _NOTHING = trees.flatten(0)[1], trees.flatten(None)[1]


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

    def _at(self, *call: Any) -> "_At":
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


class _At:
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

    def _at(self, *call: Any) -> "_ForwardAt":
        return _ForwardAt(self, *call)


def _sum(a: Any, b: Any) -> Any:
    """The sum of two values in equal containers."""
    leaves, structure = trees.flatten(a)
    return trees.unflatten(structure, [x + y for x, y in zip(leaves, structure.flatten_up_to(b), strict=True)])


class _ForwardAt(_At):
    """A program with a rule for tangents at one call."""

    def value(self, x: Values) -> list[ndarray]:
        return self.outputs(self.owner.fun(*self.arguments(x)))

    def push(self, x: Values, dx: Values) -> list[Any]:
        result = self.owner.jvp(*self.statics, self.primals(x), self.directions(x, dx))
        if not isinstance(result, tuple) or len(result) != 2:
            raise ArgumentValueError(
                f"{self.owner.name}: its jvp must return a pair of value and tangent; got {type(result).__name__}."
            )
        return self.tangents_of(result[1])

    def pull(self, x: Values, yb: Values) -> list[Any]:
        def push(*dx: Any) -> tuple[Any, ...]:
            return tuple(self.push(x, dx))

        zeros = [v._ad_init_zero() for v in x if v.aval.differentiable]
        if not self.owner.linear:
            with stop_annotating():
                linear_adjoint(push, *zeros)
            self.owner.linear = True
        return list(vjp(push, *zeros)[1](tuple(yb)))


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

    def _at(self, *call: Any) -> "_ReverseAt":
        return _ReverseAt(self, *call)


class _ReverseAt(_At):
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


def _refuse_symbolic_zeros(symbolic_zeros: bool) -> None:
    if symbolic_zeros:
        raise UnsupportedError("Rules are called with zeros, not with symbolic zeros. Leave symbolic_zeros=False.")
