"""Repetitions of Blocks as loops: what is carried, constant, a row, or collected; against Block by Block."""

import engines
import numpy as np
import pytest

from pyadjoint_utils import AdjFloat, Control, ReducedFunction, array, overload_jax

e = engines.namespace("jax")
import jax.numpy as jnp  # noqa: E402  (only where JAX is installed)

A, P, D = (np.random.default_rng(k).uniform(0.2, 1.0, 3) for k in range(3))
N = 20


@overload_jax
def step(y, p):
    return y + 0.1 * jnp.sin(y) * p


@overload_jax
def leap(y, before, p):
    return 2 * y - before - 0.01 * p * jnp.sin(y)


@overload_jax
def cost(y, data):
    return jnp.sum((y - data) ** 2)


def own(x):
    return array(e.own(np.asarray(x)))


def loops(rf):
    """The loops of a compiled function: turns and Blocks in a turn."""
    (segment,) = rf._current().policy.at(1).steps
    return _loops(segment.rules(segment.engine).fused)


def _loops(fused):
    found = []
    for call in fused.calls:
        if hasattr(call, "length"):
            found += [(call.length, call.body.blocks), *_loops(call.body)]
    return found


def check(outputs, controls, expected=None, **options):
    """Compare everything with Block by Block, away from the recorded point; return what was found."""
    slow = ReducedFunction(outputs, [Control(c) for c in controls])
    fast = slow.compile(**options)
    rng = np.random.default_rng(7)

    def some():
        return [
            rng.uniform(0.2, 1.0, np.shape(c)) if np.shape(c) else AdjFloat(rng.uniform(0.2, 1.0)) for c in controls
        ]

    for _ in range(2):
        m, h = some(), some()
        values = slow(m)
        same(fast(m), values)
        v = [rng.uniform(0.2, 1.0, np.shape(y)) for y in values]
        same(fast.adj_jac_action(v), slow.adj_jac_action(v))
        same(fast.jac_action(h), slow.jac_action(h))
        same(fast.hess_action(h, v), slow.hess_action(h, v))
    if expected is not None:
        assert loops(fast) == expected
    return fast


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("memory", ["all", "step", "sqrt"])
@pytest.mark.parametrize("count", [16, 23, 25])
def test_carried_and_constant(memory, count):
    x, p = own(A), own(P)
    y = x
    for _ in range(count):
        y = step(y, p)
    check([y], [x, p], [(count, 1)], memory=memory)


def test_states_that_reach_back_two_steps():
    x, p = own(A), own(P)
    before, y = x, step(x, p)
    for _ in range(N):
        before, y = y, leap(y, before, p)
    check([y], [x, p], [(N, 1)])
    check([y, before], [x, p], [(N, 1)])


def test_a_state_of_two_steps_ago_alone():
    x, p = own(A), own(P)
    states = [x, step(x, p)]
    for _ in range(N):
        states.append(step(states[-2], p))
    check(states[-2:], [x, p], [(N + 1, 1)])


def test_constants_that_differ_from_step_to_step():
    x = own(A)
    y = x
    for k in range(N):
        y = step(y, 0.1 * k)
    check([y], [x], [(N, 1)])


def test_adjfloat_arithmetic_of_the_time():
    x, t, dt = own(A), AdjFloat(0.3), AdjFloat(0.1)
    y = x
    for _ in range(N):
        y = step(y, t)
        t = t + dt * 2.0
    check([y], [x, dt], [(N - 1, 3)])


def test_a_control_for_every_step():
    x, forcing = own(A), [own(P + k) for k in range(N)]
    y = x
    for f in forcing:
        y = step(y, f)
    check([y], [x, *forcing], [(N, 1)])


def test_all_states_are_outputs():
    x, p = own(A), own(P)
    states = [x]
    for _ in range(N):
        states.append(step(states[-1], p))
    check(states[1:], [x, p], [(N, 1)])


