"""Ways in which a derivative could be lost without a word: each is right, or an error."""

from functools import partial

import numpy as np
import pytest

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    CapturedValueError,
    Control,
    NotDifferentiableError,
    ReducedFunction,
    ReducedFunctional,
    StaleTapeError,
    array,
    asarray,
    compute_gradient,
    get_engine,
    minimize,
    overload,
    push_tape,
    stop_annotating,
    taylor_test,
)

POINT = np.array([0.3, -0.7, 1.1])


class Model:
    def __init__(self, k):
        self.k = k

    def __call__(self, x):
        return x * self.k

    def method(self, x):
        return x * self.k


def _with_default(k):
    def f(x, k=k):
        return x * k

    return f


def _with_list(k):
    values = [k]
    return lambda x: x * values[0]


def _with_helper(k):
    def helper(x):
        return x * k

    return lambda x: helper(x)


@pytest.mark.parametrize("engine", ["jax", "torch", "tensorflow", "autograd"])
@pytest.mark.parametrize(
    "make",
    [
        lambda k: lambda x: x * k,
        lambda k: partial(lambda k, x: x * k, k),
        _with_default,
        _with_list,
        _with_helper,
        lambda k: Model(k).method,
        Model,
    ],
    ids=["closure", "partial", "default", "list", "helper", "method", "callable object"],
)
def test_a_captured_adjfloat_is_refused(engine, make):
    pytest.importorskip(engine)
    with pytest.raises(CapturedValueError, match="Pass it as an argument"):
        overload(make(AdjFloat(3.0)), engine)(array(POINT))


mean = AdjFloat(1.0)


def test_an_attribute_of_the_name_of_a_taped_global_is_no_capture():
    pytest.importorskip("jax")
    assert overload(lambda x: (x * x).mean(), "jax")(array(POINT)).item() == pytest.approx(np.mean(POINT**2))


@pytest.mark.parametrize("engine", ["jax", "torch", "tensorflow", "autograd"])
@pytest.mark.parametrize("argument", [Model(AdjFloat(2.0)), frozenset([AdjFloat(2.0)])], ids=["object", "set"])
def test_a_taped_value_inside_of_a_static_argument_is_refused(engine, argument):
    pytest.importorskip(engine)
    with pytest.raises(ArgumentTypeError, match=r"args\[1\] holds a taped value"):
        overload(lambda x, other: x, engine)(array(POINT), argument)


@pytest.mark.parametrize(
    "copied", [array, lambda x: array(x, dtype=np.float32), lambda x: asarray(x).astype(complex).real]
)
def test_copies_stay_on_the_tape(copied):
    x = array(POINT)
    np.testing.assert_allclose(compute_gradient((copied(x) * 2.0).sum(), Control(x)).numpy(), 2.0)


@pytest.mark.parametrize("made", [array, asarray])
def test_an_adjfloat_made_an_array_stays_on_the_tape(made):
    a = AdjFloat(3.0)
    assert compute_gradient(made(a) * 2.0, Control(a)) == 2.0


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, a: np.concatenate([x, [a]]), (2 * POINT, 4.0)),
        (lambda x, a: np.hstack([x, [a, a]]), (2 * POINT, 8.0)),
        (lambda x, a: np.vstack([x, [a, 1.0, a]]), (2 * POINT, 8.0)),
        (lambda x, a: np.add(x, [a, 0.0, 0.0]), (2 * (POINT + np.array([2, 0, 0])), 2 * (POINT[0] + 2.0))),
        (lambda x, a: x * [a, 1.0, 1.0], (2 * POINT * [4, 1, 1], 4.0 * POINT[0] ** 2)),
        (lambda x, a: np.where([True, False, True], x, [a, a, a]), (2 * POINT * [1, 0, 1], 4.0)),
    ],
    ids=["concatenate", "hstack", "vstack", "add", "times", "where"],
)
@pytest.mark.parametrize("engine", ["jax", "autograd"])
def test_lists_that_hold_taped_values_keep_their_derivatives(function, expected, engine):
    pytest.importorskip(engine)
    x, a = array(get_engine(engine).enter(POINT)), AdjFloat(2.0)
    rf = ReducedFunctional((function(x, a) ** 2).sum(), [Control(x), Control(a)])
    dx, da = rf.derivative()
    np.testing.assert_allclose(dx.numpy(), expected[0])
    assert da == pytest.approx(expected[1])


