"""Minimise a reduced functional with SciPy's optimizers."""

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from pyadjoint import AdjFloat
from pyadjoint.enlisting import Enlist
from pyadjoint.tape import no_annotations

from pyadjoint_utils.callbacks import CallbackCombiner, Iteration
from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError, NotDifferentiableError
from pyadjoint_utils.functional import ReducedFunctional
from pyadjoint_utils.reduced import ReducedFunction
from pyadjoint_utils.values import asarray, flattened, ndarray, unflattened

_WITHOUT_GRADIENT = {"nelder-mead", "powell", "cobyla", "cobyqa"}
_WITH_HESSIAN = {"newton-cg", "trust-ncg", "trust-krylov", "trust-constr"}
_DENSE_HESSIAN = {"dogleg", "trust-exact"}
_METHODS = _WITHOUT_GRADIENT | _WITH_HESSIAN | _DENSE_HESSIAN | {"cg", "bfgs", "l-bfgs-b", "tnc", "slsqp"}


class NotConvergedWarning(UserWarning):
    """An optimizer stopped before it converged; the best iterate is returned."""


class Minimisers(list):
    """The minimising values of several controls.

    Attributes:
        result: SciPy's result, with ``history`` and ``evaluations``.
    """

    result: Any = None


@no_annotations
def minimize(
    rf: Any,
    method: str = "L-BFGS-B",
    scale: float = 1.0,
    bounds: Any = None,
    constraints: Any = (),
    callback: Callable[[Iteration], Any] | None = None,
    callbacks: Sequence[Callable[[Iteration], Any]] = (),
    progress: bool | None = None,
    options: dict[str, Any] | None = None,
    start: Any = None,
    tol: float | None = None,
    **kwargs: Any,
) -> Any:
    """Minimise a scalar function of the controls with :func:`scipy.optimize.minimize`.

    Gradients come from the tape, and Hessian actions for the methods that take them. Complex controls are varied in their
    real and imaginary parts.

    Args:
        rf: a :class:`ReducedFunctional`, or a :class:`ReducedFunction` with one real scalar output.
        method: any method of SciPy, for example ``"L-BFGS-B"``, ``"BFGS"``, ``"Newton-CG"``, ``"trust-krylov"``,
            ``"trust-constr"``, ``"SLSQP"``.
        scale: a factor on the functional that the optimizer sees; histories and results are unscaled.
        bounds: ``(lower, upper)``; each a number, None, an array of the control's shape, or a list with one of these per
            control. A :class:`scipy.optimize.Bounds` speaks of the flat vector of all real numbers.
        constraints: SciPy's constraints over that flat vector; in a dictionary, ``"fun"`` may be a ReducedFunctional or
            ReducedFunction of the same controls, which brings its own Jacobian.
        callback: called with an :class:`Iteration` after each iteration; returning True stops.
        callbacks: several of these.
        progress: True for a progress bar, False for none, None for one where standard error is a terminal.
        options: SciPy's options of the method, such as ``{"maxiter": 100}``.
        start: one value per control to start from; None for the point of the last evaluation.
        tol: SciPy's tolerance.
        **kwargs: more arguments of :func:`scipy.optimize.minimize`.

    Returns:
        The minimiser in the type, engine, shape and dtype of the control, or a list of them. It carries SciPy's result as
        ``.result``, which holds ``history``, the list of all :class:`Iteration`.

    Raises:
        ArgumentTypeError: ``rf`` is no reduced function, or bounds were given for complex controls.
        ArgumentValueError: bounds whose shape does not fit.

    Warns:
        NotConvergedWarning: the optimizer did not converge; the best iterate is returned.

    Example:
        >>> from pyadjoint_utils import Control, ReducedFunctional, array, minimize
        >>> x = array([3.0, -2.0])
        >>> best = minimize(ReducedFunctional(((x - 1.0) ** 2).sum(), Control(x)))
        >>> [round(v, 6) for v in best.tolist()]
        [1.0, 1.0]
    """
    if not isinstance(rf, (ReducedFunctional, ReducedFunction)):
        given = f"{type(rf).__module__.partition('.')[0]}.{type(rf).__name__}"
        raise ArgumentTypeError(f"minimize takes a pyadjoint_utils.ReducedFunctional; got {given}.")
    name = method.lower()
    if name not in _METHODS:
        raise ArgumentValueError(f"minimize has no method {method!r}. It knows SciPy's: {', '.join(sorted(_METHODS))}.")
    function = rf._function if isinstance(rf, ReducedFunctional) else rf
    before = function._point, function._updates
    try:
        return _minimized(
            rf,
            name,
            scale=scale,
            bounds=bounds,
            constraints=constraints,
            callbacks=[*([callback] if callback else []), *callbacks],
            progress=progress,
            options=options,
            start=start,
            tol=tol,
            more=kwargs,
        )
    except BaseException:
        function._return_to(*before)
        raise


