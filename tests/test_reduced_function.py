"""ReducedFunction and ReducedFunctional: shapes of arguments and results, callbacks, inputs, scale."""

import numpy as np
import pytest
from toy_engine import asnumpy, overload_toy, overload_twin, sin, toy

from pyadjoint_utils import AdjFloat, Control, ReducedFunction, ReducedFunctional, array, compute_gradient, ndarray

A, B = np.array([0.5, -1.0]), np.array([2.0, 0.25])
P, Q = np.array([1.5, 0.3]), np.array([-0.7, 1.1])
product = overload_toy(lambda a, b: a * a * b)
total = overload_toy(lambda x: x.sum())


def both():
    """Two outputs of two controls: a^2 b and sum(a)."""
    a, b = toy(A), toy(B)
    return [product(a, b), total(a)], [Control(a), Control(b)]


def test_lists_in_lists_out():
    outputs, controls = both()
    rf = ReducedFunction(outputs, controls)
    y, s = rf([toy(P), toy(Q)])
    np.testing.assert_allclose(asnumpy(y), P**2 * Q)
    assert float(s) == pytest.approx(P.sum())
    dy, ds = rf.jac_action([toy(A), toy(B)])
    np.testing.assert_allclose(asnumpy(dy), 2 * P * A * Q + P**2 * B)
    assert float(ds) == pytest.approx(A.sum())
    da, db = rf.adj_jac_action([toy(B), 3.0])
    np.testing.assert_allclose(asnumpy(da), 2 * P * Q * B + 3.0)
    np.testing.assert_allclose(asnumpy(db), P**2 * B)
    ha, hb = rf.hess_action([toy(A), toy(B)], [toy(B), 3.0])
    np.testing.assert_allclose(asnumpy(ha), (2 * Q * A + 2 * P * B) * B)
    np.testing.assert_allclose(asnumpy(hb), 2 * P * A * B)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", [ReducedFunction, ReducedFunctional])
def test_an_array_of_one_number_has_a_gradient_whatever_its_shape(kind, compiled, shape):
    x = array(np.full(shape, 2.0))
    y = x**3
    np.testing.assert_allclose(compute_gradient(y, Control(x)).numpy(), np.full(shape, 12.0))
    rf = kind(y, Control(x))
    rf = rf.compile() if compiled else rf
    value, derivative = rf.value_and_derivative(np.full(shape, 3.0))
    np.testing.assert_allclose(value.numpy(), np.full(shape, 27.0))
    for result in (derivative, rf.derivative()):
        np.testing.assert_allclose(result.numpy(), np.full(shape, 27.0))
    np.testing.assert_allclose(rf.hessian(np.full(shape, 0.5)).numpy(), np.full(shape, 9.0))
    np.testing.assert_allclose(rf.hess_matrix().numpy(), np.full(2 * shape, 18.0))


def test_seeds_may_be_left_out():
    outputs, controls = both()
    rf = ReducedFunction(outputs, controls)
    rf([toy(P), toy(Q)])
    da, db = rf.adj_jac_action([None, 2.0])
    np.testing.assert_allclose(asnumpy(da), [2.0, 2.0])
    np.testing.assert_allclose(asnumpy(db), [0.0, 0.0])
    np.testing.assert_allclose(asnumpy(rf.hess_action([toy(A), toy(B)], [None, 2.0])[0]), 0.0)


@pytest.mark.parametrize("listed_output", [True, False])
@pytest.mark.parametrize("listed_control", [True, False])
def test_what_was_given_unlisted_comes_back_unlisted(listed_output, listed_control):
    a = toy(A)
    y, c = product(a, a), Control(a)
    rf = ReducedFunction([y] if listed_output else y, [c] if listed_control else c)
    value = [toy(P)] if listed_control else toy(P)
    seed = [toy(B)] if listed_output else toy(B)
    for result in (rf(value), rf.jac_action(value)):
        assert isinstance(result, list) is listed_output
    for result in (rf.adj_jac_action(seed), rf.hess_action(value, seed)):
        assert isinstance(result, list) is listed_control


def test_values_of_any_engine_come_back_in_the_controls_own():
    a = toy(A, np.float32)
    rf = ReducedFunction(product(a, a), Control(a))
    for value in (P, toy(P), overload_twin(sin)(toy(P))):
        assert rf(value).engine == "toy"
        gradient = rf.adj_jac_action(B)
        assert (gradient.engine, gradient.dtype, gradient.shape) == ("toy", np.float32, (2,))


def test_derivative_hessian_and_tlm_are_pyadjoints_names():
    a = toy(A)
    rf = ReducedFunction(total(product(a, a)), Control(a))
    rf(toy(P))
    np.testing.assert_allclose(asnumpy(rf.derivative()), 3 * P**2)
    np.testing.assert_allclose(asnumpy(rf.derivative(2.0, apply_riesz=True)), 6 * P**2)
    np.testing.assert_allclose(asnumpy(rf.hessian(toy(B))), 6 * P * B)
    np.testing.assert_allclose(asnumpy(rf.hessian(toy(B), hessian_input=1.0)), 6 * P * B + 3 * P**2)
    assert float(rf.tlm(toy(B))) == pytest.approx(3 * P**2 @ B)
    value, gradient = rf.value_and_derivative(toy(Q))
    assert float(value) == pytest.approx(np.sum(Q**3))
    np.testing.assert_allclose(asnumpy(gradient), 3 * Q**2)


