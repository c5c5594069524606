"""Derivatives under recompute schedules: those of the same program without one, at any point and in any order."""

import functools
import itertools

import checkpoint_schedules as cs
import engines
import numpy as np
import pyadjoint
import pytest
from checkpoint_schedules import mixed, multistage
from schedule_table import SCHEDULES, planned
from toy_engine import asnumpy, overload_toy, overload_twin, toy

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    Block,
    Control,
    ReducedFunction,
    ReducedFunctional,
    ScheduleError,
    StaleTapeError,
    Tape,
    UnsupportedError,
    array,
    compute_gradient,
    get_working_tape,
    set_working_tape,
    to_adjfloat,
    to_numpy,
    verify,
)
from pyadjoint_utils.tapes import schedule_of

STEPS = 10
A, B = np.array([0.5, -1.0]), np.array([1.2, 0.7])
P, Q, D = np.array([0.7, 0.2]), np.array([-0.3, 0.9]), np.array([1.0, -0.5])
step = overload_toy(lambda y, p: y - 0.1 * y * y * p)
total = overload_toy(lambda y: (y * y).sum())


class Fault(Exception):
    """Raised by a function in the middle of a sweep."""


class Counted(Block):
    """y = x - x^3/10 for an AdjFloat, as another package would write it; counts what it is asked for."""

    def __init__(self, x):
        super().__init__()
        self.add_dependency(x)

    calls = 0
    fail_at = None

    def recompute_component(self, inputs, block_variable, idx, prepared):
        type(self).calls += 1
        if self.calls == self.fail_at:
            raise Fault
        return AdjFloat(inputs[0] - inputs[0] ** 3 / 10)

    def evaluate_adj_component(self, inputs, adj_inputs, block_variable, idx, prepared=None):
        return (1 - 0.3 * inputs[0] ** 2) * adj_inputs[0]

    def evaluate_tlm_component(self, inputs, tlm_inputs, block_variable, idx, prepared=None):
        return (1 - 0.3 * inputs[0] ** 2) * tlm_inputs[0]

    def evaluate_hessian_component(
        self, inputs, hessian_inputs, adj_inputs, block_variable, idx, relevant_dependencies, prepared=None
    ):
        (dep,) = self.get_dependencies()
        own = (1 - 0.3 * inputs[0] ** 2) * hessian_inputs[0]
        return own if dep.tlm_value is None else own - 0.6 * inputs[0] * dep.tlm_value * adj_inputs[0]


def counted(x):
    y = AdjFloat(float(x) - float(x) ** 3 / 10)
    block = Counted(x)
    get_working_tape().add_block(block)
    block.add_output(y.block_variable)
    return y


@pytest.fixture(autouse=True)
def _uncounted():
    Counted.calls, Counted.fail_at = 0, None


# Programs: each returns (outputs, controls, points, directions) ----------------------------------------------------------


def arrays(tape, steps):
    """A state, a parameter and a number; a value before the loop, and one that is used long after its step."""
    x, p, a = toy(A), toy(B), AdjFloat(0.3)
    y, b, early = step(x, p), a * a, None
    for n in tape.timestepper(range(steps)):
        z = step(y, p)
        y = step(z, p) if n % 2 else z * 1.01
        b = b * a + 1.0
        if n == 3:
            early = y
    J = total(y) + total(early) * b
    points = [[toy(P), toy(Q), 0.9], [toy(Q), toy(P), -0.4]]
    return J, [Control(x), Control(p), Control(a)], points, [toy(D), toy(A), 0.7]


def floats(tape, steps):
    x, c = AdjFloat(0.8), AdjFloat(0.1)
    y = x * 1.0
    for _ in tape.timestepper(iter(range(steps))):
        y = y - c * y * y + 0.01 * np.sin(y)
    return y * y, [Control(x), Control(c)], [[0.5, 0.2], [1.4, -0.3]], [1.0, -2.0]


def another_package(tape, steps):
    x = AdjFloat(0.8)
    y = x
    for _ in tape.timestepper(k for k in range(steps)):
        y = counted(y)
    return y, Control(x), [0.5, 1.4], -2.0


def loop_by_hand(tape, steps):
    x, p = toy(A), toy(B)
    y = x
    for _ in range(steps):
        y = step(step(y, p), p)
        tape.end_timestep()
    return total(y), [Control(x), Control(p)], [[toy(P), toy(Q)], [toy(Q), toy(P)]], [toy(D), toy(A)]


