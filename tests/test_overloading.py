"""How a function of an engine becomes a function of taped values."""

from collections import namedtuple

import numpy as np
import pytest
from toy_engine import (
    Dual,
    ToyArray,
    TwinArray,
    argmax,
    asnumpy,
    overload_toy,
    sin,
    toy,
)

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    ArgumentValueError,
    CapturedValueError,
    Control,
    ReducedFunction,
    ReducedFunctional,
    RemovedOptionError,
    annotate_tape,
    array,
    get_working_tape,
    ndarray,
    overload,
    stop_annotating,
)

A, B = np.array([0.5, -1.0]), np.array([2.0, 0.25])
P = np.array([1.5, 0.3])
total = overload_toy(lambda x: x.sum())


def gradient_of(y, *values):
    """The gradient of sum(y) by some of the taped values."""
    rf = ReducedFunctional(total(y), [Control(v) for v in values])
    return [asnumpy(d).tolist() for d in rf.derivative()]


# Arguments in and results out ------------------------------------------------------------------------------------------


def test_keyword_arguments_are_taped():
    f = overload_toy(lambda x, *, weight: x * weight)
    x, w = toy(A), toy(B)
    y = f(x, weight=w)
    np.testing.assert_allclose(asnumpy(y), A * B)
    assert gradient_of(y, x, w) == [B.tolist(), A.tolist()]


Pair = namedtuple("Pair", "left right")


def test_nested_containers_in_and_out():
    @overload_toy
    def f(tree, pair):
        return {
            "a": [tree["x"][0] * pair.left, None],
            "b": (tree["x"][1], {"c": pair.right * 2.0}),
            "p": pair,
        }

    x0, x1, left, right = toy(A), toy(B), toy(P), toy(A + B)
    y = f({"x": [x0, x1]}, Pair(left, right))
    assert y["a"][1] is None
    assert isinstance(y["b"], tuple)
    assert isinstance(y["p"], Pair)
    assert all(isinstance(v, ndarray) for v in (y["a"][0], y["b"][0], y["b"][1]["c"], *y["p"]))
    np.testing.assert_allclose(asnumpy(y["a"][0]), A * P)
    assert gradient_of(y["a"][0], x0, left) == [P.tolist(), A.tolist()]
    assert gradient_of(y["b"][1]["c"], right, x1) == [[2.0, 2.0], [0.0, 0.0]]


def test_one_output_is_not_wrapped_in_a_container():
    assert isinstance(overload_toy(lambda x: x)(toy(A)), ndarray)
    assert isinstance(overload_toy(lambda x: (x,))(toy(A)), tuple)
    assert isinstance(overload_toy(lambda x: [x])(toy(A)), list)


