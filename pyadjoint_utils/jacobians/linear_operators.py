"""Jacobians and Hessians as SciPy's linear operators of flat vectors."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from pyadjoint import AdjFloat
from pyadjoint.enlisting import Enlist

from pyadjoint_utils.engine import Aval
from pyadjoint_utils.errors import ArgumentValueError, NotDifferentiableError
from pyadjoint_utils.flat import ReducedFunctionNumPy
from pyadjoint_utils.jacobians.hessian_matrix import hessian_of
from pyadjoint_utils.jacobians.jacobian import Jacobian
from pyadjoint_utils.plan import aval_of
from pyadjoint_utils.tapes import alone
from pyadjoint_utils.values import flattened, ndarray, unflattened

Rows = Sequence[np.ndarray]


@alone
def linear_operator(rf: Any, of: str, adj: Any) -> Any:
    """Return the operator where a function stands; see :meth:`ReducedFunction.linear_operator`."""
    if of not in ("jacobian", "hessian"):
        raise ArgumentValueError(f'linear_operator takes "jacobian" or "hessian"; got {of!r}.')
    if of == "hessian":
        return _hessian(rf, adj)
    if adj is not None:
        raise ArgumentValueError('A Jacobian takes no cotangent. Write linear_operator("hessian", adj).')
    return _jacobian(rf)


def _jacobian(rf: Any) -> Any:
    from scipy.sparse.linalg import LinearOperator  # imported where it is used

    flat = ReducedFunctionNumPy(rf)
    jacobian = Jacobian(rf._plan, rf._outputs, rf._controls)
    controls, outputs = [[aval_of(bv) for bv in side] for side in (jacobian.controls, jacobian.outputs)]
    kinds = {"c" if aval.dtype.kind == "c" else "f" for aval in (*controls, *outputs)}
    if len(kinds) > 1:
        raise NotDifferentiableError(
            "A linear operator has one dtype, but real and complex numbers stand among these controls and outputs. Use "
            "jac_action and adj_jac_action, or make all of them complex: x.astype(complex)."
        )
    rf._linearize()
    jacobian.check_holomorphic()

    @alone
    def matmat(rf: Any, x: np.ndarray) -> np.ndarray:
        rf._linearize()
        return _times(x, controls, Jacobian(rf._plan, rf._outputs, rf._controls).push)

    @alone
    def rmatmat(rf: Any, y: np.ndarray) -> np.ndarray:
        rf._linearize()
        return _times(y, outputs, Jacobian(rf._plan, rf._outputs, rf._controls).pull)

    return LinearOperator(
        flat.shape,
        matvec=lambda x: flat.jac_action(np.ravel(x)),
        rmatvec=lambda y: flat.adj_jac_action(np.ravel(y)),
        matmat=partial(matmat, rf),
        rmatmat=partial(rmatmat, rf),
        dtype=np.complex128 if kinds == {"c"} else np.float64,
    )


def _hessian(rf: Any, adj: Any) -> Any:
    from scipy.sparse.linalg import LinearOperator  # imported where it is used

    hessian = hessian_of(rf, adj)
    avals = [aval_of(bv) for bv in hessian.controls]
    seeds = rf._outputs.delist(hessian.adj)
    sizes = [math.prod(aval.shape) * (2 if aval.dtype.kind == "c" else 1) for aval in avals]

    def matvec(x: np.ndarray) -> np.ndarray:
        parts = np.split(np.ravel(x), np.cumsum(sizes)[:-1])
        values = [_value(part, bv.output) for part, bv in zip(parts, hessian.controls, strict=True)]
        results = Enlist(rf.hess_action(rf._controls.delist(values), seeds))
        return np.concatenate([flattened(v) if isinstance(v, ndarray) else np.array([float(v)]) for v in results])

    @alone
    def times(rf: Any, x: np.ndarray) -> np.ndarray:
        rf._linearize()
        return _times(x, avals, hessian_of(rf, seeds).times, parts=True)

    matmat = partial(times, rf)
    return LinearOperator(
        (sum(sizes), sum(sizes)), matvec=matvec, rmatvec=matvec, matmat=matmat, rmatmat=matmat, dtype=np.float64
    )


def _value(part: np.ndarray, like: Any) -> Any:
    if not isinstance(like, ndarray):
        return AdjFloat(part[0])
    return ndarray(unflattened(part, like.aval, like._engine), like._engine)


def _times(x: np.ndarray, avals: Sequence[Aval], sweep: Callable[[Rows], Rows], parts: bool = False) -> np.ndarray:
    """Multiply with the columns of a matrix; ``parts``: complex numbers stand as pairs of real and imaginary part."""
    rows, offset, given = np.ascontiguousarray(x.T), 0, []
    for aval in avals:
        paired = parts and aval.dtype.kind == "c"
        end = offset + math.prod(aval.shape) * (2 if paired else 1)
        part = np.ascontiguousarray(rows[:, offset:end])
        given.append((part.view(np.complex128) if paired else part).reshape((len(rows), *aval.shape)))
        offset = end
    found = [result.reshape((len(rows), -1)) for result in sweep(given)]
    if parts:
        found = [_paired(result) for result in found]
    return np.concatenate(found, axis=1).T


def _paired(rows: np.ndarray) -> np.ndarray:
    rows = np.ascontiguousarray(rows)
    return rows.astype(np.complex128).view(np.float64) if rows.dtype.kind == "c" else rows
