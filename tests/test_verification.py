"""The project's own checkers: right derivatives pass, wrong ones are caught."""

import logging

import numpy as np
import pyadjoint
import pytest
from toy_engine import asnumpy, overload_toy, sin, toy

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    ArgumentValueError,
    Control,
    ReducedFunction,
    ReducedFunctional,
    taylor,
    taylor_test,
    taylor_to_dict,
    to_adjfloat,
    verify,
)

A, P = np.array([0.5, -1.0]), np.array([1.5, 0.7])
H, V = np.array([0.4, -0.9]), np.array([-0.2, 0.7])
total = overload_toy(lambda x: x.sum())
quartic = overload_toy(lambda x: x**4)
wave = overload_toy(lambda x: sin(x * x))


def functional(dtype=None):
    x = toy(A, dtype)
    return ReducedFunctional(total(quartic(x)), Control(x))


def vector_function():
    x = toy(A)
    return ReducedFunction([wave(x), total(quartic(x))], Control(x))


GRADIENT, HESSIAN = 4 * P**3 @ H, 12 * P**2 @ H**2


def test_functional():
    rf = functional()
    assert taylor_test(rf, toy(P), toy(H)) == pytest.approx(2.0, abs=0.05)
    assert taylor_test(rf, toy(P), toy(H), dJdm=0.0) == pytest.approx(1.0, abs=0.05)
    assert taylor_test(rf, toy(P), toy(H), dJdm=GRADIENT, Hm=HESSIAN) == pytest.approx(3.0, abs=0.05)
    rf(toy(P))
    assert taylor_test(rf, toy(P), toy(H), Hm=toy(H)._ad_dot(rf.hessian(toy(H)))) > 2.9


@pytest.mark.parametrize(
    ("given", "key", "wrong_rate"),
    [
        ({"dJdm": 1.1 * GRADIENT}, "R1", 1.0),
        ({"Hm": 0.9 * HESSIAN}, "R2", 2.0),
        ({"Hm": 0.0}, "R2", 2.0),
    ],
)
def test_wrong_derivatives_that_are_given_are_caught(given, key, wrong_rate):
    rates = taylor_to_dict(functional(), toy(P), toy(H), **given)[key]["Rate"]
    assert max(rates) == pytest.approx(wrong_rate, abs=0.1)


def test_the_dictionary():
    result = taylor_to_dict(functional(), toy(P), toy(H))
    assert set(result) == {"eps", "R0", "R1", "R2"}
    for key, rate in (("R0", 1), ("R1", 2), ("R2", 3)):
        assert len(result[key]["Residual"]) == len(result["eps"])
        assert result[key]["Rate"] == pytest.approx([rate] * 3, abs=0.1)
    steps = taylor_to_dict(functional(), toy(P), toy(H), epsilons=[0.1, 0.05])
    assert steps["eps"] == [0.1, 0.05]
    exact = np.sum((P + 0.1 * H) ** 4) - np.sum(P**4) - 0.1 * GRADIENT
    assert steps["R1"]["Residual"][0] == pytest.approx(exact)


def test_a_vector_function_by_its_tangent():
    rf = vector_function()
    assert taylor_test(rf, toy(P), toy(H)) == pytest.approx(2.0, abs=0.05)
    rates = taylor_to_dict(rf, toy(P), toy(H))
    assert [round(min(rates[k]["Rate"])) for k in ("R0", "R1", "R2")] == [1, 2, 3]
    tangent = np.concatenate([np.cos(P**2) * 2 * P * H, [GRADIENT]])
    assert taylor_test(rf, toy(P), toy(H), dJdm=tangent) > 1.9
    assert taylor_test(rf, toy(P), toy(H), dJdm=1.1 * tangent) < 1.2


def test_a_vector_function_by_its_adjoint():
    rf = vector_function()
    v = [toy(V), toy(0.5)]
    assert taylor_test(rf, toy(P), toy(H), v=v) == pytest.approx(2.0, abs=0.05)
    rates = taylor_to_dict(rf, toy(P), toy(H), v=v)
    assert [round(min(rates[k]["Rate"])) for k in ("R0", "R1", "R2")] == [1, 2, 3]
    slope = (np.cos(P**2) * 2 * P * H) @ V + 0.5 * GRADIENT
    second = (2 * np.cos(P**2) - 4 * P**2 * np.sin(P**2)) * H**2 @ V + 0.5 * HESSIAN
    assert taylor_test(rf, toy(P), toy(H), dJdm=slope, Hm=second, v=v) > 2.9
    assert taylor_test(rf, toy(P), toy(H), dJdm=slope, Hm=1.1 * second, v=v) < 2.2
    assert taylor_test(rf, toy(P), toy(H), dJdm=-slope, v=v) < 1.2


def test_a_linear_function_has_an_infinite_rate(caplog):
    caplog.set_level(logging.INFO, "pyadjoint_utils")
    x = toy(A)
    rf = ReducedFunctional(total(x) * 3.0, Control(x))
    assert taylor_test(rf, toy(P), toy(H)) == np.inf
    assert taylor_to_dict(rf, toy(P), toy(H))["R2"]["Rate"] == [np.inf]
    assert "zero to rounding" in caplog.text
    assert verify(rf, toy(P)).passed
    assert taylor_test(rf, toy(P), toy(H), dJdm=1.1 * 3 * H.sum()) < 1.2


