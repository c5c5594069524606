"""NumPy's arithmetic between the Blocks of an engine, as a part of that engine's programs."""

import functools

import engines
import numpy as np
import pytest

from pyadjoint_utils import AdjFloat, Control, ReducedFunction, array, get_engine
from pyadjoint_utils.compiling.lowering import SAME_EVERYWHERE
from pyadjoint_utils.numpy_functions import taped_function

others = pytest.mark.parametrize("name", [name for name in engines.NAMES if name != "autograd"])
A, B, P, Q = (np.random.default_rng(k).uniform(0.2, 0.9, 3) for k in range(4))
M = np.random.default_rng(4).uniform(0.2, 0.9, (3, 3))
TIES = np.array([[0.5, 0.2, 0.5], [0.1, 0.5, 0.2], [0.0, 0.3, -0.4]])


# Every function that may change engines ---------------------------------------------------------------------------------

MASK, PLACES = np.array([True, False, True]), np.array([0, 2, 2])
ARGUMENTS = {
    "power": [lambda f, x: f(x, 3), lambda f, x: f(x, -2), lambda f, x: f(x, 0)],
    "sum": [lambda f, x: f(x), lambda f, x: f(x, axis=0), lambda f, x: f(x, axis=(0, 1), keepdims=True)],
    "max": [lambda f, x: f(x), lambda f, x: f(x, axis=1)],
    "var": [lambda f, x: f(x), lambda f, x: f(x, axis=0, ddof=1)],
    "cumsum": [lambda f, x: f(x, axis=1)],
    "diff": [lambda f, x: f(x, n=2)],
    "arccosh": [lambda f, x: f(x * x + 2.0)],
    "tensordot": [lambda f, x, y: f(x, y, 1), lambda f, x, y: f(x, y, ([0], [1]))],
    "einsum": [lambda f, x, y: f("ij,ik->jk", x, y)],
    "vdot": [lambda f, x, y: f(x, y)],
    "getitem": [lambda f, x: f(x, (slice(None, None, -1), slice(0, 2))), lambda f, x: f(x, (None, Ellipsis, 1))],
    "reshape": [lambda f, x: f(x, (-1,)), lambda f, x: f(x, -1)],
    "transpose": [lambda f, x: f(x), lambda f, x: f(x, (1, 0))],
    "swapaxes": [lambda f, x: f(x, 0, 1)],
    "moveaxis": [lambda f, x: f(x, 0, 1)],
    "squeeze": [lambda f, x: f(x[None], 0)],
    "expand_dims": [lambda f, x: f(x, 1)],
    "broadcast_to": [lambda f, x: f(x, (2, 3, 3))],
    "concatenate": [lambda f, x, y: f([x, y]), lambda f, x, y: f([x, y], axis=1)],
    "stack": [lambda f, x, y: f([x, y], axis=-1)],
    "hstack": [lambda f, x, y: f([x, y])],
    "vstack": [lambda f, x, y: f([x, y])],
    "repeat": [lambda f, x: f(x, 2), lambda f, x: f(x, 2, axis=1)],
    "tile": [lambda f, x: f(x, (2, 1))],
    "flip": [lambda f, x: f(x, 1)],
    "roll": [lambda f, x: f(x, 1), lambda f, x: f(x, 1, axis=0)],
    "tril": [lambda f, x: f(x, -1)],
    "triu": [lambda f, x: f(x, 1)],
    "diag": [lambda f, x: f(x), lambda f, x: f(x[0])],
    "diagonal": [lambda f, x: f(x, 1)],
    "astype": [lambda f, x: f(x, None, "float32")],
    "linalg.solve": [lambda f, x, y: f(x, y)],
}
SAME = {"mean": "sum", "min": "max"}
BINARY = {"add", "subtract", "multiply", "true_divide", "matmul", "dot", "inner", "outer"}
ARRAYS = {"where", "take"}  # they take arrays beside
SINGULAR = {
    "power",
    "linalg.solve",
    "linalg.inv",
    "log",
    "log2",
    "log10",
    "sqrt",
    "true_divide",
}  # at the ties, which have zeros
STEPS = {name for name in SAME_EVERYWHERE if name.startswith(("less", "greater", "equal", "not_", "is", "logical"))}


