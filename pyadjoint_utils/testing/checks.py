"""What is checked of every scenario. A check raises AssertionError where an engine is wrong."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyadjoint import continue_annotation, pause_annotation

from pyadjoint_utils.annotation import annotate_tape
from pyadjoint_utils.control import Control
from pyadjoint_utils.conversion import to_numpy
from pyadjoint_utils.drivers import compute_gradient
from pyadjoint_utils.engine import Engine
from pyadjoint_utils.reduced import ReducedFunction
from pyadjoint_utils.tapes import Tape, push_tape
from pyadjoint_utils.taylor import taylor_to_dict
from pyadjoint_utils.testing.namespace import Namespace, namespace_of
from pyadjoint_utils.testing.scenarios import Scenario, bend, bent, dtype_of
from pyadjoint_utils.values import array
from pyadjoint_utils.verification import verify

TOLERANCE = {"double": 1e-12, "single": 2e-5}
RECORDED, POINT, DIRECTION, COTANGENT, ELSEWHERE = 1, 2, 3, 4, 5


@functools.cache
def overloaded(e: Namespace, scenario: Scenario) -> Any:
    """One overloaded function per engine and scenario, so that nothing is traced twice in the whole run."""
    return e.overload(functools.partial(scenario.function, e), name=scenario.name, **scenario.options)


@functools.cache
def _bending(e: Namespace) -> Any:
    return e.overload(bend, name="bend")


@dataclass
class Case:
    """A scenario that was recorded with an engine on a tape of its own.

    Attributes:
        e: the engine's functions.
        scenario: what was recorded.
        precision: ``"double"`` or ``"single"``.
        function: the overloaded function.
        controls: the values that it was called with.
        outputs: what it returned.
        rf: the reduced function from controls to outputs.
    """

    e: Namespace
    scenario: Scenario
    precision: str
    function: Callable[..., Any]
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


def record(
    engine: Engine | Namespace | str,
    scenario: Scenario,
    precision: str = "double",
    *,
    function: Callable[..., Any] | None = None,
    wrap: Callable[[np.ndarray], Any] = array,
) -> Case:
    """Record a scenario with an engine on a tape of its own.

    Args:
        engine: the engine, its name or its namespace.
        scenario: an entry of the table.
        precision: ``"double"`` or ``"single"``.
        function: called in place of the scenario's own function, overloaded for the engine.
        wrap: makes a value on the tape out of NumPy data.

    Returns:
        What the checks take.

    Raises:
        MissingFunctionError: the scenario needs a function that the engine does not name.

    Example:
        >>> from pyadjoint_utils.testing import BY_NAME, CHECKS, record
        >>> case = record("autograd", BY_NAME["two in, two out"])
        >>> CHECKS["VJP"](case)
    """
    e = engine if isinstance(engine, Namespace) else namespace_of(engine)
    function = overloaded(e, scenario) if function is None else function
    with push_tape(Tape()) as tape:
        was_on = annotate_tape()
        continue_annotation()
        try:
            controls = [wrap(x) for x in scenario.point(RECORDED, precision)]
            outputs = scenario.call(function, *controls)
        finally:
            (continue_annotation if was_on else pause_annotation)()
    rf = ReducedFunction(outputs, [Control(x) for x in controls], tape)
    return Case(e, scenario, precision, function, controls, outputs, rf)


def check_recording(case: Case) -> None:
    """What the program computes while it records, in the engine's arrays and in the precision of its arguments."""
    expected = case.scenario.value(*case.numbers(RECORDED))
    case.close(case.outputs, expected)
    for y, wanted in zip(case.outputs, expected, strict=True):
        kind = "c" if np.asarray(wanted).dtype.kind == "c" else "r"
        assert (y.engine, y.dtype) == (case.e.holds, dtype_of(kind, case.precision))


def check_value(case: Case) -> None:
    """At another point than the recorded one, at a third one, and back."""
    for seed in (POINT, ELSEWHERE, RECORDED, POINT):
        found = case.move(seed)
        case.close(found, case.scenario.value(*case.numbers(seed)))
        case.like(found, case.outputs)


def check_jvp(case: Case) -> None:
    """``J h`` at another point."""
    case.move()
    found = case.rf.jac_action(case.numbers(DIRECTION))
    case.close(found, case.scenario.jvp(case.numbers(POINT), case.numbers(DIRECTION)))
    case.like(found, case.outputs)


def check_vjp(case: Case) -> None:
    """``J^H v`` at another point."""
    case.move()
    found = case.rf.adj_jac_action(case.cotangent)
    case.close(found, case.scenario.vjp(case.numbers(POINT), case.cotangent))
    case.like(found, case.controls)


def check_hvp(case: Case) -> None:
    """The derivative of ``J^H v`` in direction ``h``."""
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
    """The project's own report."""
    report = verify(case.rf, [array(x) for x in case.numbers(POINT)])
    assert report.passed, str(report)


def check_chain(case: Case) -> None:
    """Between other Blocks, of this engine and of NumPy: both terms of the second adjoint, and arrays that change hands."""
    bending = _bending(case.e)

    def call(f: Callable[..., Any], *x: Any) -> list[Any]:
        outputs = case.scenario.call(f, *[bending(bend(part)) for part in x])
        return [bend(to_numpy(bending(y))) for y in outputs]

    chain = record(case.e, bent(case.scenario, call), case.precision, function=case.function)
    for check in (check_value, check_jvp, check_vjp, check_hvp):
        check(chain)


def check_third_order(case: Case) -> None:
    """The adjoint, recorded, is a function with right derivatives of its own."""
    again = record(case.e, case.scenario, case.precision, function=case.function)
    controls, v = [Control(x) for x in again.controls], again.cotangent
    adjoints = compute_gradient(again.outputs, controls, again.rf.tape, v, record=True)
    rf = ReducedFunction(adjoints, controls, again.rf.tape)
    x, h, k = (again.numbers(seed) for seed in (POINT, DIRECTION, ELSEWHERE))
    again.close(rf([array(part) for part in x]), case.scenario.vjp(x, v))
    tangents = rf.jac_action(h)
    again.close(tangents, case.scenario.hvp(x, h, v))
    left, right = _dot(tangents, k), _dot(h, rf.adj_jac_action(k))
    assert abs(left - right) <= 30 * TOLERANCE[case.precision] * (1 + abs(left))


def _dot(a: Any, b: Any) -> float:
    wide = np.complex128
    pairs = zip(a, b, strict=True)
    return sum(float(np.real(np.vdot(np.asarray(x).astype(wide), np.asarray(y).astype(wide)))) for x, y in pairs)


CHECKS: dict[str, Callable[[Case], None]] = {
    "recording": check_recording,
    "value": check_value,
    "JVP": check_jvp,
    "VJP": check_vjp,
    "HVP": check_hvp,
    "points": check_points,
    "adjoint": check_adjoint,
    "Taylor": check_taylor,
    "verify": check_verify,
    "chain": check_chain,
    "third order": check_third_order,
}