def control_inside(tape, steps):
    """One control is a value of the loop, another one is computed in a Block together with a value that goes on."""
    pair = overload_twin(lambda y: (y * 0.9, y * y))
    x = toy(A)
    y, inside, square = x, None, None
    for n in tape.timestepper(range(steps)):
        y, square = pair(y)
        y = y + 0.1 * square
        if n == 2:
            inside = y
        if n == 6:
            other = square
    J = total(y) + total(square * other)
    return J, [Control(x), Control(inside), Control(other)], [[toy(P), toy(Q), toy(D)]], [toy(D), toy(A), toy(P)]


@functools.cache
def moved(engine):
    e = engines.namespace(engine)
    return e, e.overload(lambda y, s: y + 0.1 * e.sin(y) * s)


def conversions(tape, steps, engine):
    """Blocks of one engine, of NumPy and of Pyadjoint's floats, with conversions between them in each step."""
    e, move = moved(engine)
    x, s = array(e.own(A)), AdjFloat(0.5)
    y = x
    for _ in tape.timestepper(range(steps)):
        y = move(y, s)
        w = to_numpy(y)
        s = to_adjfloat((w * w).sum()) * 0.2 + 0.1
        y = move(w, s)
    return to_adjfloat((y * y).sum()) * s, [Control(x)], [[array(e.own(P))], [array(e.own(Q))]], [array(e.own(D))]


PROGRAMS = {f.__name__: f for f in (arrays, floats, another_package, loop_by_hand, control_inside)}


def recorded(program, schedule, steps=STEPS, **options):
    with set_working_tape(Tape()) as tape:
        if schedule is not None:
            tape.enable_checkpointing(schedule)
        J, controls, points, direction = program(tape, steps, **options)
        return ReducedFunctional(J, controls), points, direction


def numbers(result):
    values = result if isinstance(result, list) else [result]
    return [asnumpy(v) if hasattr(v, "numpy") else float(v) for v in values]


def everything(rf, points, direction):
    """Values and derivatives where the program ran and elsewhere, some of them twice, in several orders."""
    derivative, tangent, hessian = rf.derivative, lambda: rf.tlm(direction), lambda: rf.hessian(direction)
    actions = [derivative, derivative, hessian, tangent, derivative, hessian]
    found = [action() for action in actions]
    for order in ([derivative, tangent, hessian], [hessian, hessian], [tangent, derivative, derivative]):
        for point in points:
            found.append(rf(point))
            found += [action() for action in order]
    return list(itertools.chain.from_iterable(map(numbers, found)))


@functools.cache
def reference(program, steps=STEPS, **options):
    return everything(*recorded(program, None, steps, **options))


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_all_derivatives_are_those_without_a_schedule(name, program):
    expected, found = reference(program), everything(*recorded(program, SCHEDULES[name](STEPS)))
    for value, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("engine", engines.NAMES)
@pytest.mark.parametrize("name", ["Multistage", "Mixed", "SingleDisk"])
def test_all_derivatives_of_blocks_of_all_engines(name, engine):
    if not engines.installed(engine):
        pytest.skip(f"{engine} is not installed")
    expected = reference(conversions, 5, engine=engine)
    found = everything(*recorded(conversions, SCHEDULES[name](5), 5, engine=engine))
    for value, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-10, atol=1e-12)


# How much is computed again ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "SingleMemory"])
def test_an_execution_evaluates_as_many_steps_as_the_schedule_says(name):
    rf, (point, _), direction = recorded(another_package, SCHEDULES[name](STEPS))
    again = not name.startswith(("SingleDisk", "TwoLevel")) or "moved" in name
    plan = planned(name, STEPS)

    def evaluated(*actions):
        Counted.calls = 0
        for action in actions:
            action()
        return Counted.calls

    # The program itself was the evaluation.
    assert evaluated(rf.derivative) == plan - STEPS
    assert evaluated(rf.derivative) == (plan if again else plan - STEPS)
    assert evaluated(lambda: rf(point)) == STEPS
    assert evaluated(rf.derivative) == plan - STEPS
    assert evaluated(lambda: rf.tlm(direction)) == STEPS
    assert evaluated(rf.derivative) == plan - STEPS  # the tangent was an evaluation, too
    assert evaluated(lambda: rf.hessian(direction)) == plan
    assert evaluated(lambda: rf(point), lambda: rf(point), rf.derivative) == plan + STEPS


