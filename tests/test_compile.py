"""Compiled programs against closed forms and against Block by Block, at points other than the recorded one."""

import functools
import logging
import os
import subprocess
import sys
import weakref

import checkpoint_schedules as cs
import engines
import numpy as np
import optree
import pytest

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    ArgumentValueError,
    Control,
    ReducedFunction,
    ReducedFunctional,
    Tape,
    array,
    asarray,
    get_engine,
    get_working_tape,
    minimize,
    ndarray,
    overload,
    push_tape,
    taylor_test,
    verify,
)
from pyadjoint_utils.compiling import standing
from pyadjoint_utils.testing import CHECKS, SCENARIOS, record
from pyadjoint_utils.testing.checks import overloaded

all_engines = pytest.mark.parametrize("engine", engines.NAMES)


def in_several_blocks(f):
    """The function with a Block before and a Block after it, so that there is something to merge."""

    def times(tree, factor):
        return optree.tree_map(lambda x: x * factor if isinstance(x, ndarray) and x.dtype.kind in "fc" else x, tree)

    def call(*args, **kwargs):
        args, kwargs = times((args, kwargs), 2.0)
        args, kwargs = times((args, kwargs), 0.5)
        return times(f(*args, **kwargs), 1.0)

    return call


@all_engines
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_scenarios(engine, scenario):
    """Value and all derivatives of every scenario, merged with arithmetic around it."""
    e = engines.namespace(engine)
    f = in_several_blocks(overloaded(e, scenario))
    case = record(e, scenario, function=f, wrap=lambda x: array(e.own(x)))
    case.rf = case.rf.compile(engines=[engine])
    for name in ("value", "points"):
        CHECKS[name](case)
    assert case.rf._current().policy.at(1).whole


@all_engines
def test_an_argument_that_passes_no_derivative(engine):
    e = engines.namespace(engine)
    f = e.overload(lambda x, y: x * x * y, argnums=0)
    a = array(e.own(A))
    fast = ReducedFunctional(f(a, a * 2.0).sum(), Control(a)).compile(engines=[engine])
    close(fast(P), np.sum(2 * P**3))
    close(fast.derivative(), 4 * P * P)
    close(fast.tlm(Q), np.sum(4 * P * P * Q))
    assert fast._function._current().policy.at(1).whole


# What a compiled function is to its callers, with one engine ------------------------------------------------------------

A, B, P, Q = (np.random.default_rng(k).uniform(0.2, 1.0, 3) for k in range(4))


@pytest.fixture
def e():
    return engines.namespace("jax")


@pytest.fixture
def cube(e):
    """``sum(a^3 b)``, as a functional of ``a``, in several Blocks."""
    f = e.overload(lambda x, y: x * x * y)
    a, b = array(e.own(A)), array(e.own(B))
    return ReducedFunctional((f(a, b) * a).sum(), Control(a)), a, b


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-12, atol=1e-12)


def test_the_point_is_its_own(cube):
    slow, _, _ = cube
    fast = slow.compile()
    close(fast.derivative(), 3 * A**2 * B)  # before any evaluation
    fast(P)
    slow(Q)
    other = slow.compile()
    for _ in range(2):
        close(fast.derivative(), 3 * P**2 * B)
        close(slow.derivative(), 3 * Q**2 * B)
        close(other.derivative(), 3 * Q**2 * B)
        close(fast.hessian(A), 6 * P * B * A)
        close(fast.tlm(A), np.sum(3 * P**2 * B * A))
        other(A)
        close(other.derivative(), 3 * A**2 * B)
        other(Q)


def test_the_tape_is_left_alone(cube):
    slow, _, _ = cube
    blocks = get_working_tape().get_blocks()
    before = [bv.checkpoint for block in blocks for bv in (*block.get_dependencies(), *block.get_outputs())]
    fast = slow.compile()
    fast.value_and_derivative(P)
    fast.hessian(Q)
    after = [bv.checkpoint for block in blocks for bv in (*block.get_dependencies(), *block.get_outputs())]
    assert all(x is y for x, y in zip(before, after, strict=True))


