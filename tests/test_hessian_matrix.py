"""Hessian matrices against closed forms and Hessian actions, through every engine, several, and Blocks of others."""

import autograd.numpy as anp
import numpy as np
import pytest
from pyadjoint import Block, get_working_tape
from scipy.sparse.linalg import LinearOperator, cg, eigsh

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    ArgumentValueError,
    Control,
    NotDifferentiableError,
    ReducedFunction,
    ReducedFunctional,
    array,
    get_engine,
    memory,
    overload,
    overload_numpy,
    to_adjfloat,
)

ENGINES = ["jax", "torch", "tensorflow", "autograd"]
RNG = np.random.default_rng(5)
X, W, ADJ = RNG.standard_normal(3), RNG.standard_normal((2, 3)), RNG.standard_normal(2)


def functions(engine):
    pytest.importorskip(engine)
    return get_engine(engine).function


def curved(engine):
    """Y = sin(W x) * sum(x), of shape (2,)."""
    of = functions(engine)
    return overload(lambda w, x: of("sin")(of("matmul")(w, x)) * of("sum")(x), engine)


def closed_form(w, x, adj):
    """Second derivatives of <adj, y> by (x, x), (x, w), (w, x) and (w, w)."""
    u, total, one = w @ x, x.sum(), np.ones(3)
    s, c = adj * np.sin(u), adj * np.cos(u)
    xx = -np.einsum("i,ij,ik->jk", s * total, w, w)
    xx += np.einsum("i,ij,k->jk", c, w, one) + np.einsum("i,ij,k->kj", c, w, one)
    wx = np.einsum("i,j,ik->ijk", -s * total, x, w) + np.einsum("i,jk->ijk", c * total, np.eye(3))
    wx += np.einsum("i,j,k->ijk", c, x, one)
    ww = np.einsum("i,il,j,k->ijlk", -s * total, np.eye(2), x, x)
    return xx, np.moveaxis(wx, -1, 0), wx, ww


def actions(rf, controls, adj):
    """The same, one direction at a time."""
    blocks = [[None] * len(controls) for _ in controls]
    for k, control in enumerate(controls):
        columns = []
        for e in np.eye(np.size(control)):
            m_dot = [np.zeros(np.shape(c)) for c in controls]
            m_dot[k] = e.reshape(np.shape(control))
            columns.append([np.asarray(v.numpy() if hasattr(v, "numpy") else v) for v in rf.hess_action(m_dot, adj)])
        for j, parts in enumerate(zip(*columns, strict=True)):
            blocks[j][k] = np.stack(parts, -1).reshape((*parts[0].shape, *np.shape(control)))
    return blocks


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sweep", [1, 2**28], ids=["one at a time", "at once"])
def test_blocks_equal_closed_forms_at_another_point(engine, sweep, monkeypatch):
    monkeypatch.setattr(memory, "SWEEP", sweep)
    x, w = array(X), array(W)
    rf = ReducedFunction(curved(engine)(w, x), [Control(x), Control(w)])
    rf([X + 0.3, W - 0.2])
    (xx, xw), (wx, ww) = rf.hess_matrix(ADJ)
    for found, expected in zip((xx, xw, wx, ww), closed_form(W - 0.2, X + 0.3, ADJ), strict=True):
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_chain_of_curved_blocks_in_several_engines_with_a_branch(engine):
    of = functions(engine)
    x, a = array(X), AdjFloat(0.6)
    y = overload(lambda x: anp.exp(0.3 * x) * x[0], "autograd")(x)
    z = overload(lambda y: of("sin")(y) * of("sum")(y * y), engine)(y * a)
    s = to_adjfloat((z * y).sum()) ** 2 * a
    outputs = [z, s * y]
    rf = ReducedFunction(outputs, [Control(x), Control(a)])
    point = [X - 0.4, 1.1]
    rf(point)
    adj = [RNG.standard_normal(3), RNG.standard_normal(3)]
    for seeds in (adj, [None, adj[1]]):
        for row, wanted in zip(rf.hess_matrix(seeds), actions(rf, point, seeds), strict=True):
            for found, expected in zip(row, wanted, strict=True):
                np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-12)


