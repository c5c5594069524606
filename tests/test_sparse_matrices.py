"""Sparse Jacobians and Hessians: the same numbers as the dense ones, from few products, and no entry missed."""

import logging

import numpy as np
import pytest
from scipy import sparse

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    ArgumentValueError,
    Control,
    NotDifferentiableError,
    ReducedFunction,
    ReducedFunctional,
    array,
    compute_jacobian_matrix,
    get_engine,
    memory,
    overload,
    overload_numpy,
    to_adjfloat,
    to_torch,
)
from pyadjoint_utils.jacobians.hessian_matrix import Hessian
from pyadjoint_utils.jacobians.jacobian import Jacobian

ENGINES = ["jax", "torch", "tensorflow", "autograd"]
all_engines = pytest.mark.parametrize("engine", ENGINES)
RNG = np.random.default_rng(9)
N = 40
X = RNG.standard_normal(N)
LOG = "pyadjoint_utils.jacobians.sparse_matrices"


def functions(engine):
    pytest.importorskip(engine)
    return get_engine(engine).function


def stencil(engine):
    """y_i = sin(x_{i-1}) x_i + x_{i+1}^2 on the inner points, x_i on the two ends."""
    of = functions(engine)
    sin, join = of("sin"), of("concatenate")
    return overload(lambda x: join([x[:1], sin(x[:-2]) * x[1:-1] + x[2:] * x[2:], x[-1:]]), engine)


def stencil_matrix(x):
    n = len(x)
    matrix = np.zeros((n, n))
    k = np.arange(1, n - 1)
    matrix[k, k - 1], matrix[k, k], matrix[k, k + 1] = np.cos(x[k - 1]) * x[k], np.sin(x[k - 1]), 2 * x[k + 1]
    matrix[0, 0] = matrix[-1, -1] = 1.0
    return matrix


@pytest.fixture
def products(monkeypatch):
    """How many products are taken: with the Jacobian, its transpose, and the Hessian."""
    counted = {"forward": 0, "reverse": 0, "hessian": 0}

    def counting(kind, original):
        def call(self, rows):
            counted[kind] += len(rows[0])
            return original(self, rows)

        return call

    for cls, method, kind in (
        (Jacobian, "push", "forward"),
        (Jacobian, "pull", "reverse"),
        (Hessian, "times", "hessian"),
    ):
        monkeypatch.setattr(cls, method, counting(kind, getattr(cls, method)))
    return counted


def band(n, *offsets):
    return sparse.csr_array(np.isin(np.arange(n)[None] - np.arange(n)[:, None], offsets))


# The same numbers --------------------------------------------------------------------------------------------------------


