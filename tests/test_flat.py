import numpy as np
import pytest
import torch
from scipy import optimize, sparse
from scipy.sparse.linalg import gmres, lsqr

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    ArgumentValueError,
    Control,
    NotDifferentiableError,
    ReducedFunction,
    ReducedFunctional,
    ReducedFunctionNumPy,
    array,
    overload_numpy,
)

RNG = np.random.default_rng(3)
X, A = RNG.standard_normal((2, 3)), 0.7
POINT, DIRECTION = RNG.standard_normal(7), RNG.standard_normal(7)


def several():
    x, a = array(X), AdjFloat(A)
    return ReducedFunction([np.sin(x) * a, (x * x).sum()], [Control(x), Control(a)])


def closed_form(v):
    return np.append(np.sin(v[:6]) * v[6], np.sum(v[:6] ** 2))


def jacobian(v):
    rows = np.hstack([np.diag(np.cos(v[:6]) * v[6]), np.sin(v[:6])[:, None]])
    return np.vstack([rows, np.append(2 * v[:6], 0.0)])


def test_value_and_actions_equal_closed_forms():
    flat = ReducedFunctionNumPy(several())
    assert flat.shape == (7, 7)
    np.testing.assert_allclose(flat(POINT), closed_form(POINT))
    np.testing.assert_allclose(flat.jac_action(DIRECTION), jacobian(POINT) @ DIRECTION)
    np.testing.assert_allclose(flat.adj_jac_action(DIRECTION), jacobian(POINT).T @ DIRECTION)
    step = 1e-6
    seeds = [jacobian(POINT + s * step * DIRECTION).T @ DIRECTION for s in (1, -1)]
    np.testing.assert_allclose(flat.hessian(DIRECTION, DIRECTION), (seeds[0] - seeds[1]) / 2 / step, rtol=1e-8)
    np.testing.assert_array_equal(flat.get_controls(), POINT)


def test_matrices_are_flat():
    flat = ReducedFunctionNumPy(several())
    flat(POINT)
    matrix = flat.jac_matrix()
    assert type(matrix) is np.ndarray
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(matrix, jacobian(POINT), atol=1e-15)
    many = RNG.standard_normal((7, 2, 3))
    np.testing.assert_allclose(flat.jac_matrix(many), np.tensordot(jacobian(POINT), many, 1), atol=1e-14)
    curvature = flat.hess_matrix(DIRECTION)
    np.testing.assert_allclose(curvature @ POINT, flat.hess_action(POINT, DIRECTION), atol=1e-14)
    pattern = sparse.csr_array(jacobian(POINT) != 0)
    for sparsity in ("detect", pattern):
        found = flat.jac_matrix(sparsity=sparsity)
        assert sparse.issparse(found)
        np.testing.assert_allclose(found.toarray(), matrix, atol=1e-15)
    np.testing.assert_allclose(flat.hess_matrix(DIRECTION, "detect").toarray(), curvature, atol=1e-14)
    assert flat.hess_matrix(DIRECTION, sparse.csr_array(curvature)).nnz == np.count_nonzero(curvature)
    pattern[6, 2] = False
    pattern.eliminate_zeros()
    with pytest.raises(ArgumentValueError, match="misses entries"):
        flat.jac_matrix(sparsity=pattern)


def test_blocks_of_points_stand_on_the_diagonal():
    x, a = array(X), array(A)
    law = overload_numpy(lambda x, a: np.cumsum(x, axis=1) ** 2 * a, method="complex-step", pointwise=(True, False))
    rf = ReducedFunction(law(x, a), [Control(x), Control(a)])
    flat = ReducedFunctionNumPy(rf)
    assert rf.jac_matrix()[0].shape == (2, 3, 3)
    np.testing.assert_allclose(flat.jac_matrix(), rf.linear_operator() @ np.eye(7), atol=1e-14)
    empty = array(np.zeros((0, 3)))
    assert ReducedFunctionNumPy(ReducedFunction(law(empty, a), Control(empty))).jac_matrix().shape == (0, 0)


