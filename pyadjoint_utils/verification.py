"""Whether a derivative belongs to its function: Taylor tests, the adjoint identity and Hessian symmetry, in one report."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pyadjoint import AdjFloat
from pyadjoint.enlisting import Enlist
from pyadjoint.tape import no_annotations

from pyadjoint_utils.errors import ArgumentTypeError, MissingEngineError
from pyadjoint_utils.functional import ReducedFunctional
from pyadjoint_utils.reduced import ReducedFunction
from pyadjoint_utils.taylor import (
    Probe,
    arrays,
    default_steps,
    dot,
    like_controls,
    lowest_precision,
    off,
    pair,
    taylor_to_dict,
)

# What verify() tries: directions, and steps along each.
_ATTEMPTS, _STEPS = 3, 6


@dataclass
class Verification:
    """What :func:`verify` found; ``print`` it, ``plot()`` it, or ask whether it ``passed``.

    Attributes:
        eps: the steps of the Taylor tests.
        residuals: remainders of order 0, 1 and 2 at each step.
        rates: the rate of each order at the smallest steps above rounding; 1, 2 and 3 are right, infinity means zero to
            rounding.
        adjoint_error: relative difference of ``<J h, v>`` and ``<h, J^H v>``.
        symmetry_error: relative difference of ``<k, H h>`` and ``<h, H k>``.
        tolerance: what the two errors are compared with.
    """

    eps: list[float]
    residuals: dict[int, list[float]]
    rates: dict[int, float]
    adjoint_error: float
    symmetry_error: float
    tolerance: float
    wanted: dict[int, float] = field(default_factory=lambda: {0: 0.8, 1: 1.8, 2: 2.8})

    @property
    def checks(self) -> dict[str, bool]:
        """Each check by name; order 0 is shown but not judged, it says something of the function, not of a derivative."""
        return {
            "first derivative (order 1)": self.rates[1] >= self.wanted[1],
            "second derivative (order 2)": self.rates[2] >= self.wanted[2],
            "adjoint identity": self.adjoint_error <= self.tolerance,
            "Hessian symmetry": self.symmetry_error <= self.tolerance,
        }

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(self.checks.values())

    def __str__(self) -> str:
        lines = ["step        " + "".join(f"order {k:<10d}" for k in self.residuals)]
        for row, eps in enumerate(self.eps):
            lines.append(f"{eps:<12.3e}" + "".join(f"{self.residuals[k][row]:<16.3e}" for k in self.residuals))
        lines.append("rate        " + "".join(f"{self.rates[k]:<16.3f}" for k in self.rates))
        lines.append(f"<J h, v> against <h, J^H v>   {self.adjoint_error:.1e}   (tolerance {self.tolerance:.1e})")
        lines.append(f"<k, H h> against <h, H k>     {self.symmetry_error:.1e}")
        lines += [f"{'pass' if good else 'FAIL'}  {name}" for name, good in self.checks.items()]
        return "\n".join(lines)

    def plot(self, ax: Any = None) -> Any:
        """Draw the remainders over the step on logarithmic axes.

        Args:
            ax: a matplotlib axes, or None for a new figure.

        Returns:
            The axes.

        Raises:
            MissingEngineError: matplotlib is not installed (the extra ``plot``).
        """
        if ax is None:
            try:
                import matplotlib.pyplot as plt
            except ModuleNotFoundError as error:
                raise MissingEngineError(
                    "plot() needs matplotlib. Install it with: pip install 'pyadjoint-utils[plot]'"
                ) from error

            _, ax = plt.subplots()
        for k, residuals in self.residuals.items():
            ax.loglog(self.eps, residuals, "o-", label=f"order {k}: rate {self.rates[k]:.2f}")
        ax.set_xlabel("step")
        ax.set_ylabel("Taylor remainder")
        ax.legend()
        return ax


@no_annotations
def verify(
    J: Any, m: Any, h: Any = None, v: Any = None, *, seed: int = 0, tolerance: float | None = None
) -> Verification:
    """Check a reduced function's derivatives to second order at a point.

    Args:
        J: a :class:`ReducedFunctional` or :class:`ReducedFunction`.
        m: the point, one value per control.
        h: the direction; None for a random one of the size of ``m``.
        v: the cotangent for a function that is no real scalar; None for a random one.
        seed: seed of the random directions.
        tolerance: what the relative errors of the adjoint identity and of Hessian symmetry may be; None for 1000 units of
            rounding of the lowest precision on the path. Derivatives by differences need more.

    Returns:
        A report with Taylor orders, the adjoint identity and Hessian symmetry.

    Raises:
        ArgumentTypeError: ``J`` is no reduced function of this project.

    Example:
        >>> from pyadjoint_utils import Control, ReducedFunctional, array, verify
        >>> x = array([1.0, 2.0])
        >>> verify(ReducedFunctional((x**4).sum(), Control(x)), x).passed
        True
    """
    if not isinstance(J, (ReducedFunction, ReducedFunctional)):
        raise ArgumentTypeError(f"verify takes a ReducedFunctional or ReducedFunction; got {type(J).__name__}.")
    function = J._function if isinstance(J, ReducedFunctional) else J
    before, updates = function._point, function._updates
    # Along a few directions the leading term of a remainder happens to be small and its rate comes late; a derivative
    # that is wrong fails along every one.
    attempts = _ATTEMPTS if h is None or v is None else 1
    reports: list[Verification] = []
    try:
        while len(reports) < attempts and not (reports and reports[-1].passed):
            reports.append(_verified(J, m, h, v, np.random.default_rng([seed, len(reports)]), tolerance))
    finally:
        function._return_to(before, updates)  # so that nothing that starts there is moved
    return reports[-1] if reports[-1].passed else reports[0]


def _verified(J: Any, m: Any, h: Any, v: Any, rng: np.random.Generator, tolerance: float | None) -> Verification:
    controls, delist = list(J.controls), J.controls.delist
    point = like_controls(controls, m, "m")
    first, other = [
        like_controls(controls, [_random_like(rng, c.control, p) for c, p in zip(controls, point, strict=True)], "h")
        for _ in range(2)
    ]
    first = first if h is None else like_controls(controls, h, "h")
    if v is None:
        v = [_random(rng, y.shape, y.dtype) for y in arrays(J(delist(list(point))))]
    steps = default_steps(lowest_precision(J), _STEPS)
    m, h = delist(list(point)), delist(list(first))
    probe = Probe(J, m, h, v, steps)
    table = taylor_to_dict(J, m, h, v=v, epsilons=steps)
    tangent = probe.directional()
    cotangent = probe.seed()
    adjoint = Enlist(J.adj_jac_action(cotangent))
    left = sum(pair(w, np.asarray(t)) for w, t in zip(probe.v or [], tangent, strict=True))
    right = sum(dot(hi, ai) for hi, ai in zip(first, adjoint, strict=True))
    along = Enlist(J.hess_action(h, cotangent))
    across = Enlist(J.hess_action(delist(list(other)), cotangent))
    one = sum(dot(k, a) for k, a in zip(other, along, strict=True))
    two = sum(dot(k, a) for k, a in zip(first, across, strict=True))
    # At a minimum the derivative is nothing but rounding, which is relative to the value.
    floor = _norm([np.asarray(y) for y in probe.base]) * _norm(probe.v or [])
    size = _norm(along) * _norm(other) + _norm(across) * _norm(first) + floor
    return Verification(
        eps=table["eps"],
        residuals={k: table[f"R{k}"]["Residual"] for k in range(3)},
        rates={k: table[f"R{k}"]["Rate"][-1] for k in range(3)},
        adjoint_error=_relative(left, right, _norm(adjoint) * _norm(first) + floor),
        symmetry_error=_relative(one, two, size),
        tolerance=1e3 * probe.precision if tolerance is None else tolerance,
    )


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    data = rng.standard_normal(shape)
    if dtype.kind == "c":
        data = data + 1j * rng.standard_normal(shape)
    return np.asarray(data).astype(dtype)


def _random_like(rng: np.random.Generator, control: Any, value: Any) -> Any:
    if isinstance(control, AdjFloat):
        return float(rng.standard_normal()) * (abs(float(value)) or 1.0)
    data = np.asarray(off(value))
    scale = float(np.sqrt(np.mean(np.abs(data) ** 2))) if data.size else 1.0
    return (_random(rng, data.shape, data.dtype) * (scale or 1.0)).astype(data.dtype)


def _norm(values: Any) -> float:
    return float(np.sqrt(sum(dot(value, value) for value in values)))


def _relative(a: float, b: float, size: float) -> float:
    return abs(a - b) / (size or 1.0)