def test_matrices_are_those_at_its_point(cube):
    slow, _, _ = cube
    fast = slow._function.compile()
    fast(P)
    slow(Q)
    close(fast.jac_matrix(), 3 * P**2 * B)
    close(fast.hess_matrix(), np.diag(6 * P * B))
    close(fast.derivative(), 3 * P**2 * B)


def test_value_and_gradient_come_together_once_a_gradient_was_asked_for(cube):
    fast = cube[0].compile()
    fast(P)
    fast(Q)
    (segment,) = fast._function._current().policy.at(1).steps
    assert segment.compiled.built == 1
    fast.derivative()
    fast(P)
    close(fast.derivative(), 3 * P**2 * B)
    assert segment.compiled.built == 3  # value; gradient; both
    close(fast.derivative(2.0), 6 * P**2 * B)
    value, gradient = fast.value_and_derivative(Q)
    close(value, np.sum(Q**3 * B))
    close(gradient, 3 * Q**2 * B)
    assert segment.compiled.built == 3


def test_another_seed_is_not_taken_for_the_expected_one(cube):
    fast = cube[0].compile()
    fast.derivative(3.0)
    fast(P)
    close(fast.derivative(), 3 * P**2 * B)
    close(fast.derivative(3.0), 9 * P**2 * B)


@pytest.mark.parametrize("engine", ["torch", "autograd"])
def test_what_the_user_writes_into_seeds_and_gradients_changes_no_derivative(engine):
    e = engines.namespace(engine)
    a = array(e.own(A))
    fast = ReducedFunctional(e.overload(lambda x: e.sum(x * x * x))(a) * 1.0, Control(a)).compile(engines=[engine])
    seed = e.own(np.full((), 2.0))
    fast(P)
    fast.derivative(asarray(seed))
    fast(P)
    seed += 3.0
    close(fast.derivative(asarray(seed)), 15 * P**2)
    fast(Q)
    gradient = fast.derivative(asarray(seed)).value
    gradient += 1.0
    close(fast.derivative(asarray(seed)), 15 * Q**2)


def test_a_scaled_gradient_comes_with_the_value_whoever_asks(cube, monkeypatch):
    slow, a, _ = cube
    fast = ReducedFunctional(slow.functional, Control(a), scale=3.0).compile()
    fast.derivative()
    (segment,) = fast._function._current().policy.at(1).steps
    fast(P)
    monkeypatch.setattr(type(segment), "vjp", None)
    monkeypatch.setattr(standing, "as_float", None)  # on a device this would wait for the program
    close(fast.derivative(), 9 * P**2 * B)
    close(fast.value_and_derivative(Q)[1], 9 * Q**2 * B)
    monkeypatch.undo()
    fast.scale = 2.0
    close(fast.derivative(), 6 * Q**2 * B)


def test_scale_and_components(e):
    f = e.overload(lambda x, y: e.sum(x * x * y))
    a, b = array(e.own(A)), array(e.own(B))
    J, controls = f(a, b) * 1.0, [Control(a), Control(b)]
    fast = ReducedFunctional(J, controls, derivative_components=(0,), scale=2.0).compile()
    close(fast([P, Q]), 2 * np.sum(P * P * Q))
    first, second = fast.derivative()
    close(first, 4 * P * Q)
    close(second, np.zeros(3))
    close(fast.hessian([A, B])[0], 4 * (A * Q + P * B))
    close(fast.value_and_derivative([A, B])[1][0], 4 * A * B)


def test_callbacks_see_what_they_see_of_the_function_itself(cube):
    slow, _, _ = cube
    seen = []

    def told(name):
        return lambda *values: seen.append((name, [np.asarray(v) for v in values])) or values[-2]

    names = [f"{k}_cb_post" for k in ("eval", "derivative", "hessian", "tlm")]
    functional = ReducedFunctional(slow.functional, slow.controls, scale=2.0, **{n: told(n) for n in names})
    for rf in (functional, functional.compile()):
        rf(P)
        rf.derivative()
        rf.hessian(Q)
        rf.tlm(Q)
    for (name, values), (other, others) in zip(seen[:4], seen[4:], strict=True):
        assert name == other
        for a, b in zip(values, others, strict=True):
            close(a, b)


