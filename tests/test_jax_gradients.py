"""Numbers of a tape inside JAX, which eagerly bring their gradient with them, against the same program written in JAX."""

import concurrent.futures
import functools

import numpy as np
import pytest

from pyadjoint_utils import Control, ReducedFunction, array, overload_autograd, overload_numpy

jax = pytest.importorskip("jax")
jnp = jax.numpy

from bridges.jax_gradients import product  # noqa: E402
from pyadjoint_utils import as_jax, overload_jax  # noqa: E402

V = np.array([0.3, -0.7, 1.1, 0.8])
D = np.array([0.5, 0.2, -0.4, 0.3])


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def in_torch(x):
    torch = pytest.importorskip("torch")
    from pyadjoint_utils import overload_torch

    return overload_torch(lambda x: (torch.sin(x) * x * x).sum())(x)


def in_tensorflow(x):
    tf = pytest.importorskip("tensorflow")
    from pyadjoint_utils import overload_tensorflow

    return overload_tensorflow(lambda x: tf.reduce_sum(tf.sin(x) * x * x))(x)


NUMBERS = {
    "autograd": lambda x: (np.sin(x) * x * x).sum(),
    "jax": overload_jax(lambda x: jnp.sum(jnp.sin(x) * x * x)),
    "torch": in_torch,
    "tensorflow": in_tensorflow,
    "NumPy, then JAX": lambda x: overload_jax(lambda y, x: jnp.sum(y * x * x))(np.sin(x), x),
    "a black box": overload_numpy(lambda x: (np.sin(x) * x * x).sum(), method="complex-step"),
}
NATIVE = lambda x: jnp.sum(jnp.sin(x) * x * x)
DERIVATIVES = {
    "value and gradient": jax.value_and_grad,
    "cotangent of a product": lambda f: jax.grad(lambda v: jnp.sum(v) * f(jnp.cos(v))),
    "used twice": lambda f: jax.grad(lambda v: f(v) + 3 * f(2 * v) ** 2),
    "pull-back": lambda f: lambda v: jax.vjp(f, v)[1](-0.7),
    "compiled pull-back": lambda f: lambda v: jax.jit(jax.vjp(f, v)[1])(0.4),
    "pull-backs": lambda f: lambda v: jax.vmap(jax.vjp(f, v)[1])(jnp.arange(3.0)),
    "gradients": lambda f: lambda v: jax.vmap(jax.grad(f))(jnp.stack([v, 2 * v])),
    "forward over reverse": lambda f: lambda v: jax.jvp(jax.value_and_grad(f), (v,), (D,)),
    "with a moving cotangent": lambda f: lambda v: jax.jvp(jax.grad(lambda v: jnp.exp(f(v))), (v,), (D,)),
    "reverse over reverse": lambda f: jax.grad(lambda v: jnp.vdot(jax.grad(f)(v), D)),
    "linearized gradient": lambda f: lambda v: jax.linearize(jax.grad(f), v)[1](jnp.asarray(D)),
    "Hessian": jax.hessian,
    "Jacobian of Jacobian": lambda f: jax.jacrev(jax.jacrev(f)),
    "Hessians": lambda f: lambda v: jax.vmap(jax.hessian(f))(jnp.stack([v, 2 * v])),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(lambda v: f(jnp.sin(v)))),
}


def close(found, wanted, rtol=1e-10):
    def same(a, b):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12)

    jax.tree.map(same, found, wanted)


@pytest.fixture(scope="module")
def expected():
    with jax.enable_x64(True):
        return {kind: jax.jit(derivative(NATIVE))(V) for kind, derivative in DERIVATIVES.items()}


@pytest.mark.parametrize("kind", DERIVATIVES)
def test_derivatives_of_a_number_at_another_point_than_the_recorded_one(kind, expected):
    x = array(np.ones(4))
    f = as_jax(ReducedFunction(NUMBERS["autograd"](x), Control(x)))
    close(DERIVATIVES[kind](f)(jnp.asarray(V)), expected[kind])


@pytest.mark.parametrize("tape", NUMBERS)
def test_derivatives_of_numbers_of_every_engine(tape, expected):
    x = array(np.ones(4))
    f = as_jax(ReducedFunction(NUMBERS[tape](x), Control(x)))
    for kind in ("cotangent of a product", "with a moving cotangent", "reverse over reverse"):
        close(DERIVATIVES[kind](f)(jnp.asarray(V)), expected[kind], 1e-8 if tape == "a black box" else 1e-10)


def test_third_derivatives():
    x = array(np.ones(4))
    f = as_jax(ReducedFunction(NUMBERS["NumPy, then JAX"](x), Control(x)))
    third = lambda f: jax.grad(lambda v: jnp.vdot(jax.hessian(f)(v) @ D, D))(jnp.asarray(V))
    close(third(f), third(NATIVE))


def test_several_arguments_and_results_without_a_derivative():
    x, a = array(np.ones(4)), array(np.array([1.5]))
    both = overload_autograd(lambda x, a: (np.sum(x) * 1.0, x))  # a part that nobody reads
    y = (np.sin(x) * both(x, a)[1] * a).sum()
    f = as_jax(ReducedFunction([y], [Control(x), Control(a)]))
    native = lambda values: [jnp.sum(jnp.sin(values[0]) * values[0] * values[1])]
    point = [jnp.asarray(V), jnp.asarray([0.3])]
    for k in (0, 1):
        replaced = lambda f, k=k: lambda w: f([*point[:k], w, *point[k + 1 :]])[0] ** 2
        close(jax.value_and_grad(replaced(f))(point[k]), jax.value_and_grad(replaced(native))(point[k]))
    close(jax.grad(lambda w: f(w)[0] ** 2)(point), jax.grad(lambda w: native(w)[0] ** 2)(point))


