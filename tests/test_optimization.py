"""Our minimize over SciPy, and Pyadjoint's own on our controls."""

import warnings

import numpy as np
import pyadjoint
import pytest
from pyadjoint.reduced_functional_numpy import ReducedFunctionalNumPy
from toy_engine import asnumpy, conj, overload_toy, real, toy

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    ArgumentValueError,
    Callback,
    CallbackCombiner,
    Control,
    FileLoggerCallback,
    Iteration,
    NotConvergedWarning,
    ReducedFunction,
    ReducedFunctional,
    annotate_tape,
    array,
    minimize,
    ndarray,
)

START = np.array([-1.2, 1.0])
rosenbrock = overload_toy(lambda x: (x[1:] - x[:-1] ** 2).__pow__(2).sum() * 10.0 + ((1.0 - x[:-1]) ** 2).sum())
bowl = overload_toy(lambda x, target: ((x - target) ** 2).sum())
TARGET = np.array([2.0, -0.5])
METHODS = [
    "L-BFGS-B",
    "BFGS",
    "CG",
    "Newton-CG",
    "trust-ncg",
    "trust-krylov",
    "trust-exact",
    "dogleg",
    "trust-constr",
]
METHODS += ["SLSQP", "TNC", "Nelder-Mead", "COBYLA", "Powell"]


def problem(start=START):
    x = toy(start)
    return ReducedFunctional(rosenbrock(x), Control(x))


def bowl_problem(start=START):
    x = toy(start)
    return ReducedFunctional(bowl(x, TARGET), Control(x))


@pytest.mark.parametrize("method", ["L-BFGS-B", "BFGS", "Newton-CG", "trust-krylov", "trust-constr", "SLSQP"])
def test_a_curved_valley(method, tape):
    rf = problem()
    count = len(tape.get_blocks())
    best = minimize(rf, method, tol=1e-5 if method == "trust-krylov" else 1e-8)
    np.testing.assert_allclose(asnumpy(best), [1.0, 1.0], atol=1e-4)
    assert (type(best), best.engine, best.dtype) == (ndarray, "toy", np.float64)
    assert best.result.success
    assert best.result.fun == pytest.approx(0.0, abs=1e-8)
    assert len(tape.get_blocks()) == count
    assert annotate_tape()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_a_bowl(method):
    best = minimize(bowl_problem(), method)
    np.testing.assert_allclose(asnumpy(best), TARGET, atol=1e-3)


@pytest.mark.parametrize("method", ["L-BFGS-B", "SLSQP", "trust-constr", "TNC", "Nelder-Mead", "Powell"])
@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((0.0, 1.0), [1.0, 0.0]),
        ((None, 1.0), [1.0, -0.5]),
        ((np.array([-3.0, 0.25]), None), [2.0, 0.25]),
        ((np.array([0.0, -0.1]), np.array([0.5, 3.0])), [0.5, -0.1]),
    ],
    ids=["numbers", "one-sided", "array", "arrays"],
)
def test_bounds(method, bounds, expected):
    best = minimize(bowl_problem([0.3, 0.3]), method, bounds=bounds)
    np.testing.assert_allclose(asnumpy(best), expected, atol=5e-3)
    lower, upper = (side if side is not None else default for side, default in zip(bounds, (-9, 9), strict=True))
    assert np.all(asnumpy(best) >= lower - 1e-12)
    assert np.all(asnumpy(best) <= upper + 1e-12)


def test_bounds_per_control_of_different_shapes_and_adjfloat():
    x, s = toy([0.0, 0.0]), AdjFloat(0.2)
    J = bowl(x, TARGET) + overload_toy(lambda s: (s - 3.0) ** 2)(s)
    rf = ReducedFunctional(J, [Control(x), Control(s)])
    best = minimize(rf, bounds=([None, 0.0], [toy([1.0, 1.0]), 2.0]))
    np.testing.assert_allclose(asnumpy(best[0]), [1.0, -0.5], atol=1e-5)
    assert type(best[1]) is AdjFloat
    assert float(best[1]) == pytest.approx(2.0)
    assert best.result.fun == pytest.approx(2.0)