class ForeignCube(Block):
    """y = x^3 of another package, curved."""

    def __init__(self, x):
        super().__init__()
        self.add_dependency(x)

    def recompute_component(self, inputs, block_variable, idx, prepared):
        return inputs[0].numpy() ** 3

    def evaluate_tlm_component(self, inputs, tlm_inputs, block_variable, idx, prepared=None):
        return 3 * inputs[0].numpy() ** 2 * tlm_inputs[0]

    def evaluate_adj_component(self, inputs, adj_inputs, block_variable, idx, prepared=None):
        return 3 * inputs[0].numpy() ** 2 * adj_inputs[0]

    def evaluate_hessian_component(
        self, inputs, hessian_inputs, adj_inputs, block_variable, idx, relevant_dependencies, prepared=None
    ):
        x, dx = inputs[0].numpy(), block_variable.tlm_value
        return 3 * x**2 * hessian_inputs[0] + (0.0 if dx is None else 6 * x * adj_inputs[0] * dx)


def foreign_cube(x):
    y = array(x.numpy() ** 3)
    block = ForeignCube(x)
    get_working_tape().add_block(block)
    block.add_output(y.create_block_variable())
    return y


def test_blocks_of_other_packages_take_one_direction_at_a_time():
    x, w = array(X), array(np.ones(3))
    y = foreign_cube(np.sin(x)) * w
    rf = ReducedFunctional((y * y).sum() + (w * w).sum(), [Control(x), Control(w)])
    point = [X + 0.2, X * 2.0]
    rf(point)
    v, u = point
    s, c = np.sin(v), np.cos(v)
    (xx, xw), (wx, ww) = rf.hess_matrix()
    np.testing.assert_allclose(xx.numpy(), np.diag(u * u * (30 * s**4 * c**2 - 6 * s**6)), rtol=1e-12)
    np.testing.assert_allclose(xw.numpy(), np.diag(12 * u * s**5 * c), rtol=1e-12)
    np.testing.assert_allclose(wx.numpy(), xw.numpy().T)
    np.testing.assert_allclose(ww.numpy(), np.diag(2 * s**6 + 2), rtol=1e-12)
    np.testing.assert_allclose(rf.jac_matrix()[0].numpy(), 6 * u * u * s**5 * c, rtol=1e-12)


def test_a_variable_that_is_computed_as_well_is_cut_off():
    x = array(X)
    y = x * x
    rf = ReducedFunction((y * y * x).sum(), [Control(x), Control(y)])
    (xx, xy), (_, yy) = rf.hess_matrix()
    np.testing.assert_allclose(xx.numpy(), 0.0)
    np.testing.assert_allclose(xy.numpy(), np.diag(2 * X**2))
    np.testing.assert_allclose(yy.numpy(), np.diag(2 * X))


def test_a_functional_has_its_scale_in_every_matrix():
    x = array(X)
    J = ReducedFunctional((x**3).sum(), Control(x), scale=-2.0)
    np.testing.assert_allclose(J.hess_matrix().numpy(), np.diag(-12 * X))
    np.testing.assert_allclose(J.hess_matrix(0.5).numpy(), np.diag(-6 * X))
    np.testing.assert_allclose(J.jac_matrix().numpy(), -6 * X**2)
    np.testing.assert_allclose(J.jac_matrix(np.eye(3)[:, :2]).numpy(), -6 * X[:2] ** 2)
    np.testing.assert_allclose(J.linear_operator("hessian") @ np.eye(3), np.diag(-12 * X))
    np.testing.assert_allclose(J.linear_operator() @ np.eye(3), [-6 * X**2])


def test_nothing_that_depends_twice_is_zero():
    x, y, unused = array(X), array(X[:2]), array(W)
    rf = ReducedFunction([2.0 * x, y * y], [Control(x), Control(y), Control(unused)])
    blocks = rf.hess_matrix([np.ones(3), np.ones(2)])
    assert [[b.shape for b in row] for row in blocks][2] == [(2, 3, 3), (2, 3, 2), (2, 3, 2, 3)]
    assert [[float(np.abs(b.numpy()).sum()) for b in row] for row in blocks] == [[0, 0, 0], [0, 4, 0], [0, 0, 0]]


