"""After an exception anywhere, tape, controls, flags and marks are as they were, and everything goes on."""

import errno
import gc
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from checkpoint_schedules import MultistageCheckpointSchedule, Revolve, SingleDiskStorageSchedule

from pyadjoint_utils import (
    AdjFloat,
    Block,
    Control,
    ReducedFunction,
    ReducedFunctional,
    SnapshotError,
    StaleTapeError,
    Tape,
    annotate_tape,
    array,
    compute_gradient,
    compute_jacobian_action,
    custom_jvp,
    get_working_tape,
    overload,
    set_working_tape,
    stop_annotating,
    to_adjfloat,
)
from pyadjoint_utils.annotation import thread_number
from pyadjoint_utils.tapes import state_of
from pyadjoint_utils.variable import Variable

pytest.importorskip("autograd")
START, FIRST, SECOND = np.array([0.4, -0.3]), np.array([0.9, 0.2]), np.array([-0.5, 0.7])
DIRECTION = np.array([1.0, -2.0])
STEPS = 4


class Fault(Exception):
    """What goes wrong."""


class Fuse:
    """Blows when it is passed for the n-th time."""

    def __init__(self):
        self.passed, self.limit, self.kind = 0, None, Fault

    def __call__(self):
        self.passed += 1
        if self.passed == self.limit:
            self.limit = None
            raise self.kind

    def arm(self, limit, kind):
        self.passed, self.limit, self.kind = 0, limit, kind


class Cubed(Block):
    """A Block of another package that may fail in every phase."""

    def __init__(self, x, fuse):
        super().__init__()
        self.fuse = fuse
        self.add_dependency(x)

    def recompute_component(self, inputs, block_variable, idx, prepared):
        self.fuse()
        return AdjFloat(float(inputs[0]) ** 3)

    def evaluate_adj_component(self, inputs, adj_inputs, block_variable, idx, prepared=None):
        self.fuse()
        return 3 * float(inputs[0]) ** 2 * adj_inputs[0]

    def evaluate_tlm_component(self, inputs, tlm_inputs, block_variable, idx, prepared=None):
        self.fuse()
        return 3 * float(inputs[0]) ** 2 * tlm_inputs[0]

    def evaluate_hessian_component(
        self, inputs, hessian_inputs, adj_inputs, block_variable, idx, relevant_dependencies, prepared=None
    ):
        self.fuse()
        x, x_dot = float(inputs[0]), self.get_dependencies()[0].tlm_value
        return 3 * x**2 * hessian_inputs[0] + 6 * x * x_dot * adj_inputs[0]


def cubed(x, fuse):
    fuse()
    block = Cubed(x, fuse)
    get_working_tape().add_block(block)
    y = AdjFloat(float(x) ** 3)
    block.add_output(y.create_block_variable())
    return y


def closed_form(x):
    """``s(sum(g(x)))`` with ``g`` applied four times, its gradient and its Hessian."""
    g, g1, g2 = x, np.ones(2), np.zeros(2)
    for _ in range(STEPS):
        g, g1, g2 = (
            g + 0.1 * np.sin(g),
            (1 + 0.1 * np.cos(g)) * g1,
            (1 + 0.1 * np.cos(g)) * g2 - 0.1 * np.sin(g) * g1**2,
        )
    return g, g1, g2


@dataclass
class Program:
    """Something recorded: what it is, and what it must give."""

    tape: Tape
    x: Any
    rf: Any
    fuse: Fuse
    value: Callable[[np.ndarray], float]
    gradient: Callable[[np.ndarray], np.ndarray]
    hessian: Callable[[np.ndarray], np.ndarray]

    @property
    def control(self):
        return self.rf.controls[0]


