"""Compiled functions at other shapes than the recorded ones, against programs that are recorded at these."""

import copy

import engines
import numpy as np
import pytest

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    ArgumentValueError,
    Control,
    ReducedFunction,
    ReducedFunctional,
    Tape,
    UnsupportedError,
    array,
    get_working_tape,
    minimize,
    overload,
    push_tape,
    to_adjfloat,
    verify,
)


def vector(n, seed=0):
    return np.random.default_rng(seed).uniform(0.2, 0.9, n)


def same(found, expected):
    assert np.shape(found) == np.shape(expected)
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-12, atol=1e-13)


@pytest.fixture
def e():
    return engines.namespace("jax")


def chain(e, n):
    """A chain of Blocks with a loop, arithmetic of NumPy, an AdjFloat, conversions, and an input."""
    step = e.overload(lambda u, r: u + r * e.sin(u) + 0.1 * e.roll(u, 1), name="step")
    with push_tape(Tape()) as tape:
        u = x = array(e.own(vector(n)))
        r, data = AdjFloat(0.3), array(vector(n, 1))
        for _ in range(20):
            u = step(u, r * 0.5)
        misfit = (data * 2.0)[::2] * 0.5 - u[::2]
        size = to_adjfloat((u * u).mean()) * r
        J = (misfit**2).sum() + np.exp(data).mean() * size
        return ReducedFunctional(J, [Control(x), Control(r)], scale=2.0, tape=tape, inputs=data)


@pytest.mark.parametrize("listed", [False, True])
def test_the_value_of_one_control_by_itself(e, listed):
    with push_tape(Tape()) as tape:
        x = array(e.own(vector(10)))
        J = e.overload(lambda u: (u**3).sum())(x)
        fast = ReducedFunctional(J, [Control(x)] if listed else Control(x), tape=tape).compile(respecialize=True)
    for m in (vector(20, 2), vector(10, 3)):
        value, gradient = fast.value_and_derivative(e.own(m))
        same(value, (m**3).sum())
        same(gradient[0] if listed else gradient, 3 * m**2)


def test_an_array_of_twice_the_length(e):
    recorded, other = chain(e, 10), chain(e, 20)
    fast = recorded.compile(respecialize=True)
    for n, slow in ((10, recorded), (20, other), (20, other), (10, recorded)):
        m, h = [vector(n, 2), AdjFloat(0.4)], [vector(n, 3), AdjFloat(0.7)]
        slow(m, inputs=vector(n, 4))
        same(fast(m, inputs=vector(n, 4)), slow(m))
        for found, expected in (
            (fast.derivative(), slow.derivative()),
            (fast.hessian(h), slow.hessian(h)),
            (fast.value_and_derivative(m, inputs=vector(n, 4))[1], slow.derivative()),
            ([fast.tlm(h)], [slow.tlm(h)]),
            (fast.jac_matrix(), slow.jac_matrix()),
        ):
            for a, b in zip(found, expected, strict=True):
                same(a, b)
        assert f"float64[{n}]" in fast.describe()
    assert "loop of 20" in fast.describe()


@pytest.mark.parametrize("name", engines.NAMES)
def test_every_engine(name):
    e = engines.namespace(name)
    f = e.overload(lambda x, c: e.sin(x) * c + e.sum(x))
    x = array(e.own(vector(3)))
    fast = ReducedFunctional((f(f(x, 0.5), 2.0) ** 2).sum(), Control(x)).compile(respecialize=True, engines=[name])
    x = array(e.own(vector(7)))
    slow = ReducedFunctional((f(f(x, 0.5), 2.0) ** 2).sum(), Control(x))
    for m in (vector(7, 1), vector(7, 2)):
        same(fast(m), slow(m))
        same(fast.derivative(), slow.derivative())
        same(fast.hessian(m), slow.hessian(m))


