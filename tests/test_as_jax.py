"""A tape inside JAX programs: every transformation, against the same program written in JAX."""

import concurrent.futures
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pyadjoint_utils
from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    ArgumentValueError,
    Control,
    NotDifferentiableError,
    ReducedFunction,
    ReducedFunctional,
    array,
    overload_numpy,
)
from pyadjoint_utils.registry import get_engine

jax = pytest.importorskip("jax")
jnp = jax.numpy

from jax.test_util import check_grads  # noqa: E402

from pyadjoint_utils import as_jax, overload_jax  # noqa: E402

ROOT = Path(pyadjoint_utils.__file__).parents[1]
V = np.array([0.3, -0.7, 1.1, 0.8])
D = np.array([0.5, 0.2, -0.4, 0.3])
E = np.array([-0.1, 0.6, 0.2, 0.9])


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def mixed(recorded=(1.0, 2.0, 3.0)):
    """``(x, a) -> (sum(sin(y) x) a, y^2)`` with ``y = exp(a x)``: NumPy, then JAX, then numbers, then NumPy."""
    x, a = array(np.array(recorded)), AdjFloat(1.5)
    y = np.exp(x * a)
    z = overload_jax(lambda y, x: jnp.sum(jnp.sin(y) * x))(y, x)
    return as_jax(ReducedFunction([z * a, y * y], [Control(x), Control(a)]))


def native(values):
    x, a = values
    y = jnp.exp(x * a)
    return [jnp.sum(jnp.sin(y) * x) * a, y * y]


def vector(f):
    """A function of one vector to one vector."""

    def g(v):
        z, y = f([v[:3], v[3]])
        return jnp.concatenate([z[None], y])

    return g


def scalar(f):
    """A function of one vector to a number that is not linear in what the tape returns, and calls the tape twice."""

    def g(v):
        z, y = f([v[:3], v[3]])
        return jnp.sum(y**2) * z + f([jnp.sin(v[:3]), v[3] * v[0]])[0]

    return g


@pytest.fixture(scope="module")
def expected():
    """Values, Jacobians and Hessians of the native program."""

    def everything(v):
        f, s = vector(native), scalar(native)
        return {
            "value": f(v),
            "jacobian": jax.jacfwd(f)(v),
            "second": jax.jacfwd(jax.jacfwd(f))(v),
            "scalar": s(v),
            "grad": jax.grad(s)(v),
            "hessian": jax.hessian(s)(v),
        }

    with jax.enable_x64(True):
        points = np.stack([V, 0.5 * V, V + 0.1])
        return jax.tree.map(np.asarray, jax.jit(jax.vmap(everything))(points))


def close(found, wanted, rtol=1e-10):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12), found, wanted)


MODES = {"eager": lambda f: f, "jit": jax.jit}
FIRST = {
    "jacfwd": lambda f, v: jax.jacfwd(f)(v),
    "jacrev": lambda f, v: jax.jacrev(f)(v),
    "linearize": lambda f, v: jax.vmap(jax.linearize(f, v)[1], out_axes=-1)(jnp.eye(4)),
    "vjp": lambda f, v: jnp.stack([jax.vjp(f, v)[1](row)[0] for row in jnp.eye(4)]),
    "jvp": lambda f, v: jnp.stack([jax.jvp(f, (v,), (row,))[1] for row in jnp.eye(4)], -1),
    "checkpoint": lambda f, v: jax.jacrev(jax.checkpoint(f))(v),
}
SECOND = {
    f"{outer.__name__}-{inner.__name__}": lambda f, v, outer=outer, inner=inner: outer(inner(f))(v)
    for outer in (jax.jacfwd, jax.jacrev)
    for inner in (jax.jacfwd, jax.jacrev)
}


@pytest.mark.parametrize("mode", MODES)
def test_values_and_gradients_in_lists(mode, expected):
    f = MODES[mode](mixed())
    z, y = f([V[:3], V[3]])
    close(jnp.concatenate([z[None], y]), expected["value"][0])
    value, (gx, ga) = MODES[mode](jax.value_and_grad(lambda v: f(v)[0]))([V[:3], V[3]])
    close([value, jnp.append(gx, ga)], [expected["value"][0][0], expected["jacobian"][0][0]])


# Eagerly every operation around the tape is compiled alone, which takes long.
EAGER_TOO = ("jvp", "linearize", "jacrev", "jacfwd-jacrev", "forward over reverse", "reverse over reverse")


