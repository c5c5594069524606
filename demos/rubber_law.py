"""Learn the strain-energy function of rubber from biaxial tests, through JAX and PyTorch on one tape.

Kawabata and others (1981) stretched a sheet of isoprene rubber by lambda1 and lambda2 and measured the nominal stresses
P1 and P2. Rubber hardly changes its volume, so lambda3 = 1 / (lambda1 lambda2), and if it stores an energy W per volume,

    P_i = dW/dlambda_i - (lambda3 / lambda_i) dW/dlambda3.

Valanis and Landel supposed that each principal stretch adds its own share. Here W is the classical law of Mooney and
Rivlin plus sum_i N(ln lambda_i), N a small network; being an energy, it gains and loses none in a closed cycle. The tape:

    JAX      lambda1, lambda2                ->  logarithms of the three stretches
    PyTorch  network, logarithms             ->  N', differentiated inside the Block
    JAX      moduli, N', lambda1, lambda2    ->  P1, P2, the classical energy differentiated inside the Block
    tape     P1, P2, network                 ->  mean squared error + penalty on the network

The curves at lambda1 = 1.3 and 2.5 are held out: nothing was fitted to them and nothing chosen by them. Cross-validation
over the other curves chose (--tune). Run it: ``python demos/rubber_law.py [--seed N] [--tune] [--output PATH]``.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from scipy.optimize import least_squares

from pyadjoint_utils import (
    Control,
    ReducedFunction,
    ReducedFunctional,
    Verification,
    array,
    minimize,
    overload_jax,
    overload_torch,
    parameters,
    push_tape,
    stop_annotating,
    verify,
)

HERE = Path(__file__).parent
DATA = HERE / "data" / "kawabata1981_biaxial.csv"
PICTURE = HERE / "output" / "rubber_law.png"
HELD_OUT = (1.3, 2.5)
UNIT = 0.01  # MPa, about the scatter of the measurements: errors of this size count as one


# Measurements ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurements:
    """Stretches ``(lambda1, lambda2)`` and nominal stresses ``(P1, P2)`` in MPa, one row per measurement."""

    stretches: np.ndarray
    stresses: np.ndarray

    def on(self, curves: Sequence[float]) -> np.ndarray:
        """Mark the rows whose lambda1 is one of these."""
        return np.isclose(self.stretches[:, :1], curves).any(axis=1)

    def where(self, rows: np.ndarray) -> "Measurements":
        """Return some of the rows."""
        return Measurements(self.stretches[rows], self.stresses[rows])

    def error(self, stresses: np.ndarray) -> float:
        """Return the root mean square error over P1 and P2 together, in MPa."""
        return float(np.sqrt(np.mean((stresses - self.stresses) ** 2)))


def load() -> tuple[Measurements, Measurements]:
    """Read the measurements: those to fit, and the curves held out."""
    table = np.loadtxt(DATA, delimiter=",", skiprows=1)
    data = Measurements(table[:, :2], table[:, 2:])
    held_out = data.on(HELD_OUT)
    return data.where(~held_out), data.where(held_out)


# Mechanics, in JAX -------------------------------------------------------------------------------------------------------

Energy = Callable[[jax.Array, jax.Array], jax.Array]


def neo_hooke(mu: jax.Array, stretch: jax.Array) -> jax.Array:
    """Return the energy of ideal chains, mu in MPa."""
    return mu[0] / 2 * jnp.sum(stretch**2 - 1)


def mooney_rivlin(mu: jax.Array, stretch: jax.Array) -> jax.Array:
    """Return the energy linear in both invariants, mu in MPa."""
    return mu[0] / 2 * jnp.sum(stretch**2 - 1) + mu[1] / 2 * jnp.sum(stretch**-2 - 1)


def ogden(theta: jax.Array, stretch: jax.Array) -> jax.Array:
    """Return a sum of powers, theta first the moduli in MPa and then as many exponents."""
    mu, alpha = jnp.split(theta, 2)
    return jnp.sum(mu / alpha * (stretch[:, None] ** alpha - 1))


CLASSICAL: dict[str, tuple[Energy, list[float]]] = {
    "neo-Hooke": (neo_hooke, [0.4]),
    "Mooney-Rivlin": (mooney_rivlin, [0.4, 0.01]),
    "Ogden, three terms": (ogden, [0.4, 0.01, -0.01, 1.3, 4.0, -2.0]),
}


def principal(pair: jax.Array) -> jax.Array:
    """Complete ``(lambda1, lambda2)`` by the third stretch of an incompressible body."""
    return jnp.append(pair, 1 / (pair[0] * pair[1]))


@overload_jax
def log_stretches(stretches: jax.Array) -> jax.Array:
    """Return the logarithms of the three principal stretches at each measurement."""
    return jnp.log(jax.vmap(principal)(stretches))


@overload_jax
def nominal_stress(energy: Energy, theta: jax.Array, slope: Any, stretches: jax.Array) -> jax.Array:
    """Return ``(P1, P2)`` of the energy ``energy(theta, lambda) + sum_i N(ln lambda_i)``, given the slopes of N."""

    def at_point(slope: Any, pair: jax.Array) -> jax.Array:
        stretch = principal(pair)
        dW = jax.grad(energy, argnums=1)(theta, stretch) + slope / stretch
        return dW[:2] - stretch[2] / stretch[:2] * dW[2]

    return jax.vmap(at_point)(slope, stretches)


def fit_classical(name: str, data: Measurements) -> np.ndarray:
    """Fit a classical law by least squares, its Jacobian from the tape."""
    energy, start = CLASSICAL[name]
    with push_tape():
        theta = array(np.array(start))
        stresses = nominal_stress(energy, theta, np.zeros((len(data.stretches), 3)), data.stretches)
        law = ReducedFunction(stresses, Control(theta))

    def residuals(theta: np.ndarray) -> np.ndarray:
        return (law(theta).numpy() - data.stresses).ravel()

    def jacobian(theta: np.ndarray) -> np.ndarray:
        law(theta)
        return np.stack([law.jac_action(e).numpy().ravel() for e in np.eye(theta.size)], axis=1)

    return least_squares(residuals, start, jacobian, x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14).x


def classical_stress(name: str, theta: np.ndarray, stretches: np.ndarray) -> np.ndarray:
    """Return the stresses of a classical law."""
    with stop_annotating():
        return nominal_stress(CLASSICAL[name][0], theta, np.zeros((len(stretches), 3)), stretches).numpy()


# The correction, in PyTorch ----------------------------------------------------------------------------------------------


class Correction(torch.nn.Module):
    """The slope N' of one hidden layer N; a module that returned slopes of its own would not be an energy."""

    def __init__(self, units: int, activation: str, seed: int) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(1, units, dtype=torch.float64)
        self.out = torch.nn.Linear(units, 1, bias=False, dtype=torch.float64)
        self.activation = getattr(torch.nn.functional, activation)
        generator = torch.Generator().manual_seed(seed)
        for weights, size in zip(self.parameters(), (1.0, 0.5, 0.1 / units**0.5), strict=True):
            torch.nn.init.normal_(weights, std=size, generator=generator)

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        """Return N summed over everything, in MPa."""
        return self.out(self.activation(self.hidden(x[..., None]))).sum()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return N' at each x."""
        return torch.func.grad(self.energy)(x)


