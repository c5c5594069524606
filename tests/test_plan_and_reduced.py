"""Which Blocks run, at which point a derivative is taken, and what a tape remembers: where Pyadjoint goes wrong."""

import numpy as np
import pyadjoint
import pytest
from checkpoint_schedules import Revolve
from toy_engine import ToyArray, asnumpy, engine, overload_toy, sin, toy

from pyadjoint_utils import (
    AdjFloat,
    Block,
    Control,
    ReducedFunction,
    ReducedFunctional,
    StaleTapeError,
    annotate_tape,
    array,
    asarray,
    get_working_tape,
    set_working_tape,
    verify,
)

A, B = np.array([0.5, -1.0]), np.array([2.0, 0.25])
P, Q = np.array([1.5, 0.3]), np.array([-0.7, 1.1])
cube = overload_toy(lambda x: x * x * x)
product = overload_toy(lambda a, b: a * a * b)
total = overload_toy(lambda x: x.sum())


class Fault(Exception):
    """Raised by a function in the middle of an evaluation."""


# Whose point -----------------------------------------------------------------------------------------------------------


def test_two_reduced_functions_of_one_tape_do_not_disturb_each_other():
    a, b = toy(A), toy(B)
    y = product(a, b)
    of_a, of_b = ReducedFunction(y, Control(a)), ReducedFunction(total(y), Control(b))
    np.testing.assert_allclose(asnumpy(of_a(toy(P))), P**2 * B)
    np.testing.assert_allclose(asnumpy(of_b(toy(Q))), A**2 @ Q)
    np.testing.assert_allclose(asnumpy(of_a.adj_jac_action(toy(A))), 2 * P * B * A)
    np.testing.assert_allclose(asnumpy(of_b.derivative()), A**2)
    np.testing.assert_allclose(asnumpy(of_a.jac_action(toy(Q))), 2 * P * B * Q)
    np.testing.assert_allclose(asnumpy(of_a.hess_action(toy(Q), toy(A))), 2 * Q * B * A)
    np.testing.assert_allclose(asnumpy(of_b(toy(P))), A**2 @ P)


def test_two_reduced_functionals_of_one_control_keep_their_points():
    a = toy(A)
    one, two = ReducedFunctional(total(cube(a)), Control(a)), ReducedFunctional(total(cube(a)), Control(a))
    one(toy(P))
    two(toy(Q))
    for _ in range(2):
        np.testing.assert_allclose(asnumpy(one.derivative()), 3 * P**2)
        np.testing.assert_allclose(asnumpy(two.hessian(toy(A))), 6 * Q * A)
        np.testing.assert_allclose(asnumpy(one.hessian(toy(A))), 6 * P * A)
        np.testing.assert_allclose(asnumpy(two.derivative()), 3 * Q**2)


def test_a_derivative_before_any_evaluation_is_at_the_recorded_point():
    a = toy(A)
    rf = ReducedFunctional(total(cube(a)), Control(a))
    np.testing.assert_allclose(asnumpy(rf.derivative()), 3 * A**2)
    other = ReducedFunctional(total(cube(a)), Control(a))
    other(toy(Q))
    np.testing.assert_allclose(asnumpy(rf.derivative()), 3 * A**2)


def test_a_reduced_function_made_after_another_moved_the_tape_starts_at_the_current_point():
    a = toy(A)
    y = total(cube(a))
    ReducedFunctional(y, Control(a))(toy(P))
    late = ReducedFunctional(y, Control(a))
    np.testing.assert_allclose(asnumpy(late.derivative()), 3 * P**2)


def test_a_hessian_at_a_new_point_needs_no_derivative_first():
    a = toy(A)
    rf = ReducedFunctional(total(cube(cube(a))), Control(a))
    rf.derivative()
    rf(toy(P))
    np.testing.assert_allclose(asnumpy(rf.hessian(toy(B))), 72 * P**7 * B)


def test_derivatives_can_be_asked_for_again():
    a = toy(A)
    rf = ReducedFunctional(total(cube(a)), Control(a))
    rf(toy(P))
    for _ in range(3):
        np.testing.assert_allclose(asnumpy(rf.derivative()), 3 * P**2)
        np.testing.assert_allclose(asnumpy(rf.hessian(toy(B))), 6 * P * B)
        assert float(rf.tlm(toy(B))) == pytest.approx(3 * P**2 @ B)


def test_an_update_of_another_variable_is_honoured():
    a, b = toy(A), toy(B)
    rf = ReducedFunctional(total(product(a, b)), Control(a))
    rf(toy(P))
    Control(b).update(toy(Q))
    assert float(rf(toy(P))) == pytest.approx(P**2 @ Q)
    np.testing.assert_allclose(asnumpy(rf.derivative()), 2 * P * Q)


