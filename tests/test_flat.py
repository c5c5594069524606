import numpy as np
import pytest
from scipy import sparse
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