def test_the_functional_may_be_a_control():
    a = toy(A)
    rf = ReducedFunction(a, Control(a))
    np.testing.assert_allclose(asnumpy(rf(toy(P))), P)
    np.testing.assert_allclose(asnumpy(rf.jac_action(toy(B))), B)
    np.testing.assert_allclose(asnumpy(rf.adj_jac_action(toy(B))), B)
    np.testing.assert_allclose(asnumpy(rf.hess_action(toy(B), toy(B))), 0 * B)


def test_outputs_may_repeat_and_contain_a_control():
    a = toy(A)
    y = product(a, a)
    rf = ReducedFunction([y, a, y], Control(a))
    results = rf(toy(P))
    for result, expected in zip(results, (P**3, P, P**3), strict=True):
        np.testing.assert_allclose(asnumpy(result), expected)
    gradient = rf.adj_jac_action([toy(B), toy(B), toy(B)])
    np.testing.assert_allclose(asnumpy(gradient), (6 * P**2 + 1) * B)
    np.testing.assert_allclose(asnumpy(rf.jac_action(toy(B))[2]), 3 * P**2 * B)


# Callbacks -------------------------------------------------------------------------------------------------------------

CALLBACKS = [
    "eval_cb_pre",
    "eval_cb_post",
    "jac_action_cb_pre",
    "jac_action_cb_post",
    "adj_jac_action_cb_pre",
    "adj_jac_action_cb_post",
    "hess_action_cb_pre",
    "hess_action_cb_post",
]


def plain(value):
    return [plain(v) for v in value] if isinstance(value, list) else asnumpy(value).tolist()


def test_all_callbacks_with_their_arguments():
    calls = []
    watch = {name: lambda *args, name=name: calls.append((name, [plain(a) for a in args])) for name in CALLBACKS}
    a = toy([1.0])
    rf = ReducedFunction(product(a, a), Control(a), **watch)
    rf(toy([2.0]))
    rf.jac_action(toy([1.0]))
    rf.adj_jac_action(toy([3.0]))
    rf.hess_action(toy([1.0]), toy([1.0]))
    assert calls == [
        ("eval_cb_pre", [[2.0]]),
        ("eval_cb_post", [[8.0], [2.0]]),
        ("jac_action_cb_pre", [[2.0], [1.0]]),
        ("jac_action_cb_post", [[8.0], [12.0], [2.0]]),
        ("adj_jac_action_cb_pre", [[2.0]]),
        ("adj_jac_action_cb_post", [[8.0], [36.0], [2.0]]),
        ("hess_action_cb_pre", [[2.0]]),
        ("hess_action_cb_post", [[8.0], [12.0], [2.0]]),
    ]


def test_callbacks_see_this_functions_point_although_another_one_moved_the_tape():
    seen = []
    a = toy([1.0])
    y = product(a, a)
    rf = ReducedFunction(y, Control(a), adj_jac_action_cb_post=lambda *args: seen.append([plain(v) for v in args]))
    other = ReducedFunction(y, Control(a))
    rf(toy([2.0]))
    other(toy([5.0]))
    rf.adj_jac_action(toy([1.0]))
    assert seen == [[[8.0], [12.0], [2.0]]]


def test_callbacks_of_a_reduced_functional():
    calls = []

    def keep(name):
        def callback(*args):
            calls.append(name)
            return {
                "derivative_cb_pre": args[0],
                "derivative_cb_post": args[1] if len(args) > 1 else None,
            }.get(name)

        return callback

    names = ["eval_cb_pre", "eval_cb_post", "derivative_cb_pre", "derivative_cb_post"]
    names += ["hessian_cb_pre", "hessian_cb_post", "tlm_cb_pre", "tlm_cb_post"]
    a = toy(A)
    rf = ReducedFunctional(total(product(a, a)), Control(a), **{name: keep(name) for name in names})
    rf(toy(P))
    rf.derivative()
    rf.hessian(toy(B))
    rf.tlm(toy(B))
    assert calls == names


def test_derivative_components_leave_the_others_zero():
    outputs, controls = both()
    rf = ReducedFunctional(total(outputs[0]), controls, derivative_components=(1,))
    rf([toy(P), toy(Q)])
    da, db = rf.derivative()
    np.testing.assert_allclose(asnumpy(da), 0 * P)
    np.testing.assert_allclose(asnumpy(db), P**2)


# Inputs and scale ------------------------------------------------------------------------------------------------------


