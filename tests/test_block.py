"""One Block against closed forms, away from the recorded point, through Pyadjoint's drivers and ours."""

import numpy as np
import pyadjoint
import pytest
from toy_engine import asnumpy, conj, exp, matmul, overload_toy, overload_twin, real, sin, toy

from pyadjoint_utils import (
    AdjFloat,
    Block,
    Control,
    EngineBlock,
    ReducedFunction,
    ReducedFunctional,
    annotate_tape,
    compute_gradient,
    compute_hessian_action,
    compute_jacobian_action,
    get_working_tape,
    to_adjfloat,
)

RECORDED = np.array([0.5, -1.0, 2.0])
POINT = np.array([1.5, 0.3, -0.7])
H = np.array([0.2, -1.0, 0.6])
W = np.array([1.0, -2.0, 3.0])
cube = overload_toy(lambda x: (toy_weights * x * x * x).sum(), name="cube")
toy_weights = toy(W).value


def expected_cube(x):
    """Value, gradient and Hessian action of sum(w x^3)."""
    return np.sum(W * x**3), 3 * W * x**2, 6 * W * x * H


# One Block -------------------------------------------------------------------------------------------------------------


def test_through_reduced_functional():
    x = toy(RECORDED)
    rf = ReducedFunctional(cube(x), Control(x))
    for point in (POINT, RECORDED, -POINT):
        value, gradient, hessian = expected_cube(point)
        assert float(rf(toy(point))) == pytest.approx(value)
        np.testing.assert_allclose(asnumpy(rf.derivative()), gradient)
        np.testing.assert_allclose(asnumpy(rf.tlm(toy(H))), gradient @ H)
        np.testing.assert_allclose(asnumpy(rf.hessian(toy(H))), hessian)


def moved(recorded, point, make):
    """Record at one point and let Pyadjoint itself move the tape to another."""
    x = toy(recorded)
    y = make(x)
    control = Control(x)
    control.update(toy(point))
    for block in get_working_tape().get_blocks():
        block.recompute()
    return y, control


def test_recompute():
    y, _ = moved(RECORDED, POINT, cube)
    assert asnumpy(y.block_variable.saved_output) == pytest.approx(expected_cube(POINT)[0])


def test_pyadjoint_compute_derivative():
    y, control = moved(RECORDED, POINT, cube)
    np.testing.assert_allclose(asnumpy(pyadjoint.compute_derivative(y, control)), expected_cube(POINT)[1])
    np.testing.assert_allclose(
        asnumpy(pyadjoint.compute_derivative(y, control, adj_value=-2.0)), -2 * expected_cube(POINT)[1]
    )


def test_pyadjoint_compute_tlm():
    y, control = moved(RECORDED, POINT, cube)
    np.testing.assert_allclose(asnumpy(pyadjoint.compute_tlm(y, control, toy(H))), expected_cube(POINT)[1] @ H)


@pytest.mark.parametrize("make", [cube, lambda x: cube(exp_of(x))], ids=["one", "composed"])
def test_pyadjoint_compute_hessian(make):
    y, control = moved(RECORDED, POINT, make)
    pyadjoint.compute_derivative(y, control)
    result = asnumpy(pyadjoint.compute_hessian(y, control, toy(H)))
    expected = expected_cube(POINT)[2] if make is cube else 9 * W * np.exp(3 * POINT) * H
    np.testing.assert_allclose(result, expected)


def test_our_drivers():
    x = toy(POINT)
    y = cube(x)
    _, gradient, hessian = expected_cube(POINT)
    np.testing.assert_allclose(asnumpy(compute_gradient(y, Control(x))), gradient)
    np.testing.assert_allclose(asnumpy(compute_gradient(y, [Control(x)], adj_value=3.0)[0]), 3 * gradient)
    np.testing.assert_allclose(asnumpy(compute_jacobian_action(y, Control(x), toy(H))), gradient @ H)
    np.testing.assert_allclose(asnumpy(compute_hessian_action(y, Control(x), toy(H))), hessian)
    np.testing.assert_allclose(
        asnumpy(compute_hessian_action(y, Control(x), toy(H), hessian_value=2.0)), hessian + 2 * gradient
    )