# The learned law, across both --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What cross-validation chose."""

    base: str = "Mooney-Rivlin"
    units: int = 8
    activation: str = "softplus"
    penalty: float = 0.1


class Law:
    """A classical law with a network correction: ``start`` holds its parameters, ``data`` what it may see."""

    def __init__(self, recipe: Recipe, data: Measurements, seed: int) -> None:
        self.recipe, self.data = recipe, data
        self.energy, _ = CLASSICAL[recipe.base]
        module = Correction(recipe.units, recipe.activation, seed)
        weights = parameters(module)
        self.network, self.names = overload_torch(module), list(weights)
        self.start = [array(fit_classical(recipe.base, data)), *weights.values()]

    def slope(self, weights: Sequence[Any], log_stretch: Any) -> Any:
        """Return N' at logarithms of stretches."""
        return self.network(dict(zip(self.names, weights, strict=True)), log_stretch)

    def stress(self, values: Sequence[Any], stretches: Any) -> Any:
        """Return P1 and P2, recorded if annotation is on."""
        theta, *weights = values
        slope = self.slope(weights, log_stretches(stretches))
        return nominal_stress(self.energy, theta, slope, stretches)

    def predict(self, values: Sequence[Any], stretches: np.ndarray) -> np.ndarray:
        """Return P1 and P2 as NumPy numbers, off the tape."""
        with stop_annotating():
            return self.stress(values, stretches).numpy()

    def record(self) -> ReducedFunctional:
        """Put misfit and penalty on a tape of their own, as a function of all parameters."""
        with push_tape():
            theta, *weights = self.start
            errors = (self.stress(self.start, array(self.data.stretches)) - self.data.stresses) / UNIT
            penalty = sum((w**2).sum() for w in weights)
            return ReducedFunctional(
                (errors**2).mean() + self.recipe.penalty * penalty, [Control(v) for v in (theta, *weights)]
            )