def test_inputs_change_without_being_differentiated():
    a, b = toy(A), toy(B)
    rf = ReducedFunction(product(a, b), Control(a), inputs=b)
    np.testing.assert_allclose(asnumpy(rf(toy(P))), P**2 * B)
    np.testing.assert_allclose(asnumpy(rf(toy(P), inputs=toy(Q))), P**2 * Q)
    np.testing.assert_allclose(asnumpy(rf.adj_jac_action(toy(A))), 2 * P * Q * A)
    np.testing.assert_allclose(asnumpy(rf(toy(A))), A**2 * Q)
    assert np.allclose(asnumpy(rf.jac_action(toy(P))), 2 * A * P * Q)


def test_an_intermediate_value_as_input_is_cut_off():
    a, b = toy(A), toy(B)
    c = product(b, b)
    rf = ReducedFunctional(total(product(a, c)), Control(a), inputs=[c])
    np.testing.assert_allclose(float(rf(toy(P), inputs=[toy(Q)])), np.sum(P**2 * Q))
    np.testing.assert_allclose(asnumpy(rf.derivative()), 2 * P * Q)


@pytest.mark.parametrize("scale", [1.0, -2.5])
def test_scale_multiplies_values_and_derivatives(scale):
    a = toy(A)
    rf = ReducedFunctional(total(product(a, a)), Control(a), scale=scale)
    assert float(rf(toy(P))) == pytest.approx(scale * np.sum(P**3))
    np.testing.assert_allclose(asnumpy(rf.derivative()), scale * 3 * P**2)
    np.testing.assert_allclose(asnumpy(rf.hessian(toy(B))), scale * 6 * P * B)
    assert float(rf.tlm(toy(B))) == pytest.approx(scale * 3 * P**2 @ B)
    assert float(rf.jac_action(toy(B))) == pytest.approx(scale * 3 * P**2 @ B)
    np.testing.assert_allclose(asnumpy(rf.adj_jac_action(2.0)), scale * 6 * P**2)
    np.testing.assert_allclose(asnumpy(rf.hess_action(toy(B), 2.0)), scale * 12 * P * B)


def test_scale_overwrites_nothing_on_the_tape():
    a = toy(A)
    y = product(a, a)
    rf = ReducedFunctional(y, Control(a), scale=10.0)
    for _ in range(2):
        np.testing.assert_allclose(asnumpy(rf(toy(P))), 10 * P**3)
    np.testing.assert_allclose(asnumpy(y.block_variable.saved_output), P**3)
    np.testing.assert_allclose(asnumpy(y), A**3)


def test_an_independent_control_is_exactly_zero_and_said(caplog):
    a, b = toy(A), toy(B)
    rf = ReducedFunctional(total(product(a, a)), [Control(a), Control(b)])
    rf([toy(P), toy(Q)])
    gradient = rf.derivative()[1]
    assert asnumpy(gradient).tolist() == [0.0, 0.0]
    assert (gradient.engine, gradient.dtype) == ("toy", np.float64)
    assert "controls[1]" in caplog.text
    assert asnumpy(rf.hessian([toy(A), toy(B)])[1]).tolist() == [0.0, 0.0]


def test_a_functional_that_depends_on_no_control_has_zero_derivatives():
    a, b = toy(A), toy(B)
    for rf in (ReducedFunctional(total(a), Control(b)), ReducedFunction(total(a), Control(b))):
        assert float(rf(toy(Q))) == pytest.approx(A.sum())
        assert float(rf.tlm(toy(Q))) == 0.0
        assert asnumpy(rf.derivative()).tolist() == [0.0, 0.0]
        assert asnumpy(rf.hessian(toy(Q))).tolist() == [0.0, 0.0]


def test_adjfloat_controls_take_numbers_and_one_element_arrays():
    s = AdjFloat(2.0)
    rf = ReducedFunctional(s**3, Control(s))
    for value in (3.0, 3, AdjFloat(3.0), np.float64(3.0), np.array(3.0), toy(3.0)):
        assert float(rf(value)) == pytest.approx(27.0)
        assert float(rf.derivative()) == pytest.approx(27.0)


def test_results_are_not_on_the_tape(tape):
    a = toy(A)
    rf = ReducedFunction(product(a, a), Control(a))
    count = len(tape.get_blocks())
    results = [rf(toy(P)), rf.jac_action(toy(P)), rf.adj_jac_action(toy(P)), rf.hess_action(toy(P), toy(P))]
    assert len(tape.get_blocks()) == count
    assert all(isinstance(r, ndarray) for r in results)


@pytest.mark.parametrize("change", ["_ad_iadd", "_ad_imul"])
def test_rebinding_a_recorded_value_changes_nothing_that_was_recorded(change):
    a, b = toy(A), toy(B)
    rf = ReducedFunction(product(a, b), Control(a))
    getattr(b, change)(toy(Q))
    getattr(a, change)(toy(Q))
    np.testing.assert_allclose(asnumpy(rf.adj_jac_action(toy(P))), 2 * A * B * P)
    np.testing.assert_allclose(asnumpy(rf(toy(P))), P**2 * B)
    np.testing.assert_allclose(asnumpy(rf.jac_action(toy(A))), 2 * P * B * A)
