"""What is varied: other values for it, copies of it, and its way to other processes."""

import copy
import pickle

import numpy as np
import pytest
from engines import NAMES, namespace
from toy_engine import asnumpy, overload_toy, toy

from pyadjoint_utils import (
    AdjFloat,
    Control,
    ReducedFunctional,
    StaleTapeError,
    Tape,
    array,
    get_working_tape,
    set_working_tape,
)
from pyadjoint_utils.variable import Variable

cube = overload_toy(lambda x: x * x * x)
product = overload_toy(lambda x, y: x * y)
total = overload_toy(lambda x: x.sum())


def sent(value):
    return pickle.loads(pickle.dumps(value))  # noqa: S301 what this test has written itself


def test_a_copy_stands_for_the_same_variable(tape):
    x = toy([2.0])
    control = Control(x, riesz_map="l2")
    again = copy.copy(control)
    assert type(again) is Control
    assert again is not control
    assert (again.control, again.block_variable, again.riesz_map) == (x, control.block_variable, "l2")
    rf = ReducedFunctional(total(cube(x)), again)
    rf(toy([3.0]))
    np.testing.assert_allclose(asnumpy(rf.derivative()), [27.0])
    with set_working_tape():
        again.update(toy([5.0]))
    np.testing.assert_allclose(float(ReducedFunctional(total(x), Control(x), tape=tape).functional), 2.0)


@pytest.mark.parametrize("away", [sent, copy.deepcopy], ids=["pickle", "deepcopy"])
@pytest.mark.parametrize("name", NAMES)
def test_the_data_travel_and_the_tape_stays(name, away, tape):
    e = namespace(name)
    x = array(e.own(np.array([1.0, 2.0], np.float32)))
    control = Control(x, riesz_map="l2")
    y = (x * x).sum()
    control.update(array([3.0, 4.0], np.float32))
    blocks = len(tape.get_blocks())
    other = away(control)
    assert type(other) is Control
    assert (other.control.engine, other.control.dtype, other.riesz_map) == (e.holds, np.float32, "l2")
    np.testing.assert_array_equal(other.tape_value().numpy(), [3.0, 4.0])
    assert other.block_variable is not control.block_variable
    control.update(array([0.0, 0.0], np.float32))
    np.testing.assert_array_equal(other.control.numpy(), [3.0, 4.0])
    assert len(tape.get_blocks()) == blocks
    with set_working_tape():  # as good as new
        z = other.control
        rf = ReducedFunctional((z**3).sum(), other)
        np.testing.assert_array_equal(rf.derivative().numpy(), [27.0, 48.0])
    assert float(ReducedFunctional(y, control).derivative().numpy()[0]) == 0.0


def test_numbers_travel_too():
    a = AdjFloat(2.0)
    control = Control(a)
    _ = a * a
    control.update(3.0)
    other = sent(control)
    assert type(other.control) is AdjFloat
    assert float(other.tape_value()) == 3.0
    b = other.control
    assert float(ReducedFunctional(b * b, other).derivative()) == 6.0


def test_an_array_travels_alone():
    x = array([1.0, 2.0])
    y = x * x
    assert copy.copy(y) is copy.deepcopy(y) is y  # it is immutable, and stays on the tape
    again = sent(y)
    assert again._block_variable() is None
    np.testing.assert_array_equal(again.numpy(), [1.0, 4.0])


def test_what_a_control_does_not_have_is_looked_for_in_its_value():
    control = Control(toy([1.0, 2.0]))
    assert control.shape == (2,)
    with pytest.raises(AttributeError, match="nothing"):
        _ = control.nothing
    with pytest.raises(AttributeError):
        _ = Control.__new__(Control).shape


# Update ----------------------------------------------------------------------------------------------------------------


def test_an_update_is_seen_on_every_tape_that_is_known_to_the_control(tape):
    a, b = toy([2.0]), toy([3.0])
    control = Control(b)  # made on one tape, and recorded on another one
    with set_working_tape() as other:
        rf = ReducedFunctional(total(product(a, b)), Control(a))
        control.update(toy([10.0]))
        assert float(rf(toy([1.0]))) == 10.0
    with pytest.raises(StaleTapeError, match="recorded on another tape"):
        control.update(toy([20.0]))
    assert float(rf(toy([1.0]))) == 10.0
    here = ReducedFunctional(total(product(a, cube(b))), Control(a))
    with set_working_tape(other):
        control.update(toy([2.0]))
    assert float(rf(toy([1.0]))) == 2.0
    assert float(here(toy([1.0]))) == 8.0
    np.testing.assert_allclose(asnumpy(here.derivative()), [8.0])


@pytest.mark.parametrize("number", [False, True])
@pytest.mark.parametrize("evaluated", [False, True])
def test_an_update_that_a_tape_did_not_notice_is_an_error_there(number, evaluated, tape):
    def value(a):
        return AdjFloat(a) if number else toy([a])

    def functional(a, b):
        return a * b if number else total(product(a, b))

    a, b = value(2.0), value(3.0)
    here = ReducedFunctional(functional(a, b), Control(a))
    control = Control(b)
    with set_working_tape() as second:
        there = ReducedFunctional(functional(a, b), Control(a))
        of_both = ReducedFunctional(functional(a, b), [Control(a), Control(b)])
    if evaluated:
        there(value(5.0))
    with set_working_tape():
        control.update(value(10.0))
    assert float(here(value(1.0))) == 10.0
    for action in (there.derivative, lambda: there(value(1.0)), lambda: there.hessian(value(1.0))):
        with pytest.raises(StaleTapeError, match=r"Control\.update.*with set_working_tape\(tape\)"):
            action()
    assert float(of_both([value(1.0), value(4.0)])) == 4.0
    with set_working_tape(second):
        control.update(value(20.0))
    for rf in (here, there):
        assert float(rf(value(1.0))) == 20.0
        assert float(rf.derivative() if number else asnumpy(rf.derivative())[0]) == 20.0
    with set_working_tape():
        control.update(value(30.0))
    assert float(here(value(1.0))) == 30.0
    with pytest.raises(StaleTapeError, match=r"Control\.update"):
        there(value(1.0))


def test_values_are_looked_at_again_only_after_an_update(tape, monkeypatch):
    a, b, c = toy([2.0]), toy([3.0]), toy([4.0])
    rf = ReducedFunctional(total(product(product(a, b), c)), Control(a))
    looked = []
    rf(toy([1.0]))
    monkeypatch.setattr(Variable, "updated", property(lambda bv: looked.append(bv)))
    for _ in range(3):
        rf(toy([1.0]))
        rf.derivative()
    assert not looked
    monkeypatch.undo()
    Control(b).update(toy([10.0]))
    assert float(rf(toy([1.0]))) == 40.0


def test_an_update_before_anything_is_recorded():
    a, b = toy([2.0]), toy([3.0])
    Control(b).update(toy([10.0]))
    rf = ReducedFunctional(total(product(a, b)), Control(a))
    assert float(rf(toy([1.0]))) == 10.0


def test_an_update_without_a_tape_says_so():
    with set_working_tape(Tape()) as tape:
        a = toy([2.0])
        y = cube(a)
    with set_working_tape():
        control = Control(y)
        with pytest.raises(StaleTapeError, match="set_working_tape"):
            control.update(toy([1.0]))
    assert get_working_tape() is not tape
    np.testing.assert_allclose(asnumpy(y), [8.0])
