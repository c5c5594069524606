"""Tracing with nodes of our own, sweeps over them, and calls of autograd's rules.

A derivative has the shape and dtype of what it belongs to, or it is an error. Forward mode transposes the VJP of a function
that has no JVP.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.core import JVPNode, VJPNode, add_outgrads, primitive_jvps, primitive_vjps, vspace
from autograd.numpy import numpy_wrapper
from autograd.tracer import Box, isbox, new_box, notrace_primitives, trace_stack
from autograd.util import toposort

from pyadjoint_utils.engine import Arrays, Aval
from pyadjoint_utils.errors import NotDifferentiableError

# Rules in the place of autograd's, and functions whose JVP is the transposed VJP; bridges.autograd_rules lists them.
VJPS: dict[Any, Callable[..., Any]] = {}
TRANSPOSED: set[Any] = set()
# What autograd takes for constant almost everywhere.
CONSTANT = notrace_primitives[VJPNode]


# Nodes and sweeps ------------------------------------------------------------------------------------------------------

_levels = itertools.count()


def _new_level() -> int:
    """A level of tracing that lies above all others of this thread.

    autograd's own counter is shared between threads and not restored after an exception; a level that another thread
    took in between would mix up two derivatives. Ours only grows.
    """
    level = next(_levels)
    while level <= trace_stack.top:
        level = next(_levels)
    trace_stack.top = level
    return level


def trace(f: Callable[..., Arrays], values: Arrays, roots: Sequence[Any]) -> tuple[Arrays, list[Any]]:
    """Run a function on boxed values; return its outputs and, for each, the node that made it or None."""
    level = _new_level()
    outputs = f(tuple([new_box(v, level, root) for v, root in zip(values, roots, strict=True)]))
    nodes = [y._node if isbox(y) and y._trace == level else None for y in outputs]
    for y, node in zip(outputs, nodes, strict=True):
        if node is None and isinstance(y, np.ndarray) and y.dtype.kind == "O":
            raise NotDifferentiableError(
                "A plain NumPy function met an autograd value and made an array of objects of it, which drops the "
                "derivative. Use the functions of autograd.numpy inside overload_autograd."
            )
    return tuple([y if node is None else y._value for y, node in zip(outputs, nodes, strict=True)]), nodes


class Cotangent(VJPNode):
    """Node of reverse mode: every cotangent has the shape and dtype of the value that it belongs to."""

    __slots__ = ()
    parents: Any
    vjp: Any

    def __init__(self, value: Any, fun: Any, args: Any, kwargs: Any, argnums: Any, parents: Any) -> None:
        self.parents = parents
        self.vjp = _pull_back_of(fun, argnums, value, args, kwargs)


class Tangent(JVPNode):
    """Node of forward mode; a function without a JVP takes the transpose of its VJP."""

    __slots__ = ()
    g: Any

    def __init__(self, value: Any, fun: Any, args: Any, kwargs: Any, argnums: Any, parents: Any) -> None:
        self.g = _push_forward(fun, argnums, [parent.g for parent in parents], value, args, kwargs)


class _End:
    """Stands for several outputs, where autograd's ``toposort`` takes one."""

    def __init__(self, parents: list[Any]) -> None:
        self.parents = parents


def backward(roots: Sequence[Any], ends: Sequence[tuple[Any, Any]]) -> list[Any]:
    """Pull cotangents of several outputs back to several inputs; None where nothing arrives."""
    gradients: dict[Any, Any] = {}  # each with whether it may be changed in place
    for node, g in ends:
        gradients[node] = add_outgrads(gradients.get(node), g)
    order = toposort(_End([node for node, _ in ends]))
    next(order)
    for node in order:
        if node.parents:
            for parent, g in zip(node.parents, node.vjp(gradients.pop(node)[0]), strict=True):
                gradients[parent] = add_outgrads(gradients.get(parent), g)
    return [gradients[root][0] if root in gradients else None for root in roots]


# What a derivative looks like ------------------------------------------------------------------------------------------


def aval_of(value: Any) -> Aval | None:
    """Return the shape and dtype of what a box holds, None for what is no array."""
    if type(value) is np.ndarray:
        return Aval(value.shape, value.dtype)
    while type(value) in Box.types:
        value = value._value
    if isinstance(value, (np.ndarray, np.generic)):
        return Aval(value.shape, value.dtype)
    return Aval((), np.asarray(value).dtype) if isinstance(value, (float, complex)) else None


def fitted(g: Any, aval: Aval | None, name: Any) -> Any:
    """Project a derivative onto the dtype of its value, real or complex, wide or narrow; another shape is an error."""
    found = aval_of(g)  # None for autograd's sparse and nested derivatives
    if aval is None or found is None or found == aval:
        return g
    if found.shape != aval.shape:
        raise NotDifferentiableError(
            f"autograd's rule for {_name(name)} gives a derivative of shape {found.shape} for a value of shape "
            f"{aval.shape} with these arguments. Write the computation with other functions, or define a primitive with a "
            "rule of your own."
        )
    if not aval.differentiable:
        return g
    if found.dtype.kind == "c" and aval.dtype.kind != "c":
        g = anp.real(g)
    return numpy_wrapper._astype(g, aval.dtype)