@pytest.mark.parametrize(("steps", "snapshots"), [(10, 3), (30, 4), (25, 1), (7, 10)])
def test_the_number_of_evaluated_steps_is_the_optimum(steps, snapshots):
    for schedule, optimum in (
        (cs.MultistageCheckpointSchedule(steps, snapshots, 0), multistage.optimal_steps_binomial(steps, snapshots)),
        (cs.MixedCheckpointSchedule(steps, snapshots), mixed.optimal_steps_mixed(steps, snapshots)),
        (cs.Revolve(steps, snapshots), multistage.optimal_steps_binomial(steps, snapshots)),
    ):
        rf, (point, _), _ = recorded(another_package, schedule, steps)
        Counted.calls = 0
        rf.value_and_derivative(point)
        assert Counted.calls <= optimum


def test_what_is_before_the_loop_is_evaluated_once():
    with set_working_tape(Tape()) as tape:
        tape.enable_checkpointing(cs.Revolve(6, 1))
        x = AdjFloat(0.8)
        y = counted(counted(x))
        for _ in tape.timestepper(range(6)):
            y = y - 0.1 * y * y
        rf = ReducedFunctional(y, Control(x))
    Counted.calls = 0
    _, slope = rf.value_and_derivative(0.5)
    assert Counted.calls == 2
    assert float(slope) == pytest.approx((float(rf(0.5 + 1e-6)) - float(rf(0.5 - 1e-6))) / 2e-6, rel=1e-7)


def test_values_that_do_not_depend_on_the_controls_are_there_in_every_step():
    """A forcing that Blocks compute from a clock: nothing of it depends on the control, and it is not stored."""

    def program(tape, steps):
        x, clock = toy(A), toy([0.0, 0.1])
        y = x
        for _ in tape.timestepper(range(steps)):
            clock = clock + 0.1
            y = step(y, clock * clock)
        return total(y), [Control(x)], [[toy(P)], [toy(Q)]], [toy(D)]

    for name in ("Multistage", "Mixed", "SingleDisk"):
        found = everything(*recorded(program, SCHEDULES[name](STEPS)))
        np.testing.assert_allclose(
            np.concatenate([np.ravel(v) for v in found]),
            np.concatenate([np.ravel(v) for v in everything(*recorded(program, None))]),
            rtol=1e-10,
        )


# Several functions of one tape, and other ways to the derivatives ---------------------------------------------------------


def test_functions_of_one_tape_take_turns():
    def program(tape, steps):
        x, p = toy(A), toy(B)
        y = x
        for _ in tape.timestepper(range(steps)):
            y = step(y, p)
        return [total(y), y], [Control(x), Control(p)]

    def turns(schedule):
        with set_working_tape(Tape()) as tape:
            if schedule is not None:
                tape.enable_checkpointing(schedule)
            (J, y), (x, p) = program(tape, STEPS)
            of_x, of_p, both = ReducedFunctional(J, x), ReducedFunctional(J, p), ReducedFunction(y, [x, p])
        found = [of_p.derivative(), of_x(toy(P)), both.jac_action([toy(D), toy(D)]), of_x.derivative()]
        found += [of_p(toy(Q)), *both([toy(Q), toy(P)]), of_x.derivative(), of_p.hessian(toy(D)), of_p.derivative()]
        found += both.adj_jac_action(toy(D)) + both.hess_action([toy(A), toy(B)], toy(D))
        p.update(toy(P))
        found += [of_x.derivative(), of_x(toy(Q)), of_x.derivative(), of_x.hessian(toy(D))]
        return [asnumpy(v) for v in found]

    expected = turns(None)
    for name in ("Multistage", "Mixed", "TwoLevel", "SingleDisk"):
        for value, other in zip(turns(SCHEDULES[name](STEPS)), expected, strict=True):
            np.testing.assert_allclose(value, other, rtol=1e-10)


def test_matrices_and_operators():
    def matrices(schedule):
        rf, (point, other), _ = recorded(conversions, schedule, engine="autograd")
        found = [rf._function.jac_matrix()]
        rf(point)
        found += [rf._function.jac_matrix(), *rf.derivative(), *itertools.chain(*rf._function.hess_matrix())]
        rf._function(other)
        operator = rf._function.linear_operator()
        found += [operator @ np.arange(2.0), operator.T @ np.ones(1), operator @ np.eye(2)]
        return [np.asarray(v if isinstance(v, np.ndarray) else asnumpy(v)) for v in _flat(found)]

    for value, other in zip(matrices(cs.Revolve(STEPS, 2)), matrices(None), strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-10, atol=1e-12)