def in_modes(kinds):
    pairs = [(kind, mode) for kind in kinds for mode in MODES if mode == "jit" or kind in EAGER_TOO]
    return pytest.mark.parametrize(("kind", "mode"), pairs)


@in_modes(FIRST)
def test_first_derivatives(kind, mode, expected):
    f = vector(mixed())
    close(MODES[mode](lambda v: FIRST[kind](f, v))(V), expected["jacobian"][0])


@in_modes(SECOND)
def test_second_derivatives_in_every_nesting(kind, mode, expected):
    f = mixed()
    close(MODES[mode](lambda v: SECOND[kind](vector(f), v))(V), expected["second"][0])
    if kind in ("jacfwd-jacrev", "jacrev-jacrev"):
        close(MODES[mode](lambda v: SECOND[kind](scalar(f), v))(V), expected["hessian"][0])


@pytest.mark.parametrize("mode", MODES)
def test_batches_of_values_and_derivatives(mode, expected):
    f = mixed()
    points = np.stack([V, 0.5 * V, V + 0.1])
    order, g = ("jacobian", jax.jacrev) if mode == "eager" else ("second", jax.hessian)
    close(MODES[mode](jax.vmap(vector(f)))(points), expected["value"])
    close(MODES[mode](jax.vmap(g(vector(f))))(points), expected[order])
    # The derivative of a batch whose entries share a control; an axis that is not the first.
    shared = lambda f: lambda v: jnp.sum(jax.vmap(lambda x: f([x, v[3]])[0])(jnp.outer(jnp.arange(1.0, 3.0), v[:3])))
    close(MODES[mode](jax.grad(shared(f)))(V), jax.jit(jax.grad(shared(native)))(V))
    close(MODES[mode](jax.vmap(vector(f), in_axes=1, out_axes=1))(points.T), expected["value"].T)


def test_a_direction_that_a_batch_shares_collects_the_cotangents_of_all():
    points = jnp.outer(jnp.arange(1.0, 4.0), V[:3])

    def tangents(f):
        along = lambda x, da: jax.jvp(lambda a: f([x, a])[0], (V[3],), (da,))[1]
        return lambda da: jnp.sum(jax.vmap(along, in_axes=(0, None))(points, da) ** 2)

    close(jax.jit(jax.grad(tangents(mixed())))(0.7), jax.jit(jax.grad(tangents(native)))(0.7))


def test_control_flow():
    def loop(f):
        def g(v):
            def body(x, t):
                z, y = jax.lax.cond(t > 0.15, f, lambda w: [jnp.sum(w[0]), 2 * w[0]], [0.5 * x + t, v[3]])
                return 0.1 * y, z

            x, z = jax.lax.scan(body, v[:3], jnp.arange(4.0) * 0.1)
            return jnp.sum(x) + jnp.sum(z)

        return g

    f = mixed()
    found, wanted = (jax.jit(jax.hessian(loop(g)))(V) for g in (f, native))
    close(found, wanted)
    close(jax.grad(loop(f))(V), jax.jit(jax.grad(loop(native)))(V))


def test_programs_that_run_as_python():
    loop = lambda f: lambda v: jax.lax.scan(lambda c, t: (0.1 * f([t * c, v[3]])[1], jnp.sum(c)), v[:3], jnp.ones(2))[0]
    with jax.disable_jit():
        f = mixed()
        close(jax.jacrev(loop(f))(V), jax.jacrev(loop(native))(V))
        close(jax.vmap(loop(f))(jnp.stack([V, 2 * V])), jax.vmap(loop(native))(jnp.stack([V, 2 * V])))


def test_without_rules_of_their_own_linearizations_are_derived_by_jax(monkeypatch, expected):
    from bridges import jax_primitives

    for primitive in (jax_primitives.call_p, jax_primitives.linear_p):
        monkeypatch.delitem(jax_primitives._linearizations, primitive)
    f = mixed()
    close(jax.jit(lambda v: jax.jacrev(jax.grad(scalar(f)))(v))(V), expected["hessian"][0])


def test_eager_tangents_of_tangents_and_of_gradients():
    f, push = mixed(), lambda g, d: lambda v: jax.jvp(g, (v,), (d,))[1]
    of_tangent = lambda f: push(push(vector(f), jnp.asarray(E)), jnp.asarray(D))
    of_gradient = lambda f: push(jax.grad(scalar(f)), jnp.asarray(D))
    for g in (of_tangent, of_gradient):
        close(g(f)(jnp.asarray(V)), jax.jit(g(native))(V))


