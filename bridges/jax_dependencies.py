"""Which results of a linear map depend on which of its inputs, read off the traced program and not off any values.

The map is linear in the inputs that are asked about (a JVP in its tangents, a VJP in its cotangents), so that only linear
primitives stand on the way, and whatever rule a function has for its derivative is already applied.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal
from scipy import sparse

from bridges.jax_patterns import RULES, Patterns, Value, bound, either, unknown
from pyadjoint_utils.engine import Arrays, Aval, Map
from pyadjoint_utils.jacobians.patterns import Pattern, gathered, identity, nothing, product, union


class _NoForwardRuleError(Exception):
    """A function has a rule for adjoints alone."""


def dependencies_of(f: Map, x: Sequence[Aval], c: Sequence[Any], n: int, wide: bool) -> Pattern | None:
    """Return the pattern of a map, traced under 64-bit types or not; see :meth:`pyadjoint_utils.Engine.dependencies_of`."""
    free = [k for k, value in enumerate(c) if isinstance(value, Aval)]

    def flat(*arrays: Any) -> Arrays:
        constants = list(c)
        for k, value in zip(free, arrays[len(x) :], strict=True):
            constants[k] = value
        return f(arrays[: len(x)], tuple(constants))

    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (*x, *[c[k] for k in free])]
    try:
        with jax.enable_x64(wide):
            program = jax.make_jaxpr(flat)(*shapes)
    except Exception:  # values decide what it does, which fails in many ways, or there is no such derivative
        return None
    sizes = [aval.size for aval in program.in_avals[n : len(x)]]
    inputs = [*[Value(None)] * n, *_identities(sizes), *[Value(None)] * len(free)]
    try:
        with jax.enable_x64(True):  # the places of many numbers are no 32-bit floats
            outputs = _run(program, inputs)
    except _NoForwardRuleError:
        return None
    pairs = zip(outputs, program.out_avals, strict=True)
    patterns = [nothing(aval.size, sum(sizes)) if y.pattern is None else y.pattern for y, aval in pairs]
    return sparse.vstack(patterns, format="csr")


def _identities(sizes: Sequence[int]) -> list[Value]:
    """Variables whose numbers, one after the other, are the columns."""
    ends = np.cumsum([0, *sizes])
    return [Value(identity(size, int(ends[-1]), int(start))) for size, start in zip(sizes, ends[:-1], strict=True)]


def _run(program: ClosedJaxpr, inputs: Sequence[Value]) -> list[Value]:
    """Follow a program from its inputs to its outputs."""
    jaxpr = program.jaxpr
    values: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
    values |= {v: _constant(value) for v, value in zip(jaxpr.constvars, program.consts, strict=True)}
    uses = Counter(v for v in (*jaxpr.outvars, *[v for eqn in jaxpr.eqns for v in eqn.invars]) if not _literal(v))
    for eqn in jaxpr.eqns:
        given = [_read(values, atom) for atom in eqn.invars]
        if all(value.pattern is None for value in given):
            results = _independent(eqn, given)
        else:
            results = [Value(pattern) for pattern in _RULES.get(eqn.primitive.name, unknown)(eqn, given)]
        values |= {v: result for v, result in zip(eqn.outvars, results, strict=True) if uses[v]}
        for v in (v for v in eqn.invars if not _literal(v)):
            uses[v] -= 1
            if not uses[v]:
                del values[v]
    return [_read(values, atom) for atom in jaxpr.outvars]


def _literal(atom: Any) -> bool:
    return isinstance(atom, Literal)


def _read(values: dict[Any, Value], atom: Any) -> Value:
    return _constant(atom.val) if _literal(atom) else values[atom]


def _constant(value: Any) -> Value:
    return Value(None, lambda: value)


def _independent(eqn: Any, given: Sequence[Value]) -> list[Value]:
    """Results that depend on nothing; if they are always the same, they are computed when an index needs them."""
    sources = [value.known for value in given if value.known is not None]

    @functools.cache
    def results() -> Sequence[Any]:
        return bound(eqn, [source() for source in sources])

    def result(k: int) -> Any:
        return results()[k]

    known = len(sources) == len(given) and not eqn.effects
    return [Value(None, functools.partial(result, k) if known else None) for k in range(len(eqn.outvars))]


# Programs inside of the program ------------------------------------------------------------------------------------------


def _patterns(values: Sequence[Value]) -> list[Pattern | None]:
    return [value.pattern for value in values]


def _call(eqn: Any, given: Sequence[Value]) -> Patterns:
    inner = next(eqn.params[key] for key in ("jaxpr", "call_jaxpr") if key in eqn.params)
    return _patterns(_run(inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ()), given))


def _backward_alone(eqn: Any, given: Sequence[Value]) -> Patterns:
    raise _NoForwardRuleError


def _cond(eqn: Any, given: Sequence[Value]) -> Patterns:
    """Any branch may be taken."""
    branches = [_patterns(_run(branch, given[1:])) for branch in eqn.params["branches"]]
    return [either(*patterns) for patterns in zip(*branches, strict=True)]


def _linear_solve(eqn: Any, given: Sequence[Value]) -> Patterns:
    lengths = eqn.params["const_lengths"]
    start, end = lengths.matvec + lengths.vecmat, sum(lengths)
    if any(value.pattern is not None for value in given[:end]):
        return unknown(eqn, given)
    return _patterns(_run(eqn.params["jaxprs"].solve, [*given[start : start + lengths.solve], *given[end:]]))


def _while(eqn: Any, given: Sequence[Value]) -> Patterns:
    """Any number of steps; how many has no derivative."""
    first = eqn.params["cond_nconsts"]
    start = first + eqn.params["body_nconsts"]

    def step(carry: Patterns) -> Sequence[Value]:
        return _run(eqn.params["body_jaxpr"], [*given[first:start], *map(Value, carry)])

    return _settled(step, _patterns(given[start:]))


def _settled(step: Callable[[Patterns], Sequence[Value]], carry: Patterns) -> list[Pattern | None]:
    """What a loop may carry after any number of steps."""
    while True:
        after = [either(before, y.pattern) for before, y in zip(carry, step(carry), strict=True)]
        if list(map(_entries, after)) == list(map(_entries, carry)):
            return after
        carry = after


def _entries(pattern: Pattern | None) -> int:
    return 0 if pattern is None else pattern.nnz


def _scan(eqn: Any, given: Sequence[Value]) -> Patterns:
    """Step t depends on its own slice and on what may have been carried there; nothing is unrolled."""
    parameters = eqn.params
    body, length, count = parameters["jaxpr"], parameters["length"], parameters["num_carry"]
    if not length:
        return unknown(eqn, given)
    first = parameters["num_consts"]
    constants, slices = given[:first], _patterns(given[first + count :])
    at_any_step = [Value(None if s is None else _over_steps(s, length)) for s in slices]

    def step(carry: Patterns) -> Sequence[Value]:
        return _run(body, [*constants, *map(Value, carry), *at_any_step])[:count]

    carry = _settled(step, _patterns(given[first : first + count]))
    shared = [*constants, *map(Value, carry)]
    return [*carry, *_stacked(body, shared, slices, length, count)]


def _over_steps(pattern: Pattern, length: int) -> Pattern:
    """What a slice depends on at any step, given the patterns of all of them."""
    size = pattern.shape[0] // length
    return gathered(pattern, np.tile(np.arange(size), length), size)


def _stacked(body: ClosedJaxpr, shared: Sequence[Value], slices: Patterns, length: int, count: int) -> Patterns:
    """The results of all steps: one step is followed, by the numbers of its inputs, and repeated.

    Args:
        body: the program of one step, whose first ``count`` results are carried.
        shared: inputs that are the same at each step.
        slices: the stacked patterns of the inputs that are not.
        length: how many steps there are.
        count: how many results are carried.
    """
    given = dict(enumerate([*_patterns(shared), *slices]))
    dependent = {k: pattern for k, pattern in given.items() if pattern is not None}
    sizes = [pattern.shape[0] // (length if k >= len(shared) else 1) for k, pattern in dependent.items()]
    inputs = [Value(None, shared[k].known if k < len(shared) else None) for k in given]
    for k, own in zip(dependent, _identities(sizes), strict=True):
        inputs[k] = own
    ends = np.cumsum([0, *sizes])
    results: list[Pattern | None] = []
    for found in _patterns(_run(body, inputs)[count:]):
        if found is None:
            results.append(None)
            continue
        terms: list[Pattern] = []
        for j, (k, pattern) in enumerate(dependent.items()):
            local = found[:, ends[j] : ends[j + 1]]
            repeated = np.ones((length, 1), bool) if k < len(shared) else identity(length)
            terms.append(product(sparse.csr_array(sparse.kron(repeated, local), dtype=bool), pattern))
        results.append(union(*terms))
    return results


_RULES = {
    **RULES,
    **dict.fromkeys("jit pjit closed_call core_call checkpoint remat remat2".split(), _call),
    "custom_lin": _backward_alone,
    "cond": _cond,
    "while": _while,
    "scan": _scan,
    "custom_linear_solve": _linear_solve,
}
