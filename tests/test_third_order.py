"""Derivatives of recorded derivatives: third order through one engine and through two."""

import functools
import itertools

import engines
import numpy as np
import pytest

from pyadjoint_utils import (
    AdjFloat,
    Control,
    NotDifferentiableError,
    ReducedFunction,
    ReducedFunctional,
    annotate_tape,
    array,
    compute_gradient,
    compute_hessian_action,
    compute_jacobian_action,
    get_working_tape,
    minimize,
    taylor_to_dict,
    to_adjfloat,
    verify,
)

pytestmark = pytest.mark.engine_property("third order")
all_engines = pytest.mark.parametrize("engine", engines.NAMES)
PAIRS = list(itertools.permutations(engines.NAMES, 2))
pairs = pytest.mark.parametrize(("first", "second"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
X = np.array([0.4, -1.2, 0.9])
H = np.array([-0.3, 0.8, 1.1])
V = np.array([1.0, -0.5, 0.7])
Z = np.array([0.4 - 0.3j, -0.8 + 0.5j])
DZ = np.array([0.7 + 0.2j, -0.1 - 0.9j])
VZ = np.array([0.3 - 1.0j, 0.6 + 0.4j])
close = functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12)


@functools.cache
def function(engine, name):
    e = engines.namespace(engine)
    functions = {
        "sum of sines": lambda x: e.sum(e.sin(x)),
        "sine": lambda x: e.sin(x),
        "sum of exponentials": lambda x: e.sum(e.exp(x)),
        "sum of squares": lambda x: e.sum(x * x),
        "quartic": lambda x, y: e.sum(x * x * y * y),
        "modulus to the fourth": lambda z: e.sum(e.real(z * e.conj(z)) * e.real(z * e.conj(z))),
    }
    return e.overload(functions[name], name=name)


def check_orders(rf, m, h, v):
    table = taylor_to_dict(rf, m, h, v=v)
    for order in range(3):
        assert table[f"R{order}"]["Rate"][-1] > order + 0.8, table
    report = verify(rf, m)
    assert report.passed, str(report)


# One engine ------------------------------------------------------------------------------------------------------------


@all_engines
def test_third_derivative_of_a_sum_of_sines(engine):
    """The gradient is cos x, its VJP -v sin x, the derivative of that -v cos x h."""
    x = array(X + 1)
    gradient = compute_gradient(function(engine, "sum of sines")(x), Control(x), record=True)
    close(gradient.numpy(), np.cos(X + 1))
    assert (gradient.engine, gradient.shape, gradient.dtype) == (x.engine, x.shape, x.dtype)
    rf = ReducedFunction(gradient, Control(x))
    close(rf(array(X)).numpy(), np.cos(X))
    close(rf.jac_action(H).numpy(), -np.sin(X) * H)
    close(rf.adj_jac_action(V).numpy(), -np.sin(X) * V)
    close(rf.hess_action(H, V).numpy(), -np.cos(X) * H * V)
    check_orders(rf, array(X), array(H), [V])


@all_engines
def test_fourth_derivative(engine):
    """The gradient of <v, gradient> is recorded once more; the Hessian action of that is of fourth order."""
    x = array(X + 1)
    first = compute_gradient(function(engine, "sum of sines")(x), Control(x), record=True)
    second = compute_gradient(first, Control(x), adj_value=V, record=True)
    rf = ReducedFunction(second, Control(x))
    close(rf(array(X)).numpy(), -np.sin(X) * V)
    close(rf.jac_action(H).numpy(), -np.cos(X) * V * H)
    close(rf.hess_action(H, H).numpy(), np.sin(X) * V * H * H)


@all_engines
def test_mixed_third_derivatives(engine):
    """J = sum x^2 y^2: the gradient by x is 2 x y^2, which is then differentiated by x and y."""
    x, y = array(X + 1), array(H + 2)
    J = function(engine, "quartic")(x, y)
    gradient = compute_gradient(J, Control(x), record=True)
    rf = ReducedFunction(gradient, [Control(x), Control(y)])
    close(rf([X, H]).numpy(), 2 * X * H**2)
    by_x, by_y = rf.adj_jac_action(V)
    close(by_x.numpy(), 2 * H**2 * V)
    close(by_y.numpy(), 4 * X * H * V)
    by_x, by_y = rf.hess_action([H, V], V)
    close(by_x.numpy(), 4 * H * V * V)
    close(by_y.numpy(), 4 * V * (H * H + X * V))


@all_engines
def test_complex(engine):
    """J = sum |z|^4: the gradient is 4 |z|^2 z."""
    z = array(Z + 0.1)
    gradient = compute_gradient(function(engine, "modulus to the fourth")(z), Control(z), record=True)
    rf = ReducedFunction(gradient, Control(z))
    close(rf(array(Z)).numpy(), 4 * np.abs(Z) ** 2 * Z)

    def d(z, h):
        return 8 * (np.conj(z) * h).real * z + 4 * np.abs(z) ** 2 * h

    def dd(z, h, k):
        return 8 * ((np.conj(k) * h).real * z + (np.conj(z) * h).real * k + (np.conj(z) * k).real * h)

    close(rf.jac_action(DZ).numpy(), d(Z, DZ))
    close(rf.adj_jac_action(VZ).numpy(), d(Z, VZ))  # a Hessian is symmetric
    close(rf.hess_action(DZ, VZ).numpy(), dd(Z, DZ, VZ))
    check_orders(rf, array(Z), array(0.3 * DZ), [VZ])


@all_engines
def test_recorded_tangent(engine):
    """The tangent cos(x) h, with the direction varied as well."""
    x, h = array(X + 1), array(H + 1)
    tangent = compute_jacobian_action(function(engine, "sine")(x), Control(x), h, record=True)
    rf = ReducedFunction(tangent, [Control(x), Control(h)])
    close(rf([X, H]).numpy(), np.cos(X) * H)
    close(rf.jac_action([V, H]).numpy(), -np.sin(X) * H * V + np.cos(X) * H)
    by_x, by_h = rf.adj_jac_action(V)
    close(by_x.numpy(), -np.sin(X) * H * V)
    close(by_h.numpy(), np.cos(X) * V)
    by_x, by_h = rf.hess_action([H, V], V)
    close(by_x.numpy(), -np.cos(X) * H * V * H - np.sin(X) * V * V)
    close(by_h.numpy(), -np.sin(X) * V * H)


# Two engines -----------------------------------------------------------------------------------------------------------


def composed(s, c):
    """First to third derivative of exp(sin x)."""
    e = np.exp(s)
    return c * e, (c * c - s) * e, (c**3 - 3 * s * c - c) * e


@pairs
def test_third_derivative_through_two_engines(first, second):
    """J = sum(exp(sin x)), differentiated three times."""
    x = array(X + 1)
    J = function(second, "sum of exponentials")(function(first, "sine")(x))
    gradient = compute_gradient(J, Control(x), record=True)
    rf = ReducedFunction(gradient, Control(x))
    d1, d2, d3 = composed(np.sin(X), np.cos(X))
    close(rf(array(X)).numpy(), d1)
    close(rf.jac_action(H).numpy(), d2 * H)
    close(rf.adj_jac_action(V).numpy(), d2 * V)
    close(rf.hess_action(H, V).numpy(), d3 * H * V)
    check_orders(rf, array(X), array(0.3 * H), [V])


@pairs
def test_tangent_through_two_engines(first, second):
    x = array(X + 1)
    J = function(second, "sum of exponentials")(function(first, "sine")(x))
    tangent = compute_jacobian_action(J, Control(x), array(H), record=True)
    rf = ReducedFunctional(tangent, Control(x))
    d1, d2, d3 = composed(np.sin(X), np.cos(X))
    assert float(rf(array(X))) == pytest.approx(d1 @ H)
    close(rf.derivative().numpy(), d2 * H)
    close(rf.hessian(array(V)).numpy(), d3 * H * V)


# Functionals that contain a derivative -----------------------------------------------------------------------------------


@pairs
def test_functional_of_a_gradient(first, second):
    """K = sum |cos x|^2, where cos x is the recorded gradient of sum(sin x) and another engine sums up."""
    x = array(X + 1)
    gradient = compute_gradient(function(first, "sum of sines")(x), Control(x), record=True)
    rf = ReducedFunctional(function(second, "sum of squares")(gradient), Control(x))
    s, c = np.sin(X), np.cos(X)
    assert float(rf(array(X))) == pytest.approx(c @ c)
    close(rf.derivative().numpy(), -2 * s * c)
    close(rf.hessian(array(H)).numpy(), -2 * (c * c - s * s) * H)
    action = compute_hessian_action(rf.functional, Control(x), array(H))
    assert action.shape == (3,)


@all_engines
def test_minimise_the_size_of_a_gradient(engine):
    """|grad sum(sin x)|^2 is least where cos x = 0."""
    x = array([1.2, -1.3, 2.0])
    gradient = compute_gradient(function(engine, "sum of sines")(x), Control(x), record=True)
    rf = ReducedFunctional(function(engine, "sum of squares")(gradient), Control(x))
    best = minimize(rf, method="BFGS", options={"gtol": 1e-9})
    close(np.cos(best.numpy()), np.zeros(3), atol=1e-8)


def test_gradient_in_arithmetic_on_the_tape():
    """K = sum(x g) with g = 2 x recorded through arithmetic on arrays."""
    x = array(X + 1)
    gradient = compute_gradient((x * x).sum(), Control(x), record=True)
    rf = ReducedFunctional((x * gradient).sum(), Control(x))
    assert float(rf(array(X))) == pytest.approx(2 * X @ X)
    close(rf.derivative().numpy(), 4 * X)


# What cannot be recorded -----------------------------------------------------------------------------------------------


@all_engines
@pytest.mark.parametrize("driver", [(compute_gradient,), (compute_jacobian_action, H)], ids=["gradient", "tangent"])
def test_refused_through_adjfloat(engine, driver):
    x = array(X)
    J = to_adjfloat(function(engine, "sum of sines")(x)) * 2.0
    assert isinstance(J, AdjFloat)
    tape = get_working_tape()
    before = list(tape.get_blocks())
    driver, *direction = driver
    with pytest.raises(NotDifferentiableError, match=r"array\(x\) instead of AdjFloat"):
        driver(J, Control(x), *direction, record=True)
    assert list(tape.get_blocks())[: len(before)] == before
    assert get_working_tape() is tape
    assert annotate_tape()
    # Without recording it is there all the same.
    close(compute_gradient(J, Control(x)).numpy(), 2 * np.cos(X))


@all_engines
def test_refusal_leaves_no_blocks(engine):
    """A failed call leaves the tape as it was, also when some Blocks of the sweep had been recorded already."""
    x = array(X)
    J = function(engine, "sum of sines")(x * 1.0)
    a = AdjFloat(2.0)
    K = function(engine, "quartic")(to_adjfloat(J) * a, x)
    before = list(get_working_tape().get_blocks())
    with pytest.raises(NotDifferentiableError):
        compute_gradient(K, Control(x), record=True)
    assert list(get_working_tape().get_blocks()) == before