def test_what_was_not_recorded_on_the_tape_has_no_zero_derivative():
    x = array(POINT)
    with stop_annotating():
        off = (x * x).sum()
    with push_tape() as tape:
        elsewhere = (x * x).sum()
    for output in (off, elsewhere):
        with pytest.raises(StaleTapeError, match="not recorded on this tape"):
            ReducedFunctional(output, Control(x))
    assert ReducedFunctional(elsewhere, Control(x), tape=tape).derivative().numpy() == pytest.approx(2 * POINT)


def test_an_output_that_the_controls_do_not_reach_keeps_its_value():
    a, x = array([1.0]), array([2.0])
    y, z = a * 2.0, x * 3.0
    first, second = ReducedFunction([z, y], Control(x)), ReducedFunction(y, Control(a))
    second(array([10.0]))
    assert [v.tolist() for v in first(array([1.0]))] == [[3.0], [2.0]]


@pytest.mark.parametrize("engine", ["torch", "autograd"])
def test_an_eager_function_whose_dtype_depends_on_values_is_refused(engine):
    pytest.importorskip(engine)
    f = overload(lambda x: (x**2).sum() if x[0] > 0 else 0, engine)
    x = array([1.0, 2.0])
    rf = ReducedFunctional(f(x), Control(x))
    with pytest.raises(NotDifferentiableError, match="Return the same dtype on every path"):
        rf(array([-1.0, 2.0]))
    assert rf.derivative().tolist() == [2.0, 4.0]


def test_an_engine_inside_of_another_ones_function_is_refused():
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    inner = overload(lambda x: (x**3).sum(), "jax")
    x = array([1.0, 2.0])
    rf = ReducedFunction(overload(lambda x: float(inner(x)) * x[0], "torch")(x), Control(x))
    with pytest.raises(ArgumentTypeError, match="belongs to torch's own differentiation"):
        rf.derivative()


@pytest.mark.parametrize("engine", ["torch", "tensorflow", "jax", "autograd"])
def test_cholesky_differentiates_what_numpy_computes(engine):
    pytest.importorskip(engine)
    a = array(get_engine(engine).enter(np.array([[2.0, 0.3], [0.3, 1.5]])))
    rf = ReducedFunctional((np.linalg.cholesky(a) ** 3).sum(), Control(a))
    assert taylor_test(rf, a, np.array([[0.3, -0.2], [0.5, 0.1]])) > 1.9


def test_positions_from_the_end_are_taken_from_the_end():
    pytest.importorskip("tensorflow")
    x = array(get_engine("tensorflow").enter(np.arange(5.0)))
    y = np.take(x, [-1, 0], axis=0)
    assert y.tolist() == [4.0, 0.0]
    assert compute_gradient((y**2).sum(), Control(x)).tolist() == [0.0, 0.0, 0.0, 0.0, 8.0]


def test_the_full_svd_of_a_rectangle_is_refused():
    pytest.importorskip("torch")
    x = array(get_engine("torch").enter(np.arange(6.0).reshape(3, 2)))
    with pytest.raises(ValueError, match="full_matrices=False"):
        np.linalg.svd(x)


@pytest.mark.parametrize("copies", ["tensor", "as_tensor"])
def test_torch_tensors_copied_into_a_new_one_are_refused(copies):
    torch = pytest.importorskip("torch")
    x = array(POINT)
    rf = ReducedFunction(overload(lambda v: getattr(torch, copies)([v[0], v[1]]) * v[2], "torch")(x), Control(x))
    with pytest.raises(NotDifferentiableError, match=r"torch\.stack"):
        rf.adj_jac_action(np.ones(2))


