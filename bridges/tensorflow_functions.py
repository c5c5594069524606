"""TensorFlow's functions under NumPy's names: ``tf.experimental.numpy``, and what that lacks or does otherwise."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow.experimental.numpy as tnp

from pyadjoint_utils.cardinal_sine import sinc_of
from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError


def function_named(name: str) -> Callable[..., Any] | None:
    """Return TensorFlow's function of a NumPy name, or None."""
    found = _FUNCTIONS.get(name)
    if found is None and "." not in name:
        found = getattr(tnp, name, None)
    return found if callable(found) and not isinstance(found, type) else None


# Indexing ----------------------------------------------------------------------------------------------------------------


def _getitem(x: Any, index: Any) -> Any:
    """``x[index]`` as NumPy does it: integers, slices, None, Ellipsis, integer arrays and masks."""
    items = [part for i in (index if isinstance(index, tuple) else (index,)) for part in _item(i)]
    named = sum(i is not None and i is not Ellipsis for i in items)
    if named > len(x.shape):
        raise IndexError(f"too many indices: the array has {len(x.shape)} axes, the index names {named}.")
    if not any(isinstance(i, tf.Tensor) for i in items):
        return x[tuple(items)] if items else tf.identity(x)
    dots = next((k for k, i in enumerate(items) if i is Ellipsis), len(items))
    items[dots : dots + 1] = [slice(None)] * (len(x.shape) - named)
    chosen = [k for k, i in enumerate(items) if isinstance(i, (int, tf.Tensor))]
    # Slices and new axes first; then every item stands for one axis.
    sliced = x[tuple([slice(None) if k in chosen else i for k, i in enumerate(items)])]
    return _gathered(sliced, chosen, [items[k] for k in chosen])


def _item(item: Any) -> Sequence[Any]:
    """One item as what stands for one axis each; a mask becomes as many arrays of positions as it has axes."""
    if isinstance(item, (list, np.ndarray, np.generic)):
        item = tf.convert_to_tensor(np.asarray(item))
    if isinstance(item, tf.Tensor) and item.dtype.is_bool and len(item.shape):
        return tf.unstack(tf.where(item), num=len(item.shape), axis=1)
    if isinstance(item, bool) or (isinstance(item, tf.Tensor) and not item.dtype.is_integer):
        raise ArgumentTypeError(
            f"An index is an integer, a slice, None, ... or an array of integers or bools; got {item!r}."
        )
    return (item,)


def _gathered(x: Any, axes: Sequence[int], arrays: Sequence[Any]) -> Any:
    """Index some axes with arrays that broadcast."""
    sizes = tf.shape(x, out_type=tf.int64)
    arrays = [tf.cast(a, tf.int64) for a in arrays]
    arrays = [tf.where(a < 0, a + sizes[axis], a) for axis, a in zip(axes, arrays, strict=True)]
    shape = functools.reduce(tf.broadcast_dynamic_shape, [tf.shape(a) for a in arrays])
    positions = tf.stack([tf.broadcast_to(a, shape) for a in arrays], axis=-1)
    rest = [k for k in range(len(x.shape)) if k not in axes]
    moved = tf.transpose(x, [*axes, *rest])
    # The gradient of gather_nd does not take one position without an axis.
    result = tf.gather_nd(moved, positions) if len(positions.shape) > 1 else tf.gather_nd(moved, positions[None])[0]
    # NumPy: the arrays' axes stay where they were if the arrays stood side by side, and go to the front otherwise.
    if list(axes) != list(range(axes[0], axes[-1] + 1)):
        return result
    new, first = len(positions.shape) - 1, axes[0]
    return tf.transpose(result, [*range(new, new + first), *range(new), *range(new + first, new + len(rest))])


# Arithmetic --------------------------------------------------------------------------------------------------------------


def _power(x: Any, exponent: Any) -> Any:
    if type(exponent) is int and exponent >= 0:
        # The derivatives of tf.pow have x^(n - 2) and its kin, which is not finite at 0.
        return _integer_power(x, exponent)
    if type(exponent) is int and not x.dtype.is_integer:
        return 1 / _integer_power(x, -exponent)
    return tnp.power(x, exponent)


