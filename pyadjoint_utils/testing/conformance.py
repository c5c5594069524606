"""The tests that ``pytest --engine`` runs: the whole table with each engine that was named."""

import functools
import itertools

import numpy as np
import pytest

from pyadjoint_utils.errors import PyadjointUtilsError
from pyadjoint_utils.testing.checks import CHECKS, TOLERANCE, Case, record
from pyadjoint_utils.testing.namespace import MissingFunctionError, namespace_of
from pyadjoint_utils.testing.scenarios import BY_NAME, SCENARIOS, dtype_of

# Third order in single precision would compile everything again and show nothing new.
TABLE = [
    pytest.param(scenario.name, precision, check, id=f"{scenario.name}-{precision}-{check}")
    for precision in TOLERANCE
    for scenario in SCENARIOS
    for check in CHECKS
    if (precision, check) != ("single", "third order")
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Call every test here with the names of the engines."""
    metafunc.parametrize("engine", metafunc.config.option.pyadjoint_utils_engines)


@functools.cache
def recorded(engine: str, scenario: str, precision: str) -> Case:
    """Recorded once, for all checks: none of them may leave anything behind."""
    return record(engine, BY_NAME[scenario], precision)


def refusal(engine: str, scenario: str, precision: str) -> str | None:
    """Why an entry of the table says nothing about an engine: arrays that it does not have, functions that it lacks."""
    holder = namespace_of(engine).holder
    for dtype in {dtype_of(kind, precision) for _, kind in BY_NAME[scenario].inputs}:
        try:
            kept = holder.aval(holder.enter(np.ones(1, dtype))).dtype
        except PyadjointUtilsError as error:
            return str(error)
        if kept != dtype and kept.kind == dtype.kind:
            return f"The engine {engine!r} holds {dtype} as {kept}."
    try:
        recorded(engine, scenario, precision)
    except MissingFunctionError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("scenario", "precision", "check"), TABLE)
def test_conformance(engine: str, scenario: str, precision: str, check: str) -> None:
    """One entry of the table."""
    reason = refusal(engine, scenario, precision)
    if reason:
        pytest.skip(reason)
    CHECKS[check](recorded(engine, scenario, precision))


def test_something_is_tested(engine: str) -> None:
    """An engine that skips the whole table has not passed it."""
    reasons: list[str] = []
    for scenario, precision in itertools.product(BY_NAME, TOLERANCE):
        reason = refusal(engine, scenario, precision)
        if reason is None:
            return
        reasons.append(reason)
    pytest.fail(f"Every scenario is skipped, the first because: {reasons[0]}")