def engine_program(fuse, schedule=None, foreign=False, **options):
    """A loop of an engine's Blocks, and perhaps a Block of another package behind it."""

    def body(x):
        import autograd.numpy as anp

        fuse()
        return x + 0.1 * anp.sin(x)

    step = overload(body, "autograd")
    with set_working_tape() as tape:
        if schedule is not None:
            tape.enable_checkpointing(schedule, **options)
        x = y = array(START)
        for _ in tape.timestepper(range(STEPS)):
            y = step(y)
        J = (y * y).sum()
        J = cubed(to_adjfloat(J), fuse) if foreign else J
        rf = ReducedFunctional(J, Control(x))

    def inner(x):
        g, g1, g2 = closed_form(x)
        return (g**2).sum(), 2 * g * g1, np.diag(2 * (g1**2 + g * g2))

    def value(x):
        return inner(x)[0] ** 3 if foreign else inner(x)[0]

    def gradient(x):
        s, ds, _ = inner(x)
        return 3 * s**2 * ds if foreign else ds

    def hessian(x):
        s, ds, dds = inner(x)
        return 3 * s**2 * dds + 6 * s * np.outer(ds, ds) if foreign else dds

    return Program(tape, x, rf, fuse, value, gradient, hessian)


PROGRAMS = {
    "engine": lambda fuse: engine_program(fuse),
    "foreign": lambda fuse: engine_program(fuse, foreign=True),
    "schedule": lambda fuse: engine_program(fuse, Revolve(STEPS, 2)),
}
PHASES = {
    "value": lambda p: p.rf(array(SECOND)),
    "derivative": lambda p: p.rf.derivative(),
    "tangent": lambda p: p.rf.tlm(array(DIRECTION)),
    "hessian": lambda p: p.rf.hessian(array(DIRECTION)),
    "jacobian": lambda p: p.rf._function.jac_matrix(),
    "both": lambda p: p.rf.value_and_derivative(array(SECOND)),
    "elsewhere": lambda p: compute_gradient(p.rf.functional, p.control, tape=p.tape),
}


def check_state(program, blocks):
    """Nothing is left of a sweep or of a recording."""
    assert annotate_tape()
    assert len(program.tape.get_blocks()) == blocks
    for block in program.tape.get_blocks():
        for bv in (*block.get_dependencies(), *block.get_outputs()):
            assert all(value is None for value in (bv.adj_value, bv.tlm_value, bv.hessian_value))
            assert not bv.is_control_dependent
            assert not bv.is_control


def check_derivatives(program, x):
    """At the point where the reduced functional stands."""
    np.testing.assert_allclose(program.rf.derivative().numpy(), program.gradient(x), rtol=1e-10)
    tangent = float(program.rf.tlm(array(DIRECTION)))
    np.testing.assert_allclose(tangent, program.gradient(x) @ DIRECTION, rtol=1e-10)
    action = program.rf.hessian(array(DIRECTION)).numpy()
    np.testing.assert_allclose(action, program.hessian(x) @ DIRECTION, rtol=1e-10)
    np.testing.assert_allclose(program.rf._function.jac_matrix().numpy(), program.gradient(x), rtol=1e-10)


@pytest.mark.parametrize("kind", [Fault, KeyboardInterrupt])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_sweep_that_fails_leaves_nothing(name, phase, kind, tape):
    fuse = Fuse()
    program = PROGRAMS[name](fuse)
    blocks = len(program.tape.get_blocks())
    fuse.arm(None, kind)
    program.rf(array(FIRST))
    evaluation = fuse.passed
    PHASES[phase](program)
    places = fuse.passed - evaluation
    assert places >= STEPS
    for limit in range(1, places + 1):
        program.rf(array(FIRST))
        fuse.arm(limit, kind)
        with pytest.raises(kind):
            PHASES[phase](program)
        assert fuse.limit is None
        check_state(program, blocks)
        # The evaluation of both has succeeded where it is the derivative that failed.
        x = SECOND if phase == "both" and limit > evaluation else FIRST
        if limit % 2:
            check_derivatives(program, x)
        np.testing.assert_allclose(float(program.rf(array(SECOND))), program.value(SECOND), rtol=1e-10)
        check_derivatives(program, SECOND)
        check_state(program, blocks)
    assert get_working_tape() is tape