def _integer_power(x: Any, n: int) -> Any:
    if n == 0:
        return tf.ones_like(x)
    half = _integer_power(x, n // 2) if n > 1 else None
    return x if half is None else (half * half * x if n % 2 else half * half)


def _complex(x: Any) -> Any:
    """A real tensor as a complex one; tf.cast would do, but its gradient logs a warning."""
    return x if x.dtype.is_complex else tf.complex(x, tf.zeros_like(x))


def _both_complex(name: str) -> Callable[..., Any]:
    function = getattr(tnp, name)

    @functools.wraps(function)
    def call(a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
        a, b = tf.convert_to_tensor(a), tf.convert_to_tensor(b)
        if (a.dtype.is_complex and b.dtype.is_floating) or (a.dtype.is_floating and b.dtype.is_complex):
            a, b = _complex(a), _complex(b)
        return function(a, b, *args, **kwargs)

    return call


def _inexact(x: Any) -> Any:
    return x if x.dtype.is_floating or x.dtype.is_complex else tf.cast(x, tf.float64)


def _var(x: Any, axis: Any = None, ddof: float = 0, keepdims: bool = False) -> Any:
    x = _inexact(x)
    squares = _abs_squared(x - tf.reduce_mean(x, axis, keepdims=True))
    total = tf.reduce_sum(squares, axis, keepdims=keepdims)
    count = tf.size(squares) // tf.maximum(tf.size(total), 1)
    return total / (tf.cast(count, total.dtype) - tf.cast(ddof, total.dtype))


def _abs_squared(x: Any) -> Any:
    return tf.math.real(x) ** 2 + tf.math.imag(x) ** 2 if x.dtype.is_complex else x * x


def _real(x: Any) -> Any:
    return tf.math.real(x) if x.dtype.is_complex else tf.identity(x)


def _product(x: Any, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
    """Products of pairs: second derivatives of TensorFlow's own divide by the factors, and are wrong at zeros."""
    if dtype is not None:
        x = tf.cast(x, dtype)
    if x.dtype.is_integer or x.dtype.is_bool:
        return tnp.prod(x, axis, keepdims=keepdims)
    rank = len(x.shape)
    axes = range(rank) if axis is None else sorted({a % rank for a in np.atleast_1d(axis)})
    result = tf.transpose(x, [*axes, *[k for k in range(rank) if k not in axes]])
    result = tf.reshape(result, (-1, *result.shape[len(axes) :]))
    if not result.shape[0]:
        result = tf.ones((1, *result.shape[1:]), x.dtype)
    while (n := result.shape[0]) > 1:
        pairs = result[: n // 2] * result[n // 2 : n - n % 2]
        result = tf.concat([pairs, result[n - 1 :]], 0) if n % 2 else pairs
    shape = [1 if k in axes else length for k, length in enumerate(x.shape)]
    return tf.reshape(result[0], shape) if keepdims else result[0]


def _cumulative_product(x: Any, axis: int | None = None, dtype: Any = None) -> Any:
    """Products with what stands 1, 2, 4, ... places before, for the same reason."""
    if dtype is not None:
        x = tf.cast(x, dtype)
    if axis is None:
        x, axis = tf.reshape(x, (-1,)), 0
    if x.dtype.is_integer or x.dtype.is_bool:
        return tnp.cumprod(x, axis)
    result, distance = tnp.moveaxis(x, axis, 0), 1
    while distance < result.shape[0]:
        result = tf.concat([result[:distance], result[distance:] * result[:-distance]], 0)
        distance *= 2
    return tnp.moveaxis(result, 0, axis)


def _logaddexp(log_of_base: float) -> Callable[..., Any]:
    """TensorFlow's own has a kink where its arguments are equal, so that derivatives are wrong there."""

    def call(a: Any, b: Any) -> Any:
        swapped = tnp.greater(b, a)
        larger, smaller = tnp.where(swapped, b, a), tnp.where(swapped, a, b)
        distance = smaller - larger
        distance = tf.where(tf.math.is_inf(larger), tf.zeros_like(distance), distance)  # inf - inf
        return larger + tf.math.log1p(tf.exp(log_of_base * distance)) / log_of_base

    return call


# Linear algebra ----------------------------------------------------------------------------------------------------------


def _solve(a: Any, b: Any) -> Any:
    if len(b.shape) == 1:
        return tf.linalg.solve(a, b[:, None])[..., 0]
    shape = tf.broadcast_dynamic_shape(tf.shape(a)[:-2], tf.shape(b)[:-2])
    return tf.linalg.solve(*[tf.broadcast_to(m, tf.concat([shape, tf.shape(m)[-2:]], 0)) for m in (a, b)])


def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    vector = isinstance(axis, int) or (axis is None and len(x.shape) == 1)
    if ord is None or (ord == "fro" and not vector) or (ord == 2 and vector):
        return tf.sqrt(tf.reduce_sum(_abs_squared(x), axis, keepdims))
    if ord in (1, np.inf):
        return tf.norm(tf.abs(x), ord, axis if axis is not None or vector else (-2, -1), keepdims)
    if ord == 2 and axis is None and len(x.shape) == 2 and not keepdims:
        return tf.reduce_max(tf.linalg.svd(x, compute_uv=False))
    raise ArgumentValueError(
        "With TensorFlow linalg.norm knows ord=None, 'fro', 1 and inf, and 2 for vectors and a single matrix; "
        f"got ord={ord!r}, axis={axis!r} for shape {tuple(x.shape)}."
    )


def _only_real(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: Any) -> Any:
        if x.dtype.is_complex:
            raise ArgumentTypeError(
                f"TensorFlow's derivative of {name} is wrong for complex matrices. Use another engine."
            )
        return function(x)

    return call


# Fourier transforms ------------------------------------------------------------------------------------------------------


def _fft(transform: Callable[..., Any], inverse: bool) -> Callable[..., Any]:
    def call(x: Any, n: int | None = None, axis: int = -1, norm: str | None = None) -> Any:
        x = x if x.dtype.is_floating or x.dtype.is_complex else tf.cast(x, tf.float64)
        moved = _resized(tnp.moveaxis(_complex(x), axis, -1), n)
        factor = _fft_factor(norm, moved.shape[-1], inverse)
        return tnp.moveaxis(transform(moved) * tf.constant(factor, moved.dtype), -1, axis)

    return call


def _fft_factor(norm: str | None, n: int, inverse: bool) -> float:
    """By what to multiply TensorFlow's transform, of which the inverse has the factor 1 / n."""
    powers = {None: (0.0, 0.0), "backward": (0.0, 0.0), "ortho": (-0.5, 0.5), "forward": (-1.0, 1.0)}
    if norm not in powers:
        raise ArgumentValueError(f"norm is 'backward', 'ortho' or 'forward'; got {norm!r}.")
    return n ** powers[norm][inverse]


def _resized(x: Any, n: int | None) -> Any:
    """Crop or pad the last axis with zeros."""
    if n is None:
        return x
    missing = max(n - x.shape[-1], 0)
    return tf.pad(x[..., :n], [[0, 0]] * (len(x.shape) - 1) + [[0, missing]])


def _over_axes(transform: Callable[..., Any], default: Sequence[int] | None) -> Callable[..., Any]:
    def call(x: Any, s: Any = None, axes: Any = default, norm: str | None = None) -> Any:
        if axes is None:
            axes = range(-len(x.shape if s is None else s), 0)
        for n, axis in zip([None] * len(axes) if s is None else s, axes, strict=True):
            x = transform(x, n, axis, norm)
        return x

    return call


def _take(x: Any, indices: Any, axis: int | None = None) -> Any:
    """tnp.take clips positions; NumPy counts negative ones from the end."""
    if axis is None:
        return _getitem(tf.reshape(x, (-1,)), indices)
    return _getitem(x, (slice(None),) * (axis % len(x.shape)) + (indices,))


def _lower(a: Any) -> Any:
    """The matrix of which NumPy reads the lower triangle alone: TensorFlow's derivative is that of a symmetric one."""
    low = tf.linalg.set_diag(tf.linalg.band_part(a, -1, 0), tf.zeros_like(tf.linalg.diag_part(a)))
    diagonal = tf.linalg.diag(tf.linalg.diag_part(a))
    return low + tf.linalg.adjoint(low) + (0.5 * (diagonal + tf.linalg.adjoint(diagonal)))


_FFT, _IFFT = _fft(tf.signal.fft, False), _fft(tf.signal.ifft, True)
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "getitem": _getitem,
    "astype": lambda x, dtype: tf.cast(x, dtype),
    "power": _power,
    "prod": _product,
    "cumprod": _cumulative_product,
    "logaddexp": _logaddexp(1.0),
    "sinc": lambda x: sinc_of(tf.sin, tf.where)(_inexact(x)),
    "logaddexp2": _logaddexp(float(np.log(2.0))),
    "var": _var,
    "std": lambda x, *args, **kwargs: tf.sqrt(_var(x, *args, **kwargs)),
    "square": lambda x: x * x,
    "real": _real,
    "linalg.solve": _solve,
    "linalg.inv": tf.linalg.inv,
    "linalg.pinv": tf.linalg.pinv,
    "linalg.det": tf.linalg.det,
    "linalg.slogdet": _only_real("slogdet", tf.linalg.slogdet),
    "take": _take,
    "linalg.cholesky": lambda a: tf.linalg.cholesky(_lower(a)),
    "linalg.eigh": lambda x: (_real((pair := tf.linalg.eigh(x))[0]), pair[1]),
    "linalg.eigvalsh": lambda x: _real(tf.linalg.eigvalsh(x)),
    "linalg.norm": _norm,
    "fft.fft": _FFT,
    "fft.ifft": _IFFT,
    "fft.fft2": _over_axes(_FFT, (-2, -1)),
    "fft.ifft2": _over_axes(_IFFT, (-2, -1)),
    "fft.fftn": _over_axes(_FFT, None),
    "fft.ifftn": _over_axes(_IFFT, None),
}
_FUNCTIONS |= {
    name: _both_complex(name)
    for name in "add subtract multiply true_divide power matmul dot inner outer tensordot kron vdot".split()
    if name not in _FUNCTIONS
}