@all_engines
@pytest.mark.parametrize("sparsity", ["detect", band(N, -1, 0, 1)], ids=["detected", "given"])
def test_a_stencil_at_several_points(engine, sparsity):
    x = array(X)
    rf = ReducedFunction(stencil(engine)(x), Control(x))
    for point in (X, X + 0.5, -X):
        rf(point)
        found = rf.jac_matrix(sparsity=sparsity)
        assert isinstance(found, sparse.csr_array)
        assert found.nnz <= 3 * N
        np.testing.assert_allclose(found.toarray(), stencil_matrix(point), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(found @ X, rf.jac_action(X).numpy(), rtol=1e-12)
        np.testing.assert_allclose(found.T @ X, rf.adj_jac_action(X).numpy(), rtol=1e-12)


@all_engines
def test_second_derivatives_of_a_chain(engine):
    x = array(X)
    f = stencil(engine)
    y = f(f(x))
    rf = ReducedFunction(y, Control(x))
    adj = RNG.standard_normal(N)
    for point in (X, X - 0.3):
        rf(point)
        dense = rf.hess_matrix(adj).numpy()
        for sparsity in ("detect", band(N, *range(-4, 1))):
            found = rf.hess_matrix(adj, sparsity=sparsity)
            assert found.nnz <= 9 * N
            np.testing.assert_allclose(found.toarray(), dense, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("engine", ["jax", "autograd"])
def test_a_hundred_thousand_points_in_three_tangents(engine, products):
    n = 10**5
    if engine == "jax":
        jnp = pytest.importorskip("jax.numpy")
        f = overload(lambda x: jnp.pad(x, 1)[2:] - 2 * jnp.sin(x) + jnp.concatenate([x[:1], x[:-1]]), "jax")
    else:
        f = lambda x: np.concatenate([x[:1], x[:-2] - 2 * np.sin(x[1:-1]) + x[2:], x[-1:]])
    x = array(RNG.standard_normal(n))
    rf = ReducedFunction(f(x), Control(x))
    if engine == "autograd":
        rf.jac_matrix(sparsity="detect")  # here, other products tell where there are entries
        assert products["forward"] < 200
        products.update(forward=0, reverse=0)
        rf(x.numpy() + 0.1)
    found = rf.jac_matrix(sparsity="detect")
    assert products["forward"] == 3
    assert products["reverse"] <= 1
    assert found.nnz <= 3 * n
    v = RNG.standard_normal(n)
    np.testing.assert_allclose(found @ v, rf.jac_action(v).numpy(), rtol=1e-11, atol=1e-11)


def test_several_outputs_and_controls_share_products(products):
    x, y, s = array(X), array(X.reshape(4, -1) + 1.0), AdjFloat(0.5)
    f, g = stencil("autograd"), overload(lambda x, y: x * y, "autograd")
    outputs = [f(x), g(f(x), y.reshape(N)), (s * y).sum()]
    rf = ReducedFunction(outputs, [Control(x), Control(y), Control(s)])
    point = [X + 0.2, X.reshape(4, -1) - 0.1, AdjFloat(0.7)]
    rf(point)
    dense = [[b.numpy() for b in row] for row in rf.jac_matrix()]
    shapes = [[(np.size(o), np.size(c)) for c in point] for o in (X, X, 0.0)]
    blocks = [[sparse.csr_array(np.ones(shape)) for shape in row] for row in shapes]
    blocks[0] = [band(N, -1, 0, 1), sparse.csr_array((N, N)), sparse.csr_array((N, 1))]
    blocks[1] = [band(N, -1, 0, 1), band(N, 0), sparse.csr_array((N, 1))]
    products.update(forward=0, reverse=0)
    for sparsity in (blocks, "detect"):
        found = rf.jac_matrix(sparsity=sparsity)
        for row, expected, row_shapes in zip(found, dense, shapes, strict=True):
            for block, wanted, shape in zip(row, expected, row_shapes, strict=True):
                assert block.shape == shape
                np.testing.assert_allclose(block.toarray(), wanted.reshape(shape), rtol=1e-12, atol=1e-14)
        if sparsity is blocks:
            assert products["forward"] + products["reverse"] <= 7  # a dense row apart, and one to check


def test_float32_and_conversions_between_engines():
    pytest.importorskip("torch")
    x = array(X.astype(np.float32))
    y = to_torch(stencil("jax")(x))
    rf = ReducedFunction(stencil("jax")(y * 2.0), Control(x))
    found = rf.jac_matrix(sparsity="detect")
    assert found.dtype == np.float32
    assert found.nnz < 6 * N
    np.testing.assert_allclose(found.toarray(), rf.jac_matrix().numpy(), rtol=1e-5, atol=1e-5)


@all_engines
def test_complex_numbers(engine, products):
    z = array(X + 1j * X[::-1])
    of = functions(engine)
    conj = of("conj")
    f = overload(lambda z: z[1:] * z[:-1], engine)
    found = compute_jacobian_matrix(f(z), Control(z), sparsity="detect")
    assert found.dtype == np.complex128
    assert products["reverse"] == 0
    np.testing.assert_allclose(found.toarray(), compute_jacobian_matrix(f(z), Control(z)).numpy(), rtol=1e-12)
    with pytest.raises(NotDifferentiableError, match="holomorphic"):
        compute_jacobian_matrix(overload(lambda z: conj(z), engine)(z), Control(z), sparsity="detect")
    with pytest.raises(NotDifferentiableError, match="no complex matrix"):
        ReducedFunctional((abs(z) ** 2).sum(), Control(z)).hess_matrix(sparsity="detect")


def test_a_real_control_of_complex_numbers():
    x = array(X)
    found = compute_jacobian_matrix(np.exp(1j * x), Control(x), sparsity="detect")
    np.testing.assert_allclose(found.toarray(), np.diag(1j * np.exp(1j * X)))


def test_points_of_an_engine_that_cannot_be_traced(products):
    """A mesh: gathered by JAX, a law of each cell in PyTorch, added up by JAX; no product is taken to find the pattern."""
    jnp, torch = pytest.importorskip("jax.numpy"), pytest.importorskip("torch")
    cells = np.stack([np.arange(N - 1), np.arange(1, N)], axis=1)
    gather = overload(lambda u, cells: u[cells], "jax")
    law = overload(lambda u: torch.sin(u) * torch.flip(u, (1,)), "torch", pointwise=True)
    assemble = overload(lambda f, cells: jnp.zeros(N).at[cells].add(f), "jax")
    u = array(X)
    F = assemble(law(gather(u, cells)), cells)
    rf, energy = ReducedFunction(F, Control(u)), ReducedFunctional((F * F).sum(), Control(u))
    found = rf.jac_matrix(sparsity="detect")
    assert (products["forward"], products["reverse"]) == (3, 1)
    np.testing.assert_allclose(found.toarray(), rf.jac_matrix().numpy(), rtol=1e-12, atol=1e-14)
    products.update(forward=0, reverse=0)
    rf(X + 1.0)
    np.testing.assert_allclose(rf.jac_matrix(sparsity="detect").toarray(), rf.jac_matrix().numpy(), atol=1e-12)
    assert products["reverse"] == 0  # what follows from the programs is checked once
    second = energy.hess_matrix(sparsity="detect")
    assert second.nnz <= 5 * N
    np.testing.assert_allclose(second.toarray(), energy.hess_matrix().numpy(), rtol=1e-11, atol=1e-12)


def test_functionals_are_scaled():
    x = array(X)
    J = ReducedFunctional((stencil("autograd")(x) ** 2).sum(), Control(x), scale=3.0)
    np.testing.assert_allclose(
        J.hess_matrix(sparsity="detect").toarray(), J.hess_matrix().numpy(), rtol=1e-11, atol=1e-12
    )
    np.testing.assert_allclose(J.jac_matrix(sparsity="detect").toarray()[0], J.derivative().numpy(), rtol=1e-12)


def test_adjfloats_and_blocks_of_others():
    a, b = AdjFloat(2.0), AdjFloat(3.0)
    found = ReducedFunction(a * b, [Control(a), Control(b)]).jac_matrix(sparsity="detect")
    assert [block.toarray().item() for block in found] == [3.0, 2.0]
    x = array(X)
    s = to_adjfloat(x[0]) ** 2
    rf = ReducedFunction(x * s, Control(x))
    np.testing.assert_allclose(rf.jac_matrix(sparsity="detect").toarray(), rf.jac_matrix().numpy())
    hessian = ReducedFunctional((x * s).sum(), Control(x))
    np.testing.assert_allclose(hessian.hess_matrix(sparsity="detect").toarray(), hessian.hess_matrix().numpy())


# How few products --------------------------------------------------------------------------------------------------------


def test_rows_where_they_are_fewer(products):
    x = array(X)
    y = stencil("jax")(x)[:4]
    rf = ReducedFunction(overload(lambda y, x: y * x.sum(), "jax")(y, x), Control(x))
    found = rf.jac_matrix(sparsity="detect")
    assert (products["forward"], products["reverse"]) == (0, 4)  # full rows: one by one, and nothing to check
    np.testing.assert_allclose(found.toarray(), rf.jac_matrix().numpy(), rtol=1e-12)


def test_columns_and_rows(products):
    """An arrow: a dense row and a dense column beside a diagonal."""
    jnp = pytest.importorskip("jax.numpy")
    x = array(X)
    rf = ReducedFunction(overload(lambda x: jnp.append(x[:-1] ** 2 * x[-1], jnp.sum(x**2)), "jax")(x), Control(x))
    found = rf.jac_matrix(sparsity="detect")
    assert (products["forward"], products["reverse"]) == (2, 2)  # one of the four is the check
    np.testing.assert_allclose(found.toarray(), rf.jac_matrix().numpy(), rtol=1e-12)


def test_two_actions_for_an_arrow_of_second_derivatives(products):
    jnp = pytest.importorskip("jax.numpy")
    x = array(X)
    J = ReducedFunctional(overload(lambda x: jnp.sum(x[:-1] ** 3 * x[-1] ** 2), "jax")(x), Control(x))
    found = J.hess_matrix(sparsity="detect")
    assert products["hessian"] == 3  # one of them is the check
    np.testing.assert_allclose(found.toarray(), J.hess_matrix().numpy(), rtol=1e-12, atol=1e-14)


def test_dense_where_colours_save_nothing(products, caplog):
    x = array(X)
    rf = ReducedFunction(overload(lambda x: x * x.sum(), "jax")(x), Control(x))
    with caplog.at_level(logging.INFO, LOG):
        found = rf.jac_matrix(sparsity="detect")
    assert f"Jacobian {N} x {N}: colours save no products" in caplog.text
    assert (products["forward"], products["reverse"]) == (N, 0)
    np.testing.assert_allclose(found.toarray(), rf.jac_matrix().numpy())
    assert sparse.issparse(found)


def test_nothing_is_looked_for_twice(products, monkeypatch):
    jnp = pytest.importorskip("jax.numpy")
    traced = []
    x = array(X)
    f = overload(lambda x: (traced.append(1), jnp.roll(x, 1) * x)[1], "jax")
    y = f(f(x))
    rf = ReducedFunction(y, Control(x))
    rf.jac_matrix(sparsity="detect")
    count, taken = len(traced), products["forward"]
    rf(X + 1.0)
    rf.jac_matrix(sparsity="detect")
    assert len(traced) == count
    assert products["forward"] == 2 * taken


def test_products_in_parts_that_fit_in_memory(products, monkeypatch):
    x = array(X)
    rf = ReducedFunction(stencil("jax")(x), Control(x))
    monkeypatch.setattr(memory, "SWEEP", 1)
    np.testing.assert_allclose(rf.jac_matrix(sparsity="detect").toarray(), stencil_matrix(X), rtol=1e-12)
    full = ReducedFunction(overload(lambda x: x * x.sum(), "jax")(x), Control(x))
    np.testing.assert_allclose(full.jac_matrix(sparsity="detect").toarray(), full.jac_matrix().numpy())


@all_engines
def test_matrices_without_entries(engine):
    """Of a linear function, and of one whose derivative is zero: there is nothing to multiply."""
    of = functions(engine)
    x = array(X)
    linear = ReducedFunction(overload(lambda x: 2.0 * x, engine)(x), Control(x))
    assert linear.hess_matrix(X, sparsity="detect").nnz == 0
    rounded = ReducedFunction(overload(lambda x: of("floor")(x) + 0.0 * x, engine)(x), Control(x))
    found = rounded.jac_matrix(sparsity="detect")
    assert found.shape == (N, N)
    assert not found.toarray().any()


# Nothing is missed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["torch", "autograd"])
def test_entries_that_are_zero_at_the_first_point(engine):
    """A switch: at the second point there are other entries than those that the products showed at the first."""
    of = functions(engine)
    where, flip = of("where"), of("flip")
    f = overload(lambda x: where(x[0] > 0, x * x, flip(x, 0) * 3.0), engine)
    x = array(np.abs(X) + 0.1)
    rf = ReducedFunction(f(x), Control(x))
    for sign in (1.0, -1.0, 1.0):
        rf(sign * (np.abs(X) + 0.2))
        found = rf.jac_matrix(sparsity="detect")
        np.testing.assert_allclose(found.toarray(), rf.jac_matrix().numpy(), rtol=1e-12)


@pytest.mark.parametrize("sizes", [(1.0, 1e14), (1e-14, 1.0), (1e-30, 1e-9, 1e9)])
def test_rows_of_very_different_sizes(sizes):
    """Units may be chosen so: one row's terms are below another one's rounding. The small rows have a switch."""
    of = functions("torch")
    where, roll = of("where"), of("roll")
    total = get_engine("torch").enter(np.resize(sizes, N))
    largest = get_engine("torch").enter(np.resize(sizes, N) == max(sizes))
    f = overload(lambda x: total * where((x[0] > 0) | largest, x * x, roll(x, 1) ** 2), "torch")
    x = array(np.abs(X) + 0.1)
    rf = ReducedFunction(f(x), Control(x))
    for sign in (1.0, -1.0):
        rf(sign * (np.abs(X) + 0.2))
        np.testing.assert_allclose(rf.jac_matrix(sparsity="detect").toarray(), rf.jac_matrix().numpy(), rtol=1e-12)
    with pytest.raises(ArgumentValueError, match="misses entries"):
        rf.jac_matrix(sparsity=band(N, 0))
    rf.jac_matrix(sparsity=band(N, -1, 0) + sparse.csr_array(([True], ([0], [N - 1])), shape=(N, N)))


def test_small_rows_beside_large_ones_of_the_same_column():
    """The transposed product adds them."""
    of = functions("torch")
    where, roll, join = of("where"), of("roll"), of("concatenate")
    f = overload(lambda x: join([1e13 * x**2, where(x[0] > 0, x**2, roll(x, 1) ** 2)]), "torch")
    x = array(np.abs(X) + 0.1)
    rf = ReducedFunction(f(x), Control(x))
    for sign in (1.0, -1.0):
        rf(sign * (np.abs(X) + 0.2))
        np.testing.assert_allclose(rf.jac_matrix(sparsity="detect").toarray(), rf.jac_matrix().numpy(), rtol=1e-12)


def test_second_derivatives_of_very_different_sizes():
    of = functions("torch")
    where, roll = of("where"), of("roll")
    f = overload(
        lambda x: 1e14 * (x[: N // 2] ** 4).sum() + (where(x[0] > 0, x, roll(x, 1)) * x)[N // 2 + 1 :].sum(), "torch"
    )
    x = array(np.abs(X) + 0.1)
    rf = ReducedFunction(f(x), Control(x))
    for sign in (1.0, -1.0):
        rf(sign * (np.abs(X) + 0.2))
        np.testing.assert_allclose(rf.hess_matrix(sparsity="detect").toarray(), rf.hess_matrix().numpy(), rtol=1e-12)


def test_rows_of_rounding_alone_are_no_missing_entries():
    """The derivative of a sum of squares that is always 1, in numbers, beside rows of ordinary size."""
    of = functions("torch")
    sin, cos, join = of("sin"), of("cos"), of("concatenate")
    f = overload(lambda x: join([x**2, sin(x) ** 2 + cos(x) ** 2, 1e-9 * x[1:] * x[:-1]]), "torch")
    x = array(X)
    rf = ReducedFunction(f(x), Control(x))
    pattern = sparse.vstack([band(N, 0), band(N, 0), band(N, 0, 1)[:-1]])
    for point in (X, X + 0.5, 1e3 * X):
        rf(point)
        for sparsity in (pattern, "detect"):
            found = rf.jac_matrix(sparsity=sparsity)
            np.testing.assert_allclose(found.toarray(), rf.jac_matrix().numpy(), rtol=1e-12, atol=1e-15)


def test_a_declaration_that_is_wrong_is_not_relied_on(caplog):
    of = functions("torch")
    f = overload(lambda x: x * of("flip")(x, 0), "torch", pointwise=True)
    x = array(X)
    rf = ReducedFunction(f(x), Control(x))
    with caplog.at_level(logging.WARNING, LOG):
        found = rf.jac_matrix(sparsity="detect")
    assert "no function on the tape declared" in caplog.text
    np.testing.assert_allclose(found.toarray(), np.diag(X[::-1]) + np.diag(X)[:, ::-1], rtol=1e-12)


@pytest.mark.parametrize("sweep", ["Jacobian", "Hessian"])
def test_an_engine_that_forgets_dependencies_is_caught(sweep, monkeypatch):
    """The planted fault: a pattern of the diagonal alone."""
    pytest.importorskip("jax")
    cls = type(get_engine("jax"))
    right = cls.dependencies_of

    def diagonal(self, f, x, c, n):
        found = right(self, f, x, c, n)
        return found.multiply(sparse.eye_array(*found.shape, dtype=bool)).tocsr()

    monkeypatch.setattr(cls, "dependencies_of", diagonal)
    x = array(X)
    y = stencil("jax")(x)
    if sweep == "Jacobian":
        found = ReducedFunction(y, Control(x)).jac_matrix(sparsity="detect")
        np.testing.assert_allclose(found.toarray(), stencil_matrix(X), rtol=1e-12, atol=1e-14)
    else:
        J = ReducedFunctional(overload(lambda y: (y * y).sum(), "jax")(y), Control(x))
        dense = J.hess_matrix().numpy()
        np.testing.assert_allclose(J.hess_matrix(sparsity="detect").toarray(), dense, rtol=1e-11, atol=1e-12)


def test_rules_for_one_sweep_alone():
    f = overload_numpy(lambda x: x**3, jvp=lambda x, dx: 3 * x[0] ** 2 * dx[0])
    x = array(X)
    rf = ReducedFunction(f(x), Control(x))
    for sparsity in (band(N, 0), "detect"):
        np.testing.assert_allclose(rf.jac_matrix(sparsity=sparsity).toarray(), np.diag(3 * X**2))
    with pytest.raises(ArgumentValueError, match="misses entries"):
        rf.jac_matrix(sparsity=band(N, 1))


def test_fewer_rows_that_have_no_rule():
    f = overload_numpy(lambda x: x.reshape(-1, 4).sum(1) ** 2, jvp=lambda x, dx: 2 * sums(x[0]) * sums(dx[0]))
    sums = lambda x: x.reshape(-1, 4).sum(1)
    x = array(X)
    rf = ReducedFunction(f(x), Control(x))
    expected = np.kron(np.eye(N // 4), np.ones(4)) * 2 * sums(X)[:, None]
    np.testing.assert_allclose(rf.jac_matrix().numpy(), expected)
    for sparsity in (sparse.csr_array(expected), "detect"):
        np.testing.assert_allclose(rf.jac_matrix(sparsity=sparsity).toarray(), expected)


# Bad input ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tridiagonal():
    x = array(X)
    return ReducedFunction(stencil("autograd")(x), Control(x))


@pytest.mark.parametrize("offsets", [(0, 1), (-1, 0), (-1, 1), (-1, 0, 5)])
def test_a_pattern_that_misses_an_entry(tridiagonal, offsets):
    with pytest.raises(ArgumentValueError, match=r"misses entries of the Jacobian 40 x 40: \(\d+, \d+\)") as error:
        tridiagonal.jac_matrix(sparsity=band(N, *offsets))
    assert 'sparsity="detect"' in str(error.value)
    np.testing.assert_allclose(tridiagonal.jac_matrix(sparsity="detect").toarray(), stencil_matrix(X), atol=1e-14)


@pytest.mark.parametrize("missing", [(7, 8), (0, 0), (39, 39), (20, 20)])
def test_a_single_missing_entry_is_named(tridiagonal, missing):
    pattern = sparse.lil_array(band(N, -1, 0, 1))
    pattern[missing] = False
    with pytest.raises(ArgumentValueError, match=rf"\({missing[0]}, {missing[1]}\)"):
        tridiagonal.jac_matrix(sparsity=pattern)


def test_a_small_pattern_that_misses_an_entry():
    """So small that it is not compressed."""
    x = array(X[:3])
    rf = ReducedFunction(x * x.sum(), Control(x))
    with pytest.raises(ArgumentValueError, match=r"with 3 entries, misses entries of the Jacobian 3 x 3: \(0, 1\)"):
        rf.jac_matrix(sparsity=sparse.eye_array(3))
    J = ReducedFunctional(x.sum() ** 3, Control(x))
    with pytest.raises(ArgumentValueError, match="misses entries of the Hessian 3 x 3"):
        J.hess_matrix(sparsity=sparse.eye_array(3))


def test_a_hessian_pattern_that_misses_an_entry(tridiagonal):
    with pytest.raises(ArgumentValueError, match="misses entries of the Hessian 40 x 40"):
        tridiagonal.hess_matrix(np.ones(N), sparsity=band(N, 0))
    half = tridiagonal.hess_matrix(np.ones(N), sparsity=band(N, -1, 0))
    np.testing.assert_allclose(half.toarray(), tridiagonal.hess_matrix(np.ones(N)).numpy(), atol=1e-14)


def test_stored_zeros_are_entries(tridiagonal):
    pattern = band(N, -1, 0, 1).astype(float)
    pattern.data[:] = 0.0
    assert tridiagonal.jac_matrix(sparsity=pattern).nnz == pattern.nnz


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        (sparse.eye_array(5), ArgumentValueError, r"sparsity has the shape \(5, 5\), .* has the shape \(40, 40\)"),
        (np.eye(N), ArgumentTypeError, 'must be "detect" or a matrix of scipy.sparse'),
        ("auto", ArgumentTypeError, "got 'auto'"),
    ],
)
def test_what_is_no_pattern(tridiagonal, given, error, match):
    with pytest.raises(error, match=match):
        tridiagonal.jac_matrix(sparsity=given)
    with pytest.raises(error, match=match):
        tridiagonal.hess_matrix(np.ones(N), sparsity=given)


def test_patterns_of_lists_are_lists():
    x = array(X)
    rf = ReducedFunction([x * x, x.sum()], [Control(x)])
    one = band(N, 0)
    for given, match in (
        (one, "sparsity must be a list with a pattern for each of the 2 outputs"),
        ([[one]], "got 1 of them"),
        ([one, one], r"sparsity\[0\] must be a list with a pattern for each of the 1 controls"),
        ([[one], [one]], r"sparsity\[1\]\[0\] has the shape \(40, 40\), but the matrix has the shape \(1, 40\)"),
    ):
        with pytest.raises(ArgumentValueError, match=match):
            rf.jac_matrix(sparsity=given)


def test_a_matrix_is_multiplied_or_sparse(tridiagonal):
    with pytest.raises(ArgumentValueError, match="m_jac or sparsity"):
        tridiagonal.jac_matrix(np.eye(N), sparsity="detect")


def test_too_large_and_not_sparse(monkeypatch):
    n = 10**5
    x = array(np.ones(n))
    rf = ReducedFunction(overload(lambda x: x / x.sum(), "jax")(x), Control(x))
    with pytest.raises(ArgumentValueError, match=r"(?s)Jacobian takes 120.*\(100000, 100000\).*linear_operator"):
        rf.jac_matrix(sparsity="detect")