def test_the_tape_is_free_for_other_threads_after_an_exception():
    program = engine_program(fuse := Fuse())
    for kind in (Fault, KeyboardInterrupt):
        fuse.arm(2, kind)
        with pytest.raises(kind):
            program.rf(array(FIRST))
    with ThreadPoolExecutor(1) as pool:
        assert float(pool.submit(program.rf, array(FIRST)).result()) == pytest.approx(program.value(FIRST))


# Recording -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Fault, KeyboardInterrupt])
@pytest.mark.parametrize("limit", range(1, 9))
def test_a_call_that_fails_is_not_recorded(limit, kind, tape):
    fuse = Fuse()

    def body(x, y):
        import autograd.numpy as anp

        fuse()
        return x + 0.1 * anp.sin(y), y

    step = overload(body, "autograd")
    x, y = array(START), array(FIRST)
    fuse.arm(limit, kind)
    a, b, done = x, y, 0
    while done < 8:
        try:
            a, b = step(b, a)
        except kind:
            continue  # try again, as one does in a notebook
        done += 1
    assert len(tape.get_blocks()) == 8
    assert annotate_tape()
    assert get_working_tape() is tape
    rf = ReducedFunction([a, b], [Control(x), Control(y)])
    p, q = SECOND, START
    for _ in range(8):
        p, q = q + 0.1 * np.sin(p), p
    for found, wanted in zip(rf([array(SECOND), array(START)]), (p, q), strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)


def test_a_loop_that_fails_in_the_middle_goes_on(tape):
    """An error of the engine at step 731 of 1000."""
    fuse = Fuse()

    def body(x):
        fuse()
        return x * 0.999

    step = overload(body, "autograd")
    x = y = array(START)
    fuse.arm(731, Fault)
    for _ in range(730):
        y = step(y)
    with pytest.raises(Fault):
        step(y)
    assert len(tape.get_blocks()) == 730
    for _ in range(270):
        y = step(y)
    rf = ReducedFunctional(y.sum(), Control(x))
    fuse.arm(731, Fault)
    with pytest.raises(Fault):
        rf(array(SECOND))
    np.testing.assert_allclose(rf.derivative().numpy(), 0.999**1000 * np.ones(2), rtol=1e-9)
    np.testing.assert_allclose(float(rf(array(SECOND))), 0.999**1000 * SECOND.sum(), rtol=1e-9)
    np.testing.assert_allclose(rf.derivative().numpy(), 0.999**1000 * np.ones(2), rtol=1e-9)


SWEEPS = {
    "gradient": lambda y, c: compute_gradient(y, c, record=True),
    "tangent": lambda y, c: compute_jacobian_action(y, c, array(DIRECTION), record=True),
}


@pytest.mark.parametrize("kind", [Fault, KeyboardInterrupt])
@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_recorded_sweep_that_fails_is_taken_off_the_tape(sweep, kind):
    fuse = Fuse()
    twin, program = engine_program(fuse), engine_program(fuse)
    with set_working_tape(twin.tape):
        fuse.arm(None, kind)
        SWEEPS[sweep](twin.rf.functional, twin.control)
    places = fuse.passed
    assert places
    with set_working_tape(program.tape) as tape:
        blocks = list(tape.get_blocks())
        for limit in range(1, places + 1):
            fuse.arm(limit, kind)
            with pytest.raises(kind):
                SWEEPS[sweep](program.rf.functional, program.control)
            assert list(tape.get_blocks()) == blocks
            assert get_working_tape() is tape
            check_state(program, len(blocks))
            check_derivatives(program, START if limit == 1 else FIRST)
            program.rf(array(FIRST))
        found = SWEEPS[sweep](program.rf.functional, program.control)
    wanted = program.gradient(START)
    np.testing.assert_allclose(found.numpy(), wanted if sweep == "gradient" else wanted @ DIRECTION, rtol=1e-10)