def test_an_adjfloat_alone():
    s = AdjFloat(0.3)
    best = minimize(ReducedFunctional((s - 2.0) ** 2, Control(s)), bounds=(0.0, 1.5))
    assert type(best) is AdjFloat
    assert float(best) == pytest.approx(1.5)


@pytest.mark.parametrize("method", ["L-BFGS-B", "Newton-CG", "trust-krylov"])
def test_complex_controls(method):
    target = np.array([1.0 - 2.0j, 0.5j])
    distance = overload_toy(lambda z: real(conj(z - target) * (z - target)).sum())
    z = toy([0.1 + 0.1j, 1.0 + 0j])
    best = minimize(ReducedFunctional(distance(z), Control(z)), method)
    assert best.dtype == np.complex128
    np.testing.assert_allclose(asnumpy(best), target, atol=1e-4)


def test_bounds_for_complex_controls_are_refused():
    z = toy([1j])
    rf = ReducedFunctional(overload_toy(lambda z: real(conj(z) * z).sum())(z), Control(z))
    with pytest.raises(ArgumentTypeError, match="complex"):
        minimize(rf, bounds=(0.0, 1.0))


def test_single_precision_controls_stay_so():
    x = toy(START, np.float32)
    best = minimize(ReducedFunctional(bowl(x, TARGET.astype(np.float32)), Control(x)), options={"ftol": 1e-6})
    assert best.dtype == np.float32
    np.testing.assert_allclose(asnumpy(best), TARGET, atol=1e-3)


def test_scale_changes_the_path_and_not_the_result():
    best = minimize(bowl_problem(), scale=1e-2, tol=1e-12)
    np.testing.assert_allclose(asnumpy(best), TARGET, atol=1e-4)
    assert best.result.fun == pytest.approx(0.0, abs=1e-6)
    assert best.result.history[0].value == pytest.approx(
        np.sum((asnumpy(best.result.history[0].controls) - TARGET) ** 2)
    )


def test_a_list_of_one_control_gives_a_list():
    x = toy(START)
    best = minimize(ReducedFunctional(bowl(x, TARGET), [Control(x)]))
    assert isinstance(best, list)
    np.testing.assert_allclose(asnumpy(best[0]), TARGET, atol=1e-4)
    assert best.result.success


def test_a_reduced_function_with_one_scalar_output_is_taken():
    x = toy(START)
    np.testing.assert_allclose(asnumpy(minimize(ReducedFunction(bowl(x, TARGET), Control(x)))), TARGET, atol=1e-4)


# Callbacks, history, failures ------------------------------------------------------------------------------------------


def test_history_and_callbacks():
    seen, others = [], []
    best = minimize(problem(), callback=seen.append, callbacks=[others.append])
    assert seen == others == best.result.history
    assert [i.number for i in seen] == list(range(1, len(seen) + 1))
    assert all(isinstance(i, Iteration) for i in seen)
    values = [i.value for i in seen]
    assert values == sorted(values, reverse=True)
    assert all(i.gradient_norm >= 0 and i.seconds >= 0 for i in seen)
    assert seen[-1].evaluations <= best.result.evaluations
    np.testing.assert_allclose(asnumpy(seen[-1].controls), asnumpy(best))


@pytest.mark.parametrize(
    "method", ["L-BFGS-B", "BFGS", "Newton-CG", "trust-krylov", "trust-constr", "SLSQP", "TNC", "COBYLA"]
)
def test_a_callback_stops(method):
    seen = []

    def stop_after_two(iteration):
        seen.append(iteration.value)
        return len(seen) == 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        best = minimize(problem(), method, callback=stop_after_two)
    assert len(seen) == 2
    assert best.result.fun <= min(seen)


