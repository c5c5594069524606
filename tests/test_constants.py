"""Constants and literals of recorded calls: stored once on a tape, and safe from what the user does to theirs."""

import gc
import tracemalloc

import engines
import numpy as np
import pytest
from toy_engine import asnumpy, overload_toy, toy

from pyadjoint_utils import Control, ReducedFunction, ReducedFunctional, Tape, array, overload, set_working_tape

SIZES = [1, 5, 1000]  # found by their content, or by their identity


def stored(tape):
    """The constants of all Blocks, each as often as it is stored."""
    return list({id(c): c for block in tape.get_blocks() for c in block.constants}.values())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", engines.NAMES)
def test_a_constant_of_a_loop_is_stored_once(name, size, tape):
    e = engines.namespace(name)
    step = e.overload(lambda u, a, c: u + a * c)
    A = np.linspace(0.1, 1.0, size)
    x = u = array(e.own(np.zeros(size)))
    for _ in range(5):
        u = step(u, A, 0.25)
        u = u * A + A
    expected = np.zeros(size)
    for _ in range(5):
        expected = (expected + A * 0.25) * A + A
    arrays = [c for c in stored(tape) if getattr(c, "shape", ()) == (size,)]
    assert len(arrays) == 1
    assert len([c for c in stored(tape) if not isinstance(c, float)]) <= 2
    assert len(tape.get_blocks()) == 15
    np.testing.assert_allclose(ReducedFunction(u, Control(x))(x).numpy(), expected, rtol=1e-12)


def test_a_matrix_of_a_loop_is_stored_once(tape):
    pytest.importorskip("autograd")
    A = np.asfortranarray(np.random.default_rng(0).normal(size=(40, 40)) / 10)
    x = u = array(np.ones(40))
    for _ in range(6):
        u = A @ u
    assert len(stored(tape)) == 1
    gradient = ReducedFunctional(u.sum(), Control(x)).derivative().numpy()
    np.testing.assert_allclose(gradient, np.linalg.matrix_power(A.T, 6) @ np.ones(40), rtol=1e-10)


def test_what_400_steps_with_a_large_constant_keep(tape):
    pytest.importorskip("autograd")
    step = overload(lambda u, a: u + a[:1] * u, "autograd")
    A = np.linspace(0.1, 1.0, 100_000)
    x = u = step(array(np.ones(1)), A)
    gc.collect()
    tracemalloc.start()
    for _ in range(400):
        u = step(u, A)
    gc.collect()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size < 400 * 1000
    np.testing.assert_allclose(ReducedFunctional(u.sum(), Control(x)).derivative().numpy(), [1.1**400], rtol=1e-9)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "own"), [*[(name, False) for name in engines.NAMES], ("torch", True)])
def test_a_constant_that_is_overwritten_is_replayed_as_it_was(name, own, size):
    e = engines.namespace(name)
    step = e.overload(lambda u, a: u * a)
    written = np.full(size, 2.0)
    given = e.own(written) if own else written
    written = given.numpy() if own else written
    factors = [2.0, 2.0, 3.0, 3.0, -0.0, 0.0, 2.0]
    with set_working_tape(Tape()) as tape:
        x = array(e.own(np.full(size, 1.5)))
        outputs = []
        for factor in factors:
            written[...] = factor
            outputs.append(step(x, given))
        if size > 1:
            written[-1] = 7.0  # the last entry alone
            outputs.append(step(x, given))
        written[...] = np.nan
        rf = ReducedFunction(outputs, Control(x))
    assert len(stored(tape)) < len(outputs)
    found = [value.numpy() for value in rf(array(e.own(np.full(size, 10.0))))]
    for value, factor in zip(found, factors, strict=False):
        expected = np.full(size, 10.0 * factor)
        np.testing.assert_array_equal(value, expected)
        np.testing.assert_array_equal(np.signbit(value), np.signbit(expected))
    if size > 1:
        np.testing.assert_array_equal(found[-1], [20.0] * (size - 1) + [70.0])


