"""Arithmetic, indexing and NumPy functions on taped arrays, recorded through the engine that owns the buffer."""

import math
import operator

import numpy as np
import pytest
from engines import NAMES, namespace
from scipy import optimize
from toy_engine import ToyArray, TwinArray, asnumpy, engine, overload_toy, toy

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    CapturedValueError,
    Control,
    ImmutableError,
    NotDifferentiableError,
    ReducedFunctional,
    array,
    ndarray,
)
from pyadjoint_utils.numpy_functions import recorded_function

A, B = np.array([0.5, 1.25]), np.array([2.0, 0.75])
P = np.array([1.5, 0.3])
total = overload_toy(lambda x: x.sum())


def derivative(y, x, point):
    rf = ReducedFunctional(total(y) if y.shape else y, Control(x))
    rf(toy(point))
    return asnumpy(rf.derivative())


BINARY = [
    (operator.add, lambda a, b: (1 + 0 * a, 1 + 0 * b)),
    (operator.sub, lambda a, b: (1 + 0 * a, -1 + 0 * b)),
    (operator.mul, lambda a, b: (b, a)),
    (operator.truediv, lambda a, b: (1 / b, -a / b**2)),
    (operator.pow, lambda a, b: (b * a ** (b - 1), a**b * np.log(a))),
]
OTHERS = {
    "taped": toy,
    "bare": lambda v: ToyArray(v),
    "NumPy": lambda v: v,
    "taped NumPy": array,
    "twin": lambda v: array(TwinArray(v)),
    "float": lambda v: float(v[0]),
    "AdjFloat": lambda v: AdjFloat(v[0]),
    "NumPy scalar": lambda v: v[0],
    "0-d array": lambda v: np.asarray(v[0]),
}


@pytest.mark.parametrize(("op", "partials"), BINARY, ids=[op.__name__ for op, _ in BINARY])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_binary_operators_with_every_kind_of_operand(op, partials, other):
    x, b = toy(A), other(B)
    plain = B if getattr(b, "shape", ()) else B[0]
    y = op(x, b)
    assert isinstance(y, ndarray)
    assert y.engine == "toy"
    np.testing.assert_allclose(asnumpy(y), op(A, plain))
    np.testing.assert_allclose(derivative(y, x, P), partials(P, plain)[0] * np.ones(2))


@pytest.mark.parametrize(("op", "partials"), BINARY, ids=[op.__name__ for op, _ in BINARY])
@pytest.mark.parametrize("kind", ["NumPy", "float", "AdjFloat", "NumPy scalar", "0-d array", "bare"])
def test_reflected_operators(op, partials, kind):
    x, b = toy(A), OTHERS[kind](B)
    plain = B if getattr(b, "shape", ()) else B[0]
    y = op(b, x)
    assert isinstance(y, ndarray), type(y)
    np.testing.assert_allclose(asnumpy(y), op(plain, A))
    np.testing.assert_allclose(derivative(y, x, P), partials(plain, P)[1] * np.ones(2))


@pytest.mark.parametrize(("op", "partials"), BINARY, ids=[op.__name__ for op, _ in BINARY])
@pytest.mark.parametrize("reflected", [False, True])
def test_an_adjfloat_beside_an_array_keeps_its_derivative(op, partials, reflected):
    s, x = AdjFloat(2.0), toy(A)
    y = op(s, x) if reflected else op(x, s)
    rf = ReducedFunctional(total(y), Control(s))
    rf(1.5)
    expected = partials(1.5, A)[0] if reflected else partials(A, 1.5)[1]
    assert float(rf.derivative()) == pytest.approx(np.sum(expected * np.ones(2)))


