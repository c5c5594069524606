"""Derivatives at a point start from what was computed there: how often the steps outside of an engine are called."""

from collections import Counter

import numpy as np
import pytest
from pyadjoint import get_working_tape
from test_host_function import CASES, Cube, whole
from toy_engine import overload_toy, toy

from pyadjoint_utils import Control, ReducedFunction, array, asarray, overload_numpy
from pyadjoint_utils.evaluation import Evaluation

X, A = np.array([0.3, -0.7, 1.1]), np.array(0.8)


def used_further():
    """``(y, y^2 x)`` with ``y = x^2``, so that the cotangent of ``y`` is both given and added to."""
    x, a = toy([1.0, 2.0, 3.0]), toy(1.0)
    y = overload_toy(lambda x: x * x)(x)
    return whole(ReducedFunction([y, overload_toy(lambda y, x, a: y * y * x * a)(y, x, a)], [Control(x), Control(a)]))


MAKE = {name: make for name, (make, _) in CASES.items()} | {"used further": used_further}


def arrays(avals, seed):
    return [0.5 * np.cos(np.arange(a.shape[0] if a.shape else 1) + seed).reshape(a.shape) for a in avals]


def steps(at):
    """All first derivatives of a call, each by some and by all arguments."""
    f = at.function
    everything, outs = tuple(f.active), tuple(range(len(f.outputs)))
    for ins in {everything, everything[:1]}:
        yield lambda g, ins=ins: g.adjoint(ins, outs)
        yield lambda g, ins=ins: g.tangent(ins, outs)


@pytest.mark.parametrize("case", MAKE)
def test_what_was_computed_before_changes_no_derivative(case):
    function = MAKE[case]()

    def check(at, x, order):
        for k, derive in enumerate(steps(at)):
            derived = derive(at)
            point = [*x, *arrays(derived.function.inputs[len(x) :], k)]
            for found, expected in zip(derived(point), derived.function(point), strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-12)
            if order < 2:
                check(derived, point, order + 1)

    at = Evaluation(function)
    at([X, A])
    check(at, [X, A], 1)


class Reusing(Cube):
    """A Block that writes all its results into the same memory."""

    buffer = np.zeros(3)

    def recompute_component(self, inputs, block_variable, idx, prepared):
        self.buffer[:] = super().recompute_component(inputs, block_variable, idx, prepared).numpy()
        return asarray(self.buffer)


def test_what_blocks_of_other_packages_returned_is_not_relied_on():
    x, a = array(np.array([1.0, 2.0, 3.0])), array(1.0)
    y = asarray(x.numpy() ** 3)
    get_working_tape().add_block(block := Reusing(x, a))
    block.add_output(y.create_block_variable())
    function = whole(ReducedFunction(np.exp(y), [Control(x), Control(a)]))
    at = Evaluation(function)
    at([X, A])
    function([2 * X, A])
    (slope,) = at.adjoint((0,), (0,))([X, A, np.ones(3)])
    np.testing.assert_allclose(slope, 3 * A * X**2 * np.exp(A * X**3))


def counted(n):
    """``sin`` n times over, outside of every engine, and how often it and its derivatives are called."""
    calls = Counter()

    def called(name, result):
        calls[name] += 1
        return result

    sine = overload_numpy(
        lambda x: called("value", np.sin(x)),
        jvp=lambda p, dx: called("jvp", np.cos(p[0]) * dx[0]),
        vjp=lambda p, yb: called("vjp", np.cos(p[0]) * yb),
        hvp=lambda p, dx, yb, dyb: called("hvp", np.cos(p[0]) * dyb - np.sin(p[0]) * dx[0] * yb),
    )
    x = y = array(X)
    for _ in range(n):
        y = sine(y)
    return ReducedFunction(y, Control(x)), calls


def in_torch(rf):
    torch = pytest.importorskip("torch")
    from pyadjoint_utils import as_torch

    f, v = as_torch(rf), torch.tensor(X, requires_grad=True)

    def second():
        (g,) = torch.autograd.grad(f(v).sum(), v, create_graph=True)
        return torch.autograd.grad(g.sum(), v)

    return [lambda: f(v), lambda: torch.autograd.grad(f(v).sum(), v), second]


def in_tensorflow(rf):
    tf = pytest.importorskip("tensorflow")
    from pyadjoint_utils import as_tensorflow

    f, v = as_tensorflow(rf), tf.Variable(X)

    def first():
        with tf.GradientTape() as tape:
            y = f(v)
        return tape.gradient(y, v)

    def second():
        with tf.GradientTape() as tape:
            g = first()
        return tape.gradient(g, v)

    return [lambda: f(v), first, second]


def in_autograd(rf):
    import autograd

    from pyadjoint_utils import as_autograd

    gradient = autograd.elementwise_grad(f := as_autograd(rf))
    return [lambda: f(X), lambda: gradient(X), lambda: autograd.elementwise_grad(gradient)(X)]


def in_jax(rf):
    jax = pytest.importorskip("jax")
    from pyadjoint_utils import as_jax

    f = as_jax(rf)
    gradient = jax.grad(lambda x: f(x).sum())
    run = lambda f: lambda: jax.block_until_ready(f(jax.numpy.asarray(X)))
    with jax.enable_x64(True):
        functions = [run(g) for g in (f, gradient, jax.jit(jax.grad(lambda x: gradient(x).sum())))]
    return [lambda g=g: _wide(g) for g in functions]


def _wide(run):
    import jax

    with jax.enable_x64(True):
        return run()


@pytest.mark.parametrize("inside", [in_torch, in_tensorflow, in_autograd])
def test_steps_in_a_row_are_called_once_for_value_and_gradient(inside):
    for n in (1, 2, 5, 10):
        rf, calls = counted(n)
        value, first, second = inside(rf)
        value()  # an engine may try a function out at its first call
        first()
        second()
        found = []
        for run in (value, first, second):
            calls.clear()
            run()
            found.append(dict(calls))
        assert found[:2] == [{"value": n}, {"value": n, "vjp": n}]
        # Every VJP is taken again, with the cotangent of its own derivative, but for the first one.
        assert found[2]["value"] == n
        assert found[2]["hvp"] == n
        assert found[2]["vjp"] == 2 * n - 1
        assert found[2].get("jvp", 0) <= n


def test_jax_calls_them_once_more_where_it_keeps_nothing_but_arguments():
    for n in (1, 2, 5, 10):
        rf, calls = counted(n)
        found = []
        for run in in_jax(rf):
            run()
            calls.clear()
            run()
            found.append(dict(calls))
        assert found[0] == {"value": n}
        assert found[1] == {"value": 2 * n - 1, "vjp": n}
        assert found[2].get("value", 0) <= 2 * n
        assert found[2].get("vjp", 0) <= 2 * n
        assert found[2]["hvp"] == n


def test_what_a_graph_keeps_of_a_run_ends_with_it():
    torch = pytest.importorskip("torch")
    import gc
    import weakref

    from pyadjoint_utils import as_torch

    kept = []

    def square(x):
        y = x * x
        kept.append(weakref.ref(y))
        return y

    x = array(X)
    step = overload_numpy(square, vjp=lambda p, yb: 2 * p[0] * yb)
    f = as_torch(ReducedFunction(step(step(x)), Control(x)))
    get_working_tape().clear_tape()
    kept.clear()
    y = f(torch.tensor(X, requires_grad=True))
    assert kept
    del y
    gc.collect()
    assert all(ref() is None for ref in kept)
