"""The checkers are checked: with a planted fault the project's own ``verify`` fails, without it it passes."""

import numpy as np
import pytest
from toy_engine import ToyEngine, conj, exp, overload_toy, overload_twin, real, sin, toy

from pyadjoint_utils import (
    Control,
    NotDifferentiableError,
    ReducedFunction,
    ReducedFunctional,
    block,
    taylor_to_dict,
    variable,
    verify,
)
from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.engine import Engine
from pyadjoint_utils.plan import Plan
from pyadjoint_utils.rules import LocalRules

A, P = np.array([0.5, -1.0]), np.array([1.5, 0.7])
Z = np.array([0.5 + 1.0j, -1.0 + 0.3j])


# Scenarios: each makes its functions anew, since an overloaded function keeps its maps ----------------------------------


def composed(x):
    return overload_toy(lambda x: x.sum())(overload_toy(sin)(overload_toy(lambda x: x * x)(x)))


def curved(x):
    return overload_toy(lambda x: (x**4).sum())(x)


def linear_after_curved(x):
    return overload_toy(lambda x: x.sum() * 3.0)(overload_toy(exp)(x))


def curved_after_linear(x):
    return overload_toy(lambda x: (x**4).sum())(overload_toy(lambda x: x * 2.0 + 1.0)(x))


def branched(x):
    y = overload_toy(lambda x: x * x)(x)
    return overload_toy(lambda a, b: (a * b).sum())(overload_toy(sin)(y), overload_twin(exp)(y))


def holomorphic(z):
    return overload_toy(lambda z: real(conj(z) * z).sum())(overload_toy(lambda z: z * z * z)(z))


def scenario(make):
    data = Z if make is holomorphic else A
    x = toy(data)
    rf = ReducedFunctional(make(x), Control(x))
    return rf, toy(1.3 * data + 0.2)


SCENARIOS = [composed, curved, linear_after_curved, curved_after_linear, branched, holomorphic]


@pytest.mark.parametrize("make", SCENARIOS)
def test_unmutated_everything_passes(make):
    rf, point = scenario(make)
    assert verify(rf, point).passed, str(verify(rf, point))
    assert min(taylor_to_dict(rf, point, 0.1 * point.numpy())["R2"]["Rate"]) > 2.9


# Mutants ---------------------------------------------------------------------------------------------------------------

exact = {
    "vjp": ToyEngine.vjp_of,
    "jvp": ToyEngine.jvp_of,
    "second": EngineBlock._second_adjoint,
    "primals": EngineBlock.primals,
    "hvp": LocalRules.__dict__["hvp"].func,
}


def zero_derivatives(patch):
    def jvp_of(self, f, n):
        jvp = exact["jvp"](self, f, n)

        def wrong(x, c):
            results = jvp(x, c)
            half = len(results) // 2
            return (*results[:half], *[t * 0.0 for t in results[half:]])

        return wrong

    patch.setattr(ToyEngine, "jvp_of", jvp_of)


def zero_adjoint(patch):
    def vjp_of(self, f, n):
        vjp = exact["vjp"](self, f, n)
        return lambda x, c: tuple([xb * 0.0 for xb in vjp(x, c)])

    patch.setattr(ToyEngine, "vjp_of", vjp_of)


def wrong_hvp(patch, zeroed):
    """Zero the seeds of ``((*x, *yb, *dx, *dyb), c)`` whose term is to be dropped."""

    def hvp(self):
        inner = exact["hvp"](self)

        def wrong(x, c):
            n, m = self.n, self.m
            parts = {"x": x[:n], "yb": x[n : n + m], "dx": x[n + m : 2 * n + m], "dyb": x[2 * n + m :]}
            first = inner(x, c)[:n]
            parts[zeroed] = tuple([v * 0.0 for v in parts[zeroed]])
            return (*first, *inner((*parts["x"], *parts["yb"], *parts["dx"], *parts["dyb"]), c)[n:])

        return wrong

    patch.setattr(LocalRules, "hvp", property(hvp))


def dropped_curvature(patch):
    wrong_hvp(patch, "dx")


def dropped_second_adjoint(patch):
    wrong_hvp(patch, "dyb")


def missing_conjugation(patch):
    def vjp_of(self, f, n):
        vjp = exact["vjp"](self, f, n)
        return lambda x, c: tuple([conj(xb) for xb in vjp(x, c)])

    patch.setattr(ToyEngine, "vjp_of", vjp_of)


def transpose_without_conjugation(patch):
    """J^T yb instead of J^H yb: what JAX's own VJP gives."""

    def vjp_of(self, f, n):
        vjp = exact["vjp"](self, f, n)
        return lambda x, c: tuple([conj(xb) for xb in vjp((*x[:n], *[conj(yb) for yb in x[n:]]), c)])

    patch.setattr(ToyEngine, "vjp_of", vjp_of)