@pytest.mark.parametrize(
    ("given", "kind"),
    [(toy(B), "toy"), (ToyArray(B), "bare"), (B, "numpy"), (array(B), "taped numpy"), (TwinArray(B), "twin")],
)
def test_arguments_of_any_engine(given, kind, tape):
    f = overload_toy(lambda x, y: x * y)
    x = toy(A)
    y = f(x, given)
    np.testing.assert_allclose(asnumpy(y), A * B)
    assert gradient_of(y, x) == [B.tolist()], kind
    assert len(tape.get_blocks()[0].get_dependencies()) == (2 if isinstance(given, ndarray) else 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
def test_python_floats_take_the_precision_of_the_arrays_beside_them(dtype):
    y = overload_toy(lambda x, s: x * s)(toy(A, dtype), 2.0)
    assert y.dtype == dtype


def test_floats_alone_are_double_precision():
    assert overload_toy(lambda s: s * s)(2.0).dtype == np.float64
    assert overload_toy(lambda s: s * s)(AdjFloat(2.0)).dtype == np.float64


@pytest.mark.parametrize("option", [None, "double", True, (1, 0)])
def test_strings_none_and_bools_are_static(option):
    seen = []

    def f(x, how):
        seen.append(how)
        return x * 2.0 if how == "double" else x

    y = overload_toy(f)(toy(A), option)
    assert type(seen[0]) is type(option)
    np.testing.assert_allclose(asnumpy(y), 2 * A if option == "double" else A)


@pytest.mark.parametrize("options", [{"static_argnums": 1}, {"static_argnums": (-1,)}, {"static_argnames": "n"}])
def test_static_arguments_are_python_values(options):
    seen = []

    def f(x, n):
        seen.append(n)
        return x**n

    x = toy(A)
    power = overload_toy(f, **options)
    y = power(x, 3)
    assert type(seen[0]) is int
    assert gradient_of(y, x) == [(3 * A**2).tolist()]
    if options != {"static_argnums": (-1,)}:
        np.testing.assert_allclose(asnumpy(power(x, n=2)), A**2)
    np.testing.assert_allclose(asnumpy(power(x, 2)), A**2)


def test_static_numbers_that_are_equal_and_not_the_same():
    seen = []

    def f(x, n):
        seen.append(n)
        return x * (-2.0 if str(n).startswith("-") else 1.0)

    x, signed = toy(A), overload_toy(f, static_argnums=1)
    numbers = (0.0, -0.0, 0, False, np.float32(-0.0), -0.0 + 0j, complex(-0.0, 0.0))
    for n in numbers:
        factor = -2.0 if str(n).startswith("-") else 1.0
        np.testing.assert_allclose(asnumpy(signed(x, n)), factor * A)
        assert type(seen[-1]) is type(n)
        assert repr(seen[-1]) == repr(n)


def test_a_static_argument_may_keep_its_default():
    def f(x, n=3):
        return x**n

    x = toy(A)
    assert gradient_of(overload_toy(f, static_argnums=1)(x), x) == [(3 * A**2).tolist()]


def test_a_taped_static_argument_is_refused():
    with pytest.raises(ArgumentTypeError, match=r"args\[1\].*static"):
        overload_toy(lambda x, n: x, static_argnums=1)(toy(A), toy(B))


def test_integer_outputs_are_passed_on_without_a_derivative():
    f = overload_toy(lambda x: (x * x, argmax(x)))
    x = toy(A)
    y, index = f(x)
    assert (index.dtype.kind, int(index)) == ("i", 0)
    assert gradient_of(y, x) == [(2 * A).tolist()]
    chosen = overload_toy(lambda v, i: v[int(i.data)], jit=False)(x, index)
    assert float(chosen) == A[0]


def test_integer_arguments_pass_no_derivative():
    x, k = toy(A), array(np.array([3, 4]))
    y = overload_toy(lambda x, k: x * k)(x, k)
    assert gradient_of(y, x) == [[3.0, 4.0]]


# argnums ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argnums", "expected"),
    [
        (None, [B.tolist(), A.tolist()]),
        (0, [B.tolist(), [0.0, 0.0]]),
        (1, [[0.0, 0.0], A.tolist()]),
        (-1, [[0.0, 0.0], A.tolist()]),
        ((0, 1), [B.tolist(), A.tolist()]),
        ((-2,), [B.tolist(), [0.0, 0.0]]),
    ],
)
@pytest.mark.parametrize("by_keyword", [False, True])
def test_argnums_stop_the_gradient(argnums, expected, by_keyword):
    f = overload_toy(lambda x, y: x * y, argnums=argnums)
    x, y = toy(A), toy(B)
    result = f(x, y=y) if by_keyword else f(x, y)
    assert gradient_of(result, x, y) == expected
    # The value still follows both arguments, and so does the derivative by the other one.
    rf = ReducedFunction(result, [Control(x), Control(y)])
    np.testing.assert_allclose(asnumpy(rf([toy(P), toy(A)])), P * A)


@pytest.mark.parametrize("argnums", [2, -3, (0, 5)])
def test_argnums_out_of_range(argnums, tape):
    with pytest.raises(ArgumentValueError, match=r"argnums=.*out of range.*2 positional"):
        overload_toy(lambda x, y: x * y, argnums=argnums)(toy(A), toy(B))
    assert len(tape.get_blocks()) == 0


def test_argnums_of_a_container():
    f = overload_toy(lambda tree, y: tree["a"] * tree["b"] * y, argnums=0)
    a, b, y = toy(A), toy(B), toy(P)
    assert gradient_of(f({"a": a, "b": b}, y), a, b, y) == [(B * P).tolist(), (A * P).tolist(), [0.0, 0.0]]


@pytest.mark.parametrize("argnums", ["0", 1.5, ("x",)])
def test_argnums_are_integers(argnums):
    with pytest.raises(ArgumentTypeError, match=r"argnums takes an int"):
        overload_toy(lambda x: x, argnums=argnums)


# Calls inside calls ----------------------------------------------------------------------------------------------------


def test_a_nested_call_of_the_same_engine_is_transparent(tape):
    inner = overload_toy(lambda x: x * x)
    outer = overload_toy(lambda x: inner(x) + inner(inner(x)))
    x = toy(A)
    y = outer(x)
    assert len(tape.get_blocks()) == 1
    assert gradient_of(y, x) == [(2 * A + 4 * A**3).tolist()]


