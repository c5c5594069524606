"""Jacobian matrices against columns one by one and closed forms, through every engine and several."""

import numpy as np
import pytest

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    ArgumentValueError,
    Control,
    NotDifferentiableError,
    ReducedFunction,
    array,
    compute_jacobian_matrix,
    get_engine,
    memory,
    overload,
    overload_numpy,
    to_adjfloat,
)

ENGINES = ["jax", "torch", "tensorflow", "autograd"]
RNG = np.random.default_rng(7)
A, X, Y = RNG.standard_normal((3, 2)), RNG.standard_normal(2), RNG.standard_normal((2, 2))


def columns(rf, controls):
    """The Jacobian, one direction at a time."""
    found = []
    for j, control in enumerate(controls):
        size = np.size(control)
        parts = []
        for e in np.eye(size):
            m_dot = [np.zeros(np.shape(c)) for c in controls]
            m_dot[j] = e.reshape(np.shape(control))
            parts.append([np.asarray(v.numpy() if hasattr(v, "numpy") else v) for v in rf.jac_action(m_dot)])
        found.append([np.stack(p, axis=-1).reshape(*p[0].shape, *np.shape(control)) for p in zip(*parts, strict=True)])
    return [list(row) for row in zip(*found, strict=True)]


def function_of(engine):
    pytest.importorskip(engine)
    sin, matmul = get_engine(engine).function("sin"), get_engine(engine).function("matmul")
    return overload(lambda x, y: (sin(x) * x[0], matmul(y, x) * x), engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_blocks_equal_their_columns_at_another_point(engine):
    f = function_of(engine)
    x, y = array(X), array(Y)
    rf = ReducedFunction(list(f(x, y)), [Control(x), Control(y)])
    point = [X + 0.3, Y - 0.2]
    rf(point)
    blocks = rf.jac_matrix()
    for row, wanted in zip(blocks, columns(rf, point), strict=True):
        for block, expected in zip(row, wanted, strict=True):
            assert block.shape == expected.shape
            np.testing.assert_allclose(block.numpy(), expected, rtol=1e-12, atol=1e-14)
    assert np.all(blocks[0][1].numpy() == 0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("wide", [False, True], ids=["by columns", "by rows"])
@pytest.mark.parametrize("sweep", [1, 2**28], ids=["one at a time", "at once"])
def test_a_chain_equals_the_product(engine, wide, sweep, monkeypatch):
    monkeypatch.setattr(memory, "SWEEP", sweep)
    pytest.importorskip(engine)
    matrix = A.T if wide else A
    x = array(np.arange(1.0, matrix.shape[1] + 1))
    matmul = get_engine(engine).function("matmul")
    y = overload(lambda a, x: matmul(a, x), engine)(matrix, x)
    z = overload(lambda y: y * y, "autograd")(y)
    found = compute_jacobian_matrix(z, Control(x)).numpy()
    np.testing.assert_allclose(found, 2 * (matrix @ x.numpy())[:, None] * matrix, rtol=1e-12)


@pytest.mark.parametrize("wide", [False, True], ids=["by columns", "by rows"])
def test_adjfloats_and_foreign_blocks_on_the_way(wide):
    x = array(X)
    s = to_adjfloat(x[0]) ** 2 * AdjFloat(3.0)
    outputs = [s, x * s] if not wide else [s]
    rf = ReducedFunction(outputs, [Control(x)])
    rf([X])
    np.testing.assert_allclose(rf.jac_matrix()[0][0].numpy(), [6 * X[0], 0.0])
    if not wide:
        expected = np.diag([3 * X[0] ** 2] * 2) + np.outer(X, [6 * X[0], 0.0])
        np.testing.assert_allclose(rf.jac_matrix()[1][0].numpy(), expected)


def test_a_scalar_of_adjfloats():
    a, b = AdjFloat(2.0), AdjFloat(3.0)
    rf = ReducedFunction(a * b, [Control(a), Control(b)])
    assert [block.item() for block in rf.jac_matrix()] == [3.0, 2.0]


def test_a_given_matrix_is_multiplied():
    x, y = array(X), array(Y)
    z = overload(lambda x, y: (y @ x) * x, "autograd")(x, y)
    rf = ReducedFunction(z, [Control(x), Control(y)])
    by_x, by_y = [block.numpy() for block in rf.jac_matrix()]
    mx, my = RNG.standard_normal((2, 5)), RNG.standard_normal((2, 2, 5))
    expected = by_x @ mx + np.einsum("oij,ijk->ok", by_y, my)
    np.testing.assert_allclose(rf.jac_matrix([mx, my]).numpy(), expected, rtol=1e-12)
    with pytest.raises(ArgumentValueError, match=r"m_jac\[0\] must have the control's shape \(2,\)"):
        rf.jac_matrix([my, mx])
    with pytest.raises(ArgumentValueError, match="one matrix for each of the 2 controls"):
        rf.jac_matrix([mx])


@pytest.mark.parametrize("engine", ENGINES)
def test_holomorphic_functions_have_a_complex_matrix_and_others_are_refused(engine):
    pytest.importorskip(engine)
    z = array(X + 1j * X[::-1])
    square = compute_jacobian_matrix(overload(lambda z: z * z, engine)(z), Control(z))
    np.testing.assert_allclose(square.numpy(), np.diag(2 * z.numpy()))
    conj = get_engine(engine).function("conj")
    with pytest.raises(NotDifferentiableError, match="holomorphic"):
        compute_jacobian_matrix(overload(lambda z: conj(z) * z, engine)(z), Control(z))


def test_a_real_control_of_a_complex_function():
    x = array(X)
    found = compute_jacobian_matrix(np.exp(1j * x), Control(x))
    np.testing.assert_allclose(found.numpy(), np.diag(1j * np.exp(1j * X)))


def test_a_matrix_that_is_too_large_is_refused_before_it_is_tried(monkeypatch):
    x = array(np.ones(300_000))
    rf = ReducedFunction([x * x, x.sum()], Control(x))
    with monkeypatch.context() as patch:
        patch.setattr("pyadjoint_utils.jacobians.jacobian.tangents", None)
        patch.setattr("pyadjoint_utils.jacobians.jacobian.adjoints", None)
        with pytest.raises(ArgumentValueError, match=r"720\.0 GB .*\(300000, 300000\).*sparsity=.*linear_operator"):
            rf.jac_matrix()
    small = ReducedFunction(x.sum(), Control(x))
    assert small.jac_matrix().shape == (300_000,)
    monkeypatch.setattr(memory, "physical", lambda: 10**6)
    with pytest.raises(ArgumentValueError, match=r"Jacobian takes 2\.4e-03 GB"):
        small.jac_matrix()
    monkeypatch.setattr(memory, "physical", lambda: None)
    assert small.jac_matrix().shape == (300_000,)


def test_values_without_entries_are_refused():
    class Stranger(AdjFloat.__mro__[1]):
        pass

    x = array(X)
    jac = ReducedFunction(x * x, Control(x))
    jac._outputs = [Stranger()]
    with pytest.raises(ArgumentTypeError, match="got Stranger"):
        jac.jac_matrix()


def test_the_engine_batches():
    jax = pytest.importorskip("jax")
    calls = []
    x = array(jax.numpy.arange(50.0))
    y = overload(lambda x: (calls.append(1), x * x)[1], "jax")(x)
    rf = ReducedFunction(y, Control(x))
    rf.jac_matrix()
    traced = len(calls)
    np.testing.assert_allclose(rf.jac_matrix().numpy(), np.diag(2.0 * np.arange(50.0)))
    assert len(calls) == traced <= 4


def test_an_input_is_cut_off_from_what_once_computed_it():
    x = array(X)
    y, z = overload(lambda x: (x * x, x * x * x), "autograd")(x)
    rf = ReducedFunction(y * z, Control(x), inputs=y)
    rf(X, inputs=np.ones(2))
    expected = np.diag(3 * X**2)
    np.testing.assert_allclose(np.stack([rf.jac_action(e).numpy() for e in np.eye(2)], axis=1), expected)
    np.testing.assert_allclose(np.stack([rf.adj_jac_action(e).numpy() for e in np.eye(2)]), expected)
    np.testing.assert_allclose(rf.jac_matrix().numpy(), expected)
    single = ReducedFunction((y * z).sum(), Control(x), inputs=y)
    single(X, inputs=np.ones(2))
    np.testing.assert_allclose(single.jac_matrix().numpy(), 3 * X**2)


@pytest.mark.parametrize(("kind", "rows"), [("jvp", 2), ("vjp", 5)])
def test_the_sweep_that_has_rules_gives_the_matrix_though_it_takes_more_directions(kind, rows):
    weights = np.random.default_rng(2).standard_normal((rows, 3))
    rules = {
        "jvp": lambda primals, tangents: weights @ (np.cos(primals[0]) * tangents[0]),
        "vjp": lambda primals, seeds: np.cos(primals[0]) * (weights.T @ seeds),
    }
    x = array([0.3, -0.2, 1.1])
    f = overload_numpy(lambda x: weights @ np.sin(x), **{kind: rules[kind]})
    rf = ReducedFunction(f(x), Control(x))
    np.testing.assert_allclose(rf.jac_matrix().numpy(), weights * np.cos(x.numpy()))
    bare = ReducedFunction(overload_numpy(lambda x: weights @ np.sin(x))(x), Control(x))
    with pytest.raises(
        NotDifferentiableError, match=f"need {'vjp' if kind == 'jvp' else 'jvp'}="
    ):  # of the first choice
        bare.jac_matrix()