@pytest.mark.parametrize(
    "name", ["eval_cb_pre", "eval_cb_post", "jac_action_cb_pre", "adj_jac_action_cb_post", "hess_action_cb_post"]
)
def test_callbacks_that_fail_change_nothing(name):
    program = engine_program(Fuse())

    def fail(*args):
        raise Fault

    rf = ReducedFunction(program.rf.functional, program.control, program.tape, **{name: fail})
    actions = {
        "eval": lambda: rf(array(SECOND)),
        "adj_jac": rf.derivative,
        "jac": lambda: rf.tlm(array(DIRECTION)),
        "hess": lambda: rf.hessian(array(DIRECTION)),
    }
    with pytest.raises(Fault):
        actions[name.partition("_cb")[0].removesuffix("_action")]()
    check_state(program, len(program.tape.get_blocks()))
    program.rf(array(FIRST))
    check_derivatives(program, FIRST)


def test_bad_input_moves_nothing():
    program = engine_program(Fuse())
    program.rf(array(FIRST))
    for bad in (array(np.ones(3)), "text", [array(FIRST)] * 2, array(FIRST + 1j)):
        for action in (program.rf, program.rf.tlm, program.rf.hessian):
            with pytest.raises((TypeError, ValueError)):
                action(bad)
        check_state(program, len(program.tape.get_blocks()))
    check_derivatives(program, FIRST)
    with stop_annotating():
        check_derivatives(program, FIRST)


# Ctrl-C strikes between any two instructions ---------------------------------------------------------------------------