def test_a_call_with_tracers_of_the_engine_is_transparent(tape):
    dual = Dual(ToyArray(2.0), ToyArray(1.0), 10**6)
    result = overload_toy(lambda x: x * x)(dual)
    assert isinstance(result, Dual)
    assert result.tangent.data == 4.0
    assert len(tape.get_blocks()) == 0


def test_a_method_is_bound():
    class Model:
        factor = 3.0

        @overload_toy
        def apply(self, x):
            return x * self.factor

    x = toy(A)
    assert gradient_of(Model().apply(x), x) == [[3.0, 3.0]]


def test_decorator_forms_keep_name_and_documentation():
    @overload_toy(argnums=0)
    def f(x, y):
        """Multiply."""
        return x * y

    assert (f.__name__, f.__doc__) == ("f", "Multiply.")
    assert repr(f) == "<f overloaded for toy>"
    assert overload_toy(lambda x: x, name="mine").name == "mine"
    assert overload_toy(lambda x: x, function_name="mine").name == "mine"
    assert overload_toy(lambda x: x, nojit=True).jit is False
    np.testing.assert_allclose(asnumpy(overload(sin, "toy")(toy(A))), np.sin(A))


# What is recorded ------------------------------------------------------------------------------------------------------


def test_nothing_is_recorded_without_taped_arguments_or_annotation(tape):
    f = overload_toy(lambda x: x * x)
    assert isinstance(f(A), ndarray)
    with stop_annotating():
        f(toy(A))
    assert len(tape.get_blocks()) == 0
    f(toy(A))
    assert len(tape.get_blocks()) == 1


@pytest.mark.parametrize("when", ["first", "later"])
def test_an_exception_in_the_function_leaves_the_tape(when, tape):
    fail = when == "first"

    def f(x):
        if fail:
            raise KeyError("inner")
        return x * x

    g = overload_toy(f, jit=False)
    x = toy(A)
    if when == "later":
        g(x)
        fail = True
    count = len(tape.get_blocks())
    with pytest.raises(KeyError, match="inner"):
        g(x)
    assert len(tape.get_blocks()) == count
    assert get_working_tape() is tape
    assert annotate_tape()
    fail = False
    assert gradient_of(g(x), x) == [(2 * A).tolist()]


captured_global = toy(A)


def test_a_captured_taped_value_is_refused(tape):
    captured = toy(A)
    number = AdjFloat(2.0)
    for function, name in (
        (lambda x: x * captured, "captured"),
        (lambda x: x * captured_global, "captured_global"),
        (lambda x: x * number, "number"),
    ):
        with pytest.raises(CapturedValueError, match=f"{name}.*argument"):
            overload_toy(function)(toy(B))
    assert len(tape.get_blocks()) == 0


def test_a_captured_value_in_a_nested_function_or_default_is_refused():
    captured = toy(A)

    def by_helper(x):
        def helper():
            return captured

        return x * helper()

    def by_default(x, factor=captured):
        return x * factor

    for function in (by_helper, by_default):
        with pytest.raises(CapturedValueError):
            overload_toy(function)(toy(B))


@pytest.mark.parametrize("result", ["text", object(), True])
def test_an_output_that_is_no_array_is_refused(result, tape):
    with pytest.raises(ArgumentTypeError, match=r"output 1 is not an array"):
        overload_toy(lambda x: (x, result))(toy(A))
    assert len(tape.get_blocks()) == 0


def test_a_function_without_outputs_is_refused(tape):
    with pytest.raises(ArgumentTypeError, match="returns no array"):
        overload_toy(lambda x: None)(toy(A))
    assert len(tape.get_blocks()) == 0


@pytest.mark.parametrize("option", ["concrete", "backend", "donate_argnums", "compile_jacobian_stack", "unheard_of"])
def test_removed_and_unknown_options(option):
    with pytest.raises(RemovedOptionError, match=option):
        overload_toy(lambda x: x, **{option: True})


@pytest.mark.parametrize("bad", [3, "f", None])
def test_only_functions_are_overloaded(bad):
    with pytest.raises((ArgumentTypeError, TypeError)):
        overload_toy(bad)(3)


def test_an_engine_is_needed():
    with pytest.raises(ArgumentTypeError, match="needs an engine"):
        overload(lambda x: x)