@pytest.mark.parametrize("memory", ["all", "sqrt"])
def test_what_one_loop_collects_another_takes_row_by_row(memory):
    x, p = own(A), own(P)
    states = [x]
    for _ in range(N):
        states.append(step(states[-1], p))
    J = cost(states[0], D)
    for k, y in enumerate(states[1:]):
        J = J + cost(y, D * k)
    check([J], [x, p], [(N, 1), (N, 2)], memory=memory)


def test_a_functional_that_grows_in_the_loop():
    x, p = own(A), own(P)
    y, J = x, cost(x, D)
    for _ in range(N):
        y = step(y, p)
        J = J + cost(y, D)
    check([J, y], [x, p], [(N, 3)])


def test_every_tenth_step_writes_output():
    x, p = own(A), own(P)
    y, written = x, []
    for k in range(200):
        y = step(y, p)
        if k % 10 == 9:
            written.append(cost(y, D))
    check(written, [x, p], turns=8)
    fast = check(written, [x, p], turns=10)
    assert loops(fast) == [(20, 11), (10, 1)]


def test_ten_steps_between_outputs_are_a_loop_in_a_loop_and_ten_layers_are_none():
    """Fewer repetitions than TURNS are a loop where they are many operations to compile, and sooner inside of a loop."""
    F = own(np.random.default_rng(5).normal(size=(300, 3)))
    x, p = own(A), own(P)
    for count, expected in [(300, [(29, 54), (10, 5)]), (100, [(9, 54), (10, 5)])]:
        v, q, J = x, p, 0.0
        for n in range(count):
            v = kick(v, q, F[n] * 2.0)
            q = q + v * 0.02
            if n % 10 == 9:
                J = J + (q * q).sum() * 0.1
        check([J], [x, p, F], expected)
    y = layered(x, p, 10)
    check([y], [x, p], [])
    check([y], [x, p], [(10, 1)], turns=10)


@overload_jax
def kick(v, q, f):
    return v + 0.02 * (f - 0.3 * v - jnp.sin(q))


def layered(x, p, count):
    y = np.sin(x)
    for _ in range(count):
        y = step(y, p)
    return np.cos(y)


def test_prologue_epilogue_and_two_loops():
    x, p = own(A), own(P)
    y = step(step(x, x), p)
    for _ in range(N):
        y = step(y, p)
    y = leap(y, x, p)
    for _ in range(N):
        y = leap(step(y, x), y, p)
    check([cost(y, D)], [x, p])


def test_a_reference_to_the_first_state():
    x, p = own(A), own(P)
    first = y = step(x, p)
    J = cost(y, D)
    for _ in range(N):
        y = step(y, p)
        J = J + cost(y, first)
    check([J], [x, p], [(N, 3)])


def test_states_that_are_swapped():
    a, b = own(A), own(P)
    x, p = a, b
    for _ in range(N):
        a, b = step(b, a), a
    check([a, b], [x, p], [(N, 1)])


def test_values_shortly_before_the_end():
    x, p = own(A), own(P)
    states = [x]
    for _ in range(N):
        states.append(step(states[-1], p))
    check([states[-3], states[-1]], [x, p], [(N, 1)])


def test_a_loop_that_is_interrupted():
    """A step in the middle takes something else than the others."""
    x, p = own(A), own(P)
    y = x
    for k in range(3 * N):
        y = step(y, x if k == N + 3 else p)
    fast = check([y], [x, p])
    assert sum(length for length, _ in loops(fast)) >= 3 * N - 1


def test_integers_are_carried_along():
    @overload_jax
    def count(y, k):
        return y * jnp.cos(k * 0.1), k + 1

    x = own(A)
    y, k = x, array(jnp.zeros((), int))
    for _ in range(N):
        y, k = count(y, k)
    check([y], [x], [(N, 1)])


def test_a_stopped_argument_stays_stopped():
    @overload_jax(argnums=0)
    def damped(y, p):
        return y * 0.9 + jnp.sin(p)

    x = own(A)
    y = x
    for _ in range(N):
        y = damped(y, y)
    fast = check([y], [x], [(N, 1)])
    fast([np.asarray(P)])
    np.testing.assert_allclose(fast.jac_action([np.ones(3)])[0].numpy(), 0.9**N * np.ones(3))


