"""Warm timings: minimum and median of many."""

import gc
import random
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

    def over(self, other: "Timing") -> str:
        """Return the ratio of the minima, and that of the medians in brackets."""
        return f"{self.minimum / other.minimum:.2f} ({self.median / other.median:.2f})"

    def above(self, other: "Timing") -> str:
        """Return the difference of the minima, and that of the medians in brackets."""
        return f"{self.minimum - other.minimum:.1f} ({self.median - other.median:.1f})"

    def cell(self, unit: float = 1.0) -> str:
        """Return the minimum, and the median in brackets, in a unit of so many microseconds."""
        return f"{self.minimum / unit:.3g} ({self.median / unit:.3g})"


def timed(run: Callable[[], Any], items: int = 1, repeats: int = 15) -> Timing:
    """Time a function that does ``items`` things, after one call that warms it up."""
    return in_turns(run, items=items, repeats=repeats)[0]


def in_turns(
    *runs: Callable[[], Any], items: int = 1, repeats: int = 25, seconds: float = 5.0, wait: Any = None
) -> list[Timing]:
    """Time functions in turns, so that what else the machine does meets all of them.

    Args:
        *runs: the functions. Each is called twice before; the order of the turns is another one every time.
        items: how many things each does.
        repeats: how many turns.
        seconds: fewer turns are taken where they would last longer than this, but at least five.
        wait: called with a result within the time that is measured, where an engine computes asynchronously.
    """
    taken: list[list[float]] = [[] for _ in runs]
    order, generator = list(range(len(runs))), random.Random(0)
    begin = 0.0
    gc.collect()
    gc.disable()
    try:
        for turn in range(repeats + 2):
            if turn == 2:
                begin = time.perf_counter()
            if turn >= 7 and time.perf_counter() - begin > seconds:
                break
            generator.shuffle(order)
            for k in order:
                start = time.perf_counter()
                result = runs[k]()
                if wait is not None:
                    wait(result)
                end = time.perf_counter()
                del result
                if turn >= 2:
                    taken[k].append(end - start)
    finally:
        gc.enable()
    return [Timing(min(t) / items * 1e6, statistics.median(t) / items * 1e6) for t in taken]