def test_jaxs_own_check_of_gradients():
    check_grads(mixed(), ([V[:3], V[3]],), order=2, modes=["fwd", "rev"])


def test_third_derivatives_of_engines_are_right():
    third = lambda f: jax.jvp(jax.hessian(lambda v: f([v[:3], v[3]])[0]), (V,), (D,))[1]
    f, wanted = mixed(), jax.jit(lambda: third(native))()
    close(jax.jit(lambda: third(f))(), wanted)


@pytest.mark.parametrize("mode", MODES)
def test_third_derivatives_of_black_boxes_are_refused(mode):
    x = array([1.0, 2.0, 3.0])
    square = overload_numpy(lambda x: x**2, vjp=lambda p, yb: 2 * p[0] * yb, jvp=lambda p, dx: 2 * p[0] * dx[0])
    f = as_jax(ReducedFunction(square(x).sum(), Control(x)))
    close(MODES[mode](jax.hessian(f))(V[:3]), 2 * np.eye(3))
    with pytest.raises(Exception, match=r"is a black box: it has first and second derivatives, and a third one"):
        jax.block_until_ready(MODES[mode](jax.jacfwd(jax.hessian(f)))(V[:3]))


# Complex numbers -------------------------------------------------------------------------------------------------------

MATRIX = np.array([[1.0 + 2.0j, 0.3], [0.5j, -1.0]])
Z = np.array([0.4 - 0.3j, 0.2 + 0.5j])
R = np.array([0.7, -0.2])


def complex_tape():
    """Complex and real controls and outputs, neither holomorphic nor antiholomorphic."""
    z, r = array(np.array([1.0 + 1.0j, 2.0])), array(np.array([1.0, 2.0]))
    u = np.matmul(array(MATRIX), z) ** 2 * r
    w = overload_jax(lambda u, z: jnp.abs(jnp.sin(u) * jnp.conj(z)) ** 2)(u, z)
    return as_jax(ReducedFunction([u * 1j, np.real(u * np.conj(z)) * w], [Control(z), Control(r)]))


def complex_native(values):
    z, r = values
    u = (MATRIX @ z) ** 2 * r
    return [u * 1j, jnp.real(u * jnp.conj(z)) * jnp.abs(jnp.sin(u) * jnp.conj(z)) ** 2]


def complex_loss(f):
    def g(v):
        u, w = f(v)
        return jnp.sum(jnp.real(u * (1 + 0.5j) * u)) + jnp.sum(w) ** 2

    return g


COMPLEX = {
    "grad": lambda f, v, d: jax.grad(complex_loss(f))(v),
    "jvp": lambda f, v, d: jax.jvp(f, (v,), (d,)),
    "vjp": lambda f, v, d: jax.vjp(f, v)[1]([0.3j * v[0] + 1, d[1]]),
    "forward over reverse": lambda f, v, d: jax.jvp(jax.grad(complex_loss(f)), (v,), (d,)),
    "reverse over forward": lambda f, v, d: jax.grad(lambda v: jax.jvp(complex_loss(f), (v,), (d,))[1])(v),
    "forward over forward": lambda f, v, d: jax.jvp(lambda v: jax.jvp(f, (v,), (d,))[1], (v,), (d,)),
    "reverse over reverse": lambda f, v, d: jax.grad(
        lambda v: sum(jnp.sum(jnp.real(g * (2 - 0.3j))) for g in jax.grad(complex_loss(f))(v))
    )(v),
    "holomorphic": lambda f, v, d: jax.jacfwd(
        jax.jacrev(lambda z: f([z, v[1]])[0], holomorphic=True), holomorphic=True
    )(v[0]),
}


@in_modes(COMPLEX)
def test_complex_derivatives_follow_jaxs_convention(kind, mode):
    v, d = [jnp.asarray(Z), jnp.asarray(R)], [jnp.asarray(0.3 * Z[::-1] + 0.1j), jnp.asarray(R[::-1])]
    f = complex_tape()
    found = MODES[mode](lambda v, d: COMPLEX[kind](f, v, d))(v, d)
    close(found, jax.jit(lambda v, d: COMPLEX[kind](complex_native, v, d))(v, d))


