"""Bars: one for each sweep, with a title, for every kind of bar class."""

import checkpoint_schedules as cs
import numpy as np
import pytest
from toy_engine import overload_toy, toy

from pyadjoint_utils import Control, ReducedFunctional, Tape, set_working_tape

STEPS = 6
step = overload_toy(lambda y: y - 0.1 * y * y)
total = overload_toy(lambda y: y.sum())
SEEN = []


class Iterating:
    """Pyadjoint's protocol without a schedule: ``cls(title).iter(items)``."""

    def __init__(self, title, **kwargs):
        self.row = [title, None, 0]
        SEEN.append(self.row)

    def iter(self, items):
        self.row[1] = len(items)
        for item in items:
            yield item
            self.row[2] += 1


class Stepping:
    """Pyadjoint's protocol under a schedule: ``with cls(title, max=n) as bar: bar.next()``."""

    def __init__(self, title, max):
        self.row = [title, max, 0]
        SEEN.append(self.row)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def next(self):
        self.row[2] += 1


def recorded(tape, schedule):
    if schedule is not None:
        tape.enable_checkpointing(schedule)
    x = y = toy(np.array([0.5, 1.0]))
    for _ in tape.timestepper(range(STEPS)):
        y = step(y)
    return ReducedFunctional(total(y), Control(x)), x


@pytest.mark.parametrize("schedule", [lambda: None, lambda: cs.Revolve(STEPS, 2)])
@pytest.mark.parametrize("bar", [Iterating, Stepping])
def test_each_sweep_has_one_bar_that_comes_to_its_end(bar, schedule):
    SEEN.clear()
    with set_working_tape(Tape()) as tape:
        tape.progress_bar = bar
        rf, x = recorded(tape, schedule())
    rf(x)
    rf.derivative()
    rf.tlm(x)
    rf.hessian(x)
    titles = ["Taping forward", "Evaluating functional", "Evaluating adjoint"]
    titles += ["Evaluating TLM", "Evaluating TLM", "Evaluating Hessian"]
    assert [row[0] for row in SEEN] == titles
    assert [row[1] for row in SEEN] == [STEPS] + [STEPS + 1] * 5
    assert all(total == passed for _, total, passed in SEEN)


def test_true_is_tqdm(capsys):
    with set_working_tape(Tape()) as tape:
        tape.progress_bar = True
        rf, x = recorded(tape, cs.Revolve(STEPS, 2))
        rf(x)
        rf.derivative()
    shown = capsys.readouterr().err
    for title, count in (("Taping forward", 6), ("Evaluating functional", 7), ("Evaluating adjoint", 7)):
        assert f"{title}: 100%" in shown
        assert f"{count}/{count} [" in shown
    tape.progress_bar = None
    rf(x)
    assert not capsys.readouterr().err


def test_tqdms_bar_counts_where_it_is_stepped(capsys):
    with set_working_tape(Tape()) as tape:
        tape.progress_bar = True
        with tape.progress_bar("Working", max=3) as bar:
            for _ in range(3):
                bar.next()
    assert "Working: 100%" in capsys.readouterr().err


def test_a_loop_of_unknown_length_has_a_bar(capsys):
    with set_working_tape(Tape()) as tape:
        tape.progress_bar = True
        assert list(tape.timestepper(k for k in range(3))) == [0, 1, 2]
    assert "Taping forward: 3it" in capsys.readouterr().err