def test_memory_of_a_long_loop():
    """1024 states of 64x64 take 33.6 MB; with the square root of them, value and gradient need less than 8 MB."""
    import jax

    @overload_jax
    def move(u):
        return u * 0.5 + 0.01 * jnp.tanh(jnp.roll(jnp.sin(u), 1, 0))

    u = start = own(np.random.default_rng(0).standard_normal((64, 64)))
    for _ in range(1024):
        u = move(u)
    rf = ReducedFunction(cost(u, np.zeros((64, 64))), Control(start))
    needs = {}
    for memory in ("all", "step", "sqrt"):
        (segment,) = rf.compile(memory=memory)._current().policy.at(1).steps
        rules = segment.compiled
        local = rules.at((0,), (0,))
        both = rules.engine.value_and_vjp_of(local.whole, 1, (0,))
        with jax.enable_x64(True):
            program = jax.jit(both).lower((start.value, jnp.ones(())), segment.constants).compile()
        needs[memory] = program.memory_analysis().temp_size_in_bytes
    state = start.value.nbytes
    assert needs["all"] > 2000 * state
    assert 1000 * state < needs["step"] < 1100 * state
    assert needs["sqrt"] < 8e6


def test_no_memory_is_kept_from_call_to_call():
    import jax

    x, p = own(A), own(P)
    y = x
    for _ in range(N):
        y = step(y, p)
    fast = ReducedFunction(cost(y, D), [Control(x), Control(p)]).compile()
    for _ in range(3):
        fast([own(A), own(P)])
        fast.derivative()
        fast.hessian([own(A), own(P)])
    before = len(jax.live_arrays())
    for _ in range(20):
        fast([own(A), own(P)])
        fast.derivative()
        fast.hessian([own(A), own(P)])
    assert len(jax.live_arrays()) <= before


def test_collected_states_are_taken_in_another_order():
    x, p = own(A), own(P)
    states = [x]
    for _ in range(N):
        states.append(step(states[-1], p))
    J = cost(x, D)
    for k, y in enumerate(reversed(states[1:])):
        J = J + cost(y, D * k)
    check([J], [x, p], [(N, 1), (N, 2)])


# An array that is indexed by the number of the step ----------------------------------------------------------------------


@overload_jax
def forced(y, f, g=0.0):
    return y + 0.1 * jnp.sin(y) * f + 0.1 * g * f


READINGS = {
    "f[k, :]": (lambda f, k: (f[k, :],), (N, 3)),
    "f[:, k]": (lambda f, k: (f[:, k],), (3, N)),
    "f[k], f[k + 1]": (lambda f, k: (f[k], f[k + 1]), (N + 1, 3)),
    "f[2 * k] and others of two strides": (lambda f, k: (f[2 * k] + f[2 * k + 1], f[2 * k + 2]), (2 * N + 1, 3)),
    "f[3 * k], f[3 * k + 1], no rest": (lambda f, k: (f[3 * k], f[3 * k + 1]), (3 * N - 1, 3)),
    "f[0, k], f[1, k]": (lambda f, k: (f[0, k], f[1, k]), (2, N, 3)),
    "f[k, ::2], f[..., k]": (lambda f, k: (f[k, ::2], f[:3, None, ..., k][:, 0]), (N, N)),
    "backwards": (lambda f, k: (f[2 * N - 1 - 2 * k], f[2 * N - 2 - 2 * k]), (2 * N, 3)),
}


def shapes_in_loops(rf):
    """The sizes of all arrays inside of the loops of value and gradient."""
    import jax

    (segment,) = rf._current().policy.at(1).steps
    rules, n = segment.compiled, segment.compiled.dependencies
    both = rules.engine.value_and_vjp_of(rules.at(tuple(range(n)), (0,)).whole, n, (0,))
    with jax.enable_x64(True):
        values = [jnp.ones(aval.shape) for aval in (*rules.inputs[:n], rules.outputs[0])]
        jaxpr = jax.make_jaxpr(both)(tuple(values), segment.constants).jaxpr
    return [v.aval.size for e in _equations(jaxpr) if e.primitive.name == "scan" for v in _inner(e)]