def test_constants_at_one_place_with_other_shapes_and_dtypes(tape):
    """Arrays that come and go have the same identity, one after the other."""
    pytest.importorskip("autograd")
    step = overload(lambda u, a: u + a.sum(), "autograd")
    x = array(np.zeros(()))
    outputs, expected = [], []
    for k in range(20):
        for dtype in ("float64", "float32", "int64", "complex128"):
            for shape in ((300,), (3, 100)):
                outputs.append(step(x, np.full(shape, k, dtype)))
                expected.append((300 * k, np.result_type(float, dtype)))
    for value, (number, dtype) in zip(ReducedFunction(outputs, Control(x))(x), expected, strict=True):
        assert value.item() == number
        assert value.dtype == dtype
    A = np.arange(600.0)
    y = step(x, A)
    A.shape = (2, 300)
    z = overload(lambda u, a: u + a[1, 0], "autograd")(x, A)
    assert [v.item() for v in ReducedFunction([y, z], Control(x))(x)] == [A.sum(), 300.0]


def test_integers_that_an_engine_narrows_are_stored_once(tape):
    jax = pytest.importorskip("jax")
    take = overload(lambda u, i: u[i], "jax")
    order = np.arange(500)[::-1].copy()
    x = u = array(jax.numpy.arange(500.0))
    for _ in range(3):
        u = take(u, order)
    assert len(stored(tape)) == 1
    order[0] = 5
    u = take(u, order)
    assert len(stored(tape)) == 2
    assert ReducedFunction(u, Control(x))(x).numpy()[:2].tolist() == [494.0, 1.0]


@pytest.mark.parametrize("name", engines.NAMES)
def test_numbers_that_are_equal_and_not_the_same(name, tape):
    e = engines.namespace(name)
    copied_sign = e.overload(lambda u, c: u * c)
    x = array(e.own(np.ones(2)))
    outputs = [copied_sign(x, c) for c in (0.0, -0.0, 2.0, 1.0, float("nan"), 0.0, -0.0, 1.0)]
    rf = ReducedFunction(outputs, Control(x))
    for function in (rf, rf.compile(engines=[name])):
        found = [value.numpy()[0] for value in function(x)]
        np.testing.assert_array_equal(found, [0.0, -0.0, 2.0, 1.0, np.nan, 0.0, -0.0, 1.0])
        assert [bool(np.signbit(v)) for v in found][:2] == [False, True]
        assert [bool(np.signbit(v)) for v in found][5:7] == [False, True]


def test_an_array_that_nobody_can_write_to_is_converted_once(tape):
    jax, _ = pytest.importorskip("jax"), pytest.importorskip("torch")
    e = engines.namespace("torch")
    step = e.overload(lambda u, a: u + a)
    A = jax.numpy.linspace(0.0, 1.0, 1000)
    x = u = array(e.own(np.zeros(1000, np.float32)))
    for _ in range(4):
        u = step(u, A)
    assert len(stored(tape)) == 1
    B = A * 2.0
    u = step(u, B)
    assert len(stored(tape)) == 2
    np.testing.assert_allclose(ReducedFunction(u, Control(x))(x).numpy(), 6 * np.linspace(0.0, 1.0, 1000), rtol=1e-6)


def test_constants_go_with_their_blocks():
    pytest.importorskip("autograd")
    from pyadjoint_utils.tapes import state_of

    with set_working_tape(Tape()) as tape:
        u = array(np.ones(300))
        u = (u + np.ones(300)) * 2.0
        kept = state_of(tape).constants._kept
        assert len(kept) == 2
        tape.clear_tape()
        gc.collect()
        assert not kept


def test_arrays_that_take_no_weak_references(tape):
    step = overload_toy(lambda u, a: u * a)
    A = np.full(300, 2.0)
    x = toy(np.ones(300))
    y = step(x, A)
    A[...] = 3.0
    z = step(y, A)
    np.testing.assert_array_equal(asnumpy(ReducedFunction(z, Control(x))(x)), np.full(300, 6.0))
