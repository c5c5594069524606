"""Blocks of different engines on one tape: composed derivatives, and arrays that change hands without a copy."""

import functools
import itertools

import engines
import numpy as np
import pytest

from pyadjoint_utils import (
    AdjFloat,
    Control,
    ReducedFunction,
    ReducedFunctional,
    array,
    asarray,
    get_engine,
    to_adjfloat,
    to_jax,
    to_numpy,
    to_tensorflow,
    to_torch,
    verify,
)
from pyadjoint_utils.registry import FEW

pytestmark = pytest.mark.engine_property("pairs")
PAIRS = list(itertools.permutations(engines.NAMES, 2))
pairs = pytest.mark.parametrize(("first", "second"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
HOLDERS = ("numpy", "jax", "tensorflow", "torch")
X = np.array([0.4, -1.2, 0.9])
H = np.array([-0.3, 0.8, 1.1])
Z = np.array([0.4 - 0.3j, -0.8 + 0.5j])
DZ = np.array([0.7 + 0.2j, -0.1 - 0.9j])


@functools.cache
def sine(name):
    e = engines.namespace(name)
    return e.overload(lambda x: e.sin(x), name="sine")


@functools.cache
def weighted(name):
    """The sum of x^2 y."""
    e = engines.namespace(name)
    return e.overload(lambda x, y: e.sum(x * x * y), name="weighted")


@functools.cache
def square(name):
    e = engines.namespace(name)
    return e.overload(lambda z: z * z, name="square")


@functools.cache
def conjugated(name):
    e = engines.namespace(name)
    return e.overload(lambda z: e.conj(z) * e.exp(z), name="conjugated")


@functools.cache
def energy(name):
    e = engines.namespace(name)
    return e.overload(lambda z: e.sum(e.real(z * e.conj(z))), name="energy")


# Derivatives across engines --------------------------------------------------------------------------------------------


@pairs
def test_first_then_second(first, second):
    """J = sum(sin(x)^2 x)."""
    x = array(X + 1)
    J = weighted(second)(sine(first)(x), x)
    rf = ReducedFunctional(J, Control(x))
    s, c = np.sin(X), np.cos(X)
    assert float(rf(array(X))) == pytest.approx(np.sum(s * s * X))
    gradient = rf.derivative()
    np.testing.assert_allclose(gradient.numpy(), 2 * s * c * X + s * s, rtol=1e-12)
    assert gradient.engine == "numpy"
    curvature = 2 * (c * c - s * s) * X + 4 * s * c
    np.testing.assert_allclose(rf.hessian(array(H)).numpy(), curvature * H, rtol=1e-12)
    assert verify(rf, array(X)).passed


@pairs
def test_there_and_back(first, second):
    """J = sum(y^2 x), y = sin(sin(sin(x))) through A, B, A, with the control in A's own arrays."""
    e = engines.namespace(first)
    x = array(e.own(X + 1))
    y = sine(first)(sine(second)(sine(first)(x)))
    J = weighted(first)(y, x)
    assert (y.engine, J.engine) == (e.holds, e.holds)
    rf = ReducedFunctional(J, Control(x))
    rf(array(X))
    a = np.sin(X)
    b = np.sin(a)
    y, dy = np.sin(b), np.cos(b) * np.cos(a) * np.cos(X)
    ddy = -np.sin(b) * (np.cos(a) * np.cos(X)) ** 2
    ddy += np.cos(b) * (-np.sin(a) * np.cos(X) ** 2 - np.cos(a) * np.sin(X))
    gradient, action = rf.derivative(), rf.hessian(array(H))
    np.testing.assert_allclose(gradient.numpy(), 2 * y * dy * X + y * y, rtol=1e-12)
    np.testing.assert_allclose(action.numpy(), (2 * (dy * dy + y * ddy) * X + 4 * y * dy) * H, rtol=1e-12)
    assert (gradient.engine, action.engine) == (e.holds, e.holds)
    assert verify(rf, array(X)).passed


@pairs
def test_complex(first, second):
    """J = sum |conj(z^2) exp(z^2)|^2 = sum |w|^2 exp(2 Re w) with w = z^2."""
    z = array(Z + 0.1)
    rf = ReducedFunctional(energy(first)(conjugated(second)(square(first)(z))), Control(z))
    w = Z * Z
    size, growth = np.abs(w) ** 2, np.exp(2 * w.real)
    assert float(rf(array(Z))) == pytest.approx(np.sum(size * growth))
    slope = 2 * growth * (w + size)  # in w, under Re<a, b>
    np.testing.assert_allclose(rf.derivative().numpy(), np.conj(2 * Z) * slope, rtol=1e-12)
    dw = 2 * Z * DZ
    dslope = 2 * dw.real * slope + 2 * growth * (dw + 2 * (np.conj(w) * dw).real)
    expected = np.conj(2 * DZ) * slope + np.conj(2 * Z) * dslope
    np.testing.assert_allclose(rf.hessian(array(DZ)).numpy(), expected, rtol=1e-12)
    assert verify(rf, array(Z)).passed


def test_three_and_four_engines_on_one_tape():
    """J = sum(y^2 u) with y = sin(sin(x)), u = x * x."""
    x = array(X + 1)
    y = sine("torch")(sine("jax")(x))
    J = weighted("autograd")(y, square("tensorflow")(x))
    rf = ReducedFunctional(J, Control(x))
    rf(array(X))
    s = np.sin(X)
    y, dy = np.sin(s), np.cos(s) * np.cos(X)
    np.testing.assert_allclose(rf.derivative().numpy(), 2 * y * dy * X**2 + 2 * y * y * X, rtol=1e-12)
    assert verify(rf, array(X)).passed


@pairs
def test_adjfloat_between(first, second):
    """J = a^2 sum(x^2 y) with the number a = 3 sum(sin(x)^2 sin(x)) in between."""
    x = array(X + 1)
    s = sine(first)(x)
    a = to_adjfloat(weighted(first)(s, s)) * 3.0
    assert isinstance(a, AdjFloat)
    J = weighted(second)(a, weighted(second)(x, x))
    rf = ReducedFunctional(J, Control(x))
    assert verify(rf, array(X)).passed
    rf(array(X))
    s, c = np.sin(X), np.cos(X)
    a, da, q, dq = 3 * np.sum(s**3), 9 * s * s * c, np.sum(X**3), 3 * X**2
    np.testing.assert_allclose(rf.derivative().numpy(), 2 * a * q * da + a * a * dq, rtol=1e-12)
    dda, ddq = 9 * (2 * s * c * c - s**3), 6 * X
    along = 2 * q * da * (da @ H) + 2 * a * q * dda * H + 2 * a * (da * (dq @ H) + dq * (da @ H)) + a * a * ddq * H
    np.testing.assert_allclose(rf.hessian(array(H)).numpy(), along, rtol=1e-12)


@pairs
def test_adjfloat_control(first, second):
    """An AdjFloat goes into both engines and gets its derivative as an AdjFloat."""
    p = AdjFloat(1.3)
    J = weighted(first)(p, sine(second)(p))
    rf = ReducedFunctional(J, Control(p))
    value = rf(AdjFloat(0.6))
    s, c = np.sin(0.6), np.cos(0.6)
    assert float(value) == pytest.approx(0.36 * s)
    gradient = rf.derivative()
    assert isinstance(gradient, AdjFloat)
    assert gradient == pytest.approx(1.2 * s + 0.36 * c)
    assert rf.hessian(AdjFloat(1.0)) == pytest.approx(2 * s + 2.4 * c - 0.36 * s)


# Arrays that change hands ----------------------------------------------------------------------------------------------


def address(value):
    """Where an array's numbers lie in memory."""
    bare = getattr(value, "value", value)
    return get_engine("numpy" if isinstance(bare, np.ndarray) else value.engine).to_numpy(bare).ctypes.data


def held(holder, data):
    if holder != "numpy":
        engines.namespace(holder)
    return asarray(get_engine(holder).enter(data))


def aligned(n=2 * FEW):
    """NumPy memory that every engine can use as it is."""
    raw = np.zeros(8 * n + 64, np.uint8)
    start = -raw.ctypes.data % 64
    data = raw[start : start + 8 * n].view(np.float64)
    data[:] = np.arange(n)
    return data


CONVERSIONS = {"numpy": to_numpy, "jax": to_jax, "tensorflow": to_tensorflow, "torch": to_torch}


@pytest.mark.parametrize("target", HOLDERS)
@pytest.mark.parametrize("source", HOLDERS)
def test_exchange_shares_memory(source, target):
    """That of more than a few numbers, which are copied where that takes less time."""
    if target != "numpy":
        engines.namespace(target)
    x = held(source, aligned())
    y = CONVERSIONS[target](x)
    assert y.engine == target
    np.testing.assert_array_equal(y.numpy(), x.numpy())
    if (source, target) != ("numpy", "jax"):
        # JAX keeps what NumPy hands to it unchanged, so it has to copy what somebody could write to.
        assert address(y) == address(x)


@pytest.mark.parametrize("dtype", ["float32", "complex64", "complex128", "int32", "bool", "float16"])
@pytest.mark.parametrize("target", HOLDERS)
@pytest.mark.parametrize("source", HOLDERS)
def test_exchange_keeps_numbers_shape_and_dtype(source, target, dtype):
    if target != "numpy":
        engines.namespace(target)
    data = np.array([[1, 0, 1], [0, 1, 1]]).astype(dtype)
    for part in (data, data[:, ::2], data.T, data[:0], np.asarray(data[0, 0])):
        if source not in ("numpy", "torch") and not part.flags.c_contiguous:
            continue
        y = CONVERSIONS[target](held(source, part))
        assert (y.engine, y.shape, y.dtype) == (target, part.shape, part.dtype)
        np.testing.assert_array_equal(y.numpy(), part)


def test_a_lazily_conjugated_tensor_keeps_its_numbers():
    torch = pytest.importorskip("torch")
    z = torch.conj(torch.as_tensor(Z))
    for name, convert in CONVERSIONS.items():
        if name != "numpy":
            engines.namespace(name)
        np.testing.assert_array_equal(convert(asarray(z)).numpy(), np.conj(Z))


# NumPy's own memory is seldom aligned as JAX and TensorFlow need it; test_exchange_shares_memory has the one that is.
ALIASED = [pair for pair in PAIRS if pair not in [("autograd", "jax"), ("autograd", "tensorflow")]]


@pytest.mark.parametrize(("first", "second"), ALIASED, ids=["-".join(pair) for pair in ALIASED])
def test_blocks_of_another_engine_compute_on_the_same_memory(first, second):
    """What the second engine's function is handed is the first one's result itself, also in double precision."""
    e, other = engines.namespace(first), engines.namespace(second)
    seen = []

    def spy(x):
        seen.append(x)
        return x + 0

    x = array(e.own(aligned()))
    y = square(first)(x)
    g = other.overload(spy, jit=False)
    g(y)  # PyTorch's first run is one on copies, to find out what changes its arguments
    assert g(y).dtype == np.float64
    assert get_engine(other.holds).to_numpy(seen[-1]).ctypes.data == address(y)


# Arithmetic between arrays of two engines ------------------------------------------------------------------------------


@pytest.mark.parametrize(("left", "right"), list(itertools.permutations(HOLDERS, 2)))
def test_the_left_operands_engine_wins(left, right):
    """J = (x * y - y / x) @ y, with NumPy yielding to any engine only when it is no value on the tape."""
    x, y = held(left, X + 1), held(right, H + 2)
    z = x * y - y / x
    assert (x * y).engine == (x + y).engine == left
    J = z @ y
    rf = ReducedFunction(J, [Control(x), Control(y)])
    a, b = X + 2, H + 1.5
    assert float(rf([a, b])) == pytest.approx((a * b - b / a) @ b)
    gradient = rf.adj_jac_action(1.0)
    assert [g.engine for g in gradient] == [left, right]
    np.testing.assert_allclose(gradient[0].numpy(), (b + b / a**2) * b, rtol=1e-12)
    np.testing.assert_allclose(gradient[1].numpy(), 2 * (a - 1 / a) * b, rtol=1e-12)
    along = rf.hess_action([H, X], 1.0)
    np.testing.assert_allclose(along[0].numpy(), 2 * (b + b / a**2) * X - 2 * b * b / a**3 * H, rtol=1e-12)
    np.testing.assert_allclose(along[1].numpy(), 2 * (1 + 1 / a**2) * b * H + 2 * (a - 1 / a) * X, rtol=1e-12)


@pytest.mark.parametrize("holder", HOLDERS[1:])
def test_bare_numpy_arrays_and_numbers_yield(holder):
    x = held(holder, X)
    p = AdjFloat(2.0)
    for result, expected in [
        (H * x, H * X),
        (x * H, X * H),
        (H - x, H - X),
        (2.0 * x + 1, 2 * X + 1),
        (p * x, 2 * X),
        (x / p, X / 2),
        (H @ x, H @ X),
    ]:
        assert result.engine == holder
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-14)
