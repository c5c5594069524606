"""Engines and tapes that are wrong on purpose: the scenario checks must find each of them."""

import engines
import numpy as np
import pytest

from pyadjoint_utils import Engine, get_engine
from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.reduced import ReducedFunction
from pyadjoint_utils.testing import BY_NAME, CHECKS, record
from pyadjoint_utils.variable import Variable

pytestmark = pytest.mark.engine_property("mutants")
DERIVED = ("hvp_of", "vjp_tangent_of", "value_and_vjp_of", "split_vjp_of")
real_engines = pytest.mark.parametrize("engine", ["jax", "torch"])


def recorded(engine, scenario):
    engines.namespace(getattr(engine, "name", engine))
    return record(engine, BY_NAME[scenario])


def mutant(name, **methods):
    """The named engine with some of its methods replaced; what can be derived from them is derived."""
    engines.namespace(name)
    base = type(get_engine(name))
    return type("Mutant", (base,), {rule: getattr(Engine, rule) for rule in DERIVED} | methods)()


def assert_caught(case, *checks):
    for check in checks:
        with pytest.raises(AssertionError):
            CHECKS[check](case)


def original(method):
    """Calls the method of the base class from a mutant's own."""
    return lambda self, *args: getattr(super(type(self), self), method)(*args)


vjp_of, jvp_of, compiled = original("vjp_of"), original("jvp_of"), original("compile")


@real_engines
@pytest.mark.parametrize("scenario", ["elementwise", "two in, two out", "holomorphic", "complex times real"])
def test_an_unchanged_subclass_passes(engine, scenario):
    case = recorded(mutant(engine), scenario)
    for check in CHECKS.values():
        check(case)


# Engines ---------------------------------------------------------------------------------------------------------------


@real_engines
def test_zero_derivatives(engine):
    def zero_vjp(self, f, n):
        vjp = vjp_of(self, f, n)
        return lambda x, c: tuple([xb * 0 for xb in vjp(x, c)])

    case = recorded(mutant(engine, vjp_of=zero_vjp), "elementwise")
    CHECKS["value"](case)
    assert_caught(case, "VJP", "HVP", "points", "Taylor", "verify")


@real_engines
def test_zero_tangents(engine):
    def zero_jvp(self, f, n):
        jvp = jvp_of(self, f, n)

        def call(x, c):
            both = jvp(x, c)
            m = len(both) // 2
            return (*both[:m], *[dy * 0 for dy in both[m:]])

        return call

    case = recorded(mutant(engine, jvp_of=zero_jvp), "elementwise")
    CHECKS["VJP"](case)
    assert_caught(case, "JVP", "HVP", "adjoint", "Taylor", "verify")


@real_engines
@pytest.mark.parametrize("scenario", ["holomorphic", "complex times real"])
def test_missing_conjugation(engine, scenario):
    """The plain transpose instead of the adjoint; in real numbers it is the same."""
    e = engines.namespace(engine)

    def transposed(self, f, n):
        vjp = vjp_of(self, f, n)
        return lambda x, c: tuple([e.conj(xb) for xb in vjp((*x[:n], *[e.conj(yb) for yb in x[n:]]), c)])

    broken = mutant(engine, vjp_of=transposed)
    case = recorded(broken, scenario)
    CHECKS["value"](case)
    CHECKS["JVP"](case)
    assert_caught(case, "VJP", "HVP", "points", "adjoint", "Taylor", "verify")
    CHECKS["VJP"](recorded(broken, "elementwise"))


def dropping(tangents):
    """An engine whose derivative of a VJP ignores some of its directions."""

    def marked(self, f, n):
        vjp = vjp_of(self, f, n)

        def call(x, c):
            return vjp(x, c)

        call.primals = n
        return call

    def incomplete(self, f, n):
        jvp, primals = jvp_of(self, f, n), getattr(f, "primals", None)
        if primals is None:
            return jvp
        gone = range(n, n + primals) if tangents == "primals" else range(n + primals, 2 * n)
        return lambda x, c: jvp(tuple([v * 0 if k in gone else v for k, v in enumerate(x)]), c)

    return {"vjp_of": marked, "jvp_of": incomplete}


