"""What is checked of every scenario; used with real engines and, to test the checks, with broken ones."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from engines import Namespace
from scenarios import Scenario

from pyadjoint_utils import (
    Control,
    ReducedFunction,
    Tape,
    annotate_tape,
    array,
    continue_annotation,
    pause_annotation,
    push_tape,
    taylor_to_dict,
    verify,
)

TOLERANCE = {"double": 1e-12, "single": 2e-5}
RECORDED, POINT, DIRECTION, COTANGENT, ELSEWHERE = 1, 2, 3, 4, 5


@functools.cache
def overloaded(e: Namespace, scenario: Scenario) -> Any:
    """One overloaded function per engine and scenario, so that nothing is traced twice in the whole run."""
    return e.overload(functools.partial(scenario.function, e), name=scenario.name, **scenario.options)


@dataclass
class Case:
    """A scenario that was recorded with an engine on a tape of its own."""

    scenario: Scenario
    precision: str
    controls: list[Any]
    outputs: list[Any]
    rf: ReducedFunction

    def numbers(self, seed: int) -> list[np.ndarray]:
        """Control values or directions."""
        return self.scenario.point(seed, self.precision)

    @property
    def cotangent(self) -> list[np.ndarray]:
        return self.scenario.cotangent(COTANGENT, self.precision)

    def move(self, seed: int = POINT) -> list[Any]:
        """Evaluate at other control values."""
        return self.rf([array(x) for x in self.numbers(seed)])

    def close(self, found: Any, expected: Any) -> None:
        """Assert that results are numerically what they must be."""
        found, expected = list(found), list(expected)
        assert len(found) == len(expected)
        rtol = TOLERANCE[self.precision]
        for value, wanted in zip(found, expected, strict=True):
            wanted = np.asarray(wanted)
            assert value.shape == wanted.shape
            np.testing.assert_allclose(value.numpy(), wanted, rtol=rtol, atol=rtol)

    def like(self, found: Any, models: Any) -> None:
        """Assert that results have the engine, shape and dtype of what they belong to."""
        for value, model in zip(found, models, strict=True):
            assert (value.engine, value.shape, value.dtype) == (model.engine, model.shape, model.dtype)


def record(function: Any, scenario: Scenario, precision: str, wrap: Any = None) -> Case:
    """Record a scenario; ``wrap`` makes a value on the tape out of NumPy data."""
    with push_tape(Tape()) as tape:
        was_on = annotate_tape()
        continue_annotation()
        try:
            controls = [(wrap or array)(x) for x in scenario.point(RECORDED, precision)]
            outputs = scenario.call(function, *controls)
        finally:
            (continue_annotation if was_on else pause_annotation)()
    return Case(scenario, precision, controls, outputs, ReducedFunction(outputs, [Control(x) for x in controls], tape))


def check_recorded(case: Case) -> None:
    case.close(case.outputs, case.scenario.value(*case.numbers(RECORDED)))


def check_value(case: Case) -> None:
    """At another point than the recorded one, at a third one, and back."""
    for seed in (POINT, ELSEWHERE, RECORDED, POINT):
        found = case.move(seed)
        case.close(found, case.scenario.value(*case.numbers(seed)))
        case.like(found, case.outputs)


def check_jvp(case: Case) -> None:
    case.move()
    found = case.rf.jac_action(case.numbers(DIRECTION))
    case.close(found, case.scenario.jvp(case.numbers(POINT), case.numbers(DIRECTION)))
    case.like(found, case.outputs)


def check_vjp(case: Case) -> None:
    case.move()
    found = case.rf.adj_jac_action(case.cotangent)
    case.close(found, case.scenario.vjp(case.numbers(POINT), case.cotangent))
    case.like(found, case.controls)


def check_hvp(case: Case) -> None:
    case.move()
    found = case.rf.hess_action(case.numbers(DIRECTION), case.cotangent)
    case.close(found, case.scenario.hvp(case.numbers(POINT), case.numbers(DIRECTION), case.cotangent))
    case.like(found, case.controls)


def check_points(case: Case) -> None:
    """A derivative is taken where the function was evaluated last, whatever was asked before."""
    for seed in (POINT, ELSEWHERE, POINT):
        case.move(seed)
        x, h, v = case.numbers(seed), case.numbers(DIRECTION), case.cotangent
        case.close(case.rf.adj_jac_action(v), case.scenario.vjp(x, v))
        case.close(case.rf.hess_action(h, v), case.scenario.hvp(x, h, v))
        case.close(case.rf.jac_action(h), case.scenario.jvp(x, h))


def check_adjoint(case: Case) -> None:
    """<J h, v> = <h, J^H v> and <k, H h> = <h, H k>."""
    case.move()
    h, k, v = case.numbers(DIRECTION), case.numbers(ELSEWHERE), case.cotangent
    tolerance = 30 * TOLERANCE[case.precision]
    left, right = _dot(case.rf.jac_action(h), v), _dot(h, case.rf.adj_jac_action(v))
    assert abs(left - right) <= tolerance * (1 + abs(left))
    left, right = _dot(k, case.rf.hess_action(h, v)), _dot(h, case.rf.hess_action(k, v))
    assert abs(left - right) <= tolerance * (1 + abs(left))


def check_taylor(case: Case) -> None:
    """Rates 1, 2 and 3, complex controls in complex directions."""
    m = [array(x) for x in case.numbers(POINT)]
    h = [array(0.5 * x) for x in case.numbers(DIRECTION)]
    table = taylor_to_dict(case.rf, m, h, v=case.cotangent)
    for order in range(3):
        assert table[f"R{order}"]["Rate"][-1] > order + 0.8, table


def check_verify(case: Case) -> None:
    report = verify(case.rf, [array(x) for x in case.numbers(POINT)])
    assert report.passed, str(report)


def _dot(a: Any, b: Any) -> float:
    wide = np.complex128
    pairs = zip(a, b, strict=True)
    return sum(float(np.real(np.vdot(np.asarray(x).astype(wide), np.asarray(y).astype(wide)))) for x, y in pairs)


DERIVATIVES = {
    "value": check_value,
    "JVP": check_jvp,
    "VJP": check_vjp,
    "HVP": check_hvp,
    "points": check_points,
    "adjoint": check_adjoint,
    "Taylor": check_taylor,
    "verify": check_verify,
}