def calls(engine):
    """Names, functions of arrays, and whether zeros are among the arrays, of all that the engine has."""
    for name in sorted(SAME_EVERYWHERE - ARRAYS - STEPS):
        function = taped_function(engine, name)
        given = ARGUMENTS.get(SAME.get(name, name))
        given = given or [(lambda f, x, y: f(x, y)) if name in BINARY else (lambda f, x: f(x))]
        for call in given if function is not None else ():
            yield name, functools.partial(call, function), call.__code__.co_argcount - 1, name in SINGULAR


def derivatives(engine, chosen):
    """Values, gradients and their derivatives of all functions, in one run."""

    def f(x, c):
        results = []
        for name, call, count, singular in calls(engine):
            if name in chosen:
                results += engine.flatten(call(*(x[:count] if singular else x[2 : 2 + count])))[0]
        return tuple(results)

    def some(arrays, seed):
        rng = np.random.default_rng(seed)
        return tuple([engine.enter(rng.uniform(-1, 1, a.shape).astype(a.dtype)) for a in arrays])

    arrays = [M, M.T + 0.25, TIES, TIES.T + 0.25]
    x = tuple([engine.enter(a) for a in arrays])
    avals = [engine.aval(v) for v in x]
    y = engine.compile(f, avals)(x, ())
    both = engine.compile(engine.jvp_of(engine.vjp_of(f, 4), 4 + len(y)), avals)
    outputs = [engine.aval(v) for v in y]
    found = both((*x, *some(outputs, 0), *some(arrays, 1), *some(outputs, 2)), ())
    return [engine.to_numpy(v) for v in (*y, *found)]


@others
def test_functions_are_the_same_in_all_engines(name):
    """Values, first and second derivatives, also at kinks, ties and zeros."""
    engine = get_engine(engines.namespace(name).name)
    chosen = {name for name, *_ in calls(engine)}
    assert len(chosen) > 55
    found, expected = derivatives(engine, chosen), derivatives(get_engine("autograd"), chosen)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


# A tape of an engine's Blocks with NumPy's arithmetic between them ------------------------------------------------------


def mixed(e, wrap=array):
    """Blocks of an engine and NumPy's arithmetic in turns; a weight and an AdjFloat among the controls."""
    f, g = e.overload(lambda u: e.sin(u) * 1.5, name="wave"), e.overload(lambda u, v: u * v + e.exp(-u), name="mix")
    x, w, c = wrap(A), wrap(B), AdjFloat(0.7)
    u = x + 0.1 * w
    u = np.exp(f(u).numpy().mean() * 0.0 + u * c) / (1 + w**2)
    u = f(u)
    v = (M @ w)[::-1] + np.where(MASK, w, 2 * w) - w.sum() ** 1.5
    u = g(u, v.reshape(3, 1)[:, 0])
    y = np.concatenate([w, w * 2])[1:4] * 0.5
    return [(g(u, y * c) * 1.0), np.var(w) * f(w)[0] + np.linalg.solve(M + np.eye(3), w)[PLACES].sum()], [x, w, c]


def some(controls, seed):
    rng = np.random.default_rng(seed)
    return [rng.uniform(0.2, 0.9, np.shape(c)) if np.shape(c) else AdjFloat(rng.uniform(0.2, 0.9)) for c in controls]


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-10, atol=1e-10)


