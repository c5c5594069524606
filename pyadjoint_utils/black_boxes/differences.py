"""Derivatives of opaque code along one direction: complex steps, and central differences that watch their own error."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pyadjoint_utils.errors import NotDifferentiableError

Values = Sequence[np.ndarray]
Function = Callable[[Sequence[Any]], Sequence[Any]]

# Its square vanishes beside 1, and it leaves 200 decades below before it underflows itself.
_COMPLEX_STEP = 2.0**-333
_SINGLE_COMPLEX_STEP = 2.0**-66  # for code that rounds to complex64


def largest(values: Values) -> float:
    """Return the largest modulus among all entries; 0 of nothing."""
    return max([float(np.max(np.abs(v), initial=0.0)) for v in values], default=0.0)


def reach(at: Values, direction: Values, floor: float = 0.0) -> float:
    """Return how far one can go along a direction before an array changes by its own size, 1 for an array of zeros."""
    ways = []
    for x, d in zip(at, direction, strict=True):
        size, speed = largest([x]), largest([d])
        if speed:
            ways.append(max(size, floor) / speed if size else 1.0 / speed)
    way = min(ways, default=1.0)
    if not math.isfinite(way):
        raise NotDifferentiableError("A derivative is to be probed at a point that holds numbers that are not finite.")
    return way


def moved(at: Values, direction: Values, t: complex) -> list[np.ndarray]:
    """Return ``at + t direction``; a real step keeps the dtypes."""
    return [
        np.asarray(x + t * d) if isinstance(t, complex) else np.asarray(x + t * d, x.dtype)
        for x, d in zip(at, direction, strict=True)
    ]


def complex_step(g: Function, at: Values, direction: Values, eps: float) -> list[np.ndarray]:
    """Return ``Im g(x + i t d) / t``, the derivative of a complex-analytic function to machine precision.

    Args:
        g: takes and returns lists of arrays.
        at: the point, real arrays.
        direction: the direction, real arrays of the same shapes, not all zero.
        eps: the precision in which ``g`` computes.
    """
    base = _COMPLEX_STEP if eps < 1e-10 else _SINGLE_COMPLEX_STEP
    t = max(base * _power_of_two(reach(at, direction)), 2.0**-950)
    return [np.imag(y) / t for y in g(moved(at, direction, complex(0.0, t)))]


class Estimate(NamedTuple):
    """A derivative by differences and what its error is guessed to be, relative to it in its worst array."""

    value: list[np.ndarray]
    noise: list[float]  # a thousand times what rounding alone makes of it
    error: float
    flat: int  # how many arrays moved by hardly more than rounding, so that a larger step could tell more

    def agrees(self, other: Values, eps: float) -> bool:
        """Whether another derivative is the same as far as differences can see."""
        tolerance = min(0.1, max(1e3 * eps ** (2 / 3), 10 * self.error))
        return all(
            largest([a - b]) <= tolerance * max(largest([a]), largest([b])) + 1e-2 * noise
            for a, b, noise in zip(self.value, other, self.noise, strict=True)
        )


def central(g: Function, at: Values, direction: Values, eps: float, step: float | None, name: str) -> Estimate:
    """Differentiate by Richardson-extrapolated central differences.

    The step is ``eps**(1/5)`` times the size of ``at``, where truncation and rounding of four evaluations balance. Two
    steps that do not agree make it look for another one.

    Args:
        g: takes and returns lists of arrays.
        at: the point.
        direction: the direction, not all zero.
        eps: relative error of the values of ``g``.
        step: another step, relative to the size of ``at``, or None.
        name: what is differentiated, for messages.

    Raises:
        NotDifferentiableError: no step gives finite differences that agree with those of half the step.
    """
    h = eps**0.2 if step is None else step
    good = 20 * h * h
    near, far = reach(at, direction), reach(at, direction, floor=1.0)

    def tried(scale: float) -> Estimate:
        return _extrapolated(g, at, direction, h * _power_of_two(scale), eps)

    first = best = tried(near)
    found = [first]
    if first.flat and far > 1e3 * near:
        # A number that is tiny by accident says nothing about the scale on which the function varies.
        count = math.ceil(math.log2(far / near) / 12)
        found += [tried(min(near * 4096.0**k, far)) for k in range(1, count + 1)]
    settled = [estimate for estimate in found if estimate.error <= good]
    if settled:
        return min(settled, key=lambda estimate: (estimate.flat, estimate.error))
    for power in (4, -4, -8, -12, -16, -20, -24, -28, -32):
        other = tried(near * 2.0**power)
        if other.error <= good and other.flat <= first.flat:
            return other
        if other.error < best.error and other.flat <= first.flat:
            best = other
    if best.error <= 3 * h:
        return best
    if not math.isfinite(best.error):
        raise NotDifferentiableError(
            f"{name} gives values that are not finite near the point: all differences with steps around {h * near:.1e} and "
            "below are. Move the point into the domain of the function."
        )
    raise NotDifferentiableError(
        f"{name} has differences that do not settle: with steps around {h * near:.1e} they change by "
        f"{100 * best.error:.1g} % when the step is halved, so that the function is rough or noisy there. Tighten the "
        "tolerances inside it, or give a larger step="
    )


def _power_of_two(x: float) -> float:
    return 2.0 ** math.floor(math.log2(x))


def _extrapolated(g: Function, at: Values, direction: Values, t: float, eps: float) -> Estimate:
    pairs = [(g(moved(at, direction, s)), g(moved(at, direction, -s))) for s in (t, t / 2)]
    value, noises, errors, flat = [], [], [0.0], 0
    for up, down, half_up, half_down in zip(*pairs[0], *pairs[1], strict=True):
        with np.errstate(all="ignore"):
            coarse, fine = _slope(up, down, t), _slope(half_up, half_down, t / 2)
            value.append(fine + (fine - coarse) / 3)
            size, change, slope = largest([up, down]), largest([fine - coarse]), largest([value[-1]])
        noise = 1e3 * eps * size / t
        noises.append(noise)
        if not math.isfinite(noise + change + slope):
            errors.append(math.inf)
            continue
        flat += slope <= 1e6 * noise
        if slope > noise or change > noise:
            errors.append((change + 1e-3 * noise) / max(slope, noise))
    return Estimate(value, noises, max(errors), flat)


def _slope(up: Any, down: Any, t: float) -> np.ndarray:
    up, down = _wide(up), _wide(down)
    return (up - down) / (2 * t)


@functools.cache
def wide_dtype(dtype: np.dtype) -> np.dtype:
    """The double-precision dtype of the same kind."""
    return np.dtype(np.complex128 if dtype.kind == "c" else np.float64)


def _wide(y: Any) -> np.ndarray:
    y = np.asarray(y)
    return y.astype(wide_dtype(y.dtype), copy=False)


def precision(dtype: np.dtype) -> float:
    """Relative rounding of a floating or complex dtype."""
    return float(np.finfo(dtype).eps) if dtype.kind in "fc" else 2.0**-7


def random_like(values: Values, *, sized: bool = True) -> list[np.ndarray]:
    """Return arrays like the given ones, without a zero, of their size or of size 1."""
    rng, results = np.random.default_rng(0), []
    for v in values:
        numbers = rng.uniform(0.5, 1.0, v.shape) * rng.choice([-1.0, 1.0], v.shape)
        if v.dtype.kind == "c":
            numbers = numbers + 1j * rng.uniform(0.5, 1.0, v.shape)
        results.append(np.asarray(((largest([v]) if sized else 0.0) or 1.0) * numbers, v.dtype))
    return results
