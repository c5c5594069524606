"""Second derivatives of NumPy functions where engines' own rules divide by zero or choose one of two equal arguments."""

import math

import engines
import numpy as np
import pytest
from scipy import special

from pyadjoint_utils import Control, ReducedFunction, array, get_engine

HYPOT = np.array([[1.0, -1.0], [-1.0, 1.0]]) / np.sqrt(8.0)
TIE = np.array([[1.0, -1.0], [-1.0, 1.0]]) / 4
CASES = {
    "prod": (np.prod, [2.0, 0.0, 3.0], [0.0, 6.0, 0.0], [[0, 3, 0], [3, 0, 2], [0, 2, 0]]),
    "prod of two zeros": (np.prod, [2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [[0, 0, 0], [0, 0, 2], [0, 2, 0]]),
    "cumprod": (lambda x: np.cumprod(x)[-1], [2.0, 0.0, 3.0], [0.0, 6.0, 0.0], [[0, 3, 0], [3, 0, 2], [0, 2, 0]]),
    "logaddexp": (lambda x: np.logaddexp(x[0], x[1]), [0.7, 0.7], [0.5, 0.5], TIE),
    "logaddexp2": (lambda x: np.logaddexp2(x[0], x[1]), [0.7, 0.7], [0.5, 0.5], TIE * np.log(2.0)),
    "hypot": (lambda x: np.hypot(x[0], x[1]), [1.0, 1.0], [np.sqrt(0.5), np.sqrt(0.5)], HYPOT),
}


def value(name, x):
    return array(get_engine(engines.namespace(name).name).enter(np.array(x)))


def check(name, function, point, gradient, hessian):
    # Recorded elsewhere, so that the point is one that the function is evaluated at.
    x = value(name, np.array(point) + 0.25)
    rf = ReducedFunction(function(x), Control(x))
    rf(np.array(point))
    np.testing.assert_allclose(rf.derivative().numpy(), gradient, rtol=1e-12, atol=1e-12)
    for direction, row in zip(np.eye(len(point)), hessian, strict=True):
        np.testing.assert_allclose(rf.hessian(direction).numpy(), row, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", engines.NAMES)
def test_ties_and_zeros(name, case):
    check(name, *case)


@pytest.mark.parametrize("name", engines.NAMES)
def test_matrices_where_a_formula_depends_on_values(name):
    """Whether directions can go together was seen at another point, where no factor is zero."""
    x = value(name, [2.0, 1.0, 3.0])
    rf = ReducedFunction(np.cumprod(x).sum(), Control(x))
    for b in (1.0, 0.0, 2.0):
        rf(np.array([2.0, b, 3.0]))
        np.testing.assert_allclose(rf.hess_matrix().numpy(), [[0, 4, b], [4, 0, 2], [b, 2, 0]], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(rf.jac_matrix().numpy(), [1 + 4 * b, 8, 2 * b], rtol=1e-12)


@pytest.mark.parametrize("name", ["jax", "torch"])
@pytest.mark.parametrize("matrix", [[[1.0, 2.0], [2.0, 4.0]], [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [5.0, 7.0, 9.0]]])
def test_determinant_of_a_singular_matrix(name, matrix):
    """The cofactors, whose derivative along d is that of a polynomial: differences of them are exact up to rounding."""

    def cofactors(a):
        minors = [[np.delete(np.delete(a, i, 0), j, 1) for j in range(len(a))] for i in range(len(a))]
        return np.array(
            [[(-1) ** (i + j) * np.linalg.det(m) for j, m in enumerate(row)] for i, row in enumerate(minors)]
        )

    a, d = np.array(matrix), np.cos(np.arange(len(matrix) ** 2.0)).reshape(np.shape(matrix))
    x = value(name, a + 0.25)
    rf = ReducedFunction(np.linalg.det(x), Control(x))
    rf(a)
    np.testing.assert_allclose(rf.derivative().numpy(), cofactors(a), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(float(rf.jac_action(d)), np.sum(cofactors(a) * d), rtol=1e-12)
    np.testing.assert_allclose(rf.hessian(d).numpy(), (cofactors(a + d) - cofactors(a - d)) / 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", engines.NAMES)
def test_sinc_at_zero(name):
    hessian = [[-(np.pi**2) / 3, 0.0], [0.0, 2.0]]
    check(name, lambda x: np.sinc(x).sum(), [0.0, 1.0], [0.0, -1.0], hessian)


@pytest.mark.parametrize("name", engines.NAMES)
def test_sinc_around_zero(name):
    """On both sides of where the series ends, too; beside the first terms of the series of each derivative."""
    points = np.array([1e-9, 1e-4, -0.1, 0.159, 0.1592, 2.5])
    x = value(name, points + 1.0)
    rf = ReducedFunction(np.sinc(x), Control(x))
    z = np.pi * points
    np.testing.assert_allclose(rf(points).numpy(), np.sinc(points), rtol=1e-14)
    n = np.arange(1, 12)[:, None]
    signs = (-1.0) ** n / [[float(math.factorial(2 * k + 1))] for k in range(1, 12)]
    slope = np.sum(signs * 2 * n * z ** (2 * n - 1), axis=0)
    bend = np.sum(signs * 2 * n * (2 * n - 1) * z ** (2 * n - 2), axis=0)
    slope[-1] = np.cos(z[-1]) / z[-1] - np.sin(z[-1]) / z[-1] ** 2
    bend[-1] = -np.sin(z[-1]) / z[-1] - 2 * slope[-1] / z[-1]
    ones = np.ones(len(points))
    np.testing.assert_allclose(rf.jac_action(ones).numpy(), np.pi * slope, rtol=1e-13)
    np.testing.assert_allclose(rf.hess_action(ones, ones).numpy(), np.pi**2 * bend, rtol=1e-13)


@pytest.mark.parametrize("name", ["jax", "torch"])
def test_bessel_function_of_order_zero(name):
    """At 0, and on both sides of where the series ends: I0' = I1, I0'' = I0 - I1 / x."""
    points = np.array([0.0, 1e-6, -3.0, 7.99, -8.01, 30.0])
    x = value(name, points + 1.0)
    rf = ReducedFunction(np.i0(x), Control(x))
    np.testing.assert_allclose(rf(points).numpy(), special.iv(0, points), rtol=1e-13)
    ones, slope = np.ones(len(points)), special.iv(1, points)
    bend = special.iv(0, points) - np.where(points, slope / np.where(points, points, 1.0), 0.5)
    np.testing.assert_allclose(rf.jac_action(ones).numpy(), slope, rtol=1e-13, atol=1e-300)
    np.testing.assert_allclose(rf.hess_action(ones, ones).numpy(), bend, rtol=1e-13)


@pytest.mark.parametrize("name", engines.NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.complex128, np.int64])
def test_sinc_of_other_numbers(name, dtype):
    engine = get_engine(engines.namespace(name).name)
    points = np.array([0, 1, -3]).astype(dtype) / dtype(8 if dtype is not np.int64 else 1)
    points = points.astype(dtype) * (1 + 1j if dtype is np.complex128 else 1)
    found = np.sinc(array(engine.enter(points.astype(dtype)))).numpy()
    np.testing.assert_allclose(found, np.sinc(points), rtol=1e-6, atol=1e-6)
    assert dtype is np.int64 or found.dtype == dtype