def fit(functional: ReducedFunctional, start: Sequence[Any], *, progress: bool = False) -> Any:
    """Minimise over the moduli and the network together."""
    functional(start)  # minimize() begins at the last evaluation
    options = {"maxiter": 1000, "maxcor": 30, "ftol": 1e-12, "gtol": 1e-8}
    return minimize(functional, method="L-BFGS-B", progress=progress, options=options)


# How the recipe was chosen -----------------------------------------------------------------------------------------------


def folds(data: Measurements) -> Iterator[tuple[Measurements, Measurements]]:
    """Leave out, one after another, the fitted curves that have fitted curves on both sides."""
    for curve in np.unique(data.stretches[:, 0])[1:-1]:
        left_out = data.on([curve])
        yield data.where(~left_out), data.where(left_out)


def cross_validate(predict: Callable[[Measurements, np.ndarray], np.ndarray], data: Measurements) -> float:
    """Return the error over all left-out curves, in MPa, of ``predict(data to fit, stretches)``."""
    errors = [predict(seen, unseen.stretches) - unseen.stresses for seen, unseen in folds(data)]
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))


def cross_validate_classical(name: str, data: Measurements) -> float:
    """Return the cross-validation error of a classical law."""
    return cross_validate(lambda seen, at: classical_stress(name, fit_classical(name, seen), at), data)


def cross_validate_learned(recipe: Recipe, data: Measurements, seed: int = 0) -> float:
    """Return the cross-validation error of a learned law."""

    def predict(seen: Measurements, stretches: np.ndarray) -> np.ndarray:
        law = Law(recipe, seen, seed)
        return law.predict(fit(law.record(), law.start), stretches)

    return cross_validate(predict, data)


def candidates() -> Iterator[Recipe]:
    """Yield the recipe and its neighbours, one change at a time."""
    chosen = Recipe()
    for penalty in (0.001, 0.01, 0.03, 0.1, 0.3, 1.0):
        yield replace(chosen, penalty=penalty)
    yield replace(chosen, units=4)
    yield replace(chosen, units=16)
    yield replace(chosen, activation="tanh", penalty=0.03)
    yield replace(chosen, activation="tanh")
    yield replace(chosen, base="neo-Hooke", penalty=0.001)
    yield replace(chosen, base="neo-Hooke")


def tune(data: Measurements) -> None:
    """Print the cross-validation errors that chose the recipe; the held-out curves take no part."""
    print(f"{'cross-validation over 14 fitted curves':56s} error (MPa)")
    for name in CLASSICAL:
        print(f"{name:56s} {cross_validate_classical(name, data):.5f}", flush=True)
    for r in candidates():
        label = f"{r.base} + {r.units} {r.activation} units, penalty {r.penalty:g}"
        mark = "  <- chosen" if r == Recipe() else ""
        print(f"{label:56s} {cross_validate_learned(r, data):.5f}{mark}", flush=True)


# What comes out ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of the table of errors."""

    name: str
    parameters: int
    fit: float
    held_out: float

    def __str__(self) -> str:
        return f"{self.name:24s} {self.parameters:10d} {self.fit:12.5f} {self.held_out:12.5f}"


def classical_row(name: str, fitted: Measurements, held_out: Measurements) -> Row:
    """Fit a classical law and measure it."""
    theta = fit_classical(name, fitted)
    errors = [data.error(classical_stress(name, theta, data.stretches)) for data in (fitted, held_out)]
    return Row(name, theta.size, *errors)


