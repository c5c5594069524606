"""NumPy's functions as compositions of functions that autograd has right rules for."""

from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.tracer import getval
from numpy.lib.array_utils import normalize_axis_tuple


def prod(x: Any, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
    """Multiply in pairs, so that zeros among the factors do no harm."""
    shape, ndim = anp.shape(x), anp.ndim(x)
    axes = normalize_axis_tuple(range(ndim) if axis is None else axis, ndim)
    rest = [a for a in range(ndim) if a not in axes]
    count = int(np.prod([shape[a] for a in axes], dtype=int))
    x = anp.reshape(anp.transpose(x, (*axes, *rest)), (count, *[shape[a] for a in rest]))
    while count > 1:
        half = count // 2
        x = anp.concatenate((x[:half] * x[half : 2 * half], x[2 * half :]))
        count -= half
    return anp.reshape(x, tuple([1 if a in axes else n for a, n in enumerate(shape) if keepdims or a not in axes]))


def cumprod(x: Any, axis: Any = None, dtype: Any = None) -> Any:
    """Multiply by doubling, so that zeros among the factors do no harm."""
    x = anp.ravel(x) if axis is None else anp.moveaxis(x, axis, 0)
    step = 1
    while step < len(x):
        x = anp.concatenate((x[:step], x[step:] * x[:-step]))
        step *= 2
    return x if axis is None else anp.moveaxis(x, 0, axis)


def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    """Norm of vectors, or the Frobenius norm, also of complex arrays."""
    if axis is None and ord is not None and anp.ndim(x) == 2:
        axis = (0, 1)
    if isinstance(axis, tuple) and len(axis) == 2 and ord not in (None, "fro"):
        raise NotImplementedError(f"the norm of matrices with ord={ord!r} and these axes")
    size = anp.abs(x)
    if ord in (1, np.inf, -np.inf) and not isinstance(axis, tuple):
        return {1: anp.sum, np.inf: anp.max, -np.inf: anp.min}[ord](size, axis=axis, keepdims=keepdims)
    if ord in (None, 2, "fro"):
        return anp.sqrt(anp.sum(anp.real(x * anp.conj(x)), axis=axis, keepdims=keepdims))
    if not ord > 1:
        raise NotImplementedError(f"the norm with ord={ord!r}")
    return anp.sum(size**ord, axis=axis, keepdims=keepdims) ** (1.0 / ord)


def clip(x: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> Any:
    """Clip with bounds that are differentiated too."""
    for bound in (a_min, min):
        x = x if bound is None else anp.maximum(x, bound)
    for bound in (a_max, max):
        x = x if bound is None else anp.minimum(x, bound)
    return x


def linspace(start: Any, stop: Any, num: int = 50, endpoint: bool = True, *, dtype: Any = None, axis: int = 0) -> Any:
    """Interpolate between numbers or arrays."""
    ndim = max(anp.ndim(start), anp.ndim(stop))
    t = np.linspace(0.0, 1.0, num, endpoint).reshape((num,) + (1,) * ndim)
    return anp.moveaxis(start * (1.0 - t) + stop * t, 0, axis)


def pad(x: Any, width: Any, mode: str = "constant", **kwargs: Any) -> Any:
    """Pad with zeros or with entries of the array; constants other than zero have the same derivative."""
    if mode not in ("constant", "edge", "reflect", "symmetric", "wrap") or kwargs.get("reflect_type", "even") != "even":
        raise NotImplementedError(f"pad with mode={mode!r}")
    size = anp.size(x)
    padding: dict[str, Any] = {"mode": mode} | ({"constant_values": size} if mode == "constant" else {})
    places = np.pad(np.arange(size).reshape(anp.shape(x)), width, **padding)
    return anp.concatenate((anp.ravel(x), np.zeros(1)))[places]


def sort(x: Any, axis: Any = -1, kind: Any = None, order: Any = None, *, stable: Any = None) -> Any:
    """Take the entries in the order that they have now."""
    x, axis = (anp.ravel(x), 0) if axis is None else (x, axis)
    return anp.take_along_axis(x, np.argsort(getval(x), axis, "stable"), axis)


def rfft(x: Any, n: int | None = None, axis: int = -1, norm: Any = None) -> Any:
    """Cut a half off the complex transform."""
    size = anp.shape(x)[axis] if n is None else n
    return _cut(anp.fft.fft(x, n, axis, norm), slice(size // 2 + 1), axis)


def irfft(x: Any, n: int | None = None, axis: int = -1, norm: Any = None) -> Any:
    """Transform after putting the other half of the spectrum back."""
    size = 2 * (anp.shape(x)[axis] - 1) if n is None else n
    half = size // 2 + 1
    missing = [(0, 0)] * anp.ndim(x)
    missing[axis] = (0, max(half - anp.shape(x)[axis], 0))
    x = anp.pad(_cut(x, slice(half), axis), missing, "constant")
    tail = anp.conj(_cut(x, slice((size + 1) // 2 - 1, 0, -1), axis))
    return anp.real(anp.fft.ifft(anp.concatenate((x, tail), axis), None, axis, norm))


def _cut(x: Any, part: slice, axis: int) -> Any:
    index = [slice(None)] * anp.ndim(x)
    index[axis] = part
    return x[tuple(index)]
