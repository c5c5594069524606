"""PyTorch's functions by NumPy's names, with NumPy's signatures and meaning."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from pyadjoint_utils.cardinal_sine import sinc_of
from pyadjoint_utils.errors import ArgumentValueError


def _inexact(x: torch.Tensor) -> torch.Tensor:
    return x if x.is_floating_point() or x.is_complex() else x.to(torch.float64)


def _promoted(*arrays: torch.Tensor) -> list[torch.Tensor]:
    dtype = functools.reduce(torch.promote_types, [x.dtype for x in arrays])
    return [x.to(dtype) for x in arrays]


def _mixed(f: Callable[..., Any]) -> Callable[..., Any]:
    """NumPy promotes where torch's linear algebra wants one dtype."""
    return lambda a, b, *args, **kwargs: f(*_promoted(a, b), *args, **kwargs)


def _axes(x: torch.Tensor, axis: Any) -> tuple[int, ...]:
    if axis == ():
        raise ArgumentValueError("axis=() reduces nothing in NumPy and everything in torch. Leave the call out.")
    if axis is None:
        return tuple(range(x.ndim))
    return (axis,) if isinstance(axis, int) else tuple(axis)


def _reduction(f: Callable[..., Any], convert: Callable[..., Any] = lambda x: x) -> Callable[..., Any]:
    def reduce(x: torch.Tensor, axis: Any = None, *, keepdims: bool = False) -> torch.Tensor:
        return f(convert(x), dim=_axes(x, axis), keepdim=keepdims)

    return reduce


def _spread(f: Callable[..., Any]) -> Callable[..., Any]:
    def reduce(x: torch.Tensor, axis: Any = None, *, ddof: float = 0, keepdims: bool = False) -> torch.Tensor:
        return f(_inexact(x), dim=_axes(x, axis), correction=ddof, keepdim=keepdims)

    return reduce


