"""Engines and tapes that are wrong on purpose: the scenario checks must find each of them."""

import functools

import engines
import numpy as np
import pytest
from scenario_checks import (
    check_adjoint,
    check_hvp,
    check_jvp,
    check_points,
    check_taylor,
    check_value,
    check_verify,
    check_vjp,
    record,
)
from scenarios import BY_NAME

from pyadjoint_utils import get_engine, overload
from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.engine import convert
from pyadjoint_utils.reduced import ReducedFunction
from pyadjoint_utils.variable import Variable

ALL = (check_value, check_jvp, check_vjp, check_hvp, check_points, check_adjoint, check_taylor, check_verify)
real_engines = pytest.mark.parametrize("engine", ["jax", "torch"])


def recorded(engine, scenario):
    e = engines.namespace(getattr(engine, "name", engine))
    scenario = BY_NAME[scenario]
    function = functools.partial(scenario.function, e)
    return record(overload(function, engine, **scenario.options), scenario, "double")


def mutant(name, **methods):
    """The named engine with some of its methods replaced."""
    engines.namespace(name)
    base = type(get_engine(name))
    return type("Mutant", (base,), methods)()


def assert_caught(case, *checks):
    for check in checks:
        with pytest.raises(AssertionError):
            check(case)


def original(method):
    """Calls the method of the base class from a mutant's own."""
    return lambda self, *args: getattr(super(type(self), self), method)(*args)


vjp_of, jvp_of, compiled = original("vjp_of"), original("jvp_of"), original("compile")


@real_engines
@pytest.mark.parametrize("scenario", ["elementwise", "two in, two out", "holomorphic", "complex times real"])
def test_an_unchanged_subclass_passes(engine, scenario):
    case = recorded(mutant(engine), scenario)
    for check in ALL:
        check(case)


# Engines ---------------------------------------------------------------------------------------------------------------


@real_engines
def test_zero_derivatives(engine):
    def zero_vjp(self, f, n):
        vjp = vjp_of(self, f, n)
        return lambda x, c: tuple([xb * 0 for xb in vjp(x, c)])

    case = recorded(mutant(engine, vjp_of=zero_vjp), "elementwise")
    check_value(case)
    assert_caught(case, check_vjp, check_hvp, check_points, check_taylor, check_verify)


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
    check_vjp(case)
    assert_caught(case, check_jvp, check_hvp, check_adjoint, check_taylor, check_verify)


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
    check_value(case)
    check_jvp(case)
    assert_caught(case, check_vjp, check_hvp, check_points, check_adjoint, check_taylor, check_verify)
    check_vjp(recorded(broken, "elementwise"))


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
    check_vjp(case)
    check_jvp(case)
    assert_caught(case, check_hvp, check_points, check_taylor, check_verify)


@real_engines
def test_dropped_second_adjoint(engine):
    """Only a composition shows it: f(f(x)) with the first derivative's own tangent missing."""
    e = engines.namespace(engine)
    scenario = BY_NAME["elementwise"]
    function = functools.partial(scenario.function, e)
    for broken in (False, True):
        f = overload(function, mutant(engine, **(dropping("seeds") if broken else {})))
        case = record(lambda x, f=f: f(f(x)), scenario, "double")
        if broken:
            assert_caught(case, check_taylor, check_verify)
        else:
            check_taylor(case)
            check_verify(case)


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
    check_vjp(case)  # the first point is right
    assert_caught(case, check_points)


# The tape --------------------------------------------------------------------------------------------------------------


@real_engines
def test_derivatives_at_the_recorded_point(engine, monkeypatch):
    """Blocks that linearize at the values they were recorded with."""
    case = recorded(engine, "elementwise")

    def of_the_record(self):
        engine = self.rules.engine
        return tuple([convert(bv.output.value, engine) for bv in self.get_dependencies()])

    def stale(method):
        def call(self, *args, **kwargs):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(EngineBlock, "primals", of_the_record)
                return method(self, *args, **kwargs)

        return call

    for name in ("evaluate_adj", "evaluate_tlm", "evaluate_adj_and_hessian"):
        monkeypatch.setattr(EngineBlock, name, stale(getattr(EngineBlock, name)))
    check_value(case)
    assert_caught(case, check_jvp, check_vjp, check_hvp, check_points, check_taylor, check_verify)


@real_engines
def test_missing_accumulation_across_a_branch(engine, monkeypatch):
    """f(x) + g(x), where the second contribution to x replaces the first."""
    e = engines.namespace(engine)
    f = e.overload(lambda x: e.sin(x))
    g = e.overload(lambda a, x: a * x)
    case = record(lambda x: g(f(x), x), BY_NAME["elementwise"], "double")
    for check in ALL:
        check(case)
    for kind, first in (("adj", check_vjp), ("hessian", check_hvp)):
        with monkeypatch.context() as patch:
            field = f"{kind}_value"
            patch.setattr(Variable, f"add_{kind}_output", lambda self, v, field=field: setattr(self, field, v))
            check_jvp(case)
            assert_caught(case, first, check_points, check_taylor, check_verify)


@real_engines
def test_tape_left_at_another_functions_point(engine, monkeypatch):
    """A derivative where somebody else evaluated last, not where this function did."""
    e = engines.namespace(engine)
    f = e.overload(lambda x: e.sin(x) * x)
    case = record(f, BY_NAME["elementwise"], "double")
    other = ReducedFunction(case.outputs, case.rf.controls, case.rf.tape)

    def interrupted(self, *args, inner=ReducedFunction.__call__):
        result = inner(self, *args)
        inner(other, [np.array([9.0, 8.0, 7.0])])
        return result

    monkeypatch.setattr(ReducedFunction, "__call__", interrupted)
    check_vjp(case)
    check_hvp(case)
    monkeypatch.setattr(ReducedFunction, "_linearize", lambda self: None)
    assert_caught(case, check_jvp, check_vjp, check_hvp, check_points)
