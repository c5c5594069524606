"""Second derivatives of NumPy functions where engines' own rules divide by zero or choose one of two equal arguments."""

import engines
import numpy as np
import pytest

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


@pytest.mark.parametrize("name", ["jax", "torch"])
def test_sinc_at_zero(name):
    hessian = [[-(np.pi**2) / 3, 0.0], [0.0, 2.0]]
    check(name, lambda x: np.sinc(x).sum(), [0.0, 1.0], [0.0, -1.0], hessian)


def test_sinc_in_torch_around_zero():
    x = value("torch", np.zeros(5))
    rf = ReducedFunction(np.sinc(x), Control(x))
    points = np.array([1e-9, -0.1, 0.159, 0.1592, 2.5])
    z = np.pi * points
    np.testing.assert_allclose(rf(points).numpy(), np.sinc(points), rtol=1e-14)
    slope = np.pi * np.where(points == 1e-9, -z / 3, np.cos(z) / z - np.sin(z) / z**2)
    np.testing.assert_allclose(rf.jac_action(np.ones(5)).numpy(), slope, rtol=1e-12)