def _flat(values):
    return itertools.chain.from_iterable(_flat(v) if isinstance(v, list) else [v] for v in values)


def test_verify_passes_under_a_schedule():
    rf, (point, _), _ = recorded(arrays, cs.Revolve(STEPS, 2))
    report = verify(rf, point)
    assert report.passed, str(report)


def test_values_recorded_after_an_evaluation_may_depend_on_any_step():
    with set_working_tape(Tape()) as tape:
        tape.enable_checkpointing(cs.Revolve(STEPS, 2))
        x, p = toy(A), toy(B)
        y = x
        kept = []
        for _ in tape.timestepper(range(STEPS)):
            y = step(y, p)
            kept.append(y)
        rf = ReducedFunctional(total(y), Control(x))
        rf(toy(P))
        late = ReducedFunctional(total(kept[3]) + total(y), Control(x))
    with set_working_tape(Tape()):
        z = x2 = toy(A)
        states = [z := step(z, p) for _ in range(STEPS)]
        expected = ReducedFunctional(total(states[3]) + total(z), Control(x2))
    np.testing.assert_allclose(asnumpy(late.derivative()), asnumpy((expected(toy(P)), expected.derivative())[1]))
    np.testing.assert_allclose(float(late(toy(Q))), float(expected(toy(Q))))
    np.testing.assert_allclose(asnumpy(late.derivative()), asnumpy(expected.derivative()))


# After an exception ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Multistage", "Mixed", "SingleDisk", "TwoLevel"])
@pytest.mark.parametrize("at", [1, 6, 10, 13])
def test_after_an_exception_the_next_derivative_is_right(name, at):
    rf, (point, other), direction = recorded(another_package, SCHEDULES[name](STEPS))
    slopes = [float((rf(value), rf.derivative())[1]) for value in (point, other)]
    for action, moved in (
        (lambda: rf.value_and_derivative(other), at > STEPS),  # then the evaluation went well
        (rf.derivative, False),
        (lambda: rf.hessian(direction), False),
    ):
        rf(point)
        Counted.calls, Counted.fail_at = 0, at
        try:
            action()
        except Fault:
            Counted.fail_at = None
            assert float(rf.derivative()) == pytest.approx(slopes[moved], rel=1e-12)
        Counted.fail_at = None
        rf(point)
        assert float(rf.derivative()) == pytest.approx(slopes[0], rel=1e-12)


# Bad input ---------------------------------------------------------------------------------------------------------------


def run_loop(tape, count, limit=None):
    x = y = toy(A)
    for n in tape.timestepper(range(count)):
        y = step(y, toy(B))
        if n == limit:
            break
    return total(y), Control(x)


def test_a_schedule_shorter_than_the_loop(tape):
    tape.enable_checkpointing(cs.Revolve(5, 2))
    with pytest.raises(ScheduleError, match=r"Revolve, is for 5 time steps.*goes on to step 5.*TwoLevel"):
        run_loop(tape, 8)


def test_a_schedule_longer_than_the_loop(tape):
    tape.enable_checkpointing(cs.MultistageCheckpointSchedule(9, 2, 0))
    rf = ReducedFunctional(*run_loop(tape, 6))
    for action in (rf.derivative, lambda: rf(toy(P))):
        with pytest.raises(
            ScheduleError, match=r"is for 9 time steps.*has 6: the last step recorded is 5.*timestepper"
        ):
            action()


def test_no_loop_at_all(tape):
    tape.enable_checkpointing(cs.Revolve(5, 2))
    x = toy(A)
    with pytest.raises(ScheduleError, match=r"is for 5 time steps, and the tape has 1"):
        ReducedFunctional(total(x), Control(x)).derivative()


def test_checkpointing_enabled_after_the_first_block(tape):
    y = step(toy(A), toy(B))
    with pytest.raises(ScheduleError, match=r"before the first Block; this tape has 1 .*clear_tape"):
        tape.enable_checkpointing(cs.Revolve(5, 2))
    tape.clear_tape()
    tape.enable_checkpointing(cs.Revolve(5, 2))
    assert asnumpy(y).shape == (2,)