def test_matrices_of_single_and_of_complex_precision_are_wide():
    x, z = array(X.astype(np.float32)), array(X[0] + 1j * X[1])
    single = ReducedFunctionNumPy(ReducedFunction(x * x, Control(x))).jac_matrix()
    assert single.dtype == np.float64
    np.testing.assert_allclose(single, np.diag(2 * X.ravel()), rtol=1e-6)
    flat = ReducedFunctionNumPy(ReducedFunction([z * z, z], Control(z)))
    expected = np.vstack([np.diag(2 * z.numpy()), np.eye(3)])
    for matrix in (flat.jac_matrix(), flat.jac_matrix(sparsity="detect").toarray(), flat.jac_matrix(np.eye(3))):
        assert matrix.dtype == np.complex128
        np.testing.assert_allclose(matrix, expected)


def test_bad_matrices_are_refused():
    flat = ReducedFunctionNumPy(several())
    with pytest.raises(ArgumentValueError, match=r"must have 7 rows.*got \(6, 2\)"):
        flat.jac_matrix(np.ones((6, 2)))
    with pytest.raises(ArgumentValueError, match=r"shape \(6, 7\), but the matrix has the shape \(7, 7\)"):
        flat.jac_matrix(sparsity=sparse.eye_array(6, 7))
    law = overload_numpy(np.sin, method="complex-step", pointwise=True)
    x = array(np.zeros(10**6))
    with pytest.raises(ArgumentValueError, match=r'8000.0 GB.*sparsity="detect"'):  # though its blocks would fit
        ReducedFunctionNumPy(ReducedFunction(law(x), Control(x))).jac_matrix()


def test_a_vector_that_the_caller_overwrites_changes_nothing():
    flat = ReducedFunctionNumPy(several())
    x = POINT.copy()
    flat(x)
    x[:] = 0.0
    np.testing.assert_allclose(flat.jac_action(DIRECTION), jacobian(POINT) @ DIRECTION)


def test_set_controls_moves_the_next_function():
    rf = several()
    flat = ReducedFunctionNumPy(rf)
    values = flat.set_controls(POINT)
    np.testing.assert_array_equal(flat.obj_to_array(values), POINT)
    np.testing.assert_allclose(flat.jac_action(DIRECTION), jacobian(POINT) @ DIRECTION)


def test_complex_numbers_stay_complex():
    z = array(X[0] + 1j * X[1])
    flat = ReducedFunctionNumPy(ReducedFunction(z * z, Control(z)))
    v = RNG.standard_normal(3) + 1j * RNG.standard_normal(3)
    np.testing.assert_allclose(flat(v), v * v)
    np.testing.assert_allclose(flat.adj_jac_action(v), np.conj(2 * v) * v)
    assert flat(v).dtype == np.complex128


def test_a_functional_has_one_entry_and_its_scale():
    x = array(X[0])
    flat = ReducedFunctionNumPy(ReducedFunctional((x * x).sum(), Control(x), scale=3.0))
    np.testing.assert_allclose(flat(np.ones(3)), [9.0])
    np.testing.assert_allclose(flat.adj_jac_action(np.ones(1)), [6.0, 6.0, 6.0])
    np.testing.assert_allclose(flat.jac_matrix(), [[6.0, 6.0, 6.0]])
    np.testing.assert_allclose(flat.hess_matrix(), 6.0 * np.eye(3))
    np.testing.assert_allclose(flat.hess_matrix(sparsity="detect").toarray(), 6.0 * np.eye(3))


def rosenbrock(dtype=torch.float64):
    """Of a PyTorch array and a number."""
    x, a = array(torch.tensor([[1.3], [0.7]], dtype=dtype)), AdjFloat(0.8)
    J = 5.0 * (x[1, 0] - x[0, 0] ** 2) ** 2 + (1.0 - x[0, 0]) ** 2 + 10.0 * (a - x[1, 0]) ** 2
    return ReducedFunctional(J, [Control(x), Control(a)], scale=0.5)