def test_a_recording_that_is_interrupted_leaves_no_block_without_outputs(tape, monkeypatch):
    two = overload(lambda x: (x * 2.0, x * 3.0), "autograd")
    x = array(START)
    fuse = Fuse()
    original = Variable.will_add_as_output

    def interrupted(self):
        fuse()
        original(self)

    monkeypatch.setattr(Variable, "will_add_as_output", interrupted)
    for limit in (1, 2):
        fuse.arm(limit, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            two(x)
        assert tape.get_blocks() == []
    a, b = two(x)
    rf = ReducedFunctional((a * b).sum(), Control(x))
    assert float(rf(array(SECOND))) == pytest.approx(6 * (SECOND**2).sum())


def test_cleaning_up_is_done_again_where_it_was_interrupted():
    program = engine_program(Fuse())
    plan, strikes = program.rf._function._plan, []
    original = plan.clear

    def interrupted(*kinds):
        strikes.append(kinds)
        if len(strikes) == 2:  # the first one is before the sweep
            raise KeyboardInterrupt
        original(*kinds)

    plan.clear = interrupted
    with pytest.raises(KeyboardInterrupt):
        program.rf.derivative()
    del plan.clear
    check_state(program, len(program.tape.get_blocks()))
    check_derivatives(program, START)


def test_a_flag_that_nobody_put_back_is_put_back():
    program = engine_program(Fuse())

    def forget(*args):
        stop_annotating().__enter__()
        raise KeyboardInterrupt

    for action, name in (
        (lambda rf: rf(array(SECOND)), "eval_cb_pre"),
        (lambda rf: rf.derivative(), "adj_jac_action_cb_pre"),
    ):
        rf = ReducedFunction(program.rf.functional, program.control, program.tape, **{name: forget})
        with pytest.raises(KeyboardInterrupt):
            action(rf)
        assert annotate_tape()
        with stop_annotating():
            assert not annotate_tape()
        assert annotate_tape()


def test_a_turn_that_nobody_gave_back_is_given_back():
    program = engine_program(Fuse())
    state_of(program.tape).turn["thread"] = thread_number()
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(StaleTapeError):
            pool.submit(program.rf, array(FIRST)).result()
        program.rf(array(SECOND))
        assert float(pool.submit(program.rf, array(FIRST)).result()) == pytest.approx(program.value(FIRST))


# Disks, compiled functions and rules by hand ---------------------------------------------------------------------------


class NoSpace(OSError):
    """What a full disk says."""

    def __init__(self):
        super().__init__(errno.ENOSPC, "No space left on device")


def disk_that_fails(fuse, monkeypatch):
    """Every file that is written or read may be the one that fails."""
    save, fstat = np.save, os.fstat

    def full(*args, **kwargs):
        fuse()
        save(*args, **kwargs)

    def gone(*args):
        fuse()
        return fstat(*args)

    monkeypatch.setattr(np, "save", full)
    monkeypatch.setattr("pyadjoint_utils.checkpointing.disk.os.fstat", gone)


ON_DISK = {
    "single": SingleDiskStorageSchedule,
    "moved": lambda: SingleDiskStorageSchedule(move_data=True),
    "multistage": lambda: MultistageCheckpointSchedule(STEPS, 0, 2),
}


@pytest.mark.parametrize("phase", ["value", "derivative", "hessian", "both", "jacobian"])
@pytest.mark.parametrize("name", ON_DISK)
def test_a_file_that_cannot_be_written_or_read(name, phase, monkeypatch, tmp_path):
    fuse, disk = Fuse(), Fuse()
    program = engine_program(fuse, ON_DISK[name](), directory=tmp_path)
    disk_that_fails(disk, monkeypatch)
    blocks = len(program.tape.get_blocks())
    program.rf(array(FIRST))
    disk.arm(None, NoSpace)
    program.rf(array(FIRST))
    evaluation = disk.passed
    disk.arm(None, NoSpace)
    PHASES[phase](program)
    places = disk.passed
    assert places
    for limit in range(1, places + 1):
        program.rf(array(FIRST))
        disk.arm(limit, NoSpace)
        with pytest.raises(SnapshotError, match="No space left"):
            PHASES[phase](program)
        check_state(program, blocks)
        x = SECOND if phase == "both" and limit > evaluation else FIRST
        if limit % 2:
            check_derivatives(program, x)
        np.testing.assert_allclose(float(program.rf(array(SECOND))), program.value(SECOND), rtol=1e-10)
        check_derivatives(program, SECOND)
    del program
    gc.collect()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("kind", [Fault, KeyboardInterrupt])
@pytest.mark.parametrize("phase", ["value", "derivative", "tangent", "hessian", "both"])
@pytest.mark.parametrize("merged", [False, True])
def test_a_compiled_function_that_fails_stays_where_it_was(merged, phase, kind):
    fuse = Fuse()
    program = engine_program(fuse, foreign=True)
    blocks = len(program.tape.get_blocks())
    on_the_tape = program.rf

    def compile_and_evaluate():
        program.rf = on_the_tape.compile(engines=["autograd"] if merged else [])
        program.rf(array(FIRST))

    compile_and_evaluate()
    fuse.arm(None, kind)
    PHASES[phase](program)
    places, failed = fuse.passed, 0
    for limit in range(1, places + 1):
        if phase == "derivative":  # the first one: later ones come with the value
            compile_and_evaluate()
        program.rf(array(FIRST))
        fuse.arm(limit, kind)
        try:
            PHASES[phase](program)
            moved = phase in ("value", "both")
        except kind:
            moved, failed = None, failed + 1
        fuse.arm(None, kind)  # a later derivative may run fewer functions than the first one
        check_state(program, blocks)
        if moved is None:
            # Of both, the evaluation may have succeeded where it is the derivative that failed.
            value = float(program.rf._function._output_values())
            x = FIRST if np.isclose(value, program.value(FIRST), rtol=1e-12) else SECOND
            assert phase == "both" or x is FIRST
            np.testing.assert_allclose(value, program.value(x), rtol=1e-12)
            check_first_and_second(program, x)
        np.testing.assert_allclose(float(program.rf(array(SECOND))), program.value(SECOND), rtol=1e-10)
        check_first_and_second(program, SECOND)
    assert failed >= 1
    program.rf = on_the_tape
    check_derivatives(program, START)


def check_first_and_second(program, x):
    np.testing.assert_allclose(program.rf.derivative().numpy(), program.gradient(x), rtol=1e-10)
    np.testing.assert_allclose(float(program.rf.tlm(array(DIRECTION))), program.gradient(x) @ DIRECTION, rtol=1e-10)
    action = program.rf.hessian(array(DIRECTION)).numpy()
    np.testing.assert_allclose(action, program.hessian(x) @ DIRECTION, rtol=1e-10)


@pytest.mark.parametrize("kind", [Fault, KeyboardInterrupt])
def test_a_trace_that_fails_is_made_again(kind):
    jnp = pytest.importorskip("jax").numpy
    fuse = Fuse()

    def body(x):
        fuse()
        return x + 0.1 * jnp.sin(x)

    step = overload(body, "jax")
    with set_working_tape() as tape:
        x = y = array(START)
        for _ in range(STEPS):
            y = step(y)
        rf = ReducedFunctional((y * y).sum(), Control(x))
    fast = rf.compile(turns=1000)
    for limit in (1, 2, 3):
        fuse.arm(limit, kind)
        try:
            fast.value_and_derivative(array(SECOND))
        except kind:
            pass
        else:
            assert fuse.passed < limit
        g, g1, _ = closed_form(FIRST)
        value, slope = fast.value_and_derivative(array(FIRST))
        np.testing.assert_allclose(float(value), g @ g, rtol=1e-10)
        np.testing.assert_allclose(slope.numpy(), 2 * g * g1, rtol=1e-10)
    assert annotate_tape()
    assert len(tape.get_blocks()) == STEPS + 2


def ruled_program(fuse, schedule=None):
    """Steps with a rule by hand, whose function and rules may fail."""

    @custom_jvp
    def step(x):
        fuse()
        return x + 0.1 * np.sin(x)

    @step.defjvp
    def _(primals, tangents):
        fuse()
        ((x,), (dx,)) = primals, tangents
        return step(x), dx + 0.1 * np.cos(x) * dx

    with set_working_tape() as tape:
        if schedule is not None:
            tape.enable_checkpointing(schedule)
        x = y = array(START)
        for _ in tape.timestepper(range(STEPS)):
            y = step(y)
        rf = ReducedFunctional((y * y).sum(), Control(x))
    plain = engine_program(Fuse())
    return Program(tape, x, rf, fuse, plain.value, plain.gradient, plain.hessian)


@pytest.mark.parametrize("kind", [Fault, KeyboardInterrupt])
@pytest.mark.parametrize("phase", ["value", "derivative", "tangent", "hessian"])
@pytest.mark.parametrize("schedule", [lambda: None, lambda: Revolve(STEPS, 2)])
def test_a_rule_by_hand_that_fails_leaves_nothing(schedule, phase, kind):
    fuse = Fuse()
    program = ruled_program(fuse, schedule())
    blocks = len(program.tape.get_blocks())
    program.rf(array(FIRST))
    fuse.arm(None, kind)
    PHASES[phase](program)
    places = fuse.passed
    assert places
    for limit in range(1, places + 1):
        program.rf(array(FIRST))
        fuse.arm(limit, kind)
        try:
            PHASES[phase](program)
        except kind:
            check_state(program, blocks)
            check_first_and_second(program, FIRST)
        fuse.arm(None, kind)
        np.testing.assert_allclose(float(program.rf(array(SECOND))), program.value(SECOND), rtol=1e-10)
        check_first_and_second(program, SECOND)
        check_state(program, blocks)
