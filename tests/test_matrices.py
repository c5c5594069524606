"""Jacobians and Hessians of programs against JAX: tree products, several arguments, every order of modes."""

import itertools

import engines
import numpy as np
import pytest

from pyadjoint_utils import array, grad, hessian, jacfwd, jacrev, overload_jax
from pyadjoint_utils.trees import flatten

jax = pytest.importorskip("jax")
jnp = pytest.importorskip("jax.numpy")
all_engines = pytest.mark.parametrize("engine", engines.NAMES)
MODES = [(jacfwd, "jacfwd"), (jacrev, "jacrev")]
modes = pytest.mark.parametrize(("transform", "name"), MODES, ids=["jacfwd", "jacrev"])
X = np.array([0.4, -1.2, 0.9])
W = np.array([[0.3, -0.8, 1.1], [1.0, 0.5, -0.7]])


def check(found, expected):
    """Equal containers and numbers; JAX's in double precision."""
    (a, structure), (b, other) = flatten(found), flatten(expected)
    assert structure == other
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        np.testing.assert_allclose(getattr(x, "value", x), np.asarray(y), rtol=1e-10, atol=1e-12)


def theirs(transform, f, *args, **options):
    with jax.enable_x64(True):
        return getattr(jax, transform)(f, **options)(*args)


# What the page says -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_jacobian_of_four_functions(transform):
    f = lambda x: np.stack([x[0], 5 * x[2], 4 * x[1] ** 2 - 2 * x[2], x[2] * np.sin(x[0])])
    expected = [[1.0, 0.0, 0.0], [0.0, 0.0, 5.0], [0.0, 16.0, -2.0], [1.6209, 0.0, 0.84147]]
    np.testing.assert_allclose(transform(f)(np.array([1.0, 2.0, 3.0])).numpy(), expected, rtol=1e-5)


def test_hessian_of_a_polynomial():
    g = lambda x: x[0] ** 3 - 2 * x[0] * x[1] - x[1] ** 6
    assert hessian(g)(np.array([1.0, 2.0])).tolist() == [[6.0, -2.0], [-2.0, -480.0]]


def test_hessian_of_containers():
    f = lambda dct: {"c": np.power(dct["a"], dct["b"])}
    found = hessian(f)({"a": np.arange(2.0) + 1.0, "b": np.arange(2.0) + 2.0})["c"]
    mixed = [[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 12.317766]]]
    expected = {
        "a": {"a": [[[2.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 12.0]]], "b": mixed},
        "b": {"a": mixed, "b": [[[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 3.843624]]]},
    }
    for first, second in itertools.product("ab", repeat=2):
        np.testing.assert_allclose(found[first][second].numpy(), expected[first][second], atol=1e-6)


# Against JAX -------------------------------------------------------------------------------------------------------------


def program(xp):
    def f(params, x, scale=2.0):
        w, (b,) = params["w"], params["b"]
        y = xp.tanh(w @ x + b) * scale
        return {"y": y, "s": [(y * y).sum(), (x * x * b).sum()]}

    return f


ARGUMENTS = ({"w": W, "b": (0.3,)}, X)


@modes
@pytest.mark.parametrize("argnums", [0, 1, (0, 1), (1,), -1, [1, 0]], ids=str)
def test_tree_products(transform, name, argnums):
    argnums = tuple(argnums) if isinstance(argnums, list) else argnums
    expected = theirs(name, program(jnp), *ARGUMENTS, argnums=argnums)
    check(transform(program(np), argnums)(*ARGUMENTS), expected)


@modes
def test_auxiliary_data_and_keywords(transform, name):
    f = lambda xp: lambda params, x, **options: (program(xp)(params, x, **options)["y"], {"x": x, "n": 3})
    found, aux = transform(f(np), has_aux=True)(*ARGUMENTS, scale=3.0)
    with jax.enable_x64(True):
        expected, _ = getattr(jax, name)(f(jnp), has_aux=True)(*ARGUMENTS, scale=3.0)
    check(found, expected)
    assert aux["n"] == 3
    assert aux["x"] is X