def stale_point(patch):
    recorded, exact_init = {}, EngineBlock.__init__

    def init(self, *args):
        exact_init(self, *args)
        recorded[self] = EngineBlock.primals(self)

    def primals(self):
        return recorded[self]

    patch.setattr(EngineBlock, "__init__", init)

    for name in ("evaluate_tlm", "evaluate_adj", "_second_adjoint"):
        method = getattr(EngineBlock, name)

        def stale(self, *args, method=method, **kwargs):
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(EngineBlock, "primals", primals)
                return method(self, *args, **kwargs)

        patch.setattr(EngineBlock, name, stale)


def stale_tape(patch):
    """The tape is not evaluated again for the Hessian's tangent: only the first Block moves."""
    exact_recompute = Plan.recompute

    def recompute(self):
        kept = [(bv, bv._checkpoint) for b in self.forward[:-1] for bv in b.get_outputs()]
        exact_recompute(self)
        for bv, value in kept:
            bv._checkpoint = bv._checkpoint if value is None else value

    patch.setattr(Plan, "recompute", recompute)


def overwritten_adjoints(patch):
    patch.setattr(variable, "accumulated", lambda total, term: variable.bare(term))


def overwritten_second_adjoints(patch):
    patch.setattr(block, "add_hessian", lambda bv, value: setattr(bv, "hessian_value", value))


def sign_of_the_tangent(patch):
    exact_seeds = EngineBlock.evaluate_tlm

    def evaluate_tlm(self, markings=False):
        exact_seeds(self, markings)
        for bv in self._outputs:
            bv.tlm_value = None if bv.tlm_value is None else bv.tlm_value * -1.0

    patch.setattr(EngineBlock, "evaluate_tlm", evaluate_tlm)


MUTANTS = [
    (zero_derivatives, curved, "first derivative"),
    (zero_adjoint, composed, "first derivative"),
    (dropped_curvature, curved, "second derivative"),
    (dropped_curvature, linear_after_curved, "second derivative"),
    (dropped_curvature, composed, "second derivative"),
    (dropped_second_adjoint, curved_after_linear, "second derivative"),
    (dropped_second_adjoint, composed, "second derivative"),
    (missing_conjugation, holomorphic, "first derivative"),
    (transpose_without_conjugation, holomorphic, "first derivative"),
    (stale_point, curved, "first derivative"),
    (stale_point, composed, "first derivative"),
    (stale_tape, composed, "first derivative"),
    (overwritten_adjoints, branched, "first derivative"),
    (overwritten_second_adjoints, branched, "second derivative"),
    (sign_of_the_tangent, composed, "adjoint identity"),
]


@pytest.mark.parametrize(("mutate", "make", "check"), MUTANTS, ids=lambda value: getattr(value, "__name__", None))
def test_a_planted_fault_is_found(mutate, make, check, monkeypatch):
    mutate(monkeypatch)
    rf, point = scenario(make)
    report = verify(rf, point)
    assert not report.passed
    assert [name for name, good in report.checks.items() if not good and name.startswith(check)], str(report)
    assert "FAIL" in str(report)


@pytest.mark.parametrize(
    ("mutate", "key", "rate"),
    [(zero_derivatives, "R1", 1.0), (dropped_curvature, "R2", 2.0), (stale_point, "R1", 1.0)],
)
def test_a_planted_fault_shows_in_the_rates(mutate, key, rate, monkeypatch):
    mutate(monkeypatch)
    rf, point = scenario(curved)
    rates = taylor_to_dict(rf, point, 0.1 * point.numpy())[key]["Rate"]
    assert max(rates) == pytest.approx(rate, abs=0.2)


@pytest.mark.parametrize("mutate", [zero_adjoint, transpose_without_conjugation, stale_point])
def test_a_planted_fault_is_found_in_a_vector_function(mutate, monkeypatch):
    mutate(monkeypatch)
    z = toy(Z)
    rf = ReducedFunction(overload_toy(lambda z: z * z * z)(z), Control(z))
    report = verify(rf, toy(1.3 * Z))
    assert not report.passed
    assert not report.checks["adjoint identity"] or report.rates[1] < 1.8


def test_verify_passes_on_the_vector_function_without_a_fault():
    z = toy(Z)
    rf = ReducedFunction(overload_toy(lambda z: z * z * z)(z), Control(z))
    assert verify(rf, toy(1.3 * Z)).passed


def test_an_engine_without_maps_says_so():
    class Empty(Engine):
        name = "empty"

    for call in (
        lambda e: e.vjp_of(None, 1),
        lambda e: e.jvp_of(None, 1),
        lambda e: e.enter(1.0),
        lambda e: e.to_numpy(1),
    ):
        with pytest.raises((NotImplementedError, NotDifferentiableError)):
            call(Empty())