def test_drivers_leave_annotation_and_tape(tape):
    x = toy(POINT)
    y = cube(x)
    compute_gradient(y, Control(x))
    compute_hessian_action(y, Control(x), toy(H))
    assert annotate_tape()
    assert len(tape.get_blocks()) == 1
    assert str(tape.get_blocks()[0]) == "toy:cube"


def test_the_seed_of_a_vector_function():
    x = toy(RECORDED)
    rf = ReducedFunction(sin_of(x), Control(x))
    rf(toy(POINT))
    np.testing.assert_allclose(asnumpy(rf.adj_jac_action(toy(W))), np.cos(POINT) * W)
    np.testing.assert_allclose(asnumpy(rf.jac_action(toy(H))), np.cos(POINT) * H)
    np.testing.assert_allclose(asnumpy(rf.hess_action(toy(H), toy(W))), -np.sin(POINT) * W * H)


# Compositions ----------------------------------------------------------------------------------------------------------

exp_of = overload_toy(exp, name="exp")
sin_of = overload_toy(sin, name="sin")
square = overload_toy(lambda x: x * x, name="square")
total = overload_toy(lambda x: x.sum(), name="total")


def test_composed_hessian_needs_both_terms():
    # d2 sum(sin(x^2)) = -4 x^2 sin(x^2) + 2 cos(x^2): curvature of the outer function and of the inner one.
    x = toy(RECORDED)
    rf = ReducedFunctional(total(sin_of(square(x))), Control(x))
    rf(toy(POINT))
    curvature_of_outer = -4 * POINT**2 * np.sin(POINT**2) * H
    curvature_of_inner = 2 * np.cos(POINT**2) * H
    result = asnumpy(rf.hessian(toy(H)))
    np.testing.assert_allclose(result, curvature_of_outer + curvature_of_inner)
    assert not np.allclose(result, curvature_of_outer)
    assert not np.allclose(result, curvature_of_inner)


def test_an_output_that_is_used_by_several_blocks():
    x = toy(RECORDED)
    y = square(x)
    rf = ReducedFunctional(total(sin_of(y)) + total(exp_of(y)) + total(y), Control(x))
    rf(toy(POINT))
    first = np.cos(POINT**2) + np.exp(POINT**2) + 1
    second = -np.sin(POINT**2) + np.exp(POINT**2)
    np.testing.assert_allclose(asnumpy(rf.derivative()), 2 * POINT * first)
    np.testing.assert_allclose(asnumpy(rf.hessian(toy(H))), (4 * POINT**2 * second + 2 * first) * H)


def test_the_same_variable_twice_in_one_call():
    product = overload_toy(lambda a, b: (a * a * b).sum())
    x = toy(RECORDED)
    rf = ReducedFunctional(product(x, x), Control(x))
    rf(toy(POINT))
    np.testing.assert_allclose(asnumpy(rf.derivative()), 3 * POINT**2)
    np.testing.assert_allclose(asnumpy(rf.tlm(toy(H))), (3 * POINT**2) @ H)
    np.testing.assert_allclose(asnumpy(rf.hessian(toy(H))), 6 * POINT * H)


def test_several_outputs_and_several_inputs_of_one_block():
    f = overload_toy(lambda a, b: {"p": a * b, "s": (a.sum(), b * b)})
    a, b = toy([1.0, 2.0]), toy([3.0, 4.0])
    y = f(a, b)
    rf = ReducedFunctional(total(y["p"]) * y["s"][0] + total(y["s"][1]), [Control(a), Control(b)])
    p, q = np.array([0.5, -1.5]), np.array([2.0, 1.0])
    rf([toy(p), toy(q)])
    da, db = rf.derivative()
    np.testing.assert_allclose(asnumpy(da), q * p.sum() + p @ q)
    np.testing.assert_allclose(asnumpy(db), p * p.sum() + 2 * q)


