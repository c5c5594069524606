"""No call prepares, runs or converts twice what it needs once; the toy engines count."""

import numpy as np
from toy_engine import engine, overload_toy, overload_twin, sin, toy, twin

from pyadjoint_utils import Control, ReducedFunction, ReducedFunctional, Tape, set_working_tape

A, B = np.array([0.5, -1.0]), np.array([2.0, 0.25])
P = np.array([1.5, 0.3])
total = overload_toy(lambda x: x.sum())


def prepared():
    return engine.counts["prepared"] + twin.counts["prepared"]


def sweep(f, x):
    rf = ReducedFunctional(total(f(x)), Control(x))
    rf(x)
    rf.derivative()
    rf.tlm(x)
    rf.hessian(x)


def test_every_map_is_prepared_once_for_a_signature():
    f = overload_toy(lambda x: sin(x) * x)
    sweep(f, toy(A))
    before = prepared()
    for _ in range(3):
        sweep(f, toy(P))
        with set_working_tape(Tape()):
            sweep(f, toy(B))
    assert prepared() == before
    f(toy(np.ones(3)))
    assert prepared() == before + 1
    f(toy(np.zeros(3)))
    assert prepared() == before + 1
    f(toy(np.zeros(3, np.float32)))
    assert prepared() == before + 2


def test_values_of_constants_and_inputs_prepare_nothing_new():
    f = overload_toy(lambda x, s, c: x * s * c)
    f(toy(A), 1.0, A)
    before = prepared()
    for s in (2.0, 3.5, -1.0):
        f(toy(B), s, B * s)
    assert prepared() == before


def test_arithmetic_with_python_numbers_prepares_nothing_new():
    x = toy(A)
    _ = x * 2.0
    before = prepared()
    for s in (3.0, 4.0, -1.0):
        _ = x * s
    assert prepared() == before


def test_one_call_of_the_engine_per_block_and_sweep():
    x = toy(A)
    f = overload_toy(lambda x: sin(x) * x)
    rf = ReducedFunction(f(f(x)), Control(x))
    rf(x)
    rf.hess_action(x, x)
    for action, calls in (
        (lambda: rf(x), 2),
        (lambda: rf.jac_action(x), 2),
        (lambda: rf.adj_jac_action(x), 2),
        (lambda: rf.hess_action(x, x), 4),
    ):
        before = engine.counts["called"]
        action()
        assert engine.counts["called"] - before == calls


def test_a_value_is_converted_once_per_engine():
    x = toy(A)
    f = overload_twin(sin)
    f(x)
    f(x)
    before = twin.counts["entered"]
    f(x)
    f(x)
    assert twin.counts["entered"] == before


def test_a_sweep_on_one_engine_converts_nothing():
    x = toy(A)
    f = overload_toy(lambda x: sin(x) * x)
    rf = ReducedFunctional(total(f(f(x))), Control(x))
    direction = toy(B)
    rf(x)
    rf.hessian(direction)
    before = engine.counts["left"]
    rf(x)
    rf.derivative()
    rf.hessian(direction)
    assert engine.counts["left"] == before