# Every call has its own point --------------------------------------------------------------------------------------------


def cube_tape():
    a = AdjFloat(1.0)
    y = np.exp(array(np.zeros(1)) * a).sum() * a * a
    return ReducedFunction(y, Control(a))


@pytest.mark.parametrize("mode", MODES)
def test_a_function_used_twice_is_differentiated_at_both_points(mode):
    rf = cube_tape()
    f = as_jax(rf)
    g = MODES[mode](jax.grad(lambda a: f(a) + f(2 * a)))
    assert float(g(3.0)) == 30.0
    rf(AdjFloat(7.0))
    assert float(g(3.0)) == 30.0
    _, pull_back = jax.vjp(f, 3.0)
    rf(AdjFloat(11.0))
    f(5.0)
    assert float(pull_back(1.0)[0]) == 6.0
    rf.tape.clear_tape()
    assert float(g(3.0)) == 30.0


@pytest.mark.parametrize("mode", MODES)
def test_calls_from_several_threads_do_not_disturb_each_other(mode):
    f = scalar(mixed())
    points = [V + 0.01 * k for k in range(24)]
    with jax.enable_x64(True):
        g = MODES[mode](jax.value_and_grad(f))
        wanted = [jax.tree.map(np.asarray, g(p)) for p in points]

    def call(p):
        with jax.enable_x64(True):
            return jax.tree.map(np.asarray, g(p))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        close(list(pool.map(call, points)), wanted)


def test_a_tape_inside_of_a_function_on_another_tape(expected):
    f = scalar(mixed())
    v = array(np.ones(4))
    rf = ReducedFunctional(overload_jax(f)(v), Control(v))
    close(rf(array(V)).item(), expected["scalar"][0])
    close(rf.derivative().numpy(), expected["grad"][0])
    close(rf.hessian(array(D)).numpy(), expected["hessian"][0] @ D)


# How it is run -----------------------------------------------------------------------------------------------------------


def calls(f, *args):
    return str(jax.make_jaxpr(f)(*args)).count("tape_")


def test_what_is_recorded_with_jax_is_a_part_of_the_program():
    x, a = array(jnp.ones(3)), AdjFloat(1.5)
    y = overload_jax(lambda x, a: jnp.sin(x) * a)(x, a)
    f = as_jax(ReducedFunction((y * y).sum() * a, [Control(x), Control(a)]))
    for g in (f, jax.grad(f), jax.hessian(f)):
        assert calls(g, [V[:3], V[3]]) == 0
    close(jax.jit(jax.grad(f))([V[:3], V[3]])[1], 3 * V[3] ** 2 * np.sum(np.sin(V[:3]) ** 2))


def test_what_is_not_is_called_once_per_derivative():
    assert calls(mixed(), [V[:3], V[3]]) == 1  # the exponential and its square
    f = as_jax(ReducedFunction(*_numpy_loss()))
    assert [calls(g, V) for g in (f, jax.grad(f), lambda v: jax.jvp(f, (v,), (v,)))] == [1, 2, 2]


def _numpy_loss():
    x = array(np.ones(4))
    return (np.sin(x * x) * x).sum(), Control(x)


def test_batches_go_through_an_engine_in_one_pass():
    torch = pytest.importorskip("torch")
    runs = []

    def sine(x):
        runs.append(x.shape)
        return torch.sin(x) * x

    x = array(np.ones(4))
    y = pyadjoint_utils.overload(sine, "torch")(x)
    f = jax.jit(jax.vmap(as_jax(ReducedFunction(y.sum(), Control(x)))))
    runs.clear()
    close(f(np.stack([V, D, E])), [np.sum(np.sin(v) * v) for v in (V, D, E)])
    assert len(runs) == 2  # the batch, and one row that it is compared with


def test_a_function_that_an_engine_cannot_batch_goes_one_by_one():
    pytest.importorskip("torch")
    x = array(np.ones(4))
    y = pyadjoint_utils.overload(lambda x: x * x if x.sum().item() > 0 else -x, "torch")(x)
    f = as_jax(ReducedFunction(y.sum(), Control(x)))
    close(jax.vmap(f)(np.stack([V, -D, E])), [np.sum(V**2), np.sum(D), np.sum(E**2)])