def rosenbrock_closed_form(v):
    x, y, a = v
    value = 5.0 * (y - x * x) ** 2 + (1.0 - x) ** 2 + 10.0 * (a - y) ** 2
    slope = [-20.0 * x * (y - x * x) - 2.0 * (1.0 - x), 10.0 * (y - x * x) - 20.0 * (a - y), 20.0 * (a - y)]
    return 0.5 * value, 0.5 * np.array(slope)


def rosenbrock_curvature(v):
    x, y, _ = v
    rows = [[60 * x * x - 20 * y + 2, -20 * x, 0], [-20 * x, 30, -20], [0, -20, 20]]
    return 0.5 * np.array(rows)


SCALARS = {
    "functional": rosenbrock,
    "single precision": lambda: rosenbrock(torch.float32),
    "function": lambda: rosenbrock()._function,
    "compiled": lambda: rosenbrock().compile(),
    "compiled function": lambda: rosenbrock()._function.compile(),
    "respecialized": lambda: rosenbrock().compile(respecialize=True),
}


@pytest.mark.parametrize("make", SCALARS.values(), ids=SCALARS)
def test_a_scalar_has_a_flat_gradient(make):
    rf = make()
    flat, factor = ReducedFunctionNumPy(rf), 1.0 if isinstance(rf, ReducedFunctional) else 2.0
    for point in (np.array([1.1, 0.9, -0.4]), np.array([-0.5, 0.3, 0.6])):
        value, gradient = rosenbrock_closed_form(point)
        found = flat.value_and_derivative(point)
        assert type(found[0]) is float
        assert type(found[1]) is np.ndarray
        assert found[1].dtype == np.float64
        np.testing.assert_allclose(found[0], factor * value, rtol=1e-5)
        for derivative in (found[1], flat.derivative(), flat.adj_jac_action(1.0), flat.adj_jac_action(np.ones(1))):
            np.testing.assert_allclose(derivative, factor * gradient, rtol=1e-5)
        np.testing.assert_allclose(flat.adj_jac_action(-2.0), -2.0 * factor * gradient, rtol=1e-5)
        direction = np.array([0.3, -1.0, 0.7])
        expected = factor * rosenbrock_curvature(point) @ direction
        for action in (flat.hessian(direction), flat.hessian(direction, 1.0), flat.hess_action(direction, np.ones(1))):
            np.testing.assert_allclose(action, expected, rtol=1e-5)


METHODS = ["BFGS", "CG", "L-BFGS-B", "TNC", "SLSQP", "Newton-CG", "trust-constr", "trust-ncg"]


@pytest.mark.parametrize("method", METHODS)
def test_the_solvers_of_scipy_take_value_and_gradient(method):
    flat = ReducedFunctionNumPy(rosenbrock().compile())

    def curvature(x, v):
        flat(x)
        return flat.hessian(v)

    more = {"hessp": curvature} if method in ("Newton-CG", "trust-ncg") else {}
    start = np.array([0.5, 0.7, 0.2])
    found = optimize.minimize(flat.value_and_derivative, start, jac=True, method=method, tol=1e-8, **more)
    np.testing.assert_allclose(found.x, np.ones(3), atol=1e-4)
    assert found.fun == pytest.approx(rosenbrock_closed_form(found.x)[0])
    np.testing.assert_array_equal(start, [0.5, 0.7, 0.2])


def test_what_is_no_real_scalar_has_no_gradient_and_is_not_evaluated():
    rf = several()
    for flat in (ReducedFunctionNumPy(rf), ReducedFunctionNumPy(rf.compile())):
        flat(POINT)
        with pytest.raises(NotDifferentiableError, match="Only a real scalar has a gradient"):
            flat.value_and_derivative(DIRECTION)
        np.testing.assert_array_equal(flat.get_controls(), POINT)
        for attempt in (flat.derivative, lambda flat=flat: flat.hessian(DIRECTION)):
            with pytest.raises(NotDifferentiableError, match="Only a real scalar has a gradient"):
                attempt()
        with pytest.raises(ArgumentValueError, match=r"must be flat, of shape \(7,\); got \(\)"):
            flat.adj_jac_action(1.0)


