"""A pytest plugin: prints which properties of which engines hold, after a run of the scenario tests.

Tests are counted by what they are called with: a parameter ``engine`` (or ``first`` and ``second``) names the engine, and
a parameter ``check`` or the name of the file the property.
"""

from collections import defaultdict

import pytest

# Columns of the table, and the files that belong to one as a whole.
COLUMNS = ["value", "JVP", "VJP", "HVP", "points", "adjoint", "Taylor", "verify", "third order", "pairs", "mutants"]
_FILES = {"test_third_order": "third order", "test_engine_pairs": "pairs", "test_engine_mutants": "mutants"}
_counts: "pytest.StashKey[dict]" = pytest.StashKey()


def pytest_configure(config):
    """Start counting."""
    config.stash[_counts] = defaultdict(lambda: [0, 0, 0])


def _places(item):
    """The engines and the column that a test counts for."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    engines = [parameters[key] for key in ("engine", "first", "second") if isinstance(parameters.get(key), str)]
    column = parameters.get("check") if item.path.stem == "test_scenarios" else _FILES.get(item.path.stem)
    return engines, column


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Count passed, failed and skipped tests."""
    report = yield
    if report.when == "call" or (report.when == "setup" and not report.passed):
        engines, column = _places(item)
        for engine in engines if column in COLUMNS else ():
            outcome = ("passed", "failed", "skipped").index(report.outcome)
            item.config.stash[_counts][engine, column][outcome] += 1
    return report


def pytest_terminal_summary(terminalreporter, config):
    """Print the table."""
    counts = config.stash[_counts]
    if not counts:
        return
    columns = [column for column in COLUMNS if any(key[1] == column for key in counts)]
    engines = sorted({engine for engine, _ in counts})
    terminalreporter.section("engines and properties: passed, !failed, ~skipped")
    width = max(map(len, engines)) + 2
    terminalreporter.write_line(" " * width + "".join(f"{column:>13}" for column in columns))
    for engine in engines:
        cells = "".join(f"{_cell(*counts[engine, column]):>13}" for column in columns)
        terminalreporter.write_line(f"{engine:<{width}}{cells}")


def _cell(passed, failed, skipped):
    marks = [str(passed)] if passed or not (failed or skipped) else []
    return " ".join(marks + ([f"!{failed}"] if failed else []) + ([f"~{skipped}"] if skipped else []))