def test_points_have_blocks_and_parameters_are_dense():
    n = 5
    field, p = RNG.standard_normal((n, 2)), np.array([0.7, -0.4])
    adj = RNG.standard_normal(n)
    f = overload(
        lambda g, p: anp.sin(g[:, 0]) * g[:, 1] ** 2 * p[0] ** 2 + g[:, 0] * p[1],
        "autograd",
        pointwise=(True, False),
    )
    g, q = array(field + 1), array(p)
    rf = ReducedFunction(f(g, q), [Control(g), Control(q)])
    rf([field, p])
    (gg, gp), (pg, pp) = rf.hess_matrix(adj)
    a, b = field.T
    expected = np.empty((n, 2, 2))
    expected[:, 0, 0] = -np.sin(a) * b**2
    expected[:, 0, 1] = expected[:, 1, 0] = 2 * np.cos(a) * b
    expected[:, 1, 1] = 2 * np.sin(a)
    np.testing.assert_allclose(gg.numpy(), adj[:, None, None] * expected * p[0] ** 2, rtol=1e-12)
    mixed = np.zeros((n, 2, 2))
    mixed[:, 0, 0], mixed[:, 1, 0] = np.cos(a) * b**2 * 2 * p[0], np.sin(a) * 2 * b * 2 * p[0]
    mixed[:, 0, 1] = 1.0
    np.testing.assert_allclose(gp.numpy(), adj[:, None, None] * mixed, rtol=1e-12)
    np.testing.assert_allclose(pg.numpy(), np.moveaxis(gp.numpy(), -1, 0))
    np.testing.assert_allclose(pp.numpy(), np.diag([2 * np.sum(adj * np.sin(a) * b**2), 0.0]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("total", "blocks"),
    [
        (lambda y: y.sum(), True),
        (lambda y: (np.array([[0.5], [2.0]]) * y).mean(), True),
        (lambda y: to_adjfloat((y[::-1].reshape(6) @ np.arange(6.0)).sum() - y[0].sum()), True),
        (lambda y: y.sum() ** 2, False),
        (lambda y: (y * np.flip(y, 0)).sum(), False),
        (lambda y: (y.T @ y)[0, 1], False),
        (lambda y: (np.exp(y.sum()) * y).sum(), False),
        (lambda y: np.exp(y).cumsum(0).sum(), True),
    ],
    ids=[
        "sum",
        "weighted mean",
        "pieces",
        "square of the sum",
        "product with others",
        "y.T y",
        "scaled by all",
        "sums of exp",
    ],
)
def test_sums_of_fields_of_points_have_blocks(total, blocks):
    f = overload(lambda x: anp.sin(x) * anp.fliplr(x), "autograd", pointwise=True)
    x = array(W)
    rf = ReducedFunction(total(f(x)), [Control(x)])
    rf([W + 0.1])
    ((found,),) = rf.hess_matrix(1.0)
    ((expected,),) = actions(rf, [W], 1.0)
    if blocks:
        assert np.all(expected[0, :, 1] == 0)
        expected = np.stack([expected[k, :, k] for k in range(2)])
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-11, atol=1e-13)


def test_sums_over_fields_of_different_length():
    x, y = array(W), array(X)
    f, g = (overload(h, "autograd", pointwise=True) for h in (lambda x: x**3, lambda y: y**4))
    J = ReducedFunctional(f(x).sum() - g(y).sum(), [Control(x), Control(y)])
    (xx, xy), (yx, yy) = J.hess_matrix()
    assert (xx.shape, xy.shape, yx.shape, yy.shape) == ((2, 3, 3), (2, 3, 3), (3, 2, 3), (3,))
    np.testing.assert_allclose(yy.numpy(), -12 * X**2)
    assert not xy.numpy().any()


