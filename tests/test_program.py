"""A plan as pure data: evaluated and differentiated anywhere, and the tape does not notice."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pyadjoint import Block, get_working_tape
from toy_engine import engine, overload_toy, overload_twin, sin, toy, twin

from pyadjoint_utils import AdjFloat, Control, ReducedFunction, array, asarray, get_engine, to_adjfloat, to_numpy
from pyadjoint_utils.compiling.program import Program
from pyadjoint_utils.inside.foreign_block import ForeignBlock
from pyadjoint_utils.inside.host_function import as_numpy
from pyadjoint_utils.plan import Plan
from pyadjoint_utils.tapes import state_of

P, A = np.array([0.4, -0.9]), 0.7
DX, DA = np.array([0.3, 1.2]), -0.4


class Product(Block):
    """``a exp(x)``, as another package writes it: its Hessian uses the tangent of its own output."""

    def __init__(self, x, a):
        super().__init__()
        self.add_dependency(x)
        self.add_dependency(a)

    def recompute_component(self, inputs, block_variable, idx, prepared):
        x, a = _numbers(inputs)
        return asarray(a * np.exp(x))

    def evaluate_tlm_component(self, inputs, tlm_inputs, block_variable, idx, prepared=None):
        (x, a), (dx, da) = _numbers(inputs), _numbers(tlm_inputs)
        return a * np.exp(x) * dx + np.exp(x) * da

    def evaluate_adj_component(self, inputs, adj_inputs, block_variable, idx, prepared=None):
        (x, a), (yb,) = _numbers(inputs), _numbers(adj_inputs)
        return a * np.exp(x) * yb if idx == 0 else float((np.exp(x) * yb).sum())

    def evaluate_hessian_component(
        self, inputs, hessian_inputs, adj_inputs, block_variable, idx, relevant_dependencies, prepared=None
    ):
        (x, a), (yb,), (dyb,) = _numbers(inputs), _numbers(adj_inputs), _numbers(hessian_inputs)
        (dy,) = _numbers([self.get_outputs()[0].tlm_value])
        (dx,) = _numbers([bv.tlm_value for i, bv in relevant_dependencies if i == 0] or [None])
        if idx == 0:
            return a * np.exp(x) * dyb + dy * yb
        return float((np.exp(x) * dyb + np.exp(x) * dx * yb).sum())


def _numbers(values):
    return [np.asarray(0.0 if v is None else v.numpy() if hasattr(v, "numpy") else v) for v in values]


def foreign_product(x, a):
    y = asarray(float(a) * np.exp(x.numpy()))
    block = Product(x, a)
    get_working_tape().add_block(block)
    block.add_output(y.create_block_variable())
    return y


def engines(x, a):
    """``a^2 sin(x) x`` and the sum of it, over two engines, numbers and a conversion."""
    s = overload_toy(sin)(x)
    y = overload_twin(lambda s, x, a: s * x * a)(to_numpy(s), x, a * a)
    return [y, to_adjfloat(overload_toy(lambda y: y.sum())(y)) * 1.0]


def foreign(x, a):
    """``(a exp(a exp(x)), sin(x))``."""
    return [foreign_product(foreign_product(to_numpy(x), a), a), overload_toy(sin)(x)]


def recorded(make):
    x, a = toy([1.0, 2.0]), AdjFloat(1.5)
    rf = ReducedFunction(make(x, a), [Control(x), Control(a)])
    outputs, controls = ([v.block_variable for v in values] for values in (rf.outputs, rf.controls))
    return rf, Program(Plan(rf.tape, outputs, controls))


def numbers(values):
    return [0.0 if v is None else as_numpy(v) for v in values]


def check(found, wanted):
    for a, b in zip(numbers(found), numbers(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


SEEDS = {engines: [np.array([1.0, -0.5]), 0.8], foreign: [np.array([1.0, -0.5]), np.array([0.2, 0.3])]}


@pytest.mark.parametrize("make", [engines, foreign])
def test_sweeps_are_those_of_the_tape_and_leave_it_alone(make):
    rf, program = recorded(make)
    direction, seeds = [toy(DX), AdjFloat(DA)], [asarray(s) for s in SEEDS[make]]
    wanted = [
        rf([toy(P), AdjFloat(A)]),
        rf.jac_action(direction),
        rf.adj_jac_action(seeds),
        rf.hess_action(direction, seeds),
    ]
    rf([toy(2 * P), AdjFloat(3 * A)])
    environment = program.evaluate([P, A])
    check([environment[k] for k in program.outputs], wanted[0])
    check(program.tangents(environment, [DX, DA]), wanted[1])
    check(program.adjoints(environment, SEEDS[make]), wanted[2])
    first, second = program.second_adjoints(environment, SEEDS[make], [DX, DA])
    check(first, wanted[2])
    check(second, wanted[3])
    # The tape's own function is still differentiated where it was evaluated.
    check(rf.jac_action(direction), program.tangents(program.evaluate([2 * P, 3 * A]), [DX, DA]))


def test_closed_forms():
    _, program = recorded(engines)
    environment = program.evaluate([P, A])
    slope = np.cos(P) * P + np.sin(P)
    check([environment[k] for k in program.outputs], [A**2 * np.sin(P) * P, A**2 * (np.sin(P) * P).sum()])
    dy = A**2 * slope * DX + 2 * A * DA * np.sin(P) * P
    check(program.tangents(environment, [DX, DA]), [dy, dy.sum()])
    first, second = program.second_adjoints(environment, [None, 1.0], [None, DA])
    check(first, [A**2 * slope, 2 * A * (np.sin(P) * P).sum()])
    check(second, [2 * A * DA * slope, 2 * DA * (np.sin(P) * P).sum()])


def test_a_foreign_block_has_its_mixed_derivatives_and_its_outputs_tangent():
    x, a = array([1.0, 2.0]), AdjFloat(1.5)
    rf = ReducedFunction(foreign_product(x, a), [Control(x), Control(a)])
    (step,) = Program(Plan(rf.tape, [rf.outputs[0].block_variable], [c.block_variable for c in rf.controls])).steps
    yb = SEEDS[foreign][0]
    # Of x alone, along a.
    _, (xbb, nothing) = step.hvp([P, A], [yb], [None, DA], [None], (0,))
    np.testing.assert_allclose(as_numpy(xbb), DA * np.exp(P) * yb)
    assert nothing is None
    # Pyadjoint's own product of numbers, whose Hessian looks at the marked dependencies alone.
    b = AdjFloat(2.0) * AdjFloat(3.0)
    block = ForeignBlock(rf.tape.get_blocks()[-1], state_of(rf.tape))
    assert block.hvp([b, 3.0], [0.5], [None, 1.0], [None], (0,)) == ([1.5, None], [0.5, None])


def test_steps_are_functions_of_the_engines_that_they_belong_to():
    _, program = recorded(foreign)
    everyone = engine, twin, get_engine("autograd")
    known = {
        type(step.block).__name__ + step.name[:4]: [step.rules(e) is not None for e in everyone]
        for step in program.steps
    }
    assert known["EngineBlocktoy:"] == [True, False, False]
    assert next(found for name, found in known.items() if name.startswith("Product")) == [False, False, False]
    assert next(found for name, found in known.items() if name.startswith("Conversion")) == [True, True, True]


def test_numbers_are_any_engines():
    a = AdjFloat(1.5)
    y = np.exp(a * a) + np.sin(a) / 2.0
    program = Program(Plan(get_working_tape(), [y.block_variable], [a.block_variable]))
    assert all(step.rules(e) is not None for step in program.steps for e in (engine, get_engine("autograd")))
    environment = program.evaluate([A])
    check([environment[k] for k in program.outputs], [np.exp(A**2) + np.sin(A) / 2])
    check(program.tangents(environment, [1.0]), [2 * A * np.exp(A**2) + np.cos(A) / 2])


def test_foreign_blocks_are_evaluated_by_several_threads():
    _, program = recorded(foreign)
    gradient = lambda k: numbers(program.adjoints(program.evaluate([P + 0.1 * k, A]), SEEDS[foreign]))
    wanted = [gradient(k) for k in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(gradient, range(40)), wanted, strict=True):
            check(found, expected)


def test_a_control_that_was_computed_is_a_source():
    x = array([1.0, 2.0])
    y = x * 2.0
    z = y * y * x
    program = Program(ReducedFunction(z, [Control(x), Control(y)])._plan)
    environment = program.evaluate([np.array([3.0, 4.0]), np.array([5.0, 6.0])])
    np.testing.assert_allclose(environment[program.outputs[0]], [75.0, 144.0])
    xb, yb = program.adjoints(environment, [np.ones(2)])
    np.testing.assert_allclose(xb, [25.0, 36.0])
    np.testing.assert_allclose(yb, [30.0, 48.0])


def test_a_value_that_stands_twice_in_a_foreign_block_is_counted_once():
    x, a = array([0.4, -0.9]), AdjFloat(3.0)
    program = Program(ReducedFunction(foreign_product(x * 1.0, a * a) * (a * a), [Control(x), Control(a)])._plan)
    environment = program.evaluate([np.zeros(2), 2.0])
    _, ab = program.adjoints(environment, [np.array([1.0, 0.0])])
    assert float(ab) == pytest.approx(4 * 2.0**3)


def test_a_foreign_block_stands_at_each_environments_own_point():
    x, a = array(P), AdjFloat(A)
    rf = ReducedFunction(foreign_product(x, a), [Control(x), Control(a)])
    program = Program(rf._plan)
    environments = {v: program.evaluate([P, v]) for v in (0.5, 2.0)}
    rf([P, 9.0])
    for v, environment in environments.items():
        (dy,) = program.tangents(environment, [DX, None])
        np.testing.assert_allclose(as_numpy(dy), v * np.exp(P) * DX, rtol=1e-12)
    np.testing.assert_allclose(rf.jac_action([DX, 0.0]).numpy(), 9.0 * np.exp(P) * DX, rtol=1e-12)