def test_single_precision_takes_larger_steps():
    rf = functional(np.float32)
    result = taylor_to_dict(rf, toy(P, np.float32), toy(H, np.float32))
    assert result["eps"][0] > 0.1
    assert min(result["R1"]["Rate"]) > 1.8
    assert min(result["R2"]["Rate"]) > 2.7
    assert taylor_test(rf, toy(P, np.float32), toy(H, np.float32), dJdm=1.2 * GRADIENT) < 1.3


def test_the_lowest_precision_on_the_path_decides():
    from toy_engine import astype

    x = toy(A)
    rf = ReducedFunctional(total(overload_toy(lambda x: astype(x, np.float32))(x)), Control(x))
    assert taylor.lowest_precision(rf) == np.finfo(np.float32).eps
    assert taylor.lowest_precision(functional()) == np.finfo(np.float64).eps


def test_adjfloat_and_pyadjoints_own_functional():
    s = AdjFloat(1.5)
    for make in (ReducedFunctional, pyadjoint.ReducedFunctional):
        rf = make(s**4, Control(s))
        assert taylor_test(rf, 2.0, 0.3) > 1.9
        rates = taylor_to_dict(rf, AdjFloat(2.0), AdjFloat(0.3))
        assert min(rates["R2"]["Rate"]) > 2.9
    x = toy(A)
    ours = ReducedFunctional(to_adjfloat(total(quartic(x))), Control(x))
    assert pyadjoint.taylor_test(ours, toy(P), toy(H)) > 1.9


def test_pyadjoints_taylor_to_dict_takes_our_functional():
    rates = pyadjoint.taylor_to_dict(functional(), toy(P), toy(H))
    assert min(rates["R0"]["Rate"]) > 0.9
    assert min(rates["R1"]["Rate"]) > 1.9
    assert min(rates["R2"]["Rate"]) > 2.9


def test_nothing_is_printed(capsys, caplog):
    with caplog.at_level(logging.DEBUG, "pyadjoint_utils"):
        taylor_test(functional(), toy(P), toy(H))
        taylor_to_dict(functional(), toy(P), toy(H), show=True)
        verify(functional(), toy(P))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert "Taylor residuals" in caplog.text
    assert [r.levelname for r in caplog.records if r.message.startswith("R0")] == ["INFO", "DEBUG"]


def test_the_tape_stands_at_the_point_afterwards():
    rf = functional()
    taylor_test(rf, toy(P), toy(H))
    np.testing.assert_allclose(asnumpy(rf.derivative()), 4 * P**3)
    taylor_to_dict(rf, toy(A), toy(H))
    np.testing.assert_allclose(asnumpy(rf.derivative()), 4 * A**3)


def test_the_users_point_and_direction_are_not_changed(tape):
    p, h = toy(P), toy(H)
    count = len(tape.get_blocks())
    rf = functional()
    verify(rf, p, h)
    taylor_to_dict(rf, p, h)
    assert asnumpy(p).tolist() == P.tolist()
    assert asnumpy(h).tolist() == H.tolist()
    assert len(tape.get_blocks()) == count + 2


def test_the_report_of_verify():
    report = verify(functional(), toy(P))
    assert report.passed
    assert report.rates[2] == pytest.approx(3.0, abs=0.1)
    assert report.adjoint_error < 1e-12
    assert report.symmetry_error < 1e-12
    text = str(report)
    assert text.count("pass") == 4
    assert "FAIL" not in text
    assert "<J h, v>" in text


def test_verify_is_repeatable_and_takes_directions():
    rf = vector_function()
    assert verify(rf, toy(P), seed=3).residuals == verify(rf, toy(P), seed=3).residuals
    assert verify(rf, toy(P), seed=3).residuals != verify(rf, toy(P), seed=4).residuals
    assert verify(rf, toy(P), h=toy(H), v=[toy(V), toy(1.0)]).passed


def test_the_report_can_be_plotted():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    ax = verify(functional(), toy(P)).plot()
    assert len(ax.lines) == 3
    matplotlib.pyplot.close(ax.figure)


@pytest.mark.parametrize("check", [taylor_test, taylor_to_dict])
def test_wrong_arguments(check):
    rf = vector_function()
    with pytest.raises(ArgumentValueError, match="h must have one entry for each of the 1 controls; got 2"):
        check(rf, toy(P), [toy(H), toy(H)])
    with pytest.raises(ArgumentValueError, match=r"m\[0\] must have the shape.*\(2,\).*\(3,\)"):
        check(rf, toy(np.ones(3)), toy(H))
    with pytest.raises(ArgumentValueError, match="v must have the shapes"):
        check(rf, toy(P), toy(H), v=toy(V))
    with pytest.raises(ArgumentValueError, match="at least two steps"):
        check(rf, toy(P), toy(H), epsilons=[0.1])
    with pytest.raises(ArgumentTypeError, match=r"h\[0\] must be real"):
        check(rf, toy(P), toy(H * 1j))


def test_verify_takes_our_reduced_functions_alone():
    with pytest.raises(ArgumentTypeError, match=r"verify takes.*function"):
        verify(lambda x: x, 1.0)


class Fault(Exception):
    """Raised by a callback in the middle of a verification."""


@pytest.mark.parametrize("allowed", [0, 3, 1000])
def test_a_verification_leaves_the_function_where_it_was(allowed):
    x, left = toy(A), [1000]

    def count(*args):
        left[0] -= 1
        if left[0] < 0:
            raise Fault

    rf = ReducedFunctional(total(quartic(x)), Control(x), eval_cb_pre=count)
    rf(toy(P))
    left[0] = allowed
    try:
        assert verify(rf, toy(A)).passed
    except Fault:
        assert allowed < 1000
    np.testing.assert_allclose(asnumpy(rf.derivative()), 4 * P**3)