def test_a_vector_of_one_number_may_be_that_number():
    x = array([2.0])
    flat = ReducedFunctionNumPy(ReducedFunction(x**3, Control(x)))
    np.testing.assert_allclose(flat(3.0), [27.0])
    np.testing.assert_allclose(flat.jac_action(2.0), [54.0])
    value, gradient = flat.value_and_derivative(3.0)
    assert value == pytest.approx(27.0)
    np.testing.assert_allclose(gradient, [27.0])


def test_bad_vectors_are_refused():
    flat = ReducedFunctionNumPy(several())
    with pytest.raises(ArgumentValueError, match=r"must be flat, of shape \(7,\); got \(6,\)"):
        flat(np.ones(6))
    with pytest.raises(ArgumentTypeError, match="imaginary part"):
        flat(POINT * 1j)
    with pytest.raises(ArgumentTypeError, match="takes a ReducedFunction"):
        ReducedFunctionNumPy(np.sin)


def test_the_operator_is_the_jacobian_where_the_function_stands():
    rf = several()
    operator = rf.linear_operator()
    for point in (POINT, DIRECTION):
        ReducedFunctionNumPy(rf)(point)
        np.testing.assert_allclose(operator @ np.eye(7), jacobian(point), atol=1e-15)
        np.testing.assert_allclose(operator.rmatmat(np.eye(7)), jacobian(point).T, atol=1e-15)
        np.testing.assert_allclose(operator.matvec(POINT), jacobian(point) @ POINT)
        np.testing.assert_allclose(operator.rmatvec(POINT), jacobian(point).T @ POINT)
    wanted = np.linalg.lstsq(jacobian(DIRECTION), POINT, rcond=None)[0]
    np.testing.assert_allclose(lsqr(operator, POINT, atol=1e-14, btol=1e-14)[0], wanted, rtol=1e-6)


def test_a_complex_operator_solves_a_complex_system():
    z = array(X[0] + 2.0 + 1j * X[1])
    matrix = RNG.standard_normal((3, 3)) + 1j * RNG.standard_normal((3, 3))
    rf = ReducedFunction(matrix @ (z * z), Control(z))
    operator = rf.linear_operator()
    full = matrix * (2 * z.numpy())
    rhs = RNG.standard_normal(3) + 1j
    np.testing.assert_allclose(operator.rmatvec(rhs), full.conj().T @ rhs)
    np.testing.assert_allclose(operator @ np.eye(3)[:, :2], full[:, :2])
    np.testing.assert_allclose(operator.rmatmat(np.outer(rhs, rhs)), full.conj().T @ np.outer(rhs, rhs))
    np.testing.assert_allclose(gmres(operator, rhs, rtol=1e-12)[0], np.linalg.solve(full, rhs), rtol=1e-8)


def test_what_has_no_operator_is_refused():
    z, x = array(X[0] + 1j * X[1]), array(X[0])
    with pytest.raises(NotDifferentiableError, match="holomorphic"):
        ReducedFunction(np.conj(z) * z, Control(z)).linear_operator()
    with pytest.raises(NotDifferentiableError, match="one dtype"):
        ReducedFunction(x * 1j, Control(x)).linear_operator()


def test_a_million_numbers_make_no_list(monkeypatch):
    x = array(np.zeros(10**6))
    flat = ReducedFunctionNumPy(ReducedFunction(x + 0.0, Control(x)))
    monkeypatch.setattr("pyadjoint_utils.values.ndarray._ad_to_list", None)
    assert flat(np.ones(10**6)).sum() == 10**6