@real_engines
def test_dropped_curvature(engine):
    case = recorded(mutant(engine, **dropping("primals")), "elementwise")
    CHECKS["VJP"](case)
    CHECKS["JVP"](case)
    assert_caught(case, "HVP", "points", "Taylor", "verify")


@real_engines
@pytest.mark.parametrize("scenario", ["elementwise", "two in, two out"])
def test_dropped_second_adjoint(engine, scenario):
    """Only a chain of Blocks shows it: the first derivative's own tangent is missing."""
    case = recorded(mutant(engine, **dropping("seeds")), scenario)
    CHECKS["HVP"](case)
    assert_caught(case, "chain")


@real_engines
def test_stale_point(engine):
    """A VJP that keeps the point at which it was first asked."""

    def marked(self, f, n):
        vjp = vjp_of(self, f, n)

        def call(x, c):
            return vjp(x, c)

        call.primals = n
        return call

    def keeping(self, f, avals):
        program, n, kept = compiled(self, f, avals), getattr(f, "primals", None), []
        if n is None:
            return program

        def call(x, c):
            kept.extend(x[:n] if not kept else ())
            return program((*kept, *x[n:]), c)

        return call

    case = recorded(mutant(engine, vjp_of=marked, compile=keeping), "elementwise")
    CHECKS["VJP"](case)  # the first point is right
    assert_caught(case, "points")


# The tape --------------------------------------------------------------------------------------------------------------


@real_engines
def test_derivatives_at_the_recorded_point(engine, monkeypatch):
    """Blocks that linearize at the values they were recorded with."""
    case = recorded(engine, "elementwise")

    primals = {block: block.primals() for block in case.rf.tape.get_blocks() if isinstance(block, EngineBlock)}

    def of_the_record(self):
        return primals[self]

    def stale(method):
        def call(self, *args, **kwargs):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(EngineBlock, "primals", of_the_record)
                return method(self, *args, **kwargs)

        return call

    for name in ("evaluate_adj", "evaluate_tlm", "evaluate_adj_and_hessian"):
        monkeypatch.setattr(EngineBlock, name, stale(getattr(EngineBlock, name)))
    CHECKS["value"](case)
    assert_caught(case, "JVP", "VJP", "HVP", "points", "Taylor", "verify")


@real_engines
def test_missing_accumulation_across_a_branch(engine, monkeypatch):
    """f(x) + g(x), where the second contribution to x replaces the first."""
    e = engines.namespace(engine)
    f = e.overload(lambda x: e.sin(x))
    g = e.overload(lambda a, x: a * x)
    case = record(engine, BY_NAME["elementwise"], function=lambda x: g(f(x), x))
    for check in CHECKS.values():
        check(case)
    for kind, first in (("adj", "VJP"), ("hessian", "HVP")):
        with monkeypatch.context() as patch:
            field = f"{kind}_value"
            patch.setattr(Variable, f"add_{kind}_output", lambda self, v, field=field: setattr(self, field, v))
            CHECKS["JVP"](case)
            assert_caught(case, first, "points", "Taylor", "verify")


@real_engines
def test_tape_left_at_another_functions_point(engine, monkeypatch):
    """A derivative where somebody else evaluated last, not where this function did."""
    e = engines.namespace(engine)
    f = e.overload(lambda x: e.sin(x) * x)
    case = record(engine, BY_NAME["elementwise"], function=f)
    other = ReducedFunction(case.outputs, case.rf.controls, case.rf.tape)

    def interrupted(self, *args, inner=ReducedFunction.__call__):
        result = inner(self, *args)
        inner(other, [np.array([9.0, 8.0, 7.0])])
        return result

    monkeypatch.setattr(ReducedFunction, "__call__", interrupted)
    CHECKS["VJP"](case)
    CHECKS["HVP"](case)
    monkeypatch.setattr(ReducedFunction, "_linearize", lambda self: None)
    assert_caught(case, "JVP", "VJP", "HVP", "points")
