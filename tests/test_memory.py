"""What a tape keeps alive: counted in arrays of an engine, and in bytes of bookkeeping."""

import gc
import tracemalloc
import weakref

import engines
import numpy as np
import pytest
from checkpoint_schedules import MultistageCheckpointSchedule
from pyadjoint.overloaded_type import OverloadedType
from toy_engine import ToyArray, asnumpy, overload_toy, toy

from pyadjoint_utils import (
    AdjFloat,
    Block,
    Control,
    ReducedFunction,
    ReducedFunctional,
    StaleTapeError,
    Tape,
    array,
    compute_gradient,
    get_working_tape,
    overload,
    push_tape,
    set_working_tape,
)

A, P, Q = np.array([0.5, -1.0, 1.25]), np.array([1.5, 0.3, -0.6]), np.array([-0.7, 1.1, 0.4])
step = overload_toy(lambda y: y - 0.01 * y * y)
total = overload_toy(lambda x: x.sum())


def live(size=3):
    """How many arrays of the toy engine with this many numbers are alive."""
    gc.collect()
    return sum(type(item) is ToyArray and item.shape == (size,) for item in gc.get_objects())


def chain(x, length):
    y = x
    for _ in range(length):
        y = step(y)
    return y


# Without a schedule ----------------------------------------------------------------------------------------------------


def test_each_value_is_kept_once():
    before = live()
    x = toy(A)
    y = chain(x, 20)
    rf = ReducedFunction(y, Control(x))
    assert live() - before == 21
    for point in (P, Q):
        rf(toy(point))
        # The function names x and y themselves, which are where the program left them.
        assert live() - before == 23
    rf.adj_jac_action(toy(A))
    rf.hess_action(toy(A), toy(A))
    assert live() - before == 23


def test_a_variable_does_not_keep_the_users_value():
    y = chain(toy(A), 2)
    variable, value = y.block_variable, weakref.ref(y)
    del y
    gc.collect()
    assert value() is None
    after_one = A - 0.01 * A * A
    np.testing.assert_allclose(asnumpy(variable.saved_output), after_one - 0.01 * after_one**2)


def test_what_stands_in_a_variable_says_shape_and_dtype_and_holds_no_data():
    y = chain(toy(A), 1)
    shell = y.block_variable.output
    assert (shell.shape, shell.dtype, shell.engine) == ((3,), np.float64, "toy")
    assert str(y.block_variable) == "float64[3] (toy)"
    assert asnumpy(shell._ad_init_zero()).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(StaleTapeError, match="saved_output"):
        shell.numpy()
    with pytest.raises(StaleTapeError, match="saved_output"):
        _ = shell + 1.0


# Under a schedule ------------------------------------------------------------------------------------------------------


class Watch:
    """A bar of Pyadjoint's kind that counts the states that are alive after each Block."""

    count = peak = 0

    def __init__(self, title, **kwargs):
        pass

    def iter(self, sequence):
        for item in sequence:
            yield item
            Watch.peak = max(Watch.peak, Watch.count())


def test_a_tape_under_a_schedule_holds_its_snapshots_and_three_states(monkeypatch):
    jax = pytest.importorskip("jax")
    steps, snapshots, size = 400, 10, 100_000
    move = overload(lambda y: y - 0.1 * jax.numpy.sin(y) * y, "jax")
    square = overload(lambda y: (y * y).sum(), "jax")
    monkeypatch.setattr(Watch, "count", lambda: sum(a.size == size for a in jax.live_arrays()))
    already = Watch.count()

    def peak(action):
        Watch.peak = 0
        action()
        return Watch.peak - already

    with set_working_tape(Tape()) as tape:
        tape.enable_checkpointing(MultistageCheckpointSchedule(steps, snapshots, 0))
        tape.progress_bar = Watch
        x = array(jax.numpy.linspace(0.0, 1.0, size))
        y = x
        Watch.peak = 0
        for _ in tape.timestepper(range(steps)):
            y = move(y)
        rf = ReducedFunctional(square(y), Control(x))
        del y
    assert Watch.peak - already <= snapshots + 3
    assert peak(rf.derivative) <= snapshots + 3
    m = array(jax.numpy.linspace(0.0, 2.0, size))
    # The program's own x stays beside the point m.
    assert peak(lambda: rf(m)) <= snapshots + 4
    assert peak(rf.derivative) <= snapshots + 4
    assert peak(lambda: rf.hessian(m)) <= 2 * (snapshots + 4)
    assert Watch.count() - already == 2