@pytest.mark.parametrize("name", ["multiply", "add"])
@pytest.mark.parametrize("order", [0, 1])
def test_ufuncs_of_an_adjfloat_and_an_array_keep_both_derivatives(name, order):
    s, x = AdjFloat(2.0), toy(A)
    ufunc = getattr(np, name)
    y = ufunc(s, x) if order else ufunc(x, s)
    ds, dx = ReducedFunctional(total(y), [Control(s), Control(x)]).derivative()
    assert float(ds) == pytest.approx(A.sum() if name == "multiply" else 2.0)
    np.testing.assert_allclose(asnumpy(dx), 2.0 if name == "multiply" else 1.0)


@pytest.mark.parametrize("exponent", [2, 3, 2.0, -1.5, np.float64(2.0), np.array([2.0, 3.0])])
def test_powers(exponent):
    x = toy(A)
    y = x**exponent
    np.testing.assert_allclose(asnumpy(y), A**exponent)
    np.testing.assert_allclose(derivative(y, x, P), exponent * P ** (exponent - 1.0))


def test_integer_powers_of_negative_numbers():
    x = toy([-2.0])
    np.testing.assert_allclose(derivative(x**3, x, [-3.0]), [27.0])


@pytest.mark.parametrize(
    ("make", "value", "slope"),
    [
        (lambda x: -x, lambda a: -a, lambda a: -1 + 0 * a),
        (np.sin, np.sin, np.cos),
        (np.exp, np.exp, np.exp),
        (abs, np.abs, np.sign),
        (np.sum, np.sum, lambda a: 1 + 0 * a),
        (lambda x: x.sum(), np.sum, lambda a: 1 + 0 * a),
        (np.add.reduce, np.sum, lambda a: 1 + 0 * a),
        (lambda x: np.sum(x, axis=0), np.sum, lambda a: 1 + 0 * a),
        (lambda x: x @ B, lambda a: a @ B, lambda a: B),
        (lambda x: B @ x, lambda a: a @ B, lambda a: B),
        (lambda x: x[1] * x[-1], lambda a: a[1] ** 2, lambda a: np.array([0.0, 2 * a[1]])),
        (lambda x: x[::-1] * x, lambda a: a[::-1] * a, lambda a: 2 * a[::-1]),
        (lambda x: x[np.array([0, 0, 1])], lambda a: a[[0, 0, 1]], lambda a: np.array([2.0, 1.0])),
        (lambda x: x[x.numpy() > 1.0], lambda a: a[1:], lambda a: np.array([0.0, 1.0])),
        (lambda x: x.reshape(2, 1) * 2.0, lambda a: 2 * a.reshape(2, 1), lambda a: 2 + 0 * a),
        (lambda x: x.reshape((1, 2)), lambda a: a.reshape(1, 2), lambda a: 1 + 0 * a),
        (lambda x: np.reshape(x, (2, 1)), lambda a: a.reshape(2, 1), lambda a: 1 + 0 * a),
        (lambda x: x.astype(np.complex128).real, lambda a: a, lambda a: 1 + 0 * a),
        (lambda x: np.real(np.conj(x * 1j) * 1j), lambda a: a, lambda a: 1 + 0 * a),
    ],
)
def test_functions_and_methods(make, value, slope):
    x = toy(A)
    y = make(x)
    assert isinstance(y, ndarray)
    np.testing.assert_allclose(asnumpy(y), value(A))
    np.testing.assert_allclose(derivative(y, x, P), slope(P))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_python_numbers_do_not_change_the_precision(dtype):
    x = toy(A, dtype)
    assert (2.0 * x).dtype == (x + 1).dtype == (x**2).dtype == (1 / x).dtype == dtype


def test_a_function_that_the_engine_lacks_is_named():
    with pytest.raises(NotDifferentiableError, match=r"'toy' has no function 'arctan'.*overload"):
        np.arctan(toy(A))
    with pytest.raises(NotDifferentiableError, match=r"'linalg\.solve'"):
        np.linalg.solve(toy(np.eye(2)), toy(A))


@pytest.mark.parametrize("attempt", [lambda x, o: np.add(x, x, out=o), lambda x, o: np.sum(x, out=o)])
def test_out_is_refused(attempt):
    with pytest.raises(ImmutableError, match="out="):
        attempt(toy(A), np.zeros(2))