def _equations(jaxpr):
    import jax.extend

    for equation in jaxpr.eqns:
        yield equation
        for part in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _equations(part)


def _inner(scan):
    (body,) = [scan.params["jaxpr"].jaxpr]
    return [v for equation in _equations(body) for v in equation.outvars]


@pytest.mark.parametrize(("engine", "kinds"), [("jax", list(READINGS)), ("numpy", ["f[:, k]", "f[k], f[k + 1]"])])
def test_a_forcing_that_is_indexed(engine, kinds):
    """Each turn gets its part; nothing of the forcing's full size is computed in a turn."""
    rng = np.random.default_rng(5)
    data = [rng.uniform(0.1, 1.0, READINGS[kind][1]) for kind in kinds]
    x, forcings = own(A), [own(f) if engine == "jax" else array(f) for f in data]
    y = x
    for kind, forcing in zip(kinds, forcings, strict=True):
        for k in range(N):
            y = forced(y, *[f[:3] if f.shape[0] > 3 else f for f in READINGS[kind][0](forcing, k)])
        y = step(y, D) * 0.2
    slow = ReducedFunction([y], [Control(c) for c in (x, *forcings)])
    fast = slow.compile()
    m, (v,) = [rng.uniform(0.1, 1.0, np.shape(c)) for c in (x, *forcings)], [rng.uniform(0.1, 1.0, 3)]
    same(fast(m), slow(m))
    same(fast.adj_jac_action([v]), slow.adj_jac_action([v]))
    assert [length for length, _ in loops(fast)] == [N] * len(kinds)
    assert max(shapes_in_loops(fast)) <= 2 * 3 * 3 + 2


@pytest.mark.parametrize("memory", ["step", "sqrt"])
def test_a_forcing_with_less_memory(memory):
    """To second order, like all that follow."""
    x, forcing = own(A), own(np.random.default_rng(5).uniform(0.1, 1.0, (N + 1, 3)))
    y = x
    for k in range(N):
        y = forced(y, forcing[k], forcing[k + 1])
    check([y], [x, forcing], [(N, 3)], memory=memory)


def test_a_forcing_that_is_computed_before():
    x, p = own(A), own(P)
    forcing = overload_jax(lambda p: jnp.outer(jnp.arange(1.0, N + 1), p))(p)
    y = x
    for k in range(N):
        y = forced(y, forcing[k])
    fast = check([y], [x, p])
    assert max(shapes_in_loops(fast)) == 3


def test_a_forcing_that_is_a_constant():
    x, forcing = own(A), own(np.random.default_rng(5).uniform(0.1, 1.0, (N, 3)))
    y = x
    for k in range(N):
        y = forced(y, forcing[k])
    check([y], [x], [(N, 1)])


def test_a_forcing_that_is_carried():
    """The value at the end of a step is the one at the beginning of the next."""
    x, forcing = own(A), own(np.random.default_rng(5).uniform(0.1, 1.0, (N + 1, 3)))
    y, before = x, forcing[0]
    for k in range(N):
        after = forcing[k + 1]
        y = forced(y, before, after)
        before = after
    check([y, before], [x, forcing], [(N, 2)])


def test_a_forcing_of_a_loop_in_a_loop():
    x, forcing = own(A), own(np.random.default_rng(5).uniform(0.1, 1.0, (200, 3)))
    y, written = x, []
    for k in range(200):
        y = forced(y, forcing[k])
        if k % 10 == 9:
            written.append(cost(y, D))
    check(written, [x, forcing], [(20, 21), (10, 2)], turns=10)


def test_a_forcing_with_an_index_for_each_of_two_loops():
    x, forcing = own(A), own(np.random.default_rng(5).uniform(0.1, 1.0, (8, 10, 3)))
    y = x
    for i in range(8):
        for j in range(10):
            y = forced(y, forcing[i, j])
        y = step(y, D)
    fast = check([y], [x, forcing], turns=8)
    assert loops(fast) == [(8, 21), (10, 2)]