LARGE = """
import sys, numpy as np, jax, jax.numpy as jnp
jax.config.update("jax_enable_x64", True)
from pyadjoint_utils import Control, ReducedFunction, ReducedFunctional, array, as_jax, overload_jax, overload_numpy
n = 100_000
x = array(jnp.linspace(0.1, 1.0, n))
inner = jax.jit(lambda y: jnp.cumsum(jnp.sort(jnp.sin(y))))
pull = jax.jit(lambda y, yb: jax.vjp(inner, y)[1](yb)[0])
y = overload_jax(lambda x: jnp.sin(x) * x)(x)
# JAX where a compiled program waits for it, also compiled from a tape.
w = array(jnp.linspace(0.1, 1.0, n))
half = ReducedFunctional(overload_jax(lambda w: jnp.sum(jnp.sort(jnp.cos(w))))(np.exp(w)), Control(w)).compile()
slope = lambda p, b: b * half.value_and_derivative(array(p[0]))[1].numpy()
level = overload_numpy(lambda y: half(array(y)).item(), vjp=slope)
z = overload_numpy(lambda y: np.asarray(inner(y)), vjp=lambda p, zb: np.asarray(pull(p[0], zb)))(np.exp(-y))
f = as_jax(ReducedFunction(overload_jax(lambda z: jnp.mean(jnp.sort(z)))(z) + level(y) / n, Control(x)))
g, v = jax.jit(jax.value_and_grad(f)), jnp.linspace(0.0, 1.0, n)
for _ in range(4):  # nothing is waited for in between
    value, d = g(v)
    v = v - jnp.tanh(d)
own = lambda y: jnp.mean(jnp.sort(inner(jnp.exp(-y)))) + jnp.sum(jnp.sort(jnp.cos(jnp.exp(y)))) / n
native = lambda x: own(jnp.sin(x) * x)
w = jnp.linspace(0.0, 1.0, n)
for _ in range(4):
    wanted, d = jax.value_and_grad(native)(w)
    w = w - jnp.tanh(d)
np.testing.assert_allclose(value, wanted, rtol=1e-10)
np.testing.assert_allclose(v, w, rtol=1e-10)
"""


def test_large_arrays_do_not_deadlock():
    subprocess.run([sys.executable, "-c", LARGE], check=True, timeout=120, cwd=ROOT)


def test_numpys_memory_is_not_read_after_a_call_has_returned():
    engine, n = get_engine("jax"), 200_000
    raw = np.empty(8 * n + 64, np.uint8)
    a = raw[-raw.ctypes.data % 64 :][: 8 * n].view(np.float64)  # JAX reads aligned memory in place
    f = engine.compile(lambda x, c: (jnp.sort(jnp.sin(x[0])),), ())
    for _ in range(10):
        a[:] = 0.5
        (y,) = f((engine.argument(a, a.dtype),), ())
        a[:] = 7.0
        close(y, np.full(n, np.sin(0.5)))


def test_an_array_that_enters_is_read_before_the_call_returns():
    engine, n = get_engine("jax"), 1_000_000
    a = np.empty(n)
    for _ in range(20):
        a[:] = 0.5
        y = engine.enter(a)
        a[:] = 7.0
        assert not np.any(np.asarray(y) == 7.0)
    swapped = engine.enter(np.array([1.0, -2.0], ">f8"))
    assert (swapped.tolist(), swapped.dtype) == ([1.0, -2.0], np.float64)


# Precision ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_without_64_bit_types_it_is_cast_at_the_boundary(mode, expected, caplog):
    f = mixed()
    with jax.enable_x64(False), caplog.at_level(logging.WARNING, "bridges"):
        v = jnp.asarray(V)
        value = MODES[mode](vector(f))(v)
        gradient = MODES[mode](jax.grad(lambda v: f([v[:3], v[3]])[0]))(v)
        batch = MODES[mode](jax.vmap(vector(f)))(jnp.stack([v, v]))
        hessian = jax.jit(jax.hessian(lambda v: f([v[:3], v[3]])[0]))(v)
    assert [y.dtype.name for y in (value, gradient, hessian, batch)] == ["float32"] * 4
    close(value, expected["value"][0], 1e-5)
    close(batch[1], expected["value"][0], 1e-5)
    close(gradient, expected["jacobian"][0][0], 1e-5)
    close(hessian, expected["second"][0][0], 1e-4)
    (record,) = caplog.records
    assert 'jax.config.update("jax_enable_x64", True)' in record.getMessage()