def test_adding_a_taped_value_to_a_numpy_array_in_place_is_refused():
    data = np.zeros(2)
    with pytest.raises(ImmutableError, match="in-place"):
        data += toy(A)
    assert data.tolist() == [0.0, 0.0]


def test_questions_are_answered_off_the_tape(tape):
    x = toy(A)
    assert np.allclose(x, A)
    assert np.shape(x) == (2,)
    assert np.size(x) == 2
    assert not np.iscomplexobj(x)
    assert np.array_equal(x, A)
    assert len(tape.get_blocks()) == 0


def test_comparisons_have_no_derivative(tape):
    x = toy(A)
    assert asnumpy(x < 1.0).tolist() == [True, False]
    assert asnumpy(x > B).tolist() == [False, True]
    rf = ReducedFunctional(total(x * x), Control(x))
    np.testing.assert_allclose(asnumpy(rf.derivative()), 2 * A)


def test_strings_are_no_operands():
    with pytest.raises(TypeError):
        toy(A) + "text"
    with pytest.raises(TypeError):
        toy(A) * None


def test_a_taped_value_inside_an_overloaded_function_is_refused():
    hidden = [toy(A)]
    with pytest.raises(CapturedValueError):
        overload_toy(lambda x: x * np.sin(hidden[0]).value)(toy(B))
    with pytest.raises(CapturedValueError):
        overload_toy(lambda x: hidden[0] * 2.0)(toy(B))


@pytest.mark.parametrize("target", [float, int])
def test_a_complex_array_does_not_become_real_by_itself(target):
    with pytest.raises(ArgumentTypeError, match="imaginary"):
        toy([1j]).astype(target)


def test_functions_are_looked_up_once():
    assert recorded_function(engine, "add") is recorded_function(engine, "add")


def test_a_replaced_engine_is_asked_itself():
    class Other(type(engine)):
        name = "other"
        array_types = ()

    assert recorded_function(Other(), "sin").engine.name == "other"


def test_numbers_from_python_stay_off_the_tape(tape):
    y = 2.0 * toy(3.0) + 1
    assert math.isclose(y, 7.0)
    assert len(tape.get_blocks()) == 2


@pytest.mark.parametrize("name", NAMES)
def test_questions_are_methods_too(name):
    data = np.array([[0.0, -2.0, 3.0], [0.5, 4.0, 1.0]])
    x = array(namespace(name).own(data))
    assert x.engine == namespace(name).holds
    for method in ("any", "all", "argmax", "argmin"):
        for options in ({}, {"axis": 0}, {"axis": 1}):
            answer, expected = getattr(x, method)(**options), getattr(data, method)(**options)
            assert isinstance(answer, ndarray)
            np.testing.assert_array_equal(answer.numpy(), expected)
            np.testing.assert_array_equal(getattr(np, method)(x, **options).numpy(), expected)
    assert x.any()
    assert not x.all()
    assert x.copy() is x


@pytest.mark.parametrize("copy", [np.copy, lambda x: x.copy()], ids=["function", "method"])
@pytest.mark.parametrize("name", NAMES)
def test_a_copy_keeps_the_derivative(name, copy):
    x = array(namespace(name).own(A))
    J = ReducedFunctional((copy(x) ** 2).sum(), Control(x))
    J(P)
    np.testing.assert_allclose(J.derivative().numpy(), 2 * P, rtol=1e-6)


@pytest.mark.parametrize("method", ["BFGS", "CG"])
def test_solvers_in_plain_python_take_taped_gradients(method):
    x = array([1.3, 0.7])
    J = ReducedFunctional(((x - A) ** 4).sum() + ((x - A) ** 2).sum(), Control(x))
    found = optimize.minimize(J.value_and_derivative, P, jac=True, method=method)
    np.testing.assert_allclose(np.asarray(found.x), A, atol=1e-5)
