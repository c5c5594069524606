"""Several Blocks as one XLA program: loops, compiling, and how long that takes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp

from pyadjoint_utils.engine import Arrays, Aval, Map, Work

# Operations that give an entry another place. On CPUs, XLA computes the operand of each again for every operation that
# it merges with it, so that the work doubles with each step of a stencil.
_SHIFTS = {"concatenate", "dynamic_slice", "gather", "pad", "rev", "scatter", "scatter-add", "slice"}
_MANY_SHIFTS = 48


def loop(
    body: Callable[[Arrays, Arrays, Arrays], tuple[Arrays, Arrays]],
    carry: Arrays,
    constants: Arrays,
    rows: Arrays,
    length: int,
    *,
    remake: bool,
) -> tuple[Arrays, Arrays]:
    """Scan; see :meth:`pyadjoint_utils.Engine.loop`."""
    # A scan needs no barriers that keep recomputation from being merged with the first computation.
    turn = jax.checkpoint(body, prevent_cse=False) if remake else body
    return jax.lax.scan(lambda carry, row: turn(carry, constants, row), carry, rows, length)


def build(f: Map, x: Arrays, c: Arrays, work: Work) -> Map:
    """Compile ahead of time; the result also runs outside of the scope for 64-bit types."""
    options = {}
    if work.shifts >= _MANY_SHIFTS and jax.default_backend() == "cpu":
        options["xla_disable_hlo_passes"] = "fusion"
    anywhere = jax.jit(lambda x, c: f(x, c), compiler_options=options)
    wide, shardings = jax.config.jax_enable_x64, _shardings(x, c)
    program = anywhere.lower(x, c).compile()

    def call(x: Arrays, c: Arrays) -> Arrays:
        try:
            results: Arrays = program(x, c)
        except ValueError:
            if _shardings(x, c) == shardings:
                raise
            with jax.enable_x64(wide):  # arrays on other devices
                results = anywhere(x, c)
        return results

    return call


def _shardings(x: Arrays, c: Arrays) -> list[Any]:
    return [getattr(a, "sharding", None) for a in (*x, *c)]


def split_vjp_of(f: Map, n: int, outs: Sequence[int]) -> tuple[Map, Map]:
    """The two halves of a VJP; see :meth:`pyadjoint_utils.Engine.split_vjp_of`."""
    # What the pull-back consists of, and which of it are inputs, known once the first half has been traced: inputs are
    # not returned, since XLA would copy them.
    structure: Any = None
    given: list[int | None] = []

    def forward(x: Arrays, c: Arrays) -> Arrays:
        nonlocal structure

        def chosen(*x: Any) -> tuple[Arrays, Arrays]:
            y = f(x, c)
            return tuple([y[k] for k in outs]), y

        _, pull_back, y = jax.vjp(chosen, *x[:n], has_aux=True)
        leaves, structure = jax.tree_util.tree_flatten(pull_back)
        places = {id(array): k for k, array in enumerate((*x, *c))}
        given[:] = [places.get(id(leaf)) for leaf in leaves]
        return (*y, *[leaf for leaf, place in zip(leaves, given, strict=True) if place is None])

    def back(yb: Arrays, c: Arrays) -> Arrays:
        kept = iter(c)
        returned = [next(kept) for place in given if place is None]
        inputs, returned = list(kept), returned[::-1]
        leaves = [returned.pop() if place is None else inputs[place] for place in given]
        pull_back = jax.tree_util.tree_unflatten(structure, leaves)
        return tuple([jnp.conj(xb) for xb in pull_back(tuple([jnp.conj(y) for y in yb]))])

    return forward, back


def work(f: Callable[[Arrays], Arrays], inputs: Sequence[Aval]) -> Work:
    """Count the operations of a function."""
    shapes = tuple([jax.ShapeDtypeStruct(a.shape, a.dtype) for a in inputs])
    names = list(_operations(jax.make_jaxpr(f)(shapes).jaxpr))
    return Work(len(names), sum(name in _SHIFTS for name in names))


def _operations(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        inner = list(jax.extend.core.jaxprs_in_params(equation.params))
        for part in inner:
            yield from _operations(part)
        if not inner:
            yield equation.primitive.name


def seconds(work: Work, order: int) -> float:
    """About how long XLA takes on a core of 2024; measured for chains of small operations."""
    n = work.operations
    return 0.1 + 1e-3 * n + (1e-6 if order < 2 else 1.5e-5) * n * n
