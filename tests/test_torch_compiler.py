"""Merged functions of PyTorch under ``torch.compile``, against Block by Block at other points."""

import engines
import numpy as np
import pytest
from test_compile import in_several_blocks

from pyadjoint_utils import (
    ArgumentValueError,
    Control,
    ReducedFunctional,
    Tape,
    UnsupportedError,
    array,
    overload_torch,
    push_tape,
)
from pyadjoint_utils.testing import CHECKS, SCENARIOS, record
from pyadjoint_utils.testing.checks import overloaded

e = engines.namespace("torch")
torch = pytest.importorskip("torch")

A, B, P, Q = (np.random.default_rng(k).uniform(0.2, 1.0, 3) for k in range(4))
# What dynamo sees and what autograd does is the same with every backend; this one generates no code.
QUICK = {"torch": "eager"}


@pytest.fixture(autouse=True)
def reset():
    yield
    torch.compiler.reset()


def functional(*functions):
    """``sum(... f(x) ...)`` of an array of three numbers."""
    x = y = array(e.own(A))
    for f in functions:
        y = f(y)
    return ReducedFunctional(y.sum(), Control(x))


def check(slow, fast):
    for m in (P, Q, -P):
        expected = [slow(m), slow.derivative(), slow.hessian(B), slow.tlm(B)]
        for a, b in zip([fast(m), fast.derivative(), fast.hessian(B), fast.tlm(B)], expected, strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-10, atol=1e-10)


def rules(fast):
    (segment,) = fast._function._current().policy.at(1).steps
    return segment.compiled


sine = overload_torch(lambda x: torch.sin(x) * x, name="sine")


OFTEN = ("two in, two out", "network layer", "holomorphic", "integer output")
TABLE = [pytest.param(s, id=s.name, marks=[] if s.name in OFTEN else pytest.mark.slow) for s in SCENARIOS]


@pytest.mark.parametrize("scenario", TABLE)
def test_scenarios(scenario):
    f = in_several_blocks(overloaded(e, scenario))
    case = record(e, scenario, function=f, wrap=lambda x: array(e.own(x)))
    case.rf = case.rf.compile(engines=QUICK)
    for name in ("value", "points"):
        CHECKS[name](case)
    (segment,) = case.rf._current().policy.at(1).steps
    assert segment.compiled.built > 0
    assert not segment.compiled.reasons


def test_everything_is_compiled():
    slow = functional(sine, sine)
    fast = slow.compile(engines=QUICK)
    check(slow, fast)
    found = rules(fast)
    assert found.built >= 4
    assert not found.reasons
    assert "not compiled" not in fast.describe()


def test_what_depends_on_the_numbers_runs_as_it_is():
    branch = overload_torch(lambda x: x**3 if x.sum() > 0 else torch.cos(x), name="branch")
    slow = functional(branch, sine)
    fast = slow.compile(engines=QUICK)
    check(slow, fast)
    assert rules(fast).built == 0
    assert "it cannot be traced (" in fast.describe()


def test_numbers_that_are_drawn_again_are_not_compiled():
    torch.manual_seed(0)
    dropout = overload_torch(torch.nn.Dropout(0.4).double())
    generator = torch.Generator()

    def noisy(x):
        generator.manual_seed(3)
        return x + torch.rand(3, generator=generator)

    for f in (lambda x: dropout({}, x), overload_torch(noisy)):
        slow = functional(f, sine)
        fast = slow.compile(engines=QUICK)
        check(slow, fast)
        assert "not compiled" in fast.describe()


def test_another_number_is_another_program():
    power = overload_torch(lambda x, k: x**k + k, name="power")
    for k in (2, 3.0, 3):
        with push_tape(Tape()):
            slow = functional(lambda x, k=k: power(x, k), sine)
            fast = slow.compile(engines=QUICK)
        assert float(fast(P)) == pytest.approx(float(slow(P)), rel=1e-13)
        assert rules(fast).built == 1


def test_a_zero_of_another_sign_is_another_program():
    signed = overload_torch(lambda x, c: x * torch.full_like(x, c).reciprocal().sign(), name="signed")
    for c in (0.0, -0.0):
        with push_tape(Tape()):
            fast = functional(lambda x, c=c: signed(x, c), sine).compile(engines=QUICK)
        np.testing.assert_allclose(float(fast(P)), np.sum(P * np.sin(P)))
        gradient = np.asarray(
            functional(lambda x, c=c: signed(x, c), lambda y: y * 1.0).compile(engines=QUICK).derivative()
        )
        np.testing.assert_allclose(gradient, np.copysign(np.ones(3), c))


def test_tensors_with_gaps():
    x = array(e.own(np.ones((2, 3))))
    rows = overload_torch(lambda x: x.reshape(-1)[1:4] * 2.0)
    slow = ReducedFunctional(sine(rows(x)).sum(), Control(x))
    fast = slow.compile(engines=QUICK)
    for m in (torch.ones(2, 3, dtype=torch.float64), torch.arange(6.0, dtype=torch.float64).reshape(3, 2).T):
        assert float(fast(array(m))) == pytest.approx(float(slow(array(m))), rel=1e-13)
        np.testing.assert_allclose(fast.derivative().numpy(), slow.derivative().numpy(), rtol=1e-13)


def test_writing_to_a_copy_and_a_captured_tensor():
    data = torch.tensor(B)

    def f(x):
        y = x.clone()
        y[0] = y[1] * 2.0
        y += data
        return y * y

    slow = functional(overload_torch(f), sine)
    fast = slow.compile(engines=QUICK)
    check(slow, fast)
    assert rules(fast).built > 0


def test_names_that_no_compiler_has():
    slow = functional(sine, sine)
    with pytest.raises(ArgumentValueError, match=r"no backend 'fast'; it has .*'inductor'"):
        slow.compile(engines={"torch": "fast"})
    with pytest.raises(ArgumentValueError, match="'autograd' has no compilers"):
        slow.compile(engines={"autograd": "inductor"})


@pytest.fixture
def backend():
    """A backend of a name of its own, which does what it is told."""
    from torch._dynamo import register_backend
    from torch._dynamo.backends import registry

    def registered(compile_graph):
        register_backend(compile_graph, name="trial")
        return {"torch": "trial"}

    yield registered
    for table in (registry._BACKENDS, registry._COMPILER_FNS):
        table.pop("trial", None)


def test_a_backend_that_fails(backend):
    def fail(graph, inputs):
        raise OSError("no compiler found")

    slow = functional(sine, sine)
    fast = slow.compile(engines=backend(fail))
    for _ in range(2):
        with pytest.raises(UnsupportedError, match=r"'trial' failed: .*engines=\['torch'\]"):
            fast(P)
    check(slow, slow.compile(engines=["torch"]))


def test_a_backend_that_computes_something_else(backend):
    slow = functional(sine, sine)
    fast = slow.compile(engines=backend(lambda graph, inputs: lambda *x: [y * 1.001 for y in graph(*x)]))
    check(slow, fast)
    assert "gives other numbers" in fast.describe()


@pytest.mark.slow
def test_inductor():
    slow = functional(sine, sine)
    fast = slow.compile(engines={"torch": "inductor"})
    check(slow, fast)
    assert not rules(fast).reasons
