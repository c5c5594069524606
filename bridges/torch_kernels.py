"""Plain kernels in the place of PyTorch's fused ones, for maps that are differentiated more than once."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

# What torch has once in a process, for all threads: which kernels it takes, the state of its random generator, and the
# tensors in a module, which a call replaces.
ONE_AT_A_TIME = threading.RLock()


class _PlainNorms(TorchFunctionMode):
    """Write fused normalizations out: from third order on torch takes their saved statistics for constants."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = _PLAIN.get(func)
        y = None if plain is None else plain(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if y is None else y


def _layer_norm(
    input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enable: Any = None
) -> Any:
    return _affine(_normalized(input, tuple(range(-len(normalized_shape), 0)), eps), weight, bias)


def _batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Any:
    # With frozen statistics it is an affine map, which torch gets right. Derivatives have no running ones to update.
    return _per_channel(_normalized(input, (0, *range(2, input.ndim)), eps), weight, bias) if training else None


def _instance_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    return _per_channel(_normalized(input, tuple(range(2, input.ndim)), eps), weight, bias) if use_input_stats else None


def _normalized(x: Any, axes: tuple[int, ...], eps: float) -> Any:
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(axes, keepdim=True) + eps)


def _affine(y: Any, weight: Any, bias: Any) -> Any:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _per_channel(y: Any, weight: Any, bias: Any) -> Any:
    shape = (-1,) + (1,) * (y.ndim - 2)
    return _affine(y, *[None if t is None else t.reshape(shape) for t in (weight, bias)])


_PLAIN: dict[Any, Callable[..., Any]] = {
    functional.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    functional.batch_norm: _batch_norm,
    functional.instance_norm: _instance_norm,
}


@contextlib.contextmanager
def plain_kernels() -> Any:
    """Kernels that torch differentiates to any order; its fused attention it does only once, and not forward."""
    with ONE_AT_A_TIME, sdpa_kernel(SDPBackend.MATH), _PlainNorms():
        yield
