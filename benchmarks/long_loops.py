"""A loop of 1000 JAX steps over a state of 0.16 MB under schedules: time, and what of the state is alive at the most."""

import contextlib
import io
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from typing import Any

import checkpoint_schedules as cs
import numpy as np

from benchmarks.blocks import sine
from pyadjoint_utils import Control, MissingEngineError, ReducedFunctional, Tape, array, set_working_tape

STEPS, SIZE, REPEATS = 1000, 20_000, 3
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
PLAIN = ("none", "Multistage, 10", "Multistage, 50")


class Watch:
    """A bar that looks at the memory every few Blocks."""

    peak = count = 0

    def __init__(self, title: str, **kwargs: Any) -> None:
        pass

    def iter(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items."""
        for item in items:
            yield item
            self.next()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def next(self) -> None:
        """Look, sometimes."""
        Watch.count += 1
        if Watch.count % 7 == 0:
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


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the least time of a few runs, and the last result."""
    times, result = [], None
    for _ in range(REPEATS):
        result = None  # before the next one is made
        start = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - start)
    return min(times), result


def megabytes(run: Callable[[], Any]) -> float:
    """Return what of the states is alive at the most."""
    before, Watch.peak = alive(), 0
    run()
    return (Watch.peak - before) / 1e6


def measure(make: Callable[[], Any], step: Callable[[Any], Any]) -> list[float]:
    """Return seconds of making the schedule, of recording, of value and derivative, and of a Hessian action; megabytes."""
    making, schedule = seconds(make)
    recording, (rf, x) = seconds(lambda: recorded(schedule, step))
    rf.hessian(x)
    times = [seconds(action)[0] for action in (lambda: rf.value_and_derivative(x), lambda: rf.hessian(x))]

    def once() -> None:
        rf, x = recorded(schedule, step, Watch)
        rf.value_and_derivative(x)

    return [making, recording, *times, megabytes(once)]


def measure_plain(make: Callable[[], Any]) -> list[float]:
    """Return the same of Pyadjoint alone, which has no Hessian under a schedule."""
    import jax

    from benchmarks import plain_pyadjoint

    start = np.linspace(0.0, 1.0, SIZE)
    with jax.enable_x64(True):
        plain_pyadjoint.recorded(None, start, 2)[0]()
        making, _ = seconds(make)
        recording, (action, _) = seconds(lambda: plain_pyadjoint.recorded(make(), start, STEPS))
        evaluating, _ = seconds(action)
        peak = megabytes(lambda: plain_pyadjoint.recorded(make(), start, STEPS, Watch)[0]())
    return [making, recording, evaluating, float("nan"), peak]


def row(name: str, run: Callable[[], list[float]]) -> None:
    """Print one line of the table."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        numbers = run()
    print(f"{name:<40}" + "".join(f"{number:>12.3f}" for number in numbers[:4]) + f"{numbers[4]:>10.1f}", flush=True)


def main() -> None:
    """Print the table."""
    packages = ("pyadjoint-ad", "checkpoint_schedules", "jax", "numpy")
    print(
        f"\n{STEPS} steps of {SIZE * 8 / 1e6} MB: the least seconds of {REPEATS} runs, and megabytes of states at the most"
    )
    try:
        print(", ".join(f"{name} {version(name)}" for name in packages) + f"; {os.cpu_count()} cores\n")
        step = sine("jax")
    except (MissingEngineError, ModuleNotFoundError) as error:
        print(f"skipped: {error}")
        return
    heads = ("schedule", "record", "derivative", "Hessian")
    print(f"{'':<40}" + "".join(f"{head:>12}" for head in heads) + f"{'memory':>10}")
    step(array(np.zeros(SIZE)))
    for name, make in SCHEDULES.items():
        row(name, lambda make=make: measure(make, step))  # type: ignore[misc]
    for name in PLAIN:
        row(f"Pyadjoint alone, {name}", lambda name=name: measure_plain(SCHEDULES[name]))  # type: ignore[misc]


if __name__ == "__main__":
    main()
