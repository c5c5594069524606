"""Adjoints of probed black boxes: points are probed together, many cotangents at once, and declarations are checked."""

import numpy as np
import pytest

from pyadjoint_utils import (
    ArgumentValueError,
    Control,
    ReducedFunction,
    ReducedFunctional,
    array,
    overload_autograd,
    overload_numpy,
)

RNG = np.random.default_rng(11)
N = 40
F, P = RNG.standard_normal((N, 3, 3)), np.array([0.7, 1.3])
METHODS = {"complex-step": (1, 1e-12), "central": (4, 1e-10)}
both_methods = pytest.mark.parametrize("method", METHODS)


def law(f, p):
    return p[0] * f @ f + p[1] * np.sin(f)


def counted(f, calls):
    def call(*args):
        calls.append(1)
        return f(*args)

    return call


def recorded(method, calls, **options):
    f, p = array(F), array(P)
    y = overload_numpy(counted(law, calls), method=method, **{"pointwise": (True, False), **options})(f, p)
    return y, [Control(f), Control(p)]


def blocks(f, p):
    """Return d law / d f at each point."""
    eye = np.eye(3)
    first = np.einsum("ik,nlj->nijkl", eye, f) + np.einsum("nik,jl->nijkl", f, eye)
    return p[0] * first + p[1] * np.einsum("nij,ik,jl->nijkl", np.cos(f), eye, eye)


@both_methods
def test_derivatives_take_as_many_tangents_as_a_point_has_numbers(method):
    cost, tolerance = METHODS[method]
    calls = []
    y, controls = recorded(method, calls)
    rf = ReducedFunction(y, controls)
    seed = RNG.standard_normal(F.shape)
    rf([F + 0.1, P])
    rf.adj_jac_action(seed)
    calls.clear()
    by_f, by_p = rf.adj_jac_action(seed)
    assert len(calls) == cost * (9 + 1 + 2)  # a check, and the parameters one by one
    np.testing.assert_allclose(by_f.numpy(), np.einsum("nij,nijkl->nkl", seed, blocks(F + 0.1, P)), rtol=tolerance)
    expected = [np.sum(seed * ((F + 0.1) @ (F + 0.1))), np.sum(seed * np.sin(F + 0.1))]
    np.testing.assert_allclose(by_p.numpy(), expected, rtol=tolerance)
    calls.clear()
    matrix = rf.jac_matrix()[0]
    assert len(calls) < 20 * cost
    np.testing.assert_allclose(matrix.numpy(), blocks(F + 0.1, P), rtol=0, atol=10 * tolerance)


@both_methods
def test_second_derivatives_do_not_probe_points_one_by_one(method):
    calls = []
    y, controls = recorded(method, calls)
    J = ReducedFunctional((y * y).sum(), controls)
    matrix = J.hess_matrix()[0][0].numpy()
    assert matrix.shape == (N, 3, 3, 3, 3)
    calls.clear()
    J.hess_matrix()
    assert len(calls) < 8000  # one by one they would be 25 times as many
    f, p = array(F), array(P)
    same = overload_autograd(lambda f, p: p[0] * f @ f + p[1] * np_sin(f), pointwise=(True, False))(f, p)
    exact = ReducedFunctional((same * same).sum(), [Control(f), Control(p)]).hess_matrix()[0][0].numpy()
    np.testing.assert_allclose(matrix, exact, rtol=0, atol=1e-6 if method == "central" else 1e-9)


def np_sin(f):
    import autograd.numpy as anp

    return anp.sin(f)


@both_methods
@pytest.mark.parametrize("rows", [1, 3])
def test_a_matrix_by_rows_probes_once(method, rows):
    cost, tolerance = METHODS[method]
    weights, x, calls = RNG.standard_normal((rows, 5)), RNG.standard_normal(5), []
    v = array(x)
    rf = ReducedFunction(overload_numpy(counted(lambda x: weights @ np.exp(x), calls), method=method)(v), Control(v))
    rf.jac_matrix()
    calls.clear()
    found = rf.jac_matrix().numpy()
    assert len(calls) == cost * 5
    np.testing.assert_allclose(found, weights * np.exp(x), rtol=tolerance)


def test_complex_points():
    z = RNG.standard_normal((N, 2)) + 1j * RNG.standard_normal((N, 2))
    value, seed = array(z), RNG.standard_normal((N, 2)) + 1j * RNG.standard_normal((N, 2))
    f = overload_numpy(lambda z: np.conj(z) * z[:, ::-1], method="central", pointwise=True)
    found = ReducedFunction(f(value), Control(value)).adj_jac_action(seed).numpy()
    # d = conj(dz) z' + conj(z) dz': under Re<a, b> the adjoint is conj(s) z' + (s z)'.
    expected = np.conj(seed) * z[:, ::-1] + (seed * z)[:, ::-1]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@both_methods
@pytest.mark.parametrize("k", [0, 17, N - 1])
def test_a_wrong_declaration_is_refused_by_the_gradient(method, k):
    x = array(np.linspace(0.5, 1.5, N))
    f = overload_numpy(lambda x: x**2 + 1e-7 * x[k], method=method, pointwise=True, name="leaking")
    J = ReducedFunctional(f(x).sum(), Control(x))
    with pytest.raises(ArgumentValueError, match="leaking: leaf 0 of the arguments is declared pointwise"):
        J.derivative()


@both_methods
def test_points_of_very_different_size_are_no_wrong_declaration(method):
    x = np.logspace(-8, 4, N)
    v = array(x)
    f = overload_numpy(lambda x: 3.0 * x + np.cos(x), method=method, pointwise=True)
    found = ReducedFunctional(f(v).sum(), Control(v)).derivative().numpy()
    np.testing.assert_allclose(found, 3.0 - np.sin(x), rtol=1e-8 if method == "complex-step" else 1e-3)


def test_what_is_no_field_is_probed_one_by_one():
    x, calls = array(np.linspace(0.5, 1.5, 6)), []
    f = counted(lambda x: (x**2, x.sum()), calls)
    y, total = overload_numpy(f, method="complex-step", pointwise=True, out_pointwise=(True, False))(x)
    rf = ReducedFunction([y, total], Control(x))
    rf.adj_jac_action([np.ones(6), 2.0])
    calls.clear()
    np.testing.assert_allclose(rf.adj_jac_action([np.ones(6), 2.0]).numpy(), 2 * x.numpy() + 2.0)
    assert len(calls) == 6
    calls.clear()
    np.testing.assert_allclose(rf.adj_jac_action([np.ones(6), None]).numpy(), 2 * x.numpy())
    assert len(calls) == 1 + 1


def test_arguments_by_name_and_in_containers():
    x, calls = array(np.linspace(0.5, 1.5, 6)), []
    f = counted(lambda state, rate=2.0: {"y": state["x"] ** 2 * rate}, calls)
    law = overload_numpy(lambda state, rate=2.0: f(state, rate), method="complex-step", pointwise=(True,))
    rf = ReducedFunction(law(state={"x": x}, rate=3.0)["y"], Control(x))
    rf.adj_jac_action(np.ones(6))
    calls.clear()
    np.testing.assert_allclose(rf.adj_jac_action(np.ones(6)).numpy(), 6 * x.numpy())
    assert len(calls) == 2