def test_a_gradient_of_what_is_no_real_scalar_is_refused():
    x = array(POINT)
    for output in (x * 2.0, (x * 1j).sum()):
        with pytest.raises(NotDifferentiableError, match="Only a real scalar has a gradient"):
            compute_gradient(output, Control(x))


@pytest.mark.parametrize(("offset", "step"), [(1e13, 1e-3), (0.0, 1e-14)], ids=["offset", "tiny step"])
@pytest.mark.parametrize("slope", [0.0, None], ids=["wrong", "right"])
def test_a_taylor_test_that_tests_nothing_does_not_pass(offset, step, slope, caplog):
    x = array(POINT)
    rf = ReducedFunctional((x * x).sum() + offset, Control(x))
    assert not taylor_test(rf, x, step * POINT, dJdm=slope) > 1.9
    assert "nothing can be said" in caplog.text


@pytest.mark.parametrize("method", ["SLSQP", "L-BFGS-B", "Newton-CG", "trust-krylov", "trust-constr"])
def test_a_callback_may_evaluate_the_function_elsewhere(method):
    x = array([-1.0, 2.0])
    rf = ReducedFunctional(((x - [1.0, 0.5]) ** 4).sum() + ((x - [1.0, 0.5]) ** 2).sum(), Control(x))

    def elsewhere(iteration):
        rf(array([50.0, -30.0]))

    best = minimize(rf, method, callback=elsewhere, progress=False)
    np.testing.assert_allclose(best.numpy(), [1.0, 0.5], atol=1e-3)


def test_a_negative_scale_maximises():
    x = array(2.0)
    best = minimize(ReducedFunctional(-((x - 1.0) ** 2), Control(x)), scale=-1.0, progress=False)
    assert best.item() == pytest.approx(1.0, abs=1e-4)


def test_a_failed_minimize_leaves_the_function_where_it_was():
    calls = []

    def careful(v):
        calls.append(1)
        if len(calls) > 4:
            raise FloatingPointError("overflow")
        return (v**4).sum()

    x = array([2.0, 2.0])
    rf = ReducedFunctional(overload(careful, "autograd")(x), Control(x))
    with pytest.raises(FloatingPointError):
        minimize(rf, progress=False)
    calls.clear()
    assert rf.derivative().tolist() == [32.0, 32.0]


@pytest.mark.parametrize(
    "use", [lambda x, t: np.where(x > 0, x, t), lambda x, t: np.clip(x, -9.0, t)], ids=["where", "clip"]
)
def test_numbers_in_numpy_functions_are_not_compiled_in(use):
    jax = pytest.importorskip("jax")
    from pyadjoint_utils.numpy_functions import recorded_function

    x = array(jax.numpy.asarray(POINT.astype(np.float32)))
    name = "where" if use(x, 0.5) is not None and "where" in use.__code__.co_names else "clip"
    prepared = recorded_function(get_engine("jax"), name)._prepared
    count = len(prepared)
    for t in (0.25, 0.125, -0.0):
        y = use(x, t)
        np.testing.assert_array_equal(y.numpy(), use(POINT.astype(np.float32), np.float32(t)))
    assert len(prepared) == count


def test_positions_are_not_compiled_in():
    jax = pytest.importorskip("jax")
    from pyadjoint_utils.numpy_functions import recorded_function

    x = array(jax.numpy.asarray(np.arange(12.0, dtype=np.float32).reshape(3, 4)))
    prepared = recorded_function(get_engine("jax"), "getitem")._prepared
    assert x[0, 1].item() == 1.0
    count = len(prepared)
    assert [x[i, j].item() for i, j in ((1, 2), (-1, -1), (2, 0))] == [6.0, 11.0, 8.0]
    assert len(prepared) == count
    with pytest.raises(IndexError):
        x[3, 0]


def test_a_taped_position_is_replayed_and_a_taped_bound_is_refused():
    x, i = array(np.arange(5.0)), array(1)
    picked = x[[i, 3]]
    rf = ReducedFunction(picked, Control(x), inputs=i)
    assert rf(np.arange(5.0), inputs=2).tolist() == [2.0, 3.0]
    with pytest.raises(ArgumentTypeError, match="holds a taped value"):
        x[i:4]