def test_callbacks_see_the_point_and_not_what_became_of_the_users_value(e):
    seen = []
    a = array(e.own(A))
    functional = ReducedFunctional(
        e.overload(lambda x: e.sum(x * x))(a), Control(a), derivative_cb_post=lambda J, d, m: seen.append(m[0]) or d
    )
    for rf in (functional, functional.compile()):
        m = array(e.own(P))
        rf(m)
        m._ad_imul(5.0)
        close(rf.derivative(), 2 * P)
        close(seen[-1], P)


def test_updates_and_inputs(e):
    f = e.overload(lambda x, y, z: e.sum(x * x * y * z))
    a, b, c = (array(e.own(x)) for x in (A, B, Q))
    fast = ReducedFunctional(f(a, b, c) * 1.0, Control(a), inputs=c).compile()
    close(fast(P), np.sum(P * P * B * Q))
    close(fast(P, inputs=A), np.sum(P * P * B * A))
    close(fast.derivative(), 2 * P * B * A)
    Control(b).update(P)
    close(fast.derivative(), 2 * P * B * A)  # at the last evaluation
    close(fast(P), np.sum(P**3 * A))
    close(fast.derivative(), 2 * P * P * A)
    fresh = ReducedFunctional(f(a, b, c) * 1.0, Control(a), inputs=c).compile()
    close(fresh.derivative(), 2 * A * P * Q)


def test_solvers_and_checks_take_it(cube):
    slow, a, b = cube
    fast = slow.compile()
    assert taylor_test(fast, array(P), array(Q)) > 1.9
    assert verify(fast, array(P)).passed
    lowest = ReducedFunctional(((a - b) ** 2).sum(), Control(a)).compile()
    close(minimize(lowest, method="L-BFGS-B"), B)
    close(minimize(lowest, method="Newton-CG"), B)


def test_a_check_and_a_solver_that_failed_leave_it_where_it_was(cube):
    fast = cube[0].compile()
    seen = []
    fast.derivative_cb_post = lambda value, derivatives, values: (seen.append(values), derivatives)[1]
    close(fast(P), np.sum(P**3 * B))
    assert verify(fast, array(Q)).passed
    seen.clear()
    close(fast.derivative(), 3 * P**2 * B)
    close(fast.hessian(A), 6 * P * B * A)

    def stop(*args):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        minimize(fast, method="L-BFGS-B", callback=stop)
    close(fast.derivative(), 3 * P**2 * B)
    fast([array(P)])
    close(fast.derivative(), 3 * P**2 * B)
    assert len(seen) > 2
    for values in seen[:1] + seen[-2:]:
        close(values[0], P)


def test_other_shapes_and_types_are_refused(cube):
    fast = cube[0].compile()
    with pytest.raises(ArgumentValueError, match=r"controls\[0\].*\(3,\).*\(4,\)"):
        fast(np.ones(4))
    with pytest.raises(ArgumentTypeError, match=r"controls\[0\] must be real"):
        fast(1j * P)
    close(fast(P.astype(np.float32)), np.sum(P.astype(np.float32).astype(float) ** 3 * B))


WRONG_OPTIONS = {
    "no such option": ({"foo": 1}, ArgumentTypeError, "no option 'foo'; it has engines, memory, turns, budget, respec"),
    "memory": ({"memory": "least"}, ArgumentValueError, "memory must be one of 'all', 'step', 'sqrt'; got 'least'"),
    "no turns": ({"turns": 0}, ArgumentValueError, "turns is .* 2 or more; got 0"),
    "negative turns": ({"turns": -3}, ArgumentValueError, "turns is .* 2 or more; got -3"),
    "one turn": ({"turns": 1}, ArgumentValueError, "turns is .* 2 or more; got 1"),
    "half a turn": ({"turns": 2.5}, ArgumentTypeError, "turns is .* an int; got 2.5"),
    "text for seconds": ({"budget": "1"}, ArgumentTypeError, "budget is how many seconds .* a number; got '1'"),
    "seconds below 0": ({"budget": -1.0}, ArgumentValueError, "budget is how many seconds .* 0 or more; got -1.0"),
    "no number of seconds": ({"budget": np.nan}, ArgumentValueError, "budget .* 0 or more; got nan"),
    "a name for names": (
        {"engines": "torch"},
        ArgumentTypeError,
        r"engines is a list .*'torch'. Write engines=\['torch'\]",
    ),
    "no names": ({"engines": None}, ArgumentTypeError, r"engines is a list .*; got None. Write engines=\[\"torch\"\]"),
    "a number as name": ({"engines": [7]}, ArgumentTypeError, "engines is a list .*; got the name 7"),
    "a number as compiler": ({"engines": {"torch": 7}}, ArgumentTypeError, "got 7 as the compiler of 'torch'"),
    "a list as name": ({"engines": [["torch"]]}, ArgumentTypeError, r"got the name \['torch'\]"),
}