def _minimized(
    rf: Any,
    name: str,
    *,
    scale: float,
    bounds: Any,
    constraints: Any,
    callbacks: list[Callable[[Iteration], Any]],
    progress: bool | None,
    options: dict[str, Any] | None,
    start: Any,
    tol: float | None,
    more: dict[str, Any],
) -> Any:
    from scipy import optimize  # imported where it is used: it costs 0.1 s

    kwargs = dict(more)
    if start is not None:
        rf(start)
    problem = _Problem(rf, scale, CallbackCombiner(callbacks), progress, options)
    if name not in _WITHOUT_GRADIENT:
        kwargs.setdefault("jac", problem.gradient)
    if name in _WITH_HESSIAN:
        kwargs.setdefault("hessp", problem.hessian_action)
    if name in _DENSE_HESSIAN:
        kwargs.setdefault("hess", problem.hessian_matrix)
    limits = problem.bounds(bounds)
    if limits is not None:
        kwargs["bounds"] = limits
    if constraints:
        kwargs["constraints"] = problem.constraints(constraints, name)
    with problem:
        result = problem.run(
            optimize.minimize,
            problem.value,
            problem.start,
            method=name,
            callback=_scipy_callback(problem, name),
            options=options or {},
            tol=tol,
            **kwargs,
        )
    return problem.finish(result, constrained=bool(constraints))


def _scipy_callback(problem: "_Problem", name: str) -> Callable[..., Any]:
    def report(intermediate_result: Any) -> None:
        problem.iterate(np.array(intermediate_result.x))

    def report_vector(x: np.ndarray) -> None:
        problem.iterate(np.array(x))

    def report_state(x: np.ndarray, state: Any) -> None:
        problem.iterate(np.array(x))

    if name == "trust-constr":
        return report_state
    return report_vector if name in ("cobyla", "slsqp", "tnc") else report


class _Stopped(Exception):
    """A callback asked to stop; SciPy's own way of saying so differs from method to method."""


