"""A tape inside autograd: forward, reverse and nested, against the same program written with autograd."""

import concurrent.futures

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from autograd.test_util import check_grads
from toy_engine import overload_toy, sin, toy

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    ArgumentValueError,
    Control,
    NotDifferentiableError,
    ReducedFunction,
    ReducedFunctional,
    array,
    as_autograd,
    overload_autograd,
    overload_numpy,
)

V = np.array([0.3, -0.7, 1.1, 0.8])
D = np.array([0.5, 0.2, -0.4, 0.3])


def mixed():
    """``(x, a) -> (sum(sin(y) x) a, y^2)`` with ``y = exp(a x)``, over autograd, another engine and numbers."""
    x, a = array(np.array([1.0, 2.0, 3.0])), AdjFloat(1.5)
    y = np.exp(x * a)
    z = (overload_toy(sin)(y) * toy(np.ones(3)) * x).sum()
    return as_autograd(ReducedFunction([z * a, y * y], [Control(x), Control(a)]))


def native(values):
    x, a = values
    y = anp.exp(x * a)
    return [anp.sum(anp.sin(y) * x) * a, y * y]


def scalar(f):
    """A function of one vector that calls the tape twice, at two points."""

    def g(v):
        z, y = f([v[:3], v[3]])
        return anp.sum(y**2) * z + f([anp.sin(v[:3]), v[3] * v[0]])[0]

    return g


def vector(f):
    return lambda v: f([v[:3], v[3]])[1]


KINDS = {
    "grad": lambda f: autograd.grad(scalar(f))(V),
    "jacobian": lambda f: autograd.jacobian(vector(f))(V),
    "jvp": lambda f: autograd.make_jvp(vector(f))(V)(D),
    "hessian": lambda f: autograd.hessian(scalar(f))(V),
    "hessian of a vector": lambda f: autograd.jacobian(autograd.jacobian(vector(f)))(V),
    "hvp": lambda f: autograd.make_hvp(scalar(f))(V)[0](D),
    "forward over reverse": lambda f: autograd.make_jvp(autograd.grad(scalar(f)))(V)(D),
    "reverse over forward": lambda f: autograd.grad(lambda v: autograd.make_jvp(scalar(f))(v)(D)[1])(V),
    "forward over forward": lambda f: autograd.make_jvp(lambda v: autograd.make_jvp(scalar(f))(v)(D)[1])(V)(D),
    "third order": lambda f: autograd.make_jvp(autograd.hessian(scalar(f)))(V)(D),
}


def close(found, wanted, rtol=1e-10):
    if isinstance(wanted, (list, tuple)):
        for a, b in zip(found, wanted, strict=True):
            close(a, b, rtol)
    else:
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_are_autograds_own(kind):
    close(KINDS[kind](mixed()), KINDS[kind](native))


def test_lists_go_in_and_out():
    f, values = mixed(), [V[:3], V[3]]
    close(f(values), native(values))
    close(autograd.grad(lambda v: f(v)[0])(values), autograd.grad(lambda v: native(v)[0])(values))
    check_grads(f, modes=["fwd", "rev"], order=2)(values)


def test_what_autograd_gets_wrong_is_right():
    point = np.array([[0.3, 0.4], [1.0, -1.0]])
    wanted = np.repeat(np.eye(4).reshape(2, 2, 2, 2), 2, axis=1)
    own = autograd.jacobian(lambda x: anp.repeat(x, 2, axis=-1))(point)
    assert not np.allclose(own, wanted)
    x = array(np.ones((2, 2)))
    f = as_autograd(ReducedFunction(np.repeat(x, 2, axis=-1), Control(x)))
    close(autograd.jacobian(f)(point), wanted)


MATRIX = np.array([[1.0 + 2.0j, 0.3], [0.5j, -1.0]])
Z, R = np.array([0.4 - 0.3j, 0.2 + 0.5j]), np.array([0.7, -0.2])


def complex_tape():
    z, r = array(np.array([1.0 + 1.0j, 2.0])), array(np.array([1.0, 2.0]))
    u = np.matmul(array(MATRIX), z) ** 2 * r
    return as_autograd(ReducedFunction([u * 1j, np.real(u * np.conj(z)) * np.abs(u) ** 2], [Control(z), Control(r)]))


def complex_native(values):
    z, r = values
    u = anp.dot(MATRIX, z) ** 2 * r
    return [u * 1j, anp.real(u * anp.conj(z)) * anp.real(u * anp.conj(u))]


def complex_loss(f, r=R):
    def g(z):
        u, w = f([z, r])
        return anp.sum(anp.real(u * (1 + 0.5j) * u)) + anp.sum(w) ** 2

    return g


