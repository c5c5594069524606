"""Compiled tapes of PyTorch through torch.compile, beside eager PyTorch and torch.compile itself; slow to compile."""

import importlib
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.engines import PROGRAMS, native
from benchmarks.tables import Row, Table
from benchmarks.timing import in_turns
from pyadjoint_utils import Control, ReducedFunctional, Tape, array, get_engine, overload, set_working_tape

BACKEND = "inductor"
CHOSEN = [p for p in PROGRAMS if not p.name.startswith("heat")]  # of a hundred stencils it takes too long


def _rows(name: str) -> Iterable[Row]:
    e = get_engine("torch")
    torch: Any = importlib.import_module("torch")
    program = next(p for p in CHOSEN if p.name == name)
    parts = program.parts(e.function)
    taped = [overload(part, "torch") for part in parts]
    with set_working_tape(Tape()):
        x = [array(e.enter(np.asarray(p))) for p in program.points]
        slow = ReducedFunctional(program.run(taped, *x), [Control(v) for v in x])
    eager = native("torch", lambda *x: program.run(parts, *x), [v.value for v in x])
    theirs = native("torch", torch.compile(lambda *x: program.run(parts, *x), backend=BACKEND), [v.value for v in x])
    fast = slow.compile(engines={"torch": BACKEND}, budget=600.0)
    seconds = []
    for first in (theirs, lambda: fast.value_and_derivative(x)):
        start = time.perf_counter()
        first()
        seconds.append(f"{time.perf_counter() - start:.1f}")
    timings = in_turns(eager, theirs, lambda: fast.value_and_derivative(x), repeats=100)
    hand, by_hand, ours = timings
    cells = [t.cell(1e3) for t in timings]
    yield name, *cells, ours.over(hand), ours.over(by_hand), *seconds


TABLE = Table(
    BACKEND,
    "value and gradient in PyTorch, milliseconds: minimum, median in brackets; seconds of the first call",
    (
        "program",
        "eager",
        "torch.compile",
        "compiled tape",
        "tape / eager",
        "tape / torch.compile",
        "first call of torch.compile",
        "of the tape",
    ),
    [(p.name, lambda name=p.name: _rows(name)) for p in CHOSEN],
)