class _Problem:
    """A reduced functional over the flat vector of real numbers that SciPy varies."""

    def __init__(
        self,
        rf: Any,
        scale: float,
        callback: CallbackCombiner,
        progress: bool | None,
        options: dict[str, Any] | None,
    ) -> None:
        self._rf, self._scale, self._callback = rf, scale, callback
        self._controls = list(rf.controls)
        self._delist = rf.controls.delist
        function = self._function = rf._function if isinstance(rf, ReducedFunctional) else rf
        self._point: Any = None
        self.start = self.flatten(function._value_list())
        self._at: np.ndarray | None = None
        self._value, self._gradient = np.nan, np.full(0, np.nan)
        self._sign = 1.0 if scale >= 0 else -1.0
        self._best: tuple[float, np.ndarray] = (self._sign * np.inf, self.start)
        self._evaluations = 0
        self._stopped = False
        self._limits: Any = None
        self.history: list[Iteration] = []
        self._progress, self._total = progress, (options or {}).get("maxiter")
        self._began = time.perf_counter()

    # Vectors -----------------------------------------------------------------------------------------------------------

    def flatten(self, values: Sequence[Any]) -> np.ndarray:
        parts = [
            flattened(v) if isinstance(v, ndarray) else np.asarray(c.control._ad_to_list(v), dtype=np.float64)
            for c, v in zip(self._controls, values, strict=True)
        ]
        return np.concatenate(parts)

    def unflatten(self, x: np.ndarray) -> list[Any]:
        values, offset = [], 0
        for control in (c.control for c in self._controls):
            if isinstance(control, ndarray):
                end = offset + control._ad_dim()
                values.append(ndarray(unflattened(x[offset:end], control.aval, control._engine), control._engine))
                offset = end
            else:
                value, offset = control._ad_assign_numpy(control._ad_copy(), x, offset)
                values.append(value)
        return values

    # What SciPy calls --------------------------------------------------------------------------------------------------

    def _move(self, x: np.ndarray) -> None:
        # Callbacks and constraints may have evaluated the same function elsewhere.
        if self._at is not None and np.array_equal(x, self._at) and self._function._point is self._point:
            return
        value = self._rf(self._delist(self.unflatten(x)))
        number = np.asarray(value.numpy() if isinstance(value, ndarray) else value)
        if number.size != 1 or number.dtype.kind == "c":
            raise ArgumentTypeError(
                f"minimize needs a real scalar function; it returned {number.dtype} of shape {number.shape}. "
                "Reduce it to one number, for example with .sum() or abs(z)**2."
            )
        self._at, self._value, self._point = np.array(x), float(number.item()), self._function._point
        self._gradient = np.full(0, np.nan)
        self._evaluations += 1
        if self._sign * self._value < self._sign * self._best[0] and self._within_limits(x):
            self._best = (self._value, self._at)

    def _within_limits(self, x: np.ndarray) -> bool:
        # Some methods evaluate outside of the bounds on their way.
        return self._limits is None or bool(np.all(x >= self._limits.lb) and np.all(x <= self._limits.ub))

    def value(self, x: np.ndarray) -> float:
        self._move(x)
        return self._scale * self._value

    def gradient(self, x: np.ndarray) -> np.ndarray:
        self._move(x)
        if not self._gradient.size:
            self._gradient = self.flatten(list(Enlist(self._rf.derivative(apply_riesz=True))))
        return self._scale * self._gradient

    def hessian_action(self, x: np.ndarray, p: np.ndarray) -> np.ndarray:
        self._move(x)
        direction = self._delist(self.unflatten(p))
        return self._scale * self.flatten(list(Enlist(self._rf.hessian(direction, apply_riesz=True))))

    def hessian_matrix(self, x: np.ndarray) -> np.ndarray:
        self._move(x)
        return self._scale * self._second_derivatives(self._rf, None, x.size)

    def _second_derivatives(self, rf: Any, adj: Any, size: int) -> np.ndarray:
        """The Hessian of a function of the controls, in one sweep where all engines can loop over directions."""
        if all(isinstance(c.control, (ndarray, AdjFloat)) for c in self._controls):
            with suppress(NotDifferentiableError):
                return rf.linear_operator("hessian", adj) @ np.eye(size)
        directions = [self._delist(self.unflatten(e)) for e in np.eye(size)]
        rows = [rf.hessian(d, apply_riesz=True) if adj is None else rf.hess_action(d, adj) for d in directions]
        return np.stack([self.flatten(list(Enlist(row))) for row in rows])

    def iterate(self, x: np.ndarray) -> None:
        self._move(x)
        norm = float(np.linalg.norm(self._gradient)) if self._gradient.size else float("nan")
        seconds = time.perf_counter() - self._began
        iteration = Iteration(
            len(self.history) + 1,
            self._value,
            norm,
            self._evaluations,
            seconds,
            self._delist(self.unflatten(x)),
        )
        self.history.append(iteration)
        self._bar.set_postfix_str(f"J = {self._value:.6g}", refresh=False)
        self._bar.update(1)
        if self._callback(iteration):
            raise _Stopped

    def run(self, optimizer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call SciPy; a stop that a callback asked for is a result as well."""
        from scipy.optimize import OptimizeResult

        try:
            return optimizer(*args, **kwargs)
        except _Stopped:
            self._stopped = True
            return OptimizeResult(
                x=self._at, success=False, status=99, message="A callback asked to stop.", nit=len(self.history)
            )

    def __enter__(self) -> "_Problem":
        from tqdm.auto import tqdm

        disable = None if self._progress is None else not self._progress
        self._bar = tqdm(total=self._total, desc="minimize", unit="it", disable=disable)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bar.total = self._bar.n  # converged before maxiter is finished, not cut off
        self._bar.close()
        self._callback.close()

    def finish(self, result: Any, *, constrained: bool) -> Any:
        if not result.success and not self._stopped:
            reason = str(result.message).rstrip(".")
            warnings.warn(
                f"The optimizer did not converge: {reason}. The best iterate is returned, with the functional "
                f"{self._best[0]:.6g}.",
                NotConvergedWarning,
                stacklevel=4,
            )
        best = np.asarray(result.x, dtype=np.float64)
        if not constrained and np.isfinite(self._best[0]):
            best = self._best[1]
        result.x, result.history, result.evaluations = best, self.history, self._evaluations
        values = self.unflatten(best)
        result.fun = self.value(best) / self._scale  # so that the tape stands at the minimiser
        answer = self._delist(Minimisers(values))
        answer.result = result
        return answer

    # Bounds and constraints --------------------------------------------------------------------------------------------

    def bounds(self, bounds: Any) -> Any:
        from scipy.optimize import Bounds

        if bounds is not None and not isinstance(bounds, Bounds):
            if not isinstance(bounds, (list, tuple, np.ndarray)) or len(bounds) != 2:
                raise ArgumentValueError(f"bounds must be (lower, upper); got {bounds!r}.")
            bounds = Bounds(*[self._limit(side, k) for k, side in enumerate(bounds)])
            if np.any(bounds.lb > bounds.ub) or np.array_equal(bounds.lb, bounds.ub):
                raise ArgumentValueError(
                    f"bounds leave no room: lower is {bounds.lb.tolist()} and upper {bounds.ub.tolist()}. They are "
                    "(lower, upper) for all numbers, not one pair for each number."
                )
        self._limits = bounds
        return bounds

    def _limit(self, side: Any, k: int) -> np.ndarray:
        infinite = (-np.inf, np.inf)[k]
        single = len(self._controls) == 1 and not (isinstance(side, (list, tuple)) and len(side) == 1)
        sides = [side] if single else list(side) if isinstance(side, (list, tuple)) else [side] * len(self._controls)
        what = ("lower", "upper")[k]
        if len(sides) != len(self._controls):
            raise ArgumentValueError(
                f"bounds: {what} must have one entry for each of the {len(self._controls)} controls; got {len(sides)}."
            )
        return np.concatenate(
            [
                self._one_limit(c.control, s, infinite, f"bounds, {what}[{i}]")
                for i, (c, s) in enumerate(zip(self._controls, sides, strict=True))
            ]
        )

    def _one_limit(self, control: Any, side: Any, infinite: float, what: str) -> np.ndarray:
        if isinstance(control, ndarray) and control.dtype.kind == "c" and side is not None:
            raise ArgumentTypeError(f"{what}: complex numbers have no order, so complex controls take no bounds.")
        size = 1 if isinstance(control, AdjFloat) else control._ad_dim()
        shape = control.shape if isinstance(control, ndarray) else ()
        if side is None:
            return np.full(size, infinite)
        limit = np.asarray(side.numpy() if isinstance(side, ndarray) else side, dtype=np.float64)
        if limit.shape not in ((), tuple(shape)):
            raise ArgumentValueError(f"{what} must be a number or have the control's shape {shape}; got {limit.shape}.")
        return np.broadcast_to(limit, shape).reshape(-1) if isinstance(control, ndarray) else limit.reshape(-1)

    def constraints(self, constraints: Any, name: str) -> Any:
        listed = constraints if isinstance(constraints, (list, tuple)) else [constraints]
        return [self._constraint(c, name) for c in listed]

    def _constraint(self, constraint: Any, name: str) -> Any:
        function = constraint.get("fun") if isinstance(constraint, dict) else None
        if not isinstance(function, (ReducedFunction, ReducedFunctional)):
            return constraint

        def at(x: np.ndarray) -> ndarray:
            return asarray(function(self._delist(self.unflatten(x))))

        def value(x: np.ndarray) -> np.ndarray:
            return np.ravel(at(x).numpy()).astype(np.float64)

        def jacobian(x: np.ndarray) -> np.ndarray:
            y = at(x)
            rows = np.eye(y.size, dtype=y.dtype).reshape((y.size, *y.shape))
            return np.stack([self.flatten(list(Enlist(function.adj_jac_action(row)))) for row in rows])

        def hessian(x: np.ndarray, v: np.ndarray) -> np.ndarray:
            y = at(x)
            seed = np.asarray(v, y.dtype).reshape(y.shape)
            return self._second_derivatives(function, seed, x.size)

        if name != "trust-constr":
            return {**constraint, "fun": value, "jac": jacobian}
        from scipy.optimize import NonlinearConstraint

        return NonlinearConstraint(value, 0.0, 0.0 if constraint["type"] == "eq" else np.inf, jacobian, hessian)
