"""Warm timings: minimum and median of many."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Timing(NamedTuple):
    """Microseconds per item."""

    minimum: float
    median: float

    def __str__(self) -> str:
        return f"{self.minimum:8.1f} {self.median:8.1f}"


def timed(run: Callable[[], Any], items: int = 1, repeats: int = 15) -> Timing:
    """Time a function that does ``items`` things, after one call that warms it up."""
    run()
    seconds = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    finally:
        gc.enable()
    return Timing(min(seconds) / items * 1e6, statistics.median(seconds) / items * 1e6)
