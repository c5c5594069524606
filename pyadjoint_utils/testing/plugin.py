"""A pytest plugin: collects the conformance tests of the engines that ``--engine`` names, and prints which properties hold.

A test counts for the engines that its parameters ``engine`` (or ``first`` and ``second``) name, and for the property that
its parameter ``check`` or its marker ``engine_property("name")`` names.
"""

import importlib
from collections import defaultdict
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pyadjoint_utils.engine import Engine
from pyadjoint_utils.registry import engine_names, get_engine, register_engine
from pyadjoint_utils.testing.checks import CHECKS

_counts: pytest.StashKey[dict[tuple[str, str], list[int]]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """Start counting; with ``--engine``, find the engines and collect their tests."""
    config.stash[_counts] = defaultdict(lambda: [0, 0, 0])
    config.addinivalue_line(
        "markers", "engine_property(name): a column of the table of engines that this test counts for"
    )
    named = getattr(config.option, "pyadjoint_utils_engines", None)
    if named:
        config.option.pyadjoint_utils_engines = [register_engine(_engine(text)).name for text in named]
        given = config.args if config.args_source is pytest.Config.ArgsSource.ARGS else []
        config.args = [*given, str(Path(__file__).with_name("conformance.py"))]


def _engine(text: str) -> Engine:
    """The engine of a name, ``package.module``, ``package.module:attribute`` or ``package.module.attribute``."""
    if text in engine_names():
        return get_engine(text)
    module, _, attribute = text.partition(":")
    try:
        found = _attribute(module, attribute or "engine")
    except ImportError as error:
        raise pytest.UsageError(f"--engine {text}: {error}") from error
    if not isinstance(found, Engine):
        raise pytest.UsageError(
            f"--engine {text}: that is no instance of pyadjoint_utils.Engine, but {type(found).__name__}. Give the name of "
            f"a registered engine ({', '.join(engine_names())}), a module with an attribute 'engine', or module:attribute."
        )
    return found


def _attribute(module: str, attribute: str) -> Any:
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        parent, _, last = module.rpartition(".")
        if error.name != module or not parent:
            raise
        return getattr(importlib.import_module(parent), last, None)


def _places(item: pytest.Item) -> tuple[Sequence[str], str | None]:
    """The engines and the property that a test counts for."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    engines = [parameters[key] for key in ("engine", "first", "second") if isinstance(parameters.get(key), str)]
    marker = item.get_closest_marker("engine_property")
    return engines, marker.args[0] if marker else parameters.get("check")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Count passed, failed and skipped tests."""
    report = yield
    if report.when == "call" or (report.when == "setup" and not report.passed):
        engines, column = _places(item)
        for engine in engines if column else ():
            outcome = ("passed", "failed", "skipped").index(report.outcome)
            item.config.stash[_counts][engine, str(column)][outcome] += 1
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table."""
    counts = config.stash[_counts]
    if not counts:
        return
    found = {column for _, column in counts}
    columns = [*(column for column in CHECKS if column in found), *sorted(found - set(CHECKS))]
    engines = sorted({engine for engine, _ in counts})
    terminalreporter.section("engines and properties: passed, !failed, ~skipped")
    width = max(map(len, engines)) + 2
    terminalreporter.write_line(" " * width + "".join(f"{column:>13}" for column in columns))
    for engine in engines:
        cells = "".join(f"{_cell(*counts[engine, column]):>13}" for column in columns)
        terminalreporter.write_line(f"{engine:<{width}}{cells}")


def _cell(passed: int, failed: int, skipped: int) -> str:
    marks = [str(passed)] if passed or not (failed or skipped) else []
    return " ".join(marks + ([f"!{failed}"] if failed else []) + ([f"~{skipped}"] if skipped else []))
