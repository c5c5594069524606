"""Tables of measurements: printed, and written into a page of the documentation."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyadjoint_utils import MissingEngineError

Row = Sequence[str]
PACKAGES = ("jax", "torch", "tensorflow", "tensorflow-cpu", "autograd", "pyadjoint-ad", "numpy")


class Table(NamedTuple):
    """What is measured.

    Attributes:
        name: how it is asked for, and marked in the documentation.
        title: what the numbers are.
        columns: their heads.
        cases: a label for the progress bar, and a function that measures and returns rows.
    """

    name: str
    title: str
    columns: Row
    cases: Sequence[tuple[str, Callable[[], Iterable[Row]]]]

    def rows(self, label: str, case: Callable[[], Iterable[Row]]) -> list[Row]:
        """Measure a case; what is not installed gives a row that says so."""
        try:
            return list(case())
        except MissingEngineError as error:
            return [(label, f"skipped: {error}", *[""] * (len(self.columns) - 2))]


def text(columns: Row, rows: Sequence[Row]) -> str:
    """Return a table for a terminal."""
    widths = [max(len(row[k]) for row in (columns, *rows)) for k in range(len(columns))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (columns, *rows)]
    return "\n".join([lines[0], "-+-".join("-" * width for width in widths), *lines[1:]])


def markdown(columns: Row, rows: Sequence[Row]) -> str:
    """Return a table for a page."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(page: Path, name: str, content: str) -> None:
    """Put something between the marks of this name on a page, ``<!-- begin NAME -->`` and ``<!-- end NAME -->``."""
    old = page.read_text(encoding="utf-8")
    marks = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    pattern = re.compile(f"({re.escape(marks[0])}\n).*?({re.escape(marks[1])})", re.DOTALL)
    new, found = pattern.subn(lambda match: f"{match[1]}\n{content}\n\n{match[2]}", old)
    if found != 1:
        raise SystemExit(
            f"{page} has no place for the table {name!r}: write {marks[0]} and {marks[1]} on lines of their own."
        )
    # A page is replaced as a whole or not at all.
    draft = page.with_suffix(".new")
    draft.write_text(new, encoding="utf-8")
    draft.replace(page)


def machine() -> str:
    """Return what the numbers were measured with."""
    found = [f"{name} {version}" for name in PACKAGES if (version := _version(name))]
    where = f"{os.cpu_count()} cores of {_processor()}; {_accelerator()}"
    return f"{', '.join(found)}; Python {platform.python_version()}; {where}."


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return f"{platform.machine()} ({found[1].strip()})"
    return platform.machine()


def _accelerator() -> str:
    gpu: Any = None
    if _version("jax"):
        jax = importlib.import_module("jax")
        gpu = next((device for device in jax.devices() if device.platform != "cpu"), None)
    return f"on {gpu.device_kind}" if gpu is not None else "no GPU"
