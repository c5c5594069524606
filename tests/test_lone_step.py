"""Compiled programs of one step: what goes to which place."""

import numpy as np
import pytest

from pyadjoint_utils import Control, ReducedFunction, array, overload

jnp = pytest.importorskip("jax.numpy")


def _programs():
    times = overload(lambda a, b: a * b * b, "jax")
    both = overload(lambda a, b: (jnp.sin(a) * b, a * b), "jax")
    yield "two outputs in another order", lambda x, y, z: both(x, times(x, y))[::-1]
    yield "an output twice", lambda x, y, z: 2 * [times(times(x, y), y)]
    yield "an output that is a control", lambda x, y, z: [times(times(x, y), y), x]
    yield "a control that nothing depends on", lambda x, y, z: [times(times(x, z), x)]
    yield "a control twice in a call", lambda x, y, z: [times(times(y, y), x)]


@pytest.mark.parametrize("program", [pytest.param(f, id=name) for name, f in _programs()])
def test_results_are_those_of_the_tape(program):
    rng = np.random.default_rng(0)
    recorded, point, directions = (rng.standard_normal((3, 4)) for _ in range(3))
    x = [array(v) for v in recorded]
    rf = ReducedFunction(program(*x), [Control(v) for v in x])
    fast = rf.compile()
    seeds = [array(v) for v in rng.standard_normal((len(rf.outputs), 4))]
    point, directions = [array(v) for v in point], [array(v) for v in directions]

    def results(f):
        f(point)
        once = f.adj_jac_action(seeds), f.hess_action(directions, seeds), f.jac_action(directions)
        f(point)  # which computes the gradient with it, once one was asked for
        return [f(point), *once, f.adj_jac_action(seeds), f.adj_jac_action([seeds[0], *[None] * (len(seeds) - 1)])]

    for ours, expected in zip(results(fast), results(rf), strict=True):
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-12, atol=1e-12)


def test_the_gradient_comes_with_the_value():
    f = overload(lambda a, b: jnp.sum(a * b * b), "jax")
    g = overload(lambda a: jnp.sin(a), "jax")
    x, y = array(np.array([0.3, 0.4])), array(np.array([0.5, 0.6]))
    fast = ReducedFunction(f(g(x), y), [Control(y), Control(x)]).compile()
    a, b = np.array([1.0, 2.0]), np.array([3.0, -4.0])
    for _ in range(2):
        value, (by_y, by_x) = fast.value_and_derivative([array(b), array(a)])
        np.testing.assert_allclose(float(value), (np.sin(a) * b * b).sum())
        np.testing.assert_allclose(by_x.numpy(), np.cos(a) * b * b)
        np.testing.assert_allclose(by_y.numpy(), 2 * np.sin(a) * b)