def test_an_update_of_the_control_moves_a_function_that_was_not_evaluated():
    a = toy(A)
    rf = ReducedFunctional(total(cube(cube(a))), Control(a))
    Control(a).update(toy(P))
    np.testing.assert_allclose(asnumpy(rf.derivative()), 9 * P**8)
    np.testing.assert_allclose(asnumpy(rf.hessian(toy(B))), 72 * P**7 * B)


USES = {
    "nothing": lambda rf, other: None,
    "a derivative": lambda rf, other: rf.derivative(),
    "another function": lambda rf, other: (other(toy(Q)), rf.derivative()),
    "verify": lambda rf, other: verify(rf, toy(Q)),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("schedule", [None, Revolve(1, 1)])
def test_what_happens_before_an_update_does_not_pin_a_function_that_was_not_evaluated(schedule, compiled, use):
    with set_working_tape() as tape:
        if schedule is not None:
            tape.enable_checkpointing(schedule)
        a, b = toy(A), toy(B)
        y = cube(a)
        J = total(product(y, b))
        rf, other = ReducedFunctional(J, Control(a)), ReducedFunctional(J, Control(y))
        rf = rf.compile() if compiled else rf
        use(rf, other)
        Control(a).update(toy(P))
        Control(b).update(toy(Q))
        np.testing.assert_allclose(asnumpy(rf.derivative()), 6 * P**5 * Q)


def test_an_update_does_not_move_the_derivative_of_an_earlier_evaluation():
    a, b = toy(A), toy(B)
    rf = ReducedFunctional(total(product(a, b)) * total(cube(cube(b))), Control(a))
    rf(toy(P))
    Control(b).update(toy(Q))
    np.testing.assert_allclose(asnumpy(rf.derivative()), 2 * P * B * np.sum(B**9))
    rf(toy(P))
    np.testing.assert_allclose(asnumpy(rf.derivative()), 2 * P * Q * np.sum(Q**9))


def test_an_update_reaches_the_functions_that_are_made_later():
    a, b = toy(A), toy(B)
    c = cube(b)
    y = total(product(a, c))
    Control(b).update(toy(Q))
    rf = ReducedFunctional(y, Control(a))
    np.testing.assert_allclose(asnumpy(rf.derivative()), 2 * A * Q**3)
    assert float(rf(toy(P))) == pytest.approx(P**2 @ Q**3)


def test_pyadjoint_may_move_the_tape_in_between():
    a = toy(A)
    y = total(cube(a))
    ours, theirs = ReducedFunctional(y, Control(a)), pyadjoint.ReducedFunctional(y, Control(a))
    ours(toy(P))
    assert float(theirs(toy(Q))) == pytest.approx(np.sum(Q**3))
    np.testing.assert_allclose(asnumpy(ours.derivative()), 3 * P**2)
    assert float(theirs(toy(A))) == pytest.approx(np.sum(A**3))
    np.testing.assert_allclose(asnumpy(theirs.derivative()), 3 * A**2)
    np.testing.assert_allclose(asnumpy(ours.hessian(toy(B))), 6 * P * B)


def test_blocks_recorded_after_an_evaluation_are_no_part_of_it_and_harm_nothing():
    a = toy(A)
    y = cube(a)
    rf = ReducedFunctional(total(y), Control(a))
    rf(toy(P))
    z = total(cube(y))
    np.testing.assert_allclose(asnumpy(rf.derivative()), 3 * P**2)
    later = ReducedFunctional(z, Control(a))
    assert float(later(toy(Q))) == pytest.approx(np.sum(Q**9))
    np.testing.assert_allclose(asnumpy(later.derivative()), 9 * Q**8)
    assert float(rf(toy(B))) == pytest.approx(np.sum(B**3))


# Which Blocks ----------------------------------------------------------------------------------------------------------


def test_blocks_unrelated_to_the_controls_are_not_run_again():
    calls = []
    counted = overload_toy(lambda x: (calls.append(1), x * x)[1], jit=False)
    a, b = toy(A), toy(B)
    unrelated = counted(b)
    counted(a)  # depends on the control, but the output does not need it
    rf = ReducedFunctional(total(product(a, unrelated)), Control(a))
    calls.clear()
    assert float(rf(toy(P))) == pytest.approx(P**2 @ B**2)
    rf.derivative()
    assert not calls


def test_a_control_that_is_computed_from_another_control_is_cut_off():
    # y = u * v with v = u^2 given as a control of its own: dy/du = v, not 3 u^2.
    s = AdjFloat(2.0)
    v = s * s
    for rf in (
        ReducedFunctional(s * v, [Control(s), Control(v)]),
        ReducedFunction(s * v, [Control(s), Control(v)]),
    ):
        assert float(rf([3.0, 3.0])) == pytest.approx(9.0)
        assert [float(d) for d in rf.derivative()] == pytest.approx([3.0, 3.0])
        assert float(rf.tlm([1.0, 0.0])) == pytest.approx(3.0)
        assert [float(d) for d in rf.hessian([1.0, 0.0])] == pytest.approx([0.0, 1.0])
    a = toy(A)
    w = cube(a)
    rf = ReducedFunctional(total(product(a, w)), [Control(a), Control(w)])
    rf([toy(P), toy(Q)])
    for result, expected in zip(rf.derivative(), (2 * P * Q, P**2), strict=True):
        np.testing.assert_allclose(asnumpy(result), expected)
    for result, expected in zip(rf.hessian([toy(A), toy(B)]), (2 * (A * Q + P * B), 2 * P * A), strict=True):
        np.testing.assert_allclose(asnumpy(result), expected)


def test_a_block_one_of_whose_outputs_is_a_control_still_computes_the_others():
    pair = overload_toy(lambda x: (x * x, sin(x)))
    a = toy(A)
    one, two = pair(a)
    rf = ReducedFunctional(total(product(one, two)), [Control(a), Control(one)])
    assert float(rf([toy(P), toy(Q)])) == pytest.approx(Q**2 @ np.sin(P))
    da, done = rf.derivative()
    np.testing.assert_allclose(asnumpy(da), Q**2 * np.cos(P))
    np.testing.assert_allclose(asnumpy(done), 2 * Q * np.sin(P))


def test_a_control_between_others_hides_what_computed_it():
    a = toy(A)
    middle = cube(a)
    rf = ReducedFunctional(total(cube(middle)), Control(middle))
    rf(toy(P))
    np.testing.assert_allclose(asnumpy(rf.derivative()), 3 * P**2)
    whole = ReducedFunctional(total(cube(middle)), Control(a))
    np.testing.assert_allclose(asnumpy(whole.derivative()), 9 * A**8)


# Exceptions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Fault, KeyboardInterrupt])
def test_an_exception_in_an_evaluation_leaves_the_last_point(kind):
    fail = []

    def careful(x):
        if fail:
            raise kind
        return x * x

    a = toy(A)
    control = Control(a)
    rf = ReducedFunctional(total(product(cube(a), overload_toy(careful, jit=False)(a))), control)
    rf(toy(P))
    fail.append(1)
    with pytest.raises(kind):
        rf(toy(Q))
    fail.clear()
    assert annotate_tape()
    np.testing.assert_allclose(asnumpy(control.tape_value()), P)
    np.testing.assert_allclose(asnumpy(rf.derivative()), 8 * P**7)
    np.testing.assert_allclose(asnumpy(rf.hessian(toy(B))), 56 * P**6 * B)
    assert float(rf(toy(Q))) == pytest.approx(np.sum(Q**8))


def test_an_exception_in_a_derivative_leaves_nothing_behind(monkeypatch):
    a = toy(A)
    rf = ReducedFunctional(total(cube(cube(a))), Control(a))
    rf(toy(P))
    with monkeypatch.context() as patch:
        patch.setattr(type(engine), "add", lambda *args: 1 / 0)
        patch.setattr(type(get_working_tape().get_blocks()[0]), "evaluate_adj", lambda *args, **kw: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rf.derivative()
    np.testing.assert_allclose(asnumpy(rf.derivative()), 9 * P**8)
    assert not any(bv.is_control_dependent for b in get_working_tape().get_blocks() for bv in b.get_outputs())


# Aliases and mutation --------------------------------------------------------------------------------------------------


class PassOn(Block):
    """y = x, which returns its own adjoint input, as Blocks of other packages do."""

    def __init__(self, x):
        super().__init__()
        self.add_dependency(x)

    def recompute_component(self, inputs, block_variable, idx, prepared):
        return inputs[0]

    def evaluate_adj_component(self, inputs, adj_inputs, block_variable, idx, prepared=None):
        return adj_inputs[0]


def pass_on(x):
    y = x._ad_copy()
    block = PassOn(x)
    get_working_tape().add_block(block)
    block.add_output(y.create_block_variable())
    return y


@pytest.mark.parametrize("make", [toy, array])
def test_adjoints_that_alias_each_other_are_not_added_in_place(make):
    # z = pass_on(w) + w^3, whose adjoint of w starts with the very seed.
    w = make(A)
    rf = ReducedFunction([pass_on(w), cube(w), pass_on(w)], Control(w))
    rf(make(P))
    seeds = [np.ones(2), np.ones(2), np.ones(2)]
    for _ in range(2):
        np.testing.assert_allclose(asnumpy(rf.adj_jac_action([asarray(s) for s in seeds])), 2 + 3 * P**2)
    assert [s.tolist() for s in seeds] == [[1.0, 1.0]] * 3


def test_mutating_a_users_buffer_changes_nothing_that_was_recorded():
    buffer, constant = A.copy(), B.copy()
    x = array(buffer)
    y = product(x, constant)
    rf = ReducedFunctional(total(y), Control(x))
    buffer[:] = 100.0
    constant[:] = 100.0
    np.testing.assert_allclose(asnumpy(rf.derivative()), 2 * A * B)
    point = P.copy()
    assert float(rf(array(point))) == pytest.approx(P**2 @ B)
    point[:] = 100.0
    np.testing.assert_allclose(asnumpy(rf.derivative()), 2 * P * B)


def test_mutating_the_bare_buffer_given_as_a_point_changes_nothing():
    x = array(A)
    rf = ReducedFunctional(total(cube(x)), Control(x))
    point = P.copy()
    rf(point)
    point[:] = 100.0
    np.testing.assert_allclose(asnumpy(rf.derivative()), 3 * P**2)
    np.testing.assert_allclose(asnumpy(rf.hessian(B)), 6 * P * B)


def test_results_do_not_alias_the_tape():
    x = array(A)
    rf = ReducedFunction(x, Control(x))
    result = rf(array(P))
    result._ad_imul(0.0)
    np.testing.assert_allclose(asnumpy(rf(array(P))), P)
    gradient = rf.adj_jac_action(array(Q))
    gradient._ad_iadd(gradient)
    np.testing.assert_allclose(asnumpy(rf.adj_jac_action(array(Q))), Q)


# Other tapes -----------------------------------------------------------------------------------------------------------


def test_a_plain_pyadjoint_tape_works_as_well():
    with set_working_tape(pyadjoint.Tape()) as tape:
        assert type(tape) is pyadjoint.Tape
        a, s = toy(A), AdjFloat(2.0)
        rf = ReducedFunctional(total(product(a, a)) * 1.0, Control(a))
        other = ReducedFunctional(total(product(a, overload_toy(lambda s: s)(s))), [Control(a), Control(s)])
    rf(toy(P))
    other([toy(Q), 3.0])
    np.testing.assert_allclose(asnumpy(rf.derivative()), 3 * P**2)
    np.testing.assert_allclose(asnumpy(rf.hessian(toy(B))), 6 * P * B)
    da, ds = other.derivative()
    np.testing.assert_allclose(asnumpy(da), 6 * Q)
    assert float(ds) == pytest.approx(Q @ Q)


def test_the_functions_own_tape_is_used_whatever_the_working_one_is():
    a = toy(A)
    rf = ReducedFunctional(total(cube(a)), Control(a))
    with set_working_tape() as other:
        rf(toy(P))
        np.testing.assert_allclose(asnumpy(rf.derivative()), 3 * P**2)
        assert len(other.get_blocks()) == 0


def test_an_update_on_another_working_tape_reaches_the_variables_own(tape):
    a, b = toy(A), toy(B)
    rf, other = ReducedFunctional(total(product(a, b)), Control(a)), Control(b)
    with set_working_tape():
        other.update(toy(Q))
    assert float(rf(toy(P))) == pytest.approx(P**2 @ Q)


@pytest.mark.parametrize("use", [lambda rf: rf.derivative(), lambda rf: rf(toy(P)), lambda rf: rf.hessian(toy(P))])
def test_a_function_whose_tape_was_cleared_before_its_first_use(use):
    a = toy(A)
    rf = ReducedFunctional(total(cube(a)), Control(a))
    get_working_tape().clear_tape()
    with pytest.raises(StaleTapeError, match="the tape was cleared since"):
        use(rf)
    b = toy(B)
    ReducedFunctional(total(cube(b)), Control(b)).derivative()
    with pytest.raises(StaleTapeError, match="the tape was cleared since"):
        use(rf)


def test_a_cleared_tape_forgets():
    a = toy(A)
    rf = ReducedFunctional(total(cube(a)), Control(a))
    rf(toy(P))
    get_working_tape().clear_tape()
    x = toy(Q)
    fresh = ReducedFunctional(total(cube(x)), Control(x))
    np.testing.assert_allclose(asnumpy(fresh.derivative()), 3 * Q**2)
    assert type(x.block_variable.checkpoint) is ToyArray