@pytest.mark.parametrize("argnums", [0, (0, 1)], ids=str)
def test_hessian_of_several_outputs_and_arguments(argnums):
    check(hessian(program(np), argnums)(*ARGUMENTS), theirs("hessian", program(jnp), *ARGUMENTS, argnums=argnums))
    found, aux = hessian(lambda p, x: (program(np)(p, x)["s"][0], "kept"), argnums, has_aux=True)(*ARGUMENTS)
    check(found, theirs("hessian", lambda p, x: program(jnp)(p, x)["s"][0], *ARGUMENTS, argnums=argnums))
    assert aux == "kept"


@all_engines
@modes
def test_dtypes_and_engines_are_those_of_the_arguments(transform, name, engine):
    own = engines.namespace(engine).own
    for dtype, rtol in ((np.float32, 1e-5), (np.float64, 1e-12)):
        x = array(own(X.astype(dtype)))
        found = transform(np.exp)(x)
        assert (found.engine, found.dtype) == (x.engine, dtype)
        np.testing.assert_allclose(found.numpy(), np.diag(np.exp(X)), rtol=rtol)


def test_precision_from_the_argument_to_the_result():
    """Columns have the dtype of the result, rows that of the argument."""
    f = lambda x: x.astype(np.float64) * 2.0
    x = X.astype(np.float32)
    assert jacfwd(f)(x).dtype == np.float64
    assert jacrev(f)(x).dtype == np.float32


ORDERS = [(jacfwd, jacfwd, jacfwd), (jacrev, jacrev, jacrev), (jacfwd, jacrev, jacfwd), (jacrev, jacfwd, jacrev)]


@all_engines
def test_third_derivatives_in_many_orders_of_modes(engine):
    """f_i = sin(x_i) x_(2-i)."""
    e = engines.namespace(engine)
    f = e.overload(lambda x: e.sin(x) * e.flip(x))
    expected = np.zeros((3, 3, 3, 3))
    for i in range(3):
        k = 2 - i
        if i == k:
            expected[i, i, i, i] = -np.cos(X[i]) * X[i] - 3 * np.sin(X[i])
        else:
            expected[i, i, i, i] = -np.cos(X[i]) * X[k]
            expected[i, i, i, k] = expected[i, i, k, i] = expected[i, k, i, i] = -np.sin(X[i])
    for a, b, c in ORDERS:
        np.testing.assert_allclose(a(b(c(f)))(X).numpy(), expected, rtol=1e-10, atol=1e-12)


@all_engines
def test_hessian_of_a_sum(engine):
    """The cotangent that a sum passes on may be one number for all entries."""
    e = engines.namespace(engine)
    sine, total = e.overload(lambda x: e.sin(x)), e.overload(lambda x: e.sum(x))
    np.testing.assert_allclose(hessian(lambda x: total(sine(x)))(X).numpy(), np.diag(-np.sin(X)), atol=1e-12)


def test_third_derivatives_through_four_engines():
    names = [name for name in engines.NAMES if engines.installed(name)]
    parts = [engines.namespace(name) for name in names]
    parts = [(e.overload(lambda x, e=e: e.sin(x) * x), e) for e in parts]

    def f(x):
        for part, _ in parts:
            x = part(x)
        return x

    def same(x):
        for _ in parts:
            x = jnp.sin(x) * x
        return x

    expected = theirs("jacfwd", jax.hessian(jax.jit(lambda x: (same(x) ** 2).sum())), X)
    g = lambda x: (f(x) ** 2).sum()
    check(jacfwd(hessian(g))(X), expected)
    check(grad(lambda x: (hessian(g)(x) * W[0]).sum())(X), np.einsum("ijk,j->k", expected, W[0]))


def test_a_jax_function_gives_what_jax_gives():
    f = jax.jit(lambda x, y: x * y / (1.0 + x @ x))
    for transform, name in [*MODES, (hessian, "hessian")]:
        check(transform(overload_jax(f), (0, 1))(X, W[0]), theirs(name, f, X, W[0], argnums=(0, 1)))


def test_empty_arrays_and_scalars():
    assert jacfwd(lambda x: x * 2.0)(np.zeros((0,))).shape == (0, 0)
    assert jacrev(lambda x: x * 2.0)(np.zeros((0,))).shape == (0, 0)
    assert hessian(lambda x: x * 2.0)(np.zeros((0,))).shape == (0, 0, 0)
    assert hessian(lambda x: x**3)(2.0).tolist() == 12.0
    assert jacrev(lambda x: (x**2)[None])(2.0).tolist() == [4.0]