@pytest.mark.parametrize("name", engines.NAMES)
def test_snapshots_and_three_states_of_every_engine(name, monkeypatch):
    e = engines.namespace(name)
    steps, snapshots, size = 60, 5, 50_000
    move, square = e.overload(lambda y: y - 0.1 * e.sin(y) * y), e.overload(lambda y: e.sum(y * y))
    cls = type(e.own(np.zeros(1)))

    def count():
        if cls is np.ndarray:  # which the garbage collector does not know
            return tracemalloc.get_traced_memory()[0] // (8 * size)
        return sum(type(item) is cls and tuple(item.shape) == (size,) for item in gc.get_objects())

    def program(schedule):
        with set_working_tape(Tape()) as tape:
            if schedule is not None:
                tape.enable_checkpointing(schedule)
                tape.progress_bar = Watch
            x = y = array(e.own(np.linspace(0.0, 1.0, size)))
            for _ in tape.timestepper(range(steps)):
                y = move(y)
            return ReducedFunctional(square(y), Control(x)), x

    rf, x = program(None)  # everything is compiled now
    expected = [float(rf(x)), *rf.derivative().numpy()[:5], *rf.hessian(x).numpy()[:5]]
    del rf, x
    gc.collect()
    gc.freeze()  # what is alive already is not looked at when arrays are counted
    if cls is np.ndarray:
        tracemalloc.start()
    try:
        monkeypatch.setattr(Watch, "count", count)
        already, Watch.peak = count(), 0
        rf, x = program(MultistageCheckpointSchedule(steps, snapshots, 0))
        found = [float(rf(x)), *rf.derivative().numpy()[:5]]
        assert 0 < Watch.peak - already <= snapshots + 3
        found += list(rf.hessian(x).numpy()[:5])
        assert Watch.peak - already <= 2 * (snapshots + 3)
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    np.testing.assert_allclose(found, expected, rtol=1e-10)


# What evaluations have overwritten is derived again ---------------------------------------------------------------------


def test_what_another_function_needs_of_the_record_is_computed_again():
    a, b = toy(A), toy(P)
    y = total(chain(a, 3) * chain(b, 2))
    expected = asnumpy(y)
    first = ReducedFunctional(y, Control(a))
    first(toy(Q))
    second = ReducedFunctional(y, Control(b))
    np.testing.assert_allclose(float(second(toy(P))), expected)
    np.testing.assert_allclose(float(first(toy(A))), expected)
    with push_tape():
        at_q = chain(toy(Q), 3).numpy()
    np.testing.assert_allclose(float(first(toy(Q))), at_q @ chain(toy(P), 2).numpy())


def test_the_record_of_numbers_outlasts_an_evaluation():
    s, t = AdjFloat(2.0), AdjFloat(3.0)
    y = (s * s) * (t * t)
    ReducedFunctional(y, Control(s))(5.0)
    assert float(ReducedFunctional(y, Control(t))(3.0)) == 36.0


class Twice(Block):
    """A Block of another package, whose variables are upstream's."""

    def __init__(self, x):
        super().__init__()
        self.add_dependency(x)

    def recompute_component(self, inputs, block_variable, idx, prepared):
        return Box(2.0 * inputs[0].number)