def test_nothing_is_recorded_or_compiled_twice(e):
    recorded = chain(e, 10)
    blocks = len(recorded.tape.get_blocks())
    fast = recorded.compile(respecialize=True)
    for n in (10, 20, 10, 20):
        fast.value_and_derivative([vector(n, 2), AdjFloat(0.4)], inputs=vector(n, 4))
    (segment,) = fast._function._current().policy.at(1).steps
    built = segment.compiled.built
    for n in (10, 20):
        fast.value_and_derivative([vector(n, 5), AdjFloat(0.1)], inputs=vector(n, 4))
    assert segment.compiled.built == built
    assert len(recorded.tape.get_blocks()) == blocks


def test_a_function_of_several_outputs(e):
    f = e.overload(lambda x: (x * x, e.sum(x)))
    x = array(vector(3))
    y, total = f(x)
    fast = ReducedFunction([y * total, total], Control(x)).compile(respecialize=True)
    p = vector(5, 1)
    found = fast(p)
    same(found[0], p * p * p.sum())
    same(fast.adj_jac_action([np.ones(5), 1.0]), 2 * p * p.sum() + np.sum(p * p) + 1.0)
    same(fast.hess_action(np.ones(5), [np.ones(5), 0.0]), 2 * p.sum() + 10 * p + 2 * p.sum())
    assert minimize(ReducedFunctional((x * x).sum(), Control(x)).compile(respecialize=True)).shape == (3,)


def test_without_being_asked_for_it_is_an_error_that_says_how(e):
    x = array(vector(3))
    fast = ReducedFunctional((x * x).sum(), Control(x)).compile()
    with pytest.raises(ArgumentValueError, match=r"controls\[0\].*\(3,\).*\(4,\).*respecialize=True"):
        fast(np.ones(4))


@pytest.mark.parametrize("name", ["jax", "autograd"])
def test_matrices_of_points_are_blocks_at_all_shapes(name):
    e = engines.namespace(name)
    f = e.overload(lambda x, c: (x * x * c, e.sum(c)), pointwise=(True, False), out_pointwise=(True, False))
    x = array(vector(3))
    y, total = f(x, np.array([2.0]))
    fast = ReducedFunction([np.sin(y) * 3.0, total], Control(x)).compile(respecialize=True)
    for n in (3, 5):
        p = vector(n, 1)
        fast(p)
        same(fast.jac_matrix()[0], 12 * p * np.cos(2 * p * p))
    both = e.overload(lambda x, z: x * z + e.sum(z) * 0.0, pointwise=True)
    z = array(vector(3, 2))
    fast = ReducedFunction(both(x, z), [Control(x), Control(z)]).compile(respecialize=True)
    fast([vector(4, 1), vector(4, 2)])
    same(fast.jac_matrix()[0], vector(4, 2))
    with pytest.raises(ArgumentValueError, match="first axis of as many points"):
        fast([vector(1), vector(4)])


def test_inputs_are_those_of_the_last_call_at_other_shapes_too(e):
    f = e.overload(lambda x, d, w: e.sum(x * x) * d * e.sum(w))
    x, d, w = array(vector(3)), AdjFloat(2.0), array(vector(2))
    fast = ReducedFunctional(f(x, d, w), Control(x), inputs=[d, w]).compile(respecialize=True)
    fast(vector(3), inputs=[5.0, vector(2, 1)])
    for n in (4, 3, 5):
        same(fast(vector(n, 2)), np.sum(vector(n, 2) ** 2) * 5.0 * vector(2, 1).sum())
    fast(vector(4), inputs=[0.5, vector(7, 3)])
    same(fast.value_and_derivative(vector(5, 2))[1], 2 * vector(5, 2) * 0.5 * vector(7, 3).sum())


def test_updates_are_followed_at_all_shapes(e):
    double = e.overload(lambda b: b * 2.0)
    f = e.overload(lambda x, b, c: e.sum(x * x) * b * c)
    x, b = array(vector(3)), array(3.0)
    c = double(b)
    number, middle = Control(b), Control(c)
    fast = ReducedFunctional(f(x, b, c), Control(x)).compile(respecialize=True)

    def check(factor):
        for n in (3, 5, 4):
            same(fast(vector(n, 1)), np.sum(vector(n, 1) ** 2) * factor)
            same(fast.derivative(), 2 * vector(n, 1) * factor)

    check(18.0)
    number.update(4.0)
    check(32.0)
    middle.update(10.0)  # no longer what is computed
    check(40.0)


