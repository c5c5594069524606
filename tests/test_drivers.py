"""Derivatives that are recorded themselves: third order, and programs that contain a gradient."""

import numpy as np
import pytest
from test_block import foreign_square
from toy_engine import asnumpy, conj, exp, overload_toy, overload_twin, real, sin, toy

from pyadjoint_utils import (
    AdjFloat,
    Control,
    NotDifferentiableError,
    ReducedFunction,
    ReducedFunctional,
    annotate_tape,
    compute_gradient,
    compute_jacobian_action,
    get_working_tape,
    push_tape,
    taylor_to_dict,
    to_adjfloat,
    to_numpy,
    verify,
)

A, P = np.array([0.5, -1.0]), np.array([1.5, 0.3])
H, K = np.array([0.4, -0.9]), np.array([-0.2, 0.7])
total = overload_toy(lambda x: x.sum())
fifth = overload_toy(lambda x: x**5)
product = overload_toy(lambda a, b: a * a * b)
PROGRAMS = {
    "one": lambda x: total(fifth(x)),
    "composed": lambda x: total(overload_toy(sin)(product(x, overload_toy(exp)(x)))),
    "branches": lambda x: total(fifth(x)) * total(product(x, fifth(x))) + total(x),
    "two engines": lambda x: total(fifth(overload_twin(sin)(x))),
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_recorded_gradient_is_the_gradient(program):
    x = toy(A)
    J = program(x)
    plain = asnumpy(compute_gradient(J, Control(x)))
    recorded = compute_gradient(J, Control(x), record=True)
    np.testing.assert_allclose(asnumpy(recorded), plain)
    assert recorded.engine == "toy"


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_the_jacobian_of_the_recorded_gradient_is_the_hessian(program):
    x = toy(A)
    J = program(x)
    hessian = ReducedFunctional(J, Control(x))
    gradient = ReducedFunction(compute_gradient(J, Control(x), record=True), Control(x))
    hessian(toy(P))
    gradient(toy(P))
    expected = asnumpy(hessian.hessian(toy(H)))
    np.testing.assert_allclose(asnumpy(gradient.jac_action(toy(H))), expected)
    np.testing.assert_allclose(asnumpy(gradient.adj_jac_action(toy(H))), expected)


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_third_derivatives_pass_a_taylor_test(program):
    x = toy(A)
    gradient = ReducedFunction(compute_gradient(program(x), Control(x), record=True), Control(x))
    rates = taylor_to_dict(gradient, toy(P), toy(0.1 * H), v=toy(K))
    assert min(rates["R0"]["Rate"]) > 0.9
    assert min(rates["R1"]["Rate"]) > 1.9
    assert min(rates["R2"]["Rate"]) > 2.9
    assert verify(gradient, toy(P), toy(0.1 * H)).passed


def test_third_derivative_in_closed_form():
    x = toy(A)
    gradient = ReducedFunction(compute_gradient(total(fifth(x)), Control(x), record=True), Control(x))
    gradient(toy(P))
    np.testing.assert_allclose(asnumpy(gradient.hess_action(toy(H), toy(K))), 60 * P**2 * H * K)


def test_a_fourth_derivative_by_recording_twice():
    x = toy(A)
    first = compute_gradient(total(fifth(x)), Control(x), record=True)
    second = compute_gradient(total(product(first, toy(K))), Control(x), record=True)
    rf = ReducedFunction(second, Control(x))
    # sum(K (5 x^4)^2) = sum(25 K x^8)
    np.testing.assert_allclose(asnumpy(rf(toy(P))), 200 * K * P**7)
    np.testing.assert_allclose(asnumpy(rf.jac_action(toy(H))), 1400 * K * P**6 * H)
    np.testing.assert_allclose(asnumpy(rf.hess_action(toy(H), toy(A))), 8400 * K * P**5 * H * A)


def test_a_recorded_tangent():
    x = toy(A)
    y = compute_jacobian_action(fifth(x), Control(x), toy(H), record=True)
    np.testing.assert_allclose(asnumpy(y), 5 * A**4 * H)
    rf = ReducedFunction(y, Control(x))
    np.testing.assert_allclose(asnumpy(rf(toy(P))), 5 * P**4 * H)
    np.testing.assert_allclose(asnumpy(rf.adj_jac_action(toy(K))), 20 * P**3 * H * K)
    np.testing.assert_allclose(asnumpy(rf.hess_action(toy(A), toy(K))), 60 * P**2 * H * K * A)


def test_directions_and_seeds_that_are_taped_are_differentiated():
    x, h, s = toy(A), toy(H), toy(K)
    tangent = compute_jacobian_action(fifth(x), Control(x), h, record=True)
    np.testing.assert_allclose(asnumpy(ReducedFunctional(total(tangent), Control(h)).derivative()), 5 * A**4)
    gradient = compute_gradient(fifth(x), Control(x), adj_value=s, record=True)
    np.testing.assert_allclose(asnumpy(gradient), 5 * A**4 * K)
    np.testing.assert_allclose(asnumpy(ReducedFunctional(total(gradient), Control(s)).derivative()), 5 * A**4)


def test_a_functional_of_a_gradient():
    # J = |grad sum(x^5)|^2 + sum(x^5), so dJ = 200 x^7 + 5 x^4.
    x = toy(A)
    inner = total(fifth(x))
    g = compute_gradient(inner, Control(x), record=True)
    rf = ReducedFunctional(total(g * g) + inner, Control(x))
    assert float(rf(toy(P))) == pytest.approx(np.sum(25 * P**8 + P**5))
    np.testing.assert_allclose(asnumpy(rf.derivative()), 200 * P**7 + 5 * P**4)
    np.testing.assert_allclose(asnumpy(rf.hessian(toy(H))), (1400 * P**6 + 20 * P**3) * H)
    assert verify(rf, toy(P), toy(0.1 * H)).passed


def test_complex_recorded_gradients():
    z = toy(np.array([0.5 + 1j, -1.0 + 0.2j]))
    quartic = overload_toy(lambda z: real((conj(z) * z) ** 2).sum())
    g = compute_gradient(quartic(z), Control(z), record=True)
    value = asnumpy(z)
    np.testing.assert_allclose(asnumpy(g), 4 * np.abs(value) ** 2 * value)
    assert verify(ReducedFunction(g, Control(z)), z).passed


def test_several_controls_and_an_independent_one():
    a, b, c = toy(A), toy(P), toy(K)
    ga, gb, gc = compute_gradient(total(product(a, b)), [Control(v) for v in (a, b, c)], record=True)
    np.testing.assert_allclose(asnumpy(ga), 2 * A * P)
    np.testing.assert_allclose(asnumpy(gb), A**2)
    assert asnumpy(gc).tolist() == [0.0, 0.0]
    rf = ReducedFunction([ga, gb], [Control(a), Control(b)])
    da, db = rf.adj_jac_action([toy(H), toy(K)])
    np.testing.assert_allclose(asnumpy(da), 2 * P * H + 2 * A * K)
    np.testing.assert_allclose(asnumpy(db), 2 * A * H)


def test_an_output_that_is_a_control_as_well():
    x = toy(A)
    result = compute_gradient(x, Control(x), adj_value=toy(K), record=True)
    np.testing.assert_allclose(asnumpy(result), K)
    np.testing.assert_allclose(asnumpy(compute_jacobian_action(x, Control(x), toy(H), record=True)), H)


def test_a_control_computed_from_another_is_cut_in_a_recorded_tangent():
    x = toy(A)
    y = fifth(x)
    tangent = compute_jacobian_action(product(x, y), [Control(x), Control(y)], [toy(H), toy(K)], record=True)
    np.testing.assert_allclose(asnumpy(tangent), 2 * A * A**5 * H + A**2 * K)
    gx, gy = compute_gradient(total(product(x, y)), [Control(x), Control(y)], record=True)
    np.testing.assert_allclose(asnumpy(gx), 2 * A**6)
    np.testing.assert_allclose(asnumpy(gy), A**2)


def recorded_and_plain(J, x, driver):
    if driver == "gradient":
        return [asnumpy(compute_gradient(J, Control(x), record=record)) for record in (True, False)]
    direction = 1.0 if isinstance(x, AdjFloat) else toy(H)
    return [asnumpy(compute_jacobian_action(J, Control(x), direction, record=record)) for record in (True, False)]


@pytest.mark.parametrize("driver", ["gradient", "tangent"])
def test_conversions_between_engines_are_recorded(driver, tape):
    x = toy(A)
    recorded, plain = recorded_and_plain(total(to_numpy(fifth(x))), x, driver)
    np.testing.assert_allclose(recorded, plain)
    g = compute_gradient(total(fifth(to_numpy(x))), Control(x), record=True)
    rf = ReducedFunction(g, Control(x))
    np.testing.assert_allclose(asnumpy(rf(toy(P))), 5 * P**4)
    np.testing.assert_allclose(asnumpy(rf.hess_action(toy(H), toy(K))), 60 * P**2 * H * K)


@pytest.mark.parametrize("driver", ["gradient", "tangent"])
@pytest.mark.parametrize("make", [lambda s: s**3, foreign_square], ids=["AdjFloat", "foreign"])
def test_blocks_without_an_engine_are_refused(make, driver, tape):
    s = AdjFloat(2.0)
    J = make(s)
    count = len(tape.get_blocks())
    with pytest.raises(NotDifferentiableError, match="Compute that part with arrays"):
        recorded_and_plain(J, s, driver)
    assert len(tape.get_blocks()) == count
    assert annotate_tape()
    assert get_working_tape() is tape


@pytest.mark.parametrize("driver", ["gradient", "tangent"])
def test_to_adjfloat_is_right_or_refused(driver, tape):
    x = toy(A)
    J = to_adjfloat(total(fifth(x)))
    count = len(tape.get_blocks())
    try:
        recorded, plain = recorded_and_plain(J, x, driver)
    except NotDifferentiableError:
        recorded = plain = len(tape.get_blocks()) - count
    np.testing.assert_allclose(recorded, plain)


def test_a_refused_recording_leaves_no_blocks(tape):
    s = AdjFloat(2.0)
    scaled = overload_toy(lambda s: s * s)
    y = total(scaled(s**2))
    count = len(tape.get_blocks())
    with pytest.raises(NotDifferentiableError, match="AdjFloatExprBlock"):
        compute_gradient(y, Control(s), record=True)
    assert len(tape.get_blocks()) == count
    assert annotate_tape()


def test_recording_goes_to_the_functions_own_tape(tape):
    x = toy(A)
    y = total(fifth(x))
    with push_tape() as other:
        g = compute_gradient(y, Control(x), tape=tape, record=True)
        assert get_working_tape() is other
        assert len(other.get_blocks()) == 0
    np.testing.assert_allclose(asnumpy(ReducedFunction(g, Control(x))(toy(P))), 5 * P**4)


def test_a_recorded_gradient_after_the_tape_was_moved_is_a_function_of_the_controls():
    x = toy(A)
    y = total(fifth(x))
    ReducedFunctional(y, Control(x))(toy(P))
    g = compute_gradient(y, Control(x), record=True)
    rf = ReducedFunction(g, Control(x))
    for point in (A, P, H):
        np.testing.assert_allclose(asnumpy(rf(toy(point))), 5 * point**4)