def test_a_32_bit_tape_stays_one():
    x = array(np.ones(4, np.float32))
    f = as_jax(ReducedFunction((np.sin(x) * x).sum(), Control(x)))
    v = V.astype(np.float32)
    gradient = jax.jit(jax.grad(f))(v)
    assert gradient.dtype == np.float32
    close(gradient, np.sin(v) + v * np.cos(v), 1e-6)


# What is refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([V, 1.0], ArgumentValueError, r"controls\[0\] must have the shape of the recorded one, float64\[3\]"),
        ([np.ones((2, 3)), 1.0], ArgumentValueError, r"got float64\[2,3\].*with jax.vmap\."),
        ([V[:3] * 1j, 1.0], ArgumentTypeError, r"controls\[0\] .* got complex128\[3\]"),
        ([V[:3].astype(np.float32), 1.0], ArgumentTypeError, r"controls\[0\] .* got float32\[3\]"),
        ([V[:3], np.array(1)], ArgumentTypeError, r"controls\[1\] .* got int64\[\]"),
        ([V[:3], 1j], ArgumentTypeError, r"controls\[1\] must be an array .*; got complex"),
        ([V[:3], "1"], ArgumentTypeError, r"controls\[1\] must be an array .*; got str"),
        ([V[:3]], ArgumentValueError, r"one entry for each of the 2 controls; got 1"),
    ],
)
def test_bad_arguments_are_refused(values, error, message):
    f = mixed()
    with pytest.raises(error, match=message):
        f(values)
    f([V[:3], 1.0])


def test_taped_values_are_refused():
    with pytest.raises(ArgumentTypeError, match=r"controls\[0\] must be an array of JAX or NumPy .*; got ndarray"):
        mixed()([array(V[:3]), 1.0])


def test_leaked_tracers_raise_jaxs_error():
    f, leaked = mixed(), []
    jax.jit(lambda v: leaked.append(v) or v)(V[:3])
    with pytest.raises(jax.errors.UnexpectedTracerError):
        f([leaked[0], 1.0])
    f([V[:3], 1.0])


class OutOfRange(Exception):
    pass


def failing():
    def solve(x):
        if x[0] < 0:
            try:
                raise ZeroDivisionError("the diagonal is zero")
            except ZeroDivisionError as error:
                raise OutOfRange("x[0] must be positive") from error
        return np.sqrt(x)

    x = array(np.ones(4))
    y = overload_numpy(solve, vjp=lambda p, yb: yb / (2 * np.sqrt(p[0])))(x)
    return as_jax(ReducedFunction(y.sum(), Control(x)))


def test_an_error_inside_is_the_callers():
    f = failing()
    with pytest.raises(OutOfRange, match=r"must be positive") as caught:
        f(-np.ones(4))
    assert type(caught.value.__cause__) is ZeroDivisionError
    with pytest.raises(OutOfRange, match=r"must be positive"):
        jax.grad(lambda v: f(-v))(np.ones(4))
    close(jax.grad(f)(np.ones(4)), 0.5 * np.ones(4))


def test_an_error_inside_a_compiled_program_is_told_with_its_cause():
    g = jax.jit(failing())
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"OutOfRange: x\[0\] must be positive") as caught:
        jax.block_until_ready(g(-np.ones(4)))
    assert "solve then sum failed in a JAX program" in str(caught.value)
    assert "ZeroDivisionError: the diagonal is zero" in str(caught.value)
    for _ in range(2):
        close(g(np.ones(4)), 4.0)
    # Once a program is warm, XLA's own code raises.
    with pytest.raises(
        (ValueError, jax.errors.JaxRuntimeError), match=r"OutOfRange: x\[0\] must be positive"
    ) as caught:
        jax.block_until_ready(g(-np.ones(4)))
    assert "ZeroDivisionError: the diagonal is zero" in str(caught.value)
    close(jax.jit(jax.vmap(jax.grad(failing())))(np.ones((2, 4))), np.full((2, 4), 0.5))
    with pytest.raises(jax.errors.JaxRuntimeError, match="OutOfRange"):
        jax.block_until_ready(jax.jit(jax.vmap(jax.grad(failing())))(-np.ones((2, 4))))


def test_an_output_without_a_derivative_is_refused():
    x = array(np.ones(4))
    with pytest.raises(NotDifferentiableError, match=r"outputs\[1\] is int64\[\]"):
        as_jax(ReducedFunction([x.sum(), np.argmax(x)], Control(x)))