def compared(outputs, controls, **options):
    """Compare everything with Block by Block, away from the recorded point."""
    slow = ReducedFunction(outputs, [Control(c) for c in controls])
    fast = slow.compile(**options)
    for seed in range(2):
        m, h = some(controls, seed), some(controls, seed + 7)
        values = slow(m)
        same(fast(m), values)
        v = [np.random.default_rng(seed).uniform(0.2, 1.0, np.shape(y)) for y in values]
        same(fast.adj_jac_action(v), slow.adj_jac_action(v))
        same(fast.jac_action(h), slow.jac_action(h))
        same(fast.hess_action(h, v), slow.hess_action(h, v))
    return fast


@others
def test_arithmetic_between_the_blocks_of_an_engine(name):
    fast = compared(*mixed(engines.namespace(name)), engines=[name])
    assert fast._current().policy.at(1).whole, fast.describe()
    assert f"NumPy's arithmetic in {name}: " in fast.describe()
    assert [y.engine for y in fast(some([array(A), array(B), AdjFloat(1.0)], 0))] == [name, "numpy"]


DTYPES = [np.float32, np.float64, np.complex64, np.complex128, np.int64, np.int32, np.uint8, np.bool_]


@others
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
def test_dtypes_stay_those_of_numpy(name, dtype):
    """What another engine would promote otherwise is not its to compute."""
    e = engines.namespace(name)
    f = e.overload(lambda x: x * x, name="square")
    taped = array(A.astype(dtype))
    values = [f(taped * 1.0)]
    for other in DTYPES:
        values += [taped * np.ones(3, other), np.asarray(3, other) + taped, taped / other(2)]
    values += [taped * 2, taped * 0.5, taped**2, taped.mean(), taped.astype(np.complex128).real]
    rf = ReducedFunction([*values, f(values[1])], Control(taped))
    fast = rf.compile(engines=[name])
    for found, expected in zip(fast(P.astype(dtype)), rf(P.astype(dtype)), strict=True):
        assert found.dtype == expected.dtype
        tolerance = 1e-12 if dtype is np.float64 else 1e-6
        np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=tolerance)


def test_what_has_no_certain_counterpart_stays_as_it_is():
    e = engines.namespace("jax")
    f = e.overload(lambda x: x * x, name="square")
    x, c = array(A), array(B)
    y = f(np.abs(x - 0.3) * 2.0)
    y = f(x**c + (x * y) ** 1.0)
    fast = compared([np.maximum(x, f(y) * 2.0).sum()], [x, c])
    text = fast.describe()
    assert all(f"autograd:{name} (a Block by itself)" in text for name in ("abs", "power", "maximum"))
    assert "NumPy's arithmetic in jax: " in text


def test_numpy_by_itself_is_left_to_numpy():
    """One piece of arithmetic that has no neighbour in an engine goes nowhere."""
    e = engines.namespace("jax")
    f = e.overload(lambda x: x * x)
    plain = e.overload(lambda x: x * x, jit=False, name="plain")
    x = array(A)
    fast = compared([f(f(plain(array(B) + plain(x)))).sum()], [x])
    assert "autograd:add (a Block by itself)" in fast.describe()


def test_an_array_and_a_loop_of_numpys_arithmetic():
    """Steps of JAX and NumPy in turns are one loop, with constants that differ from step to step."""
    e = engines.namespace("jax")
    f = e.overload(lambda x: e.sin(x), name="wave")
    x, w = array(A), array(B)
    u = x
    for k in range(20):
        u = f(u) + 0.1 * k * w
    fast = compared([u], [x, w])
    assert "loop of" in fast.describe()
    assert fast._current().policy.at(1).whole


def test_a_jacobian_of_a_mixed_tape():
    e = engines.namespace("jax")
    f = e.overload(lambda x: e.sin(x))
    x = array(A)
    fast = ReducedFunction(f(M @ f(x)) * 2.0, Control(x)).compile()
    fast(P)
    exact = 2.0 * np.cos(M @ np.sin(P))[:, None] * M * np.cos(P)
    np.testing.assert_allclose(np.stack([np.asarray(fast.jac_action(row)) for row in np.eye(3)], 1), exact, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(fast.jac_matrix()), exact, rtol=1e-12)