# One primitive ---------------------------------------------------------------------------------------------------------


def _name(fun: Any) -> str:
    return getattr(fun, "__name__", str(fun))


def _no_rule(fun: Any, args: Any, kwargs: Any, why: object) -> NotDifferentiableError:
    given = ", ".join([_described(a) for a in args] + [f"{key}={_described(value)}" for key, value in kwargs.items()])
    return NotDifferentiableError(
        f"autograd has no derivative of {_name(fun)}({given}): {why}. Write it with functions that have one, or "
        "give it a rule with autograd.extend.primitive and defvjp."
    )


def _described(value: Any) -> str:
    aval = value if isinstance(value, Aval) else aval_of(value)
    return repr(value)[:40] if aval is None else str(aval)


# Keyword arguments that change the derivative, though autograd's rules swallow them.
_UNSEEN = {"where", "initial", "correction", "mean", "out"}
_RULE_ERRORS = (NotImplementedError, AssertionError, KeyError, TypeError, NameError, IndexError)


def _apply(fun: Any, args: Any, kwargs: Any, rule: Callable[..., Any], *given: Any) -> Any:
    """Call a rule of autograd's; one that does not know these arguments fails in many ways."""
    for key in _UNSEEN.intersection(kwargs) if kwargs else ():
        if kwargs[key] is not None and kwargs[key] is not np._NoValue:
            raise _no_rule(fun, args, kwargs, f"its rule does not know {key}=")
        kwargs = {other: value for other, value in kwargs.items() if other != key}
    try:
        return rule(*given, args, kwargs)
    except NotDifferentiableError:
        raise
    except _RULE_ERRORS as error:
        raise _no_rule(fun, args, kwargs, f"{type(error).__name__}: {error}") from error


def _pull_back_of(fun: Any, argnums: Any, value: Any, args: Any, kwargs: Any) -> Callable[[Any], list[Any]]:
    """Return the VJP of one call: from the value's cotangent to those of the boxed arguments."""
    maker = VJPS.get(fun)
    if not _passes(value) or (maker is None and fun in CONSTANT):
        # Whole numbers and truth values are constant almost everywhere, as is what autograd was told so by others.
        return lambda g: [vspace(args[i]).zeros() for i in argnums]
    maker = maker or primitive_vjps.get(fun)
    if maker is None:
        raise _no_rule(fun, args, kwargs, "there is no rule for it")
    rule = _apply(fun, args, kwargs, maker, argnums, value)
    # Not the arguments: with them, every intermediate value would be kept.
    avals = [(a.shape, a.dtype) if type(a := args[i]) is np.ndarray else aval_of(a) for i in argnums]

    def pull_back(g: Any) -> list[Any]:
        try:
            return [
                x if type(x) is np.ndarray and (x.shape, x.dtype) == a else fitted(x, a and Aval(*a), fun)
                for x, a in zip(rule(g), avals, strict=True)
            ]
        except np.linalg.LinAlgError:
            raise
        except (NotImplementedError, ValueError) as error:
            raise _no_rule(fun, [a and Aval(*a) for a in avals], kwargs, error) from error

    return pull_back


def _passes(value: Any) -> bool:
    """Whether a derivative passes a value of this dtype."""
    if type(value) is np.ndarray:
        return value.dtype.kind in "fcV"
    aval = aval_of(value)
    return aval is None or aval.differentiable


def _push_forward(fun: Any, argnums: Any, gs: list[Any], value: Any, args: Any, kwargs: Any) -> Any:
    """Return the tangent of one call."""
    rule = None if fun in TRANSPOSED else primitive_jvps.get(fun)
    aval = aval_of(value)
    if rule is None or (aval is not None and not aval.differentiable):
        return _transposed(_pull_back_of(fun, argnums, value, args, kwargs), value, gs)
    g = _apply(fun, args, kwargs, rule, argnums, gs, value)
    found = aval_of(g)
    if aval is not None and found is not None and found.shape != aval.shape:
        g = anp.add(g, np.zeros(aval.shape, aval.dtype))  # as of where(), whose branches broadcast
    return fitted(g, aval, fun)


def _transposed(pull_back: Callable[[Any], list[Any]], value: Any, gs: list[Any]) -> Any:
    """The transpose of a VJP is the JVP, and a linear map can be transposed at any point."""
    # Not at zero, where autograd's rule of eigh takes a short cut.
    point, root = vspace(value).ones(), Cotangent.new_root()
    _, nodes = trace(lambda box: tuple(pull_back(box[0])), (point,), [root])
    ends = [(node, g) for node, g in zip(nodes, gs, strict=True) if node is not None]
    (tangent,) = backward([root], ends)
    return vspace(value).zeros() if tangent is None else tangent
