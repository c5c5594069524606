"""Taylor tests: how fast the remainder of a function falls, whose derivatives are at hand."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from pyadjoint import AdjFloat
from pyadjoint.enlisting import Enlist
from pyadjoint.overloaded_type import OverloadedType
from pyadjoint.tape import no_annotations

from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.control import checked_value
from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError
from pyadjoint_utils.functional import ReducedFunctional
from pyadjoint_utils.reduced import ReducedFunction
from pyadjoint_utils.values import ndarray

_log = logging.getLogger(__name__)

# Residuals below so many units of rounding of the function's value say nothing about a rate.
_NOISE = 5.0


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
    probe = Probe(J, m, h, v, epsilons)
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
    probe = Probe(J, m, h, v, epsilons)
    slope = probe.slope() if dJdm is None else _plain(dJdm)
    second = probe
    if Hm is None:
        if probe.is_vector:
            tangent = probe.tangent
            second = Probe(J, m, h, [np.asarray(t) for t in tangent], epsilons)
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


class Probe:
    """A function along a line: values, slope and curvature as plain numbers or flat vectors."""

    def __init__(self, J: Any, m: Any, h: Any, v: Any, epsilons: Sequence[float] | None) -> None:
        if not hasattr(J, "controls"):
            raise ArgumentTypeError(
                f"A Taylor test takes a reduced function; got {type(J).__name__}. Write ReducedFunctional(J, Control(m))."
            )
        self.J, self._size = J, 0.0
        controls = list(J.controls)
        self._delist = J.controls.delist if isinstance(J.controls, Enlist) else Enlist(m).delist
        self.m = like_controls(controls, m, "m")
        self.h = like_controls(controls, h, "h")
        self.point = self._delist(list(self.m))
        self.base = [np.asarray(y) for y in arrays(J(self.point))]
        self.v = None if v is None else self._cotangent(v)
        self.is_vector = self.v is None and not (
            len(self.base) == 1 and self.base[0].size == 1 and self.base[0].dtype.kind != "c"
        )
        self.precision = lowest_precision(J)
        self.epsilons = list(epsilons) if epsilons is not None else default_steps(self.precision)
        if len(self.epsilons) < 2:
            raise ArgumentValueError("A Taylor test needs at least two steps in epsilons.")
        self._values: dict[float, Any] = {}
        self.tangent = self.directional() if self.is_vector else []

    def _cotangent(self, v: Any) -> list[np.ndarray]:
        given = [np.asarray(off(w)) for w in Enlist(v)]
        if [w.shape for w in given] != [y.shape for y in self.base]:
            raise ArgumentValueError(
                f"v must have the shapes of the outputs, {[y.shape for y in self.base]}; got {[w.shape for w in given]}."
            )
        return given

    def directional(self) -> list[np.ndarray]:
        action = getattr(self.J, "jac_action", None) or self.J.tlm
        return arrays(action(self._delist(list(self.h))))

    def seed(self) -> Any:
        seeds = [np.asarray(w, y.dtype) for w, y in zip(self.v or [], self.base, strict=True)]
        return seeds if len(seeds) > 1 or _lists_outputs(self.J) else seeds[0]

    def reduce(self, values: Any) -> Any:
        """A function value as a flat vector, or paired with ``v``."""
        parts = arrays(values)
        if self.v is not None:
            # What is summed up here may cancel; its rounding does not.
            norms = [float(np.linalg.norm(w) * np.linalg.norm(y)) for w, y in zip(self.v, parts, strict=True)]
            self._size = max(self._size, *norms)
            return sum(pair(w, y) for w, y in zip(self.v, parts, strict=True))
        flat = np.concatenate([np.ravel(y) for y in parts])
        wide = flat.astype(np.complex128 if flat.dtype.kind == "c" else np.float64)
        return wide if self.is_vector else float(wide[0])

    def slope(self) -> Any:
        if self.is_vector:
            return self.reduce([np.asarray(t) for t in self.tangent])
        derivative = self.J.derivative() if self.v is None else self.J.adj_jac_action(self.seed())
        return sum(dot(hi, di) for hi, di in zip(self.h, Enlist(derivative), strict=True))

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
            action = self.J.hess_action(h, self.seed())
        return sum(dot(hi, ai) for hi, ai in zip(self.h, Enlist(action), strict=True))

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


def like_controls(controls: list[Any], values: Any, name: str) -> list[Any]:
    """Return values, checked, in the types of the controls; ``name`` is what messages call them."""
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


def off(value: Any) -> Any:
    """Return the data of a value, off the tape."""
    return value.numpy() if isinstance(value, ndarray) else value


def arrays(values: Any) -> list[np.ndarray]:
    """Return values, one or a list, as NumPy arrays."""
    return [np.asarray(off(value)) for value in Enlist(values)]


def pair(a: np.ndarray, b: np.ndarray) -> float:
    """Return ``Re<a, b>``, summed up in double precision."""
    wide = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    return float(np.real(np.vdot(a.astype(wide), b.astype(wide))))


def dot(a: Any, b: Any) -> float:
    """Return the inner product of two values of any type."""
    if isinstance(a, OverloadedType) and not isinstance(a, (ndarray, AdjFloat)):
        return float(a._ad_dot(b))
    return pair(np.asarray(off(a)), np.asarray(off(b)))


def _plain(value: Any) -> Any:
    value = np.asarray(off(value))
    return value.item() if value.size == 1 else np.ravel(value)
