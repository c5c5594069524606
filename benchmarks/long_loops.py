"""A loop of 1000 JAX steps over a state of 0.16 MB under schedules: time, and what of the state is alive at the most."""

import contextlib
import io
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import checkpoint_schedules as cs
import numpy as np

from benchmarks.blocks import sine
from pyadjoint_utils import Control, MissingEngineError, ReducedFunctional, Tape, array, set_working_tape

STEPS, SIZE = 1000, 20_000
SCHEDULES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "Multistage, 10": lambda: cs.MultistageCheckpointSchedule(STEPS, 10, 0),
    "Multistage, 50": lambda: cs.MultistageCheckpointSchedule(STEPS, 50, 0),
    "Revolve, 10": lambda: cs.Revolve(STEPS, 10),
    "Mixed, 10, in memory": lambda: cs.MixedCheckpointSchedule(STEPS, 10, storage=cs.StorageType.RAM),
    "HRevolve, 10 + 50 on disk": lambda: cs.HRevolve(STEPS, 10, 50),
    "TwoLevel, 50, 10 in memory": lambda: cs.TwoLevelCheckpointSchedule(50, 10, binomial_storage=cs.StorageType.RAM),
    "SingleDisk": lambda: cs.SingleDiskStorageSchedule(),
}


class Watch:
    """A bar that looks at the memory every few Blocks."""

    peak = 0

    def __init__(self, title: str, **kwargs: Any) -> None:
        pass

    def iter(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items."""
        for k, item in enumerate(items):
            yield item
            if k % 7 == 0:
                Watch.peak = max(Watch.peak, alive())


def alive() -> int:
    """Return the bytes in the states that JAX holds."""
    import jax

    return sum(array.nbytes for array in jax.live_arrays() if array.size == SIZE)


def recorded(schedule: Any, step: Callable[[Any], Any], bar: Any = None) -> tuple[ReducedFunctional, Any]:
    """Record the loop; return its functional and a point."""
    with set_working_tape(Tape()) as tape:
        if schedule is not None:
            tape.enable_checkpointing(schedule)
        tape.progress_bar = bar
        x = y = array(np.linspace(0.0, 1.0, SIZE))
        for _ in tape.timestepper(range(STEPS)):
            y = step(y)
        return ReducedFunctional((y * y).sum(), Control(x)), x


def measure(make: Callable[[], Any], step: Callable[[Any], Any]) -> tuple[float, float, float, float]:
    """Return seconds of recording, of value and derivative, and of a Hessian action; and megabytes at the most."""
    start = time.perf_counter()
    rf, x = recorded(make(), step)
    recording = time.perf_counter() - start
    rf.hessian(x)
    times = []
    for action in (lambda: rf.value_and_derivative(x), lambda: rf.hessian(x)):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    del rf, x
    before, Watch.peak = alive(), 0
    rf, x = recorded(make(), step, Watch)
    rf.value_and_derivative(x)
    return recording, times[0], times[1], (Watch.peak - before) / 1e6


def main() -> None:
    """Print the table."""
    print(f"\n{STEPS} steps of {SIZE * 8 / 1e6} MB: seconds, and megabytes of states that are alive at the most\n")
    print(f"{'schedule':<28}{'record':>10}{'value and derivative':>24}{'Hessian action':>18}{'memory':>10}")
    try:
        step = sine("jax")
    except MissingEngineError as error:
        print(f"skipped: {error}")
        return
    step(array(np.zeros(SIZE)))
    for name, make in SCHEDULES.items():
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            recording, first, second, memory = measure(make, step)
        print(f"{name:<28}{recording:10.2f}{first:24.2f}{second:18.2f}{memory:10.1f}")


if __name__ == "__main__":
    main()