def test_a_real_number_of_complex_ones():
    z = array(np.array([1.0 + 1.0j, 2.0]))
    f = as_jax(ReducedFunction(np.real(z**2 * np.conj(z) * (1 - 2j)).sum(), Control(z)))
    native = lambda z: jnp.sum(jnp.real(z**2 * jnp.conj(z) * (1 - 2j)))
    v, d = jnp.asarray([0.4 - 0.3j, 0.2 + 0.5j]), jnp.asarray([0.1 + 0.2j, -0.4j])
    for derivative in (
        lambda f: jax.grad(lambda v: f(v * 1j) ** 2)(v),
        lambda f: jax.vjp(f, v)[1](0.3),
        lambda f: jax.vmap(jax.vjp(f, v)[1])(jnp.arange(3.0)),
        lambda f: jax.jvp(jax.grad(f), (v,), (d,)),
        lambda f: jax.grad(lambda v: jnp.sum(jnp.real(jax.grad(f)(v) * d)))(v),
    ):
        close(derivative(f), derivative(native))


def test_32_bits():
    for dtype in (np.float32, np.float64):
        x = array(np.ones(4, dtype))
        f = as_jax(ReducedFunction(NUMBERS["NumPy, then JAX"](x), Control(x)))
        with jax.enable_x64(False):
            v, d = jnp.asarray(V, jnp.float32), jnp.asarray(D, jnp.float32)
            for g in (f, lambda v, f=f: f(v) ** 2):
                native = NATIVE if g is f else lambda v: NATIVE(v) ** 2
                close(jax.value_and_grad(g)(v), jax.value_and_grad(native)(v), 1e-5)
                close(jax.jvp(jax.grad(g), (v,), (d,)), jax.jvp(jax.grad(native), (v,), (d,)), 1e-5)


def test_a_wide_number_of_narrow_ones():
    x = array(np.ones(4, np.float32))
    f = as_jax(ReducedFunction((x * array(V)).sum(), Control(x)))
    native = lambda x: jnp.sum(x * V)
    for derivative in (jax.value_and_grad, lambda f: jax.grad(lambda x: f(x) ** 2)):
        close(derivative(f)(jnp.asarray(D, np.float32)), derivative(native)(jnp.asarray(D, np.float32)), 1e-6)


@pytest.mark.parametrize("mode", [lambda f: f, jax.jit])
def test_the_product_under_every_transformation(mode):
    g, x = jnp.asarray(V + 1j * D), jnp.asarray(D - 2j * V)
    dg, dx, r, s = g * x, x[::-1] ** 2, jnp.asarray(V), jnp.asarray(D)
    found = lambda g, x, r, s: product([g, r], [x, s], np.float64)
    native = lambda g, x, r, s: jnp.sum(jnp.real(jnp.conj(g) * x)) + jnp.sum(r * s)
    for derivative in (
        lambda f: f(g, x, r, s),
        lambda f: jax.jvp(f, (g, x, r, s), (dg, dx, s, r)),
        lambda f: jax.jvp(lambda x: f(g, x, r, s), (x,), (dx,)),
        lambda f: jax.grad(f, (0, 1, 2, 3))(g, x, r, s),
        lambda f: jax.linear_transpose(lambda x, s: f(g, x, r, s), x, s)(2.0),
        lambda f: jax.vmap(f, (0, None, None, 1))(jnp.stack([g, dg]), x, r, jnp.stack([s, r], 1)),
        lambda f: jax.hessian(f, (2, 3))(g, x, r, s),
    ):
        close(mode(functools.partial(derivative, found))(), derivative(native))


def test_value_and_gradient_are_one_run():
    runs = []

    def f(x):
        runs.append(None)
        return np.sum(x * x)

    x = array(np.ones(3))
    g = as_jax(ReducedFunction(overload_autograd(f)(x), Control(x)))
    for run in (jax.value_and_grad(g), lambda v: jax.jvp(jax.grad(g), (v,), (v,))):
        run(V[:3])
        runs.clear()
        run(V[:3])
        assert len(runs) == 1


def test_threads_do_not_disturb_each_other():
    x = array(np.ones(4))
    f = as_jax(ReducedFunction(NUMBERS["NumPy, then JAX"](x), Control(x)))
    points = [V + 0.01 * k for k in range(24)]
    wanted = jax.vmap(jax.grad(lambda v: NATIVE(v) ** 2))(jnp.stack(points))

    def gradient(v):
        with jax.enable_x64(True):
            return jax.grad(lambda v: f(v) ** 2)(jnp.asarray(v))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        close(jnp.stack(list(pool.map(gradient, points))), wanted)


def test_a_number_without_a_gradient_is_a_number_until_somebody_asks():
    x = array(np.ones(3))
    f = as_jax(ReducedFunction(NUMBERS["autograd"](x), Control(x)))
    measured = as_jax(ReducedFunction(overload_numpy(lambda x: np.sum(x), jvp=lambda x, dx: np.sum(dx))(x), Control(x)))
    (value, aside), gradient = jax.value_and_grad(lambda v: (f(v), measured(v)), has_aux=True)(jnp.asarray(V[:3]))
    close((value, gradient), jax.value_and_grad(NATIVE)(jnp.asarray(V[:3])))
    assert float(aside) == pytest.approx(V[:3].sum())
    with pytest.raises(Exception, match="vjp"):
        jax.grad(measured)(V[:3])