def test_an_unused_output_and_an_inactive_input():
    f = overload_toy(lambda a, b: (a * b, sin(a)))
    a, b = toy([1.0]), toy([2.0])
    y, _ = f(a, b)
    rf = ReducedFunctional(total(y * y), Control(a))
    rf(toy([3.0]))
    assert asnumpy(rf.derivative()) == pytest.approx(2 * 3.0 * 4.0)
    assert asnumpy(rf.hessian(toy([1.0]))) == pytest.approx(8.0)


def test_a_matrix_product():
    f = overload_toy(lambda a, x: (matmul(a, x) * matmul(a, x)).sum())
    a = np.array([[1.0, 2.0], [0.5, -1.0]])
    A, x = toy(a), toy([1.0, 1.0])
    rf = ReducedFunctional(f(A, x), [Control(A), Control(x)])
    p = np.array([0.3, -0.4])
    rf([toy(2 * a), toy(p)])
    dA, dx = rf.derivative()
    np.testing.assert_allclose(asnumpy(dA), 2 * np.outer(2 * a @ p, p))
    np.testing.assert_allclose(asnumpy(dx), 2 * (2 * a).T @ (2 * a) @ p)


# Complex numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("z", [1 + 1j, -0.5 + 2j])
def test_the_adjoint_is_the_conjugate_transpose(z):
    # J dz = 2 z dz, so J^H yb = conj(2 z) yb.
    x = toy([0.0 + 0.5j])
    rf = ReducedFunction(square(x), Control(x))
    rf(toy([z]))
    dz, yb = 0.7 - 0.2j, 1.5 + 0.5j
    np.testing.assert_allclose(asnumpy(rf.jac_action(toy([dz])))[0], 2 * z * dz)
    np.testing.assert_allclose(asnumpy(rf.adj_jac_action(toy([yb])))[0], np.conj(2 * z) * yb)
    np.testing.assert_allclose(asnumpy(rf.hess_action(toy([dz]), toy([yb])))[0], np.conj(2 * dz) * yb)


def test_the_gradient_of_a_real_functional_is_steepest_ascent():
    # |z|^2 = x^2 + y^2 has the gradient 2 (x + i y).
    size = overload_toy(lambda z: (conj(z) * z).sum())
    real_part = overload_toy(lambda z: (z + conj(z)) * 0.5)
    to_real = overload_toy(lambda z: real(z))
    z = toy([1.0 + 0j])
    rf = ReducedFunctional(to_real(real_part(size(z))), Control(z))
    assert float(rf(toy([1 - 2j]))) == pytest.approx(5.0)
    np.testing.assert_allclose(asnumpy(rf.derivative()), [2 - 4j])
    assert rf.derivative().dtype == np.complex128


def test_a_real_input_of_a_complex_function_has_a_real_gradient():
    phase = overload_toy(lambda x: exp(x * 1j))
    x = toy([0.3])
    rf = ReducedFunction(phase(x), Control(x))
    rf(toy([0.8]))
    yb = 2.0 - 1.0j
    result = rf.adj_jac_action(toy([yb]))
    assert result.dtype == np.float64
    np.testing.assert_allclose(asnumpy(result)[0], np.real(np.conj(1j * np.exp(0.8j)) * yb))


# Mixtures with AdjFloat, other engines and Blocks of other packages ---------------------------------------------------


class ForeignSquare(Block):
    """y = s^2 of an AdjFloat, as another package would write it: one component at a time."""

    def __init__(self, s):
        super().__init__()
        self.add_dependency(s)

    def recompute_component(self, inputs, block_variable, idx, prepared):
        return AdjFloat(float(inputs[0]) ** 2)

    def evaluate_adj_component(self, inputs, adj_inputs, block_variable, idx, prepared=None):
        return 2 * float(inputs[0]) * adj_inputs[0]

    def evaluate_tlm_component(self, inputs, tlm_inputs, block_variable, idx, prepared=None):
        return 2 * float(inputs[0]) * tlm_inputs[0]

    def evaluate_hessian_component(
        self, inputs, hessian_inputs, adj_inputs, block_variable, idx, relevant_dependencies, prepared=None
    ):
        tangent = block_variable.tlm_value
        return 2 * float(inputs[0]) * hessian_inputs[0] + 2 * adj_inputs[0] * (tangent or 0.0)