COMPLEX = {
    "grad": lambda f: autograd.grad(complex_loss(f))(Z),
    "real": lambda f: autograd.grad(lambda r: complex_loss(f, r)(Z))(R),
    "jvp": lambda f: autograd.make_jvp(complex_loss(f))(Z)(1j * Z[::-1]),
    "forward over reverse": lambda f: autograd.make_jvp(autograd.grad(complex_loss(f)))(Z)(1j * Z[::-1]),
    "reverse over reverse": lambda f: autograd.grad(
        lambda z: anp.sum(anp.real(autograd.grad(complex_loss(f))(z) * (2 - 0.3j)))
    )(Z),
    "holomorphic": lambda f: autograd.holomorphic_grad(lambda z: anp.sum(f([z, R])[0] * (1 + 2j)))(Z),
}


@pytest.mark.parametrize("kind", COMPLEX)
def test_complex_derivatives_follow_autograds_convention(kind):
    close(COMPLEX[kind](complex_tape()), COMPLEX[kind](complex_native))


def test_each_call_has_its_own_point():
    a = AdjFloat(1.0)
    rf = ReducedFunction(a * a, Control(a))
    f = as_autograd(rf)
    g = autograd.grad(lambda a: f(a) + f(2 * a))
    assert g(3.0) == 30.0
    rf(AdjFloat(7.0))
    assert g(3.0) == 30.0
    rf.tape.clear_tape()
    assert g(3.0) == 30.0


def test_a_caller_may_write_to_an_array_before_the_derivative_is_taken():
    x = array(np.array([1.0, 2.0]))
    f = as_autograd(ReducedFunction(np.sin(x) * x, Control(x)))
    point = np.array([0.3, 0.4])
    pull_back, _ = autograd.make_vjp(f)(point)
    expected = np.cos(point) * point + np.sin(point)
    point[:] = 5.0
    np.testing.assert_allclose(pull_back(np.ones(2)), expected)


def test_calls_from_several_threads_do_not_disturb_each_other():
    f = mixed()
    loss = lambda v: f([v[:3], v[3]])[0]
    points = [V + 0.01 * k for k in range(24)]
    wanted = [f([p[:3], p[3]]) for p in points]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        close(list(pool.map(lambda p: f([p[:3], p[3]]), points)), wanted)
    assert np.isfinite(autograd.grad(loss)(V)).all()


def test_a_tape_inside_of_a_function_on_another_tape():
    v = array(np.ones(4))
    rf = ReducedFunctional(overload_autograd(scalar(mixed()))(v), Control(v))
    close(rf(array(V)).item(), scalar(native)(V))
    close(rf.derivative().numpy(), autograd.grad(scalar(native))(V))
    close(rf.hessian(array(D)).numpy(), autograd.hessian(scalar(native))(V) @ D)


def test_third_derivatives_of_black_boxes_are_refused():
    x = array(np.ones(4))
    square = overload_numpy(lambda x: x**2, vjp=lambda p, yb: 2 * p[0] * yb, jvp=lambda p, dx: 2 * p[0] * dx[0])
    f = as_autograd(ReducedFunction(square(x).sum(), Control(x)))
    close(autograd.hessian(f)(V), 2 * np.eye(4))
    with pytest.raises(NotDifferentiableError, match=r"is a black box: it has first and second derivatives"):
        autograd.jacobian(autograd.hessian(f))(V)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([V, 1.0], ArgumentValueError, r"controls\[0\] must have the shape of the recorded one, float64\[3\]"),
        ([np.ones((2, 3)), 1.0], ArgumentValueError, r"got float64\[2,3\].*call it for one row after the other\."),
        ([V[:3] * 1j, 1.0], ArgumentTypeError, r"controls\[0\] .* got complex128\[3\]"),
        ([V[:3], "1"], ArgumentTypeError, r"controls\[1\] must be a NumPy array or a number .*; got str"),
        ([array(V[:3]), 1.0], ArgumentTypeError, r"controls\[0\] must be a NumPy array or a number .*; got ndarray"),
        ([V[:3]], ArgumentValueError, r"one entry for each of the 2 controls; got 1"),
    ],
)
def test_bad_arguments_are_refused(values, error, message):
    f = mixed()
    with pytest.raises(error, match=message):
        f(values)
    f([V[:3], 1.0])


def test_an_error_inside_is_the_callers():
    def solve(x):
        if x[0] < 0:
            raise ZeroDivisionError("the diagonal is zero")
        return np.sqrt(x)

    x = array(np.ones(4))
    f = as_autograd(ReducedFunction(overload_numpy(solve, method="complex-step")(x).sum(), Control(x)))
    with pytest.raises(ZeroDivisionError, match=r"diagonal"):
        autograd.grad(f)(-np.ones(4))
    close(autograd.grad(f)(np.ones(4)), 0.5 * np.ones(4))