def _one_axis(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function along one axis, which is the flattened array's if None."""

    def along(x: torch.Tensor, axis: int | None = None) -> torch.Tensor:
        return f(x.reshape(-1), dim=0) if axis is None else f(x, dim=axis)

    return along


def _prod(x: torch.Tensor, axis: Any = None, *, keepdims: bool = False) -> torch.Tensor:
    for k in sorted([k % x.ndim for k in _axes(x, axis)], reverse=True):
        x = torch.prod(x, dim=k, keepdim=keepdims)
    return x


def _squeeze(x: torch.Tensor, axis: Any = None) -> torch.Tensor:
    if axis is None:
        return x.squeeze()
    bad = [k for k in _axes(x, axis) if x.shape[k] != 1]
    if bad:
        raise ArgumentValueError(f"squeeze takes axes of length 1; axis {bad[0]} of {tuple(x.shape)} is longer.")
    return x.squeeze(_axes(x, axis))


def _expand_dims(x: torch.Tensor, axis: Any) -> torch.Tensor:
    axes = _axes(x, axis)
    for k in sorted([k % (x.ndim + len(axes)) for k in axes]):
        x = x.unsqueeze(k)
    return x


def _clip(x: torch.Tensor, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> torch.Tensor:
    low, high = (min if a_min is None else a_min), (max if a_max is None else a_max)
    x = x if low is None else torch.clamp(x, min=low)
    return x if high is None else torch.clamp(x, max=high)


def _joined(f: Callable[..., Any]) -> Callable[..., Any]:
    def join(arrays: Sequence[torch.Tensor], axis: int | None = 0) -> torch.Tensor:
        parts = _promoted(*arrays)
        return f([x.reshape(-1) for x in parts], 0) if axis is None else f(parts, axis)

    return join


def _solve(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = _promoted(a, b)
    if b.ndim == 1:
        return torch.linalg.solve(a, b[:, None])[..., 0]
    # Torch would take a stack of vectors for what NumPy takes for a matrix.
    return torch.linalg.solve(a, b.reshape((1,) * (a.ndim - b.ndim) + tuple(b.shape)))


def _einsum(subscripts: str, *operands: torch.Tensor, optimize: Any = None) -> torch.Tensor:
    return torch.einsum(subscripts, *_promoted(*operands))


def _take(x: torch.Tensor, indices: Any, axis: int | None = None) -> torch.Tensor:
    if axis is None:
        return _getitem(x.reshape(-1), indices)
    return _getitem(x, (slice(None),) * (axis % x.ndim) + (indices,))


def _getitem(x: torch.Tensor, index: Any) -> torch.Tensor:
    items = tuple([_index(item) for item in (index if isinstance(index, tuple) else (index,))])
    arrays = any(isinstance(item, torch.Tensor) and item.ndim > 0 for item in items)
    numbers = any(isinstance(item, int) or (isinstance(item, torch.Tensor) and item.ndim == 0) for item in items)
    backwards = any(isinstance(item, slice) and (item.step or 1) < 0 for item in items)
    if not backwards and not (arrays and numbers):
        return x[items]
    # Torch has no negative steps, and counts an integer beside arrays not as one of them: NumPy picks the positions.
    positions = np.arange(x.numel()).reshape(x.shape)
    chosen = positions[tuple([i.numpy(force=True) if isinstance(i, torch.Tensor) else i for i in items])]
    return x.reshape(-1)[torch.as_tensor(np.ascontiguousarray(chosen), device=x.device)]


def _index(item: Any) -> Any:
    if isinstance(item, list):
        item = torch.as_tensor(item)
    if isinstance(item, torch.Tensor) and item.dtype != torch.bool:
        return item.to(torch.int64)  # torch reads uint8 as a mask
    return item


def _along(f: Callable[..., Any], many: bool) -> Callable[..., Any]:
    """``fft`` of one axis, or of several."""
    if many:
        return lambda x, s=None, axes=None, norm=None: f(x, s, axes, norm)
    return lambda x, n=None, axis=-1, norm=None: f(x, n, axis, norm)


def _lower(a: torch.Tensor) -> torch.Tensor:
    """The matrix of which NumPy reads the lower triangle alone: torch's derivatives are those of a symmetric one."""
    low = torch.tril(a, -1)
    diagonal = torch.diag_embed(torch.diagonal(a, dim1=-2, dim2=-1).real.to(a.dtype))
    return low + diagonal + low.mH


def _triangle(f: Callable[..., Any]) -> Callable[..., Any]:
    def call(a: torch.Tensor, UPLO: str = "L") -> Any:
        return f(_lower(a if UPLO == "L" else a.mH))

    return call


def _svd(a: torch.Tensor, full_matrices: bool = True) -> tuple[torch.Tensor, ...]:
    if full_matrices and a.shape[-1] != a.shape[-2]:
        raise ArgumentValueError(
            "torch gives no derivative of the full svd of a matrix that is not square. Write full_matrices=False."
        )
    return tuple(torch.linalg.svd(a, full_matrices))


def _det(a: torch.Tensor) -> torch.Tensor:
    """Torch's own has the derivative zero wherever it is zero; small matrices, which most are, have a polynomial."""
    rows = a.unbind(-2)
    if len(rows) == a.shape[-1] == 2:
        (b, c), (d, e) = (row.unbind(-1) for row in rows)
        return b * e - c * d
    if len(rows) == a.shape[-1] == 3:
        return (rows[0] * torch.linalg.cross(rows[1], rows[2])).sum(-1)
    return torch.linalg.det(a)


_SAME = """
    negative positive exp exp2 expm1 log log2 log10 log1p sqrt square reciprocal sin cos tan arcsin arccos arctan sinh cosh
    tanh arcsinh arccosh arctanh deg2rad rad2deg floor ceil trunc isnan isinf isfinite signbit i0 logical_not real conj
    angle add subtract multiply true_divide floor_divide remainder fmod float_power maximum minimum fmax fmin arctan2 hypot
    logaddexp logaddexp2 copysign heaviside less less_equal greater greater_equal not_equal logical_and logical_or
    logical_xor bitwise_and bitwise_or bitwise_xor where zeros_like ones_like broadcast_to hstack vstack
    """.split()
_LINALG = "inv eigvals matrix_power".split()
_FFT = "fft ifft rfft irfft hfft ihfft".split()
_FFTN = "fftn ifftn rfftn irfftn".split()
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(torch, name) for name in _SAME},
    **{f"linalg.{name}": getattr(torch.linalg, name) for name in _LINALG},
    **{f"fft.{name}": _along(getattr(torch.fft, name), False) for name in _FFT},
    **{f"fft.{name}": _along(getattr(torch.fft, name), True) for name in _FFTN},
    "abs": torch.abs,
    "fabs": torch.abs,
    "power": torch.pow,
    "equal": torch.eq,
    "sign": torch.sgn,
    "rint": torch.round,
    "invert": torch.bitwise_not,
    "cbrt": lambda x: torch.sign(x) * torch.abs(x) ** (1 / 3),
    "imag": lambda x: torch.imag(x) if x.is_complex() else torch.zeros_like(x),
    "round": lambda x, decimals=0: torch.round(x, decimals=decimals),
    "sum": _reduction(torch.sum),
    "nansum": _reduction(torch.nansum),
    "mean": _reduction(torch.mean, _inexact),
    "nanmean": _reduction(torch.nanmean, _inexact),
    "max": _reduction(torch.amax),
    "min": _reduction(torch.amin),
    "copy": torch.clone,
    "all": _reduction(torch.all),
    "any": _reduction(torch.any),
    "prod": _prod,
    "sinc": sinc_of(torch.sin, torch.where),
    "var": _spread(torch.var),
    "std": _spread(torch.std),
    "cumsum": _one_axis(torch.cumsum),
    "cumprod": _one_axis(torch.cumprod),
    "argmax": _one_axis(torch.argmax),
    "argmin": _one_axis(torch.argmin),
    "sort": lambda x, axis=-1: _one_axis(torch.sort)(x, axis).values,
    "argsort": lambda x, axis=-1: _one_axis(torch.argsort)(x, axis),
    "diff": lambda x, n=1, axis=-1: torch.diff(x, n, axis),
    "reshape": lambda x, shape: torch.reshape(x, (shape,) if isinstance(shape, int) else tuple(shape)),
    "ravel": lambda x: torch.reshape(x, (-1,)),
    "transpose": lambda x, axes=None: x.permute(tuple(reversed(range(x.ndim))) if axes is None else tuple(axes)),
    "matrix_transpose": lambda x: x.mT,
    "swapaxes": lambda x, axis1, axis2: torch.swapaxes(x, axis1, axis2),
    "moveaxis": lambda x, source, destination: torch.movedim(x, source, destination),
    "squeeze": _squeeze,
    "expand_dims": _expand_dims,
    "repeat": lambda x, repeats, axis=None: torch.repeat_interleave(x, repeats, axis),
    "flip": lambda x, axis=None: torch.flip(x, _axes(x, axis)),
    "roll": lambda x, shift, axis=None: torch.roll(x, shift, axis),
    "tile": lambda x, reps: torch.tile(x, (reps,) if isinstance(reps, int) else tuple(reps)),
    "tril": lambda x, k=0: torch.tril(x, k),
    "triu": lambda x, k=0: torch.triu(x, k),
    "diag": lambda x, k=0: torch.diag(x, k),
    "clip": _clip,
    "concatenate": _joined(torch.cat),
    "stack": _joined(torch.stack),
    "getitem": _getitem,
    "take": _take,
    "diagonal": lambda x, offset=0, axis1=0, axis2=1: torch.diagonal(x, offset, axis1, axis2),
    "trace": lambda x, offset=0, axis1=0, axis2=1: torch.diagonal(x, offset, axis1, axis2).sum(-1),
    "matmul": _mixed(torch.matmul),
    "dot": _mixed(lambda a, b: torch.tensordot(a, b, ([-1], [max(-2, -b.ndim)])) if a.ndim and b.ndim else a * b),
    "vdot": _mixed(lambda a, b: torch.vdot(a.reshape(-1), b.reshape(-1))),
    "inner": _mixed(torch.inner),
    "outer": lambda a, b: torch.outer(a.reshape(-1), b.reshape(-1)),
    "kron": torch.kron,
    "cross": _mixed(lambda a, b, axis=-1: torch.linalg.cross(a, b, dim=axis)),
    "tensordot": _mixed(lambda a, b, axes=2: torch.tensordot(a, b, axes)),
    "einsum": _einsum,
    "linalg.solve": _solve,
    "linalg.norm": lambda x, ord=None, axis=None, keepdims=False: torch.linalg.norm(x, ord, axis, keepdims),
    "linalg.det": _det,
    "linalg.slogdet": lambda a: tuple(torch.linalg.slogdet(a)),
    "linalg.cholesky": lambda a: torch.linalg.cholesky(_lower(a)),
    "linalg.eigvalsh": _triangle(torch.linalg.eigvalsh),
    "linalg.eigh": _triangle(lambda a: tuple(torch.linalg.eigh(a))),
    "linalg.eig": lambda a: tuple(torch.linalg.eig(a)),
    "linalg.svd": _svd,
    "linalg.qr": lambda a, mode="reduced": tuple(torch.linalg.qr(a, mode)),
    "linalg.pinv": torch.linalg.pinv,
}  # fmt: skip
