"""Taylor tests, the adjoint identity and Hessian symmetry: whether a derivative belongs to its function."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pyadjoint import AdjFloat
from pyadjoint.enlisting import Enlist
from pyadjoint.overloaded_type import OverloadedType
from pyadjoint.tape import no_annotations

from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.control import checked_value
from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError, MissingEngineError
from pyadjoint_utils.functional import ReducedFunctional
from pyadjoint_utils.reduced import ReducedFunction
from pyadjoint_utils.values import ndarray

_log = logging.getLogger(__name__)

# Residuals below so many units of rounding of the function's value say nothing about a rate.
_NOISE = 5.0
# What verify() tries: directions, and steps along each.
_ATTEMPTS, _STEPS = 3, 6


@no_annotations
def taylor_test(
    J: Any,
    m: Any,
    h: Any,
    dJdm: Any = None,
    Hm: Any = 0.0,
    v: Any = None,
    epsilons: Sequence[float] | None = None,
) -> float:
    """Return the smallest rate at which the Taylor remainder of a function falls with the step.

    The remainder is ``J(m + e h) - J(m) - e dJdm - e**2/2 Hm``. Its rate is 2 if the first derivative is right, 3 if ``Hm``
    is given and right as well, and infinite where the remainder is zero to rounding. For a vector function the tangent
    is tested in the norm of the outputs, and with ``v`` the adjoint, through the functional ``<v, J(m)>``.

    Args:
        J: a :class:`ReducedFunctional`, a :class:`ReducedFunction`, or Pyadjoint's.
        m: the point, one value per control.
        h: the direction, one value per control, of the control's shape; complex for complex controls.
        dJdm: the derivative in direction ``h``; None to ask ``J`` for it.
        Hm: the second derivative in direction ``h`` twice, such as ``h._ad_dot(J.hessian(h))``; 0 to test first order.
        v: a cotangent, one value per output.
        epsilons: the steps; None for steps that fit the lowest precision on the path.

    Returns:
        The smallest rate between neighbouring steps.

    Raises:
        ArgumentValueError: wrong numbers or shapes of ``m``, ``h`` or ``v``.

    Example:
        >>> from pyadjoint_utils import Control, ReducedFunctional, array, taylor_test
        >>> x = array([1.0, 2.0])
        >>> rf = ReducedFunctional((x**3).sum(), Control(x))
        >>> taylor_test(rf, x, array([0.3, -0.2])) > 1.9
        True
    """
    probe = _Probe(J, m, h, v, epsilons)
    slope = probe.slope() if dJdm is None else _plain(dJdm)
    residuals = probe.residuals(slope, _plain(Hm))
    rates = probe.rates(residuals)
    _log.info("Taylor residuals %s, rates %s", residuals, rates)
    J(probe.point)
    return min(rates)


@no_annotations
def taylor_to_dict(
    J: Any,
    m: Any,
    h: Any,
    dJdm: Any = None,
    Hm: Any = None,
    v: Any = None,
    epsilons: Sequence[float] | None = None,
    show: bool = False,
) -> dict[str, Any]:
    """Return residuals and rates of the Taylor remainders of order 0, 1 and 2.

    Args:
        J: as for :func:`taylor_test`.
        m: the point.
        h: the direction.
        dJdm: the derivative in direction ``h``; None to ask ``J`` for it.
        Hm: the second derivative in direction ``h`` twice; None to ask ``J`` for it.
        v: a cotangent, one value per output. For a vector function without one, orders 0 and 1 are those of the
            tangent, in the norm of the outputs, and order 2 is that of ``<v, J(m)>`` with the tangent as ``v``.
        epsilons: the steps; None for steps that fit the lowest precision on the path.
        show: log the table at level INFO instead of DEBUG.

    Returns:
        ``{"eps": steps, "R0": {"Residual": [...], "Rate": [...]}, "R1": ..., "R2": ...}``; the rates of a right derivative
        are 1, 2 and 3.

    Example:
        >>> from pyadjoint_utils import Control, ReducedFunctional, array, taylor_to_dict
        >>> x = array([1.0, 2.0])
        >>> rf = ReducedFunctional((x**4).sum(), Control(x))
        >>> result = taylor_to_dict(rf, x, array([0.3, -0.2]))
        >>> [round(min(result[key]["Rate"])) for key in ("R0", "R1", "R2")]
        [1, 2, 3]
    """
    probe = _Probe(J, m, h, v, epsilons)
    slope = probe.slope() if dJdm is None else _plain(dJdm)
    second = probe
    if Hm is None:
        if probe.is_vector:
            tangent = probe.tangent
            second = _Probe(J, m, h, [np.asarray(t) for t in tangent], epsilons)
        curvature = second.curvature()
        second_slope = second.slope() if second is not probe else slope
    else:
        curvature, second_slope = _plain(Hm), slope
    result: dict[str, Any] = {"eps": list(probe.epsilons)}
    for key, used, first, hess in (
        ("R0", probe, 0.0, 0.0),
        ("R1", probe, slope, 0.0),
        ("R2", second, second_slope, curvature),
    ):
        residuals = used.residuals(first, hess)
        result[key] = {"Residual": residuals, "Rate": used.rates(residuals)}
    for key in ("R0", "R1", "R2"):
        _log.log(logging.INFO if show else logging.DEBUG, "%s %s", key, result[key])
    J(probe.point)
    return result


class _Probe:
    """A function along a line: values, slope and curvature as plain numbers or flat vectors."""

    def __init__(self, J: Any, m: Any, h: Any, v: Any, epsilons: Sequence[float] | None) -> None:
        if not hasattr(J, "controls"):
            raise ArgumentTypeError(
                f"A Taylor test takes a reduced function; got {type(J).__name__}. Write ReducedFunctional(J, Control(m))."
            )
        self.J, self._size = J, 0.0
        controls = list(J.controls)
        self._delist = J.controls.delist if isinstance(J.controls, Enlist) else Enlist(m).delist
        self.m = _like_controls(controls, m, "m")
        self.h = _like_controls(controls, h, "h")
        self.point = self._delist(list(self.m))
        self.base = [np.asarray(y) for y in _arrays(J(self.point))]
        self.v = None if v is None else self._cotangent(v)
        self.is_vector = self.v is None and not (
            len(self.base) == 1 and self.base[0].size == 1 and self.base[0].dtype.kind != "c"
        )
        self.precision = lowest_precision(J)
        self.epsilons = list(epsilons) if epsilons is not None else default_steps(self.precision)
        if len(self.epsilons) < 2:
            raise ArgumentValueError("A Taylor test needs at least two steps in epsilons.")
        self._values: dict[float, Any] = {}
        self.tangent = self._directional() if self.is_vector else []

    def _cotangent(self, v: Any) -> list[np.ndarray]:
        given = [np.asarray(_off(w)) for w in Enlist(v)]
        if [w.shape for w in given] != [y.shape for y in self.base]:
            raise ArgumentValueError(
                f"v must have the shapes of the outputs, {[y.shape for y in self.base]}; got {[w.shape for w in given]}."
            )
        return given

    def _directional(self) -> list[np.ndarray]:
        action = getattr(self.J, "jac_action", None) or self.J.tlm
        return _arrays(action(self._delist(list(self.h))))

    def _seed(self) -> Any:
        seeds = [np.asarray(w, y.dtype) for w, y in zip(self.v or [], self.base, strict=True)]
        return seeds if len(seeds) > 1 or _lists_outputs(self.J) else seeds[0]

    def reduce(self, values: Any) -> Any:
        """A function value as a flat vector, or paired with ``v``."""
        parts = _arrays(values)
        if self.v is not None:
            # What is summed up here may cancel; its rounding does not.
            norms = [float(np.linalg.norm(w) * np.linalg.norm(y)) for w, y in zip(self.v, parts, strict=True)]
            self._size = max(self._size, *norms)
            return sum(_pair(w, y) for w, y in zip(self.v, parts, strict=True))
        flat = np.concatenate([np.ravel(y) for y in parts])
        wide = flat.astype(np.complex128 if flat.dtype.kind == "c" else np.float64)
        return wide if self.is_vector else float(wide[0])

    def slope(self) -> Any:
        if self.is_vector:
            return self.reduce([np.asarray(t) for t in self.tangent])
        derivative = self.J.derivative() if self.v is None else self.J.adj_jac_action(self._seed())
        return sum(_dot(hi, di) for hi, di in zip(self.h, Enlist(derivative), strict=True))

    def curvature(self) -> float:
        h = self._delist(list(self.h))
        if self.v is None:
            if isinstance(self.J, (ReducedFunction, ReducedFunctional)):
                action = self.J.hessian(h)
            else:
                # Pyadjoint's own needs the adjoint of this very point on the tape.
                self.J.derivative()
                action = self.J.hessian(h)
        else:
            action = self.J.hess_action(h, self._seed())
        return sum(_dot(hi, ai) for hi, ai in zip(self.h, Enlist(action), strict=True))

    def value(self, eps: float) -> Any:
        if eps not in self._values:
            shifted = [mi._ad_add(hi._ad_mul(eps)) for mi, hi in zip(self.m, self.h, strict=True)]
            self._values[eps] = self.reduce(self.J(self._delist(shifted)))
        return self._values[eps]

    def residuals(self, slope: Any, curvature: Any) -> list[float]:
        start = self.reduce(self.base)
        return [
            float(np.linalg.norm(self.value(eps) - start - eps * slope - 0.5 * eps**2 * curvature))
            for eps in self.epsilons
        ]

    def rates(self, residuals: Sequence[float]) -> list[float]:
        """Rates between neighbouring steps whose residuals stand above rounding; infinite if none does."""
        size = max(
            self._size,
            float(np.linalg.norm(self.reduce(self.base))),
            *(float(np.linalg.norm(v)) for v in self._values.values()),
        )
        floor = _NOISE * self.precision * size
        rates = []
        for k in range(1, len(residuals)):
            if residuals[k] > floor and residuals[k - 1] > floor:
                ratio = np.log(residuals[k] / residuals[k - 1])
                rates.append(float(ratio / np.log(self.epsilons[k] / self.epsilons[k - 1])))
        if rates or not all(np.isfinite(residuals)):
            return rates or [float("nan")]
        start = self.reduce(self.base)
        moves = [float(np.linalg.norm(self.value(eps) - start)) for eps in self.epsilons]
        if sorted(moves)[-2] <= 10.0 * floor:
            _log.warning(
                "The function changes by %.1e along h, less than its rounding %.1e: nothing can be said of the derivative. "
                "Take a larger direction h, or subtract the large constant.",
                max(moves),
                floor,
            )
            return [float("nan")]
        _log.info(
            "The Taylor remainder is zero to rounding (largest %.1e, rounding %.1e): the rate is infinite. "
            "A larger direction h would test more.",
            max(residuals),
            floor,
        )
        return [float("inf")]


def default_steps(precision: float, count: int = 4) -> list[float]:
    """Return steps at which third-order remainders stand above the rounding of a precision.

    Args:
        precision: the machine epsilon of the lowest precision on the path.
        count: how many.

    Returns:
        Halving steps from ``precision**(1/8)``: 0.011 for float64, 0.14 for float32.
    """
    return [precision**0.125 / 2**k for k in range(count)]


def lowest_precision(J: Any) -> float:
    """Return the largest machine epsilon of any value between the controls and the outputs of a reduced function."""
    function = J._function if isinstance(J, ReducedFunctional) else J
    dtypes = [c.control.dtype for c in J.controls if isinstance(c.control, ndarray)]
    if isinstance(function, ReducedFunction):
        for block in function._plan.derivative:
            if isinstance(block, EngineBlock):
                dtypes += [aval.dtype for aval in (*block.rules.inputs, *block.rules.outputs) if aval.differentiable]
    return max([_epsilon(dtype) for dtype in dtypes], default=float(np.finfo(np.float64).eps))


def _epsilon(dtype: np.dtype) -> float:
    if dtype.kind in "fc":
        return float(np.finfo(dtype).eps)
    return 2.0**-7  # bfloat16, which NumPy's finfo does not know


def _like_controls(controls: list[Any], values: Any, name: str) -> list[Any]:
    given = list(Enlist(values))
    if len(given) != len(controls):
        raise ArgumentValueError(
            f"{name} must have one entry for each of the {len(controls)} controls; got {len(given)}."
        )
    return [
        checked_value(c.control, value, f"{name}[{k}]")
        for k, (c, value) in enumerate(zip(controls, given, strict=True))
    ]


def _lists_outputs(J: Any) -> bool:
    return isinstance(J, ReducedFunction) and J.outputs.listed  # type: ignore[attr-defined]


def _off(value: Any) -> Any:
    return value.numpy() if isinstance(value, ndarray) else value


def _arrays(values: Any) -> list[np.ndarray]:
    return [np.asarray(_off(value)) for value in Enlist(values)]


def _pair(a: np.ndarray, b: np.ndarray) -> float:
    wide = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    return float(np.real(np.vdot(a.astype(wide), b.astype(wide))))


def _dot(a: Any, b: Any) -> float:
    if isinstance(a, OverloadedType) and not isinstance(a, (ndarray, AdjFloat)):
        return float(a._ad_dot(b))
    return _pair(np.asarray(_off(a)), np.asarray(_off(b)))


def _plain(value: Any) -> Any:
    value = np.asarray(_off(value))
    return value.item() if value.size == 1 else np.ravel(value)


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
    while len(reports) < attempts and not (reports and reports[-1].passed):
        reports.append(_verified(J, m, h, v, np.random.default_rng([seed, len(reports)]), tolerance))
    function._return_to(before, updates)  # so that nothing that starts there is moved
    return reports[-1] if reports[-1].passed else reports[0]


def _verified(J: Any, m: Any, h: Any, v: Any, rng: np.random.Generator, tolerance: float | None) -> Verification:
    controls, delist = list(J.controls), J.controls.delist
    point = _like_controls(controls, m, "m")
    first, other = [
        _like_controls(controls, [_random_like(rng, c.control, p) for c, p in zip(controls, point, strict=True)], "h")
        for _ in range(2)
    ]
    first = first if h is None else _like_controls(controls, h, "h")
    if v is None:
        v = [_random(rng, y.shape, y.dtype) for y in _arrays(J(delist(list(point))))]
    steps = default_steps(lowest_precision(J), _STEPS)
    m, h = delist(list(point)), delist(list(first))
    probe = _Probe(J, m, h, v, steps)
    table = taylor_to_dict(J, m, h, v=v, epsilons=steps)
    tangent = probe._directional()
    cotangent = probe._seed()
    adjoint = Enlist(J.adj_jac_action(cotangent))
    left = sum(_pair(w, np.asarray(t)) for w, t in zip(probe.v or [], tangent, strict=True))
    right = sum(_dot(hi, ai) for hi, ai in zip(first, adjoint, strict=True))
    along = Enlist(J.hess_action(h, cotangent))
    across = Enlist(J.hess_action(delist(list(other)), cotangent))
    one = sum(_dot(k, a) for k, a in zip(other, along, strict=True))
    two = sum(_dot(k, a) for k, a in zip(first, across, strict=True))
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
    data = np.asarray(_off(value))
    scale = float(np.sqrt(np.mean(np.abs(data) ** 2))) if data.size else 1.0
    return (_random(rng, data.shape, data.dtype) * (scale or 1.0)).astype(data.dtype)


def _norm(values: Any) -> float:
    return float(np.sqrt(sum(_dot(value, value) for value in values)))


def _relative(a: float, b: float, size: float) -> float:
    return abs(a - b) / (size or 1.0)