def test_not_converging_warns_and_returns_the_best_iterate():
    with pytest.warns(NotConvergedWarning, match="did not converge"):
        best = minimize(problem(), options={"maxiter": 2})
    assert not best.result.success
    assert best.result.fun < float(problem()(toy(START)))
    assert float(problem()(best)) == pytest.approx(best.result.fun)


def test_an_exception_passes_through_and_leaves_the_function_usable():
    rf = problem()

    class Enough(Exception):
        pass

    def fail(iteration):
        raise Enough

    with pytest.raises(Enough):
        minimize(rf, callback=fail)
    assert annotate_tape()
    assert float(rf(toy(START))) == pytest.approx(10 * (1 - 1.44) ** 2 + 2.2**2)
    assert np.all(np.isfinite(asnumpy(rf.derivative())))
    np.testing.assert_allclose(asnumpy(minimize(rf)), [1.0, 1.0], atol=1e-3)


def test_the_tape_stands_at_the_minimiser():
    rf = bowl_problem()
    minimize(rf)
    np.testing.assert_allclose(asnumpy(rf.derivative()), 0.0, atol=1e-4)


def test_the_start_is_the_last_evaluation():
    rf = bowl_problem()
    rf(toy(TARGET))
    assert minimize(rf).result.evaluations <= 2


class Closing(Callback):
    closed = 0

    def __call__(self, iteration):
        return False

    def close(self):
        self.closed += 1


def test_callbacks_are_closed_once_also_after_an_exception():
    callback = Closing()
    minimize(bowl_problem(), callback=callback)
    assert callback.closed == 1
    failing = Closing()
    with pytest.raises(ZeroDivisionError):
        minimize(bowl_problem(), callbacks=[failing, lambda i: 1 / 0])
    assert failing.closed == 1


def test_the_combiner_calls_all_and_stops_if_one_asks():
    calls = []
    combined = CallbackCombiner([lambda i: calls.append("a"), lambda i: True, lambda i: calls.append("c")])
    assert combined(None) is True
    assert calls == ["a", "c"]
    assert CallbackCombiner([lambda i: None])(None) is False


def test_the_file_logger_writes_one_line_per_iteration(tmp_path):
    path = tmp_path / "log.csv"
    best = minimize(problem(), callback=FileLoggerCallback(path))
    lines = path.read_text().splitlines()
    assert lines[0] == "iteration,value,gradient_norm,evaluations,seconds"
    assert len(lines) == len(best.result.history) + 1
    first = lines[1].split(",")
    assert (int(first[0]), float(first[1])) == (1, best.result.history[0].value)
    assert list(tmp_path.iterdir()) == [path]


def test_no_progress_bar_where_nobody_looks(capsys):
    minimize(bowl_problem())
    assert capsys.readouterr() == ("", "")
    minimize(bowl_problem(), progress=True)
    assert "minimize" in capsys.readouterr().err


# Constraints and wrong arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["SLSQP", "trust-constr"])
@pytest.mark.parametrize("make", [ReducedFunctional, ReducedFunction])
def test_a_reduced_function_as_constraint(method, make):
    # The point of the line x + y = 0 next to (2, -0.5) is (1.25, -1.25).
    x = toy([0.1, 0.3])
    control = Control(x)
    rf = ReducedFunctional(bowl(x, TARGET), control)
    line = make(overload_toy(lambda x: x.sum())(x), control)
    best = minimize(rf, method, constraints={"type": "eq", "fun": line})
    np.testing.assert_allclose(asnumpy(best), [1.25, -1.25], atol=1e-3)