@pytest.mark.parametrize("schedule", [lambda: cs.Revolve(8, 2), lambda: cs.TwoLevelCheckpointSchedule(3, 2)])
def test_a_loop_left_early(tape, schedule):
    tape.enable_checkpointing(schedule())
    J, control = run_loop(tape, 8, limit=4)
    rf = ReducedFunctional(J, control)
    with pytest.raises(ScheduleError, match=r"left in step 4, .*clear_tape"):
        rf.derivative()
    with pytest.raises(ScheduleError, match=r"left in step 4, .*clear_tape"):
        run_loop(tape, 8)
    tape.clear_tape()
    tape.enable_checkpointing(schedule())
    rf = ReducedFunctional(*run_loop(tape, 8))
    assert asnumpy(rf.derivative()).shape == (2,)


def test_a_loop_in_a_loop(tape):
    tape.enable_checkpointing(cs.Revolve(8, 2))

    def nested():
        for n in tape.timestepper(range(4)):
            y = step(toy(A), toy(B))
            for _ in tape.timestepper(range(2)) if n else ():
                y = step(y, toy(B))

    with pytest.raises(ScheduleError, match=r"another one is in step 1, .*do not nest: let the outer one alone"):
        nested()


@pytest.mark.parametrize(("planned", "fits"), [(8, False), (7, True)])
def test_a_loop_after_a_loop_goes_on_in_its_last_step(tape, planned, fits):
    tape.enable_checkpointing(cs.Revolve(planned, 2))
    x = y = toy(A)
    for _loop in range(2):
        for _ in tape.timestepper(range(4)):
            y = step(y, x)
    rf = ReducedFunctional(total(y), Control(x))
    if fits:
        with set_working_tape():
            x = y = toy(A)
            for _ in range(8):
                y = step(y, x)
            expected = ReducedFunctional(total(y), Control(x)).derivative()
        np.testing.assert_allclose(asnumpy(rf.derivative()), asnumpy(expected))
    else:
        with pytest.raises(ScheduleError, match=r"the tape has 7: .*Of 2 loops, each but the first went on in"):
            rf.derivative()


def test_a_loop_left_by_an_exception(tape):
    tape.enable_checkpointing(cs.TwoLevelCheckpointSchedule(3, 2))
    x = toy(A)
    states = [x]

    def failing():
        for n in tape.timestepper(range(8)):
            states.append(step(states[-1], x))
            if n == 5:
                raise Fault

    with pytest.raises(Fault):
        failing()
    with pytest.raises(ScheduleError, match="left in step 5"):
        ReducedFunctional(total(states[-1]), Control(x)).derivative()


def test_a_loop_after_the_evaluation(tape):
    tape.enable_checkpointing(cs.TwoLevelCheckpointSchedule(3, 2))
    ReducedFunctional(*run_loop(tape, 4)).derivative()
    with pytest.raises(ScheduleError, match="was evaluated"):
        run_loop(tape, 4)


def test_a_schedule_without_derivatives():
    rf, (point, other), direction = recorded(arrays, cs.NoneCheckpointSchedule())
    plain, _, _ = recorded(arrays, None)
    for _ in range(2):
        with pytest.raises(ScheduleError, match=r"NoneCheckpointSchedule.*the last step, 9, .*Revolve"):
            rf.derivative()
    for values in (point, other):
        assert float(rf(values)) == pytest.approx(float(plain(values)), rel=1e-12)
        assert float(rf.tlm(direction)) == pytest.approx(float(plain.tlm(direction)), rel=1e-12)
    with pytest.raises(ScheduleError, match="stores nothing for derivatives"):
        rf.hessian(direction)


def test_what_is_no_schedule_or_was_started():
    tape = Tape()
    for wrong in (None, 10, cs.Revolve):
        with pytest.raises(ArgumentTypeError, match=r"Revolve\(steps, snapshots\)"):
            tape.enable_checkpointing(wrong)
    started = cs.Revolve(5, 2)
    next(started)
    with pytest.raises(ScheduleError, match="started before"):
        tape.enable_checkpointing(started)
    with pytest.raises(ArgumentTypeError, match="gc_timestep_frequency"):
        tape.enable_checkpointing(cs.Revolve(5, 2), gc_timestep_frequency="often")
    assert tape._checkpoint_manager is None


def test_one_schedule_serves_several_tapes_and_garbage_is_collected(monkeypatch):
    schedule, collected = cs.Revolve(STEPS, 2), []
    monkeypatch.setattr("gc.collect", lambda generation: collected.append(generation))
    for _ in range(2):
        with set_working_tape(Tape()) as tape:
            tape.enable_checkpointing(schedule, gc_timestep_frequency=3, gc_generation=1)
            rf = ReducedFunctional(*run_loop(tape, STEPS))
            rf(toy(P))
    assert set(collected) == {1}
    assert len(collected) >= 2 * 4


