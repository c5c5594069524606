"""Every entry of a matrix is read, and read right, from as few products as a colouring promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from pyadjoint_utils.jacobians import colouring
from pyadjoint_utils.jacobians.colouring import coloured, compressed, compressed_symmetric
from pyadjoint_utils.jacobians.multiplied import Multiplied

RNG = np.random.default_rng(3)


def multiplied(matrix, *, symmetric=False, reverse=True):
    return Multiplied(
        shape=matrix.shape,
        dtype=np.dtype(float),
        forward=lambda rows: rows @ matrix.T,
        reverse=(lambda rows: rows @ matrix) if reverse else None,
        symmetric=symmetric,
        at_once=2,
        eps=2.0**-52,
    )


def filled(pattern):
    return np.where(pattern, RNG.uniform(1.0, 2.0, pattern.shape), 0.0)


def banded(n, offsets=(-1, 0, 1)):
    return np.isin(np.arange(n)[None] - np.arange(n)[:, None], offsets)


def grid(k):
    line, one = banded(k).astype(int), np.eye(k, dtype=int)
    return np.kron(line, one) + np.kron(one, line) > 0


def arrow(n):
    pattern = np.eye(n, dtype=bool)
    pattern[0], pattern[:, -1] = True, True
    return pattern


patterns = st.integers(1, 9).flatmap(
    lambda m: st.integers(1, 9).flatmap(
        lambda n: st.lists(st.booleans(), min_size=m * n, max_size=m * n).map(lambda v: np.array(v).reshape(m, n))
    )
)


@given(patterns, st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_matrix_is_read_back(pattern, reverse):
    matrix = filled(pattern)
    known = multiplied(matrix, reverse=reverse)
    found = known.compression(sparse.csr_array(pattern))
    again = known.one_by_one() if found is None else known.entries(found)[0]
    np.testing.assert_allclose(again.toarray(), matrix)
    assert known.missed(again, forward=True) is None
    if found is not None:
        assert found.products <= 0.75 * (min(matrix.shape) if reverse else matrix.shape[1])


@given(patterns)
@settings(max_examples=200, deadline=None)
def test_any_symmetric_matrix_is_read_back(pattern):
    n = min(pattern.shape)
    matrix = filled(pattern[:n, :n] | pattern[:n, :n].T)
    matrix = matrix + matrix.T
    known = multiplied(matrix, symmetric=True, reverse=False)
    found = known.compression(sparse.csr_array(matrix != 0))
    again = known.one_by_one() if found is None else known.entries(found)[0]
    np.testing.assert_allclose(again.toarray(), matrix)
    assert known.missed(again, forward=True) is None


@pytest.mark.parametrize(
    ("pattern", "forward", "reverse"),
    [
        (banded(50), 3, 0),
        (banded(50, (0, 1, 2, 3)), 4, 0),
        (banded(50, (-20, 0)), 2, 0),
        (np.kron(np.eye(9, dtype=int), np.ones((2, 5), int)) > 0, 0, 2),  # blocks that are wide: rows are fewer
        (np.kron(np.eye(9, dtype=int), np.ones((5, 2), int)) > 0, 2, 0),
        (arrow(50), 2, 1),  # a dense row, a dense column
        (arrow(50).T, 2, 1),
        (np.vstack([banded(50), np.ones((2, 50), bool)]), 3, 2),
    ],
)
def test_how_few_products(pattern, forward, reverse):
    found = compressed(sparse.csr_array(pattern))
    assert (found.forward, found.reverse) == (forward, reverse)
    np.testing.assert_allclose(
        *[f(filled(pattern)) for f in (lambda a: multiplied(a).entries(found)[0].toarray() * 0 + 1,) * 2]
    )


@pytest.mark.parametrize(
    ("pattern", "most"),
    [(banded(50), 3), (arrow(50) | arrow(50).T, 3), (grid(10), 6), (np.eye(9, dtype=bool), 1)],
)
def test_how_few_products_of_a_symmetric_matrix(pattern, most):
    assert compressed_symmetric(sparse.csr_array(pattern | pattern.T)).products <= most


def test_without_the_transpose_only_columns_are_coloured():
    assert compressed(sparse.csr_array(arrow(50)), reverse=False) is None
    found = compressed(sparse.csr_array(banded(50)[:5]), reverse=False)
    assert (found.forward, found.reverse) == (3, 0)


@pytest.mark.parametrize(("width", "symmetric", "expected"), [(30, False, True), (31, False, False), (36, True, False)])
def test_colours_that_save_little_are_not_looked_for(width, symmetric, expected, monkeypatch):
    looked = []
    for name in ("_greedy", "_Stars"):
        original = getattr(colouring, name)
        monkeypatch.setattr(colouring, name, lambda *args, f=original: (looked.append(1), f(*args))[1])
    pattern = banded(40, range(width))
    pattern |= pattern.T if symmetric else False
    found = (compressed_symmetric if symmetric else compressed)(sparse.csr_array(pattern))
    assert (found is not None) == bool(looked) == expected


def test_full_matrices_are_not_compressed(monkeypatch):
    full = sparse.csr_array(np.ones((4, 5), bool))
    assert compressed(full) is None
    assert compressed_symmetric(sparse.csr_array(np.ones((4, 4), bool))) is None
    monkeypatch.setattr(colouring, "COLOURS", 2)
    assert coloured(sparse.csr_array(banded(9))) is None
    assert compressed_symmetric(sparse.csr_array(banded(9))) is None


def test_no_entries_take_no_products():
    found = compressed(sparse.csr_array((3, 4), dtype=bool))
    assert found.products == 0
    assert multiplied(np.zeros((3, 4))).entries(found)[0].nnz == 0


def test_a_colouring_is_one_of_columns():
    for pattern in (banded(30), grid(6), RNG.random((40, 30)) < 0.1):
        colours = coloured(sparse.csr_array(pattern))
        for row in pattern:
            assert len(set(colours[row])) == row.sum()


def test_wrong_entries_are_found():
    matrix = filled(banded(40))
    known = multiplied(matrix)
    lacking = sparse.csr_array(np.where(banded(40, (-1, 0)), matrix, 0.0))
    places = known.missed(lacking, forward=True)
    assert places
    assert all(j == i + 1 for i, j in places)
    places = known.missed(lacking, forward=False)
    assert places
    assert all(j == i + 1 for i, j in places)
    slightly = sparse.csr_array(matrix * (1.0 + 1e-6 * (matrix > 1.9)))
    assert known.missed(slightly, forward=True) is not None
    assert known.missed(sparse.csr_array(matrix * (1.0 + 1e-15)), forward=True) is None
