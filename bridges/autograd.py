"""autograd: differentiates NumPy functions eagerly; its arrays are NumPy's.

autograd's rules are used as they are found, on two kinds of nodes of our own: one result has the shape and dtype of what
it is the derivative of, or it is an error; forward mode transposes the VJP of a function that has no JVP; and the few
rules that are silently wrong are replaced.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.builtins import DictBox, SequenceBox, container_take
from autograd.core import vspace
from autograd.extend import defjvp_argnums, defvjp_argnums, primitive
from autograd.numpy.numpy_boxes import ArrayBox
from autograd.tracer import Box, getval, isbox

from bridges.autograd_inside import as_autograd
from bridges.autograd_points import point_map
from bridges.autograd_rules import function_named
from bridges.autograd_tracing import Cotangent, Tangent, aval_of, backward, fitted, trace
from pyadjoint_utils.engine import Arrays, Aval, Map, NumPyArrays
from pyadjoint_utils.overloading import overload


def _conj(value: Any) -> Any:
    # autograd's cotangents pair without conjugation; the tape's pair under Re<a, b>.
    aval = aval_of(value)
    return anp.conj(value) if aval is not None and aval.dtype.kind == "c" else value


def _settled(value: Any) -> Any:
    """NumPy's scalars become 0-d arrays."""
    return value if isbox(value) or type(value) is np.ndarray else np.asarray(value)


def _sealed(array: Any) -> Any:
    """A view that cannot be written to: ``x += 1`` in a user's function would change what is on the tape."""
    if type(array) is np.ndarray and array.flags.writeable:
        array = array.view()
        array.flags.writeable = False
    return array


def _unboxed(leaf: Any) -> Any:
    """Open autograd's boxes of containers, so that the arrays in them are the leaves."""
    if not isinstance(leaf, (SequenceBox, DictBox)):
        return leaf
    value = getval(leaf)
    if isinstance(value, dict):
        return {key: _unboxed(container_take(leaf, key)) for key in value}
    items = [_unboxed(container_take(leaf, k)) for k in range(len(value))]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def _linearized(f: Map, x: Arrays, c: Arrays) -> tuple[Arrays, Callable[[Arrays, Sequence[int]], Arrays]]:
    """Return the outputs at ``x``, and the adjoint there for seeds of some of them."""
    roots = [Cotangent.new_root() for _ in x]
    y, nodes = trace(lambda boxes: f(boxes, c), x, roots)
    avals = [aval_of(value) for value in y]
    zeros = [vspace(value) for value in x]

    def pull_back(seeds: Arrays, outs: Sequence[int]) -> Arrays:
        ends = [
            (node, fitted(_conj(yb), aval, f"output {k}"))
            for k, yb in zip(outs, seeds, strict=True)
            if (node := nodes[k]) is not None and (aval := avals[k]) is not None and aval.differentiable
        ]
        gradients = backward(roots, ends)
        return tuple([z.zeros() if g is None else _settled(_conj(g)) for g, z in zip(gradients, zeros, strict=True)])

    return tuple([_settled(value) for value in y]), pull_back


class AutogradEngine(NumPyArrays):
    """autograd's functions and transformations of NumPy arrays."""

    name = "autograd"
    holds = "numpy"
    tracer_types = (ArrayBox,)

    def is_tracer(self, leaf: Any) -> bool:
        return isinstance(leaf, Box)

    def flatten(self, tree: Any) -> tuple[list[Any], Any]:
        leaves, structure = super().flatten(tree)
        if any(isinstance(leaf, (SequenceBox, DictBox)) for leaf in leaves):
            return super().flatten(self.unflatten(structure, [_unboxed(leaf) for leaf in leaves]))
        return leaves, structure

    def vjp_of(self, f: Map, n: int) -> Map:
        def vjp(x: Arrays, c: Arrays) -> Arrays:
            y, pull_back = _linearized(f, x[:n], c)
            return pull_back(x[n:], range(len(y)))

        return vjp

    def value_and_vjp_of(self, f: Map, n: int, outs: Sequence[int]) -> Map:
        def value_and_vjp(x: Arrays, c: Arrays) -> Arrays:
            y, pull_back = _linearized(f, x[:n], c)
            return (*y, *pull_back(x[n:], outs))

        return value_and_vjp

    def split_vjp_of(self, f: Map, n: int, outs: Sequence[int]) -> tuple[Map, Map]:
        def forward(x: Arrays, c: Arrays) -> Arrays:
            y, pull_back = _linearized(f, x, c)
            return (*y, pull_back)

        return forward, lambda yb, kept: kept[0](yb, outs)

    def jvp_of(self, f: Map, n: int) -> Map:
        def jvp(x: Arrays, c: Arrays) -> Arrays:
            roots = [Tangent.new_root(dx) for dx in x[n:]]
            y, nodes = trace(lambda boxes: f(boxes, c), x[:n], roots)
            dy = [vspace(v).zeros() if node is None else node.g for v, node in zip(y, nodes, strict=True)]
            return tuple([_settled(v) for v in (*y, *dy)])

        return jvp

    def compile(self, f: Map, avals: Sequence[Aval]) -> Map:
        def run(x: Arrays, c: Arrays) -> Arrays:
            return f(tuple([_sealed(a) for a in x]), tuple([_sealed(a) for a in c]))

        return run

    def checkpoint(self, f: Map) -> Map:
        @primitive
        def run(n: int, *arrays: Any) -> Arrays:
            return tuple([_settled(y) for y in f(arrays[:n], arrays[n:])])

        def between(argnums: Any, args: Any) -> tuple[Map, Arrays]:
            def g(x: Arrays, c: Arrays) -> Arrays:
                filled = list(args)
                for i, value in zip(argnums, x, strict=True):
                    filled[i] = value
                return f(tuple(filled[1 : 1 + filled[0]]), tuple(filled[1 + filled[0] :]))

            return g, tuple([args[i] for i in argnums])

        def vjp(argnums: Any, ans: Any, args: Any, kwargs: Any) -> Callable[[Any], Any]:
            local, x = between(argnums, args)

            def pull_back(yb: Any) -> Any:
                # A rule of autograd's pairs without conjugation, a map of ours with it.
                seeds = [_conj(yb[k]) for k in range(len(ans))]
                return [_conj(xb) for xb in self.vjp_of(local, len(x))((*x, *seeds), ())]

            return pull_back

        def jvp(argnums: Any, dx: Any, ans: Any, args: Any, kwargs: Any) -> Arrays:
            local, x = between(argnums, args)
            return self.jvp_of(local, len(x))((*x, *dx), ())[len(ans) :]

        defvjp_argnums(run, vjp)
        defjvp_argnums(run, jvp)

        def checkpointed(x: Arrays, c: Arrays) -> Arrays:
            y = run(len(x), *x, *c)
            return tuple([y[k] for k in range(len(y))])

        return checkpointed

    def stop(self, array: Any) -> Any:
        return getval(array)

    def function(self, name: str) -> Callable[..., Any] | None:
        return function_named(name)


engine = AutogradEngine()
overload_autograd = functools.partial(overload, engine=engine)

__all__ = ["AutogradEngine", "as_autograd", "engine", "overload_autograd", "point_map"]