def test_directions_are_those_of_one_point_and_of_the_parameters():
    counts = []

    @overload_numpy(
        pointwise=(True, False),
        jvp=lambda x, d: d[0] * x[1] + x[0] * d[1],
        vjp=lambda x, yb: (yb * x[1], np.sum(yb * x[0])),
        hvp=lambda x, d, yb, dyb: (counts.append(1), (yb * d[1] + dyb * x[1], np.sum(yb * d[0] + dyb * x[0])))[1],
    )
    def times(x, s):
        return x * s

    x, s = array(RNG.standard_normal((200, 3))), array(2.0)
    rf = ReducedFunction(times(x, s), [Control(x), Control(s)])
    (xx, xs), _ = rf.hess_matrix(np.ones((200, 3)))
    assert xx.shape == (200, 3, 3)
    np.testing.assert_allclose(xs.numpy(), 1.0)
    assert len(counts) == 3 + 1 + 1  # the entries of a point, the random direction, the parameter


def test_two_fields_of_points():
    x, y = array(W), array(W[::-1])
    f = overload(lambda x, y: anp.sum(x * y * y, axis=1), "autograd", pointwise=True)
    rf = ReducedFunction(f(x, y), [Control(x), Control(y)])
    (xx, xy), (yx, yy) = rf.hess_matrix(ADJ)
    assert xx.shape == (2, 3, 3)
    assert np.all(xx.numpy() == 0)
    np.testing.assert_allclose(xy.numpy(), 2 * ADJ[:, None, None] * W[::-1, :, None] * np.eye(3))
    np.testing.assert_allclose(yx.numpy(), xy.numpy())
    np.testing.assert_allclose(yy.numpy(), 2 * ADJ[:, None, None] * W[:, :, None] * np.eye(3))


def test_a_false_claim_of_points_is_refused():
    x = array(W)
    f = overload(lambda x: x * x.sum(axis=0), "autograd", pointwise=True, name="centred")
    with pytest.raises(ArgumentValueError, match=r"centred: args\[0\] is declared pointwise"):
        ReducedFunction(f(x), Control(x)).hess_matrix(W)


def test_a_complex_output_of_real_controls():
    x = array(X)
    adj = X + 1j * X[::-1]
    found = ReducedFunction(np.exp(1j * x), Control(x)).hess_matrix(adj).numpy()
    np.testing.assert_allclose(found, np.diag(np.real(np.conj(adj) * -np.exp(1j * X))), rtol=1e-12)


def test_what_has_no_matrix_is_refused(monkeypatch):
    z, x = array(X + 1j), array(X)
    with pytest.raises(
        NotDifferentiableError, match=r'real numbers alone\. Use hess_action, or linear_operator\("hessian"\)'
    ):
        ReducedFunction(abs(z).sum(), Control(z)).hess_matrix()
    with pytest.raises(NotDifferentiableError, match="Only a real scalar"):
        ReducedFunction(x * x, Control(x)).hess_matrix()
    with pytest.raises(ArgumentValueError, match="seeds"):
        ReducedFunction(x * x, Control(x)).hess_matrix(np.ones(2))
    rf = ReducedFunction((x * x).sum(), Control(x))
    monkeypatch.setattr(memory, "physical", lambda: 100)
    with pytest.raises(ArgumentValueError, match=r'Hessian takes .*linear_operator\("hessian"\)'):
        rf.hess_matrix()


@pytest.mark.parametrize("formula", ["slogdet", "cholesky"])
def test_formulas_that_torch_has_wrong_in_a_batch_are_right(formula):
    """torch.func's derivative of the determinant's adjoint loses a term."""
    torch = pytest.importorskip("torch")
    matrix = np.diag([2.0, 1.5, 3.0]) + 0.1 * W.T @ W
    of = {
        "slogdet": lambda m: torch.linalg.slogdet(m)[1],
        "cholesky": lambda m: torch.cholesky_inverse(torch.linalg.cholesky((m + m.T) / 2)).trace(),
    }[formula]
    m = array(matrix)
    found = ReducedFunction(overload(of, "torch")(m), Control(m)).hess_matrix().numpy()
    inverse = np.linalg.inv(matrix)
    if formula == "slogdet":
        expected = -np.einsum("jk,li->ijkl", inverse, inverse)
    else:
        square = inverse @ inverse
        expected = sum(
            np.einsum(f"{a},{b}->ijkl", square, inverse) / 4
            for a, b in [
                ("jk", "li"),
                ("jl", "ki"),
                ("ik", "lj"),
                ("il", "kj"),
                ("li", "jk"),
                ("lj", "ik"),
                ("ki", "jl"),
                ("kj", "il"),
            ]
        )
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)