@pytest.mark.parametrize(("options", "error", "message"), WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
@pytest.mark.parametrize("kind", ["function", "functional", "of any shape"])
def test_a_wrong_option_is_refused_before_anything_is_compiled(kind, options, error, message, cube):
    given = cube[0]._function if kind == "function" else cube[0]
    with pytest.raises(error, match=message):
        given.compile(**options, **({"respecialize": True} if kind == "of any shape" else {}))


def test_options_may_be_numpys_numbers(cube):
    fast = cube[0].compile(turns=np.int64(8), budget=np.float32(30.0), engines=iter(()))
    close(fast(P), np.sum(P**3 * B))


def test_a_failed_evaluation_leaves_the_point(e):
    broken = []

    def f(x):
        if broken:
            raise ZeroDivisionError
        return x * x

    a = array(A)
    g = overload(f, "autograd")
    fast = ReducedFunctional(g(a).sum(), Control(a)).compile()
    fast(P)
    broken.append(True)
    with pytest.raises(ZeroDivisionError):
        fast(Q)
    broken.clear()
    close(fast.derivative(), 2 * P)


def test_outputs_that_are_controls_or_constant(e):
    f = e.overload(lambda x, y: (x * 2.0, y * 1.0))
    a, b = array(e.own(A)), array(e.own(B))
    y, constant = f(a, b)
    fast = ReducedFunction([a, y + 0.0, constant], [Control(a)]).compile()
    for found, expected in zip(fast([P]), [P, 2 * P, B], strict=True):
        close(found, expected)
    close(fast.adj_jac_action([P, Q, Q])[0], P + 2 * Q)
    close(fast.hess_action([A], [P, Q, Q])[0], np.zeros(3))


def test_adjfloat_controls_and_outputs(e):
    a, b = AdjFloat(2.0), AdjFloat(0.5)
    f = e.overload(lambda x, c: e.sin(c * x))
    from pyadjoint_utils import to_adjfloat

    x = array(e.own(np.array(0.3)))
    J = to_adjfloat(f(x, a * b + 1.0) * x) ** 2
    slow = ReducedFunctional(J, [Control(a), Control(b)])
    fast = slow.compile()
    for m in ([1.5, 0.2], [0.1, -1.0]):
        m = [AdjFloat(v) for v in m]
        assert isinstance(fast(m), AdjFloat)
        assert fast(m) == pytest.approx(slow(m), rel=1e-13)
        np.testing.assert_allclose(fast.derivative(), slow.derivative(), rtol=1e-12)
        np.testing.assert_allclose(fast.hessian(m), slow.hessian(m), rtol=1e-12)
    assert fast._function._current().policy.at(1).whole


# What is compiled, and how often ----------------------------------------------------------------------------------------


def test_a_tape_recorded_anew_compiles_nothing(e):
    f = e.overload(lambda x, c: e.sin(x) * c)

    def use(seed, factor):
        rng = np.random.default_rng(seed)
        with push_tape(Tape()) as tape:
            x = y = array(e.own(rng.standard_normal(3)))
            for k in range(20):
                y = f(y, factor * k)
            J = f(y * factor, 2.0).sum()
            fast = ReducedFunctional(J, Control(x), tape=tape).compile()
        fast(x)
        fast.value_and_derivative(rng.standard_normal(3))
        fast.hessian(rng.standard_normal(3))
        (segment,) = fast._function._current().policy.at(1).steps
        return segment.compiled

    first = use(0, 1.5)
    built = first.built
    assert use(1, -0.3) is first
    assert first.built == built == 3


def test_jit_false_is_not_merged(e, caplog):
    plain = e.overload(lambda x: x * x, jit=False, name="plain")
    f = e.overload(lambda x: e.sin(x))
    x = array(e.own(A))
    slow = ReducedFunctional(f(f(plain(f(f(x))))).sum(), Control(x))
    fast = slow.compile()
    with caplog.at_level(logging.INFO, logger="pyadjoint_utils"):
        close(fast(P), float(slow(P)))
    assert "5 Blocks in 2 segments" in caplog.text
    close(fast.derivative(), slow.derivative().numpy())
    close(fast.hessian(Q), slow.hessian(Q).numpy())
    text = fast.describe()
    assert "plain (a Block by itself)" in text
    assert "Not merged: jax:plain: jit=False" in text


def test_a_used_up_budget_runs_block_by_block(cube, caplog):
    slow, _, _ = cube
    fast = slow.compile(budget=0.0)
    with caplog.at_level(logging.INFO, logger="pyadjoint_utils"):
        close(fast(P), float(slow(P)))
        close(fast.derivative(), 3 * P**2 * B)
        close(fast.hessian(Q), 6 * P * B * Q)
    assert "by themselves" in caplog.text
    assert fast._function._budget.spent == 0.0


def test_a_budget_that_runs_out_on_the_way(cube):
    slow, _, _ = cube
    fast = slow.compile()
    fast(P)
    fast._function._budget.limit = 0.0  # as if compiling the value had taken much longer than was thought
    close(fast.derivative(), 3 * P**2 * B)
    close(fast.hessian(Q), 6 * P * B * Q)
    close(fast(Q), np.sum(Q**3 * B))
    close(fast.derivative(), 3 * Q**2 * B)


def test_a_budget_that_another_function_has_used_up(cube):
    slow, _, _ = cube
    fast, other = slow.compile(), slow.compile()
    fast(P)
    other(P)
    other._function._budget.limit = 0.0
    for derivative in (fast.derivative, lambda: fast.hessian(Q)):
        derivative()
        assert fast._function._current().policy.at(2).whole
        assert fast._function._current().policy.at(1).whole


def test_a_long_run_is_cut_into_equal_pieces(e, monkeypatch):
    """Where the estimate says so; and the pieces are one program."""
    f, g = e.overload(lambda x: e.sin(x)), e.overload(lambda x: e.exp(-x * x))
    x = y = array(e.own(A))
    for _ in range(60):
        y = g(f(y))
    slow = ReducedFunctional(y.sum(), Control(x))
    fast = slow.compile(turns=1000)
    monkeypatch.setattr(type(get_engine("jax")), "seconds", lambda self, work, order: work.operations**2 / 400)
    close(fast(P), float(slow(P)))
    close(fast.derivative(), slow.derivative().numpy())
    close(fast.hessian(Q), slow.hessian(Q).numpy())
    program = fast._function._current().policy.at(1)
    assert len(program.steps) > 3
    assert len({step.compiled for step in program.steps}) <= 3


def test_a_second_cotangent_to_start_from(cube):
    slow, _, _ = cube
    fast = slow.compile()
    fast(P)
    close(fast.hessian(Q, hessian_input=0.7), 6 * P * B * Q + 0.7 * 3 * P**2 * B)


# Programs of several engines ----------------------------------------------------------------------------------------------


def of_two_engines(e, start):
    """``sum(Re(y^2 conj(z)))`` with ``y = 8 x^3 b``, masked, and ``z = sin(y)`` outside of the engine."""
    b = array(e.own(B))
    cube = e.overload(lambda x, b: (x * x * x * b, x * b, (abs(x) > 0.5) * 1))
    x = array(e.own(start))
    y, _, mask = cube(x * 2.0, b)
    z = overload(np_sin, "autograd")(y)
    loss = e.overload(lambda y, z, mask: ((y * y * z.conj()).real * mask).sum())
    return ReducedFunctional(loss(y * 1.0, z, mask * 1.0), Control(x))


def np_sin(y):
    import autograd.numpy as anp

    return anp.sin(y)


@pytest.mark.parametrize("factor", [1.0, 1.0 + 0.5j])
def test_what_a_derivative_needs_is_kept_of_the_evaluation(e, factor):
    slow = of_two_engines(e, A * factor)
    fast = slow.compile()
    fast.value_and_derivative(A * factor)
    first = fast._function._current().policy.at(1).steps[0]
    assert first.compiled.built == 2  # forward and back, no evaluation besides
    for point in (P * factor, Q * factor):
        value, gradient = fast.value_and_derivative(point)
        close(value, slow(point))
        close(gradient, slow.derivative())
        assert first.compiled.built == 2
    close(fast.tlm(A * factor), slow.tlm(A * factor))
    close(fast.derivative(2.0), slow.derivative(2.0))  # once more at a point, with nothing kept
    fast(P * factor)
    close(fast.hessian(A * factor), (slow(P * factor), slow.hessian(A * factor))[1])
    close(fast.derivative(), slow.derivative())
    assert verify(fast, array(Q * factor)).passed


def test_the_last_program_gives_value_and_gradient_at_once(e):
    square = e.overload(lambda x: x * x)
    x = array(e.own(A))
    fast = ReducedFunctional(square(square(overload(np_sin, "autograd")(square(x)))).sum(), Control(x)).compile()

    def gradient(p):
        return 8 * p * np.sin(p * p) ** 3 * np.cos(p * p)

    for p in (P, Q):
        value, found = fast.value_and_derivative(p)
        close(value, np.sum(np.sin(p * p) ** 4))
        close(found, gradient(p))
    last = fast._function._current().policy.at(1).steps[-1]
    assert last.compiled.built == 1
    fast(P)
    close(fast.derivative(3.0), 3.0 * gradient(P))
    close(fast.derivative(), gradient(P))
    close(fast.derivative(), gradient(P))


@pytest.mark.parametrize("engine", [None, "autograd"])
def test_a_gradient_that_fails_leaves_evaluations_alone(e, engine):
    jax = pytest.importorskip("jax")
    double = e.overload(lambda x: jax.lax.while_loop(lambda s: s.sum() < 10.0, lambda s: s * 2.0, x))
    x = array(e.own(np.ones(3)))
    y = double(x * 1.0) * 1.0
    if engine is not None:
        y = overload(np_sin, engine)(y)
    fast = ReducedFunctional((y * y).sum(), Control(x)).compile()
    expected = np.sum((4.0 if engine is None else np.sin(4.0)) ** 2 * np.ones(3))
    close(fast(np.ones(3)), expected)
    for gradient in (lambda: fast.value_and_derivative(P), fast.derivative):
        with pytest.raises(ValueError, match="Reverse-mode"):
            gradient()
        close(fast(np.ones(3)), expected)
        close(fast.tlm(np.ones(3)), (2 * 16 if engine is None else 4 * np.sin(8.0)) * 3)


ON_TWO_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from pyadjoint_utils import Control, ReducedFunctional, array, overload_jax

f, total = overload_jax(lambda x: jnp.sin(x) * x), overload_jax(jnp.sum)
with jax.enable_x64(True):
    x = array(jnp.linspace(0.1, 1.0, 4))
p = np.linspace(0.3, 0.9, 4)
fast = ReducedFunctional(total(f(x * 1.0)), Control(x)).compile()
first, second = jax.devices()
both = jax.sharding.NamedSharding(jax.sharding.Mesh(np.array([first, second]), "a"), jax.sharding.PartitionSpec("a"))
for device in (first, second, both, first):
    with jax.enable_x64(True):
        m = array(jax.device_put(p, device))
    value, gradient = fast.value_and_derivative(m)
    np.testing.assert_allclose(float(value), np.sum(np.sin(p) * p), rtol=1e-14)
    np.testing.assert_allclose(np.asarray(gradient), np.cos(p) * p + np.sin(p), rtol=1e-14)
    np.testing.assert_allclose(np.asarray(fast.hessian(m)), (2 * np.cos(p) - np.sin(p) * p) * p, rtol=1e-14)
"""


def test_values_on_other_devices_than_those_of_the_first_call(e):
    flags = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", ON_TWO_DEVICES], env=flags, check=True)


def test_what_is_kept_of_an_evaluation_is_let_go_by_its_derivative(e):
    jax = pytest.importorskip("jax")
    size = 1000
    start = array(e.own(np.linspace(0.1, 1.0, size)))
    y = start
    step = e.overload(lambda y: y * jax.numpy.sin(y))
    for _ in range(20):
        y = step(y)
    rf = ReducedFunctional((overload(np_sin, "autograd")(y) * y).sum(), Control(start)).compile()

    def alive():
        return sum(array.shape[-1:] == (size,) and array.nbytes for array in jax.live_arrays())

    rf.value_and_derivative(start)
    before = alive()
    rf(start)
    kept = alive()
    rf(start)
    rf(start)
    assert alive() == kept > before + 20 * 8 * size
    rf.derivative()
    assert alive() == before


def counted(e, runs):
    """``x^2 sin(x)``, with a mark in ``runs`` for every run."""

    def f(x):
        runs.append(1)
        return x * x * e.sin(x)

    return e.overload(f)


def ran(runs, compute):
    before = len(runs)
    result = compute()
    return len(runs) - before, result


# What keeps its own record of a run; name of the engine around it, or None.
@pytest.mark.parametrize("engine", ["torch", "autograd"])
@pytest.mark.parametrize("around", [None, "jax"])
def test_a_function_runs_once_for_value_and_gradient(engine, around):
    e, runs = engines.namespace(engine), []
    f, o = counted(e, runs), engines.namespace(around or engine)
    double = o.overload(lambda x: 2.0 * x)
    x = array(o.own(A))
    slow = ReducedFunctional((double(f(double(x * 1.0))) * 1.0).sum(), Control(x))
    fast = slow.compile(engines=[engine])

    def value(p):
        return np.sum(8 * p * p * np.sin(2 * p))

    def gradient(p):
        return 16 * p * np.sin(2 * p) + 16 * p * p * np.cos(2 * p)

    fast.value_and_derivative(A)
    for p in (P, Q):
        n, (y, dy) = ran(runs, lambda p=p: fast.value_and_derivative(p))
        close(y, value(p))
        close(dy, gradient(p))
        assert n == 1
    n, y = ran(runs, lambda: fast(P))
    close(y, value(P))
    assert n == 1
    assert ran(runs, lambda: fast(Q))[0] == 1
    n, dy = ran(runs, fast.derivative)
    close(dy, gradient(Q))
    assert n == 0
    close(fast.derivative(3.0), 3.0 * gradient(Q))  # nothing is kept any more
    fast(P)
    slow(P)
    close(fast.hessian(Q), slow.hessian(Q))
    close(fast.derivative(-2.0), -2.0 * gradient(P))


@pytest.mark.parametrize("engine", ["torch", "autograd"])
def test_one_map_gives_value_and_adjoint_in_one_run(engine):
    e, runs = engines.namespace(engine), []

    def f(x, c):
        runs.append(1)
        return e.sin(x[0]) * c[0], x[0] * x[1], 2.0 * x[1]

    both = e.engine.compile(e.engine.value_and_vjp_of(f, 2, (0, 2)), ())
    x, c, yb = (e.own(A), e.own(B)), (e.own(P),), (e.own(Q), e.own(P))
    found = both((*x, *yb), c)
    assert len(runs) == 1
    expected = (np.sin(A) * P, A * B, 2.0 * B, np.cos(A) * P * Q, 2.0 * P)
    for a, b in zip(found, expected, strict=True):
        close(e.engine.to_numpy(a), b)


@pytest.mark.parametrize("engine", ["torch", "autograd"])
def test_writing_to_the_value_changes_no_gradient_that_follows(engine):
    e = engines.namespace(engine)
    exp = e.overload(lambda x: e.exp(e.sum(x * x)))  # its derivative is made of its value
    x = array(e.own(A))
    fast = ReducedFunctional(exp(x * 1.0), Control(x)).compile(engines=[engine])
    fast.derivative()
    value = fast(P).value
    value[...] = 0.0
    close(fast.derivative(), 2.0 * P * np.exp(np.sum(P * P)))


def test_torch_keeps_one_graph_and_lets_it_go(e):
    torch = pytest.importorskip("torch")
    t = engines.namespace("torch")
    alive, before = weakref.WeakSet(), []

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor.clone()
            alive.add(self)

    def step(x):
        before.append(len(alive))
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            return torch.sin(x) * x

    step = t.overload(step)
    for between in (lambda x: x * 1.0, lambda x: e.overload(lambda x: x * 1.0)(x)):
        x = array(A)
        fast = ReducedFunctional(between(step(step(between(x)))).sum(), Control(x)).compile(engines=["torch"])
        fast(A)
        assert not alive  # nobody has asked for a gradient
        fast.value_and_derivative(A)
        assert not alive
        fast(P)
        kept = len(alive)
        for m in (Q, P):
            del before[:]
            fast(m)
            assert before[0] == 0  # it was let go before anything else was computed
        assert len(alive) == kept > 0
        fast.derivative()
        assert not alive
        fast(Q)
        del fast
        assert not alive


# Under a schedule --------------------------------------------------------------------------------------------------------

CHOICES = {
    "none": (lambda: None, "all"),
    "SingleMemory": (cs.SingleMemoryStorageSchedule, "all"),
    "Revolve": (lambda: cs.Revolve(40, 3), "sqrt"),
    "Multistage": (lambda: cs.MultistageCheckpointSchedule(40, 30, 10), "sqrt"),
    "Multistage, all": (lambda: cs.MultistageCheckpointSchedule(40, 50, 0), "step"),
    "Mixed": (lambda: cs.MixedCheckpointSchedule(40, 3), "sqrt"),
    "SingleDisk": (cs.SingleDiskStorageSchedule, "sqrt"),
    "TwoLevel": (lambda: cs.TwoLevelCheckpointSchedule(10, 2), "sqrt"),
    "None": (cs.NoneCheckpointSchedule, "sqrt"),
}


@functools.cache
def damped():
    jnp = pytest.importorskip("jax").numpy
    return overload(lambda y, p: y - 0.1 * jnp.sin(y) * p, "jax")


def loop_of_40(schedule):
    step = damped()
    with push_tape(Tape()) as tape:
        if schedule is not None:
            tape.enable_checkpointing(schedule)
        x, p = array(P), array(0.3)
        y = x
        for _ in tape.timestepper(range(40)):
            y = step(y, p)
        return ReducedFunctional((y * y).sum(), [Control(x), Control(p)])


@pytest.mark.parametrize("name", CHOICES)
def test_loops_keep_what_comes_nearest_to_the_schedule(name, caplog):
    schedule, kept = CHOICES[name]
    plain, rf = loop_of_40(None), loop_of_40(schedule())
    m, h = [array(2.0 * P), array(-0.7)], [array(P), array(1.5)]
    caplog.set_level(logging.INFO, "pyadjoint_utils.compiling.policy")
    for asked in (None, "all", "step", "sqrt"):
        fast = rf.compile() if asked is None else rf.compile(memory=asked)
        close(fast(m), float(plain(m)))
        for found, expected in zip(fast.derivative(), plain.derivative(), strict=True):
            close(found, expected)
        for found, expected in zip(fast.hessian(h), plain.hessian(h), strict=True):
            close(found, expected)
        said = f"Loops keep for the derivative: {asked or kept}"
        if kept != "all":
            reason = "which comes nearest to" if asked is None else "as memory= says, and not"
            said += f", {reason} the schedule of the tape ({type(schedule()).__name__}, 40 time steps)"
        assert said in fast.describe().splitlines()
        assert said.replace(" for the derivative", "") in caplog.text
        (segment,) = fast._function._current().policy.at(1).steps
        assert {call.memory for call in segment.compiled.fused.calls if hasattr(call, "memory")} == {asked or kept}
        caplog.clear()


def test_without_a_loop_the_schedule_is_not_followed():
    rf = loop_of_40(cs.Revolve(40, 3))
    assert "No loop: all values are kept, and not as the schedule of the tape says (Revolve, 40 time steps)" in (
        rf.compile(turns=1000).describe()
    )
