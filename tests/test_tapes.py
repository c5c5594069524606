"""The tape, the working tape, and what the project keeps beside it."""

import threading

import numpy as np
import pyadjoint
import pytest
from toy_engine import asnumpy, overload_toy, toy

from pyadjoint_utils import (
    Control,
    ReducedFunctional,
    StaleTapeError,
    Tape,
    annotate_tape,
    get_working_tape,
    pause_annotation,
    push_tape,
    set_working_tape,
    stop_annotating,
)

cube = overload_toy(lambda x: x * x * x)
total = overload_toy(lambda x: x.sum())


class Fault(Exception):
    pass


def test_push_tape_restores_also_after_an_exception(tape):
    with push_tape() as inner:
        assert get_working_tape() is inner
        assert isinstance(inner, Tape)
        cube(toy([1.0]))
    assert get_working_tape() is tape
    assert (len(inner.get_blocks()), len(tape.get_blocks())) == (1, 0)
    with pytest.raises(Fault), push_tape():
        raise Fault
    assert get_working_tape() is tape


def test_push_tape_nests_and_takes_a_tape(tape):
    mine = Tape()
    manager = push_tape(mine)
    with manager, manager, push_tape() as inner:
        assert get_working_tape() is inner is not mine
    assert get_working_tape() is tape


def test_set_working_tape_without_a_tape_makes_ours(tape):
    with set_working_tape() as other:
        assert isinstance(other, Tape)
        assert get_working_tape() is other
    assert get_working_tape() is tape
    set_working_tape(other)
    assert get_working_tape() is other


def test_set_working_tape_restores_after_an_exception(tape):
    with pytest.raises(Fault), set_working_tape():
        raise Fault
    assert get_working_tape() is tape


def test_without_a_working_tape_the_error_says_so(monkeypatch):
    x = toy([1.0])
    y = total(cube(x))
    monkeypatch.setattr(pyadjoint.tape, "_working_tape", None)
    with pytest.raises(StaleTapeError, match=r"set_working_tape\(Tape\(\)\)"):
        ReducedFunctional(y, Control(x))


def test_recording_without_a_working_tape_says_so(monkeypatch):
    x = toy([1.0])
    monkeypatch.setattr(pyadjoint.tape, "_working_tape", None)
    with pytest.raises(StaleTapeError, match=r"set_working_tape\(Tape\(\)\)"):
        cube(x)


def test_annotation_can_be_stopped(tape):
    x = toy([1.0])
    with stop_annotating():
        y = cube(x)
    assert len(tape.get_blocks()) == 0
    np.testing.assert_allclose(asnumpy(y), 1.0)
    pause_annotation()
    cube(x)
    assert len(tape.get_blocks()) == 0


@pytest.mark.parametrize("action", ["__call__", "derivative", "hessian", "tlm"])
def test_evaluating_leaves_the_annotation_flag(action):
    x = toy([2.0])
    rf = ReducedFunctional(total(cube(x)), Control(x))
    arguments = () if action == "derivative" else (toy([1.0]),)
    getattr(rf, action)(*arguments)
    assert annotate_tape()
    pause_annotation()
    getattr(rf, action)(*arguments)
    assert not annotate_tape()


def test_a_copied_tape_has_a_state_of_its_own(tape):
    x = toy([2.0])
    rf = ReducedFunctional(total(cube(x)), Control(x))
    rf(toy([3.0]))
    copy = tape.copy()
    other = ReducedFunctional(rf.functional, Control(x), tape=copy)
    rf(toy([4.0]))
    assert float(other(toy([5.0]))) == pytest.approx(125.0)
    np.testing.assert_allclose(asnumpy(rf.derivative()), [48.0])
    np.testing.assert_allclose(asnumpy(other.derivative()), [75.0])


def test_time_steps_without_a_schedule():
    with set_working_tape(Tape()) as tape:
        x = y = toy([1.5])
        for _ in tape.timestepper(range(3)):
            y = y * y
        rf = ReducedFunctional(total(y), Control(x))
    assert float(rf(toy([1.1]))) == pytest.approx(1.1**8)
    np.testing.assert_allclose(asnumpy(rf.derivative()), [8 * 1.1**7])


def test_a_progress_bar_of_pyadjoints_kind_is_used(tape):
    titles = []

    class Bar:
        def __init__(self, title, **kwargs):
            titles.append(title)

        def iter(self, sequence):
            return iter(sequence)

    x = toy([2.0])
    rf = ReducedFunctional(total(cube(x)), Control(x))
    tape.progress_bar = Bar
    rf(toy([1.0]))
    rf.derivative()
    assert titles == ["Evaluating functional", "Evaluating adjoint"]


def test_a_prepared_function_may_be_called_by_threads_without_annotation():
    f = overload_toy(lambda x: x * x * x)
    results = {}

    def work(k):
        results[k] = float(f(np.array(float(k))).numpy())

    with stop_annotating():
        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {k: float(k) ** 3 for k in range(4)}