def foreign_square(s):
    y = AdjFloat(float(s) ** 2)
    block = ForeignSquare(s)
    get_working_tape().add_block(block)
    block.add_output(y.create_block_variable())
    return y


scaled = overload_toy(lambda s, v: s * s * v, name="scaled")


def check_scalar(make, start, point, f, df, d2f):
    """A function of one AdjFloat against its closed form."""
    s = AdjFloat(start)
    rf = ReducedFunctional(make(s), Control(s))
    assert float(rf(point)) == pytest.approx(f(point))
    assert float(rf.derivative()) == pytest.approx(df(point))
    assert type(rf.derivative()) is AdjFloat
    assert float(rf.tlm(0.5)) == pytest.approx(0.5 * df(point))
    assert float(rf.hessian(0.5)) == pytest.approx(0.5 * d2f(point))


V = toy([1.0, 2.0])


@pytest.mark.parametrize(
    ("make", "f", "df", "d2f"),
    [
        (
            lambda s: to_adjfloat(total(scaled(s, V))) ** 2,
            lambda s: 9 * s**4,
            lambda s: 36 * s**3,
            lambda s: 108 * s**2,
        ),
        (lambda s: total(scaled(s**3, V)), lambda s: 3 * s**6, lambda s: 18 * s**5, lambda s: 90 * s**4),
        (
            lambda s: to_adjfloat(total(scaled(s * s, V))) * s,
            lambda s: 3 * s**5,
            lambda s: 15 * s**4,
            lambda s: 60 * s**3,
        ),
        (
            lambda s: foreign_square(to_adjfloat(total(scaled(foreign_square(s), V)))),
            lambda s: 9 * s**8,
            lambda s: 72 * s**7,
            lambda s: 504 * s**6,
        ),
    ],
    ids=["array-float", "float-array", "float-array-float", "foreign-array-foreign"],
)
def test_adjfloat_and_arrays_mix(make, f, df, d2f):
    check_scalar(make, 1.2, 0.7, f, df, d2f)


def test_an_array_control_through_floats_and_back():
    x = toy(RECORDED)
    s = to_adjfloat(total(square(x)))
    rf = ReducedFunctional(total(scaled(s, x)), Control(x))
    rf(toy(POINT))
    q, p = POINT @ POINT, POINT.sum()
    np.testing.assert_allclose(asnumpy(rf.derivative()), 4 * q * POINT * p + q**2)
    hp = H.sum()
    along = 8 * (POINT @ H) * POINT * p + 4 * q * H * p + 4 * q * POINT * hp + 4 * q * (POINT @ H)
    np.testing.assert_allclose(asnumpy(rf.hessian(toy(H))), along)


def test_two_engines_in_one_computation():
    twin_sin = overload_twin(sin)
    x = toy(RECORDED)
    y = twin_sin(square(x))
    assert y.engine == "twin"
    rf = ReducedFunctional(total(y * y), Control(x))
    rf(toy(POINT))
    gradient = rf.derivative()
    assert gradient.engine == "toy"
    np.testing.assert_allclose(asnumpy(gradient), np.sin(2 * POINT**2) * 2 * POINT)
    second = 8 * POINT**2 * np.cos(2 * POINT**2) + 2 * np.sin(2 * POINT**2)
    np.testing.assert_allclose(asnumpy(rf.hessian(toy(H))), second * H)


def test_pyadjoints_drivers_run_our_blocks_beside_adjfloat():
    s = AdjFloat(1.5)
    J = to_adjfloat(total(scaled(s, V))) * s
    assert float(pyadjoint.compute_derivative(J, Control(s))) == pytest.approx(9 * 1.5**2)
    assert float(pyadjoint.compute_tlm(J, Control(s), AdjFloat(2.0))) == pytest.approx(18 * 1.5**2)
    pyadjoint.compute_derivative(J, Control(s))
    assert float(pyadjoint.compute_hessian(J, Control(s), AdjFloat(1.0))) == pytest.approx(18 * 1.5)


def test_the_blocks_on_the_tape_are_few(tape):
    total(sin_of(square(toy(POINT))))
    assert [type(b) for b in tape.get_blocks()] == [EngineBlock] * 3
