"""Patterns that are found from products alone."""

import numpy as np
import pytest

from pyadjoint_utils.jacobians.group_probing import probed

RNG = np.random.default_rng(11)


def found(matrix, most=10**6):
    counted = []

    def multiply(rows):
        counted.append(len(rows))
        with np.errstate(invalid="ignore"):
            return rows @ matrix.T

    pattern = probed(multiply, *matrix.shape, most)
    return (None if pattern is None else pattern.toarray()), sum(counted)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (30, 50), (50, 30), (64, 64), (5, 257)])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5])
def test_exactly_what_is_there(shape, density):
    matrix = np.where(RNG.random(shape) < density, RNG.standard_normal(shape), 0.0)
    pattern, _ = found(matrix)
    np.testing.assert_array_equal(pattern, matrix != 0)


def test_few_products_for_a_band():
    n = 3000
    matrix = np.eye(n) + np.eye(n, k=1) + np.eye(n, k=-1)
    pattern, count = found(matrix)
    np.testing.assert_array_equal(pattern, matrix != 0)
    assert count <= 80


def test_too_many_products_are_not_taken():
    pattern, count = found(RNG.standard_normal((40, 40)), most=20)
    assert pattern is None
    assert count <= 20


def test_what_is_no_number_is_an_entry():
    matrix = np.eye(9)
    matrix[3, 5] = np.nan
    matrix[4, 2] = np.inf
    pattern, _ = found(matrix)
    assert pattern[3, 5]
    assert pattern[4, 2]
    assert np.all(pattern | (matrix == 0))