class Box(OverloadedType):
    """A value of another package, which no engine knows."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def _ad_create_checkpoint(self):
        return self

    def _ad_restore_at_checkpoint(self, checkpoint):
        return checkpoint


def twice(x):
    y = Box(2.0 * x.number)
    block = Twice(x)
    get_working_tape().add_block(block)
    block.add_output(y.create_block_variable())
    return y


def test_the_record_of_another_package_is_computed_again():
    x = Box(1.0)
    z = twice(twice(x))
    y = twice(z)
    assert ReducedFunction(y, Control(x))(Box(5.0)).number == 40.0
    late = ReducedFunction([y, z], Control(toy(A)))
    assert [value.number for value in late(toy(P))] == [8.0, 4.0]


def test_a_derivative_is_recorded_at_the_recorded_values_after_an_evaluation():
    x = toy(A)
    J = total(chain(x, 3))
    ReducedFunctional(J, Control(x))(toy(P))
    gradient = compute_gradient(J, Control(x), record=True)
    once = ReducedFunctional(J, Control(x))
    np.testing.assert_allclose(asnumpy(gradient), asnumpy((once(toy(A)), once.derivative())[1]))
    second = ReducedFunction(gradient, Control(x))
    at_p = asnumpy(second(toy(P)))
    once(toy(P))
    np.testing.assert_allclose(at_p, asnumpy(once.derivative()))


def test_a_value_lost_to_another_tape_is_an_error():
    x = toy(A)
    y = chain(x, 1)
    first = ReducedFunction(y, Control(x))
    with set_working_tape(Tape()) as other:
        b = toy(P)
        z = y * b
        first(toy(Q))
        with pytest.raises(StaleTapeError, match="another tape"):
            ReducedFunction(z, Control(b), tape=other)(toy(P))


# Bookkeeping -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["autograd", "jax"])
def test_a_block_costs_less_than_a_kilobyte(engine):
    pytest.importorskip(engine)
    scale, count = overload(lambda x: x * 1.01, engine), 2_000

    def grown(run, y):
        y = run(run(y))
        gc.collect()
        tracemalloc.start()
        kept = [y := run(y) for _ in range(count)]
        gc.collect()
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return size / count, kept

    x = scale(np.ones(1))
    data, _ = grown(lambda value: scale(value.value), x)
    both, _ = grown(scale, x)
    assert both - data < 1000
    assert len(get_working_tape().get_blocks()) >= count


FLOATS = {"square": lambda y: y * y, "literal": lambda y: y * 1.0001, "reflected": lambda y: 2 - y, "numpy": np.sin}


@pytest.mark.parametrize("name", FLOATS)
def test_a_block_of_numbers_costs_less_than_a_kilobyte(name):
    run, count = FLOATS[name], 2_000

    def recorded(length):
        x = y = AdjFloat(0.5)
        for _ in range(length):
            y = run(y)
        return ReducedFunctional(y, Control(x))

    recorded(2).value_and_derivative(0.4)  # SymPy derives rules once
    gc.collect()
    tracemalloc.start()
    rf = recorded(count)
    gc.collect()
    assert tracemalloc.get_traced_memory()[0] / count < 600
    rf.value_and_derivative(0.4)
    gc.collect()
    assert tracemalloc.get_traced_memory()[0] / count < 1000
    tracemalloc.stop()


def test_a_literal_beside_numbers_has_one_variable():
    x, c = AdjFloat(0.5), AdjFloat(2.0)
    y = x
    for _ in range(10):
        y = 2 * y * c + 2.0 - np.multiply(y, 2.0)
    y = y + 0.0 * np.float64(2.0) - (-0.0)
    blocks = get_working_tape().get_blocks()
    used = {bv: None for block in blocks for bv in block.get_dependencies()}
    computed = {bv for block in blocks for bv in block.get_outputs()}
    # x, c, 2.0, and zeros of two signs
    assert len([bv for bv in used if bv not in computed]) == 5
    found = ReducedFunctional(y, [Control(x), Control(c)]).derivative()
    # y' = a y + 2 with a = 2 c - 2
    dx, dc, value = 1.0, 0.0, 0.5
    for _ in range(10):
        dx, dc, value = 2.0 * dx, 2.0 * dc + 2.0 * value, 2.0 * value + 2.0
    np.testing.assert_allclose([float(v) for v in found], [dx, dc])


def test_a_variable_of_a_number_does_not_keep_the_users_value():
    x = AdjFloat(3.0)
    y = x * x
    variable, value = y.block_variable, weakref.ref(y)
    del y
    gc.collect()
    assert value() is None
    assert variable.output == 9.0
    # What stands in the variable is on the tape.
    J = variable.output * 2.0
    assert float(ReducedFunctional(J, Control(x)).derivative()) == 12.0
    assert ReducedFunctional(J, Control(x))(2.0) == 8.0
    assert variable.saved_output == 4.0