@pytest.mark.parametrize("method", ["trust-exact", "dogleg", "trust-constr"])
def test_matrices_of_second_derivatives_come_in_one_sweep(method, monkeypatch):
    """The minimum is at 1 + 1j and 2, where the constraint holds."""

    def square(w):
        return (w * w.conj()).real

    z, s = array(np.array(0.8 + 0.7j)), AdjFloat(1.7)
    controls = [Control(z), Control(s)]
    rf = ReducedFunctional(square(z - (1.0 + 1.0j)) + (s * s - 4.0) ** 2, controls)
    circle = ReducedFunctional(2.0 * square(z) - s * s, controls)

    def refuse(*args):
        raise AssertionError("one row at a time")

    monkeypatch.setattr(ReducedFunctional, "hess_action", refuse)
    if method == "trust-constr":
        best = minimize(rf, method, constraints={"type": "eq", "fun": circle})
    else:
        monkeypatch.setattr(ReducedFunctional, "hessian", refuse)
        best = minimize(rf, method)
    assert best[0].item() == pytest.approx(1.0 + 1.0j, abs=1e-3)
    assert float(best[1]) == pytest.approx(2.0, abs=1e-3)


def test_scipys_own_constraints():
    from scipy.optimize import LinearConstraint

    for constraint in (
        LinearConstraint([[1.0, 1.0]], 0.0, 0.0),
        {"type": "eq", "fun": lambda x: x[0] + x[1]},
    ):
        best = minimize(bowl_problem(), "SLSQP", constraints=[constraint])
        np.testing.assert_allclose(asnumpy(best), [1.25, -1.25], atol=1e-3)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((0.0, 1.0, 2.0), r"\(lower, upper\); got \(0.0, 1.0, 2.0\)"),
        ((np.zeros(3), None), r"bounds, lower\[0\].*\(2,\); got \(3,\)"),
        ((None, [0.0, 1.0, 2.0]), "bounds"),
    ],
)
def test_bounds_that_do_not_fit(bounds, message):
    with pytest.raises(ArgumentValueError, match=message):
        minimize(bowl_problem(), bounds=bounds)


def test_what_is_no_scalar_function_is_refused():
    x = toy(START)
    with pytest.raises(ArgumentTypeError, match="real scalar function"):
        minimize(ReducedFunction(overload_toy(lambda x: x * x)(x), Control(x)))
    with pytest.raises(ArgumentTypeError, match=r"takes a pyadjoint_utils.ReducedFunctional; got \w+.function"):
        minimize(lambda x: x)


# Pyadjoint's own -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("L-BFGS-B", {"bounds": (-3.0, 1.0)}),
        ("SLSQP", {"bounds": (-3.0, 1.0), "options": {"disp": False, "iprint": 0}}),
        ("TNC", {"bounds": (-3.0, 1.0), "options": {"disp": False}}),
        ("Newton-CG", {"options": {"disp": False}}),
        ("BFGS", {"options": {"disp": False}}),
    ],
)
def test_pyadjoints_minimize(method, options):
    best = pyadjoint.minimize(bowl_problem(), method=method, **options)
    expected = [1.0, -0.5] if "bounds" in options else TARGET
    assert isinstance(best, ndarray)
    np.testing.assert_allclose(asnumpy(best), expected, atol=1e-4)


def test_pyadjoints_numpy_functional():
    x, s = toy(START), AdjFloat(2.0)
    J = bowl(x, TARGET) * overload_toy(lambda s: s * s)(s)
    rf = ReducedFunctionalNumPy(ReducedFunctional(J, [Control(x), Control(s)]))
    point, h = np.array([0.3, 0.7, 3.0]), np.array([1.0, -2.0, 0.5])
    d = point[:2] - TARGET
    assert float(rf(point)) == pytest.approx(9 * d @ d)
    np.testing.assert_allclose(rf.derivative(), [*(18 * d), 6 * d @ d])
    expected = [*(18 * h[:2] + 12 * d * h[2]), 12 * d @ h[:2] + 2 * d @ d * h[2]]
    np.testing.assert_allclose(rf.hessian(h), expected)
    np.testing.assert_allclose(rf.get_controls(), point)
    rf.set_controls(h)
    np.testing.assert_allclose(rf.get_controls(), h)