def test_a_call_at_other_shapes_in_the_middle_of_a_call(e):
    def look_elsewhere(values):
        if len(values) == 3:
            same(fast(vector(5, 1)), np.sum(vector(5, 1) ** 3))

    x = array(vector(3))
    f = e.overload(lambda x: e.sum(x * x * x))
    fast = ReducedFunction(f(x * 1.0), Control(x), eval_cb_pre=look_elsewhere).compile(respecialize=True)
    same(fast(vector(3, 2)), np.sum(vector(3, 2) ** 3))
    same(fast.derivative(), 3 * vector(3, 2) ** 2)


def test_it_is_what_it_stands_for(e):
    x = array(vector(3))
    functional = ReducedFunctional(e.overload(lambda x: e.sum(x * x))(x), Control(x))
    for slow in (functional, functional._function):
        fast = slow.compile(respecialize=True)
        assert isinstance(fast, type(slow))
        with pytest.raises(AttributeError):  # it would be one version's alone
            fast.scale = 2.0
        same(copy.copy(fast)(vector(5)), fast(vector(5)))
        assert verify(fast, array(vector(5, 1))).passed


def test_what_is_fixed_to_the_recorded_shape_is_an_error(e):
    x = array(vector(4))
    total = e.overload(lambda x: e.sum(x))
    cases = {
        "refuses float64\\[6\\]": lambda x: total(e.overload(lambda x: e.reshape(x, (2, 2)), name="square")(x)),
        "multiply was recorded with": lambda x: total(x * np.ones(4)),
        "index was recorded": lambda x: total(e.overload(lambda x: x * 1.0)(x)[-1]),
        "index was recorded for": lambda x: total(e.overload(lambda x: x * 1.0)(x)[np.array([1, -1])]),
    }
    for message, make in cases.items():
        fast = ReducedFunctional(make(x), Control(x)).compile(respecialize=True)
        fast(vector(4, 1))
        gradient = fast.derivative()
        with pytest.raises(ArgumentValueError, match=message):
            fast(vector(6))
        same(fast.derivative(), gradient)  # after an error it stands where it stood
    foreign = e.overload(lambda x: e.sum(x * x), jit=False)(x) * 2.0
    same(ReducedFunctional(foreign, Control(x)).compile(respecialize=True)(vector(6)), 2 * np.sum(vector(6) ** 2))


def test_a_failed_call_leaves_tape_and_point(e):
    x = array(vector(3))
    tape = get_working_tape()
    fast = ReducedFunctional(overload(lambda x: (x * x).sum(), "autograd")(x), Control(x)).compile(respecialize=True)
    fast(vector(5))
    blocks = len(tape.get_blocks())
    with pytest.raises(ArgumentTypeError, match="must be real"):
        fast(1j * np.ones(7))
    assert get_working_tape() is tape
    assert len(tape.get_blocks()) == blocks
    same(fast.derivative(), 2 * vector(5))


def test_blocks_that_no_engine_runs_are_named():
    from pyadjoint import Block

    class Doubled(Block):
        def recompute_component(self, inputs, block_variable, idx, prepared):
            return inputs[0] * 2.0

        def evaluate_adj_component(self, inputs, adj_inputs, block_variable, idx, prepared=None):
            return adj_inputs[0] * 2.0

    x = array(vector(3))
    a = to_adjfloat((x * x).sum())
    block = Doubled()
    block.add_dependency(a)
    y = AdjFloat(2.0 * float(a))
    block.add_output(y.create_block_variable())
    get_working_tape().add_block(block)
    fast = ReducedFunctional(y, Control(x)).compile(respecialize=True)
    with pytest.raises(UnsupportedError, match=r"Doubled.* runs at the recorded shapes alone"):
        fast(vector(4))