# The operator ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_the_operator_is_the_matrix_where_the_function_stands(engine):
    x, w = array(X), array(W)
    rf = ReducedFunction(curved(engine)(w, x), [Control(x), Control(w)])
    operator = rf.linear_operator("hessian", ADJ)
    assert isinstance(operator, LinearOperator)
    assert operator.dtype == np.float64
    other = ReducedFunction(rf.outputs[0], rf.controls)
    for point in ([X, W], [X + 1, W * 0.5]):
        rf(point)
        other([X - 2, W])
        xx, xw, wx, ww = closed_form(point[1], point[0], ADJ)
        full = np.block([[xx, xw.reshape(3, 6)], [wx.reshape(6, 3), ww.reshape(6, 6)]])
        np.testing.assert_allclose(operator @ np.eye(9), full, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(operator.rmatmat(np.eye(9)), full, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(operator.matvec(np.arange(9.0)), full @ np.arange(9.0), rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(operator.rmatvec(np.arange(9.0)), full @ np.arange(9.0), rtol=1e-11, atol=1e-13)
    found = eigsh(operator, k=3, which="LA", return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(found), np.linalg.eigvalsh(full)[-3:], rtol=1e-9)


def test_newtons_step_by_conjugate_gradients():
    x, a = array(X), AdjFloat(0.5)
    J = ReducedFunctional((np.exp(x) + x * x * a).sum() + a**4, [Control(x), Control(a)])
    J([X, 1.5])
    gradient = np.append(np.exp(X) + 3.0 * X, X @ X + 4 * 1.5**3)
    full = np.diag(np.append(np.exp(X) + 3.0, 12 * 1.5**2))
    full[:3, 3] = full[3, :3] = 2 * X
    step, failed = cg(J.linear_operator("hessian"), gradient, rtol=1e-12)
    assert not failed
    np.testing.assert_allclose(step, np.linalg.solve(full, gradient), rtol=1e-9)


def test_a_hessian_of_complex_controls_acts_on_their_parts():
    z, x = array(X + 1j * W[0]), array(X)
    functional = (abs(z) ** 4).sum() + (x * np.real(z * z)).sum()
    rf = ReducedFunction(functional, [Control(z), Control(x)])
    operator = rf.linear_operator("hessian")
    assert operator.shape == (9, 9)
    a, b = X, W[0]
    full = np.zeros((9, 9))
    for k in range(3):
        r, i, p = 2 * k, 2 * k + 1, 6 + k
        full[r, r] = 12 * a[k] ** 2 + 4 * b[k] ** 2 + 2 * a[k]
        full[i, i] = 12 * b[k] ** 2 + 4 * a[k] ** 2 - 2 * a[k]
        full[r, i] = full[i, r] = 8 * a[k] * b[k]
        full[r, p] = full[p, r] = 2 * a[k]
        full[i, p] = full[p, i] = -2 * b[k]
    np.testing.assert_allclose(operator @ np.eye(9), full, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(np.stack([operator.matvec(e) for e in np.eye(9)]), full, rtol=1e-11, atol=1e-13)
    values = eigsh(operator, k=2, return_eigenvectors=False)
    wanted = np.linalg.eigvalsh(full)
    np.testing.assert_allclose(np.sort(np.abs(values)), np.sort(np.abs(wanted))[-2:], rtol=1e-9)


def test_operators_of_other_names_are_refused():
    x = array(X)
    rf = ReducedFunction((x * x).sum(), Control(x))
    with pytest.raises(ArgumentValueError, match='"jacobian" or "hessian"; got \'gradient\''):
        rf.linear_operator("gradient")
    with pytest.raises(ArgumentValueError, match="takes no cotangent"):
        rf.linear_operator(adj=1.0)
    with pytest.raises(NotDifferentiableError, match="Only a real scalar"):
        ReducedFunction(x * x, Control(x)).linear_operator("hessian")
    with pytest.raises(ArgumentTypeError, match="must be real"):
        rf.linear_operator("hessian") @ np.full((3, 2), 1j)
