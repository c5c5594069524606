"""Arrays that go from one engine to another: how long it takes, and whether memory is shared."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.tables import Row, Table
from benchmarks.timing import in_turns
from pyadjoint_utils import array, get_engine, to_numpy
from pyadjoint_utils.registry import convert

SIZE = 1_000_000
ENGINES = ("numpy", "jax", "torch", "tensorflow")


def aligned(size: int) -> np.ndarray:
    """Return numbers at an address that engines can share: a multiple of 64."""
    memory = np.zeros(8 * size + 64, np.uint8)
    offset = -memory.ctypes.data % 64
    numbers = memory[offset : offset + 8 * size].view(np.float64)
    numbers[:] = np.random.default_rng(0).standard_normal(size)
    return numbers


def address(value: Any, engine: str) -> int:
    """Return where the numbers are."""
    view = get_engine(engine).to_numpy(value)
    return int(view.ctypes.data)


def _rows(source: str) -> Iterable[Row]:
    home = get_engine(source)
    value = home.enter(aligned(SIZE))
    copy = _copying(source, value)
    for name in ENGINES:
        if name == source:
            continue
        engine = get_engine(name)
        result = convert(value, engine)
        np.testing.assert_array_equal(to_numpy(array(result)).value, to_numpy(array(value)).value)
        shared = address(result, name) == address(value, source)
        exchanged, copied = in_turns(lambda engine=engine: convert(value, engine), copy, repeats=200)
        yield source, name, exchanged.cell(), "no" if shared else "yes", copied.cell()


def _copying(engine: str, value: Any) -> Any:
    view = get_engine(engine).to_numpy(value)
    return view.copy


TABLE = Table(
    "exchange",
    f"microseconds for an array of {SIZE} float64: minimum, median in brackets",
    ("from", "to", "exchange", "copied", "a copy in NumPy"),
    [(engine, lambda engine=engine: _rows(engine)) for engine in ENGINES],
)