def test_values_that_were_let_go_say_so(tape):
    tape.enable_checkpointing(cs.Revolve(STEPS, 2))
    x = y = toy(A)
    s = r = AdjFloat(2.0)
    for n in tape.timestepper(range(STEPS)):
        y, s = step(y, x), s * r
        if n == 4:
            variables = [y.block_variable, s.block_variable]
    rf = ReducedFunctional(total(y) * s, Control(x))
    rf(toy(P))
    for bv in variables:
        with pytest.raises(StaleTapeError, match=r"time step 4 computed.*Make it an output"):
            _ = bv.saved_output
    assert str(variables[0]) == "float64[2] (toy)"


def test_pyadjoints_own_functional_and_tape_are_refused():
    rf, (point, _), _ = recorded(floats, cs.Revolve(STEPS, 2))
    theirs = pyadjoint.ReducedFunctional(rf.functional, list(rf.controls), tape=rf.tape)
    with pytest.raises(UnsupportedError, match="from pyadjoint_utils"):
        theirs([AdjFloat(v) for v in point])
    with pytest.raises(UnsupportedError, match="from pyadjoint_utils"):
        theirs.derivative()
    with set_working_tape(pyadjoint.Tape()) as plain:
        plain.enable_checkpointing(cs.Revolve(3, 1))
        y = x = toy(A)
        for _ in plain.timestepper(iter(range(3))):
            y = step(y, x)
        with pytest.raises(UnsupportedError, match=r"set_working_tape\(pyadjoint_utils\.Tape\(\)\)"):
            ReducedFunctional(total(y), Control(x))(toy(P))
        with pytest.raises(StaleTapeError, match="not on the tape now"):
            pyadjoint.ReducedFunctional(total(y), pyadjoint.Control(x), tape=plain)(toy(P))


def test_a_derivative_is_not_recorded_under_a_schedule(tape):
    tape.enable_checkpointing(cs.Revolve(6, 2))
    J, control = run_loop(tape, 6)
    with pytest.raises(UnsupportedError, match="without a schedule"):
        compute_gradient(J, control, record=True)
    assert asnumpy(compute_gradient(J, control)).shape == (2,)


# Copies ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [lambda: None, lambda: cs.Revolve(6, 2), cs.SingleDiskStorageSchedule])
def test_a_copy_shares_values_and_schedule(schedule):
    """Two functions of other controls, on a tape and on its copy, which was made before anything moved."""

    def recorded():
        tape = Tape()
        with set_working_tape(tape):
            if schedule() is not None:
                tape.enable_checkpointing(schedule())
            x, p = toy(A), toy(B)
            y = x
            for _ in tape.timestepper(range(6)):
                y = step(y, p)
            return tape, total(y), Control(x), Control(p)

    def slope(control, x, p):
        tape, J, *controls = recorded()
        rf = ReducedFunctional(J, controls, tape=tape)
        return asnumpy((rf([toy(x), toy(p)]), rf.derivative())[1][control])

    tape, J, x, p = recorded()
    if schedule() is not None:
        with pytest.raises(ScheduleError, match=r"program is over.*before tape\.copy"):
            tape.copy()
        ReducedFunctional(J, x, tape=tape).derivative()
    other = tape.copy()
    assert type(other) is Tape
    assert schedule_of(other) is schedule_of(tape)
    assert list(other.get_blocks()) == list(tape.get_blocks())
    assert len(other.get_blocks().steps) == len(tape.get_blocks().steps)
    of_x, of_p = ReducedFunctional(J, x, tape=tape), ReducedFunctional(J, p, tape=other)
    of_x(toy(P))
    np.testing.assert_allclose(asnumpy(of_p.derivative()), slope(1, A, B))
    of_p(toy(Q))
    np.testing.assert_allclose(asnumpy(of_x.derivative()), slope(0, P, B))
    np.testing.assert_allclose(asnumpy(of_p.derivative()), slope(1, A, Q))
    with set_working_tape(other):
        more = ReducedFunctional(J * J, x)
    assert len(other.get_blocks()) == len(tape.get_blocks()) + 1
    more(toy(P))
    J_at_p = float(of_x(toy(P)))
    np.testing.assert_allclose(asnumpy(more.derivative()), 2 * J_at_p * slope(0, P, B))
    of_x(toy(Q))
    tape.clear_tape()
    np.testing.assert_allclose(asnumpy(of_p.derivative()), slope(1, A, Q))
    assert not tape.get_blocks()