ANY_ORDER = np.random.default_rng(6).permutation(N)


@pytest.mark.parametrize(
    "index",
    [
        lambda k: k * k % 7,
        lambda k: ANY_ORDER[k],
        lambda k: (k, k % 5),
        lambda k: (ANY_ORDER[k], slice(None), k % 3),
        lambda k: (slice(None), ANY_ORDER[k] % 5, None, 2),
    ],
    ids=["k * k % 7", "any order", "a diagonal", "axes apart", "not the first axis"],
)
def test_a_forcing_in_any_order(index):
    """Its parts are put together before the loop, so that nothing of its full size is computed in a turn."""
    x, data = own(A), np.random.default_rng(5).uniform(0.1, 1.0, (N, 5, 3))
    forcing, y = own(data), x
    for k in range(N):
        y = forced(y, forcing[index(k)].sum() * 0.1)
    fast = check([y], [x, forcing], [(N, 4)])
    assert max(shapes_in_loops(fast)) <= data.size / 5


def test_a_forcing_in_any_order_in_a_loop_in_a_loop():
    x, forcing = own(A), own(np.random.default_rng(5).uniform(0.1, 1.0, (10, 3)))
    y, order = x, np.random.default_rng(6).permutation(10)
    for _ in range(8):
        for j in range(10):
            y = forced(y, forcing[order[j]])
        y = step(y, D)
    fast = check([y], [x, forcing], turns=8)
    assert loops(fast) == [(8, 21), (10, 2)]


@pytest.mark.parametrize("memory", ["step", "sqrt"])
def test_a_forcing_in_any_order_with_less_memory(memory):
    x, forcing = own(A), own(np.random.default_rng(5).uniform(0.1, 1.0, (N, 3)))
    y = x
    for k in range(N):
        y = forced(y, forcing[ANY_ORDER[k]])
    check([y], [x, forcing], [(N, 2)], memory=memory)


def test_another_order_is_the_same_program():
    programs = set()
    for seed in range(2):
        order, x = np.random.default_rng(seed).permutation(N), own(A)
        forcing = own(np.random.default_rng(5).uniform(0.1, 1.0, (N, 3)))
        y = x
        for k in range(N):
            y = forced(y, forcing[order[k]])
        fast = check([y], [x, forcing], [(N, 2)])
        programs.add(fast._current().policy.at(1).steps[0].compiled)
    assert len(programs) == 1


def test_large_parts_of_a_small_array_are_not_put_together():
    """There would be a copy of the array for every other turn."""
    x, data = own(A), np.random.default_rng(5).uniform(0.1, 1.0, (2, 100, 100))
    forcing, y = own(data), x
    for k in range(N):
        y = forced(y, forcing[k % 2].mean())
    fast = check([y], [x, forcing], [(N, 3)])
    assert max(shapes_in_loops(fast)) == data.size


def test_a_number_of_an_index_that_is_on_the_tape():
    x, forcing = own(A), own(np.random.default_rng(5).uniform(0.1, 1.0, (N, 3)))
    y = x
    for k in range(N):
        y = forced(y, forcing[array(np.asarray(k))])
    check([y], [x, forcing])


def test_a_long_description_names_every_loop_with_its_length_and_body():
    x, p = own(A), own(P)
    y = np.exp(np.cos(np.sin(x) * p) + p)
    for _ in range(N):
        y = step(y, p)
    y = np.sqrt(np.abs(np.tanh(y) - p) * p + 1.0)
    rf = ReducedFunction(y, [Control(x), Control(p)])
    text = rf.compile().describe()
    assert f"jax: sin, multiply, cos, add, exp, loop of {N} x (step), ..., sqrt ({N + 11} Blocks" in text
    assert f"{N + 11} Blocks in 1 segment (1 different program, 1 loop), 0 by themselves" in text
    assert "2 loops)" in ReducedFunction(two_loops(x, p), Control(x)).compile().describe()


def two_loops(x, p):
    y = x
    for _ in range(N):
        y = step(y, p)
    y = np.cos(y)
    for _ in range(N):
        y = step(y, p * y)
    return y