def learned_row(law: Law, values: Sequence[Any], held_out: Measurements) -> Row:
    """Measure the learned law."""
    errors = [data.error(law.predict(values, data.stretches)) for data in (law.data, held_out)]
    return Row("learned", sum(v.size for v in values), *errors)


def somewhere(law: Law, seed: int) -> list[np.ndarray]:
    """Return a random point of the parameters' own size, for a Taylor test far from any minimum."""
    rng = np.random.default_rng(seed)
    return [v.numpy() * rng.uniform(0.5, 1.5, v.shape) for v in law.start]


# Drawing -----------------------------------------------------------------------------------------------------------------

INK, FITTED, HELD, FAINT = "0.2", "#3b6ea5", "#d1495b", "0.6"
SMALL = 1.3  # curves up to this one crowd in a corner of the picture and are shown again, enlarged


def draw(law: Law, values: Sequence[Any], held_out: Measurements, report: Verification, path: Path) -> None:
    """Draw measurements and learned curves, the learned share of one stretch, and the Taylor remainders."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(12, 5.4), layout="constrained")
        axes = figure.subplot_mosaic([["P1", "P2", "share"], ["P1", "P2", "taylor"]], width_ratios=(1.3, 1.3, 1))
        for component in range(2):
            _draw_stress(axes[f"P{component + 1}"], component, law, values, held_out)
        axes["P2"].legend(frameon=False, loc="upper left", title="points measured, lines learned", alignment="left")
        _draw_share(axes["share"], law, values)
        _draw_taylor(axes["taylor"], report)
        titles = ("first stress", "second stress", "what one principal stretch adds", "Taylor test at a random point")
        for ax, letter, title in zip(axes.values(), "abcd", titles, strict=True):
            ax.set_title(f"({letter}) {title}", loc="left", fontsize=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=200)


def _draw_stress(ax: Any, component: int, law: Law, values: Sequence[Any], held_out: Measurements) -> None:
    closer = ax.inset_axes((0.57, 0.09, 0.42, 0.42))
    for data, colour, marker in ((law.data, FITTED, "o"), (held_out, HELD, "D")):
        label: str | None = "fitted curves" if data is law.data else "held-out curves"
        for curve in np.unique(data.stretches[:, 0]):
            measured = data.where(data.on([curve]))
            look = {"color": colour, "marker": marker, "label": label}
            for where in (ax, closer) if curve <= SMALL else (ax,):
                end = _draw_curve(where, component, law, values, measured, **look)
            _name_curve(closer if curve < SMALL else ax, curve, end, colour, above=component == 1 and curve > 3.1)
            label = None  # one entry in the legend
    ax.set(xlim=(0.4, 3.5), ylim=(0, 1.25))
    ax.set(xlabel="stretch $\\lambda_2$", ylabel=f"nominal stress $P_{component + 1}$ (MPa)")
    ax.text(2.45, 0.7, "numbers are $\\lambda_1$", color=FAINT)
    closer.set(xlim=(0.86, 1.36), ylim=(0, 0.44), xticks=(0.9, 1.0, 1.1, 1.2, 1.3), yticks=(0, 0.1, 0.2, 0.3, 0.4))
    closer.tick_params(labelsize=7)
    ax.indicate_inset_zoom(closer, edgecolor=FAINT)


def _draw_curve(
    ax: Any, component: int, law: Law, values: Sequence[Any], measured: Measurements, **look: Any
) -> tuple[float, float]:
    """Draw one curve with its measurements; return where it ends."""
    curve, first = measured.stretches[0]
    across = np.linspace(first, measured.stretches[-1, 1], 60)
    learned = law.predict(values, np.stack([np.full_like(across, curve), across], axis=1))[:, component]
    held_out = look["color"] == HELD
    ax.plot(across, learned, color=look["color"], linewidth=1.6 if held_out else 0.9)
    face = look["color"] if held_out else "white"
    ax.plot(
        measured.stretches[:, 1],
        measured.stresses[:, component],
        linestyle="none",
        markersize=3.6,
        markerfacecolor=face,
        markeredgewidth=0.8,
        **look,
    )
    return across[-1], learned[-1]


def _name_curve(ax: Any, curve: float, end: tuple[float, float], colour: str, *, above: bool) -> None:
    offset, align = ((-3, 8), "right") if above else ((5, 0), "left")
    look = {"color": colour, "fontsize": 6 if curve < SMALL else 9, "weight": "bold" if colour == HELD else "normal"}
    ax.annotate(f"{curve:g}", end, offset, textcoords="offset points", ha=align, va="center", **look)


def _draw_share(ax: Any, law: Law, values: Sequence[Any]) -> None:
    theta, *weights = values
    stretch = np.geomspace(law.data.stretches.prod(axis=1).max() ** -1, 3.7, 200)
    classical = _slopes(law.energy, theta, stretch)
    with stop_annotating():
        network = law.slope(weights, np.log(np.append(stretch, 1.0))).numpy()
    ax.plot(stretch, classical, color=FAINT, label="classical part")
    ax.plot(stretch, classical + network[:-1] - network[-1], color=FITTED, label="with the network")
    ax.set(xscale="log", xlabel="stretch $\\lambda$", ylabel="$\\lambda\\,w'(\\lambda)$ (MPa)")
    ticks = (0.1, 0.2, 0.5, 1, 2, 3.7)
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.legend(frameon=False)


def _slopes(energy: Energy, theta: Any, stretch: np.ndarray) -> np.ndarray:
    """Return ``lambda dW/dlambda`` of a classical energy, which is zero where nothing is stretched."""
    shares = overload_jax(lambda theta, x: x * jax.grad(energy, argnums=1)(theta, x))
    with stop_annotating():
        at, at_rest = (shares(theta, x).numpy() for x in (stretch, np.ones(1)))
    return at - at_rest


def _draw_taylor(ax: Any, report: Verification) -> None:
    for (order, residuals), colour in zip(report.residuals.items(), (FAINT, FITTED, HELD), strict=True):
        ax.loglog(report.eps, residuals, "o-", color=colour, markersize=3.6)
        name, end = f"order {order}: rate {report.rates[order]:.2f}", (report.eps[-1], residuals[-1])
        ax.annotate(name, end, (0, -6), textcoords="offset points", color=colour, va="top")
    ax.set(xlabel="step", ylabel="remainder")
    ax.set_xticks(report.eps[::2], [f"{eps:.2g}" for eps in report.eps[::2]])  # all of them would touch each other
    ax.minorticks_off()
    ax.margins(y=0.2)


@dataclass(frozen=True)
class Outcome:
    """What :func:`main` found: the table, the learned law last, and the verification before and after the fit."""

    rows: list[Row]
    before: Verification
    after: Verification


def main(arguments: Sequence[str] | None = None) -> Outcome:
    """Fit, verify, compare and draw.

    Args:
        arguments: the command line, None for that of the process.

    Returns:
        What was found.
    """
    options = _options(arguments)
    began = time.perf_counter()
    fitted, held_out = load()
    if options.tune:
        tune(fitted)
    law = Law(Recipe(), fitted, options.seed)
    functional = law.record()
    before = verify(functional, somewhere(law, options.seed))
    best = fit(functional, law.start, progress=True)
    after = verify(functional, list(best))
    rows = [*(classical_row(name, fitted, held_out) for name in CLASSICAL), learned_row(law, best, held_out)]

    start, end = functional.functional.numpy(), best.result.fun
    print(f"misfit and penalty from {start:.4f} to {end:.4f}, {best.result.evaluations} evaluations")
    print(f"Taylor rates of orders 0, 1, 2: {_rates(before)} at a random point, {_rates(after)} at the fitted one")
    print(f"\n{'root mean square (MPa)':24s} {'parameters':>10s} {'fitted':>12s} {'held out':>12s}")
    print(*rows, sep="\n")
    draw(law, best, held_out, before, Path(options.output))
    print(f"\n{os.path.relpath(options.output)}, {time.perf_counter() - began:.0f} s")
    return Outcome(rows, before, after)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Learn the strain-energy function of rubber from biaxial tests.")
    parser.add_argument("--seed", type=int, default=0, help="of the network's first weights")
    parser.add_argument("--tune", action="store_true", help="print the cross-validation that chose the recipe; minutes")
    parser.add_argument("--output", default=str(PICTURE), help="where the picture goes")
    return parser.parse_args(arguments)


def _rates(report: Verification) -> str:
    return ", ".join(f"{rate:.2f}" for rate in report.rates.values())


if __name__ == "__main__":
    main()
